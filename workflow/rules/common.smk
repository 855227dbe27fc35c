# Configuration, what counts as up to date, and the wildcards. No paths: those are armarium.layout's.

import atexit
import getpass
import glob
import hashlib
import json as json_module
import os
import shlex
import sys
import time
from functools import cache
from pathlib import Path

import armarium  # Snakemake puts the folder of an included Snakefile on the path
from armarium import gpus, layout, slurm
from armarium.calling import SAME_DATA
from armarium.config import archive_section, check
from armarium.configure import Globals, configure, require_splits
from armarium.boundary import check_boundary
from armarium.environment_files import LOCK, frozen_names, names_here
from armarium.errors import UserError
from armarium.faults import in_words
from armarium.formats import require_packages
from armarium.grammar import class_name
from armarium.groups import group_anew
from armarium.held import give_back, held_products, hold
from armarium.naming import CASE, CHECKPOINT, GROUP
from armarium.origin import note_origin
from armarium.recipe import processes_of
from armarium.running import Run
from armarium.standing import standing
from snakemake.common import __version__ as SNAKEMAKE_VERSION
from snakemake.io import IOFile


def told(function, *args):
    """The function's result; what is the user's to mend, or the machine's, is told and ends the run.

    Not a WorkflowError: in an input function Snakemake would show it with a traceback.
    """
    try:
        return function(*args)
    except Exception as error:
        words = in_words(error)
        if words is None:
            raise
        print(f"armarium: {words}", file=sys.stderr)
        raise SystemExit(1) from None


try:
    getpass.getuser()
except (KeyError, OSError):  # as in many a container; Snakemake and MONAI stop at it
    os.environ.setdefault("USER", str(os.getuid()))

if config:
    # Without a configuration file the command line speaks of archives that merely lie on disk.
    config = told(check, dict(config), "config", "configuration", () if workflow.configfiles else ["archives"])

ARCHIVES_DIR = config.get("archives_dir", "archives")
CACHE_DIR = config.get("cache_dir", ".cache/armarium")
DEVICE = config.get("device", "auto")
EVALUATION_PROCESSES = config.get("evaluation_processes", 1)
GPU_SHARING = ("trainings_per_gpu", "gpu_memory", "gpu_wait")
LISTED = {f"{ARCHIVES_DIR}/{name}": name for name in config.get("archives", {})}
LISTED_GLOBALS = Globals(config.get("data_root"), config.get("set", {}), CACHE_DIR)
# Of an archive that merely lies on disk only the command line speaks, not the file that lists others.
TYPED = workflow.config_settings.config
HELD_GLOBALS = Globals(TYPED.get("data_root"), TYPED.get("set", {}), CACHE_DIR, tuple(config.get("allow", [])))
STATE = Path(".snakemake/armarium")
HOME = Path(armarium.__file__).resolve().parents[1]

# By the environment and not by params: where a job runs and what it caches change no result.
ALLOWED = [*config.get("allow", []), *(path for a in config.get("archives", {}).values() for path in a["allow"])]
HOW = (
    f"ARMARIUM_DEVICE={DEVICE} ARMARIUM_CACHE={shlex.quote(CACHE_DIR)} "
    f"ARMARIUM_ALLOW={shlex.quote(json_module.dumps(ALLOWED))} "
    f"ARMARIUM_CORES={workflow.resource_settings.cores or ''} "
    f"ARMARIUM_EVALUATION_PROCESSES={EVALUATION_PROCESSES} "
    f"ARMARIUM_TRUST_TORCHSCRIPT={int(config.get('trust_torchscript', False))} "
    f"ARMARIUM_GPU_SHARING={shlex.quote(json_module.dumps([[k, config[k]] for k in GPU_SHARING if k in config]))}"
)

