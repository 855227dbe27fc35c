"""Every canonical path of an archive, as strings.

The only place in the project where a path inside an archive is spelled. Rules pass wildcards such as
``"{archive}"`` or ``"{split}"``, code passes values; the same function serves both. Nothing here touches
the disk. Names are MAPS's where MAPS has one (ClinicaDL 2.0), MMAR's (Clara Train 4) and the MONAI
Bundle's otherwise.
"""

from __future__ import annotations

TRAIN, VALIDATION = "train", "validation"
SIDES = (TRAIN, VALIDATION)
EFFECTIVE = ("data", "check", "split", "train", "execution", "select", "test", "predict", "export", "publish")
METRIC_TABLES = ("aggregated.tsv", "details.tsv", "classes.tsv", "class_details.tsv")
MMAR_CONFIGS = (
    "config_train.json",
    "config_finetune.json",
    "config_inference.json",
    "config_validation.json",
    "config_validation_ckpt.json",
)
COMMANDS = (
    "set_env.sh",
    "train.sh",
    "train_multi_gpu.sh",
    "finetune.sh",
    "infer.sh",
    "validate.sh",
    "validate_ckpt.sh",
    "validate_multi_gpu.sh",
    "validate_multi_gpu_ckpt.sh",
    "export.sh",
)
FORMATS = ("onnx", "pt2")
"""What the published model is exported to on request, by the file's suffix."""
ENSEMBLE = "ensemble"
OF_ENSEMBLE = "ensemble/"
"""Of an evaluation: that of the mean of the splits' models."""
BUNDLE_CONFIGS = ("metadata.json", "train.json", "evaluate.json", "inference.json", "logging.conf")
PACKS = LABEL, DEPLOY, TRITON = "label", "deploy", "triton"
"""The clients that the published model is packed for on request: MONAI Label, MONAI Deploy, Triton Inference Server."""
MODEL_CARD = "README.md"
DOCS = (MODEL_CARD, "license.txt", "data_license.txt")
ENVIRONMENT = ("environment.txt", "host.json")
CONDA_ENVIRONMENT = ("environment.yml", "environment_portable.yml", "explicit.txt")
"""Beside ``ENVIRONMENT`` where a step runs in a conda environment."""
TRAINING_ENVIRONMENT, EXPORT_ENVIRONMENT, OTHER_ENVIRONMENTS = "torch", "onnx", ("data", "onnx")
"""The files of envs/ by their stems: that of training and all that computes, and those of other rules."""
LOCK_FILES = (
    "uv.lock",
    "poetry.lock",
    "pdm.lock",
    "pixi.lock",
    "Pipfile.lock",
    "requirements.lock",
    "pylock.toml",
    "conda-lock.yml",
)
"""Files by which a project pins its environment; conda environments of rules have ``<name>.<platform>.pin.txt``."""


# ---- configuration: sources of the DAG, written before planning, never by a rule


def archive_json(a: str) -> str:
    """The archive's own section of config.yaml, completed with defaults."""
    return f"{a}/config/archive.json"


def mmar_config(a: str, name: str) -> str:
    return f"{a}/config/{name}"


def environment_json(a: str) -> str:
    return f"{a}/config/environment.json"


def given_splits(a: str) -> str:
    """A copy of the split file that the user gave, when splits are read and not drawn."""
    return f"{a}/config/splits.json"


def origin(a: str) -> str:
    """In a clone that became another archive: the identity and name of the one that it was cloned from."""
    return f"{a}/config/origin.json"


def effective(a: str, part: str) -> str:
    return f"{a}/config/effective/{part}.json"


def changed_files(a: str) -> str:
    """Data files whose content changed since they were first checked, with their new SHA-256."""
    return effective(a, "files")


def effective_variables(a: str) -> str:
    """The variables as they count: of config_train.json, environment.json and what was set the last that says one."""
    return f"{a}/config/effective/variables.json"


def written_configs(a: str) -> str:
    """SHA-256 of every configuration file as this workflow last wrote it: tells a hand edit."""
    return f"{a}/config/effective/written.json"


# ---- data


def cases_tsv(a: str) -> str:
    return f"{a}/data/cases.tsv"


