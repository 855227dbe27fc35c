"""Reading datalists and tables."""

from __future__ import annotations

import json
import re

import pytest
from armarium.dataset import Case, dataset_files, read_dataset, with_test_lists
from armarium.errors import Problems, UserError

LABELS = {"0": "background", "1": "a structure"}


def spec(path="set/dataset.json", task="segmentation", **more):
    return {"list": path, "task": task, "columns": {}, "labels": None, "channels": None, **more}


def write_datalist(root, training=(), path="set/dataset.json", **more):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    content = {"labels": LABELS, "modality": {"0": "MRI"}, "training": training, **more}
    (root / path).write_text(json.dumps(content))
    return str(root)


def write_table(root, text, path="x.tsv"):
    (root / path).write_text(text.strip().replace(" | ", "\t") + "\n")
    return str(root)


def pair(name, part="Tr"):
    return {"image": f"./images{part}/{name}.nii.gz", "label": f"./labels{part}/{name}.nii.gz"}


def test_msd_datalist_gives_cases_relative_to_the_data_root(tmp_path):
    root = write_datalist(
        tmp_path,
        [pair("brain_007")],
        test=["./imagesTs/brain_008.nii.gz"],
        licence="CC-BY-SA 4.0",
        relase="1.0",
        reference=" Somewhere",
        numTraining=1,
    )
    dataset = read_dataset(spec(), root)
    assert dataset.cases[0] == Case(
        "brain_007",
        "sub-brain007",
        "ses-M000",
        ("set/imagesTr/brain_007.nii.gz",),
        "set/labelsTr/brain_007.nii.gz",
        {},
        "training",
    )
    assert (dataset.cases[1].subset, dataset.cases[1].label) == ("test", None)
    assert dataset.labels == {0: "background", 1: "a structure"}
    assert dataset.facts == {
        "licence": "CC-BY-SA 4.0",
        "release": "1.0",
        "reference": "Somewhere",
        "name": "set",
    }
    assert dataset.header()["modality"] == {"0": "MRI"}
    assert dataset_files(dataset) == [
        "set/imagesTr/brain_007.nii.gz",
        "set/labelsTr/brain_007.nii.gz",
        "set/imagesTs/brain_008.nii.gz",
    ]


@pytest.mark.parametrize("key", ["test", "testing"])
def test_both_names_of_the_test_list_and_both_spellings_of_licence(tmp_path, key):
    dataset = read_dataset(spec(), write_datalist(tmp_path, [pair("a")], **{key: [pair("b", "Ts")]}, license="X"))
    assert [c.subset for c in dataset.cases] == ["training", "test"]
    assert dataset.facts["licence"] == "X"


def test_several_image_files_are_channels_of_one_case(tmp_path):
    entry = {"image": ["i/p1_0000.nii.gz", "i/p1_0001.nii.gz"], "label": ["l/p1.nii.gz"]}
    case = read_dataset(spec(), write_datalist(tmp_path, [entry], modality={"0": "T1", "1": "T2"})).cases[0]
    assert (case.case, case.images[1], case.label) == ("p1", "set/i/p1_0001.nii.gz", "set/l/p1.nii.gz")


def test_classes_may_be_indices_or_names(tmp_path):
    entries = [{"image": f"{i}.nii", "label": label} for i, label in enumerate([1, "background", "1", 0.0])]
    dataset = read_dataset(spec(task="classification"), write_datalist(tmp_path, entries))
    assert [c.label for c in dataset.cases] == [1, 0, 1, 0]


def test_equal_basenames_get_longer_names(tmp_path):
    root = write_datalist(tmp_path, [pair("a"), {"image": "other/A.nii.gz", "label": "other/l.nii.gz"}])
    assert [c.case for c in read_dataset(spec(), root).cases] == ["set_imagesTr_a", "set_other_A"]


def test_unsafe_characters_leave_the_case_name(tmp_path):
    case = read_dataset(spec(), write_datalist(tmp_path, [pair("..a b(1)")])).cases[0]
    assert (case.case, case.participant_id) == ("a_b_1_", "sub-ab1")


