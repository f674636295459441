"""transfer_ in pure torch: what runs where no native kernel serves a device, and the judge of those that do."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from convweights.maps import KINDS, RESCALES


class _Dimension:
    """One dimension's map as tables over its m target positions."""

    def __init__(self, kind: str, rescale: str, start: int, n: int, m: int, index: torch.Tensor | None) -> None:
        j = torch.arange(m, dtype=torch.int64, device="cpu")
        self.step = 1
        self.second: torch.Tensor | None = None
        count = torch.ones_like(j)
        copies = torch.ones_like(j)
        if kind == "identity":
            first = j
        elif kind == "tile":
            first = j % max(n, 1)
            copies = (m - first + n - 1) // max(n, 1)
        elif kind == "interleave":
            first = j * n // max(m, 1)
            copies = _ceil_div((first + 1) * m, n) - _ceil_div(first * m, n)
        elif kind == "blocks":
            first = _ceil_div(j * n, m)
            count = _ceil_div((j + 1) * n, m) - first
        elif kind == "strided":
            first, self.step = j, m
            count = _ceil_div(n - j, m)
        elif kind == "offset":
            first = j + start
            count = ((first >= 0) & (first < n)).to(torch.int64)
        elif kind == "select":
            assert index is not None
            first = torch.where(index < 0, index + n, index)
        elif kind == "mean":
            first, count = torch.zeros_like(j), torch.full_like(j, n)
        else:
            x = ((j.double() + 0.5) * (n / max(m, 1)) - 0.5).clamp(min=0.0)
            first = x.floor().to(torch.int64).clamp(max=n - 1)
            self.second = x - first
        self.first, self.count = first, count
        averages = kind in ("blocks", "strided", "mean")
        self.factor = torch.ones(m, dtype=torch.float64, device="cpu")
        if rescale == "uniform":
            self.factor = torch.full((m,), n / max(m, 1), dtype=torch.float64, device="cpu")
        elif rescale == "exact" and not averages:
            self.factor = 1.0 / copies.double()
        if averages and rescale != "exact":
            self.factor = self.factor / count.double()
        self.size = n

    def settle(self, compute: torch.dtype) -> None:
        """Round the weight of a second tap to the dtype of the sum; what is then 0 is not read."""
        self.weights: list[torch.Tensor] | None = None
        if self.second is not None:
            last = self.first == self.size - 1
            second = self.second.to(compute)
            single = last | (second == 0)
            self.count = torch.where(single, 1, 2)
            self.weights = [torch.where(single, 1.0, (1.0 - self.second).to(compute)), second]


def _ceil_div(a: torch.Tensor, b: int) -> torch.Tensor:
    return -(-a // max(b, 1))


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bits as integers, for the dtypes whose elements fit one; copies of these keep every bit."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor if tensor.element_size() not in integers else tensor.view(integers[tensor.element_size()])


class _PairwiseSums:
    """A pairwise sum for each position, fed one term at a time: a binary counter of partial sums.

    Of a position that has taken ``counts`` terms, ``partials[k]`` holds a sum of 2^k of them where bit k of the count
    is 1, the earliest terms in the highest; anything where it is 0. A sum starts as its first term: 0.0 + -0.0 is 0.0.
    """

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros((), dtype=torch.int64, device=device)
        self.partials: list[torch.Tensor] = []

    def add(self, term: torch.Tensor, taken: torch.Tensor) -> None:
        """The next term of the positions that ``taken`` marks; the other positions do not read this tap."""
        level, carried = 0, taken
        while bool(carried.any()):
            if level == len(self.partials):
                self.partials.append(term)
            partial, full = self.partials[level], carried & self._holds(level)
            self.partials[level] = torch.where(carried & ~full, term, partial)
            term = torch.where(full, partial + term, term)
            level, carried = level + 1, full
        self.counts = self.counts + taken

    def total(self) -> torch.Tensor:
        """The partial sums joined from the latest, which is the smallest, to the earliest."""
        total = self.partials[0]
        for level, partial in enumerate(self.partials):
            joined = torch.where(self.counts % 2**level == 0, partial, partial + total)
            total = torch.where(self._holds(level), joined, total)
        return total

    def _holds(self, level: int) -> torch.Tensor:
        return self.counts >> level & 1 == 1


def _along(table: torch.Tensor, dim: int, rank: int) -> torch.Tensor:
    return table.reshape([-1 if d == dim else 1 for d in range(rank)])


def reference_transfer_(
    weight: torch.Tensor,
    source: torch.Tensor,
    kinds: Sequence[int],
    starts: Sequence[int],
    rescales: Sequence[int],
    index: Sequence[torch.Tensor],
    scale: float,
    fill: Sequence[int],
) -> None:
    """transfer_ in pure torch: gathers one tap of every window at a time, in ascending order of the source."""
    if weight.numel() == 0:
        return
    rank = weight.ndim
    compute = torch.float64 if torch.float64 in (weight.dtype, source.dtype) else torch.float32
    tables = iter(index)
    dims = []
    for kind, start, rescale, n, m in zip(kinds, starts, rescales, source.shape, weight.shape, strict=True):
        table = next(tables).cpu() if KINDS[kind] == "select" else None
        dims.append(_Dimension(KINDS[kind], RESCALES[rescale], start, n, m, table))
    for dim in dims:
        dim.settle(compute)

    def place(table: torch.Tensor, dim: int) -> torch.Tensor:
        return _along(table, dim, rank).to(weight.device)

    def tap(taps: Sequence[int], values: torch.Tensor) -> torch.Tensor:
        for d, (dim, k) in enumerate(zip(dims, taps, strict=True)):
            position = (dim.first + k * dim.step).clamp(0, max(dim.size - 1, 0))
            values = values.index_select(d, position.to(weight.device))
        return values

    reached = torch.ones((), dtype=torch.bool, device=weight.device)
    alone = reached
    factor = torch.full((), scale, dtype=torch.float64, device=weight.device)
    for d, dim in enumerate(dims):
        reached = reached & place(dim.count > 0, d)
        alone = alone & place(dim.count == 1, d)
        factor = factor * place(dim.factor, d)
    factor = factor.to(compute)
    old = weight.clone()
    if not bool(reached.any()):
        result = raw(old)
    elif weight.dtype == source.dtype and bool((alone & (factor == 1) | ~reached).all()):
        result = tap([0] * rank, raw(source))
    else:
        sums = _PairwiseSums(weight.device)
        for taps in itertools.product(*[range(int(dim.count.max())) for dim in dims]):
            inside = reached
            term = tap(taps, source).to(compute)
            coefficient = None
            for d, (dim, k) in enumerate(zip(dims, taps, strict=True)):
                inside = inside & place(k < dim.count, d)
                if dim.weights is not None:
                    w = place(dim.weights[k], d)
                    coefficient = w if coefficient is None else coefficient * w
            if coefficient is not None:
                term = torch.where(coefficient == 1, term, coefficient * term)
            sums.add(term, inside)
        total = sums.total()
        total = torch.where(factor == 1, total, total * factor)
        result = raw(total.to(weight.dtype))
        if weight.dtype == source.dtype:
            result = torch.where(alone & (factor == 1), tap([0] * rank, raw(source)), result)
    if fill:
        value = torch.tensor(list(fill), dtype=torch.int64, device=weight.device).view(weight.dtype)[0]
        result = torch.where(reached, result, raw(value))
    else:
        result = torch.where(reached, result, raw(old))
    raw(weight).copy_(result)
