"""Whatever is lost is rebuilt by name, with the fewest steps, to the same bytes.

docs/rebuilding.md has what these tests hold Snakemake to: the rule of every file, what a plain call runs, and
which bytes may differ.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from armarium.manifest import read_manifest

from ..rebuilding import cut_from_a_run, row_of
from . import content
from .conftest import Project, WarmProject, finished_jobs, job_counts, micro_config
from .test_classification import build_classified
from .test_nothing_to_do import build_demo
from .test_regression import build_regressed

MANIFEST = "ro-crate-metadata.json"
RUN = re.compile(r"training/split-(\d+)/run\.zip")
RECORDS = re.compile(r"provenance/[^/]+\.json|training/split-\d+/tmp/.+")
"""What a step writes beside what it was asked for: its record, the state that a training resumes from."""
SOURCES = re.compile(r"config/(?!dataset_\d+\.json$|data\.json$).+")
"""What no rule makes."""


def declared(project: Project) -> dict[str, tuple[str, frozenset[str]]]:
    """Of every file of the archive that the DAG has, its rule and the files that one job of it makes."""
    rows = [line.split("\t") for line in project.snakemake("--summary").stdout.splitlines()[1:]]
    prefix = f"{project.archive.relative_to(project.folder)}/"
    jobs = {name.removeprefix(prefix): (rule, log) for name, _, rule, log, *_ in rows if name.startswith(prefix)}
    return {name: (job[0], frozenset(n for n, j in jobs.items() if j == job)) for name, job in jobs.items()}


def files(archive: Path) -> dict[str, bytes]:
    """Every file by its name, but records and resume states."""
    paths = {path.relative_to(archive).as_posix(): path for path in archive.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not RECORDS.fullmatch(name)}


def differences(project: Project, reference: dict[str, bytes], trained: bool = False) -> list[str]:
    """Names of files that are lost, new, or other than in the reference.

    Equal means equal in bytes; but of a manifest, and of what holds the times of a split that was trained again, in
    content.
    """
    now = files(project.archive)
    common = now.keys() & reference.keys()
    other = {n for n in common if now[n] != reference[n]}
    agree = {n for n in other if (trained or n == MANIFEST) and content.same(n, now[n], reference[n])}
    return sorted((now.keys() ^ reference.keys()) | (other - agree))


def jobs_for(lost: Iterable[str]) -> set[tuple[str, tuple[str, ...]]]:
    """The jobs that the table names for lost files."""
    return {(rule, tuple(made)) for rule, made in map(row_of, lost)}


def fewest(lost: list[str], names: Iterable[str], published: str = "0") -> Counter[str]:
    """The jobs by rule that a plain call runs after a loss; ``names`` is all that the archive declares."""
    if not lost:
        return Counter()
    trained = {match[1] for match in map(RUN.fullmatch, lost) if match}
    again = {job for job in jobs_for(names) if job[0] in cut_from_a_run() and is_cut_from(job, trained, published)}
    return Counter(rule for rule, _ in {*jobs_for(lost), *again, *jobs_for([MANIFEST])})


def is_cut_from(job: tuple[str, tuple[str, ...]], trained: set[str], published: str) -> bool:
    """Whether a job's files are of one of the splits, or of all or the published one where they name none."""
    rule, made = job
    named = {match[1] for name in made for match in re.finditer(r"/split-(\d+)/", name)}
    if not named and rule.startswith("publish_"):
        named = {published}
    return bool(trained & named if named else trained)


# ---- every single file


def lose(project: WarmProject, name: str, reference: dict[str, bytes]) -> tuple[list[str], int]:
    """Delete a file and ask for it by name; what is wrong then, and how many jobs ran that need not."""
    rule, _ = row_of(name)
    path = project.archive / name
    path.unlink()
    ran = project.ran(str(path.relative_to(project.folder)))
    wrong = [f"{name}: ran {ran}, not {rule} once"] if ran != {rule: 1} else []
    differing = differences(project, reference, trained=RUN.fullmatch(name) is not None)
    return wrong + [f"after {name} was lost, {other} differs" for other in differing], beyond(ran, Counter([rule]))


def beyond(ran: dict[str, int], wanted: Counter[str]) -> int:
    return (Counter(ran) - wanted).total()


