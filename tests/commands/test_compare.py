from __future__ import annotations

import importlib
import json

import numpy as np
import pytest

import secateur
from secateur.commands.compared import verdict
from secateur.envs import CandidateEvaluator
from secateur.pruners.structure import PlanError

KEYS = {"allocator", "seed", "flops", "params", "search_accuracy", "test_accuracy", "plan"}


@pytest.fixture(scope="module")
def comparison(run, tmp_path_factory):
    return secateur.compare([run.folder], candidates=5, seeds=[0, 1], out=tmp_path_factory.mktemp("c") / "compare")


def test_one_row_an_allocator_and_seed(comparison):
    rows = [(row["allocator"], row["seed"]) for row in comparison.rows]
    assert rows == [("ddpg", 0), ("uniform", 0), ("shallow", 0), ("deep", 0), ("random", 0), ("random", 1)]
    assert all(row.keys() >= KEYS for row in comparison.rows)
    written = json.loads((comparison.folder / "compare.json").read_text())
    assert written["rows"] == comparison.rows
    assert (comparison.folder / "compare.png").stat().st_size > 10_000


def candidates(folder):
    lines = map(json.loads, (folder / "candidates.jsonl").read_text().splitlines())
    return [{key: line[key] for key in line.keys() - {"fingerprint", "check"}} for line in lines]


def test_every_candidate_of_a_search_is_logged_and_counted_and_the_best_measured_again(run, comparison):
    session = secateur.Session(run.folder / "config.yaml")

    def finished(line) -> float:
        kept = np.array(line["kept"])
        return session.weights.quality(session.evaluator.measure(session.compress(kept), kept))

    for plan, row in list(zip(comparison.plans, comparison.rows, strict=True))[4:]:
        logged = [line for line in candidates(comparison.folder) if line["seed"] == row["seed"]]
        assert len(logged) == row["candidates"] == plan.provenance.candidates == 5
        assert {line["allocator"] for line in logged} == {"random"}
        best = sorted(logged, key=lambda line: -line["quality"])[:3]  # agent.rerank of the run
        assert max([*best, logged[0]], key=finished)["kept"] == plan.kept.tolist()
    assert [row["candidates"] for row in comparison.rows[1:4]] == [0, 0, 0]


def test_an_interrupted_comparison_goes_on_and_evaluates_nothing_again(run, comparison, tmp_path, monkeypatch):
    folder, evaluate, evaluated = tmp_path / "compare", CandidateEvaluator.evaluate, []

    def counted(self, kept):
        if tuple(kept.tolist()) not in self.known:
            if len(evaluated) == 7:
                evaluated.append("interrupt")
                raise KeyboardInterrupt
            evaluated.append(kept)
        return evaluate(self, kept)

    monkeypatch.setattr(CandidateEvaluator, "evaluate", counted)
    arguments = {"candidates": 5, "seeds": [0, 1]}
    with pytest.raises(KeyboardInterrupt):
        secateur.compare([run.folder], **arguments, out=folder)
    assert len(candidates(folder)) == 7
    with (folder / "candidates.jsonl").open("a") as file:
        file.write('{"allocator": "rand')  # torn
    resumed = secateur.compare([run.folder], **arguments, resume=folder)
    assert len(evaluated) == 1 + 10
    assert candidates(folder) == candidates(comparison.folder)
    assert resumed.rows == comparison.rows
    with pytest.raises(ValueError, match="is finished"):
        secateur.compare([run.folder], **arguments, resume=folder)


def test_workers_find_what_one_process_does(run, comparison, tmp_path):
    done = secateur.compare(
        [run.folder],
        secateur.Session(overrides=["workers=2"]),
        against=["random"],
        candidates=5,
        seeds=[0, 1],
        out=tmp_path / "compare",
    )
    assert candidates(done.folder) == candidates(comparison.folder)
    assert done.plans[1:] == comparison.plans[4:]


def test_every_plan_costs_the_same(comparison):
    for row in comparison.rows:
        assert row["flops"] <= 0.14
        assert row["flops"] == pytest.approx(0.14, abs=0.01)  # of the dense network


def test_the_plans_behind_the_rows_load(comparison, run):
    for row, plan in zip(comparison.rows, comparison.plans, strict=True):
        assert secateur.RatioPlan.load(comparison.folder / row["plan"]) == plan
    assert comparison.plans[0] == run.plan


def test_shallow_and_deep_are_what_they_say(comparison):
    sparsity = {plan.provenance.allocator: list(plan.sparsities.values()) for plan in comparison.plans}
    assert sparsity["shallow"][0] > sparsity["uniform"][0] > sparsity["deep"][0]
    assert sparsity["shallow"][-1] < sparsity["uniform"][-1] < sparsity["deep"][-1]


def test_the_gain_is_over_uniform_on_the_same_images(comparison):
    rows = {row["allocator"]: row for row in comparison.rows}
    for row in comparison.rows:
        gain = row["test_accuracy"] - rows["uniform"]["test_accuracy"]
        assert row["test_gain_over_uniform"] == pytest.approx(gain, abs=1e-4)
    assert rows["uniform"]["test_gain_standard_error"] == 0.0


def test_without_a_plan(run, tmp_path):
    session = secateur.Session(run.folder / "config.yaml")
    done = secateur.compare((), session, against=["uniform"], finetune=1, out=tmp_path / "compare")
    assert [row["allocator"] for row in done.rows] == ["uniform"]
    assert done.rows[0]["finetuned_test_accuracy"] > 20


def test_beside_a_plan_that_no_search_found_a_search_has_candidates(run, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("secateur.commands.compare"), "DEFAULT_CANDIDATES", 2)
    rule = run.plan.model_copy(update={"provenance": run.plan.provenance.model_copy(update={"candidates": 0})})
    done = secateur.compare([rule], run.folder / "config.yaml", against=["random"], seeds=[0], out=tmp_path / "c")
    assert [row["candidates"] for row in done.rows] == [0, 2]


def test_plans_of_different_budgets_are_refused(run):
    other = run.plan.model_copy(update={"budget": run.plan.budget.model_copy(update={"fraction": 0.4})})
    with pytest.raises(
        PlanError, match=r"same method, budget and criterion: channels, flops 0\.14, obs against channels, flops 0\.4"
    ):
        secateur.compare([run.plan, other], run.folder / "config.yaml")


def test_an_unknown_allocator_names_the_near_miss(run):
    with pytest.raises(ValueError, match="did you mean uniform"):
        secateur.compare([run.folder], against=["unifrom"])
    with pytest.raises(ValueError, match="did you mean uniform"):  # before anything is loaded
        secateur.compare([run.folder / "gone"], against=["unifrom"])


def test_the_verdict_is_ahead_of_an_allocator_where_it_is_of_every_seed():
    def row(allocator, lead, error=0.3):
        return {"allocator": allocator, "test_lead": lead, "test_lead_standard_error": error}

    first = {"allocator": "ddpg"}
    rows = [first, row("ddpg", 5.0), row("random", 0.7), row("random", 0.5), row("uniform", 4.0), row("same", 0.0, 0.0)]
    assert verdict([*rows, row("lamp", -0.7), row("lamp", -9.0)]) == (
        "ddpg on the test images, beyond two standard errors: ahead of uniform; level with random, same; behind lamp"
    )
    assert verdict([first]) is None
    assert verdict([first, row("ddpg", 5.0)]) is None
