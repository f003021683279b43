"""The manual pages say what the program does now."""

import importlib.util
import shutil
import subprocess

import pytest

from llama_chat.settings.definitions import SETTINGS
from tests.conftest import ROOT

_SPEC = importlib.util.spec_from_file_location("make_manual", ROOT / "docs/make_manual.py")
assert _SPEC is not None
assert _SPEC.loader is not None
make_manual = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make_manual)


def test_the_pages_are_those_of_this_version() -> None:
    """If not: python docs/make_manual.py."""
    written = {path.name: path.read_text() for path in make_manual.FOLDER.iterdir()}
    assert written == make_manual.pages()


def test_every_setting_and_command_has_its_place() -> None:
    main = make_manual.pages()["llama-chat.1"].replace("\\-", "-")
    for setting in SETTINGS.values():
        assert f"{setting.flag}" in main
        assert setting.variable in main
    assert "llama-chat-serve(1)" in main


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_reads_the_pages_without_a_warning() -> None:
    for path in make_manual.FOLDER.iterdir():
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", path], capture_output=True, check=True
        )
        assert done.stderr == b""
