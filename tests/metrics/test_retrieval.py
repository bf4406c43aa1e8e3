import statistics
from pathlib import Path

import pytest
import torch

from ivt2.errors import InputError
from ivt2.metrics.retrieval import (
    REFERENCE_FILL,
    RetrievalMetric,
    RetrievalResult,
    average_prompts,
    candidates,
    dual_softmax_metrics,
    ranks,
    rerank,
    retrieval_metrics,
    retrieval_targets,
)
from tests.metrics.retrieval_ranks import evaluation_set, found_with, slow_scores, summary
from tests.ops.launch import run_ranks


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def slow_rank(scores, targets):
    """The best position that any true candidate can be sure of, sorting again for each."""
    positions = []
    for true in range(len(scores)):
        if targets[true]:
            ahead = [other for other in range(len(scores)) if not targets[other] and scores[other] >= scores[true]]
            positions.append(1 + len(ahead))
    return min(positions)


def slow_metrics(scores, clip_of_caption, scores_t2v=None):
    num_clips, num_captions = scores.shape
    scores_t2v = scores.T if scores_t2v is None else scores_t2v
    found = {
        "v2t": [slow_rank(scores[v].tolist(), (clip_of_caption == v).tolist()) for v in range(num_clips)],
        "t2v": [
            slow_rank(scores_t2v[m].tolist(), [v == int(clip_of_caption[m]) for v in range(num_clips)])
            for m in range(num_captions)
        ],
    }
    metrics = {}
    for name, values in found.items():
        for k in (1, 5, 10):
            metrics[f"{name}_r{k}"] = 100 * sum(rank <= k for rank in values) / len(values)
        metrics[f"{name}_r_mean"] = statistics.mean(metrics[f"{name}_r{k}"] for k in (1, 5, 10))
        metrics[f"{name}_median_rank"] = statistics.median(values)
    return metrics | {"r_mean": (metrics["v2t_r_mean"] + metrics["t2v_r_mean"]) / 2}


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_ranks_against_a_loop_with_ties(chunk):
    scores = torch.randint(0, 5, (30, 12)).float()
    targets = torch.rand(30, 12) < 0.25
    targets[torch.arange(30), torch.randint(0, 12, (30,))] = True
    expected = [slow_rank(row.tolist(), true.tolist()) for row, true in zip(scores, targets, strict=True)]
    assert ranks(scores, targets, chunk=chunk).tolist() == expected


def test_ties_count_against_the_query_whatever_the_order():
    targets = torch.eye(4, dtype=torch.bool)
    assert ranks(torch.zeros(4, 4), targets).tolist() == [4, 4, 4, 4]


def test_true_candidates_do_not_push_each_other_down():
    assert ranks(torch.tensor([[3.0, 2.0, 2.0]]), torch.tensor([[True, False, True]])).tolist() == [1]
    assert ranks(torch.tensor([[2.0, 1.0, 2.0]]), torch.tensor([[True, False, True]])).tolist() == [1]


@pytest.mark.parametrize(
    ("scores", "rank"),
    [([torch.nan, 1.0, 0.0], 3), ([0.5, torch.nan, 0.0], 2), ([torch.nan] * 3, 3), ([-torch.inf, 0.0, -torch.inf], 3)],
)
def test_scores_that_are_not_numbers_never_help(scores, rank):
    assert ranks(torch.tensor([scores]), torch.tensor([[True, False, False]])).tolist() == [rank]


def test_query_without_an_answer_is_refused():
    with pytest.raises(InputError, match="1 of 2 queries"):
        ranks(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))


def test_perfect_ranking():
    metrics = retrieval_metrics(torch.eye(20), torch.arange(20))
    assert {value for name, value in metrics.items() if "median" not in name} == {100.0}
    assert metrics["t2v_median_rank"] == metrics["v2t_median_rank"] == 1


def test_reversed_ranking():
    metrics = retrieval_metrics(-torch.eye(20), torch.arange(20))
    assert {value for name, value in metrics.items() if "median" not in name} == {0.0}
    assert metrics["t2v_median_rank"] == metrics["v2t_median_rank"] == 20


