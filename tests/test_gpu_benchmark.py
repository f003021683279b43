"""The script for GPUs runs, on a CPU too; its figures are not tested."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from llama_chat.generation import measuring
from tests.model_files import write_gguf


def test_a_row_for_each_form_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "_READ_BYTES", 2**20)
    path, report = tmp_path / "m.gguf", tmp_path / "report.json"
    write_gguf(path)
    sizes = {"--prompt": 9, "--new": 4, "--rounds": 1}
    options = {"--device": "cpu", "--json": report, **sizes}
    gpu.main([str(path), *(str(word) for option in options.items() for word in option)])
    found = json.loads(report.read_text())
    assert [row["form"] for row in found["rows"]] == list(gpu.FORMATS)
    assert all(row["equal_ids"] == 4 and row["decode_tok_s"] > 0 for row in found["rows"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(gpu.FORMATS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^no GPU of CUDA is here: --device cpu [^\n]*$"):
        gpu.main([str(tmp_path / "m.gguf")])
