"""Trials of two ways to compute the same: measured once, and remembered for the next runs."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from llama_chat import documents
from llama_chat.kernels import native
from llama_chat.loading.plan import plan
from llama_chat.quantization import linear, trial
from tests.model_files import SMALL, write_gguf


class Way:
    """A way to compute something that counts its calls, and takes some time."""

    def __init__(self, turns: int) -> None:
        self.turns, self.calls = turns, 0

    def __call__(self) -> None:
        self.calls += 1
        sum(range(self.turns))


def slow_and_fast() -> tuple[Way, Way]:
    return Way(400_000), Way(10)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the results."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "llama-chat" / trial.FILE


def test_the_faster_way_is_remembered(results: Path) -> None:
    slow, fast = slow_and_fast()
    assert not trial.is_faster("one", slow, fast)
    assert trial.is_faster("other", fast, slow)
    assert slow.calls >= 4
    counted = slow.calls, fast.calls
    # The same name is not measured again, whatever takes longer now.
    assert not trial.is_faster("one", fast, slow)
    assert (slow.calls, fast.calls) == counted
    assert stat.S_IMODE(results.stat().st_mode) == 0o600
    assert list(json.loads(results.read_text()).values()) == [False, True]


@pytest.mark.parametrize("changed", ["_processor", "_build"])
def test_another_processor_or_build_is_measured_anew(
    changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, fast = slow_and_fast()
    assert not trial.is_faster("one", slow, fast)
    monkeypatch.setattr(trial, changed, lambda: "another")
    assert trial.is_faster("one", fast, slow)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "not JSON": lambda path: path.write_text("{"),
    "not UTF-8": lambda path: path.write_bytes(b"\xff{}"),
    "a list": lambda path: path.write_text("[1]"),
    "numbers": lambda path: path.write_text('{"one": 1}'),
    "deep": lambda path: path.write_text("[" * 50_000),
    "long": lambda path: path.write_text('{"one": true}' + " " * 10**6),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_ignored(make: Callable[[Path], object], results: Path) -> None:
    results.parent.mkdir(parents=True)
    make(results)
    slow, fast = slow_and_fast()
    assert not trial.is_faster("one", slow, fast)
    assert trial.is_faster("other", fast, slow)


def test_a_folder_that_cannot_be_written_is_ignored(results: Path) -> None:
    results.parent.parent.write_text("a file where the cache should be")
    slow, fast = slow_and_fast()
    assert not trial.is_faster("one", slow, fast)


def test_old_results_are_dropped(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_MAX_RESULTS", 2)
    for name in ("one", "other", "third"):
        trial.is_faster(name, Way(1), Way(1))
    names = [key.partition(" ")[0] for key in json.loads(results.read_text())]
    assert names == ["other", "third"]


@pytest.mark.skipif(not native.supported_levels(), reason="no C compiler was there")
@pytest.mark.parametrize("floats_are_faster", [True, False])
@pytest.mark.parametrize("stored", ["Q4_0", "Q8_0", "Q5_1"])
def test_packed_weights_become_floats_where_portable_c_is_slower(
    stored: str, floats_are_faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, SMALL, quantization=gguf.GGMLQuantizationType[stored])
    asked: list[str] = []

    def is_faster(what: str, *ways: Callable[[], object]) -> bool:
        for way in ways:
            way()
        asked.append(what)
        return floats_are_faster

    monkeypatch.setattr(linear, "is_faster", is_faster)
    portable = native.supported_levels()[0]
    if native.level_name() != portable:
        assert plan(path, "cpu").weight_format in ("stored", "none")
        assert not asked
    monkeypatch.setattr(native, "level_name", lambda: portable)
    linear.prefers_floats.cache_clear()
    planned = plan(path, "cpu")
    linear.prefers_floats.cache_clear()
    assert planned.weight_format == ("none" if floats_are_faster else "stored")
    assert planned.kernel == ("torch" if floats_are_faster else portable)
    bits = 4 if stored == "Q4_0" else 8
    assert asked == [f"one row, W{bits} of {SMALL.dim} columns, {planned.dtype}"]
    # What is asked for is not measured.
    assert plan(path, "cpu", quantize="stored").weight_format == "stored"
    assert len(asked) == 1
