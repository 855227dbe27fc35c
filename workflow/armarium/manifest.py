"""The manifest: an RO-Crate of every file of an archive, what made it and from what.

A Provenance Run Crate 0.5 on RO-Crate 1.1 (https://w3id.org/ro/wfrun/provenance/0.5), assembled from the
sidecars (provenance.py) and the files on disk. Times come from sidecars alone; a file whose sidecar is lost,
or whose bytes are no longer those that the sidecar names, is listed without the action that made it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from typing import Any
from urllib.parse import quote, unquote

from . import __version__, layout
from .errors import UserError
from .files import read_json, until_changed, write_json
from .hashing import HashIndex, list_sha256
from .parent import read_parent
from .provenance import DATA, extended_by, read_sidecars
from .software import described_software, other_software

EPOCH = "1970-01-01T00:00:00.000+00:00"
"""``datePublished``, which RO-Crate demands, of an archive without a sidecar."""

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
RUN_TERMS = "https://w3id.org/ro/terms/workflow-run"
COMPLETED = "http://schema.org/CompletedActionStatus"
USAGE = {  # measured resource: the property's name, its unit (QUDT)
    "wall_seconds": ("realTime", "SEC"),
    "cpu_seconds": ("cpuTime", "SEC"),
    "peak_memory_bytes": ("peakMemory", "BYTE"),
}
MEDIA_TYPES = {
    "application/gzip": (".gz",),
    "application/json": (".json",),
    "application/x-sh": (".sh",),
    "application/yaml": (".yaml", ".yml"),
    "application/zip": (".pt", ".pt2", ".ts", ".zip"),
    "text/csv": (".csv",),
    "text/markdown": (".md",),
    "text/plain": ("", ".conf", ".config", ".log", ".smk", ".txt"),
    "text/tab-separated-values": (".tsv",),
    "text/x-python": (".py",),
}
WORKFLOW = ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]
ACTION = "#action/"
ROOT = "./"
"""The entity of the archive itself."""


# ---- what lies in an archive


def archive_files(archive: str) -> list[str]:
    """Every file that a manifest describes, relative to the archive, sorted.

    Left out: the manifest, what :func:`is_described` leaves out, hidden folders and Snakemake's own marks.
    """
    manifest = _relative(archive, layout.manifest(archive))
    found = []
    for folder, subfolders, names in os.walk(archive):
        inside = os.path.relpath(folder, archive)
        paths = {name: os.path.normpath(os.path.join(inside, name)) for name in subfolders + names}
        subfolders[:] = [s for s in subfolders if is_described(paths[s])]
        found += [paths[name] for name in names if not name.startswith((".snakemake", ".nfs"))]
    return sorted(path for path in found if path != manifest)


def is_described(folder: str) -> bool:
    """Whether a folder, relative to its archive, is of it: not hidden, resume state, or a client's output."""
    hidden = os.path.basename(folder).startswith(".")
    return not (hidden or fnmatch(f"/{folder}", layout.tmp_dir("", "*")) or f"/{folder}" == layout.client_output(""))


def archive_identity(archive: str, hash_index: HashIndex) -> str:
    """``sha256:…`` over the effective configuration and the datalists: what the archive is, wherever it lies.

    Hashed is the text that ``sha256sum`` would print for those files, sorted by path.
    """
    parts = [layout.effective(archive, part) for part in layout.EFFECTIVE]
    lists = os.path.dirname(layout.datalist(archive, "*"))
    pattern = os.path.basename(layout.datalist(archive, "*"))
    names = os.listdir(lists) if os.path.isdir(lists) else []
    parts += [os.path.join(lists, name) for name in names if fnmatch(name, pattern)]
    hashes = hash_index.many([path for path in parts if os.path.isfile(path)])
    return f"sha256:{list_sha256((_relative(archive, path), digest) for path, digest in hashes.items())}"


def _relative(archive: str, path: str) -> str:
    return os.path.relpath(path, archive)


# ---- writing


def write_manifest(archive: str, hash_index: HashIndex) -> None:
    """Describe the archive as it lies on disk in ``ro-crate-metadata.json``.

    Raises
    ------
    UserError
        If the workflow's copy is missing, a link leads nowhere or out of the archive, something is no file, or
        config, datalist or sidecar is no JSON.
    """
    write_json(layout.manifest(archive), _Crate(archive, hash_index).build())


