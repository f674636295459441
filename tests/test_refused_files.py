"""Files that are no checkpoint, or a hostile one: one sentence, and nothing has changed."""

import os
import pickle
import re
import resource
import struct
import warnings
import zipfile

import pytest
import torch
from checkpoints import KINDS, SUFFIX, load, network, raw_safetensors, save, snapshot

from convweights.checkpoint import CheckpointError, convert
from convweights.checkpoint.formats import open_checkpoint

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HOSTILE_SAFETENSORS = {
    "empty header": (b"", b""),
    "not an object": (b"[]", b""),
    "broken JSON": (b'{"a":', b""),
    "short data": ({"a": ONE}, b"12"),
    "trailing data": ({"a": ONE}, b"12345"),
    "hole": ({"a": ONE, "b": {**ONE, "data_offsets": [8, 12]}}, b"0" * 12),
    "overlap": ({"a": ONE, "b": {**ONE, "data_offsets": [2, 6]}}, b"0" * 6),
    "size against shape": ({"a": {**ONE, "shape": [2]}}, b"1234"),
    "overflow": ({"a": {**ONE, "shape": [2**62, 2**62]}}, b"1234"),
    "negative": ({"a": {**ONE, "shape": [-1]}}, b"1234"),
    "unknown dtype": ({"a": {**ONE, "dtype": "F31"}}, b"1234"),
    "metadata of numbers": ({"__metadata__": {"a": 3}, "a": ONE}, b"1234"),
}


def check_refused(tmp_path, path, pattern, tensor=None):
    """One sentence that names the file, from convert as from plan; nothing in the directory has changed."""
    before = snapshot(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError) as caught_error:
            convert(path, tmp_path / "out.safetensors")
    message = str(caught_error.value)
    assert re.search(pattern, message), message
    assert message.startswith("convert: source must ")
    assert str(path) in message
    assert "\n" not in message
    assert "weights_only" not in message
    assert caught_error.value.path == path
    assert caught_error.value.tensor == tensor
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("case", HOSTILE_SAFETENSORS)
def test_hostile_safetensors(tmp_path, case):
    path = raw_safetensors(tmp_path / "a.safetensors", *HOSTILE_SAFETENSORS[case])
    check_refused(tmp_path, path, r"be a valid safetensors file, got .*a\.safetensors \(\w")


@pytest.mark.parametrize("content", [b"a", b"abcdefg", b"\xff" * 9, struct.pack("<Q", 2**40) + b"{}"])
def test_no_safetensors_at_all(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    check_refused(tmp_path, path, "be a valid safetensors file")


@pytest.mark.parametrize("key", ["a", "__metadata__"])
def test_a_key_twice(tmp_path, key):
    entry = {"a": '{"dtype":"U8","shape":[4],"data_offsets":[0,4]}', "__metadata__": "{}"}[key]
    header = f'{{"{key}":{entry},"{key}":{entry}}}'.encode()
    path = raw_safetensors(tmp_path / "a.safetensors", header, b"1234" if key == "a" else b"")
    with pytest.raises(CheckpointError):
        open_checkpoint("inspect", "file", path)
    if key == "a":
        check_refused(tmp_path, path, "name each tensor once, got 'a' twice", tensor="a")


class RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ["zip", "legacy", 0, 2, 4, 5])
def test_a_pickle_that_would_run_code_does_not(tmp_path, kind, suffix):
    (tmp_path / "work").mkdir()
    marker, path = tmp_path / "marker", tmp_path / "work" / f"a{suffix}"
    content = {"weight": torch.ones(2), "x": RunsCode(marker)}
    if isinstance(kind, str):
        save(path, content, kind)
    else:
        path.write_bytes(pickle.dumps(content, protocol=kind))
    pattern = "hold only tensors and plain containers, got .*, whose loading would run posix.mkdir; save only"
    check_refused(tmp_path / "work", path, pattern if isinstance(kind, str) else "must be a |would run")
    assert not marker.exists()


