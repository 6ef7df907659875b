import os
import pickle

import pytest
import torch
from helpers.cases import VARIANTS
from helpers.models import TINY, fill_model
from safetensors.torch import save_file

from stif_rt.model.checkpoints import infer_config, load_model, save_model
from stif_rt.model.config import Config
from stif_rt.model.stif import STIF


def assert_same(a: STIF, b: STIF) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("container", [None, "state_dict", "params"])
def test_published_forms_load(paper_model, tmp_path, container, prefix):
    state = {prefix + name: value for name, value in paper_model.state_dict().items()}
    torch.save({container: state} if container else state, tmp_path / "latest_G.pth")
    loaded = load_model(tmp_path / "latest_G.pth")
    assert loaded.config == Config()
    assert_same(loaded, paper_model)


def test_safetensors_keep_the_configuration(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "w.safetensors")
    loaded = load_model(tmp_path / "w.safetensors")
    assert loaded.config == tiny_model.config
    assert_same(loaded, tiny_model)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


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


def test_loaded_model_can_train(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "w.safetensors")
    assert all(p.requires_grad for p in load_model(tmp_path / "w.safetensors").parameters())


def broken(state, how):
    state = dict(state)
    if how == "missing":
        del state["conv_first.bias"]
    elif how == "unexpected":
        state["extra.weight"] = torch.zeros(1)
    elif how == "shape":
        state["conv_first.weight"] = torch.zeros(64, 1, 3, 3)
    elif how == "nan":
        state["conv_first.bias"] = torch.full((64,), float("nan"))
    return state


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", r"1 parameters missing: conv_first\.bias"),
        ("unexpected", r"1 parameters unexpected: extra\.weight"),
        ("shape", r"wrong shape: conv_first\.weight \[64, 1, 3, 3\] instead of \[64, 3, 3, 3\]"),
        ("nan", r"not finite: conv_first\.bias"),
    ],
)
def test_wrong_parameters_are_named(tiny_model, tmp_path, how, said):
    torch.save(broken(tiny_model.state_dict(), how), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=said):
        load_model(tmp_path / "w.pth")


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Bomb.target),)


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    Bomb.target = tmp_path / "exploded"
    for name, write in {
        "torch.pth": lambda path: torch.save({"conv_first.weight": Bomb()}, path),
        "plain.pth": lambda path: path.write_bytes(pickle.dumps(Bomb())),
    }.items():
        write(tmp_path / name)
        with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
            load_model(tmp_path / name)
    assert not Bomb.target.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02}q\x00."])
def test_other_files_give_a_clear_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.(pth|safetensors)"):
        load_model(tmp_path / name)


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


def test_newer_configuration_is_refused(tmp_path):
    model = fill_model(STIF(Config(**TINY)))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors", metadata={"config": '{"holographic": true}'})
    with pytest.raises(ValueError, match=r"holographic.*newer"):
        load_model(tmp_path / "w.safetensors")
