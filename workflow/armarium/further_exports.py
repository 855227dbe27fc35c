"""The steps of what is made on request of trained models: other formats of the published one, the splits' ensemble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import layout
from .configure import (
    published_checkpoint,
    read_effective,
    require_splits,
)
from .errors import UserError
from .files import json_text, memory_bytes, parse_json, read_bytes, read_json
from .fingerprints import fingerprint_on_disk
from .formats import REPORT, model_member, require_packages
from .loading import sparingly
from .provenance import step
from .run import INFO, finished_run, weights_of
from .split_files import cases_unseen, read_splits, split_numbers
from .standing import cases_sha256, member_of_ensemble
from .steps import cases_of, export_options, published_evaluation_of, recipe_of
from .trust import is_exported_here, note_exported
from .zips import copy_member, damaged, write_zip, zip_member

ENSEMBLE_TS = "ensemble.ts"
"""The member of the ensemble's zip that is the model."""
_EXPORTED_BY = ("data", "split", "train", "test", "export", "publish")
"""The parts of the effective configuration that an export reads."""


def export_format(archive: str, format: str) -> None:
    """Export the published model to a format; where that cannot express it, say why.

    A model of an earlier network then goes, which the archive would else describe as this one's.
    """
    from .bundle_metadata import grid_divisor

    publish, settings = read_effective(archive, "publish")["publish"], recipe_of(archive)
    run_zip, output = layout.run_zip(archive, publish), layout.further_export_zip(archive, format)
    inputs = [run_zip, *(layout.effective(archive, p) for p in _EXPORTED_BY), layout.dataset_json(archive)]
    with step(archive, f"export_{format}", "export_format", inputs, [output], {"format": format}):
        require_packages([format], output)
        with sparingly():
            from .format_export import export_format as export

        checkpoint = published_checkpoint(settings)
        tolerance, extra = export_options(archive)
        made = export(settings, run_zip, checkpoint, format, tolerance, extra, grid_divisor(settings))
        says = {
            "fingerprint": fingerprint_on_disk(archive, "format", format),
            "weights": weights_of(finished_run(run_zip, "checkpoints"), [checkpoint]),
        }
        if model_member(format) not in made:
            Path(layout.published_format(archive, format)).unlink(missing_ok=True)
        write_zip(output, {INFO: json_text(says), **made})


def could_export(archive: str, format: str) -> bool:
    """Whether there is an export that holds a model."""
    path = layout.further_export_zip(archive, format)
    return Path(path).is_file() and bool(_report(path).get("exported"))


def _report(path: str) -> dict:
    report = parse_json(zip_member(path, REPORT).decode(errors="replace"), f"{path}: {REPORT}")
    return report if isinstance(report, dict) else {}


def publish_format(archive: str, format: str) -> None:
    """models/model.<format>, out of its export.

    Raises
    ------
    UserError
        If the format cannot express the network.
    """
    source, target = layout.further_export_zip(archive, format), layout.published_format(archive, format)
    with step(archive, f"publish_{format}", "publish_format", [source], [target], {"format": format}):
        report = _report(source)
        if not report.get("exported"):
            told = layout.export_report(archive, format)
            raise UserError(f"{target}: cannot be made: {report.get('reason', 'no reason was given')} (as {told} says)")
        copy_member(source, model_member(format), target)


# ---- the ensemble


def has_ensemble(archive: str) -> bool:
    """Whether an ensemble belongs to the archive: by its configuration, or since it was once asked for by name."""
    made = layout.sidecar(archive, f"export_{layout.ENSEMBLE}")
    return bool(read_json(layout.archive_json(archive)).get("ensemble")) or Path(made).exists()


def ensemble_report(archive: str) -> dict:
    """What the ensemble's export says of it: ``members``, ``mean_of``.

    Raises
    ------
    UserError
        If there is none that can be read.
    """
    path = layout.further_export_zip(archive, layout.ENSEMBLE)
    report = _report(path)
    members = report.get("members")
    listed = isinstance(members, list) and all(isinstance(member, dict) for member in members)
    if not listed or report.get("mean_of") not in ("outputs", "softmax", "sigmoid"):
        raise damaged(path, f"{REPORT} does not say what the ensemble is the mean of")
    return report