def prove_every_file(project: Project, folder: Path, figures) -> None:
    """Lose every file in turn, on two copies at a time; runs, which are trained again, come last."""
    reference = files(project.archive)
    with ExitStack() as stack:
        copies = [stack.enter_context(WarmProject.copy_of(project, folder / f"copy-{i}")) for i in (0, 1)]
        names = sorted(declared(copies[0]))
        runs = [name for name in names if RUN.fullmatch(name)]
        others = [name for name in names if name not in runs]

        def walk(copy: WarmProject, some: list[str]) -> list[tuple[list[str], int]]:
            outcomes = [lose(copy, name, reference) for name in some]
            left = copy.planned()
            return [*outcomes, ([f"then still to be done: {left}"] * bool(left), 0)]

        with ThreadPoolExecutor() as pool:
            outcomes = [one for half in pool.map(walk, copies, (others[0::2], others[1::2])) for one in half]
        outcomes += [lose(copies[0], name, reference) for name in runs]
        wrong = [message for messages, _ in outcomes for message in messages]
        ran = Counter(copies[0].ran())
        wrong += [f"after training again, {name} differs" for name in differences(copies[0], reference, trained=True)]
    figures.add("files deleted and rebuilt", len(names))
    figures.add("rebuilt with other bytes", sum("differs" in message for message in wrong))
    figures.add("rules run beyond the minimum", sum(number for _, number in outcomes))
    assert not wrong, "\n".join(wrong)
    assert ran == fewest(runs, names) - Counter(train_split=len(runs)), "what is cut from a run"


def test_the_table_names_every_file_of_the_archive_with_its_rule_and_what_is_made_with_it(built):
    in_dag = declared(built)
    assert {name: (rule, frozenset(made)) for name in in_dag for rule, made in [row_of(name)]} == in_dag
    listed = {name for name in read_manifest(str(built.archive)).files if not RECORDS.fullmatch(name)}
    assert in_dag.keys() == {name for name in listed if not SOURCES.fullmatch(name)} | {MANIFEST}


def test_every_lost_file_comes_back_by_name_with_one_job_and_the_same_bytes(built, tmp_path, figures):
    prove_every_file(built, tmp_path, figures)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("build", [build_demo, build_classified, build_regressed])
def test_every_lost_file_of_other_archives_comes_back(tmp_path, build, figures):
    """3D images and two splits; classification; regression."""
    prove_every_file(build(tmp_path / "built"), tmp_path, figures)


@pytest.mark.slow
def test_a_warm_call_runs_what_a_command_runs(built, tmp_path):
    """Else the walks would prove something of the harness."""
    target, planned, ran = "archives/micro/models/model.ts", [], []
    with WarmProject.copy_of(built, tmp_path / "warm") as warm:
        for project in (Project.copy_of(built, tmp_path / "cold"), warm):
            (project.folder / target).unlink()
            planned.append(project.planned())
            done = project.snakemake(target)
            assert "profiles/default" in done.stdout + done.stderr
            ran.append(finished_jobs(done.stdout + done.stderr))
            refused = project.snakemake("archives/micro/no/such/file", ok=False)
            assert refused.returncode == 1 and "MissingRuleException" in refused.stdout + refused.stderr
    assert planned[0] == planned[1] and ran == [{"publish_torchscript": 1}] * 2


# ---- many files at once


@pytest.fixture(scope="module")
def shared(built, tmp_path_factory):
    """One warm copy for losses that leave no trace."""
    with WarmProject.copy_of(built, tmp_path_factory.mktemp("shared") / "project") as project:
        yield project


def prove_loss(project: WarmProject, lost: Iterable[str], reference: dict[str, bytes], figures) -> None:
    """A plain call after a loss plans and runs the fewest jobs, gives the same bytes, and leaves nothing to do."""
    planned = project.planned()
    assert prove_rebuilt(project, lost, reference, figures) == planned
    known = content.manifest((project.archive / MANIFEST).read_bytes())
    assert known == content.manifest(reference[MANIFEST])


def prove_rebuilt(
    project: WarmProject, lost: Iterable[str], reference: dict[str, bytes], figures, *target: str
) -> dict[str, int]:
    """The same, but for the plan, and for what the manifest says, in which lost records are missing; what ran."""
    lost = list(lost)
    wanted = fewest(lost, [name for name in reference if not SOURCES.fullmatch(name)])
    ran = project.ran(*target)
    differing = differences(project, reference, trained=any(map(RUN.fullmatch, lost)))
    figures.add("files deleted and rebuilt", len(lost))
    figures.add("rebuilt with other bytes", len([name for name in differing if name != MANIFEST]))
    figures.add("rules run beyond the minimum", beyond(ran, wanted))
    assert ran == wanted and set(differing) <= {MANIFEST}, f"ran {ran}, wanted {wanted}; differing: {differing}"
    assert project.planned(*target) == {}
    return ran


