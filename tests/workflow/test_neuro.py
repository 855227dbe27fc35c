"""Archives from a BIDS dataset and from a CAPS: ids in every table, and which edits rerun what."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.trees import PAIRS

from .conftest import Project
from .test_edits import assert_reruns
from .tree_edits import BIDS, BIDS_EDITS, CAPS, CAPS_EDITS, HELD, SITE, TRAINED, tree_project

pytestmark = pytest.mark.slow


def built_from(folder: Path, kind: str, source: dict) -> Project:
    project = tree_project(folder, kind, source)
    project.snakemake()
    return project


@pytest.fixture(scope="module")
def built_bids(tmp_path_factory) -> Project:
    return built_from(tmp_path_factory.mktemp("bids"), "bids", BIDS)


def ids_of(path: Path) -> set[tuple[str, str]]:
    rows = list(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))
    assert rows, path
    return {(row["participant_id"], row["session_id"]) for row in rows}


def of(participants: list[str]) -> set[tuple[str, str]]:
    return {pair for pair in PAIRS if pair[0] in participants}


def test_ids_of_the_tree_flow_into_every_table(built_bids):
    archive = built_bids.archive
    assert ids_of(archive / "data/cases.tsv") == {*of(TRAINED), *of(HELD), *SITE}
    assert ids_of(archive / "training/data/data.tsv") == of(TRAINED)
    sides = [ids_of(archive / f"training/data/{side}/split-0/data.tsv") for side in ("train", "validation")]
    assert sides[0] | sides[1] == of(TRAINED) and not {p for p, _ in sides[0]} & {p for p, _ in sides[1]}
    for group, wanted in {"held": of(HELD), "site": {*SITE}}.items():
        assert ids_of(archive / f"test/group-{group}/data.tsv") == wanted
        results = archive / f"test/group-{group}/results/split-0"
        assert {frozenset(ids_of(p)) for p in results.rglob("*details.tsv")} == {frozenset(wanted)}


def test_nothing_is_left_to_do(built_bids):
    assert built_bids.planned() == {}


TELLING = (
    "a participant added, with rows in the tables",
    "other columns, rows in another order, the tables in another layout",
    "images that are not chosen, sidecars, the dataset's name",
    "a row taken out of a test group's table",
)
"""Edits that stand for the others where time is short: each runs another set of rules, or none for another reason."""


def test_edits_of_a_bids_dataset_rerun_exactly_what_the_table_says(built_bids, tmp_path):
    assert_reruns(built_bids, {name: BIDS_EDITS[name] for name in TELLING}, tmp_path)


def test_every_edit_of_a_bids_dataset_reruns_exactly_what_the_table_says(built_bids, tmp_path, figures):
    assert_reruns(built_bids, BIDS_EDITS, tmp_path)
    figures.add("edits that rerun exactly what the table says", len(BIDS_EDITS))


def test_every_edit_of_a_caps_reruns_exactly_what_the_table_says(tmp_path, figures):
    project = built_from(tmp_path / "caps", "caps", CAPS)
    assert ids_of(project.archive / "training/data/data.tsv") == of(TRAINED)
    assert_reruns(project, CAPS_EDITS, tmp_path)
    figures.add("edits that rerun exactly what the table says", len(CAPS_EDITS))
