"""Input loop of the chat: read a line, then run it as a command or send it as a message."""

import os
import shlex

from prompt_toolkit.formatted_text import StyleAndTextTuples

from llama_chat.errors import LlamaChatError, NothingYetError, UsageError, unexpected
from llama_chat.terminal.advice import line_in_chat
from llama_chat.terminal.chat import Chat
from llama_chat.terminal.commands import find_command, parse_command
from llama_chat.terminal.completion import ChatCompleter
from llama_chat.terminal.history import open_history
from llama_chat.terminal.interrupts import Interrupted
from llama_chat.terminal.keyboard import Input, PromptInput
from llama_chat.terminal.plain_input import PlainInput
from llama_chat.terminal.streams import one_line, write_own
from llama_chat.terminal.toolbar import toolbar


class ChatApp:
    """The chat on a terminal: its input, and the loop that reads it."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._warnings: list[str] = []
        """Warnings that are not written yet."""
        self._failed: set[type[Exception]] = set()
        """Kinds of unexpected errors that are known to the user."""
        self._input = self._open_input()
        self._asked_to_leave = False
        """True if another Ctrl-C leaves the chat; reset when a line is sent."""
        self._refused = ("", "")
        """Last message that was refused, and the reason."""
        chat.on_change = self._on_change
        chat.interrupts.on_end = self._end_input

    def run(self) -> None:
        """Run the chat until the user leaves; the model loads in the background.

        Raises:
            KeyboardInterrupt: on Ctrl-C before the first input.
            LlamaChatError: if the model cannot be loaded.
            SaveError: if the conversation could not be saved, also at the end.
        """
        chat = self._chat
        if chat.interrupts.take() and not chat.interrupts.status:
            raise KeyboardInterrupt
        try:
            self._read_loop()
        finally:
            self._input.close()
            # A signal waits for nothing: a load can take seconds to notice.
            chat.loader.stop(wait=not chat.interrupts.status)
        if chat.unsaved is not None:
            chat.save()
            if chat.unsaved is not None:
                raise chat.unsaved
        if chat.file.name and not (chat.settings.quiet or chat.interrupts.status):
            name = shlex.quote(chat.file.name)
            chat.renderer.note(f"saved: llama-chat --resume {name}")
            if not chat.file.has_all_of(chat.conversation):
                chat.renderer.note("not saved: what was said after that, since no-save is true")

    def _read_loop(self) -> None:
        chat = self._chat
        typed, is_selected = "", False
        while not (chat.leaving or chat.interrupts.status):
            if self._input_options != self._wanted_options():
                self._input.close()
                self._input = self._open_input()
            if chat.renderer.plain:
                self._wait_for_model()
            if chat.interrupts.take():  # pressed when there was nothing left to stop
                if self._asked_to_leave:
                    return
                typed = ""
                chat.stop_editing()
            try:
                line = self._read(typed, selected=is_selected)
            except EOFError:
                return
            except KeyboardInterrupt:
                if self._asked_to_leave:
                    return
                self._asked_to_leave, typed = True, ""
                chat.stop_editing()
                chat.renderer.note("Ctrl-C again or Ctrl-D leaves")
                continue
            self._asked_to_leave = False
            typed, is_selected = self._handle(line)
            if chat.editing is not None and not typed:
                typed = chat.editing.text
            chat.prefill_next()

    def _read(self, typed: str, *, selected: bool) -> str:
        """Read a line; warnings are written before and after."""
        self._tell()
        try:
            return self._input.read(typed, selected=selected)
        finally:
            self._tell()

    def _wait_for_model(self) -> None:
        """Wait for the model: in a plain terminal nothing may be written while a line is read."""
        try:
            self._chat.wait_for_session()
        except Interrupted:
            self._asked_to_leave = True
            self._chat.renderer.note("still loading; Ctrl-C again or Ctrl-D leaves")

    def _handle(self, line: str) -> tuple[str, bool]:
        """Run a command or send a message.

        Returns:
            The text to put into the input: the line if it can be corrected, or was interrupted.
            And whether typing is to replace it, as a command that was refused.
        """
        chat = self._chat
        if not line.strip() and not chat.attachments:
            return "", False
        try:
            parsed = parse_command(line)
            if parsed is None:
                _refuse_command_without_slash(line)
                self._send(line[1:] if line.startswith("//") else line)
            else:
                name, argument = parsed
                command = find_command(name)
                if argument and not command.argument:
                    advice = "leave out the argument, or type // to send the line as a message"
                    raise UsageError(f"/{command.name}", "it takes no argument", advice)
                command.run(chat, argument)
                chat.save()
            chat.renderer.space()
        except LlamaChatError as error:
            why = line_in_chat(error)
            chat.renderer.error(why)
            if isinstance(error, NothingYetError) or chat.renderer.plain:
                return "", False  # in a plain terminal a line is appended to; Up brings it back
            if parse_command(line) is not None:
                return line, True
            self._refused = line, why
            return line, False
        except Interrupted:
            chat.renderer.note("stopped")
            return line, False
        return "", False

    def _send(self, text: str) -> None:
        if self._chat.editing is None:
            self._chat.send(text)
        else:
            self._chat.finish_editing(self._chat.editing, text)

    def _wanted_options(self) -> tuple[bool, bool, bool, bool]:
        """Options that the input is created with: plain, coloured, history kept, keys of vi."""
        renderer, settings = self._chat.renderer, self._chat.settings
        vi = settings.editing_mode == "vi"
        return renderer.plain, renderer.colored, not settings.no_save, vi

    def _open_input(self) -> Input:
        chat = self._chat
        self._input_options = plain, colored, keep, vi = self._wanted_options()
        history = open_history(self._warn, keep=keep)
        if plain:
            return PlainInput(history, lambda: ChatCompleter(chat), self._poll, vi=vi)
        completer = ChatCompleter(chat)

        def on_open() -> None:
            write_own(chat.renderer.question())
            completer.forget()
            self._on_change()

        return PromptInput(
            history,
            completer,
            self._toolbar,
            colored=colored,
            vi=vi,
            on_open=on_open,
            on_shown=self._on_shown,
            on_clear=chat.stop_editing,
            # A Ctrl-C from before Enter must not stop the reply.
            on_send=chat.interrupts.take,
            on_report=chat.background.hear,
            on_failure=self._on_failure,
        )

    def _on_shown(self) -> None:
        chat = self._chat
        if chat.interrupts.status:
            self._end_input()
            return
        if chat.interrupts.take():  # pressed while the input was opening
            if self._asked_to_leave:
                self._input.end(KeyboardInterrupt())
            self._input.clear()
            chat.stop_editing()
        # Only once the input is visible: importing torch would delay it by a second.
        if chat.session is None and not chat.loader.is_loading:
            chat.load()

    def _end_input(self) -> None:
        self._input.end(EOFError())

    def _poll(self) -> None:
        """Raise what ends the input, if a signal asks for that."""
        if self._chat.interrupts.status:
            raise EOFError
        if self._chat.interrupts.take():
            raise KeyboardInterrupt

    def _toolbar(self) -> StyleAndTextTuples:
        chat, typed = self._chat, self._input.text
        refused, why = self._refused
        if refused and typed == refused and not chat.renderer.fits(f"{why}\n\n{typed}"):
            # The error is no longer on the screen.
            return [("class:bottom-toolbar.warning", f" {one_line(why)}")]
        message = "" if parse_command(typed) else typed
        return toolbar(chat, message, chat.renderer.console.width)

    def _on_failure(self, error: Exception) -> None:
        """Report what failed within the input, an unexpected error once for each kind."""
        if os.environ.get("LLAMA_CHAT_TRACEBACK"):
            self._input.end(error)
        elif isinstance(error, LlamaChatError):
            self._warn(line_in_chat(error))
        elif type(error) not in self._failed:
            self._failed.add(type(error))
            self._warn(unexpected(error))

    def _warn(self, line: str) -> None:
        """Show a warning as soon as the terminal is free for it."""
        self._warnings.append(line)
        self._chat.on_change()

    def _tell(self) -> None:
        """Write the notes of background jobs, and the warnings."""
        self._chat.tell_notes()
        warnings, self._warnings = self._warnings, []
        for line in warnings:
            self._chat.renderer.note(f"warning: {one_line(line)}", "bold")

    def _on_change(self) -> None:
        """Schedule ``_update`` in the thread of the input; called in any thread."""
        self._input.call(self._update)

    def _update(self) -> None:
        """Adopt a loaded model, and show notes or errors, while the input is open."""
        chat = self._chat
        try:
            chat.adopt_loaded()
        except LlamaChatError as error:
            self._input.end(error)
            return
        if chat.loader.error is not None:
            self._input.end(chat.loader.error)
        elif chat.notes or self._warnings:
            self._input.write_above(self._tell)
        else:
            self._input.redraw()


def _refuse_command_without_slash(line: str) -> None:
    """Check that a message is not a lone word that other programs take for a command.

    Raises:
        UsageError: if it is.
    """
    word = line.rstrip().lower()
    if name := {"exit": "exit", "quit": "exit", ":q": "exit", "help": "help"}.get(word):
        raise UsageError(repr(word), "commands begin with /", f"/{name}, or a blank and {word}")
