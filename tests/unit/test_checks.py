"""Everything that the data check must find."""

from __future__ import annotations

import gzip
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from armarium.checks import check_dataset, read_cases_table, write_cases_table
from armarium.dataset import Case, Dataset
from armarium.errors import Problems, UserError

SPEC = {
    "task": "segmentation",
    "affine_tolerance": 1e-3,
    "allow_empty_labels": False,
    "allow_duplicates": False,
    "allow_repeated_participants": False,
}
AFFINE = np.diag([-1.0, 2.0, 3.0, 1.0])


def save(path, array, affine=AFFINE):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def an_image(seed=0, shape=(6, 5, 4)):
    return np.random.default_rng(seed).integers(-50, 1000, shape).astype(np.int16)


def a_label(shape=(6, 5, 4)):
    label = np.zeros(shape, np.uint8)
    label[2:4, 1:3] = 1
    return label


class World:
    """A dataset of two good cases on disk, to be spoilt."""

    def __init__(self, root, shape=(6, 5, 4)):
        self.root, self.spec = root, dict(SPEC)
        self.cases = [self.add(f"c{i}", an_image(i, shape), a_label(shape)) for i in range(2)]
        self.modality = {0: "MRI"}

    def add(self, name, image, mask, **more):
        save(self.root / f"i/{name}.nii.gz", image)
        save(self.root / f"l/{name}.nii.gz", mask)
        fields = {
            "case": name,
            "participant_id": f"sub-{name}",
            "session_id": "ses-M000",
            "images": (f"i/{name}.nii.gz",),
            "label": f"l/{name}.nii.gz",
            "columns": {},
            "subset": "training",
        }
        return Case(**{**fields, **more})

    def check(self, workers=1):
        labels = {0: "background", 1: "a", 2: "b"}
        return check_dataset(
            Dataset(self.cases, labels, self.modality, {}, "x.json"), self.spec, str(self.root), workers
        )

    def problems(self):
        with pytest.raises(Problems) as error:
            self.check()
        return error.value.problems


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_rows_describe_good_cases_whatever_the_number_of_workers(world):
    rows = world.check()
    image = an_image(0)
    row = rows[0]
    assert row["shape"] == "6x5x4" and row["spacing"] == "1x2x3" and row["orientation"] == "LAS"
    assert row["dtype"] == "int16" and row["channels"] == "1" and row["label_voxels"] == "1:16"
    assert [row[k] for k in ("min", "max", "mean", "std")] == [
        f"{float(v):.6g}" for v in (image.min(), image.max(), image.mean(), image.std())
    ]
    assert len(row["image_sha256"]) == len(row["label_sha256"]) == 64
    assert world.check(workers=2) == rows


def test_table_survives_writing_and_reading(world, tmp_path):
    rows = world.check()
    write_cases_table(str(tmp_path / "t/cases.tsv"), rows)
    assert read_cases_table(str(tmp_path / "t/cases.tsv")) == {row["case"]: row for row in rows}
    with pytest.raises(UserError, match="none.tsv: file not found"):
        read_cases_table(str(tmp_path / "none.tsv"))


def test_progress_is_sparse_in_a_log(world, caplog):
    world.cases = [world.add(f"d{i:02d}", an_image(i), a_label()) for i in range(40)]
    caplog.set_level("INFO")
    world.check()
    lines = caplog.messages
    assert len(lines) == 10 and lines[-1] == "checking: 40/40 cases"


@pytest.mark.parametrize("shape", [(8, 7), (8, 7, 1)])
def test_two_dimensional_images_are_fine(tmp_path, shape):
    world = World(tmp_path, shape)
    assert world.check()[0]["shape"] == "x".join(map(str, shape))


def test_scaled_and_float_images_are_measured_as_shown(world, tmp_path):
    image = nib.Nifti1Image(an_image(), AFFINE)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "i/c0.nii.gz")
    shown = nib.load(tmp_path / "i/c0.nii.gz").get_fdata()
    row = world.check()[0]
    assert row["mean"] == f"{shown.mean():.6g}" and row["max"] == f"{shown.max():.6g}"


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.98])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_files(world, tmp_path, keep, suffix):
    path = tmp_path / f"i/t{suffix}"
    save(path, an_image(9))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    world.cases[0] = world.add("c0", an_image(0), a_label(), images=(f"i/t{suffix}",))
    (problem,) = world.problems()
    assert problem.startswith(f"i/t{suffix}: ") and "copy" in problem


