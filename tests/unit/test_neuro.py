"""BIDS and CAPS trees as sources of cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import armarium
import pytest
import yaml
from armarium.changes import list_digests
from armarium.config import check
from armarium.dataset import Case, read_dataset, with_test_lists
from armarium.errors import Problems, UserError

from tests.trees import LINEAR, PAIRS, describe, write, write_bids, write_caps, write_table

SEGMENTED = {"folder": "derivatives/manual", "suffix": "dseg", "entities": {"desc": "manual"}}
MPRAGE = {"acq": "mprage"}


def section(kind="bids", task="segmentation", **more) -> dict:
    """A dataset's section as the configuration is read, with its defaults."""
    if kind == "bids":
        more = {"folder": "ds", "suffix": "T1w", "entities": MPRAGE, **more}
        more |= {"label": SEGMENTED} if task == "segmentation" and "label" not in more else {}
    classes = {"0": "CN", "1": "AD"} if task == "classification" else {"0": "background", "1": "lesion"}
    target = {"target": "diagnosis"} if task == "classification" else {}
    given = {kind: {"folder": "caps", **more}, "task": task, "labels": classes, **target}
    return check({"archives": {"a": {"recipe": "r", "dataset": given}}}, "config", "test")["archives"]["a"]["dataset"]


def taken(table: str, **more) -> dict:
    """A BIDS dataset's section that takes over these columns of its tables."""
    spec = section(**more)
    return {**spec, "bids": {**spec["bids"], "columns": table.split()}}


@pytest.fixture
def root(tmp_path):
    write_bids(tmp_path / "ds")
    return tmp_path


def problems_of(spec, root) -> str:
    with pytest.raises(UserError) as raised:
        read_dataset(spec, str(root))
    return str(raised.value)


def image(participant, session="ses-M000", entities="acq-mprage_run-01"):
    return f"ds/{participant}/{session}/anat/{participant}_{session}_{entities}_T1w.nii.gz"


# ---- BIDS


def test_images_are_chosen_by_datatype_suffix_and_entities_and_labels_come_from_derivatives(root):
    dataset = read_dataset(section(), str(root))
    assert [(c.participant_id, c.session_id) for c in dataset.cases] == sorted(PAIRS)
    folder = "ds/derivatives/manual/sub-01/ses-M000/anat"
    assert dataset.cases[0] == Case(
        "sub-01_ses-M000",
        "sub-01",
        "ses-M000",
        (image("sub-01"),),
        f"{folder}/sub-01_ses-M000_desc-manual_dseg.nii.gz",
        {"diagnosis": "CN", "sex": "F", "age": "60", "mmse": "30"},
        "training",
    )
    assert dataset.cases[1].columns["mmse"] == "29", "of the session"
    assert dataset.facts == {"name": "Small", "licence": "CC0"} and dataset.modality == {0: "T1w"}


@pytest.mark.parametrize("run", [1, "1", "01"])
def test_an_index_counts_by_its_number(root, run):
    assert len(read_dataset(section(entities={"run": run}), str(root)).cases) == len(PAIRS)


def test_null_wants_an_entity_absent(root):
    cases = read_dataset(section(entities={"run": None}), str(root)).cases
    assert cases[0].images == (image("sub-01", entities="acq-fast"),)


def test_sessions_are_chosen_by_their_entity(root):
    cases = read_dataset(
        section(entities={**MPRAGE, "ses": "M012"}, participants="year.tsv"), write_year(root, "sub-01", "02", "03")
    ).cases
    assert {c.session_id for c in cases} == {"ses-M012"}


def write_year(root, *participants) -> str:
    write_table(root / "ds/year.tsv", [("participant_id",), *((p,) for p in participants)])
    return str(root)


def test_several_suffixes_are_channels(root):
    for participant, session in PAIRS:
        write(root / image(participant, session, "acq-space_run-1").replace("T1w", "FLAIR"), b"")
    entities = {"acq": ["mprage", "space"], "run": 1}
    dataset = read_dataset(section(suffix=["T1w", "FLAIR"], entities=entities), str(root))
    assert dataset.cases[0].images == (
        image("sub-01"),
        image("sub-01", entities="acq-space_run-1").replace("T1w", "FLAIR"),
    )
    assert dataset.modality == {0: "T1w", 1: "FLAIR"}


