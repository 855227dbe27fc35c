"""An archive as an object: every file by the attribute that ClinicaDL's ``Maps`` has for it, and ours beside them.

``archive.training.splits[0].models.final.model_pt`` is a path; nothing is read before it is asked for. A folder's
attributes are the names of its files with ``_`` for ``.``. What an archive has any number of (splits, metrics,
epochs, groups) is looked up in its folders each time. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import layout
from .boundary import check_boundary
from .errors import UserError
from .naming import CASE
from .opening import inside, open_file
from .results import INDEX, results_of, results_table
from .split_files import read_splits

if TYPE_CHECKING:
    import nibabel
    import pandas
    import torch

    from .predicting import Predictor

Key, Value = TypeVar("Key", int, str), TypeVar("Value")
NUMBER = re.compile(r"0|[1-9][0-9]*")
PUBLISHED, PUBLISHED_FINAL = "published", "published-final"
"""The names of ``models/model.pt`` and ``models/final_model.pt`` among the checkpoints."""


class NotThere(UserError, KeyError):
    """No such split, metric, epoch or group; the message says which there are."""

    __str__ = Exception.__str__


class Found(dict[Key, Value], Generic[Key, Value]):
    """What lies in a folder, by number or name, in order."""

    def __init__(self, items: Mapping[Key, Value], folder: str):
        super().__init__(items)
        self.folder = folder

    def __missing__(self, key: Key) -> Value:
        raise NotThere(f"{self.folder}: no {key!r}; it has {', '.join(map(str, self)) or 'none'}")


def _names(path_of: Callable[[str], str]) -> tuple[str, list[str]]:
    """The folder that ``path_of`` leads to, and what follows its prefix in the names of the folders there."""
    folder, prefix = os.path.split(path_of(""))
    try:
        with os.scandir(folder) as entries:
            found = [e.name for e in entries if e.name.startswith(prefix) and e.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        found = []
    return folder, [name.removeprefix(prefix) for name in found if not name.startswith(".")]


def _named(path_of: Callable[[str], str], make: Callable[[str], Value]) -> Found[str, Value]:
    folder, names = _names(path_of)
    return Found({name: make(name) for name in sorted(names)}, folder)


def _numbered(path_of: Callable[[str], str], make: Callable[[int], Value]) -> Found[int, Value]:
    folder, names = _names(path_of)
    if wrong := [path_of(name) for name in names if not NUMBER.fullmatch(name)]:
        raise UserError(f"{wrong[0]}: wanted a whole number at the end of this folder's name; move it elsewhere")
    return Found({number: make(number) for number in sorted(map(int, names))}, folder)


class Folder:
    """A folder of an archive: ``path``, and each file that belongs into it by its name, ``data.tsv`` as ``data_tsv``."""

    path: Path

    def __init__(self, path: str, files: Iterable[str]):
        self.path = Path(path)
        for file in files:
            setattr(self, os.path.basename(file).replace(".", "_"), Path(file))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


# ---- parts that several folders have


class DataDir(Folder):
    """A set of cases."""

    data_tsv: Path
    dataset_json: Path
    dataloader_json: Path

    def __init__(self, path: str):
        super().__init__(path, layout.data_folder_files(path))


class MetricsDir(Folder):
    """Scores: over the set, per case, per class, per case and class."""

    aggregated_tsv: Path
    details_tsv: Path
    classes_tsv: Path
    class_details_tsv: Path

    def __init__(self, path: str):
        super().__init__(path, layout.metric_tables(path))


class ModelDir(Folder):
    """A checkpoint: weights, the same as TorchScript, and its validation."""

    model_pt: Path
    model_ts: Path
    warning_log: Path

    def __init__(self, path: str):
        super().__init__(path, [layout.checkpoint_pt(path), layout.checkpoint_ts(path), layout.warning_log(path)])
        self.validation_metrics = MetricsDir(layout.validation_metrics(path))


# ---- training


class SplitsDataDir(Folder):
    """The cases of one side, by split."""

    def __init__(self, archive: str, side: str):
        super().__init__(os.path.dirname(layout.side_dir(archive, side, "")), [])
        self._of = lambda split: layout.side_dir(archive, side, split)

    @property
    def splits(self) -> Found[int, DataDir]:
        return _numbered(self._of, lambda split: DataDir(self._of(split)))

    @property
    def splits_list(self) -> list[int]:
        return list(self.splits)


class TrainingDataDir(Folder):
    """The cases of all splits; ``train`` and ``validation`` of each."""

    data_tsv: Path

    def __init__(self, archive: str):
        data = layout.training_data_tsv(archive)
        super().__init__(os.path.dirname(data), [data])
        self.train = SplitsDataDir(archive, layout.TRAIN)
        self.validation = SplitsDataDir(archive, layout.VALIDATION)


class LogsDir(Folder):
    """Loss, learning rates and times of a split's training; ``learning_rates`` is a folder with a table per optimizer."""

    training_loss_tsv: Path
    computational_tsv: Path
    learning_rates: Path

    def __init__(self, archive: str, split: int):
        rates = layout.learning_rates_dir(archive, split)
        super().__init__(layout.logs_dir(archive, split), [*layout.log_tables(archive, split), rates])


