"""What bad input gets: one clear message, no traceback, and nothing made before is lost."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nibabel
import numpy
import pytest
import yaml
from armarium import environment, layout, mmar, model_card, run, steps
from armarium.adoption import adopt
from armarium.boundary import check_boundary
from armarium.checks import check_dataset
from armarium.config import check
from armarium.configure import Globals, configure
from armarium.dataset import read_dataset
from armarium.errors import UserError
from armarium.hashing import HashIndex
from armarium.maps import write_summary_log
from armarium.provenance import read_sidecars
from armarium.summary import summary
from armarium.zips import write_zip
from test_maps import make_archive
from test_mmar import write_evaluation
from tiny import REPO, component, configured, handler, recipe, save_nifti, section, write_recipe

from tests.workflow.conftest import WarmProject, micro_config, micro_recipe


@pytest.fixture
def folder(tmp_path):
    """A project with a recipe and an archive that is configured rightly."""
    write_recipe(tmp_path / "recipe")
    configured(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in (folder / "archives").rglob("*") if p.is_file()}


def judge(figures, wanted: str, told: str) -> None:
    """Count an answer, and require the right one."""
    right = wanted in told and "Traceback" not in told
    figures.add("bad inputs tried")
    figures.add("bad inputs with a wrong answer", not right)
    assert right, told


def refused(folder: Path, given: dict | None = None, **top) -> str:
    """The message, for a call that must fail and leave the archive alone, in a dry run as well."""
    before = contents(folder)
    messages = set()
    for dry in (True, False):
        with pytest.raises(UserError) as caught:
            configured(folder, given, dry, **top)
        messages.add(str(caught.value))
    assert contents(folder) == before and len(messages) == 1
    return messages.pop()


# ---- config.yaml


CONFIG = [
    (section(datset={}), "archives.a: unknown key 'datset'; did you mean 'dataset'?"),
    (section(recipe=3), "archives.a.recipe: found 3 (int), wanted string"),
    (section(recipe="nowhere"), "no config_train.json in "),
    (section(dataset={"list": None}), "archives.a.dataset.list: found None (NoneType), wanted string"),
    (
        section(dataset={"task": "detection"}),
        "task: found 'detection'; known: classification, regression, segmentation",
    ),
    (section(dataset={"target": "age"}), "dataset.target: found 'age', but a segmentation's labels are files"),
    (section(dataset={"task": "regression", "labels": {"0": "a"}}), "a regression has no classes; leave it out"),
    (section(dataset={"synthesize": {"cases": 3}}), "synthesize.cases: found 3; 3 is less than the minimum of 4"),
    (section(dataset={"columns": {"p": {}}}), "columns.p: missing key pattern; Regular expression with one group"),
    (section(dataset={"affine_tolerance": "small"}), "affine_tolerance: found 'small' (str), wanted number"),
    (section(splits={"n_splits": 2.0}), "n_splits: found 2.0 (float), wanted integer"),
    (section(splits={"method": "cv"}), "method: found 'cv'; known: file, holdout, kfold, lists"),
    (section(splits={"method": "file"}), "archives.a.splits: method is file but file is empty"),
    (section(splits={"file": "s.json"}), "file is 's.json', but method is kfold"),
    (section(splits={"group_by": "pair"}), "group_by: found 'pair' (str), wanted array"),
    (section(test={"groups": {"held-out": {"from": "test"}}}), "the name 'held-out' does not match"),
    (section(test={"groups": {"g": {"count": 0}}}), "groups.g.count: found 0"),
    (section(select={"best": ["Dice"]}), "select.best names ['Dice']; the recipe has the metrics ['loss', 'MeanDice']"),
    (section(select={"epochs": [3, 9]}), "select.epochs names [9], but training has 4 epochs"),
    (section(select={"best": [], "final": False}), "select keeps no checkpoint"),
    (section(publish=2), "publish is 2; wanted one of the splits [0, 1]"),
    (section(export={"tolerance": 0}), "export.tolerance: found 0"),
    (section(allow="my.Net"), "allow: found 'my.Net' (str), wanted array"),
    (section(set={"epoch": 3}), "set: no variable 'epoch' in the recipe; did you mean 'epochs'?"),
    (section(set={"DATA_ROOT": "x"}), "DATA_ROOT cannot be set; use data_root"),
]


@pytest.mark.parametrize(("given", "message"), CONFIG, ids=[m for _, m in CONFIG])
def test_a_wrong_section_is_told(given, message, folder, figures):
    judge(figures, message, refused(folder, given))


TOP = [
    ({"sets": {}}, "top level: unknown key 'sets'; did you mean 'set'?"),
    ({True: 1}, "top level: unknown key 'True'"),
    ({"device": "tpu"}, "device: found 'tpu'"),
    ({"gpus": "all"}, "gpus: found 'all' (str), wanted integer or null"),
    ({"data_root": 3}, "data_root: found 3 (int), wanted string"),
    ({"n_splits": "many"}, "n_splits: found 'many' (str), wanted integer or null"),
    ({"n_splits": 3, "splits": "s.json"}, "n_splits is 3 and splits is 's.json'; give one of the two"),
    ({"set": "epochs"}, "set: found 'epochs' (str), wanted object"),
    ({"set": {"epochs": "many"}}, "set: epochs is 'many'; wanted integer"),
    ({"set": {"epochs": "0"}}, "epochs: found 0; 0 is less than the minimum of 1"),
    ({"set": {"learning_rate": "nan"}}, "set: learning_rate is nan; wanted number"),
    ({"set": {"clip_grad_norm": -1}}, "clip_grad_norm: found -1"),
    ({"set": {"amp": "maybe"}}, "set: amp is 'maybe'; wanted boolean"),
    ({"splits": "missing.json"}, "missing.json: file not found"),
]


@pytest.mark.parametrize(("top", "message"), TOP, ids=[m for _, m in TOP])
def test_a_wrong_key_of_the_whole_file_is_told(top, message, folder, figures):
    before = contents(folder)
    with pytest.raises(UserError) as caught:
        configured_from(folder, top)
    judge(figures, message, str(caught.value))
    assert contents(folder) == before


def configured_from(folder: Path, top: dict):
    """As ``configured``, for keys that are no words too."""
    if all(isinstance(k, str) for k in top):
        return configured(folder, **top)
    return check({"archives": {"a": section()}, **top}, "config", "configuration")


# ---- the recipe's files


FILES = [
    ("config_train.json", "{", "config_train.json: not valid JSON"),
    ("config_train.json", "", "config_train.json: not valid JSON"),
    ("config_train.json", b"\xff\xfe{}", "config_train.json: not UTF-8 text"),
    ("config_train.json", "[" * 100_000, "config_train.json: not valid JSON"),
    ("config_train.json", "[1]", "config_train.json: found a JSON list, wanted an object"),
    ("config_train.json", "{}", "config_train.json: no section 'train'"),
    ("environment.json", "[]", "environment.json: found a JSON list, wanted an object"),
    ("environment.json", '{"DATA_ROOT": 3}', "environment.json: DATA_ROOT is 3; wanted string"),
    ("environment.json", '{"epochs": 0}', "epochs: found 0"),
    ("environment.json", '{"learning_rate": "fast"}', "learning_rate is 'fast'; wanted number"),
    ("config_inference.json", "null", "config_inference.json: found a JSON NoneType, wanted an object"),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES, ids=[f"{f}: {m[-40:]}" for f, _, m in FILES])
def test_a_broken_file_of_the_recipe_is_told(name, content, message, folder, figures):
    (folder / "recipe/config" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    judge(figures, message, refused(folder))


RECIPES = [
    (lambda c: c.pop("train"), "no section 'train'"),
    (lambda c: c["train"].pop("optimizer"), "section 'train' lacks optimizer"),
    (lambda c: c["validate"].pop("inferer"), "section 'validate' lacks inferer"),
    (lambda c: c["train"]["optimizer"]["args"].update(lr="{lr}"), "no value for {lr}"),
    (lambda c: c["train"]["loss"].update(args="$import os"), "'$import os' is code"),
    (lambda c: c["train"]["model"].update(_target_="os.system"), "'_target_' is not read"),
    (lambda c: c.update(epochs="3"), "epochs: found '3' (str), wanted integer"),
    (
        lambda c: c["validate"]["key_metric"].update(name="Mean_Dice"),
        "metric 'Mean_Dice': wanted letters and digits only",
    ),
    (lambda c: handler(c, "ValidationHandler").update(interval="often"), "num_interval_per_valid: found 'often'"),
    (
        lambda c: c["train"]["handlers"].append(component("EarlyStopHandler", patience="long")),
        "patience is 'long'; wanted integer",
    ),
]


@pytest.mark.parametrize(("change", "message"), RECIPES, ids=[m for _, m in RECIPES])
def test_a_wrong_recipe_is_told(change, message, folder, figures):
    conf = recipe()
    change(conf)
    write_recipe(folder / "recipe", conf)
    judge(figures, message, refused(folder))


# ---- split files


SPLITS = [
    ("{", "not valid JSON"),
    ("[]", "split file: found no split"),
    ("null", "split file: found no split"),
    ("3", "split 0: found lists 3, wanted train and"),
    ('{"train": ["a"]}', "split 0: found lists ['train'], wanted train and validation"),
    ('[{"train": ["a"], "val": ["b"]}, {"train": ["a"]}]', "split 1: found lists ['train']"),
    ('{"train": "a", "val": ["b"]}', "split 0: found lists ['val']"),
    (
        '{"training": [{"image": "a", "fold": 0}, {"image": "b", "fold": 2}]}',
        "found fold numbers ['0', '2'], wanted 0, 1",
    ),
    ('{"training": [{"image": "a", "fold": 0}, {"image": "b"}]}', "found fold numbers"),
]


@pytest.mark.parametrize(("text", "message"), SPLITS)
def test_a_wrong_split_file_is_told_before_anything_is_checked(text, message, folder, figures):
    (folder / "s.json").write_text(text)
    judge(figures, message, refused(folder, splits=str(folder / "s.json")))


# ---- an archive's own files


OWN = [
    ("archive.json", "{", "archive.json: not valid JSON"),
    ("archive.json", "[]", "archive.json: found a JSON list, wanted an object"),
    ("archive.json", '{"dataset": {"list": 3}}', "dataset.list: found 3 (int), wanted string"),
    (
        "archive.json",
        '{"dataset": {"list": "d"}, "splits": {"n_splits": "two"}}',
        "n_splits: found 'two' (str), wanted integer",
    ),
    ("config_train.json", None, "config/config_train.json is missing; copy it back from the recipe"),
    ("archive.json", None, "no such archive: not listed in the configuration file and without config/archive.json"),
]


@pytest.mark.parametrize(("name", "content", "message"), OWN, ids=[m[:40] for _, _, m in OWN])
def test_a_broken_file_of_an_archive_that_is_merely_on_disk_is_told(name, content, message, folder, figures):
    path = folder / "archives/a/config" / name
    path.unlink() if content is None else path.write_text(content)
    before = contents(folder)
    with pytest.raises(UserError) as caught:
        configure(str(folder / "archives/a"), None, Globals(cache_dir=str(folder / "cache")))
    judge(figures, message, str(caught.value))
    assert contents(folder) == before


HAND_EDITS = ["config_train.json", "environment.json", "config_inference.json", "archive.json"]


@pytest.mark.parametrize("name", HAND_EDITS)
def test_a_hand_edit_of_a_listed_archive_is_told_and_kept(name, folder, figures):
    path = folder / "archives/a/config" / name
    path.write_text(path.read_text().replace("{", '{"edited": 1, ', 1))
    judge(figures, f"{name}: edited by hand, but this archive is listed", refused(folder))


# ---- datasets


class Data:
    """A list of two good cases with their files, to be spoilt."""

    def __init__(self, folder: Path):
        self.folder, self.spec = folder, {**SPEC}
        self.listed = {
            "labels": {"0": "background", "1": "bright"},
            "modality": {"0": "MRI"},
            "training": [{"image": f"i/{n}.nii.gz", "label": f"l/{n}.nii.gz"} for n in ("a", "b")],
        }
        for i, name in enumerate(("a", "b")):
            self.save(f"i/{name}.nii.gz", numpy.random.default_rng(i).integers(0, 99, (6, 5, 4)).astype(numpy.int16))
            self.save(f"l/{name}.nii.gz", (numpy.arange(120).reshape(6, 5, 4) % 2).astype(numpy.uint8))
        self.write()

    def write(self) -> None:
        (self.folder / "d.json").write_text(json.dumps(self.listed))

    def save(self, name: str, voxels: numpy.ndarray, affine: numpy.ndarray | None = None) -> None:
        save_nifti(self.folder / name, voxels, affine)

    def table(self, *rows: str, **spec) -> None:
        (self.folder / "d.tsv").write_text("\n".join(rows).replace("|", "\t"))
        self.spec.update(list="d.tsv", labels={"0": "background", "1": "bright"}, **spec)

    def check(self) -> None:
        check_dataset(read_dataset(self.spec, str(self.folder)), self.spec, str(self.folder), 1)


SPEC = {
    **check({"archives": {"x": {"recipe": "", "dataset": {"list": "d.json"}}}}, "config", "x")["archives"]["x"][
        "dataset"
    ]
}


def listing(change: Callable[[dict], object]) -> Callable[[Data], None]:
    def spoil(data: Data) -> None:
        change(data.listed)
        data.write()

    return spoil


def entry(**changes) -> Callable[[Data], None]:
    return listing(lambda d: d["training"][0].update(changes))


def table(*rows: str, **spec) -> Callable[[Data], None]:
    return lambda data: data.table(*rows, **spec)


def written(name: str, content: str | bytes) -> Callable[[Data], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda d: (d.folder / name).write_bytes(data)


def configured_as(**changes) -> Callable[[Data], None]:
    return lambda data: data.spec.update(changes)


def saved(name: str, voxels: numpy.ndarray, affine: numpy.ndarray | None = None) -> Callable[[Data], None]:
    return lambda data: data.save(name, voxels, affine)


def cut(name: str, share: float) -> Callable[[Data], None]:
    def spoil(data: Data) -> None:
        path = data.folder / name
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return spoil


def header(name: str, **fields) -> Callable[[Data], None]:
    """A header that says something else than its file holds."""

    def spoil(data: Data) -> None:
        raw = bytearray(gzip.decompress((data.folder / name).read_bytes()))
        changed = nibabel.Nifti1Header(bytes(raw[:348]))
        for key, value in fields.items():
            changed[key] = value
        raw[:348] = changed.binaryblock
        (data.folder / name).write_bytes(gzip.compress(bytes(raw)))

    return spoil


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Data], object]:
    def spoil(data: Data) -> None:
        (data.folder / name).unlink()
        make(data.folder / name)

    return spoil


IMAGE = numpy.arange(120).reshape(6, 5, 4).astype(numpy.int16)
ZERO = numpy.zeros((6, 5, 4), numpy.uint8)
BROKEN = numpy.where(IMAGE == 3, numpy.nan, IMAGE).astype(numpy.float32)
COLUMN = {"from": "case", "pattern": "(a)"}
DATASETS = [
    # the list
    (configured_as(list="none.json"), "none.json: file not found"),
    (configured_as(list="d.csv"), "wanted a file ending in .json or .tsv"),
    (configured_as(list="../d.json"), "leaves the data folder"),
    (configured_as(list="/d.json"), "wanted a relative path"),
    (written("d.json", ""), "d.json: not valid JSON"),
    (written("d.json", "[]"), "found a JSON list, wanted an object with the list 'training'"),
    (written("d.json", b"\xff\xfe"), "d.json: not UTF-8 text"),
    (written("d.json", '{"labels": {}, "labels": {}}'), "the key 'labels' occurs twice"),
    (written("d.json", '{"training": [NaN]}'), "NaN is no number"),
    (listing(lambda d: d.pop("labels")), 'found labels None, wanted {"0": "background", "1": …}'),
    (listing(lambda d: d.update(labels={"0": "a", "2": "b"})), "found keys [0, 2], wanted 0 to 1 without gaps"),
    (listing(lambda d: d.update(labels={"0": "a", "1": "a"})), "wanted a different name for each"),
    (listing(lambda d: d.update(labels={"zero": "a"})), "found keys ['zero']"),
    (listing(lambda d: d.update(training=[])), "no cases found"),
    (listing(lambda d: d.update(training={})), "'training' is a dict, wanted a list"),
    (listing(lambda d: d["training"].append(3)), 'training[2]: found 3, wanted {"image": path'),
    (
        listing(lambda d: d["training"].append(d["training"][0])),
        "training[2]: found case 'i_a' again (first in training[0])",
    ),
    # its entries
    (entry(image="/i/a.nii.gz"), "found '/i/a.nii.gz', wanted a relative path"),
    (entry(image="../i/a.nii.gz"), "leaves the data folder"),
    (entry(image="i\\a.nii.gz"), "wanted a relative path"),
    (entry(image="i/\x1ba.nii.gz"), "wanted a relative path"),
    (entry(image="i/a.png"), "wanted a file ending in .nii or .nii.gz"),
    (entry(image=[]), "training[0]: image: found None, wanted a path"),
    (entry(image=3), "found 3, wanted a path"),
    (entry(label=None), "no label, wanted one in a training entry"),
    (entry(label=1), "label: found 1, wanted a path"),
    (entry(participant_id="a_b"), "participant_id: found 'a_b', wanted letters and digits only"),
    (entry(participant_id="a", session_id="ses 1"), "session_id: found 'ses 1', wanted letters and digits"),
    (entry(case="../x"), "case: found '../x', wanted a file name"),
    (entry(case="$(touch x)"), "case: found '$(touch x)', wanted a file name"),
    # tables
    (table("image|label", "i/a.nii.gz|l/a.nii.gz"), "found columns image, label; wanted participant_id"),
    (table("participant_id|label", "a|l/a.nii.gz"), "wanted participant_id and either image"),
    (table("participant_id|image|image", "a|b|c"), "named twice: ['image']"),
    (table("participant_id|image|label", "a|i/a.nii.gz"), "line 2: found 2 fields, wanted 3"),
    (table("participant_id|image|label|subset", "a|i/a.nii.gz|l/a.nii.gz|some"), "found subset 'some', wanted one of"),
    (table("participant_id|image|label", "|i/a.nii.gz|l/a.nii.gz"), "participant_id: found '', wanted letters"),
    (table(""), "found columns (none); wanted participant_id"),
    (
        table("participant_id|image|target", "a|i/a.nii.gz|liver", task="classification"),
        "found 'liver', wanted a class index or name (0 background, 1 bright)",
    ),
    (
        table("participant_id|image|target", "a|i/a.nii.gz|" + "9" * 400, task="classification"),
        "wanted a class index or name",
    ),
    (
        table("participant_id|image|target", "a|i/a.nii.gz|7", task="classification"),
        "found class 7, wanted one of 0 background, 1 bright",
    ),
    (table("participant_id|image|label", "a|i/a.nii.gz|" + "x" * 200_000), "not a UTF-8 table"),
    # derived columns
    (configured_as(columns={"new": {**COLUMN, "from": "nothing"}}), "found from: 'nothing', wanted one of case"),
    (configured_as(columns={"new": {**COLUMN, "pattern": "(a"}}), "pattern '(a': "),
    (configured_as(columns={"new": {**COLUMN, "pattern": "a"}}), "found 0 groups in pattern 'a', wanted one"),
    (configured_as(columns={"new": COLUMN}), "case b: column 'new': case 'b' does not match"),
    # files
    (instead("i/a.nii.gz", lambda p: None), "i/a.nii.gz: file not found"),
    (instead("l/b.nii.gz", lambda p: None), "l/b.nii.gz: file not found"),
    (instead("i/a.nii.gz", Path.mkdir), "i/a.nii.gz: not a regular file"),
    (instead("i/a.nii.gz", os.mkfifo), "i/a.nii.gz: not a regular file"),
    (written("i/a.nii.gz", b""), "i/a.nii.gz: "),
    (cut("i/a.nii.gz", 0.5), "i/a.nii.gz: truncated or damaged gzip data"),
    (written("i/a.nii.gz", b"no gzip at all"), "i/a.nii.gz: truncated or damaged gzip data (Not a gzipped file"),
    (written("i/a.nii.gz", gzip.compress(b"x" * 999)), "i/a.nii.gz: no NIfTI file: found b'xxxx'"),
    (written("i/a.nii.gz", gzip.compress(b"")), "i/a.nii.gz: no NIfTI file"),
    (header("i/a.nii.gz", dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "declares 30000x30000x30000 int16 voxels"),
    (header("i/a.nii.gz", dim=[3, 6, 5, 40, 1, 1, 1, 1]), "truncated: its header declares 6x5x40"),
    (header("i/a.nii.gz", dim=[3, -6, 5, 4, 1, 1, 1, 1]), "found shape -6x5x4"),
    (header("i/a.nii.gz", datatype=32, bitpix=64), "wanted an image of real numbers"),
    (header("i/a.nii.gz", srow_x=[float("nan")] * 4), "wanted finite numbers that span the space"),
    (saved("i/a.nii.gz", numpy.zeros((2, 2, 2, 1, 2), numpy.int16)), "found shape 2x2x2x1x2, wanted 2, 3 or"),
    (
        saved("i/a.nii.gz", numpy.zeros((6, 5, 4, 3), numpy.int16)),
        "found 3 channels, wanted 1 as the list's modality declares",
    ),
    (saved("i/a.nii.gz", BROKEN), "found 1 NaN or infinite voxels of 120"),
    (saved("l/a.nii.gz", ZERO[..., :3]), "l/a.nii.gz: found shape 6x5x3, wanted 6x5x4"),
    (saved("l/a.nii.gz", ZERO + 1, numpy.diag([1, 1, 2, 1])), "found an affine that differs by 1 from i/a.nii.gz's"),
    (saved("l/a.nii.gz", ZERO + 7), "found values 7 (120 voxels), wanted 0 background, 1 bright"),
    (saved("l/a.nii.gz", ZERO - numpy.int16(1)), "found values -1 (120 voxels)"),
    (saved("l/a.nii.gz", ZERO + numpy.float32(0.5)), "found 120 voxels that are no whole numbers (0.5, for example)"),
    (saved("l/a.nii.gz", ZERO), "found background only"),
    (lambda d: shutil.copy(d.folder / "i/a.nii.gz", d.folder / "i/b.nii.gz"), "found the same voxels in cases a, b"),
    (listing(lambda d: [e.update(participant_id="x") for e in d["training"]]), "sub-x ses-M000: found 2 cases (a, b)"),
]


@pytest.mark.parametrize(("spoil", "message"), DATASETS, ids=[m for _, m in DATASETS])
def test_a_wrong_dataset_is_told(spoil, message, tmp_path, figures):
    data = Data(tmp_path)
    spoil(data)
    with pytest.raises(UserError) as caught:
        data.check()
    judge(figures, message, str(caught.value))


def test_the_dataset_was_right_before_it_was_spoilt(tmp_path):
    Data(tmp_path).check()


# ---- archives that were damaged


def run_with(archive: str, **members: str | bytes | None) -> None:
    """A run.zip with other members: ``run_json`` stands for ``run.json``."""
    names = {
        "run_json": "run.json",
        "aggregated": "validation_metrics/aggregated.tsv",
    }
    whole = {
        "run.json": json.dumps(RUN),
        **{f"validation_metrics/{t}": "epoch\tloss\n1\t0.5\n" for t in layout.METRIC_TABLES},
        "checkpoints/epoch-3.pt": b"weights",
    }
    changed = {**whole, **{names[k]: v for k, v in members.items()}}
    write_zip(layout.run_zip(archive, 0), {k: v for k, v in changed.items() if v is not None})


RUN = {
    "epochs": 4,
    "stopped_early": False,
    "best": {m: {"value": 0.5, "epoch": 3} for m in ("loss", "MeanDice", "HausdorffDistance")},
    "device": "cpu",
    "parameters": 7,
}


def shorter(path: Callable[[str], str], share: float = 0.6) -> Callable[[str], None]:
    def spoil(archive: str) -> None:
        file = Path(path(archive))
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return spoil


def text_in(path: Callable[[str], str], text: str) -> Callable[[str], object]:
    def spoil(archive: str) -> None:
        Path(path(archive)).parent.mkdir(parents=True, exist_ok=True)
        Path(path(archive)).write_text(text)

    return spoil


def splits_with(change: Callable[[dict], object]) -> Callable[[str], None]:
    def spoil(archive: str) -> None:
        path = Path(layout.splits_json(archive))
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return spoil


def flipped(archive: str) -> None:
    """One byte of a member is another."""
    path = Path(layout.run_zip(archive, 0))
    path.write_bytes(path.read_bytes().replace(b"weights", b"Weights", 1))


def deflated(path: Callable[[str], str]) -> Callable[[str], None]:
    def spoil(archive: str) -> None:
        with zipfile.ZipFile(path(archive)) as source:
            members = {name: source.read(name) for name in source.namelist()}
        with zipfile.ZipFile(path(archive), "w", zipfile.ZIP_DEFLATED) as target:
            for name, data in members.items():
                target.writestr(name, data)

    return spoil


def run_zip(archive: str) -> str:
    return layout.run_zip(archive, 0)


def evaluation_zip(archive: str) -> str:
    return layout.evaluation_zip(archive, "held", 0)


def changes_noted(archive: str) -> str:
    return layout.effective(archive, "files")


def effective_train(archive: str) -> str:
    return layout.effective(archive, "train")


def sidecar(archive: str) -> str:
    return layout.sidecar(archive, "check_data")


def select(archive: str) -> None:
    run.select_checkpoint(archive, "0", "best-loss")


def tables(archive: str) -> None:
    run.select_tables(archive, "0", "best-loss")


def as_held(archive: str) -> None:
    configure(archive, None, Globals(cache_dir=f"{archive}-cache"))


def adopted(archive: str) -> None:
    adopt(archive, HashIndex(f"{archive}-hashes"))


def loss_of(**changes) -> dict:
    return json.loads(json.dumps(RUN)) | changes


def with_run(info) -> Callable[[str], None]:
    return partial(run_with, run_json=info if isinstance(info, str) else json.dumps(info))


CARD = partial(model_card.write_doc, name="README.md")
ARCHIVES = [
    # run.zip
    (shorter(run_zip), select, "run.zip: no whole zip file (its end is missing"),
    (text_in(run_zip, ""), select, "run.zip: no whole zip file"),
    (text_in(run_zip, "no zip"), tables, "run.zip: no whole zip file"),
    (deflated(run_zip), select, "is compressed, claiming"),
    (flipped, select, "run.zip: damaged zip file (Bad CRC-32"),
    (partial(run_with, run_json=None), select, "no member 'run.json'; put back a copy, or delete this file"),
    (with_run("{"), select, "run.json: not valid JSON"),
    (with_run("[]"), select, "run.json: found a JSON list, wanted an object"),
    (with_run({}), select, "run.json: epochs, best missing or of the wrong kind"),
    (with_run(loss_of(epochs="four")), select, "run.json: epochs missing or of the wrong kind"),
    (with_run(loss_of(best={"loss": 3})), select, "run.json: best missing or of the wrong kind"),
    (with_run(loss_of(best={"loss": {"epoch": "../../x"}})), select, "run.json: best missing or of the wrong kind"),
    (with_run(loss_of(best={})), select, "best-loss: the run has no best epoch by loss"),
    (with_run(loss_of(best={"loss": {"value": 1, "epoch": 9}})), select, "no member 'checkpoints/epoch-9.pt'"),
    (partial(run_with, aggregated=None), tables, "no member 'validation_metrics/aggregated.tsv'"),
    (partial(run_with, aggregated="loss\n1\n"), tables, "aggregated.tsv has no column 'epoch'"),
    (partial(run_with, aggregated="epoch\tloss\n1\n"), tables, "aggregated.tsv: found rows of other lengths"),
    (partial(run_with, aggregated="epoch\n" + "1" * 200_000), tables, "not a table of tab-separated values"),
    (
        run_with,
        lambda a: run.copy_members(a, "0", [f"{layout.split_dir(a, 0)}/warning.log"]),
        "no member 'timing/warning.log'",
    ),
    (shorter(run_zip), lambda a: environment.frozen_environment(run_zip(a)), "run.zip: no whole zip file"),
    (with_run(loss_of(stopped_early="no")), write_summary_log, "stopped_early missing or of the wrong kind"),
    # what was tested
    (shorter(evaluation_zip), CARD, "held_split-0.zip: no whole zip file"),
    (lambda a: write_zip(evaluation_zip(a), {}), CARD, "no member 'best-MeanDice/aggregated.tsv'"),
    (
        lambda a: write_zip(evaluation_zip(a), {"best-MeanDice/aggregated.tsv": "loss\n"}),
        CARD,
        "aggregated.tsv has no rows",
    ),
    (lambda a: Path(evaluation_zip(a)).unlink(), CARD, "file not found; test split 0 on group held first"),
    (shorter(layout.eval_zip), mmar.write_eval_metrics, "evaluation.zip: no whole zip file"),
    (
        lambda a: Path(layout.eval_zip(a)).unlink(),
        mmar.write_eval_metrics,
        "file not found; evaluate the published model",
    ),
    (
        lambda a: write_zip(layout.eval_zip(a), {"class_details.tsv": "name\n"}),
        mmar.write_eval_dice_tables,
        "no MeanDice per class",
    ),
    # data/
    (text_in(layout.splits_json, "{"), write_summary_log, "splits.json: not valid JSON"),
    (text_in(layout.splits_json, "[]"), write_summary_log, "splits.json: found a JSON list, wanted an object"),
    (splits_with(lambda s: s.pop("groups")), write_summary_log, "found no objects 'groups' and 'cases'"),
    (splits_with(lambda s: s.update(splits=[{}])), write_summary_log, "found no list 'splits' of objects with train"),
    (splits_with(lambda s: s["splits"][0].update(train=["x"])), write_summary_log, "no list of its cases' names"),
    (splits_with(lambda s: s["groups"].update({"a/b": []})), write_summary_log, "found test group 'a/b'"),
    (
        splits_with(lambda s: next(iter(s["cases"].values())).pop("image")),
        write_summary_log,
        "found no image of the right kind",
    ),
    (lambda a: Path(layout.splits_json(a)).unlink(), write_summary_log, "splits.json: file not found"),
    (text_in(layout.dataset_json, "{}"), CARD, "dataset.json: found no 'labels' and 'modality' by number"),
    (text_in(layout.dataset_json, '{"labels": {"a": "b"}, "modality": {}}'), CARD, "found no 'labels' and 'modality'"),
    (text_in(layout.cases_tsv, "name\nx\n"), lambda a: steps.cases_of(a, ["x"]), "found no column 'case'"),
    (text_in(layout.cases_tsv, "case\tx\na\n"), lambda a: steps.cases_of(a, ["x"]), "rows of other lengths"),
    (
        text_in(layout.cases_tsv, "case\timage_sha256\tlabel_sha256\n"),
        lambda a: steps.cases_of(a, ["x"]),
        "case 'x' is not in",
    ),
    # config/
    (text_in(changes_noted, "[]"), as_held, "files.json: not as planning writes it"),
    (text_in(changes_noted, '{"x": 3}'), as_held, "files.json: not as planning writes it"),
    (text_in(effective_train, "{"), CARD, "effective/train.json: not valid JSON"),
    (text_in(effective_train, "{}"), summary, "no complete archive (no manifest)"),
    (lambda a: Path(layout.archive_json(a)).unlink(), as_held, "no such archive: not listed in the configuration file"),
    (lambda a: Path(layout.environment_json(a)).write_text("3"), as_held, "environment.json: found a JSON int"),
    (text_in(partial(layout.mmar_config, name="splits.json"), "{"), as_held, "splits.json: not valid JSON"),
    # the manifest and the records
    (text_in(layout.manifest, "no JSON"), adopted, "ro-crate-metadata.json: not valid JSON"),
    (text_in(layout.manifest, "[]"), adopted, "ro-crate-metadata.json: not a manifest as Armarium writes it"),
    (text_in(layout.manifest, '{"@graph": [{"@type": "File", "sha256": "x"}]}'), adopted, "not a manifest"),
    (text_in(sidecar, "{"), read_sidecars, "check_data.json: not valid JSON"),
    (text_in(sidecar, '{"format": "armarium-step/1"}'), read_sidecars, "check_data.json: damaged record of a step"),
    # what does not belong there
    (
        lambda a: Path(a, "models").symlink_to("models"),
        check_boundary,
        "models: a link that leads to itself; delete it",
    ),
    (lambda a: Path(a, "models").symlink_to("/"), check_boundary, "models: a link that leaves the archive, to /"),
    (lambda a: os.mkfifo(f"{a}/model.json"), check_boundary, "model.json: neither a file nor a folder; delete it"),
]


@pytest.mark.parametrize(("spoil", "read", "message"), ARCHIVES, ids=[f"{i} {m}" for i, (*_, m) in enumerate(ARCHIVES)])
def test_a_damaged_archive_is_told(spoil, read, message, tmp_path, figures):
    archive = make_archive(tmp_path)
    run_with(archive)
    write_evaluation(archive)
    spoil(archive)
    before = {str(p): p.read_bytes() for p in Path(archive).rglob("*") if p.is_file()}
    with pytest.raises(UserError) as caught:
        read(archive)
    judge(figures, message, str(caught.value))
    assert {str(p): p.read_bytes() for p in Path(archive).rglob("*") if p.is_file()} == before


def test_the_archive_was_right_before_it_was_damaged(tmp_path):
    archive = make_archive(tmp_path)
    run_with(archive)
    write_evaluation(archive)
    for read in (
        select,
        tables,
        CARD,
        write_summary_log,
        mmar.write_eval_metrics,
        as_held,
        read_sidecars,
        check_boundary,
    ):
        read(archive)


# ---- command lines, through Snakemake


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Iterator[WarmProject]:
    """A project before its first build; ``other`` is an archive that is merely on disk."""
    with WarmProject.fresh(tmp_path_factory.mktemp("project")) as fresh:
        write_recipe(fresh.folder / "elsewhere")
        shutil.move(configured_at(fresh.folder), fresh.folder / "other")
        shutil.rmtree(fresh.folder / "archives")
        (fresh.folder / "broken.yaml").write_text("archives: [\n")
        (fresh.folder / "list.yaml").write_text("- archives\n")
        (fresh.folder / "none.yaml").write_text("archives: {}\n")
        yield fresh


def configured_at(folder: Path) -> Path:
    given = section(
        recipe="elsewhere", dataset={"list": "data/micro/dataset.json"}, test={"groups": {"held": {"count": 1}}}
    )
    configured(folder, given)
    return folder / "archives/a"


def said(project: WarmProject, *args: str) -> str:
    """What a call prints that must fail before it makes anything."""
    before = {str(p): p.read_bytes() for p in (project.folder / "other").rglob("*") if p.is_file()}
    done: subprocess.CompletedProcess = project.snakemake(*args, ok=False)
    text = done.stdout + done.stderr
    assert done.returncode != 0, text
    assert not project.archive.exists(), "nothing was made"
    assert {str(p): p.read_bytes() for p in (project.folder / "other").rglob("*") if p.is_file()} == before
    return text


def broken_config(project):
    return {"config/config.yaml": yaml.safe_dump({**micro_config(), "archive_dir": "x", "gpus": "two"})}


def broken_recipe(project):
    conf = micro_recipe()
    conf["train"]["loss"]["args"]["x"] = "$__import__('os')"
    return {"recipe/config/config_train.json": json.dumps(conf)}


def set_to(value: str) -> tuple[str, ...]:
    return "-n", "--config", value


CALLS = [
    (broken_config, ("-n",), "unknown key 'archive_dir'; did you mean 'archives_dir'?"),
    (broken_config, ("-n",), "gpus: found 'two'"),
    (broken_recipe, ("-n",), "is code, which is never run"),
    (None, set_to("set={epochs: many}"), "set: epochs is 'many'; wanted integer"),
    (None, set_to("set={epoch: 3}"), "set: no variable 'epoch' in the recipe; did you mean 'epochs'?"),
    (None, set_to("set={DATA_ROOT: x}"), "set: DATA_ROOT cannot be set; use data_root"),
    (None, set_to("set=["), "set: found '[' (str), wanted object"),
    (None, set_to("splits=missing.json"), "missing.json: file not found"),
    (None, set_to("splits=recipe"), "recipe: not a regular file"),
    (None, set_to("nsplits=3"), "unknown key 'nsplits'; did you mean 'n_splits'?"),
    (None, set_to("n_splits=1"), "n_splits: found 1; 1 is less than the minimum of 2"),
    (None, set_to("archives=3"), "archives: found 3 (int), wanted object"),
    (None, set_to("allow=os.system"), "allow: found 'os.system' (str), wanted array"),
    (None, set_to("device=gpu"), "device: found 'gpu'; did you mean 'cpu'?"),
    (None, set_to("trust_torchscript=perhaps"), "trust_torchscript: found 'perhaps' (str), wanted boolean"),
    (None, ("-n", "--configfile", "broken.yaml"), "Config file is not valid JSON or YAML"),
    (None, ("-n", "--configfile", "list.yaml"), "Config file must be given as JSON or YAML with keys at top level"),
    (None, ("-n", "--configfile", "none.yaml"), "archives: found {}; {} should be non-empty"),
    (None, ("-n", "nowhere/models/model.pt"), "nowhere: no such archive: not listed"),
    (None, ("nowhere/models/model.pt",), "nowhere: no such archive: not listed"),
    (None, ("-n", "archives/micro/no/such/file"), "No rule to produce archives/micro/no/such/file"),
    (None, ("-n", "archives/micro/commands/x.sh"), "No rule to produce archives/micro/commands/x.sh"),
    (None, ("-n", "archives/micro/training/split-01/run.zip"), "No rule to produce"),
    (None, ("-n", "archives/micro/training/split-1/run.zip"), "archives/micro: no split '1'; it has 0"),
    (None, ("-n", "archives/micro/test/group-x/data.tsv"), "archives/micro: no group 'x'; it has holdout"),
    (
        None,
        ("-n", "archives/micro/training/split-0/models/checkpoints/epoch-9/model.pt"),
        "no checkpoint 'checkpoints/epoch-9'; it has best_models/best-loss",
    ),
    (
        None,
        ("-n", "archives/micro/training/split-0/models/best_models/best-Dice/model.ts"),
        "no checkpoint 'best_models/best-Dice'",
    ),
    (None, ("-n", "archives/micro/training/split-0/logs/learning_rates/SGD.tsv"), "no optimizer 'SGD'; it has AdamW"),
    (None, ("-n", "other/training/split-2/run.zip"), "other: no split '2'; it has 0, 1"),
    (None, ("-n", "other/models/model.pt", "--config", "set={epochs: 0}"), "epochs: found 0"),
]


@pytest.mark.parametrize(("change", "args", "message"), CALLS, ids=[f"{' '.join(a)}: {m}" for _, a, m in CALLS])
def test_snakemake_tells_it_without_a_traceback(change, args, message, project, figures):
    changes = change(project) if change else {}
    before = {name: (project.folder / name).read_text() for name in changes}
    try:
        for name, text in changes.items():
            (project.folder / name).write_text(text)
        text = said(project, *args)
    finally:
        for name, content in before.items():
            (project.folder / name).write_text(content)
    judge(figures, message, text)


# ---- command lines of the package's own


CONFIG = "config/config_train.json"
COMMANDS = [
    ("armarium sumary", "No such command 'sumary'. Did you mean 'summary'?"),
    ("armarium summary", "Missing argument 'ARCHIVE'"),
    ("armarium summary nowhere", "nowhere: no complete archive (no manifest); build it with: snakemake"),
    ("armarium summary Snakefile", "Directory 'Snakefile' is a file"),
    ("armarium summary other", "other: no complete archive (no manifest)"),
    ("armarium status nowhere", "nowhere: no archive: found no nowhere/config/archive.json; check the path"),
    ("armarium verify nowhere", "nowhere: no archive: found neither"),
    ("armarium unlock other", "Got unexpected extra argument (other)"),
    ("armarium train other one", "'one' is no split's number; wanted 0, 1, …"),
    ("armarium train other 0 --device tpu", "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
    ("armarium train nowhere 0", "nowhere/config/effective/data.json: "),
    ("armarium check-data nowhere", "nowhere/config/environment.json: file not found"),
    ("armarium check-data other --workers two", "'two' is not a valid integer"),
    ("armarium split-data other", "other/data/cases.tsv: "),
    ("armarium select other 0 final", "Missing option '--weights'"),
    ("armarium select other 0 final --weights", "other/training/split-0/run.zip: "),
    ("armarium write nothing other", "'nothing' is not one of 'model'"),
    ("armarium write command other x.sh", "commands/x.sh: no such command; wanted one of set_env.sh"),
    ("armarium write doc other x.md", "docs/x.md: no such document; wanted one of README.md"),
    ("armarium write group-data other held", "other/data/splits.json: file not found"),
    ("armarium publish other worst", "'worst' is not one of 'best', 'final'"),
    ("armarium extract other nowhere.zip m t --rule r", "nowhere.zip: "),
    ("armarium synthesize x/d.json {", "SPEC: not valid JSON"),
    ("armarium synthesize x/d.json []", "SPEC: found a JSON list, wanted an object"),
    ('armarium synthesize x/d.json {"cases":1}', "synthesize.cases: found 1; 1 is less than the minimum of 4"),
    ("armarium write-manifest nowhere", "nowhere/provenance/workflow/Snakefile: file not found"),
    ("armarium --log . summary other", "File '.' is a directory"),
    ("armarium.apps.train -m nowhere -c " + CONFIG, "no archive: found no "),
    ("armarium.apps.train -m other", "the following arguments are required: -c/--config_file"),
    (f"armarium.apps.train -m other -c {CONFIG} --set epochs", "--set: found 'epochs', wanted NAME=VALUE"),
    ("armarium.apps.train -m other -c x.json", "-c x.json: wanted one of the archive's own configurations"),
    (f"armarium.apps.evaluate -m other -c {CONFIG}", "wanted config_validation.json, config_validation_ckpt.json or"),
    (f"armarium.apps.export -m other -c {CONFIG} --model_path x --output_path y", "--model_path: found x, wanted "),
]


@pytest.mark.parametrize(
    ("command", "message"),
    [pytest.param(*c, marks=[pytest.mark.slow] * (i % 3 != 0), id=c[0]) for i, c in enumerate(COMMANDS)],
)
def test_a_wrong_command_is_told(command, message, project, figures):
    before = {str(p): p.read_bytes() for p in (project.folder / "other").rglob("*") if p.is_file()}
    environment = {**project.environment, "PYTHONPATH": str(REPO / "workflow")}
    module, *args = command.split()
    done = subprocess.run(
        [sys.executable, "-m", module, *args], cwd=project.folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0 and not done.stdout
    judge(figures, message, " ".join(done.stderr.split()))
    after = {str(p): p.read_bytes() for p in (project.folder / "other").rglob("*") if p.is_file()}
    assert {k: v for k, v in after.items() if "/tmp/lock" not in k} == before
