"""The verb *transfer*: ``weight[j] = cast(factor * sum over a window of source)``, one map per dimension.

The schema, the public function and its checks. The pure-torch reference, which also serves the devices that have no
native kernel, is in transfer_reference.py; csrc/ops/transfer.h is the same meaning in C++.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from convweights.maps import KINDS, RESCALES, Identity, Map, Offset, Select
from convweights.ops import check
from convweights.ops.initializers import Initializer
from convweights.ops.transfer_reference import reference_transfer_
from convweights.ops.update_call import initialize_as

MAX_DIMENSIONS = 8
Place = tuple[Sequence[int], Sequence[int]]  # offset and size

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
    fill: float | complex | Literal["keep"] | Initializer = 0.0,
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
        fill: what becomes of positions that no source position reaches: a value, ``"keep"``, or an initialiser such
            as ``cw.init.KaimingNormal(seed=0, stream="conv1.weight")``, which gives them what it would give the whole
            weight there.

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
    fill: float | complex | Literal["keep"] | Initializer = 0.0,
    in_place: bool = False,
) -> torch.Tensor:
    """:func:`transfer_` on behalf of ``function``, whose name errors carry. ``in_place``: the overlap is intended."""
    check.writable(function, "weight", weight)
    check.dense(function, "source", source)
    check.same_device(function, "source", source, weight)
    given = _by_position(function, weight, source, {} if maps is None else maps)
    scale = check.finite(function, "scale", scale)
    words = _fill_words(function, fill, weight.dtype)
    if isinstance(fill, Initializer):
        fill.checked(function, weight.shape)
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
    if isinstance(fill, Initializer):
        for offset, size in _unreached(source.shape, weight.shape, dict(given)):
            piece = weight.detach()[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))]
            initialize_as(function, piece, fill, box=(weight.shape, offset))
    return weight


def _unreached(source: Sequence[int], weight: Sequence[int], maps: Mapping[int, Map]) -> list[Place]:
    """The parts of the weight that no source position reaches, as places that do not overlap."""
    places: list[Place] = []
    offset, size = [0] * len(weight), list(weight)
    for dim, (n, m) in enumerate(zip(source, weight, strict=True)):
        if not isinstance(maps.get(dim), Offset):
            continue
        start = maps[dim].start_for(n, m)
        begin, end = min(max(-start, 0), m), max(min(n - start, m), 0)
        begin = min(begin, end)
        for first, last in ((0, begin), (end, m)):
            if last > first:
                places.append(
                    (
                        [first if d == dim else o for d, o in enumerate(offset)],
                        [last - first if d == dim else s for d, s in enumerate(size)],
                    )
                )
        # What the dimensions that follow leave out lies inside what this one reaches.
        offset[dim], size[dim] = begin, end - begin
    return [place for place in places if math.prod(place[1])]


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


def _fill_words(function: str, fill: float | complex | str | Initializer, dtype: torch.dtype) -> list[int]:
    """The bits of ``fill`` in ``dtype`` as little-endian 64-bit words; none for "keep"."""
    if isinstance(fill, Initializer):
        if dtype not in check.COMPUTE_DTYPES:
            got = type(fill).__name__
            raise ValueError(f"{function}: fill must be a value that {check.name(dtype)} can hold, got {got}")
        return []
    if isinstance(fill, str):
        if fill != "keep":
            raise ValueError(f'{function}: fill must be a number, "keep" or an initialiser, got {fill!r}')
        return []
    if isinstance(fill, np.generic):
        fill = fill.item()
    if not isinstance(fill, (bool, int, float, complex)):
        raise TypeError(f'{function}: fill must be a number, "keep" or an initialiser, got {fill!r}')
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
