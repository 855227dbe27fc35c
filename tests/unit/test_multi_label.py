"""Classes that may occur together: their labels, strata, channels, metrics, and recipes that do not fit them."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter, defaultdict

import nibabel
import numpy
import pytest
import torch
from armarium.checks import check_dataset
from armarium.config import check
from armarium.dataset import read_dataset
from armarium.errors import Problems, UserError
from armarium.inspection import check_components, check_multi_label
from armarium.iterative import drawn as drawn_groups
from armarium.multi_label import one_sided
from armarium.predictions import probability_table, segmentation_bytes
from armarium.splits import make_splits
from armarium.tables import read_tsv
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, roc_auc_score
from test_evaluation import conf_of, dice, score
from tiny import case, component, save_nifti, settings, training_of

NAMES = {0: "effusion", 1: "nodule", 2: "opacity"}
LABELS = {str(i): name for i, name in NAMES.items()}
SPEC = {
    **{"task": "classification", "multi_label": True, "affine_tolerance": 0.001, "allow_empty_labels": False},
    **{"allow_duplicates": True, "allow_repeated_participants": False},
}


# ---- labels of a list


def json_list(folder, given: list, name: str = "plco.json", **more) -> dict:
    """A list with an image for each label given, and the section that reads it."""
    entries = [{"image": f"i{k}.nii.gz", "label": label} for k, label in enumerate(given)]
    (folder / name).write_text(json.dumps({"labels": LABELS, "training": entries}))
    for k in range(len(given)):
        save_nifti(folder / f"i{k}.nii.gz", numpy.full((4, 5), k, numpy.int16))
    return {**SPEC, "list": name, **more}


def test_a_list_of_zeros_and_ones_is_a_cases_label(tmp_path):
    spec = json_list(tmp_path, [[0, 1, 1], [0.0, 0, 1.0], [True, False, False]])
    dataset = read_dataset(spec, str(tmp_path))
    assert [c.label for c in dataset.cases] == [(0, 1, 1), (0, 0, 1), (1, 0, 0)]
    rows = check_dataset(dataset, spec, str(tmp_path), 1)
    assert [r["label"] for r in rows] == ["0;1;1", "0;0;1", "1;0;0"]


def test_of_one_class_too_the_label_is_a_list(tmp_path):
    spec = json_list(tmp_path, [[0], [1]], labels={"0": "effusion"})
    assert [c.label for c in read_dataset(spec, str(tmp_path)).cases] == [(0,), (1,)]


@pytest.mark.parametrize("label", [[0, 1], [0, 1, 2], [0, 1, -1], [0, 1, 0.5], 1, "0;1", [0, 1, None], "nodule"])
def test_a_label_that_is_not_zero_or_one_for_each_class_is_told(label, tmp_path):
    spec = json_list(tmp_path, [label])
    with pytest.raises(Problems, match=r"training\[0\]: label: found .*, wanted 0 or 1 for each of the 3 classes"):
        read_dataset(spec, str(tmp_path))


def test_a_list_as_label_without_the_key_names_the_key(tmp_path):
    spec = json_list(tmp_path, [[0, 1, 1]], multi_label=False)
    with pytest.raises(Problems, match=r"found \[0, 1, 1\].*set dataset.multi_label"):
        read_dataset(spec, str(tmp_path))


def write_table(folder, rows: list[dict]) -> None:
    with open(folder / "cases.tsv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def test_a_table_has_a_column_for_each_class_or_one_for_all(tmp_path):
    rows = [
        {"participant_id": "a", "image": "a.nii", "effusion": 0, "nodule": 1, "opacity": 1},
        {"participant_id": "b", "image": "b.nii", "effusion": 1, "nodule": 0, "opacity": 0},
    ]
    spec = {**SPEC, "list": "cases.tsv", "labels": LABELS}
    write_table(tmp_path, rows)
    by_column = read_dataset(spec, str(tmp_path)).cases
    assert [c.label for c in by_column] == [(0, 1, 1), (1, 0, 0)]
    assert by_column[0].columns["nodule"] == "1", "a column to stratify by"
    joined = [{"participant_id": r["participant_id"], "image": r["image"]} for r in rows]
    write_table(tmp_path, [{**joined[0], "label": "0;1;1"}, {**joined[1], "label": "[1, 0, 0]"}])
    assert [c.label for c in read_dataset(spec, str(tmp_path)).cases] == [(0, 1, 1), (1, 0, 0)]
    write_table(tmp_path, [{k: v for k, v in row.items() if k != "opacity"} for row in rows])
    with pytest.raises(UserError, match=r"wanted label, .* or a column of 0 and 1 for each class .*opacity"):
        read_dataset(spec, str(tmp_path))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"task": "regression"}, "a regression has no classes"),
        ({"synthesize": {"cases": 8}}, "synthesize, which makes cases of one class each"),
    ],
)
def test_what_cannot_have_several_classes_is_told(dataset, message):
    section = {"recipe": "r", "dataset": {"list": "d.json", "multi_label": True, **dataset}}
    with pytest.raises(Problems, match=message):
        check({"archives": {"a": section}}, "config", "config.yaml")


# ---- strata and splits


def drawn(count: int, shares: list[float], seed: int = 0) -> list[tuple[int, ...]]:
    rng = numpy.random.RandomState(seed)
    return [tuple(int(rng.rand() < share) for share in shares) for _ in range(count)]


def test_a_class_that_too_few_groups_have_is_told(tmp_path):
    labels = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1], [1, 0, 0]]
    dataset = read_dataset(json_list(tmp_path, labels), str(tmp_path))
    rows = {c.case: {"content_sha256": c.case} for c in dataset.cases}
    how = {"method": "kfold", "n_splits": 3, "stratify_by": ["label"], "seed": 0}
    with pytest.raises(UserError, match=r"fewer than 3 groups of cases that have: 'nodule' \(2\), 'opacity' \(2\)"):
        make_splits(dataset, rows, how, {"groups": {}}, None, str(tmp_path))


@pytest.mark.parametrize("count", [7, 8, 20, 33])
def test_a_draw_of_groups_of_several_sizes_is_exact(count):
    rng = numpy.random.RandomState(count)
    groups = [
        (size, Counter({"a": int(rng.randint(size + 1)), "b": size}) & Counter(a=9, b=9)) for size in (2, 3, 5) * 6
    ]
    chosen = drawn_groups(groups, count, "seed")
    assert sum(size for (size, _), taken in zip(groups, chosen, strict=True) if taken) == count
    assert chosen == drawn_groups(groups, count, "seed")


@pytest.mark.parametrize("per_participant", [1, 2])
def test_every_fold_has_every_class_in_its_share(per_participant, tmp_path):
    """Twelve findings, from common to rare, so that most combinations occur once."""
    labels = drawn(600, [0.4, 0.3, 0.3, 0.2, 0.2, 0.15, 0.15, 0.1, 0.1, 0.08, 0.06, 0.05])
    names = [f"f{i}" for i in range(12)]
    entries = [
        {
            **{"image": f"i{k}.nii.gz", "label": list(label), "participant_id": f"p{k // per_participant}"},
            **{"session_id": f"M{k % per_participant:02d}"},
        }
        for k, label in enumerate(labels)
    ]
    listed = {"labels": {str(i): name for i, name in enumerate(names)}, "training": entries}
    (tmp_path / "plco.json").write_text(json.dumps(listed))
    spec = {**SPEC, "list": "plco.json"}
    dataset = read_dataset(spec, str(tmp_path))
    rows = {c.case: {"content_sha256": c.case} for c in dataset.cases}
    how = {"method": "kfold", "n_splits": 5, "stratify_by": ["label"], "seed": 0}
    groups = {"groups": {"held": {"count": 100}}}
    made = make_splits(dataset, rows, how, groups, None, str(tmp_path))
    overall, sides = numpy.mean(labels, 0), [*(s["validation"] for s in made["splits"]), made["groups"]["held"]]
    assert [len(side) for side in sides] == [100] * 6
    of_participant = defaultdict(set)
    for k, side in enumerate(sides):
        share = numpy.mean([made["cases"][name]["label"] for name in side], 0)
        assert (abs(share - overall) <= (0.015, 0.03)[per_participant - 1]).all(), (k, share - overall)
        for name in side:
            of_participant[made["cases"][name]["participant_id"]].add(k)
    assert max(map(len, of_participant.values())) == 1, "a participant's cases stay together"


def test_a_class_that_all_or_no_cases_of_a_side_have_is_told():
    sides = {
        "training": [{"label": [0, 1, 0]}, {"label": [1, 1, 0]}],
        "validation": [{"label": [0, 1, 0]}, {"label": [0, 0, 1]}],
    }
    assert one_sided(sides, NAMES) == [
        "class nodule: 2 of 2 training cases have it, wanted some with and some without: it cannot be learnt",
        "class opacity: 0 of 2 training cases have it, wanted some with and some without: it cannot be learnt",
        "class effusion: 0 of 2 validation cases have it, wanted some with and some without: its AUC and average precision are undefined",
    ]


# ---- label files


def overlapping(shape: tuple[int, ...], seed: int = 0) -> numpy.ndarray:
    """``[classes, *grid]``: three boxes that overlap."""
    rng = numpy.random.RandomState(seed)
    channels = numpy.zeros((3, *shape), numpy.uint8)
    for channel in channels:
        channel[tuple(slice(s, s + n // 2) for s, n in zip(rng.randint(0, 4, len(shape)), shape, strict=True))] = 1
    return channels


def label_list(folder, labels: dict, spec: dict | None = None):
    entries = []
    for name, (shape, label) in labels.items():
        save_nifti(folder / f"{name}.nii.gz", numpy.arange(math.prod(shape), dtype=numpy.int16).reshape(shape))
        save_nifti(folder / f"{name}_label.nii.gz", label)
        entries.append({"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz"})
    values = {"0": "background", "1": "core", "2": "oedema", "4": "enhancing"}
    (folder / "dataset.json").write_text(json.dumps({"labels": values, "training": entries}))
    spec = {**SPEC, "task": "segmentation", "list": "dataset.json", "labels": LABELS, **(spec or {})}
    dataset = read_dataset(spec, str(folder))
    return dataset, check_dataset(dataset, spec, str(folder), 1)


def test_a_label_file_may_have_a_channel_for_each_class(tmp_path):
    flat, deep = overlapping((8, 9)), overlapping((8, 9, 7))
    dataset, rows = label_list(
        tmp_path,
        {
            "flat": ((8, 9), flat.transpose(1, 2, 0)),
            "flat4": ((8, 9), flat.transpose(1, 2, 0)[:, :, None]),
            "deep": ((8, 9, 7), deep.transpose(1, 2, 3, 0)),
        },
    )
    assert dataset.labels == NAMES and dataset.header()["label_values"]["4"] == "enhancing"
    wanted = {"flat": flat, "flat4": flat, "deep": deep}
    for row in rows:
        counts = " ".join(f"{i}:{channel.sum()}" for i, channel in enumerate(wanted[row["case"]]))
        assert row["label_voxels"] == counts


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (2 * overlapping((8, 9)).transpose(1, 2, 0), r"found values 2 \(\d+ voxels\) in channel 0, wanted 0 and 1"),
        (numpy.zeros((8, 9, 3), numpy.uint8), "found background only"),
        (overlapping((8, 9)).transpose(1, 2, 0)[..., :2], "found shape 8x9x2, wanted 8x9"),
        (numpy.full((8, 9), 3, numpy.uint8), r"found values 3 \(72 voxels\), wanted 0 background, 1 core"),
    ],
    ids=["values", "empty", "channels", "map"],
)
def test_a_label_file_that_does_not_fit_the_classes_is_told(label, message, tmp_path):
    with pytest.raises(Problems, match=message):
        label_list(tmp_path, {"a": ((8, 9), label)})


# ---- segmentation


class Channels(torch.nn.Module):
    """Gives each channel of the image as a class's logit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 20 * (x - 0.5)


