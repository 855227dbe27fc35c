"""Write an archive's configuration before Snakemake plans. No torch, and not a rule.

Snakemake deletes a rule's outputs before it runs, so a rule cannot leave an unchanged file alone; this
does. A file is written only when its content changes, and never over a hand edit of a listed archive.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from . import layout, recipe
from .changes import changed_files
from .config import check, typed
from .datalist import DATALIST, divided_by
from .errors import UserError
from .files import json_text, read_json, read_text, write_text
from .fingerprints import fingerprint, takes_training_cases
from .hashing import HASHES, HashIndex
from .manifest import read_manifest
from .mmar_configs import derived_configs, environment_defaults
from .multi_label import is_multi_label
from .own_configs import brought, edited, own_evaluation, without_part
from .parent import read_parent, start_in_configuration
from .recipe_files import other_task, read_object, recipe_files, translated_files
from .split_files import given_groups, given_sides, own_groups, shared_groups, split_numbers, tested_on
from .unused import without_effect


@dataclass(frozen=True)
class Globals:
    """What config.yaml and ``--config`` say of every archive.

    ``allow`` is for archives that are merely on disk: which of the dotted paths in their own ``allow`` the user trusts.
    """

    data_root: str | None = None
    changes: dict = field(default_factory=dict)
    cache_dir: str = ".cache/armarium"
    allow: tuple[str, ...] = ()


@dataclass
class Configured:
    """An archive's configuration as planning sees it.

    ``effective`` maps each part of ``layout.EFFECTIVE`` and ``files`` to the text its file has, or would
    have when nothing may be written (a dry run); ``changed`` names the parts whose file differs, ``rewritten``
    every configuration file that does; ``start`` says what training starts from, where that is a parent's weights.
    """

    archive: str
    spec: dict
    settings: dict
    data_root: str
    effective: dict[str, str]
    start: dict | None = None
    changed: set[str] = field(default_factory=set)
    rewritten: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _fingerprints: dict[tuple, str] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def split_numbers(self) -> list[int]:
        return split_numbers(json.loads(self.effective["split"]))

    @property
    def task(self) -> str:
        return self.spec["dataset"]["task"]

    @cached_property
    def checkpoints(self) -> list[str]:
        """The selected checkpoints."""
        return json.loads(self.effective["select"])["checkpoints"]

    @cached_property
    def exported(self) -> list[str]:
        """Every selected checkpoint, and the published one."""
        return list(dict.fromkeys([*self.checkpoints, self.published_checkpoint]))

    @cached_property
    def groups(self) -> list[str]:
        """The test groups."""
        return list(json.loads(self.effective["test"])["groups"])

    @cached_property
    def own_groups(self) -> dict[str, int]:
        """Of test groups that a single split is tested on, that split."""
        return own_groups(json.loads(self.effective["test"])["groups"])

    def groups_of(self, split: int) -> list[str]:
        """The test groups that a split is tested on."""
        return tested_on(split, self.groups, self.own_groups)

    def splits_of(self, group: str) -> list[int]:
        """The splits that are tested on a group."""
        return [self.own_groups[group]] if group in self.own_groups else self.split_numbers

    @property
    def published_checkpoint(self) -> str:
        return published_checkpoint(self.settings)

    @property
    def formats(self) -> list[str]:
        """What the published model is to be exported to beside TorchScript."""
        return self.spec["export"]["formats"]

    @cached_property
    def shared_groups(self) -> list[str]:
        """The test groups that no split trains on."""
        return shared_groups(json.loads(self.effective["test"])["groups"])

    def fingerprint(self, product: str, *which: str | int) -> str:
        """SHA-256 over all the configuration that a product depends on; see :func:`fingerprint`."""
        asked = (product, *map(str, which))
        if asked not in self._fingerprints:
            self._fingerprints[asked] = fingerprint(self.effective, *asked)
        return self._fingerprints[asked]


def require_splits(archive: str, splits: list[int]) -> None:
    """Refuse an ensemble of a single model.

    Raises
    ------
    UserError
        If there is but one split.
    """
    if len(splits) < 2:
        raise UserError(
            f"{archive}: an ensemble is the mean of several splits' models, and this archive has one split; "
            "set ensemble to false, or splits to kfold, or to a file of several"
        )


def published_checkpoint(settings: dict) -> str:
    """The checkpoint that models/model.pt is: the best by the key metric."""
    return f"best-{settings['validate']['metrics'][0]['label']}"


def archive_spec(section: dict) -> dict:
    """What of a config.yaml section the archive keeps: all but the values that its files show."""
    return {k: v for k, v in section.items() if k != "recipe"}


MOST_RESULTS = 100_000
"""Results, each of several files, that one archive can plan for."""


def _published_datalist(publish: int) -> str:
    return layout.datalist("", publish).removeprefix("/")


def _environment(given: dict, spec: dict, data_root: str | None) -> dict:
    defaults = environment_defaults()
    environment = {**defaults, **{k: typed(k, v, defaults.get(k, v), "environment.json") for k, v in given.items()}}
    environment["PROCESSING_TASK"] = spec["dataset"]["task"]
    environment["DATASET_JSON"] = _published_datalist(spec["publish"])
    if data_root is not None:
        environment["DATA_ROOT"] = data_root
    return environment


def _kept(archive: str) -> dict:
    """The variables that were set for an archive before."""
    path = layout.archive_json(archive)
    return _kept_in(read_object(path), path) if Path(path).is_file() else {}


OWN_KEYS = ("kept", "translated", "own")
"""What an archive.json has beside the section of config.yaml: what was set, what was translated, and which of MMAR's
configurations do not just follow from config_train.json."""


def _lines_in(held: dict, key: str, path: str) -> list[str]:
    lines = held.get(key, [])
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(f"{path}: {key} is {lines!r:.100}; wanted a list of texts, or none")
    return lines


def _kept_in(held: dict, path: str) -> dict:
    kept = held.get("kept", {})
    if not isinstance(kept, dict) or any(isinstance(value, dict | list) for value in kept.values()):
        raise UserError(f"{path}: kept is {kept!r:.100}; wanted an object of variables and their values, or none")
    return kept


def _without_datalist(changes: dict) -> tuple[dict, str | None]:
    """Variables without the datalist, which is none of the recipe's, and that."""
    return {k: v for k, v in changes.items() if k != DATALIST}, changes.get(DATALIST)


