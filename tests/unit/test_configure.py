"""Configuration files of an archive: when they are written, and which products an edit puts out of date."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy
import pytest
from armarium import layout, steps
from armarium.bundle import inference_config
from armarium.configure import Globals, configure, read_effective
from armarium.contents import contents_of
from armarium.errors import UserError
from armarium.fingerprints import DEPENDS_ON, fingerprint_on_disk
from armarium.synthesize import synthesize_dataset
from tiny import REPO, component, configured, recipe, section, write_recipe

PRODUCTS = set(DEPENDS_ON)
SCORED = {"published evaluation", "checkpoint evaluation", "ensemble evaluation"}
PUBLISHED = {"export", "format", "ensemble", *SCORED}
EXPORTED = PUBLISHED - {"checkpoint evaluation"}
UNGROUPED = PRODUCTS - {"evaluation"}
"""Products of an archive without test groups."""


@pytest.fixture
def folder(tmp_path):
    write_recipe(tmp_path / "recipe")
    return tmp_path


@pytest.fixture
def archive(folder):
    configured(folder)
    return folder / "archives/a"


def prints(found, group: str = "held") -> dict[str, str]:
    """Fingerprints by product, of split 0 and, if there is one, a test group."""
    products = PRODUCTS if group in found.groups else UNGROUPED
    return {p: found.fingerprint(p, *which_of(p, group)) for p in products}


def grouped(**changes) -> dict:
    """The section, with a test group beside what changes."""
    groups = changes.pop("test", {"groups": {}})["groups"]
    return section(**changes, test={"groups": {"held": {"from": "test"}, **groups}})


def which_of(product: str, group: str, split: str = "0") -> tuple[str, ...]:
    one = {"splits": (), "evaluation": (group, split), "format": ("onnx",), "ensemble": (), **dict.fromkeys(SCORED, ())}
    return one.get(product, (split,))


def times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in (folder / "archives").rglob("*") if p.is_file()}


def differing(a, b, group: str = "held") -> set[str]:
    first, second = prints(a, group), prints(b, group)
    return {p for p in first.keys() | second.keys() if first.get(p) != second.get(p)}


# ---- writing


def test_a_dry_run_writes_nothing_and_says_what_would_change(folder):
    found = configured(folder, dry=True)
    assert not (folder / "archives").exists()
    assert found.changed == {*layout.EFFECTIVE, "files"} and found.split_numbers == [0, 1]


def test_files_are_written_once_and_hold_what_was_said(folder):
    first = configured(folder)
    written = times(folder)
    second = configured(folder)
    assert second.changed == set() and times(folder) == written and prints(first) == prints(second)
    archive = str(folder / "archives/a")
    assert read_effective(archive, "train")["optimizer"]["args"]["lr"] == 0.01
    assert all(Path(layout.mmar_config(archive, name)).is_file() for name in (*layout.MMAR_CONFIGS, "environment.json"))
    assert {p: fingerprint_on_disk(archive, p, *which_of(p, "")) for p in prints(second)} == prints(second)


def test_products_and_splits_have_fingerprints_of_their_own(folder):
    found = configured(folder, section(test={"groups": {"held": {"from": "test"}, "more": {"from": "test"}}}))
    each = {found.fingerprint(p, *which_of(p, g, k)) for p in PRODUCTS for g in ("held", "more") for k in ("0", "1")}
    assert len(each) == 1 + 2 + 4 + 2 + 2 + len(SCORED)
    assert found.fingerprint("training", 1) == found.fingerprint("training", "1")


def test_only_the_parts_that_an_edit_is_about_are_written(folder):
    configured(folder)
    before = times(folder)
    assert configured(folder, section(export={"tolerance": 0.5})).changed == {"export"}
    after = times(folder)
    changed = {Path(p).name for p in after if after[p] != before[p]}
    assert changed == {"export.json", "archive.json", "written.json"}


def reordered(value):
    if isinstance(value, dict):
        return {k: reordered(value[k]) for k in reversed(value)}
    return [reordered(v) for v in value] if isinstance(value, list) else value


def test_cosmetic_edits_change_nothing(folder):
    given = section(
        dataset={"labels": {"0": "background", "1": "bright"}}, test={"groups": {"a": {"count": 1}, "b": {"count": 1}}}
    )
    first, conf = configured(folder, given), recipe()
    written = times(folder)
    (folder / "recipe/config/config_train.json").write_text(json.dumps(reordered(conf), indent=7) + "\n\n")
    second = configured(folder, reordered(given))
    assert prints(first) == prints(second) and second.changed == set()
    assert times(folder) == written, "so that the manifest stays true"


# ---- which edit changes what


def rate(conf):
    conf["learning_rate"] = 0.5


def metric(conf):
    conf["validate"]["additional_metrics"] = [component("MeanIoUHandler")]


def log(conf):
    conf["train"]["handlers"].append(component("StatsHandler", tag_name="n"))


EDITS = {
    "recipe: learning rate": (rate, {}, PRODUCTS - {"splits"}),
    "recipe: another metric": (metric, {}, PRODUCTS - {"splits"}),
    "recipe: other loader processes": (lambda c: c.update(num_workers=2), {}, set()),
    "recipe: other resume states": (lambda c: c.update(save_interval=3), {}, set()),
    "recipe: what training does not read": (lambda c: c.update(dont_load_ts_model=True), {}, set()),
    "recipe: another log": (log, {}, set()),
    "set": (None, {"set": {"epochs": 9}}, PRODUCTS - {"splits"}),
    "dataset: labels": (None, {"dataset": {"labels": {0: "a", 1: "b"}}}, PRODUCTS),
    "dataset: tolerance": (None, {"dataset": {"affine_tolerance": 0.5}}, set()),
    "dataset: description": (None, {"dataset": {"description": "words"}}, EXPORTED),
    "splits: seed": (None, {"splits": {"seed": 3}}, PRODUCTS),
    "splits: what the method does not use": (None, {"splits": {"holdout": 0.5}}, set()),
    "test: a group of other cases": (
        None,
        {"test": {"groups": {"g": {"list": "data/other.json"}}}},
        {"splits", *SCORED},
    ),
    "test: a group of the same cases": (None, {"test": {"groups": {"g": {"from": "test"}}}}, {"splits"}),
    "test: a drawn group": (None, {"test": {"groups": {"g": {"count": 2}}}}, PRODUCTS),
    "test: the group of other cases": (
        None,
        {"test": {"groups": {"held": {"list": "data/other.json"}}}},
        {"splits", "evaluation", *SCORED},
    ),
    "select: best": (None, {"select": {"best": ["loss"]}}, set()),
    "select: an epoch to keep": (None, {"select": {"epochs": [2]}}, set()),
    "predictions": (None, {"predictions": False}, SCORED),
    "publish": (None, {"publish": 1}, PUBLISHED),
    "export": (None, {"export": {"tolerance": 0.5}}, EXPORTED),
    "allow": (None, {"allow": ["a.B"]}, PRODUCTS - {"splits"}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_changes_the_fingerprints_of_what_depends_on_it_and_its_revert_restores_them(edit, folder):
    change, more, wanted = EDITS[edit]
    first, conf = configured(folder, grouped()), recipe()
    if change:
        change(conf)
        write_recipe(folder / "recipe", conf)
    assert differing(first, configured(folder, grouped(**more))) == wanted
    write_recipe(folder / "recipe")
    assert prints(configured(folder, grouped())) == prints(first)


def test_the_first_group_and_the_loss_of_the_last_change_what_is_exported(folder):
    assert differing(configured(folder), configured(folder, grouped())) == PRODUCTS - {"training"}


def test_an_epoch_that_is_not_validated_is_refused(folder):
    write_recipe(folder / "recipe", recipe() | {"num_interval_per_valid": 3})
    for epochs in ([3], [6], [7]):
        assert configured(folder, section(set={"epochs": 7}, select={"epochs": epochs})).checkpoints
    with pytest.raises(
        UserError, match=r"select.epochs names \[2, 4\], .* every 3 epochs .*wanted multiples of 3, or 7"
    ):
        configured(folder, section(set={"epochs": 7}, select={"epochs": [2, 3, 4]}))


def test_keys_that_say_where_change_nothing(folder):
    first = configured(folder)
    assert differing(first, configured(folder, data_root="elsewhere", device="cpu", gpus=1)) == set()


# ---- hand edits


@pytest.mark.parametrize("name", ["config_train.json", "environment.json", "archive.json", "config_inference.json"])
def test_a_hand_edit_of_a_listed_archive_is_refused_and_kept(name, folder, archive):
    path = archive / "config" / name
    edited = path.read_text().replace("{", '{"mine": 1,', 1)
    path.write_text(edited)
    for dry in (True, False):
        with pytest.raises(UserError, match=rf"{name}: edited by hand, but this archive is listed.*move the change"):
            configured(folder, dry=dry)
    assert path.read_text() == edited
    path.unlink()
    configured(folder)
    assert "mine" not in path.read_text(), "a deleted file is written again"


def test_a_hand_edit_that_the_recipe_now_says_too_is_taken(folder, archive):
    path = archive / "config/config_train.json"
    conf = {**json.loads(path.read_text()), "learning_rate": 0.5}
    path.write_text(json.dumps(conf, indent=4) + "\n")
    write_recipe(folder / "recipe", conf)
    configured(folder)


# ---- set


def test_what_is_set_is_kept_until_it_is_set_again(folder):
    for given, epochs in [({"epochs": "6"}, 6), ({}, 6), ({"threads": 2}, 6), ({"epochs": 7}, 7), ({}, 7)]:
        assert configured(folder, set=given).settings["epochs"] == epochs
        assert configured(folder, dry=True, set={"epochs": 99}).settings["epochs"] == 99, "a dry run keeps nothing"
    assert configured(folder).settings["threads"] == 2
    assert read_effective(str(folder / "archives/a"), "train")["epochs"] == 7


def test_what_is_set_goes_over_the_archives_own_section(folder):
    given = section(set={"epochs": 5})
    assert configured(folder, given).settings["epochs"] == 5
    assert configured(folder, given, set={"epochs": 6}).settings["epochs"] == 6


def test_a_kept_variable_that_the_recipe_dropped_is_told_with_the_file_to_mend(folder, archive):
    write_recipe(folder / "recipe", recipe() | {"width": 3})
    configured(folder, set={"width": 4})
    write_recipe(folder / "recipe", recipe())
    with pytest.raises(UserError, match=r"archive\.json: kept from an earlier set: no variable 'width'.*under 'kept'"):
        configured(folder)
    path = Path(layout.archive_json(str(archive)))
    mended = json.loads(path.read_text())
    del mended["kept"]["width"]
    path.write_text(json.dumps(mended, indent=4) + "\n")
    assert configured(folder).spec["kept"] == {}


# ---- an archive that is merely on disk


def on_disk(archive: Path, folder: Path, **changes):
    return configure(str(archive), None, Globals(changes=changes, cache_dir=str(folder / "cache")))


def test_a_copy_is_configured_from_its_own_files_to_the_same(folder, archive):
    listed = configured(folder, section(select={"epochs": [2]}), set={"epochs": 6})
    copy = shutil.copytree(archive, folder / "copy")
    shutil.rmtree(folder / "recipe")
    found = on_disk(copy, folder)
    assert found.changed == set() and prints(found) == prints(listed) and found.data_root == str(folder)


def test_a_hand_edit_of_a_copy_counts(folder, archive):
    before = on_disk(archive, folder)
    path = archive / "config/config_train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "learning_rate": 0.5}))
    assert differing(before, on_disk(archive, folder)) == UNGROUPED - {"splits"}
    assert on_disk(archive, folder, epochs=8).settings["epochs"] == 8
    assert on_disk(archive, folder).settings["epochs"] == 8


@pytest.mark.parametrize("name", ["archive.json", "config_train.json"])
def test_a_copy_keeps_the_layout_of_its_own_files(name, folder, archive):
    before, path = on_disk(archive, folder), archive / "config" / name
    path.write_text(json.dumps(reordered(json.loads(path.read_text()))))
    mine = path.read_text()
    after = on_disk(archive, folder)
    assert prints(after) == prints(before) and path.read_text() == mine


def given_splits(folder: Path, count: int) -> str:
    path = folder / "splits.json"
    path.write_text(json.dumps([{"train": ["a"], "validation": ["b"], "test": ["c"]}] * count))
    return str(path)


def test_a_copy_keeps_the_splits_that_were_given(folder):
    listed = configured(folder, splits=given_splits(folder, 3))
    assert listed.split_numbers == [0, 1, 2] and listed.groups == ["test"]
    (folder / "splits.json").unlink()
    found = on_disk(folder / "archives/a", folder)
    assert prints(found) == prints(listed) and found.split_numbers == [0, 1, 2]


def test_given_splits_that_are_no_longer_asked_for_do_not_count(folder):
    drawn = configured(folder)
    configured(folder, splits=given_splits(folder, 2))
    assert prints(configured(folder)) == prints(drawn) == prints(on_disk(folder / "archives/a", folder))


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ({"train": ["a"], "val": ["b"]}, 1),
        ([{"train": ["a"], "validation": ["b"]}] * 3, 3),
        ({"splits": [{"train": ["a"], "validation": ["b"]}] * 2}, 2),
        ({"training": [{"image": i, "fold": i % 4} for i in range(8)]}, 4),
    ],
)
def test_every_form_of_given_splits_is_counted(content, count, folder):
    (folder / "s.json").write_text(json.dumps(content))
    assert configured(folder, splits=str(folder / "s.json")).split_numbers == list(range(count))


def test_in_which_order_given_splits_name_cases_means_nothing(folder):
    path = folder / "splits.json"
    sides = {"train": ["a", "b"], "validation": ["c"]}
    path.write_text(json.dumps([sides]))
    first = configured(folder, splits=str(path))
    path.write_text(json.dumps({"val": ["c"], "train": ["b", "a"]}))
    assert prints(configured(folder, splits=str(path))) == prints(first)
    path.write_text(json.dumps([{"train": ["a"], "validation": ["c", "b"]}]))
    assert differing(first, configured(folder, splits=str(path))) == UNGROUPED


def test_a_given_split_that_is_added_changes_no_other(folder):
    path = folder / "splits.json"
    sides = [
        {"train": ["a", "b"], "validation": ["c"], "test": ["d"]},
        {"train": ["c"], "validation": ["a"], "test": ["d"]},
    ]
    path.write_text(json.dumps(sides[:1]))
    first = configured(folder, splits=str(path))
    path.write_text(json.dumps(sides))
    more = configured(folder, splits=str(path))
    assert differing(first, more, "test") == {"splits", "ensemble", "ensemble evaluation"} and more.split_numbers == [
        0,
        1,
    ]
    assert first.fingerprint("training", 0) != more.fingerprint("training", 1)
    path.write_text(json.dumps([{**sides[0], "test": ["e"]}]))
    assert differing(first, configured(folder, splits=str(path)), "test") == {
        "splits",
        "evaluation",
        *SCORED,
    }


def nested(*tests: list[str]) -> list[dict]:
    return [{"train": ["a"], "validation": ["b"], "test": test} for test in tests]


def given(folder: Path, splits: list[dict], **changes):
    path = folder / "splits.json"
    path.write_text(json.dumps(splits))
    return configured(folder, section(**changes), splits=str(path))


def test_test_lists_that_differ_are_groups_of_their_own_splits(folder):
    found = given(folder, [*nested(["c"], ["d"]), {"train": ["a"], "validation": ["b"]}], test={"groups": HELD})
    assert found.groups == ["held", "test_0", "test_1"] and found.own_groups == {"test_0": 0, "test_1": 1}
    assert [found.groups_of(k) for k in range(3)] == [["held", "test_0"], ["held", "test_1"], ["held"]]
    assert [found.splits_of(g) for g in found.groups] == [[0, 1, 2], [0], [1]]
    archive = str(folder / "archives/a")
    held = contents_of(archive)
    assert held.groups == found.groups and held.own_groups == found.own_groups
    assert inference_key(archive) == "test"
    assert given(folder, nested(["./c", "d"], [{"image": "d"}, "c"])).groups == ["test"]


def test_a_split_with_test_cases_of_its_own_that_is_added_changes_no_other(folder):
    first = given(folder, nested(["c"], ["d"]))
    more = given(folder, nested(["c"], ["d"], ["e"]))
    one_more = {"splits", "ensemble", "ensemble evaluation"}
    assert differing(first, more, "test_0") == one_more and more.groups == ["test_0", "test_1", "test_2"]
    other = given(folder, nested(["c"], ["e"]))
    assert differing(first, other, "test_0") == {"splits"}, "also the published model is scored on its own split's"
    assert first.fingerprint("evaluation", "test_1", 1) != other.fingerprint("evaluation", "test_1", 1)
    assert first.fingerprint("training", 1) == other.fingerprint("training", 1)
    mine = given(folder, nested(["e"], ["d"]))
    assert differing(first, mine, "test_0") == {"splits", "evaluation", *SCORED} - {"ensemble evaluation"}


def test_test_lists_that_come_to_differ_are_tested_anew_and_nothing_else_is_made(folder):
    first, second = given(folder, nested(["c"], ["c"])), given(folder, nested(["c"], ["d"]))
    assert first.groups == ["test"] and second.groups == ["test_0", "test_1"]
    assert differing(first, second) == {"splits", "ensemble evaluation"}
    assert first.fingerprint("evaluation", "test", 0) != second.fingerprint("evaluation", "test_0", 0)


def test_what_is_published_is_meant_for_validation_cases_where_only_other_splits_are_tested(folder):
    splits = [{"train": ["a"], "validation": ["b"]}, *nested(["c"])]
    first = given(folder, splits)
    assert inference_key(first.archive) == "validation"
    second = given(folder, splits, publish=1)
    assert inference_key(second.archive) == "test"
    assert first.fingerprint("export", 0) != second.fingerprint("export", 0)


def inference_key(archive: str) -> str:
    """The list of the datalist that the bundle's inference.json takes."""
    return inference_config(archive)["datalist_key"]


