"""Every writer keeps control characters in, and lets the languages of the world through."""

from collections.abc import Iterator
from random import Random

import pytest

from harness.campaigns.streams import WRITERS, let_through, make_stream, split, written_by

LANGUAGES = """\
Français : « Voilà l'œuvre », naïve café. Türkçe: İstanbul'da ılık. Tiếng Việt: Nguyễn, đường.
Русский: съешь ещё этих мягких французских булок. Ελληνικά: ξεσκεπάζω την ψυχοφθόρα.
日本語の文章、カタカナとひらがな。中文：天地玄黄，宇宙洪荒。한국어: 다람쥐 헌 쳇바퀴에.
עברית: דג סקרן שט בים. العربية: نصٌّ عربيٌّ مُشَكَّل. فارسی: می\u200cخواهم.
हिन्दी: ऋषियों को सताने वाले. தமிழ்: யாதும் ஊரே. ไทย: เป็นมนุษย์สุดประเสริฐ. ქართული: ვეპხის.
አማርኛ: ሰላም። བོད་སྐད། မြန်မာ. ខ្មែរ. 𐌲𐌿𐍄. 𒀭. 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ∀x∈ℝ: ⌈x⌉ = −⌊−x⌋.
e\u0301 a\u0308\u0323 Z\u0351\u036b\u0343 👩🏽‍💻 👨‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇯🇵 ❤️ 1️⃣ \u00ad\u2060\u3000.
"""
"""Scripts, combining marks, joiners and emoji; no line has a meaning in Markdown."""


def pieces_of(text: str) -> Iterator[list[str]]:
    yield [text]
    yield split(text.encode())


@pytest.mark.parametrize("name", WRITERS)
def test_no_control_character_comes_out(name: str) -> None:
    random, writer = Random(1), WRITERS[name]
    for number in range(40 if writer.every == 1 else 3):
        stream = make_stream(random)
        assert not let_through(writer, split(stream)), stream
        for at in range(len(stream) if number < 2 else 0):
            halves = [stream[:at].decode(errors="replace"), stream[at:].decode(errors="replace")]
            assert not let_through(writer, halves), (stream, at)


def test_languages_come_out_unchanged() -> None:
    for name in ("an answer on a terminal", "an answer in a pipe", "a plain reply"):
        for pieces in pieces_of(LANGUAGES):
            assert written_by(WRITERS[name], pieces) == LANGUAGES
    for name in ("a reply in Markdown", "a reply in colours"):
        for pieces in pieces_of(LANGUAGES):
            written = WRITERS[name].own.sub("", written_by(WRITERS[name], pieces))
            assert "".join(written.split()) == "──model" + "".join(LANGUAGES.split())  # wrapped
    for name in ("lines on a terminal", "lines in a pipe"):
        assert LANGUAGES.splitlines()[2] in written_by(WRITERS[name], [LANGUAGES])
    assert LANGUAGES.splitlines()[2] in written_by(WRITERS["JSON"], [LANGUAGES])


def test_direction_marks_are_data_in_a_pipe_alone() -> None:
    text = "\u200fעברית\u200e \u061c\n"
    assert written_by(WRITERS["an answer in a pipe"], [text]) == text
    assert written_by(WRITERS["a plain reply"], [text]) == "\ufffdעברית\ufffd \ufffd\n"