def _listed_files(archive: str, section: dict, given: Globals) -> tuple[dict, dict[str, dict]]:
    """The spec and configuration files of an archive that config.yaml lists."""
    spec = archive_spec(section)
    files, spec["translated"] = recipe_files(section["recipe"], Path(archive).name, spec["allow"])
    spec["own"] = brought(files, spec["dataset"]["task"])
    spec["translated"] += other_task(files.get("environment.json", {}), spec)
    environment = _environment(files.get("environment.json", {}), spec, given.data_root)
    conf, environment = recipe.override(files["config_train.json"], environment, section["set"])
    changes, datalist = _without_datalist(given.changes)
    kept, kept_datalist = _without_datalist(_kept(archive))
    kept = {name: value for name, value in kept.items() if name not in changes}
    try:
        conf, environment = recipe.override(conf, environment, kept)
    except UserError as error:
        raise UserError(
            f"{layout.archive_json(archive)}: kept from an earlier {error}; remove it under 'kept'"
        ) from None
    conf, environment = recipe.override(conf, environment, changes)
    files.update({"config_train.json": conf, "environment.json": environment})
    spec["kept"] = {**kept, **changes}
    if datalist or kept_datalist:
        spec["kept"][DATALIST] = layout.given_splits("").removeprefix("/")
        return divided_by(archive, spec, files, datalist)
    if spec["splits"]["method"] == "file":
        files["splits.json"] = read_json(spec["splits"]["file"])
        spec["splits"] = {**spec["splits"], "file": "splits.json"}
    return spec, files


