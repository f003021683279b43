"""``llama-chat tokenize``: the ids of a text."""

import sys
from collections.abc import Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer

from llama_chat.chat.dialogs import parse_dialog
from llama_chat.chat.prompt_files import read_prompt_text
from llama_chat.chat.templates import choose_template
from llama_chat.chat.templates.base import Origin
from llama_chat.cli.loading import importing_torch, model_path
from llama_chat.cli.options import takes_settings
from llama_chat.errors import UsageError
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams
from llama_chat.terminal.streams import AnswerWriter


@takes_settings
def tokenize(
    settings: Settings,
    file: Annotated[
        str,
        typer.Argument(
            metavar="[FILE]", help="Text file; `-` or none is stdin.", show_default=False
        ),
    ] = "-",
    dialog: Annotated[
        str | None,
        typer.Option(
            "--dialog", metavar="FILE.json", help="JSON dialog to encode with the chat template."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help='{"ids": […], "pieces": […]}')] = False,
) -> None:
    """Show the token ids and pieces of a text or a dialog.

    A dialog is [{role, content}, …]; for each of its tokens it also shows the origin: control,
    template or message. Every byte of a text counts, a final newline too, except for a byte-order
    mark at the beginning. No BOS is added. The model may be the path of a tokenizer.model alone.
    """
    if file != "-" and dialog is not None:
        raise UsageError("--dialog", f"{file!r} is given too", "give one of them")
    if file == "-" and dialog is None and streams.is_terminal(sys.stdin):
        raise UsageError("text", "there is none", "name a file, or pipe a text to stdin")
    text = _read(file if dialog is None else dialog)
    path = model_path(settings)
    with importing_torch():
        from llama_chat.loading.formats import open_tokenizer

    tokenizer, templates = open_tokenizer(path)
    origins: list[Origin] = []
    if dialog is None:
        ids = tokenizer.encode(text)
    else:
        template = choose_template(settings.template, templates, tokenizer, settings.template_name)
        if note := template.take_note():
            streams.warn(note)
        messages = parse_dialog(text, dialog)
        ids, origins = template.render(messages), template.origins(messages)
    pieces = [tokenizer.piece(token_id) for token_id in ids]
    if as_json:
        report: dict[str, Any] = {"ids": ids, "pieces": pieces}
        report |= {"spans": spans(origins)} if dialog is not None else {}
        streams.write_json(report)
        return
    writer = AnswerWriter()
    for token_id, piece, origin in zip_longest(ids, map(repr, pieces), origins, fillvalue=""):
        writer.write(f"{token_id:>6}  {piece:<20}  {origin}".rstrip() + "\n")
    writer.finish()


def spans(origins: Sequence[Origin]) -> list[dict[str, int | Origin]]:
    """Return the runs of tokens of one origin: control, template or message."""
    spans: list[dict[str, int | Origin]] = []
    start = 0
    for origin, run in groupby(origins):
        end = start + len(list(run))
        spans.append({"start": start, "end": end, "from": origin})
        start = end
    return spans


def _read(name: str) -> str:
    return streams.read_stdin(must_fit=False) if name == "-" else read_prompt_text(Path(name))
