"""The micro archive as an object: ClinicaDL's paths, evaluation's predictions, the summary's numbers, the documentation."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import nibabel
import numpy
import pytest
import torch
from armarium import Archive
from armarium.results import spread
from armarium.summary import summary

from .conftest import REPO

WALK = """
import inspect, json, sys
from pathlib import Path
from clinicadl.io.base import Directory
from clinicadl.io.maps import Maps

def walk(value, name):
    if isinstance(value, Directory):
        yield f"{name}.path", str(value.path)
        for part, kind in inspect.getmembers(type(value)):
            if isinstance(kind, property) and not part.startswith("_"):
                yield from walk(getattr(value, part), f"{name}.{part}")
    elif isinstance(value, dict):
        yield f"list({name})", sorted(value)
        for key, inner in value.items():
            yield from walk(inner, f"{name}[{key!r}]")
    else:
        yield name, str(value) if isinstance(value, Path) else value

maps = Maps(sys.argv[1])
maps.read()
print(json.dumps(dict(walk(maps, "archive"))))
"""


def shown(value):
    return str(value) if isinstance(value, Path) else value


def test_every_attribute_of_clinicadl_is_ours_with_the_same_path(built, figures):
    python = os.environ.get("CLINICADL_PYTHON")
    if not python:
        pytest.skip("CLINICADL_PYTHON names no Python that has ClinicaDL")
    done = subprocess.run([python, "-c", WALK, str(built.archive)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    archive = Archive(built.archive)
    ours = {name: shown(eval(name, {"archive": archive})) for name in theirs}
    assert ours == theirs
    assert "archive.test.groups['holdout'].results.splits[0].models['best-loss'].metrics.details_tsv" in theirs
    figures.add("attributes as ClinicaDL has them", len(theirs))


def test_every_file_of_the_archive_opens_or_is_refused_as_what_it_is(built):
    archive = Archive(built.archive)
    for path in sorted(p for p in built.archive.rglob("*") if p.is_file()):
        if path.suffix in (".ts", ".zip", ".armarium"):
            continue
        assert archive.open_file(path) is not None, path
    run = archive.training.splits[0]
    assert run.run_zip.is_file() and run.exports_zip.is_file() and archive.manifest.is_file()
    missing = [f for f in (archive.env.environment_yml, run.models.final.warning_log) if f.exists()]
    assert missing == []


def test_a_prediction_is_what_the_published_evaluation_holds(built):
    archive = Archive(built.archive)
    assert len(archive.eval.cases) == 3
    images = {case: built.folder / f"data/micro/imagesTs/{case}.nii.gz" for case in archive.eval.cases}
    for case, image in images.items():
        held = archive.open_file(archive.eval.cases[case])
        for given in (image, nibabel.load(image)):
            made = archive.predict(given)
            assert numpy.array_equal(made.dataobj, held.dataobj) and made.header == held.header


def test_a_model_is_its_checkpoint(built):
    archive = Archive(built.archive)
    best = "split-0_best-MeanDice"
    assert archive.checkpoints() == [
        *(f"split-0_{c}" for c in ("best-MeanDice", "best-loss", "epoch-2", "final")),
        "published",
        "published-final",
    ]
    weights = archive.open_file(archive.training.get_checkpoint_dir(best).model_pt)
    for name in (best, "published"):
        loaded = archive.load_model(name).state_dict()
        assert all(torch.equal(weights[f"network.{k}"], v) for k, v in loaded.items()) and len(loaded) == len(weights)


def test_results_are_those_of_the_summary(built, monkeypatch):
    monkeypatch.chdir(built.folder)
    lines = [line.split() for line in summary("archives/micro").splitlines()]
    table = Archive("archives/micro").results()
    for (checkpoint, cases), rows in table.groupby(level=["checkpoint", "cases"]):
        values = [spread(row[["split-0"]]) for _, row in rows.iterrows()]
        assert [checkpoint, *cases.split(), *values] in lines
    assert (table["mean"] == table["split-0"]).all() and table["std"].isna().all()


def examples_in(text: str, folder: Path) -> dict:
    """Run the indented lines of a text for the demo as if it spoke of the micro archive; the names they leave."""
    for demo, micro in {
        "demo": "micro",
        "case_013": "case_009",
        "case_014": "case_010",
        "epochs[4]": "epochs[2]",
    }.items():
        text = text.replace(demo, micro)
    text = text.replace('"table.csv"', repr(str(folder / "table.csv")))
    code = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    assert "from armarium import Archive" in code
    names: dict = {}
    exec(compile(code, "examples", "exec"), names)
    return names


def test_the_documented_examples_run(built, monkeypatch, tmp_path):
    monkeypatch.chdir(built.folder)
    names = examples_in((REPO / "docs/reading.md").read_text(encoding="utf-8"), tmp_path)
    held = names["archive"].open_file("eval/case_009/case_009_seg.nii.gz")
    assert numpy.array_equal(names["segmentation"].dataobj, held.dataobj)
    assert names["likely"].shape == (*held.shape, 2)
    assert names["history"].index.name == "epoch" and names["by_case"].index.nlevels == 3
    assert (tmp_path / "table.csv").read_text().startswith("archive,,,micro,micro,micro")


def test_the_examples_of_the_readme_run(built, monkeypatch, tmp_path):
    monkeypatch.chdir(built.folder)
    text = (REPO / "README.md").read_text(encoding="utf-8")
    assert "archive" in examples_in(text.partition("## In Python")[2].partition("\n## ")[0], tmp_path)
