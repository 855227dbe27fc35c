"""The published model as ONNX and as a torch.export program, compared with eager, the same bytes every time.

Batch and, where the network itself takes other sizes, spatial axes stay dynamic. What a format cannot express is
not left out quietly: the report says why.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .export import first_output, network_input_shape
from .faults import in_words
from .files import json_text
from .formats import REPORT, model_member
from .network import build_network, make_deterministic
from .parts import Part
from .run import epoch_of, finished_run
from .weights import load_into
from .zips import zipped_again

AXES = ("x", "y", "z")
"""Spatial axes, in the order of the input's."""
OPSET = 18
"""Of ONNX: the newest that both of torch's exporters write."""
LARGEST_STEP = 64
PLACE = re.compile(r"(?<![\w.])/(?:[^\s/:\"']+/)+")
"""A folder of this machine in an error's words."""


class CannotExpress(Exception):
    """A network that a format cannot express, or not within tolerance."""


class OneOutput(torch.nn.Module):
    """A network without what it gives beside the first output."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return first_output(self.network(image))


@dataclass(frozen=True)
class Inputs:
    """What a network is exported and compared with.

    Attributes
    ----------
    shape:
        ``[1, channels, *grid]`` as the network meets it.
    step:
        Voxels by axis between grids that it takes; empty where it takes this one alone.
    """

    shape: list[int]
    step: list[int]

    def another(self) -> list[int]:
        """The shape of another batch and, if it can be, another grid."""
        steps = self.step or [0] * len(self.shape[2:])
        return [3, self.shape[1], *(n + k for n, k in zip(self.shape[2:], steps, strict=True))]

    def larger(self) -> list[list[int]]:
        """Shapes of other grids: a step larger, and so much along one axis that also patches and poolings are more."""
        first, *others = self.shape[2:]
        doubled = first + self.step[0] * -(-first // self.step[0])
        return [[*self.shape[:2], *self.another()[2:]], [*self.shape[:2], doubled, *others]]

    def coarser(self) -> Iterator[Inputs]:
        """The same with wider and wider steps, this one first: a format may fix a padding that eager chooses by size."""
        factor = 1
        while factor == 1 or (self.step and factor * max(self.step) <= LARGEST_STEP):
            yield Inputs(self.shape, [factor * k for k in self.step])
            factor *= 2

    def names(self) -> dict[int, str]:
        """The dynamic axes."""
        return {0: "batch", **{2 + i: AXES[i] for i in range(len(self.step))}}

    def described(self) -> dict:
        """The shape with the names of dynamic axes, and of each its sizes: ``size`` plus any multiple of ``step``."""
        names, sizes = self.names(), zip(AXES, self.shape[2:], self.step, strict=False)
        return {
            "shape": [names.get(i, n) for i, n in enumerate(self.shape)],
            "dtype": "float32",
            "sizes": {axis: {"size": n, "step": k} for axis, n, k in sizes},
        }


def export_format(
    settings: dict,
    run_zip: str,
    checkpoint: str,
    format: str,
    tolerance: float,
    extra: dict[str, str],
    divisor: Sequence[int],
) -> Part:
    """Export a checkpoint to another format.

    Parameters
    ----------
    settings:
        The effective training configuration.
    run_zip:
        Where the weights are.
    format:
        One of ``layout.FORMATS``.
    tolerance:
        Largest difference allowed from eager.
    extra:
        Texts that the file carries, by name.
    divisor:
        What the recipe says that the network's grid is a multiple of, by axis.

    Returns
    -------
    dict
        The model, if there can be one, and the report.
    """
    make_deterministic(settings)
    info = finished_run(run_zip, "input_shape")
    shape = network_input_shape(settings, info)
    model = build_network(settings)
    load_into(model, run_zip, epoch_of(info, checkpoint))
    return exported(model.network.eval(), shape, format, tolerance, extra, divisor)


def exported(
    network: torch.nn.Module,
    shape: list[int],
    format: str,
    tolerance: float,
    extra: dict[str, str],
    divisor: Sequence[int],
) -> Part:
    """The same of a network in evaluation mode."""
    network = OneOutput(network).eval()
    inputs = Inputs(shape, size_step(network, shape, divisor))
    reasons = []
    for method, make in WAYS[format].items():
        try:
            data, facts = make(network, inputs, extra)
            taken, differences = compared(network, READERS[format](data), inputs, tolerance)
        except CannotExpress as error:
            reasons.append(f"{method}: {error}")
            continue
        made = {"exported": True, "format": format, "method": method, **facts}
        report = {**made, "inputs": {"image": taken.described()}, "outputs": ["pred"], **differences}
        return {model_member(format): data, REPORT: json_text({**report, "tolerance": tolerance})}
    return {REPORT: json_text({"exported": False, "format": format, "reason": "; ".join(reasons)})}


def size_step(network: torch.nn.Module, shape: list[int], divisor: Sequence[int]) -> list[int]:
    """Voxels by axis between grids that a network takes, by trying: the divisor, or a power of two times that.

    Empty where it takes no other grid than ``shape``'s.
    """
    with torch.no_grad():
        same_grid = network(torch.zeros(shape)).shape[2:] == torch.Size(shape[2:])
        for tried in Inputs(shape, list(divisor)).coarser():
            if all(_takes(network, larger, same_grid) for larger in tried.larger()):
                return tried.step
    return []


def _takes(network: torch.nn.Module, shape: list[int], same_grid: bool) -> bool:
    try:
        output = network(torch.zeros(shape))
    except Exception as error:  # whatever a network thinks of a grid that it was not made for
        if in_words(error) is not None:
            raise
        return False
    return not same_grid or list(output.shape[2:]) == shape[2:]


def compared(
    network: torch.nn.Module, run: Callable[[torch.Tensor], torch.Tensor], inputs: Inputs, tolerance: float
) -> tuple[Inputs, dict]:
    """The largest difference from eager, on the input that the network meets and on another one.

    Returns
    -------
    Inputs
        What the model takes: steps may be wider than the network's own.
    dict
        The differences.

    Raises
    ------
    CannotExpress
        If the model does not run on one of them, or differs by more than ``tolerance``.
    """
    first, reasons = _difference(network, run, inputs.shape, tolerance), []
    for taken in inputs.coarser():
        try:
            both = [first, _difference(network, run, taken.another(), tolerance)]
        except CannotExpress as error:
            reasons.append(error)
            continue
        return taken, {"compared": both, "max_abs_difference": max(d["max_abs_difference"] for d in both)}
    raise reasons[0]


def _difference(network: torch.nn.Module, run: Callable, shape: list[int], tolerance: float) -> dict:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = network(image)
    with cannot_express(f"on input {shape}"):
        given = run(image)
    if given.shape != wanted.shape:
        raise CannotExpress(f"gives {list(given.shape)} for input {shape}, eager {list(wanted.shape)}")
    difference = float((given - wanted).abs().max())
    if not difference <= tolerance:
        raise CannotExpress(
            f"differs from eager by {difference:.3g} on input {shape}; wanted at most {tolerance:g}; "
            "raise export.tolerance if that is acceptable"
        )
    return {"input_shape": shape, "max_abs_difference": difference}


@contextmanager
def cannot_express(doing: str) -> Iterator[None]:
    """Whatever an exporter or a runtime raises, as a reason in one line; a lack of memory or disk is no reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (CannotExpress, ImportError):
        raise
    except Exception as error:
        if in_words(error) is not None:
            raise
        raise CannotExpress(f"{doing}: {in_a_line(error)}") from error


