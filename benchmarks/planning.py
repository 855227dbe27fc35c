"""Planning: what a call costs that has nothing to do, for all archives and for one file of one; beside Snakemake alone.

One archive of five splits is built by the workflow; the others are copies of it with all that Snakemake noted of it, as if
each had been built here. Beside it a plain Snakefile plans the same: the same rules and outputs, each job's inputs from a table,
and nothing of Armarium.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from statistics import median

import yaml

from .measuring import Usage, show, whole_process

REPO = Path(__file__).resolve().parents[1]
COUNTS = (1, 10, 100, 1000)
ONCE_FROM = 100
"""As many archives are planned whole once only, whatever the rounds."""
WHOLE = int(os.environ.get("WHOLE", 100))
"""Up to so many archives are planned whole, 1,000 only if asked for: that takes half an hour and 5 GB."""
FIRST = "a0000"
Job = tuple[str, list[str], list[str]]
"""Rule, outputs, inputs."""
MANIFEST = "ro-crate-metadata.json"


def measure(rounds: int) -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory(prefix="armarium-planning-") as temporary:
        one = _built(Path(temporary, "one"))
        jobs = _jobs(one)
        rows = []
        for count in COUNTS:
            project = _copies(one, Path(temporary, "many"), count)
            if count <= WHOLE:
                rows += _whole_plans(project, count, jobs, rounds)
            target = f"archives/{_names(count)[count // 2]}/models/model.pt"
            rows.append(_row(count, "one file of one archive", 0, [_snakemake(project, target) for _ in range(rounds)]))
            shutil.rmtree(project)
    show(
        f"Planning where nothing is to be done: archives of 5 splits, {len(jobs)} jobs each",
        ("archives", "call", "jobs", "wall s", "CPU s", "peak MiB", "CPU s per 1,000 jobs"),
        rows,
        f"Medians of {rounds} runs, of whole plans of {ONCE_FROM} archives and more one run. From the CPU time per 1,000 jobs "
        "that of a call that plans nothing is subtracted.",
    )


def _whole_plans(project: Path, count: int, jobs: list[Job], rounds: int) -> list[list]:
    first = _whole(lambda: _snakemake(project), count, 1)
    again = _whole(lambda: _snakemake(project), count, rounds)
    plain = _whole(_plain(project, jobs, count), count, rounds)
    calls = {"all, the first time": first, "all, again": again, "Snakemake alone, the same jobs": plain}
    return [_row(count, call, len(jobs), found) for call, found in calls.items()]


def _whole(call: Callable[[], Usage], count: int, rounds: int) -> list[Usage]:
    return [call() for _ in range(1 if count >= ONCE_FROM else rounds)]


def _row(count: int, call: str, jobs: int, found: list[Usage]) -> list:
    cpu = median(u.cpu for u in found)
    share = f"{1000 * (cpu - _idle()) / (count * jobs):.2f}" if jobs else ""
    wall, peak = median(u.wall for u in found), median(u.peak_mib for u in found)
    return [f"{count:,}", call, f"{count * jobs:,}" if jobs else "", f"{wall:.1f}", f"{cpu:.1f}", f"{peak:.0f}", share]


_IDLE: list[float] = []


def _idle() -> float:
    """CPU seconds of a Snakemake that has a single file to look at."""
    if not _IDLE:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "Snakefile").write_text("rule all:\n    output: 'done'\n    shell: 'true'\n")
            Path(folder, "done").touch()
            _IDLE.append(median(_snakemake(Path(folder)).cpu for _ in range(3)))
    return _IDLE[0]


# ---- projects


def _snakemake(project: Path, *args: str) -> Usage:
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(project)}
    command = [sys.executable, "-m", "snakemake", "--cores", str(os.cpu_count()), *args]
    return whole_process(command, cwd=str(project), env=environment)


def _built(folder: Path) -> Path:
    """A project whose one archive, in 2D and as small as it trains, is complete."""
    folder.mkdir()
    for name in ("workflow", "profiles", "envs"):
        shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "Snakefile", folder)
    conf = json.loads((REPO / "config/recipes/unet_small/config/config_train.json").read_text())
    conf["train"]["model"]["args"].update(spatial_dims=2, channels=[4, 8], strides=[2], num_res_units=0)
    for key in ("train", "validate"):
        conf[key]["pre_transforms"] = [t for t in conf[key]["pre_transforms"] if t.get("name") != "RandFlipd"]
    conf["validate"]["additional_metrics"] = []
    (folder / "recipe/config").mkdir(parents=True)
    (folder / "recipe/config/config_train.json").write_text(json.dumps(conf))
    _list(folder, 1)
    _snakemake(folder)
    return folder


def _names(count: int) -> list[str]:
    return [f"a{number:04}" for number in range(count)]


def _list(folder: Path, count: int) -> None:
    """A configuration that lists so many archives, each with a section of its own."""
    shape = {"cases": 10, "test_cases": 3, "shape": [20, 24], "spacing": [1.0, 0.8]}
    section = {
        "recipe": "recipe",
        "dataset": {"list": "data/micro/dataset.json", "synthesize": shape},
        "splits": {"method": "kfold", "n_splits": 5},
        "test": {"groups": {"holdout": {"from": "test"}}},
        "select": {"best": ["loss", "MeanDice"]},
        "set": {"epochs": 2},
    }
    (folder / "config").mkdir(exist_ok=True)
    text = yaml.safe_dump(json.loads(json.dumps({"archives": dict.fromkeys(_names(count), section)})))
    (folder / "config/config.yaml").write_text(text)


def _copies(one: Path, folder: Path, count: int) -> Path:
    """A project of so many archives, each the same files (hard links) with Snakemake's records of its own."""
    leave = {
        one: {"archives", "logs"},
        one / ".snakemake": {"metadata", "log"},
        one / ".snakemake/armarium": {"adopted", "settled"},
    }
    shutil.copytree(one, folder, ignore=lambda at, names: leave.get(Path(at), set()) & set(names))
    _list(folder, count)
    for name in _names(count):
        shutil.copytree(one / "archives" / FIRST, folder / "archives" / name, copy_function=os.link)
    for key, text in _records(one).items():
        for name in _names(count) if FIRST in key else [FIRST]:
            path = folder / ".snakemake/metadata" / _file_of(key.replace(FIRST, name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace(FIRST, name))
    return folder


def _records(project: Path) -> dict[str, str]:
    """Snakemake's record of each file that it made, as text."""
    top = project / ".snakemake/metadata"
    files = {p: str(p.relative_to(top)).replace("/", "").replace("@", "") for p in top.rglob("*") if p.is_file()}
    return {urlsafe_b64decode(name).decode(): path.read_text() for path, name in files.items()}


def _file_of(key: str) -> str:
    """Where Snakemake keeps a record: a folder for every 254 letters of a long name."""
    name = urlsafe_b64encode(key.encode()).decode()
    parts = [name[i : i + 254] for i in range(0, len(name), 254)]
    return "/".join([*(f"@{part}" for part in parts[:-1]), parts[-1]])


# ---- Snakemake alone


def _jobs(project: Path) -> list[Job]:
    """The jobs that made an archive, by its records."""
    found: dict[tuple, Job] = {}
    for output, text in _records(project).items():
        record = json.loads(text)
        if output.startswith("archives/"):
            job = (record["rule"], [], [i for i in record["input"] if not i.startswith(".snakemake")])
            found.setdefault((record["rule"], *record["log"]), job)[1].append(output)
    return list(found.values())


def _plain(project: Path, jobs: list[Job], count: int) -> Callable[[], Usage]:
    """A call of a plain Snakefile for the same files, in the project's folder."""
    by_rule: dict[str, list[Job]] = {}
    for job in jobs:
        by_rule.setdefault(job[0], []).append(job)
    rules, table = [], {}
    for rule, made in by_rule.items():
        text, table[rule] = _plain_rule(rule, made)
        rules.append(text)
    (project / "inputs.json").write_text(json.dumps(table))
    wanted = [f"archives/{name}/{MANIFEST}" for name in _names(count)]
    (project / "plain.smk").write_text(f"{_PLAIN}\n\nrule all:\n    input: {wanted!r}\n\n" + "\n".join(rules))
    # The rules have other parameters than the records, so Snakemake is not to compare these.
    return lambda: _snakemake(project, "--snakefile", "plain.smk", "--rerun-triggers", "mtime", "--", "all")


_PLAIN = """import json

INPUTS = json.load(open("inputs.json"))

wildcard_constraints:
    archive="archives/[^/]+"


def needed(rule):
    def of(wildcards):
        return [f.replace("{archive}", wildcards.archive) for f in INPUTS[rule][getattr(wildcards, "what", "")]]

    return of
"""


def _plain_rule(rule: str, jobs: list[Job]) -> tuple[str, dict[str, list[str]]]:
    """A rule's text with what tells its jobs apart as one wildcard, and the inputs of each job by that."""
    top = f"archives/{FIRST}/"
    outputs = [sorted(o.removeprefix(top) for o in made) for _, made, _ in jobs]
    start, end = _apart([made[0] for made in outputs])
    whats = [made[0][start : len(made[0]) - end] for made in outputs]
    head = outputs[0][0][:start] + whats[0]
    templates = [
        "{archive}/" + (o if not whats[0] else outputs[0][0][:start] + "{what}" + o.removeprefix(head))
        for o in outputs[0]
    ]
    lines = [f"rule {rule}:", f"    input: needed({rule!r})", f"    output: {templates!r}"]
    if whats[0]:
        lines.append(f"    wildcard_constraints: what={'|'.join(map(re.escape, whats))!r}")
    inputs = {what: [i.replace(top, "{archive}/") for i in job[2]] for what, job in zip(whats, jobs, strict=True)}
    return "\n".join([*lines, "    shell: 'true'", ""]), inputs


def _apart(texts: list[str]) -> tuple[int, int]:
    """How many letters texts have in common at their start and, beyond these, at their end; of one text all."""
    if len(texts) == 1:
        return len(texts[0]), 0
    start = _common(texts)
    return start, _common([text[start:][::-1] for text in texts])


def _common(texts: list[str]) -> int:
    """How many first letters all texts share."""
    return next(
        (n for n, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), min(map(len, texts))
    )
