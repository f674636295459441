"""One layer's weights in another: what the rescaling promises, that training goes on, what is refused."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from bits import assert_same_bits
from torch import nn
from torch.nn import functional as F

import convweights as cw

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KINDS = [(kind, groups) for kind in (*CONVOLUTIONS, *TRANSPOSED) for groups in (1, 2)] + [(nn.Linear, 1)]
IDS = [f"{kind.__name__}-{groups}" for kind, groups in KINDS]


def make(kind, inputs, outputs, groups=1, kernel=3, **more):
    if kind is nn.Linear:
        return nn.Linear(inputs, outputs, **more)
    return kind(inputs, outputs, kernel, groups=groups, **more)


def images(kind, channels, batch=2):
    torch.manual_seed(1)
    if kind is nn.Linear:
        return torch.randn(batch, channels)
    return torch.randn(batch, channels, *[5] * (1 + (*CONVOLUTIONS, *TRANSPOSED).index(kind) % 3))


def in_groups(x, groups, index):
    """The channels at ``index`` of each group."""
    return x.unflatten(1, (groups, -1))[:, :, index].flatten(1, 2)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["tile", "interleave"])
@pytest.mark.parametrize(("kind", "groups"), KINDS, ids=IDS)
def test_more_inputs_that_repeat_give_the_same_output(kind, groups, how):
    source, target = make(kind, 4 * groups, 6, groups), make(kind, 6 * groups, 6, groups)
    cw.transfer_layer_(target, source, in_channels=how, rescale="exact")
    j, x = torch.arange(6), images(kind, 4 * groups)
    close(target(in_groups(x, groups, j % 4 if how == "tile" else j * 4 // 6)), source(x))


@pytest.mark.parametrize(("kind", "groups"), KINDS, ids=IDS)
def test_more_inputs_by_default_are_tiled_uniformly(kind, groups):
    source, target = make(kind, 3 * groups, 6, groups), make(kind, 6 * groups, 6, groups)
    report = cw.transfer_layer_(target, source)
    x = images(kind, 3 * groups)
    close(target(in_groups(x, groups, [0, 1, 2, 0, 1, 2])), source(x))
    assert [tensor.scale for tensor in report.changed] == ["3/6"]
    assert_same_bits(target.bias.detach(), source.bias.detach())


@pytest.mark.parametrize("how", ["auto", "strided"])
@pytest.mark.parametrize(("kind", "groups"), KINDS, ids=IDS)
def test_fewer_inputs_stand_for_equal_ones(kind, groups, how):
    source, target = make(kind, 6 * groups, 4, groups), make(kind, 2 * groups, 4, groups)
    report = cw.transfer_layer_(target, source, in_channels=how)
    x, j = images(kind, 2 * groups), torch.arange(6)
    close(target(x), source(in_groups(x, groups, j // 3 if how == "auto" else j % 2)))
    assert report.changed[0].scale == "sum"


@pytest.mark.parametrize(("kind", "groups"), KINDS, ids=IDS)
def test_fewer_outputs_are_the_first(kind, groups):
    source, target = make(kind, 4, 6 * groups, groups), make(kind, 4, 4 * groups, groups)
    cw.transfer_layer_(target, source)
    x = images(kind, 4)
    close(target(x), in_groups(source(x), groups, range(4)))
    cw.transfer_layer_(target, source, out_channels=[5, 0, 0, -2])
    close(target(x), in_groups(source(x), groups, [5, 0, 0, -2]))


@pytest.mark.parametrize("how", ["auto", "zeros", "tile", "init"])
@pytest.mark.parametrize(("kind", "groups"), KINDS, ids=IDS)
def test_more_outputs(kind, groups, how):
    source, target = make(kind, 4, 2 * groups, groups), make(kind, 4, 5 * groups, groups)
    x = images(kind, 4)
    own = target(x)
    drawn = {"init": "xavier_uniform", "seed": 3, "name": "up"} if how == "init" else {"out_channels": how}
    report = cw.transfer_layer_(target, source, **drawn)
    found = target(x)
    close(in_groups(found, groups, [0, 1]), source(x))
    new = in_groups(found, groups, [2, 3, 4])
    if how == "auto":
        close(new, in_groups(own, groups, [2, 3, 4]))
    elif how == "zeros":
        assert new.count_nonzero() == 0
    elif how == "tile":
        close(new, in_groups(source(x), groups, [0, 1, 0]))
    else:
        fresh = make(kind, 4, 5 * groups, groups)
        cw.init.xavier_uniform_(fresh.weight, seed=3, stream="up.weight")
        nn.init.zeros_(fresh.bias)
        close(new, in_groups(fresh(x), groups, [2, 3, 4]))
    assert [tensor.name for tensor in report.changed] == ["weight", "bias"]


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("kind", [*CONVOLUTIONS, *TRANSPOSED])
def test_depthwise_layers_change_their_groups(kind, multiplier):
    small, large = (make(kind, c, multiplier * c, c) for c in (4, 6))
    x = images(kind, 6)
    own = large(x)
    report = cw.transfer_layer_(large, small)
    assert report.changed[0].how == "groups 4 -> 6 keep"
    close(large(x)[:, : 4 * multiplier], small(x[:, :4]))
    close(large(x)[:, 4 * multiplier :], own[:, 4 * multiplier :])
    cw.transfer_layer_(large, small, out_channels="tile")
    again = in_groups(small(x[:, [0, 1, 2, 3]]), 4, range(multiplier))
    close(large(x[:, [0, 1, 2, 3, 0, 1]]), torch.cat([again, again[:, : 2 * multiplier]], 1))
    if multiplier == 1:
        cw.transfer_layer_(large, small, out_channels=[3, 2, 1, 0, 0, -1])
        close(large(x[:, [3, 2, 1, 0, 0, 3]]), small(x[:, :4])[:, [3, 2, 1, 0, 0, 3]])
    other = make(kind, 3, 3 * multiplier, 3)
    cw.transfer_layer_(other, small)
    close(other(x[:, :3]), small(x[:, :4])[:, : 3 * multiplier])


@pytest.mark.parametrize("kind", [*CONVOLUTIONS, *TRANSPOSED])
def test_a_larger_kernel_round_the_centre_computes_the_same(kind):
    source, target = make(kind, 3, 4, kernel=3, padding=1), make(kind, 3, 4, kernel=5, padding=2)
    cw.transfer_layer_(target, source, kernel="center")
    x = images(kind, 3)
    close(target(x), source(x))
    back = make(kind, 3, 4)
    cw.transfer_layer_(back, target, kernel="center")
    assert_same_bits(back.weight.detach(), source.weight.detach())


def test_kernels_of_even_and_odd_size_round_the_centre_down():
    """3 of 4: 0, 1, 2, as floor((4 - 3) / 2) is 0; 4 of 3: one more in front, as floor((3 - 4) / 2) is -1."""
    four, three = nn.Conv1d(1, 1, 4, bias=False), nn.Conv1d(1, 1, 3, bias=False)
    cw.assign_(four.weight, torch.tensor([[[1.0, 2, 3, 4]]]))
    cw.transfer_layer_(three, four, kernel="center")
    assert three.weight.tolist() == [[[1, 2, 3]]]
    cw.transfer_layer_(four, three, kernel="center")
    assert four.weight.tolist() == [[[0, 1, 2, 3]]]


def test_kernels_are_resized_as_interpolate_does():
    source, target = nn.Conv2d(3, 4, (3, 5)), nn.Conv2d(3, 4, (5, 4))
    cw.transfer_layer_(target, source, kernel="resize")
    expected = F.interpolate(source.weight.detach(), (5, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(target.weight.detach(), expected, rtol=1e-6, atol=1e-7)


def test_kernels_that_begin_anew():
    source, target = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 5)
    report = cw.transfer_layer_(target, source, kernel="init", seed=4, name="stem")
    expected = cw.init.kaiming_normal_(torch.empty(4, 3, 5, 5), seed=4, stream="stem.weight")
    assert_same_bits(target.weight.detach(), expected)
    assert_same_bits(target.bias.detach(), source.bias.detach())
    assert (report.changed[0].how, report.changed[0].new) == ("kernel_size 3x3 -> 5x5 init seed 4", 1.0)
    same = nn.Conv2d(1, 4, 3)
    cw.transfer_layer_(same, source, kernel="init", name="stem")
    torch.testing.assert_close(same.weight.detach(), source.weight.detach().sum(1, keepdim=True))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("flat", "deep"), [(nn.Conv2d, nn.Conv3d), (nn.ConvTranspose2d, nn.ConvTranspose3d)])
def test_inflation_and_back(flat, deep, groups):
    source, target = flat(4, 6, 3, groups=groups), deep(4, 6, (5, 3, 3), groups=groups)
    x = images(flat, 4)
    report = cw.transfer_layer_(target, source)
    assert (report.changed[0].how, report.changed[0].scale) == ("depth 1 -> 5 mean", "1/5")
    still = x.unsqueeze(2).expand(-1, -1, 5, -1, -1)
    middle = 4 if flat is nn.ConvTranspose2d else 0
    close(target(still)[:, :, middle], source(x))
    back = flat(4, 6, 3, groups=groups)
    assert cw.transfer_layer_(back, target).changed[0].scale == "sum"
    close(back(x), source(x))
    cw.transfer_layer_(target, source, depth="center")
    assert_same_bits(target.weight.detach()[:, :, 2], source.weight.detach())
    assert target.weight[:, :, [0, 1, 3, 4]].count_nonzero() == 0
    cw.transfer_layer_(back, target, depth="center")
    assert_same_bits(back.weight.detach(), source.weight.detach())


def test_a_linear_layer_is_a_1x1_convolution():
    linear, conv = nn.Linear(6, 4), nn.Conv2d(6, 4, 1)
    cw.transfer_layer_(conv, linear)
    x = images(nn.Linear, 6)
    close(conv(x[:, :, None, None])[:, :, 0, 0], linear(x))
    back = nn.Linear(6, 4)
    cw.transfer_layer_(back, conv)
    assert_same_bits(back.weight.detach(), linear.weight.detach())


@pytest.mark.parametrize(
    "make_norm",
    [
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        lambda c: nn.GroupNorm(2, c),
        nn.LayerNorm,
        nn.RMSNorm,
        lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True),
    ],
)
def test_normalisations_and_their_buffers(make_norm):
    source, small, large = make_norm(8), make_norm(6), make_norm(10)
    for tensor in source.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 1 if tensor.is_floating_point() else torch.tensor(7))
    for net in (small, large):
        cw.transfer_layer_(net, source)
    for name, tensor in source.state_dict().items():
        if not tensor.ndim:
            assert small.state_dict()[name] == large.state_dict()[name] == 7
            continue
        assert_same_bits(small.state_dict()[name], tensor[:6])
        assert_same_bits(large.state_dict()[name], torch.cat([tensor, make_norm(10).state_dict()[name][8:]]))


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.Adam(p)])
@pytest.mark.parametrize(("kind", "groups"), KINDS, ids=IDS)
def test_training_goes_on(kind, groups, optimizer):
    source, target = make(kind, 2, 4, groups), make(kind, 4, 6, groups)
    parameters = list(target.parameters())
    steps = optimizer(parameters)
    x = images(kind, 4)

    def step():
        steps.zero_grad()
        target(x).square().mean().backward()
        steps.step()

    step()
    cw.transfer_layer_(target, source)
    assert all(now is before for now, before in zip(target.parameters(), parameters, strict=True))
    assert all(parameter.requires_grad for parameter in parameters)
    before = [parameter.detach().clone() for parameter in parameters]
    step()
    assert all(parameter.grad.count_nonzero() for parameter in parameters)
    assert all((parameter != old).any() for parameter, old in zip(parameters, before, strict=True))


def test_dtype_memory_format_and_frozen_parameters_stay():
    source = nn.Conv2d(3, 4, 3)
    target = nn.Conv2d(6, 4, 3, dtype=torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_(False)
    report = cw.transfer_layer_(target, source)
    assert (target.weight.dtype, target.weight.requires_grad) == (torch.bfloat16, False)
    assert target.weight.is_contiguous(memory_format=torch.channels_last)
    assert_same_bits(target.weight[:, :3], (source.weight / 2).bfloat16())
    assert report.changed[0].how == "in_channels 3 -> 6 tile, cast to bfloat16"


def test_values_that_overflow_are_said():
    source = nn.Linear(2, 2)
    cw.assign_(source.weight, 1e6)
    assert cw.transfer_layer_(nn.Linear(2, 2).half(), source).notes == (
        "finite values became infinite in the cast of weight",
    )


def test_a_graph_over_the_old_weights_is_stale():
    source, target = nn.Linear(2, 3), nn.Linear(4, 3)
    loss = target(torch.ones(1, 4, requires_grad=True)).square().sum()
    cw.transfer_layer_(target, source)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("target", "source", "bias", "expected"),
    [(False, True, "drop", None), (True, False, "zeros", "zeros"), (True, False, "keep", "own")],
)
def test_a_bias_on_one_side_only(target, source, bias, expected):
    to, of = nn.Conv2d(3, 4, 3, bias=target), nn.Conv2d(3, 4, 3, bias=source)
    own = to.bias.detach().clone() if target else None
    for other in {"error", "drop", "zeros", "keep"} - {bias} - ({"zeros", "keep"} if target else set()):
        with pytest.raises(ValueError, match=r"^transfer_layer_: bias must be on both sides, got .*; pass bias="):
            cw.transfer_layer_(to, of, bias=other)
    report = cw.transfer_layer_(to, of, bias=bias)
    if expected is None:
        assert [(info.name, why) for info, why in report.dropped] == [("bias", "dropped")]
    else:
        assert [(tensor.name, tensor.how) for tensor in report.changed] == [
            ("bias", "zeros" if bias == "zeros" else "kept")
        ]
        assert torch.equal(to.bias, torch.zeros(4) if expected == "zeros" else own)


REFUSED = [
    (
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(3, 8, 5),
        {},
        "kernel_size of weight must say how where height changes, got 5 and 3",
    ),
    (nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, (3, 4)), {}, "kernel_size of weight must say how where width changes"),
    (
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(4, 8, 3, groups=2),
        {},
        "shape of weight must have the target's number of",
    ),
    (nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 3, 3), {}, "source must be transposed where the target is, and only"),
    (
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        {},
        "names of source BatchNorm2d must be in target Conv2d, got running_mean",
    ),
    (
        nn.Linear(3, 8),
        nn.BatchNorm1d(8, track_running_stats=False),
        {},
        "shape of weight must have the dimensions of the",
    ),
    (
        nn.Conv2d(3, 8, 3),
        nn.Sequential(nn.Conv2d(3, 8, 3)),
        {},
        "source must be one layer with weights of its own, got",
    ),
    (nn.Conv2d(3, 8, 3), nn.ReLU(), {}, "source must be one layer with weights of its own, got ReLU; transfer_model_"),
    (nn.Conv2d(4, 8, 3), nn.Conv2d(3, 8, 3), {"in_channels": "blocks"}, "in_channels of weight must be 'tile', 'inter"),
    (
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(3, 8, 3),
        {"in_channels": [0, 1, 2]},
        "in_channels of weight must agree with the temp",
    ),
    (nn.Conv2d(4, 8, 3), nn.Conv2d(3, 8, 3), {"in_channels": [0, 1, 2, 3]}, "in_channels of weight must contain every"),
    (
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(3, 8, 3),
        {"in_channels": "repeat"},
        "how in in_channels must be 'tile', 'interleave",
    ),
    (
        nn.Conv2d(3, 9, 3),
        nn.Conv2d(3, 8, 3),
        {"init": "normal"},
        "name must be given where new values are drawn, or ev",
    ),
    (nn.Conv2d(3, 9, 3), nn.Conv2d(3, 8, 3), {"init": "gauss"}, "init must be 'normal' or"),
    (
        nn.Conv2d(3, 9, 3),
        nn.Conv2d(3, 8, 3),
        {"kernel": "crop"},
        "kernel must be 'error' or 'center' or 'resize' or 'ini",
    ),
    (
        nn.Conv2d(3, 9, 3),
        nn.Conv2d(3, 8, 3),
        {"rescale": "sum"},
        "rescale must be 'none' or 'uniform' or 'exact', got 's",
    ),
    (
        nn.Conv2d(3, 9, 3),
        nn.Conv2d(3, 8, 3),
        {"bias": None},
        "bias must be 'error' or 'drop' or 'zeros' or 'keep', got",
    ),
    (nn.Conv2d(3, 9, 3), nn.Conv2d(3, 8, 3), {"seed": -1}, "seed must lie in 0 .. 2^64 - 1, got -1"),
    (
        nn.LayerNorm((2, 3)),
        nn.LayerNorm((2, 4)),
        {},
        "weight must have the shape of the target's, whose layer's channe",
    ),
    (
        nn.LazyConv2d(3, 3),
        nn.Conv2d(3, 3, 3),
        {},
        "target must be initialised, got the lazy weight of LazyConv2d; run th",
    ),
    (
        nn.BatchNorm2d(3),
        nn.BatchNorm2d(3),
        {"in_channels": [2, 1, 0]},
        "in_channels must be left out for a layer that has",
    ),
    (nn.Linear(2, 2), nn.Linear(2, 2).to("meta"), {}, "weight of source Linear must hold data, got a meta tensor"),
]


@pytest.mark.parametrize(("target", "source", "more", "message"), REFUSED)
def test_what_is_refused_changes_nothing(target, source, more, message):
    lazy = isinstance(target, nn.LazyConv2d)
    before = None if lazy else copy.deepcopy(target.state_dict())
    with pytest.raises((ValueError, TypeError), match=f"^transfer_layer_: {re.escape(message)}") as caught:
        cw.transfer_layer_(target, source, **more)
    assert "\n" not in str(caught.value)
    if before is not None:
        for name, tensor in target.state_dict().items():
            assert_same_bits(tensor, before[name])


def test_layers_of_which_there_is_no_weight():
    """What is asked holds for all that a layer has, on either side."""
    source = nn.BatchNorm2d(3, affine=False)
    source.running_mean.copy_(torch.tensor([1.0, 2, 3]))
    target = nn.BatchNorm2d(3, affine=False)
    cw.transfer_layer_(target, source, out_channels=[2, 1, 0])
    assert target.running_mean.tolist() == [3, 2, 1]
    assert cw.adapt_layer(source, out_channels={"select": [2, 1]}).running_mean.tolist() == [3, 2]
    assert cw.adapt_layer(source, out_channels={"to": 4, "how": "tile"}).running_mean.tolist() == [1, 2, 3, 1]
    words = nn.Embedding(3, 2)
    cw.transfer_layer_(words, table := nn.Embedding(3, 2), out_channels=[2, 1, 0])
    assert torch.equal(words.weight, table.weight.flip(0))


def test_a_linear_layer_in_the_middle_of_a_3d_kernel():
    conv, linear = nn.Conv3d(3, 4, 3), nn.Linear(3, 4)
    cw.transfer_layer_(conv, linear, depth="center", kernel="center")
    assert torch.equal(conv.weight[:, :, 1, 1, 1], linear.weight)
    assert conv.weight.count_nonzero() == linear.weight.numel()


@pytest.mark.parametrize("role", ["in_channels", "out_channels"])
def test_adapt_selects_channels_of_a_depthwise_layer(role):
    layer = nn.Conv2d(4, 4, 1, groups=4)
    for index in ([-1], [2], [3, 2, 1, 0], [0, 0, 1, 1, 2, 2]):
        new = cw.adapt_layer(layer, **{role: {"select": index}})
        assert torch.equal(new.weight, layer.weight[index])
        assert torch.equal(new.bias, layer.bias[index])
    assert cw.adapt_layer(layer, **{role: {"to": 8, "how": "tile"}}).weight[4:].equal(layer.weight)


def test_adapt_keeps_several_dtypes():
    layer = nn.Conv2d(3, 4, 3, dtype=torch.bfloat16)
    layer.bias = nn.Parameter(torch.full((4,), 1.001))
    new = cw.adapt_layer(layer, in_channels=1)
    assert (new.weight.dtype, new.bias.dtype, new.bias[0].item()) == (
        torch.bfloat16,
        torch.float32,
        layer.bias[0].item(),
    )


def test_sums_that_overflow_are_said():
    source = nn.Conv2d(3, 1, 1, dtype=torch.float16)
    cw.assign_(source.weight, 60000)
    assert cw.transfer_layer_(nn.Conv2d(1, 1, 1, dtype=torch.float16), source).notes == (
        "finite values became infinite in the cast of weight",
    )


def test_a_layer_is_not_written_into_itself():
    layer = nn.Conv2d(3, 4, 3)
    with pytest.raises(
        ValueError, match="must not share memory with weight of target Conv2d, got views of one storage"
    ):
        cw.transfer_layer_(layer, layer)


# --------------------------------------------------------------------------------------------------------- adapt_layer


@pytest.mark.parametrize(("kind", "groups"), KINDS, ids=IDS)
def test_adapt_makes_a_new_layer(kind, groups):
    layer = make(kind, 4, 6, groups).eval()
    layer.bias.requires_grad_(False)
    before = copy.deepcopy(layer.state_dict())
    new = cw.adapt_layer(layer, in_channels=2, out_channels=4)
    assert (type(new), new.training, new.weight.requires_grad, new.bias.requires_grad) == (kind, False, True, False)
    x = images(kind, 2)
    pairs = in_groups(x, groups, [0] * (4 // groups) if groups == 2 else [0, 0, 1, 1])
    close(new(x), in_groups(layer(pairs), groups, range(4 // groups)))
    for name, tensor in layer.state_dict().items():
        assert_same_bits(tensor, before[name])


@pytest.mark.parametrize("kind", [*CONVOLUTIONS, *TRANSPOSED])
def test_adapt_keeps_the_size_of_the_output(kind):
    layer = make(kind, 3, 4, kernel=3, stride=2, padding=1, dilation=2)
    new = cw.adapt_layer(layer, kernel_size=5)
    x = torch.cat([images(kind, 3)] * 2, -1)
    close(new(x), layer(x))
    assert new.padding == (3,) * len(layer.kernel_size)
    with pytest.raises(ValueError, match="padding must be given where kernels of 3 become 1"):
        cw.adapt_layer(layer, kernel_size=1)
    assert set(cw.adapt_layer(layer, kernel_size=1, padding=0).padding) in ({0}, {(0,)})


@pytest.mark.parametrize("kind", [*CONVOLUTIONS, *TRANSPOSED])
def test_adapt_a_depthwise_layer(kind):
    layer = make(kind, 4, 8, 4)
    new = cw.adapt_layer(layer, in_channels=3)
    assert (new.in_channels, new.out_channels, new.groups) == (3, 6, 3)
    x = images(kind, 4)
    close(new(x[:, :3]), layer(x)[:, :6])
    assert cw.adapt_layer(layer, out_channels={"to": 12, "how": "tile"}).groups == 6
    with pytest.raises(
        ValueError, match=r"^adapt_layer: out_channels must be 2 a group of a depthwise layer of 3 input"
    ):
        cw.adapt_layer(layer, in_channels=3, out_channels=9)


@pytest.mark.parametrize(
    ("norm", "name"),
    [
        (nn.BatchNorm2d(8, eps=1e-3), "num_features"),
        (nn.GroupNorm(2, 8), "num_channels"),
        (nn.LayerNorm(8), "normalized_shape"),
        (nn.RMSNorm(8), "normalized_shape"),
        (nn.InstanceNorm1d(8), "num_features"),
    ],
)
def test_adapt_a_normalisation(norm, name):
    new = cw.adapt_layer(norm, out_channels=6)
    assert getattr(new, name) in (6, (6,))
    assert new.eps == norm.eps
    assert {n: t[:6].tolist() if t.ndim else t.item() for n, t in norm.state_dict().items()} == {
        n: t.tolist() if t.ndim else t.item() for n, t in new.state_dict().items()
    }


ADAPT = [
    (
        nn.Conv2d(3, 8, 3),
        {"out_channels": 9},
        "out_channels must say how where they grow, got 9; pass init='kaiming_nor",
    ),
    (nn.Conv2d(4, 8, 3, groups=2), {"in_channels": 3}, "in_channels must be divisible by 2 groups, got 3"),
    (nn.Conv2d(4, 8, 3, groups=2), {"out_channels": 7}, "out_channels must be divisible by 2 groups, got 7"),
    (nn.GroupNorm(2, 8), {"out_channels": 7}, "out_channels must be divisible by 2 groups, got 7"),
    (nn.BatchNorm2d(8), {"in_channels": 7}, "in_channels must be left out for a normalisation, got 7 for BatchNorm2d"),
    (
        nn.LayerNorm((8, 2)),
        {"out_channels": 7},
        "layer must normalise over one dimension to be adapted, got normalized",
    ),
    (nn.Linear(2, 2), {"kernel_size": 3}, "kernel_size must be left out for a layer without a kernel, got Linear"),
    (nn.Conv2d(3, 8, 3), {"kernel_size": (3, 3, 3)}, "kernel_size must be an int or 2 of them, got (3, 3, 3)"),
    (nn.Conv2d(3, 8, 3), {"kernel_size": 0}, "kernel_size must be at least 1, got 0"),
    (nn.Conv2d(3, 8, 3), {"kernel": "error"}, "kernel must be 'center' or 'resize' or 'init', got 'error'"),
    (
        nn.Conv2d(3, 8, 3),
        {"in_channels": "zeros"},
        "in_channels must say how many there are to be, got zeros; such as {",
    ),
    (
        nn.Conv2d(3, 8, 3),
        {"padding": "full"},
        "padding must be 'same' or 'valid', got 'full'",
    ),
    (nn.Conv2d(3, 8, 3), {"padding": (1,)}, "padding must be an int or 2 of them, got (1,)"),
    (nn.Conv2d(3, 8, 3), {"padding": 1.5}, "padding must be an int, got 1.5"),
    (nn.Conv2d(3, 8, 3), {"padding": -1}, "padding must be at least 0, got -1"),
    (nn.ConvTranspose2d(3, 8, 3), {"padding": "same"}, "padding must be an int or 2 of them, got 'same'"),
    (
        nn.Conv2d(3, 8, 3, padding="same"),
        {"kernel_size": 4},
        "padding must be given where 'same' would shift the output",
    ),
    (
        nn.Conv2d(3, 8, 3, stride=2),
        {"padding": "same"},
        "layer must be one that torch can make of these sizes, got Conv2d",
    ),
    (nn.Conv2d(3, 8, 3), {"rescale": "sum"}, "rescale must be 'none' or 'uniform' or 'exact', got 'sum'"),
    (nn.Conv2d(3, 8, 3), {"init": []}, "init must be 'normal' or"),
    (nn.Conv2d(3, 8, 3), {"init": {"how": [1]}}, "init must be 'normal' or"),
    (nn.Conv2d(3, 8, 3), {"in_channels": 0}, "in_channels must be at least 1, got 0"),
    (
        nn.LSTM(3, 8),
        {"in_channels": 4},
        "layer must be a convolution, a Linear or a normalisation of torch.nn, got LSTM",
    ),
]


@pytest.mark.parametrize(("layer", "wanted", "message"), ADAPT)
def test_what_adapt_refuses(layer, wanted, message):
    with pytest.raises((ValueError, TypeError), match=f"^adapt_layer: {re.escape(message)}") as caught:
        cw.adapt_layer(layer, **wanted)
    assert "\n" not in str(caught.value)
