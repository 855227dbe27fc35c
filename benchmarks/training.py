"""Training: samples a second and peak memory beside the bare loop and other trainers.

Each contender is a process of its own, kept warm, that computes an epoch when it is its turn; never two at once.
Everyone has the same network, loss, optimizer, batch and cases. With ``DATA=folder`` the cases are the first of
Task04_Hippocampus in it, else volumes of that size that Armarium makes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from .measuring import REPO, alternately, environment, ratios, show, spread

RECIPE = REPO / "config/recipes/hippocampus/config"
CASES = int(os.environ.get("CASES", 40))
"""Of an epoch; the more, the less its end weighs: a state is saved after each."""
PATCH = [40, 56, 40]
AFFINE = {
    "keys": ["image", "label"],
    "prob": 0.5,
    "rotate_range": [0.26, 0.26, 0.26],
    "scale_range": [0.1, 0.1, 0.1],
    "mode": ["bilinear", "nearest"],
    "padding_mode": "border",
}


def transforms_of(recipe: Mapping, augmentation: str, patch: list[int]) -> list[dict]:
    """The recipe's transforms with its own augmentation (``own``), with ``none``, or with ``affine`` in its place."""
    chain = json.loads(json.dumps(recipe["train"]["pre_transforms"]))
    by_name = {t["name"]: t["args"] for t in chain}
    by_name["RandSpatialCropd"]["roi_size"] = patch
    padded = by_name["SpatialPadd"]["spatial_size"]
    by_name["SpatialPadd"]["spatial_size"] = [max(sizes) for sizes in zip(padded, patch, strict=True)]
    first = [t["name"] for t in chain].index("RandSpatialCropd")
    if augmentation == "own":
        return chain
    crop = {"name": "CenterSpatialCropd", "args": {"keys": ["image", "label"], "roi_size": patch}}
    affine = {"name": "RandAffined", "args": AFFINE}
    return [*chain[:first], crop, *([affine] if augmentation == "affine" else [])]


