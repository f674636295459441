"""What a checkpoint file is to the rest of the package: descriptions of all its tensors, and one tensor at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from convweights.fitting.contents import Contents, TensorInfo
from convweights.fitting.errors import CheckpointError

__all__ = ["Checkpoint", "Surroundings", "TensorInfo"]


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


class Checkpoint(Contents):
    """An open checkpoint file. Nothing is read before :meth:`read` where the format allows it."""

    path: Path
    format: str
    tensors: dict[str, TensorInfo]
    around: Surroundings

    @property
    def label(self) -> str:
        return str(self.path)

    @property
    def shared(self) -> tuple[tuple[str, ...], ...]:
        return self.around.ties

    def error(self, message: str, tensor: str | None = None) -> Exception:
        return CheckpointError(message, self.path, tensor)

    def span(self, name: str) -> tuple[int, int] | None:
        """The descriptor of the file in which the tensor's bytes lie as they are, and where; None where they do not."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
