"""Configurations written for Clara Train 4.0 and 4.1 run as they are, in today's names, and say what became of them."""

from __future__ import annotations

import copy
import inspect
import json
import re

import numpy
import pytest
from armarium import clara
from armarium.components import MODULES, build, component_class
from armarium.configure import Globals, configure, evaluation_settings_of, read_effective, training_settings_of
from armarium.errors import Problems, UserError
from armarium.mmar_configs import environment_defaults
from armarium.recipe import training_settings
from armarium.records import log_members
from armarium.unused import without_effect
from tiny import case, component, configured, recipe, squares, training_of, write_recipe

from tests import clara_configs as of_clara


def in_todays_names(conf: dict, environment: dict | None = None, **more) -> dict:
    """The effective training configuration of a Clara configuration, with its warnings."""
    conf, notes = clara.translated(conf, "config_train.json")
    places, told = clara.located(environment or of_clara.environment())
    settings = training_settings(conf, {**environment_defaults(), **places}, "config_train.json")
    warnings = [*notes, *told, *without_effect(conf)]
    return {**settings, "task": "segmentation", "keep_epochs": [], "allow": [], "warnings": warnings, **more}


def changed(change) -> tuple[dict, list[str]]:
    conf = recipe()
    change(conf)
    return clara.translated(conf, "config_train.json")


# ---- they train


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    root = tmp_path_factory.mktemp("volumes")
    cases = squares(root, 4, (12, 12, 12))
    return root, cases[:2], cases[2:]


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """2D images whose files have their channel last."""
    root = tmp_path_factory.mktemp("findings")
    rng = numpy.random.RandomState(0)
    images = [(rng.rand(16, 16, 1) * 99 + 99 * (i % 2)).astype(numpy.float32) for i in range(8)]
    cases = [case(root, f"c{i}", [image], i % 2) for i, image in enumerate(images)]
    return root, cases[:4], cases[4:]


def spleen_40_in_the_examples_order() -> dict:
    """As NVIDIA's example has it: what is referred to for validation is not in the order of the training."""
    conf = of_clara.spleen_40()
    conf["validate"]["pre_transforms"].insert(1, conf["validate"]["pre_transforms"].pop(2))
    return conf


TRAINED = {
    "4.0 segmentation": (of_clara.spleen_40, of_clara.environment, "volumes", {}),
    "4.1 segmentation": (of_clara.spleen_41, of_clara.environment_41, "volumes", {}),
    "4.1 classification": (
        of_clara.chest_41,
        lambda: of_clara.environment_41(INPUT_CHANNELS=1, OUTPUT_CHANNELS=2),
        "findings",
        {"task": "classification"},
    ),
}


@pytest.mark.parametrize("which", TRAINED)
def test_a_configuration_of_clara_trains_and_its_warnings_are_in_the_archive(which, request, tmp_path):
    conf, environment, data, more = TRAINED[which]
    settings = in_todays_names(conf(), environment(), **more)
    training = training_of(request.getfixturevalue(data), tmp_path / "archive", settings)
    progress = training.run()
    assert progress.epoch == 1 and all(numpy.isfinite(loss) for *_, loss in progress.losses)
    (row,) = progress.history["aggregated"]
    assert set(row) == {"epoch", "loss", *(m["label"] for m in settings["validate"]["metrics"])}
    assert all(numpy.isfinite(value) for value in row.values())
    lines = log_members(training)["warning.log"].splitlines()
    assert (
        settings["warnings"]
        and [f"Recipe: {line}" for line in settings["warnings"]] == lines[: len(settings["warnings"])]
    )


def test_every_patch_of_a_case_is_in_its_batch(volumes, tmp_path):
    """Clara's batches hold ``batch_size`` times ``num_samples`` patches."""
    training = training_of(volumes, tmp_path / "archive", in_todays_names(spleen_40_in_the_examples_order()))
    images, labels = next(iter(training.loader))
    assert images.shape == labels.shape == (2 * 3, 1, 8, 8, 8)


