"""Splits and test groups: what they keep together, what they refuse."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
from armarium.dataset import Case, Dataset
from armarium.errors import UserError
from armarium.files import write_json
from armarium.split_files import cases_tested_by, read_splits
from armarium.splits import datalist_of_split, make_splits

NO_TEST = {"groups": {}}


def a_case(name, participant=None, subset="training", label=0, **columns):
    return Case(name, f"sub-{participant or name}", "ses-M000", (f"set/{name}.nii.gz",), label, columns, subset)


def a_dataset(cases):
    return Dataset(cases, {0: "no", 1: "yes"}, {0: "MRI"}, {}, "set/dataset.json", {})


def rows_of(cases, **content):
    return {c.case: {"case": c.case, "dtype": "int16", "content_sha256": content.get(c.case, c.case)} for c in cases}


def split(cases, test=NO_TEST, given=None, content=None, **spec):
    spec = {
        "method": "kfold",
        "n_splits": 5,
        "holdout": 4,
        "group_by": [],
        "stratify_by": [],
        "seed": 0,
        **spec,
    }
    return make_splits(a_dataset(cases), rows_of(cases, **(content or {})), spec, test, given, "")


def people(n, **more):
    return [a_case(f"c{i:03d}", **more) for i in range(n)]


def random_table(seed):
    """Cases of random participants, sites and sexes; some images are copies."""
    rng = random.Random(seed)
    cases = []
    for p in range(rng.randint(30, 60)):
        site, sex = f"s{rng.randint(0, 25)}", rng.choice("FFM")
        for s in range(rng.choice((1, 1, 1, 2, 3))):
            cases.append(a_case(f"p{p}-{s}", f"p{p}", label=rng.randint(0, 1), site=site, sex=sex))
    rng.shuffle(cases)
    content = {c.case: f"copy{rng.randint(0, 3)}" for c in rng.sample(cases, 4)}
    return cases, content


def assert_sound(cases, result, keys):
    """Every case of the list is on one side, and no value of a key is on two."""
    known = {c.case: c for c in cases}
    for sides in result["splits"]:
        listed = [*sides["train"], *sides["validation"], *(n for g in result["groups"].values() for n in g)]
        assert sorted(listed) == sorted(known)
        for key in keys:
            where = defaultdict(set)
            for side, names in {**sides, **result["groups"]}.items():
                assert names == sorted(names) and names
                for name in names:
                    where[key(known[name])].add(side)
            assert all(len(found) == 1 for found in where.values())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("group_by", [[], ["site"]])
def test_nobody_is_on_two_sides(seed, group_by):
    cases, content = random_table(seed)
    keys = [lambda c: c.participant_id, lambda c: content.get(c.case, c.case)]
    keys += [lambda c: c.columns["site"]] * bool(group_by)
    for method, holdout in (("kfold", 0), ("holdout", 0.3)):
        result = split(
            cases,
            {"groups": {"test": {"fraction": 0.2}}},
            method=method,
            n_splits=2,
            holdout=holdout,
            group_by=group_by,
            seed=seed,
            content=content,
        )
        assert_sound(cases, result, keys)


@pytest.mark.parametrize("seed", range(8))
def test_every_case_validates_once_in_k_fold(seed):
    cases, content = random_table(seed)
    splits = split(cases, n_splits=3, seed=seed, content=content)["splits"]
    assert sorted(n for s in splits for n in s["validation"]) == sorted(c.case for c in cases)
    sizes = [len(s["validation"]) for s in splits]
    assert max(sizes) - min(sizes) <= 6


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("grouped", [False, True])
def test_k_fold_keeps_proportions(seed, grouped):
    cases = [a_case(f"c{i}", f"p{i // 2 if grouped else i}", kind="ab"[i % 10 < 4]) for i in range(100)]
    for s in split(cases, stratify_by=["kind"], seed=seed)["splits"]:
        assert Counter("ab"[int(n[1:]) % 10 < 4] for n in s["validation"]) == {"a": 12, "b": 8}


@pytest.mark.parametrize("seed", range(8))
def test_holdout_is_exact_and_keeps_proportions(seed):
    rng = random.Random(seed)
    cases = []
    for p in range(90):
        kind = rng.choice("aaab")
        cases += [a_case(f"p{p}-{s}", f"p{p}", kind=kind) for s in range(rng.randint(1, 3))]
    count = rng.randint(20, 60)
    (side,) = split(cases, method="holdout", holdout=count, stratify_by=["kind"], seed=seed)["splits"]
    kinds = {c.case: c.columns["kind"] for c in cases}
    drawn, whole = Counter(kinds[n] for n in side["validation"]), Counter(kinds.values())
    assert len(side["validation"]) == count
    assert all(abs(drawn[k] - count * whole[k] / len(cases)) <= 1.5 for k in whole)


def test_two_columns_stratify_together():
    cases = [a_case(f"c{i:02d}", label=i % 2, sex="FM"[i // 2 % 2]) for i in range(40)]
    for s in split(cases, stratify_by=["label", "sex"])["splits"]:
        chosen = [c for c in cases if c.case in s["validation"]]
        assert set(Counter((c.label, c.columns["sex"]) for c in chosen).values()) == {2}


def test_the_seed_alone_decides(tmp_path):
    cases, content = random_table(1)
    shuffled = random.Random(7).sample(cases, len(cases))
    test = {"groups": {"test": {"count": 5}}}
    for method in ("kfold", "holdout"):
        first = split(cases, test, method=method, content=content)
        assert first == split(shuffled, test, method=method, content=content)
        assert first != split(cases, test, method=method, content=content, seed=1)


def test_other_processes_draw_the_same():
    code = "import json, test_splits as t\nprint(json.dumps(t.split(t.people(30), {'groups': {'t': {'count': 5}}}, method='holdout')))"
    paths = [p for p in (os.path.dirname(__file__), *sys.path) if p]
    results = []
    for hashseed in "12":
        env = {**os.environ, "PYTHONHASHSEED": hashseed, "PYTHONPATH": os.pathsep.join(paths)}
        results.append(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout)
    assert results[0] == results[1]
    assert json.loads(results[0]) == split(people(30), {"groups": {"t": {"count": 5}}}, method="holdout")


def test_lists_and_test_groups_of_the_datalist():
    cases = [
        *people(6),
        a_case("v0", subset="validation"),
        a_case("t0", subset="test"),
        a_case("t1", subset="test"),
    ]
    result = split(cases, {"groups": {"test": {"from": "test"}, "few": {"count": 2}}}, method="lists")
    (side,) = result["splits"]
    assert side["validation"] == ["v0"] and len(side["train"]) == 4
    assert result["groups"]["test"] == ["t0", "t1"] and len(result["groups"]["few"]) == 2
    assert list(result["groups"]) == ["test", "few"]
    assert result["cases"]["t0"] == {
        "participant_id": "sub-t0",
        "session_id": "ses-M000",
        "image": ["set/t0.nii.gz"],
        "label": 0,
        "columns": {},
    }


def test_unlabelled_cases_that_nothing_uses_are_left_alone():
    result = split([*people(10), a_case("bare", subset="test", label=None)])
    assert "bare" not in result["cases"] and len(result["cases"]) == 10


def test_group_of_another_list(tmp_path):
    for name, entry in (("set/dataset.json", "a"), ("other/more.json", "b")):
        (tmp_path / name).parent.mkdir()
        content = {"labels": {"0": "no", "1": "yes"}, "training": [{"image": f"{entry}.nii.gz", "label": 1}]}
        (tmp_path / name).write_text(json.dumps(content))
    cases = people(6, pair="1")
    dataset = Dataset(
        cases,
        {0: "no", 1: "yes"},
        {0: "image"},
        {},
        "set/dataset.json",
        {"task": "classification", "list": "x"},
    )
    spec = {"method": "holdout", "holdout": 2, "group_by": [], "stratify_by": [], "seed": 0}
    test = {"groups": {"else": {"list": "other/more.json"}}}
    rows = rows_of([*cases, a_case("b")])
    assert make_splits(dataset, rows, spec, test, None, str(tmp_path))["groups"] == {"else": ["b"]}
    rows["b"]["content_sha256"] = "c000"
    with pytest.raises(UserError, match=r"share participants sub-b, sub-c000 \(identical images\)"):
        make_splits(dataset, rows, spec, test, None, str(tmp_path))
    del rows["b"]
    with pytest.raises(UserError, match="table of cases: found no row of b; check the dataset again"):
        make_splits(dataset, rows, spec, test, None, str(tmp_path))


# ---- given splits


NAMES = [f"c{i:03d}" for i in range(6)]


@pytest.mark.parametrize(
    "given",
    [
        {"train": NAMES[:4], "val": NAMES[4:]},
        {"train": NAMES[:4], "test": NAMES[4:]},
        [{"training": NAMES[:4], "validation": NAMES[4:]}],
        {"train": [f"set/{n}.nii.gz" for n in NAMES[:4]], "val": [f"./{n}.nii.gz" for n in NAMES[4:]]},
        {
            "training": [{"image": n} for n in NAMES[:4]],
            "validation": [{"image": [n]} for n in NAMES[4:]],
            "labels": {},
        },
        {"splits": [{"train": NAMES[:4], "validation": NAMES[4:]}], "groups": {}, "cases": {}},
    ],
)
def test_forms_of_a_given_split(given):
    result = split(people(6), method="file", given=given)
    assert result["splits"] == [{"train": NAMES[:4], "validation": NAMES[4:]}] and not result["groups"]


def test_a_third_side_is_a_test_group():
    result = split(people(6), method="file", given={"train": NAMES[:3], "val": NAMES[3:5], "test": NAMES[5:]})
    assert result["groups"] == {"test": ["c005"]}


NESTED = [
    {"train": NAMES[:3], "val": NAMES[3:5], "test": NAMES[5:]},
    {"train": NAMES[2:5], "val": NAMES[5:], "test": NAMES[:2]},
    {"train": NAMES[:4], "val": NAMES[4:]},
]
"""Splits with test cases of their own, and one without."""


def test_test_sides_that_differ_are_groups_of_their_own_splits():
    result = split(people(6), method="file", given=NESTED)
    assert result["groups"] == {"test_0": ["c005"], "test_1": ["c000", "c001"]}
    assert result["own_groups"] == {"test_0": 0, "test_1": 1}
    assert [datalist_of_split(result, k, {})["numTest"] for k in range(3)] == [1, 2, 0]
    assert [cases_tested_by(result, k) for k in range(3)] == [["c005"], ["c000", "c001"], []]


def test_test_sides_that_name_the_same_cases_are_one_group():
    again = [NESTED[0], {"train": NAMES[1:4], "val": [NAMES[0], NAMES[4]], "test": [{"image": f"./{NAMES[5]}"}]}]
    result = split(people(6), method="file", given=again)
    assert result["groups"] == {"test": ["c005"]} and "own_groups" not in result


def test_a_split_tests_nobody_whom_it_trained_on_though_other_splits_may():
    visits = [a_case(name, participant="x" if name in NAMES[4:] else name) for name in NAMES]
    with pytest.raises(UserError) as error:
        split(visits, method="file", given=[{"train": NAMES[4:], "val": NAMES[:2], "test": NAMES[2:4]}, NESTED[0]])
    assert error.value.problems == [
        "split 1: validation and test group 'test_1' share participants sub-x, wanted each on one side"
    ]


def test_a_group_of_all_splits_is_tested_beside_their_own():
    cases = [*people(6), a_case("t", subset="test")]
    result = split(cases, {"groups": {"held": {"from": "test"}}}, method="file", given=NESTED)
    assert [cases_tested_by(result, k) for k in range(3)] == [["c005", "t"], ["c000", "c001", "t"], ["t"]]
    with pytest.raises(UserError, match="a test group 'test_1' too; rename that group"):
        split(cases, {"groups": {"test_1": {"from": "test"}}}, method="file", given=NESTED)


@pytest.mark.parametrize(
    "own", [["test_0"], {"test_9": 0}, {"test_0": 3}, {"test_0": -1}, {"test_0": "0"}, {"test_0": []}]
)
def test_own_groups_that_are_not_of_this_workflow_are_refused(own, tmp_path):
    drawn = split(people(6), method="file", given=NESTED)
    write_json(tmp_path / "splits.json", drawn)
    assert read_splits(tmp_path / "splits.json") == drawn
    write_json(tmp_path / "splits.json", {**drawn, "own_groups": own})
    with pytest.raises(UserError, match="found own_groups that are not some of its groups"):
        read_splits(tmp_path / "splits.json")


def test_folds_of_a_monai_datalist():
    entries = [{"image": f"{n}.nii.gz", "fold": i % 3} for i, n in enumerate(NAMES)]
    splits = split(people(6), method="file", given={"training": entries, "testing": []})["splits"]
    assert [s["validation"] for s in splits] == [["c000", "c003"], ["c001", "c004"], ["c002", "c005"]]
    entries[0]["fold"] = 7
    with pytest.raises(UserError, match=r"found fold numbers \['0', '1', '2', '7'\], wanted 0, 1"):
        split(people(6), method="file", given={"training": entries})


@pytest.mark.parametrize(
    "given, message",
    [
        (None, "splits.method is 'file': found no split file"),
        ({"train": NAMES}, r"found lists \['train'\], wanted train and validation"),
        ({"train": NAMES[:3], "dev": NAMES[3:]}, r"found lists \['train', 'dev'\]"),
        (["c000"], "split 0: found lists 'c000', wanted train and validation"),
        ({"train": [*NAMES[:4], "x9"], "val": NAMES[4:]}, "split 0: train: found unknown x9, wanted names"),
        ({"train": NAMES[:4], "val": NAMES[4:5]}, "split 0: found no side for c005; add them"),
        ({"train": NAMES[:5], "val": NAMES[4:]}, "split 0: found c004 more than once"),
        ({"train": NAMES, "val": ["bare"]}, "split 0: validation: found no label of bare"),
        (
            [
                {"train": NAMES[:3], "val": NAMES[3:5], "test": NAMES[5:]},
                {"train": NAMES[:4], "val": NAMES[4:], "test": NAMES[:1]},
            ],
            "split 1: found c000 more than once",
        ),
        (
            [
                {"train": NAMES[:3], "val": NAMES[3:5], "test": NAMES[5:]},
                {"train": NAMES[1:4], "val": NAMES[4:]},
            ],
            "split 1: found no side for c000; add them",
        ),
    ],
)
def test_split_files_that_cannot_be_used(given, message):
    with pytest.raises(UserError, match=message):
        split([*people(6), a_case("bare", subset="test", label=None)], method="file", given=given)


def test_all_problems_of_a_split_file_come_together():
    with pytest.raises(UserError, match="split file: 2 problems"):
        split(people(6), method="file", given={"train": ["x", *NAMES[:3]], "val": NAMES[3:5]})


def test_groups_cannot_be_drawn_from_given_splits():
    given = {"train": NAMES[:4], "val": NAMES[4:]}
    with pytest.raises(UserError, match="test group 't': cannot be drawn from given splits"):
        split(people(6), {"groups": {"t": {"count": 1}}}, method="file", given=given)
    cases = [*people(6), a_case("t", subset="test")]
    with pytest.raises(UserError, match="a test group 'test' too; rename that group"):
        given = {"train": NAMES[:3], "val": NAMES[3:5], "test": NAMES[5:]}
        split(cases, {"groups": {"test": {"from": "test"}}}, method="file", given=given)


# ---- leakage


def test_leakage_names_the_participants():
    cases = [a_case("a", "x"), a_case("b", "y"), a_case("c", "x", "validation"), a_case("d", "y", "test")]
    with pytest.raises(UserError) as error:
        split(cases, {"groups": {"g": {"from": "test"}}}, method="lists")
    assert error.value.problems == [
        "split 0: train and validation share participants sub-x, wanted each on one side",
        "split 0: train and test group 'g' share participants sub-y, wanted each on one side",
    ]


def test_leakage_by_group_and_by_content():
    cases = [a_case("a", pair="1"), a_case("b", pair="1", subset="validation")]
    assert split(cases, method="lists")
    with pytest.raises(UserError, match=r"share participants sub-a, sub-b \(same pair\)"):
        split(cases, method="lists", group_by=["pair"])
    with pytest.raises(UserError, match=r"share participants sub-a, sub-b \(identical images\)"):
        split(cases, method="lists", content={"a": "same", "b": "same"})


# ---- impossible requests


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"n_splits": 7}, "found 7, wanted at most 6: the 12 cases form 6 groups"),
        ({"n_splits": 1}, "splits.n_splits: found 1, wanted a whole number of at least 2"),
        ({"n_splits": 3, "stratify_by": ["rare"]}, r"fewer than 3 groups of cases: 'yes' \(1\)"),
        ({"method": "holdout", "holdout": 3}, "splits.holdout: found 3 of 12 cases.*wanted 2 or 4"),
        ({"method": "holdout", "holdout": 12}, "found 12 of 12 cases.*wanted 10"),
        (
            {"method": "holdout", "holdout": 0},
            "splits.holdout: found 0, wanted a number of cases, or a fraction",
        ),
        ({"method": "holdout", "holdout": 1.5}, "found 1.5, wanted a number of cases"),
        ({"method": "holdout", "holdout": 2, "group_by": ["all"]}, "wanted more cases: they form one group"),
        ({"group_by": ["site"]}, "splits.group_by: found 'site', wanted columns among all, .*dtype, .*rare"),
        ({"stratify_by": ["holes"]}, "splits.stratify_by: column 'holes' is empty for c1"),
        ({"method": "lists"}, "found no cases in the list 'validation'"),
        ({"method": "random"}, "splits.method: found 'random', wanted one of kfold, holdout, lists, file"),
    ],
)
def test_impossible_splits(spec, message):
    cases = [
        a_case(f"c{i}", f"p{i // 2}", rare="yes" if i < 2 else "no", all="1", holes="n/a" if i == 1 else "x")
        for i in range(12)
    ]
    with pytest.raises(UserError, match=message):
        split(cases, **spec)


@pytest.mark.parametrize(
    "group, message",
    [
        ({"from": "test"}, r"1 of 2 cases of list 'test' have no label \(bare\) and cannot be scored"),
        ({"from": "validation"}, "found no cases in list 'validation' of set/dataset.json"),
        ({"count": 6}, "test group 'g': found 6 of 6 cases"),
        ({"cuont": 6}, "test group 'g': found {'cuont': 6}, wanted one of from, list, count, fraction"),
    ],
)
def test_impossible_test_groups(group, message):
    cases = [*people(6), a_case("t", subset="test"), a_case("bare", subset="test", label=None)]
    with pytest.raises(UserError, match=message):
        split(cases, {"groups": {"g": group}}, n_splits=2)


def test_a_fraction_takes_the_nearest_number_that_groups_allow():
    cases = [a_case(f"c{i}", f"p{i // 4}") for i in range(40)]
    (side,) = split(cases, method="holdout", holdout=0.23)["splits"]
    assert len(side["validation"]) == 8


# ---- datalists


def test_datalist_of_a_split_is_an_mmar_datalist():
    cases = [*people(4), a_case("t", subset="test", label=1)]
    splits = split(cases, {"groups": {"g": {"from": "test"}, "h": {"from": "test"}}}, n_splits=2)
    datalist = datalist_of_split(splits, 1, {"name": "x", "labels": {"0": "no"}})
    assert list(datalist)[:2] == ["name", "labels"] and datalist["numTest"] == 1
    assert datalist["test"] == [{"image": "set/t.nii.gz", "label": 1}]
    assert [e["image"][4:8] for e in datalist["validation"]] == splits["splits"][1]["validation"]
    with pytest.raises(UserError, match="split 2: found splits 0 to 1"):
        datalist_of_split(splits, 2, {})


def test_datalist_lists_the_files_of_several_channels():
    cases = people(4)
    cases[0] = Case("c000", "sub-c000", "ses-M000", ("a.nii", "b.nii"), "l.nii", {}, "training")
    datalist = datalist_of_split(split(cases, n_splits=2), 0, {})
    assert {"image": ["a.nii", "b.nii"], "label": "l.nii"} in datalist["training"] + datalist["validation"]
