"""Latency in the runtime that ships: the table from files whose times are known, and files of real runtimes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import secateur
import zoo
from secateur.configs import LatencyConfig
from secateur.configs.schema import LayersConfig
from secateur.networks.constant import Constant
from secateur.pruners.costs.file_profiler import TOGETHER
from secateur.pruners.costs.latency import measure_latency
from secateur.pruners.costs.latency_cache import LatencyCache
from secateur.pruners.costs.latency_profile import take_table
from secateur.pruners.method import METHODS
from secateur.runtimes import RUNTIMES
from secateur.runtimes.eager import Eager

ONNX = LatencyConfig(batch=4, threads=1, repeats=1, runtime="onnxruntime")
BASE, SLOPE, ELEMENT = (
    3e-3,
    0.8,
    -2e-7,
)  # ms of a pass, of a part's own, of an element in whole blocks


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def in_blocks(module, x):
    channels = x.shape[-1] if isinstance(module, torch.nn.Linear) else x.shape[1]
    return 0 if channels % 8 else x.numel()


class Law:
    """Stands for a runtime: a part takes a nanosecond a multiplication, a whole network what the law makes of them.

    Attributes:
        files: how many were timed, a call each.
        whole: how many of those were whole networks.
        names: of all files.
        alone: ms that a part by itself takes for every element that it gives.
        power: of what a whole network's parts take together; only with 1 it is what is fitted.
        hour: by how much longer whole networks take.
        gone: exit of a branch → ms that a whole network takes for it where it is not there.
    """

    def __init__(self) -> None:
        self.files: list[int] = []
        self.whole: list[int] = []
        self.names: list[str] = []
        self.power, self.hour, self.alone = 1.0, 1.0, 0.0
        self.gone: dict[str, float] = {}

    def __call__(self, networks, images, config, passes):
        assert passes == (10 if config.precision == "int8" else 3) * config.repeats
        self.files.append(len(networks))
        self.names += networks
        self.whole.append(sum(name.startswith("whole") for name in networks))
        found = {}
        for name, network in networks.items():
            assert not network.training
            parts, elements = self.parts(network, images[name])
            whole = name.startswith("whole")
            if whole:
                constants = [n for n, m in network.named_modules() if isinstance(m, Constant) and m.mean is not None]
                gone = sum(self.gone[name] for name in constants)
                parts = BASE + SLOPE * parts**self.power + ELEMENT * elements + gone
            elif self.alone:
                parts += self.alone * network(images[name]).numel()
            found[name] = parts * (self.hour if whole else 1.0)
        return found

    @staticmethod
    def parts(network, images):
        taken = []
        kernels = [m for m in network.modules() if isinstance(m, (torch.nn.Linear, torch.nn.modules.conv._ConvNd))]
        hooks = [m.register_forward_pre_hook(lambda m, x: taken.append(in_blocks(m, x[0]))) for m in kernels]
        seconds = sum(zoo.timer(zoo.multiplications)(network, images))
        for hook in hooks:
            hook.remove()
        return 1e3 * len(images) * seconds, len(images) * sum(taken)


@pytest.fixture
def law(empty_cache, monkeypatch):
    found = Law()
    monkeypatch.setattr("secateur.pruners.costs.file_profiler.file_times", found)
    return found


@pytest.mark.parametrize(
    "case", [("residual", "inner"), ("downsample", "all"), ("depthwise", "inner"), ("vgg", "inner")]
)
def test_the_table_says_what_whole_networks_take(case, law):
    """Parts by themselves say another time than the network that they are parts of."""
    layers = zoo.structure(*case)
    table = take_table(zoo.make(case[0]), layers, ONNX)
    layers = replace(layers, costs={**layers.costs, "latency": table})
    for kept in (layers.units, *(np.array(zoo.kept_of(zoo.draw(layers, seed))) for seed in range(10))):
        assert layers.first_units is not None
        small = layers.first_units(zoo.make(case[0]), layers, kept)
        parts, elements = Law.parts(small, zoo.images(case[0], 4))
        expected = 1e6 * (BASE + SLOPE * parts + ELEMENT * elements)
        assert layers.cost("latency", kept) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("case", "most"),
    [(("residual", "inner"), 0.035), (("vgg", "inner"), 0.045), (("depthwise", "inner"), 0.025)],
)
def test_where_the_sum_is_no_line_the_table_has_the_time_of_whole_networks_all_the_same(case, most, law):
    """Twice as much takes nearly three times as long, together; all whole networks are timed in turns."""
    law.power = 1.5
    model, layers = zoo.make(case[0]), zoo.structure(*case)
    table = take_table(model, layers, ONNX)
    assert layers.first_units is not None
    steps = [np.ones_like(layers.units), layers.units // 4, layers.units // 2, 3 * layers.units // 4, layers.units]
    for kept in steps:
        parts, elements = Law.parts(layers.first_units(model, layers, kept), zoo.images(case[0], 4))
        expected = 1e6 * (BASE + SLOPE * parts**1.5 + ELEMENT * elements)
        assert table(kept) == pytest.approx(expected, rel=most)
    assert law.whole[0] == sum(law.whole) >= 5


def test_parts_whose_ways_in_and_out_cost_more_than_they_do_themselves(law):
    """As in 8 bits: whole networks alone, cut link by link, tell what a layer takes in its place."""
    law.alone = 1e-4  # three times what a layer of large images multiplies, less than one of small ones does
    convs = [nn.Conv2d(3, 16, 3, padding=1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))]
    convs += [nn.Conv2d(16, 64, 4, 4), *(nn.Conv2d(64, 64, 3, padding=1) for _ in range(3))]
    model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(1024, 10)).eval()
    layers = METHODS["channels"].find(model, (3, 16, 16), LayersConfig())
    table = take_table(model, layers, ONNX.model_copy(update={"precision": "int8"}))
    assert layers.first_units is not None
    assert sum(law.whole) == sum(law.files)

    def takes(kept):
        parts, elements = Law.parts(layers.first_units(model, layers, kept), torch.ones(4, 3, 16, 16))
        return 1e6 * (BASE + SLOPE * parts + ELEMENT * elements)

    wide, narrow = layers.units, layers.units // 2
    for kept in (np.where(layers.units > 16, narrow, wide), np.where(layers.units > 16, wide, narrow)):
        assert table(kept) / table(wide) == pytest.approx(takes(kept) / takes(wide), abs=0.03)


@pytest.mark.parametrize("hour", [None, 1.0, 1.5])
def test_a_network_without_some_of_its_branches_takes_what_it_took(hour, law):
    """Not what is left of its parts: what is fused with a branch, or stands in its place, shows in none of them.

    So it is where a table of the same network whose branches stay was taken before, in an hour that was less busy.
    """
    model = zoo.make("residual")
    layers = METHODS["channels"].find(model, zoo.ZOO["residual"].shape, LayersConfig(branches=True))
    if hour is not None:
        take_table(model, zoo.structure("residual"), ONNX)
        law.hour = hour
    law.gone = {branch.exit: ms for branch, ms in zip(layers.branches, (6e-5, -3e-4, -8e-5), strict=True)}
    table = take_table(model, layers, ONNX)
    assert layers.first_units is not None
    for there in itertools.product([False, True], repeat=3):
        kept = np.where(there, layers.units, 0)
        network = layers.first_units(model, layers, kept)
        parts, elements = Law.parts(network, zoo.images("residual", 4))
        gone = sum(ms for ms, here in zip(law.gone.values(), there, strict=True) if not here)
        expected = 1e6 * (BASE + SLOPE * parts + ELEMENT * elements + gone)
        assert table(kept) == pytest.approx(expected, rel=2e-3)
        for number in np.flatnonzero(~np.array(there)):
            one = kept.copy()
            one[number] = 1
            assert table(one) >= table(kept)
    assert law.whole[0] == sum(law.whole) or hour is not None  # timed in turns


def test_widths_save_nothing_because_branches_save_much(law):
    """As in 8 bits: what the network is spared without a branch is not what narrower layers in it spare."""
    model = zoo.make("residual")
    layers = METHODS["channels"].find(model, zoo.ZOO["residual"].shape, LayersConfig(branches=True))
    law.power, spared = 0.0, (0.05, 0.1, 0.2)
    law.gone = {branch.exit: -ms for branch, ms in zip(layers.branches, spared, strict=True)}
    table = take_table(model, layers, ONNX.model_copy(update={"precision": "int8"}))
    dense = layers.units
    assert table(dense // 2) == pytest.approx(table(dense), rel=0.01)
    for there in itertools.product([False, True], repeat=3):
        left = 1.0 - sum(ms for ms, here in zip(spared, there, strict=True) if not here) / SLOPE
        for kept in (dense, dense // 2):
            assert table(np.where(there, kept, 0)) / table(dense) == pytest.approx(left, abs=0.01)


def test_widths_that_a_wider_network_outruns_save_next_to_nothing(law, monkeypatch):
    """As in 8 bits, where most numbers of channels are filled up to more."""
    model, layers = zoo.make("vgg"), zoo.structure("vgg")
    dense, config = layers.units, ONNX.model_copy(update={"precision": "int8"})
    blocks = [np.rint(dense * share) for share in (0.25, 0.5, 1.0)]

    def filled_up(networks, *given):
        """Twice as long, unless all layers keep a quarter, half or all."""
        found = law(networks, *given)
        for name, network in networks.items():
            kept = np.array([m.weight.shape[0] for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))])
            found[name] *= 2.0 - np.any([kept[: len(dense)] == block for block in blocks], axis=0).all()
        return found

    monkeypatch.setattr("secateur.pruners.costs.file_profiler.file_times", filled_up)
    table = take_table(model, layers, config)
    for layer, units in enumerate(dense):
        for kept in (3 * units // 4, units - 1):
            less = dense.copy()
            less[layer] = kept
            assert table(less) > 0.98 * table(dense)
    assert table(dense // 4) < 0.5 * table(dense)


def test_a_layer_that_takes_longer_where_it_is_narrow_takes_nothing_from_what_others_save(law, monkeypatch):
    """As in ONNX Runtime's 8 bits, where the narrow network all in all gains nothing."""
    model, layers = zoo.make("residual"), zoo.structure("residual")

    def takes(kept):
        return float(1.0 + (1.0 - kept / layers.units) @ [0.4, -0.2, -0.12])

    def timed(networks, *given):
        kept = {
            n: [w.get_submodule(layer.name).weight.shape[0] for layer in layers.layers] for n, w in networks.items()
        }
        return {name: takes(np.array(units)) for name, units in kept.items()}

    monkeypatch.setattr("secateur.pruners.costs.file_profiler.file_times", timed)
    table = take_table(model, layers, ONNX.model_copy(update={"precision": "int8"}))
    dense = layers.units
    for share in (0.25, 0.5):
        narrow = np.rint(share * dense).astype(int)
        for number, layer in enumerate(layers.layers):
            less = np.where(np.arange(len(dense)) == number, narrow, dense)
            expected = min(1.0, takes(less))
            assert table(less) / table(dense) == pytest.approx(expected, abs=0.06), layer.name


