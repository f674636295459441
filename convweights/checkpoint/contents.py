"""What a checkpoint file is to the rest of the package: descriptions of all its tensors, and one tensor at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's description. ``plain`` tensors are dense and hold data; others can only be kept as they are."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    plain: bool = True

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Surroundings:
    """What a file holds beside its tensors.

    ``nested`` is the key under which a ``.pt`` file keeps its state dict. ``entries`` names what stands beside that
    state dict (epoch, optimizer), ``inside`` what stands in it and is no tensor. ``ties`` are groups of tensors that
    share memory. ``root`` and ``state`` are the unpickled objects, which a ``.pt`` target keeps.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    nested: str | None = None
    entries: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    root: Any = None
    state: Any = None


class Checkpoint(ABC):
    """An open checkpoint file. Nothing is read before :meth:`read` where the format allows it."""

    path: Path
    format: str
    tensors: dict[str, TensorInfo]
    around: Surroundings

    @abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """The tensor of that name, on the CPU, without gradient history."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
