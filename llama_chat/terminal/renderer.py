"""Output of the chat on the terminal."""

import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence

from rich.cells import cell_len
from rich.console import COLOR_SYSTEMS, Console
from rich.text import Text

from llama_chat.chat.conversation import Message
from llama_chat.errors import counted
from llama_chat.generation.events import Finish
from llama_chat.settings.definitions import OutputSettings
from llama_chat.terminal.echo import shortened
from llama_chat.terminal.markdown import MarkdownStream, Painter, ResumedStream, highlighting
from llama_chat.terminal.markdown.painting import DIM, Span
from llama_chat.terminal.markdown.wrapping import wrapped
from llama_chat.terminal.sanitizer import sanitize
from llama_chat.terminal.streams import is_dumb, is_terminal, use_color
from llama_chat.terminal.tables import FittedTable
from llama_chat.terminal.theme import Background, substitutes

_STYLE = re.compile(r"\x1b\[[0-9;]*m")

REPLY_MARK = "── model"
"""Line before a reply."""


class Renderer:
    """Writer of replies as they stream, and of notes between them.

    Append-only: written text is never redrawn, except for a status at the end.
    """

    def __init__(self, settings: OutputSettings, background: Background) -> None:
        """Write to stdout; with ``settings.plain`` the cursor never moves back."""
        color, markdown = settings.color, settings.markdown
        self.plain = settings.plain or is_dumb()
        self.colored = (
            use_color(color, sys.stdout)
            and not (self.plain and color == "auto")
            and settings.theme != "none"
        )
        self._quiet = settings.quiet
        self._theme, self._background = settings.theme, background
        self._formatted = markdown == "always" or (markdown == "auto" and not self.plain)
        self._wraps = settings.wrap == "words" and is_terminal(sys.stdout)
        self.console = Console(
            file=sys.stdout,
            highlight=False,
            markup=False,
            emoji=False,
            no_color=not self.colored,
            color_system="auto" if self.colored or not self.plain else None,
            soft_wrap=True,
        )
        self._at_line_start = True
        self._status = ""

    def reply(self, begun: str = "") -> "ReplyWriter":
        """Begin a reply, or continue one whose part ``begun`` was written before.

        A mark shows who speaks: always the same, so that no width of the terminal breaks it.
        """
        if not (begun or self.plain or self._quiet):
            self.line(Text(REPLY_MARK, style="dim"))
        return ReplyWriter(self, self._markdown(begun) if self._formatted else None)

    def _markdown(self, begun: str) -> MarkdownStream:
        painter = self._painter()

        def width() -> int:
            return self.console.width

        if begun:
            return ResumedStream(painter, width, begun, wrap=self._wraps)
        return MarkdownStream(painter, width, wrap=self._wraps)

    def prepare(self) -> None:
        """Load what replies need, so that the first one does not wait for it."""
        if self._formatted:
            highlighting.preload()

    def write(self, text: str, *, status: str = "") -> None:
        """Write text that is sanitized already.

        Args:
            text: the text.
            status: a few words about held text, shown at the end until more is written; left out
                if the cursor cannot move back.
        """
        status = "" if self.plain else status
        if not text and status == self._status:
            return
        file = self.console.file  # which Rich looks for anew each time
        if self._status:
            file.write("\r\x1b[K")
        file.write(text)
        if status:
            file.write(self._painter().paint([Span(status, DIM)]))
        file.flush()
        self._status = status
        self._at_line_start = text.endswith("\n") or (not text and self._at_line_start)

    def end_line(self) -> None:
        """End a line that was begun."""
        self.write("" if self._at_line_start else "\n")

    def space(self) -> None:
        """Write a newline, to leave an empty line between exchanges."""
        self.write("\n")

    def line(self, text: Text) -> None:
        """Write a line that has styles."""
        self.end_line()
        text = text.copy()
        text.plain = sanitize(text.plain)  # of the same length: the styles stay where they are
        self.console.print(text)

    def note(self, line: str, style: str = "dim") -> None:
        """Write a line of the program, dim unless another style is given."""
        text = sanitize(line)
        if self._wraps and not self.plain:
            text = wrapped(text, self.console.width)
        self.line(Text(text, style=style))

    def error(self, line: str) -> None:
        """Write an error message."""
        self.note(line, "red")

    def echo_user(self, text: str) -> None:
        """Write a message of the user as it looked in the input."""
        self.line(Text(f"› {sanitize(shortened(text))}", style="bold"))

    def show(self, message: Message | None) -> None:
        """Write a message as it looked at first, a reply after its question."""
        if message is None:
            return
        if message.role != "user":
            self.show(message.parent)
        self.show_alone(message)

    def show_alone(self, message: Message) -> None:
        """Write a message as it looked at first."""
        if message.role == "user":
            self.echo_user(message.preview if message.attachments else message.text)
            return
        self.reply().finish(message.text)
        if message.interrupted:
            self.note("(interrupted)")

    def drawn(self, messages: Iterable[Message]) -> str:
        """Return what the messages look like, as text for the terminal."""
        text, file = io.StringIO(), self.console.file
        self.console.file = text
        try:
            for number, message in enumerate(messages):
                if number and message.role == "user":
                    self.space()
                self.show_alone(message)
        finally:
            self.console.file = file
        return text.getvalue()

    def fits(self, text: str) -> bool:
        """True if a text for the terminal fits on the screen, with a prompt below."""
        columns, lines = self.console.size
        widths = (cell_len(_STYLE.sub("", line)) for line in text.splitlines())
        return sum(-(-width // columns) or 1 for width in widths) <= lines - 3

    def ended(self, finish: Finish, *, begun: bool, drops_turns: bool) -> None:
        """Write a note if a reply was empty or did not end by itself.

        Args:
            finish: the last event of the reply.
            begun: whether it continued an earlier one.
            drops_turns: whether the oldest turns are dropped where the context is full.
        """
        n = finish.usage.completion_tokens
        tokens = counted(n, "token")
        match finish.reason:
            case "stop" if not n:
                self.note("the model has nothing to add" if begun else "the model ended it at once")
            case "interrupted" if not n:
                self.note("stopped before the first token; /continue goes on")
            case "interrupted":
                self.note(f"stopped after {tokens}; the text is kept; /continue goes on")
            case "length":
                self.note(f"cut off after {tokens}; /continue goes on, /max-tokens allows more")
            case "context":
                more = "/continue drops turns" if drops_turns else "/undo and /clear make room"
                self.note(f"cut off after {tokens}: the context is full; {more}")

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        right: Sequence[str] = (),
        long: Mapping[str, int] | None = None,
        fold: bool = False,
    ) -> None:
        """Write a table without borders, at most as wide as the terminal.

        Args:
            columns: their headings.
            rows: cells.
            right: the columns of numbers.
            long: the columns that shrink first if it is too wide, each to a width; then the last
                ones shrink.
            fold: whether cells that do not fit take more lines, or are cut.
        """
        table = FittedTable(
            list(rows),
            columns,
            right=[columns.index(name) for name in right],
            yielding={columns.index(name): width for name, width in (long or {}).items()},
            fold=fold,
        )
        self.end_line()
        self.console.print(table, soft_wrap=False)

    def question(self) -> str:
        """Return a question to the terminal that the colours depend on; empty if there is none."""
        return self._background.question() if self.colored and self._theme == "auto" else ""

    def _painter(self) -> Painter:
        system = self.console.color_system
        return Painter(
            COLOR_SYSTEMS[system] if system else None,
            colored=self.colored,
            substitutes=substitutes(self._theme, self._background) if self.colored else {},
        )


class ReplyWriter:
    """Writer of one reply, piece by piece."""

    def __init__(self, renderer: Renderer, markdown: MarkdownStream | None) -> None:
        self._renderer = renderer
        self._markdown = markdown

    def push(self, text: str) -> None:
        """Write a piece."""
        if self._markdown is None:
            self._renderer.write(sanitize(text))
        elif text:
            self._renderer.write(self._markdown.push(text), status=self._markdown.waiting)

    def finish(self, text: str = "") -> None:
        """Write ``text`` and what is held, and end the last line."""
        if self._markdown is None:
            self._renderer.write(sanitize(text))
        else:
            self._renderer.write(self._markdown.push(text) + self._markdown.finish())
        self._renderer.end_line()
