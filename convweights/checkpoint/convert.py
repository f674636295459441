"""Carries out a plan: one tensor after another through the transfer verb into a new file."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from convweights.checkpoint.beside import CONFIG, WEIGHTS, others_in, stale_dtype
from convweights.checkpoint.contents import Checkpoint
from convweights.checkpoint.distributed_file import DistributedFile
from convweights.checkpoint.engine import Tick
from convweights.checkpoint.formats import DIRECTORY, path_of, target_format
from convweights.checkpoint.plan import Inputs, Source, draft_of, open_inputs
from convweights.checkpoint.provenance import with_provenance
from convweights.checkpoint.ranks import ALONE, Ranks
from convweights.checkpoint.replace import check_target, check_target_directory
from convweights.checkpoint.sharded_file import ShardedFile
from convweights.checkpoint.shards import shard_bytes, stem_of
from convweights.checkpoint.target_notes import target_notes
from convweights.checkpoint.write import How, write_target
from convweights.fitting.carry_out import carry_out, overflows
from convweights.fitting.contents import Contents
from convweights.fitting.errors import CheckpointError, sentence
from convweights.fitting.report import Plan, Report, TensorPlan, dtype_name
from convweights.fitting.rules import PathOrText, Rules

# Told how many bytes are written, of how many, and a tensor that is being written.
Progress = Callable[[int, int, str], None]

# Each holds a few MB.
MOST_WORKERS = 64

# How the names of the files end that a target's directory is made of.
WRITTEN = {
    DIRECTORY: (".safetensors", ".safetensors.index.json"),
    DistributedFile.format: (".distcp", ".metadata"),
}


def convert(
    source: PathOrText,
    target: PathOrText,
    *,
    rules: Rules = None,
    like: Source | None = None,
    dtype: str | torch.dtype | None = None,
    strict: bool = True,
    shard_size: int | str | None = None,
    copy_files: bool = True,
    overwrite: bool = False,
    fsync: bool = True,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write the checkpoint ``source``, changed by rules, to ``target``: whole, or not at all.

    The target's name decides its format: ``.safetensors``, ``.pt``, ``.pth``, ``.dcp`` (a directory of
    torch.distributed.checkpoint), or no suffix for a directory as the transformers library has it: one safetensors
    file, or several and their index, and beside them what lies beside the weights in a source that is a directory. It
    is written under a temporary name beside it and renamed at the end, so it may be the source itself (with
    ``overwrite``). Tensors that no rule changes keep every bit. What stands beside the tensors stays where the target
    can hold it: a ``.pt`` file's other entries in a ``.pt`` file, the ``__metadata__`` of safetensors in safetensors;
    the report names the rest. In safetensors a line of JSON under ``convweights`` in ``__metadata__`` says what the
    file was made of, by which rules and version.

    From safetensors, ``.pt`` in zip format or uncompressed ``.npz`` into safetensors or ``.pt``, memory does not grow
    with the checkpoint, but by the largest tensor that is drawn or kept from a template. ``.dcp``, the legacy ``.pt``,
    and a ``.pt`` with quantized or nested tensors go through torch, which holds all that it writes, or reads.

    Args:
        source, rules, like, dtype, strict: as :func:`~convweights.plan`.
        shard_size: of a directory's files at the most, in bytes or as "5GB" (the default) or "500MiB"; a tensor that
            is larger has a file of its own.
        copy_files: whether configuration, tokenizer and the like are copied from one directory to the other.
        overwrite: replace a target that exists; a directory only where nothing is in it but weights of that format and
            what is copied.
        fsync: wait until all is on the disk before it gets its name.
        workers: threads that read, compute and write; two unless given, whatever the machine. The bytes do not depend
            on it.
        progress: called from time to time with (bytes written, bytes of all tensors, name of a tensor).

    Raises:
        CheckpointError, TypeError, ValueError: as :func:`~convweights.plan`, or a target that cannot be written;
            no file has been made or changed.

    >>> import tempfile, torch
    >>> from convweights.checkpoint import convert
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"conv1.weight": torch.ones(8, 3, 3, 3)}, f"{folder}/rgb.pt")
    ...     rules = [{"match": "conv1", "in_channels": 1}]
    ...     report = convert(f"{folder}/rgb.pt", f"{folder}/gray.safetensors", rules=rules)
    >>> report.changed[0].how, report.changed[0].scale, report.changed[0].target.shape
    ('in_channels 3 -> 1 blocks', 'sum', (8, 1, 3, 3))
    """
    return convert_by(
        ALONE,
        source,
        target,
        rules=rules,
        like=like,
        dtype=dtype,
        strict=strict,
        shard_size=shard_size,
        copy_files=copy_files,
        overwrite=overwrite,
        fsync=fsync,
        workers=workers,
        progress=progress,
    )


