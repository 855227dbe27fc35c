"""An archive as an object: every file by the attribute that ClinicaDL's ``Maps`` has for it, and ours beside them.

``archive.training.splits[0].models.final.model_pt`` is a path; nothing is read before it is asked for. A folder's
attributes are the names of its files with ``_`` for ``.``. What an archive has any number of (splits, metrics,
epochs, groups) is looked up in its folders each time. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import layout
from .boundary import check_boundary
from .errors import UserError
from .folder import Folder, Found
from .further_folders import BundleDir, CasesDir, CommandsDir, ConfigDir, DocsDir, EvalDir, PublishedDir
from .maps_folders import EnvDir, ExecDir, GroupsDir, PredictionModelDir, TestModelDir, TrainingDir
from .opening import inside, open_file
from .results import INDEX, results_of, results_table
from .split_files import read_splits

if TYPE_CHECKING:
    import nibabel
    import pandas
    import torch

    from .predicting import Predictor

PUBLISHED, PUBLISHED_FINAL = "published", "published-final"
"""The names of ``models/model.pt`` and ``models/final_model.pt`` among the checkpoints."""


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
