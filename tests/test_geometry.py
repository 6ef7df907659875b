import numpy as np
import pytest
import torch
from helpers.cases import CASES

from stif_rt.geometry import LIMIT, make_axis, to_pixels, warp_coordinates

AXES = sorted({(n, N) for case in CASES for n, N in zip(case.inputs, case.outputs, strict=True)} | {(180, 1234)})


@pytest.mark.parametrize(("inputs", "outputs"), AXES)
def test_cells_and_positions(inputs, outputs):
    axis = make_axis(inputs, outputs, "corners")
    exact = (2 * np.arange(outputs) + 1) * inputs / (2 * outputs) - 0.5
    np.testing.assert_allclose(axis.source_coords.numpy(), exact, atol=1e-5 * inputs)
    assert np.abs(axis.nearest_index.numpy() - exact).max() <= 0.5 + 1e-5 * inputs
    np.testing.assert_allclose(axis.cell_offset.numpy(), 2 * (exact - axis.nearest_index.numpy()), atol=2e-5 * inputs)


def test_ties_go_to_the_even_cell():
    assert make_axis(24, 37, "corners").nearest_index[18] == 12
    assert make_axis(16, 53, "corners").nearest_index[26] == 8


def test_ties_follow_float32_rounding():
    """The published program's own order of operations, written out."""
    n, N = 48, 100
    y = np.float32(-1 + 1 / N) + np.float32(2 / N) * np.arange(N, dtype=np.float32)
    cells = np.rint((y + 1) * np.float32(n) / np.float32(2) - np.float32(0.5)).astype(int)
    assert make_axis(n, N, "corners").nearest_index.tolist() == cells.clip(0, n - 1).tolist()


@pytest.mark.parametrize("size", [1, 2, 7, 640])
def test_centre_grid_has_zero_flow_as_identity(size):
    axis = make_axis(3, size, "centres")
    pixels = to_pixels(warp_coordinates(torch.zeros(size), axis, 0, 0), size)
    torch.testing.assert_close(pixels, torch.arange(size).float(), atol=1e-6 * size + 1e-6, rtol=0)


@pytest.mark.parametrize("size", [2, 7, 640])
def test_corner_grid_reads_what_the_formula_says(size):
    axis = make_axis(3, size, "corners")
    flow = torch.linspace(-0.2, 0.3, size)
    pixels = to_pixels(warp_coordinates(flow, axis, 0, 0), size)
    expected = ((torch.arange(size) + flow) * size / (size - 1) - 0.5).clamp(-0.5, size - 0.5)
    torch.testing.assert_close(pixels, expected, atol=1e-6 * size + 1e-6, rtol=0)


def test_one_pixel_reads_the_centre_whatever_its_flow():
    axis = make_axis(5, 1, "corners")
    assert warp_coordinates(torch.tensor([7.0]), axis, 0, 0).tolist() == [0.0]


def test_unusable_flows_stay_inside():
    flow = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30])
    actual = warp_coordinates(flow, make_axis(4, 4, "centres"), 0, 0)
    torch.testing.assert_close(actual, torch.tensor([-LIMIT, LIMIT, -LIMIT, LIMIT]))


def test_a_part_of_the_rows_has_the_same_coordinates():
    axis, flow = make_axis(9, 40, "corners"), torch.randn(40)
    assert torch.equal(warp_coordinates(flow, axis, 0, 0)[11:23], warp_coordinates(flow[11:23], axis, 11, 0))
