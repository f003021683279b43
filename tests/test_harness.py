"""The harness: a fork of the server behaves like an interpreter that a shell starts."""

import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from harness import terminal as terminals
from harness.fork_server import READ_WHEN_USED
from harness.process import Process, cold
from harness.program import Program, environment
from harness.terminal import Terminal
from tests.conftest import ROOT
from tests.execute import EXECUTE

LOOK = """
import gc, json, os, resource, signal, subprocess, sys, threading
import llama_chat  # sets a variable
mask = os.umask(0)
os.umask(mask)
streams = (sys.stdin, sys.stdout, sys.stderr)
attributes = ("name", "mode", "encoding", "errors", "newlines", "line_buffering", "write_through")
try:
    controlled = os.read(os.open("/dev/tty", os.O_RDWR | os.O_NONBLOCK), 0) == b""
except OSError:
    controlled = False
print(json.dumps({
    "arguments": sys.argv,
    "path": sys.path,
    "environment": dict(os.environ),
    "environment in C": sorted(os.fsdecode(subprocess.check_output(["env", "-0"])).split("\\0")),
    "folder": os.getcwd(),
    "umask": mask,
    "descriptors": os.listdir("/dev/fd"),
    "streams": [s and {a: getattr(s, a) for a in attributes} for s in streams],
    "buffers": [s and repr(s.buffer) for s in streams],
    "originals": [s is o for s, o in zip(streams, (sys.__stdin__, sys.__stdout__, sys.__stderr__))],
    "terminals": [s and s.isatty() and os.get_terminal_size(s.fileno()) for s in streams],
    "handlers": {n: str(signal.getsignal(n)).split(" at ")[0] for n in signal.valid_signals()},
    "wake-up": signal.set_wakeup_fd(-1),
    "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "limits": [resource.getrlimit(n) for n in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)],
    "group": os.getpgrp() == os.getpid() or os.getpgrp(),
    "session": os.getsid(0) == os.getpid() or os.getsid(0),
    "controlled": controlled,
    "in front": controlled and os.tcgetpgrp(0) == os.getpgrp(),
    "threads": [t.name for t in threading.enumerate()],
    "garbage": [gc.isenabled(), gc.get_threshold()],
    "flags": str(sys.flags),
    "main": [__name__, __spec__.name, sys.modules["__main__"].__spec__.name],
}))
"""
"""Program that prints all that it can see of how it was started."""

HAS_TORCH = "import sys; print('torch' in sys.modules)"


@dataclass(frozen=True)
class Run:
    """Exit status and output of a process."""

    status: int
    out: str
    err: str

    @property
    def seen(self) -> dict[str, object]:
        """Output of ``LOOK``."""
        assert (self.status, self.err) == (0, "")
        found: dict[str, object] = json.loads(self.out)
        return found


def on_pipes(code: str, home: Path, **env: str) -> Run:
    with Program(code, home=home, command=EXECUTE, **env) as program:
        out, err = program.communicate(b"a line\n")
        return Run(program.wait(0), out.decode(), err.decode())


def by_subprocess(code: str, home: Path, **env: str) -> Run:
    """The same, without the harness."""
    command, whole = [*EXECUTE, code], environment(home, **env)
    done = subprocess.run(command, input=b"a line\n", env=whole, capture_output=True, check=False)
    return Run(done.returncode, done.stdout.decode(), done.stderr.decode())


def on_a_terminal(code: str, home: Path) -> Run:
    with Terminal(code, home=home, command=EXECUTE, size=(90, 30)) as terminal:
        return Run(terminal.wait_for_end(), terminal.raw.decode(), "")


def by_pexpect(code: str, home: Path) -> Run:
    """The same, without the harness."""
    whole, size = environment(home), (30, 90)
    child = pexpect.spawn(EXECUTE[0], [*EXECUTE[1:], code], env=whole, dimensions=size)
    out = child.read().decode()
    child.wait()
    status = child.exitstatus if child.signalstatus is None else 128 + child.signalstatus
    return Run(status, out, "")


def with_closed(closed: int, home: Path) -> Run:
    """Run ``LOOK`` with one of its streams closed."""
    reader, writer = os.pipe()
    streams = {0: reader, 1: writer, 2: writer}
    del streams[closed]
    try:
        process = Process([*EXECUTE, LOOK], environment(home), streams)
    finally:
        os.close(writer)
    with os.fdopen(reader) as out:
        return Run(process.wait(60), out.read(), "")


