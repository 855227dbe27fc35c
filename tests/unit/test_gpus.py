"""GPUs of one machine: what is listed and visible, and who holds which, by real locks of real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from armarium import gpu_pool, gpus, network, torchrun
from armarium.errors import UserError
from armarium.status import Status

from tests.stand_in_gpus import StandInGpus

REPO = Path(__file__).resolve().parents[2]
HOLDER = """
import os, sys, time
from pathlib import Path
from armarium import gpu_pool
gpu_pool.POOL = Path(sys.argv[3])
names = gpu_pool.take(int(os.environ.get("WANTED", 1)))
child = os.fork() if "FORKS" in os.environ else None
if child != 0:
    sys.stdout.write(f"{' '.join(names)} {child or ''}\\n")
    sys.stdout.flush()
time.sleep(60)
"""


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """A pool of this test's own, without a scheduler; what this process holds is let go."""
    for name in (*gpu_pool.SCHEDULERS, gpu_pool.VISIBLE, gpu_pool.SHARING):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu_pool, "POOL", tmp_path / "pool")
    monkeypatch.setattr(gpu_pool, "_HELD", {})
    yield tmp_path / "pool"
    let_go()
    os.environ.pop(gpu_pool.VISIBLE, None)


def let_go() -> None:
    """As if this process ended."""
    for lock in gpu_pool._HELD.values():
        lock.close()
    gpu_pool._HELD.clear()
    os.environ.pop(gpu_pool.VISIBLE, None)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with two GPUs."""
    stand_in = StandInGpus(tmp_path / "bin", 2)
    monkeypatch.setenv("PATH", f"{stand_in.folder}:{os.environ['PATH']}")
    return stand_in


@contextmanager
def another_job(pool: Path, *command: str, **environment: str):
    """A process that holds GPUs, started as a step of the workflow is; what it says it holds."""
    arguments = [sys.executable, "-c", HOLDER, "--log", "job.log", str(pool), *command]
    env = {**os.environ, "PYTHONPATH": str(REPO / "workflow"), **environment}
    with subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield SimpleNamespace(pid=process.pid, process=process, says=process.stdout.readline().split())
        finally:
            process.kill()


def sharing(monkeypatch, **keys) -> None:
    monkeypatch.setenv(gpu_pool.SHARING, json.dumps([*keys.items()]))


def while_waiting(monkeypatch, *happenings) -> list[float]:
    """Have something happen at each look, instead of waiting; one look more is a failure."""
    left, naps = list(happenings), []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        assert left, "still waiting"
        left.pop(0)()

    monkeypatch.setattr(gpu_pool, "time", SimpleNamespace(sleep=nap, monotonic=time.monotonic))
    return naps


# ---- what is there


def test_gpus_are_known_by_uuid_and_divided_ones_by_their_parts(machine):
    assert [str(gpu) for gpu in gpus.listed()] == ["GPU 0 (Test)", "GPU 1 (Test)"]
    parts = machine.divide(0, 2)
    assert [(gpu.uuid, str(gpu)) for gpu in gpus.listed()] == [
        (parts[0], "GPU 0:0 (MIG 1g.5gb)"),
        (parts[1], "GPU 0:1 (MIG 1g.5gb)"),
        (machine.uuids[1], "GPU 1 (Test)"),
    ]


def test_cuda_visible_devices_means_the_same_gpus_by_number_and_uuid(machine, monkeypatch):
    first, second = machine.uuids
    wanted = {
        "1,0": [second, first],
        f"{second},{first}": [second, first],
        f"{second[:12]},0": [second, first],
        "": [],
        "-1": [],
        "NoDevFiles": [],
        "1,7,0": [second],
        "GPU-": [],
        "0,0": [first],
    }
    for asked, meant in wanted.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
        assert [gpu.uuid for gpu in gpus.visible(gpus.listed())] == meant, asked
    parts = machine.divide(1, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"1,{parts[0]},0")
    assert [gpu.uuid for gpu in gpus.visible(gpus.listed())] == [*parts, first]
    assert gpus.count() == 3


def test_the_local_limit_grows_with_the_trainings_of_a_gpu(machine, monkeypatch):
    assert gpus.local_limit(None, "auto") == 2 and gpus.local_limit(None, "auto", 3) == 6
    assert gpus.local_limit(1, "auto", 3) == 1 and gpus.local_limit(None, "cpu", 3) == gpus.UNLIMITED
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus.local_limit(None, "auto", 3) == 3
    monkeypatch.setenv("PATH", "")
    assert gpus.local_limit(None, "auto", 3) == gpus.UNLIMITED


# ---- who holds what


def test_a_job_takes_a_gpu_that_no_other_holds_whoever_calls_it_what(pool, machine, monkeypatch):
    with another_job(pool, "train", "archives/a", "1", CUDA_VISIBLE_DEVICES="1,0") as other:
        assert other.says == [machine.uuids[1]]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(reversed(machine.uuids)))
        assert gpu_pool.take(1) == [machine.uuids[0]] and os.environ["CUDA_VISIBLE_DEVICES"] == machine.uuids[0]
        assert gpu_pool.take(1) == [machine.uuids[0]], "asked again it is the same"
        mine, others = gpu_pool.holders()
        if mine.process.number != os.getpid():
            mine, others = others, mine
        assert mine.gpu == "GPU 0 (Test)" and others.process.number == other.pid
        assert str(others).startswith(f"GPU 1 (Test): held by process {other.pid} on ")
        assert str(others).endswith(f": armarium {pool} train archives/a 1")


def test_a_killed_job_frees_its_gpu_at_once_even_if_its_children_live(pool, machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with another_job(pool, FORKS="yes") as other:
        child = int(other.says[1])

        def kill() -> None:
            os.kill(other.pid, signal.SIGKILL)
            other.process.wait()

        naps = while_waiting(monkeypatch, kill)
        assert gpu_pool.take(1) == [machine.uuids[0]] and len(naps) == 1, "free at the next look"
        os.kill(child, 0)  # the child is alive
        os.kill(child, signal.SIGKILL)


def test_waiting_is_told_once_with_who_holds_the_gpus(pool, machine, monkeypatch, capfd):
    with another_job(pool, "train", "archives/a", "0", WANTED="2") as other:
        while_waiting(monkeypatch, lambda: None, lambda: None, other.process.kill, other.process.wait)
        assert gpu_pool.take(1)[0] in machine.uuids
    told = capfd.readouterr().err
    assert told.count("waiting for a GPU:") == 1
    for number in (0, 1):
        assert told.count(f"  GPU {number} (Test): held by process {other.pid} on ") == 1
    assert told.endswith("armarium: on GPU 0 (Test)\n")


def test_several_gpus_are_taken_together_or_not_at_all(pool, machine, monkeypatch):
    with another_job(pool) as other:

        def one_is_left() -> None:
            assert [h.process.number for h in gpu_pool.holders()] == [other.pid], "not held while waiting for a second"
            other.process.kill()
            other.process.wait()

        while_waiting(monkeypatch, one_is_left)
        assert sorted(gpu_pool.take(2)) == sorted(machine.uuids)
    let_go()
    with pytest.raises(UserError, match=r"3 processes want a GPU each, found GPU 0 \(Test\), GPU 1 \(Test\)"):
        gpu_pool.take(3)


def test_several_trainings_share_a_gpu_when_all_allow_it_and_emptier_ones_come_first(pool, machine, monkeypatch):
    both = {gpu_pool.SHARING: json.dumps([["trainings_per_gpu", 2]])}
    sharing(monkeypatch, trainings_per_gpu=2)
    with another_job(pool, **both) as a, another_job(pool, **both) as b, another_job(pool, **both) as c:
        assert {a.says[0], b.says[0]} == set(machine.uuids)
        assert gpu_pool.take(1)[0] in set(machine.uuids) - {c.says[0]}
        let_go()
        for job in (a, b, c):
            job.process.kill()
            job.process.wait()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with another_job(pool) as alone:
        while_waiting(monkeypatch, alone.process.kill, alone.process.wait)
        gpu_pool.take(1)


def test_lock_files_of_the_dead_and_of_others_are_no_obstacle(pool, machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    pool.mkdir(mode=0o777)
    name = machine.uuids[0]
    (pool / f"{name}.0.lock").write_text('{"process": {"number": 1}}')
    (pool / f"{name}.0.lock").chmod(0o444)
    (pool / "pool.lock").symlink_to("/etc/passwd")
    (pool / f"{name}.1.lock").symlink_to("/etc/passwd")
    os.mkfifo(pool / f"{name}.2.lock")
    (pool / f"{name}.3.lock").mkdir()
    assert gpu_pool.take(1) == [name] and gpu_pool.holders()[0].process.number == os.getpid()


def test_a_folder_that_another_user_keeps_to_himself_is_no_obstacle(pool, machine, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_pool.tempfile, "gettempdir", lambda: str(tmp_path))
    pool.symlink_to("/etc")
    assert gpu_pool.holders() == []
    assert gpu_pool.take(1) == [machine.uuids[0]]
    assert (tmp_path / f"armarium-gpus-{os.getuid()}").stat().st_mode & 0o777 == 0o700


def test_what_a_strangers_lock_file_says_cannot_touch_the_terminal(pool, machine, monkeypatch):
    with another_job(pool) as other:
        path = pool / f"{other.says[0]}.0.lock"
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "gpu": "\x1b[2J"}))
        assert str(gpu_pool.holders()[0]).startswith("\\x1b[2J: held by")
        for text in ("{", "[]", '{"gpu": "x", "process": {"number": "y"}}', ""):
            path.write_text(text)
            assert "a program that does not say which" in str(gpu_pool.holders()[0])


def test_the_status_of_an_archive_names_who_holds_a_gpu(pool, machine):
    gpu_pool.take(1)
    shown = str(Status("archives/a", 0, [], [], [], Counter(), {}, [], gpu_pool.holders()))
    assert f"  in use    GPU 0 (Test): held by process {os.getpid()} on " in shown


# ---- what other programs fill


def test_a_gpu_that_another_program_fills_is_left_out(pool, machine):
    machine.fill((0, 4242, 39000, "python"))
    assert gpu_pool.take(1) == [machine.uuids[1]]


def test_a_filled_gpu_is_waited_for_by_name_until_it_is_free(pool, machine, monkeypatch, capfd):
    machine.fill((0, 4242, 39000, "train\x1b.py"), (1, 4243, 20000, "a"), (1, 4244, 10000, "b"))
    naps = while_waiting(monkeypatch, lambda: None, machine.fill)
    assert gpu_pool.take(1) == [machine.uuids[0]] and len(naps) == 2
    told = capfd.readouterr().err
    assert told.count("waiting") == 1
    wanted = "; wanted 20480 MiB free for a job\n"
    assert f"  GPU 0 (Test): 39000 of 40960 MiB filled by process 4242 (train\\x1b.py, 39000 MiB){wanted}" in told
    both = "process 4243 (a, 20000 MiB), process 4244 (b, 10000 MiB)"
    assert f"  GPU 1 (Test): 30000 of 40960 MiB filled by {both}{wanted}" in told


def test_a_filled_gpu_is_refused_by_name_after_the_time_that_the_configuration_sets(pool, machine, monkeypatch):
    sharing(monkeypatch, gpu_wait=0.02)
    machine.fill((0, 4242, 39000, "python"), (1, 4243, 39000, "python"))
    started = time.monotonic()
    with pytest.raises(UserError) as refused:
        gpu_pool.take(1)
    assert 1.2 <= time.monotonic() - started < 5
    assert "waited 0.02 minutes (gpu_wait) for a GPU:\n  GPU 0 (Test): 39000 of" in str(refused.value)
    assert "process 4243 (python, 39000 MiB)" in str(refused.value) and "set device: cpu" in str(refused.value)
    assert gpu_pool.holders() == []


def test_what_must_be_free_is_half_of_the_memory_or_what_the_configuration_says(pool, machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    machine.fill((0, 4242, 20000, "Xorg"))
    assert gpu_pool.take(1)
    let_go()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    sharing(monkeypatch, gpu_memory=30000, gpu_wait=0)
    with pytest.raises(UserError, match="20000 of 40960 MiB filled .* wanted 30000 MiB free"):
        gpu_pool.take(1)
    sharing(monkeypatch, gpu_memory=50000)
    with pytest.raises(UserError, match=r"gpu_memory: found 50000 MiB, wanted .*: GPU 0 \(Test\) has 40960"):
        gpu_pool.take(1)


def test_memory_of_the_jobs_that_share_a_gpu_is_not_another_programs(pool, machine, monkeypatch):
    both = {"CUDA_VISIBLE_DEVICES": "0", gpu_pool.SHARING: json.dumps([["trainings_per_gpu", 2]])}
    for name, value in both.items():
        monkeypatch.setenv(name, value)
    with another_job(pool, FORKS="yes", **both) as other:
        child = int(other.says[1])
        machine.fill((0, other.pid, 10000, "python"), (0, child, 25000, "python"))
        assert gpu_pool.take(1)
        let_go()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        machine.fill((0, other.pid, 10000, "python"), (0, 1, 25000, "another"))
        sharing(monkeypatch, trainings_per_gpu=2, gpu_wait=0)
        with pytest.raises(UserError, match=r"25000 of 40960 MiB filled by process 1 \(another, 25000 MiB\)"):
            gpu_pool.take(1)
        os.kill(child, signal.SIGKILL)


def test_where_nothing_is_told_of_memory_a_gpu_is_taken(pool, machine):
    parts = [*machine.divide(0, 1), *machine.divide(1, 1)]
    (machine.folder / "memory").write_text("GPU-x, [N/A], [N/A]\nno such line\n")
    (machine.folder / "programs").write_text(f"{parts[0]}, [N/A], [N/A], [Insufficient Permissions]\n")
    assert gpu_pool.take(1) == parts[:1]


# ---- where a job computes


@pytest.mark.parametrize("scheduler", gpu_pool.SCHEDULERS)
def test_a_job_keeps_the_gpus_that_a_scheduler_gave_it(pool, machine, monkeypatch, scheduler):
    machine.fill((0, 4242, 39000, "python"), (1, 4243, 39000, "python"))
    monkeypatch.setenv(scheduler, "17")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert gpu_pool.take(2) == ["1", "0"] and gpu_pool.holders() == []


def test_a_job_to_which_a_scheduler_gave_no_gpu_asks_for_one_as_others_do(pool, machine, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert gpu_pool.take(1) == [machine.uuids[0]]


def torch_sees(monkeypatch, uuids: list[str]) -> None:
    """Have torch see GPUs that are not there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(uuids))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
    properties = [SimpleNamespace(uuid=uuid.removeprefix("GPU-")) for uuid in uuids]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties[number])


