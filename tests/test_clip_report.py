"""The modelled time of a clip on GPUs: what it counts, against what is known."""

import pytest
import torch

from benchmarks.clip_report import FRAMES, INPUTS, OUTPUTS, SMALLEST, Operation, encoder_operations, model_clip
from benchmarks.kernel_report import GPUS, NETWORKS

H100 = next(gpu for gpu in GPUS if gpu.name == "H100")


def multiply_adds(network):
    """Of a pair whose first frame is known, for each of its pixels, which are padded to whole cells of the pyramid."""
    multiple = NETWORKS[network].multiple
    pixels = [-(-side // multiple) * multiple for side in INPUTS]
    flop = sum(operation.flop for operation in encoder_operations(NETWORKS[network], torch.float16))
    return flop / 2 / (pixels[0] * pixels[1])


@pytest.mark.slow
def test_compact_encoders_keep_to_their_bounds():
    assert 1.5e6 < multiply_adds("stif-s") <= 2.2e6
    assert 0.03e6 < multiply_adds("stif-i") <= 0.06e6


@pytest.mark.slow
def test_every_convolution_is_counted_and_nothing_that_is_free():
    names = [operation.name for operation in encoder_operations(NETWORKS["stif-s"], torch.float16)]
    blocks = 2 * 2 + 2 * 6
    assert names.count("convolution") >= 2 + blocks
    assert not {"view", "expand", "permute", "slice", "detach"} & set(names)


@pytest.mark.parametrize(
    ("operation", "milliseconds"),
    [
        (Operation("convolution", round(10 * H100.tensor * 1e9), 1), 10),
        (Operation("add", 0, round(2 * H100.memory * 1e6)), 2),
        (Operation("add", 0, 4), SMALLEST),
    ],
    ids=["products", "memory", "smallest"],
)
def test_an_operation_takes_what_limits_it(operation, milliseconds):
    clip = model_clip(H100, [operation, operation], [])
    assert clip.encoder == pytest.approx(2 * milliseconds)
    assert clip.frames == 0
    assert clip.upload == pytest.approx(3 * INPUTS[0] * INPUTS[1] / H100.bus / 1e6)
    assert clip.download == pytest.approx(FRAMES * 3 * OUTPUTS[0] * OUTPUTS[1] / H100.bus / 1e6)
    assert FRAMES * clip.per_frame == pytest.approx(clip.upload + clip.encoder + clip.download)
