"""From names to objects: public classes of MONAI, torch and ignite alone, and nothing imported for a recipe's sake."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from armarium.components import MODULES, build, build_lr_scheduler, component_class, substitute_runtime
from armarium.errors import UserError
from armarium.inspection import check_components, layer_table
from tiny import CLASSES, component, handler, recipe, settings


def refused(kind: str, described: dict, allow=(), *leading) -> str:
    with pytest.raises(UserError) as caught:
        build(kind, described, allow, *leading)
    return str(caught.value)


def parameters() -> list:
    return [torch.nn.Parameter(torch.zeros(1))]


# ---- what is found


FOUND = [
    ("loss", "DiceLoss", "monai.losses"),
    ("loss", "CrossEntropyLoss", "torch.nn"),
    ("optimizer", "AdamW", "torch.optim"),
    ("optimizer", "Novograd", "monai.optimizers"),
    ("lr_scheduler", "PolynomialLR", "torch.optim.lr_scheduler"),
    ("lr_scheduler", "WarmupCosineSchedule", "monai.optimizers"),
    ("model", "UNet", "monai.networks.nets"),
    ("transform", "RandFlipd", "monai.transforms"),
    ("inferer", "SlidingWindowInferer", "monai.inferers"),
    ("handler", "GarbageCollector", "monai.handlers"),
    ("metric", "MeanDice", "monai.handlers"),
    ("metric", "Accuracy", "ignite.metrics"),
]


@pytest.mark.parametrize(("kind", "name", "module"), FOUND)
def test_a_name_is_looked_up_in_the_modules_of_its_kind(kind, name, module):
    assert component_class(kind, component(name), (), "here").__module__.startswith(module)
    assert kind in MODULES


def test_the_arguments_reach_the_class():
    loss = build("loss", component("DiceLoss", include_background=False, sigmoid=True))
    assert (loss.include_background, loss.sigmoid) == (False, True)


# ---- what is not


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("loss", "DiceLos", "no loss 'DiceLos' in monai.losses or torch.nn; did you mean 'DiceLoss'?"),
        ("model", "Unet3d", "no model 'Unet3d' in monai.networks.nets"),
        ("optimizer", "Adam W", "did you mean 'AdamW'?"),
        ("transform", "RandFlippd", "did you mean 'RandFlipd'?"),
        ("inferer", "SlidingWindowInfererr", "did you mean 'SlidingWindowInferer'?"),
        ("metric", "ROCAUK", "did you mean 'ROCAUC'?"),
        ("handler", "NothingLikeIt", "see MONAI's documentation for the names"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(kind, name, hint):
    assert hint in refused(kind, component(name))


NO_CLASSES = [
    "system",
    "os",
    "eval",
    "exec",
    "os.system",
    "subprocess.Popen",
    "__class__",
    "_Loss",
    "warnings",
    "functional",
    "partial",
    "Any",
    "open",
    "import_module",
    "",
    "a b",
]


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", NO_CLASSES)
def test_what_is_no_public_class_is_refused_by_name(kind, name):
    with pytest.raises(UserError, match="no "):
        component_class(kind, component(name), (), "here")


@pytest.mark.parametrize(
    "path", ["os.system", "subprocess.Popen", "builtins.eval", "armarium_evil.Loss", "monai.losses.DiceLoss", ""]
)
def test_a_path_that_is_not_allowed_is_refused_without_importing_it(path, tmp_path, monkeypatch):
    (tmp_path / "armarium_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    message = refused("loss", {"path": path, "args": {}}, ["other.path"])
    assert f"path '{path}' is not allowed" in message and "'allow'" in message
    assert not (tmp_path / "ran").exists() and "armarium_evil" not in sys.modules


def test_an_allowed_path_is_followed_and_no_other_of_its_module(tmp_path, monkeypatch):
    (tmp_path / "armarium_own.py").write_text(
        "class Loss:\n    def __init__(self, a):\n        self.a = a\nOther = Loss\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build("loss", {"path": "armarium_own.Loss", "args": {"a": 3}}, ["armarium_own.Loss"]).a == 3
    assert "not allowed" in refused("loss", {"path": "armarium_own.Other", "args": {}}, ["armarium_own.Loss"])


@pytest.mark.parametrize("path", ["armarium_missing.Loss", "armarium.errors.Missing", "nodots"])
def test_an_allowed_path_that_leads_nowhere_is_refused(path):
    assert f"cannot import '{path}'" in refused("loss", {"path": path, "args": {}}, [path])


def test_a_name_goes_before_a_path():
    assert "no loss" in refused("loss", {"name": "os.system", "path": "os.system", "args": {}}, ["os.system"])


# ---- arguments


@pytest.mark.parametrize(
    ("kind", "described"),
    [
        ("loss", component("DiceLoss", sigmod=True)),
        ("loss", component("DiceLoss", sigmoid=True, softmax=True)),
        ("model", component("UNet", spatial_dims=2)),
        ("model", component("UNet", spatial_dims=2, in_channels=1, out_channels=2, channels=[2], strides=[])),
        ("model", component("UNet", spatial_dims=2, in_channels=-1, out_channels=2, channels=[2, 4], strides=[2])),
        ("model", component("UNet", spatial_dims="two", in_channels=1, out_channels=2, channels=[2, 4], strides=[2])),
        ("transform", component("SpatialPadd", keys="image")),
        ("transform", component("RandFlipd", prob=0.5)),
        ("inferer", component("SlidingWindowInferer", roi=[4])),
        ("metric", component("ROCAUC", average="all")),
    ],
)
def test_arguments_that_do_not_fit_are_told_with_the_component(kind, described):
    message = refused(kind, described)
    assert message.startswith(f"{kind} {described['name']}: args {{") and "do not fit: " in message


@pytest.mark.parametrize("args", [{"lr": -1}, {"lr": "fast"}, {"learning_rate": 0.1}, {"params": []}])
def test_arguments_of_an_optimizer_that_do_not_fit_are_told(args):
    assert "do not fit" in refused("optimizer", component("AdamW", **args), (), parameters())


@pytest.mark.parametrize(
    "reader", ["os.system", "subprocess.call", "armarium_evil.Reader", "system", ["NibabelReader", "os.system"]]
)
def test_a_reader_is_no_way_to_code(reader, tmp_path, monkeypatch):
    """MONAI calls any dotted path that is given as a reader, with the arguments that are left over."""
    (tmp_path / "armarium_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    message = refused(
        "transform", component("LoadImaged", keys="image", reader=reader, command=f"touch {tmp_path / 'ran'}")
    )
    assert "reader is " in message and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("kind", "described", "message"),
    [
        ("transform", component("LoadImaged", keys="image", writer="os.system"), "wanted none"),
        ("inferer", component("PatchInferer", merger_cls="os.system"), "wanted AvgMerger"),
        ("inferer", component("PatchInferer", merger_cls="ZarrAvgMerger", store="/tmp/x"), "wanted AvgMerger"),
        ("transform", component("LoadImaged", keys="image", reader="NumpyReader"), "wanted NibabelReader or ITKReader"),
    ],
)
def test_neither_are_a_writer_and_a_merger_nor_a_reader_that_unpickles(kind, described, message):
    assert message in refused(kind, described)


def test_monais_own_reader_of_nifti_stays():
    build("transform", component("LoadImaged", keys="image", reader="NibabelReader"))


# ---- schedules


def test_the_length_of_a_training_is_put_in():
    value = {"a": "{iterations}", "b": ["{steps_per_epoch}", "{other}"], "c": "x{iterations}"}
    assert substitute_runtime(value, {"iterations": 8, "steps_per_epoch": 4}) == {
        "a": 8,
        "b": [4, "{other}"],
        "c": "x{iterations}",
    }


def test_schedules_follow_one_another():
    optimizer = torch.optim.SGD(parameters(), lr=1.0)
    warm_up, decay = (
        component("LinearLR", start_factor=0.1, total_iters=2),
        component("ConstantLR", factor=0.5, total_iters=9),
    )
    schedule = build_lr_scheduler(component("SequentialLR", schedulers=[warm_up, decay], milestones=[2]), optimizer)
    rates = []
    for _ in range(4):
        rates.append(round(optimizer.param_groups[0]["lr"], 3))
        optimizer.step()
        schedule.step()
    assert rates == [0.1, 0.55, 0.5, 0.5]


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (component("SequentialLR", schedulers=["LinearLR"], milestones=[1]), "wanted a list of components"),
        (component("SequentialLR", schedulers=[component("LinearRL")], milestones=[]), "did you mean 'LinearLR'?"),
        (component("SequentialLR", schedulers=[component("LinearLR")], milestones=[1, 2]), "do not fit"),
        (component("PolynomialLR", total_steps=3), "do not fit"),
        (component("ReduceLROnPlateau"), "waits for a validation value"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(described, message):
    with pytest.raises(UserError) as caught:
        build_lr_scheduler(described, torch.optim.SGD(parameters(), lr=1.0))
    assert message in str(caught.value)


# ---- the whole recipe, before it costs anything


def test_every_component_of_a_right_recipe_is_built_and_its_network_described():
    table = layer_table(check_components(settings(), CLASSES))
    total = int(table.split("parameters:")[1].split()[0])
    assert total == sum(int(line.split()[-1]) for line in table.splitlines()[1:] if len(line.split()) == 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["train"]["loss"].update(name="DiceeLoss"), "did you mean 'DiceLoss'?"),
        (lambda c: c["train"]["optimizer"]["args"].update(lrr=1), "optimizer AdamW"),
        (lambda c: c["train"]["lr_scheduler"]["args"].update(powre=1), "lr_scheduler PolynomialLR"),
        (lambda c: c["train"]["pre_transforms"].append(component("RandFlip3d")), "no transform 'RandFlip3d'"),
        (
            lambda c: c["validate"]["pre_transforms"].append(component("RandFlipd", keys="image")),
            "RandFlipd is random; validation must not be",
        ),
        (lambda c: c["validate"]["post_transforms"].append(component("Activationsd")), "transform Activationsd"),
        (lambda c: c["train"]["handlers"].append(component("GarbageCollecto")), "did you mean 'GarbageCollector'?"),
        (lambda c: c["validate"]["inferer"].update(name="SimpleInfere"), "did you mean 'SimpleInferer'?"),
        (lambda c: c["validate"]["key_metric"]["args"].update(background=1), "metric MeanDice"),
        (
            lambda c: c["train"]["model"]["args"].update(out_channels=3),
            "out_channels is 3, but the dataset has 2 classes",
        ),
        (
            lambda c: handler(c, "LrScheduleHandler") and c["train"]["lr_scheduler"].update(name="PolyLR"),
            "no lr_scheduler 'PolyLR'",
        ),
    ],
)
def test_a_component_that_cannot_be_built_is_told_before_training(change, message):
    conf = recipe()
    change(conf)
    with pytest.raises(UserError) as caught:
        check_components(settings(conf), CLASSES)
    assert message in str(caught.value)


def test_planning_imports_neither_torch_nor_monai():
    code = "import sys, armarium.configure, armarium.recipe, armarium.steps, armarium.run; print({'torch', 'monai', 'nibabel', 'pandas'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(p for p in sys.path if p.endswith("workflow"))},
    )
    assert done.stdout.strip() == "set()", done.stderr