def test_in_8_bits_halves_and_quarters_of_small_layers_are_cut_link_by_link(law, monkeypatch):
    """Whatever shares of theirs are the same numbers of channels."""
    model, layers, seen = zoo.make("residual"), zoo.structure("residual"), set()

    def timed(networks, *given):
        seen.update(
            tuple(w.get_submodule(layer.name).weight.shape[0] for layer in layers.layers) for w in networks.values()
        )
        return law(networks, *given)

    monkeypatch.setattr("secateur.pruners.costs.file_profiler.file_times", timed)
    take_table(model, layers, ONNX.model_copy(update={"precision": "int8"}))
    assert layers.units.tolist() == [4, 6, 8]
    assert {(2, 6, 8), (2, 3, 8), (4, 6, 4), (4, 3, 4), (1, 6, 8), (1, 2, 8), (4, 6, 2), (4, 2, 2)} < seen


def test_branches_that_take_longer_where_they_are_not_save_nothing(law):
    model = zoo.make("residual")
    layers = METHODS["channels"].find(model, zoo.ZOO["residual"].shape, LayersConfig(branches=True))
    law.gone = {branch.exit: 1e-1 for branch in layers.branches}
    table = take_table(model, layers, ONNX)
    one = np.ones_like(layers.units)
    assert table(0 * one) == table(one) < table(layers.units)


