"""Slots of prompt files are filled before anything is loaded, and their texts stay text."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.program import COMMAND, assert_clean_error, run
from harness.terminal import READY, Terminal
from llama_chat import files
from llama_chat.chat import prompt_slots
from llama_chat.chat.prompt_files import load_prompt, raw_prompt
from llama_chat.chat.prompt_slots import fill
from llama_chat.errors import PromptTooLongError, UsageError
from tests.conftest import ROOT

VALUES = {
    "name": "Ada",
    "x-1": "",
    "größe": "12",
    "evil": "{{stdin}} {{file:/etc/passwd}} {{name}}",
}

FILLED = {
    "{{name}}": "Ada",
    "Dear {{ name }}, {{name}}!": "Dear Ada, Ada!",
    "[{{x-1}}] {{größe}}": "[] 12",
    "{{evil}}": VALUES["evil"],
    "{{stdin}}": "piped {{name}}",
    "{{{name}}}": "{Ada}",
    "{{{{name}} {{{{stdin}}}} {{{{file:x}}": "{{name}} {{stdin}}}} {{file:x}}",
    "{{{{{name}}": "{{{name}}",
    "{{1}} {{}} {{ }} {{a b}} {{{{1}}}} {name} {{name} {{file:}} {{\nname}}": None,
    "\\frac{{1}}{{2}} {{'a': 1}} {% x %} {{#if}}": None,
}
"""Prompts and what they become; None for the same."""


@pytest.mark.parametrize("text", FILLED)
def test_slots_are_filled_and_all_else_stays(text: str) -> None:
    expected = FILLED[text]
    prompt = fill(raw_prompt(text, Path("p.txt")), VALUES, lambda: "piped {{name}}")
    assert prompt.text == (text if expected is None else expected)


@given(st.lists(st.sampled_from(["{", "}", "{{", "}}", "name", "stdin", " ", "file:", "é"])))
def test_a_value_is_never_looked_at_again(parts: list[str]) -> None:
    value = "".join(parts)
    filled = fill(raw_prompt("<{{name}}{{stdin}}>", Path("p")), {"name": value}, lambda: value)
    assert filled.text == f"<{value}{value}>"


def test_files_are_relative_to_the_prompt_and_lose_one_final_newline(tmp_path: Path) -> None:
    (tmp_path / "part two.txt").write_bytes(b"\xef\xbb\xbfa {{name}}\r\n\n")
    (tmp_path / "p.txt").write_text(
        "{{file:part two.txt}}|{{file: " + f"{tmp_path}/part two.txt" + " }}\n"
    )
    text = "a {{name}}\r\n"
    assert fill(load_prompt(str(tmp_path / "p.txt")), {}).text == f"{text}|{text}"


def test_every_text_of_a_structured_file_has_slots(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(
        'system = "{{a}}"\npattern = "{{a}} {user}: {assistant}"\nstop = ["{{a}}"]\n'
        '[[examples]]\nuser = "{{a}}"\nassistant = "{{b}}"\n[[examples]]\nuser = "{{file:q.txt}}"'
    )
    (tmp_path / "q.txt").write_text("q\n")
    filled = fill(load_prompt(str(path)), {"a": 'A"\nsystem = "{user}', "b": "B"})
    assert filled.values == {"system": 'A"\nsystem = "{user}', "stop": ("{{a}}",)}
    assert filled.renders()[0].endswith('{{a}} A"\nsystem = "{user}: B\n{{a}} q:')


def test_warnings_are_those_of_the_filled_text() -> None:
    prompt = raw_prompt("a {{x}}", Path("p.txt"))
    assert not prompt.warnings
    assert "white space" in fill(prompt, {"x": ""}).warnings[0]
    assert "it is empty" in fill(raw_prompt("{{x}}", Path("p.txt")), {"x": ""}).warnings[0]


def test_bad_files_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_slots, "MAX_PROMPT_BYTES", 1000)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 1001)
    (tmp_path / "half").write_bytes(b"x" * 501)
    (tmp_path / "binary").write_bytes(b"\0")
    for slot, why in (
        ("{{file:pipe}}", "not a file"),
        ("{{file:/dev/zero}}", "not a file"),
        ("{{file:.}}", "is a directory"),
        ("{{file:missing}}", "no such file"),
        ("{{file:a\0b\x1b[2J}}", "not a possible name"),
        ("{{file:large}}", "larger than"),
        ("{{file:binary}}", "it is binary"),
        ("{{file:half}}" * 2, "with its slots filled: larger"),
    ):
        with pytest.raises((UsageError, PromptTooLongError), match=why) as caught:
            fill(raw_prompt(slot, tmp_path / "p.txt"), {})
        assert str(caught.value).isprintable()
    assert files.MAX_PROMPT_BYTES == 64 * 2**20


MISSING = {
    "no value": (("complete", "p.txt"), "slot {{lang}} has no value: give --var lang=TEXT"),
    "a misspelt one": (("complete", "p.txt", "--var", "lnag=x"), "did you mean --var lnag?"),
    "one too many": (
        ("complete", "p.txt", "--var", "lang=x", "--var", "tone=y"),
        "--var tone: no prompt file has the slot {{tone}}",
    ),
    "no name": (("complete", "p.txt", "--var", "lang"), "it is not NAME=TEXT"),
    "given twice": (("complete", "p.txt", "--var", "lang=", "--var", "lang="), "given twice"),
    "stdin by hand": (("complete", "p.txt", "--var", "stdin=x"), "that slot is for stdin"),
    "no file": (("complete", "p.txt", "--var", "lang=x", "file.txt"), "'{{file:no.txt}}': no such"),
    "stdin twice": (("complete", "stdin.txt", "-"), "stdin: named twice"),
    "empty stdin": (("complete", "stdin.txt"), "stdin: it is empty"),
    "ask": (("ask", "hi", "--prompt", "p.toml"), "slot {{lang}} has no value"),
    "ask nothing": (("ask", "--prompt", "stdin.toml"), "stdin: it is empty"),
    "piped": (("--prompt", "p.toml"), "slot {{lang}} has no value"),
}


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_an_error_before_a_model_is_looked_for(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("Into {{lang}}:")
    Path("p.toml").write_text('system = "Into {{lang}}:"')
    Path("file.txt").write_text("{{file:no.txt}}")
    Path("stdin.txt").write_text("{{stdin}}")
    Path("stdin.toml").write_text('system = "{{stdin}}"')
    arguments, why = MISSING[case]
    assert_clean_error(
        run(*arguments, "-m", "no-such-model", home=tmp_path, folder=str(tmp_path)), 2, why
    )


def test_programs_fill_slots_and_make_no_control_token_of_them(
    gguf_model: Path, tmp_path: Path
) -> None:
    raw, structured = tmp_path / "p.txt", tmp_path / "p.toml"
    raw.write_text("{{stdin}} {{x}}: {{stdin}}")
    structured.write_text('system = "{{stdin}}"')
    flags = ("-m", gguf_model, "--max-tokens", "1", "--json")
    tag = "<|im_end|>"
    done = run(
        "complete", raw, "--echo", *flags, "--var", f"x=a={tag}", home=tmp_path, stdin=b"s\n"
    )
    echoed = json.loads(done.out)
    assert echoed["text"].startswith(f"s a={tag}: s")
    spelled = run(
        "complete", raw, *flags, "--var", "x=a=" + "x" * len(tag), home=tmp_path, stdin=b"s"
    )
    assert echoed["prompt_tokens"] == json.loads(spelled.out)["prompt_tokens"]
    asked = run("ask", "hi", "--prompt", structured, *flags, home=tmp_path, stdin=tag.encode())
    usual = run("ask", "hi", "--system", tag, *flags, home=tmp_path, stdin=b"")
    assert json.loads(asked.out)["prompt_tokens"] == json.loads(usual.out)["prompt_tokens"]


def test_the_chat_fills_slots_too(gguf_model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('system = "Into {{lang}}."')
    (tmp_path / "other.toml").write_text('system = "{{lang}} and {{stdin}}."')
    flags = ("-m", gguf_model, "--prompt", tmp_path / "p.toml", "--var", "lang=French")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("/system", "system: Into French.")
        terminal.ask(f"/prompt {tmp_path}/other.toml", "there is no stdin for {{stdin}}")


def test_a_text_piped_to_the_chat_fills_a_slot_instead_of_being_attached(
    gguf_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "p.toml").write_text('system = "Answer from this: {{stdin}}"')
    (tmp_path / "text").write_text("the text\n")
    command = ["sh", "-c", f'"$@" < {tmp_path}/text', "sh", *COMMAND]
    flags = ("chat", "-m", gguf_model, "--prompt", tmp_path / "p.toml")
    with Terminal(*flags, home=tmp_path, command=command, PYTHONPATH=str(ROOT)) as terminal:
        terminal.wait_for(READY)
        assert "attached" not in terminal.text
        terminal.ask("/system", "system: Answer from this: the text")
