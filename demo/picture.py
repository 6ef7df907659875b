"""One PNG of a part of a clip, four times enlarged: at three times between two frames, both frames enlarged by bicubic
filtering and blended, the result, and the flow to the earlier frame as colours (hue: direction; saturation: length).

    python demo/picture.py demo/clip.mp4 out/demo.png
"""

import argparse
import contextlib
from pathlib import Path

import numpy as np
import torch

from stif_rt import Runtime, flow_to_image
from stif_rt.data.resize import imresize
from stif_rt.video.reader import open_reader
from stif_rt.video.writer import write_png

SCALE = 4
TIMES = (0.25, 0.5, 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--pair", type=int, default=5, help="number of the first of the two frames")
    parser.add_argument(
        "--part",
        type=int,
        nargs=4,
        default=(50, 12, 88, 72),
        metavar=("LEFT", "TOP", "WIDTH", "HEIGHT"),
        help="in pixels of the clip",
    )
    arguments = parser.parse_args()
    with contextlib.closing(open_reader(arguments.clip)) as reader:
        first, second = [frame.image for frame in reader][arguments.pair : arguments.pair + 2]
    left, top, width, height = (SCALE * number for number in arguments.part)
    part = top, left, height, width

    pair = Runtime.load().encode(first, second)
    flows = [pair.flow(t, scale=SCALE, region=part)[:2] for t in TIMES]
    longest = max(float(flow.square().sum(0).sqrt().quantile(0.99)) for flow in flows)
    large = [
        imresize(torch.from_numpy(image).movedim(-1, 0) / 255, (SCALE * image.shape[0], SCALE * image.shape[1]))
        for image in (first, second)
    ]
    rows = []
    for t, flow in zip(TIMES, flows, strict=True):
        blend = ((1 - t) * large[0] + t * large[1])[:, top : top + height, left : left + width].clamp(0, 1)
        bicubic = (blend * 255).round().byte().movedim(0, -1).numpy()
        result = pair.render(t, scale=SCALE, region=part, output="uint8").cpu().numpy()
        rows.append(np.concatenate((bicubic, result, flow_to_image(flow, longest).cpu().numpy()), 1))
    write_png(arguments.output, np.concatenate(rows))
    print(f"wrote {arguments.output}: bicubic + blend | stif-rt | flow to the earlier frame, at t = {TIMES}")


if __name__ == "__main__":
    main()