# Waiting OpenMP threads sleep: spinning ones made a step 30 times slower beside another busy process.
# --sdm conda brings its own interpreter and drops an inherited PYTHONPATH; without it the rules run in
# the interpreter that runs Snakemake, also from a shell with no environment activated. Nothing is imported
# from the working directory, where archives of strangers may lie.
USES_CONDA = any(m.name == "CONDA" for m in workflow.deployment_settings.deployment_method)
OWN_PYTHON = "" if USES_CONDA else f"export PATH='{Path(sys.executable).parent}':\"$PATH\"; "
shell.prefix(
    f"set -euo pipefail; {OWN_PYTHON}export PYTHONPATH='{HOME}' PYTHONSAFEPATH=1 PYTHONHASHSEED=0 OMP_WAIT_POLICY=PASSIVE {HOW}; "
)

if workflow.local_exec and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", gpus.local_limit(config.get("gpus"), DEVICE, config.get("trainings_per_gpu", 1)))


def bundled(stage, *parts):
    """Which of a cluster's jobs a light rule's jobs go into: one for a stage of an archive, or of a split.

    No job outside may stand between two inside. The stage is what a profile's group-components name. On this machine
    itself there is nothing to bundle.
    """
    if not workflow.is_main_process or workflow.local_exec:
        return None
    group_anew()

    def group(wildcards):
        # A path's separators may be in no job's name.
        where = hashlib.sha256(wildcards.archive.encode()).hexdigest()[:8]
        name = "-".join([stage, os.path.basename(wildcards.archive), where, *(wildcards[part] for part in parts)])
        workflow.parent_groupids[name] = stage
        return name

    return group


PREPARED = bundled("prepared")
DESCRIBED = bundled("described")
CUT = bundled("cut", "split")
PUBLISHED = bundled("published")
FINISHED = bundled("finished")

EVALUATED_BY = f"({layout.CKPT}|{layout.OF_ENSEMBLE})?"


def processes_for(archive):
    """How many processes train a split of an archive together."""
    return processes_of(configured(archive).settings)


PROCESSES = {
    "train_split": processes_for,
    "test_split": lambda archive: EVALUATION_PROCESSES,
    "evaluate_published": lambda archive: EVALUATION_PROCESSES,
}
"""How many processes a job has, by its rule: a GPU each where there are GPUs."""


def refuse_fewer_gpus(jobs):
    """Tell of a job that wants more GPUs than may be used at once: Snakemake would lend it fewer without a word."""
    lent = workflow.global_resources.get("gpu")
    most = lent.value if lent is not None else None
    if most and most != gpus.UNLIMITED and "trainings_per_gpu" in config:
        most = min(most, gpus.count() or most)  # jobs may share a GPU, the processes of one do not
    for job in jobs if most else ():
        wanted = PROCESSES.get(job.rule.name, lambda archive: 1)(job.wildcards_dict.get("archive"))
        if wanted > most:
            raise UserError(
                f"{job.rule.name}: {wanted} processes want a GPU each, and {most} may be used at once here; lower processes "
                "(of the recipe; other weights) or evaluation_processes, or set device to cpu"
            )


wildcard_constraints:
    # A folder, but none inside an archive: split-0/summary.log is not the summary of an archive "split-0".
    archive=r"(?:(?!/training/split-[0-9])[^\n])+",
    split=r"0|[1-9][0-9]*",
    side="|".join(layout.SIDES),
    group=GROUP.pattern,
    checkpoint=CHECKPOINT.pattern,
    kind=r"best_models/best-[A-Za-z0-9]+|checkpoints/epoch-[1-9][0-9]*|final",
    case=CASE.pattern,
    optimizer=r"[A-Za-z0-9_]+",


def only_looks():
    """Whether this call runs no job: a dry run, a summary, a graph."""
    return workflow.executor_plugin is None or bool(workflow.dryrun)


@cache
def this_run():
    """This Snakemake beside others; from here to its first job it alone plans."""
    run = Run()
    atexit.register(run.end)
    if run.is_alone():
        LEFT_TRAINING.update(told(slurm.take_over))
    return run


LEFT_TRAINING = {}
"""Slurm's numbers of trainings that a Snakemake which is gone left running, by their comments."""


def after_what_trains(wildcards):
    """Slurm's option for a training that is to wait, outside the queue's devices, for one of the same split."""
    return told(slurm.dependency, LEFT_TRAINING.get(slurm.training_comment(wildcards.archive, wildcards.split)))


