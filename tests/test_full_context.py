"""A conversation longer than its context: oldest turns are dropped, with exact notices."""

import re
from pathlib import Path

from harness.terminal import READY, Terminal

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Germany": "Berlin",
    "England": "London",
    "Russia": "Moscow",
    "Egypt": "Cairo",
}
DROPPED = r"the context is full: the oldest (\d+ turns are|turn is) no longer shown to the model \("


def test_forty_turns_in_256_tokens_drop_nothing_silently(
    starter_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", starter_model, "--context", "256", "--max-tokens", "30", "--temperature", "0")
    system = ("--system", "You are a helpful teacher of geography.")
    right = 0
    with Terminal(*flags, *system, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        for turn in range(40):
            country = list(CAPITALS)[turn % len(CAPITALS)]
            answer = terminal.ask(f"What is the capital of {country}? (turn {turn})", r"\n\n(?=›)")
            assert re.search(r"[A-Za-z]{3}", answer)
            assert "<|im" not in answer
            right += CAPITALS[country] in answer
        text = terminal.text
        table = terminal.ask("/context", r"\d+ of 256 tokens, \d+ free")
    announced = [
        1 if count == "turn is" else int(count.split()[0]) for count in re.findall(DROPPED, text)
    ]
    assert sum(announced) > 20
    said = re.search(r"the oldest (\d+) turns are no longer shown to the model\n", table)
    assert said is not None
    assert int(said[1]) == sum(announced)
    rows = re.findall(r"(?m)^ *\d* +(system|user|assistant) +(\d+) +(\d+) ", table)
    assert rows[0][0] == "system"
    turns = [role for role, _, _ in rows[1:]]
    assert turns == ["user", "assistant"] * (40 - sum(announced))
    assert sum(int(tokens) for _, tokens, _ in rows) <= 256
    assert right >= 30  # a small model, but it goes on answering what it is asked


def test_the_counts_of_what_is_dropped_are_exact(gguf_model: Path, tmp_path: Path) -> None:
    flags = ("-m", gguf_model, "--context", "128", "--max-tokens", "8", "--temperature", "0")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        while True:
            before = terminal.ask("/context", r"free")
            used = re.findall(r"(\d+) of 128 tokens", before)[-1]
            terminal.wait_for(rf"context {used}/128")
            terminal.type("xyz")
            terminal.wait_for(rf"context (?!{used}/)\d+/128")
            will_drop = "drops the oldest turn" in terminal.shown
            terminal.type("\x15")  # Ctrl-U deletes it
            answer = terminal.ask("xyz", r"\n\n(?=›)")
            found = re.search(DROPPED + r"(\d+) tokens\)", answer)
            assert will_drop == bool(found)
            if found:
                rows = re.findall(r"(?m)^ *\d+ +(?:user|assistant) +(\d+) ", before)
                assert int(found[2]) == sum(map(int, rows[:2]))
                break


def test_overflow_stop_refuses_with_the_counts_and_keeps_the_text(
    gguf_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", gguf_model, "--context", "96", "--max-tokens", "8", "--overflow", "stop")
    greedy = ("--temperature", "0")  # so that no reply ends by itself
    with Terminal(*flags, *greedy, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        for _ in range(2):
            terminal.ask("abcdefghijkl", r"\n\n(?=›)")
        terminal.type("m" * 40)
        terminal.wait_for(r"does not fit")
        terminal.type("\r")
        terminal.wait_for(
            r"conversation: \d+ tokens leave no space for a reply in the context of 96"
        )
        terminal.wait_for(r"(?s)conversation: .*› m{40}")
        terminal.type("\x15")
        terminal.ask("/max-tokens 80", "max-tokens is 80")
        terminal.ask("/undo", "undone")
        terminal.ask("more", r"the context is full; /undo and /clear make room")
        assert "goes next" not in terminal.ask("/context", r"of 96 tokens, \d+ free")
