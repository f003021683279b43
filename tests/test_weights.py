"""How weights are held, and whether they fit in memory."""

import subprocess
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from llama_chat.checkpoints.gguf import GGUFCheckpoint
from llama_chat.errors import ModelError
from llama_chat.llama import load
from llama_chat.weights import FORMS, choose_form, held_bytes
from tests.model_files import SMALL, write_gguf
from tests.program import COMMAND, environment

LARGE = replace(SMALL, dim=1024, n_heads=16, head_dim=64, hidden_dim=2048, n_layers=4)
BESIDE = 2**29 + LARGE.kv_cache_bytes(512, 2)
"""What is needed beside the weights: room to work in, and a cache of the whole context."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> GGUFCheckpoint:
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    write_gguf(path, LARGE, quantization=gguf.GGMLQuantizationType.F16)
    return GGUFCheckpoint.open(path)


@pytest.mark.parametrize("form", FORMS)
def test_the_estimate_is_what_the_model_takes(form: str, checkpoint: GGUFCheckpoint) -> None:
    llama = load(checkpoint.path, quantize=form, dtype="bfloat16")
    assert llama.model.n_bytes == held_bytes(checkpoint, form, torch.bfloat16)  # type: ignore[arg-type]


def test_what_fits_is_loaded_as_it_was_asked_for(checkpoint: GGUFCheckpoint) -> None:
    for form in FORMS:
        free = BESIDE + held_bytes(checkpoint, form, torch.bfloat16)
        assert choose_form(form, checkpoint, torch.bfloat16, free) == form
        assert choose_form(form, checkpoint, torch.bfloat16, None) == form
        with pytest.raises(ModelError):
            choose_form(form, checkpoint, torch.bfloat16, free - 1)


def test_what_does_not_fit_is_refused_with_what_would(checkpoint: GGUFCheckpoint) -> None:
    sizes = {form: BESIDE + held_bytes(checkpoint, form, torch.bfloat16) for form in FORMS}
    assert sizes["none"] > sizes["int8"] > sizes["int4"]
    for other in ("int8", "int4"):
        with pytest.raises(ModelError) as caught:
            choose_form("auto", checkpoint, torch.bfloat16, sizes[other])
        line = str(caught.value)
        assert f"needs {sizes['none'] / 1e9:.1f} GB, {sizes[other] / 1e9:.1f} GB free: " in line
        assert line.endswith(f"use --quantize {other} ({sizes[other] / 1e9:.1f} GB)")
    with pytest.raises(ModelError, match="free some memory or take a smaller model"):
        choose_form("auto", checkpoint, torch.bfloat16, sizes["int4"] - 1)
    with pytest.raises(ModelError, match="a shorter --context"):
        choose_form("auto", checkpoint, torch.bfloat16, sizes["int4"], 10**9)


def test_a_cache_that_cannot_fit_is_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    path = tmp_path / "endless.gguf"
    write_gguf(path, metadata={"llama.context_length": 2**31 - 1})
    answer = subprocess.run(
        [*COMMAND, "complete", "-", "-m", str(path), "--context", "2000000000"],
        input="in",
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 3
    assert answer.stderr.count("\n") == 1
    assert "needs 1024.5 GB, " in answer.stderr
    assert "take a shorter --context" in answer.stderr
