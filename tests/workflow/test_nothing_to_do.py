"""Nothing to do means nothing to do: times, places and owners of files plan no job, and hide no edit."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from armarium.adoption import mark_begun

from ..reruns import table
from .conftest import REPO, Project, WarmProject, hashes, micro_config
from .edits import changed_voxel
from .mirror import mirror
from .test_classification import build_classified
from .test_regression import build_regressed

MANIFEST = "ro-crate-metadata.json"
SINGLE = ("models/model.ts", "training/split-0/run.zip", "eval/metrics.csv", "config/dataset_0.json", "LICENSE")
COUNTED = "copies and touches that plan nothing"


# ---- times


def in_random_order(draw: random.Random, count: int) -> list[float]:
    times = [1_700_000_000.0 + i for i in range(count)]
    draw.shuffle(times)
    return times


TIMES: dict[str, Callable[[random.Random, int], list[float]]] = {
    "in random order": in_random_order,
    "at random": lambda draw, count: [draw.uniform(1e9, time.time()) for _ in range(count)],
    "all equal": lambda draw, count: [1_700_000_000.0] * count,
    "in the future": lambda draw, count: [time.time() + draw.uniform(100, 1e6) for _ in range(count)],
    "of 1970": lambda draw, count: [0.0] * count,
}
"""Modification times for so many files."""


def touch(folder: Path, how: str, seed: int = 0) -> None:
    """Give every file below a folder a time."""
    draw = random.Random(seed)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path, when in zip(paths, TIMES[how](draw, len(paths)), strict=True):
        os.utime(path, (when, when))


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


# ---- a project whose archive was built in it, left as it was after each test


@pytest.fixture(scope="module")
def kept(built, tmp_path_factory) -> Iterator[WarmProject]:
    with WarmProject.copy_of(built, tmp_path_factory.mktemp("nothing") / "project") as project:
        yield project


@pytest.fixture
def project(built, kept, monkeypatch) -> Iterator[WarmProject]:
    mirror(built.folder, kept.folder)
    shutil.rmtree(kept.folder / ".snakemake/armarium")
    with monkeypatch.context() as patch:
        patch.chdir(kept.folder)
        mark_begun("archives/micro", ".snakemake/armarium")  # as it is where it was built
    return kept


def assert_nothing(project: Project, archive: str | Path) -> None:
    """Neither for the whole archive nor for single files of it."""
    assert project.planned(f"{archive}/{MANIFEST}") == {}
    assert project.planned(*(f"{archive}/{name}" for name in SINGLE)) == {}


# ---- where it was built


def test_nothing_to_do_after_a_build(built, figures):
    assert built.planned() == {}
    figures.add(COUNTED)


def test_nothing_to_do_where_it_was_built_whatever_the_times(project, figures):
    for seed, how in enumerate(TIMES):
        touch(project.folder, how, seed)
        assert project.planned() == {}, how
        figures.add(COUNTED)


def test_nothing_to_do_without_snakemakes_records_whatever_the_times(project, figures):
    shutil.rmtree(project.folder / ".snakemake")
    for seed, how in enumerate(TIMES):
        touch(project.folder, how, seed)
        assert project.planned() == {}, how
        figures.add(COUNTED)


def test_a_call_with_nothing_to_do_says_so_and_changes_no_byte(project, figures):
    shutil.copytree(project.archive, project.folder / "elsewhere", copy_function=shutil.copyfile)
    before = content(project.folder / "archives"), content(project.folder / "elsewhere")
    for args in ((), (f"elsewhere/{MANIFEST}",)):
        touch(project.folder / "archives", "at random")
        done = project.snakemake(*args)
        assert "Nothing to be done" in done.stdout + done.stderr
    assert (content(project.folder / "archives"), content(project.folder / "elsewhere")) == before
    figures.add(COUNTED, 2)


# ---- many archives


WHOLE_PLAN = "Updating checkpoint dependencies"
"""What Snakemake says where it plans an archive file by file."""


def said(project: Project, *args: str) -> str:
    done = project.snakemake(*args)
    return done.stdout + done.stderr


def test_a_complete_archive_is_planned_again_only_when_something_changed(project, figures):
    assert WHOLE_PLAN in said(project)
    for args in ((), ("-n",)):
        again = said(project, *args)
        assert "Nothing to be done" in again and WHOLE_PLAN not in again
    forced = project.planned("--forceall")
    assert forced["train_split"] and forced["write_manifest"]
    os.utime(project.archive / "LICENSE")
    assert WHOLE_PLAN in said(project, "-n")
    assert WHOLE_PLAN in said(project)  # in a dry run jobs count as done, so nothing is noted by one
    assert WHOLE_PLAN not in said(project)
    (project.archive / "docs/README.md").unlink()
    assert project.planned() == {"write_doc": 1, "write_manifest": 1}
    config = micro_config()
    config["archives"]["micro"]["set"]["epochs"] = 5
    project.configure(config)
    assert project.planned()["train_split"] == 1
    figures.add(COUNTED, 5)


def test_a_target_of_one_archive_looks_at_no_other_that_is_listed(project, figures):
    config = micro_config()
    section = config["archives"]["micro"]
    config["archives"] |= {f"other{k}": {**section, "recipe": "nowhere"} for k in range(30)}
    project.configure(config)
    assert project.planned(*(f"archives/micro/{name}" for name in SINGLE)) == {}
    assert project.planned(f"archives/micro/{MANIFEST}") == {}
    assert "no config_train.json in 'nowhere'" in project.snakemake("-n", ok=False).stderr
    figures.add(COUNTED, 2)


def relative(project: Project, other: Path) -> tuple[Path, list[str]]:
    return other, [os.path.relpath(project.archive / MANIFEST, other)]


def absolute(project: Project, other: Path) -> tuple[Path, list[str]]:
    return other, [str(project.archive / MANIFEST)]


def through_a_link(project: Project, other: Path) -> tuple[Path, list[str]]:
    (other / "linked").symlink_to(project.archive)
    return other, [f"linked/{MANIFEST}"]


def with_directory(project: Project, other: Path) -> tuple[Path, list[str]]:
    return other, ["--directory", str(project.folder)]


def under_its_full_name(project: Project, other: Path) -> tuple[Path, list[str]]:
    return project.folder, [str(project.archive / MANIFEST)]


@pytest.mark.parametrize("asked", [relative, absolute, through_a_link, with_directory, under_its_full_name])
def test_nothing_to_do_from_another_working_directory(project, tmp_path, asked, figures):
    folder, args = asked(project, tmp_path)
    touch(project.folder / "archives", "in random order")
    assert Project(folder).planned("--snakefile", str(project.folder / "Snakefile"), *args) == {}
    figures.add(COUNTED)


# ---- copies


def shell(command: str) -> Callable[[Path, Path], None]:
    """A way to make ``target`` of ``source``; skipped without its first program."""

    def way(source: Path, target: Path) -> None:
        if shutil.which(command.split()[0]) is None:
            pytest.skip(f"there is no {command.split()[0]} here")
        names = {"SOURCE": source, "TARGET": target, "NAME": source.name, "PARENT": source.parent}
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(command, shell=True, check=True, env={**os.environ, **{k: str(v) for k, v in names.items()}})

    return way


WAYS = {
    "cp -r": shell("cp -r $SOURCE $TARGET"),
    "cp -a": shell("cp -a $SOURCE $TARGET"),
    "mv": shell("mv $SOURCE $TARGET"),
    "zip": shell(
        "zip --version >/dev/null; cd $PARENT && zip -qr new.zip $NAME && unzip -q new.zip -d new && rm new.zip && mv new/$NAME $TARGET && rmdir new"
    ),
    "tar": shell("tar -C $PARENT -cf $TARGET.tar $NAME && mkdir $TARGET && tar -C $TARGET --strip-components 1 -xf $TARGET.tar"),
    "tar -m": shell("tar -C $PARENT -cf $TARGET.tar $NAME && mkdir $TARGET && tar -C $TARGET --strip-components 1 -mxf $TARGET.tar"),
    "rsync": shell("rsync -r $SOURCE/ $TARGET"),
    "hard links": shell("cp -al $SOURCE $TARGET"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_nothing_to_do_for_a_copy_of_an_archive(project, way, figures):
    WAYS[way](project.archive, project.folder / "elsewhere")
    assert_nothing(project, "elsewhere")
    figures.add(COUNTED)


def test_nothing_to_do_for_a_copy_whatever_its_times(project, figures):
    shutil.copytree(project.archive, project.folder / "some/where else")
    for seed, how in enumerate([*TIMES, *TIMES]):
        touch(project.folder / "some/where else", how, seed)
        assert project.planned(f"some/where else/{MANIFEST}") == {}, how
        figures.add(COUNTED)


def test_nothing_to_do_for_an_archive_that_is_put_back_from_a_copy(project, figures):
    backup = project.folder / "backup"
    project.archive.rename(backup)
    shutil.copytree(backup, project.archive, copy_function=shutil.copyfile)
    touch(project.archive, "in random order")
    assert project.planned() == {}
    figures.add(COUNTED)


@pytest.mark.parametrize("way", ["cp -r", "mv", "zip"])
def test_nothing_to_do_for_a_copy_of_the_project(project, tmp_path, way, figures):
    source = tmp_path / "first"
    shutil.copytree(project.folder, source, symlinks=True)
    WAYS[way](source, tmp_path / "second")
    assert Project(tmp_path / "second").planned() == {}
    figures.add(COUNTED)


@pytest.mark.parametrize("data", ["gone", "moved", "touched"])
def test_nothing_to_do_for_a_copy_wherever_its_data_are(project, data, figures):
    shutil.copytree(project.archive, project.folder / "elsewhere", copy_function=shutil.copyfile)
    assert project.planned(f"elsewhere/{MANIFEST}") == {}
    if data == "touched":
        touch(project.folder / "data", "in the future")
    else:
        (project.folder / "data").rename(project.folder / "moved")
    args = ("--config", "data_root=moved/..", "--") if data == "moved" else ()
    assert project.planned(*args, f"elsewhere/{MANIFEST}") == {}
    figures.add(COUNTED)


def test_moving_the_data_reruns_nothing(project, figures):
    (project.folder / "moved").mkdir()
    (project.folder / "data").rename(project.folder / "moved/data")
    project.configure({**micro_config(), "data_root": "moved"})
    touch(project.folder / "moved", "at random")
    for _ in range(2):
        assert project.planned() == {}
        project.snakemake()
    effective = json.loads((project.archive / "config/environment.json").read_text())
    assert effective["DATA_ROOT"] == "moved"
    figures.add(COUNTED)


# ---- no edit is hidden by it


@pytest.fixture
def clone(project) -> Path:
    """A copy with random times, in the project's folder."""
    target = project.folder / "elsewhere"
    shutil.copytree(project.archive, target)
    touch(target, "in the future")
    return target


