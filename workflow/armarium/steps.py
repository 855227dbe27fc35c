"""The steps of the workflow: each reads and writes canonical files of one archive and leaves a sidecar.

Light steps import nothing heavy; those that compute import torch inside.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from functools import partial
from pathlib import Path

from . import layout
from .changes import content_of, list_digests
from .configure import (
    data_root_of,
    evaluation_settings_of,
    published_checkpoint,
    read_effective,
    training_settings_of,
)
from .dataset import REGRESSION, SEGMENTATION, read_facts
from .errors import UserError
from .files import json_text, memory_bytes, read_bytes, remove_abandoned, write_bytes, write_json
from .fingerprints import fingerprint_on_disk
from .hashing import HASHES, HashIndex
from .home import WORKFLOW
from .loading import allowed_from_outside, sparingly
from .logs import configure_logging
from .multi_label import is_multi_label
from .parent import parent_inputs, refuse_seen
from .parts import PARITY, SCRIPT, Parts
from .provenance import Step, is_recorded, recorded_of, step
from .recipe import processes_of
from .run import INFO, Workspace, finished_run, lacking, only_trainer, weights_of
from .split_files import cases_tested_by, read_splits, tested_on
from .standing import cases_sha256
from .trust import is_exported_here, note_exported
from .zips import copy_member, write_zip, zip_member

LOG = logging.getLogger(__name__)


def recipe_of(archive: str) -> dict:
    """The effective training configuration, whose components may be built.

    Raises
    ------
    UserError
        If it names code that the user's call does not allow, whatever the archive's own files say.
    """
    settings, allowed = training_settings_of(archive), allowed_from_outside()
    if foreign := [path for path in settings["allow"] if path not in allowed]:
        raise UserError(
            f"{layout.effective(archive, 'train')}: allow is {foreign}, which the call that plans must allow; ask Snakemake for what you want"
        )
    return settings


def hash_index(cache_dir: str) -> HashIndex:
    return HashIndex(Path(cache_dir, HASHES))


# ---- data


def check_data(archive: str, workers: int, cache_dir: str) -> None:
    """Check every case of the dataset and the test lists; write their table and what the list says."""
    from .checks import check_dataset, write_cases_table
    from .data_record import record_of
    from .dataset import read_dataset, source_of, with_test_lists

    root = data_root_of(archive)
    spec = {**read_effective(archive, "data")["dataset"], **read_effective(archive, "check")}
    outputs = [layout.cases_tsv(archive), layout.dataset_json(archive), layout.data_record(archive)]
    sources = [layout.effective(archive, p) for p in ("data", "check", "test", "files")]
    with step(archive, "check_data", "check_data", sources, outputs) as running:
        started = time.time_ns()
        dataset = with_test_lists(read_dataset(spec, root), {"groups": _groups(archive)}, root)
        rows = check_dataset(dataset, spec, root, workers)
        write_cases_table(layout.cases_tsv(archive), rows)
        facts = {**dataset.header(), "list": source_of(spec), "cases": len(rows), "digests": list_digests(dataset)}
        write_json(layout.dataset_json(archive), facts)
        running.data_inputs = content_of(dataset.cases, {r["case"]: r for r in rows})
        write_json(layout.data_record(archive), record_of(dataset, running.data_inputs))
        hash_index(cache_dir).note({str(Path(root, f)): h for f, h in running.data_inputs.items()}, started)


def _groups(archive: str) -> dict:
    return {g: t for g, t in read_effective(archive, "test")["groups"].items() if "given" not in t}


def split_data(archive: str) -> None:
    """Divide the cases into splits and test groups."""
    from .checks import read_cases_table
    from .dataset import read_dataset
    from .splits import make_splits

    spec, root = read_effective(archive, "data")["dataset"], data_root_of(archive)
    part = read_effective(archive, "split")
    inputs = [
        layout.cases_tsv(archive),
        *(layout.effective(archive, p) for p in ("data", "split", "test", "files")),
    ]
    with step(archive, "split_data", "split_data", inputs, [layout.splits_json(archive)], part["splits"]):
        rows = read_cases_table(layout.cases_tsv(archive))
        splits = make_splits(
            read_dataset(spec, root), rows, part["splits"], {"groups": _groups(archive)}, part["given"], root
        )
        write_json(layout.splits_json(archive), {"fingerprint": fingerprint_on_disk(archive, "splits"), **splits})


def write_datalist(archive: str, split: str) -> None:
    """The MMAR datalist of a split."""
    from .splits import datalist_of_split

    inputs = [layout.splits_json(archive), layout.dataset_json(archive)]
    with step(archive, f"write_datalist_{split}", "write_datalist", inputs, [layout.datalist(archive, split)]):
        facts = {
            k: v for k, v in read_facts(layout.dataset_json(archive)).items() if k not in ("list", "cases", "digests")
        }
        write_json(
            layout.datalist(archive, split),
            datalist_of_split(read_splits(layout.splits_json(archive)), int(split), facts),
        )


def cases_of(archive: str, names: list[str]) -> list[dict]:
    """Cases by name as training and evaluation take them: ids, files, label and content hashes."""
    from .checks import read_cases_table
    from .dataset import stays_inside
    from .multi_label import label_fits

    known, rows = read_splits(layout.splits_json(archive))["cases"], read_cases_table(layout.cases_tsv(archive))
    spec = read_effective(archive, "data")["dataset"]
    fits = partial(label_fits, of_files=spec["task"] == SEGMENTATION, several=is_multi_label(spec))
    if strange := [
        n for n in names if n not in rows or not stays_inside(known[n], rows[n]) or not fits(known[n]["label"])
    ]:
        raise UserError(
            f"{layout.splits_json(archive)}: case {strange[0]!r} is not in {layout.cases_tsv(archive)}, or has files that no "
            "dataset list may name; delete both to have the data checked and split again"
        )
    return [{"case": n, **known[n], "sha256": [rows[n]["image_sha256"], rows[n]["label_sha256"]]} for n in names]


def class_names(archive: str) -> dict[int, str]:
    return {int(k): v for k, v in read_facts(layout.dataset_json(archive))["labels"].items()}


# ---- training


def sides_of_split(archive: str, split: str) -> dict[str, list[str]]:
    """The names of the cases of each side."""
    splits = read_splits(layout.splits_json(archive))["splits"]
    if int(split) >= len(splits):
        raise UserError(
            f"{layout.splits_json(archive)}: found {len(splits)} splits, wanted split {split}; delete this file to have them drawn again"
        )
    return splits[int(split)]


def train(archive: str, split: str, device: str, cache_dir: str) -> None:
    """Train a split into its run.zip; take what an earlier or orphaned trainer already finished."""
    configure_logging(archive)
    wanted = fingerprint_on_disk(archive, "training", split)
    workspace = Workspace(archive, split, wanted)
    listed = training_settings_of(archive)["keep_epochs"]
    inputs = [
        *(layout.effective(archive, p) for p in ("data", "split", "train", "select", "files")),
        layout.splits_json(archive),
        layout.cases_tsv(archive),
        *parent_inputs(archive, split),
    ]
    output, name = layout.run_zip(archive, split), f"train_split-{split}"
    with only_trainer(archive, split):
        remove_abandoned(workspace.folder)
        if workspace.take_finished(listed):
            LOG.info(f"split {split}: already trained; taking the finished run")
            if not is_recorded(archive, name, output):  # its trainer was killed between the run and the record
                with step(archive, name, "train_split", inputs, [output], {"taken": "finished by a killed trainer"}):
                    pass
            return
        with step(archive, name, "train_split", inputs, [output]) as running:
            if not workspace.run_that_lacks(listed):
                _train(archive, split, device, cache_dir, workspace, running)
            if run := workspace.run_that_lacks(listed):
                running.extends = [] if run == workspace.done else recorded_of(archive, name, output, run)
                running.parameters["epochs"] = lacking(finished_run(run), listed)
                _add_epochs(archive, split, device, cache_dir, workspace, running, run)


def _train(archive: str, split: str, device: str, cache_dir: str, workspace: Workspace, running: Step) -> None:
    """Train from the first epoch to the last, or go on with that."""
    training = _training_of(archive, split, cache_dir)
    asked = {"archive": archive, "split": split, "fingerprint": workspace.fingerprint}
    given = {"workspace": asked, "training": training}
    _compute("train", training["settings"], device, cache_dir, given, running, _environment_of_training(archive, split))


def _add_epochs(
    archive: str, split: str, device: str, cache_dir: str, workspace: Workspace, running: Step, run: Path
) -> None:
    """Train up to the listed epochs that a finished run does not hold, and add their weights to it."""
    training = _training_of(archive, split, cache_dir)
    missing = lacking(finished_run(run), training["settings"]["keep_epochs"])
    wanted = f"{workspace.fingerprint} {missing}"
    folder = layout.added_epochs_dir(archive, split)
    asked = {"archive": archive, "split": split, "fingerprint": wanted, "folder": folder}
    LOG.info(f"split {split}: its run is kept; training up to epoch {missing[-1]} for {missing}")
    training["settings"]["keep_epochs"] = missing
    given = {"workspace": asked, "training": training, "run": str(run)}
    _compute("add_epochs", training["settings"], device, cache_dir, given, running)
    workspace.extend(run, Workspace(**asked))


def _compute(job: str, settings: dict, device: str, cache_dir: str, given: dict, running: Step, files=None) -> None:
    """A training's job, in as many processes as the recipe says, and what is to be recorded of it."""
    from .torchrun import compute

    processes = processes_of(settings)
    says, _ = compute(job, processes, device, cache_dir, given, files)
    running.packages |= says.pop("packages", {})
    running.resources |= says | ({"processes": processes} if processes > 1 else {})


