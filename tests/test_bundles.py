"""Bundles: writing, running, refusing; the command line ``stif-rt export``."""

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.command_line import call, read
from helpers.videos import picture, write_images
from safetensors import safe_open
from safetensors.torch import save_file

from stif_rt import Runtime
from stif_rt.bundle import FORMAT, LATER_FIELDS, MANIFEST, Manifest, Size, Sizes, file_checksum, read_bundle
from stif_rt.engines import BUNDLE_ENGINES, onnxruntime_engine, tensorrt_engine
from stif_rt.model import stif
from stif_rt.model.checkpoints import load_model, save_model
from stif_rt.model.config import CONFIGS
from stif_rt.model.encoder import Encoder
from stif_rt.runtime import bundled_weights

pytest.importorskip("onnxruntime", reason="needs the packages of the extra export")
pytest.importorskip("onnxscript", reason="needs the packages of the extra export")
from stif_export import bundles, graphs
from stif_export.verify import TOLERANCES, moving_frames, verify

from stif_rt.cli import export as export_cli


@pytest.fixture
def traced(monkeypatch, compact_graph):
    """The bundled weights' encoder, traced before: tracing takes longer than everything else here."""
    monkeypatch.setattr(graphs, "encoder_graph", lambda *_: compact_graph)


@pytest.fixture(scope="session")
def made(compact_model, compact_graph, tmp_path_factory):
    """A bundle of the bundled weights for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "encoder_graph", lambda *_: compact_graph)
        bundles.write_bundle(compact_model, folder, "onnx")
    return folder


@pytest.fixture
def bundle(made, tmp_path):
    return shutil.copytree(made, tmp_path / "bundle")


@pytest.mark.slow
def test_manifest_says_what_is_in_it(bundle, compact_model):
    manifest = read_bundle(bundle).manifest
    assert manifest.config == compact_model.config
    assert (manifest.format, manifest.engine, manifest.dtype, manifest.form) == (FORMAT, "onnx", "float32", "standard")
    assert manifest.sizes == graphs.any_size(compact_model.config)
    assert {"torch", "onnx", "stif-rt"} <= set(manifest.tools)
    assert set(manifest.files) == {"encoder.onnx", "weights.safetensors"}
    assert {path.name for path in bundle.iterdir()} == {*manifest.files, MANIFEST}
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.slow
def test_runs_without_the_encoder_being_built(monkeypatch, bundle, frames, compact_model):
    model = copy.deepcopy(compact_model)
    expected = Runtime.from_model(model, device="cpu", dtype="float32", kernels="reference")
    expected.encode(*frames)

    def refuse(*_):
        raise AssertionError("the PyTorch encoder was built")

    monkeypatch.setattr(Encoder, "__init__", refuse)
    monkeypatch.setattr(stif, "Encoder", refuse)
    runtime = Runtime.load(bundle, device="cpu", kernels="reference")
    runtime.encode(*frames)
    torch.testing.assert_close(runtime.render(0.3, scale=3), expected.render(0.3, scale=3), atol=1e-4, rtol=0)


def test_the_weights_in_a_bundle_also_run_by_pytorch(bundle, frames, compact_model):
    actual = Runtime.load(bundle, device="cpu", encoder="torch")
    expected = Runtime.from_model(copy.deepcopy(compact_model), device="cpu", dtype="float32")
    for runtime in (actual, expected):
        runtime.encode(*frames)
    assert torch.equal(actual.render(0.5, scale=2), expected.render(0.5, scale=2))


@pytest.fixture
def weights(compact_model, tmp_path_factory):
    """Those of the traced encoder, as a file."""
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_model(compact_model, path)
    return path


def test_round_trip_on_the_command_line(monkeypatch, capsys, tmp_path, traced, weights):
    source = write_images(tmp_path / "in", [picture(n) for n in range(3)])
    results = []
    status, _, err = call(monkeypatch, capsys, "export", "bundle", "--weights", weights, "--output", tmp_path / "b")
    assert status == 0, err
    for name, arguments in (("plain", ["--weights", weights]), ("bundle", ["--weights", tmp_path / "b"])):
        given = ["render", source, tmp_path / name, "--scale", 2, "--time-scale", 2, "--dtype", "float32", *arguments]
        status, _, err = call(monkeypatch, capsys, *given)
        assert status == 0, err
        results.append([image.image for image in read(tmp_path / name)[1]])
    assert len(results[0]) == len(results[1]) == 6
    for one, other in zip(*results, strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


@pytest.mark.slow
def test_python_m_writes_onnx_of_the_whole_network(tiny_model, tmp_path):
    import onnxruntime

    save_model(tiny_model, tmp_path / "w.safetensors")
    given = ["--weights", "w.safetensors", "--output", "full.onnx", "--part", "full", "--size", "22x14"]
    command = [sys.executable, "-m", "stif_export", "onnx", *given, "--form", "grid-sample", "--opset", "19"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "wrote full.onnx" in done.stderr
    running = onnxruntime.InferenceSession(str(tmp_path / "full.onnx"))
    frames, times = torch.rand(1, 2, 3, 16, 24), torch.tensor([0.3])
    with torch.no_grad():
        expected = tiny_model(frames, times, (37, 41))
    inputs = {"frames": frames.numpy(), "t": times.numpy(), "size": np.array((37, 41))}
    torch.testing.assert_close(torch.from_numpy(running.run(None, inputs)[0]), expected, atol=1e-4, rtol=0)


def test_torch_bundle(monkeypatch, capsys, tmp_path, frames):
    status, _, err = call(monkeypatch, capsys, "export", "bundle", "--output", tmp_path / "b", "--encoder", "torch")
    assert status == 0, err
    assert {path.name for path in (tmp_path / "b").iterdir()} == {MANIFEST, "weights.safetensors"}
    runtime = Runtime.load(tmp_path / "b", device="cpu")
    runtime.encode(*frames)
    assert runtime.render(0.5).shape == (3, 18, 21)


@pytest.mark.slow
def test_verify(monkeypatch, capsys, bundle):
    results = verify(read_bundle(bundle), ["onnx:cpu", "torch"])
    assert [result.engine for result in results] == ["onnx:cpu", "onnx:cpu", "torch", "torch"]
    assert {result.size for result in results} == {Size(2, 32, 48), Size(1, 4, 4)}
    assert all(result.ok and 0 < result.mean <= result.largest < 1e-4 and result.seconds > 0 for result in results[:2])
    status, out, err = call(monkeypatch, capsys, "export", "verify", bundle, "--encoder", "onnx:cpu")
    assert status == 0, err
    assert "good" in out
    status, out, err = call(
        *(monkeypatch, capsys, "export", "verify", bundle, "--encoder", "onnx:cpu", "--tolerance", "1e-12")
    )
    assert (status, "beyond the tolerance" in err) == (1, True)
    if not torch.cuda.is_available():
        status, out, err = call(monkeypatch, capsys, "export", "verify", bundle, "--encoder", "onnx:cuda")
        assert (status, "onnx:cuda cannot run here" in err, "no NVIDIA GPU" in out) == (1, True, True)


def test_verify_notices_other_weights(bundle, compact_model):
    """A graph that is not the weights': every checksum right, the numbers wrong."""
    state = {name: value.clone() for name, value in compact_model.state_dict().items()}
    state["conv_first.weight"] *= 1.1
    other = stif.STIF(compact_model.config)
    other.load_state_dict(state)
    save_model(other, bundle / "weights.safetensors")
    edit(bundle, files={path.name: file_checksum(path) for path in bundle.iterdir() if path.name != MANIFEST})
    (result, *_) = verify(read_bundle(bundle), ["onnx:cpu"])
    assert not result.ok


