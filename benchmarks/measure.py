"""What the figures share: the lines to measure, samples in a file that can be resumed, memory, the machine."""

import csv
import ctypes
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.interface import Method, Setup, Unsupported
from benchmarks.methods import METHODS, find_method
from benchmarks.peers import PEERS
from stif_rt.dtypes import DTYPES, parse_dtype
from stif_rt.files import write_whole
from stif_rt.model.config import Config
from stif_rt.ops.native import cpu_features
from stif_rt.runtime import choose_device
from stif_rt.speed import backend_of

console = Console(stderr=True)
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Line:
    """One line of a figure: a method in one dtype. kernels: the runtime's backend, empty for the others."""

    method: str
    dtype: str
    kernels: str = ""

    @property
    def label(self) -> str:
        backend = f" ({self.kernels})" if self.kernels else ""
        return f"{find_method(self.method)[0]}{backend}, {self.dtype}"


def plan(methods: list[str], dtypes: list[str], kernels: list[str], device: torch.device) -> list[Line]:
    """All combinations, each once. Raises ValueError for unknown names."""
    for name in methods:
        find_method(name)
    for name in dtypes:
        if name not in DTYPES:
            raise ValueError(f"unknown dtype {name!r}; there are: {', '.join(DTYPES)}")
    lines = []
    for method in methods:
        for dtype in dtypes:
            backends = [backend_of(name, Config(), device, parse_dtype(dtype)) for name in kernels]
            lines += [Line(method, dtype, name) for name in (backends if method == "stif-rt" else [""])]
    return list(dict.fromkeys(lines))


class Loaded:
    """Methods, built when first used and then kept."""

    def __init__(self, device: torch.device, compile: bool, weights: list[str]) -> None:
        self.device, self.compile = device, compile
        self.weights: dict[str, Path] = {}
        for text in weights:
            name, _, path = text.partition("=")
            if name not in PEERS or not Path(path).is_file():
                raise ValueError(f"--weights {text}: give NETWORK=FILE, the network one of {', '.join(PEERS)}")
            self.weights[name] = Path(path)
        self._methods: dict[Line, Method] = {}
        self._warm: set[Line] = set()

    def __call__(self, line: Line) -> Method:
        """Raises Unsupported where it cannot run here."""
        if line not in self._methods:
            kernels = line.kernels or "auto"
            setup = Setup(self.device, parse_dtype(line.dtype), kernels, self.compile, self.weights)
            self._methods[line] = find_method(line.method)[1](setup)
        return self._methods[line]

    def warm_up(self, line: Line, work: Callable[[], object]) -> None:
        """Does it the first time that the method is used: libraries load, kernels compile, memory is obtained."""
        if line not in self._warm:
            work()
            self._warm.add(line)


class Results:
    """Samples in DIR/NAME.json, saved after each one; a later run with the same settings goes on where it ended.

    A sample is a dictionary with the keys of its ``Line``, those of what was asked, ``round``, and what was measured or
    ``error``. ``runs`` says which command on which commit made it.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any], device: torch.device, fresh: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.json"
        self.content: dict[str, Any] = {"settings": settings, "machine": machine(device), "runs": [], "samples": []}
        if self.path.exists() and not fresh:
            stored = json.loads(self.path.read_text())
            for key in ("settings", "machine"):
                if stored[key] != self.content[key]:
                    raise ValueError(
                        f"{self.path} holds measurements of another kind ({key}: {stored[key]}, now "
                        f"{self.content[key]}): give another --output, or --fresh to replace them"
                    )
            self.content = stored
        self.content["runs"].append(this_run())

    @property
    def samples(self) -> list[dict[str, Any]]:
        return self.content["samples"]

    def find(self, line: Line, **point: Any) -> list[dict[str, Any]]:
        wanted = asdict(line) | point
        return [sample for sample in self.samples if all(sample.get(key) == value for key, value in wanted.items())]

    def measure_sample(self, measure: Callable[[], dict[str, Any]], line: Line, **point: Any) -> dict[str, Any] | None:
        """Measures, unless the sample is there or its first round failed. Failures that a figure marks are recorded."""
        first = self.find(line, **(point | {"round": 0}))
        if self.find(line, **point) or (first and "error" in first[0]):
            return None
        with survivable(memory_limit=self.content["machine"]["device"] == "CPU") as failure:
            measured = measure()
        sample = asdict(line) | point | {"run": len(self.content["runs"]) - 1} | (failure or measured)
        self.samples.append(sample)
        self.save()
        return sample

    def lines(self) -> list[Line]:
        """All lines with samples, in the order of METHODS, then two-stage ones by name."""
        lines = {Line(s["method"], s["dtype"], s["kernels"]) for s in self.samples}
        order = {name: number for number, name in enumerate(METHODS)}
        return sorted(lines, key=lambda line: (order.get(line.method, len(order)), *asdict(line).values()))

    def save(self) -> None:
        write_whole(self.path, json.dumps(self.content, indent=1) + "\n")


@contextmanager
def survivable(memory_limit: bool) -> Iterator[dict[str, str]]:
    """Turns lack of memory or support into an entry ``error`` of the dictionary it gives.

    On a CPU the system would end the process instead, so allocations beyond the memory that is free are made to fail.
    """
    failure: dict[str, str] = {}
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if memory_limit and (free := free_memory()) is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + free, before[1]))
    try:
        yield failure
    except (Unsupported, NotImplementedError) as error:
        failure["error"] = f"not supported: {error}"
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if is_out_of_memory(error):
            failure["error"] = "out of memory"
        elif "not implemented for" in text:  # PyTorch's words for an operation without that dtype
            failure["error"] = f"not supported: {text.splitlines()[0]}"
        else:
            raise
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """PyTorch has several kinds of errors for that, on a CPU one that only its words tell."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(words in str(error) for words in ("allocate memory", "not enough memory"))