class BestModelsDir(Folder):
    """The best checkpoint by each metric."""

    def __init__(self, archive: str, split: int):
        self._of = lambda metric: layout.checkpoint_dir(archive, split, f"best-{metric}")
        super().__init__(os.path.dirname(self._of("")), [])

    @property
    def metrics(self) -> Found[str, ModelDir]:
        return _named(self._of, lambda metric: ModelDir(self._of(metric)))

    @property
    def metrics_list(self) -> list[str]:
        return list(self.metrics)


class CheckpointsDir(Folder):
    """The checkpoints that were selected by epoch."""

    def __init__(self, archive: str, split: int):
        self._of = lambda epoch: layout.checkpoint_dir(archive, split, f"epoch-{epoch}")
        super().__init__(os.path.dirname(self._of("")), [])

    @property
    def epochs(self) -> Found[int, ModelDir]:
        return _numbered(self._of, lambda epoch: ModelDir(self._of(epoch)))

    @property
    def epochs_list(self) -> list[int]:
        return list(self.epochs)


class ModelsDir(Folder):
    """All checkpoints of a split."""

    def __init__(self, archive: str, split: int):
        super().__init__(layout.models_dir(archive, split), [])
        self.best_models = BestModelsDir(archive, split)
        self.checkpoints = CheckpointsDir(archive, split)
        self.final = ModelDir(layout.checkpoint_dir(archive, split, "final"))

    def by_name(self) -> Found[str, ModelDir]:
        """The checkpoints that are there, such as ``best-loss``, ``epoch-4``, ``final``, in this order."""
        found = {f"best-{metric}": model for metric, model in self.best_models.metrics.items()}
        found |= {f"epoch-{epoch}": model for epoch, model in self.checkpoints.epochs.items()}
        return Found(found | ({"final": self.final} if self.final.path.is_dir() else {}), str(self.path))

    def get_all_models(self) -> list[str]:
        """The same, their names only."""
        return list(self.by_name())

    def get_checkpoint_dir(self, checkpoint_name: str) -> ModelDir:
        """A checkpoint by its name in the split, such as ``best-loss``."""
        return self.by_name()[checkpoint_name]


class SavedEpochDir(Folder):
    """ClinicaDL's resume state after an epoch."""

    callbacks: Path
    model_pt: Path
    optimizer_pt: Path
    scaler_pt: Path
    state_json: Path

    def __init__(self, path: str):
        super().__init__(path, layout.saved_epoch_files(path))
        self.validation_metrics = MetricsDir(layout.validation_metrics(path))


class TmpDir(Folder):
    """Resume state; gone once the archive is complete. ``epochs`` is what ClinicaDL leaves, not this workflow."""

    def __init__(self, archive: str, split: int):
        super().__init__(layout.tmp_dir(archive, split), [])
        self._of = lambda epoch: layout.saved_epoch_dir(archive, split, epoch)

    @property
    def epochs(self) -> Found[int, SavedEpochDir]:
        return _numbered(self._of, lambda epoch: SavedEpochDir(self._of(epoch)))

    @property
    def epochs_list(self) -> list[int]:
        return list(self.epochs)


