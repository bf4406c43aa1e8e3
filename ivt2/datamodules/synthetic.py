"""The embedded dataset as a datamodule: clips are written on first use, nothing is downloaded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from typing_extensions import override

from ivt2.data import sampling
from ivt2.data.decode import Backend
from ivt2.data.synthetic import SPLITS, VOCABULARY_FILE, Split
from ivt2.data.synthetic_shards import write_synthetic
from ivt2.data.tokenizer import WordPieceTokenizer
from ivt2.data.transforms import Transform
from ivt2.datamodules.media_text import MediaTextDataModule


class SyntheticDataModule(MediaTextDataModule):
    """Writes the embedded dataset where it is not there yet and streams it like any other shards.

    Fits on the ``train`` split, validates on ``val`` and tests on ``test``; a combination of attributes occurs in one
    of the three only, so both evaluations rank clips whose combinations were never trained on. Captions are tokenized
    with the vocabulary of the dataset's grammar. They name sides: do not flip the clips.

    Without sound the clips are videos. With ``medium=audio_video`` they come in twins, of which only the sound tells
    which one a caption of the kind ``fused`` describes; captions of the kind ``video`` describe both.

    Args:
        folder: where the shards go, one folder for each split.
        num_train: training clips.
        num_val: validation clips.
        num_test: test clips.
        medium: ``video``, or ``audio_video`` for twins.
        caption_kinds: of twins: kinds that stand beside the caption of a training clip, of ``video``, ``audio``,
            ``audio_video`` and ``fused``.
        caption_kind: of twins: kind that an evaluation ranks; None ranks what describes all, as ``fused`` does.
        image_size: side of the written frames in pixels, even; transforms may change it.
        data_seed: of the written clips; apart from ``seed``, so that a sweep over seeds shares them.
        num_frames: frames of a clip.
        max_text_length: tokens of a caption with its start token; the longest caption has 18 words.
        train_transforms: augmentations of training clips.
        eval_transforms: transforms of evaluation clips.
        train_sampling: chooses training frames, called as ``(length, num_frames, generator=...)``.
        eval_sampling: chooses evaluation frames, called as ``(length, num_frames)``.
        global_batch_size: training clips of a step, over all ranks.
        eval_batch_size: evaluation clips of a step, of each rank.
        num_workers: processes of each rank that decode, and that write where there is nothing yet.
        seed: of order and augmentations.
        train_captions: ``random`` draws one of a clip's captions, ``first`` takes the main one.
        eval_captions: rank ``all`` captions of a clip or only the ``first``.
        decoder: library that decodes video.
        progress: show a bar while clips are written.

    Raises:
        InputError: here or from ``prepare_data``, for folders and sizes that cannot be used.
    """

    def __init__(
        self,
        *,
        folder: str,
        num_train: int = 2000,
        num_val: int = 100,
        num_test: int = 100,
        medium: Literal["video", "audio_video"] = "video",
        caption_kinds: Sequence[str] = (),
        caption_kind: str | None = None,
        image_size: int = 64,
        data_seed: int = 0,
        num_frames: int,
        max_text_length: int = 24,
        train_transforms: Sequence[Transform] = (),
        eval_transforms: Sequence[Transform] = (),
        train_sampling: Callable[..., Sequence[int]] = sampling.random,
        eval_sampling: Callable[..., Sequence[int]] = sampling.middle,
        global_batch_size: int,
        eval_batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        train_captions: Literal["random", "first"] = "random",
        eval_captions: Literal["all", "first"] = "first",
        decoder: Backend = "auto",
        progress: bool = True,
    ) -> None:
        self.split_folders: dict[Split, str] = {split: str(Path(folder) / split) for split in SPLITS}
        sources = {split: {"shards": folder, "medium": medium} for split, folder in self.split_folders.items()}
        super().__init__(
            train={"synthetic": {**sources["train"], "caption_kinds": caption_kinds}},
            val={"synthetic": {**sources["val"], "caption_kind": caption_kind}},
            test={"synthetic": {**sources["test"], "caption_kind": caption_kind}},
            tokenizer=WordPieceTokenizer(VOCABULARY_FILE, max_length=max_text_length),
            num_frames=num_frames,
            train_transforms=train_transforms,
            eval_transforms=eval_transforms,
            train_sampling=train_sampling,
            eval_sampling=eval_sampling,
            global_batch_size=global_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            train_captions=train_captions,
            eval_captions=eval_captions,
            decoder=decoder,
            isolate=False,  # these files were encoded here
            budget=0,
        )
        self.num_clips: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test}
        self.twins = medium == "audio_video"
        self.image_size, self.data_seed, self.progress = image_size, data_seed, progress

    @override
    def prepare_data(self) -> None:
        """Write the splits that are absent or were made otherwise."""
        for split, folder in self.split_folders.items():
            write_synthetic(
                folder,
                split=split,
                num_clips=self.num_clips[split],
                seed=self.data_seed,
                image_size=self.image_size,
                twins=self.twins,
                num_processes=max(1, self.num_workers),
                progress=self.progress,
            )
