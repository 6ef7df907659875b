import pytest
import torch
from helpers.deform_conv import SHAPES, inputs, naive

from stif_rt.ops.deform_conv import cpu, deform_conv2d, deform_conv2d_reference, reference


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["grid_sample", "torchvision"])
def test_matches_the_naive_loop(shape, form):
    arguments = inputs(*shape)
    if form == "torchvision":
        pytest.importorskip("torchvision")
        with torch.no_grad():
            actual = deform_conv2d(*arguments)
    else:
        actual = deform_conv2d_reference(*arguments)
    torch.testing.assert_close(actual.double(), naive(*arguments), atol=1e-4, rtol=0)


def test_zero_offset_and_full_mask_is_a_convolution():
    x, offset, mask, weight, bias = inputs(2, 8, 2, 9, 5, 4)
    actual = deform_conv2d_reference(x, offset * 0, torch.ones_like(mask), weight, bias)
    torch.testing.assert_close(actual, torch.conv2d(x, weight, bias, padding=1), atol=1e-4, rtol=1e-4)


def test_memory_format_does_not_matter():
    x, offset, mask, weight, bias = inputs(*SHAPES[1])
    last = [a.to(memory_format=torch.channels_last) for a in (x, offset, mask, weight)]
    torch.testing.assert_close(
        deform_conv2d_reference(*last, bias), deform_conv2d_reference(x, offset, mask, weight, bias)
    )


def test_everything_works_without_native_code_and_torchvision(monkeypatch):
    arguments = inputs(*SHAPES[0])
    monkeypatch.setattr(reference, "has_torchvision", lambda: False)
    monkeypatch.setattr(cpu, "unavailable_reason", lambda dtype: "not built")
    with torch.no_grad():
        assert torch.equal(deform_conv2d(*arguments), deform_conv2d_reference(*arguments))


def test_gradients_match_finite_differences():
    arguments = [a.double().requires_grad_() for a in inputs(1, 2, 1, 3, 4, 2, spread=0.3)]
    arguments[1] = (arguments[1].detach() + 0.01).requires_grad_()  # off the kinks at whole pixels

    for n, argument in enumerate(arguments):
        actual = torch.autograd.grad(deform_conv2d_reference(*arguments).square().sum(), argument)[0]
        step = torch.zeros_like(argument)
        step.view(-1)[1] = 1e-2
        with torch.no_grad():
            shifted = [[*arguments[:n], argument + sign * step, *arguments[n + 1 :]] for sign in (1, -1)]
            up, down = (deform_conv2d_reference(*arguments_).square().sum() for arguments_ in shifted)
        torch.testing.assert_close(actual.view(-1)[1], (up - down) / 2e-2, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_whole_positions(dtype):
    """At column 600 half-precision positions are 0.5 (float16) or 4 (bfloat16) pixels apart."""
    x = torch.zeros(1, 1, 1, 700, dtype=dtype)
    x[..., 600] = 1
    offset = torch.zeros(1, 18, 1, 700, dtype=dtype)
    offset[:, 9] = 0.25  # the centre tap looks a quarter pixel to the right
    weight = torch.zeros(1, 1, 3, 3, dtype=dtype)
    weight[..., 1, 1] = 1
    out = deform_conv2d(x, offset, torch.ones(1, 9, 1, 700, dtype=dtype), weight, None)
    assert out.dtype == dtype
    assert out[0, 0, 0, 599:602].tolist() == [0.25, 0.75, 0]