HELD = {"held": {"from": "test"}}


@pytest.mark.parametrize("group", ["test_1", "test"])
@pytest.mark.parametrize("definition", [{"from": "test"}, {"count": 2}])
def test_a_group_may_not_have_the_name_of_given_test_cases(group, definition, folder):
    splits = nested(["c"], ["d"] if group == "test_1" else ["c"])
    with pytest.raises(UserError, match=f"archives/a: test.groups has {group}, the name of the test cases"):
        given(folder, splits, test={"groups": {group: definition}})
    given(folder, splits, test={"groups": {"test_7": {"from": "test"}}})


# ---- data


@pytest.fixture
def checked(folder):
    """An archive whose dataset was made and checked."""
    spec = {"cases": 4, "test_cases": 0, "shape": [8, 8], "spacing": [1, 1], "channels": 1, "classes": 2, "seed": 0}
    synthesize_dataset(str(folder / "data"), spec)
    configured(folder)
    steps.check_data(str(folder / "archives/a"), 1, str(folder / "cache"))
    return folder


def change_image(folder: Path) -> bytes:
    path = next((folder / "data/imagesTr").iterdir())
    before = path.read_bytes()
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(numpy.asarray(image.dataobj) + 1, image.affine, image.header), path)
    return before


def test_moving_the_data_changes_nothing(checked):
    before = configured(checked)
    (checked / "moved").mkdir()
    (checked / "data").rename(checked / "moved/data")
    assert differing(before, configured(checked, data_root=str(checked / "moved"))) == set()


