"""`secateur train`: the agent learns how much of each layer to prune; out comes a ratio plan."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..agents import Allocation, Episode, Learner, get_allocator
from ..agents.checkpoint import Checkpoints
from ..agents.log import LOG_NAME, EpisodeLog, episode_of
from ..configs import Config, dump_config
from ..envs import Evaluation, LayerSparsityEnv, layer_statistics
from ..pruners.files import write_tensors
from ..pruners.plan import PLAN_NAME, RatioPlan, write_json
from ..reports.events import Events
from ..reports.figures import plan_figure, reward_figure
from ..reports.progress import Reporter
from .folders import check_free, claimed, existing_run, free_folder
from .task import Images, Task, describe, make_task, resolve_config, save_config

SUMMARY_NAME = "summary.json"
POLICY_NAME = "policy.safetensors"


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
    reporter: Reporter | None = None,
    on_episode: Callable[[Episode], None] | None = None,
) -> Training:
    """Train the agent for a network and return the best plan it found.

    Every episode is on disk before the next begins. Ctrl-C ends the search early and keeps what was found; a run
    that was killed goes on with `resume`, which replays the log: the agent learns again what it had learnt, without
    judging any candidate twice, and continues as if it had never stopped.

    Args:
        config: a built-in name, a YAML file or a `Config`; none is the embedded default.
        model: your own network instead of the config's.
        images: your own images instead of the config's.
        overrides: `section.key=value` on top of the config.
        out: an empty or new folder; none takes `runs/NAME`.
        seed: of the search, instead of the config's.
        resume: the folder of a run to go on with.
        reporter: shows progress.
        on_episode: called after every episode.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    reporter = reporter or Reporter()
    start = time.perf_counter()
    check_free(out)
    previous = existing_run(resume, "train") if resume is not None else None
    resolved = resolve_config(None if previous else config, overrides, folder=previous, seed=seed)
    with claimed(previous or free_folder(out, Path("runs") / resolved.name), "train", LOG_NAME) as folder:
        reporter.say(f"run folder: {folder}")
        if previous is None:
            save_config(resolved, folder)  # from here on the run can be resumed
        task = make_task(resolved, folder=folder, model=model, images=images, reporter=reporter)
        if previous is None:
            task.save(folder)
        return _search(task, folder, reporter, on_episode, start)


def _search(
    task: Task, folder: Path, reporter: Reporter, on_episode: Callable[[Episode], None] | None, start: float
) -> Training:
    reporter.say(describe(task))
    evaluator = task.evaluator
    statistics = layer_statistics(task.pruner)
    base = _by_rule(task, task.config.agent.base, "agent.base")
    demonstrations = [_by_rule(task, name, "agent.demonstrations") for name in task.config.agent.demonstrations]
    task.save(folder)

    log = EpisodeLog(folder / LOG_NAME)
    past = log.read(len(task.structure.layers))
    logged = [episode_of(record) for record in past]
    evaluator.known.update(
        {tuple(record["widths"]): episode.evaluation for record, episode in zip(past, logged, strict=True)}
    )
    env = LayerSparsityEnv(task.budget, evaluator, statistics, task.reward, base)
    learner = Learner(env, task.config.agent, task.config.seed, demonstrations)
    checkpoints = Checkpoints(learner, log.path, dump_config(task.config))
    checkpoints.restore()
    setup = time.perf_counter() - start

    episodes = logged[: learner.learnt]
    finished = True
    events = Events(folder / "tensorboard", len(past))
    try:
        with reporter.bar("search", task.config.agent.episodes, len(episodes)) as advance:
            for episode in learner.run([record["actions"] for record in past]):
                episodes.append(episode)
                if episode.number < len(past):
                    log.check(episode, past[episode.number])
                else:
                    log.append(episode, task.structure)
                    events.write(episode.number, _scalars(episode))
                    _plan(task, episodes).save(folder / PLAN_NAME)
                checkpoints.save()
                advance(_note(episode, max(e.reward for e in episodes)))
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
    finalists = _judge_finalists(task, episodes if finished else [], reporter)
    plan = _plan(task, episodes, finalists)
    plan.save(folder / PLAN_NAME)
    parts = {"setup": setup, **task.evaluator.seconds, "agent": learner.seconds, "finals": time.perf_counter() - began}
    summary = _summary(task, episodes, finalists, len(past), parts, time.perf_counter() - start)
    write_json(folder / SUMMARY_NAME, summary)
    _save_policy(learner, folder)
    plan_figure(plan, folder / "plan.png")
    reward_figure([episode.reward for episode in episodes], folder / "reward.png")
    return Training(plan, folder, summary, finished)


