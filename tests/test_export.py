"""ONNX graphs: traced once, then in three forms, at several sizes; the whole network; TensorRT-RTX; mistakes."""

import copy
import json
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.models import TINY, fill_model

from stif_rt.bundle import FORMS, Size, Sizes
from stif_rt.model.config import CONFIGS, Config
from stif_rt.model.encoder import DeformableConv, Features
from stif_rt.model.stif import STIF
from stif_rt.runtime import Runtime

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from stif_export import build, graphs  # noqa: E402

FIXED = Sizes(*[Size(1, 16, 24)] * 3)
RANGE = Sizes(Size(1, 16, 16), Size(1, 32, 48), Size(1, 64, 96))


@pytest.fixture(scope="session")
def compact_half(compact_model):
    """stif-s, float16, a range of sizes."""
    return graphs.encoder_graph(compact_model.encoder, compact_model.config, torch.float16, RANGE)


@pytest.fixture(scope="session")
def half_graphs(compact_half, tiny_model):
    bfloat16 = graphs.encoder_graph(tiny_model.encoder, tiny_model.config, torch.bfloat16, FIXED)
    return {"float16": compact_half, "bfloat16": bfloat16}


@pytest.fixture(scope="session")
def paper_graph(paper_model):
    """The paper's encoder, float32, one size."""
    return graphs.encoder_graph(paper_model.encoder, paper_model.config, torch.float32, FIXED)


def session(graph) -> "ort.InferenceSession":
    return ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def random_frames(B, h, w, seed=0):
    return torch.rand(B, 2, 3, h, w, generator=torch.Generator().manual_seed(seed))


def features(running, frames):
    return torch.from_numpy(running.run(None, {"frames": frames.numpy()})[0])


def encode(model, frames):
    with torch.no_grad():
        return model.encode(frames).maps


SIZES = [(2, 32, 48), (1, 4, 4), (1, 60, 36), (3, 8, 64)]


