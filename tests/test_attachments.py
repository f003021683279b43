"""``/file``: texts that are attached to the next message."""

import re
from pathlib import Path

from harness.terminal import Terminal
from tests.test_commands import ENDED


def test_files_are_attached_and_counted(babble: Terminal, tmp_path: Path) -> None:
    notes = tmp_path / "my notes.txt"
    notes.write_text("line one\nline two\n")
    babble.ask(f'/file "{notes}"', r"attached: my notes\.txt, \d lines")
    found = re.search(r"context (\d+)/512 with 1 file", babble.wait_for(r"with 1 file"))
    assert found is not None
    assert int(found[1]) > 10
    babble.refuse(f"/file {tmp_path}/missing", r"missing.*no such file")
    listed = r"attached: my notes\.txt, 2 lines, 18 bytes\n/file off leaves them out\n\n(?=›)"
    babble.ask("/file", listed)
    babble.ask("What is it?", ENDED)
    babble.ask("/file", r"no attachments; /file PATH adds one")
    babble.ask("/context", r"\[my notes\.txt\] What is it\?")
    assert "with 1 file" not in babble.shown
    babble.ask(f'/file "{notes}"', r"attached: my notes\.txt")
    babble.ask("/file off", r"no attachments")


def test_file_takes_folders_wildcards_and_names_with_blanks(
    babble: Terminal, tmp_path: Path
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "my notes.txt").write_text("one")
    (folder / "b.txt").write_text("two")
    (folder / "c.md").write_text("three")
    (folder / "picture").write_bytes(b"\xff\xfe\x00")
    (folder / "empty").touch()
    babble.ask(f"/file {folder}/my notes.txt", r"attached: my notes\.txt, 1 line, 3 bytes\n")
    babble.ask(f"/file {folder}/*.txt", r"attached before: my notes.*\n[^\0]*attached: b\.txt")
    text = babble.ask(f"/file {folder}", r"attached: c\.md, 1 line, 5 bytes\n")
    assert re.search(r"left out: .*picture", text)
    assert re.search(r"left out: .*empty", text)
    babble.wait_for(r"with 3 files")
    babble.refuse(f"/file {folder}/*.none", r"\*\.none': no text there")
    babble.refuse(f"/file {folder}/your notes.txt", r"no such file: quotes hold blanks together")
    for i in range(51):
        (folder / f"{i}.log").write_text("x")
    babble.refuse(f"/file {folder}", r"more than 50 files: give some, such as \*\.txt")
    babble.refuse(f"/file {folder}/*.log", r"more than 50 files: give a pattern that fits fewer")
    babble.ask("/file off", r"no attachments")


def test_what_is_no_text_is_named(babble: Terminal, tmp_path: Path) -> None:
    for name, start, kind in (
        ("a.png", b"\x89PNG\r\n\x1a\n\0", "an image"),
        ("b.jpg", b"\xff\xd8\xff\xe0", "an image"),
        ("c.pdf", b"%PDF-1.7\n%\xe2\xe3", "a PDF"),
        ("d.docx", b"PK\x03\x04\x14\0", "an archive or an office document"),
    ):
        (tmp_path / name).write_bytes(start)
        babble.refuse(f"/file {tmp_path}/{name}", f"it is {kind}: give UTF-8 text")
    babble.refuse("/file https://example.org/a.txt", "addresses are not fetched: save the page")


def test_what_was_not_sent_is_not_taken_to_another_conversation(
    babble: Terminal, tmp_path: Path
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("one")
    babble.ask("hello", ENDED)
    babble.ask("/save first", "saved as first")
    for leave, told in (("/clear", "a new conversation"), ("/load first", "going on with first")):
        babble.ask(f"/file {notes}", r"attached: notes\.txt")
        babble.ask("/prefill Sure", "the next reply begins: Sure")
        babble.ask(leave, f"not sent, and dropped: notes.txt, the reply prefix\n{told}")
        babble.ask("/file", "no attachments")
