"""Ranks, sizes, dtypes, maps, scales and fills that ``transfer_`` refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bad_input import ErrorInput, t
from bad_input import row as any_row

import convweights as cw


def bad_transfers() -> list[ErrorInput]:
    def row(name: str, arguments: Callable[[str], tuple], error: type, sentence: str, **keywords: Any) -> ErrorInput:
        return any_row(f"transfer_ {name}", cw.transfer_, arguments, error, rf"transfer_: {sentence}", **keywords)

    def pair(d: str) -> tuple:
        return t(d, 2, 3), t(d, 2, 3)

    def whole(d: str) -> tuple:
        return t(d, 2, 3, dtype=torch.int32), t(d, 2, 3, dtype=torch.int32)

    return [
        row(
            "rank",
            lambda d: (t(d, 2, 3), t(d, 6)),
            ValueError,
            r"source must have the rank of weight, 2, got shape \(6,\); add dimensions .* with source\.unsqueeze",
        ),
        row(
            "nine dimensions",
            lambda d: (t(d, *[1] * 9), t(d, *[1] * 9)),
            ValueError,
            r"weight must have at most 8 dimensions, got 9",
        ),
        row(
            "size without a map",
            lambda d: (t(d, 2, 3), t(d, 2, 4)),
            ValueError,
            r"source must have the size of weight where no map is given, got size 4 .* 1 for a weight of size 3",
        ),
        row(
            "another device",
            lambda d: (t(d, 2, 3), torch.zeros(2, 3, device="cpu" if d == "cuda" else "meta")),
            ValueError,
            r"source must (hold data|be on the device of weight, cuda:0), got .*",
        ),
        row(
            "integer to float",
            lambda d: (t(d, 2, 3), t(d, 2, 3, dtype=torch.int32)),
            TypeError,
            r"source must have the dtype of weight, float32, unless both are float64, float32, float16 or bfloat16, "
            r"got int32; convert it with source\.to",
        ),
        row(
            "integers scaled",
            whole,
            TypeError,
            r"weight must be float64, float32, float16 or bfloat16 to be scaled, averaged or resized, got int32",
            scale=2.0,
        ),
        row(
            "integers averaged",
            lambda d: (t(d, 2, 1, dtype=torch.int64), t(d, 2, 3, dtype=torch.int64), {1: cw.Blocks()}),
            TypeError,
            r"weight must be float64, float32, float16 or bfloat16 to be scaled, averaged or resized, got int64",
        ),
        row(
            "booleans resized",
            lambda d: (t(d, 2, 5, dtype=torch.bool), t(d, 2, 3, dtype=torch.bool), {1: cw.Resize()}),
            TypeError,
            r"weight must be float64, float32, float16 or bfloat16 to be scaled, averaged or resized, got bool",
        ),
        row(
            "averaging into more",
            lambda d: (t(d, 2, 5), t(d, 2, 3), {1: cw.Blocks()}),
            ValueError,
            r"source must have no fewer positions than the target to average, got size 3 in dimension 1 "
            r"for a weight of size 5 through Blocks",
        ),
        row(
            "nothing to repeat",
            lambda d: (t(d, 2, 5), t(d, 2, 0), {1: cw.Tile()}),
            ValueError,
            r"source must have at least one position to read, got size 0 in dimension 1 for a weight of size 5 "
            r"through Tile",
        ),
        row(
            "nothing to average",
            lambda d: (t(d, 2, 5), t(d, 2, 0), {-1: cw.Mean()}),
            ValueError,
            r"source must have at least one position to read, got size 0 in dimension 1 .* through Mean",
        ),
        row(
            "index out of range",
            lambda d: (t(d, 2, 3), t(d, 2, 4), {1: cw.Select([0, 4, 1])}),
            ValueError,
            r"source must contain every selected index \(index 4 is out of range\), got size 4 in dimension 1 .*",
        ),
        row(
            "negative index out of range",
            lambda d: (t(d, 2, 3), t(d, 2, 4), {1: cw.Select([0, -5, 1])}),
            ValueError,
            r"source must contain every selected index \(index -5 is out of range\), got size 4 in dimension 1 .*",
        ),
        row(
            "too few indices",
            lambda d: (t(d, 2, 3), t(d, 2, 4), {1: cw.Select([0, 1])}),
            ValueError,
            r"source must be selected by as many indices as the target has positions \(3, the index has 2\), got .*",
        ),
        row(
            "dimension past the last",
            lambda d: (*pair(d), {2: cw.Tile()}),
            ValueError,
            r"a key of maps must lie in -2 \.\. 1 for 2 dimensions, got 2",
        ),
        row(
            "one dimension twice",
            lambda d: (*pair(d), {1: cw.Tile(), -1: cw.Tile()}),
            ValueError,
            r"maps must name each dimension once, got dimension 1 twice",
        ),
        row(
            "a key that is a name",
            lambda d: (*pair(d), {"in": cw.Tile()}),
            TypeError,
            r"a key of maps must be an int, got 'in'",
        ),
        row(
            "a map that is a name",
            lambda d: (*pair(d), {1: "tile"}),
            TypeError,
            r"maps must hold maps such as Tile\(\), got 'tile' for dimension 1",
        ),
        row(
            "a map that is a class",
            lambda d: (*pair(d), {1: cw.Tile}),
            TypeError,
            r"maps must hold maps such as Tile\(\), got <class .*Tile'> for dimension 1",
        ),
        row(
            "maps that are a list",
            lambda d: (*pair(d), [cw.Tile()]),
            TypeError,
            r"maps must be a dict from dimensions to maps, got \[Tile\(rescale='none'\)\]",
        ),
        row("scale NaN", pair, ValueError, r"scale must be finite, got nan", scale=float("nan")),
        row("scale infinite", pair, ValueError, r"scale must be finite, got inf", scale=float("inf")),
        row("scale that is text", pair, TypeError, r"scale must be a number, got '2'", scale="2"),
        row("scale complex", pair, TypeError, r"scale must be a number, got 1j", scale=1j),
        row("scale true", pair, TypeError, r"scale must be a number, got True", scale=True),
        row(
            "fill that is text",
            pair,
            ValueError,
            r'fill must be a number, "keep" or an initialiser, got .zero.',
            fill="zero",
        ),
        row(
            "fill that is None",
            pair,
            TypeError,
            r'fill must be a number, "keep" or an initialiser, got None',
            fill=None,
        ),
        row(
            "fill too large",
            lambda d: (t(d, 2, dtype=torch.float16), t(d, 2, dtype=torch.float16)),
            ValueError,
            r"fill must be a value that float16 can hold, got 100000\.0",
            fill=1e5,
        ),
        row("fill inexact", whole, ValueError, r"fill must be a value that int32 can hold, got 0\.5", fill=0.5),
        row(
            "fill out of range",
            whole,
            ValueError,
            r"fill must be a value that int32 can hold, got 4294967296",
            fill=2**32,
        ),
        row(
            "fill NaN for integers",
            whole,
            ValueError,
            r"fill must be a value that int32 can hold, got nan",
            fill=float("nan"),
        ),
        row("fill complex for reals", pair, ValueError, r"fill must be a value that float32 can hold, got 1j", fill=1j),
    ]
