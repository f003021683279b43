"""Loading of the model, prompt file and session that the settings describe."""

import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, overload

from llama_chat.chat.prompt_files import PromptFile, load_prompt
from llama_chat.cli.ranks import other_ranks
from llama_chat.cli.slots import Slots
from llama_chat.errors import ModelError, UsageError, reason
from llama_chat.generation.constraints import Grammar
from llama_chat.library import find_model
from llama_chat.settings.setting import bytes_of
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams
from llama_chat.terminal.progress import progress

if TYPE_CHECKING:
    from llama_chat.chat.local_session import LocalSession
    from llama_chat.chat.remote_session import RemoteSession
    from llama_chat.llama import Llama
    from llama_chat.loading.endpoints import EndpointPlan
    from llama_chat.loading.load_plan import LoadPlan
    from llama_chat.remote import RemoteModel
    from llama_chat.server.warm_model import WarmDialog, WarmModel

_TORCH_BYTES = 2**30
"""Least address space for torch, a vocabulary and the headers of a model, which take 0.85 GB on two
cores; with less they fail in many ways, of which some end the process. A load needs more."""


def model_path(settings: Settings, wanted: str | None = None) -> Path:
    """Find the model ``wanted``, or else the one in the settings.

    Raises:
        ModelError: if there is none.
        UsageError: if the current folder is gone: the libraries of torch need one to be found; or
            if an endpoint is set, but a local model is needed.
    """
    if wanted is None and settings.is_given_by_flag("endpoint"):
        why = "this needs a local model"
        raise UsageError("--endpoint", why, "give --model; chat, ask and complete take --endpoint")
    if "torch" not in sys.modules:
        try:
            Path.cwd()
        except OSError as error:
            raise UsageError("current folder", reason(error), "change to one that exists") from None
    if wanted and settings.is_given_by_flag("model"):
        raise UsageError("--model", f"{wanted!r} is given too", "give one of them")
    return find_model(wanted or settings.model or "", settings.model_paths)


def plan_load(settings: Settings, *, reclaimable: int = 0) -> "LoadPlan":
    """Plan to load the model in the settings, by all ranks if there are several.

    Raises:
        ModelError: if there is none, or it cannot be opened.
        UsageError: if a setting does not suit it or this machine.
    """
    options = _options(settings, reclaimable)
    if (ranks := other_ranks()) is not None:
        from llama_chat.loading.ranks import plan_for_all

        return plan_for_all(ranks, **options)
    from llama_chat.loading.plan import plan

    return plan(**options)


def plan_whole(settings: Settings, wanted: str | None = None) -> "LoadPlan":
    """Plan to load the model ``wanted``, or the one in the settings, in this process.

    Raises:
        ModelError: if there is none, or it cannot be opened.
        UsageError: if a setting does not suit it or this machine.
    """
    options = _options(settings, wanted=wanted)
    from llama_chat.loading.plan import plan

    return plan(**options)


def _options(settings: Settings, reclaimable: int = 0, wanted: str | None = None) -> dict[str, Any]:
    """Return the arguments of a plan, after importing torch; see ``loading.plan.plan``."""
    path = model_path(settings, wanted)  # a wrong name is an error before torch is imported
    with importing_torch():
        import_module("llama_chat.loading.plan")
    return {
        "path": path,
        "device": settings.device,
        "device_map": settings.device_map,
        "dtype": settings.dtype,
        "quantize": settings.quantize,
        "kv_dtype": settings.kv_dtype,
        "context": settings.context,
        "threads": settings.threads,
        "model_paths": settings.model_paths,
        "draft": settings.draft,
        "memory": None if settings.memory is None else bytes_of(settings.memory),
        "reclaimable": reclaimable,
    }


def plan_model(settings: Settings, *, reclaimable: int = 0) -> "LoadPlan | EndpointPlan":
    """Plan to load the model in the settings, or to ask the server that they name.

    Raises:
        ModelError: if there is no such model, or it cannot be opened.
        UsageError: if a setting does not suit it or this machine.
    """
    url = settings.server_url
    if url is None:
        return plan_load(settings, reclaimable=reclaimable)
    return _plan_endpoint(url, settings)


def _plan_endpoint(url: str, settings: Settings) -> "EndpointPlan":
    from llama_chat.loading.endpoints import plan_endpoint

    here = settings.template_here
    return plan_endpoint(url, settings, model_path(settings, here) if here else None)


@contextmanager
def importing_torch() -> Iterator[None]:
    """Import torch in the block, quickly, and so that a signal ends the program at once.

    Raises:
        ModelError: if ``ulimit -v`` leaves too little memory for it.
    """
    _check_address_space()
    with _signals_exit(), _collector_paused():
        yield


