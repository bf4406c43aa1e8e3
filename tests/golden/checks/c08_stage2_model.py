"""The whole stage-2 visual model: features, zero-shot retrieval with re-ranking, and one training step."""

import re
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from ivt2.batch import Vocabulary
from ivt2.losses.masked_lm import IGNORED
from ivt2.losses.matching import Negatives, negative_weights
from ivt2.metrics.retrieval import REFERENCE_FILL, dual_softmax, rerank, retrieval_metrics, retrieval_targets
from ivt2.models.stage2 import EncodedText, Stage2Model
from ivt2.modules.stage2 import Stage2Module
from ivt2.modules.stage2_encoding import Corruption
from tests.golden.bert import build_bert, rename_bert, untie
from tests.golden.case import Case, under
from tests.golden.internvideo2 import (
    CLIP_DECODERS,
    PUBLISHED,
    build_clip_decoders,
    build_encoder,
    rename,
    rename_aligning,
)
from tests.golden.teachers import build_internvl

TEACHER = "clip_teacher."
RERANK_ALL = 128
UNSCORED_METRICS = "match"
"""With few candidates the recorded match metrics depend on how a sort breaks exact ties; the matrices are compared."""


class Recorded(nn.Module):
    """Our networks with the recorded weights."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        config, state = case.config, untie(case.state("stage2"), "text_encoder.")
        vision = PUBLISHED | config["vision"]
        encoder = build_encoder(vision)
        self.model = Stage2Model(
            encoder,
            build_bert(config["bert"]),
            contrastive_dim=config["embed_dim"],
            temperature=config["temp"],
            clip_decoders=build_clip_decoders(vision, encoder),
        )
        # As many blocks of the teacher as of the student.
        sizes = {"img_size": config["clip_res"], "clip_return_layer": vision["clip_return_layer"]}
        self.teacher = build_internvl(sizes | config["teacher"], under(state, TEACHER))
        ours = {locate(name): value for name, value in state.items() if not name.startswith(TEACHER)}
        ours["temperature"] = ours["temperature"].reshape(1)
        self.model.load_state_dict(ours)
        self.eval()


def locate(name: str) -> str:
    """Our name, inside ``Stage2Model``, of a reference parameter."""
    local = name.removeprefix("vision_encoder.")
    if local != name and local.startswith(CLIP_DECODERS):
        return f"clip_decoders.{rename_aligning(local)}"
    if name.startswith("text_encoder."):
        return f"text_encoder.{rename_bert(name.removeprefix('text_encoder.'))}"
    renamed = {"temp": "temperature", "itm_head.weight": "matching_head.weight", "itm_head.bias": "matching_head.bias"}
    return rename(renamed.get(name, name))


def tokenize(texts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """The recorded stand-in for a tokenizer: "i j k" becomes [1, i, j, k, 2], padded with 0."""
    rows = [[1, *[int(word) for word in text.split()][: length - 2], 2] for text in texts]
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return ids, ids != 0


def check(case: Case) -> None:
    recorded = Recorded(case)
    results = encode(case, recorded.model) | retrieve(case, recorded.model)
    for kind, video in (("video", case.inputs["videos"]), ("image", case.inputs["train_images"])):
        results |= {f"train_{kind}_{name}": value for name, value in train(case, recorded, kind, video).items()}
    assert results.keys() == case.outputs.keys()
    for name, value in results.items():
        exact = not case.outputs[name].is_floating_point()
        tolerance = {"atol": 1e-6, "rtol": 6e-4} if name.endswith("gradnorms") else {"atol": 2e-5}
        case.close(name, value, **({"atol": 0, "rtol": 0} if exact else tolerance))


@torch.no_grad()
def encode(case: Case, model: Stage2Model) -> dict[str, Tensor]:
    """Features of clips, images and captions, and the demo's label prediction."""
    inputs, outputs = case.inputs, case.outputs
    text = model.encode_text(*tokenize(case.config["texts"], case.config["max_txt_l"]))
    videos = model.encode_video(inputs["videos"])
    images = model.encode_video(inputs["images"])
    textual, visual = model.embed_text(text), model.embed_video(videos)
    results = {
        "txt_feat": textual,
        "enc_text_embeds": _with_padding(model, case),
        "enc_text_pooled": text.pooled,
        "vid_feat_all": visual,
    }
    for kind, encoded in (("video", videos), ("image", images)):
        num = len(outputs[f"enc_{kind}_embeds"])
        results |= {
            f"enc_{kind}_embeds": encoded.tokens[:num],
            f"enc_{kind}_pooled": encoded.pooled[:num],
            f"vid_feat_{kind}": model.embed_video(encoded)[:num],
        }
    probabilities = (100 * visual[: len(outputs["predict_probs"])] @ textual.T).softmax(dim=-1)
    best = probabilities.topk(outputs["predict_probs"].shape[1])
    return results | {"predict_probs": best.values, "predict_idx": best.indices}


def _with_padding(model: Stage2Model, case: Case) -> Tensor:
    """Token states as recorded, for padding too, which we otherwise leave out."""
    model.text_encoder.packed = False
    text = model.encode_text(*tokenize(case.config["texts"], case.config["max_txt_l"]))
    model.text_encoder.packed = True
    return text.tokens


