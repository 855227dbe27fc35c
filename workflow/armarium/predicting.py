"""A checkpoint at work on images that no list names, exactly as evaluation would have it at work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nibabel
import torch
from monai.data import get_track_meta, set_track_meta
from monai.networks.utils import eval_mode
from monai.transforms import MapTransform

from . import layout
from .boundary import check_boundary
from .cache import prepared_image
from .channels import channels_last
from .clinicadl_weights import to_monai
from .components import build
from .dataset import CLASSIFICATION, REGRESSION, SEGMENTATION
from .errors import UserError
from .evaluation import as_one_hot, build_post_transforms, class_numbers, inferred, on_grid
from .files import read_bytes, read_json
from .multi_label import is_multi_label
from .network import build_network, make_deterministic
from .opening import read_image
from .predictions import channels_in_nifti, image_like
from .recipe import prediction_settings
from .steps import class_names
from .transforms import GridInverter, apply_all, build_transforms, components_at_work
from .weights import give, most_bytes, weights_in

Image = str | os.PathLike | nibabel.spatialimages.SpatialImage
Made = nibabel.Nifti1Image | dict[str, float]


def load_predictor(archive: str, weights: str, plain: bool, device: str, allow: Sequence[str]) -> Predictor:
    """A checkpoint with all that its recipe does to an image.

    Parameters
    ----------
    archive:
        Its folder, which may come from a stranger.
    weights:
        The checkpoint's file in it.
    plain:
        Whether the weights have the network's own keys, or MAPS's ``network.…``.
    device:
        As torch names it.
    allow:
        Code that the user trusts, of that which the archive names.

    Raises
    ------
    UserError
        If the archive names other code, its configuration or the weights are damaged, or there is no such device.
    """
    check_boundary(archive)
    source = layout.effective(archive, "train")
    settings = prediction_settings(read_json(source), source)
    if foreign := [path for path in settings["allow"] if path not in allow]:
        raise UserError(
            f"{source}: allow names {', '.join(map(str, foreign))}, code that this archive would run; if you know it and trust it, say so with allow={foreign!r}"
        )
    with torch.random.fork_rng(devices=[]):  # what a network draws to begin with is nobody's loss
        wrapped = build_network(settings)
    network = wrapped.network if plain else wrapped
    held = weights_in(read_bytes(weights, most_bytes(network)), weights)
    held = held if plain else to_monai(settings["model"], held)
    give(network, held, weights, "have the file made again")
    return Predictor(settings, _on_device(wrapped.network, device), device, class_names(archive))


def _on_device(network: torch.nn.Module, device: str) -> torch.nn.Module:
    try:
        return network.to(torch.device(device)).eval()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise UserError(
            f"device is {device!r}, which torch cannot use here ({str(error).splitlines()[0]}); wanted cpu, or one that torch sees"
        ) from None


class Predictor:
    """A network between the transforms of a recipe's ``validate`` section; call it with an image.

    Parameters
    ----------
    settings:
        As :func:`~armarium.recipe.prediction_settings` gives them.
    network:
        In eval mode, on ``device``.
    names:
        Of the classes, by number.
    """

    def __init__(self, settings: dict, network: torch.nn.Module, device: str, names: dict[int, str]):
        if settings["task"] not in TASKS:
            raise UserError(f"task is {settings['task']!r:.80}; wanted {' or '.join(TASKS)}")
        validate, allow = settings["validate"], settings["allow"]
        self.settings, self.network, self.device, self.names = settings, network, torch.device(device), names
        self.transforms = _without_label(build_transforms(validate["pre_transforms"], allow))
        self.inferer = build("inferer", validate["inferer"], allow)
        self.invert = GridInverter(self.transforms)
        before, after = build_post_transforms(validate, allow)
        self.post = _without_label(before), _without_label(after)

    def __call__(self, image: Image | Sequence[Image], probabilities: bool = False) -> Made:
        """What :meth:`armarium.reader.Archive.predict` returns."""
        given = list(image) if isinstance(image, list | tuple) else [image]
        if not given:
            raise UserError("image: found an empty list, wanted an image, or one for each channel")
        with tempfile.TemporaryDirectory() as folder, _as_evaluation_sets(self.settings):
            files = [_file(one, Path(folder, f"{i}.nii")) for i, one in enumerate(given)]
            where = f"image {given[0] if isinstance(given[0], str | os.PathLike) else 'given'}"
            source, *_ = [read_image(file) for file in files]
            set_track_meta(True)
            loaded = apply_all(self.transforms, {"image": files if len(files) > 1 else files[0]}, where)
            item = prepared_image(loaded["image"])
            set_track_meta(False)
            output = self._output(item["image"], where)
            return TASKS[self.settings["task"]](self, output, item, source, where, probabilities)

    def _output(self, image: torch.Tensor, where: str) -> torch.Tensor:
        batch = image[None].to(self.device, torch.float32)
        on = f"{where}: network on an image {list(batch.shape)}"
        with torch.no_grad(), eval_mode(self.network), components_at_work(on):
            return inferred(self.inferer, batch, self.network)[0]

    def segment(
        self,
        output: torch.Tensor,
        item: dict,
        source: nibabel.spatialimages.SpatialImage,
        where: str,
        probabilities: bool,
    ) -> nibabel.Nifti1Image:
        """Class numbers, or each class's probability, on the grid of the image's file.

        Of classes that may overlap, 0 and 1 with a class in each place of the fourth axis.
        """
        pred = apply_all(self.post[0], {"pred": output}, where)["pred"]
        pred = self.invert(pred, item.get("trace", []), item.get("affine"))
        pred = on_grid(pred, source.shape[: pred.ndim - 1], where, "image file")
        if probabilities:
            return image_like(source, pred.movedim(0, -1).float().cpu().numpy())
        done = apply_all(self.post[1], {"pred": pred}, where)["pred"]
        if is_multi_label(self.settings):
            return image_like(source, channels_in_nifti(channels_last(done)))
        return image_like(source, class_numbers(as_one_hot(done, len(output))))

    def classify(self, output: torch.Tensor, item: dict, source, where: str, probabilities: bool) -> dict[str, float]:
        """Each class's probability by its name."""
        decisions = [] if is_multi_label(self.settings) else self.post[1]
        done = apply_all(self.post[0] + decisions, {"pred": output}, where)["pred"]
        return {self.names.get(i, str(i)): value for i, value in enumerate(done.cpu().double().flatten().tolist())}

    def regress(self, output: torch.Tensor, item: dict, source, where: str, probabilities: bool) -> dict[str, float]:
        """The number, in the target's units."""
        done = apply_all(self.post[0] + self.post[1], {"pred": output}, where)["pred"]
        return {"prediction": float(done.cpu().double())}


