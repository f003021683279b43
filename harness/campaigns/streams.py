"""Write hostile streams, byte by byte, through every writer of the program, and read their output.

    python -m harness.campaigns.streams [--count 100000] [--seed 0]

A finding is a control, reordering or surrogate character in the output that is not the program's
own: newline and tab, colours, and the removal of a status; in a pipe also a carriage return before
a newline, and marks that only have a direction.
"""

import argparse
import codecs
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from random import Random

from rich.text import Text

from llama_chat.cli.listing import write_rows
from llama_chat.settings.setting import Value
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams
from llama_chat.terminal.page import draw_page, safe_text
from llama_chat.terminal.progress import progress
from llama_chat.terminal.renderer import Renderer
from llama_chat.terminal.sanitizer import DIRECTION_MARKS, REPLACEMENTS
from llama_chat.terminal.theme import Background

PIECES = (
    *(b"\x1b]52;c;ZXZpbA==\x07", b"\x1b]8;;http://e\x1b\\l\x1b]8;;\x1b\\", b"\x1b]0;t\x07"),
    *(b"\x1b[2J\x1b[H", b"\x1b[31m", b"\x1b[?1049h", b"\x1b[6n", b"\x1bP+q\x1b\\", b"\x1bc"),
    *(b"\xc2\x9b31m", b"\xc2\x9d52;c;x\xc2\x9c", b"\x9b2J", b"\x0e", b"\r", b"\b", b"\x7f", b"\0"),
    *(b"\xe2\x80\xae", b"\xe2\x81\xa6", b"\xe2\x80\x8f", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
    *(b"```python\n", b"```\n", b"| a | b |\n|---|---|\n", b"**", b"`", b"[a](http://b ", b"# "),
    *(b"\n", b"\r\n", b"\t", b" ", b"word ", b"- ", b"> ", b"1. ", b"&#27;", b"&#x9b;", b"\\"),
    *(text.encode() for text in ("naïve ", "日本語", "🇫🇷", "עברית ", "नमस्ते ", "👩‍👩‍👧", "e\u0301")),
)
"""Pieces that streams are made of, besides random bytes."""

_NONE = re.compile(r"(?!)")
_STYLES = re.compile(r"\r\x1b\[K|\x1b\[[0-9](?:;[0-9])*m")
_COLORS = re.compile(r"\r\x1b\[K|\x1b\[[0-9;]*m")
_BAR = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[lh]|2K|\d*A)|\r")
"""Sequences of the program: the removal of a status, with styles or colours; bars of Rich."""

Write = Callable[[list[str]], None]


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_stream(random: Random) -> bytes:
    """Make a hostile stream."""
    return b"".join(
        random.choice(PIECES) if random.random() < 0.8 else random.randbytes(random.randint(1, 4))
        for _ in range(random.randint(1, 12))
    )


def split(stream: bytes) -> list[str]:
    """Decode a stream that comes a byte at a time, as from tokens of one byte each."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = [decoder.decode(bytes([byte])) for byte in stream]
    return [*pieces, decoder.decode(b"", final=True)]


@contextmanager
def _streams(*, terminal: bool) -> Iterator[io.StringIO]:
    made = _Screen() if terminal else io.StringIO()
    with redirect_stdout(made), redirect_stderr(made):
        yield made


def _answer(pieces: list[str]) -> None:
    writer = streams.AnswerWriter()
    for piece in pieces:
        writer.write(piece)
    writer.finish()


def _replies(**values: Value) -> Write:
    def write(pieces: list[str]) -> None:
        writer = _renderer(values).reply()
        for piece in pieces:
            writer.push(piece)
        writer.finish()

    return write


def _renderer(values: Mapping[str, Value]) -> Renderer:
    settings = Settings()
    for name, value in values.items():
        settings = settings.change(name, value, "a flag")
    return Renderer(settings, Background())


def _lines(pieces: list[str]) -> None:
    text = "".join(pieces)
    renderer = _renderer({"plain": True})
    renderer.note(text)
    renderer.error(text)
    renderer.echo_user(text)
    renderer.line(Text(text))
    renderer.table(("a", "b"), [(text, "1")], right=("b",))
    for say in (streams.say, streams.warn, streams.fail):
        say(text)
    write_rows(("a", "b"), [(text, text)], yielding={0: 1}, right=(1,))
    section = {"a": safe_text(text)}
    streams.write_own(draw_page(safe_text(text), section, colored=False))


def _json(pieces: list[str]) -> None:
    text = "".join(pieces)
    streams.write_json({text: [text]})
    assert isinstance(sys.stdout, io.StringIO)
    assert json.loads(sys.stdout.getvalue()) == {text: [text]}


def _bar(pieces: list[str]) -> None:
    with progress("".join(pieces), delay_s=0) as report:
        report(1, 2)


@dataclass(frozen=True)
class Writer:
    """A way in which the program writes text."""

    write: Write
    """Writes the pieces of a stream."""
    own: re.Pattern[str] = _NONE
    """Control sequences of the program itself."""
    terminal: bool = True
    every: int = 1
    """Every n-th stream is written."""


WRITERS = {
    "an answer on a terminal": Writer(_answer),
    "an answer in a pipe": Writer(_answer, terminal=False),
    "a plain reply": Writer(_replies(plain=True)),
    "a reply in Markdown": Writer(_replies(markdown="always", color="never"), _STYLES),
    "a reply in colours": Writer(_replies(markdown="always", color="always"), _COLORS),
    "lines on a terminal": Writer(_lines),
    "lines in a pipe": Writer(_lines, terminal=False),
    "JSON": Writer(_json),
    "a progress bar": Writer(_bar, _BAR, every=100),
}


def written_by(writer: Writer, pieces: list[str]) -> str:
    """Return what a writer makes of a stream."""
    with _streams(terminal=writer.terminal) as screen:
        writer.write(pieces)
    return screen.getvalue()


def let_through(writer: Writer, pieces: list[str]) -> str:
    """Return the characters of a stream that a writer should not have let through."""
    written = writer.own.sub("", written_by(writer, pieces))
    if not writer.terminal:
        written = written.replace("\r\n", "\n").translate(dict.fromkeys(map(ord, DIRECTION_MARKS)))
    return "".join(character for character in written if character in REPLACEMENTS)


def main() -> int:
    """Run the campaign; returns 1 if anything was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = Random(options.seed)
    written: Counter[str] = Counter()
    found = 0
    for number in range(options.count):
        stream = make_stream(random)
        pieces = split(stream)
        for name, writer in WRITERS.items():
            if number % writer.every == 0:
                written[name] += 1
                if bad := let_through(writer, pieces):
                    found += 1
                    print(f"{name} lets {bad!r} of {stream!r} through", flush=True)
    for name, n in written.items():
        print(f"{name}: {n:,} streams")
    print(f"{found} findings; seed {options.seed}")
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main())
