"""Chunks against the whole: values, gradients, chance, and what is held for the backward pass."""

import weakref

import numpy
import pytest
import torch
from torch import nn
from torch.nn.functional import dropout

from ivt2.ops.chunks import by_chunks, num_chunks


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)).double()


def results(function, network, x, chunks):
    """Of a loss in which all rows meet, with gradients of the weights."""
    network.zero_grad()
    outputs = by_chunks(function, (x, None), chunks)
    sum((each @ each.T).logsumexp(1).sum() for each in outputs).backward()
    return [each.detach() for each in outputs], [each.grad.clone() for each in network.parameters()]


@pytest.mark.parametrize("num_rows", [1, 4, 7])
@pytest.mark.parametrize("chunks", [2, 3, 7])
def test_chunks_are_the_whole(network, num_rows, chunks):
    def function(x, nothing):
        assert nothing is None
        return network(x), network(x * 2)

    x = torch.randn(num_rows, 3, dtype=torch.double)
    whole, parts = (results(function, network, x, number) for number in (1, chunks))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_rows_are_cut_evenly(network):
    sizes = []
    by_chunks(lambda x: (sizes.append(len(x)), (x,))[1], (torch.zeros(7, 1),), 3)
    assert sizes == [3, 2, 2]


def test_empty_chunks_see_a_row_that_counts_for_nothing():
    """From which shapes can be told; and the backward pass goes through them too, as sharded ranks need."""
    weight, calls = torch.ones(1, requires_grad=True), []

    def function(x):
        x = x * weight
        x.register_hook(lambda grad: calls.append(grad.tolist()))
        return (x,)

    (out,) = by_chunks(function, (torch.tensor([[5.0]]),), 3)
    assert out.tolist() == [[5.0]]
    out.sum().backward()
    assert weight.grad.tolist() == [5.0]
    assert sorted(calls) == [[[0.0]], [[0.0]], [[1.0]]]


def test_what_is_drawn_at_random_is_drawn_once(network):
    """With other noise in the second pass the gradient would not be that of the value."""

    def function(x):
        return (network(dropout(x, 0.5)),)

    x = torch.randn(6, 3, dtype=torch.double)
    state = torch.get_rng_state()
    (out,) = by_chunks(function, (x,), 3)
    out.sum().backward()
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    expected = torch.cat([function(part)[0] for part in x.split(2)])
    assert torch.equal(after, torch.get_rng_state())  # the second pass leaves the generator alone
    assert torch.equal(out, expected)
    found = [each.grad.clone() for each in network.parameters()]
    network.zero_grad()
    expected.sum().backward()
    torch.testing.assert_close(found, [each.grad for each in network.parameters()], rtol=1e-12, atol=1e-12)


class Counted(torch.autograd.Function):
    """Passes its rows on and keeps as many numbers for the backward pass; `now` and `most` count those in memory."""

    now = most = 0

    @classmethod
    def freed(cls, size):
        cls.now -= size

    @staticmethod
    def forward(ctx, x):
        kept = numpy.zeros(len(x))
        weakref.finalize(kept, Counted.freed, len(x))  # the tensor's memory is the array's
        Counted.now += len(x)
        Counted.most = max(Counted.most, Counted.now)
        ctx.save_for_backward(torch.from_numpy(kept))
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        assert len(ctx.saved_tensors[0]) == len(grad)
        return grad


@pytest.mark.parametrize(("chunks", "most"), [(1, 32), (2, 16), (8, 4)])
def test_only_one_chunk_is_held(network, chunks, most):
    Counted.now = Counted.most = 0
    x = torch.randn(32, 3, dtype=torch.double)
    (out,) = by_chunks(lambda x: (Counted.apply(network(x)),), (x,), chunks)
    assert Counted.now == (32 if chunks == 1 else 0)
    out.logsumexp(0).sum().backward()
    assert Counted.most == most


@pytest.mark.parametrize(("rows", "chunk", "expected"), [(8, None, 1), (8, 8, 1), (8, 3, 3), (9, 3, 3), (0, 3, 1)])
def test_number_of_chunks(rows, chunk, expected):
    assert num_chunks(rows, chunk) == expected
