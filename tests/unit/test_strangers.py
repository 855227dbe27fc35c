"""Archives from strangers: whatever lies in one, nothing of it is run, nothing outside it is read or written.

Every input here does harm where it is taken at its word; where that can be shown at no risk, a test shows it.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nibabel
import numpy
import pytest
import torch
from armarium import layout, loading, steps
from armarium.adoption import adopt
from armarium.apps import evaluate, train
from armarium.boundary import check_boundary
from armarium.cache import PreparedCases
from armarium.components import build
from armarium.configure import Globals, configure
from armarium.contents import contents_of
from armarium.environment import frozen_environment
from armarium.errors import Problems, UserError
from armarium.evaluation import LabelFiles
from armarium.files import write_json
from armarium.hashing import HashIndex, sha256
from armarium.network import build_network
from armarium.run import Workspace, member_of_checkpoint, run_info, saved
from armarium.split_files import read_splits
from armarium.summary import summary
from armarium.trust import is_exported_here, note_exported
from armarium.weights import load_into, load_weights
from armarium.zips import copy_member, write_zip, zip_member
from tiny import REPO, component, configured, recipe, save_nifti, settings, write_recipe


@pytest.fixture
def canary(tmp_path) -> Path:
    """A file that is made where a stranger's code runs."""
    return tmp_path / "canary"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A project with an archive ``archives/a``, which tests take for one that is merely on disk."""
    write_recipe(tmp_path / "recipe")
    configured(tmp_path)
    return tmp_path


def held(folder: Path, allow: tuple[str, ...] = ()):
    return configure(str(folder / "archives/a"), None, Globals(cache_dir=str(folder / "cache"), allow=allow))


def refused(function, *args) -> str:
    with pytest.raises(UserError) as caught:
        function(*args)
    return str(caught.value)


def rewrite(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- configurations that would run code


def call(path: str, **args) -> dict:
    return {"path": path, "args": args}


@pytest.mark.parametrize("path", ["os.system", "subprocess.call", "builtins.eval", "pathlib.Path.touch"])
def test_an_archive_cannot_allow_itself_code(folder, canary, path):
    config = folder / "archives/a/config"
    rewrite(config / "archive.json", lambda spec: spec.update(allow=[path]))
    rewrite(config / "config_train.json", lambda c: c["train"].update(loss=call(path, command=f"touch {canary}")))
    message = refused(held, folder)
    assert f"archive.json: allow names {path}" in message and "--config allow=" in message
    assert held(folder, allow=(path,)).spec["allow"] == [path], "who uses it may allow it"
    assert not canary.exists()


def test_what_the_effective_configuration_allows_is_not_enough_for_a_job(folder, canary, monkeypatch):
    """A step called by hand, on files that no planning has seen."""
    archive = str(folder / "archives/a")
    loss = call("os.system", command=f"touch {canary}")
    rewrite(Path(layout.effective(archive, "train")), lambda s: s.update(allow=["os.system"], loss=loss))
    write_json(layout.dataset_json(archive), {"labels": {"0": "background", "1": "b"}, "modality": {"0": "MRI"}})
    monkeypatch.delenv(loading.ALLOWED, raising=False)
    assert "allow is ['os.system']" in refused(steps.check_recipe, archive)
    assert not canary.exists()
    monkeypatch.setenv(loading.ALLOWED, '["os.system"]')
    steps.check_recipe(archive)
    assert canary.exists(), "the configuration was harmful"


CODE = [
    "$__import__('os').system('touch {}')",
    "#__import__('os').system('touch {}')",
    "%{}::run",
    "lambda: __import__('os').system('touch {}')",
]


@pytest.mark.parametrize("code", CODE)
def test_expressions_in_an_archives_own_configuration_are_refused(folder, canary, code):
    given = code.format(canary)
    rewrite(
        folder / "archives/a/config/config_train.json",
        lambda c: c["train"]["loss"]["args"].update(weight=[{"x": given}]),
    )
    assert "is code, which is never run" in refused(held, folder)
    assert not canary.exists()


@pytest.mark.parametrize("key", ["name", "path"])
@pytest.mark.parametrize("name", ["../../../x", "a/b", "AdamW;touch x", "$(touch x)", "os.system\n", "a b", ""])
def test_the_name_of_a_component_is_a_name_and_nothing_else(folder, key, name):
    rewrite(
        folder / "archives/a/config/config_train.json",
        lambda c: c["train"].update(optimizer={key: name, "args": {}}),
    )
    message = refused(held, folder)
    assert "wanted the name of a class" in message or "is code, which is never run" in message


def test_environment_and_origin_are_values(folder, canary):
    archive = folder / "archives/a"
    (archive / "config/environment.json").write_text(
        json.dumps({"DATA_ROOT": ".", "learning_rate": f"$__import__('os').system('touch {canary}')"})
    )
    assert "learning_rate is" in refused(held, folder)
    (archive / "config/environment.json").write_text(json.dumps({"DATA_ROOT": ".", "OWN": {"a": ["b"]}}))
    assert "environment.json beside" in refused(held, folder)
    assert not canary.exists()


def test_nothing_here_reads_a_logging_configuration():
    """logging.config evaluates its ``args=``; an archive has such a file for other programs."""
    for path in (REPO / "workflow").rglob("*"):
        if path.suffix in (".py", ".smk") or path.name == "Snakefile":
            text = path.read_text()
            assert "logging.config" not in text and "fileConfig(" not in text, path


# ---- components that would read or write files of their own


REACHING_OUT = [
    ("transform", component("SaveImaged", keys="image", output_dir="HERE", separate_folder=False)),
    ("transform", component("SaveImage", output_dir="HERE")),
    ("transform", component("SaveClassificationd", keys="image", output_dir="HERE")),
    ("transform", component("WriteFileMapping", mapping_file_path="HERE/x.json")),
    ("transform", component("RandTorchIOd", keys="image")),
    ("transform", component("TorchVisiond", keys="image")),
    ("transform", component("CuCIMd", keys="image")),
    ("handler", component("LogfileHandler", output_dir="HERE/made")),
    ("handler", component("TensorBoardImageHandler", log_dir="HERE/made")),
    ("handler", component("ClassificationSaver", output_dir="HERE/made")),
    ("handler", component("MLFlowHandler", tracking_uri="file:HERE/made")),
    ("handler", component("DiskSaver", dirname="HERE/made")),
    ("handler", component("Checkpoint", to_save={}, save_handler="HERE/made")),
    ("handler", component("ModelCheckpoint", dirname="HERE/made")),
    ("handler", component("TensorboardLogger", log_dir="HERE/made")),
    ("metric", component("MetricsSaver", save_dir="HERE/made")),
    ("metric", component("LogfileHandler", output_dir="HERE/made")),
    ("inferer", component("ZarrAvgMerger", merged_shape=[1], store="HERE/made")),
    ("loss", component("PerceptualLoss", spatial_dims=2, pretrained_path="HERE/x.pt")),
    ("model", component("HoVerNet", pretrained_url="https://example.org/x")),
    ("model", component("ResNetFeatures", model_name="resnet18", pretrained="HERE/x.pt")),
]


@pytest.mark.parametrize(("kind", "described"), REACHING_OUT, ids=[f"{k} {c['name']}" for k, c in REACHING_OUT])
def test_a_component_that_reaches_files_is_not_built_by_name(kind, described, tmp_path):
    given = json.loads(json.dumps(described).replace("HERE", str(tmp_path)))
    message = refused(build, kind, given)
    assert "may reach files or addresses outside the archive" in message and "'allow'" in message
    assert list(tmp_path.iterdir()) == []


def test_who_wants_such_a_component_may_have_it(tmp_path):
    given = {"path": "ignite.handlers.DiskSaver", "args": {"dirname": str(tmp_path / "made")}}
    build("handler", given, ["ignite.handlers.DiskSaver"])
    assert (tmp_path / "made").is_dir()


def test_allowed_code_in_the_working_directory_hides_nothing_that_is_installed(tmp_path):
    """Planned jobs import nothing from there; only an allowed path is looked for, and last."""
    (tmp_path / "json.py").write_text("raise SystemExit('taken from the working directory')")
    (tmp_path / "own_loss.py").write_text("class Loss:\n    pass\n")
    code = "from armarium.components import build; import json, sys; print(build('loss', {'path': sys.argv[1], 'args': {}}, [sys.argv[1]]))"
    command = [sys.executable, "-c", code, "own_loss.Loss"]
    environment = {**os.environ, "PYTHONPATH": str(REPO / "workflow"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "own_loss.Loss object" in done.stdout, done.stderr


# ---- pickles


class Touching:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def as_torch_saves(value) -> bytes:
    return saved(value)


def as_torch_saved_once(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


EVIL = {"zip": as_torch_saves, "old": as_torch_saved_once, "plain pickle": pickle.dumps}


@pytest.fixture(params=EVIL)
def evil(request, canary) -> bytes:
    """A pickle that was proven to run code."""
    data = EVIL[request.param]({"network.weight": Touching(canary), "fingerprint": Touching(canary)})
    load = pickle.loads if request.param == "plain pickle" else lambda d: torch.load(io.BytesIO(d), weights_only=False)
    load(data)
    assert canary.exists()
    canary.unlink()
    return data


def a_run(path: Path, weights: bytes) -> str:
    info = {"epochs": 1, "best": {"loss": {"value": 0.5, "epoch": 1}}, "input_shape": [1, 16, 16]}
    write_zip(path, {"run.json": json.dumps(info), member_of_checkpoint(1): weights})
    return str(path)


def test_a_pickle_among_the_weights_is_not_loaded(tmp_path, evil, canary):
    path = a_run(tmp_path / "run.zip", evil)
    message = refused(load_weights, path, 1)
    assert "run.zip: checkpoints/epoch-1.pt" in message and "put back a copy, or delete this file" in message
    refused(load_into, build_network(settings()), path, 1)
    assert not canary.exists()


def test_a_pickle_as_resume_state_is_not_loaded(tmp_path, evil, canary, capsys):
    workspace = Workspace(str(tmp_path / "a"), "0", "f")
    workspace.folder.mkdir(parents=True)
    workspace.state_file.write_bytes(evil)
    assert workspace.load_state() is None and not canary.exists()
    assert "state.pt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "progress",
    [
        {"best": {"loss": {"value": 1.0, "epoch": "../../../secret"}}},
        {"epoch": "../../x"},
        {"unknown": 1},
        {"history": []},
    ],
)
def test_a_resume_state_of_other_values_is_refused(tmp_path, progress):
    from armarium.history import Progress

    with pytest.raises((TypeError, KeyError)):
        Progress.of(progress)
    assert Progress.of({"epoch": 2, "best": {"loss": {"value": 1.0, "epoch": 2}}}).epochs_to_keep([]) == {2}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda: saved([torch.zeros(1)]), "something else than tensors by name"),
        (lambda: saved({"network.x": 3}), "something else than tensors by name"),
        (lambda: saved({"network.x": torch.zeros(3)}), "weights of another network than the recipe's"),
        (lambda: saved({"network.x": torch.zeros(10**7)}), "wanted at most"),
        (lambda: compressed(saved({"x": torch.zeros(10**6)})), "is compressed, claiming"),
        (lambda: saved({"x": torch.zeros(9)})[:-9], "no file of weights as torch saves it"),
        (lambda: b"", "no file of weights as torch saves it"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, weights, message):
    path = a_run(tmp_path / "run.zip", weights())
    assert message in refused(load_into, build_network(settings()), path, 1)


def compressed(data: bytes) -> bytes:
    """A zip file's members, deflated."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return out.getvalue()


