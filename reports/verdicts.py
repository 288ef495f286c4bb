"""What the figures of a run say, in a sentence, and what they do not say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt

from .run import KINDS, Figures, Run

CHANCE = 2.0  # standard errors


def standing(leads: Iterable[tuple[str, float, float]]) -> tuple[list[str], list[str], list[str]]:
    """Whom the first row is ahead of, level with and behind: beyond two standard errors, with each of their seeds.

    Args:
        leads: name, lead and its standard error of every other row.
    """
    found: dict[str, list[float]] = {}  # of every seed, in standard errors
    for name, lead, error in leads:
        found.setdefault(name, []).append(lead / max(error, 1e-12))
    ahead = [name for name, values in found.items() if min(values) > CHANCE]
    behind = [name for name, values in found.items() if max(values) < -CHANCE]
    return ahead, [name for name in found if name not in (*ahead, *behind)], behind


def verdict(run: Run) -> list[str]:
    """Sentences, the most important first; none of a run that has no figures yet."""
    if not run.finished:
        command = "apply" if run.kind == "chain" else run.kind
        return [f"This run is not finished: secateur {command} --resume goes on with it. What follows is so far."]
    told: Mapping[str, Callable[[Run], list[str]]] = {
        "train": _training,
        "apply": _application,
        "compare": _comparison,
        "chain": _chain,
    }
    return told[run.kind](run) if run.kind in told else []


def _comparison(run: Run) -> list[str]:
    rows, measure = run.summary.rows, run.summary.measure
    if not rows:
        return []
    first = rows[0]
    leads = [
        (row.allocator, row.test_lead, row.test_lead_standard_error)
        for row in rows[1:]
        if row.test_lead is not None and row.test_lead_standard_error is not None and row.allocator != first.allocator
    ]
    if first.test_accuracy is None:
        return [
            f"There were no test images: the figures are of the search images ({measure}), which the searches chose "
            "their plans by, so they favour searches."
        ]
    sentences = []
    ahead, level, behind = standing(leads)
    parts = [
        f"{word} {_listed(f'{name} {_by(name, leads, sign)}' for name in names)}"
        for word, names, sign in (("ahead of", ahead, 1), ("level with", level, 1), ("behind", behind, -1))
        if names
    ]
    score = f"{first.allocator} scores {scored(first.test_accuracy, measure)} on the test images"
    sentences.append(f"{score}: {'; '.join(parts)}." if parts else f"{score}.")
    seeds = [row for row in rows[1:] if row.allocator == first.allocator and row.test_accuracy is not None]
    if seeds:
        told = _listed(f"{row.test_accuracy:.2f} (seed {row.seed})" for row in seeds)
        sentences.append(f"Its other seeds score {told}.")
    if parts:
        sentences.append(
            "Differences are of the same images, ± one standard error; ahead and behind are beyond two of them (with "
            "every seed), level is what chance may do. They say nothing of other seeds, images or networks."
        )
    if run.summary.trained_verdict:
        sentences.append(f"After training: {run.summary.trained_verdict}.")
    return sentences


def _by(name: str, leads: Sequence[tuple[str, float, float]], sign: int) -> str:
    found = [(sign * lead, error) for other, lead, error in leads if other == name]
    if len(found) == 1:
        lead, error = found[0]
        return f"(by {_signed(lead)} ± {error:.2f} points)"
    low, high = min(lead for lead, _ in found), max(lead for lead, _ in found)
    return (
        f"(by {_signed(low)} to {_signed(high)} points over {len(found)} seeds, ± {max(e for _, e in found):.2f} each)"
    )


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _training(run: Run) -> list[str]:
    summary = run.summary
    best, base, dense = summary.best, summary.base, summary.dense
    if best is None or best.search_accuracy is None:
        return []
    where = f"The best plan (episode {best.episode})" if best.episode is not None else "The best plan"
    sentence = f"{where} keeps {costs(best)} and scores {scored(best.search_accuracy, summary.measure)}"
    beside = [
        f"{name} {figures.search_accuracy:.2f}"
        for name, figures in (("the base plan", base), ("the dense network", dense))
        if figures is not None and figures.search_accuracy is not None
    ]
    images = summary.images.get("search")
    sentences = [f"{sentence} on the {images or ''} search images; {_listed(beside)}.".replace("  ", " ")]
    caution = "These images also chose the plan, so its score is on the favourable side"
    if images and summary.measure.startswith("top-1"):
        share = best.search_accuracy / 100.0
        error = 100.0 * sqrt(max(share * (1.0 - share), 1e-9) / images)
        caution += f", and one accuracy on them has a standard error of {error:.2f} points"
    return [*sentences, f"{caution}: secateur compare measures it on test images, beside other plans."]


def _application(run: Run) -> list[str]:
    summary = run.summary
    pruned, dense = summary.pruned, summary.dense
    if pruned is None or dense is None:
        return []
    sentence = f"The smaller network keeps {costs(pruned)}"
    if pruned.test_accuracy is not None and dense.test_accuracy is not None:
        change = pruned.test_accuracy - dense.test_accuracy
        error = pruned.test_change_standard_error
        told = f"{'+' if change > 0 else ''}{_signed(change)}" + (f" ± {error:.2f}" if error is not None else "")
        sentence += (
            f" and scores {scored(pruned.test_accuracy, summary.measure)} on the test images, the dense one "
            f"{dense.test_accuracy:.2f}: {told} points"
        )
    sentences = [f"{sentence}."]
    if pruned.latency_ms and dense.latency_ms:
        ratio = pruned.latency_ms / dense.latency_ms
        batch = f" of {summary.latency_batch} images" if summary.latency_batch else ""
        sentences.append(
            f"One pass{batch} takes {pruned.latency_ms:.2f} ms instead of {dense.latency_ms:.2f} ms, {ratio:.2f} of "
            f"the time, in {summary.latency_runtime}, on the machine that it was measured on."
        )
    if pruned.test_change_standard_error is not None:
        sentences.append("± is one standard error of the difference on the same images.")
    return sentences


def _chain(run: Run) -> list[str]:
    stages = run.summary.stages
    if len(stages) < 2:
        return []
    dense, last = stages[0], stages[-1]
    sentence = f"Behind the last of {len(stages) - 1} plans the network keeps {costs(last)}"
    if dense.bytes and last.bytes:
        sentence += f" in {last.bytes:,} bytes, {dense.bytes / last.bytes:.1f} times fewer than the dense one"
    if last.test_accuracy is not None and dense.test_accuracy is not None:
        change = last.test_accuracy - dense.test_accuracy
        sentence += (
            f", and scores {scored(last.test_accuracy, run.summary.measure)} on the test images, the dense one "
            f"{dense.test_accuracy:.2f}: {'+' if change > 0 else ''}{_signed(change)} points"
        )
    return [f"{sentence}."]


def scored(value: float, measure: str) -> str:
    """A score with the name of its measure, which ends in its unit."""
    return f"{value:.2f} % {measure.removesuffix(' %')}" if measure.endswith(" %") else f"{value:.2f} {measure}"


def costs(figures: Figures) -> str:
    """Of the dense network, in words."""
    values = [(name, getattr(figures, kind)) for kind, name in KINDS.items()]
    return _listed(f"{100 * value:.1f} % of the {name}" for name, value in values if value is not None) or "its size"


def _listed(parts: Iterable[str]) -> str:
    found = list(parts)
    return found[0] if len(found) == 1 else " and ".join(filter(None, (", ".join(found[:-1]), *found[-1:])))
