import json
import os
import pickle
import random
import re
import traceback
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.cases import VARIANTS
from helpers.models import TINY, fill_model
from safetensors.torch import save_file

from stif_rt import Runtime
from stif_rt.model.checkpoints import infer_config, load_model, save_model, without_values
from stif_rt.model.config import CONFIGS, Config
from stif_rt.model.stif import STIF
from stif_rt.runtime import bundled_weights


def assert_same(a: STIF, b: STIF) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


@pytest.fixture(scope="module")
def plain() -> STIF:
    """A network whose configuration can be inferred."""
    return fill_model(STIF(Config(**TINY)))


@pytest.mark.slow
def test_paper_model(paper_model, tmp_path):
    torch.save(paper_model.state_dict(), tmp_path / "latest_G.pth")
    loaded = load_model(tmp_path / "latest_G.pth")
    assert loaded.config == Config()
    assert_same(loaded, paper_model)


def averaged(state):
    return {name: value + 1 for name, value in state.items()}


LAYOUTS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "loss": torch.tensor(0.1)},
    "params": lambda state: {"params": state},
    "params_ema": lambda state: {"params": averaged(state), "params_ema": state},
    "model_state_dict": lambda state: {"optimizer_state_dict": {"state": {}}, "model_state_dict": state},
    "nested": lambda state: {"model": {"state_dict": state}},
    "netG": lambda state: {"netG": state, "netD": {"x": torch.zeros(1)}},
    "DataParallel": lambda state: prefixed("module.", state),
    "twice": lambda state: prefixed("module.module.", state),
    "compiled": lambda state: prefixed("_orig_mod.", state),
    "compiled in DataParallel": lambda state: {"state_dict": prefixed("module._orig_mod.", state)},
    "compiled inside": lambda state: {name.replace(".", "._orig_mod.", 1): value for name, value in state.items()},
    "Lightning": lambda state: {"state_dict": prefixed("model.", state) | {"loss.vgg.weight": torch.zeros(1)}},
    "NumPy scalars": lambda state: {"state_dict": state, "best": np.float64(1), "n": np.int32(2), "ok": np.bool_(True)},
    "NumPy arrays": lambda state: {"state_dict": state, "history": np.arange(5.0), "names": np.array(["a"])},
    "other configuration": lambda state: {"state_dict": state, "config": {"lr": 1e-4, "batch": 8}},
    "ours": lambda state: {"model": state, "config": Config(**TINY).to_dict()},
}


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_published_files(plain, tmp_path, layout):
    torch.save(LAYOUTS[layout](plain.state_dict()), tmp_path / "w.pth")
    loaded = load_model(tmp_path / "w.pth")
    assert loaded.config == plain.config
    assert_same(loaded, plain)


@pytest.mark.parametrize("name", ["w.safetensors", "w.SAFETENSORS", "w.SafeTensors"])
def test_suffix_in_any_case(plain, tmp_path, name):
    save_model(plain, tmp_path / name)
    assert_same(load_model(tmp_path / name), plain)


def test_safetensors_keep_the_configuration(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "w.safetensors")
    loaded = load_model(tmp_path / "w.safetensors")
    assert loaded.config == tiny_model.config
    assert_same(loaded, tiny_model)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.slow
def test_half_precision_weights_become_float32(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "w.safetensors", torch.float16)
    for name, value in load_model(tmp_path / "w.safetensors").state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, tiny_model.state_dict()[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("variant", ["paper", "-f", "-m", "-s", "-f -m", "-f -s"])
@pytest.mark.parametrize("encoder", [TINY, {"front_blocks": 3, "back_blocks": 0, "recurrent": False}])
def test_configuration_is_inferred(variant, encoder):
    config = Config(**{**VARIANTS[variant].to_dict(), **encoder})
    assert infer_config(STIF(config).state_dict()) == config


@pytest.mark.parametrize("name", CONFIGS)
def test_what_leaves_no_trace_is_that_of_the_named_configuration(name):
    with without_values():
        expected = STIF(CONFIGS[name]).state_dict()
    state = {key: torch.zeros(()).expand(value.shape) for key, value in expected.items()}
    assert infer_config(state) == CONFIGS["stif" if name == "stif-fixed" else name]


@pytest.mark.parametrize("name", ["stif-s", "stif-i"])
def test_bundled_weights_without_their_configuration(tmp_path, name):
    bundled = load_model(bundled_weights(name))
    torch.save({"params_ema": bundled.state_dict()}, tmp_path / "w.pth")
    loaded = load_model(tmp_path / "w.pth")
    assert loaded.config == bundled.config
    assert_same(loaded, bundled)


def test_networks_that_follow_motion_need_their_configuration_if_they_have_no_name(tmp_path):
    model = STIF(replace(CONFIGS["stif-i"], back_blocks=1))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: .*velocity head.*\"config\""):
        load_model(tmp_path / "w.pth")
    torch.save({"params": model.state_dict(), "config": model.config.to_dict()}, tmp_path / "w.pth")
    assert load_model(tmp_path / "w.pth").config == model.config


