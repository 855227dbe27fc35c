"""What a machine refuses is told in one line and costs no artifact, and the next run carries on."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import Project, hashes, micro_config, zip_hashes
from .faults import Faults, disk_of, half_done, limited, read_only, step, step_with_shared_memory

RUN = "archives/micro/training/split-0/run.zip"
EDIT = ("--config", "set={epochs: 5}", "--")
AGAIN = ("-R", "train_split", "--", RUN)
"""Trains the split again, whose run.zip is there."""


def forget_prepared(project: Project) -> None:
    shutil.rmtree(project.folder / ".cache/armarium/prepared", ignore_errors=True)


def assert_as_built(project: Project, built: Project) -> None:
    assert hashes(project.archive) == hashes(built.archive)
    assert zip_hashes(project.folder / RUN) == zip_hashes(built.folder / RUN)


def file_of(project: Project, side: str, key: str) -> Path:
    """The first case's image or label on a side of the split."""
    splits = json.loads((project.archive / "data/splits.json").read_text())
    found = splits["cases"][splits["splits"][0][side][0]][key]
    return project.folder / (found if isinstance(found, str) else found[0])


def other_content(path: Path) -> bytes:
    """A file of the same kind with one voxel changed."""
    voxels = bytearray(gzip.decompress(path.read_bytes()))
    voxels[-1] ^= 1
    return gzip.compress(bytes(voxels), mtime=0)


# ---- full disks


def test_a_disk_that_fills_while_a_split_trains_costs_neither_the_old_run_nor_an_epoch(built, copy, figures):
    with disk_of(copy.folder / "archives") as disk:
        faults = Faults(copy, figures)
        disk.leave(40)  # an epoch or two
        faults.survived(copy.snakemake(*AGAIN, ok=False), "training/split-0/tmp/", "no space left", "free some")
        disk.leave(28)  # less than run.zip takes
        faults.survived(copy.snakemake(*AGAIN, ok=False), "training/split-0/tmp/", "no space left")
        disk.empty()
        done = copy.snakemake(*AGAIN)
        assert re.search("split 0: resuming after epoch [1-4]", done.stdout + done.stderr)
        assert zip_hashes(copy.folder / RUN) == zip_hashes(built.folder / RUN)
        assert not half_done(copy.folder)


@pytest.mark.slow
def test_a_full_disk_stops_plans_and_light_steps_and_the_next_run_completes_the_archive(built, copy, figures):
    with disk_of(copy.folder / "archives") as disk:
        disk.leave(0)
        faults = Faults(copy, figures)
        faults.survived(copy.snakemake(*EDIT, RUN, ok=False), "config/archive.json: no space left")
        for name in ("model.json", "ro-crate-metadata.json"):
            (copy.archive / name).unlink()
        disk.leave(0)
        faults = Faults(copy, figures)
        faults.survived(copy.snakemake("archives/micro/model.json", ok=False), "micro/model.json: no space left")
        disk.leave(12)  # the light step's room, and not the manifest's
        done = copy.snakemake(ok=False)
        faults.survived(done, "ro-crate-metadata.json: no space left", repeated="provenance/write_model.json")
        disk.empty()
        assert set(copy.ran()) == {"write_manifest"}
        assert_as_built(copy, built)


@pytest.mark.slow
def test_a_full_cache_is_named_with_what_to_do(built, copy, figures):
    forget_prepared(copy)
    with disk_of(copy.folder / ".cache/armarium", 1000) as disk:
        disk.leave(8)
        told = ("/.cache/armarium/prepared/"[1:], "No space left on device; free some", "--config cache_dir=DIR")
        Faults(copy, figures).survived(copy.snakemake(*AGAIN, ok=False), *told)
        disk.empty()
        copy.snakemake(*AGAIN)
        assert zip_hashes(copy.folder / RUN) == zip_hashes(built.folder / RUN)


# ---- limits


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_spoils_neither_the_run_nor_the_code(built, copy, figures):
    for compiled in (copy.folder / "workflow").rglob("__pycache__"):
        shutil.rmtree(compiled)
    done = limited(copy, *AGAIN, RLIMIT_FSIZE=24 << 10)
    Faults(copy, figures).survived(done, "tmp/done.zip: larger than a file may be here", "ulimit -f")
    done = copy.snakemake(*AGAIN)
    assert "resuming after epoch 4" in done.stdout + done.stderr
    assert zip_hashes(copy.folder / RUN) == zip_hashes(built.folder / RUN)


