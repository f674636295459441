"""What fill's operator wants to know of each tensor: which part of it, and what goes there."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from convweights.ops import check
from convweights.ops.initializers import Initializer
from convweights.ops.transfer_fill import fill_words

Where = tuple[torch.Tensor | None, int, Sequence[int] | None]


class Entry(NamedTuple):
    """One tensor to fill: by a ``mask`` that lies at ``dim`` and those behind it, or at ``positions`` of ``dim``.

    ``values`` broadcast to the weight; where there are none, ``bits`` are the value's, as two 64-bit words.
    """

    weight: torch.Tensor
    mask: torch.Tensor | None
    dim: int
    positions: Sequence[int] | None
    values: torch.Tensor | None
    bits: Sequence[int]


def where_of(function: str, mask: Any, weight: torch.Tensor, dim: int, argument: str = "mask") -> Where:
    """A mask or integers, checked: the mask, its first dimension, and the positions from the front."""
    size = weight.shape[dim]
    if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
        check.dense(function, argument, mask)
        check.same_device(function, argument, mask, weight)
        kernels = weight.ndim >= 2 and dim == 0 and tuple(mask.shape) == tuple(weight.shape[:2])
        if tuple(mask.shape) != (size,) and not kernels:
            pairs = f" or shape {tuple(weight.shape[:2])}" if dim == 0 and weight.ndim >= 2 else ""
            raise ValueError(
                f"{function}: {argument} must have one entry for each of {size} filters{pairs}, "
                f"got shape {tuple(mask.shape)}"
            )
        return mask, dim, None
    return None, dim, positions_of(function, argument, mask, size)


def positions_of(function: str, argument: str, given: Any, size: int) -> list[int]:
    """Integers as positions from the front, in ascending order, each once."""
    if isinstance(given, (torch.Tensor, np.ndarray)):
        away = isinstance(given, torch.Tensor) and given.device.type != "cpu"
        if given.ndim > 1 or away:
            got = f"shape {tuple(given.shape)}" + (f" on {given.device}" if away else "")
            raise ValueError(f"{function}: {argument} must hold integers in one dimension on the host, got {got}")
        given = given.tolist()
    entries = given if isinstance(given, Iterable) and not isinstance(given, (str, bytes)) else (given,)
    found = set()
    for entry in entries:
        if isinstance(entry, (bool, np.bool_)) or not hasattr(entry, "__index__"):
            raise TypeError(f"{function}: {argument} must be a bool tensor or integers, got {entry!r}")
        position = operator.index(entry)
        if not -size <= position < size:
            raise ValueError(f"{function}: {argument} must lie in {-size} .. {size - 1}, got {position}")
        found.add(position % size)
    return sorted(found)


def word_of(function: str, value: Any, weight: torch.Tensor, dim: int) -> tuple[torch.Tensor | None, Sequence[int]]:
    """A value as a tensor that broadcasts to the weight, or as bits."""
    if not isinstance(value, torch.Tensor):
        if isinstance(value, (str, Initializer)):
            raise TypeError(f"{function}: value must be a number or a tensor, got {value!r}")
        try:
            words = fill_words(function, value, weight.dtype)
        except TypeError:
            raise TypeError(f"{function}: value must be a number or a tensor, got {value!r}") from None
        except ValueError:
            held = check.name(weight.dtype)
            raise ValueError(f"{function}: value must be one that {held} can hold, got {value!r}") from None
        return None, [*words, 0][:2]
    check.dense(function, "value", value)
    check.same_device(function, "value", value, weight)
    if value.dtype != weight.dtype:
        raise TypeError(
            f"{function}: value must have the dtype of weight, {check.name(weight.dtype)}, "
            f"got {check.name(value.dtype)}; convert it with value.to"
        )
    shape = tuple(weight.shape)
    if value.ndim == 1 and weight.ndim > 1:
        fits = value.shape[0] == shape[dim]
        spread = value.reshape([-1] + [1] * (weight.ndim - dim - 1))
    else:
        missing = weight.ndim - value.ndim
        fits = missing >= 0 and all(n in (1, m) for n, m in zip(value.shape, shape[missing:], strict=True))
        spread = value
    if not fits:
        raise ValueError(
            f"{function}: value must be one number for each of {shape[dim]} filters or broadcast to shape {shape}, "
            f"got shape {tuple(value.shape)}"
        )
    if check.overlap(weight, value):
        raise ValueError(
            f"{function}: value must not share memory with weight, got views of one storage; pass value.clone()"
        )
    return spread.detach(), (0, 0)
