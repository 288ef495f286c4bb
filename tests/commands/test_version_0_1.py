"""What version 0.1 wrote is read: configs, logs, plans, and networks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import secateur
from secateur.agents.log import EpisodeLog
from secateur.configs import Config, ConfigError, load, load_config

CONFIG = """\
name: digits
seed: 0
device: cpu
threads: 1
workers: 1
ray_address: null
cache: true
network:
  name: digits_resnet
  num_classes: 10
  kwargs: {}
  weights: null
  pretrain: {epochs: 1, learning_rate: 0.1, momentum: 0.9, weight_decay: 0.0005, batch_size: 64}
data:
  name: digits
  root: null
  mean: [0.305]
  std: [0.376]
  image_size: null
  calibration: 60
  search: 60
  test: 60
  batch_size: 100
  augment: true
  flip: false
  split_seed: 0
layers: {cut: inner, exclude: [layer3.1.conv1], max_sparsity: 0.95}
pruning:
  criterion: l1
  search_repair: gram
  search_images: 77
  search_places: 16
  search_adaptive_bn: 20
  final_repair: none
  refit_producers: false
  final_adaptive_bn: 30
budget: {flops: 0.3, params: null, latency: null}
latency: {batch: 32, threads: null, repeats: 5, channels_last: false}
reward: {accuracy: 1.0, reconstruction: 1.0, flops: 0.0}
agent:
  algorithm: ddpg
  episodes: 3
  budgets: null
  warmup: 1
  noise_start: 0.15
  noise_end: 0.05
  effort: 1.5
  finalists: 2
  hidden: [8]
  learning_rate: 0.001
  tau: 0.01
  batch_size: 64
  updates: 1
