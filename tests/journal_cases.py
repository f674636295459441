"""Cases of a journal: weights of any strides, the noise, and where the journal's parts lie; scalar loops that judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from bits import bits
from cases import Placed
from hypothesis import strategies as st

import convweights as cw
from convweights.ops.journal import CHUNK, Layout, layout_of
from convweights.ops.journal_reference import reference_journal_
from convweights.stream import DISTRIBUTIONS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
operator = torch.ops.convweights.journal_.default


@dataclass(frozen=True)
class JournalCase:
    weights: Sequence[Placed]
    streams: Sequence[int]
    starts: Sequence[int]
    layout: Layout
    distribution: str = "normal"
    scale: float = 1e-3
    seed: int = 0
    step: int = 0

    def arguments(self, device: str) -> list:
        """The operator's arguments but for the action; weights and journal are fresh."""
        journal = torch.zeros(self.layout.nbytes, dtype=torch.uint8, device=device)
        seed = self.seed - 2**64 if self.seed >= 2**63 else self.seed
        kind = DISTRIBUTIONS.index(self.distribution)
        weights = [weight.on(device) for weight in self.weights]
        places = [self.layout.sections, self.layout.rooms, self.layout.pool, self.streams, self.starts]
        return [weights, journal, *places, kind, self.scale, seed, self.step]

    def noise(self, position: int, sign: int = 1) -> torch.Tensor:
        """What is added to a weight, in row-major order."""
        weight, start = self.weights[position], self.starts[position]
        count = weight.on("cpu").numel()
        z = cw.noise(
            start + count if start < 2**20 else count,
            seed=self.seed,
            step=self.step,
            stream=self.streams[position],
            distribution=self.distribution,
        )
        return sign * torch.tensor(self.scale, dtype=torch.float32) * z[-count:] if count else z[:0]


def by_reference(arguments: list, action: int) -> None:
    reference_journal_(*arguments, action)


# Scalar loops.


def ordinal(number: torch.Tensor) -> int:
    """How many numbers of the dtype lie between 0 and a number, -0 counting as one below 0."""
    width = 8 * number.element_size()
    pattern = int(bits(number.reshape(1))[0]) % 2**width
    magnitude = pattern % 2 ** (width - 1)
    return -1 - magnitude if pattern >= 2 ** (width - 1) else magnitude


def moved(weight: torch.Tensor, d: np.float32) -> torch.Tensor:
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.tensor(np.float32(weight.float().item()) + d).to(weight.dtype)


def code(weight: torch.Tensor, d: np.float32) -> int:
    """-1, 0, 1, or 2 for an escape."""
    new = moved(weight, d)
    with np.errstate(over="ignore", invalid="ignore"):
        wide = np.float32(new.float().item())
        back = wide - d
        digits = {torch.float32: None, torch.bfloat16: 7, torch.float16: 10}[weight.dtype]
        near = digits is not None and abs(float(back)) * 2.0 ** (digits + 1) <= abs(float(wide))
    found = torch.zeros((), dtype=weight.dtype) if near else torch.tensor(back).to(weight.dtype)
    off = (ordinal(weight) - ordinal(found) + 2**31) % 2**32 - 2**31
    return off if abs(off) <= 1 else 2


# Ways to generate.


def weights_of(count: int, dtype: torch.dtype, rng: np.random.Generator, wild: bool) -> torch.Tensor:
    """Numbers about 1, some of them 0; with ``wild`` any bits but those of NaN, which a computation may change."""
    values = torch.from_numpy(rng.standard_normal(count)).to(dtype)
    values[torch.from_numpy(rng.random(count) < 0.2)] = 0.0
    if wild:
        patterns = torch.from_numpy(rng.integers(0, 256, count * dtype.itemsize, dtype=np.uint8)).view(dtype)
        other = torch.tensor([-0.0, torch.inf, -torch.inf, torch.finfo(dtype).max, torch.finfo(dtype).tiny / 4])
        patterns = torch.where(patterns.isnan(), other.to(dtype)[torch.from_numpy(rng.integers(0, 5, count))], patterns)
        values = torch.where(torch.from_numpy(rng.random(count) < 0.5), patterns, values)
    return values


SHAPES = [(), (1,), (7,), (0, 3), (130,), (5, 7), (4, 3, 3, 3), (2, 5, 1, 4), (4096,), (4097,), (70, 130), (3, 4096)]


@st.composite
def journal_cases(
    draw: st.DrawFn, most: int = 4, shapes: Sequence[tuple[int, ...]] = SHAPES, alike: bool = False
) -> JournalCase:
    """``alike``: of one dtype, since CUDA has a launch for each, and who comes to the pool first matters."""
    dtypes = [draw(st.sampled_from(DTYPES))] if alike else DTYPES
    weights, starts = [], []
    for _ in range(draw(st.integers(1, most))):
        shape, dtype = draw(st.sampled_from(shapes)), draw(st.sampled_from(dtypes))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        order = draw(st.permutations(range(len(shape)))) if draw(st.booleans()) else None
        weight = Placed.make(shape, dtype, rng, order=order, around=draw(st.integers(0, 5)))
        weight.base.copy_(weights_of(weight.base.numel(), dtype, rng, draw(st.booleans())))
        weights.append(weight)
        starts.append(draw(st.sampled_from([0, 0, CHUNK, 7 * CHUNK])))
    scale = draw(st.sampled_from([1e-6, 1e-3, 0.05, 0.5, 3.0, -0.05]))
    counts = [weight.on("cpu").numel() for weight in weights]
    share = draw(st.sampled_from([0.0, 0.002, 0.02, 0.5, 1.0]))
    layout = layout_of(counts, [weight.base.element_size() for weight in weights], [share] * len(weights))
    return JournalCase(
        weights,
        [draw(st.integers(0, 2**32 - 1)) for _ in weights],
        starts,
        layout,
        draw(st.sampled_from(DISTRIBUTIONS[1:])),
        scale,
        draw(st.integers(0, 2**64 - 1)),
        draw(st.integers(0, 2**32 - 1)),
    )
