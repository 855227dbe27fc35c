"""Edits of archives whose dataset is a BIDS tree or a CAPS, by the row of docs/reruns.md that each is."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.trees import PAIRS, describe, volumes, write, write_bids, write_caps, write_table

from .conftest import Project
from .edits import ROOT, Edit, touched

TRAINED, HELD = [f"sub-0{i}" for i in range(1, 7)], ["sub-07", "sub-08"]
SITE = [("sub-91", "ses-M000"), ("sub-92", "ses-M000")]
LABEL = {"folder": "derivatives/manual", "suffix": "dseg", "entities": {"desc": "manual"}}
BIDS = {
    "folder": "data/ds",
    "suffix": "T1w",
    "entities": {"acq": "mprage", "run": 1},
    "label": LABEL,
    "participants": "../tables/train.tsv",
    "columns": ["sex", "mmse"],
}
CAPS = {
    "folder": "data/caps",
    "preprocessing": "t1-linear",
    "label": {**LABEL, "folder": "../ds/derivatives/manual", "datatype": "anat"},
    "participants": "../tables/train.tsv",
    "columns": ["site"],
}
STRATUM = {"bids": "sex", "caps": "site"}
MANUAL = "*/derivatives/manual"
TABLE, HELD_TABLE = "data/tables/train.tsv", "data/tables/held.tsv"


def tree_config(kind: str, source: dict) -> dict:
    """The configuration of an archive ``small`` with two test groups."""
    groups = {"held": {"list": HELD_TABLE}} | ({"site": {"list": "data/other"}} if kind == "bids" else {})
    section = {
        "recipe": "recipe",
        "dataset": {kind: source, "labels": {"0": "background", "1": "lesion"}},
        "splits": {"method": "holdout", "holdout": 2, "stratify_by": [STRATUM[kind]]},
        "test": {"groups": groups},
        "select": {"best": ["loss"], "final": False},
        "predictions": False,
        "set": {"epochs": 2},
    }
    return {"archives": {"small": section}}


def tree_project(folder: Path, kind: str, source: dict) -> Project:
    """A project with the trees that its one archive reads; nothing is built yet."""
    project = Project.fresh(folder)
    content = list(volumes(len(PAIRS)))
    write_bids(folder / "data/ds", content=content)
    write_bids(folder / "data/other", SITE, volumes(len(SITE), seed=1))
    if kind == "caps":
        write_caps(folder / "data/caps", content=content)
    write_table(folder / TABLE, [("participant_id", "site"), *((p, f"s{p[-1] in '135'}") for p in TRAINED)])
    write_table(folder / HELD_TABLE, [("participant_id", "site"), *((p, "sTrue") for p in HELD)])
    project.archive = folder / "archives/small"
    project.configure(tree_config(kind, source))
    return project


# ---- the configuration


def key(kind: str, source: dict, *path: str, before: Callable[[Path], object] = lambda data: None, **changes) -> Edit:
    """Keys of the tree's section, or of one below it; ``before`` puts files in place."""

    def edit(project: Project) -> None:
        before(project.folder / "data")
        changed = copy.deepcopy(source)
        found = changed
        for name in path:
            found = found[name]
        found.update(changes)
        project.configure(tree_config(kind, changed))

    return edit


def moved(old: str, new: str) -> Callable[[Path], None]:
    """Folders of another name, in whatever tree they are."""

    def make(data: Path) -> None:
        found = list(data.glob(old))
        assert found
        for path in found:
            path.rename(path.with_name(new))

    return make


def named_alike(folders: str, new: str, suffix: str) -> Callable[[Path], None]:
    """Copies in folders of another name."""

    def make(data: Path) -> None:
        found = list(data.glob(f"{folders}/*_{suffix}.nii.gz"))
        assert found
        for path in found:
            place = path.parent.with_name(new)
            place.mkdir(exist_ok=True)
            shutil.copy(path, place)

    return make


def with_suffix(old: str, new: str) -> Callable[[Path], None]:
    """Copies of another suffix."""

    def make(data: Path) -> None:
        for path in data.rglob(f"*_{old}.nii.gz"):
            shutil.copy(path, path.with_name(path.name.replace(f"_{old}.", f"_{new}.")))

    return make


def same_table(data: Path) -> None:
    shutil.copy(data / "tables/train.tsv", data / "tables/same.tsv")


def label_edits(kind: str, source: dict) -> dict[str, Edit]:
    """Edits of the section ``label``; the label files of both kinds lie in derivatives of the BIDS dataset."""
    section, above = f"{ROOT}.dataset.{kind}.label", source["label"]["folder"].removesuffix("manual")

    def label(**more) -> Edit:
        return key(kind, source, "label", **more)

    return {
        f"{section}.folder": label(before=moved(MANUAL, "other"), folder=f"{above}other"),
        f"{section}.datatype": label(before=named_alike(f"{MANUAL}/*/*/anat", "seg", "dseg"), datatype="seg"),
        f"{section}.suffix": label(before=with_suffix("dseg", "mask"), suffix="mask"),
        f"{section}.entities": label(entities={"desc": "draft"}),
    }


# ---- the trees


def table_edit(name: str, change: Callable[[list[list[str]]], object]) -> Edit:
    """A change of a table's rows, the header first."""

    def edit(project: Project) -> None:
        path = project.folder / "data" / name
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        change(rows)
        write_table(path, rows)

    return edit


def in_column(name: str, row: int, value: str) -> Callable[[list[list[str]]], None]:
    def change(rows: list[list[str]]) -> None:
        rows[row][rows[0].index(name)] = value

    return change


