"""An installed package finds its own copy of the workflow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import REPO, section, write_recipe

PROJECT = (
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "Snakefile",
    "workflow",
    "profiles",
    "envs",
)
CARRIED = (
    "Snakefile",
    "workflow/Snakefile",
    "workflow/rules/*",
    "workflow/schemas/*",
    "workflow/storage/*",
    "profiles/*/*",
    "envs/*",
)


def copy_of_project(folder: Path) -> Path:
    """What a package is built from; building leaves files beside it."""
    for name in PROJECT:
        copy = shutil.copytree if (REPO / name).is_dir() else shutil.copy
        extra = {"ignore": shutil.ignore_patterns("__pycache__", "*.egg-info")} if (REPO / name).is_dir() else {}
        copy(REPO / name, folder / name, **extra)
    return folder


def run(command: list, folder: Path, **environment: str) -> str:
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(folder), **environment}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture
def project(tmp_path):
    pytest.importorskip("setuptools")
    (tmp_path / "project").mkdir()
    return copy_of_project(tmp_path / "project")


def test_a_built_package_has_every_file_of_the_workflow_and_finds_it(project, tmp_path):
    library = tmp_path / "library"
    run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", library], project)
    own = library / "armarium/packaged"
    for pattern in CARRIED:
        wanted = {str(p.relative_to(REPO)) for p in REPO.glob(pattern)}
        assert wanted and {str(p.relative_to(own)) for p in own.glob(pattern)} == wanted
    asks = (
        "from armarium import calling, environment_files, home; from armarium.config import schema;"
        "from armarium.steps import workflow_text;"
        "print(home.workflow_home(), *calling.snakemake_command(home.PACKAGE, []));"
        "assert schema('config') and 'rule train_split' in workflow_text() and list(environment_files.ENVS.glob('*.yaml'))"
    )
    told = run([sys.executable, "-P", "-c", asks], tmp_path, PYTHONPATH=str(library)).split()
    assert told[0] == str(own / "Snakefile") and str(own / "profiles/default") in told


@pytest.mark.slow
def test_a_command_of_an_archive_runs_by_an_installed_wheel(project, tmp_path):
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
    run([*pip, "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", tmp_path, project], tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], tmp_path)
    python = tmp_path / "venv/bin/python"
    [site] = (tmp_path / "venv/lib").glob("*/site-packages")
    packages = [p for p in sys.path if p.endswith("site-packages")]
    (site / "packages.pth").write_text("\n".join(packages))  # what the package needs, without a network
    run([*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], tmp_path)
    work = tmp_path / "work"
    write_recipe(work / "recipe")
    made = {"cases": 6, "test_cases": 2, "shape": [16, 16], "spacing": [1.0, 1.0]}
    given = section(dataset={"synthesize": made}, splits={"method": "holdout", "holdout": 2}, set={"epochs": 1})
    (work / "config").mkdir()
    (work / "config/config.yaml").write_text(yaml.safe_dump({"archives": {"a": given}}))
    armarium, path = tmp_path / "venv/bin/armarium", f"{python.parent}:/usr/bin:/bin"
    commands = [f"archives/a/commands/{name}.sh" for name in ("set_env", "validate")]
    run([armarium, "build", "--cores", "1", *commands], work, PATH=path)
    run(["bash", work / commands[1]], tmp_path, PATH=path)
    assert (work / "archives/a/eval/metrics.csv").read_text().startswith("loss,")
    record = json.loads((work / "archives/a/provenance/evaluate_published.json").read_text())
    assert record["rule"] == "evaluate_published" and str(os.getcwd()) not in json.dumps(record)
