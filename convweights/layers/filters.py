"""Edits of a layer's filters, input channels and kernels, by the layer's own numbers whatever its groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from convweights.fitting.axes import IN, OUT
from convweights.layers.assign import assign_as
from convweights.layers.parts import Parts, parts_of
from convweights.ops import check
from convweights.ops.fill import fill_as
from convweights.ops.fill_arguments import Entry, positions_of


def zero_filters_(layer: nn.Module, filters: Any) -> nn.Module:
    """Set output filters to zero, with their biases, so that their outputs are 0.

    Equivalent to ``layer.weight[filters] = 0; layer.bias[filters] = 0`` under no_grad for a convolution.

    Args:
        layer: Conv1d/2d/3d, ConvTranspose1d/2d/3d or Linear, grouped ones too; returned.
        filters: output channels of the layer: a bool tensor with one entry for each, or integers, negative ones
            counting from the end.

    Raises:
        TypeError, ValueError: a layer that has none, filters that do not fit; nothing has been written.

    >>> import torch, convweights as cw
    >>> up = cw.zero_filters_(torch.nn.ConvTranspose2d(4, 6, 3, groups=2), [0, -1])
    >>> up(torch.ones(1, 4, 5, 5)).abs().amax((0, 2, 3)) > 0
    tensor([False,  True,  True,  True,  True, False])
    """
    function = "zero_filters_"
    parts = parts_of(function, "layer", layer)
    which = _which(function, "filters", filters, parts, OUT)
    entries = _entries(parts, OUT, *which)
    if parts.bias is not None:
        entries.append(Entry(parts.bias, which[0], 0, which[1], None, (0, 0)))
    fill_as(entries)
    return layer


def zero_input_channels_(layer: nn.Module, channels: Any) -> nn.Module:
    """Set what a layer reads of some input channels to zero, so that they do not count.

    Equivalent to ``layer.weight[:, channels] = 0`` under no_grad for a convolution of one group.

    Args:
        layer: Conv1d/2d/3d, ConvTranspose1d/2d/3d or Linear, grouped and depthwise ones too; returned.
        channels: input channels of the layer: a bool tensor with one entry for each, or integers.

    Raises:
        TypeError, ValueError: a layer that has none, channels that do not fit; nothing has been written.

    >>> import torch, convweights as cw
    >>> conv = cw.zero_input_channels_(torch.nn.Conv2d(4, 6, 3, groups=2), [1, 2])
    >>> conv.weight.abs().amax((2, 3)) > 0
    tensor([[ True, False],
            [ True, False],
            [ True, False],
            [False,  True],
            [False,  True],
            [False,  True]])
    """
    function = "zero_input_channels_"
    parts = parts_of(function, "layer", layer)
    fill_as(_entries(parts, IN, *_which(function, "channels", channels, parts, IN)))
    return layer


def set_kernel_(layer: nn.Module, filter: int, channel: int, value: Any, *, cast: bool = False) -> nn.Module:
    """Write the kernel by which one output filter reads one input channel.

    Equivalent to ``layer.weight[filter, channel] = value`` under no_grad for a convolution of one group.

    Args:
        layer: Conv1d/2d/3d or ConvTranspose1d/2d/3d (of a Linear the kernel is a single number); returned.
        filter: an output channel of the layer, which may count from the end.
        channel: an input channel of the layer, of the filter's own group.
        value, cast: as for :func:`~convweights.assign_`: a tensor or array of the kernel's shape, or a number.

    Raises:
        TypeError, ValueError: numbers outside, another group, another shape; nothing has been written.

    >>> import torch, convweights as cw
    >>> blur = torch.full((3, 3), 1 / 9)
    >>> conv = cw.set_kernel_(torch.nn.Conv2d(4, 6, 3, groups=2), 5, 2, blur)
    >>> torch.equal(conv.weight[5, 0], blur)
    True
    """
    function = "set_kernel_"
    parts = parts_of(function, "layer", layer)
    groups, inner = parts.groups, parts.weight.shape[1]
    outputs, inputs = parts.channels(OUT), parts.channels(IN)
    output, source = (
        _number(function, argument, number, size)
        for argument, number, size in (("filter", filter, outputs), ("channel", channel, inputs))
    )
    group, other = output * groups // outputs, source * groups // inputs
    if group != other:
        raise ValueError(
            f"{function}: channel must be of the filter's group, {group} of {groups}, "
            f"whose channels are {group * inputs // groups} .. {(group + 1) * inputs // groups - 1}, got {channel}"
        )
    index = (source, output % inner) if parts.transposed else (output, source % inner)
    assign_as(function, parts.weight, value, index, cast, "the kernel")
    return layer


def _entries(parts: Parts, role: str, mask: torch.Tensor | None, positions: list[int] | None) -> list[Entry]:
    """What to set to zero. Channels that lie behind the first dimension are those of one group, group by group."""
    if mask is not None:
        weight, spread = parts.masked(role, mask)
        return [Entry(weight, spread, 0, None, None, (0, 0))]
    if parts.is_first(role) or parts.groups == 1:
        return [Entry(parts.weight, None, 0 if parts.is_first(role) else 1, positions, None, (0, 0))]
    grouped, inner = parts.by_group(parts.weight), parts.weight.shape[1]
    return [
        Entry(grouped[group], None, 1, own, None, (0, 0))
        for group in range(parts.groups)
        if (own := [position % inner for position in positions or () if position // inner == group])
    ]


def _which(
    function: str, argument: str, given: Any, parts: Parts, role: str
) -> tuple[torch.Tensor | None, list[int] | None]:
    count = parts.channels(role)
    if not (isinstance(given, torch.Tensor) and given.dtype == torch.bool):
        return None, positions_of(function, argument, given, count)
    check.dense(function, argument, given)
    check.same_device(function, argument, given, parts.weight)
    if tuple(given.shape) != (count,):
        raise ValueError(
            f"{function}: {argument} must have one entry for each of {count}, got shape {tuple(given.shape)}"
        )
    return given, None


def _number(function: str, argument: str, number: Any, size: int) -> int:
    position = check.integer(function, argument, number)
    if not -size <= position < size:
        raise ValueError(f"{function}: {argument} must lie in {-size} .. {size - 1}, got {position}")
    return position % size
