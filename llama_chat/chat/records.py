"""Records of a saved conversation: contents, validation, and recovery from damaged ones."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from llama_chat.chat.conversation import Attachment, Conversation, Example, Message, Role
from llama_chat.chat.record_lines import Line, Record, read_saves
from llama_chat.tokenizers.base import Tokenizer, without_surrogates
from llama_chat.tokenizers.streaming import StreamingDecoder
from llama_chat.tokenizers.vocabulary import is_chat_token

FORMAT = "llama-chat conversation"
VERSION = 1

LOST = "(This message is damaged and cannot be read.)"
"""Text in place of a message whose record is damaged."""


@dataclass(frozen=True, slots=True)
class ModelTag:
    """Model that a conversation is held with."""

    name: str = ""
    vocabulary: str = ""
    """Fingerprint of its tokenizer; the ids in the file are valid for that one only."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Content of a conversation file, as records."""

    messages: dict[int, Record]
    """Message records by number."""
    state: Record
    """Head of the path, system message, examples, and model."""


def snapshot(conversation: Conversation, tag: ModelTag) -> Snapshot:
    """Return the present content to save."""
    state = {
        "head": conversation.head.number if conversation.head else 0,
        "system": conversation.system,
        "examples": [[example.user, example.assistant] for example in conversation.examples],
        "model": tag.name,
        "vocabulary": tag.vocabulary,
    }
    return Snapshot({m.number: _message_record(m) for m in conversation.all}, state)


@dataclass(slots=True)
class Loaded:
    """A conversation read from a file."""

    conversation: Conversation = field(default_factory=Conversation)
    tag: ModelTag = field(default_factory=ModelTag)
    created: str = ""
    n_bytes: int = 0
    """Bytes of all complete saves."""
    n_lines: int = 0
    n_sealed: int = 0
    """Number of all lines, and of those with a valid checksum."""
    cut: bool = False
    """True if an incomplete save follows the complete ones, as after a crash."""
    damage: list[str] = field(default_factory=list)
    """Each damaged line, with the reason."""

    @property
    def problem(self) -> str:
        """Description of what is damaged; empty if nothing is."""
        if not self.damage:
            return "its last line was cut off" if self.cut else ""
        more = len(self.damage) - 1
        return self.damage[0] + (f", and {more} more" if more else "")


def changes(before: Snapshot | None, now: Snapshot, created: str = "") -> list[Record]:
    """Return the records that update a file from ``before`` to ``now``; None is a new file."""
    records: list[Record] = []
    if before is None:
        created = created or time.strftime("%Y-%m-%dT%H:%M:%S%z")
        records.append({"format": FORMAT, "version": VERSION, "created": created})
        before = Snapshot({}, {})
    changed = {n: record for n, record in now.messages.items() if record != before.messages.get(n)}
    records += changed.values()
    # A message that is read becomes the head, so a new head alone needs no state record.
    if now.state != (before.state | {"head": max(changed)} if changed else before.state):
        records.append(now.state)
    return records


def _message_record(message: Message) -> Record:
    """Return the record of a message, without fields that have their default value."""
    record: Record = {
        "number": message.number,
        "parent": message.parent.number if message.parent else 0,
        "role": message.role,
        "text": message.text,
    }
    if message.attachments:
        record["attachments"] = [[item.name, item.text] for item in message.attachments]
    if message.ids is not None:
        record["ids"] = list(message.ids)
    if message.interrupted:
        record["interrupted"] = True
    if message.n_dropped:
        record["dropped"] = message.n_dropped
    return record


def read_records(file: BinaryIO, *, salvage: bool = False) -> Loaded:
    """Read and validate a file of records.

    A file with checksums is read in spite of damaged lines: ``LOST`` stands for the messages that
    cannot be read, and their places in the tree are guessed. With ``salvage`` any file is read so.

    Raises:
        ValueError: if a line is invalid; the message gives its number and the reason.
        OSError: if the file cannot be read.
    """
    loaded = Loaded()
    for save in read_saves(file, salvage=salvage):
        for line in save:
            if problem := _read_line(line, loaded, salvage=salvage):
                loaded.damage.append(f"line {line.number}: {problem}")
            loaded.n_bytes += line.n_bytes
            loaded.n_lines += 1
            loaded.n_sealed += line.is_sealed
    if not loaded.n_bytes:
        why = "nothing of it can be read" if salvage else "it is cut off in its first line"
        raise ValueError(why if file.tell() else "it is empty")
    if loaded.damage and not loaded.conversation.all:
        raise ValueError(loaded.damage[0])
    _check_dropped(loaded)
    loaded.cut = loaded.n_bytes < file.tell()
    return loaded


def _read_line(line: Line, loaded: Loaded, *, salvage: bool) -> str:
    """Apply a line to what was read before it; returns the reason if it is damaged.

    Raises:
        ValueError: if it is invalid, and neither its own nor earlier damage explains that.
    """
    if line.record is None:
        return line.problem
    try:
        _read_record(line.record, line.number, loaded)
    except (TypeError, KeyError, ValueError) as error:
        is_told = type(error) in (ValueError, _OtherVersionError)
        why = error.args[0] if is_told else "it is no record of a message"
        explained = line.problem or (line.number > 1 and (salvage or loaded.damage))
        if explained and not isinstance(error, _OtherVersionError):
            return str(why)
        raise ValueError(f"line {line.number}: {why}") from None
    return line.problem


def _read_record(record: Record, line_number: int, loaded: Loaded) -> None:
    conversation, n_lost = loaded.conversation, len(loaded.damage)
    if line_number == 1:
        _check_header(record)
        loaded.created = str(record.get("created", ""))
    elif "number" in record:
        if n_lost:
            _fill(conversation, _integer(record["number"]) - 1, n_lost)
            _settle_lost_parent(conversation, record)
        _read_message(record, conversation)
    else:
        _fill(conversation, _integer(record["head"]), n_lost)
        _read_state(record, conversation)
        loaded.tag = ModelTag(_text(record["model"]), _text(record["vocabulary"]))


