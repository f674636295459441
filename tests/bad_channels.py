"""Arguments that the channel functions refuse."""

from __future__ import annotations

from bad_input import ErrorInput, row, t
from bad_tensors import MAKERS, WRITERS


def bad_channels() -> list[ErrorInput]:
    rows = []
    for name, writer in list(WRITERS.items())[1:]:
        maker = MAKERS[name.rstrip("_")]
        for function, call, arguments in (
            (name, writer, lambda d: (t(d, 2, 3), t(d, 2, 3))),
            (name.rstrip("_"), maker, lambda d: (t(d, 2, 3), 2)),
        ):
            rows += [
                row(
                    f"{function} dim past the last",
                    call,
                    arguments,
                    ValueError,
                    rf"{function}: dim must lie in -2 \.\. 1 for 2 dimensions, got 2",
                    dim=2,
                ),
                row(
                    f"{function} dim before the first",
                    call,
                    arguments,
                    ValueError,
                    rf"{function}: dim must lie in -2 \.\. 1 for 2 dimensions, got -3",
                    dim=-3,
                ),
                row(
                    f"{function} dim 1.0",
                    call,
                    arguments,
                    TypeError,
                    rf"{function}: dim must be an int, got 1\.0",
                    dim=1.0,
                ),
                row(
                    f"{function} dim True",
                    call,
                    arguments,
                    TypeError,
                    rf"{function}: dim must be an int, got True",
                    dim=True,
                ),
            ]
            if "truncate" not in function:
                orders = "'tile' or 'interleave'" if "replicate" in function else "'blocks' or 'strided'"
                rows += [
                    row(
                        f"{function} unknown rescale",
                        call,
                        arguments,
                        ValueError,
                        rf"{function}: rescale must be 'none' or 'uniform' or 'exact', got 'mean'",
                        rescale="mean",
                    ),
                    row(
                        f"{function} rescale None",
                        call,
                        arguments,
                        ValueError,
                        rf"{function}: rescale must be 'none' or 'uniform' or 'exact', got None",
                        rescale=None,
                    ),
                    row(
                        f"{function} unknown order",
                        call,
                        arguments,
                        ValueError,
                        rf"{function}: order must be {orders}, got 'columns'",
                        order="columns",
                    ),
                    row(
                        f"{function} order unhashable",
                        call,
                        arguments,
                        ValueError,
                        rf"{function}: order must be {orders}, got \[\]",
                        order=[],
                    ),
                ]
        rows.append(
            row(
                f"{name} rank",
                writer,
                lambda d: (t(d, 2, 3), t(d, 2)),
                ValueError,
                rf"{name}: source must have the rank of weight, 2, got shape \(2,\); .*",
            )
        )
        function = name.rstrip("_")
        for channels in (0, -1):
            rows.append(
                row(
                    f"{function} to {channels}",
                    maker,
                    lambda d, c=channels: (t(d, 2, 3), c),
                    ValueError,
                    rf"{function}: channels must be at least 1, got {channels}",
                )
            )
        rows.append(
            row(
                f"{function} to 2.0",
                maker,
                lambda d: (t(d, 2, 3), 2.0),
                TypeError,
                rf"{function}: channels must be an int, got 2\.0",
            )
        )
        rows.append(
            row(
                f"{function} of a scalar",
                maker,
                lambda d: (t(d), 2),
                ValueError,
                rf"{function}: dim must name a dimension, got [01] for a tensor that has none",
            )
        )
    return rows
