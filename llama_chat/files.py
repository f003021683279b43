"""Where things are on disk, and writing them so that nothing is lost or seen."""

import os
import secrets
from pathlib import Path

from llama_chat.errors import SaveError, UsageError

_PACKAGE = Path(__file__).resolve().parent


def _xdg(variable: str, below_home: str) -> Path:
    """A folder of ours below an XDG base folder; relative values are ignored, as XDG says."""
    base = Path(os.environ.get(variable, ""))
    if not base.is_absolute():
        try:
            base = Path.home() / below_home
        except RuntimeError:
            raise UsageError("home folder", "it is not known", f"set HOME or {variable}") from None
    return base / "llama-chat"


def config_home() -> Path:
    """Settings and a person's own prompt files."""
    return _xdg("XDG_CONFIG_HOME", ".config")


def data_home() -> Path:
    """Models."""
    return _xdg("XDG_DATA_HOME", ".local/share")


def state_home() -> Path:
    """History."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def resource(name: str) -> Path:
    """A file or folder that comes with the program: ``prompts`` or ``config.toml``.

    It lies in the installed package, or at the top of the source tree.
    """
    installed = _PACKAGE / name
    return installed if installed.exists() else _PACKAGE.parent / name


def private_folder(path: Path) -> Path:
    """Create a folder that nobody else may look into, with its parents.

    Raises:
        SaveError: if that cannot be done.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _save_error(path, error) from None
    return path


def create_private_file(path: Path) -> None:
    """Create an empty file that nobody else may read, unless it is there.

    Raises:
        SaveError: if that cannot be done.
    """
    private_folder(path.parent)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise _save_error(path, error) from None


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` by a file of ``data``: readers see the old file or the new one, whole.

    Raises:
        SaveError: if that cannot be done; the old file is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _save_error(path, error) from None


def _save_error(path: Path, error: OSError) -> SaveError:
    reason = (error.strerror or "cannot be written").lower()
    return SaveError(repr(str(path)), reason, "free space there or choose another place")
