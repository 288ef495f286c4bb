"""Weights: what is read, and one clear line for all that cannot be."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.networks import build_network, digits_resnet, find_weights, load_weights

State = dict[str, Tensor]


def state_of(network: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def without_counters(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def equal(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in first.state_dict().items())


SAVERS: dict[str, Callable[[State, Path], Any]] = {
    "w.safetensors": lambda state, path: save_file(state, path),
    "bare.pt": torch.save,
    "nested.th": lambda state, path: torch.save({"state_dict": OrderedDict(state), "best_prec1": 91.7}, path),
    "model.pth": lambda state, path: torch.save({"model": state, "epoch": 3}, path),
    "parallel.tar": lambda state, path: torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}}, path),
    "counters.safetensors": lambda state, path: save_file(without_counters(state), path),
}


@pytest.mark.parametrize("name", SAVERS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    source, target = digits_resnet(), digits_resnet()
    assert not equal(source, target)
    SAVERS[name](state_of(source), tmp_path / name)
    load_weights(target, tmp_path / name)
    assert equal(source, target)


def test_auxiliary_heads_are_left_out(tmp_path: Path) -> None:
    class Inception(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.aux_logits = False
            self.fc = nn.Linear(2, 3)

    source, target = Inception(), Inception()
    save_file({**state_of(source), "AuxLogits.fc.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert equal(source, target)


def test_a_missing_file_names_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = re.escape(f"looked at {tmp_path / 'w.pt'}, {tmp_path / 'a/w.pt'}, {tmp_path / 'b/w.pt'}; set")
    with pytest.raises(FileNotFoundError, match=expected):
        find_weights("w.pt", [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(FileNotFoundError, match=re.escape(f"looked at {tmp_path / 'w.pt'}; set")):
        find_weights(tmp_path / "w.pt", [tmp_path / "a"])


def test_the_working_directory_comes_before_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/w.pt").touch()
    monkeypatch.chdir(tmp_path)
    assert find_weights("w.pt", [tmp_path / "a"]) == tmp_path / "a/w.pt"
    (tmp_path / "w.pt").touch()
    assert find_weights("w.pt", [tmp_path / "a"]) == Path("w.pt")
    with pytest.raises(ValueError, match="a is a folder: give the file"):
        find_weights("a")


def changed(**changes: Tensor | None) -> State:
    """The state of a digits network with tensors replaced, added, or (None) left out; `__` stands for a dot."""
    state = state_of(digits_resnet())
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(bn1__weight=None, bn1__bias=None), r"\(CifarResNet\): bn1.weight is missing \(and 1 more\)$"),
        (changed(head__weight=torch.zeros(1)), r"head.weight is not in the network$"),
        (
            changed(layer1__0__conv1__weight=torch.zeros(8, 16, 3, 3)),
            r"layer1.0.conv1.weight has shape \(8, 16, 3, 3\), the network's is \(16, 16, 3, 3\)$",
        ),
        (
            changed(linear__weight=torch.zeros(11, 64), linear__bias=torch.zeros(11)),
            "checkpoint has 11 classes, network.num_classes is 10: set network.num_classes=11$",
        ),
        (
            changed(linear__weight=torch.zeros(10, 32)),
            r"linear.weight has shape \(10, 32\), the network's is \(10, 64\)$",
        ),
        (
            changed(layer2__0__bn1__running_var=torch.full((32,), torch.nan)),
            "layer2.0.bn1.running_var holds NaN or infinity",
        ),
        (changed(conv1__weight=torch.full((16, 1, 3, 3), torch.inf)), "conv1.weight holds NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit(state: State, message: str, tmp_path: Path) -> None:
    network = digits_resnet()
    before = state_of(network)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=f"w.safetensors.*{message}"):
        load_weights(network, tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (digits_resnet(), r"is not a checkpoint that loads safely \(weights_only=True\)"),
        ([torch.zeros(1)], "holds a list, expected a state_dict"),
        ({}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
        ({"epoch": 3}, "holds no state_dict: 'epoch' is a int, expected a tensor"),
    ],
)
def test_checkpoints_without_a_state_dict(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message):
        load_weights(digits_resnet(), tmp_path / "w.pt")


@pytest.mark.parametrize("rubbish", [b"", b"rubbish", b"\x80\x02." * 40, b"PK\x03\x04" + bytes(60), bytes(500)])
@pytest.mark.parametrize(("suffix", "message"), [("safetensors", "not a safetensors file"), ("pt", "loads safely")])
def test_rubbish_is_one_clear_line(rubbish: bytes, suffix: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(rubbish)
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(digits_resnet(), path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "w.onnx").touch()
    with pytest.raises(ValueError, match=r"unknown kind of checkpoint '.onnx', expected one of .safetensors"):
        load_weights(digits_resnet(), tmp_path / "w.onnx")


@pytest.mark.real
@pytest.mark.parametrize("depth", [20, 56])
def test_published_weights_load(depth: int, real_data: Path) -> None:
    from secateur.configs import load_config

    settings = load_config(f"cifar10-resnet{depth}").network
    build_network(settings, [real_data / "cifar10-lossless"])
    one_more = settings.model_copy(update={"num_classes": 11})
    with pytest.raises(ValueError, match=r"checkpoint has 10 classes, network\.num_classes is 11"):
        build_network(one_more, [real_data / "cifar10-lossless"])
