"""What the fields of a rule may say, as values: sizes and how to reach them, layouts, dtypes, new names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from convweights.fitting.errors import sentence
from convweights.maps import RESCALES
from convweights.ops.initializers import INITIALIZERS, Initializer

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LETTERS = "OIDHW"
OR_AN_INITIALIZER = "an initialiser such as 'kaiming_normal'"
# "init" is the initialiser of whoever has no wish.
INIT = {**INITIALIZERS, "init": INITIALIZERS["kaiming_normal"]}

CHANNEL_HOWS = ("tile", "interleave", "blocks", "strided", "truncate", "select", "keep", "zeros")
# By the field that a size stands in; channels and kernels may also be initialised, and so may what is new.
HOWS = {
    "in_channels": CHANNEL_HOWS,
    "out_channels": CHANNEL_HOWS,
    "kernel_size": ("error", "center", "resize", "init"),
    "inflate": ("mean", "center"),
    "deflate": ("mean", "center"),
    "new": ("keep", "zeros", "init"),
}
INITIALISED = ("in_channels", "out_channels", "kernel_size", "new")
RESCALED = ("in_channels", "out_channels")


@dataclass(frozen=True)
class Size:
    """A new size and the way to it. ``to`` of None is the template's, ``how`` and ``rescale`` of None the default's.

    ``arguments`` are those of ``how``: an initialiser's, its seed among them, or a selection's ``select``.
    """

    to: int | tuple[int, ...] | None = None
    how: str | None = None
    rescale: str | None = None
    arguments: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        to = "x".join(map(str, self.to)) if isinstance(self.to, tuple) else self.to
        given = [f"{name}={value}" for name, value in self.arguments]
        return ":".join(str(part) for part in (to, self.how, self.rescale, *given) if part is not None)

    @property
    def draws(self) -> bool:
        """Whether ``how`` is an initialiser."""
        return self.how in INIT

    def initializer(self, stream: str) -> Initializer:
        """The initialiser that ``how`` names, for new values of the tensor of that name."""
        return INIT[str(self.how)](**{"seed": 0, **dict(self.arguments), "stream": stream})


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
class Rename:
    """A new name; with a ``pattern``, the replacement for names that it fits as a whole."""

    to: str
    pattern: str | None = None

    def __str__(self) -> str:
        return self.to if self.pattern is None else f"re:{self.pattern} -> {self.to}"


def parse(function: str, setting: str, argument: str, value: Any) -> Any:
    """The value of one field; ``argument`` is what errors call it."""
    if setting in HOWS:
        return parse_size(function, setting, argument, value)
    return _PARSERS[setting](function, argument, value)


def plain(value: Any) -> Any:
    """A field's value as TOML and JSON can hold it; :func:`parse` reads it back."""
    if isinstance(value, Size):
        table: dict[str, Any] = {}
        if value.to is not None and value.how != "select":
            table["to"] = list(value.to) if isinstance(value.to, tuple) else value.to
        if value.how is not None and value.how != "select":
            table["how"] = value.how
        table.update((name, list(entry) if isinstance(entry, tuple) else entry) for name, entry in value.arguments)
        if value.rescale is not None:
            table["rescale"] = value.rescale
        if set(table) == {"to"}:
            return table["to"]
        return table["how"] if set(table) == {"how"} else table
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return str(value) if isinstance(value, (Layout, Rename)) else value


