"""Scores of whole images on the grid of the label file, against computations by hand."""

from __future__ import annotations

import gzip
import math

import nibabel
import numpy
import pytest
import torch
from armarium.errors import UserError
from armarium.evaluation import CaseScorer
from armarium.predictions import probability_table, segmentation_bytes
from armarium.tables import read_tsv
from tiny import case, component, recipe, save_nifti, settings, squares

NAMES = {0: "background", 1: "low", 2: "high"}
KEYS = ["image", "label"]


class Nearest(torch.nn.Module):
    """Gives every voxel the class whose number its intensity is nearest to."""

    def __init__(self, classes: int = 3, channel: int = 0):
        super().__init__()
        self.classes, self.channel, self.seen = classes, channel, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.shape))
        x = x[:, self.channel : self.channel + 1]
        return torch.cat([-20 * (x - k) ** 2 for k in range(self.classes)], 1)


def conf_of(transforms: list[dict], metrics: list[dict] | None = None, inferer: dict | None = None) -> dict:
    """A recipe that reads images, does ``transforms``, and changes nothing else in them."""
    conf = recipe()
    conf["train"]["pre_transforms"] = [component("LoadImaged", keys=KEYS), component("EnsureChannelFirstd", keys=KEYS)]
    conf["validate"]["pre_transforms"] = [*conf["train"]["pre_transforms"], *transforms]
    if metrics:
        conf["validate"]["key_metric"], *conf["validate"]["additional_metrics"] = metrics
    if inferer:
        conf["validate"]["inferer"] = inferer
    return conf


def score(root, cases, conf=None, network=None, names=NAMES, **more):
    """The evaluation, and each case's prediction."""
    scorer = CaseScorer(
        settings(conf or conf_of([]), **more), str(root), str(root / "cache"), torch.device("cpu"), names
    )
    kept = {}
    return scorer(network or Nearest(), cases, lambda c, p: kept.__setitem__(c["case"], p)), kept


def dice(a: numpy.ndarray, b: numpy.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum()) if b.any() else math.nan


def oblique(spacing=(1.0, 1.0, 1.0)) -> numpy.ndarray:
    """Axes swapped and reversed, off the origin, with voxels of ``spacing`` mm."""
    affine = numpy.zeros((4, 4))
    affine[1, 0], affine[0, 1], affine[2, 2], affine[3, 3] = -spacing[0], spacing[1], -spacing[2], 1
    affine[:3, 3] = 5, 7, -3
    return affine


def blobs(shape, shift: int = 0) -> numpy.ndarray:
    """Classes 1 and 2 as boxes inside a background, moved along the first axis."""
    volume = numpy.zeros(shape, numpy.uint8)
    volume[(slice(2 + shift, 8 + shift), *(slice(2, n - 3) for n in shape[1:]))] = 1
    volume[(slice(4 + shift, 7 + shift), *(slice(4, n - 4) for n in shape[1:]))] = 2
    return volume


