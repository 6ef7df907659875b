import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stif_rt.data.resize import degrade, imresize


def by_definition(signal: list[float], outputs: int) -> list[float]:
    """One dimension of imresize, a sum at a time: bicubic with a = -1/2, stretched when shrinking, mirrored ends."""
    n, scale = len(signal), outputs / len(signal)
    shrink = min(scale, 1.0)

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    result = []
    for i in range(outputs):
        centre = (i + 0.5) / scale - 0.5
        taps = range(int(centre - 2 / shrink) - 2, int(centre + 2 / shrink) + 3)
        weights = [kernel((centre - k) * shrink) for k in taps]
        values = [signal[k % (2 * n) if k % (2 * n) < n else 2 * n - 1 - k % (2 * n)] for k in taps]
        result.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return result


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(8, 2), (8, 4), (9, 4), (16, 5), (4, 8), (5, 13), (3, 1), (1, 4), (7, 7)]
)
def test_matches_the_definition(inputs, outputs):
    signal = np.random.default_rng(0).random(inputs).tolist()
    image = torch.tensor(signal)
    expected = torch.tensor(by_definition(signal, outputs))
    torch.testing.assert_close(imresize(image[None], (1, outputs))[0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(imresize(image[:, None], (outputs, 1))[:, 0], expected, atol=1e-6, rtol=0)


def test_values_worked_out_by_hand():
    """A step shrunk to half: the stretched kernel's weights at distances 1/4, 3/4, 5/4, 7/4 are
    111/128, 29/128, -9/128, -3/128, each halved."""
    step = torch.tensor([[0.0, 0, 0, 0, 1, 1, 1, 1]])
    right = (111 + 111 + 29 - 9 - 3) / 256  # the pixel just right of the edge: all weights but three on its left
    expected = torch.tensor([[-3 / 256, 1 - right, right, 1 + 3 / 256]])
    torch.testing.assert_close(imresize(step, (1, 4)), expected, atol=1e-6, rtol=0)


def test_agrees_with_another_implementation_away_from_the_border():
    image = torch.rand(1, 3, 64, 80)
    other = F.interpolate(image, (16, 20), mode="bicubic", antialias=True)
    torch.testing.assert_close(imresize(image, (16, 20))[..., 3:-3, 3:-3], other[..., 3:-3, 3:-3], atol=1e-5, rtol=0)


def test_constant_stays_and_same_size_is_identity():
    torch.testing.assert_close(imresize(torch.full((3, 9, 7), 0.3), (4, 20)), torch.full((3, 4, 20), 0.3))
    image = torch.rand(2, 3, 5, 6)
    torch.testing.assert_close(imresize(image, (5, 6)), image)


def test_degraded_frames_are_what_a_file_can_hold():
    image = torch.zeros(3, 8, 8)
    image[:, :, 4:] = 1  # overshoots
    low = degrade(image, (2, 2))
    assert low.min() >= 0
    assert low.max() <= 1
    torch.testing.assert_close(low * 255, (low * 255).round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("region", [(0, 0, 13, 21), (3, 5, 4, 7), (12, 20, 1, 1), (0, 14, 13, 7)])
@pytest.mark.parametrize("inputs", [(6, 9), (40, 50)], ids=["larger", "smaller"])
def test_region_is_that_part_of_the_whole(inputs, region):
    image = torch.rand(3, *inputs, generator=torch.Generator().manual_seed(0))
    y, x, height, width = region
    whole = imresize(image, (13, 21))
    torch.testing.assert_close(imresize(image, (13, 21), region), whole[:, y : y + height, x : x + width])
