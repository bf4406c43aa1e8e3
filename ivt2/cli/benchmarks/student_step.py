"""CPU time of a training step of stage 1's student against plain modules of the reference's kind."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from ivt2.cli.benchmarks.timing import Comparison, Figure, Quartiles, interleaved, timed
from ivt2.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from ivt2.cli.benchmarks.plain_student import PlainSizes
    from ivt2.models.internvideo2 import InternVideo2
    from ivt2.models.stage1 import Stage1Student

Size = Literal["tiny", "s14", "b14"]
Dtype = Literal["float32", "bfloat16"]
Mode = Literal["eager", "compiled"]

_MASK_RATIO = 0.8
_CLIP_LENGTH = 3.0
_WARM_UPS = 2
_ASKED: dict[Mode, tuple[float, float]] = {"eager": (0.85, 0.75), "compiled": (0.75, 0.60)}
OPTIMIZER: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.05}


class _Batch(NamedTuple):
    """Clips, masks, and what two teachers would say about the visible part."""

    video: "Tensor"
    masked: "Tensor"
    num_visible: int
    targets: "tuple[Tensor, Tensor, Tensor]"


class StudentStepSuite:
    """Forward pass, three cosine losses, backward pass, clipping of the gradient to length 3, AdamW.

    Ours is :class:`Stage1Student` with positions from the number of visible patches, ``feature_alignment_loss``,
    parameter groups and fused AdamW as ``train.py`` makes them. The other side is :class:`PlainStudent`, which holds
    the same weights and is always run eagerly, with the loss written out and AdamW as the reference calls it: two
    groups and torch's defaults, which on a CPU is a loop over the parameters. Targets are random unit vectors: teachers
    are not part of this. Each size has N visible tokens and B clips: ``tiny`` 53 and 8, ``s14`` and ``b14``, with the
    teachers' widths and layers of the recipes, 417 and 4 or 2.

    Args:
        sizes: of ``tiny``, ``s14`` and ``b14``.
        dtypes: ``float32``, or ``bfloat16`` under autocast.
        modes: of ours, ``eager`` or ``compiled``; a compiled one that compiles again once it is warm is an error.
        drop_path: stochastic depth of the last block, on both sides.
        pairs: turns of each side, of one step.

    Raises:
        InputError: an unknown size, dtype or mode.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[str],
        dtypes: Sequence[str],
        modes: Sequence[str],
        drop_path: float,
        pairs: int,
    ) -> None:
        for name, given, known in (("sizes", sizes, Size), ("dtypes", dtypes, Dtype), ("modes", modes, Mode)):
            if not given or set(given) - set(get_args(known)):
                raise InputError(f"{name}={list(given)}: name some of {', '.join(get_args(known))}")
        self.sizes: list[Size] = [size for size in get_args(Size) if size in sizes]
        self.dtypes: list[Dtype] = [dtype for dtype in get_args(Dtype) if dtype in dtypes]
        self.modes: list[Mode] = [mode for mode in get_args(Mode) if mode in modes]
        self.drop_path = drop_path
        self.pairs = pairs

    @property
    def turns(self) -> int:
        """Turns of all measurements."""
        return 2 * self.pairs * len(self.sizes) * len(self.dtypes) * len(self.modes)

    def run(self, folder: Path, tick: Callable[[], object]) -> Iterator[Figure]:  # noqa: ARG002
        """Yield the figures one by one."""
        for size in self.sizes:
            for mode in self.modes:
                for dtype in self.dtypes:
                    yield self._figure(size, dtype, mode, tick)

    def _figure(self, size: Size, dtype: Dtype, mode: Mode, tick: Callable[[], object]) -> Figure:
        import torch

        from ivt2.cli.benchmarks.plain_student import PlainStudent

        sizes, batch_size = sizes_of(size, self.drop_path)
        batch = _batch(sizes, batch_size)
        student, plain = build(sizes, compiled=mode == "compiled"), PlainStudent(sizes)
        plain.load_state_dict(student.state_dict())
        autocast = partial(_autocast, dtype)
        ours = partial(_step, student, our_optimizer(student), autocast, partial(our_loss, student, batch))
        theirs = partial(_step, plain, plain_optimizer(plain), autocast, partial(plain_loss, plain, batch))
        for _ in range(_WARM_UPS):
            ours()
            theirs()
        with torch.compiler.set_stance("fail_on_recompile") if mode == "compiled" else nullcontext():
            costs = interleaved(partial(timed, theirs), partial(timed, ours), pairs=self.pairs, tick=tick)
        return step_figure(f"{size}, {dtype}, {mode}", costs, *_ASKED[mode])


def step_figure(what: str, costs: Comparison, floor: float, aim: float) -> Figure:
    """CPU time of our step, side B, over that of the plain one, side A."""
    details = {
        f"{side} CPU ms": 1e3 * Quartiles.of([cost.cpu_s for cost in turns]).median
        for side, turns in (("ivt2", costs.b), ("plain", costs.a))
    }
    return Figure(
        what=f"{what}: step over a plain one",
        value=costs.speed("cpu"),
        unit="x",
        floor=floor,
        aim=aim,
        details=details | {"ratio by wall": costs.speed("wall").median},
    )


