"""``llama-chat models``: all models of this machine are listed, and ours can be removed."""

import json
import os
from pathlib import Path

import pytest
from rich.cells import cell_len

from harness.program import CONTROLS, assert_clean_error, run
from harness.terminal import Terminal
from llama_chat.library.downloads import record

HOSTILE = "\x1b]52;c;ZXZpbA==\x07 \x9b31m\n\u202egpj"
TIME = 10**9


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Our folder of models, with a model in it."""
    folder = tmp_path / ".local/share/llama-chat/models"
    write(folder / "org/tiny/tiny.Q4_0.gguf", 2_500_000)
    return folder


def write(path: Path, size: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (TIME, TIME))


def test_a_pipe_gets_a_line_per_model_with_tabs(models: Path, tmp_path: Path) -> None:
    write(tmp_path / ".lmstudio/models/pub/repo/b.gguf")
    done = run("models", home=tmp_path, TZ="Asia/Tokyo")
    assert done.status == 0
    assert done.err == ""
    assert done.out.splitlines() == [
        "org/tiny\t2.5 MB\tGGUF Q4_0\town\t2001-09-09 10:46",
        "pub/repo/b\t4 bytes\tGGUF\tlm-studio\t2001-09-09 10:46",
    ]
    with_paths = run("models", "--paths", home=tmp_path)
    assert [line.split("\t")[5] for line in with_paths.out.splitlines()] == [
        str(models / "org/tiny/tiny.Q4_0.gguf"),
        str(tmp_path / ".lmstudio/models/pub/repo/b.gguf"),
    ]


def test_json_says_the_same_for_programs(models: Path, tmp_path: Path) -> None:
    done = run("models", "--json", home=tmp_path, TZ="Asia/Tokyo")
    assert (done.status, done.err, done.out.count("\n")) == (0, "", 1)
    assert json.loads(done.out) == [
        {
            "name": "org/tiny",
            "path": str(models / "org/tiny/tiny.Q4_0.gguf"),
            "format": "GGUF",
            "quantization": "Q4_0",
            "bytes": 2_500_000,
            "from": "own",
            "changed": "2001-09-09T10:46:40+09:00",
        }
    ]


def test_an_empty_list_is_reported(tmp_path: Path) -> None:
    done = run("models", home=tmp_path)
    assert (done.status, done.out) == (0, "")
    assert done.err.startswith("no model is on this machine yet: ")
    assert run("models", "--json", home=tmp_path).out == "[]\n"


@pytest.mark.parametrize("width", [120, 40])
def test_on_a_terminal_a_table_fits_the_width(width: int, models: Path, tmp_path: Path) -> None:
    with Terminal("models", "--paths", home=tmp_path, size=(width, 24)) as terminal:
        assert terminal.wait_for_end() == 0
        lines = [line for line in terminal.text.splitlines() if line]
    assert lines[0].startswith("name")
    assert lines[1].startswith("org/tiny  2.5 MB") or width == 40
    assert all(cell_len(line) <= width for line in lines)


def test_no_control_character_of_a_name_reaches_a_stream(models: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(models) + b"/\xff"))
    odd.mkdir()
    for folder in (models / HOSTILE, odd):
        write(folder / "params.json")
        write(folder / "consolidated.00.pth")
    for flags in ([], ["--paths"], ["--json"]):
        done = run("models", *flags, home=tmp_path)
        assert (done.status, done.err) == (0, "")
        assert not (CONTROLS | set("\x7f\x9b\u202e")) & set(done.out)
        assert done.out.count("\n") == (1 if flags == ["--json"] else 3)


def test_folders_of_the_settings_are_searched(tmp_path: Path) -> None:
    write(tmp_path / "beside/a.gguf")
    write(tmp_path / "second/b.gguf")
    (tmp_path / "c.toml").write_text('model_paths = ["beside"]')
    config = ("--config", tmp_path / "c.toml")
    assert run("models", *config, home=tmp_path).out.startswith("a\t")
    assert run("models", "--model-paths", tmp_path / "second", home=tmp_path).out.startswith("b\t")
    both = f"{tmp_path}/beside:{tmp_path}/second"
    assert run("models", home=tmp_path, LLAMA_CHAT_MODEL_PATHS=both).out.count("\n") == 2
    done = run("inspect", "-m", "a", *config, home=tmp_path)
    assert_clean_error(done, 3, f"{tmp_path}/beside/a.gguf")


def test_only_our_models_are_removed(models: Path, tmp_path: Path) -> None:
    write(tmp_path / ".lmstudio/models/pub/repo/b.gguf")
    done = run("models", "rm", "pub/repo/b", "--yes", home=tmp_path)
    assert_clean_error(done, 2, "it is no model of ours but from lm-studio: it is at ")
    assert_clean_error(run("models", "rm", "org/tin", home=tmp_path), 2, "did you mean org/tiny?")
    done = run("models", "rm", "org/tiny", home=tmp_path)
    assert_clean_error(done, 2, "there is no terminal to confirm it: give --yes")
    record(models / "org/tiny/tiny.Q4_0.gguf", "0" * 40, "0" * 64)
    done = run("models", "rm", "org/tiny", "--yes", home=tmp_path)
    assert (done.status, done.err) == (0, "removed org/tiny\n")
    assert list(models.iterdir()) == []


@pytest.mark.parametrize(("answer", "left"), [("\r", 1), ("y\r", 0)])
def test_on_a_terminal_rm_asks_first(answer: str, left: int, models: Path, tmp_path: Path) -> None:
    with Terminal("models", "rm", "org/tiny", home=tmp_path) as terminal:
        terminal.wait_for(r"Remove org/tiny \(2\.5 MB\)\? \[y/N\]")
        terminal.type(answer)
        assert terminal.wait_for_end() == 0
    assert len(list(models.rglob("*.gguf"))) == left


def test_torch_and_the_hub_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, sys\n"
        "heavy = {'torch', 'huggingface_hub', 'httpx2'}\n"
        "atexit.register(lambda: heavy & set(sys.modules) and os._exit(9))\n"
    )
    done = run("models", home=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.status == 0