def in_a_line(error: Exception) -> str:
    """The first line of an error that says something, without folders of this machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return PLACE.sub("", f"{type(error).__name__}: {lines[0] if lines else 'without a word'}")[:300]


def example_of(inputs: Inputs) -> torch.Tensor:
    """An input to export with: a batch of one would be taken for a constant."""
    return torch.zeros([2, *inputs.shape[1:]])


# ---- ONNX


def onnx_by_trace(network: torch.nn.Module, inputs: Inputs, extra: dict[str, str]) -> tuple[bytes, dict]:
    """ONNX by torch's exporter of traced modules."""
    saved, names = io.BytesIO(), inputs.names()
    with cannot_express("torch.onnx"), torch.no_grad():
        torch.onnx.export(
            network,
            (example_of(inputs),),
            saved,
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["pred"],
            dynamic_axes={"image": names, "pred": {0: names[0]}},
        )
    import onnx

    return onnx_bytes(onnx.load_from_string(saved.getvalue()), inputs, extra)


def onnx_by_export(network: torch.nn.Module, inputs: Inputs, extra: dict[str, str]) -> tuple[bytes, dict]:
    """ONNX by torch's exporter of torch.export programs."""
    with cannot_express("torch.onnx"), torch.no_grad():
        program = torch.onnx.export(
            network,
            (example_of(inputs),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["pred"],
            dynamic_shapes=(dynamic_axes(inputs),),
        )
        model = program.model_proto
    return onnx_bytes(model, inputs, extra)


def onnx_bytes(model, inputs: Inputs, extra: dict[str, str]) -> tuple[bytes, dict]:
    """A model's file, checked, without what an exporter notes of its own source, and with ``extra``."""
    import onnx

    for graph in (model.graph, *model.functions):
        for node in graph.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
        graph.ClearField("doc_string")
        graph.ClearField("metadata_props")
    _name_axes(model.graph, inputs)
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    for name, text in sorted(extra.items()):
        model.metadata_props.add(key=name, value=text)
    with cannot_express("onnx"):
        onnx.checker.check_model(model, full_check=True)
        data = model.SerializeToString(deterministic=True)
    opsets = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    return data, {"opset": opsets, "packages": _versions("torch", "onnx", "onnxruntime")}


def _name_axes(graph, inputs: Inputs) -> None:
    """Give the dynamic axes their names wherever the exporter's own are."""
    (image,) = (value for value in graph.input if value.name == "image")
    axes = image.type.tensor_type.shape.dim
    named = {axes[i].dim_param: name for i, name in inputs.names().items() if axes[i].dim_param}
    if len(named) != len(inputs.names()):
        fixed = [name for i, name in inputs.names().items() if not axes[i].dim_param]
        raise CannotExpress(f"the exporter fixed the size along {', '.join(fixed) or 'an axis'}")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"[A-Za-z_]\w*", lambda found: named.get(found[0], found[0]), axis.dim_param)


