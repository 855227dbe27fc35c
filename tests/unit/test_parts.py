"""What a zip of several checkpoints takes from its last version, and how old the next one then is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from armarium import layout
from armarium.errors import UserError
from armarium.files import json_text
from armarium.held import give_back, hold
from armarium.parts import Parts
from armarium.provenance import code_sha256, read_sidecar, step
from armarium.run import INFO
from armarium.zips import write_zip, zip_member

RUN = {
    "epochs": 3,
    "best": {"loss": {"epoch": 2, "value": 0.1}, "MeanDice": {"epoch": 3, "value": 0.9}},
    "checkpoints": {"1": "a" * 64, "2": "b" * 64, "3": "c" * 64},
}
DECIDED = {"fingerprint": "f", "cases": "d"}


@pytest.fixture
def output(tmp_path) -> str:
    """An evaluation's zip in an archive."""
    path = layout.evaluation_zip(str(tmp_path / "a"), "held", 0)
    Path(path).parent.mkdir(parents=True)
    return path


def archive_of(output: str) -> str:
    return output.removesuffix(layout.evaluation_zip("", "held", 0))


def made(output: str, *checkpoints: str, run: dict = RUN, decided: dict = DECIDED) -> list[str]:
    """Make the zip as its step does, with the last version set aside; the checkpoints that were computed."""
    archive = archive_of(output)
    if hold(archive, output):
        os.unlink(output)
    with step(archive, "test", "test_split", [], [output]) as running:
        parts = Parts(decided, run, "run.zip", checkpoints)
        running.extends = parts.take_from_last(archive, "test", output, ["/x.tsv"])
        running.parameters |= parts.told("a test")
        computed = parts.missing
        parts.add({c: {"/x.tsv": f"computed for {c}"} for c in computed})
        write_zip(output, {INFO: json_text(parts.says), **parts.members()})
    give_back(archive, output)
    return computed


def record(output: str) -> dict:
    return read_sidecar(layout.sidecar(archive_of(output), "test"))


def test_of_one_epoch_one_part_is_computed(output):
    assert made(output, "final", "epoch-3", "best-MeanDice", "best-loss") == ["best-MeanDice", "best-loss"]
    assert zip_member(output, "final/x.tsv") == zip_member(output, "epoch-3/x.tsv") == b"computed for best-MeanDice"


def test_what_the_last_version_has_is_kept_and_its_maker_remembered(output, caplog):
    assert made(output, "best-loss") == ["best-loss"] and "extends" not in record(output)
    os.utime(output, ns=(10**18,) * 2)
    first = record(output)
    caplog.clear()
    assert made(output, "epoch-2", "best-loss", "final") == ["final"]
    assert caplog.messages == ["a test: 2 checkpoints kept, 1 computed"]
    assert zip_member(output, "epoch-2/x.tsv") == b"computed for best-loss"
    [earlier] = record(output)["extends"]
    assert earlier["sha256"] == first["outputs"][os.path.relpath(output, archive_of(output))]["sha256"]
    assert earlier["code_sha256"] == code_sha256() and earlier["end"] == first["end"]
    assert os.stat(output).st_mtime_ns == 10**18, "no newer than what was cut from the last version"
    assert made(output, "final") == [] and len(record(output)["extends"]) == 2
    assert json.loads(zip_member(output, INFO))["weights"] == {"final": "c" * 64}


@pytest.mark.parametrize(
    "other",
    [
        {"decided": {**DECIDED, "fingerprint": "g"}},
        {"decided": {**DECIDED, "cases": "e"}},
        {"run": {**RUN, "checkpoints": {**RUN["checkpoints"], "2": "d" * 64}}},
    ],
)
def test_nothing_is_kept_of_another_configuration_other_cases_or_another_run(output, other):
    made(output, "best-loss", "epoch-1")
    os.utime(output, ns=(10**18,) * 2)
    assert made(output, "best-loss", "epoch-1", "final", **other) == ["best-loss", "epoch-1", "final"]
    assert "extends" not in record(output)


def test_what_is_asked_for_anew_is_made_anew(output):
    made(output, "best-loss", "final")
    assert made(output, "final", "best-loss") == ["best-loss", "final"]


def test_a_damaged_last_version_gives_nothing(output, caplog):
    made(output, "best-loss")
    data = bytearray(Path(output).read_bytes())
    data[data.index(b"computed")] ^= 1
    Path(output).write_bytes(data)
    assert made(output, "best-loss", "final") == ["best-loss", "final"]
    assert "all of it is made anew" in caplog.text


def test_a_run_without_the_epoch_is_told(output):
    with pytest.raises(UserError, match="run.zip: it does not hold epoch-2"):
        made(output, "epoch-2", run={**RUN, "checkpoints": {}})
    with pytest.raises(UserError, match="epoch-5: training stopped early, after epoch 3; take 5 out of select.epochs"):
        made(output, "epoch-5")
