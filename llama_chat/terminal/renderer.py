"""What the chat shows on the terminal."""

import os
import sys
from collections.abc import Iterable, Sequence

from rich.console import COLOR_SYSTEMS, Console
from rich.text import Text

from llama_chat.chat.conversation import Message
from llama_chat.generation.events import Finish
from llama_chat.terminal.markdown import MarkdownStream, Painter
from llama_chat.terminal.markdown.painting import DIM, Span
from llama_chat.terminal.sanitizer import sanitize
from llama_chat.terminal.streams import use_color
from llama_chat.terminal.tables import FittedTable


class Renderer:
    """Writes replies as they stream, and notes between them.

    Append-only: nothing that was written is touched again, and the terminal does the wrapping, so
    that copying a long line gives one line.
    """

    def __init__(self, color: str = "auto", markdown: str = "auto", *, plain: bool = False) -> None:
        """Write to stdout.

        Args:
            color: ``auto``, ``always`` or ``never``.
            markdown: the same, for formatting replies.
            plain: whether the cursor must never move back.
        """
        self.plain = plain or os.environ.get("TERM") == "dumb"
        self.colored = use_color(color, sys.stdout) and not (self.plain and color == "auto")
        self._formatted = markdown == "always" or (markdown == "auto" and not self.plain)
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
        """Begin a reply, or go on with one of which ``begun`` was written before."""
        writer = ReplyWriter(self, self._painter(), formatted=self._formatted)
        writer.skip(begun)
        return writer

    def write(self, text: str, *, status: str = "") -> None:
        """Write text that is harmless already.

        Args:
            text: what stays.
            status: a few words on what goes on unseen; they stand at the end until more is
                written. Where the cursor cannot move back they are left out.
        """
        status = "" if self.plain else status
        if not text and status == self._status:
            return
        if self._status:
            self.console.file.write("\r\x1b[K")
        self.console.file.write(text)
        if status:
            self.console.file.write(self._painter().paint([Span(status, DIM)]))
        self.console.file.flush()
        self._status = status
        self._at_line_start = text.endswith("\n") or (not text and self._at_line_start)

    def end_line(self) -> None:
        """End a line that was begun."""
        self.write("" if self._at_line_start else "\n")

    def space(self) -> None:
        """Leave a line free."""
        self.write("\n")

    def line(self, text: Text) -> None:
        """Write a line in its own styles; its text is harmless already."""
        self.end_line()
        self.console.print(text)

    def note(self, line: str, style: str = "dim") -> None:
        """Write a line that is ours, in dim letters."""
        self.end_line()
        self.console.print(Text(sanitize(line), style=style))

    def error(self, line: str) -> None:
        """Write what went wrong."""
        self.note(line, "red")

    def echo_user(self, text: str) -> None:
        """Write what a person said, as it stood in the input."""
        self.end_line()
        self.console.print(Text(f"› {sanitize(text)}", style="bold"))

    def show(self, message: Message | None) -> None:
        """Write a message as it stood on the screen, with the question before a reply."""
        if message is None:
            return
        if message.role == "user":
            self.echo_user(message.preview if message.attachments else message.text)
            return
        self.show(message.parent)
        writer = self.reply()
        writer.push(message.text)
        writer.finish()

    def ended(self, finish: Finish, *, begun: bool) -> None:
        """Say how a reply ended, unless it did as it should.

        Args:
            finish: its end.
            begun: whether it went on with an earlier one.
        """
        n = finish.usage.completion_tokens
        match finish.reason:
            case "stop" if not n:
                self.note("the model has nothing to add" if begun else "the model ended it at once")
            case "interrupted":
                self.note(f"stopped after {n} tokens; what was said is kept; /continue goes on")
            case "length":
                self.note(f"cut off after {n} tokens; /continue goes on, /max-tokens allows more")
            case "context":
                self.note(f"cut off after {n} tokens: the context is full; /continue drops turns")

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        right: Sequence[str] = (),
        long: Sequence[str] = (),
        fold: bool = False,
    ) -> None:
        """Write a table without lines, as wide as the terminal at most.

        Args:
            columns: their headings.
            rows: cells.
            right: the columns of numbers.
            long: the columns that give way where it is too wide; the last one if none is named.
            fold: whether they take more lines then, or are cut.
        """
        table = FittedTable(
            list(rows),
            columns,
            right=[columns.index(name) for name in right],
            yielding={columns.index(name): 1 for name in long},
            fold=fold,
        )
        self.end_line()
        self.console.print(table, soft_wrap=False)

    def _painter(self) -> Painter:
        system = self.console.color_system
        return Painter(COLOR_SYSTEMS[system] if system else None, colored=self.colored)


class ReplyWriter:
    """One reply, written as it comes."""

    def __init__(self, renderer: Renderer, painter: Painter, *, formatted: bool) -> None:
        self._renderer = renderer
        self._markdown = (
            MarkdownStream(painter, lambda: renderer.console.width) if formatted else None
        )

    def skip(self, text: str) -> None:
        """Go on behind ``text`` without writing it: a code block that it opens is open."""
        if self._markdown is not None:
            self._markdown.push(text[: text.rfind("\n") + 1])

    def push(self, text: str) -> None:
        """Write a piece."""
        if self._markdown is None:
            self._renderer.write(sanitize(text))
        elif text:
            self._renderer.write(self._markdown.push(text), status=self._markdown.waiting)

    def finish(self) -> None:
        """Write what was held back, and end the last line."""
        if self._markdown is not None:
            self._renderer.write(self._markdown.finish())
        self._renderer.end_line()