CHAINS = {
    "nothing": [],
    "pad": [component("SpatialPadd", keys=KEYS, spatial_size=[20, 16, 15])],
    "orient": [component("Orientationd", keys=KEYS, axcodes="RAS")],
    "crop": [component("CropForegroundd", keys=KEYS, source_key="image", margin=1, allow_smaller=True)],
    "fit": [component("ResizeWithPadOrCropd", keys=KEYS, spatial_size=[10, 20, 11])],
    "all": [
        component("Orientationd", keys=KEYS, axcodes="PLS"),
        component("CropForegroundd", keys=KEYS, source_key="image", allow_smaller=True),
        component("DivisiblePadd", keys=KEYS, k=8),
    ],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_dice_is_that_of_the_files_whatever_was_done_to_the_image(chain, tmp_path):
    truth, image = blobs((12, 13, 11)), blobs((12, 13, 11), shift=1)
    cases = [case(tmp_path, "a", [image.astype(numpy.float32)], truth, oblique())]
    evaluation, kept = score(tmp_path, cases, conf_of(CHAINS[chain]))
    again, _ = score(tmp_path, cases, conf_of(CHAINS[chain]))
    assert again.class_details == evaluation.class_details, "prepared anew or read from the cache"
    wanted = [dice(image == k, truth == k) for k in (1, 2)]
    assert numpy.array_equal(kept["a"], image)
    assert [(r["class"], r["name"]) for r in evaluation.class_details] == [(1, "low"), (2, "high")]
    assert [r["MeanDice"] for r in evaluation.class_details] == pytest.approx(wanted, abs=1e-7)
    assert evaluation.details[0]["MeanDice"] == pytest.approx(sum(wanted) / 2, abs=1e-7)
    assert evaluation.details[0]["participant_id"] == "sub-a" and evaluation.details[0]["loss"] > 0


@pytest.mark.parametrize(
    "affine", [numpy.diag([1.0, 1.5, 2.0, 1.0]), oblique((1.0, 1.5, 2.0))], ids=["straight", "oblique"]
)
def test_a_resampled_image_is_scored_on_the_grid_of_its_file(affine, tmp_path):
    truth, image = blobs((16, 15, 14)), blobs((16, 15, 14), shift=2)
    cases = [case(tmp_path, "a", [image.astype(numpy.float32)], truth, affine)]
    chain = [
        component("Spacingd", keys=KEYS, pixdim=[0.8, 1.1, 1.3], mode=["bilinear", "nearest"]),
        component("Orientationd", keys=KEYS, axcodes="RAS"),
    ]
    network = Nearest()
    evaluation, kept = score(tmp_path, cases, conf_of(chain), network)
    assert network.seen[0][2:] != image.shape and kept["a"].shape == image.shape
    assert [r["MeanDice"] for r in evaluation.class_details] == pytest.approx(
        [dice(kept["a"] == k, truth == k) for k in (1, 2)], abs=1e-6
    )
    assert dice(kept["a"] > 0, image > 0) > 0.95, "the prediction lies where the image's contents do"


def test_a_class_that_a_label_lacks_is_counted_as_undefined(tmp_path):
    whole = blobs((10, 12))
    without = numpy.where(whole == 2, 1, whole).astype(numpy.uint8)
    shifted = blobs((10, 12), shift=1)
    cases = [
        case(tmp_path, n, [i.astype(numpy.float32)], t)
        for n, i, t in [("a", shifted, whole), ("b", shifted, without), ("c", without, without)]
    ]
    evaluation, _ = score(tmp_path, cases)
    rows = {(r["class"], r["metric"]): r for r in evaluation.classes()}
    assert [(r["defined"], r["undefined"]) for r in rows.values()] == [(3, 0), (1, 2)]
    assert rows[2, "MeanDice"]["mean"] == pytest.approx(dice(shifted == 2, whole == 2))
    of_low = [dice(shifted == 1, whole == 1), dice(shifted == 1, without == 1), 1.0]
    assert rows[1, "MeanDice"]["mean"] == pytest.approx(numpy.mean(of_low)) and rows[1, "MeanDice"][
        "std"
    ] == pytest.approx(numpy.std(of_low))
    assert [len(evaluation.details), len(evaluation.class_details)] == [3, 6]
    assert math.isnan(evaluation.class_details[3]["MeanDice"])
    assert evaluation.details[1]["MeanDice"] == pytest.approx(of_low[1]), "the mean of the classes it has"


def test_aggregated_is_the_mean_over_the_cases_where_it_is_defined(tmp_path):
    empty, whole = numpy.zeros((10, 12), numpy.uint8), blobs((10, 12))
    cases = [
        case(tmp_path, n, [i.astype(numpy.float32)], t)
        for n, i, t in [("a", whole, whole), ("b", blobs((10, 12), 1), whole), ("c", whole, empty)]
    ]
    evaluation, _ = score(tmp_path, cases)
    values = [d["MeanDice"] for d in evaluation.details]
    assert math.isnan(values[2]) and values[0] == 1
    assert evaluation.aggregated()["MeanDice"] == pytest.approx((values[0] + values[1]) / 2)
    assert evaluation.aggregated()["loss"] == pytest.approx(numpy.mean([d["loss"] for d in evaluation.details]))


def test_nothing_defined_is_nan_and_still_has_its_row(tmp_path):
    evaluation, _ = score(
        tmp_path, [case(tmp_path, "a", [blobs((10, 12)).astype(numpy.float32)], numpy.zeros((10, 12), numpy.uint8))]
    )
    assert math.isnan(evaluation.aggregated()["MeanDice"])
    assert [(r["class"], r["defined"], r["undefined"], r.get("mean")) for r in evaluation.classes()] == [
        (1, 0, 1, None),
        (2, 0, 1, None),
    ]


@pytest.mark.parametrize("chain", ["nothing", "orient"])
def test_distances_are_in_millimetres_of_the_label_file(chain, tmp_path):
    truth = numpy.zeros((14, 12, 10), numpy.uint8)
    truth[3:8, 3:8, 3:8] = 1
    cases = []
    for axis, name in enumerate("abc"):
        cases.append(
            case(tmp_path, name, [numpy.roll(truth, 2, axis).astype(numpy.float32)], truth, oblique((0.5, 3.0, 1.25)))
        )
    metrics = [
        component("MeanDice", include_background=False),
        component("HausdorffDistance", include_background=False),
    ]
    evaluation, _ = score(tmp_path, cases, conf_of(CHAINS[chain], metrics), Nearest(2), {0: "background", 1: "box"})
    assert [d["HausdorffDistance"] for d in evaluation.details] == pytest.approx([1.0, 6.0, 2.5])
    assert evaluation.metrics == ["loss", "MeanDice", "HausdorffDistance"]


def test_a_metric_with_the_background_numbers_classes_from_it(tmp_path):
    cases = [case(tmp_path, "a", [blobs((10, 12)).astype(numpy.float32)], blobs((10, 12)))]
    evaluation, _ = score(tmp_path, cases, conf_of([], [component("MeanDice", include_background=True)]))
    assert [(r["class"], r["MeanDice"]) for r in evaluation.class_details] == [(0, 1.0), (1, 1.0), (2, 1.0)]


def test_a_sliding_window_sees_the_image_in_parts_and_scores_the_whole(tmp_path):
    truth, image = blobs((20, 24)), blobs((20, 24), shift=1)
    cases, network = [case(tmp_path, "a", [image.astype(numpy.float32)], truth)], Nearest()
    window = component("SlidingWindowInferer", roi_size=[8, 8], sw_batch_size=2, overlap=0.25)
    evaluation, kept = score(tmp_path, cases, conf_of([], inferer=window), network)
    assert numpy.array_equal(kept["a"], image) and {s[2:] for s in network.seen} == {(8, 8)}
    assert evaluation.details[0]["MeanDice"] == pytest.approx(
        numpy.mean([dice(image == k, truth == k) for k in (1, 2)])
    )


@pytest.mark.parametrize("form", ["files", "last axis"])
def test_an_image_may_have_several_channels(form, tmp_path):
    shape, truth = (12, 13, 11), blobs((12, 13, 11))
    first, second = numpy.zeros(shape, numpy.float32), truth.astype(numpy.float32)
    images = [first, second] if form == "files" else [numpy.stack([first, second], -1)]
    network = Nearest(channel=1)
    _, kept = score(tmp_path, [case(tmp_path, "a", images, truth, oblique())], conf_of(CHAINS["all"]), network)
    assert network.seen[0][:2] == (1, 2) and numpy.array_equal(kept["a"], truth)


# ---- classification


def classification() -> dict:
    conf = conf_of([], [component("ROCAUC"), component("Accuracy")])
    conf["train"]["loss"] = component("CrossEntropyLoss")
    for transform in conf["validate"]["pre_transforms"]:
        transform["args"]["keys"] = "image"
    conf["validate"]["post_transforms"] = [component("Activationsd", keys="pred", softmax=True)]
    return conf


class MeanIntensity(torch.nn.Module):
    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)