@pytest.mark.parametrize("reader", ["NumpyReader", "NibabelReader", None])
def test_a_pickle_that_is_called_nifti_is_not_unpickled(tmp_path, canary, reader):
    """MONAI tries all its readers when one is named, and its NumpyReader unpickles."""
    evil = pickle.dumps(Touching(canary))
    (tmp_path / "x.nii").write_bytes(evil)
    if reader == "NumpyReader":
        from monai.transforms import LoadImaged

        LoadImaged(keys="image", reader=reader, image_only=True)  # MONAI's own: takes any
        numpy.load(tmp_path / "x.nii", allow_pickle=True)
        assert canary.exists()
        canary.unlink()
    args = {"keys": "image", **({"reader": reader} if reader else {})}
    case = {"case": "x", "image": ["x.nii"], "label": None, "sha256": [sha256(tmp_path / "x.nii"), ""]}

    def prepare():
        PreparedCases([component("LoadImaged", **args)], str(tmp_path), str(tmp_path / "cache")).get(case)

    message = refused(prepare)
    assert "no NIfTI file" in message if reader != "NumpyReader" else "wanted NibabelReader or ITKReader" in message
    assert not canary.exists()


# ---- TorchScript


def test_only_torchscript_of_this_place_is_known(tmp_path):
    note_exported(tmp_path / "cache", [b"mine"])
    assert is_exported_here(tmp_path / "cache", b"mine") and not is_exported_here(tmp_path / "cache", b"another's")


