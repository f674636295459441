"""A new layer of other sizes with the weights of an old one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from convweights.fitting.errors import sentence
from convweights.fitting.modules import _CONVOLUTIONS, _TRANSPOSED, contents_of
from convweights.fitting.settings import Size, parse_size
from convweights.layers.layer import KERNELS, initializer, new_outputs, plan_layer, rescaled
from convweights.layers.write import write
from convweights.maps import RESCALES
from convweights.ops import check

Wanted = int | Mapping[str, Any] | None

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
# What input and output channels are called by each kind of layer.
_NAMES: dict[type[nn.Module], tuple[str | None, str]] = {
    **dict.fromkeys((*_CONVOLUTIONS, *_TRANSPOSED), ("in_channels", "out_channels")),
    nn.Linear: ("in_features", "out_features"),
    **dict.fromkeys(_NORMS, (None, "num_features")),
    nn.GroupNorm: (None, "num_channels"),
    nn.LayerNorm: (None, "normalized_shape"),
    nn.RMSNorm: (None, "normalized_shape"),
}


def adapt_layer(
    layer: nn.Module,
    *,
    in_channels: Wanted = None,
    out_channels: Wanted = None,
    kernel_size: int | Sequence[int] | None = None,
    kernel: Literal["center", "resize", "init"] = "center",
    padding: int | Sequence[int] | str | None = None,
    rescale: Literal["none", "uniform", "exact"] = "uniform",
    init: str | Mapping[str, Any] | None = None,
    seed: int = 0,
    name: str | None = None,
) -> nn.Module:
    """A new layer like ``layer`` with other sizes and its weights, fitted; ``layer`` stays as it is.

    Everything else is the old layer's: stride, groups, bias, dtypes, device, training mode, requires_grad.
    Of a depthwise layer input channels, groups and output channels change together, whichever is given.

    Args:
        layer: a layer of torch.nn: Conv1d/2d/3d, ConvTranspose1d/2d/3d, Linear, BatchNorm, InstanceNorm, GroupNorm,
            LayerNorm, RMSNorm; the last five have ``out_channels`` only.
        in_channels: a number (tiled where they grow, averaged in blocks where they shrink), or a dict as in rules:
            ``{"to": 4, "how": "zeros"}``, ``{"select": [2, 1, 0]}``.
        out_channels: a number (truncated where they shrink; where they grow ``init`` says what new ones are), or a
            dict: ``{"to": 128, "how": "tile"}``.
        kernel_size: an int, or one a dimension; ``kernel`` says how: ``"center"`` crops, or pads with zeros,
            ``"resize"`` interpolates, ``"init"`` begins anew.
        padding: of the new layer. None keeps the output's size: padding + dilation * (new - old) / 2, which has to be
            whole and at least 0; "valid" stays and lets the output change, "same" stays where the difference is even.
        rescale, init, seed, name: as for :func:`~convweights.transfer_layer_`.

    Raises:
        TypeError, ValueError: a layer that is not known here, sizes that cannot be reached.

    >>> import torch, convweights as cw
    >>> stem = torch.nn.Conv2d(3, 16, 7, stride=2, padding=3)
    >>> cw.adapt_layer(stem, in_channels=1, kernel_size=9)
    Conv2d(1, 16, kernel_size=(9, 9), stride=(2, 2), padding=(4, 4))
    >>> x = torch.randn(2, 1, 32, 32)
    >>> new = cw.adapt_layer(stem, in_channels=1, kernel_size=9)
    >>> torch.allclose(new(x), stem(x.expand(-1, 3, -1, -1)), atol=1e-5)
    True
    """
    function = "adapt_layer"
    if type(layer) not in _NAMES:
        must = "be a convolution, a Linear or a normalisation of torch.nn"
        remedy = "make the target yourself and use transfer_layer_"
        raise TypeError(sentence(function, "layer", must, type(layer).__name__, remedy))
    source = contents_of(function, "layer", layer)
    check.choice(function, "kernel", kernel, KERNELS[1:])
    check.choice(function, "rescale", rescale, RESCALES)
    begin = initializer(function, init, seed)
    given = {"in_channels": in_channels, "out_channels": out_channels}
    asked = {
        role: Size() if value is None else parse_size(function, role, role, value) for role, value in given.items()
    }
    for role, size in asked.items():
        if given[role] is not None and size.to is None:
            raise ValueError(
                sentence(function, role, "say how many there are to be", given[role], "such as {'to': 4, ...}")
            )
    arguments = _arguments(layer)
    if _is_depthwise(arguments):
        asked = _depthwise(arguments, asked)
    _resize(function, layer, arguments, asked)
    _rekernel(function, layer, arguments, kernel_size, padding)
    try:
        new = type(layer)(**arguments, device="meta").to_empty(device=_device(layer))
    except (ValueError, RuntimeError, TypeError) as error:
        got = f"{type(layer).__name__} ({' '.join(str(error).split())})"
        raise ValueError(sentence(function, "layer", "be one that torch can make of these sizes", got)) from None
    _cast(new, layer)
    target = contents_of(function, "target", new)
    begin_kernel = begin or Size(how="init", arguments=(("seed", seed),))
    sizes = {
        "in_channels": rescaled(_how(asked["in_channels"]), rescale),
        "out_channels": new_outputs(_how(asked["out_channels"]), begin, target, source),
        "kernel_size": begin_kernel if kernel == "init" else Size(how=kernel),
    }
    planned = plan_layer(function, target, source, sizes, "error", name)
    if any(tensor.base == "keep" for tensor in planned.tensors):
        must = "say how where they grow"
        remedy = "pass init='kaiming_normal' with name=, or a dict such as {'to': 8, 'how': 'zeros'}"
        raise ValueError(sentence(function, "out_channels", must, given["out_channels"], remedy))
    write(function, planned, source, target)
    for part, parameter in layer.named_parameters(recurse=False):
        new.get_parameter(part).requires_grad_(parameter.requires_grad)
    return new.train(layer.training)


def _is_depthwise(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments.get("groups", 1) == arguments.get("in_channels") != 1)


def _depthwise(arguments: Mapping[str, Any], asked: Mapping[str, Size]) -> dict[str, Size]:
    """What is asked of the input channels is asked of the groups, and so of the output channels. A selection counts
    groups."""
    inputs, outputs = asked["in_channels"], asked["out_channels"]
    how = outputs if outputs.how is not None or inputs.how is None else inputs
    to = inputs.to
    if to is None and how.how == "select":
        to = how.to
    count = outputs.to if outputs.how != "select" else None
    return {"in_channels": Size(to), "out_channels": Size(count, how.how, None, how.arguments)}


def _cast(new: nn.Module, old: nn.Module) -> None:
    """Give each tensor the dtype that it has in the old layer, where that has several."""
    for part, parameter in new._parameters.items():
        if parameter is not None and parameter.dtype != old.get_parameter(part).dtype:
            new._parameters[part] = nn.Parameter(parameter.detach().to(old.get_parameter(part).dtype))
    for part, buffer in new._buffers.items():
        if buffer is not None and buffer.dtype != old.get_buffer(part).dtype:
            new._buffers[part] = buffer.to(old.get_buffer(part).dtype)


def _how(size: Size) -> Size:
    """The way without the number, which the new layer has."""
    return Size(None, size.how, size.rescale, size.arguments)


def _arguments(layer: nn.Module) -> dict[str, Any]:
    """What the layer was made with, read off its attributes."""
    names = [name for name in inspect.signature(type(layer).__init__).parameters if name not in ("self", "device")]
    arguments = {name: getattr(layer, name) for name in names if hasattr(layer, name) and name not in ("bias", "dtype")}
    if "bias" in names:
        arguments["bias"] = getattr(layer, "bias", None) is not None
    parameter = next(iter([*layer.parameters(recurse=False), *layer.buffers(recurse=False)]), None)
    made = parameter is not None and (parameter.is_floating_point() or parameter.is_complex())
    return {**arguments, "dtype": parameter.dtype if parameter is not None and made else None}


def _device(layer: nn.Module) -> torch.device:
    held = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    return held[0].device if held else torch.device("cpu")


def _resize(function: str, layer: nn.Module, arguments: dict[str, Any], asked: Mapping[str, Size]) -> None:
    """Put the asked numbers of channels into the arguments, and the groups of a depthwise layer with them."""
    inputs, outputs = _NAMES[type(layer)]
    wanted: dict[str, Any] = {role: size.to for role, size in asked.items() if size.to is not None}
    if inputs is None and "in_channels" in wanted:
        got, remedy = f"{wanted['in_channels']} for {type(layer).__name__}", "its channels are out_channels"
        raise ValueError(sentence(function, "in_channels", "be left out for a normalisation", got, remedy))
    if outputs == "normalized_shape" and "out_channels" in wanted:
        if len(layer.normalized_shape) != 1:  # type: ignore[arg-type]
            got = f"normalized_shape {layer.normalized_shape}"
            raise ValueError(sentence(function, "layer", "normalise over one dimension to be adapted", got))
        arguments[outputs] = [wanted["out_channels"]]
        return
    groups = arguments.get("groups", 1)
    if _is_depthwise(arguments) and wanted:
        multiplier = arguments["out_channels"] // groups
        count = wanted.get("in_channels") or wanted["out_channels"] // multiplier
        if wanted.get("out_channels", count * multiplier) != count * multiplier:
            must = f"be {multiplier} a group of a depthwise layer of {count} input channels"
            raise ValueError(sentence(function, "out_channels", must, wanted["out_channels"]))
        arguments.update(in_channels=count, out_channels=count * multiplier, groups=count)
        return
    for role, name in (("in_channels", inputs), ("out_channels", outputs)):
        if role in wanted and name is not None:
            to = wanted[role]
            if asked[role].how == "select":
                to *= groups
            if to % groups:
                raise ValueError(sentence(function, role, f"be divisible by {groups} groups", to))
            if isinstance(layer, nn.GroupNorm) and to % layer.num_groups:
                raise ValueError(sentence(function, role, f"be divisible by {layer.num_groups} groups", to))
            arguments[name] = to


def _rekernel(function: str, layer: nn.Module, arguments: dict[str, Any], kernel_size: Any, padding: Any) -> None:
    """Put a kernel's size into the arguments, and the padding with which the output keeps its size."""
    if kernel_size is None and padding is None:
        return
    if not isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED)):
        argument, got = "kernel_size" if kernel_size is not None else "padding", type(layer).__name__
        raise ValueError(sentence(function, argument, "be left out for a layer without a kernel", got))
    old, rank = layer.kernel_size, len(layer.kernel_size)
    new = old if kernel_size is None else kernel_size
    new = (new,) * rank if isinstance(new, int) else new
    if not isinstance(new, Sequence) or len(new) != rank:
        raise ValueError(sentence(function, "kernel_size", f"be an int or {rank} of them", repr(kernel_size)))
    arguments["kernel_size"] = tuple(check.integer(function, "kernel_size", size, least=1) for size in new)
    if padding is not None:
        arguments["padding"] = _checked_padding(function, layer, padding, rank)
    elif layer.padding == "same" and any(
        d * (n - o) % 2 for d, o, n in zip(layer.dilation, old, arguments["kernel_size"], strict=True)
    ):
        must, got = "be given where 'same' would shift the output", f"kernels of {old} and {arguments['kernel_size']}"
        raise ValueError(sentence(function, "padding", must, got))
    elif not isinstance(layer.padding, str):
        arguments["padding"] = tuple(
            _padding(function, *sizes) for sizes in zip(layer.padding, layer.dilation, old, new, strict=True)
        )


def _checked_padding(function: str, layer: nn.Module, padding: Any, rank: int) -> Any:
    if isinstance(padding, str) and not isinstance(layer, _TRANSPOSED):
        return check.choice(function, "padding", padding, ("same", "valid"))
    sizes = padding if isinstance(padding, Sequence) else (padding,) * rank
    if isinstance(padding, str) or len(sizes) != rank:
        raise ValueError(sentence(function, "padding", f"be an int or {rank} of them", repr(padding)))
    return tuple(check.integer(function, "padding", size, least=0) for size in sizes)


def _padding(function: str, padding: int, dilation: int, old: int, new: int) -> int:
    twice = 2 * padding + dilation * (new - old)
    if twice < 0 or twice % 2:
        must = (
            f"be given where kernels of {old} become {new} and {padding} + {dilation} * ({new} - {old}) / 2 will not do"
        )
        raise ValueError(sentence(function, "padding", must, None))
    return twice // 2