@pytest.mark.parametrize("checked_between", [False, True])
def test_a_changed_image_changes_the_fingerprints_and_its_revert_restores_them(checked_between, checked):
    first = configured(checked)
    original = change_image(checked)
    assert configured(checked, dry=True).changed == {"files"}
    assert differing(first, configured(checked)) == UNGROUPED
    if checked_between:
        steps.check_data(str(checked / "archives/a"), 1, str(checked / "cache"))
        assert differing(first, configured(checked)) == UNGROUPED
    next((checked / "data/imagesTr").iterdir()).write_bytes(original)
    for _ in range(2):
        assert differing(first, configured(checked)) == set()


def test_a_list_that_says_otherwise_changes_the_fingerprints_one_that_is_written_otherwise_does_not(checked):
    first, path = configured(checked), checked / "data/dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content, indent=3))
    assert differing(first, configured(checked)) == set()
    path.write_text(json.dumps({**content, "training": content["training"][1:]}))
    assert differing(first, configured(checked)) == UNGROUPED


# ---- what only tests read


GROUPS = {"own": {"from": "test"}, "other": {"list": "data/other.json"}}


def concerning(group: str) -> dict[str, set[str]]:
    """What changes, seen from each group, where the cases of one do."""
    return {g: {"splits", *SCORED} | ({"evaluation"} if g == group else set()) for g in GROUPS}