FILES = {"weights.safetensors": "0", "encoder.onnx": "0"}


def edit(folder, **fields):
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(values | fields))


def without(folder, name):
    files = json.loads((folder / MANIFEST).read_text())["files"]
    edit(folder, files={key: value for key, value in files.items() if key != name})


def other_config(folder):
    config = read_bundle(folder).manifest.config
    return replace(config, grid="corners" if config.grid == "centres" else "centres").to_dict()


def poison(folder, value):
    """Another value in a weight of the implicit functions, with every checksum right."""
    path = folder / "weights.safetensors"
    with safe_open(path, framework="pt") as file:
        state, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    bias = state["encode_imnet.net.0.linear.bias"]
    state["encode_imnet.net.0.linear.bias"] = torch.full(bias.shape, value)
    save_file(state, path, metadata)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    edit(folder, files=files | {path.name: file_checksum(path)})


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE = {
    "truncated graph": (lambda b: truncate(b / "encoder.onnx"), "encoder.onnx does not have the manifest's checksum"),
    "tampered weights": (lambda b: truncate(b / "weights.safetensors"), "damaged or was changed"),
    "missing file": (lambda b: (b / "encoder.onnx").unlink(), "encoder.onnx is missing"),
    "no manifest": (lambda b: (b / MANIFEST).unlink(), "has no manifest.json"),
    "truncated manifest": (lambda b: truncate(b / MANIFEST), "cannot be used"),
    "not an object": (lambda b: (b / MANIFEST).write_text("[]"), "no format version"),
    "newer": (lambda b: edit(b, format=FORMAT + 1), "upgrade stif-rt"),
    "newer configuration": (lambda b: edit(b, config={"new": 1}), "unknown configuration fields"),
    "unknown field": (lambda b: edit(b, new=1), r"unknown manifest fields \['new'\].*newer"),
    "unknown engine": (lambda b: edit(b, engine="magic"), "magic"),
    "unknown dtype": (lambda b: edit(b, dtype="float64"), "float64"),
    "malformed sizes": (lambda b: edit(b, sizes=[1]), "sizes is .*3 items"),
    "sizes that are no numbers": (lambda b: edit(b, sizes=[["1", 4, 4]] * 3), r"sizes\[0\]\[0\] is '1'"),
    "sizes that shrink": (lambda b: edit(b, sizes=[[1, 8, 8], [1, 8, 8], [1, 4, 4]]), "do not grow"),
    "no sizes": (lambda b: edit(b, sizes=None), "does not say which sizes"),
    "format is a flag": (lambda b: edit(b, format=True), "no format version"),
    "checksums that are no texts": (lambda b: edit(b, files={"weights.safetensors": 1}), r"files\['weights"),
    "engine without its graph": (lambda b: without(b, "encoder.onnx"), "lists no encoder.onnx"),
    "engine without its file": (lambda b: edit(b, engine="tensorrt"), "lists no encoder.engine"),
    "unknown form": (lambda b: edit(b, form="origami"), "names the form 'origami'"),
    "another configuration": (lambda b: edit(b, config=other_config(b)), "another configuration than weights"),
    "configuration of other types": (lambda b: edit(b, config={"back_blocks": 1e9}), r"back_blocks is 1000000000\.0"),
    "deep nesting": (lambda b: (b / MANIFEST).write_text("[" * 100_000), "nested too deeply"),
    "infinite weights": (lambda b: poison(b, float("inf")), "not finite: encode_imnet"),
    "overflowing weights": (lambda b: poison(b, 1e30), "too large .*: encode_imnet"),
    "integer weights": (lambda b: poison(b, 1), r"encode_imnet.*\(int64\)"),
    "no files": (lambda b: edit(b, files={}), "lists no weights.safetensors"),
    "outside": (
        lambda b: edit(b, files={"../x": "0", "weights.safetensors": "0", "encoder.onnx": "0"}),
        "not a file of the bundle",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_bundles_are_refused(bundle, kind):
    damage, message = DAMAGE[kind]
    damage(bundle)
    with pytest.raises(ValueError, match=message):
        Runtime.load(bundle, device="cpu")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"encoder": "tensorrt"}, ValueError, "made for 'onnx'"),
        ({"encoder": "magic"}, ValueError, "magic"),
        ({"encoder": "onnx:magic"}, ValueError, "unknown ONNX Runtime provider 'magic'"),
        ({"encoder": "onnx:cuda", "device": "cpu"}, RuntimeError, "does not run on cpu"),
        ({"dtype": "int4"}, ValueError, "int4"),
        ({"max_memory": 0}, ValueError, "max_memory"),
    ],
)
def test_wrong_options_for_a_bundle(bundle, options, error, message):
    with pytest.raises(error, match=message):
        Runtime.load(bundle, **{"device": "cpu", **options})