def test_loaded_model_can_train(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "w.safetensors")
    assert all(p.requires_grad for p in load_model(tmp_path / "w.safetensors").parameters())


def replaced(name, value):
    return lambda state: state | {name: value}


BIAS = "conv_first.bias"
DAMAGE = {
    "missing": (lambda state: {k: v for k, v in state.items() if k != BIAS}, r"1 parameters missing: conv_first\.bias"),
    "unexpected": (replaced("extra.weight", torch.zeros(1)), r"1 parameters unexpected: extra\.weight"),
    "shape": (
        replaced("conv_first.weight", torch.zeros(64, 1, 3, 3)),
        r"wrong shape: conv_first\.weight \[64, 1, 3, 3\] instead of \[64, 3, 3, 3\]",
    ),
    "huge shape": (replaced(BIAS, torch.zeros(1).expand(10**6, 10**6)), "wrong shape"),
    "nan": (replaced(BIAS, torch.full((64,), float("nan"))), r"not finite: conv_first\.bias"),
    "infinite": (replaced(BIAS, torch.full((64,), -float("inf"))), r"not finite: conv_first\.bias"),
    "1e30": (replaced(BIAS, torch.full((64,), 1e30)), r"too large .*: conv_first\.bias"),
    "1e300": (replaced(BIAS, torch.full((64,), -1e300, dtype=torch.float64)), r"too large .*: conv_first\.bias"),
    "bool": (replaced(BIAS, torch.ones(64, dtype=torch.bool)), r"conv_first\.bias \(bool\)"),
    "int": (replaced(BIAS, torch.ones(64, dtype=torch.int64)), r"conv_first\.bias \(int64\)"),
    "complex": (replaced(BIAS, torch.ones(64, dtype=torch.complex64)), r"conv_first\.bias \(complex64\)"),
    "float8": (replaced(BIAS, torch.ones(64).to(torch.float8_e4m3fn)), r"conv_first\.bias \(float8_e4m3fn\)"),
    "sparse": (replaced(BIAS, torch.eye(64).to_sparse()), r"conv_first\.bias \(sparse_coo\)"),
    "compressed": (replaced(BIAS, torch.eye(64).to_sparse_csr()), r"conv_first\.bias \(sparse_csr\)"),
    "meta": (replaced(BIAS, torch.empty(64, device="meta")), r"conv_first\.bias \(without values"),
    "nested": (
        replaced(BIAS, torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)])),
        r"conv_first\.bias \(nested\)",
    ),
    "no tensor": (replaced(BIAS, [0.0] * 64), r"1 parameters missing: conv_first\.bias"),
    "vector": (replaced("encode_imnet.net.0.linear.weight", torch.zeros(64)), "not a STIF checkpoint"),
    "a billion blocks": (replaced("recon_trunk.1000000000.conv1.weight", torch.zeros(1)), "back_blocks is 1000000001"),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.filterwarnings("ignore:.*prototype stage")
