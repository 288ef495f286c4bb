"""`secateur train`: the agent learns how much of each layer to prune; out comes a ratio plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..agents import Episode, Learner
from ..agents.log import LOG_NAME, EpisodeLog, evaluation_of
from ..agents.policy import POLICY_NAME, Policy
from ..configs import Config
from ..envs import LayerSparsityEnv, layer_statistics
from ..pruners.loss_model import LossModel
from ..pruners.plan import PLAN_NAME, RatioPlan, write_json
from ..reports.events import Events
from ..reports.figures import plan_figure, reward_figure
from ..reports.progress import Reporter
from .folders import check_free, claimed, existing_run, free_folder
from .task import (
    Finalist,
    Images,
    Task,
    check_workers,
    describe,
    judge_finalists,
    make_task,
    resolve_config,
    save_config,
)

SUMMARY_NAME = "summary.json"


@dataclass(frozen=True)
class Training:
    """What a training leaves behind.

    Attributes:
        plan: the best plan found.
        folder: the run folder.
        summary: what `summary.json` holds.
        finished: whether all episodes were walked; if not, the run can be resumed.
    """

    plan: RatioPlan
    folder: Path
    summary: dict[str, Any]
    finished: bool


def train(
    config: Config | str | Path | None = None,
    *,
    model: nn.Module | None = None,
    images: Images | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    seed: int | None = None,
    resume: str | Path | None = None,
    ray_address: str | None = None,
    reporter: Reporter | None = None,
    trust_code: bool = False,
    on_episode: Callable[[Episode], None] | None = None,
) -> Training:
    """Train the agent for a network and return the best plan it found.

    Every episode is on disk before the next begins; with workers, every group of as many episodes before the next
    group. Ctrl-C ends the search early and keeps what was found; a run that was killed goes on with `resume`, which
    replays the log: the agent learns again what it had learnt, without judging any candidate twice, and continues as
    if it had never stopped (with the same number of workers).

    Args:
        config: a built-in name, a YAML file or a `Config`; none is the embedded default.
        model: your own network instead of the config's.
        images: your own images instead of the config's.
        overrides: `section.key=value` on top of the config.
        out: an empty or new folder; none takes `runs/NAME`.
        seed: of the search, instead of the config's.
        resume: the folder of a run to go on with.
        ray_address: of a Ray cluster that judges candidates, instead of the config's.
        reporter: shows progress.
        trust_code: whether code that the config names (`package.module:callable`) may run.
        on_episode: called after every episode.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    reporter = reporter or Reporter()
    start = time.perf_counter()
    check_free(out)
    previous = existing_run(resume, "train") if resume is not None else None
    resolved = resolve_config(None if previous else config, overrides, folder=previous, seed=seed)
    check_workers(resolved, ray_address, trust_code)
    with claimed(previous or free_folder(out, Path("runs") / resolved.name), "train", LOG_NAME) as folder:
        reporter.say(f"run folder: {folder}")
        if previous is None:
            save_config(resolved, folder)  # from here on the run can be resumed
        task = make_task(resolved, folder=folder, model=model, images=images, reporter=reporter, trust_code=trust_code)
        if previous is None:
            task.save(folder)
        return _search(task, folder, ray_address, reporter, on_episode, start)


def _search(
    task: Task,
    folder: Path,
    ray_address: str | None,
    reporter: Reporter,
    on_episode: Callable[[Episode], None] | None,
    start: float,
) -> Training:
    reporter.say(describe(task))
    evaluator = task.evaluator
    statistics = layer_statistics(task.pruner)
    losses = LossModel.of(task.pruner.context)
    task.save(folder)

    log = EpisodeLog(folder / LOG_NAME)
    past = log.read(len(task.structure.layers))
    evaluator.known.update({tuple(record["widths"]): evaluation_of(record) for record in past})
    env = LayerSparsityEnv(task.budget, evaluator, statistics, task.reward, losses)
    learner = Learner(env, task.config.agent, task.config.seed, task.config.workers)
    setup = time.perf_counter() - start

    episodes: list[Episode] = []
    finished = True
    events = Events(folder / "tensorboard", len(past))
    try:
        with task.judges(ray_address) as judges, reporter.bar("search", task.config.agent.episodes) as advance:
            env.evaluator = judges
            for episode in learner.run([record["actions"] for record in past]):
                episodes.append(episode)
                if episode.number < len(past):
                    log.check(episode, past[episode.number])
                else:
                    log.append(episode, task.structure)
                    events.write(episode.number, _scalars(episode))
                    _plan(task, episodes).save(folder / PLAN_NAME)
                advance(_note(episode, max(e.reward for e in _asked(task, episodes))))
                if on_episode is not None:
                    on_episode(episode)
    except KeyboardInterrupt:
        finished = False
        if not episodes:
            raise
        reporter.say(f"stopped after {len(episodes)} episodes; go on with: secateur train --resume {folder}")
    finally:
        events.close()

    began = time.perf_counter()
    rewards = {tuple(episode.widths.tolist()): episode.reward for episode in _asked(task, episodes)}
    finalists = judge_finalists(task, rewards if finished else {}, reporter)
    plan = _plan(task, episodes, finalists)
    plan.save(folder / PLAN_NAME)
    parts = {"setup": setup, **judges.seconds, "agent": learner.seconds, "finals": time.perf_counter() - began}
    summary = _summary(task, episodes, finalists, len(past), parts, time.perf_counter() - start)
    write_json(folder / SUMMARY_NAME, summary)
    Policy.of(learner).save(folder / POLICY_NAME)
    plan_figure(plan, folder / "plan.png")
    reward_figure([episode.reward for episode in episodes], folder / "reward.png")
    return Training(plan, folder, summary, finished)


