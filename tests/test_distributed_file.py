"""Directories of torch.distributed.checkpoint, as torch writes and reads them, and what is refused. Family: exact."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from bits import assert_same_bits
from checkpoints import DTYPES, network, random_bits, snapshot
from torch.distributed._shard.sharded_tensor import metadata as legacy
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from convweights.checkpoint.contents import Surroundings
from convweights.checkpoint.distributed_file import DistributedFile, is_distributed, write_distributed
from convweights.fitting.errors import CheckpointError

DATA = "__0_0.distcp"


def state() -> dict[str, torch.Tensor]:
    """A network, a tensor of each dtype, and one whose elements lie in another order."""
    every = {f"each.{str(dtype).removeprefix('torch.')}": random_bits((3, 4), dtype) for dtype in DTYPES}
    return {**network(), **every, "strided": torch.arange(6.0).view(2, 3).t()}


def saved(folder: Path, content: Mapping[str, Any]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(dict(content), checkpoint_id=folder, no_dist=True)
    return folder


def opened(folder: Path) -> DistributedFile:
    return DistributedFile("convert", "source", folder)


def check_holds(folder: Path, expected: Mapping[str, torch.Tensor], around: Surroundings | None = None) -> None:
    with opened(folder) as found:
        assert found.format == "torch.distributed.checkpoint"
        assert found.label == str(folder)
        assert found.around == (around or Surroundings())
        assert set(found.tensors) == set(expected)
        for name, tensor in expected.items():
            info = found.tensors[name]
            assert (info.name, info.shape, info.dtype, info.plain) == (name, tuple(tensor.shape), tensor.dtype, True)
            assert_same_bits(found.read(name).contiguous(), tensor.contiguous())


def test_what_torch_saves_is_read(tmp_path):
    folder = saved(tmp_path / "net", state())
    assert is_distributed(folder)
    assert not is_distributed(tmp_path)
    assert not is_distributed(folder / ".metadata")
    check_holds(folder, state())
    with opened(folder) as found:
        assert list(found.tensors) == list(state())


def test_a_parameter_is_read_without_gradient(tmp_path):
    folder = saved(tmp_path / "net", {"w": torch.nn.Parameter(torch.ones(3))})
    with opened(folder) as found:
        assert not found.read("w").requires_grad


def test_what_is_written_is_read_by_torch(tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_distributed(folder, state())
    check_holds(folder, state())
    dcp_to_torch_save(folder, tmp_path / "net.pt")
    whole = torch.load(tmp_path / "net.pt", weights_only=True)
    into = {name: torch.zeros_like(tensor) for name, tensor in state().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(into, checkpoint_id=folder)
    assert list(whole) == list(state())
    for name, tensor in state().items():
        assert_same_bits(whole[name].contiguous(), tensor.contiguous())
        assert_same_bits(into[name].contiguous(), tensor.contiguous())


def test_the_same_tensors_make_the_same_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_distributed(tmp_path / name, network())
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_a_failed_writing_says_why(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        write_distributed(tmp_path / "file" / "net", network())
    with pytest.raises(NotImplementedError, match="no data"):
        write_distributed(tmp_path, {"a": torch.empty(3, device="meta")})


def test_opening_does_not_import_torch_distributed_checkpoint(tmp_path):
    folder = saved(tmp_path / "net", network())
    code = """
import sys
from pathlib import Path
from convweights.checkpoint.distributed_file import DistributedFile
DistributedFile("convert", "source", Path(sys.argv[1])).read("conv1.weight")
assert "torch.distributed.checkpoint" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


MOMENTS = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("content", "expected", "around"),
    [
        (
            {"model": {**network(), "note": "a"}, "optimizer": MOMENTS, "epoch": 3},
            network(),
            Surroundings(nested="model", entries=("optimizer", "epoch"), inside=("note",)),
        ),
        # What has a dotted name because of further dicts is a tensor of the model too.
        (
            {"state_dict": {"a": torch.ones(1), "b": {"c": torch.ones(2)}}, "top": torch.ones(3)},
            {"a": torch.ones(1), "b.c": torch.ones(2)},
            Surroundings(nested="state_dict", entries=("top",)),
        ),
        # A module may be called model without being the key of a state dict.
        ({"model.a": torch.ones(1), "epoch": 3}, {"model.a": torch.ones(1)}, Surroundings(inside=("epoch",))),
        ({"app": {"model": {"a": torch.ones(1)}}}, {"app.model.a": torch.ones(1)}, Surroundings()),
        ({"model": [torch.ones(1), torch.ones(2)]}, {"model.0": torch.ones(1), "model.1": torch.ones(2)}, None),
    ],
)
def test_nested(tmp_path, content, expected, around):
    check_holds(saved(tmp_path / "net", content), expected, around)


