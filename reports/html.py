"""The page of a run, or of several: one file that opens offline, and holds all its data for machines, too."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from os.path import commonpath
from pathlib import Path

from ..storage.files import replacing
from ..storage.folders import REPORT_NAME
from ..storage.reading import regular
from .markup import Markup, element, joined, json_script
from .numbers import all_networks
from .pareto import Measured, after_training, cost_charts, finals, split, told_apart
from .run import Figures, Run, read_run
from .sections import Section, question, sections, setting_line, title, verdict_part

GENERATOR = "secateur report"
_START = f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><meta name="generator" content="{GENERATOR}">'


def write_report(folder: Path) -> Path:
    """The report of a run, into its folder; one that is there is replaced.

    Raises:
        FileNotFoundError, ValueError: see `read_run`.
    """
    return write_page([read_run(folder)], folder / REPORT_NAME)


def write_page(runs: Sequence[Run], path: Path) -> Path:
    """One page of some runs, whole or not at all.

    Raises:
        ValueError: something else than a report is there.
    """
    if path.exists():
        with regular(path).open("rb") as file:
            if file.read(len(_START)) != _START.encode():
                raise ValueError(f"{path} is no report, and nothing is overwritten: give another file (--out)")
    text = page(runs)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def page(runs: Sequence[Run]) -> str:
    """The page: the same bytes for the same files in the same folders."""
    names = _names(runs)
    heading = title(runs[0]) if len(runs) == 1 else f"{len(runs)} runs"
    style, script = (_resource(name) for name in ("report.css", "report.js"))
    head = joined(
        (
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
            element("title", f"{heading} – secateur"),
            element("style", Markup(style)),
        )
    )
    parts = [(name, sections(run)) for name, run in zip(names, runs, strict=True)]
    articles = [
        _article(run, name, i, made, alone=len(runs) == 1)
        for i, (run, (name, made)) in enumerate(zip(runs, parts, strict=True))
    ]
    body = joined(
        (
            element("a", "Skip to the content", href="#content", class_="skip"),
            element("header", element("p", "secateur", class_="brand"), element("h1", heading), _contents(parts)),
            element("main", _overview(runs, names) if len(runs) > 1 else None, *articles, id="content"),
            element("footer", element("p", _footer(runs))),
            json_script({name: run.data for name, run in zip(names, runs, strict=True)}, "secateur-data"),
            element("div", id="tip", role="status", hidden=True),
            element("script", Markup(script)),
        )
    )
    return f"{_START}{head}</head>\n<body>\n{body}\n</body>\n</html>\n"


def _policy(style: str, script: str) -> str:
    """Nothing is loaded from anywhere, and of what is written in the page only our own style and script count."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _resource(name: str) -> str:
    return resources.files(__package__ or "").joinpath(name).read_text(encoding="utf-8")


def _names(runs: Sequence[Run]) -> list[str]:
    """Folders by as much of their path as tells them apart."""
    if len(runs) == 1:
        return [runs[0].name]
    paths = [run.folder.resolve() for run in runs]
    shared = Path(commonpath([path.parent for path in paths]))
    return [path.relative_to(shared).as_posix() for path in paths]


def _contents(parts: Sequence[tuple[str, Sequence[Section]]]) -> Markup:
    if len(parts) == 1:
        links = [("#r0-verdict", "Verdict"), *((f"#r0-{one.identity}", one.heading) for one in parts[0][1])]
    else:
        links = [("#overview", "Overview"), *((f"#r{i}", name) for i, (name, _) in enumerate(parts))]
    items = [element("li", element("a", name, href=target)) for target, name in links]
    return element("nav", element("ul", *items), aria_label="Contents")


def _article(run: Run, name: str, number: int, made: Sequence[Section], *, alone: bool) -> Markup:
    top, inner = ("h2", "h2") if alone else ("h2", "h3")
    heading = None if alone else element("h2", f"{name} – {title(run)}", id=f"r{number}-name")
    verdict = verdict_part(run)
    first = joined(
        (
            element("p", question(run), class_="question"),
            element(inner if not alone else top, "Verdict", id=f"r{number}-verdict-name") if verdict else None,
            verdict,
            setting_line(run),
        )
    )
    begin = element("section", first, id=f"r{number}-verdict", aria_label="Question and verdict")
    rest = [
        element(
            "section",
            element(inner, one.heading, id=f"r{number}-{one.identity}-name"),
            one.content,
            id=f"r{number}-{one.identity}",
            aria_labelledby=f"r{number}-{one.identity}-name",
        )
        for one in made
    ]
    labelled = {"aria_label": title(run)} if alone else {"aria_labelledby": f"r{number}-name"}
    return element("article", heading, begin, *rest, id=f"r{number}", **labelled)


def _overview(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    """All networks in one table, and in a chart for each architecture and measure."""
    rows: list[tuple[str, Figures]] = []
    groups: dict[tuple[str, str, str], list[Measured]] = {}
    for run, name in zip(runs, names, strict=True):
        found = finals(run)
        rows += [(f"{name}: {one.name}", one.figures) for one in found]
        network = next((plan.architecture for plan in (run.plan, *run.plans) if plan), "network")
        groups.setdefault((network, run.summary.measure, split(found)), []).extend(told_apart(found, name))
        if tuned := after_training(run):
            of = f"{network} after {run.summary.finetune_epochs} epochs"
            groups.setdefault((of, run.summary.measure, split(tuned)), []).extend(told_apart(tuned, name))
    drawn = [cost_charts(found, measure, network) for (network, measure, _), found in groups.items()]
    return element(
        "section",
        element("h2", "Overview", id="overview-name"),
        *drawn,
        all_networks(rows),
        id="overview",
        aria_labelledby="overview-name",
    )


def _footer(runs: Sequence[Run]) -> str:
    versions = sorted({begin.versions.get("secateur", "") for run in runs for begin in run.about.runs[-1:]} - {""})
    made = f" {', '.join(versions)}" if versions else ""
    return (
        f"Written by secateur{made}. All data of this page is in it, as JSON: the script element secateur-data. "
        "FLOPs are multiply-accumulates of one image."
    )