def _asked(task: Task, episodes: Sequence[Episode]) -> list[Episode]:
    """The episodes that were walked on the budget asked; the first one always was."""
    return [episode for episode in episodes if episode.budget == task.budget.fraction]


def _plan(task: Task, episodes: Sequence[Episode], finalists: Sequence[Finalist] = ()) -> RatioPlan:
    best = finalists[0] if finalists else max(_asked(task, episodes), key=lambda episode: episode.reward)
    return RatioPlan.make(
        task.priced,
        best.widths,
        architecture=task.architecture,
        criterion=task.config.pruning.criterion,
        budget=(task.budget.kind, task.budget.fraction),
        figures={
            "search_accuracy": best.evaluation.accuracy,
            "reconstruction_loss": best.evaluation.reconstruction_loss,
            "reward": best.reward,
        },
        allocator=task.config.agent.algorithm,
        seed=task.config.seed,
        candidates=len(episodes),
    )


def _note(episode: Episode, best: float) -> str:
    return (
        f"reward {episode.reward:+.3f} best {best:+.3f} acc {episode.evaluation.accuracy:.1f}% "
        f"FLOPs {100 * episode.evaluation.flops:.1f}%"
    )


def _scalars(episode: Episode) -> dict[str, float]:
    return {
        "reward/total": episode.reward,
        **{f"reward/{name}": value for name, value in episode.terms.items()},
        "candidate/accuracy": episode.evaluation.accuracy,
        "candidate/reconstruction_loss": episode.evaluation.reconstruction_loss,
        "candidate/flops": episode.evaluation.flops,
        "search/noise": episode.noise,
        "search/seconds": episode.seconds,
    }


def _summary(
    task: Task,
    episodes: Sequence[Episode],
    finalists: Sequence[Finalist],
    replayed: int,
    parts: dict[str, float],
    total: float,
) -> dict[str, Any]:
    asked = _asked(task, episodes)
    numbers = {tuple(episode.widths.tolist()): episode.number for episode in reversed(asked)}
    best = finalists[0] if finalists else max(asked, key=lambda episode: episode.reward)
    base = next((f for f in finalists if np.array_equal(f.widths, episodes[0].widths)), episodes[0])
    rewards = np.array([episode.reward for episode in episodes])
    quarter = max(1, len(episodes) // 4)
    walked = [episode.seconds for episode in episodes[replayed:]]
    structure = task.structure
    return {
        "dense": {
            "search_accuracy": task.evaluator.dense.accuracy,
            "flops": 1.0,
            "params": 1.0,
            "flops_count": structure.cost("flops", structure.widths),
            "params_count": structure.cost("params", structure.widths),
            **{f"latency_{name}": value for name, value in task.dense_latency.items()},
        },
        "best": {
            "episode": numbers[tuple(best.widths.tolist())],
            "reward": best.reward,
            "search_accuracy": best.evaluation.accuracy,
            "reconstruction_loss": best.evaluation.reconstruction_loss,
            **task.priced.fractions(best.widths),
        },
        "base": {"reward": base.reward, "search_accuracy": base.evaluation.accuracy},
        "finalists": [
            {
                "episode": numbers[tuple(f.widths.tolist())],
                "reward": f.reward,
                "search_accuracy": f.evaluation.accuracy,
            }
            for f in finalists
        ],
        "episodes": len(episodes),
        "replayed": replayed,
        "mean_reward_first_quarter": float(rewards[:quarter].mean()),
        "mean_reward_last_quarter": float(rewards[-quarter:].mean()),
        "seconds": total,
        "seconds_per_episode": float(np.mean(walked)) if walked else 0.0,
        "seconds_per_part": parts,
        "uncut": dict(structure.uncut),
    }
