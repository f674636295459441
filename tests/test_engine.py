"""The streaming writer: the same bytes in parts of any size and by any number of workers, in bounded memory. Family:
exact."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
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
from convweights.checkpoint.contents import Span
from convweights.checkpoint.safetensors_file import SafetensorsFile

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
    dtype=st.sampled_from([None, "bfloat16", "float16"]),
    extremes=st.lists(st.sampled_from([float("inf"), 3.4e38, 1e5, 6e4]), max_size=3),
    template=st.booleans(),
    part=st.sampled_from([1, 40, 300, 5000]),
    workers=st.sampled_from([1, 2, 5]),
)
def test_parts_and_workers_do_not_matter(tmp_path_factory, rules, dtype, extremes, template, part, workers):
    """Whole tensors through the reference judge its parts, and the compiled stream's tiles."""
    folder, state = tmp_path_factory.mktemp("engine"), network()
    for tensor in state.values():
        if tensor.is_floating_point() and tensor.numel():
            for place, extreme in enumerate(extremes):
                tensor[np.unravel_index(place, tensor.shape)] = extreme
    source = save(folder / "net.safetensors", state)
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


@pytest.mark.parametrize("part", [64, WHOLE])
@pytest.mark.parametrize("name", ["a cast", "input channels", "filters kept and zeros", "a larger kernel", "depth"])
def test_overflow_is_found_beside_infinities(tmp_path, parts_in, name: str, part: int):
    weight = torch.ones(8, 4, 3, 3)
    weight[0] = torch.inf
    source = save(tmp_path / "a.safetensors", {"conv.weight": weight})
    parts_in(part)
    rule, _ = CUTS[name]
    asked = {"rules": [{"match": "conv", **rule, "dtype": "float16"}], "fsync": False}
    assert convert(source, tmp_path / "b.safetensors", **asked).notes == ()
    weight[5, 1, 1, 1] = 1e9
    save(source, {"conv.weight": weight})
    notes = convert(source, tmp_path / "c.safetensors", **asked).notes
    assert notes == ("finite values became infinite in the cast of conv.weight",)


def test_infinities_of_a_template_are_no_overflow(tmp_path, parts_in):
    source = save(tmp_path / "a.safetensors", {"fc.weight": torch.ones(4, 8)})
    like = save(tmp_path / "like.safetensors", {"fc.weight": torch.full((6, 8), torch.inf, dtype=torch.float16)})
    assert convert(source, tmp_path / "b.safetensors", like=like, fsync=False).notes == ()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e5m2fnuz])
def test_float8_is_copied(tmp_path, parts_in, dtype: torch.dtype):
    weight = torch.randn(8, 4).to(dtype)
    source = save(tmp_path / "a.safetensors", {"fc.weight": weight})
    rules = [{"match": "fc.weight", "out_channels": 4}]
    convert(source, tmp_path / "b.safetensors", rules=rules, fsync=False)
    assert torch.equal(
        load_file(tmp_path / "b.safetensors")["fc.weight"].view(torch.uint8), weight.view(torch.uint8)[:4]
    )


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


