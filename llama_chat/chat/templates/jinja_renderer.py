"""Rendering of a chat template in a child process, whose program is ``jinja_child``."""

import importlib.util
import json
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from llama_chat.errors import PromptTooLongError, UsageError, reason

MAX_TEMPLATE = 256 * 2**10
"""Limit on the bytes of a template; the longest published ones take a tenth of it."""
MAX_OUTPUT = 4 * 2**20
_MIN_LIMIT, _MAX_GROWTH = 64 * 2**10, 16
"""Limit on the characters written: a constant, and a factor for those given."""
_MAX_SECONDS = 2.0
"""Processor time of the child for one request."""
_TIMEOUT_S = 2.7
"""Wait for an answer, longer than the child's processor time."""
_START_S = 20.0
"""Wait for the start, which takes a tenth of a second on a machine that has nothing else to do."""
_MAX_GIVEN = 2 * 2**20
"""Limit on the characters of a conversation, for which the child has the memory."""
_MAX_ANSWER = 12 * MAX_OUTPUT
"""Limit on the bytes of an answer: two texts, of six bytes a character if all are escaped."""
_ADVICE = "name another with --template"
_PROGRAM = Path(__file__).with_name("jinja_child.py")


def refusal(why: str) -> UsageError:
    """Return the error about a template that cannot be used."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(why.split()))
    return UsageError("chat template of the model", line, _ADVICE)


class JinjaRenderer:
    """A template, and the process that renders it. The process ends with this object."""

    def __init__(self, template: str) -> None:
        """Start the process and compile the template.

        Raises:
            UsageError: if it is too large, no template, or the process cannot be started.
        """
        if len(template.encode("utf-8", "replace")) > MAX_TEMPLATE:
            raise refusal(f"it is larger than {MAX_TEMPLATE >> 10} KiB")
        self._template = template
        self._lock = Lock()
        self._child: _Child | None = None
        self.words: Sequence[str] = ()
        """Texts that the template looks for in a message."""
        self._ready()

    def render(
        self,
        roles: Sequence[str],
        contents: Sequence[str],
        masked: Sequence[str],
        *,
        variables: Mapping[str, Any],
        now: str,
    ) -> tuple[str, str | None]:
        """Render a conversation twice, with its contents and with the masked ones.

        Returns:
            Both texts; the second is None if the template fails on masked contents.

        Raises:
            UsageError: if the template fails or exceeds a limit.
            PromptTooLongError: if the conversation is longer than any context.
        """
        given = sum(map(len, contents))
        if given > _MAX_GIVEN:
            why = f"{given:,} characters are more than a template is given"
            raise PromptTooLongError(
                "conversation", why, "shorten the message, or begin a new conversation"
            )
        request = {
            "roles": roles,
            "contents": contents,
            "masked": masked,
            "variables": variables,
            "now": now,
            "limit": min(MAX_OUTPUT, _MIN_LIMIT + _MAX_GROWTH * (given + len(self._template))),
        }
        with self._lock:
            answer = self._ask(self._ready(), request)
        return answer["text"], answer["masked"]

    def _ready(self) -> "_Child":
        """Return the process, started again if the last request ended it."""
        if self._child is None:
            self._child = child = _Child()
            self._end = weakref.finalize(self, child.end)
            try:
                self.words = self._ask(child, {"template": self._template})["words"]
            except UsageError:
                self.close()
                raise
        return self._child

    def _ask(self, child: "_Child", request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = child.ask(request)
        except BaseException:  # Ctrl-C too: the answer of this request is never that of the next
            self.close()
            raise
        if "error" in answer:
            raise refusal(answer["error"])
        return answer

    def close(self) -> None:
        """End the process; another request starts it again."""
        if self._child is not None:
            self._end()
            self._child = None


class _Child:
    """The process, in a session of its own, which Ctrl-C in the terminal does not reach."""

    def __init__(self) -> None:
        self._is_ready = False
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-B", str(_PROGRAM), *_package_folders()],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    env={},
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                self._socket.close()
                raise refusal(f"its process does not start ({reason(error)})") from None

    def end(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request, and return the answer.

        Raises:
            UsageError: if there is none; the process must then be ended.
        """
        request = {**request, "seconds": _MAX_SECONDS}
        data = json.dumps(request, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            if not self._is_ready:
                self._receive(_START_S)
                self._is_ready = True
            self._socket.settimeout(_TIMEOUT_S)
            self._socket.sendall(data)
            answer: dict[str, Any] = json.loads(self._receive(_TIMEOUT_S))
        except TimeoutError:
            raise refusal(f"it does not end within {_TIMEOUT_S:g} s") from None
        except (OSError, ValueError, RecursionError):
            raise refusal(self._end_said()) from None
        return answer

    def _receive(self, seconds: float) -> bytes:
        """Receive a line; it is empty if the process ended."""
        deadline = time.monotonic() + seconds
        received = bytearray()
        while not received.endswith(b"\n"):
            self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
            part = self._socket.recv(2**18)
            received += part
            if not part or len(received) > _MAX_ANSWER:
                return b""
        return bytes(received)

    def _end_said(self) -> str:
        """Say why the process ended."""
        self.end()
        status = self._process.returncode
        if status == -signal.SIGPROF:
            return f"it takes more than {_MAX_SECONDS:g} s of processor time"
        return f"the process that renders it ended, with status {status}"


def _package_folders() -> list[str]:
    """Return the folders in which the packages of the child are, without importing these."""
    specs = [importlib.util.find_spec(name) for name in ("jinja2", "markupsafe")]
    return [str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin]
