"""Decides everything about a conversion from the files' headers and the rules, before a byte is written."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from convweights.checkpoint.channels import Resized, Unreachable, resize
from convweights.checkpoint.contents import Checkpoint, TensorInfo
from convweights.checkpoint.errors import CheckpointError, sentence
from convweights.checkpoint.formats import open_checkpoint
from convweights.checkpoint.matching import Asked, collect, is_computed
from convweights.checkpoint.notes import plan_notes
from convweights.checkpoint.report import Fill, Plan, TensorPlan, dtype_name
from convweights.checkpoint.rules import Channels, Layout, Rule, load_rules, parse_dtype
from convweights.ops import check
from convweights.ops.initializers import INITIALIZERS, Initializer
from convweights.ops.streams import unwrapped

PathOrText = str | PathLike[str]
_FILLS: dict[str, Fill] = {"keep": "keep", "zeros": 0.0}
# Of a normalisation; its bias and running_mean start at 0, as every bias does here.
_STARTS_AT_1 = ("weight", "running_var")


def plan(
    source: PathOrText,
    *,
    rules: PathOrText | list[Any] | None = None,
    like: PathOrText | None = None,
    dtype: str | torch.dtype | None = None,
) -> Plan:
    """What :func:`~convweights.convert` would do with the same arguments. Nothing is written.

    Args:
        source: a ``.safetensors``, ``.pt`` or ``.pth`` file; what it is shows in its contents, not in its name.
        rules: a path to TOML, or a list of dicts that say the same: ``match`` and any of ``in_channels``,
            ``out_channels``, ``layout``, ``dtype``.
        like: a checkpoint from which ``how="keep"`` takes the values of positions that the source does not reach.
        dtype: float64, float32, float16 or bfloat16 for every tensor of these dtypes; a rule's own goes first.

    Raises:
        CheckpointError: a file that cannot be read, a rule that matches nothing, a size that cannot be reached.
        TypeError, ValueError: rules that are wrong whatever the file holds.
    """
    with contextlib.ExitStack() as stack:
        return draft("plan", *open_inputs("plan", stack, source, rules, like, dtype))


Inputs = tuple[Checkpoint, list[Rule], Checkpoint | None, torch.dtype | None]


def open_inputs(
    function: str,
    stack: contextlib.ExitStack,
    source: PathOrText,
    rules: PathOrText | list[Any] | None,
    like: PathOrText | None,
    dtype: str | torch.dtype | None,
) -> Inputs:
    """The arguments of :func:`plan` checked and opened; ``stack`` closes what was opened."""
    parsed, floating = load_rules(function, rules), parse_dtype(function, "dtype", dtype)
    checkpoint = stack.enter_context(open_checkpoint(function, "source", source))
    template = None if like is None else stack.enter_context(open_checkpoint(function, "like", like))
    return checkpoint, parsed, template, floating


def draft(
    function: str,
    source: Checkpoint,
    rules: list[Rule],
    template: Checkpoint | None,
    dtype: torch.dtype | None,
) -> Plan:
    """The plan for open files."""
    asked, notes = collect(function, source.path, rules, source.tensors)
    drafter = _Drafter(function, source.path, template, dtype)
    tensors = {name: drafter.tensor(info, asked[name]) for name, info in source.tensors.items()}
    if template is not None and not any(tensor.fill == "keep" for tensor in tensors.values()):
        rule, got = "be used by a rule that says keep", f"{template.path}, which none uses"
        raise CheckpointError(sentence(function, "like", rule, got), template.path)
    notes += plan_notes(source, tensors, dtype)
    like = None if template is None else template.path
    return Plan(source.path, source.format, tuple(tensors.values()), tuple(notes), like)


class _Drafter:
    """Decides one tensor after another. What an error needs to say where it is, it has."""

    def __init__(self, function: str, path: Path, template: Checkpoint | None, dtype: torch.dtype | None) -> None:
        self.function, self.path, self.template, self.dtype = function, path, template, dtype

    def tensor(self, info: TensorInfo, asked: Asked) -> TensorPlan:
        layout = self._layout(asked)
        shape = [info.shape[d] for d in layout.permutation] if layout else list(info.shape)
        resized = self._resized(info, asked, layout, shape)
        for dim, change in resized.items():
            shape[dim] = change.m
        dtype = asked.get("dtype") or (self.dtype if self.dtype and info.plain and is_computed(info) else info.dtype)
        target = TensorInfo(info.name, tuple(shape), dtype, info.plain)
        maps = {dim: change.map for dim, change in resized.items()}
        fill = self._fill(target, resized, asked, layout)
        new = 1.0
        for change in resized.values():
            new *= change.own
        planned = TensorPlan(
            info,
            target,
            layout.permutation if layout else None,
            maps,
            fill,
            _how(info, dtype, layout, resized, asked, fill),
            " x ".join(change.scale for change in resized.values() if change.scale != "1") or "1",
            1.0 - new if target.nbytes else 0.0,
        )
        self._check(planned)
        return planned

    def _layout(self, asked: Asked) -> Layout | None:
        layout: Layout | None = asked.get("layout")
        return None if layout is None or layout.source == layout.target else layout

    def _resized(self, info: TensorInfo, asked: Asked, layout: Layout | None, shape: list[int]) -> dict[int, Resized]:
        changes: dict[int, Resized] = {}
        for role in ("out_channels", "in_channels"):
            if role not in asked.settings:
                continue
            value, rule = asked.settings[role]
            dim = _dimension(role, layout)
            try:
                change = resize(role, value, shape[dim])
            except Unreachable as error:
                raise self._error(info, f"{role} of {info.name}", error.rule, error.got, error.remedy, rule) from None
            if change is not None:
                changes[dim] = change
        return changes

    def _fill(self, target: TensorInfo, resized: Mapping[int, Resized], asked: Asked, layout: Layout | None) -> Fill:
        """What new positions get; both dimensions must say the same."""
        fills: dict[Fill, str] = {}
        for role in ("out_channels", "in_channels"):
            change = resized.get(_dimension(role, layout)) if role in asked.settings else None
            if change is None:
                continue
            channels, rule = asked.settings[role]
            if change.how in INITIALIZERS:
                fills.setdefault(self._initial(target, channels, layout, rule), str(channels).partition(":")[2])
            elif change.how in _FILLS:
                fills.setdefault(_FILLS[change.how], change.how)
        if len(fills) > 1:
            must = "fill new channels in one way for both dimensions"
            raise self._error(target, f"how of {target.name}", must, " and ".join(sorted(fills.values())))
        fill = next(iter(fills), 0.0)
        if fill == "keep":
            self._check_template(target)
        return fill

    def _initial(self, target: TensorInfo, channels: Channels, layout: Layout | None, rule: Rule) -> Fill:
        """A weight's new channels are drawn; of biases and statistics they are what a new layer has."""
        if not is_computed(target):
            must, got = "be float64, float32, float16 or bfloat16 to be initialised", dtype_name(target.dtype)
            raise self._error(target, target.name, must, got, source=rule)
        if len(target.shape) == 1:
            return 1.0 if target.name.rpartition(".")[2] in _STARTS_AT_1 else 0.0
        if layout is not None and not layout.target.startswith("OI"):
            must = "lead to OI... where channels are initialised, by whose order fans are counted"
            raise self._error(target, f"layout of {target.name}", must, layout, source=rule)
        return channels.initializer(unwrapped(target.name))

    def _check_template(self, target: TensorInfo) -> None:
        argument = f"how of {target.name}"
        if self.template is None:
            remedy = "give like=, a checkpoint that has them, or say zeros"
            raise self._error(target, argument, "have values to keep", "keep without a template", remedy)
        found = self.template.tensors.get(target.name)
        if found is None or found.shape != target.shape:
            got = "none" if found is None else f"shape {found.shape}"
            rule = f"find {target.name} with shape {target.shape} in {self.template.path} to keep its values"
            raise self._error(target, argument, rule, got, "say zeros instead")
        if not found.plain or (found.dtype != target.dtype and not (is_computed(found) and is_computed(target))):
            rule = f"find values of {dtype_name(target.dtype)} to keep in {self.template.path}"
            raise self._error(target, argument, rule, dtype_name(found.dtype))

    def _check(self, planned: TensorPlan) -> None:
        """What the transfer would refuse, refused now."""
        info, target = planned.source, planned.target
        if not planned.changed:
            return
        if not info.plain or info.dtype == getattr(torch, "float4_e2m1fn_x2", None):
            rule = "be a dense tensor of whole bytes to be changed"
            raise self._error(info, info.name, rule, "a sparse, quantised, packed or meta tensor")
        if len(target.shape) > check.MAX_DIMENSIONS:
            rule = f"have at most {check.MAX_DIMENSIONS} dimensions to be changed"
            raise self._error(info, info.name, rule, len(info.shape))
        sizes = [info.shape[d] for d in planned.permutation] if planned.permutation else info.shape
        copies = all(map.copies(sizes[dim], target.shape[dim]) for dim, map in planned.maps.items())
        if not copies and not is_computed(info):
            rule = "be float64, float32, float16 or bfloat16 to be scaled or averaged"
            remedy = "copies with rescale none are possible"
            raise self._error(info, info.name, rule, dtype_name(info.dtype), remedy)

    def _error(
        self, info: TensorInfo, argument: str, rule: str, got: Any, remedy: str = "", source: Rule | None = None
    ) -> CheckpointError:
        where = f" in {self.path}" + (f" by {source.origin}" if source is not None and source.origin else "")
        message = sentence(self.function, argument, rule, f"{got}{where}", remedy)
        return CheckpointError(message, self.path, info.name)


def _dimension(role: str, layout: Layout | None) -> int:
    """Dimension 1 is in_channels, 0 out_channels; a layout's letters say otherwise where it has them."""
    letter, usual = ("I", 1) if role == "in_channels" else ("O", 0)
    return layout.target.index(letter) if layout and letter in layout.target else usual


def _how(
    info: TensorInfo,
    dtype: torch.dtype,
    layout: Layout | None,
    resized: Mapping[int, Resized],
    asked: Asked,
    fill: Fill,
) -> str:
    words = [f"layout {layout}"] if layout else []
    for role in ("out_channels", "in_channels"):
        change = resized.get(_dimension(role, layout)) if role in asked.settings else None
        if change is not None:
            how = change.how
            if how in INITIALIZERS:
                how = f"{how} seed {fill.seed}" if isinstance(fill, Initializer) else "ones" if fill else "zeros"
            words.append(f"{role} {change.n} -> {change.m} {how}")
    if dtype != info.dtype:
        words.append(f"cast to {dtype_name(dtype)}")
    return ", ".join(words)
