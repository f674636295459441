"""Numbers in a dtype."""

from __future__ import annotations

import math

import torch


def number_as(number: complex, dtype: torch.dtype, *, rounded: bool = False) -> torch.Tensor | None:
    """A tensor without dimensions that holds ``number`` in ``dtype``, None where the dtype cannot hold it.

    Numbers are rounded to the nearest, but not to an infinity or to the largest that there is, nor, unless ``rounded``,
    to an integer.
    """
    exact = not (dtype.is_floating_point or dtype.is_complex)
    try:
        if exact:
            whole = int(number)  # type: ignore[call-overload]
            held = torch.tensor(whole if whole == number else number, dtype=dtype, device="cpu")
            return held if rounded or held.item() == number else None
        held = torch.tensor(number, dtype=dtype, device="cpu")
        given, found = complex(number), complex(held.to(torch.complex128).item())
    except (RuntimeError, TypeError, ValueError, OverflowError):
        return None
    fits = all(_is_near(a, b, dtype) for a, b in ((given.real, found.real), (given.imag, found.imag)))
    return held if fits else None


def _is_near(given: float, found: float, dtype: torch.dtype) -> bool:
    if not math.isfinite(given):
        return given == found or (math.isnan(given) and math.isnan(found))
    if not math.isfinite(found):
        return False
    # Types of 8 bits saturate, and one of them has neither zero nor sign.
    if dtype.itemsize == 1 and abs(given) > torch.finfo(dtype).max:
        return False
    return found == 0 or (given != 0 and (given > 0) == (found > 0))
