"""What bad input gets: one clear message, no traceback, and nothing made before is lost."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from armarium.errors import UserError
from tiny import component, configured, handler, recipe, section, write_recipe

from tests.workflow.conftest import Project, micro_config, micro_recipe


@pytest.fixture
def folder(tmp_path):
    """A project with a recipe and an archive that is configured rightly."""
    write_recipe(tmp_path / "recipe")
    configured(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in (folder / "archives").rglob("*") if p.is_file()}


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
    (section(dataset={"task": "regression"}), "task: found 'regression'; known: classification, segmentation"),
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
def test_a_wrong_section_is_told(given, message, folder):
    assert message in refused(folder, given)


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
def test_a_wrong_key_of_the_whole_file_is_told(top, message, folder):
    before = contents(folder)
    with pytest.raises(UserError) as caught:
        configured_from(folder, top)
    assert message in str(caught.value) and contents(folder) == before


def configured_from(folder: Path, top: dict):
    """As ``configured``, for keys that are no words too."""
    from armarium.config import check

    if all(isinstance(k, str) for k in top):
        return configured(folder, **top)
    return check({"archives": {"a": section()}, **top}, "config", "configuration")


# ---- the recipe's files


FILES = [
    ("config_train.json", "{", "config_train.json: not valid JSON"),
    ("config_train.json", "", "config_train.json: not valid JSON"),
    ("config_train.json", b"\xff\xfe{}", "config_train.json: not valid JSON"),
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
def test_a_broken_file_of_the_recipe_is_told(name, content, message, folder):
    (folder / "recipe/config" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused(folder)


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
def test_a_wrong_recipe_is_told(change, message, folder):
    conf = recipe()
    change(conf)
    write_recipe(folder / "recipe", conf)
    assert message in refused(folder)


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
def test_a_wrong_split_file_is_told_before_anything_is_checked(text, message, folder):
    (folder / "s.json").write_text(text)
    assert message in refused(folder, splits=str(folder / "s.json"))


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
def test_a_broken_file_of_an_archive_that_is_merely_on_disk_is_told(name, content, message, folder):
    from armarium.configure import Globals, configure

    path = folder / "archives/a/config" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError) as caught:
        configure(str(folder / "archives/a"), None, Globals(cache_dir=str(folder / "cache")))
    assert message in str(caught.value)


# ---- the same through Snakemake


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project.fresh(tmp_path_factory.mktemp("project"))


def said(project: Project, *args: str) -> str:
    """What a dry run prints, for a call that must fail."""
    done: subprocess.CompletedProcess = project.snakemake("-n", *args, ok=False)
    text = done.stdout + done.stderr
    assert done.returncode != 0 and "Traceback" not in text, text
    assert not project.archive.exists()
    return text


def broken_config(project):
    return {"config/config.yaml": yaml.safe_dump({**micro_config(), "archive_dir": "x", "gpus": "two"})}


def broken_recipe(project):
    conf = micro_recipe()
    conf["train"]["loss"]["args"]["x"] = "$__import__('os')"
    return {"recipe/config/config_train.json": json.dumps(conf)}


CALLS = [
    (broken_config, (), ["unknown key 'archive_dir'; did you mean 'archives_dir'?", "gpus: found 'two'"]),
    (broken_recipe, (), ["is code, which is never run"]),
    (None, ("--config", "set={epochs: many}"), ["set: epochs is 'many'; wanted integer"]),
    (None, ("--config", "splits=missing.json"), ["missing.json: file not found"]),
    (None, ("--config", "nsplits=3"), ["unknown key 'nsplits'; did you mean 'n_splits'?"]),
    (None, ("archives/other/models/model.pt",), ["archives/other: no such archive: not listed"]),
]


@pytest.mark.parametrize(("change", "args", "messages"), CALLS, ids=[m[0] for _, _, m in CALLS])
def test_snakemake_tells_it_without_a_traceback(change, args, messages, project):
    changes = change(project) if change else {}
    before = {name: (project.folder / name).read_text() for name in changes}
    try:
        for name, text in changes.items():
            (project.folder / name).write_text(text)
        text = said(project, *args)
    finally:
        for name, content in before.items():
            (project.folder / name).write_text(content)
    for message in messages:
        assert message in text
