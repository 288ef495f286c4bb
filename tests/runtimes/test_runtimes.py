"""Files of several networks in one, in every runtime: what they compute, what is written in them, how they are made."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from secateur.data.loaders import normalise
from secateur.networks.copying import copied
from secateur.runtimes import RUNTIMES, Eager, Program, Run
from secateur.runtimes.runtime import quietly
from secateur.runtimes.timing import milliseconds

KINDS = ("residual", "inverted", "transformer")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ABOUT = {"network": "several", "classes": '["a", "b\\"<&"]', "plan": "null"}


class Several(nn.Module):
    """Networks of several kinds that look at the same images."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({name: zoo.make(name) for name in KINDS})

    def forward(self, images: Tensor) -> dict[str, Any]:
        found = [self.networks[name](images) for name in KINDS]
        return {"residual": found[0], "rest": (found[1], found[2])}


def pixels(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.fixture(scope="module")
def several() -> nn.Module:
    return Several().eval()


@pytest.fixture(scope="module")
def program(several: nn.Module) -> Program:
    return Program.of(several, normalise(pixels(1), MEAN, STD), (MEAN, STD))


@pytest.fixture(scope="module")
def file(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file for a runtime, made once."""
    folder, made = tmp_path_factory.mktemp("files"), set[str]()

    def get(name: str) -> Path:
        runtime = RUNTIMES[name]
        path = folder / f"{name}{runtime.suffix}"
        if name not in made:
            for package in runtime.packages:
                pytest.importorskip(package)
            runtime.export(program, path, ABOUT)
            made.add(name)
        return path

    return get


NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name == "compile" else []) for name in RUNTIMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_computes_what_the_network_computes_of_pixels_and_any_number_of_images(name, several, program, file):
    run = RUNTIMES[name].open(file(name), threads=1)
    for count in (1, 7):
        images = pixels(count, seed=count)
        with torch.no_grad():
            wanted = several(normalise(images, MEAN, STD))
        actual = program.outputs_of(run([images.float() / 255]))
        assert actual.keys() == wanted.keys()
        torch.testing.assert_close(actual["residual"], wanted["residual"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(actual["rest"], wanted["rest"], rtol=1e-4, atol=1e-5)
    assert program.outputs == ("residual", "rest_0", "rest_1")


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_what_is_said_of_a_network_stands_in_its_file(name, file):
    assert RUNTIMES[name].about(file(name)) == ABOUT
    assert all(part.is_file() for part in RUNTIMES[name].files(file(name)))


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_no_image_stands_in_a_file(name, file):
    written = b"".join(part.read_bytes() for part in RUNTIMES[name].files(file(name)))
    for seen in (normalise(pixels(1), MEAN, STD), pixels(1).float() / 255, pixels(1)):
        assert seen[0, 0, 0].numpy().tobytes() not in written


def test_inputs_and_outputs_have_their_names_in_the_file(file):
    onnx, openvino = pytest.importorskip("onnx"), pytest.importorskip("openvino")
    graph = onnx.load(str(file("onnxruntime"))).graph
    assert [given.name for given in graph.input] == ["pixels"]
    assert [given.name for given in graph.output] == ["residual", "rest_0", "rest_1"]
    sizes = graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in sizes] == ["batch", 3, 8, 8]
    model = openvino.Core().read_model(str(file("openvino")))
    assert [port.get_any_name() for port in model.inputs] == ["pixels"]
    assert [port.get_any_name() for port in model.outputs] == ["residual", "rest_0", "rest_1"]
    assert str(model.inputs[0].partial_shape) == "[?,3,8,8]"


@pytest.mark.parametrize("name", [name for name in RUNTIMES if RUNTIMES[name].int8])
def test_eight_bits_are_close_but_not_the_same_and_smaller(name, program, file, tmp_path):
    runtime, path = RUNTIMES[name], file(name)
    to = tmp_path / f"small{runtime.suffix}"
    seen = (program.inputs_of(normalise(pixels(8, seed), MEAN, STD)) for seed in range(2))
    runtime.quantise(path, to, seen, ABOUT)
    assert runtime.about(to) == ABOUT
    assert {*runtime.files(to)} == {*tmp_path.iterdir()}  # nothing is left beside
    images = [pixels(16, seed=0).float() / 255]
    for whole, small in zip(runtime.open(path)(images), runtime.open(to)(images), strict=True):
        apart = (whole - small).abs().mean() / whole.std()
        assert 1e-6 < float(apart) < 0.4  # other numbers at all: above 1
    weights = {"onnxruntime": "int8", "openvino": "i8"}[name]
    assert weights in stored(name, to)


def stored(name: str, path: Path) -> set[str]:
    """The kinds of numbers that a file keeps."""
    if name == "openvino":
        model = importlib.import_module("openvino").Core().read_model(str(path))
        return {op.get_element_type().get_type_name() for op in model.get_ops() if op.get_type_name() == "Constant"}
    onnx = importlib.import_module("onnx")
    kinds = {tensor.data_type for tensor in onnx.load(str(path)).graph.initializer}
    return {onnx.TensorProto.DataType.Name(kind).lower() for kind in kinds}


def test_torch_itself_quantises_nothing_here(tmp_path):
    with pytest.raises(ValueError, match="pt2 files are not quantised here; export onnx or openvino"):
        RUNTIMES["eager"].quantise(tmp_path / "a.pt2", tmp_path / "b.pt2", [], {})


def test_a_pt2_file_needs_no_source_of_its_class(tmp_path, monkeypatch):
    source = (
        "from torch import nn\nclass Own(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.layer = nn.Linear(3, 2)\n    def forward(self, x):\n        return self.layer(x).relu()\n"
    )
    own = ModuleType("a_module_of_ones_own")
    exec(source, vars(own))
    monkeypatch.setitem(sys.modules, own.__name__, own)
    model, x = own.Own().eval(), torch.randn(5, 3)
    RUNTIMES["eager"].export(Program.of(model, x), tmp_path / "own.pt2", ABOUT)
    written = (tmp_path / "own.pt2").read_bytes()
    assert not [row for row in x if row.numpy().tobytes() in written], "an image is saved with the network"
    wanted = model(x)
    monkeypatch.delitem(sys.modules, own.__name__)
    again = torch.export.load(tmp_path / "own.pt2").module()
    torch.testing.assert_close(again(x), wanted)
    assert not any(type(module).__name__ == "Own" for module in again.modules())


class Pair(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"sum": (ids * mask).sum(1, keepdim=True).float(), "1": ids + 1}


def test_several_inputs_by_name_and_outputs_by_number(tmp_path):
    inputs = {"ids": torch.arange(6).view(3, 2), "mask": torch.tensor([[1, 0], [1, 1], [0, 0]])}
    program = Program.of(Pair().eval(), inputs)
    assert (program.inputs, program.outputs) == (("ids", "mask"), ("sum", "output_1"))
    RUNTIMES["eager"].export(program, tmp_path / "a.pt2", ABOUT)
    found = program.outputs_of(RUNTIMES["eager"].open(tmp_path / "a.pt2")(program.inputs_of(inputs)))
    assert found["sum"].tolist() == [[0.0], [5.0], [0.0]]
    assert torch.equal(found["1"], inputs["ids"] + 1)


class Returns(nn.Module):
    def __init__(self, of: Callable[[Tensor], Any]):
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Any:
        return self.of(x)


@pytest.mark.parametrize(
    ("forward", "images", "message"),
    [
        (lambda x: x.sum(), torch.ones(2, 3), "only tensors with a row for each image"),
        (lambda x: x[:1], torch.ones(2, 3), "only tensors with a row for each image"),
        (lambda x: x if float(x.sum()) > 0 else -x, torch.ones(2, 3), "torch.export does not follow"),
        (lambda x: x.view(2, 3), torch.ones(2, 3), "fix no batch size"),
        (lambda x: torch.stack(x), [torch.ones(3), torch.ones(3)], "list of images of any size"),
    ],
)
def test_what_cannot_be_exported_is_said_in_a_line(forward, images, message):
    with pytest.raises(ValueError, match=message) as raised:
        Program.of(Returns(forward).eval(), images)
    assert "\n" not in str(raised.value)


def test_mean_and_std_are_as_many_as_channels():
    with pytest.raises(ValueError, match=r"mean and std of 3 channels"):
        Program.of(nn.Flatten().eval(), torch.ones(2, 1, 4, 4), (MEAN, STD))


def test_outputs_are_counted():
    program = Program.of(Pair().eval(), {"ids": torch.ones(2, 2), "mask": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="the file returns 1 tensors, the network 2"):
        program.outputs_of([torch.ones(2, 1)])


@pytest.mark.parametrize(("name", "package"), [("onnxruntime", "onnxscript"), ("openvino", "nncf")])
def test_a_missing_package_is_named_with_its_extra(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    extra = RUNTIMES[name].extra
    with pytest.raises(ValueError, match=rf"{package} is not installed: pip install 'secateur\[{extra}\]'"):
        RUNTIMES[name].check_installed()


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"torch.compile needs a compiler of C\+\+ .* none is on the PATH") as refused:
        RUNTIMES["compile"].check_installed()
    assert "\n" not in str(refused.value)


def test_what_the_compiler_does_not_take_is_said_in_a_line(program, file, monkeypatch):
    def refused(*_given: object, **_named: object) -> None:
        raise RuntimeError("g++: no such kernel\nand more")

    monkeypatch.setattr(torch, "compile", lambda _network, **_options: refused)
    with pytest.raises(ValueError, match=r"torch.compile does not take this network \(.*no such kernel") as raised:
        RUNTIMES["compile"].open(file("eager"))(program.inputs_of(normalise(pixels(1), MEAN, STD)))
    assert "\n" not in str(raised.value)


def test_what_a_package_itself_misses_is_not_called_a_missing_package(monkeypatch, tmp_path):
    (tmp_path / "openvino.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        RUNTIMES["openvino"].check_installed()


def test_other_libraries_are_silenced_for_the_block_alone(capsys):
    root, level = logging.getLogger(), logging.root.manager.disable
    handlers, filters = list(root.handlers), list(warnings.filters)
    with quietly():
        warnings.warn("of theirs", UserWarning, stacklevel=1)
        logging.warning("of theirs")
        print("of theirs")
    assert capsys.readouterr() == ("", "")
    assert (root.handlers, logging.root.manager.disable, list(warnings.filters)) == (handlers, level, filters)
    with pytest.raises(UserWarning, match="of ours"):
        warnings.warn("of ours", UserWarning, stacklevel=1)


def test_a_runtime_of_ones_own_by_its_place(tmp_path, monkeypatch):
    from secateur.configs.registry import admit

    (tmp_path / "my_runtime.py").write_text(
        "from secateur.runtimes import Eager\nclass Mine(Eager):\n    format = 'mine'\ndef other():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="trust"):
        _ = RUNTIMES["my_runtime:Mine"]
    admit({"format": "my_runtime:Mine"}, trust_code=True)
    assert isinstance(RUNTIMES["my_runtime:Mine"], Eager)
    admit({"format": "my_runtime:other"}, trust_code=True)
    with pytest.raises(TypeError, match="my_runtime:other makes a int"):
        _ = RUNTIMES["my_runtime:other"]


def test_runs_take_turns_and_the_slower_one_takes_longer():
    calls: list[str] = []

    def runs(name: str, times: int) -> Run:
        def run(tensors: Any) -> list[Tensor]:
            calls.append(name)
            x = tensors[0]
            for _ in range(times):
                x = x @ x
            return [x]

        return run

    before = torch.get_num_threads()
    square = [torch.zeros(96, 96)]
    found = milliseconds(
        {"slow": runs("slow", 60), "quick": runs("quick", 1)}, {"slow": square, "quick": square}, passes=5
    )
    assert calls == ["slow", "quick"] * 8
    assert found["slow"] > 3 * found["quick"] > 0
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", [name for name in RUNTIMES if RUNTIMES[name].packages])
@pytest.mark.parametrize("int8", [False, True])
def test_layers_that_are_exported_together_are_files_of_their_own(name, int8, tmp_path):
    """One of another size for each, also two of the same weights."""
    runtime = RUNTIMES[name]
    for package in runtime.packages:
        pytest.importorskip(package)
    torch.manual_seed(0)
    networks = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1, bias=False), nn.Linear(12, 5)]
    networks.append(networks[0])
    images = [torch.randn(4, *shape) for shape in ((3, 6, 6), (8, 2, 2), (12,), (3, 6, 6))]
    paths = [tmp_path / f"{number}{runtime.suffix}" for number in range(len(networks))]
    runtime.write([network.eval() for network in networks], images, paths, int8=int8)
    for network, given, path in zip(networks, images, paths, strict=True):
        for batch in (given, given[:1]):
            (found,) = runtime.open(path, threads=1)([batch])
            with torch.no_grad():
                wanted = network(batch)
            assert found.shape == wanted.shape
            assert float((found - wanted).abs().mean() / wanted.std()) < (
                0.15 if int8 else 1e-5
            )  # 8 bits cut extremes off
        assert ({"onnxruntime": "int8", "openvino": "i8"}[name] in stored(name, path)) == int8
        alone = tmp_path / f"alone{runtime.suffix}"
        runtime.write([network], [given], [alone], int8=int8)
        sizes = [sum(part.stat().st_size for part in runtime.files(one)) for one in (path, alone)]
        assert sizes[0] < sizes[1] + 4096  # nothing of the others
    assert {file.stem.split(".")[0] for file in tmp_path.iterdir()} == {"0", "1", "2", "3", "alone"}  # no float ones


@pytest.mark.parametrize(("base", "changed"), [("onnxruntime", "export"), ("openvino", "quantise")])
def test_a_runtime_that_makes_files_its_own_way_makes_every_one(base, changed, tmp_path):
    for package in RUNTIMES[base].packages:
        pytest.importorskip(package)
    made: list[object] = []

    def own(self, *given):
        made.append(given[0])
        return getattr(type(RUNTIMES[base]), changed)(self, *given)

    runtime = type("Own", (type(RUNTIMES[base]),), {changed: own})()
    networks, images = [nn.Linear(2, 3).eval(), nn.Linear(3, 2).eval()], [torch.randn(2, 2), torch.randn(2, 3)]
    paths = [tmp_path / f"{number}{runtime.suffix}" for number in range(2)]
    runtime.write(networks, images, paths, int8=True)
    assert len(made) == 2
    assert all(path.exists() for path in paths)


class Spread(nn.Module):
    """Adds numbers by channel that it spread out first, in several ways."""

    def __init__(self, way: str):
        super().__init__()
        self.way = way
        self.mean = nn.Parameter(torch.arange(3.0))
        self.register_buffer("buffer", torch.ones(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        spread = self.mean.reshape(1, -1, 1, 1).expand(x.shape).clone()
        if self.way == "in place":
            spread += x
            return spread.relu()
        if self.way == "into":
            trunk = x * 2
            also = trunk
            trunk += spread
            trunk.mul_(3)
            return trunk + also
        if self.way == "written":
            spread = self.buffer.expand(x.shape).clone()
            self.buffer.add_(1)
            return x + spread
        if self.way == "dropout":
            return nn.functional.dropout(spread, training=self.training) + x
        if self.way == "behind":
            return x * 2 + spread
        if self.way == "scaled":
            return torch.add(x, spread, alpha=2)
        if self.way == "twice":
            return spread + spread * x
        if self.way == "itself":
            return (spread + spread) * x
        return spread + x[:, :, :1, :1]  # narrower than what it is spread to


@pytest.mark.parametrize(
    ("way", "as_it_is"),
    [
        ("in place", True),
        ("behind", True),
        ("dropout", True),
        ("into", True),
        ("written", False),
        ("scaled", False),
        ("twice", False),
        ("itself", False),
        ("narrow", False),
    ],
)
def test_numbers_that_are_spread_out_are_added_as_they_are_where_that_is_the_same(way, as_it_is):
    network, x = Spread(way).eval(), torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    exported = Program.of(copied(network), x).exported
    assert as_it_is != any("expand" in str(node.target) for node in exported.graph.nodes)
    with torch.no_grad():
        network(x)  # as often as the other was called before it was followed: one of them counts
        torch.testing.assert_close(exported.module()(x), network(x))
