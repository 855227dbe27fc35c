"""How a plain call runs: the default profile, one training a GPU, no environment activated."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.stand_in_gpus import StandInGpus

from .conftest import Project, micro_config


def spans(project: Project, splits: int) -> list[tuple[str, str]]:
    """Start and end of the trainings."""
    texts = [(project.archive / f"provenance/train_split-{k}.json").read_text() for k in range(splits)]
    return [(s["start"], s["end"]) for s in map(json.loads, texts)]


def runs(splits: int) -> list[str]:
    return [f"archives/micro/training/split-{k}/run.zip" for k in range(splits)]


def test_a_bare_call_reads_the_default_profile(built):
    done = built.snakemake("-n")
    assert "profiles/default" in done.stdout + done.stderr
    settings = (built.folder / "profiles/default/config.yaml").read_text()
    assert "rerun-incomplete: true" in settings and "scheduler: greedy" in settings


def project_with_gpus(
    folder: Path, monkeypatch, gpus: int, splits: int = 2, epochs: int = 30, **keys
) -> tuple[Project, StandInGpus]:
    """The micro archive's project on a machine with stand-in GPUs; it trains on the CPU, in turn for a GPU."""
    project, machine = Project.fresh(folder / "project"), StandInGpus(folder / "bin", gpus)
    config = micro_config() | {key: value for key, value in keys.items() if key != "allow"}
    config["archives"]["micro"]["allow"] = keys.get("allow", [])
    config["archives"]["micro"]["set"]["epochs"] = epochs
    config["archives"]["micro"]["splits"] = {"method": "kfold", "n_splits": splits}
    project.configure(config)
    path = f"{machine.folder}:/usr/local/bin:/usr/bin:/bin"
    monkeypatch.setattr(Project, "environment", {"PATH": path, "HOME": str(folder)})
    return project, machine


def gpus_of(project: Project, splits: int) -> list[str]:
    """Which GPU each split's training says it was on."""
    logs = ((project.folder / f"logs/archives/micro/train_split_{k}.log").read_text() for k in range(splits))
    return [re.search(r"^armarium: on (GPU \d+) \(Test\)$", log, re.M)[1] for log in logs]


def most_at_once(spans: list[tuple[str, str]]) -> int:
    """How many spans of time have an instant in common, at most."""
    return max(sum(start <= begin < end for start, end in spans) for begin, _ in spans)


@pytest.mark.slow
@pytest.mark.parametrize(("gpus", "side_by_side"), [(1, False), (2, True)])
def test_no_more_trainings_at_once_than_gpus(tmp_path, monkeypatch, gpus, side_by_side):
    project, _ = project_with_gpus(tmp_path, monkeypatch, gpus)
    project.snakemake("--", *runs(2))
    first, second = sorted(spans(project, 2))
    assert (second[0] < first[1]) == side_by_side
    assert len(set(gpus_of(project, 2))) == gpus
    log = project.folder / "logs/archives/micro/train_split_0.log"
    assert "sees no GPU, so this computes on the CPU" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("gpus", "trainings", "at_once"), [(2, 1, 2), (1, 2, 2)])
def test_five_splits_take_the_gpus_in_turn(tmp_path, monkeypatch, gpus, trainings, at_once):
    project, _ = project_with_gpus(tmp_path, monkeypatch, gpus, 5, trainings_per_gpu=trainings)
    project.snakemake("--cores", "5", "--", *runs(5))
    assert most_at_once(spans(project, 5)) == at_once
    assert set(gpus_of(project, 5)) == {f"GPU {n}" for n in range(gpus)}


@pytest.mark.slow
def test_a_build_waits_for_the_gpu_that_another_program_fills(tmp_path, monkeypatch):
    project, machine = project_with_gpus(tmp_path, monkeypatch, 1)
    machine.fill((0, 4242, 40000, "another"))
    log = project.folder / "logs/archives/micro/train_split_0.log"
    with subprocess.Popen(project.command("--", *runs(1)), cwd=project.folder, env=project.environment) as building:
        try:
            for _ in range(600):
                if log.exists() and "waiting for a GPU" in log.read_text():
                    break
                time.sleep(0.1)
            machine.fill()
            assert building.wait(120) == 0
        finally:
            building.kill()
    told = log.read_text()
    assert "GPU 0 (Test): 40000 of 40960 MiB filled by process 4242 (another, 40000 MiB)" in told
    assert told.index("waiting for a GPU") < told.index("armarium: on GPU 0 (Test)")


