"""Releases as small as they can be, with files as they are published."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from ivt2.checkpoint.keymaps.encoder import ALIGNING, POSITION_TABLES, WRAPPERS, encoder
from ivt2.checkpoint.keymaps.keymap import KeyMap
from ivt2.checkpoint.keymaps.rules import Axis, Section
from ivt2.checkpoint.release import Part, Release
from ivt2.models.internvideo2 import InternVideo2

ENCODER = KeyMap(
    name="tiny-encoder",
    version=3,
    sections=(encoder(),),
    resized=POSITION_TABLES,
    drops=(ALIGNING,),
    wrappers=WRAPPERS,
)
PAIR = KeyMap(
    name="tiny-pair",
    version=1,
    sections=(encoder("vision_encoder.", "vision_encoder."), Section("temperature", "temp")),
    resized=POSITION_TABLES,
    axes=(Axis(r"temperature$", 0, ours=True),),
)
DELTA = KeyMap(
    name="tiny-delta",
    version=2,
    provides=r"temperature$|vision_encoder\.clip_projector\.",
    sections=PAIR.sections,
    axes=PAIR.axes,
)


class Pair(nn.Module):
    """An encoder and a temperature."""

    def __init__(self, num_frames, image_size):
        super().__init__()
        self.vision_encoder = build(num_frames, image_size)
        self.temperature = nn.Parameter(torch.ones(1))


def build(num_frames, image_size, embed_dim=16):
    return InternVideo2(
        image_size=image_size,
        patch_size=14,
        num_frames=num_frames,
        embed_dim=embed_dim,
        depth=2,
        num_heads=2,
        mlp_ratio=2.0,
        pool_num_heads=2,
        pooled_dim=8,
        separate_image_position=True,
    )


def part(name, key_map, num_frames=4, num_bytes=None):
    return Part(
        name=name,
        key_map=key_map,
        file=f"{name}.pt",
        source="Example/tiny",
        licence="MIT",
        num_bytes=num_bytes,
        num_frames=num_frames,
    )


def release(*parts, name="tiny-encoder", build=build, num_frames=4, image_size=28):
    return Release(
        name=name,
        title="A tiny encoder",
        build=build,
        parts=parts or (part("model", ENCODER),),
        modalities=("video", "image"),
        num_frames=num_frames,
        image_size=image_size,
        dim=8,
    )


def pair(name="tiny-pair"):
    """A base of 4 frames, and on top of it another pooling and a temperature, for 8 frames."""
    base = part("vision", ENCODER.under("vision_encoder."))
    top = part("delta", DELTA, num_frames=None)
    return release(base, top, name=name, build=Pair, num_frames=8)


def weights(network, dtype=torch.bfloat16, seed=0):
    """The state of a network with random values."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator).to(dtype) for name, value in network.state_dict().items()
    }


def published(path, tiny=None, *, num_frames=4, wrapper=None, dtype=torch.bfloat16, seed=0, **changes):
    """Write the file of the first part of a release; returns what it holds.

    Args:
        changes: tensors that replace others, or None for keys that are left out.
    """
    tiny = tiny or release()
    state = weights(tiny.build(num_frames, tiny.image_size), dtype, seed)
    held = dict(tiny.parts[0].key_map.write(state))
    held["clip_decoder.0.norm.weight"] = torch.zeros(3, dtype=dtype)
    held = {name: value for name, value in (held | changes).items() if value is not None}
    torch.save(held if wrapper is None else {wrapper: held, "epoch": 3}, path)
    return held


def tree(folder):
    """Every file below a folder, with its digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