def test_several_samples_of_a_case_are_refused_where_a_case_is_scored(volumes, tmp_path):
    conf = of_clara.spleen_40()
    crop = {"ref": "RandCropByPosNegLabeld"}
    conf["validate"]["pre_transforms"].insert(5, crop)
    with pytest.raises(UserError, match="give 3 samples of one case; only a random transform of training may"):
        training_of(volumes, tmp_path / "archive", in_todays_names(conf))


# ---- what is translated, and that it is told


def add(part: str, *components):
    section, _, key = part.partition(".")
    return lambda conf: conf[section][key].extend(components)


ARGS = {"keys": ["pred", "label"], "argmax": [True, False]}
TRANSLATED = [
    ("UNet", lambda c: c["train"]["model"]["args"].update(dimensions=c["train"]["model"]["args"].pop("spatial_dims")),
     "train.model", {"spatial_dims": 2}, "train.model: UNet: dimensions is now spatial_dims"),
    ("UNETR", lambda c: c["train"].update(model=component("UNETR", pos_embed="conv", img_size=16)),
     "train.model", {"proj_type": "conv", "img_size": 16}, "pos_embed is now proj_type"),
    ("SwinUNETR", lambda c: c["train"].update(model=component("SwinUNETR", img_size=[16, 16], in_channels=1)),
     "train.model", {"in_channels": 1}, "img_size left out"),
    ("TorchVisionFCModel", lambda c: c["train"].update(model=component("TorchVisionFullyConvModel", n_classes=3)),
     "train.model", {"num_classes": 3}, "TorchVisionFullyConvModel is now TorchVisionFCModel"),
    ("DiceCELoss", lambda c: c["train"].update(loss=component("DiceCELoss", ce_weight=None, softmax=True)),
     "train.loss", {"weight": None, "softmax": True}, "train.loss: DiceCELoss: ce_weight is now weight"),
    ("EnsureChannelFirstd", add("train.pre_transforms", component("AddChanneld", keys="image")),
     "train.pre_transforms", {"keys": "image", "channel_dim": "no_channel"}, "AddChanneld is now EnsureChannelFirstd with"),
    ("EnsureChannelFirstd", add("train.pre_transforms", component("AsChannelFirstD", keys="image", channel_dim=2)),
     "train.pre_transforms", {"keys": "image", "channel_dim": 2}, "AsChannelFirstd is now EnsureChannelFirstd"),
    ("LoadImaged", add("train.pre_transforms", component("LoadNiftid", keys="image")),
     "train.pre_transforms", {"keys": "image", "reader": "NibabelReader"}, "LoadNiftid is now LoadImaged"),
    ("SplitDimd", add("train.pre_transforms", component("SplitChanneld", keys="image", channel_dim=1)),
     "train.pre_transforms", {"keys": "image", "dim": 1}, "SplitChanneld is now SplitDimd"),
    ("EnsureTyped", add("train.pre_transforms", component("ToTensorDict", keys="image")),
     "train.pre_transforms", {"keys": "image"}, "ToTensord is now EnsureTyped"),
    ("Spacingd", add("train.pre_transforms", component("Spacingd", keys="image", pixdim=[1, 1], meta_key_postfix="m")),
     "train.pre_transforms", {"keys": "image", "pixdim": [1, 1]}, "Spacingd: meta_key_postfix left out"),
    ("RandAffined", add("train.pre_transforms", component("RandAffined", keys="image", as_tensor_output=False)),
     "train.pre_transforms", {"keys": "image"}, "as_tensor_output left out"),
    ("AsDiscreted", add("validate.post_transforms", component("AsDiscreted", **ARGS, to_onehot=True, n_classes=2)),
     "validate.post_transforms", {**ARGS, "to_onehot": 2}, "to_onehot, n_classes now say to_onehot 2"),
    ("AsDiscreted", add("validate.post_transforms", component("AsDiscreted", **ARGS, to_onehot=[True, False], n_classes=2)),
     "validate.post_transforms", {**ARGS, "to_onehot": [2, None]}, "now say to_onehot [2, null]"),
    ("AsDiscreted", add("validate.post_transforms", component("AsDiscreted", **ARGS, to_onehot=2, n_classes=2)),
     "validate.post_transforms", {**ARGS, "to_onehot": 2}, "now say to_onehot 2"),
    ("AsDiscreted", add("validate.post_transforms", component("AsDiscreteD", keys="pred", threshold_values=True)),
     "validate.post_transforms", {"keys": "pred", "threshold": 0.5}, "threshold_values now say threshold 0.5"),
    ("AsDiscreted",
     add("validate.post_transforms", component("AsDiscreted", keys="pred", threshold_values=True, logit_thresh=0.3)),
     "validate.post_transforms", {"keys": "pred", "threshold": 0.3}, "now say threshold 0.3"),
    ("MeanDice", lambda c: c["validate"]["key_metric"]["args"].update(device="cuda"),
     "validate.key_metric", {"include_background": False}, "validate.key_metric: MeanDice: device left out"),
]  # fmt: skip


