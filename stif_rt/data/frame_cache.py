"""Decoded frames on disk: for each clip one ``.npy``, uint8 [frames, H, W, 3], and one ``.json`` with its shots.

An entry is named after the clip's path and shrinking, and after facts of every file that it was decoded from: frames
that were rewritten under their old names are decoded again, and what was decoded from the old ones is deleted.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from stif_rt.files import whole_file, write_whole
from stif_rt.version import VERSION
from stif_rt.video.cuts import detected_cuts
from stif_rt.video.notices import Notices
from stif_rt.video.reader import IMAGE_SUFFIXES, open_reader, read_image

log = logging.getLogger(__name__)

FORMAT = 2
"""Raise it when the pictures change that are decoded from a file."""
MAX_CACHE = 100 * 10**9
"""Bytes that decoding may add to a cache unless the caller allows more: twelve minutes of 1080p at 24 frames/s."""

Shots = list[tuple[int, int]]
"""[first, end) ranges of frames without a scene cut inside."""


@dataclass(frozen=True)
class Entry:
    """The place of a clip's decoded frames in a cache, whether they are there yet or not.

    source: the video file, or folder of images. downscale: frames are shrunk by it. prefix: begins the names of all
    entries of this source and shrinking, whatever the source's state.
    """

    source: Path
    downscale: float
    folder: Path
    prefix: str
    state: str

    @property
    def frames(self) -> Path:
        return self.folder / f"{self.prefix}{self.state}.npy"

    @property
    def index(self) -> Path:
        """Written last: its presence says that both files are complete."""
        return self.folder / f"{self.prefix}{self.state}.json"


def visible_images(folder: Path) -> list[Path]:
    """The image files directly in a folder, by name. Hidden ones are left out, such as the ``._0.png`` of macOS."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def find_entry(source: Path, folder: Path, downscale: float) -> Entry:
    """The entry for the present state of a source: name, size and time of change of each of its files."""
    files = visible_images(source) if source.is_dir() else [source]
    states = [(os.fsencode(file.name), (s := file.stat()).st_size, s.st_mtime_ns, s.st_ctime_ns) for file in files]
    place = _digest(os.fsencode(source.resolve()), float(downscale))
    readable = re.sub(r"[^\w.-]", "_", source.stem, flags=re.ASCII)[:40]
    return Entry(source, downscale, folder, f"{readable}-{place}-", _digest(FORMAT, VERSION, states))


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def load_frames(entry: Entry) -> tuple[NDArray[np.uint8], Shots]:
    """The memory-mapped frames of a clip and its shots, decoded first where they are not in the cache.

    Raises:
        OSError: if the cache cannot be written, saying so; or the source cannot be read.
        ValueError: for a source that holds no pictures.
    """
    if (cached := _read(entry)) is not None:
        return cached
    with _writing(entry):
        entry.folder.mkdir(parents=True, exist_ok=True)
    with _alone(entry.folder):
        if (cached := _read(entry)) is None:  # nor has another process decoded it meanwhile
            _decode(entry)
            _remove_outdated(entry)
            cached = _read(entry)
    if cached is None:
        raise OSError(f"{entry.frames} has just been written and cannot be read")
    return cached


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process decodes into the folder: those of one training would all decode the same clips."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(entry: Entry) -> tuple[NDArray[np.uint8], Shots] | None:
    """None where the entry is missing or damaged."""
    try:
        shots = [(int(first), int(end)) for first, end in json.loads(entry.index.read_text())["shots"]]
        frames = np.load(entry.frames, mmap_mode="r")
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, EOFError):
        return None
    return (frames, shots) if frames.ndim == 4 and shots and shots[-1][1] == len(frames) else None


def check_room(entries: Iterable[Entry], max_cache: int) -> None:
    """Says how much disk the entries that are not there yet will take; raises OSError where that is too much."""
    missing = [entry for entry in entries if _read(entry) is None]
    if not missing:
        return
    needed, folder = sum(_estimate_bytes(entry) for entry in missing), missing[0].folder
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    clips = "1 clip" if len(missing) == 1 else f"{len(missing)} clips"
    frames, size, room = f"the decoded frames of {clips}", readable_bytes(needed), readable_bytes(free)
    remedy = "shrink them (--downscale 2 takes a quarter) or give fewer clips"
    if needed > max_cache:
        limit = f"the {readable_bytes(max_cache)} of --max-cache"
        raise OSError(f"{frames} would take {size} in {folder} (free: {room}), more than {limit}: allow more, {remedy}")
    if needed > free:
        raise OSError(f"{frames} would take {size} in {folder}, where {room} are free: give another --cache, {remedy}")
    log.log(logging.WARNING if needed > 10**9 else logging.INFO, "%s will take %s in %s", frames, size, folder)


def readable_bytes(count: float) -> str:
    """Such as ``537 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _estimate_bytes(entry: Entry) -> int:
    if entry.source.is_dir():
        images = visible_images(entry.source)
        height, width = read_image(images[0]).shape[:2]
        count = len(images)
    else:
        with contextlib.closing(open_reader(entry.source)) as reader:
            height, width = reader.height, reader.width
            count = max(reader.frames or 0, int((reader.duration or 0) * reader.rate))
    height, width = _shrunk((height, width), entry.downscale)
    return count * height * width * 3


def _shrunk(size: tuple[int, int], downscale: float) -> tuple[int, int]:
    return max(1, round(size[0] / downscale)), max(1, round(size[1] / downscale))


def _decode(entry: Entry) -> None:
    """Each file appears when it is whole, the index last."""
    with contextlib.ExitStack() as stack:
        with _writing(entry):
            temporary = stack.enter_context(whole_file(entry.frames))
        shots = _decode_frames(entry, temporary)
    with _writing(entry):
        write_whole(entry.index, json.dumps({"shots": shots}))


@contextlib.contextmanager
def _writing(entry: Entry) -> Iterator[None]:
    """Tells failures to write the cache from failures to read the source."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"the folder for decoded frames, {entry.folder}, cannot be written: {error.strerror or error}; give "
            f"another one with --cache"
        ) from error


def _decode_frames(entry: Entry, target: Path) -> Shots:
    """Writes the frames one by one behind a header for their final number, and returns the shots."""
    notices = Notices()
    with contextlib.closing(open_reader(entry.source, notices=notices)) as reader, contextlib.ExitStack() as stack:
        size = _shrunk((reader.height, reader.width), entry.downscale)
        with _writing(entry):
            file = stack.enter_context(target.open("wb+"))
            _write_header(file, (0, *size, 3))
        cuts, count = [0], 0
        for frame, cut in detected_cuts(reader):
            if cut:
                cuts.append(count)
            with _writing(entry):
                file.write(np.ascontiguousarray(_resize(frame.image, size)).data)
            count += 1
        with _writing(entry):
            _write_header(file, (count, *size, 3))
            stack.close()
    for notice in notices:
        log.warning("%s: %s", entry.source, notice)
    return list(itertools.pairwise([*cuts, count]))


def _resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if image.shape[:2] == size:
        return image
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    return F.interpolate(planes, size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _remove_outdated(entry: Entry) -> None:
    """Delete frames that an earlier state of the source gave. A process that still reads them keeps its open file."""
    kept = {entry.frames.name, entry.index.name}
    for path in entry.folder.iterdir():
        if path.name.startswith(entry.prefix) and path.name not in kept:
            with contextlib.suppress(OSError):
                path.unlink()
