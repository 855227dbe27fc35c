"""Score a network on cases: whole images, through the recipe's inferer, on the grid of the label file.

The one validation function: training calls it every validated epoch, and testing calls it for every
checkpoint, so that both mean the same by a metric.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

import nibabel
import numpy
import torch
from monai.data import set_track_meta
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler
from monai.metrics import (
    AveragePrecisionMetric,
    ConfusionMatrixMetric,
    CumulativeIterationMetric,
    RMSEMetric,
    ROCAUCMetric,
)
from monai.networks.utils import eval_mode, one_hot

from .cache import PreparedCases, checked_files
from .channels import LabelChannels, channels_last, decided
from .class_maps import class_map, of_one_class, only_chooses, values_by_class
from .components import build
from .dataset import CLASSIFICATION, REGRESSION, SEGMENTATION
from .distributed import ALONE, Team, by_itself
from .errors import UserError
from .hashing import as_checked
from .large_loss import loss_on
from .multi_label import is_multi_label
from .network import a_channel_for_each_class, one_number_a_case
from .nifti import Unreadable, check_header
from .recipe import POST_OURS
from .transforms import GridInverter, apply_all, build_transforms, components_at_work

IDS = ["participant_id", "session_id"]
CLASS_SUMMARY = ["class", "name", "metric", "mean", "std", "median", "min", "max", "defined", "undefined"]

SET_METRICS = {"ROCAUCMetric", "AveragePrecisionMetric", "ConfusionMatrixMetric"}
"""MONAI metrics that only a whole set of cases has."""
OF_CLASSES = {"macro", "none", "mean_batch"}
"""Averages whose value for a set is the mean over its classes: here over those where the metric is defined."""


def _pass_through(output):
    return output


class Score:
    """One configured metric over a set of cases.

    Parameters
    ----------
    component:
        A metric of the recipe: a MONAI metric handler or an ignite metric, with its ``label``.
    allow:
        Dotted paths that the recipe may name.
    """

    def __init__(self, component: dict, allow: Sequence[str]):
        self.label = component["label"]
        self.handler = build("metric", component, allow, output_transform=_pass_through)
        # Not getattr with a default: ignite's metrics answer to any attribute's name.
        self.function = self.handler.metric_fn if isinstance(self.handler, IgniteMetricHandler) else None
        self.per_case = isinstance(self.function, CumulativeIterationMetric)
        self.per_case &= type(self.function).__name__ not in SET_METRICS
        self.in_mm = type(self.function).__name__ in ("HausdorffDistanceMetric", "SurfaceDistanceMetric")
        self.is_root = isinstance(self.function, RMSEMetric)
        self.of_ranks = isinstance(self.function, ROCAUCMetric | AveragePrecisionMetric)
        self.of_decisions = isinstance(self.function, ConfusionMatrixMetric)
        self.with_background = bool(getattr(self.function, "include_background", True))
        self.reset()

    def reset(self) -> None:
        if type(self.handler).__module__.startswith("ignite.metrics.regression"):
            # Their sums have torch's default type; R2Score takes the difference of two large ones.
            with _default_dtype(torch.float64):
                self.handler.reset()
        else:
            (self.function or self.handler).reset()

    def add(
        self, prediction: torch.Tensor, label: torch.Tensor, index: torch.Tensor, spacing: Sequence[float]
    ) -> list[float] | None:
        """Take in one case.

        Parameters
        ----------
        prediction, label:
            ``[1, classes, *grid]``, one-hot or probabilities against one-hot; of a regression ``[1, 1]``.
        index:
            ``[1, *grid]``, the label's class numbers; of a regression the target ``[1, 1]``; of classes that may occur
            together ``label`` as whole numbers.
        spacing:
            Voxel size in mm, for distances.

        Returns
        -------
        list of float, or None
            The value of each class that the metric scores (NaN where undefined); None for a metric
            that only a whole set has.
        """
        if self.function is None:
            self.handler.update((prediction, index))
            return None
        values = self.function(prediction, label, **({"spacing": list(spacing)} if self.in_mm else {}))
        if not self.per_case:
            return None
        return _or_undefined(values.as_subclass(torch.Tensor).double().flatten().tolist())

    def of_class_map(
        self, prediction: torch.Tensor, label: torch.Tensor, classes: int, spacing: Sequence[float]
    ) -> list[float]:
        """The same of class numbers ``[*grid]``, for a metric that can be given one class after the other."""
        numbers = range(int(not self.with_background), classes)
        given = {"spacing": list(spacing)} if self.in_mm else {}
        return _or_undefined(values_by_class(self.function, prediction, label, numbers, given))

    def of_classes(self) -> list[float] | None:
        """Each class's value over all cases taken in (NaN where undefined); None where the metric has none of its own."""
        if self.per_case or not (self.of_ranks or self.of_decisions):
            return None
        with components_at_work(f"metric {self.label} by class"):
            values = (
                self.function.aggregate(average="none")
                if self.of_ranks
                else self.function.aggregate(reduction="mean_batch")[0]
            )
        return torch.as_tensor(values, dtype=torch.float64).flatten().tolist()

    def of_set(self) -> float:
        """The metric over all cases taken in; NaN where their number or their labels leave it undefined.

        A mean over classes is one of those where it is defined.
        """
        average = self.function.average if self.of_ranks else getattr(self.function, "reduction", None)
        if (self.of_ranks or self.of_decisions) and str(getattr(average, "value", average)) in OF_CLASSES:
            return _mean(self.of_classes())
        with components_at_work(f"metric {self.label} over all cases"):
            try:
                value = self.function.aggregate() if self.function is not None else self.handler.compute()
            except ZeroDivisionError:
                return math.nan
        value = value[0] if isinstance(value, (list, tuple)) else value
        return float(value.mean() if isinstance(value, torch.Tensor) else value)


