"""What is decided before a byte is written."""

import re
from dataclasses import replace

import pytest
import torch
from checkpoints import network, random_bits, save, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from convweights.checkpoint import CheckpointError, convert, plan
from convweights.fitting.rules import load_rules
from convweights.maps import Blocks, Interleave, Offset, Strided, Tile


@pytest.fixture
def source(tmp_path):
    return save(tmp_path / "net.pt", network())


def planned(source, name, **wanted):
    return next(tensor for tensor in plan(source, **wanted).tensors if tensor.name == name)


# role, to, how, rescale -> map, scale in words, share of new values; conv1.weight is (8, 3, 3, 3)
MEANINGS = [
    ("in_channels", 4, None, None, Tile("uniform"), "3/4", 1 / 4),
    ("in_channels", 4, "tile", "exact", Tile("exact"), "1/copies", 1 / 4),
    ("in_channels", 6, "interleave", None, Interleave("uniform"), "3/6", 1 / 2),
    ("in_channels", 6, "interleave", "none", Interleave(), "1", 1 / 2),
    ("in_channels", 4, "zeros", None, Offset(), "1", 1 / 4),
    ("in_channels", 4, "zeros", "uniform", Offset(0, "uniform"), "3/4", 1 / 4),
    ("in_channels", 1, None, None, Blocks("uniform"), "sum", 0.0),
    ("in_channels", 2, None, None, Blocks("uniform"), "mean x 3/2", 0.0),
    ("in_channels", 2, "strided", None, Strided("uniform"), "mean x 3/2", 0.0),
    ("in_channels", 2, "blocks", "none", Blocks(), "mean", 0.0),
    ("in_channels", 2, "blocks", "exact", Blocks("exact"), "sum", 0.0),
    ("in_channels", 2, "tile", None, Tile("uniform"), "3/2", 0.0),
    ("in_channels", 2, "interleave", None, Interleave("uniform"), "3/2", 0.0),
    ("in_channels", 2, "truncate", None, Offset(), "1", 0.0),
    ("in_channels", 2, "truncate", "uniform", Offset(0, "uniform"), "3/2", 0.0),
    ("out_channels", 5, None, None, Offset(), "1", 0.0),
    ("out_channels", 4, "blocks", None, Blocks(), "mean", 0.0),
    ("out_channels", 4, "blocks", "uniform", Blocks("uniform"), "sum", 0.0),
    ("out_channels", 16, "tile", None, Tile(), "1", 1 / 2),
    ("out_channels", 16, "zeros", None, Offset(), "1", 1 / 2),
]


@pytest.mark.parametrize(("role", "to", "how", "rescale", "map", "scale", "new"), MEANINGS)
def test_meanings(source, role, to, how, rescale, map, scale, new):
    asked = {key: value for key, value in {"to": to, "how": how, "rescale": rescale}.items() if value is not None}
    tensor = planned(source, "conv1.weight", rules=[{"match": "conv1.weight", role: asked}])
    dim = 1 if role == "in_channels" else 0
    assert tensor.maps == {dim: map}
    assert tensor.target.shape == ((8, to, 3, 3) if dim else (to, 3, 3, 3))
    assert (tensor.base, tensor.kept, tensor.scale, tensor.permutation) == (None, (), scale, None)
    assert tensor.new == pytest.approx(new)
    assert tensor.how.startswith(f"{role} {8 if dim == 0 else 3} -> {to} ")
    assert how is None or tensor.how.endswith(f" {how}")


def test_the_same_size_is_no_change(source):
    rule = {"match": "conv1", "in_channels": {"to": 3, "how": "blocks", "rescale": "exact"}, "out_channels": 8}
    result = plan(source, rules=[rule, {"match": "conv1.weight", "layout": "OIHW->OIHW"}], dtype="float32")
    assert (result.changed, result.unchanged) == ((), 7)


def test_a_template_may_be_empty_where_the_source_is_not():
    result = plan({"w": torch.ones(4, 2)}, like={"w": torch.ones(0, 1)})
    assert [(tensor.how, tensor.scale, tensor.new) for tensor in result.changed] == [
        ("out_channels 4 -> 0 truncate, in_channels 2 -> 1 blocks", "sum", 0.0)
    ]
    assert plan({"w": torch.ones(4, 2)}, like={"w": torch.ones(4, 0)}).changed[0].how == "in_channels 2 -> 0 blocks"


