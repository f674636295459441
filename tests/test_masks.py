"""Filters that stay zero through training. Family: exact."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from bits import assert_same_bits
from torch import nn
from torch.nn.utils import prune

import convweights as cw


def net(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).to(device)


def outputs(model: nn.Module, layer: str, x: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *args: found.append(args[-1]))
    model(x)
    handle.remove()
    return found[0]


def test_masked_filters_give_zero(device: str):
    model, x = net(device), torch.randn(2, 3, 8, 8, device=device)
    filters = {"0": [1, -1], "2": torch.tensor([True, False, False, False, True, False], device=device), "7": [0]}
    mask = cw.FilterMask(model, filters)
    before = copy.deepcopy(model.state_dict())
    assert mask.apply_(model) is model
    for name, zero in (("0", [1, 7]), ("2", [0, 4]), ("7", [0])):
        found = outputs(model, name, x)
        assert found[:, zero].count_nonzero() == 0
        kept = [i for i in range(found.shape[1]) if i not in zero]
        assert found[:, kept].abs().amax([0, *range(2, found.ndim)]).count_nonzero() > 0
    assert_same_bits(model[4].weight.detach(), before["4.weight"])
    assert mask.sparsity() == 5 / 19


@pytest.mark.parametrize("p", [1, 2])
def test_by_norm(device: str, p: int):
    model = net(device)
    mask = cw.FilterMask.by_norm(model, 0.3, p=p)
    assert {name: int(zero.sum()) for name, zero in mask.filters.items()} == {"0": 2, "2": 1, "4": 1, "7": 1}
    norms = model[0].weight.detach().flatten(1).norm(p=p, dim=1)
    assert set(mask.filters["0"].nonzero().flatten().tolist()) == set(norms.argsort()[:2].tolist())
    whole = cw.FilterMask.by_norm(model, 0.3, p=p, scope="model")
    assert sum(int(zero.sum()) for zero in whole.filters.values()) == math.floor(0.3 * 23)
    rows = {
        "0": model[0].weight.flatten(1),
        "2": model[2].weight.unflatten(0, (2, 4)).transpose(1, 2).flatten(0, 1).flatten(1),
        "4": model[4].weight.flatten(1),
        "7": model[7].weight,
    }
    score = {name: row.detach().abs().pow(p).mean(1).pow(1 / p) for name, row in rows.items()}
    chosen = torch.cat([score[name][whole.filters[name]] for name in score])
    kept = torch.cat([score[name][~whole.filters[name]] for name in score])
    assert chosen.max() <= kept.min()
    assert set(cw.FilterMask.by_norm(model, 0.5, layers=["4"]).filters) == {"4"}


def test_at_random_is_the_same_everywhere(device: str):
    masks = [cw.FilterMask.at_random(net(where), 0.4, seed=3) for where in ("cpu", device)]
    for name, zero in masks[0].filters.items():
        assert zero.tolist() == masks[1].filters[name].tolist()
        assert int(zero.sum()) == math.floor(0.4 * len(zero))
    other = cw.FilterMask.at_random(net(), 0.4, seed=4)
    assert any(not torch.equal(other.filters[name], zero) for name, zero in masks[0].filters.items())


OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    lambda p: torch.optim.Adam(p, lr=1e-2),
]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, after) -> None:
    for step in steps:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(4, 3, 8, 8, generator=g).to(model[0].weight.device)
        optimizer.zero_grad()
        wanted = torch.randn(4, 5, generator=g).to(x.device)
        (model(x) - wanted).square().mean().backward()
        optimizer.step()
        after()


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_training_for_200_steps(device: str, make):
    """Masked filters are exactly zero after every step, the rest as with masks applied by hand."""
    model = net(device)
    mask = cw.FilterMask.by_norm(model, 0.4)
    by_hand = copy.deepcopy(model)
    optimizer, other = make(model.parameters()), make(by_hand.parameters())
    zero, up = mask.filters["0"], mask.filters["2"]
    grouped = up.reshape(2, 3).repeat_interleave(4, 0)

    def hand() -> None:
        with torch.no_grad():
            by_hand[0].weight[zero] = 0
            by_hand[0].bias[zero] = 0
            by_hand[2].weight[grouped] = 0
            by_hand[2].bias[up] = 0
            by_hand[4].weight[mask.filters["4"]] = 0
            by_hand[7].weight[mask.filters["7"]] = 0
            by_hand[7].bias[mask.filters["7"]] = 0

    def is_zero() -> None:
        assert model[0].weight[zero].count_nonzero() == model[0].bias[zero].count_nonzero() == 0
        assert model[2].weight[grouped].count_nonzero() == model[2].bias[up].count_nonzero() == 0

    handle = mask.keep(model, optimizer)
    hand()
    train(model, optimizer, range(200), is_zero)
    train(by_hand, other, range(200), hand)
    for name, tensor in model.state_dict().items():
        assert_same_bits(tensor, by_hand.state_dict()[name])
    handle.remove()
    cw.assign_(model[0].weight, 1.0)
    train(model, optimizer, range(1), lambda: None)
    assert model[0].weight[zero].count_nonzero() > 0, "the handle lets go"


def test_stopped_and_resumed(device: str):
    whole, first = net(device), net(device)
    for model, ranges in ((whole, [range(20)]), (first, [range(10)])):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        mask = cw.FilterMask.by_norm(model, 0.4)
        mask.keep(model, optimizer)
        for steps in ranges:
            train(model, optimizer, steps, lambda: None)
    saved = copy.deepcopy((first.state_dict(), optimizer.state_dict(), mask.state_dict()))
    again = net(device)
    again.load_state_dict(saved[0])
    optimizer = torch.optim.SGD(again.parameters(), lr=0.05, momentum=0.9)
    optimizer.load_state_dict(saved[1])
    mask = cw.FilterMask.at_random(again, 0.4, seed=9)
    mask.load_state_dict(saved[2])
    mask.keep(again, optimizer)
    train(again, optimizer, range(10, 20), lambda: None)
    for name, tensor in whole.state_dict().items():
        assert_same_bits(tensor, again.state_dict()[name])


def test_to_and_from_torch_prune(device: str):
    model = net(device)
    mask = cw.FilterMask.by_norm(model, 0.4)
    expected = mask.apply_(copy.deepcopy(model))
    assert mask.to_torch_prune(model) is model
    back = cw.FilterMask.from_torch_prune(model)
    assert {name: zero.tolist() for name, zero in back.filters.items()} == {
        name: zero.tolist() for name, zero in mask.filters.items()
    }
    for index in (0, 2, 7):
        for part in ("weight", "bias"):
            prune.remove(model[index], part)
    prune.remove(model[4], "weight")
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)
    other = net(device)
    prune.ln_structured(other[0], "weight", 0.25, n=1, dim=0)
    assert int(cw.FilterMask.from_torch_prune(other).filters["0"].sum()) == 2
    prune.l1_unstructured(other[4], "weight", 0.3)
    with pytest.raises(
        ValueError, match=r"^FilterMask.from_torch_prune: model must mask whole filters, got single elem"
    ):
        cw.FilterMask.from_torch_prune(other)


BAD = [
    (lambda m: cw.FilterMask(m, {}), TypeError, "FilterMask: filters must be a dict of layers and filters, got {}"),
    (
        lambda m: cw.FilterMask(m, {"9": [0]}),
        ValueError,
        "FilterMask: layers must be names of the model's layers, got '9'",
    ),
    (
        lambda m: cw.FilterMask(m, {"1": [0]}),
        TypeError,
        "FilterMask: layers must be convolutions or Linear layers, got ReLU",
    ),
    (lambda m: cw.FilterMask(m, {"0": [8]}), ValueError, "FilterMask: filters of 0 must lie in -8 .. 7, got 8"),
    (
        lambda m: cw.FilterMask(m, {"0": torch.ones(3, dtype=torch.bool)}),
        ValueError,
        "FilterMask: filters of 0 must have one entry for each of 8 filters, got shape (3,)",
    ),
    (
        lambda m: cw.FilterMask(m, {"0": torch.ones(8)}),
        TypeError,
        "FilterMask: filters of 0 must be a bool tensor or integers, got 1.0",
    ),
    (lambda m: cw.FilterMask.by_norm(m, 1.5), ValueError, "FilterMask.by_norm: ratio must lie in 0 .. 1, got 1.5"),
    (
        lambda m: cw.FilterMask.by_norm(m, 1.0),
        ValueError,
        "FilterMask.by_norm: ratio must leave a filter of 0, got 1.0",
    ),
    (lambda m: cw.FilterMask.by_norm(m, "x"), TypeError, "FilterMask.by_norm: ratio must be a number, got 'x'"),
    (lambda m: cw.FilterMask.by_norm(m, 0.5, p=3), ValueError, "FilterMask.by_norm: p must be 1 or 2, got 3"),
    (
        lambda m: cw.FilterMask.by_norm(m, 0.5, scope="all"),
        ValueError,
        "FilterMask.by_norm: scope must be 'layer' or 'mo",
    ),
    (
        lambda m: cw.FilterMask.by_norm(m, 0.5, layers=["0", "0"]),
        ValueError,
        "FilterMask.by_norm: layers must name each layer once, got '0' twice",
    ),
    (
        lambda m: cw.FilterMask.by_norm(nn.ReLU(), 0.5),
        ValueError,
        "FilterMask.by_norm: model must have convolutions or L",
    ),
    (
        lambda m: cw.FilterMask.at_random(m, 0.5, seed=-1),
        ValueError,
        "FilterMask.at_random: seed must lie in 0 .. 2^64 - 1",
    ),
    (
        lambda m: cw.FilterMask.from_torch_prune(m),
        ValueError,
        "FilterMask.from_torch_prune: model must hold layers that t",
    ),
    (
        lambda m: cw.FilterMask(m, {"0": [1]}).load_state_dict({"1": torch.ones(8, dtype=torch.bool)}),
        ValueError,
        "FilterMask.load_state_dict: state must name the layers 0, got 1",
    ),
    (
        lambda m: cw.FilterMask(m, {"0": [1]}).load_state_dict({"0": torch.ones(8)}),
        ValueError,
        "FilterMask.load_state_dict: state of 0 must be bool of shape (8,), got float32 (8,)",
    ),
    (
        lambda m: cw.FilterMask(m, {"0": [1]}).apply_(nn.Sequential(nn.Conv2d(3, 4, 3))),
        ValueError,
        "FilterMask.apply_: layer '0' must have 8 filters, got 4",
    ),
    (
        lambda m: cw.FilterMask(m, {"0": [1], "module.0": [2]}),
        ValueError,
        "FilterMask: layers must name each layer once, got 'module.0' twice",
    ),
    (
        lambda m: cw.FilterMask(tied(copy.deepcopy(m)), {"4": [1], "last": [2]}),
        ValueError,
        "FilterMask: filters must name layers with weights of their own, got 'last' with that of '4'",
    ),
    (lambda m: cw.FilterMask(5, {"0": [1]}), TypeError, "FilterMask: model must be a torch.nn.Module, got int"),
    (lambda m: cw.FilterMask.by_norm(m, 0.5, p="2"), ValueError, "FilterMask.by_norm: p must be 1 or 2, got '2'"),
    (lambda m: cw.FilterMask.by_norm(m, 0.5, layers=[]), ValueError, "FilterMask.by_norm: layers must name a layer,"),
    (lambda m: cw.FilterMask.by_norm(m, 0.5, layers=5), TypeError, "FilterMask.by_norm: layers must be names of"),
    (
        lambda m: cw.FilterMask.by_norm(m, 0.5, layers=[["0"]]),
        ValueError,
        "FilterMask.by_norm: layers must be names of the model's layers, got ['0']",
    ),
    (
        lambda m: cw.FilterMask.by_norm(nn.Sequential(nn.LazyConv2d(4, 3)), 0.5),
        ValueError,
        "FilterMask.by_norm: weight of layer '0' must be initialised, got a parameter of a lazy module",
    ),
    (
        lambda m: cw.FilterMask.by_norm(nn.Conv2d(3, 4, 3, device="meta"), 0.5),
        ValueError,
        "FilterMask.by_norm: weight of layer '' must hold data, got a meta tensor",
    ),
    (
        lambda m: cw.FilterMask(m, {"0": torch.ones(8, dtype=torch.bool).to_sparse()}),
        TypeError,
        "FilterMask: filters of 0 must be a dense (strided) tensor",
    ),
    (
        lambda m: cw.FilterMask(m, {"0": [1]}).keep(m, None),
        TypeError,
        "FilterMask.keep: optimizer must be a torch.optim.Optimizer, got NoneType",
    ),
    (
        lambda m: cw.FilterMask.from_torch_prune(pruned(nn.Sequential(nn.BatchNorm2d(4)), "0")),
        TypeError,
        "FilterMask.from_torch_prune: layer '0' must be a convolution or a Linear, got BatchNorm2d",
    ),
]


def tied(model: nn.Module) -> nn.Module:
    model.last = nn.Conv2d(6, 4, 1)
    model.last.weight = model[4].weight
    return model


def pruned(model: nn.Module, layer: str, part: str = "weight") -> nn.Module:
    prune.l1_unstructured(model.get_submodule(layer), part, 1)
    return model


def test_tied_layers_are_chosen_once():
    assert list(cw.FilterMask.by_norm(tied(net()), 0.25).filters) == ["0", "2", "4", "7"]


COMPUTED = [
    lambda m: pruned(m, "0"),
    lambda m: pruned(m, "0", "bias"),
    lambda m: (nn.utils.parametrizations.weight_norm(m[0]), m)[1],
    lambda m: (nn.utils.parametrize.register_parametrization(m[0], "bias", nn.Identity()), m)[1],
]


@pytest.mark.parametrize("change", COMPUTED)
def test_what_a_layer_computes_is_refused(change):
    """Written, it would be overwritten by the next forward."""
    model = change(net())
    before = copy.deepcopy(model.state_dict())
    mask = cw.FilterMask(model, {"2": [0], "0": [0, 1]})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for call, name in (
        (lambda: mask.apply_(model), "FilterMask.apply_: layer '0'"),
        (lambda: mask.keep(model, optimizer), "FilterMask.keep: layer '0'"),
        (lambda: mask.to_torch_prune(model), "FilterMask.to_torch_prune: layer '0'"),
        (lambda: cw.zero_filters_(model[0], [0]), "zero_filters_: layer"),
        (lambda: cw.zero_input_channels_(model[0], [0]), "zero_input_channels_: layer"),
    ):
        with pytest.raises(
            ValueError, match=rf"^{re.escape(name)} must hold its (weight|bias) as a parameter, got one"
        ):
            call()
    assert not hasattr(model[2], "weight_mask")
    assert not optimizer._optimizer_step_post_hooks
    for name, tensor in model.state_dict().items():
        assert_same_bits(tensor, before[name])


def test_filters_loaded_or_changed_while_kept(device: str):
    """The hook follows the mask, and the model's parameters."""
    model = net(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = cw.FilterMask(model, {"0": [0], "2": [0]})
    mask.keep(model, optimizer)
    state = {name: torch.zeros_like(zero) for name, zero in mask.state_dict().items()}
    state["0"][7] = state["2"][5] = True
    mask.load_state_dict(state)
    cw.assign_(model[0].weight, 1.0)
    cw.assign_(model[2].weight, 1.0)
    train(model, optimizer, range(1), lambda: None)
    assert [f for f in range(8) if not model[0].weight[f].count_nonzero()] == [7]
    assert not model[2].weight[4:, 2].count_nonzero()
    assert model[2].weight[:4].abs().min() > 0
    mask.filters["2"][0] = True
    model.load_state_dict({name: torch.ones_like(t) for name, t in model.state_dict().items()}, assign=True)
    optimizer.step()
    assert not model[2].weight[:4, 0].count_nonzero()
    assert not model[0].weight[7].count_nonzero()


def test_wrappers_do_not_matter():
    model = net()
    wrapped = nn.DataParallel(net())
    masks = [cw.FilterMask.at_random(m, 0.25, seed=1) for m in (model, wrapped, torch.compile(net()))]
    for mask in masks[1:]:
        assert mask.filters.keys() == masks[0].filters.keys()
        assert all(torch.equal(zero, masks[0].filters[name]) for name, zero in mask.filters.items())
    masks[0].load_state_dict(masks[1].state_dict())
    assert masks[0].apply_(wrapped) is wrapped
    assert wrapped.module[0].weight[masks[0].filters["0"]].count_nonzero() == 0


def test_ratios_are_what_they_say():
    model = nn.Linear(3, 100)
    for percent in range(100):
        assert int(cw.FilterMask.at_random(model, percent / 100, seed=0).filters[""].sum()) == percent


def test_norms_of_complex_and_empty_weights():
    layer = nn.Linear(1, 2, bias=False, dtype=torch.complex64)
    cw.assign_(layer.weight, torch.tensor([[100j], [1.0]]))
    assert cw.FilterMask.by_norm(layer, 0.5).filters[""].tolist() == [False, True]
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Sequential(nn.Linear(0, 4), nn.Conv2d(3, 0, 1))
    mask = cw.FilterMask.by_norm(empty, 0.5)
    assert [len(zero) for zero in mask.filters.values()] == [4, 0]
    mask.apply_(empty)
    assert repr(cw.FilterMask(empty, {"0": [1]})) == "FilterMask(0: 1 of 4)"
    assert cw.FilterMask(empty, {"1": []}).sparsity() == 0.0


def test_grouped_masks_are_views():
    """Zero bytes: what a grouped transposed layer writes is seen through views."""
    model = nn.ConvTranspose2d(64, 64, 3, groups=2)
    mask = cw.FilterMask.at_random(model, 0.5, seed=0)
    mask.apply_(model)
    with torch.profiler.profile(profile_memory=True) as profile:
        mask.apply_(model)
    assert sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages()) == 0


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_what_is_refused(call, error, message):
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=f"^{re.escape(message)}") as caught:
        call(model)
    assert "\n" not in str(caught.value)
    for name, tensor in model.state_dict().items():
        assert_same_bits(tensor, before[name])
