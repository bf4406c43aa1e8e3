"""Errors of Hydra, OmegaConf and YAML said to the user in one line: what is wrong, and the remedy."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import MarkedYAMLError, YAMLError  # type: ignore[import-untyped]

from ivt2.cli.schema import did_you_mean
from ivt2.errors import InputError

USER_ERRORS = (InputError, HydraException, OmegaConfBaseException, YAMLError)
"""What can go wrong while a configuration is composed and checked, through the user's doing."""

Options = Callable[[str], list[str]]
"""Choices of a configuration group by its name; empty when there is no such group."""

_Error = TypeVar("_Error", bound=BaseException)
_FROM_WORKER = re.compile(r"^(?:\w+\.)*InputError: (?P<message>.+)$", re.MULTILINE)


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def first(error: BaseException, kind: type[_Error]) -> _Error | None:
    """The first exception of a kind in the chain of causes, the error itself included."""
    return next((link for link in _chain(error) if isinstance(link, kind)), None)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _listed(names: Iterable[object], limit: int = 30) -> str:
    words = [str(name) for name in names]
    return ", ".join(words[:limit]) + (", ..." if len(words) > limit else "")


def _input_error(error: InputError) -> str:
    """Its own message; an error that crossed from a loader's worker process carries that process's whole trace."""
    inside = _FROM_WORKER.findall(str(error))
    return _one_line(inside[-1] if inside else str(error))


def _node(error: BaseException) -> str:
    """Beginning of the message: the node whose constructor failed, where Hydra was building one."""
    found = re.search(r"full_key: (\S+)", str(error)) if isinstance(error, InstantiationException) else None
    return f"{found[1]}: " if found else ""


def _missing_choice(error: MissingConfigException) -> str:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if not group or error.options is None:
        return _one_line(str(error).partition("Config search path")[0])
    within = re.match(r"In '([^']+)'", str(error))
    source = f" (asked for by {within[1]})" if within and within[1].count("/") else ""
    near = did_you_mean(choice, error.options)
    return f"{group}={choice}: no such {group}{source}{near}; there are: {_listed(error.options)}"


def _unknown_key(error: ConfigAttributeError | ConfigKeyError) -> str:
    key, parent = str(error.full_key), error.parent_node
    if not isinstance(parent, DictConfig):
        return _one_line(error.msg or str(error))
    near = did_you_mean(str(error.key), parent.keys())
    if "_target_" in parent:
        own = f"an argument of {parent._get_node('_target_')} that its file does not list is added as +{key}=..."
        return f"{key}: no such key{near}; {own}"
    if not len(parent):
        return f"{key}: new here; add it as +{key}=..."
    return f"{key}: no such key{near}; there are: {_listed(sorted(map(str, parent)))}"


def _unset_reference(error: InterpolationKeyError, options: Options) -> str:
    found = re.search(r"Interpolation key '([^']+)' not found", str(error))
    name = found[1] if found else "?"
    group = name.partition(".")[0]
    choices = options(group)
    remedy = f"choose one with {group}={'|'.join(choices)}" if choices else f"set it with {name}=... or +{name}=..."
    return f"{error.full_key}: refers to ${{{name}}}, which is not set; {remedy}"


def _missing_value(error: MissingMandatoryValue | InterpolationToMissingValueError, options: Options) -> str:
    found = re.search(r"Missing mandatory value: (\S+)", str(error))
    by_reference = isinstance(error, InterpolationToMissingValueError) and found is not None
    name = found[1] if found and by_reference else str(error.full_key)
    needs = f"{error.full_key}: needs {name}, which has no value" if name != error.full_key else f"{name}: has no value"
    return f"{needs}; set it with {name}={'|'.join(options(name)) or '...'}"


def _config_error(error: OmegaConfBaseException, options: Options) -> str:
    if isinstance(error, InterpolationKeyError):
        return _unset_reference(error, options)
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        return _missing_value(error, options)
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(error)
    message = str(error).partition("\n")[0]
    return f"{error.full_key}: {message}" if error.full_key else message


def _other_error(error: BaseException) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: not valid YAML: {error.problem}"
    if isinstance(error, OSError):
        return f"{error.filename}: cannot write there ({error.strerror}); choose another folder with paths.run_dir=..."
    if "group override must be a string" in str(error):
        return "a group cannot be set to null; leave it out with ~group, or choose 'none' where there is such a choice"
    return _one_line(str(error))


def explain(error: BaseException, options: Options) -> str:
    """One line for the user.

    Args:
        error: One of :data:`USER_ERRORS`, or an ``OSError`` met while the run folder was made.
        options: Choices of a configuration group, for the remedies.
    """
    own, config = first(error, InputError), first(error, OmegaConfBaseException)
    if own is not None:
        return _node(error) + _input_error(own)
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as key=value; quote special characters: key='\"a, b\"'"
    if config is not None:
        return _config_error(config, options)
    fault = constructor_fault(error) if isinstance(error, InstantiationException) else error
    return _node(error) + _other_error(fault)


def constructor_fault(error: InstantiationException) -> BaseException:
    """What a constructor raised, freed from Hydra's wrapping."""
    return next((link for link in _chain(error) if not isinstance(link, HydraException)), error)
