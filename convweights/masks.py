"""Filters that are chosen once and stay zero through training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.hooks import RemovableHandle

from convweights.fitting.axes import OUT
from convweights.fitting.errors import sentence
from convweights.layers.parts import Parts, has_filters, parts_of
from convweights.ops import check
from convweights.ops.fill import fill_
from convweights.ops.fill_arguments import positions_of
from convweights.ops.streams import unwrapped
from convweights.ops.update import noise

Scope = Literal["layer", "model"]


class FilterMask:
    """Which output filters of a model's layers are zero: chosen once, applied in one call, kept after each step.

    ``filters`` maps the names of layers (convolutions, transposed ones, Linear), without what torch.compile and DDP
    add to them, to a bool tensor with one entry a filter, True where it is zero, as its bias is.

    Args:
        model: the model whose layers they are; it is not kept, and not written before :meth:`apply_`.
        filters: for each layer a bool tensor, or the numbers of the filters; what :meth:`state_dict` gave will do.

    Raises:
        TypeError, ValueError: names that are no such layers, two layers that share a weight, filters that do not fit.

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
        found = _named(function, model, filters)
        weights = {name: layer.weight for name, layer in found.items()}
        for name, weight in weights.items():
            other = next(other for other in weights if weights[other] is weight)
            if other != name:
                rule = "name layers with weights of their own"
                raise ValueError(sentence(function, "filters", rule, f"{name!r} with that of {other!r}"))
        self.filters = {
            name: _filters_of(function, name, parts_of(function, f"layer {name!r}", layer, computed=True), given)
            for (name, layer), given in zip(found.items(), filters.values(), strict=True)
        }

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}: {int(zero.sum())} of {len(zero)}" for name, zero in self.filters.items())
        return f"FilterMask({counts})"

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
            layers: their names; all convolutions, transposed ones and Linear layers unless given, the classifier at
                the end with them, whose filters are classes.
        """
        function = "FilterMask.by_norm"
        if isinstance(p, bool) or p not in (1, 2):
            raise ValueError(sentence(function, "p", "be 1 or 2", repr(p)))
        scores = {}
        for name, parts in _chosen(function, model, layers).items():
            rows = parts.by_filter(parts.weight).abs().double().flatten(1)
            norms = rows.pow(p).mean(1).pow(1 / p)
            scores[name] = norms if rows.shape[1] else torch.zeros_like(norms)
            if not bool(scores[name].isfinite().all()):
                raise ValueError(sentence(function, "model", "have filters of finite norm", f"others in {name!r}"))
        return cls(model, _lowest(function, scores, ratio, scope))

    @classmethod
    def at_random(
        cls, model: nn.Module, ratio: float, *, seed: int, scope: Scope = "layer", layers: Iterable[str] | None = None
    ) -> FilterMask:
        """As many filters by chance, drawn from ``seed`` and the layers' names: the same ones everywhere."""
        function = "FilterMask.at_random"
        check.within(function, "seed", seed, 2**64)
        scores = {
            name: noise(parts.channels(OUT), seed=seed, stream=name, distribution="uniform", dtype=torch.float64)
            for name, parts in _chosen(function, model, layers).items()
        }
        return cls(model, _lowest(function, scores, ratio, scope))

    @classmethod
    def from_torch_prune(cls, model: nn.Module) -> FilterMask:
        """The filters that ``torch.nn.utils.prune`` has masked whole; a mask of single elements is an error.

        Their biases are zero in a FilterMask, where torch leaves those alone that it was not told to prune.
        """
        function = "FilterMask.from_torch_prune"
        filters = {}
        for name, layer in _model(function, model).named_modules():
            kept = getattr(layer, "weight_mask", None)
            if kept is None:
                continue
            parts = parts_of(function, f"layer {name!r}", layer, computed=True)
            rows = parts.by_filter(kept).flatten(1) != 0
            if not bool((rows.all(1) | ~rows.any(1)).all()):
                rule, got = "mask whole filters", f"single elements of {name!r}"
                raise ValueError(sentence(function, "model", rule, got))
            filters[name] = ~rows.any(1)
        if not filters:
            raise ValueError(sentence(function, "model", "hold layers that torch.nn.utils.prune has pruned", "none"))
        return cls(model, filters)

    def apply_(self, model: nn.Module) -> nn.Module:
        """Set the filters to zero, in one call for each device, to which the masks move; returns the model."""
        self._fill("FilterMask.apply_", _named("FilterMask.apply_", model, self.filters))
        return model

    def keep(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Apply it now and after each ``optimizer.step()``, momentum or not, until the handle is removed.

        The parameters are those that the model's layers have at that time, the filters those that are in the mask. A
        copy of the optimizer does not have the hook.
        """
        function = "FilterMask.keep"
        if not isinstance(optimizer, torch.optim.Optimizer):
            rule = "be a torch.optim.Optimizer"
            raise TypeError(sentence(function, "optimizer", rule, type(optimizer).__name__))
        layers = _named(function, model, self.filters)
        self._fill(function, layers)
        return optimizer.register_step_post_hook(lambda *_: self._fill(function, layers))

    def sparsity(self) -> float:
        """The share of zero filters among those of its layers."""
        total = sum(map(len, self.filters.values()))
        return sum(int(zero.sum()) for zero in self.filters.values()) / total if total else 0.0

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
            check.dense(function, f"state of {name}", zero)
            if zero.dtype != torch.bool or zero.shape != mine.shape:
                got = f"{check.name(zero.dtype)} {tuple(zero.shape)}"
                raise ValueError(sentence(function, f"state of {name}", f"be bool of shape {tuple(mine.shape)}", got))
        self.filters = {name: zero.detach().to(self.filters[name].device, copy=True) for name, zero in state.items()}

    def to_torch_prune(self, model: nn.Module) -> nn.Module:
        """Hand the masks over to ``torch.nn.utils.prune``, for weights and biases; returns the model."""
        function = "FilterMask.to_torch_prune"
        masks: list[tuple[nn.Module, str, torch.Tensor]] = []
        for name, layer in _named(function, model, self.filters).items():
            parts, zero = self._parts(function, name, layer)
            weight, zeros = parts.masked(OUT, zero)
            masks.append((layer, "weight", ~zeros.expand(weight.shape).reshape(parts.weight.shape)))
            if parts.bias is not None:
                masks.append((layer, "bias", ~zero))
        for layer, part, kept in masks:
            prune.custom_from_mask(layer, part, kept)
        return model

    def _fill(self, function: str, layers: Mapping[str, nn.Module]) -> None:
        weights, masks = [], []
        for name, layer in layers.items():
            parts, zero = self._parts(function, name, layer)
            weight, mask = parts.masked(OUT, zero)
            weights.append(weight)
            masks.append(mask)
            if parts.bias is not None:
                weights.append(parts.bias)
                masks.append(zero)
        fill_(weights, masks, frozen=True)

    def _parts(self, function: str, name: str, layer: nn.Module) -> tuple[Parts, torch.Tensor]:
        """A layer's parts, and its mask, from now on where they are."""
        parts, zero = parts_of(function, f"layer {name!r}", layer), self.filters[name]
        if parts.channels(OUT) != len(zero):
            rule = f"have {len(zero)} filters"
            raise ValueError(sentence(function, f"layer {name!r}", rule, f"{parts.channels(OUT)}"))
        if zero.device != parts.weight.device:
            zero = self.filters[name] = zero.to(parts.weight.device)
        return parts, zero


def _model(function: str, model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(sentence(function, "model", "be a torch.nn.Module", type(model).__name__))
    return model


def _named(function: str, model: Any, names: Iterable[Any]) -> dict[str, nn.Module]:
    """The layers of these names, with or without what wrappers add to them."""
    layers: dict[str, nn.Module] = {}
    for name, layer in _model(function, model).named_modules(remove_duplicate=False):
        layers.setdefault(unwrapped(name), layer)
    found: dict[str, nn.Module] = {}
    for given in names:
        name = unwrapped(given) if isinstance(given, str) else None
        if name is None or name not in layers:
            raise ValueError(sentence(function, "layers", "be names of the model's layers", repr(given)))
        if name in found:
            raise ValueError(sentence(function, "layers", "name each layer once", f"{given!r} twice"))
        if not has_filters(layers[name]):
            got = f"{type(layers[name]).__name__} under {given!r}"
            raise TypeError(sentence(function, "layers", "be convolutions or Linear layers", got))
        found[name] = layers[name]
    return found


def _chosen(function: str, model: Any, names: Iterable[str] | None) -> dict[str, Parts]:
    """The layers of these names, or all that have filters, those that share a weight once."""
    if names is None:
        layers = {name: layer for name, layer in _model(function, model).named_modules() if has_filters(layer)}
        first = {id(layer.weight): name for name, layer in reversed(layers.items())}
        names = [name for name, layer in layers.items() if first[id(layer.weight)] == name]
        if not names:
            raise ValueError(sentence(function, "model", "have convolutions or Linear layers", type(model).__name__))
    elif isinstance(names, str):
        names = [names]
    elif not isinstance(names, Iterable):
        raise TypeError(sentence(function, "layers", "be names of layers", repr(names)))
    found = _named(function, model, names)
    if not found:
        raise ValueError(sentence(function, "layers", "name a layer", "none"))
    return {name: parts_of(function, f"layer {name!r}", layer, computed=True) for name, layer in found.items()}


def _filters_of(function: str, name: str, parts: Parts, given: Any) -> torch.Tensor:
    count, argument = parts.channels(OUT), f"filters of {name}"
    if isinstance(given, torch.Tensor) and given.dtype == torch.bool:
        check.dense(function, argument, given)
        if tuple(given.shape) != (count,):
            must = f"have one entry for each of {count} filters"
            raise ValueError(sentence(function, argument, must, f"shape {tuple(given.shape)}"))
        return given.detach().to(parts.weight.device, copy=True)
    zero = torch.zeros(count, dtype=torch.bool, device="cpu")
    zero[positions_of(function, argument, given, count)] = True
    return zero.to(parts.weight.device)


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
        zero = torch.zeros(len(together), dtype=torch.bool, device="cpu")
        zero[together.argsort(stable=True)[: math.floor(number * len(together) + 1e-9)]] = True  # 0.29 of 100 are 29
        chosen.update(zip(part, zero.split([len(score) for score in part.values()]), strict=True))
    for name, zero in chosen.items():
        if zero.numel() and bool(zero.all()):
            raise ValueError(sentence(function, "ratio", f"leave a filter of {name}", ratio))
    return chosen