def test_frames_of_another_size_are_refused(bundle, frames):
    edit(bundle, sizes=[[1, 16, 16]] * 3)
    runtime = Runtime.load(bundle, device="cpu")
    with pytest.raises(ValueError, match=r"frames 16x16 only .*not 24x20"):
        runtime.encode(*frames)
    edit(bundle, sizes=[[1, 16, 16], [1, 16, 16], [1, 16, 32]])
    runtime = Runtime.load(bundle, device="cpu")
    with pytest.raises(ValueError, match="from 16x16 to 32x16"):
        runtime.encode(*frames)


def test_what_cannot_run_says_why():
    cpu = torch.device("cpu")
    assert BUNDLE_ENGINES["onnx"].unavailable_reason(cpu, torch.float32) is None
    assert "bfloat16" in BUNDLE_ENGINES["onnx"].unavailable_reason(cpu, torch.bfloat16)
    assert "GPUs only" in BUNDLE_ENGINES["tensorrt"].unavailable_reason(cpu, torch.float32)
    assert "provider 'cpu' does not run on cuda" in onnxruntime_engine.unavailable_reason(
        torch.device("cuda"), torch.float32, "cpu"
    )


def test_foreign_engine_is_refused(tmp_path):
    built = {"builder": "tensorrt 10.9", "gpu": "NVIDIA A100, sm_80", "graph": "a", "sizes": "b", "dtype": "float16"}
    tensorrt_engine.check_key(built, built, tmp_path)
    with pytest.raises(
        RuntimeError, match=r"gpu 'NVIDIA A100, sm_80' there, 'NVIDIA H100, sm_90' here.*export tensorrt"
    ):
        tensorrt_engine.check_key(built, {**built, "gpu": "NVIDIA H100, sm_90"}, tmp_path)
    with pytest.raises(RuntimeError, match="unknown"):
        tensorrt_engine.check_key(None, built, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_tensorrt_needs_a_gpu_to_build(tmp_path, compact_model, traced):
    with pytest.raises(RuntimeError, match=r"tensorrt is not installed|PyTorch sees none"):
        bundles.write_bundle(compact_model, tmp_path / "b", "tensorrt")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tensorrt_rtx_bundle(monkeypatch, capsys, tmp_path, compact_graph, weights):
    """Built without a GPU, refused with a reason where none can run it, and built again."""
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, of the extra rtx")
    monkeypatch.setattr(graphs, "encoder_graph", lambda *_: compact_graph)
    target, given = tmp_path / "b", ["--weights", weights, "--encoder", "tensorrt-rtx"]
    given += ["--min-size", "64x64", "--max-size", "128x96"]
    status, _, err = call(
        *(monkeypatch, capsys, "export", "bundle", "--output", target, *given, "--cache", tmp_path / "cache")
    )
    assert status == 0, err
    manifest = read_bundle(target).manifest
    assert manifest.sizes == Sizes(Size(1, 64, 64), Size(1, 96, 128), Size(1, 96, 128))
    assert manifest.form == "grid-sample"
    assert manifest.engine_key["graph"] == manifest.files["encoder.onnx"]
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="NVIDIA GPUs only"):
            Runtime.load(target, device="cpu")
    runtime = Runtime.load(target, device="cpu", encoder="onnx:cpu")  # the graph is there for whoever wants it
    runtime.encode(*np.zeros((2, 64, 64, 3), np.uint8))

    edit(target, engine_key={"builder": "tensorrt-rtx 0"})
    status, _, err = call(monkeypatch, capsys, "export", "tensorrt", target, "--cache", tmp_path / "cache")
    assert status == 0, err
    assert read_bundle(target).manifest.engine_key == manifest.engine_key
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "cache"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bundle", "--output", "taken"], "taken exists; give --overwrite"),
        (["bundle", "--output", "folder", "--overwrite"], "not a bundle, so it is not replaced"),
        (["bundle", "--output", "none/b"], "does not exist"),
        (["bundle", "--output", "b", "--encoder", "magic"], "magic"),
        (["bundle", "--output", "b", "--dtype", "int4"], "int4"),
        (["bundle", "--output", "b", "--opset", "7"], "opset 7"),
        (["bundle", "--output", "b", "--form", "magic"], "magic"),
        (["bundle", "--output", "b", "--size", "320"], "WIDTHxHEIGHT"),
        (["bundle", "--output", "b", "--size", "9999x9999"], "from 1 to"),
        (["bundle", "--output", "b", "--min-size", "64x64", "--max-size", "32x32"], "must grow"),
        (["bundle", "--output", "b", "--weights", "nothing.pth"], "nothing.pth do not exist"),
        (["bundle", "--output", "b", "--encoder", "tensorrt-rtx", "--form", "standard"], "DeformConv"),
        (["onnx", "--output", "file"], "file exists; give --overwrite"),
        (["onnx", "--output", "folder", "--overwrite"], "is a folder"),
        (["onnx", "--output", "x.onnx", "--part", "half"], "half"),
        (["onnx", "--output", "x.onnx", "--dtype", "bfloat16", "--opset", "20"], "22 or later"),
        (["tensorrt", "nothing.onnx", "--output", "x.engine"], "does not exist"),
        (["tensorrt", "file", "--output", "x.engine", "--builder", "tensorrt-rtx"], "not an ONNX file"),
        (["tensorrt", "file", "--output", "x.engine", "--builder", "magic"], "magic"),
        (["tensorrt", "folder"], "not a bundle"),
        (["verify", "folder"], "not a bundle"),
    ],
)
def test_mistakes_are_explained(monkeypatch, capsys, tmp_path, traced, arguments, message):
    if "tensorrt-rtx" in arguments:
        pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, of the extra rtx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    (tmp_path / ".cache").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / MANIFEST).write_text("{}")
    status, _, err = call(monkeypatch, capsys, "export", *arguments)
    assert status == 1
    assert message in err
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {".cache", "folder", "file", "taken"}
    assert (tmp_path / "taken" / MANIFEST).read_text() == "{}"


