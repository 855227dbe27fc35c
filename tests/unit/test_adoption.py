"""Times of a clone's files, and when they are set."""

import itertools
import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from armarium import adoption, layout
from armarium.adoption import adopt, is_known, mark_adopted, mark_begun, needs_adoption, topological_levels
from armarium.errors import UserError
from armarium.files import write_json
from armarium.hashing import HashIndex, sha256

STEPS = {  # outputs: inputs
    "config/dataset_0.json": ["config/effective/split.json"],
    "training/split-0/run.zip": ["config/dataset_0.json", "config/effective/train.json"],
    "models/model.pt": ["training/split-0/run.zip"],
    "models/model.ts": ["models/model.pt", "config/effective/export.json"],
}
FILES = sorted({*STEPS, *(path for inputs in STEPS.values() for path in inputs), "provenance/x.json"})


@pytest.fixture
def index(tmp_path):
    return HashIndex(tmp_path / "hashes.sqlite")


@pytest.fixture
def clone(tmp_path):
    """An archive with a manifest and times in random order."""
    a = tmp_path / "clone"
    for path in FILES:
        (a / path).parent.mkdir(parents=True, exist_ok=True)
        (a / path).write_text(f"content of {path}")
    entities = [
        {"@id": p, "@type": "File", "sha256": sha256(a / p), "contentSize": str((a / p).stat().st_size)} for p in FILES
    ]
    entities += [
        {"@id": f"#action/{n}", "@type": "CreateAction", "instrument": {"@id": "#tool/x"},
         "object": [{"@id": i} for i in inputs], "result": {"@id": output}}
        for n, (output, inputs) in enumerate(STEPS.items())
    ]  # fmt: skip
    write_json(layout.manifest(str(a)), {"@graph": entities})
    shuffle(a)
    return str(a)


def shuffle(folder):
    draw = random.Random(0)
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            os.utime(path, (time.time() - draw.uniform(100, 10_000),) * 2)


def mtime(archive, path):
    return os.stat(f"{archive}/{path}").st_mtime_ns


def outdated(archive):
    """What Snakemake would make again: products with an input that is newer or made again."""
    found = set()
    for output, inputs in STEPS.items():
        if any(i in found or mtime(archive, i) > mtime(archive, output) for i in inputs):
            found.add(output)
    return found


def test_an_untouched_clone_is_up_to_date(clone, index):
    assert outdated(clone)
    assert adopt(clone, index) == []
    assert not outdated(clone)
    times = [mtime(clone, path) for path in FILES]
    assert all(t % 10**9 == 0 for t in times)
    assert max(times) < mtime(clone, "ro-crate-metadata.json") < time.time_ns()
    made = [mtime(clone, path) for path in STEPS]
    assert [b - a for a, b in itertools.pairwise(made)] == [10**9] * 3
    assert mtime(clone, "provenance/x.json") == min(times)


@pytest.mark.parametrize("lost", range(len(STEPS)))
def test_a_product_of_unknown_origin_is_not_made_again(clone, index, lost):
    drop_action(clone, lost)
    assert adopt(clone, index) == []
    assert not outdated(clone)
    Path(clone, "config/effective/train.json").write_text("edited")
    adopt(clone, index)
    assert outdated(clone) == {"training/split-0/run.zip", "models/model.pt", "models/model.ts"}


def test_an_edited_source_outdates_exactly_its_cone(clone, index):
    Path(clone, "config/effective/export.json").write_text("edited!")
    os.utime(f"{clone}/config/effective/export.json", (1000, 1000))
    assert adopt(clone, index) == []
    assert outdated(clone) == {"models/model.ts"}


def test_an_edit_of_how_is_logged_outdates_the_manifest_alone(clone, index):
    write_json(layout.manifest(clone), with_log_config(clone))
    Path(layout.log_config(clone)).write_text("edited")
    os.utime(layout.log_config(clone), (1000, 1000))
    assert adopt(clone, index) == []
    assert not outdated(clone)
    assert mtime(clone, "resources/log.config") > mtime(clone, "ro-crate-metadata.json")