def dataset_json(a: str) -> str:
    """What the dataset's list said: its facts, classes and a digest."""
    return f"{a}/data/dataset.json"


def data_record(a: str) -> str:
    """What the data was when it was checked, beside the configuration: a run from that alone tells other data by it."""
    return f"{a}/config/data.json"


def splits_json(a: str) -> str:
    return f"{a}/data/splits.json"


def datalist(a: str, split: str | int) -> str:
    return f"{a}/config/dataset_{split}.json"


def training_data_tsv(a: str) -> str:
    return f"{a}/training/data/data.tsv"


def data_folder_files(folder: str) -> list[str]:
    """What MAPS wants to know of one set of cases."""
    return [f"{folder}/data.tsv", f"{folder}/dataset.json", f"{folder}/dataloader.json"]


def side_dir(a: str, side: str, split: str | int) -> str:
    return f"{a}/training/data/{side}/split-{split}"


def side_data(a: str, side: str, split: str | int) -> list[str]:
    return data_folder_files(side_dir(a, side, split))


def group_dir(a: str, group: str) -> str:
    return f"{a}/test/group-{group}"


def group_data(a: str, group: str) -> list[str]:
    return data_folder_files(group_dir(a, group))


# ---- MAPS, archive level


def model_json(a: str) -> str:
    return f"{a}/model.json"


def metrics_json(a: str) -> str:
    return f"{a}/metrics.json"


def callbacks_json(a: str) -> str:
    return f"{a}/callbacks.json"


def optimization_json(a: str) -> str:
    return f"{a}/training/optimization.json"


def root_configs(a: str) -> list[str]:
    return [model_json(a), metrics_json(a), callbacks_json(a), optimization_json(a)]


def architecture_log(a: str) -> str:
    return f"{a}/architecture.log"


def nn_summary(a: str) -> str:
    return f"{a}/nn_summary.txt"


def summary_log(a: str) -> str:
    return f"{a}/summary.log"


def environment_file(a: str, name: str) -> str:
    """A file on the environment that the published model was trained in; ``<rule environment>/<name>``: on another one."""
    return f"{a}/env/{name}"


def environment_txt(a: str) -> str:
    return environment_file(a, "environment.txt")


def host_json(a: str) -> str:
    return environment_file(a, "host.json")


def environment_files(a: str, names: tuple[str, ...] = ENVIRONMENT, of: str = "") -> list[str]:
    """Files on the training's environment, or on that ``of`` other rules."""
    return [environment_file(a, f"{of}/{name}" if of else name) for name in names]


# ---- one split's training


def split_dir(a: str, split: str | int) -> str:
    return f"{a}/training/split-{split}"


def run_zip(a: str, split: str | int) -> str:
    return f"{split_dir(a, split)}/run.zip"


def tmp_dir(a: str, split: str | int) -> str:
    """Resume state; undeclared, gone when the archive is complete."""
    return f"{split_dir(a, split)}/tmp"


def added_epochs_dir(a: str, split: str | int) -> str:
    """The same of training some epochs once more, for checkpoints that the run does not hold."""
    return f"{tmp_dir(a, split)}/epochs"


def held_version(a: str, path: str) -> str:
    """Of a product that is being made again: the last version until the new one is in place."""
    return f"{a}/.held/{path.removeprefix(f'{a}/')}"


def split_files(a: str, split: str | int) -> list[str]:
    return [f"{split_dir(a, split)}/{name}" for name in ("computational.json", "summary.log", "warning.log")]


def logs_dir(a: str, split: str | int) -> str:
    return f"{split_dir(a, split)}/logs"


def log_tables(a: str, split: str | int) -> list[str]:
    return [f"{logs_dir(a, split)}/{name}" for name in ("training_loss.tsv", "computational.tsv")]


def split_logs(a: str, split: str | int) -> list[str]:
    return [*split_files(a, split), *log_tables(a, split)]


def learning_rates_dir(a: str, split: str | int) -> str:
    return f"{logs_dir(a, split)}/learning_rates"


def learning_rates(a: str, split: str | int, optimizer: str) -> str:
    return f"{learning_rates_dir(a, split)}/{optimizer}.tsv"


def metric_tables(folder: str) -> list[str]:
    return [f"{folder}/{t}" for t in METRIC_TABLES]