# ---- paths that leave the archive


def test_a_link_out_of_the_archive_is_refused_whatever_it_is(folder, tmp_path):
    archive, outside = folder / "archives/a", tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text("{}")
    check_boundary(str(archive))
    for name, target in (("models", outside), ("config/x.json", outside / "secret.json"), ("gone", "/nowhere/at/all")):
        (archive / name).symlink_to(target)
        assert f"{archive / name}: a link that leaves the archive" in refused(check_boundary, str(archive))
        (archive / name).unlink()
    (archive / "inside").symlink_to("config")
    check_boundary(str(archive))


@pytest.mark.parametrize("kind", ["pipe", "link to itself", "links in a circle", "escape codes in a name", "socket"])
def test_what_is_neither_file_nor_folder_is_refused(folder, kind):
    archive = folder / "archives/a"
    strange = archive / "models"
    if kind == "pipe":
        os.mkfifo(strange)
    elif kind == "link to itself":
        strange.symlink_to("models")
    elif kind == "links in a circle":
        strange.symlink_to("other")
        (archive / "other").symlink_to("models")
    elif kind == "socket":
        import socket

        here = os.getcwd()
        os.chdir(archive)  # a socket's path must be short
        try:
            socket.socket(socket.AF_UNIX).bind("models")
        finally:
            os.chdir(here)
    else:
        (archive / "\x1b[31m").touch()
    message = refused(check_boundary, str(archive))
    wanted = {"pipe": "neither a file", "socket": "neither a file", "escape codes in a name": "cannot be shown"}
    assert wanted.get(kind, "leads to itself") in message and "\x1b" not in message


