"""With REQUIRE_CLUSTER=1 a test that lacks a real Slurm or conda fails instead of skipping."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
SKIPPING = """
import pytest

@pytest.fixture
def slurm():
    pytest.skip("no Slurm here")

def test_by_its_fixture(slurm): pass

@pytest.mark.skipif(True, reason="no conda here")
def test_by_a_mark(): pass

@pytest.mark.xfail(reason="known")
def test_expected_to_fail(): assert False

def test_that_needs_nothing(): pass
"""
NO_MODULE = "import pytest; pytest.importorskip('no_such_module')"


def outcomes(folder: Path, **environment: str) -> tuple[dict[str, int], str]:
    settings = {k: v for k, v in os.environ.items() if k != "REQUIRE_CLUSTER"} | environment
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rs",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        folder,
        folder,
    ]
    output = subprocess.run(command, capture_output=True, text=True, env=settings, cwd=folder).stdout
    return {name: int(n) for n, name in re.findall(r"(\d+) (\w+)", output.splitlines()[-1])}, output


@pytest.fixture
def tests(tmp_path) -> Path:
    """Tests that lack something, in the folders of real parts and in another one."""
    for name in ("cluster", "unit"):
        (tmp_path / "tests" / name).mkdir(parents=True)
        (tmp_path / f"tests/{name}/test_of_{name}.py").write_text(SKIPPING)
    (tmp_path / "tests/conda").mkdir()
    (tmp_path / "tests/conda/test_module.py").write_text(NO_MODULE)
    shutil.copy(CONFTEST, tmp_path / "tests")
    return tmp_path / "tests"


def test_what_is_lacking_is_a_reason_to_skip(tests):
    counts, output = outcomes(tests)
    assert (counts["skipped"], counts["passed"], counts["xfailed"]) == (5, 2, 2) and "failed" not in counts
    assert "no Slurm here" in output and "no conda here" in output


def test_what_is_required_and_lacking_fails_with_the_reason(tests):
    _, output = outcomes(tests, REQUIRE_CLUSTER="1")
    assert "could not import 'no_such_module'" in output, "an error of collection ends the run"
    (tests / "conda/test_module.py").unlink()
    counts, output = outcomes(tests, REQUIRE_CLUSTER="1")
    reasons = re.findall(r"REQUIRE_CLUSTER=1, so this is no reason to skip: .*(no \w+ here)", output)
    assert sorted(set(reasons)) == ["no Slurm here", "no conda here"]
    assert counts == {"errors": 2, "skipped": 2, "passed": 2, "xfailed": 2}