def test_the_area_under_the_curve_is_sklearns(tmp_path):
    from sklearn.metrics import log_loss, roc_auc_score

    rng = numpy.random.RandomState(0)
    labels = [0, 1, 0, 1, 1, 0, 0, 1]
    cases = [
        case(tmp_path, f"c{i}", [rng.randn(8, 8).astype(numpy.float32) + 0.1 * y], y) for i, y in enumerate(labels)
    ]
    evaluation, kept = score(
        tmp_path, cases, classification(), MeanIntensity(), {0: "no", 1: "yes"}, task="classification"
    )
    probabilities = numpy.stack([kept[c["case"]] for c in cases])
    assert evaluation.aggregated()["ROCAUC"] == pytest.approx(roc_auc_score(labels, probabilities[:, 1]), abs=1e-6)
    assert evaluation.aggregated()["Accuracy"] == pytest.approx(numpy.mean(probabilities.argmax(1) == labels))
    assert evaluation.aggregated()["loss"] == pytest.approx(log_loss(labels, probabilities), abs=1e-5)
    assert len(evaluation.details) == 8 and evaluation.class_details == []
    table = read_tsv(probability_table([(c, kept[c["case"]]) for c in cases], {0: "no", 1: "yes"}))
    assert [float(r["probability_yes"]) for r in table] == probabilities[:, 1].tolist()
    assert [int(r["predicted"]) for r in table] == probabilities.argmax(1).tolist()


