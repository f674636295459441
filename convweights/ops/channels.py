"""Channel functions: names that users know for a transfer through one dimension's map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from convweights.maps import RESCALES, Blocks, Interleave, Map, Mean, Offset, Rescale, Strided, Tile
from convweights.ops import check
from convweights.ops.transfer import transfer_as

_REPLICATE = {(kind.kind, rescale): kind(rescale) for kind in (Tile, Interleave) for rescale in get_args(Rescale)}
_AVERAGE = {(kind.kind, rescale): kind(rescale) for kind in (Blocks, Strided) for rescale in get_args(Rescale)}


def replicate_channels_(
    weight: torch.Tensor,
    source: torch.Tensor,
    *,
    dim: int = 1,
    order: Literal["tile", "interleave"] = "tile",
    rescale: Rescale = "none",
) -> torch.Tensor:
    """Fill ``weight`` with copies of the channels of ``source``.

    Equivalent to ``weight.copy_(source[:, torch.arange(m) % n])`` for ``order="tile"`` (0 1 2 0 1 2 0) and to
    ``weight.copy_(source[:, torch.arange(m) * n // m])`` for ``"interleave"`` (0 0 0 1 1 2 2).

    Args:
        weight: the tensor written, ``(O, m, kH, kW)`` for instance; returned.
        source: the tensor read, of the same shape but for ``n`` channels in ``dim``. With ``m < n`` "tile" takes
            the first m channels.
        dim: the channel dimension: 1 is in_channels, 0 is out_channels.
        rescale: ``"none"`` copies; ``"uniform"`` multiplies by n / m, which keeps the size of the output for
            typical inputs; ``"exact"`` divides each copy by how many copies its channel has, which keeps the output
            where the input is replicated the same way.

    Raises:
        TypeError, ValueError: as :func:`~convweights.transfer_`; nothing has been written.

    >>> import torch, convweights as cw
    >>> rgb = torch.tensor([[1.0, 2.0, 3.0]])
    >>> cw.replicate_channels_(torch.empty(1, 4), rgb, rescale="exact")
    tensor([[0.5000, 2.0000, 3.0000, 0.5000]])
    """
    map = _named("replicate_channels_", _REPLICATE, order, rescale)
    return _along("replicate_channels_", weight, source, dim, map)


def replicate_channels(
    source: torch.Tensor,
    channels: int,
    *,
    dim: int = 1,
    order: Literal["tile", "interleave"] = "tile",
    rescale: Rescale = "none",
) -> torch.Tensor:
    """A new tensor with ``channels`` channels, copies of those of ``source``; see :func:`replicate_channels_`.

    Nothing but the result is allocated; it has the source's dtype, device and memory format and no gradient history.

    >>> import torch, convweights as cw
    >>> cw.replicate_channels(torch.tensor([[1, 2]]), 5, order="interleave")
    tensor([[1, 1, 1, 2, 2]])
    """
    map = _named("replicate_channels", _REPLICATE, order, rescale)
    return _new("replicate_channels", source, channels, dim, map)


def average_channels_(
    weight: torch.Tensor,
    source: torch.Tensor | None = None,
    *,
    groups: int | None = None,
    dim: int = 1,
    order: Literal["blocks", "strided"] = "blocks",
    rescale: Rescale = "none",
) -> torch.Tensor:
    """Fill ``weight`` with averages of the channels of ``source``; without one, average ``weight`` in place.

    With a source of n channels, channel j of the m becomes the mean of the adjacent channels
    ceil(j n / m) .. ceil((j + 1) n / m) - 1 (``"blocks"``), or of j, j + m, j + 2m, ... (``"strided"``).
    Without a source, ``groups`` groups are formed in the same two ways and every channel becomes the mean of its group.

    Equivalent to ``weight.copy_(source.unflatten(1, (m, n // m)).mean(2))`` for "blocks" where m divides n.

    Args:
        weight: the tensor written, ``(O, m, kH, kW)`` for instance; returned.
        source: the tensor read, of the same shape but for ``n >= m`` channels in ``dim``.
        groups: in place only: the number of groups, which must divide the number of channels.
        dim: the channel dimension: 1 is in_channels, 0 is out_channels.
        rescale: ``"none"`` is the mean; ``"uniform"`` multiplies it by n / m (3 channels into 1 become their sum);
            ``"exact"`` is the window's sum, which keeps the output where inputs are equal inside each window.

    Raises:
        TypeError, ValueError: as :func:`~convweights.transfer_`; nothing has been written.

    >>> import torch, convweights as cw
    >>> cw.average_channels_(torch.empty(1, 2), torch.tensor([[1.0, 3.0, 5.0, 6.0]]))
    tensor([[2.0000, 5.5000]])
    >>> cw.average_channels_(torch.tensor([[1.0, 3.0, 5.0, 6.0]]), groups=2, order="strided")
    tensor([[3.0000, 4.5000, 3.0000, 4.5000]])
    """
    function = "average_channels_"
    map = _named(function, _AVERAGE, order, rescale)
    if source is not None:
        if groups is not None:
            raise ValueError(f"{function}: groups must be left out where a source is given, got {groups!r}")
        return _along(function, weight, source, dim, map)
    if groups is None:
        raise TypeError(f"{function}: source must be a torch.Tensor, got None; to average in place, give groups")
    if rescale != "none":
        raise ValueError(f"{function}: rescale must be 'none' where no source is given, got {rescale!r}")
    check.writable(function, "weight", weight)
    groups = check.integer(function, "groups", groups, least=1)
    dim = check.dimension(function, "dim", dim, weight.ndim)
    if weight.ndim >= check.MAX_DIMENSIONS:
        raise ValueError(
            f"{function}: weight must have at most {check.MAX_DIMENSIONS - 1} dimensions to be averaged in place, "
            f"got {weight.ndim}"
        )
    channels = weight.shape[dim]
    if channels % groups:
        raise ValueError(f"{function}: groups must divide the {channels} channels of dimension {dim}, got {groups}")
    if order == "blocks":
        grouped, members = weight.detach().unflatten(dim, (groups, channels // groups)), dim + 1
    else:
        grouped, members = weight.detach().unflatten(dim, (channels // groups, groups)), dim
    transfer_as(function, grouped, grouped, {members: Mean()}, in_place=True)
    return weight


def average_channels(
    source: torch.Tensor,
    channels: int,
    *,
    dim: int = 1,
    order: Literal["blocks", "strided"] = "blocks",
    rescale: Rescale = "none",
) -> torch.Tensor:
    """A new tensor with ``channels`` channels, averages of those of ``source``; see :func:`average_channels_`.

    Nothing but the result is allocated; it has the source's dtype, device and memory format and no gradient history.

    >>> import torch, convweights as cw
    >>> cw.average_channels(torch.tensor([[1.0, 2.0, 4.0]]), 1, rescale="uniform")
    tensor([[7.]])
    """
    return _new("average_channels", source, channels, dim, _named("average_channels", _AVERAGE, order, rescale))


def truncate_channels_(
    weight: torch.Tensor,
    source: torch.Tensor | None = None,
    *,
    keep: int | None = None,
    dim: int = 0,
    start: int = 0,
) -> torch.Tensor:
    """Fill ``weight`` with the channels of ``source`` from ``start`` on; without one, shrink ``weight`` in its storage.

    Equivalent to ``weight.copy_(source.narrow(dim, start, m))``.

    Without a source, ``keep`` channels are moved together inside the weight's own memory, which must be contiguous,
    and the result is a contiguous view of its first elements. What is left of the old tensor is unspecified: use the
    view and drop the tensor. Of a Parameter the view is a plain tensor: make the layer's new one of it, with
    ``layer.weight = torch.nn.Parameter(view)``, before an optimizer is given the layer.

    Args:
        weight: the tensor written, with m channels in ``dim``; returned, or its narrowed view.
        source: the tensor read, with at least ``start + m`` channels in ``dim``.
        keep: in place only: how many channels stay.
        dim: the channel dimension: 0 is out_channels, 1 is in_channels.
        start: the first channel taken.

    Raises:
        TypeError, ValueError: as :func:`~convweights.transfer_`; nothing has been written.

    >>> import torch, convweights as cw
    >>> cw.truncate_channels_(torch.empty(2), torch.tensor([1.0, 2.0, 3.0]), start=1)
    tensor([2., 3.])
    >>> cw.truncate_channels_(torch.arange(6).reshape(2, 3), keep=2, dim=1)
    tensor([[0, 1],
            [3, 4]])
    """
    function = "truncate_channels_"
    check.writable(function, "weight", weight)
    dim = check.dimension(function, "dim", dim, weight.ndim)
    start = check.integer(function, "start", start, least=0)
    if source is not None:
        if keep is not None:
            raise ValueError(f"{function}: keep must be left out where a source is given, got {keep!r}")
        check.dense(function, "source", source)
        if source.ndim == weight.ndim:
            _check_window(function, start, weight.shape[dim], source.shape[dim], dim)
        return _along(function, weight, source, dim, Offset(start))
    if keep is None:
        raise TypeError(f"{function}: source must be a torch.Tensor, got None; to truncate in place, give keep")
    keep = check.integer(function, "keep", keep, least=1)
    _check_window(function, start, keep, weight.shape[dim], dim)
    if not weight.is_contiguous():
        raise ValueError(
            f"{function}: weight must be contiguous to be truncated in place, got strides {weight.stride()}; "
            f"use truncate_channels for a new tensor"
        )
    whole = weight.detach()
    shape = [keep if d == dim else size for d, size in enumerate(weight.shape)]
    kept = whole.view(-1)[: torch.Size(shape).numel()].view(shape)
    return transfer_as(function, kept, whole, {dim: Offset(start)}, in_place=True)


def truncate_channels(source: torch.Tensor, channels: int, *, dim: int = 0, start: int = 0) -> torch.Tensor:
    """A new tensor of the ``channels`` channels of ``source`` from ``start`` on; see :func:`truncate_channels_`.

    Nothing but the result is allocated; it has the source's dtype, device and memory format and no gradient history.

    >>> import torch, convweights as cw
    >>> cw.truncate_channels(torch.tensor([1, 2, 3]), 2)
    tensor([1, 2])
    """
    function = "truncate_channels"
    check.dense(function, "source", source)
    dim = check.dimension(function, "dim", dim, source.ndim)
    start = check.integer(function, "start", start, least=0)
    channels = check.integer(function, "channels", channels, least=1)
    _check_window(function, start, channels, source.shape[dim], dim)
    return _new(function, source, channels, dim, Offset(start))


def _named(function: str, maps: Mapping[tuple[str, str], Map], order: Any, rescale: Any) -> Map:
    orders = tuple(dict.fromkeys(name for name, _ in maps))
    check.choice(function, "rescale", rescale, RESCALES)
    return maps[check.choice(function, "order", order, orders), rescale]


def _along(function: str, weight: torch.Tensor, source: torch.Tensor, dim: int, map: Map) -> torch.Tensor:
    check.dense(function, "weight", weight)
    return transfer_as(function, weight, source, {check.dimension(function, "dim", dim, weight.ndim): map})


def _new(function: str, source: torch.Tensor, channels: int, dim: int, map: Map) -> torch.Tensor:
    check.dense(function, "source", source)
    dim = check.dimension(function, "dim", dim, source.ndim)
    channels = check.integer(function, "channels", channels, least=1)
    shape = [channels if d == dim else size for d, size in enumerate(source.shape)]
    try:
        weight = torch.empty(shape, dtype=source.dtype, device=source.device, memory_format=_memory_format(source))
    except (RuntimeError, OverflowError) as error:  # torch.OutOfMemoryError is a RuntimeError
        raise ValueError(f"{function}: channels must be a number that fits into memory, got {channels}") from error
    return transfer_as(function, weight, source, {dim: map})


def _memory_format(source: torch.Tensor) -> torch.memory_format:
    if not source.is_contiguous():
        for rank, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if source.ndim == rank and source.is_contiguous(memory_format=memory_format):
                return memory_format
    return torch.contiguous_format


def _check_window(function: str, start: int, count: int, size: int, dim: int) -> None:
    if start + count > size:
        raise ValueError(
            f"{function}: start must leave {count} of the {size} channels of dimension {dim} to take, got {start}"
        )
