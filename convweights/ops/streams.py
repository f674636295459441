"""Which stream each tensor draws its noise from: by its name, by its position, or as it is told."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence, Set
from typing import Any

import torch

from convweights.ops import check
from convweights.stream import stream_of, streams_of

# What torch.compile, FSDP and activation checkpointing put into names; DataParallel and DDP put "module." in front.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


@functools.lru_cache(maxsize=4096)
def unwrapped(name: str) -> str:
    """A parameter's name without what wrappers of its model add to it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)


def streams_of_names(function: str, argument: str, names: Sequence[str]) -> Sequence[int]:
    """The streams of a module's or a dict's names."""
    named: tuple[tuple[str, ...], tuple[int, ...]] = _named_streams(tuple(names))
    bare, streams = named
    if len(set(bare)) != len(bare):
        twice = next(name for i, name in enumerate(bare) if name in bare[:i])
        raise ValueError(
            f"{function}: {argument} must have names that differ once wrappers' prefixes are gone, got {twice!r} twice"
        )
    return streams


@torch.compiler.assume_constant_result
def _named_streams(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    bare = tuple(map(unwrapped, names))
    return bare, streams_of(bare)


def stream_of_one(function: str, stream: Any, draws: bool) -> int:
    """The stream of a tensor that is given by itself."""
    if stream is None and draws:
        raise ValueError(
            f"{function}: stream must be given for a single tensor, or every one would get the same noise, got None; "
            f"pass its name or a number"
        )
    return 0 if stream is None else stream_number(function, "stream", stream)


def stream_number(function: str, argument: str, stream: Any) -> int:
    """A name's stream, or the number that a stream is given by."""
    if not isinstance(stream, str):
        if isinstance(stream, bool) or not hasattr(stream, "__index__"):
            raise TypeError(f"{function}: {argument} must be a name or a number of 0 .. 2^32 - 1, got {stream!r}")
        return check.within(function, argument, stream, 2**32)
    try:
        number: int = _named_stream(stream)
        return number
    except UnicodeEncodeError:
        raise ValueError(f"{function}: {argument} must be a name that UTF-8 can encode, got {stream!a}") from None


@torch.compiler.assume_constant_result
def _named_stream(name: str) -> int:
    return stream_of(name)


def streams_in_a_row(function: str, stream: Any, count: int) -> Sequence[int]:
    """The streams of a list's tensors: what is given, or 0, 1, 2, ..."""
    if stream is None:
        return range(count)
    if isinstance(stream, (str, int, Set)) or not isinstance(stream, Iterable):
        raise TypeError(f"{function}: stream must be a list of names or numbers where params is one, got {stream!r}")
    streams = [stream_number(function, f"stream[{i}]", entry) for i, entry in enumerate(stream)]
    if len(streams) != count:
        raise ValueError(f"{function}: stream must hold one entry for each of {count} tensors, got {len(streams)}")
    return streams