def test_too_little_address_space_is_told_before_a_library_hangs_in_it(copy, figures):
    done = limited(copy, *AGAIN, RLIMIT_AS=800 << 20)
    Faults(copy, figures).survived(done, "memory: found a limit of 800 MiB (ulimit -v)", "raise the limit")
    assert copy.planned("--", RUN) == {}


# ---- read-only folders


def test_a_read_only_archive_is_looked_at_and_not_changed(copy, figures):
    faults = Faults(copy, figures)
    with read_only(copy.folder / "archives"):
        assert copy.ran() == {}
        faults.survived(copy.snakemake(*EDIT, RUN, ok=False), "config/archive.json: read-only file system")


def test_data_are_checked_in_a_read_only_folder(built, copy):
    with read_only(copy.folder / "data"):
        copy.snakemake("-R", "check_data", "--", "archives/micro/data/cases.tsv")
    assert hashes(copy.archive) == hashes(built.archive)


@pytest.mark.slow
def test_a_split_is_trained_from_a_read_only_folder(built, copy):
    forget_prepared(copy)
    (copy.folder / RUN).unlink()
    with read_only(copy.folder / "data"):
        copy.snakemake("--", RUN)
    assert zip_hashes(copy.folder / RUN) == zip_hashes(built.folder / RUN)


@pytest.mark.slow
def test_a_read_only_cache_serves_what_it_has(copy, figures):
    faults = Faults(copy, figures)
    with read_only(copy.folder / ".cache/armarium"):
        assert step(copy, "test", "archives/micro", "holdout", "0").returncode == 0
        forgotten = ("--cache", ".cache/armarium/other")
        faults = Faults(copy, figures)
        done = step(copy, "test", "archives/micro", "holdout", "0", *forgotten)
        faults.survived(done, "a prepared case cannot be kept: Read-only file system", "--config cache_dir=DIR")


# ---- data that change while a run is at work


@pytest.mark.slow
def test_data_that_change_after_the_check_are_not_trained_under_the_old_hash(built, copy, figures):
    for lost in (RUN, "archives/micro/data/cases.tsv"):
        (copy.folder / lost).unlink()
    forget_prepared(copy)
    image = file_of(copy, "train", "image")
    checked, now = image.read_bytes(), image.stat()
    faults = Faults(copy, figures)
    running = subprocess.Popen(
        copy.command("--", RUN, "archives/micro/data/cases.tsv"), cwd=copy.folder, env=copy.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not (copy.archive / "data/cases.tsv").exists():
        assert running.poll() is None
        time.sleep(0.01)
    image.write_bytes(other_content(image))
    output = running.communicate(timeout=60)
    done = subprocess.CompletedProcess(running.args, running.returncode, *output)
    faults.survived(
        done,
        f"{image.name}: changed since the data was checked",
        "run the same command again",
        repeated="provenance/check_data.json",
    )
    image.write_bytes(checked)
    os.utime(image, ns=(now.st_atime_ns, now.st_mtime_ns))
    copy.snakemake("--", RUN)
    assert zip_hashes(copy.folder / RUN) == zip_hashes(built.folder / RUN)


# ---- what a kill leaves


def test_a_kill_while_a_split_is_trained_again_costs_not_the_run_that_was_there(copy, figures):
    faults = Faults(copy, figures)
    running = subprocess.Popen(
        copy.command(*AGAIN), cwd=copy.folder, env=copy.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while (copy.folder / RUN).exists():
        assert running.poll() is None
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert copy.ran("--", RUN) == {}, "the run that was there is current"
    faults.cost_nothing()


# ---- the full proof


@pytest.mark.slow
def test_wherever_a_training_runs_out_of_room_nothing_is_lost(built, copy, figures):
    with disk_of(copy.folder / "archives") as disk:
        faults, failed = Faults(copy, figures), 0
        for kilobytes in range(0, 60, 4):
            disk.leave(kilobytes)
            done = copy.snakemake(*AGAIN, ok=False)
            if done.returncode == 0:
                break
            failed += 1
            faults.survived(done, "training/split-0/", "no space left on its disk; free some")
            disk.empty()
            shutil.rmtree(copy.archive / "training/split-0/tmp")
        assert failed > 5
        disk.filling.unlink(missing_ok=True)
        copy.snakemake()
        assert_as_built(copy, built)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "product"),
    [
        ("test_split", "test/evaluations/holdout_split-0.zip"),
        ("export_split", "training/split-0/exports.zip"),
        ("evaluate_published", "eval/evaluation.zip"),
        ("split_data", "data/splits.json"),
        ("check_data", "data/cases.tsv"),
    ],
)
def test_each_step_that_runs_out_of_room_leaves_the_last_version(rule, product, built, copy, figures):
    again = ("-R", rule, "--", f"archives/micro/{product}")
    with disk_of(copy.folder / "archives") as disk:
        faults = Faults(copy, figures)
        for kilobytes in (0, 1):  # tmpfs has pages of 4 kB: no room, and room for nothing more than a folder
            disk.leave(kilobytes)
            faults.survived(copy.snakemake(*again, ok=False), f"micro/{product}: no space left on its disk")
        disk.empty()
        copy.snakemake(*again)
        copy.snakemake()
        assert_as_built(copy, built)