def test_torch_computes_on_the_gpu_that_is_held(pool, machine, monkeypatch):
    machine.fill((0, 4242, 39000, "python"))
    torch_sees(monkeypatch, machine.uuids[1:])
    assert network.choose_device("auto") == torch.device("cuda", 0), "the only one that is visible"
    torch_sees(monkeypatch, machine.uuids)
    assert network.choose_device("cuda") == torch.device("cuda", 1), "CUDA was in use before the other was hidden"
    assert network.choose_device("cpu") == torch.device("cpu")


def test_a_gpu_that_torch_cannot_use_is_told_and_not_passed_over_in_silence(pool, machine, monkeypatch, capfd):
    torch_sees(monkeypatch, [])
    assert network.choose_device("auto") == torch.device("cpu")
    assert "sees no GPU, so this computes on the CPU" in capfd.readouterr().err
    assert [h.process.number for h in gpu_pool.holders()] == [os.getpid()]
    with pytest.raises(UserError, match="device is cuda, but torch sees no GPU"):
        network.choose_device("cuda")


def test_gpus_that_only_torch_sees_are_held_by_name(pool, monkeypatch):
    monkeypatch.setenv("PATH", "")
    torch_sees(monkeypatch, ["", "", ""])
    assert network.take_gpus("auto", 2) == ["0", "1"]
    held, gpu_pool._HELD = gpu_pool._HELD, {}
    assert network.choose_device("auto") == torch.device("cuda", 2)
    let_go()
    gpu_pool._HELD = held
    let_go()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a/b,c,d")
    assert network.choose_device("auto") == torch.device("cuda", 0)
    let_go()


