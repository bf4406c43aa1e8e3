"""CPU time of a training step of stage 2 against the plain formulation in three passes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from ivt2.cli.benchmarks.masked_steps import unscheduled, without_trainer
from ivt2.cli.benchmarks.student_step import OPTIMIZER, build_encoder, plain_optimizer, sizes_of, step_figure
from ivt2.cli.benchmarks.timing import Figure, interleaved, timed
from ivt2.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from ivt2.batch import MediaTextBatch
    from ivt2.cli.benchmarks.plain_stage2 import PlainStage2, PlainStep, PlainTextSizes
    from ivt2.cli.benchmarks.plain_student import PlainSizes
    from ivt2.modules.stage2 import Stage2Module

Size = Literal["tiny", "s14"]
Vision = Literal["plain", "shared"]

TERMS = {"vtc": 1.0, "vtm": 1.0, "mlm": 1.0}
CONTRASTIVE_DIM = 128
_CLIP_LENGTH = 3.0
_WARM_UPS = 2


class Case(NamedTuple):
    """What both sides are built from and fed with."""

    vision: "PlainSizes"
    text: "PlainTextSizes"
    mask_ratio: float
    num_clips: int
    max_length: int
    num_words: tuple[int, int]
    """Least and greatest number of tokens of a caption, with its start token."""


class Stage2StepSuite:
    """Forward pass, the losses of contrast, matching and masked words, backward pass, clipping to length 3, AdamW.

    Ours is :class:`Stage2Module` with the parameter groups and the fused AdamW of ``train.py``. The other side is
    :class:`PlainStage2`, which holds the same weights, with AdamW as the reference calls it. Sizes: ``tiny`` is the
    network of ``experiment=stage2_tiny`` with captions as long as those of the embedded set; ``s14`` is S/14 on four
    frames with a BERT of 8 layers of width 512 and BERT's vocabulary, with captions of 8 to 20 words in 32 columns, as
    WebVid's are.

    Args:
        sizes: of ``tiny`` and ``s14``.
        num_clips: of a batch, for each size; at least 2.
        vision_encoders: of the other side: ``plain`` modules too, or ``shared``, ours, so that the difference is that
            of the text side alone.
        dropout: of the text encoder, on both sides.
        pairs: turns of each side, of one step.

    Raises:
        InputError: an unknown size or vision encoder, or too few clips.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[str],
        num_clips: Mapping[str, int],
        vision_encoders: Sequence[str],
        dropout: float,
        pairs: int,
    ) -> None:
        for name, given, known in (("sizes", sizes, Size), ("vision_encoders", vision_encoders, Vision)):
            if not given or set(given) - set(get_args(known)):
                raise InputError(f"{name}={list(given)}: name some of {', '.join(get_args(known))}")
        self.sizes: list[Size] = [size for size in get_args(Size) if size in sizes]
        self.vision_encoders: list[Vision] = [each for each in get_args(Vision) if each in vision_encoders]
        for size in self.sizes:
            if num_clips.get(size, 0) < 2:
                raise InputError(f"num_clips.{size}={num_clips.get(size)}: matching needs at least 2 clips")
        self.num_clips = dict(num_clips)
        self.dropout = dropout
        self.pairs = pairs

    @property
    def turns(self) -> int:
        """Turns of all measurements."""
        return 2 * self.pairs * len(self.sizes) * len(self.vision_encoders)

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:  # noqa: ARG002
        """Yield the figures one by one."""
        for size in self.sizes:
            for vision in self.vision_encoders:
                yield self._figure(size, vision, tick)

    def _figure(self, size: Size, vision: Vision, tick: Callable[[], object]) -> Figure:
        case = case_of(size, self.dropout)._replace(num_clips=self.num_clips[size])
        module, batch = build(case), make_batch(case)
        plain = plain_twin(module, case, vision)
        ours = partial(_step, module.model, our_optimizer(module), partial(module.training_step, batch, 0))
        step = plain_step(module, batch)
        theirs = partial(_step, plain, plain_optimizer(plain), lambda: sum(plain(step)))
        with without_trainer():
            for _ in range(_WARM_UPS):
                ours()
                theirs()
            costs = interleaved(partial(timed, theirs), partial(timed, ours), pairs=self.pairs, tick=tick)
        return step_figure(f"{size}, {vision} vision encoder", costs, floor=0.9, aim=0.75)


