"""What a machine refuses is told of the right file in one line; what a write leaves is whole or nothing."""

from __future__ import annotations

import gzip
import io
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
import torch
from armarium.cache import PreparedCases
from armarium.cli import Tee
from armarium.errors import UserError
from armarium.evaluation import LabelFiles
from armarium.faults import in_words
from armarium.files import remove_abandoned, replacing, write_bytes
from armarium.held import give_back, held_products, hold
from tiny import REPO, settings, squares, training_of


@contextmanager
def largest_file(size: int):
    """Files may have ``size`` bytes and no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def in_a_process(code: str, *args: str, **limits: int) -> subprocess.Popen:
    """Python code in another process, under resource limits."""

    def limit() -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))

    environment = {**os.environ, "PYTHONPATH": str(REPO / "workflow")}
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], env=environment, preexec_fn=limit, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


# ---- words


def refused_by(function) -> str | None:
    with pytest.raises(Exception) as caught:
        function()
    return in_words(caught.value)


def test_want_of_memory_is_told_as_such_whoever_tells_it():
    for ask in (lambda: numpy.empty(1 << 50), lambda: torch.empty(1 << 50), lambda: bytearray(1 << 62)):
        assert "out of memory" in refused_by(ask) and "ulimit -v" in refused_by(ask)
    assert "(tried to allocate 4503599627370496 bytes)" in refused_by(lambda: torch.empty(1 << 50))


def test_a_file_that_is_refused_is_named_with_the_reason(tmp_path):
    (tmp_path / "folder").mkdir()
    assert refused_by((tmp_path / "gone").read_bytes).startswith(f"{tmp_path}/gone: No such file")
    assert refused_by((tmp_path / "folder").read_bytes).startswith(f"{tmp_path}/folder: Is a directory")


def test_a_bug_is_not_told_as_the_machines():
    assert refused_by(lambda: {}["key"]) is None
    assert refused_by(lambda: torch.zeros(2) @ torch.zeros(3)) is None


# ---- writing


def test_a_write_that_is_refused_names_the_file_and_leaves_the_old_one(tmp_path):
    target = tmp_path / "file"
    write_bytes(target, b"old")
    with pytest.raises(OSError) as caught, largest_file(1000):
        write_bytes(target, bytes(2000))
    assert in_words(caught.value).startswith(f"{target}: larger than a file may be here; raise the limit (ulimit -f)")
    assert os.listdir(tmp_path) == ["file"] and target.read_bytes() == b"old"


def test_what_torch_makes_of_a_refused_write_is_told_as_the_refusal(tmp_path):
    target = tmp_path / "weights.pt"
    with pytest.raises(OSError) as caught, largest_file(2000), replacing(target) as path, open(path, "wb") as file:
        torch.save({"a": torch.zeros(2000), "b": torch.zeros(2000)}, file)
    assert in_words(caught.value).startswith(f"{target}: larger than a file may be here")
    assert not os.listdir(tmp_path)


def test_an_error_about_another_file_stays_that_files(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "file"):
        (tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")


WRITER = """
import sys, time
from armarium.files import replacing
with replacing(sys.argv[1]) as path:
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_is_not(tmp_path):
    target = tmp_path / "folder/file"
    killed, living = in_a_process(WRITER, str(target)), in_a_process(WRITER, str(target))
    assert killed.stdout.readline() == living.stdout.readline() == "writing\n"
    killed.kill()
    killed.wait()
    assert len(list(target.parent.glob(".writing-*"))) == 2
    remove_abandoned(tmp_path)
    assert len(list(target.parent.glob(".writing-*"))) == 1, "the living one's"
    living.send_signal(signal.SIGKILL)
    living.wait()
    remove_abandoned(tmp_path)
    assert not os.listdir(target.parent)


def test_messages_go_on_where_the_log_cannot(tmp_path):
    for log in ("/dev/full", str(tmp_path)):
        stream = io.StringIO()
        tee = Tee(stream, log)
        print("first", file=tee)
        print("second", file=tee)
        assert stream.getvalue() == "first\nsecond\n"


# ---- the last version of a product