@pytest.fixture
def tested(folder):
    """An archive with a test group from its list's own test cases and one from another list; both were checked."""
    spec = {"cases": 4, "test_cases": 3, "shape": [8, 8], "spacing": [1, 1], "channels": 1, "classes": 2, "seed": 0}
    synthesize_dataset(str(folder / "data"), spec)
    content = json.loads((folder / "data/dataset.json").read_text())
    *own, other = content["test"]
    (folder / "data/dataset.json").write_text(json.dumps({**content, "test": own}))
    (folder / "data/other.json").write_text(json.dumps({**content, "training": [other], "test": []}))
    configure_tested(folder)
    steps.check_data(str(folder / "archives/a"), 1, str(folder / "cache"))
    return folder


def configure_tested(folder: Path):
    return configured(folder, section(test={"groups": GROUPS}))


@pytest.mark.parametrize(
    ("name", "group"),
    [("imagesTs/case_005.nii.gz", "own"), ("labelsTs/case_006.nii.gz", "own"), ("imagesTs/case_007.nii.gz", "other")],
)
def test_another_file_of_a_test_case_concerns_its_own_group(name, group, tested):
    first, path = configure_tested(tested), tested / "data" / name
    image = nibabel.load(path)
    original = path.read_bytes()
    nibabel.save(nibabel.Nifti1Image(numpy.asarray(image.dataobj) + 1, image.affine, image.header), path)
    assert {g: differing(first, configure_tested(tested), g) for g in GROUPS} == concerning(group)
    path.write_bytes(original)
    assert {g: differing(first, configure_tested(tested), g) for g in GROUPS} == {g: set() for g in GROUPS}


