"""A target comes into being whole or not at all, or is refused before anything is done."""

import os
import pickle
import stat
import sys

import pytest
import torch
from bits import assert_same_bits
from checkpoints import KINDS, SUFFIX, load, network, save, snapshot, umask

from convweights.checkpoint import CheckpointError, convert
from convweights.checkpoint.replace import replacing


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, CheckpointError])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, error, suffix):
    source, target = save(tmp_path / "a.pt", network()), tmp_path / f"b{suffix}"
    save(target, {"old": torch.ones(1)})
    before = snapshot(tmp_path)
    seen = []

    def interrupted(weight, *rest, **more):
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        raise error("stop")

    monkeypatch.setattr(sys.modules["convweights.checkpoint.convert"], "carry_out", interrupted)
    with pytest.raises(error):
        convert(source, target, dtype="float16", overwrite=True)
    assert any(name.startswith(f".{target.name}.") for name in seen[0]), "the temporary lies beside the target"
    assert snapshot(tmp_path) == before


def test_a_rename_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*names):
        raise PermissionError(13, "Permission denied")

    source = save(tmp_path / "a.pt", network())
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(CheckpointError, match=r"^convert: target must be writable, got .*b.pt \(Permission denied\)$"):
        convert(source, tmp_path / "b.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_the_mode(tmp_path, mask, suffix):
    source, target, before = save(tmp_path / "a.pt", network()), tmp_path / f"b{suffix}", umask()
    os.umask(mask)
    try:
        convert(source, target)
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_may_be_the_source(tmp_path, kind):
    path = tmp_path / f"a{SUFFIX[kind]}"
    save(path, network())
    with pytest.raises(CheckpointError, match=r"^convert: target must not exist yet, got "):
        convert(path, path, dtype="float16")
    assert_same_bits(load(path)["fc.weight"], network()["fc.weight"])
    convert(path, path, dtype="float16", overwrite=True)
    assert_same_bits(load(path)["fc.weight"], network()["fc.weight"].half())
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_link_is_replaced_not_followed(tmp_path):
    source, other = save(tmp_path / "a.pt", network()), save(tmp_path / "other.pt", {"w": torch.ones(1)})
    link, content = tmp_path / "link.pt", other.read_bytes()
    link.symlink_to(other)
    convert(source, link, overwrite=True)
    assert other.read_bytes() == content
    assert not link.is_symlink()


@pytest.mark.parametrize("fsync", [True, False])
def test_fsync_is_a_choice(tmp_path, monkeypatch, fsync):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    convert(save(tmp_path / "a.pt", network()), tmp_path / "b.safetensors", fsync=fsync)
    assert len(synced) == (2 if fsync else 0), "the file, then its directory"


def test_targets_that_cannot_be(tmp_path, monkeypatch):
    source = save(tmp_path / "a.pt", network())
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "dangling.pt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.pt")
    before = snapshot(tmp_path)
    cases = {
        "b.bin": "end in .safetensors, .pt or .pth, got ",
        "b": "end in .safetensors, .pt or .pth, got ",
        "folder.pt": "be a file, got the directory ",
        "a.pt": "not exist yet, got .*; choose another name or allow it to be replaced with overwrite",
        "dangling.pt": "not exist yet, got ",
        "pipe.pt": "be a regular file, got ",
        "none/b.pt": "lie in a directory that exists, got ",
        "a.pt/b.pt": "lie in a directory that exists, got ",
    }
    for name, pattern in cases.items():
        with pytest.raises(CheckpointError, match=f"^convert: target must {pattern}") as caught:
            convert(source, tmp_path / name)
        assert caught.value.path == tmp_path / name
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    with pytest.raises(CheckpointError, match=r"^convert: target must lie in a directory that can be written to, got "):
        convert(source, tmp_path / "b.pt")
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission(tmp_path):
    source, folder = save(tmp_path / "a.pt", network()), tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match=r"^convert: target must lie in a directory that can be written to"):
        convert(source, folder / "b.pt")


@pytest.mark.parametrize(
    ("suffix", "refusal"),
    [
        (".pt", r"rules must fit into memory as fc\.weight, got shape \(5764607"),
        (".safetensors", r"target must lie where there is space for it, got .* TB for .* that are free"),
    ],
)
def test_a_size_that_nothing_holds(tmp_path, suffix, refusal):
    source, rules = save(tmp_path / "a.pt", network()), [{"match": "fc", "out_channels": {"to": 2**59, "how": "zeros"}}]
    with pytest.raises(CheckpointError, match=rf"^convert: {refusal}"):
        convert(source, tmp_path / f"b{suffix}", rules=rules)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_long_name_still_gets_a_temporary(tmp_path):
    target = tmp_path / ("n" * 240 + ".safetensors")
    with replacing("convert", target, fsync=False) as file:
        file.write(b"x")
    assert target.read_bytes() == b"x"


def test_an_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(CheckpointError("words", None, "conv1")))
    assert (str(error), error.path, error.tensor) == ("words", None, "conv1")
