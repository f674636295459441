"""What ``params`` stands for: the tensors to write, each once, with their streams, masks and places in a larger one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from convweights.ops import check
from convweights.ops.pieces import box_of, is_dtensor, local_piece
from convweights.ops.streams import stream_of_one, streams_in_a_row, streams_of_names

Params = torch.Tensor | Iterable[torch.Tensor] | Mapping[str, torch.Tensor] | torch.nn.Module

MAX_DIMENSIONS = 8
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, torch.nn.Buffer})


@dataclass(frozen=True, slots=True)
class Targets:
    """The tensors to write and, in the same order, what the operator wants to know of each.

    ``masks`` and ``boxes`` are empty where no tensor has one. ``labels`` is what errors call the tensors by: names, or
    positions, behind ``argument``, or None for one that was given by itself. ``around`` are the DTensors whose parts
    in this process are among the tensors.
    """

    function: str
    argument: str
    labels: Sequence[str | int] | None
    tensors: list[torch.Tensor]
    streams: Sequence[int]
    masks: list[torch.Tensor | None]
    boxes: list[int]
    around: Sequence[torch.Tensor] = ()

    def label(self, position: int) -> str:
        return self.argument if self.labels is None else f"{self.argument}[{self.labels[position]!r}]"

    def checked(self) -> Targets:
        """The same without tied views, once all can be written and no two overlap."""
        for position, tensor in enumerate(self.tensors):
            label = self.label(position)
            check.writable(self.function, label, tensor)
            if tensor.dtype not in check.COMPUTE_DTYPES:
                raise TypeError(
                    f"{self.function}: {label} must be float64, float32, float16 or bfloat16, "
                    f"got {check.name(tensor.dtype)}"
                )
            if tensor.ndim > MAX_DIMENSIONS:
                raise ValueError(
                    f"{self.function}: {label} must have at most {MAX_DIMENSIONS} dimensions, got {tensor.ndim}"
                )
        tied = self._tied()
        return self._only([i for i in range(len(self.tensors)) if i not in tied]) if tied else self

    def _tied(self) -> set[int]:
        """The tensors of a module or dict that are an earlier one under another name; other overlaps are errors."""
        tied: set[int] = set()
        spans = sorted((tensor.data_ptr(), i) for i, tensor in enumerate(self.tensors) if tensor.numel())
        for k, (start, i) in enumerate(spans):
            end = start + _extent(self.tensors[i])
            for _, j in spans[k + 1 : next((n for n in range(k + 1, len(spans)) if spans[n][0] >= end), len(spans))]:
                first, second = min(i, j), max(i, j)
                if not check.overlap(self.tensors[i], self.tensors[j]):
                    continue
                if _same_place(self.tensors[i], self.tensors[j]) and self._named:
                    tied.add(second)
                    continue
                raise ValueError(
                    f"{self.function}: {self.label(second)} must not share memory with {self.label(first)}, "
                    f"got views of one storage"
                )
        return tied

    @property
    def _named(self) -> bool:
        return self.labels is not None and not isinstance(self.labels, range)

    def _only(self, kept: Sequence[int]) -> Targets:
        boxes: list[int] = []
        start = 0
        for position, tensor in enumerate(self.tensors if self.boxes else ()):
            if position in kept:
                boxes += self.boxes[start : start + 2 * tensor.ndim]
            start += 2 * tensor.ndim
        return replace(
            self,
            labels=self.labels and [self.labels[i] for i in kept],
            tensors=[self.tensors[i] for i in kept],
            streams=[self.streams[i] for i in kept],
            masks=[self.masks[i] for i in kept] if self.masks else [],
            boxes=boxes,
        )

    def by_device(self) -> list[Targets]:
        """The same in parts of one device each."""
        devices = [tensor.device for tensor in self.tensors]
        return [
            self._only([i for i, other in enumerate(devices) if other == device]) for device in dict.fromkeys(devices)
        ]


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
    """What ``params`` names; ``draws``: whether streams are needed at all. :meth:`Targets.checked` is left to do."""
    labels: Sequence[str | int] | None
    if isinstance(params, torch.Tensor):
        labels, tensors, frozen = None, [params], True
        streams: Sequence[int] = (stream_of_one(function, stream, draws),)
        masks, boxes = [mask], [box]
    elif isinstance(params, (torch.nn.Module, Mapping)):
        labels, tensors = _by_name(function, argument, params)
        if stream is not None:
            raise ValueError(f"{function}: stream must be left out where names give the streams, got {stream!r}")
        streams = streams_of_names(function, argument, labels) if draws else range(len(tensors))
        masks, boxes = (
            _picked(function, argument, name, given, labels) for name, given in (("mask", mask), ("box", box))
        )
    else:
        labels, tensors = _in_a_row(function, argument, params)
        streams = streams_in_a_row(function, stream, len(tensors))
        masks, boxes = (_aligned(function, name, given, len(tensors)) for name, given in (("mask", mask), ("box", box)))
    targets = Targets(function, argument, labels, tensors, streams, [], [])
    kept = _kept(targets, frozen)
    if len(kept) < len(tensors):
        targets = targets._only(kept)
        masks, boxes = masks and [masks[i] for i in kept], boxes and [boxes[i] for i in kept]
    if _are_plain(targets.tensors) and all(entry is None for entry in (*masks, *boxes)):
        return targets
    return _placed(targets, masks, boxes)


def _kept(targets: Targets, frozen: bool) -> Sequence[int]:
    """The positions that are written: frozen Parameters are not, and those under several names once."""
    tensors = targets.tensors
    if frozen or {torch.Tensor}.issuperset(map(type, tensors)) or all(map(_requires_grad, tensors)):
        kept: Sequence[int] = range(len(tensors))
    else:
        kept = [i for i, t in enumerate(tensors) if t.requires_grad or not isinstance(t, torch.nn.Parameter)]
        if not kept:
            raise ValueError(
                f"{targets.function}: {targets.argument} must hold a parameter that requires a gradient, "
                f"got {len(tensors)} frozen; pass frozen=True to write those"
            )
    first_of: dict[int, int] = {}
    if len(set(map(id, tensors))) == len(tensors):
        return kept
    for i in kept:
        first = first_of.setdefault(id(tensors[i]), i)
        if first != i and not targets._named:
            raise ValueError(
                f"{targets.function}: {targets.label(i)} must be listed once, got the tensor of {targets.label(first)}"
            )
    return sorted(first_of.values())


def _are_plain(tensors: Sequence[torch.Tensor]) -> bool:
    return _PLAIN.issuperset(map(type, tensors))


_requires_grad = torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]


def _placed(targets: Targets, masks: Sequence[Any], boxes: Sequence[Any]) -> Targets:
    """With masks and boxes, and DTensors as what this process has of them."""
    tensors, flat, checked, around = [], [], [], []
    count = len(targets.tensors)
    for position, (tensor, box, mask) in enumerate(
        zip(targets.tensors, boxes or [None] * count, masks or [None] * count, strict=True)
    ):
        label = targets.label(position)
        local, own = local_piece(targets.function, label, tensor)
        argument = _of("box", targets, label)
        if own is not None and box is not None:
            raise ValueError(f"{targets.function}: {argument} must be left out for a DTensor, got {box!r}")
        if own is not None:
            around.append(tensor)
        check.dense(targets.function, label, local)
        whole, offset = box_of(targets.function, argument, local.shape, own if box is None else box)
        tensors.append(local)
        flat += [*whole, *offset]
        checked.append(_mask(targets.function, _of("mask", targets, label), mask, local))
    given = checked if any(mask is not None for mask in checked) else []
    return replace(targets, tensors=tensors, masks=given, boxes=flat, around=around)


def _of(argument: str, targets: Targets, label: str) -> str:
    return argument if targets.labels is None else f"{argument} of {label}"


def _mask(function: str, argument: str, given: Any, tensor: torch.Tensor) -> torch.Tensor | None:
    """The mask with the tensor's rank."""
    if given is None:
        return None
    mask: torch.Tensor = given.to_local() if is_dtensor(given) else given
    check.dense(function, argument, mask)
    if mask.dtype != torch.bool:
        raise TypeError(
            f"{function}: {argument} must be bool, got {check.name(mask.dtype)}; compare it, as in mask != 0"
        )
    check.same_device(function, argument, mask, tensor)
    shape = tuple(tensor.shape)
    missing = len(shape) - mask.ndim
    if missing < 0 or any(m not in (1, n) for m, n in zip(mask.shape, shape[missing:], strict=True)):
        raise ValueError(f"{function}: {argument} must broadcast to shape {shape}, got shape {tuple(mask.shape)}")
    for _ in range(missing):
        mask = mask.unsqueeze(0)
    return mask


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from the tensor's first element to behind its last."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size()


