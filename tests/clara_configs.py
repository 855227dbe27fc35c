"""Configurations as Clara Train 4.0 and 4.1 have them, for a CT organ and for a chest finding, and smallest cases for them.

Written for these tests in the manner of NVIDIA's own examples (NVIDIA/clara-train-examples, the MMAR pages of Clara Train's
documentation); only the networks and patches are smaller.
"""

from __future__ import annotations

BOTH = ["image", "label"]
PICK = "lambda x: (x['pred'], x['label'])"
FROM_ENGINE = "#monai.handlers.from_engine(['pred', 'label'])"
LOSS_FROM_ENGINE = "#monai.handlers.from_engine(['loss'], first=True)"


def c(name: str, **args) -> dict:
    return {"name": name, "args": args} if args else {"name": name}


def environment(**more) -> dict:
    return {
        "DATA_ROOT": "/workspace/data/Task09_Spleen",
        "DATASET_JSON": "/workspace/data/Task09_Spleen/dataset_0.json",
        "PROCESSING_TASK": "segmentation",
        "MMAR_EVAL_OUTPUT_PATH": "eval",
        "MMAR_CKPT_DIR": "models",
        "MMAR_CKPT": "models/model.pt",
        **more,
    }


def dataset(key: str, **args) -> dict:
    files = {"data_list_file_path": "{DATASET_JSON}", "data_file_base_dir": "{DATA_ROOT}", "data_list_key": key}
    return {"name": "CacheDataset", **files, "args": {"cache_num": 4, "cache_rate": 1.0, "num_workers": 2, **args}}


# ---- 4.0: a spleen


def spleen_40() -> dict:
    """Clara 4.0's config_train.json: ``dimensions``, AddChanneld, lists in save_dict, lambdas, a marked key metric."""
    return {
        "epochs": 1,
        "use_gpu": True,
        "multi_gpu": False,
        "amp": True,
        "num_interval_per_valid": 1,
        "learning_rate": 2e-4,
        "determinism": {"random_seed": 7},
        "cudnn_benchmark": False,
        "dont_load_ckpt_model": True,
        "train": {
            "loss": c("DiceLoss", to_onehot_y=True, softmax=True),
            "optimizer": c("Adam", lr="{learning_rate}"),
            "lr_scheduler": c("StepLR", step_size=5000, gamma=0.1),
            "model": c(
                "UNet",
                dimensions=3,
                in_channels=1,
                out_channels=2,
                channels=[4, 8, 16],
                strides=[2, 2],
                num_res_units=2,
                norm="batch",
            ),
            "pre_transforms": [
                c("LoadImaged", keys=BOTH),
                c("AddChanneld", keys=BOTH),
                c("Spacingd", keys=BOTH, pixdim=[1.0, 1.0, 1.0], mode=["bilinear", "nearest"]),
                c("ScaleIntensityRanged", keys="image", a_min=-1, a_max=4, b_min=0.0, b_max=1.0, clip=True),
                c("CropForegroundd", keys=BOTH, source_key="image"),
                c(
                    "RandCropByPosNegLabeld",
                    keys=BOTH,
                    label_key="label",
                    spatial_size=[8, 8, 8],
                    pos=1,
                    neg=1,
                    num_samples=3,
                    image_key="image",
                    image_threshold=0,
                ),
                c("RandShiftIntensityd", keys="image", offsets=0.1, prob=0.5),
                c("ToTensord", keys=BOTH),
            ],
            "dataset": dataset("training"),
            "dataloader": c("DataLoader", batch_size=2, shuffle=True, num_workers=0),
            "inferer": {"name": "SimpleInferer"},
            "handlers": [
                {
                    "name": "CheckpointLoader",
                    "disabled": "{dont_load_ckpt_model}",
                    "args": {"load_path": "{MMAR_CKPT}", "load_dict": ["model"]},
                },
                c("LrScheduleHandler", print_lr=True),
                c("ValidationHandler", interval="{num_interval_per_valid}", epoch_level=True),
                {
                    "name": "CheckpointSaver",
                    "rank": 0,
                    "args": {
                        "save_dir": "{MMAR_CKPT_DIR}",
                        "save_dict": ["model", "optimizer", "lr_scheduler"],
                        "save_final": True,
                        "save_interval": 5,
                    },
                },
                {
                    "name": "StatsHandler",
                    "rank": 0,
                    "args": {"tag_name": "train_loss", "output_transform": "lambda x: x['loss']"},
                },
                {
                    "name": "TensorBoardStatsHandler",
                    "rank": 0,
                    "args": {
                        "log_dir": "{MMAR_CKPT_DIR}",
                        "tag_name": "train_loss",
                        "output_transform": "lambda x: x['loss']",
                    },
                },
            ],
            "post_transforms": [
                c("Activationsd", keys="pred", softmax=True),
                c("AsDiscreted", keys=["pred", "label"], argmax=[True, False], to_onehot=True, n_classes=2),
            ],
            "metrics": [
                {**c("Accuracy", output_transform=PICK), "log_label": "train_acc", "is_key_metric": True},
            ],
            "trainer": c("SupervisedTrainer", max_epochs="{epochs}"),
        },
        "validate": {
            "pre_transforms": [
                {"ref": "LoadImaged"},
                {"ref": "AddChanneld"},
                {"ref": "Spacingd"},
                {"ref": "ScaleIntensityRanged"},
                {"ref": "CropForegroundd"},
                {"ref": "ToTensord"},
            ],
            "dataset": dataset("validation"),
            "dataloader": c("DataLoader", batch_size=1, shuffle=False, num_workers=0),
            "inferer": c("SlidingWindowInferer", roi_size=[16, 16, 16], sw_batch_size=4, overlap=0.5),
            "handlers": [
                {"name": "StatsHandler", "rank": 0, "args": {"output_transform": "lambda x: None"}},
                {
                    "name": "TensorBoardStatsHandler",
                    "rank": 0,
                    "args": {"log_dir": "{MMAR_CKPT_DIR}", "output_transform": "lambda x: None"},
                },
                {
                    "name": "CheckpointSaver",
                    "rank": 0,
                    "args": {
                        "save_dir": "{MMAR_CKPT_DIR}",
                        "save_dict": ["model", "train_conf"],
                        "save_key_metric": True,
                    },
                },
            ],
            "post_transforms": [{"ref": "Activationsd"}, {"ref": "AsDiscreted"}],
            "metrics": [
                {**c("Accuracy", output_transform=PICK), "log_label": "val_acc"},
                {
                    **c("MeanDice", include_background=False, output_transform=PICK),
                    "log_label": "val_mean_dice",
                    "is_key_metric": True,
                },
            ],
            "evaluator": {"name": "SupervisedEvaluator"},
        },
    }


