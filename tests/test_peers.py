"""The networks of the inference-time figure against their golden tensors."""

import datetime
import functools
import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.models import GOLDEN, fill

from benchmarks.peers import PEERS, dain, load_peer, parameters, qvi, size_table
from benchmarks.peers.interpolator import Memory


def golden(name):
    arrays = np.load(GOLDEN / f"{name}.npz")
    return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def peer(name, seed=0):
    shapes = json.loads((GOLDEN / f"{name}_parameters.json").read_text())
    network = PEERS[name].build()
    network.load_state_dict({key: torch.from_numpy(value) for key, value in fill(shapes, seed).items()})
    return network.eval()


def assert_close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", [name for name in PEERS if name != "stif"])
def test_published_names_and_shapes(name):
    shapes = json.loads((GOLDEN / f"{name}_parameters.json").read_text())
    with torch.device("meta"):
        network = PEERS[name].build()
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == shapes
    stored = sum(buffer.numel() for key, buffer in network.named_buffers() if key in shapes)  # statistics, not counted
    assert parameters(network) + stored == sum(int(np.prod(shape)) for shape in shapes.values())


@torch.no_grad()
def test_zooming_slowmo():
    expected = golden("zooming_slowmo")
    assert_close(peer("zooming_slowmo")(expected["frames"]), expected["rgb"], 1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_tmnet():
    expected = golden("tmnet")
    network = peer("tmnet")
    assert_close(network(expected["frames"], expected["times"]), expected["rgb"], 2e-5)
    assert network(expected["frames"]).shape == (1, 3, 3, 64, 80)  # without times, as its single-frame model
    for times in ([[0.0, 0.5]], [[0.5, 1.0]], [[0.5, 0.25]], [[float("nan")]]):
        with pytest.raises(ValueError, match="TMNet makes frames between 0 and 1, in ascending order"):
            network(expected["frames"], torch.tensor(times))
    with pytest.raises(ValueError, match=r"times are \[B, T\]"):
        network(expected["frames"], torch.tensor([0.5]))


@pytest.mark.slow
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


@pytest.mark.slow
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


def plain_call(function, *arguments):
    return function(*arguments)


def along_times(network, prepared, times):
    """What the network finds at each time, by field; pairs of fields become two."""
    made = [network.frame(prepared, t.double().view(1, 1, 1, 1)) for t in times]
    return {
        field: [torch.stack(parts, 1) for parts in zip(*values, strict=True)]
        if isinstance(values[0], tuple)
        else torch.stack(values, 1)
        for field, values in ((field, [getattr(one, field) for one in made]) for field in made[0]._fields)
    }


@pytest.mark.slow
@torch.no_grad()
def test_qvi():
    expected = golden("qvi")
    network = peer("qvi")
    frames, times = expected["frames"], expected["times"]
    motion = network.prepare(frames, plain_call)
    for name in ("flow10", "flow12", "flow21", "flow23"):
        assert_close(getattr(motion, name), expected[name])
    made = along_times(network, motion, times)
    for field, names in (("forward", ("flow1t", "flow2t")), ("reversed", ("flowt1", "flowt2"))):
        for value, name in zip(made[field], names, strict=True):
            assert_close(value, expected[name])
    for value, name in zip(made["refined"], ("refined_flowt1", "refined_flowt2"), strict=True):
        assert_close(value, expected[name], 5e-4)
    assert_close(made["mask"], expected["mask"])
    assert_close(network(frames, times[None]), expected["rgb"])
    assert_close(network(frames[:, 1:3], times[None, -1:]), expected["rgb_linear"])
    network.aligned_corners = False
    assert_close(network.prepare(frames, plain_call).flow12, expected["flow12_half_pixel"])
    assert_close(network(frames, times[None]), expected["rgb_half_pixel"])


@pytest.mark.slow
@torch.no_grad()
def test_dain():
    expected = golden("dain")
    network = peer("dain")
    scene = network.prepare(expected["frames"], plain_call)
    assert_close(scene.flows[0], expected["flow01"], 2e-4)
    assert_close(scene.flows[1], expected["flow10"], 2e-4)
    assert_close(torch.stack(scene.depths, 1), expected["depth"], 3e-5)
    assert_close(torch.stack(scene.kernels, 1), expected["kernels"], 3e-5)
    made = along_times(network, scene, expected["times"])
    for n in (0, 1):
        assert_close(made["projected"][n], expected[f"projected{n}"], 2e-4)
        assert_close(made["warped"][n], expected[f"warped{n}"], 2e-4)
    assert_close(made["blend"], expected["blend"], 2e-4)
    assert_close(made["rgb"], expected["rgb"], 2e-4)
    assert_close(network(expected["frames_odd"], expected["times_odd"][None]), expected["rgb_odd"], 2e-4)


def test_dain_pads_as_the_published_programs():
    """Left, right, top, bottom: to the next multiple of 128, the smaller half first; 64 where it is one already."""
    network = PEERS["dain"].build
    with torch.device("meta"):
        padding = network().padding
    assert padding(180, 320) == (32, 32, 38, 38)
    assert padding(37, 50) == (39, 39, 45, 46)
    assert padding(100, 128) == (32, 32, 14, 14)
    assert padding(64, 192) == (0, 0, 0, 0)


@pytest.mark.slow
@torch.no_grad()
def test_basicvsr():
    expected = golden("basicvsr")
    network = peer("basicvsr")
    frames = expected["frames"]
    pair = (F.interpolate(frames[:, n], size=(64, 96), mode="bilinear") for n in (0, 1))
    for level, flow in enumerate(network.spynet.levels(*pair)):
        assert_close(flow, expected[f"level{level}"], 5e-5)
    for flow, name in zip(network.flows(frames), ("flows_backward", "flows_forward"), strict=True):
        assert_close(flow, expected[name], 5e-5)
    assert_close(network(frames), expected["rgb"], 3e-5)


@torch.no_grad()
def test_basicvsr_takes_any_number_and_size():
    torch.manual_seed(0)
    network = PEERS["basicvsr"].build().eval()
    assert network(torch.rand(2, 1, 3, 5, 7)).shape == (2, 1, 3, 20, 28)
    assert network(torch.rand(1, 2, 3, 1, 1)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["liif_edsr", "liif_rdn"])
@torch.no_grad()
def test_liif(name):
    expected = golden(name)
    network = peer(name)
    image = expected["image"]
    features = network.features(image)
    assert_close(features, expected["features"], 2e-5)
    for size in ((61, 50), (72, 60), (96, 80)):
        actual, wanted = network(image, size), expected[f"rgb_{size[0]}x{size[1]}"]
        if size == (72, 60):  # there the published program's weights are rounding errors
            actual, wanted = (x[..., np.arange(72) != 70, :][..., np.arange(60) != 58] for x in (actual, wanted))
        assert_close(actual, wanted, 1e-5)
    size = torch.tensor(image.shape[-2:]).double()
    position = ((expected["coords"][0].double() + 1) * size - 1) / 2
    cell = (expected["cells"][0] * size).float()
    assert_close(network.colours(network.cells(features)[0], position, cell), expected["values"][0], 1e-5)


def noise(*shape, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return low + (high - low) * torch.rand(*shape, generator=generator)


def test_qvi_moves_flows_to_where_they_point():
    """Written out pixel by pixel."""
    flow = noise(2, 2, 5, 7, low=-3, high=3)
    expected = torch.zeros(2, 2, 5, 7)
    for b in range(2):
        sums = np.zeros((5, 7, 3))
        for y, x in itertools.product(range(5), range(7)):
            u, v = (float(value) for value in flow[b, :, y, x])
            for d, e in itertools.product((0, 1), (0, 1)):
                column, row = x + math.floor(u) + d, y + math.floor(v) + e
                if 0 <= column < 7 and 0 <= row < 5:
                    k = math.exp(-((u - math.floor(u) - d) ** 2) - (v - math.floor(v) - e) ** 2)
                    sums[row, column] += k * u, k * v, k
        known = sums[..., 2] > 0
        for channel in (0, 1):
            plane = np.where(known, -sums[..., channel] / np.where(known, sums[..., 2], 1), 0)
            expected[b, channel] = torch.from_numpy(plane)
    assert not (expected != 0).all()  # there are holes
    assert_close(qvi.reverse(flow), expected, 1e-5)


def test_dain_projects_flows_and_fills_holes():
    """Written out pixel by pixel; one row's flows all leave the picture."""
    H, W = 6, 8
    flow, weight = noise(1, 2, H, W, low=-4, high=4), noise(1, 1, H, W, low=0.1)
    flow[0, 0, :, 0] = float(W)
    sums = np.zeros((H, W, 3))
    for y, x in itertools.product(range(H), range(W)):
        u, v, w = (float(value) for value in (*flow[0, :, y, x], weight[0, 0, y, x]))
        if 0 <= x + u <= W - 1 and 0 <= y + v <= H - 1:
            left, top = math.floor(x + u), math.floor(y + v)
            for column, row in itertools.product((left, min(left + 1, W - 1)), (top, min(top + 1, H - 1))):
                sums[row, column] += -w * u, -w * v, w
    known = sums[..., 2] > 0
    assert 0 < known.sum() < H * W
    expected = np.zeros((H, W, 2))
    for y, x in itertools.product(range(H), range(W)):
        if known[y, x]:
            expected[y, x] = sums[y, x, :2] / sums[y, x, 2]
            continue
        lines = [[(y, c) for c in range(x - 1, -1, -1)], [(y, c) for c in range(x + 1, W)]]
        lines += [[(r, x) for r in range(y - 1, -1, -1)], [(r, x) for r in range(y + 1, H)]]
        nearest = [next((pixel for pixel in line if known[pixel]), None) for line in lines]
        values = [sums[pixel][:2] / sums[pixel][2] for pixel in nearest if pixel is not None]
        expected[y, x] = np.mean(values, 0) if values else 0
    assert_close(dain.project(flow, weight)[0], torch.from_numpy(expected).movedim(-1, 0).float(), 1e-5)
    assert (dain.project(torch.full((1, 2, 4, 4), 9.0), torch.ones(1, 1, 4, 4)) == 0).all()


def test_dain_reads_with_each_pixels_kernel():
    """Written out pixel by pixel, some of them beyond the border or half a picture away."""
    H, W = 7, 10
    image, kernels = noise(2, 3, H, W), noise(2, 16, H, W, low=-1)
    flow = noise(2, 2, H, W, low=-6, high=6)
    expected = image.clone()
    for b, y, x in itertools.product(range(2), range(H), range(W)):
        u, v = (float(value) for value in flow[b, :, y, x])
        if not (0 <= x + u <= W - 1 and 0 <= y + v <= H - 1 and abs(u) < W / 2 and abs(v) < H / 2):
            continue
        left, top = math.floor(x + u), math.floor(y + v)
        a, d = x + u - left, y + v - top
        total = torch.zeros(3)
        for r, c in itertools.product(range(4), range(4)):
            share = (1 - d, 1 - d, d, d)[r] * (1 - a, 1 - a, a, a)[c] * kernels[b, 4 * r + c, y, x]
            total += share * image[b, :, min(max(top - 1 + r, 0), H - 1), min(max(left - 1 + c, 0), W - 1)]
        expected[b, :, y, x] = total
    kept = (expected == image).all(1)
    assert kept.any()
    assert not kept.all()
    assert_close(dain.adaptive_warp(image, flow, kernels), expected, 1e-4)


INTERPOLATORS = {"super_slomo": 2, "qvi": 4, "dain": 2}
"""How many frames each takes."""


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERPOLATORS)
@torch.no_grad()
def test_interpolators_are_alike(name):
    """Times of their own for each of the batch; the frames themselves at 0 and 1."""
    network = peer(name)
    size = (64, 64) if name == "dain" else (33, 42)  # padded, DAIN would take long; its golden data have that
    frames = noise(2, INTERPOLATORS[name], 3, *size)
    times = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    made = network(frames, times)
    assert made.shape == (2, 2, 3, *size)
    middle = INTERPOLATORS[name] // 2
    assert torch.equal(made[0, 0], frames[0, middle - 1])
    assert torch.equal(made[1, 1], frames[1, middle])
    alone = network(frames[1:], [0.5])[0, 0]
    assert float(((made[1, 0] - alone).abs() > 1e-3).float().mean()) < 0.01  # flows may pass an integer
    for times in ([0.5, 1.25], [-0.1], [float("nan")]):
        with pytest.raises(ValueError, match="makes frames from 0 to 1"):
            network(frames, times)
    with pytest.raises(ValueError, match=r"takes .* frames \[B, N, 3, h, w\], not \[2, 3, 3"):
        network(noise(2, 3, 3, *size), [0.5])
    with pytest.raises(ValueError, match=r"times are \[B, T\]"):
        network(frames, torch.full((3, 2), 0.5))
    made = network.bfloat16()(frames[:1].bfloat16(), [0.5])
    assert made.dtype == torch.bfloat16
    assert made.isfinite().all()


GPU_CASES = {
    "super_slomo": lambda arrays: (arrays["frames"], arrays["times"]),
    "qvi": lambda arrays: (arrays["frames"], arrays["times"]),
    "dain": lambda arrays: (arrays["frames"], arrays["times"]),
    "basicvsr": lambda arrays: (arrays["frames"],),
    "liif_edsr": lambda arrays: (arrays["image"], (96, 80)),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU_CASES)
@torch.no_grad()
def test_on_a_gpu(name):
    expected = golden(name)
    given = [x.to("cuda") if isinstance(x, torch.Tensor) else x for x in GPU_CASES[name](expected)]
    with torch.backends.cudnn.flags(allow_tf32=False):
        made = peer(name).to("cuda")(*given).cpu()
    off = (made - expected["rgb_96x80" if name == "liif_edsr" else "rgb"]).abs() > 1e-3
    assert float(off.float().mean()) < 0.005  # where flows pass an integer, pixels may jump


@pytest.mark.slow
@torch.no_grad()
def test_what_neighbouring_pairs_share_is_computed_once(monkeypatch):
    """A clip of five frames: QVI's flows and features, of which the second pair needs two and one more."""
    network, memory, calls = peer("qvi"), Memory(PEERS["qvi"].build.remembered), []

    def counted(name, function, *given):
        calls.append(name)
        return function(*given)

    for name in ("features", "flow"):
        monkeypatch.setattr(network, name, functools.partial(counted, name, getattr(network, name)))
    clip = noise(1, 5, 3, 32, 40)
    first = network.pair(clip[:, :4], memory)
    assert (calls.count("features"), calls.count("flow")) == (4, 4)
    second = network.pair(clip[:, 1:].clone(), memory)
    assert (calls.count("features"), calls.count("flow")) == (5, 6)
    assert second.prepared.flow10 is first.prepared.flow21
    assert_close(second.prepared.flow23, network.pair(clip[:, 1:]).prepared.flow23)


@pytest.mark.slow
@torch.no_grad()
def test_frames_too_small_for_qvi():
    with pytest.raises(ValueError, match="32x32 pixels or more, not 40x31"):
        peer("qvi")(noise(1, 4, 3, 31, 40), [0.5])


@pytest.mark.slow
def test_sizes_stand_beside_the_papers():
    """Within rounding of Table 1, except Super SloMo, of which the paper counts one half."""
    lines = size_table().splitlines()
    assert len(lines) == 2 + len(PEERS)
    for name, value in PEERS.items():
        with torch.device("meta"):
            count = parameters(value.build())
        counted = count / 2 if name == "super_slomo" else count
        assert value.paper is None or abs(counted / 1e6 - value.paper) < 0.05
        assert any(value.label in line and f"{count:,}" in line for line in lines)


@pytest.mark.slow
def test_the_documentation_has_the_sizes():
    assert size_table() in (GOLDEN.parents[1] / "docs" / "benchmarks.md").read_text()


@pytest.mark.slow
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


def assert_loads(name, content, state, path):
    torch.save(content, path)
    loaded = load_peer(name, path).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value.float()) for key, value in state.items())


