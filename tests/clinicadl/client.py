"""What runs in ClinicaDL's own Python: one request a line, one answer a line, so that its import is paid once.

Nothing of Armarium is imported here: ClinicaDL has only the archive.
"""

from __future__ import annotations

import json
import shutil
import sys
import traceback
import warnings
from pathlib import Path

import torch

warnings.simplefilter("ignore")


def let_torchvision_import() -> None:
    """PyPI's torchvision has operators for CUDA alone; beside a CPU's torch their schemas must be there to import it.

    ClinicaDL uses only the definitions of its networks.
    """
    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        let_torchvision_import.library = library  # as long as it lives


let_torchvision_import()

import pandas  # noqa: E402
from clinicadl.callbacks import ModelCheckpointCallback, TrainingCheckpointCallback  # noqa: E402
from clinicadl.data.dataloader import Batch, DataLoader  # noqa: E402
from clinicadl.data.datasets import BidsDataset  # noqa: E402
from clinicadl.data.structures import DataPoint  # noqa: E402
from clinicadl.io.bids import BidsFileType  # noqa: E402
from clinicadl.io.maps import Maps  # noqa: E402
from clinicadl.losses.factory import get_loss_function_from_dict  # noqa: E402
from clinicadl.metrics import MetricsHandler  # noqa: E402
from clinicadl.metrics.config import LossMetricConfig  # noqa: E402
from clinicadl.models import SupervisedModel  # noqa: E402
from clinicadl.networks.factory import get_network_from_dict  # noqa: E402
from clinicadl.optim import OptimizationConfig  # noqa: E402
from clinicadl.optim.optimizers.config import AdamConfig  # noqa: E402
from clinicadl.optim.optimizers.factory import get_optimizer_from_dict  # noqa: E402
from clinicadl.split import Split  # noqa: E402
from clinicadl.train import ComputationalConfig, Trainer  # noqa: E402
from clinicadl.transforms import TransformsHandler  # noqa: E402
from clinicadl.transforms.config import RandomNoiseConfig  # noqa: E402
from torchio import ScalarImage  # noqa: E402

# ---- parts, one by one


def compare_networks(cases: str) -> list[dict]:
    """Largest difference of each network's output from the one that is given, in both modes, and keys that differ."""
    found = []
    for case in torch.load(cases, weights_only=True):
        network = get_network_from_dict(case["config"]).get_object().double()
        weights = {k.removeprefix("network."): v for k, v in case["weights"].items()}
        keys = sorted(network.state_dict().keys() ^ weights.keys())
        if not keys:
            network.load_state_dict(weights)
        with torch.no_grad():
            modes = {"eval": network.eval()(case["input"]), "train": network.train()(case["input"])}
        off = {mode: float((output - case[mode]).abs().max()) for mode, output in modes.items()}
        found.append({"keys": keys, **off})
    return found


def compare_losses(cases: str) -> list[float]:
    """Each loss on one-hot labels, less the value that is given."""
    found = []
    for case in torch.load(cases, weights_only=True):
        loss = get_loss_function_from_dict(case["config"]).get_object()
        found.append(float(loss(case["output"], case["label"]) - case["value"]))
    return found


def optimizer_groups(configs: list[dict]) -> list[dict]:
    """What torch's optimizers hold for their parameters when ClinicaDL has built them."""
    found = []
    for config in configs:
        optimizer = get_optimizer_from_dict(config).get_object(network=torch.nn.Linear(1, 1))
        group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        found.append({"class": type(optimizer).__name__, **group})
    return found


# ---- archives


ON_CPU = ComputationalConfig(gpu=False, amp=False, channels_last=False)


def opens(archive: str) -> str:
    """``ok``, or what ClinicaDL's reader says."""
    try:
        Maps(archive).read()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:400]
    return "ok"


def one_hot(classes: int):
    return lambda column: column.map(lambda number: [float(int(number) == i) for i in range(classes)])


