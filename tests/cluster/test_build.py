"""An archive built by a real Slurm is the one built here, and how its jobs were sent."""

from __future__ import annotations

import re

import pytest

from ..workflow.conftest import Project, hashes, zip_hashes
from .conftest import TRAININGS, OnSlurm, eventually, two_splits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built_here(tmp_path_factory) -> Project:
    project = Project.fresh(tmp_path_factory.mktemp("local") / "project")
    project.configure(two_splits())
    project.snakemake()
    return project


@pytest.fixture(scope="module")
def built_there(slurm, tmp_path_factory) -> OnSlurm:
    project = OnSlurm.fresh(tmp_path_factory.mktemp("slurm") / "project")
    project.configure(two_splits())
    project.output = project.snakemake().stderr
    return project


def test_the_archive_is_the_same_to_the_byte(built_here, built_there):
    assert hashes(built_there.archive) == hashes(built_here.archive)
    for training in TRAININGS:
        assert zip_hashes(built_there.folder / training) == zip_hashes(built_here.folder / training)


def test_nothing_is_left_to_do_here_or_there(built_there):
    assert built_there.planned() == {}
    assert Project.planned(Project(built_there.folder)) == {}


def test_the_light_rules_of_a_stage_are_one_job(built_there):
    sent = re.findall(
        r"submitted with SLURM jobid \d+ \(log: \S*/logs/slurm/(?:rule|group)_([a-z]+)", built_there.output
    )
    assert sorted(sent) == sorted(
        [
            "synthesize",
            "prepared",
            "described",
            *(["train", "export", "test", "cut"] * 2),
            "published",
            "evaluate",
            "finished",
        ]
    )


def test_rules_say_what_they_want_and_a_user_overrides_it_in_one_place(slurm, on_slurm):
    """Both trainings at once, each with a GPU of its own; what the profile says goes before the rules."""
    on_slurm.override("train_split", mem_mb=3000)
    run = on_slurm.started("--", *TRAININGS)
    jobs = eventually(
        lambda: all(found := [slurm.training(0), slurm.training(1)]) and found, why="two trainings at once"
    )
    known = [slurm.known(number) for number in jobs]
    assert len({(job["Nodes"], job["GRES"]) for job in known}) == 2
    for job in known:
        assert job["Partition"] == "gpu" and re.match(r"gpu\S*:1\(IDX:0\)", job["GRES"])
        assert job["TimeLimit"] == "1-00:00:00" and job["MinMemoryNode"] == "3000M"
    assert run.wait() == 0, on_slurm.said
