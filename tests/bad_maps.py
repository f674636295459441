"""Arguments that maps refuse when they are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bad_input import ErrorInput
from bad_input import row as any_row

import convweights as cw


def bad_maps() -> list[ErrorInput]:
    def row(name: str, map: Callable[..., Any], arguments: tuple, error: type, sentence: str) -> ErrorInput:
        return any_row(name, map, lambda d: arguments, error, sentence)

    rows = [
        row(
            f"{map.__name__} unknown rescale",
            map,
            ("mean",),
            ValueError,
            rf"{map.__name__}: rescale must be 'none' or 'uniform' or 'exact', got 'mean'",
        )
        for map in (cw.Tile, cw.Interleave, cw.Blocks, cw.Strided)
    ]
    return [
        *rows,
        row(
            "Offset exact",
            cw.Offset,
            (0, "exact"),
            ValueError,
            r"Offset: rescale must be 'none' or 'uniform', got 'exact'",
        ),
        row(
            "Offset by text",
            cw.Offset,
            ("middle",),
            TypeError,
            r"Offset: start must be an int or \"center\", got 'middle'",
        ),
        row("Offset by a float", cw.Offset, (1.0,), TypeError, r"Offset: start must be an int or \"center\", got 1\.0"),
        row("Truncate by a float", cw.Truncate, (1.0,), TypeError, r"Truncate: start must be an int, got 1\.0"),
        row(
            "Truncate before the first",
            cw.Truncate,
            (-1,),
            ValueError,
            r"Truncate: start must be at least 0, got -1; Offset takes either sign",
        ),
        row("Pad by a float", cw.Pad, (1.0,), TypeError, r"Pad: before must be an int, got 1\.0"),
        row(
            "Pad by less than nothing",
            cw.Pad,
            (-1,),
            ValueError,
            r"Pad: before must be at least 0, got -1; Offset takes either sign",
        ),
        row(
            "Center exact",
            cw.Center,
            ("exact",),
            ValueError,
            r"Offset: rescale must be 'none' or 'uniform', got 'exact'",
        ),
        row(
            "Select floats",
            cw.Select,
            ([0.5],),
            TypeError,
            r"Select: index must be a sequence of integers, got 0\.5 in it",
        ),
        row(
            "Select a mask",
            cw.Select,
            ([True, False],),
            TypeError,
            r"Select: index must be a sequence of integers, got True in it",
        ),
        row("Select one number", cw.Select, (3,), TypeError, r"Select: index must be a sequence of integers, got 3"),
        row("Select text", cw.Select, ("012",), TypeError, r"Select: index must be a sequence of integers, got '012'"),
        row(
            "Select two dimensions",
            cw.Select,
            (torch.zeros(2, 2, dtype=torch.int64),),
            TypeError,
            r"Select: index must be a sequence of integers, got \[0, 0\] in it",
        ),
        row(
            "Select exact",
            cw.Select,
            ([0], "exact"),
            ValueError,
            r"Select: rescale must be 'none' or 'uniform', got 'exact'",
        ),
    ]
