"""Several processes: the training and the figures of one, and an end for all when one of them ends."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from armarium import layout, torchrun
from armarium.distributed import ALONE, Batches, Team
from armarium.errors import UserError
from armarium.export import deterministic_bytes
from armarium.network import build_network
from armarium.parent import CONTINUE, TRANSFER
from armarium.run import ReadWorkspace, Workspace
from armarium.starting import NEW, RESIZED, TAKEN, validation_digest
from armarium.tables import read_tsv
from armarium.torchrun import compute
from test_finetune import file_of, network, parent_in, plain
from tiny import CLASSES, REPO, component, recipe, settings, squares, training_of

EPOCHS = 20
"""Enough that a process can be killed between two of them."""
RANK = re.compile(rb"\0-m\0armarium\.ranks\0")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with five training and five validation cases, numbers that two do not divide."""
    root = tmp_path_factory.mktemp("data")
    return root, squares(root, 5), squares(root, 5, prefix="v")


def conf() -> dict:
    """The tiny recipe with a metric that only a whole set has."""
    found = recipe()
    found["validate"]["additional_metrics"] = [
        {
            "log_label": "Sensitivity",
            **component("ConfusionMatrix", metric_name="sensitivity", include_background=False),
        }
    ]
    return found


def job(data, archive: Path, **more) -> dict:
    """What a training takes."""
    root, train, validation = data
    return {
        "workspace": {"archive": str(archive), "split": "0", "fingerprint": "f"},
        "training": {
            "settings": settings(conf(), **{"epochs": EPOCHS, "batch_size": 1, **more}),
            "split": "0",
            "train": train,
            "validation": validation,
            "class_names": CLASSES,
            "data_root": str(root),
            "cache_dir": str(root / "cache"),
        },
    }


def train(data, archive: Path, processes: int, **more) -> tuple[dict, dict[str, bytes]]:
    """Train; what is said of it, and the members of run.zip but what a clock measured."""
    says, _ = compute("train", processes, "cpu", str(data[0] / "cache"), job(data, archive, **more), {"env/x": b"x"})
    return says, run_of(archive)


