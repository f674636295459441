"""The processes that share a conversion: one, or those that torchrun has started."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's number, and how many there are. ``exchange`` gives every process the values of all."""

    rank: int = 0
    size: int = 1
    exchange: Callable[[Any], list[Any]] = lambda value: [value]

    @property
    def first(self) -> bool:
        return self.rank == 0

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all; what it raises is raised in all."""
        made: T = self.together(make if self.first else lambda: None)[0]
        return made

    def together(self, do: Callable[[], Any]) -> list[Any]:
        """What each process makes, in all. Where one raises, all raise, and none waits for it forever."""
        try:
            outcome: Any = (do(), None)
        except Exception as error:
            outcome = (None, error)
        try:
            pickle.dumps(outcome)
        except Exception:  # what cannot travel would leave the others waiting
            outcome = (None, RuntimeError(str(outcome[1] or outcome[0])))
        outcomes = self.exchange(outcome)
        for _, failure in outcomes:
            if failure is not None:
                raise failure
        return [value for value, _ in outcomes]

    def agree(self, do: Callable[[], T]) -> T:
        """What this process makes. Where one raises, all raise."""
        own: list[T] = []
        self.together(lambda: own.append(do()))
        return own[0]


ALONE = Ranks()


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Those of torchrun, by its environment, over gloo; else this process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or "RANK" not in os.environ:
        yield ALONE
        return
    import torch.distributed as distributed

    begun = not distributed.is_initialized()
    if begun:
        # Those that have nothing left to do wait for the slowest.
        distributed.init_process_group("gloo", timeout=timedelta(days=7))

    def exchange(value: Any) -> list[Any]:
        values: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(values, value)
        return values

    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), exchange)
    finally:
        if begun:
            distributed.destroy_process_group()