@pytest.mark.parametrize("seed", range(8))
def test_without_any_branch_it_takes_what_that_network_takes(seed, law):
    """Whatever one of them seems to be worth: what one cannot take, or none would cost more than one, others do."""
    model = zoo.make("residual")
    layers = METHODS["channels"].find(model, zoo.ZOO["residual"].shape, LayersConfig(branches=True))
    random = np.random.default_rng(seed)
    gone = random.uniform(-0.02, 0.02, 3)
    gone -= max(0.0, gone.mean() + 0.008 * random.uniform())  # without any, always faster than with all at one unit
    law.gone = dict(zip([branch.exit for branch in layers.branches], gone.tolist(), strict=True))
    table, one = take_table(model, layers, ONNX), np.ones_like(layers.units)
    parts, elements = Law.parts(layers.first_units(model, layers, 0 * one), zoo.images("residual", 4))
    assert table(0 * one) == pytest.approx(1e6 * (BASE + SLOPE * parts + ELEMENT * elements + gone.sum()), rel=2e-3)
    for there in itertools.product([0, 1], repeat=3):
        assert 0.0 < table(one * there) <= table(one)


def test_what_is_known_is_not_exported_again_and_the_rest_goes_on(law, monkeypatch):
    layers = zoo.structure("residual")
    first = take_table(zoo.make("residual"), layers, ONNX)
    files = list(law.files)
    assert max(files) <= TOGETHER
    again = take_table(zoo.make("residual", seed=1), layers, ONNX)
    assert law.files == files
    assert len(set(law.names)) == len(law.names)
    law.names.clear()
    assert first(layers.units // 2) == again(layers.units // 2)
    (cached,) = [LatencyCache(torch.device("cpu"), ONNX)]
    assert "onnxruntime fp32" in str(cached.about["runtime"])
    assert LatencyCache(torch.device("cpu"), ONNX.model_copy(update={"precision": "int8"})).path != cached.path

    other = ONNX.model_copy(update={"batch": 8})

    def stopped(*given):  # behind the first two dozen files
        if len(law.files) > len(files):
            raise KeyboardInterrupt
        return law(*given)

    monkeypatch.setattr("secateur.pruners.costs.file_profiler.file_times", stopped)
    with pytest.raises(KeyboardInterrupt):
        take_table(zoo.make("residual"), layers, other)
    monkeypatch.setattr("secateur.pruners.costs.file_profiler.file_times", law)
    take_table(zoo.make("residual"), layers, other)
    assert len(set(law.names)) == len(law.names) >= sum(files)


def test_large_images_are_few_files_at_a_time(law, monkeypatch):
    layers = zoo.structure("residual")
    first = take_table(zoo.make("residual"), layers, ONNX)
    files = list(law.files)
    law.files.clear()
    monkeypatch.setattr("secateur.pruners.costs.file_profiler.MOST", 600)
    again = take_table(zoo.make("residual"), layers, ONNX.model_copy(update={"repeats": 2}))
    assert max(law.files) < max(files)
    assert sum(law.files) == sum(files)
    assert again(layers.units // 2) == first(layers.units // 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runtime": "onnxrutime"}, "no runtime 'onnxrutime', only .* did you mean onnxruntime"),
        ({"runtime": "eager", "precision": "int8"}, "latency.precision = int8: eager does not quantise here"),
    ],
)
def test_a_runtime_that_is_not_there_is_named_before_anything_is_trained(change, message):
    overrides = ["budget.latency=0.5", *(f"latency.{key}={value}" for key, value in change.items())]
    with pytest.raises(ValueError, match=message):
        _ = secateur.Session("digits", overrides=overrides).config
    with pytest.raises(ValueError, match=message):
        measure_latency({"a": zoo.make("strict")}, zoo.RGB, LatencyConfig(**change))