def prove_random_sets(project: WarmProject, reference: dict[str, bytes], seeds: Iterable[int], figures) -> None:
    names = sorted(n for n in reference if not SOURCES.fullmatch(n) and n != MANIFEST and not RUN.fullmatch(n))
    for seed in seeds:
        draw = random.Random(seed)
        lost = draw.sample(names, draw.randint(2, 20))
        for name in lost:
            (project.archive / name).unlink()
        prove_loss(project, lost, reference, figures)


def delete_folder(project: Project, folder: str) -> list[str]:
    """Delete a folder of the archive; the files that rules make of it."""
    path = project.archive / folder
    names = [p.relative_to(project.archive).as_posix() for p in path.rglob("*") if p.is_file()]
    shutil.rmtree(path)
    return [n for n in names if not SOURCES.fullmatch(n) and not RECORDS.fullmatch(n)]


def test_random_sets_come_back_with_the_rule_of_each_file_and_no_other(built, shared, figures):
    prove_random_sets(shared, files(built.archive), range(2), figures)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_sets_come_back(built, shared, figures):
    prove_random_sets(shared, files(built.archive), range(2, 60), figures)


CHAIN = [
    "data/cases.tsv",
    "data/splits.json",
    "test/group-holdout/data.tsv",
    "training/split-0/exports.zip",
    "models/model.ts",
]
"""Files that others are made from, of which some are lost as well."""


def test_what_is_made_from_lost_files_stays_as_it_is(built, shared, figures):
    for name in CHAIN:
        (shared.archive / name).unlink()
    prove_loss(shared, CHAIN, files(built.archive), figures)


TOP = ["commands configs docs resources env", "config data", "eval models test"]
"""Top-level folders, those of a line lost together; ``training`` and ``provenance`` have tests of their own."""


@pytest.mark.parametrize("together", TOP)
def test_lost_folders_come_back(built, shared, figures, together):
    prove_loss(
        shared,
        [name for folder in together.split() for name in delete_folder(shared, folder)],
        files(built.archive),
        figures,
    )


@pytest.mark.slow
def test_a_lost_training_folder_is_trained_again_and_nothing_is_tested_or_exported_but_what_was_lost(
    built, tmp_path, figures
):
    with WarmProject.copy_of(built, tmp_path / "project") as project:
        prove_loss(project, delete_folder(project, "training"), files(built.archive), figures)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_lost_folder_comes_back(built, tmp_path, figures):
    reference = files(built.archive)
    folders = {parent.as_posix() for name in reference for parent in Path(name).parents} - {".", "provenance"}
    with ExitStack() as stack:
        project = stack.enter_context(WarmProject.copy_of(built, tmp_path / "project"))
        for number, folder in enumerate(sorted(folders)):
            trains = any(RUN.fullmatch(n) and n.startswith(f"{folder}/") for n in reference)
            used = stack.enter_context(WarmProject.copy_of(built, tmp_path / f"copy-{number}")) if trains else project
            prove_loss(used, delete_folder(used, folder), reference, figures)


def test_lost_records_are_not_invented_again(built, tmp_path, figures):
    """The manifest then knows the files, but not what made them; nor may it cost anything else."""
    reference, promised = files(built.archive), content.manifest((built.archive / MANIFEST).read_bytes())[0]
    with WarmProject.copy_of(built, tmp_path / "project") as project:
        assert delete_folder(project, "provenance") == ["provenance/workflow/Snakefile"]
        assert project.ran() == {"copy_workflow": 1, "write_manifest": 1}
        assert differences(project, reference) == [MANIFEST]
        assert [p.name for p in project.archive.glob("provenance/*.json")] == ["copy_workflow.json"]
        known, actions = content.manifest((project.archive / MANIFEST).read_bytes())
        assert known == {n: h for n, h in promised.items() if not RECORDS.fullmatch(n) or "copy_workflow" in n}
        assert actions.keys() == {"#action/copy_workflow"}
        assert project.planned() == {}


