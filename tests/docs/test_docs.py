"""What the pages tell a reader to write works as it stands there."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secateur
from secateur.agents import ALLOCATORS
from secateur.commands.cli import app
from secateur.configs import load_config
from secateur.configs.load import _MOVED
from secateur.configs.training import DistillConfig, FinetuneConfig
from secateur.pruners import METHODS
from secateur.pruners.channels.criteria import CRITERIA
from secateur.testing import check_method, toy_images, toy_networks
from secateur.training.objective import OBJECTIVES
from secateur.training.schedules import SCHEDULES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks(page: Path, language: str = "python") -> list[str]:
    """The fenced code of a page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run(code: str, name: str, folder: Path, **given: Any) -> ModuleType:
    """Code as a module of that name, with what it is given among its globals."""
    file = folder / f"{name}.py"
    file.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    vars(module).update(given)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def forgetful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own to write to; what a page registers is forgotten behind it."""
    monkeypatch.chdir(tmp_path)
    registries: list[Any] = [METHODS, ALLOCATORS, CRITERIA, SCHEDULES]
    before, modules = [dict(registry._known) for registry in registries], set(sys.modules)
    yield
    for registry, known in zip(registries, before, strict=True):
        registry._known.clear()
        registry._known.update(known)
    for name in {
        "method_page",
        "allocator_page",
        "criterion_page",
        "objective_page",
        "training_page",
        "readme",
        "own_page",
        "deploy_page",
    } - modules:
        sys.modules.pop(name, None)


def test_a_method_of_ones_own(tmp_path: Path):
    whole, check, use = blocks(DOCS / "add-a-method.md")
    assert len([line for line in whole.splitlines() if line.strip()]) < 80
    module = run(whole, "method_page", tmp_path)
    assert METHODS["neurons"].unit == "neurons"
    run(check, "method_page", tmp_path)
    model = toy_networks()["plain"]
    check_method("neurons", model, toy_images(model))

    done = run(use, "method_page", tmp_path)
    plan, small = done.found.plan, done.small.model
    assert plan.method == "neurons"
    assert json.loads((tmp_path / "runs" / "neurons" / "plan.json").read_text())["method"] == "neurons"
    assert plan.cost["flops"] <= 0.5
    for layer in plan.layers:
        rows = small.get_parameter(layer.name).flatten(1).abs().sum(1) > 0
        assert int(rows.sum()) == layer.kept
    again = secateur.load(tmp_path / "runs" / "neurons" / "applied")
    x = torch.rand(2, 1, 8, 8)
    assert torch.allclose(again(x), small(x), atol=1e-5)
    assert module.Neurons.name == "neurons"


def test_a_method_takes_sixty_lines():
    whole = blocks(DOCS / "add-a-method.md")[0]
    own = [line for line in whole.splitlines() if line.strip() and not line.startswith(("import", "from", '"""'))]
    assert len(own) < 60


def test_an_allocator_of_ones_own(tmp_path: Path):
    rule, search, check, use = blocks(DOCS / "add-an-allocator.md")
    done = run("\n".join((rule, search, check, use)), "allocator_page", tmp_path)
    assert [row["allocator"] for row in done.rows] == ["uniform", "costly_first", "between"]
    assert all(row["flops"] <= 0.14 for row in done.rows)
    assert [row["candidates"] for row in done.rows] == [0, 0, 3]


def test_a_criterion_of_ones_own(tmp_path: Path):
    score, order, check = blocks(DOCS / "add-a-criterion.md")
    run("\n".join((score, order, check)), "criterion_page", tmp_path)
    session = secateur.Session("digits", overrides=["criterion=l_half"])
    kept = session.budget.fill(session.structure.units.astype(np.float64))
    small = session.compressor.compress(kept).model
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in session.model.parameters())
    with pytest.raises(ValueError, match="did you mean l_half"):
        secateur.Session("digits", overrides=["criterion=l_haf"])


