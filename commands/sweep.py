"""`secateur compare --flops 0.2,0.3,0.5`: the same comparison at several budgets, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, RootModel

from ..agents import get_allocator
from ..agents.fingerprint import Fingerprint
from ..configs.registry import admit
from ..configs.schema import CostKind
from ..networks.inference import accuracy
from ..networks.world import undisturbed, use_threads
from ..pruners import RatioPlan
from ..pruners.plan import plan_path
from ..reports.figures import Drawing, sweep_drawing, sweep_figure
from ..reports.handle import Handle, open_run
from ..reports.html import write_page
from ..reports.run import SWEEP_NAME, read_run
from ..reports.tables import Figures
from ..storage.files import write_json
from ..storage.folders import (
    CONFIG_NAME,
    REPORT_NAME,
    SWEEP_BEGUN_NAME,
    check_free,
    claimed,
    free_folder,
    interrupted_run,
)
from ..storage.reading import read_json, validated
from .apply import session_for
from .compare import COMPARE_NAME, compare
from .fingerprints import of_comparison
from .initial import check
from .resolve import Given
from .session import Session

MOST = 100  # budgets
REACHED = ("finetuned_test_accuracy", "test_accuracy", "search_accuracy")  # the first that a row has


@dataclass(frozen=True)
class Sweep:
    """What a comparison at several budgets leaves behind.

    Attributes:
        rows: those of all comparisons, each with its `budget`, the accuracy that is `reached` in the end, and whether
            it is on the `front`: no other row is both as cheap and as good.
        trained: a row a plan, schedule and seed, where plans were trained; each with its `budget`.
        folder: where everything was written: a comparison's folder for each budget, `sweep.json`, `sweep.png` and
            `report.html`, the page that joins them.
        runs: budget → its comparison, opened.
    """

    rows: list[dict[str, Any]]
    trained: list[dict[str, Any]]
    folder: Path
    runs: dict[float, Handle]

    def plot(self) -> Drawing:
        """Accuracy against cost: a line an allocator, a mark a plan, the Pareto front ringed."""
        return sweep_drawing(read_json(self.folder / SWEEP_NAME))


class _Row(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    allocator: str
    flops: float
    params: float
    latency: float | None = None
    search_accuracy: float
    test_accuracy: float | None
    finetuned_test_accuracy: float | None = None


class _Found(BaseModel):
    """What is read of a comparison; the rest is kept as it is."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    finetune_epochs: int
    verdict: str | None
    rows: list[_Row] = Field(min_length=1)
    trained: list[dict[str, Any]] = []
    trained_summary: list[dict[str, Any]] = []
    trained_verdict: str | None = None


class _Begun(RootModel[dict[str, dict[str, Any]]]):
    """A fingerprint's parts."""