def dataset(bids: str, classes: int | None = None, augmentations: tuple = ()) -> BidsDataset:
    """ClinicaDL's dataset over a folder: labels are one-hot, of the table or of mask files; of one class, numbers."""
    masks = None if classes else {"label": BidsFileType(data_type="anat", suffix="mask")}
    labels = {"label": None if classes == 1 else one_hot(classes)} if classes else None
    return BidsDataset(
        bids,
        BidsFileType(data_type="anat", suffix="T1w"),
        data=pandas.read_csv(Path(bids, "cases.tsv"), sep="\t"),
        columns=labels,
        masks=masks,
        transforms=TransformsHandler(augmentations=list(augmentations)),
    )


def rebuilt(archive: str) -> dict:
    """The classes of the Trainer that the archive alone gives."""
    trainer = Trainer.from_maps(archive)
    loaded = []
    for split in trainer.maps.training.splits.values():
        for name in split.models.get_all_models():
            path = split.models.get_checkpoint_dir(name).model_pt
            trainer.model.load_state_dict(trainer.maps.open_file(path))
            loaded.append(name)
    return {
        "model": type(trainer.model).__name__,
        "network": f"{type(trainer.model.network).__module__}.{type(trainer.model.network).__name__}",
        "loss": type(trainer.model.loss).__name__,
        "optimizer": type(trainer.model.optimizer).__name__,
        "metrics": trainer.metrics.config.metric_names,
        "loaded": loaded,
    }


def tested(
    archive: str,
    bids: str,
    checkpoint: str,
    classes: int | None = None,
    torchscript: str | None = None,
    metrics: list[str] | None = None,
) -> dict:
    """What ``Trainer.test`` writes for a checkpoint on the cases of a folder; the archive is a copy.

    ``torchscript`` names a network to pass as ``model=``, where the archive's is none of ClinicaDL's.
    """
    given = {} if torchscript is None else {"model": around(torch.jit.load(torchscript))}
    trainer = Trainer.from_maps(archive, **given)
    # One case a batch: ClinicaDL's LossMetric takes the cross entropies of a batch for the channels of one case.
    loader = DataLoader(dataset(bids, classes), batch_size=1)
    trainer.test(checkpoint, "again", dataloader=loader, metrics=metrics, computational=ON_CPU)
    split, _, model = checkpoint.partition("_")
    folder = Path(archive, "test/group-again/results", split, model, "metrics")
    tables = {name: pandas.read_csv(folder / f"{name}.tsv", sep="\t") for name in ("details", "aggregated")}
    return {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}


def around(network: torch.nn.Module) -> SupervisedModel:
    """What a user passes as ``model=``: their network in ClinicaDL's own model."""
    return SupervisedModel(network, torch.nn.CrossEntropyLoss(), AdamConfig())


def error_without_model(archive: str) -> str:
    try:
        Trainer.from_maps(archive)
    except Exception as error:
        return f"{type(error).__name__}: {error}; {type(error.__cause__).__name__}: {error.__cause__}"
    return "ok"


# ---- ClinicaDL where Armarium is tested for the same


class Killed(RuntimeError):
    pass


def new_trainer(maps: str, epochs: int, metrics: tuple[str, ...] = ("loss",), every: int = 1) -> Trainer:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten())
    return Trainer(
        maps,
        around(network),
        metrics={name: LossMetricConfig(loss_name="loss") for name in metrics},
        optimization=OptimizationConfig(num_epochs=epochs),
        callbacks=[
            *(ModelCheckpointCallback(metric=name) for name in metrics),
            ModelCheckpointCallback(save_last=True),
            TrainingCheckpointCallback(every_n_epochs=every),
        ],
    )


def split_of(bids: str, augmentations: tuple = (), index: int = 0, batch: int = 1) -> Split:
    cases = dataset(bids, 2, augmentations)
    pairs = sorted(cases.get_participant_session_couples())
    half = len(pairs) // 2
    split = Split(index=index, train_dataset=cases.subset(pairs[:half]), val_dataset=cases.subset(pairs[half:]))
    split.build_train_loader(batch_size=2, shuffle=True)
    split.build_val_loader(batch_size=batch)
    return split


