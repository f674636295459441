"""A first run on real weights: MTCNN's O-Net, fitted to 1 and to 4 input channels and to bfloat16.

Downloads the wheel of facenet-pytorch with pip, takes the three trained networks out of it (the wheel is not
installed, none of its code runs), converts O-Net, and checks on random images that the converted networks compute what
the original does; one of them is half as wide again. Draws the first filters before and after. Exits with 1 where a
check fails and with 2 where the weights cannot be had.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convweights import pictures, transfer_model_
from convweights.checkpoint import convert, plan

WHEEL = "facenet-pytorch"
NETWORKS = ("pnet", "rnet", "onet")
# Sums of some thousand float32 terms in another order: each output may be off by a few roundings of the largest one.
BOUND = 64 * torch.finfo(torch.float32).eps

Outputs = tuple[torch.Tensor, ...]


class ONet(nn.Module):
    """The last of MTCNN's three networks (Zhang et al., 2016): is it a face, where is its box, where are 5 points."""

    def __init__(self, in_channels: int = 3, wide: float = 1) -> None:
        super().__init__()
        a, b, c, d = (int(width * wide) for width in (32, 64, 128, 256))
        self.conv1, self.prelu1 = nn.Conv2d(in_channels, a, 3), nn.PReLU(a)
        self.conv2, self.prelu2 = nn.Conv2d(a, b, 3), nn.PReLU(b)
        self.conv3, self.prelu3 = nn.Conv2d(b, b, 3), nn.PReLU(b)
        self.conv4, self.prelu4 = nn.Conv2d(b, c, 2), nn.PReLU(c)
        self.dense5, self.prelu5 = nn.Linear(9 * c, d), nn.PReLU(d)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(d, 2), nn.Linear(d, 4), nn.Linear(d, 10)

    def forward(self, x: torch.Tensor) -> Outputs:
        """(B, C, 48, 48) images to face probabilities (B, 2), box offsets (B, 4) and landmarks (B, 10)."""
        pool = nn.functional.max_pool2d
        x = pool(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = pool(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = pool(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)
        x = self.prelu4(self.conv4(x))
        # The weights of dense5 expect columns before rows before channels.
        x = self.prelu5(self.dense5(x.permute(0, 3, 2, 1).flatten(1)))
        return self.dense6_1(x).softmax(1), self.dense6_2(x), self.dense6_3(x)


def download(folder: Path) -> Path:
    """The wheel, from the index that pip is configured for; one that is in the folder already is used again."""
    found = sorted(folder.glob("facenet_pytorch-*.whl"))
    if found:
        print(f"using {found[-1]}, downloaded before")
        return found[-1]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), WHEEL]
    print(f"downloading {WHEEL} with pip")
    result = subprocess.run(command, capture_output=True, text=True)
    found = sorted(folder.glob("facenet_pytorch-*.whl"))
    if result.returncode or not found:
        lines = [line.strip() for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1] if lines else f"exit status {result.returncode}"
        raise _stop(f"demo: pip must be able to download {WHEEL}, got {reason}; is there a network?")
    return found[-1]


def _stop(sentence: str) -> SystemExit:
    print(sentence, file=sys.stderr)
    return SystemExit(2)


def extract(wheel: Path, folder: Path) -> dict[str, Path]:
    """The three checkpoints, taken out of the wheel as they are."""
    paths = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = {Path(name).name: name for name in archive.namelist()}
            for network in NETWORKS:
                paths[network] = folder / f"{network}.pt"
                paths[network].write_bytes(archive.read(members[f"{network}.pt"]))
    except (zipfile.BadZipFile, KeyError) as error:
        got = " ".join(str(error).split())
        raise _stop(f"demo: {wheel} must be a whole wheel with the three networks, got {got}; delete it") from None
    return paths


def convert_and_show(source: Path, target: Path, **wanted: Any) -> Path:
    """Print the plan, convert, print the report."""
    print(f"\n--- {source.name} -> {target.name}")
    print(plan(source, **wanted))
    print(convert(source, target, overwrite=True, **wanted))
    return target