def test_interruption_leaves_nothing(monkeypatch, compact_model, compact_graph, bundle):
    """A failure midway leaves the bundle that was there, and no other."""
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(graphs, "encoder_graph", lambda *_: compact_graph)
    monkeypatch.setattr(graphs, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        bundles.write_bundle(compact_model, bundle, "onnx", overwrite=True)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_files_have_the_permissions_of_any_new_file(tmp_path, compact_model, compact_graph, monkeypatch):
    monkeypatch.setattr(graphs, "encoder_graph", lambda *_: compact_graph)
    before = os.umask(0o027)
    try:
        bundles.write_bundle(compact_model, tmp_path / "bundle", "onnx")
    finally:
        os.umask(before)
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "bundle").iterdir()} == {0o640}


def test_overwriting_replaces_the_whole_bundle(bundle, compact_model):
    bundles.write_bundle(compact_model, bundle, "torch", overwrite=True)
    assert read_bundle(bundle).manifest.engine == "torch"
    assert {path.name for path in bundle.iterdir()} == {MANIFEST, "weights.safetensors"}


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "stif_rt.cli.export", raising=False)
    monkeypatch.setitem(sys.modules, "stif_export.verify", None)
    status, _, err = call(monkeypatch, capsys, "export", "bundle", "--output", "b")
    assert (status, "pip install 'stif-rt[export]'" in err) == (1, True)


