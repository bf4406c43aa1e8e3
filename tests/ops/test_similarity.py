import math

import pytest
import torch

from ivt2.ops.similarity import chunked_similarity, cosine_similarity, dual_softmax


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_cosines_of_pairs():
    a, b = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    expected = [[cosine(x, y) for y in b.tolist()] for x in a.tolist()]
    torch.testing.assert_close(cosine_similarity(a, b), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("parts", ["mean", "max"])
@pytest.mark.parametrize(("frames", "prompts"), [(3, None), (None, 2), (3, 2)])
def test_parts_are_compared_one_by_one(parts, frames, prompts):
    a = torch.randn(2, *([frames] if frames else []), 4)
    b = torch.randn(5, *([prompts] if prompts else []), 4)
    pairs = [[[cosine(x, y) for x in u.view(-1, 4).tolist() for y in v.view(-1, 4).tolist()] for v in b] for u in a]
    expected = torch.tensor(pairs).mean(2) if parts == "mean" else torch.tensor(pairs).amax(2)
    torch.testing.assert_close(cosine_similarity(a, b, parts=parts), expected)


def test_half_precision_and_autocast_do_not_reach_the_cosines():
    a, b = torch.randn(8, 64).bfloat16(), torch.randn(8, 64).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarity = cosine_similarity(a, b)
    assert similarity.dtype == torch.float32
    torch.testing.assert_close(similarity, cosine_similarity(a.double(), b.double()).float())


def test_a_feature_of_zeros_resembles_nothing():
    assert cosine_similarity(torch.zeros(1, 4), torch.randn(2, 4)).tolist() == [[0, 0]]


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_make_no_difference(chunk):
    a, b = torch.randn(7, 4), torch.randn(5, 4)
    torch.testing.assert_close(chunked_similarity(a, b, chunk), cosine_similarity(a, b))


@pytest.mark.parametrize("dim", [0, 1])
def test_dual_softmax_by_loop(dim):
    similarity = torch.randn(3, 4)
    expected = torch.empty(3, 4)
    for row in range(3):
        for column in range(4):
            rivals = similarity[:, column] if dim == 0 else similarity[row]
            value = similarity[row, column]
            expected[row, column] = value * value.exp() / rivals.exp().sum()
    torch.testing.assert_close(dual_softmax(similarity, dim), expected)


def test_dual_softmax_demotes_what_every_query_is_close_to():
    similarity = torch.tensor([[0.9, 0.5, 0.0], [0.9, 0.0, 0.0], [0.95, 0.0, 0.2]])
    assert similarity[0].argmax() == 0
    assert dual_softmax(10 * similarity)[0].argmax() == 1
