"""The oracle judges the reference. Family: exact."""

import pytest
import torch
from bits import assert_same_bits, bits, storage_of
from cases import Case, place_like
from hypothesis import given
from oracle import COMPUTE_DTYPES, transfer
from strategies import small_cases
from tables import DEEP, MAPS, deep_case, small_case


def check(case: Case) -> None:
    weight, source = place_like(case.weight), place_like(case.source)
    expected = case.weight.base.clone()
    values = transfer(weight, source, case.maps, scale=case.scale, fill=case.fill)
    bits(expected.as_strided(case.weight.shape, case.weight.stride, case.weight.offset)).copy_(bits(values))
    assert_same_bits(storage_of(case.by_reference()), expected, case.computed())


@given(small_cases())
def test_reference_follows_the_oracle(case: Case):
    check(case)


@pytest.mark.parametrize("source", COMPUTE_DTYPES)
@pytest.mark.parametrize("weight", COMPUTE_DTYPES)
@pytest.mark.parametrize("map", MAPS, ids=MAPS)
def test_every_map_and_pair_of_dtypes(map: str, weight: torch.dtype, source: torch.dtype):
    check(small_case(*MAPS[map], weight, source))


@pytest.mark.parametrize("name", DEEP)
def test_deep_sums(name: str):
    check(deep_case(*DEEP[name]))