LIGHT = (
    "model.json",
    "callbacks.json",
    "training/optimization.json",
    "training/data/data.tsv",
    "training/data/train/split-0/data.tsv",
    "test/group-holdout/data.tsv",
    "config/dataset_0.json",
    "architecture.log",
    "env/environment.txt",
    "summary.log",
    "commands/train.sh",
    "docs/README.md",
    "docs/license.txt",
    "configs/metadata.json",
    "training/split-0/models/final/model.pt",
    "training/split-0/models/final/model.ts",
    "training/split-0/models/final/validation_metrics/aggregated.tsv",
    "training/split-0/validation_metrics/details.tsv",
    "models/model.pt",
    "models/model.ts",
    "models/train_stats.json",
    "eval/metrics.csv",
    "test/group-holdout/results/split-0/final/metrics/aggregated.tsv",
    "ro-crate-metadata.json",
)


@pytest.mark.slow
def test_each_light_step_on_a_full_disk_names_its_file(built, copy, figures):
    with disk_of(copy.folder / "archives") as disk:
        for name in LIGHT:
            (copy.archive / name).unlink()
        faults = Faults(copy, figures)
        for name in LIGHT[:-1]:
            disk.leave(0)
            faults.survived(copy.snakemake(f"archives/micro/{name}", ok=False), "no space left on its disk")
        disk.empty()
        copy.snakemake()
        assert_as_built(copy, built)


@pytest.mark.slow
@pytest.mark.parametrize("folder", [".snakemake", "logs", "scratch"])
def test_a_full_disk_beside_the_archive_costs_nothing(folder, built, copy, figures, monkeypatch):
    """Snakemake's own records, the logs, and TMPDIR; where its records are full Snakemake adds tracebacks of its own."""
    (copy.folder / folder).mkdir(exist_ok=True)
    environment = {**copy.environment, "TMPDIR": str(copy.folder / "scratch")}
    monkeypatch.setattr(Project, "environment", environment)
    faults = Faults(copy, figures)
    with disk_of(copy.folder / folder) as disk:
        disk.leave(0)
        done = copy.snakemake(*AGAIN, ok=False)
        if folder == ".snakemake":
            faults.cost_nothing()
            assert done.returncode and re.search(r"^armarium: .*/.snakemake/.*No space left", done.stderr, re.M)
            disk.empty()
        copy.snakemake(*AGAIN)
        copy.snakemake("-R", "export_split")
        assert_as_built(copy, built)


@pytest.mark.slow
def test_full_shared_memory_is_told_with_what_to_do(copy, figures):
    copy.snakemake("--config", "set={num_workers: 1}", "--", "archives/micro/config/dataset_0.json")
    (copy.folder / RUN).unlink()
    faults = Faults(copy, figures)
    for kilobytes in (4, 16):  # no room for a semaphore; none for a batch
        done = step_with_shared_memory(copy, kilobytes, "train", "archives/micro", "0")
        faults.survived(done, "shared memory (/dev/shm) is full", "set num_workers to 0")
    assert step(copy, "train", "archives/micro", "0").returncode == 0


@pytest.mark.slow
def test_whatever_limit_a_files_size_has_the_message_is_one(copy, figures):
    faults, train = Faults(copy, figures), ("train", "archives/micro", "0")
    for size in (100, 1_000, 5_000, 10_000, 20_000, 30_000):
        shutil.rmtree(copy.archive / "training/split-0/tmp", ignore_errors=True)
        faults.survived(step(copy, *train, RLIMIT_FSIZE=size), "larger than a file may be here", "ulimit -f")
    for size in (100, 1_000, 3_000):
        forget_prepared(copy)
        done = step(copy, *train, RLIMIT_FSIZE=size)
        faults.survived(done, "a prepared case cannot be kept: File too large", "cache_dir=DIR")