@pytest.mark.parametrize(
    "paths",
    [None, [], {}, {"model.fc.weight": ()}, {"model.fc.weight": ("model", ["fc.weight"])}, {"epoch": ["epoch"]}],
)
def test_names_without_nesting_stay(tmp_path, paths):
    """Also where the paths do not say how the names came about."""
    folder = saved(tmp_path / "net", {"model": network(), "epoch": 3})
    field(folder, "planner_data", paths)
    check_holds(folder, {f"model.{name}": t for name, t in network().items()}, Surroundings(inside=("epoch",)))


SHARDED = {
    "rows": torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
    "columns": random_bits((4, 6), torch.bfloat16),
    "one_row": torch.ones(1, 3),
    "whole": torch.arange(4),
    "empty": torch.empty(0, 4),
}


def _save_a_share(rank: int, folder: Path) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    place = {"rows": Shard(0), "columns": Shard(1), "one_row": Shard(0), "whole": Replicate(), "empty": Shard(0)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    shares = {name: distribute_tensor(tensor, mesh, [place[name]]) for name, tensor in SHARDED.items()}
    dcp.save({"model": {**shares, "plain": torch.ones(2)}, "epoch": 3}, checkpoint_id=folder)
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    folder = tmp_path / "net"
    torch.multiprocessing.spawn(_save_a_share, (folder,), nprocs=2)
    assert (folder / "__1_0.distcp").is_file()
    expected = {**SHARDED, "plain": torch.ones(2)}
    check_holds(folder, expected, Surroundings(nested="model", entries=("epoch",)))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex128])
def test_chunks_of_each_dtype(tmp_path, dtype: torch.dtype):
    """A checkerboard of four chunks, whose metadata is put together here."""
    tensor = random_bits((5, 6), dtype)
    parts = {(a, b): tensor[a : a + 3, b : b + 4].contiguous() for a in (0, 3) for b in (0, 4)}
    folder = saved(tmp_path / "net", {str(at): part for at, part in parts.items()})

    def join(metadata: Metadata) -> None:
        properties = metadata.state_dict_metadata["(0, 0)"].properties
        chunks = [ChunkStorageMetadata(torch.Size(at), part.shape) for at, part in parts.items()]
        places = {index.fqn: place for index, place in metadata.storage_data.items()}
        metadata.state_dict_metadata = {"w": TensorStorageMetadata(properties, tensor.shape, chunks)}
        metadata.storage_data = {MetadataIndex("w", at): places[str(at)] for at in parts}

    change(folder, join)
    check_holds(folder, {"w": tensor})


def test_older_checkpoints(tmp_path):
    """Those of torch 2.2: other classes of properties, no paths, no version."""
    folder = saved(tmp_path / "net", network())

    def age(metadata: Metadata) -> None:
        del metadata.planner_data, metadata.storage_meta, metadata.version
        for entry in metadata.state_dict_metadata.values():
            entry.properties = legacy.TensorProperties(entry.properties.dtype)

    change(folder, age)
    assert b"sharded_tensor" in (folder / ".metadata").read_bytes()
    check_holds(folder, network())


