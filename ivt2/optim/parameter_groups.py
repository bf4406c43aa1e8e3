"""Which parameters decay, and which learn at a rate of their own."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from ivt2.errors import InputError
from ivt2.optim.layer_decay import LayerDecay


class _Kind(NamedTuple):
    """What the parameters of a group have in common."""

    decays: bool
    rate: float | None
    layer: int | None


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    no_weight_decay: Collection[str] = (),
    learning_rates: Mapping[str, float] | None = None,
    layer_decay: LayerDecay | None = None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: frozen parameters are left out, vectors and biases do not decay.

    What a group does not set (the decay of matrices, the common learning rate) is the optimizer's own.

    Args:
        named_parameters: ``model.named_parameters()``, which names shared parameters once.
        no_weight_decay: names of further parameters without decay, whole or from a dot on: ``pos_embed`` also stands
            for ``vision_encoder.pos_embed``. Parameters with fewer than two dimensions and ``.bias`` never decay.
        learning_rates: regular expression, searched in names, to learning rate; the first that matches counts. Other
            parameters use the optimizer's learning rate.
        layer_decay: lets lower layers learn slower; a rate that an expression sets stays as it is given.

    Returns:
        Groups with ``params`` and ``name`` (for monitors), ``weight_decay`` 0 where there is none, ``lr`` where an
        expression sets it, and ``lr_scale`` where a layer has one: the schedules multiply the group's rate by it.

    Raises:
        InputError: if an expression matches no trainable parameter, or a block lies beyond the depth of the decay.

    Source: reference multi_modality, optimizer of stage 2 (``different_lr``); single_modality (``lr_scale``).
    """
    rules = {re.compile(pattern): rate for pattern, rate in (learning_rates or {}).items()}
    trainable = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    for pattern in rules:
        if not any(pattern.search(name) for name, _ in trainable):
            raise InputError(
                f"learning_rates: {pattern.pattern!r} matches no trainable parameter: correct or remove it"
            )
    if layer_decay is not None and layer_decay.factor == 1:
        layer_decay = None
    groups: dict[_Kind, list[nn.Parameter]] = {}
    for name, parameter in trainable:
        rate = next((rate for pattern, rate in rules.items() if pattern.search(name)), None)
        kind = _Kind(
            decays=parameter.ndim >= 2 and not _is_listed(name, no_weight_decay),
            rate=rate,
            layer=layer_decay.layer(name) if layer_decay is not None and rate is None else None,
        )
        groups.setdefault(kind, []).append(parameter)
    # In the order of their first parameter, as in the reference; without layers, groups that decay alike together.
    kinds = list(groups)
    if layer_decay is None:
        kinds = sorted(kinds, key=lambda kind: kind.decays != kinds[0].decays)
    return [_group(groups[kind], kind, layer_decay) for kind in kinds]


def _is_listed(name: str, listed: Collection[str]) -> bool:
    return name.endswith(".bias") or any(f".{name}".endswith(f".{entry}") for entry in listed)


def _group(parameters: list[nn.Parameter], kind: _Kind, layer_decay: LayerDecay | None) -> dict[str, Any]:
    group: dict[str, Any] = {"params": parameters, "name": "decay" if kind.decays else "no_decay"}
    if not kind.decays:
        group["weight_decay"] = 0.0
    if kind.rate is not None:
        group |= {"lr": kind.rate, "name": f"{group['name']}_lr_{kind.rate:g}"}
    if layer_decay is not None and kind.layer is not None:
        group |= {"lr_scale": layer_decay.scale(kind.layer), "name": f"{group['name']}_layer_{kind.layer}"}
    return group
