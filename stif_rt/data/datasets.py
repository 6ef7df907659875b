"""The published data sets and their test splits, or any videos and folders of frames."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stif_rt.data.clips import Clip, find_clips, load_named_clips, name_clips
from stif_rt.data.frame_cache import MAX_CACHE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """clips: names of the test split; a clip is a video or folder of that name, or a folder below one. layout: what is
    expected. source: where it comes from."""

    clips: tuple[str, ...]
    layout: str
    source: str


DATASETS = {
    "vid4": Dataset(
        ("calendar", "city", "foliage", "walk"),
        "FOLDER/<clip>/<frame>.png, or FOLDER/GT/<clip>/<frame>.png",
        "Vid4 (Liu and Sun, 2011), as distributed with many video super-resolution projects",
    ),
    "gopro": Dataset(
        (
            "GOPR0384_11_00",
            "GOPR0384_11_05",
            "GOPR0385_11_01",
            "GOPR0396_11_00",
            "GOPR0410_11_00",
            "GOPR0854_11_00",
            "GOPR0862_11_00",
            "GOPR0868_11_00",
            "GOPR0869_11_00",
            "GOPR0871_11_00",
            "GOPR0881_11_01",
        ),
        "FOLDER/test/<clip>/<frame>.png with every frame that the camera took, 240 a second",
        "GOPRO_Large_all, https://seungjunnah.github.io/Datasets/gopro.html (GOPRO_Large leaves frames out)",
    ),
    "adobe240": Dataset(
        (
            "GOPR9653",
            "IMG_0001",
            "IMG_0003",
            "IMG_0004a",
            "IMG_0004b",
            "IMG_0012",
            "IMG_0013",
            "IMG_0015",
            "IMG_0016",
            "IMG_0017",
            "IMG_0024",
            "IMG_0037",
            "IMG_0037a",
            "IMG_0045",
            "IMG_0056",
            "IMG_0058",
            "IMG_0175",
        ),
        "FOLDER/<clip>.mov, or FOLDER/<clip>/<frame>.png",
        "the original high-speed videos of Su et al., 2017: http://www.cs.ubc.ca/labs/imager/tr/2017/"
        "DeepVideoDeblurring/DeepVideoDeblurring_Dataset_Original_High_FPS_Videos.zip",
    ),
}
"""By the names of ``stif-rt eval --dataset``. The splits are those that the paper's authors publish."""


def find_dataset(name: str | None, folders: Sequence[Path]) -> dict[str, Path]:
    """The clips of a data set by name, or for None all clips at or below the folders.

    Raises:
        ValueError: for an unknown data set, or a clip of it that is there more than once.
        FileNotFoundError: if none of the clips is there, saying what to download. If some are there, what is missing is
            logged as a warning.
    """
    if name is None:
        return name_clips(folders)
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; there are: {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    candidates: dict[str, dict[Path, Path]] = {clip: {} for clip in dataset.clips}  # by resolved path
    for folder in folders:
        for path in find_clips(folder) if folder.exists() else ():
            parents = () if path == folder else path.relative_to(folder).parts[:-1]
            stem = path.name if path.is_dir() else path.stem
            clip = next((part for part in (stem, *reversed(parents)) if part in dataset.clips), None)
            if clip is not None:
                candidates[clip].setdefault(path.resolve(), path)
    found = {clip: _only(clip, list(paths.values())) for clip, paths in candidates.items() if paths}
    if not found:
        raise FileNotFoundError(
            f"none of the clips of {name} is below {', '.join(map(str, folders))}. Get {dataset.source}, and arrange "
            f"it as {dataset.layout}, with the clips {', '.join(dataset.clips)}"
        )
    if missing := [clip for clip in dataset.clips if clip not in found]:
        log.warning("%s is not complete, its figures compare with no published ones: no %s", name, ", ".join(missing))
    return found


def _only(clip: str, paths: list[Path]) -> Path:
    """The one path of a clip; of several, such as Vid4's with their small copies, the one below ``GT``."""
    originals = [path for path in paths if "GT" in path.parts[:-1]] or paths
    if len(originals) > 1:
        raise ValueError(f"{clip} is there more than once, as {' and '.join(map(str, originals))}: give the one to use")
    return originals[0]


def load_dataset(
    name: str | None, folders: Sequence[Path], cache: Path, downscale: float, max_cache: int = MAX_CACHE
) -> list[Clip]:
    """The clips of a data set, or all clips for None; errors as of ``find_dataset`` and ``load_named_clips``."""
    return load_named_clips(find_dataset(name, folders), cache, downscale, max_cache)
