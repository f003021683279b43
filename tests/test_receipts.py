"""Receipts reproduce answers, and a replay names the first token that differs, and why."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.program import assert_clean_error, run
from llama_chat.checkpoints import fingerprint
from llama_chat.checkpoints.fingerprint import model_fingerprint
from llama_chat.loading.formats import load_tokenizer, open_checkpoint
from llama_chat.server import client
from llama_chat.terminal.sanitizer import sanitize_data
from tests.model_files import SMALL, write_gguf, write_meta
from tests.servers import running_server
from tests.test_server import HELLO

WAYS: dict[str, tuple[str, ...]] = {
    "ask": ("ask", "hi"),
    "seeded": ("ask", "hi", "--seed", "7", "--temperature", "1.5", "--top-k", "9"),
    "piped": ("--system", "Be brief.", "--stop", "a", "--stop", "e"),
    "raw": ("complete", "-", "--repeat-penalty", "1.2", "--min-p", "0.01"),
    "through the template": ("complete", "-", "--chat", "--context", "256"),
    "under a grammar": (
        "complete",
        "-",
        "--regex",
        "forced words (yes|no) [a-z]{3}",
        "--no-lookup",
    ),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    write_gguf(path)
    return path


def answer(model: Path, *flags: str, limit: int = 9) -> dict[str, Any]:
    flags = (*flags, "-m", str(model), "--max-tokens", str(limit), "--json")
    done = run(*flags, home=model.parent, stdin=b"the cat")
    found: dict[str, Any] = json.loads(done.out)
    return found


def write(folder: Path, *answers: dict[str, Any]) -> Path:
    path = folder / "receipt.json"
    path.write_text("".join(json.dumps(each) + "\n" for each in answers))
    return path


def test_every_kind_of_answer_is_reproduced(model: Path) -> None:
    answers = [answer(model, *flags, limit=40) for flags in WAYS.values()]
    receipts = write(model.parent, *answers)
    done = run("replay", receipts, "--json", home=model.parent)
    assert done.status == 0, done.err
    for then, line in zip(answers, done.out.splitlines(), strict=True):
        now = json.loads(line)
        assert now["same"], (then, now)
        assert now["text"] == then["text"]
        assert now["ids"] == then["receipt"]["ids"]
        assert (now["differs_at"], now["causes"]) == (None, [])
    shown = run("replay", write(model.parent, answers[0]), home=model.parent)
    assert shown.out.rstrip("\n") == sanitize_data(answers[0]["text"]).rstrip("\n")
    n_tokens = len(answers[0]["receipt"]["ids"])
    assert f"the same {n_tokens} tokens again" in shown.err
    indented = json.dumps(answers[0], indent=2).encode()
    piped = run("replay", "-", "-q", home=model.parent, stdin=indented)
    assert (piped.status, piped.out, piped.err) == (0, shown.out, "")


def test_a_receipt_says_what_decided_the_answer(model: Path) -> None:
    found = answer(model, "ask", "hi", "--seed", "5", "--top-k", "7")
    receipt = found["receipt"]
    assert receipt["sampling"] == {
        "temperature": 0.6, "top_p": 0.9, "top_k": 7, "min_p": 0.0, "repeat_penalty": 1.0, "seed": 5
    }  # fmt: skip
    assert (receipt["path"], receipt["max_tokens"]) == (str(model), 9)
    assert receipt["template"]["name"] == "chatml"
    assert len(receipt["prompt_ids"]) == found["prompt_tokens"]
    other = answer(model, "ask", "hi", "--template", "plain")["receipt"]["template"]
    assert other["hash"] != receipt["template"]["hash"]
    assert answer(model, "complete", "-")["receipt"]["template"] is None


def test_the_first_token_that_differs_is_named_with_the_cause(model: Path) -> None:
    then = answer(model, "ask", "hi", "--temperature", "0")
    ids = then["receipt"]["ids"]

    def replay(home: Path = model.parent, **changes: Any) -> str:
        changed = {**then, "receipt": {**then["receipt"], **changes}}
        done = run("replay", write(model.parent, changed), home=home)
        assert done.status == 1
        return done.err

    edited = [*ids[:4], (ids[4] + 1) % 200, *ids[5:]]
    assert "token 4 is " in replay(ids=edited)
    assert "and was the end: model, kernel" in replay(ids=ids[:5])
    assert f"({ids[5]}), and was the end" in replay(ids=ids[:5])
    line = replay(ids=edited, kernel="another", version="0")
    assert "the kernel was another and is " in line
    assert "the version of llama-chat was 0 and is " in line
    write_gguf(model, seed=1)
    line = replay()
    assert "token 0 is " in line or "token" in line
    assert f"the model was {then['receipt']['fingerprint']} and is " in line


def test_another_model_can_be_named(model: Path) -> None:
    receipt = write(model.parent, answer(model, "ask", "hi"))
    moved = model.with_name("moved.gguf")
    model.rename(moved)
    assert_clean_error(
        run("replay", receipt, home=model.parent), 3, "neither a path nor a known name"
    )
    assert run("replay", receipt, "-m", moved, home=model.parent).status == 0


BAD: dict[str, Any] = {
    "no JSON": "{",
    "a number": "3",
    "no receipt": "{}",
    "a text": {"receipt": "x"},
    "nothing in it": {"receipt": {}},
    "ids": {"ids": [1.5]},
    "negative": {"prompt_ids": [-1]},
    "no prompt": {"prompt_ids": []},
    "beyond": {"prompt_ids": [10**9]},
    "sampling": {"sampling": {"temperature": -1}},
    "unknown": {"sampling": {"heat": 1}},
    "stop": {"stop": [""]},
    "limit": {"max_tokens": 0},
    "leading": {"leading": "x"},
    "path": {"path": "a\0b"},
    "load": {"load": {"device": 3}},
    "grammar": {"grammar": {"what": "x", "source": "start: foo"}},
    "kernel": {"kernel": None},
}

REASONS = {
    "ids": "its ids are not a list of token ids",
    "leading": "unknown treatment of leading white space",
    "kernel": "a field is not text",
}


def test_damaged_receipts_are_one_line(model: Path) -> None:
    then = answer(model, "ask", "hi")
    for name, change in BAD.items():
        path = model.parent / "receipt.json"
        if isinstance(change, str):
            path.write_text(change)
        elif "receipt" in change:
            write(model.parent, then | change)
        else:
            write(model.parent, then | {"receipt": then["receipt"] | change})
        done = run("replay", path, home=model.parent)
        assert_clean_error(done, 2, REASONS.get(name, ""))
        assert len(done.err) < 400, name
    path.write_text("\n")
    assert_clean_error(run("replay", path, home=model.parent), 2, "it is empty")
    assert_clean_error(run("replay", "none.json", home=model.parent), 2, "no such file")


def of(path: Path) -> str:
    checkpoint = open_checkpoint(path)
    return model_fingerprint(checkpoint, load_tokenizer(checkpoint))


def test_a_fingerprint_is_of_header_and_weights_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a.gguf"
    write_gguf(path)
    first = of(path)
    copy = tmp_path / "b.gguf"
    copy.write_bytes(path.read_bytes())
    assert of(copy) == first
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert of(path) == first  # known by path, size and time
    os.utime(path)
    assert of(path) != first
    for junk in (b"[1]", b"\xff", b'{"a": 1}'):
        (tmp_path / "cache/llama-chat" / fingerprint.FILE).write_bytes(junk)
        assert of(copy) == first


def test_a_folder_and_the_parts_of_a_file_have_one_fingerprint(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    before = of(tmp_path / "meta")
    last = sorted((tmp_path / "meta").glob("*.pth"))[-1]
    os.utime(last, ns=(1, 1))
    assert of(tmp_path / "meta") == before
    write_gguf(tmp_path / "parts.gguf", tensors_a_file=8)
    parts = sorted(tmp_path.glob("parts-*.gguf"))
    found = {of(part) for part in parts}
    assert len(parts) > 1
    assert len(found) == 1
    data = bytearray(parts[-1].read_bytes())
    data[-1] ^= 1
    parts[-1].write_bytes(data)
    assert of(parts[0]) not in found


def test_a_server_names_the_model_that_it_loaded(model: Path) -> None:
    loaded = answer(model, "ask", "hi")["receipt"]["fingerprint"]
    with running_server(model.parent, model) as server:
        write_gguf(model.with_name("other.gguf"), replace(SMALL, n_layers=1))
        model.with_name("other.gguf").replace(model)
        body = {"messages": HELLO, "max_tokens": 2, client.OWN_KEY: {"receipt": True}}
        *_, last = client.stream(server.socket, "/v1/chat/completions", body)
    assert last[client.OWN_KEY]["described"]["receipt"]["fingerprint"] == loaded
    assert answer(model, "ask", "hi")["receipt"]["fingerprint"] != loaded


def test_logprobs_are_of_each_token_with_the_most_likely_ones(model: Path) -> None:
    assert_clean_error(run("ask", "hi", "--logprobs", "2", home=model.parent), 2, "add --json")
    for command in (("ask", "hi"), ("complete", "-")):
        found = answer(model, *command, "--logprobs", "3", "--temperature", "0")
        assert [each["id"] for each in found["logprobs"]] == found["receipt"]["ids"]
        for each in found["logprobs"]:
            assert len(each["top"]) == 3
            assert each["top"][0] == {name: each[name] for name in ("id", "piece", "logprob")}
            values = [top["logprob"] for top in each["top"]]
            assert values == sorted(values, reverse=True)
        assert "logprobs" not in answer(model, *command)
