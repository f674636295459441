"""The ``.metadata`` file of torch.distributed.checkpoint. It is a pickle; nothing of what it names is run."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convweights.checkpoint.contents import TensorInfo
from convweights.fitting.errors import CheckpointError, reason, sentence

METADATA_FILE = ".metadata"


@dataclass(frozen=True)
class Place:
    """Bytes of a data file, whose name is relative to the directory."""

    file: str
    begin: int
    length: int


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor, and where torch.save put it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: Place


@dataclass(frozen=True)
class Stored:
    """What a checkpoint holds. ``paths`` are the keys that lead to each entry of the nested dicts that were saved."""

    tensors: dict[str, TensorInfo]
    chunks: dict[str, tuple[Chunk, ...]]
    places: tuple[Place, ...]
    paths: dict[str, tuple[str | int, ...]]


class _Record:
    """What an object was pickled with. It takes the place of the object's class, none of whose code runs."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


_RECORDS = (
    "torch.distributed.checkpoint.metadata.Metadata",
    "torch.distributed.checkpoint.metadata.MetadataIndex",
    "torch.distributed.checkpoint.metadata.TensorStorageMetadata",
    "torch.distributed.checkpoint.metadata.BytesStorageMetadata",
    "torch.distributed.checkpoint.metadata.ChunkStorageMetadata",
    "torch.distributed.checkpoint.metadata.TensorProperties",
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.metadata.StorageMeta",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    # Where torch had them before the checkpoints had their own.
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
    "torch.serialization._get_layout",
    # The directory that the checkpoint was saved into; Python 3.13 names another module.
    *(f"{module}.{system}Path" for module in ("pathlib", "pathlib._local") for system in ("Posix", "Windows")),
)
_KNOWN: dict[str, Any] = {
    "torch.Size": tuple,
    "collections.OrderedDict": OrderedDict,
    **{name: type(name.rpartition(".")[2], (_Record,), {}) for name in _RECORDS},
}


class _Foreign(Exception):
    """A name that no checkpoint needs."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        full = f"{module}.{name}"
        found = getattr(torch, name, None) if module == "torch" else None
        if full not in _KNOWN and not isinstance(found, torch.dtype):
            raise _Foreign(full)
        return _KNOWN.get(full, found)


def read_metadata(function: str, argument: str, path: Path) -> Stored:
    """What the ``.metadata`` file in the directory says, before anything of it is compared with the data files."""
    rule = f"have a {METADATA_FILE} file as torch.distributed.checkpoint writes it"
    try:
        with (path / METADATA_FILE).open("rb") as file:
            return _stored(_Unpickler(file).load())
    except _Foreign as error:
        got, remedy = f"{path}, whose loading would run {reason(error)}", "save only tensors and plain values"
        raise CheckpointError(sentence(function, argument, rule, got, remedy), path) from None
    except Exception as error:
        # A damaged pickle raises UnpicklingError, EOFError, TypeError, KeyError, OverflowError and others.
        got = f"{path / METADATA_FILE} ({reason(error)})"
        raise CheckpointError(sentence(function, argument, rule, got), path) from None


def _stored(root: Any) -> Stored:
    metadata = _fields(root, "Metadata")
    places = {}
    for index, info in _mapping(metadata["storage_data"]).items():
        key = _fields(index, "MetadataIndex")
        offset = key.get("offset")
        places[key["fqn"], None if offset is None else _sizes(offset)] = _place(key["fqn"], info)
    tensors, chunks, paths = {}, {}, {}
    planned = metadata.get("planner_data")
    for name, entry in _mapping(metadata["state_dict_metadata"]).items():
        if not isinstance(name, str):
            raise ValueError(f"{type(name).__name__} as a name")
        paths[name] = _path(name, planned)
        if type(entry).__name__ == "BytesStorageMetadata":
            continue
        fields = _fields(entry, "TensorStorageMetadata")
        tensors[name] = _info(name, fields)
        found = []
        for chunk in fields["chunks"]:
            box = _fields(chunk, "ChunkStorageMetadata")
            offsets, sizes = _sizes(box["offsets"]), _sizes(box["sizes"])
            # Of a tensor with fewer rows than there are processes, some of them store nothing.
            if math.prod(sizes):
                if (name, offsets) not in places:
                    raise ValueError(f"a chunk of {name} without a place")
                found.append(Chunk(offsets, sizes, places[name, offsets]))
        chunks[name] = tuple(found)
    return Stored(tensors, chunks, tuple(places.values()), paths)


def _info(name: str, fields: Mapping[str, Any]) -> TensorInfo:
    properties = fields["properties"]
    if type(properties).__name__ != "TensorProperties" or not isinstance(properties.state[0], torch.dtype):
        raise ValueError(f"no dtype for {name}")
    dtype = properties.state[0]
    return TensorInfo(name, _sizes(fields["size"]), dtype, plain=not str(dtype).startswith("torch.q"))


def _place(name: Any, info: Any) -> Place:
    fields = _fields(info, "_StorageInfo")
    if fields.get("transform_descriptors"):
        raise ValueError(f"{name}, which an extension encoded")
    begin, length = _sizes((fields["offset"], fields["length"]))
    if not isinstance(fields["relative_path"], str):
        raise ValueError(f"no file for {name}")
    return Place(fields["relative_path"], begin, length)


def _path(name: str, planned: Any) -> tuple[str | int, ...]:
    """The keys whose joining by dots made the name; the name itself where it was not made so."""
    path = planned.get(name) if isinstance(planned, Mapping) else None
    made = isinstance(path, tuple) and all(isinstance(key, (str, int)) for key in path)
    return path if made and path and ".".join(map(str, path)) == name else (name,)


def _fields(record: Any, kind: str) -> Mapping[str, Any]:
    if type(record).__name__ != kind:
        raise ValueError(f"{type(record).__name__} in place of {kind}")
    return _mapping(record.state)


def _mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{type(value).__name__} in place of a dict")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(size) is int and size >= 0 for size in value):
        raise ValueError(f"{type(value).__name__} in place of sizes")
    return value