def status(name: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def free_memory() -> int | None:
    """Bytes that may be allocated: what the machine and its control group have left. None without Linux's /proc."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (most := (group / "memory.max").read_text().strip()) != "max":
        free = min(free, int(most) - int((group / "memory.current").read_text()))
    return free


class PeakMemory:
    """Bytes that were needed at most beyond what was in use when this was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what glibc has kept of freed memory would hide as much
            Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak of resident memory
            self.before = status("VmRSS")

    def bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return max(resource.getpagesize(), status("VmHWM") - self.before)


def machine(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {"device": "CPU", "cpu": cpu_name(), "instructions": cpu_features()}
    facts |= {"threads": torch.get_num_threads(), "system": f"{platform.system()} {platform.machine()}"}
    facts["memory GiB"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
    return facts


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def this_run() -> dict[str, str]:
    program = Path(sys.argv[0])
    start = f"python -m benchmarks.{program.stem}" if program.parent == ROOT / "benchmarks" else program.name
    command = " ".join((start, shlex.join(sys.argv[1:])))
    facts = {"command": command, "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    described = subprocess.run(git, capture_output=True, text=True, check=False)
    facts["commit"] = described.stdout.strip() or "not in a git checkout"
    facts["python"] = platform.python_version()
    return facts | {name: version(name) for name in ("torch", "stif-rt", "numpy")}


def write_csv(path: Path, fields: tuple[str, ...], rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def progress_bar() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console)


def colophon(results: Results) -> list[str]:
    """Markdown: machine, conditions, what failed, and the commands that made the samples."""
    runs = results.content["runs"]
    count = max(sample["round"] for sample in results.samples) + 1
    compiled = "compiled" if results.content["settings"]["compile"] else "not compiled"
    notes = [
        f"Measured on {describe_machine(results.content['machine'])}, at most {count} samples of each point, in turn."
    ]
    notes += [f"All networks run channels last, {compiled}, with stif-rt's deformable convolution.", ""]
    notes += [f"- {error}" for error in sorted({s["error"] for s in results.samples if "error" in s})]
    for run in (runs[n] for n in sorted({sample["run"] for sample in results.samples})):
        notes.append(f"- {run['date']}, commit {run['commit']}, torch {run['torch']}: `{run['command']}`")
    return notes


def describe_machine(facts: dict[str, Any]) -> str:
    if facts["device"] != "CPU":
        return str(facts["device"])
    return f"{facts['cpu']}, {facts['threads']} threads ({facts['instructions']}), {facts['memory GiB']} GiB"


def device_of(name: str) -> torch.device:
    device = choose_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def duration(seconds: float) -> str:
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1, 1e3, "ms"), (1e9, 1, "s")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    raise ValueError(f"{seconds} seconds")


def main(app: typer.Typer) -> None:
    """Runs a command; errors of the user's making become one line and exit status 1."""
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
