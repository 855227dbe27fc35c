"""Every edit that docs/reruns.md has a row for, as a change of a project's files."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from .conftest import Project, micro_config, micro_recipe

Edit = Callable[[Project], None]
"""Changes a project's files."""

DATA = "data/micro"
LIST = f"{DATA}/dataset.json"


# ---- config.yaml


def top(**changes) -> Edit:
    """Keys of config.yaml's top level."""
    return lambda project: project.configure({**micro_config(), **changes})


def section(*path: str, **changes) -> Edit:
    """Keys of the archive's section, or of one below it."""

    def edit(project: Project) -> None:
        config = micro_config()
        found = config["archives"]["micro"]
        for name in path:
            found = found.setdefault(name, {})
        found.update(changes)
        project.configure(config)

    return edit


def without(*path: str) -> Edit:
    """The archive's section without one of its keys."""

    def edit(project: Project) -> None:
        config = micro_config()
        found = config["archives"]["micro"]
        for name in path[:-1]:
            found = found[name]
        del found[path[-1]]
        project.configure(config)

    return edit


def moved_archives(project: Project) -> None:
    (project.folder / "archives").rename(project.folder / "elsewhere")
    top(archives_dir="elsewhere")(project)


def moved_data(project: Project) -> None:
    (project.folder / "moved").mkdir()
    (project.folder / "data").rename(project.folder / "moved/data")
    top(data_root="moved")(project)


def another_archive(project: Project) -> None:
    config = micro_config()
    config["archives"]["other"] = config["archives"]["micro"]
    project.configure(config)


def moved_recipe(project: Project) -> None:
    (project.folder / "recipe").rename(project.folder / "same")
    section(recipe="same")(project)


def same_list(project: Project) -> None:
    shutil.copy(project.folder / LIST, project.folder / DATA / "same.json")
    section("dataset", list=f"{DATA}/same.json")(project)


def rewritten_config(project: Project) -> None:
    """The same in JSON, keys in another order, with what is left out spelled out."""
    config = micro_config()
    config["device"] = "auto"
    config["archives"]["micro"]["publish"] = 0
    text = json.dumps(reordered(config), indent=7)
    (project.folder / "config/config.yaml").write_text(f"# another layout\n{text}\n")


def reordered(value):
    """``value`` with the keys of every object in another order."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(v) for v in value] if isinstance(value, list) else value


def column(**spec) -> Edit:
    """A derived column."""
    return section("dataset", columns={"pair": {"pattern": "([0-9]+)$", **spec}})


def group(**spec) -> Edit:
    """Another test group."""
    return section("test", "groups", another=spec)


def group_by_list(project: Project) -> None:
    content = read_list(project)
    write_json(project.folder / DATA / "other.json", {**content, "training": content["training"][:2], "test": []})
    group(list=f"{DATA}/other.json")(project)


def write_drawn_splits(project: Project) -> None:
    """The splits as they were drawn, as a file."""
    splits = json.loads((project.archive / "data/splits.json").read_text())["splits"]
    write_json(project.folder / "splits.json", splits)


def given_splits(project: Project) -> None:
    write_drawn_splits(project)
    section(splits={"method": "file", "file": "splits.json"})(project)


def given_splits_for_all(project: Project) -> None:
    write_drawn_splits(project)
    top(splits="splits.json")(project)


# ---- the recipe


def recipe(change: Callable[[dict], object]) -> Edit:
    """A change of config_train.json."""

    def edit(project: Project) -> None:
        conf = micro_recipe()
        change(conf)
        (project.folder / "recipe/config/config_train.json").write_text(json.dumps(conf, indent=1))

    return edit


def variable(name: str, value: object) -> Edit:
    return recipe(lambda conf: conf.update({name: value}))


def fewer_epochs(project: Project) -> None:
    """In the recipe; the archive's ``set`` has a word on it too."""
    without("set")(project)
    variable("epochs", 3)(project)


def part(side: str, name: str, value: object) -> Edit:
    return recipe(lambda conf: conf[side].update({name: value}))


def arguments(side: str, name: str, **args) -> Edit:
    return recipe(lambda conf: conf[side][name]["args"].update(args))


def added(side: str, name: str, *components: dict) -> Edit:
    return recipe(lambda conf: conf[side][name].extend(components))


