"""The software and the machine that a model was made with, as files below ``env/``.

``environment.txt`` and the two ``.yml`` files are what ClinicaDL 2.0 writes (``clinicadl/utils/env.py``), but
made from the installed metadata instead of by pip and conda, which rules' environments need not hold. Without
clocks: the same environment gives the same bytes.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import layout
from .errors import UserError
from .files import json_text, write_bytes
from .zips import member_bytes, opened

MEMBERS = "env/"
"""Folder of the frozen environment inside run.zip."""

EXPLICIT = "explicit.txt"
_BUILD_TOOLS = {"pip", "setuptools", "wheel", "distribute"}
_OWN = "armarium"
_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"}
_AVX2 = {"avx2", "fma"}


def write_environment(archive: str, frozen: dict[str, bytes] | None = None) -> None:
    """Write the files of ``env/``: those frozen with the training if given, else this process's own."""
    folder = os.path.dirname(layout.environment_txt(archive))
    for name, data in (snapshot() if frozen is None else frozen).items():
        write_bytes(os.path.join(folder, name), data)


def environment_files(archive: str) -> list[str]:
    """The files that ``write_environment`` makes when it runs in this process's environment."""
    conda = conda_prefix() is not None
    folder = os.path.dirname(layout.environment_txt(archive))
    return layout.environment_files(archive, conda) + ([os.path.join(folder, EXPLICIT)] if conda else [])


def frozen_environment(run_zip: str | os.PathLike) -> dict[str, bytes] | None:
    """The environment kept in a run.zip, by file name; None if there is no such file or none is kept.

    Raises
    ------
    UserError
        If it is no whole zip, or a member would leave ``env/``.
    """
    try:
        with opened(run_zip) as members:
            names = [n.removeprefix(MEMBERS) for n in members.namelist() if n.startswith(MEMBERS) and n != MEMBERS]
            for name in names:
                if not re.fullmatch(r"[\w-][\w.-]*", name):
                    raise UserError(f"{run_zip}: member {MEMBERS}{name}: expected a plain file name after {MEMBERS}")
            return {name: member_bytes(members, f"{MEMBERS}{name}", run_zip) for name in names} or None
    except FileNotFoundError:
        return None


def snapshot() -> dict[str, bytes]:
    """This process's environment: contents by file name below ``env/``."""
    prefix = conda_prefix()
    texts = {
        "environment.txt": _header("pip install -r env/environment.txt") + freeze(),
        "host.json": json_text(host()),
    }
    if prefix is not None:
        records, recreate = _conda_records(prefix), "conda env create -f env/{}"
        for name, portable in (("environment.yml", False), ("environment_portable.yml", True)):
            texts[name] = _header(recreate.format(name)) + conda_export(prefix, records, portable)
        texts[EXPLICIT] = conda_explicit(records)
    return {name: text.encode() for name, text in texts.items()}


def _header(recreate: str) -> str:
    facts = {
        "python_version": platform.python_version(),
        "python_implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "recreate with": recreate,
    }
    return "# Environment snapshot\n" + "".join(f"# {key}: {value}\n" for key, value in facts.items()) + "\n"


# ---- pip


def freeze() -> str:
    """What ``pip freeze`` prints, but packages from local files as ``name==version`` and without armarium."""
    lines = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and _normal(name) not in _BUILD_TOOLS | {_OWN}:
            lines.setdefault(_normal(name), (name.lower(), _requirement(name, distribution)))
    return "".join(f"{line}\n" for _, line in sorted(lines.values()))


def _normal(name: str) -> str:
    """A project's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirement(name: str, distribution: importlib.metadata.Distribution) -> str:
    """``name @ url`` for an install from the network that PEP 610 records, else ``name==version``."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    url, vcs = origin.get("url", ""), origin.get("vcs_info")
    if not url or urlsplit(url).scheme == "file":
        return f"{name}=={distribution.version}"
    parts = [origin.get("archive_info", {}).get("hash")]
    parts += [f"subdirectory={origin['subdirectory']}"] if "subdirectory" in origin else []
    fragment = "&".join(part for part in parts if part)
    source = f"{vcs['vcs']}+{url}@{vcs['commit_id']}" if vcs else url
    return f"{name} @ {source}" + (f"#{fragment}" if fragment else "")


# ---- conda


def conda_prefix() -> str | None:
    """The conda environment that this interpreter belongs to, if it is the active one."""
    prefix = os.environ.get("CONDA_PREFIX")
    return prefix if prefix and os.path.normpath(prefix) == os.path.normpath(sys.prefix) else None


def _conda_records(prefix: str) -> list[dict[str, Any]]:
    records = [json.loads(path.read_text()) for path in Path(prefix, "conda-meta").glob("*.json")]
    return sorted(records, key=lambda record: record["name"])


def conda_export(prefix: str, records: list[dict[str, Any]], portable: bool) -> str:
    """What ``conda env export`` prints; if ``portable``, with ``--no-builds --ignore-channels``.

    As ``from_environment`` of conda 24.7 makes it, but for environment variables set in the environment.
    """
    channels = _configured_channels(prefix)
    for record in () if portable else records:
        name = _channel_name(record["channel"])
        if name not in channels:
            channels.insert(0, name)
    keys = ("name", "version") if portable else ("name", "version", "build")
    pip = _not_from_conda(prefix, records)
    return "".join(
        f"{line}\n"
        for line in (
            f"name: {_environment_name(prefix)}",
            "channels:",
            *(f"  - {name}" for name in channels),
            "dependencies:",
            *("  - " + "=".join(record[key] for key in keys) for record in records),
            *(["  - pip:"] if pip else []),
            *(f"      - {requirement}" for requirement in pip),
            f"prefix: {prefix}",
        )
    )


