"""Frames as people have them: arrays, tensors, PIL pictures, alone or in batches, checked and brought to one form."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stif_rt.errors import show

Picture = Any
"""A frame: NumPy array, PyTorch tensor or PIL picture. See ``Runtime.encode``."""


class Frame(NamedTuple):
    """A checked frame, or a batch of them.

    pixels: uint8 in 0..255 or floating-point, [B, 3, h, w], where the user has it; it may share the user's memory.
    batched: whether B was an axis of what was given.
    """

    pixels: Tensor
    batched: bool


def check_frame(picture: Picture, name: str) -> Frame:
    """A frame brought to one form, its values not looked at yet.

    Args:
        picture: See ``Runtime.encode``.
        name: The argument's name, for messages.

    Raises:
        TypeError, ValueError: It is none of the forms that are taken; the message says which conversion to write.
    """
    if isinstance(picture, Tensor):
        return _check_tensor(picture, name)
    if _is_pil(picture):
        if picture.mode not in ("RGB", "L"):
            raise ValueError(f'{name} is a PIL picture of mode {picture.mode!r}; give {name}.convert("RGB")')
        picture = np.asarray(picture)
    if isinstance(picture, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; give {name}.filled(0), or another value for what is hidden")
    if not isinstance(picture, np.ndarray):
        kinds = "NumPy arrays, PyTorch tensors or PIL pictures"
        raise TypeError(f"{name} is a {type(picture).__name__} ({show(picture)}); frames are {kinds}")
    return _check_array(picture, name)


def _is_pil(picture: object) -> bool:
    """Whether it is a PIL picture, without importing PIL, which need not be installed."""
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in type(picture).__mro__)


def _check_array(array: NDArray[Any], name: str) -> Frame:
    if array.dtype == np.uint8:
        if array.ndim == 2:
            array = array[..., None]
        if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3):
            raise ValueError(
                _wrong_shape(name, "uint8", array.shape, "[h, w, 3], grey [h, w], or a batch [B, h, w, 3]")
            )
        x = _from_numpy(array).movedim(-1, -3)
    elif array.dtype.kind == "f":  # half to long double, of either byte order
        if array.dtype.itemsize > 8:
            with np.errstate(over="ignore"):  # what float64 cannot hold is refused as not finite
                array = array.astype(np.float64)
        x = _from_numpy(array)
        x = _check_planes(x, name, array.dtype.name)
    else:
        raise TypeError(_wrong_dtype(name, array.dtype.name))
    return _to_rgb(x, name)


def _from_numpy(array: NDArray[Any]) -> Tensor:
    """The array as a tensor, copied where PyTorch cannot share it: negative strides, not writeable, big-endian."""
    native = array.dtype.newbyteorder("=")
    if array.dtype != native or not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.astype(native, order="C")
    return torch.from_numpy(array)


def _check_tensor(x: Tensor, name: str) -> Frame:
    x = x.detach()
    if x.is_meta:
        raise ValueError(f"{name} is on the device 'meta', so it holds no values")
    if x.is_quantized:
        raise TypeError(f"{name} is quantised; give {name}.dequantize()")
    if x.layout != torch.strided:
        raise TypeError(f"{name} is a tensor of the layout {x.layout}; give {name}.to_dense()")
    if x.dtype == torch.uint8:
        first, last = (x.ndim in (3, 4) and x.shape[axis] == 3 for axis in (-3, -1))
        if first and last:
            raise ValueError(
                f"{name} is uint8 {list(x.shape)}, which may be [h, w, 3] as well as [3, h, w]; "
                f"give floating-point [3, h, w] in [0, 1], such as {name}.float() / 255"
            )
        if last:
            x = x.movedim(-1, -3)
        elif x.ndim == 2:
            x = x[None]
        elif not first and not (x.ndim in (3, 4) and x.shape[-3] == 1):
            forms = "[3, h, w] or [h, w, 3], grey [1, h, w] or [h, w], or a batch with a leading axis"
            raise ValueError(_wrong_shape(name, "uint8", x.shape, forms))
    elif x.is_floating_point():
        x = _check_planes(x, name, str(x.dtype).removeprefix("torch."))
    else:
        raise TypeError(_wrong_dtype(name, str(x.dtype).removeprefix("torch.")))
    return _to_rgb(x, name)


def _check_planes(x: Tensor, name: str, dtype: str) -> Tensor:
    """Floating-point frames, whose channels come first: [C, h, w] or [B, C, h, w]."""
    if x.ndim == 2:
        x = x[None]
    if x.ndim not in (3, 4) or x.shape[-3] not in (1, 3):
        forms = "[3, h, w], grey [h, w] or [1, h, w], or a batch [B, 3, h, w]"
        raise ValueError(_wrong_shape(name, dtype, x.shape, forms))
    return x


def _to_rgb(x: Tensor, name: str) -> Frame:
    """[C, h, w] or [B, C, h, w], C being 1 or 3, as RGB."""
    if x.numel() == 0:
        raise ValueError(f"{name} is empty: {list(x.shape)}")
    batched = x.ndim == 4
    x = x if batched else x[None]
    return Frame(x.expand(-1, 3, -1, -1), batched)


def _wrong_shape(name: str, dtype: str, shape: tuple[int, ...], forms: str) -> str:
    sides = list(shape)
    message = f"{name} is {dtype} and has the shape {sides}; {dtype} frames are {forms}"
    if len(sides) not in (3, 4):
        return message
    remedies = {
        (-1, 3): f"Give numpy.moveaxis({name}, -1, -3), or {name}.movedim(-1, -3) of a tensor",
        (-3, 3): f"Give numpy.moveaxis({name}, -3, -1)",
        (-1, 4): f"Leave transparency out: {name}[..., :3]",
        (-3, 4): f"Leave transparency out: {name}[..., :3, :, :]",
    }
    remedy = next((words for (axis, channels), words in remedies.items() if sides[axis] == channels), None)
    return message if remedy is None else f"{message}. {remedy}"


def _wrong_dtype(name: str, dtype: str) -> str:
    message = f"{name} is {dtype}; frames are uint8 in 0..255 or floating-point in [0, 1]"
    remedies = {
        "uint16": f"{name} / 65535, with the channels first",
        "bool": f"{name} * 1.0, with the channels first",
    }
    return f"{message}. Give {remedies[dtype]}" if dtype in remedies else message


def check_values(x: Tensor, name: str) -> None:
    """Raises ValueError for floating-point pixels that are not finite or lie outside [0, 1]; uint8 cannot be wrong.

    Waits for the device where the pixels are on a GPU.
    """
    if x.dtype == torch.uint8:
        return
    low, high = torch.stack(x.float().aminmax()).tolist()  # NaN where one value is
    if low >= 0 and high <= 1:
        return
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise ValueError(f"{name} holds values that are not finite")
    raise ValueError(f"{name} has values from {low:g} to {high:g}; floating-point frames must lie in [0, 1]")


def is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two frames hold the same pixels in the same form. Waits for the device where they are on a GPU."""
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def upload(x: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """A frame's pixels kept as they are, and as float32 in [0, 1] on the device.

    uint8 goes to the device as uint8 and is converted there. The first result does not change when the user's memory
    does; on the way to a GPU it is pinned, so that the host need not wait for the copy.
    """
    kept = pinned(x) if x.device.type == "cpu" and device.type == "cuda" else x.clone()
    there = kept.to(device, non_blocking=True)
    return kept, there.float() / 255 if x.dtype == torch.uint8 else there.float()


def pinned(x: Tensor) -> Tensor:
    """A copy in memory that a GPU reads by itself."""
    return torch.empty_like(x, pin_memory=True).copy_(x)


def check_velocity(velocity: Any, frames: Frame) -> Tensor:
    """A velocity that the user has, float32 [B, 2, h, w] where it is.

    Args:
        velocity: See ``Runtime.encode``.
        frames: The first of the two.

    Raises:
        TypeError, ValueError: It does not fit the frames; the message says what they need.
    """
    if isinstance(velocity, np.ndarray) and velocity.dtype.kind == "f":
        velocity = _from_numpy(velocity if velocity.dtype.itemsize <= 8 else velocity.astype(np.float64))
    B, _, h, w = frames.pixels.shape
    shape = [B, 2, h, w] if frames.batched else [2, h, w]
    needed = f"floating-point {shape}, x and y in pixels of the frames"
    if not isinstance(velocity, Tensor) or not velocity.is_floating_point():
        kind = str(velocity.dtype) if isinstance(velocity, (np.ndarray, Tensor)) else type(velocity).__name__
        raise TypeError(f"velocity is {kind.removeprefix('torch.')}; it must be an array or tensor, {needed}")
    if velocity.is_meta or velocity.is_quantized or velocity.layout != torch.strided:
        raise TypeError(f"velocity is a tensor without plain values; it must be {needed}")
    if list(velocity.shape) != shape:
        remedy = ""
        if velocity.ndim in (3, 4) and velocity.shape[-1] == 2:
            remedy = ". Give numpy.moveaxis(velocity, -1, -3), or velocity.movedim(-1, -3) of a tensor"
        raise ValueError(f"velocity has the shape {list(velocity.shape)}; it must be {needed}{remedy}")
    velocity = velocity.detach().float()
    if not bool(velocity.isfinite().all()):
        raise ValueError("velocity holds values that are not finite")
    return velocity if frames.batched else velocity[None]
