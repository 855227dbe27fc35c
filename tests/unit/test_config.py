"""config.yaml: what is completed, what is refused and how a value from the command line is read."""

from __future__ import annotations

import math

import pytest
import yaml
from armarium.config import archive_section, check, fill_defaults, schema, typed
from armarium.errors import Problems, UserError
from tiny import REPO

MINIMAL = {"archives": {"a": {"recipe": "r", "dataset": {"list": "d.json"}}}}


def minimal(**changes) -> dict:
    return {**MINIMAL, **changes}


def archive(**changes) -> dict:
    return {"archives": {"a": {**MINIMAL["archives"]["a"], **changes}}}


def dataset(**changes) -> dict:
    return archive(dataset={"list": "d.json", **changes})


def problems(config) -> list[str]:
    with pytest.raises(Problems) as caught:
        check(config, "config", "config.yaml")
    assert str(caught.value).startswith("config.yaml: ")
    return caught.value.problems


# ---- defaults


def test_a_minimal_file_is_completed_at_every_level():
    config = check(MINIMAL, "config", "config.yaml")
    section = config["archives"]["a"]
    assert config["archives_dir"] == "archives" and config["device"] == "auto" and config["gpus"] is None
    assert section["splits"] == {
        "method": "kfold",
        "n_splits": 5,
        "holdout": 0.2,
        "group_by": [],
        "stratify_by": [],
        "seed": 0,
        "file": None,
    }
    assert section["test"] == {"groups": {}} and section["select"]["final"] is True
    assert section["dataset"]["task"] == "segmentation" and section["dataset"]["synthesize"] is None
    assert section["export"] == {"tolerance": 0.0001, "formats": []} and section["pack"] == []


def test_parts_that_are_given_are_completed_too():
    config = check(dataset(synthesize={"cases": 6}, columns={"pair": {"pattern": "([0-9]+)"}}), "config", "config.yaml")
    found = config["archives"]["a"]["dataset"]
    assert found["synthesize"]["cases"] == 6 and found["synthesize"]["shape"] == [24, 24, 24]
    assert found["columns"]["pair"] == {"from": "case", "pattern": "([0-9]+)", "start": 0}


def test_what_is_given_is_neither_changed_nor_shared():
    config = check(MINIMAL, "config", "config.yaml")
    config["archives"]["a"]["splits"]["group_by"].append("pair")
    config["archives"]["a"]["set"]["epochs"] = 3
    again = check(MINIMAL, "config", "config.yaml")
    assert again["archives"]["a"]["splits"]["group_by"] == [] and again["archives"]["a"]["set"] == {}
    assert MINIMAL == {"archives": {"a": {"recipe": "r", "dataset": {"list": "d.json"}}}}


def test_a_completed_file_is_complete():
    once = check(MINIMAL, "config", "config.yaml")
    assert check(once, "config", "config.yaml") == once


@pytest.mark.parametrize("name", ["config.yaml", "hippocampus.yaml", "adrenal.yaml"])
def test_the_examples_are_right(name):
    check(yaml.safe_load((REPO / "config" / name).read_text()), "config", name)


def properties(node: dict, root: dict, path: str = "", seen: tuple = ()):
    """Every property of a schema with where it is."""
    if "$ref" in node:
        if node["$ref"] in seen:
            return
        target = root
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        yield from properties(target, root, path, (*seen, node["$ref"]))
        return
    for key, child in node.get("properties", {}).items():
        yield f"{path}.{key}", child
        yield from properties(child, root, f"{path}.{key}", seen)
    for child in [node.get("additionalProperties"), *node.get("oneOf", [])]:
        if isinstance(child, dict):
            yield from properties(child, root, f"{path}.*", seen)


@pytest.mark.parametrize("name", ["config", "recipe"])
def test_every_property_is_described_and_its_default_valid(name):
    from jsonschema import Draft202012Validator

    root = schema(name)
    Draft202012Validator.check_schema(root)
    found = list(properties(root, root))
    assert len(found) >= 15
    for path, node in found:
        assert "$ref" in node or node.get("description") or node.get("type") == "object", f"{path} has no description"
        if "default" in node:
            completed = fill_defaults(node["default"], node, root)
            assert not list(Draft202012Validator(root).evolve(schema=node).iter_errors(completed)), path


# ---- unknown keys


