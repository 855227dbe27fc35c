"""Whatever is wrong with an archive is found, named as what it is, and mended by the command that is told."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import zlib
from hashlib import sha256
from pathlib import Path

import pytest
from armarium import layout, scan, steps
from armarium.cli import cli
from armarium.configure import published_checkpoint, read_effective
from armarium.environment import cpu_capability
from armarium.errors import UserError
from armarium.files import json_text, read_json, write_json
from armarium.findings import KINDS, SHOWN
from armarium.fingerprints import fingerprint_on_disk
from armarium.hashing import HashIndex
from armarium.manifest import read_manifest, write_manifest
from armarium.provenance import read_sidecar, step
from armarium.run import INFO, finished_run, member_of_checkpoint, weights_of
from armarium.synthesize import synthesize_dataset
from armarium.verify import verify
from armarium.zips import write_zip, zip_member
from click.testing import CliRunner
from tiny import REPO, configured, section, write_recipe

DATASET = {"cases": 4, "test_cases": 1, "shape": [12, 12], "spacing": [1, 1], "channels": 1, "classes": 2, "seed": 0}
SECTION = section(test={"groups": {"held": {"from": "test"}}})
WEIGHTS, SEGMENTATION = "training/split-0/models/final/model.pt", "eval/case_005/case_005_seg.nii.gz"


LAST = {"epoch": 2, "value": 0.5}


def read_json_member(path: str) -> dict:
    return json.loads(zip_member(path, INFO))


def weights_in(split: str, epoch: int, note: str = "", **_) -> str:
    return f"weights {split} {epoch}{note}"


def write_run(archive: str, split: str, **other) -> None:
    """What training leaves, but with a few bytes for weights."""
    best = {name: {"epoch": epoch, "value": 0.5} for epoch, name in enumerate(("loss", "MeanDice"), 1)}
    info = {
        "fingerprint": fingerprint_on_disk(archive, "training", split),
        "epochs": 2,
        "best": best,
        "device": "cpu",
        "machine": platform.machine(),
        "cpu_capability": cpu_capability(),
        "checkpoints": {str(e): sha256(weights_in(split, e, **other).encode()).hexdigest() for e in (1, 2)},
        **other,
    }
    output = layout.run_zip(archive, split)
    inputs = [layout.effective(archive, "train"), layout.splits_json(archive), layout.cases_tsv(archive)]
    with step(archive, f"train_split-{split}", "train_split", inputs, [output]):
        weights = {member_of_checkpoint(epoch): weights_in(split, epoch, **other) for epoch in (1, 2)}
        write_zip(output, {INFO: json_text(info), **weights})


def write_product(
    archive: str, name: str, output: str, inputs: list[str], product: str, *which: str, **members
) -> None:
    """A product that says what decided it, as its step writes it."""
    with step(archive, name, name, inputs, [output]):
        run = finished_run(layout.run_zip(archive, which[-1] if which else "0"))
        checkpoints = read_effective(archive, "select")["checkpoints"]
        if product == "published evaluation":
            checkpoints = [published_checkpoint(read_effective(archive, "train"))]
        held = {"fingerprint": fingerprint_on_disk(archive, product, *which), "weights": weights_of(run, checkpoints)}
        write_zip(output, {INFO: json_text(held), **members})


def build(folder: Path) -> str:
    """An archive made by the workflow's own steps, but with made-up weights, TorchScript and predictions."""
    write_recipe(folder / "recipe")
    synthesize_dataset(str(folder / "data"), DATASET)
    configured(folder, SECTION)
    archive, cache = str(folder / "archives/a"), str(folder / "cache")
    steps.check_data(archive, 1, cache)
    steps.split_data(archive)
    for split in ("0", "1"):
        steps.write_datalist(archive, split)
        write_run(archive, split)
        run = [layout.run_zip(archive, split)]
        write_product(
            archive, f"test_{split}", layout.evaluation_zip(archive, "held", split), run, "evaluation", "held", split
        )
        scripts = {f"{name}.ts": f"script of {name}" for name in ("best-loss", "best-MeanDice", "final")}
        write_product(archive, f"export_{split}", layout.exports_zip(archive, split), run, "export", split, **scripts)
        steps.select(archive, split, "final", True, cache)
    best = published_checkpoint(read_effective(archive, "train"))
    exports = layout.exports_zip(archive, "0")
    steps.extract(archive, exports, f"{best}.ts", layout.published_ts(archive), "publish_torchscript", cache)
    predictions = {"predictions/case_005.nii.gz": "voxels"}
    write_product(
        archive,
        "evaluate_published",
        layout.eval_zip(archive),
        [layout.published_ts(archive)],
        "published evaluation",
        **predictions,
    )
    target = f"{archive}/{SEGMENTATION}"
    steps.extract(archive, layout.eval_zip(archive), *predictions, target, "extract_segmentation", cache)
    steps.record_environment(archive, layout.environment_files(archive), "record_environment")
    steps.copy_workflow(archive)
    manifest_anew(archive)
    return archive


