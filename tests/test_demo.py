"""The demo without a network: its parts on weights that are made up."""

import zipfile
from pathlib import Path

import pytest
import torch
from checkpoints import save
from nets import demo

from convweights.checkpoint import convert


def networks(seed: int = 0):
    torch.manual_seed(seed)
    onet = demo.ONet().state_dict()
    small = {"conv1.weight": torch.randn(10, 3, 3, 3), "conv1.bias": torch.randn(10)}
    return {"onet": onet, "pnet": small, "rnet": small}


def make_wheel(folder: Path, names=demo.NETWORKS) -> Path:
    """A wheel with the layout of the real one, and legacy files with strided tensors in it."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "facenet_pytorch-0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            state = {
                key: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor
                for key, tensor in networks()[name].items()
            }
            archive.write(save(folder / f"{name}.pt", state, "legacy"), f"facenet_pytorch/data/{name}.pt")
            (folder / f"{name}.pt").unlink()
    return wheel


def test_the_whole_demo(tmp_path, capsys):
    make_wheel(tmp_path)
    assert demo.main(tmp_path) == 0
    shown = capsys.readouterr().out
    for target in ("onet-1.safetensors", "onet-4.safetensors", "onet-bfloat16.pt", "pnet-1.safetensors"):
        assert f"-> {target}" in shown
        assert (tmp_path / target).exists()
    assert shown.count("plan for ") == 5
    assert shown.count("ok: ") == 4
    for picture in ("onet-1.png", "onet-4.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert demo.main(tmp_path) == 0, "a second run replaces what the first made"


def test_the_check_can_fail(tmp_path, monkeypatch, capsys):
    """With averaged instead of summed channels the one-channel network computes something else."""
    make_wheel(tmp_path)

    def wrong(source, target, *, rules=None, **more):
        if rules == [{"match": "conv1", "in_channels": 1}]:
            rules = [{"match": "conv1", "in_channels": {"to": 1, "rescale": "none"}}]
        return convert(source, target, rules=rules, **more)

    monkeypatch.setattr(demo, "convert", wrong)
    assert demo.main(tmp_path) == 1
    assert "FAILED: 1 channel fed x against 3 fed (x, x, x)" in capsys.readouterr().out


def test_no_network_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(SystemExit) as stopped:
        demo.main(tmp_path / "demo")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("demo: pip must be able to download facenet-pytorch, got ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("damage", ["cut", "without onet"])
def test_a_damaged_wheel_is_one_sentence(tmp_path, damage, capsys):
    wheel = make_wheel(tmp_path, demo.NETWORKS if damage == "cut" else ("pnet", "rnet"))
    if damage == "cut":
        wheel.write_bytes(wheel.read_bytes()[:-50])
    with pytest.raises(SystemExit) as stopped:
        demo.main(tmp_path)
    assert stopped.value.code == 2
    assert "must be a whole wheel with the three networks" in capsys.readouterr().err