def test_programs_that_run_before_planning_keep_to_the_boundary(folder, tmp_path):
    archive = folder / "archives/a"
    (archive / "models").symlink_to(tmp_path)
    for program in (
        contents_of,
        lambda a: train.targets(a, True),
        lambda a: evaluate.targets(a, "", scores=False, predictions=True),
    ):
        assert "leaves the archive" in refused(program, str(archive))
    Path(layout.manifest(str(archive))).write_text("{}")
    assert "leaves the archive" in refused(summary, str(archive))


@pytest.mark.parametrize(
    "name", ["../../../../secret", "a;touch x", "$(touch x)", "a/b", ".hidden", "-rf", "a b", "a\n"]
)
def test_a_case_is_named_by_a_name(tmp_path, name):
    case = {"participant_id": "sub-1", "session_id": "ses-1", "image": ["x.nii"], "label": 1}
    splits = {"splits": [{"train": [name], "validation": []}], "groups": {}, "cases": {name: case}}
    write_json(tmp_path / "splits.json", splits)
    assert "wanted a file name of letters" in refused(read_splits, tmp_path / "splits.json")


@pytest.mark.parametrize("image", ["/etc/x.nii", "../../x.nii", "a/../../x.nii", "~/x.nii", "C:\\x.nii", "x.npy"])
def test_the_files_of_a_case_stay_in_the_data_root(folder, image):
    archive = str(folder / "archives/a")
    case = {"participant_id": "sub-1", "session_id": "ses-1", "image": [image], "label": 1}
    write_json(
        layout.splits_json(archive),
        {"splits": [{"train": ["c"], "validation": ["c"]}], "groups": {}, "cases": {"c": case}},
    )
    Path(layout.cases_tsv(archive)).write_text("case\timage_sha256\tlabel_sha256\nc\t0\t0\n")
    assert "has files that no dataset list may name" in refused(steps.cases_of, archive, ["c"])


BAD_NAMES = [
    ("select", lambda p: p.update(checkpoints=["best-x/../../../../../other"])),
    ("select", lambda p: p.update(checkpoints=["../../x"])),
    ("select", lambda p: p.update(checkpoints=[])),
    ("select", lambda p: p.update(checkpoints=[3])),
    ("test", lambda p: p.update(groups={"../../x": {}})),
    ("test", lambda p: p.pop("groups")),
    ("test", lambda p: p.update(groups={"g": {"given": True, "split": 99}})),
    ("test", lambda p: p.update(groups={"g": {"given": True, "split": ["../x"]}})),
    ("split", lambda p: p["splits"].update(method="kfold", n_splits="many")),
    ("split", lambda p: p["splits"].update(method="kfold", n_splits=10**15)),
    ("publish", lambda p: p.update(publish="../x")),
    ("publish", lambda p: p.update(publish=7)),
]


@pytest.mark.parametrize(("part", "change"), BAD_NAMES)
def test_names_in_the_effective_configuration_are_names(folder, part, change):
    archive = str(folder / "archives/a")
    contents_of(archive)
    rewrite(Path(layout.effective(archive, part)), change)
    assert "not as planning writes them" in refused(contents_of, archive)