@torch.no_grad()
def retrieve(case: Case, model: Stage2Model) -> dict[str, Tensor]:
    """The six score matrices of each recorded protocol, and their metrics."""
    text = model.encode_text(*tokenize(case.config["texts"], case.config["max_txt_l"]))
    encoded = model.encode_video(case.inputs["videos"])
    similarity = model.embed_video(encoded) @ model.embed_text(text).T
    dual = dual_softmax(similarity, dim=0), dual_softmax(similarity.T, dim=0)

    def score(clip: Tensor, caption: Tensor) -> Tensor:
        pairs = EncodedText(text.tokens[caption], text.valid[caption])
        return model.match(pairs, encoded.tokens[clip])[:, 1]

    results = {}
    for protocol in {name.rsplit("_", 2)[0] for name in case.outputs if name.startswith("eval_")}:
        number, by_dual = re.fullmatch(r"eval_k(\d+)(_dslmatch)?", protocol).groups()
        choose = dual if by_dual else (similarity, similarity.T)
        match = rerank(choose[0], int(number), score, similarity_t2v=choose[1], fill=REFERENCE_FILL)
        scores = {"sim": (similarity, similarity.T), "dsl": dual, "match": match}
        for name, (i2t, t2i) in scores.items():
            results[f"{protocol}_i2t_{name}"] = i2t.softmax(dim=1)
            results[f"{protocol}_t2i_{name}"] = t2i.softmax(dim=1)
        compare_metrics(case, protocol.replace("eval", "metrics"), scores, complete=int(number) >= RERANK_ALL)
    return results


def compare_metrics(case: Case, key: str, scores: dict[str, tuple[Tensor, Tensor]], *, complete: bool) -> None:
    clip_of_caption = torch.tensor([case.json["txt2img"][str(row)] for row in range(len(case.config["texts"]))])
    targets = retrieval_targets(clip_of_caption, case.config["nv"])
    for name, (v2t, t2v) in scores.items():
        if name == UNSCORED_METRICS and not complete:
            continue
        ours = retrieval_metrics(v2t, targets, scores_t2v=t2v)
        for metric, value in case.json[key][f"x_{name}"].items():
            assert abs(ours[metric] - value) < 0.006, (
                f"{case.name}/{key}/{name}/{metric}: {ours[metric]}, recorded {value}"
            )


def train(case: Case, recorded: Recorded, kind: str, video: Tensor) -> dict[str, Tensor]:
    """One training step of the module with the recorded random choices: mask, negatives, masked words."""
    model, prefix = recorded.model, f"train_{kind}_"
    outputs = {name.removeprefix(prefix): value for name, value in case.outputs.items() if name.startswith(prefix)}
    assert not outputs["mask"][:, 0].any(), "the CLS token is never hidden"
    masked, labels = outputs["mask"][:, 1:], outputs["mlm_labels"]
    ids, valid = tokenize(case.config["texts"][: len(video)], case.config["max_txt_l"])
    assert torch.equal(torch.where(labels == IGNORED, ids, labels), ids)
    batch = {
        "video": video, "input_ids": ids, "valid": valid, "sample_id": case.inputs["idx"], "medium": kind,
        "seed": torch.zeros(len(video), dtype=torch.int64),
    }  # fmt: skip
    every = torch.ones(len(video), dtype=torch.bool)
    negatives = Negatives(outputs["vision_neg"][:, 0], outputs["text_neg"][:, 0], every)
    terms = dict.fromkeys(("uta", "vtc", "vtm", "mlm"), 1.0)
    module = Stage2Module(
        model, optimizer=SGD, schedule=LambdaLR, terms=terms, mask_ratio={}, teacher=recorded.teacher
    )  # fmt: skip
    module.vocabulary = Vocabulary(size=0, pad_id=0, unk_id=0, cls_id=0, sep_id=0, mask_id=0)
    losses: dict[str, Tensor] = {}
    recorded.zero_grad()
    with (
        patch.object(module, "log", lambda name, value, **_: losses.update({name.removeprefix("train/"): value})),
        patch.object(module, "_draw_mask", lambda *_: masked),
        patch("ivt2.modules.stage2.corrupt", lambda *_, **__: {None: Corruption(outputs["mlm_ids"], labels)}),
        patch("ivt2.modules.stage2_fusion.hard_negatives", lambda *_, **__: negatives),
    ):
        total = module.training_step(batch, 0)
        encoded = module.encode(batch)
    total.backward()
    gradients = dict(model.named_parameters())
    # The teacher's parameters are listed, and have none.
    norms = [None if name.startswith(TEACHER) else gradients[locate(name)].grad for name in case.json["param_order"]]
    with torch.no_grad():
        similarity = encoded.features["video"] @ encoded.textual[None].T / model.temperature
    losses.pop("loss")
    return losses | {
        "total": total,
        "gradnorms": torch.stack([torch.zeros(()) if grad is None else grad.norm() for grad in norms]),
        "teacher_attn": recorded.teacher(video).attention,
        "vtm_weights_v2t": negative_weights(similarity, case.inputs["idx"]),
        "vtm_weights_t2v": negative_weights(similarity.T, case.inputs["idx"]),
        # Choices, not results: the step above was made with them.
        **{name: outputs[name] for name in ("mask", "vision_neg", "text_neg", "mlm_ids", "mlm_labels")},
    }
