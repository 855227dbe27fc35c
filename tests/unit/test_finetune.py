"""Starting from a parent's weights: what is taken of them, and that going on is the same as never having stopped."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from armarium import layout
from armarium.clone import clone
from armarium.configure import Globals, configure
from armarium.errors import UserError
from armarium.files import read_json, write_json
from armarium.finetune import prepare, prepare_clone, start_file
from armarium.hashing import sha256
from armarium.network import Network
from armarium.parent import CONTINUE, TRANSFER, Parent, read_parent, refuse_seen, start_in_configuration
from armarium.records import run_members
from armarium.run import saved
from armarium.starting import (
    LEFT,
    NEW,
    RESIZED,
    TAKEN,
    fitted,
    read_weights,
    starting_members,
    validation_digest,
)
from armarium.tables import read_tsv
from armarium.training import SplitTraining
from monai.networks.nets import UNet
from test_training import conf_with, finished, kill, unmeasured
from tiny import handler, recipe, settings, squares, training_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with five training cases and two validation cases."""
    root = tmp_path_factory.mktemp("data")
    return root, squares(root, 5), squares(root, 2, prefix="v")


# ---- what fits


def network(channels: int = 1, classes: int = 2, features: tuple[int, ...] = (2, 4), seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(UNet(spatial_dims=2, in_channels=channels, out_channels=classes, channels=features, strides=[2]))


def plain(net: Network) -> dict[str, torch.Tensor]:
    return {k.removeprefix("network."): v for k, v in net.state_dict().items()}


def test_of_equal_networks_every_layer_is_taken():
    parent, here = network(seed=1), network(seed=2)
    for weights in (plain(parent), parent.state_dict(), {f"module.{k}": v for k, v in plain(parent).items()}):
        state, layers = fitted(here, weights, 1, "p.pt")
        assert {layer.what for layer in layers} == {TAKEN}
        assert all(torch.equal(state[k], v) for k, v in parent.state_dict().items())


def test_of_other_classes_the_last_layer_alone_is_new():
    parent, here = network(classes=2), network(classes=3, seed=1)
    state, layers = fitted(here, plain(parent), 1, "p.pt")
    new = {layer.name: (layer.parent, layer.here) for layer in layers if layer.what == NEW}
    assert new and all(name.startswith("model.2.") and 3 in here_ for name, (_, here_) in new.items())
    assert {layer.what for layer in layers} == {TAKEN, NEW}
    own = here.state_dict()
    assert all(torch.equal(state[f"network.{name}"], own[f"network.{name}"]) for name in new)


@pytest.mark.parametrize(("theirs", "ours"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_for_other_channels_the_first_kernels_are_resized_so_that_equal_channels_give_the_same(theirs, ours):
    parent, here = network(channels=theirs).eval(), network(channels=ours, seed=1).eval()
    state, layers = fitted(here, plain(parent), ours, "p.pt")
    assert {layer.what for layer in layers} == {TAKEN, RESIZED}
    here.load_state_dict(state)
    image = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        outputs = parent(image.expand(1, theirs, 8, 8)), here(image.expand(1, ours, 8, 8))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_a_transposed_last_layer_of_as_many_classes_as_channels_is_not_taken_for_the_first():
    parent, here = network(channels=2, classes=3), network(channels=2, classes=2, seed=1)
    _, layers = fitted(here, plain(parent), 2, "p.pt")
    assert {layer.what for layer in layers} == {TAKEN, NEW}


def test_of_a_deeper_parent_what_is_not_here_is_told():
    _, layers = fitted(network(), {**plain(network()), "head.weight": torch.ones(3, 2)}, 1, "p.pt")
    assert [(layer.name, layer.parent, layer.here) for layer in layers if layer.what == LEFT] == [
        ("head.weight", (3, 2), None)
    ]


def test_a_parent_of_which_nothing_fits_is_refused():
    for weights in ({"a.weight": torch.ones(2, 2)}, {k: v for k, v in plain(network()).items() if v.ndim < 2}):
        with pytest.raises(
            UserError, match=r"p\.pt: no layer of it fits this network: found .+ wanted .+ train\.model"
        ):
            fitted(network(), weights, 1, "p.pt")


class Evil:
    def __reduce__(self):
        return print, ("run",)


def file_of(path: Path, value) -> Path:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    path.write_bytes(buffer.getvalue())
    return path


def test_weights_are_read_however_they_are_wrapped(tmp_path):
    weights = plain(network())
    for value in (weights, {"model": weights, "train_conf": {"a": 1}}, {"state_dict": weights, "epoch": 3}):
        found = read_weights(file_of(tmp_path / "w.pt", value))
        assert found.keys() == weights.keys()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"a": Evil()}, "might be code and was not run"),
        ([1, 2], "wanted the weights of a network"),
        ({}, "wanted the weights of a network"),
        ({"epoch": 3}, "wanted the weights of a network"),
        ({"a": torch.tensor([1.0, float("nan")])}, "a has values that are no numbers"),
        (None, "no file of weights as torch saves it"),
    ],
)
def test_files_that_are_no_weights_are_refused_in_one_line(value, told, tmp_path, capsys):
    path = file_of(tmp_path / "w.pt", value)
    if value is None:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"w\.pt: .*{told}"):
        read_weights(path)
    assert capsys.readouterr().out == ""