def test_the_target_is_a_column_of_the_participants_or_of_their_sessions(root):
    cases = read_dataset(section(task="classification"), str(root)).cases
    assert [c.label for c in cases[:3]] == [0, 0, 1] and "diagnosis" not in cases[0].columns
    for i in range(1, 9):
        sessions = [s for p, s in PAIRS if p == f"sub-0{i}"]
        rows = [(s, ("AD", "CN")[k]) for k, s in enumerate(sessions)]
        write_table(root / f"ds/sub-0{i}/sub-0{i}_sessions.tsv", [("session_id", "diagnosis"), *rows])
    cases = read_dataset(section(task="classification"), str(root)).cases
    assert [c.label for c in cases[:3]] == [1, 0, 1]


def test_without_sessions_it_is_the_first_one_that_clinicadl_gives(tmp_path):
    describe(tmp_path / "ds", DatasetType="raw")
    write(tmp_path / "ds/sub-A1/anat/sub-A1_T1w.nii", b"")
    write_table(tmp_path / "ds/participants.tsv", [("participant_id", "diagnosis"), ("sub-A1", "AD")])
    (case,) = read_dataset(section(task="classification", entities={}), str(tmp_path)).cases
    assert (case.case, case.session_id, case.label) == ("sub-A1_ses-M000", "ses-M000", 1)


def test_a_table_of_ones_own_chooses_and_keeps_the_columns_of_the_dataset(root):
    rows = [("participant_id", "session_id", "site"), ("sub-01", "ses-M012", "x"), ("sub-04", "M000", "y")]
    write_table(root / "tables/train.tsv", rows)
    cases = read_dataset(section(participants="../tables/train.tsv"), str(root)).cases
    assert [(c.case, c.columns["site"], c.columns["sex"]) for c in cases] == [
        ("sub-01_ses-M012", "x", "F"),
        ("sub-04_ses-M000", "y", "M"),
    ]


def test_a_column_subset_makes_lists(root):
    rows = [("participant_id", "subset"), *((f"sub-0{i}", "test" if i > 6 else "train") for i in range(1, 9))]
    write_table(root / "ds/parts.tsv", rows)
    cases = read_dataset(section(participants="parts.tsv"), str(root)).cases
    assert [c.subset for c in cases] == ["training"] * 9 + ["test"] * 2 and "subset" not in cases[0].columns


def test_only_cases_of_test_may_lack_a_label(root):
    path = root / "ds/participants.tsv"
    rows = path.read_text().replace("diagnosis", "subset").replace("CN", "train").replace("AD", "test")
    path.write_text(rows)
    for participant in ("sub-02", "sub-04"):
        label = f"{participant}/ses-M000/anat/{participant}_ses-M000_desc-manual_dseg.nii.gz"
        (root / "ds/derivatives/manual" / label).unlink()
    cases = {c.case: c.label for c in read_dataset(section(), str(root)).cases}
    assert len(cases) == len(PAIRS) and cases["sub-02_ses-M000"] is None
    path.write_text(rows.replace("sub-02\ttest", "sub-02\ttrain"))
    assert "ds: 1 problem\n  - sub-02 ses-M000: found no label file" in problems_of(section(), root)


def test_a_study_keeps_its_participants_below_sourcedata(tmp_path):
    write_bids(tmp_path / "ds/sourcedata/raw")
    describe(tmp_path / "ds", DatasetType="study")
    spec = section(label={**SEGMENTED, "folder": "sourcedata/raw/derivatives/manual"})
    assert len(read_dataset(spec, str(tmp_path)).cases) == len(PAIRS)


def test_linked_files_are_read_as_those_of_a_list_are(root):
    """As git-annex and DataLad keep them."""
    store = root / "store/content"
    write(store, b"")
    path = root / image("sub-01")
    path.unlink()
    path.symlink_to(store)
    assert len(read_dataset(section(), str(root)).cases) == len(PAIRS)


# ---- CAPS


def test_a_pipeline_gives_its_cropped_images(tmp_path):
    write_caps(tmp_path / "caps")
    spec = section("caps", "classification", preprocessing="t1-linear", participants="../labels.tsv")
    cases = read_dataset(spec, str(tmp_path)).cases
    assert [(c.participant_id, c.session_id) for c in cases] == sorted(PAIRS)
    assert cases[0].images == (f"caps/subjects/sub-01/ses-M000/t1_linear/sub-01_ses-M000_{LINEAR}_T1w.nii.gz",)


