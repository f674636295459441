"""Cases of fill: tensors of any dtype, bits and strides, what is named of them, and what goes there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cases import Placed
from checkpoints import random_bits
from hypothesis import strategies as st

from convweights.ops.fill_reference import reference_fill_

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool, torch.complex128]


@dataclass
class Fill:
    """One tensor: ``mask`` lies at ``dim``, or ``positions`` of it are listed; ``value`` broadcasts, or is one bit
    pattern."""

    weight: Placed
    dim: int = 0
    mask: torch.Tensor | None = None
    positions: Sequence[int] | None = None
    value: torch.Tensor | None = None
    word: bytes = bytes(16)


def arguments(fills: Sequence[Fill], weights: Sequence[torch.Tensor], device: str = "cpu") -> tuple[Any, ...]:
    """The operator's arguments."""

    def there(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(device)

    return (
        list(weights),
        [there(fill.mask) for fill in fills],
        [fill.dim for fill in fills],
        [-1 if fill.positions is None else len(fill.positions) for fill in fills],
        [position for fill in fills for position in fill.positions or ()],
        [there(fill.value) for fill in fills],
        [word for fill in fills for word in np.frombuffer(fill.word, "<i8").tolist()],
        False,
    )


def by_reference(fills: Sequence[Fill]) -> list[torch.Tensor]:
    weights = [fill.weight.on("cpu") for fill in fills]
    reference_fill_(*arguments(fills, weights))
    return weights


def by_oracle(fill: Fill) -> torch.Tensor:
    """Element by element, byte by byte, as the words of the docstring have it."""
    weight = fill.weight.on("cpu")
    item = weight.element_size()
    storage = np.frombuffer(memoryview(_octets(weight)), np.uint8).copy()
    shape, strides = tuple(weight.shape), weight.stride()
    for index in itertools.product(*map(range, shape)):
        if fill.positions is not None and index[fill.dim] not in fill.positions:
            continue
        if fill.mask is not None:
            place = tuple(0 if size == 1 else index[fill.dim + d] for d, size in enumerate(fill.mask.shape))
            if not fill.mask[place].item():
                continue
        octets = fill.word[:item]
        if fill.value is not None:
            missing = len(shape) - fill.value.ndim
            place = tuple(0 if size == 1 else index[missing + d] for d, size in enumerate(fill.value.shape))
            octets = _bytes_of(fill.value[place])
        at = (weight.storage_offset() + sum(i * s for i, s in zip(index, strides, strict=True))) * item
        storage[at : at + item] = np.frombuffer(octets, np.uint8)
    return torch.from_numpy(storage).view(weight.dtype)


def _octets(tensor: torch.Tensor) -> bytes:
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return whole.view(torch.uint8).numpy().tobytes()


def _bytes_of(element: torch.Tensor) -> bytes:
    return element.clone().reshape(1).view(torch.uint8).numpy().tobytes()


@st.composite
def fills(draw: st.DrawFn, most: int = 5) -> Fill:
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, most) | st.integers(1, 3), min_size=0, max_size=5)))
    seed = draw(st.integers(0, 2**32 - 1))
    rng, rank = np.random.default_rng(seed), len(shape)
    order = tuple(draw(st.permutations(range(rank)))) if rank else None
    weight = Placed.make(shape, dtype, rng, order=order, around=draw(st.integers(0, 2)))
    bits = random_bits((max(1, weight.base.numel()),), dtype, seed)[: weight.base.numel()]
    weight.base.copy_(bits)
    case = Fill(weight, word=rng.bytes(16) if dtype != torch.bool else bytes([int(rng.integers(2))] * 16))
    kind = draw(st.sampled_from(["all", "mask", "mask", "positions"])) if rank else "all"
    if kind == "positions":
        case.dim = draw(st.integers(0, rank - 1))
        n = shape[case.dim]
        case.positions = sorted(draw(st.sets(st.integers(0, max(0, n - 1)), max_size=n))) if n else []
    elif kind == "mask":
        case.dim = draw(st.integers(0, rank - 1))
        end = draw(st.integers(case.dim + 1, rank))
        sizes = [draw(st.sampled_from([n, n, 1])) for n in shape[case.dim : end]]
        case.mask = torch.from_numpy(rng.random(sizes) < draw(st.sampled_from([0.0, 0.3, 0.8, 1.0])))
        if draw(st.booleans()):
            case.mask = case.mask.mT.contiguous().mT if case.mask.ndim > 1 else case.mask
    if draw(st.booleans()):
        lead = draw(st.integers(0, rank))
        sizes = tuple(draw(st.sampled_from([n, 1])) for n in shape[lead:])
        case.value = random_bits(sizes, dtype, seed + 1) if math.prod(sizes) else torch.empty(sizes, dtype=dtype)
    return case
