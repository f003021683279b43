"""Several ranks compute what one process does, whatever the number of files and of heads."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from harness.program import TIMEOUT_S
from harness.ranks import RankGroup
from tests.model_files import META, SMALL, write_gguf, write_meta

TOLERANCE = 1e-4
"""Largest difference of logits, as a share of their range."""

ROUNDED = 0.03
"""The same where kernels round activations to 8 bits: another order of sums rounds them apart, in
one process too, as between a prompt and its tokens one by one."""


def compare(
    size: int,
    cases: Sequence[dict[str, Any]],
    home: Path,
    kernel: str = "",
    seconds: float = TIMEOUT_S,
) -> list[dict[str, Any]]:
    """Compare ``size`` ranks with one process; see ``tests.rank_checks``."""
    command, arguments = [sys.executable, "-m", "tests.rank_checks"], map(json.dumps, cases)
    with RankGroup(size, kernel, *arguments, home=home, command=command) as group:
        result = group.finish(seconds=seconds)
    assert result.status == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def assert_equal(case: dict[str, Any], found: dict[str, Any], tolerance: float = TOLERANCE) -> None:
    assert found["difference"] < tolerance, case
    for compared in ("sessions", "batches"):
        together, alone = found.get(compared, (0, 0))
        assert together == alone, case


def case_of(path: Path, quantize: str = "none", talks: int = 0, **options: str) -> dict[str, Any]:
    """A model, and the number of conversations to hold with it."""
    return {"path": str(path), "quantize": quantize, "talks": talks, **options}


def test_two_ranks_give_what_one_process_gives(tmp_path: Path, shared_data: Path) -> None:
    write_meta(tmp_path / "grouped")
    write_meta(tmp_path / "multi-head", replace(META, n_kv_heads=8))
    write_meta(tmp_path / "16 bits", dtype=torch.bfloat16)
    stories = shared_data / "models"
    cases = [
        case_of(tmp_path / "grouped", talks=1),
        case_of(tmp_path / "multi-head"),
        case_of(stories / "stories260K"),
        case_of(stories / "stories260K-mp2"),
        case_of(tmp_path / "16 bits"),
    ]
    for case, found in zip(cases, compare(2, cases, tmp_path), strict=True):
        is_exact = "16 bits" not in case["path"]  # prompts are rounded to 16 bits, too
        assert_equal(case, found, TOLERANCE if is_exact else ROUNDED)


@pytest.mark.parametrize("kernel", ["torch", ""])
def test_packed_weights_are_divided_by_whole_groups(kernel: str, tmp_path: Path) -> None:
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    config = replace(SMALL, dim=256, n_heads=8, n_kv_heads=2, head_dim=32, hidden_dim=288)
    write_gguf(tmp_path / "packed.gguf", config, quantization=q8_0)
    cases = [
        case_of(tmp_path / "packed.gguf", "stored", talks=int(kernel == "torch"), dtype="float32"),
        case_of(tmp_path / "packed.gguf", "int4", dtype="float32"),
        case_of(tmp_path / "packed.gguf", "none", dtype="float32"),
    ]
    for case, found in zip(cases, compare(4, cases, tmp_path, kernel), strict=True):
        assert found["local_heads"] == 2  # of one KV head, which two ranks have
        assert_equal(case, found, TOLERANCE if kernel == "torch" else ROUNDED)


def test_more_ranks_than_kv_heads_share_them(tmp_path: Path) -> None:
    odd = replace(SMALL, n_heads=9, n_kv_heads=3, hidden_dim=100, tie_embeddings=True)
    write_gguf(tmp_path / "odd.gguf", odd)
    write_meta(tmp_path / "grouped", n_shards=2)
    cases = [case_of(tmp_path / "odd.gguf"), case_of(tmp_path / "grouped")]
    for case, found in zip(cases, compare(8, cases, tmp_path), strict=True):
        assert found["local_heads"] == 1
        assert_equal(case, found)
