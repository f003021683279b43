"""``llama-chat inspect``: description of a model, without reading its weights."""

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_chat.chat.conversation import Message
from llama_chat.chat.templates import ChatTemplate, choose_template
from llama_chat.cli.completing import models
from llama_chat.cli.loading import plan_whole
from llama_chat.cli.options import takes_settings
from llama_chat.errors import UsageError, counted
from llama_chat.settings.setting import bytes_of
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams
from llama_chat.tokenizers.streaming import StreamingDecoder

if TYPE_CHECKING:
    from llama_chat.checkpoints.base import Checkpoint
    from llama_chat.loading.load_plan import LoadPlan
    from llama_chat.model.config import LlamaConfig
    from llama_chat.tokenizers.base import Tokenizer

_SAMPLES = ("Hello, world!", " naïve café", "1234 + 5678", "你好", "🦙")
"""Sample texts, with words, accents, digits, another script and a symbol."""

_QUESTION = Message("user", "Hello!")
_ANSWER = Message("assistant", "Hi. What can I do for you?")
_DIALOGS = (
    (_QUESTION,),
    (Message("system", "Be brief."), _QUESTION, _ANSWER),
    (_QUESTION, _ANSWER, Message("user", "Why?")),
)
"""Sample dialogs to render by the template."""

_PARTS = ("embedding", "attention", "feed_forward", "norms", "output")

_CONTEXT_LENGTHS = (1024, 4096)
"""Context lengths in tokens for which memory is reported, beside the full context."""