def onnx_reader(data: bytes) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model in onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    with cannot_express("onnxruntime"):
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["pred"], {"image": image.numpy()})[0])


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in packages}


# ---- torch.export


def dynamic_axes(inputs: Inputs) -> dict:
    return dict.fromkeys(inputs.names(), torch.export.Dim.DYNAMIC)


def pt2_by_export(network: torch.nn.Module, inputs: Inputs, extra: dict[str, str]) -> tuple[bytes, dict]:
    """A program of torch.export, as ``torch.export.load`` reads it."""
    with cannot_express("torch.export"), torch.no_grad():
        program = torch.export.export(network, (example_of(inputs),), dynamic_shapes=(dynamic_axes(inputs),))
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)  # embeds absolute paths
        program._example_inputs = None  # a whole image
        saved = io.BytesIO()
        torch.export.save(program, saved, extra_files=dict(sorted(extra.items())))
    return pt2_bytes(saved), {"packages": _versions("torch")}


def pt2_bytes(saved: io.BytesIO) -> bytes:
    """The file zipped again without the hash over its process's own names."""
    return zipped_again(saved, lambda name, data: (name, data))


def pt2_reader(data: bytes) -> Callable[[torch.Tensor], torch.Tensor]:
    """The program that was just saved."""
    with cannot_express("torch.export"):
        program = torch.export.load(io.BytesIO(data)).module()

    def run(image: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return program(image)

    return run


WAYS = {
    "onnx": {"torch.onnx, traced": onnx_by_trace, "torch.onnx, dynamo": onnx_by_export},
    "pt2": {"torch.export": pt2_by_export},
}
"""The exporters of each format, in the order in which they are tried."""
READERS = {"onnx": onnx_reader, "pt2": pt2_reader}
