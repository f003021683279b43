"""The input is open while the model loads."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.program import environment
from harness.terminal import CTRL_C, CTRL_D, READY, Terminal
from tests.model_files import SMALL, write_hollow_gguf

LOADING = r"loading \d+ %"
WAITING = r"Loading ━"
"""Pattern of the bar that is shown while something waits for the model."""


@dataclass(frozen=True)
class Gate:
    """Gate that the loading of a model waits for."""

    pipe: Path

    @property
    def command(self) -> Sequence[str]:
        """The command of a program whose model waits."""
        return sys.executable, "-m", "harness.held", str(self.pipe)

    def open(self) -> None:
        """Let the model load; the program must wait already, or do so soon."""
        self.pipe.write_bytes(b"")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    os.mkfifo(tmp_path / "gate")
    return Gate(tmp_path / "gate")


def test_the_input_is_open_before_torch_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys; from llama_chat.terminal import app, chat, keyboard, renderer;"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], env=environment(tmp_path), check=True)


@pytest.mark.cold
def test_what_is_sent_while_the_model_loads_is_answered(
    starter_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", starter_model, "--temperature", "0", "--max-tokens", "30")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(r"›")
        assert "template chatml" not in terminal.text
        terminal.line("What is the capital of France?")
        text = terminal.wait_for(r"Paris\.")
    question, model = text.index("› What is the capital"), text.index("template chatml")
    assert question < model < text.index("Paris.")


@pytest.fixture(scope="module")
def slow_flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str | Path, ...]:
    """Flags of a model that takes several seconds to load, since it is quantized at load."""
    path = tmp_path_factory.mktemp("slow") / "slow.gguf"
    wide = replace(SMALL, dim=256, n_heads=8, n_kv_heads=4, head_dim=32, hidden_dim=2**15)
    write_hollow_gguf(path, replace(wide, n_layers=32))
    return "-m", path, "--quantize", "int8"


@pytest.mark.cold
def test_the_toolbar_shows_the_progress_of_loading(
    slow_flags: tuple[str | Path, ...], tmp_path: Path
) -> None:
    with Terminal(*slow_flags, home=tmp_path) as terminal:
        terminal.wait_for(r"› *\n")
        terminal.wait_for(r"slow · .*loading …")
        first, *_ = re.findall(r"loading (\d+) %", terminal.wait_for(LOADING))
        terminal.wait_until(lambda: f"loading {first} %" not in terminal.text)
        later = re.search(r"loading (\d+) %", terminal.wait_for(LOADING + r" at \d+\.\d [MG]B/s"))
        assert later is not None
        assert int(first) < int(later[1]) <= 100
        assert "context" not in terminal.text


def test_settings_change_and_text_stays_while_it_loads(
    gate: Gate, gguf_model: Path, tmp_path: Path
) -> None:
    with Terminal("-m", gguf_model, home=tmp_path, command=gate.command) as terminal:
        terminal.wait_for(LOADING)
        terminal.ask("/prompt grammar", r"→")
        terminal.ask("/temperature 0", r"temperature is 0\.0 \(/temperature\)")
        terminal.ask("/max-tokens 5", r"max-tokens is 5 \(/max-tokens\)")
        terminal.ask("/system Be brief.", r"system: Be brief\.")
        terminal.ask('/stop "END"', r"stop is 'END'")
        terminal.ask("/color never", r"color is never")
        terminal.type("half a")
        terminal.wait_for(rf"half a\n[\s\S]*temp 0 .*{LOADING}")
        gate.open()
        text = terminal.wait_for(r"template chatml\n(.*\n)*› half a")
        assert text.count("› half a") == 1
        terminal.type(CTRL_C)
        table = terminal.ask("/settings", r"verbose .*")
        assert re.search(r"(?m)^max-tokens +5 +/max-tokens$", table)


def test_a_template_chosen_while_it_loads_is_that_of_the_session(
    gate: Gate, gguf_model: Path, tmp_path: Path
) -> None:
    with Terminal("-m", gguf_model, home=tmp_path, command=gate.command) as terminal:
        terminal.wait_for(LOADING)
        terminal.line("/set template plain")
        terminal.wait_for(WAITING)
        gate.open()
        terminal.wait_for(r"template plain\n")
        terminal.wait_for(r"template is plain")
        terminal.line("/tokens")
        terminal.wait_for(r"there is no message yet")


def test_a_template_that_does_not_suit_the_model_is_dropped_and_reported(
    gate: Gate, gguf_model: Path, tmp_path: Path
) -> None:
    with Terminal("-m", gguf_model, home=tmp_path, command=gate.command) as terminal:
        terminal.wait_for(LOADING)
        terminal.line("/template llama2")
        terminal.wait_for(WAITING)
        gate.open()
        terminal.wait_for(r"template llama2: the tokenizer of this model has no <s>")
        terminal.wait_for(r"template chatml\n")
        terminal.ask("/settings", r"\ntemplate +auto +default\n")


def test_a_conversation_loaded_while_the_model_loads_is_continued(
    gate: Gate, gguf_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", gguf_model, "--temperature", "0", "--max-tokens", "4")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("the first question", r"(?:cut off|ended it)")
        terminal.ask("/save earlier", r"saved as earlier")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    with Terminal(*flags, home=tmp_path, command=gate.command) as terminal:
        terminal.wait_for(LOADING)
        terminal.ask("/load earlier", r"going on with earlier\n› the first question")
        gate.open()
        terminal.wait_for(r"template chatml\n")
        terminal.ask("the second question", r"(?:cut off|ended it|nothing to add)")
        terminal.ask("/context", r"the first question[\s\S]*the second question[\s\S]*free")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    saved = (tmp_path / ".local/share/llama-chat/conversations/earlier.jsonl").read_text()
    assert '"the second question"' in saved


def test_control_c_while_waiting_puts_the_message_back_into_the_input(
    gate: Gate, gguf_model: Path, tmp_path: Path
) -> None:
    with Terminal("-m", gguf_model, home=tmp_path, command=gate.command) as terminal:
        terminal.wait_for(LOADING)
        terminal.line("too early")
        terminal.wait_for(r"› too early\n\S? *Loading")
        terminal.child.kill(signal.SIGINT)  # as a terminal does while no key is being read
        terminal.wait_for(r"stopped\n[\s\S]*› too early")
        gate.open()
        terminal.type(CTRL_C)
        terminal.wait_for(READY)
        terminal.line("/tree")
        terminal.wait_for(r"/tree: there is no message yet")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0


def test_what_is_sent_before_anything_is_known_of_the_load(
    gguf_model: Path, tmp_path: Path
) -> None:
    """As while torch is imported."""
    command = [sys.executable, "-m", "tests.play_stuck", "load"]
    with Terminal("-m", gguf_model, home=tmp_path, command=command) as terminal:
        terminal.wait_for("loading …")
        terminal.line("too early")
        terminal.wait_for(r"› too early\n\S? *Loading … ")
        terminal.type(CTRL_C)
        terminal.wait_for(r"› too early\nstopped\n")


@pytest.mark.parametrize("flags", [("--plain",), ()], ids=["plain", "dumb"])
def test_control_c_while_it_loads_is_no_error_without_a_toolbar(
    flags: tuple[str, ...], gate: Gate, gguf_model: Path, tmp_path: Path
) -> None:
    term = "xterm-256color" if flags else "dumb"
    flags = ("-m", str(gguf_model), *flags)
    with Terminal(*flags, home=tmp_path, command=gate.command, TERM=term) as terminal:
        terminal.wait_for(r"/help lists the commands")
        terminal.wait_until_asleep()
        terminal.type(CTRL_C)
        terminal.wait_for(r"still loading; Ctrl-C again or Ctrl-D leaves\n>")
        terminal.line("/temperature 0")
        terminal.wait_for(r"temperature is 0\.0")
        gate.open()
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    assert "unexpected" not in terminal.text


def test_the_system_message_and_examples_are_read_before_the_first_message(
    starter_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", starter_model, "--prompt", "translate_to_french", "--max-tokens", "8")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("cheese", r"\S.*\n\n")
        text = terminal.ask("/stats", r"seed +\d+")
        context = terminal.ask("/context", r"free")
    head = sum(map(int, re.findall(r"(?m)^ +(?:system|user|assistant) +(\d+)", context)))
    cached = re.search(r"cached_tokens +(\d+)", text)
    assert cached is not None
    assert int(cached[1]) >= head > 40


@pytest.mark.cold
def test_leaving_while_it_loads_is_clean(
    slow_flags: tuple[str | Path, ...], tmp_path: Path
) -> None:
    with Terminal(*slow_flags, home=tmp_path) as terminal:
        terminal.wait_for(LOADING)
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
        assert "Traceback" not in terminal.text
        assert terminal.raw.rfind(b"\x1b[?2004l") > terminal.raw.rfind(b"\x1b[?2004h")


def test_a_model_that_cannot_be_loaded_ends_the_chat_in_one_line(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 64)
    with Terminal("-m", damaged, home=tmp_path, size=(160, 20)) as terminal:
        terminal.wait_for(r"›")
        assert terminal.wait_for_end() == 3
        assert terminal.text.count("llama-chat: error: ") == 1
        assert "Traceback" not in terminal.text


def test_a_wrong_name_is_an_error_before_anything_is_drawn(tmp_path: Path) -> None:
    with Terminal("-m", "/nowhere", home=tmp_path, size=(160, 20)) as terminal:
        assert terminal.wait_for_end() == 3
        assert terminal.text.strip().startswith("llama-chat: error: model '/nowhere'")


def test_a_piped_document_is_the_first_attachment(starter_model: Path, tmp_path: Path) -> None:
    document = tmp_path / "doc.txt"
    document.write_text("The secret word is aardvark.\nNothing else matters.\n")
    command = f"{sys.executable} -m llama_chat chat -m {starter_model} --max-tokens 30"
    shell = ("sh", "-c", f"cat {document} | {command} --temperature 0")
    with Terminal(home=tmp_path, command=shell) as terminal:
        terminal.wait_for(r"attached: document, 2 lines")
        terminal.wait_for(READY)
        terminal.wait_for(r"context [1-9]\d/8192 with 1 file")
        terminal.ask("What is the secret word?", r"aardvark")
        terminal.ask("/context", r"\[document\] What is the secret word\?")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0


def test_a_chat_needs_a_terminal(tmp_path: Path) -> None:
    command = f"{sys.executable} -m llama_chat chat"
    with Terminal(home=tmp_path, command=("sh", "-c", f"{command} | cat")) as terminal:
        assert terminal.wait_for_end() == 0  # of cat
        assert "stdout: the chat needs a terminal" in terminal.text
    with Terminal(home=tmp_path, command=("sh", "-c", f": | {command}")) as terminal:
        assert terminal.wait_for_end() == 2
        assert "error: stdin: it is empty" in terminal.text
