"""Prompt files: their bytes are the prompt, their errors are one line."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.program import assert_clean_error, run
from llama_chat.chat.conversation import Example
from llama_chat.chat.prompt_files import list_prompts, load_prompt, raw_prompt
from llama_chat.errors import PromptTooLongError, UsageError
from llama_chat.files import resource
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.setting import parse


@pytest.fixture(autouse=True)
def _config_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def own(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / "config/llama-chat/prompts" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_three_original_prompts_are_unchanged() -> None:
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


def test_a_structured_prompt_asks_each_question_after_the_examples() -> None:
    prompt = load_prompt("translate_to_french")
    assert prompt.examples == (
        Example("sunflower", "tournesol"),
        Example("laptop", "ordinateur portable"),
    )
    head = "Translate English to French:\n\nsunflower => tournesol\nlaptop => ordinateur portable\n"
    assert prompt.renders() == [head + "wireless headphones =>", head + "jellyfish =>"]


def test_every_bundled_prompt_is_valid() -> None:
    entries = list_prompts()
    assert len(entries) >= 7
    for entry in entries:
        prompt = load_prompt(entry.name)
        assert entry.description
        assert all(prompt.renders())
        assert prompt.warnings == ()
        for name, value in prompt.settings.items():
            parse(SETTINGS[name], str(value), entry.name)


def test_a_path_beats_the_users_prompt_beats_the_bundled_one(tmp_path: Path) -> None:
    assert load_prompt("apple_in_japan").renders()[0].startswith("If Apple")
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


def test_white_space_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xef\xbb\xbf  a\r\n\tb\n\n")
    assert load_prompt("p.txt").text == "  a\r\n\tb\n"
    path.write_bytes(b"ends in space ")
    prompt = load_prompt("p.txt")
    assert prompt.text == "ends in space "
    assert "white space" in prompt.warnings[0]


def test_an_empty_prompt_is_possible_and_earns_a_warning(tmp_path: Path) -> None:
    for data in (b"", b"\n"):
        (tmp_path / "p.txt").write_bytes(data)
        prompt = load_prompt("p.txt")
        assert prompt.renders() == [""]
        assert "the model begins from nothing" in prompt.warnings[0]


BAD_TEXTS = {
    "binary": (b"a\0b", "it is binary"),
    "utf-8": (b"abc\xff", "byte 3 is not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_bad_texts_are_refused(case: str, tmp_path: Path) -> None:
    data, why = BAD_TEXTS[case]
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(UsageError, match=why):
        load_prompt("p.txt")


def test_folders_devices_and_huge_files_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    sparse = tmp_path / "large.txt"
    sparse.write_bytes(b"x" * (64 * 2**20 + 1))
    for name, why in (
        ("folder/", "is a directory"),
        ("/dev/zero", "not a file"),
        ("no/such/file.txt", "no such file"),
        ("x" * 5000, ""),
        ("a\0b", ""),
        ("../../etc/passwd", "no such file"),
    ):
        with pytest.raises(UsageError) as caught:
            load_prompt(name)
        assert why in str(caught.value)
        assert len(str(caught.value)) < 600
    with pytest.raises(PromptTooLongError, match=r"larger than 64 MiB, some 16,777,216 tokens"):
        load_prompt("large.txt")


def test_a_wrong_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean few_shot/sentiment\?"):
        load_prompt("few_shot/sentimant")


BAD_TOML = {
    "true": ('system = "x"\ntemperature = true', "temperature: True does not fit"),
    "fraction": ('system = "x"\ntop_k = 1.7', "top_k: 1.7 does not fit"),
    "number in quotes": ('system = "x"\nseed = "1"', "seed: '1' does not fit"),
    "range": ('system = "x"\ntop_p = 2', "give a number above 0 to 1"),
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
        "example 2 follows one without an answer",
    ),
    "deep": ("x = " + "[" * 100_000, "nested too deeply"),
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


@pytest.mark.parametrize("end", [" ", "\t", " \n", "\t\r\n"])
def test_white_space_at_the_end_earns_a_warning_and_stays(end: str) -> None:
    prompt = raw_prompt("text" + end, Path("p.txt"))
    assert prompt.text == "text" + end[0]
    assert "ends in white space" in prompt.warnings[0]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xef\xbb\xbfok \xc3", "byte 6 is not UTF-8"),
        ("hello".encode("utf-16"), "it is UTF-16"),
    ],
)
def test_a_byte_order_mark_hides_no_bad_text(data: bytes, why: str) -> None:
    Path("p.txt").write_bytes(data)
    with pytest.raises(UsageError, match=why):
        load_prompt("p.txt")


@pytest.mark.parametrize(
    "name", ["", ".", "*", "**", "[", "few_shot/*", "~no-such-person/x", "n" * 255, "\x1b[2J\n"]
)
def test_a_name_is_never_a_pattern_and_never_crashes(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_prompt(name)
    assert str(caught.value).isprintable()


def test_a_pipe_is_read_like_a_file() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe\n")
    os.close(writer)
    assert load_prompt(f"/dev/fd/{reader}").text == "from a pipe"
    os.close(reader)


def test_without_a_suffix_the_structured_file_is_meant() -> None:
    for name in ("translate_to_french", "few_shot/translate_to_french"):
        assert load_prompt(name).path.suffix == ".toml"
        assert load_prompt(f"{name}.toml").path.suffix == ".toml"
        assert load_prompt(f"{name}.txt").path.suffix == ".txt"


def test_a_folder_here_does_not_hide_a_name() -> None:
    Path("grammar").mkdir()
    assert load_prompt("grammar").path == resource("prompts") / "few_shot" / "grammar.toml"


def test_an_ambiguous_name_is_refused(tmp_path: Path) -> None:
    own(tmp_path, "one/same.txt", "one")
    own(tmp_path, "two/same.txt", "two")
    with pytest.raises(UsageError, match=r"name one of one/same\.txt, two/same\.txt"):
        load_prompt("same")
    assert load_prompt("two/same").text == "two"


def test_the_list_has_one_line_per_prompt_whatever_the_folder_holds(tmp_path: Path) -> None:
    folder = own(tmp_path, "raw.txt", "\n first\x0bline \nsecond").parent
    own(tmp_path, "lines.toml", 'description = "one\\ntwo"\nsystem = "x"')
    own(tmp_path, "broken.toml", "= 1")
    own(tmp_path, "notes.text", "no prompt")
    (folder / "folder.txt").mkdir()
    os.mkfifo(folder / "pipe.txt")  # reading it would wait forever
    found = {e.name: e.description for e in list_prompts() if e.path.is_relative_to(folder)}
    assert found == {"broken": "cannot be read", "lines": "one two", "raw": "first line"}


def test_a_structured_file_made_on_windows_is_the_same_prompt(tmp_path: Path) -> None:
    data = (resource("prompts") / "few_shot" / "sentiment.toml").read_bytes()
    own(tmp_path, "mine.toml", b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"))
    assert load_prompt("mine").renders() == load_prompt("sentiment").renders()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("system = x", "not TOML: Invalid value (at line 1, column 10)"),
        ('system = " "', "neither system nor examples"),
        ("a = " + "1" * 5_000, "not TOML"),
        ('"\\u001b[2J\\n" = 1', "unknown key '\\x1b[2J\\n'"),
        (f'"{"k" * 10_000}" = 1', "unknown key 'kkk"),
    ],
)
def test_errors_are_short_and_printable_whatever_the_file_holds(
    text: str, why: str, tmp_path: Path
) -> None:
    own(tmp_path, "p.toml", text)
    with pytest.raises(UsageError) as caught:
        load_prompt("p")
    message = str(caught.value)
    assert why in message
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize("arguments", [("/dev/zero",), ("missing.txt",), ("-", "-"), ("nul.txt",)])
def test_the_program_refuses_before_it_looks_for_a_model(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    Path("nul.txt").write_bytes(b"\0")
    assert_clean_error(run("complete", *arguments, home=tmp_path, stdin=b"text"), 2)
