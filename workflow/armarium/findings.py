"""What :mod:`verify` found, in groups, and what to run to mend each: for people and for machines."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import layout
from .calling import working_directory
from .home import SNAKEFILE

SHOWN = 20
"""Findings of a kind that are shown to people."""

TYPED = 5
"""Files that a command names; more are piped into it."""


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes
    ----------
    title:
        What is the matter with the files of this kind.
    mend:
        What to do, in words; after a command that deletes the files where ``delete`` says so.
    delete:
        Whether mending begins with deleting them.
    wrong:
        Whether the archive is not as it should be, or this is information.
    """

    title: str
    mend: str
    delete: bool = False
    wrong: bool = True


LAST = "the last command"
AGAIN = f"delete them, {LAST} makes them again:"
KINDS = {
    "manifest": Kind("there is none, so nothing to compare the files with", f"{LAST} writes it"),
    "damaged manifest": Kind("it cannot be understood", f"delete it, {LAST} writes it again:", delete=True),
    "outside": Kind(
        "the manifest names files outside the archive; they were not looked at",
        f"restore the manifest from a copy, or {LAST} writes it again",
    ),
    "escaping link": Kind(
        "leaves the archive; it was not followed",
        f"put the file itself in the link's place; or delete the link, {LAST} makes again what it can:",
        delete=True,
    ),
    "odd": Kind(
        "no file that can be read",
        f"make it readable; or delete it, {LAST} makes again what it can:",
        delete=True,
    ),
    "changed": Kind("bytes are not the manifest's", AGAIN, delete=True),
    "altered": Kind("bytes are the manifest's, but not what the step wrote that made it", AGAIN, delete=True),
    "missing": Kind("the manifest lists it", f"{LAST} makes it again"),
    "source": Kind(
        "configuration that is not the manifest's",
        f"restore it from a copy. An edit that is meant may stay, {LAST} makes anew what depends on it. "
        f"Where config.yaml lists the archive, delete it and {LAST} writes it again",
    ),
    "own": Kind(
        "for the user to edit, and not as in the manifest",
        f"if the edit is meant, {LAST} takes it into the manifest; else restore it from a copy, or delete it, and {LAST} writes "
        "the default",
    ),
    "irreplaceable": Kind(
        "not as in the manifest, and no step makes it",
        f"restore it from a copy; or leave it so, {LAST} writes the manifest to match",
    ),
    "damaged record": Kind(
        "what a step recorded of itself is missing, changed or not to be understood",
        "restore it from a copy; or delete it and what it recorded ('lost record'):",
        delete=True,
    ),
    "lost record": Kind(
        "the record of the step that made it is gone",
        f"restore the record from a copy; or delete them, {LAST} makes them again, with a record:",
        delete=True,
    ),
    "unrecorded": Kind(
        "no step recorded that it made it",
        "keep a file of your own elsewhere, or here with this message; "
        f"delete one of the workflow's, {LAST} makes it again",
    ),
    "remade": Kind("made since the manifest was written", f"{LAST} writes the manifest again"),
    "foreign": Kind("the manifest does not list it", "move it elsewhere, or delete it:", delete=True),
    "leftover": Kind(
        "half-written, by a job that was killed or is at work", "when nothing is at work, delete it:", delete=True
    ),
    "resume state": Kind("of a training that was not brought to its end", f"{LAST} goes on with it"),
    "held version": Kind(
        "of what was being made again when the job was killed, or is being made",
        f"{LAST} puts it back, or drops it once the new one is whole",
    ),
    "older input": Kind(
        "made from another version of an input than the one that is there",
        f"delete them, {LAST} makes again those that the configuration still asks for:",
        delete=True,
    ),
    "other configuration": Kind(
        "made by another configuration than the archive's present one",
        f"{LAST} makes it again; delete what the configuration no longer has: a split, a group",
    ),
    "other run": Kind("made from another training than the one that is there", f"{LAST} makes it again"),
    "other source": Kind("bytes are not those in the zip file that it was taken from", AGAIN, delete=True),
    "configuration": Kind(
        "cannot be understood, so what it decides was not checked", f"{LAST} writes it again; then verify once more"
    ),
    "data": Kind(
        "files of the dataset are not those that were checked",
        f"restore them from a copy. A change that is meant may stay, {LAST} checks the data again and makes anew what they decide",
    ),
    "data record": Kind(
        "the table of cases and the record of the data check differ",
        f"delete the table, {LAST} makes it again:",
        delete=True,
    ),
    "repeated": Kind(
        "records of steps that ran again since the manifest was written, and made the same bytes",
        f"nothing to mend; {LAST} takes them into the manifest",
        wrong=False,
    ),
    "earlier copy": Kind(
        "made from an earlier copy of an input; current by the configuration and the training that it names",
        "nothing to mend",
        wrong=False,
    ),
    "client's output": Kind(
        "written by MONAI's bundle client when it was run on the archive; no part of it",
        "nothing to mend; keep it or delete it",
        wrong=False,
    ),
    "other code": Kind(
        "files made by other code than this, by rule",
        f"nothing to mend; what should be made by this code: delete it, then {LAST}",
        wrong=False,
    ),
    "other environment": Kind(
        "files made in another environment than this; made again here, bytes may differ",
        "nothing to mend",
        wrong=False,
    ),
}
"""Every kind, in the order in which they are shown."""


