"""Sampling settings that a model suggests are below what people set, and their origin is shown."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.program import run
from harness.terminal import READY, Terminal
from llama_chat.chat.prompt_files import PromptFile
from llama_chat.chat.prompted_settings import PromptedSettings
from llama_chat.checkpoints.generation_defaults import GenerationDefaults
from llama_chat.loading.formats import open_checkpoint
from llama_chat.loading.plan import load
from llama_chat.settings.sampling import Sampling
from llama_chat.settings.settings import Settings
from llama_chat.settings.sources import load_settings
from tests.model_files import edit_json, write_gguf, write_huggingface

HUGGING_FACE = {"temperature": 0.7, "top_p": 0.8, "top_k": 1, "min_p": 0.05}
SUGGESTED = {**HUGGING_FACE, "repeat_penalty": 1.05}
HUGGING_FACE["repetition_penalty"] = 1.05
GGUF: dict[str, object] = {
    "general__sampling__temp": 0.7,
    "general__sampling__top_p": 0.8,
    "general__sampling__top_k": 1,
    "general__sampling__min_p": 0.05,
    "general__sampling__penalty_repeat": 1.05,
}
FILE = "generation_config.json"


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that suggests to be greedy, by ``top_k``."""
    path = tmp_path_factory.mktemp("gguf") / "suggesting.gguf"
    write_gguf(path, metadata=GGUF)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("huggingface") / "suggesting"
    write_huggingface(path)
    edit_json(path / FILE, **HUGGING_FACE)
    return path


# --- What files say ------------------------------------------------------------------------------


def test_generation_config_is_read_as_transformers_reads_it(folder: Path) -> None:
    from transformers import GenerationConfig

    theirs = GenerationConfig.from_pretrained(folder)
    found = open_checkpoint(folder).generation
    assert (found.sampling, found.where, found.warning) == (SUGGESTED, FILE, "")
    assert {name: getattr(theirs, name) for name in HUGGING_FACE} == HUGGING_FACE


def test_hints_of_gguf_are_read_as_they_were_written(gguf_path: Path) -> None:
    found = open_checkpoint(gguf_path).generation
    assert (found.sampling, found.where, found.warning) == (SUGGESTED, "general.sampling.*", "")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"do_sample": False},
        {"do_sample": True, "max_length": 4096, "pad_token_id": 0},
        {"temperature": None, "top_p": None},
    ],
)
def test_a_file_that_gives_no_value_changes_nothing(
    values: dict[str, Any], huggingface_copy: Path
) -> None:
    (huggingface_copy / FILE).write_text(json.dumps(values))
    checkpoint = open_checkpoint(huggingface_copy)
    assert (checkpoint.generation.sampling, checkpoint.warnings) == ({}, ())


ODD: dict[str, list[Any]] = {
    "temperature": [100, -1, "hot", True, [0.5], {"a": 1}, float("nan"), 10**400, "\x1b[31m\n"],
    "top_p": [0, 2, -0.5, float("inf")],
    "top_k": [-2, 1.5, 10**7],
    "repetition_penalty": [0, -1, 11],
}


def test_values_out_of_range_are_one_warning(huggingface_copy: Path, tmp_path: Path) -> None:
    path = huggingface_copy / FILE
    for name, values in ODD.items():
        for value in values:
            path.write_text(json.dumps({**HUGGING_FACE, name: value}))
            found = open_checkpoint(huggingface_copy)
            ours = "repeat_penalty" if name == "repetition_penalty" else name
            assert dict(found.generation.sampling) == {
                key: kept for key, kept in SUGGESTED.items() if key != ours
            }
            (line,) = found.warnings
            assert re.search(rf"{FILE}': it suggests {ours} .*, which is out of range: ig", line)
            assert len(line) < 400
    path.write_text(json.dumps({"temperature": 99, "top_k": -2, "top_p": 0.5}))
    flags = ("-m", huggingface_copy, "--template", "plain", "--max-tokens", "2", "--seed", "1")
    done = run("ask", "hi", *flags, home=tmp_path)
    assert done.status == 0
    (line,) = [line for line in done.err.splitlines() if "it suggests" in line]
    assert "temperature 99, top_k -2, " in line


def test_top_k_of_minus_one_is_off(huggingface_copy: Path) -> None:
    (huggingface_copy / FILE).write_text('{"top_k": -1}')
    found = open_checkpoint(huggingface_copy)
    assert (found.generation.sampling, found.warnings) == ({"top_k": 0}, ())


def test_hints_out_of_range_are_one_warning(tmp_path: Path) -> None:
    odd: dict[str, object] = {"general__sampling__temp": "hot", "general__sampling__top_p": 7.0}
    write_gguf(tmp_path / "m.gguf", metadata=GGUF | odd)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    kept = {"top_k": 1, "min_p": 0.05, "repeat_penalty": 1.05}
    assert checkpoint.generation.sampling == kept
    (line,) = checkpoint.warnings
    assert "it suggests temperature 'hot', top_p 7.0, which is out of range: ignored" in line


# --- Precedence ----------------------------------------------------------------------------------


