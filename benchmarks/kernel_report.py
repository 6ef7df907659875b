"""What the GPU kernels become for each generation of GPUs, and how long a frame takes by that: no GPU is needed.

``python -m benchmarks.kernel_report`` compiles the two passes and the deformable convolution, disassembles them, and
prints registers, shared memory, resident warps and instructions. The time is a roofline from the instructions that one
720p frame executes: each unit's work over its published rate, of which the largest counts. It knows no waiting.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from stif_rt.model.config import CHANNELS, CONFIGS, Config
from stif_rt.ops.implicit.gpu import Layers
from stif_rt.ops.implicit.triton_backend import OUT_PADDED, Launch, launches

FRAME = (720, 1280)
DTYPES = {"float16": (torch.float16, "fp16"), "bfloat16": (torch.bfloat16, "bf16"), "float32": (torch.float32, "fp32")}
KERNELS = ("implicit_kernel", "decode_kernel")
"""The two passes by Triton."""
CUDA_KERNELS = ("implicit_float16", "decode_float16")
"""The two passes in CUDA C++."""
NETWORKS = {"stif": Config(residual=True), **{name: CONFIGS[name] for name in ("stif-s", "stif-i")}}
"""What is compiled; the paper's decoder with the residual, the larger form."""


def layers_of(config: Config, name: str) -> Layers:
    layers = Layers.of(getattr(config, f"{name}_widths"))
    assert layers is not None
    return layers


def work(kernel: str, config: Config) -> tuple[int, int]:
    """Multiply-adds in matrix products, and sines, per output pixel.

    Outputs of few channels are padded to 16; those of a decoder with a last layer are left to FMA.
    """

    def network(name: str, inputs: int, outputs: int) -> tuple[int, int]:
        layers = layers_of(config, name)
        widths = [width for width in (layers.wide, layers.last) if width]
        sizes = [CHANNELS] * (1 + layers.plain) + widths + ([] if layers.last else [outputs])
        products = inputs * CHANNELS + sum(a * b for a, b in itertools.pairwise(sizes))
        return products, CHANNELS * (1 + layers.plain) + sum(widths)

    if kernel.startswith("decode"):
        return network("decoder", 2 * CHANNELS, OUT_PADDED)
    sif, tif = network("sif", 0, CHANNELS), network("tif", CHANNELS, OUT_PADDED)
    return sif[0] + tif[0], sif[1] + tif[1]


@dataclass(frozen=True)
class Gpu:
    """Published rates. clock: GHz, boost. tensor: dense TFLOP/s of 16-bit operands summed up in float32.

    fp32: lanes per multiprocessor. memory, bus: GB/s, of the GPU's memory and of its link to the host, one way.
    load_store: bytes per clock of a multiprocessor's load/store units.
    """

    name: str
    capability: int
    multiprocessors: int
    clock: float
    tensor: float
    fp32: int
    memory: float
    bus: float
    load_store: int = 128


GPUS = (
    Gpu("T4", 75, 40, 1.59, 65, 64, 320, 13, load_store=64),
    Gpu("A100", 80, 108, 1.41, 312, 64, 1555, 25),
    Gpu("RTX 3090", 86, 82, 1.695, 71, 128, 936, 25),
    Gpu("RTX 4090", 89, 128, 2.52, 165, 128, 1008, 25),
    Gpu("H100", 90, 132, 1.83, 989, 128, 3350, 50),
    Gpu("RTX 5090", 120, 170, 2.41, 209, 128, 1792, 50),
    Gpu("B200", 100, 148, 1.85, 2250, 128, 8000, 50),
)

SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""Shared memory that a block can have, KiB, by compute capability."""
WARPS = {75: 32, 80: 64, 86: 48, 89: 48, 90: 64, 100: 64, 120: 48}
"""Warps that a multiprocessor can hold."""
REGISTERS = 65536
TENSOR_MEMORY = 512
"""Columns of a multiprocessor's tensor memory (compute capability 10.0)."""