# ---- a training that starts from a parent


def parent_in(archive: Path, mode: str, source: Path, file: str, validated: dict | None = None) -> None:
    """Put a file into ``resources/parent/``, as preparing does."""
    path = Path(layout.parent_file(str(archive), file))
    path.parent.mkdir(parents=True)
    shutil.copyfile(source, path)
    parent = Parent(mode, f"models/{file}", "A", "sha256:1", {"0": file}, {file: sha256(path)}, validated or {})
    write_json(layout.parent_json(str(archive)), parent.as_json())


def continuing(data: tuple, archive: Path, given: dict, run: Path) -> SplitTraining:
    given = {**given, "start": {"mode": CONTINUE, "weights": {}}}
    if not archive.exists():
        parent_in(archive, CONTINUE, run, "split-0.zip", {"0": validation_digest(given, data[2])})
    return training_of(data, archive, given, fingerprint="c")


def test_going_on_gives_the_bytes_of_a_training_that_never_stopped(data, tmp_path, monkeypatch):
    conf = conf_with()
    handler(conf, "CheckpointSaver")  # the recipe's: it saves every epoch
    conf["train"]["lr_scheduler"] = {"name": "StepLR", "args": {"step_size": 2, "gamma": 0.5}}
    first = training_of(data, tmp_path / "a", settings(conf, epochs=2, keep_epochs=[1]))
    assert first.schedule is not None
    finished(first)
    whole = finished(training_of(data, tmp_path / "b", settings(conf, epochs=4, keep_epochs=[1])))
    longer = settings(conf, epochs=4, keep_epochs=[1])
    kill(continuing(data, tmp_path / "c", longer, first.workspace.run_zip), monkeypatch, 3, 1)
    kill(continuing(data, tmp_path / "c", longer, first.workspace.run_zip), monkeypatch, 3)
    resumed = continuing(data, tmp_path / "c", longer, first.workspace.run_zip)
    members = finished(resumed)
    assert [row[0] for row in resumed.progress.timing] == [3, 4]
    names = unmeasured(whole).keys() - {"run.json", "summary.log"}
    assert {n for n in names if members[n] != whole[n]} == set()
    assert "checkpoints/epoch-1.pt" in names and "state/final.pt" in names
    says, would = json.loads(members["run.json"]), json.loads(whole["run.json"])
    assert {**says, "fingerprint": ""} == {**would, "fingerprint": ""}
    assert unmeasured(members).keys() - names == {"run.json", "summary.log", "starting_weights.tsv"}
    assert {row["what"] for row in read_tsv(members["starting_weights.tsv"].decode())} == {TAKEN}


def test_going_on_with_a_schedule_of_the_whole_length_is_where_the_longer_one_is(data, tmp_path):
    conf = recipe()
    conf["train"]["lr_scheduler"] = {
        "name": "WarmupCosineSchedule",
        "args": {"warmup_steps": 1, "t_total": "{iterations}"},
    }
    handler(conf, "LrScheduleHandler").update(epoch_level=False)
    first = training_of(data, tmp_path / "a", settings(conf, epochs=1))
    finished(first)
    whole = training_of(data, tmp_path / "b", settings(conf, epochs=3))
    finished(whole)
    longer = continuing(data, tmp_path / "c", settings(conf, epochs=3), first.workspace.run_zip)
    finished(longer)
    steps = len(first.loader)
    assert longer.progress.rates[steps:] == whole.progress.rates[steps:]
    assert longer.progress.rates[:steps] == first.progress.rates != whole.progress.rates[:steps]