def case_of(size: Size, dropout: float = 0.0) -> Case:
    """Widths and layers of both sides, and what they are fed with."""
    from ivt2.cli.benchmarks.plain_stage2 import PlainTextSizes

    text = PlainTextSizes(
        vocab_size=256 if size == "tiny" else 30522,
        embed_dim=128 if size == "tiny" else 512,
        depth=4 if size == "tiny" else 8,
        num_heads=4 if size == "tiny" else 8,
        mlp_dim=512 if size == "tiny" else 2048,
        max_positions=64,
        fusion_layer=2 if size == "tiny" else 6,
        encoder_width=128 if size == "tiny" else 384,
        dropout=dropout,
        attention_dropout=dropout,
    )
    vision, _ = sizes_of(size)
    if size == "s14":
        return Case(replace(vision, num_frames=4), text, 0.8, 4, 32, (9, 25))
    tiny = replace(vision, image_size=64, patch_size=16, embed_dim=128, depth=4, pool_num_heads=4, pooled_dim=128)
    return Case(tiny, text, 0.5, 32, 24, (14, 20))


def build(case: Case) -> "Stage2Module":
    """Our module, in training."""
    from ivt2.batch import Vocabulary
    from ivt2.models.bert import Bert
    from ivt2.models.stage2 import Stage2Model
    from ivt2.modules.stage2 import Stage2Module
    from ivt2.optim.adamw import adamw

    encoder = build_encoder(case.vision)
    model = Stage2Model(encoder, Bert(**asdict(case.text)), contrastive_dim=CONTRASTIVE_DIM)
    module = Stage2Module(
        model,
        optimizer=partial(adamw, **OPTIMIZER),
        schedule=unscheduled,
        terms=TERMS,
        mask_ratio={"video": case.mask_ratio},
    )
    module.vocabulary = Vocabulary(size=case.text.vocab_size, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
    return module.train()


def make_batch(case: Case) -> "MediaTextBatch":
    """Random pixels, normalised as both sides take them, and captions of random words and lengths."""
    import torch

    generator = torch.Generator().manual_seed(1)
    num, sizes = case.num_clips, case.vision
    low, high = case.num_words
    lengths = torch.randint(low, high + 1, (num, 1), generator=generator)
    lengths[0] = high
    valid = torch.arange(case.max_length) < lengths
    words = torch.randint(5, case.text.vocab_size, valid.shape, generator=generator)
    words[:, 0] = 2
    numbers = torch.arange(num)
    pixels = torch.randn(num, sizes.num_frames, 3, sizes.image_size, sizes.image_size, generator=generator)
    return {
        "video": pixels,
        "input_ids": words.masked_fill(~valid, 0),
        "valid": valid,
        "sample_id": numbers,
        "seed": numbers + 1,
        "key": [str(number) for number in range(num)],
        "medium": "video",
        "source": "random",
        "skipped": [],
    }


def plain_twin(module: "Stage2Module", case: Case, vision: Vision) -> "PlainStage2":
    """The other side, with the same weights."""
    from copy import deepcopy

    from ivt2.cli.benchmarks.plain_stage2 import PlainStage2
    from ivt2.cli.benchmarks.plain_student import PlainEncoder

    encoder = PlainEncoder(case.vision) if vision == "plain" else deepcopy(module.model.vision_encoder)
    twin = PlainStage2(encoder, case.text, pooled_dim=case.vision.pooled_dim, contrastive_dim=CONTRASTIVE_DIM)
    twin.load_state_dict(module.model.state_dict())
    return twin.train()


def plain_step(module: "Stage2Module", batch: "MediaTextBatch") -> "PlainStep":
    """The batch with the draws that our step makes of its seeds, which cost the other side nothing."""
    from ivt2.cli.benchmarks.plain_stage2 import PlainStep
    from ivt2.modules.stage2_encoding import corrupt
    from ivt2.ops.random import Stream, uniform

    assert module.vocabulary is not None
    module.encode(batch)
    assert module.last_masked is not None
    noise = uniform(batch["seed"], 4 * batch["input_ids"].shape[1], Stream.MASKED_LM)
    hidden = corrupt(batch, [None], module.vocabulary, noise, probability=module.masked_lm_probability)[None]
    return PlainStep(
        video=batch["video"],
        masked=module.last_masked,
        input_ids=batch["input_ids"],
        valid=batch["valid"],
        corrupted=hidden.input_ids,
        labels=hidden.labels,
        noise=uniform(batch["seed"], 2, Stream.NEGATIVES),
    )


def our_optimizer(module: "Stage2Module") -> "Optimizer":
    """AdamW as the configuration makes it, with parameter groups as the module makes them."""
    from ivt2.optim.parameter_groups import parameter_groups

    groups = parameter_groups(module.model.named_parameters(), no_weight_decay=module.model.no_weight_decay())
    return module.optimizer(groups)


def _step(network: "nn.Module", optimizer: "Optimizer", loss: "Callable[[], Tensor]") -> None:
    import torch

    torch.autograd.backward(loss())
    torch.nn.utils.clip_grad_norm_(network.parameters(), _CLIP_LENGTH)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
