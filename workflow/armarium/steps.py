"""The steps of the workflow: each reads and writes canonical files of one archive and leaves a sidecar.

Light steps import nothing heavy; those that compute import torch inside.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

from . import layout
from .changes import content_of, list_digests
from .configure import (
    data_root_of,
    fingerprint_on_disk,
    published_checkpoint,
    read_effective,
    training_settings_of,
)
from .dataset import REGRESSION, read_facts
from .errors import UserError
from .files import json_text, memory_bytes, read_bytes, remove_abandoned, write_bytes, write_json
from .hashing import HashIndex
from .provenance import is_recorded, step
from .run import Workspace, finished_run, only_trainer, run_identity, run_info
from .split_files import read_splits
from .trust import is_exported_here, note_exported
from .zips import copy_member, write_zip, zip_member

ALLOWED = "ARMARIUM_ALLOW"
"""The variable by which planning tells the jobs which code from outside the user allows, as a JSON list."""


def recipe_of(archive: str) -> dict:
    """The effective training configuration, whose components may be built.

    Raises
    ------
    UserError
        If it names code that the user's call does not allow, whatever the archive's own files say.
    """
    settings, allowed = training_settings_of(archive), json.loads(os.environ.get(ALLOWED, "[]"))
    if foreign := [path for path in settings["allow"] if path not in allowed]:
        raise UserError(
            f"{layout.effective(archive, 'train')}: allow is {foreign}, which the call that plans must allow; ask Snakemake for what you want"
        )
    return settings


def hash_index(cache_dir: str) -> HashIndex:
    return HashIndex(Path(cache_dir, "hashes.sqlite"))


# ---- data


def check_data(archive: str, workers: int, cache_dir: str) -> None:
    """Check every case of the dataset and the test lists; write their table and what the list says."""
    from .checks import check_dataset, write_cases_table
    from .dataset import read_dataset, with_test_lists

    root = data_root_of(archive)
    spec = {**read_effective(archive, "data")["dataset"], **read_effective(archive, "check")}
    outputs = [layout.cases_tsv(archive), layout.dataset_json(archive)]
    sources = [layout.effective(archive, p) for p in ("data", "check", "evaluate", "files")]
    with step(archive, "check_data", "check_data", sources, outputs) as running:
        started = time.time_ns()
        dataset = with_test_lists(read_dataset(spec, root), {"groups": _groups(archive)}, root)
        rows = check_dataset(dataset, spec, root, workers)
        write_cases_table(layout.cases_tsv(archive), rows)
        facts = {**dataset.header(), "list": spec["list"], "cases": len(rows), "digests": list_digests(dataset)}
        write_json(layout.dataset_json(archive), facts)
        running.data_inputs = content_of(dataset.cases, {r["case"]: r for r in rows})
        hash_index(cache_dir).note({str(Path(root, f)): h for f, h in running.data_inputs.items()}, started)


def _groups(archive: str) -> dict:
    return {g: t for g, t in read_effective(archive, "evaluate")["groups"].items() if "given" not in t}


def split_data(archive: str) -> None:
    """Divide the cases into splits and test groups."""
    from .checks import read_cases_table
    from .dataset import read_dataset
    from .splits import make_splits

    spec, root = read_effective(archive, "data")["dataset"], data_root_of(archive)
    part = read_effective(archive, "split")
    inputs = [
        layout.cases_tsv(archive),
        *(layout.effective(archive, p) for p in ("data", "split", "evaluate", "files")),
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

    known, rows = read_splits(layout.splits_json(archive))["cases"], read_cases_table(layout.cases_tsv(archive))
    if strange := [n for n in names if n not in rows or not stays_inside(known[n], rows[n])]:
        raise UserError(
            f"{layout.splits_json(archive)}: case {strange[0]!r} is not in {layout.cases_tsv(archive)}, or has files that no "
            "dataset list may name; delete both to have the data checked and split again"
        )
    return [{"case": n, **known[n], "sha256": [rows[n]["image_sha256"], rows[n]["label_sha256"]]} for n in names]


def class_names(archive: str) -> dict[int, str]:
    return {int(k): v for k, v in read_facts(layout.dataset_json(archive))["labels"].items()}


# ---- training


def _sides(archive: str, split: str) -> dict[str, list[str]]:
    splits = read_splits(layout.splits_json(archive))["splits"]
    if int(split) >= len(splits):
        raise UserError(
            f"{layout.splits_json(archive)}: found {len(splits)} splits, wanted split {split}; delete this file to have them drawn again"
        )
    return splits[int(split)]


def train(archive: str, split: str, device: str, cache_dir: str) -> None:
    """Train a split into its run.zip; take what an earlier or orphaned trainer already finished."""
    wanted = fingerprint_on_disk(archive, "training", split)
    workspace = Workspace(archive, split, wanted)
    inputs = [
        *(layout.effective(archive, p) for p in ("data", "split", "train", "files")),
        layout.splits_json(archive),
        layout.cases_tsv(archive),
    ]
    output, name = layout.run_zip(archive, split), f"train_split-{split}"
    with only_trainer(archive, split):
        remove_abandoned(workspace.folder)
        if workspace.take_finished():
            print(f"split {split}: already trained; taking the finished run", file=sys.stderr)
            if not is_recorded(archive, name, output):  # its trainer was killed between the run and the record
                with step(archive, name, "train_split", inputs, [output], {"taken": "finished by a killed trainer"}):
                    pass
            return
        with step(archive, name, "train_split", inputs, [output]) as running:
            running.resources |= _train(archive, split, device, cache_dir, workspace)


def _train(archive: str, split: str, device: str, cache_dir: str, workspace: Workspace) -> dict:
    settings = recipe_of(archive)
    sides = _sides(archive, split)
    from .network import choose_device, make_deterministic
    from .records import run_members
    from .training import SplitTraining

    make_deterministic(settings)
    training = SplitTraining(
        settings,
        split,
        cases_of(archive, sides["train"]),
        cases_of(archive, sides["validation"]),
        class_names(archive),
        data_root_of(archive),
        cache_dir,
        choose_device(device),
        workspace,
    )
    progress = training.run()
    folder = Path(layout.environment_txt(archive)).parent
    environment = {f"env/{p.name}": p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}
    members = run_members(training, workspace.fingerprint, environment)
    workspace.finish(members, progress.epochs_to_keep(settings["keep_epochs"]))
    return {"device": str(training.device), "steps": len(progress.losses)}


def select(archive: str, split: str, checkpoint: str, weights: bool) -> None:
    """A checkpoint's weights, or its validation tables, out of run.zip."""
    from .run import select_checkpoint, select_tables

    folder = layout.checkpoint_dir(archive, split, checkpoint)
    what, run_zip = ("weights" if weights else "tables"), layout.run_zip(archive, split)
    outputs = [layout.checkpoint_pt(folder)] if weights else layout.checkpoint_tables(folder)
    rule = "select_checkpoint" if weights else "select_tables"
    with step(archive, f"select_{what}_split-{split}_{checkpoint}", rule, [run_zip], outputs):
        (select_checkpoint if weights else select_tables)(archive, split, checkpoint)