@pytest.mark.parametrize(
    ("chosen", "part"),
    [
        ({"preprocessing": "t1-linear", "entities": {"desc": None}}, "Sym_res-1x1x1_T1w"),
        ({"preprocessing": "pet-linear", "entities": {"trc": "18FFDG", "suvr": "pons2"}}, "trc-18FFDG"),
        ({"datatype": "pet_linear", "suffix": "pet", "entities": {"trc": "18FAV45"}}, "trc-18FAV45"),
    ],
)
def test_other_images_of_a_caps(tmp_path, chosen, part):
    write_caps(tmp_path / "caps")
    cases = read_dataset(section("caps", "classification", participants="../labels.tsv", **chosen), str(tmp_path)).cases
    assert len(cases) == len(PAIRS) and all(part in c.images[0] for c in cases)


@pytest.mark.skipif("CLINICADL_PYTHON" not in os.environ, reason="CLINICADL_PYTHON names no Python with ClinicaDL")
def test_clinicadl_finds_the_same_images(tmp_path):
    write_bids(tmp_path / "ds")
    write_caps(tmp_path / "caps")
    code = (
        "import json, sys\n"
        "from clinicadl.io.bids import Bids, BidsFileType, T1Linear, PetLinear\n"
        "kinds = {'ds': BidsFileType(suffix='T1w', data_type='anat', with_entities={'acq': 'mprage', 'run': '01'}),\n"
        " 't1': T1Linear(), 'pet': PetLinear('18FFDG', 'pons2')}\n"
        "found = {}\n"
        "for name, kind in kinds.items():\n"
        " bids = Bids('ds' if name == 'ds' else 'caps')\n"
        " for p, s in bids.get_participants_sessions_with(kind):\n"
        "  found.setdefault(name, []).append([p, s, str(bids.get_path(kind, p, s))])\n"
        "print(json.dumps(found))\n"
    )
    python = os.environ["CLINICADL_PYTHON"]
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    table = {"task": "classification", "participants": "../labels.tsv"}
    pet = {"trc": "18FFDG", "suvr": "pons2"}
    specs = {
        "ds": section(),
        "t1": section("caps", preprocessing="t1-linear", **table),
        "pet": section("caps", preprocessing="pet-linear", entities=pet, **table),
    }
    for name, theirs in json.loads(done.stdout.splitlines()[-1]).items():
        cases = read_dataset(specs[name], str(tmp_path)).cases
        ours = [[c.participant_id, c.session_id, str(tmp_path / c.images[0])] for c in cases]
        assert ours == sorted(theirs)


# ---- the documented examples


def documented(archive: str) -> dict:
    """A whole section of the examples in config/README.md."""
    text = (Path(__file__).parents[2] / "config/README.md").read_text()
    (block,) = [b for b in text.split("\n\n") if b.startswith(f"    archives:\n      {archive}:")]
    return check(yaml.safe_load(block), "config", "config/README.md")["archives"][archive]


def test_the_documented_bids_dataset_is_read(root):
    dataset = read_dataset(documented("lesions")["dataset"], str(root))
    assert len(dataset.cases) == len(PAIRS) and {*dataset.cases[0].columns} == {"sex"}


def test_the_documented_caps_is_read_with_its_test_group(tmp_path):
    write_caps(tmp_path / "caps")
    header = ("participant_id", "session_id", "diagnosis", "sex")
    for name, pairs in {"train": PAIRS[:6], "test": PAIRS[6:8]}.items():
        write_table(tmp_path / f"labels/{name}.tsv", [header, *((*pair, "AD", "F") for pair in pairs)])
    found = documented("dementia")
    dataset = with_test_lists(read_dataset(found["dataset"], str(tmp_path)), found["test"], str(tmp_path))
    assert [(c.participant_id, c.session_id) for c in dataset.cases] == PAIRS[:8]
    assert [(c.label, c.columns) for c in dataset.cases] == [(1, {"sex": "F"})] * 6 + [(1, {})] * 2


# ---- test groups


def groups(**lists) -> dict:
    return {"groups": {name: {"list": path} for name, path in lists.items()}}


def test_test_groups_are_chosen_by_a_table_or_are_another_dataset_or_a_list(root):
    write_table(root / "ds/train.tsv", [("participant_id",), *((f"sub-0{i}",) for i in range(1, 7))])
    write_table(root / "tables/held.tsv", [("participant_id", "session_id"), ("sub-07", "ses-M000")])
    write_bids(root / "other", [("sub-91", "ses-M000")])
    write_table(root / "list.tsv", [("participant_id", "image", "label"), ("x", "a.nii.gz", "b.nii.gz")])
    spec = section(participants="train.tsv")
    test = groups(held="tables/held.tsv", site="other", listed="list.tsv")
    dataset = with_test_lists(read_dataset(spec, str(root)), test, str(root))
    assert [(c.participant_id, c.session_id, c.subset) for c in dataset.cases[9:]] == [
        ("sub-07", "ses-M000", "tables/held.tsv"),
        ("sub-91", "ses-M000", "other"),
        ("sub-x", "ses-M000", "list.tsv"),
    ]
    assert dataset.cases[-2].label.startswith("other/derivatives/manual/sub-91")