def test_the_last_version_comes_back_where_there_is_no_next(tmp_path):
    archive, product = str(tmp_path / "a"), str(tmp_path / "a/training/run.zip")
    assert not hold(archive, product), "there is none"
    write_bytes(product, b"old")
    before = os.stat(product)
    assert hold(archive, product)
    os.remove(product)
    assert held_products(archive) == [product]
    assert give_back(archive, product)
    assert os.path.samestat(before, os.stat(product)) and before.st_mtime_ns == os.stat(product).st_mtime_ns
    assert os.listdir(archive) == ["training"]


def test_the_last_version_is_dropped_where_there_is_a_next(tmp_path):
    archive, product = str(tmp_path / "a"), str(tmp_path / "a/training/run.zip")
    write_bytes(product, b"old")
    hold(archive, product)
    os.remove(product)
    write_bytes(product, b"new")
    assert not give_back(archive, product)
    assert Path(product).read_bytes() == b"new" and os.listdir(archive) == ["training"]


# ---- data that change after they were checked


def one_voxel_changed(path: Path) -> None:
    voxels = bytearray(gzip.decompress(path.read_bytes()))
    voxels[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(voxels)))


@pytest.mark.parametrize("part", ["image", "label"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (Path.unlink, "file not found; restore it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "changed since the data was checked"),
        (lambda path: path.write_bytes(b"text"), "changed since the data was checked"),
        (one_voxel_changed, "changed since the data was checked"),
    ],
    ids=["vanished", "truncated", "text", "one voxel"],
)
def test_a_file_that_is_not_what_was_checked_is_not_prepared(part, change, told, tmp_path):
    case = squares(tmp_path, 1)[0]
    path = tmp_path / (case["image"][0] if part == "image" else case["label"])
    prepared = PreparedCases(settings()["pre_transforms"][:2], str(tmp_path), str(tmp_path / "cache"))
    change(path)
    with pytest.raises(UserError, match=f"^{path}: {told}"):
        prepared.get(case)
    assert not list((tmp_path / "cache").rglob("*.case")), "nothing is kept under the old hash"
    if part == "label":
        with pytest.raises(UserError, match=f"^{path}: {told}"):
            LabelFiles(str(tmp_path)).get(case)


def test_what_is_prepared_is_trained_though_its_file_be_gone(tmp_path):
    case = squares(tmp_path, 1)[0]
    prepared = PreparedCases(settings()["pre_transforms"][:2], str(tmp_path), str(tmp_path / "cache"))
    first = prepared.get(case)
    (tmp_path / case["image"][0]).unlink()
    assert torch.equal(first["image"], prepared.get(case)["image"])


def test_a_prepared_case_that_a_crash_cut_short_is_prepared_again(tmp_path):
    case = squares(tmp_path, 1)[0]
    prepared = PreparedCases(settings()["pre_transforms"][:2], str(tmp_path), str(tmp_path / "cache"))
    first = prepared.get(case)["image"].clone()
    (kept,) = (tmp_path / "cache").rglob("*.case")
    whole = kept.read_bytes()
    for cut in (b"", whole[:100], whole[:-100]):
        kept.unlink()  # what is mapped stays whole
        kept.write_bytes(cut)
        assert torch.equal(first, prepared.get(case)["image"])
        assert kept.read_bytes() == whole


def test_live_events_that_cannot_be_written_stop_no_training(tmp_path, capfd):
    data = tmp_path, squares(tmp_path, 4), squares(tmp_path, 2, prefix="v")
    training = training_of(data, tmp_path / "a", settings(epochs=1))
    training.workspace.folder.mkdir(parents=True)
    training.workspace.events.write_text("no folder")
    assert training.run().epoch == 1
    assert f"{training.workspace.events}: File exists; training goes on without live events" in capfd.readouterr().err


# ---- limits


def test_a_limit_that_the_libraries_do_not_fit_into_is_refused_before_they_are_loaded():
    code = "from armarium.faults import require_address_space; require_address_space(); import torch, scipy.ndimage"
    started = time.monotonic()
    told = in_a_process(code, RLIMIT_AS=800 << 20).communicate(timeout=60)[0]
    assert "UserError: memory: found a limit of 800 MiB (ulimit -v)" in told and time.monotonic() - started < 20
    assert in_a_process(code, RLIMIT_AS=64 << 30).communicate(timeout=60)[0] == ""
