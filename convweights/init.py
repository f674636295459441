"""Seeded initialisation: ``torch.nn.init``'s functions and arguments, with noise that is the same bits everywhere.

The distributions are torch's, the numbers are those of the project's own stream (:func:`convweights.noise`): a pure
function of seed, stream and place, the same for every device, dtype, memory format and sharding. The weight is not
read, nothing is allocated, no generator of torch is touched. ``seed`` is the experiment, ``stream`` the weight's name
or a number: two weights of one shape need two streams, or they start alike.

The capitalised names are the same as values, for ``fill=`` of :func:`convweights.transfer_`.
"""

from __future__ import annotations

import torch

from convweights.ops.initializers import (
    Initializer,
    KaimingNormal,
    KaimingUniform,
    Mode,
    Normal,
    Uniform,
    XavierNormal,
    XavierUniform,
)
from convweights.ops.update_call import initialize_as

__all__ = [
    "Initializer",
    "KaimingNormal",
    "KaimingUniform",
    "Normal",
    "Uniform",
    "XavierNormal",
    "XavierUniform",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
]


def normal_(weight: torch.Tensor, mean: float = 0.0, std: float = 1.0, *, seed: int, stream: int | str) -> torch.Tensor:
    """Fill ``weight`` with normal numbers of that mean and standard deviation; returned.

    >>> import torch, convweights as cw
    >>> cw.init.normal_(torch.empty(3), std=0.5, seed=0, stream="bias")
    tensor([-0.0797, -0.0418,  0.5963])
    """
    return initialize_as("normal_", weight, Normal(mean=mean, std=std, seed=seed, stream=stream))


def uniform_(weight: torch.Tensor, a: float = 0.0, b: float = 1.0, *, seed: int, stream: int | str) -> torch.Tensor:
    """Fill ``weight`` with uniform numbers between ``a`` and ``b``, which rounding may reach; returned.

    >>> import torch, convweights as cw
    >>> cw.init.uniform_(torch.empty(3), -1, 1, seed=0, stream=0)
    tensor([ 0.7981, -0.2390, -0.5286])
    """
    return initialize_as("uniform_", weight, Uniform(a=a, b=b, seed=seed, stream=stream))


def kaiming_normal_(
    weight: torch.Tensor,
    a: float = 0,
    mode: Mode = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    seed: int,
    stream: int | str,
) -> torch.Tensor:
    """Fill ``weight`` with normal numbers of standard deviation gain / sqrt(fan) (He et al., 2015); returned.

    The arguments are those of ``torch.nn.init.kaiming_normal_``, and so are the fans: see
    :func:`~convweights.ops.initializers.fans` for grouped and transposed convolutions.

    >>> import torch, convweights as cw
    >>> net = torch.nn.Conv2d(3, 64, 7)
    >>> weight = cw.init.kaiming_normal_(net.weight, nonlinearity="relu", seed=0, stream="conv1.weight")
    >>> round(weight.std().item(), 2), round((2 / (3 * 7 * 7)) ** 0.5, 2)
    (0.12, 0.12)
    """
    return initialize_as(
        "kaiming_normal_", weight, KaimingNormal(a=a, mode=mode, nonlinearity=nonlinearity, seed=seed, stream=stream)
    )


def kaiming_uniform_(
    weight: torch.Tensor,
    a: float = 0,
    mode: Mode = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    seed: int,
    stream: int | str,
) -> torch.Tensor:
    """Fill ``weight`` with uniform numbers between plus and minus gain * sqrt(3 / fan) (He et al., 2015); returned.

    The arguments are those of ``torch.nn.init.kaiming_uniform_``.

    >>> import torch, convweights as cw
    >>> cw.init.kaiming_uniform_(torch.empty(2, 3), a=5**0.5, seed=0, stream="fc.weight").abs().max() <= 3**-0.5
    tensor(True)
    """
    return initialize_as(
        "kaiming_uniform_", weight, KaimingUniform(a=a, mode=mode, nonlinearity=nonlinearity, seed=seed, stream=stream)
    )


def xavier_normal_(weight: torch.Tensor, gain: float = 1.0, *, seed: int, stream: int | str) -> torch.Tensor:
    """Fill ``weight`` with normal numbers of standard deviation gain * sqrt(2 / (fan_in + fan_out)); returned.

    Glorot and Bengio, 2010; the arguments of ``torch.nn.init.xavier_normal_``.

    >>> import torch, convweights as cw
    >>> cw.init.xavier_normal_(torch.empty(1, 3), seed=0, stream="fc.weight").shape
    torch.Size([1, 3])
    """
    return initialize_as("xavier_normal_", weight, XavierNormal(gain=gain, seed=seed, stream=stream))


def xavier_uniform_(weight: torch.Tensor, gain: float = 1.0, *, seed: int, stream: int | str) -> torch.Tensor:
    """Fill ``weight`` with uniform numbers between plus and minus gain * sqrt(6 / (fan_in + fan_out)); returned.

    Glorot and Bengio, 2010; the arguments of ``torch.nn.init.xavier_uniform_``.

    >>> import torch, convweights as cw
    >>> cw.init.xavier_uniform_(torch.empty(1, 3), seed=0, stream="fc.weight").abs().max() <= 1.5**0.5
    tensor(True)
    """
    return initialize_as("xavier_uniform_", weight, XavierUniform(gain=gain, seed=seed, stream=stream))