# ---- what is wrong, all together


def test_everything_wrong_with_a_tree_is_told_together(root):
    ds = root / "ds"
    (root / image("sub-01", "ses-M012")).rename(root / image("sub-01", "ses-M012", "acq-mprage_run-02"))
    write(root / image("sub-02", entities="acq-mprage_run-02"), b"")
    (ds / "derivatives/manual/sub-03/ses-M000/anat/sub-03_ses-M000_desc-manual_dseg.nii.gz").unlink()
    (root / image("sub-04")).unlink()
    write(ds / "sub-05/ses-M000/anat/sub-06_ses-M000_acq-mprage_T1w.nii.gz", b"")
    write(ds / "sub-06/ses-M000/anat/sub-06_ses-M000_acq-a-b_T1w.nii.gz", b"")
    write(ds / "sub-b@d/anat/sub-b@d_T1w.nii.gz", b"")
    with open(ds / "participants.tsv", "a") as table:
        table.write("sub-01\tCN\tF\t1\nsub-10\tCN\tF\t1\nsub-11\tCN\nsub x\tCN\tF\t1\n")
    text = (ds / "participants.tsv").read_text()
    (ds / "participants.tsv").write_text(text.replace("sub-08\tAD\tM\t67\n", ""))
    found = problems_of(section(), root)
    for part in (
        "sub-02 ses-M000: found 2 files",
        "sub-03 ses-M000: found no label file",
        "participants.tsv: sub-04: found no image",
        "sub-06_ses-M000_acq-mprage_T1w.nii.gz: wanted a BIDS name of sub-05 ses-M000",
        "acq-a-b_T1w.nii.gz: wanted a BIDS name",
        "ds/sub-b@d: folder: found 'sub-b@d', wanted letters and digits only",
        "line 9: sub-01 again (first in line 2)",
        "participants.tsv: sub-10: found no image",
        "line 11: found 2 fields, wanted 4",
        "line 12: participant_id: found 'sub x'",
        "sub-08 ses-M000: has images, but ds/participants.tsv has no row of it",
    ):
        assert part in found, part
    assert "Traceback" not in found and found.startswith("ds: 11 problems")


def test_what_is_wrong_with_those_that_are_not_chosen_does_not_count(root):
    write(root / image("sub-02", entities="acq-mprage_run-02"), b"")
    write(root / "ds/sub-02/ses-M000/anat/sub-03_ses-M000_acq-mprage_T1w.nii.gz", b"")
    write(root / "ds/sub-b@d/anat/sub-b@d_T1w.nii.gz", b"")
    cases = read_dataset(section(participants="year.tsv"), write_year(root, "sub-01", "sub-03")).cases
    assert {c.participant_id for c in cases} == {"sub-01", "sub-03"}


def test_the_data_root_may_be_the_dataset(root):
    cases = read_dataset(section(folder="."), str(root / "ds")).cases
    assert len(cases) == len(PAIRS) and cases[0].images[0] == image("sub-01").removeprefix("ds/")


def test_a_channel_that_a_session_lacks_is_told(root):
    write(root / image("sub-01").replace("T1w", "FLAIR"), b"")
    assert "sub-02 ses-M000: found no anat/*_FLAIR.nii[.gz]" in problems_of(section(suffix=["T1w", "FLAIR"]), root)


def test_two_matches_name_what_tells_them_apart(root):
    found = problems_of(section(entities={}), root)
    assert "acq-fast_T1w.nii.gz" in found and "dataset.bids.entities" in found and found.startswith("ds: 11 problems")


