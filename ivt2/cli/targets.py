"""Which classes and functions a configuration may name.

A name is checked twice: as text, before anything is imported, and as the object it leads to, which must be defined in
the package that its name promises (``ivt2.x.os.system`` starts well and ends elsewhere).
"""

import importlib
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from ivt2.errors import InputError

ALLOWED: dict[str, str] = {
    "ivt2.": "ivt2",
    "torch.optim.": "torch.optim",
    "torch.nn.": "torch.nn",
    "lightning.pytorch.Trainer": "lightning.pytorch",
    "lightning.pytorch.callbacks.": "lightning.pytorch",
    "lightning.pytorch.loggers.": "lightning.pytorch",
    "lightning.pytorch.strategies.": "lightning.pytorch",
    "lightning.pytorch.profilers.": "lightning.pytorch",
    "lightning.pytorch.plugins.": "lightning",  # some of them are defined in lightning.fabric
    "torchmetrics.": "torchmetrics",
}
"""Allowed beginning of a target -> package in which the object must be defined."""

KEYWORDS = frozenset({"_target_", "_partial_", "_convert_"})
"""Keys of a node that speak to Hydra; its others, ``_args_`` and ``_recursive_``, are refused."""


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def nodes(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping inside a plain (resolved) configuration, with its dotted path, outermost first."""
    if isinstance(value, dict):
        yield path, value
        for key, item in value.items():
            yield from nodes(item, _join(path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from nodes(item, _join(path, index))


def _home(target: str) -> str | None:
    """Package in which the object called ``target`` must be defined, None when the name is not allowed."""
    if any(not part.isidentifier() or part.startswith("__") for part in target.split(".")):
        return None
    for start, package in ALLOWED.items():
        if target == start or (start.endswith(".") and target.startswith(start)):
            return package
    return None


def check_names(config: Any) -> None:
    """Refuse a resolved configuration that names a target outside the allow-list; imports nothing.

    Args:
        config: Plain dictionaries, lists and scalars.

    Raises:
        InputError: A target is not allowed, or a node carries a key of Hydra that is refused.
    """
    for path, node in nodes(config):
        refused = {"_args_", "_recursive_"} & node.keys()
        if refused:
            raise InputError(f"{path}: {refused.pop()} is not allowed in a configuration; name every argument")
        if "_target_" in node and (not isinstance(node["_target_"], str) or _home(node["_target_"]) is None):
            starts = ", ".join(ALLOWED)
            raise InputError(f"{path}._target_: {node['_target_']!r} is not allowed; a target starts with {starts}")


def _inside(module: str | None, package: str) -> bool:
    return module is not None and (module == package or module.startswith(f"{package}."))


def _step(found: Any, name: str, walked: str) -> Any:
    """One step of a dotted name: an attribute, or a module that has yet to be imported."""
    if isinstance(found, ModuleType) and not hasattr(found, name):
        return importlib.import_module(f"{walked}.{name}")
    return getattr(found, name)


def locate(target: str, path: str = "_target_") -> Callable[..., Any]:
    """Import the class or function that an allowed name leads to.

    Args:
        target: Full dotted name.
        path: Where the configuration says so; begins the message of an error.

    Raises:
        InputError: There is no such object, or it is not a class or function of the package its name promises.
    """
    package = _home(target)
    if package is None:
        raise InputError(f"{path}: {target!r} is not allowed")
    walked, *rest = target.split(".")
    try:
        found: Any = importlib.import_module(walked)
        for name in rest:
            found = _step(found, name, walked)
            walked = f"{walked}.{name}"
    except AttributeError:
        raise InputError(f"{path}: {target!r} does not exist: {walked} has no {name!r}") from None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{target}.".startswith(f"{error.name}."):
            raise
        raise InputError(f"{path}: {target!r} does not exist: there is no module {error.name}") from None
    callable_kind = inspect.isclass(found) or inspect.isfunction(found) or inspect.ismethod(found)
    if not callable_kind or not _inside(found.__module__, package):
        raise InputError(f"{path}: {target!r} is not a class or function of {package}")
    return found  # type: ignore[no-any-return]
