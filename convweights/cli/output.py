"""What the commands print: tables, JSON, and a refusal's one sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from convweights.cli.flags import Flags
from convweights.fitting.errors import CheckpointError
from convweights.fitting.report import HEADER, Plan, Report, columns


@contextmanager
def sentences() -> Iterator[None]:
    """A refusal's sentence on stderr, no traceback, exit 2."""
    try:
        yield
    except (CheckpointError, TypeError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error


def show_outcome(outcome: Plan | Report, flags: Flags, file: str = "", *, as_json: bool) -> None:
    if as_json:
        rules = [rule.as_dict() for rule in flags.rules]
        print_json({**outcome.as_dict(), "rules": rules})
        return
    typer.echo(outcome.headline())
    show_table(HEADER, outcome.rows())
    for note in outcome.notes:
        typer.echo(f"note: {note}")
    if file:
        typer.echo(f"\n{file}")


def print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=1, allow_nan=False))


def show_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
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
