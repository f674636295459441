"""What holds tensors under names, as the planning sees it: descriptions of all of them, and one tensor at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from convweights.fitting.axes import Axes


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's description. ``plain`` tensors are dense and of whole bytes; others can only be kept as they are.

    ``axes`` are what its dimensions mean where that is known: a layer tells, a file does not.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    plain: bool = True
    axes: Axes | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Contents(ABC):
    """Tensors under names: a checkpoint file, a module, or a dict."""

    tensors: Mapping[str, TensorInfo]
    format: str
    # Whether dimensions are known from layers: one that is not known then has no meaning that could be assumed.
    typed: bool = False

    @property
    def ties(self) -> Sequence[tuple[str, ...]]:
        """Groups of names that are one tensor."""
        return ()

    @property
    def shared(self) -> Sequence[tuple[str, ...]]:
        """Groups of names whose tensors share memory."""
        return self.ties

    @property
    @abstractmethod
    def label(self) -> str:
        """What errors and reports call it."""

    @abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """The tensor of that name, without gradient history."""

    def error(self, message: str, tensor: str | None = None) -> Exception:
        """The exception of a refusal that is about these contents."""
        return ValueError(message)

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())
