"""Position tables and their resizing, and the inflation of patch kernels."""

import re
from collections.abc import Callable

from torch import Tensor

from ivt2.nn.patch_embed import inflate_patch_kernel
from ivt2.ops.position import resize_position_table, sincos_1d, sincos_2d, sincos_3d, sinusoid_interleaved
from tests.golden.case import Case

# The reference's separable spatial resize fails for T > 1 (its error text is recorded); here space is resized alone.
KNOWN_ERRORS = {"sep_spatial"}


def check(case: Case) -> None:
    for output in case.outputs:
        case.close(output, _result(case, output))
    assert {name.split()[0] for name in case.json.get("errors", {})} <= KNOWN_ERRORS


def _result(case: Case, output: str) -> Tensor:
    for pattern, compute in RESULTS.items():
        if found := re.fullmatch(pattern, output):
            return compute(case, *found.groups())
    raise AssertionError(f"no computation for {output}")


def _joint(case: Case, key: str, *sizes: str) -> Tensor:
    frames, grid, new_frames, new_grid = (int(size) for size in sizes)
    table = case.inputs[f"pe_T{frames}_{grid}"]
    if key == "clip_joint":
        # This run's `clip_pos_embed` is not recorded; its CLS row shows that it is this affine map of `pos_embed`.
        table = 0.5 * table + 1
    return resize_position_table(table, source_frames=frames, num_frames=new_frames, grid_size=new_grid)


def _temporal(case: Case, frames: str, new_frames: str) -> Tensor:
    table = case.inputs[f"sep_t_{frames}"]
    return resize_position_table(
        table, source_frames=int(frames), num_frames=int(new_frames), grid_size=1, num_prefix=0
    )


def _spatial(case: Case, grid: str, new_grid: str) -> Tensor:
    table = case.inputs[f"sep_sp_{grid}"]
    return resize_position_table(table, source_frames=1, num_frames=1, grid_size=int(new_grid), num_prefix=0)


def _internvl(case: Case) -> Tensor:
    return resize_position_table(case.inputs["ivl_pe"], source_frames=1, num_frames=1, grid_size=case.config["ivl"][1])


def _inflate(case: Case, tubelet_size: str, center: str) -> Tensor:
    return inflate_patch_kernel(case.inputs["ivl_patch2d"], int(tubelet_size), center=center == "True")


def _videomae(_: Case, rows: str, dim: str, frames: str, source_rows: str) -> Tensor:
    """The reference's table is for 8 frames; it assumes 14 x 14 patches when it resizes space (quirk 5)."""
    table = sinusoid_interleaved(int(dim), int(source_rows)).unsqueeze(0)
    num_frames = int(frames)
    grid_size = round((int(rows) // num_frames) ** 0.5)
    return resize_position_table(table, source_frames=8, num_frames=num_frames, grid_size=grid_size, num_prefix=0)


RESULTS: dict[str, Callable[..., Tensor]] = {
    r"(finetune|joint|clip_joint)_T(\d+)_(\d+)x\d+_to_T(\d+)_(\d+)x\d+": _joint,
    r"sep_temporal_T(\d+)_to_T(\d+)": _temporal,
    r"sep_spatial_(\d+)_to_(\d+)_T1": _spatial,
    r"ivl_pos_embed": _internvl,
    r"ivl_patch3d": lambda case: inflate_patch_kernel(case.inputs["ivl_patch2d"], 1, center=True),
    r"inflate_t(\d+)_center(True|False)": _inflate,
    r"sincos1d_(\d+)": lambda case, frames: sincos_1d(case.config["C3"], int(frames)),
    r"sincos2d_(\d+)": lambda case, grid: sincos_2d(case.config["C3"], int(grid)),
    r"sincos3d_T(\d+)_(\d+)": lambda case, frames, grid: sincos_3d(case.config["C3"], int(frames), int(grid)),
    r"vmae_table_n(\d+)_d(\d+)_f(\d+)_pre(\d+)": _videomae,
}