def _members(archive: str) -> dict[int, str]:
    """The run.zip of every split."""
    splits = split_numbers(read_effective(archive, "split"))
    require_splits(archive, splits)
    return {split: layout.run_zip(archive, split) for split in splits}


def _weights(runs: dict[int, str], checkpoint: str) -> dict[str, str]:
    infos = {split: finished_run(run, "checkpoints") for split, run in runs.items()}
    found = {member_of_ensemble(split): weights_of(info, [checkpoint]) for split, info in infos.items()}
    if lacking := [name for name, weights in found.items() if checkpoint not in weights]:
        raise UserError(f"{', '.join(lacking)}: run.zip does not hold {checkpoint}; delete it to have it trained again")
    return {name: weights[checkpoint] for name, weights in found.items()}


def _ensemble(archive: str) -> dict[str, bytes | str]:
    with sparingly():
        from .ensemble import export_ensemble as export

    settings = recipe_of(archive)
    return export(settings, _members(archive), published_checkpoint(settings), *export_options(archive))


def export_ensemble(archive: str, cache_dir: str) -> None:
    """Export the mean of the splits' published checkpoints as TorchScript."""
    runs, output = _members(archive), layout.further_export_zip(archive, layout.ENSEMBLE)
    inputs = [*runs.values(), *(layout.effective(archive, p) for p in _EXPORTED_BY), layout.dataset_json(archive)]
    with step(archive, "export_ensemble", "export_ensemble", inputs, [output]):
        made = _ensemble(archive)
        note_exported(cache_dir, [made[ENSEMBLE_TS]])
        says = {
            "fingerprint": fingerprint_on_disk(archive, "ensemble"),
            "weights": _weights(runs, published_checkpoint(read_effective(archive, "train"))),
        }
        write_zip(output, {INFO: json_text(says), **made})


def ensemble_cases(archive: str) -> list[str]:
    """The cases that an ensemble is scored on: of test groups of all splits, and of nobody whom any split trained or validated on.

    Raises
    ------
    UserError
        If there is none.
    """
    path = layout.splits_json(archive)
    if not (cases := cases_unseen(read_splits(path))):
        raise UserError(
            f"{path}: no test case that no split trains or validates on, so an ensemble of all splits cannot be scored; "
            "name a group of such cases in test.groups; models/ensemble.ts itself needs none"
        )
    return cases


def evaluate_ensemble(archive: str, device: str, cache_dir: str, trusted: bool) -> None:
    """Score the ensemble on cases that none of its members has seen, and keep its predictions."""
    runs, output = _members(archive), layout.eval_zip(archive, layout.OF_ENSEMBLE)
    inputs = [
        layout.ensemble_ts(archive),
        layout.splits_json(archive),
        layout.cases_tsv(archive),
        *(layout.effective(archive, p) for p in ("train", "test", "predict")),
    ]
    with step(archive, "evaluate_ensemble", "evaluate_ensemble", inputs, [output]):
        with sparingly():
            from .testing import evaluate_torchscript

        cases = cases_of(archive, ensemble_cases(archive))
        path, again = layout.ensemble_ts(archive), lambda: _ensemble(archive)[ENSEMBLE_TS]
        members = evaluate_torchscript(
            **published_evaluation_of(archive, cases, cache_dir),
            torchscript=bytes_to_run(path, cache_dir, trusted, again),
            device=device,
        )
        says = {
            "fingerprint": fingerprint_on_disk(archive, "ensemble evaluation"),
            "cases": cases_sha256(cases, named=True),
            "weights": _weights(runs, published_checkpoint(read_effective(archive, "train"))),
        }
        write_zip(output, {INFO: json_text(says), **members})


def bytes_to_run(path: str, cache_dir: str, trusted: bool, again: Callable[[], bytes]) -> bytes:
    """The file's bytes, once it is known that they were exported here, or are what the weights give.

    Raises
    ------
    UserError
        If they are neither, and not trusted.
    """
    data = read_bytes(path, memory_bytes() // 2)
    if not trusted and not is_exported_here(cache_dir, data):
        if data != again():
            raise UserError(
                f"{path}: TorchScript is code, and this file is not what is exported here from this archive's runs; nothing of it "
                "was run; to export it again, delete it and ask for it anew; to run it as it is, if you know who made it, add "
                "--config trust_torchscript=True"
            )
        note_exported(cache_dir, [data])
    return data
