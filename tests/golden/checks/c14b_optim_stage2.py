"""Optimizer groups by name, and learning rates by step."""

import re

import torch
from torch import nn

from ivt2.optim.parameter_groups import parameter_groups
from ivt2.optim.schedules import warmup_cosine
from tests.golden.case import Case

NO_WEIGHT_DECAY = ("temp", "pos_embed", "img_pos_embed", "clip_pos_embed", "clip_img_pos_embed", "cls_token")


def check(case: Case) -> None:
    for table in case.json["tables"].values():
        check_table(case, table)
    # Every group of a recorded schedule starts at its own rate: the given one and three times that.
    assert set(case.outputs) == {f"cosine_{row['index']}" for row in case.json["sched"]}
    for row in case.json["sched"]:
        case.close(f"cosine_{row['index']}", learning_rates(row), atol=0, rtol=1e-12)


def check_table(case: Case, recorded: dict) -> None:
    table, state = recorded["table"], case.state("stage2")
    base, decay = (
        max(row[column] for row in case.json["tables"]["default"]["table"].values() if row) for column in (0, 1)
    )
    parameters = {
        name: nn.Parameter(torch.zeros_like(state[name]), requires_grad=row is not None) for name, row in table.items()
    }
    groups = parameter_groups(
        parameters.items(),
        no_weight_decay=NO_WEIGHT_DECAY,
        learning_rates=learning_rate_rules(recorded.get("rule"), [name for name, row in table.items() if row]),
    )
    optimizer = torch.optim.AdamW(groups, lr=base, weight_decay=decay)
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    built = {
        name_of[id(parameter)]: (group["lr"], group["weight_decay"], index)
        for index, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }
    assert built == {name: tuple(row) for name, row in table.items() if row is not None}
    sizes = [[len(group["params"]), group["lr"], group["weight_decay"]] for group in optimizer.param_groups]
    assert sizes == recorded["groups"]


def learning_rate_rules(rule: dict | None, names: list[str]) -> dict[str, float]:
    """One expression per rule that matches something: an expression that matches nothing is an error here."""
    if rule is None or not rule["enable"]:
        return {}
    matching = [pattern for pattern in rule["module_names"] if any(re.search(pattern, name) for name in names)]
    return dict.fromkeys(matching, rule["lr"])


def learning_rates(row: dict) -> torch.Tensor:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weights[0]], "lr": row["lr"]}, {"params": [weights[1]], "lr": 3 * row["lr"]}]
    optimizer = torch.optim.AdamW(groups)
    scheduler = warmup_cosine(
        optimizer,
        warmup_steps=row["num_warmup_steps"],
        total_steps=row["num_training_steps"],
        min_ratio=row["min_lr_multi"],
        after_end="rebound",
    )
    rates = []
    for _ in range(row["steps"]):
        rates.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)
