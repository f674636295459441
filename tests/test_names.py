"""Renames, what is dropped, what begins anew: which tensor becomes which."""

from __future__ import annotations

import re

import pytest
import torch
from bits import assert_same_bits
from checkpoints import load, network, save, snapshot

import convweights as cw
from convweights.checkpoint import CheckpointError, convert, plan


@pytest.fixture
def source(tmp_path):
    return save(tmp_path / "net.pt", network())


def names(source, *rules):
    return {tensor.source.name: tensor.name for tensor in plan(source, rules=list(rules)).tensors}


RENAMES = [
    ({"match": "fc.weight", "rename": "head.weight"}, {"fc.weight": "head.weight"}),
    ({"match": "conv1", "rename": "stem"}, {"conv1.weight": "stem.weight", "conv1.bias": "stem.bias"}),
    (
        {"match": "bn", "rename": "a.b"},
        {"bn.weight": "a.b.weight", "bn.num_batches_tracked": "a.b.num_batches_tracked"},
    ),
    (
        {"match": "re:conv(\\d)\\.(.*)", "rename": "c.\\1.\\2"},
        {"conv1.weight": "c.1.weight", "conv2.weight": "c.2.weight"},
    ),
    ({"match": "*", "rename": "re:(.*)\\.bias -> \\1.beta"}, {"conv1.bias": "conv1.beta", "fc.weight": "fc.weight"}),
    (
        {"match": "*.weight", "rename": "re:(?P<l>.*)\\.weight -> \\g<l>.w"},
        {"fc.weight": "fc.w", "conv1.bias": "conv1.bias"},
    ),
    ({"match": "fc.weight", "rename": "fc.weight"}, {"fc.weight": "fc.weight"}),
]


