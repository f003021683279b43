"""Many questions at once: ``ask --lines``, ``ask --jsonl``, ``complete`` with several files."""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.process import cold
from harness.program import COMMAND, Program, Result, assert_clean_error, run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


FLAGS = ("--max-tokens", "4", "--temperature", "0", "-q")


def ask(home: Path, model: Path, stdin: str | bytes, *arguments: str | Path) -> Result:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    return run("ask", "-m", model, "--template", "plain", *FLAGS, *arguments, home=home, stdin=data)


def answers(done: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


def test_each_line_is_answered_as_it_is_alone(home: Path, gguf_model: Path) -> None:
    questions = ["the cat", "a hat in the house of the cat", "", "why", "the cat in the hat?"]
    done = ask(home, gguf_model, "\n".join(questions), "--lines")
    assert done.status == 0, done.err
    found = answers(done)
    assert [answer["line"] for answer in found] == [1, 2, 4, 5]
    for answer in found:
        alone = ask(home, gguf_model, questions[answer["line"] - 1], "--json")
        assert answer["text"] == json.loads(alone.out)["text"]
        assert answer["seed"] is not None


def test_a_bad_line_is_an_error_object_and_the_others_are_answered(
    home: Path, gguf_model: Path
) -> None:
    lines = [
        b'{"question": "the cat", "id": "first"}',
        b"{not json}",
        b'"a hat"',
        b'{"question": 5, "id": [1]}',
        b"\xff\xfe",
        b'{"text": "no question"}',
        b'{"question": "' + b"cat " * 3000 + b'"}',
        b'{"question": "why", "id": 7}',
    ]
    done = ask(home, gguf_model, b"\n".join(lines), "--jsonl")
    found = answers(done)
    assert [answer["line"] for answer in found] == list(range(1, 9))
    assert ["error" in answer for answer in found] == [0, 1, 0, 1, 1, 1, 1, 0]
    assert [answer.get("id") for answer in found] == ["first", *[None] * 6, 7]
    assert found[6]["status"] == 4
    assert done.status == 1
    assert "5 lines of 8 not answered" in done.err


def test_an_id_that_json_cannot_repeat_is_an_error(home: Path, gguf_model: Path) -> None:
    stdin = '{"id": 1e999, "question": "why"}\n{"id": [NaN], "question": "why"}\n'
    for answer in answers(ask(home, gguf_model, stdin, "--jsonl")):
        assert "its id has a number that is not finite" in answer["error"]
        assert "id" not in answer


def test_fail_fast_stops_at_the_first_bad_line(home: Path, gguf_model: Path) -> None:
    done = ask(home, gguf_model, '"the cat"\n"a hat"\n{}\n"why"\n', "--jsonl", "--fail-fast")
    assert done.status == 2
    assert "line 3: record: it has no question" in done.err
    assert [answer["line"] for answer in answers(done)] == [1, 2]
    long = json.dumps("cat " * 900)
    done = ask(home, gguf_model, f'"the cat"\n{long}\n{{}}\n', "--jsonl", "--fail-fast")
    assert done.status == 4
    assert "line 2: conversation: " in done.err
    assert [answer["line"] for answer in answers(done)] == [1]


@pytest.mark.parametrize("order", ["ordered", "unordered"])
def test_an_answer_is_written_as_soon_as_its_turn_has_come(
    home: Path, gguf_model: Path, order: str
) -> None:
    flags = ["--unordered"] if order == "unordered" else []
    flags += ["--template", "plain", "--lines", *FLAGS]
    with Program("ask", "-m", gguf_model, *flags, home=home) as child:
        for line in (b"the cat\n", b"a hat\n", b"why\n"):
            child.stdin.write(line)  # stdin stays open: the next line has not come yet
            child.stdin.flush()
            assert "text" in json.loads(child.stdout.readline())
        child.stdin.close()
        assert child.wait(20) == 0


@pytest.mark.parametrize(
    ("end", "status", "why"),
    [
        ("no model", 3, "model 'nosuch'"),
        ("--fail-fast", 2, "line 2: record: it has no question"),
        ("Ctrl-C", 130, ""),
        ("closed stdout", 141, ""),
    ],
)
def test_an_early_end_does_not_wait_for_an_open_stdin(
    home: Path, gguf_model: Path, end: str, status: int, why: str
) -> None:
    model = "nosuch" if end == "no model" else str(gguf_model)
    flags = ["--template", "plain", "--jsonl", "--fail-fast", *FLAGS]
    with cold(), Program("ask", "-m", model, *flags, home=home) as child:
        with suppress(BrokenPipeError):
            child.stdin.write(b'"the cat"\n')
            child.stdin.flush()
        if end == "Ctrl-C":
            child.stdout.readline()
            os.kill(child.pid, signal.SIGINT)
        if end == "closed stdout":
            child.stdout.close()
        if end == "--fail-fast":
            child.stdout.readline()
            child.stdin.write(b"{}\n")
            child.stdin.flush()
        assert child.wait(30) == status
        error = child.stderr.read().decode()
        assert why in error
        assert error.count("\n") <= 1


def test_a_stdin_that_cannot_be_read_is_an_error(home: Path, gguf_model: Path) -> None:
    target = home / "written"
    target.touch()
    command = (*COMMAND, "ask", "-m", str(gguf_model), "--lines")
    shell = ("sh", "-c", '"$@" 0>"$FILE"', "sh", *command)
    with Program(home=home, command=shell, FILE=str(target)) as child:
        out, err = child.communicate()
        assert_clean_error(Result(child.wait(0), out.decode(), err.decode()), 2, "stdin")


def test_resuming_skips_what_is_answered(home: Path, gguf_model: Path) -> None:
    questions = "".join(f"the cat {i}\n" for i in range(6))
    whole = ask(home, gguf_model, questions, "--lines").out.splitlines(keepends=True)
    kept = home / "answers.jsonl"
    bad = json.dumps({"line": 2, "error": "x", "status": 1}) + "\n"
    kept.write_text(whole[0] + bad + whole[3] + whole[4][:20])
    done = ask(home, gguf_model, questions, "--lines", "--resume-from", kept)
    assert [answer["line"] for answer in answers(done)] == [2, 3, 5, 6]
    kept.write_text(kept.read_text() + "\n" + done.out)
    assert ask(home, gguf_model, questions, "--lines", "--resume-from", kept).out == ""
    mistyped = ask(home, gguf_model, questions, "--lines", "--resume-from", home / "answer.jsonl")
    assert len(answers(mistyped)) == 6
    assert "answer.jsonl': no such file: all lines are answered" in mistyped.err


def test_fields_of_a_record_fill_the_slots_of_the_prompt_file(home: Path, gguf_model: Path) -> None:
    prompt = home / "prompt.toml"
    prompt.write_text('system = "Speak {{language}}."\n')
    lines = [{"question": "the cat", "language": "French"}, {"question": "the cat"}]
    stdin = "".join(json.dumps(line) + "\n" for line in lines)
    first, second = answers(ask(home, gguf_model, stdin, "--jsonl", "--prompt", prompt))
    assert first["prompt_tokens"] > 10
    assert "slot {{language}} has no value" in second["error"]


def test_braces_in_a_value_are_text(home: Path, gguf_model: Path) -> None:
    prompt = home / "prompt.toml"
    prompt.write_text('system = "Speak {{language}}."\n')
    flags = ("--prompt", prompt, "--var", "language={{other}}")
    [answer] = answers(ask(home, gguf_model, "the cat\n", "--lines", *flags))
    assert "text" in answer
    [answer] = answers(ask(home, gguf_model, '{"question": "the cat"}\n', "--jsonl", *flags))
    assert "text" in answer
    prompt.write_text('system = "Speak {{language}} to {{name}}."\n')
    record = '{"question": "the cat", "name": "Ann"}\n'
    [answer] = answers(ask(home, gguf_model, record, "--jsonl", *flags))
    assert "text" in answer
    done = ask(home, gguf_model, record, "--jsonl", *flags, "--var", "nmae=x")
    assert "did you mean --var name?" in done.err


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--lines", "--jsonl"], "--jsonl is given too: give one"),
        (["--unordered"], "add --lines"),
        (["--lines", "--dry-run"], "--dry-run: it is about one question"),
        (["--jsonl", "--logprobs", "3"], "--logprobs: it is about one question"),
        (["--resume-from", "x"], "add --lines"),
        (["--lines", "--resume-from", "."], "not a file"),
        (["--lines", "--var", "tone=y"], "--var tone: no prompt file has the slot"),
        (["--jsonl", "--var", "tone=y"], "--var tone: no prompt file has the slot"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    home: Path, gguf_model: Path, flags: list[str], why: str
) -> None:
    done = ask(home, gguf_model, "the cat\n", *flags)
    assert done.status == 2
    assert why in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_what_is_complete(
    home: Path, gguf_model: Path, number: signal.Signals
) -> None:
    """The answer of a later line is not lost, though an earlier one is not complete."""
    command = (sys.executable, "-m", "harness.signalled", str(int(number)), "2", "complete")
    flags = ("--max-tokens", "99", "--stop", "\n", "-q", "--seed", "1", "--template", "plain")
    stdin = f"the cat\n{'x' * 500}\n"  # fills the context of 512 before the first has ended
    with Program("ask", "-m", gguf_model, "--lines", *flags, home=home, command=command) as child:
        out, err = child.communicate(stdin.encode())
        assert child.wait(20) == 128 + number, err
        assert [json.loads(line)["line"] for line in out.splitlines()] == [2]


def test_answers_to_files_are_those_to_each_file(home: Path, gguf_model: Path) -> None:
    texts = ["the cat in", "a", "the hat of the cat " * 5]
    for i, text in enumerate(texts):
        (home / f"{i}.txt").write_text(text)
    files = [home / f"{i}.txt" for i in range(3)]
    flags = ("-m", gguf_model, *FLAGS)
    together = run("complete", *files, *flags, home=home)
    apart = [run("complete", file, *flags, home=home).out for file in files]
    assert together.out == "".join(apart)
    one_at_a_time = run("complete", *files, *flags, "--parallel", "1", home=home)
    assert one_at_a_time.out == together.out
