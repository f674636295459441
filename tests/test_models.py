"""A whole model's weights in another model."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from bits import assert_same_bits
from nets import R18, R34, demo, resnet
from torch import nn

import convweights as cw
from convweights.checkpoint import CheckpointError


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_resnet_18_into_34_and_back():
    """Blocks that 18 lacks keep their own weights, and 34's first ones are 18's."""
    small, large = resnet(R18), resnet(R34, seed=1)
    own = copy.deepcopy(large.state_dict())
    with pytest.raises(
        ValueError, match=r"^transfer_model_: source ResNet must have a tensor for each of target ResNet"
    ):
        cw.transfer_model_(large, small)
    for name, tensor in large.state_dict().items():
        assert_same_bits(tensor, own[name])
    report = cw.transfer_model_(large, small, strict=False)
    state = small.state_dict()
    assert {tensor.name for tensor in report.changed} == set(own) - set(state)
    assert {tensor.how for tensor in report.changed} == {"kept"}
    for name, tensor in large.state_dict().items():
        assert_same_bits(tensor, state.get(name, own[name]))
    keep = [
        {"match": f"layer{stage}.{block}.*", "new": "keep"}
        for stage in range(1, 5)
        for block in range(2, R34[stage - 1])
    ]
    assert cw.transfer_model_(large, small, rules=keep).changed == report.changed
    back = resnet(R18, seed=2)
    dropped = cw.transfer_model_(back, large, strict=False).dropped
    assert {info.name for info, _ in dropped} == set(own) - set(state)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(back(x), small(x))


@torch.no_grad()
def test_a_2d_net_into_a_3d_one_and_back():
    flat, deep = resnet((1, 1)), resnet((1, 1), seed=1, dims=3)
    report = cw.transfer_model_(deep, flat)
    assert next(t for t in report.changed if t.name == "conv1.weight").how == "depth 1 -> 7 mean"
    back = resnet((1, 1), seed=2)
    cw.transfer_model_(back, deep)
    x = torch.randn(2, 3, 32, 32)
    close(back(x), flat(x))
    # Padding in depth with zeros darkens the ends of a video; where each convolution sees the picture, it is the same.
    ends = [(module, module.padding) for module in deep.modules() if isinstance(module, nn.Conv3d)]
    for module, padding in ends:
        module.padding = (0, *padding[1:])
        module.stride = (1, *module.stride[1:])
    for block in (deep.layer1[0], deep.layer2[0]):
        block.forward = lambda x, block=block: _without_ends(block, x)
    close(deep(x.unsqueeze(2).expand(-1, -1, 16, -1, -1)), flat(x))


def _without_ends(block, x):
    y = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    return (y + (x if block.downsample is None else block.downsample(x))[:, :, 2:-2]).relu()


@torch.no_grad()
@pytest.mark.parametrize("bands", [1, 4, 13])
def test_an_rgb_net_and_one_of_other_bands(bands):
    rgb, other = resnet((1, 1)), resnet((1, 1), seed=1, inputs=bands)
    exact = [{"match": "conv1", "in_channels": {"rescale": "exact"}}]
    report = cw.transfer_model_(other, rgb, rules=exact)
    assert [tensor.name for tensor in report.changed] == ["conv1.weight"]
    x = torch.randn(2, 3, 32, 32)
    if bands > 3:
        close(other(x[:, torch.arange(bands) % 3]), rgb(x))
    else:
        close(other(x[:, :1]), rgb(x[:, [0, 0, 0]]))
    back = resnet((1, 1), seed=2)
    cw.transfer_model_(back, other, rules=exact)
    if bands == 13:
        y = torch.randn(2, 3, 32, 32)
        close(back(y), other(y[:, torch.arange(13) * 3 // 13]))


@torch.no_grad()
@pytest.mark.parametrize("wide", [2, 1.5])
def test_a_wider_onet_computes_the_same(wide):
    """Each channel repeated, and each copy's share taken by those that read it: Net2Net (Chen et al., 2016)."""
    torch.manual_seed(0)
    narrow, broad = demo.ONet(), demo.ONet(wide=wide)
    rules = [
        {"match": "*", "out_channels": {"how": "interleave"}},
        {"match": "*", "in_channels": {"how": "interleave", "rescale": "exact"}},
    ]
    report = cw.transfer_model_(broad, narrow, rules=rules)
    x = torch.rand(3, 3, 48, 48)
    torch.testing.assert_close(broad(x), narrow(x), rtol=1e-4, atol=1e-5)
    assert report.unchanged == 3, "the biases of the heads"


@torch.no_grad()
def test_a_wider_onet_by_default_begins_with_the_narrow_one():
    torch.manual_seed(0)
    narrow, broad = demo.ONet(), demo.ONet(wide=1.5)
    own = copy.deepcopy(broad.state_dict())
    cw.transfer_model_(broad, narrow)
    assert_same_bits(broad.conv1.weight[:32], narrow.conv1.weight)
    assert_same_bits(broad.conv1.weight[32:], own["conv1.weight"][32:])
    assert_same_bits(broad.prelu4.weight, torch.cat([narrow.prelu4.weight, own["prelu4.weight"][128:]]))


