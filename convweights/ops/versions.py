"""Tells autograd that an operator has written: a graph that saved the old values must not be used any more.

A library's operator does not do so by itself, and a backward over a stale graph would silently give a wrong gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch


def bump_versions(
    library: torch.library.Library, name: str, operator: Any, written: Callable[..., Sequence[torch.Tensor]]
) -> None:
    """Let the operator bump the version counters of the tensors that it writes, under torch.compile too."""

    def bump(keys: Any, *arguments: Any) -> None:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            operator.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, *arguments)
        torch.autograd.graph.increment_version(written(*arguments))

    library.impl(name, bump, "ADInplaceOrView", with_keyset=True)


def write(tensors: Iterable[torch.Tensor], call: Callable[..., None], *arguments: Any) -> None:
    """Call an operator that writes ``tensors``, or what calls it: without a graph, and in eager mode the counters are
    bumped here, which spares the operator a pass through Python. Where the call raises they stay as they are.
    """
    if torch.compiler.is_compiling():
        with torch.no_grad():
            call(*arguments)
        return
    with torch._C._AutoDispatchBelowADInplaceOrView():
        call(*arguments)
    torch.autograd.graph.increment_version(tensors)