@undisturbed()
def sweep(
    plans: Sequence[RatioPlan | str | Path] = (),
    session: Session | Given = None,
    *,
    budgets: Sequence[float],
    kind: CostKind = "flops",
    against: Sequence[str] | None = None,
    candidates: int | None = None,
    seeds: Sequence[int] = (0,),
    finetune: int = 0,
    schedules: Sequence[str] = ("one_shot",),
    out: str | Path | None = None,
    resume: str | Path | None = None,
) -> Sweep:
    """Compare at several budgets: every allocator at each, a plan at its own.

    Every budget's comparison is as `compare` makes it, in a folder of its own; an interrupted sweep goes on with
    `resume` and the same arguments, and does nothing again.

    Args:
        plans: plans, their files or run folders; each is compared at the budget that it was made for.
        session: a session, or a config, its name or its file; none takes the config beside the first plan.
        budgets: fractions of the dense network's cost, in (0, 1].
        kind: which cost: flops, params or latency.
        against: as of `compare`, and so are the rest.
        candidates: a search may evaluate at each budget.
        seeds: of searches and trainings.
        finetune: epochs that every plan is trained for.
        schedules: every plan is trained by each.
        out: an empty or new folder.
        resume: the folder of an interrupted sweep.

    Raises:
        PlanError, ValueError, FileNotFoundError, ImportError: as `compare`; a plan for none of the budgets.
    """
    session = Session.of(session)
    _check(budgets, kind)
    check_free(out)
    previous = interrupted_run(resume, "compare", SWEEP_NAME) if resume is not None else None
    files = [None if isinstance(plan, RatioPlan) else plan_path(plan) for plan in plans]
    loaded = [plan if isinstance(plan, RatioPlan) else RatioPlan.load(plan) for plan in plans]
    at = {fraction: [plan for plan in loaded if plan.budget.fraction == fraction] for fraction in budgets}
    for plan in loaded:
        if plan.budget.kind != kind or plan.budget.fraction not in at:
            raise ValueError(
                f"a plan of {plan.provenance.allocator} is for {plan.budget.kind} {plan.budget.fraction:g}: add that "
                f"to --{kind}, or leave the plan out"
            )
    beside = next((file.parent for file in files if file is not None), None)
    session = session.beside(previous or beside, overrides=[f"budget.{kind}={budgets[0]}"])
    names = session.config.compare.against if against is None else list(against)
    for name in names:
        admit({"compare.against": name}, trust_code=session.trust_code)
    searches = [get_allocator(name, session.config.method).searches for name in names]
    if any(searches) and not seeds:
        raise ValueError("no seeds: a search draws, give one or more (seeds)")
    if not names and not all(at.values()):
        raise ValueError("nothing to compare at some budgets: give an allocator (against), or a plan for each")
    session.check_workers()
    session = session_for(loaded, session, None, files)
    for schedule in schedules if finetune else ():
        check(session, schedule, finetune)
    session.check_finetune(finetune)
    use_threads(session.config.threads)
    folder = previous or free_folder(out, Path("runs") / f"{session.config.name}-sweep")
    more = {"candidates": candidates, "seeds": seeds, "finetune": finetune, "schedules": schedules}
    with claimed(folder, "compare", SWEEP_BEGUN_NAME, new=previous is None):
        known = of_comparison(session, loaded, names, candidates or 0, seeds, finetune, schedules)
        _begin(folder, known, [f"{kind} {fraction:g}" for fraction in budgets])
        session.save(folder)
        try:
            found = {
                fraction: _compared(session, ours, kind, fraction, folder, {**more, "against": names})
                for fraction, ours in at.items()
            }
        except KeyboardInterrupt:
            session.reporter.say(f"all budgets: go on with the same arguments and --resume {folder} instead of --out")
            raise
        return _finish(session, kind, found, folder)


def _check(budgets: Sequence[float], kind: str) -> None:
    if not 0 < len(budgets) <= MOST or len(set(budgets)) < len(budgets):
        raise ValueError(f"--{kind} {list(budgets)}: give 1 to {MOST} budgets, each once")
    if wrong := [fraction for fraction in budgets if not 0.0 < fraction <= 1.0]:
        raise ValueError(f"--{kind} {wrong[0]:g}: a budget is a fraction of the dense network's, in (0, 1]")


def _begin(folder: Path, known: Fingerprint, budgets: Sequence[str]) -> None:
    """Write what the sweep is of, or compare it with what it was begun with.

    Raises:
        ValueError: it was begun with something else.
    """
    path = folder / SWEEP_BEGUN_NAME
    known = Fingerprint({**known.parts, "sweep": {"budgets": list(budgets)}})
    if not path.exists():
        write_json(path, known.parts)
        return
    known.check(validated(_Begun, read_json(path), str(path)).root, path)


def _compared(
    session: Session, plans: Sequence[RatioPlan], kind: str, fraction: float, folder: Path, how: Mapping[str, Any]
) -> dict[str, Any]:
    """A budget's comparison: finished already, gone on with, or begun."""
    own = _own(folder, kind, fraction)
    if not (own / COMPARE_NAME).is_file():
        session.reporter.say(f"{kind} {fraction:g}:")
        where = "resume" if (own / CONFIG_NAME).is_file() else "out"
        compare(plans, session.beside(overrides=[f"budget.{kind}={fraction}"]), **{**how, where: own})
    return finished(own / COMPARE_NAME)


