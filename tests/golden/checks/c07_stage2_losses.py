"""Stage-2 criteria: similarity, contrastive and matching losses with their negatives, feature alignment."""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ivt2.losses.contrastive import contrastive_loss, contrastive_targets
from ivt2.losses.feature_alignment import feature_alignment_loss, two_level_alignment_loss
from ivt2.losses.matching import Negatives, admissible_negatives, matching_loss, matching_pairs, negative_weights
from ivt2.ops.similarity import cosine_similarity
from tests.golden.bert import build_bert, rename_bert, untie
from tests.golden.case import Case

POOLED_STUDENT_TOKENS = 3
"""The recorded case of unequal lengths compares the first three tokens of the student with all of the teacher."""


class Matcher(nn.Module):
    """Fusion layers and head, as the recorded matching loss uses them."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        config = case.config["bert"]
        self.bert = build_bert(config, masked_lm=False)
        self.head = nn.Linear(config["hidden_size"], 2)
        state = {rename_bert(name): value for name, value in untie(case.state("bert")).items()}
        self.bert.load_state_dict(state)
        self.head.load_state_dict(case.state("vtm_head"))
        self.eval()

    def loss(self, case: Case, negatives: Negatives) -> Tensor:
        inputs = case.inputs
        pairs = matching_pairs(negatives)
        text, valid = inputs["text_embeds"][pairs.text], inputs["text_atts"][pairs.text].bool()
        fused = self.bert.fuse(text, valid, self.bert.project(inputs["vision_embeds"]), pairs.vision)
        total, count = matching_loss(self.head(fused[:, 0]), pairs.label)
        return total / count


def check(case: Case) -> None:
    results: dict[str, Tensor] = {}
    for part in (_similarities, _contrastive, _matching, _random_negatives, _alignment):
        results |= part(case)
    assert results.keys() == case.outputs.keys()
    for name, value in results.items():
        case.close(name, value)


def _ids(case: Case, kind: str) -> Tensor | None:
    return case.inputs.get(f"idx_{kind}")


def _similarities(case: Case) -> dict[str, Tensor]:
    vision, text, temperature = (case.inputs[name] for name in ("vision_proj", "text_proj", "temp"))
    vision3d, text3d = case.inputs["vision_proj3d"], case.inputs["text_proj3d"]
    found = {
        "sim": cosine_similarity(vision, text),
        "sim3d_mean": cosine_similarity(vision3d, text, parts="mean"),
        "sim3d_max": cosine_similarity(vision3d, text, parts="max"),
        "simtext3d_mean": cosine_similarity(vision, text3d, parts="mean"),
        "simtext3d_max": cosine_similarity(vision, text3d, parts="max"),
    }
    results = {}
    for name, similarity in found.items():
        kind, _, parts = name.partition("_")
        suffix = f"_{parts}" if parts else ""
        results[f"{kind}_v2t{suffix}"] = similarity / temperature
        results[f"{kind}_t2v{suffix}"] = similarity.T / temperature
    return results


def _contrastive(case: Case) -> dict[str, Tensor]:
    inputs = case.inputs
    results = {"mask_dup_norm": contrastive_targets(inputs["idx_dup"], len(inputs["idx_dup"]))}
    for kind in ("unique", "dup", "none"):
        vision, text, temperature = (
            inputs[name].clone().requires_grad_() for name in ("vision_proj", "text_proj", "temp")
        )
        loss = contrastive_loss(vision, text, temperature, _ids(case, kind))
        loss.backward()
        results[f"vtc_{kind}"] = loss
        results[f"vtc_{kind}_grad_vision_proj"] = vision.grad
        results[f"vtc_{kind}_grad_text_proj"] = text.grad
        results[f"vtc_{kind}_grad_temp"] = temperature.grad
    for parts in ("mean", "max"):
        results[f"vtc_3d_{parts}"] = contrastive_loss(
            inputs["vision_proj3d"], inputs["text_proj"], inputs["temp"], inputs["idx_dup"], parts=parts
        )
    return results


def _matching(case: Case) -> dict[str, Tensor]:
    inputs = case.inputs
    matcher = Matcher(case)
    similarity = cosine_similarity(inputs["vision_proj"], inputs["text_proj"]) / inputs["temp"]
    every = torch.ones(len(similarity), dtype=torch.bool)
    fixed = Negatives(inputs["vision_neg"], inputs["text_neg"], every)
    results = {}
    for kind in ("unique", "dup", "none"):
        results[f"vtm_{kind}_weights_t2v"] = negative_weights(similarity.T, _ids(case, kind))
        results[f"vtm_{kind}_weights_v2t"] = negative_weights(similarity, _ids(case, kind))
        matcher.zero_grad()
        loss = matcher.loss(case, fixed)
        loss.backward()
        results[f"vtm_{kind}_loss_fixed_negatives"] = loss
        if kind == "dup":
            results["vtm_dup_head_grad_weight"] = matcher.head.weight.grad.clone()
            results["vtm_dup_head_grad_bias"] = matcher.head.bias.grad.clone()
    torch.manual_seed(0)
    vision, text = (torch.multinomial(results[f"vtm_dup_weights_{way}"], 1)[:, 0] for way in ("t2v", "v2t"))
    results["vtm_dup_loss_multinomial_seed0"] = matcher.loss(case, Negatives(vision, text, every))
    return results


def _random_negatives(case: Case) -> dict[str, Tensor]:
    """The reference orders admissible columns by a normal draw and takes the first ones."""
    ids = case.inputs["idx_dup"]
    admissible = admissible_negatives(ids, len(ids))
    torch.manual_seed(0)
    order = torch.randn(admissible.shape).masked_fill(~admissible, -torch.inf).argsort(dim=1, descending=True)
    name = "rand_indices_seed0"
    return {name: order[:, : case.outputs[name].shape[1]]}


def _alignment(case: Case) -> dict[str, Tensor]:
    student, teacher = case.inputs["student"], case.inputs["teacher"]
    clips = (student[0], teacher[0])
    unequal = tuple(x.mean(dim=1, keepdim=True) for x in (student[0][:, :POOLED_STUDENT_TOKENS], teacher[0]))
    texts = (student[1][:, 0], teacher[1][:, 0])
    results = {}
    for name in case.outputs:
        options = re.fullmatch(r"uta(_vision|_vision_diffT|_all)?_(l2|none)_(l2|mse|smooth_l1)", name)
        if options is None:
            continue

        def loss(pair: tuple[Tensor, Tensor], options: re.Match = options) -> Tensor:
            return feature_alignment_loss(*pair, distance=options[3], normalize=options[2] == "l2")

        entry: dict[str | None, Callable[[], Tensor]] = {
            None: lambda: loss((student, teacher)),
            "_vision": lambda: loss(clips),
            "_vision_diffT": lambda: loss(unequal),
            "_all": lambda: (loss(clips) + loss(texts)) / 2,
        }
        results[name] = entry[options[1]]()
    return results | _two_levels(case)


def _two_levels(case: Case) -> dict[str, Tensor]:
    def pair(suffix: str) -> tuple[Tensor, Tensor]:
        return tuple(normalize(case.inputs[f"{who}{suffix}"], dim=-1) for who in ("student", "teacher"))

    middle, final = pair(""), pair("_final")
    results = {"new_uta_nofinal": two_level_alignment_loss(middle, None)}
    for name in case.outputs:
        ratios = re.fullmatch(r"new_uta_([\d.]+)_([\d.]+)", name)
        if ratios:
            results[name] = two_level_alignment_loss(middle, final, ratios=(float(ratios[1]), float(ratios[2])))
    # Reference: without the final term the result has shape [1].
    return {name: value.reshape(case.outputs[name].shape) for name, value in results.items()}