def test_state_dicts_and_rules_that_name_them():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    state = {f"module.{name}": tensor.clone() for name, tensor in net.state_dict().items()}
    target = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"rename them with match 're:module\\\.\(\.\*\)' and rename '\\1'$"):
        cw.transfer_model_(target, state)
    rules = [{"match": "re:module\\.(.*)", "rename": "\\1"}, {"match": "module.0", "in_channels": {"how": "zeros"}}]
    report = cw.transfer_model_(target, state, rules=rules)
    assert report.changed[0].how == "from module.0.weight, in_channels 3 -> 4 zeros"
    assert target[0].weight[:, 3].count_nonzero() == 0


def test_optimizers_go_on():
    rgb, other = resnet((1,)), resnet((1,), seed=1, inputs=5)
    optimizers = torch.optim.SGD(other.parameters(), 0.01, momentum=0.9), torch.optim.Adam(other.parameters())
    identities = [id(parameter) for parameter in other.parameters()]
    for _ in range(2):
        cw.transfer_model_(other, rgb)
        before = [parameter.detach().clone() for parameter in other.parameters()]
        for optimizer in optimizers:
            optimizer.zero_grad()
            other(torch.randn(2, 5, 16, 16)).square().sum().backward()
            optimizer.step()
        assert all((now != old).any() for now, old in zip(other.parameters(), before, strict=True))
    assert identities == [id(parameter) for parameter in other.parameters()]


def test_plans_on_the_meta_device():
    with torch.device("meta"):
        source, target = resnet((1,)), resnet((1,), inputs=13)
    for result in (cw.plan(source, like=target), cw.transfer_model_(target, source)):
        assert [(tensor.name, tensor.target.shape) for tensor in result.changed] == [("conv1.weight", (4, 13, 7, 7))]
    assert result.notes[-1].endswith("planned only, nothing was written")
    real = resnet((1,), inputs=13)
    expected = cw.plan(source, like=real)
    before = copy.deepcopy(real.state_dict())
    with pytest.raises(
        ValueError, match=r"^transfer_model_: conv1.weight of source ResNet must hold data, got a meta tensor"
    ):
        cw.transfer_model_(real, source)
    for name, tensor in real.state_dict().items():
        assert_same_bits(tensor, before[name])
    assert cw.transfer_model_(real, resnet((1,))).tensors == expected.tensors


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_are_one():
    target, value = Tied(), torch.randn(6, 4)
    cw.transfer_model_(target, {"embed.weight": value})
    assert torch.equal(target.head.weight, value)
    cw.transfer_model_(target, {"embed.weight": value + 1, "head.weight": value + 1})
    assert torch.equal(target.head.weight, value + 1)
    with pytest.raises(
        ValueError, match=r"^transfer_model_: head.weight of target Tied must be fitted as embed.weight is, with equal"
    ):
        cw.transfer_model_(target, {"embed.weight": value, "head.weight": -value})
    assert torch.equal(target.head.weight, value + 1)


def test_tied_weights_are_asked_for_alike():
    source, target = Tied(), Tied()
    for rules in (
        [{"match": "embed.weight", "in_channels": {"select": [3, 2, 1, 0]}}],
        [{"match": "embed.weight", "new": "zeros"}],
        [{"match": "embed", "new": {"how": "normal"}}, {"match": "head", "new": "zeros"}],
    ):
        with pytest.raises(ValueError, match=r"because the two are one tensor, got .*; ask for both alike$"):
            cw.transfer_model_(target, source, rules=rules)
    cw.transfer_model_(target, source, rules=[{"match": "*", "in_channels": {"select": [3, 2, 1, 0]}}])
    assert torch.equal(target.embed.weight, source.embed.weight.flip(1))
    target.head.weight = nn.Parameter(target.embed.weight.data)
    with pytest.raises(ValueError, match="because the two are one tensor"):
        cw.transfer_model_(target, {"embed.weight": torch.ones(6, 4), "head.weight": torch.zeros(6, 4)})
    target.head.weight = nn.Parameter(target.embed.weight.data.view(4, 6)[:3])
    with pytest.raises(ValueError, match=r"head.weight of target Tied must not share memory with embed.weight"):
        cw.transfer_model_(target, {"embed.weight": torch.ones(6, 4), "head.weight": torch.zeros(3, 6)})


def test_what_is_written_is_not_read_under_another_name():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    first, second = net[0].weight.clone(), net[1].weight.clone()
    swapped = {"0.weight": net[1].weight.detach(), "1.weight": net[0].weight.detach()}
    with pytest.raises(
        ValueError, match=r"must not share memory with .* of target Sequential, got views of one storage"
    ):
        cw.transfer_model_(net, swapped)
    assert torch.equal(net[0].weight, first)
    cw.transfer_model_(net, {name: tensor.clone() for name, tensor in swapped.items()})
    assert torch.equal(net[0].weight, second)


