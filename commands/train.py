"""`secateur train`: the agent learns how much of each layer to prune; out comes a ratio plan."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..agents.learner import Episode, Learner
from ..agents.log import LOG_NAME, EpisodeLog, evaluation_of
from ..agents.policy import POLICY_NAME, Policy
from ..networks.world import undisturbed, use_threads
from ..pruners.plan import PLAN_NAME, RatioPlan
from ..reports.events import Events
from ..reports.figures import plan_figure, quality_figure
from ..reports.handle import Opens
from ..reports.html import write_report
from ..storage.files import write_json
from ..storage.folders import check_free, claimed, existing_run, free_folder
from .about import record
from .described import hand_set, image_counts
from .fingerprints import of_training
from .rerank import Reranked, rerank
from .resolve import Given, save_config
from .session import Session
from .setup import start_of

SUMMARY_NAME = "summary.json"
WARM_START = "agent.warm_start"
Ended = Literal["episodes", "timeout", "target", "interrupted"]


@dataclass(frozen=True)
class Training(Opens):
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


@undisturbed()
def train(
    session: Session | Given = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    on_episode: Callable[[Episode], None] | None = None,
    timeout: float | None = None,
    target: float | None = None,
) -> Training:
    """Train the agent for a network and return the best plan it found.

    Every episode is on disk before the next begins; with workers, every group of as many episodes before the next
    group. Ctrl-C ends the search early and keeps what was found; a run that was killed goes on with `resume`, which
    replays the log: the agent learns again what it had learnt, without evaluating any candidate twice, and continues as
    if it had never stopped.

    The loss model begins as other networks have corrected it (`secateur.agents.start`), unless `agent.warm_start` is
    false; where they cannot be trusted to tell of this one, or of its method, it begins as predicted, and says so.

    It goes on with the network, images and settings that it was begun with, and is refused with others (`Fingerprint`
    says what is compared). What may differ: where files lie, the number of threads (with a warning: rounding errors),
    `agent.rerank`, a lower `agent.learning_rate`, and `agent.episodes`, down to what is logged; with more of them the
    exploration is that of the longer search from there on. Nothing that is logged is ever cut back.

    Args:
        session: a session, or a config, its name or its file; none is the embedded default.
        out: an empty or new folder; none takes `runs/NAME`.
        resume: the folder of a run to go on with; the config is its own.
        on_episode: called after every episode.
        timeout: minutes after which no further episode begins; at least one is walked.
        target: the objective's measure on the search images (an accuracy in per cent) at which the search is good
            enough: it ends with the first plan on the budget asked that has as much. Either way the best plans are
            measured again as always, and the run goes on with `resume`.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    start = time.perf_counter()
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout = {timeout:g}: minutes, more than 0")
    check_free(out)
    previous = existing_run(resume, "train") if resume is not None else None
    session = Session.of(session).beside(previous)
    use_threads(session.config.threads)
    session.check_workers()
    folder = previous or free_folder(out, Path("runs") / session.config.name)
    with claimed(folder, "train", LOG_NAME, new=previous is None) as folder:
        session.reporter.say(f"run folder: {folder}")
        if previous is None:
            save_config(session.config, folder)  # from here on the run can be resumed
        if not (folder / LOG_NAME).exists():
            session.save(folder)  # a network that was just trained, before anything else
        session = _as_begun(session, folder)
        log = EpisodeLog(folder / LOG_NAME, of_training(session))
        past = _past(session, log)
        session.save(folder)  # not before it is known to go with what is there
        record(session, folder)
        stop = _Stop(None if timeout is None else start + 60 * timeout, target)
        return _search(session, folder, log, past, on_episode, start, stop)


def _as_begun(session: Session, folder: Path) -> Session:
    """From scratch, where the run was begun by a version that knew nothing else."""
    settings = EpisodeLog(folder / LOG_NAME).settings()
    if settings is None or WARM_START in settings.get("agent", {}):
        return session
    return session.beside(overrides=[f"{WARM_START}=false"])


