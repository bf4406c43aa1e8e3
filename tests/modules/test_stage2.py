"""The stage-2 module: terms, masks, chance, edge cases."""

from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import log_softmax

from ivt2.errors import InputError
from ivt2.losses.contrast import Contrast
from ivt2.ops.masking import tube_masking
from ivt2.ops.random import Stream, uniform
from tests.modules.stage2_case import TERMS, VOCABULARY, batch, gradients, make, trainer

each_term = pytest.mark.parametrize("term", TERMS)
FUSION = ("project_tokens", "fuse_at")
METHODS = {"vtc": (), "vtm": (*FUSION, "score_pairs"), "mlm": (*FUSION, "predict_words")}
"""Methods of the model that a term needs beyond those of the encoders; terms share them."""
ENCODERS = ("encode_video", "encode_text")


def step(module, data):
    """Loss and its parts as numbers."""
    module.logged.clear()
    loss = module.training_step(data, 0)
    return loss, {name.removeprefix("train/"): value.item() for name, value in module.logged.items()}


@pytest.mark.parametrize("terms", [some for num in (1, 2, 3) for some in combinations(TERMS, num)], ids="-".join)
def test_only_what_has_a_weight_is_computed_and_logged(terms, monkeypatch):
    module = make(terms={term: float(term in terms) for term in TERMS})
    called = []
    for method in {*ENCODERS, *(name for names in METHODS.values() for name in names)}:
        original = getattr(module.model, method)
        monkeypatch.setattr(
            module.model, method, lambda *given, name=method, call=original: (called.append(name), call(*given))[1]
        )
    loss, logged = step(module, batch())
    assert set(logged) == {"loss", *(f"loss_{term}" for term in terms)}
    assert sorted(called) == sorted({*ENCODERS, *(name for term in terms for name in METHODS[term])})
    assert logged["loss"] == pytest.approx(loss.item())


