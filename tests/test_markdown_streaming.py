"""Markdown that arrives piece by piece: nothing is lost, doubled or unsafe for a terminal."""

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from hypothesis import assume, example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.color import ColorSystem

from llama_chat.terminal.markdown import MarkdownStream, Painter
from llama_chat.terminal.markdown.parsing import keep_words
from llama_chat.terminal.sanitizer import BIDI_CONTROLS
from tests.markdown_output import Styled, cut, formatted, styled, visible

DATA = Path(__file__).parent / "data"
REPLY: list[str] = json.loads((DATA / "markdown_reply.json").read_text())
"""A reply in the pieces of Llama 2's tokenizer."""
SOURCE = "".join(REPLY)

PIECES = [
    *(
        "ab",
        "c1",
        "é",
        "日本",
        "😀",
        "👩\u200d👧",
        "❤\ufe0f",
        "שלום",
        " ",
        "  ",
        ".",
        ",",
        "(",
        ")",
        '"',
        "'",
        "\n",
        "\n\n",
    ),
    *("*", "**", "***", "_", "__", "~~", "`", "``", "[", "]", "](u)", "![pic](v.png)", "<", ">"),
    *(
        "<b>",
        "</div>",
        "<x y='*'>",
        "<https://q.r>",
        "http://s.t/",
        "https",
        "&",
        "\\",
        "\\(",
        "\\)",
    ),
    *("\\[", "\\*", "# ", "- ", "+ ", "1. ", "> ", ">", "|", "| ", "|-|\n", "|:-:|-|\n", "---\n"),
    *("    ", "\t", "```\n", "  ```\n", "~~~\n", "$$\n", "\r\n", "\r", "[ ] ", "[x] ", "<div>\n"),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
LINES = st.lists(
    st.sampled_from([piece for piece in PIECES if not set(piece) & set("\n\r\\:|\t")]), max_size=30
).map("".join)
PLACES = st.lists(st.integers(0, 400), max_size=30)


@given(TEXTS | st.text(), PLACES)
@example(SOURCE, range(0, len(SOURCE), 3))
@example(SOURCE, range(len(SOURCE)))
@example("a\rb\r\nc\r", [2, 4])
@example("👨\u200d👩\u200d👧\n---\n", range(6))
def test_cuts_between_pieces_change_nothing(text: str, places: list[int]) -> None:
    pieces = cut(text, places)
    assert formatted(pieces) == formatted(text)
    assert styled(formatted(pieces, color=True)) == styled(formatted(text, color=True))
    assert visible(styled(formatted(text, color=True))) == formatted(text)


@given(LINES)
@example("_a*b_c* **d")
@example("**a*b**c* `d** e")
@example("a*b** c")
@example("*a __ab__ b* 1*2*3*")
@example("**2*3*4 = 24** *a* **b*c**d*")
def test_a_line_is_read_as_markdown_it_reads_it(line: str) -> None:
    """The line also arrives character by character, so that each is read without the next."""
    line = "x " + line[:280]
    assert styled(formatted(line, color=True)) == styled_by_markdown_it(line)
    assert styled(formatted(list(line), color=True)) == styled_by_markdown_it(line)


@given(LINES)
@example("*.**.*, **.***")
def test_a_line_without_words_is_read_as_markdown_it_alone_reads_it(line: str) -> None:
    """Only letters and digits beside markers make a difference to what the specification says."""
    line = re.sub(r"(?<=\]\()[a-z.]+", ";", line[:280])  # addresses that stay as they are
    line = re.sub("[a-z0-9é]+", "日", line)
    assert styled(formatted("日 " + line, color=True)) == styled_by_markdown_it(
        "日 " + line, words=False
    )


def styled_by_markdown_it(line: str, *, words: bool = True) -> Styled:
    """Parse a paragraph of one line with markdown-it, and give it the documented styles.

    Args:
        line: the line.
        words: whether asterisks within words are read as ours are.
    """
    parser = MarkdownIt("commonmark").enable("strikethrough")
    if words:
        keep_words(parser)
    return list(_styled_tokens(parser.parse(line)[1].children or [], frozenset()))


_TAGS = {"em": "italic", "strong": "bold", "s": "strike", "a": "underline"}


def _styled_tokens(
    tokens: list[Token], outer: frozenset[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    styles = [outer]
    label, address = "", ""
    for token in tokens:
        style = styles[-1]
        if token.type == "image":
            yield from ((c, style | {"underline"}) for c in token.content)
            yield from ((c, style | {"dim"}) for c in f" ({token.attrs['src']})")
            label += f"{token.content} ({token.attrs['src']})"
        elif token.nesting > 0:
            styles.append(style | {_TAGS[token.tag]})
            if token.tag == "a":
                label, address = "", str(token.attrs["href"])
        elif token.nesting < 0:
            styles.pop()
            if token.tag == "a" and not label:
                yield from ((c, style) for c in address)
            elif token.tag == "a" and label != address:
                yield from ((c, styles[-1] | {"dim"}) for c in f" ({address})")
        else:
            label += token.content
            code = {"cyan"} if token.type == "code_inline" else frozenset()
            yield from ((c, style | code) for c in token.content)


@given(TEXTS)
def test_no_letter_is_lost_or_doubled(text: str) -> None:
    # The text after an opening fence is dropped, and so is the x of a task.
    assume(not re.search(r"(```|~~~).*\w", text))
    text = text.replace("[x]", "[ ]")
    output = formatted(text, width=10**6)
    assert [c for c in output if c.isalnum()] == [c for c in text if c.isalnum()]


HOSTILE = st.lists(
    st.sampled_from(
        [
            *(
                "\x1b",
                "]52;c;eA==\x07",
                "[31m",
                "[2J",
                "\x9b31m",
                "\x9d0;x\x9c",
                "\x7f",
                "\x08",
                "\r",
            ),
            *("&#27;[2J", "&#x1b;", "&#x9b;", "&#x202e;", "&#x0a;", "&NewLine;", "&Tab;", "\u202e"),
            *("\ud83d", "\ude00", "&#xd800;", "<a href='\x1b'>", "](\x1b)", "](&#27;)", "\\\x1b"),
            *PIECES,
        ]
    ),
    max_size=30,
).map("".join)


@given(HOSTILE | st.text(), PLACES, st.integers(-1, 100))
def test_only_styles_reach_the_terminal_and_every_piece_ends_them(
    text: str, places: list[int], width: int
) -> None:
    stream = MarkdownStream(Painter(ColorSystem.STANDARD), lambda: width)
    for output in [*map(stream.push, cut(text, places)), stream.finish()]:
        for character in visible(styled(output)):
            assert character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
            assert character not in BIDI_CONTROLS
        output.encode()


def test_the_recorded_reply_is_what_was_checked_by_eye() -> None:
    assert formatted(REPLY, width=80) + "\n" == (DATA / "markdown_reply.txt").read_text()


def test_the_words_of_the_reply_are_those_markdown_it_finds() -> None:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"]).disable("reference")
    tokens = parser.parse(SOURCE)
    words = re.findall(r"[^\W_]+", " ".join(_texts(tokens)))
    assert re.findall(r"[^\W_]+", formatted(REPLY, width=10**6)) == words


def test_the_code_of_the_reply_is_that_which_markdown_it_finds() -> None:
    output = formatted(REPLY).replace("\n│ ", "\n")
    fences = [token for token in MarkdownIt().parse(SOURCE) if token.type == "fence"]
    shown = re.findall(r"^( *)┌─ ?(.*)\n([\s\S]*?)^\1└─$", output, re.M)
    assert len(fences) == len(shown) == 14
    for fence, (indentation, language, code) in zip(fences, shown, strict=True):
        assert re.sub(f"^{indentation}", "", code, flags=re.M) == fence.content
        assert language == fence.info


OWN_TEXT = "https://example.org"
"""Address in the reply that is the text of its link too, and so is shown once."""


def _texts(tokens: list[Token]) -> Iterator[str]:
    """Yield the texts of tokens, with the addresses and titles of links and images."""
    links: list[Token] = []
    for token in tokens:
        if token.type == "inline":
            yield " ".join(_texts(token.children or [])).replace("[x]", "")
        elif token.type == "list_item_open":
            yield token.info
        elif token.type == "fence":
            yield f"{token.info}\n{token.content}"
        elif token.type == "link_open":
            links.append(token)
        elif token.type == "link_close":
            link = links.pop()
            if link.info != "auto" and link.attrs["href"] != OWN_TEXT:
                yield f"{link.attrs['href']} {link.attrs.get('title', '')}"
        elif token.type == "image":
            yield from (token.content, str(token.attrs["src"]))
        elif token.type == "softbreak":
            yield "\n"
        else:
            yield token.content
