"""Clips as memory-mapped frames.

A clip is a video file or a folder of frames. The first use of one decodes it, shrunk by ``downscale``, into the cache
folder as one ``.npy`` of uint8 [frames, H, W, 3]; from then on windows are read straight from the page cache.
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from stif_rt.files import whole_file, write_whole
from stif_rt.video.cuts import detected_cuts
from stif_rt.video.reader import IMAGE_SUFFIXES, VIDEO_SUFFIXES, open_reader, read_image


@dataclass(frozen=True)
class Clip:
    """name; frames: uint8 [n, H, W, 3]; shots: [first, end) ranges of frames without a scene cut inside."""

    name: str
    frames: NDArray[np.uint8]
    shots: list[tuple[int, int]]

    def windows(self, length: int, step: int = 1) -> list[int]:
        """First frames of all windows of ``length`` frames that lie within one shot."""
        return [first for start, end in self.shots for first in range(start, end - length + 1, step)]


def find_clips(path: Path) -> list[Path]:
    """Clips below a path: video files, and folders that hold images directly.

    So the published layouts need no configuration: Adobe240 (folder/clip/frame.png or videos), GoPro
    (train/GOPR.../frame.png; of its sharp/blur pairs only the sharp ones) and Vid4 (clip/frame.png).
    Raises FileNotFoundError where there is none.
    """
    if path.is_file():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.is_file() and "blur" not in p.parent.name)
    clips = {p.parent for p in files if p.suffix.lower() in IMAGE_SUFFIXES}
    clips |= {p for p in files if p.suffix.lower() in VIDEO_SUFFIXES}
    if not clips:
        raise FileNotFoundError(f"no videos and no folders of images below {path}")
    return sorted(clips)


def load_pictures(path: Path) -> list[NDArray[np.uint8]]:
    """The image files below a path, uint8 [H, W, 3] each. Raises FileNotFoundError where there is none."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no images below {path}")
    return [read_image(file) for file in files]


def load_clip(path: Path, cache: Path, downscale: float) -> Clip:
    """The clip from the cache, decoded into it where it is not there yet."""
    key = hashlib.sha256(f"{path.resolve()} {path.stat().st_mtime_ns} {downscale}".encode()).hexdigest()[:16]
    target, index = cache / f"{path.stem}-{key}.npy", cache / f"{path.stem}-{key}.json"
    if not index.exists():  # written last: its presence says that both are complete
        cache.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as temporary:
            shots = _decode(path, temporary, downscale)
        write_whole(index, json.dumps({"shots": shots}))
    shots = [(first, end) for first, end in json.loads(index.read_text())["shots"]]
    return Clip(path.stem, np.load(target, mmap_mode="r"), shots)


def _decode(path: Path, target: Path, downscale: float) -> list[tuple[int, int]]:
    """Writes the frames one by one behind a header for their final number, and returns the shots."""
    with contextlib.closing(open_reader(path)) as reader, target.open("wb+") as file:
        size = (round(reader.height / downscale), round(reader.width / downscale))
        cuts, count = [0], 0
        _write_header(file, (0, *size, 3))
        for frame, cut in detected_cuts(reader):
            if cut:
                cuts.append(count)
            image = frame.image
            if image.shape[:2] != size:
                picture = torch.from_numpy(image).permute(2, 0, 1)[None]
                small = F.interpolate(picture, size, mode="bicubic", antialias=True)
                image = small[0].permute(1, 2, 0).numpy()
            file.write(np.ascontiguousarray(image).data)
            count += 1
        _write_header(file, (count, *size, 3))
    return list(zip(cuts, [*cuts[1:], count], strict=True))


def _write_header(file, shape: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
