"""What is no tensor to read or to write, for every public function that takes one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from bad_input import ErrorInput, t

import convweights as cw


def quantised(device: str) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)


def inference(device: str, *shape: int) -> torch.Tensor:
    with torch.inference_mode():
        return torch.zeros(shape, device=device)


def conjugated(device: str) -> torch.Tensor:
    return torch.zeros(2, 3, dtype=torch.complex64, device=device).conj()


# What stands in for a tensor, and how the sentence goes on behind "<argument> must".
NOT_READABLE: dict[str, tuple[Callable[[str], Any], type[Exception], str]] = {
    "None": (lambda d: None, TypeError, r"be a torch\.Tensor, got None(Type)?"),
    "a list": (lambda d: [[1.0]], TypeError, r"be a torch\.Tensor, got list"),
    "sparse": (
        lambda d: torch.eye(3, device=d).to_sparse(),
        TypeError,
        r"be a dense \(strided\) tensor, got layout torch\.sparse_coo; call \w+\.to_dense\(\) first",
    ),
    "meta": (lambda d: torch.empty(2, 3, device="meta"), ValueError, r"hold data, got a meta tensor; .*"),
}
if hasattr(torch, "quantize_per_tensor"):
    remedy = r"not be quantised, got torch\.qint8; call \w+\.dequantize\(\) first"
    NOT_READABLE["quantised"] = (quantised, TypeError, remedy)
NOT_WRITABLE: dict[str, tuple[Callable[[str], Any], type[Exception], str]] = {
    **NOT_READABLE,
    "expanded": (
        lambda d: torch.zeros(1, 3, device=d).expand(2, 3),
        ValueError,
        r"give each element a place of its own, got strides \(0, 1\) for shape \(2, 3\); call weight\.clone\(\) first",
    ),
    "overlapping itself": (
        lambda d: torch.zeros(9, device=d).as_strided((2, 3), (1, 1)),
        ValueError,
        r"give each element a place of its own, got strides \(1, 1\) for shape \(2, 3\); .*",
    ),
    "inference": (
        lambda d: inference(d, 2, 3),
        ValueError,
        r"not be an inference tensor outside inference mode, got one; clone it first",
    ),
    "conjugated": (conjugated, ValueError, r"hold its values as they are, got a lazily conjugated or negated view; .*"),
}

WRITERS: dict[str, Callable[..., torch.Tensor]] = {
    "transfer_": cw.transfer_,
    "replicate_channels_": cw.replicate_channels_,
    "average_channels_": cw.average_channels_,
    "truncate_channels_": cw.truncate_channels_,
}
MAKERS: dict[str, Callable[..., torch.Tensor]] = {
    "replicate_channels": cw.replicate_channels,
    "average_channels": cw.average_channels,
    "truncate_channels": cw.truncate_channels,
}


def bad_tensors() -> list[ErrorInput]:
    rows = []
    for function, writer in WRITERS.items():
        for kind, (make, error, rule) in NOT_WRITABLE.items():
            rows.append(
                ErrorInput(
                    f"{function} weight {kind}",
                    lambda d, f=writer, make=make: (f, (make(d), t(d, 2, 3)), {}),
                    error,
                    rf"{function}: weight must {rule}",
                )
            )
        for kind, (make, error, rule) in NOT_READABLE.items():
            remedy = (
                ""
                if kind != "None" or function in ("transfer_", "replicate_channels_")
                else r"; to \w+ in place, give \w+"
            )
            rows.append(
                ErrorInput(
                    f"{function} source {kind}",
                    lambda d, f=writer, make=make: (f, (t(d, 2, 3), make(d)), {}),
                    error,
                    rf"{function}: source must {rule}{remedy}",
                )
            )
    for function, maker in MAKERS.items():
        for kind, (make, error, rule) in NOT_READABLE.items():
            rows.append(
                ErrorInput(
                    f"{function} source {kind}",
                    lambda d, f=maker, make=make: (f, (make(d), 2), {}),
                    error,
                    rf"{function}: source must {rule}",
                )
            )
    return rows