def regions_conf(made: list[dict], chain: list[dict] = (), metrics: list[dict] | None = None) -> dict:
    conf = conf_of([*made, *chain], metrics or [component("MeanDice")])
    sigmoid = component("Activationsd", keys="pred", sigmoid=True)
    conf["train"]["loss"] = component("DiceLoss", sigmoid=True)
    conf["train"]["model"]["args"]["out_channels"] = 3
    conf["validate"]["post_transforms"] = [sigmoid, component("AsDiscreted", keys="pred", threshold=0.5)]
    return conf


def by_channel_conf(chain: list[dict] = (), metrics: list[dict] | None = None) -> dict:
    """Of 2D label files with the channels last."""
    conf = regions_conf([], chain, metrics)
    load = [
        component("LoadImaged", keys=["image", "label"]),
        component("EnsureChannelFirstd", keys="image"),
        component("EnsureChannelFirstd", keys="label", channel_dim=-1),
    ]
    conf["train"]["pre_transforms"], conf["validate"]["pre_transforms"] = load, [*load, *chain]
    return conf


def by_channel_case(root, name: str, truth: numpy.ndarray, image: numpy.ndarray) -> dict:
    return case(root, name, list(image.astype(numpy.float32)), truth.transpose(1, 2, 0))


PAD = [component("DivisiblePadd", keys=["image", "label"], k=8)]


