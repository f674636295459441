"""What lies beside the weights in a directory: configuration, tokenizer, and the weights in other formats."""

from __future__ import annotations

import shutil
from pathlib import Path

# Of weights; they are either converted or left out, never copied.
WEIGHTS = (
    *(".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".npz", ".h5"),
    *(".msgpack", ".onnx", ".gguf", ".distcp", ".metadata"),
)


def others_in(folder: Path, *, but: Path) -> tuple[list[Path], list[Path]]:
    """Files to be copied along, and weights of other formats that stay behind; both relative. Hidden ones are passed
    over, and a target inside the folder.
    """
    inside = folder.resolve() in but.resolve().parents
    copied: list[Path] = []
    left: list[Path] = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or not path.is_file():
            continue
        if inside and but.resolve() in path.resolve().parents:
            continue
        (left if path.name.endswith(WEIGHTS) else copied).append(relative)
    return copied, left


def copy_others(folder: Path, target: Path, files: list[Path]) -> None:
    for relative in files:
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / relative, target / relative)
