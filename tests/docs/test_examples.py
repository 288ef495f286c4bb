"""The examples run, learn, and lose little."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = {  # epochs and episodes, and the least score of the dense network
    "segmentation": (3, 2, 60.0),
    "regression": (4, 2, 60.0),
    "detection": (4, 2, 5.0),
    "train_fn": (4, 2, 60.0),
    "lightning_fit": (4, 2, 60.0),
    "vit": (10, 2, 60.0),
}

NEEDS = {"lightning_fit": "lightning"}
ALWAYS = ("detection", "vit")  # the others' tasks have quicker tests of their own, too


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


def _marks(name: str) -> list[pytest.MarkDecorator]:
    """What is Lightning's own to be warned of is not ours."""
    slow = [] if name in ALWAYS else [pytest.mark.slow]
    return [*slow, pytest.mark.filterwarnings("ignore")] if name in NEEDS else slow


@pytest.mark.filterwarnings("ignore:the sequential repair was not taken:RuntimeWarning")
@pytest.mark.parametrize("name", [pytest.param(name, marks=_marks(name)) for name in QUICK])
def test_an_example(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    epochs, episodes, least = QUICK[name]
    found = main_of(name)(epochs=epochs, episodes=episodes)
    assert found["dense"] > least
    assert found["tuned"] > 0.8 * found["dense"]
    assert found["one-shot"] > 0.3 * found["dense"]


NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def cells_of(notebook: Path) -> list[str]:
    """The code of its cells."""
    tree = json.loads(notebook.read_text(encoding="utf-8"))
    assert tree["nbformat"] == 4
    return ["".join(cell["source"]) for cell in tree["cells"] if cell["cell_type"] == "code"]


def shown(cell: str, names: dict[str, Any]) -> Any:
    """Run a cell; its last expression is what a notebook shows."""
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_notebooks_hold_code_and_no_results() -> None:
    assert NOTEBOOKS
    for notebook in NOTEBOOKS:
        tree = json.loads(notebook.read_text(encoding="utf-8"))
        assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in tree["cells"])
        assert len({cell["id"] for cell in tree["cells"]}) == len(tree["cells"])
        assert all(ast.parse(cell).body for cell in cells_of(notebook))


@pytest.mark.slow
def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    found = [shown(cell, names) for cell in cells_of(EXAMPLES / "digits.ipynb")]
    figures = [value for value in found if isinstance(value, Figure)]
    assert [len(figure.axes) for figure in figures] == [1, 1, 1, 3]
    assert all(figure._repr_png_().startswith(b"\x89PNG") for figure in figures)  # type: ignore[attr-defined]
    assert len(names["run"].episodes) == 12
    assert names["small"]["test_accuracy"] > 0.8 * names["dense"]["test_accuracy"] > 70.0
    assert found[-1] < sum(parameter.numel() for parameter in names["session"].model.parameters())
