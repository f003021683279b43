"""Hold random chats in tmux: type, paste, resize, interrupt, suspend, edit and leave.

    python -m harness.campaigns.chats [COUNT] [SEED]

At the end of each, the screen and its scrollback must show every message once and in order, with
its reply, and no other prompt; the modes of the terminal must be as before, and no process left.
Prints the deviations, and the counts. Rows of a draft that tmux itself moves into the scrollback,
where no program can erase them, may be there beside the message; such chats are counted separately.
"""

import json
import random
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness.campaigns.trials import Findings, count_and_seed
from harness.program import run
from harness.tmux import SHELL, Tmux
from llama_chat.library import starter

EDITED = r"\s*".join("edited")  # rows may be broken anywhere


class RandomChat:
    """A chat whose steps are drawn from ``chance``."""

    def __init__(self, chance: random.Random, home: Path) -> None:
        self._chance = chance
        self._home = home
        self._said: list[str] = []
        """First line of each message that was sent."""
        self._moved = Counter[str]()
        """Rows in the scrollback, by the draft that they begin, which tmux moved there."""
        self.has_moved_rows = False
        """True if such rows were found at the end, beside the messages."""
        self._terminal = Tmux(home)

    def hold(self) -> list[str]:
        """Run the chat; returns the deviations."""
        terminal = self._terminal
        try:
            terminal.wait_for(re.escape(SHELL))
            model = shlex.quote(str(starter.installed_path(starter.DEFAULT)))
            editor = "VISUAL='sed -i s/draft/edited/'"
            flags = f"-m {model} --max-tokens 6 --temperature 0"
            terminal.type(f"stty -g; {editor} {sys.executable} -m llama_chat {flags}; stty -g")
            terminal.press("Enter")
            terminal.wait_for(r"template \w+\s+›")
            steps = [self._say, self._say_much, self._resize, self._clear, self._suspend]
            steps += [self._interrupt, self._edit, self._say, self._resize]
            for step in self._chance.choices(steps, k=self._chance.randint(5, 12)):
                step()
            return self._leave()
        except TimeoutError as error:
            return [f"{error} in:\n{terminal.text}"]
        finally:
            terminal.kill()

    def _wait_for_input(self) -> None:
        self._terminal.wait_for(r"(?m)^›[^\n]*\n(.*\n)*.*(context \d|SmolLM2)")

    def _message(self) -> str:
        text = f"m{len(self._said)} {self._chance.choice(['short', 'a few words ' * 9])}".strip()
        self._said.append(text)
        return text

    def _finish_reply(self) -> None:
        n = len(self._said) - 1
        self._terminal.wait_for(rf"› m{n} [\s\S]*?── model\s[\s\S]*?\n›", shown=False)
        self._wait_for_input()

    def _type(self, text: str) -> None:
        """Type, and wait until it is on the screen."""
        # tmux breaks its lines before it tells of a new size: drawings in between are misplaced.
        self._terminal.type(text)
        self._terminal.wait_for(r"\s*".join(map(re.escape, re.sub(r"\s", "", text))))

    def _say(self) -> None:
        message = self._message()
        self._type(message)
        self._drag(message)
        self._terminal.press("Enter")
        self._finish_reply()

    def _say_much(self) -> None:
        lines = [f"line {i}" for i in range(self._chance.choice([2, 5, 40]))]
        self._terminal.paste("\n".join([self._message(), *lines]))
        self._terminal.press("Enter")
        self._finish_reply()

    def _interrupt(self) -> None:
        self._terminal.type(self._message())
        self._terminal.press("Enter")
        self._terminal.wait_for(rf"› m{len(self._said) - 1} [\s\S]*── model", shown=False)
        self._drag()
        self._terminal.press("C-c")
        self._finish_reply()

    def _resize(self) -> None:
        self._terminal.resize(self._chance.randint(20, 200), self._chance.randint(8, 50))
        self._wait_for_input()

    def _drag(self, draft: str = "") -> None:
        """Resize several times, as a mouse does, in one of three cases; with a ``draft`` if any."""
        begin = _beginning(draft)
        for _ in range(self._chance.choice([0, 0, 5])):
            size = self._chance.randint(20, 200), self._chance.randint(8, 50)
            scrollback = self._terminal.resize(*size)
            if draft:
                moved = len(re.findall(rf"(?m)^{begin}", scrollback))
                self._moved[begin] = max(moved, self._moved[begin])

    def _clear(self) -> None:
        draft = "some draft that is never sent"
        self._type(draft)
        self._drag(draft)
        self._terminal.press("C-c")
        self._wait_for_input()

    def _edit(self) -> None:
        self._terminal.type(f"{self._message()} draft")
        self._terminal.press("C-g")
        self._terminal.wait_for(rf"› m{len(self._said) - 1} [\s\S]*{EDITED}", shown=False)
        self._terminal.press("Enter")
        self._finish_reply()

    def _suspend(self) -> None:
        self._terminal.press("C-z")
        self._terminal.wait_for(rf"Stopped[\s\S]*{re.escape(SHELL)} *\s*\Z", shown=False)
        self._terminal.type("fg")
        self._terminal.press("Enter")
        shell, later = re.escape(SHELL), r"(?:(?!Stopped)[\s\S])*"
        self._terminal.wait_for(rf"Stopped{later}{shell} fg{later}\n›{later}\Z", shown=False)
        self._wait_for_input()

    def _leave(self) -> list[str]:
        terminal = self._terminal
        terminal.resize(200, 50)
        self._wait_for_input()
        for key in self._chance.choice([["C-d"], ["C-c", "C-c"], ["/exit", "Enter"]]):
            terminal.press(key)
            time.sleep(0.3)  # two Ctrl-C are two decisions
        terminal.wait_for(rf"{re.escape(SHELL)}\s*\Z")
        text = terminal.text
        bad = [*self._lost(text), *self._left(text)]
        return [*bad, text] if bad else []

    def _lost(self, text: str) -> list[str]:
        """Find messages and replies that are missing, shown twice, or out of order."""
        bad = []
        names = json.loads(run("sessions", "--json", home=self._home).out)
        saved = (
            run("sessions", "show", names[0]["name"], "--json", home=self._home).out
            if names
            else "[]"
        )
        joined, at = _squeezed(text), 0
        for entry in json.loads(saved):
            first = entry["content"].split("\n")[0]
            found = joined.find(_squeezed(first), at)
            if found < 0:
                bad.append(f"not shown, or not in order: {first!r}")
            else:
                at = found + len(_squeezed(first))
        for number, message in enumerate(self._said):
            begin = _beginning(message)
            n_shown = len(re.findall(rf"(?m)^{begin}", text))
            self.has_moved_rows |= n_shown > 1
            if not 1 <= n_shown <= 1 + self._moved[begin]:
                bad.append(f"message {number} is shown {n_shown} times")
        return bad

    def _left(self, text: str) -> list[str]:
        """Find prompts, modes and processes that were left."""
        bad = []
        stray = [
            line for line in re.findall(r"(?m)^›.*$", text) if not re.match(r"› (m\d|/exit)", line)
        ]
        n_moved = sum(n for begin, n in self._moved.items() if not re.match("› m[0-9]", begin))
        # The chat was left at the last one. Ctrl-C may come when a reply has just ended.
        n_left = 1 + text.count("Ctrl-C again")
        self.has_moved_rows |= len(stray) > n_left
        if len(stray) > n_left + n_moved:
            bad.append(f"stray prompts: {stray}")
        modes = re.findall(r"(?m)^[0-9a-f:]{60,}$", text)
        if len(set(modes)) != 1:
            bad.append(f"modes: {modes}")
        flags = self._terminal.ask("display-message", "-p", "#{cursor_flag}#{wrap_flag}").strip()
        if flags != "11":
            bad.append(f"cursor and wrap flags: {flags}")
        ours = f"HOME={self._home}\0".encode()
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command = (path / "cmdline").read_bytes()
                if ours in (path / "environ").read_bytes() and b"llama_chat" in command:
                    bad.append(f"left: {command!r}")
            except OSError:  # it has ended
                continue
        return bad


def _beginning(draft: str) -> str:
    """Return how the first row of a draft begins on the screen."""
    return f"› {draft.partition(' ')[0]} "


def _squeezed(text: str) -> str:
    """Remove all white space, where lines may be broken, and marks of Markdown."""
    return re.sub(r"[\s*_`#>│-]", "", text)


def main(arguments: Sequence[str]) -> int:
    """Run chats; returns 1 if anything was wrong."""
    count, seed = count_and_seed(arguments, 200)
    findings = Findings()
    for each in range(seed, seed + count):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
            chat = RandomChat(random.Random(each), Path(home))
            bad = chat.hold()
        kind = "chats with rows that tmux moved" if chat.has_moved_rows else "other chats"
        findings.add(kind, each, bad)
    return findings.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
