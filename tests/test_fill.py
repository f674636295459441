"""fill: oracle, reference and kernels on the bits; the functions over it. Family: exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bits import assert_same_bits, storage_of
from cases import Placed
from fill_cases import DTYPES, Fill, arguments, by_oracle, by_reference, fills
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import convweights as cw


@settings(max_examples=150, deadline=None)
@given(case=fills(most=4))
def test_the_oracle_judges_the_reference(case: Fill):
    (found,) = by_reference([case])
    assert_same_bits(storage_of(found), by_oracle(case))


def check(cases: list[Fill], device: str) -> None:
    weights = [case.weight.on(device) for case in cases]
    torch.ops.convweights.fill_(*arguments(cases, weights, device))
    for found, expected in zip(weights, by_reference(cases), strict=True):
        assert_same_bits(storage_of(found), storage_of(expected))


@settings(max_examples=150, deadline=None)
@given(cases=st.lists(fills(), min_size=1, max_size=6))
def test_kernels_do_what_the_reference_does(device: str, cases: list[Fill]):
    check(cases, device)


def large(dtype: torch.dtype, **more) -> Fill:
    rng = np.random.default_rng(0)
    return Fill(Placed.make((130, 70, 3, 3), dtype, rng, around=1, wild=True), word=rng.bytes(16), **more)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.bool])
def test_large_weights(device: str, dtype: torch.dtype, threads: int):
    rng, before = np.random.default_rng(1), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(
            [
                large(dtype),
                large(dtype, mask=torch.from_numpy(rng.random(130) < 0.3)),
                large(dtype, dim=1, mask=torch.from_numpy(rng.random(70) < 0.3)),
                large(dtype, mask=torch.from_numpy(rng.random((130, 70)) < 0.3)),
                large(dtype, mask=torch.from_numpy(rng.random((130, 70, 3, 3)) < 0.3)),
                large(dtype, dim=1, positions=[0, 1, 2, 9, 69]),
                large(dtype, positions=list(range(129))),
                Fill(Placed.make((1 << 18,), dtype, rng), word=b"\x07" * 16),
            ],
            device,
        )
    finally:
        torch.set_num_threads(before)


def nans(*shape: int, device: str = "cpu") -> torch.Tensor:
    """Every element a NaN of its own."""
    bits = torch.arange(torch.Size(shape).numel(), dtype=torch.int32) + 0x7F800001
    return bits.view(torch.float32).reshape(shape).to(device)


FILTERS = [
    ([1, -1], 0),
    (torch.tensor([0, 2, 2]), 0),
    (np.array([3]), 1),
    (2, 1),
    ([], 0),
    (range(1, 3), 2),
    (torch.tensor([True, False, True, False, True]), 0),
    (torch.tensor([True, False, True, False]), 1),
]


@pytest.mark.parametrize("value", [0.0, -0.0, 2.5, float("nan"), "per filter", "broadcast"])
@pytest.mark.parametrize(("mask", "dim"), FILTERS)
def test_filters_and_only_filters(device: str, mask, dim: int, value):
    weight, expected = nans(5, 4, 3, 3, device=device), nans(5, 4, 3, 3)
    given = value
    if value == "per filter":
        given = torch.randn(weight.shape[dim], device=device)
        value = given.cpu().reshape([-1] + [1] * (3 - dim)).expand(5, 4, 3, 3)
    elif value == "broadcast":
        given = torch.randn(4, 1, 3, device=device)
        value = given.cpu().expand(5, 4, 3, 3)
    else:
        value = torch.full((5, 4, 3, 3), value)
    named = torch.zeros(weight.shape[dim], dtype=torch.bool)
    named[mask if isinstance(mask, torch.Tensor) else torch.as_tensor(np.array(mask, dtype=np.int64))] = True
    bits = expected.view(torch.int32)
    where = named.reshape([-1] + [1] * (3 - dim)).expand_as(bits)
    bits.copy_(torch.where(where, value.contiguous().view(torch.int32), bits))
    mask = mask.to(device) if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool else mask
    assert cw.fill_filters_(weight, mask, given, dim=dim) is weight
    assert_same_bits(weight, expected)


def test_kernels_of_a_mask_and_biases(device: str):
    weight, bias = nans(3, 2, 3, 3, device=device), nans(3, device=device)
    mask = torch.tensor([[True, False], [False, False], [False, True]], device=device)
    cw.fill_filters_(weight, mask, 7.0)
    assert (weight == 7).all((2, 3)).tolist() == mask.tolist()
    assert weight.isnan().all((2, 3)).tolist() == (~mask).tolist()
    cw.fill_filters_(weight, [0], torch.tensor([1.0, 2.0, 3.0], device=device), bias=bias)
    assert bias.nan_to_num(9).tolist() == [1, 9, 9]
    assert (weight[0] == 1).all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn, torch.bool])
def test_every_dtype(device: str, dtype: torch.dtype):
    weight = torch.zeros(3, 4, device=device).to(dtype)
    cw.fill_filters_(weight, [1], 1)
    assert weight.to(torch.complex64).real.sum(1).tolist() == [0, 4, 0]


def test_many_tensors_in_one_call(device: str):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)).to(device)
    before = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
    masks = {"0.weight": torch.rand(8, 1, 1, 1, device=device) < 0.5, "2.weight": before["2.weight"] > 0}
    versions = {name: tensor._version for name, tensor in net.named_parameters()}
    assert cw.fill_(net, masks) is net
    for name, tensor in net.named_parameters():
        expected = before[name].masked_fill(masks[name], 0.0) if name in masks else before[name]
        assert_same_bits(tensor, expected)
        assert (tensor._version > versions[name]) == (name in masks)
    listed = [torch.ones(3, device=device), torch.ones(2, device=device).int()]
    cw.fill_(listed, [None, torch.tensor([True, False], device=device)], 5)
    assert [tensor.tolist() for tensor in listed] == [[1, 1, 1], [5, 1]]


KINDS = [
    (kind, groups)
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for groups in (1, 2, 4)
] + [(nn.Linear, 1)]


def layer_of(kind, groups: int, device: str) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Linear(4, 8) if kind is nn.Linear else kind(4, 8, 3, groups=groups)
    return made.to(device)


def images(kind, device: str) -> torch.Tensor:
    dims = {"1": 1, "2": 2, "3": 3}.get(kind.__name__[-2], 0)
    return torch.randn(2, 4, *[5] * dims, device=device)


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize(("kind", "groups"), KINDS)
def test_filters_of_layers(device: str, kind, groups: int, boolean: bool):
    layer, x = layer_of(kind, groups, device), images(kind, device)
    before = layer(x)
    named = torch.tensor([True, False, False, True, False, False, False, True], device=device)
    assert cw.zero_filters_(layer, named if boolean else [0, 3, -1]) is layer
    after = layer(x)
    assert after[:, named].count_nonzero() == 0
    torch.testing.assert_close(after[:, ~named], before[:, ~named])


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize(("kind", "groups"), KINDS)
def test_input_channels_of_layers(device: str, kind, groups: int, boolean: bool):
    layer, x = layer_of(kind, groups, device), images(kind, device)
    named = torch.tensor([False, True, True, False], device=device)
    blind = x.clone()
    blind[:, named] = 0
    expected = layer(blind)
    assert cw.zero_input_channels_(layer, named if boolean else (1, -2)) is layer
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("kind", "groups"), KINDS)
def test_single_kernels_of_layers(device: str, kind, groups: int):
    layer = layer_of(kind, groups, device)
    probe = torch.zeros_like(images(kind, device)[:1])
    probe[0, 2] = 1
    filter = 2 * 8 // 4
    before = layer(probe)
    cw.set_kernel_(layer, filter, 2, 0.0)
    after = layer(probe)
    torch.testing.assert_close(after[0, filter], layer.bias.detach()[filter].expand_as(after[0, filter]))
    others = [f for f in range(8) if f != filter]
    torch.testing.assert_close(after[:, others], before[:, others])


def test_uniform_numbers_in_chosen_filters(device: str):
    """Through update and its mask: chosen filters begin anew, the others keep every bit."""
    weight = nans(4, 3, 3, 3, device=device)
    mask = torch.tensor([True, False, False, True], device=device)[:, None, None, None]
    cw.update_(weight, decay=0.0, scale=0.5, seed=3, stream="conv", distribution="uniform", mask=mask)
    fresh = cw.init.uniform_(torch.empty(4, 3, 3, 3, device=device), -0.5, 0.5, seed=3, stream="conv")
    assert_same_bits(weight[0], fresh[0])
    assert_same_bits(weight[1:3], nans(4, 3, 3, 3, device=device)[1:3])


def test_lazily_negated_and_conjugated_values(device: str):
    value = torch.tensor([1 + 2j, 3 + 4j], device=device)
    weight = torch.zeros(2, device=device)
    cw.fill_filters_(weight, [0, 1], value.conj().imag)
    assert weight.tolist() == [-2.0, -4.0]
    other = torch.zeros(2, dtype=torch.complex64, device=device)
    cw.fill_filters_(other, [0, 1], value.conj())
    assert other.tolist() == [1 - 2j, 3 - 4j]


def test_one_value_for_all_filters(device: str):
    weight = torch.ones(4, 3, device=device)
    cw.fill_filters_(weight, [0, 2], torch.tensor([5.0], device=device))
    assert weight[:, 0].tolist() == [5, 1, 5, 1]


@pytest.mark.parametrize("positions", [[2**63 - 2, 2**63 - 1], [2**63 - 1], [0, 4], [-1]])
def test_the_operator_refuses_positions_outside(positions: list[int]):
    weight = torch.ones(4)
    with pytest.raises(RuntimeError, match=r"positions must lie in 0 \.\. 3"):
        torch.ops.convweights.fill_([weight], [None], [0], [len(positions)], positions, [None], [0, 0], True)
    with pytest.raises(RuntimeError, match="positions must hold as many numbers as counts say"):
        torch.ops.convweights.fill_([weight], [None], [0], [2**63 - 1], [1], [None], [0, 0], True)
    assert weight.tolist() == [1, 1, 1, 1]


def test_fake_tensors(device: str):
    with torch._subclasses.FakeTensorMode():
        layer = nn.Conv2d(3, 4, 3, device=device)
        cw.fill_(layer, {"weight": torch.ones(4, 1, 1, 1, dtype=torch.bool, device=device)})
        cw.fill_filters_(layer.weight, [0], torch.ones(4, device=device))
