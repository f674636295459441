"""Archives of numpy arrays, the way in which weights of TensorFlow and Flax usually come."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convweights.checkpoint.contents import Checkpoint, Surroundings, TensorInfo
from convweights.fitting.errors import CheckpointError, reason, sentence


class NumpyFile(Checkpoint):
    """An ``.npz`` file, read one array at a time. Slashes in names become dots, ``:0`` at their end goes."""

    format = "npz"

    def __init__(self, function: str, argument: str, path: Path) -> None:
        self.path, self.around = path, Surroundings()
        self._function, self._argument = function, argument
        try:
            self._archive = zipfile.ZipFile(path)
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
            shape, dtype = self._header(member)
            try:
                found = torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype
            except TypeError:
                rule, got = "hold arrays of numbers that torch has", f"{dtype} for {name!r} in {self.path}"
                raise CheckpointError(sentence(self._function, self._argument, rule, got), self.path, name) from None
            members[name], infos[name] = member, TensorInfo(name, shape, found)
        return members, infos

    def _header(self, member: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of an array, of which nothing else is read."""
        try:
            with self._archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read: Any = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                    version, np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(file)
        except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
            raise self._damaged(error) from None
        return shape, dtype

    def read(self, name: str) -> torch.Tensor:
        try:
            with self._archive.open(self._members[name]) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
            raise self._damaged(error) from None
        # Of arrays of another byte order torch takes none.
        return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape))

    def close(self) -> None:
        self._archive.close()

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