def _training_of(archive: str, split: str, cache_dir: str) -> dict:
    """What a training takes, but for what it is computed on."""
    settings, sides = recipe_of(archive), sides_of_split(archive, split)
    if settings.get("start"):
        refuse_seen(archive, split, _scored_images(archive, split, sides))
    return {
        "settings": settings,
        "split": split,
        **{side: cases_of(archive, sides[side]) for side in layout.SIDES},
        "class_names": class_names(archive),
        "data_root": data_root_of(archive),
        "cache_dir": cache_dir,
    }


def _scored_images(archive: str, split: str, sides: dict[str, list[str]]) -> dict[str, str]:
    """SHA-256 of the images of each case that a split is validated or tested on."""
    names = [*sides[layout.VALIDATION], *cases_tested_by(read_splits(layout.splits_json(archive)), int(split))]
    return {case["case"]: case["sha256"][0] for case in cases_of(archive, names)}


def _environment_of_training(archive: str, split: str) -> dict[str, bytes]:
    """Members of run.zip on the environment; that of the published split is what env/ describes, also on another machine."""
    from .environment import MEMBERS
    from .environment_files import differing_names, environment_of_training

    environment = environment_of_training(archive)
    if int(split) == read_effective(archive, "publish")["publish"]:
        _record_environment_of_training(archive, environment, differing_names(archive, environment), "train_split")
    return {f"{MEMBERS}{name}": data for name, data in environment.items()}


