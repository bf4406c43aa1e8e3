"""The published networks of the InternVideo2 family: what exists, where it lies, and what becomes of it here.

Left out because there is no such file, or the published list links to another one: everything of stage 1 at 6B; K600
with 8 frames at 1B (the link is K400's); B/14 on Something-Something v2 (the link is K700's); L/14 on K710 (the link is
the distilled model's).
Source: reference single_modality and multi_modality, MODEL_ZOO.md; spec stage1 section 5, stage2 section 7.1.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch import nn

from ivt2.checkpoint.keymaps import audio, clip, stage1, stage2, teachers, text
from ivt2.checkpoint.release import Part, Release
from ivt2.errors import InputError
from ivt2.models import published
from ivt2.models.published import LargeSize, Size, SmallSize

HUB = "https://huggingface.co/"
NOT_STATED = "not stated"

_DISTILLED_REPOSITORY = "OpenGVLab/InternVideo2_distillation_models"
_CLASSES = {"k710": 710, "k400": 400, "k600": 600, "k700": 700, "mit": 339, "ssv1": 174, "ssv2": 174}
_TITLES = {
    "k710": "Kinetics-710",
    "k400": "Kinetics-400",
    "k600": "Kinetics-600",
    "k700": "Kinetics-700",
    "mit": "Moments in Time",
    "ssv1": "Something-Something v1",
    "ssv2": "Something-Something v2",
}
_SIZE_TITLES: Mapping[Size, str] = {"s14": "S/14", "b14": "B/14", "l14": "L/14", "1b": "1B", "6b": "6B"}

_DELTA: Mapping[Size, int] = {
    "s14": 1_136_769, "b14": 2_762_241, "l14": 4_337_409, "1b": 7_042_177, "6b": 33_207_169,
}  # fmt: skip
"""Parameters in the file of a CLIP model, which is small because the rest lies in other files."""
_RETRIEVAL = "zero-shot retrieval and features of video and text; no captions, no answers, no class scores"


class TokenizerFile(NamedTuple):
    """Where the vocabulary of a kind of tokenizer lies."""

    file: str
    """Path inside the repository."""
    source: str
    """Repository on the Hugging Face hub, or the page that tells where the file is."""


TOKENIZERS: Mapping[str, TokenizerFile] = MappingProxyType({
    "bert": TokenizerFile("vocab.txt", "google-bert/bert-large-uncased"),
    "clip": TokenizerFile("tokenizer.json", "openai/clip-vit-base-patch16"),
    "llama": TokenizerFile(
        "tokenizer.model",
        "https://github.com/OpenGVLab/InternVL/tree/main/clip_benchmark/clip_benchmark/models/internvl_c_pytorch/"
        "chinese_alpaca_lora_7b",
    ),
})


def page_of(source: str) -> str:
    """Address of a part's or tokenizer's source for people."""
    return source if "://" in source else HUB + source


def find(name: str) -> Release:
    """The release of that name.

    Raises:
        InputError: There is none; names that look like it are listed.
    """
    if name in RELEASES:
        return RELEASES[name]
    near = difflib.get_close_matches(name, RELEASES, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(f"{name}: no such release; {hint}python -m ivt2.cli.zoo lists all")


def convert_command(
    release: Release, output: str = "<folder>", files: Mapping[str, Path] = MappingProxyType({})
) -> str:
    """What to type once the files are there.

    Args:
        release: What to convert.
        output: Folder to write.
        files: Where parts lie already, by name.
    """
    given = " ".join(f"files.{part.name}={files.get(part.name, f'<{part.name} file>')}" for part in release.parts)
    return f"python -m ivt2.cli.convert release={release.name} {given} output={output}"


def _classifier(size: Size, data: str, num_frames: int, repository: str, file: str) -> Release:
    num_classes = _CLASSES[data]

    def build(frames: int, image_size: int) -> nn.Module:
        return published.video_classifier(size, num_classes=num_classes, num_frames=frames, image_size=image_size)

    part = Part("model", stage1.FINETUNED, file, repository, NOT_STATED, num_frames=num_frames)
    return Release(
        name=f"internvideo2-{size}-{data}-f{num_frames}",
        title=f"InternVideo2-{_SIZE_TITLES[size]} fine-tuned on {_TITLES[data]}, {num_frames} frames",
        build=build,
        parts=(part,),
        modalities=("video",),
        num_frames=num_frames,
        image_size=224,
        dim=768,
        tasks=f"scores of the {num_classes} classes of {_TITLES[data]}, video features; no text",
    )


def _large_classifiers() -> Iterator[Release]:
    stem = "OpenGVLab/InternVideo2-Stage1-1B-224p"
    yield _classifier("1b", "k710", 8, f"{stem}-f8-k710", "1B_ft_k710_f8.pth")
    for data, num_frames, repository in (
        ("k400", 8, f"{stem}-f8-K400"),
        ("k400", 16, f"{stem}-f8-K400"),
        ("k600", 16, f"{stem}-f8-K600"),
        ("k700", 8, f"{stem}-K700"),
        ("k700", 16, f"{stem}-K700"),
    ):
        yield _classifier("1b", data, num_frames, repository, f"1B_ft_k710_ft_{data}_f{num_frames}.pth")
    # The list names this repository and no file in it.
    yield _classifier("1b", "mit", 8, f"{HUB}{stem}-f8-MiT", "the .pth file of the repository")
    for data in ("ssv1", "ssv2"):
        yield _classifier("1b", data, 8, f"{stem}-f8-SthSth", f"1B_ft_{data}_f8.pth")


def _small_classifiers() -> Iterator[Release]:
    absent = {("l14", "k710"), ("b14", "ssv2")}
    sizes: tuple[SmallSize, ...] = ("s14", "b14", "l14")
    chains = {"k710": "ft_k710", "ssv2": "ft_ssv2"} | {data: f"ft_k710_ft_{data}" for data in ("k400", "k600", "k700")}
    for size in sizes:
        for data, chain in chains.items():
            if (size, data) not in absent:
                folder = f"stage1/{size.upper()}/{size.upper()}_{chain}_f8"
                yield _classifier(size, data, 8, _DISTILLED_REPOSITORY, f"{folder}/pytorch_model.bin")


def _pretrained() -> Release:
    def build(frames: int, image_size: int) -> nn.Module:
        return published.stage1_student("1b", num_frames=frames, image_size=image_size)

    repository = "OpenGVLab/InternVideo2-Stage1-1B-224p-f8"
    return Release(
        name="internvideo2-1b-stage1",
        title="InternVideo2-1B after stage 1 (masked pre-training on K-Mash-1.1M), with its decoders",
        build=build,
        parts=(Part("model", stage1.PRETRAIN, "pretrain.pth", repository, NOT_STATED, num_frames=8),),
        modalities=("video",),
        num_frames=8,
        image_size=224,
        dim=768,
        tasks="video features; where stage 2 and fine-tuning start; no text, no class scores",
    )


def _distilled_file(size: SmallSize) -> str:
    return f"stage1/{size.upper()}/{size.upper()}_dist_1B_stage2/pytorch_model.bin"


def _distilled(size: SmallSize) -> Release:
    def build(frames: int, image_size: int) -> nn.Module:
        return published.distilled_student(size, num_frames=frames, image_size=image_size)

    part = Part("model", stage1.DISTILLED, _distilled_file(size), _DISTILLED_REPOSITORY, NOT_STATED, num_frames=8)
    return Release(
        name=f"internvideo2-{size}-distilled",
        title=f"InternVideo2-{_SIZE_TITLES[size]} distilled from the 1B of stage 2, with its decoders",
        build=build,
        parts=(part,),
        modalities=("video",),
        num_frames=8,
        image_size=224,
        dim=768,
        tasks="video features; where fine-tuning and CLIP post-training start; no text, no class scores",
    )


class _Stage2File(NamedTuple):
    repository: str
    file: str
    licence: str
    num_bytes: int | None = None


_STAGE2_REPOSITORY = "OpenGVLab/InternVideo2-Stage2_1B-224p-f4"
_STAGE2: Mapping[LargeSize, _Stage2File] = {
    "1b": _Stage2File(
        _STAGE2_REPOSITORY, "InternVideo2-stage2_1b-224p-f4.pt", "Apache-2.0, gated", num_bytes=2_820_610_931
    ),
    "6b": _Stage2File("OpenGVLab/InternVideo2-Stage2_6B-224p-f4", "internvideo2-s2_6b-224p-f4.pt", "MIT"),
}


def _stage2_visual() -> Release:
    def build(frames: int, image_size: int) -> nn.Module:
        return published.stage2_visual("1b", num_frames=frames, image_size=image_size)

    repository, file, licence, num_bytes = _STAGE2["1b"]
    return Release(
        name="internvideo2-1b-stage2",
        title="InternVideo2-1B after stage 2 (video and text, IV-25.5M)",
        build=build,
        parts=(Part("model", stage2.VISUAL, file, repository, licence, num_bytes, num_frames=4),),
        modalities=("video", "image", "text"),
        num_frames=4,
        image_size=224,
        dim=512,
        tokenizer="bert",
        tasks=f"{_RETRIEVAL}; re-ranking by matching; no audio",
    )


def _stage2_large(*, sound: bool) -> Release:
    def build(frames: int, image_size: int) -> nn.Module:
        return published.stage2_audio_visual("6b", num_frames=frames, image_size=image_size, audio=sound)

    repository, file, licence, _ = _STAGE2["6b"]
    if sound:
        file = file.replace(".pt", "_with_audio_encoder.pt")
    return Release(
        name="internvideo2-6b-stage2-audio" if sound else "internvideo2-6b-stage2",
        title=f"InternVideo2-6B after stage 2 (IV-400M), with{'' if sound else 'out'} audio encoder",
        build=build,
        parts=(Part("model", stage2.AUDIO_VISUAL, file, repository, licence, num_frames=4),),
        modalities=("video", "image", "audio", "text") if sound else ("video", "image", "text"),
        num_frames=4,
        image_size=224,
        dim=768,
        tokenizer="bert",
        num_mels=64 if sound else None,
        tasks=f"{_RETRIEVAL}; re-ranking by matching; {'sound as well' if sound else 'no audio'}",
    )


def _on_top(size: Size) -> str:
    return f"{_DELTA[size] / 1e6:.1f} M weights on top"


def _clip_large(size: LargeSize) -> Release:
    def build(frames: int, image_size: int) -> nn.Module:
        return published.clip_large(size, num_frames=frames, image_size=image_size)

    repository, file, licence, num_bytes = _STAGE2[size]
    large = _SIZE_TITLES[size]
    return Release(
        name=f"internvideo2-clip-{size}",
        title=f"InternVideo2-CLIP-{large}: video encoder of stage 2, LLaMA-7B text, {_on_top(size)}",
        build=build,
        parts=(
            Part("vision", clip.VISION_FROM_STAGE2, file, repository, licence, num_bytes, num_frames=4),
            Part("text", clip.TEXT_FROM_INTERNVL, _INTERNVL_FILE, _INTERNVL_REPOSITORY, NOT_STATED),
            Part(
                "delta",
                clip.DELTA_LARGE,
                f"{large}_clip.pth",
                f"OpenGVLab/InternVideo2-CLIP-{large}-224p-f8",
                NOT_STATED,
            ),
        ),
        modalities=("video", "image", "text"),
        num_frames=8,
        image_size=224,
        dim=768,
        tokenizer="llama",
        tasks=f"zero-shot recognition, {_RETRIEVAL}; English and Chinese; no audio",
    )


def _clip_small(size: SmallSize) -> Release:
    def build(frames: int, image_size: int) -> nn.Module:
        return published.clip_small(size, num_frames=frames, image_size=image_size)

    delta = f"clip/{size.upper()}/pytorch_model.bin"
    return Release(
        name=f"internvideo2-clip-{size}",
        title=f"InternVideo2-CLIP-{_SIZE_TITLES[size]}: distilled encoder, MobileCLIP-B text, {_on_top(size)}",
        build=build,
        parts=(
            Part(
                "vision",
                clip.VISION_FROM_DISTILLED,
                _distilled_file(size),
                _DISTILLED_REPOSITORY,
                NOT_STATED,
                num_frames=8,
            ),
            Part("text", clip.TEXT_FROM_MOBILECLIP, _MOBILECLIP_FILE, _MOBILECLIP_PAGE, NOT_STATED),
            Part("delta", clip.DELTA_SMALL, delta, _DISTILLED_REPOSITORY, NOT_STATED),
        ),
        modalities=("video", "image", "text"),
        num_frames=8,
        image_size=224,
        dim=512,
        tokenizer="clip",
        tasks=f"zero-shot recognition, {_RETRIEVAL}; no audio",
    )


_INTERNVL_REPOSITORY, _INTERNVL_FILE = "OpenGVLab/InternVL", "internvl_c_13b_224px.pth"
_MOBILECLIP_FILE = "mobileclip_blt.pt"
_MOBILECLIP_PAGE = "https://docs-assets.developer.apple.com/ml-research/datasets/mobileclip/mobileclip_blt.pt"


def _audio_encoder(name: str, title: str, part: Part, num_mels: int) -> Release:
    return Release(
        name=name,
        title=title,
        build=lambda _frames, _size: published.beats(),
        parts=(part,),
        modalities=("audio",),
        num_frames=1,
        image_size=1,
        dim=768,
        num_mels=num_mels,
        tasks="features of sound; no text, no video",
    )


def _text_encoder(
    name: str,
    title: str,
    build: Callable[[], nn.Module],
    part: Part,
    *,
    tokenizer: Literal["bert", "llama", "clip"],
    dim: int,
) -> Release:
    return Release(
        name=name,
        title=title,
        build=lambda _frames, _size: build(),
        parts=(part,),
        modalities=("text",),
        num_frames=1,
        image_size=1,
        dim=dim,
        tokenizer=tokenizer,
        tasks="text features, a part of other releases; no video",
    )


def _audio_encoders() -> Iterator[Release]:
    yield _audio_encoder(
        "internvideo2-6b-audio-encoder",
        "Audio encoder of InternVideo2-6B, stage 2",
        Part(
            "model",
            audio.BEATS,
            "audio_6b.pth",
            "OpenGVLab/InternVideo2-Stage2-6B-Audio",
            NOT_STATED,
            num_bytes=361_325_972,
        ),
        num_mels=64,
    )
    yield _audio_encoder(
        "beats-iter3-as2m",
        "BEATs iter3+ (AudioSet-2M), where that audio encoder started",
        Part("model", audio.BEATS, "BEATs_iter3_plus_AS2M.pt", _STAGE2_REPOSITORY, NOT_STATED),
        num_mels=128,
    )


def _teachers() -> Iterator[Release]:
    yield Release(
        name="internvl-c-6b-vision",
        title="Vision encoder of InternVL-C, the first teacher of stage 1",
        build=lambda _frames, image_size: published.internvl_c(image_size=image_size),
        parts=(Part("model", teachers.INTERNVL, _INTERNVL_FILE, _INTERNVL_REPOSITORY, NOT_STATED, num_frames=1),),
        modalities=("image",),
        num_frames=1,
        image_size=224,
        dim=768,
        tasks="teacher of stage 1, image features; a video counts as its middle frame; no text",
    )
    yield Release(
        name="videomae-v2-g",
        title="VideoMAEv2-g, pre-trained (1200 epochs), the second teacher of stage 1",
        build=lambda frames, image_size: published.videomae_v2_g(num_frames=frames, image_size=image_size),
        # Scripts of the reference call it vit_g_hybrid_1200e_pre.pth.
        parts=(
            Part(
                "model",
                teachers.VIDEOMAE,
                "vit_g_hybrid_pt_1200e.pth",
                "https://github.com/OpenGVLab/VideoMAEv2/blob/master/docs/MODEL_ZOO.md",
                NOT_STATED,
            ),
        ),
        modalities=("video",),
        num_frames=16,
        image_size=224,
        dim=1408,
        tasks="teacher of stage 1, features of patches; no pooled vector of its own, no text",
    )


def _text_encoders() -> Iterator[Release]:
    yield _text_encoder(
        "bert-large-uncased",
        "BERT-large, uncased, where the text encoder of stage 2 starts",
        lambda: published.bert_large(fusion_layer=24),
        Part("model", text.BERT, "model.safetensors", "google-bert/bert-large-uncased", NOT_STATED),
        tokenizer="bert",
        dim=1024,
    )
    yield _text_encoder(
        "mobileclip-b-text",
        "Text encoder of MobileCLIP-B (LT), the one of InternVideo2-CLIP-S, B and L",
        published.mobileclip_b,
        Part("model", text.MOBILECLIP, _MOBILECLIP_FILE, _MOBILECLIP_PAGE, NOT_STATED),
        tokenizer="clip",
        dim=512,
    )
    yield _text_encoder(
        "internvl-c-text",
        "Text encoder of InternVL-C, LLaMA-7B with adapters, the one of InternVideo2-CLIP-1B and 6B",
        published.llama_7b,
        Part("model", text.LLAMA, _INTERNVL_FILE, _INTERNVL_REPOSITORY, NOT_STATED),
        tokenizer="llama",
        dim=768,
    )


def _all() -> Iterator[Release]:
    small: tuple[SmallSize, ...] = ("s14", "b14", "l14")
    large: tuple[LargeSize, ...] = ("1b", "6b")
    yield _pretrained()
    yield from map(_distilled, small)
    yield from _large_classifiers()
    yield from _small_classifiers()
    yield _stage2_visual()
    yield _stage2_large(sound=False)
    yield _stage2_large(sound=True)
    yield from map(_clip_large, large)
    yield from map(_clip_small, small)
    yield from _audio_encoders()
    yield from _teachers()
    yield from _text_encoders()


RELEASES: Mapping[str, Release] = MappingProxyType({release.name: release for release in _all()})
"""All releases by name, in the order of the stages."""

NUM_PARAMETERS: Mapping[str, int] = MappingProxyType({
    "internvideo2-1b-stage1": 1_070_042_752,
    "internvideo2-s14-distilled": 29_169_792,
    "internvideo2-b14-distilled": 102_252_288,
    "internvideo2-l14-distilled": 327_183_872,
    "internvideo2-1b-k710-f8": 1_021_256_134,
    "internvideo2-1b-k400-f8": 1_021_017_744,
    "internvideo2-1b-k400-f16": 1_023_901_328,
    "internvideo2-1b-k600-f16": 1_024_055_128,
    "internvideo2-1b-k700-f8": 1_021_248_444,
    "internvideo2-1b-k700-f16": 1_024_132_028,
    "internvideo2-1b-mit-f8": 1_020_970_835,
    "internvideo2-1b-ssv1-f8": 1_020_843_950,
    "internvideo2-1b-ssv2-f8": 1_020_843_950,
    "internvideo2-s14-k710-f8": 23_591_366,
    "internvideo2-s14-ssv2-f8": 23_179_182,
    "internvideo2-s14-k400-f8": 23_352_976,
    "internvideo2-s14-k600-f8": 23_506_776,
    "internvideo2-s14-k700-f8": 23_583_676,
    "internvideo2-b14-k710-f8": 89_986_502,
    "internvideo2-b14-k400-f8": 89_748_112,
    "internvideo2-b14-k600-f8": 89_901_912,
    "internvideo2-b14-k700-f8": 89_978_812,
    "internvideo2-l14-ssv2-f8": 309_064_622,
    "internvideo2-l14-k400-f8": 309_238_416,
    "internvideo2-l14-k600-f8": 309_392_216,
    "internvideo2-l14-k700-f8": 309_469_116,
    "internvideo2-1b-stage2": 1_410_146_493,
    "internvideo2-6b-stage2": 6_361_223_101,
    "internvideo2-6b-stage2-audio": 6_453_900_079,
    "internvideo2-clip-1b": 7_713_126_145,
    "internvideo2-clip-6b": 12_634_152_705,
    "internvideo2-clip-s14": 86_867_201,
    "internvideo2-clip-b14": 153_262_337,
    "internvideo2-clip-l14": 372_752_641,
    "internvideo2-6b-audio-encoder": 90_311_792,
    "beats-iter3-as2m": 90_311_792,
    "internvl-c-6b-vision": 5_936_000_768,
    "videomae-v2-g": 1_011_610_752,
    "bert-large-uncased": 335_174_458,
    "mobileclip-b-text": 63_428_096,
    "internvl-c-text": 6_692_417_536,
})
"""Parameters of each network, shared ones once; stated here because counting them means building all networks."""