def _held_files(archive: str, given: Globals) -> tuple[dict, dict[str, dict]]:
    """The spec and configuration files of an archive that is merely on disk: those it holds."""
    if not Path(layout.archive_json(archive)).is_file():
        raise UserError(
            f"{archive}: no such archive: not listed in the configuration file and without config/archive.json; list it under 'archives' or check the path"
        )
    path = layout.archive_json(archive)
    held = read_object(path)
    section = {"recipe": layout.mmar_config(archive, ""), **{k: v for k, v in held.items() if k not in OWN_KEYS}}
    spec = archive_spec(check({"archives": {"archive": section}}, "config", path)["archives"]["archive"])
    changes, datalist = _without_datalist(given.changes)
    spec["kept"] = {**_kept_in(held, path), **changes}
    if foreign := [name for name in spec["allow"] if name not in given.allow]:
        raise UserError(
            f"{path}: allow names {', '.join(foreign)}, code that this archive would run; if you know it and it is yours, "
            f"say so with --config allow='[{', '.join(foreign)}]' or as allow at the top of the configuration file"
        )
    names = (*layout.MMAR_CONFIGS, "environment.json")
    files, told = translated_files({n: Path(layout.mmar_config(archive, n)) for n in names}, spec["allow"])
    spec["translated"] = list(dict.fromkeys([*_lines_in(held, "translated", path), *told]))
    if "config_train.json" not in files:
        raise UserError(f"{archive}: config/config_train.json is missing; copy it back from the recipe")
    if (splits := Path(layout.mmar_config(archive, "splits.json"))).is_file():
        files["splits.json"] = read_json(splits)
    own, task = _lines_in(held, "own", path), spec["dataset"]["task"]
    spec["own"] = edited(archive, own, files, task, read_parent(archive))
    environment = _environment(files.get("environment.json", {}), spec, given.data_root)
    files["config_train.json"], files["environment.json"] = recipe.override(
        files["config_train.json"], environment, changes
    )
    return divided_by(archive, spec, files, datalist) if datalist else (spec, files)


def _check_selection(spec: dict, settings: dict, archive: str) -> list[str]:
    """The selected checkpoints by name, best first."""
    known = recipe.metric_names(settings)
    best = spec["select"]["best"]
    best = known[:2] if best is None else best
    unknown = [m for m in best if m not in known]
    if unknown:
        raise UserError(f"{archive}: select.best names {unknown}; the recipe has the metrics {known}")
    interval, last = settings["validation_interval"], settings["epochs"]
    unseen = [e for e in spec["select"]["epochs"] if e % interval and e < last]
    if unseen:
        raise UserError(
            f"{archive}: select.epochs names {unseen}, but training validates every {interval} epochs and after the last one; "
            f"wanted multiples of {interval}, or {last}: a checkpoint comes with its validation"
        )
    beyond = [e for e in spec["select"]["epochs"] if e > settings["epochs"]]
    if beyond:
        raise UserError(f"{archive}: select.epochs names {beyond}, but training has {settings['epochs']} epochs")
    chosen = [f"best-{m}" for m in best] + [f"epoch-{e}" for e in sorted(spec["select"]["epochs"])]
    chosen += ["final"] if spec["select"]["final"] else []
    if not chosen:
        raise UserError(f"{archive}: select keeps no checkpoint; name a metric in best, an epoch, or final")
    return chosen


CHECK_KEYS = ("affine_tolerance", "allow_empty_labels", "allow_duplicates", "allow_repeated_participants")
"""What is checked of a dataset; what is learnt from it does not depend on these."""
EXECUTION_KEYS = ("num_workers", "save_interval")
"""How a training is carried out; its bytes do not depend on these."""


def _sorted(settings: dict) -> dict:
    """The order in which a recipe names arguments means nothing."""
    return json.loads(json.dumps(settings, sort_keys=True))


