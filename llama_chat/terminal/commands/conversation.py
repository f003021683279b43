"""Commands that retry, undo, edit and continue, and that switch branches."""

from collections.abc import Iterable

from llama_chat.chat.conversation import Message
from llama_chat.errors import NothingYetError, UsageError
from llama_chat.terminal.chat import Chat
from llama_chat.terminal.commands.attachments import drop_unsent
from llama_chat.terminal.commands.command import Command, Value, message_of, whole_number
from llama_chat.terminal.pager import page
from llama_chat.terminal.tree import draw_tree


def _retry(chat: Chat, argument: str) -> None:
    if chat.conversation.question() is None:
        raise NothingYetError("/retry")
    chat.retry()
    versions = [version.text for version in chat.conversation.versions()]
    if len(versions) > 1:
        chat.renderer.note(f"version {len(versions)}; the earlier ones are kept: /versions")
    if versions and chat.settings.temperature == 0 and versions[-1] in versions[:-1]:
        chat.renderer.note("the same answer again, since the temperature is 0: /temperature")


def _versions(chat: Chat, argument: str) -> None:
    conversation = chat.conversation
    versions = conversation.versions()
    if not versions:
        raise NothingYetError("/versions", "reply")
    if not argument:
        path = conversation.path()
        chat.renderer.table(
            ("", "version", "reply"),
            (
                ("●" if version in path else "", str(number), version.preview)
                for number, version in enumerate(versions, 1)
            ),
            right=("version",),
        )
        return
    number = whole_number(argument, "/versions", "a version")
    if number > len(versions):
        raise UsageError("/versions", f"there are {len(versions)}", "/versions lists them")
    _switch_to(chat, _latest_leaf(chat, versions[number - 1]))


def _version_values(chat: Chat, argument: str) -> Iterable[Value]:
    return [(str(n), version.preview) for n, version in enumerate(chat.conversation.versions(), 1)]


def _undo(chat: Chat, argument: str) -> None:
    turns = whole_number(argument, "/undo", "turns") if argument else 1
    chat.stop_editing()
    before = chat.conversation.head
    undone = chat.conversation.undo(turns)
    if not undone:
        raise NothingYetError("/undo")
    chat.previous = before
    for message in undone:
        chat.renderer.note(f"undone: {message.preview}")
    chat.renderer.note("/branch - goes back")


def _edit(chat: Chat, argument: str) -> None:
    message = message_of(chat, argument, "/edit") if argument else chat.conversation.question()
    if message is None:
        raise NothingYetError("/edit")
    chat.start_editing(message)
    sends = "sends it anew" if message.role == "user" else "puts it in place of the reply"
    chat.renderer.note(f"message {message.number}: Enter {sends}, on a branch; Ctrl-C leaves it")


def _continue(chat: Chat, argument: str) -> None:
    if chat.conversation.head is None:
        raise NothingYetError("/continue", "reply")
    chat.continue_reply()


def _prefill(chat: Chat, argument: str) -> None:
    if argument:
        chat.reply_prefix = "" if argument == "off" else argument
    if chat.reply_prefix:
        chat.renderer.note(f"the next reply begins: {chat.reply_prefix}")
    else:
        chat.renderer.note("no prefill is set")


def _branch(chat: Chat, argument: str) -> None:
    conversation = chat.conversation
    if not conversation.all:
        raise NothingYetError("/branch")
    if not argument:
        chat.renderer.table(
            ("", "branch", "messages", "ends with"),
            (
                (
                    "●" if leaf is conversation.head else "",
                    str(leaf.number),
                    str(_depth(leaf)),
                    leaf.preview,
                )
                for leaf in conversation.branches()
            ),
            right=("branch", "messages"),
        )
        return
    if argument == "-":
        if chat.previous is None:
            raise UsageError("/branch -", "there was no other yet", "/branch lists them")
        _switch_to(chat, chat.previous)
        return
    message = message_of(chat, argument, "/branch")
    if message.role == "user":  # a conversation continues after a reply
        replies = conversation.children(message)
        message = replies[-1] if replies else message
    _switch_to(chat, message)
    if conversation.children(message):
        chat.renderer.note("what you say next begins a new branch")


def _branch_values(chat: Chat, argument: str) -> Iterable[Value]:
    leaves = [(str(leaf.number), leaf.preview) for leaf in chat.conversation.branches()]
    return [*leaves, ("-", "the one before")]


def _tree(chat: Chat, argument: str) -> None:
    if not chat.conversation.all:
        raise NothingYetError("/tree")
    width = None if chat.renderer.plain else chat.renderer.console.width
    for line in draw_tree(chat.conversation, width):
        chat.renderer.line(line)


def _history(chat: Chat, argument: str) -> None:
    path = chat.conversation.path()
    if not path:
        raise NothingYetError("/history")
    n = whole_number(argument, "/history", "messages") if argument else len(path)
    renderer = chat.renderer
    text = renderer.drawn(path[-n:])
    on_screen = renderer.plain or renderer.fits(text)
    if on_screen or not page(text, lambda: chat.interrupts.status != 0):
        renderer.write(text)


def _clear(chat: Chat, argument: str) -> None:
    chat.begin_anew()
    drop_unsent(chat)
    chat.renderer.note("a new conversation; the system message and the examples stay")


def _switch_to(chat: Chat, message: Message) -> None:
    """Continue after ``message``, and show it."""
    chat.go_to(message)
    chat.renderer.show(message)


def _latest_leaf(chat: Chat, message: Message) -> Message:
    """Return the end of the latest branch through ``message``."""
    while children := chat.conversation.children(message):
        message = children[-1]
    return message


def _depth(message: Message) -> int:
    depth = 1
    while message.parent is not None:
        message, depth = message.parent, depth + 1
    return depth


def _numbers(chat: Chat, argument: str) -> Iterable[Value]:
    return [(str(message.number), message.preview) for message in chat.conversation.path()]


COMMANDS = (
    Command("retry", "", "Answer the last message once more.", "/retry", _retry),
    Command(
        "versions",
        "[n]",
        "List the answers to the last message, or go back to one.",
        "/versions 1",
        _versions,
        _version_values,
    ),
    Command("continue", "", "Let the last reply go on where it ended.", "/continue", _continue),
    Command(
        "prefill",
        "[text|off]",
        "Let the next reply begin with these words.",
        "/prefill Sure, here is",
        _prefill,
    ),
    Command("undo", "[n]", "Take back the last turn, or the last n.", "/undo 2", _undo),
    Command(
        "edit",
        "[n]",
        "Change the last message of yours, or message n, on a new branch.",
        "/edit 3",
        _edit,
        _numbers,
    ),
    Command(
        "branch",
        "[n|-]",
        "List the branches, continue after message n, or go back to the previous branch.",
        "/branch 4",
        _branch,
        _branch_values,
    ),
    Command(
        "history",
        "[n]",
        "Show the conversation so far, or its last n messages.",
        "/history 4",
        _history,
    ),
    Command("tree", "", "Draw the conversation with all its branches.", "/tree", _tree),
    Command("clear", "", "Begin a new conversation.", "/clear", _clear),
)