def _record_environment_of_training(archive: str, environment: dict[str, bytes], names: list[str], rule: str) -> None:
    """Write those ``names`` of a training's environment into env/."""
    outputs = [layout.environment_file(archive, name) for name in names]
    if names:
        with step(archive, "record_environment_of_training", rule, [], outputs):
            for name, path in zip(names, outputs, strict=True):
                write_bytes(path, environment[name])


def select(archive: str, split: str, checkpoint: str, weights: bool, cache_dir: str) -> None:
    """A checkpoint's weights, or its validation tables, out of run.zip."""
    from .run import select_checkpoint, select_tables

    folder = layout.checkpoint_dir(archive, split, checkpoint)
    what, run_zip = ("weights" if weights else "tables"), layout.run_zip(archive, split)
    outputs = [layout.checkpoint_pt(folder)] if weights else layout.checkpoint_tables(folder)
    rule = "select_checkpoint" if weights else "select_tables"
    name, index = f"select_{what}_split-{split}_{checkpoint}", hash_index(cache_dir)
    with step(archive, name, rule, [run_zip], outputs, hash_index=index):
        (select_checkpoint if weights else select_tables)(archive, split, checkpoint)


def copy_logs(archive: str, split: str, targets: list[str], cache_dir: str) -> None:
    """Logs and histories of a split out of run.zip."""
    from .run import copy_members

    alone = "copy_starting_weights" if targets == [layout.starting_weights(archive, split)] else "copy_learning_rates"
    rule = alone if len(targets) == 1 else "copy_logs"
    inputs, index = [layout.run_zip(archive, split)], hash_index(cache_dir)
    with step(archive, f"{rule}_split-{split}", rule, inputs, targets, hash_index=index):
        copy_members(archive, split, targets)