class SplitDir(Folder):
    """One split's training; ``run_zip`` holds all of it, ``exports_zip`` its TorchScript files."""

    run_zip: Path
    exports_zip: Path
    computational_json: Path
    summary_log: Path
    warning_log: Path

    def __init__(self, archive: str, split: int):
        zips = [layout.run_zip(archive, split), layout.exports_zip(archive, split)]
        super().__init__(layout.split_dir(archive, split), [*zips, *layout.split_files(archive, split)])
        self.models = ModelsDir(archive, split)
        self.validation_metrics = MetricsDir(layout.validation_metrics(str(self.path)))
        self.logs = LogsDir(archive, split)
        self.tmp = TmpDir(archive, split)


class TrainingDir(Folder):
    """All splits' trainings."""

    optimization_json: Path

    def __init__(self, archive: str):
        optimization = layout.optimization_json(archive)
        super().__init__(os.path.dirname(optimization), [optimization])
        self.data = TrainingDataDir(archive)
        self._archive = archive

    @property
    def splits(self) -> Found[int, SplitDir]:
        of = self._archive
        return _numbered(lambda split: layout.split_dir(of, split), lambda split: SplitDir(of, split))

    @property
    def splits_list(self) -> list[int]:
        return list(self.splits)

    def by_name(self) -> Found[str, ModelDir]:
        """Every checkpoint that is there, by a name such as ``split-0_best-loss``."""
        models = {k: split.models.by_name() for k, split in self.splits.items()}
        return Found({f"split-{k}_{c}": m for k, found in models.items() for c, m in found.items()}, str(self.path))

    def get_checkpoint_dir(self, checkpoint_name: str) -> ModelDir:
        """A checkpoint by its name, such as ``split-0_best-loss``."""
        return self.by_name()[checkpoint_name]

    def read_checkpoint_name(self, checkpoint_name: str) -> tuple[int, str]:
        """A checkpoint's split and its name there: ``split-0_best-loss`` is 0 and ``best-loss``."""
        self.get_checkpoint_dir(checkpoint_name)
        split, _, name = checkpoint_name.partition("_")
        return int(split.removeprefix("split-")), name


# ---- test groups, and ClinicaDL's predictions and runs


class TestModelDir(Folder):
    """One checkpoint on a test group."""

    computational_json: Path
    warning_log: Path

    def __init__(self, path: str):
        super().__init__(path, [layout.result_computational(path), layout.warning_log(path)])
        self.metrics = MetricsDir(layout.result_metrics(path))


class PredictionModelDir(Folder):
    """ClinicaDL's predictions by one checkpoint."""

    computational_json: Path
    warning_log: Path
    caps_output: Path
    output_tsv: Path

    def __init__(self, path: str):
        files = [layout.result_computational(path), layout.warning_log(path), *layout.prediction_outputs(path)]
        super().__init__(path, files)


class ResultsSplitDir(Folder, Generic[Value]):
    """The results of one split's checkpoints, by their names."""

    def __init__(self, group: str, split: int, make: Callable[[str], Value]):
        self._of = lambda checkpoint: layout.group_result_dir(group, split, checkpoint)
        self._make = make
        super().__init__(os.path.dirname(self._of("")), [])

    @property
    def models(self) -> Found[str, Value]:
        return _named(self._of, lambda checkpoint: self._make(self._of(checkpoint)))

    @property
    def models_list(self) -> list[str]:
        return list(self.models)


class ResultsDir(Folder, Generic[Value]):
    """The results on a group, by split."""

    def __init__(self, group: str, make: Callable[[str], Value]):
        super().__init__(layout.group_results_dir(group), [])
        self._group, self._make = group, make

    @property
    def splits(self) -> Found[int, ResultsSplitDir[Value]]:
        return _numbered(
            lambda split: os.path.dirname(layout.group_result_dir(self._group, split, "")),
            lambda split: ResultsSplitDir(self._group, split, self._make),
        )

    @property
    def splits_list(self) -> list[int]:
        return list(self.splits)


class GroupDir(DataDir, Generic[Value]):
    """A group of cases, and the results on them."""

    def __init__(self, path: str, make: Callable[[str], Value]):
        super().__init__(path)
        self.results = ResultsDir(path, make)


