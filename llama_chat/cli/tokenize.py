"""``llama-chat tokenize``: the ids of a text."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from llama_chat.chat.dialogs import parse_dialog
from llama_chat.chat.prompt_files import read_prompt_text
from llama_chat.chat.templates import choose_template
from llama_chat.cli.loading import model_path
from llama_chat.cli.options import takes_settings
from llama_chat.errors import UsageError
from llama_chat.settings.definitions import Settings
from llama_chat.terminal import streams
from llama_chat.terminal.streams import AnswerWriter


@takes_settings
def tokenize(
    settings: Settings,
    file: Annotated[str, typer.Argument(metavar="[FILE|-]", help="A text; stdin if none.")] = "-",
    dialog: Annotated[
        str | None,
        typer.Option("--dialog", metavar="FILE.json", help="[{role, content}, …], with template."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help='{"ids": […], "pieces": […]}')] = False,
) -> None:
    """Show the ids and pieces of a text, or of a dialog through the chat template.

    Every byte counts, a final newline too, but for a byte-order mark at the beginning, which is no
    part of a text. No BOS is added. The model may be the path of a tokenizer.model alone.
    """
    if file == "-" and dialog is None and streams.is_terminal(sys.stdin):
        raise UsageError("text", "there is none", "name a file, or pipe a text to stdin")
    text = _read(file if dialog is None else dialog)
    path = model_path(settings)
    from llama_chat.loading.formats import open_tokenizer

    tokenizer, template_text = open_tokenizer(path)
    if dialog is None:
        ids = tokenizer.encode(text)
    else:
        template = choose_template(settings.template, template_text, tokenizer)
        ids = template.render(parse_dialog(text, dialog))
    pieces = [tokenizer.piece(token_id) for token_id in ids]
    if as_json:
        streams.write_json({"ids": ids, "pieces": pieces})
        return
    writer = AnswerWriter()
    for token_id, piece in zip(ids, pieces, strict=True):
        writer.write(f"{token_id:>6}  {piece!r}\n")
    writer.finish()


def _read(name: str) -> str:
    return streams.read_stdin() if name == "-" else read_prompt_text(Path(name))
