"""What differs between two checkpoints, tensor by tensor: the bits decide, numbers say by how much."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from convweights.checkpoint.contents import Checkpoint, TensorInfo
from convweights.checkpoint.formats import open_checkpoint
from convweights.fitting.report import columns, describe, dtype_name

HEADER = ("tensor", "A", "B", "what differs", "max abs", "max rel", "cosine")

# Elements that are compared at a time: what is computed from them in float64 stays at some tens of megabytes.
_PIECE = 2**20
# Bits are compared as integers as wide as the element, or 64 bits at a time.
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
_INTEGERS = {
    *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32),
    *(torch.uint64, torch.int64),
}


@dataclass(frozen=True)
class TensorDiff:
    """A name whose tensors are not the same in the files A and B; ``a`` or ``b`` is None where that file lacks it.

    ``max_abs`` is the largest |a - b| and ``max_rel`` the largest |a - b| / |a|, where 0/0 is 0 and x/0 inf. Equal
    infinities and two NaNs are 0 apart; a difference that is no number, such as that of a NaN from a number, is inf.
    ``cosine`` is that of the angle between the two as vectors, None where a norm is 0 or not finite. All three are None
    where numbers cannot be compared: one side lacks the tensor, the shapes differ, a tensor is sparse, quantised or on
    meta, or its dtype packs several numbers into an element.

    ``what`` is one of "only in A", "only in B", "shape" (whatever the dtypes), "dtype", "values", "dtype, values" and
    "not compared". "values" with a ``max_abs`` of 0 are other bits for the same numbers: zeros' signs, NaNs' payloads.
    "dtype" without a ``max_abs`` says nothing about the values.
    """

    name: str
    a: TensorInfo | None
    b: TensorInfo | None
    max_abs: float | None
    max_rel: float | None
    cosine: float | None
    what: str

    def row(self) -> tuple[str, ...]:
        """The cells under :data:`HEADER`."""
        sides = ("-" if info is None else describe(info) for info in (self.a, self.b))
        sizes = ("-" if value is None else f"{value:.3g}" for value in (self.max_abs, self.max_rel))
        return (self.name, *sides, self.what, *sizes, "-" if self.cosine is None else f"{self.cosine:.6f}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: that is the string "inf"."""
        return {
            "name": self.name,
            "what": self.what,
            "a": _entry(self.a),
            "b": _entry(self.b),
            "max_abs": _finite(self.max_abs),
            "max_rel": _finite(self.max_rel),
            "cosine": self.cosine,
        }


