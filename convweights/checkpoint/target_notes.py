"""What a target's format leaves out of a plan; what it cannot hold at all is an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convweights.checkpoint.contents import Checkpoint
from convweights.checkpoint.distributed_file import DistributedFile
from convweights.checkpoint.formats import target_format
from convweights.checkpoint.safetensors_file import check_storable
from convweights.fitting.errors import CheckpointError, sentence
from convweights.fitting.report import TensorPlan
from convweights.fitting.ties import staying


def target_notes(function: str, tensors: Sequence[TensorPlan], source: Checkpoint, target: Path) -> tuple[str, ...]:
    """The notes that hold for a target of this name."""
    around = source.around
    if target_format(function, target) == "pt":
        taken = next((tensor.name for tensor in tensors if tensor.name in around.inside), None)
        if taken is not None:
            must, got = f"have names that nothing else in {source.path} has", f"{taken}, which is no tensor there"
            raise CheckpointError(sentence(function, "tensors", must, got), source.path, taken)
        left = ", ".join(around.metadata)
        return (f"metadata of the source was left out, .pt files have none: {left}",) if left else ()
    if target_format(function, target) == DistributedFile.format:
        for tensor in tensors:
            if not tensor.target.plain:
                must, got = "be a dense tensor that holds data", "a sparse, quantised or meta tensor"
                message = sentence(function, f"{tensor.name!r} of the source", must, got, "write a .pt file instead")
                raise CheckpointError(message, target, tensor.name)
        beside = ", ".join([*around.entries, *around.inside, *around.metadata])
        notes = [f"left out, the target holds tensors only: {beside}"] if beside else []
        return (*notes, *_untied(source, tensors))
    check_storable(function, target, (tensor.target for tensor in tensors))
    notes = []
    if around.entries:
        notes.append(f"left out beside the state dict, safetensors holds tensors only: {', '.join(around.entries)}")
    if around.inside:
        notes.append(f"left out of the state dict, safetensors holds tensors only: {', '.join(around.inside)}")
    return (*notes, *_untied(source, tensors))


def _untied(source: Checkpoint, tensors: Sequence[TensorPlan]) -> list[str]:
    """Of tensors that another format would hold once."""
    copied = {tensor.source.name for tensor in tensors if tensor.source is not None and not tensor.rewritten}
    groups = [[name for name in tied if name in copied] for tied in source.shared]
    for group in filter(lambda group: group[0].rewritten, staying(source, tensors)):
        groups.append(list(dict.fromkeys(tensor.source.name for tensor in group if tensor.source is not None)))
    words = "these share memory in the source and are written separately"
    return [f"{words}: {', '.join(group)}" for group in groups if len(group) > 1]
