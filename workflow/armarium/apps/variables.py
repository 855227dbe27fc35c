"""``--set NAME=VALUE``: the variables that say how a command runs, and those that are the archive's own.

What remains is of the recipe, and kept by the archive.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .. import layout, recipe
from ..config import check, typed
from ..errors import UserError
from ..files import read_json

OWN = {
    "DATASET_JSON": "what is scored are the cases that the published split never trained on; to score others, give them as a "
    "test group (test.groups in the configuration), or as images to armarium's Archive.predict",
    "PROCESSING_TASK": "the task is that of the dataset; another one is another archive",
    "MMAR_CKPT": "eval/ is of the published model; other checkpoints are scored in test/, and publish says whose model is published",
    "MMAR_TORCHSCRIPT": "eval/ is of the published model; other checkpoints are scored in test/, and publish says whose model is published",
    "MMAR_CKPT_DIR": "the published model lies there",
    "MMAR_EVAL_OUTPUT_PATH": "this command writes no scores or predictions",
}
"""Variables of environment.json that name what an archive has, and why a command takes no other value."""


def changes_of(pairs: Sequence[str]) -> dict[str, str]:
    """``--set`` as a dict, of a name that is given twice the last value; values stay text, the workflow types them."""
    wrong = [p for p in pairs if "=" not in p]
    if wrong:
        raise UserError(f"--set: found {wrong[0]!r}, wanted NAME=VALUE")
    return dict(p.split("=", 1) for p in pairs)


class Variables:
    """The variables given to a command; taking one removes it.

    Parameters
    ----------
    archive:
        The archive's absolute path.
    pairs:
        ``NAME=VALUE`` as typed.

    Attributes
    ----------
    changes:
        Those not taken yet.
    """

    def __init__(self, archive: str, pairs: Sequence[str]):
        self.archive, self.changes = archive, changes_of(pairs)
        self.environment = read_json(layout.environment_json(archive))
        conf = read_json(layout.mmar_config(archive, "config_train.json"))
        self.present = {**check({}, "recipe", "recipe"), **recipe.variables_of(conf), **self.environment}

    def flag(self, name: str, default: bool) -> bool:
        """Take a variable that is true or false."""
        return typed(name, self.changes.pop(name, default), default, "--set")

    def text(self, name: str) -> str | None:
        """Take a variable as it was typed."""
        return self.changes.pop(name, None)

    def own(self, *names: str) -> None:
        """Take variables that may only say what the archive has.

        Raises
        ------
        UserError
            For another value.
        """
        for name in names:
            found, wanted = self.text(name), str(self.environment.get(name))
            if found is not None and not self._is_own(name, found, wanted):
                raise UserError(f"--set {name}={found}: this archive has {wanted}; {OWN[name]}")

    def folder(self, name: str) -> Path | None:
        """Take a variable that names an output folder, relative to the archive as in an MMAR.

        Returns
        -------
        The folder that the files are to be copied to; None for the archive's own.

        Raises
        ------
        UserError
            For another folder of an archive, whose files all have their places.
        """
        found, wanted = self.text(name), str(self.environment.get(name))
        if found is None or self._is_own(name, found, wanted):
            return None
        folder = Path(self.archive, found).resolve()
        if folder.is_relative_to(self.archive):
            raise UserError(
                f"--set {name}={found}: wanted {wanted}, or a folder outside the archive, where copies are put: every file in an archive "
                "is made by a rule, at its own place"
            )
        return folder

    def datalist(self) -> str | None:
        """Take DATASET_JSON: a list that divides the cases, relative to the archive or else to the working directory.

        Returns
        -------
        Its absolute path; None for the archive's own.

        Raises
        ------
        UserError
            If there is no such file.
        """
        name = "DATASET_JSON"
        found, wanted = self.text(name), str(self.environment.get(name))
        if found is None or self._is_own(name, found, wanted):
            return None
        for path in (Path(self.archive, found), Path(found)):
            if path.is_file():
                return str(path.resolve())
        raise UserError(f"--set {name}={found}: no such file; wanted a list with training and validation, or {wanted}")

    def _is_own(self, name: str, found: str, wanted: str) -> bool:
        if name == "PROCESSING_TASK":
            return found == wanted
        return Path(self.archive, found).resolve() == Path(self.archive, wanted).resolve()

    def new(self) -> dict[str, str]:
        """The variables that are left, whose values are not those that the archive has.

        Raises
        ------
        UserError
            For a variable that the recipe does not have, or a value of another type.
        """
        recipe.override({}, self.present, self.changes)
        return {n: v for n, v in self.changes.items() if typed(n, v, self.present[n]) != self.present[n]}

    def refuse_new(self, command: str) -> None:
        """Refuse variables that would change what was trained, in a command that does not train.

        Raises
        ------
        UserError
            For the first of them.
        """
        for name, value in self.new().items():
            raise UserError(
                f"--set {name}={value}: {command} takes the archive as it was trained, with {name}={json.dumps(self.present[name])}; "
                f"train it with another value: commands/train.sh {name}={value}"
            )
