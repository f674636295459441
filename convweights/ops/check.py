"""The checks every verb makes before it writes. Each error is ``<function>: <argument> must <rule>, got <value>``."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch._subclasses import FakeTensor

COMPUTE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


# Of a weight: what the kernels have places for.
MAX_DIMENSIONS = 8


def name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def dense(function: str, argument: str, value: Any) -> None:
    """A strided tensor that holds data."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{function}: {argument} must be a torch.Tensor, got {type(value).__name__}")
    if isinstance(value, (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer)):
        raise ValueError(
            f"{function}: {argument} must be initialised, got a parameter of a lazy module; run the module once first"
        )
    if value.layout != torch.strided:
        raise TypeError(
            f"{function}: {argument} must be a dense (strided) tensor, got layout {value.layout}; "
            f"call {argument}.to_dense() first"
        )
    if value.is_quantized:
        raise TypeError(
            f"{function}: {argument} must not be quantised, got {value.dtype}; call {argument}.dequantize() first"
        )
    if value.is_meta:
        raise ValueError(
            f"{function}: {argument} must hold data, got a meta tensor; give it storage with torch.empty_like first"
        )


def writable(function: str, argument: str, weight: torch.Tensor) -> None:
    """A tensor whose elements each have a place of their own, outside inference mode's protection."""
    dense(function, argument, weight)
    if torch.compiler.is_compiling():
        return
    if weight.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"{function}: {argument} must not be an inference tensor outside inference mode, got one; clone it first"
        )
    if weight.is_conj() or weight.is_neg():
        raise ValueError(
            f"{function}: {argument} must hold its values as they are, got a lazily conjugated or negated view; "
            f"call {argument}.resolve_conj().resolve_neg() first"
        )
    if overlaps_itself(weight):
        raise ValueError(
            f"{function}: {argument} must give each element a place of its own, got strides {weight.stride()} "
            f"for shape {tuple(weight.shape)}; call {argument}.clone() first"
        )


def rank(function: str, argument: str, weight: torch.Tensor) -> None:
    if weight.ndim > MAX_DIMENSIONS:
        raise ValueError(f"{function}: {argument} must have at most {MAX_DIMENSIONS} dimensions, got {weight.ndim}")


def same_device(function: str, argument: str, value: torch.Tensor, weight: torch.Tensor) -> None:
    if value.device != weight.device:
        raise ValueError(
            f"{function}: {argument} must be on the device of weight, {weight.device}, got {value.device}; "
            f"move it with {argument}.to({str(weight.device)!r})"
        )


def dimension(function: str, argument: str, dim: Any, rank: int) -> int:
    """``dim`` as an index from the front."""
    position = integer(function, argument, dim)
    if rank == 0:
        raise ValueError(f"{function}: {argument} must name a dimension, got {position} for a tensor that has none")
    if not -rank <= position < rank:
        raise ValueError(
            f"{function}: {argument} must lie in {-rank} .. {rank - 1} for {rank} dimensions, got {position}"
        )
    return position % rank


def integer(function: str, argument: str, value: Any, *, least: int | None = None) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{function}: {argument} must be an int, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{function}: {argument} must be an int, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{function}: {argument} must be at least {least}, got {number}")
    return number


def within(function: str, argument: str, value: Any, end: int) -> int:
    """An integer of 0 .. end - 1; ``end`` is a power of two."""
    number = integer(function, argument, value)
    if not 0 <= number < end:
        raise ValueError(f"{function}: {argument} must lie in 0 .. 2^{end.bit_length() - 1} - 1, got {number}")
    return number


def finite(function: str, argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{function}: {argument} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{function}: {argument} must be finite, got {value!r}")
    return number


# Numbers from here on round to an infinity: half of the last place above the largest float32.
_FLOAT32_END = torch.finfo(torch.float32).max * (1 + 2.0**-25)


def fits_float32(function: str, argument: str, number: float) -> None:
    """A finite number that is finite in float32, too."""
    if abs(number) >= _FLOAT32_END:
        raise ValueError(f"{function}: {argument} must be finite in float32, got {number!r}")


def choice(function: str, argument: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{function}: {argument} must be {' or '.join(map(repr, allowed))}, got {value!r}")
    return str(value)


def overlaps_itself(tensor: torch.Tensor) -> bool:
    """Whether two elements share memory. Exact where strides nest, as those of views do; else it errs towards yes."""
    if tensor.is_contiguous():
        return False
    span = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride < span:
            return tensor.numel() > 0
        span += stride * (size - 1)
    return False


def have_addresses(*tensors: torch.Tensor) -> bool:
    """Not so under torch.compile, and in fake tensor mode."""
    return not (torch.compiler.is_compiling() or any(isinstance(tensor, FakeTensor) for tensor in tensors))


def overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors share memory, decided exactly by numpy on addresses; too hard to decide counts as yes.

    Where tensors have no addresses the answer is no.
    """
    if a.numel() == 0 or b.numel() == 0 or not have_addresses(a, b):
        return False
    if a.is_contiguous() and b.is_contiguous():
        return a.data_ptr() < b.data_ptr() + b.nbytes and b.data_ptr() < a.data_ptr() + a.nbytes
    first, second = a.untyped_storage(), b.untyped_storage()
    if (
        first.data_ptr() >= second.data_ptr() + second.nbytes()
        or second.data_ptr() >= first.data_ptr() + first.nbytes()
    ):
        return False
    try:
        return np.shares_memory(np.asarray(_Addresses(a)), np.asarray(_Addresses(b)), max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


class _Addresses:
    """A tensor's place in memory in numpy's terms. Nothing is read, so memory of any device will do."""

    def __init__(self, tensor: torch.Tensor) -> None:
        item = tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{item}",
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * item for stride in tensor.stride()),
            "data": (tensor.data_ptr(), True),
        }
