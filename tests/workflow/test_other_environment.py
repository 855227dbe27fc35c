"""An archive that was made in another environment: nothing is planned, verify says so, a file made again there is marked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from armarium import layout

from .conftest import Project, finished_jobs, hashes, job_counts


@pytest.fixture(scope="module")
def other_python(tmp_path_factory) -> Path:
    """A Python that has this one's packages, but nibabel in a version of its own."""
    folder, installed = tmp_path_factory.mktemp("other"), Path(sysconfig.get_path("purelib"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = folder / installed.relative_to(sys.prefix)
    (site / "inherited.pth").write_text(f"{installed}\n")
    shutil.copytree(installed / "nibabel", site / "nibabel", ignore=shutil.ignore_patterns("tests", "__pycache__"))
    (site / "nibabel/_version.py").write_text('__version__ = version = "99.0"\n')
    (site / "nibabel-99.0.dist-info").mkdir()
    (site / "nibabel-99.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: nibabel\nVersion: 99.0\n")
    return folder / "bin/python"


def call(python: Path, project: Project, *arguments: str, **environment: str) -> str:
    settings = project.environment | environment
    done = subprocess.run([python, "-m", *arguments], cwd=project.folder, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def versions(archive: Path, step: str) -> tuple[str, str]:
    """Of nibabel, as the step's record has it; and what the manifest says of the step."""
    record = json.loads(Path(layout.sidecar(str(archive), step)).read_text())
    graph = json.loads(Path(layout.manifest(str(archive))).read_text())["@graph"]
    (action,) = (e for e in graph if e["@id"] == f"#action/{step}")
    return record["packages"]["nibabel"], action["description"]


@pytest.mark.slow
def test_another_environment_plans_nothing_is_told_and_marks_what_is_made_again_in_it(copy, other_python):
    before = hashes(copy.archive)
    made_with, said = versions(copy.archive, "evaluate_published")
    assert said == "A job of rule evaluate_published"
    assert job_counts(call(other_python, copy, "snakemake", "--cores", "2", "-n")) == {}
    told = call(other_python, copy, "armarium", "verify", "archives/micro", PYTHONPATH=str(copy.folder / "workflow"))
    assert f"nibabel {made_with}, here 99.0" in told and "nothing wrong" in told
    Path(layout.eval_zip(str(copy.archive))).unlink()
    ran = finished_jobs(call(other_python, copy, "snakemake", "--cores", "2"))
    cut_from_it = {"extract_segmentation": 3, "write_eval_dice": 1, "write_eval_metrics": 1}
    assert ran == {"evaluate_published": 1, **cut_from_it, "write_manifest": 1}
    said = f"A job of rule evaluate_published, in another environment than env/ describes: nibabel 99.0 for {made_with}"
    assert versions(copy.archive, "evaluate_published") == ("99.0", said)
    assert hashes(copy.archive) == before
    assert copy.planned() == {}
