import pytest
import torch
from torch import nn

from ivt2.errors import InputError
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.stage1 import Stage1Student
from ivt2.nn.aligning import AligningDecoders
from ivt2.optim.layer_decay import LayerDecay
from ivt2.optim.parameter_groups import parameter_groups
from ivt2.optim.schedules import warmup_cosine

DEPTH = 3


@pytest.fixture(params=["joint", "separable"])
def student(request):
    """A student whose decoders have position tables of their own."""
    sizes = {"num_frames": 2, "embed_dim": 16, "position": request.param}
    with torch.device("meta"):
        encoder = InternVideo2(
            image_size=8, patch_size=4, depth=DEPTH, num_heads=2, mlp_ratio=2.0, pool_num_heads=2, pooled_dim=8, **sizes
        )
        decoders = AligningDecoders(pooled_dim=8, num_layers=2, teacher_dim=8, final_dim=8, grid_size=2, **sizes)
        return Stage1Student(encoder, clip_decoders=decoders, clip_taps=(1, 2))


def layers(model, **options):
    """Names of the parameters by the layer that their group's name tells."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = LayerDecay(0.5, DEPTH, **options)
    found = {}
    for group in parameter_groups(model.named_parameters(), no_weight_decay=model.no_weight_decay(), layer_decay=decay):
        layer = int(group["name"].rsplit("_", 1)[1])
        assert group["lr_scale"] == 0.5 ** (DEPTH + 1 - layer)
        found.setdefault(layer, set()).update(name_of[id(parameter)] for parameter in group["params"])
    return found


def by_hand(model, *, separable_bottom=True):
    """The same from the modules, without looking at names."""
    encoder = model.encoder
    bottom = [encoder.cls_token, *encoder.patch_embed.parameters()]
    tables = [table for name, table in encoder.named_parameters(recurse=False) if name != "cls_token"]
    if len(tables) == 1 or separable_bottom:
        bottom += tables
    modules = {0: bottom, **{i + 1: list(block.parameters()) for i, block in enumerate(encoder.blocks)}}
    placed = {id(parameter): layer for layer, parameters in modules.items() for parameter in parameters}
    found = {}
    for name, parameter in model.named_parameters():
        found.setdefault(placed.get(id(parameter), DEPTH + 1), set()).add(name)
    return found


def test_layers_of_a_student(student):
    found = layers(student)
    assert found == by_hand(student)
    tables = {name for name in found[DEPTH + 1] if "pos_embed" in name}
    assert tables
    assert all(name.startswith("clip_decoders.") for name in tables)


def test_separable_tables_on_top_by_name(student):
    assert layers(student, separable_tables_on_top=True) == by_hand(student, separable_bottom=False)


def test_the_encoder_may_have_another_name():
    decay = LayerDecay(0.5, 2, encoder="vision_encoder")
    assert [decay.layer(name) for name in ("vision_encoder.blocks.1.norm.weight", "encoder.blocks.1.norm.weight")] == [
        2,
        3,
    ]


def test_a_factor_of_one_is_no_layer_decay(student):
    with_factor, without = (
        parameter_groups(student.named_parameters(), layer_decay=decay) for decay in (LayerDecay(1.0, DEPTH), None)
    )
    assert [group["name"] for group in with_factor] == [group["name"] for group in without]
    assert not any("lr_scale" in group for group in with_factor)


def test_a_rate_set_by_expression_is_not_scaled(student):
    groups = parameter_groups(
        student.named_parameters(), layer_decay=LayerDecay(0.5, DEPTH), learning_rates={"blocks.0": 0.1}
    )
    ours = [group for group in groups if "lr" in group]
    assert {group["name"] for group in ours} == {"decay_lr_0.1", "no_decay_lr_0.1"}
    assert not any("lr_scale" in group for group in ours)


def test_schedules_use_the_scale_up_once():
    parameters = {"encoder.cls_token": nn.Parameter(torch.zeros(1)), "head.weight": nn.Parameter(torch.zeros(2, 2))}
    optimizer = torch.optim.AdamW(parameter_groups(parameters.items(), layer_decay=LayerDecay(0.5, 1)), lr=0.8)
    for _ in range(2):
        schedule = warmup_cosine(optimizer, total_steps=4)
        assert schedule.get_last_lr() == pytest.approx([0.2, 0.8])
        assert not any("lr_scale" in group for group in optimizer.param_groups)


@pytest.mark.parametrize("factor", [0.0, 1.01, -1.0, float("nan")])
def test_a_factor_out_of_range_is_named(factor):
    with pytest.raises(InputError, match="outside"):
        LayerDecay(factor, 3)


def test_a_block_beyond_the_depth_is_named(student):
    with pytest.raises(InputError, match=r"over 2 blocks, but there is encoder\.blocks\.2"):
        parameter_groups(student.named_parameters(), layer_decay=LayerDecay(0.5, 2))