def change(folder: Path, edit: Callable[[Metadata], object]) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    edit(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def place(folder: Path, **fields: Any) -> None:
    """Change where the bias lies."""
    index = MetadataIndex("conv1.bias", (0,))
    change(folder, lambda metadata: metadata.storage_data[index].__dict__.update(fields))


def box(folder: Path, *chunks: tuple[int, int]) -> None:
    """Change the chunks of the bias, which has 8 elements."""

    def edit(metadata: Metadata) -> None:
        stored = metadata.storage_data[MetadataIndex("conv1.bias", (0,))]
        found = [ChunkStorageMetadata(torch.Size([begin]), torch.Size([count])) for begin, count in chunks]
        metadata.state_dict_metadata["conv1.bias"].chunks = found
        metadata.storage_data.update({MetadataIndex("conv1.bias", (begin,)): stored for begin, _ in chunks})

    change(folder, edit)


def field(folder: Path, name: str, value: Any) -> None:
    change(folder, lambda metadata: setattr(metadata, name, value))


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


METADATA = r"have a \.metadata file as torch\.distributed\.checkpoint writes it, got .*"
COVER = "have chunks that make up each tensor, got .* with"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file missing": (lambda folder: (folder / DATA).unlink(), rf"have all its files, got .*net without {DATA}$"),
    "a file cut": (
        lambda folder: os.truncate(folder / DATA, 2000),
        rf"have whole files, got .*net with 2000 of at least \d+ bytes of {DATA}$",
    ),
    "above": (lambda folder: place(folder, relative_path="../x"), r"in its directory, got .* with '\.\./x', which is"),
    "absolute": (lambda folder: place(folder, relative_path="/x"), r"in its directory, got .* with '/x', which is"),
    "a zero in a name": (lambda folder: place(folder, relative_path="x\0"), "have all its files"),
    "the directory": (lambda folder: place(folder, relative_path=""), "have all its files"),
    "no name": (lambda folder: place(folder, relative_path=3), rf"{METADATA}\(no file for conv1\.bias\)"),
    "a place before": (lambda folder: place(folder, offset=-1), rf"{METADATA}\(tuple in place of sizes\)"),
    "a place behind": (lambda folder: place(folder, offset=10**9), "have whole files"),
    "encoded": (lambda folder: place(folder, transform_descriptors=["zstd"]), "conv1.bias, which an extension encoded"),
    "too short": (lambda folder: place(folder, length=31), f"{COVER} a chunk of 'conv1.bias' that is longer than its"),
    "a chunk missing": (lambda folder: box(folder, (0, 4)), f"{COVER} 4 of the 8 elements of 'conv1.bias'"),
    "a chunk outside": (lambda folder: box(folder, (4, 8)), f"{COVER} a chunk outside 'conv1.bias'"),
    "a chunk twice": (lambda folder: box(folder, (0, 5), (2, 3)), f"{COVER} some elements of 'conv1.bias' twice"),
    "no chunk": (lambda folder: box(folder), f"{COVER} 0 of the 8 elements of 'conv1.bias'"),
    "no place": (
        lambda folder: change(folder, lambda metadata: metadata.storage_data.clear()),
        rf"{METADATA}\(a chunk of conv1\.weight without a place\)",
    ),
    "no tensors": (
        lambda folder: field(folder, "state_dict_metadata", {}),
        "hold tensors, got .*, which holds nothing",
    ),
    "no dict": (lambda folder: field(folder, "storage_data", [1]), rf"{METADATA}\(list in place of a dict\)"),
    "no records": (
        lambda folder: field(folder, "state_dict_metadata", {"a": 1}),
        rf"{METADATA}\(int in place of TensorStorageMetadata\)",
    ),
    "no names": (lambda folder: field(folder, "state_dict_metadata", {1: 1}), rf"{METADATA}\(int as a name\)"),
    "garbage": (lambda folder: (folder / ".metadata").write_bytes(b"garbage"), rf"{METADATA}/\.metadata \("),
    "nothing": (lambda folder: (folder / ".metadata").write_bytes(b""), rf"{METADATA}/\.metadata \("),
    "absent": (lambda folder: (folder / ".metadata").unlink(), rf"{METADATA}/\.metadata \(No such file"),
    "cut": (lambda folder: os.truncate(folder / ".metadata", 500), rf"{METADATA}/\.metadata \(.*truncated"),
    "another object": (
        lambda folder: (folder / ".metadata").write_bytes(pickle.dumps([1])),
        rf"{METADATA}\(list in place of Metadata\)",
    ),
    "hostile": (
        lambda folder: field(folder, "planner_data", Hostile(folder / "marker")),
        rf"{METADATA}net, whose loading would run posix\.system; save only tensors",
    ),
    "a foreign class": (
        lambda folder: field(folder, "version", re.compile("a")),
        r"whose loading would run re\._compile",
    ),
    "a function of torch": (
        lambda folder: field(folder, "version", torch.load),
        r"would run torch\.serialization\.load",
    ),
    # torch.Size and a record with an attribute set, by the opcode that setting attributes has.
    "a class changed": (
        lambda folder: (folder / ".metadata").write_bytes(b"\x80\x04ctorch\nSize\nN}\x8c\x01aK\x01s\x86b."),
        METADATA,
    ),
    "a record changed": (
        lambda folder: (folder / ".metadata").write_bytes(
            b"\x80\x04ctorch.distributed.checkpoint.metadata\nMetadata\nN}\x8c\x01aK\x01s\x86b."
        ),
        METADATA,
    ),
}


