"""Training without gradients (SPSA, Spall 1992; MeZO, Malladi et al. 2023): a small convnet learns digits.

A step takes a few seeds. For each, ``cw.perturbed`` moves the weights along that seed's noise z and the loss is
measured, ``flip`` moves them as far to the other side and it is measured again: the difference is the slope along z.
Then one ``cw.accumulate_noise_`` walks down all slopes at once.

There is no backward pass and there are no gradients. There is no copy of the weights either: noise is computed from its
seed whenever it is needed, and ``perturbed`` brings weights back to the bit, which this program checks, from a journal
of a few bits a weight (``--restore snapshot`` holds a copy instead). The update reads and writes each weight once,
however many seeds there are.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import digits
import torch
import typer
from torch import nn

import convweights as cw

# 1 or -1: as good as normal noise here, and quicker to draw.
NOISE: Final = "rademacher"

Restore = Literal["journal", "snapshot"]


@dataclass
class Trained:
    net: nn.Sequential
    curves: digits.Curves
    accuracy: float
    seconds: float
    restored: bool
    held: int


@torch.no_grad()
def train(
    *,
    steps: int = 1000,
    seeds: int = 8,
    scale: float = 0.01,
    lr: float = 0.04,
    seed: int = 0,
    restore: Restore = "journal",
    dtype: torch.dtype = torch.float32,
    show: bool = False,
) -> Trained:
    """Train a network, the same for the same arguments.

    Of what is returned, `restored` says whether perturbed weights came back to the bit on the first and the last step,
    and `held` is how many bytes were held to bring them back.
    """
    data, net = digits.load(dtype), digits.make_net(seed, dtype)
    drawn = range(seed * seeds, (seed + 1) * seeds)
    restored, held, start = True, 0, time.perf_counter()
    with digits.Watch(steps, show=show) as watch:
        for step, (images, labels) in enumerate(data.batches(steps, seed)):
            checked = digits.digest(net) if step in (0, steps - 1) else None
            slopes, total = [], 0.0
            for number in drawn:
                with cw.perturbed(
                    net, scale=scale, seed=number, step=step, distribution=NOISE, restore=restore
                ) as block:
                    plus = digits.loss(net, images, labels)
                    block.flip()
                    minus = digits.loss(net, images, labels)
                    held = max(held, block.nbytes)
                slopes.append((plus - minus) / (2 * scale))
                total += plus + minus
            if checked is not None:
                restored &= digits.digest(net) == checked
            # Over the slopes' root mean square: a step is as long where the loss is steep as where it is flat.
            size = math.sqrt(sum(slope**2 for slope in slopes) / seeds) or 1.0
            rate = lr * digits.cosine(step, steps) / (seeds * size)
            cw.accumulate_noise_(net, drawn, [-rate * slope for slope in slopes], step=step, distribution=NOISE)
            watch.step(step, total / (2 * seeds), net, data)
    return Trained(net, watch.curves, digits.accuracy(net, data), time.perf_counter() - start, restored, held)


def main(
    steps: Annotated[int, typer.Option(min=1)] = 1000,
    seeds: Annotated[int, typer.Option(min=1, max=1024, help="Directions a step.")] = 8,
    scale: Annotated[float, typer.Option(min=1e-6, help="How far the weights are moved to measure a slope.")] = 0.01,
    lr: Annotated[float, typer.Option(min=0, help="How far a step goes at first.")] = 0.04,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="Of the weights, the batches and the noise.")] = 0,
    restore: Restore = "journal",
    dtype: Literal["float32", "bfloat16"] = "float32",
    plot: Annotated[Path | None, typer.Option(help="Draw the curves of loss and accuracy into this file.")] = None,
) -> None:
    """Train a convnet on digits without gradients."""
    if plot:
        digits.require("matplotlib", "matplotlib")
    torch.set_num_threads(1)
    done = train(
        steps=steps,
        seeds=seeds,
        scale=scale,
        lr=lr,
        seed=seed,
        restore=restore,
        dtype=getattr(torch, dtype),
        show=True,
    )
    size = sum(weight.nbytes for weight in done.net.parameters())
    print(f"accuracy {done.accuracy:.1%} on held-out digits in {done.seconds:.1f} s")
    print(f"perturbed weights came back bit for bit on the first and the last step: {'yes' if done.restored else 'NO'}")
    print(f"held to bring them back: {done.held} bytes for {size} bytes of weights")
    if plot:
        digits.draw(plot, done.curves, f"MeZO, {seeds} seeds a step")
    raise typer.Exit(0 if done.restored else 1)


if __name__ == "__main__":
    typer.run(main)
