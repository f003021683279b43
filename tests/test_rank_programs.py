"""The program on several ranks: one terminal, one line for an error, and one end for all."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from harness.campaigns.ranks import LINE, is_alive, ranks_of
from harness.program import Program, assert_clean_error, run
from harness.ranks import RankGroup
from harness.terminal import CTRL_C, CTRL_D, READY, Terminal

LAUNCH = [sys.executable, "-m", "harness.launch"]

ENDING_S = 10.0
"""Longest time from the end of one rank to that of all."""


def chat_of(model: Path, home: Path, n: int = 2, n_tokens: int = 400) -> Terminal:
    """A greedy chat of several ranks, started as by ``torchrun``."""
    flags = ("-m", model, "--template", "plain", "--temperature", "0")
    command = [*LAUNCH, str(n), "llama_chat"]
    return Terminal(*flags, "--max-tokens", str(n_tokens), home=home, command=command)


def wait_for_end(pids: dict[int, int]) -> None:
    end = time.monotonic() + ENDING_S
    while any(map(is_alive, pids.values())):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Path:
    return shared_data / "models" / "stories260K"


def test_a_chat_streams_stops_and_ends_as_one_process_does(stories: Path, tmp_path: Path) -> None:
    with chat_of(stories, tmp_path) as chat:
        chat.wait_for(READY)
        pids = ranks_of(chat.child.pid)
        assert len(pids) == 2
        chat.line("Once upon a time")
        chat.wait_for("there was|One day")
        chat.type(CTRL_C)
        chat.wait_for(r"stopped after \d+ tokens")
        chat.ask("/undo", "undone: Once upon a time")
        chat.type(CTRL_D)
        assert chat.wait_for_end() == 0
        assert "error" not in chat.text
    wait_for_end(pids)
    assert [*tmp_path.glob(".local/share/llama-chat/conversations/*.jsonl")]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_death_of_a_rank_ends_all_with_one_line(
    rank: int, stories: Path, tmp_path: Path
) -> None:
    with chat_of(stories, tmp_path, n_tokens=3) as chat:
        chat.wait_for(READY)
        chat.line("Once upon a time")
        chat.wait_for("cut off after 3")
        pids = ranks_of(chat.child.pid)
        os.kill(pids[rank], signal.SIGKILL)
        chat.wait_for_end()
        (line,) = LINE.findall(chat.text.replace("\n", ""))
        assert f"rank {rank} of 2" in line
    wait_for_end(pids)
    (saved,) = tmp_path.glob(".local/share/llama-chat/conversations/*.jsonl")
    assert "Once upon a time" in saved.read_text()


@pytest.mark.parametrize("n_machines", [1, 2])
def test_text_is_that_of_one_process_and_only_rank_0_writes(
    n_machines: int, stories: Path, tmp_path: Path
) -> None:
    flags = ("complete", "-m", stories, "--seed", "3", "--max-tokens", "20", "-")
    alone = run(*flags, home=tmp_path, stdin=b"Once upon a time")
    assert alone.out
    with RankGroup(2 * n_machines, *flags, home=tmp_path, n_machines=n_machines) as group:
        together = group.finish(b"Once upon a time")
    assert (together.status, together.out) == (0, alone.out)


def test_an_error_of_rank_0_ends_the_others_in_silence(stories: Path, tmp_path: Path) -> None:
    with RankGroup(2, "complete", "-m", "no-such-model", "-", home=tmp_path) as group:
        assert_clean_error(group.finish(b"x"), 3, "no-such-model")
    with RankGroup(9, "complete", "-m", stories, "-", home=tmp_path) as group:
        assert_clean_error(group.finish(b"x"), 2, "9 ranks", "use 1 to 8")


def test_ctrl_c_of_a_completion_ends_all(stories: Path, tmp_path: Path) -> None:
    flags = ("complete", "-m", stories, "--max-tokens", "4000", "-")
    with Program(*flags, home=tmp_path, command=[*LAUNCH, "2", "llama_chat"]) as program:
        program.stdin.write(b"Once upon a time")
        program.stdin.close()
        assert program.stdout.read(20)
        pids = ranks_of(program.pid)
        os.kill(program.pid, signal.SIGINT)
        wait_for_end(pids)
        assert b"Traceback" not in program.stderr.read()