@pytest.mark.parametrize("arguments", [[], ["bundle"], ["onnx"], ["tensorrt"], ["verify"]])
def test_help(monkeypatch, capsys, arguments):
    status, out, _ = call(monkeypatch, capsys, "export", *arguments, "--help")
    assert status == 0
    assert f"export {arguments[0]}" in out if arguments else "export [OPTIONS] COMMAND" in out


def test_sizes_on_the_command_line():
    parse = functools.partial(export_cli.parse_sizes, CONFIGS["stif-s-dcn"])
    assert parse(None, None, None, 1, limited=False) == graphs.any_size(CONFIGS["stif-s-dcn"])
    assert parse("318x180", None, None, 2, limited=False) == Sizes(*[Size(2, 180, 320)] * 3)
    low, typical, high = parse(None, None, None, 1, limited=True)
    assert (low, typical, high) == (Size(1, 64, 64), Size(1, 180, 320), Size(1, 720, 1280))
    assert parse("100x50", "4x4", "640x480", 4, limited=True) == Sizes(
        Size(1, 4, 4), Size(1, 52, 100), Size(4, 480, 640)
    )


def test_sizes_of_networks_with_motion_are_multiples_of_32():
    config = CONFIGS["stif-i"]
    only = Size(1, 192, 320)
    assert export_cli.parse_sizes(config, "318x180", None, None, 1, limited=False) == Sizes(only, only, only)
    assert graphs.any_size(config).smallest == Size(1, 32, 32)
    text = Manifest(config, "onnx", "float32", "standard", 20, Sizes(*[Size(1, 36, 64)] * 3), files=FILES).to_json()
    with pytest.raises(ValueError, match=r"64x36.*not multiples of 32|not multiples of 32.*64x36"):
        Manifest.from_json(text)