def run_of(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(layout.run_zip(str(archive), "0")) as members:
        return {n: members.read(n) for n in members.namelist() if not n.startswith("timing/")}


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """An undisturbed training by two processes: its folder, what is said of it, and its run."""
    archive = tmp_path_factory.mktemp("two")
    return archive, *train(data, archive, 2)


# ---- who does what


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("cases", [1, 5, 7, 12])
def test_every_case_is_drawn_once_and_weights_make_the_mean_over_a_step(cases, batch_size, processes):
    order = list(range(100, 100 + cases))
    teams = [Batches(order, batch_size, False, Team(rank, processes)) for rank in range(processes)]
    drawn = []
    for step, parts in enumerate(zip(*teams, strict=True)):
        weights = [team.weight(step) for team in teams]
        counted = [part for part, weight in zip(parts, weights, strict=True) if weight]
        assert all(part for part in parts) and sum(weights) == pytest.approx(1)
        assert [len(p) / sum(map(len, counted)) for p in counted] == pytest.approx([w for w in weights if w])
        drawn += [case for part in counted for case in part]
    assert drawn == order, "one after the other, as one process with the whole batch would"
    assert {len(team) for team in teams} == {-(-cases // (batch_size * processes))}
    dropping = [list(Batches(order, batch_size, True, Team(rank, processes))) for rank in range(processes)]
    assert {len(part) for parts in dropping for part in parts} <= {batch_size}
    assert sum(len(part) for parts in dropping for part in parts) == cases - cases % (batch_size * processes)


@pytest.mark.parametrize("drop_last", [True, False])
def test_one_process_alone_has_the_batches_that_torch_makes(drop_last):
    order = torch.utils.data.SequentialSampler(range(7))
    assert list(Batches(order, 3, drop_last, ALONE)) == list(torch.utils.data.BatchSampler(order, 3, drop_last))


def test_shares_come_together_in_the_order_of_the_whole():
    items = list("abcdefg")
    shares = [Team(rank, 3).share(items) for rank in range(3)]

    class First(Team):
        def gather(self, value):
            return shares

    assert sorted("".join(map("".join, shares))) == items and First(0, 3).in_order(shares[0]) == items
    assert ALONE.in_order(ALONE.share(items)) == items and ALONE.tell(3) == 3 and ALONE.add([0.1]) == [0.1]


# ---- training


def test_the_others_write_nothing(tmp_path):
    workspace = ReadWorkspace(str(tmp_path), "0", "f")
    workspace.start_afresh()
    workspace.note_epoch(1, "trained")
    workspace.keep_checkpoint(1, {})
    workspace.keep_file(1, b"weights of a parent")
    workspace.save_state({})
    workspace.drop_checkpoints_but(set())
    assert not list(tmp_path.iterdir())


def test_a_handler_is_attached_in_the_process_of_its_rank(data, tmp_path):
    handlers = [{**component("GarbageCollector"), **more} for more in ({}, {"rank": 0}, {"rank": 1})]
    training = training_of(data, tmp_path, settings(handlers=handlers))
    assert len(training._handlers()) == 2
    training.team = Team(2, 3)
    assert len(training._handlers()) == 1


def number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:  # a name, or n/a
        return text


def table(members: dict[str, bytes], name: str) -> list[dict[str, str]]:
    return read_tsv(members[name].decode())


def test_two_processes_train_what_one_does_with_the_whole_batch(two, data, tmp_path):
    _, says, members = two
    _, alone = train(data, tmp_path, 1, batch_size=2)
    assert list(members) == list(alone) and says["steps"] == 3 * EPOCHS
    for name in ("logs/training_loss.tsv", "validation_metrics/aggregated.tsv", "validation_metrics/details.tsv"):
        rows, wanted = table(members, name)[: 3 * 5], table(alone, name)[: 3 * 5]
        for row, want in zip(rows, wanted, strict=True):
            assert {k: number(v) for k, v in row.items()} == pytest.approx(
                {k: number(v) for k, v in want.items()}, abs=1e-6
            ), name
    info = json.loads(members["run.json"])
    assert info["processes"] == 2 and "processes" not in json.loads(alone["run.json"])
    assert (info["train"], info["validation"]) == (5, 5) and members["env/x"] == b"x"
    assert says["packages"]["monai"] and not list((data[0] / "cache/ranks").iterdir()), "nothing is left over"


def test_validation_counts_every_case_once_in_the_order_of_the_list(two, data):
    rows = table(two[2], "validation_metrics/details.tsv")
    assert [r["participant_id"] for r in rows] == [f"sub-v{i}" for i in range(5)] * EPOCHS
    assert {r["Sensitivity"] for r in rows} == {"n/a"}, "only the set has it"
    assert 0 < float(table(two[2], "validation_metrics/aggregated.tsv")[-1]["Sensitivity"]) <= 1


def test_evaluation_by_two_processes_makes_exactly_what_one_makes(two, data):
    """The checkpoint as TorchScript, on five cases: tables, the metric of the whole set, and predictions."""
    given, root = job(data, two[0])["training"], data[0]
    network = build_network(given["settings"]).eval()
    weights = torch.load(io.BytesIO(two[2][f"checkpoints/epoch-{EPOCHS}.pt"]), weights_only=True)
    network.load_state_dict(weights)
    files = {"model.ts": deterministic_bytes(torch.jit.script(network.network), {})}
    asked = {k: given[k] for k in ("settings", "class_names", "data_root", "cache_dir")}
    asked |= {"cases": data[2], "keep_predictions": True}
    made = [
        compute("score_torchscript", n, "cpu", str(root / "cache"), {"evaluation": asked}, files)[1] for n in (2, 1)
    ]
    one, several = ({n: d.encode() if isinstance(d, str) else d for n, d in m.items()} for m in reversed(made))
    assert list(several) == list(one) and several == one
    assert [n for n in one if n.startswith("predictions/")] == [f"predictions/v{i}.nii.gz" for i in range(5)]


# ---- ends


def ranks(parent: int) -> dict[int, int]:
    """The processes that ``parent`` started, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if not RANK.search((folder / "cmdline").read_bytes()):
                continue
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            variables = dict(v.partition(b"=")[::2] for v in (folder / "environ").read_bytes().split(b"\0"))
        except OSError:
            continue
        if int(stat[1]) == parent and stat[0] != "Z":
            found[int(variables[b"RANK"])] = int(folder.name)
    return found


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def once_saved(archive: Path, act: Callable[[], None]) -> threading.Thread:
    """Do something as soon as an epoch of a training is saved."""

    def wait() -> None:
        for _ in range(60_000):
            if Workspace(str(archive), "0", "f").state_file.is_file():
                return act()
            time.sleep(0.002)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def kill_of(rank: int, archive: Path, data) -> tuple[str, float, list[int]]:
    """Kill a process of a training; what the step says, how long that took, and who was at work."""
    told: dict = {}

    def kill() -> None:
        told["ranks"] = ranks(os.getpid())
        told["at"] = time.monotonic()
        os.kill(told["ranks"][rank], signal.SIGKILL)

    thread = once_saved(archive, kill)
    with pytest.raises(UserError) as caught:
        train(data, archive, 2)
    took = time.monotonic() - told["at"]
    thread.join()
    return str(caught.value), took, list(told["ranks"].values())


def prove_kill(rank: int, archive: Path, data, wanted: dict[str, bytes]) -> None:
    message, took, processes = kill_of(rank, archive, data)
    assert (
        message.startswith(f"process {rank} of 0 to 1 was ended by SIGKILL") and "run the same command again" in message
    )
    assert took < 60 and len(processes) == 2 and not any(map(is_alive, processes))
    assert not Path(layout.run_zip(str(archive), "0")).exists(), "nothing half-made"
    saved = Workspace(str(archive), "0", "f").load_state()["progress"]["epoch"]
    assert 0 < saved < EPOCHS
    _, members = train(data, archive, 2)
    assert [n for n in wanted if members[n] != wanted[n]] == [] and list(members) == list(wanted)
    with zipfile.ZipFile(layout.run_zip(str(archive), "0")) as run:
        assert json.loads(run.read("timing/train_stats.json"))["epochs_trained_again"] <= 1


def test_a_killed_process_ends_the_others_and_the_training_goes_on_to_the_same_bytes(two, data, tmp_path):
    prove_kill(1, tmp_path, data, two[2])


@pytest.mark.slow
def test_so_does_the_first_one(two, data, tmp_path):
    prove_kill(0, tmp_path, data, two[2])


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda s: s.name)
def test_no_process_outlives_the_step_that_started_it(signum, data, tmp_path):
    code = (
        "import json, sys; from armarium.torchrun import compute\n"
        "compute('train', 2, 'cpu', sys.argv[1], json.load(sys.stdin), {})"
    )
    outer = subprocess.Popen(
        [sys.executable, "-c", code, str(data[0] / "cache")], stdin=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPO / "workflow")},
    )  # fmt: skip
    json.dump(job(data, tmp_path, epochs=100_000), outer.stdin)
    outer.stdin.close()
    started: dict[int, int] = {}

    def end() -> None:
        started.update(ranks(outer.pid))
        os.kill(outer.pid, signum)

    once_saved(tmp_path, end).join()
    assert outer.wait(30) != 0 and len(started) == 2
    for _ in range(100):
        if not any(map(is_alive, started.values())):
            return
        time.sleep(0.05)
    raise AssertionError(f"left after {signum.name}: {started}")


@pytest.mark.slow
def test_what_a_process_finds_wrong_is_told_as_one_message(data, tmp_path):
    with pytest.raises(UserError, match=r"^split 0: 5 training cases make no batch of 8; lower batch_size"):
        train(data, tmp_path, 2, batch_size=4, drop_last=True)


@pytest.mark.slow
def test_an_epoch_that_is_listed_later_is_trained_by_as_many_processes(two, data, tmp_path):
    archive, _, members = two
    missing = [2]
    assert f"checkpoints/epoch-{missing[0]}.pt" not in members
    asked = job(data, tmp_path, keep_epochs=missing) | {"run": layout.run_zip(str(archive), "0")}
    compute("add_epochs", 2, "cpu", str(data[0] / "cache"), asked)
    _, wanted = train(data, tmp_path / "wanted", 2, keep_epochs=missing)
    kept = Workspace(**asked["workspace"]).kept / f"{missing[0]}.pt"
    assert kept.read_bytes() == wanted[f"checkpoints/epoch-{missing[0]}.pt"]


# ---- fine-tuning


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> Path:
    """Weights of other channels and classes: of them layers are taken, resized and new."""
    return file_of(tmp_path_factory.mktemp("parent") / "model.pt", plain(network(channels=2, classes=3, seed=5)))


def tune(data, archive: Path, parent: Path, processes: int, **more) -> dict[str, bytes]:
    """The run of a training that starts from a parent's weights; it saves no epoch but the last."""
    parent_in(archive, TRANSFER, parent, "model.pt")
    start = {"mode": TRANSFER, "weights": {}}
    return train(data, archive, processes, start=start, epochs=3, **more)[1]


def test_two_processes_fine_tune_what_one_does_with_the_whole_batch(data, parent, tmp_path):
    alone = tune(data, tmp_path / "one", parent, 1, batch_size=2)
    several = tune(data, tmp_path / "two", parent, 2)
    assert several["starting_weights.tsv"] == alone["starting_weights.tsv"]
    assert {row["what"] for row in table(several, "starting_weights.tsv")} == {TAKEN, RESIZED, NEW}
    lines = [members["summary.log"].decode().splitlines() for members in (alone, several)]
    started = [[line for line in told if line.startswith("Started: ")] for told in lines]
    assert started[0] == started[1] and "5 taken, 1 resized, 2 new" in started[0][0]
    for name in ("logs/training_loss.tsv", "validation_metrics/aggregated.tsv"):
        rows, wanted = table(several, name), table(alone, name)
        assert len(rows) == len(wanted) > 0
        for row, want in zip(rows, wanted, strict=True):
            assert {k: number(v) for k, v in row.items()} == pytest.approx(
                {k: number(v) for k, v in want.items()}, abs=1e-6
            ), name


@pytest.mark.slow
def test_they_do_so_to_the_same_bytes_each_time(data, parent, tmp_path):
    runs = [tune(data, tmp_path / name, parent, 2) for name in "ab"]
    assert runs[0] == runs[1] and runs[0].keys() >= {"checkpoints/epoch-3.pt", "starting_weights.tsv"}


@pytest.mark.slow
def test_two_processes_go_on_to_the_bytes_of_two_that_never_stopped(data, tmp_path):
    first, whole, longer = (tmp_path / name for name in ("first", "whole", "longer"))
    train(data, first, 2, epochs=2, lr_scheduler=None)
    _, wanted = train(data, whole, 2, epochs=4, lr_scheduler=None)
    more = {"epochs": 4, "lr_scheduler": None, "start": {"mode": CONTINUE, "weights": {}}}
    validated = {"0": validation_digest(job(data, longer, **more)["training"]["settings"], data[2])}
    parent_in(longer, CONTINUE, Path(layout.run_zip(str(first), "0")), "split-0.zip", validated)
    _, found = train(data, longer, 2, **more)
    names = wanted.keys() - {"run.json", "summary.log"}
    assert {n for n in names if found[n] != wanted[n]} == set() and "checkpoints/epoch-4.pt" in names
    assert found.keys() - wanted.keys() == {"starting_weights.tsv"}


# ---- why it ended


def outcome(folder: Path, ended: dict[int, int], **files: str) -> Exception:
    folder.mkdir()
    for i, (name, text) in enumerate(files.items()):
        (folder / name.replace("_", ".")).write_text(text)
        os.utime(folder / name.replace("_", "."), (i, i))
    return torchrun._in_words(folder, 2, ended)


def test_the_cause_is_told_and_not_what_followed_from_it(tmp_path):
    told = [
        outcome(tmp_path / "a", {0: 1, 1: -9}, **{"0_bug": "Connection closed by peer"}),
        outcome(tmp_path / "b", {0: 1, 1: -15}, **{"0_bug": "x", "1_said": "no such case"}),
        outcome(tmp_path / "c", {0: -15, 1: -15}),
        outcome(tmp_path / "d", {0: 1, 1: 1}, **{"1_bug": "KeyError", "0_bug": "Connection closed"}),
        outcome(tmp_path / "e", {1: 3}),
        outcome(tmp_path / "f", {0: 1, 1: -15}, **{"0_bug": "KeyError"}),
    ]
    words = [str(error) for error in told]
    assert words[0].startswith("process 1 of 0 to 1 was ended by SIGKILL") and words[1] == "no such case"
    assert "ended by SIGTERM" in words[2] and words[3] == "KeyError" and words[4] == "process 1 ended with status 3"
    assert words[5] == "KeyError", "a bug, and not that the agent ended the others for it"
    assert [type(e) for e in told] == [UserError, UserError, UserError, RuntimeError, RuntimeError, RuntimeError]
