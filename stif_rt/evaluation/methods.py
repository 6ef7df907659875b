"""What is scored. A method is a function from a pair of frames to the pictures between them.

To score another network, write such a function and name it: ``stif-rt eval --method NAME=module:function``. Those that
the paper compares with are in the folder ``benchmarks`` of a source checkout.
"""

import functools
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stif_rt.checkout import import_benchmarks
from stif_rt.data.clips import readable_name
from stif_rt.data.frame_cache import visible_images
from stif_rt.data.resize import imresize
from stif_rt.runtime import Runtime, weights_for_scale
from stif_rt.video.reader import read_image

BASELINE = "bicubic + blend"
OURS = "this"
"""The model that is evaluated."""


@dataclass(frozen=True)
class Window:
    """Frames that are rendered from two of them.

    clip: name. first: number of the first frame in the clip. scale: spatial. inputs: [2, 3, h, w], the first and the
    last frame made small. truth: [N, 3, H, W]. outer: [2, 3, h, w], made small likewise, the frames as far before the
    first and after the last as these are apart; None where the clip has not both. All RGB in [0, 1].
    numbers: which frames of the window truth holds, of nine for instance (0, 4, 8); None for all.
    """

    clip: str
    first: int
    scale: float
    inputs: Tensor
    truth: Tensor
    outer: Tensor | None = None
    numbers: tuple[int, ...] | None = None

    def only(self, numbers: Sequence[int]) -> "Window":
        """The same inputs, and some of the frames, the last one among them."""
        return replace(self, truth=self.truth[list(numbers)], numbers=tuple(numbers))

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(range(len(self.truth))) if self.numbers is None else self.numbers

    @property
    def times(self) -> list[float]:
        return [n / self.positions[-1] for n in self.positions]

    @property
    def size(self) -> tuple[int, int]:
        return self.truth.shape[-2], self.truth.shape[-1]


Method = Callable[[Window], Tensor]
"""Returns [N, 3, H, W], the pictures at the window's times; the caller clamps and rounds them."""


def bicubic(window: Window) -> Tensor:
    """Each frame enlarged with MATLAB's bicubic filter, and a linear blend between the two."""
    before, after = imresize(window.inputs, window.size).clamp(0, 1)
    return torch.stack([(1 - t) * before + t * after for t in window.times])


def runtime_method(runtime: Runtime) -> Method:
    """The model as the runtime runs it: any variant, device, dtype, engine and kernels."""

    def render(window: Window) -> Tensor:
        frames = window.inputs.to(runtime.device)
        runtime.encode(frames[0], frames[1])
        return torch.stack([runtime.render(t, size=window.size).cpu() for t in window.times])

    return render


def bundled_method(load: Callable[[str], Runtime], scales: Iterable[float]) -> Method:
    """The bundled weights that fit a window's scale, as ``stif-rt render`` takes them.

    Args:
        load: makes a runtime of a name, such as ``stif-i``.
        scales: those that windows will have.
    """
    methods = {name: runtime_method(load(name)) for name in {weights_for_scale(scale) for scale in scales}}
    return lambda window: methods[weights_for_scale(window.scale)](window)


def predictions(folder: Path) -> Method:
    """Pictures that another tool has made.

    Args:
        folder: has FOLDER/<clip>/<...number>.png, the number being the frame's in the clip, counted from 0.

    Raises:
        FileNotFoundError: if there is no such folder; when called, for a frame that is not there.
        ValueError: when called, for a picture of another size.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--predictions: there is no folder {folder}")
    files: dict[str, dict[int, Path]] = {}

    def read(window: Window) -> Tensor:
        if window.clip not in files:
            files[window.clip] = _numbered(folder, window.clip)
        pictures = []
        for number in (window.first + position for position in window.positions):
            path = files[window.clip].get(number)
            if path is None:
                raise FileNotFoundError(f"{folder / window.clip} has no frame {number}, such as {number:06d}.png")
            picture = torch.from_numpy(read_image(path)).movedim(-1, 0).float() / 255
            if picture.shape[1:] != window.size:
                sizes = " instead of ".join(f"{w}x{h}" for h, w in (picture.shape[1:], window.size))
                raise ValueError(f"{path} is {sizes}")
            pictures.append(picture)
        return torch.stack(pictures)

    return read


def _numbered(folder: Path, clip: str) -> dict[int, Path]:
    """The pictures of a clip by the number at the end of their names."""
    below = folder / clip
    if not below.is_dir():  # a name that is not UTF-8 is written differently on disk
        alike = (p for p in folder.glob("/".join("*" * (clip.count("/") + 1))) if p.is_dir())
        below = next((p for p in alike if readable_name(p.relative_to(folder)) == clip), below)
    if not below.is_dir():
        return {}
    numbered = ((re.search(r"(\d+)$", path.stem), path) for path in visible_images(below))
    return {int(match[1]): path for match, path in numbered if match}


def external(target: str) -> Method:
    """A function of any importable module as a method; those of the current folder are found.

    Args:
        target: ``module:function``. The function takes frames, float32 [2, 3, h, w], RGB in [0, 1]; a list of N times
            in [0, 1]; and the size (H, W). It returns [N, 3, H, W].

    Raises:
        ValueError: if there is no such function, or its module cannot be imported, saying why.
        RuntimeError: when called, for whatever the function raises.
    """
    module, _, name = target.partition(":")
    if not (module and name.isidentifier()):
        raise ValueError(f"--method {target}: give module:function, such as mynet:interpolate")
    if (current := os.getcwd()) not in sys.path:
        sys.path.insert(0, current)  # the console script's own folder is there instead
    try:
        function = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever the module does
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"--method {target}: module {module} cannot be imported: {reason}") from error
    if not callable(function):
        raise ValueError(f"--method {target}: module {module} has no function {name}")

    def call(window: Window) -> Tensor:
        try:
            with torch.inference_mode():
                out = function(window.inputs, window.times, window.size)
        except Exception as error:  # whatever the function does
            raise RuntimeError(f"--method {target} failed: {type(error).__name__}: {error}") from error
        if not isinstance(out, Tensor):
            raise ValueError(f"--method {target} must return a tensor, not {type(out).__name__}")
        return out.float().cpu()

    return call


class Peers:
    """The methods that the paper compares with, by name. They share networks, and what a pair or clip has in common."""

    def __init__(self, weights: Mapping[str, Path], device: torch.device) -> None:
        self.weights, self.device = weights, device

    @staticmethod
    def _module(name: str, wanted_for: str) -> Any:
        return import_benchmarks(name, wanted_for, Path(__file__).resolve().parents[1])

    @functools.cached_property
    def setup(self) -> Any:
        interface = self._module("interface", "a network of the paper's tables")
        return interface.Setup(self.device, weights=dict(self.weights), random=False, remember=True)

    def __call__(self, name: str) -> Method:
        """``tmnet``, ``dain+basicvsr`` and the like, in float32.

        Raises ValueError for an unknown name, without weights for it, or where this is not a source checkout.
        """
        method = self._module("methods", f"--method {name}").find_method(name).build(self.setup)

        @torch.inference_mode()
        def render(window: Window) -> Tensor:
            frames = window.inputs
            if method.inputs == 4 and window.outer is not None:
                frames = torch.cat((window.outer[:1], frames, window.outer[1:]))
            pair = method.encode(frames[None].to(self.device))
            pictures = method.at(pair, window.times, window.size)
            return torch.stack([picture.reshape(3, *window.size).float().cpu() for picture in pictures])

        return render