@pytest.mark.parametrize("seen", [False, True], ids=["unseen", "seen before"])
def test_an_edit_of_a_copy_is_noticed_and_its_revert_too(project, clone, seen):
    if seen:
        assert_nothing(project, "elsewhere")
    path = clone / "config/config_train.json"
    original = path.read_text()
    path.write_text(json.dumps({**json.loads(original), "learning_rate": 0.5}))
    os.utime(path, (0, 0))
    assert project.planned(f"elsewhere/{MANIFEST}").keys() == table()["config_train.json.learning_rate"].rules
    path.write_text(original)
    assert_nothing(project, "elsewhere")
    path.write_text(json.dumps(json.loads(original)))
    assert project.planned(f"elsewhere/{MANIFEST}").keys() <= {"write_manifest"}, "another layout"


def test_an_edit_is_noticed_where_products_are_of_the_future(project):
    touch(project.archive, "in the future")
    config = micro_config()
    config["archives"]["micro"]["set"]["num_workers"] = 1
    project.configure(config)
    wanted = table()["config_train.json.num_workers"].rules
    assert project.planned().keys() == wanted
    assert project.ran().keys() == wanted
    assert project.planned() == {}


def test_changed_data_are_noticed_by_a_copy(project, clone):
    changed_voxel("imagesTr/case_002.nii.gz", old=True)(project)
    assert project.planned("elsewhere/training/split-0/run.zip")["train_split"] == 1


