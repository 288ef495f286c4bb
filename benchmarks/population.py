"""A population of small networks, and what plans for them lose: the experience a policy for any network learns from.

python benchmarks/population.py --data DIR --fashion DIR --out DIR    (twenty minutes; what is there is not made again)

`--data DIR` holds `cifar10/`; `--fashion DIR` the four files of Fashion-MNIST as its authors pack them (Debian's
package dataset-fashion-mnist has them in /usr/share/datasets/fashion-mnist). The networks are those of `--recipes`
(`population.yaml` beside this file: an example of one's own). Each is trained and kept in a folder of its own, with its
config; then plans of the loss model, whose factors are mistaken at random, are evaluated at several budgets as a search
does it, and logged there (`candidates.jsonl`). `--depths 20 56` adds those of He et al.'s ResNets whose weights are in
`DIR/weights/`.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import cifar_config, header, table
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

import secateur
from secateur import Session
from secateur.agents.log import CANDIDATES_NAME, CandidateLog
from secateur.commands.fingerprints import of_comparison
from secateur.commands.loading import DENSE_NAME
from secateur.configs.load import check_config
from secateur.pruners.budget import Budget
from secateur.pruners.loss_model import LossModel, best_steps
from secateur.pruners.structure import Kept
from secateur.storage.folders import whole_folder
from secateur.storage.reading import parse_yaml, read_text, validated

RECIPES = Path(__file__).with_name("population.yaml")
BUDGETS = (0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)
MISTAKES = (0.3, 1.2)  # standard deviation of a factor's logarithm, drawn evenly from there
SIDES = {"train": ("train", 12_000), "test": ("t10k", 4_000)}  # of Fashion-MNIST: its name there, images that are taken


class Recipes(BaseModel):
    """A file of them; what its trees hold is checked as configs."""

    model_config = ConfigDict(extra="forbid")

    common: dict[str, Any]
    data: dict[str, dict[str, Any]]
    families: dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Recipe:
    """A network that is to be trained, or is already.

    Attributes:
        name: of its folder.
        family: that it is left out with.
        config: of its session.
    """

    name: str
    family: str
    config: secateur.Config

    def trained(self, out: Path) -> bool:
        """Whether its weights are there."""
        network = self.config.network
        return (out / self.name / DENSE_NAME).exists() or (network is not None and network.weights is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_population(parser)
    parser.add_argument("--plans", type=int, default=10, help="a budget")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    rows = []
    for recipe in recipes_of(args):
        began = time.process_time()
        session = ready(recipe, args.out)
        trained = time.process_time() - began
        log = experience(session, args.out / recipe.name, args.plans)
        accuracy = f"{session.evaluator.dense.accuracy:.1f}"
        seconds = [f"{trained:.0f}", f"{time.process_time() - began - trained:.0f}"]
        rows.append([recipe.family, recipe.name, f"{len(session.structure.layers)}", accuracy, f"{log}", *seconds])
        print(*rows[-1], flush=True)
    print(table(["family", "network", "layers", "search top-1", "plans", "s trained", "s evaluated"], rows))


def add_population(parser: argparse.ArgumentParser) -> None:
    """Options that say which population."""
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--recipes", type=Path, default=RECIPES)
    parser.add_argument("--out", type=Path, required=True, help="folder of the population")
    parser.add_argument("--families", nargs="+", help="these alone")
    parser.add_argument("--depths", type=int, nargs="*", default=[], help="of ResNets that are trained already")


def recipes_of(args: argparse.Namespace) -> list[Recipe]:
    folder = args.out / "fashion-mnist"
    if not folder.exists() and "{FASHION}" in args.recipes.read_text(encoding="utf-8"):
        unpack(args.fashion, folder)
    found = read_recipes(args.recipes, {"{DATA}": args.data, "{FASHION}": folder}) + pretrained(args.depths, args.data)
    return [recipe for recipe in found if args.families is None or recipe.family in args.families]


def read_recipes(path: Path, places: Mapping[str, Path]) -> list[Recipe]:
    """The networks of a file of recipes, in its order.

    Raises:
        ValueError: it is no such file, or a recipe is no config.
    """
    text = read_text(path, 2**20)
    for name, place in places.items():
        text = text.replace(name, str(place))
    tree = validated(Recipes, parse_yaml(text, str(path)), str(path))
    found = []
    for family, networks in tree.families.items():
        for name, own in networks.items():
            if own.get("data") not in tree.data:
                raise ValueError(f"{path}: {name}.data = {own.get('data')!r}: one of {', '.join(tree.data)}")
            rest = {key: value for key, value in own.items() if key != "data"}
            whole = merged(merged(merged(tree.common, tree.data[own["data"]]), rest), {"name": name})
            found.append(Recipe(name, family, check_config(whole, f"{path}: {name}")))
    return found


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Of two trees, the second's values where both have one."""
    both = {key: merged(below[key], above[key]) for key in below.keys() & above.keys() if isinstance(below[key], dict)}
    return {**below, **above, **both}


