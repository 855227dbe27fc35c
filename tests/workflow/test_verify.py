"""What ``armarium verify`` tells to run mends what it found: the commands are taken from its words and run."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import REPO, hashes

COMMANDS = ("rm ", "snakemake ", "armarium ")


def bash(command: str, folder: Path, home: Path) -> subprocess.CompletedProcess:
    """Run a line as typed in a shell where ``snakemake`` and ``armarium`` are those under test."""
    typed = "; ".join(f'{name}() {{ "{sys.executable}" -m {name} "$@"; }}' for name in ("snakemake", "armarium"))
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(home / "workflow")}
    return subprocess.run(
        ["bash", "-c", f"{typed}\n{command}"], cwd=folder, env=environment, capture_output=True, text=True
    )


def verified(folder: Path, home: Path, *arguments: str) -> dict:
    done = bash(f"armarium verify {' '.join(arguments)} --json", folder, home)
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] == (done.returncode == 0)
    return found


def mend_as_told(folder: Path, home: Path, *arguments: str) -> list[str]:
    """Run every command that is told, in order."""
    told = bash(f"armarium verify {' '.join(arguments)}", folder, home).stdout
    commands = [line.strip() for line in told.splitlines() if line.startswith("    ")]
    commands = [command for command in commands if command.startswith(COMMANDS)]
    for command in commands:
        done = bash(command, folder, home)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return commands


def decay(path: Path) -> None:
    """Flip a bit as a disk does: the same size, the same times."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_it_tells_to_run_mends_changed_lost_and_foreign_files(copy, figures):
    before, archive = hashes(copy.archive), copy.archive
    changed = ["config/effective/train.json", "data/splits.json", "models/model.ts", "training/split-0/exports.zip"]
    missing = ["docs/README.md", "eval/metrics.csv", "models/final_model.pt"]
    for name in changed:
        decay(archive / name)
    for name in [*missing, "provenance/write_model.json"]:
        (archive / name).unlink()
    (archive / "notes.txt").write_text("mine")
    (archive / "models/.writing-abc").mkdir()
    (archive / "provenance/copy_logs_split-0.json").write_text("{")

    found = verified(copy.folder, copy.folder, "archives/micro")
    told = {kind: [f["path"] for f in found["findings"] if f["kind"] == kind] for kind in found["kinds"]}
    assert (told.pop("changed"), told.pop("missing")) == (changed, missing)
    assert told.pop("foreign") == ["notes.txt"] and told.pop("leftover") == ["models/.writing-abc"]
    records = ["provenance/copy_logs_split-0.json", "provenance/write_model.json"]
    assert sorted(told.pop("damaged record")) == records
    assert "model.json" in told.pop("lost record") and not told

    commands = mend_as_told(copy.folder, copy.folder, "archives/micro")
    assert commands[-1] == "snakemake --cores 1 --force -- archives/micro/ro-crate-metadata.json"
    assert verified(copy.folder, copy.folder, "archives/micro")["findings"] == []
    assert hashes(archive) == before
    assert copy.planned() == {}
    figures.add("damaged files that verify found", len(found["findings"]))
    figures.add("of these mended by the commands it told", len(found["findings"]))


def test_an_archive_from_elsewhere_is_verified_and_mended_from_anywhere(built, tmp_path):
    archive = shutil.copytree(built.archive, tmp_path / "a" / "copy", copy_function=shutil.copyfile)
    (tmp_path / "b").mkdir()
    whole = verified(tmp_path / "b", built.folder, "../a/copy", "--data-root", str(built.folder))
    assert whole["findings"] == [] and whole["data"].startswith("data: 22 files")
    (archive / "model.json").unlink()
    found = verified(tmp_path / "b", REPO, "../a/copy")
    assert [f["path"] for f in found["findings"] if f["kind"] == "missing"] == ["model.json"]
    assert found["data"].startswith("data not verified")
    assert mend_as_told(tmp_path / "b", REPO, "../a/copy") == [found["build"]]
    assert verified(tmp_path / "b", REPO, "../a/copy")["ok"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_what_it_tells_to_run_mends_any_damage(copy, seed, figures):
    """Bits, ends and whole files lost at random, run.zip among them once; configuration is restored from a copy."""
    chance, before = random.Random(seed), hashes(copy.archive)
    products = [n for n in before if not n.startswith("config/") or "/dataset_" in n or "/effective/" in n]
    for own in ("config/effective/files.json", "resources/log.config"):
        products.remove(own)
    damaged = chance.sample(products, 25) + (["training/split-0/run.zip"] if seed == 0 else [])
    for name in damaged:
        path = copy.archive / name
        if chance.random() < 1 / 3 or not path.stat().st_size:
            path.unlink()
        elif chance.random() < 1 / 2:
            os.truncate(path, path.stat().st_size // 2)
        else:
            decay(path)
    found = verified(copy.folder, copy.folder, "archives/micro")
    assert {f["path"] for f in found["findings"]} == set(damaged)
    mend_as_told(copy.folder, copy.folder, "archives/micro")
    assert verified(copy.folder, copy.folder, "archives/micro")["findings"] == []
    assert hashes(copy.archive) == before
    figures.add("damaged files that verify found", len(damaged))
    figures.add("of these mended by the commands it told", len(damaged))
