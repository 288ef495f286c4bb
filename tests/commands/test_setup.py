"""The set-up of a session: shown while it goes on, and gone on with where it was stopped."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secateur
import zoo
from secateur.configs.schema import Repair
from secateur.pruners import context as context_module
from secateur.pruners.channels.criteria import obs
from secateur.pruners.repair import sensitivity
from secateur.reports.progress import Advance, Reporter


class Told(Reporter):
    """Remembers its bars."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int, list[str]]] = []

    @contextlib.contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        notes: list[str] = []
        self.bars.append((title, total, notes))
        yield lambda note="": notes.append(note)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each part is computed."""
    calls: Counter[str] = Counter()

    def counting(module: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(module, name)

        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return real(*arguments)

        monkeypatch.setattr(module, name, call)

    counting(context_module, "collect_inputs")
    counting(obs, "_eliminate")
    counting(sensitivity, "_cut_alone")
    return calls


def session(*overrides: str, reporter: Reporter | None = None) -> secateur.Session:
    images = secateur.Images(zoo.batches("residual"), zoo.batches("residual", (30, 10), seed=9))
    return secateur.Session(
        "digits",
        model=zoo.make("residual"),
        images=images,
        overrides=["budget.flops=0.6", *overrides],
        reporter=reporter,
    )


@pytest.mark.parametrize("method", ["channels", "weights"])
def test_the_bar_names_the_layers_and_is_full_in_the_end(method: str) -> None:
    told = Told()
    found = session(f"method={method}", reporter=told)
    _ = found.env()
    _ = found.env()  # no second bar
    ((title, total, notes),) = told.bars
    assert title == "set-up"
    assert len(notes) == total
    names = [layer.name for layer in found.structure.layers]
    assert [n for n in notes if n.startswith("sensitivity")] == [f"sensitivity of {name}" for name in names]
    if method == "channels":
        assert "" not in notes
        assert [n for n in notes if n.startswith("obs")] == [f"obs of {name}" for name in names]


@pytest.mark.parametrize("part", ["_eliminate", "_cut_alone"])
def test_a_set_up_that_was_stopped_goes_on_behind_the_last_layer(
    part: str, cache: Path, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = obs if part == "_eliminate" else sensitivity
    layers = len(session().structure.layers)
    real = getattr(module, part)

    def stop_at_the_third(*arguments: Any) -> Any:
        if counted[part] == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, part, stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            session().env()
    assert counted[part] == 2
    found = session().env()
    assert counted["collect_inputs"] == 1
    assert counted["_eliminate"] == counted["_cut_alone"] == layers
    _ = session().env()
    assert counted["_eliminate"] == counted["_cut_alone"] == layers  # the second command starts at once
    monkeypatch.setenv("SECATEUR_CACHE", str(cache.with_name("another")))
    for ours, theirs in zip(found.predicted.curves, session().env().predicted.curves, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("kind", ["sequential", "gram"])
def test_moments_stay_in_memory_only_where_candidates_ask_for_them(kind: str, counted: Counter[str]) -> None:
    found = session(f"repair.search.kind={kind}")
    _ = found.env()
    kept = found.structure.units // 2
    assert ("moments" in vars(found.context)) == (kind == "gram")
    assert any(name.startswith("moments") for name in found.context.store._known) == (kind == "gram")
    _ = found.compressor(kept, Repair(kind="gram"))  # they are read again
    assert counted["collect_inputs"] == 1


def test_moments_of_consumers_that_are_there_are_not_collected_again(cache: Path, counted: Counter[str]) -> None:
    first = session().context.moments
    lost = sorted(cache.rglob("moments-*"))[1]
    lost.unlink()
    collected = []
    real = context_module.collect_inputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            context_module, "collect_inputs", lambda m, names, b: collected.append(names) or real(m, names, b)
        )
        again = session().context.moments
    assert [[f"moments-{name}.safetensors" for name in names] for names in collected] == [[lost.name]]
    assert list(again.inputs) == list(first.inputs)
    for name, moments in again.inputs.items():
        assert np.array_equal(moments.raw()[0], first.inputs[name].raw()[0])
