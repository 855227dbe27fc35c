"""Exports on request: by name and by configuration, kept like every file, and a format that cannot be harms no other."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from armarium import Archive
from armarium.manifest import read_manifest
from armarium.run import INFO
from armarium.verify import verify
from armarium.zips import write_zip, zip_member

from .conftest import Project, WarmProject, hashes, micro_config
from .test_rebuild import declared, files, lose

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'armarium[onnx]'")
ZIP, REPORT, MODEL = (f"models/{name}" for name in ("exports/onnx.zip", "exports/onnx.json", "model.onnx"))
REASON = "torch.onnx, traced: UnsupportedOperatorError: aten::fancy"


def make_inexpressible(archive: Path) -> None:
    """As if the format could not express the network."""
    info = zip_member(archive / ZIP, INFO)
    report = {"exported": False, "format": "onnx", "reason": REASON}
    write_zip(archive / ZIP, {INFO: info, "report.json": json.dumps(report)})
    (archive / REPORT).unlink()
    (archive / MODEL).unlink()


@pytest.mark.slow
def test_a_format_that_is_asked_for_by_name_is_declared_and_kept_and_one_that_cannot_be_harms_nothing(built, tmp_path):
    with WarmProject.copy_of(built, tmp_path / "project") as project:
        archive, first = project.archive, hashes(project.archive)
        assert project.ran("archives/micro/models/model.onnx") == {
            "export_format": 1,
            "report_export": 1,
            "publish_format": 1,
        }
        made = (archive / MODEL).read_bytes()
        assert project.ran() == {"write_manifest": 1}
        assert {ZIP, REPORT, MODEL} <= read_manifest(str(archive)).files.keys()
        assert project.planned() == {}
        assert first.items() <= hashes(archive).items(), "what was there keeps its bytes"
        (archive / MODEL).unlink()
        assert project.ran() == {"publish_format": 1, "write_manifest": 1}
        assert (archive / MODEL).read_bytes() == made

        make_inexpressible(archive)
        assert project.ran() == {"report_export": 1, "write_manifest": 1}
        assert json.loads((archive / REPORT).read_text())["reason"] == REASON
        assert MODEL not in read_manifest(str(archive)).files and project.planned() == {}
        asked = project.snakemake("archives/micro/models/model.onnx", ok=False)
        assert asked.returncode != 0 and "Traceback" not in asked.stderr
        assert f"model.onnx: cannot be made: {REASON} (as archives/micro/{REPORT} says)" in asked.stderr
        refused = project.snakemake("archives/micro/models/ensemble.ts", ok=False)
        assert "an ensemble is the mean of several splits' models, and this archive has one split" in refused.stderr


# ---- an archive with all of it


@pytest.fixture(scope="module")
def requested(tmp_path_factory) -> Project:
    """An archive of two splits with both formats and the ensemble; tests must leave it as they found it."""
    project = Project.fresh(tmp_path_factory.mktemp("requested"))
    config = micro_config()
    config["archives"]["micro"].update(
        splits={"n_splits": 2},
        select={"best": ["MeanDice"], "final": False},
        set={"epochs": 2},
        export={"formats": ["onnx", "pt2"]},
        ensemble=True,
    )
    project.configure(config)
    project.snakemake()
    return project


@pytest.mark.slow
def test_what_is_configured_is_made_with_the_rest_and_nothing_is_wrong_with_it(requested):
    archive = requested.archive
    for name in ("onnx", "pt2"):
        report = json.loads((archive / f"models/exports/{name}.json").read_text())
        assert report["exported"] and report["max_abs_difference"] <= report["tolerance"]
    assert requested.planned() == {}
    assert verify(str(archive), str(requested.folder)).wrong == []


@pytest.mark.slow
def test_the_ensemble_is_scored_on_the_test_group_alone_and_gives_the_mean(requested):
    archive = Archive(requested.archive)
    held = json.loads((requested.archive / "data/splits.json").read_text())["groups"]["holdout"]
    assert sorted(archive.eval.ensemble.cases) == sorted(held)
    assert archive.eval.ensemble.metrics_csv.read_text() != archive.eval.metrics_csv.read_text()
    with archive.eval.ensemble.val_mean_dice_raw_csv.open() as file:
        assert len(list(csv.DictReader(file))) == len(held)
    told = f"the mean probabilities of splits 0, 1, on the {len(held)} test cases that no split has seen"
    assert told in (requested.archive / "docs/README.md").read_text()
    x = torch.randn(1, 1, 24, 24)
    splits = [requested.archive / f"training/split-{k}/models/best_models/best-MeanDice/model.ts" for k in (0, 1)]
    with torch.no_grad():
        mean = torch.stack([torch.jit.load(path)(x).softmax(1) for path in splits]).mean(0)
        torch.testing.assert_close(torch.jit.load(archive.models.ensemble_ts)(x).softmax(1), mean)


@pytest.mark.slow
def test_every_file_of_them_that_is_lost_comes_back_with_its_bytes_by_its_own_rule(requested, tmp_path):
    reference, wrong = files(requested.archive), []
    with WarmProject.copy_of(requested, tmp_path / "project") as project:
        names = [n for n in sorted(declared(project)) if n.startswith(("models/exports/", "eval/ensemble/"))]
        names += ["models/model.onnx", "models/model.pt2", "models/ensemble.ts"]
        assert len(names) == 6 + 4 + 3 + 3
        for name in names:
            found, more = lose(project, name, reference)
            wrong += [*found, *([f"{name}: {more} jobs too many"] if more else [])]
        assert not wrong
        assert project.planned() == {}
        shutil.rmtree(project.archive / "models")
        shutil.rmtree(project.archive / "eval/ensemble")
        project.ran()
        assert hashes(project.archive) == hashes(requested.archive)