@takes_settings
def inspect(
    settings: Settings,
    target: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Path or name.", autocompletion=models),
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    world_size: Annotated[
        int | None,
        typer.Option("--world-size", metavar="N", min=1, help="Also plan for N ranks."),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            "--bandwidth",
            metavar="GB/s",
            help="Memory bandwidth of a rank; measured here if not given.",
        ),
    ] = None,
    interconnect: Annotated[
        float | None,
        typer.Option("--interconnect", metavar="GB/s", help="Bandwidth between ranks, each way."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Draw a model without reading its weights.

    It shows the architecture, the memory needed, the tensors, the tokenizer, the chat template and
    the tokens that end a reply.
    """
    plan = plan_whole(settings, target)
    report = describe(plan, settings)
    if settings.device_map != "off":
        from llama_chat.loading.scaling import describe_map

        report["device_map"] = describe_map(plan)
    if world_size is not None:
        from llama_chat.loading.scaling import describe_ranks

        report["scaling"] = describe_ranks(
            plan,
            world_size,
            settings.parallel if settings.is_given("parallel") else 1,
            available=None if settings.memory is None else bytes_of(settings.memory),
            bandwidth=_rate(bandwidth, "--bandwidth"),
            interconnect=_rate(interconnect, "--interconnect"),
        )
    for line in plan.warnings:
        streams.warn(line)
    if as_json:
        streams.write_json(report)
    else:
        colored = streams.use_color(settings.color, sys.stdout)
        from llama_chat.terminal.model_picture import draw_model

        wrapped = streams.is_terminal(sys.stdout)
        streams.write_own(
            draw_model(report, colored=colored, wrapped=wrapped, with_tensors=tensors)
        )


def _rate(gigabytes: float | None, what: str) -> float | None:
    """Return bytes per second.

    Raises:
        UsageError: about ``what``, if it is no rate.
    """
    if gigabytes is None:
        return None
    if not 1e-6 <= gigabytes <= 1e6:
        raise UsageError(f"{what} {gigabytes:g}", "no rate of a memory or a network", "give GB/s")
    return gigabytes * 1e9


def describe(plan: "LoadPlan", settings: Settings) -> dict[str, Any]:
    """Describe a model as a JSON object, with the memory it would take when loaded as planned."""
    checkpoint, tokenizer, config = plan.checkpoint, plan.tokenizer, plan.checkpoint.config
    template, note = _choose_template(checkpoint, tokenizer, settings)
    context = plan.config.context_length
    lengths = [*(n for n in _CONTEXT_LENGTHS if n < context), context]
    fitting = plan.fitting_context
    return {
        "name": checkpoint.name,
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "architecture": asdict(config),
        "rope": _rope(config),
        "parameters": config.n_parameters,
        "parameters_by_part": _parameters_by_part(config),
        "stored_bytes": checkpoint.n_bytes,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "quantize": plan.weight_format,
        "kernel": plan.kernel,
        "weights_memory": plan.weight_bytes,
        "cache_memory": {str(length): plan.cache_bytes(length) for length in lengths},
        "buffers_memory": {str(length): plan.buffer_bytes(length) for length in lengths},
        "memory": {str(length): plan.bytes_with(length) for length in lengths},
        "available_memory": plan.bytes_free,
        "fits": fitting >= context,
        "fitting_context": fitting,
        "types": dict(Counter(info.type for info in checkpoint.tensors.values())),
        "types_by_part": _types_by_part(checkpoint),
        "tensors": [
            {"name": name, "shape": list(info.shape), "type": info.type, "bytes": info.n_bytes}
            for name, info in checkpoint.tensors.items()
        ],
        "template": _describe_template(checkpoint, tokenizer, template, note),
        "generation": _describe_generation(checkpoint, tokenizer, template),
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "add_bos": tokenizer.add_bos,
            "control_tokens": dict(tokenizer.control_ids),
        },
        "samples": {"texts": [_split(tokenizer, text) for text in _SAMPLES]},
    }


def _part(name: str) -> str:
    """Return the part of the model that a weight belongs to."""
    if name.endswith("norm.weight"):
        return "norms"
    if "." not in name.removesuffix(".weight"):
        return "output" if name.startswith("output") else "embedding"
    return name.split(".")[2]


def _parameters_by_part(config: "LlamaConfig") -> dict[str, int]:
    counts = dict.fromkeys(_PARTS, 0)
    for name, shape in config.tensor_shapes().items():
        counts[_part(name)] += math.prod(shape)
    return counts


def _types_by_part(checkpoint: "Checkpoint") -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {part: Counter() for part in _PARTS}
    for name, info in checkpoint.tensors.items():
        counts[_part(name)][info.type] += 1
    return {part: dict(types.most_common()) for part, types in counts.items()}


def _rope(config: "LlamaConfig") -> str:
    """Describe the rotary embedding."""
    from llama_chat.model.rope import (
        DynamicScaling,
        FrequencyDivisors,
        LinearScaling,
        Llama3Scaling,
    )

    match config.rope_scaling:
        case None:
            scaling = "not scaled"
        case LinearScaling(factor):
            scaling = f"positions divided by {factor:g}"
        case DynamicScaling(factor, original):
            past = counted(original, "token", ",")
            scaling = f"a larger base past {past}, for up to {factor:g} times as many"
        case Llama3Scaling(factor, _, _, original):
            first = counted(original, "token", ",")
            scaling = f"low frequencies divided by {factor:g}, made for {first} first"
        case FrequencyDivisors(divisors):
            scaling = f"frequencies divided by {min(divisors):g} to {max(divisors):g}, ready-made"
        case other:
            scaling = f"scaled ({type(other).__name__})"
    return f"base {config.rope_theta:,.10g}, {scaling}"


def _split(tokenizer: "Tokenizer", text: str) -> dict[str, Any]:
    """Tokenize a text: its ids, its pieces, and these as readable text."""
    ids = tokenizer.encode(text)
    return {
        "text": text,
        "ids": ids,
        "pieces": [tokenizer.piece(token_id) for token_id in ids],
        "visible": [_visible(tokenizer.token_bytes(token_id)) for token_id in ids],
    }


def _visible(data: bytes) -> str:
    """Decode the bytes of a token with visible blanks; a partial character as its bytes."""
    try:
        return data.decode().replace(" ", "␣").replace("\n", "⏎")
    except UnicodeDecodeError:
        return "".join(f"<{byte:02X}>" for byte in data)


def _choose_template(
    checkpoint: "Checkpoint", tokenizer: "Tokenizer", settings: Settings
) -> tuple[ChatTemplate | None, str]:
    """Return the chat template, or None, and a note about it."""
    name, variant = settings.template, settings.template_name
    try:
        template = choose_template(name, checkpoint.templates, tokenizer, variant)
    except UsageError as error:
        return None, str(error)
    return template, template.take_note()


def _describe_template(
    checkpoint: "Checkpoint", tokenizer: "Tokenizer", template: ChatTemplate | None, note: str
) -> dict[str, Any]:
    """Describe the chat template: its name, its source, and sample dialogs that it renders."""
    source = checkpoint.templates
    return {
        "name": template and template.name,
        "source": source.where,
        "texts": sorted(source.texts),
        "note": note,
        "dialogs": [_render(template, tokenizer, each) for each in _DIALOGS] if template else [],
    }


def _describe_generation(
    checkpoint: "Checkpoint", tokenizer: "Tokenizer", template: ChatTemplate | None
) -> dict[str, Any]:
    """Describe the tokens that end a reply and the suggested sampling, with their sources."""
    from llama_chat.generation.end_tokens import end_tokens

    defaults = checkpoint.generation
    ends = end_tokens(tokenizer, defaults, template.end_ids if template else ())
    return {
        "ends": [{"id": i, "token": tokenizer.piece(i), "from": by} for i, by in ends.items()],
        "sampling": dict(defaults.sampling),
        "sampling_from": defaults.where if defaults.sampling else "",
    }


def _render(
    template: ChatTemplate, tokenizer: "Tokenizer", dialog: Sequence[Message]
) -> list[dict[str, Any]]:
    """Render a dialog, split into text and control tokens."""
    try:
        ids = template.render(dialog)
    except UsageError as error:  # a template may refuse a system message
        return [{"text": str(error), "control": False}]
    control = set(tokenizer.control_ids.values())
    decoder = StreamingDecoder(tokenizer)
    segments: list[dict[str, Any]] = []
    for token_id in ids:
        is_control = token_id in control
        text = tokenizer.piece(token_id) if is_control else decoder.push(token_id)
        if not is_control and segments and not segments[-1]["control"]:
            segments[-1]["text"] += text
        else:
            segments.append({"text": text, "control": is_control})
    return segments
