"""Files of torch.save, filled without being held: what torch.load and zip readers find in them. Family: exact."""

from __future__ import annotations

import collections
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from bits import assert_same_bits
from safetensors.torch import save_file

import convweights as cw
from convweights import native
from convweights.checkpoint import engine
from convweights.checkpoint.contents import TensorInfo
from convweights.checkpoint.torch_target import _Blanks

RULES = [{"match": "conv.weight", "in_channels": 6}, {"match": "re:cast.*", "dtype": "float16"}]


@pytest.fixture(params=["stream", "reference"] if native.cpu is not None else ["reference"], autouse=True)
def road(monkeypatch, request):
    if request.param == "reference":
        monkeypatch.setattr(native, "cpu", None)


def checkpoint() -> dict[str, Any]:
    """Everything that a training script might keep."""
    torch.manual_seed(0)
    base = torch.randn(40)
    tied = torch.randn(5, 7)
    state = collections.OrderedDict(
        {
            "conv.weight": torch.nn.Parameter(torch.randn(4, 3, 2, 2)),
            "cast": torch.randn(3, 5),
            "same": torch.randn(300, 20).to(torch.bfloat16),
            "tied.a": tied,
            "tied.b": tied,
            "view": base[3:11],
            "turned": base[12:36].view(4, 6).t(),
            "frozen": torch.nn.Parameter(torch.randn(3), requires_grad=False),
            "empty": torch.empty(0, 4),
            "one": torch.tensor(3),
            "plain": torch.randn(2, 2, requires_grad=True),
            "cast.plain": torch.randn(2, 2, requires_grad=True),
            "flags": torch.tensor([True, False]),
            "complex": torch.randn(3, dtype=torch.complex64),
            "sparse": torch.eye(4).to_sparse(),
            "quantized": torch.quantize_per_tensor(torch.randn(6), 0.1, 3, torch.qint8),
        }
    )
    state._metadata = collections.OrderedDict({"": {"version": 2}})
    momentum = {"step": torch.tensor(9.0), "exp_avg": torch.randn(4, 3, 2, 2), "again": state["same"]}
    return {"epoch": 3, "state_dict": state, "optimizer": {"state": {0: momentum}, "param_groups": [{"lr": 0.1}]}}


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def assert_whole(path: Path) -> None:
    """To readers of zip archives too, who look at the checksums."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        filled = [member.CRC for member in archive.infolist() if "/data/" in member.filename and member.file_size]
        assert len(filled) >= 2
        assert all(filled)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_what_does_not_change_is_as_it_was(tmp_path, legacy: bool, quantized: bool):
    """Quantized tensors are of those that torch only saves whole, with all that is beside them."""
    whole = checkpoint()
    if not quantized:
        del whole["state_dict"]["quantized"]
    torch.save(whole, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    before = load(tmp_path / "a.pt")
    cw.convert(tmp_path / "a.pt", tmp_path / "b.pt", rules=RULES)
    assert_whole(tmp_path / "b.pt")
    after = load(tmp_path / "b.pt")
    old, new = before["state_dict"], after["state_dict"]
    assert list(after) == list(before)
    assert list(new) == list(old)
    assert new._metadata == old._metadata
    assert after["optimizer"]["param_groups"] == before["optimizer"]["param_groups"]
    assert_same_bits(new["conv.weight"], old["conv.weight"][:, [0, 1, 2, 0, 1, 2]] / 2)
    assert_same_bits(new["cast"], old["cast"].half())
    assert_same_bits(new["cast.plain"], old["cast.plain"].half())
    assert new["cast.plain"].requires_grad == old["cast.plain"].requires_grad
    assert isinstance(new["conv.weight"], torch.nn.Parameter)
    for name in old.keys() - {"conv.weight", "cast", "cast.plain", "sparse", "quantized"}:
        assert type(new[name]) is type(old[name])
        assert (new[name].requires_grad, new[name].stride()) == (old[name].requires_grad, old[name].stride())
        assert_same_bits(new[name], old[name])
    assert torch.equal(new["sparse"].to_dense(), old["sparse"].to_dense())
    if quantized:
        assert torch.equal(new["quantized"].int_repr(), old["quantized"].int_repr())
    for name, value in before["optimizer"]["state"][0].items():
        assert_same_bits(after["optimizer"]["state"][0][name], value)
    # What shared memory still does.
    places = {name: new[name].untyped_storage().data_ptr() for name in ("tied.a", "tied.b", "view", "turned", "same")}
    assert places["tied.a"] == places["tied.b"] != places["view"] == places["turned"]
    assert places["same"] == after["optimizer"]["state"][0]["again"].untyped_storage().data_ptr()


def test_it_is_the_file_of_torch_save(tmp_path):
    """Byte for byte, but for the id that is drawn for each file."""
    # In the order of safetensors.
    state = {"c": torch.arange(5), "a": torch.randn(30, 20), "d": torch.empty(0), "b": torch.randn(7).half()}
    torch.save(state, tmp_path / "a.pt")
    cw.convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    saved = io.BytesIO()
    torch.save(state, saved)
    with zipfile.ZipFile(saved) as archive:
        wanted = {member.filename: (member.header_offset, archive.read(member)) for member in archive.infolist()}
    for source in ("a.pt", "b.safetensors"):
        cw.convert(tmp_path / source, tmp_path / "c.pt", overwrite=True)
        assert_whole(tmp_path / "c.pt")
        with zipfile.ZipFile(tmp_path / "c.pt") as archive:
            found = {member.filename: (member.header_offset, archive.read(member)) for member in archive.infolist()}
        drawn = "archive/.data/serialization_id"
        assert found.pop(drawn)[0] == wanted[drawn][0]
        assert found == {name: kept for name, kept in wanted.items() if name != drawn}


def test_drawn_kept_and_overflown(tmp_path):
    weight = torch.full((4, 3), 1e38)
    torch.save({"a": weight, "b": weight.clone()}, tmp_path / "a.pt")
    torch.save({"a": torch.ones(6, 3).half(), "b": torch.ones(4, 3).half()}, tmp_path / "like.pt")
    report = cw.convert(tmp_path / "a.pt", tmp_path / "b.pt", like=tmp_path / "like.pt")
    assert "finite values became infinite in the cast of a, b" in report.notes
    assert load(tmp_path / "b.pt")["a"].tolist() == [[float("inf")] * 3] * 4 + [[1.0] * 3] * 2
    assert_whole(tmp_path / "b.pt")


def test_a_full_disk(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(100)}, tmp_path / "a.pt")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convweights.checkpoint.torch_target.sum_up", full)
    with pytest.raises(cw.CheckpointError, match=r"^convert: target must be writable, got .*No space left"):
        cw.convert(tmp_path / "a.pt", tmp_path / "b.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


class Twice:
    """Pickled as a dict in which a key is set twice: the file has a storage that nobody refers to."""

    def __reduce__(self):
        first, second, third = (torch.full((8,), value) for value in (1.0, 2.0, 3.0))
        return collections.OrderedDict, (), None, None, iter([("x", first), ("x", second), ("y", third)])


@pytest.mark.parametrize("target", ["b.pt", "b.safetensors"])
def test_a_storage_that_is_not_used(tmp_path, target: str):
    torch.save(Twice(), tmp_path / "a.pt")
    cw.convert(tmp_path / "a.pt", tmp_path / target, rules=[{"match": "y", "dtype": "float16"}])
    cw.convert(tmp_path / target, tmp_path / "c.pt")
    found = load(tmp_path / "c.pt")
    assert (found["x"].unique().tolist(), found["y"].unique().tolist()) == ([2.0], [3.0])


def test_progress_ends_with_all_bytes(tmp_path):
    """Also where tensors share memory, and others than those of the state dict are written."""
    torch.save(checkpoint(), tmp_path / "a.pt")
    told: list[tuple[int, int, str]] = []
    cw.convert(tmp_path / "a.pt", tmp_path / "b.pt", rules=RULES, progress=lambda *said: told.append(said))
    assert told[-1][0] == told[-1][1] > 0
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_a_tensor_that_is_too_large(tmp_path):
    torch.save({"conv.weight": torch.ones(4, 3, 2, 2)}, tmp_path / "a.pt")
    for channels in (2**40, 2**58):
        with pytest.raises(cw.CheckpointError, match=r"^convert: target must lie where there is space for it, got "):
            cw.convert(tmp_path / "a.pt", tmp_path / "b.pt", rules=[{"match": "conv.weight", "in_channels": channels}])
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.skipif(sys.platform != "linux", reason="promised memory without any behind it is Linux's")
def test_what_is_only_promised(tmp_path):
    """More than any machine has."""
    large = _Blanks().tensor(TensorInfo("large", (1 << 38,), torch.uint8))
    assert large.nbytes == 1 << 38


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_what_changes_alike_stays_tied(tmp_path, legacy: bool, quantized: bool):
    tied, whole = torch.nn.Parameter(torch.randn(30, 20)), torch.randn(2, 30)
    state = {"embed": tied, "head": tied, "other": tied, "row": whole[0], "rows": whole, "alone": torch.randn(30, 20)}
    if quantized:
        state["quantized"] = torch.quantize_per_tensor(torch.randn(6), 0.1, 3, torch.qint8)
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    rules = [{"match": "other", "out_channels": 20}]
    report = cw.convert(tmp_path / "a.pt", tmp_path / "b.pt", rules=rules, dtype="float16")
    assert report.notes == (
        "embed no longer shares memory with other",
        "head no longer shares memory with other",
        "row no longer shares memory with rows",
    )
    assert_whole(tmp_path / "b.pt")
    found = load(tmp_path / "b.pt")
    storages = {name: found[name].untyped_storage().data_ptr() for name in found if name != "quantized"}
    assert storages["embed"] == storages["head"]
    assert len(set(storages.values())) == len(storages) - 1
    for name in storages.keys() - {"other"}:
        assert_same_bits(found[name], state[name].detach().half())
        assert type(found[name]) is type(state[name])
    assert_same_bits(found["other"], state["other"].detach()[:20].half())


def test_what_is_one_of_a_template_and_what_is_not(tmp_path):
    """Rows that are kept are each name's own, unless the template has them once."""
    tied, apart = torch.full((6, 5), 7.0), {"a": torch.zeros(6, 5), "b": torch.ones(6, 5)}
    torch.save({"embed": tied, "head": tied, **apart}, tmp_path / "like.pt")
    source = torch.randn(4, 5)
    torch.save({"embed": source, "a": source, "b": source}, tmp_path / "a.pt")
    cw.convert(tmp_path / "a.pt", tmp_path / "b.pt", like=tmp_path / "like.pt")
    found = load(tmp_path / "b.pt")
    assert found["embed"].data_ptr() == found["head"].data_ptr()
    assert len({tensor.data_ptr() for tensor in found.values()}) == 3
    for name, rows in {"embed": tied, "head": tied, **apart}.items():
        assert_same_bits(found[name], torch.cat([source, rows[4:]]))


