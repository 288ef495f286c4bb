"""Configs: the built-in ones load, overrides land where they should, faults are named with their remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from secateur.configs import (
    Config,
    ConfigError,
    amounts,
    builtin_configs,
    check_config,
    did_you_mean,
    dump_config,
    layered,
    load_config,
)
from secateur.networks import registered_networks
from secateur.pruners import METHODS


@pytest.mark.parametrize("name", builtin_configs())
def test_builtin_configs_load_and_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert config.name == name
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert load_config(str(path)) == config
    assert config.network is not None
    assert config.network.name in registered_networks()
    METHODS[config.method].check_criterion(config.criterion or METHODS[config.method].criterion)


def test_there_are_builtin_configs_and_a_default() -> None:
    assert {"digits", "cifar10-resnet20", "cifar10-resnet56"} <= set(builtin_configs())
    assert load_config() == load_config("digits")


def test_overrides_round_trip_too(tmp_path: Path) -> None:
    config = load_config("cifar10-resnet20", ["data.test=100", "layers.ignore=[conv1, layer1.0.conv1]", "seed=4"])
    path = tmp_path / "c.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", ("seed",), 7),
        ("agent.episodes=3", ("agent", "episodes"), 3),
        ("agent.hidden=[8, 9]", ("agent", "hidden"), [8, 9]),
        ("network.pretrain.epochs=2", ("network", "pretrain", "epochs"), 2),
        ("network.kwargs.width=3", ("network", "kwargs"), {"width": 3}),
        ("layers.cut=all", ("layers", "cut"), "all"),
        ("data.test=null", ("data", "test"), None),
        ("data.root=a=b", ("data", "root"), Path("a=b")),
        ("finetune.learning_rate=1e-2", ("finetune", "learning_rate"), 0.01),
        ("reward.flops=.5", ("reward", "flops"), 0.5),
        ("layers.ignore=[]", ("layers", "ignore"), []),
        ("layers.bounds={layer1.*: [0.1, 0.5]}", ("layers", "bounds"), {"layer1.*": (0.1, 0.5)}),
        ("layers.round_to=8", ("layers", "round_to"), 8),
        ("method=weights", ("method",), "weights"),
        ("repair.final.adaptive_bn=100", ("repair", "final", "adaptive_bn"), 100),
    ],
)
def test_overrides(override: str, path: tuple[str, ...], value: object) -> None:
    node: Any = load_config("digits", [override])
    for step in path:
        node = getattr(node, step)
    assert node == value


def test_an_override_leaves_its_neighbours() -> None:
    before, after = load_config("digits"), load_config("digits", ["network.pretrain.epochs=2"])
    assert before.network is not None
    assert after.network is not None
    assert after.network.pretrain == before.network.pretrain.model_copy(update={"epochs": 2})  # type: ignore[union-attr]
    assert after.model_copy(update={"network": before.network}) == before


def test_later_overrides_win_and_values_come_last() -> None:
    assert load_config("digits", ["seed=1", "seed=2"]).seed == 2
    assert load_config("digits", ["seed=1"], seed=3).seed == 3
    assert load_config("digits", ["seed=1"], seed=None).seed == 1


@pytest.mark.parametrize(
    ("overrides", "asked"),
    [
        (["budget.params=0.3"], {"params": 0.3}),
        (["budget.flops=0.3"], {"flops": 0.3}),
        (["budget.params=0.3", "budget.flops=0.4"], {"flops": 0.4, "params": 0.3}),
        (["budget.flops=1"], {"flops": 1.0}),
        (["budget.latency=0.6"], {"latency": 0.6}),
        (["budget.latency=5 ms", "budget.params=30%"], {"params": 0.3, "latency": "5ms"}),
        (["budget.flops=20M"], {"flops": "20M"}),
        (["budget={flops: 1.50G, params: 100%}"], {"flops": "1.5G", "params": 1.0}),
        (["budget.flops=0.4", "budget.flops=0.3"], {"flops": 0.3}),
    ],
)
def test_budgets_that_are_set_take_the_place_of_the_files(overrides: list[str], asked: dict[str, object]) -> None:
    config = load_config("cifar10-resnet20", overrides)
    assert config.budget.asked == asked
    assert load_config(config).budget == config.budget
    assert load_config("cifar10-resnet20", layered(["budget.latency=0.9", "seed=3"], overrides)).budget.asked == asked
    assert load_config("cifar10-resnet20", layered(overrides, ["seed=3"])) == config.model_copy(update={"seed": 3})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("agnet.episodes=3", r"unknown key agnet – did you mean agent\?"),
        ("agent.epsiodes=3", r"unknown key agent.epsiodes – did you mean episodes\?"),
        ("network.pretrain.epoch=3", r"unknown key network.pretrain.epoch – did you mean epochs\?"),
        (
            "layers.zzz=3",
            r"unknown key layers.zzz \(known here: cut, ignore, tie, round_to, max_sparsity, bounds, pattern, ",
        ),
        ("budget.latencies=0.5", r"unknown key budget.latencies – did you mean latency\?"),
        ("budget.latency=1.5", r'budget.latency: 1.5 must be greater than 0 and at most 1, or have a unit: .* "5ms"'),
        ("latency.batch=0", r"latency.batch = 0: input should be greater than or equal to 1"),
        ("agent.episodes=0", r"agent.episodes = 0: input should be greater than or equal to 1"),
        ("agent.episodes=many", r"agent.episodes = 'many': input should be a valid integer"),
        ("agent.algorithm=ppo", r"agent.algorithm = 'ppo': input should be 'ddpg', 'td3' or 'sac'"),
        ("agent.noise_end=0", r"agent.noise_end = 0: input should be greater than 0"),
        ("budget.flops=0", r"budget.flops: 0 must be greater than 0"),
        ("budget.flops=20000000", r"budget.flops: 2e\+07 must be .*, or have a unit: .* \"20M\" \(k, M, G\)"),
        ("budget.flops=-0.5", r"budget.flops: -0.5 must be greater than 0"),
        ("budget.flops=150%", r"budget.flops: 1.5 must be greater than 0 and at most 1"),
        ("budget.flops=20m", r"budget.flops: '20m' is no budget: .* \(k, M, G\)"),
        ("budget.flops=5ms", r"budget.flops: '5ms' is no budget"),
        ("budget.params=0M", r"budget.params: '0M' must be greater than 0"),
        ("budget.params=1.2.3M", r"budget.params: '1.2.3M' is no budget"),
        ("budget.params=[1]", r"budget.params: '\[1\]' is no budget"),
        ("budget.latency=20M", r"budget.latency: '20M' is no budget: .* \(ns, us, ms, s\)"),
        ("budget.flops=null", r"budget: give a budget: one or more of budget.flops, budget.params, budget.latency"),
        ("layers.max_sparsity=1.0", r"layers.max_sparsity = 1.0: input should be less than 1"),
        ("layers.cut=some", r"layers.cut = 'some': input should be 'inner', 'sampled' or 'all'"),
        ("reward.accuracy=-1", r"reward.accuracy = -1: input should be greater than or equal to 0"),
        ("reward={accuracy: 0, reconstruction: 0}", r"reward: every reward weight is 0"),
        ("network.pretrain=null", r"network: an untrained network has nothing to keep: give network.weights"),
        ("network.pretrain.epochs=0", r"network: an untrained network has nothing to keep"),
        ("data.mean=[0.1, 0.2]", r"data: mean has 2 channels, std has 1"),
        ("data.std=[0]", r"data.std.0 = 0: input should be greater than 0"),
        ("data.name=imagenet", r"data.name = 'imagenet': input should be 'digits', 'cifar10'"),
        ("finetune.momentum=1", r"finetune.momentum = 1: input should be less than 1"),
        ("repair.final.kind=gramm", r"repair.final.kind = 'gramm': input should be 'none', 'gram' or 'sequential'"),
        ("repair.final.sample=3", r"unknown key repair.final.sample – did you mean samples\?"),
        ("layers.bounds={conv1: [0.5, 0.1]}", r"layers: bounds of conv1: \[0.5, 0.1\]: the least sparsity first"),
        ("gradual.ramp=0", r"gradual.ramp = 0: input should be greater than 0"),
        ("gradual.evry=1", r"unknown key gradual.evry – did you mean every\?"),
    ],
)
def test_faults_name_key_value_and_remedy(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^config digits: {message}") as caught:
        load_config("digits", [override])
    assert "\n" not in str(caught.value)


def test_every_fault_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown key data.serach .* search\?; agent.episodes = 0: input should"):
        load_config("digits", ["agent.episodes=0", "data.serach=5"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set 'seed': expected section.key=value, such as budget.flops=0.4"),
        ("=3", "--set '=3': expected section.key=value"),
        ("seed.x=3", "--set 'seed.x=3': seed is a value, not a section"),
        ("agent.episodes.x=3", "--set 'agent.episodes.x=3': episodes is a value, not a section"),
        ("agent.hidden=[1", r"--set 'agent.hidden=\[1': the value is not YAML: "),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("digits", ["seed=1", override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("digit", " – did you mean digits?"), ("cifar10-resnet21", " – did you mean cifar10-resnet20?"), ("zzz.yaml", "")],
)
def test_no_such_config(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert str(caught.value).startswith(f"no config {name!r}: neither a file nor one of cifar10-resnet20, ")
    assert str(caught.value).endswith(hint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML: "),
        ("just words", "holds no config: expected sections"),
        ("", "holds no config: expected sections"),
        ("- 1", "holds no config: expected sections"),
        ("name: x", "budget is missing"),
        ("name: x\nbudget: {}", "budget: give a budget: one or more of"),
        ("name: x\nbudget: 3", "budget = 3: input should be a valid dictionary"),
        ("name: x\nbudget: {flops: 0.5}\n3: 4", "3 = 3: keys should be strings"),
    ],
)
def test_files_that_are_no_configs(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"mine.yaml.*{message}") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_an_empty_section_takes_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\nbudget: {flops: 0.5}\nagent:\n", encoding="utf-8")
    assert load_config(path, ["agent.episodes=3"]).agent.episodes == 3


def test_a_file_beats_no_builtin_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("name: impostor\nbudget: {flops: 0.5}\n")
    assert load_config("digits").name == "digits"
    assert load_config("./digits").name == "impostor"


def test_configs_never_change() -> None:
    config = load_config()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        config.agent.episodes = 3  # type: ignore[misc]


def test_a_config_needs_neither_network_nor_data() -> None:
    config = check_config({"name": "mine", "budget": {"flops": 0.4}})
    assert (config.network, config.data) == (None, None)
    assert yaml.safe_load(dump_config(config))["network"] is None
    assert check_config(yaml.safe_load(dump_config(config))) == config


def test_every_key_has_a_default_or_is_asked_for() -> None:
    required = [name for name, field in Config.model_fields.items() if field.is_required()]
    assert required == ["name", "budget"]


@given(kind=st.sampled_from(sorted(amounts.UNITS)), count=st.floats(1, 1e15), up=st.booleans())
def test_an_amount_that_is_told_is_read_as_it_was(kind: str, count: float, up: bool) -> None:
    said = amounts.told(kind, count, up=up)
    assert amounts.asked(kind, said) == said
    read = amounts.amount(kind, said)
    assert read == pytest.approx(count, rel=1e-3)
    assert not up or read * (1 + 1e-12) >= count


@pytest.mark.parametrize(
    ("kind", "said", "count"),
    [("flops", "20M", 20e6), ("params", "1.5K", 1500), ("latency", "5 µs", 5e3), ("latency", "0.5s", 5e8)],
)
def test_amounts(kind: str, said: str, count: float) -> None:
    assert amounts.amount(kind, said) == count
    assert amounts.amount(kind, str(amounts.asked(kind, said))) == count


def test_did_you_mean() -> None:
    assert did_you_mean("fops", ["flops", "params"]) == " – did you mean flops?"
    assert did_you_mean("zzz", ["flops", "params"]) == ""


def test_a_config_can_be_changed_like_a_file():
    before = load_config("digits", ["budget.flops=0.3"])
    after = load_config(before, ["budget.params=0.4", "agent.episodes=7"], seed=5)
    assert (after.budget.asked, after.agent.episodes, after.seed) == ({"params": 0.4}, 7, 5)
    assert after.model_copy(update={"budget": before.budget, "agent": before.agent, "seed": before.seed}) == before
    with pytest.raises(ConfigError, match=r"unknown key agent\.episode"):
        load_config(before, ["agent.episode=7"])
