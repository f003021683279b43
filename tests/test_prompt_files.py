"""Prompt files: their bytes are the prompt, their errors are one line."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_chat.chat.prompt_files import Example, list_prompts, load_prompt, raw_prompt
from llama_chat.errors import UsageError
from llama_chat.settings import SETTINGS, parse


@pytest.fixture(autouse=True)
def _config_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def own(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / "config/llama-chat/prompts" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_three_prompts_of_the_origin() -> None:
    texts = {
        "zero_shot/quantum_entanglement": (
            "Explain the concept of quantum entanglement in simple terms."
        ),
        "one_shot/apple_in_japan": (
            "If Apple was founded in Japan instead of the US, it would have likely focused on:"
        ),
        "few_shot/translate_to_french.txt": (
            "Translate English to French:\n\nsunflower => tournesol\n"
            "laptop => ordinateur portable\nwireless headphones =>\njellyfish =>"
        ),
    }
    for name, text in texts.items():
        assert load_prompt(name).renders() == [text]


def test_the_structured_one_asks_each_of_its_questions_behind_the_examples() -> None:
    prompt = load_prompt("translate_to_french")
    assert prompt.examples == (
        Example("sunflower", "tournesol"),
        Example("laptop", "ordinateur portable"),
    )
    head = "Translate English to French:\n\nsunflower => tournesol\nlaptop => ordinateur portable\n"
    assert prompt.renders() == [head + "wireless headphones =>", head + "jellyfish =>"]


def test_every_bundled_prompt_is_sound() -> None:
    entries = list_prompts()
    assert len(entries) >= 7
    for entry in entries:
        prompt = load_prompt(entry.name)
        assert entry.description
        assert all(prompt.renders())
        assert prompt.warnings == ()
        for name, value in prompt.settings.items():
            parse(SETTINGS[name], str(value), entry.name)


def test_a_path_beats_ones_own_beats_the_bundled(tmp_path: Path) -> None:
    assert load_prompt("apple_in_japan").text.startswith("If Apple")
    own(tmp_path, "one_shot/apple_in_japan.txt", "mine")
    assert load_prompt("apple_in_japan").text == "mine"
    assert load_prompt("one_shot/apple_in_japan").text == "mine"
    (tmp_path / "apple_in_japan").write_text("here")
    assert load_prompt("apple_in_japan").text == "here"
    assert load_prompt("./apple_in_japan").text == "here"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_the_text_is_the_prompt_less_one_final_newline(text: str) -> None:
    if not text.strip() or text.endswith("\r"):
        return
    assert raw_prompt(text + "\n", Path("p")).text == text
    if not text.endswith("\n"):
        assert raw_prompt(text, Path("p")).text == text
        assert raw_prompt(text + "\r\n", Path("p")).text == text


def test_bytes_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xef\xbb\xbf  a\r\n\tb\n\n")
    assert load_prompt("p.txt").text == "  a\r\n\tb\n"
    path.write_bytes(b"ends in space ")
    prompt = load_prompt("p.txt")
    assert prompt.text == "ends in space "
    assert "white space" in prompt.warnings[0]


BAD_TEXTS = {
    "empty": (b"", "it is empty"),
    "blank": (b" \n\n\t", "it is empty"),
    "binary": (b"a\0b", "it is binary"),
    "utf-8": (b"abc\xff", "byte 3 is not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_bad_texts_are_refused(case: str, tmp_path: Path) -> None:
    data, why = BAD_TEXTS[case]
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(UsageError, match=why):
        load_prompt("p.txt")


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    sparse = tmp_path / "large.txt"
    sparse.touch()
    os.truncate(sparse, 100 * 2**20)
    for name, why in (
        ("folder/", "is a directory"),
        ("/dev/zero", "not a file"),
        ("large.txt", "larger than 64 MiB"),
        ("no/such/file.txt", "no such file"),
        ("x" * 5000, ""),
        ("a\0b", ""),
        ("../../etc/passwd", "no such file"),
    ):
        with pytest.raises(UsageError) as caught:
            load_prompt(name)
        assert why in str(caught.value)
        assert len(str(caught.value)) < 600


def test_a_wrong_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean few_shot/sentiment\?"):
        load_prompt("few_shot/sentimant")


BAD_TOML = {
    "syntax": ("system = ", "not TOML"),
    "unknown key": ('sytem = "x"', "did you mean system?"),
    "nothing": ('description = "x"', "neither system nor examples"),
    "system number": ("system = 3", "system is not a text"),
    "pattern": ('system = "x"\npattern = "{user}"', "pattern lacks"),
    "pattern turned": ('system = "x"\npattern = "{assistant}{user}"', "answer first"),
    "stop": ('system = "x"\nstop = "y"', "stop is not a list"),
    "examples": ("examples = 3", "examples is not a list"),
    "example": ('[[examples]]\nuser = "x"\nassistant = 3', "example 1 is not of texts"),
    "example keys": ('[[examples]]\nuser = "x"\nanswer = "y"', "example 1 has other keys"),
    "order": (
        '[[examples]]\nuser = "x"\n[[examples]]\nuser = "y"\nassistant = "z"',
        "example 2 stands behind one with no answer",
    ),
    "deep": ("x = " + "[" * 100_000, "not TOML"),
}


@pytest.mark.parametrize("case", BAD_TOML)
def test_bad_structure_is_refused(case: str, tmp_path: Path) -> None:
    text, why = BAD_TOML[case]
    own(tmp_path, "p.toml", text)
    with pytest.raises(UsageError) as caught:
        load_prompt("p")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_braces_in_a_pattern_are_plain_text(tmp_path: Path) -> None:
    own(
        tmp_path,
        "p.toml",
        'pattern = "{{user}: {user}} {assistant}!"\n'.replace("{{user}", "{x}")
        + '[[examples]]\nuser = "{assistant}"\nassistant = "{user}"\n[[examples]]\nuser = "q"',
    )
    assert load_prompt("p").renders() == ["{x}: {assistant}} {user}!\n{x}: q}"]
