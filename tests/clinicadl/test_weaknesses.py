"""What ClinicaDL 2.0.0 does in situations that Armarium is tested for: the table in docs/clinicadl.md is held to it."""

from __future__ import annotations

import numpy
import pytest

from .conftest import write_bids_of


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    draw = numpy.random.RandomState(0)
    items = [
        (
            {"participant_id": f"sub-{i:02d}", "session_id": "ses-M00", "label": i % 2},
            {"image": draw.normal(i % 2, 1, (1, 8, 8, 8))},
        )
        for i in range(12)
    ]
    return write_bids_of(tmp_path_factory.mktemp("bids") / "bids", items, "classification")


def test_an_archive_in_which_a_split_is_starting_cannot_be_read(client, bids, tmp_path):
    said = client.ask("while_a_second_split_starts", folder=tmp_path / "maps", bids=bids)
    assert "FileNotFoundError" in said["read"] and "split-1/data.tsv" in said["read"]
    assert said["afterwards"] == "ok"


def test_after_a_crash_before_the_first_checkpoint_a_split_is_neither_trained_nor_resumed(client, bids, tmp_path):
    said = client.ask("after_a_crash_before_the_first_checkpoint", folder=tmp_path / "maps", bids=bids)
    assert "already been performed" in said["train"] and "IndexError" in said["resume"]


def test_a_crash_takes_the_table_of_losses_with_it(client, bids, tmp_path):
    said = client.ask("logs_after_a_crash", folder=tmp_path / "maps", bids=bids)
    assert said == {"trained": 3, "logged": []}


def test_a_resumed_training_differs_where_augmentation_is_random(client, bids, tmp_path):
    with_noise = client.ask("resumes_exactly", folder=tmp_path / "noise", bids=bids, noise=True)
    without = client.ask("resumes_exactly", folder=tmp_path / "plain", bids=bids, noise=False)
    assert with_noise["repeated"] == 0 and with_noise["resumed"] > 0
    assert without == {"repeated": 0, "resumed": 0}


def test_a_moved_dataset_is_not_found_again(client, bids, tmp_path):
    said = client.ask("after_a_move_of_the_dataset", folder=tmp_path, bids=bids)
    assert str(bids) in said["path"] and "CannotReadJsonError" in said["validate"]


def test_a_case_tested_for_one_split_may_not_train_another(client, bids, tmp_path):
    said = client.ask("tests_of_each_split", folder=tmp_path / "maps", bids=bids)
    assert "DataLeakageError" in said["test"]


def test_a_metric_whose_name_it_cannot_find_again_is_told_when_training_is_over(client, bids, tmp_path):
    said = client.ask("metric_names", folder=tmp_path, bids=bids, names=["loss", "a-b", "x/y"])
    assert said["loss"] == "ok"
    assert said["a-b"].startswith("not tested: FileNotFoundError") and said["x/y"].startswith("not tested: KeyError")


def test_cross_entropy_is_not_validated_in_batches(client, bids, tmp_path):
    said = client.ask("validation_in_batches", folder=tmp_path / "maps", bids=bids)
    assert "All arrays must be of the same length" in said["train"]


def test_a_metrics_softmax_is_applied_to_what_the_next_metric_is_given(client):
    softmax = {"name_": "Activations", "include": ["output"], "exclude": None, "copy": False}
    softmax |= {"sigmoid": False, "softmax": True, "other": None, "dim": 0}
    first, second = client.ask("softmax_before_two_metrics", softmax=softmax)
    assert first != second, "both ask for one softmax of the same output"
