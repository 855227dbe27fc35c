"""Every rule names an environment of envs/, and the container's definition has all of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
ENVS = {path.name: path for path in sorted((REPO / "envs").glob("*.yaml"))}
DOCKERFILE = REPO / "Dockerfile"
WITHOUT_JOB = {"all", "archives"}
"""Rules that only name what is to be made; no job of theirs runs anything."""
PARSE = """
import json, sys
from snakemake.api import SnakemakeApi
from snakemake.settings.types import OutputSettings, ResourceSettings

with SnakemakeApi(OutputSettings()) as api:
    rules = api.workflow(ResourceSettings(cores=1), snakefile=__import__("pathlib").Path("Snakefile"))._workflow.rules
    print(json.dumps({r.name: [str(r.conda_env) if r.conda_env else None, r.is_run, r.shellcmd] for r in rules}))
"""


@pytest.fixture(scope="module")
def rules() -> dict[str, tuple[str | None, bool, str | None]]:
    """Of each rule as Snakemake parses it: its environment, whether it runs Python of its own, its command."""
    settings = {**os.environ, "PYTHONPATH": str(REPO / "workflow")}
    command = [sys.executable, "-P", "-c", PARSE]
    done = subprocess.run(command, cwd=REPO, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: tuple(facts) for name, facts in json.loads(done.stdout.splitlines()[-1]).items()}


def test_every_rule_with_a_job_names_an_environment_of_envs(rules):
    assert len(rules) > 50
    assert {name for name, (_, runs, command) in rules.items() if not command and not runs} == WITHOUT_JOB
    for name in rules.keys() - WITHOUT_JOB:
        environment, runs, command = rules[name]
        assert environment, f"{name} names no environment"
        assert not runs and command, f"{name} has no shell command, and other code runs in no environment of its own"
        path = (REPO / "workflow/rules" / environment).resolve()
        assert path in {p.resolve() for p in ENVS.values()}, f"{name}: {environment}"


def test_every_environment_is_some_rules(rules):
    assert {Path(environment).name for environment, *_ in rules.values() if environment} == ENVS.keys()


def test_environments_ask_for_versions_of_the_projects_requirements_alone():
    """What pip installs is named alike by the project, so that it is not another one with conda."""
    project = (REPO / "pyproject.toml").read_text()
    for path in ENVS.values():
        *by_conda, by_pip = yaml.safe_load(path.read_text())["dependencies"]
        assert "pip" in by_conda and by_pip["pip"]
        for requirement in by_pip["pip"]:
            assert f'"{requirement}"' in project, f"{path.name}: {requirement}"


# ---- the container: as `make dockerfile` writes it


def test_the_dockerfile_has_every_environment_as_it_is():
    text = DOCKERFILE.read_text()
    copied = dict(re.findall(r"^COPY envs/(\S+) /conda-envs/(\w+)/environment\.yaml$", text, re.M))
    again = "envs/ was edited; run: make dockerfile"
    assert copied.keys() == ENVS.keys(), again
    for name, digest in copied.items():
        pin = sorted((REPO / "envs").glob(f"{Path(name).stem}.*.pin.txt"))
        deploy = (REPO / f"envs/{Path(name).stem}.post-deploy.sh",)
        parts = [p.read_bytes() for p in (*filter(Path.is_file, deploy), *pin, ENVS[name])]
        assert digest == hashlib.md5(b"".join(parts)).hexdigest(), again
        assert f"conda env create --prefix /conda-envs/{digest} --file /conda-envs/{digest}/environment.yaml" in text
