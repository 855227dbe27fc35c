"""How a plain call runs: the default profile, one training a GPU, no environment activated."""

from __future__ import annotations

import json

import pytest

from .conftest import Project, micro_config


def fake_driver(folder, gpus: int) -> str:
    """A folder whose nvidia-smi lists that many GPUs."""
    folder.mkdir()
    script = folder / "nvidia-smi"
    script.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {i}: Test (UUID: GPU-{i})'\n" for i in range(gpus)))
    script.chmod(0o755)
    return str(folder)


def spans(project: Project) -> list[tuple[str, str]]:
    """Start and end of both trainings."""
    texts = [(project.archive / f"provenance/train_split-{k}.json").read_text() for k in (0, 1)]
    return [(s["start"], s["end"]) for s in map(json.loads, texts)]


def test_a_bare_call_reads_the_default_profile(built):
    done = built.snakemake("-n")
    assert "profiles/default" in done.stdout + done.stderr
    settings = (built.folder / "profiles/default/config.yaml").read_text()
    assert "rerun-incomplete: true" in settings and "scheduler: greedy" in settings


@pytest.mark.parametrize(("gpus", "side_by_side"), [pytest.param(1, False, marks=pytest.mark.slow), (2, True)])
def test_no_more_trainings_at_once_than_gpus(tmp_path, monkeypatch, gpus, side_by_side):
    project = Project.fresh(tmp_path / "project")
    config = micro_config()
    config["archives"]["micro"]["set"]["epochs"] = 30
    config["archives"]["micro"]["splits"] = {"method": "kfold", "n_splits": 2}
    project.configure(config)
    drivers = fake_driver(tmp_path / "bin", gpus)
    monkeypatch.setattr(
        Project, "environment", {"PATH": f"{drivers}:/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    )
    project.snakemake("--", *(f"archives/micro/training/split-{k}/run.zip" for k in (0, 1)))
    first, second = sorted(spans(project))
    assert (second[0] < first[1]) == side_by_side
