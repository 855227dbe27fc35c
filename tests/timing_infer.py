"""How long infer.sh takes a case, beside the same network in a plain MONAI script; run by hand on an archive that is complete.

    python tests/timing_infer.py ARCHIVE --data-root DIR [--runs 5]

Two figures, each the median over alternating runs: the prediction itself in one process, and whole processes, from the shell
on: ``commands/infer.sh`` with its predictions deleted before, and ``python plain.py`` of the same cases. Of infer.sh's is told what
it consists of. The archive's ``eval/`` is as before afterwards, also where a run fails or is interrupted.
"""

from __future__ import annotations

import argparse
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

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
for _ in range(int(sys.argv[4])):
    print(predict(), flush=True)
    sys.stdin.readline()
"""
"""MONAI's own transforms, loader, inferer and writer, with the archive's TorchScript."""


def plain_command(archive: str, images: list[str | list[str]], out: str, runs: int) -> list[str]:
    return [sys.executable, "-W", "ignore", "-c", PLAIN, archive, json.dumps(images), out, str(runs)]


def ours_in_process(archive: str, data_root: str, runs: int) -> Iterator[tuple[float, float]]:
    """Seconds of the same prediction as the step does it, after its imports: with no prepared volumes, and with them."""
    from armarium.configure import read_effective
    from armarium.steps import cases_of, published_cases, published_evaluation_of
    from armarium.testing import evaluate_torchscript

    script = Path(archive, "models/model.ts").read_bytes()
    cases = cases_of(archive, published_cases(archive, read_effective(archive, "publish")["publish"]))
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as cache:
            given = {**published_evaluation_of(archive, cases, cache), "data_root": data_root, "keep_predictions": True}
            found = []
            for _ in ("empty cache", "filled cache"):
                started = time.perf_counter()
                for name, data in evaluate_torchscript(script, **given, device="cpu").items():
                    Path(cache, os.path.basename(name)).write_bytes(data if isinstance(data, bytes) else data.encode())
                found.append(time.perf_counter() - started)
            yield found[0], found[1]


def in_process(archive: str, data_root: str, images: list, runs: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"infer.sh": [], "infer.sh, volumes prepared before": [], "plain MONAI": []}
    with tempfile.TemporaryDirectory() as out:
        command = plain_command(archive, images, out, runs)
        plain = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ours = ours_in_process(archive, data_root, runs)
        for _ in range(runs):
            line = plain.stdout.readline()
            if not line:
                sys.exit(f"error: the plain MONAI script ended with {plain.wait()}; what it says is above")
            found["plain MONAI"].append(float(line))
            for name, seconds in zip(list(found)[:2], next(ours), strict=True):
                found[name].append(seconds)
            plain.stdin.write("\n")
            plain.stdin.flush()
        plain.wait()
    return found


def whole(archive: str, images: list, runs: int) -> dict[str, list[float]]:
    """Seconds of whole processes, and of what infer.sh's consist of."""
    found: dict[str, list[float]] = {n: [] for n in ("infer.sh", "nothing to do", "its step", "plain MONAI")}
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as out:
            found["plain MONAI"].append(timed(plain_command(archive, images, out, 1)))
        delete_predictions(archive)
        found["infer.sh"].append(timed(infer(archive)))
        step = json.loads(Path(archive, "provenance/evaluate_published.json").read_text())
        found["its step"].append(step["resources"]["wall_seconds"])
        found["nothing to do"].append(timed(infer(archive)))
    return found


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


def timed(command: list[str]) -> float:
    """Seconds that a command takes; where it fails, this script ends with what it said."""
    started = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-4000:]
        sys.exit(f"error: {command[0]} ended with {done.returncode}; it said:\n{said}")
    return seconds


def check(archive: str) -> None:
    """Refuse an archive that is not complete, or whose infer.sh does not run, before anything is timed or deleted."""
    for name in ("config/effective/publish.json", "commands/infer.sh", "models/model.ts", "eval/evaluation.zip"):
        if not Path(archive, name).is_file():
            sys.exit(f"error: {archive}/{name}: file not found; wanted an archive that is complete: build it first")
    timed(infer(archive))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--data-root", default=".", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    # infer.sh takes the first python3, which is to be the one that runs this.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    check(given.archive)
    images = images_of(given.archive, given.data_root)
    with restored(Path(given.archive, "eval")):
        tell("in one process", in_process(given.archive, given.data_root, images, given.runs), len(images))
        tell("whole processes", whole(given.archive, images, given.runs), len(images))


def images_of(archive: str, data_root: str) -> list[str | list[str]]:
    """Of each case that infer.sh predicts, its file, or one for each channel."""
    from armarium.configure import read_effective
    from armarium.split_files import read_splits
    from armarium.steps import published_cases

    cases = read_splits(f"{archive}/data/splits.json")["cases"]
    names = published_cases(archive, read_effective(archive, "publish")["publish"])
    files = [[f"{data_root}/{image}" for image in cases[name]["image"]] for name in names]
    return [channels if len(channels) > 1 else channels[0] for channels in files]


def tell(what: str, found: dict[str, list[float]], cases: int) -> None:
    print(f"{what}: median of {len(found['infer.sh'])} runs, {cases} cases")
    for name, values in found.items():
        seconds = median(values)
        runs = ", ".join(f"{v:.2f}" for v in values)
        print(f"  {name:<34} {seconds:7.2f} s   {seconds / cases:6.3f} s a case   ({runs})", flush=True)


if __name__ == "__main__":
    main()
