"""What is asked of Slurm, and told where it does not answer; the rest is in tests/cluster."""

from __future__ import annotations

import pytest
from armarium import slurm
from armarium.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    (tmp_path / "bin").mkdir()
    return tmp_path


def answer(folder, command: str, script: str) -> None:
    path = folder / "bin" / command
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_slurm_is_not_asked_where_nothing_was_left(folder):
    assert slurm.take_over() == {}
    assert slurm.dependency(None) == ""


def test_a_slurm_that_does_not_answer_is_told(folder):
    slurm.submits_from("/somewhere")
    with pytest.raises(UserError, match="squeue: .*run this again when Slurm answers"):
        slurm.take_over()
    answer(folder, "squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(UserError, match="squeue: Unable to contact slurm controller"):
        slurm.take_over()
    assert slurm.SUBMITTED.is_file()


def test_only_jobs_that_were_submitted_from_the_folder_are_taken_over(folder):
    training = slurm.training_comment("archives/a", "1")
    rows = [
        f"5|RUNNING|{training}|/here",
        f"6|PENDING|{slurm.training_comment('archives/a', '2')}|/here",
        "7|PENDING|x|/there",
    ]
    answer(folder, "squeue", "".join(f"echo '{row}'\n" for row in rows))
    answer(folder, "scancel", f"echo $* >> {folder}/cancelled")
    slurm.submits_from("/here")
    assert slurm.take_over() == {training: "5"}
    assert (folder / "cancelled").read_text().split() == ["--state=PENDING", "6"]
    assert not slurm.SUBMITTED.is_file()
    assert slurm.dependency("5") == "--dependency=afterany:5"
    assert slurm.dependency("8") == ""
