"""Parts of a network that do not learn."""

import difflib
from collections.abc import Iterator, Sequence

from torch import nn

from ivt2.errors import InputError


class Frozen:
    """Freezes parts of a network, and holds them still: no gradient, no dropout, no new batch statistics.

    Of several names that hold a parameter, the longest path decides. What the network itself keeps fixed (a table of
    positions, say) stays fixed where its surroundings are re-opened. Works on the meta device too.

    Args:
        model: the network.
        frozen: names of submodules and parameters, as ``model.named_modules()`` and ``model.named_parameters()`` give
            them: ``vision_encoder``, ``vision_encoder.blocks.0``, ``temperature``.
        trained: names below a frozen one that learn all the same.

    Raises:
        InputError: a name that the model does not have, that is given twice, a ``trained`` one that is not below a
            frozen one, or nothing left to train.
    """

    def __init__(self, model: nn.Module, frozen: Sequence[str] = (), trained: Sequence[str] = ()) -> None:
        _check(model, frozen, trained)
        learnable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        learns = dict.fromkeys(frozen, False) | dict.fromkeys(trained, True)
        for name in sorted(learns, key=_depth):
            for parameter in _parameters(model, name):
                parameter.requires_grad_(learns[name] and id(parameter) in learnable)
        if frozen and not any(parameter.requires_grad for parameter in model.parameters()):
            raise InputError(f"frozen={list(frozen)} leaves nothing to train: name fewer parts, or some in trained")
        modules = dict(model.named_modules())
        self._still = [
            part for name in frozen if name in modules for part in _whole_parts(modules[name], name, set(trained))
        ]

    def eval_mode(self) -> None:
        """Put frozen submodules in evaluation mode, those wholly frozen; to be called whenever ``train()`` was."""
        for part in self._still:
            part.eval()


def _check(model: nn.Module, frozen: Sequence[str], trained: Sequence[str]) -> None:
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters(remove_duplicate=False)) if name]
    for argument, given in (("frozen", frozen), ("trained", trained)):
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=3)
                parts = [known for known in names if "." not in known]
                hint = f"did you mean {' or '.join(near)}?" if near else f"its parts are {', '.join(parts)}"
                raise InputError(f"{argument}: the model has no part named {name!r}; {hint}")
    for name in trained:
        if name in frozen:
            raise InputError(f"trained: {name!r} stands in frozen too: take it out of one of them")
        if not any(name.startswith(f"{above}.") for above in frozen):
            raise InputError(
                f"trained: {name!r} is not below a frozen part (frozen={list(frozen)}), so it learns anyway: remove "
                "it, or freeze what holds it"
            )


def _depth(name: str) -> int:
    return name.count(".")


def _parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    named = model.named_parameters(remove_duplicate=False)
    return [parameter for path, parameter in named if path == name or path.startswith(f"{name}.")]


def _whole_parts(module: nn.Module, name: str, opened: set[str]) -> Iterator[nn.Module]:
    """The largest parts of a frozen module in which nothing was opened again."""
    if name in opened:
        return
    if not any(path.startswith(f"{name}.") for path in opened):
        yield module
        return
    for child, part in module.named_children():
        yield from _whole_parts(part, f"{name}.{child}", opened)
