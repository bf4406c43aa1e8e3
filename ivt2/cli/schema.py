"""Signature = schema: a configuration node is checked against the constructor that it names.

Every key must be an argument, every argument without a default must be there, and plain values must fit the annotation
(numbers, text, Literal, Optional, sequences, mappings). YAML has the types of JSON, so values are judged by pydantic's
strict JSON rules: a list fits a tuple and text fits a path, but ``true`` is no integer and ``"3"`` is no number.
"""

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from ivt2.cli.targets import KEYWORDS, check_names, locate
from ivt2.errors import InputError

_NAMED_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def did_you_mean(word: str, known: Iterable[object]) -> str:
    """Remedy for a misspelt word: ``; did you mean 'x'?``, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, [str(name) for name in known], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # names that exist for type checkers only
        return {}


def _says(annotation: Any) -> str:
    return inspect.formatannotation(annotation).replace("typing.", "").replace("collections.abc.", "")


def _validate(value: Any, annotation: Any) -> None:
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter

    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a dataclass or TypedDict takes no configuration from outside
        adapter = TypeAdapter(annotation)
    adapter.validate_json(json.dumps(value, default=str), strict=True)


def mismatch(value: Any, annotation: Any) -> str | None:
    """What is wrong with a plain value, or None.

    Args:
        value: Scalar, list or mapping as YAML gives it.
        annotation: Type of the argument; one that pydantic cannot judge accepts everything.
    """
    from pydantic import PydanticUserError, ValidationError

    try:
        _validate(value, annotation)
    except ValidationError as error:
        where = "".join(f"[{part!r}]" for part in error.errors()[0]["loc"] if isinstance(part, int))
        return f"expected {_says(annotation)}, got {value!r}" + (f" (item {where})" if where else "")
    except (PydanticUserError, NameError, TypeError):
        return None
    return None


def _as_number(value: Any, annotation: Any) -> float | None:
    """Quoted numbers such as ``'1e-4'`` where a float is wanted."""
    if not isinstance(value, str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if mismatch(number, annotation) is None else None


def _holds_target(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(_holds_target(item) for item in value.values())
    return isinstance(value, list) and any(_holds_target(item) for item in value)


def _argument_problems(path: str, node: Mapping[str, Any], signature: inspect.Signature) -> Iterator[str]:
    """Arguments that the constructor does not know, and those that it misses."""
    parameters = signature.parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in _NAMED_KINDS and parameter.name != "self"]
    given = [key for key in node if key not in KEYWORDS]
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        for key in given:
            if key not in names:
                remedy = did_you_mean(key, names) or f"; it takes {', '.join(names)}"
                yield f"{path}.{key}: {node['_target_']} has no argument {key!r}{remedy}"
    if not node.get("_partial_", False):
        required = [name for name in names if signature.parameters[name].default is inspect.Parameter.empty]
        for name in required:
            if name not in given:
                yield f"{path}.{name}: {node['_target_']} requires this argument; add +{path}.{name}=..."


def _node_problems(path: str, node: Mapping[str, Any], replaced: dict[str, float]) -> Iterator[str]:
    target = locate(node["_target_"], f"{path}._target_")
    try:
        signature = inspect.signature(target)
    except ValueError:  # built in C, without a signature
        return
    yield from _argument_problems(path, node, signature)
    hints = _hints(target)
    for key, value in node.items():
        if key in KEYWORDS or key not in hints or key not in signature.parameters or _holds_target(value):
            continue
        wrong = mismatch(value, hints[key])
        number = _as_number(value, hints[key]) if wrong else None
        if number is not None:
            replaced[f"{path}.{key}"] = number
        elif wrong:
            yield f"{path}.{key}: {wrong}"


def _own_nodes(config: Any, path: str = "") -> Iterator[str]:
    """Paths of the ``_target_`` nodes at the place where they are written, not where ``${...}`` repeats them."""
    keys: Iterable[Any] = range(len(config)) if isinstance(config, ListConfig) else list(config)
    if isinstance(config, DictConfig) and "_target_" in config:
        yield path
    for key in keys:
        if OmegaConf.is_interpolation(config, key) or OmegaConf.is_missing(config, key):
            continue
        item = config[key]
        if isinstance(item, (DictConfig, ListConfig)) and not item._is_none():
            yield from _own_nodes(item, f"{path}.{key}" if path else str(key))


def _at(plain: Any, path: str) -> Any:
    for part in path.split(".") if path else ():
        plain = plain[int(part)] if isinstance(plain, list) else plain[part]
    return plain


def _root_problems(plain: Mapping[str, Any], keys: type) -> Iterator[str]:
    for key, annotation in get_type_hints(keys).items():
        wrong = f"not set; set it with {key}=..., see --help" if key not in plain else None
        if wrong is None and not _holds_target(plain[key]):
            wrong = mismatch(plain[key], annotation)
        if wrong:
            yield f"{key}: {wrong}"


def resolved(cfg: Any) -> dict[str, Any]:
    """The configuration as plain dictionaries and lists, every ``${...}`` replaced.

    Raises:
        omegaconf.errors.OmegaConfBaseException: A mandatory value is missing or an interpolation leads nowhere.
    """
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def validate(cfg: DictConfig, keys: type | None = None) -> None:
    """Check a composed configuration before anything is built; imports the targets that it names.

    Quoted numbers (``lr: "1e-4"``) become numbers in place.

    Args:
        cfg: Composed configuration, without the node ``hydra``.
        keys: Class whose annotations give the types of the root's own keys.

    Raises:
        InputError: All problems in one line: configuration path, value, what was expected.
        omegaconf.errors.OmegaConfBaseException: As :func:`resolved`.
    """
    plain = resolved(cfg)
    check_names(plain)
    problems = list(_root_problems(plain, keys)) if keys else []
    replaced: dict[str, float] = {}
    for path in _own_nodes(cfg):
        problems += _node_problems(path, _at(plain, path), replaced)
    if problems:
        raise InputError(" | ".join(problems))
    for path, number in replaced.items():
        OmegaConf.update(cfg, path, number)
