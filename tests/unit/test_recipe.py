"""MMAR configurations: variables, overrides, references, metrics, and what is never run."""

from __future__ import annotations

import json
from itertools import product

import pytest
from armarium.errors import Problems, UserError
from armarium.mmar_configs import environment_defaults
from armarium.recipe import metric_names, override, processes_of, substitute, training_settings
from tiny import REPO, component, handler, recipe, settings


def changed(change) -> dict:
    """The settings of the tiny recipe after ``change`` has altered it."""
    conf = recipe()
    change(conf)
    return settings(conf)


def refused(change) -> str:
    conf = recipe()
    change(conf)
    with pytest.raises(UserError) as caught:
        training_settings(conf, environment_defaults(), "config_train.json")
    return str(caught.value)


# ---- variables


def test_a_variable_alone_keeps_its_type_and_one_within_text_becomes_text():
    variables = {"n": 3, "rate": 0.5, "on": True, "nothing": None, "word": "x"}
    value = {"a": "{n}", "b": ["{rate}", {"c": "{on}"}], "d": "n={n}, {word}", "e": "{nothing}", "f": 7, "g": "{ n }"}
    assert substitute(value, variables, "r") == {
        "a": 3,
        "b": [0.5, {"c": True}],
        "d": "n=3, x",
        "e": None,
        "f": 7,
        "g": "{ n }",
    }


def test_an_unknown_variable_is_refused_where_it_stands_with_the_nearest_name():
    with pytest.raises(UserError, match=r"r\.args\[1\]: no value for \{learning_rte\}; did you mean 'learning_rate'\?"):
        substitute({"args": [1, "{learning_rte}"]}, {"learning_rate": 1}, "r")


def test_what_only_a_started_training_knows_stays_a_variable():
    assert settings()["lr_scheduler"]["args"]["total_iters"] == "{iterations}"
    assert substitute("{iterations}", {"iterations": 40}, "r") == 40


def test_every_variable_of_the_tiny_recipe_is_filled_in():
    text = json.dumps(settings()).replace("{iterations}", "")
    assert "{learning_rate}" not in text and "{batch_size}" not in text and "MMAR" not in text


def test_moving_the_data_changes_no_setting():
    assert settings(environment={"DATA_ROOT": "/elsewhere"}) == settings()


@pytest.mark.parametrize(("in_environment", "in_set"), list(product([False, True], repeat=2)))
def test_set_goes_over_environment_and_environment_over_the_configuration(in_environment, in_set):
    conf, environment = recipe(), {"learning_rate": 0.2} if in_environment else {}
    conf["learning_rate"] = 0.1
    conf, environment = override(conf, environment, {"learning_rate": "0.3"} if in_set else {})
    assert settings(conf, environment)["optimizer"]["args"]["lr"] == (0.3 if in_set else 0.2 if in_environment else 0.1)


def test_what_is_set_is_kept_where_the_variable_lives():
    conf, environment = override(recipe(), {"learning_rate": 0.2}, {"learning_rate": 0.3, "epochs": "9", "threads": 2})
    assert environment == {"learning_rate": 0.3}
    assert (conf["epochs"], conf["threads"], conf["learning_rate"]) == (9, 2, 0.01)


def test_setting_leaves_what_was_read_alone():
    conf, environment = recipe(), {"seed": 1}
    override(conf, environment, {"epochs": 9, "seed": 2})
    assert conf == recipe() and environment == {"seed": 1}