def test_what_cannot_go_on_is_refused_before_an_epoch(data, tmp_path):
    first = training_of(data, tmp_path / "a", settings(epochs=2))
    finished(first)
    run = first.workspace.run_zip

    def refused(name: str, given: dict) -> str:
        with pytest.raises(UserError) as error:
            continuing(data, tmp_path / name, given, run).resume()
        return str(error.value)

    assert "split-0.zip) was trained for 2; epochs counts from the beginning: set it to more than 2" in refused(
        "b", settings(epochs=2)
    )
    assert "epoch 1 was trained in the parent, which did not keep it" in refused(
        "c", settings(epochs=3, keep_epochs=[1])
    )
    conf = recipe()
    conf["train"]["optimizer"] = {"name": "SGD", "args": {"lr": 0.1}}
    assert "optimizer must be the parent's: found AdamW there, SGD here" in refused("d", settings(conf, epochs=3))
    conf = recipe()
    conf["train"]["model"]["args"]["out_channels"] = 3
    assert "network must be the parent's; model.2." in refused("e", settings(conf, epochs=3))


def test_a_training_validated_otherwise_takes_no_scores_of_the_parent(data, tmp_path, capsys):
    first = training_of(data, tmp_path / "a", settings(epochs=1))
    finished(first)
    given = settings(epochs=2, start={"mode": CONTINUE, "weights": {}})
    parent_in(tmp_path / "b", CONTINUE, first.workspace.run_zip, "split-0.zip", {"0": "another"})
    training = training_of(data, tmp_path / "b", given)
    assert training.resume() == 1 and training.progress.best == {} and training.progress.losses == []
    assert "validated otherwise than the parent" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["moments", "cut", "no state"])
def test_a_damaged_run_is_refused_in_one_line(damage, data, tmp_path):
    from armarium.zips import opened, write_zip

    first = training_of(data, tmp_path / "a", settings(epochs=1))
    first.run()
    members = run_members(first, "f", {})
    if damage == "moments":
        state = torch.load(io.BytesIO(members["state/final.pt"]), weights_only=True)
        state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(7)
        members["state/final.pt"] = saved(state)
    if damage == "no state":
        members["state/final.pt"] = saved([1])
    first.workspace.finish(members)
    run = tmp_path / "run.zip"
    shutil.copyfile(first.workspace.run_zip, run)
    if damage == "cut":
        run.write_bytes(run.read_bytes()[:-200])
    training = continuing(data, tmp_path / "b", settings(epochs=2), run)
    with pytest.raises(UserError, match=r"split-0\.zip: "):
        training.resume()
    with opened(first.workspace.run_zip):
        assert write_zip  # the parent itself is whole


def test_a_transfer_starts_with_the_parents_weights_and_tells_what_it_took(data, tmp_path, capsys):
    from armarium.network import build_network

    torch.manual_seed(3)
    weights = {k.removeprefix("network."): v for k, v in build_network(settings()).state_dict().items()}
    last = [n for n in weights if n.startswith("model.2.")]
    weights = {n: v for n, v in weights.items() if n not in last[:1]}
    source = file_of(tmp_path / "w.pt", weights)
    parent_in(tmp_path / "b", TRANSFER, source, "model.pt")
    path = layout.parent_json(str(tmp_path / "b"))
    write_json(path, {**read_json(path), "starts": {"*": "model.pt"}})
    training = training_of(data, tmp_path / "b", settings(epochs=1, start={"mode": TRANSFER, "weights": {}}))
    fresh = training.network.state_dict()[f"network.{last[0]}"].clone()
    assert training.resume() == 0
    now = training.network.state_dict()
    assert all(torch.equal(now[f"network.{n}"], v) for n, v in weights.items())
    assert torch.equal(now[f"network.{last[0]}"], fresh)
    told = capsys.readouterr().err
    assert "transfer from models/model.pt of A" in told and f"new: {last[0]}" in told and "1 new" in told
    rows = {row["layer"]: row for row in read_tsv(starting_members(training)["starting_weights.tsv"])}
    assert rows[last[0]]["what"] == NEW and rows[last[0]]["shape_in_parent"] == "n/a"
    assert {rows[n]["what"] for n in weights} == {TAKEN}
    assert "1 new" in run_members_summary(training)


def run_members_summary(training: SplitTraining) -> str:
    from armarium.starting import starting_summary

    return starting_summary(training)[0]


# ---- resources/parent/


def held_archive(folder: Path) -> str:
    """An archive on disk that was configured and has what reading its configuration needs."""
    from tiny import configured, section, write_recipe

    write_recipe(folder / "recipe")
    configured(folder, section())
    return str(folder / "archives/a")


