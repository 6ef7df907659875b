"""Peak memory of encoding a pair of frames and rendering a picture: ``python -m benchmarks.encoder_memory``.

Each case runs in a process of its own, whose resident memory at its highest is what is printed, PyTorch included.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch

from stif_rt.cli.options import parse_size
from stif_rt.model.config import CONFIGS
from stif_rt.model.stif import STIF
from stif_rt.runtime import Runtime
from stif_rt.runtime.weights import is_bundled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="3840x2160", help="of the frames")
    parser.add_argument("--scale", type=float, default=2)
    parser.add_argument("--networks", nargs="+", default=["stif-s", "stif-i"], help="configurations, or weights files")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-memory", help="as of Runtime.load")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        measure(given)
        return
    print("network    frames       encode     render   peak memory")
    for network in given.networks:
        subprocess.run(
            [sys.executable, "-m", "benchmarks.encoder_memory", *sys.argv[1:], "--child", network], check=True
        )


def measure(given: argparse.Namespace) -> None:
    """One case, in this process."""
    options = {"device": "cpu", "dtype": given.dtype, "max_memory": given.max_memory}
    torch.manual_seed(0)
    if given.child in CONFIGS and not is_bundled(
        given.child
    ):  # memory does not depend on the weights, though the tiles' halo does
        runtime = Runtime.from_model(STIF(CONFIGS[given.child]), **options)
    else:
        runtime = Runtime.load(given.child, **options)
    width, height = parse_size(given.size, "--size")
    coarse = torch.rand(2, 3, height // 16 + 1, width // 16 + 1)
    frames = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    first, second = (frames * 255).to(torch.uint8)
    del frames
    started = time.perf_counter()
    pair = runtime.encode(first, second)
    encoded = time.perf_counter()
    pair.render(0.5, given.scale, output="uint8")
    rendered = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = f"{encoded - started:8.1f} s {rendered - encoded:8.1f} s"
    print(f"{given.child:10} {given.size:10} {seconds} {peak:8.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
