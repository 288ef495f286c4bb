"""`secateur compare`: plans against hand-set ratios and random search, at the same cost, on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..agents import Allocator, SearchProblem, get_allocator
from ..agents.log import CANDIDATES_NAME, CandidateLog
from ..configs.registry import admit
from ..envs import Evaluation, Evaluator
from ..networks.inference import statistics
from ..networks.world import undisturbed, use_threads
from ..pruners import Kept, PlanError, RatioPlan
from ..pruners.plan import plan_path
from ..reports.figures import comparison_figure
from ..reports.tables import SHORT, Figures, cost_kinds
from ..storage.files import write_json
from ..storage.folders import FINETUNED_NAME, check_free, claimed, free_folder, interrupted_run
from .apply import session_for
from .fingerprints import of_comparison
from .initial import check
from .rerank import rerank
from .resolve import Given
from .session import Session
from .trained import Trained, after, mean, train_plan, trained_table
from .tuning import remove_checkpoints

COMPARE_NAME = "compare.json"
DEFAULT_CANDIDATES = 100
MOST_SEEDS = 1_000


@dataclass(frozen=True)
class Comparison:
    """What a comparison leaves behind.

    Attributes:
        rows: one an allocator and seed, as `compare.json` holds them.
        plans: the plans behind the rows.
        folder: where everything was written.
        trained: a row a plan, schedule and seed, where plans were trained.
    """

    rows: list[dict[str, Any]]
    plans: list[RatioPlan]
    folder: Path
    trained: list[dict[str, Any]] = field(default_factory=list)


@undisturbed()
def compare(
    plans: Sequence[RatioPlan | str | Path] = (),
    session: Session | Given = None,
    *,
    against: Sequence[str] | None = None,
    candidates: int | None = None,
    seeds: Sequence[int] = (0,),
    finetune: int = 0,
    schedules: Sequence[str] = ("one_shot",),
    out: str | Path | None = None,
    resume: str | Path | None = None,
) -> Comparison:
    """Evaluate plans and other allocators alike: same cost, same repair, same search and test images.

    Every candidate that an allocator has evaluated is on disk before the next (with workers: before the next of its
    generation is looked at), and every row's fine-tuning after every epoch; an interrupted comparison goes on with
    `resume` and the same arguments, and does none of that again. With other plans, arguments, images or settings it is
    refused (`Fingerprint` says what is compared); workers, and how many plans are measured again, may differ.

    Args:
        plans: plans, their files or run folders; may be none if a session is given.
        session: a session, or a config, its name or its file; none takes the config beside the first plan.
        against: allocators; none takes the config's `compare.against`.
        candidates: a search allocator may have evaluated; none takes the config's, else as many as the plans' own
            searches.
        seeds: of the allocators that draw; the others get one row. Added to the config's they are seeds of trainings,
            too: of a search's plan its own, of any other all of them.
        finetune: epochs that every plan is trained for, alike: the same images in the same order.
        schedules: every plan is trained by each.
        out: an empty or new folder; none takes `compare` beside the first plan, else `runs/NAME-compare`.
        resume: the folder of an interrupted comparison; the config is its own.

    Raises:
        PlanError: a plan is for another network, or the plans have different methods, budgets or criteria.
        ValueError, FileNotFoundError: other bad input, in one line.
        ImportError: an allocator is made with an extra that is not installed.
    """
    session = Session.of(session)
    for name in against or ():
        admit({"against": name}, trust_code=session.trust_code)
        get_allocator(name)  # unknown, or not installed: said before the network is looked at
    check_free(out)
    previous = interrupted_run(resume, "compare", COMPARE_NAME) if resume is not None else None
    files = [None if isinstance(plan, RatioPlan) else plan_path(plan) for plan in plans]
    beside = next((file.parent for file in files if file is not None), None)
    loaded = [plan if isinstance(plan, RatioPlan) else RatioPlan.load(plan) for plan in plans]
    _check_alike(loaded)
    overrides = [f"budget.{loaded[0].budget.kind}={loaded[0].budget.fraction}"] if loaded else []
    overrides += [] if candidates is None else [f"compare.candidates={candidates}"]
    session = session.beside(previous or beside, overrides=overrides)
    method = loaded[0].method if loaded else session.config.method
    names = session.config.compare.against if against is None else against
    for name in names:
        admit({"compare.against": name}, trust_code=session.trust_code)
    chosen = [get_allocator(name, method) for name in names]
    if not loaded and not chosen:
        raise ValueError("nothing to compare: give a plan, or an allocator (against)")
    if any(allocator.searches for allocator in chosen) and not 0 < len(seeds) <= MOST_SEEDS:
        raise ValueError(f"{len(seeds)} seeds: a search draws, give 1 to {MOST_SEEDS:,} (seeds)")
    session.check_workers()
    session = session_for(loaded, session, None, files)
    for schedule in schedules if finetune else ():
        check(session, schedule, finetune)
    session.check_finetune(finetune)
    use_threads(session.config.threads)
    session.reporter.say(session.describe())
    candidates = session.config.compare.candidates or max(
        (plan.provenance.candidates for plan in loaded), default=DEFAULT_CANDIDATES
    )
    default = beside / "compare" if beside else Path("runs") / f"{session.config.name}-compare"
    folder = previous or free_folder(out, default)
    with claimed(folder, "compare", CANDIDATES_NAME, new=previous is None):
        known = of_comparison(session, loaded, names, candidates, seeds, finetune, schedules)
        log = CandidateLog(folder / CANDIDATES_NAME, len(session.structure.layers), known)
        session.save(folder)  # not before it is known to go with what is there
        try:
            return _compare(session, loaded, chosen, seeds, candidates, (finetune, schedules), log, folder)
        except KeyboardInterrupt:
            if any((folder / name).exists() for name in (CANDIDATES_NAME, FINETUNED_NAME)):
                session.reporter.say(f"stopped; go on with the same arguments and --resume {folder} instead of --out")
            raise


def _compare(
    session: Session,
    loaded: list[RatioPlan],
    chosen: Sequence[Allocator],
    seeds: Sequence[int],
    candidates: int,
    training: tuple[int, Sequence[str]],
    log: CandidateLog,
    folder: Path,
) -> Comparison:
    finetune, schedules = training
    drawn: list[Sequence[int]] = [seeds] * len(loaded)  # of a plan's trainings
    session.evaluator.known.update(log.known)
    with session.evaluators() as evaluator:
        for allocator in chosen:
            for seed in seeds if allocator.searches else seeds[:1]:
                loaded.append(_allocate(session, evaluator, allocator, seed, candidates, log))
                drawn.append((seed,) if allocator.searches else seeds)

    rows: list[dict[str, Any]] = []
    parts: list[Tensor | None] = []
    trained: list[Trained] = []
    with session.reporter.bar("measure", len(loaded)) as advance:
        for i, plan in enumerate(loaded):
            row, influence, small = _row(session, plan)
            if finetune:
                found = train_plan(session, plan, i, small, schedules, finetune, drawn[i], folder)
                trained += found
                row["finetuned_test_accuracy"] = mean(
                    one.row["test_accuracy"] for one in found if one.row["schedule"] == schedules[0]
                )
            name = f"plans/{i}-{plan.provenance.allocator.replace(':', '.')}-{plan.provenance.seed}.json"
            plan.save(folder / name)
            rows.append({**row, "plan": name})
            parts.append(influence)
            advance(plan.provenance.allocator)
    _add_gains(rows, parts)
    comparison_figure(rows, loaded, folder / "compare.png", session.objective.measure)
    write_json(  # last: with it the comparison is finished
        folder / COMPARE_NAME,
        {
            "config": session.config.name,
            "method": session.config.method,
            "objective": session.config.objective.name,
            "measure": session.objective.measure,
            "budget": {"kind": session.budget.kind, "fraction": session.budget.fraction},
            "repair": session.config.repair.final.model_dump(mode="json"),
            "finetune_epochs": finetune,
            "candidates": candidates,
            "verdict": verdict(rows),
            "rows": rows,
            **after(rows, trained, schedules, finetune),
        },
    )
    remove_checkpoints(folder)
    _show(session, rows, trained, schedules, finetune)
    return Comparison(rows, loaded, folder, [one.row for one in trained])


def _show(
    session: Session, rows: list[dict[str, Any]], trained: Sequence[Trained], schedules: Sequence[str], epochs: int
) -> None:
    told, measure = after(rows, trained, schedules, epochs), session.objective.measure
    session.reporter.show(compare_table(rows, measure))
    if trained:
        session.reporter.show(trained_table(told["trained_summary"], measure))
    for sentence in (verdict(rows), told.get("trained_verdict")):
        if sentence is not None:
            session.reporter.say(sentence)


def _check_alike(plans: Sequence[RatioPlan]) -> None:
    for plan in plans[1:]:
        if any(getattr(plan, key) != getattr(plans[0], key) for key in ("method", "budget", "criterion")):
            mine, theirs = (
                f"{p.method}, {p.budget.kind} {p.budget.fraction:g}, {p.criterion}" for p in (plans[0], plan)
            )
            raise PlanError(
                f"plans can only be compared with the same method, budget and criterion: {mine} against {theirs}"
            )


def _allocate(
    session: Session, evaluator: Evaluator, allocator: Allocator, seed: int, candidates: int, log: CandidateLog
) -> RatioPlan:
    qualities: dict[tuple[int, ...], float] = {}
    with session.reporter.bar(allocator.name, candidates if allocator.searches else 1) as advance:

        def evaluated(plans: Sequence[Kept]) -> Iterator[Evaluation]:
            for kept, evaluation in zip(plans, evaluator.evaluate_all(plans), strict=True):
                found = session.weights.quality(evaluation)
                qualities[tuple(kept.tolist())] = found
                log.append(allocator.name, seed, kept, evaluation, found)
                advance(f"quality {found:+.3f} best {max(qualities.values()):+.3f}")
                yield evaluation

        rng = np.random.default_rng(seed)
        problem = SearchProblem(session.budget, session.context, evaluated, session.weights, candidates, rng)
        kept = allocator.allocate(problem)
        if not allocator.searches:
            advance("")
    if allocator.searches:
        kept = rerank(session, qualities)[0].kept
    return session.plan_of(kept, allocator=allocator.name, seed=seed, candidates=len(qualities))


def _row(session: Session, plan: RatioPlan) -> tuple[dict[str, Any], Tensor | None, nn.Module]:
    """The plan's figures, what each test image adds to the measure, and the network, repaired."""
    small = session.compress(plan.kept)
    measured = session.evaluator.measure(small, plan.kept)
    seen = None if session.test is None else statistics(small, session.test, session.objective)
    row: dict[str, Any] = {
        "allocator": plan.provenance.allocator,
        "seed": plan.provenance.seed,
        "candidates": plan.provenance.candidates,
        **session.structure.fractions(plan.kept),
        "search_accuracy": measured.accuracy,
        "reconstruction_loss": measured.reconstruction_loss,
        "test_accuracy": None if seen is None else session.objective.total(seen),
    }
    return row, None if seen is None else session.objective.influence(seen), small


