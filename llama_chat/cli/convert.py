"""``llama-chat convert``: a model in another format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_chat.cli.completing import models
from llama_chat.cli.loading import importing_torch, model_path
from llama_chat.conversion.output import appearing, check_free, check_space
from llama_chat.conversion.target import GGUF, SHARD_SIZE, TYPES, Target, choose_target
from llama_chat.files import expand_user, readable_size
from llama_chat.settings.sources import load_settings
from llama_chat.terminal import streams
from llama_chat.terminal.progress import progress

if TYPE_CHECKING:
    from llama_chat.checkpoints.base import Checkpoint
    from llama_chat.conversion.gguf import GGUFFile
    from llama_chat.conversion.huggingface import HuggingFaceFolder


def convert(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Path or name.", autocompletion=models)
    ],
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="A new .gguf file, or a new folder of safetensors.")
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="safetensors|gguf", help="Format, if the name of OUT does not tell."
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--type", metavar="|".join(TYPES), help="Type in which matrices are stored."),
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option(
            "--shard-size", metavar="SIZE", help=f"Largest safetensors file [default: {SHARD_SIZE}]"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Write nothing but errors and warnings.")
    ] = False,
) -> None:
    """Write a model as a GGUF file or a Hugging Face folder.

    Without --type floats keep their type, and quantized weights become F16.
    """
    target = choose_target(Path(expand_user(out)), to, kind, shard_size)
    path = model_path(load_settings({}, None), model)
    check_free(target, path, force=force)
    with importing_torch():
        from llama_chat.conversion.weights import choose_type, quantized_types
        from llama_chat.loading.formats import open_checkpoint
    checkpoint = open_checkpoint(path)
    stored_as = choose_type(checkpoint, target.type)
    plan = _plan(checkpoint, target, stored_as)
    losses = quantized_types(checkpoint) if stored_as != "F32" else []
    again = f"the weights are {', '.join(losses)}: what these give is rounded again to {stored_as}"
    for line in (*checkpoint.warnings, *plan.warnings, *([again] if losses else [])):
        streams.warn(line)
    n_bytes = sum(plan.sizes.values())
    check_space(target.path, n_bytes)
    with progress(f"Writing {target.path.name}", in_bytes=True, hidden=quiet) as report:  # noqa: SIM117
        with appearing(target.path) as temporary:
            plan.write(temporary, report)
    if not quiet:
        sizes = f"{readable_size(checkpoint.n_bytes)} before, {readable_size(n_bytes)} now"
        streams.say(f"written: {target.path} ({stored_as}; {sizes})")


def _plan(
    checkpoint: "Checkpoint", target: Target, stored_as: str
) -> "GGUFFile | HuggingFaceFolder":
    """Plan the file or folder to write."""
    from llama_chat.conversion.gguf import GGUFFile
    from llama_chat.conversion.huggingface import HuggingFaceFolder
    from llama_chat.loading.formats import make_tokenizer

    vocabulary = checkpoint.read_vocabulary()
    make_tokenizer(vocabulary.limited(checkpoint.config.vocab_size))  # checks it
    if target.format == GGUF:
        return GGUFFile(checkpoint, vocabulary, stored_as)
    return HuggingFaceFolder(checkpoint, vocabulary, stored_as, target.shard_bytes)
