"""Names of the slash commands: help, short forms, beginnings, and words without a slash."""

from harness.terminal import CTRL_C, Terminal
from llama_chat.terminal.commands import COMMANDS
from tests.test_commands import ENDED


def test_help_lists_every_command_and_explains_each_with_an_example(babble: Terminal) -> None:
    text = babble.ask("/help", r"// in front sends")
    for command in COMMANDS.values():
        assert f"/{command.name}" in text
        assert command.example.startswith(f"/{command.name}")
    assert len(text.splitlines()) < 24
    babble.ask("/help sampling", r"/temperature \[x\] +\S[\s\S]*/seed \[n\] +\S.*\n")
    babble.ask("/help versions", r"for example: /versions 1")
    babble.ask("/help /tree", r"for example: /tree")
    babble.ask("/? undo", r"for example: /undo 2")
    babble.ask("/help nonsense", r"/nonsense: no such command: /help lists the commands")
    babble.ask("/help tempp", r"/tempp: no such command: did you mean /temp\?")


def test_commands_have_short_forms(babble: Terminal) -> None:
    for typed, name in {
        "/temp 0.5": "temperature is 0.5",
        "/topp 0.5": "top-p is 0.5",
        "/max 7": "max-tokens is 7",
        "/sys Be brief.": r"system: Be brief\.",
        "/se": "/se: it is ambiguous: /s",
        "/mo": "model is",
        "/c": "it is ambiguous: .*/continue",
    }.items():
        babble.ask(typed, name)
        babble.type(CTRL_C)


def test_a_lone_word_that_is_a_command_elsewhere_names_the_command(babble: Terminal) -> None:
    babble.refuse("quit", r"'quit': commands begin with /: /exit, or a blank and quit")
    babble.refuse("Help", r"/help, or a blank and help")
    babble.ask(" help", ENDED)
    babble.ask("help me", ENDED)


def test_a_sentence_that_begins_like_a_command_without_arguments_is_refused(
    babble: Terminal,
) -> None:
    babble.ask("hello", ENDED)
    for line in ("/clear the air, please", "/exit strategy", "/retry now", "/new ideas"):
        name = {"/new": "/clear"}.get(line.split()[0], line.split()[0])
        babble.refuse(line, rf"{name}: it takes no argument: leave out the argument, or type //")
    babble.ask("/context", r"hello\n")


def test_prefixes_aliases_and_escapes(babble: Terminal) -> None:
    babble.ask("/sta", r"no reply yet")
    babble.refuse("/te", r"/te: it is ambiguous: /temperature, /template")
    babble.ask("//help", ENDED)
    babble.ask("/context", r"/help\n")
    babble.line("/quit")
    assert babble.wait_for_end() == 0


def test_advice_names_slash_commands(babble: Terminal) -> None:
    babble.refuse("/load nope", r"none is saved by that name: /sessions lists them")
    babble.refuse("/model nonsense", r"known name: give /model PATH, or download one with: llama")
    babble.refuse("/template llama2", r"this model has no <s>: choose another with /template")
    babble.refuse("/set", r"/set: no setting is named: write /set top-p 0\.9")
    babble.ask("/overflow stop", "overflow is stop")
    babble.paste("--context " * 100)  # words of the user stay as they are
    babble.type("\r")
    babble.wait_for(r"leave no space .*, or raise /context if the model allows\n")