def with_log_config(clone: str) -> dict:
    """The manifest, naming a log.config that is not the one that its step wrote: none has made it."""
    path = Path(layout.log_config(clone))
    path.parent.mkdir()
    path.write_text("content")
    entity = {"@id": "resources/log.config", "@type": "File", "sha256": sha256(path), "contentSize": "7"}
    graph = json.loads(Path(layout.manifest(clone)).read_text())["@graph"]
    return {"@graph": [*graph, entity]}


def test_with_an_edited_log_config_that_the_manifest_names_the_others_keep_their_order(clone, index):
    write_json(layout.manifest(clone), with_log_config(clone))
    shuffle(clone)
    assert adopt(clone, index) == [] and not outdated(clone)
    made = [mtime(clone, path) for path in STEPS]
    assert [b - a for a, b in itertools.pairwise(made)] == [10**9] * 3
    assert mtime(clone, "resources/log.config") < mtime(clone, "ro-crate-metadata.json")


def test_an_edit_of_equal_length_is_seen(clone, index):
    path = Path(clone, "config/effective/train.json")
    path.write_text(path.read_text().upper())
    adopt(clone, index)
    assert outdated(clone) == {"training/split-0/run.zip", "models/model.pt", "models/model.ts"}


def test_an_edited_source_that_is_newer_keeps_its_time(clone, index):
    path = Path(clone, "config/effective/export.json")
    path.write_text("edited")
    wanted = time.time_ns() + 5 * 10**9
    os.utime(path, ns=(wanted, wanted))
    adopt(clone, index)
    assert mtime(clone, "config/effective/export.json") == wanted


@pytest.mark.parametrize("when", [1000, None], ids=["old", "just now"])
def test_a_damaged_product_and_what_was_made_from_it_are_made_again(clone, index, when):
    damage(clone, "models/model.pt", when)
    assert adopt(clone, index) == ["models/model.pt"]
    assert outdated(clone) == {"models/model.pt", "models/model.ts"}


def test_what_a_changed_run_gave_is_made_again_even_if_the_run_is_not(clone, index):
    damage(clone, "training/split-0/run.zip")
    adopt(clone, index)
    assert mtime(clone, "models/model.ts") < mtime(clone, "models/model.pt") < mtime(clone, "training/split-0/run.zip")


def test_what_holds_a_fingerprint_is_not_made_again_for_what_it_was_made_from(clone, index):
    damage(clone, "config/dataset_0.json")
    adopt(clone, index)
    sources = mtime(clone, "config/effective/train.json")
    assert mtime(clone, "config/dataset_0.json") < sources < mtime(clone, "training/split-0/run.zip")


def test_with_a_damaged_product_one_of_unknown_origin_is_made_again_too(clone, index):
    drop_action(clone, 3)
    damage(clone, "training/split-0/run.zip")
    adopt(clone, index)
    assert mtime(clone, "models/model.ts") == min(mtime(clone, path) for path in FILES)


def damage(clone, path, when=None):
    Path(clone, path).write_text("damaged")
    if when is not None:
        os.utime(f"{clone}/{path}", (when, when))


def drop_action(clone, number):
    graph = json.loads(Path(layout.manifest(clone)).read_text())["@graph"]
    write_json(layout.manifest(clone), {"@graph": [e for e in graph if e["@id"] != f"#action/{number}"]})


def test_files_that_the_manifest_does_not_know_are_left_alone(clone, index):
    Path(clone, "notes.txt").write_text("mine")
    os.utime(f"{clone}/notes.txt", (1000, 1000))
    os.remove(f"{clone}/models/model.ts")
    assert adopt(clone, index) == []
    assert mtime(clone, "notes.txt") == 1000 * 10**9


def test_times_that_are_in_order_are_left_alone(clone, index):
    adopt(clone, index)
    for path in FILES:
        os.utime(f"{clone}/{path}", ns=(mtime(clone, path) - 10**12,) * 2)
    before = [mtime(clone, path) for path in FILES]
    adopt(clone, index)
    assert [mtime(clone, path) for path in FILES] == before
    os.utime(f"{clone}/config/effective/train.json")
    adopt(clone, index)
    assert not outdated(clone) and mtime(clone, "models/model.ts") > max(before)


def test_a_time_in_the_future_is_set_right(clone, index):
    os.utime(f"{clone}/models/model.ts", (time.time() + 1000,) * 2)
    adopt(clone, index)
    assert not outdated(clone) and mtime(clone, "models/model.ts") < time.time_ns()


