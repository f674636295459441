"""Targets above 32 MB, which the CPU writes past its caches; the reference is the judge. Family: exact."""

import numpy as np
import pytest
import torch
from cases import Case, Placed

import convweights as cw

CASES = {
    "cast": ((4099, 4133), (4099, 4133), {}, torch.bfloat16, 1.0),
    "inflate": ((301, 257, 13, 3, 3), (301, 257, 1, 3, 3), {2: cw.Tile("exact")}, torch.float32, 1.0),
    "pad": ((2051, 4127), (2040, 4100), {0: cw.Pad(3), 1: cw.Pad(5)}, torch.float32, 1 / 3),
    "average": ((511, 1024, 17), (511, 2048, 17), {1: cw.Blocks()}, torch.float32, 1.0),
}


@pytest.mark.parametrize("around", [0, 3])
@pytest.mark.parametrize("name", CASES)
def test_streamed(device: str, name: str, around: int):
    shape, source_shape, maps, dtype, scale = CASES[name]
    rng = np.random.default_rng(0)
    weight = Placed.make(shape, dtype, rng, around=around)
    assert weight.base.nbytes >= 32 << 20
    source = Placed.make(source_shape, torch.float32, rng)
    Case(weight, source, maps, scale, fill=-2.0).check(device)
