"""Cases a second of what ``infer.sh`` does, beside the same network in a plain MONAI script.

``make bench SUBJECTS=inference`` builds the demo for it. For an archive of your own, complete, in the project's folder:

    PYTHONPATH=workflow python -m benchmarks.inference ARCHIVE --data-root DIR --rounds 5

In one process, imports done, the prediction itself is timed; and whole processes, from the shell on: ``commands/infer.sh``
with its predictions deleted before, and ``python plain.py`` of the same cases. The archive's ``eval/`` is as before
afterwards, also where a run fails or is interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import click

from .measuring import alternately, ratios, show, spread, whole_process
from .projects import Project

PLAIN = """
import sys, json, time
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.bundle import ConfigParser
bundle, images, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
parser = ConfigParser()
parser.read_config(f"{bundle}/configs/inference.json")
parser["bundle_root"], parser["output_dir"] = bundle, out
before, after = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("postprocessing")
inferer = parser.get_parsed_content("inferer")
network = torch.jit.load(f"{bundle}/models/model.ts").eval()
torch.set_num_threads(1)
def predict():
    started = time.perf_counter()
    with torch.no_grad():
        for batch in DataLoader(Dataset([{"image": i} for i in images], before), batch_size=1):
            batch["pred"] = inferer(batch["image"], network)
            for item in decollate_batch(batch):
                after(item)
    return time.perf_counter() - started
if sys.argv[4] == "once":
    predict()
else:
    for _ in sys.stdin:
        print(predict(), flush=True)
"""
"""MONAI's own transforms, loader, inferer and writer, with the archive's TorchScript."""
OURS, PREPARED, THEIRS, NOTHING = (
    "infer.sh",
    "infer.sh, volumes prepared before",
    "plain MONAI",
    "infer.sh, nothing to do",
)


def measure(rounds: int) -> None:
    """Of the demo, built for it."""
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder, "project"))
        project.snakemake()
        of_archive(str(project.folder / "archives/demo"), str(project.folder), rounds)


def of_archive(archive: str, data_root: str, rounds: int) -> None:
    """Of an archive that is complete."""
    # infer.sh takes the first python3, which is to be the one that runs this.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    check(archive)
    images = images_of(archive, data_root)
    with restored(Path(archive, "eval")):
        found = in_process(archive, data_root, images, rounds)
        tell("Inference in one process", found, len(images))
        found, step = whole(archive, images, rounds)
        tell(
            "Inference in processes of its own", found, len(images), f"Of infer.sh's, {spread(step, 2)} s are its step."
        )


def tell(what: str, found: dict[str, list[float]], cases: int, note: str = "") -> None:
    rows = [
        (
            name,
            f"{cases / median(seconds):.2f}",
            f"{median(seconds) / cases:.3f}",
            spread(seconds, 2),
            f"{median(ratios(found[THEIRS], seconds)):.2f}",
        )
        for name, seconds in found.items()
    ]
    columns = ("", "cases/s", "s a case", f"s of {cases} cases", "of plain MONAI's speed")
    show(f"{what}, {len(found[THEIRS])} rounds", columns, rows, note)


# ---- in one process


def in_process(archive: str, data_root: str, images: list, rounds: int) -> dict[str, list[float]]:
    """Seconds of the same prediction as the step does it, with no volumes prepared and with them, and as the script does it."""
    with tempfile.TemporaryDirectory() as spare, plain_process(archive, images, spare) as plain:
        kept = Path(spare, "prepared")
        kept.mkdir()

        def anew() -> float:
            with tempfile.TemporaryDirectory(dir=spare) as cache:
                return predicted(archive, data_root, cache)

        predicted(archive, data_root, str(kept))
        runs = {OURS: anew, PREPARED: lambda: predicted(archive, data_root, str(kept)), THEIRS: plain}
        return alternately(runs, rounds)


def predicted(archive: str, data_root: str, cache: str) -> float:
    """Seconds of scoring the published model and writing its predictions, as the step does it."""
    from armarium.configure import read_effective
    from armarium.steps import cases_of, published_cases, published_evaluation_of
    from armarium.testing import evaluate_torchscript

    script = Path(archive, "models/model.ts").read_bytes()
    cases = cases_of(archive, published_cases(archive, read_effective(archive, "publish")["publish"]))
    given = {**published_evaluation_of(archive, cases, cache), "data_root": data_root, "keep_predictions": True}
    started = time.perf_counter()
    for name, data in evaluate_torchscript(script, **given, device="cpu").items():
        Path(cache, os.path.basename(name)).write_bytes(data if isinstance(data, bytes) else data.encode())
    return time.perf_counter() - started


def plain_command(archive: str, images: list, out: str, how: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-c", PLAIN, archive, json.dumps(images), out, how]


@contextmanager
def plain_process(archive: str, images: list, out: str):
    """A function that has a running plain script predict once, and gives the seconds that it took."""
    command = plain_command(archive, images, out, "when asked")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def predict() -> float:
        print(file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            sys.exit(f"error: the plain MONAI script ended with {process.wait()}; what it says is above")
        return float(line)

    try:
        predict()
        yield predict
    finally:
        process.stdin.close()
        process.wait()


# ---- in processes of its own


def whole(archive: str, images: list, rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of whole processes; and of infer.sh's step."""
    step: list[float] = []

    def ours() -> float:
        delete_predictions(archive)
        seconds = whole_process(infer(archive)).wall
        record = json.loads(Path(archive, "provenance/evaluate_published.json").read_text())
        step.append(record["resources"]["wall_seconds"])
        return seconds

    with tempfile.TemporaryDirectory() as out:
        command = plain_command(archive, images, out, "once")
        runs = {
            OURS: ours,
            NOTHING: lambda: whole_process(infer(archive)).wall,
            THEIRS: lambda: whole_process(command).wall,
        }
        return alternately(runs, rounds), step


