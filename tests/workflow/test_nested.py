"""Nested cross-validation: each given split has test cases of its own, which other splits train on."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path

import pytest
from armarium import Archive
from armarium.files import write_json
from armarium.steps import published_cases
from armarium.summary import summary
from armarium.verify import verify

from .conftest import Project, hashes, micro_config

pytestmark = pytest.mark.slow

CASES = [f"case_{n:03d}" for n in range(1, 9)]
SPLITS = [
    {"train": CASES[:4], "validation": CASES[4:6], "test": CASES[6:]},
    {"train": CASES[4:], "validation": CASES[2:4], "test": CASES[:2]},
]
"""What one split tests, the other trains on."""
CHECKPOINT = "best-MeanDice"
LOST = "archives/micro/test/group-test_1/results/split-1/best-MeanDice/metrics/details.tsv"


@pytest.fixture(scope="module")
def nested(tmp_path_factory) -> Project:
    """An archive of both splits; tests must leave it as they found it."""
    project = Project.fresh(tmp_path_factory.mktemp("nested"))
    config = micro_config()
    section = config["archives"]["micro"]
    section.update(
        splits={"method": "file", "file": "splits.json"},
        test={"groups": {}},
        select={"best": ["MeanDice"], "final": False},
    )
    section["dataset"]["synthesize"]["test_cases"] = 0
    section["set"]["epochs"] = 2
    project.configure(config)
    write_json(project.folder / "splits.json", SPLITS)
    project.snakemake()
    return project


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def cases_in(path: Path, archive: Path) -> list[str]:
    """The cases of a table, by name."""
    cases = json.loads((archive / "data/splits.json").read_text())["cases"]
    names = {(c["participant_id"], c["session_id"]): name for name, c in cases.items()}
    return sorted(names[row["participant_id"], row["session_id"]] for row in rows(path))


def test_each_split_is_tested_on_its_own_cases_and_no_others(nested):
    groups = {str(path.relative_to(nested.archive)) for path in nested.archive.glob("test/group-*/results/*/*")}
    assert groups == {f"test/group-test_{k}/results/split-{k}/{CHECKPOINT}" for k in (0, 1)}
    assert {p.name for p in nested.archive.glob("test/evaluations/*")} == {f"test_{k}_split-{k}.zip" for k in (0, 1)}
    for k, split in enumerate(SPLITS):
        group = nested.archive / f"test/group-test_{k}"
        assert cases_in(group / "data.tsv", nested.archive) == split["test"]
        details = group / f"results/split-{k}/{CHECKPOINT}/metrics/details.tsv"
        assert cases_in(details, nested.archive) == split["test"]
        for side in ("train", "validation"):
            data = nested.archive / f"training/data/{side}/split-{k}/data.tsv"
            assert cases_in(data, nested.archive) == split[side] and not set(split[side]) & set(split["test"])
        datalist = json.loads((nested.archive / f"config/dataset_{k}.json").read_text())
        assert [Path(entry["image"]).name.partition(".")[0] for entry in datalist["test"]] == split["test"]


def test_the_published_model_is_scored_on_the_test_cases_of_its_own_split(nested):
    assert published_cases(str(nested.archive), 0) == SPLITS[0]["test"]
    assert sorted(path.parent.name for path in nested.archive.glob("eval/*/*_seg.nii.gz")) == SPLITS[0]["test"]
    assert published_cases(str(nested.archive), 1) == SPLITS[1]["test"], "if that were published"


def test_results_over_splits_are_those_of_each_split_on_its_own_cases(nested):
    table = Archive(nested.archive).results()
    assert set(table.index.get_level_values("cases")) == {"validation", "test"}
    for k in (0, 1):
        folder = nested.archive / f"test/group-test_{k}/results/split-{k}/best-MeanDice/metrics"
        assert table.loc[(CHECKPOINT, "test", "MeanDice"), f"split-{k}"] == float(
            rows(folder / "aggregated.tsv")[0]["MeanDice"]
        )
    told = [line.split("  ") for line in summary(str(nested.archive)).splitlines() if line.startswith(f"{CHECKPOINT} ")]
    assert [next(filter(None, (cell.strip() for cell in line[1:]))) for line in told] == ["validation", "test"]
    assert " ± " in told[1][-1]
    card = (nested.archive / "docs/README.md").read_text()
    assert "| Metric | Validation | Test (own) |" in card and "Test group `test_1` of split 1 alone: 2 cases" in card
    log = (nested.archive / "summary.log").read_text()
    assert log.endswith("   - test_0\n      Splits: 0\n   - test_1\n      Splits: 1\n")


def test_nothing_is_left_to_do_and_nothing_is_wrong(nested):
    assert nested.planned() == {}
    found = verify(str(nested.archive), str(nested.folder)).wrong
    assert not [(f.kind, f.path, f.note) for f in found]


def test_a_lost_result_comes_back_by_its_name_and_none_of_another_split_does(nested):
    before = hashes(nested.archive)
    (nested.folder / LOST).unlink()
    assert nested.ran(LOST) == {"write_results": 1} and hashes(nested.archive) == before
    for name in (LOST.replace("split-1", "split-0"), "archives/micro/test/evaluations/test_0_split-1.zip"):
        done = nested.snakemake("-n", name, ok=False)
        k = 0 if "test_0" in name else 1
        said = f"test group 'test_{k}' is of split {k} alone, whose test cases other splits may have trained on"
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert f"split {1 - k} is tested on test_{1 - k}" in done.stderr


def test_a_test_on_another_splits_cases_is_refused_also_by_its_step(nested):
    command = [*nested.command()[:2], "armarium", "test", "archives/micro", "test_0", "1"]
    environment = {**nested.environment, "PYTHONPATH": str(nested.folder / "workflow")}
    done = subprocess.run(command, cwd=nested.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "no test group 'test_0' of split 1; that is tested on ['test_1']" in done.stderr


def test_the_clinicadl_client_opens_it(nested):
    python = os.environ.get("CLINICADL_PYTHON")
    if python is None:
        pytest.skip("CLINICADL_PYTHON names no Python that has ClinicaDL")
    opens = "import sys; from clinicadl.io.maps import Maps; m = Maps(sys.argv[1]); m.read(); print(*m.test.groups)"
    done = subprocess.run([python, "-W", "ignore", "-c", opens, nested.archive], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["test_0", "test_1"], done.stderr


def test_a_split_that_is_added_with_test_cases_of_its_own_is_tested_and_no_other(nested, tmp_path):
    copy = Project.copy_of(nested, tmp_path / "project")
    third = {"train": CASES[1:5], "validation": CASES[5:7], "test": [CASES[0], CASES[7]]}
    write_json(copy.folder / "splits.json", [*SPLITS, third])
    copy.ran("archives/micro/data/splits.json")
    planned = copy.planned()
    rules = ("train_split", "test_split", "export_split", "write_results")
    assert {rule: planned[rule] for rule in rules} == dict.fromkeys(rules, 1)
    assert not {"evaluate_published", "publish_weights", "publish_torchscript"} & planned.keys()
    [tests] = [line for line in copy.snakemake("-n").stdout.splitlines() if "testing split" in line]
    assert tests.endswith("testing split 2 on group test_2")


def test_an_ensemble_of_splits_that_test_each_others_cases_is_made_but_never_scored(nested, tmp_path):
    copy = Project.copy_of(nested, tmp_path / "project")
    assert copy.ran("archives/micro/models/ensemble.ts") == {"export_ensemble": 1, "publish_ensemble": 1}
    scored = copy.snakemake("archives/micro/eval/ensemble/metrics.csv", ok=False)
    assert scored.returncode != 0
    assert "archives/micro: no test group that no split trains on, so an ensemble" in scored.stderr
    assert copy.ran() == {"report_export": 1, "write_doc": 1, "write_manifest": 1}
    assert "It is scored on no case" in (copy.archive / "docs/README.md").read_text()
    assert not (copy.archive / "eval/ensemble").exists() and copy.planned() == {}
