"""Targets of every format: directories of one file or several, torch.distributed.checkpoint, and what they carry.
Family: exact."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from bits import assert_same_bits
from checkpoints import load, network, save, snapshot, without_metadata
from safetensors import safe_open
from test_other_sources import KERNEL, sharded

import convweights as cw
from convweights.checkpoint.convert import plan_conversion
from convweights.checkpoint.formats import open_checkpoint

KEEP_ALL: dict = {"fsync": False}


def holds(path: Path, state: dict[str, torch.Tensor]) -> None:
    with open_checkpoint("convert", "source", path) as found:
        assert set(found.tensors) == set(state)
        for name, tensor in state.items():
            assert_same_bits(found.read(name).contiguous(), tensor.contiguous())


def test_a_directory_of_one_file(tmp_path):
    report = cw.convert(save(tmp_path / "a.safetensors", network()), tmp_path / "out")
    assert report.target_format == "safetensors (directory)"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    assert report.file_bytes == (tmp_path / "out/model.safetensors").stat().st_size
    holds(tmp_path / "out", network())
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize("kind", ["safetensors", "pt", "shards"])
def test_shards(tmp_path, kind: str):
    """As many files as it takes, an index that transformers reads, the same tensors."""
    source = sharded(tmp_path / "net") if kind == "shards" else save(tmp_path / f"net.{kind}", network())
    cw.convert(source, tmp_path / "out", shard_size=700, **KEEP_ALL)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    state = network()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    assert index["weight_map"].keys() == state.keys()
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert re.fullmatch(rf"\w+-00001-of-{len(files):05}\.safetensors", files[0])
    for file in files:
        held = load(tmp_path / "out" / file)
        assert held.keys() == {name for name, place in index["weight_map"].items() if place == file}
        assert sum(t.nbytes for t in held.values()) <= 700 or len(held) == 1
    holds(tmp_path / "out", state)


@pytest.mark.parametrize(
    ("size", "nbytes"), [(700, 700), ("300", 300), ("5GB", 5 * 10**9), ("1.5 KiB", 1536), ("20b", 20)]
)
def test_sizes_of_shards(size, nbytes):
    from convweights.checkpoint.shards import shard_bytes

    assert shard_bytes("convert", size) == nbytes


@pytest.mark.parametrize(
    ("size", "error", "words"),
    [
        ("5 bananas", ValueError, r'be a size such as "5GB"'),
        (0, ValueError, "be at least one byte, got 0"),
        (True, TypeError, "be a number of bytes"),
        (1.5, TypeError, "be a number of bytes"),
    ],
)
def test_sizes_that_are_refused(tmp_path, size, error, words):
    source = save(tmp_path / "a.safetensors", network())
    before = snapshot(tmp_path)
    with pytest.raises(error, match=rf"^convert: shard_size must {words}"):
        cw.convert(source, tmp_path / "out", shard_size=size)
    assert snapshot(tmp_path) == before


def test_files_are_called_as_in_the_source(tmp_path):
    sharded(tmp_path / "net", stem="diffusion")
    cw.convert(tmp_path / "net", tmp_path / "out", **KEEP_ALL)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["diffusion.safetensors"]


def hugging_face(folder: Path, **config: str) -> Path:
    sharded(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "net", **config}))
    (folder / "sub").mkdir()
    (folder / "sub" / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("hidden")
    return folder


def test_what_lies_beside_the_weights(tmp_path):
    source = hugging_face(tmp_path / "net")
    report = cw.convert(source, tmp_path / "out", dtype="bfloat16", shard_size=300)
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"config.json", os.path.join("sub", "tokenizer.json"), "model.safetensors.index.json"} <= names
    assert not {"pytorch_model.bin", os.path.join(".cache", "x")} & names
    assert "copied beside the weights as they are: config.json, " in str(report)
    assert "left out, weights in other formats or checkpoints: pytorch_model.bin" in str(report)
    # Another checkpoint below, as a training leaves them, is no part of this one: nothing of it is copied.
    (source / "checkpoint-9" / "deep").mkdir(parents=True)
    for name in ("config.json", "trainer_state.json", "optimizer.pt", os.path.join("deep", "notes.txt")):
        (source / "checkpoint-9" / name).write_bytes(b"{}")
    report = cw.convert(source, tmp_path / "again", dtype="bfloat16")
    assert not (tmp_path / "again" / "checkpoint-9").exists()
    assert "left out, weights in other formats or checkpoints: checkpoint-9, pytorch_model.bin" in str(report)


@pytest.mark.parametrize("said", ["float32", "torch.float32", "bfloat16", "auto", ""])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_configuration_that_says_another_dtype(tmp_path, key: str, said: str):
    source = hugging_face(tmp_path / "net", **({key: said} if said else {}))
    note = "config.json still says float32, of which no tensor is: what loads by it converts them again"
    report = cw.convert(source, tmp_path / "out", dtype="bfloat16")
    assert (note in report.notes) == said.endswith("float32")
    assert cw.convert(source, tmp_path / "same").notes[-1].startswith("left out, ")
    assert plan_conversion(source, tmp_path / "again", dtype="bfloat16").notes == report.notes
    cw.convert(source, tmp_path / "bare", copy_files=False)
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["model.safetensors"]


def clean(folder: Path) -> Path:
    """A model's directory with nothing in it that is not converted or copied."""
    hugging_face(folder)
    shutil.rmtree(folder / ".cache")
    (folder / "pytorch_model.bin").unlink()
    return folder