def test_processes_see_the_gpus_that_their_job_holds(pool, machine, monkeypatch):
    torch_sees(monkeypatch, machine.uuids)
    assert torchrun._share_of_machine("cpu", 2) == ("cpu", {})
    kind, environment = torchrun._share_of_machine("auto", 2)
    assert kind == "cuda" and sorted(environment["CUDA_VISIBLE_DEVICES"].split(",")) == sorted(machine.uuids)
    let_go()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="4 processes want a GPU each, torch sees 2"):
        torchrun._share_of_machine("auto", 4)


def test_on_a_real_gpu_a_job_computes_on_the_one_that_it_holds(pool):
    """In a process of its own: CUDA reads its environment once."""
    if not gpus.count() or not torch.version.cuda:
        pytest.skip("no GPU that nvidia-smi lists, or a torch without CUDA")
    program = (
        "import sys; from pathlib import Path; from armarium import gpu_pool, network; gpu_pool.POOL = Path(sys.argv[1]);"
        "import torch; device = network.choose_device('cuda'); assert device.index == 0 and torch.cuda.device_count() == 1;"
        "print(f'GPU-{torch.cuda.get_device_properties(0).uuid}', *gpu_pool._HELD, float(torch.ones(3, device=device).sum()))"
    )
    env = {**os.environ, "PYTHONPATH": str(REPO / "workflow")}
    done = subprocess.run([sys.executable, "-c", program, str(pool)], capture_output=True, text=True, env=env)
    seen, held, total = done.stdout.split()
    assert seen == held and total == "3.0", done.stderr
