"""What the sum over pairs holds in memory; its values are tested with the losses that are made of it."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ivt2.errors import InputError
from ivt2.losses.contrastive import contrastive_loss
from ivt2.losses.contrastive_local import local_contrastive_loss
from ivt2.losses.sigmoid import sigmoid_loss
from ivt2.ops.pairwise import ids_or_own, pairwise_sum, unit_rows
from ivt2.ops.similarity import cosine_similarity

NUM, WIDTH, CHUNK = 192, 2, 8


class Storages(TorchDispatchMode):
    """Records the largest storage that operators made, and the greatest sum of those alive at once, in bytes."""

    def __init__(self):
        super().__init__()
        self.largest = self.peak = 0
        self.alive = {}
        self.operators = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.add(func.overloadpacket.__name__)
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata, None)
                self.largest = max(self.largest, storage.nbytes())
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


def held(form):
    visual, text = (torch.randn(NUM, WIDTH, requires_grad=True) for _ in range(2))
    temperature = torch.tensor([0.1], requires_grad=True)
    with Storages() as storages:
        form(visual, text, temperature, torch.arange(NUM) // 2).backward()
    return storages


@pytest.mark.parametrize(
    "form",
    [
        lambda *given: local_contrastive_loss(*given, chunk=CHUNK),
        lambda visual, text, temperature, ids: sigmoid_loss(visual, text, temperature, -1.0, ids, chunk=CHUNK),
    ],
)
def test_nothing_larger_than_a_chunk_is_made(form):
    storages = held(form)
    assert CHUNK * NUM * 4 <= storages.largest <= max(CHUNK * NUM, NUM * WIDTH) * 4
    assert storages.peak < 6 * CHUNK * NUM * 4 + 20 * NUM * WIDTH * 4 < NUM * NUM * 4


def test_the_full_matrix_breaks_the_bound():
    storages = held(contrastive_loss)
    assert storages.largest >= NUM * NUM * 4
    assert storages.peak >= 2 * NUM * NUM * 4


@pytest.mark.parametrize("grad", [False, True])
def test_gradients_are_computed_where_they_are_wanted(grad):
    keys, ids = torch.randn(4, 3, requires_grad=True), torch.arange(4)
    with torch.set_grad_enabled(grad), Storages() as storages:
        total = pairwise_sum(keys, keys, ids, ids, lambda logits, positive: logits[positive].sum(), chunk=1)
    torch.testing.assert_close(total.detach(), keys.detach().square().sum())
    assert total.requires_grad == grad
    assert ("addmm_" in storages.operators) == grad


@pytest.mark.parametrize("chunk", [0, -3])
def test_a_chunk_without_rows_is_refused(chunk):
    x, ids = torch.ones(2, 2), torch.arange(2)
    with pytest.raises(InputError, match=f"chunk={chunk}: must be at least 1, or null"):
        pairwise_sum(x, x, ids, ids, lambda logits, _: logits.sum(), chunk=chunk)


def test_products_of_unit_rows_are_cosines():
    a, b = torch.randn(3, 4, 5), torch.randn(6, 5).bfloat16()
    torch.testing.assert_close(unit_rows(a) @ unit_rows(b).T, cosine_similarity(a, b))


def test_rows_without_ids_all_differ():
    given = torch.tensor([7, 7])
    assert ids_or_own(given, torch.ones(2, 3)) is given
    assert len(ids_or_own(None, torch.ones(5, 3)).unique()) == 5
