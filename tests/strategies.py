"""What hypothesis draws: small transfers for the oracle, large ones whose judge is the reference."""

from __future__ import annotations

import numpy as np
import torch
from cases import COPY_ONLY_DTYPES, Case, Placed
from hypothesis import strategies as st
from oracle import COMPUTE_DTYPES

from convweights.maps import (
    RESCALES,
    Blocks,
    Identity,
    Interleave,
    Map,
    Mean,
    Offset,
    Resize,
    Select,
    Strided,
    Tile,
)

# Rank by rank: the largest size, so that a loop in Python ends.
LARGEST = {0: 1, 1: 40, 2: 9, 3: 6, 4: 4, 5: 3, 8: 2}
SCALES = (1.0, 1.0, 1.0, -0.5, 1 / 3, 3.0, 0.0, -1.0, 1 + 1e-12, 1e-42, 1e300)
FLOAT_FILLS = (0.0, 0.0, -0.0, 1.5, float("nan"), float("-inf"), "keep", "keep")


@st.composite
def dimensions(draw: st.DrawFn, largest: int, copies: bool) -> tuple[Map, int, int]:
    """A map and the sizes n and m that it leads from and to."""
    kinds = ["identity", "tile", "interleave", "offset", "select"]
    kinds += ["averaged alone"] if copies else ["blocks", "strided", "resize", "mean"]
    kind = draw(st.sampled_from(kinds))
    n, m = draw(st.integers(0, largest)), draw(st.integers(0, largest))
    shift_rescale = st.sampled_from(["none", "none"] if copies else ["none", "uniform"])
    rescale = st.sampled_from(["none"] if copies else RESCALES)
    if kind == "identity":
        return Identity(), n, n
    if kind == "offset":
        start = draw(st.one_of(st.just("center"), st.integers(-largest - 1, largest + 1)))
        return Offset(start, draw(shift_rescale)), n, m
    if kind == "averaged alone":
        return draw(st.sampled_from([Blocks(), Strided(), Resize(), Tile("uniform"), Offset(0, "uniform")])), n, n
    if kind in ("blocks", "strided"):
        n, m = max(n, m), min(n, m)
        return draw(st.sampled_from([Blocks, Strided]))(draw(rescale)), n, m
    n = max(n, 1)
    if kind in ("tile", "interleave"):
        return draw(st.sampled_from([Tile, Interleave]))(draw(rescale)), n, m
    if kind == "select":
        return Select(draw(st.lists(st.integers(-n, n - 1), min_size=m, max_size=m)), draw(shift_rescale)), n, m
    return draw(st.sampled_from([Resize(), Mean()])), n, m


def dtype_pairs() -> st.SearchStrategy[tuple[torch.dtype, torch.dtype]]:
    compute = st.sampled_from(COMPUTE_DTYPES)
    alike = st.sampled_from(COMPUTE_DTYPES + COPY_ONLY_DTYPES).map(lambda dtype: (dtype, dtype))
    return st.one_of(st.tuples(compute, compute), alike)


def fills(dtype: torch.dtype) -> st.SearchStrategy[float | complex | str]:
    if dtype in COMPUTE_DTYPES:
        return st.sampled_from(FLOAT_FILLS)
    if dtype.is_complex:
        return st.sampled_from([0.0, 1 - 2j, complex("nan"), "keep"])
    if dtype.is_floating_point:
        return st.sampled_from([0.0, "keep"] if "float4" in str(dtype) else [0.0, 2.0, "keep"])
    if dtype == torch.bool:
        return st.sampled_from([0.0, True, "keep"])
    info = torch.iinfo(dtype)
    return st.sampled_from([0.0, 1, int(info.max), int(info.min), "keep"])


@st.composite
def placed(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype, *, source: bool, wild: bool) -> Placed:
    rank = len(shape)
    order = draw(st.permutations(range(rank))) if draw(st.booleans()) else list(range(rank))
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in range(rank)] if draw(st.booleans()) else None
    expanded = [dim for dim in range(rank) if draw(st.integers(0, 5)) == 0] if source else []
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    around = draw(st.sampled_from([0, 1, 3, 16]))
    return Placed.make(shape, dtype, rng, order=order, steps=steps, expanded=expanded, around=around, wild=wild)


