"""PBS's profile, with Slurm's commands in place of PBS's: what cluster-generic sends is the archive that is built here."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from ..workflow.conftest import Project, hashes
from .conftest import two_splits

SUBMIT = (
    "mkdir -p logs/pbs && sbatch --parsable --output logs/pbs/%j.log --cpus-per-task {threads} --mem {resources.mem_mb} "
    "--gpus {resources.gpu} --time {resources.runtime}"
)
STATUS = """#!/bin/sh
case $(scontrol show job "$1" 2>&1) in
    *JobState=COMPLETED*) echo success ;;
    *JobState=PENDING* | *JobState=RUNNING* | *JobState=COMPLETING*) echo running ;;
    *) echo failed ;;
esac
"""


class OnGeneric(Project):
    def command(self, *args: str) -> list[str]:
        status = self.folder / "status.sh"
        status.write_text(STATUS)
        status.chmod(0o755)
        commands = {"submit": SUBMIT, "status": str(status), "cancel": "scancel"}
        options = [word for name, text in commands.items() for word in (f"--cluster-generic-{name}-cmd", text)]
        return [sys.executable, "-m", "snakemake", "--profile", "profiles/pbs", *options, *args]


@pytest.mark.slow
def test_an_archive_is_built_through_cluster_generic(slurm, tmp_path):
    if importlib.util.find_spec("snakemake_executor_plugin_cluster_generic") is None:
        pytest.skip("no snakemake-executor-plugin-cluster-generic; pip install '.[test]' has it")
    here, there = Project.fresh(tmp_path / "here"), OnGeneric.fresh(tmp_path / "there")
    for project in (here, there):
        project.configure(two_splits())
        project.snakemake()
    assert hashes(there.archive) == hashes(here.archive)
    assert len(list((there.folder / "logs/pbs").glob("*.log"))) == 14
