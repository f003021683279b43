"""Text that nests deeply is refused before it costs memory: TOML, dialogs, saved conversations."""

import json
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_chat.chat.dialogs import parse_dialog
from llama_chat.chat.prompt_files import list_prompts, load_prompt
from llama_chat.documents import is_nested_deeply, read_toml
from llama_chat.errors import UsageError
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.sources import read_config
from tests.memory_use import peak_and_error

BUDGET_S = 2.0

DOTS = ".".join("a" * 20_000)

BOMBS = {
    "a dotted key": f"{DOTS} = 1",
    "a table": f"[{DOTS}]",
    "a list of tables": f"[[{DOTS}]]",
    "an inline table": f"a = {{{DOTS} = 1}}",
    "quoted parts": ".".join(["'#'"] * 17) + " = 1",
    "spaces around dots": " . ".join("a" * 17) + " = 1",
    "after quotes at the end of a text": f'a = [""""x""""", {{{DOTS} = 1}}]',
    "after a comment": f'# "\n{DOTS} = 1',
    "after an escaped quote": f'a = "\\""\n{DOTS} = 1',
    "lists": "a = " + "[" * 33 + "]" * 33,
    "lists without end": "a = " + "[" * 100_000,
    "inline tables": "a = " + "{a=" * 33 + "1" + "}" * 33,
    "both, with newlines": "a = " + "[\n{a=" * 17 + "1" + "}\n]" * 17,
    "a long list before it": f"a = [{'1,' * 90_000}]\n{DOTS} = 1",
    "dots in each of many": "a = " + "{a.a.a.a.a.a.a.a.a.a.a.a.a.a=" * 900 + "1",
}
"""TOML that takes memory or depth out of proportion."""


def refused(read: Callable[[], object], *parts: str) -> None:
    began = time.perf_counter()
    with pytest.raises(UsageError) as caught:
        read()
    assert time.perf_counter() - began < BUDGET_S
    line = str(caught.value)
    assert line.isprintable()
    assert line.count(": ") >= 2
    assert len(line) < 500
    for part in parts:
        assert part in line


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's own prompt files."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "llama-chat/prompts"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("case", BOMBS)
def test_deep_toml_is_refused_as_settings_and_as_a_prompt(case: str, home: Path) -> None:
    path = home / "bomb.toml"
    path.write_text(BOMBS[case])
    refused(lambda: read_config(path), "nested too deeply")
    refused(lambda: load_prompt("bomb"), "nested too deeply")
    assert {e.name: e.description for e in list_prompts()}["bomb"] == "cannot be read"


def test_a_bomb_of_dots_costs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.toml"
    path.write_text(BOMBS["a dotted key"])
    imports = "from pathlib import Path; from llama_chat.settings.sources import read_config"
    peak, error = peak_and_error(imports, f"read_config(Path({str(path)!r}))", tmp_path)
    assert "nested too deeply" in error
    assert peak < 20e6


ENDLESS = ['\\"""\n', '"\\', '\\"', "'\\'", "\n\\'''", '"\n']
BEGINS = ['a = """', "a = '''", 'a = "']