def manifest_anew(archive: str) -> None:
    write_manifest(archive, HashIndex(Path(archive).parents[1] / "cache/anew.sqlite"))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verified")
    build(folder)
    return folder


@pytest.fixture
def archive(built, tmp_path, monkeypatch) -> str:
    """A copy of the archive and its data; the working directory is beside them."""
    shutil.copytree(built, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return "archives/a"


def found(archive: str, **options) -> dict[str, list[str]]:
    """Paths by kind of what is wrong, the dataset being the copy's own."""
    report = verify(archive, options.pop("data_root", "."), **options)
    kinds = dict.fromkeys(finding.kind for finding in report.wrong)
    return {kind: [finding.path for finding in report.of(kind)] for kind in kinds}


def information(archive: str) -> dict[str, list[str]]:
    report = verify(archive, ".")
    assert not report.wrong
    return {kind: [f"{f.path}: {f.note}" for f in report.of(kind)] for kind in KINDS if report.of(kind)}


def put(path: str, text: str = "mine") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return path


def decay(path: str) -> None:
    """Flip a bit as a disk does: the same size, the same times."""
    before, data = os.stat(path), bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(path).write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def edit(path: str, **changes) -> None:
    write_json(path, {**read_json(path), **changes})


def by_step(archive: str, name: str, path: str, text: str, inputs: tuple[str, ...] = ()) -> None:
    """Make a file of the archive by a recorded step."""
    with step(archive, name, name, [f"{archive}/{i}" for i in inputs], [f"{archive}/{path}"]):
        put(f"{archive}/{path}", text)


# ---- nothing wrong


def test_an_archive_as_it_was_built_has_nothing_wrong(archive):
    report = verify(archive, ".")
    assert report.findings == [] and "10 files" in report.data and "nothing wrong" in str(report)
    assert report.files == len(read_manifest(archive).files) + 1


@pytest.mark.parametrize(
    "how", ["another folder", "a folder with signs", "its parent", "an absolute path", "as the working directory"]
)
def test_where_it_lies_and_whence_it_is_looked_at_does_not_matter(archive, how, monkeypatch, tmp_path):
    data, place = os.path.abspath("."), archive
    if how == "another folder":
        place = str(shutil.copytree(archive, tmp_path / "elsewhere" / "b", copy_function=shutil.copyfile))
    elif how == "a folder with signs":
        place = str(shutil.copytree(archive, "[a] * b's$(x)/-f"))
    elif how == "an absolute path":
        place = os.path.abspath(archive)
    elif how == "its parent":
        monkeypatch.chdir("archives")
        place = "a/"
    else:
        monkeypatch.chdir(archive)
        place = "."
    assert verify(place, data).findings == []


def test_links_inside_the_archive_are_as_good_as_files(archive):
    os.rename(f"{archive}/{WEIGHTS}", f"{archive}/weights")
    os.symlink("../../../../weights", f"{archive}/{WEIGHTS}")
    assert found(archive) == {"foreign": ["weights"]}


def test_a_folder_that_is_no_archive_is_refused(archive):
    with pytest.raises(UserError, match="archives: no archive: found neither"):
        verify("archives")


# ---- files


@pytest.mark.parametrize("name", [WEIGHTS, "training/split-0/run.zip", "data/splits.json", "data/cases.tsv", "config/dataset_1.json",
                                  "provenance/workflow/Snakefile", "config/effective/train.json", "eval/evaluation.zip"])  # fmt: skip
def test_a_decayed_file_is_found_though_its_time_and_size_are_the_same(archive, name, figures):
    decay(f"{archive}/{name}")
    assert found(archive) == {"changed": [name]}
    figures.add("damaged files that verify found")


def test_a_longer_or_emptied_file_is_found(archive):
    put(f"{archive}/{WEIGHTS}", "")
    with open(layout.exports_zip(archive, 0), "ab") as file:
        file.write(b"more")
    assert found(archive) == {"changed": ["training/split-0/exports.zip", WEIGHTS]}


def test_lost_foreign_and_unfinished_files_are_told_apart(archive):
    os.remove(f"{archive}/{WEIGHTS}")
    os.remove(layout.effective(archive, "publish"))
    put(f"{archive}/notes.txt")
    put(f"{archive}/models/.writing-abc/model.pt")
    put(f"{archive}/.git/config")
    put(layout.held_version(archive, layout.run_zip(archive, 0)))
    put(f"{layout.tmp_dir(archive, 1)}/state.pt")
    assert found(archive) == {
        "missing": ["config/effective/publish.json", WEIGHTS],
        "foreign": [".git", "notes.txt"],
        "leftover": ["models/.writing-abc"],
        "held version": [".held"],
        "resume state": ["training/split-1/tmp"],
    }


def test_what_a_client_wrote_beside_the_archive_is_named_and_is_no_fault(archive):
    put(f"{layout.client_output(archive)}/metrics.csv")
    assert found(archive) == {}
    (finding,) = verify(archive, ".").findings
    assert (finding.kind, finding.path) == ("client's output", "output")


def test_configuration_is_for_the_user_to_restore_never_to_be_deleted(archive):
    edit(layout.archive_json(archive), publish=1)
    os.remove(layout.environment_json(archive))
    os.remove(layout.mmar_config(archive, "config_finetune.json"))
    report = verify(archive, ".")
    assert {f.path: f.kind for f in report.wrong} == {
        "config/archive.json": "source",
        "config/environment.json": "source",
        "config/config_finetune.json": "missing",
    }
    assert not any(report.to_delete(kind) for kind in KINDS)


@pytest.mark.parametrize("how", ["changed", "missing"])
def test_the_list_of_changed_data_is_never_to_be_deleted(archive, how):
    """Without it a training on the old data would be taken for current."""
    path = layout.changed_files(archive)
    write_json(path, {"a": ["0", "1"]}) if how == "changed" else os.remove(path)
    report = verify(archive, ".")
    assert [(f.kind, f.note) for f in report.wrong if f.path == "config/effective/files.json"] == [
        ("irreplaceable", how)
    ]
    assert not report.to_delete("irreplaceable")


def test_an_edit_of_how_is_logged_is_told_until_the_manifest_has_it_and_never_to_be_deleted(archive):
    name = "resources/log.config"
    by_step(archive, "write_log_config", name, "[loggers]\n")
    manifest_anew(archive)
    assert found(archive) == {}
    put(layout.log_config(archive), "[loggers]\nedited\n")
    assert found(archive) == {"own": [name]}
    assert "rm -f" not in str(verify(archive, "."))
    manifest_anew(archive)
    assert found(archive) == {} and read_manifest(archive).files[name][1] == len("[loggers]\nedited\n")
    os.remove(layout.log_config(archive))
    assert found(archive) == {"missing": [name]}


def test_a_file_of_the_users_own_that_the_manifest_lists_is_never_to_be_deleted(archive):
    put(f"{archive}/notes.txt")
    manifest_anew(archive)
    assert found(archive) == {"unrecorded": ["notes.txt"]}
    put(f"{archive}/notes.txt", "more of them")
    report = verify(archive, ".")
    assert [f.kind for f in report.wrong] == ["irreplaceable"] and not report.to_delete("irreplaceable")


def test_what_was_made_since_the_manifest_was_written_is_not_taken_for_damage(archive):
    write_run(archive, "1", note="trained again")
    by_step(archive, "write_new", "summary.log", "new")
    report = verify(archive, ".")
    remade = {f.path for f in report.of("remade")}
    assert {"training/split-1/run.zip", "provenance/train_split-1.json", "summary.log"} <= remade
    assert not report.of("changed") and not report.of("foreign")
    assert layout.run_zip(archive, 1) not in [path for kind in KINDS for path in report.to_delete(kind)]


def test_a_step_that_ran_again_to_the_same_bytes_is_no_fault(archive):
    steps.select(archive, "0", "final", True, "cache")
    assert information(archive) == {"repeated": ["provenance/select_weights_split-0_final.json: "]}
    report = verify(archive, ".")
    assert report.build_command() not in str(report)


def test_what_can_be_no_file_of_an_archive_is_not_opened(archive):
    os.mkfifo(f"{archive}/pipe")
    os.remove(f"{archive}/{WEIGHTS}")
    os.mkfifo(f"{archive}/{WEIGHTS}")
    os.symlink("models", f"{archive}/folder")
    os.symlink("nowhere", f"{archive}/broken")
    os.symlink("circle", f"{archive}/circle")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{archive}/socket")
        assert found(archive) == {"odd": ["broken", "circle", "folder", "pipe", "socket", WEIGHTS]}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_told(archive):
    os.chmod(f"{archive}/{WEIGHTS}", 0)
    assert found(archive) == {"odd": [WEIGHTS]}


# ---- out of the archive


@pytest.mark.parametrize("target", ["secret", "folder", "/dev/zero"])
def test_a_link_that_leaves_the_archive_is_not_followed(archive, target):
    os.mkfifo("secret")  # reading it would never end
    put("folder/file")
    os.remove(f"{archive}/{WEIGHTS}")
    os.symlink(os.path.abspath(target), f"{archive}/{WEIGHTS}")
    assert found(archive) == {"escaping link": [WEIGHTS]}
    assert os.path.islink(f"{archive}/{WEIGHTS}")


@pytest.mark.parametrize(
    "name", ["environment.json", "effective/train.json", "effective/select.json", "effective/data.json"]
)
def test_nor_is_one_in_the_place_of_configuration(archive, name):
    os.mkfifo("secret")
    os.remove(f"{archive}/config/{name}")
    os.symlink(os.path.abspath("secret"), f"{archive}/config/{name}")
    assert found(archive, data_root=None) == {"escaping link": [f"config/{name}"]}


@pytest.mark.parametrize("path", ["../../secret", "/etc/passwd", "models/../../../secret", "..", "models\0x"])
def test_a_path_of_the_manifest_that_leaves_the_archive_is_told_and_not_followed(archive, path):
    os.mkfifo("secret")
    manifest = read_json(layout.manifest(archive))
    manifest["@graph"].append(
        {"@id": path.replace("\0", "%00"), "@type": "File", "sha256": "0" * 64, "contentSize": "1"}
    )
    write_json(layout.manifest(archive), manifest)
    assert found(archive) == {"outside": [path]}
    assert path not in read_manifest(archive).files
    str(verify(archive, "."))


# ---- the manifest itself


def test_without_a_manifest_the_records_are_what_is_left_to_compare_with(archive):
    os.remove(layout.manifest(archive))
    decay(f"{archive}/{WEIGHTS}")
    put(f"{archive}/notes.txt")
    assert found(archive) == {
        "manifest": ["ro-crate-metadata.json"],
        "unrecorded": ["notes.txt"],
        "altered": [WEIGHTS],
    }


MANIFESTS = {
    "empty": "",
    "no JSON": "{",
    "a thousand levels deep": '{"@graph":' * 1000 + "1" + "}" * 1000,
    "a hundred thousand levels deep": "[" * 100_000,
    "a list": "[]",
    "without a graph": "{}",
    "a graph of numbers": '{"@graph": [1, 2]}',
    "files without a name": '{"@graph": [{"@type": "File", "sha256": "0"}]}',
    "a name that is a number": '{"@graph": [{"@type": "File", "sha256": "0", "@id": 5}]}',
    "a size that is none": '{"@graph": [{"@type": "File", "sha256": "0", "@id": "a", "contentSize": "many"}]}',
    "no file": '{"@graph": []}',
    "one file twice": json.dumps(
        {"@graph": [{"@type": "File", "@id": "a", "contentSize": "1", "sha256": digest} for digest in "01"]}
    ),
    "actions of numbers": '{"@graph": [{"@type": "CreateAction", "@id": "#action/x", "object": [1]}]}',
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_that_cannot_be_understood_is_told_and_to_be_written_again(archive, what, figures):
    put(layout.manifest(archive), MANIFESTS[what])
    report = verify(archive, ".")
    assert [(f.kind, f.path) for f in report.wrong] == [("damaged manifest", "ro-crate-metadata.json")]
    assert report.to_delete("damaged manifest") == [layout.manifest(archive)]
    assert len(str(report)) < 3000
    figures.add("damaged files that verify found")


# ---- the chain


def test_bytes_that_a_manifest_was_written_over_are_not_those_of_the_step(archive):
    put(f"{archive}/{WEIGHTS}", "edited by hand")
    manifest_anew(archive)
    assert found(archive) == {"altered": [WEIGHTS]}


def test_a_lost_record_is_told_with_what_it_recorded(archive):
    os.remove(layout.sidecar(archive, "select_weights_split-0_final"))
    record = "provenance/select_weights_split-0_final.json"
    assert found(archive) == {"damaged record": [record], "lost record": [WEIGHTS]}
    os.remove(f"{archive}/{WEIGHTS}")
    assert found(archive) == {"missing": [record, WEIGHTS]}  # both come back together


RECORDS = {
    "no JSON": lambda text: text[:-20],
    "deep": lambda text: '{"a":' * 5000,
    "other outputs": lambda text: text.replace(WEIGHTS, "models/other.pt"),
    "other bytes": lambda text: json_text({**json.loads(text), "outputs": {WEIGHTS: {"sha256": "0" * 64, "size": 1}}}),
    "outputs as a list": lambda text: json_text({**json.loads(text), "outputs": [WEIGHTS]}),
    "bytes as a number": lambda text: json_text({**json.loads(text), "inputs": {"a": {"sha256": 5}}}),
    "no end": lambda text: json_text({k: v for k, v in json.loads(text).items() if k != "end"}),
    "an end that never was": lambda text: json_text({**json.loads(text), "end": "yesterday"}),
    "a host's name": lambda text: json_text({**json.loads(text), "host": "elsewhere"}),
    "another form": lambda text: json_text({"format": "other/1"}),
}


@pytest.mark.parametrize("how", RECORDS)
def test_a_damaged_record_is_told_with_what_it_recorded(archive, how, figures):
    path = Path(layout.sidecar(archive, "select_weights_split-0_final"))
    path.write_text(RECORDS[how](path.read_text()))
    wrong = found(archive)
    assert wrong.pop("lost record") == [WEIGHTS]
    assert list(wrong.values()) == [[f"provenance/{path.name}"]]
    figures.add("damaged files that verify found")


def test_a_damaged_record_hinders_a_manifest_with_a_clear_message(archive):
    path = layout.sidecar(archive, "split_data")
    edit(path, end="yesterday")
    with pytest.raises(UserError, match=r"split_data.json: damaged record of a step: end missing or of the wrong kind"):
        manifest_anew(archive)
    write_json(path, {"format": "another program's"})
    assert read_sidecar(path) is None


def test_a_product_made_from_an_older_input_is_told(archive):
    by_step(archive, "write_a", "a.txt", "1")
    by_step(archive, "write_b", "b.txt", "from 1", ("a.txt",))
    by_step(archive, "write_a", "a.txt", "2")
    manifest_anew(archive)
    report = verify(archive, ".")
    assert [(f.kind, f.path, f.note) for f in report.wrong] == [("older input", "b.txt", "from a.txt")]
    by_step(archive, "write_b", "b.txt", "from 2", ("a.txt",))
    manifest_anew(archive)
    assert found(archive) == {}


def test_a_damaged_input_makes_no_older_input_of_what_was_made_from_it(archive):
    by_step(archive, "write_a", "a.txt", "1")
    by_step(archive, "write_b", "b.txt", "from 1", ("a.txt",))
    manifest_anew(archive)
    decay(f"{archive}/a.txt")
    assert found(archive) == {"changed": ["a.txt"]}
    manifest_anew(archive)
    assert found(archive) == {"altered": ["a.txt"]}
    os.remove(f"{archive}/a.txt")
    assert "older input" not in found(archive)


def test_a_product_that_says_itself_what_decided_it_may_be_of_an_earlier_copy(archive):
    """As a run is whose table of cases was made again with a further test case."""
    with open(layout.cases_tsv(archive), "a") as table:
        table.write("\n")
    outputs = [layout.cases_tsv(archive), layout.dataset_json(archive), layout.data_record(archive)]
    with step(archive, "check_data", "check_data", [], outputs):
        pass
    manifest_anew(archive)
    told = [
        f"{path}: from data/cases.tsv"
        for path in ("data/splits.json", "training/split-0/run.zip", "training/split-1/run.zip")
    ]
    assert sorted(information(archive)["earlier copy"]) == told


def test_products_of_another_configuration_are_told(archive):
    change = section(**{**SECTION, "set": {"epochs": 7}})
    configured(Path("."), change, data_root=read_json(layout.environment_json(archive))["DATA_ROOT"])
    manifest_anew(archive)
    splits = [f"training/split-{k}/{name}" for k in (0, 1) for name in ("run.zip", "exports.zip")]
    tests = [f"test/evaluations/held_split-{k}.zip" for k in (0, 1)]
    [(kind, told)] = found(archive).items()
    assert kind == "other configuration" and set(told) == {*splits, *tests, "eval/evaluation.zip"}


def test_products_of_another_training_are_told(archive):
    write_run(archive, "1", note="another one")
    os.remove(layout.sidecar(archive, "select_weights_split-1_final"))
    os.remove(f"{archive}/{WEIGHTS.replace('split-0', 'split-1')}")
    manifest_anew(archive)
    report = verify(archive, ".")
    assert {f.path: f.kind for f in report.wrong} == dict.fromkeys(
        ("training/split-1/exports.zip", "test/evaluations/held_split-1.zip"), "other run"
    )


def test_checkpoints_that_were_selected_since_are_told(archive):
    part = read_effective(archive, "select")
    write_json(layout.effective(archive, "select"), {"checkpoints": [*part["checkpoints"], "epoch-1"]})
    info = read_json_member(layout.run_zip(archive, "1"))
    write_run(archive, "1", checkpoints={"2": info["checkpoints"]["2"]}, best=dict.fromkeys(info["best"], LAST))
    manifest_anew(archive)
    told = {f.path: f.note for f in verify(archive, ".").of("other configuration")}
    assert told["training/split-1/run.zip"] == "which does not select epoch 1"
    assert told["training/split-0/exports.zip"].startswith("of the checkpoints best-")
    assert "test/evaluations/held_split-0.zip" in told and "eval/evaluation.zip" not in told


def test_tests_on_a_group_that_the_configuration_dropped_are_told(archive):
    write_json(layout.effective(archive, "test"), {"groups": {}})
    manifest_anew(archive)
    told = {f.path: f.note for f in verify(archive, ".").of("other configuration")}
    assert told["test/evaluations/held_split-0.zip"] == "which has no group held for split 0"


def test_a_test_on_the_test_cases_of_another_split_is_told(archive):
    write_json(layout.effective(archive, "test"), {"groups": {"held": {"given": True, "split": 1}}})
    manifest_anew(archive)
    told = {f.path: f.note for f in verify(archive, ".").of("other configuration")}
    assert told["test/evaluations/held_split-0.zip"] == "which has no group held for split 0"


def test_a_product_that_does_not_say_what_decided_it_is_told(archive):
    by_step(archive, "test_0", "test/evaluations/held_split-0.zip", "no zip at all")
    manifest_anew(archive)
    assert found(archive) == {"other configuration": ["test/evaluations/held_split-0.zip"]}


@pytest.mark.parametrize("name", [WEIGHTS, "models/model.ts", SEGMENTATION])
def test_bytes_other_than_those_in_the_zip_they_were_taken_from_are_told(archive, name):
    maker = next(step for step, _, made in read_manifest(archive).actions if name in made)
    recorded = read_sidecar(layout.sidecar(archive, maker))["inputs"]
    by_step(archive, maker, name, "something else", tuple(recorded))
    if name == "models/model.ts":
        evaluated = layout.eval_zip(archive)
        predictions = {"predictions/case_005.nii.gz": "voxels"}
        write_product(
            archive, "evaluate_published", evaluated, [f"{archive}/{name}"], "published evaluation", **predictions
        )
    manifest_anew(archive)
    assert found(archive) == {"other source": [name]}


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"groups": 5}', '{"groups": [[]], "checkpoints": [5]}', '{"checkpoints": {}}']
)
def test_configuration_that_cannot_be_understood_is_told(archive, text):
    for part in ("test", "select"):
        put(layout.effective(archive, part), text)
    manifest_anew(archive)
    wrong = found(archive)
    assert "configuration" in wrong or "other configuration" in wrong
    assert "data" not in wrong


