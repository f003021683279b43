"""``llama-chat config``: its output can be read again, and no file is overwritten."""

import contextlib
import io
import json
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from harness.program import Result, assert_clean_error, environment, run
from llama_chat.cli.app import run as run_here
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.setting import Value
from llama_chat.settings.sources import read_config
from tests.conftest import ROOT

DEFAULTS = {name: s.default for name, s in SETTINGS.items() if s.default is not None}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home, in a folder whose name needs quotes in a shell."""
    path = tmp_path / "a home's"
    path.mkdir()
    return path


@pytest.fixture
def usual(home: Path) -> Path:
    """The default path of the settings file, where no file is yet."""
    return home / ".config/llama-chat/config.toml"


@pytest.fixture
def file(usual: Path) -> Path:
    """A settings file at the default path."""
    usual.parent.mkdir(parents=True)
    usual.write_text("top_k = 5\n")
    return usual


# --- config show ---------------------------------------------------------------------------


def test_show_prints_every_setting_in_order_and_groups(home: Path) -> None:
    done = run("config", "show", home=home)
    assert (done.status, done.err) == (0, "")
    assert tomllib.loads(done.out) == {
        name: list(value) if isinstance(value, tuple) else value for name, value in DEFAULTS.items()
    }
    lines = done.out.splitlines()
    names = [line.lstrip("# ").split(" ")[0] for line in lines if "=" in line]
    assert names == list(SETTINGS)
    assert "# context =" in lines
    headings = [line for line in lines if line.startswith("# ---")]
    groups = ("Model", "Sampling", "Reply", "Output", "Endpoint")
    assert headings == [f"# --- {group} ---" for group in groups]


def test_origins_are_shown_in_a_column_and_in_json(home: Path, file: Path) -> None:
    file.write_text('min_p = 0.1\nsystem = "a long text, longer than the column"\n')
    flags = ("--top-k", "7", "config", "show", "--temperature", "0.5", "--stop", "a")
    origins = {
        "min_p": str(file),
        "system": str(file),
        "top_p": "LLAMA_CHAT_TOP_P",
        "top_k": "--top-k",
        "temperature": "--temperature",
        "stop": "--stop",
        "seed": "default",
    }
    done = run(*flags, "--origin", home=home, LLAMA_CHAT_TOP_P="0.8")
    lines = {line.lstrip("# ").split(" ")[0]: line for line in done.out.splitlines()}
    for name, origin in origins.items():
        assert lines[name].endswith(f"  # {origin}")
    ends = {len(lines[name]) - len(origin) for name, origin in origins.items() if name != "system"}
    assert len(ends) == 1
    table = json.loads(run(*flags, "--json", home=home, LLAMA_CHAT_TOP_P="0.8").out)
    assert list(table) == list(SETTINGS)
    assert {name: table[name]["origin"] for name in origins} == origins
    assert table["top_p"] == {"value": 0.8, "origin": "LLAMA_CHAT_TOP_P"}
    assert table["stop"]["value"] == ["a"]
    assert table["seed"]["value"] is None
    assert tomllib.loads(done.out) == {
        n: v["value"] for n, v in table.items() if v["value"] is not None
    }


def test_a_flag_after_the_command_beats_one_before_it(home: Path) -> None:
    done = run("--top-p", "0.5", "--seed", "3", "config", "show", "--top-p", "0.6", home=home)
    assert {"top_p": 0.6, "seed": 3}.items() <= tomllib.loads(done.out).items()


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


def values(name: str) -> st.SearchStrategy[Value]:
    """Return a strategy for the values of a setting."""
    setting = SETTINGS[name]
    match setting.kind:
        case "choice":
            return st.sampled_from(sorted(setting.values))
        case "switch":
            return st.booleans()
        case "list":
            return st.lists(TEXTS.filter(bool), max_size=3).map(tuple)
        case "integer":
            high = 10**9 if setting.high == float("inf") else int(setting.high)
            return st.integers(int(setting.low), high)
        case "number":
            return st.floats(setting.low, setting.high, exclude_min=setting.above)
        case "size":
            return st.from_regex(r"[1-9][0-9]{0,5}[KMGT]?", fullmatch=True)
        case "time":
            return st.from_regex(r"[0-9]{1,5}[smh]?", fullmatch=True)
        case "path":
            return TEXTS.map("no such model ".__add__)
        case _:
            return TEXTS


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)


@pytest.mark.usefixtures("no_variables")
@given(st.fixed_dictionaries({}, optional={name: values(name) for name in SETTINGS}))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_show_prints_is_read_as_the_same_settings(
    tmp_path: Path, chosen: dict[str, Value]
) -> None:
    flags: list[str] = []
    for name, value in chosen.items():
        flag = SETTINGS[name].flag
        if isinstance(value, bool):
            off = SETTINGS[name].off_flag
            flags += [flag] if value else [off] if off else []
        else:
            items = value if isinstance(value, tuple) else (value,)
            flags += [f"{flag}={item}" for item in items]
    out = io.StringIO()
    nothing = tmp_path / "nothing.toml"
    nothing.touch()
    with contextlib.redirect_stdout(out):
        assert run_here(["config", "show", "--config", str(nothing), *flags]) == 0
    shown = tmp_path / "shown.toml"
    shown.write_text(out.getvalue(), newline="")
    assert read_config(shown) == DEFAULTS | chosen


def test_show_passes_no_control_character_on_and_loses_none(home: Path) -> None:
    text = "\x1b]0;x\x07 \x7f \x9b31m \u202e \u2028 \t 🦙"
    for flags in ((), ("--origin",), ("--json",)):
        done = run("config", "show", *flags, "--system", text, home=home)
        assert not set("\x1b\x07\x7f\x9b\u202e") & set(done.out)
        table = json.loads(done.out) if "--json" in flags else tomllib.loads(done.out)
        assert (table["system"]["value"] if "--json" in flags else table["system"]) == text


def test_an_odd_path_of_the_settings_file_does_not_break_its_comment(home: Path) -> None:
    odd = home / "a\nb\x1b[31m.toml"
    odd.write_text("top_k = 5")
    done = run("config", "show", "--origin", "--config", odd, home=home)
    assert tomllib.loads(done.out)["top_k"] == 5
    assert "\x1b" not in done.out


def test_bytes_that_are_not_utf_8_still_give_toml(home: Path) -> None:
    done = run("config", "show", "--system", os.fsdecode(b"a\xffb"), home=home)
    assert tomllib.loads(done.out)["system"] == "a\ufffdb"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"\ntop_p = 3\n", ["line 2, top_p: 3 does not fit"]),
        (b"top_q = 1\n", ["line 1: unknown key 'top_q': did you mean top_p?"]),
        (b"top_p = \n", ["not TOML", "line 1, column 9"]),
        (b"system = '\xff'", ["byte 10 is not UTF-8"]),
    ],
)
def test_show_refuses_a_file_that_is_wrong(
    home: Path, file: Path, content: bytes, parts: list[str]
) -> None:
    file.write_bytes(content)
    assert_clean_error(run("config", "show", home=home), 2, str(file.name), *parts)


@pytest.mark.parametrize("named", ["/", "/nowhere", "~nobody-of-this-name/x", "/dev/zero"])
def test_show_refuses_what_is_no_file(home: Path, named: str) -> None:
    for done in (
        run("config", "show", "--config", named, home=home),
        run("--config", named, "config", "show", home=home),
        run("config", "show", home=home, LLAMA_CHAT_CONFIG=named),
    ):
        assert_clean_error(done, 2, "settings file", named)


def test_a_file_in_place_of_the_config_folder_is_reported(home: Path) -> None:
    (home / ".config").write_text("")
    assert run("config", "show", home=home).status == 0
    assert_clean_error(run("config", "init", home=home), 6, "file exists")
    assert_clean_error(run("config", "edit", home=home, VISUAL="true"), 6, "file exists")


# --- config path and init ------------------------------------------------------------------


def test_config_alone_shows_its_help_and_fails(home: Path) -> None:
    done = run("config", home=home)
    assert (done.status, done.out) == (2, "")
    for name in ("show", "path", "init", "edit"):
        assert f"\n  {name} " in done.err
    assert "error" not in done.err


def test_path_follows_flag_then_variable_then_the_default(home: Path, usual: Path) -> None:
    done = run("config", "path", home=home)
    assert (done.status, done.out) == (0, f"{usual}\n")
    assert "config edit makes it" in done.err
    other, third = home / "other.toml", home / "third.toml"
    for path in (other, third):
        path.write_text("broken =")
    for flags in (("--config", other, "config", "path"), ("config", "path", "--config", other)):
        named = run(*flags, home=home, LLAMA_CHAT_CONFIG=str(third))
        assert named == Result(0, f"{other}\n", "")
    assert run("config", "path", home=home, LLAMA_CHAT_CONFIG=str(third)).out == f"{third}\n"
    elsewhere = run("config", "path", home=home, XDG_CONFIG_HOME=str(home / "xdg"))
    assert elsewhere.out == f"{home}/xdg/llama-chat/config.toml\n"


def test_init_writes_the_documented_file_for_its_owner_alone(home: Path, usual: Path) -> None:
    done = run("config", "init", home=home)
    assert done == Result(0, "", f"made {usual}\n")
    assert usual.read_bytes() == (ROOT / "config.toml").read_bytes()
    assert stat.S_IMODE(usual.stat().st_mode) == 0o600
    for folder in (usual.parent, usual.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert run("config", "path", home=home) == Result(0, f"{usual}\n", "")


@pytest.mark.parametrize("what", ["file", "folder", "link", "dangling"])
def test_init_never_writes_over_anything(home: Path, usual: Path, what: str) -> None:
    usual.parent.mkdir(parents=True)
    target = home / "target"
    match what:
        case "file":
            usual.write_text("mine")
        case "folder":
            usual.mkdir()
        case "link":
            target.write_text("mine")
            usual.symlink_to(target)
        case "dangling":
            usual.symlink_to(target)
    before = usual.lstat().st_mtime_ns
    assert_clean_error(run("config", "init", home=home), 2, str(usual.name), "there already")
    assert usual.lstat().st_mtime_ns == before
    assert target.exists() == (what == "link")
    assert list(usual.parent.iterdir()) == [usual]


def test_a_read_only_home_is_reported(home: Path) -> None:
    home.chmod(0o500)
    if os.access(home, os.W_OK):
        pytest.skip("nothing is read-only to root")
    for name in ("init", "edit"):
        result = run("config", name, home=home, VISUAL="true")
        assert_clean_error(result, 6, "permission denied")


def test_a_settings_file_in_a_closed_folder_is_reported(home: Path, file: Path) -> None:
    file.parent.chmod(0o000)
    if os.access(file, os.R_OK):
        pytest.skip("no folder is closed to root")
    assert_clean_error(run("config", "show", home=home), 2, "permission denied")
    assert_clean_error(run("config", "edit", home=home, VISUAL="true"), 6, "permission denied")
    assert run("config", "path", home=home).out == f"{file}\n"


@pytest.mark.parametrize("name", ["show", "path", "init", "edit"])
def test_torch_is_not_imported(name: str, home: Path) -> None:
    code = f"import sys, llama_chat.cli.app as a; a.run(['config', '{name}'])"
    done = subprocess.run(
        [sys.executable, "-c", code + "; sys.exit('torch' in sys.modules)"],
        env=environment(home, VISUAL="true"),
        check=False,
    )
    assert done.returncode == 0


def test_a_stop_may_be_a_line_break_in_flag_and_environment(tmp_path: Path) -> None:
    shown = run("--stop", r"\n\n", "--stop", r"a\tb", "config", "show", "--json", home=tmp_path)
    assert json.loads(shown.out)["stop"]["value"] == ["\n\n", "a\tb"]
    shown = run("config", "show", "--json", home=tmp_path, LLAMA_CHAT_STOP=r"END\n")
    assert json.loads(shown.out)["stop"]["value"] == ["END\n"]
