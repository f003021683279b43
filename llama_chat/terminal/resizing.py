"""Redrawing of the input after the window was resized.

Most terminals break lines that have become too long, so that the cursor is further down than the
input knows: it would leave its first rows behind. The rows are counted here.
"""

import asyncio
import os
import time
from typing import Any

from prompt_toolkit.application import Application
from prompt_toolkit.data_structures import Point, Size
from prompt_toolkit.layout.screen import Screen

from llama_chat.terminal.row_breaks import end_of

_PAUSE_S = 0.35
"""Time without another resize after which the input is redrawn. tmux breaks its lines at once, and
tells the new size only up to 0.25 s later: what is drawn in between is misplaced."""

_POLL_S = 0.05

_VARIABLES = (
    *("TMUX", "VTE_VERSION", "KITTY_WINDOW_ID", "ALACRITTY_WINDOW_ID", "WEZTERM_PANE"),
    *("KONSOLE_VERSION", "WT_SESSION", "GHOSTTY_RESOURCES_DIR", "ITERM_SESSION_ID"),
)
"""Variables of terminals that break and join lines when they are resized; others cut them."""


_ERASE_DOWN = "\x1b[K\x1b[C\x1b[J\x1b[D"
"""Sequence that erases from the first column of a row to the end of the screen: in the first row
tmux takes a plain one for the end of a page, and keeps a copy of it in the scrollback."""


class Resizes:
    """Redrawing of an application in place, once the window has its new size."""

    def __init__(self, app: Application[Any]) -> None:
        self._app = app
        self._drawn: Size | None = None
        """Size of the window that the last drawing was made for."""
        self._drawing: Size | None = None
        """Size that the drawing in progress is made for: the window may change meanwhile."""
        self._resized_at = -_PAUSE_S
        self._timer: asyncio.TimerHandle | None = None
        self._draw, self._erase = app._redraw, app.renderer.erase
        app._redraw = self._redraw  # type: ignore[method-assign]
        app.renderer.erase = self._erase_settled  # type: ignore[method-assign]
        app._on_resize = self._on_resize  # type: ignore[method-assign] # it would redraw at each
        self._get_size = app.output.get_size
        self._noticed = self._size()
        """Size of the window that was seen last: a resize is waited for only once."""
        app.output.get_size = lambda: self._drawing or self._size()  # type: ignore[method-assign]
        app.output.erase_down = self._erase_down  # type: ignore[method-assign]
        # The toolbar is right below the input, and not at the end of the window: what is drawn for
        # a size that the window no longer has can then hardly scroll it. So there is no need to ask
        # the terminal for the row of the cursor, either.
        app.output.get_rows_below_cursor_position = lambda: 1  # type: ignore[method-assign]
        app.before_render += self._before_render

    def _size(self) -> Size:
        """Return the size of the window; that of the last drawing once the terminal has gone.

        prompt-toolkit assumes 80 columns then: a resize, for which the end would wait.
        """
        try:
            os.get_terminal_size(self._app.output.fileno())
        except OSError:
            return self._drawn or self._get_size()
        return self._get_size()

    def settle(self) -> None:
        """Wait until the size no longer changes."""
        while True:
            size = self._size()  # also while a drawing is made for an earlier one
            if size != self._noticed:
                self._resized_at = time.monotonic()
            self._noticed = size
            if self._is_settled():
                return
            time.sleep(_POLL_S)

    def _is_settled(self) -> bool:
        return time.monotonic() >= self._resized_at + _PAUSE_S

    def _redraw(self, render_as_done: bool = False) -> None:
        if render_as_done:  # it stays on the screen
            self.settle()
        if not self._is_settled():
            return
        self._drawing = self._size()
        try:
            self._draw(render_as_done)
        finally:
            self._drawn, self._drawing = self._drawing, None

    def _on_resize(self) -> None:
        self._resized_at, self._noticed = time.monotonic(), self._size()
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_PAUSE_S, self._app.invalidate)

    def _before_render(self, app: Application[Any]) -> None:
        if self._misplaced() is not None:
            app.renderer.erase(leave_alternate_screen=False)
            app.renderer.request_absolute_cursor_position()

    def _erase_settled(self, leave_alternate_screen: bool = True) -> None:
        """Erase what is drawn, where it is by now: for a new drawing, a stop, an editor, a note."""
        self.settle()
        if self._drawing is not None:
            self._drawing = self._noticed  # not the size from before the wait
        if (misplaced := self._misplaced()) is not None:
            self._find_first_row(*misplaced)
        self._erase(leave_alternate_screen)

    def _misplaced(self) -> tuple[Screen, int] | None:
        """Return what is drawn, and for how many columns, if the window has another size by now."""
        drawn, screen = self._drawn, self._app.renderer.last_rendered_screen
        if screen is None or drawn is None or drawn == self._app.output.get_size():
            return None
        return screen, drawn.columns

    def _find_first_row(self, screen: Screen, drawn_columns: int) -> None:
        """Move the cursor up by the rows that were added above it when the terminal broke rows."""
        output, columns = self._app.output, self._app.output.get_size().columns
        if columns >= drawn_columns or not any(name in os.environ for name in _VARIABLES):
            return
        cursor = screen.get_cursor_position(self._app.layout.current_window)
        rows = rows_above(screen, cursor, columns)
        if "TMUX" in os.environ and is_at_margin(screen, cursor, columns):
            # From the margin a blank goes into the next row: so the row is known.
            output.write_raw(" ")
            rows += 1
        output.cursor_up(rows - cursor.y)

    def _erase_down(self) -> None:
        self._app.output.write_raw(_ERASE_DOWN)


def rows_above(screen: Screen, cursor: Point, columns: int) -> int:
    """Count the rows above the cursor once the rows of ``screen`` are broken at ``columns``."""
    above = sum(end_of(_widths(screen, y), columns)[0] + 1 for y in range(cursor.y))
    return above + end_of(_widths(screen, cursor.y)[: cursor.x + 1], columns)[0]


def is_at_margin(screen: Screen, cursor: Point, columns: int) -> bool:
    """True if the cursor ends a row that fills whole rows of ``columns``.

    Then it is at the margin; or in tmux at the start of the next row, if the row was once longer.
    """
    widths = _widths(screen, cursor.y)
    return len(widths) == cursor.x and end_of(widths, columns)[1] == columns


def _widths(screen: Screen, y: int) -> list[int]:
    """Return the columns of each cell of a row; none for the second one of a wide character."""
    row = screen.data_buffer[y]
    width = max((x + char.width for x, char in row.items() if char.char != " "), default=0)
    return [row[x].width for x in range(width)]
