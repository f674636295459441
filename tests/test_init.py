"""Seeded initialisation: torch's distributions and fans, the project's numbers. Family: exact, unless said."""

import inspect
import math

import pytest
import torch
from bits import assert_same_bits
from torch import nn

import convweights as cw
from convweights.ops import transfer, transfer_fill
from convweights.ops.initializers import INITIALIZERS, fans

LAYERS = [
    nn.Linear(20, 30),
    nn.Conv1d(6, 12, 3),
    nn.Conv2d(6, 12, (3, 5), groups=3),
    nn.Conv2d(8, 8, 3, groups=8),
    nn.Conv3d(4, 6, 2),
    nn.ConvTranspose1d(6, 4, 3),
    nn.ConvTranspose2d(6, 12, 3, groups=2),
    nn.ConvTranspose3d(4, 4, 2),
    nn.Embedding(10, 7),
]
NAMES = ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_")


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_fans_are_torchs(layer: nn.Module):
    expected = nn.init._calculate_fan_in_and_fan_out(layer.weight)
    assert fans("test", layer.weight.shape) == expected


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_torchs(name: str):
    ours = inspect.signature(getattr(cw.init, name)).parameters
    theirs = inspect.signature(getattr(nn.init, name)).parameters
    shared = [p for p in theirs if p not in ("tensor", "generator")]
    assert [p for p in ours if p not in ("weight", "seed", "stream")] == shared
    assert [ours[p].default for p in shared] == [theirs[p].default for p in shared]
    assert all(ours[p].default is inspect.Parameter.empty for p in ("seed", "stream"))


CALLS = [
    ("normal_", {"mean": -0.5, "std": 0.02}),
    ("uniform_", {"a": -0.25, "b": 1.5}),
    ("kaiming_normal_", {"mode": "fan_out", "nonlinearity": "relu"}),
    ("kaiming_normal_", {"a": 0.2}),
    ("kaiming_uniform_", {"a": 5**0.5}),
    ("kaiming_uniform_", {"nonlinearity": "tanh"}),
    ("xavier_normal_", {"gain": 2.0}),
    ("xavier_uniform_", {}),
]


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_the_distribution_is_torchs(name: str, arguments: dict):
    """Mean, standard deviation and range of 2e5 numbers. Family: rounded, to 5 sigma of both samples."""
    ours, theirs = torch.empty(250, 100, 8), torch.empty(250, 100, 8)
    assert getattr(cw.init, name)(ours, **arguments, seed=1, stream="w") is ours
    getattr(nn.init, name)(theirs, **arguments, generator=torch.Generator().manual_seed(0))
    sigma = theirs.std().item()
    assert abs(ours.mean() - theirs.mean()).item() < 5 * sigma * math.sqrt(2 / ours.numel())
    assert abs(ours.std() / theirs.std() - 1).item() < 5 * math.sqrt(1 / ours.numel())
    if "uniform" in name:
        assert torch.allclose(ours.max(), theirs.max(), rtol=1e-3)
        assert torch.allclose(ours.min(), theirs.min(), rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_the_stream(device: str, name: str):
    initializer = INITIALIZERS[name.rstrip("_")](seed=9, stream="conv.weight")
    shift, scale = initializer.terms("test", (5, 4, 3, 3))
    z = cw.noise((5, 4, 3, 3), seed=9, stream="conv.weight", distribution=initializer.distribution)
    for weight in (torch.empty(5, 4, 3, 3), torch.empty(3, 3, 4, 5).permute(3, 2, 0, 1)):
        made = getattr(cw.init, name)(weight.to(device), seed=9, stream="conv.weight")
        assert_same_bits(made, shift + scale * z if shift else scale * z)


def test_the_weight_is_not_read(device: str):
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        weight = torch.full((20, 30), torch.nan, dtype=dtype, device=device)
        assert cw.init.kaiming_normal_(weight, seed=0, stream=0).isfinite().all()


def test_empty_weights():
    for name in NAMES:
        assert getattr(cw.init, name)(torch.empty(0, 3), seed=0, stream=0).shape == (0, 3)


FILLED = [
    # weight, source, maps
    ((8, 3), (5, 3), {0: cw.Truncate()}),
    ((8, 3), (5, 3), {0: cw.Pad(3)}),
    ((9, 7, 5, 5), (4, 3, 3, 3), {0: cw.Pad(2), 1: cw.Offset(-1), 2: cw.Center(), 3: cw.Offset(1)}),
    ((4, 6), (2, 3), {0: cw.Offset(0), 1: cw.Tile()}),
    ((4, 6), (9, 3), {0: cw.Offset(7), 1: cw.Offset(5)}),
    ((4, 6), (9, 3), {0: cw.Offset(-50)}),
    ((4, 6), (0, 6), {0: cw.Offset(0)}),
    ((4, 6), (4, 6), {0: cw.Offset(0)}),
    ((0, 6), (4, 6), {0: cw.Offset(0)}),
]


@pytest.mark.parametrize(("weight", "source", "maps"), FILLED)
@pytest.mark.parametrize("least", [1, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_transfer_fills_what_it_does_not_reach(device: str, monkeypatch, weight, source, maps, dtype, least):
    """Each element is what the initialiser gives the whole weight there, or what the transfer writes, by both roads."""
    monkeypatch.setattr(transfer_fill, "_LEAST_RUN", least)
    if 1 not in maps and source[1] != weight[1]:
        maps = {**maps, 1: cw.Tile()}
    initializer = cw.init.XavierNormal(gain=3.0, seed=4, stream="w")
    values = torch.rand(source, device=device, dtype=dtype)
    filled = cw.transfer_(torch.empty(weight, device=device, dtype=dtype), values, maps, fill=initializer)
    expected = torch.empty(weight, device=device, dtype=dtype)
    cw.init.xavier_normal_(expected, gain=3.0, seed=4, stream="w")
    cw.transfer_(expected, values, maps, fill="keep")
    assert_same_bits(filled, expected)


def test_each_element_is_written_once(monkeypatch: pytest.MonkeyPatch):
    """The pieces that are initialised cover what the transfer leaves out, and no more."""
    written = torch.zeros(9, 7, 5, 5)

    def count(function: str, piece: torch.Tensor, initializer: object, box: tuple) -> None:
        written[tuple(slice(o, o + s) for o, s in zip(box[1], piece.shape, strict=True))] += 1

    monkeypatch.setattr(transfer, "initialize_as", count)
    monkeypatch.setattr(transfer_fill, "_LEAST_RUN", 1)
    maps = FILLED[2][2]
    weight = torch.full((9, 7, 5, 5), -1.0)
    cw.transfer_(weight, torch.zeros(4, 3, 3, 3), maps, fill=cw.init.Normal(seed=0, stream=0))
    assert torch.equal(written, (weight == -1).float())
