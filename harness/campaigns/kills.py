"""Kill the program at random instants: nothing that it acknowledged may be lost.

    python -m harness.campaigns.kills [COUNT [SEED]]

Chats die while they start, read a message, answer, save and leave; batch runs at any time, and are
resumed until they end; servers with and without requests. A finding is a lost turn whose end was
shown, or a lost answer that was written; a file that cannot be read; or a next run that fails.
"""

import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from harness.campaigns.trials import Findings, count_and_seed
from harness.process import Process
from harness.program import COMMAND, Program, Result, environment, run
from harness.terminal import CTRL_D, READY, Terminal
from tests.model_files import write_gguf

ENDED = r"cut off after \d+ tokens?|ended it at once|nothing to add"
N_LINES = 40
CLEAN_STATUSES = {0, 1}
"""Of a client whose server was killed."""


def kill_chat(model: Path, home: Path, chance: random.Random) -> list[str]:
    """Kill a chat at an instant of one of its phases, and go on with what it saved."""
    phase = chance.choice(("start", "prefill", "decode", "save", "exit"))
    flags = ("-m", model, "--temperature", "0", "--max-tokens", "400" if phase == "decode" else "3")
    with Terminal(*flags, home=home) as terminal:
        if phase != "start":
            terminal.wait_for(READY)
            n_turns = chance.randint(1, 4)
            for turn in range(n_turns if phase != "decode" else 1):
                words = "many words " * 9 if phase == "prefill" else ""
                terminal.line(f"turn {turn} {words}")
                if phase == "exit" or (phase == "prefill" and turn < n_turns - 1):
                    _wait_for_turns(terminal, turn + 1)
            if phase == "exit":
                terminal.type(CTRL_D)
        terminal.watch_for(chance.uniform(0, 1.5 if phase == "start" else 0.4))
        terminal.child.kill()
        with suppress(TimeoutError, OSError):
            terminal.watch_for(0.02)
        n_acknowledged = len(re.findall(ENDED, terminal.text))
    bad = _unreadable(home)
    names = [entry["name"] for entry in json.loads(run("sessions", "--json", home=home).out)]
    n_saved = 0
    for name in names:
        shown = json.loads(run("sessions", "show", name, "--json", home=home).out)
        n_saved += sum(message["role"] == "assistant" for message in shown)
    if n_saved < n_acknowledged:
        bad.append(f"{phase}: of {n_acknowledged} turns {n_saved} are saved")
    if names:
        with Terminal(*flags, "--continue", home=home) as terminal:
            terminal.wait_for(READY)
            terminal.type(CTRL_D)
            if status := terminal.wait_for_end():
                bad.append(f"{phase}: the next chat ends with {status}: {terminal.text}")
    return bad + _unreadable(home)


def _wait_for_turns(terminal: Terminal, n_turns: int) -> None:
    terminal.wait_until(lambda: len(re.findall(ENDED, terminal.text)) >= n_turns)


def _unreadable(home: Path) -> list[str]:
    """Return the conversations that cannot be read, and files that are open to others."""
    checked = run("sessions", "check", "--json", home=home)
    states = [(each["name"], each["state"]) for each in json.loads(checked.out or "[]")]
    bad = [f"{name} is {state}" for name, state in states if state not in ("ok", "cut")]
    ours = (home / ".local").rglob("*")
    return bad + [f"mode of {path}" for path in ours if path.stat().st_mode & 0o077]


def kill_batch(model: Path, home: Path, chance: random.Random) -> list[str]:
    """Kill a batch run, and resume it, until it ends by itself."""
    questions, answers = home / "questions", home / "answers"
    questions.write_text("".join(f"question {number}\n" for number in range(N_LINES)))
    arguments = ["ask", "--lines", "-m", str(model), "--max-tokens", "8", "--temperature", "1"]
    arguments += ["--resume-from", str(answers), "--quiet"]
    answers.touch()
    for n_kills in range(6):
        before = answers.read_bytes()
        with questions.open("rb") as source, answers.open("ab") as target:
            streams = {0: source.fileno(), 1: target.fileno(), 2: target.fileno()}
            process = Process([*COMMAND, *arguments], environment(home), streams)
        if n_kills < 5:
            with suppress(TimeoutError):
                process.wait(chance.expovariate(2))
            process.kill()
        status = process.wait(300)
        after = answers.read_bytes()
        if not after.startswith(before):
            return [f"answers of earlier runs changed: {before[-80:]!r} {after[-80:]!r}"]
        if status == 0:
            return _check_answers(after)
    return [f"the last run ends with {status}: {after[-200:]!r}"]


def _check_answers(data: bytes) -> list[str]:
    counts: Counter[int] = Counter()
    for line in data.splitlines():
        with suppress(ValueError):  # one that a kill cut off
            counts[json.loads(line)["line"]] += 1
    if counts == dict.fromkeys(range(1, N_LINES + 1), 1):
        return []
    return [f"answers by line: {dict(counts)}"]


def kill_server(model: Path, home: Path, chance: random.Random) -> list[str]:
    """Kill a server that clients ask, and start the next one at the same place."""
    bad: list[str] = []
    asked = ("ask", "hello", "-m", model, "--max-tokens", "100")
    with tempfile.TemporaryDirectory(prefix="llama-chat-") as runtime:
        results: list[Result] = []

        def ask() -> None:
            try:
                results.append(run(*asked, home=home, XDG_RUNTIME_DIR=runtime))
            except TimeoutError:
                results.append(Result(-1, "", "it never ends"))

        arguments = ("serve", "-m", str(model), "--port", "0")
        with Program(*arguments, home=home, XDG_RUNTIME_DIR=runtime) as process:
            if chance.random() < 0.7:
                process.stderr.readline()
            clients = [threading.Thread(target=ask) for _ in range(chance.randint(0, 2))]
            for client in clients:
                client.start()
            time.sleep(chance.expovariate(4))
            process.kill(signal.SIGKILL)
            for client in clients:
                client.join()
        for result in results:
            errors = [line for line in result.err.splitlines() if ": error: " in line]
            if result.status not in CLEAN_STATUSES or len(errors) != (result.status != 0):
                bad.append(f"a client: {result}")
        with Program(*arguments, home=home, XDG_RUNTIME_DIR=runtime) as process:
            if "answers on" not in (line := process.stderr.readline().decode()):
                bad.append(f"the next server: {line}")
            ask()
            if results[-1].status:
                bad.append(f"the next client: {results[-1]}")
    return bad


KINDS: tuple[Callable[[Path, Path, random.Random], list[str]], ...] = (
    *(kill_chat, kill_chat, kill_chat),
    *(kill_batch, kill_batch),
    kill_server,
)


def main(arguments: list[str]) -> int:
    """Kill that many programs; returns 1 if anything was found."""
    count, seed = count_and_seed(arguments, 300)
    chance, findings = random.Random(seed), Findings()
    os.umask(0)  # files must be private whatever the umask is
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random.gguf"
        write_gguf(model)
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            with tempfile.TemporaryDirectory() as home:
                bad = kind(model, Path(home), chance)
            findings.add(kind.__name__, number, bad)
            if number % 50 == 49:
                print(f"{number + 1} so far", flush=True)
    return findings.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
