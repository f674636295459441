"""Modules and dicts of tensors as contents; of a module's tensors it is known what their dimensions mean."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from convweights.fitting.axes import IN, KERNEL, OUT, Axes
from convweights.fitting.contents import Contents, TensorInfo
from convweights.fitting.errors import sentence

State = nn.Module | Mapping[str, torch.Tensor]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# With one value a channel, in parameters and buffers alike.
_PER_CHANNEL = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.PReLU)
_PER_FEATURE = (nn.LayerNorm, nn.RMSNorm)


class ModuleContents(Contents):
    """The parameters and buffers of a module, or the tensors of a dict, as they are: what is written, is written."""

    def __init__(self, label: str, form: str, tensors: Mapping[str, torch.Tensor], axes: Mapping[str, Axes | None]):
        self._label, self.format, self.held = label, form, dict(tensors)
        self.typed = form == "module"
        self.tensors = {name: _info(name, tensor, axes.get(name)) for name, tensor in tensors.items()}

    @property
    def label(self) -> str:
        return self._label

    @property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        groups: dict[object, list[str]] = defaultdict(list)
        for name, tensor in self.held.items():
            groups[place_of(tensor)].append(name)
        return tuple(tuple(names) for names in groups.values() if len(names) > 1)

    def read(self, name: str) -> torch.Tensor:
        return self.held[name].detach()


def contents_of(function: str, argument: str, value: State) -> ModuleContents:
    """A module, or a dict such as ``torch.load`` gives."""
    if isinstance(value, nn.Module):
        found = list(named_tensors(value))
        for name, tensor, _ in found:
            if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
                got = f"the lazy {name} of {type(value).__name__}"
                raise ValueError(sentence(function, argument, "be initialised", got, "run the module once first"))
        label = f"{argument} {type(value).__name__}"
        return ModuleContents(label, "module", {n: t for n, t, _ in found}, {n: axes for n, _, axes in found})
    if not isinstance(value, Mapping):
        got = type(value).__name__
        raise TypeError(sentence(function, argument, "be a module or a dict of names and tensors", got))
    for key, tensor in value.items():
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            got = f"the lazy {key}"
            raise ValueError(sentence(function, argument, "be initialised", got, "run its module once first"))
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            got = f"{type(tensor).__name__} under {key!r}"
            remedy = "pass the state dict in it" if isinstance(tensor, Mapping) else ""
            raise TypeError(sentence(function, argument, "hold tensors under names", got, remedy))
    return ModuleContents(argument, "dict", value, {})


def named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, Axes | None]]:
    """What a state dict holds, as the module's own tensors, tied ones under each name, with their axes."""
    for prefix, layer in module.named_modules(remove_duplicate=False):
        own = {**layer._parameters, **layer._buffers}
        for part, tensor in own.items():
            if tensor is not None and part not in layer._non_persistent_buffers_set:
                yield f"{prefix}.{part}" if prefix else part, tensor, axes_in(layer, part, tensor)


def axes_in(layer: nn.Module, part: str, tensor: torch.Tensor) -> Axes | None:
    """What the dimensions of a layer's tensor mean, None for a layer that is not known here."""
    if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED)) and part in ("weight", "bias"):
        depthwise = layer.groups == layer.in_channels > 1
        if part == "bias":
            return Axes((OUT,), layer.groups, depthwise)
        lead = (IN, OUT) if isinstance(layer, _TRANSPOSED) else (OUT, IN)
        return Axes((*lead, *KERNEL[-len(layer.kernel_size) :]), layer.groups, depthwise)
    if isinstance(layer, nn.Linear) and part in ("weight", "bias"):
        return Axes((OUT, IN) if part == "weight" else (OUT,))
    if isinstance(layer, _PER_CHANNEL) or (isinstance(layer, _PER_FEATURE) and len(layer.normalized_shape) == 1):
        return Axes((OUT,)) if _rank(tensor) == 1 else Axes(()) if _rank(tensor) == 0 else None
    return None


def place_of(tensor: torch.Tensor) -> object:
    """What is equal for tensors that are one in memory."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or not tensor.numel():
        return id(tensor)
    seen = tensor.is_conj(), tensor.is_neg()
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, seen


def _rank(tensor: torch.Tensor) -> int:
    lazy = isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer))
    return -1 if lazy else tensor.ndim


def _info(name: str, tensor: torch.Tensor, axes: Axes | None) -> TensorInfo:
    plain = tensor.layout == torch.strided and not tensor.is_quantized
    return TensorInfo(name, tuple(tensor.shape), tensor.dtype, plain, axes)
