"""One split's training: the same bytes however it was interrupted, and what it does every epoch."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from armarium import layout
from armarium.epochs import EpochOrder, TrainingCases, seed_from
from armarium.errors import UserError
from armarium.evaluation import CaseScorer
from armarium.network import build_network, choose_device
from armarium.records import run_members
from armarium.run import TRAINING_LOSS, Workspace, lacking
from armarium.tables import read_tsv
from armarium.training import RepeatedTraining, SplitTraining
from armarium.transforms import build_transforms
from armarium.zips import zip_member
from tiny import CLASSES, component, handler, recipe, settings, squares, training_of

CPU = torch.device("cpu")


class Killed(BaseException):
    """What stands for a process that ends."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with five training cases, c0 to c4, and three validation cases, v0 to v2."""
    root = tmp_path_factory.mktemp("data")
    return root, squares(root, 5), squares(root, 3, prefix="v")


def conf_with(**model) -> dict:
    """The tiny recipe with dropout and batch normalisation, which both depend on the order of things."""
    conf = recipe()
    conf["train"]["model"]["args"].update(dropout=0.3, norm="batch", **model)
    return conf


def finished(training: SplitTraining) -> dict[str, bytes]:
    """Train to the end; the members of run.zip."""
    training.run()
    workspace = training.workspace
    workspace.finish(run_members(training, workspace.fingerprint, {}))
    with zipfile.ZipFile(workspace.run_zip) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def kill(training: SplitTraining, monkeypatch, epoch: int, batch: int | None = None) -> None:
    """Train until ``epoch`` is saved or, given a batch, until that batch of it is done."""

    def save():
        SplitTraining._save(training)
        if batch is None and training.progress.epoch == epoch:
            raise Killed

    def step(engine, items):
        value = SplitTraining._step(training, engine, items)
        if training.progress.losses[-1][:2] == [epoch, batch]:
            raise Killed
        return value

    monkeypatch.setattr(training, "_save", save)
    monkeypatch.setattr(training, "_step", step)
    with pytest.raises(Killed):
        training.run()


def unmeasured(members: dict[str, bytes]) -> dict[str, bytes]:
    return {n: data for n, data in members.items() if not n.startswith("timing/")}


def differing(a: dict[str, bytes], b: dict[str, bytes]) -> list[str]:
    assert list(a) == list(b)
    return [n for n in unmeasured(a) if a[n] != b[n]]


def table(members: dict[str, bytes], name: str) -> list[dict[str, str]]:
    return read_tsv(members[name].decode())