def copy_logs(archive: str, split: str, targets: list[str]) -> None:
    """Logs and histories of a split out of run.zip."""
    from .run import copy_members

    rule = "copy_learning_rates" if len(targets) == 1 else "copy_logs"
    with step(archive, f"{rule}_split-{split}", rule, [layout.run_zip(archive, split)], targets):
        copy_members(archive, split, targets)


def check_recipe(archive: str) -> None:
    """Build every component of the recipe before anything costly; write what the network is."""
    inputs = [layout.effective(archive, "train"), layout.dataset_json(archive)]
    outputs = [layout.architecture_log(archive), layout.nn_summary(archive)]
    with step(archive, "check_recipe", "check_recipe", inputs, outputs):
        from .bundle_metadata import input_shape
        from .inspection import check_components, check_regression, layer_table

        settings = recipe_of(archive)
        network = check_components(settings, class_names(archive))
        if settings["task"] == REGRESSION:
            check_regression(settings, network, input_shape(archive))
        write_bytes(outputs[0], f"{network!r}\n".encode())
        write_bytes(outputs[1], layer_table(network).encode())


# ---- evaluation


def test_split(archive: str, group: str, split: str, device: str, cache_dir: str) -> None:
    """Score all selected checkpoints of a split on a test group, in one process."""
    run_zip, output = layout.run_zip(archive, split), layout.evaluation_zip(archive, group, split)
    inputs = [
        run_zip,
        layout.splits_json(archive),
        layout.cases_tsv(archive),
        *(layout.effective(archive, p) for p in ("train", "evaluate")),
    ]
    with step(archive, f"test_{group}_split-{split}", "test_split", inputs, [output], hash_index=hash_index(cache_dir)):
        from .testing import evaluate_checkpoints

        settings = recipe_of(archive)
        groups = read_splits(layout.splits_json(archive))["groups"]
        if group not in groups:
            raise UserError(f"{layout.splits_json(archive)}: no test group {group!r}; it has {list(groups)}")
        cases = cases_of(archive, groups[group])
        members = evaluate_checkpoints(
            settings,
            run_zip,
            read_effective(archive, "evaluate")["checkpoints"],
            cases,
            class_names(archive),
            data_root_of(archive),
            cache_dir,
            device,
        )
        _write_evaluation(output, members, fingerprint_on_disk(archive, "evaluation", group, split), run_zip)