def test_who_is_not_the_owner_gets_the_same_order(clone, index, monkeypatch):
    real = os.utime

    def only_now(path, times=None, *, ns=None):
        if times or ns:
            raise PermissionError(1, "Operation not permitted", path)
        real(path)

    monkeypatch.setattr(os, "utime", only_now)
    Path(clone, "config/effective/export.json").write_text("edited")
    assert adopt(clone, index) == []
    assert outdated(clone) == {"models/model.ts"}


def test_an_archive_that_cannot_be_written_is_refused(clone, index, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "utime", refuse)
    with pytest.raises(UserError, match="Permission denied.*copy the archive"):
        adopt(clone, index)


def test_an_archive_in_order_need_not_be_written(clone, index, monkeypatch):
    adopt(clone, index)
    monkeypatch.setattr(os, "utime", None)
    assert adopt(clone, index) == []


def test_an_archive_without_a_manifest_has_nothing_to_adopt(tmp_path, index):
    assert adopt(str(tmp_path), index) == []


def test_a_damaged_manifest_is_told_with_what_to_do(clone, index):
    Path(layout.manifest(clone)).write_text("{")
    with pytest.raises(UserError, match="ro-crate-metadata.json: not valid JSON.*delete it"):
        adopt(clone, index)


def test_levels_follow_the_longest_way():
    actions = [("c", ["b", "a"], ["c"]), ("b", ["a"], ["b"]), ("own", ["d"], ["d", "e"])]
    assert topological_levels(actions) == {"a": 0, "b": 1, "c": 2, "d": 1, "e": 1}
    with pytest.raises(UserError, match="from each other"):
        topological_levels([("x", ["a"], ["b"]), ("y", ["b"], ["a"])])


# ---- once, and again when times changed


def test_an_archive_that_was_begun_here_is_never_adopted(clone, tmp_path):
    state = tmp_path / "state"
    assert needs_adoption(clone, state) and not is_known(clone, state)
    mark_begun(clone, state)
    assert is_known(clone, state)
    for archive in (clone, f"{clone}/../clone/"):
        assert not needs_adoption(archive, state)
    shuffle(clone)
    Path(clone, "new").write_text("work goes on")
    assert not needs_adoption(clone, state)


def test_an_adopted_archive_is_adopted_again_when_times_changed(clone, index, tmp_path):
    state = tmp_path / "state"
    adopt(clone, index)
    mark_adopted(clone, state)
    mark_begun(clone, state)
    assert not needs_adoption(clone, state)
    shuffle(clone)
    assert needs_adoption(clone, state) and is_known(clone, state)


def test_a_time_in_the_future_would_hide_an_edit(clone, tmp_path):
    state = tmp_path / "state"
    mark_begun(clone, state)
    os.utime(f"{clone}/models/model.ts", (time.time() + 1000,) * 2)
    assert needs_adoption(clone, state)


def test_an_archive_under_another_name_is_another_one_as_it_is_for_snakemake(clone, tmp_path, monkeypatch):
    state = tmp_path / "state"
    mark_begun(clone, state)
    monkeypatch.chdir(tmp_path)
    assert needs_adoption("clone", state)


def test_a_copied_or_moved_archive_is_new(clone, tmp_path):
    state = tmp_path / "state"
    mark_adopted(clone, state)
    other = shutil.copytree(clone, tmp_path / "other")
    assert needs_adoption(str(other), state)
    shutil.rmtree(clone)
    assert not needs_adoption(clone, state)
    os.rename(other, clone)
    assert needs_adoption(clone, state)


def test_an_archive_copied_anew_to_its_old_place_is_new(clone, tmp_path):
    state, kept = tmp_path / "state", tmp_path / "kept"
    shutil.copytree(clone, kept)
    mark_adopted(clone, state)
    for _ in range(5):  # file systems give the inode of a removed folder out again
        shutil.rmtree(clone)
        shutil.copytree(kept, clone)
        assert needs_adoption(clone, state)


def test_birth_time_is_the_file_systems(tmp_path):
    before = time.time_ns() - 10**9
    folder = tmp_path / "new"
    folder.mkdir()
    born = adoption._birth_ns(str(folder))
    assert born == 0 or before < born <= time.time_ns() + 10**9
    (folder / "x").write_text("")
    assert adoption._birth_ns(str(folder)) == born
