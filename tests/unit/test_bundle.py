"""The Bundle face, read by MONAI's own client."""

from __future__ import annotations

import csv
import json
from importlib.metadata import version
from pathlib import Path

import nibabel
import numpy
import pytest
import torch
from armarium import bundle, bundle_metadata, layout
from armarium.errors import UserError
from armarium.files import write_json
from test_maps import CASES, change_recipe, make_archive


@pytest.fixture
def archive(tmp_path):
    return make_archive(tmp_path)


def write_data(archive: str, root: Path, classes: bool = False) -> None:
    """Two small test images, and the datalist that names them."""
    items = []
    for i, case in enumerate(CASES[4:]):
        path = root / "d" / "images" / f"{case}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        volume = numpy.random.default_rng(i).normal(size=(13, 12, 11)).astype("float32")
        nibabel.save(nibabel.Nifti1Image(volume, numpy.diag([1, 2, 3, 1])), path)
        items.append({"image": f"d/images/{case}.nii.gz", "label": i if classes else f"d/labels/{case}.nii.gz"})
    write_json(layout.datalist(archive, 0), dict.fromkeys(("training", "validation", "test"), items))


def write_bundle(archive: str) -> None:
    for name in layout.BUNDLE_CONFIGS:
        assert bundle.write_bundle_config(archive, name) == [layout.bundle_config(archive, name)]


def parsed(archive: str, name: str):
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(layout.bundle_config(archive, name))
    parser["bundle_root"] = archive
    return parser


def publish_random_weights(archive: str) -> torch.nn.Module:
    torch.manual_seed(0)
    network = parsed(archive, "inference.json").get_parsed_content("network_def").eval()
    Path(layout.published_model(archive)).parent.mkdir(parents=True)
    torch.save(network.state_dict(), layout.published_model(archive))
    return network


def run_inference(archive: str, root: Path, output: Path) -> None:
    from monai.bundle import run

    files = [layout.bundle_config(archive, n) for n in ("inference.json", "metadata.json", "logging.conf")]
    places = {"bundle_root": archive, "dataset_dir": str(root), "output_dir": str(output)}
    run(config_file=files[0], meta_file=files[1], logging_file=files[2], workflow_type="inference", **places)


def test_monai_finds_every_property_it_wants(archive, tmp_path):
    from monai.bundle import create_workflow

    write_bundle(archive)
    write_data(archive, tmp_path)
    meta = layout.bundle_config(archive, "metadata.json")
    for name, kind in (("inference", "inference"), ("evaluate", "inference"), ("train", "train")):
        path = layout.bundle_config(archive, f"{name}.json")
        workflow = create_workflow(
            config_file=path, workflow_type=kind, meta_file=meta, logging_file=False, bundle_root=archive
        )
        assert not workflow.check_properties(), name


def test_the_network_takes_and_gives_what_metadata_says(archive):
    from monai.bundle import verify_net_in_out

    write_bundle(archive)
    meta, config = (layout.bundle_config(archive, n) for n in ("metadata.json", "inference.json"))
    verify_net_in_out("network_def", meta_file=meta, config_file=config, device="cpu", bundle_root=archive)


