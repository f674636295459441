"""What a conversion will do, and what it did: the same table of changed tensors, as text or as rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from convweights.checkpoint.contents import TensorInfo
from convweights.maps import Map
from convweights.ops.initializers import Initializer

Fill = float | Literal["keep"] | Initializer

HEADER = ("tensor", "from", "to", "how", "scale", "new")


@dataclass(frozen=True)
class TensorPlan:
    """One tensor, from ``source`` to ``target``.

    ``permutation`` reorders the source's dimensions, ``maps`` then lead each to its new size, ``fill`` is what
    positions get that no source position reaches: a value, an initialiser, or "keep" for the template's. ``how`` and
    ``scale`` say it in words. ``new`` is the share of the target's values that do not stand for a source value of their
    own: those filled, those kept from a template, and every copy of a source value after the first. 3 -> 4 channels
    has a quarter of new values, repeated or filled; averages have none.
    """

    source: TensorInfo
    target: TensorInfo
    permutation: tuple[int, ...] | None
    maps: Mapping[int, Map]
    fill: Fill
    how: str
    scale: str
    new: float

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def changed(self) -> bool:
        return self.permutation is not None or bool(self.maps) or self.source.dtype != self.target.dtype

    def row(self) -> tuple[str, ...]:
        return (self.name, describe(self.source), describe(self.target), self.how, self.scale, f"{self.new:.1%}")


@dataclass(frozen=True)
class _Outcome:
    source: Path
    source_format: str
    tensors: tuple[TensorPlan, ...]
    notes: tuple[str, ...]

    @property
    def changed(self) -> tuple[TensorPlan, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.changed)

    @property
    def unchanged(self) -> int:
        return len(self.tensors) - len(self.changed)

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors of the target."""
        return sum(tensor.target.nbytes for tensor in self.tensors)

    def headline(self) -> str:
        raise NotImplementedError

    def __str__(self) -> str:
        parts = [self.headline()]
        if self.changed:
            parts.append(columns([HEADER, *(tensor.row() for tensor in self.changed)]))
        return "\n".join([*parts, *(f"note: {note}" for note in self.notes)])

    def _counts(self) -> str:
        tensors = f"{len(self.tensors)} tensor{'s' * (len(self.tensors) != 1)}"
        return f"{tensors}, {len(self.changed)} changed, {self.unchanged} unchanged, {size(self.nbytes)}"


@dataclass(frozen=True)
class Plan(_Outcome):
    """Everything :func:`~convweights.convert` would do to a checkpoint, decided and checked. ``str()`` is a table.

    ``new`` in a row is the share of values that do not stand for a source value of their own: see TensorPlan.
    """

    like: Path | None = None

    def headline(self) -> str:
        return f"plan for {self.source} ({self.source_format}): {self._counts()}"


@dataclass(frozen=True)
class Report(_Outcome):
    """What :func:`~convweights.convert` did. ``str()`` is a table of every tensor that changed.

    Its columns: from and to (shape and dtype), how, scale (the factor of a copy, or of a window's mean) and new, the
    share of values that do not stand for a source value of their own: those filled, those kept from a template, and
    every copy of a source value after the first. Values that were only scaled, averaged, moved or cast are not new.
    """

    target: Path
    target_format: str
    file_bytes: int

    def headline(self) -> str:
        files = f"{self.source} ({self.source_format}) -> {self.target} ({self.target_format}, {size(self.file_bytes)})"
        return f"{files}: {self._counts()}"


def describe(info: TensorInfo) -> str:
    """``float32 (32, 3, 3, 3)``."""
    return f"{dtype_name(info.dtype)} {info.shape}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def size(nbytes: int) -> str:
    """Bytes for people: 1.56 MB."""
    value, unit = float(nbytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{nbytes} B" if unit == "B" else f"{value:.3g} {unit}"


def columns(rows: list[tuple[str, ...]]) -> str:
    """Rows as aligned text, cut nowhere."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
