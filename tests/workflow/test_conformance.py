"""Real clients open the archive, where their checkers lie beside the project."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from .conftest import REPO, Project

CHECKERS = REPO.parent / "shared/conformance"


@pytest.fixture(scope="module")
def opened(built, tmp_path_factory) -> Project:
    """A copy of the micro archive: clients make folders of their own beside its files."""
    return Project.copy_of(built, tmp_path_factory.mktemp("opened") / "project")


def checked(opened, script: str, module: str, *args: str) -> subprocess.CompletedProcess:
    """The checker's run on the micro archive; skipped without the checker or the client it drives."""
    if not (CHECKERS / script).is_file():
        pytest.skip(f"{script} is not beside the project")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{script} needs {module}, which is not installed")
    command = [sys.executable, str(CHECKERS / script), "archives/micro", *args]
    return subprocess.run(command, cwd=opened.folder, capture_output=True, text=True)


def test_the_monai_bundle_client_opens_and_runs_it(opened):
    done = checked(opened, "check_bundle.py", "monai", "-q", "--run", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_clinicadl_client_opens_it(opened):
    done = checked(opened, "check_maps.py", "clinicadl", "--layout-only")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_research_object_validator_accepts_its_manifest(opened):
    done = checked(opened, "crate/check_crate.py", "rocrate_validator", "--integrity")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_mmar_checker_finds_no_fault(opened):
    done = checked(opened, "check_mmar.py", "monai", "-q", "--strict")
    assert done.returncode == 0, done.stdout + done.stderr
