"""Every slash command, on the screen."""

import base64
import json
import os
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from harness.terminal import CTRL_C, READY, Terminal
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.setting import Setting
from tests.folders import write_chain, write_tokenizer_files
from tests.model_files import SMALL, sentencepiece_model, write_hollow_gguf
from tests.vocabularies import piece_json

ENDED = r"(cut off after \d+ tokens.*|the model ended it at once)\n"


def rows_of(table: str) -> list[list[str]]:
    """Parse a table on the screen, whose cells have two spaces or more between them."""
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines() if line.strip()]


def typed_value(setting: Setting) -> str:
    """Return a value other than the default."""
    special = {"device": "cpu", "context": "300", "quantize": "none", "template": "plain"}
    kinds = {
        "integer": "3",
        "number": "0.5",
        "switch": "true",
        "list": "END",
        "text": "words",
        "size": "4G",
        "time": "10m",
        "path": "words",
    }
    if setting.name in special:
        return special[setting.name]
    return list(setting.values)[-1] if setting.values else kinds[setting.kind]


def assert_has_a_command(setting: Setting, chat: Terminal) -> None:
    """Check that a setting's command changes it, shows its origin, and keeps to its range."""
    spelled, value = setting.command[1:], typed_value(setting)
    chat.ask(f"/{spelled} {value}", rf"({spelled} is |system: )'?{value}")
    text = chat.ask("/settings", r"^template-here .*$")
    assert re.search(rf"(?m)^{spelled}\s+'?{value}'?\s+/{spelled}$", text)
    if setting.kind in ("integer", "number") or setting.kind == "choice":
        chat.refuse(
            f"/{spelled} many", rf"/{spelled}: 'many' does not fit: give (one of|a.* number)"
        )


def test_every_setting_has_a_command_of_its_name(babble: Terminal) -> None:
    elsewhere = {"model", "prompt", "plain", "quiet"}
    for setting in SETTINGS.values():
        if setting.name not in elsewhere and setting.scope != "load":
            assert_has_a_command(setting, babble)


def test_settings_of_the_model_load_it_again(babble: Terminal, gguf_model: Path) -> None:
    babble.ask("remember me", ENDED)
    babble.ask(f"/draft {gguf_model}", rf"draft is '?{re.escape(str(gguf_model))}")
    babble.ask("hello", ENDED)
    babble.refuse("/draft nowhere", r"model 'nowhere'")
    babble.ask("/draft default", r"draft is not set")
    babble.refuse("/endpoint words", "not a URL of a server")
    for name in (name for name, setting in SETTINGS.items() if setting.scope == "load"):
        if name not in ("model", "draft", "endpoint"):
            assert_has_a_command(SETTINGS[name], babble)
    babble.ask("/context", r"remember me\n")


def test_set_changes_any_setting_and_suggests_names(babble: Terminal) -> None:
    babble.ask("/set top-p 0.5", r"top-p is 0\.5 \(/top-p\)")
    babble.ask("/set top_k 5", r"top-k is 5")
    babble.ask("/set top-p default", r"top-p is 0\.9")
    babble.refuse("/set tpo-p 1", r"no setting 'tpo-p': did you mean top-p\?")
    babble.ask("/set system Be brief.", r"system: Be brief\.")
    babble.ask("/set temp 0.5", r"temperature is 0\.5")
    babble.ask("/prompt few_shot/translate_to_french", r"sunflower[\s\S]*max-tokens")
    babble.ask("/set prompt", r"prompt is few_shot/translate_to_french \(/prompt\)")
    babble.ask("/prompt off", "no prompt file")
    babble.ask("/set prompt", r"prompt is not set")


def test_stop_takes_several_texts(babble: Terminal) -> None:
    babble.ask(r'/stop "\n\n" END "a b"', r"stop is '\\n\\n' 'END' 'a b'")
    babble.refuse('/stop "open', r"a quote is not closed")
    babble.ask("/stop off", r"stop is not set")


