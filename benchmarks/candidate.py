"""Time of a candidate of the search, in forward passes of the same pruned network over the same images.

python benchmarks/candidate.py    (random weights and images: time does not depend on what they are)

A candidate is pruned (half of every layer), repaired (sequential, producers re-fitted, on 100 images: the defaults),
evaluated on the search images, and learned from (an episode of the DDPG learner with its default settings, whose
evaluator costs nothing). The unit is what a bare forward pass of the shrunk network takes: eager, channels last,
batches of 100. CPU seconds on one thread, the least of the repeats, all measured in turn in one process a row.

The naive candidate is what a straightforward evaluator does, after the existing tools: a deep copy of the dense
network; the moments of the inputs of every layer collected anew with a pass of the same 100 images, and the surviving
weights re-fitted to them; those written back into the copy, with zeros where channels went; a plain forward pass of
this network of dense shape. (Official AMC solves by scikit-learn on raw samples instead, ten times slower, and repairs
no producers; this one does not either.)
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from common import header, table
from torch import nn

from secateur.agents.learner import Learner
from secateur.configs import Repair
from secateur.configs.schema import AgentConfig, NetworkConfig, SearchRepair
from secateur.envs import CandidateEvaluator, Evaluation, LayerSparsityEnv
from secateur.envs.observation import layer_statistics
from secateur.networks import build_network
from secateur.networks.inference import Batches, channels_last, logits
from secateur.pruners import Budget, Compressor, Context, Kept
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.slices import ChannelStructure
from secateur.pruners.context import consumers
from secateur.pruners.repair.batchnorm import adapt_batchnorm
from secateur.pruners.repair.gram import collect_moments, repair_from_moments

REPAIR = SearchRepair()
REPAIR_IMAGES = REPAIR.images or 100
NOTHING = Repair(kind="none", guard=False)


@dataclass(frozen=True)
class Case:
    """A row: which network, how wide, on which images."""

    label: str
    network: str
    size: int = 32
    images: int = 1000
    width: float = 1.0
    whole: bool = True

    def build(self) -> nn.Module:
        kwargs = {"widths": [round(self.width * w) for w in (16, 32, 64)]} if self.width != 1.0 else {}
        name = "secateur.networks.cifar_resnet:CifarResNet" if kwargs else self.network
        blocks = {"blocks": (int(self.network.removeprefix("cifar_resnet")) - 2) // 6} if kwargs else {}
        config = NetworkConfig.model_construct(name=name, num_classes=10, kwargs=kwargs | blocks)
        return build_network(config, seed=0, trust_code=True)


NETWORKS = [
    Case("ResNet-20, 32×32", "cifar_resnet20"),
    Case("ResNet-56, 32×32", "cifar_resnet56"),
    Case("MobileNetV2, 64×64", "torchvision:mobilenet_v2", 64),
    Case("VGG-16-BN, 64×64", "torchvision:vgg16_bn", 64),
]
GROWTH = [
    *(Case(f"ResNet-{depth}", f"cifar_resnet{depth}") for depth in (20, 32, 56, 110)),
    *(Case(f"ResNet-20, {n:,} images", "cifar_resnet20", images=n) for n in (250, 500, 2000)),
    *(Case(f"ResNet-20, {w:g} × the channels", "cifar_resnet20", width=w) for w in (0.5, 2.0, 4.0)),
    *(Case(f"MobileNetV2, {size}×{size} images", "torchvision:mobilenet_v2", size) for size in (128, 224)),
]
PARTS = ("prune", "repair", "adaptive_bn", "evaluate", "agent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose label contains this")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    print(f"half of every layer cut; repair on {REPAIR_IMAGES} images; CPU seconds, the least of {args.repeats}\n")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as alone:  # a process a row: its peak memory is its own

        def rows(cases: list[Case]) -> list[dict[str, float]]:
            return list(alone.map(measure, cases, [args.repeats] * len(cases)))

        chosen = [case for case in NETWORKS if args.only in case.label]
        found = rows(chosen)
        head = ["network", "bare pass, s", *(p.replace("adaptive_bn", "adaptive BN, if asked for") for p in PARTS)]
        head += ["candidate", "naive", "features, MB", "peak memory, MB"]
        print(table(head, [[case.label, *_cells(row)] for case, row in zip(chosen, found, strict=True)]) + "\n")
        chosen = [dataclasses.replace(case, whole=False) for case in GROWTH if args.only in case.label]
        found = rows(chosen)
        head = ["network", "layers", "bare pass, s", "candidate, s", "candidate", "features, MB", "peak memory, MB"]
        lines = []
        for case, row in zip(chosen, found, strict=True):
            own = (row["bare"], row["candidate"] * row["bare"], row["candidate"])
            figures = [f"{row['layers']:.0f}", *(f"{value:.2f}" for value in own)]
            lines.append([case.label, *figures, f"{row['features']:.0f}", f"{row['peak']:.0f}"])
        print(table(head, lines))


def _cells(row: dict[str, float]) -> list[str]:
    ratios = [f"{row[name]:.2f}" for name in (*PARTS, "candidate", "naive")]
    return [f"{row['bare']:.2f}", *ratios, f"{row['features']:.0f}", f"{row['peak']:.0f}"]


def measure(case: Case, repeats: int) -> dict[str, float]:
    """Ratios to the bare pass, by part, and megabytes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = case.build()
    images = torch.randn(REPAIR_IMAGES + case.images, 3, case.size, case.size)
    batches = [(x, torch.zeros(len(x), dtype=torch.long)) for x in images.split(100)]
    calibration, search = batches[:1], batches[1:]
    adapt_batchnorm(model, calibration)  # a fresh network's features fade away otherwise, down to denormal numbers
    structure = find_layers(model, (3, case.size, case.size))
    compressor = Compressor(Context(model, structure, calibration, "l1"))
    evaluator = CandidateEvaluator(compressor, search, REPAIR)
    kept = np.maximum(1, structure.units // 2)
    pruned = compressor(kept, REPAIR)
    bare = compressor(kept, NOTHING)
    for parameter in bare.parameters():
        parameter.data = channels_last(parameter.data)

    def candidate() -> None:
        evaluator.known.clear()
        evaluator.evaluate(kept)

    timed: dict[str, Callable[[], object]] = {
        "bare": lambda: logits(bare, evaluator.search),
        "candidate": candidate,
        "evaluate": lambda: evaluator.measure(pruned, kept),
        "prune": lambda: compressor(kept, NOTHING),
        "adaptive_bn": lambda: adapt_batchnorm(bare, calibration),
    }
    seconds = dict.fromkeys(timed, float("inf"))
    for _ in range(repeats):
        for name, part in timed.items():
            seconds[name] = min(seconds[name], _cpu(part))
    seconds["repair"] = seconds["candidate"] - seconds["evaluate"] - seconds["prune"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if case.whole:
        seconds["naive"] = min(_cpu(lambda: naive(compressor, structure, kept, search)) for _ in range(2))
    seconds["agent"] = episode(compressor)
    seconds["candidate"] += seconds["agent"]
    ratios = {name: value / seconds["bare"] for name, value in seconds.items() if name != "bare"}
    features = compressor.sequential(REPAIR_IMAGES, REPAIR.samples).bytes / 2**20
    return {**ratios, "bare": seconds["bare"], "layers": len(kept), "features": features, "peak": peak}


def naive(compressor: Compressor, structure: ChannelStructure, kept: Kept, search: Batches) -> torch.Tensor:
    """The logits of a candidate the straightforward way; see the module's docstring."""
    dense, compressed = copy.deepcopy(compressor.dense), compressor.compress(kept)
    moments = collect_moments(dense, consumers(structure), compressor.context.calibration)
    repair_from_moments(compressed, dense, moments)
    masked = copy.deepcopy(compressor.masked(kept))
    stays = {(entry["tensor"], entry["dim"]): entry["positions"] for entry in compressed.recipe["kept"]}
    tensors = compressed.model.state_dict()
    for name, tensor in masked.state_dict().items():
        places = [stays.get((name, dim), np.arange(size)) for dim, size in enumerate(tensor.shape)]
        tensor.numpy()[np.ix_(*places)] = tensors[name].numpy()
    return logits(masked, search)


def episode(compressor: Compressor) -> float:
    """CPU seconds of the agent: walk the layers, store, learn; the least of three episodes after the first."""

    class Free:
        dense = Evaluation(100.0, 0.0, 1.0, 1.0)

        def evaluate(self, kept: np.ndarray) -> Evaluation:
            return Evaluation(50.0, 0.5, 0.5, 0.5)

        def evaluate_all(self, plans: Sequence[np.ndarray]) -> list[Evaluation]:
            return [self.evaluate(kept) for kept in plans]

    budget, statistics = Budget(compressor.structure, "flops", 0.5, 0.9), layer_statistics(compressor.context)
    env = LayerSparsityEnv(budget, Free(), statistics)
    learner = Learner(env, AgentConfig(warmup=1, episodes=5), seed=0)
    walk = learner.run()
    next(walk), next(walk)
    return min(_cpu(lambda: next(walk)) for _ in range(3))


def _cpu(part: Callable[[], object]) -> float:
    start = time.process_time()
    part()
    return time.process_time() - start


if __name__ == "__main__":
    main()
