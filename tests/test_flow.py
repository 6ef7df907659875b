import colorsys
import math

import numpy as np
import pytest
import torch

from stif_rt import flow_to_image


def test_colours_are_those_of_the_wheel():
    turns = torch.arange(24) / 24
    lengths = torch.tensor([0.0, 1.0, 2.0, 5.0])
    angle = 2 * math.pi * turns
    flow = lengths[:, None] * torch.stack([angle.cos(), angle.sin()])[:, None]
    image = flow_to_image(flow, largest=4)
    assert (image.shape, image.dtype) == ((4, 24, 3), torch.uint8)
    for row, length in enumerate(lengths.tolist()):
        for column, hue in enumerate(turns.tolist()):
            expected = colorsys.hsv_to_rgb(hue, min(length / 4, 1), 1)
            assert image[row, column].tolist() == pytest.approx([255 * c for c in expected], abs=1)


def test_the_first_frame_of_a_pair_is_shown():
    flow = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flow_to_image(flow, 2), flow_to_image(flow[:, :2], 2))
    flow[..., :3, :] = torch.nan
    assert (flow_to_image(flow)[:, :3] == 255).all()


def test_by_default_few_are_beyond_the_scale():
    flow = torch.zeros(2, 10, 100)
    flow[0] = torch.linspace(0, 9.9, 1000).view(10, 100)
    flow[0, 9, 99] = 1e6
    assert torch.equal(flow_to_image(flow), flow_to_image(flow, float(flow[0].flatten().sort().values[989])))
    assert (flow_to_image(torch.zeros(2, 3, 4)) == 255).all()


@pytest.mark.parametrize(
    ("shape", "largest"), [((3, 4, 5), 1), ((4, 5), 1), ((2, 0, 5), 1), ((2, 4, 5), 0), ((2, 4, 5), float("nan"))]
)
def test_what_is_no_flow_is_refused(shape, largest):
    with pytest.raises(ValueError, match=r"a flow is|positive number"):
        flow_to_image(torch.zeros(shape), largest)


def test_what_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match=r"not a ndarray; give torch\.as_tensor\(flow\)"):
        flow_to_image(np.zeros((2, 4, 5)))
