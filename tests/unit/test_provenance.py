"""Hashing with a cache, and the sidecar that a step leaves."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from hashlib import sha256 as reference
from pathlib import Path

import pytest
from armarium import hashing, layout, provenance
from armarium.errors import UserError
from armarium.hashing import HashIndex, list_sha256, sha256


def put(path, text, age=60.0):
    """Write a file that was last modified ``age`` seconds ago."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)
    return str(path)


def digest(text):
    return reference(text.encode()).hexdigest()


@pytest.fixture
def index(tmp_path):
    return HashIndex(tmp_path / "state" / "hashes.sqlite")


@pytest.fixture
def hashed(monkeypatch):
    """Paths that were really read, in order."""
    paths = []
    monkeypatch.setattr(hashing, "sha256", lambda path: paths.append(str(path)) or sha256(path))
    return paths


# ---- hashing


def test_an_unchanged_file_is_read_once(tmp_path, index, hashed):
    path = put(tmp_path / "a", "text")
    assert index.sha256(path) == digest("text")
    assert HashIndex(index.db_path).many([path]) == {path: digest("text")}
    assert hashed == [path]


def test_a_changed_size_time_or_inode_is_read_again(tmp_path, index, hashed):
    path = put(tmp_path / "a", "one", age=60)
    index.sha256(path)
    put(path, "two", age=50)
    assert index.sha256(path) == digest("two")
    stat = os.stat(path)
    other = put(tmp_path / "b", "six")
    os.replace(other, path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert index.sha256(path) == digest("six")


def test_a_file_just_modified_is_not_trusted(tmp_path, index, hashed):
    path = put(tmp_path / "a", "one", age=0)
    stat = os.stat(path)
    index.sha256(path)
    Path(path).write_text("two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert index.sha256(path) == digest("two")


def test_a_damaged_database_is_started_anew(tmp_path, index, hashed):
    path = put(tmp_path / "a", "text")
    put(index.db_path, "this is no database, and long enough to be seen as none" * 40)
    assert index.sha256(path) == index.sha256(path) == digest("text")
    assert len(hashed) == 1


def test_a_database_that_cannot_be_written_costs_time_only(tmp_path):
    path = put(tmp_path / "a", "text")
    assert HashIndex(f"{path}/no/folder.sqlite").sha256(path) == digest("text")


def test_a_missing_file_raises(tmp_path, index):
    with pytest.raises(FileNotFoundError):
        index.many([tmp_path / "absent"])


def test_processes_and_threads_share_one_database(tmp_path, index):
    paths = [put(tmp_path / str(n), str(n)) for n in range(50)]
    threads = [threading.Thread(target=index.many, args=(paths,)) for _ in range(4)]
    code = "import sys; from armarium.hashing import HashIndex; HashIndex(sys.argv[1]).many(sys.argv[2:])"
    processes = [subprocess.Popen([sys.executable, "-c", code, index.db_path, *paths], env=environment())
                 for _ in range(3)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert index.many(paths) == {path: digest(str(n)) for n, path in enumerate(paths)}


def test_many_unchanged_files_are_quick(tmp_path, index, monkeypatch):
    paths = [put(tmp_path / str(n), str(n)) for n in range(2000)]
    first = index.many(paths)
    monkeypatch.setattr(hashing, "sha256", None)
    start = time.perf_counter()
    assert index.many(paths) == first
    assert time.perf_counter() - start < 0.5


def test_a_list_is_hashed_as_sha256sum_prints_it():
    lines = f"{'1' * 64}  a\n{'2' * 64}  b\n"
    assert list_sha256([("b", "2" * 64), ("a", "1" * 64)]) == digest(lines)


# ---- sidecars


def environment():
    return os.environ | {"PYTHONPATH": str(Path(provenance.__file__).parents[1])}


@pytest.fixture
def archive(tmp_path):
    put(tmp_path / "archive" / "config" / "a.json", "{}")
    return str(tmp_path / "archive")


def sidecar(archive, name):
    return json.loads(Path(layout.sidecar(archive, name)).read_text())


def test_a_step_records_files_times_and_resources(archive, tmp_path):
    before = datetime.now(UTC)
    source, made = f"{archive}/config/a.json", f"{archive}/models/model.pt"
    data = {"x.nii": "ab"}
    with provenance.step(archive, "train-0", "train_split", [source], [made], {"seed": 3}, data) as s:
        put(made, "weights")
        put(tmp_path / "cache" / "extra", "cached")
        s.inputs.append(str(tmp_path / "cache" / "extra"))
        s.parameters["amp"] = False
        s.resources["gpu"] = "GPU of a test"
    record = sidecar(archive, "train-0")
    assert record["outputs"] == {"models/model.pt": {"sha256": digest("weights"), "size": 7}}
    assert record["inputs"] == {
        "config/a.json": {"sha256": digest("{}"), "size": 2},
        f"outside:{digest('cached')[:12]}/extra": {"sha256": digest("cached"), "size": 6},
        "data:x.nii": {"sha256": "ab"},
    }
    assert record["parameters"] == {"seed": 3, "amp": False}
    start, end = (datetime.fromisoformat(record[key]) for key in ("start", "end"))
    assert before - timedelta(seconds=1) < start <= end < datetime.now(UTC) + timedelta(seconds=1)
    assert start.utcoffset() == timedelta(0)
    assert record["resources"]["gpu"] == "GPU of a test"
    assert record["resources"]["peak_memory_bytes"] > 2**20
    assert record["resources"]["cpu_seconds"] >= 0 and record["resources"]["wall_seconds"] >= 0
    assert len(record["code_sha256"]) == 64 and record["rule"] == "train_split"


def test_a_sidecar_names_no_path_of_the_machine(archive, tmp_path, monkeypatch):
    elsewhere = put(tmp_path / "elsewhere" / "file", "x")
    program, secret = f"{tmp_path}/armarium/__main__.py", f"{tmp_path}/secret"
    argv = [program, "train", f"--archive={archive}", f"--data={secret}/data", f"file://{secret}/b"]
    monkeypatch.setattr(sys, "argv", argv)
    with provenance.step(archive, "s", "r", [elsewhere], [elsewhere]):
        pass
    text = Path(layout.sidecar(archive, "s")).read_text()
    assert str(tmp_path) not in text and "secret" not in text
    command = ["python", "-m", "armarium", "train", "--archive=archive", "--data=.../data", ".../b"]
    assert sidecar(archive, "s")["command"] == command


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("results/a", "results/a"),
        ("a/b c/d", "a/b c/d"),
        ('{"x": "/else/where"}', '{"x": ".../where"}'),
        ("/else/where/", ".../where"),
    ],
)
def test_a_command_keeps_what_is_no_absolute_path(archive, argument, expected):
    assert provenance.command_line(["/bin/armarium", argument], archive) == ["armarium", expected]


def test_a_command_is_relative_to_the_working_directory(tmp_path, archive, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = provenance.command_line(["x", archive, f"{tmp_path}/b/c"], "archive")
    assert found == ["x", "archive", "b/c"]


def test_a_failing_step_leaves_nothing(archive):
    with pytest.raises(ZeroDivisionError), provenance.step(archive, "s", "r", [], []):
        raise ZeroDivisionError
    assert not os.path.exists(layout.sidecar(archive, "s"))


def test_an_output_that_was_not_made_raises(archive):
    with pytest.raises(FileNotFoundError), provenance.step(archive, "s", "r", [], [f"{archive}/absent"]):
        pass
    assert not os.path.exists(layout.sidecar(archive, "s"))


def test_inputs_are_hashed_as_the_body_read_them(archive):
    source = f"{archive}/config/a.json"
    with provenance.step(archive, "s", "r", [source], []):
        put(source, "edited meanwhile")
    assert sidecar(archive, "s")["inputs"]["config/a.json"]["sha256"] == digest("{}")


def test_a_large_file_that_several_steps_read_is_hashed_once(archive, tmp_path, index, hashed, monkeypatch):
    monkeypatch.setattr(provenance, "LARGE", 10)
    large, small = put(tmp_path / "run.zip", "more than ten"), put(tmp_path / "small", "less")
    for number in range(3):
        with provenance.step(archive, f"cut-{number}", "r", [large, small], [], hash_index=index):
            pass
    assert hashed == [large], "what is small is not worth a look into the index"
    record = provenance.read_sidecar(layout.sidecar(archive, "cut-2"))
    assert sorted(f["sha256"] for f in record["inputs"].values()) == sorted([digest("more than ten"), digest("less")])


def test_sidecars_are_read_in_the_order_of_time(archive):
    for name in ("b", "a"):
        with provenance.step(archive, name, "r", [], []):
            time.sleep(0.002)
    put(f"{archive}/provenance/notes.json", '{"not": "a sidecar"}')
    put(f"{archive}/provenance/workflow/config.json", '{"format": "armarium-step/1"}')
    assert [record["name"] for record in provenance.read_sidecars(archive)] == ["b", "a"]
    put(layout.sidecar(archive, "a"), "{")
    with pytest.raises(UserError, match="not valid JSON"):
        provenance.read_sidecars(archive)


def test_the_module_is_quick_to_import_and_imports_nothing_heavy():
    code = (
        "import sys, time; t = time.process_time(); import armarium.provenance; t = time.process_time() - t;"
        "assert not {'torch', 'numpy', 'pandas', 'sqlite3', 'subprocess'} & set(sys.modules); print(t)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=True)
            for _ in range(3)]  # fmt: skip
    assert min(float(run.stdout) for run in runs) < 0.1


def test_noted_digests_are_taken_for_files_that_are_older_than_the_reading(tmp_path):
    old, young = tmp_path / "old", tmp_path / "young"
    for path in (old, young):
        path.write_text(path.name)
    os.utime(old, (1_700_000_000, 1_700_000_000))
    index = HashIndex(tmp_path / "hashes.sqlite")
    index.note({str(old): "noted", str(young): "noted"}, time.time_ns())
    found = index.many([str(old), str(young)])
    assert found[str(old)] == "noted", "not read again"
    assert found[str(young)] == sha256(young), "it may have changed after it was read"