@pytest.mark.parametrize("chain", [[], PAD], ids=["as it is", "padded"])
def test_dice_of_overlapping_channels_is_that_of_the_files(chain, tmp_path):
    truth, image = overlapping((11, 13)), overlapping((11, 13), seed=4)
    truth[2] = 0
    cases = [by_channel_case(tmp_path, "a", truth, image)]
    evaluation, kept = score(tmp_path, cases, by_channel_conf(chain), Channels(), names=NAMES, multi_label=True)
    wanted = [dice(image[k] == 1, truth[k] == 1) for k in range(3)]
    assert (image.sum(0) > 1).any() and math.isnan(wanted[2])
    assert [r["MeanDice"] for r in evaluation.class_details] == pytest.approx(wanted, abs=1e-7, nan_ok=True)
    assert [r["name"] for r in evaluation.class_details] == list(NAMES.values())
    assert [(r["name"], r["undefined"]) for r in evaluation.classes()] == [
        ("effusion", 0),
        ("nodule", 0),
        ("opacity", 1),
    ]
    assert kept["a"].dtype == numpy.uint8 and numpy.array_equal(kept["a"], image.transpose(1, 2, 0))


def test_regions_that_a_transform_makes_of_a_label_map_are_scored_on_the_files_grid(tmp_path):
    label = numpy.zeros((10, 9, 8), numpy.uint8)
    label[2:8, 2:8, 2:7], label[3:7, 3:7, 3:6], label[4:6, 4:6, 4:5] = 2, 1, 4
    regions = numpy.stack([numpy.isin(label, v) for v in ((1, 4), (1, 2, 4), (4,))])
    image = regions.copy()
    image[1, :, :, 5:] = False
    cases = [case(tmp_path, "a", list(image.astype(numpy.float32)), label)]
    made = [component("ConvertToMultiChannelBasedOnBratsClassesd", keys="label")]
    conf = regions_conf(
        made, [component("Spacingd", keys=["image", "label"], pixdim=[1, 1, 1], mode=["bilinear", "nearest"]), *PAD]
    )
    evaluation, kept = score(tmp_path, cases, conf, Channels(), names=NAMES, multi_label=True)
    wanted = [dice(image[k], regions[k]) for k in range(3)]
    assert [r["MeanDice"] for r in evaluation.class_details] == pytest.approx(wanted, abs=1e-7)
    assert numpy.array_equal(kept["a"], image.transpose(1, 2, 3, 0))
    assert evaluation.details[0]["loss"] < 0.3


