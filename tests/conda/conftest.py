"""A real conda and a channel of its own, where the tools that make them are at hand.

``CONDA_TOOLS`` names their folder; else ``../shared/conda`` beside the project is looked at. ``install_conda.sh PREFIX``
installs conda, ``make_channel.py CHANNEL WHEEL...`` packs this Python and wheels into a channel. ``CONDA_HOME`` names a conda
that is installed already.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("CONDA_TOOLS", REPO.parent / "shared/conda"))
PACKAGES = ("six", "pip", "tabulate")
"""Small packages without dependencies: those of the channel, and the last one by pip."""


def run(*command: str | Path, ok: bool = True, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert not ok or done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


class Conda:
    """An installed conda with environments, packages and settings in a folder of the tests."""

    def __init__(self, home: Path, folder: Path, channel: Path):
        self.home, self.folder, self.channel = home, folder, channel
        (folder / "condarc").write_text(f"channels: [{channel.name}]\ndefault_channels: []\n")

    @property
    def settings(self) -> dict[str, str]:
        return {
            "PATH": f"{self.home / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.folder),
            "CONDARC": str(self.folder / "condarc"),
            "CONDA_ENVS_DIRS": str(self.folder / "envs"),
            "CONDA_PKGS_DIRS": str(self.folder / "pkgs"),
            "CONDA_CHANNEL_ALIAS": f"file://{self.channel.parent}",
            **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
        }

    def __call__(self, *arguments: str | Path) -> str:
        return run(self.home / "bin/conda", *arguments, env=self.settings, cwd=self.folder).stdout

    def prefix(self, name: str) -> Path:
        return self.folder / "envs" / name


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *PACKAGES)
    return folder


@pytest.fixture(scope="session")
def conda(tmp_path_factory, wheels) -> Conda:
    if not (TOOLS / "make_channel.py").is_file():
        pytest.skip(f"no tools to make a conda channel in {TOOLS}; CONDA_TOOLS says where they are")
    folder = tmp_path_factory.mktemp("conda")
    home = Path(os.environ.get("CONDA_HOME", folder / "home"))
    if not home.is_dir():
        run("bash", TOOLS / "install_conda.sh", home, env={**os.environ, "PYTHON": sys.executable})
    channel = folder / "channel"
    run(sys.executable, TOOLS / "make_channel.py", channel, *sorted(wheels.glob("*.whl")))
    return Conda(home, folder, channel)