def test_a_layer_is_weight_and_bias(source):
    result = plan(source, rules=[{"match": "conv1", "out_channels": 4, "in_channels": 1}])
    assert [(tensor.name, tensor.target.shape) for tensor in result.changed] == [
        ("conv1.weight", (4, 1, 3, 3)),
        ("conv1.bias", (4,)),
    ]
    assert result.notes == ()


def test_a_rule_on_a_weight_warns_of_its_bias(source):
    result = plan(source, rules=[{"match": "conv1.weight", "out_channels": 4}])
    assert [tensor.name for tensor in result.changed] == ["conv1.weight"]
    expected = "conv1.bias keeps its 8 values beside conv1.weight, 4 now; a rule on the layer 'conv1' changes both"
    assert result.notes == (expected,)
    assert plan(source, rules=[{"match": "conv1.weight", "in_channels": 4}]).notes == ()


def test_channels_act_after_the_layout(source):
    hwio = {"match": "conv2.weight", "layout": "OIHW->HWIO"}
    tensor = planned(source, "conv2.weight", rules=[{**hwio, "in_channels": 4, "out_channels": 2}])
    assert (tensor.permutation, tensor.target.shape) == ((2, 3, 1, 0), (3, 3, 4, 2))
    assert tensor.maps == {3: Offset(), 2: Blocks("uniform")}
    flat = planned(source, "fc.weight", rules=[{"match": "fc.weight", "layout": "IO->OI", "in_channels": 10}])
    assert (flat.permutation, flat.target.shape, flat.maps) == ((1, 0), (6, 10), {1: Tile("uniform")})
    spatial = planned(source, "fc.weight", rules=[{"match": "fc.weight", "layout": "HW->WH", "in_channels": 10}])
    assert (spatial.target.shape, spatial.maps) == ((6, 10), {1: Tile("uniform")})


def test_dtypes(source):
    rules = [{"match": "conv1", "dtype": "float16"}]
    dtypes = {tensor.name: tensor.target.dtype for tensor in plan(source, rules=rules, dtype="bfloat16").tensors}
    assert dtypes.pop("bn.num_batches_tracked") == torch.int64
    assert dtypes.pop("conv1.weight") == dtypes.pop("conv1.bias") == torch.float16
    assert set(dtypes.values()) == {torch.bfloat16}
    assert [tensor.name for tensor in plan(source, rules=rules).changed] == ["conv1.weight", "conv1.bias"]


def test_float8_stays_and_that_is_said(tmp_path):
    state = {"w": torch.ones(2), "q": random_bits((4,), torch.float8_e4m3fn)}
    result = plan(save(tmp_path / "a.pt", state), dtype="float16")
    assert [tensor.name for tensor in result.changed] == ["w"]
    assert result.notes == ("the dtype of these stays, it does not convert: q",)


def test_ties_that_a_rule_splits_are_said(tmp_path):
    shared = torch.ones(4, 4)
    source = save(tmp_path / "a.pt", {"embed": shared, "head": shared, "other": torch.ones(2)})
    result = plan(source, rules=[{"match": "head", "out_channels": 2}])
    assert result.notes == ("head no longer shares memory with embed",)
    assert plan(source).notes == ()


def test_a_nested_state_dict_is_said(tmp_path):
    assert plan(save(tmp_path / "a.pt", {"model": network()})).notes == ("the state dict was found under 'model'",)


@pytest.fixture
def template(tmp_path):
    state = {**network(1), "conv1.weight": torch.ones(10, 3, 3, 3), "conv1.bias": torch.ones(10)}
    return save(tmp_path / "like.safetensors", state)


def test_new_channels_keep_a_templates_values(source, template):
    result = plan(source, like=template)
    assert [(tensor.name, tensor.base, tensor.kept, tensor.new) for tensor in result.changed] == [
        ("conv1.bias", "keep", ((0, 8),), pytest.approx(0.2)),
        ("conv1.weight", "keep", ((0, 8),), pytest.approx(0.2)),
    ]
    assert result.like == template


# ----------------------------------------------------------------------------------------------------- what is refused

