"""Digests of bytes: against a slow loop, on every layout and format, and what must change them."""

import itertools

import pytest
import torch

from ivt2.ops.hashing import digest
from ivt2.ops.random import derive_seed
from tests.ops.test_random import MASK, splitmix


def slow_digest(row):
    octets = row.contiguous().reshape(-1).view(torch.uint8).tolist()
    octets += [0] * (-len(octets) % 8)
    salt = derive_seed(*row.shape, *str(row.dtype).encode())
    lanes = [0, 0]
    for place, begin in enumerate(range(0, len(octets), 8)):
        word = int.from_bytes(bytes(octets[begin : begin + 8]), "little")
        scrambled = splitmix(word ^ splitmix((salt + 2 * place) & MASK))
        lanes[0] += scrambled
        lanes[1] += scrambled * splitmix((salt + 2 * place + 1) & MASK)
    return [splitmix((salt + lane) & MASK) for lane in lanes]


def rows(dtype, *shape):
    values = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)) * 3
    return values.to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float8_e4m3fn, torch.float32, torch.int64])
@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (2, 16), (1, 1)])
def test_it_is_the_sum_of_a_slow_loop(dtype, shape):
    data = rows(dtype, *shape)
    expected = [slow_digest(row) for row in data]
    assert [[lane & MASK for lane in row] for row in digest(data).tolist()] == expected


def test_a_row_keeps_its_digest_whatever_stands_beside_it_and_however_it_lies_in_memory():
    data = rows(torch.uint8, 5, 4, 3, 7)
    whole = digest(data)
    assert torch.equal(digest(data[1:]), whole[1:])  # begins at an odd byte
    assert torch.equal(digest(data[[4, 0]]), whole[[4, 0]])
    wide = torch.zeros(5, 8, 3, 7, dtype=torch.uint8)
    wide[:, ::2] = data
    assert torch.equal(digest(wide[:, ::2]), whole)
    assert torch.equal(digest(data.mT.contiguous().mT), whole)
    assert digest(data[:0]).shape == (0, 2)


def test_whatever_differs_in_a_bit_a_place_a_shape_or_a_format_has_another_digest():
    base = rows(torch.uint8, 1, 40)
    flipped = base.repeat(320, 1)
    for place, bit in itertools.product(range(40), range(8)):
        flipped[8 * place + bit, place] ^= 1 << bit
    swapped = base.view(5, 8).roll(1, 0).reshape(1, 40)
    others = [base, flipped, swapped, base.view(1, 5, 8), base.view(torch.int8), base.view(torch.float16)]
    others += [torch.zeros(1, length, dtype=torch.uint8) for length in range(1, 20)]
    digests = torch.cat([digest(each) for each in others])
    for lane in digests.unbind(1):
        assert len(set(lane.tolist())) == len(digests) > 340


def test_bits_of_digests_are_even():
    """Counters are the worst that may come: of 4096 digests each bit is set in half, within five sigma."""
    lanes = digest(torch.arange(4096).unsqueeze(1))
    share = torch.stack([(lanes >> bit & 1).double().mean(dim=0) for bit in range(64)])
    assert (share - 0.5).abs().max() < 5 * 0.5 / 4096**0.5


@pytest.mark.gpu
def test_the_device_does_not_matter():
    data = torch.randint(0, 256, (3, 4, 3, 15, 15), dtype=torch.uint8)
    assert torch.equal(digest(data.cuda()).cpu(), digest(data))
