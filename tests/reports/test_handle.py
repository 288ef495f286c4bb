"""A run that is opened again: what its files say, the best of it, and its figures."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.image import imread
from small import make, plan_of

import secateur
from secateur.reports.figures import Drawing, cost_drawing


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> secateur.Session:
    sections: dict[str, Any] = {"agent": {"episodes": 6, "warmup": 2, "updates": 1, "hidden": [8], "rerank": 2}}
    return make(tmp_path_factory.mktemp("small"), "channels", **sections)


@pytest.fixture(scope="module")
def trained(session, tmp_path_factory) -> secateur.Training:
    return secateur.train(session, out=tmp_path_factory.mktemp("run") / "train")


@pytest.fixture(scope="module")
def applied(session, trained, tmp_path_factory) -> secateur.Applied:
    return secateur.apply(trained.plan, session, finetune=2, out=tmp_path_factory.mktemp("run") / "apply")


@pytest.fixture(scope="module")
def compared(session, trained, tmp_path_factory) -> secateur.Comparison:
    out = tmp_path_factory.mktemp("run") / "compare"
    return secateur.compare([trained.plan], session, against=["uniform", "random"], candidates=3, out=out)


def drawn(figure: Drawing) -> tuple[int, int]:
    """As a notebook draws it; its size, where it is not blank."""
    pixels = imread(io.BytesIO(figure._repr_png_()))
    assert pixels[..., :3].std() > 0.01
    return pixels.shape[:2]


def marks(figure: Drawing, axes: int = 0) -> dict[str, list[tuple[float, float]]]:
    """Label → points of the lines."""
    return {str(line.get_label()): [tuple(point) for point in line.get_xydata()] for line in figure.axes[axes].lines}


def test_a_training_is_what_it_returned(trained):
    run = trained.run
    assert run.folder == trained.folder
    assert run.plan == trained.plan
    assert run.best is not None
    assert (run.best.quality, run.best.episode) == tuple(trained.summary["best"][key] for key in ("quality", "episode"))
    assert run.setting("budget", "flops") == run.config["budget"]["flops"] == 0.5
    assert [episode["episode"] for episode in run.episodes] == list(range(6))
    again = secateur.open_run(str(trained.folder))
    assert again.data == run.data


def test_episodes_are_rows(trained, monkeypatch):
    run = trained.run
    monkeypatch.setitem(sys.modules, "pandas", None)  # not installed
    rows = run.episodes_frame()
    assert len(rows) == 6
    for row, episode in zip(rows, run.episodes, strict=True):
        assert row["quality"] == episode["quality"]
        terms = {name.removeprefix("terms."): value for name, value in row.items() if name.startswith("terms.")}
        assert terms == episode["terms"]
        assert terms
        assert "terms" not in row
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda given: ("frame", given)))
    assert run.episodes_frame() == ("frame", rows)


def test_figures_of_a_training_show_its_figures(trained):
    run = trained.run
    plan = run.plot_plan()
    assert [bar.get_height() for bar in plan.axes[0].patches] == [layer.sparsity for layer in trained.plan.layers]
    search = marks(run.plot_search())
    qualities = [episode["quality"] for episode in run.episodes]
    assert [y for _, y in search["episode"]] == qualities
    assert search["best so far"][-1][1] == max(qualities)
    for kind in ("flops", "params"):
        cost = marks(run.plot_cost(kind))
        episodes = [(100 * e[kind], e["accuracy"]) for e in run.episodes]
        assert cost["episode, as the search saw it"] == episodes
    assert min(drawn(plan)) > 300


def test_an_application_and_a_comparison(applied, compared):
    small, rows = applied.run, compared.run
    assert small.best is not None
    assert small.best.test_accuracy == applied.summary["pruned"]["test_accuracy"]
    training = small.plot_training()
    losses = [json.loads(line)["loss"] for line in (applied.folder / "training.jsonl").read_text().splitlines()]
    assert [y for _, y in marks(training)[str(training.axes[0].lines[0].get_label())]] == losses
    drawn(training)

    assert rows.best is not None
    assert rows.best.test_accuracy == max(row["test_accuracy"] for row in compared.rows)
    assert [plan.kept.tolist() for plan in rows.plans] == [plan.kept.tolist() for plan in compared.plans]
    assert {text.get_text() for text in rows.plot_comparison().axes[0].get_yticklabels()} == {
        "ddpg",
        "uniform",
        "random",
    }
    points = [point for found in marks(rows.plot_cost()).values() for point in found]
    assert {(100 * row["flops"], row["test_accuracy"]) for row in compared.rows} <= set(points)


def test_a_run_that_still_goes_on_is_opened(trained, tmp_path):
    """The log as a killed run leaves it; the best so far is that of its episodes."""
    for name in ("config.yaml", "episodes.jsonl", "plan.json"):
        (tmp_path / name).write_bytes((trained.folder / name).read_bytes())
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "episodes.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    run = secateur.open_run(tmp_path)
    assert not run.finished
    assert len(run.episodes) == 3
    assert run.best is not None
    assert run.best.quality == max(episode["quality"] for episode in run.episodes)
    assert len(marks(run.plot_search())["episode"]) == 3


def test_what_is_not_there_is_said(trained, applied, compared, tmp_path):
    for draw, message in (
        (applied.run.plot_search, "no episodes to draw: train writes them"),
        (compared.run.plot_search, "candidates: episodes_frame"),
        (trained.run.plot_comparison, "no finished comparison to draw"),
        (lambda: trained.run.plot_training("x"), "no training 'x' to draw: there is none"),
        (lambda: applied.run.plot_training("x"), "no training 'x' to draw: there is ''"),
        (lambda: trained.run.plot_cost("flosp"), "no cost 'flosp' to draw: one of flops, params, latency"),
        (lambda: trained.run.plot_cost("bops"), "no cost 'bops'"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            draw()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no run there"):
        secateur.open_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        secateur.open_run(tmp_path / "gone")


def test_a_name_is_no_formula(session, tmp_path):
    """A layer, an allocator or a training may be called what matplotlib would take for mathematics, and fail at."""
    figure = cost_drawing({"$\\frac{": [(50.0, 80.0)]}, [(50.0, 80.0)], "$x", "$^_")
    assert min(drawn(figure)) > 300
    figure.savefig(tmp_path / "figure.svg", bbox_inches="tight")
    assert (tmp_path / "figure.svg").stat().st_size > 1000
    plan = plan_of(session)
    strange = plan.model_copy(update={"layers": [layer.model_copy(update={"name": "$_^"}) for layer in plan.layers]})
    drawn(secateur.reports.figures.plan_drawing(strange))


def test_drawing_leaves_pyplot_alone(trained):
    """A notebook's or a window's backend stays as the user has it, and no figure is kept open."""
    before = set(sys.modules)
    drawn(trained.run.plot_plan())
    assert "matplotlib.pyplot" not in set(sys.modules) - before


def test_opening_runs_no_code(trained, tmp_path):
    for name in ("episodes.jsonl", "plan.json", "summary.json"):
        (tmp_path / name).write_bytes((trained.folder / name).read_bytes())
    (tmp_path / "config.yaml").write_text("name: theirs\nmethod: os.path:abspath\nnetwork: {name: 'not.there:f'}\n")
    assert secateur.open_run(Path(tmp_path)).setting("network", "name") == "not.there:f"
