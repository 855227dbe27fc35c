"""``python -m benchmarks.hippocampus``: how soon the hippocampus recipe has a good model.

The archives are built by the workflow as a user builds them. What is shown comes out of their own tables: the validation by epoch
(``validation_metrics/aggregated.tsv``) and the seconds of each epoch (``logs/computational.tsv``). The weights of the last epoch
count: nothing is selected on the cases that are scored.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import click
import pandas
from armarium.files import read_json
from armarium.reader import Archive

from .measuring import show

REPO = Path(__file__).resolve().parents[1]
CONFIG, NAME = "config/hippocampus.yaml", "hippocampus"
METRIC = "MeanDice"
WANTED_DICE, WANTED_GPU_SECONDS = 0.895, 600.0
GPU_SPLITS = 5


@dataclass(frozen=True)
class Trained:
    """The training of one split, as its archive tells it.

    ``curve`` has a row for each validated epoch: ``epoch``, ``seconds`` of training until then, validation left out, and ``dice``.
    """

    epochs: int
    train_seconds: float
    validation_seconds: float
    curve: pandas.DataFrame

    @property
    def last_dice(self) -> float:
        return float(self.curve["dice"].iloc[-1])


def trained(timing: pandas.DataFrame, metrics: pandas.DataFrame) -> Trained:
    """Join a split's table of times with that of its validation.

    Parameters
    ----------
    timing:
        ``epoch``, ``train_seconds``, ``validation_seconds``, a row for each epoch.
    metrics:
        ``epoch`` and ``MeanDice``, a row for each validated epoch.

    Raises
    ------
    SystemExit
        If the last epoch was not validated: its weights are what is scored.
    """
    timing = timing.sort_values("epoch")
    until = dict(zip(timing["epoch"], timing["train_seconds"].cumsum(), strict=True))
    last, validated = int(timing["epoch"].iloc[-1]), metrics.sort_values("epoch")
    if last not in set(validated["epoch"]):
        sys.exit(
            f"error: epoch {last}, the last one, has no validation; wanted one, since its weights are what is scored"
        )
    curve = pandas.DataFrame(
        {
            "epoch": validated["epoch"].astype(int),
            "seconds": [until[e] for e in validated["epoch"]],
            "dice": validated[METRIC],
        }
    ).reset_index(drop=True)
    return Trained(last, float(until[last]), float(timing["validation_seconds"].sum()), curve)


def trained_splits(archive: Path) -> list[Trained]:
    """Each split of a built archive."""
    tables = [
        (split.logs.computational_tsv, split.validation_metrics.aggregated_tsv)
        for split in Archive(str(archive)).training.splits.values()
    ]
    return [trained(*(pandas.read_csv(table, sep="\t") for table in pair)) for pair in tables]


def mean_curve(runs: list[Trained]) -> pandas.DataFrame:
    """Mean Dice against mean seconds, over runs of the same epochs."""
    return pandas.concat([run.curve for run in runs]).groupby("epoch", as_index=False).mean()


def build(data: Path, folder: Path, cores: int, settings: list[str]) -> float:
    """Build one archive in ``folder`` as ``make hippocampus`` does; the seconds it took."""
    snakemake = Path(sys.executable).with_name("snakemake")
    command = [str(snakemake), "--cores", str(cores), "--quiet", "rules", "host", "--configfile", CONFIG, "--config"]
    started = time.perf_counter()
    done = subprocess.run([*command, f"data_root={data}", f"archives_dir={folder}", *settings], cwd=REPO)
    if done.returncode:
        sys.exit(f"error: {folder / NAME} was not built; Snakemake ended with {done.returncode}")
    return time.perf_counter() - started


def recipe_threads() -> int:
    """The threads that the recipe trains a split with."""
    return read_json(REPO / "config/recipes" / NAME / "config/config_train.json")["threads"]


def on_cpu(data: Path, folder: Path, seeds: list[int], cores: int, splits: list[str]) -> None:
    """Train each seed on the CPU, with the bare loop measured before, between and after."""
    from .bare_loop import BUDGET_STEPS, step_seconds

    threads = recipe_threads()
    runs, rows = [], []
    bare = [step_seconds(threads)]
    for seed in seeds:
        archive = folder / f"seed-{seed}" / NAME
        there = archive.exists()
        build(data, archive.parent, cores, [*splits, "device=cpu", f"set={{seed: {seed}}}"])
        bare.append(step_seconds(threads))
        of_seed = trained_splits(archive)
        runs += of_seed
        for number, run in enumerate(of_seed):
            name = f"{seed}" if len(of_seed) == 1 else f"{seed}, split {number}"
            rows.append([name, *_cells(run, bare[-2:], BUDGET_STEPS, there)])
    dice = fmean(run.last_dice for run in runs)
    judged = "reached" if dice >= WANTED_DICE else f"missed by {WANTED_DICE - dice:.4f}"
    note = (
        f"Mean Dice {dice:.4f}, wanted {WANTED_DICE}: {judged}. The budget is {BUDGET_STEPS:,} steps of the bare loop, with "
        f"{threads} thread{'s' if threads > 1 else ''} as in training."
    )
    columns = [
        "seed",
        "epochs",
        "training s",
        "validation s",
        "bare step before, after, ms",
        "budget s",
        "share",
        METRIC,
    ]
    show("Hippocampus: the last epoch on the cases held out", columns, rows, note)
    _show_curve(runs)


def _cells(run: Trained, bare: list[float], budget_steps: int, there: bool) -> list:
    """A row of the table, without the seed; of an archive that was there before no share, which would be of another hour."""
    budget = budget_steps * fmean(bare)
    return [
        run.epochs,
        f"{run.train_seconds:.0f}",
        f"{run.validation_seconds:.0f}",
        ", ".join(f"{1e3 * b:.0f}" for b in bare),
        f"{budget:.0f}",
        "trained earlier" if there else f"{run.train_seconds / budget:.2f}",
        f"{run.last_dice:.4f}",
    ]


def _show_curve(runs: list[Trained]) -> None:
    rows = [[int(r.epoch), f"{r.seconds:.0f}", f"{r.dice:.4f}"] for r in mean_curve(runs).itertuples()]
    show(f"Hippocampus: {METRIC} against time, mean of {len(runs)}", ["epoch", "training s", METRIC], rows)


def on_gpu(data: Path, folder: Path, cores: int, splits: list[str]) -> None:
    """Train five splits that share one GPU; the seconds of the whole build count."""
    import torch

    if not torch.cuda.is_available():
        sys.exit(
            f"error: torch {torch.__version__} sees no CUDA GPU, and this measures one; on the CPU: make bench-hippocampus"
        )
    archive = folder / "gpu" / NAME
    if archive.exists():
        sys.exit(f"error: {archive} is there already, so its time cannot be measured; move it away")
    sharing = [f"n_splits={GPU_SPLITS}", "device=cuda", "gpus=1", f"trainings_per_gpu={GPU_SPLITS}"]
    seconds = build(data, archive.parent, cores, [*(splits or sharing[:1]), *sharing[1:]])
    runs = trained_splits(archive)
    rows = [
        [n, run.epochs, f"{run.train_seconds:.0f}", f"{run.validation_seconds:.0f}", f"{run.last_dice:.4f}"]
        for n, run in enumerate(runs)
    ]
    dice = fmean(run.last_dice for run in runs)
    note = (
        f"{torch.cuda.get_device_name()}: the whole build of {len(runs)} splits took {seconds:.0f} s, wanted {WANTED_GPU_SECONDS:.0f}; "
        f"mean Dice {dice:.4f}, wanted {WANTED_DICE}."
    )
    columns = ["split", "epochs", "training s", "validation s", METRIC]
    show(f"Hippocampus: {len(runs)} splits on one GPU, the last epoch", columns, rows, note)
    _show_curve(runs)


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Has Task04_Hippocampus.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path), default="archives/bench", show_default=True, help="For the archives."
)
@click.option("--seeds", default="0 1 2", show_default=True)
@click.option(
    "--splits",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Given splits, as in config/README.md.",
)
@click.option("--cores", type=click.IntRange(1), default=2, show_default=True)
@click.option("--gpu", is_flag=True, help="Five splits on one GPU in place of the seeds on the CPU.")
def main(data: Path, folder: Path, seeds: str, splits: Path | None, cores: int, gpu: bool) -> None:
    """Mean Dice against training time, from archives that the workflow builds."""
    given = [f"splits={splits.resolve()}"] if splits else []
    if gpu:
        on_gpu(data.resolve(), folder, cores, given)
    else:
        on_cpu(data.resolve(), folder, [int(s) for s in seeds.split()], cores, given)


if __name__ == "__main__":
    main()
