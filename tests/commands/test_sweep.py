"""A comparison at several budgets: what `compare` finds at each, nothing twice, and the Pareto front."""

from __future__ import annotations

import json
from typing import Any

import pytest
from small import make, plan_of

import secateur
from secateur.commands import sweep as module
from secateur.commands.sweep import on_front, sweep_table


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> secateur.Session:
    return make(tmp_path_factory.mktemp("small"), "channels")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than so small a network's comparison; the sweep's own is drawn."""
    monkeypatch.setattr("secateur.commands.compare.comparison_figure", lambda *_given: None)


ARGUMENTS: dict[str, Any] = {
    "budgets": [0.3, 0.6],
    "against": ["uniform", "random"],
    "candidates": 2,
    "seeds": [3],
    "finetune": 1,
}


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def check_what_is_shown(found: secateur.Sweep) -> None:
    """The page joins all budgets in a chart before training and one after; the figure and the handles say the same."""
    page = (found.folder / "report.html").read_text()
    for key in ("test_accuracy", "finetuned_test_accuracy"):
        for row in found.rows:
            assert f"{row[key]:.2f} (top-1 %) at {100 * row['flops']:.1f} % of the FLOPs" in page
    assert "Small after 1 epochs: accuracy against FLOPs" in page
    assert (found.folder / "flops-0.3" / "report.html").exists()
    assert list(found.runs) == [0.3, 0.6]
    both = [figures.test_accuracy for run in found.runs.values() for figures in run.summary.rows]
    assert both == [row["test_accuracy"] for row in found.rows]
    front = next(line for line in found.plot().axes[0].lines if line.get_label() == "Pareto front")
    assert {y for _, y in front.get_xydata()} == {row["reached"] for row in found.rows if row["front"]}
    (found.folder / "report.html").unlink()
    assert secateur.report(found.folder) == found.folder / "report.html"
    assert (found.folder / "report.html").read_text() == page
    with pytest.raises(ValueError, match=r"a comparison for each budget: open one of them, .*flops-0\.3, .*flops-0\.6"):
        secateur.open_run(found.folder)


def test_every_row_is_that_of_a_comparison_at_its_budget_and_nothing_is_done_twice(session, tmp_path, monkeypatch):
    whole = secateur.sweep((), session, **ARGUMENTS, out=tmp_path / "whole")
    tree = json.loads((whole.folder / "sweep.json").read_text())
    assert (tree["rows"], tree["trained"]) == (whole.rows, whole.trained)
    assert (whole.folder / "sweep.png").stat().st_size > 10_000
    assert [(row["budget"], row["allocator"], row["seed"]) for row in whole.rows] == [
        (budget, name, 3) for budget in (0.3, 0.6) for name in ("uniform", "random")
    ]
    check_what_is_shown(whole)
    assert all(row["flops"] <= row["budget"] for row in whole.rows)
    assert all(row["reached"] == row["finetuned_test_accuracy"] for row in whole.rows)
    arguments = {key: value for key, value in ARGUMENTS.items() if key != "budgets"}
    alone = secateur.compare((), session.beside(overrides=["budget.flops=0.6"]), **arguments, out=tmp_path / "alone")
    added = {"budget", "reached", "front"}
    assert [{key: row[key] for key in row.keys() - added} for row in whole.rows[2:]] == alone.rows
    assert untimed([{"budget": 0.6, **row} for row in alone.trained]) == untimed(whole.trained[2:])

    folder, compare, begun = tmp_path / "stopped", module.compare, []

    def stopping(*given: Any, **named: Any) -> secateur.Comparison:
        begun.append(named.get("resume") or named["out"])
        if len(begun) == 2:
            raise KeyboardInterrupt
        return compare(*given, **named)

    monkeypatch.setattr(module, "compare", stopping)
    with pytest.raises(KeyboardInterrupt):
        secateur.sweep((), session, **ARGUMENTS, out=folder)
    with pytest.raises(ValueError, match=r"finetune was 1, is 0 now"):
        secateur.sweep((), session, **{**ARGUMENTS, "finetune": 0}, resume=folder)
    with pytest.raises(ValueError, match=r"budgets was \['flops 0\.3', 'flops 0\.6'\], is \['flops 0\.3'\] now"):
        secateur.sweep((), session, **{**ARGUMENTS, "budgets": [0.3]}, resume=folder)
    with pytest.raises(ValueError, match="it is of several budgets, give them again"):
        secateur.compare((), session, **arguments, resume=folder)
    one = folder / "flops-0.3" / "compare.json"
    text = one.read_text()
    one.write_text(text.replace('"finetune_epochs": 1', '"finetune_epochs": "1"'))
    with pytest.raises(ValueError, match=r"compare\.json: finetune_epochs = '1'"):
        secateur.sweep((), session, **ARGUMENTS, resume=folder)
    one.write_text(text)
    again = secateur.sweep((), session, **ARGUMENTS, resume=folder)
    assert begun == [folder / "flops-0.3", folder / "flops-0.6", folder / "flops-0.6"]
    assert again.rows == whole.rows
    with pytest.raises(ValueError, match="is finished"):
        secateur.sweep((), session, **ARGUMENTS, resume=folder)


def test_a_plan_is_compared_at_its_own_budget(session, tmp_path):
    plan = plan_of(session, 0.5)
    cheap = session.beside(overrides=["budget.flops=0.9"])
    dear = plan_of(cheap, 0.7)
    found = secateur.sweep([plan, dear], session, budgets=[0.5, 0.9], against=[], out=tmp_path / "sweep")
    assert [row["budget"] for row in found.rows] == [0.5, 0.9]
    kept = [secateur.RatioPlan.load(found.folder / f"flops-{at}" / "plans" / "0-uniform-0.json") for at in (0.5, 0.9)]
    assert [one.kept.tolist() for one in kept] == [plan.kept.tolist(), dear.kept.tolist()]
    with pytest.raises(ValueError, match=r"a plan of uniform is for flops 0\.9: add that to --flops"):
        secateur.sweep([plan, dear], session, budgets=[0.5], against=[])
    with pytest.raises(ValueError, match="nothing to compare at some budgets"):
        secateur.sweep([plan], session, budgets=[0.5, 0.9], against=[])


def test_what_is_wrong_is_said_before_there_is_a_folder(session, tmp_path):
    for wrong, message in (
        ({"schedules": ["one_shto"]}, "did you mean one_shot"),
        ({"against": ["unifrom"]}, "uniform"),
    ):
        with pytest.raises(ValueError, match=message):
            secateur.sweep((), session, **{**ARGUMENTS, **wrong}, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("budgets", "message"), [([], "give 1 to 100 budgets"), ([0.5, 0.5], "each once"), ([0.5, 1.5], r"--flops 1\.5: a")]
)
def test_budgets_are_fractions(session, budgets, message):
    with pytest.raises(ValueError, match=message):
        secateur.sweep((), session, budgets=budgets, against=["uniform"])


def test_the_front_is_what_no_row_is_better_than():
    costs, scores = [0.2, 0.2, 0.5, 0.5, 0.6, 0.7], [60.0, 50.0, 80.0, 80.0, 70.0, 81.0]
    rows = [{"flops": cost, "reached": score} for cost, score in zip(costs, scores, strict=True)]
    assert [on_front(row, rows, "flops") for row in rows] == [True, False, True, True, False, True]


def test_a_table_of_budgets_has_a_gap_where_a_plan_has_none():
    rows = [
        {"allocator": "a", "budget": 0.2, "reached": 60.0, "front": True},
        {"allocator": "a", "budget": 0.2, "reached": 50.0, "front": False},
        {"allocator": "b", "budget": 0.5, "reached": 80.0, "front": False},
    ]
    tree = {"rows": rows, "measure": "top-1 %", "kind": "flops", "finetune_epochs": 2}
    found = sweep_table({**tree, "dense": {"images": "test", "accuracy": 90.0}})
    assert found.columns == ("allocator", "20 %", "50 %")
    assert found.rows == [["a", "55.00*", "–"], ["b", "–", "80.00"]]
    assert "after 2 epochs" in found.caption
