"""Conversations are saved turn by turn, continued by name, or not saved at all."""

import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from harness.program import run
from harness.terminal import CTRL_C, CTRL_D, ESCAPE, READY, Terminal

ENDED = r"cut off after \d+ tokens"


def flags(model: Path) -> tuple[str, ...]:
    return ("-m", str(model), "--max-tokens", "8", "--temperature", "0")


def folder(home: Path) -> Path:
    return home / ".local/share/llama-chat/conversations"


def leave(terminal: Terminal, status: int = 0) -> None:
    terminal.type(CTRL_D)
    assert terminal.wait_for_end() == status


def test_every_turn_is_saved_at_its_end_for_its_owner_alone(
    gguf_model: Path, tmp_path: Path
) -> None:
    with Terminal(*flags(gguf_model), home=tmp_path) as terminal:
        terminal.wait_for(READY)
        assert not folder(tmp_path).exists()  # there is no message yet
        terminal.ask("hello there", ENDED)
        (file,) = folder(tmp_path).iterdir()
        assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d{6}-hello-there\.jsonl", file.name)
        records = [json.loads(line) for line in file.read_text().splitlines()]
        texts = [record["text"] for record in records if record.get("role") == "user"]
        assert texts == ["hello there"]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_continue_and_resume_bring_back_all_branches_and_the_cache(
    starter_model: Path, tmp_path: Path
) -> None:
    with Terminal(*flags(starter_model), "--system", "Be brief.", home=tmp_path) as first:
        first.wait_for(READY)
        first.ask("One fact about cats.", ENDED)
        first.ask("/retry", r"version 2")
        first.ask("And dogs?", ENDED)
        first.ask("/save pets", r"saved as pets")
        drawn = first.ask("/tree", r"● here")
        leave(first)
    for again in (("-c",), ("--resume", "pets"), ("--resume", "pe"), ("--continue",)):
        with Terminal(*flags(starter_model), *again, home=tmp_path) as second:
            text = second.wait_for(READY)
            assert "› And dogs?" in text
            second.ask("/system", r"system: Be brief\.")
            assert second.ask("/tree", r"● here") == drawn
            if again != ("--continue",):
                leave(second)
                continue
            # All of it is prefilled while nothing is typed.
            second.ask("Thanks.", r"\n\n(?=›)")
            counts = second.ask("/stats", r"tokens evaluated in total +\d+")
            new = re.search(r"prompt_tokens +(\d+)\ncached_tokens +(\d+)", counts)
            assert new is not None
            assert int(new[1]) - int(new[2]) < 20 < int(new[2])
            leave(second)


def test_an_interrupted_reply_is_marked_when_it_comes_back(
    starter_model: Path, tmp_path: Path
) -> None:
    with Terminal("-m", starter_model, "--temperature", "0", home=tmp_path) as first:
        first.wait_for(READY)
        first.line("Write a long story about a river.")
        first.wait_for(r"── model\n\S.{40}")
        first.type(CTRL_C)
        first.wait_for(r"stopped after \d+ tokens")
        first.ask("/max-tokens 4", "max-tokens is 4")
        first.ask("Go on.", ENDED)
        first.ask("/branch 2", r"river\.\n── model\n[^›]*\n\(interrupted\)\n")
        first.ask("/branch -", r"Go on\.\n── model\n")
        first.ask("/history", r"\n\(interrupted\)\n\n› Go on\.\n── model\n.*\n\n")
        first.ask("/undo", "/branch - goes back")
        leave(first)
    with Terminal("-m", starter_model, "--continue", home=tmp_path) as second:
        second.wait_for(r"\n\(interrupted\)\n\n.*template \w+\n›")


def test_an_unknown_name_is_an_error_before_anything_is_loaded(
    gguf_model: Path, tmp_path: Path
) -> None:
    for arguments, why in (
        (("--resume", "nothing"), "none is saved by that name"),
        (("--continue",), "no conversation is saved yet"),
        (("--resume", "../../x"), "not a possible name"),
        (("--continue", "--resume", "x"), "--resume is given too"),
    ):
        with Terminal(*flags(gguf_model), *arguments, home=tmp_path, size=(160, 10)) as terminal:
            assert terminal.wait_for_end() == 2
            assert why in terminal.text


