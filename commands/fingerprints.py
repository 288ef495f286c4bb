"""From a session: the fingerprint of what a command's figures depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from ..agents.fingerprint import Fingerprint
from ..networks.inference import Batches
from ..pruners import RatioPlan
from ..storage.cache import digest
from ..storage.files import as_bytes, package_versions
from ..training.inputs import count, leaves, shape_of, taken, told
from .session import Session

PARTS = {  # of the config, as it is: part of the fingerprint → sections or keys
    "method": ("method", "layers"),
    "objective": ("objective",),
    "budget": ("budget",),
    "reward": ("reward",),
    "repair": ("repair",),
}
LEARNT = {"agent": ("seed", "workers", "agent")}  # what a training's search depends on besides; groups walk together
CORRELATED = {"correlation": ("seed", "correlate", "finetune")}
COMPARED = {"training": ("finetune", "gradual")}  # where a comparison trains
ELSEWHERE = {  # what else there is in a config, and why it is not compared as it stands
    "criterion": "the one that ranks is compared, named in the config or the method's own",
    "network": "its weights and layers are compared, wherever they come from",
    "data": "images are compared as the network sees them, wherever they lie",
    "device": "its type is compared",
    "threads": "torch's number is compared; a warning",
    "latency": "the table is compared, where a budget counts by it",
    "name": "names folders",
    "ray_address": "workers elsewhere find the same",
    "cache": "what it holds is what would be computed",
    "gradual": "compared where a comparison trains",
    "compare": "the arguments that were made of it are compared",
}
WHOLE = (  # how long is searched, and what is measured again in the end: asked of the old lines and the new alike
    "agent.episodes",
    "agent.rerank",
)


def of_training(session: Session) -> Fingerprint:
    """What the episodes of a training depend on."""
    return _fingerprint(session, {**PARTS, **LEARNT})


def of_comparison(
    session: Session,
    plans: Sequence[RatioPlan],
    against: Sequence[str],
    candidates: int,
    seeds: Sequence[int],
    finetune: int,
    schedules: Sequence[str],
) -> Fingerprint:
    """What the candidates of a comparison depend on; its arguments too, for searches draw by them."""
    arguments = {
        "plans": [_short("".join(map(str, plan.kept.tolist())).encode()) for plan in plans],
        "against": list(against),
        "candidates": candidates,
        "seeds": list(seeds),
        "finetune": finetune,
        "schedules": list(schedules),
    }
    more = {"comparison": arguments, **(_trained_on(session) if finetune else {})}
    return _fingerprint(session, {**PARTS, **(COMPARED if finetune else {})}, **more)


def of_correlation(session: Session) -> Fingerprint:
    """What the rows of a correlation depend on."""
    test = {} if session.test is None else _images("test", session.test)
    trained = _trained_on(session) if session.config.correlate.finetune else {}
    return _fingerprint(session, {**PARTS, **CORRELATED}, test=test, **trained)


def _trained_on(session: Session) -> dict[str, Mapping[str, Any]]:
    images = session.train_loader
    return {} if images is None else {"training images": {"training images": images.identity}}


def _fingerprint(
    session: Session, config_parts: Mapping[str, tuple[str, ...]], **more: Mapping[str, Any]
) -> Fingerprint:
    found: dict[str, Mapping[str, Any]] = {
        "images": {
            **_images("calibration", session.calibration),
            **_images("search", session.search),
        },
        "network": _network(session),
        "device": {"device": next(session.model.parameters()).device.type},
    }
    for part, names in config_parts.items():
        found[part] = {k: v for name in names for k, v in _flat(name, getattr(session.config, name)).items()}
    found["method"] = {**found["method"], "criterion": session.criterion}
    found["objective"] = {**found["objective"], "objective's class": type(session.objective).__qualname__}
    if "latency" in session.budget.fractions:
        table = np.concatenate(session.structure.choice_costs("latency"))
        found["budget"] = {**found["budget"], "latency table": _short(table.tobytes())}
    found |= more
    found["machine"] = {"threads": torch.get_num_threads()}
    found["versions"] = package_versions()
    return Fingerprint(found)


def _flat(name: str, value: Any) -> dict[str, Any]:
    """A config's section as `section.key` → plain value."""
    if not isinstance(value, BaseModel):
        return {} if name in WHOLE else {name: value}
    plain = value.model_dump(mode="json")
    keys = type(value).model_fields
    deeper = {key: getattr(value, key) if isinstance(getattr(value, key), BaseModel) else plain[key] for key in keys}
    return {k: v for key, inner in deeper.items() for k, v in _flat(f"{name}.{key}", inner).items()}


def _images(split: str, batches: Batches) -> dict[str, Any]:
    """How many, of what size, which pixels and labels, and in what order; batches do not matter."""
    hashes = []
    for batch in batches:
        for number in range(count(batch[0])):
            content = hashlib.blake2b(digest_size=8)
            for tensor in leaves(taken(batch, slice(number, number + 1))).values():
                content.update(str(tensor.item()).encode() if tensor.numel() == 1 else as_bytes(tensor.cpu()))
            hashes.append(content.digest())
    shape = told(shape_of(batches[0][0]))
    content_hash, order = (_short(b"".join(found)) for found in (sorted(hashes), hashes))
    return {f"{split} images": f"{len(hashes)} of {shape}, content {content_hash}, order {order}"}


def _network(session: Session) -> dict[str, Any]:
    tensors = {name: value for name, value in session.model.state_dict().items() if isinstance(value, Tensor)}
    return {
        "class": type(session.model).__name__,
        "weights": _short((" ".join(tensors) + digest(tensors.values())).encode()),
        "layers": session.structure.fingerprint,
    }


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
