"""Names that are one tensor: which of them stay one, and what is said of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from convweights.fitting.contents import Contents, TensorInfo
from convweights.fitting.report import TensorPlan

Ties = tuple[tuple[str, ...], ...]


def change_of(tensor: TensorPlan) -> tuple[object, ...]:
    """What is done, whatever the names: alike for two plans that make the same of the same values."""
    source, target = tensor.source, tensor.target
    return (
        None if source is None else (source.shape, source.dtype),
        (target.shape, target.dtype),
        (tensor.permutation, tensor.source_view, tensor.target_view),
        (tensor.kept, tuple(sorted((tensor.maps or {}).items())), tensor.factor),
        (tensor.base, tensor.reads),
    )


def staying_ties(source: Contents, template: Contents | None, tensors: Sequence[TensorPlan]) -> Ties:
    """Groups of the target's names that are one tensor in the source and of which the same becomes. Where values of a
    template are kept, they are one there as well.
    """
    of_source, of_template = _first_of_each(source), {} if template is None else _first_of_each(template)
    of_one: dict[str, list[TensorPlan]] = {}
    for tensor in tensors:
        if tensor.source is not None:
            of_one.setdefault(of_source.get(tensor.source.name, tensor.source.name), []).append(tensor)
    found: list[tuple[str, ...]] = []
    for candidates in filter(lambda candidates: len(candidates) > 1, of_one.values()):
        groups: dict[object, list[str]] = {}
        for tensor in candidates:
            kept = of_template.get(tensor.name, tensor.name) if tensor.base == "keep" else None
            groups.setdefault((kept, change_of(tensor)), []).append(tensor.name)
        found += [tuple(names) for names in groups.values() if len(names) > 1]
    return tuple(found)


def first_names(source: Contents, target: Mapping[str, TensorInfo | None]) -> dict[str, str]:
    """For each of the target's names the first that is made of the same tensor of the source."""
    of_source = _first_of_each(source)
    first: dict[str, str] = {}
    found = {}
    for name, info in target.items():
        if info is not None:
            found[name] = first.setdefault(of_source.get(info.name, info.name), name)
    return found


def _first_of_each(contents: Contents) -> dict[str, str]:
    return {name: names[0] for names in contents.ties for name in names}


def split_ties(source: Contents, tensors: Sequence[TensorPlan], staying: Ties) -> list[str]:
    """A tensor that changes otherwise than one whose memory it shared no longer shares it; that is said."""
    group = {name: names for names in staying for name in names}
    going = {tensor.source.name: tensor for tensor in tensors if tensor.source is not None}
    notes = []
    for names in source.shared:
        together = [name for name in names if name in going]
        said: set[tuple[str, str]] = set()
        for name in together:
            alike = group.get(going[name].name, ())
            others = [other for other in together if other != name and going[other].name not in alike]
            others = [other for other in others if (other, name) not in said]
            if going[name].rewritten and others:
                notes.append(f"{name} no longer shares memory with {', '.join(others)}")
                said.update((name, other) for other in others)
    return notes
