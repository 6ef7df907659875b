"""STIF as a VapourSynth filter: any frame rate, any size, any part of the picture.

::

    import vapoursynth as vs
    from stif_rt.vapoursynth import stif

    clip = vs.core.resize.Bicubic(clip, format=vs.RGBS, matrix_in_s="709")
    clip = stif(clip, scale=2, fps_num=60)
"""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import vapoursynth as vs
from numpy.typing import NDArray

from stif_rt.errors import show
from stif_rt.frame_requests import (
    NEIGHBOURS,
    SCENE_CHANGE_NEXT,
    PairCache,
    Position,
    Timeline,
    Window,
    luma_size,
    make_timeline,
    make_window,
    output_properties,
    scene_begins,
)
from stif_rt.runtime import Pair, Runtime
from stif_rt.video.cuts import THRESHOLD


def stif(
    clip: vs.VideoNode,
    scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    factor_num: int = 1,
    factor_den: int = 1,
    fps_num: int | None = None,
    fps_den: int | None = None,
    src_left: float = 0,
    src_top: float = 0,
    src_width: float | None = None,
    src_height: float | None = None,
    sc: bool = True,
    sc_threshold: float | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    max_memory: int | str = 1 << 30,
) -> vs.VideoNode:
    """The clip at another frame rate and size.

    A frame that is asked for at a source frame's own time and size is that source frame. Values outside [0, 1] are
    clamped in all others.

    Args:
        clip: RGBS or RGBH, of constant size; the result has the same format.
        scale: Output pixels per source pixel, 1 where no size is given either.
        width, height: Of the output; with one of them the other one keeps the shape.
        factor_num, factor_den: Output frames per source frame.
        fps_num, fps_den: Output frames per second instead; ``fps_den`` is 1 by default.
        src_left, src_top, src_width, src_height: The part of the source that is shown, in source pixels, by default the
            whole; it falls on the nearest output pixels.
        sc: Interpolate nothing across scene cuts: frames there show the nearer source frame. Cuts are where the
            property ``_SceneChangeNext`` says; on frames without it they are detected.
        sc_threshold: Detect cuts whatever the properties say, fewer above 0.6, more below.
        weights: A weights file or a bundle, None for the bundled weights.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32``, ``float16`` or ``bfloat16``.
        max_memory: Bytes, or words such as "1GB": what a picture is rendered in, and as much again for encoded pairs.

    Raises:
        vapoursynth.Error: The clip has another format, an argument is unusable, or the device or the weights are.
    """
    try:
        _check_format(clip)
        inputs = clip.height, clip.width
        window = make_window(inputs, scale, width, height, src_left, src_top, src_width, src_height)
        timeline = make_timeline(clip.num_frames, Fraction(clip.fps), factor_num, factor_den, fps_num, fps_den)
        threshold = _check_threshold(sc_threshold)
        runtime = Runtime.load(weights, device=device, dtype=dtype, max_memory=max_memory)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise vs.Error(f"stif: {error}") from error
    if sc:
        clip = _with_scene_changes(clip, threshold, always=sc_threshold is not None)
    return _rendered(clip, timeline, window, runtime, sc)


def _check_format(clip: vs.VideoNode) -> None:
    if not isinstance(clip, vs.VideoNode):
        raise TypeError(f"clip must be a video clip, not {show(clip)}")
    if clip.format is None or not clip.width or not clip.height:
        raise ValueError("the clip changes its format or size; bring it to one with resize, format=vs.RGBS")
    if clip.format.id not in (vs.RGBS, vs.RGBH):
        yuv = ', matrix_in_s="709"' if clip.format.color_family == vs.YUV else ""
        remedy = f"clip.resize.Bicubic(format=vs.RGBS{yuv})"
        raise ValueError(f"the clip must be RGBS or RGBH, not {clip.format.name}; give {remedy}")


def _check_threshold(threshold: float | None) -> float:
    value = THRESHOLD if threshold is None else threshold
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"sc_threshold must be a number, not {show(threshold)}")
    return value