@dataclass(frozen=True)
class Diff:
    """The tensors of two files that are not the same, and how many are. ``str()`` is a table."""

    a: Path
    b: Path
    different: tuple[TensorDiff, ...]
    same: int

    def headline(self) -> str:
        total = len(self.different) + self.same
        counts = f"{total} tensor{'s' * (total != 1)}, {len(self.different)} different, {self.same} the same"
        return f"{self.a} (A) and {self.b} (B): {counts}"

    def __str__(self) -> str:
        rows = [tensor.row() for tensor in self.different]
        return "\n".join([self.headline(), *([columns([HEADER, *rows])] if rows else [])])

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ``json.dumps(..., allow_nan=False)`` takes it."""
        different = [tensor.as_dict() for tensor in self.different]
        return {"a": str(self.a), "b": str(self.b), "same": self.same, "different": different}


def diff(a: str | PathLike[str], b: str | PathLike[str]) -> Diff:
    """Compare two checkpoints of any format, in the order of A's names and then of those that only B has.

    Two tensors are the same where shape, dtype and every bit agree. What stands beside the tensors, and which of them
    are tied, is not looked at. What is read stays small: a pair of tensors at a
    time, and of a pair some million elements.

    Raises CheckpointError for a file that is no checkpoint.
    """
    with ExitStack() as stack:
        left = stack.enter_context(open_checkpoint("diff", "a", a))
        right = stack.enter_context(open_checkpoint("diff", "b", b))
        names = dict.fromkeys([*left.tensors, *right.tensors])
        found = [tensor for name in names if (tensor := _compare(name, left, right)) is not None]
        return Diff(left.path, right.path, tuple(found), len(names) - len(found))


def _compare(name: str, left: Checkpoint, right: Checkpoint) -> TensorDiff | None:
    """How the tensors of that name differ; None where they are the same."""
    a, b = left.tensors.get(name), right.tensors.get(name)
    if a is None or b is None:
        return TensorDiff(name, a, b, None, None, None, "only in A" if b is None else "only in B")
    if a.shape != b.shape:
        return TensorDiff(name, a, b, None, None, None, "shape")
    if not (a.plain and b.plain):
        return TensorDiff(name, a, b, None, None, None, "not compared" if a.dtype == b.dtype else "dtype")
    x, y = left.read(name), right.read(name)
    if a.dtype == b.dtype and _same_bits(x, y):
        return None
    if not (_has_numbers(a.dtype) and _has_numbers(b.dtype)):
        return TensorDiff(name, a, b, None, None, None, "values" if a.dtype == b.dtype else "dtype")
    max_abs, max_rel, cosine = _measure(x, y)
    what = "values" if a.dtype == b.dtype else "dtype, values" if max_abs else "dtype"
    return TensorDiff(name, a, b, max_abs, max_rel, cosine, what)


def _same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    word = _WORDS.get(x.dtype.itemsize, torch.int64)
    return all(torch.equal(p.view(word), q.view(word)) for p, q in _pieces(x, y))


def _pieces(x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Both in the same flat contiguous pieces, in row-major order. Whatever the strides, only a piece is copied."""
    if x.numel() <= _PIECE:
        yield _flat(x), _flat(y)
    elif len(x) == 1:
        yield from _pieces(x[0], y[0])
    else:
        step = max(1, _PIECE * len(x) // x.numel())
        for start in range(0, len(x), step):
            yield from _pieces(x[start : start + step], y[start : start + step])


def _flat(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1).resolve_conj().resolve_neg().contiguous()


def _has_numbers(dtype: torch.dtype) -> bool:
    """Whether each element is a number that torch can convert to float64 or complex128."""
    floating = dtype.is_floating_point and dtype != torch.float4_e2m1fn_x2
    return floating or dtype.is_complex or dtype in _INTEGERS


def _measure(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float, float | None]:
    """The largest absolute and relative difference, and the cosine, in float64 or complex128."""
    dtype = torch.complex128 if x.is_complex() or y.is_complex() else torch.float64
    max_abs = max_rel = dot = xx = yy = 0.0
    for piece in _pieces(x, y):
        if not piece[0].numel():
            continue
        (x_high, x_low), (y_high, y_low) = (_exact(tensor, dtype) for tensor in piece)
        p, q = x_high + x_low, y_high + y_low
        equal = (x_high == y_high) & (x_low == y_low) | (p.isnan() & q.isnan())
        apart = ((x_high - y_high) + (x_low - y_low)).abs()
        apart = _nan_to_inf(apart.masked_fill(equal, 0.0))
        ratio = _nan_to_inf((apart / p.abs()).masked_fill(apart == 0, 0.0))
        max_abs, max_rel = max(max_abs, apart.max().item()), max(max_rel, ratio.max().item())
        p, q = _real(p), _real(q)
        dot, xx, yy = dot + p.dot(q).item(), xx + p.dot(p).item(), yy + q.dot(q).item()
    norms = math.sqrt(xx) * math.sqrt(yy)
    cosine = max(-1.0, min(1.0, dot / norms)) if norms and math.isfinite(norms) else None
    return max_abs, max_rel, cosine


def _exact(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors whose sum is ``values`` to the bit: a float64 has 53 bits and a 64-bit integer more.

    The low part has the last 11 bits and the sign of the number, so high and low never cancel: numbers are 0 apart,
    high from high and low from low, only where they are equal, also an integer from a float.
    """
    if values.dtype == torch.int64:
        low = values.fmod(2048)
        high = (values - low).to(dtype)
    elif values.dtype == torch.uint64:
        bits = values.view(torch.int64)
        low = bits & 2047
        high = ((bits >> 11) & (2**53 - 1)).to(dtype) * 2048
    else:
        return values.to(dtype), torch.zeros((), dtype=dtype)
    return high, low.to(dtype)


def _nan_to_inf(values: torch.Tensor) -> torch.Tensor:
    return values.masked_fill(values.isnan(), math.inf)


def _real(values: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(values).view(-1) if values.is_complex() else values


def _entry(info: TensorInfo | None) -> dict[str, Any] | None:
    return None if info is None else {"dtype": dtype_name(info.dtype), "shape": list(info.shape)}


def _finite(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