def another_layout(project: Project) -> None:
    """Rows and columns in another order, other ages and diagnoses, which are not taken over."""

    def change(rows: list[list[str]]) -> None:
        rows[1:] = reversed(rows[1:])
        for row in rows:
            row.reverse()
        rows[0].append("handedness")
        for row in rows[1:]:
            row[:] = [str(int(row[0]) + 1), row[1], "CN", row[3], "R"]

    table_edit("ds/participants.tsv", change)(project)
    path = project.folder / "data/ds/participants.tsv"
    path.write_text("\n" + path.read_text().replace("\n", "\r\n"))


def image_of(participant: str, folder: str = "ds") -> str:
    below = f"{participant}/ses-M000/anat/{participant}_ses-M000"
    return f"{folder}/{below}_acq-mprage_run-01_T1w.nii.gz"


def other_image(name: str, old: str) -> Edit:
    """The content of another image."""
    return lambda project: write(project.folder / "data" / name, (project.folder / "data" / old).read_bytes() + b"\0")


def added(project: Project) -> None:
    """A participant with an image, a label file and rows in the tables."""
    data = project.folder / "data"
    write_bids(data / "new", [("sub-09", "ses-M000")], volumes(1, seed=2))
    for part in ("", "derivatives/manual/"):
        shutil.move(data / f"new/{part}sub-09", data / f"ds/{part}sub-09")
    shutil.rmtree(data / "new")
    table_edit("ds/participants.tsv", lambda rows: rows.append(["sub-09", "CN", "F", "60"]))(project)
    table_edit("tables/train.tsv", lambda rows: rows.append(["sub-09", "sTrue"]))(project)


def removed(project: Project) -> None:
    """A participant with everything of theirs."""
    for part in ("", "derivatives/manual/"):
        shutil.rmtree(project.folder / f"data/ds/{part}sub-06")
    for table in ("ds/participants.tsv", "tables/train.tsv"):
        table_edit(table, lambda rows: rows.remove(next(r for r in rows if r[0] == "sub-06")))(project)


def beside(project: Project) -> None:
    """What is not chosen: another acquisition, a sidecar, another datatype, the dataset's name, a pickle of it."""
    ds = project.folder / "data/ds"
    for name in ("acq-fast_T1w.nii.gz", "acq-new_T1w.nii.gz", "acq-mprage_run-01_T1w.json"):
        write(ds / f"sub-01/ses-M000/anat/sub-01_ses-M000_{name}", "another")
    write(ds / "sub-01/ses-M000/func/sub-01_ses-M000_task-rest_bold.nii.gz", "")
    write(ds / ".ancpbids-dataset.pickle", "")
    describe(ds, DatasetType="raw", Name="Other", License="CC-BY-4.0")


BIDS_EDITS: dict[str, Edit] = {
    f"{ROOT}.dataset.bids.folder": key("bids", BIDS, before=moved("ds", "moved"), folder="data/moved"),
    f"{ROOT}.dataset.bids.datatype": key(
        "bids",
        BIDS,
        before=named_alike("*/*/*/anat", "perf", "T1w"),
        datatype="perf",
        label={**LABEL, "datatype": "anat"},
    ),
    f"{ROOT}.dataset.bids.suffix": key("bids", BIDS, before=with_suffix("T1w", "T2w"), suffix="T2w"),
    f"{ROOT}.dataset.bids.entities": key("bids", BIDS, entities={"acq": "fast"}),
    f"{ROOT}.dataset.bids.participants": key("bids", BIDS, before=same_table, participants="../tables/same.tsv"),
    f"{ROOT}.dataset.bids.columns": key("bids", BIDS, columns=["sex", "age"]),
    "an image of a participant": other_image(image_of("sub-02"), image_of("sub-03")),
    "a participant added, with rows in the tables": added,
    "a participant removed, with the rows in the tables": removed,
    "a row taken out of the table that chooses": table_edit("tables/train.tsv", list.pop),
    "a column of participants.tsv that is taken over": table_edit("ds/participants.tsv", in_column("sex", 1, "M")),
    "a column of a sessions' table that is taken over": table_edit(
        "ds/sub-01/sub-01_sessions.tsv", in_column("mmse", 1, "3")
    ),
    "other columns, rows in another order, the tables in another layout": another_layout,
    "images that are not chosen, sidecars, the dataset's name": beside,
    "images, label files and tables of a tree touched": touched("data/**/*.*", ahead=1000),
    "a row taken out of a test group's table": table_edit("tables/held.tsv", list.pop),
    "an image of a test group's own tree": other_image(image_of("sub-91", "other"), image_of("sub-92", "other")),
    **label_edits("bids", BIDS),
}

CAPS_EDITS: dict[str, Edit] = {
    f"{ROOT}.dataset.caps.folder": key("caps", CAPS, before=moved("caps", "moved"), folder="data/moved"),
    f"{ROOT}.dataset.caps.preprocessing": key(
        "caps",
        CAPS,
        preprocessing="pet-linear",
        entities={"trc": "18FFDG", "suvr": "pons2"},
    ),
    f"{ROOT}.dataset.caps.datatype": key(
        "caps",
        CAPS,
        before=named_alike("caps/*/*/*/t1_linear", "other_linear", "desc-Crop_res-1x1x1_T1w"),
        preprocessing=None,
        datatype="other_linear",
        suffix="T1w",
    ),
    f"{ROOT}.dataset.caps.suffix": key(
        "caps", CAPS, preprocessing=None, datatype="t1_linear", suffix="T1w", entities={"desc": "Crop"}
    ),
    f"{ROOT}.dataset.caps.entities": key("caps", CAPS, entities={"desc": None}),
    f"{ROOT}.dataset.caps.participants": key("caps", CAPS, before=same_table, participants="../tables/same.tsv"),
    f"{ROOT}.dataset.caps.columns": key("caps", CAPS, columns=None),
    **label_edits("caps", CAPS),
}
