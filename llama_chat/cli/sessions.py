"""``llama-chat sessions``: saved conversations."""

from typing import Annotated, Any

import typer

from llama_chat.chat import store
from llama_chat.chat.dialogs import to_dialog, to_markdown
from llama_chat.cli.completing import conversations
from llama_chat.cli.listing import write, write_rows
from llama_chat.files import local_time, readable_time
from llama_chat.terminal import streams

app = typer.Typer(name="sessions", help="Saved conversations.", rich_markup_mode=None)

_COLUMNS = ("name", "saved", "messages", "model", "title")
_NAME, _, _MESSAGES, _MODEL, _TITLE = range(len(_COLUMNS))

_YIELDING = {_TITLE: 20, _MODEL: 8, _NAME: 24}
"""Minimum widths by column, in the order in which a narrow terminal cuts them."""

_JsonOption = Annotated[bool, typer.Option("--json", help="One line of JSON.")]
_Name = Annotated[
    str,
    typer.Argument(help="Name, or how it begins.", autocompletion=conversations, metavar="NAME"),
]
_Names = Annotated[
    list[str], typer.Argument(help="Whole names.", autocompletion=conversations, metavar="NAME...")
]


@app.callback(invoke_without_command=True)
def sessions(ctx: typer.Context, as_json: _JsonOption = False) -> None:
    """Saved conversations; alone, it lists them."""
    if ctx.invoked_subcommand is None:
        _write_list(as_json=as_json)


@app.command("list")
def list_all(ctx: typer.Context, as_json: _JsonOption = False) -> None:
    """List them, the latest first."""
    _write_list(as_json=_wants_json(ctx, as_json))


@app.command()
def show(ctx: typer.Context, name: _Name, as_json: _JsonOption = False) -> None:
    """Print one in Markdown.

    The system message and examples come first, as the model is shown them; then all that was said
    up to where the conversation stands.
    """
    path = store.find(name)
    loaded = store.read(path)
    if loaded.cut:
        streams.warn(
            f"conversation {path.stem!r}: its last line is cut off: resume it to repair it"
        )
    messages = loaded.conversation.preface() + loaded.conversation.path()
    if _wants_json(ctx, as_json):
        streams.write_json(to_dialog(messages))
    else:
        write(to_markdown(messages, path.stem))


@app.command()
def rm(names: _Names) -> None:
    """Remove all that are named; none if one cannot be."""
    paths = [store.find(name, whole=True) for name in dict.fromkeys(names)]
    for path in paths:
        store.refuse_if_open(path)
    for path in paths:
        store.remove(path)
        streams.say(f"removed {path.stem}")


def _wants_json(ctx: typer.Context, as_json: bool) -> bool:
    """True if ``--json`` was given, before or after the name of the subcommand."""
    return as_json or bool(ctx.parent and ctx.parent.params["as_json"])


def _write_list(*, as_json: bool) -> None:
    entries = store.entries()
    if as_json:
        streams.write_json(list(map(_describe, entries)))
    elif not entries:
        streams.say("no conversation is saved yet")
    else:
        write_rows(_COLUMNS, list(map(_row, entries)), yielding=_YIELDING, right=(_MESSAGES,))


def _describe(entry: store.Entry) -> dict[str, Any]:
    """Describe a conversation for programs."""
    return {
        "name": entry.name,
        "changed": local_time(entry.changed).isoformat(timespec="seconds"),
        "messages": entry.n_messages,
        "model": entry.model,
        "title": entry.title,
        "problem": entry.problem,
    }


def _row(entry: store.Entry) -> list[str]:
    """Describe a conversation for people, a cell for each column."""
    when = readable_time(entry.changed)
    cells = (str(entry.n_messages), entry.model, entry.title)
    if entry.problem:
        cells = ("", "", f"unreadable: {entry.problem}")
    return [entry.name, when, *cells]