def test_a_label_without_a_channel_for_each_class_is_told(tmp_path):
    cases = [case(tmp_path, "a", [numpy.zeros((8, 8), numpy.float32)] * 3, numpy.ones((8, 8), numpy.uint8))]
    with pytest.raises(
        UserError, match=r"a label \[1, 1, 8, 8\] to the network's \[1, 3, 8, 8\], wanted as many channels"
    ):
        score(tmp_path, cases, regions_conf([]), Channels(), names=NAMES, multi_label=True)


def test_a_prediction_of_channels_is_written_where_monai_reads_them(tmp_path):
    from monai.transforms import LoadImage

    affine = numpy.diag([-2.0, 1.5, 1.0, 1.0])
    for shape, seen in (((8, 9), (3, 8, 9, 1)), ((8, 9, 7), (3, 8, 9, 7))):
        channels = overlapping(shape)
        save_nifti(tmp_path / "image.nii.gz", numpy.zeros(shape, numpy.int16), affine)
        data = segmentation_bytes(numpy.moveaxis(channels, 0, -1), tmp_path / "image.nii.gz", by_channel=True)
        (tmp_path / "pred.nii.gz").write_bytes(data)
        assert numpy.array_equal(nibabel.load(tmp_path / "pred.nii.gz").affine, affine)
        read = LoadImage(image_only=True, ensure_channel_first=True)(tmp_path / "pred.nii.gz")
        assert read.shape == seen and numpy.array_equal(read.numpy().reshape(channels.shape), channels)


# ---- classification


