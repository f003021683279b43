"""``llama-chat complete``: continue raw text."""

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_chat.chat.prompt_files import PromptFile, load_prompt, raw_prompt
from llama_chat.cli.answering import FailOnLength, write_answer
from llama_chat.cli.completing import prompts
from llama_chat.cli.loading import load_model, new_session, with_prompt_file
from llama_chat.cli.options import takes_settings
from llama_chat.errors import UsageError
from llama_chat.generation.events import Event, Hooks
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams

if TYPE_CHECKING:
    from llama_chat.llama import Llama


@takes_settings
def complete(
    settings: Settings,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE…", help="Prompt files or names; `-` is stdin.", autocompletion=prompts
        ),
    ],
    through_template: Annotated[
        bool, typer.Option("--chat", help="Apply the chat template.")
    ] = False,
    echo: Annotated[bool, typer.Option("--echo", help="Write the prompt first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON per file.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Pass control characters on.")] = False,
    fail_on_length: FailOnLength = False,
) -> None:
    """Continue the text of prompt files; several files share one load.

    The bytes of a text file are the prompt, less one final newline. A structured file is answered
    once for each of its questions.
    """
    if files.count("-") > 1:
        raise UsageError("stdin", "named twice", "it can be read only once")
    prompts = [_open(name, settings) for name in files]
    llama, settings = load_model(settings)
    for name, prompt in zip(files, prompts, strict=True):
        ours = with_prompt_file(settings, prompt)
        queries = prompt.queries if len(prompt.queries) > 1 else ("",)
        for query, text in zip(queries, prompt.renders(), strict=True):
            if (query or len(files) > 1) and not as_json and not ours.quiet:
                streams.say(_title(name, query))
            write_answer(
                _generation(llama, ours, text, through_template),
                ours,
                model=llama.name,
                as_json=as_json,
                raw=raw,
                echo=text if echo else "",
                fail_on_length=fail_on_length,
            )


def _title(name: str, query: str) -> str:
    """Return the line on stderr before the answer to a file, or to one ``query`` of several."""
    question = textwrap.shorten(query, 60, placeholder=" …")
    return f"==> {name}: {question} <==" if question else f"==> {name} <=="


def _generation(
    llama: "Llama", settings: Settings, text: str, through_template: bool
) -> Callable[[Hooks], Iterator[Event]]:
    """Make a generation that continues ``text``, raw or as a message of a new conversation."""
    if through_template:
        session = new_session(llama, settings, None, streams.warn)
        return lambda hooks: session.send(text, hooks)
    return lambda hooks: llama.generate(
        llama.prompt_ids(text),
        settings.sampling,
        max_tokens=settings.max_tokens,
        stop=settings.stop,
        lookup=settings.lookup,
        hooks=hooks,
    )


def _open(name: str, settings: Settings) -> PromptFile:
    if name != "-":
        return load_prompt(name)
    if streams.is_terminal(sys.stdin):
        raise UsageError("stdin", "it is a terminal", "pipe a text to it, or name a file")
    return raw_prompt(streams.read_stdin(quiet=settings.quiet), Path("stdin"))