def test_a_template_ties_what_comes_from_another_format(tmp_path):
    tied = torch.zeros(4, 5, dtype=torch.float16)
    torch.save({"embed": tied, "head": tied, "other": tied.clone()}, tmp_path / "like.pt")
    state = {"embed": torch.full((4, 5), 1e9), "other": torch.randn(4, 5)}
    save_file(state, tmp_path / "a.safetensors")
    report = cw.convert(tmp_path / "a.safetensors", tmp_path / "b.pt", like=tmp_path / "like.pt")
    assert report.notes == ("finite values became infinite in the cast of embed, head",)
    found = load(tmp_path / "b.pt")
    assert found["embed"].data_ptr() == found["head"].data_ptr() != found["other"].data_ptr()
    assert_same_bits(found["other"], state["other"].half())


def test_views_of_one_memory_that_differ(tmp_path):
    x, y = torch.randn(8, 6, dtype=torch.complex64), torch.randn(8)
    state = {"x": x, "conj": x.conj(), "y": y, "neg": torch._neg_view(y), "reversed": y.as_strided((8,), (1,))[:4]}
    torch.save(state, tmp_path / "a.pt")
    state = load(tmp_path / "a.pt")
    cw.convert(tmp_path / "a.pt", tmp_path / "b.pt", rules=[{"match": "*", "out_channels": 3}], dtype="float16")
    for name, tensor in load(tmp_path / "b.pt").items():
        wanted = state[name][:3].resolve_conj().resolve_neg()
        assert torch.equal(tensor, wanted if wanted.is_complex() else wanted.half()), name