def handler(name: str, **args) -> Edit:
    """Arguments of a training handler, which is added where the recipe has none of the name."""

    def change(conf: dict) -> None:
        handlers = conf["train"]["handlers"]
        found = next((h for h in handlers if h["name"] == name), None)
        if found is None:
            handlers.append(found := component(name))
        found["args"].update(args)

    return recipe(change)


def component(name: str, **args) -> dict:
    return {"name": name, "args": args}


def rewritten_recipe(project: Project) -> None:
    path = project.folder / "recipe/config/config_train.json"
    path.write_text(json.dumps(reordered(micro_recipe()), indent=7) + "\n\n")


def environment(project: Project) -> None:
    write_json(project.folder / "recipe/config/environment.json", {"learning_rate": 0.02})


# ---- data


def read_list(project: Project) -> dict:
    return json.loads((project.folder / LIST).read_text())


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2))


def listed(change: Callable[[dict], object]) -> Edit:
    """A change of the dataset's list."""

    def edit(project: Project) -> None:
        content = read_list(project)
        change(content)
        write_json(project.folder / LIST, content)

    return edit


def entry(**values) -> Edit:
    """A change of one training entry."""
    return listed(lambda content: content["training"][1].update(values))


def changed_voxel(name: str, old: bool = False) -> Edit:
    """Another value in one voxel; ``old`` leaves the file's time as it was."""

    def edit(project: Project) -> None:
        path = project.folder / DATA / name
        stat, data = path.stat(), bytearray(gzip.decompress(path.read_bytes()))
        data[-1 if name.startswith("images") else -200] ^= 1
        path.write_bytes(gzip.compress(bytes(data), mtime=0))
        if old:
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    return edit


def list_backwards(content: dict) -> None:
    for name in ("training", "test"):
        content[name].reverse()


def added_case(content: dict) -> None:
    """A test case that trains too."""
    content["training"].append({**content["test"].pop(), "case": "new"})


def compressed_anew(project: Project) -> None:
    path = project.folder / DATA / "imagesTr/case_002.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=0))


def touched(*patterns: str, ahead: float = 0) -> Edit:
    """Files with another time."""

    def edit(project: Project) -> None:
        for pattern in patterns:
            paths = list(project.folder.glob(pattern))
            assert paths, pattern
            for path in paths:
                os.utime(path, (time.time() + ahead,) * 2)

    return edit


def image_of_other_name(project: Project) -> None:
    folder = project.folder / DATA / "imagesTr"
    shutil.copy(folder / "case_002.nii.gz", folder / "second.nii.gz")
    entry(image="imagesTr/second.nii.gz")(project)


def foreign_file(project: Project) -> None:
    folder = project.folder / DATA / "imagesTr"
    shutil.copy(folder / "case_002.nii.gz", folder / "not_listed.nii.gz")


# ---- code


def appended(*names: str, text: str = "\n# edited\n") -> Edit:
    def edit(project: Project) -> None:
        for name in names:
            with open(project.folder / name, "a") as file:
                file.write(text)

    return edit


def deleted(*names: str) -> Edit:
    def edit(project: Project) -> None:
        for name in names:
            shutil.rmtree(project.folder / name)

    return edit


def other_command(project: Project) -> None:
    """Another command in a rule."""
    path = project.folder / "workflow/rules/train.smk"
    text = path.read_text()
    path.write_text(text.replace('"python -m armarium', '"python  -m armarium'))
    assert path.read_text() != text