def _by_rule(task: Task, name: str, field: str) -> NDArray[np.int64]:
    """(layers,) widths of the plan that a rule makes; `field` of the config names it."""
    rule = get_allocator(name)
    if rule.searches:
        raise ValueError(f"{field} names {name}, which searches: a rule only")
    return rule.allocate(Allocation(task.budget, task.pruner.context))


@dataclass(frozen=True)
class _Finalist:
    """A plan that was judged again, repaired as a finished plan is."""

    episode: Episode
    evaluation: Evaluation
    reward: float


def _judge_finalists(task: Task, episodes: Sequence[Episode], reporter: Reporter) -> list[_Finalist]:
    """The best plans of the search, judged again on the search images with the final repair, best first.

    A candidate's quick repair ranks plans well but not perfectly, and the best of many is partly luck.
    """
    ranked = sorted(episodes, key=lambda episode: -episode.reward)
    distinct = list({tuple(episode.widths): episode for episode in reversed(ranked)}.values())[::-1]
    finalists = []
    chosen = distinct[: task.config.agent.finalists]
    with reporter.bar("finals", len(chosen)) as advance:
        for episode in chosen:
            evaluation = task.evaluator.judge(task.prune(episode.widths), episode.widths)
            finalists.append(_Finalist(episode, evaluation, task.reward.reward(evaluation)))
            advance(f"acc {evaluation.accuracy:.1f}%")
    return sorted(finalists, key=lambda finalist: -finalist.reward)


def _plan(task: Task, episodes: Sequence[Episode], finalists: Sequence[_Finalist] = ()) -> RatioPlan:
    best = max(episodes, key=lambda episode: episode.reward)
    evaluation, reward = best.evaluation, best.reward
    if finalists:
        best, evaluation, reward = finalists[0].episode, finalists[0].evaluation, finalists[0].reward
    return RatioPlan.make(
        task.structure,
        best.widths,
        architecture=task.architecture,
        criterion=task.config.pruning.criterion,
        budget=(task.budget.kind, task.budget.fraction),
        figures={
            "search_accuracy": evaluation.accuracy,
            "reconstruction_loss": evaluation.reconstruction_loss,
            "reward": reward,
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
    finalists: Sequence[_Finalist],
    replayed: int,
    parts: dict[str, float],
    total: float,
) -> dict[str, Any]:
    best = finalists[0].episode if finalists else max(episodes, key=lambda episode: episode.reward)
    final = finalists[0] if finalists else best
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
        },
        "best": {
            "episode": best.number,
            "reward": final.reward,
            "search_accuracy": final.evaluation.accuracy,
            "reconstruction_loss": final.evaluation.reconstruction_loss,
            "flops": best.evaluation.flops,
            "params": best.evaluation.params,
        },
        "base": {"reward": episodes[0].reward, "search_accuracy": episodes[0].evaluation.accuracy},
        "finalists": [
            {"episode": f.episode.number, "reward": f.reward, "search_accuracy": f.evaluation.accuracy}
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


def _save_policy(learner: Learner, folder: Path) -> None:
    """Actor and critics as safetensors, with what is needed to build them again."""
    about = {
        "algorithm": learner.config.algorithm,
        "hidden": json.dumps(list(learner.config.hidden)),
        "features": json.dumps(learner.env.feature_names),
    }
    write_tensors(folder / POLICY_NAME, learner.model.policy.state_dict(), about)
