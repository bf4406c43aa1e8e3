import pytest
import torch
import transformers

from ivt2.errors import InputError
from ivt2.models.bert import Bert, FusionLayer, TextLayer, fusion_attention, padding_bias
from tests.golden.bert import rename_bert

CONFIG = {
    "vocab_size": 61,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 4,
    "mlp_dim": 40,
    "max_positions": 10,
    "fusion_layer": 2,
    "encoder_width": 12,
}


def build(**changes) -> Bert:
    torch.manual_seed(0)
    return Bert(**CONFIG | changes)


def perturb(module):
    """Make every parameter differ from its initial value, or biases and norms would go untested."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module


@pytest.fixture
def text():
    input_ids = torch.tensor([[1, 5, 9, 33, 60, 2], [1, 7, 2, 0, 0, 0]])
    return input_ids, input_ids != 0


@pytest.fixture
def vision():
    return torch.randn(2, 5, CONFIG["encoder_width"], generator=torch.Generator().manual_seed(2))


def load_hugging_face(judge) -> dict[str, torch.Tensor]:
    return {rename_bert(name): parameter.detach() for name, parameter in judge.named_parameters()}


def judge_config():
    return transformers.BertConfig(
        vocab_size=61,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=10,
    )


def test_text_agrees_with_transformers(text):
    judge = perturb(transformers.BertModel(judge_config())).eval()
    bert = build(fusion_layer=3, pooler=True, masked_lm=False).eval()
    bert.load_state_dict(load_hugging_face(judge))
    input_ids, valid = text
    token_types = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0]])
    expected = judge(input_ids, attention_mask=valid.long(), token_type_ids=token_types)
    actual = bert.encode_text(input_ids, valid, token_types)
    torch.testing.assert_close(actual[valid], expected.last_hidden_state[valid], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bert.pool(actual), expected.pooler_output, atol=1e-5, rtol=1e-5)


def test_logits_and_gradients_agree_with_transformers(text):
    judge = perturb(transformers.BertForMaskedLM(judge_config())).eval()
    bert = build(fusion_layer=3).eval()
    bert.load_state_dict(load_hugging_face(judge))
    input_ids, valid = text
    expected = judge(input_ids, attention_mask=valid.long()).logits
    actual = bert.predict_tokens(bert.encode_text(input_ids, valid))
    torch.testing.assert_close(actual[valid], expected[valid], atol=1e-5, rtol=1e-5)
    weights = torch.randn(expected[valid].shape, generator=torch.Generator().manual_seed(3))
    (expected[valid] * weights).sum().backward()
    (actual[valid] * weights).sum().backward()
    # The word matrix is reached as an embedding and as the decoder.
    expected_gradient = judge.bert.embeddings.word_embeddings.weight.grad
    torch.testing.assert_close(bert.embedding.word.weight.grad, expected_gradient, atol=1e-4, rtol=1e-4)


def test_only_layers_from_fusion_layer_have_cross_attention():
    assert [type(layer) for layer in build().layers] == [TextLayer, TextLayer, FusionLayer]
    assert build().layers[2].cross_attention.key.in_features == CONFIG["encoder_width"]


def test_forward_is_text_then_fusion(text, vision):
    bert = perturb(build()).eval()
    input_ids, valid = text
    vision_valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    fused = bert.fuse(bert.encode_text(input_ids, valid), valid, vision, vision_valid)
    torch.testing.assert_close(bert(input_ids, valid, vision, vision_valid), fused, atol=0, rtol=0)


def test_padding_changes_nothing(text, vision):
    bert = perturb(build()).eval()
    input_ids, valid = text
    short = bert(input_ids[1:, :3], None, vision[1:, :3])
    changed = vision.clone()
    changed[1, 3:] = 1e3
    vision_valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    long = bert(input_ids, valid, changed, vision_valid)[1:, :3]
    torch.testing.assert_close(long, short, atol=1e-6, rtol=1e-5)


def test_vision_matters_only_in_fusion(text, vision):
    bert = perturb(build()).eval()
    input_ids, valid = text
    first = bert(input_ids, valid, vision)
    assert (first - bert(input_ids, valid, vision.flip(1))).abs().max() < 1e-5  # a set of tokens, without order
    assert (first - bert(input_ids, valid, vision + 1)).abs().max() > 1e-3
    text_only = perturb(build(fusion_layer=3)).eval()
    tokens = text_only.encode_text(input_ids, valid)
    assert text_only.fuse(tokens, valid, vision) is tokens


def test_fusion_attention_is_what_the_layer_uses(text, vision):
    bert = perturb(build(depth=4)).eval()
    input_ids, valid = text
    vision_valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    maps = fusion_attention(bert, bert.encode_text(input_ids, valid), valid, vision, vision_valid)
    assert len(maps) == 2
    for attention in maps:
        torch.testing.assert_close(attention.text.sum(-1), torch.ones(2, 4, 6))
        torch.testing.assert_close(attention.vision.sum(-1), torch.ones(2, 4, 6))
        assert attention.text[1, :, :, 3:].max() == 0
        assert attention.vision[1, :, :, 3:].max() == 0
    # Values weighted by the last map and sent through the rest of the layer give the layer's result.
    layer = bert.layers[3]
    tokens = layer.self_attention(*(bert.layers[2](bert.encode_text(*text), valid, vision, vision_valid),) * 2, valid)
    cross = layer.cross_attention
    values = cross.value(vision).view(2, 5, 4, 6).transpose(1, 2)
    mixed = (maps[1].vision @ values).transpose(1, 2).flatten(2)
    expected = layer.feed_forward(cross.norm(cross.output(mixed) + tokens))
    torch.testing.assert_close(bert(*text, vision, vision_valid), expected, atol=1e-5, rtol=1e-5)


def test_padding_bias_values():
    valid = torch.tensor([[True, False]])
    assert padding_bias(valid, -10000.0, torch.float32).tolist() == [[[[0.0, -10000.0]]]]
    least = padding_bias(valid, None, torch.bfloat16)
    assert least.dtype == torch.bfloat16
    assert least[0, 0, 0, 1] == torch.finfo(torch.bfloat16).min
    assert padding_bias(None, None, torch.float32) is None


def test_autocast_keeps_padded_rows_finite(text, vision):
    bert = perturb(build()).eval()
    input_ids, _ = text
    nothing = torch.zeros(2, 6, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        fused = bert(input_ids, nothing, vision, torch.zeros(2, 5, dtype=torch.bool))
    assert fused.isfinite().all()


def test_checkpointing_changes_neither_result_nor_gradient(text, vision):
    results = []
    for checkpointing in (False, True):
        bert = perturb(build(checkpointing=checkpointing)).train()
        torch.manual_seed(5)  # dropout, which the second forward pass must repeat
        tokens = bert(*text, vision)
        tokens.square().sum().backward()
        results.append((tokens.detach(), [p.grad for p in bert.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[1], results[0], atol=0, rtol=0)


def test_checkpointing_keeps_fewer_activations(text, vision):
    saved = {}
    for checkpointing in (False, True):
        count = 0

        def pack(tensor):
            nonlocal count
            count += 1
            return tensor

        bert = build(checkpointing=checkpointing).train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            bert(*text, vision)
        saved[checkpointing] = count
    assert saved[True] < saved[False] / 2


def test_dropout_acts_in_training_only(text, vision):
    bert = build()
    assert not torch.equal(bert.train()(*text, vision), bert(*text, vision))
    assert torch.equal(bert.eval()(*text, vision), bert(*text, vision))
    without = build(dropout=0.0, attention_dropout=0.0).train()
    assert torch.equal(without(*text, vision), without(*text, vision))
    attention_only = build(dropout=0.0, attention_dropout=0.5).train()
    assert not torch.equal(attention_only(*text, vision), attention_only(*text, vision))


def test_initial_weights():
    bert = build(vocab_size=3000, embed_dim=64, pooler=True)
    assert bert.embedding.word.weight[1:].std().item() == pytest.approx(0.02, rel=0.02)
    assert bert.layers[2].cross_attention.key.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert bert.embedding.word.weight[0].abs().max() == 0
    for name, parameter in bert.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0, name
        if "norm.weight" in name:
            assert (parameter == 1).all(), name


def test_decoder_is_the_word_matrix(text):
    bert = build()
    assert not any("decoder" in name for name, _ in bert.named_parameters())
    tokens = torch.randn(3, 24)
    logits = bert.predict_tokens(tokens)
    head = bert.masked_lm_head
    hidden = head.norm(torch.nn.functional.gelu(head.dense(tokens)))
    torch.testing.assert_close(logits, hidden @ bert.embedding.word.weight.T + head.bias, atol=1e-6, rtol=1e-5)


def test_padding_vector_gets_no_gradient_as_input(text):
    bert = build(masked_lm=False)
    bert.encode_text(*text).square().sum().backward()
    assert bert.embedding.word.weight.grad[0].abs().max() == 0
    assert bert.embedding.word.weight.grad[5].abs().max() > 0


def test_empty_batch(vision):
    bert = build().eval()
    fused = bert(torch.zeros(0, 6, dtype=torch.int64), torch.zeros(0, 6, dtype=torch.bool), vision[:0])
    assert fused.shape == (0, 6, 24)


def test_optional_heads_are_absent_unless_asked_for(text):
    bert = build(masked_lm=False)
    assert not any(name.startswith(("pooler", "masked_lm_head")) for name in bert.state_dict())
    with pytest.raises(RuntimeError, match="masked_lm=True"):
        bert.predict_tokens(torch.zeros(1, 24))
    with pytest.raises(RuntimeError, match="pooler=True"):
        bert.pool(torch.zeros(1, 2, 24))


def test_bad_input_is_named():
    with pytest.raises(InputError, match="num_heads=5 does not divide embed_dim=24"):
        build(num_heads=5)
    with pytest.raises(InputError, match="fusion_layer=4"):
        build(fusion_layer=4)
    with pytest.raises(InputError, match="11 tokens exceeds max_positions=10"):
        build().encode_text(torch.ones(1, 11, dtype=torch.int64))