def test_a_row_without_target_is_told(root):
    path = root / "ds/participants.tsv"
    path.write_text(path.read_text().replace("sub-02\tAD", "sub-02\tn/a"))
    assert "sub-02 ses-M000: found no value in column 'diagnosis'" in problems_of(section(task="classification"), root)


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        (section(folder="ds/sub-01"), "not a BIDS dataset"),
        (section(folder="caps"), "name it as dataset.caps"),
        (section("caps", folder="ds", task="classification", preprocessing="t1-linear"), "name it as dataset.bids"),
        (section("caps", task="classification"), "wanted datatype and suffix, or preprocessing"),
        (section("caps", task="classification", preprocessing="t1-linear", suffix="T1w"), "leave one of them out"),
        (section("caps", task="classification", preprocessing="pet-linear"), "pet-linear needs trc and suvr"),
        (
            section(suffix="T2w"),
            "found no anat/*_T2w.nii[.gz] with acq: mprage; there are sub-01_ses-M000_acq-fast_T1w",
        ),
        (section(folder="../ds"), "leaves the data folder"),
        (section(datatype="../../sub-02/ses-M000/anat"), "leaves the data folder"),
        (section(label={"suffix": "dseg", "folder": "../../x"}), "leaves the data folder"),
        (section(label={"suffix": "dseg", "folder": "derivatives"}), "found no dataset_description.json"),
        (section(participants="none.tsv"), "ds/none.tsv: no such file"),
        (section(task="classification", label=SEGMENTED), "wanted no label"),
        (section(suffix="T1w.nii"), "wanted letters and digits"),
        (taken("sex weight"), "dataset.bids.columns: found the columns participant_id"),
    ],
)
def test_a_section_that_fits_no_tree_is_told(root, spec, part):
    write_caps(root / "caps")
    assert part in problems_of(spec, root)


def test_a_target_that_no_table_has_is_told(root):
    spec = {**section(task="classification"), "target": "dx"}
    write(root / image("sub-02", entities="acq-mprage_run-02"), b"")
    found = problems_of(spec, root)
    assert "dataset.target: found the columns" in found and "sub-02 ses-M000: found 2 files" in found


@pytest.mark.parametrize(
    ("dataset", "part"),
    [
        ({"list": "a.json", "target": "age"}, "a segmentation's labels are files"),
        ({"task": "segmentation"}, "found none of list, bids, caps; wanted exactly one"),
        ({"list": "a.json", "bids": {"folder": "ds", "suffix": "T1w"}}, "found list and bids of"),
        ({"bids": {"folder": "ds", "suffix": "T1w"}, "synthesize": {}}, "synthesize, which makes a list"),
        ({"bids": {"folder": "ds"}}, "missing key suffix"),
        ({"bids": {"folder": "ds", "sufix": "T1w"}}, "did you mean 'suffix'?"),
        ({"caps": {"folder": "ds", "preprocessing": "t1-liner"}}, "did you mean 't1-linear'?"),
    ],
)
def test_exactly_one_source_of_known_keys(dataset, part):
    if dataset.get("synthesize") == {}:
        dataset = {**dataset, "synthesize": {"cases": 4}}
    with pytest.raises(Problems, match=part.replace("?", r"\?")):
        check({"archives": {"a": {"recipe": "r", "dataset": dataset}}}, "config", "config.yaml")


@pytest.mark.parametrize("odd", ["acq-a b", "acq-a\nb", "acq-ä", "acq-\udcff", "acq-", "acq-a_acq-b", "sub-02"])
def test_odd_names_are_refused_in_words(root, odd):
    (root / image("sub-01")).rename(root / image("sub-01", entities=odd))
    found = problems_of(section(), root)
    assert found.isprintable() or "\n" in found
    assert "T1w.nii.gz: wanted a BIDS name of sub-01 ses-M000" in found and "rename it" in found
    found.encode()


# ---- content decides, and planning stays light


def test_only_what_a_tree_says_of_the_cases_counts(root):
    spec = taken("sex")
    first = list_digests(read_dataset(spec, str(root)))
    table = root / "ds/participants.tsv"
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    reordered = [[r[2], r[0], r[1], r[3].replace("61", "99")] for r in (rows[0], *reversed(rows[1:]))]
    write_table(table, reordered)
    write(root / image("sub-01", entities="acq-other"), b"")
    write(root / "ds/sub-01/ses-M000/func/sub-01_ses-M000_task-rest_bold.nii.gz", b"")
    assert list_digests(read_dataset(spec, str(root))) == first
    reordered[1][0] = "F" if reordered[1][0] == "M" else "M"
    write_table(table, reordered)
    assert list_digests(read_dataset(spec, str(root))) != first


def test_no_pickle_of_a_dataset_is_loaded_and_nothing_heavy_imported(root):
    write(root / "ds/.ancpbids-dataset.pickle", b"cos\nsystem\n(S'touch run'\ntR.")
    code = (
        "import sys, json; from armarium.dataset import read_dataset\n"
        "assert not {'armarium.neuro', 'ancpbids'} & sys.modules.keys()\n"
        "read_dataset(json.loads(sys.argv[1]), '.')\n"
        "print({'torch', 'pandas', 'numpy'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code, json.dumps(section())]
    environment = {**os.environ, "PYTHONPATH": str(Path(armarium.__file__).parents[1])}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
    assert not (root / "run").exists()
