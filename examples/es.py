"""An evolution strategy on several processes that exchange losses and never weights or gradients.

The members of a step are antithetic pairs w + scale z, w - scale z (Salimans et al. 2017). Each process evaluates its
share of them with ``cw.perturbed``; then all know all losses, and each makes the same ``cw.accumulate_noise_`` by the
losses' ranks, for any process can compute any member's noise from its seed. The weights stay equal to the bit with
nothing to synchronise them, because evaluating a member leaves none of its bits behind; the digests are compared in
the end. (Brought back by the opposite noise instead, they differ within six steps.) One process computes what many do.

Run by itself it starts ``--processes`` of its own; under torchrun it takes those it finds.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import digits
import torch
import torch.distributed as dist
import typer
from torch import nn
from torch.multiprocessing.spawn import spawn

import convweights as cw


@dataclass
class Settings:
    members: int
    steps: int
    scale: float
    lr: float
    seed: int
    plot: Path | None

    def seed_of(self, member: int) -> int:
        return self.seed * self.members + member


def utilities(losses: torch.Tensor) -> torch.Tensor:
    """Centred ranks, -0.5 for the lowest loss and 0.5 for the highest: how far losses differ does not matter."""
    ranks = losses.flatten().argsort(stable=True).argsort()
    return (ranks / (losses.numel() - 1) - 0.5).view_as(losses)


def evaluate(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], step: int, settings: Settings) -> torch.Tensor:
    """The losses (members, 2) of both sides of each pair: this process fills in its share, all_reduce the others'."""
    losses = torch.zeros(settings.members, 2)
    for member in range(dist.get_rank(), settings.members, dist.get_world_size()):
        with cw.perturbed(net, scale=settings.scale, seed=settings.seed_of(member), step=step) as block:
            losses[member, 0] = digits.loss(net, *batch)
            block.flip()
            losses[member, 1] = digits.loss(net, *batch)
    dist.all_reduce(losses)
    return losses


@torch.no_grad()
def train(settings: Settings, data: digits.Digits, *, show: bool) -> tuple[nn.Sequential, digits.Curves]:
    net = digits.make_net(settings.seed)
    seeds = [settings.seed_of(member) for member in range(settings.members)]
    with digits.Watch(settings.steps, show=show) as watch:
        for step, batch in enumerate(data.batches(settings.steps, settings.seed)):
            losses = evaluate(net, batch, step, settings)
            plus, minus = utilities(losses).unbind(1)
            rate = settings.lr * digits.cosine(step, settings.steps) / settings.members
            cw.accumulate_noise_(net, seeds, (rate * (minus - plus)).tolist(), step=step)
            watch.step(step, losses.mean().item(), net, data)
    return net, watch.curves


def work(rank: int, processes: int, meeting: str, settings: Settings, data: digits.Digits) -> None:
    """One process: it trains, and number 0 reports."""
    # One thread each, however many processes: another number would sum a loss in another order.
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    try:
        start = time.perf_counter()
        net, curves = train(settings, data, show=rank == 0)
        seconds = time.perf_counter() - start
        digests = [""] * processes
        dist.all_gather_object(digests, digits.digest(net))
        assert len(set(digests)) == 1, f"es: all processes must end with the same weights, got {digests}"
        if rank == 0:
            report(settings, net, curves, digests, seconds)
    finally:
        dist.destroy_process_group()


def report(settings: Settings, net: nn.Module, curves: digits.Curves, digests: list[str], seconds: float) -> None:
    gradient = sum(weight.nbytes for weight in net.parameters())
    accuracy = curves.accuracy[settings.steps - 1]
    print(f"accuracy {accuracy:.1%} on held-out digits in {seconds:.1f} s; processes: {len(digests)}")
    print(
        f"reduced over all processes in a step: {8 * settings.members} bytes of losses; gradients would be {gradient}"
    )
    print(f"the same bits in all processes: blake2b {digests[0]}")
    if settings.plot:
        digits.draw(settings.plot, curves, f"evolution strategy, {settings.members} pairs a step")


def main(
    processes: Annotated[int, typer.Option(min=1, help="How many to start; torchrun has its own count.")] = 2,
    members: Annotated[int, typer.Option(min=1, max=1024, help="Pairs a step.")] = 32,
    steps: Annotated[int, typer.Option(min=1)] = 300,
    scale: Annotated[float, typer.Option(min=1e-6, help="The standard deviation of a member's noise.")] = 0.02,
    lr: Annotated[float, typer.Option(min=0, help="How far a step goes at first.")] = 0.4,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="Of the weights, the batches and the noise.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves of loss and accuracy into this file.")] = None,
) -> None:
    """Train a convnet on digits with an evolution strategy on several processes."""
    if plot:
        digits.require("matplotlib", "matplotlib")
    settings = Settings(members, steps, scale, lr, seed, plot)
    data = digits.load()
    if dist.is_torchelastic_launched():
        work(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "env://", settings, data)
        return
    # They are all on this machine, whatever its name resolves to.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, (processes, f"file://{folder}/meeting", settings, data), nprocs=processes)


if __name__ == "__main__":
    typer.run(main)