def test_settings_show_where_each_comes_from(gguf_model: Path, tmp_path: Path) -> None:
    config = tmp_path / "my.toml"
    config.write_text("min_p = 0.25\n")
    flags = ("-m", gguf_model, "--config", config, "--top-k", "9")
    with Terminal(*flags, home=tmp_path, LLAMA_CHAT_TEMPERATURE="0.125") as terminal:
        terminal.wait_for(READY)
        text = terminal.ask("/settings", r"^template-here .*$")
        assert re.search(r"(?m)^min-p\s+0\.25\s+/\S*", text)
        assert re.search(r"(?m)^top-k\s+9\s+--top-k$", text)
        assert re.search(r"(?m)^temperature\s+0\.125\s+LLAMA_CHAT_TEMPERATURE$", text)
        assert re.search(r"(?m)^top-p\s+0\.9\s+default$", text)


def test_retry_keeps_versions_and_goes_back_to_them(babble: Terminal) -> None:
    babble.ask("/temperature 1.5", "temperature is 1.5")
    babble.ask("/seed 5", "seed is 5")
    babble.ask("hello", ENDED)
    babble.ask("/retry", r"version 2; the earlier ones are kept: /versions")
    babble.ask("/retry", r"version 3; the earlier ones are kept: /versions\n\n")
    rows = rows_of(babble.ask("/versions", r"\n[ ●]+3 .*\n"))
    assert [row[0] for row in rows[1:3]] == ["1", "2"]
    assert rows[3][:2] == ["●", "3"]
    babble.ask("/versions 1", r"› hello\n")
    rows = rows_of(babble.ask("/versions", r"\n[ ●]+3 .*\n"))
    assert rows[1][:2] == ["●", "1"]
    babble.refuse("/versions 9", r"/versions: there are 3")
    babble.ask("/versions zero", r"'zero' is not the number of a version")


def tokens_read(chat: Terminal) -> int:
    """Return the number of tokens that the model has read in all."""
    found = re.search(
        r"tokens evaluated in total +(\d+)", chat.ask("/stats", r"evaluated in total +\d+")
    )
    assert found is not None
    return int(found[1])


def test_the_first_answer_to_a_message_is_no_version(babble: Terminal, tmp_path: Path) -> None:
    (tmp_path / "asked.json").write_text(json.dumps([{"role": "user", "content": "hello"}]))
    babble.ask(f"/load {tmp_path}/asked.json", r"› hello\n")
    assert "version" not in babble.ask("/retry", rf"{ENDED}[\s\S]*\n(?=›)")
    babble.ask("/retry", r"version 2; the earlier ones are kept: /versions")


def test_branches_are_listed_drawn_and_switched(babble: Terminal) -> None:
    babble.ask("one", ENDED)
    babble.ask("two", ENDED)
    babble.ask("/undo", r"undone: two")
    babble.ask("zwei", ENDED)
    rows = rows_of(babble.ask("/branch", r"\n●\s+6 .*\n"))
    assert [rows[1][0], rows[1][1]] == ["4", "4"]
    text = babble.ask("/tree", r"● here")
    drawn = [line[:14].rstrip() for line in text.splitlines()]
    assert drawn[0] == "1 you    one"
    assert drawn[2] == "├ 3 you    two"
    assert drawn[3].startswith("│ 4 model")
    assert drawn[4] == "└ 5 you    zwe"
    assert drawn[5].startswith("  6 model")
    read = tokens_read(babble)
    babble.ask("/branch 4", r"› two\n")
    babble.ask("/branch -", r"› zwei\n")
    babble.ask("/branch -", r"› two\n")
    babble.ask("/branch -", r"› zwei\n")
    assert tokens_read(babble) == read  # the suffix of each branch was saved
    babble.ask("/branch 2", r"what you say next begins a new branch")
    babble.ask("drei", ENDED)
    babble.ask("/tree", r"(?s:7 you +drei\n.*● here)")
    babble.ask("/branch 99", r"there is no message 99")