def claim_files():
    """Refuse, before any job, what another Snakemake is at work on."""
    jobs = list(workflow.dag.needrun_jobs())
    refuse_fewer_gpus(jobs)
    this_run().start((f for job in jobs for f in job.output), (f for job in jobs for f in job.input))
    note_nothing_to_do()
    hold_last_versions(jobs)
    if workflow.executor_plugin.name == "slurm":
        slurm.submits_from(workflow.workdir_init)
        atexit.register(in_folder, os.getcwd(), slurm.submits_no_more)
        if workflow.executor_settings.status_command == "squeue":
            slurm.keep_to_squeue(sys.modules["snakemake_executor_plugin_slurm"])


def hold_last_versions(jobs):
    """Keep what Snakemake deletes before its jobs run, until this Snakemake ends."""
    for job in jobs:
        archive = job.wildcards_dict.get("archive")
        for product in map(str, job.output if archive else []):
            if hold(archive, product):
                atexit.register(in_folder, os.getcwd(), settle, archive, product)


def in_folder(folder, function, *args):
    """As now, also when Snakemake has left the folder of --directory."""
    os.chdir(folder)
    function(*args)


def settle_what_is_left(archive):
    """Give back what a Snakemake that was killed had set aside."""
    if not this_run().others_at(archive):
        for product in held_products(archive):
            settle(archive, product)


def settle(archive, product):
    """Give a product's last version back if there is no next one."""
    try:
        if give_back(archive, product):
            # Snakemake noted the failed job's inputs as those that this version was made from.
            workflow.persistence.cleanup_metadata(IOFile(product))
    except OSError as error:
        print(f"armarium: {in_words(error)}", file=sys.stderr)


@cache
def configured(archive):
    """The archive's configuration, brought up to date; only archives in the plan are looked at."""
    if workflow.is_main_process:
        told(check_boundary, archive)
    section = told(archive_section, config, LISTED[archive]) if archive in LISTED else None
    given = (archive, section, LISTED_GLOBALS if section else HELD_GLOBALS)
    if workflow.is_main_process and os.environ.get(SAME_DATA):
        refuse_other_data(archive, told(configure, *given, True))
    if only_looks() or not workflow.is_main_process:
        if workflow.is_main_process:
            told(adopt_once, archive)
        held = told(configure, *given, only_looks())
        tell_warnings(held)
        return held
    told(refuse_edit_while_at_work, *given)
    told(settle_what_is_left, archive)
    told(adopt_once, archive)
    held = told(configure, *given)
    told(note_clone, archive, held)
    tell_warnings(held)
    note_as_known(archive)
    return held


def tell_warnings(held):
    """Say what of a recipe was translated or has no effect, when its configuration is new."""
    if workflow.is_main_process and not held.changed.isdisjoint({"train", "execution"}):
        for line in held.warnings:
            print(f"armarium: warning: {held.archive}: {line}", file=sys.stderr)


def refuse_edit_while_at_work(archive, *given):
    """The jobs of another Snakemake read the configuration that this call would change."""
    others = this_run().others_at(archive)
    if others and (new := configure(archive, *given, True).rewritten):
        raise UserError(
            f"{', '.join(new)}: this call would change the configuration while another Snakemake is at work on this archive "
            f"({others[0]}); run this again when that one has ended"
        )


def adopt_once(archive):
    """Order the times of an archive that this working directory sees for the first time, or that were changed."""
    from armarium.adoption import adopt, is_known, mark_adopted, needs_adoption
    from armarium.steps import hash_index

    if Path(layout.manifest(archive)).is_file() and needs_adoption(archive, str(STATE)):
        changed = adopt(archive, hash_index(CACHE_DIR))
        if changed and not is_known(archive, str(STATE)):
            names = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
            print(f"armarium: {archive}: not as its manifest says: {names}", file=sys.stderr)
        mark_adopted(archive, str(STATE))


def note_clone(archive, held):
    """Keep in an adopted archive what it was, where its configuration makes it another one."""
    from armarium.adoption import adopted_as

    note_origin(archive, adopted_as(archive, str(STATE)), held.effective)


