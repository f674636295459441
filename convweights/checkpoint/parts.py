"""Writes a tensor without the compiled stream: in parts of bounded size where rows come from rows, else as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from convweights.checkpoint.contents import Checkpoint
from convweights.checkpoint.layout import Copy
from convweights.checkpoint.raw import octets, read_at, write_at
from convweights.fitting.carry_out import carry_out, overflows
from convweights.fitting.report import TensorPlan
from convweights.maps import Identity, Offset
from convweights.ops.initializers import Initializer

# Of the source or of the target, whichever is larger. Measured: 1 to 8 MB do alike, less and more do worse.
PART_BYTES = 4 << 20


@dataclass(frozen=True)
class Part:
    """``planned`` is the plan of these rows alone, or of the whole tensor, which may have any permutation then.

    Bytes count from the beginning of the tensors.
    """

    planned: TensorPlan
    source_at: int
    source_bytes: int
    target_at: int
    target_bytes: int


def write_parts(
    descriptor: int,
    at: int,
    planned: TensorPlan,
    source: Checkpoint,
    make: Callable[[TensorPlan], tuple[torch.Tensor, bool]],
) -> bool:
    """Write the tensor at its place; whether finite values became infinite."""
    span = None if planned.source is None else source.span(planned.source.name)
    found = [] if span is None or span.strides is not None else list(_parts(planned))
    if not found or (planned.rewritten and len(found) == 1):
        tensor, infinite = make(planned)
        whole = tensor.resolve_conj().resolve_neg().contiguous()
        # Of one element, or none, any strides count as contiguous.
        whole = whole.as_strided((whole.numel(),), (1,))
        write_at(descriptor, octets(whole.view(torch.uint8)), at)
        return infinite
    assert span is not None
    assert planned.source is not None
    infinite = False
    for part in found:
        read = torch.empty(part.source_bytes, dtype=torch.uint8, device="cpu")
        _read(source, span.file, octets(read), span.at + part.source_at)
        written = read
        if planned.rewritten:
            written = torch.empty(part.target_bytes, dtype=torch.uint8, device="cpu")
            values = read.view(planned.source.dtype).view(part.planned.source_view)
            weight = written.view(planned.target.dtype).view(part.planned.target_view)
            carry_out("convert", part.planned, weight, values, None)
            infinite = infinite or overflows(part.planned, weight, values)
        write_at(descriptor, octets(written), at + part.target_at)
    return infinite


def copy_parts(descriptor: int, copy: Copy, source: Checkpoint) -> None:
    """Bytes that go in as they are."""
    for at in range(0, copy.nbytes, PART_BYTES):
        part = memoryview(bytearray(min(PART_BYTES, copy.nbytes - at)))
        _read(source, copy.file, part, copy.start + at)
        write_at(descriptor, part, copy.at + at)


def _read(source: Checkpoint, file: int, buffer: memoryview, at: int) -> None:
    try:
        complete = read_at(file, buffer, at)
    except OSError as error:
        raise source.unread("convert", error.errno) from error
    if not complete:
        raise source.unread("convert")


def _parts(planned: TensorPlan) -> Iterator[Part]:
    """Of a tensor that does not change, stretches of its bytes."""
    if planned.rewritten:
        yield from parts_of(planned)
        return
    for at in range(0, planned.target.nbytes, PART_BYTES):
        size = min(PART_BYTES, planned.target.nbytes - at)
        yield Part(planned, at, size, at, size)


def parts_of(planned: TensorPlan) -> Iterator[Part]:
    """The parts, in order; one where rows do not come from rows."""
    source = planned.source
    source_bytes = source.nbytes if source is not None and planned.reads else 0
    target_bytes = planned.target.nbytes
    largest = max(source_bytes, target_bytes)
    along = _rows(planned) if largest > PART_BYTES and source_bytes else None
    if along is None:
        yield Part(planned, 0, source_bytes, 0, target_bytes)
        return
    assert source is not None
    dim, start = along
    rows, source_rows = planned.target_view[dim], planned.source_view[dim]
    source_row, target_row = source_bytes // source_rows, target_bytes // rows
    step = max(1, PART_BYTES // max(source_row, target_row))
    maps = {d: map for d, map in (planned.maps or {}).items() if d != dim}
    for first in range(0, rows, step):
        count = min(step, rows - first)
        of_rows = replace(
            planned,
            source_view=_with(planned.source_view, dim, count),
            target_view=_with(planned.target_view, dim, count),
            maps=maps,
        )
        yield Part(of_rows, (start + first) * source_row, count * source_row, first * target_row, count * target_row)


def _rows(planned: TensorPlan) -> tuple[int, int] | None:
    """The view's first dimension of more than one position, and where in the source its first row is; None where a row
    of the target is not made of one of the source, or base values have a place of their own.
    """
    views = list(zip(planned.source_view, planned.target_view, strict=True))
    dim = next((d for d, sizes in enumerate(views) if sizes != (1, 1)), None)
    plain = planned.base is None or isinstance(planned.base, (int, float))
    if dim is None or planned.permutation is not None or not plain or isinstance(planned.base, Initializer):
        return None
    if any(d <= dim for d, _ in planned.kept) or any(d < dim for d in planned.maps or {}):
        return None
    map, (n, m) = (planned.maps or {}).get(dim), views[dim]
    if map is None or isinstance(map, Identity):
        return (dim, 0) if n == m else None
    if isinstance(map, Offset) and map.rescale == "none" and 0 <= (start := map.start_for(n, m)) <= n - m:
        return dim, start
    return None


def _with(view: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    return (*view[:dim], size, *view[dim + 1 :])