def halves(name):
    """Random parameters of a network, in half precision for smaller files."""
    torch.manual_seed(1)
    return PEERS[name].build().half().state_dict()


@pytest.mark.slow
def test_published_files_of_qvi_and_dain(tmp_path):
    state = halves("qvi")
    content = {"model_state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3, "loss": 1.5}
    content["timestamp"] = datetime.datetime(2019, 9, 1, 12, 30)
    assert_loads("qvi", content, state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt does not fit DAIN.* missing"):
        load_peer("dain", tmp_path / "model.pt")
    state = halves("dain")
    counters = {key.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for key in state}
    counters = {key: value for key, value in counters.items() if key.endswith("tracked")}
    assert len(counters) == 155
    assert_loads("dain", state | counters, state, tmp_path / "best.pth")


@pytest.mark.slow
def test_published_files_of_basicvsr(tmp_path):
    state = halves("basicvsr")
    other = {key: value + 1 for key, value in state.items()}
    assert_loads("basicvsr", {"params": other, "params_ema": state}, state, tmp_path / "basicsr.pth")
    renamed = {}
    for key, value in state.items():
        key = key.replace("_trunk.", "_resblocks.")
        key = re.sub(r"^upconv(\d)", r"upsample\1.upsample_conv", key)
        parts = key.split(".")
        if parts[:2] == ["spynet", "basic_module"]:
            parts[4:] = [str(int(parts[4]) // 2), "conv", parts[5]]
        renamed[f"generator.{'.'.join(parts)}"] = value
    content = {"meta": {"epoch": 3}, "state_dict": renamed | {"step_counter": torch.ones(1)}}
    assert_loads("basicvsr", content, state, tmp_path / "mmediting.pth")


@pytest.mark.slow
def test_published_files_of_liif(tmp_path):
    state = halves("liif_edsr")
    specs = {
        "encoder_spec": {"name": "edsr-baseline", "args": {"no_upsampling": True}},
        "imnet_spec": {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [256] * 4}},
    }

    def content(**changes):
        model = {"name": "liif", "args": specs, "sd": state} | changes
        return {"model": model, "optimizer": {"name": "adam", "sd": {"state": {}}}, "epoch": 1000}

    path = tmp_path / "edsr-baseline-liif.pth"
    assert_loads("liif_edsr", content(), state, path)
    with pytest.raises(ValueError, match=r"liif\.pth does not fit LIIF \(RDN\)"):
        load_peer("liif_rdn", path)
    for changes, message in (
        ({"name": "metasr"}, "holds a network 'metasr', not LIIF"),
        ({"args": specs | {"encoder_spec": {"name": "rcan", "args": {}}}}, "encoder_spec is 'rcan'"),
        ({"args": specs | {"local_ensemble": False}}, "local_ensemble = False"),
        ({"args": specs | {"encoder_spec": {"name": "rdn", "args": {"RDNconfig": "A"}}}}, "RDNconfig = 'A'"),
        ({"args": specs | {"surprise": 1}}, "surprise = 1"),
    ):
        torch.save(content(**changes), path)
        with pytest.raises(ValueError, match=f"edsr-baseline-liif.pth: its|{message}") as error:
            load_peer("liif_edsr", path)
        assert message in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        {"state_dictFC": [1], "state_dictAT": 3},
        {"model": {"name": "liif", "args": 5, "sd": {}}},
        {"model": {"name": "liif", "args": {"encoder_spec": 7}, "sd": {"a": torch.zeros(1)}}},
        {"params_ema": 7},
        {"model_state_dict": [torch.zeros(1)]},
        {3: torch.zeros(1), None: torch.zeros(1)},
        {},
    ],
    ids=str,
)
def test_files_laid_out_otherwise_say_so(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    for name in ("super_slomo", "qvi", "dain", "basicvsr", "liif_edsr"):
        with pytest.raises(ValueError, match=r"other\.pth"):
            load_peer(name, tmp_path / "other.pth")


class Code:
    def __reduce__(self):
        return print, ("a checkpoint has run code",)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qvi", "super_slomo", "liif_edsr"])
def test_bad_files_say_so(tmp_path, name, capsys):
    torch.save({"state_dict": {"a": Code()}}, tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "code.pth").read_bytes()[:300])
    for file in ("code.pth", "cut.pth"):
        with pytest.raises(ValueError, match=f"{file} is not a checkpoint of plain tensors"):
            load_peer(name, tmp_path / file)
    with pytest.raises(ValueError, match=r"list\.pth holds no parameters"):
        load_peer(name, tmp_path / "list.pth")
    with pytest.raises(FileNotFoundError, match=r"none\.pth do not exist"):
        load_peer(name, tmp_path / "none.pth")
    assert "has run code" not in capsys.readouterr().out
