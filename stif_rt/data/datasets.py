"""The published data sets and their test splits, or any videos and folders of frames."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from stif_rt.data.clips import Clip, find_clips, load_clip

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


def load_dataset(name: str | None, paths: list[Path], cache: Path, downscale: float) -> list[Clip]:
    """The clips of a data set below ``paths``, or all clips there for None.

    Raises ValueError for an unknown name, FileNotFoundError saying what to download where there is none of a data
    set's clips; where some are missing, they are logged as a warning.
    """
    if name is None:
        return [load_clip(path, cache, downscale) for folder in paths for path in find_clips(folder)]
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; there are: {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    found: dict[str, Path] = {}
    for folder in paths:
        for path in find_clips(folder) if folder.exists() else ():
            parts = (path.stem, *reversed(path.relative_to(folder).parts[:-1])) if path != folder else (path.stem,)
            clip = next((part for part in parts if part in dataset.clips), None)
            if clip is not None:
                found.setdefault(clip, path)
    missing = [clip for clip in dataset.clips if clip not in found]
    if not found:
        raise FileNotFoundError(
            f"none of the clips of {name} is below {', '.join(map(str, paths))}. Get {dataset.source}, and arrange it "
            f"as {dataset.layout}, with the clips {', '.join(dataset.clips)}"
        )
    if missing:
        log.warning("%s is not complete, its figures compare with no published ones: no %s", name, ", ".join(missing))
    clips = [clip for clip in dataset.clips if clip in found]
    return [replace(load_clip(found[clip], cache, downscale), name=clip) for clip in clips]