def conda_explicit(records: list[dict[str, Any]]) -> str:
    """A file for ``conda create --file``, which needs no solver: every package's URL and MD5."""
    urls = (_without_secrets(record["url"]) + f"#{record['md5']}" * ("md5" in record) for record in records)
    head = ("# recreate with: conda create --name NAME --file env/explicit.txt", "@EXPLICIT")
    return "".join(f"{line}\n" for line in (*head, *urls))


def _without_secrets(url: str) -> str:
    """A channel's URL without token or password."""
    return re.sub(r"/t/[^/]+(?=/)", "", re.sub(r"//[^/@]+@", "//", url))


def _channel_name(url: str) -> str:
    """A channel as conda names it: without its alias and platform, or ``defaults``."""
    url = re.sub(r"/(noarch|(linux|osx|win)-[^/]+)/?$", "", _without_secrets(url)).rstrip("/")
    if re.match(r"https://repo\.anaconda\.com/pkgs/", url):
        return "defaults"
    alias = os.environ.get("CONDA_CHANNEL_ALIAS", "https://conda.anaconda.org").rstrip("/")
    return url.removeprefix(f"{alias}/")


def _environment_name(prefix: str) -> str:
    if os.path.normpath(prefix) == _conda_root():
        return "base"
    folder, name = os.path.split(os.path.normpath(prefix))
    return name if os.path.basename(folder) == "envs" else prefix


def _conda_root() -> str | None:
    """The folder that conda itself lives in, known while one of its environments is active."""
    executable = os.environ.get("CONDA_EXE")
    return os.path.dirname(os.path.dirname(os.path.normpath(executable))) if executable else None


def _configured_channels(prefix: str) -> list[str]:
    """The ``channels`` of every .condarc, the strongest first; ``defaults`` where none says."""
    files = [os.environ.get("CONDARC"), f"{prefix}/.condarc", "~/.condarc", "~/.conda/.condarc"]
    files += [f"{_conda_root()}/.condarc", "/etc/conda/.condarc"]
    names: list[str] = []
    for file in filter(None, files):
        path = Path(file).expanduser()
        text = path.read_text() if path.is_file() else ""
        if entry := re.search(r"^channels:[ \t]*(\[.*?\]|(?:\n[ \t]*-.*)+)", text, re.MULTILINE):
            names += re.findall(r"(?:^[ \t]*-|[\[,])[ \t]*['\"]?([^\s'\",\]#]+)", entry[1], re.MULTILINE)
    return list(dict.fromkeys(names)) or ["defaults"]


def _not_from_conda(prefix: str, records: list[dict[str, Any]]) -> list[str]:
    """``name==version`` of what pip put into the environment's site-packages."""
    owned = {file for record in records for file in record.get("files", ()) if file.endswith("/METADATA")}
    found = {}
    for metadata in Path(prefix).glob("lib/python3*/site-packages/*.dist-info/METADATA"):
        distribution = importlib.metadata.Distribution.at(metadata.parent)
        name = _normal(distribution.metadata["Name"])
        if metadata.relative_to(prefix).as_posix() not in owned and name != _OWN:
            found[name] = f"{name}=={distribution.version}"
    return [found[name] for name in sorted(found)]


# ---- the machine


def host() -> dict[str, Any]:
    """Kind of machine and interpreter, without the names of either machine or user; None where unknown."""
    gpus = _gpus()
    torch = sys.modules.get("torch")
    return {
        "os": _os_name(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "glibc": platform.libc_ver()[1] or None,
        "cpu": {
            "model": _cpuinfo("model name"),
            "capability": torch.backends.cpu.get_cpu_capability() if torch else cpu_capability(),
            "cores": os.cpu_count(),
        },
        "gpus": [name for name, _ in gpus],
        "gpu_driver": gpus[0][1] if gpus else None,
        "cuda": {
            "torch": torch.version.cuda if torch else None,
            "driver": _first(r"CUDA Version:\s*([\d.]+)", _nvidia_smi()) if gpus else None,
        },
        "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.system()


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else None


def _cpuinfo(key: str) -> str | None:
    path = Path("/proc/cpuinfo")
    return _first(rf"^{key}\s*:\s*(.+)$", path.read_text()) if path.is_file() else None


def cpu_capability() -> str | None:
    """The vector instructions that torch would choose, in torch's words."""
    flags = set((_cpuinfo("flags") or "").split())
    if not flags:
        return None
    return "AVX512" if flags >= _AVX512 else "AVX2" if flags >= _AVX2 else "DEFAULT"


def _gpus() -> list[tuple[str, str]]:
    """Name and driver version of each NVIDIA GPU."""
    rows = csv.reader(_nvidia_smi("--query-gpu=name,driver_version", "--format=csv,noheader").splitlines())
    return [(row[0].strip(), row[1].strip()) for row in rows if len(row) == 2]


def _nvidia_smi(*arguments: str) -> str:
    """What nvidia-smi prints; nothing where there is none, or no GPU that answers."""
    try:
        command = ["nvidia-smi", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
