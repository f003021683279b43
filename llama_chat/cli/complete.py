"""``llama-chat complete``: continue raw text."""

import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from llama_chat.chat.prompt_files import PromptFile, load_prompt, raw_prompt
from llama_chat.chat.receipts import Describe, GenerationInputs
from llama_chat.cli.answering import AnswerOptions, asked_of, describe_answer, write_answer
from llama_chat.cli.completing import prompts
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
from llama_chat.cli.interfaces import AskedModel
from llama_chat.cli.loading import new_session, open_model, overlaid, with_prompt_file
from llama_chat.cli.options import takes_settings
from llama_chat.cli.slots import Slots, read_piped
from llama_chat.cli.warm import open_warm, write_warm
from llama_chat.errors import LlamaChatError, UsageError
from llama_chat.generation.batch_reader import BatchReader
from llama_chat.generation.constraints import Grammar
from llama_chat.generation.events import Event, Hooks
from llama_chat.server.warm_model import WarmModel, WarmRequest
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams

if TYPE_CHECKING:
    from llama_chat.llama import Llama
    from llama_chat.remote import RemoteModel

Generate = Callable[[Hooks], Iterator[Event]]


@takes_settings
def complete(
    settings: Settings,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="Prompt files or names; `-` is stdin.", autocompletion=prompts
        ),
    ],
    through_template: Annotated[
        bool, typer.Option("--chat", help="Apply the chat template.")
    ] = False,
    echo: Annotated[bool, typer.Option("--echo", help="Write the prompt first.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one line of JSON per answer.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Write control characters unchanged.")] = False,
    fail_on_length: FailOnLength = False,
    variables: Variables = None,
    dry_run: DryRun = False,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    grammar: GrammarFile = None,
    logprobs: Logprobs = 0,
) -> None:
    """Continue the text of prompt files.

    The prompt is the text of the file without its final newline, with its slots filled. A
    structured file is answered once for each of its questions. Several files share one load.
    """
    if files.count("-") > 1:
        raise _stdin_twice()
    options = AnswerOptions(as_json, raw, fail_on_length, logprobs)
    options.check()
    constraint = read_grammar(json_schema, regex, grammar)
    slots = Slots(variables, lambda: _for_slots(files, settings))
    prompts = [_open(name, settings, slots) for name in files]
    slots.check_used()
    if dry_run:
        _preview(files, prompts, settings, through_template=through_template, as_json=as_json)
        return
    texts = [text for prompt in prompts for text in prompt.renders()]
    ours = [with_prompt_file(settings, prompt) for prompt in prompts]
    if len(texts) == 1:

        def ask(warm: WarmModel, own: Settings) -> WarmRequest:
            if through_template:
                return new_session(warm, own, None, streams.warn, constraint).request(texts[0])
            return warm.text_request(texts[0], own, grammar=constraint, n_logprobs=logprobs)

        done = write_warm(
            ask,
            ours[0],
            options,
            through_template=through_template,
            echo=texts[0] if echo else "",
        )
        if done:
            return
    checked = map(str.strip, texts) if through_template else texts
    found = open_warm(settings, n_logprobs=logprobs, receipts=as_json) if len(texts) > 1 else None
    model, settings = found or open_model(settings, checked, n_logprobs=logprobs)
    ours = [overlaid(settings, prompt) for prompt in prompts]
    jobs = [
        (text, own) for own, prompt in zip(ours, prompts, strict=True) for text in prompt.renders()
    ]
    generations = _Texts(
        model, constraint, through_template=through_template, n_logprobs=logprobs
    ).begin(jobs, settings)
    for name, prompt, own in zip(files, prompts, ours, strict=True):
        for title, text in _titled(name, prompt, many=len(files) > 1):
            if title and not as_json and not own.quiet:
                streams.say(title)
            generate, describe = next(generations)
            write_answer(
                generate,
                own,
                options,
                model=model.name,
                describe=describe,
                through_template=through_template,
                echo=text if echo else "",
            )


def _titled(name: str, prompt: PromptFile, *, many: bool) -> Iterator[tuple[str, str]]:
    """Yield the texts of a file, each with the title to write to stderr, if there are several."""
    queries = prompt.queries if len(prompt.queries) > 1 else ("",)
    for query, text in zip(queries, prompt.renders(), strict=True):
        question = textwrap.shorten(query, 60, placeholder=" …")
        title = f"==> {name}: {question} <==" if question else f"==> {name} <=="
        yield title if query or many else "", text