def pretrained(depths: Sequence[int], data: Path) -> list[Recipe]:
    """The CIFAR-10 ResNets of those depths, whose weights are there."""
    return [Recipe(f"cifar10-resnet{depth}", "resnet", cifar_config(depth, data, "threads=1")) for depth in depths]


def ready(recipe: Recipe, out: Path) -> Session:
    """The network's session: trained already, gone on with, or trained now; kept in its folder."""
    folder = out / recipe.name
    session = Session(recipe.config, trust_code=True).beside(folder, spends=False)
    if not (folder / DENSE_NAME).exists():
        session.save(folder)
    return session


def experience(session: Session, folder: Path, plans: int) -> int:
    """Evaluate so many plans a budget and log them, as far as they are not there; how many there are."""
    known = of_comparison(session, [], ["mistaken"], 0, [0], 0, [])
    log = CandidateLog(folder / CANDIDATES_NAME, len(session.structure.layers), known)
    session.evaluator.known.update(log.known)
    for name, seed, kept in mistaken(session, plans):
        evaluation = session.evaluator.evaluate(kept)
        log.append(name, seed, kept, evaluation, session.weights.quality(evaluation))
    return len(session.evaluator.known)


def mistaken(session: Session, plans: int) -> Iterator[tuple[str, int, Kept]]:
    """Allocator, number and plan: at every budget the loss model's own, then those of mistaken factors."""
    losses = LossModel.of(session.context)
    for place, fraction in enumerate(BUDGETS):
        budget = affordable(session.budget, fraction)
        if budget is None:
            continue
        for number in range(plans):
            rng = np.random.default_rng((place, number))
            spread = rng.uniform(*MISTAKES) if number else 0.0
            factors = np.exp(rng.normal(0.0, 1.0, len(losses.factors)) * spread)
            kept = best_steps(budget, replace(losses, factors=factors).gains(budget))
            yield "mistaken" if number else "knapsack", number, kept


def affordable(budget: Budget, fraction: float) -> Budget | None:
    """That budget, if a plan can meet it."""
    try:
        return replace(budget, fraction=fraction)
    except ValueError:
        return None


def unpack(archives: Path, folder: Path) -> None:
    """Fashion-MNIST's files as an image folder, a folder a class."""
    with whole_folder(folder) as building:
        for side, (name, count) in SIDES.items():
            pixels = idx(archives / f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
            labels = idx(archives / f"{name}-labels-idx1-ubyte.gz", 8)
            for number, (image, label) in enumerate(zip(pixels[:count], labels[:count], strict=True)):
                path = building / side / str(label) / f"{number:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)


def idx(path: Path, header_bytes: int) -> NDArray[np.uint8]:
    """The bytes behind the header of an IDX file (LeCun, Cortes & Burges, the MNIST database)."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header_bytes)


if __name__ == "__main__":
    main()