def _fill(conversation: Conversation, up_to: int, n_lost: int) -> None:
    """Put ``LOST`` messages, at most ``n_lost``, in place of those missing up to a number."""
    if up_to - len(conversation.all) > n_lost:
        return
    for _ in range(len(conversation.all), up_to):
        last = conversation.all[-1].role if conversation.all else "assistant"
        message = conversation.add(Message("user", LOST))
        _guess_place(message, "user" if last == "assistant" else "assistant", conversation)


def _guess_place(message: Message, role: Role, conversation: Conversation) -> None:
    """Make a lost message one of ``role``, after the last message that such a one may follow."""
    earlier = reversed(conversation.all[: message.number - 1])
    message.role, message.parent = role, next((m for m in earlier if m.role != role), None)


def _settle_lost_parent(conversation: Conversation, record: Record) -> None:
    """Correct the guessed role of a lost message by that of the first one after it."""
    parent = conversation.find(_integer(record["parent"]))
    if parent is None or parent.text is not LOST or parent.number == 1:
        return
    if parent.role == record["role"] and not conversation.children(parent):
        role: Role = "assistant" if parent.role == "user" else "user"
        _guess_place(parent, role, conversation)


class _OtherVersionError(ValueError):
    """The file is of another version, so this program must not change it."""


def _check_header(record: Record) -> None:
    if record.get("format") != FORMAT:
        raise ValueError("it is not a saved conversation")
    if _integer(record.get("version")) != VERSION:
        raise _OtherVersionError(
            f"it is of version {record['version']}, and this program knows version {VERSION}"
        )


def _read_message(record: Record, conversation: Conversation) -> None:
    number, parent = _integer(record["number"]), _integer(record["parent"])
    role = record["role"]
    before = conversation.find(parent)
    if parent >= number or (parent and before is None):
        raise ValueError(f"its parent is message {parent}, which does not exist")
    if role not in ("user", "assistant"):
        raise ValueError("unknown role")
    expected = "assistant" if before is not None and before.role == "user" else "user"
    if role != expected:
        raise ValueError("user and assistant do not alternate")
    ids = record.get("ids")
    message = Message(
        role,
        _text(record["text"]),
        None if ids is None else tuple(map(_integer, _list(ids))),
        interrupted=record.get("interrupted") is True,
        attachments=tuple(
            Attachment(text, name) for name, text in _pairs(record.get("attachments", []))
        ),
        n_dropped=_integer(record.get("dropped", 0)),
    )
    known = conversation.find(number)
    if known is None and number != len(conversation.all) + 1:
        raise ValueError(f"message {number} is out of order")
    if known is None:
        conversation.head = before
        conversation.add(message)
    elif (known.role, known.parent) != (role, before):
        raise ValueError(f"message {number} moves to another place")
    else:
        known.text, known.ids, known.interrupted = message.text, message.ids, message.interrupted
        known.attachments, known.n_dropped = message.attachments, message.n_dropped
        conversation.head = known


def _read_state(record: Record, conversation: Conversation) -> None:
    head = _integer(record["head"])
    if head > len(conversation.all):
        raise ValueError(f"its head is message {head}, which does not exist")
    conversation.head = conversation.find(head)
    conversation.system = _text(record["system"])
    conversation.examples = tuple(Example(*pair) for pair in _pairs(record["examples"]))


def _check_dropped(loaded: Loaded) -> None:
    """Check that no message drops the turn it belongs to from the context."""
    depths: dict[Message | None, int] = {None: 0}
    for message in loaded.conversation.all:
        depth = depths[message] = depths[message.parent] + 1
        if message.n_dropped > (depth - 1) // 2:
            if not loaded.damage:
                raise ValueError(f"message {message.number} leaves out more turns than it follows")
            message.n_dropped = (depth - 1) // 2


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a list is missing")
    return value


def _pairs(value: object) -> list[tuple[str, str]]:
    pairs = list(map(_list, _list(value)))
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("a pair of texts is missing")
    return [(_text(first), _text(second)) for first, second in pairs]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is missing")
    return without_surrogates(value)


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError("a number is not a whole number from 0")
    return value


def keep_valid_ids(conversation: Conversation, tag: ModelTag, tokenizer: Tokenizer | None) -> bool:
    """Remove the ids of replies that are not valid for this vocabulary and their text.

    The file may come from another vocabulary, or be manipulated.

    Args:
        conversation: the conversation.
        tag: the model that it was held with.
        tokenizer: the vocabulary; None if it is not known, and all are removed.

    Returns:
        True if the conversation was held with this vocabulary.
    """
    same = tokenizer is not None and tag.vocabulary == tokenizer.fingerprint
    for message in conversation.all:
        if not same or (
            message.ids is not None
            and not (tokenizer and _match(message.ids, message.text, tokenizer))
        ):
            message.ids = message.logprobs = None
    return same


def _match(ids: Sequence[int], text: str, tokenizer: Tokenizer) -> bool:
    """True if ``ids`` are tokens that a reply may hold, and decode to its ``text``."""
    control = {
        token_id
        for piece, token_id in tokenizer.control_ids.items()
        if is_chat_token(piece) or not tokenizer.token_bytes(token_id)
    }
    if any(token_id >= tokenizer.vocab_size or token_id in control for token_id in ids):
        return False
    decoder = StreamingDecoder(tokenizer, "strip")
    complete = decoder.decode(ids)
    # The text of a reply interrupted within a character lacks that character.
    return text in (complete, complete + decoder.flush())