SEEDED = ComputationalConfig(gpu=False, amp=False, channels_last=False, seed=0, deterministic=True)


def train(maps: str, bids: str, epochs: int, noise: bool, stop_after: int | None = None, every: int = 1) -> Trainer:
    """A training; one that stops after an epoch stops as a killed process does, without a word to its callbacks."""
    trainer = new_trainer(maps, epochs, every=every)
    split = split_of(bids, (RandomNoiseConfig(std=(0.5, 0.5)),) if noise else ())
    if stop_after is not None:
        stop_silently(trainer, stop_after)
    try:
        trainer.train(split, SEEDED)
    except Killed:
        pass
    return trainer


def stop_silently(trainer: Trainer, after: int) -> None:
    start_epoch = trainer._reset_epoch

    def reset_epoch(epoch: int, **more) -> None:
        if epoch > after:
            trainer._call_event = lambda *_, **__: None
            raise Killed
        start_epoch(epoch, **more)

    trainer._reset_epoch = reset_epoch


def weights_of(maps: str) -> dict[str, torch.Tensor]:
    return Maps.open_file(next(Path(maps).rglob("final/model.pt")))


def resumes_exactly(folder: str, bids: str, noise: bool) -> dict:
    """Largest difference of the weights of an interrupted and resumed training from an uninterrupted one's, and of a repeated one's."""
    for name in ("whole", "again"):
        train(f"{folder}/{name}", bids, 4, noise)
    train(f"{folder}/resumed", bids, 4, noise, stop_after=2)
    trainer = new_trainer_from(f"{folder}/resumed")
    trainer.resume(0, split_of(bids, (RandomNoiseConfig(std=(0.5, 0.5)),) if noise else ()))
    whole, again, resumed = (weights_of(f"{folder}/{n}") for n in ("whole", "again", "resumed"))
    return {
        "resumed": max(float((whole[k] - resumed[k]).abs().max()) for k in whole),
        "repeated": max(float((whole[k] - again[k]).abs().max()) for k in whole),
    }


def new_trainer_from(maps: str) -> Trainer:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten())
    return Trainer.from_maps(maps, model=around(network))


def after_a_crash_before_the_first_checkpoint(folder: str, bids: str) -> dict:
    """What ClinicaDL then says to reading, training again and resuming."""
    train(folder, bids, 3, False, stop_after=0)
    said = {"read": opens(folder)}
    for name, call in {
        "train": lambda: new_trainer_from(folder).train(split_of(bids), SEEDED),
        "resume": lambda: new_trainer_from(folder).resume(0, split_of(bids)),
    }.items():
        try:
            call()
            said[name] = "ok"
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"[:400]
    return said


def logs_after_a_crash(folder: str, bids: str) -> dict:
    """Epochs trained before a crash between two resume states, and rows that the logs then have."""
    train(folder, bids, 6, False, stop_after=3, every=2)
    table = next(Path(folder).rglob("training_loss.tsv"), None)
    text = table.read_text() if table else ""
    return {"trained": 3, "logged": sorted({line.split("\t")[0] for line in text.splitlines()[1:]})}


def while_a_second_split_starts(folder: str, bids: str) -> dict:
    """What another process sees of an archive between the making of a split's folder and its first files."""
    trainer = train(folder, bids, 1, False)
    said: dict[str, str] = {}
    go_on = trainer._train

    def _train(**given) -> None:
        said["read"] = opens(folder)
        go_on(**given)

    trainer._train = _train
    trainer.train(split_of(bids, index=1), SEEDED)
    said["afterwards"] = opens(folder)
    return said


