"""What goes wrong in a training is one message, and costs no more than the epoch it happened in."""

from __future__ import annotations

import pytest
from armarium.errors import UserError
from tiny import component, recipe, settings, squares, training_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with five training cases and two validation cases."""
    root = tmp_path_factory.mktemp("data")
    return root, squares(root, 5), squares(root, 2, prefix="v")


def test_a_loss_that_is_no_number_ends_training_and_keeps_the_last_epoch(data, tmp_path):
    given = settings(
        epochs=3,
        lr_epoch_level=True,
        lr_scheduler=component("StepLR", step_size=1, gamma=1e30),
        optimizer=component("SGD", lr=1e-3),
    )
    training = training_of(data, tmp_path, given)
    with pytest.raises(UserError, match="split 0: the training loss became nan in epoch [23]; lower learning_rate"):
        training.run()
    assert training.workspace.load_state()["progress"]["epoch"] >= 1


def with_transform(described: dict, place: int = 4) -> dict:
    conf = recipe()
    conf["train"]["pre_transforms"].insert(place, described)
    return conf


@pytest.mark.parametrize("workers", [0, 2])
def test_an_augmentation_that_fails_is_told_in_one_line(workers, data, tmp_path):
    given = settings(with_transform(component("RandFlipd", keys=["image", "mask"], prob=1.0)), num_workers=workers)
    with pytest.raises(UserError, match=r"^case c\d: transform RandFlipd failed: KeyError") as caught:
        training_of(data, tmp_path, given).run()
    assert "Traceback" not in str(caught.value)


def test_images_of_two_shapes_in_a_batch_are_told(data, tmp_path):
    wide = squares(data[0], 1, (16, 24), prefix="wide")
    with pytest.raises(UserError, match=r"shapes \[1, 16, 16\], \[1, 16, 24\]; pad or crop"):
        training_of(data, tmp_path, settings(batch_size=6), train=[*data[1], *wide]).run()


def test_fewer_cases_than_a_batch_are_told(data, tmp_path):
    with pytest.raises(UserError, match="5 training cases make no batch of 6; lower batch_size"):
        training_of(data, tmp_path, settings(batch_size=6, drop_last=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["train"]["model"]["args"].update(in_channels=2),
            r"network or loss on images \[2, 1, 16, 16\] failed",
        ),
        (
            lambda c: c["train"].update(lr_scheduler=component("OneCycleLR", max_lr=1.0, total_steps=2)),
            "lr_scheduler OneCycleLR failed",
        ),
    ],
)
def test_a_component_that_fails_at_work_is_told(change, message, data, tmp_path):
    conf = recipe()
    change(conf)
    with pytest.raises(UserError, match=message):
        training_of(data, tmp_path, settings(conf)).run()
