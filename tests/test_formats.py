"""Checkpoint files are opened by what is in them, and written so that the libraries read them. Family: exact."""

import os
import struct
import zipfile

import pytest
import torch
from bits import assert_same_bits
from checkpoints import DTYPES, KINDS, load, network, random_bits, save, without_metadata
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from convweights.checkpoint import convert
from convweights.checkpoint.contents import TensorInfo
from convweights.checkpoint.formats import open_checkpoint
from convweights.checkpoint.state_dict import USUAL_KEYS

FORMAT = {"safetensors": "safetensors", "zip": "pt (zip)", "legacy": "pt (legacy)"}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_the_content_decides_not_the_name(tmp_path, kind, suffix):
    path, state = tmp_path / f"net{suffix}", network()
    save(path, state, kind)
    with open_checkpoint("convert", "source", path) as found:
        assert found.format == FORMAT[kind]
        assert set(found.tensors) == set(state)
        for name, tensor in state.items():
            assert found.tensors[name] == TensorInfo(name, tuple(tensor.shape), tensor.dtype)
            assert_same_bits(found.read(name), tensor)


def test_a_compressed_archive_is_read_too(tmp_path):
    stored, packed = save(tmp_path / "a.pt", network()), tmp_path / "b.pt"
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with open_checkpoint("convert", "source", packed) as found:
        assert_same_bits(found.read("conv1.weight"), network()["conv1.weight"])


def test_a_zip_archive_is_mapped_not_read(tmp_path):
    path = save(tmp_path / "a.pt", {"big": torch.zeros(16_000_000), "w": torch.ones(2)})
    before = _resident()
    with open_checkpoint("convert", "source", path) as found:
        assert found.read("w").sum() == 2
        assert _resident() - before < 30_000_000


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("key", USUAL_KEYS)
def test_a_state_dict_is_found_one_level_down(tmp_path, key):
    path = save(tmp_path / "a.pt", {key: network(), "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}})
    with open_checkpoint("convert", "source", path) as found:
        assert found.around.nested == key
        assert found.around.entries == ("epoch", "optimizer")
        assert list(found.tensors) == list(network())


def test_a_flat_state_dict_is_not_nested(tmp_path):
    path = save(tmp_path / "a.pt", {**network(), "model": {"depth": 3}, 0: torch.ones(1)})
    with open_checkpoint("convert", "source", path) as found:
        assert found.around.nested is None
        assert found.around.inside == ("model", "0")


# ------------------------------------------------------------------------------------------------------------ writing


def test_every_dtype_and_shape_survives_every_direction(tmp_path):
    shapes = [(), (3,), (2, 4), (0,), (2, 0, 3)]
    state = {f"{str(d)[6:]}.{n}": random_bits(s, d, n) for d in DTYPES for n, s in enumerate(shapes)}
    paths = [save(tmp_path / "s.safetensors", {n: t for n, t in state.items() if not _unwritable(t)}, "safetensors")]
    for suffix in (".pt", ".safetensors", ".pth"):
        paths.append(tmp_path / f"{len(paths)}{suffix}")
        convert(paths[-2], paths[-1], fsync=False)
        back = load(paths[-1])
        assert len(back) == len(load_file(paths[0]))
        for name, tensor in back.items():
            assert_same_bits(tensor, state[name])


def _unwritable(tensor: torch.Tensor) -> bool:
    """Packed numbers without a last dimension to count them in."""
    return tensor.dtype == getattr(torch, "float4_e2m1fn_x2", None) and tensor.ndim == 0


def test_the_other_byte_order(tmp_path):
    """Mapping such a file would end the process; read whole, torch swaps its bytes."""
    state = {"w": torch.arange(6.0)}
    path = save(tmp_path / "a.pt", state)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "b.pt", "w") as other:
        for member in archive.infolist():
            content = archive.read(member)
            if member.filename.endswith("byteorder"):
                content = b"big"
            elif "/data/" in member.filename:
                content = state["w"].numpy().astype(">f4").tobytes()
            other.writestr(member.filename, content)
    convert(tmp_path / "b.pt", tmp_path / "c.safetensors")
    assert_same_bits(load_file(tmp_path / "c.safetensors")["w"], state["w"])


def test_the_bytes_are_the_librarys(tmp_path):
    """Order, alignment, header: a file that nothing changes is the file that save_file writes, but for the order of
    its metadata, which the library leaves to chance."""
    state = {f"tensor é {d} {n}": random_bits((n, 2), d, n) for d in DTYPES for n in (3, 1)}
    expected = tmp_path / "a.safetensors"
    save_file(state, expected)
    for kind in ("zip", "safetensors"):
        source = expected if kind == "safetensors" else save(tmp_path / "b.pt", state)
        target = tmp_path / f"from_{kind}.safetensors"
        convert(source, target, fsync=False)
        with safe_open(target, "pt") as file:
            metadata = file.metadata()
        if kind == "safetensors":
            save_file(state, tmp_path / "same.safetensors", metadata=metadata)
            (ours, values), (theirs, same) = map(without_metadata, (target, tmp_path / "same.safetensors"))
            assert (list(ours.items()), values) == (list(theirs.items()), same)
            assert target.stat().st_size == (tmp_path / "same.safetensors").stat().st_size
        (length,) = struct.unpack("<Q", target.read_bytes()[:8])
        assert length % 8 == 0
        assert set(load_file(target)) == set(state)


def test_an_empty_safetensors_file_stays_one(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert load_file(tmp_path / "b.safetensors") == {}


def test_lazy_conjugation_is_written_out(tmp_path):
    values = torch.randn(3, dtype=torch.complex64)
    convert(save(tmp_path / "a.pt", {"z": values.conj()}), tmp_path / "b.safetensors")
    assert torch.equal(load_file(tmp_path / "b.safetensors")["z"], values.conj().resolve_conj())
