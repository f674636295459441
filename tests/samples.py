"""Sample inputs: of the op, and of every public function that writes. The contract's tests walk over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cases import Case, Placed
from fill_cases import Fill
from oracle import COMPUTE_DTYPES
from update_cases import Target, UpdateCase, plain

import convweights as cw


def _case(
    weight: tuple[int, ...],
    source: tuple[int, ...],
    maps: dict[int, cw.Map],
    weight_dtype: torch.dtype = torch.float32,
    source_dtype: torch.dtype = torch.float32,
    order: tuple[int, ...] | None = None,
    **rest: Any,
) -> Case:
    rng = np.random.default_rng(0)
    return Case(
        Placed.make(weight, weight_dtype, rng), Placed.make(source, source_dtype, rng, order=order), maps, **rest
    )


OP_SAMPLES: dict[str, Case] = {
    "copy": _case((3, 4), (3, 4), {}),
    "scalar": _case((), (), {}, scale=2.0),
    "empty": _case((0, 4), (0, 4), {}),
    "cast": _case((3, 4), (3, 4), {}, torch.bfloat16),
    "tile": _case((4, 7, 3, 3), (4, 3, 3, 3), {1: cw.Tile("uniform")}),
    "interleave": _case((4, 7, 3, 3), (4, 3, 3, 3), {1: cw.Interleave("exact")}),
    "blocks": _case((4, 2, 3, 3), (4, 7, 3, 3), {1: cw.Blocks()}, torch.float16, torch.float64),
    "strided": _case((4, 2, 3, 3), (4, 7, 3, 3), {1: cw.Strided()}),
    "pad": _case((4, 5, 5, 5), (4, 3, 3, 3), {1: cw.Pad(1), 2: cw.Center(), 3: cw.Center()}, fill=-0.0),
    "keep": _case((4, 5), (4, 3), {1: cw.Truncate(1)}, fill="keep"),
    "select": _case((4, 3), (6, 3), {0: cw.Select([5, 0, -1, 2]), 1: cw.Select([2, 1, 0])}),
    "resize": _case((4, 3, 7, 5), (4, 3, 3, 9), {2: cw.Resize(), 3: cw.Resize()}),
    "mean": _case((4, 3), (4, 5), {1: cw.Mean()}),
    "permuted": _case((8, 6, 3, 3), (8, 6, 3, 3), {}, order=(2, 3, 1, 0)),
    "integers": _case((3, 9), (3, 4), {1: cw.Tile()}, torch.int64, torch.int64, fill=7),
    "complex": _case((3, 9), (3, 4), {1: cw.Pad(2)}, torch.complex64, torch.complex64, fill=1 - 2j),
}


def _row(*dtypes: torch.dtype, **rest: Any) -> list[Target]:
    return [plain((3 + k, 5), dtype, stream=k, **rest) for k, dtype in enumerate(dtypes)]


UPDATE_SAMPLES: dict[str, UpdateCase] = {
    "normal": UpdateCase(_row(torch.float32)),
    "every dtype": UpdateCase(_row(*COMPUTE_DTYPES), {"decay": 0.5, "shift": 1.0, "distribution": "uniform"}),
    "strided": UpdateCase(_row(torch.float32, torch.float16, order=(1, 0)), {"distribution": "rademacher"}),
    "seeds": UpdateCase(_row(torch.bfloat16), {"accumulate": True, "seeds": [1, 2], "scales": [0.5, -0.5]}),
    "stochastic": UpdateCase(_row(torch.bfloat16, torch.float16), {"stochastic": True, "seeds": [2**64 - 1]}),
    "no noise": UpdateCase(_row(torch.float64), {"distribution": "none", "decay": 0.9}),
    "masked": UpdateCase([Target(plain((4, 6)).weight, 1, plain((4, 1), torch.bool).weight)]),
    "box": UpdateCase([Target(plain((4, 6)).weight, 1, None, ((8, 6), (4, 0))), *_row(torch.float32)]),
    "empty": UpdateCase([plain((0, 3)), plain(())]),
    "nothing": UpdateCase([]),
}


FILL_SAMPLES: dict[str, list[Fill]] = {
    "everything": [Fill(plain((3, 4)).weight)],
    "filters": [Fill(plain((3, 4)).weight, mask=torch.tensor([True, False, True]))],
    "channels": [Fill(plain((3, 4, 2)).weight, dim=1, positions=[0, 1, 3])],
    "elements": [Fill(plain((3, 4), torch.bfloat16).weight, mask=torch.eye(3, 4, dtype=torch.bool))],
    "values": [
        Fill(plain((3, 4)).weight, positions=[], value=torch.ones(4)),
        Fill(plain((2, 3), torch.float64).weight, value=torch.ones(2, 1, dtype=torch.float64)),
    ],
    "strided": [Fill(plain((3, 4), order=(1, 0)).weight, dim=1, mask=torch.tensor([True, False, True, False]))],
    "empty": [Fill(plain((0, 3)).weight), Fill(plain(()).weight)],
}


@dataclass(frozen=True)
class Writer:
    """A public function that writes its first argument, of ``shape``; ``source`` is the shape of the second, if any."""

    function: Callable[..., torch.Tensor]
    shape: tuple[int, ...]
    source: tuple[int, ...] | None
    keywords: dict[str, Any]
    returns_weight: bool = True

    def arguments(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.source is None:
            return (weight,)
        return weight, torch.rand(self.source, generator=torch.Generator().manual_seed(1)).to(weight)

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return self.function(*self.arguments(weight), **self.keywords)


DRAWN = {"seed": 1, "step": 2, "stream": "conv.weight"}
GROWN, SHRUNK = (64, 16, 3, 3), (64, 4, 3, 3)
WRITERS: dict[str, Writer] = {
    "transfer_": Writer(cw.transfer_, GROWN, GROWN, {}),
    "transfer_ maps": Writer(
        cw.transfer_,
        (64, 16, 5, 5),
        (60, 16, 3, 3),
        {"maps": {0: cw.Pad(2), 1: cw.Select(range(15, -1, -1)), 2: cw.Resize(), 3: cw.Center()}, "fill": 0.5},
    ),
    "replicate_channels_": Writer(cw.replicate_channels_, GROWN, SHRUNK, {"rescale": "uniform"}),
    "average_channels_": Writer(cw.average_channels_, SHRUNK, GROWN, {}),
    "average_channels_ in place": Writer(cw.average_channels_, GROWN, None, {"groups": 4, "order": "strided"}),
    "truncate_channels_": Writer(cw.truncate_channels_, SHRUNK, GROWN, {"dim": 1, "start": 3}),
    "truncate_channels_ in place": Writer(
        cw.truncate_channels_, GROWN, None, {"dim": 1, "start": 3, "keep": 4}, returns_weight=False
    ),
    "transfer_ filled by an initialiser": Writer(
        cw.transfer_,
        GROWN,
        SHRUNK,
        {"maps": {1: cw.Pad(2)}, "fill": cw.init.KaimingNormal(seed=1, stream="conv.weight")},
    ),
    "fill_filters_": Writer(cw.fill_filters_, GROWN, None, {"mask": [0, 5, -1], "value": 0.5}),
    "fill_filters_ of channels": Writer(cw.fill_filters_, GROWN, None, {"mask": range(4), "dim": 1}),
    "update_": Writer(cw.update_, GROWN, None, {"decay": 0.5, "shift": 0.25}),
    "update_ with noise": Writer(
        cw.update_, GROWN, None, {"decay": 0.0, "scale": 0.5, **DRAWN, "distribution": "uniform"}
    ),
    "perturb_": Writer(cw.perturb_, GROWN, None, {"scale": 0.5, **DRAWN}),
    "accumulate_noise_": Writer(
        cw.accumulate_noise_, GROWN, None, {"seeds": [1, 2], "coefficients": [0.5, -1.0], "stream": 3}
    ),
    "init.xavier_uniform_": Writer(cw.init.xavier_uniform_, GROWN, None, {"seed": 1, "stream": "conv.weight"}),
}

# Functions that return a new tensor: the call on a source, and the shape of the result.
MAKERS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[int, ...]]] = {
    "replicate_channels": (lambda source: cw.replicate_channels(source, 40), (64, 40, 3, 3)),
    "average_channels": (lambda source: cw.average_channels(source, 4), (64, 4, 3, 3)),
    "truncate_channels": (lambda source: cw.truncate_channels(source, 40), (40, 16, 3, 3)),
}