def test_a_source_that_cannot_be_read(tmp_path, parts_in, monkeypatch):
    """A descriptor that reads nothing stands for a disk that fails."""
    source = save(tmp_path / "a.safetensors", network())
    folder = os.open(tmp_path, os.O_RDONLY)
    parts_in(64)
    monkeypatch.setattr(SafetensorsFile, "span", lambda *_: Span(folder, 0))
    with pytest.raises(
        CheckpointError, match=r"^convert: source must be readable, got .*a\.safetensors \(Is a directory"
    ):
        convert(source, tmp_path / "b.safetensors")
    os.close(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_strided_averages_read_the_source_once(tmp_path):
    """Each window reaches across all filters: tiles are cut along what lies within them."""
    source = save(tmp_path / "a.safetensors", {"fc.weight": torch.randn(8000, 1000)})
    rules = [{"match": "fc.weight", "out_channels": {"to": 1000, "how": "strided"}}]
    begun = time.perf_counter()
    convert(source, tmp_path / "b.safetensors", rules=rules, fsync=False)
    assert time.perf_counter() - begun < 10  # 0.2 s; 35 s where every tile reads all of it


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
import json, sys
from convweights.checkpoint import convert
from convweights.checkpoint.formats import open_checkpoint
small, source, target, shard_size, rules = [*sys.argv[1:], "", ""][:5]
def status(field):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(lines[field].split()[0])
usual = [{"match": "stem.weight", "in_channels": 8}, {"match": "re:same", "rename": "kept"}]
with open_checkpoint("test", "source", source) as file:
    usual = usual[:1] + usual[1:] * ("same" in file.tensors)
rules = json.loads(rules) if rules else usual
asked = dict(rules=rules, dtype="bfloat16", fsync=False, shard_size=shard_size or None)
convert(small, target, **asked)
open("/proc/self/clear_refs", "w").write("5")  # lets the peak begin anew
idle = status("VmRSS")
convert(source, target, overwrite=True, **asked)
print(status("VmHWM") - idle)
"""


def grown(source: Path, small: Path, target: Path, *more: str) -> int:
    """The peak of a process that converts, over that of one which has converted something small."""
    command = [sys.executable, "-c", MEASURE, str(small), str(source), str(target), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def small_like(path: Path, shapes: dict[str, list[int]]) -> Path:
    return sparse(path, {name: [8, 4, 2, 2] if len(shape) == 4 else [4, 4] for name, shape in shapes.items()})


LARGE = {
    # A tensor that is fitted, and two that are cast, one of them under another name.
    "100 MB": {"stem.weight": [512, 4, 100, 100], "cast": [250, 20_000], "same": [250, 20_000]},
    "2 GB": {"stem.weight": [2048, 4, 100, 100], "cast": [9000, 20_000], "same": [9000, 20_000]},
    "8 GB": {"stem.weight": [8192, 4, 100, 100], "cast": [40_000, 20_000], "same": [40_000, 20_000]},
    "one tensor of 2 GB": {"stem.weight": [12_800, 4, 100, 100]},
}


@pytest.mark.parametrize("form", ["one file", "sharded", "pt", "pt from pt"])
@pytest.mark.parametrize("name", ["100 MB", *(pytest.param(name, marks=pytest.mark.slow) for name in list(LARGE)[1:])])
def test_memory_is_bounded(tmp_path, name: str, form: str):
    """With 32 MB over an idle process, whatever the checkpoint's size."""
    shapes = LARGE[name]
    small = small_like(tmp_path / "small.safetensors", shapes)
    source = sparse(tmp_path / "large.safetensors", shapes)
    if form == "pt from pt":
        source = convert(source, tmp_path / "large.pt", fsync=False).target
        small = convert(small, tmp_path / "small.pt", fsync=False).target
    target = tmp_path / {"one file": "out.safetensors", "sharded": "out"}.get(form, "out.pt")
    found = grown(source, small, target, *(["500MB"] if form == "sharded" else []))
    print(f"{name}, {form}: {found / 2**20:.1f} MiB over idle")
    assert found < 32 << 20


@pytest.mark.skipif(not STREAMED, reason="without the compiled stream such a tensor is whole in memory")
@pytest.mark.parametrize("how", ["layout", "strided", "select", "in_channels"])
def test_memory_is_bounded_whatever_the_map(tmp_path, how: str):
    """A tensor of 160 MB whose rows do not come from rows."""
    source = sparse(tmp_path / "large.safetensors", {"conv.weight": [2000, 2000, 10]})
    small = sparse(tmp_path / "small.safetensors", {"conv.weight": [4, 4, 10]})
    rule = {
        "layout": {"layout": "OIW->WIO"},
        "strided": {"out_channels": {"to": 2, "how": "strided"}},
        "select": {"out_channels": {"select": [3, 0, 2, 1]}},
        "in_channels": {"in_channels": {"to": 6, "how": "interleave"}},
    }[how]
    assert grown(source, small, tmp_path / "out.safetensors", "", json.dumps([{"match": "conv", **rule}])) < 32 << 20
