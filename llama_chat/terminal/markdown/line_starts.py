"""Recognition of the kind of a line by its beginning."""

import re
from collections.abc import Collection
from enum import Enum, auto
from typing import NamedTuple

from markdown_it.common.html_blocks import block_names


class Kind(Enum):
    """Kind of a line, or of a marker after which another kind may begin."""

    QUOTE = auto()
    BULLET = auto()
    NUMBER = auto()
    TASK = auto()
    HEADING = auto()
    UNDERLINE = auto()
    """Line below a heading."""
    RULE = auto()
    FENCE = auto()
    ROW = auto()
    HTML = auto()
    MATH = auto()
    PROSE = auto()


class Start(NamedTuple):
    """Kind of a line, and the match of its marker."""

    kind: Kind
    marker: re.Match[str] | None = None


class _Rule(NamedTuple):
    kind: Kind
    certain: re.Pattern[str]
    """Matches as soon as the line can be of no other kind."""
    possible: re.Pattern[str]
    """Matches all of the text so far, if the line may still be of this kind."""


def _rule(kind: Kind, certain: str, possible: str) -> _Rule:
    return _Rule(kind, re.compile(certain), re.compile(possible))


_NEVER = r"(?!)"

_QUOTE = _rule(Kind.QUOTE, r">(?: (?=[\s\S])|(?=[^ ]))", r"> ?")
_BULLET = _rule(Kind.BULLET, r"[-*+](?:[ \t]+(?=[^ \t\n])|(?=[ \t]*\n))", r"[-*+][ \t]*")
_NUMBER = _rule(
    Kind.NUMBER, r"[0-9]{1,9}[.)](?:[ \t]+(?=[^ \t\n])|(?=[ \t]*\n))", r"[0-9]{1,9}(?:[.)][ \t]*)?"
)
_TASK = _rule(Kind.TASK, r"\[([ xX])\](?=[ \t])", r"\[(?:[ xX]\]?)?")
_HEADING = _rule(Kind.HEADING, r"(#{1,6})[ \t]+(?=[^ \t\n])", r"#{1,6}[ \t]*")
_UNDERLINE = _rule(Kind.UNDERLINE, r"(=|-)\1{2,}[ \t]*\n", r"(=|-)\1*[ \t]*")
_BREAK = _rule(
    Kind.RULE,
    r"(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})\n",
    r"[- \t]+|[* \t]+|[_ \t]+",
)
_FENCE = _rule(
    Kind.FENCE,
    r"(`{3,})([^`\n]*)\n|(~{3,})([^\n]*)\n",
    r"`{1,2}|`{3,}[^`\n]*|~{1,2}|~{3,}[^\n]*",
)
_ROW = _rule(Kind.ROW, r"\|", _NEVER)
_HTML = _rule(
    Kind.HTML,
    rf"<(?:/?(?i:{'|'.join([*block_names, 'pre', 'script', 'style', 'textarea'])})(?=[\s/>])|!|\?)",
    r"</?[A-Za-z0-9]*",
)
_MATH = _rule(Kind.MATH, r"(\\\[|\$\$)[ \t]*\n", r"\\|\$|(?:\\\[|\$\$)[ \t]*")

_RULES = {
    ">": (_QUOTE,),
    "=": (_UNDERLINE,),
    "-": (_UNDERLINE, _BREAK, _BULLET),
    "*": (_BREAK, _BULLET),
    "+": (_BULLET,),
    "_": (_BREAK,),
    "[": (_TASK,),
    "#": (_HEADING,),
    "`": (_FENCE,),
    "~": (_FENCE,),
    "|": (_ROW,),
    "<": (_HTML,),
    "\\": (_MATH,),
    "$": (_MATH,),
    **dict.fromkeys("0123456789", (_NUMBER,)),
}
"""Rules by the first character that is no blank."""


def recognise(text: str, kinds: Collection[Kind]) -> Start | None:
    """Recognise the kind of a line among ``kinds``; prose if it is none of them.

    Args:
        text: the line from its first character that is no blank, with its newline if it is
            complete.
        kinds: the kinds that are possible here.

    Returns:
        None while it is undecided.
    """
    for rule in _RULES.get(text[:1], ()):
        if rule.kind not in kinds:
            continue
        if marker := rule.certain.match(text):
            return Start(rule.kind, marker)
        if rule.possible.fullmatch(text):
            return None
    return Start(Kind.PROSE)


def columns(blanks: str, start: int = 0) -> int:
    """Return the column after ``blanks`` that begin in column ``start``; tab stops are every 4."""
    return len((" " * start + blanks).expandtabs(4))


def without_indent(line: str, width: int) -> str:
    """Remove the blanks in the first ``width`` columns of ``line``; a tab across the edge stays."""
    column = 0
    for index, character in enumerate(line):
        column = columns(character, column)
        if column > width or character not in " \t":
            return line[index:]
    return ""
