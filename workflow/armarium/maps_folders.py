"""The folders that a ClinicaDL MAPS has, under the names of ``clinicadl.io.maps``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic

from . import layout
from .folder import Folder, Found, Value, named, numbered

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
        return numbered(self._of, lambda split: DataDir(self._of(split)))

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
        return named(self._of, lambda metric: ModelDir(self._of(metric)))

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
        return numbered(self._of, lambda epoch: ModelDir(self._of(epoch)))

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
        return numbered(self._of, lambda epoch: SavedEpochDir(self._of(epoch)))

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
        return numbered(lambda split: layout.split_dir(of, split), lambda split: SplitDir(of, split))

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
        return named(self._of, lambda checkpoint: self._make(self._of(checkpoint)))

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
        return numbered(
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
        return named(self._of, lambda group: GroupDir(self._of(group), self._make))

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
        return named(self._of, lambda run: RunDir(self._archive, run))

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
