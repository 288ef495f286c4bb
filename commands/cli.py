"""The console script. Every command is a function of `secateur` with the same name; here are only its options."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..configs import builtin_configs
from ..reports.progress import RichReporter, printable

app = typer.Typer(
    name="secateur",
    help="Learn how much of each layer of a neural network to prune. [bold]train[/bold] an agent and get a ratio plan, "
    "[bold]apply[/bold] the plan, [bold]compare[/bold] it with hand-set ratios.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)

CONFIG_HELP = f"A built-in config ({', '.join(builtin_configs())}) or a YAML file."
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override the config: --set budget.flops=0.4")
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", help="Evaluate candidates on a Ray cluster: auto, HOST:PORT, or local to start one."),
]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-code", help="Run the code that is named as package.module:callable: a network, a method, …"),
]
Out = Annotated[Path | None, typer.Option("--out", help="A new or empty folder to write to.")]
ConfigOption = Annotated[
    str | None, typer.Option("--config", help=CONFIG_HELP + " [default: the config beside the plan]")
]


@app.command("train")
def train_command(
    config: Annotated[str | None, typer.Argument(help=CONFIG_HELP + " [default: the embedded one, digits]")] = None,
    overrides: Overrides = None,
    out: Out = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the search.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder.")] = None,
    ray_address: RayAddress = None,
    trust_code: TrustCode = False,
) -> None:
    """Train the agent for a network and write the best ratio plan it finds.

    Example: secateur train cifar10-resnet20 --set data.root=DIR --set budget.flops=0.5 --out runs/r20

    The run folder holds plan.json, policy.safetensors, episodes.jsonl (a line an episode), summary.json, config.yaml,
    TensorBoard events and two figures. Ctrl-C keeps what was found; --resume goes on, after a crash too.
    --set workers=N evaluates N candidates at a time.
    """
    from .session import Session
    from .train import train

    reporter = RichReporter()
    if resume is not None and (config is not None or out is not None):
        raise ValueError("--resume takes network, images and folder from the run itself: leave CONFIG and --out out")
    session = Session(
        config, overrides=overrides or (), seed=seed, ray_address=ray_address, reporter=reporter, trust_code=trust_code
    )
    done = train(session, out=out, resume=resume)
    best, base = done.summary["best"], done.summary["base"]
    reporter.say(
        f"best plan: episode {best['episode']}, search accuracy {best['search_accuracy']:.2f} % "
        f"(base plan {base['search_accuracy']:.2f} %, dense {done.summary['dense']['search_accuracy']:.2f} %), "
        f"{100 * best['flops']:.1f} % of the FLOPs"
        + (f", {100 * best['latency']:.1f} % of the latency by the table" if "latency" in best else "")
    )
    _wrote(reporter, done.folder, "plan.json", "summary.json", "episodes.jsonl", "plan.png", "quality.png")
    if not done.finished:
        raise typer.Exit(130)


@app.command("apply")
def apply_command(
    plan: Annotated[Path | None, typer.Argument(help="A plan.json, or the run folder that holds it.")] = None,
    finetune: Annotated[
        int | None, typer.Option("--finetune", min=0, help="Epochs. [default: the config's finetune.epochs]")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option("--schedule", help="one_shot, or gradual: tighten masks while training. [default: one_shot]"),
    ] = None,
    out: Out = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the one in this folder.")] = None,
    config: ConfigOption = None,
    overrides: Overrides = None,
    trust_code: TrustCode = False,
) -> None:
    """Apply a plan: a smaller network, repaired, fine-tuned, measured and saved.

    Example: secateur apply runs/r20/plan.json --finetune 10 --out small

    secateur.load("small") gives the network back in Python. What was interrupted goes on: secateur apply --resume small
    """
    from .apply import apply
    from .session import Session

    reporter = RichReporter()
    session = Session(config, overrides=overrides or (), reporter=reporter, trust_code=trust_code)
    done = apply(plan, session, finetune=finetune, schedule=schedule, out=out, resume=resume)
    _wrote(reporter, done.folder, "weights.safetensors", "network.json", "summary.json", "plan.png")


@app.command("compare")
def compare_command(
    plans: Annotated[list[Path] | None, typer.Argument(help="Plans or run folders.")] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Allocators, comma-separated; a wrong name lists all.")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option("--candidates", min=1, help="For every search. [default: as many as the plan's own]")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Rows of every allocator that draws.")] = 1,
    finetune: Annotated[int, typer.Option("--finetune", min=0, help="Epochs, the same for every row.")] = 0,
    out: Out = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with the interrupted comparison in this folder.")
    ] = None,
    ray_address: RayAddress = None,
    config: ConfigOption = None,
    overrides: Overrides = None,
    trust_code: TrustCode = False,
) -> None:
    """Compare plans with other allocators, rules and searches: same cost, same repair, same images.

    Example: secateur compare runs/r20/plan.json --against uniform,threshold,lamp,random,hill_climb

    Without a plan: secateur compare --config cifar10-resnet20 --set data.root=DIR --against uniform,deep
    """
    from .compare import compare
    from .session import Session

    if not plans and config is None and resume is None:
        raise ValueError("nothing to compare: give a plan, or --config")
    if resume is not None and (config is not None or overrides or out is not None):
        raise ValueError(
            "--resume takes config and folder from the comparison itself: leave --config, --set, --out out"
        )
    reporter = RichReporter()
    done = compare(
        plans or (),
        Session(config, overrides=overrides or (), ray_address=ray_address, reporter=reporter, trust_code=trust_code),
        against=None if against is None else _names(against),
        candidates=candidates,
        seeds=range(seeds),
        finetune=finetune,
        out=out,
        resume=resume,
    )
    _wrote(reporter, done.folder, "compare.json", "compare.png", "candidates.jsonl")


@app.command("plan")
def plan_command(
    policy: Annotated[Path, typer.Argument(help="A run folder, or its policy.safetensors.")],
    flops: Annotated[float | None, typer.Option("--flops", help="The budget: a fraction of the FLOPs.")] = None,
    params: Annotated[float | None, typer.Option("--params", help="The budget: a fraction of the parameters.")] = None,
    latency: Annotated[float | None, typer.Option("--latency", help="The budget: of the measured latency.")] = None,
    out: Out = None,
    config: Annotated[
        str | None, typer.Option("--config", help=CONFIG_HELP + " [default: the config beside the policy]")
    ] = None,
    overrides: Overrides = None,
    trust_code: TrustCode = False,
) -> None:
    """Ask a trained policy for a plan: any budget, also another network; no candidate is evaluated.

    Example: secateur plan runs/r20 --flops 0.4

    A policy that was trained with --set agent.budgets=[0.3,0.7] has seen all budgets in between.
    """
    from .plan import plan
    from .session import Session

    reporter = RichReporter()
    session = Session(config, overrides=overrides or (), reporter=reporter, trust_code=trust_code)
    done = plan(policy, session, flops=flops, params=params, latency=latency, out=out)
    _wrote(reporter, done.folder, "plan.json", "plan.png")


@app.command("sensitivity")
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
        layers=None if layers is None else _names(layers),
        criteria=None if criteria is None else _names(criteria),
        sparsities=None if sparsities is None else _fractions(sparsities),
        repair=repair,  # type: ignore[arg-type]  # checked there, with the near miss
        out=out,
    )
    _wrote(reporter, done.folder, "sensitivity.json", "sensitivity.png")


@app.command("filters")
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
    _wrote(reporter, done.folder, "filters.json", "filters.png")


@app.command("correlate")
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
    _wrote(reporter, done.folder, "correlate.json", "correlate.png", "rows.jsonl")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _fractions(text: str) -> list[float]:
    try:
        return [float(part) for part in _names(text)]
    except ValueError:
        raise ValueError(f"--sparsities {text}: numbers separated by commas, as in 0.25,0.5,0.75") from None


def _version(show: bool) -> None:
    if show:
        typer.echo(metadata.version("secateur"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _wrote(reporter: RichReporter, folder: Path, *names: str) -> None:
    for name in names:
        if (folder / name).exists():
            reporter.say(f"  {folder / name}")


def main() -> None:
    """Run a command; a user's mistake ends in one line and exit code 2 (SECATEUR_DEBUG=1 shows where)."""
    warnings.formatwarning = lambda message, *_where, **_line: f"warning: {message}\n"
    try:
        app()
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped")
        sys.exit(130)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("SECATEUR_DEBUG"):
            raise
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(2)
