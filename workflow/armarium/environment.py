"""The software and the machine of this process, as files below an archive's ``env/``.

``environment.txt`` and the two ``.yml`` files are what ClinicaDL 2.0 writes (``clinicadl/utils/env.py``), but
made from the installed metadata instead of by pip and conda, which rules' environments need not hold. Without
clocks and without paths of this machine: the same environment gives the same bytes.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import layout
from .errors import UserError
from .files import json_text
from .gpus import nvidia_smi
from .rule_environment import conda_prefix
from .software import normal_name
from .zips import member_bytes, opened

MEMBERS = "env/"
"""Folder of the frozen environment inside run.zip."""

_BUILD_TOOLS = {"pip", "setuptools", "wheel", "distribute"}
_OWN = "armarium"
_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"}
_AVX2 = {"avx2", "fma"}


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
                if not re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", name):
                    raise UserError(
                        f"{run_zip}: member {MEMBERS}{name}: expected a plain file name after {MEMBERS} or a folder of it"
                    )
            return {name: member_bytes(members, f"{MEMBERS}{name}", run_zip) for name in names} or None
    except FileNotFoundError:
        return None


def snapshot(of: str = "") -> dict[str, bytes]:
    """This process's environment: contents by file name below ``env/``, in a folder of its own if it is that ``of`` rules."""
    folder = f"{of}/" if of else ""
    environment_txt, host_json = layout.ENVIRONMENT
    texts = {
        environment_txt: _header(f"pip install -r env/{folder}{environment_txt}") + freeze(),
        host_json: json_text(host()),
    }
    prefix = conda_prefix()
    if prefix is not None:
        records, (exact, portable, explicit) = conda_records(prefix), layout.CONDA_ENVIRONMENT
        for name in (exact, portable):
            body = conda_export(prefix, records, portable=name == portable)
            texts[name] = _header(f"conda env create -f env/{folder}{name}") + body
        texts[explicit] = _header(f"conda create --name NAME --file env/{folder}{explicit}") + conda_explicit(records)
    return {f"{folder}{name}": text.encode() for name, text in texts.items()}


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
        if name and normal_name(name) not in _BUILD_TOOLS | {_OWN}:
            lines.setdefault(normal_name(name), (name.lower(), _requirement(name, distribution)))
    return "".join(f"{line}\n" for _, line in sorted(lines.values()))


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


def conda_records(prefix: str) -> list[dict[str, Any]]:
    """What conda has recorded of each package of an environment, sorted by name."""
    records = [json.loads(path.read_text()) for path in Path(prefix, "conda-meta").glob("*.json")]
    return sorted(records, key=lambda record: record["name"])


def conda_export(prefix: str, records: list[dict[str, Any]], portable: bool) -> str:
    """What ``conda env export`` prints; if ``portable``, with ``--no-builds --ignore-channels``.

    As ``from_environment`` of conda 24.7 makes it, but without the absolute ``prefix:``, without variables that are set
    in the environment, which may be secrets, and without armarium, which no channel has; an environment that has a path
    for its name, as Snakemake's do, is named by the last part of it.
    """
    channels = _configured_channels(prefix)
    for record in () if portable else records:
        name = _channel_name(record["channel"])
        if name not in channels:
            channels.insert(0, name)
    keys = ("name", "version") if portable else ("name", "version", "build")
    pip = not_from_conda(prefix, records)
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
        )
    )


def conda_explicit(records: list[dict[str, Any]]) -> str:
    """Every package's URL and MD5, as ``conda list --explicit --md5`` prints them, but sorted by name.

    ``conda create --file`` needs no solver for it.
    """
    urls = (_without_secrets(record["url"]) + f"#{record['md5']}" * ("md5" in record) for record in records)
    return "".join(f"{line}\n" for line in ("@EXPLICIT", *urls))


def _without_secrets(url: str) -> str:
    """A channel's URL without token or password."""
    return without_passwords(re.sub(r"//[^/@]+@", "//", url))


def without_passwords(text: str) -> str:
    """A text without the passwords and conda tokens of the URLs in it."""
    return re.sub(r"(//[^/\s]+)/t/[^/\s]+(?=/)", r"\1", re.sub(r"//[^/@:\s]+:[^/@\s]+@", "//", text))


