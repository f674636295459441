"""What mezo.py and es.py share: scikit-learn's digits, a small network, batches, a progress bar, the curves."""

from __future__ import annotations

import hashlib
import importlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

BATCH = 512


@dataclass
class Digits:
    """Images (N, 1, 8, 8) of 0 .. 1 and labels (N,), and those held out."""

    images: torch.Tensor
    labels: torch.Tensor
    held_images: torch.Tensor
    held_labels: torch.Tensor

    def batches(self, steps: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batch of each step, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            chosen = torch.randint(len(self.images), (BATCH,), generator=generator)
            yield self.images[chosen], self.labels[chosen]


@dataclass
class Curves:
    """The loss of each step, averaged over its evaluations, and the accuracy on what is held out, by step."""

    loss: list[float] = field(default_factory=list)
    accuracy: dict[int, float] = field(default_factory=dict)


def load(dtype: torch.dtype = torch.float32) -> Digits:
    """The digits in one fixed random order, a fifth of them held out."""
    found = require("sklearn.datasets", "scikit-learn").load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images)[order, None].div(16).to(dtype)
    labels = torch.tensor(found.target)[order]
    held = len(order) // 5
    return Digits(images[held:], labels[held:], images[:held], labels[:held])


def require(module: str, package: str) -> Any:
    """The module, or an exit with one sentence that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = Path(sys.argv[0]).stem
        print(f"{name}: {package} must be installed; run pip install {package}", file=sys.stderr)
        raise SystemExit(2) from None


def make_net(seed: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Two strided convolutions and a linear layer, 1898 weights; no layer has a state that evaluation would change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 10),
        )
    return net.to(dtype)


def loss(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    return float(nn.functional.cross_entropy(net(images).float(), labels))


def accuracy(net: nn.Module, data: Digits) -> float:
    """On what is held out."""
    return float((net(data.held_images).argmax(1) == data.held_labels).double().mean())


def cosine(step: int, steps: int) -> float:
    """A learning rate's factor: from 1 down to 0 in half a cosine."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def digest(net: nn.Module) -> str:
    """Of all bits of all weights."""
    found = hashlib.blake2b(digest_size=16)
    for weight in net.parameters():
        found.update(weight.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


class Watch:
    """Collects the curves while it shows a progress bar."""

    def __init__(self, steps: int, *, show: bool, every: int = 20) -> None:
        self.curves, self.steps, self.every = Curves(), steps, every
        shown = TextColumn("loss {task.fields[loss]:.3f}, accuracy {task.fields[accuracy]:.1%}")
        self.bar = Progress(BarColumn(), MofNCompleteColumn(), shown, TimeElapsedColumn(), disable=not show)
        self.task = self.bar.add_task("", total=steps, loss=math.nan, accuracy=math.nan)

    def __enter__(self) -> Watch:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, step: int, loss: float, net: nn.Module, data: Digits) -> None:
        """After the update of a step."""
        self.curves.loss.append(loss)
        if step % self.every == 0 or step == self.steps - 1:
            self.curves.accuracy[step] = accuracy(net, data)
            self.bar.update(self.task, accuracy=self.curves.accuracy[step])
        self.bar.update(self.task, advance=1, loss=loss)


def draw(path: Path, curves: Curves, title: str) -> None:
    """Loss and accuracy by step, as a picture."""
    figure = require("matplotlib.figure", "matplotlib").Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=11)
    left.plot(curves.loss, linewidth=0.8)
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    right.plot(list(curves.accuracy), list(curves.accuracy.values()))
    right.set(xlabel="step", ylabel="accuracy, held out", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    print(f"drawn: {path}")