def test_an_own_variable_of_the_recipe_can_be_set_in_its_type():
    conf = {**recipe(), "width": 8}
    assert override(conf, {}, {"width": "16"})[0]["width"] == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rte": 1}, "no variable 'learning_rte' in the recipe; did you mean 'learning_rate'?"),
        ({"DATA_ROOT": "x"}, "DATA_ROOT cannot be set; use data_root"),
        ({"MMAR_CKPT": "x"}, "MMAR_CKPT cannot be set"),
        ({"epochs": "many"}, "epochs is 'many'; wanted integer"),
        ({"train": {}}, "no variable 'train' in the recipe"),
    ],
)
def test_a_wrong_set_is_refused(changes, message):
    with pytest.raises(UserError) as caught:
        override(recipe(), environment_defaults(), changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("environment", [{"epochs": 0}, {"epochs": "many"}, {"learning_rate": -1}, {"amp": 3}])
def test_environment_json_is_held_to_the_schema_as_well(environment):
    with pytest.raises(UserError, match=r"(?s)environment\.json beside .*(epochs|learning_rate|amp)"):
        settings(environment=environment)


def test_a_string_in_environment_json_is_typed():
    assert settings(environment={"epochs": "7"})["epochs"] == 7


# ---- components


def test_a_reference_stands_for_the_train_component_of_that_name():
    found = changed(lambda c: c["train"]["pre_transforms"][2]["args"].update(nonzero=True))
    assert found["validate"]["pre_transforms"] == found["pre_transforms"][:4]
    assert found["validate"]["pre_transforms"][2]["args"]["nonzero"] is True


def test_a_reference_to_nothing_is_refused():
    message = refused(lambda c: c["validate"]["pre_transforms"].append({"ref": "DivisiblePad"}))
    assert "ref 'DivisiblePad' names no train component; did you mean 'DivisiblePadd'?" in message


@pytest.mark.parametrize("value", [True, "true", "{dont_load_ckpt_model}"])
def test_a_disabled_component_is_left_out(value):
    found = changed(lambda c: c["train"]["pre_transforms"][-1].update(disabled=value))
    assert [c["name"] for c in found["pre_transforms"]][-1] == "DivisiblePadd"


def test_a_component_with_disabled_false_stays():
    assert len(changed(lambda c: c["train"]["pre_transforms"][-1].update(disabled=False))["pre_transforms"]) == 5


def test_handlers_play_their_part_as_settings():
    def change(conf):
        handler(conf, "LrScheduleHandler")["epoch_level"] = True
        handler(conf, "ValidationHandler")["interval"] = 3
        handler(conf, "CheckpointSaver")["save_interval"] = 2
        conf["validate"]["handlers"].append(component("EarlyStopHandler", patience="4"))
        conf["train"]["handlers"].append(component("GarbageCollector", trigger_event="epoch"))

    found = changed(change)
    assert (found["lr_epoch_level"], found["validation_interval"], found["save_interval"]) == (True, 3, 2)
    assert found["early_stopping"] == {"patience": 4, "min_delta": 0.0}
    assert [h["name"] for h in found["handlers"]] == ["GarbageCollector"]


def test_without_its_handler_a_schedule_does_nothing():
    found = changed(
        lambda c: c["train"].update(handlers=[h for h in c["train"]["handlers"] if h["name"] != "LrScheduleHandler"])
    )
    assert found["lr_scheduler"] is None


def test_the_loader_may_say_its_own_batch_size():
    assert changed(lambda c: c["train"]["dataloader"]["args"].update(batch_size=5, drop_last=True))["batch_size"] == 5


# ---- metrics


def test_metrics_are_named_by_a_plain_label_else_by_their_class():
    def change(conf):
        conf["validate"]["key_metric"]["log_label"] = "Dice"
        conf["validate"]["additional_metrics"] = [
            {**component("MeanDice"), "log_label": "val_mean_dice"},
            {**component("HausdorffDistance"), "log_label": "HD95"},
            {**component("MeanIoUHandler"), "disabled": True},
        ]

    found = changed(change)
    assert metric_names(found) == ["loss", "Dice", "MeanDice", "HD95"]
    assert [m["mode"] for m in found["validate"]["metrics"]] == ["max", "max", "min"]


def test_a_mode_given_decides_which_is_best():
    assert changed(lambda c: c["validate"]["key_metric"].update(mode="min"))["validate"]["metrics"][0]["mode"] == "min"


# ---- what is refused


CODE = [
    "$__import__('os').system('x')",
    "#@model.parameters() + 1",
    "$@model.state_dict()",
    "lambda x: x",
    "  lambda x: x",
]


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("place", ["argument", "nested", "variable"])
def test_code_is_refused_wherever_it_stands(code, place):
    def change(conf):
        args = conf["train"]["loss"]["args"]
        if place == "variable":
            conf["own"] = code
        args["x"] = {"argument": code, "nested": [{"y": code}], "variable": "{own}"}[place]

    message = refused(change)
    assert "is code, which is never run" in message and "train.loss.args.x" in message


def test_all_code_is_reported_together():
    def change(conf):
        conf["train"]["loss"]["args"]["a"] = "$1"
        conf["validate"]["evaluator"]["_target_"] = "os.system"

    conf = recipe()
    change(conf)
    with pytest.raises(Problems) as caught:
        settings(conf)
    assert len(caught.value.problems) == 2 and "'_target_' is not read" in caught.value.problems[1]


def test_the_usual_reference_to_the_networks_parameters_is_let_through():
    changed(lambda c: c["train"]["optimizer"]["args"].update(params="#@model.parameters()"))


REFUSED = [
    (lambda c: c.pop("validate"), "no section 'validate'"),
    (lambda c: c.update(train=[]), "no section 'train'"),
    (lambda c: [c["train"].pop(k) for k in ("loss", "model")], "section 'train' lacks loss, model"),
    (lambda c: c["validate"].pop("dataset"), "section 'validate' lacks dataset"),
    (lambda c: c["validate"].pop("evaluator"), "section 'validate' lacks evaluator"),
    (lambda c: c["validate"].pop("key_metric"), "no key_metric"),
    (lambda c: c["validate"]["key_metric"].update(disabled=True), "no key_metric"),
    (lambda c: c["validate"].update(key_metric="MeanDice"), "found 'MeanDice'; wanted a component"),
    (lambda c: c["validate"]["key_metric"].update(mode="biggest"), "mode is 'biggest'; wanted min or max"),
    (lambda c: c["validate"].update(additional_metrics=[component("MeanDice")]), "two metrics are named ['MeanDice']"),
    (lambda c: c["validate"]["key_metric"].update(log_label="loss"), "two metrics are named ['loss']"),
    (lambda c: c["train"].update(model="UNet"), "train.model is 'UNet'; wanted an object"),
    (lambda c: c["train"].update(model={"args": {}}), 'wanted a component {"name"'),
    (lambda c: c["train"].update(model={"ref": "x"}), 'wanted a component {"name"'),
    (lambda c: c["train"]["model"].update(name=None), "found {'name': None}; wanted a text"),
    (lambda c: c["train"]["model"].update(args=[1]), "args is [1]; wanted an object of named arguments"),
    (lambda c: c["train"].update(pre_transforms={}), "train.pre_transforms is {}; wanted a list"),
    (lambda c: c["train"]["pre_transforms"].append("RandFlipd"), "found 'RandFlipd'; wanted a component"),
    (lambda c: c["train"].update(dataloader=[]), "train.dataloader is []; wanted an object"),
    (lambda c: c["train"]["dataloader"].update(args=None), "args is None"),
    (lambda c: c["train"]["dataloader"]["args"].update(batch_size=0), "batch_size: found 0"),
    (lambda c: c["train"]["dataloader"]["args"].update(batch_size="two"), "batch_size: found 'two'"),
    (lambda c: c["train"]["dataloader"]["args"].update(drop_last="maybe"), "drop_last is 'maybe'; wanted boolean"),
    (lambda c: handler(c, "ValidationHandler").update(interval=0), "num_interval_per_valid: found 0"),
    (lambda c: c["train"]["handlers"].append(component("EarlyStopHandler")), "patience is None; wanted integer"),
    (lambda c: c["train"]["handlers"].append(component("EarlyStopHandler", patience=0)), "patience is 0"),
    (
        lambda c: c["train"]["handlers"].append(component("EarlyStopHandler", patience=3, metric="MeanDic")),
        "did you mean 'MeanDice'?",
    ),
    (lambda c: c.update(epochs=0), "epochs: found 0"),
    (lambda c: c.update(epochs=4.0), "epochs: found 4.0 (float), wanted integer"),
    (lambda c: c.update(learning_rate="fast"), "learning_rate: found 'fast' (str), wanted number"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_a_wrong_recipe_is_refused_with_one_message(change, message):
    assert message in refused(change)


def test_the_recipes_of_the_examples_are_right():
    for folder in (REPO / "config/recipes").iterdir():
        conf, environment = (
            json.loads((folder / "config" / f).read_text()) for f in ("config_train.json", "environment.json")
        )
        assert training_settings(conf, environment, folder.name)["epochs"] > 0


def test_a_handler_keeps_the_number_of_the_process_that_it_is_for():
    def of(**more) -> list:
        handlers = [{**component("ParameterScheduler"), **more}, {"name": "StatsHandler", "rank": 0, "args": {}}]
        return changed(lambda conf: conf["train"]["handlers"].extend(handlers))["handlers"]

    assert of() == [component("ParameterScheduler")] and of(rank=1) == [{**component("ParameterScheduler"), "rank": 1}]
    assert "rank is 'first'" in refused(
        lambda conf: conf["train"]["handlers"].append({**component("ParameterScheduler"), "rank": "first"})
    )


def test_the_number_of_processes_decides_a_training_only_with_multi_gpu():
    def of(**variables) -> dict:
        return settings({**recipe(), **variables})

    assert of() == of(processes=3) == of(multi_gpu=True, processes=1), (
        "and archives of one process keep their fingerprint"
    )
    assert processes_of(of()) == 1 and processes_of(of(multi_gpu=True)) == 2
    assert of(multi_gpu=True, processes=3) == {**of(), "processes": 3}
    assert "processes" in refused(lambda conf: conf.update(processes=0))