def after_a_move_of_the_dataset(folder: str, bids: str) -> dict:
    """What a trained archive says to validating again once its dataset, then the archive itself, has moved."""
    trainer = train(f"{folder}/maps", bids, 1, False)
    saved = json.loads(Path(trainer.maps.training.data.train.splits[0].dataset_json).read_text())
    said = {"path": str(saved.get("bids"))}
    moved = f"{folder}/moved"
    shutil.move(bids, moved)
    try:
        new_trainer_from(f"{folder}/maps").validate(0, ["loss"])
        said["validate"] = "ok"
    except Exception as error:
        said["validate"] = f"{type(error).__name__}: {error}"[:400]
    finally:
        shutil.move(moved, bids)
    return said


def tests_of_each_split(folder: str, bids: str) -> dict:
    """A test set of one split that is the other's training set, as in nested cross-validation."""
    trainer = train(folder, bids, 1, False)
    used = pandas.read_csv(Path(folder, "training/data/train/split-0/data.tsv"), sep="\t")
    cases = dataset(bids, 2)
    second = Split(
        index=1,
        train_dataset=cases.subset(sorted(cases.get_participant_session_couples())[-2:]),
        val_dataset=cases.subset(sorted(cases.get_participant_session_couples())[-4:-2]),
    )
    second.build_train_loader(batch_size=2)
    second.build_val_loader(batch_size=1)
    trainer.train(second, SEEDED)
    try:
        loader = DataLoader(cases.subset(used), batch_size=1)
        trainer.test("split-1_final", "outer", dataloader=loader, computational=ON_CPU)
        return {"test": "ok"}
    except Exception as error:
        return {"test": f"{type(error).__name__}: {error}"[:400]}


def metric_names(folder: str, bids: str, names: list[str]) -> dict:
    """What a Trainer does with a metric of a name, from its making to the use of its best checkpoint."""
    said = {}
    for i, name in enumerate(names):
        maps = f"{folder}/{i}"
        step = "configured"
        try:
            trainer = new_trainer(maps, 1, metrics=(name,))
            step = "trained"
            trainer.train(split_of(bids), SEEDED)
            step = "tested"
            Trainer.from_maps(maps, model=around(new_trainer_from(maps).model.network))
            trainer.validate(0, [name], model_checkpoint=f"best-{name}")
            said[name] = "ok"
        except Exception as error:
            said[name] = f"not {step}: {type(error).__name__}: {error}"[:400]
    return said


def validation_in_batches(folder: str, bids: str) -> dict:
    """Cross entropy, validated two cases at once."""
    try:
        new_trainer(folder, 1).train(split_of(bids, batch=2), SEEDED)
        return {"train": "ok"}
    except Exception as error:
        return {"train": f"{type(error).__name__}: {error}"[:400]}


def softmax_before_two_metrics(softmax: dict) -> list[float]:
    """What each of two metrics is given of the output (1, 0), when each asks for a softmax before it."""
    postprocessing = {"name_": "PostprocessingHandler", "transforms": [softmax]}
    config = {"name_": "MAEMetric", "pred_key": "output", "label_key": "label", "get_not_nans": False}
    one = {**config, "postprocessing": postprocessing, "reduction": "mean"}
    described = {"name_": "MetricsHandler", "metrics": {"first": one, "second": one}, "metrics_on_cpu": True}
    metrics = MetricsHandler.from_dict(json.loads(json.dumps(described)))
    metrics.init_metrics(None)
    of_case = {"image": ScalarImage(tensor=torch.zeros(1, 2, 2, 2)), "participant_id": "sub-1", "session_id": "ses-1"}
    point = DataPoint(**of_case, output=torch.tensor([1.0, 0.0]), label=torch.tensor([0.0, 1.0]))
    found = metrics(Batch([point]))
    return [float(found[name].iloc[0]) for name in ("first", "second")]


def answer(request: dict) -> dict:
    try:
        return {"value": globals()[request["do"]](**request["with"])}
    except Exception:
        return {"error": traceback.format_exc()}


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # ClinicaDL prints
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
