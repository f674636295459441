"""The formats of ``torch.save``: a zip archive, or the legacy pickle. Both are only ever read with weights_only."""

from __future__ import annotations

import os
import pickle
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from convweights.checkpoint.contents import Checkpoint, Span, TensorInfo
from convweights.checkpoint.state_dict import find_state, is_named_tensor
from convweights.fitting.errors import CheckpointError, sentence
from convweights.fitting.modules import place_of


class TorchFile(Checkpoint):
    """A ``.pt`` or ``.pth`` file. A zip archive is mapped into memory, so its tensors are read when they are used."""

    def __init__(self, function: str, argument: str, path: Path, *, zipped: bool) -> None:
        self.path = path
        self.format = "pt (zip)" if zipped else "pt (legacy)"
        mapped = zipped and _is_stored(function, argument, path)
        root = _load(function, argument, path, mmap=mapped)
        self.around = find_state(function, argument, path, root)
        self._state: Any = self.around.state
        named = (item for item in self._state.items() if is_named_tensor(*item))
        self.tensors = {name: _info(name, tensor) for name, tensor in named}
        self._bytes: BinaryIO | None = path.open("rb", buffering=0) if mapped else None
        self._mapped = self._mapping(path) if mapped else None

    def _mapping(self, path: Path) -> int | None:
        """The address of the file's first byte: what torch.load reads with mmap is one mapping.

        Where a tensor lies in the file, torch says of the same objects on the meta device. None where it cannot, of
        quantized tensors for one, or where what it says is not one mapping.
        """
        try:
            places = torch.load(path, weights_only=True, map_location="meta", mmap=True)
        except Exception:
            return None
        state = places if self.around.nested is None else places[self.around.nested]
        begins = set()
        for name in self.tensors:
            if self.tensors[name].plain and self.tensors[name].nbytes:
                storage = self._state[name].untyped_storage()
                place = getattr(state[name].untyped_storage(), "_checkpoint_offset", None)
                begins.add(None if place is None else storage.data_ptr() - place)
        return begins.pop() if len(begins) == 1 else None

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._state[name]
        return tensor.detach()

    @property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        found = []
        for names in self.around.ties:
            places: dict[object, list[str]] = {}
            for name in names:
                places.setdefault(place_of(self._state[name]), []).append(name)
            found += [tuple(same) for same in places.values() if len(same) > 1]
        return tuple(found)

    def span(self, name: str) -> Span | None:
        tensor = self._state[name]
        if not self.tensors[name].plain or tensor.is_conj() or tensor.is_neg():
            return None
        place = self.place(tensor.untyped_storage())
        if place is None:
            return None
        file, at = place
        at += tensor.storage_offset() * tensor.element_size()
        return Span(file, at, None if tensor.is_contiguous() else tensor.stride())

    def place(self, storage: torch.UntypedStorage) -> tuple[int, int] | None:
        """The descriptor of the file, and where in it the storage of something that was loaded from it lies."""
        if self._bytes is None or self._mapped is None:
            return None
        at = storage.data_ptr() - self._mapped if storage.nbytes() else 0
        inside = 0 <= at <= os.fstat(self._bytes.fileno()).st_size - storage.nbytes()
        return (self._bytes.fileno(), at) if inside else None

    def close(self) -> None:
        self._state = None
        if self._bytes is not None:
            self._bytes.close()


def _info(name: str, tensor: torch.Tensor) -> TensorInfo:
    plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
    return TensorInfo(name, tuple(tensor.shape), tensor.dtype, plain)


def _is_stored(function: str, argument: str, path: Path) -> bool:
    """Whether the archive is a whole checkpoint whose records are uncompressed, as mapping them needs."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            named = (member for member in members if member.filename.rpartition("/")[2] == "byteorder")
            order = next((archive.read(member) for member in named), None)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        rule, got = "be a whole file", f"{path}, a zip archive without its end"
        raise CheckpointError(sentence(function, argument, rule, got), path) from error
    names = [member.filename.rpartition("/")[2] for member in members]
    if "constants.pkl" in names:
        rule, got = "hold a state dict", f"{path}, a TorchScript archive"
        raise CheckpointError(sentence(function, argument, rule, got, "save module.state_dict() of it"), path)
    if "data.pkl" not in names:
        rule, got = "be a checkpoint of torch.save", f"{path}, a zip archive of other things"
        raise CheckpointError(sentence(function, argument, rule, got), path)
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    return stored and order in (None, sys.byteorder.encode())


def _load(function: str, argument: str, path: Path, *, mmap: bool) -> Any:
    """``torch.load`` with its errors in our words: its own suggest to load with weights_only off."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == ".safetensors":
                # Given a path of this suffix, torch.load goes by it and not by the content.
                with path.open("rb") as file:
                    return torch.load(file, weights_only=True, map_location="cpu")
            return torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.<>]+)", str(error))
        if found is None:
            rule, got = "be a checkpoint of torch.save", f"{path}, a pickle of another kind"
            raise CheckpointError(sentence(function, argument, rule, got), path) from None
        rule, got = "hold only tensors and plain containers", f"{path}, whose loading would run {found[1]}"
        remedy = "save only module.state_dict() where the file was made"
        raise CheckpointError(sentence(function, argument, rule, got, remedy), path) from None
    except OSError as error:
        got = f"{path} ({error.strerror or error})"
        raise CheckpointError(sentence(function, argument, "be readable", got), path) from None
    except Exception as error:
        # Damaged files come out of torch as RuntimeError, EOFError, KeyError, IndexError, struct.error and others.
        rule, got = "be a whole file", f"{path}, which torch.load cannot read to its end ({type(error).__name__})"
        raise CheckpointError(sentence(function, argument, rule, got), path) from None