def infer(archive: str) -> list[str]:
    return [f"{archive}/commands/infer.sh", "print_conf=False"]


def delete_predictions(archive: str) -> None:
    """What infer.sh makes: the evaluation, and each case's segmentation or the table of all."""
    folder = Path(archive, "eval")
    folder.joinpath("evaluation.zip").unlink()
    for name in ("probabilities.tsv", "predictions.tsv"):
        folder.joinpath(name).unlink(missing_ok=True)
    for path in folder.glob("*/*_seg.nii.gz"):
        if path.parent.name not in ("ckpt", "ensemble"):
            path.unlink()


@contextmanager
def restored(folder: Path) -> Iterator[None]:
    """Puts a folder back as it was, with its files' times, unless its bytes are what they were."""
    with tempfile.TemporaryDirectory() as spare:
        kept = Path(spare, folder.name)
        shutil.copytree(folder, kept)
        try:
            yield
        finally:
            if contents(folder) != contents(kept):
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(kept, folder)
                print(f"{folder}: put back as it was", file=sys.stderr)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check(archive: str) -> None:
    """Refuse an archive that is not complete, or whose infer.sh does not run, before anything is timed or deleted."""
    for name in ("config/effective/publish.json", "commands/infer.sh", "models/model.ts", "eval/evaluation.zip"):
        if not Path(archive, name).is_file():
            sys.exit(f"error: {archive}/{name}: file not found; wanted an archive that is complete: build it first")
    whole_process(infer(archive))


def images_of(archive: str, data_root: str) -> list[str | list[str]]:
    """Of each case that infer.sh predicts, its file, or one for each channel."""
    from armarium.configure import read_effective
    from armarium.split_files import read_splits
    from armarium.steps import published_cases

    cases = read_splits(f"{archive}/data/splits.json")["cases"]
    names = published_cases(archive, read_effective(archive, "publish")["publish"])
    files = [[f"{data_root}/{image}" for image in cases[name]["image"]] for name in names]
    return [channels if len(channels) > 1 else channels[0] for channels in files]


@click.command()
@click.argument("archive", type=click.Path(file_okay=False, exists=True, resolve_path=True))
@click.option("--data-root", default=".", show_default=True, type=click.Path(exists=True, resolve_path=True))
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Runs of each, in turn.")
def main(archive: str, data_root: str, rounds: int) -> None:
    """Time ARCHIVE's infer.sh beside a plain MONAI script."""
    of_archive(archive, data_root, rounds)


if __name__ == "__main__":
    main()
