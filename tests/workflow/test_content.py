"""What the comparison of files that a clock decides takes for equal, and what not."""

from __future__ import annotations

import io
import json
import re
import zipfile

import pytest
from armarium.tables import read_tsv, tsv

from ..rebuilding import DOCUMENT
from . import content

RUN = "training/split-0/run.zip"


def changed_zip(data: bytes, **members: bytes | None) -> bytes:
    """A zip with some members replaced; those that are None are left out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            if (new := members.get(name, source.read(name))) is not None:
                target.writestr(name, new)
    return out.getvalue()


def changed_json(data: bytes, **values) -> bytes:
    return json.dumps({**json.loads(data), **values}).encode()


def other_events(built, value: float = 0.0, walltime: float = 0.0) -> bytes:
    """The learning events with other wall times, and with ``value`` added to the first scalar."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    out = io.BytesIO()
    writer, first = RecordWriter(out), True
    for record in content._records((built.archive / "models/events.out.tfevents.0.armarium").read_bytes()):
        event = Event.FromString(record)
        event.wall_time += walltime
        if first and event.summary.value:
            event.summary.value[0].simple_value += value
            first = False
        writer.write(event.SerializeToString())
    return out.getvalue()


@pytest.fixture(scope="module")
def run(built) -> bytes:
    return (built.archive / RUN).read_bytes()


@pytest.fixture(scope="module")
def members(run) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(run)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def slower(table: bytes) -> bytes:
    rows = read_tsv(table.decode())
    return tsv(list(rows[0]), [{**r, "train_seconds": "9.9", "ended": "1.0"} for r in rows]).encode()


def test_times_of_a_run_may_differ(built, run, members):
    other = {
        "timing/logs/computational.tsv": slower(members["timing/logs/computational.tsv"]),
        "timing/train_stats.json": changed_json(members["timing/train_stats.json"], train_seconds=9.9),
        "timing/events": other_events(built, walltime=60.0),
        "env/environment.txt": members["env/environment.txt"].replace(b"# platform: ", b"# platform: other"),
        "env/host.json": changed_json(members["env/host.json"], kernel="other"),
    }
    assert all(members[name] != data for name, data in other.items())
    assert content.same(RUN, run, changed_zip(run, **other))


@pytest.mark.parametrize("name", ["run.json", "checkpoints/epoch-2.pt", "logs/training_loss.tsv", "state/final.pt"])
def test_nothing_else_of_a_run_may(run, members, name):
    assert not content.same(RUN, run, changed_zip(run, **{name: members[name] + b" "}))
    assert not content.same(RUN, run, changed_zip(run, **{name: None}))


def test_what_is_no_time_among_the_times_may_not_differ(built, run, members):
    table = members["timing/logs/computational.tsv"]
    rows = read_tsv(table.decode())
    for name, data in {
        "timing/logs/computational.tsv": tsv(list(rows[0]), rows[:-1]).encode(),
        "timing/train_stats.json": changed_json(members["timing/train_stats.json"], final_loss=9.9),
        "timing/events": other_events(built, value=0.5),
        "env/environment.txt": members["env/environment.txt"] + b"another==1.0\n",
        "env/host.json": b"{}",
    }.items():
        assert not content.same(RUN, run, changed_zip(run, **{name: data})), name
    assert not content.same("training/split-0/logs/computational.tsv", table, table.replace(b"ended", b"end"))


def manifest_with(document: dict, change) -> bytes:
    graph = json.loads(json.dumps(document["@graph"]))
    change(graph, {entity["@id"]: entity for entity in graph})
    return json.dumps({"@graph": graph}).encode()


def read_earlier_copy(graph: list[dict], entities: dict[str, dict], action: str, name: str) -> None:
    """Let an action have read another version of a file than the one that is there."""
    other = {**entities[name], "@id": f"#file/{'0' * 64}/{name.rpartition('/')[2]}", "@type": "CreativeWork"}
    graph.append(other)
    for reference in entities[action]["object"]:
        if reference["@id"] == name:
            reference["@id"] = other["@id"]


@pytest.mark.parametrize(
    ("same", "change"),
    [
        (True, lambda _, e: e["#action/train_split-0"].update(startTime="2001-01-01T00:00:00.000+00:00")),
        (True, lambda _, e: e[RUN].update(sha256="0" * 64)),
        (True, lambda g, e: read_earlier_copy(g, e, "#action/export_split-0", RUN)),
        (True, lambda _, e: e["provenance/split_data.json"].update(sha256="0" * 64)),
        (False, lambda _, e: e["data/splits.json"].update(sha256="0" * 64)),
        (False, lambda _, e: e["data/splits.json"].update({"@id": "data/other.json"})),
        (False, lambda g, e: read_earlier_copy(g, e, "#action/write_datalist_0", "data/splits.json")),
        (False, lambda _, e: e["#action/split_data"].update(result=[])),
        (False, lambda _, e: e["#action/split_data"].update(object=[])),
        (False, lambda _, e: e["#value/publish_best/checkpoint"].update(value="final")),
    ],
)
def test_a_manifest_agrees_in_files_promised_hashes_and_actions(built, same, change):
    data = (built.archive / "ro-crate-metadata.json").read_bytes()
    assert content.same("ro-crate-metadata.json", data, manifest_with(json.loads(data), change)) == same


def test_other_files_agree_in_their_bytes_alone():
    assert content.same("models/model.ts", b"a", b"a") and not content.same("models/model.ts", b"a", b"b")


def test_the_files_that_may_differ_are_those_that_are_documented():
    table = DOCUMENT.read_text(encoding="utf-8").partition("| File | Equal when made again |")[2]
    names = [name.replace("<split>", "0") for name in re.findall(r"^\| `(.+?)` \|", table, re.M)]
    matched = [pattern for name in names for pattern in content.RULES if re.fullmatch(pattern, name)]
    assert matched == list(content.RULES)
