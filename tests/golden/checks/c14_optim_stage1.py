"""Learning-rate scale and weight decay of each parameter under layer decay, and schedules step by step."""

import torch
from torch import Tensor, nn

from ivt2.optim.layer_decay import LayerDecay
from ivt2.optim.parameter_groups import parameter_groups
from ivt2.optim.schedules import InclusiveWarmupCosine, inclusive_warmup_cosine
from tests.golden.case import Case
from tests.golden.internvideo2 import rename_student

RATE = 1e-3


def check(case: Case) -> None:
    for label, recorded in case.json["finetune"].items():
        check_table(case, label, recorded)
    computed = {f"cosine_{row['index']}": row for row in case.json["schedules"] if row["error"] is None}
    assert set(computed) == set(case.outputs)
    for output, row in computed.items():
        case.close(output, values(row), atol=0, rtol=1e-12)
        if row["final"] <= row["base"]:
            case.close(output, learning_rates(row), atol=0, rtol=1e-12)
    assert all(row["warmup_epochs"] == 0 < row["warmup_steps"] for row in case.json["schedules"] if row["error"])


def check_table(case: Case, label: str, recorded: dict) -> None:
    """The reference's groups, one by one, with its own choice for separable tables."""
    model, *_, decay = label.replace("layer_decay=", "").replace("|wd=0.05", "").split("|")
    table, state = recorded["table"], case.state(model)
    parameters = {
        rename_student(name): nn.Parameter(torch.zeros_like(state[name]), requires_grad=row is not None)
        for name, row in table.items()
    }
    groups = parameter_groups(
        parameters.items(),
        no_weight_decay=[rename_student(name) for name in recorded["skip"]],
        layer_decay=LayerDecay(float(decay), case.config["model"]["depth"], separable_tables_on_top=True),
    )
    built = {
        id(parameter): (group.get("lr_scale", 1.0), group.get("weight_decay", case.config["wd"]), index)
        for index, group in enumerate(groups)
        for parameter in group["params"]
    }
    expected = {
        id(parameters[rename_student(name)]): (row["lr_scale"], row["weight_decay"], row["group"])
        for name, row in table.items()
        if row is not None
    }
    assert built == expected, label
    assert [len(group["params"]) for group in groups] == recorded["group_sizes"], label
    check_rates(groups, recorded, label)


def check_rates(groups: list[dict], recorded: dict, label: str) -> None:
    """What the optimizer uses once a schedule stands at its peak."""
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    rates = inclusive_warmup_cosine(optimizer, total_steps=1).get_last_lr()
    torch.testing.assert_close(rates, [RATE * scale for scale in recorded["group_lr_scale"]], rtol=1e-12, atol=0)
    assert len({group["name"] for group in optimizer.param_groups}) == recorded["group_count"], label


def warmup_steps(row: dict) -> int:
    return row["warmup_steps"] if row["warmup_steps"] > 0 else row["warmup_epochs"] * row["niter"]


def values(row: dict) -> Tensor:
    """From the rule, which also serves a weight decay."""
    total = row["epochs"] * row["niter"]
    rule = InclusiveWarmupCosine(warmup_steps(row), total, row["start"] / row["base"], row["final"] / row["base"])
    return torch.tensor([row["base"] * rule(step) for step in range(total)], dtype=torch.float64)


def learning_rates(row: dict) -> Tensor:
    """From an optimizer whose rates are given for a batch of 256, as a training sees them."""
    total = row["epochs"] * row["niter"]
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=row["base"] / 2)
    scheduler = inclusive_warmup_cosine(
        optimizer,
        total_steps=total,
        warmup_steps=warmup_steps(row),
        start_lr=row["start"] / 2,
        final_lr=row["final"] / 2,
        global_batch_size=512,
    )
    rates = []
    for _ in range(total):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)