def _or_undefined(values: list[float]) -> list[float]:
    return [v if math.isfinite(v) else math.nan for v in values]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass
class Evaluation:
    """What scoring a set of cases gave.

    ``details`` has a row per case, ``class_details`` one per case and class; ``set_values`` holds the
    metrics that only a set has, ``set_class_values`` those by the class's number; ``class_names`` names the classes by
    number; ``kept`` has each case and what was to be kept of its prediction.
    """

    metrics: list[str]
    class_names: dict[int, str]
    details: list[dict] = field(default_factory=list)
    class_details: list[dict] = field(default_factory=list)
    set_values: dict[str, float] = field(default_factory=dict)
    set_class_values: dict[str, dict[int, float]] = field(default_factory=dict)
    kept: list[tuple[dict, Any]] = field(default_factory=list)

    def aggregated(self) -> dict[str, float]:
        """Each metric over the set: the mean over the cases where it is defined (NaN where none is)."""
        return {
            m: self.set_values[m] if m in self.set_values else _mean([d[m] for d in self.details]) for m in self.metrics
        }

    def root_mean_square(self, metric: str) -> float:
        """Over the cases; the mean of cases' roots of one squared error each would be the mean absolute error."""
        return math.sqrt(_mean([d[metric] ** 2 for d in self.details]))

    def classes(self) -> list[dict]:
        """Per class and metric: mean, spread, and how many cases were undefined.

        Of a metric that only a set has: its value as the mean, and one value defined or undefined.
        """
        rows, of_sets = [], self.set_class_values
        numbers = {d["class"] for d in self.class_details} | {n for values in of_sets.values() for n in values}
        for number in sorted(numbers):
            of_class = [d for d in self.class_details if d["class"] == number]
            row = {"class": number, "name": self.class_names.get(number, str(number))}
            for metric in self.metrics:
                if number in of_sets.get(metric, {}):
                    rows.append({**row, "metric": metric, **_single(of_sets[metric][number])})
                elif values := [d[metric] for d in of_class if metric in d]:
                    rows.append({**row, "metric": metric, **_summary(values)})
        return rows


def _defined(values: list[float]) -> list[float]:
    return [v for v in values if not math.isnan(v)]


