"""Seeded initialisers as values: what a weight of a given shape starts from, as terms of the update verb."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from convweights.ops import check
from convweights.ops.streams import stream_number

Mode = Literal["fan_in", "fan_out"]
Shape = torch.Size | tuple[int, ...]


@dataclass(frozen=True)
class Initializer:
    """A distribution and the noise to draw it from: ``seed`` as for :func:`~convweights.noise`, ``stream`` likewise."""

    seed: int = field(kw_only=True)
    stream: int | str = field(kw_only=True)
    distribution: ClassVar[Literal["normal", "uniform"]]
    arguments: ClassVar[str]  # what its size follows from

    def checked(self, function: str, shape: Shape, dtype: torch.dtype, where: str = "") -> tuple[float, float]:
        """``shift`` and ``scale`` for such a weight, once every argument is found to make sense for it.

        ``where`` stands behind an argument's name in errors.
        """
        check.within(function, f"seed{where}", self.seed, 2**64)
        stream_number(function, f"stream{where}", self.stream)
        shift, scale = self.terms(function, shape, where)
        for number in (shift, scale) if dtype != torch.float64 else ():
            check.fits_float32(function, self.arguments + where, number)
        return shift, scale

    def terms(self, function: str, shape: Shape, where: str = "") -> tuple[float, float]:
        raise NotImplementedError


@dataclass(frozen=True)
class Normal(Initializer):
    """Mean ``mean``, standard deviation ``std``."""

    mean: float = 0.0
    std: float = 1.0
    distribution = "normal"
    arguments = "mean and std"

    def terms(self, function: str, shape: Shape, where: str = "") -> tuple[float, float]:
        return check.finite(function, f"mean{where}", self.mean), _at_least_0(function, f"std{where}", self.std)


@dataclass(frozen=True)
class Uniform(Initializer):
    """Between ``a`` and ``b``, which rounding may reach."""

    a: float = 0.0
    b: float = 1.0
    distribution = "uniform"
    arguments = "a and b"

    def terms(self, function: str, shape: Shape, where: str = "") -> tuple[float, float]:
        a, b = check.finite(function, f"a{where}", self.a), check.finite(function, f"b{where}", self.b)
        if a > b:
            raise ValueError(f"{function}: a{where} must be at most b, got {a} and {b}")
        return a + (b - a) / 2, (b - a) / 2


@dataclass(frozen=True)
class _Kaiming(Initializer):
    a: float = 0.0
    mode: Mode = "fan_in"
    nonlinearity: str = "leaky_relu"
    arguments = "a"

    def std(self, function: str, shape: Shape, where: str) -> float:
        check.choice(function, f"mode{where}", self.mode, ("fan_in", "fan_out"))
        a = check.finite(function, f"a{where}", self.a)
        try:
            gain = float(torch.nn.init.calculate_gain(self.nonlinearity, a))  # type: ignore[arg-type]
        except OverflowError:
            raise ValueError(f"{function}: a{where} must have a finite square, got {a}") from None
        except ValueError:
            raise ValueError(
                f"{function}: nonlinearity{where} must be one that torch.nn.init.calculate_gain knows, "
                f"got {self.nonlinearity!r}"
            ) from None
        fan_in, fan_out = fans(function, shape)
        return gain / math.sqrt(max(1, fan_in if self.mode == "fan_in" else fan_out))


@dataclass(frozen=True)
class KaimingNormal(_Kaiming):
    """He et al., 2015: mean 0, standard deviation gain / sqrt(fan); arguments as ``torch.nn.init.kaiming_normal_``."""

    distribution = "normal"

    def terms(self, function: str, shape: Shape, where: str = "") -> tuple[float, float]:
        return 0.0, self.std(function, shape, where)


@dataclass(frozen=True)
class KaimingUniform(_Kaiming):
    """He et al., 2015: between plus and minus gain * sqrt(3 / fan); arguments as ``kaiming_uniform_`` of torch."""

    distribution = "uniform"

    def terms(self, function: str, shape: Shape, where: str = "") -> tuple[float, float]:
        return 0.0, math.sqrt(3.0) * self.std(function, shape, where)


@dataclass(frozen=True)
class _Xavier(Initializer):
    gain: float = 1.0
    arguments = "gain"

    def std(self, function: str, shape: Shape, where: str) -> float:
        gain = _at_least_0(function, f"gain{where}", self.gain)
        return gain * math.sqrt(2.0 / max(1, sum(fans(function, shape))))


@dataclass(frozen=True)
class XavierNormal(_Xavier):
    """Glorot, Bengio, 2010: mean 0, standard deviation gain * sqrt(2 / (fan_in + fan_out))."""

    distribution = "normal"

    def terms(self, function: str, shape: Shape, where: str = "") -> tuple[float, float]:
        return 0.0, self.std(function, shape, where)


@dataclass(frozen=True)
class XavierUniform(_Xavier):
    """Glorot, Bengio, 2010: between plus and minus gain * sqrt(6 / (fan_in + fan_out))."""

    distribution = "uniform"

    def terms(self, function: str, shape: Shape, where: str = "") -> tuple[float, float]:
        return 0.0, math.sqrt(3.0) * self.std(function, shape, where)


# By the words of rules and flags.
INITIALIZERS: dict[str, type[Initializer]] = {
    "normal": Normal,
    "uniform": Uniform,
    "kaiming_normal": KaimingNormal,
    "kaiming_uniform": KaimingUniform,
    "xavier_normal": XavierNormal,
    "xavier_uniform": XavierUniform,
}


def fans(function: str, shape: Shape) -> tuple[int, int]:
    """fan_in and fan_out of a weight ``(out, in, ...)`` as torch.nn.init counts them.

    They are read off the shape, whatever the layer: of a grouped convolution ``(O, I / groups, ...)``, of a
    transposed one ``(I, O / groups, ...)``, whose fan_in torch takes for O / groups times the kernel's size.
    """
    if len(shape) < 2:
        raise ValueError(f"{function}: weight must have at least 2 dimensions for a fan, got shape {tuple(shape)}")
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def _at_least_0(function: str, argument: str, value: Any) -> float:
    number = check.finite(function, argument, value)
    if number < 0:
        raise ValueError(f"{function}: {argument} must be at least 0, got {number}")
    return number
