"""What a rule may say."""

import re

import pytest
import torch

from convweights.checkpoint import CheckpointError
from convweights.fitting.rules import SETTINGS, Rule, load_rules, parse_rule
from convweights.fitting.settings import Layout, Size

FULL = {
    "match": "conv1.weight",
    "in_channels": {"to": 4, "how": "tile", "rescale": "uniform"},
    "out_channels": 64,
    "layout": "HWIO->OIHW",
    "dtype": "bfloat16",
}
PARSED = Rule(
    "conv1.weight",
    in_channels=Size(4, "tile", "uniform"),
    out_channels=Size(64),
    layout=Layout("HWIO", "OIHW"),
    dtype=torch.bfloat16,
)
TOML = """
[[rule]]
match = "conv1.weight"
in_channels = { to = 4, how = "tile", rescale = "uniform" }
out_channels = 64
layout = "HWIO->OIHW"
dtype = "bfloat16"

[[rule]]
match = "*.bias"
dtype = "float32"
"""


def said(rule: Rule) -> tuple:
    return (rule.match, rule.in_channels, rule.out_channels, rule.layout, rule.dtype)


def test_a_dict_and_toml_say_the_same(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(TOML)
    for rules in (path, str(path), [FULL, {"match": "*.bias", "dtype": torch.float32}]):
        first, second = load_rules("plan", rules)
        assert said(first) == said(PARSED)
        assert said(second) == ("*.bias", None, None, None, torch.float32)
    assert load_rules("plan", path)[1].origin == "rule 2 of rules.toml"
    assert load_rules("plan", None) == []
    assert load_rules("plan", (first,)) == [first]


def test_a_layout_permutes():
    layout = parse_rule("plan", FULL, "").layout
    assert layout is not None
    assert torch.empty(3, 5, 7, 11).permute(layout.permutation).shape == (11, 7, 3, 5)


BAD = [
    ({}, TypeError, "match of rules[0] must be a name, a glob or re:..., got None"),
    ({"match": ""}, TypeError, "match of rules[0] must be a name, a glob or re:..., got ''"),
    (3, TypeError, "rules[0] must be a dict, got 3"),
    (
        {"match": "a"},
        ValueError,
        f"rules[0] must ask for one of {', '.join(SETTINGS)}, got only match 'a'",
    ),
    (
        {"match": "a", "renam": "b", "in_chanels": 3},
        ValueError,
        f"rules[0] must have only the fields match, {', '.join(SETTINGS)}, got in_chanels, renam",
    ),
    ({"in_channels": 0}, ValueError, "in_channels of rules[0] must be at least 1, got 0"),
    ({"in_channels": -3}, ValueError, "in_channels of rules[0] must be at least 1, got -3"),
    ({"in_channels": 2.0}, TypeError, "in_channels of rules[0] must be an int, got 2.0"),
    ({"out_channels": True}, TypeError, "out_channels of rules[0] must be an int, got True"),
    (
        {"out_channels": "4"},
        ValueError,
        "how in out_channels of rules[0] must be 'tile', 'interleave', 'blocks', 'strided', 'truncate', 'keep', "
        "'zeros' or an initialiser such as 'kaiming_normal', got '4'",
    ),
    (
        {"in_channels": {}},
        ValueError,
        "in_channels of rules[0] must be a number of channels or a table of to, how and rescale, got {}",
    ),
    (
        {"in_channels": {"to": 3, "order": "tile"}},
        ValueError,
        "in_channels of rules[0] must be a number of channels or a table of to, how and rescale, "
        "got {'to': 3, 'order': 'tile'}",
    ),
    (
        {"in_channels": {"to": 3, "how": "repeat"}},
        ValueError,
        "how in in_channels of rules[0] must be 'tile', 'interleave', 'blocks', 'strided', 'truncate', 'keep', "
        "'zeros' or an initialiser such as 'kaiming_normal', got 'repeat'",
    ),
    (
        {"in_channels": {"to": 3, "rescale": "sum"}},
        ValueError,
        "rescale in in_channels of rules[0] must be 'none', 'uniform' or 'exact', got 'sum'",
    ),
    ({"layout": 3}, TypeError, "layout of rules[0] must be a string such as 'HWIO->OIHW', got 3"),
    *(
        (
            {"layout": text},
            ValueError,
            f"layout of rules[0] must hold the same letters of OIDHW, each once, on both sides of ->, got '{text}'",
        )
        for text in ("HWIO", "HWIO->OIH", "HHIO->OIHH", "HWXO->OXHW", "HWIO->OIHW->HWIO", "hwio->oihw", "HWIO->OIHWH")
    ),
    ({"layout": "->"}, ValueError, "layout of rules[0] must name at least one dimension, got '->'"),
    (
        {"dtype": "int8"},
        TypeError,
        "dtype of rules[0] must be 'float64', 'float32', 'float16' or 'bfloat16', got 'int8'",
    ),
    (
        {"dtype": torch.int8},
        TypeError,
        "dtype of rules[0] must be 'float64', 'float32', 'float16' or 'bfloat16', got torch.int8",
    ),
]


@pytest.mark.parametrize(("rule", "kind", "message"), BAD, ids=[str(case[0]) for case in BAD])
def test_bad_rules(rule, kind, message):
    if isinstance(rule, dict) and rule and "match" not in rule:
        rule = {"match": "a", **rule}
    with pytest.raises(kind, match=f"^{re.escape('plan: ' + message)}$"):
        load_rules("plan", [rule])


@pytest.mark.parametrize("rules", [3, {"match": "a", "dtype": "float32"}])
def test_rules_of_another_type(rules):
    with pytest.raises(TypeError, match=r"^plan: rules must be a path to TOML or a list of dicts, got "):
        load_rules("plan", rules)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        (None, r"be a readable TOML file, got .*rules\.toml \(No such file or directory\)"),
        ("[[rule]", r"be a readable TOML file, got .*rules\.toml \(\w"),
        ("match = 'a'", r"hold \[\[rule\]\] tables and nothing else, got match in .*rules\.toml"),
        ("", r"hold \[\[rule\]\] tables and nothing else, got nothing in"),
        ("rule = 3", r"hold \[\[rule\]\] tables and nothing else, got rule in"),
        (TOML + "\n[other]\n", r"hold \[\[rule\]\] tables and nothing else, got rule, other in"),
    ],
)
def test_bad_rule_files(tmp_path, text, pattern):
    path = tmp_path / "rules.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CheckpointError, match=f"^plan: rules must {pattern}") as caught:
        load_rules("plan", path)
    assert caught.value.path == path
