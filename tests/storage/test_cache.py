"""What is kept on disk is what would be computed, for this network and no other; and nothing depends on the disk."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from crash import files_of_at_most
from secateur.configs.schema import LayersConfig, Repair, SearchRepair
from secateur.envs import CandidateEvaluator
from secateur.pruners import METHODS
from secateur.pruners import context as context_module
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.criteria import CRITERIA, elimination, rank, register_criterion
from secateur.pruners.channels.criteria.registry import ByScore
from secateur.pruners.compressor import Compressor
from secateur.pruners.context import Context, dense_store
from secateur.pruners.repair import sensitivity
from secateur.pruners.repair.sensitivity import layer_sensitivity
from secateur.storage import cache as module
from secateur.storage.cache import Store, cache_folder, evict


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def context(name: str = "residual", cut: str = "inner") -> Context:
    model, structure, batches = zoo.make(name), zoo.structure(name, cut), zoo.batches(name)
    return Context(model, structure, batches, store=dense_store(model, structure, batches, 0))


def made(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"a": torch.full((300,), value)}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def ranked_again(_context, _layer):
    pytest.fail("ranked again")


ranked_again.__module__ = "secateur.pruners.channels.criteria.norms"


@pytest.mark.parametrize(("name", "cut"), [("residual", "inner"), ("downsample", "all"), ("depthwise", "inner")])
def test_what_is_read_back_is_what_was_computed(name, cut, monkeypatch):
    cold, plain = context(name, cut), Context(zoo.make(name), zoo.structure(name, cut), zoo.batches(name))
    for first in (cold, plain):
        [rank(first, criterion) for criterion in CRITERIA]
        layer_sensitivity(first)
    monkeypatch.setattr(context_module, "collect_inputs", lambda *_: pytest.fail("moments collected again"))
    for criterion in CRITERIA:
        monkeypatch.setitem(CRITERIA._known, criterion, ByScore(ranked_again))
    monkeypatch.setattr(sensitivity, "_cut_alone", lambda *_: pytest.fail("layer_sensitivity measured again"))
    warm = context(name, cut)
    for criterion in CRITERIA:
        for ours, theirs in zip(rank(warm, criterion), rank(plain, criterion), strict=True):
            assert np.array_equal(ours, theirs), criterion
    assert np.array_equal(layer_sensitivity(warm), layer_sensitivity(plain))
    for layer in warm.structure.layers:
        assert np.array_equal(elimination(warm, layer).errors, elimination(plain, layer).errors)
    assert warm.moments.norms == plain.moments.norms
    assert list(warm.moments.inputs) == list(plain.moments.inputs)
    for consumer, moments in warm.moments.inputs.items():
        assert moments.count == plain.moments.inputs[consumer].count
        for ours, theirs in zip(moments.centered(), plain.moments.inputs[consumer].centered(), strict=True):
            assert torch.equal(ours, theirs)


def test_moments_that_are_many_do_not_stay_in_memory(monkeypatch):
    def kept(store: Store) -> list[str]:
        return [name for name in store._known if name.startswith("moments-")]

    plain = context()
    few = {name: moments.centered()[2] for name, moments in plain.moments.inputs.items()}
    assert len(kept(plain.store)) == len(few)
    monkeypatch.setattr(context_module, "STAY", 0)
    for many in (context(), Context(zoo.make("residual"), zoo.structure("residual"), zoo.batches("residual"))):
        assert list(many.moments.inputs) == list(few)
        for name, covariance in few.items():
            moments = many.moments.inputs[name]
            assert torch.equal(moments.centered()[2], covariance)
            assert torch.equal(moments.centered()[2], covariance), "a look changed them"
            assert moments is many.moments.inputs[name]
        assert len(kept(many.store)) == (0 if many.store.folder else len(few))  # they are nowhere else


def test_a_warm_compressor_and_evaluator_give_the_same_networks_and_figures():
    batches, kept = zoo.batches("residual"), zoo.structure("residual").units // 2
    models, figures = [], []
    for cache in (False, True, True):
        plain = Context(zoo.make("residual"), zoo.structure("residual"), batches, "obs")
        compressor = Compressor(context() if cache else plain)
        models.append(compressor(kept, Repair(kind="gram")).state_dict())
        evaluator = CandidateEvaluator(compressor, zoo.batches("residual", seed=1), SearchRepair(kind="gram"))
        figures.append(evaluator.evaluate(kept))
    assert figures[0] == figures[1] == figures[2]
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name])
        assert torch.equal(tensor, models[2][name])


class Squared(nn.Module):
    """Another forward with the same weights."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) ** 2

    def state_dict(self, *_arguments, **_values):
        return self.model.state_dict()


