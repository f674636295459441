"""The verb *update*: ``w = decay * w + shift + scale * noise(seed, step, stream, index)`` over a list of tensors.

The schema, the public functions and their checks. The noise is defined in convweights/stream.py, the pure-torch
reference in update_reference.py; csrc/ops/update.h is the same meaning in C++.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch

from convweights.ops import check
from convweights.ops.initializers import Initializer
from convweights.ops.parameters import Params, Targets, resolve
from convweights.ops.update_reference import reference_update_
from convweights.stream import DISTRIBUTIONS

Distribution = Literal["normal", "uniform", "rademacher", "none"]
Place = tuple[Sequence[int], Sequence[int]]
P = TypeVar("P", bound=Params)

MOST_SEEDS = 1024

_library = torch.library.Library("convweights", "FRAGMENT")
_library.define(
    "update_(Tensor(a!)[] weights, Tensor?[] masks, int[] streams, int[] boxes, int distribution, float decay, "
    "float shift, float[] scales, int[] seeds, int step, bool accumulate, bool stochastic, bool disjoint, "
    "Tensor? state) -> ()"
)
_operator = torch.ops.convweights.update_.default


def update_(
    params: P,
    *,
    decay: float = 1.0,
    shift: float = 0.0,
    scale: float = 0.0,
    seed: int | torch.Tensor | None = None,
    step: int = 0,
    stream: Any = None,
    distribution: Distribution = "normal",
    mask: Any = None,
    rounding: Literal["nearest", "stochastic"] = "nearest",
    box: Any = None,
    frozen: bool = False,
) -> P:
    """Write ``decay * w + shift + scale * noise`` into every tensor of ``params``, in one pass, without allocating.

    The noise is a pure function of seed, step, stream and the element's place in the row-major order of its tensor:
    the same bits on every device, for every number of threads, memory format, dtype and sharding. Nothing is stored
    and no generator of torch is touched.

    Each operation is rounded on its own, in float32 (float64 for float64 weights, of the same float32 noise), then
    once to the weight's dtype. Terms that are absent change nothing: a decay of 1, a shift of 0, a scale of 0 (or
    distribution "none"); a decay of 0 does not read the weight.

    Equivalent to ``w.mul_(decay).add_(shift).add_(z, alpha=scale)`` for each tensor, but for the rounding, with
    ``z = cw.noise(w.shape, seed=seed, step=step, stream=stream, distribution=distribution)``.

    Args:
        params: what is written, of any strides and memory format, float64, float32, float16 or bfloat16. A tensor; a
            list; a dict of names; a module, whose parameters are meant and not its buffers. Tied ones are written
            once. Parameters that do not require a gradient are skipped, but for one that is given by itself.
        decay, shift, scale: finite numbers. A negative scale is the opposite direction.
        seed: 0 .. 2^64 - 1; needed where noise is drawn or rounding is stochastic. Or an int64 tensor of two, seed
            and step, on the weights' device, which is read when the kernel runs: a CUDA graph can be replayed with
            new ones.
        step: 0 .. 2^32 - 1, such as the training step: another step has other noise.
        stream: which noise of that seed and step. A tensor needs one, a name or a number of 0 .. 2^32 - 1. In a list
            the default are 0, 1, 2, ... by position. In a dict or module the names give it, so that it is left out;
            what torch.compile, FSDP and DDP put into names does not count.
        distribution: "normal" (mean 0, variance 1), "uniform" on (-1, 1), "rademacher" (1 or -1), "none".
        mask: a bool tensor that broadcasts to the weight's shape; where it is False the weight keeps its bits. A list
            or a dict of them, or of None, where ``params`` is one.
        rounding: "nearest" (ties to even), or "stochastic" for float16 and bfloat16: to one of the two neighbours,
            with a probability by nearness, so that small updates are not lost on average.
        box: for a tensor that is a piece of a larger one: (shape of the whole, offset in it). A list or a dict where
            ``params`` is one. DTensors know theirs.
        frozen: write parameters that do not require a gradient, too.

    Returns:
        ``params``.

    Raises:
        TypeError: no tensor, a dtype that does not compute, an argument of another type.
        ValueError: numbers out of range, a tensor listed twice or overlapping another, a mask that does not fit, noise
            without a seed, a tensor without a stream. Nothing has been written.

    >>> import torch, convweights as cw
    >>> cw.update_(torch.ones(3), decay=0.5, shift=-0.125)
    tensor([0.3750, 0.3750, 0.3750])
    >>> cw.update_(torch.zeros(2, 2), scale=0.5, seed=0, step=7, stream="fc.weight", distribution="rademacher")
    tensor([[ 0.5000, -0.5000],
            [-0.5000, -0.5000]])
    """
    return update_as(
        "update_",
        params,
        decay=decay,
        shift=shift,
        scales=[scale],
        seeds=[seed],
        step=step,
        stream=stream,
        distribution=distribution,
        mask=mask,
        rounding=rounding,
        box=box,
        frozen=frozen,
    )


def perturb_(
    params: P,
    *,
    scale: float,
    seed: int | torch.Tensor,
    step: int = 0,
    stream: Any = None,
    distribution: Distribution = "normal",
    mask: Any = None,
    rounding: Literal["nearest", "stochastic"] = "nearest",
    box: Any = None,
    frozen: bool = False,
) -> P:
    """Add ``scale * noise`` to every tensor of ``params``: :func:`update_` with noise and nothing else.

    Adding the opposite, with ``-scale``, brings weights back up to rounding, not to the bit.

    >>> import torch, convweights as cw
    >>> net = torch.nn.Linear(4, 2)
    >>> before = net.weight.clone()
    >>> cw.perturb_(net, scale=1e-3, seed=1, step=0) is net
    True
    >>> z = cw.noise((2, 4), seed=1, step=0, stream="weight")
    >>> torch.equal(net.weight, before + 1e-3 * z)
    True
    """
    return update_as(
        "perturb_",
        params,
        scales=[scale],
        seeds=[seed],
        step=step,
        stream=stream,
        distribution=distribution,
        mask=mask,
        rounding=rounding,
        box=box,
        frozen=frozen,
    )


def accumulate_noise_(
    params: P,
    seeds: Sequence[int],
    coefficients: Sequence[float],
    *,
    step: int = 0,
    decay: float = 1.0,
    distribution: Distribution = "normal",
    stream: Any = None,
    box: Any = None,
    frozen: bool = False,
) -> P:
    """Write ``decay * w + coefficients[0] * noise(seeds[0]) + ...``: K seeds, one read and one write of the weights.

    The update of zeroth-order training and of evolution strategies: what :func:`perturb_` adds for the same seed, step
    and params is what is weighed here. The sum of the noise starts at 0 and runs in the order of the seeds, in float32
    (float64 for float64 weights); the sum is then added to ``decay * w``.

    Args:
        params, step, distribution, stream, box, frozen: as for :func:`update_`.
        seeds: 1 to 1024 of them, 0 .. 2^64 - 1 each.
        coefficients: as many finite numbers.
        decay: a finite number.

    Raises:
        TypeError, ValueError: as :func:`update_`.

    >>> import torch, convweights as cw
    >>> w = cw.accumulate_noise_(torch.zeros(3), [5, 6], [0.5, -2.0], stream=0)
    >>> torch.equal(w, 0.5 * cw.noise(3, seed=5) + -2.0 * cw.noise(3, seed=6))
    True
    """
    function = "accumulate_noise_"
    seeds, coefficients = _numbers(function, "seeds", seeds), _numbers(function, "coefficients", coefficients)
    if not 1 <= len(seeds) <= MOST_SEEDS:
        raise ValueError(f"{function}: seeds must hold 1 .. {MOST_SEEDS} numbers, got {len(seeds)}")
    if len(coefficients) != len(seeds):
        raise ValueError(
            f"{function}: coefficients must hold one number for each of the {len(seeds)} seeds, got {len(coefficients)}"
        )
    if distribution == "none":
        raise ValueError(f"{function}: distribution must be one that draws noise, got 'none'")
    return update_as(
        function,
        params,
        decay=decay,
        scales=coefficients,
        seeds=seeds,
        step=step,
        stream=stream,
        distribution=distribution,
        box=box,
        frozen=frozen,
        accumulate=True,
        names=("coefficients", "seeds"),
    )


def noise(
    shape: int | Sequence[int],
    *,
    seed: int,
    step: int = 0,
    stream: int | str = 0,
    distribution: Distribution = "normal",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """A new tensor of the noise that :func:`update_` adds for the same seed, step and stream, unscaled.

    It is float32 noise, rounded once to ``dtype`` (float64, float32, float16 or bfloat16), the same on every device.

    >>> import torch, convweights as cw
    >>> cw.noise((2, 3), seed=0)
    tensor([[-1.2611,  0.4969,  0.2549],
            [-0.7408,  0.0996,  0.2153]])
    """
    function = "noise"
    sizes = [shape] if isinstance(shape, int) else list(shape)
    sizes = [check.integer(function, "shape", size, least=0) for size in sizes]
    if dtype not in check.COMPUTE_DTYPES:
        got = check.name(dtype) if isinstance(dtype, torch.dtype) else repr(dtype)
        raise TypeError(f"{function}: dtype must be float64, float32, float16 or bfloat16, got {got}")
    made = torch.empty(sizes, dtype=dtype, device=device)
    return update_as(
        function, made, decay=0.0, scales=[1.0], seeds=[seed], step=step, stream=stream, distribution=distribution
    )


def initialize_as(
    function: str, weight: torch.Tensor, initializer: Initializer, places: Sequence[Place] | None = None
) -> torch.Tensor:
    """Fill a weight, or the places of it, on behalf of ``function``: a decay of 0, so that nothing is read.

    A place is (offset, size); no two overlap. Their numbers are those that the whole weight would have there.
    """
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{function}: weight must be a torch.Tensor, got {type(weight).__name__}")
    shift, scale = initializer.checked(function, weight.shape)
    drawn = {"decay": 0.0, "shift": shift, "scales": [scale], "seeds": [initializer.seed]}
    if places is None:
        return update_as(
            function,
            weight,
            stream=initializer.stream,
            distribution=initializer.distribution,
            argument="weight",
            **drawn,  # type: ignore[arg-type]
        )
    views = []
    for offset, size in places:
        view = weight.detach()
        for dim, (start, length) in enumerate(zip(offset, size, strict=True)):
            view = view.narrow(dim, start, length)
        views.append(view)
    update_as(
        function,
        views,
        stream=[initializer.stream] * len(views),
        distribution=initializer.distribution,
        box=[(weight.shape, offset) for offset, _ in places],
        disjoint=True,
        argument="weight",
        **drawn,  # type: ignore[arg-type]
    )
    return weight


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
    disjoint: bool = False,
) -> P:
    """:func:`update_` on behalf of ``function``, whose names errors carry. ``disjoint``: no two params overlap."""
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
    numbers = {"decay": decay, "shift": shift, **{f"{names[0]}": max(scales, key=abs)}}
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
    with torch.no_grad():
        _run(targets, recipe, state, numbers, names[1], disjoint)
        if not torch.compiler.is_compiling():
            # A C++ operator does not do this by itself, and a stale graph would silently give a wrong gradient.
            torch.autograd.graph.increment_version(targets.tensors)
    return params


def _run(
    targets: Targets,
    recipe: tuple[Any, ...],
    state: torch.Tensor | None,
    numbers: dict[str, float],
    seed: str,
    disjoint: bool,
) -> None:
    """Check and write. Native kernels find for themselves, and faster, that something is wrong with a weight."""
    tensors = targets.tensors
    if not tensors:
        return
    if torch.compiler.is_compiling():
        _operator(tensors, targets.masks, targets.streams, targets.boxes, *recipe, disjoint, state)
        return
    quick = (
        _is_native(tensors[0].device.type)
        and not any(map(torch.Tensor.is_neg, tensors))
        and (torch.is_inference_mode_enabled() or not any(map(torch.Tensor.is_inference, tensors)))
        and max(map(abs, numbers.values())) < _SURELY_FINITE
    )
    if quick:
        try:
            _operator(tensors, targets.masks, targets.streams, targets.boxes, *recipe, disjoint, state)
            return
        except RuntimeError:
            pass
    targets = targets.checked()
    _check_dtypes(targets, stochastic=recipe[-1], numbers=numbers)
    if state is not None:
        for tensor in tensors:
            check.same_device(targets.function, seed, state, tensor)
    for part in targets.by_device():
        _operator(part.tensors, part.masks, part.streams, part.boxes, *recipe, True, state)


# In float32; what is larger gets a second look.
_SURELY_FINITE = 1e38


@functools.cache
def _is_native(device: str) -> bool:
    """Whether a native kernel serves the device."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key("convweights::update_", key)


def _numbers(function: str, argument: str, values: Any) -> list[Any]:
    if isinstance(values, torch.Tensor):
        values = values.tolist()
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{function}: {argument} must be a list of numbers, got {values!r}")
    return list(values)


def _seeds(
    function: str, argument: str, seeds: Sequence[Any], step: int, *, needed: bool
) -> tuple[torch.Tensor | None, list[int]]:
    """The tensor of seed and step, where that is given, and the seeds as int64 of the same bits."""
    first = seeds[0]
    if isinstance(first, torch.Tensor) and first.ndim > 0:
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
                f"{function}: {argument} must be given where noise is drawn, got None; pass a number, the experiment's"
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


@torch.library.register_fake("convweights::update_")
def _fake_update_(
    weights: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor | None],
    streams: Sequence[int],
    boxes: Sequence[int],
    distribution: int,
    decay: float,
    shift: float,
    scales: Sequence[float],
    seeds: Sequence[int],
    step: int,
    accumulate: bool,
    stochastic: bool,
    disjoint: bool,
    state: torch.Tensor | None,
) -> None:
    return None
