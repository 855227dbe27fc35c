"""Configurations written for Clara Train 4, in the names of today's MONAI. No torch, and nothing is evaluated.

Clara Train 4.0 was built on MONAI 0.4 and 0.5, 4.1 on MONAI 0.8. What was renamed or removed since is from MONAI's
CHANGELOG.md and the signatures of MONAI 1.6.1; the forms are those of Clara Train's documentation ("Upgrading from previous
versions of Clara Train") and of NVIDIA/clara-train-examples. Every change is told, so that it can be read in the archive.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Collection
from copy import deepcopy
from typing import Any

from .components import MODULES
from .errors import Problems, UserError
from .files import parse_json

RENAMED: dict[str, dict[str, tuple[str, dict[str, str], dict[str, Any]]]] = {
    "transform": {
        "AddChanneld": ("EnsureChannelFirstd", {}, {"channel_dim": "no_channel"}),
        "AsChannelFirstd": ("EnsureChannelFirstd", {}, {"channel_dim": -1}),
        "SplitChanneld": ("SplitDimd", {"channel_dim": "dim"}, {}),
        "LoadNiftid": ("LoadImaged", {}, {"reader": "NibabelReader"}),
        "ToTensord": ("EnsureTyped", {}, {}),
    },
    "model": {"TorchVisionFullyConvModel": ("TorchVisionFCModel", {}, {})},
}
"""By kind, a component's present name, its renamed arguments, and arguments that say what the old name said.

``ToTensord`` is still there, but undoing it gives arrays, which the way back to a file's grid cannot go on with.
"""
RENAMED_ARGS: dict[str, dict[str, dict[str, str]]] = {
    "model": {
        "*": {"dimensions": "spatial_dims", "n_classes": "num_classes"},
        "UNETR": {"pos_embed": "proj_type"},
        "ViT": {"pos_embed": "proj_type"},
        "ViTAutoEnc": {"pos_embed": "proj_type"},
    },
    "loss": {"DiceCELoss": {"ce_weight": "weight"}, "DiceFocalLoss": {"focal_weight": "weight"}},
    "transform": {"AddCoordinateChannelsd": {"spatial_channels": "spatial_dims"}},
}
"""By kind and component, or ``*`` for each of the kind, arguments' present names."""
META = ("meta_keys", "meta_key_postfix")
DROPPED_ARGS: dict[str, dict[str, tuple[str, ...]]] = {
    "transform": {
        **dict.fromkeys(("Spacingd", "Orientationd", "EnsureChannelFirstd", "RandCropByPosNegLabeld"), META),
        **dict.fromkeys(("RandSpatialCropSamplesd", "RandCropByLabelClassesd"), META),
        **dict.fromkeys(("Affined", "RandAffined", "Rand2DElasticd", "Rand3DElasticd"), ("as_tensor_output",)),
        "RandWeightedCropd": (*META, "center_coord_key"),
        "SaveImaged": ("save_batch",),
    },
    "model": {"SwinUNETR": ("img_size",)},
    "metric": {"*": ("device",), "ROCAUC": ("to_onehot_y",)},
}
"""Arguments that are gone because nothing depends on them any more: images know their own metadata and device."""
REMOVED: dict[str, dict[str, str]] = {
    "transform": {
        "LoadNumpyd": "LoadImaged takes its place, and reads NIfTI files here",
        "LoadPNGd": "LoadImaged takes its place, and reads NIfTI files here",
    },
    "model": {"CopleNet": "it went to Project-MONAI/research-contributions; AttentionUnet or BasicUNet take its place"},
}
"""What cannot be translated, with its successor."""
BY_POST_TRANSFORMS = "took out in 0.6; put Activationsd and AsDiscreted into validate.post_transforms in its place"
REMOVED_ARGS: dict[str, dict[str, str]] = {
    "MeanDice": dict.fromkeys(("to_onehot_y", "mutually_exclusive", "sigmoid", "logit_thresh"), BY_POST_TRANSFORMS),
    "ROCAUC": dict.fromkeys(("softmax", "other_act"), BY_POST_TRANSFORMS),
}
"""Metrics' arguments that cannot be translated, with what does it now."""
SAVED = (
    *("output_dir", "output_postfix", "output_ext", "resample", "mode", "padding_mode", "scale"),
    *("dtype", "output_dtype", "squeeze_end_dims", "data_root_dir"),
)
"""Arguments that ``SaveImaged`` has of ``SegmentationSaver``'s."""
SECTIONS = {
    "loss": "loss",
    "optimizer": "optimizer",
    "lr_scheduler": "lr_scheduler",
    "model": "model",
    "pre_transforms": "transform",
    "post_transforms": "transform",
    "inferer": "inferer",
    "handlers": "handler",
    "metrics": "metric",
    "key_metric": "metric",
    "additional_metrics": "metric",
}
"""What kind of component each part of a section has; datasets, loaders and engines keep their names."""
LOCATIONS = {
    "MMAR_EVAL_OUTPUT_PATH": "eval",
    "MMAR_CKPT_DIR": "models",
    "MMAR_CKPT": "models/model.pt",
    "MMAR_TORCHSCRIPT": "models/model.ts",
}
"""Where an archive has what MMAR's environment.json names."""
MISSING_COMMA = re.compile(r'("|\d|true|false|null)(\s*\n\s*)(?="[^"\n]+"\s*:)')


