"""Make each file call fail in turn, in every part of the program.

    python -m harness.campaigns.io_faults [--every 1] [--errors NAME...] [--only PART]

Calls for files of the home folder and of the model: open, read, write, flush, map, rename, link,
remove, lock. Each fails once with ENOSPC, EIO, EACCES, EINTR and EDQUOT. A finding is more than
one error line, or one that is not clean, a wrong status, a terminal that is not as it was, a lost
turn, or a next run that does not succeed. Needs Linux and a C compiler.
"""

import argparse
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.process import ROOT
from harness.program import COMMAND, CONTROLS, FORBIDDEN, Program, Result, run
from harness.terminal import CTRL_C, CTRL_D, READY, Terminal, new_modes
from tests.hub import Hub, environment_for, serving

SHIM = ROOT / "harness" / "io_faults.c"
ERRORS = ("ENOSPC", "EIO", "EACCES", "EINTR", "EDQUOT")
STATUSES = {0, 1, 2, 3, 4, 5, 6}
SAID = "remember the tomatoes"
ANSWERED = r"cut off after \d|ended it at once|nothing to add"
MODES = ((b"[?2004h", b"[?2004l"), (b"[?25l", b"[?25h"), (b"[?7l", b"[?7h"))


@dataclass(frozen=True)
class Outcome:
    """State that a run left behind."""

    result: Result
    problems: tuple[str, ...] = ()


Run = Callable[[Path, Path, dict[str, str]], Outcome]
"""Runs a part of the program, with a home folder, a model, and variables."""


def command(*arguments: str, stdin: bytes = b"") -> Run:
    """Return a run of a command; ``MODEL`` and ``HOME`` stand for paths."""

    def run_it(home: Path, model: Path, variables: dict[str, str]) -> Outcome:
        paths = {"MODEL": str(model), "HOME": str(home)}
        given = [re.sub("MODEL|HOME", lambda found: paths[found[0]], word) for word in arguments]
        return Outcome(run(*given, home=home, stdin=stdin, folder="", **variables))

    return run_it


def chat(home: Path, model: Path, variables: dict[str, str]) -> Outcome:
    """Talk in a terminal: a turn, a name, and the end."""
    flags = ("-m", model, "--max-tokens", "4", "--temperature", "0")
    problems = []
    with Terminal(*flags, home=home, size=(160, 40), command=COMMAND, **variables) as terminal:
        _watch(terminal, READY)
        terminal.line(SAID)
        _watch(terminal, rf"(?:{ANSWERED})[\s\S]*context|error")
        told = re.search("not saved", terminal.text)
        answered = re.search(ANSWERED, terminal.text)
        terminal.type("/save named\r")
        _watch(terminal, "saved as named|error")
        terminal.type(CTRL_C)  # a line that was refused stays in the input
        terminal.watch_for(0.3)
        terminal.type(CTRL_D)
        with suppress(TimeoutError):
            terminal.watch_for(0.1)
            terminal.child.wait(10)
        if terminal.child.poll() is None:
            return Outcome(Result(0, "", ""), ("hangs",))
        status = terminal.wait_for_end()
        if termios.tcgetattr(terminal.descriptor) != new_modes():
            problems.append("termios")
        problems += [on.decode() for on, off in MODES
                     if terminal.raw.rfind(on) > terminal.raw.rfind(off)]  # fmt: skip
        problems += [word for word in FORBIDDEN if word in terminal.text]
        if answered and not told and SAID not in _everything_saved(home):
            problems.append("an answered turn is lost")
        if status not in STATUSES:
            problems.append(f"status {status}")
    return Outcome(Result(0, "", ""), tuple(problems))


def _watch(terminal: Terminal, pattern: str) -> None:
    """Wait for text, the end of the program, or a long silence."""
    quiet_s = 0.0
    while terminal.child.poll() is None and quiet_s < 3 and not re.search(pattern, terminal.text):
        quiet_s = 0.0 if terminal.watch_for(0.05) else quiet_s + 0.05


