"""Converts all checkpoints of a directory by the same rules: goes on where one fails, and where it was stopped."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convweights.checkpoint.beside import CONFIG
from convweights.checkpoint.convert import Progress, check_settings, convert_by
from convweights.checkpoint.distributed_file import is_distributed
from convweights.checkpoint.formats import DIRECTORY, SUFFIXES, path_of, target_format
from convweights.checkpoint.plan import open_source
from convweights.checkpoint.ranks import ALONE, Ranks, ranks
from convweights.checkpoint.sharded_file import INDEX
from convweights.checkpoint.shards import shard_bytes
from convweights.fitting.errors import CheckpointError, sentence
from convweights.fitting.report import size
from convweights.fitting.rules import Rules, load_rules
from convweights.fitting.settings import parse_dtype

HEADER = ("checkpoint", "outcome", "tensors", "changed", "size", "seconds")

# What a source of each suffix becomes where nothing is said.
_BECOMES = {".safetensors": ".safetensors", ".pt": ".pt", ".pth": ".pth", ".npz": ".safetensors", ".dcp": ".dcp"}


@dataclass(frozen=True)
class Outcome:
    """What became of one checkpoint. ``error`` is the sentence of a refusal; a skipped one was there already."""

    source: Path
    target: Path
    tensors: int = 0
    changed: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    error: str = ""
    skipped: bool = False
    notes: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        return "failed" if self.error else "there already" if self.skipped else "converted"

    def row(self, folder: Path) -> tuple[str, ...]:
        name = str(self.source.relative_to(folder))
        if self.error or self.skipped:
            return (name, self.words, "-", "-", "-", "-")
        return (name, self.words, str(self.tensors), str(self.changed), size(self.nbytes), f"{self.seconds:.2f}")

    def as_dict(self) -> dict[str, Any]:
        found = {"source": str(self.source), "target": str(self.target), "outcome": self.words}
        if self.error:
            return {**found, "error": self.error}
        return {
            **found,
            "tensors": self.tensors,
            "changed": self.changed,
            "bytes": self.nbytes,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }


def convert_all(
    folder: str | Path,
    out: str | Path,
    *,
    rules: Rules = None,
    to: str | None = None,
    overwrite: bool = False,
    told: Callable[[Outcome], None] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[Outcome]:
    """Convert every checkpoint under ``folder`` into the same place under ``out``.

    A directory with an index, with ``config.json`` beside its weights, or of torch.distributed.checkpoint is one
    checkpoint and becomes a directory; every other ``.safetensors``, ``.pt``, ``.pth`` and ``.npz`` file is one. A
    checkpoint below a directory that is one is left out, and a note says so. Targets that exist are left alone: they
    are whole, so that the same call goes on where the last one ended. Under torchrun the processes share the list, or,
    where there are fewer checkpoints than processes, the files of each.

    Args:
        folder, out: the directories; ``out`` is made where it is not there.
        rules: as :func:`~convweights.convert`.
        to: the suffix of all targets, ``.safetensors``, ``.pt`` or ``.dcp``; the source's own where nothing is said,
            and ``.safetensors`` for ``.npz``.
        overwrite: convert again what exists.
        told: called after each checkpoint of this process.
        options: what else :func:`~convweights.convert` takes.

    Raises:
        CheckpointError, TypeError, ValueError: rules or directories that are wrong whatever is in the checkpoints.
            What is wrong with one of them is in its outcome.

    >>> import tempfile, torch
    >>> from convweights.checkpoint import convert_all
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"fc.weight": torch.ones(2, 2)}, f"{folder}/a.pt")
    ...     found = convert_all(folder, f"{folder}/half", to=".safetensors", dtype="float16")
    >>> [(outcome.target.name, outcome.words) for outcome in found]
    [('a.safetensors', 'converted')]
    """
    parsed = load_rules("convert_all", rules)
    settings: dict[str, Any] = {
        "like": None,
        "dtype": None,
        "strict": True,
        "shard_size": None,
        "copy_files": True,
        "fsync": True,
    }
    settings |= {"workers": None, "progress": progress}
    unknown = next((name for name in options if name not in settings), None)
    if unknown is not None:
        raise TypeError(sentence("convert_all", unknown, "be an argument of convert", unknown))
    settings |= options
    flags = {name: settings[name] for name in ("strict", "copy_files", "fsync")}
    check_settings("convert_all", {**flags, "overwrite": overwrite}, settings["workers"], progress)
    shard_bytes("convert_all", settings["shard_size"])
    parse_dtype("convert_all", "dtype", settings["dtype"])
    if settings["like"] is not None:
        with contextlib.ExitStack() as stack:
            open_source("convert_all", stack, "like", settings["like"])
    with ranks() as group:
        # One decides for all: the first targets appear while another process may still be looking.
        pairs, todo = group.from_first(lambda: _todo(_pairs(folder, out, to, overwrite=overwrite), overwrite))
        outcomes = {source: Outcome(source, target, skipped=True) for source, target in pairs}
        together = len(todo) < group.size
        for source, target in todo if together else todo[group.rank :: group.size]:
            by = group if together else ALONE
            outcome = _one(by, source, target, {"rules": parsed, "overwrite": overwrite, **settings})
            outcomes[source] = outcome
            if told is not None and by.first:
                told(outcome)
        if not together:
            for done in group.exchange([outcomes[source] for source, _ in todo[group.rank :: group.size]]):
                outcomes.update((outcome.source, outcome) for outcome in done)
    return list(outcomes.values())


Pairs = list[tuple[Path, Path]]


def _todo(pairs: Pairs, overwrite: bool) -> tuple[Pairs, Pairs]:
    return pairs, [pair for pair in pairs if overwrite or not _is_there(pair[1])]


def _is_there(target: Path) -> bool:
    return any(target.iterdir()) if target.is_dir() else os.path.lexists(target)


def _one(group: Ranks, source: Path, target: Path, settings: dict[str, Any]) -> Outcome:
    begun = time.perf_counter()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Of directories alone: files in one list with them are not split.
        if target_format("convert", target) != DIRECTORY:
            settings = {**settings, "shard_size": None}
        report = convert_by(group, source, target, **settings)
    except (CheckpointError, TypeError, ValueError, OSError) as error:
        return Outcome(source, target, error=str(error))
    return Outcome(
        source,
        target,
        len(report.tensors),
        len(report.changed),
        report.file_bytes or 0,
        time.perf_counter() - begun,
        notes=report.notes,
    )


def _pairs(folder: str | Path, out: str | Path, to: str | None, *, overwrite: bool) -> Pairs:
    """Every checkpoint with its target."""
    root, place = path_of("convert_all", "folder", folder), path_of("convert_all", "out", out)
    if not root.is_dir():
        raise CheckpointError(sentence("convert_all", "folder", "be a directory", root), root)
    if place.exists() and not place.is_dir():
        raise CheckpointError(sentence("convert_all", "out", "be a directory", f"the file {place}"), place)
    if to is not None and to not in SUFFIXES:
        rule = f"be one of {', '.join(SUFFIXES)}"
        raise ValueError(sentence("convert_all", "to", rule, repr(to)))
    if to is None and not overwrite and root.resolve() == place.resolve():
        # Every source would pass for its own target, which is there already.
        remedy = "choose another one, say another format with to, or let checkpoints be replaced with overwrite"
        raise CheckpointError(sentence("convert_all", "out", "be another directory than folder", place, remedy), place)
    found = [root] if _is_one(root) else _checkpoints(root, place.resolve())
    if not found:
        raise CheckpointError(sentence("convert_all", "folder", "hold checkpoints", f"none in {root}"), root)
    led: dict[Path, list[Path]] = {}
    for source in found:
        target = place / source.relative_to(root)
        if source.is_dir():
            if to not in (None, ".safetensors") or is_distributed(source):
                target = target.with_name(target.name.removesuffix(".dcp") + (to or ".dcp"))
        else:
            target = target.with_suffix(to or _BECOMES[source.suffix])
        led.setdefault(target, []).append(source)
    return [(_only("convert_all", sources, target), target) for target, sources in led.items()]


def _only(function: str, sources: list[Path], target: Path) -> Path:
    """The one that the target is made from. Where the directories are one, the target itself is no other source."""
    others = [source for source in sources if source.resolve() != target.resolve()] or sources
    if len(others) > 1:
        rule, got = "lead each checkpoint to a name of its own", f"{target} from {others[0]} and from {others[1]}"
        raise CheckpointError(sentence(function, "to", rule, got), others[1])
    return others[0]


def _checkpoints(folder: Path, out: Path) -> list[Path]:
    """The checkpoints below a directory, in order. Hidden files, and the target's directory, are passed over."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.resolve() != out)
    found = []
    for path in entries:
        if path.is_dir():
            # A link may lead back to where it lies.
            found += [path] if _is_one(path) else [] if path.is_symlink() else _checkpoints(path, out)
        elif path.suffix in _BECOMES and path.is_file():
            found.append(path)
    return found


def _is_one(folder: Path) -> bool:
    """Whether a directory is a checkpoint as a whole."""
    if is_distributed(folder) or any(folder.glob(f"*{INDEX}")):
        return True
    return (folder / CONFIG).is_file() and any(folder.glob("*.safetensors"))
