"""`secateur compare`: plans against hand-set ratios and random search, at the same cost, on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from ..pruners.plan import PlanBudget, plan_path
from ..reports.figures import comparison_figure
from ..reports.handle import Opens
from ..reports.html import write_report
from ..storage.files import write_json
from ..storage.folders import FINETUNED_NAME, SWEEP_BEGUN_NAME, check_free, claimed, free_folder, interrupted_run
from .about import record
from .apply import session_for
from .compared import add_gains, compare_table, verdict
from .described import dense_figures, hand_set, image_counts
from .fingerprints import of_comparison
from .initial import check
from .rerank import rerank
from .resolve import Given
from .session import Session
from .trained import Job, Trained, after, mean, trained_table
from .trainers import Trainers
from .tuning import remove_checkpoints

COMPARE_NAME = "compare.json"
DEFAULT_CANDIDATES = 100
MOST_SEEDS = 1_000


@dataclass(frozen=True)
class Comparison(Opens):
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
            searches, and 100 where they had none.
        seeds: of the allocators that draw; the others get one row. Added to the config's they are seeds of trainings,
            too: of a search's plan its own (of a given one, if plans of its other seeds are given, too), of any other
            all of them.
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
    if previous is not None and (previous / SWEEP_BEGUN_NAME).exists():
        raise ValueError(f"--resume {previous}: it is of several budgets, give them again (--flops, in Python sweep)")
    files = [None if isinstance(plan, RatioPlan) else plan_path(plan) for plan in plans]
    beside = next((file.parent for file in files if file is not None), None)
    loaded = [plan if isinstance(plan, RatioPlan) else RatioPlan.load(plan) for plan in plans]
    _check_alike(loaded)
    overrides = loaded[0].budget.overrides if loaded else []
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
    own = max((plan.provenance.candidates for plan in loaded), default=0)  # a rule's has evaluated none
    candidates = session.config.compare.candidates or own or DEFAULT_CANDIDATES
    default = beside / "compare" if beside else Path("runs") / f"{session.config.name}-compare"
    folder = previous or free_folder(out, default)
    with claimed(folder, "compare", CANDIDATES_NAME, new=previous is None):
        known = of_comparison(session, loaded, names, candidates, seeds, finetune, schedules)
        log = CandidateLog(folder / CANDIDATES_NAME, len(session.structure.layers), known)
        session.save(folder)  # not before it is known to go with what is there
        record(session, folder)
        try:
            return _compare(
                session, loaded, chosen, seeds, candidates, (finetune, schedules, known.digest), log, folder
            )
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
    training: tuple[int, Sequence[str], str],
    log: CandidateLog,
    folder: Path,
) -> Comparison:
    finetune, schedules, of = training
    drawn = [_seeds(plan, loaded, seeds) for plan in loaded]  # of a plan's trainings
    session.evaluator.known.update(log.known)
    with session.evaluators() as evaluator:
        for allocator in chosen:
            for seed in seeds if allocator.searches else seeds[:1]:
                loaded.append(_allocate(session, evaluator, allocator, seed, candidates, log))
                drawn.append((seed,) if allocator.searches else seeds)

    rows: list[dict[str, Any]] = []
    parts: list[Tensor | None] = []
    trained: list[Trained] = []
    pending: list[Callable[[], list[Trained]]] = []
    with session.reporter.bar("measure", len(loaded)) as advance, Trainers(session) as train:
        for i, plan in enumerate(loaded):
            row, influence, small = _row(session, plan)
            if finetune:
                jobs = [Job(plan, i, name, seed, finetune, folder, of) for name in schedules for seed in drawn[i]]
                pending.append(train(jobs, small))
            name = f"plans/{i}-{plan.provenance.allocator.replace(':', '.')}-{plan.provenance.seed}.json"
            plan.save(folder / name)
            rows.append({**row, "plan": name})
            parts.append(influence)
            advance(plan.provenance.allocator)
        for row, collect in zip(rows, pending, strict=False):  # none without fine-tuning
            found = collect()
            trained += found
            row["finetuned_test_accuracy"] = mean(
                one.row["test_accuracy"] for one in found if one.row["schedule"] == schedules[0]
            )
    add_gains(rows, parts)
    comparison_figure(rows, loaded, folder / "compare.png", session.objective.measure)
    write_json(  # last: with it the comparison is finished
        folder / COMPARE_NAME,
        {
            "config": session.config.name,
            "method": session.config.method,
            "objective": session.config.objective.name,
            "measure": session.objective.measure,
            "budget": PlanBudget.of(session.budget.fractions).model_dump(),
            "repair": session.config.repair.final.model_dump(mode="json"),
            "finetune_epochs": finetune,
            "candidates": candidates,
            "dense": dense_figures(session),
            "images": image_counts(session),
            "hand_set": hand_set(session),
            "verdict": verdict(rows),
            "rows": rows,
            **after(rows, trained, schedules, finetune),
        },
    )
    remove_checkpoints(folder)
    write_report(folder)
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


def _seeds(plan: RatioPlan, plans: Sequence[RatioPlan], seeds: Sequence[int]) -> Sequence[int]:
    """Of a given plan's trainings: its search's own, where the search was run with several; else all."""
    found = {other.provenance.seed for other in plans if other.provenance.allocator == plan.provenance.allocator}
    return (plan.provenance.seed,) if len(found) > 1 else seeds


def _check_alike(plans: Sequence[RatioPlan]) -> None:
    for plan in plans[1:]:
        if any(getattr(plan, key) != getattr(plans[0], key) for key in ("method", "budget", "criterion")):
            mine, theirs = (f"{p.method}, {p.budget}, {p.criterion}" for p in (plans[0], plan))
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
