"""The commands."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import convweights
from convweights import native, pictures
from convweights.checkpoint import batch
from convweights.checkpoint import diff as differences
from convweights.checkpoint.convert import convert as convert_checkpoint
from convweights.checkpoint.convert import plan_conversion
from convweights.checkpoint.formats import open_checkpoint
from convweights.cli.flags import Dtype, Flags, Like, NoStrict, gather, with_rule_flags
from convweights.cli.output import print_json, sentences, show_outcome, show_table
from convweights.cli.progress import progress
from convweights.fitting.errors import CheckpointError, sentence
from convweights.fitting.report import dtype_name, size

app = typer.Typer(
    help="Change the weights of neural networks, checkpoint by checkpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Source = Annotated[
    Path,
    typer.Argument(
        metavar="SRC",
        help="A .safetensors file, its index or directory, .pt, .pth or .npz, or a distributed checkpoint.",
        show_default=False,
    ),
]
Target = Annotated[
    Path,
    typer.Argument(
        metavar="DST",
        help="A .safetensors, .pt or .pth file, a .dcp directory, or a directory of safetensors.",
        show_default=False,
    ),
]
ShardSize = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Of a directory's files at the most: 5GB unless given.", show_default=False),
]
NoCopy = Annotated[bool, typer.Option("--no-copy", help="Copy no configuration or tokenizer from SRC's directory.")]
Workers = Annotated[
    int | None, typer.Option(metavar="N", help="Threads that read and write; 2 unless given.", show_default=False)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace DST where it exists; a directory only where nothing else is in it.")
]
NoFsync = Annotated[bool, typer.Option("--no-fsync", help="Do not wait until DST is on the disk.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


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
def inspect(file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)], as_json: Json = False) -> None:
    """List a checkpoint's tensors: names, shapes, dtypes, sizes."""
    with sentences(), open_checkpoint("inspect", "file", file) as checkpoint:
        infos = checkpoint.tensors.values()
        around = checkpoint.around
        beside = {
            "metadata": dict(around.metadata),
            "beside the state dict": list(around.entries),
            "no tensors": list(around.inside),
            "share memory": [list(names) for names in around.ties],
        }
        if as_json:
            tensors = [
                {"name": i.name, "dtype": dtype_name(i.dtype), "shape": list(i.shape), "bytes": i.nbytes} for i in infos
            ]
            found = {"file": str(file), "format": checkpoint.format, "nested": around.nested, "tensors": tensors}
            print_json({**found, **{key.replace(" ", "_"): value for key, value in beside.items()}})
            return
        rows = [(info.name, dtype_name(info.dtype), str(info.shape), size(info.nbytes)) for info in infos]
        total = f"{len(rows)} tensor{'s' * (len(rows) != 1)}, {size(checkpoint.nbytes)}"
        nested = "" if around.nested is None else f", state dict under {around.nested!r}"
        typer.echo(f"{file}: {checkpoint.format}, {total}{nested}")
        show_table(("tensor", "dtype", "shape", "size"), rows)
        for label, names in (
            ("metadata", [f"{key}={value}" for key, value in around.metadata.items()]),
            ("beside the state dict", around.entries),
            ("no tensors", around.inside),
            *(("share memory", names) for names in around.ties),
        ):
            if names:
                typer.echo(f"{label}: {', '.join(names)}")