def parse_size(function: str, setting: str, argument: str, value: Any) -> Size:
    if isinstance(value, Size):
        return value
    hows = HOWS[setting]
    table = dict(value) if isinstance(value, Mapping) else {"how" if isinstance(value, str) else "to": value}
    if "select" in table and "select" in hows:
        return _selection(function, argument, value, table)
    to, how, rescale = table.pop("to", None), table.pop("how", None), table.pop("rescale", None)
    draws = setting in INITIALISED and isinstance(how, str) and how in INIT
    if how is not None and not draws and (how not in hows or how == "select"):
        named = [repr(name) for name in hows if name != "select"]
        rule = f"be {', '.join(named)}" + (f" or {OR_AN_INITIALIZER}" if setting in INITIALISED else "")
        raise ValueError(sentence(function, f"how in {argument}", rule, repr(how)))
    known = {field.name for field in fields(INIT[how])} - {"stream"} if draws else set()
    sized = setting not in ("deflate", "new")
    wanted = "a number of channels" if setting in RESCALED else "a size"
    if not set(table) <= known or (to is None and how is None and rescale is None) or (to is not None and not sized):
        names = (*(("to",) if sized else ()), "how", *sorted(known), *(("rescale",) if setting in RESCALED else ()))
        rule = f"be {f'{wanted} or ' if sized else ''}a table of {_and(names)}"
        raise ValueError(sentence(function, argument, rule, repr(value)))
    if rescale is not None and (setting not in RESCALED or rescale not in RESCALES):
        allowed = _either(RESCALES) if setting in RESCALED else "left out"
        raise ValueError(sentence(function, f"rescale in {argument}", f"be {allowed}", repr(rescale)))
    size = Size(_sizes(function, setting, argument, to), how, rescale, tuple(sorted(table.items())))
    if draws:
        size.initializer("").checked(function, (1, 1), torch.float64, f" in {argument}")
    return size


def _sizes(function: str, setting: str, argument: str, to: Any) -> int | tuple[int, ...] | None:
    if to is None:
        return None
    several = setting == "kernel_size" and isinstance(to, Sequence) and not isinstance(to, str)
    for size in to if several else (to,):
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(sentence(function, argument, "be an int", repr(size)))
        if size >= 2**63:
            raise ValueError(sentence(function, argument, "be below 2^63", size))
        if size < 1:
            raise ValueError(sentence(function, argument, "be at least 1", size))
    if several and not 1 <= len(to) <= 3:
        raise ValueError(sentence(function, argument, "hold one to three sizes", repr(to)))
    return tuple(to) if several else to


def _selection(function: str, argument: str, value: Any, table: dict[str, Any]) -> Size:
    index, rescale, how = table.pop("select"), table.pop("rescale", None), table.pop("how", "select")
    if table or how != "select":
        raise ValueError(sentence(function, argument, "hold only select and rescale where it selects", repr(value)))
    whole = isinstance(index, Sequence) and not isinstance(index, str)
    if not whole or not index or any(isinstance(i, bool) or not isinstance(i, int) for i in index):
        raise TypeError(sentence(function, f"select in {argument}", "be a list of channel numbers", repr(index)))
    if any(not -(2**63) <= i < 2**63 for i in index):
        raise ValueError(sentence(function, f"select in {argument}", "hold numbers of 64 bits", repr(index)))
    if rescale not in (None, "none", "uniform"):
        raise ValueError(sentence(function, f"rescale in {argument}", "be 'none' or 'uniform'", repr(rescale)))
    return Size(len(index), "select", rescale, (("select", tuple(index)),))


def _layout(function: str, argument: str, value: Any) -> Layout:
    if isinstance(value, Layout):
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


def _groups(function: str, argument: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(sentence(function, argument, "be an int", repr(value)))
    if value < 1:
        raise ValueError(sentence(function, argument, "be at least 1", value))
    return value


def _rename(function: str, argument: str, value: Any) -> Rename:
    if isinstance(value, Rename):
        return value
    if not isinstance(value, str) or not value.strip():
        raise TypeError(sentence(function, argument, "be a new name or 're:PATTERN -> REPLACEMENT'", repr(value)))
    if not value.startswith("re:"):
        return Rename(value)
    pattern, arrow, to = (part.strip() for part in value[3:].rpartition("->"))
    if not (pattern and arrow and to):
        raise ValueError(sentence(function, argument, "be a new name or 're:PATTERN -> REPLACEMENT'", repr(value)))
    try:
        re.compile(pattern)
    except re.error as error:
        got = f"{value!r} ({error})"
        raise ValueError(sentence(function, argument, "hold a valid regular expression", got)) from None
    return Rename(to, pattern)


def _true(function: str, argument: str, value: Any) -> bool:
    if value is not True:
        raise TypeError(sentence(function, argument, "be true or left out", repr(value)))
    return True


_PARSERS = {
    "groups": _groups,
    "layout": _layout,
    "dtype": parse_dtype,
    "rename": _rename,
    "drop": _true,
    "only": _true,
}


def _either(allowed: tuple[str, ...]) -> str:
    return f"{', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
