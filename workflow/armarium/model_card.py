"""docs/ and LICENSE: the model card from the archive's own facts, and what is known of licences. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, pstdev

from . import layout
from .bundle_metadata import description, licence_line, spatial_shape
from .configure import published_checkpoint, read_effective
from .dataset import REGRESSION, read_facts
from .errors import UserError
from .files import read_json, write_text
from .further_exports import ensemble_report, has_ensemble
from .maps import finished_runs
from .multi_label import is_multi_label, positives
from .parent import read_parent
from .results import OWN, sets_tested, spread
from .split_files import own_groups, read_splits, shared_groups
from .tables import UNDEFINED, read_tsv
from .uncertainty import interval
from .zips import damaged, zip_member

WHO_DECIDES = (
    "Who publishes this archive must decide: read the data's licence (attribution, share-alike and\n"
    "non-commercial terms may bind a model trained on the data), then state the licence chosen."
)

INTERVAL = "interval: 95 %, percentile bootstrap over cases"


def write_doc(archive: str, name: str) -> list[str]:
    """Write one of ``layout.DOCS``; return its path."""
    makers = {layout.MODEL_CARD: _readme, "license.txt": _licence, "data_license.txt": _data_licence}
    if name not in makers:
        raise UserError(f"docs/{name}: no such document; wanted one of {', '.join(makers)}")
    write_text(layout.doc(archive, name), makers[name](archive))
    return [layout.doc(archive, name)]


def write_licence(archive: str) -> list[str]:
    """``LICENSE``, of the model weights."""
    write_text(layout.licence(archive), _licence(archive))
    return [layout.licence(archive)]


def _licence(archive: str) -> str:
    data = f"The weights were trained on data under: {licence_line(archive)}"
    return f"Licence of the model weights: not decided yet.\n\n{data}\n\n{WHO_DECIDES}\n"


def _data_licence(archive: str) -> str:
    dataset = read_facts(layout.dataset_json(archive))
    lines = [
        f"Data: {dataset.get('name') or 'unnamed dataset'}",
        f"Licence as stated with the data: {licence_line(archive)}",
    ]
    lines += [f"Reference: {dataset['reference']}"] if dataset.get("reference") else []
    return "\n".join([*lines, "", "The data themselves are not in this archive.", ""])


# ---- README.md


def _readme(archive: str) -> str:
    dataset, train = read_facts(layout.dataset_json(archive)), read_effective(archive, "train")
    title = f"# {dataset.get('name') or 'Model'} {train['task']}"
    data = _data(archive, dataset, train["task"], is_multi_label(train))
    sections = [_model(archive, train), data, _results(archive, train), _use(archive)]
    return "\n\n".join([title, description(archive), *sections]) + "\n"


def _model(archive: str, train: dict) -> str:
    publish, grid = read_effective(archive, "publish")["publish"], " x ".join(map(str, spatial_shape(train)))
    rows = [
        f"Network: {_name(train['model'])}, input grid such as {grid}",
        f"Loss: {_name(train['loss'])}; optimizer: {_name(train['optimizer'])}",
        f"At most {train['epochs']} epochs; seed {train['seed']}",
        f"Published in `models/`: checkpoint {published_checkpoint(train)} of split {publish}",
        *_started_from(archive),
    ]
    return "\n".join(["## Model", "", *(f"- {r}" for r in rows)])


def _started_from(archive: str) -> list[str]:
    """Of a fine-tuned archive: from what."""
    parent = read_parent(archive)
    return [f"Started from: {parent}; `training/split-*/starting_weights.tsv` tells by layer"] if parent else []


def _name(component: dict) -> str:
    return component.get("name", component.get("path", ""))


def _data(archive: str, dataset: dict, task: str, several: bool) -> str:
    splits = read_splits(layout.splits_json(archive))
    classes = ", ".join(f"{k} {v}" for k, v in dataset["labels"].items())
    learnt = _target(splits, dataset) if task == REGRESSION else f"classes: {classes}"
    if several:
        learnt = f"classes, which may occur together: {classes}{_having(splits, dataset)}"
    rows = [
        f"Source: {dataset.get('reference') or 'not stated'}; licence: {licence_line(archive)}",
        f"Channels: {', '.join(dataset['modality'].values())}; {learnt}",
        *(
            f"Split {k}: {len(s['train'])} training and {len(s['validation'])} validation cases"
            for k, s in enumerate(splits["splits"])
        ),
        *(f"Test group `{g}`{_of_split(splits, g)}: {len(names)} cases" for g, names in splits["groups"].items()),
    ]
    return "\n".join(["## Data", "", *(f"- {r}" for r in rows)])


def _of_split(splits: dict, group: str) -> str:
    own = splits.get("own_groups", {})
    return f" of split {own[group]} alone" if group in own else ""


def _having(splits: dict, dataset: dict) -> str:
    """How many of all cases have each class, where labels are lists."""
    labels = [case["label"] for case in splits["cases"].values() if isinstance(case["label"], list)]
    counts = positives(labels, {int(k): name for k, name in dataset["labels"].items()})
    return f"; of {len(labels)} cases {', '.join(f'{n} have {name}' for name, n in counts.items())}" if labels else ""


def _target(splits: dict, dataset: dict) -> str:
    """What a regression learns, with the spread that its errors are to be compared with."""
    names = {name for split in splits["splits"] for side in split.values() for name in side}
    values = sorted(splits["cases"][name]["label"] for name in names)
    return (
        f"target: {dataset.get('target')}, of the training and validation cases {values[0]:.6g} to {values[-1]:.6g}, "
        f"mean {fmean(values):.6g}, standard deviation {pstdev(values):.6g}"
    )


def _results(archive: str, train: dict) -> str:
    """Every metric of the checkpoint with the best key metric, over splits."""
    labels = ["loss", *(m["label"] for m in train["validate"]["metrics"])]
    runs = finished_runs(archive)
    if not runs:
        raise UserError(f"{archive}: no split is trained; the model card reports results")
    chosen, groups = read_effective(archive, "select")["checkpoints"], _groups(archive)
    published = published_checkpoint(train)
    checkpoint = published if published in chosen else chosen[0]
    sets = sets_tested(groups, own_groups(groups), list(runs))
    tested = {name: [_tested(archive, g, k, checkpoint) for k, g in of.items()] for name, of in sets.items()}
    lines = [
        "## Results",
        "",
        f"Mean ± standard deviation over {len(runs)} split{'s' if len(runs) > 1 else ''}. Validation: each",
        f"metric's best epoch, hence optimistic. Test: checkpoint `{checkpoint}`.",
        *(["`Test (own)`: each split on the test group that is its own."] if OWN in sets else []),
        "",
        " | ".join(["| Metric", "Validation", *(_heading(name) for name in sets)]) + " |",
        f"|---|---|{'---|' * len(sets)}",
    ]
    for label in labels:
        cells = [spread(_best_values(runs.values(), label), "undefined")]
        cells += [spread([_number(row.get(label)) for row in rows], "undefined") for rows in tested.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += _published_results(archive, labels, sets, checkpoint)
    lines += _ensemble_results(archive, labels)
    units = "Distances are in mm. Values per class and case are in the tables beside each checkpoint."
    if train["task"] == REGRESSION:
        units = "Errors are in the target's units (squared where squared). Values per case are in the tables beside each checkpoint."
    return "\n".join([*lines, "", units])


def _published_results(archive: str, labels: list[str], sets: dict, checkpoint: str) -> list[str]:
    """The published split's mean over test cases, and how sure it is; nothing where it is tested on none."""
    publish, lines = read_effective(archive, "publish")["publish"], []
    for name, of in sets.items():
        if publish not in of:
            continue
        cases = _test_table(archive, of[publish], publish, checkpoint, "details.tsv")
        where = f"on the {len(cases)} cases of {_heading(name)}"
        lines += ["", f"Split {publish}, which is published, {where}; {INTERVAL}.", "", *_by_metric(cases, labels)]
    return lines


