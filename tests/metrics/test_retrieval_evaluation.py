from pathlib import Path

import pytest
import torch

from ivt2.errors import InputError
from ivt2.metrics.retrieval import retrieval_metrics
from ivt2.metrics.retrieval_evaluation import RetrievalEvaluation, RetrievalFeatures
from tests.metrics.retrieval_evaluation_case import (
    CAPTIONS,
    HEADS,
    VIEWS,
    collected,
    computed,
    evaluation_set,
    match,
    seen_as,
)
from tests.metrics.retrieval_evaluation_ranks import SHARES
from tests.ops.launch import run_ranks

ALL = list(range(len(CAPTIONS)))


def slow(top_k, view="v"):
    """Metrics by cosine, and after every candidate has been scored by itself; in the order of the set."""
    clip, visual, textual, vision_tokens, text_tokens, valid = evaluation_set()
    cosine = torch.nn.functional.cosine_similarity(seen_as(view, visual)[:, None], textual[None], dim=2)
    looked_at = [seen_as(letter, vision_tokens) for letter in view]

    def reranked(rows):
        """Rows of queries: candidates by their scores, the others behind them in the order of their cosines."""
        found = torch.empty_like(rows)
        for query, row in enumerate(rows):
            order = row.argsort(descending=True).tolist()
            for place, other in enumerate(order):
                pair = (query, other) if rows is cosine else (other, query)
                tokens = [each[pair[0]][None] for each in looked_at]
                text = text_tokens[pair[1]][None], valid[pair[1]][None]
                score = HEADS[view](*text, torch.zeros(1, dtype=torch.int64), *tokens)[0, 1]
                found[query, other] = score if place < top_k else -1e6 - place
        return found

    expected = {"raw": retrieval_metrics(cosine, clip, view=view)}
    if top_k:
        expected["reranked"] = retrieval_metrics(reranked(cosine), clip, scores_t2v=reranked(cosine.T), view=view)
    return expected


def assert_equals_slow(metrics, top_k, views=("v",)):
    expected = [slow(top_k, view) for view in views]
    assert set(metrics) == {"dual_softmax", *expected[0]}
    for protocol in expected[0]:
        together = {name: value for each in expected for name, value in each[protocol].items()}
        assert metrics[protocol] == pytest.approx(together)


@pytest.mark.parametrize("top_k", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("chunk", [1, 1000])
def test_equals_a_loop(top_k, chunk):
    assert_equals_slow(computed([ALL], top_k, chunk).metrics, top_k)


@pytest.mark.parametrize("views", [("a",), ("v", "a", "av"), ("a", "av")], ids="-".join)
@pytest.mark.parametrize("batches", [[ALL], [[6, 2], [0, 5, 1], [4, 3]]], ids=["whole", "parts"])
def test_views_are_ranked_side_by_side(views, batches):
    result = computed(batches, 2, views=views)
    assert_equals_slow(result.metrics, 2, views)
    assert f"t2{views[-1]}_r1" in result.metrics["dual_softmax"]
    assert result.view == views[-1]
    _, visual, textual = evaluation_set()[:3]
    cosine = torch.nn.functional.cosine_similarity(seen_as(views[-1], visual)[:, None], textual[None], dim=2)
    torch.testing.assert_close(result.similarity, cosine)


def test_a_clip_is_handed_over_once_for_all_its_pairs():
    given = []

    def head(text_tokens, valid, rows, vision_tokens):
        given.append((len(vision_tokens), rows.tolist()))
        return match(text_tokens, valid, rows, vision_tokens)

    collected([ALL]).compute({"v": head}, top_k=100, device=torch.device("cpu"), chunk=1000)
    num_clips, num_captions = len(ALL), len(evaluation_set()[0])
    assert given == [(num_clips, [clip for clip in range(num_clips) for _ in range(num_captions)])]


def test_tokens_wait_once_whatever_looks_at_them():
    evaluation = collected([ALL], VIEWS)
    assert {letter: len(parts) for letter, parts in evaluation._tokens.items()} == {"v": 1, "a": 1}
    first, *others = evaluation.metrics.values()
    for other in others:
        assert other.text[0].data_ptr() == first.text[0].data_ptr()
        assert other.index[0].data_ptr() == first.index[0].data_ptr()


def test_only_views_that_are_matched_keep_tokens_and_are_scored_again():
    evaluation = RetrievalEvaluation(VIEWS, matched=["a"])
    clip, visual, textual, vision_tokens, text_tokens, valid = evaluation_set()
    features = RetrievalFeatures(
        {view: seen_as(view, visual) for view in VIEWS},
        {letter: seen_as(letter, vision_tokens) for letter in "va"}, textual, text_tokens, valid,
    )  # fmt: skip
    evaluation.update(index=torch.tensor(ALL), clip_of_caption=clip, features=features)
    assert set(evaluation._tokens) == {"a"}
    result = evaluation.compute({"a": match}, top_k=2, device=torch.device("cpu"))
    assert result.metrics["reranked"] == pytest.approx(slow(2, "a")["reranked"])
    assert {"t2v_r1", "t2a_r1", "t2av_r1"} <= set(result.metrics["raw"])


def test_the_loop_can_tell_protocols_apart():
    """The other tests would show nothing if re-ranking changed nothing."""
    found = [slow(top_k)["reranked"] for top_k in (2, 100)]
    assert found[0] != found[1]
    assert slow(2)["raw"] not in found
    assert (
        len({round(slow(2, view)[each][f"t2{view}_r_mean"], 3) for view in VIEWS for each in ("raw", "reranked")}) > 3
    )


@pytest.mark.parametrize(
    "batches", [[[6, 2], [0, 5, 1], [4, 3]], [[0, 1, 2, 3], [4, 5, 6, 0]], [[], ALL], [[0, 1, 1], [2, 3, 4, 5, 6, 6]]]
)
def test_order_and_repeated_clips_change_nothing(batches):
    assert_equals_slow(computed(batches, 2).metrics, 2)


def test_without_reranking_the_head_is_not_asked():
    evaluation = RetrievalEvaluation()
    clip, visual, textual, vision_tokens, text_tokens, valid = evaluation_set()
    features = RetrievalFeatures({"v": visual}, {"v": vision_tokens}, textual, text_tokens, valid)
    evaluation.update(index=torch.tensor(ALL), clip_of_caption=clip, features=features)
    result = evaluation.compute({"v": lambda *_: pytest.fail("asked")}, top_k=0, device=torch.device("cpu"))
    assert "reranked" not in result.metrics
    assert result.index.tolist() == ALL


def test_nothing_collected_is_said():
    with pytest.raises(InputError, match="no clip was collected"):
        RetrievalEvaluation().compute({"v": match}, top_k=2, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each of two ranks found."""
    return run_ranks(Path(__file__).with_name("retrieval_evaluation_ranks.py"), tmp_path_factory.mktemp("ranks"))


@pytest.mark.dist
@pytest.mark.parametrize("top_k", [2, 9])
@pytest.mark.parametrize("shares", SHARES)
def test_ranks_together_find_what_one_process_finds(two_ranks, shares, top_k):
    for found in two_ranks:
        assert_equals_slow(found[f"{shares}/{top_k}"], top_k, VIEWS)
