"""A whole build beside the sum of its training steps; each rule's process alone; each kind of artifact, when it alone is missing.

The demo's, in a fresh folder. With ``make bench SUBJECTS=pipeline DATA=DIR``, where DIR has Task04_Hippocampus, a build on
that too, with as many ``EPOCHS`` as is said (4), once.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median

from .measuring import Usage, alternately, show, spread
from .projects import CORES, Project, finished

DATA, EPOCHS = os.environ.get("DATA"), os.environ.get("EPOCHS", "4")
COMPUTE = ("check_recipe", "train_split", "test_split", "evaluate_published", "export_split")
"""The rules that load torch and MONAI."""
ROUNDS_AT_MOST = 3
"""Of what takes a minute, or what there are dozens of."""
TRAINS = "train_split"
"""The rule whose product is deleted last: what is cut from another run.zip would be made again with every other file."""


def measure(rounds: int) -> None:
    """Build, then delete."""
    with tempfile.TemporaryDirectory() as folder:
        builds: list[Usage] = []
        for number in range(min(rounds, ROUNDS_AT_MOST)):
            project = Project(Path(folder, str(number)))
            builds.append(project.snakemake())
        tell_build("demo", project, builds)
        tell_processes(project, min(rounds, ROUNDS_AT_MOST))
        tell_missing(project)
        if DATA:
            project = Project(Path(folder, "hippocampus"), "hippocampus.yaml")
            asked = ("--config", f"data_root={Path(DATA).resolve()}", f"set={{epochs: {EPOCHS}}}")
            tell_build("hippocampus", project, [project.snakemake(*asked)], *asked)


# ---- a whole build


def tell_build(name: str, project: Project, builds: list[Usage], *arguments: str) -> None:
    """Where a build's time goes; its steps' own figures are the last build's."""
    archive, jobs = project.folder / "archives" / name, Counter(finished(builds[-1].output))
    cpu = {
        part: sum(s["resources"]["cpu_seconds"] for s in steps(archive) if among(s["rule"]))
        for part, among in PARTS.items()
    }
    training, validation = epochs(archive)
    alone = project.snakemake(*arguments)
    every = median(build.cpu for build in builds)
    rows = [
        ("training steps of all epochs (wall time; one thread each)", "", training),
        ("validation after each epoch (wall time)", "", validation),
        ("the rest of the training jobs: imports, preparing volumes, saving", jobs[TRAINS], cpu["training"] - training - validation),
        ("the other jobs that compute", sum(n for rule, n in jobs.items() if rule in COMPUTE and rule != TRAINS), cpu["computing"]),
        ("what light jobs do", sum(n for rule, n in jobs.items() if rule not in COMPUTE), cpu["light"]),
        ("Snakemake, with nothing to do", "", alone.cpu),
    ]  # fmt: skip
    rows.append(("the rest: starting processes, Snakemake between jobs", "", every - sum(row[2] for row in rows)))
    wall, steps_alone = [build.wall for build in builds], training + validation
    show(
        f"A whole build: {name}, {sum(jobs.values())} jobs on {CORES} cores, {len(builds)} builds",
        ("", "jobs", "CPU seconds", "of all"),
        [
            (what, count, f"{seconds:.1f}", f"{seconds / every:.0%}")
            for what, count, seconds in (*rows, ("all", "", every))
        ],
        f"Wall time {spread(wall, 1)} s; training and validating are {steps_alone:.1f} s, {steps_alone / median(wall):.0%} of it.",
    )


PARTS = {
    "training": lambda rule: rule == TRAINS,
    "computing": lambda rule: rule in COMPUTE and rule != TRAINS,
    "light": lambda rule: rule not in COMPUTE,
}


def steps(archive: Path) -> list[dict]:
    """The records of an archive's steps, by name."""
    return [json.loads(path.read_text()) for path in sorted(archive.glob("provenance/*.json"))]


def epochs(archive: Path) -> tuple[float, float]:
    """Seconds of the training steps, and of the validations, of all splits: the archive's own table of them."""
    rows: list[dict] = []
    for path in archive.glob("training/split-*/logs/computational.tsv"):
        with open(path, newline="") as file:
            rows += csv.DictReader(file, delimiter="\t")
    return sum(float(r["train_seconds"]) for r in rows), sum(float(r["validation_seconds"] or 0) for r in rows)


# ---- each rule's process


def tell_processes(project: Project, rounds: int) -> None:
    """Each rule's process, started alone with the command that its record has; training takes what is finished."""
    records = {step["rule"]: step for step in reversed(steps(project.folder / "archives/demo"))}
    jobs = Counter(step["rule"] for step in steps(project.folder / "archives/demo"))
    bare = {"python -c pass": "pass", "python -c 'import click, json'": "import click, json"}
    runs = {name: ["python", "-c", code] for name, code in bare.items()}
    runs |= {rule: record["command"] for rule, record in records.items() if rule != TRAINS}
    found: dict[str, list[Usage]] = {name: [] for name in runs}

    def run(name: str) -> float:
        found[name].append(project.step(runs[name]))
        return found[name][-1].cpu

    cpu = alternately({name: lambda name=name: run(name) for name in runs}, rounds)
    rows = [
        (name, jobs.get(name, ""), spread(cpu[name], 2), f"{median(u.wall for u in found[name]):.2f}", f"{found[name][0].peak_mib:.0f}")
        for name in sorted(runs, key=lambda name: (name in COMPUTE, name in jobs, median(cpu[name])))
    ]  # fmt: skip
    show(
        f"Each rule's process alone, {rounds} rounds", ("rule", "jobs of the demo", "CPU seconds", "wall", "MiB"), rows
    )


# ---- one missing artifact


def tell_missing(project: Project, name: str = "demo") -> None:
    """A product of each rule deleted and asked for by name, beside the same call with nothing to do; once each."""
    archive = project.folder / "archives" / name
    products = {step["rule"]: next(iter(step["outputs"])) for step in reversed(steps(archive))}
    products["write_manifest"] = "ro-crate-metadata.json"
    rows = []
    for _, product in sorted(products.items(), key=lambda item: (item[0] == TRAINS, item[0] in COMPUTE, item[0])):
        lost = archive / product
        call = ("--", str(lost.relative_to(project.folder)))
        lost.unlink()
        made, alone = project.snakemake(*call), project.snakemake(*call)
        jobs = ", ".join(f"{name} {n}" if n > 1 else name for name, n in Counter(finished(made.output)).items())
        rows.append(
            (product, jobs, *(f"{s:.1f}" for s in (made.wall, alone.wall, made.wall - alone.wall, made.cpu, alone.cpu)))
        )
    columns = ("lost", "rules run", "wall s", "nothing to do", "more", "CPU s", "nothing to do")
    show(f"One missing artifact of the {name}, asked for by name", columns, rows)
