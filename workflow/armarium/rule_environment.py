"""Which conda environment a process runs in, and which file of envs/ that was made from."""

from __future__ import annotations

import sys
from pathlib import Path

from .home import ENVS


def conda_prefix() -> str | None:
    """The conda environment that this interpreter belongs to, activated or not (``is_conda_environment`` of conda)."""
    return sys.prefix if Path(sys.prefix, "conda-meta", "history").is_file() else None


def rule_environment() -> str | None:
    """The name of the file of envs/ that Snakemake made this process's environment from; None in any other environment.

    Known by the copy of it that Snakemake keeps beside the environment, or a container in it.
    """
    prefix = conda_prefix()
    copies = (Path(f"{prefix}.yaml"), Path(f"{prefix}.pin.txt"), Path(f"{prefix}/environment.yaml"))
    texts = [path.read_bytes() for path in copies if prefix and path.is_file()]
    for file in sorted(ENVS.glob("*.yaml")) if texts else ():
        if any(source.read_bytes() in texts for source in (file, *ENVS.glob(f"{file.stem}.*.pin.txt"))):
            return file.stem
    return None
