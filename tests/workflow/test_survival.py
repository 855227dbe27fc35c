"""Kills: a killed build ends with the bytes of an undisturbed one, and nothing finished is done again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import Project, hashes, micro_config, zip_hashes
from .kills import STAGES, Kill, kill_group, kill_once, start, went_on

RUN = "archives/micro/training/split-0/run.zip"
EPOCHS = 60
SAVE_INTERVAL = 1


def killable(folder: Path) -> Project:
    """The micro project, with a training long enough to be killed in."""
    project = Project.fresh(folder)
    config = micro_config()
    config["archives"]["micro"]["set"]["epochs"] = EPOCHS
    project.configure(config)
    return project


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Project:
    project = killable(tmp_path_factory.mktemp("undisturbed"))
    project.snakemake()
    return project


@pytest.fixture(scope="module")
def opens() -> Iterator[Callable[[Path], str]]:
    """What ClinicaDL's reader says of an archive; the Python that has it is named by CLINICADL_PYTHON."""
    python = os.environ.get("CLINICADL_PYTHON")
    if not python:
        yield lambda archive: "ok"
        return
    code = (
        "import sys\nfrom clinicadl.io.maps import Maps\n"
        "for line in sys.stdin:\n"
        " try: Maps(line.strip()).read(); print('ok', flush=True)\n"
        " except Exception as error: print(repr(error)[:300].replace('\\n', ' '), flush=True)\n"
    )
    with subprocess.Popen([python, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:

        def ask(archive: Path) -> str:
            print(archive, file=reader.stdin, flush=True)
            return reader.stdout.readline().strip()

        yield ask
        reader.stdin.close()


def ended(process: int) -> bool:
    """Whether a process is gone within ten seconds; one that nobody has waited for counts as gone."""
    stat = Path(f"/proc/{process}/stat")
    for _ in range(100):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def trainer_of(project: Project) -> int:
    """The process that holds the split's lock, once it has saved an epoch."""
    lock, state = (project.archive / "training/split-0/tmp" / n for n in ("lock", "state.pt"))
    for _ in range(3000):
        if state.is_file():
            return int(lock.read_text().split()[1])
        time.sleep(0.02)
    raise AssertionError("no training started")


def of_run(project: Project) -> dict:
    """What training's clock and counter say."""
    return json.loads(zipfile.ZipFile(project.folder / RUN).read("timing/train_stats.json"))


def is_as_undisturbed(project: Project, undisturbed: Project) -> int:
    """How many files differ, and that nothing is left over or left to do."""
    mine, its = hashes(project.archive), hashes(undisturbed.archive)
    run = [zip_hashes(p.folder / RUN) for p in (project, undisturbed)]
    assert project.planned() == {}
    assert not list(project.archive.glob("training/split-*/tmp"))
    assert not list(project.archive.rglob(".*"))
    return len({n for n in mine.keys() | its.keys() if mine.get(n) != its.get(n)}) + (run[0] != run[1])


def a_chain_of_kills(
    project: Project, stages: list[str], draw: random.Random, opens: Callable[[Path], str]
) -> list[Kill]:
    """Start the build again after each kill, until it is complete."""
    kills, closed = [], []
    for stage in stages:
        running = start(project)
        kill = kill_once(project, running, stage, draw)
        if went_on(running):  # the job had just ended, or takes its time
            kill = kill_group(running, stage)
        if kill:
            kills.append(kill)
            began = (project.archive / "training/split-0").is_dir()
            if began and kill.alone and kill.stage in ("train", "epochs") and (said := opens(project.archive)) != "ok":
                closed.append(f"{kill}: {said}")
    assert not closed
    project.snakemake()
    return kills


@pytest.mark.parametrize(
    "signum",
    [signal.SIGKILL, *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGTERM, signal.SIGINT))],
    ids=lambda s: s.name,
)
def test_a_killed_trainer_resumes_after_its_last_saved_epoch(undisturbed, tmp_path, signum):
    project = killable(tmp_path / "project")
    running = start(project, "--", RUN)
    os.kill(trainer_of(project), signum)
    assert running.wait(60) != 0
    assert not (project.folder / RUN).exists(), "nothing half-made"
    done = project.snakemake("--", RUN)
    assert "resuming after epoch" in done.stderr + done.stdout
    assert zip_hashes(project.folder / RUN) == zip_hashes(undisturbed.folder / RUN)
    assert of_run(project)["epochs_trained_again"] <= SAVE_INTERVAL


def test_what_an_orphaned_trainer_finishes_is_taken_and_no_second_one_trains_beside_it(undisturbed, tmp_path):
    project = killable(tmp_path / "project")
    running = start(project, "--", RUN)
    trainer = trainer_of(project)
    running.kill()
    running.wait()
    done = project.snakemake("--", RUN)
    assert "taking the finished run" in done.stderr + done.stdout
    assert ended(trainer), "no trainer is left"
    assert zip_hashes(project.folder / RUN) == zip_hashes(undisturbed.folder / RUN)
    assert of_run(project)["epochs_trained_again"] == 0, "each epoch was trained once, by the orphan"


@pytest.mark.slow
def test_a_build_killed_at_every_stage_ends_with_the_same_bytes(undisturbed, tmp_path, opens, figures):
    stages = [s for s in STAGES if s not in ("select", "copy-logs", "extract", "write-results", "record-environment")]
    prove_kills(undisturbed, tmp_path, [*stages, "epochs"], 0, opens, figures)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_builds_killed_at_random_moments_end_with_the_same_bytes(undisturbed, tmp_path, opens, figures, seed):
    draw = random.Random(seed)
    prove_kills(undisturbed, tmp_path, [draw.choice(STAGES) for _ in range(16)], seed, opens, figures)


def prove_kills(undisturbed, tmp_path, stages, seed, opens, figures) -> None:
    project = killable(tmp_path / "project")
    stages = sorted(stages, key=STAGES.index)
    kills = a_chain_of_kills(project, stages, random.Random(seed), opens)
    print(*kills, sep="\n")
    in_training = sum(k.stage in ("train", "epochs") for k in kills)
    differing = is_as_undisturbed(project, undisturbed)
    figures.add("kills", len(kills))
    figures.add("epochs trained again after kills", of_run(project)["epochs_trained_again"])
    figures.add("files with other bytes after kills", differing)
    assert differing == 0, [str(k) for k in kills]
    assert of_run(project)["epochs_trained_again"] <= in_training * SAVE_INTERVAL
    assert len(kills) >= len(stages) // 3, "kills hit something"