@pytest.mark.parametrize("form", ["standard", "grid-sample"])
def test_compact_encoder_at_any_size(compact_model, compact_graph, form):
    running = session(graphs.finish(compact_graph, form, 20))
    for size in SIZES:
        frames = random_frames(*size)
        torch.testing.assert_close(features(running, frames), encode(compact_model, frames), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_paper_encoder(paper_model, paper_graph):
    frames = random_frames(*FIXED.typical)
    expected = encode(paper_model, frames)
    actual = [features(session(graphs.finish(paper_graph, form, 20)), frames) for form in ("standard", "grid-sample")]
    for one in actual:
        torch.testing.assert_close(one, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(actual[0], actual[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("opset", [19, 22, 25])
@pytest.mark.parametrize("form", ["standard", "grid-sample"])
def test_opsets(compact_model, compact_graph, form, opset):
    graph = graphs.finish(compact_graph, form, opset)
    assert [(opset_import.domain, opset_import.version) for opset_import in graph.opset_import] == [("", opset)]
    frames = random_frames(1, 8, 12)
    torch.testing.assert_close(features(session(graph), frames), encode(compact_model, frames), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["standard", "grid-sample"])
def test_float16(compact_model, compact_half, form):
    running = session(graphs.finish(compact_half, form, 20))
    for size in ((1, 32, 48), (1, 16, 96)):
        frames = random_frames(*size)
        expected = encode(compact_model, frames)
        actual = features(running, frames)
        assert actual.dtype == torch.float16
        assert (actual.float() - expected).abs().max() < 5e-3 * expected.abs().max()


@pytest.mark.slow
def test_positions_of_half_precision_are_float32(compact_half):
    """In half precision, positions beyond column 512 would be half a pixel apart."""
    graph = onnx.shape_inference.infer_shapes(graphs.finish(compact_half, "grid-sample", 20))
    types = {value.name: value.type.tensor_type.elem_type for value in graph.graph.value_info}
    sampled = [node for node in graph.graph.node if node.op_type == "GridSample"]
    assert len(sampled) == 6
    assert {types[name] for node in sampled for name in node.input} == {onnx.TensorProto.FLOAT}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights(half_graphs, dtype, form):
    graph = graphs.finish(half_graphs[dtype], form, 22)
    element = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[dtype]
    assert graph.graph.output[0].type.tensor_type.elem_type == element
    assert graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    weights = [value for value in graph.graph.initializer if value.name.endswith(".weight")]
    assert {value.data_type for value in weights} == {element}
    assert len(weights) >= 42


def test_plugin_node_is_what_the_parser_looks_for(compact_graph):
    graph = graphs.finish(compact_graph, "plugin", 20)
    nodes = [node for node in graph.graph.node if node.domain == "stif"]
    assert len(nodes) == 6
    for node in nodes:
        assert node.op_type == "ModulatedDeformConv2d"
        assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {
            "plugin_namespace": b"stif",
            "aot": 1,
        }
        assert len(node.input) == 5
    shapes = {value.name: value.type.tensor_type for value in graph.graph.value_info}
    for node in nodes:  # without a definition of the operator, shapes after it must stand in the file
        assert len(shapes[node.output[0]].shape.dim) == 4
        assert shapes[node.output[0]].elem_type == onnx.TensorProto.FLOAT


def test_file_describes_itself(compact_model, compact_graph, tmp_path):
    graphs.save(graphs.finish(compact_graph, "standard", 20), tmp_path / "encoder.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]
    running = ort.InferenceSession(str(tmp_path / "encoder.onnx"))
    metadata = running.get_modelmeta().custom_metadata_map
    assert Config.from_dict(json.loads(metadata["stif.config"])) == compact_model.config
    assert "[0, 1]" in metadata["stif.normalisation"]
    assert (metadata["stif.form"], metadata["stif.dtype"]) == ("standard", "float32")
    assert json.loads(metadata["stif.inputs"]) == ["frames"]
    assert [value.shape for value in running.get_inputs()] == [["B", 2, 3, "h", "w"]]
    assert [value.shape for value in running.get_outputs()] == [["B", 3, 64, "h", "w"]]
    assert graphs.read_limits(tmp_path / "encoder.onnx") == (
        graphs.any_size(compact_model.config),
        "float32",
        compact_model.config,
    )
    assert b"encoder.py" not in (tmp_path / "encoder.onnx").read_bytes()  # no paths of the machine that exported it


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"grid": "centres", "residual": True}, {"single_function": True}])
def test_whole_network_at_any_size(monkeypatch, fields):
    """Another encoder stands in, to be quick; test_bundles.py has the real one."""
    model = fill_model(STIF(Config(**TINY, **fields)))
    stem = Stem(model.encoder.conv_first)
    monkeypatch.setattr(graphs, "_Encoder", lambda encoder, dtype: stem)
    running = session(graphs.finish(graphs.full_graph(model, torch.float32), "standard", 19))
    assert [value.name for value in running.get_inputs()] == ["frames", "t", "size"]
    for B, inputs, outputs in (
        (2, (12, 16), (48, 64)),
        (1, (24, 16), (37, 53)),  # rows exactly between two input rows
        (1, (16, 16), (5, 7)),
        (1, (8, 12), (1, 20)),
        (3, (8, 12), (1, 1)),
    ):
        frames, times = random_frames(B, *inputs), torch.linspace(0, 1, B + 2)[1:-1]
        with torch.no_grad():
            expected = model.decode(Features(*stem(frames)), frames, times, outputs).rgb
        given = {"frames": frames.numpy(), "t": times.numpy(), "size": np.array(outputs)}
        torch.testing.assert_close(torch.from_numpy(running.run(None, given)[0]), expected, atol=1e-4, rtol=0)


class Stem(torch.nn.Module):
    """Something in the place of the encoder."""

    def __init__(self, convolution):
        super().__init__()
        self.convolution = convolution

    def forward(self, frames):
        both = self.convolution(frames.flatten(0, 1)).unflatten(0, (frames.shape[0], 2))
        return (torch.cat((both, both[:, :1]), 1),)


@pytest.mark.parametrize(
    ("form", "opset", "dtype", "message"),
    [
        ("magic", 20, "float32", "magic"),
        ("standard", 18, "float32", "19 to 25"),
        ("standard", 20, "float64", "float64"),
        ("standard", 20, "bfloat16", "22 or later"),
    ],
)
def test_what_cannot_be_exported(form, opset, dtype, message):
    with pytest.raises(ValueError, match=message):
        graphs.check(form, opset, dtype)


@pytest.mark.slow
def test_other_threads_render_the_same_while_one_exports(tiny_model, frames):
    """The other thread works while the encoder is being traced, at its first convolution and its deformable one.

    Rounding differs: meanwhile PyTorch's exporter switches oneDNN off for the whole process.
    """
    runtime = Runtime.from_model(copy.deepcopy(tiny_model), device="cpu", dtype="float32")
    expected = runtime.encode(*frames).render(0.3, scale=2)
    actual = []

    def render_elsewhere(*_):
        thread = threading.Thread(target=lambda: actual.append(runtime.encode(*frames).render(0.3, scale=2)))
        thread.start()
        thread.join()

    encoder = copy.deepcopy(tiny_model.encoder)
    deformable = next(module for module in encoder.modules() if isinstance(module, DeformableConv))
    for module in (encoder.conv_first, deformable):
        module.register_forward_pre_hook(render_elsewhere)
    graphs.encoder_graph(encoder, tiny_model.config, torch.float32, FIXED)
    assert len(actual) >= 2
    for pictures in actual:
        torch.testing.assert_close(pictures, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("content", [b"text", b""])
def test_other_files_are_not_taken_for_encoders(tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(ValueError, match="not an ONNX file that stif-rt wrote"):
        graphs.read_limits(tmp_path / "x.onnx")


# TensorRT-RTX builds without a GPU


@pytest.fixture(scope="session")
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, of the extra rtx")


def read_network(trt, graph, tmp_path):
    """The file as TensorRT-RTX's network."""
    graphs.save(graph, tmp_path / "encoder.onnx")
    log = build.make_log(trt)
    builder = trt.Builder(log)
    network, parser = build.parse(trt, "tensorrt-rtx", builder, tmp_path / "encoder.onnx", log)
    return network, (parser, builder, log)


@pytest.fixture(scope="session")
def paper_half(paper_model):
    """The paper's encoder, float16, a range of sizes. Tracing it takes more than a minute."""
    return graphs.encoder_graph(paper_model.encoder, paper_model.config, torch.float16, RANGE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stif-s-dcn", "stif"])
def test_tensorrt_rtx_builds_the_encoder(rtx, request, name, tmp_path):
    """Dynamic shapes, float16."""
    model, traced = {"stif-s-dcn": ("compact_model", "compact_half"), "stif": ("paper_model", "paper_half")}[name]
    model = request.getfixturevalue(model)
    assert model.config == CONFIGS[name]
    graph = graphs.finish(request.getfixturevalue(traced), "grid-sample", 20)
    network, _alive = read_network(rtx, graph, tmp_path)
    layers = Counter(network.get_layer(index).type for index in range(network.num_layers))
    kinds = Counter(node.op_type for node in graph.graph.node)
    assert layers[rtx.LayerType.GRID_SAMPLE] == kinds["GridSample"] > 0
    assert layers[rtx.LayerType.CONVOLUTION] == kinds["Conv"]
    assert network.get_flag(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    given, made = network.get_input(0), network.get_output(0)
    assert (network.num_inputs, given.name, given.dtype, tuple(given.shape)) == (
        *(1, "frames", rtx.float32),
        (1, 2, 3, -1, -1),
    )
    assert (network.num_outputs, made.name, made.dtype, tuple(made.shape)[:3]) == (
        1,
        "features",
        rtx.float16,
        (1, 3, 64),
    )
    convolutions = [n for n in map(network.get_layer, range(network.num_layers)) if n.type == rtx.LayerType.CONVOLUTION]
    assert {layer.get_output(0).dtype for layer in convolutions} == {rtx.float16}

    phases = []
    engine, _ = build.build_engine(tmp_path / "encoder.onnx", "tensorrt-rtx", RANGE, b"", phases.append)
    weights = sum(
        2 * p.numel() for n, p in model.encoder.named_parameters() if not n.startswith(("upconv", "HR", "conv_last"))
    )
    assert weights < len(engine) < 3 * weights + (20 << 20)
    assert phases


@pytest.mark.slow
def test_tensorrt_rtx_says_what_it_cannot_read(rtx, compact_half, tmp_path):
    with pytest.raises(RuntimeError, match=r"cannot read encoder.onnx.*DeformConv.*grid-sample"):
        read_network(rtx, graphs.finish(compact_half, "standard", 20), tmp_path)


@pytest.mark.slow
def test_tensorrt_rtx_reads_bfloat16(rtx, half_graphs, tmp_path):
    network, _alive = read_network(rtx, graphs.finish(half_graphs["bfloat16"], "grid-sample", 22), tmp_path)
    assert network.get_output(0).dtype == rtx.bfloat16


def test_tensorrt_rtx_engine_is_cached_under_what_it_depends_on(rtx, half_graphs, tmp_path):
    graphs.save(graphs.finish(half_graphs["bfloat16"], "grid-sample", 22), tmp_path / "encoder.onnx")
    messages: list[str] = []
    given = (tmp_path / "encoder.onnx", "tensorrt-rtx", FIXED, "bfloat16", tmp_path / "cache", messages.append)
    first, key = build.cached_engine(*given)
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert "engine taken from the cache" not in messages
    assert build.cached_engine(*given) == (first, key)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == written
    assert messages[-1] == "engine taken from the cache"
    assert key["builder"] == f"tensorrt-rtx {rtx.__version__}"
    assert set(key) == {"builder", "gpu", "graph", "sizes", "dtype"}
