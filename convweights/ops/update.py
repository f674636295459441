"""The verb *update*: ``w = decay * w + shift + scale * noise(seed, step, stream, index)`` over a list of tensors.

The public functions. The noise is defined in convweights/stream.py.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal

import torch

from convweights.ops import check
from convweights.ops.update_call import P, update_as

Distribution = Literal["normal", "uniform", "rademacher", "none"]

MOST_SEEDS = 1024


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
            once, by the name that comes first. Parameters that do not require a gradient are skipped, but for one
            that is given by itself. DTensors, of fully_shard for instance, are pieces of what they are sharded from.
        decay, shift, scale: finite numbers. A negative scale is the opposite direction.
        seed: 0 .. 2^64 - 1; needed where noise is drawn or rounding is stochastic. Or an int64 tensor of two, seed
            and step, on the weights' device, which is read when the kernel runs: a CUDA graph can be replayed with
            new ones, and a compiled function need not be compiled again for each step.
        step: 0 .. 2^32 - 1, such as the training step: another step has other noise.
        stream: which noise of that seed and step. A tensor needs one, a name or a number of 0 .. 2^32 - 1. In a list
            the default are 0, 1, 2, ... by position, so a module's parameters in a list get other noise than the
            module. In a dict or module the names give it, so that it is left out;
            what torch.compile, FSDP and DDP put into names does not count.
        distribution: "normal" (mean 0, variance 1), "uniform" on (-1, 1), "rademacher" (1 or -1), "none".
        mask: a bool tensor that broadcasts to the weight's shape; where it is False the weight keeps its bits. For a
            list a list of them or of None, for a dict or a module a dict; what it does not name is written whole.
        rounding: "nearest" (ties to even), or "stochastic" for float16 and bfloat16: to one of the two neighbours,
            with a probability by nearness, so that small updates are not lost on average. It is drawn from seed, step
            and stream, so each call wants a step of its own, or the same elements are rounded up every time.
        box: for a tensor that is a piece of a larger one: (shape of the whole, offset in it). A list or a dict where
            ``params`` is one. DTensors know theirs.
        frozen: write parameters that do not require a gradient, too.

    Under torch.compile numbers are constants: a function is compiled again for each other step, scale or shift, up to
    torch's limit. A seed tensor is none.

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
            [ 0.5000,  0.5000]])
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
            [-0.7408,  0.0996,  0.2154]])
    """
    function = "noise"
    try:
        sizes = [operator.index(shape)]  # type: ignore[arg-type]
    except TypeError:
        if isinstance(shape, str) or not isinstance(shape, Iterable):
            raise TypeError(f"{function}: shape must be an int or a list of them, got {shape!r}") from None
        sizes = [check.integer(function, "shape", size) for size in shape]
    if any(size < 0 for size in sizes):
        raise ValueError(f"{function}: shape must be at least 0, got {min(sizes)}")
    if dtype not in check.COMPUTE_DTYPES:
        got = check.name(dtype) if isinstance(dtype, torch.dtype) else repr(dtype)
        raise TypeError(f"{function}: dtype must be float64, float32, float16 or bfloat16, got {got}")
    made = torch.empty(sizes, dtype=dtype, device=device)
    return update_as(
        function,
        made,
        decay=0.0,
        scales=[1.0],
        seeds=[seed],
        step=step,
        stream=stream,
        distribution=distribution,
        argument="shape",
    )


def _numbers(function: str, argument: str, values: Any) -> list[Any]:
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, (str, bytes, Mapping, Set)) or not isinstance(values, Iterable):
        raise TypeError(f"{function}: {argument} must be a list of numbers, got {values!r}")
    return [value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value for value in values]
