"""Which parameters decay, and which learn at a rate of their own."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from ivt2.errors import InputError


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    no_weight_decay: Collection[str] = (),
    learning_rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: frozen parameters are left out, vectors and biases do not decay.

    What a group does not set (the decay of matrices, the common learning rate) is the optimizer's own.

    Args:
        named_parameters: ``model.named_parameters()``, which names shared parameters once.
        no_weight_decay: names of further parameters without decay, whole or from a dot on: ``pos_embed`` also stands
            for ``vision_encoder.pos_embed``. Parameters with fewer than two dimensions and ``.bias`` never decay.
        learning_rates: regular expression, searched in names, to learning rate; the first that matches counts. Other
            parameters use the optimizer's learning rate.

    Returns:
        Groups with ``params`` and ``name`` (for monitors), ``weight_decay`` 0 where there is none, and ``lr`` where an
        expression sets it.

    Raises:
        InputError: if an expression matches no trainable parameter.

    Source: reference multi_modality, optimizer of stage 2 (``different_lr``).
    """
    rules = {re.compile(pattern): rate for pattern, rate in (learning_rates or {}).items()}
    trainable = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    for pattern in rules:
        if not any(pattern.search(name) for name, _ in trainable):
            raise InputError(
                f"learning_rates: {pattern.pattern!r} matches no trainable parameter: correct or remove it"
            )
    # Two levels, so that groups that decay alike stand together, in the order of their first parameter.
    by_decay: dict[bool, dict[float | None, list[nn.Parameter]]] = {}
    for name, parameter in trainable:
        decays = parameter.ndim >= 2 and not _is_listed(name, no_weight_decay)
        rate = next((rate for pattern, rate in rules.items() if pattern.search(name)), None)
        by_decay.setdefault(decays, {}).setdefault(rate, []).append(parameter)
    return [
        _group(parameters, decays=decays, rate=rate)
        for decays, by_rate in by_decay.items()
        for rate, parameters in by_rate.items()
    ]


def _is_listed(name: str, listed: Collection[str]) -> bool:
    return name.endswith(".bias") or any(f".{name}".endswith(f".{entry}") for entry in listed)


def _group(parameters: list[nn.Parameter], *, decays: bool, rate: float | None) -> dict[str, Any]:
    group: dict[str, Any] = {"params": parameters, "name": "decay" if decays else "no_decay"}
    if not decays:
        group["weight_decay"] = 0.0
    if rate is not None:
        group |= {"lr": rate, "name": f"{group['name']}_lr_{rate:g}"}
    return group