def spleen_40_inference() -> dict:
    """Clara 4.0's config_inference.json, whose SegmentationSaver MONAI no longer has."""
    conf = spleen_40()
    train, validate = conf["train"], conf["validate"]
    unlabelled = [
        {**t, "args": {**t["args"], "keys": "image"}}
        for t in train["pre_transforms"]
        if not t["name"].startswith("Rand") and t["name"] != "Spacingd"
    ]
    return {
        "use_gpu": True,
        "multi_gpu": False,
        "amp": True,
        "model": {"ts_path": "{MMAR_TORCHSCRIPT}"},
        "pre_transforms": [*unlabelled[:2], c("Spacingd", keys="image", pixdim=[1.0, 1.0, 1.0]), *unlabelled[2:]],
        "dataset": {k: v for k, v in dataset("test").items() if k != "args"} | {"name": "Dataset"},
        "dataloader": c("DataLoader", batch_size=1, shuffle=False, num_workers=0),
        "inferer": validate["inferer"],
        "handlers": [
            validate["handlers"][0],
            c("TransformInverter", transform="@pre_transforms", output_keys="pred", batch_keys="image"),
            c(
                "SegmentationSaver",
                output_dir="{MMAR_EVAL_OUTPUT_PATH}",
                batch_transform="lambda x: x['image_meta_dict']",
                output_transform="lambda x: x['pred']",
            ),
        ],
        "post_transforms": [
            c("Activationsd", keys="pred", softmax=True),
            c("AsDiscreted", keys="pred", argmax=True, to_onehot=True, n_classes=2),
        ],
        "evaluator": {"name": "SupervisedEvaluator"},
    }


# ---- 4.1: the same by references