def test_what_lies_in_resources_parent_is_part_of_the_training_and_of_nothing_else(tmp_path):
    archive = held_archive(tmp_path)
    given = Globals(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    before = configure(archive, None, given)
    assert before.start is None and "start" not in json.loads(before.effective["train"])
    parent_in(Path(archive), TRANSFER, file_of(tmp_path / "w.pt", plain(network())), "model.pt")
    first = configure(archive, None, given)
    assert first.changed == {"train"}
    assert first.fingerprint("training", 0) != before.fingerprint("training", 0)
    assert first.fingerprint("splits") == before.fingerprint("splits")
    assert configure(archive, None, given).changed == set()
    file_of(Path(layout.parent_file(archive, "model.pt")), plain(network(seed=1)))
    other = configure(archive, None, given)
    assert other.changed == {"train"} and other.fingerprint("training", 0) != first.fingerprint("training", 0)


def test_the_finetuning_configuration_says_what_is_loaded_and_is_what_is_trained_by(tmp_path):
    archive = held_archive(tmp_path)
    given = Globals(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    path = Path(layout.mmar_config(archive, "config_finetune.json"))

    def loader() -> dict:
        return next(h for h in read_json(path)["train"]["handlers"] if h["name"] == "CheckpointLoader")["args"]

    assert loader()["load_path"] == "{MMAR_CKPT}"
    parent_in(Path(archive), TRANSFER, file_of(tmp_path / "w.pt", plain(network())), "model.pt")
    train = Path(layout.mmar_config(archive, "config_train.json"))
    write_json(train, {**read_json(train), "epochs": 7})
    assert configure(archive, None, given).settings["epochs"] == 7
    assert loader() == {
        "load_path": "resources/parent/model.pt",
        "load_dict": {"model": "@model"},
        "strict": False,
        "strict_shape": False,
    }
    assert read_json(path)["epochs"] == 7, "it follows config_train.json"
    write_json(path, {**read_json(path), "epochs": 9})
    for _ in range(2):
        assert configure(archive, None, given).settings["epochs"] == 9, "an edit of it is what counts"
    assert read_json(train)["epochs"] == 7


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / "parent.json").unlink(), "no parent.json, which says what they are"),
        (lambda f: (f / "model.pt").unlink(), "model.pt: file not found"),
        (lambda f: (f / "parent.json").write_text("{}"), "not as fine-tuning writes it"),
        (lambda f: write_json(f / "parent.json", {**read_json(f / "parent.json"), "mode": "x"}), "not as fine-tuning"),
        (lambda f: write_json(f / "parent.json", {**read_json(f / "parent.json"), "starts": 3}), "not as fine-tuning"),
    ],
)
def test_half_a_parent_is_refused(spoil, told, tmp_path):
    parent_in(tmp_path, TRANSFER, file_of(tmp_path / "w.pt", plain(network())), "model.pt")
    assert read_parent(str(tmp_path)).start_of(0) == "model.pt"
    spoil(Path(layout.parent_dir(str(tmp_path))))
    with pytest.raises(UserError, match=told):
        read_parent(str(tmp_path))


def test_an_archive_without_a_parent_starts_from_nothing(tmp_path):
    assert read_parent(str(tmp_path)) is None and start_in_configuration(str(tmp_path), None) is None


def test_cases_that_the_parent_was_trained_on_are_not_scored(tmp_path):
    parent_in(tmp_path, TRANSFER, file_of(tmp_path / "w.pt", plain(network())), "model.pt")
    archive = str(tmp_path)
    refuse_seen(archive, "0", {"c1": "a"})  # nothing is known
    write_json(layout.parent_cases(archive), {"*": ["a", "b"]})
    refuse_seen(archive, "0", {"c1": "x"})
    with pytest.raises(UserError, match=r"split 0: .* trained on 1 of the 2 cases .*\(c1\)"):
        refuse_seen(archive, "0", {"c1": "a", "c2": "x"})
    write_json(layout.parent_cases(archive), {"0": ["a"], "1": []})
    refuse_seen(archive, "1", {"c1": "a"})


# ---- clones


