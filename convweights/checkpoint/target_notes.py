"""What a target's format leaves out of a plan; what it cannot hold at all is an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from convweights.checkpoint.contents import Checkpoint
from convweights.checkpoint.distributed_file import DistributedFile
from convweights.checkpoint.formats import target_format
from convweights.checkpoint.safetensors_file import check_storable
from convweights.fitting.errors import CheckpointError, sentence
from convweights.fitting.report import Plan


def target_notes(function: str, planned: Plan, source: Checkpoint, target: Path) -> tuple[str, ...]:
    """The notes that hold for a target of this name."""
    around, tensors = source.around, planned.tensors
    if target_format(function, target) == "pt":
        taken = next((tensor.name for tensor in tensors if tensor.name in around.inside), None)
        if taken is not None:
            must, got = f"have names that nothing else in {source.path} has", f"{taken}, which is no tensor there"
            raise CheckpointError(sentence(function, "tensors", must, got), source.path, taken)
        notes = []
        if around.metadata:
            notes.append(f"metadata of the source was left out, .pt files have none: {', '.join(around.metadata)}")
        beside = ", ".join([*around.entries, *around.inside])
        if beside and around.root is None:
            notes.append(f"left out, of this source only tensors are read: {beside}")
        changed = {t.source.shape for t in tensors if t.source is not None and t.source.shape != t.target.shape}
        entries = [] if around.nested is None or around.root is None else around.root.items()
        stale = [str(key) for key, value in entries if key != around.nested and _holds(value, changed)]
        if stale:
            notes.append(
                f"kept as they are, with tensors whose shapes have changed in the state dict: {', '.join(stale)}"
            )
        return tuple(notes)
    if target_format(function, target) == DistributedFile.format:
        for tensor in tensors:
            if not tensor.target.plain:
                must, got = "be a dense tensor that holds data", "a sparse, quantised or meta tensor"
                message = sentence(function, f"{tensor.name!r} of the source", must, got, "write a .pt file instead")
                raise CheckpointError(message, target, tensor.name)
        beside = ", ".join([*around.entries, *around.inside, *around.metadata])
        notes = [f"left out, the target holds tensors only: {beside}"] if beside else []
        return (*notes, *_untied(source, planned))
    check_storable(function, target, (tensor.target for tensor in tensors))
    notes = []
    if around.entries:
        notes.append(f"left out beside the state dict, safetensors holds tensors only: {', '.join(around.entries)}")
    if around.inside:
        notes.append(f"left out of the state dict, safetensors holds tensors only: {', '.join(around.inside)}")
    return (*notes, *_untied(source, planned))


def _untied(source: Checkpoint, planned: Plan) -> list[str]:
    """Of tensors that a .pt file would hold once."""
    by_name = {tensor.name: tensor for tensor in planned.tensors}
    copied = {tensor.source.name for tensor in planned.tensors if tensor.source is not None and not tensor.rewritten}
    groups = [[name for name in names if name in copied] for names in source.shared]
    for names in planned.ties:
        if by_name[names[0]].rewritten:
            sources = [by_name[name].source for name in names]
            groups.append(list(dict.fromkeys(info.name for info in sources if info is not None)))
    words = "these share memory in the source and are written separately"
    return [f"{words}: {', '.join(group)}" for group in groups if len(group) > 1]


def _holds(value: object, shapes: set[tuple[int, ...]]) -> bool:
    """Whether a tensor of one of these shapes is in it, as moments are in an optimizer's state."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape) in shapes
    if isinstance(value, Mapping):
        return any(_holds(item, shapes) for item in value.values())
    return isinstance(value, (list, tuple)) and any(_holds(item, shapes) for item in value)