TASKS: dict[str, Callable[..., Made]] = {
    SEGMENTATION: Predictor.segment,
    CLASSIFICATION: Predictor.classify,
    REGRESSION: Predictor.regress,
}
"""What becomes of a network's output, by the archive's task."""


def _without_label(transforms: list) -> list:
    """The transforms, none of them in want of the label that a new image does not have."""
    for transform in transforms:
        if isinstance(transform, MapTransform):
            transform.allow_missing_keys = True
    return transforms


def _file(image: Image, spare: Path) -> str:
    """An image's file; one that is in memory is written to ``spare``."""
    if isinstance(image, str | os.PathLike):
        path = os.path.abspath(image)
        if not os.path.isfile(path):
            raise UserError(f"{path}: file not found, or no file; wanted a NIfTI image")
        return path
    if isinstance(image, nibabel.spatialimages.SpatialImage):
        nibabel.save(image, spare)
        return str(spare)
    raise UserError(f"image: found a {type(image).__name__}, wanted a NIfTI file, a nibabel image, or a list of them")


@contextmanager
def _as_evaluation_sets(settings: dict) -> Iterator[None]:
    """torch and MONAI as evaluation sets them, then again as they were."""
    threads, meta, benchmark = torch.get_num_threads(), get_track_meta(), torch.backends.cudnn.benchmark
    strict, lenient = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    try:
        make_deterministic(settings)
        yield
    finally:
        torch.set_num_threads(threads)
        set_track_meta(meta)
        torch.use_deterministic_algorithms(strict, warn_only=lenient)
        torch.backends.cudnn.benchmark = benchmark
