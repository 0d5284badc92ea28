"""Several processes that share one job, started by `torchrun`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from captionmill.data.errors import InputError
from captionmill.stages.machine import choose_device

T = TypeVar("T")

_LONGEST_WAIT = timedelta(days=1)
"""The others wait while the first process does what only it does, such as making the ranker; torchrun ends them all if
one dies."""


@dataclass(frozen=True)
class World:
    """The processes that work together; by default, only this one."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and reports progress."""
        return self.rank == 0

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """The `items` that this process does: every `size`-th, beginning with its rank."""
        return items[self.rank :: self.size]

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes, in the order of their ranks; the same list in each."""
        if self.size == 1:
            return items
        gathered: list[Any] = [None] * self.size
        distributed.all_gather_object(gathered, items)
        return [item for part in gathered for item in part]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, summed over the processes, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def join_world(device: str) -> Iterator[tuple[World, torch.device]]:
    """The processes that `torchrun` started together, and this process's device; gloo for CPUs, NCCL for GPUs.

    Raises InputError if this machine has no such device, or fewer GPUs than processes were started on it.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(), choose_device(device)
        return
    chosen = choose_device(device)
    if chosen.type == "cuda":
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", size)), torch.cuda.device_count()
        if chosen.index is not None or here > gpus:
            raise InputError(
                f"{here} processes were started here, and each needs its own GPU: torch sees {gpus}; "
                f"pass `device` cuda and start at most {gpus} processes, or pass `device` cpu"
            )
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield World(distributed.get_rank(), size), chosen
    finally:
        distributed.destroy_process_group()