def check_recipe(archive: str) -> None:
    """Build every component of the recipe before anything costly; write what the network is."""
    inputs = [layout.effective(archive, "train"), layout.dataset_json(archive)]
    outputs = [layout.architecture_log(archive), layout.nn_summary(archive)]
    with step(archive, "check_recipe", "check_recipe", inputs, outputs):
        from .bundle_metadata import input_shape

        with sparingly():
            from .inspection import check_components, check_multi_label, check_regression, layer_table
            from .starting import check_start

        settings = recipe_of(archive)
        network = check_components(settings, class_names(archive))
        if (evaluated := evaluation_settings_of(archive, settings)) != settings:
            check_components(evaluated, class_names(archive))
        if settings["task"] == REGRESSION:
            check_regression(settings, network, input_shape(archive))
        if is_multi_label(settings):
            check_multi_label(settings)
        if settings.get("start"):
            check_start(archive, settings, network, input_shape(archive)[1])
        write_bytes(outputs[0], f"{network!r}\n".encode())
        write_bytes(outputs[1], layer_table(network).encode())


# ---- evaluation


def test_split(archive: str, group: str, split: str, device: str, cache_dir: str, processes: int = 1) -> None:
    """Score all selected checkpoints of a split on a test group, together; ``processes`` share the cases."""
    run_zip, output = layout.run_zip(archive, split), layout.evaluation_zip(archive, group, split)
    inputs = [
        run_zip,
        layout.splits_json(archive),
        layout.cases_tsv(archive),
        *(layout.effective(archive, p) for p in ("train", "test", "select")),
    ]
    name, index = f"test_{group}_split-{split}", hash_index(cache_dir)
    with step(archive, name, "test_split", inputs, [output], hash_index=index) as running:
        cases = cases_of(archive, _group(archive, group, int(split)))
        checkpoints = read_effective(archive, "select")["checkpoints"]
        decided = {
            "fingerprint": fingerprint_on_disk(archive, "evaluation", group, split),
            "cases": cases_sha256(cases, named=False),
        }
        parts = Parts(decided, finished_run(run_zip, "checkpoints"), run_zip, checkpoints)
        running.extends = parts.take_from_last(archive, name, output, [f"/{table}" for table in layout.METRIC_TABLES])
        running.parameters |= parts.told(f"test group {group}, split {split}")
        if parts.missing:
            given = {"run_zip": run_zip, "checkpoints": parts.missing, **_evaluation_of(archive, cases, cache_dir)}
            made = _evaluate("score_checkpoints", processes, device, cache_dir, given, running)
            parts.add({c: {f"/{t}": made[f"{c}/{t}"] for t in layout.METRIC_TABLES} for c in parts.missing})
        write_zip(output, {INFO: json_text(parts.says), **parts.members()})


def _evaluation_of(archive: str, cases: list[dict], cache_dir: str) -> dict:
    """What scoring cases takes, but for the model and what it is computed on."""
    return {
        "settings": recipe_of(archive),
        "cases": cases,
        "class_names": class_names(archive),
        "data_root": data_root_of(archive),
        "cache_dir": cache_dir,
    }


def published_evaluation_of(archive: str, cases: list[dict], cache_dir: str) -> dict:
    """The same of a model whose results lie in ``eval/``."""
    given = _evaluation_of(archive, cases, cache_dir)
    return {
        **given,
        "settings": evaluation_settings_of(archive, given["settings"]),
        "keep_predictions": read_effective(archive, "predict")["predictions"],
    }


def _evaluate(
    job: str, processes: int, device: str, cache_dir: str, given: dict, running: Step, files=None
) -> dict[str, str | bytes]:
    """What an evaluation's job made; how many processes did it decides nothing."""
    from .torchrun import compute

    says, made = compute(job, processes, device, cache_dir, {"evaluation": given}, files)
    running.packages |= says.pop("packages", {})
    running.resources |= {"processes": processes} if processes > 1 else {}
    return made


def _group(archive: str, group: str, split: int) -> list[str]:
    """The names of a test group's cases, which the split may be tested on."""
    splits = read_splits(layout.splits_json(archive))
    groups = tested_on(split, splits["groups"], splits.get("own_groups", {}))
    if group not in groups:
        raise UserError(
            f"{layout.splits_json(archive)}: no test group {group!r} of split {split}; that is tested on {groups}"
        )
    return splits["groups"][group]