def last_of(conf: dict, part: str) -> dict:
    section, _, key = part.partition(".")
    return conf[section][key][-1] if isinstance(conf[section][key], list) else conf[section][key]


@pytest.mark.parametrize(("name", "change", "part", "args", "told"), TRANSLATED, ids=[t[-1] for t in TRANSLATED])
def test_what_was_renamed_is_translated_and_told(name, change, part, args, told):
    conf, notes = changed(change)
    found = last_of(conf, part)
    assert found["name"] == name and args.items() <= found["args"].items() and told in "\n".join(notes)
    assert not {"dimensions", "n_classes", "device"} & found["args"].keys()
    assert clara.translated(conf, "again") == (conf, []), "what is in today's names stays"


def test_our_own_recipe_needs_no_translation():
    assert clara.translated(recipe(), "config_train.json") == (recipe(), [])


def test_every_successor_is_a_class_of_todays_monai_and_takes_the_arguments():
    for kind, of_kind in clara.RENAMED.items():
        for name, (new, renamed, added) in of_kind.items():
            parameters = inspect.signature(component_class(kind, component(new), (), "here")).parameters
            takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
            assert takes_more or {*renamed.values(), *added} <= parameters.keys(), name
            if name != "ToTensord":
                with pytest.raises(UserError, match="no "):
                    component_class(kind, component(name), (), "here")
    for kind, of_kind in clara.RENAMED_ARGS.items():
        for name, renamed in of_kind.items():
            classes = every_class(kind) if name == "*" else [component_class(kind, component(name), (), "here")]
            for cls in classes:
                parameters = inspect.signature(cls).parameters
                assert not renamed.keys() & parameters.keys(), (cls, renamed)
                assert name == "*" or {*renamed.values()} <= parameters.keys() or "kwargs" in parameters
    for kind, of_kind in clara.DROPPED_ARGS.items():
        for name, dropped in of_kind.items():
            if name != "*":
                cls = component_class(kind, component(name), (), "here")
                assert not set(dropped) & inspect.signature(cls).parameters.keys(), name
    for kind, of_kind in clara.REMOVED.items():
        for name in of_kind:
            with pytest.raises(UserError, match="no "):
                component_class(kind, component(name), (), "here")


def every_class(kind: str) -> list[type]:
    from importlib import import_module

    found = [v for m in MODULES[kind] for v in vars(import_module(m)).values()]
    return [v for v in found if inspect.isclass(v) and v.__module__.startswith("monai.")]


def test_a_reference_follows_what_was_renamed_and_repeats_it_where_the_name_no_longer_tells():
    conf = of_clara.spleen_40()
    conf["train"]["pre_transforms"].insert(2, component("EnsureChannelFirstd", keys="other", allow_missing_keys=True))
    conf, _ = clara.translated(conf, "config_train.json")
    assert conf["validate"]["pre_transforms"][1] == component(
        "EnsureChannelFirstd", keys=["image", "label"], channel_dim="no_channel"
    )
    assert conf["validate"]["pre_transforms"][-1] == {"ref": "EnsureTyped"}


def test_a_disabled_reference_stays_disabled():
    conf = of_clara.spleen_40()
    conf["validate"]["pre_transforms"][4]["disabled"] = "{dont_load_ckpt_model}"
    assert "CropForegroundd" not in str(in_todays_names(conf)["validate"])


