"""The reference judges ``transfer_`` on every device, around the weight as much as in it. Family: exact."""

import numpy as np
import pytest
import torch
from bits import assert_same_bits, storage_of
from cases import COPY_ONLY_DTYPES, Case, Placed
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import COMPUTE_DTYPES
from strategies import REALISTIC, SCALES, dtype_pairs, fills, small_cases
from tables import DEEP, MAPS, deep_case, small_case

import convweights as cw


@given(case=small_cases())
def test_small(device: str, case: Case):
    case.check(device)


@pytest.mark.parametrize("source", COMPUTE_DTYPES)
@pytest.mark.parametrize("weight", COMPUTE_DTYPES)
@pytest.mark.parametrize("map", MAPS)
def test_every_map_and_pair_of_dtypes(device: str, map: str, weight: torch.dtype, source: torch.dtype):
    small_case(*MAPS[map], weight, source).check(device)
    small_case(*MAPS[map], weight, source, scale=1 / 3).check(device)


@pytest.mark.parametrize("name", DEEP)
def test_deep_sums(device: str, name: str):
    deep_case(*DEEP[name]).check(device)


LAYOUTS = ("contiguous", "channels last", "channels first of last", "sliced")


def laid_out(shape: tuple[int, ...], dtype: torch.dtype, rng: np.random.Generator, layout: str, wild: bool) -> Placed:
    rank = len(shape)
    order = list(range(rank))
    steps = None
    if rank > 2 and layout == "channels last":
        order = [0, *range(2, rank), 1]
    elif layout == "channels first of last":
        order = [*range(2, rank), *range(rank > 1, -1, -1)]
    elif layout == "sliced":
        steps = [1] * (rank - 1) + [2]
    return Placed.make(shape, dtype, rng, order=order, steps=steps, around=5, wild=wild)


@st.composite
def realistic(draw: st.DrawFn, name: str) -> Case:
    weight_shape, source_shape, maps = REALISTIC[name]
    copies = all(map.copies(n, m) for map, n, m in ((map, source_shape[d], weight_shape[d]) for d, map in maps.items()))
    compute = st.tuples(st.sampled_from(COMPUTE_DTYPES), st.sampled_from(COMPUTE_DTYPES))
    weight_dtype, source_dtype = draw(dtype_pairs() if copies else compute)
    rng, wild = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.booleans())
    return Case(
        laid_out(weight_shape, weight_dtype, rng, draw(st.sampled_from(LAYOUTS)), wild),
        laid_out(source_shape, source_dtype, rng, draw(st.sampled_from(LAYOUTS)), wild),
        maps,
        draw(st.sampled_from(SCALES)) if weight_dtype in COMPUTE_DTYPES else 1.0,
        draw(fills(weight_dtype)),
    )