def test_parameters_that_are_one_object(tmp_path):
    one = torch.nn.Parameter(torch.randn(3, 2))
    frozen = torch.nn.Parameter(one.data, requires_grad=False)
    state = {"a": one, "b": one, "plain": one.data.requires_grad_(), "data": one.data, "frozen": frozen}
    torch.save(state, tmp_path / "a.pt")
    cw.convert(tmp_path / "a.pt", tmp_path / "b.pt", dtype="float16")
    before, after = load(tmp_path / "a.pt"), load(tmp_path / "b.pt")
    assert after["a"] is after["b"]
    assert len({tensor.data_ptr() for tensor in after.values()}) == 1
    for name in state:
        assert (type(after[name]), after[name].requires_grad) == (type(before[name]), before[name].requires_grad)


def test_space_for_what_is_written_once(tmp_path, monkeypatch):
    tied = torch.randn(300, 300)
    torch.save({"a": tied, "b": tied, "c": tied}, tmp_path / "a.pt")
    room = type("Found", (), {"f_bavail": 400, "f_frsize": 1000, "f_blocks": 1000})
    monkeypatch.setattr(engine.os, "fstatvfs", lambda _: room)
    cw.convert(tmp_path / "a.pt", tmp_path / "b.pt", dtype="float16")
    assert (tmp_path / "b.pt").stat().st_size < 200_000


