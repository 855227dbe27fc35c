"""Pins of conda environments: files that name each package of one by its URL and hash, for the kind of machine they are made on.

Snakemake makes an environment from the pin that lies beside its file, without solving. Such a pin has no ``pip:`` section,
so what pip adds is put in a script, which Snakemake runs once the environment is made.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from .environment import conda_explicit, conda_records, not_from_conda
from .errors import UserError
from .files import write_text

_SCRIPT = """\
#!/bin/sh
# What pip adds to {pin}; written with it.
set -e
python -m pip install --quiet --no-deps {requirements}
"""


def pin_environments(folder: str, any_channel: bool = False) -> list[str]:
    """Make every environment that a folder has a file of, and write its pin and script beside that.

    All are made before anything is written.

    Parameters
    ----------
    folder:
        Has ``NAME.yaml``; gets ``NAME.PLATFORM.pin.txt`` and, where pip adds anything, ``NAME.post-deploy.sh``.
    any_channel:
        Whether packages may come from where other machines cannot have them from: a file or this machine itself.

    Returns
    -------
    list of str
        The files that were written.

    Raises
    ------
    UserError
        If the folder has no such file, conda is missing or cannot make one, or a package is from such a place.
    """
    environments = sorted(Path(folder).glob("*.yaml"))
    if not environments:
        raise UserError(f"{folder}: no NAME.yaml in it; wanted the folder of the environments' files")
    platform = json.loads(_conda("info", "--json"))["platform"]
    texts: dict[Path, str] = {}
    for file in environments:
        pin, script = file.with_suffix(f".{platform}.pin.txt"), file.with_suffix(".post-deploy.sh")
        with tempfile.TemporaryDirectory() as made:
            prefix = f"{made}/environment"
            _conda("env", "create", "--quiet", "--file", str(file), "--prefix", prefix)
            records = conda_records(prefix)
            texts[pin], added = conda_explicit(records), not_from_conda(prefix, records)
        if not any_channel:
            _require_reachable(file, texts[pin])
        if added:
            texts[script] = _SCRIPT.format(pin=pin.name, requirements=shlex.join(added))
    for path, text in texts.items():
        write_text(path, text)
    return [str(path) for path in texts]


def _require_reachable(file: Path, pin: str) -> None:
    for url in re.findall(r"^\w+://\S+$", pin, re.M):
        parts = urlsplit(url)
        if parts.scheme != "https" or "." not in (parts.hostname or ""):
            raise UserError(
                f"{file}: {url.partition('#')[0]} is a package that other machines cannot have from there; wanted one of an https:// "
                "channel: mend channel_alias and channels of conda's configuration, or add --any-channel for pins of this machine's own"
            )


def _conda(*arguments: str) -> str:
    try:
        done = subprocess.run(["conda", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("conda: not on the PATH; install it (Miniforge, for one), or activate it") from None
    if done.returncode:
        raise UserError(f"conda {shlex.join(arguments)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
