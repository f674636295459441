"""The streaming writer: the same bytes in parts of any size and by any number of workers, in bounded memory. Family:
exact."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import network, save
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_other_sources import sharded
from test_plan import RULES, other_sizes

from convweights import native
from convweights.checkpoint import CheckpointError, convert, engine, parts, write

WHOLE = 1 << 60
STREAMED = native.cpu is not None


@pytest.fixture(params=["stream", "reference"] if STREAMED else ["reference"])
def parts_in(monkeypatch, request):
    """Chooses how large parts are; each test runs with the compiled stream, and without it."""
    if request.param == "reference":
        monkeypatch.setattr(native, "cpu", None)

    def choose(size: int, workers: int = 2) -> None:
        monkeypatch.setattr(parts, "PART_BYTES", size)
        monkeypatch.setattr(engine, "TILE_BYTES", size)
        monkeypatch.setattr(engine, "WORKERS", workers)

    return choose


@settings(max_examples=150, deadline=None)
@given(
    rules=RULES,
    dtype=st.sampled_from([None, "bfloat16"]),
    template=st.booleans(),
    part=st.sampled_from([1, 40, 300, 5000]),
    workers=st.sampled_from([1, 2, 5]),
)
def test_parts_and_workers_do_not_matter(tmp_path_factory, rules, dtype, template, part, workers):
    """Whole tensors through the reference judge its parts, and the compiled stream's tiles."""
    folder = tmp_path_factory.mktemp("engine")
    source = save(folder / "net.safetensors", network())
    like = save(folder / "like.pt", other_sizes()) if template else None
    asked = {"rules": rules, "like": like, "dtype": None if template else dtype, "strict": False, "fsync": False}
    reports = []
    before = (parts.PART_BYTES, engine.TILE_BYTES, engine.WORKERS, native.cpu)
    roads = [("whole", WHOLE, 1, None), ("cut", part, 1, None), ("streamed", part, workers, native.cpu)]
    try:
        for name, size, count, cpu in roads:
            parts.PART_BYTES, engine.TILE_BYTES, engine.WORKERS, native.cpu = size, size, count, cpu
            reports.append(convert(source, folder / f"{name}.safetensors", **asked))
    except (CheckpointError, ValueError):
        assert not reports, "refused on one road only"
        return
    finally:
        parts.PART_BYTES, engine.TILE_BYTES, engine.WORKERS, native.cpu = before
    whole = (folder / "whole.safetensors").read_bytes()
    for name, *_ in roads:
        assert (folder / f"{name}.safetensors").read_bytes() == whole, name
    assert len({report.notes for report in reports}) == 1


CUTS = {
    "a cast": ({"dtype": "bfloat16"}, 8),
    "input channels": ({"in_channels": 6}, 8),
    "groups": ({"groups": 2, "in_channels": 6, "dtype": "float16"}, 2),
    "filters cut off": ({"out_channels": 5}, 5),
    "filters averaged": ({"out_channels": {"to": 4, "how": "blocks"}}, 1),
    "filters kept and zeros": ({"out_channels": {"to": 12, "how": "zeros"}}, 1),
    "a larger kernel": ({"kernel_size": 5}, 8),
    "depth": ({"inflate": 3}, 8),
    "another layout": ({"layout": "OIHW->HWIO"}, 1),
}


@pytest.mark.parametrize("name", CUTS)
def test_what_is_cut(tmp_path, parts_in, name: str):
    """Wherever rows of the target come from rows of the source, a part is one of them at the least."""
    rule, expected = CUTS[name]
    source = save(tmp_path / "a.safetensors", {"conv.weight": torch.randn(8, 4, 3, 3)})
    parts_in(1)
    found = convert(source, tmp_path / "b.safetensors", rules=[{"match": "conv", **rule}], fsync=False)
    (planned,) = found.tensors
    assert len(list(parts.parts_of(planned))) == expected
    parts_in(WHOLE)
    convert(source, tmp_path / "c.safetensors", rules=[{"match": "conv", **rule}], fsync=False)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()


def test_shards_are_streamed(tmp_path, parts_in):
    index = sharded(tmp_path / "net")
    parts_in(100)
    convert(index, tmp_path / "a.safetensors", dtype="float16", fsync=False)
    state = load_file(tmp_path / "a.safetensors")
    for name, tensor in network().items():
        assert torch.equal(state[name], tensor.half() if tensor.is_floating_point() else tensor)


def test_overflow_is_found_in_any_part(tmp_path, parts_in):
    weight = torch.ones(64, 8)
    weight[50, 3] = 1e38
    source = save(tmp_path / "a.safetensors", {"fc.weight": weight})
    parts_in(64)
    report = convert(source, tmp_path / "b.safetensors", dtype="float16", fsync=False)
    assert report.notes == ("finite values became infinite in the cast of fc.weight",)


def test_a_source_that_becomes_shorter(tmp_path, parts_in, monkeypatch):
    source = save(tmp_path / "a.safetensors", network())
    begin = engine.write_files

    def cut(*arguments, **named):
        os.truncate(source, source.stat().st_size - 8)
        return begin(*arguments, **named)

    monkeypatch.setattr(write, "write_files", cut)
    with pytest.raises(CheckpointError, match=r"^convert: source must stay as it is while it is read, got "):
        convert(source, tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_disk_without_space(tmp_path, monkeypatch):
    source = save(tmp_path / "a.safetensors", network())
    few = type("Found", (), {"f_bavail": 1, "f_frsize": 512, "f_blocks": 99})
    monkeypatch.setattr(engine.os, "fstatvfs", lambda _: few)
    with pytest.raises(CheckpointError, match=r"^convert: target must lie where there is space .* for 512 B"):
        convert(source, tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def sparse(path: Path, shapes: dict[str, list[int]]) -> Path:
    """A checkpoint of zeros that takes no space."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


MEASURE = """
import resource, sys
from convweights.checkpoint import convert
small, source, target = sys.argv[1:]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
rules = [{"match": "stem.weight", "in_channels": 8}, {"match": "same", "rename": "kept"}]
convert(small, target, rules=rules, dtype="bfloat16", fsync=False)
idle = peak()
convert(source, target, rules=rules, dtype="bfloat16", fsync=False, overwrite=True)
print(peak() - idle)
"""


def test_memory_is_bounded(tmp_path):
    """Some 500 MB, in a tensor that is fitted and two that are cast, one of them renamed, with 32 MB in memory."""
    shapes = {"stem.weight": [2048, 4, 100, 100], "cast": [1000, 20_000], "same": [1000, 20_000]}
    small = sparse(tmp_path / "small.safetensors", {name: [8, 4, 2, 2] if "." in name else [4, 4] for name in shapes})
    source = sparse(tmp_path / "large.safetensors", shapes)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, small, source, tmp_path / "out.safetensors"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 32 << 20
