"""The storages of what torch.save writes, in the order in which the file has them."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch


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
