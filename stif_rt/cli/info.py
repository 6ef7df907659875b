"""``stif-rt info``."""

import platform
from importlib.metadata import PackageNotFoundError, version

import av
import torch
from rich.console import Console
from rich.table import Table

from stif_rt import __version__
from stif_rt.dtypes import DTYPES, dtype_name, parse_dtype
from stif_rt.engines import ENGINES, bundle_engines
from stif_rt.model.config import Config
from stif_rt.ops import native
from stif_rt.ops.implicit import BACKENDS


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

    table = Table("what", "device", "dtype", "can run", title="Encoder engines and kernels", title_justify="left")
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for device in devices:
        for dtype in map(parse_dtype, DTYPES):
            for engine in ENGINES:
                table.add_row(f"encoder {engine}", device, dtype_name(dtype), "yes")
            for engine, why in bundle_engines(torch.device(device), dtype).items():
                table.add_row(f"encoder {engine} (bundles)", device, dtype_name(dtype), f"no: {why}" if why else "yes")
            for name, module in BACKENDS.items():
                reason = module.unavailable_reason(Config(), torch.device(device), dtype)
                table.add_row(
                    f"kernels {name}", device, dtype_name(dtype), "yes" if reason is None else f"no: {reason}"
                )
    out.print(table)

    library = native.load_library()
    if isinstance(library, str):
        out.print(f"Native CPU kernels: no, {library}. The PyTorch reference serves instead.", highlight=False)
        return
    table = Table("instruction set", "computes in", "can run", title="Native CPU kernels", title_justify="left")
    for isa in library.isas:
        table.add_row(isa.name, dtype_name(isa.dtype), "yes" if isa.unavailable is None else f"no: {isa.unavailable}")
    out.print(table)


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
