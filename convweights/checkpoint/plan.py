"""The plan of a conversion: files opened, rules read, everything decided before a byte is written."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch

from convweights.checkpoint.contents import Checkpoint
from convweights.checkpoint.formats import open_checkpoint
from convweights.fitting.contents import Contents
from convweights.fitting.draft import draft
from convweights.fitting.errors import sentence, shown
from convweights.fitting.modules import State, contents_of
from convweights.fitting.report import Plan
from convweights.fitting.rules import PathOrText, Rule, Rules, load_rules
from convweights.fitting.settings import parse_dtype

Source = PathOrText | State


def plan(
    source: Source,
    *,
    rules: Rules = None,
    like: Source | None = None,
    dtype: str | torch.dtype | None = None,
    strict: bool = True,
) -> Plan:
    """What :func:`~convweights.convert`, or :func:`~convweights.transfer_model_`, would do. Nothing is written.

    Args:
        source: a ``.safetensors``, ``.pt``, ``.pth`` or ``.npz`` file (what it is shows in its contents, not in its
            name), the index of a sharded one, a directory that holds one safetensors checkpoint, or a module or a dict
            of tensors, on the meta device too.
        rules: a path to TOML, or a list of dicts that say the same: ``match`` and any of ``in_channels``,
            ``out_channels``, ``kernel_size``, ``inflate``, ``deflate``, ``groups``, ``layout``, ``dtype``, ``rename``,
            ``drop``, ``only``, ``new``.
        like: a checkpoint, a module or a dict of tensors whose names, shapes and dtypes decide what the target is.
            New output channels keep its values unless a rule says otherwise.
        dtype: float64, float32, float16 or bfloat16 for every tensor of these dtypes; a rule's own goes first.
        strict: with ``like``, tensors found on one side only are an error; else the source's are dropped and the
            template's keep their values, and the plan says so.

    Raises:
        CheckpointError: a file that cannot be read, a rule that matches nothing, a size that cannot be reached.
        TypeError, ValueError: rules that are wrong whatever the file holds; all refusals about modules and dicts.

    >>> import torch, convweights as cw
    >>> with torch.device("meta"):
    ...     rgb, gray = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(1, 8, 3)
    >>> cw.plan(rgb, like=gray).changed[0].how
    'in_channels 3 -> 1 blocks'
    """
    if not isinstance(strict, bool):
        raise TypeError(sentence("plan", "strict", "be True or False", repr(strict)))
    with contextlib.ExitStack() as stack:
        inputs = open_inputs("plan", stack, source, rules, like, dtype)
        return draft_of("plan", inputs, strict=strict)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The arguments of :func:`plan`, checked and opened."""

    source: Contents
    rules: list[Rule]
    template: Contents | None
    dtype: torch.dtype | None


def open_inputs(
    function: str,
    stack: contextlib.ExitStack,
    source: Source,
    rules: Rules,
    like: Source | None,
    dtype: str | torch.dtype | None,
) -> Inputs:
    """What is given, opened; ``stack`` closes it."""
    parsed, floating = load_rules(function, rules), parse_dtype(function, "dtype", dtype)
    opened = open_source(function, stack, "source", source)
    return Inputs(opened, parsed, None if like is None else open_source(function, stack, "like", like), floating)


def open_source(function: str, stack: contextlib.ExitStack, argument: str, value: Source) -> Contents:
    """One of the arguments, opened; ``stack`` closes it."""
    if isinstance(value, (torch.nn.Module, Mapping)):
        return contents_of(function, argument, value)
    if not isinstance(value, (str, PathLike)):
        raise TypeError(sentence(function, argument, "be a path, a module or a dict of tensors", shown(value)))
    return stack.enter_context(open_checkpoint(function, argument, value))


def draft_of(function: str, inputs: Inputs, *, strict: bool) -> Plan:
    """The plan for opened inputs."""
    source = inputs.source
    planned = draft(function, source, inputs.rules, inputs.template, inputs.dtype, strict=strict)
    paths: dict[str, Any] = {
        name: contents.path
        for name, contents in (("source", source), ("like", inputs.template))
        if isinstance(contents, Checkpoint)
    }
    nested = source.around.nested if isinstance(source, Checkpoint) else None
    found = () if nested is None else (f"the state dict was found under {nested!r}",)
    return dataclasses.replace(planned, **paths, source_format=source.format, notes=found + planned.notes)