def _by_metric(cases: list[dict[str, str]], labels: list[str]) -> list[str]:
    """A table of the mean of each metric over cases, and how sure it is."""
    lines = ["| Metric | Mean | Interval | Undefined |", "|---|---|---|---|"]
    for label in labels:
        known = [value for case in cases if not math.isnan(value := _number(case.get(label)))]
        if found := interval(known):
            counted = len(cases) - len(known)
            lines.append(f"| {label} | {fmean(known):.4f} | {found[0]:.4f} to {found[1]:.4f} | {counted} |")
    return lines


def _ensemble_results(archive: str, labels: list[str]) -> list[str]:
    """Of an archive with an ensemble: what it is the mean of, and its results on the cases that no member has seen.

    One that is only being made is told of by the next build, which has its results.
    """
    scores, is_scored = layout.eval_zip(archive, layout.OF_ENSEMBLE), bool(shared_groups(_groups(archive)))
    sources = [layout.further_export_zip(archive, layout.ENSEMBLE), *([scores] if is_scored else [])]
    if not has_ensemble(archive) or not all(Path(source).is_file() for source in sources):
        return []
    report = ensemble_report(archive)
    averaged = "outputs" if report["mean_of"] == "outputs" else "probabilities"
    splits = ", ".join(str(member.get("split")) for member in report["members"])
    what = f"Ensemble, `models/ensemble.ts`: the mean {averaged} of splits {splits}"
    if not is_scored:
        return ["", f"{what}. It is scored on no case: its members have seen those of every test group."]
    cases = _table(scores, "details.tsv", "score the ensemble")
    where = f"on the {len(cases)} test cases that no split has seen (`eval/ensemble/`)"
    return ["", f"{what}, {where}; {INTERVAL}.", "", *_by_metric(cases, labels)]


