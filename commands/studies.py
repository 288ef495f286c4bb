"""The console script's commands that look at a network and at the search, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ..reports.progress import RichReporter
from .options import CONFIG_HELP, Out, Overrides, TrustCode, fractions, names, wrote


def sensitivity_command(
    config: Annotated[str | None, typer.Argument(help=CONFIG_HELP + " [default: the embedded one, digits]")] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Comma-separated. [default: three spread over the depth]")
    ] = None,
    criteria: Annotated[
        str | None, typer.Option("--criteria", help="Comma-separated. [default: the baselines, lasso and obs]")
    ] = None,
    sparsities: Annotated[
        str | None,
        typer.Option("--sparsities", help="Fractions removed, comma-separated. [default: 0.125 to 0.875 in eighths]"),
    ] = None,
    repair: Annotated[str, typer.Option("--repair", help="gram: least squares; none.")] = "gram",
    out: Out = None,
    overrides: Overrides = None,
    trust_code: TrustCode = False,
) -> None:
    """Cut one layer at a time and draw what is lost by criterion and sparsity, on images the repair has not seen.

    Example: secateur sensitivity cifar10-resnet56 --set data.root=DIR --criteria first_k,max_response,lasso,obs
    """
    from .sensitivity import sensitivity
    from .session import Session

    reporter = RichReporter()
    done = sensitivity(
        Session(config, overrides=overrides or (), reporter=reporter, trust_code=trust_code),
        layers=None if layers is None else names(layers),
        criteria=None if criteria is None else names(criteria),
        sparsities=None if sparsities is None else fractions("--sparsities", sparsities),
        repair=repair,  # type: ignore[arg-type]  # checked there, with the near miss
        out=out,
    )
    wrote(reporter, done.folder, "sensitivity.json", "sensitivity.png")


def filters_command(
    config: Annotated[str | None, typer.Argument(help=CONFIG_HELP + " [default: the embedded one, digits]")] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="[default: the first convolution]")] = None,
    criterion: Annotated[str, typer.Option("--criterion", help="car or rar.")] = "car",
    first: Annotated[
        int | None, typer.Option("--first", min=1, help="Removals that count as the first. [default: half]")
    ] = None,
    threshold: Annotated[float, typer.Option("--threshold", help="Of colour selectivity.")] = 0.5,
    out: Out = None,
    overrides: Overrides = None,
    trust_code: TrustCode = False,
) -> None:
    """Draw the filters that look at the image in the order of removal, with the colour selectivity of each.

    Example: secateur filters cifar10-resnet20 --set data.root=DIR --criterion car --out filters
    """
    from .filters import filters
    from .session import Session

    reporter = RichReporter()
    done = filters(
        Session(config, overrides=overrides or (), reporter=reporter, trust_code=trust_code),
        layer=layer,
        criterion=criterion,
        first=first,
        threshold=threshold,
        out=out,
    )
    wrote(reporter, done.folder, "filters.json", "filters.png")


def correlate_command(
    config: Annotated[str | None, typer.Argument(help=CONFIG_HELP + " [default: the embedded one, digits]")] = None,
    plans: Annotated[int | None, typer.Option("--plans", help="Random plans to evaluate. [default: 50]")] = None,
    finetune_plans: Annotated[
        int | None, typer.Option("--finetune-plans", help="The first so many are fine-tuned. [default: 15]")
    ] = None,
    finetune: Annotated[
        int | None, typer.Option("--finetune", help="Epochs. [default: 0, no fine-tuning]", min=0)
    ] = None,
    out: Out = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with the interrupted run in this folder.")
    ] = None,
    overrides: Overrides = None,
    trust_code: TrustCode = False,
) -> None:
    """Measure random plans by what a search looks at and by what counts in the end, and correlate the two.

    Example: secateur correlate cifar10-resnet20 --set data.root=DIR --plans 50 --finetune-plans 15 --finetune 1

    Ctrl-C keeps what was evaluated; --resume goes on.
    """
    from .correlate import correlate
    from .session import Session

    reporter = RichReporter()
    if resume is not None and (config is not None or overrides):
        raise ValueError("--resume takes config, folder and numbers of plans from the run itself: leave them out")
    done = correlate(
        Session(config, overrides=overrides or (), reporter=reporter, trust_code=trust_code),
        plans=plans,
        finetune_plans=finetune_plans,
        finetune=finetune,
        out=out,
        resume=resume,
    )
    wrote(reporter, done.folder, "correlate.json", "correlate.png", "rows.jsonl")


def report_command(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The page. [default: report.html in the run's folder, of several runs: here]"),
    ] = None,
) -> None:
    """Write one HTML page of a run, or of several; it opens offline, in any browser.

    Example: secateur report runs/r20 runs/r20-small --out r20.html

    Finished runs that have no report.html get one.
    """
    from .report import report

    RichReporter().say(f"  {report(*folders, out=out)}")


STUDIES: dict[str, Callable[..., None]] = {
    "sensitivity": sensitivity_command,
    "filters": filters_command,
    "correlate": correlate_command,
    "report": report_command,
}