@pytest.mark.parametrize(("channels", "multiplier"), [(4, 1), (12, 1), (4, 2), (12, 2)])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_module_and_its_state_dict_give_the_same(kind, channels, multiplier):
    """Of a depthwise layer, too, of whose groups a state dict does not tell."""
    source = kind(8, 8 * multiplier, 3, groups=8)
    targets = [kind(channels, channels * multiplier, 3, groups=channels) for _ in range(2)]
    targets[1].load_state_dict(targets[0].state_dict())
    by_module = cw.transfer_model_(targets[0], source)
    by_dict = cw.transfer_model_(targets[1], source.state_dict())
    assert [tensor.how for tensor in by_module.changed] == [tensor.how for tensor in by_dict.changed]
    for name, tensor in targets[0].state_dict().items():
        assert_same_bits(tensor, targets[1].state_dict()[name])
    assert_same_bits(targets[0].weight[: min(8, channels)], source.weight[: min(8, channels)])


def test_a_norm_behind_a_grouped_layer_follows_where_a_rule_says_so():
    source = nn.Sequential(nn.Conv2d(8, 8, 1, groups=2), nn.BatchNorm2d(8))
    source[1].running_mean.copy_(torch.arange(8.0))
    target = nn.Sequential(nn.Conv2d(8, 4, 1, groups=2), nn.BatchNorm2d(4))
    note = (
        "output channels are fitted inside groups; a layer behind them whose own channels are to follow needs a rule "
    )
    assert cw.transfer_model_(target, source).notes == (note + "with the same groups: 0.weight",)
    assert target[1].running_mean.tolist() == [0, 1, 2, 3]
    cw.transfer_model_(target, source, rules=[{"match": "1", "groups": 2}])
    assert target[1].running_mean.tolist() == [0, 1, 4, 5]


def test_a_late_initialiser_or_buffer_refuses_before_anything_is_written():
    source, target = (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2))
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError, match=r"mean and std for 1\.weight must be finite in float32"):
        cw.transfer_model_(target, source, rules=[{"match": "1.weight", "new": {"how": "normal", "std": 1e300}}])
    for net in (source, target):
        net.register_buffer("deep", torch.zeros([1] * 9))
    with pytest.raises(
        ValueError, match="deep of target Sequential must have at most 8 dimensions to be written, got 9"
    ):
        cw.transfer_model_(target, source)
    for name, tensor in before.items():
        assert_same_bits(target.state_dict()[name], tensor)


class Odd(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.lstm, self.scale = nn.LSTM(3, size), nn.Parameter(torch.ones(2, size))
        self.register_buffer("mask", torch.ones(size), persistent=False)


def test_layers_that_are_not_known_need_a_rule():
    source, target = Odd(4), Odd(5)
    with pytest.raises(ValueError, match=r"must have the shape of the target's, whose layer's channels are not known"):
        cw.transfer_model_(target, source)
    rules = [{"match": "scale", "in_channels": {"how": "zeros"}}, {"match": "lstm.*", "drop": True}]
    report = cw.transfer_model_(target, source, rules=[*rules, {"match": "lstm.*", "new": "keep"}])
    assert target.scale.tolist() == [[1, 1, 1, 1, 0]] * 2
    assert len(report.dropped) == 4
    cw.transfer_model_(Odd(4), source)


REFUSED = [
    (3, {}, TypeError, "target must be a torch.nn.Module, got int"),
    (nn.Linear(2, 2), 3, TypeError, "source must be a module or a dict of names and tensors, got int"),
    (
        nn.Linear(2, 2),
        {"a": {}},
        TypeError,
        "source must hold tensors under names, got dict under 'a'; pass the state dict",
    ),
    (nn.Linear(2, 2), {"state_dict": 3}, TypeError, "source must hold tensors under names, got int under 'state_dict'"),
    (
        nn.Linear(2, 2),
        {},
        ValueError,
        "source must have a tensor for each of target Linear, got none for weight and 1 m",
    ),
    (nn.Linear(2, 2), nn.Conv1d(2, 2, 3), ValueError, "kernel_size of weight must say how where width changes, got 3"),
]


@pytest.mark.parametrize(("target", "source", "error", "message"), REFUSED)
def test_what_is_refused(target, source, error, message):
    with pytest.raises(error, match=f"^transfer_model_: {re.escape(message)}") as caught:
        cw.transfer_model_(target, source)
    assert "\n" not in str(caught.value)


def test_a_refusal_late_in_the_model_has_written_nothing():
    source, target = (
        nn.Sequential(nn.Linear(2, 2), nn.Conv2d(2, 2, 5)),
        nn.Sequential(nn.Linear(2, 2), nn.Conv2d(2, 2, 3)),
    )
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError, match=r"kernel_size of 1\.weight must say how"):
        cw.transfer_model_(target, source)
    with torch.inference_mode():
        target[1] = nn.Conv2d(2, 2, 5)
    with pytest.raises(ValueError, match=r"1\.weight of target Sequential must not be an inference tensor"):
        cw.transfer_model_(target, source)
    assert_same_bits(target[0].weight.detach(), before["0.weight"])


def test_rules_of_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(CheckpointError, match=r"^transfer_model_: rules must be a readable TOML file, got "):
        cw.transfer_model_(nn.Linear(2, 2), nn.Linear(2, 2), rules=tmp_path / "none.toml")
