"""Weights that are perturbed for as long as a block runs."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import torch

from convweights.ops import check
from convweights.ops.parameters import Params, resolve
from convweights.ops.pieces import is_dtensor
from convweights.ops.targets import Targets
from convweights.steps.memory import Memory, Noise, give_back, memory_for
from convweights.stream import DISTRIBUTIONS

Restore = Literal["journal", "snapshot"]

# Blocks that have begun and not ended, in that order.
_open: list[weakref.ref[perturbed]] = []
_lock = threading.Lock()


class perturbed:
    """Weights moved by noise inside a ``with`` block, and back to the last bit behind it.

    Inside, the weights are what :func:`perturb_` with the same arguments makes of them, ``w + scale * noise``. However
    the block ends, they are what they were, NaN payloads and signs of zero included. Undoing a perturbation by its
    opposite loses digits: after 300 cycles bfloat16 weights have drifted by 7%.

    Blocks can be nested, also on the same weights: the inner one ends first. A block belongs to the thread that began
    it. The weights must not be changed by others inside: the version counters of autograd tell, which views of one
    tensor share, and which writes through ``.data`` go round. Nor must ``torch.set_flush_denormal``.

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
        self._marks: list[_Mark] = []
        self._thread: int | None = None
        self._sound = True  # but for an error in the middle of a flip

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
        if isinstance(self._params, Iterator):
            self._params = list(self._params)
        targets = resolve("perturbed", self._params, stream=self._stream, frozen=self._frozen).checked()
        parts: list[tuple[Targets, Memory]] = []
        marks = [_Mark(label, t) for label, t in _labelled(targets)]
        with _lock:
            others = [block for block in _blocks() if _share(block._marks, marks)]
            if any(block._thread != threading.get_ident() for block in others):
                raise RuntimeError(
                    "perturbed: params must not be inside a block of another thread, got some that are; "
                    "let that block end first"
                )
            for block in others:
                block._check_versions()
            try:
                for part in targets.by_device() if self._moves else ():
                    if part.tensors:
                        parts.append((part, memory_for(part, self._first, self._restore)))
            except BaseException:
                for part, memory in parts:
                    give_back(part, memory, sound=True)
                raise
            self._thread, self._held = threading.get_ident(), _held(self._params)
            self._parts, self._marks = parts, marks
            _open.append(weakref.ref(self))
        try:
            for part, memory in parts:
                memory.enter(part, self._first)
            self._mark()
            self._warn()
        except BaseException:
            self._sound = False
            self._restore_all()
            raise
        return self

    def flip(self) -> None:
        """Move the weights by the opposite of the noise: they become what perturbing them by ``-scale`` gives."""
        self._check_turn("flip")
        if not self._sound:
            raise RuntimeError("perturbed: a block must end after an error in flip, got another flip")
        self._check_parameters()
        self._check_versions()
        self._sound = False
        try:
            for part, memory in self._parts:
                memory.flip(part, self._first, self._now)
            self._now = self._now.opposite()
            self._sound = True
        finally:
            # Whatever it was that went wrong, it was this block that wrote, and it can bring all of it back.
            self._mark()
        self._warn()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._check_turn("end")
        try:
            self._check_parameters()
            self._check_versions()
        except BaseException:
            self._sound = False
            self._close()
            raise
        self._restore_all()

    @property
    def _moves(self) -> bool:
        """Whether there is noise at all: a scale that float32 takes for 0 is one."""
        return float(torch.tensor(self._first.scale, dtype=torch.float32, device="cpu")) != 0.0

    def _restore_all(self) -> None:
        try:
            for part, memory in self._parts:
                memory.leave(part, self._first)
            # The versions that this block has left are those that the ones around it will find.
            with _lock:
                for block in _blocks():
                    if block is not self:
                        block._mark(self._marks)
        except BaseException:
            self._sound = False
            raise
        finally:
            self._close()

    def _close(self) -> None:
        with _lock:
            _open[:] = [reference for reference in _open if reference() not in (self, None)]
        for part, memory in self._parts:
            give_back(part, memory, sound=self._sound)
        self._parts, self._marks = [], []

    def _mark(self, written: Sequence[_Mark] | None = None) -> None:
        """Take weights as they are for what this block has left; those that share memory with some, or all."""
        for mark in self._marks:
            if written is None or _share([mark], written):
                mark.take()

    def _warn(self) -> None:
        for _, memory in self._parts:
            said, memory.unsaid = memory.unsaid, []
            for words in said:
                warnings.warn(words, stacklevel=3)

    def _check_turn(self, action: str) -> None:
        blocks = _blocks()
        if self not in blocks:
            raise RuntimeError(f"perturbed: a block must be open to {action}, got one that is not; use it in a with")
        if threading.get_ident() != self._thread:
            raise RuntimeError(f"perturbed: a block must {action} in the thread that began it, got another thread")
        inside = blocks[blocks.index(self) + 1 :]
        if any(_share(self._marks, block._marks) for block in inside):
            raise RuntimeError(
                f"perturbed: a block must {action} outside of those that began after it on the same weights, "
                f"got one that is open; end that one first"
            )

    def _check_parameters(self) -> None:
        """That none has been replaced."""
        held = _held(self._params)
        if held.keys() != self._held.keys() or any(held[name] is not tensor for name, tensor in self._held.items()):
            raise RuntimeError(
                "perturbed: params must have the parameters it had when the block began, got others, and they are left "
                "as they are; with fully_shard pass reshard_after_forward=True"
            )

    def _check_versions(self) -> None:
        """That the weights are those which the block has left there."""
        for mark in self._marks:
            if mark.has_changed():
                raise RuntimeError(
                    f"perturbed: {mark.label} must not be changed inside the block, got a change by somebody else; "
                    f"the weights are left as they are"
                )


class _Mark:
    """A weight, where it was and in which version when a block last looked. The memory is held, so that nothing else
    comes to lie there.
    """

    def __init__(self, label: str, tensor: torch.Tensor) -> None:
        self.label, self._tensor, self._memory = label, tensor, _local(tensor).detach()
        self.storage = self._memory.untyped_storage().data_ptr()
        self.take()

    def take(self) -> None:
        self._seen = self._look()

    def has_changed(self) -> bool:
        return self._look() != self._seen

    def _look(self) -> tuple[object, ...]:
        """Inference tensors have no versions."""
        local = _local(self._tensor)
        version = 0 if self._tensor.is_inference() else self._tensor._version
        inner = 0 if local.is_inference() else local._version
        return local.data_ptr(), local.dtype, local.shape, local.stride(), version, inner


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Of a DTensor what this process has of it."""
    if not is_dtensor(tensor):
        return tensor
    held: Any = tensor
    local: torch.Tensor = held._local_tensor
    return local


def _labelled(targets: Targets) -> list[tuple[str, torch.Tensor]]:
    """The weights under their names, and the DTensors whose parts are among them."""
    named = [(targets.label(i), tensor) for i, tensor in enumerate(targets.tensors) if tensor.numel()]
    return named + [(targets.argument, tensor) for tensor in targets.around]


def _share(marks: Sequence[_Mark], others: Sequence[_Mark]) -> bool:
    """Whether some of them lie in one storage."""
    return not {mark.storage for mark in marks}.isdisjoint(mark.storage for mark in others)


def _blocks() -> list[perturbed]:
    return [block for reference in _open if (block := reference()) is not None]


def _held(params: Any) -> dict[Any, Any]:
    """What a module or a dict holds now."""
    if isinstance(params, torch.nn.Module):
        return dict(params.named_parameters(remove_duplicate=False))
    return dict(params) if isinstance(params, Mapping) else {}
