"""The whole of an evaluation: every window of every clip by every method, and a strip of crops for each clip."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from stif_rt.data.clips import Clip
from stif_rt.evaluation.methods import BASELINE, Method, Window, bicubic
from stif_rt.evaluation.metrics import SsimWindow
from stif_rt.evaluation.paper import Reproduction
from stif_rt.evaluation.protocol import Pictures, Result, count_windows, render, score_pictures, windows
from stif_rt.evaluation.tables import write_strip


@dataclass(frozen=True)
class Plan:
    """The numbers of an evaluation.

    lengths: frames of a window. scales: spatial ones. most: windows of each clip, None for all that follow each other.
    ssim: which kind of SSIM to compute, None for none.
    """

    lengths: Collection[int] = (3,)
    scales: Collection[float] = (4.0,)
    most: int | None = 16
    ssim: SsimWindow | None = None

    def count(self, clips: list[Clip]) -> int:
        """The number of windows, over all lengths and scales."""
        return len(self.scales) * sum(count_windows(clips, length, self.most) for length in self.lengths)


def run_evaluation(
    clips: list[Clip],
    methods: Mapping[str, Method],
    plan: Plan,
    strips: Path | None = None,
    advance: Callable[[], object] = lambda: None,
    paper: Reproduction | None = None,
) -> list[Result]:
    """The scores of every window.

    Args:
        clips: what is evaluated.
        methods: besides the baseline, by name.
        plan: lengths, scales and the number of windows.
        strips: folder for one strip of crops of each clip, length and scale: of the window that changes most.
        advance: called after each window.
        paper: the table of the paper that this is for; methods that are its rows make the frames it needs, and those
            that cannot do so are noted there.

    Raises:
        ValueError: where no clip is long enough, or a method returns something else than its pictures.
    """
    if not plan.count(clips):
        raise ValueError(f"no clip has {min(plan.lengths)} frames without a scene cut")
    results = []
    for scale in plan.scales:
        for length in plan.lengths:
            busiest: dict[str, float] = {}  # by clip, how much the window of its strip changes
            for window in windows(clips, length, scale, plan.most):
                pictures = render_all(window, methods, paper)
                results.append(score_pictures(window, pictures, plan.ssim))
                if strips is not None and _change(window) > busiest.get(window.clip, -1):
                    busiest[window.clip] = _change(window)
                    write_strip(strips, window, pictures)
                advance()
    return results


def render_all(window: Window, methods: Mapping[str, Method], paper: Reproduction | None) -> dict[str, Pictures]:
    """The pictures of the baseline and of all methods that take part, by method."""
    length = len(window.truth)
    every = list(range(length))
    if paper is None:
        wanted = {BASELINE: every} | dict.fromkeys(methods, every)
    else:
        wanted = paper.numbers(length, window.scale)
        wanted = {BASELINE: sorted({0, length - 1}.union(*wanted.values()))} | wanted
    all_methods = {BASELINE: bicubic, **methods}
    pictures = {}
    for name, numbers in wanted.items():
        try:
            pictures[name] = render(window, all_methods[name], name, numbers)
        except ValueError as error:
            if paper is None or not paper.give_up(name, length, window.scale, str(error)):
                raise
    return pictures


def _change(window: Window) -> float:
    """Mean absolute difference of the first and the last frame."""
    return float((window.truth[-1] - window.truth[0]).abs().mean())
