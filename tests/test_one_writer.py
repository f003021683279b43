"""Foreign text is written in one place; every other call that writes is listed here."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import llama_chat

PACKAGE = Path(llama_chat.__file__).parent

WRITERS = {
    *("print", "print_formatted_text", "print_exception", "print_exc", "echo", "secho", "pprint"),
    *("write", "writelines", "write_raw", "writev", "pwrite", "write_own", "rule", "log"),
    *("write_text", "write_bytes", "send", "sendall", "title", "set_title"),
}

SANITIZED = {
    "terminal/streams.py": "the place: it sanitizes, or says for what it does not",
    "terminal/renderer.py": "replies and notes of the chat, sanitized by itself or by Markdown",
    "terminal/status_line.py": "passes on what the renderer writes, and draws numbers",
}
"""Modules that write text of models, by the reason why they may."""

OURS = {
    "cli/bench.py: streams.write_own(draw_bench(": "numbers, and names as safe_text",
    "cli/completing.py: write_own(written.getvalue())": "a script of Typer",
    "cli/inspect.py: streams.write_own(draw_model(": "strings as safe_text or sanitized",
    "cli/listing.py: console.print(FittedTable(": "it sanitizes its cells",
    "cli/listing.py: write(": "sanitized by an AnswerWriter",
    "cli/many.py: streams.write_own('\\n')": "a constant",
    "cli/sessions.py: write(to_markdown(": "sanitized by an AnswerWriter",
    "cli/ranks.py: os.write(errors, f'llama-chat: error: {lost}": "a number and our words",
    "cli/root.py: streams.write_own(f'llama-chat {__version__}\\n')": "our version",
    "terminal/app.py: write_own(chat.renderer.question())": "a constant",
    "terminal/clipboard.py: renderer.write(sequence)": "base64",
    "terminal/clipboard.py: renderer.write(f'": "base64",
    "terminal/commands/conversation.py: renderer.write(text)": "what the renderer has drawn",
    "terminal/keyboard.py: print_formatted_text(FormattedText(echo)": "sanitized a line above",
    "terminal/own_terminal.py: os.write(1, os.read(ours, 4096))": "keys that a terminal echoes",
    "terminal/page.py: console.print(": "a string; bench and inspect write it",
    "terminal/plain_input.py: write_own('\\n')": "a constant",
    "terminal/resizing.py: self._app.output.write_raw(_ERASE_DOWN)": "a constant",
    "terminal/resizing.py: output.write_raw(' ')": "a constant",
}
"""Calls whose text is ours or sanitized where it is made, by the reason."""

ELSEWHERE = {
    "chat/locked_file.py: os.write(": "a file",
    "chat/remote_session.py: math.log(": "a logarithm",
    "chat/templates/base.py: self.write(messages": "returns a text",
    "chat/templates/jinja.py: masking.write(": "returns a text",
    "chat/templates/jinja_child.py: ": "a pipe to our parent",
    "chat/templates/jinja_renderer.py: self._socket.sendall(data)": "a pipe to our child",
    "cli/ask.py: session.send(message, hooks)": "to the model",
    "cli/convert.py: plan.write(temporary, report)": "a file",
    "conversion/": "files",
    "durable_files.py: file.write(data)": "a file",
    "cli/warm.py: stdin.write(config.encode())": "to the server that it starts",
    "endpoint/client.py: connections.send(request": "to a server",
    "generation/kv_cache.py: self.rows.write(": "rows",
    "hub/fetching.py: self._output.write(chunk)": "a file",
    "hub/fetching.py: partial.write(chunk)": "a file",
    "library/downloads.py: path.write_text(": "a file",
    "library/starter.py: copy.write(chunk)": "a file",
    "loading/ranks.py: traceback.print_exc()": "for LLAMA_CHAT_TRACEBACK",
    "model/attention.py: span.cache.write(": "rows",
    "parallel/": "orders and answers of ranks",
    "server/": "answers of HTTP, of JSON",
    "terminal/app.py: self._chat.send(text)": "to the model",
    "terminal/chat.py: session.send(text, hooks": "to the model",
    "terminal/chat.py: self.send(text)": "to the model",
    "terminal/commands/files.py: file.write(text)": "a file",
    "terminal/commands/settings.py: chat.send(prompt.text)": "to the model",
    "terminal/editor.py: path.write_bytes(before)": "a file for the editor",
    "terminal/markdown/parsing.py: rule(state)": "a rule of the parser",
    "terminal/own_terminal.py: os.write(ours, keys)": "keys to ourselves",
    "terminal/pager.py: file.write(": "a file for the pager, of what the renderer has drawn",
}
"""Calls that write to no terminal."""


@cache
def modules() -> dict[Path, ast.Module]:
    """Parse the package."""
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def answer_writers(tree: ast.Module) -> set[str]:
    """Return the names that only ever hold an ``AnswerWriter``, which sanitizes."""
    found: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                made = isinstance(value, ast.Call) and ast.unparse(value.func) == "AnswerWriter"
                (found if made else others).add(name)
            case ast.arg(arg=name, annotation=annotation):
                typed = annotation is not None and "AnswerWriter" in ast.unparse(annotation)
                (found if typed else others).add(name)
    return found - others


def writing_calls() -> Iterator[str]:
    """Yield every call that may write to a stream, after the path of its module."""
    for path, tree in modules().items():
        name = path.relative_to(PACKAGE).as_posix()
        writers = answer_writers(tree)
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=holder), attr="write")) if (
                    holder in writers
                ):
                    continue
                case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)) if (
                    called in WRITERS
                ):
                    yield f"{name}: {ast.unparse(node)}"


def test_nothing_else_writes() -> None:
    listed = [*(f"{module}: " for module in SANITIZED), *OURS, *ELSEWHERE]
    calls = list(writing_calls())
    unknown = [call for call in calls if not call.startswith(tuple(listed))]
    assert not unknown
    gone = [known for known in listed if not any(call.startswith(known) for call in calls)]
    assert gone == []


def test_a_new_writer_would_be_found() -> None:
    """The search knows the ways to write; a name that hides one is not used."""
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names = {alias.asname for alias in node.names if alias.asname}
                assert not names & WRITERS, path
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
                assert node.value.attr not in {"write", "print", "echo", "writelines"}, path


def test_raw_answers_are_those_that_are_asked_for() -> None:
    """An ``AnswerWriter`` writes bytes as they are only for ``--raw`` and JSON."""
    found = {}
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "AnswerWriter":
                for keyword in node.keywords:
                    found[path.relative_to(PACKAGE).as_posix()] = ast.unparse(keyword.value)
    assert found == {
        "cli/answering.py": "options.raw or as_json",
        "cli/choosing.py": "options.raw or options.as_json",
        "cli/replay.py": "as_json",
        "terminal/streams.py": "True",  # write_own
    }
