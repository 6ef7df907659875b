"""The networks of the inference-time figure against their golden tensors."""

import json

import numpy as np
import pytest
import torch
from helpers.models import GOLDEN, fill

from benchmarks.peers import PEERS, load_peer, parameters, size_table


def golden(name):
    arrays = np.load(GOLDEN / f"{name}.npz")
    return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def peer(name, seed=0):
    shapes = json.loads((GOLDEN / f"{name}_parameters.json").read_text())
    network = PEERS[name].build()
    network.load_state_dict({key: torch.from_numpy(value) for key, value in fill(shapes, seed).items()})
    return network.eval()


def assert_close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["zooming_slowmo", "tmnet", "super_slomo", "edvr"])
def test_published_names_and_shapes(name):
    shapes = json.loads((GOLDEN / f"{name}_parameters.json").read_text())
    with torch.device("meta"):
        network = PEERS[name].build()
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == shapes
    assert parameters(network) == sum(int(np.prod(shape)) for shape in shapes.values())


@torch.no_grad()
def test_zooming_slowmo():
    expected = golden("zooming_slowmo")
    assert_close(peer("zooming_slowmo")(expected["frames"]), expected["rgb"], 1e-5)


@torch.no_grad()
def test_tmnet():
    expected = golden("tmnet")
    network = peer("tmnet")
    assert_close(network(expected["frames"], expected["times"]), expected["rgb"], 2e-5)
    assert network(expected["frames"]).shape == (1, 3, 3, 64, 80)  # without times, as its single-frame model


@torch.no_grad()
def test_super_slomo():
    expected = golden("super_slomo")
    network = peer("super_slomo")
    frames = expected["frames"]
    flows = network.flows(frames)
    assert_close(flows.forward, expected["flow01"])
    assert_close(flows.backward, expected["flow10"])
    made = [network.frame(frames, flows, t) for t in expected["times"].tolist()]
    assert_close(torch.stack([visible for _, visible in made], 1), expected["visibility"], 3e-5)
    assert_close(torch.stack([rgb for rgb, _ in made], 1), expected["rgb"], 5e-5)
    network.aligned_corners = False
    assert_close(network(frames, expected["times"].tolist()), expected["rgb_half_pixel"], 5e-5)


@torch.no_grad()
def test_edvr():
    expected = golden("edvr")
    network = peer("edvr")
    frames = expected["frames"]
    window = [network.pyramid(frame) for frame in frames.unbind(1)]
    aligned = [network.pcd_align(window[n], window[3]) for n in (0, 3)]
    assert_close(torch.stack(aligned, 1), expected["aligned"], 5e-6)
    fused = network.fuse(window)
    assert_close(fused, expected["fused"], 5e-6)
    assert_close(network.reconstruct(fused, frames[:, 3]), expected["rgb"], 1e-5)


def test_sizes_stand_beside_the_papers():
    """Within rounding of Table 1, except Super SloMo, of which the paper counts one half."""
    lines = size_table().splitlines()
    assert len(lines) == 2 + len(PEERS)
    for name, value in PEERS.items():
        with torch.device("meta"):
            count = parameters(value.build())
        counted = count / 2 if name == "super_slomo" else count
        assert abs(counted / 1e6 - value.paper) < 0.05
        assert any(value.label in line and f"{count:,}" in line for line in lines)


def test_published_files_load(tmp_path):
    network = PEERS["super_slomo"].build().half()  # for a smaller file
    state = network.state_dict()
    halves = {key: {} for key in ("state_dictFC", "state_dictAT")}
    for name, value in state.items():
        half, _, inner = name.partition(".")
        halves["state_dictFC" if half == "flow" else "state_dictAT"][inner] = value
    torch.save({**halves, "epoch": 3}, tmp_path / "slomo.ckpt")
    loaded = load_peer("super_slomo", tmp_path / "slomo.ckpt").state_dict()
    assert all(torch.equal(loaded[name], value.float()) for name, value in state.items())

    torch.save(
        {f"module.{name}": value for name, value in peer("zooming_slowmo").state_dict().items()}, tmp_path / "z.pth"
    )
    load_peer("zooming_slowmo", tmp_path / "z.pth")
    with pytest.raises(ValueError, match=r"z\.pth does not fit TMNet"):
        load_peer("tmnet", tmp_path / "z.pth")
