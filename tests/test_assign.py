"""Values into a parameter or a part of it."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from bits import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

import convweights as cw


def weight(dtype=torch.float32):
    return torch.nn.Parameter(torch.arange(54.0).view(2, 3, 3, 3).to(dtype), requires_grad=dtype.is_floating_point)


@pytest.mark.parametrize("value", [torch.rand(2, 3, 3, 3), np.random.rand(2, 3, 3, 3).astype("float32")])
def test_a_whole_weight(value):
    parameter = weight()
    assert cw.assign_(parameter, value) is parameter
    assert_same_bits(parameter.detach(), torch.as_tensor(value))
    assert parameter.requires_grad


INDICES = [
    ((0, 1, 2, 2), 7.0),
    (1, 0.5),
    (-1, torch.ones(3, 3, 3)),
    ((slice(None), 1), torch.rand(2, 3, 3)),
    ((..., 0), np.zeros((2, 3, 3), "float32")),
    ((slice(None, None, 2), [0][0], slice(1, 3)), torch.rand(1, 2, 3)),
    (np.int64(1), -0.0),
    (slice(5, 9), torch.empty(0, 3, 3, 3)),
    ((0, 0, 0, 0), torch.tensor(3.0)),
]


@pytest.mark.parametrize(("index", "value"), INDICES)
def test_a_part(index, value):
    parameter, expected = weight(), weight().detach().clone()
    expected[index] = torch.as_tensor(value, dtype=torch.float32)
    cw.assign_(parameter, value, index)
    assert_same_bits(parameter.detach(), expected)


@pytest.mark.parametrize("value", [0.1, 3, True, np.float64(0.1), np.float32(2), math.inf, math.nan])
def test_numbers_are_rounded(value):
    assert_same_bits(cw.assign_(weight().detach(), value), torch.full((2, 3, 3, 3), float(value)))


LOSSLESS = [
    (torch.float32, np.array([0.5, math.nan, -math.inf, 2.0**-149])),
    (torch.float32, torch.tensor([1, -(2**24), 7, 0])),
    (torch.bfloat16, torch.tensor([1.0, 0.0078125, math.nan, -0.0])),
    (torch.float64, torch.tensor([0.1, 0.2, 0.3, 0.4]).half()),
    (torch.int8, torch.tensor([1.0, -128.0, 127.0, 0.0])),
    (torch.float16, torch.tensor([True, False, True, True])),
]


@pytest.mark.parametrize(("dtype", "value"), LOSSLESS)
def test_another_dtype_that_loses_nothing(dtype, value):
    target = torch.zeros(4, dtype=dtype)
    cw.assign_(target, value)
    torch.testing.assert_close(target.double(), torch.as_tensor(value).double(), rtol=0, atol=0, equal_nan=True)


@given(
    st.lists(st.floats(width=64), min_size=1, max_size=6),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_a_loss_is_refused_and_only_a_loss(values, dtype):
    source, target = torch.tensor(values, dtype=torch.float64), torch.zeros(len(values), dtype=dtype)
    kept = all(a == b or (a != a and b != b) for a, b in zip(values, source.to(dtype).tolist(), strict=True))
    if kept:
        cw.assign_(target, source)
        assert_same_bits(target, source.to(dtype))
    else:
        with pytest.raises(TypeError, match=r"would be rounded; pass cast=True to round them$"):
            cw.assign_(target, source)
        assert target.count_nonzero() == 0
        assert_same_bits(cw.assign_(target, source, cast=True), source.to(dtype))


def test_values_that_overlap():
    parameter = weight()
    before = parameter.detach().clone()
    cw.assign_(parameter, parameter.detach().flip(0))
    cw.assign_(parameter, parameter.detach()[0], index=1)
    assert torch.equal(parameter, torch.stack([before[1], before[1]]))


def test_an_optimizer_and_a_graph():
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    loss = layer(torch.ones(1, 2, requires_grad=True)).sum()
    cw.assign_(layer.weight, np.array([[1.0, 2.0]]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert layer.weight.tolist() == [[0, 1]]


REFUSED = [
    (
        torch.ones(3, 2, 3, 3),
        None,
        ValueError,
        "value must have the shape of parameter, (2, 3, 3, 3), got (3, 2, 3, 3)",
    ),
    (
        torch.ones(3, 3, 3, 2),
        None,
        ValueError,
        "value must have the shape of parameter, (2, 3, 3, 3), got (3, 3, 3, 2); it ",
    ),
    (torch.ones(3), 0, ValueError, "value must have the shape of the part at index, (3, 3, 3), got (3,)"),
    (torch.ones(1), (0, 0, 0, 0), ValueError, "value must have the shape of the part at index, (), got (1,)"),
    ([1.0], 0, TypeError, "value must be a tensor, an array or a number, got list"),
    (None, 0, TypeError, "value must be a tensor, an array or a number, got NoneType"),
    (np.array(["a"]), 0, TypeError, "value must be an array of numbers, got dtype <U1"),
    (1j, 0, ValueError, "value must be one that float32 can hold, got 1j"),
    (1e39, 0, ValueError, "value must be one that float32 can hold, got 1e+39"),
    (torch.ones(3, 3, 3) * 1j, 0, TypeError, "value must be real, got complex64 for float32"),
    (1.0, 2, ValueError, "index must lie in parameter, got 2 for shape (2, 3, 3, 3) ("),
    (1.0, (0, 0, 0, 0, 0), ValueError, "index must lie in parameter, got (0, 0, 0, 0, 0) for shape (2, 3, 3, 3) ("),
    (1.0, slice(None, None, -1), ValueError, "index must lie in parameter, got slice(None, None, -1) for shape"),
    (1.0, [0, 1], TypeError, "index must be made of integers, slices and ..., got [0, 1]"),
    (1.0, (True, 0), TypeError, "index must be made of integers, slices and ..., got True"),
    (1.0, np.array([0, 1]), TypeError, "index must be made of integers, slices and ..., got array([0, 1])"),
    (1.0, torch.tensor([0]), TypeError, "index must be made of integers, slices and ..., got tensor([0])"),
    (
        torch.eye(3).to_sparse(),
        (0, 0),
        TypeError,
        "value must be a dense (strided) tensor, got layout torch.sparse_coo",
    ),
]


@pytest.mark.parametrize(("value", "index", "error", "message"), REFUSED)
def test_what_is_refused(value, index, error, message):
    parameter = weight()
    with pytest.raises(error, match=f"^assign_: {re.escape(message)}") as caught:
        cw.assign_(parameter, value, index)
    assert "\n" not in str(caught.value)
    assert torch.equal(parameter, weight())


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.uint8, torch.tensor([-1], dtype=torch.int8)),
        (torch.int8, torch.tensor([255], dtype=torch.uint8)),
        (torch.int64, torch.tensor([2**63], dtype=torch.uint64)),
        (torch.uint64, torch.tensor([-1])),
    ],
)
def test_integers_do_not_wrap(dtype, value):
    target = torch.zeros(1, dtype=dtype)
    with pytest.raises(TypeError, match=r"would be rounded; pass cast=True to round them$"):
        cw.assign_(target, value)
    assert target.tolist() == [0]


def test_numbers_that_fit_and_numbers_that_do_not():
    assert cw.assign_(torch.zeros(1), 10**30).item() == np.float32(1e30)
    assert cw.assign_(torch.zeros(1, dtype=torch.float8_e4m3fn), 1.5).float().item() == 1.5
    for dtype, value in ((torch.complex64, complex(1e300, 0)), (torch.float32, 10**400), (torch.int8, 10**30)):
        with pytest.raises(ValueError, match=r"^assign_: value must be one that \w+ can hold, got "):
            cw.assign_(torch.zeros(1, dtype=dtype), value)


def test_arrays_of_other_kinds():
    assert cw.assign_(torch.zeros(2), np.array([1, 2], dtype=">f4")).tolist() == [1, 2]
    assert cw.assign_(torch.zeros(2), np.array([1.0, 2.0], "f4")[::-1]).tolist() == [2, 1]
    with pytest.raises(
        TypeError, match=r"value must have numbers everywhere, got a masked array; fill it with value.fi"
    ):
        cw.assign_(torch.zeros(2), np.ma.array([1.0, 2.0], mask=[True, False]))


def test_a_transposed_weight_is_named():
    fc = torch.nn.Linear(3, 8)
    message = "value must have the shape of parameter, (8, 3), got (3, 8); it is transposed, pass value.T"
    with pytest.raises(ValueError, match=re.escape(message)):
        cw.assign_(fc.weight, np.ones((3, 8), "float32"))


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.int8, 0.5), (torch.uint8, 300), (torch.uint8, -1), (torch.int64, 2**63)]
)
def test_numbers_that_an_integer_cannot_hold(dtype, value):
    with pytest.raises(ValueError, match=r"^assign_: value must be one that \w+ can hold, got "):
        cw.assign_(torch.zeros(2, dtype=dtype), value)