class Notes(list):
    """What was translated, one line each; what cannot be; and the paths that the user allows."""

    def __init__(self, allow: Collection[str]) -> None:
        self.allow = allow
        self.problems: list[str] = []

    def tell(self, where: str, words: str) -> None:
        if (line := f"{where}: {words}") not in self:
            self.append(line)

    def refuse(self, component: dict, problem: str) -> None:
        if component.get("disabled") not in (True, "true", "True"):
            self.problems.append(problem)


def translated(conf: dict, source: str, allow: Collection[str] = ()) -> tuple[dict, list[str]]:
    """A configuration in today's names.

    Parameters
    ----------
    conf:
        A ``config_train.json`` with its sections, or a configuration of an evaluation, which is one section.
    source:
        The file, for messages.
    allow:
        Dotted paths that the user allows, which stay paths.

    Returns
    -------
    The configuration, and a line for each thing that was translated: none where nothing had to be.

    Raises
    ------
    Problems
        With everything that MONAI no longer has and that cannot be translated, each with its successor.
    """
    conf, notes = deepcopy(conf), Notes(allow)
    _take_seed(conf, notes)
    train, validate = conf.get("train"), conf.get("validate")
    if isinstance(train, dict) or isinstance(validate, dict):
        named = _section(train, "train.", notes) if isinstance(train, dict) else []
        if isinstance(validate, dict):
            _refer(validate, named)
            _section(validate, "validate.", notes)
    else:
        _section(conf, "", notes)
    if notes.problems:
        raise Problems(source, notes.problems)
    return conf, list(notes)


def _take_seed(conf: dict, notes: Notes) -> None:
    """Clara's ``determinism`` as the variables that say the same."""
    given = conf.pop("determinism", None)
    if not isinstance(given, dict):
        return
    seed = given.get("random_seed")
    for name, value in {"seed": seed or 0, "deterministic": seed is not None}.items():
        conf.setdefault(name, value)
    notes.tell("determinism", f"random_seed {json.dumps(seed)} is now the variables seed and deterministic")


def _listed(section: dict, key: str) -> list[dict]:
    value = section.get(key)
    return [c for c in (value if isinstance(value, list) else [value]) if isinstance(c, dict)]


def _alias(component: dict) -> str:
    """The name that a reference may have."""
    name = component.get("name") or str(component.get("path", "")).rpartition(".")[2]
    return name if isinstance(name, str) else ""


def _section(section: dict, where: str, notes: Notes) -> list[tuple[str, str, dict]]:
    """Translate a section's components in place; what references may mean: part, name before, component."""
    _move_savers(section, where, notes)
    named = []
    for key, kind in SECTIONS.items():
        for component in _listed(section, key):
            before = _alias(component)
            _component(component, kind, f"{where}{key}", notes)
            named.append((key, before, component))
    return named