def test_table_with_sessions_subsets_and_other_columns(tmp_path):
    root = write_table(
        tmp_path,
        """
participant_id | session_id | image | label | subset | site
01 | 1 | s/01/1/t1.nii.gz | s/01/1/seg.nii.gz | train | A
sub-01 | ses-2 | s/01/2/t1.nii.gz;s/01/2/t2.nii.gz | n/a | test | B
""",
    )
    dataset = read_dataset(spec("x.tsv", labels=LABELS), root)
    first, second = dataset.cases
    assert first.case == "sub-01_ses-1_t1" and first.columns == {"site": "A"}
    assert (second.participant_id, second.session_id) == ("sub-01", "ses-2")
    assert second.images == ("s/01/2/t1.nii.gz", "s/01/2/t2.nii.gz")
    assert second.label is None and second.subset == "test"
    assert dataset.facts == {"name": "x"}


@pytest.mark.parametrize("columns", ["image_0 | image_1", "image1 | image2"])
def test_table_with_a_column_per_channel(tmp_path, columns):
    root = write_table(tmp_path, f"participant_id | {columns} | target | case\na | 1.nii | 2.nii | 1 | my-case")
    dataset = read_dataset(spec("x.tsv", "classification", labels=LABELS), root)
    assert dataset.cases[0].images == ("1.nii", "2.nii") and len(dataset.modality) == 2
    assert (dataset.cases[0].case, dataset.cases[0].label) == ("my-case", 1)


def test_derived_columns_bin_numbers(tmp_path):
    columns = {"pair": {"from": "case", "pattern": r"(\d+)$", "bin": 2, "start": 1}}
    root = write_datalist(tmp_path, [pair(f"h_{i:03d}") for i in (1, 2, 3, 4, 9)])
    cases = read_dataset(spec(columns=columns), root).cases
    assert [c.columns["pair"] for c in cases] == ["0", "0", "1", "1", "4"]


def test_all_malformed_entries_are_reported_together(tmp_path):
    entries = [
        pair("good"),
        {"label": "x.nii"},
        {"image": "/abs/x.nii", "label": "x.nii"},
        {"image": "../../x.nii", "label": "x.nii"},
        {"image": "x.png", "label": "x.nii"},
        {"image": "y.nii"},
        {"image": "z.nii", "label": 3},
        {"image": "w.nii", "label": "w.nii", "participant_id": "a_b"},
    ]
    with pytest.raises(Problems) as error:
        read_dataset(spec(), write_datalist(tmp_path, entries))
    wanted = [
        r"training\[1\]: found .*wanted \{\"image\": path",
        r"training\[2\]: image: found '/abs/x.nii', wanted a relative path",
        r"training\[3\]: image: '../../x.nii' leaves the data folder",
        r"training\[4\]: image: found 'x.png', wanted a file ending in .nii",
        r"training\[5\]: no label, wanted one in a training entry",
        r"training\[6\]: label: found 3, wanted a path",
        r"training\[7\]: participant_id: found 'a_b', wanted letters and digits only",
    ]
    assert len(error.value.problems) == len(wanted)
    for problem, pattern in zip(error.value.problems, wanted, strict=True):
        assert re.search(pattern, problem)


def test_malformed_rows_are_reported_together(tmp_path):
    root = write_table(
        tmp_path,
        """
participant_id | image | label | subset
a | a.nii | a_seg.nii | training
b_1 | b.nii | b_seg.nii | training
c | c.nii | c_seg.nii
d | d.nii | d_seg.nii | train-ish
a | a.nii | a_seg.nii | test
""",
    )
    with pytest.raises(Problems) as error:
        read_dataset(spec("x.tsv", labels=LABELS), root)
    text = str(error.value)
    assert "x.tsv: 4 problems" in text
    assert "line 3: participant_id: found 'b_1'" in text
    assert "line 4: found 3 fields, wanted 4" in text
    assert "line 5: found subset 'train-ish', wanted one of training" in text
    assert "line 6: found case 'sub-a_ses-M000_a' again (first in line 2)" in text


