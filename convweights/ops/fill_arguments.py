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


def where_of(function: str, mask: Any, weight: torch.Tensor, dim: int) -> Where:
    """A mask or integers, checked: the mask, its first dimension, and the positions from the front."""
    size = weight.shape[dim]
    if not (isinstance(mask, torch.Tensor) and mask.dtype == torch.bool):
        return None, dim, positions_of(function, "mask", mask, size)
    check.dense(function, "mask", mask)
    check.same_device(function, "mask", mask, weight)
    kernels = weight.ndim >= 2 and dim == 0 and mask.shape == weight.shape[:2]
    if tuple(mask.shape) != (size,) and not kernels:
        pairs = f" or shape {tuple(weight.shape[:2])}" if dim == 0 and weight.ndim >= 2 else ""
        remedy = "; call fill_ for single elements" if mask.ndim == weight.ndim else ""
        raise ValueError(
            f"{function}: mask must have one entry for each of {size} filters{pairs}, "
            f"got shape {tuple(mask.shape)}{remedy}"
        )
    if check.overlap(mask, weight):
        raise shared_mask(function, "mask")
    return mask, dim, None


def shared_mask(function: str, argument: str) -> ValueError:
    return ValueError(
        f"{function}: {argument} must not share memory with a weight, got views of one storage; pass a clone"
    )


def positions_of(function: str, argument: str, given: Any, size: int) -> list[int]:
    """Integers as positions from the front, in ascending order, each once."""
    if isinstance(given, (torch.Tensor, np.ndarray)):
        if isinstance(given, torch.Tensor):
            check.dense(function, argument, given)
            if given.dtype == torch.uint8:
                raise TypeError(
                    f"{function}: {argument} must be a bool tensor or integers, got uint8, which may be either; "
                    f"call bool() or long() first"
                )
        away = isinstance(given, torch.Tensor) and given.device.type != "cpu"
        if given.ndim > 1 or away:
            got = f"shape {tuple(given.shape)}" + (f" on {given.device}" if away else "")
            raise ValueError(f"{function}: {argument} must hold integers in one dimension on the host, got {got}")
        given = given.tolist()
    entries = given if isinstance(given, Iterable) and not isinstance(given, (str, bytes)) else (given,)
    found = set()
    for entry in entries:
        truth = isinstance(entry, (bool, np.bool_)) or getattr(entry, "dtype", None) == torch.bool
        try:
            if truth:
                raise TypeError
            position = operator.index(entry)
        except TypeError:
            remedy = "; make a bool tensor of it" if truth else ""
            raise TypeError(
                f"{function}: {argument} must be a bool tensor or integers, got {' '.join(repr(entry).split())}{remedy}"
            ) from None
        if not -size <= position < size:
            raise ValueError(f"{function}: {argument} must lie in {-size} .. {size - 1}, got {position}")
        found.add(position % size)
    return sorted(found)


def word_of(
    function: str, value: Any, weight: torch.Tensor, dim: int, argument: str = "weight"
) -> tuple[torch.Tensor | None, Sequence[int]]:
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
            f"{function}: value must have the dtype of {argument}, {check.name(weight.dtype)}, "
            f"got {check.name(value.dtype)}; convert it with value.to"
        )
    shape = tuple(weight.shape)
    if value.ndim == 1 and weight.ndim > 1:
        fits = value.shape[0] in (1, shape[dim])
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
            f"{function}: value must not share memory with {argument}, got views of one storage; pass value.clone()"
        )
    return spread.detach().resolve_conj().resolve_neg(), (0, 0)
