"""What env/ holds is what pip and conda say, and recreates the environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from .conftest import REPO, Conda, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DUMP = """
import json
from armarium import environment
print(json.dumps({name: data.decode() for name, data in environment.snapshot().items()}))
"""
ENVIRONMENT = "dependencies: [python =3.11, tqdm, pip, pip: [tabulate]]\n"


def snapshot(python: Path, **settings: str) -> dict[str, str]:
    """The files of env/ as that interpreter gives them, from a folder without any project."""
    done = run(python, "-P", "-c", DUMP, env={"PYTHONPATH": str(REPO / "workflow"), **settings}, cwd="/")
    return json.loads(done.stdout)


def body(text: str) -> list[str]:
    """The lines but for comments, blank ones and the prefix."""
    return [line for line in text.splitlines() if line and not line.startswith(("#", "prefix: "))]


@pytest.fixture(scope="module")
def made(conda) -> tuple[Conda, dict[str, str]]:
    """conda with an environment ``demo``, and what env/ holds of that, which is not activated."""
    (conda.folder / "demo.yml").write_text(f"channels: [{conda.channel.name}]\n{ENVIRONMENT}")
    conda("env", "create", "--quiet", "--name", "demo", "--file", "demo.yml")
    settings = {name: conda.settings[name] for name in ("CONDARC", "CONDA_CHANNEL_ALIAS")}
    return conda, snapshot(conda.prefix("demo") / "bin/python", **settings)


def test_files_are_what_conda_prints(made):
    conda, files = made
    assert body(files["environment.yml"]) == body(conda("env", "export", "--name", "demo"))
    portable = conda("env", "export", "--name", "demo", "--no-builds", "--ignore-channels")
    assert body(files["environment_portable.yml"]) == body(portable)
    urls = conda("list", "--name", "demo", "--explicit", "--md5")
    assert sorted(body(files["explicit.txt"])) == sorted(body(urls))
    assert any("tabulate" in line for line in body(files["environment.yml"]))


def test_files_are_the_same_in_an_activated_environment(made):
    conda, files = made
    activate = f"source {conda.home}/bin/activate demo && python -P -c '{DUMP}'"
    settings = {**conda.settings, "PYTHONPATH": str(REPO / "workflow")}
    assert json.loads(run("bash", "-c", activate, env=settings, cwd="/").stdout) == files


@pytest.mark.parametrize("name", ["environment.yml", "environment_portable.yml"])
def test_conda_makes_the_environment_again(made, name, tmp_path):
    conda, files = made
    (tmp_path / name).write_text(files[name])
    conda("env", "create", "--quiet", "--name", f"again-{name[:-4]}", "--file", tmp_path / name)
    again = body(conda("env", "export", "--name", f"again-{name[:-4]}"))
    assert again[1:] == body(files["environment.yml"])[1:], "but for the name"


def test_conda_makes_the_environment_again_from_urls_without_solving(made, tmp_path):
    conda, files = made
    (tmp_path / "explicit.txt").write_text(files["explicit.txt"])
    conda("create", "--quiet", "--yes", "--name", "again-explicit", "--file", tmp_path / "explicit.txt")
    urls = conda("list", "--name", "again-explicit", "--explicit", "--md5")
    assert sorted(body(urls)) == sorted(body(files["explicit.txt"]))


def test_pip_makes_the_environment_again(wheels, tmp_path):
    """Without conda and its tools: a virtual environment, and another one from its environment.txt."""
    pythons = [tmp_path / name / "bin/python" for name in ("one", "other")]
    for python in pythons:
        run(sys.executable, "-m", "venv", python.parents[1])
    offline = ("install", "--quiet", "--no-index", "--find-links", wheels / "pip")
    run(pythons[0], "-m", "pip", *offline, "tqdm", "tabulate")
    files = snapshot(pythons[0])
    (tmp_path / "environment.txt").write_text(files["environment.txt"])
    run(pythons[1], "-m", "pip", *offline, "--requirement", tmp_path / "environment.txt")
    frozen = [run(python, "-m", "pip", "freeze").stdout.splitlines() for python in pythons]
    assert frozen[0] == frozen[1] == body(files["environment.txt"]) and len(frozen[0]) == 2