def test_a_clone_is_a_copy_with_the_edit_and_its_origin(tmp_path, monkeypatch):
    archive = held_archive(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_json(layout.environment_json(archive), {**read_json(layout.environment_json(archive)), "DATA_ROOT": "data"})
    Path(layout.tmp_dir(archive, 0)).mkdir(parents=True)
    Path(layout.tmp_dir(archive, 0), "state.pt").touch()
    before = {p: sha256(p) for p in Path(archive).rglob("*") if p.is_file()}
    clone("archives/a", "archives/b", {"epochs": "3"})
    assert {p: sha256(p) for p in Path(archive).rglob("*") if p.is_file()} == before
    assert read_json("archives/b/config/config_train.json")["epochs"] == 3
    assert not Path("archives/b/training").exists() or not list(Path("archives/b/training").rglob("state.pt"))
    assert read_json("archives/b/config/environment.json")["DATA_ROOT"] == "data"
    (tmp_path / ".snakemake").mkdir()  # where the archive is built from
    (tmp_path / "else/.snakemake").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "else")
    clone(archive, "c", {})
    assert read_json("c/config/environment.json")["DATA_ROOT"] == str(tmp_path / "data")


@pytest.mark.parametrize(
    ("target", "changes", "told"),
    [
        ("archives/a", {}, "archives/a: exists already"),
        ("archives/a/config/b", {}, "an archive holds no other one"),
        ("b", {"epoch": "3"}, "no variable 'epoch'.*epochs"),
        ("b", {"epochs": "many"}, "epochs"),
    ],
)
def test_what_cannot_be_cloned_leaves_nothing(target, changes, told, tmp_path, monkeypatch):
    held_archive(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        clone("archives/a", target, changes)
    assert not Path("b").exists() and not list(tmp_path.glob(".writing-*"))
    with pytest.raises(UserError, match="nothing: no archive"):
        clone("nothing", "b", {})


def test_only_a_clone_is_fine_tuned(tmp_path, monkeypatch):
    held_archive(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="a: not a clone; .*: armarium clone archives/a archives/a-tuned && "):
        prepare("archives/a")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text("archives: {a: {}}")
    with pytest.raises(UserError, match="listed in .*: armarium clone archives/a archives/a-tuned && "):
        prepare("archives/a")


def test_any_file_of_weights_is_put_beside_a_clone_as_it_is(tmp_path, monkeypatch, capsys):
    held_archive(tmp_path)
    monkeypatch.chdir(tmp_path)
    clone("archives/a", "archives/b", {})
    write_json(layout.origin("archives/b"), {"identifier": "sha256:1", "name": "a"})
    with pytest.raises(UserError, match="w.pt: file not found"):
        prepare("archives/b", "w.pt")
    file_of(tmp_path / "w.pt", {"model": plain(network())})
    prepare("archives/b", "w.pt")
    assert "trained on is not known" in capsys.readouterr().err
    kept = Path("archives/b/resources/parent/model.pt")
    assert kept.read_bytes() == (tmp_path / "w.pt").read_bytes()
    parent = read_parent("archives/b")
    assert (parent.mode, parent.identifier) == (TRANSFER, f"sha256:{sha256(kept)}")
    time = kept.stat().st_mtime_ns
    for start in (None, "w.pt", "models/model.pt"):
        if start == "models/model.pt":
            Path("archives/b/models").mkdir()
            file_of(Path("archives/b/models/model.pt"), plain(network(seed=2)))
        prepare("archives/b", start)
        assert kept.stat().st_mtime_ns == time, "what is there stays"
    file_of(tmp_path / "final_model.pt", plain(network()))
    with pytest.raises(UserError, match="optimizer's state is needed too"):
        prepare("archives/b", "final_model.pt")
    file_of(tmp_path / "evil.pt", {"a": Evil()})
    with pytest.raises(UserError, match="might be code and was not run"):
        prepare("archives/b", "evil.pt")
    assert read_parent("archives/b") == parent


def test_a_clone_that_cannot_be_prepared_is_none(tmp_path, monkeypatch):
    held_archive(tmp_path)
    monkeypatch.chdir(tmp_path)
    file_of(tmp_path / "evil.pt", {"a": Evil()})
    with pytest.raises(UserError, match="not a clone|might be code"):
        prepare_clone("archives/a", "archives/b", {}, str(tmp_path / "evil.pt"))
    assert not Path("archives/b").exists()


def test_what_a_command_line_names_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p/models").mkdir(parents=True)
    (tmp_path / "p/models/model.pt").touch()
    assert start_file(None, False) is None
    assert start_file(None, True) == "models/final_model.pt"
    assert start_file("p", False) == f"{tmp_path}/p"
    assert start_file("p", True) == f"{tmp_path}/p/models/final_model.pt"
    assert start_file("p/models/model.pt", False) == f"{tmp_path}/p/models/model.pt"
    with pytest.raises(UserError, match="weights alone"):
        start_file("p/models/model.pt", True)
    with pytest.raises(UserError, match="q: file not found"):
        start_file("q", False)