@pytest.mark.parametrize("line", ENDLESS)
@pytest.mark.parametrize("begin", BEGINS)
def test_a_text_that_never_ends_is_scanned_once(begin: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(begin + line * (200_000 // len(line)))
    refused(lambda: read_config(path), "not TOML")


@pytest.mark.parametrize("read", [read_config, lambda path: load_prompt(str(path))])
def test_a_toml_file_larger_than_any_is_refused(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "large.toml"
    path.write_text("a = 1\n" * 100_000)
    refused(lambda: read(path), "larger than 512 KiB")


REASONABLE = {
    "a dotted key": "a.b.c.d.e.f.g.h = 1",
    "numbers": "a = [1.5, 2.5, 1e5, -0.5]\nb = 1979-05-27T07:32:00.999999",
    "dots in texts": f"a = \"{'.' * 50}\"\nb = '{'.' * 50}'  # {'.' * 50}",
    "brackets in texts": f'a = "{"[" * 50}"\nb = """\n{"[{" * 50}\n"""\nc = \'\'\'{"{" * 50}\'\'\'',
    "quotes at the ends of texts": 'a = [""""x""""", \'\'\'\'y\'\'\'\'\', "\\\\", "\\""]\nb.c = 2',
    "many tables": "[[examples]]\nuser = 'a'\n" * 1000,
    "a list of many lines": "a = [\n" + "  ['b', { c.d = 1 }],\n" * 500 + "]",
    "a long text": f'a = """{"word. " * 50_000}"""',
}
"""TOML that anyone may write."""


@pytest.mark.parametrize("case", REASONABLE)
def test_reasonable_toml_is_parsed(case: str, tmp_path: Path) -> None:
    path = tmp_path / "fine.toml"
    path.write_text(REASONABLE[case])
    table, text = read_toml(path, "it", "")
    assert (table, text) == (tomllib.loads(REASONABLE[case]), REASONABLE[case])


texts = st.text(st.sampled_from("a.'\"\\#[]{}=,\n \t"), max_size=60)


@given(st.lists(texts | st.sampled_from(['"""', "'''", "a = ", "[[", "]]", "\n"])).map("".join))
def test_no_key_of_more_parts_is_hidden_from_the_check(text: str) -> None:
    """Whatever precedes it: if TOML takes the key for one, the check does too."""
    key = ".".join("b" * 40)
    try:
        found = tomllib.loads(f"{text}\n{key} = 1\n")
    except tomllib.TOMLDecodeError:
        return
    seen, depth = found, 0
    while isinstance(seen, dict) and "b" in seen:
        seen, depth = seen["b"], depth + 1
    assert depth < 40 or is_nested_deeply(f"{text}\n{key} = 1\n")


@pytest.mark.parametrize(
    "value",
    [
        "{" + "a." * 15 + "a=[" * 1 + "{" + "b." * 15 + "b=1}]}",
        "[" * 30 + "'x'" + "]" * 30,
        "['" + "x" * 100_000 + "']",
        "[" + "1," * 100_000 + "]",
        "0x" + "f" * 100_000,
        "2020-01-01",
    ],
)
def test_a_value_in_an_error_is_short_whatever_it_holds(value: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"top_p = {value}")
    refused(lambda: read_config(path), "top_p: ", "does not fit")


def test_no_value_is_too_deep_for_an_error() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match=r"is not a number above 0 to 1"):
        SETTINGS["top_p"].check(value)


DIALOGS = {
    "lists": "[" * 100_000 + "]" * 100_000,
    "objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "in a message": '[{"role": "user", "content": ' + "[" * 100_000 + "]" * 100_000 + "}]",
    "many lists": "[" + "[]," * 1_000_000 + "[]]",
    "many small lists": "[" + "[[]]," * 1_000_000 + "[]]",
    "many objects": "[" + '{"a":{}},' * 900_000 + "{}]",
}


@pytest.mark.parametrize("case", DIALOGS)
def test_deep_and_manifold_dialogs_are_refused(case: str) -> None:
    refused(lambda: parse_dialog(DIALOGS[case], "d.json"), "'d.json'")


def test_a_dialog_may_hold_brackets_and_many_messages() -> None:
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": '["{\\"' * 50, "more": [i]}
        for i in range(2000)
    ]
    assert [m.content for m in parse_dialog(json.dumps(turns), "d.json")] == ['["{\\"' * 50] * 2000


@pytest.mark.parametrize("repeated", [b"[],", b"[[]],", b'{"a":{}},', b'{"":0},'])
def test_a_line_of_many_small_parts_costs_little_memory(repeated: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl"
    path.write_bytes(b'{"a":[' + repeated * (2**23 // len(repeated) - 9) + b"0]}\n")
    imports = "from pathlib import Path; from llama_chat.chat import store"
    peak, error = peak_and_error(imports, f"store.read(Path({str(path)!r}))", tmp_path)
    assert "line 1: it is" in error
    assert peak < 60e6
