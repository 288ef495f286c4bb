"""A wheel works without the repository: built, installed elsewhere, and used from another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUTSIDE = ("tests", "benchmarks", "examples", "docs", "build", "dist", "runs", "*.egg-info", "__pycache__", ".*")
DATA = {".yaml", ".css", ".js", ".typed"}  # what the package reads beside its modules

pytestmark = pytest.mark.slow

Command = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(*OUTSIDE))
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder / "dist", folder / "tree")
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--target", folder, wheel)
    return folder


@pytest.fixture(scope="module")
def command(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs a program where nothing but the installed package can be found, and gives what it says."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SECATEUR"))}
    environment = {**kept, "PYTHONPATH": str(installed), "SECATEUR_CACHE": str(elsewhere / "cache")}

    def said(*arguments: str | Path) -> str:
        done = subprocess.run(
            [str(one) for one in arguments], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return said


def pip(action: str, *arguments: str | Path) -> None:
    """Offline, and nothing but what is given."""
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", action, *options, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_it_holds_all_modules_and_what_they_read_and_nothing_else(wheel: Path) -> None:
    top = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()} - {"tests"}
    files = [path for path in ROOT.rglob("*") if path.suffix in {".py", *DATA}]
    inside = {path.relative_to(ROOT) for path in files}
    wanted = {f"secateur/{path.as_posix()}" for path in inside if len(path.parts) == 1 or path.parts[0] in top}
    with zipfile.ZipFile(wheel) as file:
        told = {name for name in file.namelist() if ".dist-info/" not in name}
        about = {name.partition(".dist-info/")[2] for name in file.namelist()} - {""}
    assert told == wanted
    assert {"entry_points.txt", "licenses/LICENSE", "METADATA"} <= about


def test_the_console_script_says_what_it_can(installed: Path, command: Command) -> None:
    script = installed / "bin" / "secateur"
    told = command(script, "--help")
    assert all(name in told for name in ("train", "apply", "compare", "export", "report"))
    assert command(script, "--version").strip() == command(
        sys.executable, "-c", "import secateur; print(secateur.__version__)"
    ).strip()  # fmt: skip


def test_every_module_and_every_config_is_found(installed: Path, command: Command) -> None:
    found = json.loads(
        command(
            sys.executable,
            "-W",
            "ignore",
            "-c",
            "import importlib, json, pkgutil, secateur\n"
            "from secateur.configs.load import load_config\n"
            "names = [one.name for one in pkgutil.walk_packages(secateur.__path__, 'secateur.')]\n"
            "for name in names:\n"
            "    if not name.endswith('__main__'):\n"
            "        importlib.import_module(name)\n"
            "public = [getattr(secateur, name).__class__.__name__ for name in secateur.__all__]\n"
            "configs = {name: load_config(name).budget.flops for name in ('digits', 'cifar10-resnet20')}\n"
            "print(json.dumps([secateur.__file__, names, public, configs]))",
        )
    )
    where, names, public, configs = found
    assert Path(where).is_relative_to(installed)
    assert {"secateur.commands.cli", "secateur.pruners.channels.criteria", "secateur.networks.labels"} <= set(names)
    assert len(public) > 20
    assert configs["digits"] < 1.0
    assert (installed / "secateur" / "py.typed").is_file()


def test_a_search_a_plan_and_their_reports(installed: Path, command: Command) -> None:
    """What reads packaged files: a config, the embedded images, the page's style and script."""
    script = installed / "bin" / "secateur"
    quick = ("network.pretrain.epochs=1", "agent.episodes=3", "agent.warmup=1", "agent.rerank=1", "data.test=100")
    settings = [part for one in quick for part in ("--set", one)]
    command(script, "train", "digits", *settings, "--out", "run")
    assert '"flops"' in command(script, "plan", "run", "--flops", "0.6", "--out", "plan", "--json")
    command(script, "report", "run", "plan", "--out", "both.html")
    told = command(
        sys.executable,
        "-c",
        "import secateur\n"
        "run, text = secateur.open_run('run'), open('both.html', encoding='utf-8').read()\n"
        "assert run.best.flops <= run.setting('budget', 'flops')\n"
        "run.plot_plan().savefig('plan.png')\n"
        "print('<style>' in text, 'prefers-color-scheme' in text, 'addEventListener' in text)",
    )
    assert told.split() == ["True"] * 3
