"""The lines of a saved conversation, written and checked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama_chat.chat.conversation import Attachment, Conversation, Message
from llama_chat.chat.prompt_files import Example
from llama_chat.tokenizers.base import Tokenizer, without_surrogates
from llama_chat.tokenizers.streaming import StreamingDecoder

FORMAT = "llama-chat conversation"
VERSION = 1

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelTag:
    """With which model a conversation is held."""

    name: str = ""
    vocabulary: str = ""
    """Fingerprint of its tokenizer: with another, the ids in the file mean nothing."""


def to_line(record: Record) -> bytes:
    """A record as one line."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def message_record(message: Message) -> Record:
    """A message as it is saved, without what is as usual."""
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


def state_record(conversation: Conversation, tag: ModelTag) -> Record:
    """Where a conversation stands, what stands before it, and which model it is held with."""
    return {
        "head": conversation.head.number if conversation.head else 0,
        "system": conversation.system,
        "examples": [[example.user, example.assistant] for example in conversation.examples],
        "model": tag.name,
        "vocabulary": tag.vocabulary,
    }


def from_lines(lines: Sequence[bytes]) -> tuple[Conversation, ModelTag]:
    """Read the lines of a file.

    Raises:
        ValueError: naming the line that is wrong, and why.
    """
    if not lines:
        raise ValueError("it is cut off in its first line")
    header = _parse(lines[0], 1)
    if header.get("format") != FORMAT:
        raise ValueError("line 1: it is not a saved conversation")
    if header.get("version") != VERSION:
        raise ValueError(
            f"line 1: it is of version {str(header.get('version'))[:20]}, and this program knows "
            f"version {VERSION}"
        )
    conversation, tag = Conversation(), ModelTag()
    for number, line in enumerate(lines[1:], 2):
        record = _parse(line, number)
        try:
            if "number" in record:
                _read_message(record, conversation)
            else:
                _read_state(record, conversation)
                tag = ModelTag(_text(record["model"]), _text(record["vocabulary"]))
        except (TypeError, KeyError, ValueError) as error:
            reason = error.args[0] if type(error) is ValueError else "it is no record of a message"
            raise ValueError(f"line {number}: {reason}") from None
    return conversation, tag


def _parse(line: bytes, number: int) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"line {number}: it is not JSON") from None
    if not isinstance(record, dict):
        raise ValueError(f"line {number}: it is not a JSON object")
    return record


def _read_message(record: Record, conversation: Conversation) -> None:
    number, parent = _whole(record["number"]), _whole(record["parent"])
    role = record["role"]
    before = conversation.find(parent)
    if parent >= number or (parent and before is None):
        raise ValueError(f"it stands behind message {parent}, which there is not")
    if role not in ("user", "assistant"):
        raise ValueError("unknown role")
    expected = "assistant" if before is not None and before.role == "user" else "user"
    if role != expected:
        raise ValueError("user and assistant do not alternate")
    ids = record.get("ids")
    message = Message(
        role,
        _text(record["text"]),
        None if ids is None else tuple(map(_whole, ids)),
        interrupted=record.get("interrupted") is True,
        attachments=tuple(
            Attachment(_text(text), _text(name)) for name, text in record.get("attachments", ())
        ),
        n_dropped=_whole(record.get("dropped", 0)),
    )
    if message.n_dropped > number // 2:
        raise ValueError("more turns are left out than there are")
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
    head = _whole(record["head"])
    if head > len(conversation.all):
        raise ValueError(f"it stands at message {head}, which there is not")
    conversation.head = conversation.find(head)
    conversation.system = _text(record["system"])
    conversation.examples = tuple(
        Example(_text(user), _text(assistant)) for user, assistant in record["examples"]
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is missing")
    return without_surrogates(value)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError("a number is not a whole number from 0")
    return value


def keep_valid_ids(conversation: Conversation, tag: ModelTag, tokenizer: Tokenizer) -> bool:
    """Forget the ids of replies that do not mean what the text says.

    They were written with another vocabulary, or by a hostile hand.

    Returns:
        Whether the conversation was held with this vocabulary.
    """
    same = tag.vocabulary == tokenizer.fingerprint
    for message in conversation.all:
        if message.ids is not None and not (same and _mean(message.ids, message.text, tokenizer)):
            message.ids = message.trace = None
    return same


def _mean(ids: Sequence[int], text: str, tokenizer: Tokenizer) -> bool:
    """Whether ``ids`` are ordinary tokens of a reply that reads ``text``."""
    control = set(tokenizer.control_ids.values())
    if any(token_id >= tokenizer.vocab_size or token_id in control for token_id in ids):
        return False
    decoder = StreamingDecoder(tokenizer, "strip")
    return decoder.decode(ids) + decoder.flush() == text
