"""A disk of 4 or 64 KiB under each place that is written to: one line, and the chat goes on."""

import re
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.program import assert_clean_error, run
from harness.terminal import CTRL_D, READY, Terminal
from tests.disks import SmallDisk
from tests.hub import Hub, pull

WIDE = (400, 40)
"""Size of a terminal in which no line wraps."""


@pytest.fixture(params=[4, 64])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk", request.param)
    yield disk
    disk.close()


@pytest.mark.parametrize("flags", [(), ("--plain",)])
def test_under_the_history(
    flags: tuple[str, ...], disk: SmallDisk, gguf_model: Path, tmp_path: Path
) -> None:
    state = {"XDG_STATE_HOME": str(tmp_path / "disk")}
    with Terminal("-m", gguf_model, *flags, home=tmp_path, size=WIDE, **state) as terminal:
        modes = termios.tcgetattr(terminal.descriptor)
        terminal.wait_for(r"template \w+\n\n?>" if flags else READY)
        terminal.line("/top-k 3")
        terminal.wait_for("top-k is 3")
        disk.fill()
        for word in ("one", "two"):  # the rest of a block, and more
            terminal.paste("/system " + "x" * 4100 + word)
            terminal.type("\r")
            terminal.wait_for(rf"system:\s+x+[x\n]*{word}")
        terminal.line("/exit")
        assert terminal.wait_for_end() == 0
        assert termios.tcgetattr(terminal.descriptor) == modes
        (line,) = re.findall("(?m)^warning: .*", terminal.text)
        assert line.endswith(
            "no space left on device: what you type from here on is not remembered"
        )
        history = (tmp_path / "disk/llama-chat/history").read_text()
        assert re.findall(r"(?m)^\+.*", history) == ["+/top-k 3"]  # no half of a line
        assert not re.search("Traceback|Press ENTER", terminal.text)


def test_under_the_conversations(disk: SmallDisk, gguf_model: Path, tmp_path: Path) -> None:
    data = {"XDG_DATA_HOME": str(tmp_path / "disk")}
    flags = ("-m", gguf_model, "--max-tokens", "1")
    with Terminal(*flags, home=tmp_path, size=WIDE, **data) as terminal:
        modes = termios.tcgetattr(terminal.descriptor)
        terminal.wait_for(READY)
        disk.fill()
        for text in ("one", "two", "three"):
            terminal.ask(text, r"cut off|ended")
        why = r"no space left on device: free space there; the next turn tries again"
        assert re.findall("not saved: .*: (.*: .*)", terminal.text) == [why]
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 6
        assert termios.tcgetattr(terminal.descriptor) == modes
        assert len(re.findall("(?m)^llama-chat: error: .*no space left", terminal.text)) == 1


def test_under_the_settings(disk: SmallDisk, tmp_path: Path) -> None:
    disk_home = str(tmp_path / "disk")
    file = tmp_path / "disk/llama-chat/config.toml"
    file.parent.mkdir()
    disk.fill()
    done = run("config", "init", home=tmp_path, XDG_CONFIG_HOME=disk_home)
    assert_clean_error(done, 6, str(file), "no space left on device: free space there")
    assert not file.exists()
    disk.make_room()
    file.write_text("top_k = 5\n")
    disk.fill()
    editor = f'{sys.executable} -c \'import sys; open(sys.argv[1], "w").write("top_k = 6")\''
    done = run("config", "edit", home=tmp_path, VISUAL=editor, XDG_CONFIG_HOME=disk_home)
    assert_clean_error(done, 6, "no space left on device: free space there")
    assert file.read_text() == "top_k = 5\n"


def test_under_a_fetched_model(disk: SmallDisk, hub: Hub, tmp_path: Path) -> None:
    hub.files = {"a.gguf": b"x" * 100_000}
    done = pull(hub, tmp_path, "org/name", XDG_DATA_HOME=str(tmp_path / "disk"))
    assert_clean_error(done, 6, "are needed and", "are free: free space there")


@pytest.mark.parametrize("name", ["m.gguf", "folder"])
def test_under_a_converted_model(
    name: str, disk: SmallDisk, gguf_model: Path, tmp_path: Path
) -> None:
    done = run("convert", gguf_model, tmp_path / "disk" / name, home=tmp_path)
    assert_clean_error(done, 6, "bytes and", "are free: free space there")
    assert list((tmp_path / "disk").iterdir()) == []
