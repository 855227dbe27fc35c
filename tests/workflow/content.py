"""What must be equal in files whose bytes may differ when they are made again, because a clock decides them.

Each function takes a file's bytes and returns what is promised of it; two files agree where these are equal.
Of every other file the bytes are promised.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterator

from armarium.tables import read_tsv

STATED = ("epochs", "steps", "best", "final_loss")
"""Keys of train_stats.json that no clock decides."""


def environment(data: bytes) -> list[str]:
    """The packages; the header above them describes platform and interpreter."""
    return [line for line in data.decode().splitlines() if not line.startswith("#")]


def host(data: bytes) -> list[str]:
    """What is said of a machine, not what the machine is."""
    return list(json.loads(data))


def timing_table(data: bytes) -> tuple[list[str], list[str]]:
    """Columns, and the epochs in order."""
    rows = read_tsv(data.decode())
    return list(rows[0]), [row["epoch"] for row in rows]


def train_stats(data: bytes) -> tuple[list[str], dict]:
    """The keys, and the values that follow from the training alone."""
    stats = json.loads(data)
    return list(stats), {key: stats[key] for key in STATED}


def events(data: bytes) -> list[tuple[int, str, float]]:
    """Step, tag and value of every scalar in order, without wall times."""
    from tensorboard.compat.proto.event_pb2 import Event

    parsed = (Event.FromString(record) for record in _records(data))
    return [(event.step, value.tag, value.simple_value) for event in parsed for value in event.summary.value]


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a TFRecord file: length, checksum, bytes, checksum."""
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield data[at + 12 : at + 12 + length]
        at += 12 + length + 4


ENVIRONMENT = r"env/(?:data/)?(?:environment\.txt|environment(?:_portable)?\.yml|explicit\.txt)"
HOST = r"env/(?:data/)?host\.json"
MEMBERS: dict[str, Callable] = {
    "timing/logs/computational.tsv": timing_table,
    "timing/train_stats.json": train_stats,
    "timing/events": events,
}


def run_zip(data: bytes) -> dict[str, object]:
    """Every member in order; those of ``timing/`` and ``env/`` by their own rule."""
    with zipfile.ZipFile(io.BytesIO(data)) as members:
        return {name: (MEMBERS.get(name) or rule_of(name) or bytes)(members.read(name)) for name in members.namelist()}


def manifest(data: bytes) -> tuple[dict, dict]:
    """Every file's name, with its SHA-256 where its bytes are promised; each action's parameters, files read and made."""
    graph = json.loads(data)["@graph"]
    entities = {entity["@id"]: entity for entity in graph}
    hashed = {name: e["sha256"] for name, e in entities.items() if "File" in _list(e["@type"]) and "sha256" in e}
    files = {name: None if rule_of(name) or _is_record(name) else digest for name, digest in hashed.items()}
    actions = [e for e in graph if e["@type"] == "CreateAction" and e["@id"] != "#run"]  # which sums up the others
    return files, {a["@id"]: {key: _names(a.get(key, []), entities) for key in ("object", "result")} for a in actions}


def _names(references, entities: dict[str, dict]) -> list[str]:
    return sorted(_name(entities.get(r["@id"], r)) for r in _list(references))


def _name(entity: dict) -> str:
    """A parameter with its value; a file whose bytes may differ by its name, also where it is an earlier copy."""
    if entity.get("@type") == "PropertyValue":
        return f"{entity['@id']}={entity['value']}"
    return entity["name"] if rule_of(entity.get("name", "")) else entity["@id"]


def _list(value) -> list:
    return value if isinstance(value, list) else [value]


def _is_record(name: str) -> bool:
    """Whether a file is a step's record, the home of dates."""
    return re.fullmatch(r"provenance/[^/]+\.json", name) is not None


RULES: dict[str, Callable] = {
    r"training/split-\d+/run\.zip": run_zip,
    r"training/split-\d+/logs/computational\.tsv": timing_table,
    r"models/train_stats\.json": train_stats,
    r"models/events\.out\.tfevents\.0\.armarium": events,
    ENVIRONMENT: environment,
    HOST: host,
    r"ro-crate-metadata\.json": manifest,
}
"""The files whose bytes may differ; nothing else."""


def rule_of(name: str) -> Callable | None:
    return next((rule for pattern, rule in RULES.items() if re.fullmatch(pattern, name)), None)


def same(name: str, one: bytes, other: bytes) -> bool:
    """Whether two makings of a file agree: in their bytes, or by the file's rule."""
    rule = rule_of(name)
    return one == other or (rule is not None and rule(one) == rule(other))