@pytest.mark.parametrize("name", ["models/model.ts", "test/group-holdout/data.tsv", "config/dataset_0.json"])
def test_a_file_that_a_copy_lost_is_made_again_by_its_rule_alone(project, clone, name):
    rules = {"models/model.ts": "publish_torchscript", "config/dataset_0.json": "write_datalist"}
    before = hashes(clone)
    (clone / name).unlink()
    assert project.ran(f"elsewhere/{name}") == {rules.get(name, "write_group_data"): 1}
    assert hashes(clone) == before
    touch(clone, "in random order", seed=1)
    assert_nothing(project, "elsewhere")


DAMAGED = {
    "models/model.ts": {"publish_torchscript"},
    "docs/README.md": {"write_doc"},
    "training/split-0/models/final/validation_metrics/details.tsv": {"select_tables"},
    "data/cases.tsv": table()["archives.NAME.dataset.affine_tolerance"].rules,
    "training/split-0/exports.zip": {"extract_torchscript", "publish_torchscript"},
}
"""Damaged this -> made again: it, or what was cut from it where it says itself that it is current."""


def damage(path: Path) -> None:
    """Another bit in the middle: a letter, a digit, a weight."""
    data = bytearray(path.read_bytes())
    middle = next(i for i in range(len(data) // 2, len(data)) if data[i] not in b"\t\n;")
    data[middle] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_a_copy_is_told_and_made_again(project, clone, name):
    damage(clone / name)
    for how in ("in random order", "in the future"):
        touch(clone, how)
        shutil.rmtree(project.folder / ".snakemake/armarium")
        done = project.snakemake("-n", f"elsewhere/{MANIFEST}")
        assert f"elsewhere: not as its manifest says: {name}" in done.stderr
        assert project.planned(f"elsewhere/{MANIFEST}").keys() == DAMAGED[name] | {"write_manifest"}


def test_what_a_damaged_table_of_a_copy_gave_is_made_again(project, clone):
    before = hashes(clone)
    (clone / "data/cases.tsv").write_text("damaged")
    assert "train_split" not in project.ran(f"elsewhere/{MANIFEST}")
    assert hashes(clone) == before


def test_a_damaged_file_that_planning_reads_is_told_with_what_to_do(project, clone):
    before = hashes(clone)
    (clone / "data/dataset.json").write_text("{")
    refused = project.snakemake("-n", f"elsewhere/{MANIFEST}", ok=False)
    assert "delete both to have the data checked again" in refused.stderr and "Traceback" not in refused.stderr
    for name in ("data/cases.tsv", "data/dataset.json"):
        (clone / name).unlink()
    assert "train_split" not in project.ran(f"elsewhere/{MANIFEST}")
    assert hashes(clone) == before


def test_a_copy_that_was_built_in_part_after_an_edit_is_neither_hidden_nor_made_twice(project, clone):
    path, part = clone / "config/config_train.json", ("elsewhere/model.json", "elsewhere/commands/train.sh")
    original = path.read_text()
    before = (clone / "model.json").read_bytes()
    edited = json.loads(original)
    edited["train"]["model"]["args"]["norm"] = "batch"
    path.write_text(json.dumps(edited))
    assert project.ran(*part) == {"write_model": 1, "write_command": 1}
    assert (clone / "model.json").read_bytes() != before
    for how in ("in random order", "in the future"):
        touch(clone, how)
        assert project.planned(*part) == {}
        assert "train_split" in project.planned(f"elsewhere/{MANIFEST}")
    path.write_text(original)
    assert project.planned(*part)["write_model"] == 1
    touch(clone, "at random")
    assert project.ran(*part)["write_model"] == 1
    assert (clone / "model.json").read_bytes() == before
    assert project.planned(*part) == {}


# ---- somebody else's


class Powerless(Project):
    """A project whose calls have no power over other users' files, as if they were not root's."""

    def command(self, *args: str) -> list[str]:
        return ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", *super().command(*args)]


@pytest.fixture
def foreign(project, tmp_path) -> Path:
    """An archive of user 65534 that the group of this process may write."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root, with setpriv, can make files of another user")
    target = tmp_path / "foreign"
    shutil.copytree(project.archive, target)
    for path in (target, *target.rglob("*")):
        os.chown(path, 65534, os.getegid())
        path.chmod(0o775 if path.is_dir() else 0o664)
    return target


@pytest.mark.slow
def test_nothing_to_do_for_another_users_archive_and_an_edit_of_it_is_noticed(project, foreign, figures):
    mine = Powerless(project.folder)
    for how in ("in random order", "in the future"):
        touch(foreign, how)
        assert mine.planned(str(foreign / MANIFEST)) == {}
        figures.add(COUNTED)
    path = foreign / "config/config_train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "learning_rate": 0.5}))
    wanted = table()["config_train.json.learning_rate"].rules
    assert mine.planned(str(foreign / MANIFEST)).keys() == wanted


@pytest.mark.slow
def test_an_archive_that_only_others_may_write_needs_its_times_in_order(project, foreign, figures):
    for path in (foreign, *foreign.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    mine = Powerless(project.folder)
    assert mine.planned(str(foreign / MANIFEST)) == {}, "cp -a keeps the order"
    assert mine.planned(str(foreign / MANIFEST)) == {}
    figures.add(COUNTED)
    touch(foreign, "in random order")
    refused = mine.snakemake("-n", str(foreign / MANIFEST), ok=False)
    assert "Traceback" not in refused.stderr
    assert "modification times are in no order" in refused.stderr and "where you may write" in refused.stderr


# ---- other archives


def build_demo(folder: Path) -> Project:
    project = Project.fresh(folder)
    shutil.copytree(REPO / "config", folder / "config", dirs_exist_ok=True)
    project.archive = folder / "archives/demo"
    project.snakemake()
    return project


@pytest.mark.slow
@pytest.mark.parametrize("build", [build_demo, build_classified, build_regressed])
def test_nothing_to_do_for_other_archives_and_copies_of_them(tmp_path, build, figures):
    project = build(tmp_path / "project")
    shutil.copytree(project.archive, project.folder / "elsewhere", copy_function=shutil.copyfile)
    for how in TIMES:
        touch(project.folder, how)
        assert project.planned() == {}
        assert project.planned(f"elsewhere/{MANIFEST}") == {}
        figures.add(COUNTED, 2)
    shutil.rmtree(project.folder / ".snakemake")
    for how in TIMES:
        touch(project.folder, how)
        assert project.planned() == {}
        figures.add(COUNTED)
