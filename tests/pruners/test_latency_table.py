"""The latency table: right whatever is kept, wherever the clock is a stand-in whose law is known."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zoo
from secateur.configs import LatencyConfig
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.shrink import shrink
from secateur.pruners.costs.latency_cache import LatencyCache
from secateur.pruners.costs.latency_profile import take_table
from secateur.pruners.costs.latency_table import Curve, Form
from secateur.pruners.structure import PlanError, Structure

ONE = LatencyConfig(batch=1, repeats=1)
SHARES = st.lists(st.floats(0, 1), min_size=12, max_size=12)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never(model, images):
    raise AssertionError("measured though it is known")


def drawn(layers: Structure, shares: list[float]) -> np.ndarray:
    return np.array([round(1 + s * (n - 1)) for s, n in zip(shares, layers.units, strict=False)])


CASES = [
    *[(name, "inner") for name in ("vgg", "densenet", "depthwise", "grouped", "tied", "shared", "squeeze", "conv3d")],
    *[(name, "all") for name in ("residual", "downsample", "scaled")],
    ("downsample", "sampled"),
]


@pytest.mark.parametrize("case", CASES)
def test_where_only_multiplications_take_time_latency_is_flops(case, empty_cache):
    layers = zoo.structure(*case)
    timer = zoo.timer(zoo.multiplications)
    layers = replace(layers, costs={**layers.costs, "latency": take_table(zoo.make(case[0]), layers, ONE, timer=timer)})
    for seed in range(20):
        kept = zoo.kept_of(zoo.draw(layers, seed))
        assert layers.cost("latency", kept) == layers.cost("flops", kept)


@settings(max_examples=30, deadline=None)
@given(case=st.sampled_from(zoo.TIMED[:3]), shares=SHARES)
def test_the_table_says_what_the_cut_network_takes(case, shares):
    """Stairs and constants, exactly: a layer of no more than 16 units is known at every choice."""
    layers = zoo.timed(*case)
    kept = drawn(layers, shares)
    small = shrink(zoo.make(case[0]), layers, [np.arange(count) for count in kept])
    taken = sum(zoo.timer(zoo.blocks)(small, zoo.images(case[0], 1)))
    assert layers.cost("latency", kept) == pytest.approx(1e9 * taken, abs=1)


def noise(module: nn.Module, _input: torch.Tensor, output: torch.Tensor) -> float:
    """A time that follows no rule, the same for the same module and shapes."""
    text = f"{module}{tuple(output.shape)}".encode()
    return 1e-6 * (1 + np.random.default_rng(list(text)).integers(100))


@pytest.mark.parametrize("case", [("scaled", "all"), ("densenet", "inner"), ("vgg", "inner")])
def test_a_wider_layer_never_costs_less_whatever_was_measured(case, empty_cache):
    layers = zoo.structure(*case)
    table = take_table(zoo.make(case[0]), layers, ONE, timer=zoo.timer(noise))
    layers = replace(layers, costs={**layers.costs, "latency": table})
    dense = sum(zoo.timer(noise)(zoo.make(case[0]), zoo.images(case[0], 1)))
    assert layers.cost("latency", layers.units) == pytest.approx(1e9 * dense, abs=1)
    rng = np.random.default_rng(0)
    for _ in range(300):
        low, high = np.sort(rng.integers(1, layers.units + 1, (2, len(layers.layers))), axis=0)
        assert layers.cost("latency", low) <= layers.cost("latency", high)
        assert layers.relaxed_cost("latency", low - 0.5) <= layers.relaxed_cost("latency", low + 0.0)


@given(times=st.lists(st.integers(0, 20), min_size=2, max_size=12))
def test_a_curve_is_the_highest_below_the_points_that_never_falls(times):
    form = Form.of(np.array([2 * len(times), 3]), np.array([[2], [0]]))
    removed = np.arange(len(times))[::-1, None]
    curve = Curve.below(form, removed, np.array(times, dtype=float))
    assert curve.values.tolist() == [min(times[i:]) for i in range(len(times))]
    assert curve.knots.tolist() == list(range(1, len(times) + 1))  # in least terms


def test_what_is_known_is_not_measured_again(empty_cache):
    layers, timer = zoo.structure("residual"), zoo.timer(zoo.blocks)
    first = take_table(zoo.make("residual"), layers, ONE, timer=timer)
    again = take_table(zoo.make("residual", seed=1), layers, ONE, timer=never)  # times do not depend on the weights
    assert first(layers.units // 2) == again(layers.units // 2)
    (file,) = empty_cache.glob("latency/*.json")
    tree = json.loads(file.read_text())
    assert tree["torch"] == torch.__version__
    assert any("Conv2d(" in key and key.endswith("(6x4x4)") for key in tree["microseconds"])
    assert any(key.startswith("add(4x8x8) relu(4x8x8) Conv2d(") for key in tree["microseconds"])


def test_every_pass_is_shown_and_nothing_where_all_is_known(empty_cache):
    layers, passes, shown = zoo.structure("residual"), [], []

    @contextlib.contextmanager
    def bar(title, total):
        shown.append((title, total, notes := []))
        yield notes.append

    def timer(model, images):
        passes.append(model)
        return zoo.timer(zoo.blocks)(model, images)

    take_table(zoo.make("residual"), layers, LatencyConfig(batch=1, repeats=3), timer=timer, bar=bar)
    ((title, total, notes),) = shown
    assert title == "time, PyTorch"
    assert total == len(passes) == len(notes) > 3 * 10
    take_table(zoo.make("residual"), layers, LatencyConfig(batch=1, repeats=3), timer=never, bar=bar)
    assert len(shown) == 1


def test_one_missing_time_is_measured_and_no_other_changes(empty_cache):
    layers = zoo.structure("residual")
    take_table(zoo.make("residual"), layers, ONE, timer=zoo.timer(zoo.blocks))
    (file,) = empty_cache.glob("latency/*.json")
    tree = json.loads(file.read_text())
    gone, value = tree["microseconds"].popitem()
    del tree["sha256"]  # as older versions wrote it
    file.write_text(json.dumps(tree))
    take_table(zoo.make("residual"), layers, ONE, timer=zoo.timer(lambda *call: 2 * zoo.blocks(*call)))
    assert json.loads(file.read_text())["microseconds"] == {**tree["microseconds"], gone: 2 * value}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"microseconds": 3}', '{"microseconds": {"a": "b"}}', '{"microseconds": {"a": NaN}}']
)
def test_a_damaged_cache_is_measured_anew(empty_cache, text):
    layers, timer = zoo.structure("strict"), zoo.timer(zoo.blocks)
    expected = take_table(zoo.make("strict"), layers, ONE, timer=timer)(layers.units)
    (file,) = empty_cache.glob("latency/*.json")
    before = file.read_text()
    file.write_text(text)
    with pytest.warns(RuntimeWarning, match=r"strict|damaged") as caught:
        assert take_table(zoo.make("strict"), layers, ONE, timer=timer)(layers.units) == expected
    assert all("\n" not in str(warning.message) for warning in caught)
    assert file.read_text() == before


def test_a_folder_that_cannot_be_written_is_no_disaster(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "file"))
    layers = zoo.structure("strict")
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        table = take_table(zoo.make("strict"), layers, ONE, timer=zoo.timer(zoo.multiplications))
    assert table(layers.units) == layers.cost("flops", layers.units)


def test_the_first_of_two_processes_is_right(empty_cache):
    ours, theirs = (LatencyCache(torch.device("cpu"), ONE) for _ in range(2))
    theirs.add({"a": 1.0, "b": 2.0})
    ours.add({"b": 3.0, "c": 4.0})
    assert ours.times == {"a": 1.0, "b": 2.0, "c": 4.0}
    assert LatencyCache(torch.device("cpu"), ONE).times == ours.times


@pytest.mark.parametrize("change", [{"batch": 2}, {"threads": 3}, {"repeats": 2}, {"channels_last": True}])
def test_what_is_measured_otherwise_is_kept_apart(empty_cache, change):
    one = LatencyConfig(batch=1, threads=1, repeats=1)
    paths = [LatencyCache(torch.device("cpu"), config).path for config in (one, one.model_copy(update=change))]
    assert paths[0] != paths[1]
    assert all(path.parent == empty_cache / "latency" for path in paths)


class ByWidth(nn.Module):
    """Calls one module less where it is narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.extra = nn.Linear(4, 6), nn.Linear(6, 3), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x.flatten(1))
        return self.last(self.extra(x) if x.shape[1] > 3 else x)


def test_a_network_that_changes_when_it_is_cut_is_refused(empty_cache):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ByWidth().eval()
    layers = find_layers(model, (4, 1, 1))
    with pytest.raises(PlanError, match="calls other modules"):
        take_table(model, layers, ONE, timer=zoo.timer(zoo.blocks))


def test_a_real_clock(empty_cache):
    """Nothing is said of how long it takes."""
    layers = zoo.structure("downsample", "all")
    table = take_table(zoo.make("downsample"), layers, LatencyConfig(batch=2, repeats=2))
    assert 0 < table(np.ones(len(layers.layers))) <= table(layers.units) < 1e10