def _in_order(given: list[dict[str, list]]) -> list[dict[str, list]]:
    """Given splits in one form: in which order a file names a side's cases means nothing."""
    return [{side: sorted(entries, key=json.dumps) for side, entries in sides.items()} for sides in given]


METHOD_KEYS = {"kfold": {"n_splits"}, "holdout": {"holdout"}, "lists": set(), "file": set()}
"""Of the keys that only one way of splitting reads, those of each."""


def _splits_in_use(splits: dict) -> dict:
    """The keys that decide the splits; where a given file lies does not, its content does."""
    unused = {"file"}.union(*METHOD_KEYS.values()) - METHOD_KEYS[splits["method"]]
    return {k: v for k, v in splits.items() if k not in unused}


def _effective(
    spec: dict, settings: dict, chosen: list[str], given_splits: dict | None, warnings: list[str]
) -> dict[str, dict]:
    dataset = {k: v for k, v in spec["dataset"].items() if k not in (*CHECK_KEYS, "description", "licence")}
    drawn = {g: t for g, t in spec["test"]["groups"].items() if takes_training_cases(t)}
    other = {g: t for g, t in spec["test"]["groups"].items() if g not in drawn}
    given = None if given_splits is None else _in_order(given_sides(given_splits))
    other |= given_groups(given or [])
    return {
        "data": {"dataset": dataset},
        "check": {k: spec["dataset"][k] for k in CHECK_KEYS},
        "split": {"splits": _splits_in_use(spec["splits"]), "drawn_groups": drawn, "given": given},
        "train": {
            **_sorted({k: v for k, v in settings.items() if k not in EXECUTION_KEYS}),
            "task": dataset["task"],
            **({"multi_label": True} if is_multi_label(dataset) else {}),
            "allow": spec["allow"],
        },
        "execution": {**{k: settings[k] for k in EXECUTION_KEYS}, **({"warnings": warnings} if warnings else {})},
        "select": {"checkpoints": chosen},
        "test": {"groups": {**other, **drawn}},
        "predict": {"predictions": spec["predictions"]},
        "export": {k: v for k, v in spec["export"].items() if k != "formats"},
        "publish": {
            "publish": spec["publish"],
            "description": spec["dataset"]["description"],
            "licence": spec["dataset"]["licence"],
        },
    }


def _refuse_groups_twice(archive: str, groups: dict, given_splits: dict | list | None) -> None:
    brought = {} if given_splits is None else given_groups(given_sides(given_splits))
    if twice := [name for name in brought if name in groups]:
        raise UserError(
            f"{archive}: test.groups has {', '.join(twice)}, the name of the test cases that the split file lists; "
            "give the configured group another name, or take the test lists out of the split file"
        )


def _refuse_hand_edits(archive: str, texts: dict[str, str]) -> None:
    record = Path(layout.written_configs(archive))
    if not record.is_file():
        return
    written = read_json(record)
    for name, digest in written.items() if isinstance(written, dict) else ():
        if name not in texts:
            continue
        path = Path(layout.mmar_config(archive, name))
        if not path.is_file():
            continue
        now = path.read_bytes()
        if hashlib.sha256(now).hexdigest() != digest and now != texts.get(name, "").encode():
            raise UserError(
                f"{path}: edited by hand, but this archive is listed in the configuration file, which would overwrite the edit; "
                "move the change to the recipe or to 'set', or delete this file to have it written again; "
                "to edit an archive's own files, copy the archive to a name that is not listed"
            )


def _text(path: str, value: dict | list) -> str:
    """A configuration file's text: the one that it has, where only layout or the order of keys differ.

    So an edit that says nothing else changes no file, and the manifest stays true.
    """
    text = json_text(value)
    try:
        present = read_text(path)
        same = json.dumps(json.loads(present), sort_keys=True) == json.dumps(json.loads(text), sort_keys=True)
    except (OSError, ValueError, RecursionError, UserError):
        return text
    return present if same else text


FINETUNE = "config_finetune.json"
"""What configures the training of an archive that starts from a parent's weights, as in an MMAR."""


