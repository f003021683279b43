"""Provenance of the characters that a chat template writes.

Only text that is the template's own may become a control token. So a conversation is rendered
twice: as it is, and *masked*, with every character of a message replaced by another for private
use. White space stays, so that trimming works. In the masked text, every other character was
written by the template, however it cut, moved or repeated the messages. As both texts agree
character by character, the same holds for the first.

A template that looks for a word in a message may take another branch if it is masked. Such words
are not masked; wherever they occur in the output they count as the messages', and so do control
tokens within them. If the two texts still differ, all from the first difference to the last counts
as the messages', too.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

_BMP = 0x10000
"""Characters below it have a mask; those above, such as emoji, always count as the messages'."""
_BASE = 0xF0000
"""Distance of a character's mask: plane 15, which is for private use."""
_LEADS = range(0x100000, 0x10FFFE)
"""Masks of the first character of a message that is to be found again: plane 16, likewise."""
_UNKNOWN = "\U0010ffff"
_PERSON = "[\U00010000-\U0010ffff]"
_RUN = re.compile(rf"{_PERSON}+(?:\s+{_PERSON}+)*")
_LEAD = re.compile(f"[{chr(_LEADS[0])}-{chr(_LEADS[-1])}]")
_BLANKS = np.array([code for code in range(0x3001) if chr(code).isspace()], dtype="<u4")

Codes = npt.NDArray[np.uint32]
Words = re.Pattern[str]
Render = Callable[[Sequence[str], Sequence[str]], tuple[str, str | None]]
"""Function that writes a conversation for its contents and for the masked ones; see
``JinjaRenderer.render``."""


@dataclass(frozen=True, slots=True)
class Written:
    """Text that a template rendered, with the positions of the messages."""

    text: str
    messages: Sequence[tuple[int, int, int | None]]
    """Texts from messages: start, end, and the index of the message if it was sought."""

    def own(self) -> list[str]:
        """Return the template's own texts: before, between and after those of messages."""
        ends = [0, *(end for _, end, _ in self.messages)]
        starts = [*(start for start, _, _ in self.messages), len(self.text)]
        return [self.text[end:start] for end, start in zip(ends, starts, strict=True)]


def write(
    render: Render,
    contents: Sequence[str],
    sought: Sequence[bool],
    *,
    words: Sequence[str],
    controls: Iterable[str],
) -> Written:
    """Render a conversation, and find the messages in it.

    Args:
        render: the template.
        contents: the messages, without lone surrogates.
        sought: True for a message to find again as a whole.
        words: the texts that the template looks for in a message.
        controls: the control tokens; one that is a part of such a text is never the template's.
    """
    leads = _unused_leads(contents, sought)
    present = [word for word in words if any(word in content for content in contents)]
    tags = [word for word in present if not word.isalnum()]
    for kept in ([], *filter(None, (tags, present))):
        pattern = _pattern(kept) if kept else None
        text, masked, shown, exact = _attempt(render, contents, leads, pattern)
        if exact:
            break
    if pattern is None:
        return Written(text, _spans(masked, leads, shown))
    runs = re.compile(rf"(?:{pattern.pattern}|\s)+")
    plain = " ".join(run for content in contents for run in runs.findall(content))
    hidden = _pattern([*kept, *(name for name in controls if name in plain)])
    return Written(text, _spans(masked, leads, shown, hidden))


def _pattern(words: Sequence[str]) -> Words:
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def _attempt(
    render: Render, contents: Sequence[str], leads: Sequence[str], words: Words | None
) -> tuple[str, str, list[str], bool]:
    """Render with the contents masked except for ``words``.

    Returns:
        The text, the masked text aligned with it, the masked contents, and True if both texts
        agree.
    """
    shown = [_mask(content, words, lead) for content, lead in zip(contents, leads, strict=True)]
    text, masked = render(contents, shown)
    if masked is None:
        return text, _UNKNOWN * len(text), shown, False
    aligned = _align(text, masked, contents, shown)
    return text, aligned, shown, aligned is masked


def _codes(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


@lru_cache(maxsize=1024)
def _mask(content: str, words: Words | None, lead: str) -> str:
    """Mask a content except for its white space and ``words``, its first character by ``lead``."""
    codes = _codes(content)
    masked = (codes < _BMP) & ~np.isin(codes, _BLANKS)
    for found in words.finditer(content) if words else ():
        masked[found.start() : found.end()] = False
    codes = np.where(masked, codes + _BASE, codes)
    if lead and masked.any():
        codes[masked.argmax()] = ord(lead)
    return codes.tobytes().decode("utf-32-le")


def _unused_leads(contents: Sequence[str], sought: Sequence[bool]) -> list[str]:
    """Return a character that occurs in no content for each one that is sought, else nothing."""
    used = {found for content in contents for found in _LEAD.findall(content)}
    unused = (chr(code) for code in _LEADS if chr(code) not in used)
    return [next(unused, "") if wanted else "" for wanted in sought]


def _align(text: str, masked: str, contents: Sequence[str], shown: Sequence[str]) -> str:
    """Return ``masked`` with the length of ``text``, unknown where the two do not agree."""
    ours, theirs = _codes(text), _codes(masked)
    plain = theirs.copy()
    firsts = {
        mark: content[at]
        for content, masked_content in zip(contents, shown, strict=True)
        for at, mark in ((found.start(), found[0]) for found in _LEAD.finditer(masked_content))
    }
    for at in np.flatnonzero(theirs >= _LEADS[0]):
        mark = chr(theirs[at])
        plain[at] = ord(firsts.get(mark, mark))
    n = min(len(ours), len(theirs))
    n_first = _count_alike(ours[:n], plain[:n])
    if n_first == len(ours) == len(theirs):
        return masked
    n_last = min(_count_alike(ours[::-1][:n], plain[::-1][:n]), n - n_first)
    unknown = _UNKNOWN * (len(ours) - n_first - n_last)
    return masked[:n_first] + unknown + masked[len(masked) - n_last :]


def _count_alike(ours: Codes, plain: Codes) -> int:
    """Count the characters before the first one that differs without being masked."""
    alike = (ours == plain) | (ours + _BASE == plain)
    return len(alike) if alike.all() else int(alike.argmin())


def _spans(
    masked: str, leads: Sequence[str], shown: Sequence[str], words: Words | None = None
) -> list[tuple[int, int, int | None]]:
    """Find the messages in an aligned text; ``words`` are theirs too."""
    found: list[tuple[int, int, int | None]] = []
    for index, lead in enumerate(leads):
        whole = shown[index].strip()
        if lead and lead in whole:
            start = masked.find(lead) - whole.index(lead)
            if start >= 0 and masked.startswith(whole, start):
                found.append((start, start + len(whole), index))
    found.sort()
    if words is not None:
        masked = words.sub(lambda word: _UNKNOWN * len(word[0]), masked)
    edges = [(0, 0), *((start, end) for start, end, _ in found), (len(masked), len(masked))]
    rest = [
        (*run.span(), None)
        for (_, start), (end, _) in pairwise(edges)
        for run in _RUN.finditer(masked, start, end)
    ]
    return sorted([*found, *rest], key=lambda span: span[:2])
