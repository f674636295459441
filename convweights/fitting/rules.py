"""Rules: what is asked of which tensors. Written as TOML, as dicts, or by the command line's flags."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from convweights.fitting import settings
from convweights.fitting.errors import CheckpointError, reason, sentence, shown
from convweights.fitting.settings import Layout, Rename, Size

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

PathOrText = str | PathLike[str]
Rules = PathOrText | Iterable[Any] | None


@dataclass(frozen=True)
class Rule:
    """What is asked of the tensors that ``match`` names.

    It names one tensor (``conv1.weight``), one layer (``conv1``: its weight, its bias, and a
    normalisation's running statistics), what a glob fits
    (``*.weight``; ``*`` crosses dots), or what a regular expression fits as a whole (``re:...``). ``origin`` is where
    the rule stands, for messages.

    Sizes (``in_channels``, ``out_channels``, ``kernel_size``), ``inflate`` and ``deflate`` (between 2D and 3D),
    ``groups`` (of a grouped convolution, of which a file does not know), ``layout`` and ``dtype`` change a tensor;
    ``rename``, ``drop`` and ``only`` decide whether and as what it is written. ``new`` is about tensors of the target:
    they take nothing from the source.
    """

    match: str
    in_channels: Size | None = None
    out_channels: Size | None = None
    kernel_size: Size | None = None
    inflate: Size | None = None
    deflate: Size | None = None
    groups: int | None = None
    layout: Layout | None = None
    dtype: torch.dtype | None = None
    rename: Rename | None = None
    drop: bool | None = None
    only: bool | None = None
    new: Size | None = None
    origin: str = ""

    def __str__(self) -> str:
        return f"{self.origin} (match {self.match!r})" if self.origin else f"the rule for {self.match!r}"

    def toml(self) -> str:
        """The rule as a ``[[rule]]`` table."""
        return "\n".join(["[[rule]]", *(f"{key} = {_text(value)}" for key, value in self.as_dict().items())])

    def as_dict(self) -> dict[str, Any]:
        """The rule as :func:`parse_rule` takes it, for JSON too."""
        given = {setting: getattr(self, setting) for setting in SETTINGS}
        said = {setting: settings.plain(value) for setting, value in given.items() if value is not None}
        return {"match": self.match, **said}


SETTINGS = tuple(field.name for field in fields(Rule) if field.name not in ("match", "origin"))
# What decides names; it is asked of all tensors of a layer, and of tensors of any kind.
NAMING = ("rename", "drop", "only", "new")
# What leaves nothing for another setting to act on.
_ALONE = ("drop", "new")


def load_rules(function: str, rules: Rules) -> list[Rule]:
    """``rules=`` as a list of Rule: from a path to TOML, or from a list of dicts and Rules."""
    if rules is None:
        return []
    if isinstance(rules, (str, PathLike)):
        return _from_toml(function, Path(rules))
    if isinstance(rules, Mapping) or not isinstance(rules, Iterable):
        raise TypeError(sentence(function, "rules", "be a path to TOML or a list of dicts", shown(rules)))
    return [
        rule if isinstance(rule, Rule) else parse_rule(function, rule, f"rules[{position}]")
        for position, rule in enumerate(rules)
    ]


def _from_toml(function: str, path: Path) -> list[Rule]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        got = f"{path} ({reason(error)})"
        raise CheckpointError(sentence(function, "rules", "be a readable TOML file", got), path) from error
    entries = table.get("rule")
    if set(table) != {"rule"} or not isinstance(entries, list):
        rule, got = "hold [[rule]] tables and nothing else", f"{', '.join(table) or 'nothing'} in {path}"
        raise CheckpointError(sentence(function, "rules", rule, got), path)
    return [parse_rule(function, entry, f"rule {number} of {path.name}") for number, entry in enumerate(entries, 1)]


def parse_rule(function: str, values: Any, origin: str) -> Rule:
    """A Rule from a dict, checked for all that can be known without a checkpoint."""
    if not isinstance(values, Mapping):
        raise TypeError(sentence(function, origin, "be a dict", repr(values)))
    unknown = sorted(str(key) for key in values if key != "match" and key not in SETTINGS)
    if unknown:
        rule = f"have only the fields match, {', '.join(SETTINGS)}"
        raise ValueError(sentence(function, origin, rule, ", ".join(unknown)))
    match = values.get("match")
    if not isinstance(match, str) or not match:
        raise TypeError(sentence(function, f"match of {origin}", "be a name, a glob or re:...", repr(match)))
    given = {key: value for key, value in values.items() if key != "match" and value is not None}
    if not given:
        raise ValueError(sentence(function, origin, f"ask for one of {', '.join(SETTINGS)}", f"only match {match!r}"))
    alone = next((key for key in _ALONE if key in given), None)
    if alone and len(given) > 1:
        others = ", ".join(key for key in given if key != alone)
        raise ValueError(sentence(function, origin, f"ask for nothing beside {alone}", others, "make two rules"))
    parsed = {key: settings.parse(function, key, f"{key} of {origin}", value) for key, value in given.items()}
    return Rule(match, **parsed, origin=origin)


def _text(value: Any) -> str:
    """A value in TOML, whose strings and numbers are JSON's where nothing is escaped but quotes and controls."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_text(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return str(value).lower() if isinstance(value, bool) else repr(value)
