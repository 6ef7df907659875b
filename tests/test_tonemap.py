"""Transfer functions and tone mapping against the numbers of the standards."""

from pathlib import Path

import av
import pytest
import torch

from stif_rt.video.colour import BT709, BT2020, HLG, PQ, Colour, describe, from_rgb, to_rgb
from stif_rt.video.tonemap import (
    SRGB,
    content_peak,
    from_light,
    nits_to_pq,
    pq_to_nits,
    to_light,
    tonemap,
    tonemapped,
)

CASES = Path(__file__).parent / "data" / "cases"
HDR10 = Colour(matrix=BT2020, primaries=BT2020, transfer=PQ, bits=10)


def pixel(*rgb):
    return torch.tensor(rgb, dtype=torch.float64)[:, None, None]


@pytest.mark.parametrize(("nits", "code"), [(0, 64), (100, 509), (203, 573), (1000, 723), (4000, 855), (10000, 940)])
def test_pq_codes(nits, code):
    """10-bit narrow-range values, as tabulated for ITU-R BT.2100 and BT.2408."""
    signal = nits_to_pq(torch.tensor(float(nits), dtype=torch.float64))
    assert round(64 + 876 * signal.item()) == code
    assert pq_to_nits(signal).item() == pytest.approx(nits, rel=1e-6, abs=1e-6)


def test_hlg_reference_white():
    """75 % is 203 cd/m2 on a display of 1000 (BT.2408), 100 % is 1000."""
    assert to_light(pixel(0.75, 0.75, 0.75), HLG)[0].item() * 203 == pytest.approx(203, abs=0.5)
    assert to_light(pixel(1, 1, 1), HLG)[0].item() * 203 == pytest.approx(1000, rel=1e-4)


@pytest.mark.parametrize("transfer", [BT709, 4, 5, 8, SRGB, PQ, HLG])
def test_light_and_back(transfer):
    rgb = torch.rand(3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(from_light(to_light(rgb, transfer), transfer), rgb, atol=1e-6)


def test_diffuse_white_of_a_file():
    """10-bit 572 of PQ is 201.5 cd/m2: nearly SDR white."""
    with av.open(str(CASES / "hdr_pq_203nit.mp4")) as container:
        frame = next(container.decode(video=0))
    colour = describe(frame, "hevc")
    sdr = tonemap(to_rgb(frame, colour).rgb, colour)
    assert (sdr * 255 - 254.2).abs().max() < 0.05
    stored = from_rgb(to_rgb(frame, colour)._replace(rgb=sdr), tonemapped(colour), "yuv420p")
    assert (bytes(stored.planes[0])[0], stored.color_trc, stored.color_primaries) == (234, BT709, BT709)


@pytest.mark.parametrize(
    ("operator", "nits", "light"),
    [
        ("clip", 50.75, 0.25),
        ("clip", 203, 1),
        ("clip", 1000, 1),
        ("mobius", 50.75, 0.25),
        ("mobius", 203, 0.6786),
        ("mobius", 1000, 1),
        ("bt2390", 2, 2 / 203),
        ("bt2390", 203, 0.7835),
        ("bt2390", 1000, 1),
    ],
)
def test_operators(operator, nits, light):
    """Grey in BT.2020 for a peak of 1000 cd/m2; the middle values were computed apart from this code."""
    signal = nits_to_pq(pixel(nits, nits, nits))
    assert (tonemap(signal, HDR10, operator, 1000)[0].item()) ** 2.4 == pytest.approx(light, abs=2e-4)


@pytest.mark.parametrize("operator", ["clip", "mobius", "bt2390"])
def test_operators_keep_order_and_hue(operator):
    ramp = nits_to_pq(torch.linspace(0, 1000, 500, dtype=torch.float64))
    sdr = tonemap(ramp.expand(3, 1, 500), HDR10, operator)
    assert (sdr.diff(dim=-1) >= -1e-9).all()
    if operator != "clip":
        orange = nits_to_pq(pixel(800, 400, 100))
        bt709 = Colour(primaries=BT709, transfer=PQ)
        red, green, blue = (tonemap(orange, bt709, operator) ** 2.4).flatten().tolist()
        assert (green / red, blue / red) == pytest.approx((0.5, 0.125), rel=1e-4)


def test_bt709_colours_survive_bt2020():
    """Red of BT.709 has the light (0.6274, 0.0691, 0.0164) in BT.2020 (BT.2087)."""
    signal = nits_to_pq(pixel(0.6274 * 203, 0.0691 * 203, 0.0164 * 203))
    assert torch.allclose(tonemap(signal, HDR10) ** 2.4, pixel(1, 0, 0), atol=2e-3)


def test_peak_of_side_data():
    mastering = bytes(72) + (40_000_000).to_bytes(4, "little") + (10_000).to_bytes(4, "little") + bytes(8)
    assert content_peak(None, None) is None
    assert content_peak(mastering, None) == 4000
    assert content_peak(mastering, (1200).to_bytes(4, "little") + bytes(4)) == 1200
    assert content_peak(mastering, bytes(8)) == 4000