ROOT = "archives.NAME"
EDITS: dict[str, Edit] = {
    # the top level
    "archives_dir": moved_archives,
    "data_root": moved_data,
    "cache_dir": top(cache_dir="other"),
    "device": top(device="cpu"),
    "gpus": top(gpus=1),
    "trainings_per_gpu": top(trainings_per_gpu=2),
    "gpu_memory": top(gpu_memory=4000),
    "gpu_wait": top(gpu_wait=30),
    "evaluation_processes": top(evaluation_processes=2),
    "allow": top(allow=["mine.Net"]),
    "trust_torchscript": top(trust_torchscript=True),
    "set": top(set={"learning_rate": 0.02}),
    "n_splits": top(n_splits=2),
    "splits": given_splits_for_all,
    "archives": another_archive,
    "config.yaml in another layout": rewritten_config,
    # an archive
    f"{ROOT}.recipe": moved_recipe,
    f"{ROOT}.predictions": section(predictions=False),
    f"{ROOT}.pack": section(pack=["label", "triton"]),
    f"{ROOT}.set": section("set", learning_rate=0.02),
    f"{ROOT}.allow": section(allow=["mine.Net"]),
    f"{ROOT}.dataset.list": same_list,
    f"{ROOT}.dataset.task": section("dataset", task="classification"),
    f"{ROOT}.dataset.multi_label": section("dataset", multi_label=True),
    f"{ROOT}.dataset.target": section("dataset", target="age"),
    f"{ROOT}.dataset.labels": section("dataset", labels={"0": "background", "1": "bright"}),
    f"{ROOT}.dataset.channels": section("dataset", channels=1),
    f"{ROOT}.dataset.affine_tolerance": section("dataset", affine_tolerance=0.5),
    f"{ROOT}.dataset.allow_empty_labels": section("dataset", allow_empty_labels=True),
    f"{ROOT}.dataset.allow_duplicates": section("dataset", allow_duplicates=True),
    f"{ROOT}.dataset.allow_repeated_participants": section("dataset", allow_repeated_participants=True),
    f"{ROOT}.dataset.description": section("dataset", description="other words"),
    f"{ROOT}.dataset.licence": section("dataset", licence="CC-BY-4.0"),
    f"{ROOT}.dataset.synthesize": section("dataset", synthesize=None),
    f"{ROOT}.dataset.synthesize.cases": section("dataset", "synthesize", cases=9),
    f"{ROOT}.dataset.synthesize.test_cases": section("dataset", "synthesize", test_cases=4),
    f"{ROOT}.dataset.synthesize.shape": section("dataset", "synthesize", shape=[24, 20]),
    f"{ROOT}.dataset.synthesize.spacing": section("dataset", "synthesize", spacing=[1.0, 1.0]),
    f"{ROOT}.dataset.synthesize.channels": section("dataset", "synthesize", channels=2),
    f"{ROOT}.dataset.synthesize.classes": section("dataset", "synthesize", classes=3),
    f"{ROOT}.dataset.synthesize.seed": section("dataset", "synthesize", seed=1),
    f"{ROOT}.dataset.columns.COLUMN.pattern": column(),
    f"{ROOT}.dataset.columns.COLUMN.from": column(**{"from": "participant_id"}),
    f"{ROOT}.dataset.columns.COLUMN.bin": column(bin=2),
    f"{ROOT}.dataset.columns.COLUMN.start": column(bin=2, start=1),
    f"{ROOT}.splits.method": section("splits", method="kfold", n_splits=2),
    f"{ROOT}.splits.holdout": section("splits", holdout=2),
    f"{ROOT}.splits.group_by": section("splits", group_by=["participant_id"]),
    f"{ROOT}.splits.stratify_by": section("splits", stratify_by=["shape"]),
    f"{ROOT}.splits.seed": section("splits", seed=1),
    f"{ROOT}.splits.file": given_splits,
    f"{ROOT}.splits.n_splits": section("splits", n_splits=3),
    f"{ROOT}.test.groups": without("test", "groups", "holdout"),
    f"{ROOT}.test.groups.GROUP.from": group(**{"from": "test"}),
    f"{ROOT}.test.groups.GROUP.count": group(count=2),
    f"{ROOT}.test.groups.GROUP.fraction": group(fraction=0.3),
    f"{ROOT}.test.groups.GROUP.list": group_by_list,
    f"{ROOT}.select.best": section("select", best=["loss"]),
    f"{ROOT}.select.epochs": section("select", epochs=[2, 3]),
    f"{ROOT}.select.final": section("select", final=False),
    f"{ROOT}.export.tolerance": section("export", tolerance=0.5),
    f"{ROOT}.export.formats": section("export", formats=["onnx", "pt2"]),
    # the recipe
    "config_train.json.epochs": fewer_epochs,
    "config_train.json.num_interval_per_valid": variable("num_interval_per_valid", 2),
    "config_train.json.learning_rate": variable("learning_rate", 0.02),
    "config_train.json.batch_size": variable("batch_size", 3),
    "config_train.json.amp": variable("amp", True),
    "config_train.json.tf32": variable("tf32", True),
    "config_train.json.channels_last": variable("channels_last", True),
    "config_train.json.compile": variable("compile", True),
    "config_train.json.cuda_graphs": variable("cuda_graphs", True),
    "config_train.json.batched_augmentation": variable("batched_augmentation", True),
    "config_train.json.seed": variable("seed", 1),
    "config_train.json.deterministic": variable("deterministic", False),
    "config_train.json.threads": variable("threads", 2),
    "config_train.json.clip_grad_norm": variable("clip_grad_norm", 1.0),
    "config_train.json.clip_grad_value": variable("clip_grad_value", 1.0),
    "config_train.json.num_workers": variable("num_workers", 1),
    "config_train.json.save_interval": variable("save_interval", 3),
    "config_train.json.multi_gpu": variable("multi_gpu", True),
    "config_train.json.processes": variable("processes", 3),
    "config_train.json.dont_load_ckpt_model": variable("dont_load_ckpt_model", False),
    "config_train.json.dont_load_ts_model": variable("dont_load_ts_model", True),
    "config_train.json.one of your own that nothing uses": variable("mine", 1),
    "config_train.json.another layout, another order of keys": rewritten_recipe,
    "config_train.json.a variable in `environment.json`": environment,
    "train.loss": arguments("train", "loss", include_background=True),
    "train.optimizer": arguments("train", "optimizer", weight_decay=0.5),
    "train.lr_scheduler": arguments("train", "lr_scheduler", power=0.5),
    "train.model": arguments("train", "model", norm="batch"),
    "train.pre_transforms": added(
        "train", "pre_transforms", component("RandShiftIntensityd", keys="image", offsets=0.1)
    ),
    "train.inferer": part("train", "inferer", component("SlidingWindowInferer", roi_size=[16, 16])),
    "train.dataloader": arguments("train", "dataloader", drop_last=True),
    "train.LrScheduleHandler": handler("LrScheduleHandler", epoch_level=True),
    "train.EarlyStopHandler": handler("EarlyStopHandler", patience=2),
    "train.ValidationHandler": handler("ValidationHandler", interval=2),
    "train.CheckpointSaver": handler("CheckpointSaver", save_interval=2),
    "train.a handler that is built": handler("ParameterScheduler"),
    "train.CheckpointLoader": handler("CheckpointLoader", load_path="x.pt"),
    "train.StatsHandler": handler("StatsHandler", tag_name="x"),
    "train.TensorBoardStatsHandler": handler("TensorBoardStatsHandler", tag_name="x"),
    "train.MetricsSaver": handler("MetricsSaver", save_dir="x"),
    "train.dataset": arguments("train", "dataset", cache_rate=0.5),
    "train.metrics": part("train", "metrics", [component("MeanDice")]),
    "train.post_transforms": part("train", "post_transforms", []),
    "train.trainer": arguments("train", "trainer", non_blocking=True),
    "validate.pre_transforms": added("validate", "pre_transforms", component("ScaleIntensityd", keys="image")),
    "validate.inferer": part("validate", "inferer", component("SlidingWindowInferer", roi_size=[16, 16])),
    "validate.post_transforms": added(
        "validate", "post_transforms", component("KeepLargestConnectedComponentd", keys="pred")
    ),
    "validate.key_metric": arguments("validate", "key_metric", include_background=True),
    "validate.additional_metrics": added("validate", "additional_metrics", component("MeanIoUHandler")),
    "validate.dataset": arguments("validate", "dataset", cache_rate=0.5),
    "validate.dataloader": arguments("validate", "dataloader", batch_size=2),
    "validate.evaluator": arguments("validate", "evaluator", non_blocking=True),
    "validate.handlers": added("validate", "handlers", component("MetricsSaver")),
    # data
    "an image of a training case": changed_voxel("imagesTr/case_002.nii.gz"),
    "the same with its old time": changed_voxel("imagesTr/case_002.nii.gz", old=True),
    "its label file": changed_voxel("labelsTr/case_002.nii.gz"),
    "an image compressed anew, of the same voxels": compressed_anew,
    "an image or a label file of a test case": changed_voxel("imagesTs/case_010.nii.gz"),
    "images, label files and the list touched, now or in the future": touched(f"{DATA}/**/*.*", ahead=1000),
    "a file that the list does not name": foreign_file,
    "an image under another name, and the list with it": image_of_other_name,
    "the list in another layout, its entries in another order": listed(list_backwards),
    "a training case added to the list": listed(added_case),
    "a training case taken off the list": listed(lambda content: content["training"].pop()),
    "another label for a case in the list": entry(label="labelsTr/case_003.nii.gz"),
    "a `participant_id`, a `session_id`, a `case` or another column in the list": entry(participant_id="p1"),
    "a class's name in the list": listed(lambda content: content["labels"].update({"1": "bright"})),
    "a test case added to the list or taken off": listed(lambda content: content["test"].pop()),
    "name, description, licence and channel names of the list": listed(
        lambda content: content.update(
            name="Other", description="other words", licence="CC-BY-4.0", modality={"0": "T2"}
        )
    ),
    # code
    "a Python file of Armarium, touched or edited": appended("workflow/armarium/training.py"),
    "a rule file, `Snakefile` or the profile, touched or with a comment": appended(
        "workflow/rules/train.smk", "workflow/Snakefile", "profiles/default/config.yaml"
    ),
    "a rule's command": other_command,
    "a file of `envs/`": appended("envs/torch.yaml", text="  - tqdm >=4.67\n"),
    "the schemas, touched or with a comment": appended("workflow/schemas/config.schema.yaml"),
    "a file of `logs/`, `.cache/` deleted": deleted("logs", ".cache"),
}
"""By the name of the row, that of its section before it."""