@pytest.mark.parametrize(("rule", "expected"), RENAMES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_renames(tmp_path, source, rule, expected, suffix):
    found = names(source, rule)
    assert found.items() >= expected.items()
    convert(source, tmp_path / f"out{suffix}", rules=[rule])
    written = load(tmp_path / f"out{suffix}")
    assert set(written) == set(found.values())
    for old, tensor in network().items():
        assert_same_bits(written[found[old]], tensor)


def test_a_chain_of_renames_is_one_step(tmp_path, source):
    rules = [{"match": "conv1.weight", "rename": "conv2.weight"}, {"match": "conv2.weight", "rename": "conv3.weight"}]
    assert list(names(source, *rules).values())[:3] == ["conv2.weight", "conv1.bias", "conv3.weight"]


def test_a_rename_and_a_change_in_one_rule(source):
    rules = [{"match": "fc", "rename": "head", "out_channels": 3}, {"match": "fc.weight", "dtype": "float16"}]
    (tensor,) = plan(source, rules=rules).changed
    assert (tensor.name, tensor.how) == ("head.weight", "from fc.weight, out_channels 5 -> 3 truncate, cast to float16")


BAD = [
    (
        [{"match": "conv1.weight", "rename": "conv2.weight"}, {"match": "conv2.weight", "rename": "conv1.weight"}],
        "rename must not lead in a circle, got conv1.weight -> conv2.weight -> conv1.weight; convert in two steps",
    ),
    (
        [{"match": "conv1.weight", "rename": "fc.weight"}],
        "rename must give each tensor a name of its own, got fc.weight from conv1.weight and from fc.weight in ",
    ),
    (
        [{"match": "*.weight", "rename": "w"}],
        "rename must give each tensor a name of its own, got w from conv1.weight and",
    ),
    ([{"match": "re:(.*)", "rename": "\\2"}], "rename of rules[0] must refer to groups of its pattern, got '\\\\2' ("),
    (
        [{"match": "a", "rename": "re:( -> b"}],
        "rename of rules[0] must hold a valid regular expression, got 're:( -> b' (",
    ),
    (
        [{"match": "a", "rename": "re:b"}],
        "rename of rules[0] must be a new name or 're:PATTERN -> REPLACEMENT', got 're:b'",
    ),
    ([{"match": "a", "rename": ""}], "rename of rules[0] must be a new name or 're:PATTERN -> REPLACEMENT', got ''"),
    ([{"match": "re:(", "drop": True}], "match of rules[0] must be a valid regular expression, got 're:(' ("),
    ([{"match": "fc", "drop": False}], "drop of rules[0] must be true or left out, got False"),
    (
        [{"match": "fc", "drop": True, "dtype": "float16"}],
        "rules[0] must ask for nothing beside drop, got dtype; make two",
    ),
    ([{"match": "fc", "new": "keep"}], "how of fc.weight must have values to keep, got keep without a template in "),
    (
        [{"match": "fc", "new": "gauss"}],
        "how in new of rules[0] must be 'keep', 'zeros', 'init' or an initialiser such as",
    ),
    ([{"match": "fc", "new": {"to": 3}}], "new of rules[0] must be a table of how, got {'to': 3}"),
    ([{"match": "fc", "groups": 0}], "groups of rules[0] must be at least 1, got 0"),
    (
        [{"match": "fc", "groups": 4}],
        "shape of fc.weight must have a first dimension that 4 groups divide, got (5, 6) in ",
    ),
    (
        [{"match": "conv1", "groups": 2, "out_channels": 3}],
        "out_channels of conv1.weight must be divisible by 2 groups, g",
    ),
    (
        [{"match": "fc", "kernel_size": 3}],
        "kernel_size of rules[0] (match 'fc') must act on a weight with a kernel, got fc",
    ),
    (
        [{"match": "fc", "inflate": 3}],
        "inflate of rules[0] (match 'fc') must act on a weight with a 2D kernel, got fc.wei",
    ),
    (
        [{"match": "fc", "deflate": "mean"}],
        "deflate of rules[0] (match 'fc') must act on a weight with a 3D kernel, got f",
    ),
    (
        [{"match": "conv1", "kernel_size": {"how": "center"}}],
        "kernel_size of conv1.weight must say how many where there i",
    ),
    (
        [{"match": "conv1", "kernel_size": [3, 3, 3]}],
        "kernel_size of conv1.weight must hold a size for each of height, ",
    ),
    (
        [{"match": "conv1", "kernel_size": [1, 1, 1, 1]}],
        "kernel_size of rules[0] must hold one to three sizes, got [1, 1",
    ),
    (
        [{"match": "conv1", "kernel_size": {"to": 3, "rescale": "none"}}],
        "rescale in kernel_size of rules[0] must be left",
    ),
    (
        [{"match": "conv1", "in_channels": {"select": [0, 3]}}],
        "in_channels of conv1.weight must contain every selected i",
    ),
    (
        [{"match": "conv1", "in_channels": {"select": []}}],
        "select in in_channels of rules[0] must be a list of channel n",
    ),
    (
        [{"match": "conv1", "in_channels": {"select": [0], "to": 3}}],
        "in_channels of rules[0] must hold only select and re",
    ),
    (
        [{"match": "conv1", "layout": "OIHX->OIXH"}],
        "layout of rules[0] must hold the same letters of OIDHW, each once, on",
    ),
    (
        [{"match": "re:(fc)|(x)\\.weight|(.*)", "rename": "\\1"}],
        "rename of rules[0] must give a name, got none for conv1.we",
    ),
    (
        [{"match": "*", "rename": "re:zzz -> a"}],
        "rename of rules[0] (match '*') must fit the whole name of a tensor that i",
    ),
    (
        [{"match": "fc", "new": "zeros"}, {"match": "fc", "in_channels": 9}],
        "rules must ask for nothing else of fc.weight, wh",
    ),
    (
        [{"match": "fc", "new": {"how": "normal", "std": 1e300}}],
        "mean and std for fc.weight must be finite in float32, go",
    ),
    (
        [{"match": "fc", "in_channels": {"select": [10**20]}}],
        "select in in_channels of rules[0] must hold numbers of 64 ",
    ),
    ([{"match": "fc", "in_channels": 10**20}], "in_channels of rules[0] must be below 2^63, got 100000000000000000000"),
    ([{"match": "*", "drop": True}], "rules must leave a tensor to be written, got all 7 of "),
    ([{"match": "nothing.*", "only": True}], "match of rules[0] must name a tensor or a layer of "),
]


@pytest.mark.parametrize(("rules", "message"), BAD, ids=[str(rules[0]) for rules, _ in BAD])
def test_what_is_refused_writes_nothing(tmp_path, source, rules, message):
    before = snapshot(tmp_path)
    for function, call in (("plan", plan), ("convert", lambda s, rules: convert(s, tmp_path / "out.pt", rules=rules))):
        with pytest.raises(
            (CheckpointError, ValueError, TypeError), match=f"^{re.escape(f'{function}: {message}')}"
        ) as e:
            call(source, rules=rules)
        assert "\n" not in str(e.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_drop_and_only(tmp_path, source, suffix):
    report = convert(
        source, tmp_path / f"a{suffix}", rules=[{"match": "bn", "drop": True}, {"match": "*2*", "drop": True}]
    )
    assert set(load(tmp_path / f"a{suffix}")) == {"conv1.weight", "conv1.bias", "empty", "fc.weight"}
    assert [(info.name, why) for info, why in report.dropped] == [
        (name, "dropped") for name in ("conv2.weight", "bn.weight", "bn.num_batches_tracked")
    ]
    row = next(line for line in str(report).splitlines() if line.startswith("conv2.weight"))
    assert re.split(" {2,}", row) == ["conv2.weight", "float32 (6, 8, 3, 3)", "-", "dropped", "-", "-"]
    assert "4 tensors, 0 changed, 4 unchanged, 3 dropped" in str(report)
    only = [{"match": "conv1", "only": True}, {"match": "fc", "only": True}]
    assert {tensor.name for tensor in plan(source, rules=only).tensors} == {"conv1.weight", "conv1.bias", "fc.weight"}
    assert plan(source, rules=[*only, {"match": "conv1.bias", "drop": True}]).dropped[0][1] == "dropped"


@pytest.mark.parametrize(("how", "expected"), [("zeros", 0.0), ("keep", 2.0)])
def test_what_begins_anew(tmp_path, source, how, expected):
    template = {**network(1), "fc.weight": torch.full((7, 6), 2.0)}
    like = save(tmp_path / "like.pt", template)
    report = convert(source, tmp_path / "a.safetensors", rules=[{"match": "fc", "new": how}], like=like)
    assert load(tmp_path / "a.safetensors")["fc.weight"].unique().tolist() == [expected]
    assert [(info.name, why) for info, why in report.dropped] == [("fc.weight", "dropped, fc.weight begins anew")]


def test_a_layer_is_initialised_by_its_name(tmp_path, source):
    rules = [{"match": "conv1", "new": {"how": "xavier_normal", "seed": 5}}]
    convert(source, tmp_path / "a.pt", rules=rules)
    found = load(tmp_path / "a.pt")
    expected = cw.init.xavier_normal_(torch.empty(8, 3, 3, 3), seed=5, stream="conv1.weight")
    assert_same_bits(found["conv1.weight"], expected)
    assert found["conv1.bias"].count_nonzero() == 0


def test_what_is_tied_in_a_template_is_one(tmp_path):
    value = torch.randn(4, 2)
    source = save(tmp_path / "a.safetensors", {"embed": value})
    shared = torch.zeros(4, 2)
    like = save(tmp_path / "like.pt", {"embed": shared, "head": shared})
    convert(source, tmp_path / "b.pt", like=like)
    assert_same_bits(load(tmp_path / "b.pt")["head"], value)


# ------------------------------------------------------------------------------------------- kernels, depth and groups


def converted(tmp_path, state, *rules, **more):
    source = save(tmp_path / "source.pt", state)
    convert(source, tmp_path / "target.pt", rules=list(rules), overwrite=True, **more)
    return load(tmp_path / "target.pt")


def test_kernels_in_files(tmp_path):
    w = torch.randn(4, 3, 3, 3)
    found = converted(tmp_path, {"w": w}, {"match": "w", "kernel_size": 5})["w"]
    assert_same_bits(found, torch.nn.functional.pad(w, (1, 1, 1, 1)))
    found = converted(tmp_path, {"w": w}, {"match": "w", "kernel_size": {"to": [1, 3], "how": "center"}})["w"]
    assert_same_bits(found, w[:, :, 1:2])
    found = converted(
        tmp_path, {"w": w}, {"match": "w", "kernel_size": {"to": 5, "how": "kaiming_uniform", "seed": 2}}
    )["w"]
    assert_same_bits(found, cw.init.kaiming_uniform_(torch.empty(4, 3, 5, 5), seed=2, stream="w"))
    hwio = {"match": "w", "layout": "HWIO->OIHW", "kernel_size": 5, "in_channels": {"select": [2, 1, 0]}}
    found = converted(tmp_path, {"w": w.permute(2, 3, 1, 0)}, hwio)["w"]
    assert_same_bits(found, torch.nn.functional.pad(w.flip(1), (1, 1, 1, 1)))


def test_depth_in_files(tmp_path):
    w = torch.randn(4, 3, 3, 3)
    found = converted(tmp_path, {"w": w}, {"match": "w", "inflate": 4, "kernel_size": 1})["w"]
    assert_same_bits(found, (w[:, :, None, 1:2, 1:2] / 4).expand(-1, -1, 4, -1, -1))
    found = converted(tmp_path, {"w": w}, {"match": "w", "inflate": {"to": 3, "how": "center"}})["w"]
    assert_same_bits(found, torch.nn.functional.pad(w[:, :, None], (0, 0, 0, 0, 1, 1)))
    assert_same_bits(converted(tmp_path, {"w": found}, {"match": "w", "deflate": "center"})["w"], w)
    deep = torch.randn(4, 3, 2, 3, 3)
    assert_same_bits(
        converted(tmp_path, {"w": deep}, {"match": "w", "deflate": "mean"})["w"], deep[:, :, 0] + deep[:, :, 1]
    )


def test_groups_in_files(tmp_path):
    """Channels are counted as the layer's, and fitted inside each group."""
    w = torch.randn(6, 2, 3, 3)
    rule = {"match": "w", "groups": 2, "out_channels": 4, "in_channels": {"to": 6, "how": "tile", "rescale": "none"}}
    found = converted(tmp_path, {"w": w}, rule)["w"]
    assert_same_bits(found, w[[0, 1, 3, 4]][:, [0, 1, 0]])
    bias = {"l.weight": w, "l.bias": torch.arange(6.0)}
    found = converted(tmp_path, bias, {"match": "l", "groups": 2, "out_channels": 4})
    assert found["l.bias"].tolist() == [0, 1, 3, 4]
    transposed = {"match": "w", "layout": "IOHW->IOHW", "out_channels": 1}
    assert converted(tmp_path, {"w": w}, transposed)["w"].shape == (1, 2, 3, 3), "a layout that says nothing is none"


def test_channels_that_are_drawn_and_channels_that_are_zero(tmp_path):
    w = torch.randn(4, 3, 3, 3)
    rule = {"match": "w", "out_channels": {"to": 6, "how": "normal"}, "in_channels": {"to": 4, "how": "zeros"}}
    found = converted(tmp_path, {"w": w}, rule)["w"]
    assert_same_bits(found[:4], torch.nn.functional.pad(w, (0, 0, 0, 0, 0, 1)))
    assert_same_bits(found[4:], cw.init.normal_(torch.empty(6, 4, 3, 3), seed=0, stream="w")[4:])


def test_a_module_decides_for_a_file(tmp_path):
    source = save(tmp_path / "a.pt", torch.nn.Conv2d(4, 6, 3, groups=2).state_dict())
    convert(source, tmp_path / "b.pt", like=torch.nn.Conv2d(4, 4, 3, groups=2))
    assert_same_bits(load(tmp_path / "b.pt")["weight"], load(source)["weight"][[0, 1, 3, 4]])


def test_a_circle_of_which_one_is_dropped_is_none(source):
    rules = [
        {"match": "conv1.weight", "rename": "conv2.weight"},
        {"match": "conv2.weight", "rename": "conv1.weight"},
        {"match": "conv2.weight", "drop": True},
    ]
    with_drop = [rules[0], rules[1] | {"match": "conv2.weight"}, rules[2]]
    assert names(source, *with_drop)["conv1.weight"] == "conv2.weight"


def test_a_name_that_is_taken_by_what_is_no_tensor(tmp_path):
    source = save(tmp_path / "a.pt", {"w": torch.ones(2), "x": torch.ones(1), "step": 5})
    rules = [{"match": "w", "rename": "step"}]
    with pytest.raises(
        CheckpointError, match=r"^convert: tensors must have names that nothing else in .* has, got step, wh"
    ):
        convert(source, tmp_path / "b.pt", rules=rules)
    convert(source, tmp_path / "b.safetensors", rules=rules)


def test_slices_of_one_storage_are_not_one_tensor(tmp_path):
    both = torch.arange(8.0).view(4, 2)
    like = save(tmp_path / "like.pt", {"q": both[:2], "k": both[2:]})
    source = save(tmp_path / "a.pt", {"q": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match=r"must have a tensor for each of .*like\.pt, got none for k"):
        convert(source, tmp_path / "b.pt", like=like)
    convert(source, tmp_path / "b.pt", like=like, strict=False)
    assert load(tmp_path / "b.pt")["k"].tolist() == [[4, 5], [6, 7]]


def test_a_template_without_values_has_none_to_keep(tmp_path):
    source = save(tmp_path / "a.pt", {"w": torch.ones(2, 2)})
    with pytest.raises(
        CheckpointError, match=r"^convert: like must have values to keep, got w on the meta device in like"
    ):
        convert(source, tmp_path / "b.pt", like={"w": torch.zeros(4, 2, device="meta")})
    convert(source, tmp_path / "b.pt", like={"w": torch.zeros(2, 4, device="meta")})
    assert load(tmp_path / "b.pt")["w"].shape == (2, 4)


def test_a_kept_slice_is_written_alone(tmp_path):
    source = save(tmp_path / "a.pt", {"w": torch.ones(2, 2)})
    like = {"w": torch.ones(2, 2), "s": torch.zeros(1_000_000)[:2]}
    convert(source, tmp_path / "b.pt", like=like, strict=False)
    assert (tmp_path / "b.pt").stat().st_size < 10_000
