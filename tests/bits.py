"""Comparing tensors on their bits."""

from __future__ import annotations

import torch

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's elements as integers; complex128 gets a trailing dimension of two."""
    if tensor.dtype == torch.complex128:
        return torch.view_as_real(tensor).view(torch.int64)
    return tensor.view(_INTEGERS[tensor.element_size()])


def storage_of(tensor: torch.Tensor) -> torch.Tensor:
    """Every element of the tensor's storage, those between and around the tensor's own included."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((count,), (1,), 0)


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor, computed: torch.Tensor | bool = False) -> None:
    """Equality of the bits; where ``computed``, any NaN equals any NaN."""
    actual, expected = actual.detach().cpu(), expected.detach().cpu()
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    same = bits(actual) == bits(expected)
    if actual.dtype == torch.complex128:
        same = same.all(-1)
    if actual.dtype.is_floating_point and actual.element_size() > 1:
        same = same | (torch.as_tensor(computed) & actual.isnan() & expected.isnan())
    if not same.all():
        where = [tuple(place) for place in (~same).nonzero()[:4].tolist()]
        shown = [(place, actual[place].item(), expected[place].item()) for place in where]
        raise AssertionError(f"{int((~same).sum())} of {same.numel()} differ: (place, actual, expected) {shown}")
