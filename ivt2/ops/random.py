"""Stateless random numbers: a value depends on the sample's key, the stream and the position, and on nothing else.

Generators carry state, so what they draw depends on ranks, workers and everything drawn before. Here a draw is a hash:
splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
"""

import math
from enum import IntEnum, unique

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

_MASK_64 = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@unique
class Stream(IntEnum):
    """Purposes that the seed of a sample serves: a new one gets a number of its own, and none is ever given again."""

    PATCHES = 1
    """Which patches an encoder does not see while it learns from captions."""
    NEGATIVES = 2
    """Which pairs that do not belong together are judged."""
    MASKED_LM = 3
    """Which words are to be guessed."""
    TEACHER_PATCHES = 4
    """Which patches a student does not see while it learns from teachers."""
    AUTOENCODER_PATCHES = 5
    """Which patches an autoencoder has to draw."""
    ERASING = 0x65726173
    """Which rectangle is erased, and the noise in it."""
    MIXUP = 0x6D697875
    """How two samples are mixed."""


def uniform(seed: Int64[Tensor, "B"], num: int, stream: int) -> Float32[Tensor, "B num"]:
    """Uniform draws in [0, 1) for each sample, the same on every device and rank.

    Args:
        seed: Key of each sample, as in ``batch["seed"]``.
        num: Draws for each sample; the first draws do not change when more are asked for.
        stream: Purpose, a :class:`Stream`: different ones of one key are independent.

    Returns:
        Multiples of 2**-24 in [0, 1).
    """
    key = mix_bits(seed ^ _signed(_mix(stream + 1)))
    counter = torch.arange(1, num + 1, dtype=torch.int64, device=seed.device)
    bits = mix_bits(key.unsqueeze(1) + counter * _signed(_GOLDEN_GAMMA))
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


def normal(seed: Int64[Tensor, "B"], num: int, stream: int) -> Float32[Tensor, "B num"]:
    """Draws from N(0, 1) for each sample, keyed as those of ``uniform``; none is beyond 5.8.

    Args:
        seed: Key of each sample, as in ``batch["seed"]``.
        num: Draws for each sample; the first draws do not change when more are asked for.
        stream: Purpose; one that ``uniform`` is not called with.

    Source: the transform of Box and Muller.
    """
    pairs = uniform(seed, num + num % 2, stream).view(len(seed), (num + 1) // 2, 2)
    radius = (-2 * torch.log1p(-pairs[..., 0])).sqrt()
    angle = 2 * math.pi * pairs[..., 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2).flatten(1)[:, :num]


def derive_seed(*parts: int) -> int:
    """Mix numbers, such as (seed, epoch, sample id), into one key.

    Args:
        *parts: Any integers; order and count matter.

    Returns:
        A key of 63 bits, so never negative as int64.
    """
    state = 0
    for part in parts:
        state = _mix((state + _GOLDEN_GAMMA & _MASK_64) ^ _mix(part & _MASK_64))
    return state >> 1


def mix_bits(value: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """The finaliser of splitmix64, a bijection of 64 bits, on int64, whose products wrap around as unsigned ones do.

    Args:
        value: Any bits.
    """
    value = (value ^ _shift_right(value, 30)) * _signed(_MULTIPLIERS[0])
    value = (value ^ _shift_right(value, 27)) * _signed(_MULTIPLIERS[1])
    return value ^ _shift_right(value, 31)


def _mix(value: int) -> int:
    """The finaliser of splitmix64: a bijection of 64 bits."""
    value = (value ^ value >> 30) * _MULTIPLIERS[0] & _MASK_64
    value = (value ^ value >> 27) * _MULTIPLIERS[1] & _MASK_64
    return value ^ value >> 31


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift; that of int64 tensors repeats the sign."""
    mask: int = 2 ** (64 - bits) - 1
    return value >> bits & mask


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    return value - 2**64 if value >= 2**63 else value
