"""Whether an archive is what its manifest and records say: everything is read from the disk anew.

Modification times and remembered hashes count for nothing: a decayed disk keeps them.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from fnmatch import fnmatch

from . import layout
from .adoption import is_own, is_source
from .chain import Evidence, is_copy, older_inputs, other_origins, other_sources
from .circumstances import other_circumstances, this_code
from .errors import UserError
from .files import WRITING
from .findings import Finding, Report
from .manifest import Manifest, is_described, parsed_time, read_manifest
from .provenance import read_sidecar
from .scan import Content, Scan, scan
from .verify_data import verify_data


def verify(archive: str, data_root: str | None = None, with_data: bool = True) -> Report:
    """Compare an archive with its manifest, its records, what its products say, and its dataset.

    Parameters
    ----------
    data_root:
        Where the dataset is, if not where the archive says.
    with_data:
        Whether to read the dataset.

    Raises
    ------
    UserError
        If there is no archive.
    """
    archive = os.path.normpath(archive)
    if not any(map(os.path.lexists, (layout.manifest(archive), layout.archive_json(archive)))):
        raise UserError(
            f"{archive}: no archive: found neither {layout.manifest(archive)} nor {layout.archive_json(archive)}; check the path"
        )
    found = scan(archive, _unlisted, is_copy)
    files = _Files(archive, found)
    evidence = Evidence(archive, found, list(files.records.values()), files.expected(), set(files.spoilt))
    of_chain = [*older_inputs(evidence), *other_origins(evidence), *other_sources(evidence)]
    said, of_data = verify_data(evidence, data_root) if with_data else ("data not verified: left out as asked", [])
    findings = [*files.findings, *of_chain, *of_data, *other_circumstances(evidence)]
    return Report(archive, len(found.files), found.size, said, this_code(), findings)


def _unlisted(path: str) -> bool:
    """Whether a folder is one that no manifest describes."""
    return not is_described(path)


class _Files:
    """Every file, against the manifest and the steps' records.

    Attributes
    ----------
    records:
        The records of steps that can be trusted, by path.
    spoilt:
        SHA-256 of the bytes that belong there, by path of the files that have others or none.
    findings:
        What is wrong with files, each by itself.
    """

    def __init__(self, archive: str, found: Scan):
        self.archive, self.found = archive, found
        self.own = os.path.relpath(layout.manifest(archive), archive)
        self.manifest, trouble = self._read_manifest()
        self.makers = {path: name for name, _, made in self.manifest.actions for path in made}
        self.made_by_record = {self._record_of(name): made for name, _, made in self.manifest.actions}
        self.records: dict[str, dict] = {}
        self.damaged_records: dict[str, str] = {}
        self.remade_records: set[str] = set()
        self._read_records()
        self.recorded: dict[str, set[str]] = defaultdict(set)
        for record in self.records.values():
            for path, facts in record["outputs"].items():
                self.recorded[path].add(facts["sha256"])
        self.spoilt: dict[str, str] = {}
        self.findings = [*trouble, *self._find()]

    def _read_manifest(self) -> tuple[Manifest, list[Finding]]:
        """The manifest, empty where there is none to be understood, and what is the matter with it."""
        if self.own not in self.found.files:
            return Manifest(), [] if self.own in self.found.escaping else [Finding("manifest", self.own)]
        try:
            manifest = read_manifest(self.archive)
        except UserError as error:
            return Manifest(), [Finding("damaged manifest", self.own, str(error).removeprefix(f"{self.archive}/"))]
        if not manifest.files:
            return manifest, [Finding("damaged manifest", self.own, "it names no file of the archive")]
        return manifest, [Finding("outside", path) for path in manifest.outside]

    def _read_records(self) -> None:
        """Tell records that can be trusted from those that cannot."""
        folder, pattern = os.path.split(layout.sidecar("", "*")[1:])
        for path, content in self.found.files.items():
            if os.path.dirname(path) != folder or not fnmatch(os.path.basename(path), pattern):
                continue
            try:
                record = read_sidecar(f"{self.archive}/{path}")
            except UserError:
                self.damaged_records[path] = "not to be understood"
                continue
            if record is None:
                continue
            listed = self._listed(path)
            if listed == _facts(content) or not self.manifest.files:
                self.records[path] = record
            elif self._made_what_is_there(record) and (not listed or self._is_later(record)):
                self.records[path] = record
                self.remade_records.add(path)
            elif listed:
                self.damaged_records[path] = "changed"

    def _made_what_is_there(self, record: dict) -> bool:
        files = self.found.files
        return any(path in files and files[path].sha256 == f["sha256"] for path, f in record["outputs"].items())

    def _is_later(self, record: dict) -> bool:
        """Whether a step ended after the manifest was written, which has milliseconds."""
        return parsed_time(record["end"]) - self.manifest.latest > timedelta(milliseconds=1)

    def _is_repeated(self, record: dict) -> bool:
        """Whether a step that ran again made what the manifest lists."""
        files = self.found.files
        return all(path in files and self._listed(path) == _facts(files[path]) for path in record["outputs"])

    def _listed(self, path: str) -> tuple[str, int] | None:
        return self.manifest.files.get(path)

    def expected(self) -> dict[str, str]:
        """SHA-256 of every file: as found, or as it should be where it is spoilt."""
        return {path: content.sha256 for path, content in self.found.files.items()} | self.spoilt

    # ---- findings

    def _find(self) -> Iterator[Finding]:
        yield from (Finding("escaping link", path, f"to {target}") for path, target in self.found.escaping.items())
        yield from (Finding("odd", path, what) for path, what in self.found.odd.items() if not _passing(path))
        yield from map(self._folder, self.found.whole)
        for path, content in self.found.files.items():
            if path != self.own and not _passing(path):
                yield from self._file(path, content)
        for path in self.manifest.files:
            if path not in self.found.files:
                self.spoilt[path] = self._proper(path)
                if path not in self.found.odd and path not in self.found.escaping:
                    yield self._missing(path)

    def _folder(self, path: str) -> Finding:
        name = os.path.basename(path)
        if name.startswith(WRITING):
            return Finding("leftover", path)
        if path == os.path.dirname(layout.held_version("", "/x")).strip("/"):
            return Finding("held version", path)
        if f"/{path}" == layout.client_output(""):
            return Finding("client's output", path)
        return Finding("foreign" if name.startswith(".") else "resume state", path)

    def _file(self, path: str, content: Content) -> Iterator[Finding]:
        listed = self._listed(path)
        if path in self.damaged_records:
            yield Finding("damaged record", path, self.damaged_records[path])
        elif listed == _facts(content) or not self.manifest.files:
            yield from self._as_listed(path, content)
        elif path in self.remade_records and self._is_repeated(self.records[path]):
            yield Finding("repeated", path)
        elif path in self.remade_records or content.sha256 in self.recorded[path]:
            yield Finding("remade", path)
        elif listed:
            yield self._changed(path)
        elif not self._is_configuration(path):
            yield Finding("foreign", path)
        else:
            yield Finding("remade", path, "new configuration")

    def _as_listed(self, path: str, content: Content) -> Iterator[Finding]:
        """Of a file that is as the manifest says (or of which none says anything): whether its step wrote that."""
        if content.sha256 in self.recorded[path] or is_own(self.archive, path):
            return
        if self.recorded[path]:
            self.spoilt[path] = self._proper(path)
            yield Finding("altered", path)
        elif path in self.makers:
            yield Finding("lost record", path, f"of {self.makers[path]}")
        elif not is_source(self.archive, path):
            yield Finding("unrecorded", path)

    def _changed(self, path: str) -> Finding:
        if is_own(self.archive, path):
            return Finding("own", path)
        if self._is_made(path) or self._is_derived(path):
            self.spoilt[path] = self._proper(path)
            return Finding("changed", path)
        return Finding(self._given(path), path, "changed")

    def _missing(self, path: str) -> Finding:
        made = self.made_by_record.get(path, [])
        if any(p in self.found.files for p in made):
            return Finding("damaged record", path, "missing")
        if made or self._is_made(path) or self._is_derived(path) or self._is_regenerated(path):
            return Finding("missing", path)
        return Finding(self._given(path), path, "missing")

    # ---- what a file is

    def _proper(self, path: str) -> str:
        """SHA-256 of the bytes that belong in a file: those that its step wrote, else the manifest's."""
        return min(self.recorded[path]) if self.recorded[path] else self.manifest.files[path][0]

    def _record_of(self, step: str) -> str:
        return os.path.relpath(layout.sidecar(self.archive, step), self.archive)

    def _is_made(self, path: str) -> bool:
        return bool(self.recorded[path]) or path in self.makers

    def _is_configuration(self, path: str) -> bool:
        folder = os.path.relpath(layout.mmar_config(self.archive, ""), self.archive)
        return path.startswith(f"{folder}/") and is_source(self.archive, path)

    def _given(self, path: str) -> str:
        """The kind of finding of a file that no step makes. The list of changed data remembers: it is no configuration."""
        remembers = path == os.path.relpath(layout.changed_files(self.archive), self.archive)
        return "source" if self._is_configuration(path) and not remembers else "irreplaceable"

    def _is_derived(self, path: str) -> bool:
        """Whether planning writes a file from the configuration, whatever is there."""
        written = [layout.effective(self.archive, part) for part in layout.EFFECTIVE]
        others = layout.written_configs(self.archive), layout.effective_variables(self.archive)
        return f"{self.archive}/{path}" in (*written, *others)

    def _is_regenerated(self, path: str) -> bool:
        """Whether planning writes a file from config_train.json where there is none."""
        return f"{self.archive}/{path}" in [layout.mmar_config(self.archive, n) for n in layout.MMAR_CONFIGS[1:]]


def _facts(content: Content) -> tuple[str, int]:
    return content.sha256, content.size


def _passing(path: str) -> bool:
    """What a network disk shows of a file that was deleted while it was open."""
    return os.path.basename(path).startswith(".nfs")
