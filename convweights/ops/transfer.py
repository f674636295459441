"""The verb *transfer*: ``weight[j] = cast(factor * sum over a window of source)``, one map per dimension.

The schema and the pure-torch reference stand here. The reference is what runs where no native kernel serves a device,
and it judges those that do, on the bits; csrc/ops/transfer.h is the same meaning in C++.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from convweights.maps import KINDS, RESCALES, Identity, Map, Select
from convweights.ops import check

MAX_DIMENSIONS = 8

_library = torch.library.Library("convweights", "FRAGMENT")
_library.define(
    "transfer_(Tensor(a!) weight, Tensor source, int[] kinds, int[] starts, int[] rescales, Tensor[] index, "
    "float scale, int[] fill) -> ()"
)
_operator = torch.ops.convweights.transfer_.default


def transfer_(
    weight: torch.Tensor,
    source: torch.Tensor,
    maps: Mapping[int, Map] | None = None,
    *,
    scale: float = 1.0,
    fill: float | complex | Literal["keep"] = 0.0,
) -> torch.Tensor:
    """Write ``source`` into ``weight``, each dimension through its map, in one pass and without allocating.

    Position ``(j0, j1, ...)`` of the weight becomes ``cast(factor * sum of the source positions its maps read)``.
    The factor is ``scale`` times each map's factor in ascending order of the dimensions, computed in float64 and
    rounded once to float32 (to float64 where either tensor is float64); sums run in that dtype, pairwise, in
    ascending order of the source: the first 2^k terms, the largest power of two below their number, and the rest are
    each summed in this way, then the two sums are added. So 2^k equal terms sum to 2^k times the term, exactly. A
    factor of exactly 1 and a window of one position is a copy and keeps every bit.

    Equivalent to ``weight.copy_(source)`` where there are no maps.

    Args:
        weight: the tensor written, of any strides, up to 8 dimensions. Autograd does not see the change, but a
            backward over a graph that saved the old value raises.
        source: the tensor read, with the rank of ``weight`` and, in dimensions that are given no map, its size.
        maps: a map for each dimension that needs one: :class:`~convweights.Tile`, :class:`~convweights.Interleave`,
            :class:`~convweights.Blocks`, :class:`~convweights.Strided`, :class:`~convweights.Offset` (and its names
            ``Truncate``, ``Pad``, ``Center``), :class:`~convweights.Select`, :class:`~convweights.Resize`,
            :class:`~convweights.Mean`.
        scale: a finite number that multiplies every value read.
        fill: what becomes of positions that no source position reaches: a value, or ``"keep"``.

    float64, float32, float16 and bfloat16 convert into each other; every other dtype can be copied, selected,
    padded and filled. Memory that weight and source share is refused.

    Raises:
        TypeError: not a tensor, a sparse or quantised tensor, a dtype that cannot be computed with.
        ValueError: rank, size, device, index or overlap; nothing has been written.

    >>> import torch, convweights as cw
    >>> stem = torch.tensor([[1.0, 2.0, 3.0]])
    >>> cw.transfer_(torch.empty(2, 4), stem, {0: cw.Tile(), 1: cw.Pad(1)}, scale=2.0, fill=-1.0)
    tensor([[-1.,  2.,  4.,  6.],
            [-1.,  2.,  4.,  6.]])
    """
    return transfer_as("transfer_", weight, source, maps, scale=scale, fill=fill)


def transfer_as(
    function: str,
    weight: torch.Tensor,
    source: torch.Tensor,
    maps: Mapping[int, Map] | None,
    *,
    scale: float = 1.0,
    fill: float | complex | Literal["keep"] = 0.0,
    in_place: bool = False,
) -> torch.Tensor:
    """:func:`transfer_` on behalf of ``function``, whose name errors carry. ``in_place``: the overlap is intended."""
    check.writable(function, "weight", weight)
    check.dense(function, "source", source)
    check.same_device(function, "source", source, weight)
    given = _by_position(function, weight, source, {} if maps is None else maps)
    scale = check.finite(function, "scale", scale)
    words = _fill_words(function, fill, weight.dtype)
    encode = _encode.__wrapped__ if torch.compiler.is_compiling() else _encode  # dynamo warns of caches
    encoded = encode(function, given, source.shape, weight.shape, source.dtype, weight.dtype, scale)
    if not in_place and check.overlap(weight, source):
        raise ValueError(
            f"{function}: source must not share memory with weight, got views of one storage; pass source.clone()"
        )
    with torch.no_grad():
        _operator(weight, source, *encoded, scale, words)
        if not torch.compiler.is_compiling():
            # A C++ operator does not do this by itself, and a stale graph would silently give a wrong gradient.
            torch.autograd.graph.increment_version(weight)
    return weight


def _by_position(
    function: str, weight: torch.Tensor, source: torch.Tensor, maps: Mapping[int, Map]
) -> tuple[tuple[int, Map], ...]:
    """The maps with their dimensions counted from the front."""
    rank = weight.ndim
    if rank > MAX_DIMENSIONS:
        raise ValueError(f"{function}: weight must have at most {MAX_DIMENSIONS} dimensions, got {rank}")
    if source.ndim != rank:
        raise ValueError(
            f"{function}: source must have the rank of weight, {rank}, got shape {tuple(source.shape)}; "
            f"add dimensions of size 1 with source.unsqueeze"
        )
    if not isinstance(maps, Mapping):
        raise TypeError(f"{function}: maps must be a dict from dimensions to maps, got {maps!r}")
    given: dict[int, Map] = {}
    for dim, map in maps.items():
        if not isinstance(map, Map):
            raise TypeError(f"{function}: maps must hold maps such as Tile(), got {map!r} for dimension {dim}")
        position = check.dimension(function, "a key of maps", dim, rank)
        if position in given:
            raise ValueError(f"{function}: maps must name each dimension once, got dimension {position} twice")
        given[position] = map
    return tuple(given.items())


# Cached: a model's weights come with the same few maps and shapes at every step.
@functools.lru_cache(maxsize=1024)
def _encode(
    function: str,
    given: tuple[tuple[int, Map], ...],
    source_shape: Sequence[int],
    weight_shape: Sequence[int],
    source_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    scale: float,
) -> tuple[list[int], list[int], list[int], list[torch.Tensor]]:
    """The operator's kinds, starts, rescales and index, once sizes and dtypes are found to fit the maps."""
    by_dim: list[Map] = [Identity()] * len(weight_shape)
    for position, map in given:
        by_dim[position] = map
    sizes = list(zip(source_shape, weight_shape, strict=True))
    for dim, (map, (n, m)) in enumerate(zip(by_dim, sizes, strict=True)):
        rule = map.misfit(n, m)
        if rule is not None:
            through = "" if isinstance(map, Identity) else f" through {type(map).__name__}"
            raise ValueError(
                f"{function}: source must {rule}, got size {n} in dimension {dim} for a weight of size {m}{through}"
            )
    copies = scale == 1.0 and all(map.copies(n, m) for map, (n, m) in zip(by_dim, sizes, strict=True))
    _check_dtypes(function, source_dtype, weight_dtype, copies)
    return (
        [KINDS.index(map.kind) for map in by_dim],
        [map.start_for(n, m) for map, (n, m) in zip(by_dim, sizes, strict=True)],
        [RESCALES.index(map.rescaling) for map in by_dim],
        [map.table for map in by_dim if isinstance(map, Select)],
    )