def _refer(validate: dict, named: list[tuple[str, str, dict]]) -> None:
    """Let references follow what was renamed; where another now has the same name, repeat what is referred to."""
    for key in ("pre_transforms", "post_transforms", "inferer"):
        for component in _listed(validate, key):
            meant = [c for part, name, c in named if part == key and name == component.get("ref")]
            if not meant or _alias(meant[-1]) == component["ref"]:
                continue
            name = _alias(meant[-1])
            if sum(part == key and _alias(c) == name for part, _, c in named) > 1:
                del component["ref"]
                component.update(deepcopy({k: v for k, v in meant[-1].items() if k not in component}))
            else:
                component["ref"] = name


# ---- a component


def _component(component: dict, kind: str, where: str, notes: Notes) -> None:
    """Translate one component in place."""
    _name(component, kind, notes.allow)
    name, args = component.get("name"), component.get("args", {})
    if not isinstance(name, str) or not isinstance(args, dict):
        return
    if name in REMOVED.get(kind, {}):
        notes.refuse(component, f"{where}: {name} is no longer in MONAI: {REMOVED[kind][name]}")
        return
    if name in RENAMED.get(kind, {}):
        new, renamed, added = RENAMED[kind][name]
        args = _with_names(args, renamed)
        args |= {k: v for k, v in added.items() if k not in args}
        said = " with " + ", ".join(f"{k} {json.dumps(v)}" for k, v in added.items()) if added else ""
        notes.tell(where, f"{name} is now {new}{said}")
        component["name"] = name = new
    args = _renamed_args(args, kind, name, where, notes)
    args = _less_dropped(args, kind, name, where, notes)
    for key in (key for key in REMOVED_ARGS.get(name, {}) if key in args):
        notes.refuse(component, f"{where}: {name}: {key}, which MONAI {REMOVED_ARGS[name][key]}")
    if name == "AsDiscreted":
        args = _discrete_args(component, args, where, notes)
    if args or "args" in component:
        component["args"] = args


def _name(component: dict, kind: str, allow: Collection[str]) -> None:
    """By name what MONAI, torch or ignite have publicly, whatever path leads there; a dictionary transform by its first name.

    Of a name and another path the path counts: then the name is what references say.
    """
    path, name = component.get("path"), component.get("name")
    public = isinstance(path, str) and any(path.startswith(f"{module}.") for module in MODULES[kind])
    if public and path not in allow:
        component.pop("path")
        component["name"] = name = path.rpartition(".")[2]
    elif path and name:
        del component["name"]
    if kind == "transform" and isinstance(name, str) and "name" in component:
        component["name"] = re.sub(r"(?<=[a-z0-9])(?:D|Dict)$", "d", name)


def _with_names(args: dict, names: dict[str, str]) -> dict:
    return {
        names.get(key, key): value
        for key, value in args.items()
        if names.get(key, key) == key or names[key] not in args
    }


def _renamed_args(args: dict, kind: str, name: str, where: str, notes: Notes) -> dict:
    of_kind = RENAMED_ARGS.get(kind, {})
    names = {**of_kind.get("*", {}), **of_kind.get(name, {})}
    for old in (key for key in names if key in args):
        notes.tell(where, f"{name}: {old} is now {names[old]}")
    return _with_names(args, names)


def _less_dropped(args: dict, kind: str, name: str, where: str, notes: Notes) -> dict:
    of_kind = DROPPED_ARGS.get(kind, {})
    dropped = [key for key in (*of_kind.get("*", ()), *of_kind.get(name, ())) if key in args]
    if dropped:
        notes.tell(where, f"{name}: {', '.join(dropped)} left out; nothing depends on it any more")
    return {key: value for key, value in args.items() if key not in dropped}


