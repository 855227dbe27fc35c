"""Most rules touch no tensor; what does is imported only by those that do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from .conftest import REPO

COMPUTE = {"check_recipe", "train_split", "test_split", "evaluate_published", "export_split"}
"""Rules that compute with tensors; ``check_data`` reads the volumes."""
HEAVY = {
    "torch", "monai", "ignite", "numpy", "pandas", "scipy", "nibabel", "sklearn", "snakemake", "jsonschema", "yaml", "rocrate",
    "sqlite3", "requests",
}  # fmt: skip
LIGHT = (
    "write metrics archives/micro",
    "select archives/micro 0 final --weights",
    "publish archives/micro best",
    "extract archives/micro archives/micro/eval/evaluation.zip predictions/case_009.nii.gz archives/micro/eval/case_009/case_009_seg.nii.gz "
    "--rule extract_segmentation",
)


def test_only_steps_that_compute_have_loaded_what_computes(built):
    records = [json.loads(path.read_text()) for path in (built.archive / "provenance").glob("*.json")]
    loaded = {record["rule"]: set(record["packages"]) for record in records}
    assert loaded.keys() >= {
        "select_checkpoint",
        "publish_weights",
        "write_results",
        "write_doc",
        "write_eval_dice_tables",
    }
    computed = {rule: packages for rule, packages in loaded.items() if packages}
    assert computed == {
        **{rule: {"torch", "monai", "ignite", "numpy", "nibabel"} for rule in COMPUTE},
        "check_data": {"numpy", "nibabel"},
    }


@pytest.mark.parametrize("step", LIGHT, ids=lambda step: step.split()[0])
def test_the_process_of_a_light_rule_loads_click_and_little_else(step, copy):
    before = {p: p.read_bytes() for p in copy.archive.rglob("*") if p.is_file() and p.parent.name != "provenance"}
    environment = {**os.environ, "PYTHONPATH": str(REPO / "workflow")}
    command = [sys.executable, "-X", "importtime", "-m", "armarium", *step.split()]
    done = subprocess.run(command, cwd=copy.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = set(re.findall(r"^import time: .*\| +(\S+)$", done.stderr, re.M))
    assert "click" in modules and not modules & HEAVY
    assert before == {p: p.read_bytes() for p in before}, "made again with the same bytes"
