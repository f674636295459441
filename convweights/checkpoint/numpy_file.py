"""Archives of numpy arrays, the way in which weights of TensorFlow and Flax usually come."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convweights.checkpoint.contents import Checkpoint, Span, Surroundings, TensorInfo
from convweights.fitting.errors import CheckpointError, reason, sentence


class NumpyFile(Checkpoint):
    """An ``.npz`` file. Slashes in names become dots, ``:0`` at their end goes.

    Arrays that are not compressed are streamed from their places, without a look at the archive's checksums.
    """

    format = "npz"

    def __init__(self, function: str, argument: str, path: Path) -> None:
        self.path, self.around = path, Surroundings()
        self._function, self._argument = function, argument
        self._spans: dict[str, Span] = {}
        try:
            self._archive = zipfile.ZipFile(path)
            self._bytes = path.open("rb", buffering=0)
        except (zipfile.BadZipFile, OSError) as error:
            raise self._damaged(error) from None
        try:
            self._members, self.tensors = self._described()
        except BaseException:
            self.close()
            raise

    def _described(self) -> tuple[dict[str, str], dict[str, TensorInfo]]:
        members: dict[str, str] = {}
        infos: dict[str, TensorInfo] = {}
        for member in self._archive.namelist():
            name = member.removesuffix(".npy").removesuffix(":0").strip("/").replace("/", ".")
            if name in members:
                rule, got = "name each tensor once", f"{members[name]!r} and {member!r} for {name!r} in {self.path}"
                raise CheckpointError(sentence(self._function, self._argument, rule, got), self.path, name)
            shape, dtype, span = self._header(member)
            try:
                found = torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype
            except TypeError:
                rule, got = "hold arrays of numbers that torch has", f"{dtype} for {name!r} in {self.path}"
                raise CheckpointError(sentence(self._function, self._argument, rule, got), self.path, name) from None
            members[name], infos[name] = member, TensorInfo(name, shape, found)
            if span is not None:
                self._spans[name] = span
        return members, infos

    def _header(self, member: str) -> tuple[tuple[int, ...], np.dtype[Any], Span | None]:
        """Shape and dtype of an array, of which nothing else is read, and where it lies if it is not compressed."""
        try:
            with self._archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read: Any = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                    version, np.lib.format.read_array_header_2_0
                )
                shape, columns_first, dtype = read(file)
                head = file.tell()
        except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
            raise self._damaged(error) from None
        info = self._archive.getinfo(member)
        # Arrays of objects are refused elsewhere, by name.
        whole = dtype.hasobject or head + math.prod(shape) * dtype.itemsize == info.file_size
        if not whole or any(size < 0 for size in shape):
            raise self._damaged(ValueError(f"{member} with {info.file_size} bytes for shape {shape}"))
        if info.compress_type != zipfile.ZIP_STORED or not dtype.isnative or info.flag_bits & 1:
            return shape, dtype, None
        # The archive's own header before each member ends in its name and in what is extra, of these lengths.
        lengths = os.pread(self._bytes.fileno(), 4, info.header_offset + 26)
        at = info.header_offset + 30 + sum(struct.unpack("<HH", lengths)) + head
        strides = None
        if columns_first:
            strides = tuple(math.prod(shape[:d]) for d in range(len(shape)))
        return shape, dtype, Span(self._bytes.fileno(), at, strides)

    def read(self, name: str) -> torch.Tensor:
        try:
            with self._archive.open(self._members[name]) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
            raise self._damaged(error) from None
        # Of arrays of another byte order torch takes none.
        return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape))

    def span(self, name: str) -> Span | None:
        return self._spans.get(name)

    def close(self) -> None:
        self._archive.close()
        self._bytes.close()

    def _damaged(self, error: Exception) -> CheckpointError:
        got = f"{self.path} ({reason(error)})"
        return CheckpointError(sentence(self._function, self._argument, "be a whole npz file", got), self.path)


def is_numpy(path: Path) -> bool:
    """Whether a zip archive holds numpy arrays and nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)
