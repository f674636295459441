"""Fills the files of a target: tensors are read, computed and written where they belong, in bounded memory.

Tensors whose bytes lie in a file as they are go through the compiled stream, tile by tile, and where it was not built
in the parts of parts.py. What is drawn, kept from a template, or does not lie in a file is made as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch

from convweights import native
from convweights.checkpoint.contents import Checkpoint
from convweights.checkpoint.jobs import job_of
from convweights.checkpoint.layout import Copy, Layout
from convweights.checkpoint.parts import copy_parts, write_parts
from convweights.checkpoint.raw import write_at
from convweights.fitting.errors import CheckpointError, sentence
from convweights.fitting.report import TensorPlan
from convweights.fitting.report import size as words

# One reads while the other one writes; a file takes one write at a time. Measured on two processors: a third thread
# changes nothing. Nor does copy_file_range for what does not change: as fast as pread and pwrite or slower, in shared
# memory and on ext4.
WORKERS = min(2, os.cpu_count() or 1)

# Of source and target together, for each worker. Measured: 384 to 1536 KB do alike; less makes more calls, and more
# leaves the second cache.
TILE_BYTES = 768 << 10

Make = Callable[[TensorPlan], tuple[torch.Tensor, bool]]
# Told how many bytes are written, and of which tensor the last ones are.
Tick = Callable[[int, str], None]


def write_files(
    files: Sequence[tuple[int, Layout]],
    planned: Sequence[TensorPlan],
    source: Checkpoint,
    make: Make,
    *,
    workers: int | None = None,
    tick: Tick | None = None,
) -> list[str]:
    """Write the planned tensors into open files; ``make`` gives a tensor as a whole, and whether values overflowed.

    The names of the tensors in which finite values became infinite.
    """
    by_name = {tensor.name: tensor for tensor in planned}
    jobs, names = [], []
    alone: list[tuple[int, int, TensorPlan]] = []
    copied: list[tuple[int, Copy]] = []
    done = 0
    for descriptor, layout in files:
        check_room(descriptor, layout.size)
        os.truncate(descriptor, layout.size)
        for at, known in layout.around:
            write_at(descriptor, memoryview(known), at)
        for name, at in layout.places.items():
            tensor = by_name[name]
            job = None if native.cpu is None else job_of(tensor, source, descriptor, at)
            if job is None:
                alone.append((descriptor, at, tensor))
            else:
                jobs.append(job)
                names.append(name)
        for copy in layout.copies:
            if native.cpu is None:
                copied.append((descriptor, copy))
            else:
                jobs.append(native.cpu.Job.copy((copy.file, copy.start), (descriptor, copy.at), copy.nbytes))
                names.append(copy.name)
    overflown = set()
    if native.cpu is not None and jobs:
        told = None if tick is None else lambda done, job: tick(done, names[job])
        overflown = {names[job] for job in _stream(jobs, workers or WORKERS, told, source)}
        done = sum(job.bytes for job in jobs)
        if tick is not None:
            tick(done, names[-1])
    for descriptor, copy in copied:
        copy_parts(descriptor, copy, source)
        done += copy.nbytes
        if tick is not None:
            tick(done, copy.name)
    for descriptor, at, tensor in alone:
        if write_parts(descriptor, at, tensor, source, make):
            overflown.add(tensor.name)
        done += tensor.target.nbytes
        if tick is not None:
            tick(done, tensor.name)
    return sorted(overflown)


def _stream(jobs: list[object], workers: int, tick: object, source: Checkpoint) -> list[int]:
    assert native.cpu is not None
    try:
        found: list[int] = native.cpu.stream(jobs, workers, TILE_BYTES, tick)
    except native.cpu.Unread as fault:
        raise source.unread("convert", fault.args[0]) from None
    return found


def check_room(descriptor: int, size: int) -> None:
    """Refuse a file for which there is no space."""
    found = os.fstatvfs(descriptor)
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and size > free:  # file systems that do not know say 0 of both
        rule, got = "lie where there is space for it", f"{words(size)} for {words(free)} that are free"
        raise CheckpointError(sentence("convert", "target", rule, got))
