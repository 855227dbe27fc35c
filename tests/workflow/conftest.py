"""A 2D micro archive, built for real by Snakemake in a copy of the project, from a bare environment."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Self

import pytest
import yaml

from .warm import Server

REPO = Path(__file__).resolve().parents[2]
MEASURED = re.compile(
    r"run\.zip$|timing/|computational\.tsv$|events\.out|train_stats\.json$|ro-crate-metadata\.json$|env/|provenance/[^/]+\.json$|/tmp/"
)
"""Files whose bytes may differ when made again: clocks have one home."""


def micro_recipe() -> dict:
    """The demo's recipe, in 2D and as small as it trains."""
    conf = json.loads((REPO / "config/recipes/unet_small/config/config_train.json").read_text())
    conf["train"]["model"]["args"].update(spatial_dims=2, channels=[4, 8], strides=[2], num_res_units=0)
    for key in ("train", "validate"):
        conf[key]["pre_transforms"] = [t for t in conf[key]["pre_transforms"] if t.get("name") != "RandFlipd"]
    conf["validate"]["additional_metrics"] = []
    return conf


def micro_config() -> dict:
    return {
        "archives": {
            "micro": {
                "recipe": "recipe",
                "dataset": {
                    "list": "data/micro/dataset.json",
                    "synthesize": {"cases": 8, "test_cases": 3, "shape": [20, 24], "spacing": [1.0, 0.8]},
                },
                "splits": {"method": "holdout", "holdout": 3},
                "test": {"groups": {"holdout": {"from": "test"}}},
                "select": {"best": ["loss", "MeanDice"], "epochs": [2]},
                "set": {"epochs": 4},
            }
        }
    }


class Project:
    """A copy of the project that commands run in, as a user would."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.archive = folder / "archives/micro"

    @classmethod
    def fresh(cls, folder: Path) -> Project:
        for name in ("workflow", "profiles", "envs"):
            shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPO / "Snakefile", folder)
        (folder / "config").mkdir()
        (folder / "recipe/config").mkdir(parents=True)
        (folder / "recipe/config/config_train.json").write_text(json.dumps(micro_recipe(), indent=1))
        project = cls(folder)
        project.configure(micro_config())
        return project

    def configure(self, config: dict) -> None:
        (self.folder / "config/config.yaml").write_text(yaml.safe_dump(config))

    @property
    def environment(self) -> dict[str, str]:
        """No environment is activated: the rules must find their own interpreter."""
        return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(self.folder)}

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "snakemake", "--cores", "2", *args]

    def snakemake(self, *args: str, ok: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(
            self.command(*args), cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        if ok:
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    def planned(self, *args: str) -> dict[str, int]:
        """Jobs by rule that a plain call would run."""
        output = self.snakemake("-n", *args)
        return job_counts(output.stdout + output.stderr)

    def ran(self, *args: str) -> dict[str, int]:
        """Jobs by rule that a call has run."""
        output = self.snakemake(*args)
        return finished_jobs(output.stdout + output.stderr)

    @classmethod
    def copy_of(cls, project: Project, folder: Path) -> Self:
        """Another project's copy, with all that Snakemake knows of it."""
        shutil.copytree(project.folder, folder, symlinks=True)
        copy = cls(folder)
        copy.archive = folder / project.archive.relative_to(project.folder)
        return copy


class WarmProject(Project):
    """A project whose calls pay for Snakemake's import once; to be used in a ``with``."""

    def __enter__(self) -> Self:
        self.server = Server(self.folder, self.environment)
        return self

    def __exit__(self, *error) -> None:
        self.server.close()

    def snakemake(self, *args: str, ok: bool = True) -> subprocess.CompletedProcess:
        done = self.server.call("--cores", "2", *args)
        if ok:
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done


PSEUDO_RULES = ("all", "archives")


def finished_jobs(output: str) -> dict[str, int]:
    """Jobs by rule that ended well; pseudo-rules left out."""
    names = re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)$", output, re.M)
    return dict(Counter(name for name in names if name not in PSEUDO_RULES))


def job_counts(output: str) -> dict[str, int]:
    """Jobs by rule, from Snakemake's last table of them; pseudo-rules left out."""
    tables = re.findall(r"^job +count\n-+ +-+\n(.*?)^total", output, re.M | re.S)
    if not tables:
        return {}
    rows = (line.rsplit(maxsplit=1) for line in tables[0].splitlines() if line.strip())
    return {name: int(count) for name, count in rows if name not in PSEUDO_RULES}


def hashes(archive: Path) -> dict[str, str]:
    """SHA-256 of every file whose bytes are promised."""
    found = {}
    for path in sorted(archive.rglob("*")):
        name = str(path.relative_to(archive))
        if path.is_file() and not MEASURED.search(name):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def zip_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of every member of a run.zip but what a clock measured and the host's description."""
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if not n.startswith(("timing/", "env/"))]
        return {n: hashlib.sha256(archive.read(n)).hexdigest() for n in names}


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Project:
    """The micro archive, complete; tests must leave it as they found it."""
    project = Project.fresh(tmp_path_factory.mktemp("micro"))
    started = time.monotonic()
    project.snakemake()
    project.seconds = time.monotonic() - started
    return project


@pytest.fixture
def copy(built, tmp_path) -> Project:
    """The built project, copied with all that Snakemake knows of it."""
    return Project.copy_of(built, tmp_path / "project")