def test_a_model_is_below_file_environment_and_flags(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("temperature = 0.25\n")
    settings = load_settings({"top_k": "9"}, config, {"LLAMA_CHAT_TOP_P": "0.5"})
    found = settings.with_model(SUGGESTED, FILE)
    assert {name: (found.value(name), found.source(name)) for name in SUGGESTED} == {
        "temperature": (0.25, str(config)),
        "top_p": (0.5, "LLAMA_CHAT_TOP_P"),
        "top_k": (9, "--top-k"),
        "min_p": (0.05, FILE),
        "repeat_penalty": (1.05, FILE),
    }
    another = found.with_model({"temperature": 0.9, "top_k": 3}, "general.sampling.*")
    assert another.value("temperature") == 0.25
    assert (another.value("repeat_penalty"), another.source("repeat_penalty")) == (1.0, "default")


@pytest.mark.parametrize(
    ("flags", "environment", "text"),
    [
        ({"model_defaults": False}, {}, ""),
        ({}, {"LLAMA_CHAT_MODEL_DEFAULTS": "false"}, ""),
        ({}, {}, "model_defaults = false\n"),
    ],
)
def test_the_suggestions_can_be_ignored(
    flags: dict[str, Any], environment: dict[str, str], text: str, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(text)
    found = load_settings(flags, config, environment).with_model(SUGGESTED, FILE)
    assert found.sampling == Sampling()
    assert found.source("temperature") == "default"


def test_a_prompt_file_is_above_the_model_and_its_end_shows_it_again() -> None:
    prompt = PromptFile("p", Path("p.toml"), settings={"temperature": 0.1})
    model = GenerationDefaults(sampling=SUGGESTED, where=FILE)
    settings = PromptedSettings(Settings())
    settings.use_prompt(prompt, above_flags=False)
    settings.use_model(model)
    assert (settings.now.temperature, settings.now.top_p) == (0.1, 0.8)
    settings.end_prompt()
    assert (settings.now.temperature, settings.now.source("temperature")) == (0.7, FILE)
    settings.use_prompt(prompt, above_flags=True)
    assert settings.now.temperature == 0.1
    settings.use_model(GenerationDefaults())
    assert (settings.now.temperature, settings.now.top_p) == (0.1, 0.9)
    settings.end_prompt()
    assert settings.now.sampling == Sampling()


# --- In use --------------------------------------------------------------------------------------


def say(command: str, path: Path, home: Path, *flags: str, **env: str) -> str:
    """Return twelve tokens of a random model from one seed."""
    more = ("hi", "--template", "plain") if command == "ask" else ("-",)
    fixed = ("-m", path, "--seed", "7", "--max-tokens", "12", "--quiet")
    stdin = b"" if command == "ask" else b"hi"
    done = run(command, *more, *fixed, *flags, home=home, stdin=stdin, **env)
    assert (done.status, done.err) == (0, "")
    return done.out


@pytest.mark.parametrize("command", ["ask", "complete"])
@pytest.mark.parametrize("kind", ["folder", "gguf_path"])
def test_commands_sample_as_the_model_suggests(
    command: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(kind)
    suggested = say(command, path, tmp_path)
    same = (f"--{name.replace('_', '-')}={value}" for name, value in SUGGESTED.items())
    assert say(command, path, tmp_path, *same) == suggested
    plain = say(command, path, tmp_path, "--no-model-defaults")
    assert plain != suggested
    assert say(command, path, tmp_path, LLAMA_CHAT_MODEL_DEFAULTS="0") == plain
    assert say(command, path, tmp_path, "--top-k", "0") != suggested


def test_python_samples_as_the_model_suggests(folder: Path, gguf_path: Path) -> None:
    for path in (folder, gguf_path):
        llama = load(path)
        assert llama.sampling == Sampling(**SUGGESTED)  # type: ignore[arg-type]
        assert llama.chat(template="plain").sampler.sampling == llama.sampling
        given = Sampling(seed=3)
        assert llama.chat(template="plain", sampling=given).sampler.sampling == given
        one, other = (
            [event.text for event in llama.generate([5, 6], max_tokens=6)] for _ in range(2)
        )
        assert one == other  # greedy by top_k


def test_the_chat_shows_where_a_value_is_from(
    gguf_path: Path, gguf_model: Path, tmp_path: Path
) -> None:
    with Terminal("-m", gguf_path, "--top-p", "0.5", home=tmp_path) as terminal:
        terminal.wait_for(READY)
        text = terminal.ask("/settings", r"^template-here .*$")
        assert re.search(r"(?m)^temperature\s+0\.7\s+general\.sampling\.\*$", text)
        assert re.search(r"(?m)^top-k\s+1\s+general\.sampling\.\*$", text)
        assert re.search(r"(?m)^top-p\s+0\.5\s+--top-p$", text)
        assert re.search(r"(?m)^model-defaults\s+true\s+default$", text)
        terminal.ask("/temperature 0.25", r"temperature is 0\.25 \(/temperature\)")
        terminal.ask("/model-defaults off", r"model-defaults is false")
        terminal.ask("/top-k", r"top-k is 0 \(default\)")
        terminal.ask("/temperature", r"temperature is 0\.25 \(/temperature\)")
        terminal.ask("/set model-defaults on", r"model-defaults is true")
        terminal.ask("/temperature default", r"temperature is 0\.7 \(general\.sampling\.\*\)")
        terminal.line(f"/model {gguf_model}")
        terminal.wait_for(rf"{gguf_model.stem} · .* template chatml\n")
        terminal.ask("/temperature", r"temperature is 0\.6 \(default\)")
