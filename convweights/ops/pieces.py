"""A tensor that is a piece of a larger one: what shape the whole has, and where in it the piece begins."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch

from convweights.ops import check
from convweights.stream import MOST_INDICES

Box = tuple[Sequence[int], Sequence[int]]


def box_of(function: str, argument: str, shape: Sequence[int], box: Any) -> Box:
    """``box`` checked against the piece's shape; the piece is the whole where there is none."""
    if box is None:
        return shape, (0,) * len(shape)
    try:
        whole, offset = (tuple(check.integer(function, argument, number) for number in part) for part in box)
    except (TypeError, ValueError):
        raise TypeError(f"{function}: {argument} must be (shape of the whole, offset in it), got {box!r}") from None
    if not len(whole) == len(offset) == len(shape):
        raise ValueError(f"{function}: {argument} must have {len(shape)} dimensions, got {box!r}")
    if any(o < 0 or o + n > w for n, w, o in zip(shape, whole, offset, strict=True)):
        raise ValueError(f"{function}: {argument} must hold a piece of shape {tuple(shape)}, got {box!r}")
    if math.prod([max(1, size) for size in whole]) > MOST_INDICES:
        raise ValueError(f"{function}: {argument} must be of a whole of at most 2^50 elements, got {box!r}")
    return whole, offset


def local_piece(function: str, argument: str, tensor: torch.Tensor) -> tuple[torch.Tensor, Box | None]:
    """A DTensor's part in this process and its box; any other tensor as it is."""
    if not is_dtensor(tensor):
        return tensor, None
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded: Any = tensor
    if any(type(placement) not in (Replicate, Shard) for placement in sharded.placements):
        raise ValueError(f"{function}: {argument} must be sharded or replicated, got placements {sharded.placements}")
    local = sharded.to_local().detach()
    _, offset = compute_local_shape_and_global_offset(sharded.shape, sharded.device_mesh, sharded.placements)
    # Of an empty part the offset may lie behind the end.
    return local, (tuple(sharded.shape), tuple(offset) if local.numel() else (0,) * local.ndim)


def local_mask(
    function: str, argument: str, mask: Any, tensor: torch.Tensor, local: torch.Tensor
) -> torch.Tensor | None:
    """The mask of the part ``local`` of a tensor, with its rank."""
    if mask is None:
        return None
    if is_dtensor(tensor) or is_dtensor(mask):
        mask = _local_mask_of_dtensor(function, argument, mask, tensor)
    check.dense(function, argument, mask)
    if mask.dtype != torch.bool:
        raise TypeError(
            f"{function}: {argument} must be bool, got {check.name(mask.dtype)}; compare it, as in mask != 0"
        )
    check.same_device(function, argument, mask, local)
    shape = tuple(local.shape)
    missing = len(shape) - mask.ndim
    if missing < 0 or any(m not in (1, n) for m, n in zip(mask.shape, shape[missing:], strict=True)):
        raise ValueError(f"{function}: {argument} must broadcast to shape {shape}, got shape {tuple(mask.shape)}")
    padded: torch.Tensor = mask[(None,) * missing] if missing else mask
    return padded


def _local_mask_of_dtensor(function: str, argument: str, mask: Any, tensor: Any) -> torch.Tensor:
    """A sharded weight and its mask are cut alike, or the processes would not agree on what is masked."""
    alike = (
        is_dtensor(tensor)
        and is_dtensor(mask)
        and (mask.device_mesh, mask.placements, mask.shape) == (tensor.device_mesh, tensor.placements, tensor.shape)
    )
    if not alike:
        raise ValueError(
            f"{function}: {argument} must be a DTensor of the weight's shape, mesh and placements where that is one, "
            f"got {type(mask).__name__} of shape {tuple(getattr(mask, 'shape', ()))} for "
            f"{type(tensor).__name__} of shape {tuple(tensor.shape)}"
        )
    local: torch.Tensor = mask.to_local()
    return local


def is_dtensor(tensor: Any) -> bool:
    # Whoever has a DTensor has imported this; importing it takes longer than all of convweights.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