def _everything_saved(home: Path) -> str:
    files = (home / ".local/share/llama-chat/conversations").glob("*")
    return "".join(file.read_text(errors="replace") for file in files if file.is_file())


def serve(home: Path, model: Path, variables: dict[str, str]) -> Outcome:
    """Start a server, ask it something, and end it."""
    with tempfile.TemporaryDirectory(prefix="llama-chat-") as runtime:
        arguments = ("serve", "-m", str(model), "--port", "0")
        fault = variables.get("IO_FAULT", "")
        variables = {"IO_FAULT": f"{fault}:{runtime}"} if fault else {}
        with Program(*arguments, home=home, XDG_RUNTIME_DIR=runtime, **variables) as process:
            err = process.stderr.readline().decode()
            status = None
            problems = []
            if "answers on" in err:
                asked = ("ask", "hello", "--max-tokens", "2", "-m", model)
                answer = run(*asked, home=home, XDG_RUNTIME_DIR=runtime)  # fmt: skip
                if answer.status:
                    problems.append(f"the client: {answer}")
                process.kill(signal.SIGTERM)
                status = 143
            out, rest = process.communicate()
            result = Result(process.wait(0), out.decode(), err + rest.decode())
            if result.status == status:
                result = Result(0, "", "")
            return Outcome(result, tuple(problems))


PARTS: dict[str, Run] = {
    "sessions list": command("sessions"),
    "sessions show": command("sessions", "show", "kept", "--json"),
    "sessions check": command("sessions", "check"),
    "sessions repair": command("sessions", "repair"),
    "sessions rm": command("sessions", "rm", "spare"),
    "config show": command("config", "show", "--json"),
    "config init": command("config", "init", "--config", "HOME/made/config.toml"),
    "models": command("models", "--json"),
    "ask": command("ask", "hello", "-m", "MODEL", "--max-tokens", "4", "--prompt", "own"),
    "ask --lines": command(
        "ask", "--lines", "-m", "MODEL", "--max-tokens", "2", stdin=b"one\ntwo\n"
    ),
    "convert to GGUF": command("convert", "MODEL", "HOME/made.gguf"),
    "convert to safetensors": command("convert", "MODEL", "HOME/made"),
    "pull": command("pull", "org/name"),
    "serve": serve,
    "chat": chat,
}


WITHOUT_MODEL = ("sessions", "config")
"""Prefixes of the names of parts that need no model."""


def make_home(home: Path) -> None:
    """Fill a home folder as a user's is."""
    conversations = home / ".local/share/llama-chat/conversations"
    conversations.mkdir(parents=True)
    (home / ".config/llama-chat/prompts").mkdir(parents=True)
    (home / ".config/llama-chat/prompts/own.txt").write_text("Be brief.\n")
    (home / ".config/llama-chat/config.toml").write_text("temperature = 0.5\n")
    header = {"format": "llama-chat conversation", "version": 1}
    user = {"number": 1, "parent": 0, "role": "user", "text": "kept"}
    good = b"".join(json.dumps(record).encode() + b"\n" for record in (header, user))
    for name, data in (("kept", good), ("spare", good), ("cut", good + b"{")):
        (conversations / f"{name}.jsonl").write_bytes(data)