@pytest.mark.parametrize(
    "content, message",
    [
        ({"labels": {"0": "a", "2": "b"}}, r"labels: found keys \[0, 2\], wanted 0 to 1 without gaps"),
        ({"labels": None}, r"found labels None, wanted \{\"0\": \"background\""),
        ({"labels": {"a": "0"}}, r"labels: found keys \['a'\]"),
        ({"labels": {"0": "a", "1": "a"}}, "wanted a different name for each"),
        ({"training": []}, "no cases found"),
        ({"training": {}}, "'training' is a dict, wanted a list"),
    ],
)
def test_datalists_that_cannot_be_understood(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_dataset(spec(), write_datalist(tmp_path, **{"training": [pair("a")], **content}))


@pytest.mark.parametrize(
    "path, message",
    [
        ("none.json", "none.json: file not found"),
        ("none.tsv", "none.tsv: file not found"),
        ("x.csv", "wanted a file ending in .json or .tsv"),
        ("/x.json", "wanted a relative path"),
        ("../x.json", "leaves the data folder"),
        ("bad.json", "not valid JSON"),
        ("list.json", "found a JSON list, wanted an object"),
        ("bad.tsv", "not UTF-8 text"),
        ("header.tsv", "found columns participant_id; wanted participant_id and either image"),
        ("twice.tsv", r"named twice: \['image'\]"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path, path, message):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "bad.tsv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "header.tsv").write_text("participant_id\n")
    (tmp_path / "twice.tsv").write_text("participant_id\timage\timage\n")
    with pytest.raises(UserError, match=message):
        read_dataset(spec(path), str(tmp_path))


@pytest.mark.parametrize(
    "column, message",
    [
        ({"from": "nothing", "pattern": "(a)"}, "found from: 'nothing', wanted one of case, participant_id"),
        ({"from": "case", "pattern": "a"}, "found 0 groups in pattern 'a', wanted one"),
        ({"from": "case", "pattern": "(a"}, "pattern '\\(a': "),
        ({"from": "case", "pattern": r"(\d)"}, r"case abc: column 'new': case 'abc' does not match pattern"),
        (
            {"from": "case", "pattern": "(b)", "bin": 2},
            "gives 'b' by pattern '\\(b\\)', wanted a whole number",
        ),
    ],
)
def test_columns_that_cannot_be_derived(tmp_path, column, message):
    with pytest.raises(UserError, match=message):
        read_dataset(spec(columns={"new": column}), write_datalist(tmp_path, [pair("abc")]))


def test_lists_of_test_groups_are_added_once_under_their_own_names(tmp_path):
    write_datalist(tmp_path, [pair("a"), pair("b")])
    write_datalist(tmp_path, [pair("a")], "other/more.json", test=["c.nii.gz"])
    test = {"groups": {"x": {"list": "other/more.json"}, "y": {"list": "other/more.json"}}}
    dataset = with_test_lists(read_dataset(spec(), str(tmp_path)), test, str(tmp_path))
    assert with_test_lists(dataset, test, str(tmp_path)) == dataset
    added = dataset.cases[-1]
    assert len(dataset.cases) == 3
    assert (added.case, added.subset, added.images) == (
        "more_a",
        "other/more.json",
        ("other/imagesTr/a.nii.gz",),
    )


def test_lists_of_test_groups_must_fit(tmp_path):
    dataset = read_dataset(spec(), write_datalist(tmp_path, [pair("a")]))
    write_datalist(tmp_path, [pair("x")], "labels.json", labels={"0": "background", "1": "b"})
    write_datalist(tmp_path, [], "bare.json", test=["c.nii.gz"])
    with pytest.raises(UserError, match="labels.json: found labels .*'b'.*wanted those of set/dataset.json"):
        with_test_lists(dataset, {"groups": {"t": {"list": "labels.json"}}}, str(tmp_path))
    with pytest.raises(UserError, match="bare.json has no labelled case, so nothing can be scored"):
        with_test_lists(dataset, {"groups": {"t": {"list": "bare.json"}}}, str(tmp_path))


def test_a_hundred_thousand_rows_take_seconds(tmp_path):
    rows = [f"sub-{i:06d}\tim/{i:06d}.nii.gz\tla/{i:06d}.nii.gz\ts{i % 7}" for i in range(100_000)]
    (tmp_path / "x.tsv").write_text("participant_id\timage\tlabel\tsite\n" + "\n".join(rows))
    assert len(read_dataset(spec("x.tsv", labels=LABELS), str(tmp_path)).cases) == 100_000