@dataclass(frozen=True)
class Finding:
    """One thing found: a path relative to the archive (of ``data``: to the data root), or what else it is about."""

    kind: str
    path: str
    note: str = ""


@dataclass
class Report:
    """What :func:`verify.verify` found; ``str()`` of it is for people.

    Attributes
    ----------
    archive:
        Its folder, as it was called.
    files, size:
        How many files it holds, and their bytes.
    data:
        What was found of the dataset, in words.
    code:
        The version and hash of the code that verified.
    """

    archive: str
    files: int
    size: int
    data: str
    code: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        return [finding for finding in self.findings if KINDS[finding.kind].wrong]

    def of(self, kind: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == kind]

    def to_delete(self, kind: str) -> list[str]:
        """Paths to delete to mend a kind, as seen from the working directory."""
        paths = [os.path.join(self.archive, finding.path) for finding in self.of(kind)]
        return [path for path in paths if KINDS[kind].delete and os.path.lexists(path)]

    def delete_command(self, kind: str) -> str | None:
        """Deletes what is to be deleted of a kind."""
        paths = self.to_delete(kind)
        if not paths:
            return None
        if len(paths) > TYPED or not all(path.isprintable() for path in paths):
            return f"armarium verify {shlex.quote(self.archive)} --paths {shlex.quote(kind)} | xargs -0 rm -r --"
        folders = [path for path in paths if os.path.isdir(path) and not os.path.islink(path)]
        return shlex.join(["rm", "-r" if folders else "-f", "--", *paths])

    def build_command(self) -> str:
        """Builds what is lost or out of date, and writes the manifest in any case."""
        archive, here = Path(self.archive).resolve(), Path.cwd()
        directory = working_directory(archive, here)
        target = layout.manifest(os.path.relpath(archive, directory))
        if directory == here and (here / SNAKEFILE).is_file():
            return shlex.join(["snakemake", "--cores", "1", "--force", "--", target])
        place = [] if directory == here else ["--directory", str(directory)]
        return shlex.join(["armarium", "build", "--cores", "1", *place, "--force", "--", target])

    def runs_to_delete(self) -> list[str]:
        """Trainings' outcomes among the files to delete."""
        paths = {os.path.relpath(path, self.archive) for kind in KINDS for path in self.to_delete(kind)}
        return sorted(path for path in paths if os.path.basename(path) == os.path.basename(layout.run_zip("", 0)))

    # ---- for machines

    def as_json(self) -> dict[str, Any]:
        kinds = [kind for kind in KINDS if self.of(kind)]
        return {
            "archive": self.archive,
            "files": self.files,
            "bytes": self.size,
            "data": self.data,
            "code": self.code,
            "ok": not self.wrong,
            "findings": [{"kind": f.kind, "path": f.path, "note": f.note} for f in self.findings],
            "kinds": {
                kind: {
                    "title": KINDS[kind].title,
                    "wrong": KINDS[kind].wrong,
                    "count": len(self.of(kind)),
                    "mend": KINDS[kind].mend,
                    "delete": self.delete_command(kind),
                }
                for kind in kinds
            },
            "build": self.build_command() if self.wrong else None,
        }

    # ---- for people

    def __str__(self) -> str:
        kinds = [kind for kind in KINDS if self.of(kind)]
        lines = [self._headline(), f"  {_shown(self.data)}", f"  by Armarium {self.code}"]
        for kind in kinds:
            lines += ["", *self._group(kind)]
        return "\n".join([*lines, *(self._last() if kinds else [])])

    def _headline(self) -> str:
        counts = Counter(finding.kind for finding in self.wrong)
        verdict = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts) or "nothing wrong"
        return f"{self.archive}: {self.files} files, {self.size / 1e6:.1f} MB: {verdict}"

    def _group(self, kind: str) -> list[str]:
        found, about = self.of(kind), KINDS[kind]
        more = [f"    and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        command = self.delete_command(kind)
        return [
            f"{kind} ({len(found)}{'' if about.wrong else ', for information'}): {about.title}",
            *(f"    {_shown(f.path)}{f': {_shown(f.note)}' if f.note else ''}" for f in found[:SHOWN]),
            *more,
            *([f"  {about.mend}"] if about.wrong or self.wrong else []),
            *([f"    {command}"] if command else []),
        ]

    def _last(self) -> list[str]:
        if not self.wrong:
            return []
        runs = ", ".join(self.runs_to_delete())
        return [
            "",
            "last, with the archive's own --configfile and data_root, if it has them:",
            f"    {self.build_command()}",
            *([f"  trains again: {runs}; restored from a copy in place of deleted, it would not"] if runs else []),
        ]


def _shown(text: str) -> str:
    """Text from an archive, safe for a terminal."""
    return text if text.isprintable() else repr(text)