@app.command()
@with_rule_flags
def plan(
    source: Source,
    target: Target,
    asked: dict[str, Any],
    like: Like = None,
    no_strict: NoStrict = False,
    dtype: Dtype = None,
    shard_size: ShardSize = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Show what convert would do, with all its checks. Writes nothing."""
    with sentences():
        flags = gather("plan", **asked)
        planned = plan_conversion(
            source,
            target,
            rules=flags.rules,
            like=like,
            dtype=dtype,
            strict=not no_strict,
            shard_size=shard_size,
            overwrite=overwrite,
        )
        show_outcome(planned, flags, as_json=as_json)


@app.command()
@with_rule_flags
def convert(
    source: Source,
    target: Target,
    asked: dict[str, Any],
    like: Like = None,
    no_strict: NoStrict = False,
    dtype: Dtype = None,
    shard_size: ShardSize = None,
    no_copy: NoCopy = False,
    overwrite: Overwrite = False,
    no_fsync: NoFsync = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Write SRC, changed as asked, to DST: whole, or not at all. Prints the rules that repeat the flags."""
    with sentences():
        flags = gather("convert", **asked)
        with progress(source.name, as_json=as_json) as told:
            report = convert_checkpoint(
                source,
                target,
                **_settings(flags, like, dtype, no_strict, shard_size, no_copy, overwrite, no_fsync, workers),
                progress=told,
            )
        remaining = [str(source), str(target)]
        values = {"--like": like, "--dtype": dtype, "--shard-size": shard_size, "--workers": workers}
        for flag, value in values.items():
            remaining += [] if value is None else [flag, str(value)]
        given = {
            "--no-strict": no_strict,
            "--no-copy": no_copy,
            "--overwrite": overwrite,
            "--no-fsync": no_fsync,
        }
        remaining += [flag for flag, on in given.items() if on]
        show_outcome(report, flags, flags.as_file(remaining), as_json=as_json)


@app.command()
@with_rule_flags
def convert_all(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the checkpoints are.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where they go.", show_default=False)],
    asked: dict[str, Any],
    like: Like = None,
    no_strict: NoStrict = False,
    dtype: Dtype = None,
    to: Annotated[
        str | None, typer.Option(metavar="SUFFIX", help=".safetensors, .pt or .dcp; as in DIR unless given.")
    ] = None,
    shard_size: ShardSize = None,
    no_copy: NoCopy = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Convert again what is in OUT.")] = False,
    no_fsync: NoFsync = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Convert every checkpoint under DIR. Goes on where one fails, and then exits with 1; what is in OUT stays.

    One that lies below another is left out, and said. Under torchrun the processes share the work.
    """
    with sentences():
        flags = gather("convert_all", **asked)
        with progress(folder.name, as_json=as_json) as told:
            outcomes = batch.convert_all(
                folder,
                out,
                to=to,
                **_settings(flags, like, dtype, no_strict, shard_size, no_copy, overwrite, no_fsync, workers),
                progress=told,
            )
        failed = [outcome for outcome in outcomes if outcome.error]
        if os.environ.get("RANK", "0") == "0":
            if as_json:
                print_json({"checkpoints": [outcome.as_dict() for outcome in outcomes], "failed": len(failed)})
            else:
                show_table(batch.HEADER, [outcome.row(folder) for outcome in outcomes])
                for outcome in outcomes:
                    for note in outcome.notes:
                        typer.echo(f"note: {outcome.source.relative_to(folder)}: {note}")
            for outcome in failed:
                typer.echo(outcome.error, err=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", show_default=False)],
    as_json: Json = False,
) -> None:
    """Compare the tensors of two checkpoints, bit by bit. Exit 1 when they differ, or hold what cannot be compared."""
    with sentences():
        found = differences.diff(a, b)
        if as_json:
            print_json(found.as_dict())
        else:
            typer.echo(found.headline())
            show_table(differences.HEADER, [tensor.row() for tensor in found.different])
    if found.different:
        raise typer.Exit(1)


@app.command()
def show(
    files: Annotated[list[Path], typer.Argument(metavar="FILE [AFTER]", help="One checkpoint, or two.")],
    tensor: Annotated[str, typer.Argument(metavar="TENSOR", help="The tensor's name.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PNG", help="The picture.", show_default=False)],
    filters: Annotated[int, typer.Option(help="How many filters at most.")] = 16,
    channels: Annotated[int, typer.Option(help="How many input channels at most.")] = 8,
    start: Annotated[int, typer.Option(help="The first filter.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw a tensor's filters as a labelled grid; of two files before and after. Needs convweights[plots]."""
    with sentences():
        if len(files) > 2:
            raise ValueError(sentence("show", "FILE", "be one checkpoint or two", f"{len(files)}"))
        drawn = [(label, _tensor(file, tensor)) for label, file in zip(_labels(files), files, strict=True)]
        pictures.draw(output, drawn, name=tensor, filters=filters, channels=channels, start=start)
    if as_json:
        shapes = [{"file": str(f), "shape": list(t.shape)} for f, (_, t) in zip(files, drawn, strict=True)]
        print_json({"output": str(output), "tensor": tensor, "drawn": shapes})
    else:
        typer.echo(f"{output}: {tensor} of {' and of '.join(map(str, files))}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Print versions, compiled libraries, and which backend serves which device."""
    if as_json:
        print_json({label: str(value) for label, value in native.facts().items()})
        return
    show_table(("what", "here"), [(label, str(value)) for label, value in native.facts().items()])


def _settings(
    flags: Flags,
    like: Path | None,
    dtype: str | None,
    no_strict: bool,
    shard_size: str | None,
    no_copy: bool,
    overwrite: bool,
    no_fsync: bool,
    workers: int | None,
) -> dict[str, Any]:
    """What convert and convert_all are asked alike."""
    return {
        "rules": flags.rules,
        "like": like,
        "dtype": dtype,
        "strict": not no_strict,
        "shard_size": shard_size,
        "copy_files": not no_copy,
        "overwrite": overwrite,
        "fsync": not no_fsync,
        "workers": workers,
    }


def _labels(files: Sequence[Path]) -> Sequence[str]:
    return [files[0].name] if len(files) == 1 else [f"before: {files[0].name}", f"after: {files[1].name}"]


def _tensor(file: Path, name: str) -> Any:
    with open_checkpoint("show", "file", file) as checkpoint:
        if name not in checkpoint.tensors:
            close = difflib.get_close_matches(name, checkpoint.tensors, n=3)
            remedy = f"did you mean {' or '.join(close)}?" if close else f"convweights inspect {file} lists them"
            raise CheckpointError(sentence("show", "TENSOR", f"be a tensor of {file}", repr(name), remedy), file, name)
        return checkpoint.read(name).clone()
