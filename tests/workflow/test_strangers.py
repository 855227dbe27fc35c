"""An archive of a stranger's, copied into somebody's folder: Snakemake runs nothing of it, and keeps to it.

Each attack was seen to succeed where the defence that it is refused by was missing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from .conftest import REPO, Project, WarmProject, hashes

SCORES = "stranger/eval/evaluation.zip"


class Bare(WarmProject):
    """Somebody's folder without a configuration file, a cache or a record of anything."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.archive = folder / "stranger"
        self.canary = folder / "canary"

    @classmethod
    def with_archive_of(cls, project: Project, folder: Path) -> Bare:
        for name in ("workflow", "profiles", "envs"):
            (folder / name).symlink_to(REPO / name)
        shutil.copy(REPO / "Snakefile", folder)
        shutil.copytree(project.folder / "data", folder / "data")
        bare = cls(folder)
        shutil.copytree(project.archive, bare.archive)
        return bare

    def refused(self, *args: str) -> str:
        done = self.snakemake(*args, ok=False)
        text = done.stdout + done.stderr
        assert done.returncode != 0 and "Traceback" not in text, text
        assert not self.canary.exists()
        return text


@pytest.fixture
def bare(built, tmp_path) -> Iterator[Bare]:
    with Bare.with_archive_of(built, tmp_path) as project:
        yield project


