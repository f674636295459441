"""The verb *update* up to its operator: the schema, and the one road that all its functions take.

The functions are in update.py, the pure-torch reference is in update_reference.py; csrc/element and csrc/ops/update*.h
are the same meaning in C++.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from convweights.ops import check
from convweights.ops.initializers import Initializer
from convweights.ops.parameters import Params, resolve
from convweights.ops.pieces import Box
from convweights.ops.targets import Targets
from convweights.ops.update_reference import REFUSED, check_alike, reference_update_
from convweights.ops.versions import bump_versions, write
from convweights.stream import DISTRIBUTIONS

P = TypeVar("P", bound=Params)

_library = torch.library.Library("convweights", "FRAGMENT")
_library.define(
    "update_(Tensor(a!)[] weights, Tensor?[] masks, int[] streams, int[] boxes, int distribution, float decay, "
    "float shift, float[] scales, int[] seeds, int step, bool accumulate, bool stochastic, bool disjoint, "
    "Tensor? state) -> ()"
)
operator = torch.ops.convweights.update_.default


def update_as(
    function: str,
    params: P,
    *,
    decay: float = 1.0,
    shift: float = 0.0,
    scales: Sequence[float] = (0.0,),
    seeds: Sequence[Any] = (None,),
    step: int = 0,
    stream: Any = None,
    distribution: str = "normal",
    mask: Any = None,
    rounding: str = "nearest",
    box: Any = None,
    frozen: bool = False,
    accumulate: bool = False,
    names: tuple[str, str] = ("scale", "seed"),
    argument: str = "params",
) -> P:
    """:func:`update_` on behalf of ``function``, whose names errors carry."""
    check.choice(function, "distribution", distribution, DISTRIBUTIONS)
    check.choice(function, "rounding", rounding, ("nearest", "stochastic"))
    decay, shift = check.finite(function, "decay", decay), check.finite(function, "shift", shift)
    scales = [check.finite(function, names[0], scale) for scale in scales]
    stochastic = rounding == "stochastic"
    noisy = distribution != "none" and (accumulate or scales[0] != 0.0)
    step = check.within(function, "step", step, 2**32)
    state, seeds = _seeds(function, names[1], seeds, step, needed=noisy or stochastic)
    targets = resolve(
        function,
        params,
        stream=stream,
        mask=mask,
        box=box,
        frozen=frozen,
        draws=noisy or stochastic,
        argument=argument,
    )
    numbers = {"decay": decay, "shift": shift, names[0]: max(scales, key=abs)}
    recipe = (
        DISTRIBUTIONS.index(distribution) if noisy else 0,
        decay,
        shift,
        scales,
        seeds,
        step,
        accumulate,
        stochastic,
    )
    write((*targets.tensors, *targets.around), _run, targets, recipe, state, numbers, names[1])
    return params


def _run(
    targets: Targets,
    recipe: tuple[Any, ...],
    state: torch.Tensor | None,
    numbers: dict[str, float],
    seed: str,
) -> None:
    """Check and write. Native kernels find for themselves, and faster, that something is wrong with a weight."""
    tensors = targets.tensors
    if not tensors:
        return
    if state is not None:
        check.same_device(targets.function, seed, state, tensors[0])
    if torch.compiler.is_compiling():
        _check_dtypes(targets.checked(), stochastic=recipe[-1], numbers=numbers)
        operator(tensors, targets.masks, targets.streams, targets.boxes, *recipe, False, state)
        return
    quick = (
        _is_native(tensors[0].device.type)
        and not any(map(torch.Tensor.is_neg, tensors))
        and (torch.is_inference_mode_enabled() or not any(map(torch.Tensor.is_inference, tensors)))
        and max(map(abs, numbers.values())) < _SURELY_FINITE
    )
    if quick:
        try:
            operator(tensors, targets.masks, targets.streams, targets.boxes, *recipe, False, state)
            return
        except RuntimeError as error:
            # A refusal has written nothing: the checks below say what was refused, or that it was needless. What else
            # went wrong may have written, and must not be tried again.
            targets = targets.checked()
            if REFUSED not in str(error):
                raise
    else:
        targets = targets.checked()
    _check_dtypes(targets, stochastic=recipe[-1], numbers=numbers)
    if state is not None:
        for tensor in tensors:
            check.same_device(targets.function, seed, state, tensor)
    for part in targets.by_device():
        operator(part.tensors, part.masks, part.streams, part.boxes, *recipe, True, state)


# In float32; what is larger gets a second look.
_SURELY_FINITE = 1e38


@functools.cache
def _is_native(device: str) -> bool:
    """Whether a native kernel serves the device."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key("convweights::update_", key)


def initialize_as(
    function: str, weight: torch.Tensor, initializer: Initializer, box: Box | None = None
) -> torch.Tensor:
    """Fill a weight, or the piece ``box`` of one, on behalf of ``function``: a decay of 0, so that nothing is read."""
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{function}: weight must be a torch.Tensor, got {type(weight).__name__}")
    whole = weight.shape if box is None else torch.Size(box[0])
    shift, scale = initializer.checked(function, whole, weight.dtype)
    return update_as(
        function,
        weight,
        decay=0.0,
        shift=shift,
        scales=[scale],
        seeds=[initializer.seed],
        stream=initializer.stream,
        distribution=initializer.distribution,
        box=box,
        argument="weight",
    )


def _seeds(
    function: str, argument: str, seeds: Sequence[Any], step: int, *, needed: bool
) -> tuple[torch.Tensor | None, list[int]]:
    """The tensor of seed and step, where that is given, and the seeds as int64 of the same bits."""
    first = seeds[0]
    if isinstance(first, torch.Tensor) and first.ndim > 0 and len(seeds) == 1 and argument == "seed":
        if first.dtype != torch.int64 or tuple(first.shape) != (2,) or not first.is_contiguous():
            got = f"{check.name(first.dtype)} of shape {tuple(first.shape)}"
            raise TypeError(f"{function}: {argument} must be an int64 tensor of two, seed and step, got {got}")
        if step != 0:
            raise ValueError(
                f"{function}: step must be left out where {argument} is a tensor that holds it, got {step}"
            )
        return (first if needed else None), [0]
    if first is None:
        if needed:
            raise ValueError(
                f"{function}: {argument} must be given where noise is drawn or rounding is stochastic, got None; "
                f"pass a number, the experiment's"
            )
        return None, [0]
    numbers = [check.within(function, argument, seed, 2**64) for seed in seeds]
    return None, [number - 2**64 if number >= 2**63 else number for number in numbers]


def _check_dtypes(targets: Targets, *, stochastic: bool, numbers: dict[str, float]) -> None:
    dtypes = {tensor.dtype for tensor in targets.tensors}
    for dtype in dtypes if stochastic else ():
        if dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"{targets.function}: rounding must be 'nearest' for weights of {check.name(dtype)}, got 'stochastic'; "
                f"only float16 and bfloat16 round at random"
            )
    for argument, number in numbers.items() if dtypes != {torch.float64} else ():
        check.fits_float32(targets.function, argument, number)


_library.impl("update_", reference_update_, "CompositeExplicitAutograd")
bump_versions(_library, "update_", operator, lambda weights, *rest: weights)


@torch.library.register_fake("convweights::update_")
def _fake_update_(weights: Sequence[torch.Tensor], *rest: Any) -> None:
    check_alike(weights)
