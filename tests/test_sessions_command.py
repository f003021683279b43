"""``llama-chat sessions``: saved conversations are listed, shown and removed, and nothing else."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.cells import cell_len

from harness.program import COMMAND, CONTROLS, assert_clean_error, environment, run
from harness.terminal import Terminal
from llama_chat.chat import store
from llama_chat.chat.conversation import Attachment, Conversation, Message
from llama_chat.chat.conversation_file import ConversationFile
from llama_chat.chat.dialogs import parse_dialog
from llama_chat.chat.records import ModelTag
from tests.conversations import TAG, conversation_of, names_in, saved
from tests.imports import statuses_and_torch

HOSTILE = "\x1b]52;c;ZXZpbA==\x07 \x9b31m \x7f \u202egpj.exe \u2028 tab\t."


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of saved conversations if ``tmp_path`` is home."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / ".local/share"))
    return store.folder()


def save_three(text: str = "What is the capital of France?") -> None:
    """Save three conversations, whose times are in the reverse order of their names."""
    for age, name in enumerate(["a", "b", "c"]):
        conversation = Conversation()
        conversation.add(Message("user", f"{name}: {text}"))
        os.utime(saved(conversation, name), (10**9 - 3600 * age, 10**9 - 3600 * age))


def test_a_pipe_gets_a_line_per_conversation_with_tabs(tmp_path: Path) -> None:
    save_three("What is the capital of France, " + "and why " * 9)
    title = "What is the capital of France, and why and why and why a…"
    for command in (["sessions"], ["sessions", "list"]):
        done = run(*command, home=tmp_path, TZ="Asia/Tokyo")
        assert (done.status, done.err) == (0, "")
        assert done.out.splitlines() == [
            f"a\t2001-09-09 10:46\t1\t{TAG.name}\ta: {title}",
            f"b\t2001-09-09 09:46\t1\t{TAG.name}\tb: {title}",
            f"c\t2001-09-09 08:46\t1\t{TAG.name}\tc: {title}",
        ]


def test_json_says_the_same_for_programs(tmp_path: Path, folder: Path) -> None:
    save_three()
    (folder / "bad.jsonl").write_bytes(b"Dear diary\n")
    os.utime(folder / "bad.jsonl", (0, 0))
    outputs = set()
    for flags in (["--json"], ["list", "--json"], ["--json", "list"]):
        done = run("sessions", *flags, home=tmp_path, TZ="Asia/Tokyo")
        assert (done.status, done.err, done.out.count("\n")) == (0, "", 1)
        outputs.add(done.out)
    first, *_, last = json.loads(outputs.pop())
    assert not outputs
    assert first == {
        "name": "a",
        "changed": "2001-09-09T10:46:40+09:00",
        "messages": 1,
        "model": TAG.name,
        "title": "a: What is the capital of France?",
        "problem": "",
    }
    assert datetime.fromisoformat(first["changed"]).astimezone(UTC).timestamp() == 10**9
    assert (last["name"], last["problem"]) == ("bad", "line 1: it is not JSON")


def test_an_empty_list_is_reported(tmp_path: Path) -> None:
    done = run("sessions", home=tmp_path)
    assert (done.status, done.out, done.err) == (0, "", "no conversation is saved yet\n")
    done = run("sessions", "list", "--json", home=tmp_path)
    assert (done.status, done.out, done.err) == (0, "[]\n", "")
    assert not (tmp_path / ".local").exists()


def screen(*arguments: str, home: Path, width: int) -> list[str]:
    """Run the program in a terminal of that width, and return the lines that it shows."""
    with Terminal(*arguments, home=home, size=(width, 24)) as terminal:
        assert terminal.wait_for_end() == 0
        assert b"\x1b" not in terminal.raw
        return [line for line in terminal.text.splitlines() if line]


@pytest.mark.parametrize("width", [200, 80, 60, 20, 2])
def test_on_a_terminal_a_table_fits_the_width(width: int, tmp_path: Path, folder: Path) -> None:
    save_three("日本語 " * 20)
    saved(conversation_of(12), "a name of the person's own that is rather long")
    (folder / "bad.jsonl").write_bytes(b"Dear diary\n")
    lines = screen("sessions", home=tmp_path, width=width)
    assert len(lines) == 6
    assert all(cell_len(line) <= width for line in lines)
    text = "\n".join(lines)
    if width == 200:
        assert text.count("…") == 3  # a title has at most 60 characters
        assert "a name of the person's own that is rather long  20" in text
        assert "unreadable: line 1: it is not JSON" in text
    if width >= 60:  # narrower ones have no space for that heading
        column = lines[0].index("messages") + len("messages")
        counts = [line[:column].rpartition(" ")[2] for line in lines[1:]]
        assert sorted(counts) == ["", "1", "1", "1", "24"]


def test_titles_are_cut_first(tmp_path: Path) -> None:
    conversation = Conversation()
    conversation.add(Message("user", "What is the capital of France, and since when is it that?"))
    saved(conversation, "france")
    widths = [130, 90, 74]
    heads = [screen("sessions", home=tmp_path, width=width)[1] for width in widths]
    assert heads[0].endswith("since when is it that?")
    assert heads[1].endswith("…")
    for head in heads:
        assert head.startswith("france  20")
        assert TAG.name in head


def test_no_control_byte_of_a_file_reaches_a_stream(tmp_path: Path, folder: Path) -> None:
    conversation = Conversation(HOSTILE)
    conversation.add(Message("user", HOSTILE, attachments=(Attachment(HOSTILE, HOSTILE),)))
    conversation.add(Message("assistant", HOSTILE))
    saved(conversation, "hostile", ModelTag(HOSTILE, "v"))
    (folder / "two\n\x1b[31mlines\t.jsonl").touch()
    os.mkfifo(folder / "pipe.jsonl")
    outputs = [
        run("sessions", *rest, home=tmp_path)
        for rest in ([], ["--json"], ["show", "hostile"], ["show", "hostile", "--json"])
    ]
    for done in outputs:
        assert (done.status, done.err) == (0, "")
        assert not (CONTROLS | set("\x7f\x9b\u202e")) & set(done.out)
    assert [line.count("\t") for line in outputs[0].out.split("\n")] == [4, 4, 0]
    assert json.loads(outputs[3].out)[-1]["content"] == HOSTILE
    assert {entry["model"] for entry in json.loads(outputs[1].out)} == {"", HOSTILE}


def everything() -> Conversation:
    """Make a conversation with all that one can have, whose head is on its first branch."""
    conversation = conversation_of(1)
    conversation.add(Message("user", "What is it?", attachments=(Attachment("# Doc\n", "a.md"),)))
    reply = conversation.add(Message("assistant", "A document", interrupted=True))
    reply.n_dropped = 1
    conversation.head = conversation.question()
    conversation.add(Message("assistant", "Another answer"))
    conversation.head = reply
    return conversation


def test_show_prints_the_whole_path_as_markdown(tmp_path: Path) -> None:
    saved(everything(), "everything")
    done = run("sessions", "show", "every", home=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert done.out == (
        "# everything\n\n## System\n\nBe brief.\n\n## You\n\nin\n\n## Model\n\nout\n\n"
        "## You\n\nquestion 0: word\n\n## Model\n\nanswer 0: word\n\n"
        "## You\n\na.md:\n# Doc\n\nWhat is it?\n\n## Model (interrupted)\n\nA document\n"
    )


def test_show_prints_a_dialog_that_other_commands_read(tmp_path: Path) -> None:
    saved(everything(), "everything")
    outputs = {
        run("sessions", *arguments, home=tmp_path).out
        for arguments in (["show", "everything", "--json"], ["--json", "show", "everything"])
    }
    dialog = parse_dialog(outputs.pop(), "stdout")
    assert not outputs
    conversation = everything()
    said = conversation.preface() + conversation.path()
    assert [(message.role, message.content) for message in dialog] == [
        (message.role, message.content) for message in said
    ]


def test_show_warns_of_half_a_last_line_and_leaves_it(tmp_path: Path) -> None:
    path = saved(conversation_of(2), "crashed")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    done = run("sessions", "show", "crashed", home=tmp_path)
    assert done.status == 0
    assert done.err.startswith("llama-chat: warning: conversation 'crashed': its last line was cut")
    assert done.err.count("\n") == 1
    assert path.read_bytes() == whole[:-10]


def test_what_is_not_saved_cannot_be_shown_or_removed(tmp_path: Path, folder: Path) -> None:
    for name in ("apples", "apricots"):
        saved(conversation_of(1), name)
    (folder / "bad.jsonl").write_bytes(b"Dear diary\n")
    (folder / "folder.jsonl").mkdir()
    os.mkfifo(folder / "pipe.jsonl")
    before = names_in(folder)
    cases: list[tuple[Sequence[str], str]] = [
        (["show", "ap"], "more than one begins so: apricots, apples"),
        (["show", "bad"], "line 1: it is not JSON: repair or remove"),
        (["show"], "Missing argument"),
        (["rm"], "Missing argument"),
        (["rm", "apples", "apri"], "'apri': none is saved by that name"),
        (["rm", "apples", "../conversations/apricots"], "not a possible name"),
        (["remove", "apples"], "No such command"),
        *((["show", name], "none is saved") for name in ("plums", "folder", "pipe")),
        *((["rm", "apples", name], "none is saved") for name in ("plums", "folder", "pipe")),
    ]
    names = ["", "../../x", "/etc/passwd", "x" * 300, "two\nlines", "\x1b[31m"]
    cases += [([use, name], "not a possible name") for use in ("show", "rm") for name in names]
    for arguments, why in cases:
        assert_clean_error(run("sessions", *arguments, home=tmp_path), 2, why)
    assert names_in(folder) == before


def test_rm_removes_what_it_names_and_says_so(tmp_path: Path, folder: Path) -> None:
    save_three()
    outside = tmp_path / "outside"
    outside.write_bytes(b"kept")
    (folder / "link.jsonl").symlink_to(outside)
    (folder / "bad.jsonl").write_bytes(b"Dear diary\n")
    done = run("sessions", "rm", "a", "bad", "a", "link", home=tmp_path)
    assert (done.status, done.out) == (0, "")
    assert done.err == "removed a\nremoved bad\nremoved link\n"
    assert names_in(folder) == ["b.jsonl", "c.jsonl"]
    assert outside.read_bytes() == b"kept"


def test_rm_leaves_a_conversation_that_a_program_has_open(tmp_path: Path, folder: Path) -> None:
    save_three()
    file = ConversationFile()
    file.open(store.path_of("c"))
    result = run("sessions", "rm", "a", "b", "c", home=tmp_path)
    assert_clean_error(result, 2, "'c': a program has it open")
    assert names_in(folder) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    file.close()
    assert run("sessions", "rm", "c", home=tmp_path).status == 0


def complete(line: str, home: Path) -> tuple[int, list[str], str]:
    """Ask for bash's completions of the last word of a line."""
    words = line.split(" ")
    done = run(
        home=home,
        _LLAMA_CHAT_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
    )
    return done.status, done.out.split(), done.err


