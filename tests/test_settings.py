"""Settings: one name in four spellings, a range each, and an origin."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_chat.errors import UsageError
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.sources import load_settings, read_config
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


def config(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "config.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    path = config(tmp_path, "top_p = 0.5\ntop_k = 5\nmin_p = 0.1\n")
    environment = {"LLAMA_CHAT_TOP_P": "0.6", "LLAMA_CHAT_TOP_K": "6"}
    settings = load_settings({"top_p": "0.7"}, path, environment)
    names = ("top_p", "top_k", "min_p", "seed")
    assert {name: (settings.value(name), settings.source(name)) for name in names} == {
        "top_p": (0.7, "--top-p"),
        "top_k": (6, "LLAMA_CHAT_TOP_K"),
        "min_p": (0.1, str(path)),
        "seed": (None, "default"),
    }


def test_the_file_in_the_repository_holds_every_default() -> None:
    assert read_config(ROOT / "config.toml") == {
        name: setting.default for name, setting in SETTINGS.items() if setting.default is not None
    }
    text = (ROOT / "config.toml").read_text()
    for name in SETTINGS:
        assert f"\n{name} = " in text or f"\n# {name} = " in text


def test_the_numbers_of_every_range_can_be_typed() -> None:
    for setting in SETTINGS.values():
        if setting.kind in ("integer", "number"):
            bounds = re.findall(r"(from|above|to) (\S+)", setting.range)
            assert bounds
            for word, bound in bounds:
                assert word == "above" or str(setting.parse(bound)).removesuffix(".0") == bound


def test_the_default_path_is_read_and_the_current_folder_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config(tmp_path, "top_k = 9")
    assert load_settings({}, None, {}).top_k == 0
    usual = tmp_path / "home/.config/llama-chat"
    usual.mkdir(parents=True)
    config(usual, "top_k = 8")
    assert load_settings({}, None, {}).top_k == 8
    other = config(tmp_path, "top_k = 7")
    assert load_settings({}, None, {"LLAMA_CHAT_CONFIG": str(other)}).top_k == 7
    assert load_settings({}, usual / "config.toml", {"LLAMA_CHAT_CONFIG": "x"}).top_k == 8


def test_a_relative_model_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    path = config(tmp_path, 'model = "models"')
    assert read_config(path)["model"] == str(tmp_path / "models")
    for other in ("smollm2-135m", "~nobody-of-this-name/x", "x" * 5000):
        assert read_config(config(tmp_path, f'model = "{other}"'))["model"] == other


BAD_FILES: dict[str, tuple[str | bytes, str]] = {
    "syntax": ("top_p = \n", "line 1, column 9"),
    "unknown": (
        "\ntop_pp = 0.5",
        "config.toml', line 2: unknown key 'top_pp': did you mean top_p?",
    ),
    "unknown table": ("top_k = 1\n[modle]\nx = 1", "line 2: unknown key 'modle'"),
    "line": (
        "top_k = 1\n# top_p = 1\n  'top_p' = 5",
        "config.toml', line 3, top_p: 5 does not fit",
    ),
    "two lines": ('system = """\ntop_p = 5"""\ntop_p = 5', "config.toml', top_p: 5 does not fit"),
    "true": ("temperature = true", "True does not fit: give a number"),
    "text": ('temperature = "0.5"', "'0.5' does not fit: give a number"),
    "float": ("top_k = 1.5", "1.5 does not fit: give a whole number"),
    "range": ("top_p = 2", "2 does not fit: give a number above 0 to 1"),
    "zero": ("top_p = 0", "above 0 to 1"),
    "nan": ("temperature = nan", "nan does not fit: give a number from 0 to 10"),
    "inf": ("temperature = inf", "inf does not fit: give a number from 0 to 10"),
    "long": ("seed = " + "9" * 5000, "cannot be read"),
    "choice": ('dtype = "int3"', "one of auto, float32"),
    "list": ('stop = "x"', "a list of texts"),
    "empty stop": ('stop = [""]', "a list of texts"),
    "table": ("[top_p]\nx = 1", "does not fit: give a number"),
    "deep": ("x = " + "[" * 100_000, "nested too deeply"),
    "utf-8": (b"top_p = '\xff'", "byte 9 is not UTF-8"),
    "utf-16": ("top_p = 0.5".encode("utf-16"), "not UTF-8"),
    "large": ("#" * (2**19 + 1), "larger than 512 KiB"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_by_name_and_place(case: str, tmp_path: Path) -> None:
    text, why = BAD_FILES[case]
    with pytest.raises(UsageError) as caught:
        read_config(config(tmp_path, text))
    assert why in str(caught.value)
    assert "config.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    assert read_config(config(tmp_path, b"\xef\xbb\xbftop_k = 3"))["top_k"] == 3


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UsageError, match="settings file"):
            load_settings({}, path, {})


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("temperature", "-1"),
        ("temperature", "nan"),
        ("temperature", "1e400"),
        ("temperature", "warm"),
        ("top_p", "0"),
        ("top_p", "2"),
        ("max_tokens", "0"),
        ("seed", "-1"),
        ("seed", "9" * 5000),
        ("threads", "0"),
        ("context", "1"),
        ("dtype", "int3"),
    ],
)
def test_bad_flags_and_variables_name_their_range(name: str, typed: str) -> None:
    setting = SETTINGS[name]
    for flags, environment, where in (
        ({name: typed}, {}, setting.flag),
        ({}, {setting.variable: typed}, setting.variable),
    ):
        with pytest.raises(UsageError) as caught:
            load_settings(flags, None, environment)
        line = str(caught.value)
        assert line.startswith(where + ": ")
        assert line.endswith("give " + setting.range)
        assert len(line) < 300


@given(st.sampled_from(sorted(SETTINGS)), st.text(max_size=30))
def test_any_text_is_a_value_in_range_or_a_usage_error(name: str, typed: str) -> None:
    setting = SETTINGS[name]
    try:
        value = setting.parse(typed)
    except ValueError:
        return
    assert setting.check(list(value) if isinstance(value, tuple) else value) == value


@given(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text()))
)
def test_any_value_of_a_file_is_accepted_or_a_value_error(value: object) -> None:
    for setting in SETTINGS.values():
        try:
            checked = setting.check(value)
        except ValueError:
            continue
        assert setting.check(checked) == checked


def test_every_setting_is_a_flag_of_every_command_that_answers() -> None:
    from llama_chat.cli.app import build

    for command in build().registered_commands:
        assert command.callback is not None
        if command.callback.__name__ in ("pull", "convert", "replay", "check"):
            continue
        assert set(SETTINGS) <= set(command.callback.__annotations__)