def _mean(values: list[float]) -> float:
    return fmean(_defined(values)) if _defined(values) else math.nan


def _single(value: float) -> dict:
    known = not math.isnan(value)
    return {**({"mean": value} if known else {}), "defined": int(known), "undefined": int(not known)}


def _summary(values: list[float]) -> dict:
    defined = _defined(values)
    counts = {"defined": len(defined), "undefined": len(values) - len(defined)}
    if not defined:
        return counts
    return {
        "mean": fmean(defined),
        "std": pstdev(defined),
        "median": median(defined),
        "min": min(defined),
        "max": max(defined),
        **counts,
    }


class LabelFiles:
    """Label volumes on their own grid, kept in memory up to a budget.

    Parameters
    ----------
    data_root:
        Folder that label paths start from.
    budget:
        Bytes to keep.
    """

    def __init__(self, data_root: str, budget: int = 1 << 30):
        self.data_root, self.budget = Path(data_root), budget
        self.kept: dict[str, tuple[torch.Tensor, tuple[float, ...]]] = {}

    def get(self, case: dict) -> tuple[torch.Tensor, tuple[float, ...]]:
        """A case's label ``[*grid]`` (``[*grid, classes]`` where the file has a channel for each) and its voxel size in mm."""
        name = case["label"]
        if name in self.kept:
            return self.kept[name]
        with as_checked(self.data_root, {name: checked_files(case)[name]}):
            try:
                check_header(name, str(self.data_root))
            except Unreadable as error:
                raise UserError(f"{self.data_root}: {error}") from None
            file = nibabel.load(self.data_root / name)
            values = numpy.asanyarray(file.dataobj)
        largest = values.max(initial=0)
        label = torch.from_numpy(values.round().astype(numpy.uint8 if largest < 256 else numpy.int32))
        loaded = label, tuple(float(z) for z in file.header.get_zooms()[: label.ndim])
        if label.nbytes <= self.budget:
            self.budget -= label.nbytes
            self.kept[name] = loaded
        return loaded


@dataclass
class ScoredCase:
    """What scoring one case gave: its rows, what is kept of its prediction, and what metrics of a whole set take in."""

    case: dict
    row: dict
    class_rows: dict[int, dict]
    kept: Any
    for_set: tuple[torch.Tensor, torch.Tensor, torch.Tensor, Sequence[float]] | None