# ---- the dataset

IMAGE = "data/imagesTr/case_001.nii.gz"


def test_changed_and_lost_files_of_the_dataset_are_told(archive):
    decay(IMAGE)
    os.remove("data/labelsTr/case_002.nii.gz")
    assert found(archive) == {"data": [IMAGE, "data/labelsTr/case_002.nii.gz"]}
    assert found(archive, with_data=False) == {}


def test_a_changed_list_of_cases_is_told_and_a_reformatted_one_is_not(archive):
    listed = read_json("data/dataset.json")
    put("data/dataset.json", json.dumps(listed))
    assert found(archive) == {}
    listed["labels"]["1"] = "another name"
    write_json("data/dataset.json", listed)
    assert found(archive) == {"data": ["data/dataset.json"]}


def test_where_the_dataset_is_not_that_is_said_and_no_fault(archive, tmp_path):
    report = verify(archive, str(tmp_path / "nowhere"))
    assert report.findings == [] and report.data.startswith("data not verified: none of its 10 files is in")
    assert "left out" in verify(archive, with_data=False).data
    os.remove(layout.environment_json(archive))
    assert "not verified" in verify(archive).data


def test_files_of_the_dataset_outside_the_data_root_are_not_looked_at(archive):
    os.mkfifo("secret")
    for name in ("../secret", os.path.abspath("secret")):
        splits = read_json(layout.splits_json(archive))
        splits["cases"]["case_001"]["image"] = [name]
        with step(archive, "split_data", "split_data", [], [layout.splits_json(archive)]):
            write_json(layout.splits_json(archive), splits)
        manifest_anew(archive)
        report = verify(archive, ".")
        assert [(f.path, f.note) for f in report.of("data")] == [(name, "leaves the data root; not looked at")]


