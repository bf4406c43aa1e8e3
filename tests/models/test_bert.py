import pytest
import torch
import transformers

from ivt2.errors import InputError
from ivt2.models.bert import Bert, fusion_attention, join_contexts
from ivt2.models.bert_layers import FusionLayer, TextLayer
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
    fused = bert.fuse(bert.encode_text(input_ids, valid), valid, bert.project(vision, vision_valid))
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
    assert torch.equal(text_only.fuse(tokens, valid, text_only.project(vision)), tokens)
    assert torch.equal(text_only.fuse_at(tokens, valid, text_only.project(vision), None, valid), tokens[valid])


def test_fusion_attention_is_what_the_layer_uses(text, vision):
    bert = perturb(build(depth=4)).eval()
    input_ids, valid = text
    vision_valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    seen = bert.project(vision, vision_valid)
    maps = fusion_attention(bert, bert.encode_text(input_ids, valid), valid, seen)
    assert len(maps) == 2
    for attention in maps:
        torch.testing.assert_close(attention.text.sum(-1), torch.ones(2, 4, 6))
        torch.testing.assert_close(attention.vision.sum(-1), torch.ones(2, 4, 6))
        assert attention.text[1, :, :, 3:].max() == 0
        assert attention.vision[1, :, :, 3:].max() == 0
    # Values weighted by the maps and sent through the rest of the layer give the layer's result.
    tokens = bert.encode_text(input_ids, valid)
    for layer, attention in zip(bert.layers[2:], maps, strict=True):
        for part, weights, asked in (
            (layer.self_attention, attention.text, tokens), (layer.cross_attention, attention.vision, vision)
        ):  # fmt: skip
            values = part.value(asked if part is layer.cross_attention else tokens).view(2, -1, 4, 6).transpose(1, 2)
            tokens = part.norm(part.output((weights @ values).transpose(1, 2).flatten(2)) + tokens)
        tokens = layer.feed_forward(tokens)
    torch.testing.assert_close(bert(*text, vision, vision_valid)[valid], tokens[valid], atol=1e-5, rtol=1e-5)


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


def pairs_of(bert, num_clips=3):
    """Texts of different lengths, four for each clip, clips, and the clip of each text."""
    generator = torch.Generator().manual_seed(4)
    num = 4 * num_clips
    valid = torch.arange(8) < torch.randint(1, 8, (num, 1), generator=generator)
    tokens = torch.randn(num, 8, bert.embed_dim, generator=generator)
    clips = torch.randn(num_clips, 5, bert.encoder_width, generator=generator)
    wrong = torch.randint(num_clips, (num_clips,), generator=generator)
    return tokens, valid, clips, torch.cat([torch.arange(num_clips).repeat(3), wrong])


def results_of(bert, fuse, tokens, clips):
    """What a weighting of the fused tokens and all its gradients are."""
    bert.zero_grad()
    tokens, clips = tokens.clone().requires_grad_(), clips.clone().requires_grad_()
    fused = fuse(tokens, clips)
    (fused * torch.randn(fused.shape, generator=torch.Generator().manual_seed(6))).sum().backward()
    learned = [each.grad for each in bert.layers[bert.fusion_layer :].parameters()]
    return [fused.detach(), tokens.grad, clips.grad, *learned]


@pytest.mark.parametrize("num_named", [0, 3, 6, 12])
def test_keys_projected_once_serve_all_texts_of_a_clip(num_named):
    bert = perturb(build(depth=4)).eval()
    tokens, valid, clips, rows = pairs_of(bert)
    rows = torch.cat([torch.arange(3).repeat(4), rows])[-12:] if num_named else torch.arange(3).repeat(4)
    expected = results_of(bert, lambda text, seen: bert.fuse(text, valid, bert.project(seen[rows])), tokens, clips)
    named = rows[12 - num_named :] if num_named else None
    actual = results_of(bert, lambda text, seen: bert.fuse(text, valid, bert.project(seen), named), tokens, clips)
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


