"""The environment on a toy whose optimum is known: the checkers, the walk, the budget, the reward."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import zoo
from secateur.envs import (
    STATIC_FEATURES,
    WALK_FEATURES,
    LayerSparsityEnv,
    RewardWeights,
    layer_statistics,
)
from secateur.envs.layer_sparsity import REACH
from secateur.pruners.budget import Budget
from secateur.pruners.context import Context
from secateur.pruners.loss_model import Lagrangian, LossModel
from secateur.pruners.structure import PlanError

CASES = st.sampled_from(zoo.cases())
ACTIONS = st.lists(st.floats(-1, 1, width=32), min_size=12, max_size=12)


def make(
    name: str = "digits",
    cut: str = "inner",
    kind: str = "flops",
    fraction: float = 0.5,
    weights: RewardWeights | None = None,
    loss_model: LossModel | None = None,
    optimum: np.ndarray | None = None,
    **options: Any,
) -> LayerSparsityEnv:
    """Statistics are a layer's position and nothing else, so that an observation tells whose it is."""
    structure = zoo.priced(kind, name, cut)
    budget = Budget(structure, kind, fraction)  # type: ignore[arg-type]
    layers = len(structure.layers)
    statistics = np.linspace(0.0, 1.0, layers, dtype=np.float32)[:, None]
    target = zoo.Target(structure, budget.least if optimum is None else optimum)
    return LayerSparsityEnv(budget, target, statistics, weights, loss_model, **options)


def roll(env: gym.Env, actions: list[float]) -> tuple[list[np.ndarray], list[float], dict]:
    """Observations, rewards and the last info of one episode."""
    observation, _ = env.reset()
    observations, rewards, terminated, info = [observation], [], False, {}
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(np.array([action], dtype=np.float32))
        observations.append(observation)
        rewards.append(reward)
        assert not truncated
        if terminated:
            break
    assert terminated
    return observations, rewards, info


