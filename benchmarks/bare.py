"""A conversion that is a loop of pread, cast and pwrite: everything else is known before it begins."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from convweights.checkpoint.safetensors_file import SafetensorsFile, laid_out
from convweights.fitting.contents import TensorInfo

PIECE = 512 << 10  # bytes of the source


class Piece(NamedTuple):
    """Elements on their way; ``file`` is the number of the target's."""

    source_at: int
    file: int
    target_at: int
    count: int

    def cut(self, begin: int, count: int, before: torch.dtype, after: torch.dtype) -> Piece:
        """The elements from ``begin`` on, ``count`` at the most."""
        return Piece(
            self.source_at + begin * before.itemsize,
            self.file,
            self.target_at + begin * after.itemsize,
            min(count, self.count - begin),
        )


class Bare:
    """The bytes of a conversion by two threads, which take its files in turns, 512 KB at a time.

    Args:
        source: of the checkpoint, all of one dtype.
        wanted: the target's tensors, with the names of those of the source.
        files: which tensors each file of the target holds.
    """

    def __init__(
        self,
        source: Path,
        wanted: Mapping[str, tuple[str, torch.Tensor]],
        files: Mapping[Path, Sequence[TensorInfo]],
    ) -> None:
        self.source = source
        self.known: dict[Path, list[tuple[int, memoryview | bytes]]] = {}
        pieces: list[list[Piece]] = []
        with SafetensorsFile("bare", "source", source) as file:
            (before,) = {info.dtype for info in file.tensors.values()}
            (after,) = {tensor.dtype for _, tensor in wanted.values()}
            for number, (path, infos) in enumerate(files.items()):
                layout = laid_out(infos, {})
                self.known[path] = list(layout.around)
                runs: list[Piece] = []
                for name, at in layout.places.items():
                    old, tensor = wanted[name]
                    if tensor.shape != file.tensors[old].shape:  # more than a cast: known too
                        self.known[path].append((at, memoryview(tensor.contiguous().view(torch.uint8).numpy())))
                        continue
                    run = Piece(file.span(old).at, number, at, tensor.numel())
                    if runs and run[:3] == runs[-1].cut(runs[-1].count, 0, before, after)[:3]:  # right behind it
                        runs[-1] = runs[-1]._replace(count=runs[-1].count + run.count)
                    else:
                        runs.append(run)
                step = PIECE // before.itemsize
                pieces.append([run.cut(k, step, before, after) for run in runs for k in range(0, run.count, step)])
        self.dtypes = before, after
        self.pieces = [piece for turn in itertools.zip_longest(*pieces) for piece in turn if piece]

    def run(self) -> None:
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(self.source.open("rb", buffering=0)).fileno()
            targets = []
            for path, known in self.known.items():
                path.parent.mkdir(exist_ok=True)
                targets.append(stack.enter_context(path.open("wb", buffering=0)).fileno())
                for at, held in known:
                    os.pwrite(targets[-1], held, at)
            left = iter(self.pieces)  # of which each thread gets others
            with ThreadPoolExecutor(2) as pool:
                for thread in [pool.submit(self._move, source, targets, left) for _ in range(2)]:
                    thread.result()

    def _move(self, source: int, targets: Sequence[int], left: Iterator[Piece]) -> None:
        torch.set_num_threads(1)  # in this thread
        before, after = (torch.empty(PIECE // self.dtypes[0].itemsize, dtype=dtype) for dtype in self.dtypes)
        read, cast = (memoryview(tensor.view(torch.uint8).numpy()) for tensor in (before, after))
        for piece in left:
            taken = read[: piece.count * before.itemsize]
            os.preadv(source, [taken], piece.source_at)
            if before.dtype != after.dtype:
                after[: piece.count].copy_(before[: piece.count])
                taken = cast[: piece.count * after.itemsize]
            os.pwrite(targets[piece.file], taken, piece.target_at)