class CaseScorer:
    """Scores a network by the recipe's ``validate`` section.

    Parameters
    ----------
    settings:
        The effective training configuration.
    data_root, cache_dir:
        Where the files are, where prepared cases go.
    device:
        What the network runs on.
    class_names:
        Names by class number.
    team:
        The processes that share the cases. The first has what one process would have, to the bit; the others have it too,
        but for the predictions.
    """

    def __init__(
        self,
        settings: dict,
        data_root: str,
        cache_dir: str,
        device: torch.device,
        class_names: dict[int, str],
        team: Team = ALONE,
    ):
        validate, allow = settings["validate"], settings["allow"]
        self.task, self.device, self.class_names, self.team = settings["task"], device, class_names, team
        self.multi_label = is_multi_label(settings)
        self.prepared = PreparedCases(validate["pre_transforms"], data_root, cache_dir, allow)
        self.labels = LabelFiles(data_root)
        self.channels = LabelChannels(self.prepared.transforms, class_names)
        self.inferer = build("inferer", validate["inferer"], allow)
        self.loss = build("loss", settings["loss"], allow).to(device)
        self.invert = GridInverter(self.prepared.transforms)
        self.post = build_post_transforms(validate, allow)
        self.scores = [Score(m, allow) for m in validate["metrics"]]
        self.metrics = ["loss", *(s.label for s in self.scores)]
        self.by_class_map = (
            self.task == SEGMENTATION
            and not self.multi_label
            and only_chooses(self.post)
            and all(of_one_class(s.function) for s in self.scores)
        )
        """Whether class numbers are all that scoring takes of a prediction: then no copy of it is made."""

    def prepare(self, cases: Sequence[dict], workers: int) -> None:
        """Prepare what is missing of ``cases``, each process its share."""
        self.prepared.prepare_all(self.team.share(cases), workers=workers)
        self.team.wait()

    def __call__(
        self, network: torch.nn.Module, cases: Sequence[dict], keep: Callable[[dict, numpy.ndarray], Any] | None = None
    ) -> Evaluation:
        """Score ``network`` on ``cases``.

        Parameters
        ----------
        network:
            On the scorer's device.
        cases:
            As :class:`~armarium.cache.PreparedCases` takes them, labelled.
        keep:
            Given each case and its prediction: class numbers ``[*grid]`` on the file's grid, probabilities ``[classes]``, or
            the number ``[1]``; of classes that may occur together 0 or 1 ``[*grid, classes]``, or probabilities and
            decisions ``[2, classes]``. What it returns is kept.
        """
        result = Evaluation(self.metrics, self.class_names)
        for score in self.scores:
            score.reset()
        if self.team.size == 1:
            self._score_all(network, cases, keep, lambda scored: self._take_in(scored, result))
        for part in self._parts(cases) if self.team.size > 1 else ():
            own: list[ScoredCase] = []
            self._score_all(network, self.team.share(part), keep, own.append)
            for scored in self.team.in_order(own):
                self._take_in(scored, result)
        if self.team.is_first:
            with by_itself():
                self._score_the_set(result)
            if self.task == REGRESSION:
                result.set_values |= {s.label: result.root_mean_square(s.label) for s in self.scores if s.is_root}
        kept, result.kept = result.kept, []
        result = self.team.tell(result)
        result.kept = kept
        return result

    def _score_the_set(self, result: Evaluation) -> None:
        """The metrics that only a set has, and those by class."""
        result.set_values = {s.label: s.of_set() for s in self.scores if not s.per_case}
        if self.task != REGRESSION:
            by_class = {s: values for s in self.scores if (values := s.of_classes())}
            result.set_class_values = {
                s.label: dict(enumerate(v, int(not s.with_background))) for s, v in by_class.items()
            }

    def _parts(self, cases: Sequence[dict]) -> Iterator[Sequence[dict]]:
        """Cases whose results are sent to the first process at once: few where whole segmentations are sent."""
        sends_images = self.task == SEGMENTATION and not all(s.per_case for s in self.scores)
        step = self.team.size if sends_images else max(1, len(cases))
        for start in range(0, len(cases), step):
            yield cases[start : start + step]

    def _score_all(self, network, cases: Sequence[dict], keep, take: Callable[[ScoredCase], None]) -> None:
        """Score cases one after the other in this process."""
        if not cases:
            return
        engine = SupervisedEvaluator(
            device=self.device,
            val_data_loader=list(cases),
            epoch_length=len(cases),
            network=network,
            inferer=self.inferer,
            iteration_update=lambda _, case: take(self._score(network, case, keep)),
            decollate=False,
        )
        engine.logger.setLevel(logging.CRITICAL)  # errors are told once, by the command line
        set_track_meta(False)
        with eval_mode(network):  # MONAI's own step, which _score replaces, would see to it
            engine.run()

    def _score(self, network, case: dict, keep) -> ScoredCase:
        item = dict(self.prepared.get(case))
        image = item.pop("image")[None].to(self.device, torch.float32)
        on = f"case {case['case']}: network or loss on an image {list(image.shape)}"
        with torch.no_grad(), components_at_work(on):
            output = inferred(self.inferer, image, network)
            del image  # a large one's memory is needed
            if self.task == REGRESSION:
                one_number_a_case(output.shape, 1)
            target = item.pop("label")[None].to(self.device)
            if self.multi_label:
                a_channel_for_each_class(output.shape, target.shape)
                target = target.float()
            loss = loss_on(self.loss, output, target)
            del target
        row = {c: case[c] for c in IDS} | {"loss": loss}
        if self.by_class_map and output.shape[1] > 1:
            classes, where = output.shape[1], f"case {case['case']}"
            trace, affine = item.get("trace", []), item.get("affine")
            numbers = class_map(output[0], self.post[0], self.invert, trace, affine, where)
            del output
            return self._score_class_map(numbers, classes, case, row, keep)
        prediction, label, index, spacing = self._on_file_grid(output[0], item, case)
        decisions = self._decisions(prediction, case)
        given = prediction[None], label[None], index[None], decisions[None], spacing
        class_rows: dict[int, dict] = {}
        for score in self.scores:
            values = self._added(score, case, given) if score.per_case else None
            first = 0 if values is None or score.with_background or len(values) >= len(prediction) else 1
            self._note(score, values, first, row, class_rows)
        kept = keep(case, self._kept_form(prediction, decisions)) if keep else None
        for_set = None if all(s.per_case for s in self.scores) else given
        if for_set and self.team.size > 1:  # a GPU's tensors would be sent as places on that GPU
            for_set = (*(t.cpu() for t in given[:-1]), spacing)
        return ScoredCase(case, row, class_rows, kept, for_set)

    def _note(
        self, score: Score, values: list[float] | None, first: int, row: dict, class_rows: dict[int, dict]
    ) -> None:
        """Put a metric's values into a case's rows; ``first`` is the class that they begin with."""
        row[score.label] = math.nan if values is None else _mean(values)
        for number, value in enumerate((values or []) if self.task != REGRESSION else [], first):
            class_rows.setdefault(number, {})[score.label] = value

    def _score_class_map(self, pred: torch.Tensor, classes: int, case: dict, row: dict, keep) -> ScoredCase:
        """The same of class numbers ``[*file grid]``, where they are all that it takes."""
        where = f"case {case['case']}"
        index, spacing = self.labels.get(case)
        pred, index = on_grid(pred[None], index.shape, where, "label file")[0], index.to(self.device)
        class_rows: dict[int, dict] = {}
        for score in self.scores:
            with components_at_work(f"{where}: metric {score.label}"):
                values = score.of_class_map(pred, index, classes, spacing)
            self._note(score, values, int(not score.with_background), row, class_rows)
        return ScoredCase(case, row, class_rows, keep(case, pred.cpu().numpy()) if keep else None, None)

    def _added(self, score: Score, case: dict, given: tuple) -> list[float] | None:
        prediction, label, index, decisions, spacing = given
        of_decisions = score.of_decisions or (self.multi_label and score.function is None)
        with components_at_work(f"case {case['case']}: metric {score.label}"):
            return score.add(decisions if of_decisions else prediction, label, index, spacing)

    def _take_in(self, scored: ScoredCase, result: Evaluation) -> None:
        """Add a case's results to those of the cases before it."""
        if scored.for_set:
            *tensors, spacing = scored.for_set
            given = (*(t.to(self.device) for t in tensors), spacing)
            for score in self.scores:
                if not score.per_case:
                    self._added(score, scored.case, given)
        result.details.append(scored.row)
        for number, values in sorted(scored.class_rows.items()):
            name = self.class_names.get(number, str(number))
            result.class_details.append({c: scored.case[c] for c in IDS} | {"class": number, "name": name, **values})
        if scored.kept is not None:
            result.kept.append((scored.case, scored.kept))

    def _kept_form(self, prediction: torch.Tensor, decisions: torch.Tensor) -> numpy.ndarray:
        if self.task == SEGMENTATION:
            return channels_last(decisions) if self.multi_label else class_numbers(prediction)
        kept = torch.stack([prediction, decisions]) if self.multi_label else prediction
        return kept.cpu().double().numpy()

    def _decisions(self, prediction: torch.Tensor, case: dict) -> torch.Tensor:
        """Which classes are chosen, as 0 and 1: what metrics of decisions take; elsewhere the prediction itself."""
        if self.task != CLASSIFICATION:
            return prediction
        if not self.multi_label:
            return torch.nn.functional.one_hot(prediction.argmax(), len(prediction)).to(prediction.dtype)
        return (
            apply_all(self.post[1], {"pred": prediction}, f"case {case['case']}")["pred"]
            if self.post[1]
            else decided(prediction)
        )

    def _on_file_grid(self, output: torch.Tensor, item: dict, case: dict):
        """The prediction and the label as ``[classes, *file grid]``, the label's class numbers, and the voxel size.

        Of classes that may occur together, the label as whole numbers in place of class numbers.

        Of a regression, in double precision, the prediction and the target ``[1]``, and the target again.
        """
        classes, where = output.shape[0], f"case {case['case']}"
        if self.task == REGRESSION:
            target = torch.tensor([case["label"]], dtype=torch.float64, device=self.device)
            done = apply_all(self.post[0] + self.post[1], {"pred": output}, where)["pred"]
            if done.shape != target.shape:
                raise UserError(f"{where}: validate.post_transforms give {list(done.shape)} for its number, wanted [1]")
            return done.as_subclass(torch.Tensor).double(), target, target, ()
        if self.task == CLASSIFICATION:
            if self.multi_label:
                index = torch.tensor(case["label"], device=self.device)
                done = apply_all(self.post[0], {"pred": output}, where)["pred"]
                return done, index.to(done.dtype), index, ()
            index = torch.as_tensor(int(case["label"]), device=self.device)
            done = apply_all(self.post[0] + self.post[1], {"pred": output}, where)["pred"]
            return done, torch.nn.functional.one_hot(index, classes).to(done.dtype), index, ()
        pred = apply_all(self.post[0], {"pred": output}, where)["pred"]
        pred = self.invert(pred, item.get("trace", []), item.get("affine"))
        index, spacing = self.labels.get(case)
        if self.multi_label:
            label = self.channels(index, pred.shape[1:], where).to(self.device)
            pred = on_grid(pred, label.shape[1:], where, "label file")
            done = apply_all(self.post[1], {"pred": pred, "label": label}, where)
            return done["pred"], done["label"].to(done["pred"].dtype), label, spacing[: label.ndim - 1]
        pred = on_grid(pred, index.shape, where, "label file")
        index = index.to(self.device)
        done = apply_all(self.post[1], {"pred": pred, "label": index[None]}, where)
        pred, label = (as_one_hot(done[k], classes) for k in ("pred", "label"))
        return pred, label, index, spacing