def test_a_table_of_cases_that_the_data_check_did_not_see_is_told(archive):
    path = layout.sidecar(archive, "check_data")
    inputs = read_json(path)["inputs"]
    edit(path, inputs={**inputs, f"data:{IMAGE}": {"sha256": "0" * 64}})
    manifest_anew(archive)
    assert found(archive) == {"data record": ["data/cases.tsv"]}


# ---- what made it, and where


def test_files_made_by_other_code_or_elsewhere_are_told_by_rule_and_are_no_fault(archive):
    for name in ("train_split-0", "train_split-1", "split_data"):
        path = layout.sidecar(archive, name)
        packages = {**read_json(path)["packages"], "monai": "0.1"} if name != "split_data" else {"unheard-of": "1"}
        edit(path, armarium="0.0.1", code_sha256="a" * 64, packages=packages, python="2.7")
    manifest_anew(archive)
    told = information(archive)
    assert sorted(told["other code"]) == [
        "split_data: 1 by 0.0.1 (code aaaaaaaaaaaa)",
        "train_split: 2 by 0.0.1 (code aaaaaaaaaaaa)",
    ]
    assert any(
        line.startswith("monai 0.1, here 1.") and line.endswith(": 2 files") for line in told["other environment"]
    )
    assert "unheard-of 1, here not installed: 1 files" in told["other environment"]
    assert f"python 2.7, here {platform.python_version()}: 3 files" in told["other environment"]


