"""An archive for which nothing was to be done: known again until anything of it changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from armarium import layout
from armarium.settled import note_settled, state_of, was_settled


@pytest.fixture
def archive(tmp_path) -> Path:
    folder = tmp_path / "archive"
    for path in (layout.manifest(str(folder)), layout.published_model(str(folder)), layout.licence(str(folder))):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("as it is")
    return folder


def rewritten_with_its_time(archive: Path) -> None:
    path = Path(layout.licence(str(archive)))
    found = path.stat()
    path.write_text("is as it")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


CHANGES = {
    "lost": lambda a: Path(layout.licence(str(a))).unlink(),
    "touched": lambda a: os.utime(layout.licence(str(a)), (1, 1)),
    "another content of the same size and time": rewritten_with_its_time,
    "one more": lambda a: (a / "more.txt").write_text(""),
    "no manifest": lambda a: Path(layout.manifest(str(a))).unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_any_file_is_another_state(archive, tmp_path, change):
    before = state_of(str(archive), "these rules")
    note_settled(str(archive), tmp_path, before)
    assert was_settled(str(archive), tmp_path, state_of(str(archive), "these rules"))
    CHANGES[change](archive)
    assert not was_settled(str(archive), tmp_path, state_of(str(archive), "these rules"))


def test_other_circumstances_are_another_state(archive):
    assert state_of(str(archive), "these rules") != state_of(str(archive), "other rules")


def test_a_copy_is_not_the_archive_that_was_looked_at(archive, tmp_path):
    note_settled("archive", tmp_path, state_of(str(archive), ""))
    archive.rename(tmp_path / "moved")
    archive.mkdir()
    for path in sorted((tmp_path / "moved").rglob("*")):
        target = archive / path.relative_to(tmp_path / "moved")
        target.mkdir() if path.is_dir() else os.link(path, target)
    assert not was_settled("archive", tmp_path, state_of(str(archive), ""))


def test_a_damaged_record_says_nothing(archive, tmp_path):
    state = state_of(str(archive), "")
    note_settled(str(archive), tmp_path, state)
    (record,) = (tmp_path / "settled").iterdir()
    record.write_text("{")
    assert not was_settled(str(archive), tmp_path, state)
