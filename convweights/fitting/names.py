"""Which source tensor becomes which target tensor: renames, what is dropped, what begins anew, what is left over."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convweights.fitting.contents import Contents, TensorInfo
from convweights.fitting.errors import sentence
from convweights.fitting.matching import Asked, names_of
from convweights.fitting.rules import Rule
from convweights.fitting.settings import Rename

_WITHOUT_RULES = ("transfer_layer_", "adapt_layer")
Dropped = tuple[TensorInfo, str]


@dataclass(frozen=True)
class Pairing:
    """``target`` has, in the target's order, each name with the source tensor it comes from, or None.

    ``dropped`` are the source's tensors that go nowhere, each with the reason.
    """

    target: Mapping[str, TensorInfo | None]
    dropped: tuple[Dropped, ...]


def renamed(function: str, source: Contents, asked: Mapping[str, Asked]) -> dict[str, str]:
    """The names after all renames at once. A circle, or two tensors with one name, is an error."""
    new = {name: name for name in source.tensors if "drop" not in asked[name].settings}
    for name in filter(new.__contains__, names_of(asked, "rename")):
        rename, rule = asked[name].settings["rename"]
        assert rule is not None
        new[name] = _new_name(function, rename, rule, name)
    for name in new:
        seen = [name]
        while seen[-1] != new.get(seen[-1], seen[-1]) and new[seen[-1]] not in seen:
            seen.append(new[seen[-1]])
        if len(seen) > 1 and new.get(seen[-1]) == name:
            got, remedy = " -> ".join([*seen, name]), "convert in two steps, through a name that is free"
            raise source.error(sentence(function, "rename", "not lead in a circle", got, remedy), name)
    return new


def _new_name(function: str, rename: Rename, rule: Rule, name: str) -> str:
    pattern = rename.pattern if rename.pattern is not None else rule.match[3:] if rule.match.startswith("re:") else None
    if pattern is None:
        return rename.to + name[len(rule.match) :] if name.startswith(f"{rule.match}.") else rename.to
    found = re.fullmatch(pattern, name)
    if found is None:
        return name
    try:
        to = found.expand(rename.to)
    except (re.error, IndexError) as error:
        got = f"{rename.to!r} ({error})"
        raise ValueError(
            sentence(function, f"rename of {rule.origin or 'a rule'}", "refer to groups of its pattern", got)
        ) from None
    if not to:
        argument = f"rename of {rule.origin or 'a rule'}"
        raise ValueError(sentence(function, argument, "give a name", f"none for {name} by {rename}"))
    return to


def going(function: str, source: Contents, asked: Mapping[str, Asked]) -> tuple[dict[str, TensorInfo], list[Dropped]]:
    """The source's tensors by their new names, and those that rules leave out."""
    only = names_of(asked, "only")
    new_names = renamed(function, source, asked)
    staying: dict[str, TensorInfo] = {}
    dropped: list[Dropped] = []
    for name, info in source.tensors.items():
        to = new_names.get(name, name)
        if "drop" in asked[name].settings:
            dropped.append((info, "dropped"))
        elif only and name not in only:
            dropped.append((info, "dropped, not among only"))
        elif to in staying:
            got = f"{to} from {staying[to].name} and from {name} in {source.label}"
            raise source.error(sentence(function, "rename", "give each tensor a name of its own", got), name)
        else:
            staying[to] = info
    return staying, dropped


def pair(
    function: str,
    source: Contents,
    going: Mapping[str, TensorInfo],
    template: Contents | None,
    anew: Mapping[str, Asked],
    *,
    strict: bool,
) -> Pairing:
    """Every tensor of both sides in its place; one that has none is an error where it is ``strict``."""
    begun = [(info, f"dropped, {to} begins anew") for to, info in going.items() if to in anew]
    if template is None:
        return Pairing({to: None if to in anew else info for to, info in going.items()}, tuple(begun))
    dropped = []
    for to, info in going.items():
        if to not in template.tensors:
            if strict:
                raise _unmatched(function, source, to, info, template, going)
            dropped.append((info, f"dropped, not in {template.label}"))
    target = {name: None if name in anew else going.get(name) for name in template.tensors}
    for names in template.ties:
        # Tied tensors are one: what one of them gets is what all get.
        found = next((target[name] for name in names if target[name] is not None), None)
        target.update((name, found) for name in names if target[name] is None and name not in anew)
    missing = [name for name, info in target.items() if info is None and name not in anew]
    if strict and missing:
        raise _missing(function, source, missing, template, going)
    return Pairing(target, (*begun, *dropped))


def _unmatched(
    function: str, source: Contents, to: str, info: TensorInfo, template: Contents, going: Mapping[str, TensorInfo]
) -> Exception:
    remedy = _prefix(list(going), list(template.tensors)) or (
        "transfer_model_ takes rules that drop it"
        if function in _WITHOUT_RULES
        else "rename or drop it, or pass strict=False (--no-strict)"
    )
    others = sum(name not in template.tensors for name in going) - 1
    got = f"{to} and {others} more" if others else to
    return source.error(
        sentence(function, f"names of {source.label}", f"be in {template.label}", got, remedy), info.name
    )


def _missing(
    function: str, source: Contents, names: Sequence[str], template: Contents, going: Mapping[str, TensorInfo]
) -> Exception:
    remedy = _prefix(list(going), list(template.tensors)) or (
        "transfer_model_ takes rules that let it keep its values"
        if function in _WITHOUT_RULES
        else "let it keep its values with a rule new = 'keep' (--new NAME=keep), or pass strict=False (--no-strict)"
    )
    got = f"none for {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    must = f"have a tensor for each of {template.label}"
    return source.error(sentence(function, source.label, must, got, remedy), names[0])


def _prefix(source: list[str], target: list[str]) -> str:
    """A remedy where the names differ by one prefix, as DistributedDataParallel's."""
    known = set(target)
    for name in source[:1]:
        for other in target:
            if name.endswith(f".{other}"):
                prefix = name[: -len(other)]
                if all(n.startswith(prefix) and n[len(prefix) :] in known for n in source):
                    return f"rename them with match 're:{re.escape(prefix)}(.*)' and rename '\\1'"
            if other.endswith(f".{name}"):
                prefix = other[: -len(name)]
                if all(prefix + n in known for n in source):
                    return f"rename them with match 're:(.*)' and rename '{prefix}\\1'"
    return ""
