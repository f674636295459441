"""Weights that are perturbed for as long as a block runs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

import torch

from convweights.ops import check
from convweights.ops.parameters import Params, resolve
from convweights.ops.targets import Targets
from convweights.steps.memory import Memory, Noise, memory_for
from convweights.stream import DISTRIBUTIONS

Restore = Literal["journal", "snapshot"]

# Blocks that have begun and not ended, in that order.
_open: list[perturbed] = []
_lock = threading.Lock()


class perturbed:
    """Weights moved by noise inside a ``with`` block, and back to the last bit behind it.

    Inside, the weights are what :func:`perturb_` with the same arguments makes of them, ``w + scale * noise``. However
    the block ends, they are what they were, NaN payloads and signs of zero included. Undoing a perturbation by its
    opposite loses digits: after 300 cycles bfloat16 weights have drifted by 7%.

    Blocks can be nested, also on the same weights: the inner one ends first. A block belongs to the thread that began
    it. The weights must not be changed by others inside, which the version counters of autograd tell.

    Args:
        params: as for :func:`perturb_`: a tensor (which needs ``stream``), a list, a dict or a module. Tied weights are
            perturbed once; parameters that do not require a gradient are left alone unless ``frozen``.
        scale: a finite number.
        seed, step, stream, distribution: which noise, as for :func:`update_`; the distribution is not "none".
        restore: "journal" keeps about 2.3 bits an element up to a scale of a twentieth of the weights' standard
            deviation: 7.3% of the bytes of large float32 weights, 13.6% of 16-bit ones. More noise needs more, 16% and
            22% at half the standard deviation, and so do tensors of few elements. Beyond that, and for float64 weights,
            tensors are copied; a warning says so where those are more than a twentieth of all bytes. "snapshot" copies
            all. Either is allocated by the first block and used again by the following ones on the same weights.
        frozen: perturb parameters that do not require a gradient, too.

    Raises:
        TypeError, ValueError: as :func:`perturb_`, when the block begins; nothing has been written.
        RuntimeError: at the end, or by :meth:`flip`, where somebody else has changed or replaced weights, for a block
            inside which another one has not ended, and in another thread. Nothing has been written.

    >>> import torch, convweights as cw
    >>> net = torch.nn.Linear(64, 64).bfloat16()
    >>> before = net.weight.clone()
    >>> with cw.perturbed(net, scale=1e-3, seed=0, step=7) as noise:
    ...     plus = net(torch.ones(64, dtype=torch.bfloat16))
    ...     noise.flip()
    ...     minus = net(torch.ones(64, dtype=torch.bfloat16))
    >>> torch.equal(net.weight, before), torch.equal(plus, minus)
    (True, False)
    """

    def __init__(
        self,
        params: Params,
        *,
        scale: float,
        seed: int,
        step: int = 0,
        distribution: Literal["normal", "uniform", "rademacher"] = "normal",
        restore: Restore = "journal",
        stream: Any = None,
        frozen: bool = False,
    ) -> None:
        function = "perturbed"
        check.choice(function, "restore", restore, ("journal", "snapshot"))
        check.choice(function, "distribution", distribution, DISTRIBUTIONS[1:])
        number = check.finite(function, "scale", scale)
        check.fits_float32(function, "scale", number)
        seed, step = check.within(function, "seed", seed, 2**64), check.within(function, "step", step, 2**32)
        self._params, self._stream, self._frozen, self._restore = params, stream, frozen, restore
        self._first = self._now = Noise(distribution, number, seed, step)
        self._parts: list[tuple[Targets, Memory]] = []
        self._held: dict[Any, Any] = {}
        self._seen: list[tuple[int, torch.Size, int]] = []
        self._thread: int | None = None

    @property
    def scale(self) -> float:
        """Of the noise that the weights are moved by at present."""
        return self._now.scale

    @property
    def nbytes(self) -> int:
        """Bytes that the journal and copies take, inside the block."""
        return sum(memory.nbytes for _, memory in self._parts)

    def __enter__(self) -> perturbed:
        if self._thread is not None:
            raise RuntimeError("perturbed: a block must begin once, got one that has begun; make another")
        parts = [part for part in self._targets().by_device() if part.tensors]
        with _lock:
            mine = {place for part in parts for place in _places(part)}
            if any(block._thread != threading.get_ident() and mine & block._reach() for block in _open):
                raise RuntimeError(
                    "perturbed: params must not be inside a block of another thread, got some that are; "
                    "let that block end first"
                )
            for part in parts:  # not in a comprehension, which would be a frame of its own to a warning
                self._parts.append((part, memory_for(part, self._first, self._restore)))
            for _, memory in self._parts:
                memory.busy = True
            self._thread = threading.get_ident()
            self._held = _held(self._params)
            _open.append(self)
        try:
            if self._first.scale:
                for part, memory in self._parts:
                    memory.enter(part, self._first)
            self._see()
        except BaseException:
            self._close()
            raise
        return self

    def flip(self) -> None:
        """Move the weights by the opposite of the noise: they become what perturbing them by ``-scale`` gives."""
        self._check_turn("flip")
        self._check_versions()
        if self._first.scale:
            for part, memory in self._parts:
                memory.flip(part, self._first, self._now)
        self._now = self._now.opposite()
        self._see()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._check_turn("end")
        try:
            self._check_parameters()
            self._check_versions()
            if self._first.scale:
                for part, memory in self._parts:
                    memory.leave(part, self._first)
        finally:
            self._close()

    def _targets(self) -> Targets:
        return resolve("perturbed", self._params, stream=self._stream, frozen=self._frozen).checked()

    def _reach(self) -> set[int]:
        return {place for part, _ in self._parts for place in _places(part)}

    def _see(self) -> None:
        """Where the weights are, and their versions, until the block writes again."""
        self._seen = [_seen(tensor) for part, _ in self._parts for tensor in part.tensors]

    def _close(self) -> None:
        with _lock:
            _open.remove(self)
            mine = self._reach()
            for _, memory in self._parts:
                memory.busy = False
            self._parts = []
            # The versions that this block has left are those that the ones around it will find.
            for block in _open:
                if mine & block._reach():
                    block._see()

    def _check_turn(self, action: str) -> None:
        if self not in _open:
            raise RuntimeError(f"perturbed: a block must be open to {action}, got one that is not; use it in a with")
        if threading.get_ident() != self._thread:
            raise RuntimeError(f"perturbed: a block must {action} in the thread that began it, got another thread")
        inside = _open[_open.index(self) + 1 :]
        if any(self._reach() & block._reach() for block in inside):
            raise RuntimeError(
                f"perturbed: a block must {action} outside of those that began after it on the same weights, "
                f"got one that is open; end that one first"
            )

    def _check_parameters(self) -> None:
        """That none has been replaced."""
        held = _held(self._params)
        same = held.keys() == self._held.keys() and all(held[name] is tensor for name, tensor in self._held.items())
        if not same:
            raise RuntimeError(
                "perturbed: params must have the same parameters when the block ends, got others; "
                "they are left as they are"
            )

    def _check_versions(self) -> None:
        """That the weights are those which the block has left there."""
        labelled = [(part, i) for part, _ in self._parts for i in range(len(part.tensors))]
        for (part, i), seen in zip(labelled, self._seen, strict=True):
            if _seen(part.tensors[i]) != seen:
                raise RuntimeError(
                    f"perturbed: {part.label(i)} must not be changed inside the block, got a change by somebody else; "
                    f"the weights are left as they are"
                )


def _held(params: Any) -> dict[Any, Any]:
    """What a module or a dict holds now."""
    if isinstance(params, torch.nn.Module):
        return dict(params.named_parameters(remove_duplicate=False))
    return dict(params) if isinstance(params, Mapping) else {}


def _places(part: Targets) -> list[int]:
    return [tensor.data_ptr() for tensor in part.tensors if tensor.numel()]


def _seen(tensor: torch.Tensor) -> tuple[int, torch.Size, int]:
    """Inference tensors have no versions."""
    return tensor.data_ptr(), tensor.shape, 0 if tensor.is_inference() else tensor._version