def test_texts_that_make_no_full_turn_are_refused():
    bert = build()
    tokens, valid, clips, rows = pairs_of(bert)
    with pytest.raises(ValueError, match="10 texts cannot look at 3 clips in turn"):
        bert.fuse(tokens, valid, bert.project(clips), rows[:2])


@pytest.mark.parametrize("depth", [3, 4])
def test_last_layer_computes_the_wanted_positions_alone(depth):
    bert = perturb(build(depth=depth)).eval()
    tokens, valid, clips, rows = pairs_of(bert)
    wanted = valid & (torch.rand(valid.shape, generator=torch.Generator().manual_seed(7)) < 0.4)
    wanted[:6] = torch.arange(8) == 0
    wanted[7] = False
    context = bert.project(clips)
    expected = results_of(
        bert, lambda text, seen: bert.fuse(text, valid, bert.project(seen), rows)[wanted], tokens, clips
    )
    actual = results_of(
        bert, lambda text, seen: bert.fuse_at(text, valid, bert.project(seen), rows, wanted), tokens, clips
    )
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)
    assert bert.fuse_at(tokens, valid, context, rows, torch.zeros_like(valid)).shape == (0, 24)
    # A position that is wanted is computed although the text has ended before.
    beyond = torch.arange(8).expand(12, 8) == 7
    plain = perturb(build(depth=depth, packed=False)).eval()
    padded = plain.fuse(tokens, valid, plain.project(clips), rows)[beyond]
    torch.testing.assert_close(bert.fuse_at(tokens, valid, context, rows, beyond), padded, atol=1e-5, rtol=1e-4)


def test_packed_equals_padded(text, vision):
    """At valid positions, also where these have gaps; padding is zero."""
    packed, padded = perturb(build()).eval(), perturb(build(packed=False)).eval()
    input_ids = torch.randint(1, 61, (4, 7), generator=torch.Generator().manual_seed(8))
    valid = (
        torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]]) > 0
    )
    clips = vision[[0, 1, 1, 0]]
    vision_valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[[0, 1, 1, 0]]
    gradients = []
    for bert in (packed, padded):
        bert(input_ids, valid, clips, vision_valid)[valid].square().sum().backward()
        gradients.append([each.grad for name, each in bert.named_parameters() if "head" not in name])
    expected = padded(input_ids, valid, clips, vision_valid)
    actual = packed(input_ids, valid, clips, vision_valid)
    torch.testing.assert_close(actual[valid], expected[valid], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(*gradients, atol=2e-5, rtol=1e-4)
    assert actual[~valid].abs().max() == 0
    assert packed.encode_text(input_ids, valid)[~valid].abs().max() == 0


def test_padding_is_not_computed():
    bert = build(depth=4)
    widths = []
    for layer in bert.layers:
        layer.register_forward_pre_hook(lambda _, given: widths.append(len(given[0])))
    _, valid, clips, rows = pairs_of(bert)
    bert.fuse(bert.encode_text(torch.ones_like(valid, dtype=torch.int64), valid), valid, bert.project(clips), rows)
    assert widths == [int(valid.sum())] * 4


def test_joined_contexts_are_those_of_the_joined_tokens(text, vision):
    bert = perturb(build(depth=4)).eval()
    sound = torch.randn(2, 3, CONFIG["encoder_width"], generator=torch.Generator().manual_seed(9))
    joined = join_contexts(bert.project(sound), bert.project(vision))
    expected = bert.project(torch.cat([sound, vision], dim=1))
    torch.testing.assert_close(joined, expected)
    with pytest.raises(ValueError, match="padding"):
        join_contexts(joined, bert.project(vision, torch.ones(2, 5, dtype=torch.bool)))


def test_nothing_to_read_stays_finite(vision):
    bert = perturb(build()).eval()
    nothing = torch.zeros(2, 6, dtype=torch.bool)
    start = torch.arange(6).expand(2, 6) == 0
    text = bert.encode_text(torch.ones(2, 6, dtype=torch.int64), nothing)
    assert bert.fuse(text, nothing, bert.project(vision)).abs().max() == 0
    assert bert.fuse_at(text, nothing, bert.project(vision), None, start).isfinite().all()
