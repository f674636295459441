"""New channels that a rule or a flag initialises. Family: exact."""

import pytest
import torch
from bits import assert_same_bits
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import convweights as cw
from convweights import cli
from convweights.checkpoint import CheckpointError


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    net = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8), "count": nn.Embedding(4, 2)})
    net["count"].weight.data.add_(1)
    path = tmp_path / "net.pt"
    torch.save(net.state_dict(), path)
    return path


def converted(source, rules):
    target = source.with_name("made.safetensors")
    report = cw.convert(source, target, rules=rules, overwrite=True)
    return report, load_file(target), torch.load(source)


def test_new_filters_are_drawn_and_new_biases_are_what_layers_start_with(source):
    wide = {"to": 12, "how": "kaiming_normal", "nonlinearity": "relu", "seed": 5}
    rules = [{"match": "conv", "out_channels": wide}, {"match": "norm", "out_channels": wide}]
    report, made, before = converted(source, rules)
    expected = cw.init.kaiming_normal_(torch.empty(12, 3, 3, 3), nonlinearity="relu", seed=5, stream="conv.weight")
    assert_same_bits(made["conv.weight"][:8], before["conv.weight"])
    assert_same_bits(made["conv.weight"][8:], expected[8:])
    for name, start in (
        ("conv.bias", 0),
        ("norm.weight", 1),
        ("norm.bias", 0),
        ("norm.running_mean", 0),
        ("norm.running_var", 1),
    ):
        assert_same_bits(made[name][:8], before[name])
        assert (made[name][8:] == start).all()
    how = {tensor.name: tensor.how for tensor in report.changed}
    assert how["conv.weight"] == "out_channels 8 -> 12 kaiming_normal seed 5"
    assert how["conv.bias"] == "out_channels 8 -> 12 zeros"
    assert how["norm.running_var"] == "out_channels 8 -> 12 ones"


def test_both_dimensions_one_initialiser(source):
    drawn = {"how": "normal", "std": 0.02}
    rules = [{"match": "conv.weight", "out_channels": {"to": 10, **drawn}, "in_channels": {"to": 5, **drawn}}]
    _, made, before = converted(source, rules)
    expected = cw.init.normal_(torch.empty(10, 5, 3, 3), std=0.02, seed=0, stream="conv.weight")
    expected[:8, :3] = before["conv.weight"]
    assert_same_bits(made["conv.weight"], expected)


def test_toml_and_flags_say_the_same(source, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nmatch = "conv"\nout_channels = { to = 12, how = "xavier_uniform", seed = 7 }\n')
    _, made, _ = converted(source, rules)
    flags = ["--out-channels", "conv=12:xavier_uniform", "--seed", "7"]
    done = CliRunner().invoke(cli.app, ["convert", str(source), str(tmp_path / "b.safetensors"), *flags])
    assert done.exit_code == 0, done.output
    assert "out_channels 8 -> 12 xavier_uniform seed 7" in done.output
    by_flags = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(by_flags[name], made[name]) for name in made)


def test_a_wrapped_models_filters_are_the_models(tmp_path):
    torch.save({"module.conv.weight": torch.zeros(2, 3, 3, 3)}, tmp_path / "wrapped.pt")
    rules = [{"match": "module.conv.weight", "out_channels": {"to": 4, "how": "normal"}}]
    cw.convert(tmp_path / "wrapped.pt", tmp_path / "made.pt", rules=rules)
    made = torch.load(tmp_path / "made.pt")["module.conv.weight"]
    assert_same_bits(made[2:], cw.init.normal_(torch.empty(4, 3, 3, 3), seed=0, stream="conv.weight")[2:])


def test_only_the_dimension_that_is_initialised_says_so(source):
    rules = [
        {"match": "conv.weight", "out_channels": {"to": 12, "how": "kaiming_normal"}},
        {"match": "conv.weight", "in_channels": {"to": 4, "how": "tile"}},
    ]
    (tensor,) = cw.plan(source, rules=rules).changed
    assert tensor.how == "out_channels 8 -> 12 kaiming_normal seed 0, in_channels 3 -> 4 tile"


def test_one_fill_said_in_two_ways_is_one(source):
    rules = [
        {"match": "conv.weight", "out_channels": {"to": 12, "how": "normal", "std": 2.0, "mean": 0.5}},
        {"match": "conv.weight", "in_channels": {"to": 4, "how": "normal", "mean": 0.5, "std": 2.0, "seed": 0}},
    ]
    assert len(cw.plan(source, rules=rules).changed) == 1


def test_a_layout_without_fans_in_front_is_refused(source):
    asked = {"match": "conv.weight", "layout": "OIHW->HWIO", "out_channels": {"to": 12, "how": "kaiming_normal"}}
    with pytest.raises(CheckpointError, match=r"layout of conv\.weight must lead to OI\.\.\. where channels are init"):
        cw.plan(source, rules=[asked])


REFUSED = [
    ({"to": 12, "how": ["normal"]}, ValueError, "how in out_channels of rules[0] must be 'tile'"),
    ({"to": 12, "how": "kaiming", "a": 1}, ValueError, "how in out_channels of rules[0] must be 'tile'"),
    ({"to": 12, "how": "normal", "std": -1.0}, ValueError, "std in out_channels of rules[0] must be at least 0"),
    (
        {"to": 12, "how": "normal", "gain": 1.0},
        ValueError,
        "be a number of channels or a table of to, how, mean, seed, std and rescale",
    ),
    ({"to": 12, "how": "zeros", "seed": 1}, ValueError, "be a number of channels or a table of to, how and rescale"),
    ({"to": 12, "how": "normal", "stream": 1}, ValueError, "be a number of channels or a table of"),
    (
        {"to": 12, "how": "normal", "seed": -1},
        ValueError,
        "seed in out_channels of rules[0] must lie in 0 .. 2^64 - 1, got -1",
    ),
    ({"to": 6, "how": "normal"}, CheckpointError, "where it shrinks, got 'normal' from 8 to 6"),
    ({"to": 12, "how": "normal", "rescale": "exact"}, CheckpointError, "rescale by 'none' or 'uniform'"),
]


@pytest.mark.parametrize(("asked", "error", "sentence"), REFUSED)
def test_what_is_refused(source, asked, error, sentence):
    with pytest.raises(error) as raised:
        cw.plan(source, rules=[{"match": "conv.weight", "out_channels": asked}])
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_two_fills_of_one_weight_are_refused(source):
    rules = [
        {"match": "conv.weight", "out_channels": {"to": 12, "how": "normal"}},
        {"match": "conv.weight", "in_channels": {"to": 4, "how": "uniform"}},
    ]
    with pytest.raises(
        CheckpointError, match=r"fill new channels in one way for both dimensions, got normal and uniform"
    ):
        cw.plan(source, rules=rules)


def test_a_seed_that_nothing_uses_is_refused(source):
    flags = ["plan", str(source), "x.pt", "--out-channels", "conv=12:zeros", "--seed", "7"]
    done = CliRunner().invoke(cli.app, flags)
    assert done.exit_code == 2
    assert "plan: --seed must be used by a flag that initialises channels" in done.output
