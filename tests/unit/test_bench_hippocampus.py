"""Mean Dice against training time is read out of an archive's own tables."""

from __future__ import annotations

import pandas
import pytest

from benchmarks.hippocampus import mean_curve, trained


def timing(*seconds: float) -> pandas.DataFrame:
    return pandas.DataFrame(
        {"epoch": range(1, len(seconds) + 1), "train_seconds": seconds, "validation_seconds": [0.5] * len(seconds)}
    )


def scores(by_epoch: dict[int, float]) -> pandas.DataFrame:
    return pandas.DataFrame({"epoch": list(by_epoch), "loss": 1.0, "MeanDice": list(by_epoch.values())})


def test_dice_stands_against_the_training_seconds_until_then():
    run = trained(timing(1, 2, 4, 8), scores({2: 0.9, 4: 0.8}))
    assert run.curve.to_dict("list") == {"epoch": [2, 4], "seconds": [3, 15], "dice": [0.9, 0.8]}
    assert (run.epochs, run.train_seconds, run.validation_seconds) == (4, 15, 2)


def test_the_last_epoch_counts_and_not_the_best():
    assert trained(timing(1, 1), scores({1: 0.9, 2: 0.7})).last_dice == 0.7


def test_a_last_epoch_without_validation_is_refused():
    with pytest.raises(SystemExit, match="epoch 3, the last one, has no validation"):
        trained(timing(1, 1, 1), scores({2: 0.9}))


def test_the_curve_is_the_mean_of_the_runs():
    runs = [trained(timing(1, 1), scores({1: 0.5, 2: 0.8})), trained(timing(3, 3), scores({1: 0.7, 2: 0.9}))]
    assert mean_curve(runs).round(6).to_dict("list") == {"epoch": [1, 2], "seconds": [2, 4], "dice": [0.6, 0.85]}
