"""What a conversion will do, and what it did: the same table of changed tensors, as text or as rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from convweights.fitting.contents import TensorInfo
from convweights.maps import Map
from convweights.ops.initializers import Initializer

Base = Literal["keep"] | Initializer | float | None

HEADER = ("tensor", "from", "to", "how", "scale", "new")


@dataclass(frozen=True)
class TensorPlan:
    """One tensor, from ``source`` to ``target``.

    ``base`` is what the target holds before the source's values come: "keep" for its own or the template's,
    an initialiser, a value, or None where they reach everything. ``reads`` is whether they come at all.
    ``permutation`` reorders the source's dimensions, ``source_view`` and ``target_view`` then give groups and missing
    dimensions a place, ``kept`` leaves the target's positions from the given one on to the base, ``maps`` leads each
    dimension to its size with zeros where no source position reaches, and ``factor`` multiplies.

    ``how`` and ``scale`` say it in words. ``new`` is the share of the target's values that do not stand for a source
    value of their own: those filled, drawn or kept, and every copy of a source value after the first. 3 -> 4 channels
    has a quarter of new values, repeated or filled; averages have none. ``out_channels`` are the layer's, before and
    after.
    """

    source: TensorInfo | None
    target: TensorInfo
    permutation: tuple[int, ...] | None = None
    source_view: tuple[int, ...] = ()
    target_view: tuple[int, ...] = ()
    kept: tuple[tuple[int, int], ...] = ()
    maps: Mapping[int, Map] | None = None
    factor: float = 1.0
    base: Base = None
    reads: bool = True
    how: str = ""
    scale: str = "1"
    new: float = 0.0
    out_channels: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def changed(self) -> bool:
        """Whether anything is different from the source's tensor, its name included."""
        return bool(self.how)

    @property
    def rewritten(self) -> bool:
        """Whether the values have to be computed or moved."""
        return self.source is None or not self.reads or self.how != renamed_from(self.source, self.target)

    def row(self) -> tuple[str, ...]:
        source = "-" if self.source is None else describe(self.source)
        return (self.name, source, describe(self.target), self.how, self.scale, f"{self.new:.1%}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the row, with shapes and numbers as such."""
        source = None if self.source is None else {"name": self.source.name, **_as_dict(self.source)}
        words = {"how": self.how or "unchanged", "scale": self.scale, "new": self.new}
        return {"name": self.name, "from": source, "to": _as_dict(self.target), **words}


def renamed_from(source: TensorInfo, target: TensorInfo) -> str:
    return "" if source.name == target.name else f"from {source.name}"


@dataclass(frozen=True)
class _Outcome:
    source: Path | str
    source_format: str
    tensors: tuple[TensorPlan, ...]
    notes: tuple[str, ...]
    dropped: tuple[tuple[TensorInfo, str], ...] = ()

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

    def rows(self) -> list[tuple[str, ...]]:
        """What changed, then what was dropped."""
        gone = [(info.name, describe(info), "-", why, "-", "-") for info, why in self.dropped]
        return [*(tensor.row() for tensor in self.changed), *gone]

    def __str__(self) -> str:
        parts, rows = [self.headline()], self.rows()
        if rows:
            parts.append(columns([HEADER, *rows]))
        return "\n".join([*parts, *(f"note: {note}" for note in self.notes)])

    def as_dict(self) -> dict[str, Any]:
        """For JSON: every tensor, changed or not, what was dropped, and the notes."""
        return {
            "source": str(self.source),
            "format": self.source_format,
            "tensors": [tensor.as_dict() for tensor in self.tensors],
            "dropped": [{"name": info.name, **_as_dict(info), "how": why} for info, why in self.dropped],
            "notes": list(self.notes),
            "bytes": self.nbytes,
        }

    def _counts(self) -> str:
        tensors = f"{len(self.tensors)} tensor{'s' * (len(self.tensors) != 1)}"
        gone = f", {len(self.dropped)} dropped" if self.dropped else ""
        return f"{tensors}, {len(self.changed)} changed, {self.unchanged} unchanged{gone}, {size(self.nbytes)}"


@dataclass(frozen=True)
class Plan(_Outcome):
    """Everything :func:`~convweights.convert` or :func:`~convweights.transfer_model_` would do, decided and checked.

    ``str()`` is a table. ``new`` in a row is the share of values that do not stand for a source value of their own:
    see TensorPlan. ``ties`` are groups of names that can stay one tensor, because they were one and the same becomes
    of them.
    """

    like: Path | str | None = None
    ties: tuple[tuple[str, ...], ...] = ()

    def headline(self) -> str:
        return f"plan for {self.source} ({self.source_format}): {self._counts()}"


@dataclass(frozen=True)
class Report(_Outcome):
    """What was done. ``str()`` is a table of every tensor that changed, and of those that were dropped.

    Its columns: from and to (shape and dtype), how, scale (the factor of a copy, or of a window's mean) and new, the
    share of values that do not stand for a source value of their own: those filled, drawn, kept from a template or
    from the target itself, and every copy of a source value after the first. Values that were only scaled, averaged,
    moved or cast are not new. ``file_bytes`` is the size of the file that was written, None for a module.
    """

    target: Path | str = ""
    target_format: str = "module"
    file_bytes: int | None = None

    def headline(self) -> str:
        written = "" if self.file_bytes is None else f", {size(self.file_bytes)}"
        files = f"{self.source} ({self.source_format}) -> {self.target} ({self.target_format}{written})"
        return f"{files}: {self._counts()}"

    def as_dict(self) -> dict[str, Any]:
        return {
            **super().as_dict(),
            "target": str(self.target),
            "target_format": self.target_format,
            "file_bytes": self.file_bytes,
        }


def _as_dict(info: TensorInfo) -> dict[str, Any]:
    return {"dtype": dtype_name(info.dtype), "shape": list(info.shape)}


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
