"""When a lost file may be made again without what is made from it: only where it will be the same file."""

import json
import os
import platform
from pathlib import Path

import pytest
from armarium import layout
from armarium.environment import cpu_capability
from armarium.files import write_json
from armarium.hashing import HashIndex
from armarium.losses import lost_products
from armarium.manifest import write_manifest
from armarium.provenance import step

WORKFLOW = "rule all:\n"
LIGHT, COMPUTED = "data/splits.json", "training/split-0/exports.zip"


def made_by(archive: str, name: str, source: str, product: str) -> None:
    with step(archive, name, name, [source], [product]):
        write_json(product, {"by": name})


def edit(path: str, **values) -> None:
    write_json(path, {**json.loads(Path(path).read_text()), **values})


@pytest.fixture
def archive(tmp_path) -> str:
    """A source, two products of it with their records, one of them computed; and the manifest."""
    a = str(tmp_path / "archive")
    Path(layout.workflow_copy(a)).parent.mkdir(parents=True)
    Path(layout.workflow_copy(a)).write_text(WORKFLOW)
    write_json(layout.effective(a, "split"), {"seed": 0})
    capability = {"machine": platform.machine(), "cpu": {"capability": cpu_capability()}, "gpus": []}
    write_json(layout.host_json(a), capability)
    for name, product in (("split_data", layout.splits_json(a)), ("export_split", layout.exports_zip(a, 0))):
        made_by(a, name, layout.effective(a, "split"), product)
    edit(layout.sidecar(a, "split_data"), packages={})  # whatever other tests imported
    edit(layout.sidecar(a, "export_split"), packages={"torch": installed("torch")})
    write_manifest(a, HashIndex(tmp_path / "hashes.sqlite"))
    return a


def installed(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)


@pytest.fixture
def lost(archive, tmp_path):
    """What is found after the named products were lost."""

    def found(*names: str, workflow: str = WORKFLOW) -> set[str]:
        for name in names:
            os.unlink(f"{archive}/{name}")
        return lost_products(archive, workflow, HashIndex(tmp_path / "hashes.sqlite"))

    return found


def test_lost_products_of_an_archive_that_is_otherwise_as_it_was(lost):
    assert lost() == set()
    assert lost(LIGHT) == {LIGHT}
    assert lost(COMPUTED) == {LIGHT, COMPUTED}


def test_repeating_a_step_changes_its_record_but_not_what_is_known(archive, lost):
    made_by(archive, "export_split", layout.effective(archive, "split"), layout.exports_zip(archive, 0))
    assert lost(LIGHT) == {LIGHT}


EDITS = {
    "a source": lambda a: edit(layout.effective(a, "split"), seed=1),
    "a product": lambda a: edit(layout.exports_zip(a, 0), by="hand"),
    "a product, but not its size": lambda a: edit(layout.exports_zip(a, 0), by="expert_split"),
    "the manifest is lost": lambda a: os.unlink(layout.manifest(a)),
    "the manifest is damaged": lambda a: Path(layout.manifest(a)).write_text("{"),
    "its record is lost": lambda a: os.unlink(layout.sidecar(a, "split_data")),
    "its record is of another making": lambda a: edit(layout.sidecar(a, "split_data"), outputs={}),
    "its record is damaged": lambda a: Path(layout.sidecar(a, "split_data")).write_text("{"),
    "parts of an earlier version of which nothing is recorded": lambda a: edit(
        layout.sidecar(a, "split_data"), extends=[{"sha256": "0" * 64}]
    ),
    "other code": lambda a: edit(layout.sidecar(a, "split_data"), code_sha256="0" * 64),
    "another Python": lambda a: edit(layout.sidecar(a, "split_data"), python="3.0.0"),
    "another package": lambda a: edit(layout.sidecar(a, "split_data"), packages={"numpy": "0.1"}),
    "a package that is gone": lambda a: edit(layout.sidecar(a, "split_data"), packages={"no-such-package": "0.1"}),
}


@pytest.mark.parametrize("what", EDITS)
def test_where_anything_else_is_other_than_it_was_snakemake_decides(archive, lost, what):
    EDITS[what](archive)
    assert lost(LIGHT) == set()


def test_another_workflow_may_make_it_otherwise(lost):
    assert lost(LIGHT, workflow=f"{WORKFLOW}# edited\n") == set()


@pytest.mark.parametrize("host", [{"machine": "vax"}, {"cpu": {"capability": "OTHER"}}, {"gpus": ["A GPU"]}])
def test_what_was_computed_elsewhere_may_come_out_otherwise(archive, tmp_path, lost, host):
    edit(layout.host_json(archive), **host)
    write_manifest(archive, HashIndex(tmp_path / "hashes.sqlite"))
    assert lost(LIGHT) == {LIGHT}
    assert lost(COMPUTED) == set()
