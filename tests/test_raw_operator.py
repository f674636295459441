"""The operator called past the Python functions: whatever its arguments, it stays within its tensors. Family: exact."""

import pytest
import torch

from convweights.maps import KINDS, RESCALES

operator = torch.ops.convweights.transfer_.default


def call(weight: torch.Tensor, source: torch.Tensor, kind: str, start: int = 0, rescale: str = "none", index=()):
    operator(
        weight,
        source,
        [KINDS.index(kind)],
        [start],
        [RESCALES.index(rescale)],
        [torch.tensor(i) for i in index],
        1.0,
        [0],
    )


@pytest.mark.parametrize("start", [2**63 - 10**6, 2**63 - 1, 2**62, -(2**63), -(2**62), 10, -7])
def test_a_start_far_outside_is_all_fill(start: int):
    weight = torch.full((7, 4), 5.0)
    source = torch.ones(40, 4)[::4]
    operator(weight, source, [KINDS.index("offset"), 0], [start, 0], [0, 0], [], 1.0, [0])
    assert torch.equal(weight, torch.zeros(7, 4))


@pytest.mark.native
@pytest.mark.parametrize(
    ("weight", "source", "kind", "rescale", "index"),
    [
        ((3,), (1,), "mean", "uniform", ()),
        ((2,), (5,), "select", "exact", ([1, 2],)),
        ((3,), (3,), "identity", "uniform", ()),
        ((3,), (5,), "resize", "exact", ()),
        ((2,), (5,), "offset", "exact", ()),
        ((2,), (5,), "identity", "none", ()),
        ((3,), (0,), "tile", "none", ()),
        ((5,), (3,), "blocks", "none", ()),
        ((2,), (5,), "select", "none", ([1, 5],)),
        ((2,), (5,), "select", "none", ([1],)),
        ((2,), (5,), "select", "none", ()),
        ((2,), (4,), "blocks", "none", ()),
    ],
)
def test_what_a_map_cannot_do_is_refused(weight, source, kind, rescale, index):
    target = torch.full(weight, 7, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="transfer_: "):
        call(target, torch.ones(source, dtype=torch.int64), kind, 0, rescale, index)
    assert (target == 7).all()


def test_a_rescaled_truncation_in_place_is_no_move():
    values = torch.arange(8.0)
    call(values[:4], values[4:], "offset", 0, "uniform")
    assert torch.equal(values[:4], torch.tensor([4.0, 5.0, 6.0, 7.0]))
