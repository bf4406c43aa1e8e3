"""Content as its own name: a hash of bytes, computed where the bytes are.

splitmix64's finaliser ``mix`` makes word w of place i look random, and sums do not depend on the order of a device:

    lane_1 = mix(salt + sum_i mix(w_i ^ key_i)),  lane_2 = mix(salt + sum_i key'_i mix(w_i ^ key_i))  (mod 2^64)
"""

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch.nn import functional

from ivt2.ops.random import derive_seed, mix_bits


def digest(rows: Shaped[Tensor, "B *shape"]) -> Int64[Tensor, "B 2"]:
    """128 bits of the bytes of each row, the same on every device; two rows that differ share them by accident alone.

    No secret is in it: who wants to can make two rows of one digest.

    Args:
        rows: Of any format of one to eight bytes; it and the shape of a row count as well.
    """
    octets = rows.detach().flatten(1).contiguous().view(torch.uint8)
    words = functional.pad(octets, (0, -octets.shape[1] % 8)).view(torch.int64)
    salt = derive_seed(*rows.shape[1:], *str(rows.dtype).encode())
    place = torch.arange(words.shape[1], dtype=torch.int64, device=words.device)
    first, second = mix_bits(salt + 2 * place), mix_bits(salt + 2 * place + 1)
    scrambled = mix_bits(words ^ first)
    return mix_bits(salt + torch.stack([scrambled.sum(dim=1), (scrambled * second).sum(dim=1)], dim=1))