@pytest.mark.parametrize(
    "given", ["../../../secret", "/etc/passwd", "config/../../../x", "config/archive.json", "docs"]
)
def test_a_command_shows_only_the_archives_own_configurations(folder, given):
    program = [sys.executable, "-m", "armarium.apps.train", "-m", "archives/a", "-c", given, "--set", "print_conf=True"]
    environment = {**os.environ, "PYTHONPATH": str(REPO / "workflow")}
    (folder / "secret").write_text("a secret")
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "wanted one of the archive's own configurations" in done.stderr
    assert "secret" not in done.stdout and "root:" not in done.stdout and "Traceback" not in done.stderr


def test_a_manifest_touches_nothing_outside(folder, tmp_path):
    outside, archive = tmp_path / "outside", folder / "archives/a"
    outside.write_text("")
    os.utime(outside, (1000, 1000))
    digest = sha256(outside)
    files = [
        {"@id": name, "@type": "File", "sha256": digest, "contentSize": "0"}
        for name in ("../../outside", "..%2F..%2Foutside", str(outside))
    ]
    write_json(layout.manifest(str(archive)), {"@graph": files})
    adopt(str(archive), HashIndex(tmp_path / "hashes.sqlite"))
    assert outside.stat().st_mtime == 1000


def test_a_record_of_hand_edits_names_no_file_elsewhere(folder):
    (folder / "secret").write_text("a secret")
    rewrite(folder / "archives/a/config/effective/written.json", lambda w: w.update({"../../../secret": "0" * 64}))
    configured(folder)


# ---- zip files, JSON and images that would fill the memory: read by a process that may not have much


def entry(name: bytes, size: int, compressed: int, offset: int, method: int = 0, flags: int = 0) -> bytes:
    """A zip file's line of contents."""
    fields = (0x02014B50, 20, 20, flags, method, 0, 33, 0, compressed, size, len(name), 0, 0, 0, 0, 0, offset)
    return struct.pack("<LHHHHHHLLLHHHHHLL", *fields) + name


def local(name: bytes, size: int, method: int = 0, flags: int = 0) -> bytes:
    return struct.pack("<LHHHHHLLLHH", 0x04034B50, 20, flags, method, 0, 33, 0, size, size, len(name), 0) + name


def end(entries: int, size: int, offset: int) -> bytes:
    return struct.pack("<LHHHHLLH", 0x06054B50, 0, 0, entries, entries, size, offset, 0)


def stored_zip(path: Path, size: int, *, claims: int | None = None, flags: int = 0, method: int = 0) -> None:
    """A zip of ``run.json`` with ``size`` zero bytes, of which the disk holds none."""
    name, claims = b"run.json", size if claims is None else claims
    with open(path, "wb") as file:
        file.write(local(name, claims, method, flags))
        file.seek(size, os.SEEK_CUR)
        start = file.tell()
        line = entry(name, claims, size, 0, method, flags)
        file.write(line + end(1, len(line), start))


def overlapping_zip(path: Path) -> None:
    """The same megabyte a thousand times."""
    body = local(b"run.json", 1 << 20) + bytes(1 << 20)
    lines = b"".join(entry(f"m{i}".encode(), 1 << 20, 1 << 20, 0) for i in range(1000)) + entry(
        b"run.json", 1 << 20, 1 << 20, 0
    )
    path.write_bytes(body + lines + end(1001, len(lines), len(body)))


def endless_contents(path: Path) -> None:
    """A table of contents of almost four gigabytes."""
    size = 0xF0000000
    with open(path, "wb") as file:
        file.seek(size)
        file.write(end(1, size, 0))


def deflated_zip(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("run.json", "w") as member,
    ):
        for _ in range(500):
            member.write(bytes(1 << 20))


def twice_zip(path: Path) -> None:
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("run.json", '{"fingerprint": "one"}')
        archive.writestr("run.json", '{"fingerprint": "two"}')


def sparse(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)


def nifti(path: Path, shape: tuple[int, ...], offset: float = 352, version: int = 1, padding: int = 1000) -> None:
    """A header that declares ``shape``, and ``padding`` zero bytes after it."""
    header = nibabel.Nifti1Header() if version == 1 else nibabel.Nifti2Header()
    header.set_data_dtype(numpy.int16)
    header["dim"][: len(shape) + 1] = (len(shape), *shape)
    header["pixdim"][: len(shape) + 1] = 1
    header["magic"] = b"n+1" if version == 1 else b"n+2"
    header["vox_offset"] = offset
    header.set_sform(numpy.eye(4), 1)
    data = header.binaryblock + bytes(padding)
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


