"""What ``params`` stands for: the tensors to write, each once, with their streams, masks and places in a larger one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch

from convweights.ops import check
from convweights.ops.pieces import box_of, local_mask, local_piece
from convweights.ops.streams import stream_of_one, streams_in_a_row, streams_of_names
from convweights.ops.targets import Targets, tie_error

Params = torch.Tensor | Iterable[torch.Tensor] | Mapping[str, torch.Tensor] | torch.nn.Module

PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, torch.nn.Buffer})


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
        labels, tensors, frozen, named = None, [params], True, False
        streams: Sequence[int] = (stream_of_one(function, stream, draws),)
        masks, boxes = [mask], [box]
    elif isinstance(params, (torch.nn.Module, Mapping)):
        labels, tensors = _by_name(function, argument, params)
        named = True
        if stream is not None:
            raise ValueError(f"{function}: stream must be left out where names give the streams, got {stream!r}")
        streams = streams_of_names(function, argument, labels) if draws else range(len(tensors))
        masks, boxes = (
            _picked(function, argument, name, given, labels) for name, given in (("mask", mask), ("box", box))
        )
    else:
        labels, tensors = _in_a_row(function, argument, params)
        named = False
        streams = streams_in_a_row(function, stream, len(tensors))
        masks, boxes = (_aligned(function, name, given, len(tensors)) for name, given in (("mask", mask), ("box", box)))
    targets = Targets(function, argument, labels, named, tensors, streams, [], [])
    kept = _kept(targets, frozen, masks, boxes)
    if len(kept) < len(tensors):
        targets = targets.only(kept)
        masks, boxes = masks and [masks[i] for i in kept], boxes and [boxes[i] for i in kept]
    if are_plain(targets.tensors) and all(entry is None for entry in (*masks, *boxes)):
        return targets
    return _placed(targets, masks, boxes)


def _kept(targets: Targets, frozen: bool, masks: Sequence[Any], boxes: Sequence[Any]) -> Sequence[int]:
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
    if len(set(map(id, tensors))) == len(tensors):
        return kept
    first_of: dict[int, int] = {}
    for i in kept:
        first = first_of.setdefault(id(tensors[i]), i)
        if first == i:
            continue
        if not targets.named:
            raise ValueError(
                f"{targets.function}: {targets.label(i)} must be listed once, got the tensor of {targets.label(first)}"
            )
        if any(given and given[i] is not None for given in (masks, boxes)):
            raise tie_error(targets, first, i)
    return sorted(first_of.values())


def is_quick(weight: torch.Tensor, other: Any) -> bool:
    """Whether a native kernel serves a weight and can see by itself whatever might be wrong with it and the other."""
    kind = type(weight)
    return (
        (kind is torch.Tensor or (kind is torch.nn.Parameter and weight.requires_grad))
        and type(other) is torch.Tensor
        and (weight.is_cpu or weight.is_cuda)
        and (other.is_cpu or other.is_cuda)
        and weight.layout is other.layout is torch.strided
        and not (weight.is_neg() or weight.is_conj())
        and (not weight.is_inference() or torch.is_inference_mode_enabled())
    )


def are_plain(tensors: Sequence[torch.Tensor]) -> bool:
    return PLAIN.issuperset(map(type, tensors))


_requires_grad = torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]


def _placed(targets: Targets, masks: Sequence[Any], boxes: Sequence[Any]) -> Targets:
    """With masks and boxes, and DTensors as what this process has of them."""
    tensors, flat, given, around = [], [], [], []
    count = len(targets.tensors)
    for position, (tensor, box, mask) in enumerate(
        zip(targets.tensors, boxes or [None] * count, masks or [None] * count, strict=True)
    ):
        function, label = targets.function, targets.label(position)
        named_box, named_mask = (word if targets.labels is None else f"{word} of {label}" for word in ("box", "mask"))
        local, own = local_piece(function, label, tensor)
        if own is not None:
            around.append(tensor)
            if box is not None:
                raise ValueError(f"{function}: {named_box} must be left out for a DTensor, got {box!r}")
        check.dense(function, label, local)
        whole, offset = box_of(function, named_box, local.shape, own if box is None else box)
        tensors.append(local)
        flat += [*whole, *offset]
        given.append(local_mask(function, named_mask, mask, tensor, local))
    has_masks = any(mask is not None for mask in given)
    return replace(targets, tensors=tensors, masks=given if has_masks else [], boxes=flat, around=around)


def _by_name(
    function: str, argument: str, params: torch.nn.Module | Mapping[str, torch.Tensor]
) -> tuple[list[str], list[torch.Tensor]]:
    if isinstance(params, torch.nn.Module):
        params = dict(params.named_parameters(remove_duplicate=False))
    names, tensors = list(params.keys()), list(params.values())
    _refuse_flat_shards(function, argument, names, tensors)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{function}: {argument} must have names for keys, got {name!r}")
    for name, tensor in () if are_plain(tensors) else params.items():
        if not isinstance(tensor, torch.Tensor):
            got = type(tensor).__name__
            raise TypeError(f"{function}: {argument}[{name!r}] must be a torch.Tensor, got {got}")
    return names, tensors


def _refuse_flat_shards(function: str, argument: str, names: Sequence[Any], tensors: Sequence[torch.Tensor]) -> None:
    """FSDP's first version leaves each process a flat part of a weight that does not say where it lies in it."""
    for name, tensor in zip(names, tensors, strict=True):
        if "_fsdp_wrapped_module" in str(name) and getattr(tensor, "_fsdp_flattened", False):
            raise ValueError(
                f"{function}: {argument}[{name!r}] must be a whole tensor or a DTensor, got a flat shard; "
                f"shard the model with fully_shard, or update it inside FSDP.summon_full_params"
            )


def _in_a_row(function: str, argument: str, params: Any) -> tuple[Sequence[int], list[torch.Tensor]]:
    if isinstance(params, (str, bytes, Set)) or not isinstance(params, Iterable):
        got = type(params).__name__
        raise TypeError(f"{function}: {argument} must be a tensor, a list, a dict or a module, got {got}")
    tensors = list(params)
    for position, tensor in enumerate(() if are_plain(tensors) else tensors):
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
    if isinstance(given, (torch.Tensor, Mapping, Set, str)) or not isinstance(given, Iterable):
        got = type(given).__name__
        raise TypeError(f"{function}: {name} must be a list with an entry or None for each tensor, got {got}")
    entries = list(given)
    if len(entries) != count:
        raise ValueError(f"{function}: {name} must hold one entry for each of {count} tensors, got {len(entries)}")
    return entries