def test_a_directory_onto_itself(tmp_path):
    source = clean(tmp_path / "net")
    with pytest.raises(cw.CheckpointError, match=r"^convert: target must not exist yet"):
        cw.convert(source, source, shard_size=300)
    cw.convert(source, source, shard_size=300, overwrite=True)
    holds(source, network())
    assert (source / "config.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_directories_that_are_refused(tmp_path):
    source = save(tmp_path / "a.safetensors", network())
    (tmp_path / "file").write_text("a file")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    before = snapshot(tmp_path)
    for target, words, more in (
        ("file", "be a directory, got the file .*file; choose", {}),
        ("file", "be a directory, got the file .*file; choose", {"overwrite": True}),
        ("home", "not exist yet", {}),
        (
            "home",
            r"hold nothing that would be lost where it is replaced, got .*home with letter\.txt",
            {"overwrite": True},
        ),
        ("link", "be a directory itself, got the link", {"overwrite": True}),
        ("none/out", "lie in a directory that exists", {}),
        ("x.onnx", "end in .safetensors, .pt, .pth or .dcp, or be a directory without a suffix", {}),
    ):
        with pytest.raises(cw.CheckpointError, match=rf"^convert: target must {words}"):
            cw.convert(source, tmp_path / target, **more)
        assert snapshot(tmp_path) == before
    with pytest.raises(ValueError, match="shard_size must be left out where the target is not a directory"):
        cw.convert(source, tmp_path / "b.safetensors", shard_size="1GB")
    assert snapshot(tmp_path) == before


def test_nothing_is_lost_with_what_is_replaced(tmp_path):
    """A directory goes only where all in it is converted, copied, or a checkpoint that is replaced."""
    net = clean(tmp_path / "net")
    cases = [(net / "model.safetensors.index.json", "config.json")]
    for name in (".git", "optimizer.bin", "sub/more.safetensors"):
        other = clean(tmp_path / f"with {name.replace('/', ' ')}")
        (other / name).write_text("mine")
        cases.append((other, name))
    (tmp_path / "outer").mkdir()
    inner = clean(tmp_path / "outer" / "net")
    save(tmp_path / "outer" / "model.safetensors", network())
    before = snapshot(tmp_path)
    for source, name in cases:
        folder = source if source.is_dir() else source.parent
        with pytest.raises(cw.CheckpointError, match=rf"^convert: target must hold nothing .* with {re.escape(name)}"):
            cw.convert(source, folder, overwrite=True)
    with pytest.raises(cw.CheckpointError, match=r"^convert: target must hold nothing"):
        cw.convert(inner, tmp_path / "outer", overwrite=True)
    assert snapshot(tmp_path) == before


def test_an_interrupt_while_names_change(tmp_path, monkeypatch):
    source = clean(tmp_path / "net")
    before, rename, done = snapshot(tmp_path), os.rename, []

    def interrupted(*names):
        rename(*names)
        done.append(names)
        if len(done) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("convweights.checkpoint.replace.os.rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cw.convert(source, source, overwrite=True)
    assert snapshot(tmp_path) == before


def test_a_target_inside_its_source(tmp_path):
    source = clean(tmp_path / "net")
    for _ in range(2):
        cw.convert(source, source / "out", overwrite=True, fsync=False)
    assert not (source / "out" / "out").exists()
    assert (source / "out" / "config.json").is_file()


def test_a_directory_is_whole_or_not_there(tmp_path, monkeypatch):
    source = clean(tmp_path / "net")
    before = snapshot(tmp_path)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convweights.checkpoint.write.copy_others", fail)
    with pytest.raises(cw.CheckpointError, match=r"target must be writable, got .*No space left"):
        cw.convert(source, tmp_path / "out", shard_size=300)
    with pytest.raises(cw.CheckpointError, match="No space left"):
        cw.convert(source, source, overwrite=True)
    assert snapshot(tmp_path) == before


def test_distributed_checkpoints(tmp_path):
    """There and back: torch's own loader reads what is written."""
    import torch.distributed.checkpoint as dcp

    source = save(tmp_path / "a.safetensors", network())
    rules = [{"match": "conv1", "in_channels": 6}]
    report = cw.convert(source, tmp_path / "out.dcp", rules=rules)
    assert report.target_format == "torch.distributed.checkpoint"
    cw.convert(source, tmp_path / "b.safetensors", rules=rules)
    state = load(tmp_path / "b.safetensors")
    read = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(read, checkpoint_id=tmp_path / "out.dcp", no_dist=True)
    for name, tensor in state.items():
        assert_same_bits(read[name], tensor)
    cw.convert(tmp_path / "out.dcp", tmp_path / "c.safetensors")
    assert without_metadata(tmp_path / "c.safetensors") == without_metadata(tmp_path / "b.safetensors")


def test_archives_are_streamed(tmp_path, monkeypatch):
    """Tensors of a zip archive, whatever their strides, and of numpy's come from the file itself, not from memory."""
    import numpy as np

    from convweights.checkpoint import write
    from convweights.checkpoint.engine import write_files

    base = torch.randn(40, 30)
    state = {"a": base, "b": base.t(), "c": base[3:9, 2:4], "d": base[:1].expand(5, 30), "e": torch.empty(0, 3)}
    save(tmp_path / "a.pt", {"state_dict": {**state, "n": torch.tensor(3)}, "epoch": 3})
    np.savez(tmp_path / "b.npz", x=KERNEL, y=np.asfortranarray(KERNEL), z=KERNEL[..., 0])
    made = []

    def watched(files, planned, source, make, **named):
        return write_files(files, planned, source, lambda tensor: made.append(tensor.name) or make(tensor), **named)

    monkeypatch.setattr(write, "write_files", watched)
    for name, dtype in (("a.pt", None), ("a.pt", "float16"), ("b.npz", None), ("b.npz", "float64")):
        cw.convert(tmp_path / name, tmp_path / "out.safetensors", dtype=dtype, overwrite=True, **KEEP_ALL)
        with open_checkpoint("convert", "source", tmp_path / name) as source:
            whole = {key: source.read(key).contiguous() for key in source.tensors}
        for key, tensor in load(tmp_path / "out.safetensors").items():
            wanted = whole[key].to(getattr(torch, dtype)) if dtype and whole[key].is_floating_point() else whole[key]
            assert_same_bits(tensor, wanted)
    assert made == ([] if cw.native.cpu is not None else made)


def test_provenance(tmp_path):
    source = save(tmp_path / "a.safetensors", {"fc.weight": torch.ones(2, 3)}, author="me")
    rules = [{"match": "fc", "in_channels": 6}]
    cw.convert(source, tmp_path / "b.safetensors", rules=rules, dtype="float16")
    cw.convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["author"] == "me"
    first, second = map(json.loads, metadata["convweights"].splitlines())
    assert (first["version"], first["source"], first["dtype"]) == (cw.__version__, "a.safetensors", "float16")
    assert first["rules"] == [{"match": "fc", "in_channels": {"to": 6}}] or first["rules"][0]["match"] == "fc"
    described = json.dumps([["fc.weight", "float32", [2, 3]]], separators=(",", ":")).encode()
    assert first["tensors_sha256"] == hashlib.sha256(described).hexdigest()
    assert (second["source"], second["rules"]) == ("b.safetensors", [])


def test_workers(tmp_path):
    source = save(tmp_path / "a.safetensors", network())
    for workers in (1, 3):
        cw.convert(source, tmp_path / f"{workers}", workers=workers, shard_size=300, dtype="float16")
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "3")
    for bad, error in ((0, ValueError), (65, ValueError), (True, TypeError), ("2", TypeError)):
        with pytest.raises(error, match=r"^convert: workers must be "):
            cw.convert(source, tmp_path / "out", workers=bad)


def test_progress_is_told(tmp_path):
    """And what it raises ends the conversion, with nothing left."""
    big = {f"layer{k}": torch.zeros(1 << 22) for k in range(8)}
    source = save(tmp_path / "a.safetensors", big)
    told: list[tuple[int, int, str]] = []
    rules = [{"match": "layer7", "new": "zeros"}]
    cw.convert(source, tmp_path / "b.safetensors", rules=rules, progress=lambda *said: told.append(said), fsync=False)
    total = sum(tensor.nbytes for tensor in big.values())
    assert told[-1] == (total, total, "layer7")
    assert all(0 <= a[0] <= b[0] for a, b in itertools.pairwise(told))

    def stop(*said):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cw.convert(source, tmp_path / "c.safetensors", rules=rules, progress=stop)

    def lose(*said):
        raise BrokenPipeError("nobody listens")

    with pytest.raises(BrokenPipeError, match=r"^nobody listens$"):
        cw.convert(source, tmp_path / "c.safetensors", rules=rules, progress=lose)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_the_longest_names(tmp_path):
    """A name may have 255 bytes, which are fewer letters."""
    source = save(tmp_path / "a.safetensors", network())
    for name in ("x" * 243 + ".safetensors", "ü" * 121 + ".safetensors", "ü" * 127):
        cw.convert(source, tmp_path / name, fsync=False)
    assert len(list(tmp_path.iterdir())) == 4


def test_one_file_says_whose_layout_it_has(tmp_path):
    """The transformers library asks for it; what a source says goes first."""
    torch.save(network(), tmp_path / "a.pt")
    save(tmp_path / "b.safetensors", network(), format="tf")
    for source, said in (("a.pt", "pt"), ("b.safetensors", "tf")):
        cw.convert(tmp_path / source, tmp_path / "c.safetensors", overwrite=True)
        with safe_open(tmp_path / "c.safetensors", framework="pt") as file:
            assert file.metadata()["format"] == said


def test_what_is_lost_of_a_distributed_checkpoint_is_said(tmp_path):
    import torch.distributed.checkpoint as dcp

    whole = {"model": {"fc.weight": torch.randn(3, 4)}, "epoch": 7}
    dcp.save(whole, checkpoint_id=tmp_path / "a.dcp", no_dist=True)
    for target, words in (("b.pt", "of this source only tensors are read"), ("c.dcp", "the target holds tensors only")):
        assert cw.convert(tmp_path / "a.dcp", tmp_path / target).notes[1:] == (f"left out, {words}: epoch",)
    assert not any("distcp" in note for note in cw.convert(tmp_path / "a.dcp", tmp_path / "d").notes)
