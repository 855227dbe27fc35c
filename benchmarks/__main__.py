"""``python -m benchmarks [SUBJECT …]``: what Armarium costs, measured beside what it is compared with."""

from __future__ import annotations

import sys
from importlib import import_module

import click

SUBJECTS = {
    "training": "samples a second: this trainer, the bare loop, plain MONAI, ClinicaDL, nnU-Net",
    "gpu": "the same on a GPU, with what a recipe may ask for; skipped where there is none",
    "inference": "cases a second beside a plain MONAI script",
    "preparation": "the first, the second and a third archive on the same data",
    "pipeline": "a whole build beside the sum of its training steps; each kind of artifact, when it alone is missing",
    "planning": "Snakemake's plan of 1 to 1,000 archives, whole and of one target",
    "memory": "peaks of training, evaluating a large volume, 100,000 cases; an archive's size",
}
"""Each is a module beside this one, with ``measure(rounds)``."""


@click.command()
@click.argument("subjects", nargs=-1, type=click.Choice(list(SUBJECTS)))
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Runs of each, in turn.")
def main(subjects: tuple[str, ...], rounds: int) -> None:
    """Measure SUBJECTS, or all of them."""
    for subject in subjects or SUBJECTS:
        import_module(f".{subject}", __package__).measure(rounds)


if __name__ == "__main__":
    sys.exit(main())
