"""Values into a parameter, or into a part of it, with shape and dtype checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from convweights.ops import check
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
        cast: let values be rounded to the parameter's dtype. Else a tensor or array of another dtype has to hold only
            values that it can hold, too. Numbers are rounded, but may not overflow.

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
    function = "assign_"
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
        raise ValueError(
            f"{function}: value must have the shape of {'parameter' if index is None else 'the part at index'}, "
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
        integer = hasattr(entry, "__index__") and not isinstance(entry, (bool, np.bool_, torch.Tensor))
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
    number = value.item() if isinstance(value, np.generic) else value
    try:
        held = torch.tensor(number, dtype=dtype)
        exact = dtype.is_floating_point or dtype.is_complex or held.item() == number
        finite = not dtype.is_floating_point or bool(held.isfinite()) == bool(np.isfinite(number))
    except (RuntimeError, TypeError, ValueError, OverflowError):
        exact = finite = False
        cast = False
    if not finite or not (exact or cast):
        raise ValueError(f"{function}: value must be one that {check.name(dtype)} can hold, got {value!r}")
    return held


def _tensor(function: str, value: Any) -> torch.Tensor:
    if isinstance(value, np.ndarray):
        try:
            # A copy: of arrays that are read-only, or run backwards, torch takes none.
            return torch.from_numpy(value.copy())
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
    if not cast:
        back = converted.to(values.dtype)
        if not torch.equal(back, values) and not bool(((back == values) | (values.isnan() & back.isnan())).all()):
            raise TypeError(
                f"{function}: value must hold only numbers that {check.name(dtype)} can hold, got {got} that would be "
                f"rounded; pass cast=True to round them"
            )
    return converted


def _remedy(value: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if len(value) == 2 and value == wanted[::-1]:
        return "; it is transposed, pass value.T"
    if len(value) == 4 and tuple(value[d] for d in (3, 2, 0, 1)) == wanted:
        return "; it looks like HWIO, pass value.permute(3, 2, 0, 1) (of an array value.transpose(3, 2, 0, 1))"
    return ""
