"""The door of every command: compose with Hydra, check, call, and say a user's mistake in one line.

    @command("train")              # conf/train.yaml
    def main(cfg: DictConfig) -> float | None: ...

    if __name__ == "__main__":
        main()

A mistake of the user ends with one line on stderr and exit status 2; a defect keeps its trace and ends with 1.
``HYDRA_FULL_ERROR=1`` shows the trace of both. Importing this module imports neither torch nor lightning.
"""

import functools
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig

from ivt2.cli.console import tidy
from ivt2.cli.explain import USER_ERRORS, constructor_fault, explain, first
from ivt2.cli.run_folder import close_log_files, pin_paths, prepare, process_rank
from ivt2.cli.schema import validate
from ivt2.cli.sweep import OBJECTIVE_FILE, Sweep
from ivt2.cli.tracking import mlflow_logger
from ivt2.errors import InputError

Main = Callable[[Any], float | None]

CONF = Path(__file__).parents[2] / "conf"
"""The configuration of all commands, beside the package in a checkout."""

_TRACES = "HYDRA_FULL_ERROR"
_INTERRUPTED = 130  # what shells report after Ctrl-C


def group_options(group: str) -> list[str]:
    """Choices of a configuration group; empty when there is none of that name or nothing was composed yet."""
    current = GlobalHydra.instance().hydra
    return sorted(current.config_loader.get_group_options(group)) if current and group.isidentifier() else []


def _leave(error: BaseException) -> NoReturn:
    sys.stderr.write(f"{explain(error, group_options)}\n")
    sys.exit(2)


def _set_traces(value: str | None) -> None:
    if value is None:
        os.environ.pop(_TRACES, None)
    else:
        os.environ[_TRACES] = value


def _read_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Check the command line and bring it into the order that Hydra reads: all flags, then all overrides.

    Returns:
        The arguments in that order, and those flags among them that say where the configuration lies.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; values are set as key=value, see --help")

    parser.error = refuse
    given = parser.parse_intermixed_args(arguments)
    if given.experimental_rerun is not None:
        raise InputError("--experimental-rerun: not supported, because it unpickles a file; give the overrides again")
    places = {"--config-path": given.config_path, "--config-name": given.config_name, "--config-dir": given.config_dir}
    kept = [text for flag, value in places.items() if value is not None for text in (flag, value)]
    flags = [text for text in arguments if text not in given.overrides]
    return [*flags, *given.overrides], kept


@contextmanager
def _one_line(*kinds: type[BaseException], traces: str | None) -> Iterator[None]:
    """Turn the user's mistakes among errors of some kinds into one line and exit status 2."""
    try:
        yield
    except kinds as error:
        if traces == "1":
            raise
        _leave(error)


def _blames_configuration(error: BaseException) -> bool:
    """Whether Lightning itself says that the user asked for what cannot be, such as a GPU on a machine without."""
    return type(error).__name__ == "MisconfigurationException" and type(error).__module__.startswith("lightning.")


def _call(main: Main, cfg: DictConfig, traces: str | None) -> float | None:
    """Call the command; an ``InputError`` is the user's, everything else a defect that keeps its trace."""
    try:
        return main(cfg)
    except InputError as error:
        if traces == "1":
            raise
        _leave(error)
    except InstantiationException as error:
        if traces == "1":
            raise
        fault = constructor_fault(error)
        if first(error, InputError) is not None or _blames_configuration(fault):
            _leave(error)
        raise fault from fault.__cause__


def _claim(cfg: DictConfig, folder: Path) -> None:
    """Make the run folder this run's own; only the first process of a run writes in it."""
    if process_rank() > 0:
        close_log_files()
        return
    mlflow_logger(cfg)
    if "replace" in cfg:
        prepare(folder, replace=cfg.replace, resume=cfg.get("ckpt_path") is not None)


@contextmanager
def _loading() -> Iterator[None]:
    """Import without looking for garbage, of which imports make none, and never look through what they made.

    Looking takes a quarter of the start of ``train.py``; at the end of the process it would look again.
    """
    if gc.get_freeze_count():  # done before in this process
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _job(main: Main, keys: type | None, cfg: DictConfig, traces: str | None) -> float | None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    with _loading(), _one_line(*USER_ERRORS, traces=traces):
        validate(cfg, keys)
    tidy()
    with _one_line(InputError, OSError, traces=traces):
        _claim(cfg, folder)
    value = _call(main, cfg, traces)
    if value is not None and process_rank() == 0:
        (folder / OBJECTIVE_FILE).write_text(json.dumps({"objective": value}) + "\n")
    return value


def command(config_name: str, *, keys: type | None = None, conf: Path = CONF) -> Callable[[Main], Callable[[], None]]:
    """Make a Hydra command of a function that takes the checked configuration.

    Args:
        config_name: Root of the configuration, ``conf/<config_name>.yaml``.
        keys: Class whose annotations give the types of the root's own keys.
        conf: Folder of the configuration.

    Returns:
        Decorator; the decorated function takes its arguments from the command line.
    """

    def decorate(main: Main) -> Callable[[], None]:
        @functools.wraps(main)
        def enter() -> None:
            traces = os.environ.get(_TRACES)
            with _one_line(*USER_ERRORS, traces=traces):
                sys.argv[1:], places = _read_arguments(sys.argv[1:])
            sweep = Sweep(places)

            @functools.wraps(main)
            def task(cfg: DictConfig) -> float | None:
                _set_traces(traces)
                own = HydraConfig.get()
                with _one_line(*USER_ERRORS, traces=traces):
                    pin_paths(cfg, Path(own.runtime.output_dir))
                    if own.mode == RunMode.MULTIRUN:
                        return sweep.run(cfg, own)
                return _job(main, keys, cfg, traces)

            _set_traces("1")  # until the job starts: errors then arrive here instead of being printed by Hydra
            try:
                with _one_line(*USER_ERRORS, OSError, ValueError, traces=traces):
                    hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(task)()
            except KeyboardInterrupt:
                sys.stderr.write("interrupted\n")
                sys.exit(_INTERRUPTED)
            finally:
                _set_traces(traces)
                code = sweep.finish()
            if code:
                sys.exit(code)

        return enter

    return decorate
