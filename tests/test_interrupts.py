"""Ctrl-C and other signals, at any instant: the prompt comes back, and nothing is lost."""

import random
import re
import signal
import sys
import termios
import time
from pathlib import Path

import pytest

from harness.terminal import CTRL_C, CTRL_D, READY, Terminal

STOPPED = r"stopped after \d+ tokens; the text is kept; /continue goes on\n\n›"


def numbers(table: str) -> dict[str, int]:
    """Parse the counts of ``/stats``."""
    return {name: int(n) for name, n in re.findall(r"(?m)^(\w+_tokens) +(\d+)$", table)}


def cached(terminal: Terminal) -> int:
    """Return the number of tokens that ``/context`` shows as cached."""
    text = terminal.ask("/context", r"\d+ of \d+ tokens, \d+ free")
    return sum(map(int, re.findall(r"(?m)^ *\d+ +(?:user|assistant) +\d+ +(\d+) ", text)))


def test_fifty_interrupts_lose_neither_the_prompt_nor_the_cache(
    starter_model: Path, tmp_path: Path
) -> None:
    """Half of them come during prefill, half during decode."""
    chance = random.Random(0)
    flags = ("-m", starter_model, "--markdown", "never", "--max-tokens", "4000")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        for number in range(50):
            # A table of all turns takes long to draw.
            before = cached(terminal) if number % 5 == 0 else 0
            in_prefill = number % 2 == 0
            n_words = chance.randrange(20, 150) if in_prefill else 5
            terminal.send(f"Say {number} " + "river " * n_words + "and tell a very long story.")
            terminal.watch_for(chance.uniform(0, 0.2) if in_prefill else chance.uniform(0.05, 0.3))
            terminal.child.kill(signal.SIGINT)
            terminal.wait_for(rf"› Say {number} (?:(?!\n›)[\s\S])*\n\n›")
            counts = numbers(terminal.ask("/stats", r"tokens evaluated in total +\d+"))
            # No cached token was read again.
            assert counts["cached_tokens"] >= before
        rows = re.findall(r"(?m)^ *\d+ +(user|assistant)", terminal.ask("/context", r"\d+ free"))
        assert rows == ["user", "assistant"] * 50


def test_control_c_twice_quickly_is_one_interrupt(chat: Terminal) -> None:
    chat.ask("/max-tokens 4000", "max-tokens is 4000")
    chat.line("Write a long story about a river.")
    chat.wait_for(r"about a river\.\n(\S.*\n)*\S.{40}")
    chat.type(CTRL_C + CTRL_C)
    chat.wait_for(STOPPED)
    chat.ask("/max-tokens 5", "max-tokens is 5")
    chat.ask("Go on.", r"cut off after 5 tokens")


WRITER = """
import signal
from llama_chat.terminal.raw_input import hold_keys

signal.signal(signal.SIGINT, lambda number, frame: print("stopped", flush=True))
with hold_keys():
    print("x" * 6_000, flush=True)
    signal.pause()
"""


def test_control_c_drops_nothing_that_was_written(tmp_path: Path) -> None:
    """The driver of a terminal drops what nobody has read yet, unless it is told not to."""
    with Terminal("-c", WRITER, home=tmp_path, command=[sys.executable]) as terminal:
        counters = Path(f"/proc/{terminal.child.pid}/io")
        while int(re.findall(r"wchar: (\d+)", counters.read_text())[0]) < 6_000:
            time.sleep(0.01)
        terminal.type(CTRL_C)
        terminal.wait_for("stopped")
    assert terminal.raw.count(b"x") == 6_000


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_decoding_saves_and_ends(
    number: int, status: int, starter_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", starter_model, "--max-tokens", "4000", "--temperature", "0")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.line("Write a long story about a river.")
        terminal.wait_for(r"about a river\.\n(\S.*\n)*\S.{40}")
        terminal.child.kill(number)
        assert terminal.wait_for_end() == status
        assert "Traceback" not in terminal.text
        shown = re.search(r"about a river\.\n── model\n(\S.{20})", terminal.text)
    assert shown is not None
    with Terminal("-m", starter_model, "--continue", home=tmp_path) as again:
        text = again.wait_for(READY)
        assert "› Write a long story about a river." in text
        assert shown[1] in text
        again.ask("/tree", r"2 model .*● here")


def test_closing_the_terminal_saves_the_conversation(starter_model: Path, tmp_path: Path) -> None:
    flags = ("-m", starter_model, "--max-tokens", "12", "--temperature", "0")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("One fact about cats.", r"cut off")
        terminal.vanish()
    with Terminal("-m", starter_model, "--continue", home=tmp_path) as again:
        again.wait_for(r"› One fact about cats\.")


def test_a_kill_at_any_instant_loses_no_finished_turn(starter_model: Path, tmp_path: Path) -> None:
    flags = ("-m", starter_model, "--max-tokens", "12", "--temperature", "0")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("One fact about cats.", r"cut off")
        terminal.ask("/max-tokens 4000", r"is 4000")
        terminal.line("Write a long story about a river.")
        terminal.wait_for(r"about a river\.\n(\S.*\n)*\S.{40}")
        terminal.child.kill(signal.SIGKILL)
        assert terminal.wait_for_end() == 137
    with Terminal(*flags, "--continue", home=tmp_path) as again:
        again.wait_for(READY)
        text = again.ask("/tree", r"● here")
        assert re.search(r"1 you +One fact about cats\.\n2 model +\S", text)
        assert re.search(r"3 you +Write a long story about a river\.", text)
        # The reply that the kill cut off is asked for again.
        again.ask("/retry", r"cut off after 12 tokens")


def test_control_z_and_fg_change_nothing(starter_model: Path, tmp_path: Path) -> None:
    with Terminal(home=tmp_path, command=("bash", "--norc", "-i"), PS1="$ ") as shell:
        shell.wait_for(r"\$")
        flags = f"-m {starter_model} --max-tokens 30 --temperature 0"
        shell.line(f"{sys.executable} -m llama_chat {flags}")
        shell.wait_for(READY)
        shell.type("half a thought\x1a")
        shell.wait_for(r"Stopped")
        shell.line("fg")
        shell.wait_for(r"(?s)Stopped.*› half a thought")
        shell.type(" more\r")
        shell.wait_for(r"half a thought more\n\S+ \S+")
        shell.type("\x1a")
        shell.wait_for(r"(?s)Stopped.*Stopped")
        shell.line("fg")
        shell.wait_for(r"cut off after 30 tokens")
        # The shell's terminal modes must not echo what is typed next.
        shell.ask("/top-k 3", r"top-k is 3")
        shell.type(CTRL_D)
        shell.wait_for(r"(?s)top-k is 3.*\$ *\n")


def test_a_late_continuation_leaves_the_open_input_in_its_mode(
    gguf_model: Path, tmp_path: Path
) -> None:
    """After Ctrl-Z and fg the signal may come once the input is drawn again."""
    with Terminal("-m", gguf_model, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        mode = termios.tcgetattr(terminal.descriptor)
        terminal.child.kill(signal.SIGCONT)
        terminal.type("draft")
        terminal.wait_for("› draft")
        assert termios.tcgetattr(terminal.descriptor) == mode
        terminal.type(CTRL_C)
        terminal.wait_for(r"›\s+random")
        terminal.type(CTRL_C)
        terminal.wait_for("Ctrl-C again")
        terminal.type(CTRL_C)
        assert terminal.wait_for_end() == 0
