"""Checkpoint files to test with, in every format, and the directory as it was before."""

from __future__ import annotations

import json
import os
import struct
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

KINDS = ("safetensors", "zip", "legacy")
SUFFIX = {"safetensors": ".safetensors", "zip": ".pt", "legacy": ".pth"}
# The dtypes that the safetensors library takes from torch.
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64),
    *(torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    torch.float4_e2m1fn_x2,
]


def network(seed: int = 0) -> dict[str, torch.Tensor]:
    """A small convolutional network's state, with a strided weight, an integer, a 0-dim and an empty tensor."""
    g = torch.Generator().manual_seed(seed)
    return OrderedDict(
        {
            "conv1.weight": torch.randn(8, 3, 3, 3, generator=g),
            "conv1.bias": torch.randn(8, generator=g),
            "conv2.weight": torch.randn(3, 3, 8, 6, generator=g).permute(3, 2, 0, 1),
            "bn.weight": torch.randn(6, generator=g),
            "bn.num_batches_tracked": torch.tensor(7),
            "empty": torch.empty(0, 4),
            "fc.weight": torch.randn(5, 6, generator=g),
        }
    )


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Any bits at all, NaN payloads and subnormals among them; booleans are 0 or 1."""
    g = torch.Generator().manual_seed(seed)
    octets = torch.randint(
        0, 2 if dtype == torch.bool else 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=g
    )
    return octets.view(-1).view(dtype).view(shape)


def save(path: Path, state: Mapping[str, Any], kind: str | None = None, **metadata: str) -> Path:
    """Write with the libraries themselves; ``kind`` of None follows the suffix."""
    kind = kind or next(kind for kind in KINDS if SUFFIX[kind] == path.suffix)
    if kind == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata=metadata or None)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def load(path: Path) -> dict[str, Any]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def raw_safetensors(path: Path, header: Any, body: bytes = b"") -> Path:
    """A safetensors file of any header, valid or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def without_metadata(path: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file but for what it says of itself: its header, and the tensors' bytes."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, content[8 + length :]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """All that is in a folder: names, modes, contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[str(path.relative_to(folder))] = (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
    return found


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