def yaml_of_aliases() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    return "\n".join(lines)


BOMBS = {
    "a compressed member": ("zip", deflated_zip, "is compressed, claiming 524,288,000 bytes"),
    "a member of 4 GB": ("zip", lambda p: stored_zip(p, 0xEFFFFFFF), "has 4,026,531,839 bytes, wanted at most"),
    "a member that claims 4 GB": ("zip", lambda p: stored_zip(p, 9, claims=0xEFFFFFFF), "is compressed, claiming"),
    "members on one another": ("zip", overlapping_zip, "overlaps another, or claims more"),
    "an endless table of contents": ("zip", endless_contents, "its table of contents claims 4,026,531,840 bytes"),
    "a member twice": ("zip", twice_zip, "it has the member 'run.json' twice"),
    "an encrypted member": ("zip", lambda p: stored_zip(p, 9, flags=1), "is encrypted"),
    "a method unknown": ("zip", lambda p: stored_zip(p, 9, method=99), "is compressed"),
    "zeros": ("zip", lambda p: sparse(p, 1 << 40), "no whole zip file"),
    "an empty zip file": ("zip", lambda p: p.write_bytes(end(0, 0, 0)), "no member 'run.json'"),
    "a folder": ("zip", lambda p: p.mkdir(), "not a regular file"),
    "a pipe": ("zip", os.mkfifo, "not a regular file"),
    "JSON in a pipe": ("json", os.mkfifo, "not a regular file"),
    "JSON of a terabyte": ("json", lambda p: sparse(p, 1 << 40), "found 1,099,511,627,776 bytes, wanted at most"),
    "JSON of nine million lists": (
        "json",
        lambda p: p.write_text(f"[{'[],' * 9_000_000}1]"),
        "more than 8,000,000 lists",
    ),
    "JSON 100,000 levels deep": ("json", lambda p: p.write_text("[" * 100_000), "not valid JSON"),
    "JSON 900 levels deep": ("json", lambda p: p.write_text("[" * 900 + "]" * 900), "nested more than 64 levels"),
    "JSON objects 900 deep": ("json", lambda p: p.write_text('{"a":' * 900 + "1" + "}" * 900), "nested more than 64"),
    "a number of 100,000 digits": ("json", lambda p: p.write_text("9" * 100_000), "not valid JSON"),
    "a number without end": ("json", lambda p: p.write_text("[1e999]"), "1e999 is too large a number"),
    "NaN in JSON": ("json", lambda p: p.write_text('{"a": NaN}'), "NaN is no number"),
    "a key twice": (
        "json",
        lambda p: p.write_text('{"allow": [], "allow": ["os.system"]}'),
        "the key 'allow' occurs twice",
    ),
    "half a character": ("json", lambda p: p.write_text(r'["\ud800"]'), "not valid JSON"),
    "a zero byte in a text": ("json", lambda p: p.write_text(r'["a\u0000b"]'), "a text with a zero byte"),
    "a table of a terabyte": ("cases", lambda p: sparse(p, 1 << 40), "wanted at most"),
    "a field of a table without end": ("cases", lambda p: p.write_text("case\n" + "x" * 10**6), "not a table"),
    "a list of a million columns": (
        "list",
        lambda p: p.write_text("\t".join(["a"] * 10**6)),
        "columns without a name or named twice",
    ),
    "a list of only tabs": ("list", lambda p: p.write_text("\t" * 30_000_000), "more than 20,000,000 fields"),
    "an image of 70 TB": ("image", lambda p: nifti(p, (32767, 32767, 32767)), "wanted at most"),
    "an image of 70 TB, packed": ("image.gz", lambda p: nifti(p, (32767, 32767, 32767)), "wanted at most"),
    "an image of 16 GB": ("image", lambda p: nifti(p, (2000, 2000, 2000)), "cannot hold"),
    "an image of 2^64 voxels": ("image", lambda p: nifti(p, (2**32, 2**32), 544, 2), "its header declares"),
    "an image of -5 voxels": ("image", lambda p: nifti(p, (-5, 2, 2)), "wanted an image of real numbers"),
    "an image that starts nowhere": ("image", lambda p: nifti(p, (2, 2), float("nan")), "damaged NIfTI header"),
    "an image that starts at infinity": ("image", lambda p: nifti(p, (2, 2), float("inf")), "damaged NIfTI header"),
    "an image behind a gigabyte": ("image.gz", lambda p: nifti(p, (2, 2), 1 << 30), "voxels at byte 1073741824"),
    "an image that unpacks to more": ("image.gz", lambda p: nifti(p, (900, 900, 900), padding=200 << 20), "truncated"),
    "YAML that repeats itself": ("variable", lambda p: p.write_text(yaml_of_aliases()), "wanted integer"),
}
READ = """
import json, os, resource, sys
from armarium import checks, components, config, dataset, files, nifti, zips
from armarium.errors import UserError
import nibabel, numpy, yaml
config.typed("epochs", "3", 1)
readers = {
    "zip": lambda p: zips.zip_member(p, "run.json"),
    "json": files.read_json,
    "cases": checks.read_cases_table,
    "list": lambda p: dataset.read_dataset({"list": os.path.basename(p), "task": "segmentation"}, os.path.dirname(p)),
    "image": lambda p: nifti.read_volume(os.path.basename(p), os.path.dirname(p)),
    "variable": lambda p: config.typed("epochs", open(p).read(), 1),
}
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (400 << 20),) * 2)
told = {}
for name, (kind, path) in json.load(sys.stdin).items():
    try:
        told[name] = f"read: {readers[kind.removesuffix('.gz')](path)!r:.100}"
    except (UserError, nifti.Unreadable) as error:
        told[name] = str(error)
    except BaseException as error:
        told[name] = f"{type(error).__name__} {error}"
print(json.dumps(told))
"""
SUFFIXES = {"zip": ".zip", "json": ".json", "cases": ".tsv", "list": ".tsv", "image": ".nii", "image.gz": ".nii.gz"}


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, str]:
    """What a process with 400 MB to spare says of each bomb."""
    folder, paths = tmp_path_factory.mktemp("bombs"), {}
    for i, (name, (kind, make, _)) in enumerate(BOMBS.items()):
        paths[name] = (kind, str(folder / f"{i}{SUFFIXES.get(kind, '.txt')}"))
        make(Path(paths[name][1]))
    environment = {**os.environ, "PYTHONPATH": str(REPO / "workflow")}
    done = subprocess.run(
        [sys.executable, "-c", READ], input=json.dumps(paths), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is limited by what Linux says of it")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_memory(told, figures, name):
    wrong = BOMBS[name][2] not in told[name] or len(told[name]) > 3000
    figures.add("bad inputs tried")
    figures.add("bad inputs with a wrong answer", wrong)
    assert not wrong, told[name][:500]


def test_every_way_to_a_zip_refuses_a_compressed_one(tmp_path):
    path = tmp_path / "run.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("run.json", member_of_checkpoint(1), "env/environment.txt"):
            archive.writestr(name, "0" * 10**6)
    for read in (
        lambda: zip_member(path, "run.json"),
        lambda: copy_member(path, "run.json", tmp_path / "out"),
        lambda: load_weights(str(path), 1),
        lambda: frozen_environment(path),
    ):
        assert "is compressed" in refused(read)
    assert run_info(path) is None and not (tmp_path / "out").exists()


def test_no_module_reads_a_zip_in_another_way():
    """What is zipped here is read by armarium.zips; TorchScript that was just made is another matter."""
    own = {"zips.py", "export.py"}
    for path in (REPO / "workflow/armarium").rglob("*.py"):
        if path.name not in own:
            text = path.read_text()
            assert "zipfile.ZipFile(" not in text.replace('zipfile.ZipFile(temporary, "w"', ""), path
            assert "weights_only=False" not in text and "allow_pickle" not in text, path


def test_weights_are_only_ever_loaded_as_weights():
    for path in (REPO / "workflow/armarium").rglob("*.py"):
        for line in path.read_text().splitlines():
            assert "torch.load(" not in line or "weights_only=True" in line, f"{path}: {line}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(X="x" * 5000), "wanted a number or a text of at most 4096 characters"),
        (lambda c: (c.update(X="x" * 4000), c["train"]["loss"]["args"].update(a="{X}" * 1000)), "wanted at most 4096"),
        (lambda c: c["train"]["loss"]["args"].update(a=["x" * 100] * 20_000), "bytes, wanted at most 1,048,576"),
        (lambda c: c.update(num_workers=10**6), "num_workers: found 1000000; 1000000 is greater than the maximum"),
        (lambda c: c.update(threads=10**6), "threads: found 1000000"),
    ],
)
def test_a_configuration_that_would_grow_is_refused(folder, change, message):
    rewrite(folder / "archives/a/config/config_train.json", change)
    assert message in refused(held, folder)


