"""One layer's weights from another layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from convweights.fitting.axes import IN, OUT
from convweights.fitting.draft import draft
from convweights.fitting.errors import sentence
from convweights.fitting.modules import ModuleContents, contents_of
from convweights.fitting.report import Plan, Report
from convweights.fitting.rules import Rule
from convweights.fitting.settings import INIT, Size, parse_size
from convweights.layers.write import write
from convweights.maps import RESCALES
from convweights.ops import check

How = str | Sequence[int] | Mapping[str, Any]
Bias = Literal["error", "drop", "zeros", "keep"]
KERNELS = ("error", "center", "resize", "init")
BIASES = ("error", "drop", "zeros", "keep")


def transfer_layer_(
    target: nn.Module,
    source: nn.Module,
    *,
    in_channels: How = "auto",
    out_channels: How = "auto",
    kernel: Literal["error", "center", "resize", "init"] = "error",
    depth: Literal["mean", "center"] = "mean",
    rescale: Literal["none", "uniform", "exact"] = "uniform",
    bias: Bias = "error",
    init: str | Mapping[str, Any] | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Report:
    """Write the weights of one layer into another of other sizes, in place, and report how each tensor was fitted.

    The layers are Conv1d/2d/3d, ConvTranspose1d/2d/3d, Linear, or normalisations with their buffers; grouped and
    depthwise ones too, where maps act inside each group. A Conv2d goes into a Conv3d and back, a Linear into a 1 x 1
    convolution and back. The target's parameters keep identity, requires_grad, device and dtype.

    Args:
        target: the layer written.
        source: the layer read, of the same kind.
        in_channels: "auto" tiles where they grow and averages in blocks where they shrink; or ``"tile"``,
            ``"interleave"``, ``"blocks"``, ``"strided"``, ``"truncate"``, ``"zeros"``, ``"keep"`` (the target's own),
            a list of source channels to select, or a dict as in rules.
        out_channels: likewise; "auto" truncates where they shrink, and where they grow keeps the target's own values
            (initialises them, where ``init`` is given).
        kernel: where kernel sizes differ: an error, ``"center"`` (crop, or pad with zeros; the start is
            floor((n - m) / 2), from even to odd sizes too), ``"resize"`` (linear interpolation), or ``"init"``.
        depth: between Conv2d and Conv3d: ``"mean"`` gives each slice 1 / depth of the kernel and sums slices the other
            way round, ``"center"`` is the slice in the middle.
        rescale: of input channels that are replicated or averaged: see :mod:`convweights.maps`.
        bias: where one side has none: an error, ``"drop"`` the source's, or the target's becomes ``"zeros"`` or stays
            (``"keep"``).
        init: an initialiser's name, or a dict of it as ``how`` and its arguments, for new output channels and kernels;
            Kaiming's normal one for kernels unless given.
        seed: of the initialiser.
        name: the layer's in its model; noise is drawn by it, so it is needed where values are drawn.

    Raises:
        TypeError, ValueError: layers of two kinds, sizes that cannot be reached; nothing has been written.

    >>> import torch, convweights as cw
    >>> rgb, rgbd = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(4, 8, 3)
    >>> report = cw.transfer_layer_(rgbd, rgb)
    >>> report.changed[0].how, report.changed[0].scale
    ('in_channels 3 -> 4 tile', '3/4')
    >>> torch.equal(rgbd.weight[:, 3], rgb.weight[:, 0] * 0.75), torch.equal(rgbd.bias, rgb.bias)
    (True, True)
    """
    function = "transfer_layer_"
    for argument, layer in (("target", target), ("source", source)):
        if not isinstance(layer, nn.Module):
            raise TypeError(sentence(function, argument, "be a layer of torch.nn", type(layer).__name__))
    to, values = contents_of(function, "target", target), contents_of(function, "source", source)
    check.choice(function, "kernel", kernel, KERNELS)
    check.choice(function, "rescale", rescale, RESCALES)
    check.choice(function, "depth", depth, ("mean", "center"))
    check.choice(function, "bias", bias, BIASES)
    begin = initializer(function, init, seed)
    _check_kinds(function, target, source, to, values)
    sizes = {
        "in_channels": channels(function, "in_channels", in_channels, rescale),
        "out_channels": new_outputs(channels(function, "out_channels", out_channels), begin, to, values),
        "kernel_size": (begin or Size(how="init", arguments=(("seed", seed),)))
        if kernel == "init"
        else Size(how=kernel),
        "inflate": Size(how=depth),
        "deflate": Size(how=depth),
    }
    return write(function, plan_layer(function, to, values, sizes, bias, name), values, to)


def plan_layer(
    function: str,
    target: ModuleContents,
    source: ModuleContents,
    sizes: Mapping[str, Size],
    bias: str,
    name: str | None,
) -> Plan:
    """The plan for a layer: ``sizes`` where they mean something for it, and a bias that one side lacks."""
    check.choice(function, "bias", bias, BIASES)
    if name is not None and not isinstance(name, str):
        raise TypeError(sentence(function, "name", "be the layer's name", repr(name)))
    infos = [*source.tensors.values(), *target.tensors.values()]
    ranks = [len(info.shape) for info in infos if info.axes is None]
    roles = {role for info in infos if info.axes is not None for role in info.axes.roles}
    means = {"in_channels": IN in roles or max(ranks, default=0) > 1, "out_channels": OUT in roles or bool(ranks)}
    for setting, meant in means.items():
        if sizes[setting].how is not None and infos and not meant:
            got, must = f"{sizes[setting]}", "be left out for a layer that has none"
            raise ValueError(sentence(function, setting, must, got))
    rules = []
    if ("bias" in source.tensors) != ("bias" in target.tensors):
        rules.append(_bias_rule(function, bias, source, target))
    prefix = None if name is None else f"{name}." if name else ""
    planned = draft(function, source, rules, target, sizes=sizes, prefix=prefix)
    return dataclasses.replace(planned, source_format=source.format)


def _bias_rule(function: str, bias: str, source: ModuleContents, target: ModuleContents) -> Rule:
    if "bias" in source.tensors:
        if bias != "drop":
            got = "one in the source and none in the target"
            raise ValueError(sentence(function, "bias", "be on both sides", got, "pass bias='drop' to leave it out"))
        return Rule("bias", drop=True)
    if bias not in ("zeros", "keep"):
        got, remedy = "none in the source and one in the target", "pass bias='zeros' or bias='keep'"
        raise ValueError(sentence(function, "bias", "be on both sides", got, remedy))
    return Rule("bias", new=Size(how=bias))


def channels(function: str, argument: str, how: How, rescale: str | None = None) -> Size:
    """What is asked of channels whose number the target decides."""
    if isinstance(how, str) and how == "auto":
        size = Size()
    else:
        given = how if isinstance(how, (str, Mapping)) else {"select": how}
        size = parse_size(function, argument, argument, given)
    return rescaled(size, rescale)


def rescaled(size: Size, rescale: str | None) -> Size:
    """The same with a rescaling, where channels are replicated or averaged and it says none itself."""
    if size.rescale is None and size.how in (None, "tile", "interleave", "blocks", "strided"):
        return dataclasses.replace(size, rescale=rescale)
    return size


def initializer(function: str, init: str | Mapping[str, Any] | None, seed: int) -> Size | None:
    """``init=`` and ``seed=`` as what rules say: new values by an initialiser."""
    check.within(function, "seed", seed, 2**64)
    if init is None:
        return None
    table: dict[str, Any] = dict(init) if isinstance(init, Mapping) else {"how": init}
    if not isinstance(table.get("how"), str) or table["how"] not in INIT:
        raise ValueError(
            sentence(function, "init", f"be {' or '.join(map(repr, INIT))}, or a dict with it as how", repr(init))
        )
    return parse_size(function, "new", "init", {"seed": seed, **table})


def new_outputs(size: Size, begin: Size | None, target: ModuleContents, source: ModuleContents) -> Size:
    """Where output channels grow and nothing else is said, an initialiser that is given gives the new ones theirs."""
    if begin is None or size.how is not None or not _outputs(target) > _outputs(source):
        return size
    return begin


def _outputs(contents: ModuleContents) -> int:
    info = contents.tensors.get("weight")
    if info is None or info.axes is None or OUT not in info.axes.roles:
        return 0
    position = info.axes.roles.index(OUT)
    return info.shape[position] * (info.axes.groups if position else 1)


def _check_kinds(
    function: str, target: nn.Module, source: nn.Module, to: ModuleContents, values: ModuleContents
) -> None:
    for argument, layer, contents in (("target", target, to), ("source", source, values)):
        if not contents.tensors or any("." in name for name in contents.tensors):
            got = type(layer).__name__
            remedy = "transfer_model_ takes modules of many layers"
            raise ValueError(sentence(function, argument, "be one layer with weights of its own", got, remedy))
    transposed = [isinstance(layer, nn.modules.conv._ConvTransposeNd) for layer in (target, source)]
    if transposed[0] != transposed[1]:
        got = f"{type(source).__name__} for {type(target).__name__}"
        raise ValueError(sentence(function, "source", "be transposed where the target is, and only there", got))
