"""A journal: what brings perturbed weights back to the bit, in two bits an element and some room.

The schema, how much room a journal needs, and where it lies. The pure-torch reference is in journal_reference.py;
csrc/element/journal.h and csrc/ops/journal*.h are the same in C++. It is the update verb with a memory: w becomes
``w' = cast(w + d)`` with ``d = scale * noise``, and how many of the dtype's numbers lie between ``r = cast(w' - d)``
and ``w`` is written down: -1, 0 or 1 in two bits, or an escape, for which the weight itself is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from convweights.ops.journal_reference import CHUNK, ENTER, FLIP, LEAVE, reference_journal_
from convweights.ops.versions import bump_versions

_library = torch.library.Library("convweights", "FRAGMENT")
_library.define(
    "journal_(Tensor(a!)[] weights, Tensor(b!) journal, int[] sections, int[] rooms, int pool, int[] streams, "
    "int[] starts, int distribution, float scale, int seed, int step, int action) -> ()"
)
operator = torch.ops.convweights.journal_.default

__all__ = ["CHUNK", "ENTER", "FLIP", "LEAVE", "Layout", "escapes_of", "layout_of", "operator", "section_bytes"]

# Of normal weights this share of scale / standard deviation, times the mean size of the noise, are escapes: measured,
# 0.64% at 0.05. Others have more numbers near 0.
_ESCAPES = 0.16
_MEAN_NOISE = {"normal": 0.8, "uniform": 0.5, "rademacher": 1.0}
# Of the noise's size over that of the weights; beyond it a copy is no dearer.
_MOST_RATIO = 0.5


@dataclass(frozen=True)
class Layout:
    """Where a journal's parts lie: a section for each weight, of so much room a chunk, then the pool."""

    sections: Sequence[int]
    rooms: Sequence[int]
    pool: int
    nbytes: int

    def only(self, kept: Sequence[int]) -> Layout:
        """The same bytes with fewer sections."""
        return Layout([self.sections[k] for k in kept], [self.rooms[k] for k in kept], self.pool, self.nbytes)


def layout_of(counts: Sequence[int], items: Sequence[int], shares: Sequence[float]) -> Layout:
    """A layout for weights of so many elements of so many bytes, of which such shares are expected to be escapes."""
    at, words = 8, 16.0
    sections, rooms = [], []
    for count, item, share in zip(counts, items, shares, strict=True):
        sections.append(at)
        rooms.append(_room(count, share))
        at += section_bytes(count, item, share)
        words += -(-count // CHUNK) * (0.4 * share * min(count, CHUNK) + 0.5) * item / 4
    return Layout(sections, rooms, at, at + 4 * math.ceil(words))


def section_bytes(count: int, item: int, share: float) -> int:
    """csrc/ops/journal.h has the same."""
    chunks = -(-count // CHUNK)
    return 8 + 8 * chunks + _padded(chunks * _room(count, share) * item) + _padded(-(-count // 4))


def _room(count: int, share: float) -> int:
    """Escapes for which a chunk has room of its own."""
    return min(CHUNK, math.ceil(1.1 * share * min(count, CHUNK) + 1))


def escapes_of(distribution: str, scale: float, size: float) -> float:
    """The share of escapes to expect where the weights' root mean square is ``size``; infinity for none of them."""
    if not 0 < size < math.inf:
        return math.inf if scale else 0.0
    ratio = abs(scale) / size
    return _ESCAPES * _MEAN_NOISE[distribution] * ratio if ratio <= _MOST_RATIO else math.inf


def _padded(size: int) -> int:
    return -(-size // 8) * 8


_library.impl("journal_", reference_journal_, "CompositeExplicitAutograd")
bump_versions(_library, "journal_", operator, lambda weights, journal, *rest: (*weights, journal))


@torch.library.register_fake("convweights::journal_")
def _fake_journal_(weights: Sequence[torch.Tensor], *rest: object) -> None:
    """Nothing to tell."""
