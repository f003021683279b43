"""Files of ``torch.save``: what they say of themselves is compared with their bytes."""

import pickle
import re
import struct
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from harness.campaigns.torch_archives import READ, attack
from llama_chat.checkpoints.torch_archive import open_archive
from llama_chat.errors import ModelError
from tests.model_files import assert_refused, write_huggingface, write_meta
from tests.torch_archives import Storage, Stored, change_parts, pickled, write_archive

ROPE = re.compile(r"^rope\.freqs$")
SAME = torch.arange(6, dtype=torch.float32).view(2, 3)


def refusal(path: Path) -> str:
    """Return the line with which a file is refused."""
    with pytest.raises(ModelError) as caught:
        open_archive(path, ROPE)
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith(repr(str(path)))
    return line


# --- what is read ---------------------------------------------------------------------------


def test_tensors_are_views_of_their_storage(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    whole, part = torch.arange(12.0).view(3, 4), torch.arange(12.0)[4:8]
    table = OrderedDict(a=torch.nn.Parameter(whole), b=whole, c=part.clone().half())
    torch.save(table | {"d": whole[1], "rope.freqs": torch.zeros(3, dtype=torch.complex64)}, file)
    found = open_archive(file, ROPE)
    assert found.keys() == {"a", "b", "c", "d"}
    assert found["a"].equal(whole)
    assert found["a"].is_set_to(found["b"])
    assert found["c"].dtype == torch.float16
    assert found["d"].equal(whole[1])
    assert found["d"].data_ptr() == found["a"][1].data_ptr()


def test_the_state_of_a_module_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).bfloat16()
    torch.save(module.state_dict(), tmp_path / "a.pth")
    found = open_archive(tmp_path / "a.pth", ROPE)
    assert found.keys() == module.state_dict().keys()
    for name, weight in module.state_dict().items():
        assert found[name].equal(weight)


def test_the_helper_writes_what_torch_reads(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    write_archive(file, {"a": Stored()})
    assert open_archive(file, ROPE)["a"].equal(SAME)
    assert torch.load(file)["a"].equal(SAME)


# --- storages that are not as the pickle says ------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "kept"),
    [("meta", 0.0), ("meta", 0.25), ("meta", 0.99), ("bin", 0.5), ("bins", 0.99)],
)
def test_a_storage_that_is_cut_off_is_refused(layout: str, kept: float, tmp_path: Path) -> None:
    model = tmp_path / "model"
    if layout == "meta":
        write_meta(model)
    else:
        write_huggingface(model, weights="bin" if layout == "bin" else "bins")
    file = sorted((*model.glob("*.pth"), *model.glob("*.bin")))[-1]

    def cut(parts: dict[str, bytes]) -> None:
        largest = max(parts, key=lambda name: len(parts[name]))
        parts[largest] = parts[largest][: int(len(parts[largest]) * kept)]

    change_parts(file, cut)
    assert_refused(model, repr(str(file)), "storage", "bytes, but should have")


