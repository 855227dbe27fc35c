"""ClinicaDL 2.0.0's own trainer on the same tensors: its tensor dataset, a training checkpoint after each epoch."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .turns import Turns, use_torch


def let_torchvision_import(torch) -> None:
    """PyPI's torchvision has operators for CUDA alone; beside a CPU's torch their schemas must be there to import it."""
    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        let_torchvision_import.library = library  # as long as it lives


def write_bids(folder: Path, images, labels) -> None:
    """A BIDS folder of the prepared tensors as files."""
    import nibabel
    import numpy

    (folder / "dataset_description.json").write_text(
        '{"Name": "benchmark", "BIDSVersion": "1.10.0", "DatasetType": "raw"}'
    )
    rows = ["participant_id\tsession_id"]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = f"sub-{number:03d}"
        anat = folder / name / "ses-M000" / "anat"
        anat.mkdir(parents=True)
        for suffix, tensor in {"T1w": image, "mask": label}.items():
            file = nibabel.Nifti1Image(tensor[0].numpy(), numpy.eye(4))
            nibabel.save(file, anat / f"{name}_ses-M000_{suffix}.nii.gz")
        rows.append(f"{name}\tses-M000")
    (folder / "cases.tsv").write_text("\n".join(rows) + "\n")


def main() -> None:
    turns = Turns()
    torch = use_torch(turns)
    let_torchvision_import(torch)
    import monai
    import pandas
    from clinicadl.callbacks import TrainingCheckpointCallback
    from clinicadl.callbacks.base import Event
    from clinicadl.data.datasets import BidsDataset
    from clinicadl.io.bids import BidsFileType
    from clinicadl.models import SupervisedModel
    from clinicadl.optim import OptimizationConfig
    from clinicadl.optim.optimizers.config import AdamConfig
    from clinicadl.split import Split
    from clinicadl.train import ComputationalConfig, Trainer

    class InTurns(Trainer):
        def _reset_epoch(self, *given, **more) -> None:
            turns.wait()
            super()._reset_epoch(*given, **more)

        def _call_event(self, event, **more) -> None:
            super()._call_event(event, **more)
            if event == Event.EPOCH_END:
                turns.done(len(turns.task["cases"]))

    task = turns.task
    folder = Path(tempfile.mkdtemp(dir=Path(task["tensors"]).parent))
    bids = folder / "bids"
    bids.mkdir()
    images, labels = torch.load(task["tensors"], weights_only=True)
    one_more = [torch.cat([t, t[:1]]) for t in (images, labels)]  # to validate on: it refuses what it trains on
    write_bids(bids, *one_more)
    data = BidsDataset(
        bids,
        BidsFileType(data_type="anat", suffix="T1w"),
        data=pandas.read_csv(bids / "cases.tsv", sep="\t"),
        masks={"label": BidsFileType(data_type="anat", suffix="mask")},
    ).to_tensors()
    couples = sorted(data.get_participant_session_couples())
    split = Split(index=0, train_dataset=data.subset(couples[:-1]), val_dataset=data.subset(couples[-1:]))
    split.build_train_loader(batch_size=task["batch_size"], shuffle=True, pin_memory=task["device"] == "cuda")
    split.build_val_loader(batch_size=1, pin_memory=task["device"] == "cuda")
    model = SupervisedModel(
        getattr(monai.networks.nets, task["model"]["name"])(**task["model"]["args"]),
        getattr(monai.losses, task["loss"]["name"])(**task["loss"]["args"]),
        AdamConfig(
            **{k: task["optimizer"]["args"][k] for k in ("lr", "weight_decay")}
        ),  # it has no AdamW, which costs the same
    )
    trainer = InTurns(
        folder / "maps",
        model,
        optimization=OptimizationConfig(num_epochs=100000, evaluation_interval=100000),
        callbacks=[TrainingCheckpointCallback(every_n_epochs=1)],
    )
    on_gpu = task["device"] == "cuda"
    given = {"gpu": on_gpu, "amp": task["amp"], "channels_last": bool(task.get("channels_last"))}
    trainer.train(split, ComputationalConfig(**given, seed=0, deterministic=not on_gpu))


if __name__ == "__main__":
    main()