def write_results(archive: str, group: str, split: str, checkpoint: str) -> None:
    """The tables of one checkpoint on one test group, out of the evaluation's zip."""
    from .maps import write_result_computational

    source, folder = layout.evaluation_zip(archive, group, split), layout.result_dir(archive, group, split, checkpoint)
    inputs = [source, layout.run_zip(archive, split)]
    outputs = [*layout.result_tables(folder), layout.result_computational(folder)]
    with step(archive, f"write_results_{group}_split-{split}_{checkpoint}", "write_results", inputs, outputs):
        for name, target in zip(layout.METRIC_TABLES, layout.result_tables(folder), strict=True):
            write_bytes(target, zip_member(source, f"{checkpoint}/{name}"))
        write_result_computational(archive, group, split, checkpoint)


def _write_evaluation(output: str, members: dict, fingerprint: str, run_zip: str) -> None:
    from .run import INFO

    write_zip(
        output, {INFO: json_text({"fingerprint": fingerprint, "run": run_identity(run_info(run_zip))}), **members}
    )


def published_cases(archive: str) -> list[str]:
    """The cases that the published model may be scored on: the test groups, else its own validation cases."""
    groups = read_splits(layout.splits_json(archive))["groups"]
    tested = sorted({name for names in groups.values() for name in names})
    return tested or _sides(archive, read_effective(archive, "publish")["publish"])["validation"]


def evaluate_published(archive: str, device: str, cache_dir: str, trusted: bool) -> None:
    """Score the published TorchScript, and keep its predictions.

    It is code: unless it is ``trusted`` wherever it comes from, it must have been exported here.
    """
    output = layout.eval_zip(archive)
    inputs = [
        layout.published_ts(archive),
        layout.splits_json(archive),
        layout.cases_tsv(archive),
        *(layout.effective(archive, p) for p in ("train", "evaluate", "publish")),
    ]
    with step(archive, "evaluate_published", "evaluate_published", inputs, [output]):
        from .testing import evaluate_torchscript

        members = evaluate_torchscript(
            recipe_of(archive),
            _published_torchscript(archive, cache_dir, trusted),
            cases_of(archive, published_cases(archive)),
            class_names(archive),
            data_root_of(archive),
            cache_dir,
            device,
            read_effective(archive, "evaluate")["predictions"],
        )
        published = layout.run_zip(archive, read_effective(archive, "publish")["publish"])
        _write_evaluation(output, members, fingerprint_on_disk(archive, "published evaluation"), published)