class Campaign:
    """All parts, on one model."""

    def __init__(self, folder: Path, every: int, errors: Sequence[str]) -> None:
        self._folder, self._every, self._errors = folder, every, errors
        self._model = folder / "random.gguf"
        self._template = folder / "template"
        make_home(self._template)
        self.n_runs = self.n_findings = 0

    def attack(self, name: str, more: dict[str, str]) -> None:
        """Let each call of a part fail."""
        if not name.startswith(WITHOUT_MODEL):
            self._make_model()
        first, log = self._run(name, 0, 0, more)
        if problems := self._problems(first):
            raise RuntimeError(f"{name} without a fault: {problems}")
        calls = log.splitlines()
        kinds: Counter[str] = Counter()
        for at in range(1, len(calls) + 1, self._every):
            for error in self._errors:
                number = getattr(errno, error)
                kinds[calls[at - 1].split()[0]] += 1
                self.n_runs += 1
                outcome, _ = self._run(name, at, number, more)
                for problem in self._problems(outcome):
                    self.n_findings += 1
                    print(f"{name}, call {at} ({calls[at - 1]}), {error}: "
                          f"{problem}", flush=True)  # fmt: skip
        print(f"{name}: {len(calls)} calls; failed: {dict(kinds)}", flush=True)

    def model_bytes(self) -> bytes:
        """Return the bytes of the model."""
        self._make_model()
        return self._model.read_bytes()

    def _make_model(self) -> None:
        from tests.model_files import write_gguf  # torch takes seconds to import

        if not self._model.exists():
            write_gguf(self._model)

    def _run(self, name: str, at: int, number: int, more: dict[str, str]) -> tuple[Outcome, str]:
        """Run a part with a fault, then without; returns what the first left, and its calls."""
        home, log = self._folder / "home", self._folder / "log"
        shutil.rmtree(home, ignore_errors=True)
        log.unlink(missing_ok=True)
        shutil.copytree(self._template, home)
        folders = f"{home}:{self._model}"
        fault = {"IO_FAULT": f"{at}:{number}:{log}:{folders}"}
        outcome = PARTS[name](home, self._model, more | fault)
        problems = list(outcome.problems)
        kept = (home / ".local/share/llama-chat/conversations/kept.jsonl").read_bytes()
        if b'"text": "kept"' not in kept:
            problems.append("a saved conversation is lost")
        if outcome.result.status and name not in ("sessions check", "sessions repair"):
            again = PARTS[name](home, self._model, more)
            done = name == "sessions rm" and "none is saved" in again.result.err
            if (again.result.status and not done) or again.problems:
                problems.append(f"the next run: {again}")
        return Outcome(outcome.result, tuple(problems)), log.read_text() if log.exists() else ""

    def _problems(self, outcome: Outcome) -> list[str]:
        result, problems = outcome.result, list(outcome.problems)
        errors = [line for line in result.err.splitlines() if ": error: " in line]
        if result.status not in STATUSES:
            problems.append(f"status {result.status}")
        if len(errors) != (result.status != 0) or any(line.count(": ") < 3 for line in errors):
            problems.append(f"errors: {result}")
        problems += [word for word in FORBIDDEN if word in result.err]
        if CONTROLS & set(result.err) or "unexpected" in result.err:
            problems.append(f"stderr: {result.err!r}")
        return problems


def main() -> int:
    """Run the campaign; returns 1 if anything was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1, help="one of so many calls")
    parser.add_argument("--errors", nargs="+", default=ERRORS, help="names of errno")
    parser.add_argument("--only", help="one part, or how the names of some begin")
    options = parser.parse_args()
    if "LD_PRELOAD" not in os.environ:
        return _run_preloaded()
    hub = Hub({"random.gguf": b"", "config.json": b"{}", "README.md": b"x" * 10})
    with tempfile.TemporaryDirectory() as folder, serving(hub):
        campaign = Campaign(Path(folder), options.every, options.errors)
        for name in PARTS:
            if name.startswith(options.only or ""):
                if name == "pull":
                    hub.files["random.gguf"] = campaign.model_bytes()
                more = environment_for(hub, Path(folder) / "home") if name == "pull" else {}
                campaign.attack(name, more)
    print(f"{campaign.n_runs:,} runs, {campaign.n_findings} findings")
    return min(campaign.n_findings, 1)


def _run_preloaded() -> int:
    """Run this program again with intercepted calls, which its child processes inherit."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        print("skipped: it needs Linux and a C compiler")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "io_faults.so"
        build = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"]
        subprocess.run(build, check=True)
        arguments = [sys.executable, "-m", "harness.campaigns.io_faults", *sys.argv[1:]]
        env = os.environ | {"LD_PRELOAD": str(library)}
        return subprocess.run(arguments, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
