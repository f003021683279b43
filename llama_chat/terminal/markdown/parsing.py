r"""Parsing of inline Markdown to spans, by markdown-it with six changes.

- A backslash is an escape only before a character that means something in Markdown. Before others
  it stays, as paths and LaTeX need it: ``C:\temp``, ``\{x\}``, ``a \\ b``.
- LaTeX between ``\(`` and ``\)``, or ``\[`` and ``\]``, is kept unchanged.
- Asterisks between letters or digits, as in ``5*4*3``, begin no emphasis, and end only one that as
  many asterisks began, unless the script has no upper case: those that put no blanks between words
  are among them.
- Names such as ``__init__`` and ``__FILE__`` stay.
- An ``https://…`` without brackets around it is a link.
- Addresses are shown as they are written, not percent-encoded.
"""

import re
import string
import unicodedata

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline, emphasis
from markdown_it.rules_inline.state_inline import Delimiter
from markdown_it.token import Token
from rich.style import Style

from llama_chat.terminal.markdown.painting import BOLD, CODE, DIM, ITALIC, STRIKE, UNDERLINE, Span

ESCAPABLE = r"[*_`~#+\-.!|<>&$]"
"""Characters that a backslash escapes."""

MATH = r"\\\(.*?\\\)|\\\[.*?\\\]"
"""LaTeX on one line."""

URL_CHARACTERS = r"A-Za-z0-9\-._~:/?#@!$&'+,;=%"
"""Characters of RFC 3986 without parentheses and ``[]*``, which more likely are Markdown."""

URL = (
    rf"https?://(?:[{URL_CHARACTERS}]|\([{URL_CHARACTERS}]*\))*"
    rf"(?:[A-Za-z0-9\-/#@$+=%]|\([{URL_CHARACTERS}]*\))"
)
"""Bare address: parentheses only in pairs, and no punctuation at its end."""

_ESCAPE = re.compile(rf"({MATH})|\\({ESCAPABLE})|(\\[\\()\[\]])")
_BARE_URL = re.compile(URL)
_NAME = re.compile(r"(?<![A-Za-z0-9_])__(?:[a-z][a-z0-9_]+|[A-Z][A-Z0-9_]+)__(?![A-Za-z0-9_])")
_STYLES = {"em": ITALIC, "strong": BOLD, "s": STRIKE}


def _escape(state: StateInline, silent: bool) -> bool:
    """Inline rule for backslashes: escapes and LaTeX."""
    found = _ESCAPE.match(state.src, state.pos, state.posMax)
    if not found:
        return False
    if not silent:
        # A separate token: as part of the text it could match other rules.
        token = state.push("text_special", "", 0)
        token.content = found[2] or found[0]
    state.pos = found.end()
    return True


def _bare_url(state: StateInline, silent: bool) -> bool:
    """Inline rule for bare addresses, tried at the colon since letters begin no rule."""
    if state.src[state.pos] != ":":
        return False
    scheme = next((s for s in ("https", "http") if state.src.endswith(s, 0, state.pos)), "")
    start = state.pos - len(scheme)
    if not scheme or (start and re.match("[A-Za-z0-9]", state.src[start - 1])):
        return False
    found = _BARE_URL.match(state.src, start, state.posMax)
    if not found or (not silent and (state.level or not state.pending.endswith(scheme))):
        return False
    if not silent:
        state.pending = state.pending.removesuffix(scheme)
        state.push("link_open", "a", 1).attrs = {"href": found[0]}
        state.push("text", "", 0).content = found[0]
        state.push("link_close", "a", -1)
    state.pos = found.end()
    return True


def is_within_word(before: str, after: str) -> bool:
    """True if asterisks between these characters, or none, begin no emphasis."""
    return all(c and unicodedata.category(c) in ("Lu", "Ll", "Lt", "Nd") for c in (before, after))


class _DelimiterInWord(Delimiter):
    """Delimiter within a word, which only closes, and only what a run of its length opened."""


def _emphasis(state: StateInline, silent: bool) -> bool:
    """Inline rule for ``*`` and ``_``, which begin nothing within a word."""
    start, n_before = state.pos, len(state.delimiters)
    if not emphasis.tokenize(state, silent):
        return False
    if is_within_word(state.src[start - 1 : start], state.src[state.pos : state.pos + 1]):
        state.delimiters[n_before:] = [
            _DelimiterInWord(d.marker, d.length, d.token, d.end, open=False, close=d.close)
            for d in state.delimiters[n_before:]
        ]
    return True


def _pairs(state: StateInline) -> None:
    """Rule that pairs delimiters, those of each link on their own."""
    _pair(state.delimiters)
    for meta in state.tokens_meta:
        _pair(meta["delimiters"] if meta and "delimiters" in meta else [])


def _pair(delimiters: list[Delimiter]) -> None:
    """Pair delimiters as https://spec.commonmark.org/0.31.2/#process-emphasis does.

    The time is quadratic in the worst case; a piece of a line has few of them.
    """
    openers: list[int] = []
    run: list[int] = []
    """Indices of the open delimiters before, and in, the run of the current one."""
    last = Delimiter(marker=0, length=0, token=-1, end=-1, open=False, close=False)
    for index, closer in enumerate(delimiters):
        if (closer.marker, closer.token) != (last.marker, last.token + 1):
            openers, run = openers + run, []
        last = closer
        for depth in reversed(range(len(openers) if closer.close else 0)):
            opener = delimiters[openers[depth]]
            if _fit(opener, closer):
                opener.end, opener.close, closer.open = index, False, False
                del openers[depth:]
                break
        if closer.open:
            run.append(index)


