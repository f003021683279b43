"""A GGUF model in several files: opened by any of them, refused unless all belong together."""

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from llama_chat.checkpoints.gguf import GGUFCheckpoint
from tests.model_files import SMALL, assert_refused, write_gguf

N_TENSORS = len(SMALL.tensor_shapes())
A_FILE = -(-N_TENSORS // 3)


def part(folder: Path, number: int) -> Path:
    return folder / f"m-{number:05}-of-00003.gguf"


def write_parts(folder: Path, seed: int = 0) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    return write_gguf(folder / "m.gguf", tensors_a_file=A_FILE, seed=seed)


def rewrite(path: Path, tensors: dict[str, np.ndarray], **split: int) -> None:
    """Write a later part: its ``split.*`` metadata and its tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.kv_data[0].clear()
    writer.add_uint16("split.no", split["no"])
    writer.add_uint16("split.count", split["count"])
    writer.add_int32("split.tensors.count", split["n_tensors"])
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_part_opens_the_whole_model(tmp_path: Path, number: int) -> None:
    stored = write_parts(tmp_path)
    checkpoint = GGUFCheckpoint.open(part(tmp_path, number))
    assert checkpoint.name == "m"
    assert checkpoint.path == part(tmp_path, 1)
    for name, weight in stored.items():
        assert np.array_equal(checkpoint.read(name, torch.float32).numpy(), weight)


def test_a_model_of_one_part_is_like_any_other(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", metadata={"split__count": 0})  # as in merged files
    assert GGUFCheckpoint.open(tmp_path / "m.gguf").name == "m"


def test_missing_parts_are_named(tmp_path: Path) -> None:
    write_parts(tmp_path)
    part(tmp_path, 2).unlink()
    assert_refused(part(tmp_path, 1), "there is no 'm-00002-of-00003.gguf': ", "download all parts")
    part(tmp_path, 1).unlink()
    assert_refused(part(tmp_path, 3), "no 'm-00001-of-00003.gguf', 'm-00002-of-00003.gguf'")


def test_a_name_that_a_terminal_must_not_see_is_escaped(tmp_path: Path) -> None:
    write_parts(tmp_path)
    path = tmp_path / "m\x1b[2J-00001-of-00003.gguf"
    shutil.copy(part(tmp_path, 1), path)
    assert_refused(path, "there is no 'm\\x1b[2J-00002-of-00003.gguf'")


def test_a_part_by_another_name_is_refused(tmp_path: Path) -> None:
    write_parts(tmp_path)
    for name in ("other.gguf", "m-00001-of-00004.gguf"):
        shutil.copy(part(tmp_path, 1), tmp_path / name)
        assert_refused(tmp_path / name, "it is one of 3 parts, but not named as one")


def test_a_copy_of_another_part_is_refused(tmp_path: Path) -> None:
    write_parts(tmp_path)
    shutil.copy(part(tmp_path, 3), part(tmp_path, 2))
    assert_refused(part(tmp_path, 1), "it is part 3 under the name of part 2")


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    write_parts(tmp_path)
    tensors = {"blk.0.attn_q.weight": np.zeros((64, 64), np.float32)}
    rewrite(part(tmp_path, 2), tensors, no=1, count=3, n_tensors=N_TENSORS + 1)
    assert_refused(part(tmp_path, 1), "of another model than part 1: 'split.tensors.count' differs")
    rewrite(part(tmp_path, 2), tensors, no=1, count=2, n_tensors=N_TENSORS)
    assert_refused(part(tmp_path, 1), "of another model than part 1: 'split.count' differs")
    rewrite(
        part(tmp_path, 2), {"x.weight": tensors.popitem()[1]}, no=1, count=3, n_tensors=N_TENSORS
    )
    assert_refused(part(tmp_path, 3), f"should hold {N_TENSORS} tensors and hold")


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    write_parts(tmp_path)
    tensors = {"token_embd.weight": np.zeros((4, 64), np.float32)}
    rewrite(part(tmp_path, 3), tensors, no=2, count=3, n_tensors=N_TENSORS)
    assert_refused(part(tmp_path, 1), "'token_embd.weight' is in an earlier part too")


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    write_parts(tmp_path)
    damaged = part(tmp_path, 2)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert_refused(part(tmp_path, 1), "m-00002-of-00003.gguf", "it ends before tensor")


def test_many_missing_parts_are_refused_in_a_short_line(tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-65535.gguf"
    write_gguf(path, metadata={"split__no": 0, "split__count": 65535})
    assert_refused(path, "'m-00004-of-65535.gguf' and more")
