"""Which tensors each rule means, and what all rules together ask of each tensor."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from convweights.fitting.axes import DEPTH, KERNEL, Axes, usual
from convweights.fitting.contents import Contents, TensorInfo
from convweights.fitting.errors import sentence
from convweights.fitting.rules import NAMING, SETTINGS, Rule
from convweights.ops.check import COMPUTE_DTYPES

# What of a layer changes with its sizes. A normalisation that loses channels loses their statistics too, or it loads
# nowhere.
_LAYER = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Match:
    """The tensors that a rule means. ``named``: the rule spells out one tensor, so all it asks must be possible for
    it; a layer, a glob or an expression asks of each tensor what its rank and dtype allow.
    """

    names: tuple[str, ...]
    named: bool = False
    layer: bool = False


@dataclass
class Asked:
    """What the rules together ask of one tensor: each setting with the rule it comes from."""

    settings: dict[str, tuple[Any, Rule | None]] = field(default_factory=dict)

    def get(self, setting: str) -> Any:
        return self.settings[setting][0] if setting in self.settings else None

    def says(self, setting: str) -> bool:
        """Whether a rule asks for it, or a default that says how."""
        value, rule = self.settings.get(setting, (None, None))
        return rule is not None or getattr(value, "how", None) not in (None, "error")

    def rule(self, setting: str) -> Rule | None:
        return self.settings[setting][1] if setting in self.settings else None


def match_rule(function: str, contents: Contents, rule: Rule, names: Iterable[str]) -> Match:
    """The tensors that ``rule.match`` means; a rule that means none is an error.

    A tensor's full name comes first, then a layer's, then globs: a name with brackets in it is still a name.
    """
    known = list(names)
    if rule.match in known:
        return Match((rule.match,), named=True)
    match = _search(function, rule, known)
    if not match.names:
        layers = [name.rpartition(".")[0] for name in known if name.endswith(".weight")]
        if any(name.startswith(f"{rule.match}.") for name in known):
            remedy = f"{rule.match}.* means all that lies under it"
        else:
            # A prefix left out, as DistributedDataParallel's "module.", before a slip of the pen.
            inner = [name for name in dict.fromkeys([*layers, *known]) if name.endswith(f".{rule.match}")]
            close = inner[:3] or difflib.get_close_matches(rule.match, [*known, *layers], n=3)
            remedy = f"did you mean {' or '.join(close)}?" if close else ""
        argument, must = f"match of {rule.origin or 'a rule'}", f"name a tensor or a layer of {contents.label}"
        raise contents.error(sentence(function, argument, must, repr(rule.match), remedy))
    return match


def _search(function: str, rule: Rule, names: list[str]) -> Match:
    if rule.match.startswith("re:"):
        try:
            pattern = re.compile(rule.match[3:])
        except re.error as error:
            argument, got = f"match of {rule.origin or 'a rule'}", f"{rule.match!r} ({error})"
            raise ValueError(sentence(function, argument, "be a valid regular expression", got)) from None
        return Match(tuple(name for name in names if pattern.fullmatch(name)))
    if any(f"{rule.match}.{part}" in names for part in _LAYER):
        return Match(tuple(name for name in names if name.rpartition(".")[0] == rule.match), layer=True)
    return Match(tuple(name for name in names if fnmatch.fnmatchcase(name, rule.match)))


def collect(function: str, source: Contents, rules: Iterable[Rule]) -> tuple[dict[str, Asked], list[str]]:
    """What is asked of each tensor of the source, and notes on what a rule left alone.

    Every matching rule applies; two that set one thing of one tensor differently are an error that shows both.
    Rules that say ``new`` are not about the source's tensors: see :func:`collect_new`.
    """
    tensors = source.tensors
    asked: dict[str, Asked] = {name: Asked() for name in tensors}
    notes: list[str] = []
    for rule in rules:
        if rule.new is not None:
            continue
        match = match_rule(function, source, rule, tensors)
        for setting in SETTINGS:
            value = getattr(rule, setting)
            if value is None:
                continue
            meant = [n for n in match.names if not match.layer or setting in NAMING or n.rpartition(".")[2] in _LAYER]
            reached = [name for name in meant if _reaches(setting, value, tensors[name])]
            if not reached or (match.named and len(reached) < len(meant)):
                raise _unreachable(function, source, rule, setting, value, tensors[match.names[0]])
            skipped = [name for name in meant if name not in reached]
            if setting == "layout" and skipped:
                notes.append(f"layout {value} left alone what has another rank: {', '.join(skipped)}")
            for name in reached:
                _set(function, source, asked[name], setting, value, rule, name)
    return asked, notes


def collect_new(function: str, target: Contents, names: Iterable[str], rules: Iterable[Rule]) -> dict[str, Asked]:
    """What begins anew of the target's tensors, which have ``names``."""
    asked: dict[str, Asked] = {}
    for rule in rules:
        if rule.new is not None:
            for name in match_rule(function, target, rule, names).names:
                _set(function, target, asked.setdefault(name, Asked()), "new", rule.new, rule, name)
    return asked


