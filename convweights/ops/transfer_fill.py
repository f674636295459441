"""What becomes of the positions of a transfer that no source position reaches."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from convweights.maps import Map, Offset
from convweights.ops import check
from convweights.ops.initializers import Initializer
from convweights.ops.numbers import number_as

Place = tuple[Sequence[int], Sequence[int]]  # offset and size


def fill_words(function: str, fill: float | complex | str | Initializer, dtype: torch.dtype) -> list[int]:
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
    except OverflowError:
        raise ValueError(f"{function}: fill must be a value that {check.name(dtype)} can hold, got {fill!r}") from None


@torch.compiler.assume_constant_result
def _constant_words(fill: float | complex, dtype: torch.dtype) -> tuple[int, ...]:
    # 0.0 and -0.0, 1 and True are equal and hash alike: the cache is told them apart by their text.
    return _words(repr(fill), fill, dtype)


@functools.lru_cache(maxsize=256)
def _words(text: str, fill: float | complex, dtype: torch.dtype) -> tuple[int, ...]:
    if text in ("0.0", "0", "False"):
        return (0,) * -(-dtype.itemsize // 8)
    value = number_as(fill, dtype)
    if value is None:
        raise OverflowError(text)
    octets = value.reshape(1).view(torch.uint8).tolist()
    octets += [0] * (-len(octets) % 8)
    return tuple(int.from_bytes(bytes(octets[i : i + 8]), "little", signed=True) for i in range(0, len(octets), 8))


# Elements that follow one another in a place to be initialised. Where they are fewer, around kernels that grow for
# instance, it is faster to initialise the whole weight first: measured, 9 ms for 49 around 512 x 512 kernels of 3 x 3.
_LEAST_RUN = 256


def are_scattered(places: Sequence[Place], whole: Sequence[int]) -> bool:
    """Whether it is faster to initialise the whole weight than the places."""
    return any(_run_of(size, whole) < _LEAST_RUN for _, size in places)


def _run_of(size: Sequence[int], whole: Sequence[int]) -> int:
    """How many elements of a place follow one another in the whole."""
    run = 1
    for part, full in zip(reversed(size), reversed(whole), strict=True):
        run *= part
        if part < full:
            break
    return run


def unreached(source: Sequence[int], weight: Sequence[int], maps: Mapping[int, Map]) -> list[Place]:
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