@pytest.mark.parametrize("n_splits", [10**12, 10_001])
def test_more_splits_than_anybody_trains_are_refused(folder, n_splits):
    rewrite(folder / "archives/a/config/archive.json", lambda spec: spec["splits"].update(n_splits=n_splits))
    assert f"n_splits: found {n_splits}" in refused(held, folder)


def test_more_results_than_anybody_plans_are_refused(folder):
    def change(spec: dict) -> None:
        spec["splits"].update(method="kfold", n_splits=10_000)
        spec["test"].update(groups={f"g{i}": {"count": 1} for i in range(10_000)})

    rewrite(folder / "archives/a/config/archive.json", change)
    assert "results of every split, checkpoint and test group, wanted at most 100,000" in refused(held, folder)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"spatial_dims": 10**12}, "spatial_dims is 1000000000000; wanted 1, 2 or 3"),
        ({"in_channels": 10**12}, "found 1000000000000 input channels"),
        ({"out_channels": 10**12}, "found 1000000000000 output channels"),
        ({"in_channels": "many"}, "found 'many' input channels"),
    ],
)
def test_a_network_of_absurd_size_is_not_even_described(folder, args, message):
    from armarium.bundle_metadata import metadata

    archive = str(folder / "archives/a")
    write_json(layout.dataset_json(archive), {"labels": {"0": "background", "1": "b"}, "modality": {"0": "MRI"}})
    rewrite(Path(layout.effective(archive, "train")), lambda s: s["model"]["args"].update(args))
    assert message in refused(metadata, archive)