# ---- the network, and what goes wrong


def test_a_network_is_scored_in_evaluation_mode_and_given_back_as_it_was(tmp_path):
    network = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.BatchNorm2d(1), Nearest(2)).train()
    cases = squares(tmp_path, 3)
    first, _ = score(tmp_path, cases, network=network, names={0: "background", 1: "box"})
    again, _ = score(tmp_path, cases, network=network, names={0: "background", 1: "box"})
    assert first.details == again.details
    assert network.training and int(network[1].num_batches_tracked) == 0


def test_a_lost_file_is_named(tmp_path):
    cases = squares(tmp_path, 1)
    (tmp_path / cases[0]["label"]).unlink()
    with pytest.raises(UserError, match=r"c0_label\.nii\.gz: file not found; restore it"):
        score(tmp_path, cases)


def test_a_network_that_cannot_take_the_image_is_told_with_the_case(tmp_path):
    with pytest.raises(UserError, match=r"case c0: network or loss on an image \[1, 1, 16, 16\] failed: RuntimeError"):
        score(tmp_path, squares(tmp_path, 1), network=torch.nn.Conv2d(3, 2, 1))


# ---- segmentations as files


@pytest.mark.parametrize("affine", [numpy.diag([0.5, 2.0, 1.25, 1.0]), oblique((0.5, 2.0, 1.25))])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_saved_segmentation_lies_where_its_image_does(affine, channels, tmp_path):
    classes = blobs((12, 13, 11))
    voxels = numpy.zeros((12, 13, 11) if channels == 1 else (12, 13, 11, channels), numpy.int16)
    save_nifti(tmp_path / "image.nii.gz", voxels, affine, ("micron", "msec"))
    data = segmentation_bytes(classes, tmp_path / "image.nii.gz")
    (tmp_path / "saved.nii.gz").write_bytes(data)
    saved, image = nibabel.load(tmp_path / "saved.nii.gz"), nibabel.load(tmp_path / "image.nii.gz")
    assert numpy.array_equal(numpy.asarray(saved.dataobj), classes) and saved.get_data_dtype() == numpy.uint8
    assert numpy.allclose(saved.affine, image.affine) and saved.shape == image.shape[:3]
    assert saved.header.get_xyzt_units() == ("micron", "msec")
    assert [int(saved.header[k]) for k in ("qform_code", "sform_code")] == [
        int(image.header[k]) for k in ("qform_code", "sform_code")
    ]
    assert data == segmentation_bytes(classes, tmp_path / "image.nii.gz") and gzip.decompress(data)
