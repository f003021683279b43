"""``llama-chat config``: the settings in force, and the file that holds them."""

import itertools
import json
import os
from pathlib import Path
from typing import Annotated

import typer

from llama_chat.cli import editing
from llama_chat.cli.help import Command, Group
from llama_chat.cli.options import Flags, config_flag, takes_settings
from llama_chat.files import resource, write_new
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.setting import Value
from llama_chat.settings.settings import Settings
from llama_chat.settings.sources import config_path, read_config, usual_config_path
from llama_chat.terminal import streams
from llama_chat.terminal.editor import find_editor
from llama_chat.terminal.sanitizer import escaped
from llama_chat.terminal.streams import AnswerWriter
from llama_chat.tokenizers.base import without_surrogates

app = typer.Typer(name="config", cls=Group, rich_markup_mode=None)

_COLUMN = 28
"""Column of the comments, unless a value is longer."""

_ConfigOption = Annotated[
    str | None, typer.Option("--config", metavar="PATH", help="Settings file.")
]


@app.callback(invoke_without_command=True)
def config(ctx: typer.Context) -> None:
    """Show the settings in force, or edit their file."""
    if ctx.invoked_subcommand is None:
        streams.say(ctx.get_help())
        raise typer.Exit(2)


@app.command(cls=Command)
@takes_settings
def show(
    settings: Settings,
    with_origin: Annotated[
        bool, typer.Option("--origin", help="Write the origin of each in a comment.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help='{"top_p": {"value": 0.9, "origin": "default"}, …}')
    ] = False,
) -> None:
    """Print all settings in force, as a settings file that --config reads."""
    if as_json:
        streams.write_json(
            {
                name: {"value": settings.value(name), "origin": settings.source(name)}
                for name in SETTINGS
            }
        )
        return
    writer = AnswerWriter()
    writer.write(escaped(as_toml(settings, with_origin=with_origin)))
    writer.finish()


@app.command(cls=Command)
def path(ctx: typer.Context, config: _ConfigOption = None) -> None:
    """Print the path of the settings file, which need not exist."""
    file = _file(ctx, config)
    writer = AnswerWriter()
    writer.write(str(file))
    writer.finish()
    if not os.path.lexists(file):
        streams.say("there is no such file yet: llama-chat config edit makes it")


@app.command(cls=Command)
def init(ctx: typer.Context, config: _ConfigOption = None) -> None:
    """Write a settings file with every default and its meaning."""
    _create(_file(ctx, config))


@app.command(cls=Command)
def edit(ctx: typer.Context, config: _ConfigOption = None) -> None:
    """Edit the settings file in $VISUAL or $EDITOR.

    It is created if there is none, and replaced only if what you write is valid. A graphical editor
    must wait until it is closed: EDITOR="code --wait".
    """
    file = _file(ctx, config)
    command = find_editor()
    if not os.path.lexists(file):
        _create(file)
    changed = editing.edit(file, command, read_config)
    streams.say(f"changed: {file}" if changed else f"not changed: {file}")


def as_toml(settings: Settings, *, with_origin: bool = False) -> str:
    """Format all settings in the order and groups of ``SETTINGS``; an unset one is a comment."""
    lines: list[str] = []
    for group, members in itertools.groupby(SETTINGS.values(), lambda setting: setting.group):
        lines += ["", f"# --- {group} ---"]
        for setting in members:
            value, source = settings.value(setting.name), settings.source(setting.name)
            line = toml_line(setting.name, value)
            comment = f"  # {streams.one_line(source)}" if with_origin else ""
            lines.append(f"{line:<{_COLUMN}}{comment}" if comment else line)
    return "\n".join(lines[1:])


def toml_line(name: str, value: Value) -> str:
    """Format one setting; an unset one is a comment."""
    return f"# {name} =" if value is None else f"{name} = {_toml(value)}"


def _toml(value: Value) -> str:
    """Format a value on one line of TOML."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # JSON values are valid TOML, except for DEL, which ``escaped`` replaces, and lone surrogates.
    return without_surrogates(json.dumps(value, ensure_ascii=False))


def _file(ctx: typer.Context, config: str | None) -> Path:
    """Return the path of the settings file in force, or the usual path if there is none."""
    flags: Flags = ctx.obj | ({"config": config} if config else {})
    return config_path(config_flag(flags), os.environ) or usual_config_path()


def _create(file: Path) -> None:
    write_new(file, resource("config.toml").read_bytes())
    streams.say(f"made {file}")
