"""Finds the state dict in what a ``.pt`` file holds: at the top, or one level down under a key in common use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from convweights.checkpoint.contents import Surroundings
from convweights.fitting.errors import CheckpointError, sentence

USUAL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "network",
    "net",
    "module",
    "params",
    "params_ema",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "ema",
    "weights",
    "generator",
    "teacher",
    "student",
)


def find_state(function: str, argument: str, path: Path, root: Any) -> Surroundings:
    """Where the state dict is and what stands around it; several candidates are an error, not a guess."""
    if not isinstance(root, Mapping):
        got = f"{path}, which holds a {type(root).__name__}"
        raise CheckpointError(sentence(function, argument, "hold a state dict (a dict of tensors)", got), path)
    candidates = [key for key in USUAL_KEYS if key in root and _has_tensors(root[key])]
    if len(candidates) > 1:
        rule, got = "hold one state dict", f"several in {path}: {', '.join(candidates)}"
        raise CheckpointError(sentence(function, argument, rule, got, "save the one you mean by itself"), path)
    if not candidates and not _has_tensors(root):
        rule = f"hold tensors at the top or one level down under {', '.join(USUAL_KEYS[:4])} or the like"
        got = f"{path}, which holds {_list(root) or 'nothing'}"
        raise CheckpointError(sentence(function, argument, rule, got), path)
    nested = candidates[0] if candidates else None
    state = root[nested] if nested is not None else root
    return Surroundings(
        nested=nested,
        entries=tuple(str(key) for key in root if key != nested) if nested is not None else (),
        inside=tuple(str(key) for key, value in state.items() if not is_named_tensor(key, value)),
        ties=_ties(state),
        root=root,
        state=state,
    )


def is_named_tensor(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, torch.Tensor)


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(is_named_tensor(key, item) for key, item in value.items())


def _list(root: Mapping[Any, Any], most: int = 8) -> str:
    names = [str(key) for key in root]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _ties(state: Mapping[Any, Any]) -> tuple[tuple[str, ...], ...]:
    """Names whose tensors lie in one storage, as tied weights do."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, tensor in state.items():
        if is_named_tensor(name, tensor) and tensor.layout == torch.strided and not tensor.is_meta and tensor.numel():
            groups[tensor.untyped_storage().data_ptr()].append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)
