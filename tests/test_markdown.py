"""Markdown as it is shown on the terminal."""

import pytest

from llama_chat.terminal.markdown.highlighting import LANGUAGES
from tests.markdown_output import formatted, having, styled, visible

SHOWN = {
    # Inline
    "emphasis": ("a *b* _c_ **d** __e f__ ***f*** ~~g~~ h", "a b c d e f f g h"),
    "emphasis in emphasis": ("**a *b* c** *d **e** f*", "a b c d e f"),
    "emphasis at the end of a word": ("**C**ascading *un*do", "Cascading undo"),
    "no emphasis in a word": (
        "5*4*3*2*1 a*b*c 2**3**4 x_1*x_2*x_3 é*ü*ß *5*4",
        "5*4*3*2*1 a*b*c 2**3**4 x_1*x_2*x_3 é*ü*ß 54",
    ),
    "products in emphasis": (
        "So **2*3*4 = 24** is right, and **f(x)=2*x** too. *2**3* ***a*b*** **x *y* z**s",
        "So 2*3*4 = 24 is right, and f(x)=2*x too. 2**3 a*b x y zs",
    ),
    "emphasis in scripts without case": ("مع**كتاب**ك ผม**ชอบ**กิน", "معكتابك ผมชอบกิน"),
    "names between underscores": (
        "__init__ (__main__) a.__class__.__name__ __init__.py __FILE__ *__x1__* __a__ __Note__",
        "__init__ (__main__) a.__class__.__name__ __init__.py __FILE__ __x1__ a Note",
    ),
    "emphasis beside CJK": ("水温**很**重要", "水温很重要"),
    "code": ("use `a*b*c` or ``a`b`` or `` ` ``", "use a*b*c or a`b or `"),
    "code wins over emphasis": ("*a `b* c` d*", "a b* c d"),
    "link": ("see [the *text*](http://u/v_w_x).", "see the text (http://u/v_w_x)."),
    "link with a title": ('[a](u "t") [b](<u v>)', 'a (u "t") b (u v)'),
    "link that is its own text": ("[http://u](http://u) [a@b.c](mailto:a@b.c)", "http://u a@b.c"),
    "link without a text or an address": ("[](u) [a]()", "u a"),
    "link around code and brackets": ("[`a]` [b]](u)", "a] [b] (u)"),
    "link in emphasis": ("**[a](u)**, *b*", "a (u), b"),
    "image": ("![alt *text*](i.png) ![](j.png)", "alt text (i.png) j.png"),
    "image in a link": ("[![a](i)](u)", "a (i) (u)"),
    "address in angle brackets": ("<https://a.b/?c=d&e> <a@b.c>", "https://a.b/?c=d&e a@b.c"),
    "bare address": ("(https://a.b/c_d_e?f=*g*)", "(https://a.b/c_d_e?f=g)"),
    "escapes": (r"\*a\* \_b\_ \`c\` 1\. \# \| \<d>", "*a* _b_ `c` 1. # | <d>"),
    "entities": ("a&nbsp;b &lt;i&gt; &amp;amp; &copy; &#65;", "a\xa0b <i> &amp; © A"),
    "entity of a newline": ("# a&#10;b &NewLine;", "a b  "),
    "blanks at the end": ("a  \nb \t\n", "a\nb\n"),
    # Not Markdown
    "names": ("a_b_c snake_case_x 5 * 3 * 2 2**10", "a_b_c snake_case_x 5 * 3 * 2 2**10"),
    "paths": (r"C:\temp\new \\server\share", r"C:\temp\new \\server\share"),
    "LaTeX": (
        r"\( x_1*y*z \) \[ a\\b*c* \] $a_1$ \{a\}",
        r"\( x_1*y*z \) \[ a\\b*c* \] $a_1$ \{a\}",
    ),
    "tags": (
        'a <div> b </p> <i c="*d*"> &unknown; AT&T',
        'a <div> b </p> <i c="*d*"> &unknown; AT&T',
    ),
    "unclosed markers": ("*a\n**b\n`c\n[d](e\n<f\n~~g\n", "*a\n**b\n`c\n[d](e\n<f\n~~g\n"),
    "closing markers alone": ("a* b_ c~~ d] e)", "a* b_ c~~ d] e)"),
    "brackets": ("a[0][1] [0, 1) f(x)", "a[0][1] [0, 1) f(x)"),
    "reference link": ("[a][1]\n\n[1]: http://u", "[a][1]\n\n[1]: http://u"),
    "script link": ("[a](javascript:b)", "[a](javascript:b)"),
    "emphasis over lines": ("*a\nb*", "*a\nb*"),
    # Headings and rules
    "headings": ("# a\n###### b ##\n####### c\n#d\n", "a\nb\n####### c\n#d\n"),
    "heading with hashes": ("# C# and F# #\n# # a\n#\n", "C# and F#\n# a\n#\n"),
    "headings above a line": (
        "*Tea* time\n===\na\nb: 茶\n-----\n\n  c\n  ---  \n> d\n> ===\n- e\n  ===\n",
        "Tea time\n════════\na\nb: 茶\n─────\n\n  c\n  ─\n│ d\n│ ═\n• e\n  ═\n",
    ),
    "no headings above a line": (
        "a\n==\n\n===\n- b\n---\na\n    ---\n# c\n===\n",
        "a\n==\n\n===\n• b\n────────\na\n    ---\nc\n===\n",
    ),
    "rules": ("***\n- - -\n______________\n", "────────\n────────\n────────\n"),
    "no rules": ("**\n-- \n---a\n", "**\n--\n---a\n"),
    # Lists
    "bullets": ("- a\n* b\n+ c\n-d\n", "• a\n• b\n• c\n-d\n"),
    "nested bullets": ("- a\n  - b\n\t- c\n- - d\n", "• a\n  • b\n\t• c\n• • d\n"),
    "numbers": (
        "1. a\n7) b\n  10. c\n1234567890. d\n2.5 e",
        "1. a\n7) b\n  10. c\n1234567890. d\n2.5 e",
    ),
    "tasks": (
        "- [ ] a\n1. [x] b\n* [X] c\n- [y] d\n- [x]e",
        "• ☐ a\n1. ☑ b\n• ☑ c\n• [y] d\n• [x]e",
    ),
    "empty items": ("-\n- a\n1.\n", "•\n• a\n1.\n"),
    "no items in a paragraph": ("a\n-\n+ \n1.\n", "a\n-\n+\n1.\n"),
    "emphasis at the beginning": ("*a* b\n**c**\n- *d*\n* *e*\n", "a b\nc\n• d\n• e\n"),
    "paragraphs in a list": ("- a\n\n  b *c*\n\n      d *e*\n", "• a\n\n  b c\n\n      d e\n"),
    "heading in a list": ("1. ## a\n", "1. a\n"),
    # Quotes
    "quotes": ("> a *b*\n>c\n>\n> d\n", "│ a b\n│ c\n│\n│ d\n"),
    "nested quotes": ("> a\n> > b\n>>c\n", "│ a\n│ │ b\n│ │ c\n"),
    "list in a quote": ("> - a\n>   - b\n> 1. c\n", "│ • a\n│   • b\n│ 1. c\n"),
    "quote in a list": ("- > a\n  > b\n", "• │ a\n  │ b\n"),
    "quote with code": ("> ```\n> a\n>   *b*\n> ```\nc\n", "│ ┌─\n│ a\n│   *b*\n│ └─\nc\n"),
    "quote that ends its code": ("> ```\n> a\nb *c*\n", "│ ┌─\n│ a\n│ └─\nb c\n"),
    # Code
    "fence": ("a\n```\n*b*\n\n\n  # c\n```\nd\n", "a\n┌─\n*b*\n\n\n  # c\n└─\nd\n"),
    "tilde fence": ("~~~ py `x`\n```\na\n~~~~\nb", "┌─ py\n```\na\n└─\nb"),
    "fence with a longer one inside": (
        "````\n```\na\n```\n````\nb",
        "┌─\n```\na\n```\n└─\nb",
    ),
    "fence with a shorter end": (
        "```\na\n``\n``` b\n```\nc",
        "┌─\na\n``\n``` b\n└─\nc",
    ),
    "fences that are indented": (
        "  ```\n  a\n     ```\n```\n    ```\n```\n",
        "┌─\na\n└─\n┌─\n    ```\n└─\n",
    ),
    "unclosed fence": ("```py\na\n  b", "┌─ py\na\n  b\n└─"),
    "unclosed fence in a quote": ("> ```\n> a\n", "│ ┌─\n│ a\n│ └─\n"),
    "languages": (
        "```C++ title=x\n```\n``` {.py}\n```\n```" + "x" * 30 + "\n```\n",
        "┌─ C++\n└─\n┌─ .py\n└─\n┌─ " + "x" * 20 + "\n└─\n",
    ),
    "empty fence": ("a\n\n```\n```\n\nb", "a\n\n┌─\n└─\n\nb"),
    "fence without an end at the end": ("a\n```", "a\n┌─\n└─"),
    "code on a line of three backticks": ("```a` b``` c\n", "a` b c\n"),
    "fence in a list": (
        "- a\n  ```py\n  b\n    c\n\n\td\n  ```\n- e\n",
        "• a\n  ┌─ py\n  b\n    c\n\n  \td\n  └─\n• e\n",
    ),
    "fence in a list in a quote": (
        "> 1. a\n>    ```\n>    b\n>    ```\n> - ```\n>   c\n",
        "│ 1. a\n│    ┌─\n│    b\n│    └─\n│ •\n│   ┌─\n│   c\n│   └─\n",
    ),
    "fence in a nested list": (
        "- a\n  - b\n    ```\n    c\n      d\n    ```\n  ```\n  e\n  ```\n",
        "• a\n  • b\n    ┌─\n    c\n      d\n    └─\n  ┌─\n  e\n  └─\n",
    ),
    "fence after a bullet": ("- ```\n  a\n  ```\n  b\n", "•\n  ┌─\n  a\n  └─\n  b\n"),
    "fence indented less than its code": (
        "1. a\n   ```\nb:\n    c\n```\n",
        "1. a\n   ┌─\nb:\n    c\n└─\n",
    ),
    "indented code": ("    *a*\n\n\n\t`b`\n\nc *d*\n", "    *a*\n\n\n\t`b`\n\nc d\n"),
    "indented code in a quote": (
        "a\n\n\n\n>     *a*\n>\n>     `b`\n",
        "a\n\n│     *a*\n│\n│     `b`\n",
    ),
    "indented code in a later quote": ("> - a\n\n>     *b*\n", "│ • a\n\n│     *b*\n"),
    "indented lines of a paragraph": ("a\n    *b*\n    # c\n", "a\n    b\n    # c\n"),
    # HTML and LaTeX
    "HTML": ("<div class='a'>*b*\n*c*\n\n*d*\n", "<div class='a'>*b*\n*c*\n\nd\n"),
    "comment": ("<!-- *a*\n# b -->\n\n# c\n", "<!-- *a*\n# b -->\n\nc\n"),
    "inline tag first": ("<b>*a*</b>\n<https://u>\n< *c*\n", "<b>a</b>\nhttps://u\n< c\n"),
    "LaTeX over lines": ("\\[\n# a_1 \\\\ *b*\n\\]\n*c*\n", "\\[\n# a_1 \\\\ *b*\n\\]\nc\n"),
    "LaTeX between dollars": ("$$\n*a*\n$$\n*b*", "$$\n*a*\n$$\nb"),
    # Lines
    "empty lines": ("a\n\n\n \n\nb\n", "a\n\nb\n"),
    "other line ends": ("# a\r\n\r\n- *b*\r\n", "a\n\n• b\n"),
    "tabs": ("a\tb\n```\n\tc\td\t\n```\n", "a\tb\n┌─\n\tc\td\t\n└─\n"),
    "right to left": ("- **שלום** עולם\n- مرحبا *بك*\n", "• שלום עולם\n• مرحبا بك\n"),
}