def spleen_41() -> dict:
    """Clara 4.1's config_train.json: ``@`` references, ``#`` forms, key_metric, variables of environment.json."""
    conf = spleen_40()
    conf |= {"CLARA_TRAIN_VERSION": "4.1.0", "tf32": False}
    train, validate = conf["train"], conf["validate"]
    train["optimizer"]["args"]["params"] = "#@model.parameters()"
    train["lr_scheduler"]["args"]["optimizer"] = "@optimizer"
    train["model"] = c(
        "SegResNet", blocks_down=[1, 1], blocks_up=[1], init_filters=8, in_channels=1, out_channels=2, dropout_prob=0.2
    )
    train["pre_transforms"][1]["name"] = "EnsureChannelFirstd"
    validate["pre_transforms"][1]["ref"] = "EnsureChannelFirstd"
    for section, key in ((train, "{TRAIN_DATALIST_KEY}"), (validate, "{VAL_DATALIST_KEY}")):
        section["dataset"] = dataset(key, transform="@pre_transforms")
        section["dataloader"]["args"]["dataset"] = "@dataset"
        del section["metrics"]
    handlers = {h["name"]: h["args"] for h in train["handlers"]}
    handlers["CheckpointLoader"]["load_dict"] = {"model": "@model"}
    handlers["LrScheduleHandler"]["lr_scheduler"] = "@lr_scheduler"
    handlers["ValidationHandler"]["validator"] = "@evaluator"
    handlers["CheckpointSaver"]["save_dict"] = {k: f"@{k}" for k in ("model", "optimizer", "lr_scheduler")}
    for name in ("StatsHandler", "TensorBoardStatsHandler"):
        handlers[name]["output_transform"] = LOSS_FROM_ENGINE
    train["post_transforms"][1]["args"]["to_onehot"] = 2
    train["key_metric"] = {**c("Accuracy", output_transform=FROM_ENGINE), "log_label": "train_acc"}
    engine = {"network": "@model", "inferer": "@inferer", "postprocessing": "@post_transforms", "amp": "{amp}"}
    train["trainer"]["args"] |= {
        **engine,
        "train_data_loader": "@dataloader",
        "loss_function": "@loss",
        "optimizer": "@optimizer",
        "key_train_metric": "@key_metric",
        "train_handlers": "@handlers",
    }
    validate["handlers"][2]["args"]["save_dict"] = {"model": "@model", "train_conf": "@conf"}
    validate["key_metric"] = {
        **c("MeanDice", include_background=True, output_transform=FROM_ENGINE),
        "log_label": "val_mean_dice",
    }
    validate["additional_metrics"] = [{**c("Accuracy", output_transform=FROM_ENGINE), "log_label": "val_acc"}]
    validate["evaluator"] = c(
        "SupervisedEvaluator",
        **engine,
        val_data_loader="@dataloader",
        key_val_metric="@key_metric",
        additional_metrics="@additional_metrics",
        val_handlers="@handlers",
    )
    return conf


def environment_41(**more) -> dict:
    return environment(
        MMAR_TORCHSCRIPT="models/models/ts",
        CLARA_TRAIN_VERSION="4.1.0",
        TRAIN_DATALIST_KEY="training",
        VAL_DATALIST_KEY="validation",
        INFER_DATALIST_KEY="test",
        **more,
    )


def spleen_41_validation() -> dict:
    """Clara 4.1's config_validation.json: model choices, MetricsSaver, Invertd, a disabled SaveImaged."""
    train, validate = spleen_41()["train"], spleen_41()["validate"]
    inverted = c("Invertd", keys=["pred"], transform="@pre_transforms", orig_keys="image", nearest_interp=False)
    discrete = c("AsDiscreted", keys=["pred", "label"], argmax=[True, False], to_onehot=2, n_classes=2)
    return {
        "CLARA_TRAIN_VERSION": "4.1.0",
        "use_gpu": True,
        "multi_gpu": False,
        "amp": True,
        "dont_load_ts_model": False,
        "dont_load_ckpt_model": True,
        "model": [
            {"ts_path": "{MMAR_TORCHSCRIPT}", "disabled": "{dont_load_ts_model}"},
            {"ckpt_path": "{MMAR_CKPT}", "disabled": "{dont_load_ckpt_model}"},
        ],
        "pre_transforms": [t for t in train["pre_transforms"] if not t["name"].startswith("Rand")],
        "dataset": {**dataset("validation", transform="@pre_transforms"), "name": "Dataset"},
        "dataloader": c("DataLoader", dataset="@dataset", batch_size=1, shuffle=False),
        "inferer": c("SlidingWindowInferer", roi_size=[16, 16, 16], sw_batch_size=4, overlap=0.25),
        "handlers": [
            {
                "name": "CheckpointLoader",
                "disabled": "{dont_load_ckpt_model}",
                "args": {"load_path": "{MMAR_CKPT}", "load_dict": {"model": "@model"}},
            },
            {"name": "StatsHandler", "rank": 0, "args": {"output_transform": "lambda x: None"}},
            c(
                "MetricsSaver",
                save_dir="{MMAR_EVAL_OUTPUT_PATH}",
                metrics=["val_mean_dice", "val_acc"],
                metric_details=["val_mean_dice"],
                batch_transform="#monai.handlers.from_engine(['image_meta_dict'])",
                summary_ops="*",
                save_rank=0,
            ),
        ],
        "post_transforms": [
            train["post_transforms"][0],
            inverted,
            discrete,
            {"disabled": True, **c("SaveImaged", keys="pred", output_dir="{MMAR_EVAL_OUTPUT_PATH}")},
        ],
        "key_metric": validate["key_metric"],
        "additional_metrics": validate["additional_metrics"],
        "evaluator": validate["evaluator"],
    }


