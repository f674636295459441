"""Writes a file of ``torch.save`` without holding what goes into it.

torch pickles the objects and leaves room for the bytes of their storages (``torch.serialization.skip_data``), which
then come in as those of any other file. Tensors that are still to be made stand on memory that is never touched.
"""

from __future__ import annotations

import copy
import io
import mmap
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import torch

from convweights.checkpoint.archive import Record, records, sum_up
from convweights.checkpoint.contents import Checkpoint, TensorInfo
from convweights.checkpoint.engine import WORKERS, Make, Tick, check_room, write_files
from convweights.checkpoint.layout import Copy, Layout
from convweights.checkpoint.state_dict import is_named_tensor
from convweights.checkpoint.storages import storages_in
from convweights.checkpoint.torch_file import TorchFile
from convweights.fitting.report import Plan
from convweights.fitting.ties import Ties


def write_torch(
    file: BinaryIO, planned: Plan, source: Checkpoint, make: Make, *, workers: int | None, tick: Tick | None
) -> list[str]:
    """``torch.save`` the state dict with its changed tensors, inside everything that stood around it.

    ``file`` is open for reading too, and no path, because torch.save writes the path's name into the archive. The
    names of the tensors in which finite values became infinite.
    """
    # At the least: what is tied is written once, and what only shares memory too.
    again = {name for names in planned.ties for name in names[1:]}
    made_anew = (tensor for tensor in planned.tensors if tensor.rewritten and tensor.name not in again)
    check_room(file.fileno(), sum(tensor.target.nbytes for tensor in made_anew))
    made = _Blanks(planned.ties)
    content = _content(planned, source, made)
    found = _save_room_for(content, file)
    if found is None:
        overflown = made.fill(planned, make, tick)
        _save(content, file)
        return made.all_names(overflown)
    called = {} if source.around.state is None else _names(source.around.state)
    places: dict[str, int] = {}
    copies: list[Copy] = []
    held: list[tuple[int, bytes | memoryview]] = []
    for key, (storage, record) in enumerate(found):
        name = made.names.get(storage._cdata)
        place = source.place(storage) if isinstance(source, TorchFile) else None
        if name is not None:
            places[name] = record.at
        elif place is not None:
            copies.append(Copy(called.get(storage._cdata, f"data/{key}"), *place, record.at, storage.nbytes()))
        else:
            held.append((record.at, _bytes_of(storage)))
    layout = Layout(held, places, file.seek(0, io.SEEK_END), copies)
    moved = sum(record.size for _, record in found)

    def told(done: int, name: str) -> None:
        # Optimizer states are written too, and tensors that share memory once: in all it is another number of bytes.
        assert tick is not None
        tick(done * planned.nbytes // max(1, moved), name)

    overflown = write_files(
        *([(file.fileno(), layout)], planned.tensors, source, make),
        workers=workers,
        tick=None if tick is None else told,
    )
    sum_up(file, [record for _, record in found], workers or WORKERS)
    if tick is not None and planned.tensors:
        tick(planned.nbytes, planned.tensors[-1].name)
    return made.all_names(overflown)


def _save_room_for(content: Any, file: BinaryIO) -> list[tuple[torch.UntypedStorage, Record]] | None:
    """Save all but the bytes of the storages; these, each with its place. None, and an empty file, where torch can only
    save them whole: quantized tensors and nested ones.
    """
    try:
        with torch.serialization.skip_data():
            stored = storages_in(content)
            _save(content, file)
    except RuntimeError as error:
        if "skip_data" not in str(error):
            raise
        stored = None
    if stored is not None:
        file.flush()
        found = {name: record for name, record in records(file).items() if name.startswith("data/")}
        if [found[f"data/{key}"].size for key in range(len(found))] == [storage.nbytes() for storage in stored]:
            return [(storage, found[f"data/{key}"]) for key, storage in enumerate(stored)]
    file.seek(0)
    file.truncate()
    return None


# So that more may be promised than there is. Python has the name from 3.13 on.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class _Blanks:
    """Tensors to be pickled and never read or written, however large: memory is promised and not taken.

    Names that are tied have one, which goes by the first of them.
    """

    def __init__(self, ties: Ties = ()) -> None:
        self.names: dict[int, str] = {}  # by storage
        self._ties = {name: names for names in ties for name in names}
        self._tensors: dict[str, torch.Tensor] = {}

    def tensor(self, info: TensorInfo) -> torch.Tensor:
        """A tensor for a name, on memory of its own or that of those it is tied to."""
        first = self._ties.get(info.name, (info.name,))[0]
        if first not in self._tensors:
            self._tensors[first] = _promised(info)
            self.names[self._tensors[first].untyped_storage()._cdata] = first
        return self._tensors[first].detach()

    def all_names(self, names: Sequence[str]) -> list[str]:
        """With those that are tied to them."""
        return sorted({tied for name in names for tied in self._ties.get(name, (name,))})

    def fill(self, planned: Plan, make: Make, tick: Tick | None) -> list[str]:
        """Make all of them after all; the names of those in which finite values became infinite."""
        overflown, done = [], 0
        for tensor in planned.tensors:
            if tensor.name in self._tensors:
                values, infinite = make(tensor)
                self._tensors[tensor.name].detach().copy_(values)
                overflown += [tensor.name] if infinite else []
            done += tensor.target.nbytes
            if tick is not None:
                tick(done, tensor.name)
        return sorted(overflown)


def _promised(info: TensorInfo) -> torch.Tensor:
    seen = torch.empty(info.shape, dtype=info.dtype, device="meta")
    storage = torch.UntypedStorage(0)
    if seen.nbytes:
        memory = mmap.mmap(-1, seen.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        storage = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=info.dtype, device="cpu").set_(storage, 0, seen.shape, seen.stride())


def _content(planned: Plan, source: Checkpoint, made: _Blanks) -> Any:
    """What is saved. Tensors that do not change, and what stands beside them, are the source's own objects."""
    root, old = source.around.root, source.around.state
    if root is None:
        return {tensor.name: made.tensor(tensor.target) for tensor in planned.tensors}
    # A shallow copy keeps an OrderedDict's attributes, of which torch's state dicts have one: _metadata.
    state = copy.copy(old)
    state.clear()
    objects: dict[tuple[int, int], torch.Tensor] = {}
    for tensor in planned.tensors:
        before = None if tensor.source is None else old[tensor.source.name]
        if tensor.rewritten:
            after = made.tensor(tensor.target)
            # Names of one object are names of one object again.
            which = (id(before), after.untyped_storage()._cdata)
            state[tensor.name] = objects.setdefault(which, _like(before, after))
        else:
            state[tensor.name] = before
    # What is no tensor stays, behind the tensors.
    state.update((key, value) for key, value in old.items() if not is_named_tensor(key, value))
    if source.around.nested is None:
        return state
    whole = copy.copy(root)
    whole[source.around.nested] = state
    return whole


def _like(old: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
    """``new`` as a Parameter where ``old`` is one, and with a gradient where it has one."""
    if isinstance(old, torch.nn.Parameter):
        return torch.nn.Parameter(new, old.requires_grad)
    return new.requires_grad_() if old is not None and old.requires_grad else new


def _names(state: Mapping[str, Any]) -> dict[int, str]:
    """What the storages of a state dict's tensors are called."""
    found: dict[int, str] = {}
    for name, tensor in state.items():
        if is_named_tensor(name, tensor) and tensor.layout == torch.strided:
            found.setdefault(tensor.untyped_storage()._cdata, name)
    return found


def _bytes_of(storage: torch.UntypedStorage) -> memoryview:
    whole = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage, 0, (storage.nbytes(),), (1,))
    return whole.numpy().data


def _save(content: Any, file: BinaryIO) -> None:
    try:
        with warnings.catch_warnings():
            # That it skips nothing of a tensor without data.
            warnings.filterwarnings("ignore", message="Serializing tensors on the meta device")
            torch.save(content, file)
    except RuntimeError as error:
        # After a failed write torch still ends its archive, and fails again: the first failure is the reason.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
