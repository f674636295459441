"""Which tensors each rule means, and what all rules together ask of each tensor."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convweights.checkpoint.contents import TensorInfo
from convweights.checkpoint.errors import CheckpointError, sentence
from convweights.checkpoint.rules import SETTINGS, Rule
from convweights.ops.check import COMPUTE_DTYPES

# What a layer prefix means. A normalisation that loses channels loses their statistics too, or it loads nowhere.
_LAYER = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Match:
    """The tensors that a rule means. ``named``: the rule spells out one tensor, so all it asks must be possible for
    it; a layer, a glob or an expression asks of each tensor what its rank and dtype allow.
    """

    names: tuple[str, ...]
    named: bool


@dataclass
class Asked:
    """What the rules together ask of one tensor: each setting with the rule it comes from."""

    settings: dict[str, tuple[Any, Rule]] = field(default_factory=dict)

    def get(self, setting: str) -> Any:
        return self.settings[setting][0] if setting in self.settings else None


def match_rule(function: str, path: Path, rule: Rule, names: Iterable[str]) -> Match:
    """The tensors that ``rule.match`` means; a rule that means none is an error.

    A tensor's full name comes first, then a layer's, then globs: a name with brackets in it is still a name.
    """
    known = list(names)
    if rule.match in known:
        return Match((rule.match,), named=True)
    found = tuple(_search(function, rule, known))
    if not found:
        layers = [name.rpartition(".")[0] for name in known if name.endswith(".weight")]
        # A prefix left out, as DistributedDataParallel's "module.", before a slip of the pen.
        inner = [name for name in dict.fromkeys([*layers, *known]) if name.endswith(f".{rule.match}")]
        close = inner[:3] or difflib.get_close_matches(rule.match, [*known, *layers], n=3)
        remedy = f"did you mean {' or '.join(close)}?" if close else ""
        argument, must = f"match of {rule.origin or 'a rule'}", f"name a tensor or a layer of {path}"
        raise CheckpointError(sentence(function, argument, must, repr(rule.match), remedy), path)
    return Match(found, named=False)


def _search(function: str, rule: Rule, names: list[str]) -> list[str]:
    if rule.match.startswith("re:"):
        try:
            pattern = re.compile(rule.match[3:])
        except re.error as error:
            argument, got = f"match of {rule.origin or 'a rule'}", f"{rule.match!r} ({error})"
            raise ValueError(sentence(function, argument, "be a valid regular expression", got)) from None
        return [name for name in names if pattern.fullmatch(name)]
    layer = {f"{rule.match}.{part}" for part in _LAYER}
    found = [name for name in names if name in layer]
    return found or [name for name in names if fnmatch.fnmatchcase(name, rule.match)]


def collect(
    function: str, path: Path, rules: Iterable[Rule], tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, Asked], list[str]]:
    """What is asked of each tensor, and notes on what a rule left alone.

    Every matching rule applies; two that set one thing of one tensor differently are an error that shows both.
    """
    asked: dict[str, Asked] = {name: Asked() for name in tensors}
    notes: list[str] = []
    for rule in rules:
        match = match_rule(function, path, rule, tensors)
        for setting in SETTINGS:
            value = getattr(rule, setting)
            if value is None:
                continue
            reached = [name for name in match.names if _reaches(setting, value, tensors[name])]
            if not reached or (match.named and len(reached) < len(match.names)):
                raise _unreachable(function, path, rule, setting, value, tensors[match.names[0]])
            skipped = [name for name in match.names if name not in reached]
            if setting == "layout" and skipped:
                notes.append(f"layout {value} left alone what has another rank: {', '.join(skipped)}")
            for name in reached:
                _set(function, path, asked[name], setting, value, rule, name)
    return asked, notes


def _reaches(setting: str, value: Any, info: TensorInfo) -> bool:
    """Whether a setting can mean this tensor at all; its sizes are looked at later."""
    if setting == "dtype":
        return info.plain and is_computed(info)
    if setting == "layout":
        return len(info.shape) == len(value.source)
    return len(info.shape) >= (2 if setting == "in_channels" else 1)


def is_computed(info: TensorInfo) -> bool:
    """Whether the tensor is of a dtype that converts; float8 and its kin do not."""
    return info.dtype in COMPUTE_DTYPES


def _unreachable(function: str, path: Path, rule: Rule, setting: str, value: Any, info: TensorInfo) -> CheckpointError:
    must = {
        "in_channels": "act on a weight of rank 2 or more",
        "out_channels": "act on a tensor of rank 1 or more",
        "layout": f"have as many letters as {info.name} in {path} has dimensions",
        "dtype": "act on a tensor of float64, float32, float16 or bfloat16",
    }[setting]
    got = f"{info.name} in {path} of shape {info.shape} and {str(info.dtype).removeprefix('torch.')}"
    if setting == "layout":
        got = f"{value} for shape {info.shape}"
    return CheckpointError(sentence(function, f"{setting} of {rule}", must, got), path, info.name)


def _set(function: str, path: Path, asked: Asked, setting: str, value: Any, rule: Rule, name: str) -> None:
    if setting in asked.settings and asked.settings[setting][0] != value:
        before, first = asked.settings[setting]
        got = f"{before} from {first} and {value} from {rule}"
        message = sentence(function, "rules", f"agree on {setting} of {name}", got)
        raise CheckpointError(message, path, name)
    asked.settings.setdefault(setting, (value, rule))