def _published_torchscript(archive: str, cache_dir: str, trusted: bool) -> bytes:
    """The published TorchScript, once it is known where it comes from."""
    path, publish = layout.published_ts(archive), read_effective(archive, "publish")["publish"]
    data = read_bytes(path, memory_bytes() // 2)
    if trusted or is_exported_here(cache_dir, data):
        return data
    run_zip, exports = layout.run_zip(archive, publish), layout.exports_zip(archive, publish)
    if Path(run_zip).exists():
        # An archive from elsewhere; what its weights give is ours, and nothing of the file was run to see it.
        from .export import export_again

        settings = recipe_of(archive)
        again = export_again(settings, run_zip, published_checkpoint(settings), *_export_options(archive))
        if data == again:
            note_exported(cache_dir, [data])
            return data
    raise UserError(
        f"{path}: TorchScript is code, and this file is not what is exported here from {run_zip}; nothing of it was run; "
        f"to export it again from the weights, delete it and {exports} and ask for it anew; to run it as it is, if you "
        "know who made it, add --config trust_torchscript=True"
    )


def _export_options(archive: str) -> tuple[float, dict[str, str]]:
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
        *(layout.effective(archive, p) for p in ("train", "export", "publish")),
        layout.dataset_json(archive),
    ]
    with step(archive, f"export_split-{split}", "export_split", inputs, [output]):
        from .export import export_split as export

        tolerance, extra = _export_options(archive)
        wanted = fingerprint_on_disk(archive, "export", split)
        made = export(recipe_of(archive), run_zip, checkpoints, tolerance, extra, output, wanted)
        note_exported(cache_dir, made)


def publish_weights(archive: str, which: str) -> None:
    """models/model.pt (``best``: by the key metric) or models/final_model.pt (``final``), without prefix."""
    split = read_effective(archive, "publish")["publish"]
    run_zip = layout.run_zip(archive, split)
    checkpoint = published_checkpoint(read_effective(archive, "train")) if which == "best" else "final"
    output = layout.published_model(archive) if which == "best" else layout.published_final(archive)
    with step(archive, f"publish_{which}", "publish_weights", [run_zip], [output], {"checkpoint": checkpoint}):
        from .run import epoch_of, saved
        from .weights import plain_weights

        write_bytes(output, saved(plain_weights(run_zip, epoch_of(finished_run(run_zip), checkpoint))))


def extract(archive: str, source: str, member: str, target: str, rule: str) -> None:
    """Copy one member of a zip of the archive to its canonical place."""
    name = target.removeprefix(f"{archive}/").replace("/", ".")
    with step(archive, f"{rule}_{name}", rule, [source], [target]):
        copy_member(source, member, target)


# ---- the archive as a whole


def write(archive: str, what: str, function, names: tuple[str, ...], inputs: list[str]) -> None:
    """Run a writer of one of the archive's faces; it reads what the configuration and tables say."""
    name = "_".join(["write", what.replace("-", "_"), *names])
    with step(archive, name, f"write_{what.replace('-', '_')}", inputs, []) as running:
        try:
            running.outputs += function(archive, *names)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            read = ", ".join(inputs) or f"{archive}/config"
            raise UserError(
                f"{name}: cannot be made ({type(error).__name__}: {error}): one of {read} is not as this workflow writes "
                f"it, or the recipe says something that only its network understands; armarium verify {archive} tells which"
            ) from error


def record_environment(archive: str) -> None:
    """env/: as training froze it if there is a run, else this process's."""
    from .environment import frozen_environment, write_environment

    split = read_effective(archive, "publish")["publish"]
    frozen = frozen_environment(layout.run_zip(archive, split))
    outputs = layout.environment_files(archive, conda=False)
    with step(archive, "record_environment", "record_environment", [], outputs):
        write_environment(archive, frozen)


def copy_workflow(archive: str) -> None:
    """One Snakefile with its includes put in, as it was when the archive was made."""
    with step(archive, "copy_workflow", "copy_workflow", [], [layout.workflow_copy(archive)]):
        write_bytes(layout.workflow_copy(archive), workflow_text().encode())


def workflow_text() -> str:
    """The workflow as one Snakefile."""
    source = Path(__file__).resolve().parents[1] / "Snakefile"
    return re.sub(
        r'^include: "(.+)"$', lambda m: (source.parent / m[1]).read_text().rstrip(), source.read_text(), flags=re.M
    )


def write_manifest(archive: str, cache_dir: str) -> None:
    """The manifest over everything; then resume states are no longer needed."""
    from .manifest import write_manifest as write
    from .run import forget_workspaces

    named = [p.name.partition("-")[2] for p in Path(archive, "training").glob("split-*")]
    remove_abandoned(archive)
    forget_workspaces(archive, [int(name) for name in named if name.isdecimal()])
    write(archive, hash_index(cache_dir))