@pytest.mark.parametrize("name", ["stif-s-dcn", "stif-s", "stif-i"])
def test_format_1_has_no_velocity(name):
    """Bundles of the format before are read, unless their configuration has what came later."""
    manifest = replace(Manifest(CONFIGS[name], "torch", "float32", files=FILES), format=1)
    if name == "stif-s-dcn":
        values = json.loads(manifest.to_json())
        for later in LATER_FIELDS:
            del values["config"][later]  # as it was written then
        assert Manifest.from_json(json.dumps(values)) == manifest
    else:
        with pytest.raises(ValueError, match=r"format version 1, which has no .*motion.*sif_time.*export it again"):
            Manifest.from_json(manifest.to_json())


def test_an_exported_encoder_takes_no_velocity(bundle, frames):
    runtime = Runtime.load(bundle, device="cpu")
    assert runtime.encode(*frames).velocity is None
    with pytest.raises(ValueError, match="takes no velocity"):
        runtime.encode(*frames, velocity=np.zeros((2, *frames[0].shape[:2]), np.float32))


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_onnx_runtime_on_gpu(bundle, provider):
    reason = onnxruntime_engine.unavailable_reason(torch.device("cuda"), torch.float32, provider)
    if reason is not None:
        pytest.skip(reason)
    (result, *_) = verify(read_bundle(bundle), [f"onnx:{provider}"], tolerance=2e-3)  # TF32
    assert result.ok, result


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_on_gpu(tmp_path, tiny_model, engine, dtype):
    """Builds for this GPU, runs at several sizes, is captured in a CUDA graph, and is refused when it is stale."""
    pytest.importorskip(tensorrt_engine.MODULES[engine])
    sizes = Sizes(Size(1, 16, 16), Size(1, 64, 96), Size(1, 128, 128))
    bundles.write_bundle(tiny_model, tmp_path / "b", engine, dtype, sizes, cache=tmp_path / "cache")
    results = verify(read_bundle(tmp_path / "b"), [engine])
    assert [result.reason for result in results] == [None, None]
    assert all(result.ok for result in results), results

    from stif_rt.engines import make_bundle_engine

    running = make_bundle_engine(engine, read_bundle(tmp_path / "b"), torch.device("cuda"))
    frames = torch.rand(1, 2, 3, 32, 48, device="cuda")
    expected = running(frames).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = running(frames)
    captured.zero_()
    graph.replay()
    torch.testing.assert_close(captured, expected)

    edit(tmp_path / "b", engine_key={**read_bundle(tmp_path / "b").manifest.engine_key, "builder": "older"})
    with pytest.raises(RuntimeError, match=r"builder 'older' there.*export tensorrt"):
        Runtime.load(tmp_path / "b", device="cuda")


@pytest.mark.parametrize("size", [Size(2, 64, 32), Size(1, 32, 32), Size(1, 96, 160)], ids=str)
@pytest.mark.parametrize("name", ["stif-s", "stif-i"])
def test_what_verify_shows_the_bundled_networks_is_no_matter_of_rounding(name, size):
    """Frames that differ by rounding have features and velocities that differ by less than the tolerance."""
    encoder, frames = load_model(bundled_weights(name)).encoder.eval(), moving_frames(size)
    assert frames.shape == (size.batch, 2, 3, size.height, size.width)
    assert 0 <= frames.min() < frames.max() <= 1
    disturbed = frames + 1e-6 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for actual, expected in zip(encoder(disturbed), encoder(frames), strict=True):
            error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1)
            assert error < TOLERANCES["float32"]
            assert expected.abs().max() > 0.1
