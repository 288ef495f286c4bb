"""The console script's commands that look at a network and at the search, and change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ..reports.progress import RichReporter
from .options import CONFIG_HELP, Json, Out, Overrides, TrustCode, fractions, names, reporter_of, sizes, wrote


def inspect_command(
    model: Annotated[
        str | None,
        typer.Argument(
            help=f"{CONFIG_HELP} Or a network (cifar_resnet20, torchvision:NAME, timm:NAME, package.module:callable), "
            "a run folder, or one that apply wrote. [default: the embedded config, digits]"
        ),
    ] = None,
    shape: Annotated[str | None, typer.Option("--input", help="Of one image: 3x224x224.")] = None,
    latency: Annotated[bool, typer.Option("--latency", help="Measure it, too: seconds to minutes.")] = False,
    as_json: Json = False,
    overrides: Overrides = None,
    trust_code: TrustCode = False,
) -> None:
    """Show a network's layers: units, choices, costs, what is coupled, what is left whole, what a budget can ask.

    Example: secateur inspect torchvision:resnet18 --input 3x224x224 --set method=weights

    Nothing is trained or downloaded, and nothing is written.
    """
    from .inspect import inspect, session_of

    reporter = None if as_json else RichReporter()
    session = session_of(model, overrides or (), trust_code=trust_code, reporter=reporter)
    found = inspect(session, input_shape=None if shape is None else sizes("--input", shape), latency=latency)
    if as_json:
        typer.echo(json.dumps(found.as_json()))


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
    as_json: Json = False,
    trust_code: TrustCode = False,
) -> None:
    """Cut one layer at a time and draw what is lost by criterion and sparsity, on images the repair has not seen.

    Example: secateur sensitivity cifar10-resnet56 --set data.root=DIR --criteria first_k,max_response,lasso,obs
    """
    from .sensitivity import sensitivity
    from .session import Session

    reporter = reporter_of(as_json=as_json)
    done = sensitivity(
        Session(config, overrides=overrides or (), reporter=reporter, trust_code=trust_code),
        layers=None if layers is None else names(layers),
        criteria=None if criteria is None else names(criteria),
        sparsities=None if sparsities is None else fractions("--sparsities", sparsities),
        repair=repair,  # type: ignore[arg-type]  # checked there, with the near miss
        out=out,
    )
    wrote(reporter, done.folder, "sensitivity.json", "sensitivity.png", as_json=as_json)


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
    as_json: Json = False,
    trust_code: TrustCode = False,
) -> None:
    """Draw the filters that look at the image in the order of removal, with the colour selectivity of each.

    Example: secateur filters cifar10-resnet20 --set data.root=DIR --criterion car --out filters
    """
    from .filters import filters
    from .session import Session

    reporter = reporter_of(as_json=as_json)
    done = filters(
        Session(config, overrides=overrides or (), reporter=reporter, trust_code=trust_code),
        layer=layer,
        criterion=criterion,
        first=first,
        threshold=threshold,
        out=out,
    )
    wrote(reporter, done.folder, "filters.json", "filters.png", as_json=as_json)


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
    as_json: Json = False,
    trust_code: TrustCode = False,
) -> None:
    """Measure random plans by what a search looks at and by what counts in the end, and correlate the two.

    Example: secateur correlate cifar10-resnet20 --set data.root=DIR --plans 50 --finetune-plans 15 --finetune 1

    Ctrl-C keeps what was evaluated; --resume goes on.
    """
    from .correlate import correlate
    from .session import Session

    reporter = reporter_of(as_json=as_json)
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
    wrote(reporter, done.folder, "correlate.json", "correlate.png", "rows.jsonl", as_json=as_json)


def export_command(
    run: Annotated[Path, typer.Argument(help="A folder that secateur apply wrote.")],
    format: Annotated[
        str,
        typer.Option(
            "--format", help="onnx, openvino, pt2, safetensors, packed, or a runtime as package.module:callable."
        ),
    ] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="Also a file of 8-bit integers, its ranges from the calibration images.")
    ] = False,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="The file takes pixels in [0, 1] and normalises them itself.")
    ] = False,
    fold_norms: Annotated[
        bool, typer.Option("--fold-norms", help="Packed: running statistics of batch norms go into their weights.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            min=0.0,
            help="The most that outputs may differ, over their standard deviation. [default: 1e-4 at the largest; "
            "0.25 on average of 8-bit files]",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="A folder of images to check on, in place of the run's data set.")
    ] = None,
    out: Out = None,
    config: Annotated[
        str | None, typer.Option("--config", help=CONFIG_HELP + " [default: the config in the folder]")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
    trust_code: TrustCode = False,
) -> None:
    """Export a compressed network: a file for a runtime, checked there on real images, with a model card.

    Example: secateur export small --format onnx --int8 --normalise --out deploy

    A file that computes something else than the network is refused. Needs pip install 'secateur[onnx]' or
    'secateur[openvino]' for those two.
    """
    from .export import export
    from .session import Session

    reporter = reporter_of(as_json=as_json)
    session = Session(config, overrides=overrides or (), reporter=reporter, trust_code=trust_code)
    done = export(
        run,
        session,
        format=format,
        int8=int8,
        normalise=normalise,
        fold_norms=fold_norms,
        tolerance=tolerance,
        images=images,
        out=out,
    )
    files = [row["file"] for row in done.report["files"].values()]
    wrote(reporter, done.folder, "export.json", "README.md", *files, as_json=as_json)


def report_command(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The page. [default: report.html in the run's folder, of several runs: here]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page of a run, or of several; it opens offline, in any browser.

    Example: secateur report runs/r20 runs/r20-small --out r20.html

    Finished runs that have no report.html get one.
    """
    from .report import report

    path = report(*folders, out=out)
    reporter_of(as_json=as_json).say(f"  {path}")
    if as_json:
        typer.echo(json.dumps({"page": str(path)}))


STUDIES: dict[str, Callable[..., None]] = {
    "inspect": inspect_command,
    "sensitivity": sensitivity_command,
    "filters": filters_command,
    "correlate": correlate_command,
    "export": export_command,
    "report": report_command,
}