def drop_case(path: Path, key: str) -> None:
    content = json.loads(path.read_text())
    content[key].pop()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "key", "group"), [("dataset.json", "test", "own"), ("other.json", "training", "other")]
)
def test_another_list_of_test_cases_concerns_its_own_group(name, key, group, tested):
    first, path = configure_tested(tested), tested / "data" / name
    original = path.read_text()
    content = json.loads(original)
    content[key].append({**content[key][0], "case": "again"})
    path.write_text(json.dumps(content))
    assert {g: differing(first, configure_tested(tested), g) for g in GROUPS} == concerning(group)
    path.write_text(original)
    assert {g: differing(first, configure_tested(tested), g) for g in GROUPS} == {g: set() for g in GROUPS}


def test_a_training_case_changes_everything_also_beside_test_lists(tested):
    first = configure_tested(tested)
    drop_case(tested / "data/dataset.json", "training")
    assert differing(first, configure_tested(tested)) == UNGROUPED


@pytest.mark.parametrize("name", ["cases.tsv", "dataset.json"])
def test_a_damaged_result_of_the_data_check_is_told_with_what_to_do(name, checked):
    path = checked / "archives/a/data" / name
    path.write_bytes(path.read_bytes()[:100] + b"\xff")
    with pytest.raises(UserError, match="damaged.*delete both to have the data checked again"):
        configured(checked)


