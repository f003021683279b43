"""All settings.

A new setting is a field of a group, here or in a file beside this one, and a line in
``config.toml``; flag, environment variable, chat command, completion and ``--help`` text follow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from llama_chat.settings.endpoint import EndpointSettings
from llama_chat.settings.sampling import Sampling
from llama_chat.settings.setting import Setting, define, setting_of

TEMPLATES = {
    "auto": "the model's own",
    "llama2": "Llama 2 and its relatives",
    "chatml": "Qwen, SmolLM and others",
    "zephyr": "Zephyr and TinyLlama",
    "llama3": "Llama 3",
    "mistral": "Mistral 7B Instruct",
    "vicuna": "Vicuna",
    "plain": "no markers: for models that only continue text",
}
"""Chat templates; each but ``auto`` is the module of that name in ``chat/templates``."""


@dataclass(frozen=True)
class ModelSettings:
    """Model, device, and formats in memory."""

    model: str | None = define(
        "path",
        None,
        "Model: a folder, a file or a name.",
        scope="load",
        short="-m",
        example="smollm2-135m",
    )
    model_paths: tuple[str, ...] = define(
        "list",
        (),
        "Folder with models; may be given again.",
        scope="program",
        is_paths=True,
        example="~/models",
    )
    device: str = define(
        "text",
        "auto",
        "Device to compute on: auto, cpu, cuda, mps, or cuda:0,cuda:1.",
        scope="load",
        values={
            "auto": "CUDA, else MPS, else CPU",
            "cpu": "the processor",
            "cuda": "the first GPU",
            "mps": "the GPU of a Mac",
        },
        example="cpu",
    )
    device_map: str = define(
        "choice",
        "off",
        "Distribution of the layers over devices.",
        scope="load",
        values={
            "off": "as many consecutive layers on each device of --device",
            "auto": "on as few GPUs as have room, the rest on the CPU; or on those of --device",
        },
        example="auto",
    )
    dtype: str = define(
        "choice",
        "auto",
        "Type of the weights in memory.",
        scope="load",
        values={
            "auto": "as stored; where only torch computes floats, bfloat16 if that is fast",
            "float32": "4 bytes per weight",
            "bfloat16": "2 bytes per weight, with the range of float32",
            "float16": "2 bytes per weight, with a smaller range",
        },
        example="float32",
    )
    quantize: str = define(
        "choice",
        "auto",
        "Packing of the weights in memory.",
        scope="load",
        values={
            "auto": "a quantized file stays packed, any other stays as it is",
            "none": "floats of --dtype, however the file is stored",
            "stored": "packed as the file is",
            "int8": "quantized at load, about 1 byte per weight",
            "int4": "quantized at load, about half a byte per weight",
        },
        example="int8",
    )
    kv_dtype: str = define(
        "choice",
        "auto",
        "Type of the KV cache.",
        scope="load",
        values={
            "auto": "32 bits beside weights of 32, else 16",
            "int8": "half the memory of 16 bits, at a small loss",
        },
        example="int8",
    )
    context: int | None = define(
        "integer",
        None,
        "Context length in tokens; by default the model's.",
        scope="load",
        low=2,
        example="2048",
    )
    offline: bool = define(
        "switch",
        False,
        "Never use the network; only pull and endpoints do.",
        scope="program",
        example="true",
    )
    threads: int | None = define(
        "integer",
        None,
        "CPU threads; one per core by default.",
        scope="load",
        low=1,
        high=1024,
        example="4",
    )
    memory: str | None = define(
        "size",
        None,
        "Memory that the program may use in all.",
        scope="load",
        example="8G",
    )
    parallel: int = define(
        "integer",
        32,
        "Answers to compute at a time, where there are many; fewer if memory is short.",
        scope="program",
        low=1,
        high=1024,
        example="8",
    )
    server: bool = define(
        "switch",
        True,
        "Let a running server answer, if it has the same model and settings.",
        scope="program",
        example="false",
    )
    keep_warm: str | None = define(
        "time",
        None,
        "Start a server in the background, which stops after TIME without a request.",
        scope="program",
        example="10m",
    )
    draft: str | None = define(
        "path",
        None,
        "Draft model: a smaller one of the same vocabulary; faster, with the same text.",
        scope="load",
        example="smollm2-135m",
    )
    lookup: bool = define(
        "switch",
        True,
        "Prompt-lookup speculative decoding: faster, with the same text.",
        scope="reply",
        example="false",
    )
    model_defaults: bool = define(
        "switch",
        True,
        "Take sampling settings from the model where nothing else sets them.",
        scope="reply",
        example="false",
    )


@dataclass(frozen=True)
class ReplySettings:
    """Reply length, stop strings, system message, examples, chat template, and full contexts."""

    max_tokens: int = define(
        "integer",
        1024,
        "Length limit of a reply in tokens.",
        scope="reply",
        low=1,
        high=10**9,
        example="200",
    )
    stop: tuple[str, ...] = define(
        "list",
        (),
        "End a reply before this text; may be given again.",
        scope="reply",
        example=r'"\n\n" END',
    )
    system: str = define(
        "text",
        "",
        "System message: instructions for the model.",
        scope="reply",
        example="Be brief.",
    )
    prompt: str | None = define(
        "text",
        None,
        "Prompt file with a system message and examples to begin with.",
        scope="program",
        example="few_shot/translate_to_french",
    )
    template: str = define(
        "choice", "auto", "Chat template.", scope="reply", values=TEMPLATES, example="llama2"
    )
    template_name: str | None = define(
        "text",
        None,
        "Name of the chat template, if the model has several.",
        scope="reply",
        example="tool_use",
    )
    overflow: str = define(
        "choice",
        "drop-oldest",
        "Action when the context is full.",
        scope="reply",
        values={
            "drop-oldest": "no longer show the oldest turns to the model",
            "stop": "refuse the message",
        },
        example="stop",
    )


@dataclass(frozen=True)
class OutputSettings:
    """Terminal output, and saving of conversations and history."""

    color: str = define(
        "choice",
        "auto",
        "Colour on terminals.",
        scope="display",
        values={
            "auto": "as the terminal, NO_COLOR and FORCE_COLOR say",
            "always": "also into files and pipes",
            "never": "plain text",
        },
        example="never",
    )
    theme: str = define(
        "choice",
        "auto",
        "Colours for the background of the terminal.",
        scope="display",
        values={
            "auto": "for that which COLORFGBG or the terminal says, else for any",
            "dark": "for a dark one",
            "light": "for a light one",
            "none": "no colours in the chat: only bold, dim and underlined",
        },
        example="light",
    )
    markdown: str = define(
        "choice",
        "auto",
        "Format replies in the chat.",
        scope="display",
        values={
            "auto": "as the terminal says",
            "always": "formatted",
            "never": "as the model writes it",
        },
        example="never",
    )
    wrap: str = define(
        "choice",
        "words",
        "Breaks between the rows of a formatted reply.",
        scope="display",
        values={
            "words": "between words, on terminals",
            "terminal": "where the terminal's edge is",
        },
        example="terminal",
    )
    plain: bool = define(
        "switch",
        False,
        "No cursor movement, no toolbar: for screen readers.",
        scope="display",
        example="true",
    )
    editing_mode: str = define(
        "choice",
        "emacs",
        "Keys of the input in the chat.",
        scope="display",
        values={
            "emacs": "as in most shells",
            "vi": "Escape begins commands, i goes back to typing",
        },
        example="vi",
    )
    no_save: bool = define(
        "switch",
        False,
        "Keep no conversation and no history on disk.",
        scope="program",
        example="true",
    )
    quiet: bool = define(
        "switch",
        False,
        "Nothing but the answer and errors.",
        scope="display",
        short="-q",
        example="true",
    )
    verbose: bool = define(
        "switch",
        False,
        "More on stderr: speeds and counts.",
        scope="program",
        short="-v",
        example="true",
    )


_GROUPS: Mapping[str, type[Any]] = {
    "Model": ModelSettings,
    "Sampling": Sampling,
    "Reply": ReplySettings,
    "Output": OutputSettings,
    "Endpoint": EndpointSettings,
}

SETTINGS: Mapping[str, Setting] = {
    each.name: replace(setting_of(each.metadata), name=each.name, group=heading)
    for heading, group in _GROUPS.items()
    for each in fields(group)
}
"""All settings by name, ordered by group."""
