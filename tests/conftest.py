"""Figures that tests count, shown as one table at the end of the run; and where a skip is a failure."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


class Figures:
    """Counted figures by name, in the order in which they were first named."""

    def __init__(self):
        self.values: dict[str, float] = {}

    def add(self, name: str, by: float = 1) -> None:
        """Count ``by`` more of ``name``; 0 makes the row show."""
        self.values[name] = self.values.get(name, 0) + by

    def take_in(self, values: dict[str, float]) -> None:
        """Count what another process counted."""
        for name, value in values.items():
            self.add(name, value)


FIGURES = pytest.StashKey[Figures]()


def pytest_configure(config) -> None:
    config.stash[FIGURES] = Figures()


@pytest.fixture(autouse=True)
def metadata_is_tracked_as_in_a_new_process():
    """Scoring switches MONAI's tracking of metadata off for its whole process."""
    yield
    if "monai.data" in sys.modules:
        sys.modules["monai.data"].set_track_meta(True)


@pytest.fixture(scope="session")
def figures(pytestconfig) -> Figures:
    return pytestconfig.stash[FIGURES]


def pytest_sessionfinish(session) -> None:
    """A worker of pytest-xdist tells what it counted to the process that shows it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["figures"] = session.config.stash[FIGURES].values


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    node.config.stash[FIGURES].take_in(getattr(node, "workeroutput", {}).get("figures", {}))


def pytest_terminal_summary(terminalreporter, config) -> None:
    rows = config.stash[FIGURES].values
    if rows:
        terminalreporter.section("figures")
        for name, value in rows.items():
            terminalreporter.write_line(f"{name:<60} {value:>10g}")


# ---- REQUIRE_CLUSTER=1: a real Slurm and a real conda are wanted

REAL_PARTS = [Path(__file__).parent / name for name in ("cluster", "conda")]
"""Tests that skip, saying why, where what they are about is not there; with ``REQUIRE_CLUSTER=1`` they then fail."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    return _failed_if_required(item.path, (yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _failed_if_required(collector.path, (yield))


def _failed_if_required(path: Path, report):
    """A report, but a failure in place of a skip, whichever way it was skipped."""
    wanted = os.environ.get("REQUIRE_CLUSTER") == "1" and any(path.is_relative_to(part) for part in REAL_PARTS)
    if wanted and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome, report.longrepr = "failed", f"REQUIRE_CLUSTER=1, so this is no reason to skip: {reason}"
    return report
