"""What a checkpoint file is to the rest of the package: descriptions of all its tensors, and one tensor at a time."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from convweights.fitting.contents import Contents, TensorInfo
from convweights.fitting.errors import CheckpointError, sentence

__all__ = ["Checkpoint", "Span", "Surroundings", "TensorInfo"]


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


@dataclass(frozen=True)
class Span:
    """A tensor in an open file: the descriptor, where its first element lies, and its strides in elements.

    ``strides`` is None where the elements lie in order, one behind the other.
    """

    file: int
    at: int
    strides: tuple[int, ...] | None = None


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

    def span(self, name: str) -> Span | None:
        """Where the tensor's elements lie in a file as they are; None where they do not."""
        return None

    def unread(self, function: str, code: int | None = 0) -> CheckpointError:
        """The refusal of a file that could not be read: ``errno``, or 0 where it has ended before its time."""
        if code:
            rule, got = "be readable", f"{self.path} ({os.strerror(code)})"
        else:
            rule, got = "stay as it is while it is read", f"{self.path}, which has become shorter"
        return CheckpointError(sentence(function, "source", rule, got), self.path)

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
