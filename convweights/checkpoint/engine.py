"""Writes a plan into a safetensors file: parts of bounded size are read, computed, and written where they belong.

Memory follows the parts in flight and not the checkpoint, but for tensors whose rows do not come from rows, and for
sources whose bytes do not lie in a file as they are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch

from convweights.checkpoint import parts
from convweights.checkpoint.contents import Checkpoint
from convweights.checkpoint.parts import Part, parts_of
from convweights.checkpoint.safetensors_file import laid_out
from convweights.fitting.carry_out import carry_out, overflows
from convweights.fitting.errors import CheckpointError, sentence
from convweights.fitting.report import Plan, TensorPlan
from convweights.fitting.report import size as words

# Reading, computing and writing overlap; more threads than this wait for one file.
WORKERS = min(2, os.cpu_count() or 1)

# A file for which threads cost more than they save: of 22 MB in 161 tensors, twice the time.
SMALL = 64 << 20

Make = Callable[[TensorPlan], tuple[torch.Tensor, bool]]


def write_safetensors(descriptor: int, planned: Plan, source: Checkpoint, make: Make) -> list[str]:
    """Fill the file; ``make`` gives a whole tensor where it has to be whole, and whether values overflowed in it.

    The names of the tensors in which finite values became infinite.
    """
    header, places, size = laid_out((tensor.target for tensor in planned.tensors), source.around.metadata)
    _make_room(descriptor, size)
    _write(descriptor, memoryview(header), 0)
    by_name = {tensor.name: tensor for tensor in planned.tensors}
    overflown: set[str] = set()
    stage = _Stage()

    def run(task: _Task) -> None:
        if task.run(descriptor, source, make, stage):
            overflown.add(task.part.planned.name)

    tasks = (_Task(part, at) for name, at in places.items() for part in _parts(by_name[name], source))
    if size < SMALL:
        for task in tasks:
            run(task)
        return sorted(overflown)
    threads = torch.get_num_threads()
    # Each computes by itself: threads of theirs would wait for each other, spinning, on the same processors.
    with ThreadPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {pool.submit(run, task) for task in tasks}
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(threads)
    return sorted(overflown)


def _parts(planned: TensorPlan, source: Checkpoint) -> Iterator[Part]:
    """Of a tensor that does not change, stretches of its bytes; of one whose bytes do not lie in a file, all of it."""
    if planned.source is None or source.span(planned.source.name) is None:
        yield Part(planned, 0, 0, 0, planned.target.nbytes)
        return
    if planned.rewritten:
        yield from parts_of(planned)
        return
    for at in range(0, planned.target.nbytes, parts.PART_BYTES):
        size = min(parts.PART_BYTES, planned.target.nbytes - at)
        yield Part(planned, at, size, at, size)


def _make_room(descriptor: int, size: int) -> None:
    """Let the file be as long as it will be, once there is space for it."""
    found = os.fstatvfs(descriptor)
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and size > free:  # file systems that do not know say 0 of both
        rule, got = "lie where there is space for it", f"{words(size)} for {words(free)} that are free"
        raise CheckpointError(sentence("convert", "target", rule, got))
    os.truncate(descriptor, size)


class _Stage(threading.local):
    """The buffers of a thread, which grow to the largest part."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def buffer(self, name: str, size: int) -> torch.Tensor:
        held = self._buffers.get(name)
        if held is None or len(held) < size:
            self._buffers[name] = held = torch.empty(size, dtype=torch.uint8)
        return held[:size]


@dataclass(frozen=True)
class _Task:
    """A part, and where its tensor lies in the target's file."""

    part: Part
    at: int

    def run(self, descriptor: int, source: Checkpoint, make: Make, stage: _Stage) -> bool:
        """Write the part; whether finite values became infinite."""
        part, planned = self.part, self.part.planned
        place = self.at + part.target_at
        span = None if planned.source is None else source.span(planned.source.name)
        if not part.target_bytes:
            return False
        if span is None or (planned.rewritten and not _is_cut(part)):
            tensor, infinite = make(planned)
            whole = tensor.resolve_conj().resolve_neg().contiguous().view(-1)
            _write(descriptor, _octets(whole.view(torch.uint8)), place)
            return infinite
        read = stage.buffer("read", part.source_bytes)
        if not _read(span[0], _octets(read), span[1] + part.source_at):
            rule, got = "stay as it is while it is read", f"{source.path}, which has become shorter"
            raise CheckpointError(sentence("convert", "source", rule, got), source.path)
        if not planned.rewritten:
            _write(descriptor, _octets(read), place)
            return False
        assert planned.source is not None
        written = stage.buffer("written", part.target_bytes)
        values = read.view(planned.source.dtype).view(planned.source_view)
        weight = written.view(planned.target.dtype).view(planned.target_view)
        carry_out("convert", planned, weight, values, None)
        _write(descriptor, _octets(written), place)
        return overflows(planned, weight, values)


def _is_cut(part: Part) -> bool:
    """Whether it is some rows of its tensor, which are read from the file by themselves."""
    return part.target_bytes < part.planned.target.nbytes


def _octets(tensor: torch.Tensor) -> memoryview:
    return tensor.numpy().data


def _read(descriptor: int, buffer: memoryview, at: int) -> bool:
    """Fill the buffer; whether the file was long enough."""
    while buffer:
        count = os.preadv(descriptor, [buffer], at)
        if not count:
            return False
        buffer, at = buffer[count:], at + count
    return True


def _write(descriptor: int, buffer: memoryview, at: int) -> None:
    while buffer:
        count = os.pwrite(descriptor, buffer, at)
        buffer, at = buffer[count:], at + count