class GroupsDir(Folder, Generic[Value]):
    """Groups of cases, by name."""

    def __init__(self, path_of: Callable[[str], str], make: Callable[[str], Value]):
        super().__init__(os.path.dirname(path_of("")), [])
        self._of, self._make = path_of, make

    @property
    def groups(self) -> Found[str, GroupDir[Value]]:
        return _named(self._of, lambda group: GroupDir(self._of(group), self._make))

    @property
    def groups_list(self) -> list[str]:
        return list(self.groups)


class RunDir(Folder):
    """What ClinicaDL said in one of its runs."""

    info_log: Path
    error_log: Path
    debug_log: Path

    def __init__(self, archive: str, run: str):
        super().__init__(layout.exec_dir(archive, run), layout.exec_logs(archive, run))


class ExecDir(Folder):
    """ClinicaDL's runs."""

    def __init__(self, archive: str):
        self._of = lambda run: layout.exec_dir(archive, run)
        self._archive = archive
        super().__init__(os.path.dirname(self._of("")), [])

    @property
    def runs(self) -> Found[str, RunDir]:
        return _named(self._of, lambda run: RunDir(self._archive, run))

    @property
    def runs_list(self) -> list[str]:
        return list(self.runs)


class EnvDir(Folder):
    """The environment that trained; the ``.yml`` files and ``explicit.txt`` only where it was conda's."""

    environment_txt: Path
    host_json: Path
    environment_yml: Path
    environment_portable_yml: Path
    explicit_txt: Path

    def __init__(self, archive: str):
        files = layout.environment_files(archive, (*layout.ENVIRONMENT, *layout.CONDA_ENVIRONMENT))
        super().__init__(os.path.dirname(files[0]), files)


# ---- what MAPS does not have


class ExportsDir(Folder):
    """Exports on request: how each was made and differs from eager, or why it cannot be."""

    onnx_json: Path
    onnx_zip: Path
    pt2_json: Path
    pt2_zip: Path
    ensemble_json: Path
    ensemble_zip: Path

    def __init__(self, archive: str):
        exports = (*layout.FORMATS, layout.ENSEMBLE)
        files = [f(archive, e) for e in exports for f in (layout.export_report, layout.further_export_zip)]
        super().__init__(os.path.dirname(files[0]), files)


class PublishedDir(Folder):
    """The published model: the best of the published split by the key metric, and its last epoch.

    On request also in other formats, and beside the mean of all splits' models.
    """

    model_pt: Path
    model_ts: Path
    model_onnx: Path
    model_pt2: Path
    ensemble_ts: Path
    final_model_pt: Path
    train_stats_json: Path
    events: Path

    def __init__(self, archive: str):
        weights = [layout.published_model(archive), layout.published_final(archive)]
        exported = [layout.published_ts(archive), *(layout.published_format(archive, f) for f in layout.FORMATS)]
        files = [*weights, *exported, layout.ensemble_ts(archive), layout.train_stats(archive)]
        super().__init__(os.path.dirname(weights[0]), files)
        self.events = Path(layout.published_events(archive))
        self.exports = ExportsDir(archive)


class EvaluationDir(Folder):
    """A model on the cases that it may be scored on."""

    evaluation_zip: Path
    metrics_csv: Path
    val_mean_dice_raw_csv: Path
    val_mean_dice_summary_csv: Path
    probabilities_tsv: Path
    predictions_tsv: Path

    def __init__(self, archive: str, of: str = ""):
        tables = [
            layout.eval_metrics_csv(archive, of),
            *layout.eval_dice_tables(archive, of),
            layout.eval_probabilities(archive, of),
            layout.eval_predictions(archive, of),
        ]
        super().__init__(layout.eval_dir(archive, of), [layout.eval_zip(archive, of), *tables])
        self._archive, self._of = archive, of

    @property
    def cases(self) -> Found[str, Path]:
        """The segmentation of each case, by the case's name."""
        folder, names = _names(lambda case: layout.eval_case_dir(self._archive, case, self._of))
        cases = filter(CASE.fullmatch, sorted(names))
        files = {n: Path(layout.eval_segmentation(self._archive, n, self._of)) for n in cases}
        return Found({n: f for n, f in files.items() if f.is_file()}, folder)


