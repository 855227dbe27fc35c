"""MONAI's own client runs the archive's bundle and gets its numbers; packs work where the archive is not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy
import pytest
import torch
from armarium import layout
from armarium.packing import pack_bundle, pack_triton
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from .bundle_client import META, assert_same_scores, evaluations, run_client
from .conftest import Project, hashes


@pytest.fixture(scope="module")
def ran(built, tmp_path_factory) -> Path:
    """What MONAI's client wrote of the micro archive."""
    output = tmp_path_factory.mktemp("client")
    calls = [
        {"config_file": f"configs/{name}.json", "dataset_dir": str(built.folder), "output_dir": str(output / name)}
        for name in ("inference", "train")
    ]
    run_client(built.archive, calls[0], *evaluations(built.folder, output), {**calls[1], "epochs": 1})
    return output


def test_its_segmentations_are_the_archives_voxel_for_voxel(built, ran):
    files = sorted(built.archive.glob("eval/*/*_seg.nii.gz"))
    assert len(files) == 3 == len(list((ran / "inference").rglob("*.nii.gz")))
    for file in files:
        ours, theirs = (nibabel.load(f) for f in (file, ran / "inference" / file.relative_to(built.archive / "eval")))
        assert numpy.array_equal(ours.affine, theirs.affine)
        assert numpy.array_equal(numpy.asarray(ours.dataobj), numpy.asarray(theirs.dataobj))


def test_its_scores_are_those_of_the_tables(built, ran):
    assert_same_scores(built.archive, "MeanDice", ran)


def test_it_trains_the_recipe_and_keeps_the_best_weights(built, ran):
    (kept,) = (ran / "train").glob("model_key_metric=*.pt")
    trained, ours = (torch.load(f, weights_only=True) for f in (kept, built.archive / "models/model.pt"))
    assert trained.keys() == ours.keys()
    assert any(not torch.equal(trained[k], ours[k]) for k in ours)


