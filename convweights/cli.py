"""The command line: convweights inspect | plan | convert | doctor."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import convweights
from convweights import native
from convweights.checkpoint.convert import convert as convert_checkpoint
from convweights.checkpoint.convert import plan_conversion
from convweights.checkpoint.errors import CheckpointError, sentence
from convweights.checkpoint.formats import open_checkpoint
from convweights.checkpoint.report import HEADER, Plan, Report, columns, dtype_name, size
from convweights.checkpoint.rules import load_rules, parse_rule
from convweights.ops.initializers import INITIALIZERS

app = typer.Typer(
    help="Change the weights of neural networks, checkpoint by checkpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Source = Annotated[Path, typer.Argument(metavar="SRC", help="A .safetensors, .pt or .pth file.", show_default=False)]
Target = Annotated[Path, typer.Argument(metavar="DST", help="Its suffix decides the format.", show_default=False)]
InChannels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=N[:how[:rescale]]",
        help="Fit input channels. NAME: a tensor, a layer (its weight, bias and running statistics), a glob or re:... "
        "how: tile, interleave, blocks, strided, truncate, keep, zeros, or an initialiser for what is new: "
        f"{', '.join(INITIALIZERS)}. rescale: none, uniform, exact.",
    ),
]
OutChannels = Annotated[
    list[str] | None, typer.Option(metavar="NAME=N[:how[:rescale]]", help="Fit output channels, likewise.")
]
Layouts = Annotated[
    list[str] | None, typer.Option("--layout", metavar="NAME=HWIO->OIHW", help="Reorder a weight's dimensions.")
]
Dtype = Annotated[str | None, typer.Option(help="float64, float32, float16 or bfloat16 for all floating tensors.")]
Like = Annotated[Path | None, typer.Option(help="A checkpoint whose values 'keep' keeps.", show_default=False)]
Seed = Annotated[int | None, typer.Option(help="Of the initialisers that flags ask for; 0 unless given.")]
Rules = Annotated[Path | None, typer.Option(help=r"A TOML file of rules.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace DST where it exists.")]
NoFsync = Annotated[bool, typer.Option("--no-fsync", help="Do not wait until DST is on the disk.")]


def main() -> None:
    app()


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"convweights {convweights.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def inspect(file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)]) -> None:
    """List a checkpoint's tensors: names, shapes, dtypes, sizes."""
    with _sentences(), open_checkpoint("inspect", "file", file) as checkpoint:
        infos = checkpoint.tensors.values()
        rows = [(info.name, dtype_name(info.dtype), str(info.shape), size(info.nbytes)) for info in infos]
        around = checkpoint.around
        total = f"{len(rows)} tensor{'s' * (len(rows) != 1)}, {size(checkpoint.nbytes)}"
        nested = "" if around.nested is None else f", state dict under {around.nested!r}"
        typer.echo(f"{file}: {checkpoint.format}, {total}{nested}")
        _show(("tensor", "dtype", "shape", "size"), rows)
        for label, names in (
            ("metadata", [f"{key}={value}" for key, value in around.metadata.items()]),
            ("beside the state dict", around.entries),
            ("no tensors", around.inside),
            *(("share memory", names) for names in around.ties),
        ):
            if names:
                typer.echo(f"{label}: {', '.join(names)}")


@app.command()
def plan(
    source: Source,
    target: Target,
    in_channels: InChannels = None,
    out_channels: OutChannels = None,
    layout: Layouts = None,
    dtype: Dtype = None,
    like: Like = None,
    seed: Seed = None,
    rules: Rules = None,
    overwrite: Overwrite = False,
) -> None:
    """Show what convert would do, with all its checks. Writes nothing."""
    with _sentences():
        asked = _gather("plan", rules, in_channels, out_channels, layout, seed)
        _show_outcome(plan_conversion(source, target, rules=asked, like=like, dtype=dtype, overwrite=overwrite))


@app.command()
def convert(
    source: Source,
    target: Target,
    in_channels: InChannels = None,
    out_channels: OutChannels = None,
    layout: Layouts = None,
    dtype: Dtype = None,
    like: Like = None,
    seed: Seed = None,
    rules: Rules = None,
    overwrite: Overwrite = False,
    no_fsync: NoFsync = False,
) -> None:
    """Write SRC, changed as asked, to DST: whole, or not at all."""
    with _sentences():
        asked = _gather("convert", rules, in_channels, out_channels, layout, seed)
        report = convert_checkpoint(
            source, target, rules=asked, like=like, dtype=dtype, overwrite=overwrite, fsync=not no_fsync
        )
        _show_outcome(report)


@app.command()
def doctor() -> None:
    """Print versions, compiled libraries, and which backend serves which device."""
    _show(("what", "here"), [(label, str(value)) for label, value in native.facts().items()])


@contextmanager
def _sentences() -> Iterator[None]:
    """A refusal's sentence on stderr, no traceback, exit 2."""
    try:
        yield
    except (CheckpointError, TypeError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error


def _gather(
    function: str,
    rules: Path | None,
    in_channels: Sequence[str] | None,
    out_channels: Sequence[str] | None,
    layout: Sequence[str] | None,
    seed: int | None,
) -> list[Any]:
    """The rules of the file, then those of the flags: one rule a flag."""
    gathered: list[Any] = list(load_rules(function, rules))
    drawn = False
    for flag, values in (("--in-channels", in_channels), ("--out-channels", out_channels), ("--layout", layout)):
        setting = flag[2:].replace("-", "_")
        for text in values or ():
            # The last "=": a name may be a regular expression with one in it, what is asked never has one.
            name, equals, asked = text.rpartition("=")
            if not (name and equals and asked):
                raise ValueError(sentence(function, flag, "be NAME=VALUE", repr(text)))
            value = asked if setting == "layout" else _channels(function, flag, text, asked)
            if seed is not None and isinstance(value, dict) and value.get("how") in INITIALIZERS:
                value["seed"], drawn = seed, True
            gathered.append(parse_rule(function, {"match": name, setting: value}, f"{flag} {text}"))
    if seed is not None and not drawn:
        must = "be used by a flag that initialises channels, such as --out-channels conv1=48:kaiming_normal"
        raise ValueError(sentence(function, "--seed", must, seed))
    return gathered


def _channels(function: str, flag: str, text: str, asked: str) -> dict[str, Any]:
    parts = asked.split(":")
    if len(parts) > 3 or not all(parts) or not parts[0].lstrip("-").isdecimal():
        raise ValueError(sentence(function, flag, "be NAME=N[:how[:rescale]]", repr(text)))
    return {"to": int(parts[0]), **dict(zip(("how", "rescale"), parts[1:], strict=False))}


def _show_outcome(outcome: Plan | Report) -> None:
    typer.echo(outcome.headline())
    _show(HEADER, [tensor.row() for tensor in outcome.changed])
    for note in outcome.notes:
        typer.echo(f"note: {note}")


def _show(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table for people in a terminal; elsewhere aligned text, cut nowhere, for other programs."""
    if not rows:
        return
    if not sys.stdout.isatty():
        typer.echo(columns([header, *rows]))
        return
    table = Table(box=None, pad_edge=False)
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        # Text, because names and shapes may hold brackets, which rich would read as markup.
        table.add_row(*map(Text, row))
    Console().print(table)