def test_public_paths_are_names_and_others_are_the_users():
    def change(conf):
        conf["train"]["loss"] = {"path": "monai.losses.DiceLoss", "args": {"softmax": True}}
        conf["train"]["model"] = {"name": "Mine", "path": "mine.Net", "args": {}}
        conf["train"]["optimizer"]["path"] = "torch.optim.SGD"

    conf, notes = changed(change)
    assert conf["train"]["loss"] == component("DiceLoss", softmax=True) and notes == []
    assert conf["train"]["model"] == {"path": "mine.Net", "args": {}} and conf["train"]["optimizer"]["name"] == "SGD"
    allowed, _ = clara.translated({"loss": {"path": "monai.losses.DiceLoss"}}, "c", ["monai.losses.DiceLoss"])
    assert allowed == {"loss": {"path": "monai.losses.DiceLoss"}}, "so that what is allowed is built as it is"


def test_determinism_is_seed_and_deterministic():
    for given, wanted in [({"random_seed": 5}, (5, True)), ({"random_seed": None}, (0, False)), ({}, (0, False))]:
        conf = {k: v for k, v in recipe().items() if k not in ("seed", "deterministic")} | {"determinism": given}
        found, notes = clara.translated(conf, "c")
        assert (found["seed"], found["deterministic"]) == wanted and "determinism" in notes[0]
    assert clara.translated(recipe() | {"determinism": {"random_seed": 5}, "seed": 3}, "c")[0]["seed"] == 3


def test_savers_that_were_handlers_are_post_transforms():
    conf, notes = clara.translated(of_clara.spleen_40_inference(), "config_inference.json")
    assert [t["name"] for t in conf["post_transforms"]] == ["Activationsd", "Invertd", "AsDiscreted", "SaveImaged"]
    assert [h["name"] for h in conf["handlers"]] == ["StatsHandler"]
    assert {"SegmentationSaver", "TransformInverter"} <= {word for note in notes for word in note.split()}
    for transform in (t for t in conf["post_transforms"] if t["name"] not in ("Invertd", "SaveImaged")):
        build("transform", transform)
    again, notes = clara.translated(of_clara.spleen_41_validation(), "config_validation.json")
    assert again["post_transforms"][-1]["disabled"] is True and len(notes) == 2


# ---- what cannot be


