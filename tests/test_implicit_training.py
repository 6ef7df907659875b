"""Training in bfloat16 against float64, by the rule that the error is at most twice that of PyTorch's own bfloat16."""

import pytest
import torch
import torch.nn.functional as F

from stif_rt.ops.implicit import training as siren

CASES = [(1, 64, 64), (37, 64, 256), (200, 256, 256), (64, 198, 64), (5, 256, 3)]


def layer(rows, inputs, outputs, dtype=torch.float64):
    """Pre-activations reach tens of radians, as trained layers' do."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.rand(rows, inputs, generator=generator) * 2 - 1
    weight = torch.randn(outputs, inputs, generator=generator) * 8 / inputs**0.5
    bias, dy = torch.randn(outputs, generator=generator), torch.randn(rows, outputs, generator=generator)
    # numbers that bfloat16 holds, so that what is compared is the computation, not how its operands were rounded
    return [tensor.bfloat16().to(dtype).requires_grad_() for tensor in (x, weight, bias)], dy.bfloat16().to(dtype)


def results(function, inputs, dy):
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy.to(y.dtype))]


def plain_sine(x, weight, bias):
    return torch.sin(F.linear(x, weight, bias))


def errors(actual, exact):
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(actual, exact, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    ("function", "plain"), [(siren.sine_layer, plain_sine), (siren.linear, F.linear)], ids=["sine", "linear"]
)
def test_layers_and_their_gradients(function, plain, case):
    exact = results(plain, *layer(*case))
    pytorch = errors(results(plain, *layer(*case, torch.bfloat16)), exact)
    for mine, theirs in zip(errors(results(function, *layer(*case, torch.float32)), exact), pytorch, strict=True):
        assert mine <= 2 * max(theirs, 2**-9)  # half a unit in the last place of bfloat16


@pytest.mark.slow
def test_pre_activations_are_not_rounded():
    """At 40 radians bfloat16 steps by a quarter: rounding there would be wrong by a tenth, not by a 300th."""
    weight, bias = torch.full((1, 1), 40.0), torch.full((1,), 17.3)  # nor is the bias, which bfloat16 does not hold
    x = torch.linspace(0.9, 1.0, 50)[:, None].bfloat16()
    torch.testing.assert_close(
        siren.sine_layer(x, weight, bias).double(), torch.sin(40 * x.double() + 17.3), atol=4e-3, rtol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("largest", [1.0, 100.0, 10000.0])
def test_sine(largest):
    z = torch.linspace(-largest, largest, 1001)[:, None].requires_grad_()
    y = siren.sine(z)
    (dz,) = torch.autograd.grad(y, z, torch.ones_like(y))
    atol = 2**-8 + largest * 2**-22  # of a float32 argument
    torch.testing.assert_close(y.double(), torch.sin(z.detach().double()), atol=atol, rtol=0)
    torch.testing.assert_close(dz.double(), torch.cos(z.detach().double()), atol=atol, rtol=0)


def test_settings_of_pytorch_are_left_alone():
    before = torch.backends.mkldnn.matmul.fp32_precision
    siren.linear(torch.ones(2, 3), torch.ones(4, 3), None)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
