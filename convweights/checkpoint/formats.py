"""Opens a checkpoint by what is in the file; a target's format follows its suffix."""

from __future__ import annotations

import re
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from convweights.checkpoint.beside import WEIGHTS
from convweights.checkpoint.contents import Checkpoint
from convweights.checkpoint.distributed_file import DistributedFile, is_distributed
from convweights.checkpoint.numpy_file import NumpyFile, is_numpy
from convweights.checkpoint.safetensors_file import SafetensorsFile
from convweights.checkpoint.sharded_file import INDEX, ShardedFile, checkpoint_in
from convweights.checkpoint.torch_file import TorchFile
from convweights.fitting.errors import CheckpointError, reason, sentence, shown

SUFFIXES = {".safetensors": "safetensors", ".pt": "pt", ".pth": "pt", ".dcp": DistributedFile.format}
# A directory with one safetensors file, or several and their index.
DIRECTORY = "safetensors (directory)"


def path_of(function: str, argument: str, value: Any) -> Path:
    if not isinstance(value, (str, PathLike)) or isinstance(fspath(value), bytes):
        raise TypeError(sentence(function, argument, "be a path", shown(value)))
    return Path(value)


def open_checkpoint(function: str, argument: str, value: str | PathLike[str]) -> Checkpoint:
    """The checkpoint at a path, on behalf of the argument that named it. Use it in a ``with`` statement.

    Raises CheckpointError, in one sentence, for anything else than a whole safetensors file, an index with all its
    shards, a directory with one of these or of torch.distributed.checkpoint, an npz file, or a whole file of
    torch.save whose pickle holds only tensors and plain containers.
    """
    path = path_of(function, argument, value)
    if is_distributed(path):
        return DistributedFile(function, argument, path)
    if path.is_dir():
        path = checkpoint_in(function, argument, path)
    if path.name.endswith(INDEX):
        return ShardedFile(function, argument, path)
    start = _first_bytes(function, argument, path)
    # A safetensors header is below 100 MB, so the upper half of its length is zero; then comes its JSON.
    if len(start) == 9 and start[4:8] == bytes(4) and start[8:] == b"{":
        return SafetensorsFile(function, argument, path)
    if start[:4] == b"PK\x03\x04" and is_numpy(path):
        return NumpyFile(function, argument, path)
    if start[:4] == b"PK\x03\x04":
        return TorchFile(function, argument, path, zipped=True)
    if start[:1] == b"\x80":
        return TorchFile(function, argument, path, zipped=False)
    if path.suffix == ".safetensors":
        # Not even its first bytes are right; the library words what is wrong with them.
        return SafetensorsFile(function, argument, path)
    rule, got = "be a checkpoint (.safetensors, .pt, .pth or .npz)", f"{path}, which is none of these inside"
    raise CheckpointError(sentence(function, argument, rule, got), path)


def _first_bytes(function: str, argument: str, path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise CheckpointError(sentence(function, argument, "be a regular file", path), path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        got = f"{path}, which does not exist"
        raise CheckpointError(sentence(function, argument, "be a checkpoint file", got), path) from None
    except (OSError, ValueError) as error:
        got = f"{path} ({reason(error)})"
        raise CheckpointError(sentence(function, argument, "be readable", got), path) from None
    if not start:
        raise CheckpointError(sentence(function, argument, "be a checkpoint file", f"{path}, which is empty"), path)
    return start


def target_format(function: str, target: Path) -> str:
    """``safetensors``, ``pt``, or a directory's: of a name without a suffix, and of ``.dcp``."""
    found = DIRECTORY if target.is_dir() and target.suffix != ".dcp" else SUFFIXES.get(target.suffix)
    # What follows the dot of Qwen2.5-0.5B is a number, and no suffix.
    if found is None and (re.fullmatch(r"\.[A-Za-z]+", target.suffix) or target.name.endswith(WEIGHTS)):
        rule = f"end in {', '.join(list(SUFFIXES)[:-1])} or {list(SUFFIXES)[-1]}, or be a directory without a suffix"
        raise CheckpointError(sentence(function, "target", rule, target), target)
    return found or DIRECTORY
