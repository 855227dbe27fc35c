"""A whole archive as one zip: what its manifest lists, to the byte, and nothing of a stranger's that leaves its folder."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from armarium import layout
from armarium.archive_zip import unzip_archive, zip_archive
from armarium.errors import UserError

FILES = {"config/archive.json": b"{}\n", "models/model.pt": bytes(range(256)) * 5000, "docs/a b.md": b"text"}


def manifest_of(files: dict[str, bytes]) -> str:
    listed = [
        {
            "@id": name.replace(" ", "%20"),
            "@type": "File",
            "sha256": hashlib.sha256(data).hexdigest(),
            "contentSize": str(len(data)),
        }
        for name, data in files.items()
    ]
    return json.dumps({"@graph": [{"@id": "./"}, *listed]})


@pytest.fixture
def archive(tmp_path) -> Path:
    folder = tmp_path / "archives/one"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    Path(layout.manifest(str(folder))).write_text(manifest_of(FILES))
    (folder / ".hidden").mkdir()
    (folder / "training/split-0/tmp").mkdir(parents=True)
    (folder / "training/split-0/tmp/state.pt").write_bytes(b"state")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_archive_comes_out_of_its_zip_as_its_manifest_lists_it(archive, tmp_path):
    zip_archive(str(archive), str(tmp_path / "a.zip"))
    zip_archive(str(archive), str(tmp_path / "b.zip"))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    (tmp_path / "elsewhere/two").mkdir(parents=True)  # as Snakemake makes the folder of a job's output
    unzip_archive(str(tmp_path / "a.zip"), str(tmp_path / "elsewhere/two"))
    manifest = Path(layout.manifest(str(archive)))
    assert contents(tmp_path / "elsewhere/two") == FILES | {manifest.name: manifest.read_bytes()}
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["two"]


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"other"), lambda p: p.unlink()])
def test_an_archive_that_is_not_as_its_manifest_says_is_not_zipped(archive, tmp_path, damage):
    damage(archive / "models/model.pt")
    with pytest.raises(UserError, match=r"not as its manifest says(.|\n)*models/model.pt: missing or changed"):
        zip_archive(str(archive), str(tmp_path / "a.zip"))
    assert not (tmp_path / "a.zip").exists()


def test_an_archive_without_a_manifest_is_not_zipped(archive, tmp_path):
    Path(layout.manifest(str(archive))).unlink()
    with pytest.raises(UserError, match="ro-crate-metadata.json: file not found"):
        zip_archive(str(archive), str(tmp_path / "a.zip"))


def test_what_lies_there_is_never_overwritten(archive, tmp_path):
    zip_archive(str(archive), str(tmp_path / "a.zip"))
    before = contents(archive)
    with pytest.raises(UserError, match="there already"):
        unzip_archive(str(tmp_path / "a.zip"), str(archive))
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="there already"):
        unzip_archive(str(tmp_path / "a.zip"), str(tmp_path / "link"))
    assert contents(archive) == before


@pytest.mark.parametrize(
    "member", ["one/../../evil", "../evil", "/evil", "evil", "one//evil", "one/./evil", "one/", "one/a\x1bb", "one/x/"]
)
def test_a_strangers_member_that_is_no_file_of_the_folder_is_refused(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr("one/ro-crate-metadata.json", manifest_of({}))
        out.writestr(member, b"evil")
    with pytest.raises(UserError, match="is no file of an archive's folder"):
        unzip_archive(str(tmp_path / "a.zip"), str(tmp_path / "new/one"))
    assert list((tmp_path / "new").iterdir()) == [] and not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"one/config/archive.json": b"{}"}, "no ro-crate-metadata.json in it"),
        ({"one/ro-crate-metadata.json": manifest_of(FILES).encode()}, "missing or not as its manifest says"),
    ],
)
def test_a_zip_of_half_an_archive_is_refused(tmp_path, members, message):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        for name, data in members.items():
            out.writestr(name, data)
    with pytest.raises(UserError, match=message):
        unzip_archive(str(tmp_path / "a.zip"), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
