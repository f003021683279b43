"""A pipe on stdin that gives nothing: one line says that the program waits, and for what."""

from pathlib import Path

import pytest

from harness.program import Program

ALONE = "llama-chat: waiting for a text on stdin; </dev/null sends the question alone\n"
WAITING = "llama-chat: waiting for a text on stdin\n"


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (("ask", "Why?"), ALONE),
        (("ask",), WAITING),
        (("complete", "-"), WAITING),
    ],
)
def test_a_silent_pipe_is_named_once(
    command: tuple[str, ...], line: str, gguf_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", gguf_model, "--max-tokens", "4", "--seed", "1")
    with Program(*command, *flags, home=tmp_path) as program:
        assert program.stderr.readline().decode() == line
        program.stdin.write(b"Once ")
        program.stdin.flush()
        out, err = program.communicate(b"upon a time")
        assert program.wait(0) == 0
        assert out
        assert b"waiting" not in err


def test_quiet_waits_without_a_word(gguf_model: Path, tmp_path: Path) -> None:
    flags = ("-m", gguf_model, "--max-tokens", "4", "-q")
    with Program("ask", "Why?", *flags, home=tmp_path) as program:
        with pytest.raises(TimeoutError):
            program.wait(2.3)
        _, err = program.communicate(b"")
        assert err == b""
