"""``llama-chat ask``: one question, one answer."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

from llama_chat.cli.answering import AnswerOptions, asked_of, describe_answer, write_answer
from llama_chat.cli.choosing import (
    Choices,
    ChoicesFile,
    NormalizeBy,
    ReplyChoices,
    read_choices,
    write_choice,
)
from llama_chat.cli.flags import (
    DryRun,
    FailOnLength,
    GrammarFile,
    JsonSchema,
    Logprobs,
    Regex,
    Variables,
)
from llama_chat.cli.grammars import read_grammar
from llama_chat.cli.loading import new_session, open_model, open_prompt, with_prompt_file
from llama_chat.cli.many import (
    AreLines,
    AreRecords,
    FailFast,
    LineOptions,
    ResumeFrom,
    Unordered,
    answer_lines,
)
from llama_chat.cli.options import takes_settings
from llama_chat.cli.slots import Slots, read_piped
from llama_chat.cli.warm import open_warm, write_warm
from llama_chat.errors import UsageError
from llama_chat.files import without_final_newline
from llama_chat.generation.constraints import Grammar
from llama_chat.server.client import LostServer
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams


@takes_settings
def ask(
    settings: Settings,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[QUESTION]",
            help="The question, in quotes; `-` or none reads it from stdin.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Write control characters unchanged.")] = False,
    fail_on_length: FailOnLength = False,
    variables: Variables = None,
    dry_run: DryRun = False,
    lines: AreLines = False,
    jsonl: AreRecords = False,
    unordered: Unordered = False,
    fail_fast: FailFast = False,
    resume_from: ResumeFrom = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    grammar: GrammarFile = None,
    logprobs: Logprobs = 0,
    choices: Choices = None,
    choices_file: ChoicesFile = None,
    normalize: NormalizeBy = "none",
) -> None:
    """Answer a question, or one in each line of stdin.

    The question goes through the chat template. A piped stdin is a document: the message is the
    document, a blank line and the question, unless the prompt file has a slot for the document.
    With --lines and --jsonl every line is such a document.
    """
    words = words or []
    if len(words) > 1:
        raise UsageError("question", f"it is {len(words)} words", 'quote it: llama-chat ask "…"')
    question = words[0] if words else None
    constraint = read_grammar(json_schema, regex, grammar)
    options = LineOptions(lines, jsonl, unordered, fail_fast, resume_from)
    reply_choices = read_choices(
        choices, choices_file, normalize, has_grammar=constraint is not None
    )
    if options.reads_lines(dry_run=dry_run, logprobs=logprobs):
        answer_lines(
            question,
            settings,
            Slots(variables),
            options,
            grammar=constraint,
            reply_choices=reply_choices,
            fail_on_length=fail_on_length,
        )
        return
    answer(
        question,
        settings,
        variables,
        AnswerOptions(as_json, raw, fail_on_length, logprobs),
        grammar=constraint,
        dry_run=dry_run,
        reply_choices=reply_choices,
    )


def _message(question: str | None, settings: Settings, slots: Slots) -> str:
    """Combine a question and a piped stdin into a message.

    Raises:
        UsageError: if there is neither.
    """
    question = None if question == "-" else question
    if question is not None and not question.strip():
        raise UsageError("question", "it is empty", 'ask something: llama-chat ask "Why?"')
    if slots.takes_stdin:
        if question is None:
            raise UsageError("question", "there is none beside {{stdin}}", 'llama-chat ask "Why?"')
        return question
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
    question: str | None,
    settings: Settings,
    variables: Sequence[str] | None,
    options: AnswerOptions,
    *,
    grammar: Grammar | None = None,
    dry_run: bool = False,
    reply_choices: ReplyChoices | None = None,
) -> None:
    """Answer a question, stdin or both, and write the answer to stdout; or show the prompt."""
    options.check()
    slots = Slots(variables, lambda: read_piped(quiet=settings.quiet))
    prompt = open_prompt(settings, slots)
    slots.check_used()
    message = _message(question, settings, slots)
    settings = with_prompt_file(settings, prompt)
    if dry_run:
        from llama_chat.cli.dry_run import Preview  # imports the templates

        Preview(settings, as_json=options.as_json).show_message(settings, prompt, message)
        return
    if reply_choices is not None and (
        found := open_warm(settings, n_choices=len(reply_choices.texts))
    ):
        warm, ours = found
        dialog = new_session(warm, ours, prompt, streams.warn)
        with suppress(LostServer):
            write_choice(dialog, message, reply_choices, ours, options, model=warm.name)
            return
    if reply_choices is None and write_warm(
        lambda warm, ours: new_session(warm, ours, prompt, streams.warn, grammar).request(message),
        settings,
        options,
    ):
        return
    model, settings = open_model(settings, [message.strip()], n_logprobs=options.n_logprobs)
    session = new_session(model, settings, prompt, streams.warn, grammar)
    if reply_choices is not None:
        write_choice(session, message, reply_choices, settings, options, model=model.name)
        return
    write_answer(
        lambda hooks: session.send(message, hooks),
        settings,
        options,
        model=model.name,
        describe=describe_answer(model, settings, lambda: asked_of(session), options.n_logprobs),
    )