UNKNOWN = [
    (minimal(archive_dir="x"), "top level: unknown key 'archive_dir'; did you mean 'archives_dir'?"),
    (minimal(epochs=3), "top level: unknown key 'epochs'; known: allow, archives, archives_dir"),
    (archive(recipi="x"), "archives.a: unknown key 'recipi'; did you mean 'recipe'?"),
    (archive(splits={"nsplits": 3}), "archives.a.splits: unknown key 'nsplits'; did you mean 'n_splits'?"),
    (archive(select={"epoch": [2]}), "archives.a.select: unknown key 'epoch'; did you mean 'epochs'?"),
    (archive(export={"tolerence": 1}), "archives.a.export: unknown key 'tolerence'; did you mean 'tolerance'?"),
    (archive(test={"group": {}}), "archives.a.test: unknown key 'group'; did you mean 'groups'?"),
    (
        archive(test={"groups": {"g": {"fractoin": 0.1}}}),
        "archives.a.test.groups.g: unknown key 'fractoin'; did you mean 'fraction'?",
    ),
    (dataset(chanels=1), "archives.a.dataset: unknown key 'chanels'; did you mean 'channels'?"),
    (dataset(synthesize={"case": 9}), "archives.a.dataset.synthesize: unknown key 'case'; did you mean 'cases'?"),
    (
        dataset(columns={"p": {"pattern": "(x)", "form": "y"}}),
        "archives.a.dataset.columns.p: unknown key 'form'; did you mean 'from'?",
    ),
    (minimal(**{"true": 1}), "unknown key 'true'"),
]


@pytest.mark.parametrize(("config", "message"), UNKNOWN)
def test_an_unknown_key_is_refused_with_the_nearest_name(config, message):
    (found,) = problems(config)
    assert message in found


@pytest.mark.parametrize("key", [True, 3, None])
def test_a_key_that_is_no_word_is_refused_as_unknown(key):
    assert f"unknown key '{key}'" in problems({**MINIMAL, key: 1})[0]


def test_all_problems_are_told_together():
    config = {
        "archives": {"a": {"recipe": 3, "datset": {}}, "b": {"dataset": {"list": "d"}, "publish": -1}},
        "device": "gpu",
    }
    text = "\n".join(problems(config))
    for part in (
        "recipe: found 3",
        "unknown key 'datset'",
        "a: missing key dataset",
        "b: missing key recipe",
        "publish: found -1",
        "device: found 'gpu'",
    ):
        assert part in text, part


def test_all_problems_of_a_part_with_two_forms_are_told():
    text = "\n".join(problems(dataset(synthesize={"cases": "many", "sed": 1})))
    assert "synthesize.cases: found 'many'" in text and "unknown key 'sed'" in text


# ---- wrong types


WRONG = [
    (minimal(device="gpu"), "device: found 'gpu'"),
    (minimal(n_splits="five"), "n_splits: found 'five' (str), wanted integer or null"),
    (minimal(n_splits=1), "n_splits: found 1"),
    (minimal(n_splits=5.0), "n_splits: found 5.0 (float), wanted integer or null"),
    (minimal(splits=3), "splits: found 3 (int), wanted string or null"),
    (minimal(set=[1]), "set: found [1] (list), wanted object"),
    ({"archives": {}}, "archives: found {}"),
    ({"archives": None}, "archives: found None (NoneType), wanted object"),
    ([], "found [] (list), wanted object"),
    ({}, "top level: missing key archives; The archives to build, by name"),
    ({"archives": {"a b": {}}}, "the name 'a b' does not match"),
    (archive(publish=0.0), "publish: found 0.0 (float), wanted integer"),
    (archive(publish=True), "publish: found True (bool), wanted integer"),
    (archive(splits={"method": "k-fold"}), "method: found 'k-fold'; did you mean 'kfold'?"),
    (archive(splits={"holdout": 0}), "holdout: found 0"),
    (archive(select={"epochs": [0]}), "select.epochs.0: found 0"),
    (archive(select={"epochs": 3}), "select.epochs: found 3 (int), wanted array"),
    (archive(test={"groups": {"a-b": {"from": "test"}}}), "the name 'a-b' does not match"),
    (archive(test={"groups": {"g": {}}}), "test.groups.g: found {}"),
    (
        archive(test={"groups": {"g": {"count": 2, "from": "test"}}}),
        "test.groups.g: found {'count': 2, 'from': 'test'}",
    ),
    (archive(export={"tolerance": math.nan}), "tolerance: found nan (float), wanted number"),
    (dataset(affine_tolerance=math.inf), "affine_tolerance: found inf (float), wanted number"),
    (dataset(task="segment"), "task: found 'segment'; did you mean 'segmentation'?"),
    (dataset(synthesize=3), "synthesize: found 3 (int), wanted null or object"),
    (dataset(synthesize={"shape": [24]}), "synthesize.shape: found [24]"),
    (dataset(synthesize={"cases": 12.0}), "synthesize.cases: found 12.0 (float), wanted integer"),
]


