"""Checkpoints in several files, in directories, and of numpy: read whole, refused in one sentence. Family: exact."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bits import assert_same_bits
from checkpoints import load, network, raw_safetensors, save, snapshot, without_metadata

import convweights as cw
from convweights.checkpoint.formats import open_checkpoint


def sharded(folder: Path, shards: int = 3, stem: str = "model", **metadata: str) -> Path:
    """A network in several files, as the transformers library lays them out."""
    folder.mkdir(exist_ok=True)
    state, places = network(), {}
    names = [f"{stem}-{k + 1:05}-of-{shards:05}.safetensors" for k in range(shards)]
    for k, place in enumerate(names):
        part = {name: tensor for i, (name, tensor) in enumerate(state.items()) if i % shards == k}
        save(folder / place, part, **metadata)
        places.update(dict.fromkeys(part, place))
    index = folder / f"{stem}.safetensors.index.json"
    total = sum(tensor.nbytes for tensor in state.values())
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": {n: places[n] for n in state}}))
    return index


@pytest.mark.parametrize("by", ["index", "directory"])
def test_shards_are_one_checkpoint(tmp_path, by: str):
    index = sharded(tmp_path / "net", format="pt", made="here")
    with open_checkpoint("convert", "source", index if by == "index" else index.parent) as found:
        assert found.format == "safetensors (sharded)"
        assert found.path == index
        assert list(found.tensors) == list(network())
        assert found.around.metadata == {"format": "pt", "made": "here"}
        for name, tensor in network().items():
            assert_same_bits(found.read(name), tensor)


def test_shards_are_converted(tmp_path):
    index = sharded(tmp_path / "net")
    report = cw.convert(index, tmp_path / "one.safetensors", rules=[{"match": "conv1", "in_channels": 6}])
    assert report.source_format == "safetensors (sharded)"
    single = save(tmp_path / "single.safetensors", network())
    cw.convert(single, tmp_path / "other.safetensors", rules=[{"match": "conv1", "in_channels": 6}])
    assert without_metadata(tmp_path / "one.safetensors") == without_metadata(tmp_path / "other.safetensors")
    assert [t.how for t in cw.plan(index, like=single).tensors] == [""] * len(network())


def test_what_shards_do_not_share_is_not_metadata(tmp_path):
    index = sharded(tmp_path)
    place = tmp_path / "model-00002-of-00003.safetensors"
    save(place, load(place), part="two")
    with open_checkpoint("convert", "source", index) as found:
        assert found.around.metadata == {}


def test_the_checkpoint_of_a_directory(tmp_path):
    usual = save(tmp_path / "model.safetensors", network())
    save(tmp_path / "other.safetensors", network())
    with open_checkpoint("convert", "source", tmp_path) as found:
        assert found.path == usual
    usual.unlink()
    with open_checkpoint("convert", "source", tmp_path) as found:
        assert found.path == tmp_path / "other.safetensors"


def change(index: Path, edit: Callable[[dict], None]) -> None:
    content = json.loads(index.read_text())
    edit(content)
    index.write_text(json.dumps(content))


def broken_shard(index: Path) -> None:
    raw_safetensors(index.with_name("model-00003-of-00003.safetensors"), {"a": 3})


BROKEN = {
    "a shard missing": (
        lambda index: index.with_name("model-00002-of-00003.safetensors").unlink(),
        r"have all its shards, got .*index\.json without model-00002-of-00003\.safetensors",
    ),
    "a shard broken": (broken_shard, r"be a valid safetensors file, got .*model-00003-of-00003\.safetensors"),
    "a name too many": (
        lambda index: change(index, lambda c: c["weight_map"].update(more="model-00001-of-00003.safetensors")),
        r"have an index that agrees with its shards, got .* with more, which model-00001-of-00003.* does not hold",
    ),
    "a name too few": (
        lambda index: change(index, lambda c: c["weight_map"].pop("bn.weight")),
        r"have an index that agrees with its shards, got .* with bn\.weight in model-00001-of-00003.* that it does not",
    ),
    "another shard": (
        lambda index: change(index, lambda c: c["weight_map"].update(empty="model-00001-of-00003.safetensors")),
        r"have an index that agrees with its shards",
    ),
    "outside": (
        lambda index: change(index, lambda c: c["weight_map"].update(empty="../secret.safetensors")),
        r"be a valid index of .* with empty in '\.\./secret\.safetensors', which is not beside it",
    ),
    "no JSON": (lambda index: index.write_text("{"), r"be a valid index .*, which is not JSON"),
    "no map": (lambda index: index.write_text("{}"), r"be a valid index .* without a weight_map of names and files"),
    "numbers": (lambda index: index.write_text('{"weight_map": {"a": 1}}'), r"without a weight_map of names and files"),
}


def check_refused(tmp_path: Path, source: Path, pattern: str) -> None:
    before = snapshot(tmp_path)
    for call in (lambda: cw.plan(source), lambda: cw.convert(source, tmp_path / "out.safetensors")):
        with pytest.raises(cw.CheckpointError) as caught:
            call()
        message = str(caught.value)
        assert re.search(rf"^(plan|convert): source must {pattern}", message), message
        assert "\n" not in message
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", BROKEN)
def test_broken_shards(tmp_path, name: str):
    break_it, pattern = BROKEN[name]
    index = sharded(tmp_path / "net")
    break_it(index)
    check_refused(tmp_path, index, rf"(.*){pattern}")


def test_directories_that_are_refused(tmp_path):
    (tmp_path / "none").mkdir()
    rule = "be a file, or a directory with one checkpoint, got the directory"
    check_refused(tmp_path, tmp_path / "none", rf"{rule} .* with no safetensors files; pass the file")
    for name in ("a", "b"):
        save(tmp_path / f"{name}.safetensors", network())
    check_refused(tmp_path, tmp_path, rf"{rule} .* with a\.safetensors, b\.safetensors; pass the file")
    check_refused(tmp_path, tmp_path / "absent.safetensors.index.json", "be a valid index of safetensors files")


KERNEL = np.random.default_rng(0).standard_normal((3, 3, 4, 8)).astype(np.float32)


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_numpy(tmp_path, savez):
    """A convolution of TensorFlow in one call: slashes are dots, HWIO becomes OIHW."""
    path = tmp_path / "net.npz"
    arrays = {"block/conv/kernel:0": KERNEL, "block/conv/bias:0": np.arange(8.0), "step": np.array(7)}
    savez(path, **arrays)
    rules = [{"match": "*.kernel", "layout": "HWIO->OIHW", "rename": "re:(.*)\\.kernel -> \\1.weight"}]
    with open_checkpoint("convert", "source", path) as found:
        assert found.format == "npz"
        assert list(found.tensors) == ["block.conv.kernel", "block.conv.bias", "step"]
        assert found.tensors["step"].shape == ()
    report = cw.convert(path, tmp_path / "net.safetensors", rules=rules)
    assert report.source_format == "npz"
    state = load(tmp_path / "net.safetensors")
    assert_same_bits(state["block.conv.weight"], torch.from_numpy(KERNEL).permute(3, 2, 0, 1).contiguous())
    assert_same_bits(state["block.conv.bias"], torch.arange(8, dtype=torch.float64))
    assert int(state["step"]) == 7


def test_numpy_of_any_order(tmp_path):
    path = tmp_path / "net.npz"
    np.savez(path, a=np.asfortranarray(KERNEL), b=KERNEL.astype(">f4"), c=KERNEL[:, ::2], d=np.empty((0, 3)))
    with open_checkpoint("convert", "source", path) as found:
        assert_same_bits(found.read("a").contiguous(), torch.from_numpy(KERNEL))
        assert_same_bits(found.read("b").contiguous(), torch.from_numpy(KERNEL))
        assert_same_bits(found.read("c").contiguous(), torch.from_numpy(KERNEL[:, ::2].copy()))
        assert found.read("d").shape == (0, 3)


def test_numpy_that_is_refused(tmp_path):
    path = tmp_path / "net.npz"
    np.savez(path, a=np.array(["text"]))
    check_refused(tmp_path, path, r"hold arrays of numbers that torch has, got <U4 for 'a' in .*net\.npz")
    np.savez(path, a=np.array([object()]))
    check_refused(tmp_path, path, r"hold arrays of numbers that torch has, got object for 'a'")
    np.savez(path, **{"a/b": KERNEL, "a.b": KERNEL})
    check_refused(tmp_path, path, r"name each tensor once, got 'a/b\.npy' and 'a\.b\.npy' for 'a\.b'")
    held = io.BytesIO()
    np.save(held, KERNEL)
    for shape in (b"(3, 3, 4, 9)", b"(3, -3, 4,8)"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", held.getvalue().replace(b"(3, 3, 4, 8)", shape))
        check_refused(tmp_path, path, r"be a whole npz file, got .*net\.npz \(a\.npy with ")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"no array")
    check_refused(tmp_path, path, r"be a whole npz file, got .*net\.npz \(")