def _with_scene_changes(clip: vs.VideoNode, threshold: float, always: bool) -> vs.VideoNode:
    """The clip with ``_SceneChangeNext`` on every frame; ``always`` replaces those that it brings."""
    height, width = luma_size((clip.height, clip.width))
    luma = clip.resize.Bilinear(width, height, format=vs.GRAY8, matrix_s="709", range_s="full")
    first, last, fps = NEIGHBOURS.start, clip.num_frames - 1, Fraction(clip.fps)

    def neighbour(offset: int) -> vs.VideoNode:
        """The clip of which frame n is n + offset, at its ends those of the clip."""
        if offset <= 0:
            return luma if not offset else luma[0] * -offset + luma
        return luma[min(offset, last) :]

    def detect(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        frame = f[0].copy()
        inside = [plane for offset, plane in zip(NEIGHBOURS, f[1:], strict=True) if 0 <= n + offset <= last]
        lumas = [np.asarray(plane[0]) for plane in inside]
        frame.props[SCENE_CHANGE_NEXT] = int(n < last and scene_begins(lumas, min(n, -first) + 1, fps, threshold))
        return frame

    detected = clip.std.ModifyFrame([clip, *map(neighbour, NEIGHBOURS)], detect)
    if always:
        return detected

    def choose(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        return clip if SCENE_CHANGE_NEXT in f.props else detected

    return clip.std.FrameEval(choose, prop_src=[clip], clip_src=[clip, detected])


def _rendered(clip: vs.VideoNode, timeline: Timeline, window: Window, runtime: Runtime, sc: bool) -> vs.VideoNode:
    """The output clip; ``clip`` has ``_SceneChangeNext`` on its frames where ``sc``."""
    fps = timeline.fps
    blank = clip.std.BlankClip(
        width=window.region[3],
        height=window.region[2],
        length=timeline.length,
        fpsnum=fps.numerator,
        fpsden=fps.denominator,
        keep=True,
    )
    longer = clip.std.BlankClip(length=timeline.length, keep=True)
    before = longer.std.FrameEval(lambda n: clip[timeline.position(n).before], clip_src=[clip])
    after = longer.std.FrameEval(lambda n: clip[timeline.position(n).after], clip_src=[clip])
    pairs: PairCache[Pair] = PairCache(runtime.max_memory, lambda pair: pair.nbytes)

    def render(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        output, first, second = f[0].copy(), f[1], f[2]
        position = timeline.position(n)
        if sc and first.props.get(SCENE_CHANGE_NEXT):
            position = position.held()
            first, second = (first, first) if position.t == 0 else (second, second)
        try:
            planes = _picture(runtime, pairs, position, window, first, second)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise vs.Error(f"stif: source frames {position.before} and {position.after}: {error}") from None
        for plane, values in enumerate(planes):
            np.copyto(np.asarray(output[plane]), values, casting="same_kind")
        properties = output_properties(dict(first.props), dict(second.props), position, timeline, window.stretch)
        output.props.clear()
        output.props.update(properties)
        return output

    return blank.std.ModifyFrame([blank, before, after], render)


def _picture(
    runtime: Runtime,
    pairs: PairCache[Pair],
    position: Position,
    window: Window,
    first: vs.VideoFrame,
    second: vs.VideoFrame,
) -> NDArray[Any]:
    """The planes of an output frame, [3, height, width]."""
    y, x, height, width = window.region
    if position.t in (0, 1) and window.picture == (first.height, first.width):
        return _planes(first if position.t == 0 else second)[:, y : y + height, x : x + width]
    frames = [_planes(frame).astype(np.float32).clip(0, 1) for frame in (first, second)]
    pair = pairs.get(position[:2], lambda: runtime.encode(*frames))
    picture = pair.render(float(position.t), size=window.picture, region=window.region).cpu().numpy()
    if all((frame == frame[0]).all() for frame in frames):  # the network may tint what has no colour
        picture = np.broadcast_to(picture.mean(0), picture.shape)
    return picture


def _planes(frame: vs.VideoFrame) -> NDArray[Any]:
    return np.stack([np.asarray(frame[plane]) for plane in range(3)])