def test_a_task_of_ones_own(tmp_path: Path):
    (code,) = blocks(DOCS / "objectives.md")
    module = run(code, "objective_page", tmp_path)
    config = secateur.Config.model_validate({"name": "mine", "budget": {"flops": 0.6}})
    images = secateur.Images(list(loader(32, 0)), list(loader(32, 1)))
    session = module.session(Tiny().eval(), images, config)
    plan = secateur.compare((), session, against=["uniform"], out=tmp_path / "c").plans[0]
    assert plan.objective.name == "hinge"


def test_the_tasks_page_names_them_all():
    page = (DOCS / "objectives.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z-]+)`(?: \(default\))? \| \(N", page, re.MULTILINE)) == set(OBJECTIVES)
    for text in blocks(DOCS / "objectives.md", "yaml")[0].splitlines():
        assert load_config("digits", [text.split(" #")[0].replace(": ", "=", 1).strip()]).objective.name in OBJECTIVES


def test_training_after_the_cut(tmp_path: Path):
    own, together, loop = blocks(DOCS / "training.md")
    (text,) = blocks(DOCS / "training.md", "yaml")
    distill = yaml.safe_load(text)["finetune"]["distill"]
    assert load_config().finetune.distill.model_dump() == distill  # the defaults
    tree = {"name": "mine", "budget": {"flops": 0.6}, "finetune": {"epochs": 2, "rounds": 2, "distill": distill}}
    images = secateur.Images(*(list(loader(32, seed)) for seed in range(3)), train=list(loader(32, 3)))
    session = secateur.Session(secateur.Config.model_validate(tree), model=Tiny().eval(), images=images)
    plan = session.plan_of(session.structure.units // 2, allocator="uniform", seed=0, candidates=0)
    run(own, "training_page", tmp_path)
    half = secateur.apply(plan, session, schedule="halfway_first", out=tmp_path / "half").model
    shared = run(together, "training_page", tmp_path, plan=plan, session=session).done
    assert secateur.load(shared.folder, session.model) is not None
    done = run(loop, "training_page", tmp_path, plan=plan, session=session).small
    sizes = [[tuple(p.shape) for p in model.parameters()] for model in (half, done.model, session.model)]
    assert sizes[0] == sizes[1] != sizes[2]
    assert (done.folder / "rounds" / "2" / "network.json").exists()


def test_the_training_page_names_every_schedule_and_setting():
    page = (DOCS / "training.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)`(?: \(default\))? \| (?=\S)", page, re.MULTILINE)) >= set(SCHEDULES)
    settings = {*FinetuneConfig.model_fields, *DistillConfig.model_fields} - {"epochs", "batch_size"}
    assert {name for name in settings if not re.search(rf"[`.]{name}\b", page) and f"{name}:" not in page} == set()


