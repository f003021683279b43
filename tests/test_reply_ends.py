"""A reply ends at every token that the checkpoint or its template says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.program import assert_clean_error, run
from llama_chat.cli.app import run as run_here
from llama_chat.errors import ModelError
from llama_chat.generation.events import Event, Finish, Token
from llama_chat.loading.formats import open_checkpoint
from llama_chat.loading.plan import load
from tests.folders import decoder_of, write_chain, write_tokenizer_files
from tests.model_files import edit_json, sentencepiece_model, write_gguf
from tests.vocabularies import added, piece_json

MODEL = sentencepiece_model()
VOCAB = piece_json(MODEL)["model"]["vocab"]
SIZE = len(VOCAB)
END, OTHER = SIZE, SIZE + 1
ONE, TWO = sorted((piece for piece in VOCAB if piece.isalpha()), key=len)[-2:]
CHAIN = [VOCAB[ONE], END, VOCAB[TWO], 2]


def chain(folder: Path, **files: Any) -> Path:
    """Write a model that says ``CHAIN``; nothing but ``files`` tells that END ends a reply."""
    tokens = [added(END, "<turn>"), added(OTHER, "<other>")]
    config = {"added_tokens_decoder": decoder_of(tokens), **files.pop("config", {})}
    write_tokenizer_files(folder, model=MODEL, config=config)
    write_chain(folder, SIZE + 2, CHAIN, **files.pop("model", {}))
    for name, values in files.items():
        edit_json(folder / f"{name}.json", **values)
    return folder


WAYS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "config.json": ({"model": {"eos_token_id": END}}, ["config.json"]),
    "config.json, a list": ({"model": {"eos_token_id": [2, END]}}, ["config.json"]),
    "generation_config.json": (
        {"generation_config": {"eos_token_id": END}},
        ["generation_config.json"],
    ),
    "generation_config.json, a list": (
        {"generation_config": {"eos_token_id": [OTHER, END, 2]}},
        ["generation_config.json"],
    ),
    "both": (
        {"model": {"eos_token_id": END}, "generation_config": {"eos_token_id": [2, END]}},
        ["config.json", "generation_config.json"],
    ),
    "tokenizer_config.json": ({"config": {"eos_token": "<turn>"}}, ["tokenizer_config.json"]),
    "special_tokens_map.json": (
        {"special_tokens_map": {"eos_token": {"content": "<turn>"}}},
        ["special_tokens_map.json"],
    ),
    "another special_tokens_map.json": (
        {"config": {"eos_token": "</s>"}, "special_tokens_map": {"eos_token": "<turn>"}},
        ["special_tokens_map.json"],
    ),
}


def ends(path: Path, home: Path, *flags: str) -> dict[str, list[str]]:
    """Return the end tokens that ``inspect`` lists, with the sources of each."""
    done = run("inspect", path, "--json", *flags, home=home)
    assert done.status == 0, done.err
    return {end["token"]: end["from"] for end in json.loads(done.out)["generation"]["ends"]}


def token_id(event: Event) -> int:
    assert isinstance(event, Token)
    return event.id


def reply(path: Path, **options: Any) -> tuple[str, str]:
    """Return what a chat answers, and how that ended."""
    session = load(path, dtype="float32").chat(max_tokens=5, **options)
    *tokens, finish = session.send("hi")
    assert isinstance(finish, Finish)
    return "".join(each.text for each in [*tokens, finish]), finish.reason


def answer(path: Path, home: Path, *flags: str) -> str:
    """Return what ``ask`` answers."""
    done = run("ask", "hi", "-m", path, "--max-tokens", "5", *flags, home=home)
    assert (done.status, done.err) == (0, "")
    return done.out.removesuffix("\n")


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_says_what_ends_a_reply(way: str, tmp_path: Path) -> None:
    files, sources = WAYS[way]
    path = chain(tmp_path / "m", **files)
    assert reply(path, template="plain") == (ONE, "stop")
    assert answer(path, tmp_path, "--template", "plain") == ONE
    found = ends(path, tmp_path)
    assert found["<turn>"] == sources
    assert found["</s>"][-1] == "known name"
    converted = tmp_path / "m.gguf"
    assert run_here(["convert", str(path), str(converted), "--quiet"]) == 0
    assert reply(converted, template="plain") == (ONE, "stop")


def test_without_any_declaration_it_goes_on(tmp_path: Path) -> None:
    path = chain(tmp_path / "m")
    assert answer(path, tmp_path, "--template", "plain") == ONE + TWO
    assert ends(path, tmp_path) == {"</s>": ["tokenizer", "known name"]}
    assert run("inspect", path, home=tmp_path).out.count("ends at </s>") == 1


@pytest.mark.parametrize("way", [way for way in WAYS if "token" not in way])
def test_transformers_ends_there_too(way: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = chain(tmp_path / "m", **WAYS[way][0])
    llama = load(path, dtype="float32")
    ids = llama.prompt_ids("12")
    theirs = AutoModelForCausalLM.from_pretrained(path).generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=5, pad_token_id=0
    )
    *tokens, _ = llama.generate(ids, max_tokens=5)
    assert theirs[0, len(ids) :].tolist() == [*map(token_id, tokens), END]


TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }}ENDING\n{% endfor %}ANSWER:"


@pytest.mark.parametrize(
    "ending",
    [
        "<turn>",
        " <turn>\n",
        "{% if m.role == 'assistant' %}<turn>{% endif %}",
        "{% if not loop.last %}<turn>{% endif %}",
        "<turn>{{ bos_token }}",
        "<turn><other>",
    ],
)
def test_a_reply_ends_with_the_token_that_the_template_writes(ending: str, tmp_path: Path) -> None:
    text = TEMPLATE.replace("ENDING", ending)
    path = chain(tmp_path / "m", config={"chat_template": text, "bos_token": "<s>"})
    assert reply(path) == (ONE, "stop")
    assert load(path).template().end_ids == {END}


def test_another_template_and_raw_text_do_not_end_there(tmp_path: Path) -> None:
    text = TEMPLATE.replace("ENDING", "<turn>")
    path = chain(tmp_path / "m", config={"chat_template": text})
    assert answer(path, tmp_path) == ONE
    assert ends(path, tmp_path)["<turn>"] == ["chat template"]
    assert "<turn>" not in ends(path, tmp_path, "--template", "plain")
    done = run("complete", "-", "-m", path, "--max-tokens", "3", home=tmp_path, stdin=b"hi")
    assert done.out == f"{ONE}{TWO}\n"


def write_ends(path: Path, **metadata: object) -> Path:
    write_gguf(path, metadata={f"tokenizer__ggml__{key}": v for key, v in metadata.items()})
    return path


def test_metadata_of_gguf_say_what_ends_a_reply(tmp_path: Path) -> None:
    path = write_ends(tmp_path / "m.gguf", eot_token_id=200, eom_token_id=201)
    assert load(path).engine().end_ids == {0, 2, 200, 201}
    sources = list(ends(path, tmp_path).values())
    assert sources == [
        ["tokenizer.ggml.eos_token_id", "known name"],
        ["tokenizer.ggml.eot_token_id"],
        ["tokenizer.ggml.eom_token_id"],
        ["chat template", "known name"],
    ]


def test_a_reply_ends_at_the_ids_of_gguf(tmp_path: Path) -> None:
    both = {"eos_token_id": [OTHER, 2, END]}
    source = chain(tmp_path / "m", generation_config=both)
    for name, chained in (("<turn>", END), ("<other>", OTHER)):
        write_chain(source, SIZE + 2, [VOCAB[ONE], chained, VOCAB[TWO], 2])
        path = tmp_path / f"{name}.gguf"
        assert run_here(["convert", str(source), str(path), "--quiet"]) == 0
        assert answer(path, tmp_path, "--template", "plain") == ONE
        assert ends(path, tmp_path)[name][0].startswith("tokenizer.ggml.eo")


@pytest.mark.parametrize("value", [-1, 10**9, [10**9, 2], SIZE + 2])
def test_ids_that_the_model_has_no_row_for_are_nothing(value: object, tmp_path: Path) -> None:
    path = chain(tmp_path / "m", generation_config={"eos_token_id": value})
    assert load(path).engine().end_ids == {2}
    assert load(write_ends(tmp_path / "m.gguf", eot_token_id=4000)).engine().end_ids == {0, 2}


HOSTILE = ["</s>", [True], {"a": 2}, 2.0, [[2]], [2] * 5000, [2, None], "\x1b[31m"]


def test_values_of_another_type_are_refused(tmp_path: Path) -> None:
    path = chain(tmp_path / "m")
    for value in HOSTILE:
        edit_json(path / "generation_config.json", eos_token_id=value)
        with pytest.raises(ModelError, match=r"generation_config.json': eos_token_id is "):
            open_checkpoint(path)
    done = run("ask", "hi", "-m", path, "--template", "plain", home=tmp_path)
    assert_clean_error(done, 3)
    edit_json(path / "generation_config.json", eos_token_id=None)
    edit_json(path / "config.json", eos_token_id="</s>")
    with pytest.raises(ModelError, match=r"config.json': eos_token_id is '</s>', not an id"):
        open_checkpoint(path)
    with pytest.raises(ModelError, match="eot_token_id is '2', not a whole number"):
        open_checkpoint(write_ends(tmp_path / "m.gguf", eot_token_id="2"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda path: path.write_text("<html>"),
    "a list": lambda path: path.write_text("[1]"),
    "a folder": lambda path: path.mkdir(),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a long number": lambda path: path.write_text('{"eos_token_id": ' + "1" * 5000 + "}"),
    "large": lambda path: path.write_text(" " * 2**21 + "{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = chain(tmp_path / "m")
    DAMAGES[damage](path / "generation_config.json")
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        open_checkpoint(path)


@pytest.mark.parametrize("max_tokens", [0, -3])
def test_a_limit_below_one_token_is_refused(max_tokens: int, tmp_path: Path) -> None:
    llama = load(chain(tmp_path))
    with pytest.raises(ValueError, match=f"max_tokens is {max_tokens}, not a whole number"):
        llama.generate([1], max_tokens=max_tokens)
    assert len(list(llama.generate([1], max_tokens=1))) == 2