def _add_gains(rows: list[dict[str, Any]], parts: Sequence[Tensor | None]) -> None:
    """Paired differences of the measure on the test images, with their standard errors on the same images.

    `test_gain_over_uniform` of every row, and `test_lead` of the first row (a plan's, if there is one) over the others.
    """
    uniform = next((i for i, row in enumerate(rows) if row["allocator"] == "uniform"), None)
    for i, row in enumerate(rows):
        if uniform is not None and parts[i] is not None:
            row["test_gain_over_uniform"], row["test_gain_standard_error"] = _difference(rows, parts, i, uniform)
        if i and parts[i] is not None:
            row["test_lead"], row["test_lead_standard_error"] = _difference(rows, parts, 0, i)


def _difference(
    rows: Sequence[dict[str, Any]], parts: Sequence[Tensor | None], one: int, other: int
) -> tuple[float, float]:
    """The difference of two rows and its standard error, in points: of what each image adds (`Objective.influence`)."""
    mine, theirs = parts[one], parts[other]
    assert mine is not None
    assert theirs is not None
    gain = (mine - theirs)[(mine - theirs).isfinite()]
    return rows[one]["test_accuracy"] - rows[other]["test_accuracy"], float(gain.std() / len(gain) ** 0.5)


def verdict(rows: Sequence[dict[str, Any]]) -> str | None:
    """Whether the first row is ahead of the others beyond chance (two standard errors), in a sentence.

    It is ahead of an allocator with several seeds where it is of each; its own other seeds do not count.

    Returns:
        None where there are no test images, or nothing to compare with.
    """
    leads: dict[str, list[float]] = {}  # allocator → of every seed, in standard errors
    for row in rows[1:]:
        if "test_lead" in row and row["allocator"] != rows[0]["allocator"]:
            lead = row["test_lead"] / max(row["test_lead_standard_error"], 1e-12)
            leads.setdefault(row["allocator"], []).append(lead)
    if not leads:
        return None
    ahead = [name for name, found in leads.items() if min(found) > 2.0]
    behind = [name for name, found in leads.items() if max(found) < -2.0]
    level = [name for name in leads if name not in (*ahead, *behind)]
    parts = {"ahead of": ahead, "level with": level, "behind": behind}
    told = "; ".join(f"{word} {', '.join(names)}" for word, names in parts.items() if names)
    return f"{rows[0]['allocator']} on the test images, beyond two standard errors: {told}"