def test_files_of_an_environment_that_an_archive_was_not_made_in_are_refused(shared):
    for name in ("environment.yml", "data/environment.txt", "uv.lock"):
        done = shared.snakemake(f"archives/micro/env/{name}", ok=False)
        told = "armarium: archives/micro/env/environment.yml: not of the environments of this archive"
        assert done.returncode == 1 and told.replace("environment.yml", name, 1) in done.stderr


# ---- everything


@pytest.mark.slow
def test_everything_but_configuration_and_runs_comes_back_without_training(built, tmp_path, figures):
    """Of the training's record, which is lost too, nothing is invented."""
    reference = files(built.archive)
    kept = {name for name in reference if SOURCES.fullmatch(name) or RUN.fullmatch(name)}
    with WarmProject.copy_of(built, tmp_path / "project") as project:
        for path in [p for p in project.archive.rglob("*") if p.is_file()]:
            if path.relative_to(project.archive).as_posix() not in kept:
                path.unlink()
        prove_rebuilt(project, reference.keys() - kept, reference, figures)
        assert "#action/train_split-0" not in content.manifest((project.archive / MANIFEST).read_bytes())[1]


WHERE_DATA_IS = {"config/environment.json", "config/effective/written.json"}
"""What says where the dataset is, or has the hash of what says it."""


def rebuild(project: Project, archive: Path, here: Path, *options: str | Path) -> subprocess.CompletedProcess:
    """``armarium rebuild`` with a project's workflow, from a folder that has none."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "armarium", "rebuild", archive, *options],
        cwd=here,
        env={**project.environment, "PYTHONPATH": str(project.folder / "workflow")},
        capture_output=True,
        text=True,
    )


def only_configuration(project: Project, folder: Path) -> Path:
    """A copy of an archive's config/, and of nothing else, under another name."""
    shutil.copytree(project.archive / "config", folder / "archive/config")
    return folder / "archive"


def prove_made_again(project: Project, folder: Path, figures) -> None:
    """From a copy of config/ alone and the data, both elsewhere, the whole archive comes back."""
    reference, archive = files(project.archive), only_configuration(project, folder / "copy")
    data, here = folder / "data of it", folder / "here"
    shutil.copytree(project.folder, data, ignore=shutil.ignore_patterns("archives", "workflow", ".*"))
    here.mkdir()
    done = rebuild(project, archive, here, "--data-root", data, "--cores", "2", "--config", "device=cpu")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    lost = [name for name in reference if not SOURCES.fullmatch(name)]
    ran, wanted = finished_jobs(done.stdout + done.stderr), fewest(lost, lost)
    copy = Project(project.folder)
    copy.archive = archive
    differing = differences(copy, reference, trained=True)
    figures.add("files deleted and rebuilt", len(lost))
    figures.add("rebuilt with other bytes", len({*differing} - WHERE_DATA_IS - {MANIFEST}))
    figures.add("rules run beyond the minimum", beyond(ran, wanted))
    assert ran == wanted and set(differing) <= {*WHERE_DATA_IS, MANIFEST}, f"ran {ran}; differing: {differing}"
    again = rebuild(project, archive, folder, "--data-root", data, "-n")
    assert again.returncode == 0 and job_counts(again.stdout + again.stderr) == {}, again.stdout + again.stderr


@pytest.mark.slow
def test_an_archive_comes_back_from_its_configuration_and_the_data_alone(built, tmp_path, figures):
    prove_made_again(built, tmp_path, figures)


def build_rich(folder: Path) -> Project:
    """Given splits, a derived column, a test list of another file, and a variable that was once set."""
    project = Project.fresh(folder)
    project.snakemake("data/micro/dataset.json")
    listed = json.loads((project.folder / "data/micro/dataset.json").read_text())
    other = {**listed, "training": listed["test"], "test": [], "numTraining": len(listed["test"]), "numTest": 0}
    (project.folder / "data/micro/other.json").write_text(json.dumps(other))
    names = [f"case_{number:03d}" for number in range(1, 9)]
    sides = [{"train": names[:5], "validation": names[5:]}, {"train": names[3:], "validation": names[:3]}]
    (project.folder / "given.json").write_text(json.dumps(sides))
    config = micro_config()
    section = config["archives"]["micro"]
    section["dataset"] = {"list": "data/micro/dataset.json"}
    section["dataset"]["columns"] = {"pair": {"from": "case", "pattern": "([0-9]+)$", "bin": 2, "start": 1}}
    section |= {
        "splits": {"method": "file", "file": "given.json"},
        "test": {"groups": {"far": {"list": "data/micro/other.json"}}},
    }
    project.configure(config)
    project.snakemake("--config", "set={epochs: 3}")
    return project


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("build", [build_rich, build_classified])
def test_other_archives_come_back_from_their_configuration_and_the_data_alone(tmp_path, build, figures):
    prove_made_again(build(tmp_path / "built"), tmp_path, figures)