def test_the_documented_command_runs_inference(built, tmp_path):
    if importlib.util.find_spec("fire") is None:
        pytest.skip("the command line of monai.bundle needs fire, which is not installed")
    options = ["--config_file", "configs/inference.json", "--meta_file", META, "--dataset_dir", str(built.folder)]
    command = [sys.executable, "-m", "monai.bundle", "run", *options, "--output_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=built.archive, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(tmp_path.rglob("*_seg.nii.gz"))) == 3


# ---- packs


@pytest.fixture(scope="module")
def packed(built, tmp_path_factory) -> Project:
    """The micro archive with every pack, and each pack unpacked where nothing of the archive is."""
    project = Project.copy_of(built, tmp_path_factory.mktemp("packs") / "project")
    archive, cache = str(project.archive), str(project.folder / ".cache/armarium")
    for client in (layout.LABEL, layout.DEPLOY):
        pack_bundle(archive, client)
    pack_triton(archive, cache, False)
    for client in layout.PACKS:
        with zipfile.ZipFile(layout.pack(archive, client)) as pack:
            pack.extractall(project.folder.parent / client)
    return project


def unpacked(packed: Project, client: str) -> Path:
    (folder,) = (packed.folder.parent / client).iterdir()
    assert folder.name == "synthetic_segmentation"
    return folder


def test_a_pack_has_the_same_bytes_whatever_the_archives_folder_is_called(packed):
    other = packed.archive.rename(packed.archive.with_name("other"))
    try:
        for client in (layout.LABEL, layout.DEPLOY):
            before = Path(layout.pack(str(other), client)).read_bytes()
            pack_bundle(str(other), client)
            assert Path(layout.pack(str(other), client)).read_bytes() == before
    finally:
        other.rename(packed.archive)


def test_the_pack_for_monai_label_is_a_bundle_on_its_own(packed):
    from monai.bundle import create_workflow, load

    folder, weights = unpacked(packed, layout.LABEL), packed.archive / "models/model.pt"
    assert [f.name for f in folder.glob("models/*.pt")] == ["model.pt"]
    network = load(folder.name, bundle_dir=str(folder.parent), workflow_type="inference", device="cpu")
    found, wanted = network.state_dict(), torch.load(weights, weights_only=True)
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)
    image = next((packed.folder / "data/micro").glob("images*/case_009.nii.gz"))
    workflow = create_workflow(
        config_file=str(folder / "configs/inference.json"),
        meta_file=str(folder / META),
        workflow_type="inference",
        logging_file=False,
        bundle_root=str(folder),
        output_dir=str(folder.parent / "made"),
        data=[{"image": str(image)}],
    )
    assert not workflow.check_properties()
    workflow.run()
    made = nibabel.load(folder.parent / "made/case_009/case_009_seg.nii.gz")
    ours = nibabel.load(packed.archive / "eval/case_009/case_009_seg.nii.gz")
    assert numpy.array_equal(numpy.asarray(made.dataobj), numpy.asarray(ours.dataobj))
    labels = json.loads((folder / META).read_text())["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert labels == {"0": "background", "1": "ellipsoid 1"}


def test_packs_tell_of_no_case(packed):
    for client in layout.PACKS:
        for file in (f for f in (packed.folder.parent / client).rglob("*") if f.is_file()):
            assert b"case_0" not in file.read_bytes(), file


def test_the_pack_for_monai_deploy_has_its_configurations_inside_the_model(packed):
    folder = unpacked(packed, layout.DEPLOY)
    model = folder / "models" / folder.name / "model.ts"
    with zipfile.ZipFile(model) as inside:
        texts = {name: json.loads(inside.read(f"model/extra/{name}.json")) for name in ("metadata", "inference")}
    assert texts["inference"] == json.loads((packed.archive / "configs/inference.json").read_text())
    assert texts["metadata"] == json.loads((packed.archive / META).read_text())


def model_config(text: str):
    """``config.pbtxt`` by protobuf's own reader, with those fields of Triton's ModelConfig that are in use."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="triton", syntax="proto3")
    types = file.enum_type.add(name="DataType")
    for number, name in enumerate(("TYPE_INVALID", "TYPE_FP32")):
        types.value.add(name=name, number=number)
    repeated, single = field.LABEL_REPEATED, field.LABEL_OPTIONAL
    tensor = [("name", single, field.TYPE_STRING, ""), ("data_type", single, field.TYPE_ENUM, ".triton.DataType")]
    tensor += [("dims", repeated, field.TYPE_INT64, ""), ("label_filename", single, field.TYPE_STRING, "")]
    model = [("name", single, field.TYPE_STRING, ""), ("platform", single, field.TYPE_STRING, "")]
    model += [("max_batch_size", single, field.TYPE_INT32, "")]
    model += [(k, repeated, field.TYPE_MESSAGE, ".triton.Tensor") for k in ("input", "output")]
    for message, fields in (("Tensor", tensor), ("ModelConfig", model)):
        described = file.message_type.add(name=message)
        for number, (name, label, kind, of) in enumerate(fields, 1):
            described.field.add(name=name, number=number, label=label, type=kind, type_name=of or None)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("triton.ModelConfig"))
    return text_format.Parse(text, config())


def test_the_pack_for_triton_is_a_repository_whose_model_takes_and_gives_what_it_says(packed):
    folder = unpacked(packed, layout.TRITON)
    config = model_config((folder / "config.pbtxt").read_text())
    assert (config.name, config.platform) == (folder.name, "pytorch_libtorch")
    (given,), (made,) = config.input, config.output
    assert (given.name, made.name) == ("INPUT__0", "OUTPUT__0")
    assert list(given.dims) == [1, -1, -1] and list(made.dims) == [2, -1, -1]
    network = torch.jit.load(folder / "1/model.pt").eval()
    for grid in ((20, 24), (36, 8)):
        output = network(torch.rand(config.max_batch_size, 1, *grid))
        assert list(output.shape) == [config.max_batch_size, 2, *grid] and output.dtype == torch.float32
    assert (folder / made.label_filename).read_text().splitlines() == ["background", "ellipsoid 1"]


@pytest.mark.slow
def test_a_pack_that_was_asked_for_by_name_belongs_to_the_archive(copy):
    before = hashes(copy.archive)
    files = [f"archives/micro/packs/{client}.zip" for client in layout.PACKS]
    assert copy.ran(*files) == {"pack_bundle": 2, "pack_triton": 1}
    assert copy.ran() == {"write_manifest": 1}
    made = hashes(copy.archive)
    assert {f.removeprefix("archives/micro/") for f in files} == made.keys() - before.keys()
    assert copy.planned() == {}
    (copy.folder / files[2]).unlink()
    assert copy.ran(files[2]) == {"pack_triton": 1}
    assert hashes(copy.archive) == made