@dataclass
class Contender:
    """A trainer in a process of its own; ``seconds`` are each turn's by the clock, ``cpu`` by the processor."""

    name: str
    process: subprocess.Popen
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: float = 0.0

    @classmethod
    def start(cls, name: str, module: str, task: Mapping, folder: Path, python: str = sys.executable) -> Contender:
        path = folder / f"{name.replace(' ', '_').replace(':', '').replace(',', '')}.json"
        path.write_text(json.dumps(task))
        said = open(path.with_suffix(".log"), "w+")  # noqa: SIM115 - the process writes there as long as it lives
        command = [python, "-m", f"{__package__}.contenders.{module}", str(path)]
        env = environment(OMP_NUM_THREADS=str(task["threads"]))
        pipe = subprocess.PIPE
        contender = cls(name, subprocess.Popen(command, cwd=folder, env=env, stdin=pipe, stdout=pipe, stderr=said))
        contender.log = path.with_suffix(".log")
        return contender

    def turn(self) -> float:
        """An epoch; samples a second."""
        try:
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            self.process.wait()
            sys.exit(f"error: {self.name} ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")
        self.seconds.append(answer["wall"])
        self.cpu.append(answer["cpu"])
        self.peak = max(self.peak, answer["peak"])
        return answer["samples"] / answer["wall"]

    def warmed(self) -> None:
        """Take a turn that does not count."""
        self.turn()
        self.seconds.clear()
        self.cpu.clear()

    def end(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # of one that ended by itself, which was told
            self.process.stdin.close()
        self.process.wait()


def settings_of(recipe: dict, transforms: list[dict], threads: int, **more) -> dict:
    """What ``config/effective/train.json`` would hold of the recipe with these transforms; the epochs never end."""
    from armarium.mmar_configs import environment_defaults
    from armarium.recipe import training_settings

    recipe = {**recipe, "epochs": 1000, "num_interval_per_valid": 1000, "threads": threads, **more}
    recipe["train"] = {**recipe["train"], "pre_transforms": transforms}
    settings = training_settings(recipe, environment_defaults(), "config_train.json")
    return {**settings, "task": "segmentation", "keep_epochs": [], "allow": []}


def peers() -> dict[str, tuple[str, str]]:
    """Trainers that are not installed with this one: name, module and interpreter, of those that the environment names."""
    named = {
        "ClinicaDL 2.0.0": ("clinicadl_trainer", "CLINICADL_PYTHON"),
        "nnU-Net v2": ("nnunet_trainer", "NNUNET_PYTHON"),
    }
    found = {}
    for name, (module, variable) in named.items():
        if python := os.environ.get(variable):
            found[name] = (module, python)
        else:
            print(f"{name} is left out: {variable} names no interpreter that has it", file=sys.stderr)
    return found


def contenders(task: dict, recipe: dict, threads: int) -> dict[str, tuple[str, dict, str]]:
    """Module, task and interpreter of each by name."""
    found = {"bare loop": ("bare", task, sys.executable)}
    for augmentation in ("none", "own", "affine"):
        transforms = transforms_of(recipe, augmentation, PATCH)
        settings = settings_of(recipe, transforms, threads)
        given = {**task, "pre_transforms": transforms, "settings": settings}
        found[f"Armarium: {augmentation}"] = ("armarium_trainer", given, sys.executable)
        found[f"plain MONAI: {augmentation}"] = ("plain_monai", given, sys.executable)
    for name, (module, python) in peers().items():
        found[name] = (module, {**task, "pre_transforms": transforms_of(recipe, "none", PATCH)}, python)
    return found


def prepared(folder: Path, task: dict) -> dict:
    """The task with its cases and the bare loop's tensors, written below ``folder``."""
    path = folder / "data.json"
    task = {**task, "tensors": str(folder / "tensors.pt"), "described": str(folder / "cases.json")}
    path.write_text(json.dumps(task))
    subprocess.run(
        [sys.executable, "-m", f"{__package__}.contenders.data", str(path)], check=True, cwd=folder, env=environment()
    )
    return {**task, "cases": json.loads((folder / "cases.json").read_text())}


def compared(rounds: int, wanted: dict[str, tuple[str, dict, str]], folder: Path) -> list[Contender]:
    """Everyone's turns, alternating."""
    started: list[Contender] = []
    try:
        for name, (module, task, python) in wanted.items():
            started.append(Contender.start(name, module, task, folder, python))
            started[-1].warmed()
        alternately({contender.name: contender.turn for contender in started}, rounds)
    finally:
        for contender in started:
            contender.end()
    return started


def table(found: list[Contender], samples: int) -> list[list]:
    """A row each: samples a second, its ratio to the first's by the clock and by processor time, ours to it, and memory."""
    bare, by_name = found[0], {c.name: c for c in found}
    return [
        [
            c.name,
            f"{median(samples / s for s in c.seconds):.2f}",
            spread(ratios(bare.seconds, c.seconds)),
            spread(ratios(bare.cpu, c.cpu)),
            spread(ratios(c.seconds, by_name[ours].seconds)) if (ours := _doing_the_same(c.name)) in by_name else "",
            f"{c.peak:.0f} ({c.peak / bare.peak:.2f})",
        ]
        for c in found
    ]


def _doing_the_same(peer: str) -> str:
    """Which of ours a peer is compared with: nnU-Net's own augmentation is affine for the most part."""
    kind, _, augmentation = peer.partition(": ")
    return {
        "plain MONAI": f"Armarium: {augmentation}",
        "ClinicaDL 2.0.0": "Armarium: none",
        "nnU-Net v2": "Armarium: affine",
    }.get(kind, "")


COLUMNS = [
    "trainer",
    "samples/s",
    "to the bare loop, by the clock",
    "by processor time",
    "Armarium's to this one's",
    "peak MiB (to the bare loop's)",
]


def measure(rounds: int) -> None:
    """Print a table for one thread and one for two."""
    recipe = json.loads((RECIPE / "config_train.json").read_text())
    recipe["batch_size"] = 2
    data = os.environ.get("DATA")
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        task = {
            **{k: recipe["train"][k] for k in ("model", "loss")},
            "optimizer": {"name": "AdamW", "args": {"lr": 0.002, "weight_decay": 0.01}},
            "batch_size": 2,
            "patch": PATCH,
            "amp": False,
            "device": "cpu",
            "count": CASES,
            "shape": [36, 50, 36],
            "listed": "Task04_Hippocampus/dataset.json" if data else None,
            "data_root": os.path.abspath(data) if data else f"{folder}/data",
            "cache": f"{folder}/cache",
            "pre_transforms": transforms_of(recipe, "none", PATCH),
        }
        task = prepared(folder, {**task, "threads": 1})
        for threads in map(int, os.environ.get("THREADS", "1 2").split()):
            found = compared(rounds, contenders({**task, "threads": threads}, recipe, threads), folder)
            of = f"{CASES} {'real' if data else 'synthetic'} cases an epoch, batches of 2, {rounds} rounds"
            show(
                f"Training on a CPU, {threads} thread{'s' if threads > 1 else ''} ({of})", COLUMNS, table(found, CASES)
            )


if __name__ == "__main__":
    measure(3)
