"""Prepared cases: keyed by what decides them, prepared once also by several jobs, never read half, shown and cleaned."""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy
import pytest
import torch
from armarium import cache_folder, crew, entries, transform_keys
from armarium.cache import PreparedCases
from armarium.claims import claim, unused
from armarium.cli import cli
from armarium.errors import UserError
from armarium.hashing import HASHES, HashIndex, sha256
from armarium.prepared import CLAIMS, USERS, number_of
from click.testing import CliRunner

from tests.unit.tiny import case, component, settings, squares

LOAD = [
    component("LoadImaged", keys=["image", "label"]),
    component("EnsureChannelFirstd", keys=["image", "label"]),
]
COUNTED = "counting_of_tests.Counted"


def prepared(root: Path, chain: list[dict] | None = None, allow: tuple = ()) -> PreparedCases:
    return PreparedCases(chain or LOAD, str(root), str(root / "cache"), allow)


def kept(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted((root / "cache").rglob("*.case"))}


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A chain whose transform notes each case that it is given, and takes its time; what it noted."""
    code = (
        "import os, time\n"
        "class Counted:\n"
        "    def __init__(self, log, seconds): self.log, self.seconds = log, seconds\n"
        "    def __call__(self, item):\n"
        "        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "        os.write(file, f'{os.getpid()} {float(item[\"image\"].sum())}\\n'.encode())\n"
        "        time.sleep(self.seconds)\n"
        "        return item\n"
    )
    (tmp_path / "code").mkdir()
    (tmp_path / "code/counting_of_tests.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "counting_of_tests", raising=False)
    log = tmp_path / "log"
    chain = [*LOAD, {"path": COUNTED, "args": {"log": str(log), "seconds": 0.05}}]
    yield chain, lambda: [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    sys.modules.pop("counting_of_tests", None)


# ---- what an entry is keyed by


def key(chain: list[dict], allow: tuple = ()) -> str:
    return PreparedCases(chain, ".", "cache", allow).recipe


def test_sections_whose_transforms_are_equal_share_entries_however_they_are_written():
    written = [
        [component("LoadImaged", keys="image"), component("SpatialPadd", keys="image", spatial_size=[8, 8])],
        [component("LoadImaged", keys=["image"], reader=None), component("SpatialPadd", keys=["image"], spatial_size=[8, 8])],
        [component("LoadImaged", keys=["image"]), component("SpatialPadd", keys="image", spatial_size=[8, 8], method="symmetric")],
    ]  # fmt: skip
    assert len({key(chain) for chain in written}) == 1
    given = settings()
    train, validate = given["pre_transforms"], given["validate"]["pre_transforms"]
    assert key(train[: len(validate)]) == key(validate), "training's deterministic part is validation's"


@pytest.mark.parametrize(
    "other",
    [
        component("SpatialPadd", keys=["image", "label"], spatial_size=[8, 9]),
        component("SpatialPadd", keys="image", spatial_size=[8, 8]),
        component("SpatialPadd", keys=["image", "label"], spatial_size=[8, 8], mode="reflect"),
        component("BorderPadd", keys=["image", "label"], spatial_border=[8, 8]),
    ],
)
def test_another_argument_or_transform_is_another_recipe(other):
    assert key([*LOAD, other]) != key([*LOAD, component("SpatialPadd", keys=["image", "label"], spatial_size=[8, 8])])


@pytest.mark.parametrize("package", ["monai", "torch", "numpy", "scipy", "nibabel"])
def test_another_version_of_what_computes_is_another_recipe(package, monkeypatch):
    before, real = key(LOAD), transform_keys.version
    monkeypatch.setattr(transform_keys, "version", lambda name: "0" if name == package else real(name))
    assert key(LOAD) != before


def test_another_processor_is_another_recipe(monkeypatch):
    before = key(LOAD)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX1024")
    assert key(LOAD) != before


def test_a_transform_of_the_users_own_is_keyed_by_its_code_and_what_that_uses(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def key_of(own: str, helper: str) -> str:
        for name in ("own_of_tests", "helper_of_tests"):
            sys.modules.pop(name, None)
        (tmp_path / "own_of_tests.py").write_text(own)
        (tmp_path / "helper_of_tests.py").write_text(helper)
        for compiled in tmp_path.rglob("*.pyc"):
            compiled.unlink()
        return key([*LOAD, {"path": "own_of_tests.Own", "args": {}}], ("own_of_tests.Own",))

    own = "from helper_of_tests import change\nclass Own:\n    def __call__(self, item): return change(item)\n"
    helper = "def change(item): return item\n"
    first = key_of(own, helper)
    assert key_of(own, helper) == first
    assert len({first, key_of(f"{own}# another\n", helper), key_of(own, f"{helper}# another\n")}) == 3


def test_a_file_that_changed_behind_its_size_and_time_is_neither_prepared_nor_found_under_the_old_hash(tmp_path):
    (one,) = squares(tmp_path, 1)
    path, cases = tmp_path / one["image"][0], prepared(tmp_path)
    path = path.rename(path.with_suffix(""))  # not compressed: the size stays
    one = case(tmp_path, "x", [numpy.ones((16, 16), numpy.float32)], numpy.zeros((16, 16), numpy.uint8))
    path = tmp_path / one["image"][0]
    first, before = cases.get(one)["image"].clone(), path.stat()
    data = bytearray(path.read_bytes())
    data[4] ^= 1  # the time in gzip's header: another file of the same voxels
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    again = {**one, "sha256": [sha256(path), one["sha256"][1]]}
    assert torch.equal(cases.get(again)["image"], first)
    assert len(kept(tmp_path)) == 2, "under its own hash"
    with pytest.raises(UserError, match="changed since the data was checked"):
        PreparedCases(LOAD, str(tmp_path), str(tmp_path / "other")).get(one)


def test_a_renamed_dataset_finds_its_entries(tmp_path, counted):
    chain, calls = counted
    (tmp_path / "a").mkdir()
    one = squares(tmp_path / "a", 1)[0]
    PreparedCases(chain, str(tmp_path / "a"), str(tmp_path / "cache"), [COUNTED]).get(one)
    (tmp_path / "a").rename(tmp_path / "b")
    for name in (one["image"][0], one["label"]):
        (tmp_path / "b" / name).rename(tmp_path / "b" / f"new_{name}")
    moved = {**one, "image": [f"new_{one['image'][0]}"], "label": f"new_{one['label']}"}
    PreparedCases(chain, str(tmp_path / "b"), str(tmp_path / "cache"), [COUNTED]).prepare_all([moved], 1)
    assert len(calls()) == 1


# ---- what an entry holds


def test_an_entry_gives_back_what_was_put_in(tmp_path):
    tensors = {
        "image": torch.rand(2, 3, 5),
        "label": torch.tensor(3),
        "affine": torch.eye(4, dtype=torch.float64),
        "half": torch.rand(3).to(torch.bfloat16),
        "none": torch.zeros(0, 4, dtype=torch.uint8),
    }
    trace = [
        {
            "class": "Pad",
            "padded": [(0, 0), (1, 2)],
            "affine": torch.rand(4, 4),
            "more": {"a": None, "b": [True, 1.5, float("inf")]},
        }
    ]
    entries.write_entry(tmp_path / "x.case", tensors, trace)
    found, told = entries.read_entry(tmp_path / "x.case", False)
    told = entries.decoded(told)
    assert list(found) == list(tensors)
    assert all(found[k].dtype == t.dtype and torch.equal(found[k], t) for k, t in tensors.items())
    assert torch.equal(told[0].pop("affine"), trace[0].pop("affine")) and told == trace
    assert isinstance(told[0]["padded"][0], tuple)


def test_every_damage_of_an_entry_is_noticed_and_the_case_prepared_again(tmp_path, caplog):
    one = squares(tmp_path, 1)[0]
    first = {k: v.clone() for k, v in prepared(tmp_path).sample(one).items()}
    ((name, whole),) = kept(tmp_path).items()
    flips = [
        bytes([*whole[:at], whole[at] ^ 4, *whole[at + 1 :]]) for at in (0, 17, 40, len(whole) // 2, len(whole) - 1)
    ]
    for damaged in (b"", whole[:10], whole[:-1], whole + b"x", *flips):
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(damaged)
        caplog.clear()
        again = prepared(tmp_path).sample(one)
        assert all(torch.equal(again[k], first[k]) for k in first)
        assert kept(tmp_path) == {name: whole} and "damaged, by a crash or its disk" in caplog.text


def test_cases_in_use_hold_no_files_open(tmp_path):
    cases, made = prepared(tmp_path), squares(tmp_path, 12)
    cases.prepare_all(made, 1)
    held = [cases.sample(one) for one in made[:1]]
    before = len(os.listdir("/proc/self/fd"))
    held += [cases.sample(one) for one in made]
    assert len(os.listdir("/proc/self/fd")) == before and len(held) == 13


# ---- several at once


@pytest.fixture
def at_once(monkeypatch):
    """Workers are started at once, however little there is to do."""
    monkeypatch.setattr(crew, "ALONE", 0)


def in_process(work, *args):
    process = get_context("fork").Process(target=work, args=args)
    process.start()
    return process


def prepare_in(root: Path, chain: list[dict], made: list[dict], workers: int) -> None:
    prepared(root, chain, (COUNTED,)).prepare_all(made, workers)


def test_two_jobs_on_one_cache_prepare_no_case_twice(tmp_path, counted):
    chain, calls = counted
    made = squares(tmp_path, 12)
    jobs = [in_process(prepare_in, tmp_path, chain, made, 1) for _ in range(2)]
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    values = [value for _, value in calls()]
    assert len(values) == len(set(values)) == 12
    assert len({pid for pid, _ in calls()}) == 2, "both took part"


def test_a_killed_jobs_cases_are_prepared_by_the_other_and_no_half_entry_is_read(tmp_path, counted):
    chain, calls = counted
    made = squares(tmp_path, 12)
    killed = in_process(prepare_in, tmp_path, chain, made, 1)
    while len(calls()) < 3:
        time.sleep(0.005)
    other = in_process(prepare_in, tmp_path, chain, made, 1)
    while len({pid for pid, _ in calls()}) < 2:
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    other.join(60)
    assert other.exitcode == 0
    done, values = kept(tmp_path), [value for _, value in calls()]
    assert len(done) == 12 and len(set(values)) == 12 and len(values) <= 13, "at most the case that was in work"
    undisturbed = tmp_path / "undisturbed"
    PreparedCases(chain, str(tmp_path), str(undisturbed / "cache"), (COUNTED,)).prepare_all(made, 1)
    assert kept(undisturbed) == done


def test_a_jobs_workers_end_with_it(tmp_path, counted, at_once):
    chain, calls = counted
    made = squares(tmp_path, 8)
    job = in_process(prepare_in, tmp_path, chain, made, 2)
    while len({pid for pid, _ in calls()}) < 2:
        time.sleep(0.005)
    os.kill(job.pid, signal.SIGKILL)
    job.join()
    time.sleep(0.1)
    ended = len(calls())
    time.sleep(0.2)
    assert len(calls()) == ended < 8
    prepare_in(tmp_path, chain, made, 1)
    assert len(kept(tmp_path)) == 8
    assert not list((tmp_path / "cache").rglob(".writing-*")), "nor is anything left of them"


def test_idle_cores_take_part_and_all_jobs_together_take_no_more_than_there_are(
    tmp_path, counted, monkeypatch, at_once
):
    chain, calls = counted
    monkeypatch.setenv(crew.CORES, "2")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    prepare_in(tmp_path, chain, squares(tmp_path, 6), 1)
    assert len({pid for pid, _ in calls()}) == 2
    places = tmp_path / "cache/prepared" / f"workers-{os.uname().nodename}"
    held = [claim(places, number) for number in (0, 1)]
    prepare_in(tmp_path, chain, squares(tmp_path, 12, prefix="d")[6:], 1)
    assert len({pid for pid, _ in calls()}) == 3 and str(os.getpid()) in {pid for pid, _ in calls()}
    for place in held:
        os.close(place)


def test_what_fails_in_a_worker_is_told_as_one_message(tmp_path, monkeypatch, at_once):
    made = squares(tmp_path, 4)
    (tmp_path / made[2]["image"][0]).write_bytes(b"text")
    with pytest.raises(UserError, match=f"{made[2]['image'][0]}: changed since the data was checked"):
        prepared(tmp_path).prepare_all(made, 2)
    monkeypatch.setattr(PreparedCases, "_prepare", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="a worker ended by signal 9, as where a machine runs out of memory"):
        PreparedCases(LOAD, str(tmp_path), str(tmp_path / "other")).prepare_all(made, 2)


def test_what_is_soon_done_is_done_without_workers(tmp_path, counted):
    chain, calls = counted
    prepare_in(tmp_path, chain, squares(tmp_path, 4), 2)
    assert {pid for pid, _ in calls()} == {str(os.getpid())}
    prepare_in(
        tmp_path, [*chain[:2], {**chain[2], "args": {**chain[2]["args"], "seconds": 0.2}}], squares(tmp_path, 8), 2
    )
    assert len({pid for pid, _ in calls()}) == 3, "this process, then two workers"


def test_workers_and_one_process_write_the_same_bytes_however_many_threads_torch_has(tmp_path, at_once):
    made, chain = squares(tmp_path, 4, (256, 256)), [*LOAD, component("NormalizeIntensityd", keys="image")]
    other, before = tmp_path / "other", torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        prepared(tmp_path, chain).prepare_all(made, 1)
        torch.set_num_threads(2)
        torch.rand(1 << 20).sum()  # now there are two, for which a worker would wait for ever
        PreparedCases(chain, str(tmp_path), str(other / "cache")).prepare_all(made, 2)
    finally:
        torch.set_num_threads(before)
    assert kept(other) == kept(tmp_path) and len(kept(other)) == 4


# ---- shown and cleaned


def run(*args: str) -> str:
    done = CliRunner().invoke(cli, ["cache", *args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_cache_is_shown_and_cleaned(tmp_path):
    made, cache = squares(tmp_path, 4), str(tmp_path / "cache")
    prepared(tmp_path).prepare_all(made, 1)
    index = HashIndex(Path(cache, HASHES))
    past = time.time_ns() + 10 * 10**9
    index.note({str(tmp_path / one["image"][0]): one["sha256"][0] for one in made}, past)
    shown = run("--cache", cache)
    assert str(tmp_path) in shown and HASHES in shown and time.strftime("%Y-%m-%d") in shown
    assert f"{sum(map(len, kept(tmp_path).values())) / 2**20:,.1f} MiB" in shown
    assert "prepared cases removed: 0," in run("--cache", cache, "--clean", "--unused-for", "30")
    old = next((tmp_path / "cache").rglob("*.case"))
    os.utime(old, (time.time() - 31 * 86400,) * 2)
    assert "prepared cases removed: 1," in run("--cache", cache, "--clean", "--unused-for", "30")
    assert not old.exists() and len(kept(tmp_path)) == 3
    (tmp_path / made[0]["image"][0]).unlink()
    assert "prepared cases removed: 3," in run("--cache", cache, "--clean")
    assert os.listdir(Path(cache, "prepared")) == [] or "no prepared cases" in run("--cache", cache)
    assert len(index._database(index._load, [str(tmp_path / one["image"][0]) for one in made])) == 3


def test_what_a_running_job_may_read_is_not_cleaned_away(tmp_path):
    made, cache = squares(tmp_path, 2), str(tmp_path / "cache")
    at_work = prepared(tmp_path)
    at_work.prepare_all(made, 1)
    assert "left as it is; a running job uses it" in run("--cache", cache, "--clean")
    assert len(kept(tmp_path)) == 2
    del at_work
    assert "prepared cases removed: 2," in run("--cache", cache, "--clean")
    again = prepared(tmp_path)
    again.prepare_all(made, 1)
    with unused(again.folder / USERS) as free:
        assert not free, "also where the folder was removed meanwhile"


def test_a_case_in_use_counts_as_used_today(tmp_path):
    made = squares(tmp_path, 2)
    prepared(tmp_path).prepare_all(made, 1)
    long_ago = time.time() - 40 * 86400
    for path in (tmp_path / "cache/prepared").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    prepared(tmp_path).prepare_all(made[:1], 1)
    (recipe,) = cache_folder.recipes_in(str(tmp_path / "cache"))
    assert sorted(round((time.time() - used) / 86400) for _, used in recipe.entries.values()) == [0, 40]


def test_an_empty_or_missing_cache_is_none(tmp_path):
    assert "no prepared cases" in run("--cache", str(tmp_path / "none"))
    assert "prepared cases removed: 0," in run("--cache", str(tmp_path / "none"), "--clean")
    assert not (tmp_path / "none").exists()


def hold(path: Path, number: int) -> None:
    claim(path, number)
    path.with_name("held").touch()
    time.sleep(60)


def test_a_case_that_another_has_in_work_is_waited_for(tmp_path):
    one = squares(tmp_path, 1)[0]
    cases = prepared(tmp_path)
    holding = in_process(hold, cases.folder / CLAIMS, number_of(cases._name(one)))
    while not (cases.folder / "held").exists():
        time.sleep(0.005)
    waiting = in_process(prepare_in, tmp_path, LOAD, [one], 1)
    time.sleep(0.3)
    assert waiting.is_alive() and not kept(tmp_path)
    holding.kill()
    waiting.join(60)
    assert waiting.exitcode == 0 and len(kept(tmp_path)) == 1
