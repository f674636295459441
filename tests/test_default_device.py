"""What the package makes for itself lies on the CPU, whatever device new tensors are on. Family: exact."""

from __future__ import annotations

import torch
from bits import assert_same_bits
from checkpoints import network, save
from safetensors.torch import load_file

import convweights as cw


def test_tensors():
    weight, source = torch.zeros(6, 4), torch.randn(3, 5)
    maps = {0: cw.Select([2, 0, -1, 1, 1, 0]), 1: cw.Truncate()}
    wanted = cw.transfer_(weight.clone(), source, maps)
    noisy = cw.perturb_(weight.clone(), scale=0.1, seed=1, stream=0)
    with torch.device("meta"):
        moved = cw.transfer_(weight.clone(), source, maps)
        perturbed = cw.perturb_(weight.clone(), scale=0.1, seed=1, stream=0)
        filled = cw.fill_filters_(weight.clone(), [1, -1], 2.5)
        changed = weight.clone()
        with cw.perturbed([changed], scale=0.1, seed=1, restore="snapshot") as block:
            block.flip()
    assert_same_bits(moved, wanted)
    assert_same_bits(perturbed, noisy)
    assert_same_bits(changed, weight)
    assert filled[[1, 5]].tolist() == [[2.5] * 4] * 2


def test_checkpoints(tmp_path):
    source = save(tmp_path / "a.safetensors", network())
    rules = [{"match": "conv1", "in_channels": 6}]
    cw.convert(source, tmp_path / "b.safetensors", rules=rules, dtype="float16")
    with torch.device("meta"):
        for name in ("c.pt", "c.safetensors"):
            cw.convert(source, tmp_path / name, rules=rules, dtype="float16")
            cw.convert(tmp_path / name, tmp_path / "again.safetensors", overwrite=True)
            assert (tmp_path / "again.safetensors").stat().st_size > 8
    found, wanted = load_file(tmp_path / "again.safetensors"), load_file(tmp_path / "b.safetensors")
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert_same_bits(found[key], tensor)
