"""Tensors that are one in the source: which of them stay one, and what is said of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from convweights.fitting.contents import Contents
from convweights.fitting.report import TensorPlan


def staying(source: Contents, tensors: Sequence[TensorPlan]) -> list[list[TensorPlan]]:
    """Groups of tensors that are one in the source, and of which the same becomes: a target can hold them once."""
    first = {name: names[0] for names in source.ties for name in names}
    made_of: dict[str, list[TensorPlan]] = {}
    for tensor in tensors:
        # What is kept of a template's is each name's own.
        if tensor.source is not None and tensor.reads and tensor.base != "keep":
            made_of.setdefault(first.get(tensor.source.name, tensor.source.name), []).append(tensor)
    found = []
    for candidates in made_of.values():
        while len(candidates) > 1:
            change = _change(candidates[0])
            found.append([tensor for tensor in candidates if _change(tensor) == change])
            candidates = [tensor for tensor in candidates if _change(tensor) != change]
    return [group for group in found if len(group) > 1]


def _change(tensor: TensorPlan) -> TensorPlan:
    """The plan without names and what it says in words."""
    target = replace(tensor.target, name="", axes=None)
    return replace(tensor, source=None, target=target, how="", scale="", out_channels=None)


def split_ties(source: Contents, tensors: Sequence[TensorPlan]) -> list[str]:
    """A tensor that changes otherwise than those that were tied to it no longer shares memory; that is said."""
    if not source.shared:
        return []
    together: dict[str, set[str]] = {}
    for group in staying(source, tensors):
        alike = {tensor.source.name for tensor in group if tensor.source is not None}
        together.update(dict.fromkeys(alike, alike))
    rewritten = {tensor.source.name for tensor in tensors if tensor.source is not None and tensor.rewritten}
    notes = []
    for names in source.shared:
        for name in filter(rewritten.__contains__, names):
            others = [other for other in names if other != name and other not in together.get(name, ())]
            if others:
                notes.append(f"{name} shares memory in the source with {', '.join(others)}, and is written on its own")
    return notes
