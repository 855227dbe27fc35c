"""The MMAR face: reports that MONAI's readers take, a model card from facts."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from statistics import fmean, stdev

import pytest
from armarium import layout, mmar, model_card
from armarium.errors import UserError
from armarium.files import read_json, write_json
from armarium.uncertainty import interval
from armarium.zips import write_zip
from test_maps import finish_run, make_archive


@pytest.fixture
def archive(tmp_path):
    return make_archive(tmp_path)


def write_evaluation(archive: str) -> None:
    ids = "participant_id\tsession_id\t"
    rows = [(4, 1, 0.5), (4, 2, 0.7), (5, 1, "n/a"), (5, 2, 0.9)]
    lines = [f"sub-{p}\tses-M000\t{c}\torgan {c}\t{v}\n" for p, c, v in rows]
    members = {
        "aggregated.tsv": "loss\tMeanDice\tHausdorffDistance\n0.25\t0.75\tn/a\n",
        "class_details.tsv": f"{ids}class\tname\tMeanDice\n{''.join(lines)}",
    }
    write_zip(layout.eval_zip(archive), members)


def rows_of(path: str) -> list[list[str]]:
    return list(csv.reader(Path(path).open()))


# ---- eval/


def test_metrics_csv_is_rows_of_numbers(archive):
    write_evaluation(archive)
    rows = rows_of(mmar.write_eval_metrics(archive)[0])
    assert rows[:2] == [["loss", "0.25"], ["MeanDice", "0.75"]] and math.isnan(float(rows[2][1]))


def test_dice_tables_are_by_image_and_class_with_undefined_values_counted(archive):
    write_evaluation(archive)
    raw, summary = map(rows_of, mmar.write_eval_dice_tables(archive))
    assert raw[0] == ["filename", "organ 1", "organ 2", "mean"]
    assert raw[1] == ["d/images/case_4.nii.gz", "0.5", "0.7", "0.6"]
    assert raw[2] == ["d/images/case_5.nii.gz", "nan", "0.9", "0.9"]
    assert summary[0] == ["class", *mmar.SUMMARY]
    assert summary[1] == ["organ 1", "0.5", "0.5", "0.5", "0.5", "0.5", "0.0", "1", "1"]
    assert float(summary[2][4]) == pytest.approx(0.71) and summary[2][-2:] == ["2", "0"]


def test_reports_without_an_evaluation_say_what_to_do(archive):
    with pytest.raises(UserError, match="evaluate the published model first"):
        mmar.write_eval_metrics(archive)


# ---- docs


def test_the_model_card_reports_mean_and_spread_over_splits(archive):
    finish_run(archive, 1)
    text = Path(model_card.write_doc(archive, "README.md")[0]).read_text()
    assert "| MeanDice | 0.5500 ± 0.0707 | 0.8500 ± 0.0707 |" in text
    assert "| HausdorffDistance | 0.5500 ± 0.0707 | undefined |" in text
    assert "Split 1: 2 training and 2 validation cases" in text and "CC0-1.0" in text


def test_the_model_card_says_how_sure_the_published_results_are(archive):
    text = Path(model_card.write_doc(archive, "README.md")[0]).read_text()
    assert "Split 0, which is published, on the 2 cases of Test: held; interval: 95 %" in text
    assert "| MeanDice | 0.8000 | 0.7000 to 0.9000 | 0 |" in text
    assert "HausdorffDistance" not in text.partition("interval: 95 %")[2], "a metric that no case has"


ENSEMBLE = "Ensemble, `models/ensemble.ts`: the mean probabilities of splits 0, 1"


def archive_of_an_ensemble(folder: Path, **section) -> str:
    archive = make_archive(folder, section={"ensemble": True, **section})
    finish_run(archive, 1)
    report = {"members": [{"split": 0}, {"split": 1}], "mean_of": "softmax"}
    write_zip(layout.further_export_zip(archive, "ensemble"), {"report.json": json.dumps(report)})
    rows = "".join(f"sub-{i}\tses-M000\t0.2\t{dice}\tn/a\n" for i, dice in ((4, 0.75), (5, 0.95)))
    table = f"participant_id\tsession_id\tloss\tMeanDice\tHausdorffDistance\n{rows}"
    write_zip(layout.eval_zip(archive, layout.OF_ENSEMBLE), {"details.tsv": table})
    return archive


def test_the_model_card_has_the_ensembles_results_with_how_sure_they_are(tmp_path):
    archive = archive_of_an_ensemble(tmp_path)
    text = Path(model_card.write_doc(archive, "README.md")[0]).read_text()
    told = text.partition(ENSEMBLE)[2].partition("Distances")[0].splitlines()
    assert told == [
        ", on the 2 test cases that no split has seen (`eval/ensemble/`); interval: 95 %, percentile bootstrap over cases.",
        "",
        "| Metric | Mean | Interval | Undefined |",
        "|---|---|---|---|",
        "| loss | 0.2000 | 0.2000 to 0.2000 | 0 |",
        "| MeanDice | 0.8500 | 0.7500 to 0.9500 | 0 |",
        "",
    ]


def test_the_model_card_says_where_no_case_is_left_to_score_an_ensemble_on(tmp_path):
    archive = archive_of_an_ensemble(tmp_path, test={"groups": {}})
    text = Path(model_card.write_doc(archive, "README.md")[0]).read_text()
    assert f"{ENSEMBLE}. It is scored on no case: its members have seen those of every test group." in text


def test_the_model_card_of_an_archive_without_an_ensemble_has_none(archive, tmp_path):
    assert "Ensemble" not in Path(model_card.write_doc(archive, "README.md")[0]).read_text()
    given_up = archive_of_an_ensemble(tmp_path / "given up", ensemble=False)
    assert "Ensemble" not in Path(model_card.write_doc(given_up, "README.md")[0]).read_text()
    Path(layout.sidecar(given_up, "export_ensemble")).parent.mkdir(exist_ok=True)
    write_json(layout.sidecar(given_up, "export_ensemble"), {})
    assert ENSEMBLE in Path(model_card.write_doc(given_up, "README.md")[0]).read_text(), "it was asked for by name"


@pytest.mark.parametrize("report", [[], {"members": 3, "mean_of": "softmax"}, {"members": [3], "mean_of": "softmax"}])
def test_an_ensemble_that_does_not_say_what_it_is_is_refused(report, tmp_path):
    archive = archive_of_an_ensemble(tmp_path)
    write_zip(layout.further_export_zip(archive, "ensemble"), {"report.json": json.dumps(report)})
    with pytest.raises(UserError, match=r"ensemble\.zip: .*does not say what the ensemble is the mean of"):
        model_card.write_doc(archive, "README.md")


def test_an_interval_holds_the_mean_and_narrows_with_cases():
    values = [0.1 * (i % 10) for i in range(20)]
    low, high = interval(values)
    assert low < sum(values) / 20 < high and interval(values) == (low, high), "the same draws every time"
    more_low, more_high = interval(values * 10)
    assert more_high - more_low < (high - low) / 2
    # of a normal sample it is close to mean ± 1.96 standard errors
    draw = random.Random(1)
    sample = [draw.gauss(0, 1) for _ in range(400)]
    error = stdev(sample) / 20
    assert interval(sample) == pytest.approx((fmean(sample) - 1.96 * error, fmean(sample) + 1.96 * error), abs=0.02)
    assert interval([1.0]) is None


def test_licences_are_as_stated_or_not_stated(archive):
    assert "CC0-1.0" in Path(model_card.write_licence(archive)[0]).read_text()
    facts = read_json(layout.dataset_json(archive))
    write_json(layout.dataset_json(archive), {k: v for k, v in facts.items() if k != "licence"})
    assert "not stated" in Path(model_card.write_doc(archive, "data_license.txt")[0]).read_text()
    assert "must decide" in Path(model_card.write_doc(archive, "license.txt")[0]).read_text()
