"""What a plan or report has to say beside its table: all that was found, left alone or left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from convweights.checkpoint.contents import Checkpoint
from convweights.checkpoint.formats import target_format
from convweights.checkpoint.matching import is_computed
from convweights.checkpoint.report import TensorPlan
from convweights.checkpoint.safetensors_file import check_storable


def plan_notes(source: Checkpoint, tensors: Mapping[str, TensorPlan], dtype: torch.dtype | None) -> list[str]:
    """The notes that hold whatever the target's format."""
    return [*_nesting(source), *_unconverted(source, dtype), *_biases(tensors), *_split_ties(source, tensors)]


def target_notes(function: str, tensors: Sequence[TensorPlan], source: Checkpoint, target: Path) -> tuple[str, ...]:
    """What the target's format leaves out; what it cannot hold at all is an error."""
    around = source.around
    if target_format(function, target) == "pt":
        left = ", ".join(around.metadata)
        return (f"metadata of the source was left out, .pt files have none: {left}",) if left else ()
    check_storable(function, target, (tensor.target for tensor in tensors))
    notes = []
    if around.entries:
        notes.append(f"left out beside the state dict, safetensors holds tensors only: {', '.join(around.entries)}")
    if around.inside:
        notes.append(f"left out of the state dict, safetensors holds tensors only: {', '.join(around.inside)}")
    changed = {tensor.name for tensor in tensors if tensor.changed}
    for tied in around.ties:
        untouched = [name for name in tied if name not in changed]
        if len(untouched) > 1:
            notes.append(f"these share memory in the source and are written separately: {', '.join(untouched)}")
    return tuple(notes)


def _nesting(source: Checkpoint) -> list[str]:
    nested = source.around.nested
    return [] if nested is None else [f"the state dict was found under {nested!r}"]


def _unconverted(source: Checkpoint, dtype: torch.dtype | None) -> list[str]:
    """A dtype for all leaves float8 and its kin alone; that is said."""
    odd = [i.name for i in source.tensors.values() if i.dtype.is_floating_point and not (i.plain and is_computed(i))]
    return [f"the dtype of these stays, it does not convert: {', '.join(odd)}"] if dtype is not None and odd else []


def _biases(tensors: Mapping[str, TensorPlan]) -> list[str]:
    """A rule on one weight leaves its bias alone, and the layer does not load then; that is said."""
    notes = []
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        bias = tensors.get(f"{layer}.bias" if layer else "bias")
        if last != "weight" or bias is None or not tensor.maps or 0 not in tensor.maps:
            continue
        shape = tensor.source.shape
        before = shape[tensor.permutation[0]] if tensor.permutation else shape[0]
        if bias.target.shape == (before,) != (tensor.target.shape[0],):
            remedy = f"a rule on the layer {layer!r} changes both" if layer else "a rule on bias changes it too"
            notes.append(f"{bias.name} keeps its {before} values beside {name}, {tensor.target.shape[0]} now; {remedy}")
    return notes


def _split_ties(source: Checkpoint, tensors: Mapping[str, TensorPlan]) -> list[str]:
    """A tensor that changes no longer shares memory with those that were tied to it; that is said."""
    return [
        f"{name} shares memory in the source with {', '.join(other for other in names if other != name)}, "
        f"and is written on its own"
        for names in source.around.ties
        for name in names
        if tensors[name].changed
    ]