def convert_by(
    ranks: Ranks,
    source: PathOrText,
    target: PathOrText,
    *,
    rules: Rules,
    like: Source | None,
    dtype: str | torch.dtype | None,
    strict: bool,
    shard_size: int | str | None,
    copy_files: bool,
    overwrite: bool,
    fsync: bool,
    workers: int | None,
    progress: Progress | None,
) -> Report:
    """:func:`convert` by several processes, which share the files of a directory. All have the report."""
    flags = {"strict": strict, "copy_files": copy_files, "overwrite": overwrite, "fsync": fsync}
    check_settings("convert", flags, workers, progress)
    with contextlib.ExitStack() as stack:
        place = path_of("convert", "target", target)
        path_of("convert", "source", source)
        folder = Path(source) if copy_files and Path(source).is_dir() else None
        copied, left = ([], []) if folder is None else others_in(folder, but=place)

        def prepare() -> tuple[str, Plan, Checkpoint, Inputs]:
            form = _checked_target("convert", place, overwrite=overwrite, shard_size=shard_size, copied=copied)
            return form, *_planned("convert", stack, source, place, rules, like, dtype, strict)

        form, planned, source_file, inputs = ranks.agree(prepare)
        if form != DIRECTORY:
            folder, copied, left = None, [], []
        total, template = planned.nbytes, inputs.template
        how = How(
            with_provenance(
                source_file, inputs.rules, None if template is None else Path(template.label).name, inputs.dtype
            ),
            shard_bytes("convert", shard_size),
            stem_of(source_file.path, of_directory=Path(source).is_dir()),
            fsync,
            workers,
            None if progress is None else _told(progress, total),
            folder,
            tuple(copied),
            ranks,
        )
        try:
            overflown = write_target(
                place, form, planned, source_file, lambda tensor: _make(tensor, source_file, template), how
            )
        except _ProgressError as wrapped:
            raise wrapped.error from None
        notes = planned.notes
        if overflown:
            notes += (f"finite values became infinite in the cast of {', '.join(overflown)}",)
        if folder is not None:
            notes += _notes_beside(folder, planned, source_file, copied, left)
        return Report(
            planned.source,
            planned.source_format,
            planned.tensors,
            notes,
            planned.dropped,
            place,
            form,
            _size_of(place),
        )


def check_settings(function: str, flags: Mapping[str, Any], workers: Any, progress: Any) -> None:
    """Refuse what is wrong whatever the checkpoint holds."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(sentence(function, name, "be True or False", repr(value)))
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int)):
        raise TypeError(sentence(function, "workers", "be a number of threads", repr(workers)))
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise ValueError(sentence(function, "workers", f"be 1 to {MOST_WORKERS}", workers))
    if progress is not None and not callable(progress):
        raise TypeError(sentence(function, "progress", "be a function", repr(progress)))


class _ProgressError(Exception):
    """An OSError of the caller's own function, which is not one of the target's."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


def _told(progress: Progress, total: int) -> Tick:
    def tick(done: int, name: str) -> None:
        try:
            progress(done, total, name)
        except OSError as error:
            raise _ProgressError(error) from error

    return tick


def _notes_beside(
    folder: Path, planned: Plan, source: Checkpoint, copied: Sequence[Path], left: Sequence[Path]
) -> tuple[str, ...]:
    """What is said of what lies beside the weights in the source's directory."""
    notes = []
    if copied:
        notes.append(f"copied beside the weights as they are: {', '.join(map(str, copied))}")
    stale = stale_dtype(folder, {dtype_name(tensor.target.dtype) for tensor in planned.tensors})
    if stale and Path(CONFIG) in copied:
        notes.append(f"{CONFIG} still says {stale}, of which no tensor is: what loads by it converts them again")
    others = [path for path in left if not _is_part(folder / path, source)]
    if others:
        notes.append(f"left out, weights in other formats or checkpoints: {', '.join(map(str, others))}")
    return tuple(notes)


