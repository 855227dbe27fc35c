"""What takes long, as one process does it or several together: in each of them the same function is called.

Each returns what is to be said of it (JSON values), and what it made by name; of several processes the first one's counts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .distributed import ALONE, Team
from .network import choose_device, make_deterministic
from .records import run_members
from .run import TRAINING_LOSS, ReadWorkspace, Workspace
from .tables import read_tsv
from .testing import evaluate_checkpoints, evaluate_torchscript
from .training import RepeatedTraining, SplitTraining
from .zips import zip_member

Made = tuple[dict, dict[str, bytes | str]]


def train(given: dict, files: dict[str, bytes], device: str, team: Team = ALONE) -> Made:
    """Train a split from the first epoch to the last, or go on with that, into its run.zip.

    Parameters
    ----------
    given:
        ``workspace``: what :class:`~armarium.run.Workspace` takes; ``training``: what
        :class:`~armarium.training.SplitTraining` takes, but for what differs between processes.
    files:
        What run.zip has on the environment.
    """
    workspace = _workspace(given["workspace"], team)
    training = SplitTraining(**_training(given["training"], device, team), workspace=workspace)
    progress = training.run()
    if team.is_first:
        workspace.finish(run_members(training, workspace.fingerprint, files))
    return {"device": str(training.device), "steps": len(progress.losses)}, {}


def add_epochs(given: dict, files: dict[str, bytes], device: str, team: Team = ALONE) -> Made:
    """Train up to the last of the listed epochs that the finished run ``given["run"]`` does not hold, to keep their weights."""
    run, workspace = Path(given["run"]), _workspace(given["workspace"], team)
    losses = read_tsv(zip_member(run, TRAINING_LOSS).decode(errors="replace"), f"{run}: {TRAINING_LOSS}")
    training = RepeatedTraining(**_training(given["training"], device, team), workspace=workspace, losses=losses)
    progress = training.run()
    return {"device": str(training.device), "steps": len(progress.losses)}, {}


def score_checkpoints(given: dict, files: dict[str, bytes], device: str, team: Team = ALONE) -> Made:
    """Tables of checkpoints; see :func:`~armarium.testing.evaluate_checkpoints`."""
    made = evaluate_checkpoints(**_numbered(given["evaluation"]), device=device, team=team)
    return {}, {f"{checkpoint}{name}": data for checkpoint, part in made.items() for name, data in part.items()}


def score_torchscript(given: dict, files: dict[str, bytes], device: str, team: Team = ALONE) -> Made:
    """Tables and predictions of a trusted TorchScript; see :func:`~armarium.testing.evaluate_torchscript`."""
    evaluation = _numbered(given["evaluation"])
    return {}, evaluate_torchscript(**evaluation, torchscript=files["model.ts"], device=device, team=team)


JOBS: dict[str, Callable[..., Made]] = {
    f.__name__: f for f in (train, add_epochs, score_checkpoints, score_torchscript)
}


def _workspace(given: dict, team: Team) -> Workspace:
    return (Workspace if team.is_first else ReadWorkspace)(**given)


def _training(given: dict, device: str, team: Team) -> dict:
    """What a training takes; from here on computing is deterministic."""
    make_deterministic(given["settings"])
    return {**_numbered(given), "device": team.device or choose_device(device), "team": team}


def _numbered(given: dict) -> dict:
    """The same with classes by number again: JSON has them by text."""
    return {**given, "class_names": {int(number): name for number, name in given["class_names"].items()}}