def widen(rgb: ONet, wide: float = 1.5) -> ONet:
    """A wider network that computes the same: every channel repeated, every copy's share taken where it is read."""
    network = ONet(wide=wide)
    rules = [
        {"match": "*", "out_channels": {"how": "interleave"}},
        {"match": "*", "in_channels": {"how": "interleave", "rescale": "exact"}},
    ]
    print(f"\n--- a network {wide} times as wide")
    print(transfer_model_(network, rgb, rules=rules))
    return network.eval()


def draw(before: Path, after: Path, picture: Path) -> None:
    """The first layer's filters of two checkpoints, next to each other."""
    stem, first = "conv1.weight", load_state(before)
    drawn = [(f"before: {before.name}", first[stem]), (f"after: {after.name}", load_state(after)[stem])]
    pictures.draw(picture, drawn, name=stem)
    print(f"drawn: {picture}")


def load_state(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return state


def load(path: Path, in_channels: int, dtype: torch.dtype = torch.float32) -> ONet:
    """An O-Net with the weights of a checkpoint, strictly: every name and every shape has to fit."""
    state = load_state(path)
    network = ONet(in_channels).to(dtype)
    network.load_state_dict(state)
    if any(network.state_dict()[name].dtype != tensor.dtype for name, tensor in state.items()):
        raise _stop(f"demo: {path.name} must hold {dtype} only, got another dtype")
    return network.eval()


def difference(found: Outputs, expected: Outputs) -> float:
    """The largest difference of any output, over the largest value of that output."""
    ratios = [(a - b).abs().max() / b.abs().max() for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(ratios).max())


def passes(what: str, found: Outputs, expected: Outputs, bound: float) -> bool:
    measured = difference(found, expected)
    good = measured <= bound
    print(f"{'ok' if good else 'FAILED'}: {what}: largest relative difference {measured:.2e}, bound {bound:.2e}")
    return good


@torch.no_grad()
def check(rgb: ONet, one: ONet, four: ONet, half: ONet, wide: ONet, images: int = 32) -> bool:
    """Whether the converted networks compute what the original does, on seeded random images."""
    generator = torch.Generator().manual_seed(0)
    gray = torch.rand(images, 1, 48, 48, generator=generator) * 2 - 1
    color = torch.rand(images, 3, 48, 48, generator=generator) * 2 - 1
    expected = rgb(color)
    rounded = tuple(out.float() for out in half(color.bfloat16()))
    results = [
        passes("1 channel fed x against 3 fed (x, x, x)", one(gray), rgb(gray.expand(-1, 3, -1, -1)), BOUND),
        passes("4 channels fed (r, g, b, r) against (r, g, b)", four(color[:, [0, 1, 2, 0]]), expected, BOUND),
        passes("half as wide again against the original", wide(color), expected, BOUND),
        # bfloat16 rounds weights and activations to 8 bits; eight layers of it stay within a tenth.
        passes("bfloat16 against float32", rounded, expected, 0.1),
    ]
    return all(results)


def main(folder: Path = Path("demo")) -> int:
    paths = extract(download(folder), folder)
    stem = "conv1"
    one = convert_and_show(paths["onet"], folder / "onet-1.safetensors", rules=[{"match": stem, "in_channels": 1}])
    exact = {"to": 4, "how": "tile", "rescale": "exact"}
    four = convert_and_show(paths["onet"], folder / "onet-4.safetensors", rules=[{"match": stem, "in_channels": exact}])
    half = convert_and_show(paths["onet"], folder / "onet-bfloat16.pt", dtype="bfloat16")
    for network in ("pnet", "rnet"):
        rules = [{"match": stem, "in_channels": 1}]
        convert_and_show(paths[network], folder / f"{network}-1.safetensors", rules=rules)
    rgb = load(paths["onet"], 3)
    wide = widen(rgb)
    print("\n--- pictures")
    for after in (one, four):
        draw(paths["onet"], after, after.with_suffix(".png"))
    print("\n--- checks on random images")
    good = check(rgb, load(one, 1), load(four, 4), load(half, 3, torch.bfloat16), wide)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
