# Configuration, what counts as up to date, and the wildcards. No paths: those are armarium.layout's.

import hashlib
import json as json_module
import os
import shlex
import sys
import time
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import armarium  # Snakemake puts the folder of an included Snakefile on the path
from armarium import gpus, layout
from armarium.config import archive_section, check
from armarium.configure import Globals, configure
from armarium.errors import UserError
from armarium.run import run_identity, run_info


def told(function, *args):
    """The function's result; a user's mistake is told and ends the run.

    Not a WorkflowError: in an input function Snakemake would show it with a traceback.
    """
    try:
        return function(*args)
    except UserError as error:
        print(f"armarium: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if config:
    config = told(check, dict(config), "config", "configuration")

ARCHIVES_DIR = config.get("archives_dir", "archives")
CACHE_DIR = config.get("cache_dir", ".cache/armarium")
DEVICE = config.get("device", "auto")
LISTED = {f"{ARCHIVES_DIR}/{name}": name for name in config.get("archives", {})}
LISTED_GLOBALS = Globals(config.get("data_root"), config.get("set", {}), CACHE_DIR)
# Of an archive that merely lies on disk only the command line speaks, not the file that lists others.
TYPED = workflow.config_settings.config
HELD_GLOBALS = Globals(TYPED.get("data_root"), TYPED.get("set", {}), CACHE_DIR)
STATE = Path(".snakemake/armarium")
HOME = Path(armarium.__file__).resolve().parents[1]

# By the environment and not by params: where a job runs and what it caches change no result.
HOW = f"ARMARIUM_DEVICE={DEVICE} ARMARIUM_CACHE={shlex.quote(CACHE_DIR)}"

# Waiting OpenMP threads sleep: spinning ones made a step 30 times slower beside another busy process.
# --sdm conda brings its own interpreter and drops an inherited PYTHONPATH; without it the rules run in
# the interpreter that runs Snakemake, also from a shell with no environment activated.
USES_CONDA = any(m.name == "CONDA" for m in workflow.deployment_settings.deployment_method)
OWN_PYTHON = "" if USES_CONDA else f"export PATH='{Path(sys.executable).parent}':\"$PATH\"; "
shell.prefix(
    f"set -euo pipefail; {OWN_PYTHON}export PYTHONPATH='{HOME}' PYTHONHASHSEED=0 OMP_WAIT_POLICY=PASSIVE {HOW}; "
)

if workflow.local_exec and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", gpus.local_limit(config.get("gpus"), DEVICE))


wildcard_constraints:
    # A folder, but none inside an archive: split-0/summary.log is not the summary of an archive "split-0".
    archive=r"(?:(?!/training/split-[0-9])[^\n])+",
    split=r"0|[1-9][0-9]*",
    side="|".join(layout.SIDES),
    group=r"[A-Za-z0-9_]+",
    checkpoint=r"best-[A-Za-z0-9]+|epoch-[1-9][0-9]*|final",
    kind=r"best_models/best-[A-Za-z0-9]+|checkpoints/epoch-[1-9][0-9]*|final",
    case=r"[^/]+",


@cache
def configured(archive):
    """The archive's configuration, brought up to date; only archives in the plan are looked at."""
    if workflow.is_main_process:
        told(adopt_once, archive)
    section = told(archive_section, config, LISTED[archive]) if archive in LISTED else None
    held = told(configure, archive, section, LISTED_GLOBALS if section else HELD_GLOBALS, bool(workflow.dryrun))
    if workflow.is_main_process and not workflow.dryrun:
        note_as_known(archive)
    return held


def adopt_once(archive):
    """Order the times of an archive that this working directory sees for the first time."""
    from armarium.adoption import adopt, mark_adopted, needs_adoption
    from armarium.steps import hash_index

    if Path(layout.manifest(archive)).is_file() and needs_adoption(archive, str(STATE)):
        adopt(archive, hash_index(CACHE_DIR))
        mark_adopted(archive, str(STATE))


def note_as_known(archive):
    """An archive begun here has times that Snakemake itself gave; it is never adopted."""
    from armarium.adoption import mark_adopted, needs_adoption

    if needs_adoption(archive, str(STATE)):
        mark_adopted(archive, str(STATE))


def stamp(archive, what, after):
    """A file newer than ``after``: an input that makes Snakemake run a job whose product is out of date."""
    path = STATE / "stale" / hashlib.sha256(os.path.abspath(archive).encode()).hexdigest()[:16] / what
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    newer = max(time.time(), os.path.getmtime(after) + 1) if os.path.exists(after) else time.time()
    os.utime(path, (newer, newer))
    return str(path)


def source(part):
    """Input function: a part of the effective configuration (in a dry run, what it would become)."""

    def of(wildcards):
        archive = wildcards.archive
        path = layout.effective(archive, part)
        if part in configured(archive).changed and workflow.dryrun:
            return stamp(archive, f"{part}.json", path)
        return path

    return of


def unless_current(product, kind, others, which=(), run_of=None):
    """Input function: what a costly product is made from, or nothing while it is current.

    Current by content: the product holds the fingerprint of the configuration that decides it, and of what a
    training gave it holds that training's identity. So a lost and remade intermediate, or any time on any file,
    never makes it again; an edit, or another run, always does. (Snakemake's ancient() does not give that: it
    counts only while the file exists, and where a job behind it runs, Snakemake never looks at the job's other
    inputs, so that an edit is missed.)

    product, others: functions of the wildcards: its path, and what it is made from
    kind, which: its kind in configure.DEPENDS_ON, and the wildcards that tell products of a kind apart
    run_of: function of the wildcards: the split whose run.zip it is made from
    """

    def of(wildcards):
        archive = wildcards.archive
        path, needed = product(wildcards), others(wildcards)
        names = [getattr(wildcards, w) for w in which]
        held = held_by(path)
        if held is None:
            return needed
        if held["fingerprint"] == configured(archive).fingerprint(kind, *names):
            if run_of is None:
                return []
            run = run_info(layout.run_zip(archive, run_of(wildcards)))
            if run is None:
                return needed  # remade only if something else asks for the run
            wanted = configured(archive).fingerprint("training", str(run_of(wildcards)))
            if run["fingerprint"] == wanted and held.get("run") == run_identity(run):
                return []
        return [*needed, stamp(archive, " ".join([kind, *names]), path)]

    return of


def held_by(path):
    """What a product says of how it came about; None where there is no whole product."""
    if path.endswith(".zip"):
        return run_info(path)
    try:
        held = json_module.loads(Path(path).read_text())
        return held if "fingerprint" in held else None
    except (OSError, ValueError):
        return None


def splits_of(archive):
    return configured(archive).split_numbers


def checkpoint_folders(archive, split):
    return [layout.checkpoint_dir(archive, split, c) for c in configured(archive).checkpoints]