def test_the_key_is_that_of_everything_that_matters(monkeypatch):
    model, structure, batches = zoo.make("residual"), zoo.structure("residual"), zoo.batches("residual")

    def spoilt(name: str) -> nn.Module:
        other = copy.deepcopy(model)
        other.state_dict()[name].view(-1)[-1] *= 1.0001
        return other

    images, labels = batches[-1]
    keys = [
        dense_store(*arguments).folder
        for arguments in (
            (model, structure, batches, 0),
            (model, structure, batches, 1),
            (Squared(model), structure, batches, 0),
            *((spoilt(name), structure, batches, 0) for name in model.state_dict() if "num_batches" not in name),
            (model, find_layers(model, structure.input_shape, ignore=[structure.layers[0].name]), batches, 0),
            (model, find_layers(model, structure.input_shape, round_to=2), batches, 0),
            (model, zoo.structure("residual", "all"), batches, 0),
            (model, structure, batches[:-1], 0),
            (model, structure, [*batches[:-1], (images, labels.roll(1))], 0),
            (model, structure, [*batches[:-1], (images.flip(0), labels)], 0),
            (model, structure, [*batches[:-1], (images[:4], labels[:4]), (images[4:], labels[4:])], 0),
            *(
                (model, METHODS[method].find(model, structure.input_shape, LayersConfig(**given)), batches, 0)
                for method in ("bits", "channels+bits")
                for given in ({}, {"activation_bits": 4}, {"activation_bits": 8}, {"grid": "shared"})
            ),
        )
    ]
    for name, value in (("package_versions", {"torch": "0"}), ("_code", "other")):
        with monkeypatch.context() as patch:
            patch.setattr(context_module, name, lambda *_, value=value: value)
            keys.append(dense_store(model, structure, batches, 0).folder)
    assert len(set(keys)) == len(keys)
    again = [(images.clone(), labels.clone()) for images, labels in batches]
    assert dense_store(zoo.make("residual"), structure, again, 0).folder == keys[0]


def test_what_others_register_is_not_kept(own):
    orders = iter([0, 1])

    @register_criterion("theirs")
    def theirs(_context, layer):
        return np.roll(np.arange(layer.units), next(orders))

    try:
        for first in range(2):
            seen = context("own_shortcut")
            assert rank(seen, "theirs")[0][first] == 0
    finally:
        del CRITERIA._known["theirs"]
    assert files(own) == []


def test_a_store_asks_once(own):
    store = Store(own / "key")
    assert store.get("a/b c", made) is store.get("a/b c", lambda: pytest.fail("made again"))
    assert torch.equal(Store(own / "key").get("a/b c", lambda: pytest.fail("made again"))["a"], made()["a"])
    assert [path.parent for path in files(own)] == [own / "key"]  # whatever the name


def test_without_a_folder_nothing_is_written(own):
    store = Store()
    assert store.get("a", made) is store.get("a", lambda: pytest.fail("made again"))
    assert not own.exists()


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [flip, lambda content: content[:-1], lambda _: b"", lambda _: b"\xff" * 100])
def test_a_damaged_file_is_computed_anew_and_replaced(own, damage):
    Store(own / "key").get("a", made)
    (path,) = files(own)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(RuntimeWarning, match=r"a\.safetensors is damaged .*: computed anew, and replaced") as told:
        assert torch.equal(Store(own / "key").get("a", lambda: made(2.0))["a"], made(2.0)["a"])
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    assert torch.equal(Store(own / "key").get("a", made)["a"], made(2.0)["a"])


def test_on_a_full_disk_it_warns_once_and_goes_on(own):
    store = Store(own / "key")
    with files_of_at_most(1000), pytest.warns(RuntimeWarning, match=r"cannot be written \(.*too large.*\): go") as told:
        assert [store.get(name, made)["a"][0] for name in "abc"] == [1.0, 1.0, 1.0]
    assert len(told) == 1
    assert files(own) == []


def test_a_folder_that_cannot_be_made_warns_and_goes_on(own):
    own.write_text("a file")
    with pytest.warns(RuntimeWarning, match="cannot be written") as told:
        assert torch.equal(Store(own / "dense" / "key").get("a", made)["a"], made()["a"])
    assert len(told) == 1
    assert own.read_text() == "a file"


def test_a_folder_deleted_meanwhile_is_made_again(own):
    store = Store(own / "key")
    store.get("a", made)
    for path in files(own):
        path.unlink()
    (own / "key").rmdir()
    store.get("b", made)
    assert [path.name for path in files(own)] == ["b.safetensors"]


def test_what_was_not_used_for_longest_goes_first(own, monkeypatch):
    for age, key in enumerate("abcd"):
        Store(own / key).get("a", made)
        os.utime(own / key, (1000 + age, 1000 + age))
    Store(own / "a")  # used again
    size = sum(path.stat().st_size for path in files(own))
    evict(own, size)
    assert len(files(own)) == 4
    evict(own, size // 2)
    assert [path.parent.name for path in files(own)] == ["a", "d"]
    monkeypatch.setattr(module, "LIMIT", 0)
    Store(own / "e").get("a", made)  # what is written now is not counted
    assert [path.parent.name for path in files(own)] == ["e"]


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path(os.environ["SECATEUR_CACHE"])
    monkeypatch.delenv("SECATEUR_CACHE")
    assert cache_folder() == Path("/xdg/secateur")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/someone/.cache/secateur")


def test_a_warm_start_warns_of_nothing():
    context().moments  # noqa: B018
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        context().moments  # noqa: B018


def test_the_key_knows_the_code_of_a_method_from_elsewhere() -> None:
    class Mine(type(METHODS["channels"])):  # type: ignore[misc]
        """Defined here."""

    assert context_module._code(Mine()) != context_module._code(METHODS["channels"])
