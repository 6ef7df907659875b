"""ONNX graphs of the encoder, and of the whole network."""

import copy
import json
import logging
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
from stif_rt.files import write_whole
from stif_rt.model.compact import CompactEncoder
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF, AnyEncoder
from stif_rt.ops.deform_conv import override_deform_conv2d

from . import deform_conv
from .deform_conv import op
from .full import FullNetwork

TRACED_OPSET = 19
BFLOAT16_OPSET = 22
DYNAMIC = Sizes(Size(1, 4, 4), Size(2, 32, 48), Size(64, 8192, 8192))
NORMALISATION = "RGB in [0, 1]; no mean, no scale"


def _fmax(x, limit):  # type: ignore[no-untyped-def]  # onnxscript's values have no types
    return op.Where(op.IsNaN(x), limit, op.Max(x, limit))


def _fmin(x, limit):  # type: ignore[no-untyped-def]
    return op.Where(op.IsNaN(x), limit, op.Min(x, limit))


TRANSLATIONS: dict[Any, Any] = {torch.ops.prims.fmax.default: _fmax, torch.ops.prims.fmin.default: _fmin}
"""What PyTorch's exporter does not know; ``x`` may be NaN, ``limit`` not."""


class _Encoder(nn.Module):
    """float32 frames in, whatever the encoder's dtype."""

    def __init__(self, encoder: AnyEncoder, dtype: torch.dtype) -> None:
        super().__init__()
        if isinstance(encoder, CompactEncoder):
            raise ValueError("networks with motion cannot be exported as graphs yet")
        self.encoder = copy.deepcopy(encoder).to("cpu", dtype).eval().requires_grad_(False)
        self.dtype = dtype

    def forward(self, frames: Tensor) -> Tensor:
        features: Tensor = self.encoder(frames.to(self.dtype)).maps
        return features


def encoder_graph(encoder: AnyEncoder, config: Config, dtype: torch.dtype, sizes: Sizes = DYNAMIC) -> onnx.ModelProto:
    """The encoder as traced: deformable convolutions are ``stif::ModulatedDeformConv2d``. For ``finish``.

    Input ``frames``: float32 [B, 2, 3, h, w]. Output ``features``: dtype [B, 3, 64, h, w]. h and w multiples of 4.
    """
    dynamic = {"frames": _frame_dimensions(sizes)}
    graph = _trace(_Encoder(encoder, dtype), (_example(sizes),), dynamic, ["frames"], ["features"])
    meanings = {"frames": NORMALISATION, "features": "of t = 0, 0.5, 1"}
    return _describe(graph, config, dtype, sizes, "encoder", meanings)


def full_graph(model: STIF, dtype: torch.dtype, sizes: Sizes = DYNAMIC) -> onnx.ModelProto:
    """Encoder and implicit functions as one graph, for runtimes other than this project's. For ``finish``.

    Inputs ``frames``: as for the encoder; ``t``: float32 [B], in [0, 1]; ``size``: int64 [2], output height and width.
    Output ``rgb``: float32 [B, 3, height, width], not clamped. dtype: of the encoder; the rest is float32.
    """
    network = FullNetwork(_Encoder(model.encoder, dtype), model)
    frames, dimensions = _example(sizes), _frame_dimensions(sizes)
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


def read_limits(path: Path) -> tuple[Sizes, str]:
    """Sizes and dtype of an ONNX file of the encoder. ValueError for any other file."""
    try:
        metadata = {item.key: item.value for item in onnx.load(path, load_external_data=False).metadata_props}
        if metadata["stif.part"] != "encoder":
            raise ValueError(f"{path} is not an encoder but {metadata['stif.part']!r}")
        return Sizes(*(Size(*size) for size in json.loads(metadata["stif.sizes"]))), metadata["stif.dtype"]
    except (DecodeError, KeyError) as error:
        raise ValueError(f"{path} is not an ONNX file that stif-rt wrote") from error


def save(graph: onnx.ModelProto, path: Path, overwrite: bool = True) -> None:
    """Write the graph with its weights, whole or not at all."""
    write_whole(path, graph.SerializeToString(), overwrite)


def _example(sizes: Sizes) -> Tensor:
    """Frames to trace with. A dimension that varies must not be traced at 1, which the tracer would keep."""
    shape = []
    for low, typical, high, unit in zip(*sizes, (1, 4, 4), strict=True):
        shape.append(typical if low == high else min(max(typical, 2 * unit), high))
    return torch.rand(shape[0], 2, 3, *shape[1:])


def _frame_dimensions(sizes: Sizes) -> dict[int, Any]:
    """Names and limits of the dimensions of ``frames``; those of one value stay fixed."""
    (b0, h0, w0), _, (b1, h1, w1) = sizes
    height = torch.export.Dim("h4", min=max(h0 // 4, 1), max=h1 // 4) if h0 < h1 else None
    width = torch.export.Dim("w4", min=max(w0 // 4, 1), max=w1 // 4) if w0 < w1 else None
    batch = torch.export.Dim("batch", min=b0, max=b1) if b0 < b1 else None
    dimensions: dict[int, Any] = {0: batch}
    for axis, quarter in ((3, height), (4, width)):
        dimensions[axis] = None if quarter is None else 4 * quarter
    return dimensions


def _trace(
    module: nn.Module, inputs: tuple[Tensor, ...], dynamic: Any, names: list[str], outputs: list[str]
) -> onnx.ModelProto:
    with torch.no_grad(), override_deform_conv2d(deform_conv.traced), _quiet():
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
    names = {}
    for value, dimensions in (("frames", {0: "B", 3: "h/4", 4: "w/4"}), ("rows", {0: "H"}), ("columns", {0: "W"})):
        for given in (given for given in graph.graph.input if given.name == value):
            for axis, name in dimensions.items():
                names[given.type.tensor_type.shape.dim[axis].dim_param.removeprefix("4*")] = name
    for described in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        for dimension in described.type.tensor_type.shape.dim:
            if dimension.dim_param:
                words = re.split(r"(\w+)", dimension.dim_param)
                dimension.dim_param = (
                    "".join(names.get(word, word) for word in words).replace("4*h/4", "h").replace("4*w/4", "w")
                )


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
