"""`secateur correlate`: whether what a search pays for agrees with what a finished plan is worth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ..agents import SearchProblem
from ..agents.allocators.searches import random_plans
from ..agents.log import Line, PlanLog
from ..configs import Config
from ..configs.schema import Repair
from ..envs import CandidateEvaluator
from ..networks.inference import accuracy, count_images
from ..networks.world import undisturbed, use_threads
from ..pruners.plan import PlanBudget
from ..pruners.structure import Kept
from ..reports.coefficients import coefficients
from ..reports.figures import correlation_figure
from ..reports.tables import Figures
from ..storage.files import package_versions, write_json
from ..storage.folders import CONFIG_NAME, check_free, claimed, free_folder, interrupted_run
from ..training.checkpoint import Checkpoint
from .fingerprints import of_correlation
from .resolve import Given
from .session import Session
from .tuning import remove_checkpoints, row_checkpoint

CORRELATE_NAME = "correlate.json"
ROWS_NAME = "rows.jsonl"
FEWEST = 3  # plans; two always correlate perfectly
Percent = Annotated[float, Field(ge=0.0, le=100.0)]
Distance = Annotated[float, Field(ge=0.0)]

PROXIES = {  # on the search images: of a row → what it is, with the search's repair and the objective's measure
    "none_accuracy": "nothing repaired: {measure}",
    "adaptive_bn_accuracy": "adaptive BN: {measure}",
    "accuracy": "{repair}: {measure}",
    "reconstruction_loss": "{repair}: distance",
    "quality": "{repair}: quality",
}
TARGETS = {  # on the test images
    "test_accuracy": "final repair: {measure}",
    "test_reconstruction_loss": "final repair: distance",
    "finetuned_test_accuracy": "fine-tuned: {measure}",
}
LOSSES = {"reconstruction_loss", "test_reconstruction_loss"}  # the lower the better


class _Row(Line):
    """A line of `rows.jsonl`."""

    none_accuracy: Percent
    adaptive_bn_accuracy: Percent
    accuracy: Percent
    reconstruction_loss: Distance
    test_accuracy: Percent
    test_reconstruction_loss: Distance
    finetuned_test_accuracy: Percent | None


@dataclass(frozen=True)
class Correlation:
    """What a correlation leaves behind.

    Attributes:
        rows: one a plan, as `rows.jsonl` holds them.
        coefficients: one a proxy and target, as `correlate.json` holds them.
        folder: where everything was written.
    """

    rows: list[dict[str, Any]]
    coefficients: list[dict[str, Any]]
    folder: Path


@undisturbed()
def correlate(
    session: Session | Given = None,
    *,
    plans: int | None = None,
    finetune_plans: int | None = None,
    finetune: int | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
) -> Correlation:
    """Measure random plans on the budget by what a search looks at and by what counts in the end, and correlate.

    EagleEye's question (Li et al., ECCV 2020, sec. 3): does the accuracy of an unfinished candidate rank plans as their
    accuracy after fine-tuning does? Its two answers, with stale batch-norm statistics (no) and with adaptive ones
    (yes), stand beside the evaluation that the agent is paid by. Proxies are measured on the search images, repairs
    and batch-norm statistics use the calibration images, targets are measured on the test images. Fine-tuning starts
    from the final repair and uses the training split, which a pretrained network has seen before.

    Every plan's row is on disk before the next is evaluated, and its fine-tuning after every epoch; an
    interrupted run goes on with `resume`.

    Args:
        session: a session, or a config, its name or its file; none is the embedded default.
        plans: random plans to evaluate, drawn by the config's seed; none takes the config's `correlate.plans`.
        finetune_plans: of them, the first so many are fine-tuned; none takes the config's.
        finetune: epochs, 0 for no fine-tuning; none takes the config's `correlate.finetune`.
        out: an empty or new folder; none takes `runs/NAME-correlate`.
        resume: the folder of an interrupted run; config and numbers are its own.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    asked = {"plans": plans, "finetune_plans": finetune_plans, "finetune": finetune}
    given = [f"correlate.{name}={value}" for name, value in asked.items() if value is not None]
    if resume is not None and (given or out is not None):
        raise ValueError("--resume takes config, folder and numbers of plans from the run itself: leave them out")
    check_free(out)
    previous = interrupted_run(resume, "correlate", CORRELATE_NAME) if resume is not None else None
    session = Session.of(session).beside(previous, overrides=given)
    use_threads(session.config.threads)
    settings = session.config.correlate
    _check_budget(session.config)
    if session.test is None:
        raise ValueError("there are no test images to measure finished plans on: pass images.test")
    session.check_finetune(settings.finetune)
    session.reporter.say(session.describe())
    drawn = random_plans(
        SearchProblem(session.budget, session.context, rng=np.random.default_rng(session.config.seed)), settings.plans
    )
    default = Path("runs") / f"{session.config.name}-correlate"
    folder = previous or free_folder(out, default)
    with claimed(folder, "correlate", ROWS_NAME, new=previous is None):
        log = PlanLog(folder / ROWS_NAME, _Row, of_correlation(session))
        past = _past(session, log, drawn)
        session.save(folder)  # not before it is known to go with what is there
        rows = _measure_all(session, drawn, log, past)
        tree = _tree(session, rows)
        remove_checkpoints(folder)
        correlation_figure(tree, folder / "correlate.png")
        write_json(folder / CORRELATE_NAME, tree)  # last: with it the run is finished
    session.reporter.show(correlation_table(tree))
    return Correlation(rows, tree["coefficients"], folder)


