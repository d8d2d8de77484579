"""Start a recipe: settings composed by Hydra, typed, and checked before any work; errors as one line and a remedy.

    @recipe("rank")
    def main(settings: Settings) -> None: ...

    if __name__ == "__main__":
        main()

The recipe's YAML in conf/ opens its defaults list with the schema and with Hydra kept quiet:

    defaults:
      - settings_schema
      - hydra_quiet
      - data: simulated
      - _self_

Exit codes:
    0    done, or there was nothing left to do
    1    a fault that no remedy is known for (with its traceback), or an error with code 1 in engine/errors.py
    2    settings: an unknown key or option, a value of the wrong type, a missing value
    3-8  data, consent, training, gate, snapshot, lock: as drawn at the top of engine/errors.py
    130  interrupted (SIGINT)
    143  told to stop (SIGTERM)
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import os
import re
import signal
import sys
import threading
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import BodegaError, SettingsError

if TYPE_CHECKING:
    from omegaconf import DictConfig

SCHEMA = "settings_schema"
_INTERRUPTED = 130
_STOPPED = 143
_sigterm = threading.Event()


def recipe(
    config_name: str, settings: type[Any] | None = None, folder: str | Path | None = None
) -> Callable[[Callable[[Any], object]], Callable[[], None]]:
    """Turn `main(settings)` into a command that takes `key=value` and exits with a documented code.

    Args:
        config_name: the YAML in the folder, without its ending.
        settings: dataclass that types the config; by default `jobs.settings.Settings`, looked up at the start.
        folder: where the YAML files lie; by default the project's conf/, from whichever directory it starts.

    Returns:
        A decorator; what it returns takes no arguments and always raises SystemExit.
    """

    def decorate(task: Callable[[Any], object]) -> Callable[[], None]:
        @functools.wraps(task)
        def command() -> None:
            sys.exit(_run(task, config_name, settings or _project_settings(), Path(folder or _project_folder())))

        return command

    return decorate


def guarded(call: Callable[[], object]) -> int:
    """Run a call and turn whatever it raises into an exit code, told on stderr."""
    try:
        call()
    except BodegaError as error:
        return report(error)
    except KeyboardInterrupt:
        print("stopped" if _sigterm.is_set() else "interrupted", file=sys.stderr)
        return _STOPPED if _sigterm.is_set() else _INTERRUPTED
    except Exception:  # noqa: BLE001 - the outermost frame: the traceback is printed, the code says that it failed
        traceback.print_exc()
        return 1
    return 0


def report(error: BodegaError) -> int:
    """Print an error and its remedy on stderr, one line each, and return its exit code."""
    print(f"error: {_one_line(error.message)}", file=sys.stderr)
    if error.remedy:
        print(f"remedy: {_one_line(error.remedy)}", file=sys.stderr)
    return error.exit_code


def near_miss(word: str, known: Iterable[str]) -> str:
    """The known dotted key that was probably meant, or ''. `pth` finds `data.path`, `data.pth` and `data_path` too."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    if close:
        return close[0]
    tails = {key.rpartition(".")[2]: key for key in reversed(known)}
    close = difflib.get_close_matches(word.rpartition(".")[2], tails, n=1, cutoff=0.7)
    return tails[close[0]] if close else ""


def _project_settings() -> type[Any]:
    from jobs.settings import Settings

    kind: type[Any] = Settings
    return kind


def _project_folder() -> Path:
    import conf

    return Path(next(iter(conf.__path__)))


def _run(task: Callable[[Any], object], config_name: str, kind: type[Any], folder: Path) -> int:
    import hydra
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=SCHEMA, node=kind)
    code = 0

    @functools.wraps(task)
    def call(config: DictConfig) -> None:
        nonlocal code
        code = guarded(lambda: task(typed(config, kind)))

    def compose_and_call() -> None:
        try:
            hydra.main(version_base="1.3", config_path=str(folder.resolve()), config_name=config_name)(call)()
        except SettingsError:
            raise
        except Exception as error:
            explained = _explain(error, kind, folder)
            if explained is None:
                raise
            raise explained from error

    with _errors_raised(), _stop_on_sigterm():
        return guarded(lambda: _refuse_sweeps(sys.argv[1:])) or guarded(compose_and_call) or code


