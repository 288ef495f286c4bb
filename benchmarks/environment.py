"""An agent that knows nothing of secateur in its environment, against secateur's own learner.

python benchmarks/environment.py [--episodes 60] [--seeds 3] [--set agent.algorithm=td3]    (a few minutes)

Stable-Baselines3's own algorithm with its own defaults (`MlpPolicy`, γ = 1, `learn`) walks
`gymnasium.make("secateur/LayerSparsity-v0")` on the embedded digits, for as many episodes as secateur's learner. Both
are paid by the environment, for the same network and images; what is shown is the best plan evaluated on the way
(`env.best`): its quality, distance of the logits and top-1 on the search images, repaired as candidates are, and its
top-1 on the test images, repaired as finished plans are. Mean ± standard error over the seeds.
"""

from __future__ import annotations

import argparse

import gymnasium
import torch
from common import header, mean, table

import secateur
from secateur.agents.learner import ALGORITHMS, Learner
from secateur.envs import LayerSparsityEnv
from secateur.networks.inference import accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="on top of the digits' config")
    args = parser.parse_args()
    torch.set_num_threads(1)
    session = secateur.Session("digits", overrides=[f"agent.episodes={args.episodes}", *args.overrides])
    seeds = range(args.seeds)
    base = session.env()
    kept = base.base_plan(session.budget.fraction)
    base.settle(kept, session.evaluator.evaluate(kept), session.budget.fraction)
    name = session.config.agent.algorithm.upper()
    rows = [
        line("the base plan", [figures(session, base)]),
        line(f"SB3's own {name}", [figures(session, outsider(session, seed)) for seed in seeds]),
        line(f"secateur's {name}", [figures(session, insider(session, seed)) for seed in seeds]),
    ]
    print(header())
    print(f"{session.describe()}; {args.episodes} episodes, {args.seeds} seeds\n")
    print(table(["agent", "quality", "distance", "search top-1", "test top-1", "plans evaluated"], rows))


def outsider(session: secateur.Session, seed: int) -> LayerSparsityEnv:
    """The environment after SB3's own algorithm has learnt in it."""
    env = gymnasium.make(secateur.ENV_ID, session=session)
    algorithm = ALGORITHMS[session.config.agent.algorithm]
    steps = session.config.agent.episodes * len(session.structure.layers)
    algorithm("MlpPolicy", env, gamma=1.0, seed=seed, device="cpu").learn(steps)
    assert isinstance(env.unwrapped, LayerSparsityEnv)
    return env.unwrapped


def insider(session: secateur.Session, seed: int) -> LayerSparsityEnv:
    """The environment after secateur's learner has learnt in it."""
    env = session.env()
    for _ in Learner(env, session.config.agent, seed).run():
        pass
    return env


def figures(session: secateur.Session, env: LayerSparsityEnv) -> list[float]:
    """Of the best plan evaluated: quality, distance, search and test accuracy; and how many different ones were."""
    assert env.best is not None
    assert session.test is not None
    best = env.evaluated[tuple(env.best.tolist())]
    test = accuracy(session.compress(env.best), session.test)
    return [env.weights.quality(best), best.reconstruction_loss, best.accuracy, test, float(len(env.evaluated))]


def line(agent: str, found: list[list[float]]) -> list[str]:
    """A row of the table: the mean over the seeds."""
    columns = zip(*found, strict=True)
    return [agent, *(mean(list(column), digits) for column, digits in zip(columns, (4, 4, 2, 2, 0), strict=True))]


if __name__ == "__main__":
    main()
