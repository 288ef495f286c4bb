"""Files that were damaged, changed or exchanged: each is refused in a line that names it, or changes nothing.

python benchmarks/fuzz.py --mutations 1000 --seed 0

A tiny run is made once. Then its files, one at a time, are changed in their structure or in their bytes, and whoever
reads them is called in this process. What is printed: for every artefact, how many mutations ended how.

    refused     an error of one line that names the file
    same        accepted, and what came out is what comes out of the file as it was
    healed      a cache: computed anew, with a warning
    edit        accepted with another result, and the place says something that its owner may change
    WRONG       accepted with another result
    VAGUE       an error that does not name the file, or has several lines
    TRACEBACK   an error that the command line does not catch
    HANG        no end within the time limit
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

import secateur
from secateur.agents import SearchProblem
from secateur.agents.allocators.searches import random_plans
from secateur.agents.learner import Learner
from secateur.agents.log import CandidateLog, EpisodeLog, PlanLog, evaluation_of
from secateur.agents.policy import Policy
from secateur.commands.apply import session_for
from secateur.commands.compare import COMPARE_NAME
from secateur.commands.correlate import ROWS_NAME, _measure_all, _past, _Row
from secateur.commands.loading import load as load_session
from secateur.commands.sweep import finished
from secateur.configs import LatencyConfig, load_config
from secateur.configs.schema import DataConfig
from secateur.data import load_splits
from secateur.networks import digits_resnet, load_weights
from secateur.pruners.costs.latency_cache import LatencyCache
from secateur.pruners.saved import pack_network
from secateur.reports.html import page
from secateur.reports.run import read_run
from secateur.storage.cache import Store, digest
from secateur.storage.files import read_tensors, write_tensors
from secateur.storage.folders import claimed

TINY = (
    "network.pretrain.epochs=1",
    "data.calibration=60",
    "data.search=60",
    "data.test=60",
    "agent.episodes=3",
    "agent.warmup=1",
    "agent.rerank=1",
    "agent.hidden=[8]",
    "finetune.epochs=0",
)
SECONDS = 20  # that a mutation may take
CAUGHT = (ValueError, OSError, ImportError, RuntimeError)  # by the command line: see `secateur.commands.cli.main`
BAD = ("WRONG", "VAGUE", "TRACEBACK", "HANG")

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.5, 1e300, -1e300, 1e-320,
    math.nan, math.inf, -math.inf, "", " ", "0", "1", "nan", "x" * 20_000, "../../up", "/etc/passwd", "a\\b", "a\0b",
    "[red]x[/]", "[/]", "\x1b[2J", "a\nb", "\u202e", "\ud800", "é", "os:system", "{}", [], {}, [[]], [None], [1, 1],
    ["x"] * 50, {"": None}, {"a": {"b": []}}, [0.5, -1e308], list(range(2000)),
]  # fmt: skip


@dataclass(frozen=True)
class Artefact:
    """A file and who reads it.

    Attributes:
        name: in the table.
        source: folder that is copied for every mutation.
        file: in it, the one that is mutated.
        read: the copy → what came of it, comparable.
        kind: json, jsonl, yaml, tensors, bytes.
        free: places (regular expression) that say what their owner may change.
        without: files of the folder, by pattern, that are not copied.
    """

    name: str
    source: Path
    file: str
    read: Callable[[Path], Any]
    kind: str = "bytes"
    free: str = r"(?!)"
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a mutation ended, and what was said."""

    artefact: str
    mutation: str
    kind: str
    said: str = ""


class Hang(BaseException):
    """No end."""


# ---- what is mutated


