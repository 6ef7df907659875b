"""``stif-rt info``."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import av
import torch
from rich.console import Console
from rich.table import Table

from stif_rt import __version__
from stif_rt.dtypes import DTYPES, dtype_name, parse_dtype
from stif_rt.engines import BUNDLE_ENGINES, ENGINES, choose_engine
from stif_rt.model.checkpoints import read_checkpoint
from stif_rt.model.config import Config
from stif_rt.ops import native
from stif_rt.ops.implicit import BACKENDS, choose_backend
from stif_rt.runtime import bundled_weights
from stif_rt.runtime.device import choose_device, choose_dtype


def info() -> None:
    """What this machine can run, and why not the rest."""
    out = Console()
    packages = ("torch", "torchvision", "triton", "av", "numpy", "safetensors", "tensorboard")
    facts = [
        ("stif-rt", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((name, installed(name)) for name in packages),
        (
            "FFmpeg",
            ", ".join(f"{k} {'.'.join(map(str, v))}" for k, v in av.library_versions.items() if k != "swresample"),
        ),
        ("CPU", f"{torch.get_num_threads()} threads, {native.cpu_features()}"),
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        facts.append((f"cuda:{index}", f"{properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB"))
    if not torch.cuda.is_available():
        built = f"PyTorch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "PyTorch is a CPU build"
        facts.append(("CUDA", f"not available: {built}, no usable NVIDIA GPU or driver"))
    table = Table("what", "is", title="This machine", title_justify="left")
    for fact in facts:
        table.add_row(*fact)
    out.print(table)

    config = read_checkpoint(bundled_weights())[1] or Config()
    out.print(f"auto takes: {choice(config)}.", highlight=False)
    table = Table("what", "device", "dtypes", title="Can run", title_justify="left")
    refused: dict[str, list[str]] = {}
    for what, device, reasons in candidates(config):
        usable = [name for name, reason in reasons.items() if reason is None]
        if usable:
            table.add_row(what, device, ", ".join(usable))
        for reason in dict.fromkeys(reason for reason in reasons.values() if reason is not None):
            names = [name for name, other in reasons.items() if other == reason]
            some = "" if len(names) == len(reasons) else f" in {', '.join(names)}"
            refused.setdefault(reason, []).append(f"{what} on {device}{some}")
    out.print(table)
    if refused:
        out.print("Cannot run here:")
    for reason, cases in refused.items():
        out.print(f"  {'; '.join(cases)}: {reason}", highlight=False, markup=False, soft_wrap=True)

    library = native.load_library()
    if isinstance(library, str):
        out.print(f"Native CPU kernels: no, {library}. The PyTorch reference serves instead.", highlight=False)
        return
    table = Table("instruction set", "computes in", "can run", title="Native CPU kernels", title_justify="left")
    for isa in library.isas:
        table.add_row(isa.name, dtype_name(isa.dtype), "yes" if isa.unavailable is None else f"no: {isa.unavailable}")
    out.print(table)


def choice(config: Config) -> str:
    """What ``auto`` takes for a network, in words."""
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    kernels = choose_backend(config, device, dtype)
    engine = choose_engine("auto", device, dtype)
    return f"device {device}, dtype {dtype_name(dtype)}, encoder {engine}, kernels {kernels}"


def candidates(config: Config) -> Iterator[tuple[str, str, dict[str, str | None]]]:
    """Everything that a network could run on: its name, its device, and for each dtype why it cannot run, or None."""
    named = {name: parse_dtype(name) for name in DTYPES}
    for device_name in ["cpu"] + (["cuda"] if torch.cuda.is_available() else []):
        device = torch.device(device_name)
        for engine, module in ENGINES.items():
            reasons = {name: module.unavailable_reason(device, dtype) for name, dtype in named.items()}
            yield f"encoder {engine}", device_name, reasons
        for engine, entry in BUNDLE_ENGINES.items():
            reasons = {name: entry.unavailable_reason(device, dtype) for name, dtype in named.items()}
            yield f"encoder {engine} (bundles)", device_name, reasons
        for kernels, module in BACKENDS.items():
            reasons = {name: module.unavailable_reason(config, device, dtype) for name, dtype in named.items()}
            yield f"kernels {kernels}", device_name, reasons


def installed(package: str) -> str:
    """The version of a package, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
