from __future__ import annotations

import pytest

from secateur.configs import ConfigError, builtin_configs, check_config, dump_config, load_config


@pytest.mark.parametrize("name", builtin_configs())
def test_every_builtin_config_loads_and_reads_back_equal(name, tmp_path):
    config = load_config(name)
    assert config.name == name
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_there_are_the_three_that_the_readme_names():
    assert {"digits", "cifar10-resnet20", "cifar10-resnet56"} <= set(builtin_configs())
    assert load_config() == load_config("digits")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budgett.flops=0.4", "unknown key budgett – did you mean budget?"),
        ("agent.episode=3", "unknown key agent.episode – did you mean episodes?"),
        ("network.pretrain.epoch=3", "unknown key network.pretrain.epoch – did you mean epochs?"),
        ("agent.zzz=3", r"unknown key agent.zzz \(known here: algorithm, "),
        ("budget.flops=1.5", "budget.flops = 1.5: input should be less than or equal to 1"),
        ("budget.flops=0", "budget.flops = 0: input should be greater than 0"),
        ("layers.max_sparsity=1.0", "layers.max_sparsity = 1.0: input should be less than 1"),
        ("agent.episodes=many", "agent.episodes = 'many'"),
        ("agent.algorithm=ppo", "agent.algorithm = 'ppo': input should be 'ddpg', 'td3' or 'sac'"),
        ("network.pretrain=null", "an untrained network has nothing to keep"),
        ("reward={accuracy: 0, reconstruction: 0}", "every reward weight is 0"),
        ("data.std=[1, 1]", "mean has 1 channels, std has 2"),
        ("agent.episodes", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("seed.deep=3", "seed is a value, not a section|seed"),
        ("agent.hidden=[1", "the value is not YAML"),
    ],
)
def test_a_bad_override_is_refused_with_the_remedy(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("digits", [override])
    assert "\n" not in str(caught.value)


def test_overrides_reach_any_depth_and_the_last_wins():
    config = load_config("digits", ["network.pretrain.epochs=2", "agent.episodes=5", "agent.episodes=6"], seed=7)
    assert config.network.pretrain.epochs == 2
    assert config.agent.episodes == 6
    assert config.seed == 7


def test_one_budget_replaces_the_other():
    assert load_config("digits", ["budget.params=0.3"]).budget.kind == "params"
    with pytest.raises(ConfigError, match="exactly one budget"):
        check_config({"name": "x", "budget": {"flops": 0.5, "params": 0.5}})
    with pytest.raises(ConfigError, match="budget is missing"):
        check_config({"name": "x"})


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(ConfigError, match=r"no config 'digit': .* did you mean digits\?"):
        load_config("digit")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"bad\.yaml is not YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="holds no config"):
        load_config(tmp_path / "list.yaml")