def test_a_shell_completes_names_and_gets_no_errors(tmp_path: Path, folder: Path) -> None:
    for name in ("apples", "apricots", "pears"):
        saved(conversation_of(1), name)
    (folder / "ap\n\x1b[31m.jsonl").touch()
    (folder / "apes.jsonl").write_bytes(b"Dear diary\n")
    for command in ("show", "rm"):
        _, names, err = complete(f"llama-chat sessions {command} ap", tmp_path)
        assert (sorted(names), err) == (["apes", "apples", "apricots"], "")
    assert complete("llama-chat sessions show x", tmp_path)[1:] == ([], "")
    _, names, _ = complete("llama-chat sessions rm apples pe", tmp_path)
    assert names == ["pears"]


def test_completion_is_silent_on_any_error(tmp_path: Path, folder: Path) -> None:
    assert complete("llama-chat sessions show a", tmp_path)[1:] == ([], "")
    folder.parent.mkdir(parents=True)
    folder.write_bytes(b"no folder")
    assert complete("llama-chat sessions show a", tmp_path)[1:] == ([], "")
    assert_clean_error(run("sessions", home=tmp_path), 2, "not a directory: check the folder")


def test_a_file_may_have_any_time(tmp_path: Path) -> None:
    # Not every file system stores such times; that of shared memory does.
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as data:
        folder = Path(data) / "llama-chat" / "conversations"
        folder.mkdir(parents=True)
        for time in (-(10**11), 10**12):
            path = folder / f"{time}.jsonl".replace("-", "minus ")
            path.write_bytes(b"Dear diary\n")
            os.utime(path, (time, time))
        for flags in ([], ["--json"]):
            done = run("sessions", *flags, home=tmp_path, XDG_DATA_HOME=data)
            assert (done.status, done.err) == (0, "")
            assert "minus 100000000000" in done.out


def test_output_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    save_three()
    for arguments in (["list"], ["list", "--json"], ["show", "a"]):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [*COMMAND, "sessions", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                env=environment(tmp_path),
                timeout=30,
                check=False,
            )
        assert done.returncode == 6
        assert b"llama-chat: error: stdout: no space left on device" in done.stderr


def test_none_of_it_imports_torch(tmp_path: Path) -> None:
    save_three()
    cases: tuple[list[str], ...] = ([], ["--help"], ["list", "--json"], ["show", "a"], ["rm", "a"])
    found = statuses_and_torch([["sessions", *arguments] for arguments in cases], tmp_path)
    for line in found:
        assert line == "0 False"
    assert len(found) == len(cases)