@pytest.mark.parametrize("check", [check_env, check_env_sb3])
@pytest.mark.parametrize(("name", "cut"), [("digits", "inner"), ("digits", "all"), ("depthwise_first", "inner")])
def test_checkers_have_nothing_to_say(check, name: str, cut: str) -> None:
    env = gym.make(EnvSpec("Toy-v0", entry_point=partial(make, name, cut, action_penalty=2.0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(env.unwrapped)


def test_docstring_is_the_environments_page() -> None:
    text = inspect.getdoc(LayerSparsityEnv) or ""
    sections = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert sections == [
        "Description",
        "Action Space",
        "Observation Space",
        "Starting State",
        "Reward",
        "Episode End",
        "Arguments",
        "Version History",
    ]
    for argument in list(inspect.signature(LayerSparsityEnv.__init__).parameters)[1:]:
        assert f"* `{argument}`" in text
    info = roll(make(), [0.0] * 6)[2]
    for term in info["terms"]:
        assert f"| {term} |" in text
    for name in [*info, *info["reward_terms"]]:
        assert f"`{name}`" in text or f'`info["{name}"]`' in text, name
    assert "* v0:" in text


def test_twin_roll_outs_are_identical() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, 9).tolist()
    twins = [make("resnet20"), make("resnet20")]
    for env in twins:
        env.action_space.seed(5)
        env.reset(seed=5)
    first, second = (roll(env, actions) for env in twins)
    for a, b in zip(first[0], second[0], strict=True):
        assert np.array_equal(a, b)
    assert first[1] == second[1]
    assert np.array_equal(first[2]["kept"], second[2]["kept"])
    again = roll(twins[0], actions)  # what stays behind of an episode is what it taught, and no more
    twins[1].reset()
    fresh = make("resnet20", loss_model=twins[1].loss_model, adapt=False)
    assert all(np.array_equal(a, b) for a, b in zip(again[0], roll(fresh, actions)[0], strict=True))
    unmoved = make("resnet20", adapt=False)
    for _ in range(2):
        assert all(np.array_equal(a, b) for a, b in zip(first[0], roll(unmoved, actions)[0], strict=True))


@settings(max_examples=40, deadline=None)
@given(case=CASES, fraction=st.floats(0.2, 1.0), other=st.floats(0.2, 1.0), actions=ACTIONS)
def test_whatever_the_actions_all_budgets_are_met(case, fraction, other, actions) -> None:
    structure = zoo.priced("latency", *case)
    try:
        budget = Budget(structure, "flops", fraction, besides={"params": other, "latency": other})
    except PlanError:
        assume(False)
        raise
    statistics = np.zeros((len(structure.layers), 1), dtype=np.float32)
    env = LayerSparsityEnv(budget, zoo.Target(structure, budget.least), statistics)
    for options in (None, {"budget": 1.0}):
        env.reset(options=options)
        for action in actions[: len(structure.layers)]:
            observation, *_ = env.step(np.array([action], dtype=np.float32))
            assert env.observation_space.contains(observation)
        for alone in env.budget.each:
            assert alone.cost(env.kept) <= alone.limit
    assert env.budget.fractions == {"flops": 1.0, "params": other, "latency": other}


@settings(max_examples=50, deadline=None)
@given(case=CASES, kind=st.sampled_from(["flops", "params", "latency"]), fraction=st.floats(0.05, 1.0), actions=ACTIONS)
def test_any_actions_end_at_the_budget(case, kind, fraction, actions):
    try:
        env = make(*case, kind, fraction)
    except PlanError:
        assume(False)
    observations, rewards, info = roll(env, actions)
    kept, dense = info["kept"].tolist(), env.budget.structure.units
    assert env.budget.cost(kept) <= env.budget.limit
    assert env.budget.structure.fraction(kind, kept) <= fraction + 1e-9
    if kind == "latency":  # nothing that is free is given away
        assert [env.budget.widen(kept[:t], count) for t, count in enumerate(kept)] == kept
    cut = [i for i, count in enumerate(kept) if count < dense[i]]
    if cut:
        kept[cut[-1]] += 1
        assert env.budget.cost(kept) > env.budget.limit
    assert all(env.observation_space.contains(o) for o in observations)
    assert all(o.dtype == np.float32 for o in observations)
    assert len(rewards) == len(dense)
    assert rewards[:-1] == [0.0] * (len(dense) - 1)


@settings(max_examples=30, deadline=None)
@given(case=CASES, fraction=st.floats(0.1, 1.0), actions=ACTIONS)
def test_a_larger_action_removes_no_less(case, fraction, actions):
    try:
        env = make(*case, "flops", fraction)
    except PlanError:
        assume(False)
    env.reset()
    for action in actions[: len(env.statistics)]:
        kept = [env._choice(a) for a in (-1.0, -0.5, 0.0, 0.5, 1.0)]
        assert kept == sorted(kept, reverse=True)
        low, high = env.budget.bounds_at(env.kept)
        assert low <= kept[-1] <= kept[0] <= high
        env.step(np.array([action], dtype=np.float32))


@pytest.mark.parametrize(("name", "cut"), [("resnet20", "inner"), ("resnet20", "all"), ("digits", "inner")])
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
def test_where_nothing_is_known_zero_actions_give_the_uniform_plan(name: str, cut: str, fraction: float) -> None:
    env = make(name, cut, fraction=fraction)
    _, _, info = roll(env, [0.0] * len(env.statistics))
    kept = info["kept"] / env.budget.structure.units
    one_unit = 1.0 / env.budget.structure.units.min()
    assert np.ptp(kept[:-1]) <= 2 * one_unit
    assert abs(kept[-1] - kept[:-1].mean()) <= 4 * one_unit  # the last layer takes what the others' rounding left


def steep(layer: int, name: str = "resnet20") -> LossModel:
    """Losses of a network that minds one layer more than the others."""
    even = LossModel.even(Budget(zoo.structure(name), "flops", 0.5))
    return replace(even, factors=np.where(np.arange(len(even.curves)) == layer, 4.0, 1.0))


@pytest.mark.parametrize("layer", [0, 4, 8])
def test_zero_actions_spare_the_layer_that_is_minded(layer: int) -> None:
    plain, minding = make("resnet20"), make("resnet20", loss_model=steep(layer))
    before, after = (roll(env, [0.0] * 9)[2]["kept"] for env in (plain, minding))
    assert after[layer] > before[layer]
    assert minding.predicted.predict(after) < minding.predicted.predict(before)
    others = np.arange(9) != layer
    assert np.all(after[others][:-1] <= before[others][:-1] + 1)


def test_an_action_is_a_multiplier() -> None:
    """-1 keeps the layer as if it gained e² times as much: as if its factor were so much larger."""
    env = make("resnet20")
    env.reset()
    env.step(np.array([-1.0], np.float32))
    lagrangian = Lagrangian(env.loss_model, env.budget)
    expected = lagrangian.kept(lagrangian.raised(lagrangian.position([]), -REACH))[0]
    assert env.kept == [round(float(expected))]
    assert env.kept[0] > 10 > 8 == round(float(lagrangian.kept(lagrangian.position([]))[0]))


def test_another_loss_model_counts_from_the_next_walk_on() -> None:
    env = make("resnet20")
    env.reset()
    env.set_loss_model(steep(3))
    assert np.array_equal(
        roll(env, [0.0] * 9)[2]["kept"], roll(make("resnet20", loss_model=steep(3)), [0.0] * 9)[2]["kept"]
    )


def test_a_walk_on_another_budget() -> None:
    env = make("resnet20")
    first, _ = env.reset(options={"budget": 0.3})
    assert first[1 + list(WALK_FEATURES).index("budget")] == pytest.approx(0.3)
    for _ in range(9):
        *_, info = env.step(np.zeros(1, np.float32))
    assert np.array_equal(info["kept"], roll(make("resnet20", fraction=0.3), [0.0] * 9)[2]["kept"])
    assert env.budget.fraction == 0.3
    env.reset()
    assert env.budget.fraction == 0.3  # until another is named
    with pytest.raises(PlanError, match=r"budget\.flops = 0\.0001 cannot be met"):
        env.reset(options={"budget": 1e-4})


def test_a_walk_without_pay_sees_the_same_and_evaluates_nothing() -> None:
    paid, walked = make(), make()
    actions = [0.1, -0.4, 0.5, 0.9, -0.9, 0.2]
    observations, _, info = roll(paid, actions)
    seen = [walked.reset()[0], *(walked.walk(np.array([a], np.float32)) for a in actions)]
    assert all(np.array_equal(a, b) for a, b in zip(seen, observations, strict=True))
    assert walked.kept == info["kept"].tolist()
    assert walked.evaluator.calls == 0
    with pytest.raises(RuntimeError, match="the walk is over"):
        walked.walk(np.zeros(1, np.float32))


@pytest.mark.parametrize("action", [3.0, -7.0])
def test_actions_outside_the_space_are_clipped(action: float) -> None:
    env, clipped = make(), make()
    assert np.array_equal(roll(env, [action] * 6)[2]["kept"], roll(clipped, [float(np.sign(action))] * 6)[2]["kept"])


def test_an_observation_describes_the_next_layer() -> None:
    env = make()
    observations, _, info = roll(env, [0.3, -0.2, 0.9, 0.0, -1.0, 0.5])
    index = [round(5 * float(o[0])) for o in observations]
    assert index == [0, 1, 2, 3, 4, 5, 5]
    names = list(WALK_FEATURES)
    structure, dense, budget = env.budget.structure, env.budget.structure.units, env.budget
    whole = budget.cost(dense)
    lagrangian = Lagrangian(env.predicted, budget)
    for t, observation in enumerate(observations[:-1]):
        chosen = info["kept"][:t].tolist()
        seen = dict(zip(names, observation[1:].tolist(), strict=True))
        low, high = budget.bounds_at(chosen)
        now = budget.cost(np.concatenate([chosen, dense[t:]]).astype(int))
        least = budget.cost(np.concatenate([chosen, budget.least[t:]]).astype(int))
        expected = {
            "reduced": 1 - now / whole,
            "rest": (now - least) / whole,
            "budget": 0.5,
            "base": 1 - float(lagrangian.kept(lagrangian.position(chosen))[t]) / dense[t],
            "least": 1 - high / dense[t],
            "most": 1 - low / dense[t],
            "last_action": 1 - chosen[-1] / dense[t - 1] if t else 0.0,
        }
        assert seen == pytest.approx(expected, abs=1e-6)
    assert structure.fraction("flops", info["kept"]) == pytest.approx(1 - observations[-1][1], abs=1e-6)


@pytest.mark.parametrize(
    "weights", [None, RewardWeights(0.5, 2.0, 0.25), RewardWeights(1.0, 0.0, 0.0), RewardWeights(0.0, 0.0, 3.0)]
)
def test_terms_sum_to_the_quality(weights: RewardWeights | None) -> None:
    env = make(weights=weights)
    _, _, info = roll(env, [0.1, -0.4, 0.5, 0.9, -0.9, 0.2])
    terms, evaluation, used = info["terms"], info["evaluation"], weights or RewardWeights()
    assert info["quality"] == pytest.approx(sum(terms.values()))
    assert used.quality(evaluation) == info["quality"]
    assert terms == pytest.approx(
        {
            "accuracy": used.accuracy * evaluation.accuracy / 100,
            "reconstruction": -used.reconstruction * evaluation.reconstruction_loss,
            "flops": -used.flops * evaluation.flops,
        }
    )
    assert info["kept"].tolist() == env.kept
    assert evaluation == env.evaluator.evaluate(info["kept"])


def test_only_the_finished_plan_is_evaluated() -> None:
    env = make()
    roll(env, [0.0] * 6)
    assert env.evaluator.calls == 1
    assert not env.reset()[1]
    *_, info = env.step(np.zeros(1, np.float32))
    assert "evaluation" not in info
    assert "quality" not in info
    assert "gain" not in info["reward_terms"]
    assert env.evaluator.calls == 1


def test_the_optimum_pays_best() -> None:
    structure = zoo.structure("digits")
    budget = Budget(structure, "flops", 0.5)
    optimum = budget.fill(np.array([1.0, 9.0, 2.0, 20.0, 5.0, 60.0]))
    env = LayerSparsityEnv(budget, zoo.Target(structure, optimum), np.zeros((6, 1), np.float32))
    assert env.weights.quality(env.evaluator.evaluate(optimum)) == 1.0
    rng = np.random.default_rng(0)
    for _ in range(20):
        _, rewards, info = roll(env, rng.uniform(-1, 1, 6).tolist())
        assert rewards[-1] < 1.0
        assert info["quality"] < 1.0
    assert env.settle(optimum, env.evaluator.evaluate(optimum), 0.5) == 1.0


def test_a_finished_walk_takes_no_step() -> None:
    env = make()
    roll(env, [0.0] * 6)
    with pytest.raises(RuntimeError, match=r"the walk is over: call reset\(\)"):
        env.step(np.zeros(1, np.float32))


@pytest.mark.parametrize("shape", [(5, 2), (6,), (7, 1)])
def test_statistics_of_another_network(shape: tuple[int, ...]) -> None:
    budget = Budget(zoo.structure("digits"), "flops", 0.5)
    with pytest.raises(ValueError, match=r"statistics of shape .* for 6 layers: expected one row a layer"):
        LayerSparsityEnv(budget, zoo.Target(budget.structure, budget.least), np.zeros(shape, np.float32))


@pytest.mark.parametrize(("name", "cut"), zoo.few_cases())
def test_layer_statistics_of_every_network(name: str, cut: str) -> None:
    structure = zoo.structure(name, cut)
    layers = structure.layers
    statistics = layer_statistics(Context(zoo.make(name), structure, zoo.batches(name, (8, 4)), "l1"))
    assert statistics.shape == (len(layers), len(STATIC_FEATURES))
    assert statistics.dtype == np.float32
    assert np.isfinite(statistics).all()
    assert statistics.min() >= 0.0
    assert statistics.max() <= 1.0
    columns = dict(zip(STATIC_FEATURES, statistics.T, strict=True))
    assert columns["index"].tolist() == pytest.approx(np.linspace(0, 1, len(layers)).tolist())
    assert columns["trunk"].tolist() == [float(layer.trunk) for layer in layers]
    np.testing.assert_allclose(2 ** (20 * columns["units"]), [layer.units for layer in layers], rtol=1e-4)
    assert columns["flops"].max() == columns["params"].max() == columns["weight_norm"].max() == 1.0
    assert np.all(columns["error_25"] <= columns["error_50"] + 0.02)
    assert np.all(columns["error_50"] <= columns["error_75"] + 0.02)


def test_features_of_a_real_network_are_all_named() -> None:
    context = Context(zoo.make("digits"), zoo.structure("digits"), zoo.batches("digits"), "l1")
    model, layers = context.model, context.structure.layers
    budget = Budget(context.structure, "flops", 0.5)
    env = LayerSparsityEnv(budget, zoo.Target(budget.structure, budget.least), layer_statistics(context))
    assert env.observation_space.shape == (len(env.feature_names),)
    assert len(set(env.feature_names)) == len(env.feature_names)
    first = dict(zip(env.feature_names, env.reset()[0], strict=True))
    assert first["kernel"] == pytest.approx(3 / 7)
    assert first["inputs"] == pytest.approx(np.log2(16) / 12)
    assert first["consumers"] == pytest.approx(np.log2(16) / 12)
    assert first["resolution"] == pytest.approx(np.log2(64) / 16)
    assert first["stride"] == pytest.approx(1 / 4)
    assert first["linear"] == 0.0
    assert (4 * env.statistics[:, env.feature_names.index("stride")]).tolist() == [1, 1, 2, 1, 2, 1]
    assert first["budget"] == 0.5
    norms = [model.get_submodule(layer.name).weight.flatten(1).norm(dim=1).mean().item() for layer in layers]
    assert first["weight_norm"] == pytest.approx(norms[0] / max(norms), rel=1e-5)
    gammas = [model.get_submodule(layer.name.replace("conv", "bn")).weight for layer in layers]
    assert first["bn_scale"] == pytest.approx(
        gammas[0].abs().mean().item() / max(g.abs().mean().item() for g in gammas), rel=1e-5
    )
    check_env_sb3(env)