def test_weights_multiply():
    _, each = step(make(), batch())
    loss, logged = step(make(terms={"vtc": 0.5, "mlm": 2.0}), batch())
    assert loss.item() == pytest.approx(0.5 * each["loss_vtc"] + 2 * each["loss_mlm"])
    assert all(logged[name] == pytest.approx(each[name]) for name in ("loss_vtc", "loss_mlm"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": {}}, "name at least one of vtc, vtm, mlm"),
        ({"terms": {"vtc": 0.0}}, "'vtc': 0.0.*name at least one of vtc, vtm, mlm"),
        ({"mask_ratio": {"video": 1.0}}, "mask ratio 1.0 hides everything"),
        ({"mask_ratio": {"video": 0.5, "image": -0.1}}, "mask ratio -0.1"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


@pytest.mark.parametrize(("size", "fits"), [(119, True), (120, True), (121, False)])
def test_vocabulary_must_fit_the_text_encoder(size, fits):
    module = make()
    vocabulary = VOCABULARY._replace(size=size)
    module._trainer = trainer(vocabulary=vocabulary)
    if fits:
        module.setup("fit")
        assert module.vocabulary == vocabulary
    else:
        with pytest.raises(InputError, match=r"121 entries but text_encoder\.vocab_size is 120"):
            module.setup("fit")


def test_tokenizer_and_text_encoder_agree_about_padding():
    module = make()
    module._trainer = trainer(vocabulary=VOCABULARY._replace(pad_id=7))
    with pytest.raises(InputError, match="the tokenizer pads with 7, the text encoder takes 0 for padding"):
        module.setup("fit")


@pytest.mark.parametrize("medium", ["image", "video", "audio_video", "audio"])
def test_sounds_without_pictures_are_refused_at_the_start(medium):
    module = make()
    media = {"train.web": "video", "train.wavcaps": medium}
    module._trainer = trainer(media)
    if medium != "audio":
        module.setup("fit")
    else:
        with pytest.raises(InputError, match=r"datamodule\.train\.wavcaps: holds sounds without pictures"):
            module.setup("fit")


@each_term
@pytest.mark.parametrize("num", [0, 1])
def test_smallest_batches_have_a_finite_loss_and_gradients(term, num):
    module = make(terms={term: 1.0})
    loss, _ = step(module, batch(range(num)))
    loss.backward()
    assert loss.isfinite()
    assert all(each.isfinite().all() for each in gradients(module).values())
    assert gradients(module)
    if num == 0:
        assert loss.item() == 0
        assert not any(each.any() for each in gradients(module).values())


def test_duplicates_share_the_target_of_the_contrast():
    """Closed form: the target of a row is uniform over the rows of its clip."""
    ids = [5, 3, 5, 8]
    module = make(terms={"vtc": 1.0})
    data = batch(sample_id=ids)
    encoded = module.encode(data)
    logits = encoded.features["video"] @ encoded.textual[None].T / module.model.temperature
    expected = 0.0
    for scores in (logits, logits.T):
        for row, own in enumerate(ids):
            same = [column for column, other in enumerate(ids) if other == own]
            expected -= sum(log_softmax(scores[row], 0)[column].item() for column in same) / len(same)
    assert step(module, data)[1]["loss_vtc"] == pytest.approx(expected / 8, rel=1e-5)
    assert step(module, batch())[1]["loss_vtc"] != pytest.approx(expected / 8, rel=1e-3)


def test_a_batch_of_one_clip_has_no_wrong_pairs():
    """Matching then is the cross-entropy of the positives alone."""
    module = make(terms={"vtm": 1.0})
    data = batch(range(3), sample_id=[4, 4, 4])
    encoded = module.encode(data)
    expected = -module.model.match(encoded.captions[None], encoded.tokens["video"]).log_softmax(1)[:, 1].mean().item()
    assert step(module, data)[1]["loss_vtm"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 2, 3)])
def test_order_of_the_batch_changes_nothing(order):
    """With groups of two every sample has one possible negative, as long as groups stay together."""
    module = make(negatives_group=2)
    assert step(module, batch(order))[1] == pytest.approx(step(module, batch())[1], rel=1e-5)


@pytest.mark.parametrize("masking", ["random", "tube"])
def test_masks_depend_on_the_seed_of_a_sample_alone(masking):
    module = make(masking=masking)
    whole = module._draw_mask(batch())
    assert torch.equal(torch.cat([module._draw_mask(batch(rows)) for rows in ((0, 1, 2), (3,))]), whole)
    assert len({tuple(row.tolist()) for row in whole}) > 1
    assert whole.sum(dim=1).tolist() == [4] * 4
    frames = whole.view(4, 2, 4)
    assert torch.equal(frames[:, 0], frames[:, 1]) == (masking == "tube")


def test_tubes_are_drawn_for_one_frame():
    noise = uniform(batch()["seed"], 4, Stream.PATCHES)
    assert torch.equal(make(masking="tube")._draw_mask(batch()), tube_masking(noise, 0.5, 2))


@pytest.mark.parametrize(("num_frames", "hidden"), [(2, 4), (1, 1)])
def test_images_have_a_ratio_of_their_own(num_frames, hidden):
    module = make()
    step(module, batch(num_frames=num_frames))
    assert module.last_masked.shape == (4, 4 * num_frames)
    assert module.last_masked.sum(dim=1).tolist() == [hidden] * 4


@pytest.mark.parametrize("ratio", [{}, {"video": 0.0}])
def test_without_a_ratio_nothing_is_hidden(ratio):
    module = make(mask_ratio=ratio)
    assert module.encode(batch()).tokens["video"].shape == (4, 9, 16)
    assert module.last_masked is None


def test_a_step_does_not_touch_the_global_generator():
    module = make()
    before = torch.get_rng_state()
    first = step(module, batch())[1]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert step(module, batch())[1] == first


@pytest.mark.parametrize(("value", "kept"), [(0.0, 0.001), (0.9, 0.5)])
def test_temperature_is_brought_into_range_before_a_step(value, kept):
    module = make()
    with torch.no_grad():
        module.model.temperature.fill_(value)
    module.on_train_batch_start(batch(), 0)
    assert module.model.temperature.item() == pytest.approx(kept)


@pytest.mark.parametrize(("probability", "some"), [(0.0, False), (1.0, True)])
def test_share_of_words_to_predict(probability, some, monkeypatch):
    module = make(terms={"mlm": 1.0}, masked_lm_probability=probability)
    asked = []
    original = module.model.fuse_at
    monkeypatch.setattr(module.model, "fuse_at", lambda *given: (asked.append(given), original(*given))[1])
    loss, _ = step(module, batch())
    text, _, _, selected = asked[0]
    expected = text.valid & (torch.arange(7) > 0) if some else torch.zeros_like(text.valid)
    assert torch.equal(selected, expected)
    assert (loss.item() > 0) == some


def test_optimizer_covers_every_parameter_once_and_spares_the_tables():
    module = make()
    module._trainer = SimpleNamespace(estimated_stepping_batches=10)
    configured = module.configure_optimizers()
    groups = configured["optimizer"].param_groups
    listed = [parameter for group in groups for parameter in group["params"]]
    assert sorted(map(id, listed)) == sorted(map(id, module.model.parameters()))
    spared = {id(parameter) for group in groups if group["weight_decay"] == 0 for parameter in group["params"]}
    decaying = {name for name, each in module.model.named_parameters() if id(each) not in spared}
    assert not decaying & module.model.no_weight_decay()
    assert all(module.model.get_parameter(name).ndim > 1 for name in decaying)
    assert configured["lr_scheduler"]["interval"] == "step"


def test_loss_falls_on_a_repeated_batch():
    module = make()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    found = []
    for _ in range(30):
        loss, logged = step(module, batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.on_train_batch_start(batch(), 0)
        found.append(logged)
    assert all(found[-1][name] < 0.5 * found[0][name] for name in found[0])


def test_reference_gradient_scale_has_no_effect_in_one_process():
    found = []
    for flag in (False, True):
        module = make(contrast=Contrast(reference_gradient_scale=flag))
        step(module, batch())[0].backward()
        found.append(gradients(module))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def evaluation_batch(rows):
    data = batch(rows)
    return {
        "video": data["video"], "index": torch.tensor(list(rows)), "input_ids": data["input_ids"],
        "valid": data["valid"], "clip_of_caption": torch.tensor(list(rows)), "caption": data["key"],
        "key": data["key"], "source": "toy", "skipped": [],
    }  # fmt: skip


@pytest.mark.parametrize("sanity_checking", [False, True])
def test_evaluation_ranks_what_all_batches_brought(sanity_checking):
    module = make(rerank_top_k=2).eval()
    module._trainer = SimpleNamespace(sanity_checking=sanity_checking)
    module.log_dict = lambda values, **_: module.logged.update(values)
    for rows in ((2, 0), (1, 3), (4,)):
        with torch.no_grad():
            module.validation_step(evaluation_batch(rows), 0)
    module.on_validation_epoch_end()
    if sanity_checking:
        assert module.logged == module.retrieval_results == {}
        return
    result = module.retrieval_results["toy"]
    assert result.index.tolist() == [0, 1, 2, 3, 4]
    with torch.no_grad():
        whole = evaluation_batch(range(5))
        visual = module.model.embed_video(module.model.encode_video(whole["video"]))
        textual = module.model.embed_text(module.model.encode_text(whole["input_ids"], whole["valid"]))
    torch.testing.assert_close(result.similarity, visual @ textual.T)
    assert module.logged["val/toy/t2v_r1"] == result.metrics["raw"]["t2v_r1"]
    assert module.logged["val/toy/reranked/t2v_r1"] == result.metrics["reranked"]["t2v_r1"]
    module.on_validation_epoch_end()
    assert module.retrieval_results["toy"] is result  # nothing is kept for the next evaluation