KEEP = {"to": 10, "how": "keep"}
REFUSED = [
    ({"match": "conv1", "out_channels": 9}, "out_channels of conv1.weight must say how where it grows ('tile', "),
    (
        {"match": "conv1", "in_channels": {"to": 4, "how": "blocks"}},
        "in_channels of conv1.weight must be 'tile', 'interleave', 'keep', "
        "'zeros' or an initialiser such as 'kaiming_normal' where it grows, got 'blocks' "
        "from 3 to 4",
    ),
    (
        {"match": "conv1", "in_channels": {"to": 4, "how": "truncate"}},
        "in_channels of conv1.weight must be 'tile', 'interleave', 'keep', "
        "'zeros' or an initialiser such as 'kaiming_normal' where it grows, got 'truncate'",
    ),
    (
        {"match": "conv1", "in_channels": {"to": 2, "how": "zeros"}},
        "in_channels of conv1.weight must be 'tile', 'interleave', 'blocks', 'strided' or 'truncate' where it shrinks, "
        "got 'zeros' from 3 to 2",
    ),
    (
        {"match": "conv1", "in_channels": {"to": 4, "how": "zeros", "rescale": "exact"}},
        "in_channels of conv1.weight must rescale by 'none' or 'uniform' where it is 'zeros', got 'exact'",
    ),
    (
        {"match": "conv1", "out_channels": KEEP},
        "how of conv1.weight must have values to keep, got keep without a template",
    ),
    (
        {"match": "conv1.weight", "out_channels": {"how": "tile"}},
        "out_channels of conv1.weight must say how many where there is no template, got tile",
    ),
    (
        {"match": "empty", "out_channels": {"to": 4, "how": "tile"}},
        "out_channels of empty must have at least one position to read, got size 0 for 4 through 'tile'",
    ),
    (
        {"match": "ints", "in_channels": 3},
        "ints must be float64, float32, float16 or bfloat16 to be scaled or averaged, got int32",
    ),
    ({"match": "deep", "in_channels": 3}, "deep must have at most 8 dimensions to be changed, got 9"),
    (
        {"match": "sparse", "in_channels": 3},
        "sparse must be a dense tensor of whole bytes to be changed, got a sparse, ",
    ),
    (
        {"match": "packed", "out_channels": 1},
        "packed must be a dense tensor of whole bytes to be changed, got a sparse, ",
    ),
]


@pytest.fixture
def odd(tmp_path):
    """Every kind of tensor that a rule can be wrong about."""
    state = {
        **network(),
        "ints": torch.ones(4, 2, dtype=torch.int32),
        "deep": torch.ones([2] * 9),
        "sparse": torch.eye(2).to_sparse(),
        "packed": random_bits((2, 4), torch.float4_e2m1fn_x2),
    }
    return save(tmp_path / "odd.pt", state)


@pytest.mark.parametrize(("rule", "message"), REFUSED)
def test_sizes_that_cannot_be_reached(tmp_path, odd, rule, message):
    before = snapshot(tmp_path)
    for function, call in (("plan", plan), ("convert", lambda *a, **k: convert(a[0], tmp_path / "out.pt", **k))):
        with pytest.raises(CheckpointError, match=f"^{re.escape(f'{function}: {message}')}") as caught:
            call(odd, rules=[rule])
        assert caught.value.tensor in message
        assert caught.value.path == odd
        assert f" in {odd}" in str(caught.value)
    assert snapshot(tmp_path) == before


def test_integers_can_be_copied(odd):
    rules = [{"match": "ints", "in_channels": {"to": 3, "rescale": "none"}, "out_channels": 2}]
    assert planned(odd, "ints", rules=rules).target.shape == (2, 3)


