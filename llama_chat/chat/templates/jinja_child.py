"""Renderer of one chat template, as a program of its own.

A template comes with a model, from anywhere. This program renders it in Jinja's sandbox, with no
environment, no files but its pipe, and limits on time, memory and output. ``JinjaRenderer`` starts
it. It writes ``{}`` once it is ready. Then each line on stdin is a request and each line on stdout
its answer, both in JSON:

- ``{"template": TEXT}``, once: compile it. The answer has ``words``, the texts that the template
  looks for or cuts at.
- ``{"roles": […], "contents": […], "masked": […], "variables": {…}, "now": TIME, "limit": N}``:
  render it with these contents, and again with the masked ones. The answer has both as ``text`` and
  ``masked``; the latter is null if the template fails on those.

Each request has ``seconds`` too, the processor time that it may take.
An answer of ``error`` says what is wrong. It imports Jinja and the standard library only.
"""

import encodings.ascii
import encodings.unicode_escape
import json
import os
import pprint
import resource
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

if __name__ == "__main__":
    sys.path.extend(sys.argv[1:])  # the folders that Jinja is in

import jinja2.constants
import jinja2.debug
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_MEMORY = 256 * 2**20
MAX_SAID = 300
"""Limit on the characters of an error."""
_NOBODY = 65534
"""Id of a user without rights."""

IMPORTED_LATE = (
    encodings.ascii,
    encodings.unicode_escape,
    pprint,
    textwrap,
    jinja2.constants,
    jinja2.debug,
)
"""Modules that Python and Jinja import lazily, which is impossible after ``lock``."""

Request = Mapping[str, Any]
Answer = dict[str, Any]


class Generation(Extension):
    """``{% generation %}``, which marks replies for training: here its content alone."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """``dict`` for templates, without the attributes of the type."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """Make a dictionary of ``keys``."""
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """``namespace`` for templates, without names that begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:
        attributes = dict(*args[1:], **values)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"namespace has no {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """``tojson``, without the escapes for HTML that Jinja adds."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def new_environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    """Return the environment that transformers renders a chat template in.

    Args:
        now: the time for ``strftime_now``.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


class Renderer:
    """A compiled template."""

    def __init__(self, text: str) -> None:
        """Compile ``text``.

        Raises:
            TemplateError: if it is no template.
        """
        self._now = datetime.now()
        environment = new_environment(lambda: self._now)
        tree = environment.parse(text)
        self.words = sorted(_words(tree))
        self._template = environment.from_string(tree)

    def render(self, request: Request) -> Answer:
        """Render a request as the module describes."""
        self._now = datetime.fromisoformat(request["now"])
        text = self._text(request, request["contents"])
        try:
            masked = self._text(request, request["masked"])
        except Exception:
            masked = None
        return {"text": text, "masked": masked}

    def _text(self, request: Request, contents: list[str]) -> str:
        messages = [
            {"role": role, "content": content}
            for role, content in zip(request["roles"], contents, strict=True)
        ]
        pieces, left = [], request["limit"]
        for piece in self._template.generate(messages=messages, **request["variables"]):
            pieces.append(piece)
            left -= len(piece)
            if left < 0:
                raise TemplateError(f"it writes more than {request['limit']:,} characters")
        return "".join(pieces)


def _words(tree: nodes.Template) -> set[str]:
    """Return the texts that a template compares with, or gives to a function, filter or test."""
    users = tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test))
    constants = (each for user in users for each in user.find_all(nodes.Const))
    return {each.value for each in constants if isinstance(each.value, str) and each.value.strip()}


def lock() -> None:
    """Give up everything that rendering does not need; what the system lacks is left out.

    The pipe stays open, and nothing else can be opened: no file, no socket.
    """
    sys.meta_path.clear()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.close(2)
    if os.geteuid() == 0:  # to root some limits do not apply
        with suppress(OSError):
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
    limits = {
        "RLIMIT_NOFILE": 2,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
        "RLIMIT_AS": MAX_MEMORY,
    }
    for name, limit in limits.items():
        with suppress(AttributeError, OSError, ValueError):
            resource.setrlimit(getattr(resource, name), (limit, limit))


def said(error: Exception) -> str:
    """Return what an error says, shortened."""
    if isinstance(error, MemoryError):
        return f"it takes more than {MAX_MEMORY >> 20} MiB of memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return (str(error) or type(error).__name__)[:MAX_SAID]


def answer(renderer: Renderer | None, request: Request) -> tuple[Renderer | None, Answer]:
    """Compile or render as a request says."""
    # At the end of the time the program ends: no error can interrupt a long multiplication.
    signal.setitimer(signal.ITIMER_PROF, request["seconds"])
    try:
        if renderer is None:
            renderer = Renderer(request["template"])
            return renderer, {"words": renderer.words}
        return renderer, renderer.render(request)
    except Exception as error:
        return renderer, {"error": said(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Answer requests until stdin ends."""
    lock()
    write({})
    renderer = None
    for line in sys.stdin.buffer:
        renderer, found = answer(renderer, json.loads(line))
        try:
            write(found)
        except MemoryError as error:
            write({"error": said(error)})


def write(found: Answer) -> None:
    """Write an answer."""
    data = json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        os._exit(0)