def _is_part(path: Path, source: Checkpoint) -> bool:
    """Whether a file is one of the source's own."""
    if isinstance(source, DistributedFile):
        return path.parent == source.path and path.name.endswith(WRITTEN[source.format])
    return path == source.path or (isinstance(source, ShardedFile) and path.name in source.shards)


def _size_of(target: Path) -> int:
    """Bytes of the weights, the index among them."""
    if target.is_file():
        return target.stat().st_size
    return sum(path.stat().st_size for path in target.iterdir() if path.name.endswith(WEIGHTS))


def _checked_target(
    function: str, target: Path, *, overwrite: bool, shard_size: int | str | None, copied: Sequence[Path]
) -> str:
    """The target's format, once it can be written."""
    form = target_format(function, target)
    shard_bytes(function, shard_size)
    if shard_size is not None and form != DIRECTORY:
        must, remedy = (
            "be left out where the target is not a directory of safetensors",
            "a name without a suffix is one",
        )
        raise ValueError(sentence(function, "shard_size", must, f"{shard_size} for {target}", remedy))
    if form in ("safetensors", "pt"):
        check_target(function, target, overwrite=overwrite)
    else:
        check_target_directory(function, target, overwrite=overwrite, written=WRITTEN[form], copied=copied)
    return form


def plan_conversion(
    source: PathOrText,
    target: PathOrText,
    *,
    rules: Rules = None,
    like: Source | None = None,
    dtype: str | torch.dtype | None = None,
    strict: bool = True,
    shard_size: int | str | None = None,
    overwrite: bool = False,
) -> Plan:
    """:func:`plan` with what only a target decides: whether it can be written, and what its format leaves out."""
    with contextlib.ExitStack() as stack:
        place = path_of("plan", "target", target)
        path_of("plan", "source", source)
        folder = Path(source) if Path(source).is_dir() else None
        copied, left = ([], []) if folder is None else others_in(folder, but=place)
        form = _checked_target("plan", place, overwrite=overwrite, shard_size=shard_size, copied=copied)
        planned, source_file, _ = _planned("plan", stack, source, place, rules, like, dtype, strict)
        if folder is None or form != DIRECTORY:
            return planned
        notes = planned.notes + _notes_beside(folder, planned, source_file, copied, left)
        return dataclasses.replace(planned, notes=notes)


def _planned(
    function: str,
    stack: contextlib.ExitStack,
    source: PathOrText,
    target: Path,
    rules: Rules,
    like: Source | None,
    dtype: str | torch.dtype | None,
    strict: bool,
) -> tuple[Plan, Checkpoint, Inputs]:
    """The plan with the notes that the target's format adds."""
    path_of(function, "source", source)
    inputs = open_inputs(function, stack, source, rules, like, dtype)
    assert isinstance(inputs.source, Checkpoint)
    planned = draft_of(function, inputs, strict=strict)
    for tensor in planned.tensors:
        if tensor.base == "keep" and inputs.template is not None and inputs.template.read(tensor.name).is_meta:
            must, got = "have values to keep", f"{tensor.name} on the meta device in {inputs.template.label}"
            raise CheckpointError(sentence(function, "like", must, got), inputs.source.path, tensor.name)
    notes = planned.notes + target_notes(function, planned, inputs.source, target)
    return dataclasses.replace(planned, notes=notes), inputs.source, inputs


def _make(planned: TensorPlan, source: Checkpoint, template: Contents | None) -> tuple[torch.Tensor, bool]:
    """The target's tensor, and whether values overflowed. One that does not change is the source's own."""
    values = None if planned.source is None else source.read(planned.source.name)
    if not planned.rewritten:
        assert values is not None
        return values, False
    own = template.read(planned.name).to("cpu") if template is not None and planned.base == "keep" else None
    if own is not None and not planned.reads:
        # A slice would take the whole that it is of along into a .dcp.
        return own.clone() if own.untyped_storage().nbytes() > own.nbytes else own, False
    try:
        weight = torch.empty(planned.target.shape, dtype=planned.target.dtype, device="cpu")
    except (RuntimeError, MemoryError, OverflowError, TypeError):
        rule, got = f"fit into memory as {planned.name}", f"shape {planned.target.shape} from {source.path}"
        raise CheckpointError(sentence("convert", "rules", rule, got), source.path, planned.name) from None
    carry_out("convert", planned, weight, values, own)
    if planned.source is None or values is None or not planned.reads:
        return weight, False
    return weight, overflows(planned, weight, values)
