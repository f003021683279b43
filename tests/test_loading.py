"""The input is open while the model loads."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.program import environment
from harness.terminal import CTRL_C, CTRL_D, READY, Terminal

pytestmark = pytest.mark.cold  # that torch is being imported is what most of these are about


def test_the_input_is_open_before_torch_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys; from llama_chat.terminal import app, chat, keyboard, renderer;"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], env=environment(tmp_path), check=True)


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


def test_the_toolbar_tells_how_far_it_is(starter_model: Path, tmp_path: Path) -> None:
    with Terminal("-m", starter_model, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        shown = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", terminal.raw)
        assert b"loading" in shown
        assert re.search(r"context 0/8192", terminal.wait_for(r"context \d+/\d+"))


def test_settings_change_and_text_stays_while_it_loads(starter_model: Path, tmp_path: Path) -> None:
    flags = ("-m", starter_model, "--max-tokens", "12")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(r"›")
        terminal.line("/temperature 0")
        terminal.type("half a")
        terminal.wait_for(r"temperature is 0\.0")
        text = terminal.wait_for(r"template chatml\n(.*\n)*› half a")
        assert text.count("› half a") == 1
        terminal.wait_for(r"temp 0 ")


def test_the_system_message_and_examples_are_read_before_the_first_message(
    starter_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", starter_model, "--prompt", "translate_to_french", "--max-tokens", "8")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("cheese", r"\n\n")
        text = terminal.ask("/stats", r"seed +\d+")
        context = terminal.ask("/context", r"free")
    head = sum(map(int, re.findall(r"(?m)^ +(?:system|user|assistant) +(\d+)", context)))
    cached = re.search(r"cached_tokens +(\d+)", text)
    assert cached is not None
    assert int(cached[1]) >= head > 40


def test_control_c_while_waiting_gives_the_message_back(
    starter_model: Path, tmp_path: Path
) -> None:
    with Terminal("-m", starter_model, home=tmp_path) as terminal:
        terminal.wait_for(r"›")
        terminal.line("too early")
        terminal.wait_for(r"› too early\n")
        terminal.child.kill(signal.SIGINT)  # as the terminal does, once no key is being read
        # It was still loading, and the text is back; or it was not, and the reply is short.
        terminal.wait_for(r"stopped\n[\s\S]*› too early|stopped after \d+ tokens")
        terminal.type(CTRL_C)
        terminal.wait_for(READY)
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0


def test_leaving_while_it_loads_is_clean(starter_model: Path, tmp_path: Path) -> None:
    with Terminal("-m", starter_model, home=tmp_path) as terminal:
        terminal.wait_for(r"›")
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