def test_editing_an_earlier_message_makes_a_branch(babble: Terminal) -> None:
    babble.ask("first words", ENDED)
    babble.ask("second words", ENDED)
    babble.line("/edit 1")
    babble.wait_for(r"message 1: Enter sends it anew, on a branch; Ctrl-C leaves it\n\n› first wo")
    babble.type(" changed\r")
    babble.wait_for(r"› first words changed\n── model\n.*\n?cut off")
    text = babble.ask("/tree", r"● here")
    assert re.search(r"├ 1 you +first words\n", text)
    assert re.search(r"└ 5 you +first words changed\n", text)
    # Replies can be edited too, and Ctrl-C cancels.
    babble.line("/edit 6")
    babble.wait_for(r"message 6: Enter puts it in place of the reply[^›]*› \S")
    babble.type(CTRL_C)
    babble.wait_for(r"in place of the reply[^›]*›\n")
    babble.ask("/tree", r"6 model[^\n]*● here")
    babble.line("/edit 6")
    babble.wait_for(r"(?s)(message 6: Enter puts.*){2}› \S")
    babble.type("\x1b<" + "\x0b" * 20 + "What it should have said\r")
    babble.wait_for(r"What it should have said")
    babble.ask("/tree", r"7 model[^\n]*What it should have said[^\n]*● here")


def test_continue_reads_only_the_last_token_again(babble: Terminal) -> None:
    babble.ask("hello", ENDED)
    babble.ask("/continue", ENDED)
    text = babble.ask("/stats", r"seed +\d+")
    counts = {name: int(n) for name, n in re.findall(r"(\w+_tokens) +(\d+)", text)}
    assert counts["cached_tokens"] == counts["prompt_tokens"] - 1
    text = babble.ask("/tree", r"● here\n")
    assert [line[:8].rstrip() for line in text.splitlines()] == ["1 you", "2 model"]


def test_prefill_begins_the_next_reply_and_only_that(babble: Terminal) -> None:
    babble.ask("/prefill Of course!", r"the next reply begins: Of course!")
    babble.wait_for(r"reply prefix set")
    babble.ask("hello", r"Of course!.*\n.*cut off")
    babble.ask("/prefill", r"no prefill is set")
    text = babble.ask("again", ENDED)
    assert "Of course!" not in text
    babble.ask("/prefill never", r"the next reply begins: never")
    babble.ask("/prefill off", r"no prefill is set")


def test_undo_takes_back_several_turns_and_clear_all(babble: Terminal) -> None:
    for word in ("one", "two", "three"):
        babble.ask(word, ENDED)
    babble.ask("/undo 2", r"undone: three\nundone: two\n/branch - goes back\n")
    babble.ask("/context", r"user +\d+ +\d+ .*one\n")
    babble.ask("/branch -", r"› three\n")
    babble.ask("/undo 9", r"undone: one\n/branch - goes back\n")
    babble.ask("/undo", r"/undo: there is no message yet")
    babble.ask("/branch -", r"› three\n")
    babble.refuse("/undo x", r"/undo: 'x' is not the number of turns")
    babble.ask("/clear", r"a new conversation")
    babble.ask("/context", r"0 of 512 tokens, 512 free")


def test_context_shows_what_is_cached_and_what_is_dropped_next(babble: Terminal) -> None:
    babble.ask("/system Be brief.", r"system: Be brief\.")
    for word in ("one", "two", "three"):
        babble.ask(word, ENDED)
    text = babble.ask("/context", r"\d+ of 512 tokens, \d+ free")
    found = re.findall(r"(?m)^ *(\d*) +(system|user|assistant) +(\d+) +(\d+) (.{11})", text)
    assert [row[1] for row in found] == ["system", *["user", "assistant"] * 3]
    assert [row[4].strip() for row in found] == ["stays", "goes next", "goes next", *[""] * 4]
    assert all(tokens == cached for _, _, tokens, cached, _ in found)
    total = sum(int(row[2]) for row in found)
    assert f"{total} of 512 tokens, {512 - total} free" in text


def test_context_with_a_number_loads_the_model_again(babble: Terminal) -> None:
    babble.ask("remember", ENDED)
    babble.ask("/context 128", r"(?s:context 128 · template chatml\n.*context is 128 \(/context\))")
    babble.wait_for(r"context \d+/128")
    babble.ask("/context", r"remember")
    babble.refuse("/context 100000", r"the model was made for 512 tokens")
    babble.ask("/context", r"\d+ of 128 tokens")


def test_a_model_that_cannot_be_loaded_leaves_the_loaded_one(
    babble: Terminal, tmp_path: Path
) -> None:
    too_large = tmp_path / "too-large.gguf"
    write_hollow_gguf(too_large, replace(SMALL, hidden_dim=2**24, n_layers=32))
    babble.ask("remember", ENDED)
    babble.refuse("/context 999999", r"the model was made for 512 tokens")
    babble.refuse(f"/model {too_large}", r"needs \d+\.\d GB, \d+\.\d GB free")
    babble.refuse("/model /nowhere", r"neither a path nor a known name")
    babble.refuse("/device tpu", r"no such device")
    babble.ask("/model", r"model is random")
    babble.ask("/stats", r"tokens evaluated in total")
    assert babble.text.count("template chatml") == 1  # it was loaded once


