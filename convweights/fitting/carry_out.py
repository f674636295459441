"""Carries out the plan of one tensor: the source's values into a weight, through the transfer verb."""

from __future__ import annotations

from dataclasses import replace

import torch

from convweights.fitting.report import TensorPlan
from convweights.ops.check import COMPUTE_DTYPES
from convweights.ops.initializers import Initializer
from convweights.ops.transfer import transfer_as
from convweights.ops.update_call import initialize_as


def carry_out(
    function: str, planned: TensorPlan, weight: torch.Tensor, values: torch.Tensor | None, own: torch.Tensor | None
) -> None:
    """Write ``weight``. ``values`` are the source's; ``own`` are the values it keeps, None where it holds them."""
    if planned.base == "keep":
        if own is not None:
            transfer_as(function, weight, own, None)
    elif isinstance(planned.base, Initializer):
        initialize_as(function, weight, planned.base)
    elif planned.base is not None:
        with torch.no_grad():
            weight.fill_(planned.base)
    if not planned.reads:
        return
    assert values is not None
    place = weight.detach()
    if planned.rewritten:
        if planned.permutation is not None:
            values = values.permute(planned.permutation)
        # Only ever splits a dimension or adds one of size 1: a view, whatever the strides.
        values, place = values.view(planned.source_view), place.view(planned.target_view)
    for dim, size in planned.kept:
        place = place.narrow(dim, 0, size)
    transfer_as(function, place, values, planned.maps, scale=planned.factor)


def overflows(planned: TensorPlan, weight: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether a value is infinite that is made of finite ones."""
    if not (planned.rewritten and weight.dtype in COMPUTE_DTYPES and _has_infinity(weight)):
        return False
    # Goes where the values went: it is 0 where all of them were finite, and stays 1 where none came.
    spoiled = torch.ones(weight.shape, device=weight.device)
    carry_out("convert", replace(planned, base=None), spoiled, (~values.isfinite()).float(), None)
    return bool((weight.isinf() & (spoiled == 0)).any())


def _has_infinity(weight: torch.Tensor) -> bool:
    """The extremes, which are ten times as fast, say no in nearly every case."""
    if weight.numel() and all(bool(end.isfinite()) for end in torch.aminmax(weight)):
        return False
    return bool(weight.isinf().any())
