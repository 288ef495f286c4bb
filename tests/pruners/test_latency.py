from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import zoo
from secateur.configs import LatencyConfig
from secateur.pruners.costs.latency import formatted, measure_latency, stopwatch
from secateur.pruners.costs.segments import describe, time_segments


@pytest.mark.parametrize("channels_last", [False, True])
def test_all_networks_are_measured_in_one_format_and_left_in_theirs(channels_last):
    config = LatencyConfig(batch=2, channels_last=channels_last)
    first, second = zoo.make("digits"), zoo.make("digits").to(memory_format=torch.channels_last)
    strides = [p.stride() for p in second.parameters()]
    seen = []
    with torch.no_grad():
        hooks = [m.conv1.register_forward_pre_hook(lambda c, x: seen.append((c.weight, x[0]))) for m in (first, second)]
        found = measure_latency({"a": first, "b": second}, (1, 8, 8), config, runs=1)
    [hook.remove() for hook in hooks]
    assert found.keys() == {"a", "b"}
    assert min(found.values()) > 0
    assert len(seen) == 2 * 4
    assert {x.shape for _, x in seen} == {(2, 1, 8, 8)}
    assert [p.stride() for p in second.parameters()] == strides
    assert {p.layout for p in first.parameters()} == {torch.strided}
    assert len({weight.stride() for weight, _ in seen}) == 1


def test_a_kernel_of_one_pixel_has_the_strides_of_its_format():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Conv2d(4, 6, 1).to(memory_format=torch.channels_last)
    plain = torch.empty(6, 4, 1, 1).stride()
    assert conv.weight.stride() != plain
    assert formatted(conv, LatencyConfig()).weight.stride() == plain


def test_the_clock_and_the_threads():
    before = torch.get_num_threads()
    with stopwatch(torch.device("cpu"), LatencyConfig(threads=before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with stopwatch(torch.device("cpu"), LatencyConfig(threads=1)) as clock:
        assert clock() <= clock()


def test_the_segments_are_the_whole_pass():
    model, image = zoo.make("residual"), zoo.images("residual", 1)
    found = describe(model, image)
    ticks = itertools.count()
    times = time_segments(model, image, lambda: float(next(ticks)))
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    assert {segment.module for segment in found} <= set(leaves)
    assert len(times) == len(found)
    assert sum(times) == next(ticks) - 1  # from the first look at the clock to the last


def test_equal_blocks_do_equal_things():
    found = describe(zoo.make("resnet20"), zoo.images("resnet20", 1))
    by_module = {segment.module: segment for segment in found}
    assert by_module["layer1.1.conv1"].key == by_module["layer1.2.conv1"].key
    assert by_module["layer1.1.conv1"].key != by_module["layer1.1.conv2"].key  # the sum comes before
    assert by_module["layer2.0.conv1"].key != by_module["layer2.1.conv1"].key
    assert by_module["layer2.0.conv1"].sizes == (32, 16)
    assert not any(module._forward_hooks for module in zoo.make("resnet20").modules())
