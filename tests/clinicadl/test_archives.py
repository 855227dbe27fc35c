"""The real ClinicaDL opens an archive, rebuilds its Trainer from it and gets the archive's own scores."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest

from .conftest import REPO, group_of, read_tsv, write_bids

IDS = ("participant_id", "session_id")
CHECKER = REPO.parent / "shared/conformance/check_maps.py"


def compared(ours: list[dict], theirs: list[dict]) -> dict[str, float]:
    """Largest difference by metric over the cases where our table has a value; both must have the same cases."""
    by_case = {tuple(row[c] for c in IDS): row for row in theirs} if IDS[0] in ours[0] else {(): theirs[0]}
    rows = {tuple(row[c] for c in IDS if c in row): row for row in ours}
    assert rows.keys() == by_case.keys()
    differences: dict[str, float] = {}
    for case, row in rows.items():
        for name, text in row.items():
            if name in IDS or text in ("", "n/a", "nan"):
                continue
            difference = abs(float(text) - by_case[case][name])
            assert not math.isnan(difference)
            differences[name] = max(difference, differences.get(name, 0.0))
    return differences


def scored_alike(client, project, archive, folder, checkpoint, classes) -> dict[str, dict[str, float]]:
    bids = write_bids(project, folder / "bids", group_of(project, "held"))
    theirs = client.ask("tested", archive=archive, bids=bids, checkpoint=checkpoint, classes=classes)
    split, _, name = checkpoint.partition("_")
    tables = project.archive / "test/group-held/results" / split / name / "metrics"
    return {t: compared(read_tsv(tables / f"{t}.tsv"), theirs[t]) for t in ("details", "aggregated")}


def test_it_rebuilds_a_classification_and_gets_its_scores(client, classified, copied, tmp_path):
    archive = copied(classified)
    found = client.ask("rebuilt", archive=archive)
    assert found["network"] == "clinicadl.networks.nn.resnet.ResNet"
    assert (found["model"], found["loss"], found["optimizer"]) == ("SupervisedModel", "CrossEntropyLoss", "Adam")
    assert found["loaded"] == ["best-loss", "best-ROCAUC", "final"] * 2 or len(found["loaded"]) == 6
    off = scored_alike(client, classified, archive, tmp_path, "split-0_best-loss", 2)
    assert set(off["details"]) == {"loss"} and set(off["aggregated"]) == {"loss", "ROCAUC", "Accuracy"}
    assert max(max(o.values()) for o in off.values()) <= 1e-5, off


def test_it_rebuilds_a_segmentation_and_gets_its_scores(client, segmented, copied, tmp_path):
    archive = copied(segmented)
    assert client.ask("rebuilt", archive=archive)["network"] == "clinicadl.networks.nn.conv_encoder.ConvEncoder"
    off = scored_alike(client, segmented, archive, tmp_path, "split-0_best-loss", None)
    assert set(off["details"]) == set(off["aggregated"]) == {"loss", "MeanDice", "MeanIoUHandler"}
    assert max(max(o.values()) for o in off.values()) <= 1e-5, off


def test_it_rebuilds_a_regression_and_gets_its_scores(client, regressed, copied, tmp_path):
    archive = copied(regressed)
    found = client.ask("rebuilt", archive=archive)
    assert (found["network"], found["loss"]) == ("clinicadl.networks.nn.densenet.DenseNet", "MSELoss")
    bids = write_bids(regressed, tmp_path / "bids", group_of(regressed, "held"))
    mine = ["loss", "MeanAbsoluteError", "MeanSquaredError"]
    theirs = client.ask("tested", archive=archive, bids=bids, checkpoint="split-0_best-loss", classes=1, metrics=mine)
    tables = regressed.archive / "test/group-held/results/split-0/best-loss/metrics"
    for name in ("details", "aggregated"):
        ours = [{k: v for k, v in row.items() if k in (*mine, *IDS)} for row in read_tsv(tables / f"{name}.tsv")]
        off = compared(ours, theirs[name])
        assert set(off) == set(mine) and max(off.values()) <= 1e-5, off


def test_what_it_has_no_class_for_is_named_and_taken_from_the_caller(client, foreign, copied, tmp_path):
    archive = copied(foreign)
    assert client.ask("opens", archive=archive) == "ok"
    said = client.ask("error_without_model", archive=archive)
    assert "CannotReadJsonError" in said and "model=" in said and "'network'" in said, said
    network = json.loads((archive / "model.json").read_text())["network"]
    assert network["name"] == "ResNet" and network["args"]["no_max_pool"] is True
    warnings = (archive / "training/split-0/warning.log").read_text()
    assert "cannot rebuild network ResNet" in warnings and "no_max_pool is True" in warnings
    assert "cannot rebuild optimizer AdamW {'lr': 0.003}" in warnings
    bids = write_bids(foreign, tmp_path / "bids", group_of(foreign, "held"))
    model = archive / "training/split-0/models/best_models/best-loss/model.ts"
    theirs = client.ask(
        "tested", archive=archive, bids=bids, checkpoint="split-0_best-loss", classes=2, torchscript=model
    )
    tables = foreign.archive / "test/group-held/results/split-0/best-loss/metrics"
    off = compared(read_tsv(tables / "details.tsv"), theirs["details"])
    assert max(off.values()) <= 1e-5


def test_warnings_are_the_recipes_alone(classified):
    texts = {p.read_text() for p in classified.archive.glob("training/split-*/warning.log")}
    assert len(texts) == 1 and "network" not in texts.pop()


@pytest.mark.parametrize("kind", ["classified", "segmented", "foreign"])
def test_the_checker_finds_no_fault(client, request, kind):
    if not CHECKER.is_file():
        pytest.skip("check_maps.py is not beside the project")
    archive = Path(request.getfixturevalue(kind).archive)
    rebuild = [] if kind == "foreign" else ["--rebuild"]
    done = subprocess.run(
        [client.process.args[0], str(CHECKER), str(archive), *rebuild], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip().splitlines()[-1].startswith("PASSED"), done.stdout
    assert "0 warnings" in done.stdout or kind == "foreign", done.stdout
