"""Weights that are updated after each step of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch

from convweights.ops import check
from convweights.ops.parameters import Params
from convweights.ops.update_call import update_as

Schedule = float | Callable[[int], float]


class PerturbHook:
    """Write ``decay * w + shift + scale * noise`` into an optimizer's parameters after each of its steps.

    The first step draws the noise of ``step`` 0, the next one that of 1, and so on; what has been drawn is not stored,
    so that a run that is resumed from :meth:`state_dict` goes on with the same bits.

    Args:
        optimizer: its parameters are written, those of groups that are added later, too. Their streams are their
            positions, or their names where the optimizer was given ``model.named_parameters()``.
        scale, shift, decay: numbers, or functions of the step that give one.
        seed: the experiment's, 0 .. 2^64 - 1.
        params: what to write instead, as for :func:`update_`; a module, for the streams of its names.
        distribution, rounding, frozen: as for :func:`update_`.

    Raises:
        TypeError, ValueError: no optimizer, one without parameters, arguments that :func:`update_` would refuse; what a
            schedule gives is only seen when its step comes.

    >>> import torch, convweights as cw
    >>> net = torch.nn.Linear(4, 2)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> hook = cw.PerturbHook(optimizer, scale=lambda step: 1e-3 / (1 + step), seed=0, params=net)
    >>> net(torch.ones(4)).sum().backward()
    >>> optimizer.step()
    >>> hook.state_dict()
    {'step': 1, 'seed': 0}
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        scale: Schedule = 0.0,
        seed: int | None = None,
        shift: Schedule = 0.0,
        decay: Schedule = 1.0,
        params: Params | None = None,
        distribution: Literal["normal", "uniform", "rademacher", "none"] = "normal",
        rounding: Literal["nearest", "stochastic"] = "nearest",
        frozen: bool = False,
    ) -> None:
        function = "PerturbHook"
        if not isinstance(optimizer, torch.optim.Optimizer):
            got = type(optimizer).__name__
            raise TypeError(f"{function}: optimizer must be a torch.optim.Optimizer, got {got}")
        if params is None and not any(group["params"] for group in optimizer.param_groups):
            raise ValueError(f"{function}: optimizer must have parameters, got none")
        self.step, self.seed = 0, seed
        self._decay, self._shift, self._scale = decay, shift, scale
        if isinstance(params, torch.Tensor):
            params = [params]
        self._params: Params | None = list(params) if isinstance(params, Iterator) else params
        self._options: dict[str, Any] = {"distribution": distribution, "rounding": rounding, "frozen": frozen}
        self._draws = (distribution != "none" and (callable(scale) or scale != 0.0)) or rounding == "stochastic"
        if self._draws or seed is not None:
            self._check_seed(function, seed)
        # A rehearsal on nothing finds what an update would refuse.
        empty = _emptied(_params_of(optimizer) if self._params is None else self._params)
        numbers = [0.0 if callable(number) else number for number in (decay, shift, scale)]
        self._update(empty, *numbers)
        self._handle = optimizer.register_step_post_hook(self._after)

    def remove(self) -> None:
        """Let the optimizer step without it."""
        self._handle.remove()

    def state_dict(self) -> dict[str, int | None]:
        """The number of the next step, and the seed."""
        return {"step": self.step, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        function = "PerturbHook.load_state_dict"
        if not isinstance(state, Mapping) or set(state) != {"step", "seed"}:
            raise ValueError(f"{function}: state must hold step and seed, got {state!r}")
        step = check.within(function, "step", state["step"], 2**32)
        if self._draws or state["seed"] is not None:
            self._check_seed(function, state["seed"])
        self.step, self.seed = step, state["seed"]

    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        asked = (self._decay, self._shift, self._scale)
        numbers = [number(self.step) if callable(number) else number for number in asked]
        self._update(_params_of(optimizer) if self._params is None else self._params, *numbers)
        self.step += 1

    def _update(self, params: Params, decay: float, shift: float, scale: float) -> None:
        update_as(
            "PerturbHook",
            params,
            decay=decay,
            shift=shift,
            scales=[scale],
            seeds=[self.seed],
            step=self.step,
            **self._options,
        )

    @staticmethod
    def _check_seed(function: str, seed: int | None) -> None:
        if seed is None:
            raise ValueError(f"{function}: seed must be given where noise is drawn, got None; pass a number")
        check.within(function, "seed", seed, 2**64)


def _emptied(params: Params) -> Params:
    """The same names, dtypes and flags without elements."""

    def of(tensor: Any) -> Any:
        if not isinstance(tensor, torch.Tensor):
            return tensor
        made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return torch.nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else made

    if isinstance(params, torch.nn.Module):
        params = dict(params.named_parameters())
    if isinstance(params, Mapping):
        return {name: of(tensor) for name, tensor in params.items()}
    return [of(tensor) for tensor in params] if isinstance(params, Iterable) else params


def _params_of(optimizer: torch.optim.Optimizer) -> Params:
    groups = optimizer.param_groups
    params = [param for group in groups for param in group["params"]]
    if all("param_names" in group for group in groups):
        return dict(zip((name for group in groups for name in group["param_names"]), params, strict=True))
    return params