class EvalDir(EvaluationDir):
    """The published TorchScript on the cases that it may be scored on; ``ensemble``: the mean of the splits' models."""

    def __init__(self, archive: str):
        super().__init__(archive)
        self.ensemble = EvaluationDir(archive, layout.OF_ENSEMBLE)


class CasesDir(Folder):
    """The dataset as it was checked and split: every case with its facts and hashes."""

    cases_tsv: Path
    dataset_json: Path
    splits_json: Path

    def __init__(self, archive: str):
        files = [layout.cases_tsv(archive), layout.dataset_json(archive), layout.splits_json(archive)]
        super().__init__(os.path.dirname(files[0]), files)


class EffectiveDir(Folder):
    """The configuration as the steps read it."""

    data_json: Path
    check_json: Path
    split_json: Path
    train_json: Path
    execution_json: Path
    select_json: Path
    test_json: Path
    predict_json: Path
    export_json: Path
    publish_json: Path
    files_json: Path
    variables_json: Path

    def __init__(self, archive: str):
        files = [*(layout.effective(archive, part) for part in layout.EFFECTIVE)]
        files += [layout.changed_files(archive), layout.effective_variables(archive)]
        super().__init__(os.path.dirname(files[0]), files)


class ConfigDir(Folder):
    """The archive's own configuration: MMAR's files, and what the steps read."""

    archive_json: Path
    data_json: Path
    environment_json: Path
    config_train_json: Path
    config_finetune_json: Path
    config_inference_json: Path
    config_validation_json: Path
    config_validation_ckpt_json: Path

    def __init__(self, archive: str):
        files = [layout.archive_json(archive), layout.data_record(archive), layout.environment_json(archive)]
        files += [layout.mmar_config(archive, name) for name in layout.MMAR_CONFIGS]
        super().__init__(os.path.dirname(files[0]), files)
        self.effective = EffectiveDir(archive)


class CommandsDir(Folder):
    """MMAR's commands."""

    set_env_sh: Path
    train_sh: Path
    train_multi_gpu_sh: Path
    finetune_sh: Path
    infer_sh: Path
    validate_sh: Path
    validate_ckpt_sh: Path
    validate_multi_gpu_sh: Path
    validate_multi_gpu_ckpt_sh: Path
    export_sh: Path

    def __init__(self, archive: str):
        files = [layout.command(archive, name) for name in layout.COMMANDS]
        super().__init__(os.path.dirname(files[0]), files)


class BundleDir(Folder):
    """The MONAI Bundle's configurations."""

    metadata_json: Path
    train_json: Path
    evaluate_json: Path
    inference_json: Path
    logging_conf: Path

    def __init__(self, archive: str):
        files = [layout.bundle_config(archive, name) for name in layout.BUNDLE_CONFIGS]
        super().__init__(os.path.dirname(files[0]), files)


class DocsDir(Folder):
    """The model card and the licences."""

    README_md: Path
    license_txt: Path
    data_license_txt: Path

    def __init__(self, archive: str):
        files = [layout.doc(archive, name) for name in layout.DOCS]
        super().__init__(os.path.dirname(files[0]), files)


# ---- the archive