@pytest.mark.parametrize("shape", [[1, 10**6, 10**6], [1, 2**31, 1]])
def test_an_input_of_absurd_size_is_not_made_up(shape):
    from armarium.export import network_input_shape

    given = settings()
    assert "set roi_size in validate.inferer" in refused(network_input_shape, given, {"input_shape": shape})


def test_lying_headers_are_found_before_others_read_by_them(tmp_path):
    """Training and testing read files that the data check, or so a stranger's table says, found good."""
    nifti(tmp_path / "x.nii", (20000, 20000, 20000))
    nifti(tmp_path / "y.nii.gz", (2, 2), 1 << 40)
    case = {"case": "x", "image": ["x.nii"], "label": None, "sha256": [sha256(tmp_path / "x.nii"), ""]}
    prepared = PreparedCases([component("LoadImaged", keys="image")], str(tmp_path), str(tmp_path / "cache"))
    assert "x.nii: its header declares 20000x20000x20000" in refused(prepared.get, case)
    labels = LabelFiles(str(tmp_path))
    assert "y.nii.gz: found shape 2x2" in refused(labels.get, labelled(tmp_path, "y.nii.gz"))
    save_nifti(tmp_path / "good.nii.gz", numpy.zeros((4, 4), numpy.uint8))
    assert labels.get(labelled(tmp_path, "good.nii.gz"))[0].shape == (4, 4)


def labelled(folder: Path, name: str) -> dict:
    return {"case": "y", "image": [name], "label": name, "sha256": [sha256(folder / name)] * 2}


# ---- what a terminal would obey


def test_messages_and_summaries_show_escape_codes_and_do_not_obey_them(folder):
    rewrite(
        folder / "archives/a/config/config_train.json",
        lambda c: c["train"]["loss"].update(name="\x1b[2J\x1b]0;owned\x07"),
    )
    message = refused(held, folder)
    assert "\x1b" not in message and "\x07" not in message and "x1b[2J" in message
    assert len(refused(build, "loss", component("x" * 10**6))) < 5000
    assert "\x1b" not in str(Problems("t", ["\x1b[31m"]))


def test_a_refusal_takes_no_time(folder):
    """Regardless of how much lies around it."""
    archive = folder / "archives/a"
    for i in range(2000):
        (archive / f"file-{i}").touch()
    started = time.perf_counter()
    check_boundary(str(archive))
    assert time.perf_counter() - started < 2


def test_a_good_archive_on_disk_is_as_good_as_ever(folder):
    before = contents(folder / "archives")
    held(folder)
    assert {k: v for k, v in contents(folder / "archives").items() if k in before} == before
    assert recipe()["train"]["loss"]["name"] == held(folder).settings["loss"]["name"]