# ---- an archive with two given splits, a derived column and a test group from another list


def prepare_given(project: Project) -> None:
    """Write the files that the configuration of :func:`given_config` names."""
    sides = [[f"case_{n:03d}" for n in numbers] for numbers in ((1, 2, 3), (4, 5, 6, 7, 8))]
    write_json(project.folder / "splits.json", [{"train": sides[k], "validation": sides[1 - k]} for k in (0, 1)])
    other = {**read_list(project), "training": [], "validation": []}
    other["training"] = other.pop("test")
    write_json(project.folder / OTHER, other)
    listed(lambda content: content.update(test=[]))(project)
    project.configure(given_config())


OTHER = f"{DATA}/other.json"


def given_config() -> dict:
    config = micro_config()
    config["archives"]["micro"].update(
        splits={"method": "file", "file": "splits.json"}, test={"groups": {"other": {"list": OTHER}}}
    )
    config["archives"]["micro"]["dataset"] = {"list": LIST, "columns": {"pair": {"pattern": "([0-9]+)$", "bin": 2}}}
    return config


def given_section(*path: str, **changes) -> Edit:
    def edit(project: Project) -> None:
        config = given_config()
        found = config["archives"]["micro"]
        for name in path:
            found = found[name]
        found.update(changes)
        project.configure(config)

    return edit