@dataclass(frozen=True)
class _Stop:
    """When a search ends before all its episodes."""

    deadline: float | None
    target: float | None

    def reason(self, session: Session, episodes: Sequence[Episode], replayed: int) -> Ended | None:
        """Why no further episode is walked; none where one is, or where there are no more."""
        if not replayed <= len(episodes) < session.config.agent.episodes:
            return None
        if self.target is not None and _best(session, episodes) >= self.target:
            return "target"
        late = self.deadline is not None and time.perf_counter() >= self.deadline
        return "timeout" if late and len(episodes) > replayed else None  # one more in any case: so it comes to an end


def _best(session: Session, episodes: Sequence[Episode]) -> float:
    return max((episode.evaluation.accuracy for episode in _asked(session, episodes)), default=-math.inf)


def _past(session: Session, log: EpisodeLog) -> list[dict[str, Any]]:
    past, asked = log.read(len(session.structure.layers)), session.config.agent.episodes
    if len(past) > asked:
        raise ValueError(
            f"{log.path} holds {len(past)} episodes, agent.episodes = {asked} asks for fewer: nothing is cut back, "
            f"ask for {len(past)} or more"
        )
    return past


def _search(
    session: Session,
    folder: Path,
    log: EpisodeLog,
    past: Sequence[dict[str, Any]],
    on_episode: Callable[[Episode], None] | None,
    start: float,
    stop: _Stop,
) -> Training:
    reporter = session.reporter
    reporter.say(session.describe())
    env = session.env()
    reporter.say(f"the loss model begins {start_of(session)}")

    session.evaluator.known.update({tuple(record["kept"]): evaluation_of(record) for record in past})
    learner = Learner(env, session.config.agent, session.config.seed, session.config.workers)
    setup = time.perf_counter() - start

    episodes: list[Episode] = []
    ended: Ended = "episodes"
    events = Events(folder / "tensorboard", len(past))
    try:
        with (
            session.evaluators() as evaluator,
            reporter.bar("search", session.config.agent.episodes) as advance,
        ):
            env.evaluator = evaluator
            spent = dict(evaluator.seconds)  # by other commands of this session
            for episode in learner.run(*_walked(past)):
                episodes.append(episode)
                if episode.number < len(past):
                    log.check(episode, past[episode.number])
                else:
                    log.append(episode, session.structure)
                    events.write(episode.number, _scalars(episode))
                    _plan(session, episodes).save(folder / PLAN_NAME)
                advance(_note(episode, max(e.quality for e in _asked(session, episodes))))
                if on_episode is not None:
                    on_episode(episode)
                if (reason := stop.reason(session, episodes, len(past))) is not None:
                    ended = reason
                    break
    except KeyboardInterrupt:
        ended = "interrupted"
        if not episodes:
            raise
        reporter.say(f"stopped after {len(episodes)} episodes; go on with: secateur train --resume {folder}")
    finally:
        events.close()
    if ended in ("target", "timeout"):
        reporter.say(f"{ended}: ended after {len(episodes)} episodes; go on with: secateur train --resume {folder}")

    began = time.perf_counter()
    qualities = {tuple(episode.kept.tolist()): episode.quality for episode in _asked(session, episodes)}
    reranked = rerank(session, {} if ended == "interrupted" else qualities)
    plan = _plan(session, episodes, reranked)
    plan.save(folder / PLAN_NAME)
    searched = {name: seconds - spent[name] for name, seconds in evaluator.seconds.items()}
    parts = {"setup": setup, **searched, "agent": learner.seconds, "rerank": time.perf_counter() - began}
    summary = _summary(session, episodes, reranked, len(past), parts, time.perf_counter() - start)
    summary["ended"] = ended
    write_json(folder / SUMMARY_NAME, summary)
    Policy.of(learner, start_of(session).correction).save(folder / POLICY_NAME)
    plan_figure(plan, folder / "plan.png")
    quality_figure([episode.quality for episode in episodes], folder / "quality.png")
    write_report(folder)
    return Training(plan, folder, summary, finished=ended == "episodes")


def _walked(past: Sequence[dict[str, Any]]) -> tuple[list[list[float]], list[float | None]]:
    """Actions and budgets of the episodes that are there; 0.1 wrote none where all walked on the budget asked."""
    return [record["actions"] for record in past], [record.get("budget") for record in past]


