"""No leak by publishing: whatever split is published, nothing scores a case that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from armarium import checkpoint_evaluation, layout, steps, testing
from armarium.apps import evaluate
from armarium.bundle import evaluate_config, inference_config
from armarium.configure import read_effective
from armarium.files import read_json, write_json, write_text
from armarium.recipe import substitute
from armarium.split_files import read_splits
from armarium.synthesize import parse_spec, synthesize_dataset
from tiny import configured, section, write_recipe

CASES = [f"case_{n:03d}" for n in range(1, 9)]
NESTED = [
    {"train": CASES[:4], "validation": CASES[4:6], "test": CASES[6:]},
    {"train": CASES[4:], "validation": CASES[2:4], "test": CASES[:2]},
]
"""What one split tests, the other trains on."""
LISTED, NONE = {"held": {"from": "test"}}, {}
ARCHIVES = {
    "kfold with test cases of the list": ({"method": "kfold", "n_splits": 3}, LISTED, 3),
    "kfold with test cases that are drawn": ({"method": "kfold", "n_splits": 2}, {"drawn": {"count": 2}}, 2),
    "kfold, own validation": ({"method": "kfold", "n_splits": 4}, NONE, 4),
    "holdout with test cases of the list": ({"method": "holdout", "holdout": 3}, LISTED, 1),
    "holdout, own validation": ({"method": "holdout", "holdout": 3}, NONE, 1),
    "nested test sets": ({"method": "file", "file": "nested.json"}, NONE, 2),
    "given splits, one without a test": ({"method": "file", "file": "half.json"}, NONE, 2),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A dataset of eight training cases and three test cases, checked once."""
    folder = tmp_path_factory.mktemp("leak")
    spec = parse_spec(json.dumps({"cases": 8, "test_cases": 3, "shape": [8, 8], "spacing": [1.0, 1.0]}))
    synthesize_dataset(str(folder / "data"), spec)
    write_recipe(folder / "recipe")
    write_json(folder / "nested.json", NESTED)
    half = {"train": [*CASES[4:], *CASES[:2]], "validation": CASES[2:4]}
    write_json(folder / "half.json", [NESTED[0], half])
    return folder


def cases_of_images(archive: str, images: list[str]) -> set[str]:
    """The cases that datalist entries name."""
    cases = read_splits(layout.splits_json(archive))["cases"]
    return {name for name, case in cases.items() if set(case["image"]) & set(images)}


def listed(archive: str, path: str, key: str) -> set[str]:
    """The cases under a key of a datalist of the archive."""
    entries = read_json(f"{archive}/{path}").get(key, [])
    images = [e["image"] if isinstance(e, dict) else e for e in entries]
    return cases_of_images(archive, [i for image in images for i in ([image] if isinstance(image, str) else image)])


def scored_by(archive: str, monkeypatch) -> dict[str, set[str]]:
    """The cases that each command and configuration scores or predicts."""
    publish, found = read_effective(archive, "publish")["publish"], {}

    class Scored(Exception):
        """The scorer was reached."""

    def score(*, cases, **_):
        raise Scored([case["case"] for case in cases])

    for path in (layout.published_ts(archive), layout.published_model(archive)):
        write_text(path, "never read")
    monkeypatch.setattr(testing, "evaluate_published", score)
    monkeypatch.setattr(checkpoint_evaluation, "evaluate_published", score)
    monkeypatch.setattr(steps, "published_torchscript", lambda *_: b"")
    monkeypatch.setattr(checkpoint_evaluation, "finished_run", lambda *_: {})
    monkeypatch.setattr(checkpoint_evaluation, "_refuse_other_weights", lambda *_: None)
    for name, run in (
        ("validate.sh", lambda: steps.evaluate_published(archive, "cpu", "cache", True)),
        ("validate_ckpt.sh", lambda: checkpoint_evaluation.evaluate_checkpoint(archive, "cpu", "cache")),
    ):
        with pytest.raises(Scored) as scored:
            run()
        found[name] = set(scored.value.args[0])
    for by in ("", layout.CKPT):
        files = evaluate.targets(archive, by, scores=False, predictions=True)
        found[f"infer.sh {by}"] = {Path(f).parent.name for f in files if f.endswith(".nii.gz")}
    for name, config in (("inference", inference_config(archive)), ("evaluate", evaluate_config(archive))):
        datalist = config["datalist"].removeprefix("$@bundle_root + '/").removesuffix("'")
        found[f"configs/{name}.json"] = listed(archive, datalist, config["datalist_key"])
    environment = read_json(layout.environment_json(archive))
    for name in evaluate.CONFIGS:
        dataset = substitute(read_json(layout.mmar_config(archive, name))["dataset"], environment, name)
        found[name] = listed(archive, dataset["data_list_file_path"], dataset["data_list_key"])
    for group in read_splits(layout.splits_json(archive))["groups"]:
        if group in configured_groups(archive, publish):
            found[f"test group {group}"] = set(steps._group(archive, group, publish))
    return found


def configured_groups(archive: str, publish: int) -> list[str]:
    splits = read_splits(layout.splits_json(archive))
    own = splits.get("own_groups", {})
    return [g for g in splits["groups"] if own.get(g, publish) == publish]


@pytest.mark.parametrize(("kind", "publish"), [(kind, k) for kind, (*_, n) in ARCHIVES.items() for k in range(n)])
def test_what_is_published_never_scores_a_case_that_it_was_trained_on(data, monkeypatch, kind, publish):
    how, groups, _ = ARCHIVES[kind]
    monkeypatch.chdir(data)
    given = section(splits=dict(how), publish=publish)
    given["test"] = {"groups": groups}
    archive = configured(data, given).archive
    steps.check_data(archive, 1, "cache")
    steps.split_data(archive)
    steps.write_datalist(archive, str(publish))
    split = read_splits(layout.splits_json(archive))["splits"][publish]
    found = scored_by(archive, monkeypatch)
    assert split["train"] and not {n: seen for n, cases in found.items() if (seen := cases & set(split["train"]))}
    whole = found["validate.sh"]
    assert whole and all(found[name] == whole for name in ("validate_ckpt.sh", "infer.sh ", "infer.sh ckpt/"))
    assert found["configs/evaluate.json"] == set(split["validation"])
