"""Keys as terminals send them, and the mode in which they wait for the next input."""

import asyncio
import re
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import groupby
from string import ascii_lowercase
from types import FrameType
from typing import Any, TextIO

from prompt_toolkit.input import vt100_parser
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.key_binding.key_processor import _Flush as NO_KEY_FOLLOWS
from prompt_toolkit.keys import Keys

PAUSE_S = 0.05
"""Time without a key after which a burst of keys has ended: terminals send the characters of a
paste faster, people type slower."""

ESCAPE_S = 0.1
"""Time after which Escape is no beginning of another key."""

_STALL_S = 1.0
"""Time without a character after which a marked paste has lost its end."""

_PASTE_END = "\x1b[201~"
_CTRL_C = "\x03"

_modes: list[list[Any]] = []
"""Modes in which the terminal is to be, each until the next one ends: after Ctrl-Z and ``fg`` it is
in that of the shell, and may be set again before this process has noticed that it was stopped."""


@contextmanager
def _mode(descriptor: int) -> Iterator[None]:
    """Keep the mode that the terminal has now."""
    _modes.append(termios.tcgetattr(descriptor))
    try:
        yield
    finally:
        _modes.pop()


@contextmanager
def hold_keys() -> Iterator[None]:
    """Keep keys that are typed while no input is open, for the next one.

    Turns off echo, line buffering, and the translation of Enter to the newline that Ctrl-J types.
    Ctrl-C still sends SIGINT, but drops neither such keys nor text that the terminal has not read
    yet, as it would by itself. Enter this once around a whole chat: an input restores the mode that
    it found.
    """
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    held = termios.tcgetattr(descriptor)
    held[0] &= ~termios.ICRNL
    held[3] = held[3] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH

    def restore(number: int, frame: FrameType | None) -> None:
        with suppress(termios.error):  # the terminal has gone
            termios.tcsetattr(descriptor, termios.TCSANOW, _modes[-1])

    with suppress(termios.error):
        termios.tcsetattr(descriptor, termios.TCSANOW, held)
    _modes.append(held)
    on_continue = signal.signal(signal.SIGCONT, restore)
    try:
        yield
    finally:
        _modes.pop()
        signal.signal(signal.SIGCONT, on_continue)
        with suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSANOW, before)


def _extended_keys() -> Iterator[tuple[str, Keys | tuple[Keys | str, ...] | str]]:
    """Yield the sequences by which terminals tell keys with modifiers, and the keys they mean.

    Each in both of its forms: CSI u, and modifyOtherKeys.
    """
    enter, tab, space, backspace = 13, 9, 32, 127
    shift, alt, ctrl = 2, 3, 5
    keys: dict[tuple[int, int], Keys | tuple[Keys | str, ...] | str] = {
        **{(enter, modifiers): Keys.ControlJ for modifiers in range(2, 9)},
        (tab, shift): Keys.BackTab,
        (space, shift): " ",
        (backspace, shift): Keys.ControlH,
        **{(ord(letter), ctrl): Keys(f"c-{letter}") for letter in ascii_lowercase},
        **{(ord(letter), alt): (Keys.Escape, letter) for letter in ascii_lowercase},
    }
    for (code, modifiers), key in keys.items():
        yield f"\x1b[{code};{modifiers}u", key
        yield f"\x1b[27;{modifiers};{code}~", key


ANSI_SEQUENCES["\x1b\r"] = Keys.ControlJ  # Alt-Enter
ANSI_SEQUENCES.update(_extended_keys())  # type: ignore[arg-type] # characters are keys too
# So that the parser waits for the end of any control sequence, and of reports of a colour, as it
# does for sequences that it knows.
vt100_parser._cpr_response_prefix_re = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*|\](?:1(?:1(?:;[rgba:\dA-F/]*\x1b?)?)?)?)\Z", re.IGNORECASE
)

_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]\Z")
_REPORT = re.compile(r"\x1b\]11;[^\x07\x1b]*(?:\x07|\x1b\\)\Z")


class _Parser(vt100_parser.Vt100Parser):
    """Parser that ignores reports, and sequences it does not know; else they would be typed."""

    def _get_match(self, prefix: str) -> Keys | tuple[Keys, ...] | None:
        key = super()._get_match(prefix)
        if key is None and (_CONTROL_SEQUENCE.match(prefix) or _REPORT.match(prefix)):
            return Keys.Ignore
        return key


_TYPED: dict[Keys | str, str] = {Keys.ControlM: "\r", Keys.ControlI: "\t", Keys.ControlJ: "\n"}
"""Keys that are characters within a paste."""

_ACTING = (Keys.ControlM, Keys.ControlI)
"""Those of them that do something else when typed by hand."""

_UNSEEN = (Keys.CPRResponse, Keys.Ignore)
"""Keys that nobody pressed."""


def _is_text(key: KeyPress) -> bool:
    return len(key.key) == 1 or key.key in _TYPED


