"""The forms of the channel functions that read the tensor they write. Family: exact."""

import pytest
import torch
from bits import assert_same_bits, storage_of
from cases import COPY_ONLY_DTYPES, random_values
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng
from oracle import COMPUTE_DTYPES, pairwise_sum

import convweights as cw


def group_means(weight: torch.Tensor, groups: int, dim: int, order: str) -> torch.Tensor:
    """Pairwise sums in ascending order of the channels, times the rounded reciprocal of their number."""
    channels = weight.shape[dim]
    compute = torch.float64 if weight.dtype == torch.float64 else torch.float32
    result = weight.clone()
    for group in range(groups):
        size = channels // groups
        members = range(group * size, (group + 1) * size) if order == "blocks" else range(group, channels, groups)
        total = pairwise_sum([weight.select(dim, member).to(compute) for member in members])
        factor = torch.tensor(1 / size, dtype=torch.float64).to(compute)
        for member in members:
            result.select(dim, member).copy_(total * factor if size > 1 else weight.select(dim, member))
    return result


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
@pytest.mark.parametrize("order", ["blocks", "strided"])
@pytest.mark.parametrize(
    ("shape", "dim", "groups"),
    [
        ((8,), 0, 2),
        ((3, 6), 1, 6),
        ((64, 48, 3, 3), 1, 16),
        ((64, 48, 3, 3), 0, 1),
        ((5, 300, 7, 7), 1, 3),
        ((130, 128, 1, 1), -3, 64),
        ((6, 4, 3, 3, 3), 0, 3),
        ((0, 4, 3, 3), 1, 2),
    ],
)
def test_group_means(device: str, shape: tuple[int, ...], dim: int, groups: int, order: str, dtype: torch.dtype):
    values = torch.randn(shape, dtype=torch.float64).to(dtype)
    expected = group_means(values, groups, dim, order)
    for weight in (values.to(device, copy=True), values.to(device).expand(2, *shape).clone()[1]):
        assert cw.average_channels_(weight, groups=groups, dim=dim, order=order) is weight
        assert_same_bits(weight, expected)


@pytest.mark.parametrize("order", ["blocks", "strided"])
def test_group_means_of_strided_weights(device: str, order: str):
    values = torch.randn(16, 12, 5, 5)
    expected = group_means(values, 4, 1, order)
    last = values.to(device, copy=True).to(memory_format=torch.channels_last)
    assert_same_bits(cw.average_channels_(last, groups=4, order=order), expected)
    padded = torch.full((16, 24, 5, 6), 7.0, device=device)
    weight = padded[:, ::2, :, :5]
    weight.copy_(values)
    assert_same_bits(cw.average_channels_(weight, groups=4, order=order), expected)
    assert (padded[:, 1::2] == 7).all()
    assert (padded[..., 5] == 7).all()


def test_group_means_in_parallel(threads):
    values = torch.randn(300, 64, 7, 7)
    expected = group_means(values, 8, 1, "blocks")
    for count in (1, 2, 7):
        threads(count)
        assert_same_bits(cw.average_channels_(values.clone(), groups=8), expected)


def check_truncation(shape: tuple[int, ...], dim: int, start: int, keep: int, dtype: torch.dtype, device: str) -> None:
    count = torch.Size(shape).numel()
    base = random_values(count + 16, dtype, default_rng(count), wild=True)
    weight = base.clone().to(device)[8 : 8 + count].view(shape)
    expected = base[8 : 8 + count].view(shape).narrow(dim, start, keep)
    kept = cw.truncate_channels_(weight, keep=keep, dim=dim, start=start)
    assert kept.is_contiguous()
    assert kept.data_ptr() == weight.data_ptr()
    assert_same_bits(kept, expected)
    assert_same_bits(storage_of(weight)[:8], base[:8])
    assert_same_bits(storage_of(weight)[8 + count :], base[8 + count :])


