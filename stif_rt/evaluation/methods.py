"""What is scored. A method is a function from a pair of frames to the pictures between them.

To score another network, write such a function and name it: ``stif-rt eval --method NAME=module:function``.
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stif_rt.data.resize import imresize
from stif_rt.runtime import Runtime
from stif_rt.video.reader import read_image

BASELINE = "bicubic + blend"


@dataclass(frozen=True)
class Group:
    """Frames that are rendered from two of them.

    clip: name. first: number of the first frame in the clip. scale: spatial. inputs: [2, 3, h, w], the first and the
    last frame made small. truth: [N, 3, H, W]. Both RGB in [0, 1].
    """

    clip: str
    first: int
    scale: float
    inputs: Tensor
    truth: Tensor

    @property
    def times(self) -> list[float]:
        return [n / (len(self.truth) - 1) for n in range(len(self.truth))]

    @property
    def size(self) -> tuple[int, int]:
        return self.truth.shape[-2], self.truth.shape[-1]


Method = Callable[[Group], Tensor]
"""Returns [N, 3, H, W], the pictures at the group's times; the caller clamps and rounds them."""


def bicubic(group: Group) -> Tensor:
    """Each frame enlarged with MATLAB's bicubic filter, and a linear blend between the two."""
    before, after = imresize(group.inputs, group.size).clamp(0, 1)
    return torch.stack([(1 - t) * before + t * after for t in group.times])


def ours(runtime: Runtime) -> Method:
    """The model as the runtime runs it: any variant, device, dtype, engine and kernels."""

    def render(group: Group) -> Tensor:
        frames = group.inputs.to(runtime.device)
        runtime.encode(frames[0], frames[1])
        return torch.stack([runtime.render(t, size=group.size).cpu() for t in group.times])

    return render


def predictions(folder: Path) -> Method:
    """Pictures that another tool has made: FOLDER/<clip>/<...number>.png, the number being the frame's in the clip,
    counted from 0. Raises FileNotFoundError for a frame that is not there, ValueError for one of another size."""
    files: dict[str, dict[int, Path]] = {}

    def read(group: Group) -> Tensor:
        if group.clip not in files:
            numbered = ((re.search(r"(\d+)$", path.stem), path) for path in (folder / group.clip).glob("*"))
            files[group.clip] = {int(match[1]): path for match, path in numbered if match}
        pictures = []
        for number in range(group.first, group.first + len(group.truth)):
            path = files[group.clip].get(number)
            if path is None:
                raise FileNotFoundError(f"{folder / group.clip} has no frame {number}, such as {number:06d}.png")
            picture = torch.from_numpy(read_image(path)).movedim(-1, 0).float() / 255
            if picture.shape[1:] != group.size:
                sizes = " instead of ".join(f"{w}x{h}" for h, w in (picture.shape[1:], group.size))
                raise ValueError(f"{path} is {sizes}")
            pictures.append(picture)
        return torch.stack(pictures)

    return read


def external(place: str) -> Method:
    """The function at ``module:function``, called with frames [2, 3, h, w], a list of N times, and (H, W).

    It returns [N, 3, H, W]. Raises ValueError where there is no such function.
    """
    module, _, name = place.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--method {place}: give module:function ({error})") from error

    def call(group: Group) -> Tensor:
        with torch.inference_mode():
            return function(group.inputs, group.times, group.size).float().cpu()

    return call
