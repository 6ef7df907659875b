import json

import numpy as np
import pytest
import torch
from helpers.cases import MOTION, VARIANTS
from helpers.models import GOLDEN, TINY, fill_model

from stif_rt.model.config import CONFIGS, Config
from stif_rt.model.encoder import Features, StateAlignment
from stif_rt.model.stif import STIF

TOLERANCE = {"features": 5e-6, "sif": 5e-6, "flow": 3e-5, "rgb": 1e-5}


@pytest.mark.parametrize("name", ["stif_a", "stif_b", "stif_c"])
def test_matches_golden_tensors(paper_model, name):
    golden = np.load(GOLDEN / f"{name}.npz")
    frames, size = torch.from_numpy(golden["frames"]), tuple(golden["size"].tolist())
    with torch.no_grad():
        features = paper_model.encode(frames)
        actual = {"features": features.maps, "sif": [], "flow": [], "rgb": []}
        for t in golden["times"].tolist():
            decoded = paper_model.decode(features, frames, torch.full((len(frames),), t), size)
            actual["sif"].append(decoded.sif.movedim(1, -1))
            actual["flow"].append(decoded.flow.movedim(1, -1))
            actual["rgb"].append(decoded.rgb)
    actual |= {
        "sif": torch.stack(actual["sif"]),
        "flow": torch.stack(actual["flow"]),
        "rgb": torch.stack(actual["rgb"], 1),
    }
    for array, tolerance in TOLERANCE.items():
        np.testing.assert_allclose(actual[array].numpy(), golden[array], rtol=0, atol=tolerance, err_msg=array)


def test_published_names_and_shapes():
    shapes = json.loads((GOLDEN / "stif_parameters.json").read_text())
    model = STIF()
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == shapes
    assert sum(p.numel() for p in model.parameters()) == 11_312_698


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least", "most"), [("stif-s", 1.5e6, 2.2e6), ("stif-i", 0.04e6, 0.06e6)])
def test_compact_encoders_stay_within_their_budgets(name, least, most):
    """Multiply-adds per pixel of the frames."""
    from torch.utils.flop_counter import FlopCounterMode

    model = STIF(CONFIGS[name])
    with FlopCounterMode(display=False) as counter:  # gradients on: the form whose operations are all counted
        model.encode(torch.rand(1, 2, 3, 64, 128))
    assert least < counter.get_total_flops() / 2 / (64 * 128) <= most


def test_untrained_residual_model_is_a_blend():
    model = STIF(Config(**TINY, grid="centres", residual=True, flow=False))
    frames = torch.rand(1, 2, 3, 8, 8)
    out = model(frames, torch.tensor([0.25]), (8, 8))
    torch.testing.assert_close(out, 0.75 * frames[:, 0] + 0.25 * frames[:, 1], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_of_every_variant_learns(variant):
    config = VARIANTS[variant]
    blocks = {} if config.motion else TINY
    model = fill_model(STIF(Config(**{**config.to_dict(), **blocks}))).train()
    side = 2 * config.multiple  # so that the coarsest level has gradients
    time = torch.tensor([0.5 if config.fixed_time else 0.4])
    model(torch.rand(1, 2, 3, side, side), time, (20, 20)).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_recurrent_stage_sees_both_directions():
    model = fill_model(STIF(Config(**{**TINY, "recurrent": True})))
    frames = torch.rand(1, 2, 3, 8, 8)
    with torch.no_grad():
        before = model.encode(frames).maps
        frames[:, 1] = 1 - frames[:, 1]
        after = model.encode(frames).maps
    assert all((before[:, n] - after[:, n]).abs().max() > 1e-3 for n in range(3))


@pytest.mark.parametrize("shape", [(1, 2, 3, 6, 8), (1, 1, 3, 8, 8), (2, 3, 8, 8), (1, 2, 4, 8, 8)])
def test_encoder_refuses_other_shapes(tiny_model, shape):
    with pytest.raises(ValueError, match=r"must be|multiples of 4"):
        tiny_model.encode(torch.rand(shape))


def test_fixed_model_knows_one_time():
    model = STIF(Config(**TINY, fixed_time=True))
    features, frames = Features(torch.rand(1, 3, 64, 4, 4)), torch.rand(1, 2, 3, 4, 4)
    assert model.decode(features, frames, torch.tensor([0.5]), (4, 4)).rgb.shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"0\.5 only"):
        model.decode(features, frames, torch.tensor([0.25]), (4, 4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid": "edges"}, "grid is 'edges'"),
        ({"back_blocks": -1}, "back_blocks is -1; it must be from 0 to 256"),
        ({"single_function": True, "aggregation": False}, "without aggregation"),
        ({"motion": True}, "motion needs recurrent = False, and it is True"),
        (MOTION | {"grid": "corners"}, "motion needs grid = 'centres'"),
        (MOTION | {"flow": False}, "motion needs flow = True"),
        ({"blend": True}, "blend says .* without residual"),
        ({"bicubic": True}, "bicubic says .* without residual"),
        ({"feature_stride": 2}, "feature_stride is 2; it must be 1 without motion"),
        (MOTION | {"feature_stride": 3}, "feature_stride is 3; it must be 1 or 2"),
        (MOTION | {"feature_stride": 2}, "front_blocks must be 0, not 1"),
        ({"sif_widths": (64, 96)}, r"sif_widths is \(64, 96\); it must be multiples of 64"),
        ({"tif_widths": (64, 320)}, "tif_widths .* up to 256"),
        ({"tif_widths": (128, 64)}, "tif_widths .* must begin with 64"),
        ({"decoder_widths": (64,) * 5}, "decoder_widths .* at most 4 layers"),
        ({"decoder_widths": 64}, "decoder_widths is 64"),
        ({"decoder_widths": ()}, "decoder_widths"),
        ({"decoder_widths": [64, True]}, "decoder_widths"),
        ({"motion": 1}, "motion is 1; it must be true or false"),
        ({"front_blocks": "2"}, "front_blocks is '2'; it must be a whole number"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_configuration_survives_a_round_trip():
    for config in (*CONFIGS.values(), *VARIANTS.values()):
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="colour_space"):
        Config.from_dict({"colour_space": 1})


def test_what_the_zero_state_makes_constant_is_skipped_exactly():
    """The first step of the recurrence against the same step with its zeros written out."""
    torch.manual_seed(0)
    align = fill_model(StateAlignment())
    x = torch.randn(2, 64, 8, 12)
    with torch.no_grad():
        actual = align(x, None)
        whole = align(x, torch.zeros_like(x))
    torch.testing.assert_close(actual, whole, atol=1e-5, rtol=1e-5)
