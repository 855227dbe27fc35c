"""How long infer.sh takes a case, beside the same network in a plain MONAI script; run by hand on an archive that is complete.

    python tests/timing_infer.py ARCHIVE --data-root DIR [--runs 5]

Two figures, each the median over alternating runs: the prediction itself in one process, and whole processes, from the shell
on: ``commands/infer.sh`` with its evaluation deleted before, and ``python plain.py`` of the same cases.
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
from pathlib import Path
from statistics import median

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


def plain_command(archive: str, images: list[str], out: str, runs: int) -> list[str]:
    return [sys.executable, "-W", "ignore", "-c", PLAIN, archive, json.dumps(images), out, str(runs)]


def ours_in_process(archive: str, data_root: str, runs: int):
    """Seconds of the same prediction as the step does it, after its imports; no cached volumes."""
    from armarium.checkpoint_evaluation import published_network  # noqa: F401 (imports what the step does)
    from armarium.configure import read_effective
    from armarium.steps import cases_of, class_names, published_cases, recipe_of
    from armarium.testing import evaluate_published, torchscript_from

    script = Path(archive, "models/model.ts").read_bytes()
    cases = cases_of(archive, published_cases(archive, read_effective(archive, "publish")["publish"]))
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as cache:
            started = time.perf_counter()
            members = evaluate_published(
                recipe_of(archive), torchscript_from(script), cases, class_names(archive), data_root, cache, "cpu", True
            )
            for name, data in members.items():
                if name.endswith(".gz"):
                    Path(cache, os.path.basename(name)).write_bytes(data)
            yield time.perf_counter() - started


def in_process(archive: str, data_root: str, images: list[str], runs: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"infer.sh": [], "plain MONAI": []}
    with tempfile.TemporaryDirectory() as out:
        plain = subprocess.Popen(
            plain_command(archive, images, out, runs), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        ours = ours_in_process(archive, data_root, runs)
        for _ in range(runs):
            found["plain MONAI"].append(float(plain.stdout.readline()))
            found["infer.sh"].append(next(ours))
            plain.stdin.write("\n")
            plain.stdin.flush()
        plain.wait()
    return found


def whole(archive: str, images: list[str], runs: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"infer.sh": [], "plain MONAI": []}
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as out:
            found["plain MONAI"].append(seconds(plain_command(archive, images, out, 1)))
        os.unlink(f"{archive}/eval/evaluation.zip")
        for path in Path(archive, "eval").glob("*/*_seg.nii.gz"):
            shutil.rmtree(path.parent)
        found["infer.sh"].append(seconds([f"{archive}/commands/infer.sh", "print_conf=False"]))
    return found


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--data-root", default=".", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    from armarium.split_files import read_splits
    from armarium.steps import published_cases

    publish = json.loads(Path(given.archive, "config/effective/publish.json").read_text())["publish"]
    names = published_cases(given.archive, publish)
    cases = read_splits(f"{given.archive}/data/splits.json")["cases"]
    images = [f"{given.data_root}/{cases[name]['image'][0]}" for name in names]
    for what, found in (
        ("in one process", in_process(given.archive, given.data_root, images, given.runs)),
        ("whole processes", whole(given.archive, images, given.runs)),
    ):
        ours, plain = (median(values) / len(images) for values in found.values())
        print(
            f"{what}: infer.sh {ours:.3f} s a case, plain MONAI {plain:.3f} s a case ({len(images)} cases, {given.runs} runs)"
        )
        print("  " + json.dumps({k: [round(v, 3) for v in values] for k, values in found.items()}), flush=True)


if __name__ == "__main__":
    main()
