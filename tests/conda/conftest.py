"""A real conda, and a channel of its own that has what ``envs/`` asks for, where the tools that make them are at hand.

``CONDA_TOOLS`` names their folder; else ``../shared/conda`` beside the project is looked at. ``install_conda.sh PREFIX``
installs conda, ``make_channel.py`` packs this Python and wheels into a channel. ``CONDA_HOME`` names a conda that is
installed already.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .wheels import required_by, write_wheel

REPO = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("CONDA_TOOLS", REPO.parent / "shared/conda"))
SMALL = ("tqdm", "pip", "tabulate")
"""Small packages without dependencies: two of the channel, and the last one by pip."""


def run(*command: str | Path, ok: bool = True, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert not ok or done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


class Conda:
    """An installed conda with environments, packages and settings in a folder of the tests, and no other channel.

    ``wheels`` is what pip installs from, and nothing else.
    """

    def __init__(self, home: Path, folder: Path, channel: Path, wheels: Path):
        self.home, self.folder, self.channel, self.wheels = home, folder, channel, wheels
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
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
        }

    def __call__(self, *arguments: str | Path) -> str:
        return run(self.home / "bin/conda", *arguments, env=self.settings, cwd=self.folder).stdout

    def prefix(self, name: str) -> Path:
        return self.folder / "envs" / name


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> Path:
    """A folder ``conda`` with what the channel is to have, and ``pip`` with what pip installs."""
    folder = tmp_path_factory.mktemp("wheels")
    by_conda, by_pip = required_by((REPO / "envs").glob("*.yaml"))
    for name in by_conda:
        write_wheel(name, folder / "conda")
    for name in {*by_pip, *SMALL}:
        write_wheel(name, folder / "pip")
    return folder


@pytest.fixture(scope="session")
def tools() -> Path:
    if not (TOOLS / "make_channel.py").is_file():
        pytest.skip(f"no tools to make a conda channel in {TOOLS}; CONDA_TOOLS says where they are")
    return TOOLS


@pytest.fixture(scope="session")
def conda(tools, wheels, tmp_path_factory) -> Conda:
    folder = tmp_path_factory.mktemp("conda")
    home = Path(os.environ.get("CONDA_HOME", folder / "home"))
    if not home.is_dir():
        settings = {**os.environ, "PYTHON": sys.executable, "PIP_NO_COMPILE": "1"}
        run("bash", tools / "install_conda.sh", home, env=settings)
    channel = folder / "channel/conda-forge"
    pack = Path(__file__).with_name("pack.py")
    run(home / "bin/python", pack, tools / "make_channel.py", channel, *sorted((wheels / "conda").glob("*.whl")))
    shutil.rmtree(wheels / "conda")
    return Conda(home, folder, channel, wheels / "pip")


@pytest.fixture(scope="session")
def without_network() -> list[str]:
    """What to put before a command so that it reaches no network."""
    command = ["unshare", "--net"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("networking cannot be switched off for a process here: unshare --net needs root")
    return command
