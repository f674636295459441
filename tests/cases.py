"""One transfer to test: two tensors placed in larger storages, maps, scale and fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from bits import assert_same_bits, bits, storage_of
from oracle import COMPUTE_DTYPES, computed_positions

import convweights as cw
from convweights.maps import KINDS, RESCALES, Identity, Map
from convweights.ops.transfer_reference import reference_transfer_

COPY_ONLY_DTYPES = tuple(
    getattr(torch, name)
    for name in [
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
        "complex64",
        "complex128",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float4_e2m1fn_x2",
    ]
    if hasattr(torch, name)
)


def random_values(count: int, dtype: torch.dtype, rng: np.random.Generator, wild: bool) -> torch.Tensor:
    """Ordinary numbers; with ``wild`` random bits too, NaNs with payloads, infinities, signed zeros, subnormals."""
    if dtype == torch.bool:
        return torch.from_numpy(rng.integers(0, 2, count).astype(bool))
    if dtype not in COMPUTE_DTYPES:
        return torch.from_numpy(rng.integers(0, 256, count * dtype.itemsize, dtype=np.uint8)).view(dtype)
    values = torch.from_numpy(rng.standard_normal(count) * 2.0 ** rng.integers(-3, 4, count)).to(dtype)
    if wild:
        info, width = torch.finfo(dtype), dtype.itemsize
        random_bits = torch.from_numpy(rng.integers(0, 256, count * width, dtype=np.uint8)).view(dtype)
        special = torch.tensor(
            [0.0, -0.0, torch.inf, -torch.inf, torch.nan, info.max, info.min, info.tiny], dtype=dtype
        )
        infinity = bits(special[2:3])
        # One above infinity is a signalling NaN, one below zero's neighbour the smallest subnormal.
        odd = torch.cat([infinity + 1, bits(-special[4:5]) | 3, torch.ones_like(infinity), bits(special[7:8]) - 1])
        pool = torch.cat([special, odd.view(dtype)])
        chosen = pool[torch.from_numpy(rng.integers(0, len(pool), count))]
        kind = torch.from_numpy(rng.random(count))
        values = torch.where(kind < 0.15, bits(random_bits), bits(values)).view(dtype)
        values = torch.where(kind > 0.7, bits(chosen), bits(values)).view(dtype)
    return values


@dataclass(frozen=True)
class Placed:
    """A tensor as a strided window into a storage of its own, which is full of other values."""

    base: torch.Tensor
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @staticmethod
    def make(
        shape: Sequence[int],
        dtype: torch.dtype,
        rng: np.random.Generator,
        *,
        order: Sequence[int] | None = None,
        steps: Sequence[int] | None = None,
        expanded: Sequence[int] = (),
        around: int = 0,
        wild: bool = False,
    ) -> Placed:
        """``order`` lists dimensions from the outermost to the innermost, ``steps`` are those of a slice of each."""
        rank = len(shape)
        stride, span = [0] * rank, 1
        for dim in reversed(order or range(rank)):
            if dim in expanded:
                continue
            step = steps[dim] if steps else 1
            stride[dim] = span * step
            span *= max(shape[dim], 1) * step
        base = random_values(span + 2 * around, dtype, rng, wild)
        return Placed(base, tuple(shape), tuple(stride), around)

    def on(self, device: str) -> torch.Tensor:
        """A fresh copy of the whole storage on the device, and the tensor in it."""
        return self.base.clone().to(device).as_strided(self.shape, self.stride, self.offset)


@dataclass(frozen=True)
class Case:
    weight: Placed
    source: Placed
    maps: Mapping[int, Map] = field(default_factory=dict)
    scale: float = 1.0
    fill: float | complex | str = 0.0

    def __repr__(self) -> str:
        def shown(placed: Placed) -> str:
            return f"{placed.base.dtype} {placed.shape} strides {placed.stride}"

        return f"Case({shown(self.source)} -> {shown(self.weight)}, {self.maps}, {self.scale}, fill={self.fill})"

    def encoded(self) -> tuple[list[int], list[int], list[int], list[torch.Tensor], float, list[int]]:
        """The op's arguments behind weight and source."""
        rank = len(self.weight.shape)
        by_dim = [Identity()] * rank
        for dim, map in self.maps.items():
            by_dim[dim % rank] = map
        return (
            [KINDS.index(map.kind) for map in by_dim],
            [map.start_for(n, m) for map, n, m in zip(by_dim, self.source.shape, self.weight.shape, strict=True)],
            [RESCALES.index(getattr(map, "rescale", "none")) for map in by_dim],
            [torch.tensor(map.index, dtype=torch.int64) for map in by_dim if map.kind == "select"],
            self.scale,
            fill_words(self.fill, self.weight.base.dtype),
        )

    def by_reference(self) -> torch.Tensor:
        weight = self.weight.on("cpu")
        reference_transfer_(weight, self.source.on("cpu"), *self.encoded())
        return weight

    def by_function(self, device: str) -> torch.Tensor:
        weight, source = self.weight.on(device), self.source.on(device)
        assert cw.transfer_(weight, source, self.maps, scale=self.scale, fill=self.fill) is weight
        assert_same_bits(storage_of(source), self.source.base)
        return weight

    def computed(self) -> torch.Tensor:
        """Over the weight's storage: where a NaN's payload is open."""
        mask = torch.zeros(len(self.weight.base), dtype=torch.bool)
        place = mask.as_strided(self.weight.shape, self.weight.stride, self.weight.offset)
        place.copy_(computed_positions(place_like(self.weight), place_like(self.source), self.maps, self.scale))
        return mask

    def check(self, device: str) -> None:
        """The public function on the device leaves the reference's bits, in the weight and around it."""
        assert_same_bits(storage_of(self.by_function(device)), storage_of(self.by_reference()), self.computed())


def place_like(placed: Placed) -> torch.Tensor:
    return placed.base.as_strided(placed.shape, placed.stride, placed.offset)


def fill_words(fill: float | complex | str, dtype: torch.dtype) -> list[int]:
    if isinstance(fill, str):
        return []
    if repr(fill) in ("0", "0.0"):
        octets = bytes(dtype.itemsize)
    else:
        octets = bytes(torch.tensor([fill], dtype=dtype).view(torch.uint8).tolist())
    octets += bytes(-len(octets) % 8)
    return [int.from_bytes(octets[i : i + 8], "little", signed=True) for i in range(0, len(octets), 8)]
