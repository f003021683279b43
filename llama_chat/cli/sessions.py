"""``llama-chat sessions``: saved conversations."""

import json
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from llama_chat.chat import store
from llama_chat.chat.dialogs import to_dialog, to_markdown
from llama_chat.cli.completing import conversations
from llama_chat.terminal import streams
from llama_chat.terminal.sanitizer import escaped, sanitize
from llama_chat.terminal.streams import AnswerWriter

app = typer.Typer(name="sessions", help="Saved conversations.", rich_markup_mode=None)

_COLUMNS = ("name", "saved", "messages", "model", "title")
_NAME, _, _MESSAGES, _MODEL, _TITLE = range(len(_COLUMNS))

_YIELDING = [(_TITLE, 20), (_MODEL, 8), (_NAME, 24)]
"""Which column is cut first where a terminal is narrow, and how much of it stays."""

_GAP = "  "

_LATEST = 253_400_000_000
"""In seconds since 1970; in the year 10000 dates end, but the time of a file may be later."""


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
        streams.warn(f"conversation {path.stem!r}: its last line is cut off: to mend it, resume it")
    messages = loaded.conversation.preface() + loaded.conversation.path()
    if _wants_json(ctx, as_json):
        _write_json(to_dialog(messages))
    else:
        _write(to_markdown(messages, path.stem))


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
    """Whether ``--json`` was given, be it before the name of the subcommand."""
    return as_json or bool(ctx.parent and ctx.parent.params["as_json"])


def _write_list(*, as_json: bool) -> None:
    entries = store.entries()
    if as_json:
        _write_json(list(map(_describe, entries)))
    elif not entries:
        streams.say("no conversation is saved yet")
    elif streams.is_terminal(sys.stdout):
        width = shutil.get_terminal_size().columns
        _write(_table(list(map(_row, entries)), width))
    else:
        _write("".join("\t".join(_row(entry)) + "\n" for entry in entries))


def _describe(entry: store.Entry) -> dict[str, Any]:
    """A conversation for programs."""
    return {
        "name": entry.name,
        "changed": _time(entry).astimezone().isoformat(timespec="seconds"),
        "messages": entry.n_messages,
        "model": entry.model,
        "title": entry.title,
        "problem": entry.problem,
    }


def _row(entry: store.Entry) -> list[str]:
    """A conversation for people, a cell for each column."""
    when = f"{_time(entry):%Y-%m-%d %H:%M}"
    said = (str(entry.n_messages), entry.model, entry.title)
    if entry.problem:
        said = ("", "", f"unreadable: {entry.problem}")
    return [sanitize(streams.one_line(cell)) for cell in (entry.name, when, *said)]


def _time(entry: store.Entry) -> datetime:
    """When it was saved, in local time."""
    return datetime.fromtimestamp(min(max(entry.changed, 0), _LATEST))


def _table(rows: Sequence[Sequence[str]], width: int) -> str:
    """Rows in columns that fit into ``width``; what is cut ends in …."""
    from rich.cells import cell_len, set_cell_size

    def fit(cell: str, width: int) -> str:
        if cell_len(cell) > width:
            cell = set_cell_size(cell, width - 1) + "…"
        return set_cell_size(cell, width)

    rows = [_COLUMNS, *rows]
    widths = [max(map(cell_len, cells)) for cells in zip(*rows, strict=True)]
    for column, least in [*_YIELDING, *((column, 1) for column in reversed(range(len(widths))))]:
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
        widths[column] -= max(0, min(excess, widths[column] - least))
    lines = []
    for row in rows:
        cells = list(row)
        cells[_MESSAGES] = cells[_MESSAGES].rjust(widths[_MESSAGES])
        lines.append(fit(_GAP.join(map(fit, cells, widths)), width).rstrip() + "\n")
    return "".join(lines)


def _write_json(value: object) -> None:
    _write(escaped(json.dumps(value, ensure_ascii=False)))


def _write(text: str) -> None:
    writer = AnswerWriter()
    writer.write(text)
    writer.finish()
