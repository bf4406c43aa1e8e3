"""Aligning decoders: formula, positions, images, masks."""

import pytest
import torch
from torch.nn import functional

from ivt2.nn.aligning import AligningDecoders
from ivt2.ops.masking import random_masking
from ivt2.ops.position import average_frames, sincos_3d


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