def note_as_known(archive):
    """An archive begun here has times that Snakemake itself gave; it is not adopted."""
    from armarium.adoption import mark_begun

    mark_begun(archive, str(STATE))


def stamp(*what):
    """A file newer than another: see :func:`stamped`."""
    return told(stamped, *what)


def stamped(archive, what, after):
    """A file newer than ``after``: an input that makes Snakemake run a job whose product is out of date."""
    # In a folder of its own: of a folder that it has looked into, Snakemake sees no newer files.
    path = STATE / "stamps" / hashlib.sha256(os.path.abspath(archive).encode()).hexdigest()[:16] / what / "stamp"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{time.time_ns()}\n")  # never the same: Snakemake compares with what the last job was given
    newer = max(time.time(), os.path.getmtime(after) + 1) if os.path.exists(after) else time.time()
    os.utime(path, (newer, newer))
    return str(path)


def stand_in(archive, what):
    """A file older than all, for one that was lost and comes back as it was."""
    path = stamp(archive, what, "")
    os.utime(path, (0, 0))
    return path


def source(part):
    """Input function: a part of the effective configuration (where nothing may be written, what it would become)."""

    def of(wildcards):
        archive = wildcards.archive
        path, held = layout.effective(archive, part), configured(archive)
        if only_looks() and part in held.changed:
            return stamp(archive, f"{part}.json", path)
        if only_looks() and not os.path.exists(path):
            return stand_in(archive, f"{part}.json")
        return path

    return of


def refuse_unknown(wildcards):
    """Tell of a split, group, case and so on that an archive does not have, before anything is made for it."""
    archive, held = wildcards.archive, configured(wildcards.archive)
    checkpoints = held.exported
    has = {
        "split": list(map(str, held.split_numbers)),
        "group": held.groups,
        "checkpoint": checkpoints,
        "kind": [layout.checkpoint_kind(c) for c in checkpoints],
        "optimizer": [class_name(held.settings["optimizer"])],
    }
    if "case" in wildcards.keys() and (cases := scored_cases(archive)):
        has["case"] = cases
    for what, known in has.items():
        if what in wildcards.keys() and getattr(wildcards, what) not in known:
            name = f"{what.replace('kind', 'checkpoint')} '{getattr(wildcards, what)}'"
            more = f" and {len(known) - 20} more" if len(known) > 20 else ""
            raise UserError(f"{archive}: no {name}; it has {', '.join(known[:20]) or 'none'}{more}")
    if {"group", "split"} <= set(wildcards.keys()):
        refuse_test_of_another(archive, held, wildcards.group, int(wildcards.split))


def refuse_test_of_another(archive, held, group, split):
    """Tell of a split that is not tested on a group, for that holds the test cases of another one alone."""
    if split not in held.splits_of(group):
        raise UserError(
            f"{archive}: test group '{group}' is of split {held.own_groups[group]} alone, whose test cases other splits may "
            f"have trained on; split {split} is tested on {', '.join(held.groups_of(split)) or 'none'}"
        )


def scored_cases(archive):
    """The cases that the published model is scored on; none where the splits are to be drawn first."""
    path = layout.splits_json(archive)
    return cases_scored_by(archive, os.stat(path).st_mtime_ns) if os.path.isfile(path) else []


@cache
def cases_scored_by(archive, time_of_splits):
    from armarium.steps import published_cases

    held = configured(archive)
    return told(published_cases, archive, held.spec["publish"]) if standing(held, "splits").current else []


def unless_current(kind, others, which=()):
    """Input function: what a costly product is made from, or nothing while it is current.

    Current by content: the product holds the fingerprint of the configuration that decides it, and of what a
    training gave it holds which weights it is of. So a lost and remade intermediate, or any time on any file,
    never makes it again; an edit, or another run, always does. (Snakemake's ancient() does not give that: it
    counts only while the file exists, and where a job behind it runs, Snakemake never looks at the job's other
    inputs, so that an edit is missed.)

    kind, which: its kind in fingerprints.DEPENDS_ON, and the wildcards that tell products of a kind apart
    others: function of the wildcards: what it is made from
    """

    def of(wildcards):
        archive, names = wildcards.archive, [getattr(wildcards, w) for w in which]
        told(refuse_unknown, wildcards)
        needed, found = others(wildcards), told(standing, configured(archive), kind, *names)
        if not found.exists:
            return needed
        if found.lost_run:
            # Trained again it is the same run. Otherwise made anew only if something else asks for the run.
            return [] if found.lost_run in only_lost(archive) else needed
        return [] if found.current else [*needed, stamp(archive, " ".join([kind, *names]), found.path)]

    return of