def test_what_is_wrong_with_parameters_is_said(plain, tmp_path, how):
    damage, message = DAMAGE[how]
    torch.save(damage(dict(plain.state_dict())), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantised_parameters_are_refused(plain, tmp_path):
    bias = torch.quantize_per_tensor(torch.zeros(64), 0.1, 0, torch.qint8)
    torch.save(dict(plain.state_dict()) | {BIAS: bias}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"conv_first\.bias \(quantised\)"):
        load_model(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"back_blocks": 1000000000}', "back_blocks is 1000000000; it must be from 0 to 256"),
        ('{"front_blocks": -1}', "front_blocks is -1"),
        ('{"back_blocks": 2.0}', r"back_blocks is 2\.0; it must be a whole number"),
        ('{"back_blocks": true}', "back_blocks is True"),
        ('{"recurrent": 0}', "recurrent is 0; it must be true or false"),
        ('{"grid": "hexagons"}', "grid is 'hexagons'; it must be 'corners' or 'centres'"),
        ('{"tif_widths": "64"}', "tif_widths is '64'; it must be a list"),
        ('{"tif_widths": [64, 1e9]}', r"tif_widths\[1\] is 1000000000\.0"),
        ('{"tif_widths": [64, 6400000]}', "tif_widths is"),
        ('{"holographic": true}', "holographic.*newer"),
        ("[]", "configuration must be named values"),
        ("{", "w.safetensors: "),
        ("[" * 10_000, "nested too deeply"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_said(tmp_path, config, message):
    """Before anything is built: the files are a few hundred bytes."""
    save_file({"encode_imnet.net.0.linear.weight": torch.zeros(1, 1)}, tmp_path / "w.safetensors", {"config": config})
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "w.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["encoder", "implicit_functions"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_that_a_dtype_cannot_hold(dtype, part):
    """Of a network in memory: files are checked when they are read."""

    def load(value):
        model = fill_model(STIF(Config(**TINY)))
        with torch.no_grad():
            next(getattr(model, part).parameters()).view(-1)[3] = value
        return Runtime.from_model(model, device="cpu", dtype=dtype, kernels="reference")

    largest = torch.finfo(getattr(torch, dtype)).max
    load(largest)
    for value in (largest * 1.01 if dtype == "float16" else float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f" has values that {dtype} cannot hold"):
            load(value)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Bomb.target),)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda value, path: torch.save({"conv_first.weight": value}, path), "it holds the Python object [a-z]+.mkdir"),
        (lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2)), "it holds the Python object"),
        (lambda value, path: path.write_bytes(pickle.dumps(value)), "it is damaged .* of another format"),
        (lambda value, path: torch.save({"state_dict": {}, "path": path}, path), "it holds the Python object pathlib"),
        (lambda value, path: torch.save(torch.nn.Linear(2, 2), path), "it holds the Python object torch.nn"),
    ],
)
def test_code_in_a_checkpoint_is_never_run(tmp_path, write, message):
    Bomb.target = tmp_path / "exploded"
    write(Bomb(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"not a checkpoint of plain tensors: {message}") as caught:
        load_model(tmp_path / "w.pth")
    told = "".join(traceback.format_exception(caught.value)).partition("Traceback")[2]
    assert not {"weights_only", "add_safe_globals", "arbitrary"} & set(re.findall(r"\w+", told))
    assert not Bomb.target.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"not weights at all", "not a"),
        (b"\x80\x02}q\x00.", "not a"),
        (b"<!DOCTYPE html><html>too many users have viewed this file</html>", "web page"),
        (b"\xef\xbb\xbf\n <HTML lang=en>", "web page"),
        ("<html>".encode("utf-16"), "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (b"PK\x03\x04" + bytes(100), "not a"),
    ],
)
def test_other_files_give_a_clear_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} .*({message})") as caught:
        load_model(tmp_path / name)
    assert "weights_only" not in str(caught.value)


def small_files(folder):
    """Files of a few kilobytes, of which every byte matters to the reader but those of one tensor."""
    state = {"encode_imnet.net.0.linear.weight": torch.zeros(2, 3), "conv_first.bias": torch.ones(4)}
    config = Config(**TINY)
    save_file(state, folder / "a.safetensors", {"config": json.dumps(config.to_dict())})
    torch.save({"state_dict": state, "config": config.to_dict(), "best": np.float64(1)}, folder / "b.pth")
    torch.save(state, folder / "c.pth", _use_new_zipfile_serialization=False)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("seed", range(60))
def test_damaged_bytes_never_do_more_than_raise_an_error(tmp_path, seed):
    rng = random.Random(seed)
    for path in small_files(tmp_path):
        data = bytearray(path.read_bytes())
        damage = rng.choice(["truncated", "flipped", "overwritten", "inserted", "garbage"])
        start, length = rng.randrange(len(data)), rng.randrange(1, 9)
        if damage == "truncated":
            del data[start:]
        elif damage == "flipped":
            for _ in range(length):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif damage == "overwritten":
            data[start : start + length] = rng.randbytes(length)
        elif damage == "inserted":
            data[start:start] = rng.randbytes(length)
        else:
            data[:] = rng.randbytes(rng.randrange(600))
        path.write_bytes(data)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load_model(path)


def test_truncated_file(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="complete safetensors"):
        load_model(tmp_path / "w.safetensors")


def test_absent_file_and_other_networks(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_model(tmp_path / "none.pth")
    save_file({"layer.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a STIF checkpoint"):
        load_model(tmp_path / "other.safetensors")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no parameters"):
        load_model(tmp_path / "list.pth")