def test_other_formats_say_what_they_write_twice(tmp_path):
    tied, copied = torch.randn(30, 20), torch.arange(4)
    torch.save({"embed": tied, "head": tied, "a": copied, "b": copied}, tmp_path / "a.pt")
    for target in ("b.safetensors", "c.dcp"):
        assert cw.convert(tmp_path / "a.pt", tmp_path / target, dtype="float16").notes == (
            "these share memory in the source and are written separately: a, b",
            "these share memory in the source and are written separately: embed, head",
        )


def test_states_of_other_shapes_are_said(tmp_path):
    weight = torch.randn(4, 3)
    beside = {"optimizer": {"state": {0: {"step": torch.tensor(1.0), "exp_avg": weight.clone()}}}, "rng": torch.ones(4)}
    torch.save({"model": {"fc.weight": weight, "fc.bias": torch.ones(9)}, **beside}, tmp_path / "a.pt")
    cut = cw.convert(tmp_path / "a.pt", tmp_path / "b.pt", rules=[{"match": "fc.weight", "in_channels": 2}])
    words = "kept as they are, with tensors whose shapes have changed in the state dict: optimizer"
    assert cut.notes == ("the state dict was found under 'model'", words)
    assert cw.convert(tmp_path / "a.pt", tmp_path / "c.pt", dtype="float16").notes == cut.notes[:1]


def test_what_is_drawn_stays_tied(tmp_path):
    """By the first name, as what is drawn for a module's tied parameters."""
    tied, other = torch.randn(4, 3), torch.randn(4, 3)
    torch.save({"embed": tied, "other": other, "head": tied}, tmp_path / "a.pt")
    rules = [{"match": "*", "out_channels": {"to": 9, "how": "normal"}}, {"match": "embed", "rename": "tokens"}]
    cw.convert(tmp_path / "a.pt", tmp_path / "b.pt", rules=rules)
    found = load(tmp_path / "b.pt")
    assert found["tokens"].data_ptr() == found["head"].data_ptr() != found["other"].data_ptr()
    torch.save({"tokens": tied}, tmp_path / "alone.pt")
    cw.convert(tmp_path / "alone.pt", tmp_path / "c.pt", rules=rules[:1])
    assert_same_bits(found["head"], load(tmp_path / "c.pt")["tokens"])
    assert not torch.equal(found["head"][4:], found["other"][4:])
