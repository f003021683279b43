"""Written files are complete and private, and a failed write leaves the old file."""

import os
import resource as limits
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llama_chat import durable_files, errors, files
from llama_chat.errors import SaveError

PACKAGE = Path(files.__file__).parent
HOMES = [
    (files.config_home, "XDG_CONFIG_HOME", ".config"),
    (files.data_home, "XDG_DATA_HOME", ".local/share"),
    (files.state_home, "XDG_STATE_HOME", ".local/state"),
]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("home", "variable", "default"), HOMES)
def test_folders_are_where_xdg_says(
    home: object, variable: str, default: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(home)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "/elsewhere")
    assert home() == Path("/elsewhere/llama-chat")
    for ignored in ("", "relative/path"):
        monkeypatch.setenv(variable, ignored)
        assert home() == tmp_path / default / "llama-chat"
    monkeypatch.delenv(variable)
    assert home() == tmp_path / default / "llama-chat"


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_without_home_in_the_environment_the_accounts_home_is_used(
    home: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("HOME")
    account = Path.home()
    if home is not None:
        monkeypatch.setenv("HOME", home)
    assert files.data_home() == account / ".local/share/llama-chat"


def installed_layout(folder: Path) -> Path:
    """Make the layout of an installed wheel, as far as files.py needs it."""
    package = folder / "site-packages" / "llama_chat"
    package.mkdir(parents=True)
    for module in (files, durable_files, errors):
        shutil.copy(str(module.__file__), package)
    (package / "__init__.py").touch()
    (package / "prompts").mkdir()
    return package


def test_bundled_files_are_found_in_the_source_tree() -> None:
    assert (files.resource("prompts") / "few_shot").is_dir()
    assert files.resource("config.toml").is_file()


def test_bundled_files_are_found_when_installed(tmp_path: Path) -> None:
    package = installed_layout(tmp_path)
    found = subprocess.run(
        [sys.executable, "-c", "from llama_chat import files; print(files.resource('prompts'))"],
        env={"PYTHONPATH": str(package.parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()) == package / "prompts"


def test_a_private_folder_and_its_new_parents_are_closed_to_others(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    there.chmod(0o755)
    assert files.private_folder(there / "new" / "newer") == there / "new" / "newer"
    assert [mode(there / "new" / "newer"), mode(there / "new")] == [0o700, 0o700]
    assert mode(files.private_folder(there)) == 0o755


def test_a_private_file_is_made_only_if_missing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history"
    files.create_private_file(path)
    assert (mode(path), mode(path.parent), path.read_bytes()) == (0o600, 0o700, b"")
    path.write_bytes(b"kept")
    files.create_private_file(path)
    assert path.read_bytes() == b"kept"


def test_a_private_file_is_never_made_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "history"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SaveError, match="no such file"):
        files.create_private_file(link)
    assert names(tmp_path) == ["history"]


def test_a_pipe_in_place_of_a_private_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "history")
    with pytest.raises(SaveError, match="not a file"):
        files.create_private_file(tmp_path / "history")


def test_writing_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)  # no name could be longer
    files.write_atomically(path, b"a longer first content")
    files.write_atomically(path, b"second")
    assert (path.read_bytes(), mode(path)) == (b"second", 0o600)
    files.write_atomically(path, b"", mode=0o644)
    assert mode(path) == 0o644
    assert names(tmp_path) == [path.name]


def test_an_open_reader_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        files.write_atomically(path, b"new")
        assert reader.read() == b"old"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "is a directory"),
        ("file/below", "not a directory"),
        ("missing/file", "no such file"),
        ("n" * 256, "name too long"),
        ("nul\0", "not a possible name"),
    ],
)
def test_a_failed_write_is_one_line_and_leaves_nothing(
    name: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"whole")
    with pytest.raises(SaveError, match=reason) as caught:
        files.write_atomically(tmp_path / name, b"data")
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith(": choose another place")
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"whole")
    script = "import sys; from pathlib import Path; from llama_chat import files\n"
    script += "files.write_atomically(Path(sys.argv[1]), bytes(100_000))"
    done = subprocess.run(
        [sys.executable, "-c", script, path],
        cwd=PACKAGE.parent,
        preexec_fn=lambda: limits.setrlimit(limits.RLIMIT_FSIZE, (4096, 4096)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "SaveError" in done.stderr.splitlines()[-1]
    assert (names(tmp_path), path.read_bytes()) == (["file"], b"whole")
