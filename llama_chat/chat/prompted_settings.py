"""Settings over which a prompt file may lie for a while."""

from llama_chat.chat.prompt_files import PromptFile
from llama_chat.settings.definitions import Settings
from llama_chat.settings.setting import Value


class PromptedSettings:
    """The settings of a chat.

    What is changed by hand stays when the prompt file goes; what the prompt file changed goes too.
    """

    def __init__(self, settings: Settings) -> None:
        """Begin without a prompt file."""
        self.now = settings
        """All settings in force."""
        self._without_prompt: Settings | None = None

    def change(self, name: str, value: Value, source: str) -> None:
        """Give a setting another value."""
        self.now = self.now.change(name, value, source)
        if self._without_prompt is not None:
            self._without_prompt = self._without_prompt.change(name, value, source)

    def use_prompt(self, prompt: PromptFile, *, above_flags: bool) -> None:
        """Let a prompt file change settings, in the place of the one in use.

        Args:
            prompt: the file.
            above_flags: whether it changes also what a flag or the environment says.
        """
        self.end_prompt()
        self._without_prompt, source = self.now, str(prompt.path)
        if above_flags:
            for name, value in prompt.values.items():
                self.now = self.now.change(name, value, source)
        else:
            self.now = self.now.overlay(prompt.values, source)

    def end_prompt(self) -> None:
        """Undo what the prompt file in use has changed."""
        if self._without_prompt is not None:
            self.now, self._without_prompt = self._without_prompt, None