def _discrete_args(component: dict, args: dict, where: str, notes: Notes) -> dict:
    """``to_onehot`` by the number of classes and ``threshold`` by its value, where MONAI had a flag and a value each."""
    old = [k for k in ("n_classes", "num_classes", "threshold_values", "logit_thresh") if k in args]
    flags = args.get("to_onehot")
    if not old and not any(isinstance(flag, bool) for flag in (flags if isinstance(flags, list) else [flags])):
        return args
    new = {k: v for k, v in args.items() if k not in (*old, "to_onehot", "threshold")}
    classes = args.get("n_classes", args.get("num_classes"))
    count = len(args["keys"]) if isinstance(args.get("keys"), list) else 1
    try:
        onehot = _per_key(flags, classes, count)
    except LookupError:
        notes.refuse(component, f"{where}: AsDiscreted: to_onehot is true; MONAI wants the number of classes there")
        return args
    threshold = _per_key(args.get("threshold_values", args.get("threshold")), args.get("logit_thresh", 0.5), count)
    said = {k: v for k, v in {"to_onehot": onehot, "threshold": threshold}.items() if v is not None}
    words = " and ".join(f"{k} {json.dumps(v)}" for k, v in said.items()) or "nothing"
    flagged = [*(["to_onehot"] if flags is not None else []), *old]
    notes.tell(where, f"AsDiscreted: {', '.join(flagged)} now say {words}")
    return {**new, **said}


def _per_key(flags: Any, values: Any, keys: int) -> Any:
    """Of a flag, or one for each key, the value where it is set and None where not; what is no flag stays.

    Raises
    ------
    LookupError
        If a flag is set without a value.
    """
    flags = flags if isinstance(flags, list) else [flags] * keys
    values = values if isinstance(values, list) else [values] * len(flags)
    found = []
    for flag, value in zip(flags, values, strict=False):
        if flag is True and value is None:
            raise LookupError
        found.append(value if flag is True else None if flag is False else flag)
    return found[0] if all(one == found[0] for one in found) else found


# ---- handlers that became post-transforms


def _move_savers(section: dict, where: str, notes: Notes) -> None:
    """``SegmentationSaver`` and ``TransformInverter`` as the post-transforms that Clara 4.1 has in their place."""
    handlers, post = section.get("handlers"), section.get("post_transforms")
    if not isinstance(handlers, list):
        return
    for old, made in (("TransformInverter", _inverter), ("SegmentationSaver", _saver)):
        for handler in [h for h in handlers if isinstance(h, dict) and h.get("name") == old]:
            handlers.remove(handler)
            args = handler.get("args") if isinstance(handler.get("args"), dict) else {}
            new = {**made(args), **({"disabled": handler["disabled"]} if "disabled" in handler else {})}
            if not isinstance(post, list):
                post = section["post_transforms"] = []
            names = [_alias(p) if isinstance(p, dict) else "" for p in post]
            at = (
                len(post)
                if old == "SegmentationSaver"
                else next((i for i, name in enumerate(names) if name.startswith("AsDiscrete")), len(post))
            )
            if new["name"] not in names:
                post.insert(at, new)
            notes.tell(f"{where}handlers", f"{old} is now {new['name']} in post_transforms")


def _inverter(args: dict) -> dict:
    given = {"keys": args.get("output_keys", "pred"), "orig_keys": args.get("batch_keys", "image")}
    given |= {k: args[k] for k in ("nearest_interp", "device") if k in args}
    return {"name": "Invertd", "args": {**given, "transform": "@pre_transforms"}}


def _saver(args: dict) -> dict:
    return {"name": "SaveImaged", "args": {"keys": "pred", **{k: args[k] for k in SAVED if k in args}}}


# ---- environment.json


def read_environment(text: str, source: str) -> tuple[Any, list[str]]:
    """Parse an environment.json, also the one that the MMAR document prints, which lacks a comma.

    Raises
    ------
    UserError
        If it is no JSON otherwise.
    """
    try:
        return parse_json(text, source), []
    except UserError:
        mended = MISSING_COMMA.sub(r"\1,\2", text)
        if mended == text:
            raise
        try:
            found = parse_json(mended, source)
        except UserError:
            found = None
        if found is None:
            raise
    return found, ["environment.json: a comma was missing after a line, as in the MMAR document; it is put in"]


def located(environment: dict) -> tuple[dict, list[str]]:
    """An environment whose places are the archive's own, which are fixed: also where the MMAR document mistypes one."""
    notes = []
    for name, fixed in LOCATIONS.items():
        given = environment.get(name)
        if isinstance(given, str) and given != fixed:
            environment = {**environment, name: fixed}
            if posixpath.normpath(given) != fixed:
                notes.append(f"environment.json: {name} is {given!r:.200}; in an archive it is {fixed}")
    return environment, notes
