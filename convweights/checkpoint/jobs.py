"""A tensor's plan as a job of the compiled stream."""

from __future__ import annotations

import math
from typing import Any

import torch

from convweights import native
from convweights.checkpoint.contents import Checkpoint
from convweights.fitting.report import TensorPlan
from convweights.maps import Map, Offset
from convweights.ops.check import MAX_DIMENSIONS
from convweights.ops.initializers import Initializer
from convweights.ops.transfer import encode
from convweights.ops.transfer_fill import fill_words

# Positions in Dtype of csrc/dtypes.h, and bytes an element; the elements of all others are copied.
_TYPES = {torch.float64: (1, 8), torch.float32: (2, 4), torch.float16: (3, 2), torch.bfloat16: (4, 2)}


def job_of(planned: TensorPlan, source: Checkpoint, descriptor: int, at: int) -> Any:
    """The job that writes the tensor at its place; None where it has to be made as a whole."""
    if planned.source is None or not planned.reads or planned.base == "keep" or isinstance(planned.base, Initializer):
        return None
    span = source.span(planned.source.name)
    if span is None:
        return None
    if len(planned.source.shape) > MAX_DIMENSIONS and span.strides is not None:
        return None
    assert native.cpu is not None
    before, after = planned.source, planned.target
    places = (span.file, span.at), (descriptor, at)
    if not (planned.maps or planned.kept or planned.permutation or span.strides):
        if before.dtype == after.dtype:
            return native.cpu.Job.copy(*places, after.nbytes)
        return native.cpu.Job.cast(*places, _TYPES[before.dtype], _TYPES[after.dtype], math.prod(after.shape))
    # What lies behind the source's positions holds the base's value.
    maps: dict[int, Map] = {**(planned.maps or {}), **{dim: Offset() for dim, _ in planned.kept}}
    sizes = planned.source_view or before.shape
    shape = planned.target_view or after.shape
    kinds, starts, rescales, index = encode(
        "convert", tuple(maps.items()), sizes, shape, before.dtype, after.dtype, planned.factor
    )
    return native.cpu.Job.transfer(
        *places,
        _TYPES.get(before.dtype, (0, before.dtype.itemsize)),
        _TYPES.get(after.dtype, (0, after.dtype.itemsize)),
        before.dtype == after.dtype,
        sizes,
        _strides(planned, span.strides),
        shape,
        kinds,
        starts,
        rescales,
        [table.tolist() for table in index],
        planned.factor,
        fill_words("convert", planned.base, after.dtype) if planned.base else (),
    )


def _strides(planned: TensorPlan, strides: tuple[int, ...] | None) -> tuple[int, ...]:
    """Of the source's view, in elements."""
    assert planned.source is not None
    if strides is None:
        seen = torch.empty(planned.source.shape, device="meta")
    else:
        seen = torch.empty_strided(planned.source.shape, strides, device="meta")
    if planned.permutation is not None:
        seen = seen.permute(planned.permutation)
    return seen.view(planned.source_view).stride() if planned.source_view else seen.stride()