@pytest.mark.parametrize(("source", "shown"), SHOWN.values(), ids=SHOWN.keys())
def test_shown(source: str, shown: str) -> None:
    assert formatted(source) == shown


STYLES = {
    "emphasis": ("a *b* _c_", "italic", ["b", "c"]),
    "strong": ("a **b *c*** d", "bold", ["b c"]),
    "both": ("a **b *c*** d", "italic", ["c"]),
    "strike": ("a ~~b~~ c", "strike", ["b"]),
    "code": ("a `*b*` c", "cyan", ["*b*"]),
    "code in strong": ("**a `b`**", "bold", ["a b"]),
    "text of a link": ("a [b](u) <http://c> http://d.", "underline", ["b", "http://c", "http://d"]),
    "address of a link": ('a [b](u "t") c', "dim", [' (u "t")']),
    "strong link": ("**[a](u)**", "bold", ["a (u)"]),
    "heading": ("# a *b*\nc", "bold", ["a b"]),
    "emphasis in a heading": ("## a *b*", "italic", ["b"]),
    "colour of a heading": ("# a\n## b\n### c", "magenta", ["a"]),
    "bar of a quote": ("> a\n> > b", "dim", ["│ ", "│ │ "]),
    "rule": ("---", "dim", ["────────"]),
    "header of a table": ("|a|b|\n|-|-|\n|*c*|d|", "bold", ["a", "b"]),
    "rule of a table": ("|a|b|\n|-|-|\n|*c*|d|", "dim", ["─", "─"]),
    "cell of a table": ("|a|b|\n|-|-|\n|*c*|d|", "italic", ["c"]),
    "unclosed markers": ("a **b", "bold", []),
    "a name": ("a snake_case_name", "italic", []),
    "keywords": ("```python\ndef f(): return 1\n```\ndef", "magenta", ["def", "return"]),
    "numbers": ("```python\ndef f(): return 1\n```\n1", "cyan", ["1"]),
    "a name with more beside it": (
        "```{.Python title=x}\n```\n```Python,a\nif x:\n```",
        "magenta",
        ["if"],
    ),
    "functions": ("```python\ndef f(): return 1\n```\nf", "bright blue", ["f"]),
    "a string over lines": ('```py\nx = """a\nif b"""\nc\n```', "green", ['"""a', 'if b"""']),
    "a comment over lines": (
        "```js\n/* a\n * if (b)\n */\nc\n```",
        "dim",
        ["┌─ js", "/* a", " * if (b)", " */", "└─"],
    ),
    "an unclosed comment": ("```html\n<!-- a\n <b>", "dim", ["┌─ html", "<!-- a", " <b>", "└─"]),
    "additions": ("```diff\n+a\n-b\n```\n+ c", "green", ["+a"]),
    "PHP without its tag": ("```php\nif ($a) { b(); }\n```", "magenta", ["if"]),
    "an unknown language": ("```teascript\nif x\n```", "magenta", []),
    "no language": ("```\nif x\n```", "magenta", []),
}


@pytest.mark.parametrize(("source", "style", "runs"), STYLES.values(), ids=STYLES.keys())
def test_styles(source: str, style: str, runs: list[str]) -> None:
    assert having(source, style) == runs


def test_a_long_string_keeps_its_colour_until_it_is_too_long() -> None:
    lines = [f"if {number}" for number in range(400)]
    green = having("\n".join(["```python", 'x = """', *lines, '"""', "if y:", "```"]), "green")
    assert green[1:60] == lines[:59]
    assert len(green) < 300


def test_colours_never_change_code() -> None:
    """Odd lines, in every language that has colours."""
    lines = [
        "if a:\t ",
        "",
        '"""',
        "'",
        "/* <!-- {{ ${ #",
        "\\",
        "<a b='c'>é日本</a>",
        "<?php $x",
        "  }",
    ]
    for language in sorted(LANGUAGES):
        source = "\n".join([f"~~~~{language}", *lines, *reversed(lines), "~~~~", ""])
        assert visible(styled(formatted(source, color=True))) == "\n".join(
            [f"┌─ {language}", *lines, *reversed(lines), "└─", ""]
        )