@pytest.mark.slow
def test_whatever_limit_memory_has_the_message_is_one_and_the_next_run_completes(tmp_path, figures):
    project = Project.fresh(tmp_path / "project")
    config = micro_config()
    micro = config["archives"]["micro"]
    micro["dataset"]["synthesize"]["shape"] = [384, 384]
    micro["set"]["epochs"] = 2
    project.configure(config)
    recipe = project.folder / "recipe/config/config_train.json"
    conf = json.loads(recipe.read_text())
    conf["train"]["model"]["args"]["channels"] = [32, 64]
    recipe.write_text(json.dumps(conf))
    project.snakemake("--", RUN)
    undisturbed, faults, outcomes = zip_hashes(project.folder / RUN), Faults(project, figures), []
    for megabytes in (300, 700, 1000, 1090, 1130, 1150, 1180, 1220, 1260, 1300):
        for again in ("tmp", "run.zip"):
            shutil.rmtree(project.archive / "training/split-0" / again, ignore_errors=True)
        done = step(project, "train", "archives/micro", "0", RLIMIT_AS=megabytes * 10**6)
        outcomes.append(done.returncode)
        if done.returncode:
            faults.survived(done, "memory", "ulimit -v")
    assert outcomes.count(1) > 5
    project.snakemake(*AGAIN)
    assert zip_hashes(project.folder / RUN) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_vanish_while_a_split_trains_are_not_missed(workers, copy):
    """They were prepared, and the labels that are scored against are in memory."""
    long = ("--config", f"set={{epochs: 60, num_workers: {workers}}}", "--", RUN)
    copy.snakemake(*long)
    undisturbed = zip_hashes(copy.folder / RUN)
    for gone in (RUN, "archives/micro/training/split-0/tmp/done.zip"):
        (copy.folder / gone).unlink()
    running = subprocess.Popen(
        copy.command(*long), cwd=copy.folder, env=copy.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (copy.archive / "training/split-0/tmp/state.pt").exists():
        assert running.poll() is None
        time.sleep(0.01)
    (copy.folder / "data").rename(copy.folder / "data-elsewhere")
    assert running.wait(60) == 0
    assert zip_hashes(copy.folder / RUN) == undisturbed


@pytest.mark.slow
def test_data_that_changed_are_trained_under_their_own_hash_and_a_revert_finds_the_old(built, copy):
    image = file_of(copy, "train", "image")
    checked = image.read_bytes()
    image.write_bytes(other_content(image))
    done = step(copy, "train", "archives/micro", "0")
    assert done.returncode == 0, "what is prepared is what was checked"
    ran = copy.ran()
    assert {"check_data", "train_split"} <= set(ran)
    assert zip_hashes(copy.folder / RUN) != zip_hashes(built.folder / RUN)
    image.write_bytes(checked)
    copy.snakemake()
    assert zip_hashes(copy.folder / RUN) == zip_hashes(built.folder / RUN)


NOBODY = 65534


@pytest.mark.slow
def test_another_user_who_may_not_write_is_told_of_what(copy, figures):
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    environment = {**copy.environment, "XDG_CACHE_HOME": str(copy.folder / "home")}

    def call(*args: str) -> subprocess.CompletedProcess:
        command = [*user, *copy.command(*args)]
        return subprocess.run(command, cwd=copy.folder, env=environment, capture_output=True, text=True)

    for folder in (copy.folder, *[*copy.folder.parents][:3]):
        folder.chmod(0o755)
    (copy.folder / "home").mkdir()
    for folder in ("home", ".snakemake", ".cache", "logs"):
        subprocess.run(["chown", "-R", str(NOBODY), copy.folder / folder], check=True)
    if subprocess.run(
        [*user, sys.executable, "-c", "import snakemake"], cwd=copy.folder, capture_output=True
    ).returncode:
        pytest.skip(f"another user cannot run {sys.executable}, or setpriv is not permitted")
    faults = Faults(copy, figures)
    assert call().returncode == 0
    faults.survived(call(*EDIT, RUN), "config/archive.json: permission denied for user 65534")
    done = call(*AGAIN)
    assert "Write-protected output files" in done.stderr and "Traceback" not in done.stderr
    faults.cost_nothing()