def test_data_that_is_missing_or_other_is_refused_before_anything_is_made(built, tmp_path):
    archive = only_configuration(built, tmp_path)
    done = rebuild(built, archive, tmp_path, "--data-root", tmp_path / "none")
    assert done.returncode == 1 and not list(archive.rglob("*.tsv"))
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("armarium: ")]
    assert "none/data/micro/dataset.json: file not found" in told and "armarium synthesize" in told
    shutil.copytree(built.folder / "data", tmp_path / "other/data")
    image = tmp_path / "other/data/micro/imagesTr/case_001.nii.gz"
    shutil.copy(image.with_name("case_002.nii.gz"), image)
    snakefile = [f"--snakefile={built.folder / 'Snakefile'}", f"--workflow-profile={built.folder / 'profiles/default'}"]
    plain = built.command(*snakefile, f"archive/{MANIFEST}", "--config", "data_root=other")
    done = subprocess.run(plain, cwd=tmp_path, env=built.environment, capture_output=True, text=True)
    assert done.returncode == 1 and not list(archive.rglob("*.tsv"))
    assert "armarium: other: not the data that archive was made from" in done.stderr
    assert "  - data/micro/imagesTr/case_001.nii.gz: changed\n" in done.stderr


def test_a_listed_archive_with_other_data_is_refused_by_rebuild_alone(built, tmp_path):
    project = Project.copy_of(built, tmp_path / "project")
    image, before = project.folder / "data/micro/imagesTr/case_001.nii.gz", files(project.archive)
    shutil.copy(image.with_name("case_002.nii.gz"), image)
    done = rebuild(project, project.archive, project.folder)
    assert done.returncode == 1 and "case_001.nii.gz: changed" in done.stderr
    assert files(project.archive) == before
    assert project.planned()["train_split"] == 1


def test_lost_configuration_that_planning_writes_costs_nothing(built, shared):
    """Also for an archive from elsewhere, of which Snakemake has no record."""
    shutil.copytree(shared.archive, shared.folder / "elsewhere")
    for archive in (shared.archive, shared.folder / "elsewhere"):
        shutil.rmtree(archive / "config/effective")
        target = f"{archive.relative_to(shared.folder)}/{MANIFEST}"
        assert shared.planned(target) == {} == shared.ran(target)
        now = files(archive)
        assert {n: now.get(n) for n in files(built.archive) if n != MANIFEST} == {
            n: d for n, d in now.items() if n != MANIFEST
        }


def test_a_lost_dataset_that_is_synthesized_is_made_again(built, shared):
    folder = shared.folder / "data/micro"
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    lost = folder / "imagesTr/case_002.nii.gz"
    lost.unlink()
    assert shared.ran("data/micro/imagesTr/case_002.nii.gz") == {"synthesize_micro": 1}
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert shared.planned() == {}


# ---- the same bytes in other circumstances


def test_torchscript_is_the_same_whoever_asks_and_wherever(built, tmp_path):
    """Another hash seed, temporary folder, home and working directory, by a user without a name where that can be tried."""
    project = Project.copy_of(built, tmp_path / "another folder")
    temporary = tmp_path / "temporary files"
    temporary.mkdir()
    target = project.archive / "training/split-0/exports.zip"
    target.unlink()
    nobody = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    may = subprocess.run([*nobody, "true"], capture_output=True).returncode == 0
    elsewhere = ["--directory", project.folder, "--snakefile", project.folder / "Snakefile", "--workflow-profile"]
    done = subprocess.run(
        [*(nobody if may else ()), *project.command(*elsewhere, project.folder / "profiles/default", "--"),
         target.relative_to(project.folder)],
        cwd=temporary,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "TMPDIR": temporary, "PYTHONHASHSEED": "4321"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert finished_jobs(done.stdout + done.stderr) == {"export_split": 1}, done.stderr
    assert target.read_bytes() == (built.archive / "training/split-0/exports.zip").read_bytes()
