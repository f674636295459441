"""What lies beside the weights in a directory: configuration, tokenizer, and the weights in other formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path

import torch

# Of weights; they are either converted or left out, never copied.
WEIGHTS = (
    *(".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".npz", ".h5"),
    *(".msgpack", ".onnx", ".gguf", ".distcp", ".metadata"),
)

# Of the model whose weights lie beside it.
CONFIG = "config.json"


def others_in(folder: Path, *, but: Path) -> tuple[list[Path], list[Path]]:
    """Files to be copied along, and what stays behind: weights of other formats, and directories below that are
    checkpoints with their configuration, as those of a training that goes on. All are relative. Hidden ones are passed
    over, and a target inside the folder.
    """
    inside = folder.resolve() in but.resolve().parents
    files = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or not path.is_file():
            continue
        if not (inside and but.resolve() in path.resolve().parents):
            files.append(relative)
    weighty = {path.parent for path in files if path.name.endswith(WEIGHTS)}
    nested = {path.parent for path in files if path.name == CONFIG and path.parent in weighty} - {Path()}
    copied: list[Path] = []
    left: dict[Path, None] = {}
    for path in files:
        outer = next((parent for parent in reversed(path.parents) if parent in nested), None)
        if outer is not None or path.name.endswith(WEIGHTS):
            left[outer or path] = None
        else:
            copied.append(path)
    return copied, list(left)


def stale_dtype(folder: Path, dtypes: Collection[str]) -> str | None:
    """The dtype that a configuration of the transformers library says the weights have, where none of them has it."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    said = (config.get("dtype") or config.get("torch_dtype")) if isinstance(config, dict) else None
    name = said.removeprefix("torch.") if isinstance(said, str) else ""
    return name if isinstance(getattr(torch, name, None), torch.dtype) and name not in dtypes else None


def copy_others(folder: Path, target: Path, files: list[Path]) -> None:
    for relative in files:
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / relative, target / relative)
