"""A safetensors checkpoint in several files, with an index beside them that says which tensor lies in which."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from convweights.checkpoint.contents import Checkpoint, Span, Surroundings
from convweights.checkpoint.safetensors_file import SafetensorsFile
from convweights.fitting.errors import CheckpointError, reason, sentence

INDEX = ".safetensors.index.json"


class ShardedFile(Checkpoint):
    """What an index names. All shards have to be there, and to hold what the index says and nothing else."""

    format = "safetensors (sharded)"

    def __init__(self, function: str, argument: str, path: Path) -> None:
        self.path = path
        places = _weight_map(function, argument, path)
        with contextlib.ExitStack() as stack:
            self._shards = {
                name: stack.enter_context(_shard(function, argument, path, name))
                for name in dict.fromkeys(places.values())
            }
            held = {(name, place) for place, shard in self._shards.items() for name in shard.tensors}
            for name, place in sorted(held ^ set(places.items())):
                rule = "have an index that agrees with its shards"
                got = (
                    f"{name} in {place} that it does not name"
                    if (name, place) in held
                    else (f"{name}, which {place} does not hold")
                )
                raise CheckpointError(sentence(function, argument, rule, f"{path} with {got}"), path, name)
            self._close = stack.pop_all().close
        self._places = places
        self.tensors = {name: self._shards[place].tensors[name] for name, place in places.items()}
        metadata = [shard.around.metadata for shard in self._shards.values()]
        # What all of them say; of an index without tensors there is none.
        shared = {
            key: value for key, value in metadata[0].items() if all(other.get(key) == value for other in metadata)
        }
        self.around = Surroundings(metadata=shared)

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of its files."""
        return tuple(self._shards)

    def read(self, name: str) -> torch.Tensor:
        return self._shards[self._places[name]].read(name)

    def span(self, name: str) -> Span | None:
        return self._shards[self._places[name]].span(name)

    def close(self) -> None:
        self._close()


def _weight_map(function: str, argument: str, path: Path) -> dict[str, str]:
    """The shard of each tensor, as the index has it."""

    def refuse(got: str) -> CheckpointError:
        return CheckpointError(sentence(function, argument, "be a valid index of safetensors files", got), path)

    try:
        index: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise refuse(f"{path} ({reason(error)})") from None
    except ValueError:
        raise refuse(f"{path}, which is not JSON") from None
    found = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(found, Mapping) or not found or not all(isinstance(shard, str) for shard in found.values()):
        raise refuse(f"{path} without a weight_map of names and files")
    for name, shard in found.items():
        if shard != Path(shard).name or not shard:
            raise refuse(f"{path} with {name} in {shard!r}, which is not beside it")
    return dict(found)


def _shard(function: str, argument: str, path: Path, name: str) -> SafetensorsFile:
    place = path.with_name(name)
    if not place.is_file():
        rule, got = "have all its shards", f"{path} without {name}"
        raise CheckpointError(sentence(function, argument, rule, got), path)
    return SafetensorsFile(function, argument, place)


def checkpoint_in(function: str, argument: str, folder: Path) -> Path:
    """The one checkpoint of a directory: model.safetensors or its index, or the only such file that there is."""
    for usual in (f"model{INDEX}", "model.safetensors"):
        if (folder / usual).is_file():
            return folder / usual
    indices = sorted(folder.glob(f"*{INDEX}"))
    found = indices or sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        named = ", ".join(path.name for path in found) or "no safetensors files"
        rule, remedy = "be a file, or a directory with one checkpoint", "pass the file that you mean"
        raise CheckpointError(
            sentence(function, argument, rule, f"the directory {folder} with {named}", remedy), folder
        )
    return found[0]
