"""An archive whose equal weights and exports are one file on the disk is the same archive still."""

from __future__ import annotations

import subprocess
import sys

from armarium.verify import verify

from .conftest import Project, hashes


def compacted(project: Project, *options: str) -> str:
    environment = {**project.environment, "PYTHONPATH": str(project.folder / "workflow")}
    done = subprocess.run(
        [sys.executable, "-m", "armarium", "compact", "archives/micro", *options],
        cwd=project.folder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def inodes(project: Project, name: str) -> dict[str, int]:
    return {str(p.relative_to(project.archive)): p.stat().st_ino for p in project.archive.rglob(name)}


def test_equal_weights_are_one_file_and_each_still_comes_back(copy):
    before, epochs = hashes(copy.archive), copy.archive / "training/split-0/models/checkpoints/epoch-2/model.pt"
    assert "of checkpoints in" in compacted(copy)
    said = compacted(copy, "--hard-links")
    assert "could share" not in said
    of_weights, of_exports = inodes(copy, "*.pt"), inodes(copy, "*.ts")
    clones = len(set(of_exports.values())) == len(of_exports)  # a file system that clones gives each its own inode
    assert clones or len(set(of_exports.values())) < len(of_exports)
    assert of_weights[str(epochs.relative_to(copy.archive))] not in {
        number for path, number in of_weights.items() if "epoch-2" not in path
    }, "other weights are another file"
    assert hashes(copy.archive) == before
    assert not verify(str(copy.archive)).wrong
    assert copy.planned() == {}

    lost = copy.archive / "models/model.ts"
    lost.unlink()
    assert copy.ran() == {"publish_torchscript": 1, "write_manifest": 1}
    assert lost.stat().st_nlink == 1
    assert hashes(copy.archive) == before
    assert copy.planned() == {}
    compacted(copy, "--hard-links")
    assert clones or lost.stat().st_nlink > 1, "and shares its place again"
