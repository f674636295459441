"""The verb *transfer*: ``weight[j] = cast(factor * sum over a window of source)``, one map per dimension.

The schema, the public function and its checks. The pure-torch reference, which also serves the devices that have no
native kernel, is in transfer_reference.py; csrc/ops/transfer.h is the same meaning in C++.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from convweights.maps import KINDS, RESCALES, Identity, Map, Select
from convweights.ops import check
from convweights.ops.initializers import Initializer
from convweights.ops.transfer_fill import are_scattered, fill_words, unreached
from convweights.ops.transfer_reference import reference_transfer_
from convweights.ops.update_call import initialize_as
from convweights.ops.versions import bump_versions, write

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
    words = fill_words(function, fill, weight.dtype)
    if isinstance(fill, Initializer):
        fill.checked(function, weight.shape, weight.dtype)
    cached = encode.__wrapped__ if torch.compiler.is_compiling() else encode  # dynamo warns of caches
    encoded = cached(function, given, source.shape, weight.shape, source.dtype, weight.dtype, scale)
    if not in_place and check.overlap(weight, source):
        raise ValueError(
            f"{function}: source must not share memory with weight, got views of one storage; pass source.clone()"
        )
    initializer = fill if isinstance(fill, Initializer) else None
    places = unreached(source.shape, weight.shape, dict(given)) if initializer else []
    whole = are_scattered(places, weight.shape)
    if initializer and whole:
        initialize_as(function, weight, initializer)
    write((weight,), _operator, weight, source, *encoded, scale, words)
    if initializer and not whole:
        for offset, size in places:
            piece = weight.detach()[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))]
            initialize_as(function, piece, initializer, box=(weight.shape, offset))
    return weight


def _by_position(
    function: str, weight: torch.Tensor, source: torch.Tensor, maps: Mapping[int, Map]
) -> tuple[tuple[int, Map], ...]:
    """The maps with their dimensions counted from the front."""
    rank = weight.ndim
    check.rank(function, "weight", weight)
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
def encode(
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


_library.impl("transfer_", reference_transfer_, "CompositeExplicitAutograd")
bump_versions(_library, "transfer_", _operator, lambda weight, *rest: (weight,))


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