def _check_dtypes(function: str, source: torch.dtype, weight: torch.dtype, copies: bool) -> None:
    if weight in check.COMPUTE_DTYPES and source in check.COMPUTE_DTYPES:
        return
    if weight != source:
        raise TypeError(
            f"{function}: source must have the dtype of weight, {check.name(weight)}, unless both are "
            f"float64, float32, float16 or bfloat16, got {check.name(source)}; convert it with source.to"
        )
    if not copies:
        raise TypeError(
            f"{function}: weight must be float64, float32, float16 or bfloat16 to be scaled, averaged or resized, "
            f"got {check.name(weight)}"
        )


def _fill_words(function: str, fill: float | complex | str, dtype: torch.dtype) -> list[int]:
    """The bits of ``fill`` in ``dtype`` as little-endian 64-bit words; none for "keep"."""
    if isinstance(fill, str):
        check.choice(function, "fill", fill, ("keep",))
        return []
    if not isinstance(fill, (bool, int, float, complex)):
        raise TypeError(f'{function}: fill must be a number or "keep", got {fill!r}')
    try:
        return list(_constant_words(fill, dtype))
    except (RuntimeError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{function}: fill must be a value that {check.name(dtype)} can hold, got {fill!r}") from None


@torch.compiler.assume_constant_result
def _constant_words(fill: float | complex, dtype: torch.dtype) -> tuple[int, ...]:
    # 0.0 and -0.0, 1 and True are equal and hash alike: the cache is told them apart by their text.
    return _words(repr(fill), fill, dtype)


@functools.lru_cache(maxsize=256)
def _words(text: str, fill: float | complex, dtype: torch.dtype) -> tuple[int, ...]:
    if text in ("0.0", "0", "False"):
        return (0,) * -(-dtype.itemsize // 8)
    if not dtype.is_floating_point and not dtype.is_complex and int(fill) == fill:  # type: ignore[arg-type]
        fill = int(fill)  # type: ignore[arg-type]
    value = torch.tensor([fill], dtype=dtype)
    if dtype.is_floating_point:
        if math.isfinite(fill) != math.isfinite(value.item()):  # type: ignore[arg-type]
            raise OverflowError(text)
    elif not dtype.is_complex and value.item() != fill:
        raise ValueError(text)
    octets = value.view(torch.uint8).tolist()
    octets += [0] * (-len(octets) % 8)
    return tuple(int.from_bytes(bytes(octets[i : i + 8]), "little", signed=True) for i in range(0, len(octets), 8))


# ---------------------------------------------------------------------------------------------------- the reference


class _Dimension:
    """One dimension's map as tables over its m target positions."""

    def __init__(self, kind: str, rescale: str, start: int, n: int, m: int, index: torch.Tensor | None) -> None:
        j = torch.arange(m, dtype=torch.int64)
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
        self.factor = torch.ones(m, dtype=torch.float64)
        if rescale == "uniform":
            self.factor = torch.full((m,), n / max(m, 1), dtype=torch.float64)
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


_library.impl("transfer_", reference_transfer_, "CompositeExplicitAutograd")


@torch.library.register_fake("convweights::transfer_")
def _fake_transfer_(
    weight: torch.Tensor,
    source: torch.Tensor,
    kinds: Sequence[int],
    starts: Sequence[int],
    rescales: Sequence[int],
    index: Sequence[torch.Tensor],
    scale: float,
    fill: Sequence[int],
) -> None:
    return None
