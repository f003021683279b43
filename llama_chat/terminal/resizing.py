"""Redrawing of the input after the window was resized.

Most terminals break lines that have become too long, so that the cursor is further down than the
input knows: it would leave its first rows behind. The rows are counted here.
"""

import asyncio
import os
from typing import Any

from prompt_toolkit.application import Application
from prompt_toolkit.data_structures import Point, Size
from prompt_toolkit.layout.screen import Screen

_PAUSE_S = 0.1
"""Time without another resize after which the input is redrawn."""

_VARIABLES = (
    *("TMUX", "VTE_VERSION", "KITTY_WINDOW_ID", "ALACRITTY_WINDOW_ID", "WEZTERM_PANE"),
    *("KONSOLE_VERSION", "WT_SESSION", "GHOSTTY_RESOURCES_DIR", "ITERM_SESSION_ID"),
)
"""Variables of terminals that break and join lines when they are resized; others cut them."""


_ERASE_DOWN = "\x1b[K\x1b[C\x1b[J\x1b[D"
"""Sequence that erases from the first column of a row to the end of the screen: in the first row
tmux takes a plain one for the end of a page, and keeps a copy of it in the scrollback."""


def redraw_after_resizes(app: Application[Any]) -> None:
    """Redraw ``app`` in place once the window has its new size."""
    drawn: Size | None = None
    timer: asyncio.TimerHandle | None = None

    def on_resize() -> None:
        nonlocal timer
        if timer is not None:
            timer.cancel()
        timer = asyncio.get_running_loop().call_later(_PAUSE_S, app.invalidate)

    def before_render(_: Application[Any]) -> None:
        screen, size = app.renderer.last_rendered_screen, app.output.get_size()
        if screen is None or drawn is None or size == drawn:
            return
        cursor = screen.get_cursor_position(app.layout.current_window)
        if size.columns < drawn.columns and any(name in os.environ for name in _VARIABLES):
            app.output.cursor_up(rows_above(screen, cursor, size.columns) - cursor.y)
        app.renderer.erase(leave_alternate_screen=False)
        app.renderer.request_absolute_cursor_position()

    def after_render(_: Application[Any]) -> None:
        nonlocal drawn
        drawn = app.output.get_size()

    def erase_down() -> None:
        app.output.write_raw(_ERASE_DOWN)

    app.output.erase_down = erase_down  # type: ignore[method-assign]
    app._on_resize = on_resize  # type: ignore[method-assign] # it would redraw at each of them
    app.before_render += before_render
    app.after_render += after_render


def rows_above(screen: Screen, cursor: Point, columns: int) -> int:
    """Count the rows above the cursor once the rows of ``screen`` are broken at ``columns``."""
    above = sum(max(1, -(-_width(screen, y) // columns)) for y in range(cursor.y))
    return above + min(cursor.x, max(_width(screen, cursor.y) - 1, 0)) // columns


def _width(screen: Screen, y: int) -> int:
    row = screen.data_buffer[y]
    return max((x + char.width for x, char in row.items() if char.char != " "), default=0)
