"""Command-line options of the settings, added to a command by a decorator."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from llama_chat.cli.completing import completer
from llama_chat.errors import UsageError
from llama_chat.files import expand_user
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.setting import Setting
from llama_chat.settings.sources import load_settings

Flags = dict[str, Any]
"""Values as typed, by the name of the setting; None where a flag was not given."""

_METAVARS = {
    "integer": "N",
    "number": "X",
    "path": "PATH",
    "list": "TEXT",
    "text": "TEXT",
    "size": "SIZE",
    "time": "TIME",
}


def _parameter(setting: Setting, *, in_groups: bool) -> inspect.Parameter:
    """Make the function parameter from which Typer builds the option of a setting.

    Values arrive as text, since ranges are checked in one place for flags and files alike.
    """
    default = "" if setting.default in (None, "", (), False) else f" [default: {setting.default}]"
    names = [setting.flag] + ([setting.short] if setting.short else [])
    if setting.off_flag is not None:
        names, default = [f"{setting.flag}/{setting.off_flag}"], " [default: on]"
    metavar = "|".join(setting.values) if setting.kind == "choice" else _METAVARS.get(setting.kind)
    metavar = "PATH" if setting.is_paths else metavar
    option = typer.Option(
        *names,
        help=setting.help + default,
        metavar=metavar,
        show_default=False,
        rich_help_panel=setting.group if in_groups else None,
        autocompletion=completer(setting),
    )
    annotations: dict[str, Any] = {
        "switch": Annotated[bool | None, option],
        "list": Annotated[list[str] | None, option],
    }
    annotation = annotations.get(setting.kind, Annotated[str | None, option])
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


_CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Option("--config", metavar="PATH", help="Settings file."),
    ],
)


def takes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command options for these settings, and call it with the ``settings`` in force.

    Flags before the name of a subcommand apply to it too; those after it take precedence.
    """
    return lambda command: _with_options(
        command, [SETTINGS[name] for name in names], in_groups=False
    )


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command options for all settings, in groups; see ``takes``."""
    return _with_options(command, list(SETTINGS.values()), in_groups=True)


def _with_options(
    command: Callable[..., None], settings: Sequence[Setting], *, in_groups: bool
) -> Callable[..., None]:
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command).parameters.values()
        if parameter.name not in ("ctx", "settings")
    ]
    context = inspect.Parameter(
        "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    options = [_CONFIG, *(_parameter(each, in_groups=in_groups) for each in settings)]

    @functools.wraps(command)
    def wrapper(ctx: typer.Context, **arguments: Any) -> None:
        given: Flags = {option.name: arguments.pop(option.name) for option in options}
        before: Flags = ctx.obj or {}
        flags = before | {name: value for name, value in given.items() if value not in (None, [])}
        ctx.obj = flags
        if ctx.invoked_subcommand is None:
            command(settings=load_settings(flags, config_flag(flags)), **arguments)
        else:
            _refuse_given(ctx, arguments)

    parameters = [context, *own, *options]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # read by Typer
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return wrapper


def _refuse_given(ctx: typer.Context, names: Iterable[str]) -> None:
    """Refuse flags in front of a subcommand that are no settings: it would not see them.

    Raises:
        UsageError: about the first of them.
    """
    flags = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            what = flags[name]
            why = f"it is in front of {ctx.invoked_subcommand}"
            raise UsageError(what, why, f"write llama-chat {ctx.invoked_subcommand} {what} …")


def config_flag(flags: Flags) -> Path | None:
    """Return the settings file that ``--config`` names."""
    return expand_user(flags["config"]) if flags.get("config") else None
