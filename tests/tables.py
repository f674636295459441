"""Every map in every way it can rescale, with sizes that it leads from and to."""

from __future__ import annotations

import numpy as np
import torch
from cases import Case, Placed

from convweights.maps import RESCALES, Blocks, Identity, Interleave, Map, Mean, Offset, Resize, Select, Strided, Tile

MAPS: dict[str, tuple[Map, int, int]] = {
    "identity": (Identity(), 5, 5),
    **{f"tile {rescale}": (Tile(rescale), 3, 7) for rescale in RESCALES},
    **{f"tile fewer {rescale}": (Tile(rescale), 5, 3) for rescale in RESCALES},
    **{f"interleave {rescale}": (Interleave(rescale), 3, 7) for rescale in RESCALES},
    **{f"interleave fewer {rescale}": (Interleave(rescale), 7, 3) for rescale in RESCALES},
    **{f"blocks {rescale}": (Blocks(rescale), 8, 3) for rescale in RESCALES},
    **{f"strided {rescale}": (Strided(rescale), 8, 3) for rescale in RESCALES},
    "truncate": (Offset(2), 7, 4),
    "truncate uniform": (Offset(2, "uniform"), 7, 4),
    "pad": (Offset(-2), 3, 6),
    "pad uniform": (Offset(-2, "uniform"), 3, 6),
    "outside": (Offset(9), 3, 4),
    "center crop": (Offset("center"), 6, 3),
    "center pad": (Offset("center"), 4, 7),
    "select": (Select([4, -1, 0, 0, 2]), 5, 5),
    "select uniform": (Select([1, 1, -2]), 4, 3),
    "resize up": (Resize(), 3, 8),
    "resize down": (Resize(), 7, 3),
    "resize alike": (Resize(), 4, 4),
    "mean": (Mean(), 6, 2),
}

# Sums of many levels, of one count, of two neighbouring ones, and with taps that other dimensions number.
DEEP: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[int, Map]]] = {
    "2048": ((2, 1, 3), (2, 2048, 3), {1: Blocks()}),
    "2047": ((3, 2), (2047, 2), {0: Mean()}),
    "2048 and 2047": ((1, 2), (1, 4095), {1: Strided()}),
    "32 and 31 times 33 and 32": ((2, 2, 2), (2, 63, 65), {1: Blocks(), 2: Strided("exact")}),
    "684 to 341": ((2, 3), (3, 1024), {0: Blocks(), 1: Blocks()}),
}


def deep_case(weight_shape: tuple[int, ...], source_shape: tuple[int, ...], maps: dict[int, Map]) -> Case:
    rng = np.random.default_rng(0)
    return Case(Placed.make(weight_shape, torch.float32, rng), Placed.make(source_shape, torch.float32, rng), maps)


def small_case(map: Map, n: int, m: int, weight: torch.dtype, source: torch.dtype, scale: float = 1.0) -> Case:
    """The map in the middle of three dimensions, between rows long enough for vectors and their tails."""
    rng = np.random.default_rng(n * 31 + m)
    return Case(
        Placed.make((2, m, 19), weight, rng, around=3, wild=True),
        Placed.make((2, n, 19), source, rng, around=1, wild=True),
        {1: map},
        scale,
        -1.5,
    )