def unless_kept(products, *made_from, cut_from=None, beside=()):
    """Input function: what a light product is made from, or nothing while it is as good as what would be made.

    That is so in an archive that only lost files: those are made again, to the same bytes, but not what is there.
    (Snakemake makes again whatever depends on a file that it makes.) A run that is trained again is another file,
    since it holds its times: what is cut from it is cut again. And it is so while the zips that a product is cut from
    only get something more.

    products: templates of the paths that a job makes
    made_from: templates of paths, or input functions
    cut_from: function of the wildcards: each zip's kind in fingerprints.DEPENDS_ON, what tells it apart, and the checkpoint
        whose part is cut out, if it is of one
    beside: parts of the configuration that are made into it too: where one changes it is cut again, when the zips are there
    """

    def of(wildcards):
        told(refuse_unknown, wildcards)
        needed, made = list(paths(made_from, wildcards)), list(paths(products, wildcards))
        if cut_from and holds_still(wildcards.archive, made, cut_from(wildcards), beside):
            return []
        gone = only_lost(wildcards.archive)
        trained = {layout.run_zip(wildcards.archive, k) for k in splits_of(wildcards.archive)} & gone
        return [] if gone and all(map(os.path.exists, made)) and trained.isdisjoint(needed) else needed

    return of


def holds_still(archive, made, sources, beside):
    """Whether what was cut from zips stays while these only get or lose the parts of other checkpoints."""
    found = [(standing_at_first(archive, kind, *names), checkpoint) for kind, names, checkpoint in sources]
    if (
        all(zipped.current for zipped, _ in found)
        or not all(checkpoint in zipped.kept if checkpoint else zipped.kept for zipped, checkpoint in found)
        or not configured(archive).changed.isdisjoint(beside)
    ):
        return False
    return in_this_order([zipped.path for zipped, _ in found] + [layout.effective(archive, b) for b in beside], made)


@cache
def time_at_first(path):
    """A file's modification time before any job; None where there is no file."""
    return os.path.getmtime(path) if os.path.exists(path) else None


def in_this_order(sources, made):
    """Whether all files were there before any job, and none of ``made`` was older than a source."""
    before, after = ([time_at_first(path) for path in files] for files in (sources, made))
    return None not in before + after and min(after) >= max(before)


@cache
def standing_at_first(archive, kind, *names):
    """How a product stands before any job: asked again, after some, the answer is the same."""
    return told(standing, configured(archive), kind, *names)


def paths(given, wildcards):
    """The paths of a template, of an input function, and of lists of both."""
    if isinstance(given, str):
        yield given.format(**dict(wildcards.items()))
    elif callable(given):
        found = given(wildcards)
        yield from [found] if isinstance(found, str) else found
    else:
        for each in given:
            yield from paths(each, wildcards)


@cache
def only_lost(archive):
    """The files that an archive lost, where nothing else has to be made again for them; none where anything is forced."""
    from armarium.losses import lost_products
    from armarium.steps import hash_index, workflow_text

    asked = workflow.dag_settings
    forced = asked.forceall or asked.forcerun or asked.forcetargets
    if not workflow.is_main_process or forced or configured(archive).rewritten or interrupted():
        return set()
    return {f"{archive}/{path}" for path in lost_products(archive, workflow_text(), hash_index(CACHE_DIR))}


def interrupted():
    """Whether an earlier Snakemake was killed while jobs were at work, which it will do again."""
    marks = Path(".snakemake/incomplete")
    return marks.is_dir() and any(marks.iterdir())


def splits_of(archive):
    return configured(archive).split_numbers


def checkpoint_folders(archive, split):
    return [layout.checkpoint_dir(archive, split, c) for c in configured(archive).checkpoints]
