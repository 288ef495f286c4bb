"""Functions that tests call in several processes of one job."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import secateur

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["several", "secateur.commands.apply"])


def run(folder: Path, processes: int, work: Callable[..., None], *given: Any, wait: float = 120.0) -> list[int | None]:
    """Exit codes of the processes; the first one does the work, `secateur.distributed` is called in all of them."""
    rendezvous = folder / f"rendezvous-{len(list(folder.glob('rendezvous-*')))}"
    rendezvous.touch()
    arguments = (rendezvous, processes, os.environ["SECATEUR_CACHE"], folder, work, *given)
    started = [SERVER.Process(target=_join, args=(rank, *arguments), daemon=True) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(wait)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes


def _join(
    rank: int, rendezvous: Path, size: int, cache: str, folder: Path, work: Callable[..., None], *given: Any
) -> None:
    os.environ["SECATEUR_CACHE"] = cache
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    log = (folder / f"said-{rank}.txt").open("a", buffering=1)
    os.dup2(log.fileno(), sys.stderr.fileno())
    store = dist.FileStore(str(rendezvous), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    secateur.distributed(lambda: work(*given))
    dist.destroy_process_group()