@pytest.mark.parametrize(("config", "message"), WRONG)
def test_a_wrong_value_is_refused_with_what_was_wanted(config, message):
    assert any(message in p for p in problems(config)), problems(config)


# ---- values from a command line


READ = [
    ("epochs", "3", 1, 3),
    ("epochs", 3, 1, 3),
    ("amp", "true", False, True),
    ("amp", "no", True, False),
    ("learning_rate", "1e-3", 0.1, 0.001),
    ("learning_rate", "1", 0.1, 1.0),
    ("clip_grad_norm", "null", 1.0, None),
    ("clip_grad_norm", "12", None, 12.0),
    ("clip_grad_norm", None, 1.0, None),
    ("own_count", "7", 3, 7),
    ("own_rate", "5e-2", 0.3, 0.05),
    ("own_switch", "off", True, False),
    ("own_name", "3", "two", "3"),
    ("own_name", "null", "two", "null"),
    ("own_anything", "[1, 2]", None, [1, 2]),
]


@pytest.mark.parametrize(("name", "given", "like", "wanted"), READ)
def test_a_value_takes_the_type_of_the_schema_or_of_what_it_replaces(name, given, like, wanted):
    found = typed(name, given, like)
    assert found == wanted and isinstance(found, type(wanted))


@pytest.mark.parametrize(
    ("name", "given", "like", "kind"),
    [
        ("epochs", "three", 1, "integer"),
        ("epochs", "3.5", 1, "integer"),
        ("epochs", "true", 1, "integer"),
        ("epochs", "null", 1, "integer"),
        ("epochs", [3], 1, "integer"),
        ("learning_rate", "fast", 0.1, "number"),
        ("learning_rate", "nan", 0.1, "number"),
        ("learning_rate", math.inf, 0.1, "number"),
        ("learning_rate", "true", 0.1, "number"),
        ("clip_grad_norm", "none", 0.1, "number or null"),
        ("amp", "1", False, "boolean"),
        ("own_name", 3, "two", "string"),
    ],
)
def test_a_value_of_another_type_is_refused(name, given, like, kind):
    with pytest.raises(UserError, match=f"^set: {name} is .*; wanted {kind}$"):
        typed(name, given, like)


# ---- splits asked for at the top of the file


def splits_of(config: dict) -> dict:
    return archive_section(check(config, "config", "config.yaml"), "a")["splits"]


def test_n_splits_makes_any_archive_a_k_fold():
    found = splits_of({**archive(splits={"method": "file", "file": "s.json"}), "n_splits": 3})
    assert (found["method"], found["n_splits"], found["file"]) == ("kfold", 3, None)


def test_splits_reads_given_ones_whatever_the_archive_says():
    found = splits_of({**archive(splits={"method": "holdout", "seed": 4}), "splits": "mine.json"})
    assert (found["method"], found["file"], found["seed"]) == ("file", "mine.json", 4)


def test_the_file_itself_stays_as_it_was():
    config = check({**MINIMAL, "n_splits": 3}, "config", "config.yaml")
    archive_section(config, "a")
    assert config["archives"]["a"]["splits"]["n_splits"] == 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (archive(splits={"method": "file"}), "method is file but file is empty"),
        (archive(splits={"file": "s.json"}), "file is 's.json', but method is kfold"),
        ({**MINIMAL, "n_splits": 3, "splits": "s.json"}, "give one of the two"),
    ],
)
def test_contradictory_splits_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        splits_of(config)


def test_keys_of_the_users_own_keep_their_order():
    from armarium.config import fill_defaults, schema

    names = {str(i): f"class {i}" for i in (3, 1, 2, 0, 9, 4)}
    root = schema("config")
    filled = fill_defaults({"list": "x", "labels": names}, root["$defs"]["dataset"], root)
    assert list(filled["labels"]) == list(names)
