"""DATASET_JSON: Clara Train's data split file divides an archive's cases."""

from __future__ import annotations

import json
import shutil

from armarium.configure import Globals, configure
from armarium.files import read_json
from tiny import configured, section, write_recipe

LISTED = {
    "label_format": [1],
    "training": [{"image": "images/a.nii.gz", "label": [1]}, {"image": "images/b.nii.gz", "label": [0]}],
    "validation": [{"image": "images/c.nii.gz", "label": [1]}],
    "test": [{"image": "images/d.nii.gz", "label": [0]}],
}


def test_a_datalist_takes_the_place_of_the_splits_of_a_listed_archive_and_is_kept(tmp_path):
    write_recipe(tmp_path / "recipe")
    assert configured(tmp_path).split_numbers == [0, 1]
    (tmp_path / "plco.json").write_text(json.dumps(LISTED))
    held = configured(tmp_path, set={"DATASET_JSON": str(tmp_path / "plco.json")})
    (tmp_path / "plco.json").unlink()
    assert held.split_numbers == [0] and held.groups == ["test"] and held.spec["splits"]["method"] == "file"
    again = configured(tmp_path)
    assert not again.rewritten, "the archive has its own copy"
    given = json.loads(again.effective["split"])["given"]
    assert [e["image"] for e in given[0]["train"]] == ["images/a.nii.gz", "images/b.nii.gz"]
    spec = read_json(tmp_path / "archives/a/config/archive.json")
    assert spec["kept"] == {"DATASET_JSON": "config/splits.json"}
    assert str(tmp_path) not in json.dumps(spec["splits"])


def test_a_datalist_divides_the_cases_of_an_archive_on_disk(tmp_path):
    write_recipe(tmp_path / "recipe")
    configured(tmp_path, section(publish=0))
    clone = str(tmp_path / "clone")
    shutil.copytree(tmp_path / "archives/a", clone)
    (tmp_path / "plco.json").write_text(json.dumps(LISTED))
    given = Globals(changes={"DATASET_JSON": str(tmp_path / "plco.json")}, cache_dir=str(tmp_path / "cache"))
    assert configure(clone, None, given).split_numbers == [0]
    assert not configure(clone, None, Globals(cache_dir=str(tmp_path / "cache"))).rewritten
