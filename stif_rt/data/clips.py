"""Clips: where they are below a folder, what they are called, and their frames, memory-mapped from a cache."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stif_rt.data.frame_cache import MAX_CACHE, Shots, check_room, find_entry, load_frames, visible_images
from stif_rt.video.reader import IMAGE_SUFFIXES, VIDEO_SUFFIXES, read_image


@dataclass(frozen=True)
class Clip:
    """name: unique among the clips that were loaded together. frames: uint8 [n, H, W, 3]. shots: [first, end) ranges of
    frames without a scene cut inside."""

    name: str
    frames: NDArray[np.uint8]
    shots: Shots

    def windows(self, length: int, step: int = 1) -> list[int]:
        """First frames of all windows of ``length`` frames that lie within one shot."""
        return [first for start, end in self.shots for first in range(start, end - length + 1, step)]


def find_clips(path: Path) -> list[Path]:
    """Clips at or below a path: video files, and folders that hold images directly.

    So the published layouts need no configuration: Adobe240 (folder/clip/frame.png or videos), GoPro
    (train/GOPR.../sharp/frame.png, whose blurred copies beside it are left out) and Vid4 (clip/frame.png). Hidden files
    and folders are left out; links are followed, and what two paths lead to is one clip.

    Raises:
        FileNotFoundError: if there is none.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    clips: dict[Path, Path] = {}
    for folder, files in _walk(path):
        if any(file.suffix.lower() in IMAGE_SUFFIXES for file in files):
            clips.setdefault(folder.resolve(), folder)
        for file in sorted((f for f in files if f.suffix.lower() in VIDEO_SUFFIXES), key=Path.is_symlink):
            clips.setdefault(file.resolve(), file)
    found = [clip for clip in clips.values() if not (clip.is_dir() and clip != path and _is_blurred_copy(clip))]
    if not found:
        raise FileNotFoundError(f"no videos and no folders of images below {path}")
    return sorted(found)


def _walk(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Each visible folder at or below a root once, with its visible files; folders before links to them."""
    folders, links = [root], list[Path]()
    visited: set[Path] = set()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        if (real := folder.resolve()) in visited:
            continue
        visited.add(real)
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        yield folder, [entry for entry in entries if entry.is_file()]
        for entry in entries:
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(entry)


def _is_blurred_copy(folder: Path) -> bool:
    """Whether it is the ``blur`` or ``blur_gamma`` beside a ``sharp`` with the same frames, as GoPro is published."""
    sharp = folder.parent / "sharp"
    if folder.name not in ("blur", "blur_gamma") or not sharp.is_dir():
        return False
    return {file.name for file in visible_images(folder)} == {file.name for file in visible_images(sharp)}


def name_clips(folders: Sequence[Path]) -> dict[str, Path]:
    """The clips at or below the folders by name.

    A clip is called by its path below its folder, with ``/`` between the parts; a video without its suffix, GoPro's
    CLIP/sharp CLIP. Where that is not unique, the suffix and the last part are named too, and then the folder.

    Raises:
        FileNotFoundError: if there is none below one of the folders.
    """
    clips: dict[Path, tuple[Path, Path]] = {}
    for folder in folders:
        for path in find_clips(folder):
            clips.setdefault(path.resolve(), (folder, path))
    common = Path(os.path.commonpath([_absolute(folder).parent for folder in folders]))
    options = [_possible_names(folder, path, common) for folder, path in clips.values()]
    levels = [0] * len(options)
    while True:
        names = [names[level] for names, level in zip(options, levels, strict=True)]
        counts = Counter(names)
        repeated = [n for n, name in enumerate(names) if counts[name] > 1 and levels[n] + 1 < len(options[n])]
        if not repeated:
            break
        for n in repeated:
            levels[n] += 1
    named: dict[str, Path] = {}
    for name, (_, path) in zip(names, clips.values(), strict=True):
        while name in named:  # names that differ in bytes only, which are no text
            name += "'"
        named[name] = path
    return named


def _possible_names(folder: Path, path: Path, common: Path) -> list[str]:
    """From the shortest to the absolute path. common: a folder above all folders."""
    own_name = Path(_absolute(path).name)
    whole = own_name if path == folder else path.relative_to(folder)
    if path.is_file():
        short = whole.with_suffix("")
    elif path.name == "sharp" and path != folder:
        short = whole.parent if whole.parent.name else Path(_absolute(folder).name)
    else:
        short = whole
    absolute = _absolute(path)
    below_root = absolute.relative_to(absolute.anchor)
    return [readable_name(name) for name in (short, whole, absolute.relative_to(common), below_root)]


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def readable_name(path: Path) -> str:
    """A relative path as text that can be printed and written; one whose bytes are not UTF-8 is read as Latin-1."""
    encoded = os.fsencode(path.as_posix())
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded.decode("latin-1")


def load_pictures(path: Path) -> list[NDArray[np.uint8]]:
    """The image files at or below a path, uint8 [H, W, 3] each. Hidden files are left out, links are followed.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a file that is not an image.
    """
    if path.is_file():
        return [read_image(path)]
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    files = sorted(f for _, files in _walk(path) for f in files if f.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no images below {path}")
    return [read_image(file) for file in files]


def load_clip(path: Path, cache: Path, downscale: float, name: str | None = None) -> Clip:
    """One clip from the cache, decoded into it where it is not there yet.

    Args:
        path: a video file, or a folder of images.
        cache: folder for decoded frames.
        downscale: by which the frames are shrunk.
        name: of the clip, else that of its file or folder.
    """
    frames, shots = load_frames(find_entry(path, cache, downscale))
    own_name = Path(_absolute(path).name)
    short = own_name if path.is_dir() else own_name.with_suffix("")
    return Clip(readable_name(short) if name is None else name, frames, shots)


def load_named_clips(
    paths: Mapping[str, Path], cache: Path, downscale: float, max_cache: int = MAX_CACHE
) -> list[Clip]:
    """Clips from the cache, with the names that are given.

    Args:
        paths: video files and folders of images by name.
        cache: folder for decoded frames.
        downscale: by which the frames are shrunk.
        max_cache: bytes that decoding may add to the cache.

    Raises:
        OSError: before anything is decoded where that would take more than ``max_cache``, or than is free.
    """
    check_room((find_entry(path, cache, downscale) for path in paths.values()), max_cache)
    return [load_clip(path, cache, downscale, name) for name, path in paths.items()]


def load_clips(folders: Sequence[Path], cache: Path, downscale: float, max_cache: int = MAX_CACHE) -> list[Clip]:
    """All clips at or below the folders; arguments and errors as of ``name_clips`` and ``load_named_clips``."""
    return load_named_clips(name_clips(folders), cache, downscale, max_cache)
