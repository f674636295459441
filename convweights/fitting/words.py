"""A plan in words: what a report says of one tensor, and which field of a rule a dimension belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from convweights.fitting.axes import DEPTH, GROUPS, IN, KERNEL, OUT
from convweights.fitting.contents import TensorInfo
from convweights.fitting.report import Base, dtype_name, renamed_from
from convweights.fitting.settings import INIT, Layout
from convweights.fitting.sizes import Change
from convweights.fitting.views import Views
from convweights.ops.initializers import Initializer


def describe_changes(
    info: TensorInfo,
    target: TensorInfo,
    layout: Layout | None,
    changes: Sequence[Change],
    base: Base,
    views: Views,
) -> str:
    """What becomes of a tensor, for the report; empty where nothing does."""
    words = [renamed_from(info, target), f"layout {layout}" if layout else ""]
    kernels = [change for change in changes if setting_of(change.role, views) == "kernel_size"]
    for change in changes:
        if change in kernels[1:]:
            continue
        drawn = base if change.how in INIT else None
        how = change.how if drawn is None else drawn_as(change.how, drawn)
        within = f" in each of {views.groups} groups" if views.groups > 1 and change.role in (OUT, IN) else ""
        role, before, after = change.role, str(change.n), str(change.m)
        if change in kernels:
            role, extents = "kernel_size", [r for r in views.roles if setting_of(r, views) == "kernel_size"]
            sides = (views.sizes_by_role(), views.sizes_by_role() | {c.role: c.m for c in kernels})
            before, after = ("x".join(str(side[extent]) for extent in extents) for side in sides)
        words.append(f"{role} {before} -> {after}{within} {how}")
    if not changes and len(info.shape) != len(target.shape):
        words.append(f"shape {info.shape} -> {target.shape}")
    if target.dtype != info.dtype:
        words.append(cast_to(target.dtype))
    return ", ".join(filter(None, words))


def cast_to(dtype: torch.dtype) -> str:
    return f"cast to {dtype_name(dtype)}"


def drawn_as(how: str, base: Base) -> str:
    """An initialiser in words: what came of it for this tensor."""
    if isinstance(base, Initializer):
        return f"{how} seed {base.seed}"
    return "ones" if base else "zeros"


def setting_of(role: str, views: Views) -> str:
    """The field of a rule that is about a dimension."""
    if role == DEPTH and views.inflates:
        return "inflate"
    if role == DEPTH and views.deflates:
        return "deflate"
    return settings_of(role)


def settings_of(role: str) -> str:
    if role in KERNEL:
        return "kernel_size"
    return OUT if role == GROUPS else role
