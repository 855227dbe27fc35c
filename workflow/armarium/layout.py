"""Every canonical path of an archive, as strings.

The only place in the project where a path inside an archive is spelled. Rules pass wildcards such as
``"{archive}"`` or ``"{split}"``, code passes values; the same function serves both. Nothing here touches
the disk. Names are MAPS's where MAPS has one (ClinicaDL 2.0), MMAR's (Clara Train 4) and the MONAI
Bundle's otherwise.
"""

from __future__ import annotations

TRAIN, VALIDATION = "train", "validation"
SIDES = (TRAIN, VALIDATION)
EFFECTIVE = ("data", "check", "split", "train", "execution", "evaluate", "export", "publish")
METRIC_TABLES = ("aggregated.tsv", "details.tsv", "classes.tsv", "class_details.tsv")
MMAR_CONFIGS = (
    "config_train.json",
    "config_finetune.json",
    "config_inference.json",
    "config_validation.json",
    "config_validation_ckpt.json",
)
COMMANDS = ("set_env.sh", "train.sh", "infer.sh", "validate.sh", "validate_ckpt.sh", "export.sh")
BUNDLE_CONFIGS = ("metadata.json", "train.json", "evaluate.json", "inference.json", "logging.conf")
DOCS = ("README.md", "license.txt", "data_license.txt")


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


def effective(a: str, part: str) -> str:
    return f"{a}/config/effective/{part}.json"


def changed_files(a: str) -> str:
    """Data files whose content changed since they were first checked, with their new SHA-256."""
    return effective(a, "files")


def written_configs(a: str) -> str:
    """SHA-256 of every configuration file as this workflow last wrote it: tells a hand edit."""
    return f"{a}/config/effective/written.json"


# ---- data


def cases_tsv(a: str) -> str:
    return f"{a}/data/cases.tsv"


def dataset_json(a: str) -> str:
    """What the dataset's list said: its facts, classes and a digest."""
    return f"{a}/data/dataset.json"


def splits_json(a: str) -> str:
    return f"{a}/data/splits.json"


def datalist(a: str, split: str | int) -> str:
    return f"{a}/config/dataset_{split}.json"


def training_data_tsv(a: str) -> str:
    return f"{a}/training/data/data.tsv"


def data_folder_files(folder: str) -> list[str]:
    """What MAPS wants to know of one set of cases."""
    return [f"{folder}/data.tsv", f"{folder}/dataset.json", f"{folder}/dataloader.json"]


def side_data(a: str, side: str, split: str | int) -> list[str]:
    return data_folder_files(f"{a}/training/data/{side}/split-{split}")


def group_data(a: str, group: str) -> list[str]:
    return data_folder_files(f"{a}/test/group-{group}")


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


def environment_txt(a: str) -> str:
    return f"{a}/env/environment.txt"


def host_json(a: str) -> str:
    return f"{a}/env/host.json"


def environment_files(a: str, conda: bool) -> list[str]:
    names = ["environment.yml", "environment_portable.yml"] if conda else []
    return [environment_txt(a), host_json(a), *(f"{a}/env/{name}" for name in names)]


# ---- one split's training


def split_dir(a: str, split: str | int) -> str:
    return f"{a}/training/split-{split}"


def run_zip(a: str, split: str | int) -> str:
    return f"{split_dir(a, split)}/run.zip"


def tmp_dir(a: str, split: str | int) -> str:
    """Resume state; undeclared, gone when the archive is complete."""
    return f"{split_dir(a, split)}/tmp"


def held_version(a: str, path: str) -> str:
    """Of a product that is being made again: the last version until the new one is in place."""
    return f"{a}/.held/{path.removeprefix(f'{a}/')}"


def split_logs(a: str, split: str | int) -> list[str]:
    base = split_dir(a, split)
    names = (
        "computational.json",
        "summary.log",
        "warning.log",
        "logs/training_loss.tsv",
        "logs/computational.tsv",
    )
    return [f"{base}/{name}" for name in names]


def learning_rates(a: str, split: str | int, optimizer: str) -> str:
    return f"{split_dir(a, split)}/logs/learning_rates/{optimizer}.tsv"


def history_tables(a: str, split: str | int) -> list[str]:
    return [f"{split_dir(a, split)}/validation_metrics/{t}" for t in METRIC_TABLES]


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
    return f"{split_dir(a, split)}/models/{kind}"


def checkpoint_pt(folder: str) -> str:
    return f"{folder}/model.pt"


def checkpoint_ts(folder: str) -> str:
    return f"{folder}/model.ts"


def checkpoint_tables(folder: str) -> list[str]:
    return [f"{folder}/validation_metrics/{t}" for t in METRIC_TABLES]


def exports_zip(a: str, split: str | int) -> str:
    """Every selected checkpoint of a split as TorchScript, with the parity figures."""
    return f"{split_dir(a, split)}/exports.zip"


# ---- evaluation


def evaluation_zip(a: str, group: str, split: str | int) -> str:
    """All selected checkpoints of one split on one test group: tables and, if wanted, predictions."""
    return f"{a}/test/evaluations/{group}_split-{split}.zip"


def result_dir(a: str, group: str, split: str | int, checkpoint: str) -> str:
    return f"{a}/test/group-{group}/results/split-{split}/{checkpoint}"


def result_tables(folder: str) -> list[str]:
    return [f"{folder}/metrics/{t}" for t in METRIC_TABLES]


def result_computational(folder: str) -> str:
    return f"{folder}/computational.json"


# ---- the published model and its evaluation (MMAR)


def published_model(a: str) -> str:
    return f"{a}/models/model.pt"


def published_final(a: str) -> str:
    return f"{a}/models/final_model.pt"


def published_ts(a: str) -> str:
    return f"{a}/models/model.ts"


def published_events(a: str) -> str:
    return f"{a}/models/events.out.tfevents.0.armarium"


def train_stats(a: str) -> str:
    return f"{a}/models/train_stats.json"


def eval_zip(a: str) -> str:
    """The published TorchScript on the cases it may be scored on; per-case files are cut from it."""
    return f"{a}/eval/evaluation.zip"


def eval_metrics_csv(a: str) -> str:
    return f"{a}/eval/metrics.csv"


def eval_dice_tables(a: str) -> list[str]:
    return [f"{a}/eval/val_mean_dice_raw.csv", f"{a}/eval/val_mean_dice_summary.csv"]


def eval_segmentation(a: str, case: str) -> str:
    return f"{a}/eval/{case}/{case}_seg.nii.gz"


def eval_probabilities(a: str) -> str:
    return f"{a}/eval/probabilities.tsv"


def eval_predictions(a: str) -> str:
    return f"{a}/eval/predictions.tsv"


def eval_table(a: str, task: str) -> str:
    """The predictions of a task whose predictions are no images."""
    return {"classification": eval_probabilities, "regression": eval_predictions}[task](a)


# ---- faces


def command(a: str, name: str) -> str:
    return f"{a}/commands/{name}"


def log_config(a: str) -> str:
    return f"{a}/resources/log.config"


def doc(a: str, name: str) -> str:
    return f"{a}/docs/{name}"


def bundle_config(a: str, name: str) -> str:
    return f"{a}/configs/{name}"


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