def test_a_whole_module_is_not_unpickled(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    check_refused(tmp_path, path, r"whose loading would run torch\.nn\.modules\.linear\.Linear; save only module")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9])
def test_truncated_files(tmp_path, kind, kept):
    path = save(tmp_path / f"a{SUFFIX[kind]}", network())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    check_refused(tmp_path, path, "be a whole file|be a valid safetensors file|be a checkpoint")


OBJECTS = {
    "a number": (3, "hold a state dict .* holds a int"),
    "a list": ([torch.ones(2)], "hold a state dict .* holds a list"),
    "a tensor": (torch.ones(2), "hold a state dict .* holds a Tensor"),
    "no tensors": ({"epoch": 3}, "hold tensors at the top or one level down .*, which holds epoch$"),
    "empty": ({}, "which holds nothing"),
    "an unusual key": ({"my_net": {"w": torch.ones(2)}}, "which holds my_net"),
    "several": ({"params": network(), "params_ema": network(), "ema": 0.9}, "one state dict, .*: params, params_ema; "),
}


@pytest.mark.parametrize("case", OBJECTS)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_no_state_dict(tmp_path, kind, case):
    content, pattern = OBJECTS[case]
    check_refused(tmp_path, save(tmp_path / "a.pt", content, kind), pattern)


def test_other_files(tmp_path):
    path = tmp_path / "a.pt"
    check_refused(tmp_path, path, "be a checkpoint file, got .*, which does not exist")
    path.touch()
    check_refused(tmp_path, path, "be a checkpoint file, got .*, which is empty")
    path.write_bytes(b"just some text, long enough")
    check_refused(tmp_path, path, "be a checkpoint .*, which is none of these inside")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "text")
    check_refused(tmp_path, path, "be a checkpoint of torch.save, got .*, a zip archive of other things")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    check_refused(tmp_path, path, "hold a state dict, got .*, a TorchScript archive; save module")
    path.unlink()
    path.mkdir()
    check_refused(tmp_path, path, "be a file, or a directory with one checkpoint, got the directory ")
    os.mkfifo(tmp_path / "pipe")
    check_refused(tmp_path, tmp_path / "pipe", "be a regular file")


def test_a_path_of_another_type(tmp_path):
    with pytest.raises(TypeError, match=r"^convert: source must be a path, got 3$"):
        convert(3, tmp_path / "a.pt")
    with pytest.raises(TypeError, match=r"^convert: target must be a path, got b'a.pt'$"):
        convert(tmp_path / "a.pt", b"a.pt")
    # Not all of its values.
    with pytest.raises(TypeError, match=r"^convert: source must be a path, got OrderedDict$"):
        convert(network(), tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("tensor", "pattern"),
    [
        (torch.eye(2).to_sparse(), "'t' of the source must be a dense tensor that holds data"),
        (torch.empty(2, device="meta"), "'t' of the source must be a dense tensor that holds data"),
        (
            torch.ones(2, dtype=torch.complex128),
            "'t' of the source must have a dtype that safetensors has, got complex128",
        ),
    ],
)
def test_what_only_pt_can_hold(tmp_path, tensor, pattern):
    source = save(tmp_path / "a.pt", {"w": torch.ones(2), "t": tensor})
    with pytest.raises(CheckpointError, match=f"^convert: {pattern}.*; write a .pt file instead$") as caught:
        convert(source, tmp_path / "b.safetensors")
    assert caught.value.tensor == "t"
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    convert(source, tmp_path / "b.pt")
    kept = load(tmp_path / "b.pt")["t"]
    assert (kept.layout, kept.dtype, kept.device) == (tensor.layout, tensor.dtype, tensor.device)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_full_disk_leaves_nothing(tmp_path, suffix):
    source = save(tmp_path / "a.pt", {"w": torch.ones(1_000_000)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"^convert: target must be writable, got .*b\.\w+ \(File too large\)$"
        ):
            convert(source, tmp_path / f"b{suffix}", fsync=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