def sizes_of(size: Size, drop_path: float = 0.0) -> "tuple[PlainSizes, int]":
    """Widths and layers of both students, and clips of a batch."""
    from ivt2.cli.benchmarks.plain_student import PlainSizes

    if size == "tiny":
        tiny = PlainSizes(
            image_size=112,
            patch_size=14,
            num_frames=4,
            embed_dim=192,
            depth=6,
            num_heads=4,
            pool_num_heads=4,
            pooled_dim=192,
            clip_dim=256,
            clip_taps=(4, 5),
            final_dim=192,
            mae_dim=192,
            mae_taps=(4, 5),
            drop_path=drop_path,
        )
        return tiny, 8
    dim, heads, batch_size = (384, 6, 4) if size == "s14" else (768, 12, 2)
    sizes = PlainSizes(
        image_size=224,
        patch_size=14,
        num_frames=8,
        embed_dim=dim,
        depth=12,
        num_heads=heads,
        pool_num_heads=16,
        pooled_dim=768,
        clip_dim=3200,
        clip_taps=tuple(range(6, 12)),
        final_dim=768,
        mae_dim=1408,
        mae_taps=tuple(range(8, 12)),
        drop_path=drop_path,
    )
    return sizes, batch_size


def build_encoder(sizes: "PlainSizes") -> "InternVideo2":
    """Our encoder of these widths and layers, of random weights that are the same in each call."""
    import torch

    from ivt2.models.internvideo2 import InternVideo2

    torch.manual_seed(0)
    return InternVideo2(
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        num_frames=sizes.num_frames,
        embed_dim=sizes.embed_dim,
        depth=sizes.depth,
        num_heads=sizes.num_heads,
        mlp_ratio=4.0,
        layer_scale_init=0.1,
        drop_path=sizes.drop_path,
        pool_num_heads=sizes.pool_num_heads,
        pooled_dim=sizes.pooled_dim,
    )


def build(sizes: "PlainSizes", *, compiled: bool) -> "Stage1Student":
    """Our student."""
    from ivt2.models.stage1 import Branch, build_student

    clip, mae = len(sizes.clip_taps), len(sizes.mae_taps)
    return build_student(
        build_encoder(sizes),
        clip=Branch(sizes.clip_dim, clip, taps=sizes.clip_taps, final_dim=sizes.final_dim),
        mae=Branch(sizes.mae_dim, mae, taps=sizes.mae_taps, decoder="mlp", cls_token=False),
        compile=compiled,
    )


def _batch(sizes: "PlainSizes", batch_size: int) -> _Batch:
    """Normalised clips, as both sides take them, and unit vectors."""
    import torch
    from torch.nn.functional import normalize

    from ivt2.ops.masking import num_visible, tube_masking

    generator = torch.Generator().manual_seed(1)
    draw = partial(torch.randn, generator=generator)
    video = draw(batch_size, sizes.num_frames, 3, sizes.image_size, sizes.image_size)
    patches = sizes.num_patches // sizes.num_frames
    masked = tube_masking(torch.rand(batch_size, patches, generator=generator), _MASK_RATIO, sizes.num_frames)
    visible = num_visible(patches, _MASK_RATIO) * sizes.num_frames
    targets = (
        draw(len(sizes.clip_taps), batch_size, 1 + visible, sizes.clip_dim),
        draw(batch_size, sizes.final_dim),
        draw(len(sizes.mae_taps), batch_size, visible, sizes.mae_dim),
    )
    middle, final, mae = (normalize(target, dim=-1) for target in targets)
    return _Batch(video, masked, visible, (middle, final, mae))


def our_loss(student: "Stage1Student", batch: _Batch) -> "Tensor":
    """The loss as the module of stage 1 computes it."""
    import torch

    from ivt2.losses.feature_alignment import feature_alignment_loss
    from ivt2.ops.masking import visible_indices

    visible = visible_indices(batch.masked, batch.num_visible)
    layers = student.decode(batch.video, visible=visible)
    assert layers.clip_middle is not None
    assert layers.clip_final is not None
    assert layers.mae is not None
    middle, final, mae = batch.targets
    terms = (
        torch.stack([feature_alignment_loss(*pair) for pair in zip(layers.clip_middle, middle, strict=True)]).mean(),
        feature_alignment_loss(layers.clip_final, final),
        torch.stack([feature_alignment_loss(*pair) for pair in zip(layers.mae, mae, strict=True)]).mean(),
    )
    return terms[0] + terms[1] + terms[2]


def plain_loss(plain: "nn.Module", batch: _Batch) -> "Tensor":
    """The same, written out."""
    said = plain(batch.video, batch.masked)
    middle, final, mae = (
        (2 - 2 * (one * target).sum(dim=-1)).mean() for one, target in zip(said, batch.targets, strict=True)
    )
    loss: Tensor = middle + final + mae
    return loss


def our_optimizer(student: "Stage1Student") -> "Optimizer":
    """AdamW as the configuration makes it, with parameter groups as the module makes them."""
    from ivt2.optim.adamw import adamw
    from ivt2.optim.parameter_groups import parameter_groups

    groups = parameter_groups(student.named_parameters(), no_weight_decay=student.no_weight_decay())
    return adamw(groups, **OPTIMIZER)


def plain_optimizer(plain: "nn.Module") -> "Optimizer":
    """AdamW in two groups with torch's own defaults."""
    from torch.optim import AdamW

    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in plain.named_parameters():
        kept = parameter.ndim < 2 or name.endswith((".bias", "pos_embed", "cls_token"))
        (others if kept else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return AdamW(groups, **OPTIMIZER)


def _step(
    network: "nn.Module",
    optimizer: "Optimizer",
    autocast: "Callable[[], AbstractContextManager[object]]",
    loss: "Callable[[], Tensor]",
) -> None:
    from torch.nn.utils import clip_grad_norm_

    with autocast():
        value = loss()
    value.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    clip_grad_norm_(network.parameters(), _CLIP_LENGTH)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _autocast(dtype: Dtype) -> "AbstractContextManager[object]":
    import torch

    return nullcontext() if dtype == "float32" else torch.autocast("cpu", torch.bfloat16)