def _fit(opener: Delimiter, closer: Delimiter) -> bool:
    """True if two delimiters may be a pair."""
    if opener.marker != closer.marker:
        return False
    if isinstance(closer, _DelimiterInWord):
        return opener.length == closer.length
    lengths = opener.length, closer.length
    return (
        not (opener.close or closer.open)
        or sum(lengths) % 3 != 0
        or all(length % 3 == 0 for length in lengths)
    )


def _name(state: StateInline, silent: bool) -> bool:
    """Inline rule for names between two underscores."""
    found = _NAME.match(state.src, state.pos, state.posMax)
    if not found:
        return False
    if not silent:
        state.push("text_special", "", 0).content = found[0]
    state.pos = found.end()
    return True


def keep_words(parser: MarkdownIt) -> None:
    """Make ``parser`` read products and names as they are written."""
    parser.inline.ruler.at("emphasis", _emphasis)
    parser.inline.ruler.before("emphasis", "name", _name)
    parser.inline.ruler2.at("balance_pairs", _pairs)


class _Parser(MarkdownIt):
    """Parser of inline Markdown only."""

    def __init__(self) -> None:
        super().__init__("zero", {"html": True})
        self.enable(["backticks", "strikethrough", "emphasis", "link", "image"])
        self.enable(["autolink", "html_inline", "entity"])
        keep_words(self)
        self.inline.ruler.before("backticks", "latex_or_escape", _escape)
        self.inline.ruler.before("backticks", "bare_url", _bare_url)

    def normalizeLink(self, url: str) -> str:  # noqa: N802 - the name is markdown-it's
        return url

    def normalizeLinkText(self, link: str) -> str:  # noqa: N802
        return link


PARSER = _Parser()


class Parsed:
    """Parsed piece of a line, with the characters before and after it as context.

    ``*`` and ``_`` open or close depending on their neighbours, so that a piece alone would be
    parsed differently than in its line.
    """

    def __init__(self, before: str, text: str, after: str = "") -> None:
        """Parse ``text`` between ``before`` and ``after``, one character each or none."""
        if after in string.punctuation:
            after = after and ","  # all punctuation acts alike, and a comma begins no markup
        self._n_after = len(after)
        state = StateInline(before + text + after, PARSER, {}, [])
        state.pos = len(before)
        PARSER.inline.tokenize(state)
        for rule in PARSER.inline.ruler2.getRules(""):
            rule(state)
        self._state = state

    @property
    def settled(self) -> bool:
        """True if no open marker in it can be closed by later text."""
        delimiters = self._state.delimiters
        index = 0
        while index < len(delimiters):
            if delimiters[index].end >= 0:
                index = delimiters[index].end  # nothing between the two can match outside
            elif delimiters[index].open:
                return False
            index += 1
        return True

    def spans(self, base: Style) -> list[Span]:
        """Return the text without its markers, styled on top of ``base``."""
        spans = _spans(self._state.tokens, base)
        if self._n_after:
            spans[-1] = spans[-1]._replace(text=spans[-1].text[: -self._n_after])
        return spans


def _spans(tokens: list[Token], base: Style) -> list[Span]:
    spans: list[Span] = []
    styles = [base]
    links: list[tuple[int, Token]] = []
    for token in tokens:
        kind, style = token.type, styles[-1]
        if kind == "code_inline":
            spans.append(_span(token.content, style + CODE, whole=True))
        elif kind == "image":
            inside = _spans(token.children or [], style + UNDERLINE)
            spans += _link(inside, str(token.attrs["src"]), token, style)
        elif kind == "link_open":
            links.append((len(spans), token))
            styles.append(style + UNDERLINE)
        elif kind == "link_close":
            styles.pop()
            start, opening = links.pop()
            inside, spans = spans[start:], spans[:start]
            spans += _link(inside, str(opening.attrs["href"]), opening, styles[-1])
        elif token.nesting > 0:
            styles.append(style + _STYLES[token.tag])
        elif token.nesting < 0:
            styles.pop()
        else:
            spans.append(_span(token.content, style))
    return spans


def _span(text: str, style: Style, *, whole: bool = False) -> Span:
    """Make a one-line span: a line break from an entity becomes a blank, as in HTML."""
    return Span(text.replace("\n", " "), style, whole)


def _link(inside: list[Span], url: str, token: Token, style: Style) -> list[Span]:
    """Format ``text (address "title")``; an address equal to the text is not repeated."""
    text = "".join(span.text for span in inside)
    title = f'"{token.attrs["title"]}"' if "title" in token.attrs else ""
    if not text:
        inside, url = [_span(url, style + UNDERLINE, whole=True)], ""
    elif url in (text, f"mailto:{text}"):
        inside, url = [span._replace(whole=True) for span in inside], ""
    note = [_span(url, style + DIM, whole=True)] if url else []
    if title:
        note.append(_span(f" {title}" if url else title, style + DIM))
    return [*inside, Span(" (", style + DIM), *note, Span(")", style + DIM)] if note else inside
