"""nnU-Net v2's own pipeline and trainer on the same cases: its preprocessing, augmentation and step; the network, loss, optimizer,
patch and batch of the task. Its interpreter needs MONAI beside it, which the network is of."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from .turns import Turns, use_torch

NAME = "Dataset001_Benchmark"


def write_raw(folder: Path, task: dict) -> int:
    """The cases in nnU-Net's layout; how many."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number, case in enumerate(task["cases"]):
        shutil.copy(Path(task["data_root"], case["image"]), folder / f"imagesTr/case_{number:03d}_0000.nii.gz")
        shutil.copy(Path(task["data_root"], case["label"]), folder / f"labelsTr/case_{number:03d}.nii.gz")
    described = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "anterior": 1, "posterior": 2}}
    described |= {"numTraining": len(task["cases"]), "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(described))
    return len(task["cases"])


def main() -> None:
    turns = Turns()
    task = turns.task
    folder = Path(tempfile.mkdtemp(dir=Path(task["tensors"]).parent))
    for kind in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{kind}"] = str(folder / kind)
    os.environ.update(nnUNet_n_proc_DA="1")  # to plan; none is refused there
    os.environ.setdefault("nnUNet_compile", "True" if task.get("compile") else "False")
    cases = write_raw(folder / "raw" / NAME, task)
    torch = use_torch(turns)
    import monai
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class Trainer(nnUNetTrainer):
        @staticmethod
        def build_network_architecture(plans_manager, *_, **__):
            return getattr(monai.networks.nets, task["model"]["name"])(**task["model"]["args"])

        def _build_loss(self):
            return getattr(monai.losses, task["loss"]["name"])(**task["loss"]["args"])

        def configure_optimizers(self):
            made = getattr(torch.optim, task["optimizer"]["name"])
            optimizer = made(self.network.parameters(), **task["optimizer"]["args"])
            return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

        def set_deep_supervision_enabled(self, enabled: bool) -> None:
            pass

        def plot_network_architecture(self) -> None:
            pass

    extract_fingerprints([1], num_processes=1)
    plan_experiments([1])
    preprocess([1], configurations=["3d_fullres"], num_processes=[1])
    where = folder / "preprocessed" / NAME
    plans = json.loads((where / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"] |= {"patch_size": task["patch"], "batch_size": task["batch_size"]}
    plans["continue_training"] = False
    described = json.loads((folder / "raw" / NAME / "dataset.json").read_text())
    trainer = Trainer(plans, "3d_fullres", "all", described, torch.device(task["device"]))
    trainer.enable_deep_supervision = False
    # Its processes that augment, beside the one that trains; none where only one core is lent.
    os.environ.update(nnUNet_n_proc_DA=str(task["threads"] - 1 if task["device"] == "cpu" else 12))
    trainer.on_train_start()
    torch.set_num_threads(task["threads"])
    steps = -(-cases // task["batch_size"])

    def epoch() -> int:
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in range(steps)])
        return steps * task["batch_size"]

    turns.serve(epoch)


if __name__ == "__main__":
    main()
