"""Whatever number is set, a config refuses it in a line, or it does no harm: nothing hangs or fills the memory."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
import torch
from pydantic import BaseModel

import secateur
import zoo
from secateur.commands import workers
from secateur.configs import Config, ConfigError, load_config

HARMLESS = {  # a million of them
    "data.calibration": "refused where there are not so many",
    "data.search": "refused where there are not so many",
    "data.train": "refused where there are not so many",
    "data.test": "refused where there are not so many",
    "layers.round_to": "a layer's own size is always a choice",
    "repair.search.images": "there are only so many",
    "repair.search.samples": "there are only so many",
    "repair.search.adaptive_bn": "there are only so many",
    "repair.final.images": "there are only so many",
    "repair.final.samples": "there are only so many",
    "repair.final.adaptive_bn": "there are only so many",
    "agent.rerank": "there are only so many",
    "gradual.every": "never, then",
    "network.num_classes": "refused where there are not so many",
}
UNBOUNDED = {"data.split_seed"}  # a seed; every number is one


def integers(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Every key that takes an integer."""
    for name, field in model.model_fields.items():
        for kind in leaves(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from integers(kind, f"{path}{name}.")
            elif kind is int:
                yield f"{path}{name}"


def leaves(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, types.UnionType) or get_origin(annotation) in (list, tuple, dict, types.UnionType):
        for inner in get_args(annotation):
            yield from leaves(inner)
    elif get_origin(annotation) is not None:
        yield from leaves(get_args(annotation)[0])
    else:
        yield annotation


KEYS = sorted(set(integers(Config)))


def test_the_keys_are_found():
    assert {"workers", "threads", "seed", "agent.batch_size", "agent.hidden", "network.pretrain.epochs"} <= set(KEYS)
    assert HARMLESS.keys() | UNBOUNDED <= set(KEYS)


@pytest.mark.parametrize("key", sorted(set(KEYS) - UNBOUNDED))
@pytest.mark.parametrize("value", [-1, 10**10, 10**30])
def test_a_number_that_makes_no_sense_is_refused_in_a_line(key, value):
    given = f"[{value}]" if key == "agent.hidden" else value
    with pytest.raises(ConfigError, match=rf"{key}\S* = {value}: input should be (less|greater) than") as refused:
        load_config("digits", [f"{key}={given}"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", ["1e8", "2.5", "many", "[1]", "null"])
@pytest.mark.parametrize("key", ["workers", "agent.batch_size", "latency.threads"])
def test_what_is_no_number_is_refused_in_a_line(key, value):
    if (key, value) == ("latency.threads", "null"):
        return
    with pytest.raises(ConfigError, match=rf"{key} = .*: input should be a valid integer") as refused:
        load_config("digits", [f"{key}={value}"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", sorted(set(KEYS) - HARMLESS.keys() - UNBOUNDED - {"seed"}))
def test_of_what_is_not_harmless_a_million_is_too_much(key):
    given = "[1000000]" if key == "agent.hidden" else 1_000_000
    with pytest.raises(ConfigError, match=r"input should be less than or equal to \d+"):
        load_config("digits", [f"{key}={given}"])


def tiny(*overrides: str) -> secateur.Session:
    tree = {"name": "mine", "budget": {"flops": 0.6}, "agent": {"episodes": 2, "warmup": 1, "hidden": [4], "rerank": 1}}
    images = secateur.Images(zoo.batches("residual"), zoo.batches("residual", (30,), seed=9))
    given = {"model": zoo.make("residual"), "images": images, "overrides": overrides}
    return secateur.Session(secateur.Config.model_validate(tree), **given)


def test_a_million_of_what_is_harmless_is_as_good_as_all(tmp_path):
    keys = [key for key in HARMLESS if key.split(".")[0] in ("repair", "agent", "gradual")]
    million = [f"{key}=1000000" for key in keys]
    assert secateur.train(tiny("repair.final.guard=false", *million), out=tmp_path / "run").finished


def test_the_most_that_an_agent_may_be_asked_for(tmp_path):
    most = ("agent.batch_size=65536", "agent.warmup=100000", "agent.updates=1")
    assert secateur.train(tiny(*most), out=tmp_path / "run").finished


def test_layers_that_keep_multiples_of_a_million_stay_whole(tmp_path):
    with pytest.raises(ValueError, match=r"budget\.flops = 0\.6 cannot be met"):
        secateur.train(tiny("layers.round_to=1000000"), out=tmp_path / "run")


@pytest.mark.parametrize("key", ["threads", "latency.threads"])
def test_more_threads_than_the_machine_can_run(key, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match=rf"{key} = 9: this machine has 2 cores, more than 8 threads .* set {key} to"):
        _ = tiny(f"{key}=9").model
    assert torch.get_num_threads() == before
    workers.check_threads(load_config("digits", [f"{key}=8"]))


def test_more_workers_than_the_machine_can_run_are_not_started(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    session = tiny("workers=5", "threads=1")
    with (
        pytest.warns(RuntimeWarning, match=r"workers = 5: this machine has 1 cores, 4 processes share the work"),
        session.evaluators() as evaluator,
    ):
        assert evaluator._workers == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidates": 10**8}, r"compare\.candidates = 100000000: input should be less than or equal to 100000"),
        ({"candidates": 0}, r"compare\.candidates = 0: input should be greater than or equal to 1"),
        ({"seeds": range(10**8)}, "100000000 seeds: a search draws, give 1 to 1,000"),
    ],
)
def test_arguments_of_a_comparison(arguments, message):
    with pytest.raises(ValueError, match=message):
        secateur.compare((), tiny(), against=["random"], **arguments)