def _settings(archive: str, files: dict[str, dict], name: str) -> dict:
    return recipe.training_settings(files[name], files["environment.json"], layout.mmar_config(archive, name))


def _with_derived(archive: str, files: dict[str, dict], spec: dict, given: Globals, starts: bool) -> dict[str, dict]:
    """The files with those that follow from ``config_train.json``, but for what somebody wrote.

    By ``config_finetune.json`` an archive is trained that starts from a parent's weights, so what is set counts there too.
    """
    parent = read_parent(archive) if starts else None
    derived = derived_configs(files["config_train.json"], spec["dataset"]["task"], parent)
    following = {name: derived[name] for name in layout.MMAR_CONFIGS[1:] if name not in spec["own"]}
    found = {**derived, **files, **following}
    if starts and FINETUNE in spec["own"]:
        found[FINETUNE], _ = recipe.override(found[FINETUNE], found["environment.json"], given.changes)
    return found


def _held_spec(spec: dict) -> dict:
    """What archive.json has: no empty lists of what is seldom there."""
    return {k: v for k, v in spec.items() if v or k not in ("translated", "own")}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_if_changed(archive: str, path: str, text: str, dry: bool) -> bool:
    """Whether the file differs from ``text``; brings it up to date unless ``dry``.

    A lost file that comes back as the manifest has it is no change, nor is it newer than what was made from it.
    """
    p, data = Path(path), text.encode()
    if p.is_file() and p.stat().st_size == len(data) and p.read_bytes() == data:
        return False
    age = None if p.exists() else _age_in_manifest(archive, path, data)
    if not dry:
        write_text(path, text)
        if age is not None:
            os.utime(path, ns=(age, age))
    return age is None


def _age_in_manifest(archive: str, path: str, data: bytes) -> int | None:
    """Where the manifest has a file with this content, the time in nanoseconds of its oldest other file; else None."""
    if not os.path.isfile(layout.manifest(archive)):
        return None
    try:
        files = read_manifest(archive).files
    except UserError:  # damaged: it says nothing
        return None
    if files.get(os.path.relpath(path, archive), ("",))[0] != hashlib.sha256(data).hexdigest():
        return None
    others = (f"{archive}/{name}" for name in files)
    return min((os.stat(other).st_mtime_ns for other in others if os.path.isfile(other)), default=None)


