"""A small BIDS dataset with derivatives, and a CAPS of it, laid out as ClinicaDL's users have them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path

from armarium.synthesize import synthesize_dataset

PAIRS = [*((f"sub-{i:02d}", "ses-M000") for i in range(1, 9)), *((f"sub-{i:02d}", "ses-M012") for i in range(1, 4))]
"""Participants and sessions: eight at the start, three of them a year later."""
EMPTY = repeat((b"", b""))
LINEAR = "space-MNI152NLin2009cSym_desc-Crop_res-1x1x1"

Volumes = Iterable[tuple[bytes, bytes]]
"""An image file and its label file for every session."""


def volumes(count: int, seed: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Synthetic 2D images with a label map of two classes."""
    spec = {"cases": count, "test_cases": 0, "shape": [20, 24], "spacing": [1.0, 0.8], "channels": 1, "classes": 2}
    with tempfile.TemporaryDirectory() as folder:
        synthesize_dataset(folder, {**spec, "seed": seed})
        for entry in json.loads(Path(folder, "dataset.json").read_text())["training"]:
            yield Path(folder, entry["image"]).read_bytes(), Path(folder, entry["label"]).read_bytes()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_table(path: Path, rows: Iterable[Iterable[str]]) -> None:
    write(path, "".join("\t".join(row) + "\n" for row in rows))


def describe(folder: Path, **more) -> None:
    """``dataset_description.json``."""
    write(folder / "dataset_description.json", json.dumps({"Name": "Small", "BIDSVersion": "1.7.0", **more}))


def write_bids(folder: Path, pairs: list[tuple[str, str]] = PAIRS, content: Volumes = EMPTY) -> Path:
    """A dataset with an acquisition that is not wanted, two label maps in derivatives, and tables of both kinds."""
    describe(folder, DatasetType="raw", License="CC0")
    manual = folder / "derivatives/manual"
    describe(manual, DatasetType="derivative", GeneratedBy=[{"Name": "hand"}])
    for (participant, session), (image, label) in zip(pairs, content, strict=False):
        stem, below = f"{participant}_{session}", f"{participant}/{session}/anat"
        write(folder / below / f"{stem}_acq-mprage_run-01_T1w.nii.gz", image)
        write(folder / below / f"{stem}_acq-mprage_run-01_T1w.json", "{}")
        write(folder / below / f"{stem}_acq-fast_T1w.nii.gz", image)
        write(manual / below / f"{stem}_desc-manual_dseg.nii.gz", label)
        write(manual / below / f"{stem}_desc-draft_dseg.nii.gz", label)
    people = sorted({participant for participant, _ in pairs})
    rows = [(p, ("CN", "AD")[i % 2], "FM"[i // 2 % 2], str(60 + i)) for i, p in enumerate(people)]
    write_table(folder / "participants.tsv", [("participant_id", "diagnosis", "sex", "age"), *rows])
    for participant in people:
        sessions = [s for p, s in pairs if p == participant]
        rows = [("session_id", "mmse"), *((s, str(30 - i)) for i, s in enumerate(sessions))]
        write_table(folder / participant / f"{participant}_sessions.tsv", rows)
    return folder


def write_caps(folder: Path, pairs: list[tuple[str, str]] = PAIRS, content: Volumes = EMPTY) -> Path:
    """Clinica's derivative with T1 images, cropped and not, and PET images of two tracers."""
    describe(folder, DatasetType="derivative", CAPSVersion="1.0.0", GeneratedBy=[{"Name": "Clinica"}])
    for (participant, session), (image, _) in zip(pairs, content, strict=False):
        place, stem = folder / "subjects" / participant / session, f"{participant}_{session}"
        write(place / f"t1_linear/{stem}_{LINEAR}_T1w.nii.gz", image)
        write(place / f"t1_linear/{stem}_{LINEAR.replace('_desc-Crop', '')}_T1w.nii.gz", image)
        write(place / f"t1_linear/{stem}_space-MNI152NLin2009cSym_res-1x1x1_affine.mat", "")
        for tracer in ("18FFDG", "18FAV45"):
            write(place / f"pet_linear/{stem}_trc-{tracer}_{LINEAR}_suvr-pons2_pet.nii.gz", image)
    rows = [(p, s, ("CN", "AD")[int(p[-1]) % 2]) for p, s in pairs]
    write_table(folder.parent / "labels.tsv", [("participant_id", "session_id", "diagnosis"), *rows])
    return folder
