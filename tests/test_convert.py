"""What is written: its values against plain torch, its bits where nothing changes, and what stands beside it."""

import itertools
from collections import OrderedDict

import pytest
import torch
from bits import assert_same_bits
from checkpoints import KINDS, SUFFIX, load, network, random_bits, save
from safetensors import safe_open

from convweights.checkpoint import convert


def mean_of(groups, weight, dim):
    return torch.stack([weight.index_select(dim, torch.tensor(group)).mean(dim) for group in groups], dim)


def expected_channels(weight, dim, m, how):
    """The definitions of DESIGN's "Meaning", in eager torch, before any rescaling."""
    n = weight.shape[dim]
    j = torch.arange(m)
    if how == "tile":
        return weight.index_select(dim, j % n)
    if how == "interleave":
        return weight.index_select(dim, j * n // m)
    if how == "blocks":
        edges = [-(-k * n // m) for k in range(m + 1)]
        return mean_of([list(range(a, b)) for a, b in itertools.pairwise(edges)], weight, dim)
    if how == "strided":
        return mean_of([list(range(k, n, m)) for k in range(m)], weight, dim)
    if how == "truncate":
        return weight.narrow(dim, 0, m)
    shape = list(weight.shape)
    shape[dim] = m - n
    return torch.cat([weight, torch.zeros(shape)], dim)


CASES = [
    *(("in_channels", m, how) for m in (4, 6, 7) for how in ("tile", "interleave", "zeros")),
    *(("in_channels", m, how) for m in (1, 2) for how in ("tile", "interleave", "blocks", "strided", "truncate")),
    *(("out_channels", m, how) for m in (12, 16) for how in ("tile", "interleave", "zeros")),
    *(("out_channels", m, how) for m in (3, 4) for how in ("tile", "interleave", "blocks", "strided", "truncate")),
]


@pytest.mark.parametrize("rescale", ["none", "uniform", None])
@pytest.mark.parametrize(("role", "m", "how"), CASES)
def test_channels(tmp_path, role, m, how, rescale):
    state, dim = network(), 1 if role == "in_channels" else 0
    rule = {"match": "conv1", role: {"to": m, "how": how, **({"rescale": rescale} if rescale else {})}}
    convert(save(tmp_path / "a.pt", state), tmp_path / "b.safetensors", rules=[rule], fsync=False)
    found = load(tmp_path / "b.safetensors")
    if rescale is None:
        rescale = "uniform" if role == "in_channels" and how not in ("truncate", "zeros") else "none"
    for name in ("conv1.weight", "conv1.bias") if dim == 0 else ("conv1.weight",):
        weight = state[name]
        expected = expected_channels(weight, dim, m, how)
        if rescale == "uniform":
            expected = expected * torch.tensor(weight.shape[dim] / m, dtype=torch.float64).float()
        if how in ("blocks", "strided"):
            torch.testing.assert_close(found[name], expected, rtol=4e-7, atol=1e-7)
        else:
            assert_same_bits(found[name], expected)
    for name in set(state) - {"conv1.weight", "conv1.bias"}:
        assert_same_bits(found[name], state[name])


@pytest.mark.parametrize("m", [4, 5, 7])
def test_exact_keeps_the_output(tmp_path, m):
    """A replicated input gives what the original gave. Family: rounded."""
    state = network()
    rule = {"match": "conv1", "in_channels": {"to": m, "how": "tile", "rescale": "exact"}}
    convert(save(tmp_path / "a.pt", state), tmp_path / "b.pt", rules=[rule])
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    conv = torch.nn.functional.conv2d
    torch.testing.assert_close(
        conv(x[:, torch.arange(m) % 3], load(tmp_path / "b.pt")["conv1.weight"]), conv(x, state["conv1.weight"])
    )


@pytest.mark.parametrize("layout", ["OIHW->HWIO", "HWIO->OIHW", "OIHW->IOHW"])
def test_layout_alone(tmp_path, layout):
    state, (before, after) = network(), layout.split("->")
    report = convert(save(tmp_path / "a.pt", state), tmp_path / "b.pt", rules=[{"match": "conv2", "layout": layout}])
    found = load(tmp_path / "b.pt")["conv2.weight"]
    assert_same_bits(found, state["conv2.weight"].permute([before.index(letter) for letter in after]))
    assert found.is_contiguous()
    assert [(tensor.how, tensor.new) for tensor in report.changed] == [(f"layout {layout}", 0.0)]


def test_layout_then_channels_then_dtype(tmp_path):
    state = network()
    rule = {"match": "conv2.weight", "layout": "OIHW->HWIO", "out_channels": 3, "dtype": "bfloat16"}
    convert(save(tmp_path / "a.pt", state), tmp_path / "b.pt", rules=[rule])
    expected = state["conv2.weight"].permute(2, 3, 1, 0)[..., :3].contiguous().bfloat16()
    assert_same_bits(load(tmp_path / "b.pt")["conv2.weight"], expected)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_dtype(tmp_path, dtype):
    state = {name: tensor.float() if name != "bn.num_batches_tracked" else tensor for name, tensor in network().items()}
    state["scalar"] = torch.tensor(1.1)
    convert(save(tmp_path / "a.pt", state), tmp_path / "b.safetensors", dtype=dtype)
    found = load(tmp_path / "b.safetensors")
    for name, tensor in state.items():
        assert_same_bits(found[name], tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor)


@pytest.mark.parametrize("how", [{}, {"how": "keep"}])
def test_a_template_decides_names_shapes_and_dtypes(tmp_path, how):
    """New output channels are its own, in its own dtype; nothing has to be said but its name."""
    state = network()
    like = {name: tensor.clone() for name, tensor in reversed(state.items())}
    like["conv1.weight"], like["conv1.bias"] = torch.randn(10, 4, 3, 3).half(), torch.randn(10).double()
    rules = [{"match": "conv1", "out_channels": how}] if how else []
    target = tmp_path / "b.pt"
    convert(save(tmp_path / "a.pt", state), target, rules=rules, like=save(tmp_path / "like.pt", like))
    found = load(target)
    assert list(found) == list(like)
    four = expected_channels(state["conv1.weight"], 1, 4, "tile") * 0.75
    assert_same_bits(found["conv1.weight"], torch.cat([four.half(), like["conv1.weight"][8:]]))
    assert_same_bits(found["conv1.bias"], torch.cat([state["conv1.bias"].double(), like["conv1.bias"][8:]]))
    for name in set(state) - {"conv1.weight", "conv1.bias"}:
        assert_same_bits(found[name], state[name])


@pytest.mark.parametrize("to", KINDS[:2])
@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_change_keeps_every_bit(tmp_path, kind, to):
    """NaN payloads, subnormals, strides' order and all, beside tensors that do change."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
    state = {f"keep.{dtype}": random_bits((64, 3), dtype) for dtype in dtypes} | network()
    source, target = tmp_path / f"a{SUFFIX[kind]}", tmp_path / f"b{SUFFIX[to]}"
    save(source, state)
    report = convert(source, target, rules=[{"match": "fc", "out_channels": 2}])
    found = load(target)
    assert set(found) == set(state)
    for name in set(state) - {"fc.weight"}:
        assert_same_bits(found[name], state[name])
    assert_same_bits(found["fc.weight"], state["fc.weight"][:2])
    assert [tensor.name for tensor in report.changed] == ["fc.weight"]
    assert report.unchanged == len(state) - 1
    assert report.file_bytes == target.stat().st_size


# -------------------------------------------------------------------------------------------- beside the state dict


def nested_state():
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()
    state["_extra"] = {"version": 2}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
    return {"epoch": 7, "state_dict": state, "optimizer": optimizer}


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_pt_keeps_what_stands_around(tmp_path, kind):
    source = save(tmp_path / "a.pt", nested_state(), kind)
    report = convert(source, tmp_path / "b.pt", rules=[{"match": "0", "in_channels": 1}])
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert list(found) == ["epoch", "state_dict", "optimizer"]
    assert found["epoch"] == 7
    assert found["optimizer"] == nested_state()["optimizer"]
    assert isinstance(found["state_dict"], OrderedDict)
    assert list(found["state_dict"]) == list(nested_state()["state_dict"])
    assert found["state_dict"]["_extra"] == {"version": 2}
    assert found["state_dict"]._metadata == nested_state()["state_dict"]._metadata
    assert found["state_dict"]["0.weight"].shape == (4, 1, 3, 3)
    assert report.notes == ("the state dict was found under 'state_dict'",)


def test_safetensors_says_what_it_leaves_out(tmp_path):
    report = convert(save(tmp_path / "a.pt", nested_state()), tmp_path / "b.safetensors")
    assert report.notes == (
        "the state dict was found under 'state_dict'",
        "left out beside the state dict, safetensors holds tensors only: epoch, optimizer",
        "left out of the state dict, safetensors holds tensors only: _extra",
    )
    for note in report.notes:
        assert f"note: {note}" in str(report).splitlines()
    assert set(load(tmp_path / "b.safetensors")) == set(nested_state()["state_dict"]) - {"_extra"}


def test_metadata_stays_in_safetensors(tmp_path):
    source = save(tmp_path / "a.safetensors", {"w": torch.ones(3)}, author="é", format="pt")
    assert convert(source, tmp_path / "b.safetensors", dtype="float16").notes == ()
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        kept = file.metadata()
    assert {key: kept[key] for key in kept if key != "convweights"} == {"author": "é", "format": "pt"}
    (note,) = convert(source, tmp_path / "b.pt").notes
    assert note.startswith("metadata of the source was left out, .pt files have none: ")
    assert {"author", "format"} == set(note.partition(": ")[2].split(", "))


def test_parameters_stay_parameters(tmp_path):
    state = {"w": torch.nn.Parameter(torch.ones(4, 2)), "v": torch.nn.Parameter(torch.ones(2), requires_grad=False)}
    rules = [{"match": "*", "out_channels": {"to": 1, "how": "truncate"}}]
    convert(save(tmp_path / "a.pt", state), tmp_path / "b.pt", rules=rules)
    found = load(tmp_path / "b.pt")
    assert [(type(p), p.requires_grad) for p in found.values()] == [
        (torch.nn.Parameter, True),
        (torch.nn.Parameter, False),
    ]


def test_ties(tmp_path):
    shared = torch.randn(4, 4)
    source = save(tmp_path / "a.pt", {"embed": shared, "head": shared})
    assert convert(source, tmp_path / "b.pt").notes == ()
    found = load(tmp_path / "b.pt")
    assert found["embed"].data_ptr() == found["head"].data_ptr()
    notes = convert(source, tmp_path / "b.safetensors").notes
    assert notes == ("these share memory in the source and are written separately: embed, head",)
    assert_same_bits(load(tmp_path / "b.safetensors")["head"], shared)


@pytest.mark.parametrize("target", ["b.pt", "b.safetensors"])
def test_values_that_overflow_are_said(tmp_path, target):
    state = {"large": torch.full((4,), 1e6), "small": torch.ones(4), "endless": torch.full((2,), torch.inf)}
    torch.save(state, tmp_path / "a.pt")
    report = convert(tmp_path / "a.pt", tmp_path / target, dtype="float16")
    assert report.notes == ("finite values became infinite in the cast of large",)


@pytest.mark.parametrize("argument", ["overwrite", "fsync"])
def test_flags_are_booleans(tmp_path, argument):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(TypeError, match=rf"\Aconvert: {argument} must be True or False, got 'no'\Z"):
        convert(tmp_path / "a.pt", tmp_path / "b.pt", **{argument: "no"})
    assert not (tmp_path / "b.pt").exists()
