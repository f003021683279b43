"""A prompt file gives exactly the text its author wrote, or says in one line why it cannot."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_chat.chat import prompt_files
from llama_chat.chat.prompt_files import Example, list_prompts, load_prompt, raw_prompt, read_text
from llama_chat.errors import UsageError
from llama_chat.files import resource
from llama_chat.settings import SETTINGS
from tests.program import assert_clean_error, run


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a person's own prompts; the current folder is an empty one."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "config" / "llama-chat" / "prompts"
    folder.mkdir(parents=True)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return folder


def refused(text: str | bytes, suffix: str = ".toml") -> str:
    """The error that a file of this content gets."""
    path = Path(f"prompt{suffix}")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        load_prompt(str(path))
    message = str(caught.value)
    assert message.isprintable()
    assert message.count(": ") >= 2
    return message


ORIGIN = {
    "zero_shot/quantum_entanglement.txt": (
        "Explain the concept of quantum entanglement in simple terms."
    ),
    "one_shot/apple_in_japan.txt": (
        "If Apple was founded in Japan instead of the US, it would have likely focused on:"
    ),
    "few_shot/translate_to_french.txt": (
        "Translate English to French:\n\nsunflower => tournesol\nlaptop => ordinateur portable\n"
        "wireless headphones =>\njellyfish =>"
    ),
}


@pytest.mark.parametrize("name", ORIGIN)
def test_the_three_prompts_of_the_origin(name: str) -> None:
    assert load_prompt(name).renders() == [ORIGIN[name]]
    assert (resource("prompts") / name).read_bytes() == ORIGIN[name].encode() + b"\n"


def test_the_structured_twin_renders_as_the_raw_one_with_one_question_at_a_time() -> None:
    shown, first, second = ORIGIN["few_shot/translate_to_french.txt"].rsplit("\n", 2)
    prompt = load_prompt("few_shot/translate_to_french")
    assert prompt.renders() == [f"{shown}\n{first}", f"{shown}\n{second}"]
    assert prompt.examples[0] == Example("sunflower", "tournesol")
    assert prompt.queries == ("wireless headphones", "jellyfish")


@pytest.mark.parametrize("entry", list_prompts(), ids=lambda entry: entry.name)
def test_every_bundled_prompt_is_sound(entry: prompt_files.PromptEntry) -> None:
    prompt = load_prompt(entry.name)
    assert entry.description
    assert not prompt.warnings
    assert all(text == text.rstrip(" \t") for text in prompt.renders())
    for name, value in prompt.settings.items():
        assert SETTINGS[name].check(value) == value


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"text", "text"),
        (b"text\n", "text"),
        (b"text\r\n", "text"),
        (b"text\n\n", "text\n"),
        (b"\n  one\r\n\ttwo\n", "\n  one\r\n\ttwo"),
        (b"\xef\xbb\xbftext", "text"),
        ("é 🦙".encode(), "é 🦙"),
    ],
)
def test_the_bytes_are_the_prompt_less_one_newline_and_the_mark(data: bytes, text: str) -> None:
    Path("prompt.txt").write_bytes(data)
    prompt = load_prompt("prompt.txt")
    assert (prompt.renders(), prompt.warnings, prompt.structured) == ([text], (), False)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_raw_prompt_loses_at_most_one_newline(text: str) -> None:
    if text.strip():
        kept = raw_prompt(text + "\n", Path("x.txt")).text
        assert kept + "\n" == text + "\n" or kept + "\r\n" == text + "\n"


@pytest.mark.parametrize("end", [" ", "\t", " \n", "\t\r\n"])
def test_white_space_at_the_end_earns_a_warning_and_stays(end: str) -> None:
    prompt = raw_prompt("text" + end, Path("x.txt"))
    assert prompt.text == "text" + end[0]
    assert "ends in white space" in prompt.warnings[0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b" \t\r\n\n", "it is empty"),
        (b"\xef\xbb\xbf\n", "it is empty"),
        (b"ok \xff", "byte 3 is not UTF-8"),
        (b"\xef\xbb\xbfok \xc3", "byte 6 is not UTF-8"),
        (b"\x7fELF\x02\0\0", "it is binary"),
        ("hello".encode("utf-16"), "it is binary"),
    ],
)
def test_a_file_that_is_no_text_is_refused(data: bytes, reason: str) -> None:
    assert f": {reason}: " in refused(data, ".txt")


def test_a_huge_file_is_not_read_to_its_end() -> None:
    with Path("huge.txt").open("wb") as file:
        file.truncate(2**50)
    with pytest.raises(UsageError, match="larger than 64 MiB"):
        read_text(Path("huge.txt"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/dev/zero", "not a file"),
        ("/dev/null", "not a file"),
        ("./folder", "is a directory"),
        ("missing.txt", "no such file and no prompt of that name"),
        ("", "no such file and no prompt of that name"),
        ("*", "no such file and no prompt of that name"),
        ("**", "no such file and no prompt of that name"),
        ("../few_shot/grammar", "no such file and no prompt of that name"),
        ("~nobody-has-this-name/x", "not a possible name"),
        ("n" * 255, "name too long"),
        ("nul\0 and\nnewline\x1b[2J", "no such file and no prompt of that name"),
    ],
)
def test_a_name_of_nothing_usable_is_refused(name: str, reason: str) -> None:
    Path("folder").mkdir()
    with pytest.raises(UsageError, match=reason) as caught:
        load_prompt(name)
    assert str(caught.value).isprintable()


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused() -> None:
    Path("secret.txt").touch(mode=0)
    with pytest.raises(UsageError, match="permission denied"):
        load_prompt("secret.txt")


def test_a_pipe_is_read_like_a_file() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe\n")
    os.close(writer)
    assert load_prompt(f"/dev/fd/{reader}").text == "from a pipe"
    os.close(reader)


def test_a_name_not_known_brings_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean few_shot/translate_to_french\?"):
        load_prompt("translate_to_frensh")
    with pytest.raises(UsageError, match="known are few_shot/grammar, few_shot/sentiment"):
        load_prompt("zzz")


def test_a_path_beats_a_persons_own_which_beats_the_bundled(own: Path) -> None:
    name = "few_shot/grammar"
    assert load_prompt(name).path == resource("prompts") / "few_shot" / "grammar.toml"
    mine = own / "few_shot" / "grammar.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert load_prompt(name).path == load_prompt("grammar").path == mine
    assert {entry.name: entry.path for entry in list_prompts()}[name] == mine
    here = Path("grammar")
    here.write_text("here")
    assert load_prompt("grammar").text == "here"


def test_a_folder_here_does_not_hide_a_name() -> None:
    Path("grammar").mkdir()
    assert load_prompt("grammar").structured


def test_without_a_suffix_the_structured_file_is_meant() -> None:
    for name in ("translate_to_french", "few_shot/translate_to_french"):
        assert load_prompt(name).structured
        assert load_prompt(f"{name}.toml").structured
        assert not load_prompt(f"{name}.txt").structured


def test_a_bare_name_of_several_is_not_guessed(own: Path) -> None:
    for folder in ("one", "two"):
        (own / folder).mkdir()
        (own / folder / "same.txt").write_text(folder)
    with pytest.raises(UsageError, match="several have this name: name one of one/same.txt, two/"):
        load_prompt("same")
    assert load_prompt("two/same").text == "two"


def test_the_list_is_one_line_each_whatever_lies_there(own: Path) -> None:
    (own / "raw.txt").write_text("\n first\x0bline \nsecond")
    (own / "lines.toml").write_text('description = "one\\ntwo"\nsystem = "x"')
    (own / "broken.toml").write_text("= 1")
    (own / "binary.txt").write_bytes(b"\xff")
    (own / "notes.text").write_text("no prompt")
    (own / "folder.txt").mkdir()
    os.mkfifo(own / "pipe.txt")  # reading it would wait for ever
    found = {e.name: e.description for e in list_prompts() if e.path.is_relative_to(own)}
    assert found == {
        "binary": "cannot be read",
        "broken": "cannot be read",
        "lines": "one two",
        "raw": "first line",
    }


STRUCTURED = """
description = "d"
system = "s"
pattern = "<{user}> {not a place} [{assistant}]"
stop = ["\\n", "END"]
temperature = 0.5
top_k = 3
max_tokens = 9