class Archive(Folder):
    """An archive, to be read.

    Parameters
    ----------
    path:
        Its folder. Nothing in it is changed.

    Raises
    ------
    UserError
        If it lacks what every MAPS has; one message names all of it.

    Examples
    --------
    >>> archive = Archive("archives/demo")
    >>> archive.open_file(archive.training.splits[0].validation_metrics.aggregated_tsv)
    >>> archive.load_model("split-0_best-MeanDice")
    >>> archive.predict("image.nii.gz")
    """

    model_json: Path
    metrics_json: Path
    callbacks_json: Path
    architecture_log: Path
    nn_summary_txt: Path
    summary_log: Path
    LICENSE: Path
    manifest: Path

    def __init__(self, path: str | os.PathLike):
        a = os.path.realpath(path)
        configs = [layout.model_json(a), layout.metrics_json(a), layout.callbacks_json(a)]
        logs = [layout.architecture_log(a), layout.nn_summary(a), layout.summary_log(a)]
        super().__init__(a, [*configs, *logs, layout.licence(a)])
        self.manifest = Path(layout.manifest(a))
        self.training = TrainingDir(a)
        self.test: GroupsDir[TestModelDir] = GroupsDir(lambda group: layout.group_dir(a, group), TestModelDir)
        self.prediction: GroupsDir[PredictionModelDir] = GroupsDir(
            lambda group: layout.prediction_group_dir(a, group), PredictionModelDir
        )
        self.exec = ExecDir(a)
        self.env = EnvDir(a)
        self.models, self.eval, self.data = PublishedDir(a), EvalDir(a), CasesDir(a)
        self.config, self.commands, self.configs, self.docs = ConfigDir(a), CommandsDir(a), BundleDir(a), DocsDir(a)
        self.read()

    def read(self) -> None:
        """Look whether all is there that a MAPS must have; done when the archive is opened.

        Raises
        ------
        UserError
            If not.
        """
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such folder; give an archive's folder")
        if missing := [path for path in self._required() if not os.path.exists(path)]:
            names = ", ".join(os.path.relpath(path, self.path) for path in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            planned = os.path.exists(self.config.archive_json)
            hint = (
                f"make it whole: snakemake --cores all {os.path.relpath(self.manifest)}"
                if planned
                else "give the folder that holds model.json"
            )
            raise UserError(f"{self.path}: no whole archive: found no {names}{more}; {hint}")

    def _required(self) -> list[str]:
        a, data = str(self.path), self.training.data
        splits = {*self.training.splits, *data.train.splits, *data.validation.splits}
        environment = [layout.environment_txt(a)] if self.env.path.is_dir() else []
        sides = [f for k in sorted(splits) for side in layout.SIDES for f in layout.side_data(a, side, k)]
        groups = [f for group in self.test.groups for f in layout.group_data(a, group)]
        folders = [str(folder.path) for folder in (data.train, data.validation)]
        return [*layout.root_configs(a), layout.training_data_tsv(a), *folders, *sides, *groups, *environment]

    def open_file(self, path: str | os.PathLike) -> Any:
        """A file's content.

        Parameters
        ----------
        path:
            A path that this object gives, or one relative to the archive.

        Returns
        -------
        pandas.DataFrame
            Of ``.tsv`` and ``.csv``: indexed by those of epoch, batch, participant_id and session_id, class and metric
            that the table has beside other columns.
        dict or list
            Of ``.json``.
        dict of str to torch.Tensor
            Of ``.pt``; nothing in the file is run.
        nibabel.Nifti1Image
            Of ``.nii`` and ``.nii.gz``.
        str
            Of text.

        Raises
        ------
        UserError
            If the file is missing, damaged, lies outside the archive, or is of another kind.
        """
        return open_file(path, self.path)

    def checkpoints(self) -> list[str]:
        """The models that :meth:`load_model` takes: ``split-0_best-loss``, ``split-0_epoch-4``, ``split-0_final``, ….

        And of ``models/``: ``published`` and ``published-final``.
        """
        return list(self._weights())

    def _weights(self) -> Found[str, Path]:
        files = {name: model.model_pt for name, model in self.training.by_name().items()}
        files |= {PUBLISHED: self.models.model_pt, PUBLISHED_FINAL: self.models.final_model_pt}
        return Found({name: file for name, file in files.items() if file.is_file()}, str(self.path))

    def load_model(self, checkpoint: str, device: str = "cpu", allow: Sequence[str] = ()) -> torch.nn.Module:
        """A checkpoint's network, in eval mode.

        Built from the archive's effective configuration out of public classes of MONAI, torch and ignite.

        Parameters
        ----------
        checkpoint:
            One of :meth:`checkpoints`.
        device:
            As torch names it.
        allow:
            Which of the dotted paths in the archive's own ``allow`` you trust: code that it would run.

        Raises
        ------
        UserError
            If there is no such checkpoint, it is another network's, or code is needed that is not allowed.
        """
        return self.predictor(checkpoint, device, allow).network

    def predictor(self, checkpoint: str = PUBLISHED, device: str = "cpu", allow: Sequence[str] = ()) -> Predictor:
        """The same with what the recipe does before and after the network: to be called with many images."""
        from .predicting import load_predictor

        weights = inside(self._weights()[checkpoint], self.path)
        return load_predictor(str(self.path), weights, checkpoint in (PUBLISHED, PUBLISHED_FINAL), device, allow)

    def predict(
        self,
        image: str | os.PathLike | nibabel.Nifti1Image | Sequence[str | os.PathLike | nibabel.Nifti1Image],
        checkpoint: str = PUBLISHED,
        device: str = "cpu",
        probabilities: bool = False,
        allow: Sequence[str] = (),
    ) -> nibabel.Nifti1Image | dict[str, float]:
        """What a checkpoint makes of an image, as evaluation would: with validation's transforms and inferer.

        torch works with the threads and the determinism of the configuration meanwhile, and then as before.

        Parameters
        ----------
        image:
            A NIfTI file or nibabel image of any grid; of several channels in files of their own, a list of them.
        checkpoint, device, allow:
            As :meth:`load_model` takes them.
        probabilities:
            Of a segmentation, each class's probability instead of class numbers.

        Returns
        -------
        nibabel.Nifti1Image
            Of a segmentation archive: class numbers, uint8 ``[*grid]``, or float32 ``[*grid, classes]``, on the
            image's own grid and affine; of classes that may overlap, 0 and 1, uint8 with the classes in the fourth axis.
        dict of str to float
            Of a classification archive: each class's probability by name. Of a regression: ``prediction``, the number.

        Raises
        ------
        UserError
            If the image cannot be read or the network cannot take it.
        """
        return self.predictor(checkpoint, device, allow)(image, probabilities)

    def results(self) -> pandas.DataFrame:
        """Every checkpoint's metrics on validation and each test group, over splits.

        Returns
        -------
        pandas.DataFrame
            Indexed by checkpoint, cases (``validation``, ``test GROUP``, or ``test`` where each split is tested on a group
            of its own) and metric; columns ``split-K``, ``mean``, and ``std``, the sample standard deviation over splits
            (NaN with one).
        """
        check_boundary(str(self.path))
        splits = self.training.splits
        checkpoints = dict.fromkeys(c for split in splits.values() for c in split.models.by_name())
        ordered, own = sorted(checkpoints, key=_in_order), self._own_groups()
        found = results_of(str(self.path), ordered, self.test.groups, own, list(splits))
        return results_table(found, list(splits))

    def _own_groups(self) -> dict[str, int]:
        """Of test groups that a single split is tested on, that split; a MAPS of ClinicaDL does not have any."""
        drawn = layout.splits_json(str(self.path))
        return read_splits(drawn).get("own_groups", {}) if os.path.isfile(drawn) else {}


def _in_order(checkpoint: str) -> tuple[int, int, str]:
    """Best ones first, then epochs, then the final one."""
    kind, _, name = checkpoint.partition("-")
    return ("best", "epoch", "final").index(kind), int(name) if kind == "epoch" else 0, name


def compare(archives: Iterable[Archive | str | os.PathLike]) -> pandas.DataFrame:
    """The results of several archives side by side, rows matched by checkpoint, cases and metric.

    Parameters
    ----------
    archives:
        Opened ones, or their folders.

    Returns
    -------
    pandas.DataFrame
        Rows as :meth:`Archive.results` has them; columns by archive (its folder's name, or its whole path where names
        repeat), then as there. NaN where an archive has no such row.

    Raises
    ------
    UserError
        If none is given, or one twice.
    """
    import pandas

    opened = [a if isinstance(a, Archive) else Archive(a) for a in archives]
    names = [a.path.name for a in opened]
    if len(set(names)) < len(names):
        names = [str(a.path) for a in opened]
    if not names or len(set(names)) < len(names):
        raise UserError(f"compare: found {names or 'no archive'}; wanted archives, each once")
    table = pandas.concat([a.results() for a in opened], axis=1, keys=names, names=["archive", None], sort=False)
    checkpoints, cases = (list(dict.fromkeys(table.index.get_level_values(level))) for level in INDEX[:2])
    return table.loc[sorted(table.index, key=lambda row: (checkpoints.index(row[0]), cases.index(row[1])))]