def rewrite(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def mend_manifest(archive: Path) -> None:
    """A stranger's manifest says that everything is as it should be."""

    def change(manifest: dict) -> None:
        for entity in manifest["@graph"]:
            path = archive / entity["@id"]
            if "sha256" in entity and path.is_file():
                entity["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
                entity["contentSize"] = str(path.stat().st_size)

    rewrite(archive / "ro-crate-metadata.json", change)


# ---- what an archive from elsewhere needs


def test_an_own_archive_from_elsewhere_is_scored_again_without_a_word(bare):
    before = hashes(bare.archive)
    (bare.folder / SCORES).unlink()
    assert bare.ran(SCORES) == {"evaluate_published": 1}
    assert hashes(bare.archive) == before


# ---- attacks


class Touching(torch.nn.Module):
    """TorchScript that writes a file when it is loaded."""

    def __init__(self, path: str):
        super().__init__()
        self.path, self.training = path, False

    @torch.jit.export
    def __getstate__(self):
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.path = state[0]
        written = torch.from_file(state[0], True, 4, dtype=torch.uint8)
        written.fill_(65)
        self.training = bool(written.sum() < 0)

    def forward(self, x):
        return torch.cat([1 - x, x], 1)


Touching.__setstate__.__annotations__["state"] = tuple[str, bool]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_of_a_stranger_is_code_and_not_run_unless_trusted(bare):
    torch.jit.save(torch.jit.script(Touching(str(bare.canary))), str(bare.archive / "models/model.ts"))
    bare.canary.unlink(missing_ok=True)
    evil, exports = (bare.archive / "models/model.ts").read_bytes(), bare.archive / "training/split-0/exports.zip"
    with zipfile.ZipFile(exports) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(exports, "w") as target:
        for name, data in members.items():
            target.writestr(name, evil if name == "best-MeanDice.ts" else data)
    mend_manifest(bare.archive)
    (bare.folder / SCORES).unlink()
    told = bare.refused(SCORES)
    assert "TorchScript is code, and this file is not what is exported here" in told
    assert "trust_torchscript=True" in told
    bare.snakemake("--config", "trust_torchscript=True", "--", SCORES, ok=False)
    assert bare.canary.exists(), "the file was harmful"


def own_allow(bare: Bare) -> tuple[str, str]:
    command = f"touch {bare.canary}"
    rewrite(bare.archive / "config/archive.json", lambda spec: spec.update(allow=["os.system"]))
    rewrite(
        bare.archive / "config/config_train.json",
        lambda c: c["train"].update(loss={"path": "os.system", "args": {"command": command}}),
    )
    return "stranger/architecture.log", "archive.json: allow names os.system"


def case_that_is_a_command(bare: Bare) -> tuple[str, str]:
    path = bare.archive / "data/splits.json"
    case = json.loads(path.read_text())["groups"]["holdout"][0]
    path.write_text(path.read_text().replace(f'"{case}"', '"x`touch canary`"'))
    (bare.archive / "ro-crate-metadata.json").unlink()
    return "stranger/ro-crate-metadata.json", "found case 'x`touch canary`'"


def listed_case_that_is_a_command(bare: Bare) -> tuple[str, str]:
    """The manifest stands in for splits that were lost."""
    path = bare.archive / "ro-crate-metadata.json"
    path.write_text(path.read_text().replace("eval/case_009/case_009_seg", "eval/x`touch canary`/x`touch canary`_seg"))
    (bare.archive / "data/splits.json").unlink()
    (bare.archive / "LICENSE").unlink()
    return "stranger/ro-crate-metadata.json", "eval/x`touch canary`"


def linked_folder(bare: Bare) -> tuple[str, str]:
    (bare.folder / "home").mkdir()
    shutil.rmtree(bare.archive / "models")
    (bare.archive / "models").symlink_to("../home")
    return "stranger/models/model.ts", "a link that leaves the archive"


def transform_that_writes(bare: Bare) -> tuple[str, str]:
    saver = {"name": "SaveImaged", "args": {"keys": "image", "output_dir": str(bare.folder / "home")}}
    rewrite(bare.archive / "config/config_train.json", lambda c: c["train"]["pre_transforms"].insert(1, saver))
    return "stranger/architecture.log", "may reach files or addresses outside the archive"


def name_that_is_a_path(bare: Bare) -> tuple[str, str]:
    rewrite(
        bare.archive / "config/config_train.json", lambda c: c["train"]["optimizer"].update(name="../../../../canary")
    )
    return "stranger/ro-crate-metadata.json", "wanted the name of a class"


ATTACKS = (
    own_allow,
    case_that_is_a_command,
    listed_case_that_is_a_command,
    linked_folder,
    pytest.param(transform_that_writes, marks=pytest.mark.slow),
    name_that_is_a_path,
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_with_the_reason(bare, attack, figures):
    target, message = attack(bare)
    told = bare.refused(target)
    figures.add("bad inputs tried")
    figures.add("bad inputs with a wrong answer", message not in told)
    assert message in told
    assert not (bare.folder / "home").is_dir() or not list((bare.folder / "home").iterdir())


def test_modules_and_logging_configurations_that_lie_about_are_not_run(bare):
    """Jobs run in the working directory, but import nothing from it; resources/log.config is compared, not evaluated."""
    evil = f"__import__('os').system('touch {bare.canary}')"
    for name in ("click.py", "nibabel.py", "armarium.py"):
        (bare.folder / name).write_text(evil)
    handler = f"[handler_console]\nclass=StreamHandler\nargs=({evil},)\n"
    for name in ("resources/log.config", "configs/logging.conf"):
        (bare.archive / name).write_text(f"[loggers]\nkeys=root\n[handlers]\nkeys=console\n{handler}")
    mend_manifest(bare.archive)
    (bare.archive / "model.json").unlink()
    refused = bare.snakemake("stranger/model.json", ok=False)
    assert "resources/log.config: " in refused.stderr and "Traceback" not in refused.stderr
    (bare.archive / "resources/log.config").unlink()
    bare.snakemake("stranger/model.json")
    assert not bare.canary.exists()


def test_an_archive_whose_name_is_a_command_is_a_name(bare):
    evil = bare.folder / "x$(touch canary)'y"
    bare.archive.rename(evil)
    (evil / "model.json").unlink()
    bare.snakemake("--", f"{evil.name}/model.json")
    record = json.loads((evil / "provenance/write_model.json").read_text())
    assert record["inputs"] and not bare.canary.exists()
