"""The manifest of a small archive made by recorded steps."""

import json
import os
import shutil
from hashlib import sha256 as reference
from pathlib import Path

import pytest
from armarium import layout
from armarium.errors import UserError
from armarium.files import write_json
from armarium.hashing import HashIndex, sha256
from armarium.manifest import EPOCH, archive_files, archive_identity, read_manifest, write_manifest
from armarium.parent import Parent
from armarium.provenance import step


def put(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return path


def made_by(archive, name, rule, inputs, outputs, data=None, **parameters):
    with step(archive, name, rule, inputs, outputs, parameters, data):
        for path in outputs:
            write_json(path, {"made": os.path.basename(path), "by": name})


def build(folder):
    """Sources, and four steps: splits, training, two of one rule; docs have no sidecar."""
    a = str(folder)
    put(layout.workflow_copy(a), "rule all:\n")
    write_json(layout.archive_json(a), {"dataset": {"list": "Task/dataset.json", "licence": "CC-BY-SA 4.0"}})
    for part in ("split", "train"):
        write_json(layout.effective(a, part), {"seed": 0, "part": part})
    put(layout.doc(a, "README.md"), "# An archive\n")
    put(f"{layout.tmp_dir(a, 0)}/state.zip", "half")
    put(f"{a}/models/.writing-x/model.pt", "half")
    put(f"{a}/odd name/b#c.nii.gz", "voxels")
    data = {f"imagesTr/{n}.nii.gz": f"{n:064x}" for n in range(5)}
    made_by(a, "split", "make_splits", [layout.effective(a, "split")], [layout.datalist(a, 0)], data, folds=5)
    inputs = [layout.effective(a, "train"), layout.datalist(a, 0)]
    made_by(a, "train-0", "train_split", inputs, [layout.run_zip(a, 0)], data, metrics=["a"], amp=False)
    for checkpoint in ("final", "best-loss"):
        model = layout.checkpoint_pt(layout.checkpoint_dir(a, 0, checkpoint))
        made_by(a, f"select-0-{checkpoint}", "select_checkpoint", [layout.run_zip(a, 0)], [model])
    return a


@pytest.fixture
def archive(tmp_path):
    return build(tmp_path / "archive")


@pytest.fixture
def index(tmp_path):
    return HashIndex(tmp_path / "hashes.sqlite")


def graph(archive):
    document = json.loads(Path(layout.manifest(archive)).read_text())
    entities = {entity["@id"]: entity for entity in document["@graph"]}
    assert len(entities) == len(document["@graph"])
    return entities


def ids(value):
    return [v["@id"] for v in (value if isinstance(value, list) else [value])]


def test_every_file_is_listed_with_its_bytes(archive, index):
    write_manifest(archive, index)
    files = read_manifest(archive).files
    assert sorted(files) == archive_files(archive)
    assert "odd name/b#c.nii.gz" in files and layout.manifest("x")[2:] not in files
    assert not any("tmp" in path or ".writing" in path for path in files)
    for path, (digest, size) in files.items():
        data = Path(archive, path).read_bytes()
        assert (digest, size) == (reference(data).hexdigest(), len(data))


def test_actions_say_what_was_made_from_what(archive, index):
    write_manifest(archive, index)
    actions = {name: (inputs, outputs) for name, inputs, outputs in read_manifest(archive).actions}
    assert list(actions) == ["split", "train-0", "select-0-final", "select-0-best-loss"]
    inputs = ["config/effective/train.json", "config/dataset_0.json"]
    assert actions["train-0"] == (inputs, ["training/split-0/run.zip"])
    run = graph(archive)["#run"]
    assert "config/effective/split.json" in ids(run["object"])
    assert "config/dataset_0.json" in ids(run["result"]) and "config/dataset_0.json" not in ids(run["object"])


def test_steps_carry_times_parameters_and_resources(archive, index):
    write_manifest(archive, index)
    entities = graph(archive)
    record = json.loads(Path(layout.sidecar(archive, "train-0")).read_text())
    action = entities["#action/train-0"]
    for key in ("start", "end"):
        assert action[f"{key}Time"] == f"{record[key][:23]}+00:00"
    assert entities["#value/train-0/metrics"]["value"] == '["a"]'
    assert entities["#value/train-0/amp"]["value"] is False
    usage = entities["#usage/train-0/peakMemory"]
    assert usage["value"] == record["resources"]["peak_memory_bytes"] and usage["unitCode"].endswith("BYTE")
    assert action["subjectOf"] == {"@id": "provenance/train-0.json"}
    ends = [json.loads(p.read_text())["end"] for p in Path(archive, "provenance").glob("*.json")]
    assert entities["./"]["datePublished"] == f"{max(ends)[:23]}+00:00"


def test_actions_say_the_code_the_software_and_the_machine_that_made_them(archive, index):
    write_manifest(archive, index)
    entities = graph(archive)
    record = json.loads(Path(layout.sidecar(archive, "train-0")).read_text())
    code, software, host = (entities[i] for i in ids(entities["#action/train-0"]["environment"]))
    assert (code["name"], code["value"]) == (f"Armarium {record['armarium']}", record["code_sha256"])
    assert json.loads(software["value"]) == {"python": record["python"], **record["packages"]}
    assert json.loads(host["value"]) == {"name": record["host"], "platform": record["platform"]}
    assert entities["#tool/train_split"]["sha256"] == record["code_sha256"]


def described(archive, environment, *packages):
    """What env/ says of the environment that rules ran in."""
    text = "".join(f"{package}\n" for package in ("# python_version: 3.11.7", *packages))
    put(layout.environment_file(archive, f"{environment}environment.txt"), text)


def ran_in(archive, name, **facts):
    path = layout.sidecar(archive, name)
    write_json(path, json.loads(Path(path).read_text()) | facts)


def test_what_was_made_again_in_another_environment_than_env_describes_is_marked(archive, index):
    described(archive, "", "torch==2.13.0", "pytorch-ignite==0.5.5", "monai @ https://h/monai.whl")
    described(archive, "data/", "numpy==2.4.6")
    ran_in(archive, "train-0", python="3.11.7", packages={"torch": "2.13.0", "monai": "1.6", "ignite": "0.5.5"})
    ran_in(archive, "split", python="3.11.7", packages={"numpy": "2.4.6"}, environment="data")
    ran_in(
        archive, "select-0-final", python="3.12.1", packages={"torch": "2.14.0", "numpy": "2.4.6"}, environment="torch"
    )
    write_manifest(archive, index)
    entities = graph(archive)
    assert entities["#action/train-0"]["description"] == "A job of rule train_split"
    assert entities["#action/split"]["description"] == "A job of rule make_splits"
    marked = entities["#action/select-0-final"]["description"]
    told = "python 3.12.1 for 3.11.7, torch 2.14.0 for 2.13.0, numpy 2.4.6 for none"
    assert marked == f"A job of rule select_checkpoint, in another environment than env/ describes: {told}"


def test_actions_name_the_environment_of_their_rule(archive, index):
    ran_in(archive, "train-0", environment="torch")
    ran_in(archive, "split", environment="data")
    write_manifest(archive, index)
    entities = graph(archive)
    for name, environment in (("train-0", "torch"), ("split", "data")):
        named = [entities[i] for i in ids(entities[f"#action/{name}"]["environment"])]
        assert [e["value"] for e in named if e["propertyID"] == "environment"] == [environment]
    assert len(ids(entities["#action/select-0-final"]["environment"])) == 3


def test_what_many_steps_ran_on_is_described_once(archive, index):
    write_manifest(archive, index)
    before = len(graph(archive))
    for n in range(20):
        made_by(archive, f"light-{n}", "light", [], [f"{archive}/light/{n}"])
    write_manifest(archive, index)
    entities = graph(archive)
    shared = [key for key in entities if key.startswith(("#code/", "#host/"))]
    assert len(shared) == 2
    # for each step a file, a record, an action, a control action and three figures; for their rule a tool and a step
    assert len(entities) - before == 20 * (4 + 3) + 2


def test_an_archive_of_several_versions_of_the_code_names_them_all(archive, index):
    path = Path(layout.sidecar(archive, "select-0-final"))
    record = json.loads(path.read_text())
    write_json(path, {**record, "armarium": "0.0.1", "code_sha256": "a" * 64})
    write_manifest(archive, index)
    entities = graph(archive)
    tool = entities["#tool/select_checkpoint"]
    assert tool["softwareVersion"] == sorted({"0.0.1", record["armarium"]})
    assert tool["sha256"] == sorted({"a" * 64, record["code_sha256"]})
    assert ids(entities["#action/select-0-final"]["environment"])[0] == "#code/aaaaaaaaaaaa"
    assert ids(entities["#action/select-0-best-loss"]["environment"])[0] == f"#code/{record['code_sha256'][:12]}"


def test_what_a_step_adds_to_its_resources_is_among_its_usage(archive, index):
    path = Path(layout.sidecar(archive, "train-0"))
    record = json.loads(path.read_text())
    write_json(path, {**record, "resources": {**record["resources"], "device": "cuda"}})
    write_manifest(archive, index)
    entities = graph(archive)
    device = entities["#usage/train-0/device"]
    assert (device["propertyID"], device["value"]) == ("device", "cuda") and "unitCode" not in device
    assert "#usage/train-0/device" in ids(entities["#action/train-0"]["resourceUsage"])


def test_a_rule_is_one_tool_and_one_step_for_all_its_jobs(archive, index):
    write_manifest(archive, index)
    entities = graph(archive)
    tools = ["#tool/make_splits", "#tool/train_split", "#tool/select_checkpoint"]
    assert ids(entities["provenance/workflow/Snakefile"]["hasPart"]) == tools
    assert entities["#step/select_checkpoint"]["workExample"] == {"@id": tools[2]}
    controls = ids(entities["#organize"]["object"])
    assert [ids(entities[c]["instrument"])[0] for c in controls[2:]] == ["#step/select_checkpoint"] * 2


def test_a_dataset_is_one_entity_however_many_files_it_has(archive, index):
    write_manifest(archive, index)
    entities = graph(archive)
    sets = [entity for key, entity in entities.items() if key.startswith("#data/")]
    assert len(sets) == 1 and sets[0]["name"] == "5 files of the dataset"
    lines = "".join(f"{n:064x}  imagesTr/{n}.nii.gz\n" for n in range(5))
    assert sets[0]["sha256"] == reference(lines.encode()).hexdigest()
    assert entities["#dataset"]["license"] == "CC-BY-SA 4.0" == entities["#licence"]["name"]
    assert not any("imagesTr" in key for key in entities)


def test_a_lost_sidecar_takes_its_action_and_no_file(archive, index):
    os.remove(layout.sidecar(archive, "train-0"))
    write_manifest(archive, index)
    entities = graph(archive)
    assert "training/split-0/run.zip" in entities and "#tool/train_split" not in entities
    assert "#action/train-0" not in entities and "#step/train_split" not in entities


def test_without_any_sidecar_no_run_is_claimed(archive, index):
    for path in Path(archive, "provenance").glob("*.json"):
        path.unlink()
    write_manifest(archive, index)
    entities = graph(archive)
    assert entities["./"]["datePublished"] == EPOCH
    assert not any(e["@type"] in ("CreateAction", "OrganizeAction") for e in entities.values())
    assert "wfrun" not in json.dumps(entities["./"])


def test_a_file_is_not_ascribed_to_a_step_that_made_other_bytes(archive, index):
    put(layout.run_zip(archive, 0), "edited by hand")
    write_manifest(archive, index)
    actions = {name: (inputs, outputs) for name, inputs, outputs in read_manifest(archive).actions}
    assert "train-0" not in actions
    assert actions["select-0-final"][0] == []
    [earlier] = ids(graph(archive)["#action/select-0-final"]["object"])
    assert earlier.endswith("/run.zip") and graph(archive)[earlier]["name"] == "training/split-0/run.zip"


def test_every_reference_is_described(archive, index):
    write_manifest(archive, index)
    entities = graph(archive)
    for entity in entities.values():
        for value in entity.values():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict) and not item["@id"].startswith("http"):
                    assert item["@id"] in entities
    assert str(Path(archive).parent) not in json.dumps(entities)