def _groups(archive: str) -> dict:
    return read_effective(archive, "test")["groups"]


def _heading(name: str) -> str:
    return "Test (own)" if name == OWN else f"Test: {name}"


def _best_values(runs: Iterable[dict], label: str) -> list[float]:
    values = [info["best"][label]["value"] for info in runs if label in info["best"]]
    return [math.nan if v is None else v for v in values]


def _tested(archive: str, group: str, split: int, checkpoint: str) -> dict[str, str]:
    return _test_table(archive, group, split, checkpoint, "aggregated.tsv")[0]


def _test_table(archive: str, group: str, split: int, checkpoint: str, table: str) -> list[dict[str, str]]:
    """Rows of a table of a test, at least one."""
    wanted = f"test split {split} on group {group}"
    return _table(layout.evaluation_zip(archive, group, split), f"{checkpoint}/{table}", wanted)


def _table(path: str, name: str, wanted: str) -> list[dict[str, str]]:
    """Rows of a table in an evaluation's zip, at least one; ``wanted``: what makes that."""
    try:
        rows = read_tsv(zip_member(path, name).decode(errors="replace"), f"{path}: {name}")
    except FileNotFoundError:
        raise UserError(f"{path}: file not found; {wanted} first") from None
    if not rows:
        raise damaged(path, f"{name} has no rows")
    return rows


def _number(cell: str | None) -> float:
    return math.nan if cell in (None, "", UNDEFINED) else float(cell)


def _use(archive: str) -> str:
    group_by = read_json(layout.archive_json(archive))["splits"].get("group_by") or []
    grouped = f"participant and {', '.join(group_by)}" if group_by else "participant"
    return "\n".join(
        [
            "## Intended use and limits",
            "",
            "- For research. Not a medical device; not for diagnosis or treatment.",
            "- Made for images like those above: same modality and field of view. Others are untested.",
            f"- Cases of one {grouped} never lie on two sides of a split.",
            "",
            "## Licence",
            "",
            f"Data: {licence_line(archive)}. Weights: see `LICENSE`; whoever publishes them decides.",
        ]
    )
