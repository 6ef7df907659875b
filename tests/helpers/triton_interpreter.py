"""Repairs of Triton's interpreter, which runs kernels on the CPU."""

from typing import Any

import numpy as np


def mend_interpreter() -> None:
    """Makes it fast enough to test with, and right for bfloat16.

    It prepares its language anew at every call of a function, 20 ms each, where once is enough; it rounds float32
    towards zero to bfloat16, where GPUs round to nearest; and it multiplies the bits of bfloat16 matrices as integers.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    call, convert, prepared = interpreter.InterpretedFunction.__call__, interpreter._convert_float, set()

    def call_prepared(self: Any, *args: Any, **kwargs: Any) -> Any:
        module = self.fn.__module__
        if module.startswith("triton.") and module not in prepared:
            prepared.add(module)
            return call(self, *args, **kwargs)
        return self.rewrite()(*args, **kwargs)

    def convert_to_nearest(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, rounding)
        bits = values.view(np.uint32)
        return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)

    def dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        a, b = (
            interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
            if x.dtype.scalar == tl.bfloat16
            else x
            for x in (a, b)
        )
        return multiply(self, a, b, *others)

    multiply, interpreter.InterpreterBuilder.create_dot = interpreter.InterpreterBuilder.create_dot, dot
    interpreter.InterpretedFunction.__call__ = call_prepared
    interpreter._convert_float = convert_to_nearest