def test_identity_is_that_of_config_and_datalists_alone(archive, index, tmp_path):
    identity = archive_identity(archive, index)
    copy = shutil.copytree(archive, tmp_path / "copy")
    put(copy / "docs" / "README.md", "other")
    write_json(layout.written_configs(str(copy)), {"other": "file"})
    assert archive_identity(str(copy), index) == identity
    write_manifest(archive, index)
    assert graph(archive)["./"]["identifier"] == identity
    put(layout.effective(str(copy), "train"), "{}")
    assert archive_identity(str(copy), index) != identity


def test_a_clone_names_its_origin(archive, index):
    write_json(layout.mmar_config(archive, "origin.json"), {"identifier": "sha256:1", "name": "parent"})
    write_manifest(archive, index)
    entities = graph(archive)
    assert entities["./"]["isBasedOn"] == {"@id": "#origin"}
    assert entities["#origin"]["identifier"] == "sha256:1"


def test_a_fine_tuned_archive_names_its_parent_while_its_files_are_those_that_it_gave(archive, index):
    put(Path(layout.parent_file(archive, "model.pt")), "weights")
    digest = sha256(layout.parent_file(archive, "model.pt"))
    parent = Parent("transfer", "models/model.pt", "a", "sha256:2", {"*": "model.pt"}, {"model.pt": digest})
    write_json(layout.parent_json(archive), parent.as_json())
    write_json(layout.origin(archive), {"identifier": "sha256:1", "name": "a"})
    write_manifest(archive, index)
    entities = graph(archive)
    assert entities["./"]["isBasedOn"] == [{"@id": "#origin"}, {"@id": "#parent"}]
    assert (entities["#parent"]["identifier"], entities["#parent"]["name"]) == ("sha256:2", "models/model.pt of a")
    assert entities["resources/parent/model.pt"]["isBasedOn"] == {"@id": "#parent"}
    put(Path(layout.parent_file(archive, "model.pt")), "other weights")
    write_manifest(archive, index)
    assert graph(archive)["#parent"]["name"] == "Weights of unknown origin"


def test_the_same_archive_gives_the_same_manifest(archive, index):
    write_manifest(archive, index)
    first = Path(layout.manifest(archive)).read_bytes()
    write_manifest(archive, index)
    assert Path(layout.manifest(archive)).read_bytes() == first


def test_what_hinders_a_manifest_is_said(archive, index):
    os.symlink("nowhere", f"{archive}/models/link")
    with pytest.raises(UserError, match="models/link: a link"):
        write_manifest(archive, index)
    os.remove(f"{archive}/models/link")
    os.symlink("/etc/hostname", f"{archive}/models/link")
    with pytest.raises(UserError, match="models/link: a link that leaves the archive"):
        write_manifest(archive, index)
    os.remove(f"{archive}/models/link")
    os.mkfifo(f"{archive}/models/pipe")
    with pytest.raises(UserError, match="models/pipe: found a pipe"):
        write_manifest(archive, index)
    os.remove(f"{archive}/models/pipe")
    os.remove(layout.workflow_copy(archive))
    with pytest.raises(UserError, match="Snakefile: file not found"):
        write_manifest(archive, index)
    with pytest.raises(UserError, match="file not found"):
        read_manifest(archive)
