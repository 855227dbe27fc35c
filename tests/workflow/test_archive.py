"""The micro archive is complete, and says nothing it should not."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from pathlib import Path

import nibabel
import numpy
import torch
from armarium import layout
from armarium.cache_folder import note_users, recipes_in

from .conftest import hashes


def read_tsv(path):
    with open(path) as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_micro_archive_has_every_artifact_of_its_split(built):
    for checkpoint in ("best-loss", "best-MeanDice", "epoch-2", "final"):
        folder = layout.checkpoint_dir(str(built.archive), 0, checkpoint)
        for path in (layout.checkpoint_pt(folder), layout.checkpoint_ts(folder), *layout.checkpoint_tables(folder)):
            assert Path(path).read_bytes(), path
        results = layout.result_dir(str(built.archive), "holdout", 0, checkpoint)
        for path in layout.result_tables(results):
            assert Path(path).read_text().strip(), path


def test_published_weights_are_the_best_checkpoints_without_prefix(built):
    folder = layout.checkpoint_dir(str(built.archive), 0, "best-MeanDice")
    whole = torch.load(layout.checkpoint_pt(folder), weights_only=True)
    plain = torch.load(built.archive / "models/model.pt", weights_only=True)
    assert all(k.startswith("network.") for k in whole)
    assert {k.removeprefix("network."): v.sum() for k, v in whole.items()} == {k: v.sum() for k, v in plain.items()}


def test_checkpoint_tables_are_the_rows_of_their_epoch(built):
    history = {r["epoch"]: r for r in read_tsv(built.archive / "training/split-0/validation_metrics/aggregated.tsv")}
    for checkpoint in ("best-loss", "best-MeanDice", "epoch-2", "final"):
        folder = layout.checkpoint_dir(str(built.archive), 0, checkpoint)
        (row,) = read_tsv(layout.checkpoint_tables(folder)[0])
        assert row == history[row["epoch"]]
    best = max(history.values(), key=lambda r: float(r["MeanDice"]))
    (chosen,) = read_tsv(layout.checkpoint_tables(layout.checkpoint_dir(str(built.archive), 0, "best-MeanDice"))[0])
    assert chosen["MeanDice"] == best["MeanDice"]


def test_aggregated_is_the_mean_of_details_and_no_case_is_dropped(built):
    folder = layout.result_dir(str(built.archive), "holdout", 0, "final")
    (aggregated,), details = (read_tsv(p) for p in layout.result_tables(folder)[:2])
    assert len(details) == 3
    defined = [float(r["MeanDice"]) for r in details if r["MeanDice"] != "n/a"]
    assert abs(float(aggregated["MeanDice"]) - sum(defined) / len(defined)) < 1e-12
    counted = read_tsv(layout.result_tables(folder)[2])
    assert all(int(r["defined"]) + int(r["undefined"]) == 3 for r in counted)


def test_segmentations_lie_on_the_input_grid_and_give_the_reported_dice(built):
    splits = json.loads((built.archive / "data/splits.json").read_text())
    raw = {
        r["filename"]: r
        for r in csv.DictReader((built.archive / "eval/val_mean_dice_raw.csv").read_text().splitlines())
    }
    for name in splits["groups"]["holdout"]:
        case = splits["cases"][name]
        predicted = nibabel.load(layout.eval_segmentation(str(built.archive), name))
        image, label = (nibabel.load(built.folder / f) for f in (case["image"][0], case["label"]))
        assert predicted.shape == image.shape and numpy.allclose(predicted.affine, image.affine)
        assert predicted.header.get_xyzt_units() == image.header.get_xyzt_units()
        p, t = (numpy.asarray(v.dataobj) == 1 for v in (predicted, label))
        dice = 2 * (p & t).sum() / (p.sum() + t.sum())
        (row,) = [r for f, r in raw.items() if name in f]
        assert abs(float(row["mean"]) - dice) < 1e-6


def test_torchscript_matches_the_weights_beside_it(built):
    from armarium.configure import read_effective
    from armarium.network import build_network

    network = build_network(read_effective(str(built.archive), "train"))
    x = torch.randn(1, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    folder = layout.checkpoint_dir(str(built.archive), 0, "final")
    network.load_state_dict(torch.load(layout.checkpoint_pt(folder), weights_only=True))
    script = torch.jit.load(layout.checkpoint_ts(folder)).eval()
    with torch.no_grad():
        assert torch.allclose(network.eval()(x), script(x), atol=1e-5)


def test_no_case_lies_on_two_sides(built):
    splits = json.loads((built.archive / "data/splits.json").read_text())
    (split,), test = splits["splits"], set(splits["groups"]["holdout"])
    assert len(split["validation"]) == 3 and len(split["train"]) == 5 and len(test) == 3
    assert len(set(split["train"]) | set(split["validation"]) | test) == 11


def test_manifest_names_every_file_with_its_hash(built):
    graph = json.loads((built.archive / "ro-crate-metadata.json").read_text())["@graph"]
    described = {
        e["@id"]: e.get("sha256")
        for e in graph
        if "File" in (e["@type"] if isinstance(e["@type"], list) else [e["@type"]])
    }
    for name, digest in hashes(built.archive).items():
        assert described[name] == digest


def test_no_clock_and_no_machine_path_outside_provenance(built):
    year = re.compile(rb"20[2-9][0-9]-[01][0-9]-[0-3][0-9]")
    for path in built.archive.rglob("*"):
        name = str(path.relative_to(built.archive))
        if not path.is_file() or re.search(r"^provenance/|ro-crate|env/|\.zip$|tfevents", name):
            continue
        data = path.read_bytes()
        assert str(built.folder).encode() not in data, name
        if not name.endswith((".pt", ".ts", ".gz")):
            assert not year.search(data.replace(b"2020-12", b"").replace(b"20240725", b"")), name


def test_run_zip_holds_only_selectable_checkpoints(built):
    with zipfile.ZipFile(built.archive / "training/split-0/run.zip") as run:
        info = json.loads(run.read("run.json"))
        kept = sorted(n for n in run.namelist() if n.startswith("checkpoints/"))
    wanted = {b["epoch"] for b in info["best"].values()} | {2, 4}
    assert kept == sorted(f"checkpoints/epoch-{e}.pt" for e in wanted)


def test_resume_state_is_gone_once_the_archive_is_complete(built):
    assert not list(built.archive.glob("training/split-*/tmp"))


def test_training_validation_and_tests_share_one_prepared_case_for_each_and_the_cache_names_its_archive(built):
    cases = read_tsv(built.archive / "data/cases.tsv")
    (recipe,) = recipes_in(str(built.folder / ".cache/armarium"))
    note_users([recipe], [str(built.archive)])
    assert len(recipe.entries) == len(cases) and recipe.users == {str(built.archive): len(cases)}
    assert recipe.data_roots == {str(built.folder)}