def artefacts(run: Path, small: Path, session: secateur.Session, logs: Path | None = None) -> list[Artefact]:
    """All that a run and its applied plan consist of.

    Args:
        run: folder of a run that trained its network.
        small: folder of its applied plan.
        session: on the run's dense network.
        logs: folder of a comparison and a correlation on that session; none leaves them out.
    """
    structure, env = session.structure, session.env()
    probe = torch.linspace(0.0, 1.0, 64).reshape(1, 1, 8, 8)

    def numbers(model: torch.nn.Module) -> list[torch.Tensor]:
        return [t for t in model.state_dict().values() if t.dim()]  # batch norm's counters count for nothing

    def outputs(model: torch.nn.Module) -> Any:
        with torch.inference_mode():
            return digest([*numbers(model), model(probe)])

    def plan(folder: Path) -> Any:
        found = secateur.RatioPlan.load(folder)
        session_for([found], session, None, [folder / "plan.json"])
        return found.model_dump()

    def episodes(folder: Path) -> Any:
        log = EpisodeLog(folder / "episodes.jsonl")
        with claimed(folder, "train", "episodes.jsonl", new=False):
            past = log.read(len(structure.layers))
        evaluator = session.evaluator
        evaluator.known = {tuple(record["kept"]): evaluation_of(record) for record in past}
        learner = Learner(session.env(), session.config.agent, session.config.seed)
        found = []
        for episode in learner.run([record["actions"] for record in past]):
            if episode.number >= len(past):
                break
            log.check(episode, past[episode.number])
            found.append([episode.kept.tolist(), round(episode.quality, 3)])
        return found

    def candidates(folder: Path) -> Any:
        with claimed(folder, "compare", "candidates.jsonl", new=False):
            log = CandidateLog(folder / "candidates.jsonl", len(structure.layers))
        for (allocator, seed, kept), _ in log._written.items():
            evaluation = log.known[kept]
            log.append(allocator, seed, torch.tensor(kept).numpy(), evaluation, session.weights.quality(evaluation))
        return sorted(log.known.items())

    def dense(folder: Path) -> Any:
        return outputs(load_session(load_config(folder / "config.yaml"), folder=folder).model)

    def config(folder: Path) -> Any:
        return load_config(folder / "config.yaml").model_dump()

    def entry(folder: Path) -> Any:
        return digest(Store(folder / "key").get("a", lambda: {"x": torch.arange(5.0)}).values())

    def images(folder: Path) -> Any:
        config = DataConfig(name="folder", root=folder, calibration=2, search=2, mean=[0.5], std=[0.5])
        return digest([load_splits(config, num_classes=2).calibration.pixels])

    def times(folder: Path) -> Any:
        with cache_in(folder):
            cache = LatencyCache(torch.device("cpu"), LatencyConfig(batch=1))
            return cache.times or {"a": 1.25, "b": 2.5}

    def weights(name: str) -> Callable[[Path], Any]:
        def read(folder: Path) -> Any:
            model = digits_resnet(num_classes=10)
            load_weights(model, folder / name)
            return digest(numbers(model))

        return read

    def of_a_sweep(folder: Path) -> Any:
        return finished(folder / COMPARE_NAME)

    def shown(folder: Path) -> Any:
        return page([read_run(folder)])

    made = small.parent / "made"
    make_others(made, run)
    latency = next((made / "latency" / "latency").iterdir()).name
    found = [
        Artefact("plan.json", run, "plan.json", plan, "json", PLAN_FREE),
        Artefact("plan.json (schema 1)", made / "old", "plan.json", plan, "json", PLAN_FREE),
        Artefact("episodes.jsonl", run, "episodes.jsonl", episodes, "jsonl", r".*"),
        Artefact("network.json", small, "network.json", lambda f: outputs(secateur.load(f)), "json"),
        Artefact("weights.safetensors", small, "weights.safetensors", lambda f: outputs(secateur.load(f)), "tensors"),
        Artefact("its network, no SHA-256", made / "bare", "network.json", lambda f: outputs(secateur.load(f)), "json"),
        Artefact("weights, no SHA-256", made / "bare", "weights.safetensors", lambda f: outputs(secateur.load(f)),
                 "tensors", r"values .*"),
        Artefact("network.json, twice", made / "twice", "network.json", lambda f: outputs(secateur.load(f)), "json"),
        Artefact("network.packed", made / "packed", "network.packed", lambda f: outputs(secateur.load(f))),
        Artefact("policy.safetensors", run, "policy.safetensors", lambda f: Policy.load(f).plan(env).tolist(),
                 "tensors", r"values .*|about fingerprint"),
        Artefact("dense.safetensors", run, "dense.safetensors", dense, "tensors"),
        Artefact("dense, no SHA-256", run, "dense.safetensors", dense, "tensors", r"values .*", ("*.sha256",)),
        Artefact("its SHA-256", run, "dense.safetensors.sha256", dense),
        Artefact("config.yaml", run, "config.yaml", config, "yaml", r".*"),
        Artefact("foreign .safetensors", run, "dense.safetensors", weights("dense.safetensors"), "tensors",
                 r"values .*"),
        Artefact("foreign .pt", made / "pt", "w.pt", weights("w.pt"), "bytes", r"bytes"),
        Artefact("cache entry", made / "entry", "key/a.safetensors", entry),
        Artefact("latency times", made / "latency", f"latency/{latency}", times, "json", r"(?!)"),
        Artefact("image", made / "images", "train/a/0.png", images, "bytes", r".*"),
    ]  # fmt: skip
    if logs is not None:
        found.append(Artefact("candidates.jsonl", logs / "compare", "candidates.jsonl", candidates, "jsonl", r".*"))
        found.append(Artefact("compare.json", logs / "compare", COMPARE_NAME, of_a_sweep, "json", r".*"))
        drawn = random_plans(SearchProblem(session.budget, session.context, rng=np.random.default_rng(0)), 3)

        def rows(folder: Path) -> Any:
            with claimed(folder, "correlate", ROWS_NAME, new=False):
                log = PlanLog(folder / ROWS_NAME, _Row)
                return _measure_all(session, drawn, log, _past(session, log, drawn))

        kinds = {"summary.json": "json", "about.json": "json", "config.yaml": "yaml"}
        found += [Artefact(f"{name}, reported", run, name, shown, kind, r".*") for name, kind in kinds.items()]
        found.append(Artefact("compare.json, reported", logs / "compare", "compare.json", shown, "json", r".*"))
        found.append(Artefact(ROWS_NAME, logs / "correlate", ROWS_NAME, rows, "jsonl", r".*"))
    return found


