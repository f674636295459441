"""Filters that are chosen once and stay zero through training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.hooks import RemovableHandle

from convweights.fitting.axes import IN
from convweights.fitting.errors import sentence
from convweights.fitting.modules import axes_in
from convweights.ops import check
from convweights.ops.fill import fill_
from convweights.ops.fill_arguments import positions_of
from convweights.ops.update import noise

Scope = Literal["layer", "model"]


class FilterMask:
    """Which output filters of a model's layers are zero: chosen once, applied in one call, kept after each step.

    ``filters`` maps the names of layers (convolutions, transposed ones, Linear) to a bool tensor with one entry a
    filter, True where it is zero. The bias of such a filter is zero, too.

    Args:
        model: the model whose layers they are; it is not kept, and not written before :meth:`apply_`.
        filters: for each layer a bool tensor, or the numbers of the filters.

    Raises:
        TypeError, ValueError: names that are no such layers, filters that do not fit.

    >>> import torch, convweights as cw
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    >>> mask = cw.FilterMask.by_norm(net, 0.25)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> handle = mask.keep(net, optimizer)
    >>> net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    >>> optimizer.step()
    >>> int((net[0].weight == 0).all((1, 2, 3)).sum()), mask.sparsity()
    (2, 0.25)
    """

    def __init__(self, model: nn.Module, filters: Mapping[str, Any]) -> None:
        function = "FilterMask"
        if not isinstance(filters, Mapping) or not filters:
            raise TypeError(sentence(function, "filters", "be a dict of layers and filters", repr(filters)))
        self.filters = {
            name: _filters_of(function, _layer(function, model, name), name, f) for name, f in filters.items()
        }

    @classmethod
    def by_norm(
        cls, model: nn.Module, ratio: float, *, p: int = 1, scope: Scope = "layer", layers: Iterable[str] | None = None
    ) -> FilterMask:
        """The filters whose norm is smallest: floor(ratio * filters) of each layer, or of all layers together.

        The norm is the mean of ``|w|^p`` over a filter, to the power of 1 / p, so that layers of different sizes
        compare. Of equal ones the first goes first.

        Args:
            ratio: 0 .. 1; each layer keeps a filter, or it is an error.
            p: 1 or 2.
            scope: "layer" or "model".
            layers: their names; all convolutions, transposed ones and Linear layers unless given.
        """
        function = "FilterMask.by_norm"
        check.choice(function, "p", str(p), ("1", "2"))
        found = _layers(function, model, layers)
        scores = {}
        for name, layer in found.items():
            rows = _by_filter(layer).detach().double().flatten(1)
            scores[name] = rows.abs().pow(p).mean(1).pow(1 / p)
            if not bool(scores[name].isfinite().all()):
                raise ValueError(sentence(function, "model", "have finite weights", f"others in {name}"))
        return cls(model, _lowest(function, scores, ratio, scope))

    @classmethod
    def at_random(
        cls, model: nn.Module, ratio: float, *, seed: int, scope: Scope = "layer", layers: Iterable[str] | None = None
    ) -> FilterMask:
        """As many filters by chance, drawn from ``seed`` and the layers' names: the same ones everywhere."""
        function = "FilterMask.at_random"
        check.within(function, "seed", seed, 2**64)
        found = _layers(function, model, layers)
        scores = {
            name: noise(len(_by_filter(layer)), seed=seed, stream=name, distribution="uniform", dtype=torch.float64)
            for name, layer in found.items()
        }
        return cls(model, _lowest(function, scores, ratio, scope))

    @classmethod
    def from_torch_prune(cls, model: nn.Module) -> FilterMask:
        """The filters that ``torch.nn.utils.prune`` has masked whole; a mask of single elements is an error."""
        function = "FilterMask.from_torch_prune"
        filters = {}
        for name, layer in model.named_modules():
            kept = getattr(layer, "weight_mask", None)
            if kept is None:
                continue
            rows = _by_filter(layer, kept).flatten(1) != 0
            if not bool((rows.all(1) | ~rows.any(1)).all()):
                must, got = "mask whole filters", f"single elements of {name}"
                raise ValueError(sentence(function, "model", must, got))
            filters[name] = ~rows.any(1)
        if not filters:
            raise ValueError(sentence(function, "model", "hold layers that torch.nn.utils.prune has pruned", "none"))
        return cls(model, filters)

    def apply_(self, model: nn.Module) -> nn.Module:
        """Set the filters to zero, in one call for each device; returns the model."""
        weights, masks = self._targets(model)
        fill_(weights, masks, frozen=True)
        return model

    def keep(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Apply it now and after each ``optimizer.step()``, momentum or not, until the handle is removed."""
        weights, masks = self._targets(model)

        def after(*_: Any) -> None:
            fill_(weights, masks, frozen=True)

        after()
        return optimizer.register_step_post_hook(after)

    def sparsity(self) -> float:
        """The share of zero filters among those of its layers."""
        return sum(int(zero.sum()) for zero in self.filters.values()) / sum(map(len, self.filters.values()))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The filters, to be saved beside a model's own state."""
        return {name: zero.clone() for name, zero in self.filters.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """The filters that :meth:`state_dict` gave, for the same layers."""
        function = "FilterMask.load_state_dict"
        if not isinstance(state, Mapping) or set(state) != set(self.filters):
            got = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(sentence(function, "state", f"name the layers {', '.join(self.filters)}", got))
        for name, zero in state.items():
            mine = self.filters[name]
            if not isinstance(zero, torch.Tensor) or zero.dtype != torch.bool or zero.shape != mine.shape:
                got = f"{zero.dtype} {tuple(zero.shape)}" if isinstance(zero, torch.Tensor) else type(zero).__name__
                raise ValueError(sentence(function, f"state of {name}", f"be bool of shape {tuple(mine.shape)}", got))
        self.filters = {name: zero.detach().to(self.filters[name].device, copy=True) for name, zero in state.items()}

    def to_torch_prune(self, model: nn.Module) -> nn.Module:
        """Hand the masks over to ``torch.nn.utils.prune``, for weights and biases; returns the model."""
        layers = {name: _layer("FilterMask.to_torch_prune", model, name) for name in self.filters}
        for name, layer in layers.items():
            zero = self.filters[name]
            for part in ("weight", "bias"):
                tensor = getattr(layer, part)
                if tensor is not None:
                    where = _spread(layer, zero.to(tensor.device), tensor)
                    prune.custom_from_mask(layer, part, ~where.expand_as(tensor))
        return model

    def _targets(self, model: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        weights, masks = [], []
        for name, zero in self.filters.items():
            layer = _layer("FilterMask", model, name)
            for tensor in (layer.weight, layer.bias):
                if isinstance(tensor, torch.Tensor):
                    if len(_by_filter(layer)) != len(zero):
                        got = f"{len(_by_filter(layer))}"
                        raise ValueError(sentence("FilterMask", name, f"have {len(zero)} filters", got))
                    weights.append(tensor)
                    masks.append(_spread(layer, zero.to(tensor.device), tensor))
        return weights, masks


def _layer(function: str, model: nn.Module, name: Any) -> Any:
    try:
        layer = model.get_submodule(name)
    except (AttributeError, TypeError):
        raise ValueError(sentence(function, "layers", "be names of the model's layers", repr(name))) from None
    if not _has_filters(layer):
        got = f"{type(layer).__name__} under {name!r}"
        raise TypeError(sentence(function, "layers", "be convolutions or Linear layers", got))
    return layer


def _has_filters(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    axes = axes_in(layer, "weight", weight) if isinstance(weight, torch.Tensor) else None
    return axes is not None and IN in axes.roles


def _layers(function: str, model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Module]:
    if names is None:
        found = {name: layer for name, layer in model.named_modules() if _has_filters(layer)}
        if not found:
            raise ValueError(sentence(function, "model", "have convolutions or Linear layers", type(model).__name__))
        return found
    listed = [names] if isinstance(names, str) else list(names)
    if len(set(listed)) != len(listed):
        twice = next(name for i, name in enumerate(listed) if name in listed[:i])
        raise ValueError(sentence(function, "layers", "name each layer once", f"{twice!r} twice"))
    return {name: _layer(function, model, name) for name in listed}


def _is_transposed(layer: Any) -> bool:
    return isinstance(layer, nn.modules.conv._ConvTransposeNd)


def _by_filter(layer: Any, weight: torch.Tensor | None = None) -> torch.Tensor:
    """The weight, or another tensor of its shape, with the output filters first."""
    tensor: torch.Tensor = layer.weight if weight is None else weight
    if not _is_transposed(layer):
        return tensor
    by_filter: torch.Tensor = tensor.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    return by_filter


def _spread(layer: Any, zero: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """One entry a filter as a mask that broadcasts to the layer's weight or bias."""
    if tensor.ndim == 1:
        return zero
    if not _is_transposed(layer):
        return zero.reshape([-1] + [1] * (tensor.ndim - 1))
    each = zero.reshape(layer.groups, -1).repeat_interleave(tensor.shape[0] // layer.groups, 0)
    return each.reshape([*each.shape] + [1] * (tensor.ndim - 2))


def _filters_of(function: str, layer: Any, name: str, given: Any) -> torch.Tensor:
    count, device = len(_by_filter(layer)), layer.weight.device
    if isinstance(given, torch.Tensor) and given.dtype == torch.bool:
        if tuple(given.shape) != (count,):
            must = f"have one entry for each of {count} filters"
            raise ValueError(sentence(function, f"filters of {name}", must, f"shape {tuple(given.shape)}"))
        return given.detach().to(device, copy=True)
    zero = torch.zeros(count, dtype=torch.bool)
    zero[positions_of(function, f"filters of {name}", given, count)] = True
    return zero.to(device)


def _lowest(function: str, scores: Mapping[str, torch.Tensor], ratio: Any, scope: str) -> dict[str, torch.Tensor]:
    """As many of the lowest scores as the ratio says, of each layer or of all."""
    check.choice(function, "scope", scope, ("layer", "model"))
    number = check.finite(function, "ratio", ratio)
    if not 0 <= number <= 1:
        raise ValueError(f"{function}: ratio must lie in 0 .. 1, got {ratio}")
    on_host = {name: score.cpu() for name, score in scores.items()}
    parts = [on_host] if scope == "model" else [{name: score} for name, score in on_host.items()]
    chosen: dict[str, torch.Tensor] = {}
    for part in parts:
        together = torch.cat(list(part.values()))
        zero = torch.zeros(len(together), dtype=torch.bool)
        zero[together.argsort(stable=True)[: math.floor(number * len(together))]] = True
        chosen.update(zip(part, zero.split([len(score) for score in part.values()]), strict=True))
    for name, zero in chosen.items():
        if bool(zero.all()):
            raise ValueError(sentence(function, "ratio", f"leave a filter of {name}", ratio))
    return chosen