def configure(archive: str, section: dict | None, given: Globals, dry: bool = False) -> Configured:
    """Bring an archive's configuration files up to date and say what they hold.

    Parameters
    ----------
    archive:
        The archive's folder.
    section:
        Its section of config.yaml with defaults, or None for an archive that is merely on disk.
    given:
        Global keys; ``changes`` are kept by the archive until they are set again.
    dry:
        Write nothing.

    Raises
    ------
    UserError, Problems
        If a configuration is wrong, or a listed archive's was edited by hand.
    """
    spec, files = _listed_files(archive, section, given) if section else _held_files(archive, given)
    index = HashIndex(Path(given.cache_dir, HASHES))
    start = start_in_configuration(archive, index)
    settings = _settings(archive, files, "config_train.json")
    files = _with_derived(archive, files, spec, given, bool(start))
    trained_by = FINETUNE if start else "config_train.json"
    if start:
        settings = {**_settings(archive, files, FINETUNE), "start": start}
    evaluated = own_evaluation(files, spec["own"], settings, archive)
    warnings = [
        *spec["translated"],
        *without_effect(files[trained_by]),
        *without_part(files, spec["own"], settings, evaluated, archive),
    ]
    chosen = _check_selection(spec, settings, archive)
    spec = _held_spec(spec)
    data_root = files["environment.json"]["DATA_ROOT"]
    given_splits = files.get("splits.json") if spec["splits"]["method"] == "file" else None
    _refuse_groups_twice(archive, spec["test"]["groups"], given_splits)
    parts = _effective(spec, settings, chosen, given_splits, warnings)
    if evaluated:
        parts["predict"]["validate"] = _sorted(evaluated)
    effective = {part: _text(layout.effective(archive, part), value) for part, value in parts.items()}
    configured = Configured(archive, spec, settings, data_root, effective, start, warnings=warnings)
    if spec["publish"] not in configured.split_numbers:
        raise UserError(f"{archive}: publish is {spec['publish']}; wanted one of the splits {configured.split_numbers}")
    if spec["ensemble"]:
        require_splits(archive, configured.split_numbers)
    asked = sum(len(chosen) * max(1, len(configured.groups_of(k))) for k in configured.split_numbers)
    if asked > MOST_RESULTS:
        raise UserError(
            f"{archive}: {asked:,} results of every split, checkpoint and test group, wanted at most {MOST_RESULTS:,}; ask for fewer of these"
        )
    groups = {g: t for g, t in parts["test"]["groups"].items() if "given" not in t}
    configured.effective["files"] = json_text(changed_files(archive, spec["dataset"], groups, data_root, index))

    texts = {n: _text(layout.mmar_config(archive, n), v) for n, v in {"archive.json": spec, **files}.items()}
    if section:
        _refuse_hand_edits(archive, texts)
    for name, text in texts.items():
        path = layout.mmar_config(archive, name)
        if _write_if_changed(archive, path, text, dry):
            configured.rewritten.append(path)
    source = layout.mmar_config(archive, trained_by)
    variables = recipe.effective_variables(files[trained_by], files["environment.json"], source)
    _write_if_changed(archive, layout.effective_variables(archive), json_text(variables), dry)
    hashes = {name: _sha256(text) for name, text in texts.items()}
    _write_if_changed(archive, layout.written_configs(archive), json_text(hashes), dry)
    for part, text in configured.effective.items():
        path = layout.effective(archive, part)
        if _write_if_changed(archive, path, text, dry):
            configured.changed.add(part)
            configured.rewritten.append(path)
    return configured


def edited_configuration(archive: str, changes: dict) -> dict[str, str]:
    """What the files of an archive on disk would be with ``changes`` of variables put in, by path; those that differ.

    Raises
    ------
    UserError, Problems
        If its configuration is wrong, or would be.
    """
    held = read_object(layout.archive_json(archive))
    trusted = held.get("allow", [])  # nothing is run here
    spec, files = _held_files(archive, Globals(None, changes, allow=tuple(map(str, trusted))))
    _check_selection(spec, _settings(archive, files, "config_train.json"), archive)
    values = {
        "archive.json": _held_spec(spec),
        **{name: files[name] for name in ("config_train.json", "environment.json")},
    }
    texts = {path: _text(path, v) for path, v in ((layout.mmar_config(archive, n), v) for n, v in values.items())}
    return {path: text for path, text in texts.items() if not os.path.isfile(path) or read_text(path) != text}


def read_effective(archive: str, part: str) -> dict:
    """A part of the effective configuration, as the steps read it."""
    return read_json(layout.effective(archive, part))


def training_settings_of(archive: str) -> dict:
    """The effective training configuration with how it is carried out, and the epochs whose weights to keep."""
    kept = epochs_listed(read_effective(archive, "select")["checkpoints"])
    return {**read_effective(archive, "train"), **read_effective(archive, "execution"), "keep_epochs": kept}


def evaluation_settings_of(archive: str, settings: dict) -> dict:
    """The effective configuration ``settings`` as the published model is evaluated: by its own config_validation.json, if any."""
    return {**settings, "validate": read_effective(archive, "predict").get("validate", settings["validate"])}


def epochs_listed(checkpoints: Iterable[str]) -> list[int]:
    """The epochs that are selected by number."""
    return sorted(int(c.removeprefix("epoch-")) for c in checkpoints if c.startswith("epoch-"))


def data_root_of(archive: str) -> str:
    """Folder of the dataset: DATA_ROOT of the archive's environment.json."""
    return read_json(layout.environment_json(archive))["DATA_ROOT"]
