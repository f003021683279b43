"""``llama-chat complete``: continue raw text."""

import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
    _check_flags(settings, through_template=through_template)
    constraint = read_grammar(json_schema, regex, grammar)
    slots = Slots(variables, lambda: _for_slots(files, settings))
    prompts = [_open(name, settings, slots) for name in files]
    slots.check_used()
    texts = list(_texts(files, prompts))
    if dry_run:
        _preview(texts, settings, through_template=through_template, as_json=as_json)
        return
    completion = _Completion(options, constraint, through_template, echo)
    if len(texts) > 1 or not completion.write_warm(texts[0], settings):
        completion.answer(texts, settings)


def _check_flags(settings: Settings, *, through_template: bool) -> None:
    """Check that no flag is given which would change nothing.

    Raises:
        UsageError: about one that would.
    """
    if settings.is_given_by_flag("prompt"):
        raise UsageError("--prompt", "the files are the prompts", "leave it out, or use ask")
    if settings.is_given_by_flag("system") and not through_template:
        raise UsageError("--system", "a raw text has no system message", "add --chat")


@dataclass(frozen=True, slots=True)
class _Text:
    """A text to continue, and the prompt file that it is from."""

    text: str
    prompt: PromptFile
    title: str
    """Line on stderr that tells it from others; empty if there are none."""

    def announce(self, settings: Settings, *, as_json: bool) -> None:
        """Write the title, unless JSON is written, which has a line for each text."""
        if self.title and not as_json and not settings.quiet:
            streams.say(self.title)


def _texts(files: Sequence[str], prompts: Sequence[PromptFile]) -> Iterator[_Text]:
    """Yield the texts of all files, in their order."""
    for name, prompt in zip(files, prompts, strict=True):
        queries = prompt.queries if len(prompt.queries) > 1 else ("",)
        for query, text in zip(queries, prompt.renders(), strict=True):
            question = textwrap.shorten(query, 60, placeholder=" …")
            title = f"==> {name}: {question} <==" if question else f"==> {name} <=="
            yield _Text(text, prompt, title if query or len(files) > 1 else "")


def _preview(
    texts: Sequence[_Text], settings: Settings, *, through_template: bool, as_json: bool
) -> None:
    """Show the prompts instead of answering them."""
    from llama_chat.cli.dry_run import Preview  # imports the templates

    preview = Preview(settings, as_json=as_json)
    for each in texts:
        ours = with_prompt_file(settings, each.prompt)
        each.announce(ours, as_json=as_json)
        if through_template:
            preview.show_message(ours, None, each.text)
        else:
            preview.show_text(ours, each.text)


@dataclass(frozen=True, slots=True)
class _Completion:
    """Writer of the continuations of texts, raw or as messages of new conversations."""

    options: AnswerOptions
    grammar: Grammar | None
    through_template: bool
    echoes: bool
    """True to write each text before its continuation."""

    def write_warm(self, text: _Text, settings: Settings) -> bool:
        """Write the answer of a running server; return False if there is none."""
        return write_warm(
            lambda warm, own: self._generations(warm).request(text.text, own),
            with_prompt_file(settings, text.prompt),
            self.options,
            through_template=self.through_template,
            echo=text.text if self.echoes else "",
        )

    def answer(self, texts: Sequence[_Text], settings: Settings) -> None:
        """Write all answers, of a model that is loaded, or for several of a running server."""
        options = self.options
        found: tuple[Llama | RemoteModel | WarmModel, Settings] | None = None
        if len(texts) > 1:
            found = open_warm(settings, n_logprobs=options.n_logprobs, receipts=options.as_json)
        if found is None:
            strip = str.strip if self.through_template else str
            to_fit = [strip(each.text) for each in texts]
            found = open_model(settings, to_fit, n_logprobs=options.n_logprobs)
        model, settings = found
        jobs = [(each.text, overlaid(settings, each.prompt)) for each in texts]
        begun = self._generations(model).begin(jobs, settings)
        for each, (text, own), (generate, describe) in zip(texts, jobs, begun, strict=True):
            each.announce(own, as_json=options.as_json)
            write_answer(
                generate,
                own,
                options,
                model=model.name,
                describe=describe,
                through_template=self.through_template,
                echo=text if self.echoes else "",
            )

    def _generations(self, model: "Llama | RemoteModel | WarmModel") -> "_Generations":
        n_logprobs = self.options.n_logprobs
        return _Generations(model, self.grammar, self.through_template, n_logprobs)


@dataclass(frozen=True, slots=True)
class _Generations:
    """Generations that continue texts, raw or as messages of new conversations."""

    model: "Llama | RemoteModel | WarmModel"
    grammar: Grammar | None
    through_template: bool
    n_logprobs: int

    def begin(
        self, texts: Sequence[tuple[str, Settings]], settings: Settings
    ) -> Iterator[tuple[Generate, Describe]]:
        """Yield the generation of each text with its description; several are computed together."""
        if len(texts) == 1:
            [(text, own)] = texts
            begin = self._reply if self.through_template else self._alone
            generate, asked = begin(text, own)
            yield generate, self._describe(own, asked)
            return
        notify = streams.warn if settings.verbose else None
        requests = [self._request_or_error(text, own) for text, own in texts]
        model: AskedModel = self.model
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
        model = cast("Llama | RemoteModel", self.model)
        return describe_answer(model, settings, asked, self.n_logprobs)

    def _asked(self, request: Any, settings: Settings) -> GenerationInputs:
        """Return the inputs of an answer of a local model."""
        if not self.through_template:
            return GenerationInputs.of_request(request)
        model = cast("Llama", self.model)
        template = model.template(settings.template, settings.template_name)
        return GenerationInputs.of_request(request, template)

    def _reply(
        self, text: str, settings: Settings
    ) -> tuple[Generate, Callable[[], GenerationInputs]]:
        """Begin a reply, which always has log-probabilities."""
        model = cast("Llama | RemoteModel", self.model)
        session = new_session(model, settings, None, streams.warn, self.grammar)
        return partial(session.send, text), partial(asked_of, session)

    def _alone(
        self, text: str, settings: Settings
    ) -> tuple[Generate, Callable[[], GenerationInputs]]:
        """Begin a continuation, with drafts from earlier text."""
        model: AskedModel = self.model
        request = self._continuation(text, settings)
        generate = partial(model.generate_request, request, lookup=settings.lookup)
        return generate, partial(GenerationInputs.of_request, request)

    def request(self, text: str, settings: Settings) -> Any:
        """Encode a text that is continued with others, or by a server.

        Raises:
            LlamaChatError: if it cannot be.
        """
        if self.through_template:
            session = new_session(self.model, settings, None, streams.warn, self.grammar)
            return session.request(text)
        return self._continuation(text, settings)

    def _request_or_error(self, text: str, settings: Settings) -> Any:
        try:
            return self.request(text, settings)
        except LlamaChatError as error:
            return error

    def _continuation(self, text: str, settings: Settings) -> Any:
        return self.model.text_request(
            text, settings, grammar=self.grammar, n_logprobs=self.n_logprobs
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