def _preview(
    files: Sequence[str],
    prompts: Sequence[PromptFile],
    settings: Settings,
    *,
    through_template: bool,
    as_json: bool,
) -> None:
    """Show the prompts instead of answering them."""
    from llama_chat.cli.dry_run import Preview  # imports the templates

    preview = Preview(settings, as_json=as_json)
    for name, prompt in zip(files, prompts, strict=True):
        ours = with_prompt_file(settings, prompt)
        for title, text in _titled(name, prompt, many=len(files) > 1):
            if title and not as_json and not ours.quiet:
                streams.say(title)
            if through_template:
                preview.show_message(ours, None, text)
            else:
                preview.show_text(ours, text)


class _Texts:
    """Generations that continue texts, raw or as messages of new conversations."""

    def __init__(
        self,
        model: "Llama | RemoteModel | WarmModel",
        grammar: Grammar | None,
        *,
        through_template: bool,
        n_logprobs: int,
    ) -> None:
        self._model = model
        self._grammar = grammar
        self._through_template = through_template
        self._n_logprobs = n_logprobs

    def begin(
        self, texts: Sequence[tuple[str, Settings]], settings: Settings
    ) -> Iterator[tuple[Generate, Describe]]:
        """Yield the generation of each text with its description; several are computed together."""
        if len(texts) == 1:
            [(text, own)] = texts
            begin = self._reply if self._through_template else self._alone
            generate, asked = begin(text, own)
            yield generate, self._describe(own, asked)
            return
        notify = streams.warn if settings.verbose else None
        requests = [self._request(text, own) for text, own in texts]
        model: AskedModel = self._model
        scheduler = model.scheduler(settings.parallel, notify=notify)
        reader = BatchReader(partial(model.generate_all, scheduler), requests)
        for i, (request, (_, own)) in enumerate(zip(requests, texts, strict=True)):
            describe = (
                request.describe
                if isinstance(request, WarmRequest)
                else self._describe(own, partial(self._asked, request, own))
            )
            yield partial(_read, reader, i), describe

    def _describe(self, settings: Settings, asked: Callable[[], GenerationInputs]) -> Describe:
        """Return the description of an answer, which a warm server gives itself."""
        model = cast("Llama | RemoteModel", self._model)
        return describe_answer(model, settings, asked, self._n_logprobs)

    def _asked(self, request: Any, settings: Settings) -> GenerationInputs:
        """Return the inputs of an answer of a local model."""
        if not self._through_template:
            return GenerationInputs.of_request(request)
        model = cast("Llama", self._model)
        template = model.template(settings.template, settings.template_name)
        return GenerationInputs.of_request(request, template)

    def _reply(
        self, text: str, settings: Settings
    ) -> tuple[Generate, Callable[[], GenerationInputs]]:
        """Begin a reply, which always has log-probabilities."""
        model = cast("Llama | RemoteModel", self._model)
        session = new_session(model, settings, None, streams.warn, self._grammar)
        return partial(session.send, text), partial(asked_of, session)

    def _alone(
        self, text: str, settings: Settings
    ) -> tuple[Generate, Callable[[], GenerationInputs]]:
        """Begin a continuation, with drafts from earlier text."""
        model: AskedModel = self._model
        request = self._continuation(text, settings)
        generate = partial(model.generate_request, request, lookup=settings.lookup)
        return generate, partial(GenerationInputs.of_request, request)

    def _request(self, text: str, settings: Settings) -> Any:
        """Encode a text to be continued with others; returns the error if it cannot be."""
        try:
            if self._through_template:
                session = new_session(self._model, settings, None, streams.warn, self._grammar)
                return session.request(text)
            return self._continuation(text, settings)
        except LlamaChatError as error:
            return error

    def _continuation(self, text: str, settings: Settings) -> Any:
        return self._model.text_request(
            text, settings, grammar=self._grammar, n_logprobs=self._n_logprobs
        )


def _read(reader: BatchReader[Any], index: int, hooks: Hooks) -> Iterator[Event]:
    return reader.read(index)


def _stdin_twice() -> UsageError:
    return UsageError("stdin", "named twice", "it can be read only once")


def _for_slots(files: Sequence[str], settings: Settings) -> str:
    if "-" in files:
        raise _stdin_twice()
    return read_piped(quiet=settings.quiet)


def _open(name: str, settings: Settings, slots: Slots) -> PromptFile:
    if name != "-":
        return slots.fill(load_prompt(name))
    if streams.is_terminal(sys.stdin):
        raise UsageError("stdin", "it is a terminal", "pipe a text to it, or name a file")
    return raw_prompt(streams.read_stdin(quiet=settings.quiet), Path("stdin"))
