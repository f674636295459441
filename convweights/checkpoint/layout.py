"""A file before its tensors are in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Copy:
    """Bytes of another open file that go in as they are, and whose they are."""

    name: str
    file: int
    start: int
    at: int
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """What stands around the tensors, where the bytes of each one go, in that order, and how long the file is."""

    around: Sequence[tuple[int, bytes | memoryview]]
    places: Mapping[str, int]
    size: int
    copies: Sequence[Copy] = ()
