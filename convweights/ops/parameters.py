"""What ``params`` stands for: the tensors to write, each once, with their streams, masks and places in a larger one."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from convweights.ops import check
from convweights.stream import MOST_INDICES, stream_of, streams_of

Params = torch.Tensor | Iterable[torch.Tensor] | Mapping[str, torch.Tensor] | torch.nn.Module
Box = tuple[Sequence[int], Sequence[int]]

MAX_DIMENSIONS = 8
# What torch.compile, FSDP and activation checkpointing put into names, and DataParallel and DDP in front of them.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


@dataclass(slots=True)
class Targets:
    """Parallel lists, one entry a tensor. ``masks`` and ``boxes`` are empty where no tensor has one."""

    tensors: list[torch.Tensor]
    streams: Sequence[int]
    masks: list[torch.Tensor | None]
    boxes: list[int]

    def by_device(self) -> list[Targets]:
        """The same, cut into lists of one device each."""
        devices = [tensor.device for tensor in self.tensors]
        if len(set(devices)) <= 1:
            return [self] if self.tensors else []
        parts = {device: Targets([], [], [], []) for device in devices}
        rest = self.boxes
        for position, tensor in enumerate(self.tensors):
            part = parts[tensor.device]
            part.tensors.append(tensor)
            part.streams = [*part.streams, self.streams[position]]
            if self.masks:
                part.masks.append(self.masks[position])
            part.boxes += rest[: 2 * tensor.ndim]
            rest = rest[2 * tensor.ndim :]
        return list(parts.values())


def resolve(
    function: str,
    params: Params,
    *,
    stream: Any = None,
    mask: Any = None,
    box: Any = None,
    frozen: bool = False,
    draws: bool = True,
    argument: str = "params",
) -> Targets:
    """The tensors that ``params`` names, all checked. ``draws``: whether streams are needed at all."""
    if isinstance(params, torch.Tensor):
        named = _Named(function, argument, None, [params])
        streams: Sequence[int] = (_one_stream(function, stream, draws),)
        masks, boxes, frozen = [mask], [box], True
    elif isinstance(params, (torch.nn.Module, Mapping)):
        named = _by_name(function, argument, params)
        if stream is not None:
            raise ValueError(f"{function}: stream must be left out where names give the streams, got {stream!r}")
        streams = _streams_of_names(function, argument, named.names or (), draws)
        masks, boxes = named.pick("mask", mask), named.pick("box", box)
    else:
        named = _in_a_row(function, argument, params)
        streams = _streams_in_a_row(function, stream, len(named.tensors))
        masks, boxes = named.align("mask", mask), named.align("box", box)
    chosen = named.chosen(frozen)
    given = [bool(masks) and any(entry is not None for entry in masks), any(entry is not None for entry in boxes)]
    tensors = named.tensors
    if not given[1] and all(type(tensor) in _PLAIN for tensor in tensors):
        flat: list[int] = []
    else:
        tensors, flat = _pieces(named, chosen, boxes)
    named.check(chosen, tensors)
    return Targets(
        [tensors[i] for i in chosen],
        [streams[i] for i in chosen],
        [named.mask(i, tensors[i], masks[i]) for i in chosen] if given[0] else [],
        flat,
    )


@dataclass(slots=True)
class _Named:
    """Tensors with what errors call them: by name, by position, or the argument itself."""

    function: str
    argument: str
    names: tuple[str, ...] | None
    tensors: list[torch.Tensor]
    many: bool = False

    def label(self, position: int) -> str:
        if self.names is not None:
            return f"{self.argument}[{self.names[position]!r}]"
        return f"{self.argument}[{position}]" if self.many else self.argument

    def error(self, kind: type[Exception], position: int, sentence: str) -> Exception:
        return kind(f"{self.function}: {self.label(position)} must {sentence}")

    def pick(self, argument: str, given: Any) -> list[Any]:
        """``given``, a dict of some of the names, as a list for all of them."""
        names = self.names or ()
        if given is None:
            return [None] * len(names)
        if not isinstance(given, Mapping):
            raise TypeError(
                f"{self.function}: {argument} must be a dict with names of {self.argument}, got {type(given).__name__}"
            )
        unknown = next((name for name in given if name not in names), None)
        if unknown is not None:
            raise ValueError(f"{self.function}: {argument} must hold names of {self.argument}, got {unknown!r}")
        return [given.get(name) for name in names]

    def align(self, argument: str, given: Any) -> list[Any]:
        """``given``, a list with an entry or None for each tensor."""
        count = len(self.tensors)
        if given is None:
            return [None] * count
        if isinstance(given, (torch.Tensor, Mapping, str)) or not isinstance(given, Iterable):
            raise TypeError(
                f"{self.function}: {argument} must be a list with an entry or None for each of {self.argument}, "
                f"got {type(given).__name__}"
            )
        entries = list(given)
        if len(entries) != count:
            raise ValueError(
                f"{self.function}: {argument} must hold one entry for each of the {count} tensors of {self.argument}, "
                f"got {len(entries)}"
            )
        return entries

    def chosen(self, frozen: bool) -> list[int]:
        """The positions that are written: frozen Parameters are not, and tied ones once."""
        positions = range(len(self.tensors))
        kept = [i for i in positions if frozen or self.tensors[i].requires_grad or not _is_parameter(self.tensors[i])]
        if self.tensors and not kept:
            raise ValueError(
                f"{self.function}: {self.argument} must hold a parameter that requires a gradient, "
                f"got {len(self.tensors)} frozen ones; pass frozen=True to write those"
            )
        seen: dict[int, int] = {}
        for i in kept:
            first = seen.setdefault(id(self.tensors[i]), i)
            if first != i and self.names is None:
                raise self.error(ValueError, i, f"be listed once, got the tensor of {self.label(first)} again")
        return kept if len(seen) == len(kept) else sorted(seen.values())

    def check(self, chosen: list[int], tensors: list[torch.Tensor]) -> None:
        """That all can be written, and no two in one place. Leaves tied views of one place out of ``chosen``."""
        compiling = torch.compiler.is_compiling()
        places = []
        for i in chosen:
            tensor = tensors[i]
            if (
                compiling
                or tensor.layout is not torch.strided
                or tensor.dtype not in check.COMPUTE_DTYPES
                or not tensor.is_contiguous()
                or tensor.is_inference()
                or tensor.is_neg()
                or tensor.is_meta
                or tensor.ndim > MAX_DIMENSIONS
            ):
                self._check_slowly(i, tensor)
            if not compiling:
                places.append((tensor.data_ptr(), i))
        places.sort()
        for (before, a), (after, b) in zip(places, places[1:], strict=False):
            if after < before + _extent(tensors[a]):
                self._check_overlaps(chosen, tensors, [i for _, i in places])
                return

    def _check_slowly(self, position: int, tensor: torch.Tensor) -> None:
        check.writable(self.function, self.label(position), tensor)
        if tensor.dtype not in check.COMPUTE_DTYPES:
            got = check.name(tensor.dtype)
            raise self.error(TypeError, position, f"be float64, float32, float16 or bfloat16, got {got}")
        if tensor.ndim > MAX_DIMENSIONS:
            raise self.error(ValueError, position, f"have at most {MAX_DIMENSIONS} dimensions, got {tensor.ndim}")

    def _check_overlaps(self, chosen: list[int], tensors: list[torch.Tensor], order: list[int]) -> None:
        for k, b in enumerate(order):
            for a in order[:k]:
                if a not in chosen or b not in chosen or not check.overlap(tensors[a], tensors[b]):
                    continue
                first, second = sorted((a, b))
                one, other = tensors[first], tensors[second]
                same = (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())
                if same and one.dtype == other.dtype and self.names is not None:
                    chosen.remove(second)  # tied
                    continue
                rule = f"not share memory with {self.label(first)}, got views of one storage"
                raise self.error(ValueError, second, rule)

    def mask(self, position: int, tensor: torch.Tensor, mask: Any) -> torch.Tensor | None:
        if mask is None:
            return None
        label = self.label(position)
        argument = "mask" if label == self.argument else f"mask of {label}"
        mask = _local(mask)
        check.dense(self.function, argument, mask)
        if mask.dtype != torch.bool:
            remedy = f"compare it, as in {argument.partition(' ')[0]} != 0"
            raise TypeError(f"{self.function}: {argument} must be bool, got {check.name(mask.dtype)}; {remedy}")
        check.same_device(self.function, argument, mask, tensor)
        shape = tuple(tensor.shape)
        padded = (1,) * (len(shape) - mask.ndim) + tuple(mask.shape)
        if len(padded) != len(shape) or any(m not in (1, n) for m, n in zip(padded, shape, strict=True)):
            raise ValueError(
                f"{self.function}: {argument} must broadcast to shape {shape}, got shape {tuple(mask.shape)}"
            )
        return mask[(None,) * (len(shape) - mask.ndim)]


def _is_parameter(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter)


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from the tensor's first element to behind its last."""
    if tensor.is_contiguous():
        return tensor.nbytes
    if tensor.numel() == 0:
        return 0
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size()


