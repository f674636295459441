"""What a plan has to say beside its table: all that was found, left alone or left over."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from convweights.fitting.contents import Contents
from convweights.fitting.matching import is_computed
from convweights.fitting.report import TensorPlan
from convweights.fitting.ties import Ties, split_ties


def plan_notes(source: Contents, tensors: Sequence[TensorPlan], dtype: torch.dtype | None, staying: Ties) -> list[str]:
    """The notes that hold whatever the target is."""
    return [*_unconverted(source, dtype), *_biases(tensors), *_grouped(tensors), *split_ties(source, tensors, staying)]


def _unconverted(source: Contents, dtype: torch.dtype | None) -> list[str]:
    """A dtype for all leaves float8 and its kin alone; that is said."""
    odd = [i.name for i in source.tensors.values() if i.dtype.is_floating_point and not (i.plain and is_computed(i))]
    return [f"the dtype of these stays, it does not convert: {', '.join(odd)}"] if dtype is not None and odd else []


def _biases(tensors: Sequence[TensorPlan]) -> list[str]:
    """A rule on one weight leaves its bias alone, and the layer does not load then; that is said."""
    notes = []
    by_name = {tensor.name: tensor for tensor in tensors}
    for name, tensor in by_name.items():
        layer, _, last = name.rpartition(".")
        bias = by_name.get(f"{layer}.bias" if layer else "bias")
        if last != "weight" or bias is None or tensor.out_channels is None:
            continue
        before, after = tensor.out_channels
        if bias.target.shape == (before,) != (after,):
            remedy = f"a rule on the layer {layer!r} changes both" if layer else "a rule on bias changes it too"
            notes.append(f"{bias.name} keeps its {before} values beside {name}, {after} now; {remedy}")
    return notes


def _grouped(tensors: Sequence[TensorPlan]) -> list[str]:
    """Filters that come and go inside groups are not the first ones of the layer, as a norm behind it would have it."""
    inside = [
        tensor.name
        for tensor in tensors
        if tensor.name.endswith("weight") and re.search(r"out_channels \d+ -> \d+ in each of ", tensor.how)
    ]
    rule = "a layer behind them whose own channels are to follow needs a rule with the same groups"
    return [f"output channels are fitted inside groups; {rule}: {', '.join(inside)}"] if inside else []
