"""Weights that are updated after each step of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from convweights.ops import check
from convweights.ops.parameters import Params
from convweights.ops.update import update_

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
        distribution, rounding: as for :func:`update_`.

    Raises:
        TypeError, ValueError: no optimizer, one without parameters, numbers out of range.

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
    ) -> None:
        function = "PerturbHook"
        if not isinstance(optimizer, torch.optim.Optimizer):
            got = type(optimizer).__name__
            raise TypeError(f"{function}: optimizer must be a torch.optim.Optimizer, got {got}")
        if params is None and not any(group["params"] for group in optimizer.param_groups):
            raise ValueError(f"{function}: optimizer must have parameters, got none")
        if seed is not None:
            check.within(function, "seed", seed, 2**64)
        elif callable(scale) or scale != 0.0 or rounding == "stochastic":
            raise ValueError(f"{function}: seed must be given where noise is drawn, got None; pass a number")
        self.step = 0
        self.seed = seed
        self._numbers = {"scale": scale, "shift": shift, "decay": decay}
        for argument, number in self._numbers.items():
            if not callable(number):
                check.finite(function, argument, number)
        self._params, self._distribution, self._rounding = params, distribution, rounding
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
        if state["seed"] is not None:
            check.within(function, "seed", state["seed"], 2**64)
        self.step, self.seed = step, state["seed"]

    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        decay, shift, scale = (
            number(self.step) if callable(number) else number
            for number in map(self._numbers.__getitem__, ("decay", "shift", "scale"))
        )
        update_(
            _params_of(optimizer) if self._params is None else self._params,
            decay=decay,
            shift=shift,
            scale=scale,
            seed=self.seed,
            step=self.step,
            distribution=self._distribution,
            rounding=self._rounding,
        )
        self.step += 1


def _params_of(optimizer: torch.optim.Optimizer) -> Params:
    groups = optimizer.param_groups
    params = [param for group in groups for param in group["params"]]
    if all("param_names" in group for group in groups):
        return dict(zip((name for group in groups for name in group["param_names"]), params, strict=True))
    return params
