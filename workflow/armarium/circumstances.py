"""What of an archive other code made than this, and in another environment: information, no fault."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter, defaultdict
from collections.abc import Iterator

from . import __version__, layout
from .chain import Evidence
from .environment import cpu_capability
from .findings import Finding
from .provenance import code_sha256
from .software import DISTRIBUTIONS


def other_circumstances(evidence: Evidence) -> Iterator[Finding]:
    """What was made by other code, and in another environment, than this process's."""
    codes, differences, spent = defaultdict(Counter), Counter(), Counter()
    for step in evidence.steps:
        made = len(evidence.current(step))
        for maker in _makers(step) if made else ():
            codes[step["rule"]][_code(maker["armarium"], maker["code_sha256"])] += made
            spent[step["rule"]] += _seconds(step)
        for difference in package_differences(step) if made else ():
            differences[difference] += made
    for rule in sorted(codes, key=lambda rule: (-spent[rule], rule)):
        by = ", ".join(f"{count} by {code}" for code, count in codes[rule].items())
        yield Finding("other code", rule, by)
    for difference, count in differences.most_common():
        yield Finding("other environment", difference, f"{count} files")
    for k in evidence.splits():
        yield from _other_processor(evidence, k)


def _makers(step: dict) -> list[dict]:
    """Who made a step's products by other code than this: the step, and earlier ones that it took parts from."""
    return [m for m in (step, *step.get("extends", [])) if m.get("code_sha256", code_sha256()) != code_sha256()]


def this_code() -> str:
    """Version and hash of the code that runs."""
    return _code(__version__, code_sha256())


def _code(version: str, digest: str) -> str:
    return f"{version} (code {digest[:12]})"


def _seconds(step: dict) -> float:
    seconds = step["resources"].get("wall_seconds")
    return seconds if isinstance(seconds, int | float) else 0


def package_differences(step: dict) -> list[str]:
    """Packages, and Python, that were of another version."""
    then = {"python": step["python"], **step["packages"]}
    now = {name: platform.python_version() if name == "python" else _installed(name) for name in then}
    return [f"{name} {then[name]}, here {now[name] or 'not installed'}" for name in then if then[name] != now[name]]


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(package, package))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def _other_processor(evidence: Evidence, split: int) -> Iterator[Finding]:
    run = layout.run_zip(evidence.archive, split)
    info = evidence.held_by(run)
    then, now = (info.get("machine"), info.get("cpu_capability")), (platform.machine(), cpu_capability())
    if info.get("device") == "cpu" and then != now:
        yield Finding("other environment", f"processor {then[0]} {then[1]}, here {now[0]} {now[1]}", f"split {split}")
