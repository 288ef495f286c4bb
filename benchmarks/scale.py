"""Set-up, memory and candidates of networks of real size: torchvision's, on images of 224×224.

python benchmarks/scale.py --data DIR    (random weights, made-up images: time does not depend on what they are)
python benchmarks/scale.py --data DIR --train resnet18 resnet50    (`secateur train` with 20 episodes, in one go)
python benchmarks/scale.py --data DIR --repair    (one sequential repair alone, on the calibration images)

The images are JPEG files in DIR, written at the first call, so that reading them is part of the set-up. Every row is a
process of its own with an empty cache. Set-up is all that comes before the first candidate, from the import on; a dense
pass is one over the calibration images, a bare pass one of the pruned network over the search images (eager, channels
last), both measured in the same process. CPU seconds: other work on the machine counts for little in them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from common import header, table
from PIL import Image

from secateur import Session
from secateur.commands.train import SUMMARY_NAME
from secateur.configs.schema import NetworkConfig, Repair
from secateur.networks import build_network
from secateur.networks.inference import Batches, channels_last, in_channels_last, logits
from secateur.pruners.channels.method import cut
from secateur.pruners.channels.slices import ChannelStructure
from secateur.pruners.repair.batchnorm import adapt_batchnorm
from secateur.pruners.repair.sensitivity import layer_sensitivity
from secateur.pruners.repair.sequential import SequentialRepair
from secateur.storage.files import write_tensors

NETWORKS = ["resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "efficientnet_b0"]
PARTS = ["import", "images", "structure", "moments", "curves", "sensitivity", "evaluator", "environment"]
NOTHING = Repair(kind="none", guard=False)
CLASSES = 10
HERE = Path(__file__).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder for made-up images and weights")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="torchvision's names")
    parser.add_argument("--train", nargs="*", default=None, help="train on these instead")
    parser.add_argument("--repair", action="store_true", help="measure one repair alone")
    parser.add_argument("--calibration", type=int, default=500)
    parser.add_argument("--search", type=int, default=1000)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--row", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.row:
        print(json.dumps(repair(args) if args.repair else measure(args)))
        return
    print(header())
    write_images(args)
    if args.train is not None:
        rows = [train(args, name) for name in args.train]
    else:
        print(f"{args.calibration} calibration and {args.search} search images; CPU seconds, {args.threads} thread\n")
        rows = [(repair_row if args.repair else row)(args, name) for name in args.networks]
    print(table(list(rows[0]), [[str(value) for value in found.values()] for found in rows]))


def row(args: argparse.Namespace, name: str) -> dict[str, str]:
    """A network's row, of the whole way to a candidate."""
    found = measured(args, name)
    setup = sum(found[part] for part in PARTS)
    seconds = {part: f"{found[part]:.0f}" for part in PARTS}
    return {
        "network": name,
        "layers": f"{found['layers']:.0f}",
        "dense pass, s": f"{found['dense']:.0f}",
        **seconds,
        "set-up, s": f"{setup:.0f}",
        "in dense passes": f"{setup / found['dense']:.1f}",
        "first candidate, s": f"{found['first']:.0f}",
        "candidate / bare pass": f"{found['candidate'] / found['bare']:.2f}",
        "peak at set-up, GB": f"{found['peak_setup']:.1f}",
        "peak, GB": f"{found['peak']:.1f}",
    }


def repair_row(args: argparse.Namespace, name: str) -> dict[str, str]:
    """A network's row, of one repair."""
    found = measured(args, name)
    return {
        "network": name,
        "dense pass, s": f"{found['dense']:.1f}",
        "repair, in dense passes": f"{found['repair'] / found['dense']:.2f}",
        "peak before, GB": f"{found['peak_setup']:.2f}",
        "peak, GB": f"{found['peak']:.2f}",
    }


def measured(args: argparse.Namespace, name: str) -> dict[str, float]:
    """The figures of a network, by a process of its own, so that its memory is its own."""
    write_weights(args, name)
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, str(HERE), *sys.argv[1:], "--row", name],
            env={**os.environ, "SECATEUR_CACHE": cache, "OMP_NUM_THREADS": str(args.threads)},
            stdout=subprocess.PIPE,
            check=True,
        )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def repair(args: argparse.Namespace) -> dict[str, float]:
    """CPU seconds and gigabytes of one repair, half of every layer cut, with the positions of a finished plan's."""
    session = Session(config(args, args.row))
    structure, final = session.structure, Repair()
    selection = [np.arange(0, layer.units, 2) for layer in structure.layers]
    found = {"peak_setup": peak()}
    images = in_channels_last(session.calibration)
    compressed = cut(session.model, cast(ChannelStructure, structure), selection)
    found["repair"] = _cpu(
        lambda: SequentialRepair(session.model, images, samples=final.samples)(compressed, refit=final.refit)
    )
    found["peak"] = peak()
    found["dense"] = _cpu(lambda: logits(session.model, images))
    return found