[[examples]]
user = "{assistant} and {user}"
assistant = "{user}"

[[examples]]
user = "open"
"""


def test_a_structured_file() -> None:
    Path("p.toml").write_text(STRUCTURED)
    prompt = load_prompt("p.toml")
    assert (prompt.structured, prompt.description, prompt.system) == (True, "d", "s")
    assert prompt.examples == (Example("{assistant} and {user}", "{user}"),)
    assert prompt.queries == ("open",)
    assert prompt.stop == ("\n", "END")
    assert prompt.settings == {"temperature": 0.5, "top_k": 3, "max_tokens": 9}
    shown = "s\n\n<{assistant} and {user}> {not a place} [{user}]\n"
    assert prompt.renders() == [shown + "<open> {not a place} ["]


@given(st.lists(st.tuples(st.text(), st.text())), st.lists(st.text(), min_size=1))
def test_what_examples_hold_is_rendered_as_it_is(
    pairs: list[tuple[str, str]], queries: list[str]
) -> None:
    prompt = prompt_files.PromptFile(
        "p",
        Path("p.toml"),
        examples=tuple(Example(*pair) for pair in pairs),
        queries=tuple(queries),
        pattern="Q{user}A{assistant}",
    )
    shown = "".join(f"Q{user}A{assistant}\n" for user, assistant in pairs)
    assert prompt.renders() == [f"{shown}Q{query}A" for query in queries]


def test_a_windows_file_is_the_same_prompt() -> None:
    Path("unix.toml").write_text(STRUCTURED)
    Path("windows.toml").write_bytes(b"\xef\xbb\xbf" + STRUCTURED.replace("\n", "\r\n").encode())
    assert load_prompt("windows.toml").renders() == load_prompt("unix.toml").renders()


def test_without_examples_the_system_message_is_the_prompt() -> None:
    Path("p.toml").write_text('system = "Only this."')
    assert load_prompt("p.toml").renders() == ["Only this."]


EXAMPLE = '[[examples]]\nuser = "u"\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "neither system nor examples"),
        ('system = " "', "neither system nor examples"),
        ("system = 3", "system is not a text"),
        ("system = x", "not TOML: Invalid value (at line 1, column 10)"),
        ('system = "s"\nsystem = "t"', "not TOML: Cannot overwrite a value"),
        ("a = " + "[" * 100_000, "not TOML"),
        ("a = " + "1" * 5_000, "not TOML"),
        ('temprature = 1\nsystem = "s"', "unknown key 'temprature': did you mean temperature?"),
        ('"\\u001b[2J\\n" = 1', "unknown key '\\x1b[2J\\n': known are description"),
        (f'"{"k" * 10_000}" = 1', "unknown key 'k"),
        ('system = "s"\nstop = "END"', "stop is not a list of texts"),
        ('system = "s"\nstop = [""]', "stop is not a list of texts"),
        (f'pattern = "{{user}}"\n{EXAMPLE}', "pattern lacks its two places"),
        (f'pattern = "{{user}}{{user}}{{assistant}}"\n{EXAMPLE}', "pattern lacks its two places"),
        (f'pattern = "{{assistant}}{{user}}"\n{EXAMPLE}', "pattern has the answer first"),
        ('examples = "x"', "examples is not a list"),
        ("examples = [1]", "example 1 has other keys"),
        (EXAMPLE + 'answer = "a"', "example 1 has other keys"),
        ('[[examples]]\nassistant = "a"', "example 1 is not of texts"),
        (EXAMPLE + "assistant = 1", "example 1 is not of texts"),
        (EXAMPLE + EXAMPLE + 'assistant = "a"', "example 2 stands behind one with no answer"),
    ],
)
def test_a_structured_file_that_is_not_usable_is_refused(text: str, reason: str) -> None:
    message = refused(text)
    assert reason in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "arguments", [("/dev/zero",), ("missing.txt",), ("-", "-"), ("binary.txt",)]
)
def test_the_program_refuses_before_it_looks_for_a_model(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    Path("binary.txt").write_bytes(b"\0")
    assert_clean_error(run("complete", *arguments, home=tmp_path, stdin=b"text"), 2)