def write_results(archive: str, group: str, split: str, checkpoint: str, cache_dir: str) -> None:
    """The tables of one checkpoint on one test group, out of the evaluation's zip."""
    from .maps import write_result_computational

    source, folder = layout.evaluation_zip(archive, group, split), layout.result_dir(archive, group, split, checkpoint)
    inputs = [source, layout.run_zip(archive, split)]
    outputs = [*layout.result_tables(folder), layout.result_computational(folder)]
    name, index = f"write_results_{group}_split-{split}_{checkpoint}", hash_index(cache_dir)
    with step(archive, name, "write_results", inputs, outputs, hash_index=index):
        for name, target in zip(layout.METRIC_TABLES, layout.result_tables(folder), strict=True):
            write_bytes(target, zip_member(source, f"{checkpoint}/{name}"))
        write_result_computational(archive, group, split, checkpoint)


def published_cases(archive: str, publish: int) -> list[str]:
    """The cases that the model of the split ``publish`` may be scored on: its test groups', else its validation cases."""
    tested = cases_tested_by(read_splits(layout.splits_json(archive)), publish)
    return tested or sides_of_split(archive, str(publish))["validation"]


def evaluate_published(archive: str, device: str, cache_dir: str, trusted: bool, processes: int = 1) -> None:
    """Score the published TorchScript, and keep its predictions; ``processes`` share the cases.

    It is code: unless it is ``trusted`` wherever it comes from, it must have been exported here.
    """
    output = layout.eval_zip(archive)
    inputs = [
        layout.published_ts(archive),
        layout.splits_json(archive),
        layout.cases_tsv(archive),
        *(layout.effective(archive, p) for p in ("train", "test", "predict", "publish")),
    ]
    with step(archive, "evaluate_published", "evaluate_published", inputs, [output]) as running:
        publish = read_effective(archive, "publish")["publish"]
        cases = cases_of(archive, published_cases(archive, publish))
        given = published_evaluation_of(archive, cases, cache_dir)
        model = {"model.ts": published_torchscript(archive, cache_dir, trusted)}
        members = _evaluate("score_torchscript", processes, device, cache_dir, given, running, model)
        run = finished_run(layout.run_zip(archive, publish), "checkpoints")
        says = {
            "fingerprint": fingerprint_on_disk(archive, "published evaluation"),
            "cases": cases_sha256(cases, named=True),
            "weights": weights_of(run, [published_checkpoint(read_effective(archive, "train"))]),
        }
        write_zip(output, {INFO: json_text(says), **members})


