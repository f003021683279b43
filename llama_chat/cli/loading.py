"""From settings to a loaded model."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from llama_chat.chat.prompt_files import PromptFile, load_prompt
from llama_chat.library import find_model
from llama_chat.settings import SAMPLING_NAMES, Settings
from llama_chat.terminal import streams
from llama_chat.terminal.progress import progress

if TYPE_CHECKING:
    from llama_chat.chat.session import ChatSession
    from llama_chat.generation.sampling import Sampling
    from llama_chat.llama import Llama


def load_model(settings: Settings) -> "Llama":
    """Load the model that the settings name, with a progress bar.

    Raises:
        ModelError: if there is none or it cannot be loaded.
    """
    path = find_model(settings.text("model"))
    from llama_chat.llama import load

    with progress("Loading the model") as report:
        llama = load(
            path,
            device=settings.text("device"),
            dtype=settings.text("dtype"),
            quantize=settings.text("quantize"),
            context=settings.integer("context"),
            threads=settings.integer("threads"),
            report=report,
        )
    for line in llama.checkpoint.warnings:
        streams.warn(line)
    return llama


def with_prompt_file(settings: Settings, prompt: PromptFile | None) -> Settings:
    """Let a prompt file set what neither flag nor environment nor settings file does."""
    if prompt is None:
        return settings
    for line in prompt.warnings:
        streams.warn(line)
    values = dict(prompt.settings)
    if prompt.system:
        values["system"] = prompt.system
    if prompt.stop:
        values["stop"] = prompt.stop
    return settings.overlay(values, str(prompt.path))


def open_prompt(settings: Settings) -> PromptFile | None:
    """The prompt file named in the settings, if one is."""
    name = settings.text("prompt")
    return load_prompt(name) if name else None


def sampling(settings: Settings) -> "Sampling":
    """The sampling that the settings describe."""
    from llama_chat.generation.sampling import Sampling

    return Sampling(**{name: settings[name] for name in SAMPLING_NAMES})  # type: ignore[arg-type] # checked by SETTINGS


def new_session(
    llama: "Llama", settings: Settings, prompt: PromptFile | None, notify: Callable[[str], None]
) -> "ChatSession":
    """Begin a conversation as the settings and the prompt file say."""
    return llama.chat(
        settings.text("system"),
        sampling(settings),
        template=settings.text("template"),
        examples=() if prompt is None else prompt.examples,
        max_tokens=settings.integer("max_tokens"),
        stop=settings.texts("stop"),
        drop_oldest=settings.text("overflow") == "drop-oldest",
        notify=notify,
    )
