"""Options for the grammar of an answer: read before a model, and met in every way to ask."""

import json
import re
from pathlib import Path

import pytest

from harness.program import assert_clean_error, run
from tests.schemas import optional

SCHEMA = (
    '{"type": "object", "properties": {"a": {"enum": [1, 2]}}, '
    '"required": ["a"], "additionalProperties": false}'
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a schema and a grammar."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schema.json").write_text(SCHEMA + "\n")
    (tmp_path / "list.lark").write_text('start: ITEM (", " ITEM)~1..2\nITEM: /[a-c]{2}/\n')
    (tmp_path / "large.json").write_text(" " * (2**20 + 1))
    return tmp_path


WAYS: tuple[tuple[str, ...], ...] = (
    ("ask", "hi"),
    ("complete", "-"),
    ("complete", "-", "--chat"),
    (),
)

BAD = {
    "regex": (("--regex", "a("), "regular expression: unclosed group"),
    "schema": (("--json-schema", '{"type": "strin"}'), "JSON schema: Invalid type"),
    "no JSON": (("--json-schema", "{"), "JSON schema: it is not JSON"),
    "an empty schema": (("--json-schema", ""), "JSON schema: it is not JSON"),
    "a schema of anything": (("--json-schema", "true"), "JSON schema: it is no object"),
    "no schema": (("--json-schema", "no.json"), "schema 'no.json': no such file"),
    "a schema's folder": (("--json-schema", "."), "schema '.': is a directory"),
    "a large schema": (("--json-schema", "large.json"), "larger than 1 MiB"),
    "grammar": (("--grammar", "schema.json"), "grammar: "),
    "no text": (("--json-schema", '{"$ref": "#"}'), "JSON schema: no text can meet it"),
    "device": (("--grammar", "/dev/zero"), "not a file"),
    "two": (("--regex", "a", "--json-schema", "{}"), "--json-schema: --regex is given too"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_grammar_is_an_error_before_a_model_is_looked_for(case: str, folder: Path) -> None:
    flags, why = BAD[case]
    command = WAYS[list(BAD).index(case) % len(WAYS)]
    done = run(*command, *flags, "-m", "nowhere", home=folder, folder=str(folder), stdin=b"x")
    assert_clean_error(done, 2, why)


def test_every_way_to_ask_meets_every_grammar(gguf_model: Path, folder: Path) -> None:
    for number, command in enumerate(WAYS):
        flags = [*command, "-m", str(gguf_model), "--seed", str(number), "--max-tokens", "40"]
        schema = SCHEMA if number % 2 else "schema.json"
        for grammar, expected in (
            (("--json-schema", schema), r'\{"a": [12]\}\n'),
            (("--grammar", "list.lark"), "[a-c]{2}(, [a-c]{2}){1,2}\n"),
        ):
            done = run(*flags, *grammar, home=folder, folder=str(folder), stdin=b"x")
            assert done.status == 0, done.err
            assert re.fullmatch(expected, done.out)


def test_leading_white_space_of_a_grammar_stays(gguf_model: Path, folder: Path) -> None:
    for command in (("ask", "hi"), ("complete", "-")):
        flags = ("-m", gguf_model, "--regex", "  [ab]", "--json")
        answer = json.loads(run(*command, *flags, home=folder, stdin=b"x").out)
        assert answer["text"] in ("  a", "  b")
        assert (answer["finish_reason"], answer["meets_grammar"]) == ("stop", True)


def test_a_grammar_of_the_empty_text_has_it_as_its_answer(gguf_model: Path, folder: Path) -> None:
    flags = ("-m", gguf_model, "--regex", "", "--json")
    answer = json.loads(run("complete", "-", *flags, home=folder, stdin=b"x").out)
    assert (answer["text"], answer["finish_reason"]) == ("", "stop")
    assert answer["meets_grammar"] is True


def test_a_grammar_that_becomes_too_complex_is_an_error_of_its_author(
    gguf_model: Path, folder: Path
) -> None:
    flags = ("-m", gguf_model, "-q", "--json-schema", json.dumps(optional(600)))
    done = run("complete", "-", *flags, home=folder, stdin=b"x")
    assert_clean_error(done, 2, "write a simpler one")


def test_a_grammar_that_cannot_be_met_within_the_limit_says_so(
    gguf_model: Path, folder: Path
) -> None:
    flags = ("complete", "-", "-m", gguf_model, "--regex", "[0-9]{50}", "--max-tokens", "5")
    done = run(*flags, "--json", home=folder, stdin=b"1")
    answer = json.loads(done.out)
    assert (done.status, answer["finish_reason"], answer["meets_grammar"]) == (0, "length", False)
    why = "answer: cut off after 5 tokens, before it meets the grammar: raise --max-tokens"
    assert f"warning: {why}" in done.err
    failed = run(*flags, "--fail-on-length", home=folder, stdin=b"1")
    assert (failed.status, failed.out.strip().isdecimal()) == (5, True)
    assert f"error: {why}" in failed.err
    assert "meets_grammar" not in run(*flags[:4], "--json", home=folder, stdin=b"1").out


def test_the_chat_has_none(folder: Path) -> None:
    for flags in (
        ("--regex", "a"),
        ("--dry-run",),
        ("--json",),
        ("--fail-on-length",),
        ("--json", "--logprobs", "2"),
    ):
        assert_clean_error(run("--continue", *flags, home=folder), 2, "the chat does not take it")