WAITS = """import time
from ignite.engine import Events


class Waits:
    def attach(self, engine):
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: time.sleep(3))
"""


@pytest.mark.slow
def test_five_splits_on_two_gpus_against_one(tmp_path, monkeypatch, figures):
    """An epoch's three seconds on a GPU are slept, which leaves the CPU free as a GPU would."""
    seconds = {}
    for gpus in (1, 2):
        folder = tmp_path / str(gpus)
        folder.mkdir()
        project, _ = project_with_gpus(folder, monkeypatch, gpus, 5, epochs=10, allow=["waits.Waits"])
        (project.folder / "workflow/waits.py").write_text(WAITS)
        recipe = project.folder / "recipe/config/config_train.json"
        conf = json.loads(recipe.read_text())
        conf["train"]["handlers"].append({"path": "waits.Waits", "args": {}})
        recipe.write_text(json.dumps(conf))
        project.snakemake("--until", "split_data", "check_recipe")
        started = time.monotonic()
        project.snakemake("--cores", "5", "--", *runs(5))
        seconds[gpus] = time.monotonic() - started
        figures.add(f"5 splits on {gpus} stand-in GPU{'s' * (gpus > 1)}, s", round(seconds[gpus], 1))
        assert most_at_once(spans(project, 5)) == gpus
    figures.add("5 splits on 2 stand-in GPUs against 1, ratio", round(seconds[2] / seconds[1], 3))
    assert seconds[2] < seconds[1]


QSUB = """#!/bin/sh
for job; do :; done
echo "$*" >> "$SPOOL/asked"
number=$(wc -l < "$SPOOL/asked")
echo R > "$SPOOL/$number"
(sh "$job" > /dev/null 2>&1; echo $? > "$SPOOL/$number.new"; mv "$SPOOL/$number.new" "$SPOOL/$number") > /dev/null 2>&1 &
echo "$number.pbs"
"""
QSTAT = """#!/bin/sh
for job; do :; done
state=$(cat "$SPOOL/${job%.pbs}")
case $state in
    R) echo "    job_state = R" ;;
    *) echo "    job_state = F"; echo "    Exit_status = $state" ;;
esac
"""


@pytest.mark.slow
def test_pbs_runs_the_jobs_by_its_profile(tmp_path, monkeypatch):
    """With stand-ins for qsub and qstat that run a job at once."""
    module = "snakemake_executor_plugin_cluster_generic"
    if (spec := importlib.util.find_spec(module)) is None:
        pytest.skip("no snakemake-executor-plugin-cluster-generic is installed")
    project = Project.fresh(tmp_path / "project")
    tools, spool = tmp_path / "bin", tmp_path / "spool"
    for folder in (tools, spool):
        folder.mkdir()
    for name, text in (("qsub", QSUB), ("qstat", QSTAT)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    plugins = str(Path(spec.origin).parents[1])
    environment = {"PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "SPOOL": str(spool)}
    monkeypatch.setattr(Project, "environment", environment | {"PYTHONPATH": plugins})
    monkeypatch.setattr(Project, "command", lambda self, *args: [sys.executable, "-m", "snakemake", *args])
    project.snakemake("--profile", "profiles/pbs", "--latency-wait", "5", "--", *runs(1))
    asked = (spool / "asked").read_text().splitlines()
    assert sum("-q gpuq -l select=1:ncpus=1:mem=8000mb:ngpus=1 -l walltime=86400 " in line for line in asked) == 1
    assert sum("-q workq -l select=1:ncpus=1:mem=2000mb:ngpus=0 " in line for line in asked) >= 2
    assert (project.archive / "training/split-0/run.zip").is_file()