class _Crate:
    """The manifest being assembled; ``build`` is its one use."""

    def __init__(self, archive: str, hash_index: HashIndex):
        from rocrate.rocrate import ROCrate

        self.archive = archive
        self.identity = archive_identity(archive, hash_index)
        self.steps = read_sidecars(archive)
        self.hashes = self._hash_files(hash_index)
        self.extended = extended_by(self.steps, self.hashes)
        self.crate = ROCrate(version="1.1")  # newer versions fail the 0.5 run profiles
        self.crate.metadata.extra_contexts.append(f"{RUN_TERMS}/context")
        self.files: dict[str, Any] = {}
        self.things: dict[str, Any] = {}
        self.described: dict[str | None, dict[str, str | None] | None] = {}

    def build(self) -> dict[str, Any]:
        """The manifest's JSON."""
        workflow = self._add_files()
        self._describe_root(workflow)
        # An action without an output that is still there was overtaken by a later one.
        steps = [step for step in self.steps if any(map(self._is_current, step["outputs"].items()))]
        if steps:
            self._describe_run(workflow, steps)
        return self.crate.metadata.generate()

    def _hash_files(self, hash_index: HashIndex) -> dict[str, str]:
        paths = {f"{self.archive}/{path}": path for path in archive_files(self.archive)}
        root = f"{os.path.realpath(self.archive)}{os.sep}"
        for path in paths:
            if not os.path.exists(path):
                raise UserError(f"{path}: a link to a file that does not exist; restore or delete it")
            if not os.path.realpath(path).startswith(root):
                raise UserError(
                    f"{path}: a link that leaves the archive; put the file itself in its place, or delete it"
                )
            if not os.path.isfile(path):
                raise UserError(f"{path}: found a pipe or a device, wanted a file; delete it")
        return {paths[path]: digest for path, digest in hash_index.many(paths).items()}

    def _add(self, kind: str, identifier: str, /, **properties) -> Any:
        from rocrate.model import ContextEntity

        if identifier not in self.things:  # the crate's own look-up walks all entities when there is none
            kept = {key: _one_or_many(value) for key, value in properties.items() if value not in (None, [])}
            entity = ContextEntity(self.crate, identifier, properties={"@type": kind} | kept)
            self.things[identifier] = self.crate.add(entity)
        return self.things[identifier]

    # ---- files

    def _add_files(self) -> Any:
        """Add every file; returns the workflow's."""
        main = _relative(self.archive, layout.workflow_copy(self.archive))
        if main not in self.hashes:
            raise UserError(f"{self.archive}/{main}: file not found; the manifest names it as the workflow")
        for path, digest in self.hashes.items():
            facts = {
                "@type": WORKFLOW if path == main else "File",
                "name": path,
                "contentSize": str(os.path.getsize(f"{self.archive}/{path}")),
                "sha256": digest,
                "encodingFormat": media_type(path),
            }
            self.files[path] = self.crate.add_file(dest_path=path, properties=facts)
        readme = _relative(self.archive, layout.doc(self.archive, "README.md"))
        if readme in self.files:
            self.files[readme]["about"] = self.crate.root_dataset
        return self.files[main]

    def _as_extended(self, entries: dict[str, dict]) -> dict[str, dict]:
        """``entries``, a file whose parts an extended one still has being that one."""
        return {
            path: {**facts, "sha256": self.hashes[path]} if facts["sha256"] in self.extended.get(path, ()) else facts
            for path, facts in entries.items()
        }

    def _is_current(self, entry: tuple[str, dict]) -> bool:
        path, facts = entry
        return self.hashes.get(path) == facts["sha256"]

    def _things(self, entries: dict[str, dict]) -> list[Any]:
        """Entities for an action's files: those of the archive, other ones, and one for all of its data."""
        things = [self.files[p] if self._is_current((p, f)) else self._elsewhere(p, f)
                  for p, f in entries.items() if not p.startswith(DATA)]  # fmt: skip
        data = [(p.removeprefix(DATA), f["sha256"]) for p, f in entries.items() if p.startswith(DATA)]
        return things + ([self._data_set(data)] if data else [])

    def _elsewhere(self, path: str, facts: dict) -> Any:
        """A file that is not, or no longer with these bytes, in the archive."""
        return self._add(
            "CreativeWork",
            f"#file/{facts['sha256']}/{quote(os.path.basename(path))}",
            name=path,
            description="A file that this archive does not hold, or holds in another version",
            sha256=facts["sha256"],
        )

    def _data_set(self, files: list[tuple[str, str]]) -> Any:
        digest = list_sha256(files)
        table = _relative(self.archive, layout.cases_tsv(self.archive))
        return self._add(
            "CreativeWork",
            f"#data/{digest}",
            name=f"{len(files)} files of the dataset",
            description=f"Not part of this archive. {table} lists each file's SHA-256; this one is over the "
            "lines that sha256sum prints for them, sorted by path below the data root.",
            sha256=digest,
            isPartOf=self._dataset(),
        )

    # ---- the archive

    def _dataset(self) -> Any:
        facts = self._data_facts()
        return self._add("CreativeWork", "#dataset", **facts | {"license": facts["license"] or "Not stated"})

    def _data_facts(self) -> dict[str, str | None]:
        """Name, description and licence of the dataset, from the archive's section or its first datalist."""
        spec = self._read(layout.archive_json(self.archive)).get("dataset", {})
        listed = self._read(layout.datalist(self.archive, 0))
        facts = {key: spec.get(key) or listed.get(key) for key in ("name", "description")}
        stated = (d.get(key) for d in (spec, listed) for key in ("licence", "license"))
        facts["license"] = next(filter(None, stated), None)
        facts["name"] = facts["name"] or spec.get("list") or "Dataset"
        return {key: value and str(value) for key, value in facts.items()}

    def _read(self, path: str) -> dict[str, Any]:
        value = read_json(path) if os.path.isfile(path) else {}
        return value if isinstance(value, dict) else {}

    def _describe_root(self, workflow: Any) -> None:
        root, data = self.crate.root_dataset, self._data_facts()
        root["name"] = os.path.basename(os.path.abspath(self.archive))
        name, about = data["name"], f": {data['description']}" if data["description"] else ""
        root["description"] = f"Model archive (ClinicaDL MAPS, Clara MMAR, MONAI Bundle) of {name}{about}"
        root["identifier"] = self.identity
        root["license"] = self._licence(data["license"])
        root["datePublished"] = _milliseconds(max((step["end"] for step in self.steps), default=EPOCH))
        if based := [*self._origin(), *self._parent()]:
            root["isBasedOn"] = _one_or_many(based)
        self.crate.metadata["conformsTo"] = [
            {"@id": "https://w3id.org/ro/crate/1.1"},
            {"@id": "https://w3id.org/workflowhub/workflow-ro-crate/1.0"},
        ]
        self.crate.mainEntity = workflow
        workflow["name"], workflow["version"] = "Armarium", __version__
        workflow["programmingLanguage"] = self._add(
            "ComputerLanguage",
            "https://w3id.org/workflowhub/workflow-ro-crate#snakemake",
            name="Snakemake",
            url={"@id": "https://snakemake.readthedocs.io"},
        )

    def _origin(self) -> Iterator[Any]:
        """The archive that this one was cloned from, unless it is that again."""
        origin = self._read(layout.origin(self.archive))
        identifier = origin.get("identifier")
        if isinstance(identifier, str) and identifier != self.identity:
            name = str(origin.get("name") or "Archive that this one was cloned from")
            yield self._add("CreativeWork", "#origin", name=name, identifier=identifier)

    def _parent(self) -> Iterator[Any]:
        """What this archive's training started from; its files in the archive are named as based on that."""
        parent = read_parent(self.archive)
        if parent is None:
            return
        known = [n for n, h in parent.files.items() if self.hashes.get(self._parents(n)) == h]
        if len(known) < len(parent.files):
            entity = self._add("CreativeWork", "#parent", name="Weights of unknown origin",
                               description=f"Not those that {_relative(self.archive, layout.parent_json(self.archive))} describes")  # fmt: skip
        else:
            entity = self._add(
                "CreativeWork",
                "#parent",
                name=f"{parent.file} of {parent.name}" if parent.name else parent.file,
                description=f"What this archive's training started from ({parent.mode})",
                identifier=parent.identifier,
            )
        for name in parent.files:
            if self._parents(name) in self.files:
                self.files[self._parents(name)]["isBasedOn"] = entity
        yield entity

    def _parents(self, name: str) -> str:
        return _relative(self.archive, layout.parent_file(self.archive, name))

    def _licence(self, stated: str | None) -> Any:
        """The data's licence, which binds what was learned from them; else the archive's licence file."""
        if stated and stated.startswith(("http://", "https://")):
            return self._add("CreativeWork", stated, name=stated)
        if stated:
            return self._add("CreativeWork", "#licence", name=stated)
        file = _relative(self.archive, layout.doc(self.archive, "data_license.txt"))
        return self.files.get(file, "Not stated")

    # ---- the run

    def _describe_run(self, workflow: Any, steps: list[dict]) -> None:
        rules = list(dict.fromkeys(step["rule"] for step in steps))
        tools = {rule: self._tool(rule, steps) for rule in rules}
        how = {
            rule: self._add("HowToStep", f"#step/{rule}", name=rule, position=str(n), workExample=tools[rule])
            for n, rule in enumerate(rules)
        }
        actions = [self._action(step, tools[step["rule"]]) for step in steps]
        controls = [
            self._add(
                "ControlAction",
                f"#control/{step['name']}",
                name=f"orchestrate {step['name']}",
                instrument=how[step["rule"]],
                object=action,
                actionStatus=COMPLETED,
            )
            for step, action in zip(steps, actions, strict=True)
        ]
        workflow["hasPart"], workflow["step"] = list(tools.values()), list(how.values())
        start, end = min(s["start"] for s in steps), max(s["end"] for s in steps)
        times = {"startTime": _milliseconds(start), "endTime": _milliseconds(end)}
        run = self._run_action(workflow, actions, times)
        engine = self._add("SoftwareApplication", "https://snakemake.github.io", name="Snakemake",
                           url="https://snakemake.github.io")  # fmt: skip
        organize = self._add("OrganizeAction", "#organize", name="Run of Snakemake", instrument=engine,
                             object=controls, result=run, actionStatus=COMPLETED, **times)  # fmt: skip
        self.crate.root_dataset["mentions"] = [run, *actions, organize]
        self.crate.root_dataset["conformsTo"] = [
            self._add("CreativeWork", uri, name=name, version=version) for uri, (name, version) in PROFILES.items()
        ]

    def _tool(self, rule: str, steps: list[dict]) -> Any:
        """A rule; where several versions of the code ran it, all of them. Each action names its own."""
        versions = sorted({step["armarium"] for step in steps if step["rule"] == rule})
        hashes = sorted({step["code_sha256"] for step in steps if step["rule"] == rule})
        return self._add("SoftwareApplication", f"#tool/{rule}", name=rule, softwareVersion=versions, sha256=hashes)

    def _action(self, step: dict, tool: Any) -> Any:
        name = step["name"]
        record = _relative(self.archive, layout.sidecar(self.archive, name))
        return self._add(
            "CreateAction",
            f"{ACTION}{name}",
            name=f"Run of {name}",
            description=f"A job of rule {step['rule']}{_of_earlier(step)}{self._elsewhere_made(step)}",
            instrument=tool,
            object=self._things(self._as_extended(step["inputs"])) + list(self._parameters(step)),
            result=self._things(step["outputs"]),
            startTime=_milliseconds(step["start"]),
            endTime=_milliseconds(step["end"]),
            actionStatus=COMPLETED,
            environment=[self._code(step), self._software(step), self._host(step), *self._rule_environment(step)],
            resourceUsage=list(self._usage(step)),
            subjectOf=self.files.get(record),
        )

    def _parameters(self, step: dict) -> Iterator[Any]:
        for key, value in step["parameters"].items():
            plain = value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)
            yield self._add("PropertyValue", f"#value/{step['name']}/{key}", name=key, value=plain)

    # What an action ran on: entities that actions share, since there are few of each.

    def _code(self, step: dict) -> Any:
        digest = step["code_sha256"]
        return self._add(
            "PropertyValue",
            f"#code/{digest[:12]}",
            name=f"Armarium {step['armarium']}",
            description="SHA-256 over the names and bytes of its Python files",
            propertyID="code_sha256",
            value=digest,
        )

    def _software(self, step: dict) -> Any:
        return self._shared("software", "Python and the packages in use", {"python": step["python"]} | step["packages"])

    def _host(self, step: dict) -> Any:
        return self._shared("host", "Machine", {"name": step["host"], "platform": step["platform"]})

    def _rule_environment(self, step: dict) -> Iterator[Any]:
        """The file of envs/ that the rule's environment was made from; ``env/`` has what was in it."""
        if name := step.get("environment"):
            yield self._add("PropertyValue", f"#environment/{quote(name)}", name="Environment of the rule",
                            propertyID="environment", value=name)  # fmt: skip

    def _elsewhere_made(self, step: dict) -> str:
        """What was made, as a lost file is, in another environment than env/ describes."""
        of = step.get("environment")
        if of not in self.described:
            self.described[of] = described_software(self.archive, of)
        found = other_software(step, self.described[of]) if self.described[of] else []
        return f", in another environment than env/ describes: {', '.join(found)}" if found else ""

    def _shared(self, kind: str, name: str, facts: dict[str, str]) -> Any:
        text = json.dumps(facts, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return self._add("PropertyValue", f"#{kind}/{digest[:12]}", name=name, propertyID=kind, value=text)

    def _usage(self, step: dict) -> Iterator[Any]:
        for key, value in step["resources"].items():
            name, unit = USAGE.get(key, (key, None))
            yield self._add(
                "PropertyValue",
                f"#usage/{step['name']}/{name}",
                name=name,
                value=value,
                propertyID=f"{RUN_TERMS}#{name}" if unit else name,
                unitCode=unit and f"https://qudt.org/vocab/unit/{unit}",
            )

    def _run_action(self, workflow: Any, actions: list[Any], times: dict[str, str]) -> Any:
        """The run as a whole: from what no step made to all that steps made."""
        results = {thing.id: thing for action in actions for thing in _many(action["result"])}
        objects = {t.id: t for a in actions for t in _many(a.get("object", [])) if t.type != "PropertyValue"}
        return self._add("CreateAction", "#run", name="Run of the workflow", instrument=workflow,
                         description="Execution of the workflow: all of its recorded steps",
                         object=[thing for key, thing in objects.items() if key not in results],
                         result=list(results.values()), actionStatus=COMPLETED, **times)  # fmt: skip


def media_type(path: str) -> str:
    """A file's media type by its suffix, the same on every machine."""
    suffix = os.path.splitext(path)[1].lower()
    return next((kind for kind, known in MEDIA_TYPES.items() if suffix in known), "application/octet-stream")


def _milliseconds(time: str) -> str:
    """A time as precise as the run profiles' checks understand."""
    return datetime.fromisoformat(time).isoformat(timespec="milliseconds")


def _many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _one_or_many(value: Any) -> Any:
    """A list of one as its bare value, as RO-Crate 1.1 recommends."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _of_earlier(step: dict) -> str:
    """When the parts of its product were made that a step found there."""
    ends = [_milliseconds(earlier["end"]) for earlier in step.get("extends", []) if isinstance(earlier.get("end"), str)]
    return f", which added to what had been made by {', '.join(ends)}" if ends else ""


# ---- reading


@dataclass
class Manifest:
    """What a manifest says.

    Attributes
    ----------
    files:
        SHA-256 and size in bytes of each file, by its path relative to the archive.
    actions:
        Step name, files read and files made, of each action; only files of the archive.
    outside:
        Paths that leave the archive, which no manifest written here has; they are not among ``files``.
    latest:
        When the last of the described steps ended.
    identifier, name:
        What the archive was when this was written: its identity, and its folder's name.
    """

    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    actions: list[tuple[str, list[str], list[str]]] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    latest: datetime = field(default_factory=lambda: parsed_time(EPOCH))
    identifier: str | None = None
    name: str | None = None


def read_manifest(archive: str) -> Manifest:
    """Read an archive's manifest without the rocrate library.

    Raises
    ------
    UserError
        If it is missing, no JSON or no manifest.
    """
    path = layout.manifest(archive)
    try:
        return _manifest_at(path)
    except FileNotFoundError:
        raise UserError(f"{path}: file not found") from None


@until_changed(4)
def _manifest_at(path: str) -> Manifest:
    document = read_json(path)
    try:
        return _understood(document["@graph"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: not a manifest as Armarium writes it ({type(error).__name__}: {error}); restore it from a copy, or delete it and have it written again"
        ) from None


def _understood(graph: list[dict]) -> Manifest:
    manifest = Manifest()
    for entity in graph:
        if entity.get("@id") == ROOT:
            manifest.identifier, manifest.name = (_text(entity.get(key)) for key in ("identifier", "name"))
        if "File" in _many(entity.get("@type")) and "sha256" in entity:
            name, facts = unquote(entity["@id"]), (str(entity["sha256"]), int(entity.get("contentSize", -1)))
            if leaves_archive(name):
                manifest.outside.append(name)
            elif manifest.files.setdefault(name, facts) != facts:
                raise ValueError(f"{name} is listed twice, with different bytes")

    def local(entity: dict, key: str) -> list[str]:
        names = [unquote(reference["@id"]) for reference in _many(entity.get(key, []))]
        return [name for name in names if name in manifest.files]

    for entity in graph:
        if entity.get("@type") == "CreateAction" and entity["@id"].startswith(ACTION):
            name = entity["@id"].removeprefix(ACTION)
            manifest.actions.append((name, local(entity, "object"), local(entity, "result")))
            if "endTime" in entity:
                manifest.latest = max(manifest.latest, parsed_time(entity["endTime"]))
    return manifest


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def parsed_time(text: str) -> datetime:
    """A time of a manifest or a sidecar; one without a zone is taken for UTC."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def leaves_archive(name: str) -> bool:
    """Whether a path that should be relative to the archive points out of it; nothing is looked up on disk."""
    return os.path.isabs(name) or os.pardir in name.split("/") or "\0" in name
