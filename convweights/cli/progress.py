"""How far a conversion is: a line in a terminal, events for other programs, nothing elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

# Seconds between two events, and before the first.
_BETWEEN = 0.25

Told = Callable[[int, int, str], None]


@contextmanager
def progress(name: str, *, as_json: bool) -> Iterator[Told | None]:
    """What :func:`~convweights.convert` is to call. ``as_json``: lines of JSON on stderr."""
    if as_json:
        yield events(name)
    elif sys.stderr.isatty():
        with _bar(name) as told:
            yield told
    else:
        yield None


def events(name: str, clock: Callable[[], float] = time.monotonic) -> Told:
    begun = last = clock()

    def told(done: int, total: int, tensor: str) -> None:
        nonlocal last
        now = clock()
        if now - last < _BETWEEN:
            return
        last = now
        rate = done / (now - begun)
        event = {"event": "progress", "checkpoint": name, "bytes": done, "of": total, "tensor": tensor}
        event |= {"bytes_per_second": round(rate), "seconds_left": round((total - done) / rate, 1) if rate else None}
        typer.echo(json.dumps(event), err=True)

    return told


@contextmanager
def _bar(name: str) -> Iterator[Told]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    shown = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    with shown:
        task = shown.add_task(name, total=None)

        def told(done: int, total: int, tensor: str) -> None:
            shown.update(task, completed=done, total=total, description=Text(f"{name}: {tensor}").markup)

        yield told
