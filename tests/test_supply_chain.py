"""Installed packages are pinned, and those known to be vulnerable are reported."""

import re
from importlib.metadata import requires
from pathlib import Path

from hatchling.builders.sdist import SdistBuilder
from packaging.requirements import Requirement

from harness.advisories import verdict
from harness.process import ROOT


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonical(name): version for name, version in pairs}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extra: str = "", seen: set[str] | None = None) -> set[str]:
    """Packages that a package needs here, with all that these need."""
    seen = set() if seen is None else seen
    for line in requires(name) or ():
        requirement = Requirement(line)
        key = canonical(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if key not in seen:
            seen.add(key)
            needed(requirement.name, ",".join(requirement.extras), seen)
    return seen


def test_every_package_that_is_installed_is_pinned_exactly() -> None:
    names = needed("llama-chat") | needed("llama-chat", "dev")
    assert "torch" in names
    assert len(names) > 60
    assert sorted(names - pinned().keys() - {"pip", "llama-chat"}) == []
    assert all(re.fullmatch(r"[\w.+!]+", version) for version in pinned().values())


def test_a_vulnerable_package_fails_and_unknown_ones_are_told() -> None:
    sound = {"name": "a", "version": "1", "vulns": []}
    unknown = {"name": "b", "skip_reason": "not found"}
    bad = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
    assert verdict([sound, unknown, bad]) == (
        1,
        "pip-audit: 2 of 3 packages known, 1 advisories\nc 2: CVE-1 (mended in 3)",
    )
    assert verdict([sound])[0] == 0
    assert verdict([unknown]) == (0, "pip-audit: skipped: not found")
    assert verdict([])[0] == 0


def test_the_source_has_what_its_tests_import() -> None:
    files = SdistBuilder(str(ROOT)).recurse_included_files()
    folders = {Path(file.relative_path).parts[0] for file in files}
    assert {"llama_chat", "harness", "tests", "benchmarks", "hatch_build.py"} <= folders
