"""An archive as an object: paths, strictness, files as Python has them, models, predictions, results over splits."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import typing
from pathlib import Path

import nibabel
import numpy
import pandas
import pytest
import torch
from armarium import Archive, UserError, compare, layout, reader
from armarium.evaluation import CaseScorer
from armarium.files import write_json, write_text
from armarium.network import build_network
from armarium.opening import KEYS
from armarium.run import saved
from test_evaluation import CHAINS, blobs, conf_of, oblique
from tiny import REPO, case, component, save_nifti, settings

NAMES = {"0": "background", "1": "low", "2": "high"}
MEAN_DICE = {"best-loss": [0.5, 0.7], "final": [0.25, None]}


def table(*rows: str) -> str:
    return "".join(f"{row}\n" for row in rows)


def written(folder: Path, given: dict | None = None, dice: dict[str, list[float | None]] = MEAN_DICE) -> Path:
    """An archive of two splits with what its readers need: no run was made for it."""
    a, given = str(folder), given or settings(conf_3d([]))
    for path in (*layout.root_configs(a), layout.training_data_tsv(a), *layout.group_data(a, "holdout")):
        write_text(path, "{}" if path.endswith(".json") else "participant_id\tsession_id\nsub-01\tses-M000\n")
    for split in (0, 1):
        for path in (f for side in layout.SIDES for f in layout.side_data(a, side, split)):
            write_text(path, "{}" if path.endswith(".json") else "participant_id\tsession_id\nsub-01\tses-M000\n")
        for checkpoint, values in dice.items():
            folders = layout.checkpoint_dir(a, split, checkpoint), layout.result_dir(a, "holdout", split, checkpoint)
            value = "n/a" if values[split] is None else str(values[split])
            write_text(layout.checkpoint_tables(folders[0])[0], table("epoch\tloss\tMeanDice", f"3\t0.125\t{value}"))
            write_text(layout.result_tables(folders[1])[0], table("loss\tMeanDice", f"0.5\t{value}"))
    write_json(layout.effective(a, "train"), given)
    write_json(layout.dataset_json(a), {"labels": NAMES, "modality": {"0": "MR"}})
    return folder


def conf_3d(transforms: list[dict], **post) -> dict:
    conf = conf_of(transforms)
    conf["train"]["model"]["args"].update(spatial_dims=3, out_channels=3)
    return conf


def with_network(folder: Path, given: dict, split: int = 0, checkpoint: str = "final") -> torch.nn.Module:
    """Give a checkpoint the weights of a network; the network."""
    torch.manual_seed(split)
    network = build_network(given)
    path = Path(layout.checkpoint_pt(layout.checkpoint_dir(str(folder), split, checkpoint)))
    path.write_bytes(saved(network.state_dict()))
    return network


# ---- being imported


@pytest.mark.parametrize("statement", ["import armarium", "from armarium import Archive, compare, UserError"])
def test_importing_is_quick_and_brings_nothing_heavy(statement):
    code = (
        f"import sys, time\nbegan = time.process_time()\n{statement}\nspent = time.process_time() - began\n"
        "heavy = {'torch', 'monai', 'pandas', 'nibabel', 'numpy', 'snakemake', 'yaml', 'jsonschema'} & sys.modules.keys()\n"
        "print(spent, sorted(heavy))"
    )
    spent = []
    for _ in range(3):  # of a machine that others use
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(REPO / "workflow")},
            capture_output=True,
            text=True,
            check=True,
        )
        seconds, heavy = done.stdout.split(maxsplit=1)
        assert heavy.strip() == "[]"
        spent.append(float(seconds))
    assert min(spent) < 0.2


def test_opening_an_archive_and_walking_it_brings_nothing_heavy(tmp_path):
    code = (
        "import sys\nfrom armarium import Archive\na = Archive(sys.argv[1])\na.checkpoints()\n"
        "a.test.groups['holdout'].results.splits[1].models['final'].metrics.details_tsv\na.open_file(a.model_json)\n"
        "print(sorted({'torch', 'monai', 'pandas', 'nibabel', 'numpy', 'yaml'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(written(tmp_path / "a"))]
    environment = {**os.environ, "PYTHONPATH": str(REPO / "workflow")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import armarium

    with pytest.raises(AttributeError, match="no attribute 'archive_of'"):
        _ = armarium.archive_of


# ---- the tree


def folders_below(folder: reader.Folder) -> list[reader.Folder]:
    found = [folder]
    names = [n for n in dir(folder) if not n.startswith("_")]
    for value in (getattr(folder, n) for n in names):
        inner = value.values() if isinstance(value, dict) else [value]
        found += [f for v in inner if isinstance(v, reader.Folder) for f in folders_below(v)]
    return found


def test_every_file_is_the_attribute_that_its_class_declares(tmp_path):
    for folder in folders_below(Archive(written(tmp_path / "a"))):
        declared = {n for n, kind in typing.get_type_hints(type(folder)).items() if kind is Path}
        assert {n for n, v in vars(folder).items() if isinstance(v, Path)} == declared, type(folder)
        assert all(str(getattr(folder, n)).startswith(str(tmp_path)) for n in declared)
        assert type(folder).__doc__


def test_splits_checkpoints_and_groups_are_those_on_the_disk(tmp_path):
    folder = written(tmp_path / "a")
    archive = Archive(folder)
    assert archive.training.splits_list == archive.training.data.train.splits_list == [0, 1]
    assert archive.training.splits[1].models.get_all_models() == ["best-loss", "final"]
    assert archive.training.splits[1].models.best_models.metrics_list == ["loss"]
    assert archive.training.splits[1].models.checkpoints.epochs_list == [] == archive.exec.runs_list
    assert archive.test.groups_list == ["holdout"] and archive.prediction.groups_list == []
    assert archive.test.groups["holdout"].results.splits[0].models_list == ["best-loss", "final"]
    Path(layout.checkpoint_dir(str(folder), 0, "epoch-10")).mkdir(parents=True)
    Path(layout.checkpoint_dir(str(folder), 0, "epoch-9")).mkdir()
    assert archive.training.splits[0].models.checkpoints.epochs_list == [9, 10], "looked up anew, in order of number"
    assert archive.training.read_checkpoint_name("split-0_epoch-9") == (0, "epoch-9")


def test_what_is_not_there_is_a_key_error_that_says_what_is(tmp_path):
    archive = Archive(written(tmp_path / "a"))
    with pytest.raises(KeyError, match=r"training: no 7; it has 0, 1$"):
        archive.training.splits[7]
    with pytest.raises(UserError, match=r"best_models: no 'Dice'; it has loss$"):
        archive.training.splits[0].models.best_models.metrics["Dice"]
    with pytest.raises(UserError, match=r"no 'split-0_final'; it has none$"):
        archive.load_model("split-0_final")


# ---- strictness


def test_a_folder_that_is_no_archive_is_one_error(tmp_path):
    with pytest.raises(UserError, match=r"no such folder"):
        Archive(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no whole archive: found no model.json, .* and 2 more; give the folder that"):
        Archive(tmp_path)


@pytest.mark.parametrize(
    "lost",
    [
        layout.model_json("."),
        layout.optimization_json("."),
        layout.training_data_tsv("."),
        layout.side_data(".", "validation", 1)[0],
        layout.group_data(".", "holdout")[2],
    ],
)
def test_an_archive_without_what_a_maps_must_have_is_refused(lost, tmp_path):
    folder = written(tmp_path / "a")
    write_json(layout.archive_json(str(folder)), {})
    (folder / lost).unlink()
    with pytest.raises(UserError, match=rf"found no {os.path.normpath(lost)}; make it whole: snakemake --cores all "):
        Archive(folder)


def test_a_folder_that_is_named_as_a_split_but_has_no_number_is_refused(tmp_path):
    folder = written(tmp_path / "a")
    (folder / "training/split-old").mkdir()
    with pytest.raises(UserError, match=r"training/split-old: wanted a whole number at the end"):
        Archive(folder)


# ---- files


INDEXED = {
    "epoch\tloss": ["epoch"],
    "epoch\tbatch\tloss": ["epoch", "batch"],
    "participant_id\tsession_id\tloss": ["participant_id", "session_id"],
    "epoch\tparticipant_id\tsession_id\tloss": ["epoch", "participant_id", "session_id"],
    "class\tname\tmetric\tmean": ["class", "metric"],
    "participant_id\tsession_id\tclass\tname\tDice": ["participant_id", "session_id", "class"],
    "participant_id\tsession_id": [None],
    "loss\tDice": [None],
}


@pytest.mark.parametrize("columns", INDEXED)
def test_a_table_is_indexed_by_what_its_rows_are_about(columns, tmp_path):
    archive = Archive(written(tmp_path / "a"))
    rows = ["\t".join(f"{i}" for _ in columns.split("\t")) for i in (1, 2)]
    write_text(archive.path / "t.tsv", table(columns, *rows))
    found = archive.open_file("t.tsv")
    assert list(found.index.names) == INDEXED[columns] and len(found) == 2
    assert [*filter(None, found.index.names), *found.columns] == sorted(
        columns.split("\t"), key=lambda c: (c not in found.index.names, KEYS.index(c) if c in found.index.names else 0)
    )


def test_numbers_of_a_table_are_exact_and_ids_are_text(tmp_path):
    archive = Archive(written(tmp_path / "a"))
    values = [0.1 + 0.2, 1 / 3, 2.2250738585072014e-308, 0.30000000000000004]
    rows = [f"{i:03d}\t1\tNA\t{v!r}" for i, v in enumerate(values)]
    write_text(archive.path / "t.tsv", table("participant_id\tsession_id\tname\tv", *rows, "004\t1\tb\tn/a"))
    found = archive.open_file("t.tsv")
    assert found["v"].tolist()[:4] == values and math.isnan(found["v"].iloc[4])
    assert found.index[0] == ("000", "1") and found["name"].tolist() == ["NA"] * 4 + ["b"]


def test_each_kind_of_file_is_what_users_expect(tmp_path):
    given = settings(conf_3d([]))
    archive = Archive(written(tmp_path / "a", given))
    network = with_network(archive.path, given)
    affine = numpy.diag([1.0, 2.0, 3.0, 1.0])
    save_nifti(archive.path / "v.nii.gz", blobs((12, 13, 11)), affine)
    write_text(archive.path / "eval/metrics.csv", "loss,0.5\nMeanDice,n/a\n")
    write_text(archive.path / "LICENSE", "none\n")
    assert archive.open_file(archive.config.effective.train_json) == given
    weights = archive.open_file(archive.training.splits[0].models.final.model_pt)
    assert all(torch.equal(weights[k], v) for k, v in network.state_dict().items())
    image = archive.open_file("v.nii.gz")
    assert numpy.array_equal(image.affine, affine) and numpy.array_equal(image.dataobj, blobs((12, 13, 11)))
    metrics = archive.open_file(archive.eval.metrics_csv)
    assert metrics.loc["loss", "value"] == 0.5 and math.isnan(metrics.loc["MeanDice", "value"])
    assert archive.open_file(archive.LICENSE) == "none\n"


DAMAGED = {
    "gone.json": (None, "file not found"),
    "a.json": ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    "a.tsv": ("a\tb\n1\n", "rows of other lengths"),
    "empty.tsv": ("", r"found the columns \[\], wanted a table"),
    "a.pt": ("not weights", "no file of weights"),
    "a.nii": ("not an image", "no NIfTI file"),
    "a.ts": ("code", "TorchScript is code, and was not run"),
    "a.zip": ("PK", "no reader for this kind of file; wanted one of .json"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_clear_error(name, tmp_path):
    archive = Archive(written(tmp_path / "a"))
    content, message = DAMAGED[name]
    if content is not None:
        write_text(archive.path / name, content)
    with pytest.raises(UserError, match=message):
        archive.open_file(name)


def test_code_in_weights_is_not_run(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    archive = Archive(written(tmp_path / "a"))
    (archive.path / "a.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError):
        archive.open_file("a.pt")
    assert not (tmp_path / "ran").exists()


def test_nothing_outside_the_archive_is_opened(tmp_path):
    archive = Archive(written(tmp_path / "a"))
    write_text(tmp_path / "secret.txt", "secret")
    (archive.path / "link.txt").symlink_to(tmp_path / "secret.txt")
    for path in ("../secret.txt", tmp_path / "secret.txt", "link.txt", "training/../../secret.txt"):
        with pytest.raises(UserError, match="leads out of the archive"):
            archive.open_file(path)
    with_network(archive.path, settings(conf_3d([])))
    for read in (archive.results, lambda: archive.load_model("split-0_final")):
        with pytest.raises(UserError, match=r"link.txt: a link that leaves the archive"):
            read()
    (archive.path / "inner.txt").symlink_to("LICENSE")
    write_text(archive.path / "LICENSE", "none\n")
    assert archive.open_file("inner.txt") == "none\n"
    with pytest.raises(UserError, match="a folder, wanted a file; it has data, optimization.json"):
        archive.open_file("training")


# ---- models


def test_a_model_has_the_weights_of_its_checkpoint_and_leaves_torch_as_it_was(tmp_path):
    given = settings(conf_3d([]), threads=3)
    folder = written(tmp_path / "a", given)
    networks = [with_network(folder, given, split) for split in (0, 1)]
    archive = Archive(folder)
    assert archive.checkpoints() == ["split-0_final", "split-1_final"]
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    model = archive.load_model("split-1_final")
    assert torch.equal(torch.rand(1), drawn), "nothing was drawn"
    assert not model.training
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(x), networks[1].eval()(x)) and not torch.equal(model(x), networks[0].eval()(x))


def test_published_weights_have_no_prefix(tmp_path):
    given = settings(conf_3d([]))
    folder = written(tmp_path / "a", given)
    network = build_network(given)
    Path(layout.published_model(str(folder))).parent.mkdir()
    Path(layout.published_model(str(folder))).write_bytes(saved(network.network.state_dict()))
    archive = Archive(folder)
    assert archive.checkpoints() == ["published"]
    found = archive.load_model("published").state_dict()
    assert all(torch.equal(found[k], v) for k, v in network.network.state_dict().items())


def test_weights_of_another_network_are_refused(tmp_path):
    folder = written(tmp_path / "a")
    with_network(folder, settings(conf_of([])))
    with pytest.raises(UserError, match="weights of another network than the recipe's"):
        Archive(folder).load_model("split-0_final")


WRONG = {
    "a list": ([], "task, deterministic, threads, allow, model, validate missing or of another kind"),
    "no model": ({"model": None}, "model missing or of another kind"),
    "a model without name": ({"model": {"args": {}}}, "wanted a component"),
    "an unknown model": ({"model": component("UNnet")}, "no model 'UNnet'"),
    "a foreign class": ({"model": {"path": "os.system", "args": {}}}, "path 'os.system' is not allowed"),
    "another task": ({"task": "captioning"}, "task is 'captioning'; wanted segmentation or classification"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_configuration_that_is_wrong_is_one_clear_error(what, tmp_path):
    folder = written(tmp_path / "a")
    with_network(folder, settings(conf_3d([])))
    changes, message = WRONG[what]
    held = {**settings(conf_3d([])), **changes} if changes else changes
    write_json(layout.effective(str(folder), "train"), held)
    with pytest.raises(UserError, match=message):
        Archive(folder).load_model("split-0_final")


def test_code_that_an_archive_names_runs_only_if_its_reader_allows_it(tmp_path):
    given = settings(conf_3d([]), allow=["monai.networks.nets.UNet"])
    given["model"] = {"path": "monai.networks.nets.UNet", "args": given["model"]["args"]}
    folder = written(tmp_path / "a", given)
    with_network(folder, given)
    archive = Archive(folder)
    with pytest.raises(UserError, match=r"allow names monai.networks.nets.UNet, code .* allow=\['monai"):
        archive.load_model("split-0_final")
    assert archive.load_model("split-0_final", allow=["monai.networks.nets.UNet"])


def test_a_device_that_is_not_there_is_one_clear_error(tmp_path):
    folder = written(tmp_path / "a")
    with_network(folder, settings(conf_3d([])))
    for device in ("cuda:7", "gpu"):
        with pytest.raises(UserError, match=f"device is '{device}', which torch cannot use here"):
            Archive(folder).load_model("split-0_final", device=device)


# ---- predictions


RESAMPLED = component("Spacingd", keys=["image", "label"], pixdim=[2.0, 2.0, 2.0], mode=["bilinear", "nearest"])


@pytest.mark.parametrize("chain", [*CHAINS, "resample"])
def test_a_prediction_is_the_evaluations_whatever_was_done_to_the_image(chain, tmp_path):
    transforms = [RESAMPLED] if chain == "resample" else CHAINS[chain]
    given = settings(conf_3d([*transforms, component("DivisiblePadd", keys=["image", "label"], k=8)]))
    rng, truth, affine = numpy.random.RandomState(0), blobs((12, 13, 11)), oblique((1.0, 1.5, 2.0))
    voxels = (truth + rng.rand(12, 13, 11)).astype(numpy.float32)
    cases = [case(tmp_path, "a", [voxels], truth, affine)]
    folder = written(tmp_path / "archive", given)
    network, kept = with_network(folder, given), {}
    scorer = CaseScorer(given, str(tmp_path), str(tmp_path / "cache"), torch.device("cpu"), NAMES)
    scorer(network, cases, lambda c, p: kept.__setitem__(c["case"], p))

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    predictor = Archive(folder).predictor("split-0_final")
    for image in (tmp_path / "a_0.nii.gz", nibabel.load(tmp_path / "a_0.nii.gz")):
        made = predictor(image)
        assert numpy.array_equal(made.dataobj, kept["a"]) and made.get_data_dtype() == numpy.uint8
        assert numpy.allclose(made.affine, affine) and len(numpy.unique(kept["a"])) > 1
    likely = predictor(tmp_path / "a_0.nii.gz", probabilities=True)
    assert likely.shape == (12, 13, 11, 3) and numpy.allclose(likely.affine, affine)
    assert numpy.array_equal(numpy.asarray(likely.dataobj).argmax(-1), kept["a"])
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_channels_in_files_of_their_own_are_a_list(tmp_path):
    conf = conf_3d([])
    conf["train"]["model"]["args"]["in_channels"] = 2
    given = settings(conf)
    folder = written(tmp_path / "a", given)
    with_network(folder, given)
    for i in (0, 1):
        save_nifti(tmp_path / f"{i}.nii.gz", numpy.random.RandomState(i).rand(16, 16, 16).astype(numpy.float32))
    predictor = Archive(folder).predictor("split-0_final")
    ways = [predictor([tmp_path / f"{i}.nii.gz", nibabel.load(tmp_path / f"{1 - i}.nii.gz")], True) for i in (0, 1)]
    assert ways[0].shape == (16, 16, 16, 3) and not numpy.array_equal(ways[0].dataobj, ways[1].dataobj), "in order"
    with pytest.raises(UserError, match=r"0.nii.gz: network on an image \[1, 1, 16, 16, 16\] failed"):
        predictor(tmp_path / "0.nii.gz")
    for image, message in (
        ([], "an empty list"),
        (numpy.zeros((3, 3)), "found a ndarray, wanted a NIfTI file"),
        (tmp_path / "no.nii", "no.nii: file not found"),
    ):
        with pytest.raises(UserError, match=message):
            predictor(image)


# ---- results


def test_results_are_each_splits_value_and_the_summarys_mean_and_deviation(tmp_path):
    found = Archive(written(tmp_path / "a")).results()
    assert list(found.columns) == ["split-0", "split-1", "mean", "std"]
    assert list(found.index.unique("checkpoint")) == ["best-loss", "final"]
    row = found.loc["best-loss", "test holdout", "MeanDice"]
    assert row.tolist() == pytest.approx([0.5, 0.7, 0.6, math.sqrt(0.02)])
    lone = found.loc["final", "validation", "MeanDice"]
    assert lone["mean"] == 0.25 and math.isnan(lone["split-1"]) and math.isnan(lone["std"]), "one split is undefined"
    assert found.loc["final", "validation", "loss"].tolist() == [0.125, 0.125, 0.125, 0.0]
    assert "epoch" not in found.index.get_level_values("metric")


def test_archives_are_compared_side_by_side(tmp_path):
    one, two = written(tmp_path / "one"), written(tmp_path / "two", dice={"final": [1.0, 1.0], "epoch-2": [0.0, 0.5]})
    found = compare([Archive(one), two])
    assert list(found.columns.unique("archive")) == ["one", "two"]
    assert list(found.index.unique("checkpoint")) == ["best-loss", "final", "epoch-2"]
    pandas.testing.assert_frame_equal(found["one"].dropna(how="all"), Archive(one).results())
    assert found.loc[("final", "validation", "MeanDice"), ("two", "mean")] == 1.0
    assert math.isnan(found.loc[("epoch-2", "validation", "MeanDice"), ("one", "mean")])
    again = written(tmp_path / "elsewhere/one")
    assert list(compare([one, again]).columns.unique("archive")) == [str(one), str(again)]
    for wrong in ([], [one, one]):
        with pytest.raises(UserError, match="wanted archives, each once"):
            compare(wrong)