def test_tokens_shows_ids_and_pieces(babble: Terminal) -> None:
    babble.ask("the hi", ENDED)
    text = babble.ask("/tokens 1", r"with the template around it: \d+ tokens")
    cells = re.findall(r"(\d+) ('.+?'|<[0-9a-f ]+>)(?=  |\n)", text)
    assert cells[0] == ("1", "'<|im_start|>'")
    assert "' '" in dict(cells).values()
    assert "Ġ" not in text
    assert f"around it: {len(cells)} tokens" in text
    babble.ask("水", ENDED)
    babble.ask("/tokens 3", r"<e6>[\s\S]*with the template")
    babble.ask("/tokens 77", r"there is no message 77")


def test_why_shows_the_alternatives_of_a_token(chat: Terminal) -> None:
    chat.ask("What is the capital of France?", r"Paris\.")
    text = chat.ask("/why", r"the least certain of 7 tokens; /why N")
    assert re.search(r"(?m)^The capital of France is Paris\.$", text)
    assert re.search(r"(?m)^ *1  'The' +\d+%", text)
    text = chat.ask("/why 6", r"●.*(?:\n.*%.*){9}\n")
    assert re.search(r"token 6, after …The capital of France is\n", text)
    bars = re.findall(r"(?m)^(●?) +(\d+)  ('.*?') +([\d.]+)% +(█*|▏)$", text)
    assert len(bars) == 10
    assert bars[0][0] == "●"
    assert bars[0][2] == "' Paris'"
    assert [float(bar[3]) for bar in bars] == sorted((float(b[3]) for b in bars), reverse=True)
    chat.ask("/why Paris", r"token 6, after")
    chat.ask("/why a", r"token 2, after[\s\S]*token 4, after[\s\S]*token 6, after")  # " capital", …
    chat.refuse("/why London", r"the reply does not say 'London'")
    chat.ask("/why 8", r"the reply has 7 tokens")


