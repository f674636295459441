"""update_ in pure torch: what runs where no native kernel serves a device, and the judge of those that do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from convweights.ops.transfer_reference import raw
from convweights.stream import DISTRIBUTIONS, STOCHASTIC_ROUNDING, noise, words

# How a refusal of the operator begins, in csrc/ops/update_op.h too.
REFUSED = "convweights: update_: "


def reference_update_(
    weights: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor | None],
    streams: Sequence[int],
    boxes: Sequence[int],
    distribution: int,
    decay: float,
    shift: float,
    scales: Sequence[float],
    seeds: Sequence[int],
    step: int,
    accumulate: bool,
    stochastic: bool,
    disjoint: bool,
    state: torch.Tensor | None,
) -> None:
    """One tensor after another: the new values whole, then those that the mask names are written."""
    if not disjoint:
        check_alike(weights)
    if state is not None:
        seeds, step = [int(state[0])], int(state[1]) % 2**32
    rest = list(boxes)
    for position, (weight, stream) in enumerate(zip(weights, streams, strict=True)):
        box, rest = rest[: 2 * weight.ndim], rest[2 * weight.ndim :]
        index = _indices(weight, box)
        compute = torch.float64 if weight.dtype == torch.float64 else torch.float32
        rounded = [torch.tensor(value, dtype=compute, device="cpu").item() for value in (decay, shift, *scales)]
        drawn = [
            (noise(DISTRIBUTIONS[distribution], index, seed % 2**64, step, stream).to(compute) * scale).to(
                weight.device
            )
            for seed, scale in zip(seeds, rounded[2:], strict=True)
            if distribution and (accumulate or scale != 0)
        ]
        new = _moved(weight.to(compute), rounded[0], rounded[1], drawn, accumulate)
        if stochastic:
            random = words(index, seeds[0] % 2**64, step, stream, STOCHASTIC_ROUNDING).to(weight.device)
            made = raw(_round_randomly(new, random, weight.dtype))
        else:
            made = raw(new.to(weight.dtype))
        mask = masks[position] if masks else None
        raw(weight).copy_(made if mask is None else torch.where(mask, made, raw(weight)))


def check_alike(weights: Sequence[torch.Tensor]) -> None:
    """That the dispatcher has not come here, or to the fake, for one weight among others that a kernel serves."""
    odd = any(weight.layout != torch.strided or weight.is_quantized for weight in weights)
    if odd or len({weight.device for weight in weights}) > 1:
        raise RuntimeError(f"{REFUSED}weights must all be dense and on one device")


def _indices(weight: torch.Tensor, box: Sequence[int]) -> torch.Tensor:
    """The index of each element in the row-major order of the whole tensor."""
    rank = weight.ndim
    whole, offsets = (box[:rank], box[rank:]) if box else (weight.shape, [0] * rank)
    # float64 is what the stream is computed in, and not every device has it.
    device = weight.device if weight.device.type in ("cpu", "cuda") else torch.device("cpu")
    index = torch.zeros((), dtype=torch.int64, device=device)
    stride = 1
    for dim in range(rank - 1, -1, -1):
        positions = torch.arange(weight.shape[dim], device=device) + offsets[dim]
        index = index + (positions * stride).reshape([-1] + [1] * (rank - 1 - dim))
        stride *= whole[dim]
    return index


def _moved(
    weight: torch.Tensor, decay: float, shift: float, drawn: Sequence[torch.Tensor], accumulate: bool
) -> torch.Tensor:
    """decay * weight + shift + noise, from the left. Absent terms are left out, so that -0.0 stays -0.0."""
    terms = []
    if decay != 0:
        terms.append(weight if decay == 1 else weight * decay)
    if shift != 0:
        terms.append(torch.full_like(weight, shift))
    if accumulate:
        total = torch.zeros_like(weight)
        for weighed in drawn:
            total = total + weighed
        terms.append(total)
    else:
        terms += drawn
    new = terms[0] if terms else torch.zeros_like(weight)
    for term in terms[1:]:
        new = new + term
    return new


def _round_randomly(value: torch.Tensor, random: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Random bits added below the last one that stays, what is below dropped; infinities and NaN as to nearest."""
    bits = value.view(torch.int32).long() & 0xFFFFFFFF
    if dtype == torch.bfloat16:
        rounded = (bits + (random >> 16)) >> 16
    else:
        body = bits & 0x7FFFFFFF
        exponent = (body >> 23).clamp(min=1)
        significand = torch.where(body >> 23 == 0, 0, 0x800000) | (body & 0x7FFFFF)
        # One bit more for each binade below 2^-14; past 32 nothing can round up.
        drop = 13 + (113 - exponent).clamp(min=0)
        kept = (significand + (random >> (32 - drop).clamp(min=0))) >> drop
        # From 2^-14 on the exponent's place is where the significand's leading bit counts as one of it.
        normal = kept + ((exponent - 113) << 10)
        rounded = torch.where(drop > 32, 0, torch.where(exponent >= 113, normal, kept)).clamp(max=0x7C00)
        rounded = rounded | (bits >> 16 & 0x8000)
    nearest = value.to(dtype)
    randomly = _as_int16(rounded).view(dtype)
    return torch.where(value.isfinite(), randomly, nearest)


def _as_int16(bits: torch.Tensor) -> torch.Tensor:
    return torch.where(bits >= 0x8000, bits - 0x10000, bits).to(torch.int16)
