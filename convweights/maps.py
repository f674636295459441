"""Maps: which source positions one target position reads, along one dimension.

``n`` is the source's size along the dimension, ``m`` the target's, ``j`` a target position. Sizes are never part of
a map: they come from the tensors. A map also says how values are rescaled so that a layer's output keeps its size:

=========== ==================================== =====================================
rescale     replicating (Tile, Interleave)       averaging (Blocks, Strided)
=========== ==================================== =====================================
``none``    plain copies                         the window's mean
``uniform`` copies times n / m                   the window's mean times n / m
``exact``   each copy divided by how many copies the window's sum
            its source position has
=========== ==================================== =====================================

``exact`` keeps the layer's output where the input is replicated the same way, or equal inside each window. An average
that undoes a map returns the bits that were replicated wherever every count of copies is a power of two: sums are
pairwise (:func:`~convweights.transfer_`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

Rescale = Literal["none", "uniform", "exact"]

# The codes of csrc/element/maps.h are the positions in these tuples; a test compares the two.
KINDS = ("identity", "tile", "interleave", "blocks", "strided", "offset", "select", "resize", "mean")
RESCALES = ("none", "uniform", "exact")


@dataclass(frozen=True)
class Map:
    """What every map has: a kind, the ways in which it can rescale, and whether it averages."""

    kind: ClassVar[str]
    rescales: ClassVar[tuple[str, ...]] = ("none",)
    averages: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.rescaling not in self.rescales:
            allowed = " or ".join(repr(name) for name in self.rescales)
            raise ValueError(f"{type(self).__name__}: rescale must be {allowed}, got {self.rescaling!r}")

    @property
    def rescaling(self) -> str:
        return getattr(self, "rescale", "none")

    def start_for(self, n: int, m: int) -> int:
        """The source position that target position 0 reads, for the maps that shift."""
        return 0

    def misfit(self, n: int, m: int) -> str | None:
        """Why this map cannot lead from size ``n`` to size ``m``: a rule to put behind "must", or None."""
        return "have at least one position to read" if n == 0 and m > 0 else None

    def copies(self, n: int, m: int) -> bool:
        """Whether every target position is one source position times 1, so that any dtype will do."""
        if n == m:
            return True
        return not self.averages and (self.rescaling == "none" or (self.rescaling == "exact" and m <= n))


@dataclass(frozen=True)
class Identity(Map):
    """``target[j] = source[j]``, the map of every dimension that is given none; needs ``n == m``."""

    kind: ClassVar[str] = "identity"

    def misfit(self, n: int, m: int) -> str | None:
        return None if n == m else "have the size of weight where no map is given"


@dataclass(frozen=True)
class Tile(Map):
    """``target[j] = source[j mod n]``: 0 1 2 0 1 2 0. With ``m < n`` the first m."""

    rescale: Rescale = "none"
    kind: ClassVar[str] = "tile"
    rescales: ClassVar[tuple[str, ...]] = RESCALES


@dataclass(frozen=True)
class Interleave(Map):
    """``target[j] = source[floor(j n / m)]``: 0 0 0 1 1 2 2."""

    rescale: Rescale = "none"
    kind: ClassVar[str] = "interleave"
    rescales: ClassVar[tuple[str, ...]] = RESCALES


@dataclass(frozen=True)
class _Average(Map):
    rescale: Rescale = "none"
    rescales: ClassVar[tuple[str, ...]] = RESCALES
    averages: ClassVar[bool] = True

    def misfit(self, n: int, m: int) -> str | None:
        return "have no fewer positions than the target to average" if n < m else None


@dataclass(frozen=True)
class Blocks(_Average):
    """``target[j]`` is the mean of the adjacent positions ceil(j n / m) .. ceil((j + 1) n / m) - 1; needs ``m <= n``.

    Undoes :class:`Interleave`.
    """

    kind: ClassVar[str] = "blocks"


@dataclass(frozen=True)
class Strided(_Average):
    """``target[j]`` is the mean of positions j, j + m, j + 2m, ...; needs ``m <= n``. Undoes :class:`Tile`."""

    kind: ClassVar[str] = "strided"


@dataclass(frozen=True)
class Offset(Map):
    """``target[j] = source[j + start]``; positions outside the source are filled.

    ``start`` may be negative (padding in front), or ``"center"``, which is floor((n - m) / 2).
    ``uniform`` multiplies by n / m.
    """

    start: int | Literal["center"] = 0
    rescale: Literal["none", "uniform"] = "none"
    kind: ClassVar[str] = "offset"
    rescales: ClassVar[tuple[str, ...]] = ("none", "uniform")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start != "center" and (isinstance(self.start, bool) or not isinstance(self.start, int)):
            raise TypeError(f'Offset: start must be an int or "center", got {self.start!r}')

    def start_for(self, n: int, m: int) -> int:
        # Any start past either end reads nothing; the nearest such start fits the operator's integers.
        return (n - m) // 2 if self.start == "center" else min(max(int(self.start), -m), n)

    def misfit(self, n: int, m: int) -> str | None:
        return None

    def copies(self, n: int, m: int) -> bool:
        return self.rescale == "none" or n == m


def Truncate(start: int = 0, rescale: Literal["none", "uniform"] = "none") -> Offset:
    """An :class:`Offset` that reads from ``start`` on: the positions start .. start + m - 1."""
    return Offset(_at_least_0("Truncate", "start", start), rescale)


def Pad(before: int = 0, rescale: Literal["none", "uniform"] = "none") -> Offset:
    """An :class:`Offset` that puts ``before`` filled positions in front of the source's first."""
    return Offset(-_at_least_0("Pad", "before", before), rescale)