def _channel_name(url: str) -> str:
    """A channel as conda names it: without its alias and platform, or ``defaults``."""
    url = re.sub(r"/(noarch|(linux|osx|win)-[^/]+)/?$", "", _without_secrets(url)).rstrip("/")
    if re.match(r"https://repo\.anaconda\.com/pkgs/", url):
        return "defaults"
    alias = os.environ.get("CONDA_CHANNEL_ALIAS", "https://conda.anaconda.org").rstrip("/")
    return url.removeprefix(f"{alias}/")


def _environment_name(prefix: str) -> str:
    return "base" if os.path.normpath(prefix) == _conda_root(prefix) else os.path.basename(os.path.normpath(prefix))


def _conda_root(prefix: str) -> str | None:
    """The folder that conda itself lives in, known where an environment is active or lies in its usual place."""
    executable = os.environ.get("CONDA_EXE")
    if executable:
        return os.path.dirname(os.path.dirname(os.path.normpath(executable)))
    places = (Path(prefix), Path(prefix).parent.parent)
    return next((str(place) for place in places if (place / "condabin").is_dir()), None)


def _configured_channels(prefix: str) -> list[str]:
    """The ``channels`` of every .condarc, the strongest first; ``defaults`` where none says."""
    files = [os.environ.get("CONDARC"), f"{prefix}/.condarc", "~/.condarc", "~/.conda/.condarc"]
    files += [f"{_conda_root(prefix)}/.condarc", "/etc/conda/.condarc"]
    names: list[str] = []
    for file in filter(None, files):
        path = Path(file).expanduser()
        text = path.read_text() if path.is_file() else ""
        if entry := re.search(r"^channels:[ \t]*(\[.*?\]|(?:\n[ \t]*-.*)+)", text, re.MULTILINE):
            names += re.findall(r"(?:^[ \t]*-|[\[,])[ \t]*['\"]?([^\s'\",\]#]+)", entry[1], re.MULTILINE)
    return list(dict.fromkeys(map(_without_secrets, names))) or ["defaults"]


def not_from_conda(prefix: str, records: list[dict[str, Any]]) -> list[str]:
    """``name==version`` of what pip put into the environment's site-packages."""
    owned = {file for record in records for file in record.get("files", ()) if file.endswith("/METADATA")}
    found = {}
    for metadata in Path(prefix).glob("lib/python3*/site-packages/*.dist-info/METADATA"):
        distribution = importlib.metadata.Distribution.at(metadata.parent)
        name = normal_name(distribution.metadata["Name"])
        if metadata.relative_to(prefix).as_posix() not in owned and name != _OWN:
            found[name] = f"{name}=={distribution.version}"
    return [found[name] for name in sorted(found)]


# ---- the machine


def host() -> dict[str, Any]:
    """Kind of machine and interpreter, without the names of either machine or user; None where unknown."""
    gpus = _gpus()
    cuda, cudnn = _cuda_of_torch()
    return {
        "os": _os_name(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "cpu": {
            "model": _cpuinfo("model name"),
            "capability": cpu_capability(),
            "cores": os.cpu_count(),
        },
        "gpus": [name for name, _ in gpus],
        "gpu_driver": gpus[0][1] if gpus else None,
        "cuda": {
            "driver": _first(r"CUDA Version:\s*([\d.]+)", nvidia_smi()) if gpus else None,
            "torch": cuda,
            "cudnn": cudnn,
        },
        "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _cuda_of_torch() -> tuple[str | None, str | None]:
    """Versions of CUDA and cuDNN that torch brings; torch is imported only where it brings any."""
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).parent / "version.py" if spec and spec.origin else None
    if version is None or not _first(r"^cuda\b[^=]*=\s*'([\d.]+)'", version.read_text()):
        return None, None
    import torch

    cudnn = torch.backends.cudnn.version()
    return torch.version.cuda, None if cudnn is None else str(cudnn)


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
    rows = csv.reader(nvidia_smi("--query-gpu=name,driver_version", "--format=csv,noheader").splitlines())
    return [(row[0].strip(), row[1].strip()) for row in rows if len(row) == 2]
