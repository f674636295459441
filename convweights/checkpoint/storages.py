"""The storages of what torch.save writes and torch.load reads, in the order in which the file has them."""

from __future__ import annotations

import io
import pickle
from typing import Any, BinaryIO

import torch

from convweights.checkpoint.archive import records


def storages_in(content: Any) -> list[torch.UntypedStorage]:
    """Number k is record ``data/k`` of the file."""
    pickler = _Storages()
    pickler.dump(content)
    return list(pickler.found.values())


class _Storages(pickle.Pickler):
    """Goes over an object as torch.save does, and keeps nothing but its storages."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), protocol=2)
        self.found: dict[int, torch.UntypedStorage] = {}

    def persistent_id(self, item: Any) -> str | None:
        if not torch.is_storage(item):
            return None
        storage = item._untyped_storage if isinstance(item, torch.storage.TypedStorage) else item
        self.found.setdefault(storage._cdata, storage)
        return ""


def mapped_at(content: Any, file: BinaryIO) -> int | None:
    """The address of the file's first byte, for what torch.load has read from it with mmap: all of it is one mapping.

    None where the storages are not where the archive says, whoever wrote it.
    """
    found = {name: (record.at, record.size) for name, record in records(file).items()}
    filled = {key: storage for key, storage in enumerate(storages_in(content)) if storage.nbytes()}
    if not filled:
        return None
    key, storage = next(iter(filled.items()))
    begin = storage.data_ptr() - found.get(f"data/{key}", (0, 0))[0]
    places = {(storage.data_ptr() - begin, storage.nbytes()) for storage in filled.values()}
    return begin if places <= set(found.values()) else None