REFUSED = [
    (add("train.pre_transforms", component("LoadPNGd", keys="image")), "LoadPNGd is no longer in MONAI: LoadImaged takes"),
    (lambda c: c["train"].update(model=component("CopleNet")), "CopleNet is no longer in MONAI: .*BasicUNet"),
    (add("validate.post_transforms", component("AsDiscreted", keys="pred", to_onehot=True)), "wants the number of classes"),
    (
        lambda c: c["validate"].update(key_metric=component("ROCAUC", softmax=True)),
        "softmax, which MONAI took out in 0.6; put Activationsd",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_is_gone_is_refused_with_its_successor(change, message):
    with pytest.raises(Problems, match=message):
        changed(change)


def test_what_is_gone_but_disabled_does_no_harm():
    changed(add("train.pre_transforms", {**component("LoadPNGd", keys="image"), "disabled": True}))


OTHERWISE = [
    (lambda c: c["train"]["trainer"].update(name="GanTrainer"), "train.trainer is 'GanTrainer'; wanted SupervisedTrainer"),
    (lambda c: c["validate"]["evaluator"].update(name="EnsembleEvaluator"), "wanted SupervisedEvaluator"),
    (lambda c: c["train"]["dataset"].update(name="PatchWSIDataset"), "train.dataset is 'PatchWSIDataset'; wanted ArrayDataset"),
    (lambda c: c["train"].update(iteration={"path": "deepgrow.ClickInteraction"}), "has 'iteration', which nothing here does"),
    (lambda c: c["train"]["loss"]["args"].update(weight="@weights"), "is '@weights'; this component is built from plain"),
    (
        lambda c: c["train"]["handlers"].append(component("GarbageCollector", trigger_event="@event")),
        "train.handlers GarbageCollector.trigger_event is '@event'",
    ),
    (
        lambda c: c["validate"]["key_metric"]["args"].update(output_transform="lambda x: (x['label'], x['pred'])"),
        "a metric is given the prediction and the label",
    ),
    (
        lambda c: c["validate"]["key_metric"]["args"].update(output_transform="lambda x: open('/etc/passwd')"),
        "is code, which is never run",
    ),
    (
        lambda c: c["validate"]["handlers"].append(component("EarlyStopHandler", patience=1, score_function="lambda x: x.output")),
        "is code, which is never run",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), OTHERWISE, ids=[m for _, m in OTHERWISE])
def test_what_would_be_done_otherwise_than_asked_is_refused(change, message):
    conf = recipe()
    change(conf)
    with pytest.raises(UserError, match=re.escape(message)):
        in_todays_names(conf)


# ---- forms


@pytest.mark.parametrize("form", ["#@model.parameters()", "$@model.parameters()", "@model.parameters()"])
def test_the_networks_parameters_are_the_trainers_to_give(form):
    conf = recipe()
    conf["train"]["optimizer"]["args"]["params"] = form
    conf["train"]["lr_scheduler"] = component(
        "SequentialLR",
        optimizer="@optimizer",
        schedulers=[component("ConstantLR", optimizer="@optimizer")],
        milestones=[],
    )
    found = in_todays_names(conf)
    assert "params" not in found["optimizer"]["args"] and "@optimizer" not in json.dumps(found["lr_scheduler"])


@pytest.mark.parametrize(
    "form",
    [
        "lambda x: (x['pred'], x['label'])",
        'lambda out: ( out["pred"], out["label"] )',
        "lambda x: ([i['pred'] for i in x], [i['label'] for i in x])",
        "#monai.handlers.from_engine(['pred', 'label'])",
        "$from_engine(('pred', 'label'), first=False)",
    ],
)
def test_a_metric_is_given_prediction_and_label_however_it_asks_for_them(form):
    conf = recipe()
    conf["validate"]["key_metric"]["args"]["output_transform"] = form
    assert in_todays_names(conf)["validate"]["metrics"][0]["args"] == {"include_background": False}


@pytest.mark.parametrize(
    ("form", "metric"),
    [
        ("lambda x: x.state.metrics['val_mean_dice']", "MeanDice"),
        ("#monai.handlers.stopping_fn_from_metric('MeanDice')", "MeanDice"),
        ("$monai.handlers.stopping_fn_from_loss()", "loss"),
    ],
)
def test_early_stopping_goes_by_the_metric_that_its_score_function_takes(form, metric):
    conf = recipe()
    conf["validate"]["handlers"].append(
        component("EarlyStopHandler", patience=2, trainer="@trainer", score_function=form)
    )
    assert in_todays_names(conf)["early_stopping"] == {"patience": 2, "min_delta": 0.0, "metric": metric}


def test_the_marked_metric_is_the_key_metric():
    assert [m["label"] for m in in_todays_names(of_clara.spleen_40())["validate"]["metrics"]] == [
        "MeanDice",
        "Accuracy",
    ]


def test_the_trainers_own_numbers_count_and_are_told():
    conf = recipe()
    conf["train"]["trainer"]["args"].update(max_epochs=9, amp=True)
    conf["train"]["dataloader"]["args"].update(num_workers=3, shuffle=False)
    found = in_todays_names(conf)
    assert (found["epochs"], found["amp"], found["num_workers"]) == (9, True, 3)
    assert [line.split(":")[0] for line in found["warnings"]] == [
        "train.dataloader",
        "train.trainer.max_epochs",
        "train.trainer.amp",
    ]


def test_what_has_no_effect_is_told():
    conf = recipe() | {"search": [], "use_gpu": False}
    del conf["train"]["handlers"][0]
    conf["validate"]["handlers"].append(component("TensorBoardImageHandler", log_dir="{MMAR_CKPT_DIR}"))
    told = in_todays_names(conf)["warnings"]
    for words in ("search: is not read", "use_gpu: has no effect", "without a LrScheduleHandler",
                  "validate.handlers: TensorBoardImageHandler is left out"):  # fmt: skip
        assert any(words in line for line in told), words
    assert in_todays_names(recipe())["warnings"] == []


# ---- the two typos of the seed's documents


def test_the_documents_missing_comma_is_put_in_and_told():
    text = '{\n  "MMAR_CKPT": "models/model.pt"\n  "MMAR_TORCHSCRIPT": "models/models/ts"\n}\n'
    found, told = clara.read_environment(text, "environment.json")
    assert found == {"MMAR_CKPT": "models/model.pt", "MMAR_TORCHSCRIPT": "models/models/ts"} and "comma" in told[0]
    assert clara.read_environment(json.dumps(found), "environment.json") == (found, [])
    for wrong in ('{"a": 1 "b": 2}', '{\n"a": 1\n"b"\n}', '{\n"a": 1,\n"a": 2\n}'):
        with pytest.raises(UserError, match="not valid JSON"):
            clara.read_environment(wrong, "environment.json")


def test_the_documents_mistyped_place_is_the_archives_and_other_places_are_told():
    given = {"MMAR_TORCHSCRIPT": "models/models/ts", "MMAR_CKPT_DIR": "models/", "MMAR_EVAL_OUTPUT_PATH": "/out"}
    found, told = clara.located(given)
    assert found == {"MMAR_TORCHSCRIPT": "models/model.ts", "MMAR_CKPT_DIR": "models", "MMAR_EVAL_OUTPUT_PATH": "eval"}
    assert [line.split(" is ")[0] for line in told] == [
        "environment.json: MMAR_EVAL_OUTPUT_PATH",
        "environment.json: MMAR_TORCHSCRIPT",
    ]


# ---- in an archive


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A folder with a Clara release as recipe."""
    folder = write_recipe(tmp_path / "recipe", of_clara.spleen_40())
    text = json.dumps(of_clara.environment_41(), indent=1).replace('model.pt",', 'model.pt"')
    (folder / "config/environment.json").write_text(text)
    (folder / "config/config_inference.json").write_text(json.dumps(of_clara.spleen_40_inference()))
    (folder / "config/config_validation.json").write_text(json.dumps(of_clara.spleen_41_validation()))
    return tmp_path


def test_an_archive_of_a_clara_release_holds_it_in_todays_names_and_says_what_was_translated(released):
    before = {p: p.read_bytes() for p in (released / "recipe").rglob("*.json")}
    found = configured(released)
    assert {p: p.read_bytes() for p in before} == before, "the release stays as it is"
    config = released / "archives/a/config"
    text = "".join(p.read_text() for p in config.glob("*.json") if p.name != "archive.json")
    for gone in (
        "AddChanneld",
        "ToTensord",
        "dimensions",
        "n_classes",
        "SegmentationSaver",
        "models/ts",
        "random_seed",
    ):
        assert f'"{gone}"' not in text
    assert json.loads((config / "environment.json").read_text())["MMAR_TORCHSCRIPT"] == "models/model.ts"
    told = json.loads((config / "effective/execution.json").read_text())["warnings"]
    translated = json.loads((config / "archive.json").read_text())["translated"]
    assert told == found.warnings and translated == told[: len(translated)]
    for words in ("train.model: UNet: dimensions is now spatial_dims", "environment.json: a comma was missing",
                  "config_inference.json: handlers: SegmentationSaver is now SaveImaged", "MMAR_TORCHSCRIPT is"):  # fmt: skip
        assert any(words in line for line in told), words
    assert configured(released).rewritten == []


def on_disk(folder):
    """The archive as one that is not listed."""
    return configure(str(folder / "archives/a"), None, Globals(cache_dir=str(folder / "cache")))


def test_a_copy_of_that_archive_needs_nothing_and_remembers(released):
    first, copied = configured(released), on_disk(released)
    assert copied.rewritten == [] and copied.warnings == first.warnings
    assert copied.fingerprint("training", 0) == first.fingerprint("training", 0)


def test_a_hand_written_old_name_in_a_copy_is_translated_where_it_stands(released):
    configured(released)
    path = released / "archives/a/config/config_train.json"
    conf = json.loads(path.read_text())
    conf["train"]["pre_transforms"].append(component("SplitChanneld", keys="image", channel_dim=0))
    path.write_text(json.dumps(conf))
    found = on_disk(released)
    assert "SplitDimd" in path.read_text() and "SplitChanneld" not in path.read_text()
    assert any("SplitChanneld is now SplitDimd" in line for line in found.warnings)


def test_a_translation_changes_no_fingerprint(tmp_path):
    """The same recipe in today's names is the same training: nothing is trained again for a name."""
    old, new = tmp_path / "old", tmp_path / "new"
    conf = copy.deepcopy(of_clara.spleen_41())
    write_recipe(old / "recipe", conf, of_clara.environment_41())
    write_recipe(new / "recipe", clara.translated(conf, "c")[0], of_clara.environment_41())
    assert configured(old).fingerprint("training", 0) == configured(new).fingerprint("training", 0)


# ---- configurations of somebody's own beside config_train.json


def test_a_releases_own_validation_decides_how_the_published_model_is_evaluated(released):
    configured(released)
    archive = str(released / "archives/a")
    trained = training_settings_of(archive)
    evaluated = evaluation_settings_of(archive, trained)["validate"]
    assert (trained["validate"]["inferer"]["args"]["overlap"], evaluated["inferer"]["args"]["overlap"]) == (0.5, 0.25)
    assert [m["label"] for m in evaluated["metrics"]] == ["MeanDice", "Accuracy"]
    assert evaluated["metrics"][0]["args"] == {"include_background": True}
    assert json.loads((released / "archives/a/config/archive.json").read_text())["own"] == [
        "config_inference.json",
        "config_validation.json",
    ]
    (released / "recipe/config/config_validation.json").unlink()
    assert configured(released).changed >= {"predict"} and "validate" not in read_effective(archive, "predict")


def edit(folder, name: str, change) -> None:
    path = folder / "archives/a/config" / name
    conf = json.loads(path.read_text())
    change(conf)
    path.write_text(json.dumps(conf))


@pytest.fixture
def ours(tmp_path):
    write_recipe(tmp_path / "recipe")
    configured(tmp_path)
    return tmp_path


def test_an_edited_validation_of_a_copy_counts_and_is_evaluated_alone(ours):
    before = on_disk(ours)
    edit(ours, "config_validation.json", lambda c: c.update(inferer=component("SlidingWindowInferer", roi_size=[8, 8])))
    after = on_disk(ours)
    assert after.changed == {"predict"}
    for product, which, same in [("training", (0,), True), ("published evaluation", (), False)]:
        assert (before.fingerprint(product, *which) == after.fingerprint(product, *which)) is same
    assert on_disk(ours).rewritten == [], "and stays its owner's"


def test_what_follows_from_an_edited_training_is_written_anew_but_not_what_is_somebodys_own(ours):
    edit(ours, "config_validation_ckpt.json", lambda c: c.update(mine=1))
    edit(
        ours, "config_train.json", lambda c: c["validate"].update(inferer=component("SlidingWindowInferer", roi_size=8))
    )
    on_disk(ours)
    config = ours / "archives/a/config"
    inferers = {n: json.loads((config / n).read_text())["inferer"]["name"] for n in
                ("config_validation.json", "config_validation_ckpt.json", "config_inference.json")}  # fmt: skip
    assert list(inferers.values()) == ["SlidingWindowInferer", "SimpleInferer", "SlidingWindowInferer"]
    assert json.loads((config / "config_finetune.json").read_text())["validate"]["inferer"]["args"] == {"roi_size": 8}


def test_an_inference_that_is_not_as_the_validation_is_told(ours):
    edit(ours, "config_inference.json", lambda c: c.update(inferer=component("SlidingWindowInferer", roi_size=[8, 8])))
    assert on_disk(ours).warnings == [
        "config_inference.json: inferer is not as in config_validation.json, by which cases are predicted too"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("inferer"), "config_validation.json: lacks inferer"),
        (lambda c: c["inferer"].update(args={"roi_size": "{nowhere}"}), "no value for {nowhere}"),
        (lambda c: c["key_metric"]["args"].update(output_transform="lambda x: exit()"), "is code, which is never run"),
        (lambda c: c["evaluator"].update(name="EnsembleEvaluator"), "evaluator is 'EnsembleEvaluator'"),
    ],
)
def test_a_wrong_validation_of_ones_own_is_refused(change, message, ours):
    edit(ours, "config_validation.json", change)
    with pytest.raises(UserError, match=re.escape(message)):
        on_disk(ours)
