"""Disks that are full."""

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest


class SmallDisk:
    """A disk of a few KiB."""

    def __init__(self, folder: Path, kilobytes: int = 64) -> None:
        """Mount it at ``folder``; the test is skipped where that is not allowed."""
        self._folder, self._filler = folder, folder / "filler"
        folder.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("no disk may be mounted here")

    def fill(self) -> None:
        """Leave no room."""
        with self._filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * 1000):
                pass

    def make_room(self) -> None:
        """Undo ``fill``."""
        self._filler.unlink()

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True)
