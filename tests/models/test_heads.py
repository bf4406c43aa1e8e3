"""Heads and the classifier: formulas, order of the channels, start, errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ivt2.errors import InputError
from ivt2.models.heads import ClassificationHead, ConcatHead, VideoClassifier
from ivt2.models.internvideo2 import Encoded, InternVideo2

SIZES = {"embed_dim": 10, "pooled_dim": 6, "num_frames": 3, "num_classes": 5}


def randomize(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    return module.eval()


def encoded(batch=2, num_frames=3, patches=4):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(batch, 1 + num_frames * patches, 10, generator=generator)
    return Encoded(tokens, torch.randn(batch, 6, generator=generator), tokens.new_empty(0, *tokens.shape))


@pytest.mark.parametrize("extra_mlp", [True, False])
def test_classification_head_is_the_formula(extra_mlp):
    head = randomize(ClassificationHead(pooled_dim=6, num_classes=5, extra_mlp=extra_mlp))
    features = encoded().pooled
    if extra_mlp:
        hidden = head.mlp.fc1(head.mlp_norm(features))
        assert hidden.shape == (2, 24)
        features = features + head.mlp.fc2(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))
    centred = features - features.mean(dim=1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    expected = (scaled * head.norm.weight + head.norm.bias) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(encoded()), expected)


@pytest.mark.parametrize("with_pooled", [True, False])
@pytest.mark.parametrize("per_frame", [True, False])
@pytest.mark.parametrize("merge_norm", ["layer", "batch", "plain_batch"])
@torch.no_grad()
def test_concatenating_head_against_a_loop_over_channels(merge_norm, per_frame, with_pooled):
    head = randomize(ConcatHead(**SIZES, per_frame=per_frame, with_pooled=with_pooled, merge_norm=merge_norm))
    given = encoded()
    for clip in range(2):
        features = concatenated(head, given.tokens[clip], merge_norm, per_frame)
        if with_pooled:
            features += functional.layer_norm(given.pooled[clip], (6,), head.norm.weight, head.norm.bias).tolist()
        expected = head.linear.weight @ torch.tensor(features) + head.linear.bias
        torch.testing.assert_close(head(given)[clip], expected, rtol=1e-5, atol=1e-5)


def concatenated(head, tokens, merge_norm, per_frame):
    frames = tokens[1:].split(4) if per_frame else [tokens[1:]]
    rows = [tokens[0], *(frame.mean(dim=0) for frame in frames)]
    if per_frame:
        rows = [functional.gelu(head.down.weight @ row + head.down.bias) for row in rows]
    norm = head.merge_norm
    if merge_norm == "layer":
        rows = [(row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias for row in rows]
        return [value for row in rows for value in row.tolist()]
    eps = 1e-5 if merge_norm == "batch" else 1e-6
    rows = [(row - norm.running_mean) / (norm.running_var + eps).sqrt() for row in rows]
    if merge_norm == "batch":
        rows = [row * norm.weight + norm.bias for row in rows]
    return [float(row[channel]) for channel in range(len(rows[0])) for row in rows]


def test_dropout_stands_in_front_of_the_last_layer():
    given = encoded()
    for head in (
        ClassificationHead(pooled_dim=6, num_classes=5, dropout=1.0),
        ConcatHead(**SIZES, per_frame=True, with_pooled=True, merge_norm="layer", dropout=1.0),
    ):
        randomize(head)
        assert not torch.allclose(head(given), head.linear.bias.expand(2, 5))
        torch.testing.assert_close(head.train()(given), head.linear.bias.expand(2, 5))


def test_start_of_the_heads():
    head = ClassificationHead(pooled_dim=64, num_classes=500, extra_mlp=True)
    assert head.linear.weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.05)
    assert head.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not any(tensor.any() for tensor in (head.mlp.fc2.weight, head.mlp.fc2.bias, head.linear.bias))
    scaled = ClassificationHead(pooled_dim=64, num_classes=500, init_scale=1.0, init_std=0.1)
    assert scaled.linear.weight.std().item() == pytest.approx(0.1, rel=0.05)


def test_weights_start_anew_after_meta():
    with torch.device("meta"):
        classifier = make_classifier(merge_norm="batch")
    classifier.to_empty(device="cpu")
    for tensor in classifier.state_dict().values():
        tensor.fill_(7)
    classifier.reset_parameters()
    assert not any((tensor == 7).any() for tensor in classifier.state_dict().values())
    assert torch.equal(classifier.head.merge_norm.running_var, torch.ones(6))


def make_encoder():
    return InternVideo2(
        image_size=8,
        patch_size=4,
        num_frames=6,
        tubelet_size=2,
        embed_dim=16,
        depth=1,
        num_heads=2,
        mlp_ratio=2.0,
        pool_num_heads=2,
        pooled_dim=6,
    )


def make_classifier(merge_norm="layer"):
    head = ConcatHead(**SIZES | {"embed_dim": 16}, per_frame=True, with_pooled=True, merge_norm=merge_norm)
    return VideoClassifier(make_encoder(), head)


def test_classifier_classifies_what_the_encoder_says():
    classifier = randomize(make_classifier())
    video = torch.randn(2, 6, 3, 8, 8)
    torch.testing.assert_close(classifier(video), classifier.head(classifier.encoder(video)))
    assert classifier.no_weight_decay() == {"encoder.cls_token", "encoder.pos_embed"}
    assert list(classifier.sharding_units()) == list(classifier.encoder.blocks)


def test_clips_of_other_lengths_are_refused():
    with pytest.raises(InputError, match="clips have 1 frames, the classifier takes 6"):
        make_classifier()(torch.randn(2, 1, 3, 8, 8))


@pytest.mark.parametrize("size", ["embed_dim", "pooled_dim", "num_frames"])
def test_head_for_another_encoder_is_refused(size):
    sizes = SIZES | {"embed_dim": 16}
    head = ConcatHead(**sizes | {size: 8}, per_frame=True, with_pooled=True, merge_norm="layer")
    with pytest.raises(InputError, match=f"the head's {size}=8"):
        VideoClassifier(make_encoder(), head)
