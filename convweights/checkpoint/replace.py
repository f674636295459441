"""A file or a directory that comes into being whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from convweights.fitting.errors import CheckpointError, reason, sentence


def check_target(function: str, target: Path, *, overwrite: bool) -> None:
    """Refuse a target that could not be put in place, before any work is done for it."""
    if target.is_dir():
        raise CheckpointError(sentence(function, "target", "be a file", f"the directory {target}"), target)
    if os.path.lexists(target):
        if target.exists() and not target.is_file():
            raise CheckpointError(sentence(function, "target", "be a regular file", target), target)
        if not overwrite:
            raise _exists(function, target)
    _check_parent(function, target)


def check_target_directory(
    function: str, target: Path, *, overwrite: bool, written: tuple[str, ...], copied: Sequence[Path]
) -> None:
    """The same for a directory. One that is there is only replaced where nothing in it is lost but what is replaced:
    files whose names end as ``written``, and those that are ``copied``.
    """
    if target.is_symlink():
        raise CheckpointError(sentence(function, "target", "be a directory itself", f"the link {target}"), target)
    if os.path.lexists(target) and not target.is_dir():
        remedy = "choose another name, or one that ends in .safetensors or .pt"
        raise CheckpointError(sentence(function, "target", "be a directory", f"the file {target}", remedy), target)
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise _exists(function, target)
        for path in sorted(target.rglob("*")):
            relative = path.relative_to(target)
            replaced = len(relative.parts) == 1 and path.name.endswith(written)
            if not (replaced or relative in copied or (path.is_dir() and not path.is_symlink())):
                rule, got = "hold nothing that would be lost where it is replaced", f"{target} with {relative}"
                raise CheckpointError(sentence(function, "target", rule, got, "choose another name"), target)
    _check_parent(function, target.absolute())


def _exists(function: str, target: Path) -> CheckpointError:
    rule, remedy = "not exist yet", "choose another name or allow it to be replaced with overwrite"
    return CheckpointError(sentence(function, "target", rule, target, remedy), target)


def _check_parent(function: str, target: Path) -> None:
    if not target.parent.is_dir():
        rule = "lie in a directory that exists"
        raise CheckpointError(sentence(function, "target", rule, target), target)
    if not os.access(target.parent, os.W_OK | os.X_OK):
        rule = "lie in a directory that can be written to"
        raise CheckpointError(sentence(function, "target", rule, target), target)


@contextlib.contextmanager
def replacing(function: str, target: Path, *, fsync: bool) -> Iterator[BinaryIO]:
    """A file under a temporary name beside ``target``, which takes the target's place when the block ends well.

    Beside it, because only a rename inside one file system is atomic. Whatever ends the block otherwise, an interrupt
    included, removes the temporary file. With ``fsync`` the data is on the disk before the name is, and the
    directory after it. ``os.open`` with 0o666 is what lets the umask decide the mode, unlike the tempfile module.
    """
    temporary = temporary_beside(target)
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with open(descriptor, "rb+") as file:
                yield file
                file.flush()
                if fsync:
                    os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        if fsync:
            _sync_directory(target.parent)
    except OSError as error:
        got = f"{target} ({reason(error)})"
        raise CheckpointError(sentence(function, "target", "be writable", got), target) from error


def temporary_beside(target: Path) -> Path:
    # Names are at most 255 bytes long.
    name = os.fsencode(target.name)[:200].decode(errors="ignore")
    return target.with_name(f".{name}.{secrets.token_hex(4)}.tmp")


def finish_directory(temporary: Path, target: Path, *, fsync: bool) -> None:
    """Let the directory take the target's place. One that is there goes aside first, and comes back on failure."""
    if fsync:
        for path in temporary.rglob("*"):
            if path.is_dir():
                _sync_directory(path)
            else:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        _sync_directory(temporary)
    target = target.absolute()
    if target.is_dir():
        old = temporary_beside(target)
        try:
            os.rename(target, old)
            os.rename(temporary, target)
        except BaseException:
            if old.exists() and not target.exists():
                os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(temporary, target)
    if fsync:
        _sync_directory(target.parent)


def _sync_directory(directory: Path) -> None:
    """Put the new name itself on the disk, where the system lets directories be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
