"""MONAI's own bundle client at work on an archive, in a process of its own that knows nothing of this project."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from armarium.tables import read_tsv

CALLS = "import json, sys; from monai.bundle import run; [run(**call) for call in json.loads(sys.argv[1])]"
META = "configs/metadata.json"


def run_client(archive: Path, *calls: dict) -> None:
    """``monai.bundle.run`` from the archive's folder, once for each call's options."""
    given = json.dumps([{"meta_file": META, "logging_file": False, **call} for call in calls])
    done = subprocess.run([sys.executable, "-c", CALLS, given], cwd=archive, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def evaluations(data: Path, output: Path) -> list[dict]:
    """Calls that evaluate the published split's validation cases, and its test cases."""
    call = {"config_file": "configs/evaluate.json", "dataset_dir": str(data)}
    return [
        {**call, "output_dir": str(output / "validation")},
        {**call, "output_dir": str(output / "test"), "datalist_key": "test"},
    ]


def assert_same_scores(archive: Path, key_metric: str, output: Path, without: frozenset | set = frozenset()) -> None:
    """MONAI's figures are those of this archive's tables: each of them but some, to 1e-5."""
    folder = archive / f"training/split-0/models/best_models/best-{key_metric}/validation_metrics"
    (row,) = read_tsv((folder / "aggregated.tsv").read_text())
    row.pop("epoch")
    tested = dict(line.split(",") for line in (archive / "eval/metrics.csv").read_text().splitlines())
    for name, wanted in (("validation", row), ("test", tested)):
        lines = (output / name / "metrics.csv").read_text().splitlines()
        found = {key: float(value) for key, value in (line.split(",") for line in lines)}
        assert found.keys() == wanted.keys() - without
        assert all(abs(found[key] - float(value)) < 1e-5 for key, value in wanted.items() if key in found), (
            name,
            found,
            wanted,
        )
