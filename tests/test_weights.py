"""How weights are held, and whether they fit in memory."""

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from harness.program import run
from llama_chat.checkpoints.gguf import GGUFCheckpoint
from llama_chat.errors import ModelError
from llama_chat.files import readable_size
from llama_chat.kernels import native
from llama_chat.llama import load
from llama_chat.weights import FORMS, check_fit, choose_form, held_bytes
from tests.model_files import SMALL, write_gguf

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


def test_what_fits_is_let_through(checkpoint: GGUFCheckpoint) -> None:
    for form in FORMS:
        free = BESIDE + held_bytes(checkpoint, form, torch.bfloat16)
        assert choose_form(form, checkpoint, torch.bfloat16, free) == form
        check_fit(form, checkpoint, torch.bfloat16, free)
        with pytest.raises(ModelError):
            check_fit(form, checkpoint, torch.bfloat16, free - 1)


def test_quantised_files_stay_packed_where_that_is_fast(checkpoint: GGUFCheckpoint) -> None:
    fast = "stored" if native.available else "none"
    assert choose_form("auto", checkpoint, torch.bfloat16, 10**12) == fast
    assert choose_form("auto", checkpoint, torch.bfloat16, 10**6) == "stored"
    gpu = torch.device("cuda")
    assert choose_form("auto", checkpoint, torch.bfloat16, 10**12, gpu) == "none"


def test_what_does_not_fit_is_refused_with_what_would(checkpoint: GGUFCheckpoint) -> None:
    sizes = {form: BESIDE + held_bytes(checkpoint, form, torch.bfloat16) for form in FORMS}
    assert sizes["none"] > sizes["int8"] > sizes["int4"]
    for other in ("int8", "int4"):
        with pytest.raises(ModelError) as caught:
            check_fit("none", checkpoint, torch.bfloat16, sizes[other])
        line = str(caught.value)
        needed, free = readable_size(sizes["none"]), readable_size(sizes[other])
        assert line.endswith(f": needs {needed}, {free} free: use --quantize {other} ({free})")
    with pytest.raises(ModelError, match="free some memory or take a smaller model"):
        check_fit("none", checkpoint, torch.bfloat16, sizes["int4"] - 1)
    with pytest.raises(ModelError, match="a shorter --context"):
        check_fit("none", checkpoint, torch.bfloat16, sizes["int4"], 10**9)


def test_a_cache_that_cannot_fit_is_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    path = tmp_path / "endless.gguf"
    write_gguf(path, metadata={"llama.context_length": 2**31 - 1})
    flags = ("-m", path, "--context", "2000000000")
    answer = run("complete", "-", *flags, home=tmp_path, stdin=b"in")
    assert answer.status == 3
    assert answer.err.count("\n") == 1
    assert "needs 1.0 TB, " in answer.err
    assert "take a shorter --context" in answer.err
