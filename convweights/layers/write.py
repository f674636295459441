"""Writes a plan into a module's own tensors, once all that could be refused has been."""

from __future__ import annotations

import torch

from convweights.fitting.carry_out import carry_out, overflows
from convweights.fitting.errors import sentence
from convweights.fitting.modules import ModuleContents, place_of
from convweights.fitting.report import Plan, Report, TensorPlan
from convweights.fitting.ties import change_of
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
    return overflows(planned, weight, values)


def _check(function: str, planned: Plan, source: ModuleContents, target: ModuleContents) -> None:
    """What a write would refuse, refused before the first one."""
    written = {tensor.name: target.held[tensor.name] for tensor in planned.tensors if not _stays(tensor)}
    for name, weight in written.items():
        argument = f"{name} of {target.label}"
        check.writable(function, argument, weight)
        if weight.ndim > check.MAX_DIMENSIONS:
            must = f"have at most {check.MAX_DIMENSIONS} dimensions to be written"
            raise ValueError(sentence(function, argument, must, weight.ndim))
    read = [tensor.source.name for tensor in planned.tensors if tensor.source is not None and tensor.reads]
    for name in read:
        check.dense(function, f"{name} of {source.label}", source.held[name])
    _check_memory(function, written, {name: source.held[name] for name in read}, source, target)
    _check_ties(function, planned, source, target)


def _stays(planned: TensorPlan) -> bool:
    return planned.base == "keep" and not planned.reads


def _check_memory(
    function: str,
    written: dict[str, torch.Tensor],
    read: dict[str, torch.Tensor],
    source: ModuleContents,
    target: ModuleContents,
) -> None:
    """That nothing is written which is read, or written under another name in another shape."""
    storages: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, weight in written.items():
        storages.setdefault(weight.untyped_storage().data_ptr(), []).append((name, weight))
    for name, values in read.items():
        for other, weight in storages.get(values.untyped_storage().data_ptr(), ()):
            if check.overlap(weight, values):
                argument, must = f"{name} of {source.label}", f"not share memory with {other} of {target.label}"
                remedy = "pass a copy.deepcopy of the source"
                raise ValueError(sentence(function, argument, must, "views of one storage", remedy))
    for together in storages.values():
        for position, (name, weight) in enumerate(together):
            for other, another in together[:position]:
                if place_of(weight) != place_of(another) and check.overlap(weight, another):
                    argument, must = f"{name} of {target.label}", f"not share memory with {other}"
                    raise ValueError(sentence(function, argument, must, "views of one storage"))


def _check_ties(function: str, planned: Plan, source: ModuleContents, target: ModuleContents) -> None:
    """That names of one tensor are asked for the same."""
    by_name = {tensor.name: tensor for tensor in planned.tensors}
    for names in target.ties:
        first = by_name[names[0]]
        for name in names[1:]:
            other = by_name[name]
            alike = change_of(first) == change_of(other)
            if alike and first.source is not None and other.source is not None and first.reads:
                a, b = source.held[first.source.name], source.held[other.source.name]
                alike = a is b or torch.equal(a, b)
            if not alike:
                must = f"be fitted as {first.name} is, with equal values, because the two are one tensor"
                got = f"{other.how or 'a copy'} beside {first.how or 'a copy'}"
                raise ValueError(sentence(function, f"{name} of {target.label}", must, got, "ask for both alike"))