# ---- 4.1: a chest finding


def chest_41() -> dict:
    """A classification as of 4.1: DenseNet121 by ``dimensions``-free arguments, names with D, cosine schedule, ROC AUC."""
    picked = {"output_transform": FROM_ENGINE}
    return {
        "CLARA_TRAIN_VERSION": "4.1.0",
        "epochs": 1,
        "multi_gpu": False,
        "amp": False,
        "num_interval_per_valid": 1,
        "learning_rate": 1e-4,
        "determinism": {"random_seed": 0},
        "train": {
            "loss": c("CrossEntropyLoss"),
            "optimizer": c("Novograd", params="#@model.parameters()", lr="{learning_rate}"),
            "lr_scheduler": c("CosineAnnealingLR", optimizer="@optimizer", T_max="{epochs}"),
            "model": {
                "path": "monai.networks.nets.DenseNet",
                "args": {
                    "spatial_dims": 2,
                    "in_channels": "{INPUT_CHANNELS}",
                    "out_channels": "{OUTPUT_CHANNELS}",
                    "init_features": 4,
                    "growth_rate": 2,
                    "block_config": [1, 1],
                },
            },
            "pre_transforms": [
                c("LoadImageD", keys="image", reader="NibabelReader"),
                c("AsChannelFirstD", keys="image"),
                c("ScaleIntensityRangeD", keys="image", a_min=0.0, a_max=255.0, b_min=-1.0, b_max=1.0),
                c("RandFlipD", keys="image", prob=0.5, spatial_axis=1),
                c("RandZoomD", keys="image", prob=0.5, min_zoom=0.9, max_zoom=1.1),
                c("CastToTypeD", keys="image", dtype="float32"),
                c("ToTensorD", keys=["image", "label"]),
            ],
            "dataset": dataset("{TRAIN_DATALIST_KEY}", transform="@pre_transforms"),
            "dataloader": c("DataLoader", dataset="@dataset", batch_size=4, shuffle=True, num_workers=0),
            "inferer": {"name": "SimpleInferer"},
            "handlers": [
                c("LrScheduleHandler", lr_scheduler="@lr_scheduler", print_lr=True),
                c("ValidationHandler", validator="@evaluator", epoch_level=True, interval="{num_interval_per_valid}"),
                {"name": "SmartCacheHandler", "args": {"smartcacher": "@dataset"}},
                {
                    "name": "StatsHandler",
                    "rank": 0,
                    "args": {"tag_name": "train_loss", "output_transform": LOSS_FROM_ENGINE},
                },
            ],
            "post_transforms": [c("ActivationsD", keys="pred", softmax=True)],
            "key_metric": {**c("Accuracy", **picked), "log_label": "train_acc"},
            "trainer": c("SupervisedTrainer", max_epochs="{epochs}", network="@model", amp="{amp}"),
        },
        "validate": {
            "pre_transforms": [
                {"ref": "LoadImageD"},
                {"ref": "AsChannelFirstD"},
                {"ref": "ScaleIntensityRangeD"},
                {"ref": "ToTensorD"},
            ],
            "dataset": dataset("{VAL_DATALIST_KEY}", transform="@pre_transforms"),
            "dataloader": c("DataLoader", dataset="@dataset", batch_size=1, shuffle=False, num_workers=0),
            "inferer": {"name": "SimpleInferer"},
            "handlers": [
                {"name": "StatsHandler", "rank": 0, "args": {"output_transform": "lambda x: None"}},
                c(
                    "EarlyStopHandler",
                    trainer="@trainer",
                    patience=3,
                    score_function="#monai.handlers.stopping_fn_from_metric('Average_AUC')",
                ),
                c(
                    "TensorBoardImageHandler",
                    log_dir="{MMAR_CKPT_DIR}",
                    batch_transform="lambda x: (x['image'], x['label'])",
                ),
                {
                    "name": "CheckpointSaver",
                    "rank": 0,
                    "args": {"save_dir": "{MMAR_CKPT_DIR}", "save_dict": {"model": "@model"}, "save_key_metric": True},
                },
            ],
            "post_transforms": [{"ref": "ActivationsD"}],
            "key_metric": {**c("ROCAUC", average="macro", **picked), "log_label": "Average_AUC"},
            "additional_metrics": [{**c("Accuracy", **picked), "log_label": "val_acc"}],
            "evaluator": c("SupervisedEvaluator", network="@model", amp="{amp}"),
        },
    }
