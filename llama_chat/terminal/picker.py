"""A list of which the user picks one: arrow keys choose, typing filters."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.data_structures import Point
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import HSplit, Layout, VSplit, Window
from prompt_toolkit.layout.controls import BufferControl, FormattedTextControl
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.styles import Style

from llama_chat.terminal.raw_input import ESCAPE_S
from llama_chat.terminal.sanitizer import sanitize
from llama_chat.terminal.streams import one_line

_STYLE = Style.from_dict({"chosen": "reverse", "preview": "", "hint": "dim"})

MAX_SHOWN = 10
"""Rows of the list on the screen."""

PREVIEW_LINES = 4

_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class PickerRow:
    """One row of the list."""

    name: str
    """Returned if it is picked."""
    label: str
    """The line that is shown; without line breaks."""

    @property
    def searched(self) -> str:
        """Text in which the words of the filter are looked for."""
        return f"{self.label} {self.name}".casefold()


class _Picker:
    """State of the list: what is typed, what fits, and what is chosen."""

    def __init__(
        self, choices: Sequence[PickerRow], preview: Callable[[str], Sequence[str]]
    ) -> None:
        self._choices = choices
        self.n_choices = len(choices)
        self._preview = cache(preview)  # it is drawn again at every key
        self._chosen = 0
        self.filter = Buffer(multiline=False, on_text_changed=self._reset)

    def _reset(self, buffer: Buffer) -> None:
        self._chosen = 0

    @property
    def fitting(self) -> list[PickerRow]:
        """Choices that contain all words typed, in their labels or names."""
        words = self.filter.text.casefold().split()
        return [c for c in self._choices if all(word in c.searched for word in words)]

    @property
    def chosen(self) -> PickerRow | None:
        """The choice under the cursor; None if nothing fits."""
        fitting = self.fitting
        return fitting[self._chosen] if fitting else None

    def move(self, by: int) -> None:
        """Move the cursor, up to the ends of the list."""
        self._chosen = max(0, min(self._chosen + by, len(self.fitting) - 1))

    @property
    def _first(self) -> int:
        """Index of the first row that is drawn."""
        return max(0, min(self._chosen - MAX_SHOWN // 2, len(self.fitting) - MAX_SHOWN))

    @property
    def cursor(self) -> Point:
        """Place of the chosen row among those drawn, of which a low window shows fewer."""
        return Point(0, self._chosen - self._first)

    def rows(self) -> StyleAndTextTuples:
        """Draw the rows around the cursor."""
        fitting, first = self.fitting, self._first
        drawn: StyleAndTextTuples = []
        for index, choice in enumerate(fitting[first : first + MAX_SHOWN], first):
            style = "class:chosen" if index == self._chosen else ""
            mark = "› " if index == self._chosen else "  "
            drawn.append((style, f"{mark}{sanitize(choice.label)}\n"))
        return drawn or [("class:hint", "  nothing fits\n")]

    def preview(self) -> StyleAndTextTuples:
        """Draw the preview of the chosen row."""
        lines = self._preview(self.chosen.name) if self.chosen else ()
        shown = [sanitize(one_line(line)) for line in lines[:PREVIEW_LINES]]
        return [("class:preview", "\n".join(f"  {line}" for line in shown))]


def pick(
    title: str,
    choices: Sequence[PickerRow],
    preview: Callable[[str], Sequence[str]],
    is_ended: Callable[[], bool] = lambda: False,
) -> str | None:
    """Let the user pick one of ``choices``, and return its name; None if they leave the list.

    Args:
        title: line above the list.
        choices: the rows.
        preview: returns a few lines about the row of a name.
        is_ended: polled; the list is left once it returns true.

    Raises:
        KeyboardInterrupt: if they leave it by Ctrl-C.
    """
    picker = _Picker(choices, preview)
    prompt = FormattedTextControl([("bold", f"{title}: ")])
    rows = FormattedTextControl(picker.rows, get_cursor_position=lambda: picker.cursor)
    body = HSplit(
        [
            VSplit(
                [
                    Window(prompt, width=len(title) + 2, height=1),
                    Window(BufferControl(picker.filter), height=1),
                ]
            ),
            Window(rows, height=Dimension(min=1, max=MAX_SHOWN + 1)),
            Window(FormattedTextControl(picker.preview), height=Dimension(max=PREVIEW_LINES)),
            Window(
                FormattedTextControl(
                    [("class:hint", "Enter picks · ↑ ↓ choose · typing filters · Escape leaves")]
                ),
                height=1,
            ),
        ]
    )
    app: Application[str | None] = Application(
        Layout(body), key_bindings=_keys(picker), style=_STYLE, erase_when_done=True
    )
    app.ttimeoutlen = ESCAPE_S
    app.renderer.cpr_not_supported_callback = None  # it warns

    async def watch() -> None:
        while not is_ended():
            await asyncio.sleep(_POLL_S)
        app.exit()

    def prepare() -> None:
        app.create_background_task(watch())

    with suppress(EOFError):  # the terminal has gone
        return app.run(
            pre_run=prepare,
            handle_sigint=False,
            set_exception_handler=False,
        )
    return None


def _keys(picker: _Picker) -> KeyBindings:
    keys = KeyBindings()

    def moves(by: int, *names: str) -> None:
        for name in names:
            keys.add(name)(lambda event: picker.move(by))

    moves(-1, "up", "c-p")
    moves(1, "down", "c-n", "tab")
    moves(-MAX_SHOWN, "pageup")
    moves(MAX_SHOWN, "pagedown")
    moves(-picker.n_choices, "home")
    moves(picker.n_choices, "end")

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        if picker.chosen is not None:
            event.app.exit(result=picker.chosen.name)

    @keys.add("escape", eager=True)
    @keys.add("c-d")
    def _(event: KeyPressEvent) -> None:
        event.app.exit()

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        event.app.exit(exception=KeyboardInterrupt)

    @keys.add("c-z")
    def _(event: KeyPressEvent) -> None:
        event.app.suspend_to_background()

    return keys
