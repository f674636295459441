"""A safetensors checkpoint of a directory: which tensors go into which file, and the index that says so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convweights.checkpoint.sharded_file import INDEX
from convweights.fitting.contents import TensorInfo
from convweights.fitting.errors import sentence

# What the transformers library takes where nothing is said.
SHARD_BYTES = 5 * 1000**3

_UNITS = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def shard_bytes(function: str, value: Any) -> int:
    """``shard_size`` in bytes, of a number or of words such as "5GB"."""
    if value is None:
        return SHARD_BYTES
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(sentence(function, "shard_size", 'be a number of bytes, or words such as "5GB"', repr(value)))
    size = value
    if isinstance(value, str):
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([KMGT]?I?B)?", value.strip().upper())
        if found is None or found[2] == "IB":
            raise ValueError(sentence(function, "shard_size", 'be a size such as "5GB" or "500MiB"', repr(value)))
        size = int(float(found[1]) * _UNITS[found[2] or "B"])
    assert isinstance(size, int)
    if size < 1:
        raise ValueError(sentence(function, "shard_size", "be at least one byte", repr(value)))
    return size


def shards_of(tensors: Iterable[TensorInfo], size: int, stem: str) -> dict[str, list[TensorInfo]]:
    """The files by name, none larger than ``size`` but where one tensor is."""
    shards: list[list[TensorInfo]] = [[]]
    held = 0
    for info in tensors:
        if shards[-1] and held + info.nbytes > size:
            shards.append([])
            held = 0
        shards[-1].append(info)
        held += info.nbytes
    if len(shards) == 1:
        return {f"{stem}.safetensors": shards[0]}
    return {f"{stem}-{k + 1:05}-of-{len(shards):05}.safetensors": shard for k, shard in enumerate(shards)}


def index_text(shards: Mapping[str, Sequence[TensorInfo]]) -> str:
    """The content of the index file."""
    total = sum(info.nbytes for shard in shards.values() for info in shard)
    weight_map = {info.name: file for file, shard in shards.items() for info in shard}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"


def stem_of(source: Path, *, of_directory: bool) -> str:
    """What the files of a directory are called: as in the source where it is of a directory too, else model."""
    if source.name.endswith(INDEX):
        return source.name.removesuffix(INDEX)
    return source.stem if of_directory and source.suffix == ".safetensors" else "model"
