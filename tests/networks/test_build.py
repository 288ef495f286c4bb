"""Every registered network, torchvision's and the caller's own; and the messages for what does not exist."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.configs.schema import FitConfig, NetworkConfig
from secateur.networks import (
    BasicBlock,
    ChannelPad,
    build_network,
    cifar_resnet,
    digits_resnet,
    register_network,
    registered_networks,
)


def config(name: str, num_classes: int = 10, **values: Any) -> NetworkConfig:
    return NetworkConfig(name=name, num_classes=num_classes, **{"pretrain": FitConfig(epochs=1), **values})


def image(network: nn.Module, size: int = 8) -> torch.Tensor:
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    return torch.randn(2, first.in_channels, size, size)


@pytest.mark.parametrize("name", registered_networks())
def test_registered_network_builds_and_forwards(name: str) -> None:
    network = build_network(config(name, num_classes=7))
    assert not network.training
    with torch.no_grad():
        assert network(image(network)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "googlenet"])
def test_torchvision_network_builds_and_forwards(name: str) -> None:
    network = build_network(config(f"torchvision:{name}", num_classes=7))
    with torch.no_grad():
        assert network(image(network, 64)).shape == (2, 7)


def test_torchvision_detector_builds_and_finds_boxes() -> None:
    network = build_network(config("torchvision:ssdlite320_mobilenet_v3_large", num_classes=3))
    with torch.no_grad():
        (found,) = network([torch.rand(3, 40, 30)])
    assert found.keys() == {"boxes", "scores", "labels"}
    assert set(found["labels"].tolist()) <= {1, 2}
    with pytest.raises(ValueError, match=r"network\.kwargs\.weights_backbone: give the weights as a file"):
        build_network(config("torchvision:fcos_resnet50_fpn", kwargs={"weights_backbone": "DEFAULT"}))


@pytest.mark.parametrize("name", ["mobilenetv1_100", "efficientnet_lite0"])
def test_timm_network_builds_and_forwards(name: str) -> None:
    pytest.importorskip("timm")
    network = build_network(config(f"timm:{name}", num_classes=7, kwargs={"drop_rate": 0.25}))
    assert not network.training
    assert network.drop_rate == 0.25
    with torch.no_grad():
        assert network(image(network, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("mobilenetv1_10", {}, "timm has no network 'mobilenetv1_10' – did you mean mobilenetv1_100"),
        ("mobilenetv1_100.ra4_e3600_r224_in1k", {}, "timm has no network 'mobilenetv1_100.ra4_e3600_r224_in1k'"),
        ("hf-hub:timm/resnet18", {}, "timm has no network 'hf-hub:timm/resnet18'"),
        ("resnet18", {"pretrained": True}, "kwargs.pretrained: give the weights as a file in network.weights"),
        ("resnet18", {"checkpoint_path": "x.pth"}, "kwargs.checkpoint_path: give the weights as a file"),
        ("resnet18", {"widht": 3}, "network.kwargs={'widht': 3} for timm:resnet18: .*'widht'"),
    ],
)
def test_what_timm_cannot_give(name: str, kwargs: dict[str, Any], message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message):
        build_network(config(f"timm:{name}", kwargs=kwargs))


def test_without_timm_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm:resnet18: timm is not installed: pip install 'secateur\[timm\]'"):
        build_network(config("timm:resnet18"))


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameter_counts_of_the_paper(depth: int, millions: float) -> None:
    # He et al. 2016, table 6, which rounds to two digits
    count = sum(parameter.numel() for parameter in cifar_resnet(depth).parameters())
    assert float(f"{count / 1e6:.2g}") == millions


def test_shortcuts_are_channel_pads_where_shapes_change() -> None:
    blocks = {name: m for name, m in cifar_resnet(20).named_modules() if isinstance(m, BasicBlock)}
    pads = [name for name, block in blocks.items() if isinstance(block.shortcut, ChannelPad)]
    identities = [name for name, block in blocks.items() if isinstance(block.shortcut, nn.Identity)]
    assert pads == ["layer2.0", "layer3.0"]
    assert len(identities) == 7


def test_digits_resnet_has_inner_layers_of_differing_size() -> None:
    widths = [m.conv1.out_channels for m in digits_resnet().modules() if isinstance(m, BasicBlock)]
    assert widths == [16, 16, 32, 32, 64, 64]


def test_seed_draws_the_weights_and_leaves_torch_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = (build_network(config("digits_resnet"), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.conv1.weight, same.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_weights_are_loaded_from_a_search_folder(tmp_path: Path) -> None:
    source = digits_resnet()
    (tmp_path / "data").mkdir()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    network = build_network(config("digits_resnet", weights="../w.safetensors"), [tmp_path / "data"])
    assert not network.training
    assert torch.equal(network.linear.weight, source.linear.weight)


@pytest.mark.parametrize("depth", [19, 2, 21])
def test_impossible_depth(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth={depth}: a CIFAR ResNet has 6n\+2 layers"):
        cifar_resnet(depth)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar_resnet21", "no network 'cifar_resnet21'.* did you mean cifar_resnet"),
        ("mobilenet_v2", "did you mean torchvision:mobilenet_v2"),
        ("torchvision:resnet81", "no network 'resnet81' of classification or detection – did you mean resnet"),
        ("torchvision:", "no network '' of classification or detection"),
        ("nowhere.at.all:make", "no module 'nowhere' here"),
        (":make", "expected package.module:callable"),
        ("secateur.networks:digit_resnet", "no callable 'digit_resnet' – did you mean digits_resnet"),
        ("secateur.networks:DEPTHS", "no callable 'DEPTHS'"),
        ("builtins:dict", "dict.* cannot be called by keyword"),
        ("secateur.configs:builtin_configs", "returned a list, expected a torch.nn.Module"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(config(name), trust_code=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:system", r"network\.name='os:system' names code .* --trust-code \(in Python: trust_code=True\)"),
        ("my_networks_3:flat", "'my_networks_3:flat' names code"),
        (":make", "':make' names code"),
        ("torchvison:resnet18", "did you mean torchvision"),
        ("torchvision:get_model", "torchvision has no network 'get_model' of class"),
        ("torchvision:models.resnet18", "torchvision has no network 'models.resnet18'"),
        ("timm:create_model", "timm has no network 'create_model'"),
        ("timm:os:system", "timm has no network 'os:system'"),
    ],
)
def test_code_runs_only_when_asked(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_networks_3.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message):
        build_network(config(name, kwargs={"command": "touch ran"}))
    assert not (tmp_path / "ran").exists()


def test_arguments_are_plain_data() -> None:
    assert config("digits_resnet", kwargs={"a": [1, {"b": None}]}).kwargs == {"a": [1, {"b": None}]}
    with pytest.raises(ValueError, match=r"kwargs\.norm_layer\n.*not a valid JSON value"):
        config("digits_resnet", kwargs={"norm_layer": nn.Identity})


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("digits_resnet", {"width": 3}, r"'width' \(it takes: num_classes, in_channels\)"),
        ("torchvision:resnet18", {"width": 3}, "network.kwargs={'width': 3} for torchvision:resnet18: .*'width'"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "give the weights as a file in network.weights"),
    ],
)
def test_arguments_it_does_not_take(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(config(name, kwargs=kwargs))


def test_kwargs_reach_the_constructor() -> None:
    assert build_network(config("cifar_resnet20", kwargs={"in_channels": 1})).conv1.in_channels == 1


def test_callers_own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks_1.py").write_text(
        "from torch import nn\n"
        "def flat(num_classes, width=4):\n    return nn.Sequential(nn.Flatten(), nn.Linear(width, num_classes))\n"
        "def fixed():\n    return nn.Linear(3, 5)\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    flat = build_network(config("my_networks_1:flat", num_classes=6, kwargs={"width": 9}), trust_code=True)
    assert flat[1].weight.shape == (6, 9)
    assert build_network(config("my_networks_1:fixed", num_classes=6), trust_code=True).out_features == 5
    assert sys.path == path


def test_a_fault_inside_the_callers_module_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks_2.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        build_network(config("my_networks_2:make"), trust_code=True)


def test_registration_refuses_what_is_taken() -> None:
    with pytest.raises(ValueError, match="'digits_resnet' is registered already"):
        register_network("digits_resnet")
    with pytest.raises(ValueError, match="holds no colon"):
        register_network("a:b")
