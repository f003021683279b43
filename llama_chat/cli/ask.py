"""``llama-chat ask``: one question, one answer."""

import sys
from typing import Annotated

import typer

from llama_chat.cli.answering import FailOnLength, write_answer
from llama_chat.cli.loading import load_model, new_session, open_prompt, with_prompt_file
from llama_chat.cli.options import takes_settings
from llama_chat.errors import UsageError
from llama_chat.files import without_final_newline
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams


@takes_settings
def ask(
    settings: Settings,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[QUESTION]",
            help="The question, in quotes; `-`, or none, takes all from stdin.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Pass control characters on.")] = False,
    fail_on_length: FailOnLength = False,
) -> None:
    """Answer one question through the chat template.

    With stdin piped the document comes first, then a blank line, then the question.
    """
    words = words or []
    if len(words) > 1:
        raise UsageError("question", f"it is {len(words)} words", 'quote it: llama-chat ask "…"')
    message = message_of(words[0] if words else None, settings)
    answer(message, settings, as_json=as_json, raw=raw, fail_on_length=fail_on_length)


def message_of(question: str | None, settings: Settings) -> str:
    """Combine a question and a piped stdin into a message.

    Raises:
        UsageError: if there is neither.
    """
    question = None if question == "-" else question
    if question is not None and not question.strip():
        raise UsageError("question", "it is empty", 'ask something: llama-chat ask "Why?"')
    if streams.is_terminal(sys.stdin) or sys.stdin is None:
        if question is None:
            raise UsageError(
                "question", "there is none", 'llama-chat ask "Why?", or pipe a text to stdin'
            )
        return question
    advice = "" if question is None else "; </dev/null sends the question alone"
    document = without_final_newline(streams.read_stdin(quiet=settings.quiet, advice=advice))
    if document.strip():
        return document if question is None else f"{document}\n\n{question}"
    if question is None:
        raise UsageError("stdin", "it is empty", "pipe a text to it")
    return question  # cron and CI run programs with an empty stdin


def answer(
    message: str,
    settings: Settings,
    *,
    as_json: bool = False,
    raw: bool = False,
    fail_on_length: bool = False,
) -> None:
    """Answer one message and write the answer to stdout; see ``write_answer``."""
    prompt = open_prompt(settings)
    settings = with_prompt_file(settings, prompt)
    llama, settings = load_model(settings)
    session = new_session(llama, settings, prompt, streams.warn)
    write_answer(
        lambda hooks: session.send(message, hooks),
        settings,
        model=llama.name,
        as_json=as_json,
        raw=raw,
        fail_on_length=fail_on_length,
    )