def _reaches(setting: str, value: Any, info: TensorInfo) -> bool:
    """Whether a setting can mean this tensor at all; its sizes are looked at later."""
    rank, roles = len(info.shape), axes_of(info).roles
    return {
        "dtype": lambda: info.plain and is_computed(info),
        "layout": lambda: rank == len(value.source),
        "in_channels": lambda: "in_channels" in roles if info.axes else rank >= 2,
        "out_channels": lambda: rank >= 1,
        "groups": lambda: rank >= 1,
        "kernel_size": lambda: any(role in KERNEL for role in roles),
        "rename": lambda: value.pattern is None or re.fullmatch(value.pattern, info.name) is not None,
        "inflate": lambda: "height" in roles and DEPTH not in roles,
        "deflate": lambda: DEPTH in roles,
    }.get(setting, lambda: True)()


def axes_of(info: TensorInfo) -> Axes:
    return info.axes or usual(len(info.shape))


def is_computed(info: TensorInfo) -> bool:
    """Whether the tensor is of a dtype that converts; float8 and its kin do not."""
    return info.dtype in COMPUTE_DTYPES


def _unreachable(function: str, source: Contents, rule: Rule, setting: str, value: Any, info: TensorInfo) -> Exception:
    must = {
        "in_channels": "act on a weight of rank 2 or more",
        "out_channels": "act on a tensor of rank 1 or more",
        "groups": "act on a tensor of rank 1 or more",
        "kernel_size": "act on a weight with a kernel",
        "inflate": "act on a weight with a 2D kernel",
        "rename": "fit the whole name of a tensor that it matches",
        "deflate": "act on a weight with a 3D kernel",
        "layout": f"have as many letters as {info.name} in {source.label} has dimensions",
        "dtype": "act on a tensor of float64, float32, float16 or bfloat16",
    }[setting]
    got = f"{info.name} in {source.label} of shape {info.shape} and {str(info.dtype).removeprefix('torch.')}"
    if setting == "layout":
        got = f"{value} for shape {info.shape}"
    return source.error(sentence(function, f"{setting} of {rule}", must, got), info.name)


def _set(function: str, contents: Contents, asked: Asked, setting: str, value: Any, rule: Rule, name: str) -> None:
    if setting in asked.settings and asked.settings[setting][0] != value:
        before, first = asked.settings[setting]
        got = f"{before} from {first} and {value} from {rule}"
        raise contents.error(sentence(function, "rules", f"agree on {setting} of {name}", got), name)
    asked.settings.setdefault(setting, (value, rule))


def names_of(asked: Mapping[str, Asked], setting: str) -> list[str]:
    """The tensors of which a setting is asked."""
    return [name for name, each in asked.items() if setting in each.settings]
