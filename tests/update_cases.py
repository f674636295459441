"""One call of update_ to test: tensors placed in larger storages, with masks, streams and boxes, and a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from bits import assert_same_bits, storage_of
from cases import Placed
from hypothesis import strategies as st
from oracle import COMPUTE_DTYPES

from convweights.ops.update_reference import reference_update_
from convweights.stream import DISTRIBUTIONS

operator = torch.ops.convweights.update_.default
RECIPE: dict[str, Any] = {
    "distribution": "normal",
    "decay": 1.0,
    "shift": 0.0,
    "scales": [1e-3],
    "seeds": [0],
    "step": 0,
    "accumulate": False,
    "stochastic": False,
}


@dataclass(frozen=True)
class Target:
    """A weight, the mask placed likewise, its stream and its box."""

    weight: Placed
    stream: int = 0
    mask: Placed | None = None
    box: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __repr__(self) -> str:
        mask = "" if self.mask is None else f", mask {self.mask.shape} strides {self.mask.stride}"
        weight = f"{self.weight.base.dtype} {self.weight.shape} strides {self.weight.stride}"
        return f"({weight} at {self.weight.offset}, stream {self.stream}{mask}, box {self.box})"


@dataclass(frozen=True)
class UpdateCase:
    targets: Sequence[Target]
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def full(self) -> dict[str, Any]:
        return {**RECIPE, **self.recipe}

    def arguments(self, device: str) -> tuple[Any, ...]:
        """The operator's arguments; the weights are fresh copies in storages of their own."""
        r = self.full
        weights = [target.weight.on(device) for target in self.targets]
        masks = [target.mask and target.mask.on(device) for target in self.targets]
        boxes: list[int] = []
        if any(target.box for target in self.targets):
            for target in self.targets:
                shape = target.weight.shape
                whole, offset = target.box or (shape, (0,) * len(shape))
                boxes += [*whole, *offset]
        seeds = [seed - 2**64 if seed >= 2**63 else seed for seed in r["seeds"]]
        return (
            weights,
            masks if any(mask is not None for mask in masks) else [],
            [target.stream for target in self.targets],
            boxes,
            DISTRIBUTIONS.index(r["distribution"]),
            r["decay"],
            r["shift"],
            r["scales"],
            seeds,
            r["step"],
            r["accumulate"],
            r["stochastic"],
            False,
            None,
        )

    def by_reference(self) -> list[torch.Tensor]:
        arguments = self.arguments("cpu")
        reference_update_(*arguments)
        return arguments[0]

    def by_operator(self, device: str) -> list[torch.Tensor]:
        arguments = self.arguments(device)
        with torch.no_grad():
            operator(*arguments)
        return arguments[0]

    def check(self, device: str) -> None:
        """The operator leaves the reference's bits, in the weights and around them."""
        for actual, expected in zip(self.by_operator(device), self.by_reference(), strict=True):
            assert_same_bits(storage_of(actual), storage_of(expected), computed=True)


def plain(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, *, stream: int = 0, wild: bool = False, **placed: Any
) -> Target:
    rng = np.random.default_rng(len(shape))
    return Target(Placed.make(shape, dtype, rng, wild=wild, **placed), stream)


SHAPES = [(), (1,), (7,), (0, 3), (64,), (130,), (5, 7), (4, 3, 3, 3), (2, 5, 1, 4), (3, 70), (1100,), (2, 1, 1030)]
NUMBERS = (0.0, 1.0, -1.0, 0.5, 1e-3, 1e-46, -3.0, 1 / 3)


@st.composite
def targets(draw: st.DrawFn, dtypes: Sequence[torch.dtype], shapes: Sequence[tuple[int, ...]] = SHAPES) -> Target:
    shape = draw(st.sampled_from(shapes))
    rank = len(shape)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    order = draw(st.permutations(range(rank))) if draw(st.booleans()) else None
    steps = [draw(st.integers(1, 3)) for _ in shape] if draw(st.booleans()) else None
    weight = Placed.make(
        shape,
        draw(st.sampled_from(dtypes)),
        rng,
        order=order,
        steps=steps,
        around=draw(st.integers(0, 9)),
        wild=draw(st.booleans()),
    )
    mask = None
    if draw(st.integers(0, 3)) == 0:
        mask_shape = [size if draw(st.booleans()) else 1 for size in shape]
        mask = Placed.make(mask_shape, torch.bool, rng, around=draw(st.integers(0, 3)))
    box = None
    if rank and draw(st.booleans()):
        offset = [draw(st.integers(0, 9)) for _ in shape]
        # The first dimension decides how far the index goes: past 2^34, where a call's position needs a second word.
        offset[0] = draw(st.sampled_from([offset[0], 2**34 // max(1, int(np.prod(shape[1:]))) - 1, 2**39 + 3]))
        whole = [size + start + draw(st.integers(0, 5)) for size, start in zip(shape, offset, strict=True)]
        while np.prod([float(size) for size in whole]) > 2**50:
            offset[0] //= 2
            whole[0] = shape[0] + offset[0]
        box = (tuple(whole), tuple(offset))
    return Target(weight, draw(st.integers(0, 2**32 - 1)), mask, box)


@st.composite
def recipes(draw: st.DrawFn, stochastic: bool = False) -> dict[str, Any]:
    accumulate = draw(st.integers(0, 3)) == 0
    count = draw(st.integers(1, 4)) if accumulate else 1
    kinds = DISTRIBUTIONS[1:] if accumulate else DISTRIBUTIONS
    return {
        "distribution": draw(st.sampled_from(kinds)),
        "decay": draw(st.sampled_from(NUMBERS)),
        "shift": draw(st.sampled_from(NUMBERS)),
        "scales": [draw(st.sampled_from(NUMBERS)) for _ in range(count)],
        "seeds": [draw(st.integers(0, 2**64 - 1)) for _ in range(count)],
        "step": draw(st.integers(0, 2**32 - 1)),
        "accumulate": accumulate,
        "stochastic": stochastic,
    }


@st.composite
def update_cases(draw: st.DrawFn, most: int = 4, shapes: Sequence[tuple[int, ...]] = SHAPES) -> UpdateCase:
    stochastic = draw(st.integers(0, 3)) == 0
    dtypes = (torch.float16, torch.bfloat16) if stochastic else COMPUTE_DTYPES
    chosen = draw(st.lists(targets(dtypes, shapes), min_size=1, max_size=most))
    return UpdateCase(chosen, draw(recipes(stochastic)))
