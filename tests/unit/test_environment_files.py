"""Which files env/ has: those that training froze, else those of the environments and locks that are here."""

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
from armarium import environment_files, layout, steps
from armarium.errors import UserError
from armarium.files import write_json


@pytest.fixture
def no_conda(tmp_path, monkeypatch):
    """A virtual environment, outside of any project with a lock file, and a working directory."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "a/b/c/venv"))
    monkeypatch.setattr(environment_files, "ENVS", tmp_path / "checkout/envs")
    (tmp_path / "checkout/envs").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def frozen(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as members:
        for name in names:
            members.writestr(f"env/{name}", f"frozen {name}\n")
    return path


OTHERS = [f"data/{name}" for name in (*layout.ENVIRONMENT, *layout.CONDA_ENVIRONMENT)]


def test_files_that_are_to_be_made_are_those_of_the_environments_that_rules_run_in(no_conda, monkeypatch, tmp_path):
    assert environment_files.names_here(False) == [*layout.ENVIRONMENT]
    assert environment_files.names_here(True) == [*layout.ENVIRONMENT, *layout.CONDA_ENVIRONMENT, *OTHERS]
    (tmp_path / "a/b/c/venv/conda-meta").mkdir(parents=True)
    (tmp_path / "a/b/c/venv/conda-meta/history").touch()
    assert environment_files.names_here(False) == [*layout.ENVIRONMENT, *layout.CONDA_ENVIRONMENT]


def test_the_lock_file_is_that_of_the_first_folder_with_one(no_conda, tmp_path):
    def locks() -> dict[str, bytes]:
        names = environment_files.names_here(False)[len(layout.ENVIRONMENT) :]
        return environment_files.environment_here(names)

    (tmp_path / "checkout/poetry.lock").write_text("of the checkout\n")
    assert locks() == {"poetry.lock": b"of the checkout\n"}
    (tmp_path / "work/uv.lock").write_text("of the working directory\n")
    (tmp_path / "work/requirements.lock").write_text("a==1\n")
    assert locks() == {"uv.lock": b"of the working directory\n", "requirements.lock": b"a==1\n"}
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/c/pixi.lock").write_text("of the environment's project\n")
    assert locks() == {"pixi.lock": b"of the environment's project\n"}


def test_pins_beside_the_rules_environments_are_kept_and_count_only_with_conda(no_conda, tmp_path):
    (tmp_path / "checkout/envs/torch.linux-64.pin.txt").write_text("@EXPLICIT\nhttps://h/t/se-cret/c/a.conda#0a\n")
    (tmp_path / "checkout/envs/other.linux-64.pin.txt").write_text("@EXPLICIT\n")
    assert environment_files.names_here(False) == [*layout.ENVIRONMENT]
    assert environment_files.names_here(True)[-1] == "torch.linux-64.pin.txt"
    kept = environment_files.environment_here(["torch.linux-64.pin.txt"])
    assert kept == {"torch.linux-64.pin.txt": b"@EXPLICIT\nhttps://h/c/a.conda#0a\n"}


def test_a_lock_file_is_kept_without_passwords_and_otherwise_as_it_is(no_conda, tmp_path):
    text = 'source = { registry = "https://me:word@h/simple" }\ngit+ssh://git@h/r.git\nhttps://h/p/t/tqdm/tqdm.whl\n'
    (tmp_path / "work/uv.lock").write_text(text)
    kept = environment_files.environment_here(["uv.lock"])["uv.lock"].decode()
    assert kept == text.replace("me:word@", "")


def test_what_training_froze_is_written_and_the_rest_is_of_this_process(no_conda, tmp_path):
    archive, run = str(tmp_path / "archive"), frozen(tmp_path / "run.zip", "environment.txt", "environment.yml")
    environment_files.write_environment(archive, ["environment.yml", "environment.txt", "host.json"], run)
    read = {
        name: Path(layout.environment_file(archive, name)).read_text()
        for name in environment_files.recorded_names(archive)
    }
    assert (
        read["environment.txt"] == "frozen environment.txt\n" and read["environment.yml"] == "frozen environment.yml\n"
    )
    assert '"interpreter"' in read["host.json"]


def test_a_conda_file_that_nothing_froze_is_not_invented(no_conda, tmp_path):
    with pytest.raises(UserError, match=r"env/environment\.yml: .*--sdm conda"):
        environment_files.write_environment(str(tmp_path / "archive"), ["environment.yml"], tmp_path / "absent.zip")
    with pytest.raises(UserError, match=r"uv\.lock: no such lock file"):
        environment_files.write_environment(str(tmp_path / "archive"), ["uv.lock"], tmp_path / "absent.zip")
    assert not (tmp_path / "archive").exists()


def test_training_freezes_its_own_environment_beside_what_is_known_of_others(no_conda, tmp_path):
    archive = str(tmp_path / "archive")
    for name in ("environment.txt", "environment.yml", "data/environment.yml", "uv.lock", "strange.txt"):
        path = Path(layout.environment_file(archive, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"old {name}\n")
    kept = environment_files.environment_of_training(archive)
    assert sorted(kept) == ["data/environment.yml", "environment.txt", "host.json", "uv.lock"]
    assert kept["uv.lock"] == b"old uv.lock\n" and not kept["environment.txt"].startswith(b"old")
    assert environment_files.differing_names(archive, kept) == ["environment.txt", "host.json"]


def test_env_is_of_the_published_splits_training_wherever_it_was_begun(no_conda, tmp_path):
    archive = str(tmp_path / "archive")
    write_json(layout.effective(archive, "publish"), {"publish": 1})
    text = Path(layout.environment_txt(archive))
    text.parent.mkdir()
    text.write_text("of another machine\n")
    members = steps._environment_of_training(archive, "0")
    assert text.read_text() == "of another machine\n" and members.keys() == {"env/environment.txt", "env/host.json"}
    assert steps._environment_of_training(archive, "1") == members
    assert text.read_bytes() == members["env/environment.txt"]
    record = Path(layout.sidecar(archive, "record_environment_of_training"))
    assert json.loads(record.read_text())["outputs"].keys() == {"env/environment.txt", "env/host.json"}
    record.unlink()
    assert steps._environment_of_training(archive, "1") == members and not record.exists()


def test_env_becomes_that_of_a_split_that_is_published_later(no_conda, tmp_path):
    archive = str(tmp_path / "archive")
    run = frozen(tmp_path / "run.zip", "environment.txt", "environment.yml")
    text = Path(layout.environment_txt(archive))
    text.parent.mkdir(parents=True)
    text.write_text("of the split that was published\n")
    steps._describe_published_environment(archive, run)
    assert text.read_text() == "frozen environment.txt\n"
    assert os.listdir(text.parent) == ["environment.txt"], "what is not there, its own rule writes"
    assert json.loads(Path(layout.sidecar(archive, "record_environment_of_training")).read_text())["outputs"]


def test_files_of_an_earlier_trainings_environment_go_when_the_present_one_has_none(tmp_path):
    archive = str(tmp_path / "archive")
    for name in ("environment.txt", "environment.yml", "notes.txt"):
        path = Path(layout.environment_file(archive, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    environment_files.remove_outdated(archive, tmp_path / "absent.zip")
    assert sorted(os.listdir(f"{archive}/env")) == ["environment.txt", "environment.yml", "notes.txt"]
    environment_files.remove_outdated(archive, frozen(tmp_path / "run.zip", "environment.txt", "host.json"))
    assert sorted(os.listdir(f"{archive}/env")) == ["environment.txt", "notes.txt"]


def test_of_a_strangers_run_only_names_that_rules_write_are_asked_for(tmp_path):
    run = frozen(
        tmp_path / "run.zip", "environment.txt", "x.txt", "../y", "data/environment.yml", "data/uv.lock", "uv.lock"
    )
    assert environment_files.frozen_names(run) == ["data/environment.yml", "environment.txt", "uv.lock"]
    run.write_text("no zip")
    assert environment_files.frozen_names(run) == [] == environment_files.frozen_names(tmp_path / "absent.zip")
