"""Carries out a plan: one tensor after another through the transfer verb into a new file."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import torch

from convweights.checkpoint.contents import Checkpoint
from convweights.checkpoint.engine import write_files
from convweights.checkpoint.formats import path_of, target_format
from convweights.checkpoint.plan import Inputs, Source, draft_of, open_inputs
from convweights.checkpoint.replace import check_target, replacing
from convweights.checkpoint.safetensors_file import laid_out
from convweights.checkpoint.target_notes import target_notes
from convweights.checkpoint.torch_file import write_torch
from convweights.fitting.carry_out import carry_out, overflows
from convweights.fitting.contents import Contents
from convweights.fitting.errors import CheckpointError, sentence
from convweights.fitting.report import Plan, Report, TensorPlan
from convweights.fitting.rules import PathOrText, Rules


def convert(
    source: PathOrText,
    target: PathOrText,
    *,
    rules: Rules = None,
    like: Source | None = None,
    dtype: str | torch.dtype | None = None,
    strict: bool = True,
    overwrite: bool = False,
    fsync: bool = True,
) -> Report:
    """Write the checkpoint ``source``, changed by rules, to ``target``: whole, or not at all.

    The target's suffix decides its format: ``.safetensors``, ``.pt`` or ``.pth``. It is written under a temporary
    name beside it and renamed at the end, so it may be the source itself (with ``overwrite``). Tensors that no rule
    changes keep every bit. What stands beside the tensors stays where the target can hold it: a ``.pt`` file's other
    entries in a ``.pt`` file, the ``__metadata__`` of safetensors in safetensors; the report names the rest.

    Args:
        source, rules, like, dtype, strict: as :func:`~convweights.plan`.
        overwrite: replace a target that exists.
        fsync: wait until the file is on the disk before it gets its name.

    Raises:
        CheckpointError, TypeError, ValueError: as :func:`~convweights.plan`, or a target that cannot be written;
            no file has been made or changed.

    >>> import tempfile, torch
    >>> from convweights.checkpoint import convert
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"conv1.weight": torch.ones(8, 3, 3, 3)}, f"{folder}/rgb.pt")
    ...     rules = [{"match": "conv1", "in_channels": 1}]
    ...     report = convert(f"{folder}/rgb.pt", f"{folder}/gray.safetensors", rules=rules)
    >>> report.changed[0].how, report.changed[0].scale, report.changed[0].target.shape
    ('in_channels 3 -> 1 blocks', 'sum', (8, 1, 3, 3))
    """
    for name, value in (("strict", strict), ("overwrite", overwrite), ("fsync", fsync)):
        if not isinstance(value, bool):
            raise TypeError(sentence("convert", name, "be True or False", repr(value)))
    with contextlib.ExitStack() as stack:
        place = path_of("convert", "target", target)
        form = target_format("convert", place)
        check_target("convert", place, overwrite=overwrite)
        planned, source_file, inputs = _planned("convert", stack, source, place, rules, like, dtype, strict)
        overflown = _write(place, form, planned, source_file, inputs.template, fsync=fsync)
        notes = planned.notes
        if overflown:
            notes += (f"finite values became infinite in the cast of {', '.join(overflown)}",)
        return Report(
            planned.source,
            planned.source_format,
            planned.tensors,
            notes,
            planned.dropped,
            place,
            form,
            place.stat().st_size,
        )


def plan_conversion(
    source: PathOrText,
    target: PathOrText,
    *,
    rules: Rules = None,
    like: Source | None = None,
    dtype: str | torch.dtype | None = None,
    strict: bool = True,
    overwrite: bool = False,
) -> Plan:
    """:func:`plan` with what only a target decides: whether it can be written, and what its format leaves out."""
    with contextlib.ExitStack() as stack:
        place = path_of("plan", "target", target)
        target_format("plan", place)
        check_target("plan", place, overwrite=overwrite)
        return _planned("plan", stack, source, place, rules, like, dtype, strict)[0]


def _planned(
    function: str,
    stack: contextlib.ExitStack,
    source: PathOrText,
    target: Path,
    rules: Rules,
    like: Source | None,
    dtype: str | torch.dtype | None,
    strict: bool,
) -> tuple[Plan, Checkpoint, Inputs]:
    """The plan with the notes that the target's format adds."""
    path_of(function, "source", source)
    inputs = open_inputs(function, stack, source, rules, like, dtype)
    assert isinstance(inputs.source, Checkpoint)
    planned = draft_of(function, inputs, strict=strict)
    for tensor in planned.tensors:
        if tensor.base == "keep" and inputs.template is not None and inputs.template.read(tensor.name).is_meta:
            must, got = "have values to keep", f"{tensor.name} on the meta device in {inputs.template.label}"
            raise CheckpointError(sentence(function, "like", must, got), inputs.source.path, tensor.name)
    notes = planned.notes + target_notes(function, planned.tensors, inputs.source, target)
    return dataclasses.replace(planned, notes=notes), inputs.source, inputs


def _write(
    target: Path, form: str, planned: Plan, source: Checkpoint, template: Contents | None, *, fsync: bool
) -> list[str]:
    """Write the file; the names of the tensors in which finite values became infinite."""
    with replacing("convert", target, fsync=fsync) as file:
        if form == "safetensors":
            layout = laid_out((tensor.target for tensor in planned.tensors), source.around.metadata)
            files = [(file.fileno(), layout)]
            return write_files(files, planned.tensors, source, lambda tensor: _make(tensor, source, template))
        by_name = {tensor.name: tensor for tensor in planned.tensors}
        overflown: list[str] = []

        def make(name: str) -> torch.Tensor:
            tensor, overflows = _make(by_name[name], source, template)
            if overflows:
                overflown.append(name)
            return tensor

        write_torch(file, planned, source, make)
        return sorted(overflown)


def _make(planned: TensorPlan, source: Checkpoint, template: Contents | None) -> tuple[torch.Tensor, bool]:
    """The target's tensor, and whether values overflowed. One that does not change is the source's own."""
    values = None if planned.source is None else source.read(planned.source.name)
    if not planned.rewritten:
        assert values is not None
        return values, False
    own = template.read(planned.name).to("cpu") if template is not None and planned.base == "keep" else None
    if own is not None and not planned.reads:
        # A slice would take the whole that it is of along into a file of torch.save.
        return own.clone() if own.untyped_storage().nbytes() > own.nbytes else own, False
    try:
        weight = torch.empty(planned.target.shape, dtype=planned.target.dtype)
    except (RuntimeError, MemoryError, OverflowError, TypeError):
        rule, got = f"fit into memory as {planned.name}", f"shape {planned.target.shape} from {source.path}"
        raise CheckpointError(sentence("convert", "rules", rule, got), source.path, planned.name) from None
    carry_out("convert", planned, weight, values, own)
    if planned.source is None or values is None or not planned.reads:
        return weight, False
    return weight, overflows(planned, weight, values)
