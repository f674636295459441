"""Where the records of a zip archive lie, and their checksums, for an archive whose records are filled in later."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from convweights.checkpoint.raw import read_at, write_at

# PKWARE's APPNOTE.TXT, 4.3.7, 4.3.9 and 4.3.12: sizes of what is fixed, and where something stands in it.
_LOCAL, _NAME_LENGTH = 30, 26
_ENTRY, _ENTRY_CHECKSUM, _ENTRY_LENGTHS = 46, 16, 28
_DESCRIPTOR = b"PK\x07\x08"

_PIECE = 1 << 20


@dataclass(frozen=True)
class Record:
    """Where a record's bytes lie, and its entry in the directory at the archive's end."""

    at: int
    size: int
    entry: int


def records(file: BinaryIO) -> dict[str, Record]:
    """By their names below the archive's one folder."""
    found = {}
    with zipfile.ZipFile(file) as archive:
        entry = archive.start_dir
        for member in archive.infolist():
            name, extra = struct.unpack("<HH", _bytes(file, member.header_offset + _NAME_LENGTH, 4))
            at = member.header_offset + _LOCAL + name + extra
            found[member.filename.partition("/")[2]] = Record(at, member.file_size, entry)
            entry += _ENTRY + sum(struct.unpack("<3H", _bytes(file, entry + _ENTRY_LENGTHS, 6)))
    return found


def sum_up(file: BinaryIO, filled: Sequence[Record], workers: int) -> None:
    """Write the checksums of records that have been filled, in the directory and behind each one."""
    with ThreadPoolExecutor(workers) as pool:
        for record, checksum in zip(filled, pool.map(partial(_checksum, file), filled), strict=True):
            written = memoryview(struct.pack("<L", checksum))
            write_at(file.fileno(), written, record.entry + _ENTRY_CHECKSUM)
            end = record.at + record.size
            if _bytes(file, end, len(_DESCRIPTOR)) == _DESCRIPTOR:
                write_at(file.fileno(), written, end + len(_DESCRIPTOR))


def _checksum(file: BinaryIO, record: Record) -> int:
    buffer = memoryview(bytearray(min(_PIECE, record.size)))
    checksum = 0
    for at in range(0, record.size, _PIECE):
        piece = buffer[: min(_PIECE, record.size - at)]
        read_at(file.fileno(), piece, record.at + at)
        checksum = zlib.crc32(piece, checksum)
    return checksum


def _bytes(file: BinaryIO, at: int, count: int) -> bytes:
    buffer = bytearray(count)
    read_at(file.fileno(), memoryview(buffer), at)
    return bytes(buffer)
