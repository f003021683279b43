"""Known vulnerabilities of the pinned packages, from an index of advisories, if it answers."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from harness.process import ROOT

_COMMAND = (
    *("pip_audit", "--requirement", "constraints.txt", "--no-deps", "--disable-pip"),
    *("--format", "json", "--progress-spinner", "off"),
)


def main() -> int:
    """Print what is known about the packages of ``constraints.txt``; 1 if one is vulnerable."""
    done = subprocess.run(
        [sys.executable, "-m", *_COMMAND], cwd=ROOT, capture_output=True, text=True
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"pip-audit: skipped: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
        return 0
    status, report = verdict(packages)
    print(report)
    return status


def verdict(packages: Sequence[dict[str, Any]]) -> tuple[int, str]:
    """Return the exit status and the report for what ``pip-audit`` found out about packages."""
    audited = [package for package in packages if "vulns" in package]
    if not audited:
        why = packages[0]["skip_reason"] if packages else "there are no packages"
        return 0, f"pip-audit: skipped: {why}"
    found = [
        f"{package['name']} {package['version']}: {vulnerability['id']}"
        f" (mended in {', '.join(vulnerability['fix_versions']) or 'no release'})"
        for package in audited
        for vulnerability in package["vulns"]
    ]
    known = f"pip-audit: {len(audited)} of {len(packages)} packages known, {len(found)} advisories"
    return bool(found), "\n".join([known, *found])


if __name__ == "__main__":
    sys.exit(main())
