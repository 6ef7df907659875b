"""The TensorRT plugin's contract: exactly the launch that it describes, run on the CPU emulation of the kernel.

``tensorrt`` is replaced by the part of its interface that the plugin touches, with its documented limits: expressions
know + - * // with integers and each other, arguments are 32-bit integers, signatures are checked when registered.
"""

import ctypes
import importlib.machinery
import inspect
import re
import sys
import types

import pytest
import torch
from helpers.deform_conv import inputs

from stif_rt.ops.deform_conv.cuda import THREADS
from stif_rt.ops.nvrtc import unavailable_reason

pytest.importorskip("onnxscript", reason="needs the packages of the extra export")

SHAPES = [(2, 64, 8, 6, 13, 64), (1, 8, 2, 5, 7, 12), (1, 64, 8, 1, 4, 64)]  # B, C, groups, h, w, O
INPUTS = ("x", "offset", "mask", "weight", "bias")


class Expression:
    """An integer that TensorRT learns when the engine runs."""

    def __init__(self, value):
        if isinstance(value, Expression):
            value = value.value
        assert type(value) is int, f"TensorRT takes integers, not {value!r}"
        self.value = value

    def __add__(self, other):
        return Expression(self.value + Expression(other).value)

    def __sub__(self, other):
        return Expression(self.value - Expression(other).value)

    def __mul__(self, other):
        return Expression(self.value * Expression(other).value)

    def __floordiv__(self, other):
        return Expression(self.value // Expression(other).value)


class SymInt32(Expression):
    pass


class TensorDesc:
    def __init__(self, shape, dtype):
        self.shape_expr, self.dtype = [Expression(n) for n in shape], dtype


class KernelLaunchParams:
    def __init__(self):
        self.grid_x = self.grid_y = self.grid_z = self.block_x = self.block_y = self.block_z = 1
        self.shared_mem = 0


class SymIntExprs(list):
    @classmethod
    def from_tuple(cls, values):
        return cls(values)


class AutoTuneCombination:
    def __init__(self, types_, layouts):
        self.types, self.layouts = types_, layouts


@pytest.fixture
def plugin(monkeypatch):
    """The plugin's module, and what it registered by kind."""
    registered = {}

    def decorator(kind, parameters):
        def with_identifier(identifier):
            def register(function):
                assert identifier == "stif::ModulatedDeformConv2d"
                assert tuple(inspect.signature(function).parameters) == parameters
                assert inspect.signature(function).return_annotation is not inspect.Signature.empty
                registered[kind] = function
                return function

            return register

        return with_identifier

    trt, trtp = types.ModuleType("tensorrt"), types.ModuleType("tensorrt.plugin")
    trt.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)  # PyTorch looks for it
    trt.float32, trt.float16 = "FP32", "FP16"
    trtp.TensorDesc, trtp.KernelLaunchParams, trtp.SymInt32 = TensorDesc, KernelLaunchParams, SymInt32
    trtp.SymIntExprs, trtp.SymExprs, trtp.AutoTuneCombination = SymIntExprs, list, AutoTuneCombination
    trtp.from_shape_expr = TensorDesc
    trtp.register = decorator("describe", INPUTS)
    trtp.autotune = decorator("formats", (*INPUTS, "outputs"))
    trtp.aot_impl = decorator("launch", (*INPUTS, "outputs", "tactic"))
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", trtp)
    monkeypatch.delitem(sys.modules, "stif_export.plugin", raising=False)
    module = importlib.import_module("stif_export.plugin")
    yield module, registered
    sys.modules.pop("stif_export.plugin")


def describe(given, dtype):
    return [TensorDesc(a.shape, dtype) for a in given]


@pytest.mark.parametrize("dtype", ["FP32", "FP16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_launch_computes_the_convolution(plugin, emulated, shape, dtype):
    if reason := unavailable_reason():
        pytest.skip(reason)
    ops = pytest.importorskip("torchvision.ops")
    _, registered = plugin
    given = [a.to({"FP32": torch.float32, "FP16": torch.float16}[dtype]) for a in inputs(*shape)]
    x, offset, mask, weight, bias = given
    output = registered["describe"](*describe(given, dtype))
    size = [n.value for n in output.shape_expr]
    assert (size, output.dtype) == ([x.shape[0], weight.shape[0], *x.shape[2:]], dtype)

    name, ptx, launch, arguments = registered["launch"](*describe(given, dtype), (output,), 0)
    assert isinstance(ptx, bytes)
    grid = [Expression(n).value for n in (launch.grid_x, launch.grid_y, launch.grid_z)]
    assert all(n > 0 for n in grid)
    assert (launch.block_x, launch.block_y, launch.block_z) == (THREADS, 1, 1)
    assert all(type(argument) is SymInt32 for argument in arguments)

    # TensorRT's order: pointers to the inputs, the extra arguments, pointers to the outputs
    out = torch.full(size, torch.nan, dtype=x.dtype)
    arrays = (ctypes.c_void_p * 5)(*(a.data_ptr() for a in given))
    numbers = (ctypes.c_int * len(arguments))(*(argument.value for argument in arguments))
    run = getattr(emulated, f"run_{name}")
    assert run((ctypes.c_int * 3)(*grid), THREADS, 0, arrays, numbers, ctypes.c_void_p(out.data_ptr()))
    expected = ops.deform_conv2d(*(a.float() for a in (x, offset, weight, bias)), padding=1, mask=mask.float())
    tolerance = 1e-4 if dtype == "FP32" else 2e-2 * expected.abs().max().item()
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dtype", "name"), [("FP32", "deform_conv_float32"), ("FP16", "deform_conv_float16")])
def test_parameters_of_the_ptx(plugin, dtype, name):
    """The kernel's own parameter list is the one that the launch fills: five pointers, the integers, one pointer."""
    if reason := unavailable_reason():
        pytest.skip(reason)
    _, registered = plugin
    tensors = describe(inputs(*SHAPES[0]), dtype)
    launched, ptx, launch, arguments = registered["launch"](*tensors, (registered["describe"](*tensors),), 0)
    assert launched == name
    entry = re.search(rf"\.visible \.entry {name}\((.*?)\)", ptx.decode(errors="replace"), re.DOTALL)
    widths = re.findall(r"\.param \.[a-z](\d+)", entry[1])
    assert widths == ["64"] * 5 + ["32"] * len(arguments) + ["64"]
    assert launch.shared_mem == 0  # all that it needs is declared in the kernel
    assert re.search(r"\.target sm_\d+", ptx.decode(errors="replace"))


def test_formats(plugin):
    module, registered = plugin
    tensors = describe(inputs(*SHAPES[0]), "FP16")
    combinations = registered["formats"](*tensors, (registered["describe"](*tensors),))
    assert {(one.types, one.layouts) for one in combinations} == {
        ("FP32, FP32, FP32, FP32, FP32, FP32", "LINEAR"),
        ("FP16, FP16, FP16, FP16, FP16, FP16", "LINEAR"),
    }
    assert module.IDENTIFIER == "stif::ModulatedDeformConv2d"