def test_missing_file_and_foreign_bytes_and_damage_inside(world, tmp_path):
    (tmp_path / "i/c0.nii.gz").unlink()
    (tmp_path / "l/c0.nii.gz").write_bytes(gzip.compress(b"hello" * 200))
    damaged = bytearray((tmp_path / "i/c1.nii.gz").read_bytes())
    damaged[-6] ^= 255  # the checksum
    (tmp_path / "i/c1.nii.gz").write_bytes(damaged)
    (tmp_path / "l/c1.nii.gz").write_bytes(b"no gzip at all")
    missing, foreign, broken, plain = world.problems()
    assert missing.startswith("i/c0.nii.gz: file not found in ")
    assert foreign.startswith("l/c0.nii.gz: no NIfTI file: found b'hell'")
    assert broken.startswith("i/c1.nii.gz: truncated or damaged gzip data (CRC check failed")
    assert plain.startswith("l/c1.nii.gz: truncated or damaged gzip data (Not a gzipped file")


@pytest.mark.parametrize("side, message", [(32767, "wanted at most"), (2000, "cannot hold")])
def test_absurd_headers_cost_no_memory(world, tmp_path, side, message):
    content = bytearray(gzip.decompress((tmp_path / "i/c0.nii.gz").read_bytes()))
    content[42:48] = struct.pack("<3h", side, side, side)
    (tmp_path / "i/c0.nii.gz").write_bytes(gzip.compress(bytes(content)))
    tracemalloc.start()
    (problem,) = world.problems()
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert f"its header declares {side}x{side}x{side} int16 voxels" in problem and message in problem


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_header_is_a_problem_or_harmless(world, tmp_path, seed):
    rng = np.random.default_rng(seed)
    content = bytearray(gzip.decompress((tmp_path / "i/c0.nii.gz").read_bytes()))
    fields = rng.choice([0, 40, 42, 70, 72, 76, 80, 108, 112, 116, 252, 254, 256, 280, 344], 2)
    for at in fields:
        content[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", rng.bytes(4)])
    (tmp_path / "i/c0.nii").write_bytes(content)
    world.cases[0] = world.add("c0", an_image(0), a_label(), images=("i/c0.nii",))
    try:
        world.check()
    except Problems as error:
        assert all("c0" in problem for problem in error.problems)


def test_a_bomb_behind_the_voxels_is_not_kept(world, tmp_path):
    content = gzip.decompress((tmp_path / "i/c0.nii.gz").read_bytes())
    (tmp_path / "i/c0.nii.gz").write_bytes(gzip.compress(content + bytes(100 << 20)))
    tracemalloc.start()
    world.check()
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_nan_and_infinity(world, tmp_path):
    image = an_image().astype(np.float32)
    image[0, 0, :2] = np.nan, np.inf
    save(tmp_path / "i/c0.nii.gz", image)
    assert world.problems() == [
        "i/c0.nii.gz: found 2 NaN or infinite voxels of 120, wanted finite numbers; replace them (by 0, say) or leave the case out"
    ]


def test_shape_and_affine_of_image_and_label_must_agree(world, tmp_path):
    save(tmp_path / "l/c0.nii.gz", a_label((6, 5, 3)))
    moved = AFFINE.copy()
    moved[0, 3] = 0.25
    save(tmp_path / "l/c1.nii.gz", a_label(), moved)
    shape, affine = world.problems()
    assert shape.startswith("l/c0.nii.gz: found shape 6x5x3, wanted 6x5x4 as i/c0.nii.gz has")
    assert affine.startswith(
        "l/c1.nii.gz: found an affine that differs by 0.25 from i/c1.nii.gz's, wanted at most 0.001"
    )
    assert ", wanted at most 0.001; resample" in affine
    world.spec["affine_tolerance"] = 0.3
    assert len(world.problems()) == 1


def test_channel_files_must_share_a_grid(world, tmp_path):
    save(tmp_path / "i/second.nii.gz", an_image(5, (6, 5, 3)))
    world.cases = [world.add("c0", an_image(), a_label(), images=("i/c0.nii.gz", "i/second.nii.gz"))]
    world.modality = {0: "T1", 1: "T2"}
    assert world.problems()[0].startswith("i/second.nii.gz: found shape 6x5x3, wanted 6x5x4 as i/c0.nii.gz has")
    save(tmp_path / "i/second.nii.gz", an_image(5))
    assert world.check()[0]["channels"] == "2"


def test_channels_are_counted(world, tmp_path):
    save(tmp_path / "i/c0.nii.gz", an_image(0, (6, 5, 4, 3)))
    (problem,) = world.problems()
    assert problem.startswith("i/c0.nii.gz: found 3 channels, wanted 1 as the list's modality declares")
    save(tmp_path / "i/c0.nii.gz", an_image(0, (6, 5, 4, 1, 3)))
    assert "found shape 6x5x4x1x3, wanted 2, 3 or (channels last) 4 axes" in world.problems()[0]
    save(tmp_path / "i/c0.nii.gz", an_image(0, (6, 5, 4, 3)))
    save(tmp_path / "i/c1.nii.gz", an_image(1, (6, 5, 4, 3)))
    world.modality = {0: "a", 1: "b", 2: "c"}
    assert world.check()[0]["shape"] == "6x5x4"


def test_label_values_must_be_declared_whole_and_not_all_background(world, tmp_path):
    label = a_label()
    label[0, 0, :3] = 7, 7, 9
    save(tmp_path / "l/c0.nii.gz", label)
    save(tmp_path / "l/c1.nii.gz", a_label() * np.float32(0.5))
    world.cases.append(world.add("c2", an_image(2), a_label() * 0))
    outside, broken, *_, empty = world.problems()
    assert outside.startswith("l/c0.nii.gz: found values 7 (2 voxels), 9 (1 voxels), wanted 0 background, 1 a, 2 b")
    assert broken.startswith("l/c1.nii.gz: found 16 voxels that are no whole numbers (0.5, for example)")
    assert empty.startswith("l/c2.nii.gz: found background only, wanted some voxels of")


def test_empty_labels_can_be_allowed(world, tmp_path):
    save(tmp_path / "l/c0.nii.gz", a_label() * 0)
    assert "dataset.allow_empty_labels" in world.problems()[0]
    world.spec["allow_empty_labels"] = True
    assert world.check()[0]["label_voxels"] == ""


def test_the_same_voxels_twice(world, tmp_path):
    save(tmp_path / "i/c1.nii.gz", an_image(0))
    (problem,) = world.problems()
    assert problem.startswith("i/c0.nii.gz, i/c1.nii.gz: found the same voxels in cases c0, c1, wanted each image once")
    save(tmp_path / "l/c1.nii.gz", a_label() * 2)
    assert "the same voxels and differing labels" in world.problems()[0]
    world.spec["allow_duplicates"] = True
    assert len(world.check()) == 2


def test_the_same_voxels_compressed_otherwise_are_still_the_same(world, tmp_path):
    content = gzip.decompress((tmp_path / "i/c0.nii.gz").read_bytes())
    (tmp_path / "i/c1.nii.gz").write_bytes(gzip.compress(content, 1, mtime=12345))
    assert "found the same voxels" in world.problems()[0]


def test_the_same_participant_and_session_twice(world):
    world.cases[1] = world.add("c1", an_image(1), a_label(), participant_id="sub-c0")
    (problem,) = world.problems()
    assert problem.startswith("sub-c0 ses-M000: found 2 cases (c0, c1), wanted one")
    world.spec["allow_repeated_participants"] = True
    assert len(world.check()) == 2


def test_classes_must_be_declared(world):
    world.spec["task"] = "classification"
    world.cases = [world.add(f"c{i}", an_image(i), a_label(), label=i) for i in (1, 3)]
    (problem,) = world.problems()
    assert problem.startswith("case c3: label: found class 3, wanted one of 0 background, 1 a, 2 b")


def test_problems_of_all_cases_come_together_from_all_workers(world, tmp_path):
    world.cases = [world.add(f"d{i}", an_image(i), a_label()) for i in range(8)]
    for i in (1, 4, 6):
        (tmp_path / f"i/d{i}.nii.gz").unlink()
    with pytest.raises(Problems, match=r"x.json \(8 cases checked\): 3 problems"):
        world.check(workers=2)
