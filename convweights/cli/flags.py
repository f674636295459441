"""The flags that say what rules say, and the rules they become: one a flag."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from convweights.fitting.errors import sentence
from convweights.fitting.rules import Rule, load_rules, parse_rule
from convweights.fitting.settings import HOWS, INIT, INITIALISED
from convweights.ops.initializers import INITIALIZERS

# Of as many digits as fit into 64 bits.
_INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)


def _many(flag: str, metavar: str, help: str) -> Any:
    return Annotated[list[str] | None, typer.Option(flag, metavar=metavar, help=help)]


InChannels = _many(
    "--in-channels",
    "NAME=N[:how[:rescale]]",
    "Fit input channels. NAME: a tensor, a layer (its weight, bias and running statistics), a glob or re:... "
    "how: tile, interleave, blocks, strided, truncate, keep, zeros, or an initialiser for what is new: "
    f"{', '.join(INITIALIZERS)}. rescale: none, uniform, exact. With --like N may be left out.",
)
OutChannels = _many("--out-channels", "NAME=N[:how[:rescale]]", "Fit output channels, likewise.")
Select = _many("--select", "NAME=0,2,1", "Take these input channels, in this order: BGR for RGB, bands.")
KernelSize = _many("--kernel-size", "NAME=K[:how]", "K or KxK. how: center, resize, init (or an initialiser).")
Inflate = _many("--inflate", "NAME=T[:how]", "A 2D kernel to a 3D one of depth T. how: mean, center.")
Deflate = _many("--deflate", "NAME=how", "A 3D kernel to a 2D one. how: mean, center.")
Groups = _many("--groups", "NAME=G", "The groups of a grouped convolution, inside which channels are fitted.")
Layouts = _many("--layout", "NAME=HWIO->OIHW", "Reorder a weight's dimensions.")
Renames = _many("--rename", "NAME=NEW", r"A new name of a tensor or layer; of re:(.*)\.kernel it may be \1.weight.")
Drop = _many("--drop", "NAME", "Leave tensors out.")
Only = _many("--only", "NAME", "Leave all other tensors out.")
New = _many("--new", "NAME=how", "Take nothing from SRC. how: keep (the values of --like), zeros, or an initialiser.")
Dtype = Annotated[str | None, typer.Option(help="float64, float32, float16 or bfloat16 for all floating tensors.")]
Like = Annotated[
    Path | None,
    typer.Option(metavar="TEMPLATE", help="A checkpoint whose names, shapes and dtypes decide.", show_default=False),
]
NoStrict = Annotated[
    bool, typer.Option("--no-strict", help="With --like: drop what TEMPLATE lacks, keep what SRC lacks; say so.")
]
Seed = Annotated[int | None, typer.Option(help="Of the initialisers that flags ask for; 0 unless given.")]
RulesFile = Annotated[Path | None, typer.Option("--rules", help="A TOML file of rules.", show_default=False)]


# By the fields of a rule that they set; select is a way of in_channels.
RULE_FLAGS: dict[str, Any] = {
    "in_channels": InChannels,
    "out_channels": OutChannels,
    "select": Select,
    "kernel_size": KernelSize,
    "inflate": Inflate,
    "deflate": Deflate,
    "groups": Groups,
    "layout": Layouts,
    "rename": Renames,
    "drop": Drop,
    "only": Only,
    "new": New,
}


def with_rule_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the flags of rules, with --rules and --seed; it is called with all these as ``asked``."""
    shared = {**RULE_FLAGS, "rules": RulesFile, "seed": Seed}
    given = inspect.signature(command, eval_str=True).parameters
    added = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=a) for n, a in shared.items()
    ]

    def run(**arguments: Any) -> None:
        asked = {name: arguments.pop(name) for name in shared}
        command(**arguments, asked=asked)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in given.values() if p.name != "asked"]
    lead = [p for p in parameters if p.default is inspect.Parameter.empty]
    ordered = [*lead, *added, *(p for p in parameters if p not in lead)]
    run.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in ordered}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


@dataclass(frozen=True)
class Flags:
    """All that was asked on the command line, with the rules of the file first."""

    rules: list[Rule]
    by_flags: bool

    def as_file(self, remaining: Sequence[str]) -> str:
        """The rules as TOML, headed by the command that repeats this one; empty where no flag said anything."""
        if not self.by_flags:
            return ""
        command = shlex.join(["convweights", "convert", *remaining]) + " --rules FILE"
        return "\n\n".join([f"# the same by a file: {command}", *(rule.toml() for rule in self.rules)])


def gather(function: str, *, rules: Path | None, seed: int | None, **flags: Sequence[str] | None) -> Flags:
    """The rules of the file, then those of the flags, named as the fields they set."""
    gathered = list(load_rules(function, rules))
    before, drawn = len(gathered), False
    for setting, texts in flags.items():
        flag = "--" + setting.replace("_", "-")
        for text in texts or ():
            name, value = (text, True) if setting in ("drop", "only") else _value(function, flag, setting, text)
            if not name:
                raise ValueError(sentence(function, flag, "be NAME", repr(text)))
            if seed is not None and isinstance(value, dict) and value.get("how") in INIT:
                value["seed"], drawn = seed, True
            field = "in_channels" if setting == "select" else setting
            gathered.append(parse_rule(function, {"match": name, field: value}, f"{flag} {text}"))
    if seed is not None and not drawn:
        must = "be used by a flag that initialises channels, such as --out-channels conv1=48:kaiming_normal"
        raise ValueError(sentence(function, "--seed", must, seed))
    return Flags(gathered, len(gathered) > before)


def _value(function: str, flag: str, setting: str, text: str) -> tuple[str, Any]:
    # The last "=": a name may be a regular expression with one in it, what is asked never has one.
    name, equals, asked = text.rpartition("=")
    if not (name and equals and asked):
        raise ValueError(sentence(function, flag, "be NAME=VALUE", repr(text)))
    if setting == "select":
        return name, {"select": _integers(function, flag, text, asked.split(","), "NAME=0,2,1")}
    if setting == "groups":
        return name, _integers(function, flag, text, [asked], "NAME=G")[0]
    return name, _size(function, flag, setting, text, asked) if setting in HOWS else asked


def _integers(function: str, flag: str, text: str, parts: Sequence[str], form: str) -> list[int]:
    if not all(_INTEGER.fullmatch(part.strip()) for part in parts):
        raise ValueError(sentence(function, flag, f"be {form}", repr(text)))
    return [int(part) for part in parts]


def _size(function: str, flag: str, setting: str, text: str, asked: str) -> dict[str, Any]:
    """``N[:how[:rescale]]``, where N may be left out."""
    rescaled = setting in ("in_channels", "out_channels")
    form = "NAME=N[:how[:rescale]]" if rescaled else "NAME=how" if setting in ("deflate", "new") else "NAME=N[:how]"
    table: dict[str, Any] = {}
    parts = asked.split(":")
    sizes = parts[0].split("x") if setting == "kernel_size" else parts[:1]
    if setting not in ("deflate", "new") and all(map(_INTEGER.fullmatch, sizes)):
        numbers = [int(size) for size in sizes]
        table["to"] = numbers if len(numbers) > 1 else numbers[0]
        parts = parts[1:]
    known = (*HOWS[setting], *(INIT if setting in INITIALISED else ()))
    number = "to" in table
    if len(parts) > 1 + rescaled or not all(parts) or (not number and parts[0] not in known):
        raise ValueError(sentence(function, flag, f"be {form}", repr(text)))
    return {**table, **dict(zip(("how", "rescale"), parts, strict=False))}