def test_several_captions_of_a_clip():
    """Clip 0 is found by its second caption; of the three captions two find their clip."""
    scores = torch.tensor([[0.1, 0.9, 0.8], [0.5, 0.2, 0.85]])
    metrics = retrieval_metrics(scores, torch.tensor([0, 0, 1]))
    assert metrics["v2t_r1"] == 100
    assert metrics["t2v_r1"] == pytest.approx(200 / 3)
    assert metrics["t2v_r5"] == 100
    assert metrics["t2v_median_rank"] == 1


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_against_a_loop(ties):
    clip_of_caption = torch.tensor([0, 2, 1, 1, 4, 3, 0, 5, 6, 7, 8, 9, 10, 11])
    scores, other = torch.randn(12, 14), torch.randn(14, 12)
    if ties:
        scores, other = scores.round(), other.round()
    assert retrieval_metrics(scores, clip_of_caption) == pytest.approx(slow_metrics(scores, clip_of_caption))
    expected = slow_metrics(scores, clip_of_caption, other)
    assert retrieval_metrics(scores, clip_of_caption, scores_t2v=other) == pytest.approx(expected)


def test_caption_of_several_clips_by_the_whole_relation():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.4, 0.8]])
    relation = torch.tensor([[True, False], [True, False], [False, True]])
    metrics = retrieval_metrics(scores, relation)
    assert metrics["t2v_r1"] == 100
    assert metrics["v2t_r1"] == pytest.approx(200 / 3)


def test_targets_as_numbers_and_as_relation_agree():
    scores, clip_of_caption = torch.randn(3, 5), torch.tensor([0, 1, 1, 2, 0])
    assert retrieval_metrics(scores, retrieval_targets(clip_of_caption, 3)) == retrieval_metrics(
        scores, clip_of_caption
    )


def test_dual_softmax_uses_other_scores_for_each_direction():
    similarity, clip_of_caption = 5 * torch.randn(6, 8), torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])
    v2t, t2v = similarity * similarity.softmax(0), similarity.T * similarity.T.softmax(0)
    assert dual_softmax_metrics(similarity, clip_of_caption) == pytest.approx(slow_metrics(v2t, clip_of_caption, t2v))


def test_prompts_of_a_class_stand_together():
    scores = torch.tensor([[1.0, 3.0, 10.0, 20.0]])
    assert average_prompts(scores, 2).tolist() == [[2, 15]]


def test_candidates_are_the_most_similar_and_the_earlier_of_equals():
    similarity = torch.tensor([[0.1, 0.5, 0.5, 0.5], [0.4, 0.3, 0.2, 0.1]])
    assert candidates(similarity, 2).int().tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]]
    assert candidates(similarity, 9).all()


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_rerank_scores_candidates_and_keeps_the_order_of_the_rest(chunk):
    similarity = torch.randn(6, 9)
    both = rerank(similarity, 3, slow_scores, chunk=chunk)
    for scores, raw, exact in zip(both, (similarity, similarity.T), (False, True), strict=True):
        for query, row in enumerate(scores):
            order = raw[query].argsort(descending=True).tolist()
            for place in order[:3]:
                pair = (place, query) if exact else (query, place)
                assert row[place] == slow_scores(*(torch.tensor(number) for number in pair))
            assert row[order[3:]].max() < row[order[:3]].min()
            assert (row[order[3:]].diff() < 0).all()


def test_rerank_keeps_equals_equal_even_beside_large_scores():
    similarity = torch.tensor([[0.9, 0.2, 0.2 - 1e-7, 0.2]])
    scores, _ = rerank(similarity, 1, lambda clip, caption: torch.full((len(clip),), 1000.0))
    assert scores[0, 1] == scores[0, 3]
    assert scores[0, 2] < scores[0, 1] < scores[0, 0] == 1000


def test_rerank_of_everything_is_the_score_itself():
    v2t, t2v = rerank(torch.randn(3, 4), 128, slow_scores)
    expected = slow_scores(torch.arange(3)[:, None], torch.arange(4)[None])
    assert torch.equal(v2t, expected)
    assert torch.equal(t2v, expected.T)


def test_rerank_with_the_fill_of_the_reference():
    similarity = torch.randn(4, 5)
    v2t, t2v = rerank(similarity, 2, slow_scores, fill=REFERENCE_FILL)
    assert torch.equal(v2t == REFERENCE_FILL, ~candidates(similarity, 2))
    assert torch.equal(t2v == REFERENCE_FILL, ~candidates(similarity.T, 2))


def test_rerank_asks_for_each_pair_once():
    asked = []

    def score(clip, caption):
        asked.extend(zip(clip.tolist(), caption.tolist(), strict=True))
        return slow_scores(clip, caption)

    similarity, similarity_t2v = torch.randn(5, 7), torch.randn(7, 5)
    rerank(similarity, 2, score, similarity_t2v=similarity_t2v)
    wanted = candidates(similarity, 2) | candidates(similarity_t2v, 2).T
    assert sorted(asked) == [tuple(pair) for pair in wanted.nonzero().tolist()]