def _by_name(function: str, argument: str, params: torch.nn.Module | Mapping[str, torch.Tensor]) -> _Named:
    items = (
        params.named_parameters(remove_duplicate=False) if isinstance(params, torch.nn.Module) else params.items()
    )
    pairs = list(items)
    named = _Named(function, argument, tuple(name for name, _ in pairs), [tensor for _, tensor in pairs])
    for position, (name, tensor) in enumerate(pairs):
        if not isinstance(tensor, torch.Tensor):
            raise named.error(TypeError, position, f"be a torch.Tensor, got {type(tensor).__name__}")
        if not isinstance(name, str):
            raise TypeError(f"{function}: {argument} must have names for keys, got {name!r}")
    return named


def _in_a_row(function: str, argument: str, params: Any) -> _Named:
    if isinstance(params, (str, bytes)) or not isinstance(params, Iterable):
        got = type(params).__name__
        raise TypeError(f"{function}: {argument} must be a tensor, a list, a dict or a module, got {got}")
    named = _Named(function, argument, None, list(params), many=True)
    for position, tensor in enumerate(named.tensors):
        if not isinstance(tensor, torch.Tensor):
            remedy = "; pass dict(...) of names and tensors" if isinstance(tensor, tuple) else ""
            raise named.error(TypeError, position, f"be a torch.Tensor, got {type(tensor).__name__}{remedy}")
    return named