@settings(max_examples=settings.default.max_examples // 8)
@given(data=st.data())
@pytest.mark.parametrize("name", REALISTIC)
def test_realistic(device: str, name: str, data: st.DataObject):
    data.draw(realistic(name)).check(device)


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
@pytest.mark.parametrize("order", [(3, 2, 0, 1), (2, 3, 1, 0), (1, 0, 2, 3), (3, 0, 2, 1)])
@pytest.mark.parametrize("shape", [(64, 48, 3, 3), (65, 47, 3, 3), (8, 8, 1, 1), (33, 130, 1, 2)])
def test_permuted_source(device: str, shape: tuple[int, ...], order: tuple[int, ...], dtype: torch.dtype):
    """HWIO and its like: the source is stored with its dimensions in ``order``."""
    rng = np.random.default_rng(0)
    for weight_dtype in (dtype, torch.float32, torch.bfloat16):
        Case(Placed.make(shape, weight_dtype, rng), Placed.make(shape, dtype, rng, order=order, wild=True)).check(
            device
        )


@pytest.mark.parametrize("dtype", COPY_ONLY_DTYPES)
@pytest.mark.parametrize("name", ["stem interleaved", "select", "pad", "crop", "linear grown", "copied whole"])
def test_copies_of_every_dtype(device: str, name: str, dtype: torch.dtype):
    weight_shape, source_shape, maps = REALISTIC[name]
    rng = np.random.default_rng(1)
    for layout in LAYOUTS:
        weight = laid_out(weight_shape, dtype, rng, layout, wild=True)
        Case(weight, laid_out(source_shape, dtype, rng, "contiguous", wild=True), maps, fill=0.0).check(device)
        Case(weight, laid_out(source_shape, dtype, rng, "channels last", wild=True), maps, fill="keep").check(device)


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", REALISTIC)
def test_thread_count_does_not_matter(threads, name: str, weight: torch.dtype):
    weight_shape, source_shape, maps = REALISTIC[name]
    rng = np.random.default_rng(2)
    # Five times the rows in every dimension that has no map, so that seven threads have work each.
    grown = [1 if dim in maps or size < 30 else 5 for dim, size in enumerate(weight_shape)]
    case = Case(
        Placed.make([m * k for m, k in zip(weight_shape, grown, strict=True)], weight, rng, around=3),
        Placed.make([n * k for n, k in zip(source_shape, grown, strict=True)], torch.float32, rng, around=1),
        maps,
    )
    expected = case.by_reference()
    for count in (1, 2, 7):
        threads(count)
        assert_same_bits(storage_of(case.by_function("cpu")), storage_of(expected))


def test_equal_tensors_with_and_without_maps(device: str):
    source = torch.randn(5, 4, 3, 3, device=device)
    assert_same_bits(cw.transfer_(torch.empty_like(source), source), source)


def test_conjugated_and_negated_sources(device: str):
    source = torch.randn(3, 4, dtype=torch.complex64, device=device)
    weight = torch.empty(3, 8, dtype=torch.complex64, device=device)
    assert_same_bits(cw.transfer_(weight, source.conj(), {1: cw.Tile()}), source.conj().resolve_conj().repeat(1, 2))
    negated = source.conj().imag
    assert negated.is_neg()
    real = torch.empty(3, 8, device=device)
    assert_same_bits(cw.transfer_(real, negated, {1: cw.Tile()}), negated.resolve_neg().repeat(1, 2))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_twins_keep_dtype_and_memory_format(device: str, memory_format: torch.memory_format):
    source = torch.randn(6, 4, 3, 3, device=device, dtype=torch.float16).to(memory_format=memory_format)
    source.requires_grad_()
    for made, index in (
        (cw.replicate_channels(source, 8), torch.arange(8) % 4),
        (cw.truncate_channels(source, 3, dim=1, start=1), torch.arange(1, 4)),
    ):
        assert_same_bits(made, source[:, index.to(device)])
        assert made.is_contiguous(memory_format=memory_format)
        assert not made.requires_grad
    averaged = cw.average_channels(source, 2, order="strided")
    assert averaged.dtype == torch.float16
    assert averaged.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("start", [2**63 - 1, 2**63, -(2**63), 2**70, -(2**70)])
def test_an_offset_past_every_integer_reads_nothing(device: str, start: int):
    weight = torch.zeros(3, 4, device=device)
    cw.transfer_(weight, torch.ones(3, 4, device=device), {1: cw.Offset(start)}, fill=2.0)
    assert (weight == 2).all()


@pytest.mark.parametrize(
    "map", [cw.Tile("exact"), cw.Interleave("exact"), cw.Blocks(), cw.Strided(), cw.Offset(1), cw.Resize(), cw.Mean()]
)
def test_nothing_to_write(device: str, map: cw.Map):
    for n, m, others in ((0, 0, 4), (5, 0, 4), (5, 3, 0)):
        weight = torch.empty(others, m, device=device)
        assert cw.transfer_(weight, torch.ones(others, n, device=device), {1: map}) is weight
    assert cw.transfer_(torch.empty(4, 0), torch.ones(4, 5), {1: cw.Select([])}).shape == (4, 0)