def validation_metrics(folder: str) -> str:
    """Of a split or a checkpoint: the folder of its validation tables."""
    return f"{folder}/validation_metrics"


def history_tables(a: str, split: str | int) -> list[str]:
    return metric_tables(validation_metrics(split_dir(a, split)))


def starting_weights(a: str, split: str | int) -> str:
    """In a fine-tuned archive: which layers a split's training took from the parent."""
    return f"{split_dir(a, split)}/starting_weights.tsv"


# ---- checkpoints: "best-<metric>", "epoch-<n>" or "final"


def checkpoint_dir(a: str, split: str | int, checkpoint: str) -> str:
    return checkpoint_kind_dir(a, split, checkpoint_kind(checkpoint))


def checkpoint_kind(checkpoint: str) -> str:
    """A checkpoint's folder below ``models/``."""
    if checkpoint.startswith("best-"):
        return f"best_models/{checkpoint}"
    return f"checkpoints/{checkpoint}" if checkpoint.startswith("epoch-") else checkpoint


def checkpoint_kind_dir(a: str, split: str | int, kind: str) -> str:
    """The same by the folder's own name below ``models/``, as rules match it."""
    return f"{models_dir(a, split)}/{kind}"


def models_dir(a: str, split: str | int) -> str:
    """The folder of a split's checkpoints."""
    return f"{split_dir(a, split)}/models"


def checkpoint_pt(folder: str) -> str:
    return f"{folder}/model.pt"


def checkpoint_ts(folder: str) -> str:
    return f"{folder}/model.ts"


def checkpoint_tables(folder: str) -> list[str]:
    return metric_tables(validation_metrics(folder))


def exports_zip(a: str, split: str | int) -> str:
    """Every selected checkpoint of a split as TorchScript, with the parity figures."""
    return f"{split_dir(a, split)}/exports.zip"


# ---- evaluation


def evaluation_zip(a: str, group: str, split: str | int) -> str:
    """All selected checkpoints of one split on one test group: tables and, if wanted, predictions."""
    return f"{a}/test/evaluations/{group}_split-{split}.zip"


def result_dir(a: str, group: str, split: str | int, checkpoint: str) -> str:
    return group_result_dir(group_dir(a, group), split, checkpoint)


def group_result_dir(group: str, split: str | int, checkpoint: str) -> str:
    """The same by the group's folder."""
    return f"{group_results_dir(group)}/split-{split}/{checkpoint}"


def group_results_dir(group: str) -> str:
    return f"{group}/results"


def result_metrics(folder: str) -> str:
    return f"{folder}/metrics"


def result_tables(folder: str) -> list[str]:
    return metric_tables(result_metrics(folder))


def result_computational(folder: str) -> str:
    return f"{folder}/computational.json"


# ---- the published model and its evaluation (MMAR)


def published_model(a: str) -> str:
    return f"{a}/models/model.pt"


def published_final(a: str) -> str:
    return f"{a}/models/final_model.pt"


def published_ts(a: str) -> str:
    return f"{a}/models/model.ts"


def published_format(a: str, format: str) -> str:
    """The published model in another of ``FORMATS``."""
    return f"{a}/models/model.{format}"


def ensemble_ts(a: str) -> str:
    """The mean of the splits' published checkpoints, as one TorchScript file."""
    return f"{a}/models/{ENSEMBLE}.ts"


def further_export_zip(a: str, what: str) -> str:
    """A model of ``FORMATS``, or the ensemble: the file, or none where it cannot be, and the report."""
    return f"{a}/models/exports/{what}.zip"


def export_report(a: str, what: str) -> str:
    """How such a model was made and how far it is from eager, or why it cannot be."""
    return f"{a}/models/exports/{what}.json"


def export_parity(a: str, shape: str) -> str:
    """How far the published TorchScript is from its checkpoint on an input of ``shape``, such as ``1x1x64x64``."""
    return f"{a}/models/parity/{shape}.json"


def published_events(a: str) -> str:
    return f"{a}/models/events.out.tfevents.0.armarium"


def train_stats(a: str) -> str:
    return f"{a}/models/train_stats.json"


CKPT = "ckpt/"
"""Of an evaluation: that of the published checkpoint. "" is that of the published TorchScript."""


