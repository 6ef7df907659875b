"""Small videos made on the spot."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def picture(n: int, size: tuple[int, int] = (18, 32)) -> np.ndarray:
    """Frame n of a smooth pattern that moves to the right, uint8 [h, w, 3]."""
    y, x = np.mgrid[: size[0], : size[1]]
    waves = [np.sin((x - n) / 4 + c) * np.cos(y / 5 + c) for c in range(3)]
    return np.clip(128 + 90 * np.stack(waves, -1), 0, 255).astype(np.uint8)


def write_video(
    path: Path,
    frames: list[np.ndarray],
    rate: Fraction = Fraction(10),
    times: list[Fraction] | None = None,
    sound: bool = False,
    turned: int = 0,
) -> Path:
    """H.264 in 4:4:4 (nearly lossless), with AAC stereo sound of the same length if asked for.

    turned: degrees counter-clockwise by which players shall turn the pictures.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "4"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv444p"
        if turned:
            stream.set_display_rotation(turned)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=48000, layout="stereo") if sound else None
        for n, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.time_base, frame.pts = Fraction(1, 1000), int(times[n] * 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            samples = int(len(frames) / rate * 48000)
            wave = np.sin(np.arange(samples) * 2 * np.pi * 440 / 48000).astype(np.float32)
            played = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
            played.rate, played.pts = 48000, 0
            container.mux(audio.encode(played))
            container.mux(audio.encode(None))
    return path


def write_images(folder: Path, frames: list[np.ndarray]) -> Path:
    from stif_rt.video.writer import write_png

    folder.mkdir(parents=True)
    for n, image in enumerate(frames):
        write_png(folder / f"{n:03d}.png", image)
    return folder


X264_STEPS = 3
"""Of 255, by which x264 may code one picture differently from run to run: some of its code is not deterministic."""


def same_pictures(frames: Sequence[np.ndarray], others: Sequence[np.ndarray], steps: int = 0) -> bool:
    """Whether two runs made the same pictures: exactly, or to so many steps of 255."""
    pairs = zip(frames, others, strict=True)
    return len(frames) == len(others) and all(np.abs(a.astype(int) - b.astype(int)).max() <= steps for a, b in pairs)
