"""Records of a saved conversation, one per line: serialization and validation."""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from llama_chat.chat.conversation import Attachment, Conversation, Example, Message
from llama_chat.documents import MAX_JSON_BYTES, parse_json
from llama_chat.tokenizers.base import Tokenizer, without_surrogates
from llama_chat.tokenizers.streaming import StreamingDecoder
from llama_chat.tokenizers.vocabulary import is_chat_token

FORMAT = "llama-chat conversation"
VERSION = 1

MAX_LINE_BYTES = MAX_JSON_BYTES
"""Longer than any message that fits in a context."""

Record = dict[str, Any]


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


def to_lines(before: Snapshot | None, now: Snapshot) -> list[bytes]:
    """Return the lines that update a file from ``before`` to ``now``; None is a new file.

    Raises:
        ValueError: if a line is longer than ``MAX_LINE_BYTES``.
    """
    records: list[Record] = []
    if before is None:
        created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        records.append({"format": FORMAT, "version": VERSION, "created": created})
        before = Snapshot({}, {})
    changed = {n: record for n, record in now.messages.items() if record != before.messages.get(n)}
    records += changed.values()
    # Reading a message makes it the head, which alone needs no state record.
    if now.state != (before.state | {"head": max(changed)} if changed else before.state):
        records.append(now.state)
    return list(map(_to_line, records))


def _to_line(record: Record) -> bytes:
    """Serialize a record as one line; lone surrogates become U+FFFD, as in a tokenizer."""
    line = without_surrogates(json.dumps(record, ensure_ascii=False)).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"a message is larger than {MAX_LINE_BYTES >> 20} MiB")
    return line


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


def read_records(file: BinaryIO) -> tuple[Conversation, ModelTag, int]:
    """Read and validate a file of records.

    Returns:
        The conversation, the model it was held with, and the bytes of all complete lines. A last
        line without a newline is ignored: a crash may have cut it off.

    Raises:
        ValueError: if a line is invalid; the message gives its number and the reason.
        OSError: if the file cannot be read.
    """
    conversation, tag, n_bytes = Conversation(), ModelTag(), 0
    for number, line in enumerate(_complete_lines(file), 1):
        try:
            record = _parse(line)
            if number == 1:
                _check_header(record)
            elif "number" in record:
                _read_message(record, conversation)
            else:
                _read_state(record, conversation)
                tag = ModelTag(_text(record["model"]), _text(record["vocabulary"]))
        except (TypeError, KeyError, ValueError) as error:
            reason = error.args[0] if type(error) is ValueError else "it is no record of a message"
            raise ValueError(f"line {number}: {reason}") from None
        n_bytes += len(line)
    if not n_bytes:
        raise ValueError("it is cut off in its first line" if file.tell() else "it is empty")
    _check_dropped(conversation)
    return conversation, tag, n_bytes


def _complete_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines that end with a newline; lazily, so that none is read after a bad one."""
    for number in itertools.count(1):
        line = file.readline(MAX_LINE_BYTES)
        if line.endswith(b"\n"):
            yield line
        elif len(line) < MAX_LINE_BYTES:
            return
        else:
            raise ValueError(f"line {number}: it is longer than {MAX_LINE_BYTES >> 20} MiB")


def _parse(line: bytes) -> Record:
    try:
        text = line.decode()  # the parser would guess the encoding of bytes
    except UnicodeDecodeError:
        raise ValueError("it is not JSON") from None
    record = parse_json(text)
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    return record


def _check_header(record: Record) -> None:
    if record.get("format") != FORMAT:
        raise ValueError("it is not a saved conversation")
    if _integer(record.get("version")) != VERSION:
        raise ValueError(
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


def _check_dropped(conversation: Conversation) -> None:
    """Check that no message drops the turn it belongs to from the context."""
    depths: dict[Message | None, int] = {None: 0}
    for message in conversation.all:
        depth = depths[message] = depths[message.parent] + 1
        if message.n_dropped > (depth - 1) // 2:
            raise ValueError(f"message {message.number} leaves out more turns than it follows")


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