def published_torchscript(archive: str, cache_dir: str, trusted: bool) -> bytes:
    """The published TorchScript, once it is known where it comes from."""
    path, publish = layout.published_ts(archive), read_effective(archive, "publish")["publish"]
    data = read_bytes(path, memory_bytes() // 2)
    if trusted or is_exported_here(cache_dir, data):
        return data
    run_zip, exports = layout.run_zip(archive, publish), layout.exports_zip(archive, publish)
    if Path(run_zip).exists():
        # An archive from elsewhere; what its weights give is ours, and nothing of the file was run to see it.
        with sparingly():
            from .export import export_again
        settings = recipe_of(archive)
        again = export_again(settings, run_zip, published_checkpoint(settings), *export_options(archive))
        if data == again:
            note_exported(cache_dir, [data])
            return data
    raise UserError(
        f"{path}: TorchScript is code, and this file is not what is exported here from {run_zip}; nothing of it was run; "
        f"to export it again from the weights, delete it and {exports} and ask for it anew; to run it as it is, if you "
        "know who made it, add --config trust_torchscript=True"
    )


def export_options(archive: str) -> tuple[float, dict[str, str]]:
    """The tolerance, and the texts that a TorchScript file carries."""
    from .bundle import inference_config, metadata

    extra = {
        "metadata.json": json.dumps(metadata(archive)),
        "inference.json": json.dumps(inference_config(archive)),
    }
    return read_effective(archive, "export")["tolerance"], extra


def export_split(archive: str, split: str, checkpoints: list[str], cache_dir: str) -> None:
    """Export the selected checkpoints of a split as TorchScript."""
    run_zip, output = layout.run_zip(archive, split), layout.exports_zip(archive, split)
    inputs = [
        run_zip,
        *(layout.effective(archive, p) for p in ("train", "test", "export", "publish")),
        layout.dataset_json(archive),
    ]
    name = f"export_split-{split}"
    with step(archive, name, "export_split", inputs, [output]) as running:
        decided = {"fingerprint": fingerprint_on_disk(archive, "export", split)}
        parts = Parts(decided, finished_run(run_zip, "checkpoints"), run_zip, checkpoints)
        running.extends = parts.take_from_last(archive, name, output, [SCRIPT, PARITY])
        running.parameters |= parts.told(f"split {split}")
        if parts.missing:
            with sparingly():
                from .export import export_checkpoints
            tolerance, extra = export_options(archive)
            made = export_checkpoints(recipe_of(archive), run_zip, parts.missing, tolerance, extra)
            note_exported(cache_dir, [part[SCRIPT] for part in made.values()])
            parts.add(made)
        write_zip(output, {INFO: json_text(parts.says), **parts.members()})


def publish_weights(archive: str, which: str, cache_dir: str) -> None:
    """models/model.pt (``best``: by the key metric) or models/final_model.pt (``final``), without prefix."""
    split = read_effective(archive, "publish")["publish"]
    run_zip = layout.run_zip(archive, split)
    checkpoint = published_checkpoint(read_effective(archive, "train")) if which == "best" else "final"
    output = layout.published_model(archive) if which == "best" else layout.published_final(archive)
    asked, index = {"checkpoint": checkpoint}, hash_index(cache_dir)
    with step(archive, f"publish_{which}", "publish_weights", [run_zip], [output], asked, hash_index=index):
        from .plain_weights import plain_weights
        from .run import epoch_of

        write_bytes(output, plain_weights(run_zip, epoch_of(finished_run(run_zip), checkpoint)))
    _describe_published_environment(archive, run_zip)


def _describe_published_environment(archive: str, run_zip: str) -> None:
    """Let what env/ has be of the run that is published now, if another one was before."""
    from .environment import frozen_environment
    from .environment_files import outdated_names

    environment = frozen_environment(run_zip) or {}
    names = outdated_names(archive, environment)
    _record_environment_of_training(archive, environment, names, "publish_weights")


def extract(archive: str, source: str, member: str, target: str, rule: str, cache_dir: str) -> None:
    """Copy one member of a zip of the archive to its canonical place."""
    name = target.removeprefix(f"{archive}/").replace("/", ".")
    with step(archive, f"{rule}_{name}", rule, [source], [target], hash_index=hash_index(cache_dir)):
        copy_member(source, member, target)


# ---- the archive as a whole


def write(archive: str, what: str, function, names: tuple[str, ...], inputs: list[str]) -> None:
    """Run a writer of one of the archive's faces; it reads what the configuration and tables say."""
    name = "_".join(["write", what.replace("-", "_"), *names]).rstrip("/")
    with step(archive, name, f"write_{what.replace('-', '_')}", inputs, []) as running:
        try:
            running.outputs += function(archive, *names)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            read = ", ".join(inputs) or f"{archive}/config"
            raise UserError(
                f"{name}: cannot be made ({type(error).__name__}: {error}): one of {read} is not as this workflow writes "
                f"it, or the recipe says something that only its network understands; armarium verify {archive} tells which"
            ) from error


def record_environment(archive: str, outputs: list[str], rule: str) -> None:
    """Files of env/: as training froze them if there is a run that has them, else this process's."""
    from .environment_files import write_environment

    split = read_effective(archive, "publish")["publish"]
    names = [os.path.relpath(path, layout.environment_file(archive, "")) for path in outputs]
    which = f"_{os.path.basename(names[0])}" if rule == "copy_lock_file" else ""
    with step(archive, f"{rule}{which}", rule, [], outputs):
        write_environment(archive, names, layout.run_zip(archive, split))


def copy_workflow(archive: str) -> None:
    """One Snakefile with its includes put in, as it was when the archive was made."""
    with step(archive, "copy_workflow", "copy_workflow", [], [layout.workflow_copy(archive)]):
        write_bytes(layout.workflow_copy(archive), workflow_text().encode())


def workflow_text() -> str:
    """The workflow as one Snakefile."""
    source = WORKFLOW / "Snakefile"
    return re.sub(
        r'^include: "(.+)"$', lambda m: (source.parent / m[1]).read_text().rstrip(), source.read_text(), flags=re.M
    )


def write_manifest(archive: str, cache_dir: str) -> None:
    """The manifest over everything; then resume states are no longer needed."""
    from .environment_files import remove_outdated
    from .manifest import write_manifest as write
    from .run import forget_workspaces

    remove_outdated(archive, layout.run_zip(archive, read_effective(archive, "publish")["publish"]))
    named = [p.name.partition("-")[2] for p in Path(archive, "training").glob("split-*")]
    remove_abandoned(archive)
    forget_workspaces(archive, [int(name) for name in named if name.isdecimal()])
    write(archive, hash_index(cache_dir))