# ---- resuming


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An undisturbed training of two epochs."""
    return finished(training_of(data, tmp_path_factory.mktemp("whole"), settings(conf_with(), epochs=2)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("epoch", "batch"), [(1, None), (2, 1), (1, 1)], ids=["between epochs", "in the second", "in the first"]
)
def test_a_killed_training_goes_on_to_the_same_bytes(workers, epoch, batch, whole, data, tmp_path, monkeypatch):
    given = settings(conf_with(), epochs=2, num_workers=workers)
    kill(training_of(data, tmp_path, given), monkeypatch, epoch, batch)
    resumed = training_of(data, tmp_path, given)
    assert differing(finished(resumed), whole) == []
    assert len(resumed.progress.timing) == 2


def test_a_training_killed_between_saved_states_goes_on_from_the_last(data, tmp_path, monkeypatch):
    given = settings(conf_with(), epochs=4, save_interval=2, keep_epochs=[3])
    undisturbed = finished(training_of(data, tmp_path / "a", given))
    kill(training_of(data, tmp_path / "b", given), monkeypatch, 4, 0)
    resumed = training_of(data, tmp_path / "b", given)
    assert resumed.resume() == 2
    assert differing(finished(resumed), undisturbed) == []


def test_a_finished_training_is_not_trained_again(data, tmp_path, monkeypatch):
    given = settings(epochs=1)
    kill(training_of(data, tmp_path, given), monkeypatch, 1)
    again = training_of(data, tmp_path, given)
    monkeypatch.setattr(again, "_step", None)
    members = finished(again)
    workspace = Workspace(str(tmp_path), "0", "f")
    workspace.run_zip.unlink()
    assert not Workspace(str(tmp_path), "0", "g").take_finished() and not workspace.run_zip.exists()
    assert workspace.take_finished()
    assert zipfile.ZipFile(workspace.run_zip).read("run.json") == members["run.json"]


@pytest.mark.parametrize("state", ["another fingerprint", "half a file"])
def test_a_state_that_is_not_this_trainings_is_not_used(state, data, tmp_path, monkeypatch, whole):
    given = settings(conf_with(), epochs=2)
    changed = settings(conf_with(), epochs=2, seed=7) if state == "another fingerprint" else given
    killed = training_of(data, tmp_path, changed, fingerprint="g" if changed is not given else "f")
    kill(killed, monkeypatch, 1)
    if state == "half a file":
        path = killed.workspace.state_file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    fresh = training_of(data, tmp_path, given)
    assert differing(finished(fresh), whole) == []


def test_nothing_here_depends_on_the_global_random_state(data, tmp_path, whole):
    torch.manual_seed(5)
    numpy.random.seed(5)
    assert differing(finished(training_of(data, tmp_path, settings(conf_with(), epochs=2))), whole) == []


# ---- seeds


def test_the_order_differs_with_epoch_and_split_and_seed_and_is_repeatable(data):
    def order(seed, split, epoch):
        cases = TrainingCases(data[1] * 4, None, [], (seed, split))
        cases.epoch = epoch
        return tuple(EpochOrder(cases))

    orders = {(s, k, e): order(s, k, e) for s in (0, 1) for k in "01" for e in (1, 2)}
    assert len(set(orders.values())) == 8 and all(sorted(o) == list(range(20)) for o in orders.values())
    assert orders[0, "0", 1] == order(0, "0", 1)


def test_augmentation_differs_with_case_and_epoch_and_is_repeatable(data, tmp_path):
    class Zeros:
        def sample(self, case):
            return {"image": torch.zeros(1, 4, 4), "label": torch.zeros(1, 4, 4)}

    def drawn(split, epoch, i):
        cases = TrainingCases(
            data[1], Zeros(), build_transforms([component("RandGaussianNoised", keys="image", prob=1.0)]), (0, split)
        )
        cases.epoch = epoch
        ((image, _),) = cases[i]
        return image.numpy().tobytes()

    where = [(k, e, i) for k in "01" for e in (1, 2) for i in (0, 1)]
    assert len({drawn(*w) for w in where}) == 8 and drawn(*where[3]) == drawn(*where[3])


def test_splits_start_from_weights_of_their_own(data, tmp_path):
    def first(split):
        return next(training_of(data, tmp_path, settings(), split).network.parameters()).detach()

    assert not torch.equal(first("0"), first("1")) and torch.equal(first("0"), first("0"))


def test_a_seed_is_the_same_on_every_machine():
    assert seed_from(0, "1", 2) == 4003289205
    assert len({seed_from(*p) for p in [(1, 12), (11, 2), (112,), ("1", "1", "2")]}) == 4


# ---- what an epoch does


def test_every_loss_rate_and_score_is_recorded(whole):
    assert [(r["epoch"], r["batch"]) for r in table(whole, "logs/training_loss.tsv")] == [
        (e, b) for e in "12" for b in "012"
    ]
    assert len(table(whole, "logs/learning_rates/AdamW.tsv")) == 6
    assert [r["epoch"] for r in table(whole, "validation_metrics/aggregated.tsv")] == ["1", "2"]
    assert len(table(whole, "validation_metrics/details.tsv")) == 6
    info = json.loads(whole["run.json"])
    assert (info["epochs"], info["train"], info["validation"], info["input_shape"]) == (2, 5, 3, [1, 16, 16])


def test_validation_in_training_is_what_scoring_the_checkpoint_gives(whole, data):
    given = settings(conf_with())
    network = build_network(given)
    for row in table(whole, "validation_metrics/aggregated.tsv")[1:]:
        network.load_state_dict(
            torch.load(io.BytesIO(whole[f"checkpoints/epoch-{row['epoch']}.pt"]), weights_only=True)
        )
        found = CaseScorer(given, str(data[0]), str(data[0] / "cache"), CPU, CLASSES)(network, data[2]).aggregated()
        assert {k: float(row[k]) for k in found} == pytest.approx(found, abs=1e-9)


def test_listed_best_and_last_epochs_are_kept(data, tmp_path):
    given = settings(epochs=5, keep_epochs=[2], validation_interval=4)
    members = finished(training_of(data, tmp_path, given))
    info = json.loads(members["run.json"])
    best = {b["epoch"] for b in info["best"].values()}
    kept = {int(n.split("-")[1][:-3]) for n in members if n.startswith("checkpoints/")}
    assert kept == best | {2, 5} and best <= {4, 5}
    assert [r["epoch"] for r in table(members, "validation_metrics/aggregated.tsv")] == ["4", "5"]
    digests = {e: hashlib.sha256(members[f"checkpoints/epoch-{e}.pt"]).hexdigest() for e in sorted(kept)}
    assert info["checkpoints"] == {str(e): digest for e, digest in digests.items()}


# ---- an epoch more


def repeated(data, archive, given: dict, run: Path, missing: list[int]) -> RepeatedTraining:
    """The training of ``run`` once more, for epochs that it does not hold."""
    losses = read_tsv(zip_member(run, TRAINING_LOSS).decode())
    added = Workspace(str(archive), "0", "f more", layout.added_epochs_dir(str(archive), "0"))
    root, train, validation = data
    more = {**given, "keep_epochs": missing}
    return RepeatedTraining(
        more, "0", train, validation, CLASSES, str(root), str(root / "cache"), CPU, added, losses=losses
    )


def test_an_epoch_that_is_listed_later_is_added_to_the_run_and_all_else_stays(data, tmp_path, monkeypatch):
    given = settings(conf_with(), epochs=6, validation_interval=2)
    first = finished(training_of(data, tmp_path, given))
    wanted = finished(training_of(data, tmp_path / "wanted", {**given, "keep_epochs": [2, 4]}))
    workspace = Workspace(str(tmp_path), "0", "f")
    missing = lacking(json.loads(first["run.json"]), [2, 4])
    assert missing and workspace.take_finished() and not workspace.take_finished([2, 4])
    run = workspace.run_that_lacks([2, 4])
    kill(repeated(data, tmp_path, given, run, missing), monkeypatch, 1)
    training = repeated(data, tmp_path, given, run, missing)
    assert training.run().epoch == max(missing), "no further than needed"
    assert not training.progress.history["aggregated"], "validation decides no weights"
    workspace.extend(run, training.workspace)
    assert workspace.run_that_lacks([2, 4]) is None and workspace.take_finished([2, 4])
    with zipfile.ZipFile(workspace.run_zip) as archive:
        extended = {name: archive.read(name) for name in archive.namelist()}
    assert differing(extended, wanted) == [] and list(extended) == list(wanted)
    added = {f"checkpoints/epoch-{e}.pt" for e in missing}
    assert {n for n in extended if extended[n] != first.get(n)} == {"run.json", *added}


def test_a_training_that_comes_out_otherwise_adds_nothing(data, tmp_path):
    given = settings(conf_with(), epochs=3)
    finished(training_of(data, tmp_path, given))
    workspace = Workspace(str(tmp_path), "0", "f")
    before = workspace.run_zip.read_bytes()
    other = {**given, "optimizer": component("SGD", lr=0.5)}
    with pytest.raises(
        UserError, match=r"split 0: epoch \d, trained once more .*comes out otherwise .*take the epoch out"
    ):
        repeated(data, tmp_path, other, workspace.run_zip, [2]).run()
    assert workspace.run_zip.read_bytes() == before


@pytest.mark.parametrize(("patience", "epochs"), [(1, 2), (3, 4)])
def test_training_stops_early_without_gain(patience, epochs, data, tmp_path):
    given = settings(epochs=9, early_stopping={"patience": patience, "metric": "loss"})
    given["optimizer"]["args"]["lr"] = 0.0
    training = training_of(data, tmp_path, given)
    assert training.run().stopped_early and training.progress.epoch == epochs
    assert training_of(data, tmp_path, given).run().epoch == epochs, "and stays stopped"
    assert training.progress.best["loss"]["epoch"] == 1, "the first of equals"


def test_a_gain_smaller_than_asked_for_is_none(data, tmp_path):
    training = training_of(
        data, tmp_path, settings(epochs=6, early_stopping={"patience": 2, "min_delta": 100.0, "metric": "loss"})
    )
    assert training.run().epoch == 3


@pytest.mark.parametrize(
    ("key", "limit", "size"),
    [("clip_grad_norm", 1e-3, torch.linalg.vector_norm), ("clip_grad_value", 1e-4, lambda v: v.abs().max())],
)
def test_gradients_are_clipped(key, limit, size, data, tmp_path):
    given = settings(epochs=1, batch_size=5, lr_scheduler=None, optimizer=component("SGD", lr=1.0), **{key: limit})
    training = training_of(data, tmp_path, given)
    before = torch.nn.utils.parameters_to_vector(training.network.parameters()).detach().clone()
    training.run()
    change = size(torch.nn.utils.parameters_to_vector(training.network.parameters()).detach() - before)
    assert 0.5 * limit < float(change) < 1.01 * limit


@pytest.mark.parametrize("per_epoch", [True, False])
def test_the_learning_rate_goes_down_by_epoch_or_by_iteration(per_epoch, data, tmp_path):
    conf = recipe()
    handler(conf, "LrScheduleHandler")["epoch_level"] = per_epoch
    conf["train"]["lr_scheduler"] = component("StepLR", step_size=1, gamma=0.5)
    training = training_of(data, tmp_path, settings(conf, epochs=2, optimizer=component("SGD", lr=1.0)))
    rates = [r[2] for r in training.run().rates]
    assert rates == ([1, 1, 1, 0.5, 0.5, 0.5] if per_epoch else [0.5**i for i in range(6)])


def test_a_schedule_knows_how_many_steps_there_will_be(data, tmp_path):
    training = training_of(data, tmp_path, settings(epochs=2))
    assert training.schedule.total_iters == 6
    training.run()
    assert training.optimizer.param_groups[0]["lr"] == 0


def test_the_cpu_computes_in_full_precision_whatever_amp_says(data, tmp_path):
    training = training_of(data, tmp_path, settings(amp=True))
    assert not training.amp and not training.scaler.is_enabled()


def test_a_gpu_that_is_insisted_on_must_be_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(UserError, match="device is cuda, but torch sees no GPU"):
        choose_device("cuda")
