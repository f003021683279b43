"""Bytes that the program reads from stdin, and writes to stdout and stderr."""

import io
import os
import select
import sys
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from llama_chat.errors import ClosedPipe, LlamaChatError, PromptTooLongError, SaveError, UsageError
from llama_chat.files import decode_text
from llama_chat.terminal import streams
from tests.system_calls import n_open


def wrapped(data: bytes = b"") -> io.TextIOWrapper:
    """Return a stream as Python opens one in a locale that is not UTF-8."""
    return io.TextIOWrapper(io.BytesIO(data), encoding="latin-1", newline=None)


def bytes_of(stream: TextIO) -> bytes:
    """Return what was written to a stream in memory and flushed."""
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue()


def written(stream: TextIO) -> str:
    """Return all that was written to a stream in memory."""
    stream.flush()
    return bytes_of(stream).decode()


def put(patch: pytest.MonkeyPatch, **streams_by_name: TextIO | None) -> None:
    """Replace stdin, stdout or stderr; in the test itself, since pytest does so before it."""
    for name, stream in streams_by_name.items():
        patch.setattr(sys, name, stream)


@pytest.fixture
def memory() -> io.TextIOWrapper:
    """A stream in memory."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n")


@pytest.fixture
def terminal() -> Iterator[tuple[TextIO, int]]:
    """A terminal, and the descriptor that its output is read from."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    with os.fdopen(theirs, "wb", buffering=0) as raw:
        yield io.TextIOWrapper(raw, encoding="utf-8", newline="", write_through=True), ours
    os.close(ours)


def shown(terminal: int, text: str) -> bool:
    """True if ``text`` is what a terminal gets next; it may be on its way."""
    found = b""
    while len(found) < len(text.encode()) and select.select([terminal], [], [], 5)[0]:
        found += os.read(terminal, 1000)
    return found.decode() == text


@pytest.fixture
def first_descriptor() -> Iterator[None]:
    """Keep what descriptor 1 is, for tests that make it something else."""
    kept = os.dup(1)
    yield
    os.dup2(kept, 1)
    os.close(kept)


def test_only_an_open_terminal_is_one(terminal: tuple[TextIO, int], tmp_path: Path) -> None:
    assert streams.is_terminal(terminal[0])
    assert not streams.is_terminal(None)
    with (tmp_path / "file").open("w") as file:
        assert streams.is_terminal(file) is False
    assert streams.is_terminal(file) is False  # closed