def measure(args: argparse.Namespace) -> dict[str, float]:
    """CPU seconds by part, and gigabytes."""
    found = {"import": time.process_time()}
    session = Session(config(args, args.row))

    def timed(part: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        done = work()
        found[part] = time.process_time() - start
        print(f"{args.row}: {part} {found[part]:.1f} s, peak {peak():.2f} GB", file=sys.stderr, flush=True)
        return done

    timed("images", lambda: session.calibration)
    structure = timed("structure", lambda: session.structure)
    context = timed("moments", lambda: session.context)
    found["moments"] += _cpu(lambda: context.moments)
    timed("curves", lambda: context.method.curves(context))
    timed("sensitivity", lambda: layer_sensitivity(context))
    evaluator = timed("evaluator", lambda: session.evaluator)
    timed("environment", session.env)
    found["peak_setup"] = peak()
    kept = np.maximum(1, structure.units // 2)
    timed("first", lambda: evaluator.evaluate(kept))
    evaluator.known.clear()
    timed("candidate", lambda: evaluator.evaluate(kept))
    found["peak"] = peak()
    bare = session.compressor(kept, NOTHING)
    for parameter in bare.parameters():
        parameter.data = channels_last(parameter.data)
    timed("bare", lambda: logits(bare, evaluator.search))
    timed("dense", lambda: logits(session.model, session.calibration))
    return {**found, "layers": len(structure.layers)}


def train(args: argparse.Namespace, name: str) -> dict[str, str]:
    """`secateur train` from start to plan: seconds by part as its summary has them, and peak memory."""
    write_weights(args, name)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"agent.episodes": 20, "seed": args.seed, "threads": args.threads}
        overrides = [f"--set={key}={value}" for key, value in settings.items()]
        started = time.perf_counter()
        done = subprocess.Popen(
            [sys.executable, "-m", "secateur", "train", config(args, name), "--out", f"{folder}/run", *overrides],
            env={**os.environ, "SECATEUR_CACHE": f"{folder}/cache"},
            stdout=sys.stderr,
        )
        _, status, usage = os.wait4(done.pid, 0)
        if status:
            raise SystemExit(f"secateur train {name} ended with status {status}")
        summary = json.loads((Path(folder) / "run" / SUMMARY_NAME).read_text(encoding="utf-8"))
        seconds = {part: f"{value:.0f}" for part, value in summary["seconds_per_part"].items()}
        return {
            "network": name,
            "episodes": str(summary["episodes"]),
            **seconds,
            "all, s": f"{time.perf_counter() - started:.0f}",
            "CPU s": f"{usage.ru_utime + usage.ru_stime:.0f}",
            "peak, GB": f"{usage.ru_maxrss / 2**20:.1f}",
        }


def config(args: argparse.Namespace, name: str) -> str:
    """The config file of a network."""
    path = args.data / f"{name}.yaml"
    path.write_text(
        f"name: {name}\nnetwork:\n  name: torchvision:{name}\n  num_classes: {CLASSES}\n"
        f"  weights: {weights(args, name)}\ndata:\n  name: folder\n  root: {images(args)}\n  image_size: {args.size}\n"
        f"  calibration: {args.calibration}\n  search: {args.search}\nbudget:\n  flops: 0.5\n",
        encoding="utf-8",
    )
    return str(path)


def weights(args: argparse.Namespace, name: str) -> Path:
    """Where a network's random weights lie."""
    return Path(args.data).resolve() / f"{name}-{args.size}.safetensors"


def images(args: argparse.Namespace) -> Path:
    """Where the made-up images lie."""
    return Path(args.data).resolve() / f"images-{args.size}-{args.calibration + args.search}-{args.test}"


def write_weights(args: argparse.Namespace, name: str) -> None:
    """Random ones, with batch-norm statistics of noise: a fresh network's features fade away to denormal numbers."""
    if weights(args, name).is_file():
        return
    model = build_network(
        NetworkConfig.model_construct(name=f"torchvision:{name}", num_classes=CLASSES, kwargs={}), seed=args.seed
    )
    generator = torch.Generator().manual_seed(args.seed)
    noise: Batches = [(torch.randn(8, 3, args.size, args.size, generator=generator), torch.zeros(8)) for _ in range(4)]
    adapt_batchnorm(model, noise)
    write_tensors(weights(args, name), {key: tensor.clone() for key, tensor in model.state_dict().items()})


def write_images(args: argparse.Namespace) -> None:
    """Smooth noise in every class's own colours, as JPEG files a little larger than what the network takes."""
    if images(args).is_dir():
        return
    rng = np.random.default_rng(args.seed)
    temporary = images(args).with_suffix(".part")
    for side, count in (("train", args.calibration + args.search), ("test", args.test)):
        for number in range(count):
            colours = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            colours[..., number % 3] //= 1 + number % CLASSES
            image = Image.fromarray(colours).resize((args.size + 32, args.size + 16), Image.Resampling.BICUBIC)
            path = temporary / side / f"{number % CLASSES}" / f"{number:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=90)
    temporary.rename(images(args))


def peak() -> float:
    """Gigabytes that the process has taken, at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _cpu(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
