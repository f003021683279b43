"""Settings in force: defaults, settings file, environment and flags combined."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from llama_chat.documents import read_toml
from llama_chat.errors import UsageError, did_you_mean
from llama_chat.files import config_home, expand_user
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.setting import Value, check, parse, unescape
from llama_chat.settings.settings import Settings

_LIST = "llama-chat config show lists all"


def load_settings(
    flags: Mapping[str, str | bool | list[str] | None],
    config: Path | None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Combine defaults, settings file, environment and flags.

    Args:
        flags: values as typed; None or an empty list if a flag was not given.
        config: the file named by ``--config``.
        environment: ``os.environ`` unless given.

    Raises:
        UsageError: at the first value that is out of range, naming its source.
    """
    environment = os.environ if environment is None else environment
    settings = Settings()
    path = config_path(config, environment)
    if path is not None:
        named = config is not None or bool(environment.get("LLAMA_CHAT_CONFIG"))
        for name, value in read_config(path, pipes=named).items():
            settings = settings.change(name, value, str(path))
    for name, setting in SETTINGS.items():
        if typed := environment.get(setting.variable):
            value = parse(setting, typed, setting.variable)
            settings = settings.change(name, value, setting.variable)
        flag = flags.get(name)
        if isinstance(flag, str):
            settings = settings.change(name, parse(setting, flag, setting.flag), setting.flag)
        elif flag is not None and flag != []:
            if isinstance(flag, list) and not setting.is_paths:
                flag = list(map(unescape, flag))
            settings = settings.change(name, check(setting, flag, setting.flag), setting.flag)
    return settings


def usual_config_path() -> Path:
    """Return the default path of the settings file."""
    return config_home() / "config.toml"


def config_path(given: Path | None, environment: Mapping[str, str]) -> Path | None:
    """Return the settings file to read, or None; the current folder is not searched."""
    if given is not None:
        return given
    if named := environment.get("LLAMA_CHAT_CONFIG"):
        return Path(named)
    usual = usual_config_path()
    try:
        return usual if usual.exists() else None
    except OSError:  # no permission: reading it reports that
        return usual


def read_config(path: Path, *, pipes: bool = True) -> dict[str, Value]:
    """Read a settings file, or with ``pipes`` a pipe.

    A relative path of a model, or of a folder of models, is relative to the folder of the file.

    Raises:
        UsageError: if it is invalid; the message names the file, the line and the reason.
    """
    where = f"settings file {str(path)!r}"
    table, text = read_toml(path, where, "check --config and LLAMA_CHAT_CONFIG", pipes=pipes)
    values: dict[str, Value] = {}
    for key, value in table.items():
        place = where + _line(text, key)
        if key not in SETTINGS:
            raise UsageError(place, f"unknown key {key[:60]!r}", did_you_mean(key, SETTINGS, _LIST))
        setting = SETTINGS[key]
        checked = check(setting, value, f"{place}, {key}")
        if setting.kind == "path" and isinstance(checked, str) and checked:
            checked = _beside(path, checked)
        elif setting.is_paths and isinstance(checked, tuple):
            checked = tuple(_beside(path, item) for item in checked)
        values[key] = checked
    return values


def _line(text: str, key: str) -> str:
    """Return the line number of ``key`` in a settings file, for an error; empty if uncertain."""
    pattern = rf"^[ \t\[]*[\"']?{re.escape(key)}[\"']?[ \t]*[=.\]]"
    found = list(re.finditer(pattern, text, re.MULTILINE))
    if len(found) != 1:  # more: one may be within a text of several lines
        return ""
    number = text[: found[0].start()].count("\n") + 1
    return f", line {number}"


def _beside(config: Path, wanted: str) -> str:
    """Return ``wanted`` relative to a settings file if that path exists, else unchanged."""
    path = config.parent / expand_user(wanted)
    try:
        return str(path) if path.exists() else wanted
    except OSError:  # a name too long for a path
        return wanted
