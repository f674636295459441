"""More than 2^31 elements: offsets of 64 bits on both sides, spot-checked. Family: exact."""

import pytest
import torch

import convweights as cw

# The reference would allocate many times the 2.2 GB here.
pytestmark = [pytest.mark.slow, pytest.mark.native]

ROWS, COLUMNS = 70_000, 32_768
PLACES = [(0, 0), (0, 32_767), (1, 5), (34_999, 17), (65_535, 32_767), (65_536, 0), (65_537, 3), (69_999, 32_767)]


@pytest.fixture
def weight(device: str):
    # -7 is a value that no source here holds.
    return torch.full((ROWS, COLUMNS), -7, dtype=torch.int8, device=device)


def values(count: int, device: str) -> torch.Tensor:
    return (torch.arange(count, device=device) % 101).to(torch.int8)


def test_columns_of_an_expanded_source(device: str, weight: torch.Tensor):
    source = values(COLUMNS, device).expand(ROWS, COLUMNS)
    cw.transfer_(weight, source, {0: cw.Offset(5), 1: cw.Offset(-3)}, fill="keep")
    for row, column in PLACES:
        expected = -7 if row + 5 >= ROWS or column < 3 else (column - 3) % 101
        assert weight[row, column].item() == expected


def test_rows_that_tile(device: str, weight: torch.Tensor):
    source = values(35_001, device)[:, None].expand(35_001, COLUMNS)
    cw.transfer_(weight, source, {0: cw.Tile()})
    for row, column in PLACES:
        assert weight[row, column].item() == row % 35_001 % 101
    assert (weight[-1] == (ROWS - 1) % 35_001 % 101).all()


def test_one_dimension_shifted(device: str, weight: torch.Tensor):
    flat = weight.view(-1)
    source = values(1, device).expand(ROWS * COLUMNS)
    cw.transfer_(flat, source, {0: cw.Offset(-(2**31) - 1)}, fill=1)
    assert flat[2**31 - 1 : 2**31 + 3].tolist() == [1, 1, 0, 0]
    assert flat[-1].item() == 0
    assert flat[:1000].eq(1).all()


def test_truncation_in_place(device: str, weight: torch.Tensor):
    weight.copy_(values(ROWS, device)[:, None])
    weight[:, 0] = 102
    kept = cw.truncate_channels_(weight, keep=COLUMNS - 1, dim=1, start=1)
    assert kept.numel() > 2**31
    for row in (0, 1, 35_000, 65_536, 69_999):
        assert (kept[row] == row % 101).all()
