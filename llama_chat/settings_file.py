"""The settings in force: defaults, settings file, environment and flags."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from llama_chat.errors import UsageError
from llama_chat.files import config_home, expand_user, read_small_text
from llama_chat.settings import (
    SETTINGS,
    Origin,
    Settings,
    Value,
    check,
    misfit,
    parse,
    suggestion,
)


def load_settings(
    flags: Mapping[str, str | bool | list[str] | None],
    config: Path | None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Put together defaults, settings file, environment and flags.

    Args:
        flags: values as typed; None or an empty list where a flag was not given.
        config: the file named by ``--config``.
        environment: ``os.environ`` unless given.

    Raises:
        UsageError: at the first value that does not fit, naming where it stands.
    """
    environment = os.environ if environment is None else environment
    origins = {name: Origin(setting.default, "default") for name, setting in SETTINGS.items()}
    path = config_path(config, environment)
    if path is not None:
        for name, value in read_config(path).items():
            origins[name] = Origin(value, str(path))
    for name, setting in SETTINGS.items():
        if typed := environment.get(setting.variable):
            origins[name] = Origin(parse(setting, typed, setting.variable), setting.variable)
        flag = flags.get(name)
        if isinstance(flag, bool) or (isinstance(flag, list) and flag):
            origins[name] = Origin(check(setting, flag, setting.flag), setting.flag)
        elif isinstance(flag, str):
            origins[name] = Origin(parse(setting, flag, setting.flag), setting.flag)
    return Settings(origins)


def usual_config_path() -> Path:
    """Where the settings file lies if nobody names one."""
    return config_home() / "config.toml"


def config_path(given: Path | None, environment: Mapping[str, str]) -> Path | None:
    """The settings file to read: never one that merely lies in the current folder."""
    if given is not None:
        return given
    if named := environment.get("LLAMA_CHAT_CONFIG"):
        return Path(named)
    usual = usual_config_path()
    try:
        return usual if usual.exists() else None
    except OSError:  # it lies where we may not look: reading it says so
        return usual


def read_config(path: Path) -> dict[str, Value]:
    """Read a settings file.

    A relative path of a model, or of a folder of models, in it is relative to the file's folder.

    Raises:
        UsageError: naming the file, the line and what is wrong in it.
    """
    where = f"settings file {str(path)!r}"
    text = read_small_text(path, where, "check --config and LLAMA_CHAT_CONFIG")
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "cannot be read"
        raise UsageError(where, f"not TOML: {reason}", "correct that line") from None
    values: dict[str, Value] = {}
    for key, value in table.items():
        if key not in SETTINGS:
            what = where + _line(text, key)
            raise UsageError(what, f"unknown key {key[:60]!r}", suggestion(key, SETTINGS))
        setting = SETTINGS[key]
        try:
            checked = setting.check(value)
        except ValueError:
            raise misfit(setting, value, f"{where}{_line(text, key)}, {key}") from None
        if setting.kind == "path" and isinstance(checked, str) and checked:
            checked = _beside(path, checked)
        elif setting.paths and isinstance(checked, tuple):
            checked = tuple(_beside(path, item) for item in checked)
        values[key] = checked
    return values


def _line(text: str, key: str) -> str:
    """The line of ``key`` in a settings file, for an error; empty if it cannot be told."""
    pattern = rf"^[ \t\[]*[\"']?{re.escape(key)}[\"']?[ \t]*[=.\]]"
    found = list(re.finditer(pattern, text, re.MULTILINE))
    if len(found) != 1:  # more: one may lie within a text of several lines
        return ""
    number = text[: found[0].start()].count("\n") + 1
    return f", line {number}"


def _beside(config: Path, wanted: str) -> str:
    """The path ``wanted`` from the folder of a settings file if it is there, else as it is."""
    path = config.parent / expand_user(wanted)
    try:
        return str(path) if path.exists() else wanted
    except OSError:  # a name too long for a path
        return wanted
