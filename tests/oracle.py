"""transfer as scalar loops: the formulas of the maps, one position and one rounding at a time.

Nothing here is shared with the package but the maps' names and arguments. It judges the reference, which judges the
compiled kernels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from bits import bits

from convweights.maps import Identity, Map

COMPUTE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Window:
    """What one target position reads along one dimension: source positions, their weights, and the factor."""

    positions: list[int]
    weights: list[float] | None
    factor: float


def _positions(map: Map, n: int, m: int, j: int) -> list[int]:
    match map.kind:
        case "identity":
            return [j]
        case "tile":
            return [j % n]
        case "interleave":
            return [math.floor(j * n / m)]
        case "blocks":
            return list(range(math.ceil(j * n / m), math.ceil((j + 1) * n / m)))
        case "strided":
            return list(range(j, n, m))
        case "offset":
            start = math.floor((n - m) / 2) if map.start == "center" else map.start
            return [j + start] if 0 <= j + start < n else []
        case "select":
            return [range(n)[map.index[j]]]
        case "mean":
            return list(range(n))
    raise AssertionError(map.kind)


def window(map: Map, n: int, m: int, j: int, compute: type[np.floating]) -> Window:
    if map.kind == "resize":
        x = max(0.0, (j + 0.5) * (n / m) - 0.5)
        left = math.floor(x)
        right_weight = float(compute(x - left))
        if right_weight == 0 or left + 1 >= n:
            return Window([min(left, n - 1)], [1.0], 1.0)
        return Window([left, left + 1], [float(compute(1 - (x - left))), right_weight], 1.0)
    positions = _positions(map, n, m, j)
    rescale = getattr(map, "rescale", "none")
    factor = 1.0
    if rescale == "uniform":
        factor = n / m
    if map.kind in ("blocks", "strided", "mean"):
        if rescale != "exact":
            factor = factor / len(positions)
    elif rescale == "exact":
        factor = 1 / sum(_positions(map, n, m, other) == positions for other in range(m))
    return Window(positions, None, factor)


def compute_type(weight: torch.Tensor, source: torch.Tensor) -> type[np.floating]:
    return np.float64 if torch.float64 in (weight.dtype, source.dtype) else np.float32


def windows(weight: torch.Tensor, source: torch.Tensor, maps: Mapping[int, Map]) -> list[list[Window]]:
    """Per dimension, per target position: its window."""
    rank = weight.ndim
    by_dim = {dim % rank: map for dim, map in maps.items()}
    compute = compute_type(weight, source)
    return [
        [window(by_dim.get(dim, Identity()), n, m, j, compute) for j in range(m)]
        for dim, (n, m) in enumerate(zip(source.shape, weight.shape, strict=True))
    ]


def computed_positions(
    weight: torch.Tensor, source: torch.Tensor, maps: Mapping[int, Map], scale: float = 1.0
) -> torch.Tensor:
    """Where the result is a sum, a product or a cast, so that a NaN's payload is open; elsewhere bits are copied."""
    compute = torch.float64 if compute_type(weight, source) is np.float64 else torch.float32
    alone = torch.tensor(weight.dtype == source.dtype)
    reached = torch.tensor(True)
    factor = torch.tensor(scale, dtype=torch.float64)
    for dim, row in enumerate(windows(weight, source, maps)):
        shape = [-1 if d == dim else 1 for d in range(weight.ndim)]
        counts = torch.tensor([len(window.positions) for window in row]).reshape(shape)
        alone, reached = alone & (counts == 1), reached & (counts > 0)
        factor = factor * torch.tensor([window.factor for window in row], dtype=torch.float64).reshape(shape)
    return (reached & ~(alone & (factor.to(compute) == 1))).expand(weight.shape)


def pairwise_sum(terms):
    """The first 2^k terms, the largest power of two below their number, plus the rest, each summed in this way."""
    if len(terms) == 1:
        return terms[0]
    first = 1
    while 2 * first < len(terms):
        first *= 2
    return pairwise_sum(terms[:first]) + pairwise_sum(terms[first:])


def transfer(
    weight: torch.Tensor,
    source: torch.Tensor,
    maps: Mapping[int, Map],
    *,
    scale: float = 1.0,
    fill: float | complex | str = 0.0,
) -> torch.Tensor:
    """The bits that ``transfer_`` must leave in ``weight``, as a new contiguous tensor; ``weight`` is not written."""
    result = weight.clone(memory_format=torch.contiguous_format)
    by_dim = windows(weight, source, maps)
    compute = compute_type(weight, source)
    torch_compute = torch.float64 if compute is np.float64 else torch.float32
    values = {}
    if source.dtype in COMPUTE_DTYPES:
        values = {place: compute(source[place].to(torch_compute).item()) for place in np.ndindex(*source.shape)}
    if fill == "keep":
        filled = None
    elif repr(fill) in ("0", "0.0"):
        filled = torch.zeros(weight.dtype.itemsize, dtype=torch.uint8).view(weight.dtype)
    else:
        filled = torch.tensor([fill], dtype=weight.dtype)
    result_bits, source_bits = bits(result), bits(source)
    with np.errstate(all="ignore"):
        for place in np.ndindex(*weight.shape):
            here = [row[j] for row, j in zip(by_dim, place, strict=True)]
            taps = list(itertools.product(*[range(len(window.positions)) for window in here]))
            if not taps:
                if filled is not None:
                    result_bits[place] = bits(filled)[0]
                continue
            factor = float(scale)
            for one in here:
                factor = factor * one.factor
            rounded = compute(factor)
            terms = []
            for tap in taps:
                coefficient = compute(1)
                for one, k in zip(here, tap, strict=True):
                    if one.weights is not None:
                        coefficient = coefficient * compute(one.weights[k])
                at = tuple(one.positions[k] for one, k in zip(here, tap, strict=True))
                if len(taps) == 1 and rounded == 1 and weight.dtype == source.dtype:
                    result_bits[place] = source_bits[at]
                    break
                terms.append(values[at] if coefficient == 1 else coefficient * values[at])
            else:
                total = pairwise_sum(terms)
                total = total if rounded == 1 else total * rounded
                result[place] = torch.tensor(float(total), dtype=torch_compute).to(weight.dtype)
    return result
