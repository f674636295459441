"""fill_ in pure torch: what runs where no native kernel serves a device, and the judge of those that do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from convweights.ops.transfer_reference import raw

# How a refusal of the operator begins, in csrc/ops/fill_op.h too.
REFUSED = "convweights: fill_: "


def reference_fill_(
    weights: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor | None],
    dims: Sequence[int],
    counts: Sequence[int],
    positions: Sequence[int],
    values: Sequence[torch.Tensor | None],
    bits: Sequence[int],
    disjoint: bool,
) -> None:
    """One tensor after another: all of it is written, its own bits where the mask says no."""
    if not disjoint:
        check_alike(weights)
    rest = list(positions)
    for i, weight in enumerate(weights):
        listed, rest = (rest[: counts[i]], rest[counts[i] :]) if counts[i] >= 0 else (None, rest)
        mask, value = _mask(weight, masks[i], dims[i], listed), values[i]
        words = torch.tensor(bits[2 * i : 2 * i + 2], dtype=torch.int64, device="cpu")
        if value is None:
            octets = words.view(torch.uint8)[: weight.element_size()].clone()
            value = octets.view(weight.dtype).reshape(()).to(weight.device)
        bits_of, own = raw(value), raw(weight)
        own.copy_(bits_of.expand(own.shape) if mask is None else torch.where(mask, bits_of, own))


def _mask(
    weight: torch.Tensor, mask: torch.Tensor | None, dim: int, listed: Sequence[int] | None
) -> torch.Tensor | None:
    """What is written, as a bool tensor that broadcasts to the weight; None for all of it."""
    if listed is not None:
        mask = torch.zeros(weight.shape[dim], dtype=torch.bool, device=weight.device)
        mask[torch.tensor(listed, dtype=torch.int64, device=weight.device)] = True
    if mask is None:
        return None
    return mask.reshape(mask.shape + (1,) * (weight.ndim - dim - mask.ndim))


def check_alike(weights: Sequence[torch.Tensor]) -> None:
    """That the dispatcher has not come here, or to the fake, for one weight among others that a kernel serves."""
    odd = any(weight.layout != torch.strided or weight.is_quantized for weight in weights)
    if odd or len({weight.device for weight in weights}) > 1:
        raise RuntimeError(f"{REFUSED}weights must all be dense and on one device")
