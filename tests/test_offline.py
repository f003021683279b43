"""With ``offline`` nothing uses the network; without it, only ``llama-chat pull`` does."""

from pathlib import Path

import pytest

from harness.program import assert_clean_error, run
from tests.hub import Hub, pull, terminal_of

WEIGHTS = bytes(range(256)) * 2000


@pytest.mark.parametrize(
    ("flags", "env"),
    [
        (["--offline"], {}),
        ([], {"LLAMA_CHAT_OFFLINE": "1"}),
        ([], {"HF_HUB_OFFLINE": "1"}),
    ],
)
def test_offline_no_request_is_sent(
    flags: list[str], env: dict[str, str], hub: Hub, tmp_path: Path
) -> None:
    hub.files = {"a.gguf": WEIGHTS}
    done = pull(hub, tmp_path, "org/name", *flags, **env)
    assert_clean_error(done, 1, "model 'org/name': offline is set, so it is not downloaded")
    assert hub.tokens == set()


def test_offline_the_starter_is_neither_fetched_nor_offered(hub: Hub, tmp_path: Path) -> None:
    done = pull(hub, tmp_path, "--offline")
    assert_clean_error(done, 1, "model 'smollm2-135m': offline is set, so it is not downloaded")
    with terminal_of(hub, tmp_path, "--offline") as terminal:
        assert terminal.wait_for_end() == 3
        assert "model: none is configured: give --model PATH\n" in terminal.text + "\n"


FORBID = """
import os, socket
def refuse(*arguments, **more):
    os.write(2, b"the network was used\\n")
    os._exit(99)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
socket.create_connection = socket.socket.sendto = refuse
"""


def test_nothing_but_pull_uses_the_network(gguf_model: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FORBID)
    path = str(tmp_path)
    env = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": ""}
    assert run("pull", "org/name", home=tmp_path, stdin=None, **env).status == 99
    model = ("-m", str(gguf_model))
    for arguments, status in (
        (["models"], 0),
        (["sessions"], 0),
        (["config", "show"], 0),
        (["ask", "Hi", *model, "--max-tokens", "2"], 0),
        (["tokenize", "-m", "org/name"], 3),
    ):
        done = run(*arguments, home=tmp_path, stdin=b"Hi", **env)
        assert done.status == status, done
