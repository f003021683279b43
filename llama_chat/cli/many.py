"""Answers to many questions at once, each a line of JSON: ``ask --lines`` and ``ask --jsonl``."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from llama_chat.chat.prompt_files import PromptFile
from llama_chat.chat.prompt_slots import slot_names
from llama_chat.cli.answering import answer_json, cut_json, limit_is_given
from llama_chat.cli.choosing import ReplyChoices, choice_json
from llama_chat.cli.interfaces import AskedModel, AskedSession, Scheduler
from llama_chat.cli.loading import (
    named_prompt,
    new_session,
    open_model,
    overlaid,
    with_prompt_file,
)
from llama_chat.cli.records import Lines, Record, answered_lines, read_record
from llama_chat.cli.slots import Slots
from llama_chat.cli.warm import open_warm
from llama_chat.errors import LengthLimitError, LlamaChatError, UsageError, counted
from llama_chat.files import expand_user
from llama_chat.generation.constraints import Grammar
from llama_chat.generation.events import Finish
from llama_chat.server.client import LostServer
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams
from llama_chat.terminal.progress import Report, progress

AreLines = Annotated[
    bool, typer.Option("--lines", help="A question in each line of stdin; answers are JSON lines.")
]
AreRecords = Annotated[
    bool, typer.Option("--jsonl", help="Like --lines, with a JSON string or object in each line.")
]
Unordered = Annotated[
    bool, typer.Option("--unordered", help="Write each answer as soon as it is complete.")
]
FailFast = Annotated[
    bool, typer.Option("--fail-fast", help="Stop at the first line that cannot be answered.")
]
ResumeFrom = Annotated[
    str | None,
    typer.Option("--resume-from", metavar="FILE", help="Skip lines that FILE has answers of."),
]


@dataclass(frozen=True, slots=True)
class LineOptions:
    """Flags of ``ask`` about lines."""

    lines: bool
    jsonl: bool
    unordered: bool
    fail_fast: bool
    resume_from: str | None

    def reads_lines(self, *, dry_run: bool, logprobs: int) -> bool:
        """True if stdin has a question in each line.

        Raises:
            UsageError: if flags are given that need or exclude others.
        """
        if self.lines and self.jsonl:
            raise UsageError("--lines", "--jsonl is given too", "give one of them")
        if self.lines or self.jsonl:
            for_one_question = {"--dry-run": dry_run, "--logprobs": logprobs > 0}
            for flag, is_given in for_one_question.items():
                if is_given:
                    raise UsageError(flag, "it is about one question", "ask without --lines")
            return True
        further = {
            "--unordered": self.unordered,
            "--fail-fast": self.fail_fast,
            "--resume-from": self.resume_from is not None,
        }
        for flag, is_given in further.items():
            if is_given:
                raise UsageError(flag, "it is about many lines", "add --lines or --jsonl")
        return False


def answer_lines(
    question: str | None,
    settings: Settings,
    slots: Slots,
    options: LineOptions,
    *,
    grammar: Grammar | None = None,
    reply_choices: ReplyChoices | None = None,
    fail_on_length: bool = False,
) -> None:
    """Answer each line of stdin, with the ``question`` after it if there is one.

    Raises:
        LlamaChatError: at the end, if lines could not be answered; with ``fail_fast`` at the first.
        LengthLimitError: at the end, if answers are cut off, and ``fail_on_length`` is set.
    """
    answered = _answered(options)
    prompt = named_prompt(settings)
    by_record = None if prompt is None or options.lines else _lacking(prompt, slots)
    if prompt is not None and by_record is None:
        prompt = slots.fill(prompt)
    slots.check_used(by_record)
    settings = with_prompt_file(settings, prompt)
    lines = Lines()
    n_choices = 0 if reply_choices is None else len(reply_choices.texts)
    model, settings = open_warm(settings, n_choices=n_choices) or open_model(settings)
    notify = streams.warn if settings.verbose else None
    if by_record is None:
        session = new_session(model, settings, prompt, streams.warn, grammar)

    def session_of(record: Record) -> AskedSession:
        if by_record is None:
            return session
        filled = slots.fill(by_record, record.values)
        return new_session(model, overlaid(settings, filled), filled, streams.warn, grammar)

    run = _Run(model.name, settings, session_of, question or "", options, answered, reply_choices)
    scheduler = model.scheduler(settings.parallel, notify=notify)
    with progress("Answering", in_items=True, hidden=settings.hides_progress) as report:
        try:
            run.answer(model, scheduler, lines, report)
        except LostServer as lost:
            raise LostServer(lost.why, "go on with --resume-from, or --no-server") from None
        finally:
            run.answers.write_complete()
    run.report_end(fail_on_length)


def _lacking(prompt: PromptFile, slots: Slots) -> PromptFile | None:
    """Return a prompt file if it has slots that only the fields of records can fill."""
    return None if slot_names(prompt) <= slots.values.keys() else prompt


def _answered(options: LineOptions) -> set[int]:
    """Return the lines to skip; if the output ends within a line, end that line."""
    if options.resume_from is None:
        return set()
    path = expand_user(options.resume_from)
    answered = answered_lines(path)
    if _is_stdout(path) and _ends_within_a_line(path):
        streams.write_own("\n")
    return answered


def _is_stdout(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False


def _ends_within_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1, 0))
        return file.read() not in (b"", b"\n")


class _Answers:
    """Answers, written in the order of their lines, or as they are complete."""

    def __init__(self, *, unordered: bool) -> None:
        self._unordered = unordered
        self._pending: dict[int, dict[str, Any] | None] = {}
        """By the numbers of lines, in order; None while one is not complete."""

    def begin(self, line: int) -> None:
        """Reserve the place of the next line in the output."""
        self._pending[line] = None

    def complete(self, line: int, answer: dict[str, Any]) -> None:
        """Store an answer, and write every answer that is next in order."""
        self._pending[line] = answer
        while self._pending:
            number = line if self._unordered else next(iter(self._pending))
            next_one = self._pending.get(number)
            if next_one is None:
                return
            del self._pending[number]
            streams.write_json(next_one)

    def awaits_before(self, line: int) -> bool:
        """True if an answer of an earlier line is not complete."""
        return any(number < line and not answer for number, answer in self._pending.items())

    def write_complete(self) -> None:
        """Write the complete answers, even if earlier ones are missing."""
        pending, self._pending = self._pending, {}
        for answer in pending.values():
            if answer is not None:
                streams.write_json(answer)


@dataclass(frozen=True, slots=True)
class _Failed:
    """A line that cannot be answered, and its error."""

    line: int
    error: LlamaChatError


class _Run:
    """Answers to all lines of a run, and how many failed."""

    def __init__(
        self,
        model: str,
        settings: Settings,
        session_of: Callable[[Record], AskedSession],
        question: str,
        options: LineOptions,
        answered: set[int],
        reply_choices: ReplyChoices | None,
    ) -> None:
        self.answers = _Answers(unordered=options.unordered)
        self._model, self._settings, self._session_of = model, settings, session_of
        self._question, self._options, self._answered = question, options, answered
        self._reply_choices = reply_choices
        self._texts: dict[int, str] = {}
        """Text so far of each answer, by the number of its line."""
        self._last: _Failed | None = None
        """Line at which ``--fail-fast`` ends the run, once those before it are answered."""
        self._n_failed = self._n_cut = self._n_done = 0

    def answer(self, model: AskedModel, scheduler: Scheduler, lines: Lines, report: Report) -> None:
        """Answer the lines, and report the number of answers after each.

        Args:
            model: the model.
            scheduler: one of its schedulers.
            lines: the lines.
            report: called after each answer.
        """
        requests = self._requests(scheduler, lines, report)
        for record, event in model.generate_all(scheduler, requests):
            if isinstance(event, LlamaChatError):
                self._fail(record.line, record.keys, event)
            else:
                text = self._texts[record.line] = self._texts.get(record.line, "") + event.text
                if not isinstance(event, Finish):
                    continue
                del self._texts[record.line]
                self._n_cut += event.reason in ("length", "context")
                found = answer_json(text, event, self._model)
                self.answers.complete(record.line, {**record.keys, **found})
            self._count(lines, report)
            if self._last is not None and not self.answers.awaits_before(self._last.line):
                return

    def _count(self, lines: Lines, report: Report) -> None:
        self._n_done += 1
        report(self._n_done, max(lines.total - len(self._answered), 0))

    def _requests(
        self, scheduler: Scheduler, lines: Lines, report: Report
    ) -> Iterator[tuple[Record, Any] | None]:
        """Yield the lines that can be answered; see ``generate_all``."""
        for arrived in lines(lambda: scheduler.n_running + scheduler.n_waiting > 0):
            if self._last is not None:
                return
            if arrived is None:
                yield None
                continue
            number, data = arrived
            if number in self._answered:
                continue
            keys: Any = {"line": number}
            try:
                record = read_record(number, data, as_json=self._options.jsonl)
                if record is None:
                    continue
                keys = record.keys
                message = self._message(record)
                session = self._session_of(record)
                if self._reply_choices is not None:
                    found = choice_json(session, message, self._reply_choices, self._model)
                    self.answers.begin(number)
                    self.answers.complete(number, {**keys, **found})
                    self._count(lines, report)
                    continue
                request = session.request(message, with_logprobs=False)
            except LostServer:
                raise
            except LlamaChatError as error:
                self.answers.begin(number)
                self._fail(number, keys, error)
                self._count(lines, report)
                if self._last is not None:
                    return
            else:
                self.answers.begin(number)
                yield record, request

    def _message(self, record: Record) -> str:
        """Combine the question of a record with the common one.

        Raises:
            UsageError: if there is neither.
        """
        parts = [part for part in (record.question, self._question) if part.strip()]
        if not parts:
            raise UsageError("record", "it has no question", 'write {"question": "…"}')
        return "\n\n".join(parts)

    def _fail(self, line: int, keys: Any, error: LlamaChatError) -> None:
        if self._options.fail_fast:
            if self._last is None or line < self._last.line:
                error = type(error)(f"line {line}: {error.what}", error.why, error.advice)
                self._last = _Failed(line, error)
            return
        self._n_failed += 1
        text = self._texts.pop(line, "")
        self.answers.complete(line, {**keys, **cut_json(text, error)})

    def report_end(self, fail_on_length: bool) -> None:
        """Report how many lines failed, and how many answers were cut off.

        Raises:
            LlamaChatError: if lines failed; of ``--fail-fast`` the error of that line.
            LengthLimitError: if answers are cut off, and ``fail_on_length`` is set.
        """
        if self._last is not None:
            raise self._last.error
        if self._n_failed:
            why = f"{counted(self._n_failed, 'line')} of {self._n_done} not answered"
            raise LlamaChatError("lines", why, "see their errors in the output")
        if not self._n_cut:
            return
        why, advice = f"{self._n_cut} of {self._n_done} cut off", "raise --max-tokens"
        if fail_on_length:
            raise LengthLimitError("answers", why, advice)
        settings = self._settings
        if settings.verbose or not (settings.quiet or limit_is_given(settings)):
            streams.warn(f"answers: {why}: {advice}")
