"""One bad input with the error it must raise. The tables stand in the files beside this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class ErrorInput:
    """``call`` makes function, arguments and keywords on a device; ``sentence`` is a pattern for the whole message."""

    name: str
    call: Callable[[str], Call]
    error: type[Exception]
    sentence: str


def t(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), device=device).reshape(shape).to(dtype)


def row(
    name: str,
    function: Callable[..., Any],
    arguments: Callable[[str], tuple],
    error: type,
    sentence: str,
    **keywords: Any,
) -> ErrorInput:
    return ErrorInput(name, lambda d: (function, arguments(d), keywords), error, sentence)
