"""Rules: what is asked of which tensors. Written as TOML, as dicts, or by the command line's flags."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from convweights.checkpoint.errors import CheckpointError, reason, sentence
from convweights.maps import RESCALES
from convweights.ops.initializers import INITIALIZERS, Initializer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

HOWS = ("tile", "interleave", "blocks", "strided", "truncate", "keep", "zeros")
OR_AN_INITIALIZER = "an initialiser such as 'kaiming_normal'"
LETTERS = "OIDHW"
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Channels:
    """A new number of channels; ``how`` and ``rescale`` of None mean the defaults for the direction.

    ``arguments`` are those of the initialiser where ``how`` is one, its seed among them.
    """

    to: int
    how: str | None = None
    rescale: str | None = None
    arguments: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        given = [f"{name}={value}" for name, value in self.arguments]
        return ":".join(str(part) for part in (self.to, self.how, self.rescale, *given) if part is not None)

    def initializer(self, stream: str) -> Initializer:
        """The initialiser that ``how`` names, for new channels of the tensor of that name."""
        return INITIALIZERS[str(self.how)](**{"seed": 0, **dict(self.arguments), "stream": stream})


@dataclass(frozen=True)
class Layout:
    """The order of a weight's dimensions, before and after: ``HWIO->OIHW``."""

    source: str
    target: str

    @property
    def permutation(self) -> tuple[int, ...]:
        """For ``torch.permute``: which source dimension each target dimension is."""
        return tuple(self.source.index(letter) for letter in self.target)

    def __str__(self) -> str:
        return f"{self.source}->{self.target}"


@dataclass(frozen=True)
class Rule:
    """What is asked of the tensors that ``match`` names.

    It names one tensor (``conv1.weight``), one layer (``conv1``: its weight, its bias, and a
    normalisation's running statistics), what a glob fits
    (``*.weight``; ``*`` crosses dots), or what a regular expression fits as a whole (``re:...``). ``origin`` is where
    the rule stands, for messages.
    """

    match: str
    in_channels: Channels | None = None
    out_channels: Channels | None = None
    layout: Layout | None = None
    dtype: torch.dtype | None = None
    origin: str = ""

    def __str__(self) -> str:
        return f"{self.origin} (match {self.match!r})" if self.origin else f"the rule for {self.match!r}"


SETTINGS = tuple(field.name for field in fields(Rule) if field.name not in ("match", "origin"))


def load_rules(function: str, rules: Any) -> list[Rule]:
    """``rules=`` as a list of Rule: from a path to TOML, or from a list of dicts and Rules."""
    if rules is None:
        return []
    if isinstance(rules, (str, PathLike)):
        return _from_toml(function, Path(rules))
    if isinstance(rules, Mapping) or not isinstance(rules, Iterable):
        raise TypeError(sentence(function, "rules", "be a path to TOML or a list of dicts", f"{rules!r}"))
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
    settings = {key: value for key, value in values.items() if key != "match" and value is not None}
    if not settings:
        raise ValueError(sentence(function, origin, f"ask for one of {', '.join(SETTINGS)}", f"only match {match!r}"))
    return Rule(
        match,
        parse_channels(function, f"in_channels of {origin}", settings.get("in_channels")),
        parse_channels(function, f"out_channels of {origin}", settings.get("out_channels")),
        parse_layout(function, f"layout of {origin}", settings.get("layout")),
        parse_dtype(function, f"dtype of {origin}", settings.get("dtype")),
        origin,
    )


def parse_channels(function: str, argument: str, value: Any) -> Channels | None:
    if value is None or isinstance(value, Channels):
        return value
    table = dict(value) if isinstance(value, Mapping) else {"to": value}
    to, how, rescale = table.pop("to", None), table.pop("how", None), table.pop("rescale", None)
    if how is not None and not (isinstance(how, str) and (how in HOWS or how in INITIALIZERS)):
        rule = f"be {', '.join(map(repr, HOWS))} or {OR_AN_INITIALIZER}"
        raise ValueError(sentence(function, f"how in {argument}", rule, repr(how)))
    known = {field.name for field in fields(INITIALIZERS[how])} - {"stream"} if how in INITIALIZERS else set()
    if to is None or not set(table) <= known:
        rule = f"be a number of channels or a table of {', '.join(('to', 'how', *sorted(known)))} and rescale"
        raise ValueError(sentence(function, argument, rule, repr(value)))
    if isinstance(to, bool) or not isinstance(to, int):
        raise TypeError(sentence(function, argument, "be an int", repr(to)))
    if to < 1:
        raise ValueError(sentence(function, argument, "be at least 1", to))
    if rescale is not None and rescale not in RESCALES:
        raise ValueError(sentence(function, f"rescale in {argument}", f"be {_either(RESCALES)}", repr(rescale)))
    channels = Channels(to, how, rescale, tuple(sorted(table.items())))
    if how in INITIALIZERS:
        channels.initializer("").checked(function, (1, 1), torch.float64, f" in {argument}")
    return channels


def parse_layout(function: str, argument: str, value: Any) -> Layout | None:
    if value is None or isinstance(value, Layout):
        return value
    if not isinstance(value, str):
        raise TypeError(sentence(function, argument, "be a string such as 'HWIO->OIHW'", repr(value)))
    source, arrow, target = (part.strip() for part in value.partition("->"))
    letters = set(source)
    if not arrow or len(letters) != len(source) or sorted(source) != sorted(target) or not letters <= set(LETTERS):
        rule = f"hold the same letters of {LETTERS}, each once, on both sides of ->"
        raise ValueError(sentence(function, argument, rule, repr(value)))
    if not source:
        raise ValueError(sentence(function, argument, "name at least one dimension", repr(value)))
    return Layout(source, target)


def parse_dtype(function: str, argument: str, value: Any) -> torch.dtype | None:
    if value is None or (isinstance(value, torch.dtype) and value in DTYPES.values()):
        return value
    if isinstance(value, str) and value in DTYPES:
        return DTYPES[value]
    raise TypeError(sentence(function, argument, f"be {_either(tuple(DTYPES))}", repr(value)))


def _either(allowed: tuple[str, ...]) -> str:
    return f"{', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}"
