"""BERT with fusion layers: token states, attention maps, pooler, masked language modelling.

Sub-models: ``mlm`` (all layers and the head) and ``pooled`` (text layers and a pooler).
"""

import re

import torch
from torch import Tensor

from ivt2.losses.masked_lm import MaskDraws, mask_tokens, masked_lm_loss
from ivt2.models.bert import Bert, fusion_attention
from ivt2.models.bert_layers import FusionLayer, Layout
from tests.golden.bert import build_bert, rename_bert, untie
from tests.golden.case import Case


def load(case: Case, model: str, *, packed: bool = False) -> Bert:
    state = {rename_bert(name): value for name, value in untie(case.state(model)).items()}
    fusion = any(".cross_attention." in name for name in state)
    bert = build_bert(
        case.config,
        fusion_layer=None if fusion else case.config["fusion_layer"],
        pooler="pooler.weight" in state,
        masked_lm="masked_lm_head.bias" in state,
        packed=packed,
    )
    bert.load_state_dict(state)
    return bert


def special_ids(case: Case) -> dict[str, int]:
    note = next(note for note in case.record["notes"] if note.startswith("special ids"))
    return {name: int(number) for name, number in re.findall(r"(pad|cls|sep|mask) (\d+)", note)}


def reference_draws(seed: int, shape: torch.Size, vocab_size: int) -> MaskDraws:
    """The reference's draws, in its order, as uniform ones with the same outcome."""
    torch.manual_seed(seed)
    outcomes = [torch.bernoulli(torch.full(shape, probability)) for probability in (0.5, 0.8, 0.5)]
    random_ids = torch.randint(vocab_size, shape)
    return MaskDraws(*(1 - outcome for outcome in outcomes), (random_ids + 0.5) / vocab_size)


def check(case: Case) -> None:
    assert case.config["hidden_act"] == "gelu"
    assert case.config["cross_module"] == "ca"
    checked: set[str] = set()

    def close(name: str, actual: Tensor, **tolerance: float) -> None:
        case.close(name, actual, **tolerance)
        checked.add(name)

    bert = load(case, "mlm")
    assert bert.fusion_layer == case.config["fusion_layer"]
    assert len(bert.layers) == case.config["num_hidden_layers"]
    assert all(isinstance(layer, FusionLayer) for layer in bert.layers[bert.fusion_layer :])
    inputs = case.inputs
    ids, vision = inputs["input_ids"], inputs["vision_embeds"]
    valid, vision_valid = inputs["attention_mask"].bool(), inputs["vision_atts"].bool()

    with torch.no_grad():
        text = bert.encode_text(ids, valid)
        seen = bert.project(vision, vision_valid)
        close("text_last", text)
        close("text_last_noattmask", bert.encode_text(ids))
        close("embeddings", bert.embedding(ids))
        close("embeddings_typed", bert.embedding(ids, inputs["token_type_ids"]))
        states = [bert.embedding(ids)]
        layout = Layout(*valid.shape, valid=valid)
        for layer in bert.layers[: bert.fusion_layer]:
            states.append(layout.spread(layer(layout.collect(states[-1]), layout)))
        close("text_hidden_states", torch.stack(states))
        close("fusion_last", bert.fuse(text, valid, seen))
        close("fusion_last_novatt", bert.fuse(text, valid, bert.project(vision)))
        close("multimodal_last", bert(ids, valid, vision, vision_valid))
        first = fusion_attention(bert, text, valid, seen)[0]
        close("fusion_self_attn_first", first.text)
        close("fusion_cross_attn_first", first.vision)
        pooled = load(case, "pooled")
        close("pooler", pooled.pool(pooled.encode_text(ids, valid)))
        packed = load(case, "mlm", packed=True)(ids, valid, vision, vision_valid)
    torch.testing.assert_close(packed[valid], case.outputs["multimodal_last"][valid], atol=1e-5, rtol=1e-4)

    # Without gradient in the text layers, as recorded.
    logits = bert.predict_tokens(bert.fuse(text, valid, bert.project(vision, vision_valid)))
    close("mlm_logits", logits)
    total, count = masked_lm_loss(logits, inputs["labels"])
    close("mlm_loss", total / count)
    (total / count).backward()
    parameters = dict(bert.named_parameters())
    gradients = [parameters[rename_bert(name)].grad for name in case.json["param_order"]]
    assert {rename_bert(name) for name in case.json["param_order"]} == set(parameters)
    norms = torch.stack([torch.zeros(()) if grad is None else grad.norm() for grad in gradients])
    close("mlm_gradnorms", norms, atol=1e-6, rtol=2e-4)

    check_masked_lm(case, bert, close)
    assert checked == set(case.outputs), f"not compared: {set(case.outputs) - checked}"


def check_masked_lm(case: Case, bert: Bert, close) -> None:
    inputs, special = case.inputs, special_ids(case)
    ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
    for name in case.outputs:
        if (match := re.fullmatch(r"mlmloss_value_seed(\d+)(_visatts_None)?", name)) is None:
            continue
        seed, without_vision_mask = match.groups()
        corrupted, labels = mask_tokens(
            ids,
            reference_draws(int(seed), ids.shape, bert.vocab_size),
            vocab_size=bert.vocab_size,
            mask_id=special["mask"],
            pad_id=special["pad"],
            cls_id=special["cls"],
        )
        for kind, actual in (("masked_ids", corrupted), ("labels", labels)):
            recorded = f"mlmloss_{kind}_seed{seed}"
            if recorded in case.outputs:
                close(recorded, actual, atol=0, rtol=0)
        vision_valid = None if without_vision_mask else inputs["vision_atts"].bool()
        with torch.no_grad():
            fused = bert(corrupted, valid, inputs["vision_embeds"], vision_valid)
            total, count = masked_lm_loss(bert.predict_tokens(fused), labels)
        close(name, total / count)