def eval_dir(a: str, by: str = "") -> str:
    """Where the evaluation of the published TorchScript lies, or that ``by`` another form of the model."""
    return f"{a}/eval/{by}".rstrip("/")


def eval_zip(a: str, by: str = "") -> str:
    """The published model on the cases it may be scored on; per-case files are cut from it."""
    return f"{a}/eval/{by}evaluation.zip"


def eval_metrics_csv(a: str, by: str = "") -> str:
    return f"{a}/eval/{by}metrics.csv"


def eval_dice_tables(a: str, by: str = "") -> list[str]:
    return [f"{a}/eval/{by}val_mean_dice_raw.csv", f"{a}/eval/{by}val_mean_dice_summary.csv"]


def eval_case_dir(a: str, case: str, by: str = "") -> str:
    return f"{a}/eval/{by}{case}"


def eval_segmentation(a: str, case: str, by: str = "") -> str:
    return f"{eval_case_dir(a, case, by)}/{case}_seg.nii.gz"


def eval_probabilities(a: str, by: str = "") -> str:
    return f"{a}/eval/{by}probabilities.tsv"


def eval_predictions(a: str, by: str = "") -> str:
    return f"{a}/eval/{by}predictions.tsv"


def eval_table(a: str, task: str, by: str = "") -> str:
    """The predictions of a task whose predictions are no images."""
    return {"classification": eval_probabilities, "regression": eval_predictions}[task](a, by)


# ---- what ClinicaDL adds to an archive that it works in


def warning_log(folder: str) -> str:
    """Of a checkpoint, or of its results."""
    return f"{folder}/warning.log"


def prediction_group_dir(a: str, group: str) -> str:
    return f"{a}/prediction/group-{group}"


def prediction_outputs(folder: str) -> list[str]:
    return [f"{folder}/caps_output", f"{folder}/output.tsv"]


def exec_dir(a: str, run: str) -> str:
    return f"{a}/exec/run-{run}"


def exec_logs(a: str, run: str) -> list[str]:
    return [f"{exec_dir(a, run)}/{name}" for name in ("info.log", "error.log", "debug.log")]


def saved_epoch_dir(a: str, split: str | int, epoch: str | int) -> str:
    """ClinicaDL's own resume state."""
    return f"{tmp_dir(a, split)}/epoch-{epoch}"


def saved_epoch_files(folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in ("callbacks", "model.pt", "optimizer.pt", "scaler.pt", "state.json")]


# ---- faces


def command(a: str, name: str) -> str:
    return f"{a}/commands/{name}"


def log_config(a: str) -> str:
    return f"{a}/resources/log.config"


def parent_dir(a: str) -> str:
    """In a fine-tuned archive: what its training started from, as it was given; no rule makes it."""
    return f"{a}/resources/parent"


def parent_file(a: str, name: str) -> str:
    return f"{parent_dir(a)}/{name}"


def parent_json(a: str) -> str:
    """What the files beside it are, and whose."""
    return parent_file(a, "parent.json")


def parent_cases(a: str) -> str:
    """SHA-256 of the images that the parent was trained on, where that is known."""
    return parent_file(a, "cases.json")


def doc(a: str, name: str) -> str:
    return f"{a}/docs/{name}"


def bundle_config(a: str, name: str) -> str:
    return f"{a}/configs/{name}"


def pack(a: str, client: str) -> str:
    """The published model in one file for another client, on request."""
    return f"{a}/packs/{client}.zip"


def client_output(a: str) -> str:
    """What MONAI's bundle client writes when it is run on the archive without another ``output_dir``; no part of it."""
    return f"{a}/output"


def licence(a: str) -> str:
    return f"{a}/LICENSE"


# ---- provenance


def workflow_copy(a: str) -> str:
    return f"{a}/provenance/workflow/Snakefile"


def sidecar(a: str, step: str) -> str:
    """What ran, when and on what; undeclared, the only home of dates."""
    return f"{a}/provenance/{step}.json"


def manifest(a: str) -> str:
    return f"{a}/ro-crate-metadata.json"


# ---- outside archives


def log(a: str, step: str) -> str:
    """Snakemake's log of a step; deleted when its job starts, so never part of an archive."""
    return f"logs/{a}/{step}.log"