def test_why_finds_a_word_whose_characters_are_several_tokens(tmp_path: Path) -> None:
    model = sentencepiece_model()
    vocabulary = piece_json(model)["model"]["vocab"]
    path = write_tokenizer_files(tmp_path / "m", model=model)
    parts = [vocabulary[f"<0x{byte:02X}>"] for byte in "你".encode()]
    write_chain(path, len(vocabulary), [vocabulary["▁"], *parts, 2])
    flags = ("--template", "plain", "--temperature", "0")
    with Terminal("-m", path, *flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("hello", "你\n")
        terminal.ask("/why 你", r"token 2, after")


def test_stats_counts_the_last_reply(babble: Terminal) -> None:
    babble.ask("hello", ENDED)
    text = babble.ask("/stats", r"seed +\d+")
    counts = ("prompt_tokens", "cached_tokens", "completion_tokens")
    for name in (*counts, "drafted_tokens", "accepted_tokens"):
        assert re.search(rf"(?m)^{name} +\d+$", text)
    for name in ("ttft_s", "prefill_tok_s", "decode_tok_s"):
        assert re.search(rf"(?m)^{name} +\d+\.\d+$", text)
    assert re.search(r"(?m)^ended by +length$", text)


def test_retry_at_temperature_0_says_why_the_answer_is_the_same(babble: Terminal) -> None:
    babble.ask("hello", ENDED)
    babble.ask("/retry", r"version 2; .*\nthe same answer again, since the temperature is 0")


def test_an_empty_conversation_is_not_exported(babble: Terminal, tmp_path: Path) -> None:
    babble.ask("/temperature -0", r"temperature is 0\.0 \(")
    assert not (tmp_path / "chat.md").exists()


def test_export_writes_markdown_and_json_and_never_over_a_file(
    babble: Terminal, tmp_path: Path
) -> None:
    babble.ask("/system Be brief.", r"system: Be brief\.")
    babble.ask("hello there", ENDED)
    babble.ask(f"/export {tmp_path}/chat.md", r"written: ")
    text = (tmp_path / "chat.md").read_text()
    assert text.startswith("# A conversation with random\n\n## System\n\nBe brief.\n\n## You\n")
    babble.ask(f"/export {tmp_path}/chat.json", r"written: ")
    dialog = json.loads((tmp_path / "chat.json").read_text())
    assert [entry["role"] for entry in dialog] == ["system", "user", "assistant"]
    assert dialog[1]["content"] == "hello there"
    babble.refuse(f"/export {tmp_path}/chat.md", r"it is there already")
    babble.refuse("/export chat.pdf", r"it writes \.md and \.json")
    babble.refuse("/export /nowhere/at/all.md", r"no such file or directory")
    # What was written can be read again.
    babble.ask("/clear", r"a new conversation")
    babble.ask(f"/load {tmp_path}/chat.json", r"› hello there\n")
    babble.ask("/system", r"system: Be brief\.")


def test_copy_goes_through_the_terminal_or_a_tool(chat: Terminal) -> None:
    chat.ask("What is the capital of France?", r"Paris\.")
    chat.ask("/copy", r"copied 31 characters through the terminal, if it allows that")
    data = re.search(rb"\x1b\]52;c;([^\x07]*)\x07", chat.raw)
    assert data is not None
    assert base64.b64decode(data[1]) == b"The capital of France is Paris."
    chat.refuse("/copy code", r"the last reply has no code")
    chat.ask("/edit 2", r"puts it in place")
    chat.wait_for(r"› The capital of France is Paris\.")
    chat.paste("\r```py\rprint(1)\r```\r")
    chat.type("\r")
    chat.ask("/copy code", r"copied 9 characters through")


def test_copy_uses_the_clipboard_of_the_machine(gguf_model: Path, tmp_path: Path) -> None:
    tool = tmp_path / "xclip"
    script = f"import sys; open({str(tmp_path / 'copied')!r}, 'w').write(sys.stdin.read())"
    tool.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(script)}\n")
    tool.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    flags = ("-m", gguf_model, "--max-tokens", "8", "--temperature", "0")
    with Terminal(*flags, home=tmp_path, DISPLAY=":0", PATH=path, SSH_TTY="") as terminal:
        terminal.wait_for(READY)
        terminal.ask("hello", ENDED)
        found = re.search(r"copied (\d+) characters by xclip", terminal.ask("/copy", r"by xclip"))
    assert found is not None
    assert len((tmp_path / "copied").read_text()) == int(found[1])
    assert b"\x1b]52" not in terminal.raw


def test_template_is_shown_and_chosen(babble: Terminal) -> None:
    babble.ask("/template", r"template is chatml")
    babble.ask("/template plain", r"template is plain")
    babble.refuse("/template llama2", r"the tokenizer of this model has no <s>")
    babble.ask("/template", r"template is plain")
    babble.ask("/template auto", r"template is chatml")


def test_model_loads_another_and_keeps_the_conversation(
    babble: Terminal, starter_model: Path
) -> None:
    babble.ask("What is the capital of France?", ENDED)
    babble.refuse("/model /nowhere", r"model '/nowhere': neither a path nor a known name")
    babble.ask("/model", r"model is random")
    babble.ask(f"/model {starter_model}", r"context 8192 · template chatml\n")
    babble.wait_for(r"SmolLM2-135M-Instruct.Q4_1 · context \d+/8192")
    babble.ask("/retry", r"version 2")
    babble.ask("/tree", r"(?s:2 model.*3 model[^\n]*● here)")


def test_prompt_files_are_listed_and_previewed(babble: Terminal) -> None:
    text = babble.ask("/prompt", r"zero_shot/quantum_entanglement.*\n")
    assert "few_shot/translate_to_french" in text
    text = babble.ask("/prompt translate_to_french", r"jellyfish → \?")
    assert "laptop → ordinateur portable" in text
    babble.ask("/temperature", r"temperature is 0\.0 \(\S*translate_to_french\.toml\)")
    babble.ask("/temperature 0.75", r"temperature is 0\.75")
    babble.ask("/prompt off", r"no prompt file")
    babble.ask("/temperature", r"temperature is 0\.75")  # what was changed by hand stays
    babble.ask("/prompt nonsense", r"no such file and no prompt of that name")