def build_post_transforms(validate: dict, allow: Sequence[str]) -> tuple[list, list]:
    """The post-transforms before and after the prediction goes back to its file's grid."""
    post = [c for c in validate["post_transforms"] if c.get("name") not in POST_OURS]
    discrete = next((i for i, c in enumerate(post) if c.get("name") == "AsDiscreted"), len(post))
    return build_transforms(post[:discrete], allow), build_transforms(post[discrete:], allow)


def inferred(inferer, image: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
    """The network's output, the first where it has several."""
    output = inferer(image, network)
    return output[0] if isinstance(output, (list, tuple)) else output


def on_grid(pred: torch.Tensor, grid: Sequence[int], where: str, whose: str) -> torch.Tensor:
    """``[channels, *grid]``: a prediction that went back, with the axes of length 1 that its file has.

    Raises
    ------
    UserError
        If it did not get back to that grid.
    """
    if [n for n in pred.shape[1:] if n > 1] != [n for n in grid if n > 1]:
        raise UserError(
            f"{where}: the prediction's grid {list(pred.shape[1:])} is not the {whose}'s {list(grid)}; a spatial transform of the recipe cannot be undone"
        )
    return pred.reshape(pred.shape[0], *grid)


def class_numbers(prediction: torch.Tensor) -> numpy.ndarray:
    """uint8 ``[*grid]`` from ``[classes, *grid]``, one-hot or probabilities."""
    return prediction.argmax(0).to(torch.uint8).cpu().numpy()


def as_one_hot(value: torch.Tensor, classes: int) -> torch.Tensor:
    """``[classes, *grid]`` from class numbers ``[1, *grid]``; what has several channels stays."""
    if value.shape[0] > 1 or classes == 1:
        return value
    return one_hot(value[None].as_subclass(torch.Tensor), classes)[0]