def test_rerank_needs_a_candidate():
    with pytest.raises(InputError, match="top_k is 0"):
        rerank(torch.zeros(2, 2), 0, slow_scores)


def assert_whole(found, clips=(0, 1, 2, 3, 4)):
    """The result holds the given clips of the evaluation set, in order, each with all its captions."""
    visual, text, clip_of_caption = evaluation_set()
    kept = torch.isin(clip_of_caption, torch.tensor(clips))
    expected = torch.nn.functional.cosine_similarity(visual[list(clips), None], text[None, kept], dim=2)
    torch.testing.assert_close(found["similarity"], expected)
    assert found["index"].tolist() == [10 * clip for clip in clips]
    assert torch.tensor(clips)[found["clip_of_caption"]].tolist() == clip_of_caption[kept].tolist()
    assert found["metrics"]["raw"] == pytest.approx(slow_metrics(expected, found["clip_of_caption"]))
    assert found["metrics"]["dual_softmax"] == dual_softmax_metrics(found["similarity"], found["clip_of_caption"])


@pytest.mark.parametrize(
    "batches",
    [
        [[0, 1, 2, 3, 4]],
        [[4, 2], [0], [3, 1]],
        [[0, 1], [2, 3], [4, 0]],  # a clip again in a later batch
        [[0, 2, 2], [1, 3, 4, 4]],  # a clip twice in one batch
    ],
)
def test_metric_sorts_clips_and_drops_repeated_ones(batches):
    assert_whole(summary(found_with(batches)))


def test_metric_allows_for_clips_that_were_left_out():
    assert_whole(summary(found_with([[3, 0], [4]])), clips=(0, 3, 4))


def test_metric_keeps_the_shape_of_a_single_clip_and_caption():
    result = found_with([[1]])
    assert result.similarity.shape == (1, 1)
    assert result.metrics["raw"]["t2v_r1"] == 100


def test_metric_starts_anew_after_reset():
    metric = RetrievalMetric()
    metric.update(torch.randn(2, 3), torch.arange(2), torch.randn(2, 3), torch.arange(2))
    metric.reset()
    metric.update(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3))
    assert metric.compute().metrics["raw"]["t2v_r1"] == 100
    assert len(metric.compute().index) == 3


def test_metric_keeps_neither_graph_nor_half_precision():
    metric = RetrievalMetric()
    visual = torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True)
    metric.update(visual, torch.arange(2), torch.randn(2, 3), torch.arange(2))
    assert metric.compute().similarity.dtype == torch.float32
    assert not metric.visual[0].requires_grad


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_metric_without_clips_says_so():
    with pytest.raises(InputError, match="no clip was collected"):
        RetrievalMetric().compute()


def test_caption_of_an_unknown_clip_is_refused():
    metric = RetrievalMetric()
    metric.update(torch.eye(2), torch.tensor([4, 5]), torch.eye(2), torch.tensor([4, 6]))
    with pytest.raises(InputError, match="belongs to clip 6"):
        metric.compute()


def test_reranked_metrics_join_the_result():
    result = RetrievalResult(torch.eye(2), torch.arange(2), torch.arange(2), {"raw": {}})
    result.add_reranked(-torch.eye(2), torch.eye(2))
    assert result.metrics["reranked"]["v2t_r1"] == 0
    assert result.metrics["reranked"]["t2v_r1"] == 100


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each of two ranks found."""
    return run_ranks(Path(__file__).with_name("retrieval_ranks.py"), tmp_path_factory.mktemp("ranks"))


@pytest.mark.dist
@pytest.mark.parametrize("case", ["padded", "lopsided"])
def test_ranks_together_find_what_one_process_finds(two_ranks, case):
    for found in two_ranks:
        assert_whole(found[case])


@pytest.mark.dist
@pytest.mark.parametrize("sharing", ["even", "owned"])
def test_ranks_share_the_pairs_to_rerank(two_ranks, sharing):
    similarity = two_ranks[0]["padded"]["similarity"]
    expected = torch.cat([scores.flatten() for scores in rerank(similarity, 2, slow_scores)])
    for found in two_ranks:
        assert torch.equal(found[sharing], expected)


@pytest.mark.dist
def test_ranks_call_the_matching_head_equally_often(two_ranks):
    calls = [found["calls"] for found in two_ranks]
    assert len(calls[0]) == len(calls[1])
    assert sum(calls[1]) < sum(calls[0])
    assert calls[1][-1] == 0