def test_save_names_a_conversation_and_load_goes_to_another(
    gguf_model: Path, tmp_path: Path
) -> None:
    with Terminal(*flags(gguf_model), home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("about tea", ENDED)
        terminal.ask("/save tea time", r"saved as tea time")
        terminal.ask("/clear", r"a new conversation")
        terminal.ask("about snow", ENDED)
        terminal.refuse("/save tea time", r"there is a conversation of that name")
        terminal.refuse("/save ../../x", r"not a possible name")
        terminal.ask("/save snow", r"saved as snow")
        terminal.line("/sessions")
        text = terminal.wait_for(r"Enter picks")
        assert re.search(r"(?m)^› ● \d{4}-\d\d-\d\d \d\d:\d\d +2  snow  about snow$", text)
        assert re.search(r"(?m)^ +\d{4}\S+ \S+ +2  tea time  about tea$", text)
        terminal.type(ESCAPE)
        terminal.ask("/load tea", r"going on with tea time\n› about tea\n")
        terminal.ask("and more", ENDED)
        terminal.ask("/load snow", r"going on with snow\n› about snow\n")
        terminal.line("/load")
        terminal.wait_for(r"Enter picks")
        terminal.type(ESCAPE)
        terminal.wait_for(r"› /load\s+›")
        terminal.refuse("/load nothing", r"none is saved by that name")
        leave(terminal)
    result = run("sessions", "show", "tea time", "--json", home=tmp_path)
    assert [entry["content"] for entry in json.loads(result.out)][::2] == ["about tea", "and more"]


def test_quotes_around_a_name_are_those_of_a_shell(gguf_model: Path, tmp_path: Path) -> None:
    with Terminal(*flags(gguf_model), home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("about tea", ENDED)
        terminal.ask('/save "two words"', r"saved as two words")
        terminal.ask("/load two words", r"going on with two words")
        terminal.ask("/load 'two words'", r"going on with two words")
        terminal.ask("/save don't", r"saved as don't")
        terminal.ask("/load don't", r"going on with don't")
        terminal.ask(f"/export {tmp_path}/my-chat.json", "written")
        (tmp_path / "my-chat.json").rename(tmp_path / "my chat.json")
        terminal.ask(f'/load "{tmp_path}/my chat.json"', r"› about tea\n")
    (folder(tmp_path) / "don't.jsonl").rename(folder(tmp_path) / '"quoted".jsonl')
    with Terminal(*flags(gguf_model), home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask('/load "quoted"', r'going on with "quoted"')  # as earlier versions named it


def test_load_says_so_if_all_turns_are_undone(gguf_model: Path, tmp_path: Path) -> None:
    with Terminal(*flags(gguf_model), home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("about tea", ENDED)
        terminal.ask("/undo", r"undone: about tea")
        terminal.ask("/save tea", r"saved as tea")
        terminal.ask("/clear", r"a new conversation")
        terminal.ask("/load tea", r"going on with tea\nall turns are undone; /branch lists them")
        leave(terminal)


def test_no_save_keeps_nothing_at_all(gguf_model: Path, tmp_path: Path) -> None:
    with Terminal(*flags(gguf_model), "--no-save", home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("a secret", ENDED)
        terminal.type("\x1b[A")
        terminal.wait_for(r"› a secret\n(?=\n* .*temp)")  # the session itself has a history
        terminal.type("\x03")
        leave(terminal)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in left if b"secret" in path.read_bytes()]
    assert not folder(tmp_path).exists()


@pytest.mark.parametrize("flag", [True, False])
def test_the_end_says_what_is_not_kept(flag: bool, gguf_model: Path, tmp_path: Path) -> None:
    more = ["--no-save"] if flag else []
    with Terminal(*flags(gguf_model), *more, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("one", ENDED)
        terminal.ask("/save keep me", r"saved as keep me")
        terminal.ask("/no-save true", r"no-save is true")
        terminal.ask("two", ENDED)
        leave(terminal)
        saved, later = terminal.text.rstrip().splitlines()[-2:]
    assert saved == "saved: llama-chat --resume 'keep me'"
    assert later == "not saved: what was said after that, since no-save is true"
    with Terminal(*flags(gguf_model), *more, "--resume", "keep me", home=tmp_path) as terminal:
        terminal.wait_for(READY)
        leave(terminal)
        assert terminal.text.rstrip().endswith("saved: llama-chat --resume 'keep me'")


def test_two_programs_on_one_conversation_do_not_mix(gguf_model: Path, tmp_path: Path) -> None:
    with Terminal(*flags(gguf_model), home=tmp_path) as first:
        first.wait_for(READY)
        first.ask("shared", ENDED)
        first.ask("/save shared", r"saved as shared")
        with Terminal(*flags(gguf_model), "--resume", "shared", home=tmp_path) as second:
            second.wait_for(r"another program has it open: what you say here is saved in a copy")
            second.wait_for(READY)
            second.ask("only here", ENDED)
            first.ask("only there", ENDED)
            leave(second)
        leave(first)
    shown = run("sessions", "show", "shared", home=tmp_path).out
    assert "only there" in shown
    assert "only here" not in shown
    assert len(list(folder(tmp_path).glob("*.jsonl"))) == 2


def test_another_model_reads_the_conversation_as_text(
    gguf_model: Path, starter_model: Path, tmp_path: Path
) -> None:
    with Terminal(*flags(gguf_model), home=tmp_path) as first:
        first.wait_for(READY)
        first.ask("What is the capital of France?", ENDED)
        leave(first)
    with Terminal(*flags(starter_model), "--continue", home=tmp_path) as second:
        second.wait_for(r"it was held with random: all of it is read again as text")
        second.wait_for(READY)
        second.ask("And of Italy?", r"\n\n(?=›)")
        second.ask("/context", r"What is the capital of France\?")


def test_a_cut_off_file_is_repaired_and_its_copy_kept(gguf_model: Path, tmp_path: Path) -> None:
    with Terminal(*flags(gguf_model), home=tmp_path) as first:
        first.wait_for(READY)
        first.ask("whole", ENDED)
        leave(first)
    (file,) = folder(tmp_path).glob("*.jsonl")
    with file.open("ab") as damaged:
        damaged.write(b'{"number": 3, "parent": 2, "ro')
    with Terminal(*flags(gguf_model), "--continue", home=tmp_path) as second:
        second.wait_for(r"its last line was cut off; a copy of the damaged file is kept")
        second.wait_for(r"› whole\n")
        second.wait_for(READY)
        second.ask("goes on", ENDED)
        leave(second)
    assert len(list(folder(tmp_path).glob("*.damaged-*"))) == 1
    assert "goes on" in run("sessions", "show", file.stem, home=tmp_path).out


def test_saved_text_cannot_reach_the_terminal_with_control_sequences(
    gguf_model: Path, tmp_path: Path
) -> None:
    evil = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\u202e"
    dialog = [{"role": "user", "content": evil}, {"role": "assistant", "content": evil}]
    (tmp_path / "evil.json").write_text(json.dumps(dialog))
    with Terminal(*flags(gguf_model), home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask(f"/load {tmp_path}/evil.json", r"ZXZpbA==")
        terminal.ask("/tree", r"● here")
        terminal.ask("/save evil", r"no message yet|saved as evil")
        terminal.line("/sessions")
        terminal.wait_for(r"Enter picks")
        for sequence in (b"\x1b]52", b"\x1b[2J", b"\xc2\x9b", "\u202e".encode()):
            assert sequence not in terminal.raw


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_loses_no_message(
    gguf_model: Path, tmp_path: Path
) -> None:
    folder(tmp_path).mkdir(parents=True)
    folder(tmp_path).chmod(0o500)
    with Terminal(*flags(gguf_model), home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("hello", r"not saved: .*permission denied")
        folder(tmp_path).chmod(0o700)
        terminal.ask("again", ENDED)
        leave(terminal)
    (file,) = folder(tmp_path).glob("*.jsonl")
    assert "hello" in file.read_text()


def test_a_failed_save_is_reported_once_and_is_the_exit_status(
    gguf_model: Path, tmp_path: Path
) -> None:
    """A file is in place of the folder, until it is removed."""
    place = folder(tmp_path)
    place.parent.mkdir(parents=True)
    place.write_text("in the way")
    with Terminal(*flags(gguf_model), home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("hello", r"not saved: \S*[\s\S]*?: ")
        terminal.ask("again", ENDED)
        assert terminal.text.count("not saved") == 1
        leave(terminal, 6)
        assert terminal.text.count("llama-chat: error: ") == 1
    with Terminal(*flags(gguf_model), home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("hello", r"not saved: ")
        place.unlink()
        terminal.ask("again", ENDED)
        leave(terminal)
    (file,) = place.glob("*.jsonl")
    assert "hello" in file.read_text()


def test_a_full_disk_loses_nothing(gguf_model: Path, tmp_path: Path) -> None:
    """The limit on the size of files is reached at the second message, and is then lifted."""
    with Terminal(*flags(gguf_model), home=tmp_path, size=(300, 40)) as terminal:
        terminal.wait_for(READY)
        terminal.ask("first", ENDED)
        limit = ["prlimit", "--pid", str(terminal.child.pid), "--fsize=600:unlimited"]
        subprocess.run(limit, check=True)
        why = r"not saved: .*file too large: allow writing there; the next turn tries again"
        terminal.ask("second" + " second" * 7, why)
        (file,) = folder(tmp_path).glob("*.jsonl")
        assert file.read_bytes().endswith(b"\n")
        subprocess.run([*limit[:3], "--fsize=unlimited:unlimited"], check=True)
        terminal.ask("third", ENDED)
        leave(terminal)
    text = file.read_text()
    assert "second" in text
    assert "third" in text
