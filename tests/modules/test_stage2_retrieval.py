"""What stage 2 ranks: views by medium and model, and the heads that re-rank them."""

from types import SimpleNamespace

import pytest
import torch

from ivt2.metrics.retrieval import retrieval_metrics
from ivt2.modules.stage2_retrieval import encode_retrieval
from tests.modules.stage2_case import batch, make, make_model

EVERY = range(5)


def evaluation_batch(rows, medium="audio_video"):
    """Clips of a medium, each with one caption."""
    data = batch(rows, medium=medium)
    return {
        **{name: data[name] for name in ("video", "audio") if name in data},
        "index": torch.tensor(list(rows)), "input_ids": data["input_ids"], "valid": data["valid"],
        "clip_of_caption": torch.tensor(list(rows)), "caption": data["key"], "key": data["key"], "medium": medium,
        "source": "toy", "skipped": [],
    }  # fmt: skip


def evaluated(module, medium="audio_video"):
    """What a module logs of an evaluation in two batches."""
    module._trainer = SimpleNamespace(sanity_checking=False)
    module.log_dict = lambda values, **_: module.logged.update(values)
    module.eval()
    for rows in ((3, 0), (1, 2, 4)):
        with torch.no_grad():
            module.validation_step(evaluation_batch(rows, medium), 0)
    with torch.no_grad():
        module.on_validation_epoch_end()
    return {name.removeprefix("val/toy/"): value for name, value in module.logged.items()}


@pytest.mark.parametrize(
    ("medium", "options", "views"),
    [
        ("video", {"sound": True}, ["v"]),
        ("audio", {"sound": True}, ["a"]),
        ("audio_video", {"sound": True}, ["v", "a", "av"]),
        ("audio_video", {"sound": True, "audio_visual_fusion": False}, ["v", "a"]),
        ("audio_video", {}, ["v"]),
    ],
)
def test_views_are_those_that_medium_and_model_allow(medium, options, views):
    model = make_model(**options).eval()
    data = evaluation_batch(EVERY, medium)
    with torch.no_grad():
        features = encode_retrieval(model, data)
        assert list(features.clips) == views
        assert set(features.tokens) == {letter for view in views for letter in view}
        text = model.encode_text(data["input_ids"], data["valid"])
        torch.testing.assert_close(features.textual, model.embed_text(text))
        video = model.encode_video(data["video"]) if "video" in data else None
        audio = model.encode_audio(data["audio"]) if "a" in views else None
        expected = {
            "v": lambda: model.embed_video(video),
            "a": lambda: model.embed_audio(audio),
            "av": lambda: model.embed_audio_visual(audio, video),
        }
        for view in views:
            torch.testing.assert_close(features.clips[view], expected[view]())
    if audio is not None:
        torch.testing.assert_close(features.tokens["a"], audio.tokens)
    if video is not None:
        torch.testing.assert_close(features.tokens["v"], video.tokens)


def test_every_encoder_runs_once_for_all_views(monkeypatch):
    module = make(make_model(sound=True), rerank_top_k=3, terms={"vtm": 1.0, "atm": 1.0, "avtm": 1.0})
    called = []
    for name in ("encode_video", "encode_audio", "encode_text"):
        original = getattr(module.model, name)
        monkeypatch.setattr(
            module.model, name, lambda *given, name=name, call=original: (called.append(name), call(*given))[1]
        )
    logged = evaluated(module)
    assert sorted(called) == sorted(["encode_video", "encode_audio", "encode_text"] * 2)
    for prefix in ("", "dual_softmax/", "reranked/"):
        assert {f"{prefix}{way}_r1" for way in ("t2v", "v2t", "t2a", "a2t", "t2av", "av2t")} <= set(logged)


@pytest.mark.parametrize(
    ("terms", "views"), [(["vtc"], []), (["vtm"], ["v"]), (["atm", "vtc"], ["a"]), (["avtm", "vtm"], ["v", "av"])]
)
def test_heads_that_no_term_trains_do_not_rank(terms, views):
    module = make(make_model(sound=True), rerank_top_k=3, terms=dict.fromkeys(terms, 1.0))
    logged = evaluated(module)
    assert [view for view in ("v", "a", "av") if f"reranked/t2{view}_r1" in logged] == views
    assert {"t2v_r1", "t2a_r1", "t2av_r1"} <= set(logged)


@pytest.mark.parametrize(("term", "view"), [("vtm", "v"), ("atm", "a"), ("avtm", "av")])
def test_each_view_is_judged_by_its_own_head(term, view):
    """All pairs are candidates, so that the order is that of the head's scores alone."""
    module = make(make_model(sound=True), rerank_top_k=9, terms={term: 1.0})
    logged = evaluated(module)
    model, data = module.model, evaluation_batch(EVERY)
    with torch.no_grad():
        text = model.encode_text(data["input_ids"], data["valid"])
        tokens = {"v": model.encode_video(data["video"]).tokens, "a": model.encode_audio(data["audio"]).tokens}
        head = {"v": model.match, "a": model.match_audio, "av": model.match_audio_visual}[view]
        scores = torch.stack([
            head(text, *(tokens[letter][clip].expand(5, -1, -1) for letter in view))[:, 1] for clip in EVERY
        ])
    expected = retrieval_metrics(scores, torch.arange(5), view=view)
    assert {name: logged[f"reranked/{name}"] for name in expected} == pytest.approx(expected)
