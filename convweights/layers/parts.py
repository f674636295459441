"""A layer's own weight and bias, and which of their entries are its filters and input channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from convweights.fitting.axes import IN, OUT
from convweights.fitting.errors import sentence
from convweights.fitting.modules import axes_in
from convweights.ops import check


@dataclass(frozen=True, slots=True)
class Parts:
    """The parameters of a convolution or a Linear; of a ``transposed`` one input channels come first."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    groups: int
    transposed: bool

    def channels(self, role: str) -> int:
        """How many out_channels or in_channels the layer has."""
        return self.weight.shape[0] if self.is_first(role) else self.weight.shape[1] * self.groups

    def is_first(self, role: str) -> bool:
        """Whether the first dimension holds all channels of a role; else the second holds those of one group."""
        return (role == IN) == self.transposed

    def by_group(self, tensor: torch.Tensor) -> torch.Tensor:
        """The weight, or what has its shape, as ``(groups, first of a group, second, ...)``; a view."""
        grouped: torch.Tensor = tensor.detach().unflatten(0, (self.groups, tensor.shape[0] // self.groups))
        return grouped

    def by_filter(self, tensor: torch.Tensor) -> torch.Tensor:
        """The weight, or what has its shape, with the filters first."""
        if self.is_first(OUT):
            return tensor.detach()
        return self.by_group(tensor).transpose(1, 2).flatten(0, 1)

    def masked(self, role: str, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight, and a mask of its channels so that it broadcasts to it; both are views."""
        kernel = (1,) * (self.weight.ndim - 2)
        if self.is_first(role):
            return self.weight, mask.reshape(-1, 1, *kernel)
        if self.groups == 1:
            return self.weight, mask.reshape(1, -1, *kernel)
        return self.by_group(self.weight), mask.reshape(self.groups, 1, -1, *kernel)


def has_filters(layer: nn.Module) -> bool:
    """Whether it is a convolution or a Linear, wherever its weight comes from."""
    weight = getattr(layer, "weight", None)
    axes = axes_in(layer, "weight", weight) if isinstance(weight, torch.Tensor) else None
    return axes is not None and IN in axes.roles


def parts_of(function: str, argument: str, layer: Any, *, computed: bool = False) -> Parts:
    """The layer's parts, checked; ``computed``: to be read only, so that they may be the results of others."""
    if not isinstance(layer, nn.Module) or not has_filters(layer):
        rule = "be a convolution or a Linear"
        raise TypeError(sentence(function, argument, rule, type(layer).__name__))
    weight: Any = layer.weight
    bias = getattr(layer, "bias", None)
    for part, tensor in {"weight": weight, "bias": bias}.items():
        if tensor is None:
            continue
        if not computed and layer._parameters.get(part) is not tensor:
            rule, got = f"hold its {part} as a parameter", f"one that {type(layer).__name__} computes"
            remedy = "call torch.nn.utils.prune.remove, or parametrize.remove_parametrizations, first"
            raise ValueError(sentence(function, argument, rule, got, remedy))
        (check.dense if computed else check.writable)(function, f"{part} of {argument}", tensor)
    axes = axes_in(layer, "weight", weight)
    rank, groups = len(axes.roles) if axes else 0, axes.groups if axes else 1
    if weight.ndim != rank or weight.shape[0] % groups:
        rule = f"have a weight of {rank} dimensions in {groups} groups"
        raise ValueError(sentence(function, argument, rule, f"shape {tuple(weight.shape)}"))
    parts = Parts(weight, bias, groups, axes is not None and axes.roles[0] == IN)
    if bias is not None and tuple(bias.shape) != (parts.channels(OUT),):
        rule = f"have a bias with one value for each of {parts.channels(OUT)} filters"
        raise ValueError(sentence(function, argument, rule, f"shape {tuple(bias.shape)}"))
    return parts
