"""The safetensors format: a length, a JSON header, and the tensors' bytes without gaps."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from convweights.checkpoint.contents import Checkpoint, Span, Surroundings, TensorInfo
from convweights.checkpoint.layout import Layout
from convweights.fitting.errors import CheckpointError, reason, sentence

METADATA = "__metadata__"

# In the order in which the safetensors library lays tensors out: it only ever goes to smaller elements, so every
# tensor starts at a multiple of its element's size.
DTYPES: dict[str, torch.dtype] = {
    code: getattr(torch, name)
    for code, name in (
        ("U64", "uint64"),
        ("I64", "int64"),
        ("F64", "float64"),
        ("C64", "complex64"),
        ("F32", "float32"),
        ("U32", "uint32"),
        ("I32", "int32"),
        ("BF16", "bfloat16"),
        ("F16", "float16"),
        ("U16", "uint16"),
        ("I16", "int16"),
        ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
        ("F8_E4M3FNUZ", "float8_e4m3fnuz"),
        ("F8_E8M0", "float8_e8m0fnu"),
        ("F8_E4M3", "float8_e4m3fn"),
        ("F8_E5M2", "float8_e5m2"),
        ("I8", "int8"),
        ("U8", "uint8"),
        ("F4", "float4_e2m1fn_x2"),
        ("BOOL", "bool"),
    )
    if hasattr(torch, name)
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
_ORDER = {dtype: position for position, dtype in enumerate(DTYPES.values())}


class SafetensorsFile(Checkpoint):
    """A ``.safetensors`` file. The library judges the header; a key that stands in it twice is refused on top."""

    format = "safetensors"

    def __init__(self, function: str, argument: str, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = safe_open(str(path), framework="pt")
        except (SafetensorError, OSError, ValueError) as error:
            got = f"{path} ({reason(error)})"
            raise CheckpointError(sentence(function, argument, "be a valid safetensors file", got), path) from error
        header, begin = _header(function, argument, path)
        self.around = Surroundings(metadata=header.pop(METADATA, {}))
        self.tensors = {name: _info(function, argument, path, name, entry) for name, entry in header.items()}
        self._places = {name: begin + entry["data_offsets"][0] for name, entry in header.items()}
        self._bytes = path.open("rb", buffering=0)

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(name)
        # An empty tensor's address is where the next one begins, which torch.save takes for shared memory.
        return tensor if tensor.numel() else torch.empty_like(tensor)

    def span(self, name: str) -> Span:
        return Span(self._bytes.fileno(), self._places[name])

    def close(self) -> None:
        self._file = None
        self._bytes.close()


def _header(function: str, argument: str, path: Path) -> tuple[dict[str, Any], int]:
    """The header as JSON, and where the tensors' bytes begin. The library has accepted it by now, so its length can be
    trusted."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                rule = "name each tensor once"
                raise CheckpointError(sentence(function, argument, rule, f"{key!r} twice in {path}"), path, key)
            seen[key] = value
        return seen

    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length), object_pairs_hook=unique)
    return header, 8 + length


def _info(function: str, argument: str, path: Path, name: str, entry: Mapping[str, Any]) -> TensorInfo:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        got = f"{entry['dtype']} for {name!r} in {path}"
        raise CheckpointError(sentence(function, argument, "have dtypes that torch has", got), path, name)
    shape = tuple(entry["shape"])
    # Two 4-bit numbers share a byte: the header counts numbers, torch counts pairs.
    return TensorInfo(name, (*shape[:-1], shape[-1] // 2) if entry["dtype"] == "F4" else shape, dtype)


def check_storable(function: str, target: Path, tensors: Iterable[TensorInfo]) -> None:
    """Refuse what the format has no words for, before anything is written."""
    for info in tensors:
        argument = f"{info.name!r} of the source"
        if not info.plain:
            rule, got = "be a dense tensor that holds data", "a sparse, quantised or meta tensor"
        elif info.dtype not in CODES:
            rule, got = "have a dtype that safetensors has", str(info.dtype).removeprefix("torch.")
        elif info.name == METADATA:
            rule, got = f"not be called {METADATA}", "a name that safetensors keeps for itself"
        elif not _encodes(info.name):
            rule, got = "have a name that UTF-8 can encode", ascii(info.name)
        else:
            continue
        remedy = "write a .pt file instead"
        raise CheckpointError(sentence(function, argument, rule, got, remedy), target, info.name)


def _encodes(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def laid_out(tensors: Iterable[TensorInfo], metadata: Mapping[str, str]) -> Layout:
    """The file of these tensors."""
    ordered = sorted(tensors, key=lambda info: (_ORDER[info.dtype], info.name))
    header = _encode_header(ordered, metadata)
    places, end = {}, len(header)
    for info in ordered:
        places[info.name] = end
        end += info.nbytes
    return Layout([(0, header)], places, end)


def _encode_header(ordered: Iterable[TensorInfo], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for info in ordered:
        code, shape, start = CODES[info.dtype], list(info.shape), end
        end += math.prod(shape) * info.dtype.itemsize
        if code == "F4":
            shape[-1] *= 2
        entries[info.name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
