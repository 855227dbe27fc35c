"""Pack this Python and wheels into a local channel with ``make_channel.py``, under the names that conda-forge has for them.

``PYTHON pack.py MAKE_CHANNEL CHANNEL WHEEL...``, with the Python that conda lives in. The packages are of conda's newer
format, zstandard in a zip: bz2 would take minutes for torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import zstandard

NAMES = {"torch": "pytorch"}
"""Of conda-forge, where it has another name than PyPI."""
MOST_COMPILED = 60
"""Files of a package for any platform; conda compiles all of them, which takes half a minute for what torch brings."""


class CondaFile:
    """In place of the tar file that ``make_channel.pack`` writes: NAME.conda beside the NAME.tar.bz2 that it asks for."""

    def __init__(self, path: Path, *_, **__):
        self.stem = path.name.removesuffix(".tar.bz2")
        self.zip = zipfile.ZipFile(path.with_name(f"{self.stem}.conda"), "w")
        self.zip.writestr("metadata.json", json.dumps({"conda_pkg_format_version": 2}))
        self.members: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {"pkg": [], "info": []}

    def __enter__(self) -> CondaFile:
        return self

    def addfile(self, member: tarfile.TarInfo, data: io.BytesIO | None = None) -> None:
        part = "info" if member.name.startswith("info/") else "pkg"
        self.members[part].append((member, data.getvalue() if data else b""))

    def __exit__(self, *error) -> None:
        for part, members in self.members.items():
            compress = zstandard.ZstdCompressor(level=1, threads=2).stream_writer
            with (
                self.zip.open(f"{part}-{self.stem}.tar.zst", "w", force_zip64=True) as file,
                compress(file, closefd=False) as stream,
                tarfile.open(fileobj=stream, mode="w|") as tar,
            ):
                for member, data in members:
                    tar.addfile(member, io.BytesIO(data))
        self.zip.close()


def load(path: str):
    """The module make_channel, but for the format and the names of its packages."""
    spec = importlib.util.spec_from_file_location("make_channel", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.pack

    def pack(channel, name, version, subdir, depends, files, **options):
        parts = [depend.partition(" ") for depend in depends]
        renamed = ["".join((NAMES.get(known, known), *rest)) for known, *rest in parts]
        if options.get("noarch") and len(files) > MOST_COMPILED:
            files = [(f"lib/python{module.PY}/{path}", data) for path, data in files]
            subdir, options = "linux-64", {}
        out, index = made(channel, NAMES.get(name, name), version, subdir, renamed, files, **options)
        return out.with_name(out.name.replace(".tar.bz2", ".conda")), index

    class Tar:
        TarInfo, SYMTYPE, open = tarfile.TarInfo, tarfile.SYMTYPE, CondaFile

    module.pack, module.tarfile = pack, Tar
    return module


def main(make_channel: str, channel: str, *wheels: str) -> None:
    module, folder = load(make_channel), Path(channel)
    packages = {"linux-64": {}, "noarch": {}}
    made = [module.pack_python(folder), *(module.pack_wheel(folder, Path(wheel)) for wheel in wheels)]
    for path, index in made:
        raw = path.read_bytes()
        facts = {"size": len(raw), "md5": hashlib.md5(raw).hexdigest(), "sha256": hashlib.sha256(raw).hexdigest()}
        packages[index["subdir"]][path.name] = index | facts
    for subdir, found in packages.items():
        text = {
            "info": {"subdir": subdir},
            "packages": {},
            "packages.conda": found,
            "removed": [],
            "repodata_version": 1,
        }
        (folder / subdir).mkdir(parents=True, exist_ok=True)
        (folder / subdir / "repodata.json").write_text(json.dumps(text))


if __name__ == "__main__":
    main(*sys.argv[1:])