def _asked(session: Session, episodes: Sequence[Episode]) -> list[Episode]:
    """The episodes that were walked on the budget asked; the first one always was."""
    asked = session.budget.fraction
    return [episode for episode in episodes if episode.budget == asked]


def _plan(session: Session, episodes: Sequence[Episode], reranked: Sequence[Reranked] = ()) -> RatioPlan:
    best = reranked[0] if reranked else max(_asked(session, episodes), key=lambda episode: episode.quality)
    return session.plan_of(
        best.kept,
        allocator=session.config.agent.algorithm,
        seed=session.config.seed,
        candidates=len(episodes),
        figures={
            "search_accuracy": best.evaluation.accuracy,
            "reconstruction_loss": best.evaluation.reconstruction_loss,
            "quality": best.quality,
        },
    )


def _note(episode: Episode, best: float) -> str:
    return (
        f"reward {episode.reward:+.3f} quality {episode.quality:+.3f} best {best:+.3f} "
        f"score {episode.evaluation.accuracy:.1f}% "
        f"FLOPs {100 * episode.evaluation.flops:.1f}%"
    )


def _scalars(episode: Episode) -> dict[str, float]:
    return {
        "reward": episode.reward,
        "quality/total": episode.quality,
        **{f"quality/{name}": value for name, value in episode.terms.items()},
        "candidate/accuracy": episode.evaluation.accuracy,
        "candidate/reconstruction_loss": episode.evaluation.reconstruction_loss,
        "candidate/flops": episode.evaluation.flops,
        "search/noise": episode.noise,
        "search/seconds": episode.seconds,
    }


def _summary(
    session: Session,
    episodes: Sequence[Episode],
    reranked: Sequence[Reranked],
    replayed: int,
    parts: dict[str, float],
    total: float,
) -> dict[str, Any]:
    asked = _asked(session, episodes)
    numbers = {tuple(episode.kept.tolist()): episode.number for episode in reversed(asked)}
    best = reranked[0] if reranked else max(asked, key=lambda episode: episode.quality)
    base = next((f for f in reranked if np.array_equal(f.kept, episodes[0].kept)), episodes[0])
    rewards = np.array([episode.reward for episode in episodes])
    quarter = max(1, len(episodes) // 4)
    walked = [episode.seconds for episode in episodes[replayed:]]
    structure = session.structure
    return {
        "objective": session.config.objective.name,
        "measure": session.objective.measure,
        "dense": {
            "search_accuracy": session.evaluator.dense.accuracy,
            "flops": 1.0,
            "params": 1.0,
            "flops_count": structure.cost("flops", structure.units),
            "params_count": structure.cost("params", structure.units),
            **{f"latency_{name}": value for name, value in session.dense_latency.items()},
        },
        "best": {
            "episode": numbers[tuple(best.kept.tolist())],
            "quality": best.quality,
            "search_accuracy": best.evaluation.accuracy,
            "reconstruction_loss": best.evaluation.reconstruction_loss,
            **structure.fractions(best.kept),
        },
        "base": {
            "quality": base.quality,
            "search_accuracy": base.evaluation.accuracy,
            **structure.fractions(base.kept),
        },
        "reranked": [
            {
                "episode": numbers[tuple(f.kept.tolist())],
                "quality": f.quality,
                "search_accuracy": f.evaluation.accuracy,
            }
            for f in reranked
        ],
        "start": start_of(session).as_dict(),
        "hand_set": hand_set(session),
        "images": image_counts(session),
        "episodes": len(episodes),
        "replayed": replayed,
        "mean_quality": float(np.mean([episode.quality for episode in episodes])),
        "mean_reward_first_quarter": float(rewards[:quarter].mean()),
        "mean_reward_last_quarter": float(rewards[-quarter:].mean()),
        "seconds": total,
        "seconds_per_episode": float(np.mean(walked)) if walked else 0.0,
        "seconds_per_part": parts,
        "ignored": dict(structure.ignored),
    }
