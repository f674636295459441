"""Conversions of checkpoints against the usual ways and ``cp``, page cache warm; ``--help`` says how to call it.

The checkpoints are made in shared memory where there is room for them, else in the directory for temporary files. Each
run writes a target that is not there: to free one that is replaced takes its time from whoever does it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from bare import Bare
from harness import Case, Contender, main
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from update import resnet50_shapes

import convweights as cw
from convweights.checkpoint.shards import shards_of
from convweights.fitting.contents import TensorInfo

SHARED = Path("/dev/shm")
SHARD = 500_000_000


def folder_for(size: int, *, disk: bool) -> Path:
    """A directory of its own with room for some copies of a checkpoint."""
    fits = SHARED.is_dir() and shutil.disk_usage(SHARED).free > 6 * size
    root = SHARED if fits and not disk else Path(tempfile.gettempdir())
    return Path(tempfile.mkdtemp(prefix="convweights-", dir=root))


class Conversion(Case):
    """Every contender writes the same tensors into a target of one name; with ``sharded`` into files of 500 MB."""

    def __init__(
        self,
        name: str,
        title: str,
        state: Mapping[str, torch.Tensor],
        change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]],
        rounds: int,
        *,
        sharded: bool,
        disk: bool,
    ) -> None:
        blank = torch.empty(0)
        super().__init__(name, title, blank, blank, blank, rounds=rounds, threads=2, alone=True)
        self.size = sum(tensor.nbytes for tensor in state.values())
        self.folder = folder_for(self.size, disk=disk)
        self.plain, self.pickled = self.folder / "source.safetensors", self.folder / "source.pt"
        save_file(dict(state), self.plain)
        torch.save(dict(state), self.pickled)
        self.copy, self.change, self.sharded = self.folder / "copy", change, sharded
        self.wanted = dict(change(key, tensor) for key, tensor in state.items())
        infos = [TensorInfo(key, tuple(tensor.shape), tensor.dtype) for key, tensor in self.wanted.items()]
        shards = {self.target / file: part for file, part in shards_of(infos, SHARD, "model").items()}
        # The tensors of each file, as every contender has them.
        self.files = shards if sharded else {self.target: infos}

    def clear(self) -> None:
        for left in (self.target, self.copy):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def given(self) -> Path:
        """The source of ours and of ``cp``."""
        return self.plain

    @property
    def target(self) -> Path:
        return self.folder / ("target" if self.sharded else "target.safetensors")

    @property
    def moved(self) -> int:
        return self.size

    def found(self) -> dict[str, torch.Tensor]:
        return {name: tensor for path in self.files for name, tensor in load_file(path).items()}

    def is_right(self) -> bool:
        found = self.found()
        return found.keys() == self.wanted.keys() and all(
            torch.equal(found[key], wanted) for key, wanted in self.wanted.items()
        )

    def check(self) -> None:
        for contender in self.contenders:
            self.clear()
            contender.run()
            if not self.is_right():
                raise AssertionError(f"{self.name}: {contender.name} must give the expected result before it is timed")

    def floor(self) -> Contender:
        return Contender("cp of the source", "floor", lambda: subprocess.run(["cp", self.given, self.copy], check=True))

    def save(self, read: Callable[[str], torch.Tensor], names: Mapping[str, str]) -> None:
        """A file at a time; ``names`` are the source's by the target's."""
        for path, infos in self.files.items():
            path.parent.mkdir(exist_ok=True)
            save_file(dict(self.change(names[info.name], read(names[info.name])) for info in infos), path)

    def add_peers(self) -> None:
        new = {key: self.change(key, torch.empty(64, 3, 7, 7))[0] for key in load_file(self.plain)}
        names = {to: key for key, to in new.items()}

        def loaded() -> None:
            self.save(load_file(self.plain).__getitem__, names)

        def one_by_one() -> None:
            with safe_open(self.plain, framework="pt") as file:
                self.save(file.get_tensor, names)

        def unpickled() -> None:
            self.save(torch.load(self.pickled, mmap=True, weights_only=True).__getitem__, names)

        self.eager("load_file, save_file", loaded)
        self.eager("safe_open tensor by tensor, save_file", one_by_one)
        self.eager("torch.load(mmap=True), save_file", unpickled)
        loop = Bare(self.plain, {name: (names[name], tensor) for name, tensor in self.wanted.items()}, self.files)
        self.bare("a loop of pread, cast and pwrite in Python", loop.run)


class TorchConversion(Conversion):
    """From a ``.pt`` file into another."""

    @property
    def given(self) -> Path:
        return self.pickled

    @property
    def target(self) -> Path:
        return self.folder / "target.pt"

    def found(self) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = torch.load(self.target, weights_only=True)
        return tensors

    def add_peers(self) -> None:
        def through(*, mmap: bool) -> None:
            state = torch.load(self.pickled, mmap=mmap, weights_only=True)
            torch.save(dict(self.change(name, tensor) for name, tensor in state.items()), self.target)

        self.eager("torch.load, torch.save", lambda: through(mmap=False))
        self.eager("torch.load(mmap=True), torch.save", lambda: through(mmap=True))


def stem_and_cast(key: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    if key == "stem.weight":
        tensor = tensor.repeat(1, 2, 1, 1) * 0.5
    return key, tensor.bfloat16()


def renamed(key: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    return f"net.{key}", tensor


STEM = {"rules": [{"match": "stem.weight", "in_channels": 6}], "dtype": "bfloat16"}
RENAME = {"rules": [{"match": "re:(.*)", "rename": "net.\\1"}]}


def case(
    device: str,
    *,
    tiny: bool = False,
    compiled: bool = True,
    name: str = "2 GB",
    shapes: tuple[tuple[int, ...], ...] = ((1024, 8704),) * 59,
    change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]] = stem_and_cast,
    asked: Mapping[str, Any] = STEM,
    what: str = "stem 3 -> 6, float32 -> bfloat16",
    rounds: int = 15,
    kind: type[Conversion] = Conversion,
    sharded: bool = False,
    disk: bool = False,
) -> Case:
    g = torch.Generator().manual_seed(0)
    rest = [(9, 7)] * 3 if tiny else shapes
    state = {"stem.weight": torch.randn(64, 3, 7, 7, generator=g)}
    state.update({f"layers.{k}.weight": torch.randn(shape, generator=g) for k, shape in enumerate(rest)})
    made = kind(name, f"{len(state)} tensors, {what}", state, change, rounds, sharded=sharded, disk=disk)
    more: dict[str, Any] = {**asked, "overwrite": True, **({"shard_size": SHARD} if sharded else {})}
    made.ours("convert(..., fsync=False)", lambda: cw.convert(made.given, made.target, **more, fsync=False))
    if disk:
        made.variant("convert(...), on the disk when it ends", lambda: cw.convert(made.given, made.target, **more))
    made.add_peers()
    return made


# A ResNet-50 of half the width: 22 MB in 161 tensors.
HALF = tuple(tuple(max(1, size // 2) if size > 7 else size for size in shape) for shape in resnet50_shapes()[1:])

CASES = {
    "large": case,
    "shards": lambda device, **options: case(
        device, name="2 GB sharded", what="stem 3 -> 6, float32 -> bfloat16, files of 500 MB", sharded=True, **options
    ),
    "small": lambda device, **options: case(device, name="22 MB", shapes=HALF, rounds=61, **options),
    "torch": lambda device, **options: case(
        device,
        name="2 GB .pt",
        what="stem 3 -> 6, float32 -> bfloat16, .pt to .pt",
        kind=TorchConversion,
        rounds=5,
        **options,
    ),
    "rename": lambda device, **options: case(
        device, name="2 GB renamed", change=renamed, asked=RENAME, what="other names only", **options
    ),
    "disk": lambda device, **options: case(
        device, name="2 GB on a disk", what="stem 3 -> 6, float32 -> bfloat16, ext4", disk=True, rounds=5, **options
    ),
}

if __name__ == "__main__":
    main("convert", CASES)