@dataclass(frozen=True)
class Report:
    """One compiled kernel. counts: instructions that a warp executes, by opcode; the others are of a block."""

    kernel: str
    network: str
    capability: int
    dtype: str
    registers: int
    stack: int
    shared: int
    threads: int
    tensor_memory: int
    instructions: int
    code: int
    counts: Counter[str]
    opcodes: frozenset[str]
    bytes_moved: float
    pixels: int

    @property
    def resident_warps(self) -> int:
        """Warps that a multiprocessor holds at once."""
        per_block = self.threads // 32
        per_warp = -(-self.registers * 32 // 256) * 256
        blocks = [WARPS[self.capability] // per_block, REGISTERS // per_warp // per_block]
        blocks.append((SHARED[self.capability] + 1) * 1024 // (self.shared + 1024))
        if self.tensor_memory:
            blocks.append(TENSOR_MEMORY // self.tensor_memory)
        return min(blocks) * per_block

    @property
    def multiply_adds(self) -> int:
        """Those of matrix instructions per pixel, padding included; 0 where the opcode does not say their size."""
        total = 0
        for opcode, count in self.counts.items():
            if match := re.match(r"HMMA\.(\d{4,5})\.", opcode):
                shape = {"1688": 16 * 8 * 8, "16816": 16 * 8 * 16}[match[1]]
                total += shape * count * self.threads // 32
            elif match := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", opcode):
                total += int(match[1]) * int(match[2]) * int(match[3]) * count * self.threads // 128
        return total // self.pixels

    def count(self, *names: str) -> int:
        return sum(count for opcode, count in self.counts.items() if opcode.split(".")[0] in names)


def signature(kernel: Any, dtype: str, constants: dict[str, Any]) -> tuple[dict[str, str], dict[Any, Any]]:
    """Types and alignments of a kernel's arguments, as a launch would find them."""
    types, attributes = {}, {}
    integers = ("nearest_index_y_ptr", "nearest_index_x_ptr")
    half = (
        "nearest_map_ptr",
        "bilinear_map_ptr",
        "entry_weights_ptr",
        "tif_weights_ptr",
        "feature_ptr",
        "decoder_map0_ptr",
        "decoder_map1_ptr",
    )
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in constants:
            types[name] = "constexpr"
        elif parameter.do_not_specialize:
            types[name] = "i32"
        elif name.startswith(("origin", "step", "extent", "unit", "scale")) or name in ("pixel_size", "stride"):
            types[name] = "fp32"
        else:
            types[name] = "*i64" if name in integers else f"*{dtype}" if name in (*half, "weights_ptr") else "*fp32"
            attributes[(index,)] = [["tt.divisibility", 16]]
    return types, attributes


def flags_of(kernel: str, config: Config) -> dict[str, bool | int]:
    """The constants by which a kernel becomes a network's."""
    if kernel == "implicit_kernel":
        flags: dict[str, bool | int] = {"SIF": True, "GIVEN": False, "TIF": True, "VELOCITY": config.motion}
        for name in ("sif", "tif"):
            layers = layers_of(config, name)
            flags |= {f"{name.upper()}_PLAIN": layers.plain, f"{name.upper()}_WIDE": layers.wide}
        return flags
    plain, wide, last = layers_of(config, "decoder")
    flags = dict.fromkeys(("FEATURE", "FLOW", "AGGREGATION", "RESIDUAL"), True)
    return flags | {"BICUBIC": config.bicubic, "BLEND": config.blend, "PLAIN": plain, "WIDE": wide, "LAST": last}


def compile_triton(
    kernel: str,
    capability: int,
    dtype: str,
    network: str = "stif",
    launch: Launch | None = None,
    **without: bool | int | None,
) -> Report:
    """Compiles one pass of one of NETWORKS for a GPU. without: flags and maps that differ, or are missing."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from stif_rt.ops.implicit import triton_kernels

    torch_dtype, name = DTYPES[dtype]
    if launch is None:
        launch = launches(divmod(capability, 10), torch_dtype).of(kernel, layers_of(NETWORKS[network], "decoder"))
    flags = flags_of(kernel, NETWORKS[network]) | without
    constants = {**flags, **launch.constants}
    if kernel == "implicit_kernel" and not flags["VELOCITY"]:
        constants["velocity_ptr"] = None
    function = getattr(triton_kernels, kernel)
    types, attributes = signature(function, name, constants)
    source = ASTSource(function, types, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    widest = max(width for name, width in flags.items() if name.endswith("WIDE") and width is not None)
    return analyse(
        compiled.asm["cubin"],
        kernel=kernel,
        network=network,
        capability=capability,
        dtype=dtype,
        shared=compiled.metadata.shared,
        threads=32 * launch.warps,
        tensor_memory=getattr(compiled.metadata, "tmem_size", None) or 0,
        pixels=launch.rows * launch.columns,
        trips=max(1, widest // launch.block_k),
    )


def compile_deform_conv(capability: int, dtype: str) -> Report:
    """Compiles the deformable convolution for a GPU; the loop over taps and channels for 64 channels."""
    from stif_rt.ops.deform_conv.cuda import PIXELS, THREADS, compile_kernel

    code = compile_kernel(f"sm_{capability}")
    return analyse(
        code,
        kernel=f"deform_conv_{dtype}",
        network="stif",
        capability=capability,
        dtype=dtype,
        shared=0,
        threads=THREADS,
        tensor_memory=0,
        pixels=PIXELS,
        trips=1,
    )


def compile_cuda(kernel: str, capability: int, network: str = "stif") -> Report:
    """Compiles one pass of one of NETWORKS in CUDA C++ for a GPU."""
    from stif_rt.ops.implicit.cuda_backend import COLUMNS, ROWS, THREADS, compile_kernel

    config = NETWORKS[network]
    return analyse(
        compile_kernel(config, f"sm_{capability}"),
        kernel=kernel,
        network=network,
        capability=capability,
        dtype="float16",
        shared=0,
        threads=THREADS,
        tensor_memory=0,
        pixels=ROWS * COLUMNS,
        trips=cuda_trips(kernel, config),
    )


def cuda_trips(kernel: str, config: Config) -> list[int]:
    """How often the loops with matrix instructions of a pass in CUDA C++ run, in the order in which they begin.

    One over a layer's sines takes 2048 weights of each of its outputs at a time; see ``implicit.cu``.
    """
    if kernel.startswith("implicit"):
        return [layers.wide // 32 for name in ("sif", "tif") if (layers := layers_of(config, name)).wide]
    _, wide, last = layers_of(config, "decoder")
    sines = [wide // CHANNELS, last * wide // 2048] if last else [wide // 32] if wide else []
    return [2, *sines]  # the samples of both frames first


def tool(name: str, *arguments: str) -> str:
    """Output of one of the CUDA tools that come with Triton."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    return subprocess.run([folder / name, *arguments], check=True, capture_output=True, text=True).stdout


def analyse(cubin: bytes, *, kernel: str, shared: int, trips: int | list[int], **known: Any) -> Report:
    """Resources and instructions of one kernel in a cubin.

    trips: how often each of its loops over sines runs; or, of all those with matrix instructions in the order in which
        they begin, how often, where any other loop is over the two frames.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = tool("cuobjdump", "-res-usage", file.name)
        listing = tool("cuobjdump", "-sass", "-fun", kernel, file.name)
    usage_line = re.search(rf"Function {kernel}:\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert usage_line, usage
    registers, stack, static, local = map(int, usage_line.groups())
    lines = [
        (int(address, 16), opcode, rest)
        for address, opcode, rest in re.findall(
            r"/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);", listing
        )
    ]
    loops = [
        (int(target[1], 16), address)
        for address, opcode, rest in lines
        if opcode.startswith("BRA") and (target := re.search(r"0x([0-9a-f]+)", rest)) and int(target[1], 16) < address
    ]
    if isinstance(trips, int):
        # A loop branches back over sines. What follows the end, and short loops, wait for an event: once is enough.
        end = next(address for address, opcode, _ in lines if opcode == "EXIT" and address > lines[-1][0] // 4)
        sines = [address for address, opcode, _ in lines if opcode == "MUFU.SIN"]
        loops = [(a, b) for a, b in loops if b < end and any(a <= sine < b for sine in sines)]
        counted = dict.fromkeys(loops, trips)
    else:
        products = [address for address, opcode, _ in lines if opcode.startswith("HMMA")]
        first = [(a, b) for a, b in sorted(loops) if any(a <= product < b for product in products)]
        counted = dict.fromkeys(loops, 2) | dict(zip(first, trips, strict=True))
    counts: Counter[str] = Counter()
    moved = 0.0
    for address, opcode, _ in lines:
        times = 1
        for (start, end), count in counted.items():
            times *= count if start <= address <= end else 1
        counts[opcode] += times
        moved += times * bytes_of(opcode)
    return Report(
        kernel=kernel,
        registers=registers,
        stack=stack + local,
        shared=max(shared, static),
        instructions=sum(counts.values()),
        code=len(lines) * 16,
        counts=counts,
        opcodes=frozenset(opcode.split(".")[0] for opcode in counts),
        bytes_moved=moved,
        **known,
    )


def bytes_of(opcode: str) -> int:
    """Bytes that a warp's memory instruction moves through the load/store unit."""
    name, *modifiers = opcode.split(".")
    if name in ("LDSM", "STSM"):
        return 128 * int(modifiers[-1]) if modifiers[-1] in "124" else 128
    if name not in ("LDG", "STG", "LDS", "STS", "LDGSTS", "LDL", "STL"):
        return 0
    sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return 32 * next((sizes[m] for m in modifiers if m in sizes), 4)


def roofline(report: Report, gpu: Gpu, pixels: int = FRAME[0] * FRAME[1]) -> dict[str, float]:
    """Milliseconds that each unit needs for a frame."""
    warps = pixels / report.pixels * report.threads / 32
    per_ms = gpu.multiprocessors * gpu.clock * 1e6  # clocks of all multiprocessors in a millisecond
    matrix = 2 * max(report.multiply_adds, work(report.kernel, NETWORKS[report.network])[0]) * pixels
    tensor = bool(report.opcodes & {"HMMA", "HGMMA", "UTCHMMA"})
    # weights and gathered maps come from the second-level cache, what is streamed also from memory
    streamed = 64 * 2 + 16 + (12 if report.kernel.startswith("decode") else 0)
    fp32 = report.count("FFMA", "FADD", "FMUL", "FFMA2", "FADD2", "FMUL2")
    special = report.count("MUFU", "F2I", "I2F", "FRND", "F2F", "I2FP", "F2IP")
    whole = report.count(
        "IMAD", "IADD3", "LOP3", "SHF", "ISETP", "SEL", "FSETP", "FSEL", "PRMT", "F2FP", "LEA", "VIADD"
    )
    return {
        "matrix": matrix / gpu.tensor / 1e9 if tensor else 0.0,
        "special function": special * warps * 32 / 16 / per_ms,
        "float32": fp32 * warps * 32 / gpu.fp32 / per_ms,
        "integer": whole * warps * 32 / 64 / per_ms,
        "issue": report.instructions * warps / 4 / per_ms,
        "load/store": report.bytes_moved * warps / gpu.load_store / per_ms,
        "memory": streamed * pixels / gpu.memory / 1e6,
    }


Job = tuple[str, int, str, str]
"""Kernel, capability, dtype, network."""


def build(job: Job) -> Report:
    kernel, capability, dtype, network = job
    if kernel == "deform_conv":
        return compile_deform_conv(capability, dtype)
    if kernel in CUDA_KERNELS:
        return compile_cuda(kernel, capability, network)
    return compile_triton(kernel, capability, dtype, network)


def jobs(dtypes: tuple[str, ...] = tuple(DTYPES)) -> list[Job]:
    """Every kernel for every generation, where the generation has the dtype; the compact networks in float16 only."""
    return [
        (kernel, capability, dtype, network)
        for capability in SHARED
        for dtype in dtypes
        for network in NETWORKS
        for kernel in (*KERNELS, "deform_conv")
        if not (dtype == "bfloat16" and capability < 80)
        and (network == "stif" or (kernel != "deform_conv" and dtype == "float16"))
    ]


def cuda_jobs() -> list[Job]:
    """The passes in CUDA C++ for every generation."""
    return [
        (kernel, capability, "float16", network)
        for capability in SHARED
        for network in NETWORKS
        for kernel in CUDA_KERNELS
    ]


def build_all(wanted: list[Job], processes: int = 2) -> dict[Job, Report]:
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return dict(zip(wanted, pool.map(build, wanted), strict=True))


COLUMNS = ("registers", "warps", "shared", "stack", "code", "matrix", "sine", "fp32", "gather", "all")


def print_reports(reports: dict[Job, Report]) -> None:
    print(f"{'kernel':24}{'network':>8}{'sm':>4}" + "".join(f"{name:>10}" for name in COLUMNS))
    for report in reports.values():
        values = (
            report.registers,
            report.resident_warps,
            f"{report.shared / 1024:.1f} KiB",
            report.stack,
            f"{report.code / 1024:.0f} KiB",
            report.count("HMMA", "HGMMA", "UTCHMMA"),
            report.count("MUFU"),
            report.count("FFMA", "FADD", "FMUL"),
            report.count("LDG"),
            report.instructions,
        )
        name = report.kernel if report.kernel[-7:] != "_kernel" else f"{report.kernel[:-7]}_triton_{report.dtype}"
        print(f"{name:24}{report.network:>8}{report.capability:>4}" + "".join(f"{value:>10}" for value in values))
    print("warps: that a multiprocessor holds at once. registers, stack (bytes): of a thread. shared: of a block.")
    print("matrix, sine, fp32, gather, all: instructions of that kind that a warp executes.")


def passes_of(gpu: Gpu, dtype: str, network: str) -> list[Job]:
    """The kernels that ``auto`` takes for a frame on a GPU: those in CUDA C++ where they have the dtype."""
    kernels = CUDA_KERNELS if dtype == "float16" else KERNELS
    return [(kernel, gpu.capability, dtype, network) for kernel in kernels]


def print_roofline(reports: dict[Job, Report], dtype: str, network: str) -> None:
    size = f"{FRAME[1]}x{FRAME[0]}"
    print(f"\nOne frame of {size} by {network}, {dtype}: milliseconds that the limiting unit needs, from instructions")
    for gpu in GPUS:
        passes = [roofline(reports[job], gpu) for job in passes_of(gpu, dtype, network)]
        parts = [f"{(unit := max(p, key=p.__getitem__))} {p[unit]:.2f}" for p in passes]
        total = sum(max(p.values()) for p in passes)
        print(f"{gpu.name:10} {total:6.2f} ms   pass 1: {parts[0]:24} pass 2: {parts[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=tuple(DTYPES), action="append", help="default: all")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    dtypes = tuple(options.dtype or DTYPES)
    wanted = jobs(dtypes) + (cuda_jobs() if "float16" in dtypes else [])
    reports = build_all(wanted, options.processes)
    print_reports(reports)
    for dtype in dtypes:
        for network in NETWORKS:
            if (KERNELS[0], 80, dtype, network) in reports and dtype != "bfloat16":
                print_roofline(reports, dtype, network)


if __name__ == "__main__":
    main()
