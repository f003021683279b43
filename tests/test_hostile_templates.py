"""Hostile chat templates: each ends in one line, without files, memory or more than a moment."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.program import assert_clean_error, run
from llama_chat.chat.conversation import Message
from llama_chat.chat.templates import jinja_renderer
from llama_chat.chat.templates.jinja import JinjaTemplate
from llama_chat.errors import UsageError
from llama_chat.library.starter import CHAT_TEMPLATE
from tests.model_files import byte_tokenizer, write_gguf

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"

QUICK = {
    "range of 10^9": "{% for i in range(10**9) %}x{% endfor %}",
    "1 GB by a product": "{{ 'a' * 10**9 }}",
    "1 GB by doubling": "{% set ns = namespace(s='a') %}"
    + "{% set ns.s = ns.s + ns.s %}" * 30
    + "{{ ns.s }}",
    "1 GB by a list": "{{ [0] * 10**9 }}",
    "1 GB by join": "{{ (['a' * 10**6] * 1000) | join }}",
    "1 GB by replace": "{{ ('a' * 10**5).replace('a', 'b' * 10**5) }}",
    "1 GB by a format": "{{ '%1000000000d' | format(1) }}",
    "1 GB by a format string": "{{ '{:1000000000}'.format(1) }}",
    "1 GB by center": "{{ 'a' | center(10**9) }}",
    "1 GB by indent": "{{ ('\\n' * 10**5) | indent(10**5, true, true) }}",
    "1 GB by ljust": "{{ 'a'.ljust(10**9) }}",
    "1 GB by a list of strings": "{% set x = ['a' * 10**7] * 200 %}{{ x | join('b') }}",
    "5 MB of output": "{% for i in range(5000) %}" + "x" * 1000 + "{% endfor %}",
    "17 times its input": "{{ 'x' * 10**5 }}",
    "a number of many digits": "{{ 10**9999 }}",
    "class of a string": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by a filter": "{{ ('' | attr('__class__')).mro() }}",
    "class by a key": "{{ messages['__class__'].mro() }}",
    "class by map": "{{ ([''] | map(attribute='__class__') | list)[0].mro() }}",
    "globals of a function": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "globals of a class": "{{ cycler.__init__.__globals__.os.system('id') }}",
    "globals of ours": "{{ raise_exception.__globals__.os }}",
    "globals of the time": "{{ strftime_now.__globals__['os'] }}",
    "globals of joiner": "{{ joiner.__init__.__globals__ }}",
    "globals of namespace": "{{ namespace.__init__.__globals__ }}",
    "attribute by a format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "attribute by format_map": "{{ '{a.__class__.x}'.format_map({'a': messages}) }}",
    "frames of a generator": "{{ (messages | map('upper')).gi_frame.f_back }}",
    "underscore in a namespace": "{% set ns = namespace(__class__=1) %}{{ ns }}",
    "builtins of dict": "{{ dict.__class__.__base__.__subclasses__() }}",
    "code of a macro": "{% macro f() %}{% endmacro %}{{ f._func.__code__ }}",
    "the environment": "{{ self._TemplateReference__context.environment }}",
    "change of a message": "{{ messages.append(1) }}",
    "change of a dictionary": "{{ messages[0].update({'a': 1}) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.fork() }}",
    "from import": "{% from '/etc/passwd' import x %}",
    "extends": "{% extends '/etc/passwd' %}",
    "do": "{% do messages.append(1) %}",
    "open": "{{ open('SENTINEL').read() }}",
    "fork": "{{ os.fork() }}",
    "recursion of a macro": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "recursion of a loop": "{% for m in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "nested brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "nested blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "open brackets": "{{ " + "[" * 20000,
    "a long chain": "{{ 1" + " + 1" * 20000 + " }}",
    "larger than 256 KiB": "x" * (256 * 2**10 + 1),
    "no template": "{% for %}",
    "it refuses": "{{ raise_exception('\x1b[2Jno\nway ' + 'x' * 10**5) }}",
}

SLOW = {
    "endless loop": LOOP,
    "loop of a macro": "{% macro f() %}" + LOOP + "{% endmacro %}{{ f() }}",
    "loop of a filter": "{{ range(99999) | map('string') | list | join | list | sort | unique }}"
    + LOOP,
    "a giant power": "{{ 7**(10**8) % 10 }}",
    "a giant product": "{% set n = 3**(10**7) %}{{ (n * n * n) % 10 }}",
    "replace of replace": "{% for i in range(99999) %}"
    "{% set x = ('ab' * 10**6).replace('ab', 'ba') %}{% endfor %}",
    "sums": "{% for i in range(99999) %}{{ range(99999) | sum and '' }}{% endfor %}",
}


_others: set[int] = set()
"""Processes of templates that other tests keep, such as those of a model of a whole session."""


@pytest.fixture(autouse=True)
def note_others() -> None:
    _others.clear()
    _others.update(child.pid for child in children())


def children() -> list[psutil.Process]:
    """Return the processes that render templates of the test."""
    return [
        each
        for each in psutil.Process().children()
        if each.pid not in _others and "jinja_child.py" in str(each.cmdline())
    ]


def refused(text: str) -> str:
    """Make a template of ``text``, which must fail, and return the line."""
    with pytest.raises(UsageError) as caught:
        JinjaTemplate(byte_tokenizer(), text, {"bos_token": "<s>"})
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 500
    assert line.startswith("chat template of the model: ")
    assert line.endswith(": name another with --template")
    return line


def test_there_are_forty() -> None:
    assert len({*QUICK, *SLOW}) >= 40


@pytest.mark.parametrize("case", QUICK)
def test_a_hostile_template_is_refused(case: str, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    sentinel.write_text("a secret")
    memory = psutil.Process().memory_info().rss
    begin = time.monotonic()
    line = refused(QUICK[case].replace("SENTINEL", str(sentinel)))
    assert time.monotonic() - begin < 3
    assert "secret" not in line
    assert psutil.Process().memory_info().rss - memory < 2**26
    assert [path.name for path in tmp_path.iterdir()] == ["sentinel"]
    assert not children()


@pytest.mark.parametrize("case", SLOW)
def test_a_template_that_does_not_end_is_ended(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_renderer, "_TIMEOUT_S", 0.3)
    assert "it does not end within 0.3 s" in refused(SLOW[case])


def test_processor_time_is_limited_to_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_renderer, "_TIMEOUT_S", 60)
    assert "it takes more than 2 s of processor time" in refused(SLOW["a giant power"])


def test_the_limit_in_seconds_is_three_in_all() -> None:
    begin = time.monotonic()
    refused(LOOP)
    assert time.monotonic() - begin < 4  # and some for the start, where others work too


CHATML = "{{ 'x' }}" + CHAT_TEMPLATE


def child_of(template: JinjaTemplate, said: str = "Hi") -> psutil.Process:
    """Return the process of a template, after it has rendered a message."""
    assert template.render([Message("user", said)])
    (child,) = children()
    return child


@pytest.fixture
def template() -> JinjaTemplate:
    return JinjaTemplate(byte_tokenizer(), CHATML, {})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_has_no_environment_and_no_file_but_its_pipe(template: JinjaTemplate) -> None:
    child = child_of(template)
    folder = Path(f"/proc/{child.pid}")
    files = {str(each.readlink()) for each in (folder / "fd").iterdir()}
    assert len(files) == 1
    assert files.pop().startswith("socket:")
    assert (folder / "environ").read_bytes() == b""
    limits = dict(re.findall(r"^(Max [a-z ]+?) {2,}(\d+) ", (folder / "limits").read_text(), re.M))
    assert limits["Max open files"] == "2"
    assert limits["Max file size"] == limits["Max processes"] == limits["Max core file size"] == "0"
    assert limits["Max address space"] == str(2**28)
    assert os.getsid(child.pid) == child.pid
    assert child.uids().real != 0


def test_the_child_ends_with_its_template() -> None:
    template = JinjaTemplate(byte_tokenizer(), CHATML, {})
    assert child_of(template).is_running()
    del template
    assert not children()
    again = JinjaTemplate(byte_tokenizer(), CHATML, {})
    child = child_of(again)
    child.send_signal(signal.SIGINT)  # a Ctrl-C that reached it would not end it
    assert child_of(again, "Hello") == child
    child.kill()
    with pytest.raises(UsageError, match="the process that renders it ended, with status -9"):
        again.render([Message("user", "Ho")])
    assert child_of(again, "Ha") != child


def n_kept() -> int:
    """Count the processes that this one remembers, running or not."""
    gc.collect()
    return sum(type(each) is jinja_renderer._Child for each in gc.get_objects())


def test_a_process_that_was_replaced_is_forgotten() -> None:
    before = n_kept()
    template = JinjaTemplate(byte_tokenizer(), CHATML, {})
    for said in ("Hi", "Ho"):
        child_of(template, said).kill()
        with pytest.raises(UsageError, match="the process that renders it ended"):
            template.render([Message("user", f"{said}!")])
    assert child_of(template, "Ha").is_running()
    assert n_kept() == before + 1


def test_the_child_ends_with_the_program(tmp_path: Path) -> None:
    program = (
        "import psutil, time, tests.test_hostile_templates as t\n"
        "template = t.JinjaTemplate(t.byte_tokenizer(), t.CHATML, {})\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        child.wait(5)


def test_ctrl_c_ends_a_rendering(template: JinjaTemplate) -> None:
    def press(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    text = "{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}x"
    template = JinjaTemplate(byte_tokenizer(), text, {})
    before = signal.signal(signal.SIGALRM, press)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            template.render([Message("user", "loop")])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert template.render([Message("user", "Hi")]) == byte_tokenizer().encode("x")


IN_PROGRAM = ("1 GB by a product", "globals of a function", "import", "recursion of a macro")


@pytest.mark.parametrize("case", IN_PROGRAM)
def test_the_program_ends_in_one_line(case: str, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    write_gguf(model, metadata={"tokenizer__chat_template": QUICK[case]})
    before = sorted(tmp_path.iterdir())
    result = run("ask", "Hi", "-m", model, home=tmp_path)
    assert_clean_error(result, 2, "chat template of the model: ", "name another with --template")
    assert sorted(tmp_path.iterdir()) == before
    other = ("--template", "chatml", "--max-tokens", "1")
    assert run("ask", "Hi", "-m", model, *other, home=tmp_path).status == 0
    assert run("complete", "-", "-m", model, *other[2:], home=tmp_path, stdin=b"x").status == 0
    shown = run("inspect", model, home=tmp_path)
    assert shown.status == 0
    assert "name another with --template" in " ".join(shown.out.split())