def _check_budget(config: Config) -> None:
    asked = config.budget.asked
    if all(said == 1.0 for said in asked.values()):
        kind = next(iter(asked))
        raise ValueError(
            f"budget.{kind} = 1: every plan on it is the dense network, and nothing can be correlated; set "
            f"budget.{kind} below 1"
        )


def _past(session: Session, log: PlanLog, drawn: Sequence[Kept]) -> list[dict[str, Any]]:
    rows = log.read(len(session.structure.layers))
    if [row["kept"] for row in rows] != [kept.tolist() for kept in drawn[: len(rows)]]:
        raise ValueError(f"{log.path} holds other plans than {CONFIG_NAME} beside it draws: start anew with --out")
    return rows


def _measure_all(
    session: Session, drawn: Sequence[Kept], log: PlanLog, past: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    rows = list(past)
    settings = session.config.correlate
    assert session.test is not None
    test = CandidateEvaluator(session.compressor, session.test, session.config.repair.search)
    reporter = session.reporter
    try:
        with reporter.bar("measure", len(drawn), len(rows)) as advance:
            for number, kept in enumerate(drawn[len(rows) :], len(rows)):
                start = time.perf_counter()
                epochs = settings.finetune if number < settings.finetune_plans else 0
                row = measure_plan(session, test, kept, epochs, row_checkpoint(log.path.parent, number))
                row["seconds"] = round(time.perf_counter() - start, 3)
                log.write(row)
                rows.append(row)
                advance(f"quality {row['quality']:+.3f} test {row['test_accuracy']:.1f}%")
    except KeyboardInterrupt:
        reporter.say(f"stopped after {len(rows)} plans; go on with: secateur correlate --resume {log.path.parent}")
        raise
    return rows


def measure_plan(
    session: Session, test: CandidateEvaluator, kept: Kept, epochs: int, checkpoint: Checkpoint | None = None
) -> dict[str, Any]:
    """A plan's proxies and targets.

    Args:
        session: whose evaluator is the search's.
        test: measures on the test images.
        kept: (layers,) the plan.
        epochs: of fine-tuning; 0 for none, and then that target is none.
        checkpoint: where the fine-tuning is kept.
    """
    compressor, search = session.compressor, session.evaluator
    adapting = Repair(kind="none", adaptive_bn=count_images(session.calibration), guard=False)
    bare = search.measure(compressor.compress(kept).model, kept)
    adapted = search.measure(compressor(kept, adapting), kept)
    candidate = search.evaluate(kept)
    final = session.compress(kept)
    finished = test.measure(final, kept)
    session.finetune(final, epochs, hold=compressor.compress(kept).hold, checkpoint=checkpoint)
    return {
        "kept": kept.tolist(),
        "flops": candidate.flops,
        "params": candidate.params,
        "none_accuracy": bare.accuracy,
        "adaptive_bn_accuracy": adapted.accuracy,
        "accuracy": candidate.accuracy,
        "reconstruction_loss": candidate.reconstruction_loss,
        "quality": session.weights.quality(candidate),
        "test_accuracy": finished.accuracy,
        "test_reconstruction_loss": finished.reconstruction_loss,
        "finetuned_test_accuracy": accuracy(final, test.search, session.objective) if epochs else None,
    }


def correlations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The coefficients of every proxy and target, over the rows that have both.

    Distances count with their sign turned, so that +1 always means: what the proxy prefers is better in the end.
    """
    found = []
    for target in TARGETS:
        evaluated = [row for row in rows if row[target] is not None]
        if len(evaluated) < FEWEST:
            continue
        for proxy in PROXIES:
            x, y = (
                np.array([row[key] for row in evaluated]) * (-1.0 if key in LOSSES else 1.0) for key in (proxy, target)
            )
            found.append({"proxy": proxy, "target": target, "n": len(evaluated), **coefficients(x, y)})
    return found


def _tree(session: Session, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `correlate.json` holds; all that the figure and the table need."""
    repair, settings = session.config.repair, session.config.correlate
    assert session.test is not None
    words = {"repair": repair.search.kind, "measure": session.objective.measure.removesuffix(" %")}
    return {
        "config": session.config.name,
        "fingerprint": session.structure.fingerprint,
        "budget": PlanBudget.of(session.budget.fractions).model_dump(),
        "method": session.config.method,
        "criterion": session.criterion,
        "search_repair": repair.search.kind,
        "final_repair": repair.final.kind,
        "finetune_epochs": settings.finetune,
        "seed": session.config.seed,
        "images": {
            "source": session.source,
            "calibration": count_images(session.calibration),
            "search": count_images(session.search),
            "test": count_images(session.test),
        },
        "dense_search_accuracy": session.evaluator.dense.accuracy,
        "dense_test_accuracy": accuracy(session.model, session.test, session.objective),
        "measure": session.objective.measure,
        "proxies": {key: label.format(**words) for key, label in PROXIES.items()},
        "targets": {key: label.format(**words) for key, label in TARGETS.items()},
        "losses": sorted(LOSSES),
        "versions": package_versions(),
        "coefficients": correlations(rows),
        "rows": list(rows),
    }


def correlation_table(tree: Mapping[str, Any]) -> Figures:
    """A section a target, one row a proxy. Takes what `correlate.json` holds."""
    rows: list[list[str]] = []
    for target in dict.fromkeys(entry["target"] for entry in tree["coefficients"]):
        rows.append([tree["targets"][target]])
        for entry in tree["coefficients"]:
            if entry["target"] == target:
                interval = entry["spearman_interval"]
                rows.append(
                    [
                        f"  {tree['proxies'][entry['proxy']]}",
                        _signed(entry["spearman"]),
                        "–" if interval is None else " … ".join(map(_signed, interval)),
                        _signed(entry["pearson"]),
                        _signed(entry["kendall"]),
                        str(entry["n"]),
                    ]
                )
    return Figures(
        "Does the search pay for what counts?",
        "ρ Spearman with its 95 % bootstrap interval, r Pearson, τ Kendall: +1 where both prefer the same of n plans; "
        "rows on the search images, sections on the test images",
        ("", "ρ", "95 %", "r", "τ", "n"),
        rows,
    )


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"