def unwrapped(name: str) -> str:
    """A parameter's name without what wrappers of its model add to it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)


def _streams_of_names(function: str, argument: str, names: tuple[str, ...], draws: bool) -> Sequence[int]:
    if not draws:
        return (0,) * len(names)
    bare = tuple(map(unwrapped, names))
    if len(set(bare)) != len(bare):
        twice = next(name for i, name in enumerate(bare) if name in bare[:i])
        raise ValueError(
            f"{function}: {argument} must have names that differ once wrappers' prefixes are gone, got {twice!r} twice"
        )
    return streams_of(bare)


def _one_stream(function: str, stream: Any, draws: bool) -> int:
    if stream is None and draws:
        raise ValueError(
            f"{function}: stream must be given for a tensor, or all tensors would get the same noise, got None; "
            f"pass its name or a number"
        )
    return 0 if stream is None else stream_number(function, "stream", stream)


def stream_number(function: str, argument: str, stream: Any) -> int:
    if isinstance(stream, str):
        return stream_of(stream)
    return check.within(function, argument, stream, 2**32)


def _streams_in_a_row(function: str, stream: Any, count: int) -> Sequence[int]:
    if stream is None:
        return range(count)
    if isinstance(stream, (str, int)) or not isinstance(stream, Iterable):
        raise TypeError(f"{function}: stream must be a list of names or numbers where params is one, got {stream!r}")
    streams = [stream_number(function, f"stream[{i}]", entry) for i, entry in enumerate(stream)]
    if len(streams) != count:
        raise ValueError(f"{function}: stream must hold one entry for each of the {count} tensors, got {len(streams)}")
    return streams


def _pieces(named: _Named, chosen: list[int], boxes: list[Any]) -> tuple[list[torch.Tensor], list[int]]:
    """The tensors in memory, and for each chosen one the whole tensor's shape and where the piece starts in it."""
    tensors = list(named.tensors)
    flat: list[int] = []
    for i in chosen:
        tensor, box = tensors[i], boxes[i]
        sharded = _sharded(named, i)
        if sharded is not None:
            if box is not None:
                raise named.error(ValueError, i, "be given no box where it is a DTensor, got one")
            tensors[i], box = sharded
        shape = tuple(tensors[i].shape)
        whole, offset = (shape, (0,) * len(shape)) if box is None else _box(named, i, shape, box)
        flat += [*whole, *offset]
    return tensors, flat


def _box(named: _Named, position: int, shape: tuple[int, ...], box: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    function, label = named.function, f"box of {named.label(position)}"
    try:
        whole, offset = (tuple(check.integer(function, label, number) for number in part) for part in box)
    except (TypeError, ValueError):
        raise TypeError(f"{function}: {label} must be (shape of the whole, offset in it), got {box!r}") from None
    if not len(whole) == len(offset) == len(shape):
        raise ValueError(f"{function}: {label} must have {len(shape)} dimensions, got {box!r}")
    if any(o < 0 or o + n > w for n, w, o in zip(shape, whole, offset, strict=True)):
        raise ValueError(f"{function}: {label} must hold a piece of shape {shape}, got {box!r}")
    if math.prod(whole) > MOST_INDICES:
        raise ValueError(f"{function}: {label} must have at most 2^50 elements, got {box!r}")
    return whole, offset


def _local(tensor: Any) -> Any:
    """A DTensor's own piece; every other value as it is."""
    return tensor.to_local() if _is_dtensor(tensor) else tensor


def _is_dtensor(tensor: Any) -> bool:
    # Whoever has a DTensor has imported this; importing it takes longer than all of convweights.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _sharded(named: _Named, position: int) -> tuple[torch.Tensor, Box] | None:
    tensor: Any = named.tensors[position]
    if not _is_dtensor(tensor):
        return None
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(type(placement) not in (Replicate, Shard) for placement in tensor.placements):
        raise named.error(ValueError, position, f"be sharded or replicated, got placements {tensor.placements}")
    local = tensor.to_local().detach()
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if local.numel() == 0:
        offset = (0,) * local.ndim
    return local, (tuple(tensor.shape), tuple(offset))
