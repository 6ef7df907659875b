"""ONNX graphs of the encoder, and of the whole network."""

import copy
import json
import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import onnxscript.version_converter
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn

from stif_rt.bundle import FORMS, OPSETS, Size, Sizes
from stif_rt.dtypes import dtype_name, parse_dtype
from stif_rt.engines.exported import output_names
from stif_rt.files import write_whole
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF, AnyEncoder

from . import deform_conv
from .deform_conv import op
from .full import FullNetwork

TRACED_OPSET = 19
BFLOAT16_OPSET = 22
LARGEST_SIDE = 8192
NORMALISATION = "RGB in [0, 1]; no mean, no scale"


def _fmax(x, limit):  # type: ignore[no-untyped-def]  # onnxscript's values have no types
    return op.Where(op.IsNaN(x), limit, op.Max(x, limit))


def _fmin(x, limit):  # type: ignore[no-untyped-def]
    return op.Where(op.IsNaN(x), limit, op.Min(x, limit))


TRANSLATIONS: dict[Any, Any] = {
    torch.ops.prims.fmax.default: _fmax,  # x may be NaN, limit not
    torch.ops.prims.fmin.default: _fmin,
    torch.ops.stif_rt.deform_conv2d.default: deform_conv.translate,
}
"""The operations that PyTorch's exporter does not know."""