def typed(config: DictConfig, kind: type[Any]) -> Any:
    """The settings object of a composed config.

    Raises:
        SettingsError: a key is not in the schema, a value is missing or of the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        if OmegaConf.get_type(config) is not kind:  # the YAML does not start from the schema
            config = typing.cast("DictConfig", OmegaConf.merge(OmegaConf.structured(kind), config))
        for key in _extra_keys(config):  # `+key=value` gets past Hydra, and would then be ignored in silence
            raise _unknown(key, _keys(kind))
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise _explain_value(error, kind) from error


def _refuse_sweeps(arguments: Sequence[str]) -> None:
    if {"-m", "--multirun"} & set(arguments):
        raise SettingsError("A recipe runs once: --multirun is not supported.", "Loop in the shell.")


def _extra_keys(config: Any, prefix: str = "") -> Iterator[str]:
    from omegaconf import DictConfig, ListConfig, OmegaConf

    if config._is_none() or config._is_missing() or config._is_interpolation():
        return
    if isinstance(config, DictConfig):
        kind = OmegaConf.get_type(config)
        declared = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else None
        for key in config:
            name = prefix + str(key)
            if declared is not None and key not in declared:
                yield name
            else:
                yield from _extra_keys(config._get_node(key), f"{name}.")
    elif isinstance(config, ListConfig):
        for place in range(len(config)):
            yield from _extra_keys(config._get_node(place), f"{prefix}{place}.")


def _keys(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all that a schema declares, outer ones first."""
    for name, hint in typing.get_type_hints(kind).items():
        yield f"{prefix}{name}"
        optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
        for part in typing.get_args(hint) if optional else (hint,):
            if dataclasses.is_dataclass(part):
                yield from _keys(typing.cast("type[Any]", part), f"{prefix}{name}.")


def _groups(folder: Path) -> list[str]:
    folders = sorted({path.parent for path in folder.rglob("*.yaml")} - {folder})
    return [path.relative_to(folder).as_posix() for path in folders]


def _explain(error: Exception, kind: type[Any], folder: Path) -> SettingsError | None:
    """What a person did wrong, from what Hydra says about it; None where the fault is not theirs."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, MissingConfigException):
        return _unknown_option(str(error.missing_cfg_file or ""), error.options or [], folder)
    if isinstance(error, OverrideParseException):
        return SettingsError(
            f"'{error.override}' cannot be read as key=value.", "Quote values with special characters."
        )
    for link in _chain(error):
        if isinstance(link, OmegaConfBaseException):
            found = re.search(r"Could not override '([^']+)'", str(error))
            return _unknown(found[1], [*_keys(kind), *_groups(folder)]) if found else _explain_value(link, kind)
    found = re.search(r"(?:Could not override|Could not delete from config\.) '([^']+)'", str(error))
    if found:
        return _unknown(found[1], [*_keys(kind), *_groups(folder)])
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return SettingsError(
            "A group is set to what is no name.",
            "Name one of its configs, as in gates=default, or set single keys of it.",
        )
    if isinstance(error, HydraException) or (isinstance(error, ValueError) and "--" in str(error)):
        return SettingsError(_one_line(str(error).partition("See https://")[0]), "Run with --help to see the settings.")
    return None


def _explain_value(error: Any, kind: type[Any]) -> SettingsError:
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue

    key = str(getattr(error, "full_key", None) or "")
    if isinstance(error, MissingMandatoryValue):
        return SettingsError(f"The setting '{key}' has no value.", f"Add {key}=VALUE to the command.")
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return _unknown(key, _keys(kind))
    said = _one_line(str(error).partition("full_key:")[0]).rstrip(".")
    return SettingsError(f"The setting '{key}': {said}." if key else f"{said}.", "Run with --help to see the settings.")


def _unknown(key: str, known: Iterable[str]) -> SettingsError:
    known = list(known)
    if key in known:
        return SettingsError(
            f"The setting '{key}' holds names of your own.", f"Add them one by one: +{key}.NAME=VALUE."
        )
    near = near_miss(key, known)
    hint = f"Did you mean '{near}'?" if near else "Run with --help to see the settings."
    return SettingsError(f"There is no setting '{key}'. {hint}")


def _unknown_option(missing: str, options: Sequence[str], folder: Path) -> SettingsError:
    group, _, option = missing.rpartition("/")
    if not group:
        names = sorted(path.stem for path in folder.glob("*.yaml"))
        near = near_miss(option.removesuffix(".yaml"), names)
        hint = f"Did you mean '{near}'?" if near else f"There are: {', '.join(names)}."
        return SettingsError(f"There is no config '{missing}'. {hint}")
    near = near_miss(option, options)
    hint = f"Did you mean '{group}={near}'?" if near else f"There are: {', '.join(options)}."
    return SettingsError(f"There is no '{option}' in the group '{group}'. {hint}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _one_line(text: str) -> str:
    return " ".join(text.split())


@contextlib.contextmanager
def _errors_raised() -> Iterator[None]:
    """Hydra prints and exits with 1 by itself unless this variable is set."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """Leave by the ordinary way, so that locks are released and Ray is ended."""

    def stop(signal_number: int, frame: object) -> None:
        _sigterm.set()
        raise KeyboardInterrupt  # Ray swaps any other exception of a handler, SystemExit too, for one of its own

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