def like(tmp_path, **changes):
    """A template that differs from the source in some tensors; None leaves one out."""
    state = {**network(1), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    return save(tmp_path / "like.pt", {name: tensor for name, tensor in state.items() if tensor is not None})


@pytest.mark.parametrize(
    ("changes", "rules", "message"),
    [
        ({"fc__weight": None}, [], "names of .*net.pt must be in .*like.pt, got fc.weight; rename or drop it"),
        (
            {"fc__bias": torch.ones(5)},
            [],
            ".*net.pt must have a tensor for each of .*like.pt, got none for fc.bias; let",
        ),
        ({"fc__weight": torch.ones(5, 6, 1)[:, :, :, None, None, None]}, [], "shape of fc.weight must have the dim"),
        ({"fc__weight": torch.ones(5)}, [], "shape of fc.weight must have the dimensions of the target's"),
        (
            {"conv1__weight": torch.ones(8, 3, 5, 5)},
            [],
            "kernel_size of conv1.weight must say how where height changes",
        ),
        (
            {"conv1__bias": torch.ones(8, dtype=torch.int64)},
            [],
            "conv1.bias must be of the template's int64 or convert to it, got float32",
        ),
        (
            {},
            [{"match": "fc", "out_channels": {"to": 9, "how": "keep"}}],
            "out_channels of fc.weight must agree with the template's 5, got 9",
        ),
        (
            {},
            [{"match": "fc", "dtype": "float16"}],
            "dtype of fc.weight must agree with the template's float32, got fl",
        ),
        (
            {},
            [{"match": "fc", "kernel_size": 3}],
            "kernel_size of .* must act on a weight with a kernel, got fc.weight",
        ),
        (
            {},
            [{"match": "new", "new": "keep"}],
            "match of rules.0. must name a tensor or a layer of .*like.pt, got 'new'",
        ),
    ],
)
def test_templates_that_do_not_fit(tmp_path, source, changes, rules, message):
    with pytest.raises(CheckpointError, match=f"^plan: {message}") as caught:
        plan(source, rules=rules, like=like(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_a_dtype_beside_a_template_is_refused(source, template):
    with pytest.raises(
        CheckpointError, match=r"^plan: dtype must be left out where a template decides it, got float16 "
    ):
        plan(source, like=template, dtype="float16")


def test_what_is_on_one_side_only_where_it_is_not_strict(tmp_path, source):
    result = plan(source, like=like(tmp_path, fc__weight=None, head__weight=torch.ones(2)), strict=False)
    assert [(info.name, why) for info, why in result.dropped] == [
        ("fc.weight", f"dropped, not in {tmp_path / 'like.pt'}")
    ]
    assert [(tensor.name, tensor.how, tensor.new) for tensor in result.changed] == [("head.weight", "kept", 1.0)]


def test_a_template_that_is_none(source, tmp_path):
    with pytest.raises(CheckpointError, match=r"^plan: like must be a checkpoint file, got .*, which does not exist$"):
        plan(source, like=tmp_path / "none.pt")


# ---------------------------------------------------------------------------------------------------------- properties

HOWS = st.sampled_from([None, "tile", "interleave", "blocks", "strided", "truncate", "keep", "zeros", "normal"])
CHANNELS = st.one_of(
    st.fixed_dictionaries(
        {"to": st.integers(1, 9)},
        optional={"how": HOWS, "rescale": st.sampled_from([None, "none", "uniform", "exact"])},
    ),
    st.fixed_dictionaries({"select": st.lists(st.integers(-3, 8), min_size=1, max_size=4)}),
    st.fixed_dictionaries({"how": HOWS}),
)
EXTENTS = st.integers(1, 6) | st.lists(st.integers(1, 6), min_size=1, max_size=3)
KERNELS = st.fixed_dictionaries(
    {"to": EXTENTS}, optional={"how": st.sampled_from(["center", "resize", "init", "uniform"])}
)
DEPTH = st.sampled_from(["mean", "center"])
MATCHES = [
    "conv1",
    "conv1.weight",
    "conv2.weight",
    "*",
    "*.weight",
    "re:.*v2.*",
    "re:(.*)\\.weight",
    "fc",
    "empty",
    "bn",
]
NAMES = ["fc", "stem.weight", "\\1.w", "re:(.*)1\\.(.*) -> \\1.\\2", "conv2.weight", 'a "b"\t\\\x7f\u00e9']
CHANGES = st.fixed_dictionaries(
    {"match": st.sampled_from(MATCHES)},
    optional={
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "kernel_size": KERNELS | EXTENTS,
        "inflate": st.fixed_dictionaries({"to": st.integers(1, 4), "how": DEPTH}),
        "groups": st.sampled_from([1, 2, 4]),
        "layout": st.sampled_from(["OIHW->HWIO", "HWIO->OIHW", "OI->IO", "OIHW->OIHW"]),
        "dtype": st.sampled_from(["float16", "float64"]),
        "rename": st.sampled_from(NAMES),
        "only": st.just(True),
    },
).filter(lambda rule: len(rule) > 1)
WHOLE = st.fixed_dictionaries({"match": st.sampled_from(MATCHES), "drop": st.just(True)}) | st.fixed_dictionaries(
    {"match": st.sampled_from(MATCHES), "new": st.sampled_from(["keep", "zeros", "init", "normal"])}
)
RULES = st.lists(CHANGES | WHOLE, max_size=3)


def other_sizes():
    """A template: other channels and kernels, another order, another dtype."""
    state = {name: tensor.clone() for name, tensor in reversed(network(1).items())}
    state.update({"conv1.weight": torch.ones(9, 4, 3, 3).half(), "conv1.bias": torch.ones(9)})
    return {**state, "fc.weight": torch.ones(3, 7)}


@settings(max_examples=150, deadline=None)
@given(
    rules=RULES,
    dtype=st.sampled_from([None, "bfloat16"]),
    suffix=st.sampled_from([".safetensors", ".pt"]),
    template=st.booleans(),
    strict=st.booleans(),
)
def test_what_is_planned_is_what_is_written(tmp_path_factory, rules, dtype, suffix, template, strict):
    folder = tmp_path_factory.mktemp("plan")
    source, target = save(folder / "net.pt", network()), folder / f"out{suffix}"
    like = save(folder / "like.pt", other_sizes()) if template else None
    asked = {"rules": rules, "like": like, "dtype": None if template else dtype, "strict": strict}
    try:
        parsed = load_rules("plan", rules)
    except ValueError:
        parsed = None
    if parsed:
        asked["rules"] = folder / "rules.toml"
        asked["rules"].write_text("\n\n".join(rule.toml() for rule in parsed))
        read = load_rules("plan", asked["rules"])
        assert [replace(rule, origin="") for rule in read] == [replace(rule, origin="") for rule in parsed]
    before = snapshot(folder)
    try:
        expected = plan(source, **asked)
    except (CheckpointError, ValueError) as refused:
        with pytest.raises(type(refused), match=re.escape(str(refused).removeprefix("plan: "))):
            convert(source, target, **asked, fsync=False)
        assert snapshot(folder) == before
        return
    assert snapshot(folder) == before
    report = convert(source, target, **asked, fsync=False)
    assert (report.tensors, report.dropped) == (expected.tensors, expected.dropped)
    written = {tensor.name: tensor.source for tensor in plan(target).tensors}
    assert written == {tensor.name: tensor.target for tensor in expected.tensors}
    if like is not None:
        decided = {tensor.name: tensor.source for tensor in plan(like).tensors}
        assert written == decided
    gone = {info.name for info, _ in expected.dropped}
    assert gone | {tensor.source.name for tensor in expected.tensors if tensor.source} == set(network())


# ---------------------------------------------------------------------------------------------------------------- text


def test_the_text_lists_what_changes(source):
    result = plan(source, rules=[{"match": "conv1.weight", "in_channels": 4, "out_channels": 4}], dtype="float16")
    lines = str(result).splitlines()
    assert lines[0] == f"plan for {source} (pt (zip)): 7 tensors, 6 changed, 1 unchanged, {result.nbytes / 1000:.3g} kB"
    assert lines[1].split() == ["tensor", "from", "to", "how", "scale", "new"]
    assert re.split(" {2,}", lines[2]) == [
        "conv1.weight",
        "float32 (8, 3, 3, 3)",
        "float16 (4, 4, 3, 3)",
        "out_channels 8 -> 4 truncate, in_channels 3 -> 4 tile, cast to float16",
        "3/4",
        "25.0%",
    ]
    assert lines[-1].startswith("note: conv1.bias keeps its 8 values")
    assert len(lines) == 2 + 6 + 1


def test_a_normalisation_loses_its_statistics_with_its_channels(tmp_path):
    source = save(tmp_path / "a.pt", torch.nn.ModuleDict({"bn": torch.nn.BatchNorm2d(16)}).state_dict())
    result = plan(source, rules=[{"match": "bn", "out_channels": 8}])
    shapes = {tensor.name: tensor.target.shape for tensor in result.tensors}
    assert shapes.pop("bn.num_batches_tracked") == ()
    assert set(shapes.values()) == {(8,)}


def test_a_prefix_left_out_is_suggested(tmp_path):
    source = save(tmp_path / "a.pt", {"module.conv1.weight": torch.ones(4, 3, 3, 3)})
    with pytest.raises(CheckpointError, match=r"did you mean module\.conv1\?"):
        plan(source, rules=[{"match": "conv1", "in_channels": 4}])
