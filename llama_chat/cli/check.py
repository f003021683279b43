"""``llama-chat check``: validation of a model without running it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_chat.cli.completing import models
from llama_chat.cli.loading import importing_torch, model_path
from llama_chat.cli.options import takes
from llama_chat.errors import ModelError
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams
from llama_chat.terminal.progress import progress
from llama_chat.terminal.streams import AnswerWriter

if TYPE_CHECKING:
    from llama_chat.loading.checks import CheckResult, ModelCheck


@takes("model", "model_paths", "plain")
def check(
    settings: Settings,
    target: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Path or name.", autocompletion=models),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Validate a model without running it.

    It checks the headers, the tokenizer, the chat template, the hashes and every weight, and writes
    a line for each check: ok, failed or skipped, and why. Hashes come from Meta's checklist.chk, a
    hub or ollama. The status is 0 if the model is valid, else 3.
    """
    path = model_path(settings, target)
    with importing_torch():
        from llama_chat.loading.checks import ModelCheck
    checks = ModelCheck(path)
    results = []
    writer = AnswerWriter()
    for result in _followed(checks, hidden=settings.hides_progress):
        results.append(result)
        if not as_json:
            line = streams.one_line(result.detail)
            writer.write(f"{result.state:8} {result.name:10} {line}")
            writer.finish()
    for warning in checks.warnings:
        streams.warn(warning)
    errors = [result.error for result in results if result.error is not None]
    if as_json:
        streams.write_json(_describe(checks, results, is_sound=not errors))
    if errors:
        raise ModelError(errors[0].what, errors[0].why, errors[0].advice)


def _followed(checks: "ModelCheck", *, hidden: bool) -> Iterator["CheckResult"]:
    """Yield the results, with a progress bar while one takes long."""
    results = checks.run()
    while True:
        with progress("Checking the model", in_bytes=True, hidden=hidden) as checks.report:
            result = next(results, None)
        if result is None:
            return
        yield result


def _describe(
    checks: "ModelCheck", results: Sequence["CheckResult"], *, is_sound: bool
) -> dict[str, Any]:
    """Describe the outcome for programs."""
    return {
        "path": str(checks.path),
        "sound": is_sound,
        "checks": [
            {"name": each.name, "state": each.state, "detail": each.detail} for each in results
        ],
        "warnings": list(checks.warnings),
    }
