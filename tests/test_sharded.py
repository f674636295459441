"""Sharded weights: every process of a mesh together writes what one process would. Family: exact."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from bits import assert_same_bits

import convweights as cw

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
SHAPE = (10, 7, 3)


def start() -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))


def check(rank: int, path: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=4)
    torch.set_num_threads(1)
    try:
        mesh = init_device_mesh("cpu", (2, 2))
        drawn = {"seed": 5, "step": 1, "distribution": "normal"}
        expected = cw.update_(start(), decay=0.5, scale=0.1, stream="w", **drawn)
        placements = [
            (Shard(0), Replicate()),
            (Replicate(), Shard(1)),
            (Shard(0), Shard(1)),
            (Shard(2), Shard(0)),
            (Shard(0), Shard(0)),
            (Replicate(), Replicate()),
        ]
        for placement in placements:
            # 10, 7 and 3 do not divide: pieces are uneven, some are empty.
            whole = distribute_tensor(start(), mesh, placement)
            parameter = torch.nn.Parameter(whole)
            version = parameter._version
            cw.update_({"w": parameter}, decay=0.5, scale=0.1, **drawn)
            assert_same_bits(parameter.full_tensor(), expected)
            assert parameter._version > version
            cw.init.kaiming_normal_(parameter, seed=2, stream="w")
            assert_same_bits(parameter.full_tensor(), cw.init.kaiming_normal_(torch.empty(SHAPE), seed=2, stream="w"))
        masked = distribute_tensor(start(), mesh, (Shard(0), Shard(1)))
        mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.5
        cw.update_(masked, shift=1.0, mask=distribute_tensor(mask, mesh, (Shard(0), Shard(1))))
        assert_same_bits(masked.full_tensor(), torch.where(mask, start() + 1, start()))
        for other in (mask, distribute_tensor(mask, mesh, (Replicate(), Shard(0)))):
            with pytest.raises(ValueError, match=r"mask must be a DTensor of the weight's shape, mesh and placements"):
                cw.update_(masked, shift=1.0, mask=other)
        partial = torch.distributed.tensor.DTensor.from_local(start(), mesh, (Partial(), Replicate()))
        with pytest.raises(ValueError, match="params must be sharded or replicated, got placements"):
            cw.update_(partial, shift=1.0)
        with pytest.raises(ValueError, match=r"box must be left out for a DTensor, got"):
            cw.update_(masked, shift=1.0, box=(SHAPE, (0, 0, 0)))
    finally:
        dist.destroy_process_group()


def test_a_mesh_of_four_processes(tmp_path):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    mp.spawn(check, (str(tmp_path / "store"),), nprocs=4)
