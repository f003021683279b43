"""``llama-chat check``: everything about a model is checked, and nothing is run."""

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
    from llama_chat.loading.checks import Finding, ModelCheck


@takes("model", "model_paths", "plain")
def check(
    settings: Settings,
    target: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Path or name.", autocompletion=models),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check a model without running it: headers, tokenizer, template, hashes, every weight.

    One line for each check says ok, failed or skipped, and why. Hashes are compared where
    checklist.chk of Meta, a hub or ollama states them. The status is 0 for a sound model and 3 for
    another.
    """
    path = model_path(settings, target)
    with importing_torch():
        from llama_chat.loading.checks import ModelCheck
    checks = ModelCheck(path)
    findings = []
    writer = AnswerWriter()
    for finding in _followed(checks, hidden=settings.plain):
        findings.append(finding)
        if not as_json:
            line = streams.one_line(finding.detail)
            writer.write(f"{finding.state:8} {finding.name:10} {line}")
            writer.finish()
    for warning in checks.warnings:
        streams.warn(warning)
    errors = [finding.error for finding in findings if finding.error is not None]
    if as_json:
        streams.write_json(_describe(checks, findings, is_sound=not errors))
    if errors:
        raise ModelError(errors[0].what, errors[0].why, errors[0].advice)


def _followed(checks: "ModelCheck", *, hidden: bool) -> Iterator["Finding"]:
    """Yield the findings, with a progress bar while one takes long."""
    findings = checks.run()
    while True:
        with progress("Checking the model", in_bytes=True, hidden=hidden) as checks.report:
            finding = next(findings, None)
        if finding is None:
            return
        yield finding


def _describe(
    checks: "ModelCheck", findings: Sequence["Finding"], *, is_sound: bool
) -> dict[str, Any]:
    """Describe the outcome for programs."""
    return {
        "path": str(checks.path),
        "sound": is_sound,
        "checks": [
            {"name": each.name, "state": each.state, "detail": each.detail} for each in findings
        ],
        "warnings": list(checks.warnings),
    }