def _same_place(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)


def _by_name(
    function: str, argument: str, params: torch.nn.Module | Mapping[str, torch.Tensor]
) -> tuple[list[str], list[torch.Tensor]]:
    if isinstance(params, torch.nn.Module):
        params = dict(params.named_parameters(remove_duplicate=False))
    names, tensors = list(params.keys()), list(params.values())
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{function}: {argument} must have names for keys, got {name!r}")
    for name, tensor in () if _are_plain(tensors) else params.items():
        if not isinstance(tensor, torch.Tensor):
            got = type(tensor).__name__
            raise TypeError(f"{function}: {argument}[{name!r}] must be a torch.Tensor, got {got}")
    return names, tensors


def _in_a_row(function: str, argument: str, params: Any) -> tuple[Sequence[int], list[torch.Tensor]]:
    if isinstance(params, (str, bytes)) or not isinstance(params, Iterable):
        got = type(params).__name__
        raise TypeError(f"{function}: {argument} must be a tensor, a list, a dict or a module, got {got}")
    tensors = list(params)
    for position, tensor in enumerate(() if _are_plain(tensors) else tensors):
        if not isinstance(tensor, torch.Tensor):
            remedy = "; make a dict of names and tensors" if isinstance(tensor, tuple) else ""
            got = type(tensor).__name__
            raise TypeError(f"{function}: {argument}[{position}] must be a torch.Tensor, got {got}{remedy}")
    return range(len(tensors)), tensors


def _picked(function: str, argument: str, name: str, given: Any, labels: Sequence[str]) -> list[Any]:
    """``given``, a dict with some of the names, as a list for all of them; empty where there is none."""
    if given is None:
        return []
    if not isinstance(given, Mapping):
        raise TypeError(f"{function}: {name} must be a dict with names of {argument}, got {type(given).__name__}")
    unknown = next((key for key in given if key not in labels), None)
    if unknown is not None:
        raise ValueError(f"{function}: {name} must hold names of {argument}, got {unknown!r}")
    return [given.get(label) for label in labels]


def _aligned(function: str, name: str, given: Any, count: int) -> list[Any]:
    """``given``, a list with an entry or None for each tensor; empty where there is none."""
    if given is None:
        return []
    if isinstance(given, (torch.Tensor, Mapping, str)) or not isinstance(given, Iterable):
        got = type(given).__name__
        raise TypeError(f"{function}: {name} must be a list with an entry or None for each tensor, got {got}")
    entries = list(given)
    if len(entries) != count:
        raise ValueError(f"{function}: {name} must hold one entry for each of {count} tensors, got {len(entries)}")
    return entries