def changed_json(name: str, change: Callable[[object], object]) -> Edit:
    def edit(project: Project) -> None:
        path = project.folder / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content, indent=5))

    return edit


def one_more(splits: list) -> None:
    splits.append({"train": [*splits[0]["train"][1:], *splits[1]["train"][:1]], "validation": splits[1]["train"][1:]})
    splits[2]["validation"] += splits[0]["train"][:1]


def other_side(splits: list) -> None:
    splits[0]["validation"].append(splits[0]["train"].pop())


GIVEN_EDITS: dict[str, Edit] = {
    f"{ROOT}.publish": given_section(publish=1),
    f"{ROOT}.ensemble": given_section(ensemble=True),
    "the split file in another layout": changed_json("splits.json", lambda splits: None),
    "the split file's names in another order": changed_json("splits.json", lambda splits: splits[0]["train"].reverse()),
    "another split in the split file": changed_json("splits.json", one_more),
    "a case on another side in the split file": changed_json("splits.json", other_side),
    "another pattern for a derived column": given_section("dataset", "columns", "pair", pattern="_([0-9]+)"),
    "the other list in another layout": changed_json(OTHER, lambda content: content["training"].reverse()),
    "a case taken off the other list": changed_json(OTHER, lambda content: content["training"].pop()),
    "an image that only the other list names": changed_voxel("imagesTs/case_010.nii.gz"),
}
