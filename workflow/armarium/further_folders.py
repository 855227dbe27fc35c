"""The folders that an archive has beside those of a MAPS."""

from __future__ import annotations

import os
from pathlib import Path

from . import layout
from .folder import Folder, Found, folders_below
from .naming import CASE


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
        folder, names = folders_below(lambda case: layout.eval_case_dir(self._archive, case, self._of))
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