@pytest.mark.parametrize(
    ("name", "dumb"), [("dumb", True), ("unknown", True), ("xterm", False), ("", False)]
)
def test_of_a_dumb_terminal_nothing_is_known(
    name: str, dumb: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", name)
    assert streams.is_dumb() is dumb
    monkeypatch.delenv("TERM")
    assert streams.is_dumb() is False


def test_streams_are_utf_8_in_every_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin, stdout, stderr = wrapped(b"\xc3\xa9\r\n\xff"), wrapped(), wrapped()
    put(monkeypatch, stdin=stdin, stdout=stdout, stderr=stderr)
    streams.prepare()
    assert sys.stdin.read() == "é\r\n\ufffd"
    sys.stdout.write("é\n\udc80🦙")
    sys.stderr.write("é\n\udc80🦙")
    sys.stderr.flush()
    assert bytes_of(stdout) == bytes_of(stderr) == "é\n?🦙".encode()
    prepared = sys.stdout
    streams.prepare()
    assert sys.stdout is prepared


def test_streams_that_are_closed_or_of_another_kind_are_no_obstacle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(monkeypatch, stdin=None, stdout=None, stderr=io.StringIO())
    streams.prepare()
    assert sys.stdout.closed
    assert not sys.stdout.isatty()
    sys.stdout.flush()
    with pytest.raises(LlamaChatError) as caught:
        sys.stdout.write("")
    assert str(caught.value) == "stdout: closed: the output would be lost: open it"
    closed = wrapped()
    put(monkeypatch, stdout=closed)
    streams.prepare()
    assert not sys.stdout.closed
    closed.close()
    assert sys.stdout.closed
    with pytest.raises(LlamaChatError, match="stdout: closed"):
        streams.write_own("x")


def test_the_guarded_stdout_is_like_the_one_below(
    terminal: tuple[TextIO, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    below, output = terminal
    put(monkeypatch, stdout=below)
    streams.prepare()
    assert sys.stdout.isatty()
    assert sys.stdout.fileno() == below.fileno()
    assert sys.stdout.write("written") == 7
    assert shown(output, "written")


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def broken() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


FULL_DISK = "stdout: no space left on device: its output is lost: write it elsewhere"


@pytest.mark.parametrize("way", ["write", "flush"])
@pytest.mark.parametrize(
    ("sink", "error", "why"), [(full, SaveError, FULL_DISK), (broken, ClosedPipe, "")]
)
@pytest.mark.usefixtures("first_descriptor")
def test_output_that_fails_is_an_error_once(
    sink: Callable[[], int],
    error: type[Exception],
    why: str,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    descriptor = sink()
    os.dup2(descriptor, 1)
    os.close(descriptor)
    below = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    put(monkeypatch, stdout=below)
    streams.prepare()
    if way == "flush":
        below.write("lost")
    assert sys.stdout.write("") == 0  # nothing is flushed for it
    before = n_open()
    with pytest.raises(error) as caught:
        getattr(sys.stdout, way)(*["lost"] * (way == "write"))
    assert (str(caught.value), n_open()) == (why, before)
    below.close()  # flushes, as Python does at its end
    assert os.path.samestat(os.fstat(1), Path(os.devnull).stat())


@pytest.mark.parametrize(
    ("choice", "environment", "on_terminal", "in_a_pipe"),
    [
        ("always", {"NO_COLOR": "1", "TERM": "dumb"}, True, True),
        ("never", {"FORCE_COLOR": "1"}, False, False),
        ("auto", {}, True, False),
        ("auto", {"TERM": "dumb"}, False, False),
        ("auto", {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, False),
        ("auto", {"NO_COLOR": "", "FORCE_COLOR": ""}, True, False),
        ("auto", {"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
    ],
)
def test_colours(
    choice: str,
    environment: dict[str, str],
    on_terminal: bool,
    in_a_pipe: bool,
    terminal: tuple[TextIO, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm"} | environment).items():
        monkeypatch.setenv(name, value)
    assert streams.use_color(choice, terminal[0]) is on_terminal
    assert streams.use_color(choice, io.StringIO()) is in_a_pipe


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TextIO, int]]:
    """A pipe, for which nobody waits long, and the descriptor that writes to it."""
    reader, writer = os.pipe()
    monkeypatch.setattr(streams, "_STDIN_DELAY_S", 0)
    with os.fdopen(reader, encoding="utf-8") as stdin:
        yield stdin, writer


Pipe = tuple[TextIO, int]


def test_stdin_is_read_whole(pipe: Pipe, memory: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, stdin=pipe[0], stderr=memory)
    os.write(pipe[1], "\ufeffé\r\nb\n".encode())
    os.close(pipe[1])
    assert streams.read_stdin() == "é\r\nb\n"
    assert bytes_of(memory) == b""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "llama-chat: waiting for a text on stdin\n"),
        (
            {"advice": "; Ctrl-D ends it"},
            "llama-chat: waiting for a text on stdin; Ctrl-D ends it\n",
        ),
        ({"quiet": True}, ""),
    ],
)
def test_who_waits_for_stdin_says_so_unless_quiet(
    options: dict[str, Any],
    told: str,
    pipe: Pipe,
    memory: TextIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(monkeypatch, stdin=pipe[0], stderr=memory)

    def decode_once_told(*arguments: Any, **keywords: Any) -> str:
        assert bytes_of(memory).decode() == told
        os.write(pipe[1], b"late")
        os.close(pipe[1])
        return decode_text(*arguments, **keywords)

    monkeypatch.setattr(streams, "decode_text", decode_once_told)
    assert streams.read_stdin(**options) == "late"


def test_a_text_on_stdin_that_is_no_prompt_or_too_large_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "MAX_PROMPT_BYTES", 2**10)
    for size, prompt, error in (
        (2**10, True, None), (2**10 + 1, True, PromptTooLongError), (2**10 + 1, False, UsageError)
    ):  # fmt: skip
        reader, writer = os.pipe()
        os.write(writer, b"x" * size)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as stdin:
            put(monkeypatch, stdin=stdin)
            if error is None:
                assert len(streams.read_stdin()) == size
                continue
            with pytest.raises(error, match=r"^stdin: larger than") as caught:
                streams.read_stdin() if prompt else streams.read_stdin(must_fit=False)
            assert caught.type is error
    put(monkeypatch, stdin=None)
    with pytest.raises(UsageError) as caught:
        streams.read_stdin()
    assert str(caught.value) == "stdin: closed: pipe a text to it"


def test_lines_to_stderr_are_sanitized_and_there_at_once(
    memory: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, stderr=memory)
    streams.say("a\x1b[2J\nb")
    streams.warn(" two\n lines\x9b ")
    streams.fail("what:\twhy: advice\n")
    assert bytes_of(memory).decode() == (
        "a␛[2J\nb\nllama-chat: warning: two lines\ufffd\nllama-chat: error: what: why: advice\n"
    )


def test_an_stderr_that_takes_nothing_is_no_obstacle(
    memory: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = wrapped()
    closed.close()
    with Path("/dev/full").open("wb", buffering=0) as full_disk:
        failing = io.TextIOWrapper(full_disk, encoding="utf-8", write_through=True)
        for stream in (None, closed, failing):
            put(monkeypatch, stdout=memory, stderr=stream)
            streams.say("x")
    assert written(memory) == ""


@pytest.mark.parametrize(
    ("reply", "by_enter", "otherwise"),
    [
        ("\n", True, False),
        ("", False, False),
        ("y\n", True, True),
        (" YES \n", True, True),
        ("n\n", False, False),
        ("yess\n", False, False),
    ],
)
def test_a_question_is_agreed_to_by_yes_alone_or_by_enter(
    reply: str, by_enter: bool, otherwise: bool, memory: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, stdin=io.StringIO(reply * 2), stderr=memory)
    assert streams.confirm("download\x1b it?") is by_enter
    assert bytes_of(memory).decode() == "download␛ it? [Y/n] "
    assert streams.confirm("delete it?", by_enter=False) is otherwise
    assert bytes_of(memory).decode() == "download␛ it? [Y/n] delete it? [y/N] "


def test_an_answer_on_a_terminal(
    terminal: tuple[TextIO, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, output = terminal
    put(monkeypatch, stdout=stream)
    writer = streams.AnswerWriter()
    for piece in ("  ", "", " a\u200e", "\x1b[m\n", " X\n", "\n"):
        writer.write(piece)
    assert shown(output, "a\ufffd␛[m\n X")
    writer.finish()
    assert shown(output, "\n")
    writer.write("\n")
    writer.write("  next")  # blanks after an empty line stay
    writer.finish()
    assert shown(output, "\n  next\n")
    writer.write("Xa ")
    assert shown(output, "Xa ")
    writer.write("\n\r\n")
    writer.write("\r")
    writer.finish()
    stream.write("|")  # nothing more is before it
    assert shown(output, "\n␍\n␍\n|")


def test_an_answer_without_text_is_nothing(memory: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, stdout=memory)
    writer = streams.AnswerWriter()
    for pieces, total in (("\n", ""), ("\r", "␍\n"), ("a", "␍\na\n"), ("", "␍\na\n")):
        for piece in pieces:
            writer.write(piece)
        writer.finish()
        assert written(memory) == total


def test_a_raw_answer_is_unchanged(memory: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, stdout=memory)
    writer = streams.AnswerWriter(raw=True)
    for piece in (" \r", "", "\n\x1b", "é\n\n"):
        writer.write(piece)
    writer.finish()
    streams.write_own("\x1b[m\n")
    assert written(memory) == " \r\n\x1bé\n\n\x1b[m\n"


def test_a_closed_stdout_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, stdout=None)
    streams.prepare()
    with pytest.raises(LlamaChatError, match="stdout: closed"):
        streams.AnswerWriter()


def test_json_is_readable_text_in_one_line_or_indented(
    memory: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, stdout=memory)
    streams.write_json({"é": ["\x1b", "\x9b\u2028\udc80"]})
    assert written(memory) == '{"é": ["\\u001b", "\\u009b\\u2028\\udc80"]}\n'
    assert streams.to_json([1], indent=2) == "[\n  1\n]\n"
