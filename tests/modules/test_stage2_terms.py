"""The terms of stage 2: each against a plain formulation, on each medium, and what is refused before a run starts."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid

from ivt2.errors import InputError
from ivt2.losses.contrast import Contrast
from ivt2.losses.masked_lm import IGNORED, MaskDraws, mask_tokens
from ivt2.losses.matching import hard_negatives
from ivt2.models.stage2 import EncodedText
from ivt2.modules.stage2_terms import TERMS, parse_terms
from ivt2.ops.random import Stream, uniform
from tests.modules.stage2_case import (
    CAPTIONS,
    EACH,
    VOCABULARY,
    batch,
    captions,
    gradients,
    hearing,
    make,
    make_model,
    make_teacher,
    trainer,
    whole,
)

VIDEO = {"vtc", "vtm", "mlm", "uta"}
AUDIO = {"atc", "atm", "amlm"}
RUNS = {"image": VIDEO, "video": VIDEO, "audio": AUDIO, "audio_video": set(TERMS)}
LONE = {"vtm": "video", "atm": "audio", "avtm": "audio_video"}


def step(module, data):
    module.logged.clear()
    loss = module.training_step(data, 0)
    return loss, {name.removeprefix("train/"): value.item() for name, value in module.logged.items()}


class Plain:
    """Each term by itself: encoded, paired and fused anew, clip by clip and pair by pair."""

    def __init__(self, module, data, teacher=None):
        self.model, self.data = module.model, data
        self.teacher = make_teacher() if teacher is None else teacher
        mask = module._draw_mask(data, self.teacher(data["video"]).attention)
        self.video = self.model.encode_video(data["video"], mask, taps=(1,))
        self.masked = mask
        self.audio = self.model.encode_audio(data["audio"]) if "audio" in data else None
        self.size = len(data["seed"])

    def text(self, caption):
        given = captions(range(4)) if caption is None else self.data["texts"][caption]
        return self.model.encode_text(*given)

    def feature(self, view):
        if view == "audio_video":
            return self.model.embed_audio_visual(self.audio, self.video)
        return self.model.embed_video(self.video) if view == "video" else self.model.embed_audio(self.audio)

    def tokens(self, view, row):
        parts = {"video": [self.video], "audio": [self.audio], "audio_video": [self.audio, self.video]}[view]
        return [part.tokens[row : row + 1] for part in parts]

    def contrast(self, term, caption):
        first = self.feature(term.view)
        second = self.feature("video") if term.partner == "video" else self.model.embed_text(self.text(caption))
        scores = first @ second.T / self.model.temperature
        own = torch.arange(self.size)
        return (cross_entropy(scores, own) + cross_entropy(scores.T, own)) / 2

    def matching(self, term, caption):
        text = self.text(caption)
        draws = {"video": (0, 1), "audio": (2, 3), "audio_video": (4, 5)}[term.view]
        negatives = hard_negatives(
            self.feature(term.view), self.model.embed_text(text), self.model.temperature, self.data["sample_id"],
            uniform(self.data["seed"], 6, Stream.NEGATIVES)[:, list(draws)],
        )  # fmt: skip
        match = {
            "video": self.model.match, "audio": self.model.match_audio, "audio_video": self.model.match_audio_visual
        }[term.view]  # fmt: skip
        total = 0.0
        for row in range(self.size):
            pairs = [(row, row, 1), (negatives.vision[row], row, 0), (row, negatives.text[row], 0)]
            for clip, caption_row, label in pairs:
                one = EncodedText(text.tokens[caption_row][None], text.valid[caption_row][None])
                total = total - match(one, *self.tokens(term.view, int(clip))).log_softmax(1)[0, label]
        return total / (3 * self.size)

    def masked_lm(self, term, caption):
        ids, valid = captions(range(4)) if caption is None else self.data["texts"][caption]
        noise = uniform(self.data["seed"], 4 * ids.shape[1], Stream.MASKED_LM)
        known = {name: getattr(VOCABULARY, name) for name in ("mask_id", "pad_id", "cls_id")}
        hidden, labels = mask_tokens(ids, MaskDraws.from_uniform(noise), vocab_size=VOCABULARY.size, **known)
        total, count = 0.0, 0
        for row in range(self.size):
            selected = labels[row : row + 1] != IGNORED
            shown = torch.cat(self.tokens(term.view, row), dim=1)
            logits = self.model.predict_tokens(hidden[row : row + 1], valid[row : row + 1], shown, selected)
            for scores, label in zip(logits, labels[row][selected[0]], strict=True):
                total, count = total - scores.log_softmax(0)[label], count + 1
        return total / count

    def alignment(self, term, caption):
        said = self.teacher(self.data["video"])
        aligned = self.model.align(self.video, self.masked)
        tokens, pooled = [], []
        for row in range(self.size):
            visible = [0] + [1 + patch for patch in range(8) if not self.masked[row, patch]]
            for place, patch in enumerate(visible):
                tokens.append(2 - 2 * aligned.middle[0, row, place] @ said.middle[0, row, patch])
            pooled.append(2 - 2 * aligned.final[row] @ said.final[row])
        return sum(tokens) / len(tokens) + sum(pooled) / len(pooled)

    def loss(self, name):
        return getattr(self, TERMS[name].kind)(TERMS[name], CAPTIONS.get(name))


@pytest.mark.parametrize("name", TERMS)
def test_each_term_is_what_a_plain_loop_finds_and_is_all_that_is_logged(name):
    module = hearing({name: {"weight": 0.5, "caption": CAPTIONS.get(name)}})
    loss, logged = step(module, whole())
    loss.backward()
    found = gradients(module)
    module.model.zero_grad()
    expected = Plain(module, whole()).loss(name)
    (0.5 * expected).backward()
    assert set(logged) == {"loss", f"loss_{name}"}
    assert logged[f"loss_{name}"] == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx(0.5 * expected.item(), rel=1e-5)
    torch.testing.assert_close(found, gradients(module), rtol=1e-4, atol=1e-6)


def test_masks_may_follow_what_the_teacher_attends_to():
    """A draw without replacement: the longer a patch is waited for, the less it is attended to."""
    teacher = make_teacher()
    with torch.no_grad():
        for part in (teacher.encoder.clip_projector.cross_attn.q, teacher.encoder.clip_projector.cross_attn.k):
            part.weight.normal_(std=0.4)  # so that it looks at some patches more than at others
    module = make(make_model(decoders=True), terms={"uta": 1.0, "vtc": 0.5}, teacher=teacher, masking="attention")
    loss, logged = step(module, whole("video"))
    attention = teacher(whole("video")["video"]).attention
    assert (attention.amax(dim=1) > 3 * attention.amin(dim=1)).all()
    draws = uniform(whole("video")["seed"], 8, Stream.PATCHES)
    for row in range(4):
        waits = [-math.log1p(-draws[row, patch].item()) / attention[row, patch].item() for patch in range(8)]
        hidden = sorted(range(8), key=waits.__getitem__)[4:]
        assert module.last_masked[row].nonzero().flatten().tolist() == sorted(hidden)
    plain = Plain(module, whole("video"), teacher)
    assert torch.equal(plain.masked, module.last_masked)
    assert logged["loss_uta"] == pytest.approx(plain.loss("uta").item(), rel=1e-5)
    assert loss.item() == pytest.approx((plain.loss("uta") + 0.5 * plain.loss("vtc")).item(), rel=1e-5)


def test_masks_that_follow_a_teacher_need_one_that_attends():
    decoders = make_model(decoders=True)
    for terms, teacher in (({"vtc": 1.0}, make_teacher()), ({"vtc": 1.0}, None)):
        with pytest.raises(InputError, match="masking=attention needs a teacher and the term uta"):
            make(decoders, terms=terms, teacher=teacher, masking="attention")
    teacher = make_teacher()
    teacher.gives_attention = False
    with pytest.raises(InputError, match=r"masking=attention: module\.teacher has no attention to follow"):
        make(decoders, terms={"uta": 1.0}, teacher=teacher, masking="attention")


def test_all_terms_together_are_the_sum_of_each(monkeypatch):
    """Each encoder runs once for all of them, and what captions look at is projected once."""
    module = hearing(EACH)
    called = []
    for method in ("encode_video", "encode_audio", "encode_text", "project_tokens", "fuse_at"):
        original = getattr(module.model, method)
        monkeypatch.setattr(
            module.model, method, lambda *given, name=method, call=original: (called.append(name), call(*given))[1]
        )
    loss, logged = step(module, whole())
    loss.backward()
    found = gradients(module)
    assert sorted(called) == sorted([
        "encode_video",
        "encode_audio",
        "encode_text",
        *["project_tokens"] * 2,
        *["fuse_at"] * 3,
    ])
    monkeypatch.undo()
    module.model.zero_grad()
    plain = Plain(module, whole())
    losses = {name: plain.loss(name) for name in TERMS}
    assert logged == pytest.approx(
        {"loss": sum(losses.values()).item(), **{f"loss_{name}": each.item() for name, each in losses.items()}},
        rel=1e-5,
    )
    sum(losses.values()).backward()
    torch.testing.assert_close(found, gradients(module), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("medium", RUNS)
def test_a_step_computes_what_its_medium_serves(medium):
    module = hearing(EACH)
    loss, logged = step(module, whole(medium))
    assert set(logged) == {"loss", *(f"loss_{name}" for name in RUNS[medium])}
    loss.backward()
    parts = {name.split(".")[0] for name in gradients(module)}
    assert ("vision_encoder" in parts, "audio_encoder" in parts) == (medium != "audio", "audio" in medium)
    assert (module.last_masked is None) == (medium == "audio")
    assert loss.isfinite()


def test_a_source_without_kinds_gives_its_main_caption():
    module = hearing({"vtc": {"weight": 1.0, "caption": "fused"}, "mlm": {"weight": 1.0, "caption": "speech"}})
    plain = hearing({"vtc": 1.0, "mlm": 1.0})
    assert step(module, batch())[1] == step(plain, batch())[1]
    assert step(module, whole("video"))[1] != step(plain, whole("video"))[1]


@pytest.mark.parametrize("num", [0, 1])
def test_smallest_batches_have_finite_losses_and_gradients(num):
    module = hearing(EACH)
    loss, logged = step(module, whole(rows=range(num)))
    loss.backward()
    assert all(torch.tensor(value).isfinite() for value in logged.values())
    assert all(each.isfinite().all() for each in gradients(module).values())
    assert len(logged) == 1 + len(TERMS)
    if num == 0:
        assert set(logged.values()) == {0.0}
        assert not any(each.any() for each in gradients(module).values())


def scores(module, data, name):
    """Probability of a match that the right pairs of each sample have."""
    plain = Plain(module, data)
    text, view = plain.text(None), LONE[name]
    heads = {"vtm": plain.model.match, "atm": plain.model.match_audio, "avtm": plain.model.match_audio_visual}
    rows = [plain.tokens(view, row) for row in range(4)]
    logits = heads[name](text, *(torch.cat(each) for each in zip(*rows, strict=True)))
    return logits.log_softmax(1)


@pytest.mark.parametrize("name", LONE)
@pytest.mark.parametrize("ids", [[4, 4, 4, 4], [3, 3, 3, 9]])
def test_pairs_without_a_wrong_half_are_left_out(name, ids):
    """Four captions of one clip have right pairs alone; of groups of two, one may have wrong ones and the other not."""
    module = hearing({name: 1.0}, negatives_group=2)
    data = batch(medium="audio_video", sample_id=ids)
    found = step(module, data)[1][f"loss_{name}"]
    right = -scores(module, data, name)[:, 1]
    if len(set(ids)) == 1:
        assert found == pytest.approx(right.mean().item(), rel=1e-5)
        return
    data["sample_id"] = torch.arange(4)
    data = {key: value[2:] if isinstance(value, torch.Tensor | list) else value for key, value in data.items()}
    other = step(module, data)[1][f"loss_{name}"]  # two right and four wrong pairs
    assert found == pytest.approx((6 * other + right[:2].sum().item()) / 8, rel=1e-5)


@pytest.mark.parametrize("name", ["vtc", "atc", "avc", "avtc"])
def test_captions_of_one_clip_are_all_positives(name):
    """Closed form: the target is uniform, so the loss is the mean of all log-probabilities."""
    module = hearing({name: 1.0})
    data = batch(medium="audio_video", sample_id=[7] * 4)
    plain, term = Plain(module, data), TERMS[name]
    other = plain.feature("video") if name == "avc" else plain.model.embed_text(plain.text(None))
    logits = plain.feature(term.view) @ other.T / module.model.temperature
    expected = -(logits.log_softmax(0) + logits.log_softmax(1)).mean().item() / 2
    assert step(module, data)[1][f"loss_{name}"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (2, 3, 0, 1)])
def test_order_of_the_batch_changes_nothing(order):
    module = hearing(EACH, negatives_group=2)
    shuffled = step(module, whole(rows=order))[1]
    assert shuffled == pytest.approx(step(module, whole())[1], rel=1e-5)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"vcc": 1.0}, r"terms\.vcc: no such term; did you mean vtc or avc"),
        ({"ocr": 1.0}, r"terms\.ocr: no such term; there are vtc, vtm, mlm, atc"),
        ({"vtc": {"weigth": 1.0}}, r"terms\.vtc\.weigth: no such option; a term has weight and caption"),
        ({"vtc": -1.0}, r"terms\.vtc: weight=-1\.0: give a number from 0 on"),
        ({"vtc": float("nan")}, r"terms\.vtc: weight=nan"),
        ({"vtc": "much"}, r"terms\.vtc: weight='much'"),
        ({"vtc": {"weight": 1.0, "caption": 3}}, r"terms\.vtc: caption=3: give a kind of captions"),
        ({"avc": {"weight": 1.0, "caption": "fused"}}, r"terms\.avc\.caption=fused: the term reads no captions"),
        ({"vtc": 0, "atm": 0.0}, "name at least one of vtc, vtm, mlm, atc, .*, with a weight above 0"),
    ],
    ids=str,
)
def test_mistakes_in_terms_are_named(terms, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_terms(terms)
    assert "\n" not in str(caught.value)


def test_weights_and_captions_are_read():
    terms = parse_terms({"vtc": 2, "mlm": {"caption": "speech"}, "atc": 0, "avtm": {"weight": 0.5, "caption": None}})
    assert [(each.name, each.weight, each.caption) for each in terms] == [
        ("vtc", 2.0, None), ("mlm", 1.0, "speech"), ("avtm", 0.5, None)
    ]  # fmt: skip


LACKING = {
    "atc": ({"sound": False}, "audio_encoder, which the model lacks: use module=stage2_audio"),
    "avtc": ({"audio_visual_fusion": False}, r"audio_visual_fusion, .*: set module\.model\.audio_visual_fusion=true"),
    "atm": ({"audio_matching": False}, r"audio_matching_head, .*: set module\.model\.audio_matching=true"),
    "avtm": ({"audio_visual_matching": False}, r"head, .*: set module\.model\.audio_visual_matching=true"),
    "uta": ({"decoders": False}, r"clip_decoders, .*: give module\.model\.clip_decoders"),
}


@pytest.mark.parametrize("name", LACKING)
def test_a_term_without_its_part_is_refused(name):
    options, message = LACKING[name]
    with pytest.raises(InputError, match=rf"terms\.{name} needs .*{message}"):
        make(make_model(**{"sound": True, "decoders": True} | options), terms={"vtc": 1.0, name: 1.0})
    make(make_model(**{"sound": True} | options), terms={"vtc": 1.0, name: 0.0})


def test_alignment_without_a_teacher_is_refused():
    with pytest.raises(InputError, match=r"terms\.uta needs a teacher"):
        make(make_model(decoders=True), terms={"uta": 1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"taps": (1, 2)}, "clip_decoders are 1 for 2 taps of the teacher"),
        ({"num_prefix": 0}, r"differ in the CLS token: build them with cls_token=false"),
    ],
    ids=str,
)
def test_a_teacher_that_cannot_be_compared_is_refused(change, message):
    teacher = make_teacher()
    for name, value in change.items():
        setattr(teacher, name, value)
    with pytest.raises(InputError, match=message):
        make(make_model(decoders=True), terms={"uta": 1.0}, teacher=teacher)


def test_the_teacher_is_no_part_of_the_module():
    module = hearing({"uta": 1.0})
    assert not [name for name in module.state_dict() if not name.startswith("model.")]
    step(module, whole("video"))[0].backward()
    assert any(name.startswith("clip_decoders.") for name in gradients(module))


def test_a_teacher_without_its_term_is_not_asked():
    found = hearing({"vtc": 1.0}).encode(batch()), hearing({"uta": 1.0}).encode(batch())
    assert [len(each.video.intermediates) for each in found] == [0, 1]


MIXED = {"train.web": "video", "train.sounds": "audio"}


@pytest.mark.parametrize(
    ("terms", "media", "kinds", "message"),
    [
        ({"vtc": 1}, MIXED, {}, r"datamodule\.train\.sounds: none of the terms \(vtc\) can be computed of audio"),
        ({"vtc": 1, "atc": 1}, {"train.web": "video"}, {}, r"terms\.atc needs sources with audio.*train\.web: video"),
        ({"vtc": 1, "avc": 1, "atc": 1}, MIXED, {}, r"terms\.avc needs sources with audio and video"),
        (
            {"vtc": {"caption": "fused"}}, {"train.web": "video"}, {"train.web": ("speech",)},
            r"terms\.vtc\.caption=fused: train\.web is not asked .*add fused to datamodule\.train\.web\.caption_kinds",
        ),
        ({"vtc": {"caption": "fused"}}, {"train.web": "video", "train.cc": "image"}, {}, r"train\.web is not asked"),
        (
            {"vtc": {"caption": "fused"}}, {"train.web": "video", "train.iv": "audio_video"},
            {"train.web": ("video",), "train.iv": ("fused",)}, r"train\.web is not asked",
        ),
    ],
)  # fmt: skip
def test_data_that_cannot_serve_the_terms_is_refused(terms, media, kinds, message):
    module = hearing(terms)
    module._trainer = trainer(media, kinds)
    with pytest.raises(InputError, match=message):
        module.setup("fit")
    for stage in ("validate", "test"):
        module.setup(stage)


def test_sources_without_kinds_may_stand_beside_one_that_delivers_them():
    module = hearing({"vtc": {"caption": "fused"}, "atc": {"caption": "fused"}, "avc": 1.0})
    media = {"train.cc": "image", "train.iv": "audio_video", "train.caps": "audio", "val.esc": "audio"}
    module._trainer = trainer(media, {"train.iv": ("fused", "video"), "train.cc": ()})
    module.setup("fit")
    assert module.vocabulary == VOCABULARY


def test_sigmoid_contrast_judges_every_pair():
    module = make(make_model(logit_bias=-3.0), terms={"vtc": 1.0}, contrast=Contrast(form="sigmoid"))
    data = batch(sample_id=[1, 2, 1, 3])
    encoded = module.encode(data)
    logits = encoded.features["video"] @ encoded.textual[None].T / module.model.temperature - 3.0
    expected = 0.0
    for row, own in enumerate([1, 2, 1, 3]):
        for column, other in enumerate([1, 2, 1, 3]):
            expected -= logsigmoid(logits[row, column] * (1 if own == other else -1)).item() / 4
    loss = module.training_step(data, 0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert module.model.logit_bias.grad.item() != 0


@pytest.mark.parametrize(
    ("bias", "contrast", "message"),
    [
        (None, {"form": "sigmoid"}, r"needs a learned bias: set module\.model\.logit_bias=-10"),
        (-10.0, {}, r"no use for module\.model\.logit_bias"),
    ],
)
def test_a_bias_must_fit_the_form_of_contrast(bias, contrast, message):
    with pytest.raises(InputError, match=message):
        make(make_model(logit_bias=bias), contrast=Contrast(**contrast))
    make(make_model(logit_bias=bias), contrast=Contrast(**contrast), terms={"mlm": 1.0})
