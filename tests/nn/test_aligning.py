"""Aligning decoders: formula, positions, images, masks."""

import pytest
import torch
from torch.nn import functional

from ivt2.nn.aligning import AligningDecoders
from ivt2.ops.masking import random_masking
from ivt2.ops.position import average_frames, join_separable, sincos_1d, sincos_2d, sincos_3d


def make(**changes):
    torch.manual_seed(0)
    arguments = {"embed_dim": 16, "pooled_dim": 6, "num_layers": 2, "teacher_dim": 10, "final_dim": 5}
    decoders = AligningDecoders(**arguments | {"num_frames": 3, "grid_size": 2} | changes)
    for parameter in decoders.parameters():
        torch.nn.init.normal_(parameter)
    return decoders


def test_layers_are_decoded_by_their_own_decoder_after_the_positions():
    decoders = make()
    intermediates, pooled = torch.randn(2, 4, 13, 16), torch.randn(4, 6)
    aligned = decoders(intermediates, pooled)
    for layer in range(2):
        decoder = decoders.decoders[layer]
        raw = functional.layer_norm(
            decoder.head(intermediates[layer] + decoders.pos_embed), (10,), *_affine(decoder), 1e-5
        )
        torch.testing.assert_close(aligned.middle[layer], raw / raw.norm(dim=-1, keepdim=True))
    raw = functional.layer_norm(decoders.final.head(pooled), (5,), *_affine(decoders.final), 1e-5)
    torch.testing.assert_close(aligned.final, raw / raw.norm(dim=-1, keepdim=True))


def _affine(decoder):
    return decoder.norm.weight, decoder.norm.bias


def test_without_normalisation_lengths_vary():
    decoders = make(normalize=False)
    unit = make()
    unit.load_state_dict(decoders.state_dict())
    inputs = torch.randn(2, 4, 13, 16), torch.randn(4, 6)
    raw, scaled = decoders(*inputs), unit(*inputs)
    torch.testing.assert_close(functional.normalize(raw.middle, dim=-1), scaled.middle)
    torch.testing.assert_close(functional.normalize(raw.final, dim=-1), scaled.final)
    assert raw.middle.norm(dim=-1).std() > 0.1


def test_final_dim_zero_passes_the_pooled_vector():
    decoders, pooled = make(final_dim=0), torch.randn(4, 6)
    assert decoders(torch.randn(2, 4, 13, 16), pooled).final is pooled
    assert not [name for name in decoders.state_dict() if name.startswith("final.")]


@pytest.mark.parametrize("separate", [True, False])
def test_images_get_their_table_or_the_mean_over_frames(separate):
    decoders = make(separate_image_position=separate)
    table = decoders.img_pos_embed if separate else average_frames(decoders.pos_embed, 3)
    zeros = torch.zeros(2, 4, 5, 16)
    aligned = decoders(zeros, torch.randn(4, 6), image=True)
    torch.testing.assert_close(aligned.middle[1], decoders.decoders[1](zeros[1] + table))


def test_masked_positions_are_those_of_the_visible_tokens():
    decoders = make()
    intermediates, pooled = torch.randn(2, 4, 13, 16), torch.randn(4, 6)
    masked = random_masking(torch.rand(4, 12), 0.5)
    visible = torch.cat([torch.ones(4, 1, dtype=torch.bool), ~masked], dim=1)
    kept = intermediates[:, visible].view(2, 4, 7, 16)
    whole = decoders(intermediates, pooled).middle
    torch.testing.assert_close(decoders(kept, pooled, masked=masked).middle, whole[:, visible].view(2, 4, 7, 10))


def test_perceptron_is_as_wide_within_as_its_input_and_exact():
    decoders = make(decoder="mlp")
    assert decoders.decoders[0].head.fc1.weight.shape == (16, 16)
    assert decoders.final.head.fc1.weight.shape == (6, 6)
    intermediates, pooled = torch.randn(2, 4, 13, 16), torch.randn(4, 6)
    aligned = decoders(intermediates, pooled)
    for decoder, given, got in (
        (decoders.decoders[1], intermediates[1] + decoders.pos_embed, aligned.middle[1]),
        (decoders.final, pooled, aligned.final),
    ):
        hidden = decoder.head.fc1(given)
        raw = decoder.norm(decoder.head.fc2(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))))
        torch.testing.assert_close(got, raw / raw.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("position", ["joint", "separable"])
def test_without_the_cls_token_patches_are_decoded_as_with_it(position, image, masked):
    whole, patches = make(position=position), make(position=position, cls_token=False)
    tables = {name: value for name, value in whole.state_dict().items() if "embed_cls" not in name}
    if position == "joint":
        tables["pos_embed"] = tables["pos_embed"][:, 1:]
    patches.load_state_dict(tables)
    rows = 4 if image else 12
    mask = random_masking(torch.rand(4, rows), 0.5) if masked else None
    intermediates = torch.randn(2, 4, 1 + (rows // 2 if masked else rows), 16)
    pooled = torch.randn(4, 6)
    expected = whole(intermediates, pooled, image=image, masked=mask).middle[:, :, 1:]
    torch.testing.assert_close(patches(intermediates, pooled, image=image, masked=mask).middle, expected)


def test_separable_positions_are_those_of_the_joined_table():
    decoders, joint = make(position="separable"), make()
    state = {name: value for name, value in decoders.state_dict().items() if "pos_embed" not in name}
    parts = decoders.pos_embed_cls, decoders.pos_embed_spatial, decoders.pos_embed_temporal
    joint.load_state_dict(state | {"pos_embed": join_separable(*parts)})
    intermediates, pooled = torch.randn(2, 4, 13, 16), torch.randn(4, 6)
    torch.testing.assert_close(decoders(intermediates, pooled).middle, joint(intermediates, pooled).middle)


def test_start_of_tables_without_the_cls_row():
    sizes = {"embed_dim": 16, "pooled_dim": 6, "num_layers": 1, "teacher_dim": 8, "final_dim": 0, "num_frames": 3}
    sizes |= {"grid_size": 2, "cls_token": False, "separate_image_position": True}
    joint = AligningDecoders(**sizes)
    torch.testing.assert_close(joint.pos_embed[0], sincos_3d(16, 3, 2)[1:])
    torch.testing.assert_close(joint.img_pos_embed[0], sincos_3d(16, 1, 2)[1:])
    separable = AligningDecoders(**sizes, position="separable")
    torch.testing.assert_close(separable.pos_embed_spatial[0], sincos_2d(16, 2))
    torch.testing.assert_close(separable.pos_embed_temporal[0], sincos_1d(16, 3))
    assert separable.no_weight_decay() == {"pos_embed_spatial", "pos_embed_temporal", "img_pos_embed"}


def test_number_of_layers_must_agree():
    with pytest.raises(ValueError, match="zip"):
        make()(torch.randn(3, 4, 13, 16), torch.randn(4, 6))


def test_start_and_parameters_without_weight_decay():
    decoders = AligningDecoders(
        embed_dim=16,
        pooled_dim=6,
        num_layers=2,
        teacher_dim=300,
        final_dim=5,
        num_frames=3,
        grid_size=2,
        separate_image_position=True,
    )
    torch.testing.assert_close(decoders.pos_embed[0], sincos_3d(16, 3, 2))
    torch.testing.assert_close(decoders.img_pos_embed[0], sincos_3d(16, 1, 2))
    assert decoders.decoders[0].head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert decoders.no_weight_decay() == {"pos_embed", "img_pos_embed"}
