"""The deformable convolution in ONNX: one node when it is traced, then one of three forms.

``plugin``: the node as it is, ``stif::ModulatedDeformConv2d``, for our TensorRT plugin.
``standard``: ONNX's own ``DeformConv``. ``grid-sample``: only operators that every runtime has.

The last two compute in float32 whatever the model's precision, as positions in half precision lose whole pixels;
``grid-sample`` multiplies by the weights in the model's precision.
"""

from typing import Any

import onnx
import onnx.inliner
from onnxscript import opset19, script, values

NAMESPACE, NODE = "stif", "ModulatedDeformConv2d"
FLOAT = onnx.TensorProto.FLOAT
op: Any = opset19  # its type hints do not know the operators that onnxscript gives its values
stif: Any = values.Opset(NAMESPACE, 1)


_Schema = onnx.defs.OpSchema
_node: Any = values.Op(
    stif,
    NODE,
    _Schema(
        NODE,
        NAMESPACE,
        1,
        inputs=[_Schema.FormalParameter(name, "T") for name in ("x", "offset", "mask", "weight", "bias")],
        outputs=[_Schema.FormalParameter("out", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[
            _Schema.Attribute("plugin_namespace", _Schema.AttrType.STRING),
            _Schema.Attribute("aot", _Schema.AttrType.INT),
        ],
    ),
)


def translate(x, offset, mask, weight, bias):  # type: ignore[no-untyped-def]  # onnxscript's values have no types
    """The node that PyTorch's exporter writes for the operation ``stif_rt::deform_conv2d``.

    Its attributes are those by which TensorRT's parser finds a plugin and its ahead-of-time form.
    """
    return _node(x, offset, mask, weight, bias, plugin_namespace=NAMESPACE, aot=1)


@script(stif, default_opset=op)
def _standard(x, offset, mask, weight, bias):  # type: ignore[no-untyped-def]
    channels = op.Cast(weight, to=FLOAT)
    out = op.DeformConv(
        op.Cast(x, to=FLOAT),
        channels,
        op.Cast(offset, to=FLOAT),
        op.Cast(bias, to=FLOAT),
        op.Cast(mask, to=FLOAT),
        kernel_shape=[3, 3],
        pads=[1, 1, 1, 1],
        offset_group=8,
    )
    return op.CastLike(out, x)


@script(stif, default_opset=op)
def _grid_sample(x, offset, mask, weight, bias):  # type: ignore[no-untyped-def]
    """All taps of a deformable group are one image of 9 h rows; then a 1x1 convolution of 9 C channels."""
    size = op.Shape(x, start=2)  # h, w
    h = op.Shape(x, start=2, end=3)
    w = op.Shape(x, start=3, end=4)
    height = op.Cast(h, to=FLOAT)
    width = op.Cast(w, to=FLOAT)

    # offsets of all pairs of batch element and group: [N, 9, h, w], vertical then horizontal
    offsets = op.Reshape(op.Cast(offset, to=FLOAT), op.Concat(op.Constant(value_ints=[-1, 9, 2]), size, axis=0))
    vertical = op.Gather(offsets, op.Constant(value_int=0), axis=2)
    horizontal = op.Gather(offsets, op.Constant(value_int=1), axis=2)

    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    row = op.Cast(op.Range(zero, op.Squeeze(h), one), to=FLOAT)
    column = op.Cast(op.Range(zero, op.Squeeze(w), one), to=FLOAT)
    tap_rows = op.Reshape(
        op.Constant(value_floats=[-1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
        op.Constant(value_ints=[1, 9, 1, 1]),
    )
    tap_columns = op.Reshape(
        op.Constant(value_floats=[-1.0, 0.0, 1.0, -1.0, 0.0, 1.0, -1.0, 0.0, 1.0]),
        op.Constant(value_ints=[1, 9, 1, 1]),
    )
    y = vertical + (tap_rows + op.Unsqueeze(row, op.Constant(value_ints=[1])))
    x_ = horizontal + (tap_columns + column)

    two = op.Constant(value_float=2.0)
    unit = op.Constant(value_float=1.0)
    last = op.Constant(value_ints=[-1])
    position = op.Concat(
        op.Unsqueeze((two * x_ + unit) / width - unit, last),
        op.Unsqueeze((two * y + unit) / height - unit, last),
        axis=-1,
    )
    position = op.Reshape(position, op.Concat(op.Constant(value_ints=[0, -1]), w, op.Constant(value_ints=[2]), axis=0))

    taps = op.Constant(value_ints=[9])
    groups = op.Div(op.Shape(mask, start=1, end=2), taps)
    channels = op.Div(op.Shape(x, start=1, end=2), groups)
    maps = op.Reshape(op.Cast(x, to=FLOAT), op.Concat(op.Constant(value_ints=[-1]), channels, size, axis=0))
    samples = op.GridSample(maps, position, mode="bilinear", padding_mode="zeros", align_corners=0)
    modulation = op.Reshape(op.Cast(mask, to=FLOAT), op.Concat(op.Constant(value_ints=[-1, 1]), h * taps, w, axis=0))
    samples = op.CastLike(samples * modulation, weight)  # [N, C / groups, 9 h, w]
    samples = op.Reshape(samples, op.Concat(op.Shape(x, start=0, end=1), op.Constant(value_ints=[-1]), size, axis=0))
    return op.Conv(samples, op.Reshape(weight, op.Constant(value_ints=[0, -1, 1, 1])), bias)


def lower(model: onnx.ModelProto, form: str) -> onnx.ModelProto:
    """The model with its deformable convolutions in the given form, one of FORMS."""
    if form == "plugin":
        return model
    function = {"standard": _standard, "grid-sample": _grid_sample}[form].to_function_proto()
    function.name = NODE
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    for node in lowered.graph.node:
        if node.domain == NAMESPACE:
            del node.attribute[:]
    lowered.functions.append(function)
    lowered = onnx.inliner.inline_local_functions(lowered)
    kept = [imported for imported in lowered.opset_import if imported.domain != NAMESPACE]
    del lowered.opset_import[:]
    lowered.opset_import.extend(kept)
    return lowered