# ---- which value counts, and where it is recorded

OF_PLACE = {"config": 0.125, "environment": 0.25, "section": 0.5, "call": 0.75}
"""The learning rate that each place says, in the order of their rank."""


@pytest.mark.parametrize(
    ("lower", "higher"), [(a, b) for i, a in enumerate(OF_PLACE) for b in list(OF_PLACE)[i + 1 :]], ids=" < ".join
)
def test_of_two_places_the_later_counts_and_the_archive_records_its_value(lower, higher, tmp_path):
    said = {place: OF_PLACE[place] for place in (lower, higher)}
    conf = recipe()
    del conf["learning_rate"]
    conf |= {"learning_rate": said["config"]} if "config" in said else {}
    environment = {"learning_rate": said["environment"]} if "environment" in said else {}
    write_recipe(tmp_path / "recipe", conf, environment)
    given = section(set={"learning_rate": said["section"]} if "section" in said else {})
    # A value of a command line is text; what is recorded is a number.
    call = {"set": {"learning_rate": str(said["call"])}} if "call" in said else {}
    found = configured(tmp_path, given, **call)
    archive = str(tmp_path / "archives/a")
    assert found.settings["optimizer"]["args"]["lr"] == said[higher]
    assert read_effective(archive, "train")["optimizer"]["args"]["lr"] == said[higher]
    recorded = json.loads(Path(layout.effective_variables(archive)).read_text())
    assert recorded["learning_rate"] == said[higher] and type(recorded["learning_rate"]) is float


