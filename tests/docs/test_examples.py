"""The examples run, learn, and lose little."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = {  # epochs and episodes, and the least score of the dense network
    "segmentation": (3, 2, 60.0),
    "regression": (4, 2, 60.0),
    "detection": (4, 2, 5.0),
    "train_fn": (2, 2, 60.0),
    "vit": (10, 2, 60.0),
}


def main_of(name: str) -> Callable[..., dict[str, float]]:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., dict[str, float]] = module.main
    return found


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(QUICK)


@pytest.mark.filterwarnings("ignore:the sequential repair was not taken:RuntimeWarning")
@pytest.mark.parametrize("name", QUICK)
def test_an_example(name: str) -> None:
    epochs, episodes, least = QUICK[name]
    found = main_of(name)(epochs=epochs, episodes=episodes)
    assert found["dense"] > least
    assert found["tuned"] > 0.8 * found["dense"]
    assert found["one-shot"] > 0.3 * found["dense"]