def _own(folder: Path, kind: str, fraction: float) -> Path:
    return folder / f"{kind}-{fraction:g}"


def finished(path: Path) -> dict[str, Any]:
    """What a finished comparison found.

    Raises:
        ValueError: the file is damaged.
    """
    return validated(_Found, read_json(path), str(path)).model_dump(exclude_unset=True)


def _finish(session: Session, kind: str, found: Mapping[float, Mapping[str, Any]], folder: Path) -> Sweep:
    rows = [{"budget": fraction, **row} for fraction, tree in found.items() for row in tree["rows"]]
    for row in rows:
        row["reached"] = next(row[key] for key in REACHED if row.get(key) is not None)
    for row in rows:
        row["front"] = on_front(row, rows, kind)
    trained = [{"budget": fraction, **row} for fraction, tree in found.items() for row in tree.get("trained", [])]
    tested = session.test is not None
    dense = accuracy(session.model, session.test if session.test is not None else session.search, session.objective)
    tree = {
        "config": session.config.name,
        "method": session.config.method,
        "measure": session.objective.measure,
        "kind": kind,
        "dense": {"images": "test" if tested else "search", "accuracy": dense},
        "finetune_epochs": next(iter(found.values()))["finetune_epochs"],
        "verdicts": {f"{fraction:g}": of.get("trained_verdict") or of["verdict"] for fraction, of in found.items()},
        "rows": rows,
        "trained": trained,
        "trained_summary": [
            {"budget": fraction, **row} for fraction, of in found.items() for row in of.get("trained_summary", [])
        ],
    }
    sweep_figure(tree, folder / "sweep.png")
    inner = {fraction: _own(folder, kind, fraction) for fraction in found}
    write_page([read_run(own) for own in inner.values()], folder / REPORT_NAME)
    write_json(folder / SWEEP_NAME, tree)  # last: with it the sweep is finished
    session.reporter.show(sweep_table(tree))
    for fraction, sentence in tree["verdicts"].items():
        if sentence is not None:
            session.reporter.say(f"{kind} {fraction}: {sentence}")
    return Sweep(rows, trained, folder, {fraction: open_run(own) for fraction, own in inner.items()})


def on_front(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], kind: str) -> bool:
    """Whether no other row costs as little and reaches as much, and is better in one of the two: the Pareto front."""
    cost, score = row[kind], row["reached"]
    others = [(other[kind], other["reached"]) for other in rows]
    return not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in others)


def sweep_table(tree: Mapping[str, Any]) -> Figures:
    """One row an allocator, a column a budget; takes what `sweep.json` holds."""
    budgets = list(dict.fromkeys(row["budget"] for row in tree["rows"]))
    rows = [
        [
            name,
            *(
                _mean([row for row in tree["rows"] if (row["allocator"], row["budget"]) == (name, at)])
                for at in budgets
            ),
        ]
        for name in dict.fromkeys(row["allocator"] for row in tree["rows"])
    ]
    trained = f" after {tree['finetune_epochs']} epochs" if tree["finetune_epochs"] else ", repaired"
    return Figures(
        "Accuracy against cost",
        f"{tree['measure'].removesuffix(' %')} in per cent on the {tree['dense']['images']} images{trained}, mean over "
        f"seeds, by per cent of the dense network's {tree['kind']}; * on the Pareto front; the dense network has "
        f"{tree['dense']['accuracy']:.2f}",
        ("allocator", *(f"{100 * budget:g} %" for budget in budgets)),
        rows,
    )


def _mean(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "–"
    return f"{sum(row['reached'] for row in rows) / len(rows):.2f}" + ("*" if any(row["front"] for row in rows) else "")