def test_inference_writes_class_numbers_on_each_images_own_grid(archive, tmp_path):
    write_bundle(archive)
    write_data(archive, tmp_path)
    network = publish_random_weights(archive)
    run_inference(archive, tmp_path, tmp_path / "out")
    for case in CASES[4:]:
        image = nibabel.load(tmp_path / "d" / "images" / f"{case}.nii.gz")
        found = nibabel.load(tmp_path / "out" / case / f"{case}_seg.nii.gz")
        assert found.shape == image.shape and numpy.allclose(found.affine, image.affine)
        assert found.get_data_dtype() == numpy.uint8
        # By hand: normalize, pad to multiples of 8 on both sides, predict, crop.
        volume = image.get_fdata(dtype=numpy.float32)
        padding = [((-n % 8) // 2, (-n % 8) - (-n % 8) // 2) for n in volume.shape]
        padded = numpy.pad((volume - volume.mean()) / volume.std(), padding)
        with torch.no_grad():
            classes = network(torch.from_numpy(padded)[None, None])[0].argmax(0).numpy()
        inside = tuple(slice(a, a + n) for (a, _), n in zip(padding, volume.shape, strict=True))
        assert (numpy.asarray(found.dataobj) == classes[inside]).mean() > 0.999


def to_classification(conf: dict) -> None:
    only_image = {"keys": "image"}
    for section in ("train", "validate"):
        kept = [t for t in conf[section]["pre_transforms"] if not t.get("name", "").startswith("Rand")]
        for transform in kept:
            if "args" in transform:
                transform["args"].update(only_image)
        conf[section]["pre_transforms"] = kept
        conf[section]["post_transforms"] = [{"name": "Activationsd", "args": {"keys": "pred", "softmax": True}}]
    args = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "init_features": 4, "growth_rate": 2}
    conf["train"]["model"] = {"name": "DenseNet", "args": {**args, "block_config": [1, 1]}}
    conf["train"]["loss"] = {"name": "CrossEntropyLoss", "args": {}}
    conf["validate"]["key_metric"] = {"name": "ROCAUC", "log_label": "AUC", "args": {}}
    conf["validate"]["additional_metrics"] = []


def test_classification_writes_a_row_of_probabilities_per_image(tmp_path):
    recipe = change_recipe(tmp_path / "recipe", to_classification)
    section = {"dataset": {"list": "d/dataset.json", "task": "classification"}}
    archive = make_archive(tmp_path, recipe, section)
    write_bundle(archive)
    write_data(archive, tmp_path, classes=True)
    publish_random_weights(archive)
    run_inference(archive, tmp_path, tmp_path / "out")
    rows = list(csv.reader((tmp_path / "out" / "predictions.csv").open()))
    assert [Path(r[0]).name for r in rows] == ["case_4.nii.gz", "case_5.nii.gz"]
    assert all(sum(map(float, r[1:])) == pytest.approx(1, abs=1e-4) and len(r) == 3 for r in rows)
    assert json.loads(Path(layout.bundle_config(archive, "metadata.json")).read_text())["task"].startswith(
        "classification"
    )
    assert (
        parsed(archive, "train.json").get_parsed_content("loss", instantiate=True).__class__
        is torch.nn.CrossEntropyLoss
    )


def test_metadata_is_named_by_channel_and_class_and_free_of_results(archive):
    meta = bundle.metadata(archive)
    image, pred = (meta["network_data_format"][k][n] for k, n in (("inputs", "image"), ("outputs", "pred")))
    assert image["channel_def"] == {"0": "MRI"} and pred["channel_def"] == {"0": "background", "1": "blob"}
    assert meta["version"] in meta["changelog"]
    assert "value" not in meta and "eval_metrics" not in meta


def test_the_required_versions_are_those_tested():
    names = {
        "monai": "monai",
        "torch": "torch",
        "numpy": "numpy",
        "nibabel": "nibabel",
        "pytorch-ignite": "pytorch-ignite",
    }
    found = {k: version(v).split("+")[0] for k, v in names.items()}
    assert found == bundle_metadata.REQUIRES


@pytest.mark.parametrize(
    ("transforms", "inferer", "wanted"),
    [
        ([], {}, [64, 64, 64]),
        ([{"name": "DivisiblePadd", "args": {"k": 24}}], {}, [72, 72, 72]),
        ([{"name": "SpatialPadd", "args": {"spatial_size": [48, 62, 48]}}], {}, [48, 64, 48]),
        ([{"name": "Resized", "args": {"spatial_size": 32}}], {"roi_size": [16, 16, 16]}, [16, 16, 16]),
    ],
)
def test_the_grid_follows_from_window_size_and_strides(transforms, inferer, wanted):
    model = {"name": "UNet", "args": {"spatial_dims": 3, "strides": [2, 2]}}
    settings = {"model": model, "validate": {"pre_transforms": transforms, "inferer": {"args": inferer}}}
    assert bundle_metadata.spatial_shape(settings) == wanted


def test_no_expression_but_the_few_that_a_reader_can_check(archive):
    def expressions(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [e for v in value for e in expressions(v)]
        return [value] if isinstance(value, str) and value.startswith("$") else []

    found = {
        e
        for c in (bundle.inference_config, bundle.evaluate_config, bundle.train_config)
        for e in expressions(c(archive))
    }
    assert found == {
        "$@bundle_root + '/output'",
        "$@bundle_root + '/models/model.pt'",
        "$@bundle_root + '/config/dataset_0.json'",
        "$@evaluator.run()",
        "$@network.parameters()",
        *(
            f"$lambda pred, label: (d := @{place}measures#HausdorffDistance(pred, label, "
            "spacing=[float(n) for n in label.pixdim])) - d + d"
            for place in ("", "validate#")
        ),
        "$monai.handlers.from_engine(['output', 'prepared'])",
        "$@network_def.to(@device)",
        "$@train#trainer.run()",
        "$len(@train#dataloader) * @epochs",
        "$monai.handlers.from_engine(['loss'], first=True)",
        "$monai.handlers.from_engine(['pred', 'label'])",
        "$monai.utils.set_determinism(seed=0)",
        "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    }


def test_a_file_that_bundles_do_not_have_is_refused(archive):
    with pytest.raises(UserError, match=r"wanted one of metadata.json"):
        bundle.write_bundle_config(archive, "other.json")
