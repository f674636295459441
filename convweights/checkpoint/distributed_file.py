"""Directories of torch.distributed.checkpoint, in which several processes save the parts of tensors that they hold."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import torch

from convweights.checkpoint.contents import Checkpoint, Surroundings, TensorInfo
from convweights.checkpoint.distributed_metadata import METADATA_FILE, Chunk, Stored, read_metadata
from convweights.checkpoint.state_dict import USUAL_KEYS
from convweights.fitting.errors import CheckpointError, reason, sentence


class DistributedFile(Checkpoint):
    """A directory with a ``.metadata`` file, read one tensor at a time and without a process group.

    Names are those of the checkpoint, nested dicts joined by dots. Where the state dict lies under one key in common
    use, names are those below the key, and what stands beside it is left out.
    """

    format = "torch.distributed.checkpoint"

    def __init__(self, function: str, argument: str, path: Path) -> None:
        self.path = path
        self._function, self._argument = function, argument
        stored = read_metadata(function, argument, path)
        self._check_files(stored)
        for name, info in stored.tensors.items():
            self._check_cover(info, stored.chunks[name])
        nested = self._nested(stored)
        # A name below the key is what follows the key and its dot.
        start = 0 if nested is None else len(nested) + 1
        names = {name: name[start:] for name, path in stored.paths.items() if nested is None or path[0] == nested}
        self._chunks = {names[name]: chunks for name, chunks in stored.chunks.items() if name in names}
        self.tensors = {
            names[name]: replace(info, name=names[name]) for name, info in stored.tensors.items() if name in names
        }
        tops = dict.fromkeys(str(path[0]) for path in stored.paths.values())
        self.around = Surroundings(
            nested=nested,
            entries=() if nested is None else tuple(top for top in tops if top != nested),
            inside=tuple(names[name] for name in names if name not in stored.tensors),
        )

    def _check_files(self, stored: Stored) -> None:
        ends: dict[str, int] = {}
        for place in stored.places:
            ends[place.file] = max(ends.get(place.file, 0), place.begin + place.length)
        for file, end in ends.items():
            if PurePath(file).is_absolute() or ".." in PurePath(file).parts:
                raise self._refused("have its files in its directory", f"{self.path} with {file!r}, which is outside")
            if not (self.path / file).is_file():
                raise self._refused("have all its files", f"{self.path} without {file}")
            size = (self.path / file).stat().st_size
            if size < end:
                raise self._refused("have whole files", f"{self.path} with {size} of at least {end} bytes of {file}")

    def _check_cover(self, info: TensorInfo, chunks: Sequence[Chunk]) -> None:
        held, count = sum(math.prod(chunk.sizes) for chunk in chunks), math.prod(info.shape)
        if not all(_is_within(chunk, info.shape) for chunk in chunks):
            found = f"a chunk outside {info.name!r}"
        elif held != count:
            found = f"{held} of the {count} elements of {info.name!r}"
        elif _overlap(chunks):
            found = f"some elements of {info.name!r} twice"
        elif info.plain and any(math.prod(c.sizes) * info.dtype.itemsize > c.place.length for c in chunks):
            found = f"a chunk of {info.name!r} that is longer than its place in a file"
        elif not info.plain and len(chunks) > 1:
            found = f"the quantised {info.name!r} in {len(chunks)} chunks"
        else:
            return
        raise self._refused("have chunks that make up each tensor", f"{self.path} with {found}", info.name)

    def _nested(self, stored: Stored) -> str | None:
        """The key of the state dict: by the rules for ``.pt`` files, but names that are none of these stay whole."""
        if not stored.tensors:
            raise self._refused("hold tensors", f"{self.path}, which holds {', '.join(stored.paths) or 'nothing'}")
        paths = [stored.paths[name] for name in stored.tensors]
        tops = {path[0] for path in paths if len(path) == 2 and isinstance(path[1], str)}
        candidates = [key for key in USUAL_KEYS if key in tops]
        if len(candidates) > 1:
            got, remedy = f"several in {self.path}: {', '.join(candidates)}", "save the one you mean by itself"
            message = sentence(self._function, self._argument, "hold one state dict", got, remedy)
            raise CheckpointError(message, self.path)
        return candidates[0] if candidates else None

    def read(self, name: str) -> torch.Tensor:
        info, chunks = self.tensors[name], self._chunks[name]
        if len(chunks) == 1:
            return self._load(info, chunks[0])
        whole = torch.empty(info.shape, dtype=info.dtype, device="cpu")
        for chunk in chunks:
            box = tuple(slice(begin, begin + size) for begin, size in zip(chunk.offsets, chunk.sizes, strict=True))
            whole[box].copy_(self._load(info, chunk))
        return whole

    def _load(self, info: TensorInfo, chunk: Chunk) -> torch.Tensor:
        rule, place = "hold what its .metadata says", chunk.place
        try:
            with (self.path / place.file).open("rb") as file:
                file.seek(place.begin)
                content = io.BytesIO(file.read(place.length))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                part = torch.load(content, weights_only=True, map_location="cpu")
        except OSError as error:
            got = f"{self.path / place.file} ({reason(error)})"
            raise self._refused("be readable", got, info.name) from None
        except Exception as error:
            # As in a .pt file, damage has many types, and torch's words suggest to load with weights_only off.
            got = f"{info.name!r} in {self.path / place.file}, which torch.load cannot read ({type(error).__name__})"
            raise self._refused(rule, got, info.name) from None
        dense = isinstance(part, torch.Tensor) and part.layout == torch.strided and part.device.type == "cpu"
        if not dense or part.dtype != info.dtype or tuple(part.shape) != chunk.sizes:
            got = f"another object for {info.name!r} in {self.path / place.file}"
            raise self._refused(rule, got, info.name)
        tensor: torch.Tensor = part.detach()
        return tensor

    def close(self) -> None:
        """Nothing: no file stays open between reads."""

    def _refused(self, rule: str, got: str, tensor: str | None = None) -> CheckpointError:
        return CheckpointError(sentence(self._function, self._argument, rule, got), self.path, tensor)


def _is_within(chunk: Chunk, shape: tuple[int, ...]) -> bool:
    return len(chunk.offsets) == len(chunk.sizes) == len(shape) and all(
        begin + size <= length for begin, size, length in zip(chunk.offsets, chunk.sizes, shape, strict=True)
    )


def _overlap(chunks: Sequence[Chunk]) -> bool:
    """Whether two chunks of a tensor share elements.

    Each is only compared with those before it that reach beyond its beginning, along the dimension that has the most
    beginnings: a thousand processes would make half a million pairs of each tensor.
    """
    if len(chunks) < 2:
        return False
    along = max(range(len(chunks[0].sizes)), key=lambda k: len({chunk.offsets[k] for chunk in chunks}))
    reaching: list[Chunk] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.offsets[along]):
        reaching = [other for other in reaching if other.offsets[along] + other.sizes[along] > chunk.offsets[along]]
        for other in reaching:
            sides = zip(chunk.offsets, chunk.sizes, other.offsets, other.sizes, strict=True)
            if all(a < b + n and b < a + m for a, m, b, n in sides):
                return True
        reaching.append(chunk)
    return False


def is_distributed(path: Path) -> bool:
    """Whether a path is a directory that torch.distributed.checkpoint wrote."""
    return (path / METADATA_FILE).is_file()


def write_distributed(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Save into an empty directory through torch.distributed.checkpoint, as one process. All tensors are in memory.

    Raises what the writing itself raised, an OSError where the disk is full.
    """
    # Half a second of importing, which only those who ask for this format wait for.
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    class Writer(FileSystemWriter):
        def storage_meta(self) -> None:
            """Neither the directory's present name nor a number that differs each time goes into the file."""

    try:
        with warnings.catch_warnings():
            # That there is no process group is meant.
            warnings.simplefilter("ignore")
            save(dict(tensors), storage_writer=Writer(folder), no_dist=True)
    except CheckpointException as error:
        # It is a BaseException, and holds what went wrong in each process.
        raise next(iter(error.failures.values()))[0] from None
