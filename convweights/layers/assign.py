"""Values into a parameter, or into a part of it, with shape and dtype checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from convweights.ops import check
from convweights.ops.numbers import number_as
from convweights.ops.transfer import transfer_as


def assign_(parameter: torch.Tensor, value: Any, index: Any = None, *, cast: bool = False) -> torch.Tensor:
    """Write ``value`` into ``parameter``, or into the part of it at ``index``; the same object is returned.

    Equivalent to ``parameter.copy_(value)``, or ``parameter[index] = value``, under no_grad, without broadcasting and
    without a silent loss of digits.

    Args:
        parameter: the tensor written; a Parameter keeps its identity, so optimizers and modules go on with it.
        value: a tensor or an array of exactly the shape that is written, or a number, which fills it.
        index: integers, slices and ``...`` as for ``parameter[index]``: ``(0, 1, 2, 2)`` is one element,
            ``(slice(None), 1)`` one input channel.
        cast: let values be rounded to the parameter's dtype, as ``Tensor.to`` does it, to infinities too. Else a
            tensor or array of another dtype has to hold only values that it can hold, too. A Python or numpy number is
            rounded, but may not overflow.

    Raises:
        TypeError: values that cannot be converted.
        ValueError: another shape, values that would change, an index outside; nothing has been written.

    >>> import torch, convweights as cw
    >>> fc = torch.nn.Linear(2, 2)
    >>> cw.assign_(fc.weight, torch.eye(2)) is fc.weight
    True
    >>> cw.assign_(fc.weight, 5, index=(0, 1)).tolist()
    [[1.0, 5.0], [0.0, 1.0]]
    """
    return assign_as("assign_", parameter, value, index, cast)


def assign_as(
    function: str, parameter: torch.Tensor, value: Any, index: Any, cast: bool, place_name: str = ""
) -> torch.Tensor:
    """:func:`assign_` on behalf of ``function``, whose name errors carry, and which calls the part ``place_name``."""
    check.writable(function, "parameter", parameter)
    if not isinstance(cast, bool):
        raise TypeError(f"{function}: cast must be True or False, got {cast!r}")
    place = parameter.detach() if index is None else _part(function, parameter, index)
    if isinstance(value, (bool, int, float, complex, np.generic)):
        number = _number(function, value, parameter.dtype, cast)
        with torch.no_grad():
            place.fill_(number)
        return parameter
    values = _tensor(function, value)
    if values.shape != place.shape:
        whole = "parameter" if index is None else "the part at index"
        raise ValueError(
            f"{function}: value must have the shape of {place_name or whole}, "
            f"{tuple(place.shape)}, got {tuple(values.shape)}{_remedy(tuple(values.shape), tuple(place.shape))}"
        )
    values = values.to(place.device)
    if values.dtype != place.dtype:
        values = _converted(function, values, place.dtype, cast)
    if check.overlap(place, values):
        values = values.clone()
    transfer_as(function, place, values, None)
    return parameter


def _part(function: str, parameter: torch.Tensor, index: Any) -> torch.Tensor:
    """The view that basic indexing gives; other kinds of indices would make a copy."""
    entries = index if isinstance(index, tuple) else (index,)
    for entry in entries:
        integer = isinstance(entry, (int, np.integer)) and not isinstance(entry, bool)
        if not (integer or entry is ... or isinstance(entry, slice)):
            raise TypeError(f"{function}: index must be made of integers, slices and ..., got {entry!r}")
    try:
        place: torch.Tensor = parameter.detach()[entries]
    except (IndexError, ValueError, TypeError) as error:
        got = f"{index!r} for shape {tuple(parameter.shape)}"
        raise ValueError(
            f"{function}: index must lie in parameter, got {got} ({' '.join(str(error).split())})"
        ) from None
    return place


def _number(function: str, value: Any, dtype: torch.dtype, cast: bool) -> torch.Tensor:
    """One number in a dtype: rounded, but neither to an infinity nor, unless ``cast``, to another integer."""
    held = number_as(value.item() if isinstance(value, np.generic) else value, dtype, rounded=cast)
    if held is None:
        raise ValueError(f"{function}: value must be one that {check.name(dtype)} can hold, got {value!r}")
    return held


def _tensor(function: str, value: Any) -> torch.Tensor:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{function}: value must have numbers everywhere, got a masked array; fill it with value.filled"
        )
    if isinstance(value, np.ndarray):
        try:
            # A copy: of arrays that are read-only, run backwards, or have another byte order, torch takes none.
            return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=True, order="C"))
        except TypeError:
            raise TypeError(f"{function}: value must be an array of numbers, got dtype {value.dtype}") from None
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{function}: value must be a tensor, an array or a number, got {type(value).__name__}")
    check.dense(function, "value", value)
    return value.detach()


def _converted(function: str, values: torch.Tensor, dtype: torch.dtype, cast: bool) -> torch.Tensor:
    """The values in another dtype, the same unless a cast is asked for."""
    got = f"{check.name(values.dtype)} for {check.name(dtype)}"
    if values.is_complex() and not dtype.is_complex:
        raise TypeError(f"{function}: value must be real, got {got}")
    converted = values.to(dtype)
    if not cast and not (_in_range(values, dtype) and _same(converted.to(values.dtype), values)):
        raise TypeError(
            f"{function}: value must hold only numbers that {check.name(dtype)} can hold, got {got} that would be "
            f"rounded; pass cast=True to round them"
        )
    return converted


def _in_range(values: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether integers would not wrap; there and back again they may come out as they were."""
    if any(kind.is_floating_point or kind.is_complex or kind == torch.bool for kind in (values.dtype, dtype)):
        return True
    numbers, limits = values.cpu().numpy(), torch.iinfo(dtype)
    return not numbers.size or limits.min <= int(numbers.min()) <= int(numbers.max()) <= limits.max


def _same(back: torch.Tensor, values: torch.Tensor) -> bool:
    return torch.equal(back, values) or bool(((back == values) | (values.isnan() & back.isnan())).all())


def _remedy(value: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if len(value) == 2 and value == wanted[::-1]:
        return "; it is transposed, pass value.T"
    if len(value) == 4 and tuple(value[d] for d in (3, 2, 0, 1)) == wanted:
        return "; it looks like HWIO, pass value.permute(3, 2, 0, 1) (of an array value.transpose(3, 2, 0, 1))"
    return ""