def _check_address_space() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if "torch" not in sys.modules and limit != resource.RLIM_INFINITY and limit < _TORCH_BYTES:
        why = "not enough memory for torch"
        advice = f"raise it to {_TORCH_BYTES // 1024} or more"
        raise ModelError(f"ulimit -v {limit // 1024}", why, advice)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Import torch without garbage collection, and exempt its objects from later ones.

    They are never freed; each collection would visit some hundred thousand of them. Later calls do
    nothing: they would exempt models and conversations too.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _signals_exit() -> Iterator[None]:
    """Let signals end the program at once, except in the chat, whose handlers raise nothing.

    While torch is imported, an exception of a handler is lost in a callback, or aborts in C++; and
    there is nothing yet that a ``finally`` would have to clean up.
    """
    handlers = {}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if callable(signal.getsignal(number)):
                handlers[number] = signal.signal(number, _exit)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def load_model(settings: Settings, texts: Iterable[str] = ()) -> "tuple[Llama, Settings]":
    """Load the model that the settings name, with a progress bar and warnings on stderr.

    Args:
        settings: the settings.
        texts: prompts, of which each must fit in the context.

    Returns:
        The model, and the settings with what it suggests where nothing else sets a value.

    Raises:
        ModelError: if there is none, or it cannot be loaded.
        UsageError: if a setting does not suit it or this machine.
        PromptTooLongError: if a text is so long that it cannot fit; no weight is read then.
    """
    with progress("Loading the model", in_bytes=True, hidden=settings.hides_progress) as report:
        planned = plan_load(settings)
        for text in texts:
            planned.check_length(text)
        llama = planned.load(report)
    for line in llama.warnings:
        streams.warn(line)
    defaults = llama.checkpoint.generation
    return llama, settings.with_model(defaults.sampling, defaults.where)


def open_model(
    settings: Settings, texts: Iterable[str] = (), *, n_logprobs: int = 0
) -> "tuple[Llama | RemoteModel, Settings]":
    """Load the model that the settings name, or find it on their server; see ``load_model``.

    Args:
        settings: the settings.
        texts: prompts, of which each must fit in the context.
        n_logprobs: likely tokens at each position to ask a server for.
    """
    url = settings.server_url
    if url is None:
        return load_model(settings, texts)
    model = _plan_endpoint(url, settings).load()
    model.served.n_logprobs = n_logprobs
    for line in model.warnings:
        streams.warn(line)
    return model, settings


def with_prompt_file(settings: Settings, prompt: PromptFile | None) -> Settings:
    """Apply the settings of a prompt file that neither flag nor environment sets."""
    if prompt is None:
        return settings
    for line in prompt.warnings:
        streams.warn(line)
    return overlaid(settings, prompt)


def overlaid(settings: Settings, prompt: PromptFile) -> Settings:
    """Apply the settings of a prompt file again, whose warnings were written."""
    return settings.overlay(prompt.values, str(prompt.path))


def open_prompt(settings: Settings, slots: Slots) -> PromptFile | None:
    """Load the prompt file named in the settings, if one is, and fill its slots.

    Raises:
        UsageError: if it cannot be used; see ``named_prompt``.
    """
    prompt = named_prompt(settings)
    return prompt if prompt is None else slots.fill(prompt)


def named_prompt(settings: Settings) -> PromptFile | None:
    """Load the prompt file named in the settings, if one is.

    Raises:
        UsageError: if it cannot be read, or is raw text, which has no place beside a message.
    """
    if not settings.prompt:
        return None
    prompt = load_prompt(settings.prompt)
    if prompt.text is not None:
        why = "it is raw text, without a system message or examples"
        raise UsageError(f"prompt {settings.prompt!r}", why, "continue it with llama-chat complete")
    return prompt


@overload
def new_session(
    model: "Llama | RemoteModel",
    settings: Settings,
    prompt: PromptFile | None,
    notify: Callable[[str], None],
    grammar: Grammar | None = None,
) -> "LocalSession | RemoteSession": ...


@overload
def new_session(
    model: "WarmModel",
    settings: Settings,
    prompt: PromptFile | None,
    notify: Callable[[str], None],
    grammar: Grammar | None = None,
) -> "WarmDialog": ...


def new_session(
    model: "Llama | RemoteModel | WarmModel",
    settings: Settings,
    prompt: PromptFile | None,
    notify: Callable[[str], None],
    grammar: Grammar | None = None,
) -> "LocalSession | RemoteSession | WarmDialog":
    """Begin a conversation with the settings and the examples of the prompt file."""
    session = model.chat(
        template=settings.template,
        template_name=settings.template_name,
        examples=() if prompt is None else prompt.examples,
        grammar=grammar,
        notify=notify,
    )
    session.configure(settings)
    template = session.template
    if template is not None and (note := template.take_note()) and not settings.quiet:
        notify(note)
    return session
