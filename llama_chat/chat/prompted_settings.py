"""Settings of a chat, which a prompt file can change temporarily."""

from llama_chat.chat.prompt_files import PromptFile
from llama_chat.checkpoints.generation_defaults import GenerationDefaults
from llama_chat.settings.setting import Value
from llama_chat.settings.settings import Settings


class PromptedSettings:
    """Settings of a chat.

    Ending a prompt file reverts its changes; changes made by the user meanwhile stay.
    """

    def __init__(self, settings: Settings) -> None:
        """Start without a prompt file."""
        self.now = settings
        """All settings in force."""
        self._without_prompt: Settings | None = None

    def change(self, name: str, value: Value, source: str) -> None:
        """Set the value of a setting."""
        self.now = self.now.change(name, value, source)
        if self._without_prompt is not None:
            self._without_prompt = self._without_prompt.change(name, value, source)

    def use_model(self, defaults: GenerationDefaults) -> None:
        """Take what a model suggests for settings that nothing sets, instead of an earlier one."""
        self.now = self.now.with_model(defaults.sampling, defaults.where)
        if self._without_prompt is not None:
            before = self._without_prompt
            self._without_prompt = before.with_model(defaults.sampling, defaults.where)

    def use_prompt(self, prompt: PromptFile, *, above_flags: bool) -> None:
        """Apply the settings of a prompt file, instead of those of the one in use.

        Args:
            prompt: the file.
            above_flags: True to override flags and environment variables too.
        """
        self.end_prompt()
        self._without_prompt, source = self.now, str(prompt.path)
        if above_flags:
            for name, value in prompt.values.items():
                self.now = self.now.change(name, value, source)
        else:
            self.now = self.now.overlay(prompt.values, source)

    def end_prompt(self) -> None:
        """Revert the changes of the prompt file in use."""
        if self._without_prompt is not None:
            self.now, self._without_prompt = self._without_prompt, None