def test_a_run_of_another_processor_is_told(archive):
    write_run(archive, "0", machine="z80")
    assert any(f.path.startswith("processor z80") for f in verify(archive, ".").of("other environment"))


# ---- telling


def test_every_stated_deletion_leaves_nothing_of_its_kind(archive):
    """What is then missing the last command makes: shown on a whole archive in tests/workflow/test_verify.py."""
    decay(f"{archive}/{WEIGHTS}")
    put(f"{archive}/it's mine; rm x/-f")
    put(f"{archive}/models/.writing-abc/model.pt")
    os.symlink("/", f"{archive}/root")
    report = verify(archive, ".")
    for kind in ("changed", "foreign", "leftover", "escaping link"):
        subprocess.run(["bash", "-c", report.delete_command(kind)], check=True)
    assert found(archive) == {"missing": [WEIGHTS]} and os.path.exists("/etc")


def test_many_files_are_told_in_few_lines_and_deleted_by_one_command(archive, tmp_path):
    for n in range(100):
        put(f"{archive}/new/{n:03d}")
    report = verify(archive, ".")
    assert sum(line.startswith("    new/") for line in str(report).splitlines()) == SHOWN
    assert f"and {100 - SHOWN} more" in str(report) and len(report.as_json()["findings"]) == 100
    assert report.delete_command("foreign") == "armarium verify archives/a --paths foreign | xargs -0 rm -r --"
    done = CliRunner().invoke(cli, ["verify", archive, "--no-data", "--paths", "foreign"])
    subprocess.run(["xargs", "-0", "rm", "-r", "--"], input=done.stdout_bytes, check=True)
    assert found(archive) == {}