def classified_conf(**changes) -> dict:
    conf = conf_of([], [component("ROCAUC"), component("AveragePrecision"), *changes.pop("metrics", [])])
    conf["train"]["loss"] = component("BCEWithLogitsLoss")
    for section in ("train", "validate"):
        conf[section]["pre_transforms"] = [
            component("LoadImaged", keys="image"),
            component("EnsureChannelFirstd", keys="image"),
        ]
    conf["validate"]["post_transforms"] = [component("Activationsd", keys="pred", sigmoid=True)]
    conf["train"]["model"] = component("Classifier", in_shape=[3, 4, 4], classes=3, channels=[2], strides=[2])
    return {**conf, **changes}


class Means(torch.nn.Module):
    """Gives each channel's mean as a class's logit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).mean(2)


def logits_and_cases(root, labels: list) -> tuple[numpy.ndarray, list[dict]]:
    rng = numpy.random.RandomState(3)
    logits = rng.normal(size=(len(labels), 3)).astype(numpy.float32)
    cases = [
        case(root, f"c{k}", [numpy.full((4, 4), v, numpy.float32) for v in row], label)
        for k, (row, label) in enumerate(zip(logits, labels, strict=True))
    ]
    return logits, [{**c, "sha256": [c["sha256"][0], ""]} for c in cases]


F1 = {"name": "ConfusionMatrix", "log_label": "F1", "args": {"metric_name": "f1 score", "reduction": "mean_batch"}}


def sigmoid(x: numpy.ndarray) -> numpy.ndarray:
    return 1 / (1 + numpy.exp(-x))


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_scores_of_findings_are_sklearns_and_an_undefined_one_is_counted(threshold, tmp_path):
    labels = [[*label[:2], 0] for label in drawn(24, [0.5, 0.3, 0.5])]
    logits, cases = logits_and_cases(tmp_path, labels)
    exact = {"name": "Accuracy", "log_label": "Exact", "args": {"is_multilabel": True}}
    conf = classified_conf(metrics=[F1, exact])
    if threshold:
        conf["validate"]["post_transforms"].append(component("AsDiscreted", keys="pred", threshold=threshold))
    more = {"task": "classification", "multi_label": True}
    evaluation, kept = score(tmp_path, cases, conf, Means(), names=NAMES, **more)
    truth, soft = numpy.array(labels), sigmoid(logits.astype(float))
    hard = (soft >= (threshold or 0.5)).astype(int)
    by_class = {
        "ROCAUC": [roc_auc_score(truth[:, k], soft[:, k]) for k in range(2)] + [math.nan],
        "AveragePrecision": [average_precision_score(truth[:, k], soft[:, k]) for k in range(2)] + [math.nan],
        "F1": [f1_score(truth[:, k], hard[:, k]) for k in range(3)],
    }
    rows = {(r["metric"], r["class"]): r for r in evaluation.classes()}
    assert len(rows) == 9, "no class is dropped"
    for metric, wanted in by_class.items():
        assert [rows[metric, k].get("mean", math.nan) for k in range(3)] == pytest.approx(wanted, abs=1e-6, nan_ok=True)
        assert [rows[metric, k]["undefined"] for k in range(3)] == [int(math.isnan(w)) for w in wanted]
        assert evaluation.aggregated()[metric] == pytest.approx(numpy.nanmean(wanted), abs=1e-6)
    assert evaluation.aggregated()["Exact"] == pytest.approx((hard == truth).all(1).mean(), abs=1e-6)
    loss = -(truth * numpy.log(soft) + (1 - truth) * numpy.log(1 - soft)).mean()
    assert evaluation.aggregated()["loss"] == pytest.approx(loss, abs=1e-6)
    (row, *_) = read_tsv(probability_table([(c, kept[c["case"]]) for c in cases], NAMES))
    assert [float(row[f"probability_{n}"]) for n in NAMES.values()] == pytest.approx(soft[0], abs=1e-6)
    assert [int(row[f"predicted_{n}"]) for n in NAMES.values()] == hard[0].tolist()
    assert [int(row[f"label_{n}"]) for n in NAMES.values()] == labels[0]


def test_scores_of_three_exclusive_classes_are_sklearns(tmp_path):
    labels = [k % 3 for k in range(21)]
    logits, cases = logits_and_cases(tmp_path, labels)
    sensitivity = {"name": "ConfusionMatrix", "log_label": "Recall", "args": {"reduction": "mean_batch"}}
    conf = classified_conf(metrics=[sensitivity, component("Accuracy")])
    conf["train"]["loss"] = component("CrossEntropyLoss")
    conf["validate"]["post_transforms"] = [component("Activationsd", keys="pred", softmax=True)]
    evaluation, _ = score(tmp_path, cases, conf, Means(), names=NAMES, task="classification")
    soft = numpy.exp(logits.astype(float))
    soft /= soft.sum(1, keepdims=True)
    matrix = confusion_matrix(labels, soft.argmax(1))
    found, rows = evaluation.aggregated(), {(r["metric"], r["class"]): r["mean"] for r in evaluation.classes()}
    assert found["ROCAUC"] == pytest.approx(roc_auc_score(labels, soft, multi_class="ovr"), abs=1e-6)
    assert found["Accuracy"] == pytest.approx(matrix.trace() / 21, abs=1e-6)
    recall = matrix.diagonal() / matrix.sum(1)
    assert [rows["Recall", k] for k in range(3)] == pytest.approx(recall, abs=1e-6)
    assert found["Recall"] == pytest.approx(recall.mean(), abs=1e-6)
    wanted = [roc_auc_score(numpy.equal(labels, k), soft[:, k]) for k in range(3)]
    assert [rows["ROCAUC", k] for k in range(3)] == pytest.approx(wanted, abs=1e-6)


# ---- training


def test_findings_and_regions_are_learnt(tmp_path):
    labels = drawn(24, [0.5, 0.4, 0.3])
    cases = []
    rng = numpy.random.RandomState(0)
    for k, label in enumerate(labels):
        images = [(v + rng.normal(0, 0.3, (8, 8))).astype(numpy.float32) for v in label]
        cases.append(case(tmp_path, f"c{k}", images, list(label)))
        cases[-1]["sha256"][1] = ""
    conf = classified_conf(epochs=8, learning_rate=0.05)
    conf["train"]["model"] = component(
        "Classifier", in_shape=[3, 8, 8], classes=3, channels=[4], strides=[2], num_res_units=0
    )
    given = settings(conf, task="classification", multi_label=True)
    training = training_of((tmp_path, cases[:16], cases[16:]), tmp_path / "a", given)
    training.scorer.class_names = NAMES
    assert training.run().history["aggregated"][-1]["ROCAUC"] > 0.9


# ---- recipes that do not fit


def of_segmentation(**changes) -> dict:
    conf = by_channel_conf()
    return {**settings(conf, multi_label=True), **changes}


def of_classification(**changes) -> dict:
    return {**settings(classified_conf(), task="classification", multi_label=True), **changes}


def test_recipes_of_sigmoids_fit():
    for given in (of_segmentation(), of_classification()):
        check_components(given, NAMES)
        check_multi_label(given)
    for loss in ("DiceFocalLoss", "FocalLoss", "TverskyLoss", "GeneralizedDiceLoss"):
        sigmoid = {} if loss == "FocalLoss" else {"sigmoid": True}
        check_multi_label(of_segmentation(loss=component(loss, **sigmoid)))
    check_multi_label(of_classification(loss=component("MultiLabelSoftMarginLoss")))


def post(*components: dict) -> dict:
    return {"validate": {**of_segmentation()["validate"], "post_transforms": list(components)}}


SIGMOID = component("Activationsd", keys="pred", sigmoid=True)
UNFIT = {
    "softmax": (of_segmentation, post(component("Activationsd", keys="pred", softmax=True)), "softmax takes one class"),
    "argmax": (of_segmentation, post(SIGMOID, component("AsDiscreted", keys="pred", argmax=True)), "argmax takes one"),
    "no sigmoid": (of_segmentation, post(component("AsDiscreted", keys="pred", threshold=0.5)), "found no sigmoid"),
    "no threshold": (of_segmentation, post(SIGMOID), "found no threshold"),
    "cross entropy": (of_classification, {"loss": component("CrossEntropyLoss")}, "CrossEntropyLoss takes one class"),
    "softmax loss": (of_segmentation, {"loss": component("DiceLoss", softmax=True)}, "DiceLoss takes one class"),
    "DiceCE": (of_segmentation, {"loss": component("DiceCELoss", softmax=True)}, "DiceCELoss takes one class"),
    "background": (
        of_segmentation,
        {"loss": component("DiceLoss", sigmoid=True, include_background=False)},
        "train.loss: include_background is false",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_recipe_that_takes_one_class_of_several_is_told(name):
    made, changes, message = UNFIT[name]
    with pytest.raises(UserError, match=message):
        check_multi_label(made(**changes))


def test_a_metric_without_the_first_class_is_told():
    given = of_segmentation()
    given["validate"]["metrics"][0]["args"] = {"include_background": False}
    with pytest.raises(UserError, match="metric MeanDice: include_background is false"):
        check_multi_label(given)
