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

from ..reports.progress import RichReporter, printable
from ..reports.tables import costs_line
from .options import CONFIG_HELP, ConfigOption, Out, Overrides, RayAddress, TrustCode, names, wrote
from .studies import STUDIES

app = typer.Typer(
    name="secateur",
    help="Learn how much of each layer of a neural network to prune. [bold]train[/bold] an agent and get a ratio plan, "
    "[bold]apply[/bold] the plan, [bold]compare[/bold] it with hand-set ratios.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


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
        f"{costs_line(best)}"
    )
    wrote(reporter, done.folder, "plan.json", "summary.json", "episodes.jsonl", "plan.png", "quality.png")
    if not done.finished:
        raise typer.Exit(130)


@app.command("apply")
def apply_command(
    plan: Annotated[Path | None, typer.Argument(help="A plan.json, or the run folder that holds it.")] = None,
    finetune: Annotated[
        int | None, typer.Option("--finetune", min=0, help="Epochs in all. [default: the config's finetune.epochs]")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            help="one_shot, iterative, gradual, rewind, scratch_e, scratch_b. [default: finetune.schedule]",
        ),
    ] = None,
    out: Out = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the one in this folder.")] = None,
    config: ConfigOption = None,
    overrides: Overrides = None,
    trust_code: TrustCode = False,
) -> None:
    """Apply a plan: a smaller network, repaired, fine-tuned, measured and saved.

    Example: secateur apply runs/r20/plan.json --finetune 10 --out small

    It learns from the dense network and keeps the epoch that is best on the search images. secateur.load("small") gives
    the network back in Python. What was interrupted goes on: secateur apply --resume small
    """
    from .apply import apply
    from .session import Session

    reporter = RichReporter()
    session = Session(config, overrides=overrides or (), reporter=reporter, trust_code=trust_code)
    done = apply(plan, session, finetune=finetune, schedule=schedule, out=out, resume=resume)
    wrote(reporter, done.folder, "weights.safetensors", "network.json", "summary.json", "plan.png")


@app.command("compare")
def compare_command(
    plans: Annotated[list[Path] | None, typer.Argument(help="Plans or run folders.")] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Allocators, comma-separated; a wrong name lists all.")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option("--candidates", min=1, help="For every search. [default: as many as the plan's own]")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Of allocators that draw, and of trainings.")] = 1,
    finetune: Annotated[int, typer.Option("--finetune", min=0, help="Epochs, the same for every row.")] = 0,
    schedules: Annotated[
        str, typer.Option("--schedules", help="With --finetune: every plan is trained by each, comma-separated.")
    ] = "one_shot",
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
        against=None if against is None else names(against),
        candidates=candidates,
        seeds=range(seeds),
        finetune=finetune,
        schedules=names(schedules),
        out=out,
        resume=resume,
    )
    wrote(reporter, done.folder, "compare.json", "compare.png", "candidates.jsonl")


@app.command("plan")
def plan_command(
    policy: Annotated[Path, typer.Argument(help="A run folder, or its policy.safetensors.")],
    flops: Annotated[float | None, typer.Option("--flops", help="The budget: a fraction of the FLOPs.")] = None,
    params: Annotated[float | None, typer.Option("--params", help="The budget: a fraction of the parameters.")] = None,
    latency: Annotated[float | None, typer.Option("--latency", help="The budget: of the measured latency.")] = None,
    size: Annotated[float | None, typer.Option("--size", help="The budget: of the bytes stored.")] = None,
    bops: Annotated[float | None, typer.Option("--bops", help="The budget: of the bit operations.")] = None,
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
    done = plan(policy, session, flops=flops, params=params, latency=latency, size=size, bops=bops, out=out)
    wrote(reporter, done.folder, "plan.json", "plan.png")


for name, command in STUDIES.items():
    app.command(name)(command)


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