def compare_table(rows: Sequence[dict[str, Any]], measure: str) -> Figures:
    """One row an allocator and seed, in the order given; `measure` is the objective's."""
    tuned = any("finetuned_test_accuracy" in row for row in rows)
    kinds = cost_kinds(rows)
    columns = ["allocator", "seed", "cand.", *(SHORT[kind] for kind in kinds)]
    columns += ["search", "test", "over uniform", *(["tuned"] if tuned else [])]
    return Figures(
        "Same cost, same repair, same images",
        f"cand.: candidates a search looked at; {', '.join(SHORT[kind] for kind in kinds)} kept, "
        f"{measure.removesuffix(' %')} (search, test, tuned) and gains in per cent",
        columns,
        [_cells(row, kinds, tuned=tuned) for row in rows],
    )


def _cells(row: dict[str, Any], kinds: Sequence[str], *, tuned: bool) -> list[str]:
    gain = row.get("test_gain_over_uniform")
    return [
        row["allocator"],
        str(row["seed"]),
        str(row["candidates"]),
        *(f"{100 * row[kind]:.1f}" for kind in kinds),
        f"{row['search_accuracy']:.2f}",
        _percent(row["test_accuracy"]),
        "–" if gain is None else f"{gain:+.2f} ± {row['test_gain_standard_error']:.2f}",
        *([_percent(row.get("finetuned_test_accuracy"))] if tuned else []),
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
