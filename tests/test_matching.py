"""Which tensors a rule means, and what all rules together ask of each."""

import re
from pathlib import Path

import pytest
import torch

from convweights.checkpoint import CheckpointError
from convweights.checkpoint.contents import Checkpoint, TensorInfo
from convweights.fitting.matching import collect, match_rule
from convweights.fitting.rules import Rule, load_rules
from convweights.fitting.settings import Layout, Size

NAMES = [
    "conv1.weight",
    "conv1.bias",
    "conv10.weight",
    "layer.conv1.weight",
    "layer.conv1.bias",
    "a[0].weight",
    "scale",
]


class File(Checkpoint):
    """Descriptions without a file."""

    path = Path("net.pt")

    def __init__(self, tensors: dict[str, TensorInfo]) -> None:
        self.tensors = tensors

    def read(self, name: str) -> torch.Tensor:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


HERE = File({})


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ("conv1.weight", ["conv1.weight"]),
        ("scale", ["scale"]),
        ("a[0].weight", ["a[0].weight"]),
        ("a[0]", ["a[0].weight"]),
        ("conv1", ["conv1.weight", "conv1.bias"]),
        ("layer.conv1", ["layer.conv1.weight", "layer.conv1.bias"]),
        ("conv?.weight", ["conv1.weight"]),
        ("*conv1.weight", ["conv1.weight", "layer.conv1.weight"]),
        ("layer.*", ["layer.conv1.weight", "layer.conv1.bias"]),
        ("conv[0-9].*", ["conv1.weight", "conv1.bias"]),
        ("re:conv\\d+\\.weight", ["conv1.weight", "conv10.weight"]),
        ("re:.*bias", ["conv1.bias", "layer.conv1.bias"]),
    ],
)
def test_what_a_rule_means(match, expected):
    found = match_rule("plan", HERE, Rule(match), NAMES)
    assert list(found.names) == expected
    assert found.named == (match in NAMES)


@pytest.mark.parametrize(
    ("match", "remedy"),
    [
        ("conv1.wieght", "; did you mean conv1.weight"),
        ("con1", "; did you mean conv1"),
        ("layer", "; layer.* means all that lies under it"),
        ("CONV1", ""),
        ("re:bias", ""),
        ("re:conv1", ""),
        ("*.kernel", ""),
    ],
)
def test_a_rule_that_matches_nothing(match, remedy):
    pattern = f"plan: match of rules[0] must name a tensor or a layer of net.pt, got {match!r}{remedy}"
    with pytest.raises(CheckpointError, match=f"^{re.escape(pattern)}"):
        match_rule("plan", HERE, Rule(match, origin="rules[0]"), NAMES)


def test_a_regular_expression_that_does_not_compile():
    with pytest.raises(ValueError, match=r"^plan: match of a rule must be a valid regular expression, got 're:\(' \("):
        match_rule("plan", HERE, Rule("re:("), NAMES)


TENSORS = {
    name: TensorInfo(name, shape, dtype)
    for name, shape, dtype in (
        ("conv.weight", (8, 3, 3, 3), torch.float32),
        ("conv.bias", (8,), torch.float32),
        ("fc.weight", (5, 8), torch.float32),
        ("count", (), torch.int64),
    )
}


def asked_by(*rules: dict) -> tuple[dict, list[str]]:
    asked, notes = collect("plan", File(TENSORS), load_rules("plan", rules))
    return {name: {key: value for key, (value, _) in each.settings.items()} for name, each in asked.items()}, notes


def test_every_matching_rule_applies_where_it_can():
    asked, notes = asked_by(
        {"match": "*", "in_channels": 4, "dtype": "float16"},
        {"match": "*", "layout": "HWIO->OIHW"},
        {"match": "conv", "out_channels": 6},
        {"match": "conv.weight", "out_channels": 6},
    )
    half, four, six, layout = torch.float16, Size(4), Size(6), Layout("HWIO", "OIHW")
    assert asked == {
        "conv.weight": {"in_channels": four, "out_channels": six, "layout": layout, "dtype": half},
        "conv.bias": {"out_channels": six, "dtype": half},
        "fc.weight": {"in_channels": four, "dtype": half},
        "count": {},
    }
    assert notes == ["layout HWIO->OIHW left alone what has another rank: conv.bias, fc.weight, count"]


@pytest.mark.parametrize("setting", ["in_channels", "out_channels", "layout", "dtype"])
def test_two_rules_that_differ(setting):
    one, two = {
        "in_channels": (4, 5),
        "out_channels": (4, {"to": 4, "how": "tile"}),
        "layout": ("HWIO->OIHW", "HWIO->IOHW"),
        "dtype": ("float16", "bfloat16"),
    }[setting]
    first, second = r"rules\[0\] \(match '\*\.weight'\)", r"rules\[1\] \(match 'conv'\)"
    pattern = f"^plan: rules must agree on {setting} of conv.weight, got .* from {first} and .* from {second}$"
    with pytest.raises(CheckpointError, match=pattern) as caught:
        asked_by({"match": "*.weight", "layout": "HWIO->OIHW"} | {setting: one}, {"match": "conv", setting: two})
    assert caught.value.tensor == "conv.weight"


@pytest.mark.parametrize(
    ("rule", "pattern"),
    [
        (
            {"match": "conv.bias", "in_channels": 4},
            "in_channels of .* must act on a weight of rank 2 or more, got conv.bias ",
        ),
        (
            {"match": "*.bias", "in_channels": 4},
            "in_channels of .* must act on a weight of rank 2 or more, got conv.bias ",
        ),
        (
            {"match": "count", "out_channels": 4},
            "out_channels of .* must act on a tensor of rank 1 or more, got count ",
        ),
        (
            {"match": "count", "dtype": "float16"},
            "dtype of .* must act on a tensor of float64, .*, got count .* int64$",
        ),
        (
            {"match": "fc.weight", "layout": "HWIO->OIHW"},
            "layout of .* must have as many letters as fc.weight in net.pt has dimensions, got HWIO->OIHW for shape",
        ),
        ({"match": "fc", "layout": "HWIO->OIHW"}, "layout of .* must have as many letters as fc.weight "),
    ],
)
def test_a_rule_that_cannot_act(rule, pattern):
    with pytest.raises(CheckpointError, match=f"^plan: {pattern}") as caught:
        asked_by(rule)
    assert caught.value.path == HERE.path
    assert caught.value.tensor in TENSORS