@st.composite
def small_cases(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from([0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 8]))
    weight_dtype, source_dtype = draw(dtype_pairs())
    compute = weight_dtype in COMPUTE_DTYPES
    dims = [draw(dimensions(LARGEST[rank], not compute)) for _ in range(rank)]
    maps = {dim - rank * draw(st.integers(0, 1)): map for dim, (map, _, _) in enumerate(dims) if map.kind != "identity"}
    wild = draw(st.booleans())
    return Case(
        draw(placed(tuple(m for _, _, m in dims), weight_dtype, source=False, wild=wild)),
        draw(placed(tuple(n for _, n, _ in dims), source_dtype, source=True, wild=wild)),
        maps,
        draw(st.sampled_from(SCALES)) if compute else 1.0,
        draw(fills(weight_dtype)),
    )


# Target shape, source shape, maps: convolutions and linear layers as they are in real networks, odd sizes among them.
REALISTIC: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[int, Map]]] = {
    "stem 3 to 64": ((64, 64, 7, 7), (64, 3, 7, 7), {1: Tile("uniform")}),
    "stem 3 to 13": ((61, 13, 7, 7), (61, 3, 7, 7), {1: Tile("exact")}),
    "stem interleaved": ((64, 9, 7, 7), (64, 3, 7, 7), {1: Interleave()}),
    "windows of 2": ((37, 64, 3, 3), (37, 128, 3, 3), {1: Blocks()}),
    "windows of 3": ((64, 31, 3, 3), (64, 93, 3, 3), {1: Strided()}),
    "windows of 4": ((64, 33, 1, 1), (64, 132, 1, 1), {1: Blocks("exact")}),
    "windows of 5": ((50, 64, 3, 3), (250, 64, 3, 3), {0: Strided("uniform")}),
    "windows of 16": ((64, 16, 5, 5), (64, 256, 5, 5), {1: Blocks()}),
    "windows of 300": ((16, 2, 3, 3), (16, 600, 3, 3), {1: Blocks()}),
    "ragged windows": ((32, 17, 3, 3), (32, 55, 3, 3), {1: Blocks("uniform")}),
    "ragged in and out": ((13, 9, 3, 3), (50, 40, 3, 3), {0: Strided(), 1: Blocks("exact")}),
    "in and out": ((48, 24, 3, 3), (64, 48, 3, 3), {0: Offset(8), 1: Strided()}),
    "select": (
        (65, 40, 3, 3),
        (70, 48, 3, 3),
        {0: Select([*range(69, 4, -1)]), 1: Select([*range(0, 48, 2)] + [3] * 16)},
    ),
    "pad": ((70, 40, 5, 5), (64, 33, 3, 3), {0: Offset(-3), 1: Offset(-7), 2: Offset("center"), 3: Offset("center")}),
    "crop": ((63, 31, 3, 3), (64, 33, 7, 7), {0: Offset(1), 1: Offset(2), 2: Offset("center"), 3: Offset("center")}),
    "resize": ((32, 16, 7, 7), (32, 16, 3, 3), {2: Resize(), 3: Resize()}),
    "resize down": ((32, 16, 4, 3), (32, 16, 11, 7), {2: Resize(), 3: Resize()}),
    "inflate": ((32, 24, 5, 3, 3), (32, 24, 1, 3, 3), {2: Tile("exact")}),
    "mean": ((64, 40, 3, 3), (64, 40, 3, 3), {1: Mean()}),
    "linear": ((257, 129), (257, 129), {}),
    "linear grown": ((257, 131), (64, 129), {0: Tile(), 1: Offset(-1)}),
    "linear averaged": ((129, 257), (129, 1028), {1: Blocks()}),
    "vector": ((9_001,), (9_001,), {}),
    "vector padded": ((9_001,), (8_801,), {0: Offset(-17)}),
    "copied whole": ((64, 48, 3, 3), (64, 48, 3, 3), {}),
    "pointwise": ((129, 130, 1, 1), (129, 130, 1, 1), {}),
}