def _at_least_0(function: str, argument: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: {argument} must be an int, got {value!r}")
    if value < 0:
        raise ValueError(f"{function}: {argument} must be at least 0, got {value}; Offset takes either sign")
    return value


def Center(rescale: Literal["none", "uniform"] = "none") -> Offset:
    """An :class:`Offset` that crops or pads alike on both sides; where the difference is odd, start is rounded down."""
    return Offset("center", rescale)


@dataclass(frozen=True)
class Select(Map):
    """``target[j] = source[index[j]]``: reorder, drop or repeat positions.

    ``index`` holds m integers on the host (a sequence, an array or a tensor); negative ones count from the end.
    ``uniform`` multiplies by n / m.
    """

    index: tuple[int, ...]
    rescale: Literal["none", "uniform"] = "none"
    table: torch.Tensor = field(init=False, repr=False, compare=False)
    kind: ClassVar[str] = "select"
    rescales: ClassVar[tuple[str, ...]] = ("none", "uniform")

    def __init__(self, index: Iterable[int], rescale: Literal["none", "uniform"] = "none") -> None:
        values = index.tolist() if hasattr(index, "tolist") else index
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise TypeError(f"Select: index must be a sequence of integers, got {index!r}")
        values = tuple(values)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Select: index must be a sequence of integers, got {value!r} in it")
        object.__setattr__(self, "index", values)
        object.__setattr__(self, "rescale", rescale)
        object.__setattr__(self, "table", torch.tensor(values, dtype=torch.int64, device="cpu"))
        self.__post_init__()

    def misfit(self, n: int, m: int) -> str | None:
        if len(self.index) != m:
            return f"be selected by as many indices as the target has positions ({m}, the index has {len(self.index)})"
        outside = next((value for value in self.index if not -n <= value < n), None)
        return None if outside is None else f"contain every selected index (index {outside} is out of range)"

    def copies(self, n: int, m: int) -> bool:
        return self.rescale == "none" or n == m


@dataclass(frozen=True)
class Resize(Map):
    """Linear interpolation, as ``torch.nn.functional.interpolate(mode="linear", align_corners=False)``.

    Position j reads x = max(0, (j + 0.5) n / m - 0.5): the positions floor(x) and floor(x) + 1 with weights that are
    computed in float64 and rounded to float32 (float64 for float64). A weight of 0 and a position past the end are
    not read, so ``n == m`` copies.
    """

    kind: ClassVar[str] = "resize"
    averages: ClassVar[bool] = True


@dataclass(frozen=True)
class Mean(Map):
    """Every target position is the mean of all n source positions; its source may be the target itself."""

    kind: ClassVar[str] = "mean"
    averages: ClassVar[bool] = True

    def copies(self, n: int, m: int) -> bool:
        return n == 1