def check_refused(folder: Path, pattern: str, act: Callable[[], object]) -> CheckpointError:
    before = snapshot(folder)
    with pytest.raises(CheckpointError) as caught:
        act()
    message = str(caught.value)
    assert re.search(rf"^convert: source must .*{pattern}", message), message
    assert "\n" not in message
    assert caught.value.path == folder
    assert snapshot(folder) == before
    return caught.value


@pytest.mark.parametrize("name", BROKEN)
def test_broken(tmp_path, name: str):
    break_it, pattern = BROKEN[name]
    folder = saved(tmp_path / "net", network())
    break_it(folder)
    check_refused(folder, pattern, lambda: opened(folder))


def test_several_state_dicts(tmp_path):
    folder = saved(tmp_path / "net", {"model": network(), "ema": network(), "epoch": 3})
    check_refused(folder, "hold one state dict, got several in .*: model, ema; save the one", lambda: opened(folder))


def test_no_tensors(tmp_path):
    folder = saved(tmp_path / "net", {"epoch": 3, "note": "a"})
    check_refused(folder, "hold tensors, got .*net, which holds epoch, note", lambda: opened(folder))


def put(folder: Path, value: Any) -> None:
    """Something else where the bias was."""
    path = folder.with_name("other.pt")
    torch.save(value, path)
    content = path.read_bytes()
    with (folder / DATA).open("ab") as file:
        at = file.tell()
        file.write(content)
    place(folder, offset=at, length=len(content))


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        (lambda folder: torch.zeros(7), rf"got another object for 'conv1\.bias' in .*{DATA}"),
        (lambda folder: torch.zeros(8, dtype=torch.float64), "got another object"),
        (lambda folder: torch.zeros(8).to_sparse(), "got another object"),
        (lambda folder: torch.zeros(8, device="meta"), "got another object"),
        (lambda folder: [1], "got another object"),
        (
            lambda folder: Hostile(folder / "marker"),
            rf"got 'conv1\.bias' in .*{DATA}, which torch\.load cannot read \(UnpicklingError\)",
        ),
    ],
)
def test_other_data(tmp_path, value, pattern: str):
    folder = saved(tmp_path / "net", network())
    put(folder, value(folder))
    with opened(folder) as found:
        error = check_refused(folder, f"hold what its .metadata says, {pattern}", lambda: found.read("conv1.bias"))
        assert error.tensor == "conv1.bias"
        assert_same_bits(found.read("bn.weight"), network()["bn.weight"])


def test_files_that_change_while_open(tmp_path):
    folder = saved(tmp_path / "net", network())
    with opened(folder) as found:
        os.truncate(folder / DATA, 0)
        check_refused(folder, "which torch.load cannot read", lambda: found.read("conv1.bias"))
        (folder / DATA).unlink()
        check_refused(folder, "be readable, got .* \\(No such file or directory\\)", lambda: found.read("conv1.bias"))


def test_quantised(tmp_path):
    """They are read whole, as other files' are, for targets that keep them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.quantize_per_tensor(torch.arange(4.0), 0.5, 0, torch.qint8)
    folder = saved(tmp_path / "net", {"w": tensor})
    with opened(folder) as found:
        assert not found.tensors["w"].plain
        assert_same_bits(found.read("w").int_repr(), tensor.int_repr())

    def halve(metadata: Metadata) -> None:
        chunks = [ChunkStorageMetadata(torch.Size([begin]), torch.Size([2])) for begin in (0, 2)]
        metadata.state_dict_metadata["w"].chunks = chunks
        metadata.storage_data[MetadataIndex("w", (2,))] = _StorageInfo(DATA, 0, 100)

    change(folder, halve)
    check_refused(folder, f"{COVER} the quantised 'w' in 2 chunks", lambda: opened(folder))
