"""The reward is the environment's: where gains are counted from, what they add up to, and what is learnt on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from secateur.envs import Evaluation, LayerSparsityEnv, RewardWeights
from secateur.envs.reward import LEAST_LOSS, WORST_GAIN, Base
from secateur.pruners.budget import Budget
from secateur.pruners.loss_model import LossModel

ACTIONS = [0.1, -0.4, 0.5, 0.9, -0.9, 0.2]


def environment(penalty: float = 2.0, **options: Any) -> LayerSparsityEnv:
    """Its optimum is a plan on the budget, far from the uniform one."""
    structure = zoo.structure("digits")
    budget = Budget(structure, "flops", 0.5)
    optimum = budget.fill(np.where(np.arange(6) % 2, 1.0, 0.2) * structure.units)
    statistics = np.linspace(0, 1, 6, dtype=np.float32)[:, None]
    return LayerSparsityEnv(budget, zoo.Target(structure, optimum), statistics, action_penalty=penalty, **options)


def episode(env: LayerSparsityEnv, actions: Any, budget: float | None = None) -> tuple[list[float], dict[str, Any]]:
    """The rewards of an episode, and its last info."""
    env.reset(options={} if budget is None else {"budget": budget})
    rewards, info = [], {}
    for action in actions:
        _, reward, *_, info = env.step(np.array([action], np.float32))
        assert sum(info["reward_terms"].values()) == reward
        rewards.append(reward)
    return rewards, info


def test_a_candidate_that_blew_up_is_paid_a_bounded_penalty() -> None:
    weights, dense = RewardWeights(reconstruction=2.0), Evaluation(100.0, 0.0, 1.0, 1.0)
    blown = Evaluation(10.0, 3e38, 0.5, 0.5)
    assert weights.terms(blown) == {"accuracy": 0.1, "reconstruction": -20.0, "flops": 0.0}
    assert Base(0.5, 0.2).gain(weights, blown, dense) == WORST_GAIN


@pytest.mark.parametrize("lost", [0.3, LEAST_LOSS, 0.0])
@pytest.mark.parametrize("flops", [0.0, 0.5])
def test_a_base_plan_gains_nothing(lost: float, flops: float) -> None:
    weights, dense = RewardWeights(flops=flops), Evaluation(100.0, 0.0, 1.0, 1.0)
    base = Evaluation(100.0, lost, 0.5, 0.5)
    assert Base(0.5, weights.lost(base, dense)).gain(weights, base, dense) == 0.0


@given(lost=st.floats(LEAST_LOSS, 3.0), part=st.floats(-2.0, 1.0))
def test_a_gain_is_the_part_of_the_base_plans_loss_that_is_won_back(lost: float, part: float) -> None:
    weights, dense = RewardWeights(), Evaluation(90.0, 0.0, 1.0, 1.0)
    gain = Base(0.5, lost).gain(weights, Evaluation(90.0, (1.0 - part) * lost, 0.5, 0.5), dense)
    assert gain == pytest.approx(max(WORST_GAIN, part), abs=1e-6)
    for accuracy in (90.0, 95.0):  # to be right more often than the dense network is no more than to lose nothing
        assert Base(0.5, lost).gain(weights, Evaluation(accuracy, 0.0, 0.5, 0.5), dense) == 1.0


def test_flops_that_are_spared_gain_what_they_weigh() -> None:
    weights, dense = RewardWeights(flops=0.5), Evaluation(100.0, 0.0, 1.0, 1.0)
    base, leaner = Evaluation(100.0, 0.2, 0.5, 0.5), Evaluation(100.0, 0.2, 0.4, 0.5)
    found = Base(0.5, weights.lost(base, dense)).gain(weights, leaner, dense)
    assert found == pytest.approx(0.5 * (0.5 - 0.4) / 0.2)


def test_the_base_plan_is_paid_nothing_and_the_best_one_all() -> None:
    env = environment()
    rewards, info = episode(env, [0.0] * 6)
    assert rewards == [0.0] * 6
    assert np.array_equal(info["kept"], env.base_plan(0.5))
    optimum = env.evaluator.kept
    assert env.settle(optimum, env.evaluator.evaluate(optimum), 0.5) == 1.0


@settings(max_examples=25, deadline=None)
@given(actions=st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=6), penalty=st.floats(0.0, 3.0))
def test_an_episode_is_paid_its_gain_less_its_penalties(actions: list[float], penalty: float) -> None:
    env = environment(penalty)
    rewards, info = episode(env, actions)
    assert rewards[:-1] == [pytest.approx(-penalty * action**2) for action in actions[:-1]]
    base = env.evaluator.evaluate(env.base_plan(0.5))
    lost = 1.0 - env.weights.quality(base)
    assert info["reward_terms"] == {
        "action_penalty": pytest.approx(-penalty * actions[-1] ** 2),
        "gain": pytest.approx(max(WORST_GAIN, 1.0 - (1.0 - info["quality"]) / lost)),
    }


def test_an_action_outside_the_space_costs_what_the_nearest_inside_costs() -> None:
    env = environment()
    assert env.penalty(7.0) == env.penalty(-1.0) == -2.0
    assert env.penalty(0.5) == -0.5


@pytest.mark.parametrize("first", [0.0, 0.5])
def test_the_base_plan_is_evaluated_once(first: float) -> None:
    """Whether an episode happens to walk it, or it is evaluated to be compared with."""
    env = environment()
    asked: list[tuple[int, ...]] = []
    evaluate = env.evaluator.evaluate
    env.evaluator.evaluate = lambda kept: asked.append(tuple(kept.tolist())) or evaluate(kept)
    for actions in ([first] * 6, ACTIONS, [-0.3] * 6):
        episode(env, actions)
    assert asked.count(tuple(env.base_plan(0.5).tolist())) == 1
    assert len(asked) == (3 if first == 0.0 else 4)


def test_on_another_budget_the_base_plans_loss_is_scaled_as_predicted() -> None:
    env = environment(0.0)
    episode(env, [0.0] * 6)
    base = 1.0 - env.weights.quality(env.evaluator.evaluate(env.base_plan(0.5)))
    calls = env.evaluator.calls
    rewards, info = episode(env, ACTIONS, budget=0.3)
    assert env.evaluator.calls == calls + 1  # the plan; its base plan is not evaluated
    here, there = (float(env.predicted.predict(env.base_plan(fraction))) for fraction in (0.5, 0.3))
    assert there > 1.5 * here
    lost = 1.0 - info["quality"]
    assert rewards[-1] == pytest.approx(max(WORST_GAIN, 1.0 - lost / (base * there / here)))
    assert rewards[-1] > WORST_GAIN


def test_walking_and_settling_is_stepping() -> None:
    """For who evaluates several plans together: the same observations, the same pay."""
    stepped, walked = environment(), environment()
    for actions in (ACTIONS, ACTIONS[::-1], [0.2] * 6):
        seen, rewards = [stepped.reset()[0]], []
        for action in actions:
            observation, reward, *_ = stepped.step(np.array([action], np.float32))
            seen.append(observation)
            rewards.append(reward)
        own = [walked.reset()[0], *(walked.walk(np.array([action], np.float32)) for action in actions)]
        paid = [walked.penalty(float(np.float32(action))) for action in actions]
        kept = np.array(walked.kept)
        paid[-1] += walked.settle(kept, walked.evaluator.evaluate(kept), 0.5)
        assert paid == rewards
        assert all(np.array_equal(a, b) for a, b in zip(seen, own, strict=True))
        assert walked.evaluated == stepped.evaluated
        assert np.array_equal(walked.best, stepped.best)


def test_the_best_plan_is_the_best_of_all_that_were_evaluated_on_the_budget_asked() -> None:
    env = environment()
    env.evaluator.kept = env.budget.structure.units  # more is better, so a laxer budget's plans are, and are no answer
    assert env.best is None
    rng = np.random.default_rng(0)
    qualities = {}
    for number in range(12):
        budget = 0.9 if number % 3 == 2 else 0.5
        _, info = episode(env, rng.uniform(-1, 1, 6), budget)
        if budget == 0.5:
            qualities[tuple(info["kept"].tolist())] = info["quality"]
        base = env.base_plan(0.5)
        qualities[tuple(base.tolist())] = env.weights.quality(env.evaluator.evaluate(base))
        assert tuple(env.best.tolist()) == max(qualities, key=qualities.get)
        assert env.budget.structure.fraction("flops", env.best) <= 0.5
    assert max(env.weights.quality(evaluation) for evaluation in env.evaluated.values()) > max(qualities.values())


def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many plans the loss model was fitted to, every time it was."""
    counts: list[int] = []
    fitted = LossModel.fitted

    def counted(self: LossModel, plans: Any, distances: Any) -> LossModel:
        counts.append(len(plans))
        return fitted(self, plans, distances)

    monkeypatch.setattr(LossModel, "fitted", counted)
    return counts


def test_the_loss_model_is_fitted_where_something_new_was_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = fits(monkeypatch)
    env = environment()
    env.reset()
    assert counts == []
    rewards, info = episode(env, ACTIONS)
    assert counts == []  # not before the next episode
    for _ in range(3):
        env.reset()
    assert counts == [2]  # the plan and the base plan
    assert env.loss_model.factors.tolist() != env.predicted.factors.tolist()
    env.settle(info["kept"], info["evaluation"], 0.5)  # known already
    env.reset()
    assert counts == [2]
    env.settle(env.budget.least, env.evaluator.evaluate(env.budget.least), 0.5)
    env.reset(options={"budget": 0.4})
    assert counts == [2, 3]
    assert rewards[-1] != 0.0


def test_one_that_does_not_adapt_is_never_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = fits(monkeypatch)
    env = environment(adapt=False)
    for _ in range(2):
        episode(env, ACTIONS)
        env.reset()
    env.refit()
    assert counts == []
    assert env.loss_model is env.predicted