class _Encoder(nn.Module):
    """float32 frames in, whatever the encoder's dtype."""

    def __init__(self, encoder: AnyEncoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).to("cpu", dtype).eval().requires_grad_(False)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The fields of ``Features`` that the configuration has."""
        return tuple(x for x in self.encoder(frames) if x is not None)


def any_size(config: Config) -> Sizes:
    """The sizes of an encoder that is exported for every size."""
    multiple = config.multiple
    typical = Size(2, *(-(-side // multiple) * multiple for side in (32, 48)))
    return Sizes(Size(1, multiple, multiple), typical, Size(64, LARGEST_SIDE, LARGEST_SIDE))


def encoder_graph(
    encoder: AnyEncoder, config: Config, dtype: torch.dtype, sizes: Sizes | None = None
) -> onnx.ModelProto:
    """The encoder as traced: deformable convolutions are ``stif::ModulatedDeformConv2d``. For ``finish``.

    Input and outputs are those that ``stif_rt.engines.exported`` describes. sizes: ``any_size`` if None.
    """
    sizes = sizes or any_size(config)
    dynamic = {"frames": _frame_dimensions(sizes, config.multiple)}
    frames = _example(sizes, config.multiple)
    graph = _trace(_Encoder(encoder, dtype), (frames,), dynamic, ["frames"], output_names(config))
    meanings = {
        "features": "of t = 0, 0.5, 1",
        "velocity": "x and y in pixels of the frames, from the first to the second",
    }
    meanings = {"frames": NORMALISATION} | {name: meanings[name] for name in output_names(config)}
    return _describe(graph, config, dtype, sizes, "encoder", meanings)


def full_graph(model: STIF, dtype: torch.dtype, sizes: Sizes | None = None) -> onnx.ModelProto:
    """Encoder and implicit functions as one graph, for runtimes other than this project's. For ``finish``.

    Inputs ``frames``: as for the encoder; ``t``: float32 [B], in [0, 1]; ``size``: int64 [2], output height and width.
    Output ``rgb``: float32 [B, 3, height, width], not clamped. dtype: of the encoder; the rest is float32.
    """
    network = FullNetwork(_Encoder(model.encoder, dtype), model)
    sizes, multiple = sizes or any_size(model.config), model.config.multiple
    frames, dimensions = _example(sizes, multiple), _frame_dimensions(sizes, multiple)
    rows, columns = (torch.arange(3 * n // 2, dtype=torch.float32) for n in frames.shape[-2:])
    dynamic: dict[str, Any] = {"frames": dimensions, "t": {0: dimensions[0]}}
    dynamic |= {"rows": {0: torch.export.Dim("H", min=1)}, "columns": {0: torch.export.Dim("W", min=1)}}
    graph = _trace(network, (frames, torch.rand(len(frames)), rows, columns), dynamic, list(dynamic), ["rgb"])
    _count_from_size(graph)
    meanings = {"frames": NORMALISATION, "t": "0 is the first frame, 1 the second", "size": "height, width"}
    return _describe(graph, model.config, dtype, sizes, "full", meanings | {"rgb": "RGB, mostly in [0, 1]: clamp it"})


def finish(graph: onnx.ModelProto, form: str, opset: int) -> onnx.ModelProto:
    """A traced graph with its deformable convolutions in one form, at one opset; checked."""
    check(form, opset, next(item.value for item in graph.metadata_props if item.key == "stif.dtype"))
    lowered = onnx_ir.from_proto(deform_conv.lower(graph, form))
    if opset != TRACED_OPSET:
        onnxscript.version_converter.convert_version(lowered, opset)
    finished = onnx_ir.to_proto(lowered)
    for key, value in (("stif.form", form), ("stif.opset", str(opset))):
        finished.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(finished, full_check=True)
    return finished


def check(form: str, opset: int, dtype: str) -> None:
    """Raises ValueError for a form, opset or dtype that is unknown, or that do not go together."""
    if form not in FORMS:
        raise ValueError(f"unknown form of the deformable convolution {form!r}; there are: {', '.join(FORMS)}")
    parse_dtype(dtype)
    if opset not in OPSETS:
        raise ValueError(f"opset {opset} is not supported; there are {OPSETS[0]} to {OPSETS[-1]}")
    if dtype == "bfloat16" and opset < BFLOAT16_OPSET:
        raise ValueError(f"opset {opset} has no bfloat16 convolutions; take {BFLOAT16_OPSET} or later")


def default_opset(dtype: str) -> int:
    """The earliest with everything that all forms need, for the sake of older runtimes."""
    return BFLOAT16_OPSET if dtype == "bfloat16" else 20


def read_limits(path: Path) -> tuple[Sizes, str, Config]:
    """Sizes, dtype and configuration of an ONNX file of the encoder. ValueError for any other file."""
    try:
        metadata = {item.key: item.value for item in onnx.load(path, load_external_data=False).metadata_props}
        if metadata["stif.part"] != "encoder":
            raise ValueError(f"{path} is not an encoder but {metadata['stif.part']!r}")
        sizes = Sizes(*(Size(*size) for size in json.loads(metadata["stif.sizes"])))
        return sizes, metadata["stif.dtype"], Config.from_dict(json.loads(metadata["stif.config"]))
    except (DecodeError, KeyError) as error:
        raise ValueError(f"{path} is not an ONNX file that stif-rt wrote") from error


def save(graph: onnx.ModelProto, path: Path, overwrite: bool = True) -> None:
    """Write the graph with its weights, whole or not at all."""
    write_whole(path, graph.SerializeToString(), overwrite)


def _example(sizes: Sizes, multiple: int) -> Tensor:
    """Frames to trace with. A dimension that varies must not be traced at 1, which the tracer would keep."""
    shape = []
    for low, typical, high, unit in zip(*sizes, (1, multiple, multiple), strict=True):
        shape.append(typical if low == high else min(max(typical, 2 * unit), high))
    return torch.rand(shape[0], 2, 3, *shape[1:])


def _frame_dimensions(sizes: Sizes, multiple: int) -> dict[int, Any]:
    """Names and limits of the dimensions of ``frames``; those of one value stay fixed."""
    (b0, h0, w0), _, (b1, h1, w1) = sizes
    height, width = (
        torch.export.Dim(f"{name}_units", min=max(low // multiple, 1), max=high // multiple) if low < high else None
        for name, low, high in (("h", h0, h1), ("w", w0, w1))
    )
    batch = torch.export.Dim("batch", min=b0, max=b1) if b0 < b1 else None
    dimensions: dict[int, Any] = {0: batch}
    for axis, units in ((3, height), (4, width)):
        dimensions[axis] = None if units is None else multiple * units
    return dimensions


def _trace(
    module: nn.Module, inputs: tuple[Tensor, ...], dynamic: Any, names: list[str], outputs: list[str]
) -> onnx.ModelProto:
    with torch.no_grad(), _quiet():
        program = torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False)
        traced = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=TRACED_OPSET,
            input_names=names,
            output_names=outputs,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert traced is not None
    graph: onnx.ModelProto = traced.model_proto
    for part in (*graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        del part.metadata_props[:]  # where in the source each node comes from: paths of this machine
    _name_dimensions(graph)
    return graph


def _name_dimensions(graph: onnx.ModelProto) -> None:
    """Gives dimensions the names that they have in this project instead of the tracer's symbols."""
    names, multiple = {}, 1
    for value, dimensions in (("frames", {0: "B", 3: "h", 4: "w"}), ("rows", {0: "H"}), ("columns", {0: "W"})):
        for given in (given for given in graph.graph.input if given.name == value):
            for axis, name in dimensions.items():
                factor, _, symbol = given.type.tensor_type.shape.dim[axis].dim_param.rpartition("*")
                names[symbol] = name
                multiple = int(factor or multiple)  # sides are so many times the tracer's symbols

    def side(match: re.Match[str]) -> str:
        """``k * symbol``, in terms of the side, which is ``multiple * symbol``."""
        factor, name = int(match[1] or 1), names.get(match[2], match[2])
        if name not in ("h", "w") or factor == multiple:
            return name if factor == 1 or factor == multiple else f"{factor}*{name}"
        common = math.gcd(factor, multiple)
        top, bottom = factor // common, multiple // common
        return (f"{top}*{name}" if top > 1 else name) + (f"/{bottom}" if bottom > 1 else "")

    for described in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        for dimension in described.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = re.sub(r"(?:(\d+)\*)?([A-Za-z_]\w*)", side, dimension.dim_param)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's logging and warnings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _describe(
    graph: onnx.ModelProto, config: Config, dtype: torch.dtype, sizes: Sizes, part: str, meanings: dict[str, str]
) -> onnx.ModelProto:
    del graph.metadata_props[:]
    graph.producer_name, graph.producer_version = "stif-rt", version("stif-rt")
    metadata = {
        "config": json.dumps(config.to_dict()),
        "part": part,
        "dtype": dtype_name(dtype),
        "sizes": json.dumps(sizes),
        "normalisation": NORMALISATION,
        "inputs": json.dumps([value.name for value in graph.graph.input]),
        "outputs": json.dumps([value.name for value in graph.graph.output]),
        "meanings": json.dumps(meanings),
    }
    for key, value in metadata.items():
        graph.metadata_props.add(key=f"stif.{key}", value=value)
    return graph


def _count_from_size(graph: onnx.ModelProto) -> None:
    """Replaces the inputs ``rows`` and ``columns``, 0 to height - 1 and 0 to width - 1, by ``size``."""
    inputs = [value for value in graph.graph.input if value.name not in ("rows", "columns")]
    inputs.append(onnx.helper.make_tensor_value_info("size", onnx.TensorProto.INT64, [2]))
    del graph.graph.input[:]
    graph.graph.input.extend(inputs)
    constants = {"size_zero": 0, "size_one": 1}
    nodes = [
        onnx.helper.make_node("Constant", [], [name], value_int=value, name=name) for name, value in constants.items()
    ]
    for index, name in ((0, "rows"), (1, "columns")):
        position = "size_zero" if index == 0 else "size_one"
        nodes += [
            onnx.helper.make_node("Gather", ["size", position], [f"{name}_count"], name=f"{name}_count"),
            onnx.helper.make_node("Range", ["size_zero", f"{name}_count", "size_one"], [f"{name}_int"]),
            onnx.helper.make_node("Cast", [f"{name}_int"], [name], to=onnx.TensorProto.FLOAT, name=name),
        ]
    kept = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*nodes, *kept])