@st.composite
def truncations(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int, int, torch.dtype]:
    shape = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)))
    while torch.Size(shape).numel() > 20_000:
        shape = shape[1:]
    dim = draw(st.integers(0, len(shape) - 1))
    keep = draw(st.integers(1, shape[dim]))
    start = draw(st.integers(0, shape[dim] - keep))
    return shape, dim, start, keep, draw(st.sampled_from(COMPUTE_DTYPES + COPY_ONLY_DTYPES))


@given(drawn=truncations())
def test_truncation(device: str, drawn: tuple):
    check_truncation(*drawn, device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.complex128])
@pytest.mark.parametrize(
    ("shape", "dim", "start", "keep"),
    [
        ((7, 100_003), 1, 1, 100_002),  # each row moves by one element and more, onto itself
        ((1, 300_000), 1, 1, 299_999),
        ((300_000,), 0, 1, 299_998),
        ((3000, 101), 1, 1, 100),  # rows that move by less than their length for long
        ((3000, 101), 1, 100, 1),
        ((512, 96, 3, 3), 1, 0, 48),  # half of each row, in waves that double
        ((512, 96, 3, 3), 1, 48, 48),
        ((512, 96, 3, 3), 1, 1, 95),
        ((512, 96, 3, 3), 0, 1, 511),  # one block moved by a row
        ((512, 96, 3, 3), 0, 0, 100),
        ((64, 40, 5, 5), 3, 1, 3),
        ((64, 40, 5, 5), 2, 1, 4),
    ],
)
def test_truncation_of_overlapping_rows(
    device: str, threads, shape: tuple[int, ...], dim: int, start: int, keep: int, dtype: torch.dtype
):
    for count in (1, 2, 7):
        threads(count)
        check_truncation(shape, dim, start, keep, dtype, device)


def test_truncation_of_nothing(device: str):
    weight = torch.empty(0, 4, device=device)
    assert cw.truncate_channels_(weight, keep=2, dim=1).shape == (0, 2)


@pytest.mark.parametrize("start", [0, 2])
def test_truncation_is_idempotent(device: str, start: int):
    weight = torch.randn(9, 6, 3, 3, device=device)
    expected = weight[start : start + 4].clone()
    once = cw.truncate_channels_(weight, keep=4, start=start)
    twice = cw.truncate_channels_(once, keep=4)
    assert_same_bits(twice, expected)


def test_disjoint_slices_of_one_storage(device: str):
    base = torch.randn(10, 8, device=device)
    for weight, source in (
        (lambda: base[5:], lambda: base[:5]),
        (lambda: base[:, ::2], lambda: base[:, 1::2]),
        (lambda: base[:4].t()[:4], lambda: base[4:8, 4:]),
    ):
        expected = source().clone()
        cw.transfer_(weight(), source())
        assert_same_bits(weight().clone(), expected)


OVERLAPS = {
    "itself": lambda base: (base, base, {}),
    "shifted rows": lambda base: (base[1:], base[:-1], {}),
    "one element": lambda base: (base[:4, :4], base[3:7, 3:7], {}),
    "transposed": lambda base: (base[:8, :8], base[:8, :8].t(), {}),
    "truncated": lambda base: (base[:4], base, {0: cw.Truncate()}),
    "averaged": lambda base: (base[:, :4], base, {1: cw.Blocks()}),
    "mean of itself": lambda base: (base, base, {1: cw.Mean()}),
    "another dtype": lambda base: (base[:, :4], base.view(torch.float64)[:, :4], {}),
}


@pytest.mark.parametrize("views", OVERLAPS.values(), ids=OVERLAPS)
def test_every_other_overlap_is_refused(device: str, views):
    base = torch.randn(10, 8, device=device)
    before = base.clone()
    weight, source, maps = views(base)
    with pytest.raises(ValueError, match=r"^transfer_: source must not share memory with weight, got "):
        cw.transfer_(weight, source, maps)
    assert_same_bits(base, before)
