"""Attack by mutated files of ``torch.save``: their archives, pickles and storages.

    python -m harness.campaigns.torch_archives [--count 10000] [--seed 0]

Each file is opened as a model in this process, and one of a hundred by the program too. It must be
read, with all bytes of its tensors, or be refused in one line, within 2 s and 300 MB.
"""

import argparse
import faulthandler
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from harness.campaigns import model_numbers
from llama_chat.checkpoints.base import Checkpoint
from llama_chat.checkpoints.meta import MetaCheckpoint
from llama_chat.errors import ModelError
from tests.fuzz.archives import mutate
from tests.model_files import META, write_meta

MAX_SECONDS = 2.0
HANGS_AFTER = 10.0
MAX_BYTES = 300 * 2**20

PROGRAM_EVERY = 100

READ = "read"
"""Outcome of a file that is valid, though no longer the model."""


def write_model(folder: Path) -> Path:
    """Write a small model, and return its archive."""
    write_meta(folder, replace(META, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, hidden_dim=64))
    return folder / "consolidated.00.pth"


def outcome(archive: Path) -> tuple[str, str]:
    """Open the model of a mutated archive in this process.

    Returns:
        The reason of its refusal, or ``READ``; and what is wrong with that, empty if nothing is.
    """
    before, began = _peak_rss(), time.monotonic()
    found, wrong = READ, ""
    try:
        with _interrupted_after(HANGS_AFTER):
            checkpoint = MetaCheckpoint.open(archive.parent)
        if foreign := _foreign_tensor(checkpoint, archive.read_bytes()):
            wrong = f"tensor {foreign} is not in the file"
    except ModelError as error:
        found = error.why
        if not str(error).isprintable():
            wrong = f"not one line: {error!r}"
    except BaseException as error:
        found = wrong = f"unexpected {error!r}"
    seconds, grown = time.monotonic() - began, _peak_rss() - before
    if seconds > MAX_SECONDS or grown > MAX_BYTES:
        wrong = wrong or f"{seconds:.1f} s, {grown >> 20} MB"
    return found, wrong


def _foreign_tensor(checkpoint: Checkpoint, data: bytes) -> str:
    """Return the name of a tensor whose bytes are in no part of an archive; empty if there is none.

    The parts are located as in the simplest of readers.
    """
    with tempfile.TemporaryFile() as file:
        file.write(data)
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
    parts = []
    for entry in listed:
        n_name, n_extra = struct.unpack_from("<26x2H", data, entry.header_offset)
        begin = entry.header_offset + 30 + n_name + n_extra
        parts.append(data[begin : begin + entry.file_size])
    for name in checkpoint.tensors:
        stored = checkpoint.read(name, torch.float32).numpy().tobytes()
        if not any(stored in part for part in parts):
            return name
    return ""


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    def interrupt(number: int, frame: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attack(
    folder: Path, count: int, seed: int, program_every: int = 0
) -> Iterator[tuple[str, str]]:
    """Yield the ``outcome`` of each of ``count`` mutated archives, with its number if it is wrong.

    Args:
        folder: an empty folder for the model.
        count: number of archives.
        seed: of the mutations.
        program_every: the program opens one of so many too; none if 0.
    """
    archive = write_model(folder / "model")
    whole = archive.read_bytes()
    bare = model_numbers.bare_run(folder) if program_every else None
    for i in range(count):
        archive.write_bytes(mutate(whole, Random(f"{seed} {i}")))
        found, wrong = outcome(archive)
        if bare is not None and i % program_every == 0 and not wrong:
            command = list(model_numbers.COMMANDS)[i // program_every % 4]
            result = model_numbers.run_command(folder, command, archive.parent)
            wrong = model_numbers.finding(result, bare, len(whole), possible=found == READ)
        yield found, f"file {i} of seed {seed}: {wrong}" if wrong else ""


def main() -> int:
    """Run the campaign, and print its findings and figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faulthandler.enable()
    began, before, n_findings = time.monotonic(), _peak_rss(), 0
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        for found, wrong in attack(Path(name), options.count, options.seed, PROGRAM_EVERY):
            outcomes["read" if found == READ else "refused"] += 1
            if wrong:
                n_findings += 1
                print(wrong)
    print(f"{outcomes.total()} files, {n_findings} findings: {dict(outcomes)}")
    grown = _peak_rss() - before
    print(f"{time.monotonic() - began:.0f} s, {grown >> 20} MB over {before >> 20} MB at first")
    return 1 if n_findings else 0


if __name__ == "__main__":
    sys.exit(main())