def test_a_name_that_would_play_with_the_terminal_is_shown_harmless(archive):
    put(f"{archive}/a\x1b[2Jb\nchanged (9): c")
    report = verify(archive, ".")
    assert "\x1b" not in str(report) and "\nchanged (9)" not in str(report)
    assert "--paths foreign" in report.delete_command("foreign")
    assert json.loads(json.dumps(report.as_json()))["findings"][0]["path"].startswith("a\x1b")


def test_the_command_says_it_to_people_and_machines_and_by_its_status(archive):
    def run(*options):
        return CliRunner().invoke(cli, ["verify", archive, "--data-root", ".", *options])

    assert run().exit_code == 0 and "nothing wrong" in run().output
    assert json.loads(run("--json").output)["ok"] is True
    decay(f"{archive}/{WEIGHTS}")
    told = json.loads(run("--json").output)
    assert run().exit_code == 1 == run("--json").exit_code and told["ok"] is False
    assert (
        told["kinds"]["changed"]["delete"] == f"rm -f -- archives/a/{WEIGHTS}"
        and told["kinds"]["changed"]["count"] == 1
    )
    assert told["build"] in run().output
    assert "1 changed" in run().output.splitlines()[0]


def test_the_last_command_is_one_that_works_from_here(archive, monkeypatch):
    put(f"{archive}/new")
    target = "archives/a/ro-crate-metadata.json"
    assert verify(archive, ".").build_command() == f"armarium build --cores 1 --force -- {target}"
    put("Snakefile")
    assert verify(archive, ".").build_command() == f"snakemake --cores 1 --force -- {target}"
    os.mkdir(".snakemake")
    project = os.getcwd()
    monkeypatch.chdir("/")
    command = verify(f"{project}/{archive}", project).build_command()
    assert command == f"armarium build --cores 1 --directory {project} --force -- {target}"
    monkeypatch.chdir(f"{project}/data")
    command = verify(f"../{archive}", project).build_command()
    assert command == f"armarium build --cores 1 --directory {project} --force -- {target}"


def test_a_training_that_mending_would_repeat_is_announced(archive):
    decay(layout.run_zip(archive, 1))
    assert "trains again: training/split-1/run.zip" in str(verify(archive, "."))


def test_verifying_needs_no_library_that_computes():
    code = "import sys, armarium.verify; sys.exit(bool({'torch', 'monai', 'numpy', 'snakemake'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO / "workflow").returncode == 0


# ---- reading


def test_content_is_that_of_the_file_however_long(tmp_path):
    for size in (0, 1, scan.BLOCK - 1, scan.BLOCK, 3 * scan.BLOCK + 7):
        data = os.urandom(size)
        (tmp_path / "f").write_bytes(data)
        read = scan.content(str(tmp_path / "f"), with_crc=True)
        assert (read.sha256, read.size) == (sha256(data).hexdigest(), size)
    assert read.crc32 == zlib.crc32(data)


def test_long_reading_tells_how_far_it_is(archive, monkeypatch, capsys):
    monkeypatch.setattr(scan, "SECONDS_BETWEEN_LINES", -1)
    verify(archive, ".")
    assert "reading: 0.0 of 0.0 GB" in capsys.readouterr().err