finetune: {epochs: 0, learning_rate: 0.01, momentum: 0.9, weight_decay: 0.0005, batch_size: 64}
magnitude: {ramp: 0.5, every: 5}
compare: {against: [uniform, shallow, deep, random], candidates: null}
correlate: {plans: 50, finetune_plans: 15, finetune: 0}
"""  # every key that 0.1 knew, as it wrote them into a run folder; values that are no defaults where keys moved

MOVED = {
    "criterion": "l1",
    "repair.search.kind": "gram",
    "repair.search.images": 77,
    "repair.search.samples": 16,
    "repair.search.adaptive_bn": 20,
    "repair.search.refit": False,
    "repair.final.refit": False,
    "repair.final.kind": "none",
    "repair.final.adaptive_bn": 30,
    "layers.ignore": ["layer3.1.conv1"],
    "agent.action_penalty": 1.5,
    "agent.rerank": 2,
    "gradual.ramp": 0.5,
    "gradual.every": 5,
}


def at(config: Config, key: str) -> object:
    node: object = config
    for step in key.split("."):
        node = getattr(node, step)
    return node


def part_of(found: object, told: object) -> object:
    """Of what was found, the keys that version 0.1 told."""
    if isinstance(found, dict) and isinstance(told, dict):
        return {key: part_of(found[key], told[key]) for key in told}
    return found


def test_a_config_of_a_run_folder(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    config = load_config(tmp_path / "config.yaml")
    assert {key: at(config, key) for key in MOVED} == MOVED
    assert {key for keys in load._MOVED.values() for key in keys} == set(MOVED)
    assert config.method == "channels"
    tree = yaml.safe_load(CONFIG)
    for section in ("network", "data", "budget", "latency", "reward", "finetune", "compare", "correlate"):
        assert part_of(at(config, section).model_dump(mode="json"), tree[section]) == tree[section], section


@pytest.mark.parametrize("key", load._MOVED)
def test_every_key_alone_in_a_file_and_on_the_command_line(key, tmp_path):
    section, name = key.split(".")
    value = yaml.safe_load(CONFIG)[section][name]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"name": "x", "budget": {"flops": 0.5}, section: {name: value}}))
    for config in (load_config(tmp_path / "mine.yaml"), load_config("digits", [f"{key}={json.dumps(value)}"])):
        assert {new: at(config, new) for new in load._MOVED[key]} == {new: MOVED[new] for new in load._MOVED[key]}


def test_a_wrong_value_is_named_where_it_is_now():
    with pytest.raises(ConfigError, match=r"repair\.search\.kind = 'gramm': input should be 'none', 'gram' or"):
        load_config("digits", ["pruning.search_repair=gramm"])
    with pytest.raises(ConfigError, match=r"unknown key pruning"):
        load_config("digits", ["pruning.search_repairs=gram"])


@pytest.mark.parametrize("repair", ["repair:\n", "repair: {search: null}\n"])
def test_an_empty_section_takes_what_moves_there(repair, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: x\nbudget: {{flops: 0.5}}\npruning: {{search_repair: gram}}\n{repair}")
    assert load_config(path).repair.search.kind == "gram"
    path.write_text("name: x\nbudget: {flops: 0.5}\npruning: {search_repair: gram}\nrepair: 3\n")
    with pytest.raises(ConfigError, match="repair = 3: input should be a valid dictionary"):
        load_config(path)


def as_0_1(folder: Path) -> Path:
    """A run folder in the words of version 0.1."""
    log = folder / "episodes.jsonl"
    lines = []
    for record in map(json.loads, log.read_text().splitlines()):
        for new in ("check", "fingerprint"):
            record.pop(new, None)
        record["reward"] = record.pop("quality")
        record["widths"], record["ratios"] = record.pop("kept"), record.pop("sparsity")
        lines.append(json.dumps(record) + "\n")
    log.write_text("".join(lines))
    plan = json.loads((folder / "plan.json").read_text())
    plan |= {"schema_version": 1, "method": "channel"}
    words = {"kept": "width", "units": "dense_width"}
    plan["layers"] = [{words.get(key, key): value for key, value in layer.items()} for layer in plan["layers"]]
    (folder / "plan.json").write_text(json.dumps(plan))
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    for gone in ("method", "criterion", "repair", "gradual"):
        del tree[gone]
    tree["layers"] = {"cut": "inner", "exclude": [], "max_sparsity": 0.95}
    tree["pruning"] = {"criterion": "obs", "search_repair": "sequential", "search_images": None, "final_adaptive_bn": 0}
    tree["agent"]["effort"] = tree["agent"].pop("action_penalty")
    tree["agent"]["finalists"] = tree["agent"].pop("rerank")
    tree["magnitude"] = {"ramp": 0.5, "every": 10}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder


def test_a_run_goes_on_and_ends_as_it_would_have(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    log = as_0_1(folder) / "episodes.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:4]))
    assert [record["kept"] for record in EpisodeLog(log).read(6)] == [
        json.loads(line)["kept"] for line in (run.folder / "episodes.jsonl").read_text().splitlines()[:4]
    ]
    assert "episode 3: quality" in secateur.report(folder).read_text(encoding="utf-8")
    resumed = secateur.train(resume=folder)
    assert resumed.summary["replayed"] == 4
    assert resumed.plan == run.plan
    assert resumed.summary["best"] == run.summary["best"]
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert ["fingerprint" in record for record in records] == [False] * 4 + [True, False]  # what is new is marked
    log.write_text(log.read_text().replace('"seconds": ', '"remark": "", "seconds": ', 1))  # in a line of 0.1
    with pytest.raises(ValueError, match=r"line 5 is not what was written there: .* or a line above it"):
        secateur.train(resume=folder)


def test_a_plan_is_applied_and_its_network_loaded(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    done = secateur.apply(as_0_1(folder), finetune=0, out=tmp_path / "small")
    network = json.loads((done.folder / "network.json").read_text())
    network |= {"schema_version": 1, **network.pop("recipe")}
    del network["method"]
    (done.folder / "network.json").write_text(json.dumps(network))
    again = secateur.load(done.folder)
    for name, tensor in done.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.slow
def test_a_network_of_pruned_weights_is_loaded_and_its_plan_applied(run, tmp_path):
    dense = f"network.weights={run.folder / 'dense.safetensors'}"
    overrides = [dense, "method=weights", "budget.params=0.5", "data.calibration=50", "data.search=50", "data.test=50"]
    session = secateur.Session("digits", overrides=overrides)
    plan = secateur.compare((), session, against=["lamp"], out=tmp_path / "c").plans[0]
    tree = plan.model_dump(mode="json")
    tree |= {"schema_version": 1, "method": "magnitude"}
    tree["layers"] = [
        {"name": x["name"], "sparsity": x["sparsity"], "width": x["kept"], "dense_width": x["units"], "members": []}
        for x in tree["layers"]
    ]
    (tmp_path / "plan.json").write_text(json.dumps(tree))
    done = secateur.apply(tmp_path / "plan.json", session, finetune=0, out=tmp_path / "small")
    assert secateur.RatioPlan.load(done.folder) == plan
    network = json.loads((done.folder / "network.json").read_text())
    for key in ("method", "recipe"):
        del network[key]
    (done.folder / "network.json").write_text(json.dumps({**network, "schema_version": 1, "kept": []}))
    again = secateur.load(done.folder)
    for name, tensor in done.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_fingerprint_of_weights_is_that_of_version_0_1():
    """Of the digits network with an excluded layer, as 0.1 wrote it."""
    ignored = ["network.pretrain.epochs=1", "method=weights", "layers.ignore=[layer3.1.conv1]", "budget.flops=0.5"]
    assert secateur.Session("digits", overrides=ignored).structure.fingerprint == "95001cffafef2230"