def test_a_board_of_ones_own_says_how_long_a_file_takes(empty_cache):
    """And a plan is made for it: narrow layers are no faster there."""

    class Board(Eager):
        format, suffix = "board", ".pt2"

        def export(self, program, path, about):
            path.write_text(str(sum(weight.numel() for weight in program.exported.state_dict.values())))

        def milliseconds(self, paths, images, *, threads, passes):
            return {name: float(path.read_text()) for name, path in paths.items()}

    RUNTIMES.register("board")(Board())
    try:
        config = LatencyConfig(batch=2, repeats=1, runtime="board")
        small, whole = zoo.compress("strict", "inner", zoo.draw(zoo.structure("strict"), 0)).model, zoo.make("strict")
        found = measure_latency({"small": small, "whole": whole}, zoo.images("strict", 1).shape[1:], config)
        assert found == {
            name: float(sum(p.numel() for p in model.parameters())) + sum(b.numel() for b in model.buffers())
            for name, model in (("small", small), ("whole", whole))
        }
        table = take_table(whole, zoo.structure("strict"), config)
        units = zoo.structure("strict").units
        assert 0 < table(units // 2) < table(units)
    finally:
        RUNTIMES._known.pop("board")


def test_a_real_runtime(empty_cache):
    """Nothing is said of how long it takes."""
    pytest.importorskip("onnxruntime")
    config = ONNX.model_copy(update={"precision": "int8"})
    found = measure_latency({"whole": zoo.make("strict")}, zoo.images("strict", 1).shape[1:], config, runs=2)
    assert 0 < found["whole"] < 1e3