CONTRADICTIONS: dict[str, tuple[Stored, dict[str, bytes], str]] = {
    "a byte short": (Stored(), {"data/0": bytes(23)}, "23 bytes, but should have 24"),
    "a byte long": (Stored(), {"data/0": bytes(25)}, "25 bytes, but should have 24"),
    "a row long": (Stored(), {"data/0": bytes(36)}, "36 bytes, but should have 24"),
    "missing": (Stored(Storage("1")), {}, "cut off or damaged"),
    "elsewhere": (Stored(Storage("../data/0")), {}, "cut off or damaged"),
    "2^30 numbers": (Stored(Storage(n_numbers=2**30)), {}, "should have 4,294,967,296"),
    "2^62 numbers": (Stored(Storage(n_numbers=2**62)), {}, "24 bytes, but should have"),
    "-6 numbers": (Stored(Storage(n_numbers=-6)), {}, "damaged"),
    "numbers true": (Stored(Storage(n_numbers=True)), {}, "damaged"),
    "numbers 6.0": (Stored(Storage(n_numbers=6.0)), {}, "damaged"),
    "key a number": (Stored(Storage(0)), {}, "damaged"),
    "of another type": (Stored(Storage(kind=torch.HalfStorage)), {}, "should have 12"),
    "of wider numbers": (Stored(Storage(kind=torch.DoubleStorage)), {}, "should have 48"),
    "of no type": (Stored(Storage(kind="float")), {}, "damaged"),
    "not a storage": (Stored(Storage(tag="module")), {}, "damaged"),
    "offset 1": (Stored(offset=1), {}, "extends past its storage"),
    "offset 2^63": (Stored(offset=2**63), {}, "extends past its storage"),
    "offset -1": (Stored(offset=-1), {}, "damaged"),
    "shape": (Stored(shape=(3, 3)), {}, "extends past its storage"),
    "shape 2^62": (Stored(shape=(2**62, 2**62)), {}, "extends past its storage"),
    "shape -2": (Stored(shape=(-2, -3)), {}, "damaged"),
    "shape 0": (Stored(shape=(0, 3)), {}, "impossible dimensions"),
    "shape a number": (Stored(shape=6), {}, "damaged"),
    "too many dimensions": (Stored(shape=(1,) * 9, strides=(1,) * 9), {}, "impossible dimensions"),
    "strides": (Stored(strides=(4, 1)), {}, "extends past its storage"),
    "stride 2^63": (Stored(strides=(2**63, 1)), {}, "extends past its storage"),
    "strides negative": (Stored(strides=(-3, 1)), {}, "damaged"),
    "strides 0": (Stored(shape=(2**40, 2**40), strides=(0, 0)), {}, "damaged"),
    "strides of columns": (Stored(strides=(1, 2)), {}, "not stored row by row"),
    "one stride": (Stored(strides=(1,)), {}, "damaged"),
    "negated": (Stored(more=(False, {}, {"neg": True})), {}, "damaged"),
    "no storage": (Stored("storage"), {}, "damaged"),  # type: ignore[arg-type]
    "big-endian": (Stored(), {"byteorder": b"big"}, "big-endian"),
    "empty storage": (Stored(Storage(n_numbers=0)), {"data/0": b""}, "extends past its storage"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_tensor_that_its_storage_does_not_hold_is_refused(case: str, tmp_path: Path) -> None:
    stored, parts, why = CONTRADICTIONS[case]
    file = tmp_path / "a.pth"
    write_archive(file, {"a": stored}, parts)
    assert why in refusal(file)


def test_each_view_of_a_shared_storage_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    write_archive(file, {"a": Stored(), "b": Stored(offset=3, shape=(1, 3))})
    found = open_archive(file, ROPE)
    assert found["b"].equal(SAME[1:])
    for other in (Stored(offset=4, shape=(1, 3)), Stored(Storage(n_numbers=7))):
        write_archive(file, {"a": Stored(), "b": other})
        refusal(file)


# --- pickles ----------------------------------------------------------------------------------


def test_a_pickle_that_ends_anywhere_is_refused(tmp_path: Path) -> None:
    file, whole = tmp_path / "a.pth", pickled({"a": Stored()})
    for end in range(len(whole)):
        write_archive(file, whole[:end])
        refusal(file)


def nested(n: int) -> bytes:
    """Pickle a table whose key is ``n`` tuples, one in the other, which Python cannot hash."""
    return pickle.PROTO + b"\2}" + pickle.EMPTY_TUPLE + pickle.TUPLE1 * n + pickle.NONE + b"s."


_MANY = 2**17

PICKLES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "damaged"),
    "noise": (bytes(range(256)), "damaged"),
    "nested key": (nested(_MANY), "damaged"),
    "list": (pickled([Stored()]), "not a table"),
    "text": (pickled({"a": "b"}), "more than named weights"),
    "name a number": (pickled({1: Stored()}), "damaged"),
    "longer": (pickled({"a": "b" * 2**20}), "longer than that of any model"),
    "call": (pickled({"a": print}), "may be harmful"),
    "call of torch": (pickled({"a": torch.hub.load}), "may be harmful"),
    "bytearray": (b"\x80\5\x96" + struct.pack("<Q", 2**36) + b".", "damaged"),
    "memo": (b"\x80\2Nr" + b"\xff" * 4 + b".", "not a table"),
    "sets": (b"\x80\2" + b"\x8f" * _MANY + b".", "damaged"),
    "tables": (b"\x80\2" + b"}" * _MANY + b"N.", "not a table"),
    "long number": (b"\x80\2\x8b" + struct.pack("<i", 2**31 - 1) + b"1.", "damaged"),
    "of a table": (b"\x80\2ccollections\nOrderedDict\n((\x85\x85tR.", "damaged"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_pickles_of_anything_else_are_refused(case: str, tmp_path: Path) -> None:
    data, why = PICKLES[case]
    file = tmp_path / "a.pth"
    write_archive(file, data)
    assert why in refusal(file)


def test_mutated_archives_are_read_whole_or_refused(tmp_path: Path) -> None:
    outcomes = list(attack(tmp_path, count=100, seed=1))
    assert not [wrong for _, wrong in outcomes if wrong]
    n_read = sum(found == READ for found, _ in outcomes)
    assert 6 < n_read < 50  # those with changes to the weights alone, and none that nothing reads