def closed_by_a_shell(closed: int, home: Path) -> Run:
    """The same, without the harness."""
    line = f'exec "$@" 0</dev/null 2>&1 {closed}>&-'
    done = subprocess.run(
        ["sh", "-c", line, "sh", *EXECUTE, LOOK],
        env=environment(home),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return Run(done.returncode, done.stdout, "")


def test_a_fork_has_imported_torch_and_a_new_interpreter_has_not(tmp_path: Path) -> None:
    assert on_pipes(HAS_TORCH, tmp_path).out == "True\n"
    with cold():
        assert on_pipes(HAS_TORCH, tmp_path).out == "False\n"


@pytest.mark.cold
def test_a_test_marked_cold_forks_nothing(tmp_path: Path) -> None:
    assert on_pipes(HAS_TORCH, tmp_path).out == "False\n"


def test_a_program_on_pipes_sees_the_same(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        fork = on_pipes(LOOK, tmp_path, LLAMA_CHAT_X="é\udcff", COLUMNS="7")
        with cold():
            new = on_pipes(LOOK, tmp_path, LLAMA_CHAT_X="é\udcff", COLUMNS="7")
        plain = by_subprocess(LOOK, tmp_path, LLAMA_CHAT_X="é\udcff", COLUMNS="7")
    finally:
        os.umask(before)
    assert fork.seen == new.seen == plain.seen
    assert fork.seen["umask"] == 0o027


def test_a_program_on_a_terminal_sees_the_same(tmp_path: Path) -> None:
    fork = on_a_terminal(LOOK, tmp_path)
    with cold():
        new = on_a_terminal(LOOK, tmp_path)
    plain = by_pexpect(LOOK, tmp_path)
    assert fork.seen == new.seen == plain.seen
    assert (fork.seen["controlled"], fork.seen["in front"]) == (True, True)


@pytest.mark.parametrize("closed", [0, 2])
def test_a_program_without_a_stream_sees_the_same(closed: int, tmp_path: Path) -> None:
    fork = with_closed(closed, tmp_path)
    with cold():
        new = with_closed(closed, tmp_path)
    plain = closed_by_a_shell(closed, tmp_path)
    streams = [run.seen["streams"] for run in (fork, new, plain)]
    assert streams[0] == streams[1] == streams[2]
    assert fork.seen == new.seen


def test_the_working_directory_is_that_of_the_request(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), sys.path[0])"
    with Program(code, home=tmp_path, command=EXECUTE, folder=str(tmp_path)) as program:
        assert program.communicate()[0].decode() == f"{tmp_path} {tmp_path}\n"


ENDS = {
    "status": "sys.exit(5)",
    "message": "sys.exit('why')",
    "error": "1 / 0",
    "at exit": "import atexit; atexit.register(print, 'last'); print('first')",
    "a thread goes on": "import threading, time\n"
    "def late():\n time.sleep(0.2)\n print('late')\n"
    "threading.Thread(target=late).start()",
    "__del__ fails": "class A:\n def __del__(self): 1 / 0\na = A()",
    "stdout is lost": "print('lost'); os.close(1)",
    "broken pipe": "r, w = os.pipe(); os.dup2(w, 1); os.close(r); os.close(w); print('lost')",
    "closed stream": "sys.stdout.close()",
    "at once": "print('lost'); os._exit(3)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "SIGPIPE": "os.kill(os.getpid(), signal.SIGPIPE); print('ignored')",
    "SIGINT": "os.kill(os.getpid(), signal.SIGINT)",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends_the_same(end: str, tmp_path: Path) -> None:
    code = "import os, signal, sys\n" + ENDS[end]
    fork, plain = on_pipes(code, tmp_path), by_subprocess(code, tmp_path)
    assert (fork.status, fork.out) == (plain.status, plain.out)
    # The frames above the module differ, and so do addresses.
    others = re.compile(r'  File "(?!<string>).*\n(    .*\n)*| at 0x\w+')
    assert others.sub("", fork.err) == others.sub("", plain.err)


@pytest.mark.parametrize("end", ["status", "at exit", "SIGKILL", "SIGTERM", "SIGINT"])
def test_a_program_on_a_terminal_ends_the_same(end: str, tmp_path: Path) -> None:
    code = "import os, signal, sys\n" + ENDS[end]
    fork, plain = on_a_terminal(code, tmp_path), by_pexpect(code, tmp_path)
    assert (fork.status, fork.out.splitlines()[-1:]) == (plain.status, plain.out.splitlines()[-1:])


def test_no_two_runs_draw_the_same_random_numbers(tmp_path: Path) -> None:
    code = "import numpy, random, torch; print(random.random(), torch.rand(1), numpy.random.rand())"
    one, other = (on_pipes(code, tmp_path).out.split() for _ in range(2))
    assert len(one) == len(other) == 3
    assert not set(one) & set(other)


@pytest.mark.parametrize(
    ("env", "forked"),
    [
        ({}, True),
        ({"LLAMA_CHAT_TEMPERATURE": "0", "HF_HOME": "/x", "TERM": "dumb", "VISUAL": "vi"}, True),
        ({"LLAMA_CHAT_KERNEL": "torch"}, True),
        ({"OMP_NUM_THREADS": "2"}, False),
        ({"PYTHONUTF8": "0"}, False),
        ({"LC_ALL": "C"}, False),
        ({"TZ": "Asia/Tokyo"}, False),
        ({"UNHEARD_OF": ""}, False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else str(value),
)
def test_a_variable_that_may_have_been_read_makes_a_run_cold(
    env: Mapping[str, str], forked: bool, tmp_path: Path
) -> None:
    assert on_pipes(HAS_TORCH, tmp_path, **env).out == f"{forked}\n"


RECORD = """
import os, traceback
from harness import fork_server
class Recorded(type(os.environ)):
    read = set()
    def __getitem__(self, name):
        callers = [frame.name for frame in traceback.extract_stack(limit=4)]
        if callers[-2] != "preload" and "joinuser" not in callers:  # of Python's sysconfig
            self.read.add(name)
        return super().__getitem__(name)
    def items(self):  # by which one library looks for names of its own
        return [(self.decodekey(k), self.decodevalue(v)) for k, v in self._data.items()]
os.environ.__class__ = Recorded
fork_server.preload()
print(*Recorded.read)
"""


def test_importing_reads_no_variable_that_may_differ(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RECORD], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    read = done.stdout.split()
    assert "TORCH_LOGS" in read
    assert [name for name in read if READ_WHEN_USED.fullmatch(name)] == []


HOLD = """
import fcntl, os, sys, time
lock = os.open(os.environ["HOME"] + "/lock", os.O_CREAT | os.O_RDWR)
fcntl.flock(lock, fcntl.LOCK_EX)
os.write(1, b"held\\n")  # at once: others write there, too
time.sleep(600)
"""

START_BOTH = f"""
import os, sys, time
from pathlib import Path
from harness.process import Process
from harness.program import environment
from harness.terminal import Terminal
home = Path(sys.argv[1])
command = [sys.executable, "-m", "tests.execute", {HOLD!r}]
for name in ("pipe", "terminal"):
    (home / name).mkdir()
Process(command, environment(home / "pipe"), {{1: 1, 2: 2}})
Terminal(home=home / "terminal", command=command).wait_for("held")
os.write(1, b"both\\n")
time.sleep(600)
"""


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", START_BOTH, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as tests:
        assert tests.stdout is not None
        assert {tests.stdout.readline(), tests.stdout.readline()} == {"held\n", "both\n"}
        tests.kill()
        assert tests.stdout.read() == ""  # the server had it open as its stderr
    for name in ("pipe", "terminal"):
        with (tmp_path / name / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)


def is_free(home: Path) -> bool:
    with (home / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    return True


def test_a_run_that_hangs_is_killed(tmp_path: Path) -> None:
    with Program(HOLD, home=tmp_path, command=EXECUTE) as program:
        assert program.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutError, match="still runs"):
            program.communicate(seconds=0.01)
        assert is_free(tmp_path)
    assert program.returncode == -9


def test_a_run_that_is_abandoned_is_killed(tmp_path: Path) -> None:
    with Program(HOLD, home=tmp_path, command=EXECUTE) as program:
        assert program.stdout.readline() == b"held\n"
    assert is_free(tmp_path)


def test_a_program_that_ignores_the_loss_of_its_terminal_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminals, "LEAVING_S", 0.1)
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + HOLD
    with Terminal(code, home=tmp_path, command=EXECUTE) as terminal:
        terminal.wait_for("held")
    assert is_free(tmp_path)
