"""``llama-chat models``: models on this machine."""

import sys
from typing import Annotated, Any

import typer

from llama_chat.cli.completing import own_models
from llama_chat.cli.help import Command, Group
from llama_chat.cli.listing import write_rows
from llama_chat.cli.options import takes
from llama_chat.errors import UsageError, did_you_mean
from llama_chat.files import local_time, readable_size, readable_time
from llama_chat.library import NO_MODEL_ADVICE, Model, installed_models, own_folder, remove
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams

app = typer.Typer(name="models", cls=Group, rich_markup_mode=None)

_COLUMNS = ("name", "size", "format", "from", "changed", "path")
_NAME, _SIZE, _FORMAT, _FROM, _CHANGED, _PATH = range(len(_COLUMNS))

_YIELDING = {_PATH: 20, _NAME: 24, _FORMAT: 8}
"""Minimum widths by column, in the order in which a narrow terminal cuts them."""


@app.callback(invoke_without_command=True)
@takes("model_paths")
def models(
    settings: Settings,
    paths: Annotated[bool, typer.Option("--paths", help="Show their paths.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write one line of JSON.")] = False,
) -> None:
    """List or remove the models on this machine.

    Without a command it lists them by the names that -m takes. It looks in the folder of `pull`,
    the Hugging Face cache, the stores of ollama and LM Studio, and the folders of model_paths.
    """
    found = installed_models(settings.model_paths)
    if as_json:
        streams.write_json(list(map(_describe, found)))
    elif not found:
        streams.say(f"no model is on this machine yet: {NO_MODEL_ADVICE}")
    else:
        shown = len(_COLUMNS) if paths else _PATH
        yielding = {column: least for column, least in _YIELDING.items() if column < shown}
        rows = [_row(model)[:shown] for model in found]
        write_rows(_COLUMNS[:shown], rows, yielding=yielding, right=(_SIZE,))


@app.command(cls=Command)
def rm(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name in the list of `models`.", autocompletion=own_models
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Remove a downloaded model.

    Models that other programs downloaded are theirs to remove.
    """
    found = installed_models()
    own = {model.name: model for model in found if model.source == "own"}
    if name not in own:
        theirs = [model for model in found if name in (model.name, *model.aliases)]
        if theirs:
            why = f"it is no model of ours but from {theirs[0].source}"
            raise UsageError(f"model {name[:80]!r}", why, f"it is at {theirs[0].path}")
        advice = f"there is none in {own_folder()}"
        if own:
            advice = did_you_mean(name, own, "llama-chat models lists them")
        raise UsageError(f"model {name[:80]!r}", "there is none of that name", advice)
    model = own[name]
    if not yes:
        if not streams.is_terminal(sys.stdin):
            raise UsageError(
                f"model {name[:80]!r}", "there is no terminal to confirm it", "give --yes"
            )
        size = readable_size(model.n_bytes)
        if not streams.confirm(f"Remove {name} ({size})?", by_enter=False):
            streams.say("nothing is removed")
            return
    remove(model)
    streams.say(f"removed {name}")


def _describe(model: Model) -> dict[str, Any]:
    """Describe a model for programs."""
    return {
        "name": model.name,
        "path": str(model.path),
        "format": model.format,
        "quantization": model.quantization,
        "bytes": model.n_bytes,
        "from": model.source,
        "changed": local_time(model.changed).isoformat(timespec="seconds"),
    }


def _row(model: Model) -> list[str]:
    """Describe a model for people, a cell for each column."""
    size, when = readable_size(model.n_bytes), readable_time(model.changed)
    return [model.name, size, model.kind, model.source, when, str(model.path)]