def test_every_variable_is_recorded_typed_with_its_default_and_without_places(folder):
    texts = {"epochs": "7", "amp": "true", "clip_grad_norm": "1e-1", "deterministic": "False", "width": "16"}
    write_recipe(folder / "recipe", recipe() | {"width": 8}, {"threads": 2, "DATA_ROOT": "/elsewhere"})
    configured(folder, set=texts)
    archive = str(folder / "archives/a")
    recorded = json.loads(Path(layout.effective_variables(archive)).read_text())
    wanted = {"epochs": 7, "amp": True, "clip_grad_norm": 0.1, "deterministic": False, "width": 16, "threads": 2}
    assert wanted.items() <= recorded.items() and {k: type(recorded[k]) for k in wanted} == {
        k: type(v) for k, v in wanted.items()
    }
    assert recorded["dont_load_ts_model"] is False and list(recorded) == sorted(recorded)
    assert not {"DATA_ROOT", "DATASET_JSON"} & recorded.keys()
    conf = json.loads(Path(layout.mmar_config(archive, "config_train.json")).read_text())
    assert (conf["epochs"], conf["amp"], conf["width"]) == (7, True, 16)


@pytest.mark.parametrize("name", ["unet_small", "hippocampus", "adrenal", "regression_small"])
def test_the_mmar_checker_finds_no_fault_in_the_configurations_of_the_examples(name, tmp_path):
    checker = REPO.parent / "shared/conformance/check_mmar.py"
    if not checker.is_file():
        pytest.skip("check_mmar.py is not beside the project")
    task = {"adrenal": "classification", "regression_small": "regression"}.get(name, "segmentation")
    shutil.copytree(REPO / "config/recipes" / name, tmp_path / "recipe")
    configured(tmp_path, section(dataset={"task": task}, select={"best": None}))
    command = [sys.executable, str(checker), str(tmp_path / "archives/a"), "--strict", "--no-models", "--no-eval"]
    done = subprocess.run([*command, "--tasks", task], capture_output=True, text=True)
    lines = [
        line for line in done.stdout.splitlines() if re.match("(ok|FAIL|WARN|SKIP) .*(config_|environment.json)", line)
    ]
    assert len(lines) > 40
    assert [line for line in lines if not line.startswith("ok") and "commands/" not in line] == []


# ---- exports on request


def test_what_is_exported_on_request_touches_no_other_product(folder):
    first = configured(folder)
    more = configured(folder, section(export={"formats": ["onnx", "pt2"]}, ensemble=True))
    assert differing(first, more) == set() and more.changed == set()
    assert more.formats == ["onnx", "pt2"] and more.spec["ensemble"]


def test_an_ensemble_of_one_split_is_refused(folder):
    with pytest.raises(UserError, match=r"archives/a: an ensemble is the mean of several splits.*has one split.*kfold"):
        configured(folder, section(splits={"method": "holdout", "holdout": 2}, ensemble=True))


def test_an_unknown_format_is_refused(folder):
    with pytest.raises(Exception, match=r"formats.*tflite.*onnx.*pt2"):
        configured(folder, section(export={"formats": ["tflite"]}))
