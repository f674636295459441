"""Writes a plan into a module's own tensors, once all that could be refused has been."""

from __future__ import annotations

import torch

from convweights.fitting.carry_out import carry_out
from convweights.fitting.errors import sentence
from convweights.fitting.modules import ModuleContents
from convweights.fitting.report import Plan, Report, TensorPlan
from convweights.ops import check


def write(function: str, planned: Plan, source: ModuleContents, target: ModuleContents) -> Report:
    """Carry out a plan whose template is ``target``. Onto the meta device nothing is written, and that is said."""
    notes = planned.notes
    if any(tensor.is_meta for tensor in target.held.values()):
        notes += ("the target is on the meta device, which holds no values: planned only, nothing was written",)
    else:
        _check(function, planned, source, target)
        overflown = [tensor.name for tensor in planned.tensors if _write(function, tensor, source, target)]
        if overflown:
            notes += (f"finite values became infinite in the cast of {', '.join(overflown)}",)
    return Report(
        planned.source, planned.source_format, planned.tensors, notes, planned.dropped, target.label, target.format
    )


def _write(function: str, planned: TensorPlan, source: ModuleContents, target: ModuleContents) -> bool:
    """Write one tensor; whether finite values became infinite."""
    weight = target.held[planned.name]
    if planned.source is None or not planned.reads:
        carry_out(function, planned, weight, None, None)
        return False
    values = source.read(planned.source.name).to(weight.device)
    carry_out(function, planned, weight, values, None)
    narrowed = planned.source.dtype != planned.target.dtype
    return narrowed and bool(weight.isinf().any()) and not bool(values.isinf().any())


def _check(function: str, planned: Plan, source: ModuleContents, target: ModuleContents) -> None:
    """What a write would refuse, refused before the first one."""
    written: dict[int, tuple[str, str]] = {}
    for tensor in planned.tensors:
        if tensor.base == "keep" and not tensor.reads:
            continue
        weight = target.held[tensor.name]
        check.writable(function, f"{tensor.name} of target", weight)
        if tensor.source is None or not tensor.reads:
            continue
        values = source.held[tensor.source.name]
        check.dense(function, f"{tensor.source.name} of source", values)
        if check.overlap(weight, values):
            argument = f"{tensor.source.name} of {source.label}"
            must, got = f"not share memory with {tensor.name} of {target.label}", "views of one storage"
            raise ValueError(sentence(function, argument, must, got, "pass a copy.deepcopy of the source"))
        first, other = written.setdefault(id(weight), (tensor.name, tensor.source.name))
        if other != tensor.source.name and not torch.equal(values, source.held[other]):
            must = f"be equal to {other}, because {first} and {tensor.name} of {target.label} are one tensor"
            raise ValueError(sentence(function, f"{tensor.source.name} of {source.label}", must, "another", "drop one"))
