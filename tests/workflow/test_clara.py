"""A release of Clara Train 4.0, as it is, becomes a whole archive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import clara_configs

from .conftest import Project
from .test_conformance import checked

FILES = {
    "config_train.json": clara_configs.spleen_40,
    "config_inference.json": clara_configs.spleen_40_inference,
    "config_validation.json": clara_configs.spleen_41_validation,
}


TESTED = "test/group-held/results/split-0/best-MeanDice/metrics/aggregated.tsv"


def build_released(folder: Path) -> tuple[Project, str]:
    """The archive of a release, and what Snakemake said."""
    project = Project.fresh(folder)
    config = project.folder / "recipe/config"
    for name, conf in FILES.items():
        (config / name).write_text(json.dumps(conf(), indent=2))
    (config / "environment.json").write_text(json.dumps(clara_configs.environment_41()))
    section = {
        "recipe": "recipe",
        "dataset": {
            "list": "data/spleen/dataset.json",
            "synthesize": {"cases": 6, "test_cases": 2, "shape": [16, 16, 16], "spacing": [1.0, 1.0, 1.5]},
        },
        "splits": {"method": "holdout", "holdout": 2},
        "test": {"groups": {"held": {"from": "test"}}},
    }
    project.configure({"archives": {"micro": section}})
    return project, project.snakemake().stderr


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return build_released(tmp_path_factory.mktemp("clara"))


@pytest.mark.slow
def test_a_clara_release_becomes_an_archive_that_says_what_was_translated(released):
    project, said = released
    archive = project.archive
    wanted = "train.pre_transforms: AddChanneld is now EnsureChannelFirstd"
    assert f"armarium: warning: archives/micro: {wanted}" in said
    assert f"Recipe: {wanted}" in (archive / "training/split-0/warning.log").read_text()
    assert len(list((archive / "eval").glob("*/*.nii.gz"))) == 2 and (archive / "models/model.ts").is_file()
    scored = {path: (archive / path).read_text() for path in ("eval/metrics.csv", TESTED)}
    shown = dict(line.split(",") for line in scored["eval/metrics.csv"].splitlines())["MeanDice"]
    tested = dict(zip(*(line.split("\t") for line in scored[TESTED].splitlines()), strict=True))["MeanDice"]
    assert float(shown) != pytest.approx(float(tested)), "by config_validation.json, which takes the background in"
    assert project.planned() == {}
    again = project.snakemake("-n")
    assert "warning:" not in again.stdout + again.stderr, "told once"


@pytest.mark.slow
def test_todays_mmar_client_loads_it(released):
    done = checked(released[0], "check_mmar.py", "monai", "-q")
    assert [line for line in done.stdout.splitlines() if line.startswith("FAIL") and "commands/" not in line] == []