class RawInput(Vt100Input):
    """Input of prompt-toolkit that tells a paste from typing, also if the terminal does not.

    In a burst of keys, Enter and Tab are text if text follows; only after a pause do they act.

    The terminal may stay in raw mode while text is written above the prompt: in the mode that
    prompt-toolkit sets meanwhile, keys would be echoed, and Enter would become the newline of
    Ctrl-J.
    """

    n_writers = 0
    """Number of those who write, or wait to write."""

    def __init__(self, stdin: TextIO, on_report: Callable[[str], None]) -> None:
        """Read keys from ``stdin``; ``on_report`` is called with sequences that are no keys."""
        super().__init__(stdin)
        self._on_report = on_report
        self.vt100_parser = _Parser(self._take)
        self._marks_pastes = False
        """True once the terminal has marked a paste: then it marks them all."""
        self._held: list[KeyPress] = []
        """Keys of a burst that ends in Enter or Tab: they act, and are seen, together."""
        self._pasting = False
        """True in a burst with a line or a Tab before more text."""
        self._pause: asyncio.TimerHandle | None = None
        """Timer of the pause that would end the burst; None between bursts."""
        self._stall: asyncio.TimerHandle | None = None
        """Timer of the pause that would end a marked paste; None outside of one."""
        self._early: list[KeyPress] = []
        """Keys that were typed before the input opened."""
        self._on_ready: Callable[[], None] = lambda: None

    def _take(self, key: KeyPress) -> None:
        """Take a key from the parser."""
        if key.key == Keys.Ignore:
            self._on_report(key.data)
        self._marks_pastes |= key.key == Keys.BracketedPaste
        # A character in an escape sequence would be typed as that sequence.
        self._buffer.append(KeyPress(key.key) if len(key.key) == 1 else key)

    @contextmanager
    def raw_mode(self) -> Iterator[None]:
        """Make the terminal send every key as it is."""
        with super().raw_mode(), _mode(self.fileno()):
            yield

    @contextmanager
    def cooked_mode(self) -> Iterator[None]:
        """Let another program have the terminal, or text be written."""
        if self.n_writers:
            yield
            return
        with super().cooked_mode(), _mode(self.fileno()):
            yield

    def attach(self, input_ready_callback: Callable[[], None]) -> AbstractContextManager[None]:
        """Begin to read; keys that wait already were typed at an unknown speed, and act at once.

        Escape is left out: it was meant for what was on the screen, and no part of the next key.
        """
        self._on_ready = input_ready_callback
        self._pasting, self._pause, self._stall = False, None, None
        self._early = self._release()
        while new := self._read():
            self._early += [key for key in new if key.key != Keys.Escape]
        # Not sooner: the history is loaded first. Also if there are none: Escape may wait for more.
        asyncio.get_running_loop().call_later(0, input_ready_callback)
        return super().attach(input_ready_callback)

    def read_keys(self) -> list[KeyPress]:
        """Read the keys that have arrived; an Enter or a Tab may be held until a pause."""
        keys, self._early = self._early, []
        for is_text, run in groupby(self._read(), _is_text):
            if is_text:
                keys += self._sift(list(run))
                continue
            for key in run:
                if key.key not in _UNSEEN:
                    keys += self._end_burst()
                keys.append(key)
        if self._pause is None:  # such as after a pause: nothing was read then
            keys = self._release() + keys
        return keys

    def flush_keys(self) -> list[KeyPress]:
        """Return what cannot be the beginning of another key any more: Escape."""
        keys = super().flush_keys()
        return [*keys, NO_KEY_FOLLOWS] if keys else []

    def _read(self) -> list[KeyPress]:
        """Read keys, and time the pause within a marked paste anew."""
        keys = super().read_keys()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self.vt100_parser._in_bracketed_paste:
            is_ended = self.vt100_parser._paste_buffer.endswith(_CTRL_C)
            pause_s = PAUSE_S if is_ended else _STALL_S
            self._stall = asyncio.get_running_loop().call_later(pause_s, self._end_paste)
        return keys

    def _end_paste(self) -> None:
        """End a marked paste whose end has not come, and act on each Ctrl-C behind it.

        What still comes is not marked, and must not be taken for lines that were typed.
        """
        parser = self.vt100_parser
        text = parser._paste_buffer.rstrip(_CTRL_C)
        keys = parser._paste_buffer.removeprefix(text)
        parser._paste_buffer = text
        parser.feed(_PASTE_END + keys)
        self._marks_pastes = False
        self._on_ready()

    def _sift(self, run: list[KeyPress]) -> list[KeyPress]:
        """Return the keys of ``run``, which follow each other at once, as they are meant."""
        if self._marks_pastes:
            return run
        in_burst = self._pause is not None or len(run) > 1
        self._begin_pause()
        if not in_burst:
            return run
        run, self._held = self._held + run, []
        n_text = len(run)
        while n_text and run[n_text - 1].key in _ACTING:
            n_text -= 1
        self._pasting |= any(key.key in _ACTING for key in run[:n_text])
        if self._pasting:
            text = "".join(_TYPED.get(key.key, key.data) for key in run)
            return [KeyPress(Keys.BracketedPaste, text)]
        if n_text < len(run):
            run, self._held = [], run
        return run

    def _begin_pause(self) -> None:
        """Time the pause anew."""
        if self._pause is not None:
            self._pause.cancel()
        self._pause = asyncio.get_running_loop().call_later(PAUSE_S, self._on_pause)

    def _on_pause(self) -> None:
        self._pause, self._pasting = None, False
        if self._held:
            self._on_ready()

    def _end_burst(self) -> list[KeyPress]:
        """End a burst, and return the keys that were held."""
        if self._pause is not None:
            self._pause.cancel()
        self._pause, self._pasting = None, False
        return self._release()

    def _release(self) -> list[KeyPress]:
        held, self._held = self._held, []
        return held
