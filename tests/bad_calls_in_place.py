"""Calls without a source that ``average_channels_`` and ``truncate_channels_`` refuse, and windows past the end."""

from __future__ import annotations

import torch
from bad_input import ErrorInput, row, t

import convweights as cw


def bad_calls_in_place() -> list[ErrorInput]:
    average, truncate = cw.average_channels_, cw.truncate_channels_

    def one(d: str) -> tuple:
        return (t(d, 4, 6),)

    def two(d: str) -> tuple:
        return t(d, 4, 6), t(d, 4, 6)

    return [
        row(
            "groups that do not divide",
            average,
            one,
            ValueError,
            r"average_channels_: groups must divide the 6 channels of dimension 1, got 4",
            groups=4,
        ),
        row("no groups", average, one, ValueError, r"average_channels_: groups must be at least 1, got 0", groups=0),
        row("groups 1.5", average, one, TypeError, r"average_channels_: groups must be an int, got 1\.5", groups=1.5),
        row(
            "groups beside a source",
            average,
            two,
            ValueError,
            r"average_channels_: groups must be left out where a source is given, got 2",
            groups=2,
        ),
        row(
            "rescale in place",
            average,
            one,
            ValueError,
            r"average_channels_: rescale must be 'none' where no source is given, got 'uniform'",
            groups=2,
            rescale="uniform",
        ),
        row(
            "integers in place",
            average,
            lambda d: (t(d, 4, 6, dtype=torch.int32),),
            TypeError,
            r"average_channels_: weight must be float64, .* got int32",
            groups=2,
        ),
        row(
            "seven dimensions too many in place",
            average,
            lambda d: (t(d, 1, 2, *[1] * 6),),
            ValueError,
            r"average_channels_: weight must have at most 7 dimensions to be averaged in place, got 8",
            groups=1,
        ),
        row(
            "keep beside a source",
            truncate,
            two,
            ValueError,
            r"truncate_channels_: keep must be left out where a source is given, got 2",
            keep=2,
        ),
        row("keep none", truncate, one, ValueError, r"truncate_channels_: keep must be at least 1, got 0", keep=0),
        row(
            "keep fewer than none",
            truncate,
            one,
            ValueError,
            r"truncate_channels_: keep must be at least 1, got -2",
            keep=-2,
        ),
        row(
            "keep more than there are",
            truncate,
            one,
            ValueError,
            r"truncate_channels_: start must leave 3 of the 4 channels of dimension 0 to take, got 2",
            keep=3,
            start=2,
        ),
        row(
            "start before the first",
            truncate,
            one,
            ValueError,
            r"truncate_channels_: start must be at least 0, got -1",
            keep=1,
            start=-1,
        ),
        row(
            "a source that is too short",
            truncate,
            lambda d: (t(d, 4, 6), t(d, 5, 6)),
            ValueError,
            r"truncate_channels_: start must leave 4 of the 5 channels of dimension 0 to take, got 2",
            start=2,
        ),
        row(
            "a weight that is not contiguous",
            truncate,
            lambda d: (t(d, 6, 4).t(),),
            ValueError,
            r"truncate_channels_: weight must be contiguous to be truncated in place, got strides \(1, 4\); "
            r"use truncate_channels for a new tensor",
            keep=2,
        ),
        row(
            "truncate_channels past the end",
            cw.truncate_channels,
            lambda d: (t(d, 4, 6), 3),
            ValueError,
            r"truncate_channels: start must leave 3 of the 4 channels of dimension 0 to take, got 2",
            start=2,
        ),
        row(
            "average_channels into more",
            cw.average_channels,
            lambda d: (t(d, 4, 6), 7),
            ValueError,
            r"average_channels: source must have no fewer positions than the target to average, got size 6 .*",
        ),
        row(
            "replicate_channels of nothing",
            cw.replicate_channels,
            lambda d: (t(d, 4, 0), 7),
            ValueError,
            r"replicate_channels: source must have at least one position to read, got size 0 in dimension 1 .*",
        ),
    ]