PLAN_FREE = (
    r"architecture|objective.*|criterion|figures.*|cost.*|provenance.*|budget.*|method"
    r"|layers\.\d+\.(kept|sparsity|width)"
)


def make_others(folder: Path, run: Path) -> None:
    """Files that a run does not leave by itself."""
    if folder.exists():
        return
    (folder / "old").mkdir(parents=True)
    tree = json.loads((run / "plan.json").read_text())
    words = {"kept": "width", "units": "dense_width"}
    tree["layers"] = [{words.get(key, key): value for key, value in layer.items()} for layer in tree["layers"]]
    (folder / "old" / "plan.json").write_text(json.dumps({**tree, "schema_version": 1, "method": "channel"}))
    shutil.copytree(folder.parent / "small", folder / "bare")
    tree = json.loads((folder / "bare" / "network.json").read_text())
    del tree["sha256"]
    (folder / "bare" / "network.json").write_text(json.dumps(tree))
    pack_network(folder.parent / "small", folder / "packed")
    bits = ["method=bits", "budget.size=0.3", f"network.weights={folder.parent / 'small'}"]
    further = secateur.Session(run / "config.yaml", overrides=[*bits, "finetune.epochs=0"])
    kept = np.full(len(further.structure.layers), 4, dtype=np.int64)
    secateur.apply(further.plan_of(kept, allocator="four", seed=0, candidates=0), further, out=folder / "twice")
    (folder / "pt").mkdir()
    torch.save(read_tensors(run / "dense.safetensors")[0], folder / "pt" / "w.pt")
    Store(folder / "entry" / "key").get("a", lambda: {"x": torch.arange(5.0)})
    with cache_in(folder / "latency"):
        LatencyCache(torch.device("cpu"), LatencyConfig(batch=1)).add({"a": 1.25, "b": 2.5})
    for side in ("train", "test"):
        for label in ("a", "b"):
            (folder / "images" / side / label).mkdir(parents=True)
            for number in range(3):
                image = Image.new("L", (6, 6), 40 * number + 10)
                image.save(folder / "images" / side / label / f"{number}.png")


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    before = os.environ.get("SECATEUR_CACHE")
    os.environ["SECATEUR_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("SECATEUR_CACHE") if before is None else os.environ.__setitem__("SECATEUR_CACHE", before)


# ---- mutations: each changes the file and says how


def mutate(path: Path, artefact: Artefact, others: list[Path], rng: random.Random) -> str:
    """Change the file in a way that is drawn, and say in which."""
    ways = [in_bytes, in_bytes, in_place]
    if artefact.kind in ("json", "jsonl", "yaml"):
        ways += [in_tree] * 6
    if artefact.kind == "tensors":
        ways += [in_tensors] * 6
    way = rng.choice(ways)
    if way is in_place and rng.random() < 0.5:
        other = rng.choice(others)
        shutil.copyfile(other, path)
        return f"{other.name} in its place"
    return way(path, artefact.kind, rng)


def in_bytes(path: Path, _kind: str, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    kind = rng.choice(["flip", "flip", "flip", "cut", "append", "empty", "repeat", "zeros", "drop", "insert"])
    if kind == "flip":
        content[at] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[at:]
    elif kind == "append":
        content += rng.choice([b"\0" * 9, b"garbage", b"\n{}", b"\xff\xfe", content[:at]])
    elif kind == "empty":
        content.clear()
    elif kind == "repeat":
        content *= 2
    elif kind == "zeros":
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    elif kind == "drop":
        del content[at : at + rng.randrange(1, 9)]
    else:
        content[at:at] = rng.randbytes(rng.randrange(1, 9))
    path.write_bytes(content)
    return f"bytes: {kind} at {at}"


def in_place(path: Path, _kind: str, rng: random.Random) -> str:
    path.unlink()
    kind = rng.choice(["pipe", "folder", "socket", "nothing", "dangling link", "link to itself", "device", "bomb"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(os.path.relpath(path))
    elif kind == "dangling link":
        path.symlink_to("nothing-here")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "bomb":
        path.write_bytes(rng.choice([b"[" * 200_000, b"\xff" * 8 + b"{" * 100, (2**60).to_bytes(8, "little") + b"{}"]))
    return kind


def in_tree(path: Path, kind: str, rng: random.Random) -> str:
    """A value, a key or an item of a JSON or YAML tree, or of a line of one."""
    text = path.read_text()
    lines = text.splitlines() if kind == "jsonl" else [text]
    at = rng.randrange(len(lines))
    tree = yaml.safe_load(lines[at]) if kind == "yaml" else json.loads(lines[at])
    places = list(walk(tree))
    place = rng.choice(places)
    parent: Any = tree
    for step in place[:-1]:
        parent = parent[step]
    way = rng.choice(["set", "set", "set", "set", "delete", "add", "double", "near"])
    value = copy.deepcopy(rng.choice(ODD))
    node = parent[place[-1]]
    if way == "delete":
        del parent[place[-1]]
    elif way == "add" and isinstance(node, dict):
        node[rng.choice(["extra", "trust_code", "", "x" * 5000, "[red]"])] = value
    elif way in ("add", "double") and isinstance(node, list):
        node.append(value if way == "add" or not node else copy.deepcopy(rng.choice(node)))
    elif way == "near" and type(node) in (int, float):
        parent[place[-1]] = value = node + rng.choice([-1, 1, 0.25, -node, 7, 1e-3])
    elif way == "near" and isinstance(node, str):
        parent[place[-1]] = value = node + rng.choice(["", " ", "x", "\0"])
    else:
        way, parent[place[-1]] = "set", value
    if kind == "yaml":
        lines[at] = yaml.safe_dump(tree, sort_keys=False)
    else:
        lines[at] = json.dumps(tree, indent=None if kind == "jsonl" else 2)
        if way == "double" and rng.random() < 0.5:
            lines[at] = lines[at].replace("{", '{"kept": 1, ', 1)
    if kind == "jsonl" and rng.random() < 0.1:
        lines.insert(at, lines[at])
    path.write_text("\n".join(lines) + "\n", errors="surrogatepass")
    shown = repr(value)
    return f"{way} {'.'.join(map(str, place))} {shown if len(shown) < 40 else shown[:37] + '...'}"


def walk(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree but its root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from walk(value, (*path, key))


def in_tensors(path: Path, _kind: str, rng: random.Random) -> str:
    """Tensors or metadata, written with a checksum that is right."""
    tensors, about = read_tensors(path)
    name = rng.choice(list(tensors))
    tensor = tensors[name]
    way = rng.choice(
        ["nan", "inf", "type", "shape", "drop", "add", "rename", "values", "about", "about", "huge", "range"]
    )
    if way in ("nan", "inf") and tensor.is_floating_point():
        tensors[name] = torch.full_like(tensor, float(way))
    elif way == "huge":
        tensors[name] = tensor.double() * 1e300 + 1e300
    elif way == "type":
        kinds = [torch.float16, torch.int8, torch.bool, torch.complex64, torch.int64, torch.float64, torch.bfloat16]
        tensors[name] = tensor.to(kind := rng.choice([*kinds, torch.float8_e4m3fn]))
        way = f"values {kind}"
    elif way == "shape":
        shapes = [tensor.reshape(-1), tensor.unsqueeze(0), torch.cat([tensor.reshape(-1)] * 2), tensor.reshape(-1)[:0]]
        tensors[name] = rng.choice(shapes).contiguous()
    elif way == "drop":
        del tensors[name]
    elif way in ("add", "rename"):
        tensors[rng.choice(["extra", "[red]", "a/b", "\x1b[2J", ""])] = (
            tensors.pop(name) if way == "rename" else tensor + 0
        )
    elif way == "range" and not tensor.is_floating_point():
        tensors[name] = tensor + 10**6
        way = "values"
    elif way == "about" and about:
        key = rng.choice(list(about))
        about[key] = rng.choice(
            ["", "[]", "{", "null", "[1e999]", "[-1]", "[1000000]", "x" * 999, "[[red]]", "[" * 9999, "sac"]
        )
        write_tensors(path, tensors, about)
        return f"about {key} {about[key][:20]}"
    else:
        tensors[name] = tensor + 1
        way = "values"
    write_tensors(path, tensors, about)
    return f"{way} {name}"


# ---- what becomes of it


def outcome(artefact: Artefact, others: list[Path], seed: str, expected: Any, seconds: float = SECONDS) -> Outcome:
    """Mutate a copy, have it read, and say how that ended."""
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)  # a socket's path must be short, and what writes to runs/ writes there
        folder = Path("copied").absolute()
        shutil.copytree(artefact.source, folder, ignore=shutil.ignore_patterns("tensorboard", *artefact.without))
        path = folder / artefact.file
        before = path.read_bytes()
        mutation = mutate(path, artefact, others, random.Random(seed))
        if mutation == "nothing":
            return Outcome(artefact.name, mutation, "same")
        kind, said = attempt(artefact, folder, expected, seconds)
        if kind == "WRONG" and is_edit(artefact, path, before, mutation):
            kind = "edit"
        return Outcome(artefact.name, f"{mutation} ({seed})", kind, said)


def attempt(artefact: Artefact, folder: Path, expected: Any, seconds: float) -> tuple[str, str]:
    def ring(_signal: int, _frame: object) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = artefact.read(folder)
    except Hang:
        return "HANG", ""
    except CAUGHT as error:
        said = str(error)
        names = [Path(artefact.file).name, str(folder)]
        clear = "\n" not in said and len(said) < 1500 and any(name in said for name in names)
        return "refused" if clear else "VAGUE", f"{type(error).__name__}: {said}"
    except BaseException as error:
        return "TRACEBACK", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
    if repr(found) == repr(expected):
        return ("healed" if told else "same"), "; ".join(str(warning.message) for warning in told)
    return "WRONG", f"{str(expected)[:60]} became {str(found)[:60]}"


def is_edit(artefact: Artefact, path: Path, before: bytes, mutation: str) -> bool:
    """Whether only such places differ as their owner may change."""
    if re.match(artefact.free, mutation) and artefact.kind in ("tensors", "bytes"):
        return True
    if artefact.kind in ("tensors", "bytes") or not path.is_file():
        return False
    parse = yaml.safe_load if artefact.kind == "yaml" else json.loads
    texts = [before.decode(), path.read_text()]
    lines = [text.splitlines() for text in texts] if artefact.kind == "jsonl" else [[text] for text in texts]
    places = set()
    for old, new in zip(*lines, strict=False):
        one, other = parse(old), parse(new)
        leaves = [{place: at(tree, place) for place in walk(tree)} for tree in (one, other)]
        places |= {".".join(map(str, p)) for p in leaves[0].keys() | leaves[1].keys() if not equal(leaves, p)}
    return all(re.fullmatch(artefact.free, place) for place in places)


def at(tree: Any, place: tuple[Any, ...]) -> Any:
    for step in place:
        tree = tree[step]
    return None if isinstance(tree, dict | list) else tree


def equal(leaves: list[dict[tuple[Any, ...], Any]], place: tuple[Any, ...]) -> bool:
    return all(place in tree for tree in leaves) and repr(leaves[0][place]) == repr(leaves[1][place])


def campaign(found: list[Artefact], mutations: int, seed: int, seconds: float = SECONDS) -> list[Outcome]:
    """So many mutations, taking turns over the artefacts."""
    others = [artefact.source / artefact.file for artefact in found]
    home = Path.cwd()
    expected = {artefact.name: artefact.read(artefact.source) for artefact in found}
    turns = [found[number % len(found)] for number in range(mutations)]
    try:
        return [
            outcome(artefact, others, f"{seed}-{number}", expected[artefact.name], seconds)
            for number, artefact in enumerate(turns)
        ]
    finally:
        os.chdir(home)


def prepare(folder: Path) -> list[Artefact]:
    """A tiny run, its applied plan and an interrupted comparison."""
    first = secateur.train(secateur.Session("digits", overrides=TINY), out=folder / "first").folder
    config = f"network.weights={first / 'dense.safetensors'}"
    session = secateur.Session("digits", overrides=(*TINY, config))
    secateur.apply(first, secateur.Session(overrides=TINY), finetune=0, out=folder / "small")
    secateur.compare((), session, against=["random"], candidates=4, out=folder / "logs" / "compare")
    secateur.correlate(session, plans=3, finetune=0, out=folder / "logs" / "correlate")
    return artefacts(first, folder / "small", session, folder / "logs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="artefacts whose name holds this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        found = [a for a in prepare(Path(place)) if args.only is None or args.only in a.name]
        outcomes = campaign(found, args.mutations, args.seed)
    kinds = ["refused", "same", "healed", "edit", *BAD]
    print(f"{'':26}" + "".join(f"{kind:>11}" for kind in kinds))
    for artefact in found:
        counts = Counter(o.kind for o in outcomes if o.artefact == artefact.name)
        print(f"{artefact.name:26}" + "".join(f"{counts[kind] or '–':>11}" for kind in kinds))
    bad = [o for o in outcomes if o.kind in BAD]
    for one in bad:
        print(f"{one.kind} {one.artefact}: {one.mutation}: {one.said[:300]!r}")
    print(f"{len(outcomes)} mutations, {len(bad)} bad")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
