"""Writes a plan into a target of any format: a file, or a directory with one or more."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from convweights.checkpoint.beside import copy_others
from convweights.checkpoint.contents import Checkpoint
from convweights.checkpoint.distributed_file import write_distributed
from convweights.checkpoint.engine import Make, Tick, write_files
from convweights.checkpoint.formats import DIRECTORY
from convweights.checkpoint.ranks import ALONE, Ranks
from convweights.checkpoint.replace import finish_directory, replacing, temporary_beside
from convweights.checkpoint.safetensors_file import laid_out
from convweights.checkpoint.sharded_file import INDEX
from convweights.checkpoint.shards import index_text, shards_of
from convweights.checkpoint.torch_target import write_torch
from convweights.fitting.errors import CheckpointError, reason, sentence
from convweights.fitting.report import Plan

# The transformers library asks files to say whose layout their tensors have.
FORMAT = {"format": "pt"}


@dataclass(frozen=True)
class How:
    """What a target is made with beside its tensors."""

    metadata: Mapping[str, str]
    shard_bytes: int
    stem: str  # of the names of a directory's files
    fsync: bool
    workers: int | None = None
    tick: Tick | None = None
    folder: Path | None = None  # whose files are copied along
    others: tuple[Path, ...] = ()
    ranks: Ranks = ALONE


def write_target(target: Path, form: str, planned: Plan, source: Checkpoint, make: Make, how: How) -> list[str]:
    """Write the target, whole or not at all; the names of the tensors in which finite values became infinite."""
    if form == DIRECTORY:
        return _write_directory(target, planned, source, make, how)
    # One file, which one process writes.
    return how.ranks.from_first(lambda: _write_alone(target, form, planned, source, make, how))


def _write_alone(target: Path, form: str, planned: Plan, source: Checkpoint, make: Make, how: How) -> list[str]:
    if form in ("safetensors", "pt"):
        with replacing("convert", target, fsync=how.fsync) as file:
            if form == "pt":
                return write_torch(file, planned, source, make, workers=how.workers, tick=how.tick)
            layout = laid_out((tensor.target for tensor in planned.tensors), {**FORMAT, **how.metadata})
            files = [(file.fileno(), layout)]
            return write_files(files, planned.tensors, source, make, workers=how.workers, tick=how.tick)
    by_name = {tensor.name: tensor for tensor in planned.tensors}
    overflown: list[str] = []
    done = 0

    def made(name: str) -> torch.Tensor:
        nonlocal done
        tensor, overflows = make(by_name[name])
        if overflows:
            overflown.append(name)
        done += tensor.nbytes
        if how.tick is not None:
            how.tick(done, name)
        return tensor

    with _new_directory(target, how) as folder:
        write_distributed(folder, {name: made(name) for name in by_name})
        finish_directory(folder, target, fsync=how.fsync)
    return sorted(overflown)


def _write_directory(target: Path, planned: Plan, source: Checkpoint, make: Make, how: How) -> list[str]:
    """Each process writes some of the files, the first one what is not of one file alone."""
    infos = [tensor.target for tensor in planned.tensors]
    shards = shards_of(infos, how.shard_bytes, how.stem)
    by_name = {tensor.name: tensor for tensor in planned.tensors}
    mine = list(shards)[how.ranks.rank :: how.ranks.size]
    metadata = {**how.metadata, **FORMAT}
    with _new_directory(target, how) as folder:

        def write() -> list[str]:
            with contextlib.ExitStack() as stack:
                files = []
                for name in mine:
                    file = stack.enter_context((folder / name).open("xb"))
                    files.append((file.fileno(), laid_out(shards[name], metadata)))
                tensors = [by_name[info.name] for name in mine for info in shards[name]]
                return write_files(files, tensors, source, make, workers=how.workers, tick=how.tick)

        overflown = how.ranks.together(write)

        def finish() -> None:
            if len(shards) > 1:
                (folder / f"{how.stem}{INDEX}").write_text(index_text(shards))
            if how.folder is not None:
                copy_others(how.folder, folder, list(how.others))
            finish_directory(folder, target, fsync=how.fsync)

        how.ranks.from_first(finish)
    return sorted(name for names in overflown for name in names)


@contextlib.contextmanager
def _new_directory(target: Path, how: How) -> Iterator[Path]:
    """An empty directory beside the target, which is gone when the block ends."""

    def begin() -> Path:
        temporary = temporary_beside(target.absolute())
        temporary.mkdir()
        return temporary

    try:
        folder = how.ranks.from_first(begin)
        try:
            yield folder
        finally:
            if how.ranks.first:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        got = f"{target} ({reason(error)})"
        raise CheckpointError(sentence("convert", "target", "be writable", got), target) from error