class Tiny(nn.Sequential):
    """What a reader calls `network`."""

    def __init__(self) -> None:
        def block(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
            )

        super().__init__(block(3, 8), block(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def loader(count: int, seed: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.randint(0, 4, (count,), generator=generator)), batch_size=16)


def test_the_readme_on_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (code,) = (block for block in blocks(ROOT / "README.md") if "secateur.Session" in block)
    assert "secateur.load" in code
    short = code.replace('"epochs": 20', '"epochs": 1').replace('"budget": {"flops": 0.5}', '"budget": {"flops": 0.5}, '
        '"agent": {"episodes": 3}, "compare": {"candidates": 3}')  # fmt: skip
    assert short.count("episodes") == 1, "the README's config is another"
    images = {name: loader(32, seed) for seed, name in enumerate(("some_train", "held_out", "test", "train"))}
    done = run(short, "readme", tmp_path, network=Tiny(), **images)
    assert done.found.plan.cost["flops"] <= 0.5
    assert {row["allocator"] for row in done.rows} >= {"ddpg", "uniform"}
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(done.again(x), done.small(x), atol=1e-5)


@pytest.mark.slow
def test_how_to_with_a_network_of_ones_own(tmp_path: Path):
    images = {name: loader(32, seed) for seed, name in enumerate(("some_train", "held_out", "test", "train"))}
    own, load, save = blocks(DOCS / "how-to" / "own-network.md")
    done = run("\n".join((own, load, save)), "own_page", tmp_path, Network=Tiny, **images)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(done.again(x), done.small(x))
    assert done.found.run.best.flops <= 0.5


@pytest.mark.slow
def test_how_to_deploy(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    secateur.train(secateur.Session("digits", overrides=["network.pretrain.epochs=1", "agent.episodes=1"]), out="run")
    secateur.apply("run", finetune=0, out="small")
    secateur.export("small", format="onnx", out="deploy")
    (code,) = blocks(DOCS / "how-to" / "deploy.md")
    assert run(code, "deploy_page", tmp_path).scores.shape == (2, 10)


@pytest.mark.parametrize("page", sorted((DOCS / "how-to").glob("*.md")), ids=lambda page: page.stem)
def test_how_to_configs_are_some(page: Path, tmp_path: Path):
    for text in blocks(page, "yaml"):
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        assert load_config(tmp_path / "mine.yaml").data is not None
    for name in re.findall(r"^python (\S+\.py)", "\n".join(blocks(page, "sh")), re.MULTILINE):
        assert (ROOT / name).is_file(), name


COMMAND = re.compile(r"^(?:\$ )?secateur (\w+)(.*?)(?:\s+#.*)?$", re.MULTILINE)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
CHANGES = ROOT / "CHANGELOG.md"  # names what is gone


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_options_that_pages_give_them(page: Path):
    group: Any = typer.main.get_command(app)
    code = "\n".join(block.replace("\\\n", " ") for block in blocks(page, "sh"))
    inline = re.findall(r"`(secateur (?:[^`]|\n)*)`", page.read_text(encoding="utf-8"))
    for command, rest in COMMAND.findall(code + "\n" + "\n".join(" ".join(text.split()) for text in inline)):
        assert command in group.commands, f"{page.name}: secateur {command}"
        known = {option for parameter in group.commands[command].params for option in parameter.opts}
        asked = set(re.findall(r"(?<!\S)--[a-z0-9-]+", rest))
        assert asked <= known | {"--help"}, f"{page.name}: secateur {command} has no {asked - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_pages_name_are_settings(page: Path):
    for override in re.findall(r"--set\s+([a-z_.]+=[^\s`]+)", page.read_text(encoding="utf-8")):
        config = load_config("digits", [override])
        assert config.name == "digits"


def test_the_config_in_the_readme_is_one(tmp_path: Path):
    (text,) = blocks(ROOT / "README.md", "yaml")
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    config = load_config(file)
    assert config.network is not None
    assert (config.network.name, config.budget.flops) == ("torchvision:mobilenet_v2", 0.5)


@pytest.mark.parametrize("page", [*PAGES, CHANGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_key_that_moved_is_in_the_changelog():
    text = CHANGES.read_text(encoding="utf-8")
    for before, after in _MOVED.items():
        section, key = before.split(".")
        assert f"`{before}`" in text or (f"`{section}." in text and re.search(rf"[`.]{key}`", text)), before
        for new in [after] if isinstance(after, str) else after:
            assert f"`{new}`" in text or re.search(rf"`{new.rpartition('.')[2]}`", text), new


def test_figures_say_on_how_many_images():
    """Every section with a table of top-1 on test images says on which."""
    pages = [page for page in PAGES if page.parent.name == "measured"]
    for page in pages:
        for section in re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            title, body = section.split("\n", 1)
            many = "9,000 test images" in body or "450 test images" in body or "450 test\nimages" in body
            assert many or not re.search(r"\btop-1\b", body), f"{page.name}: {title}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
