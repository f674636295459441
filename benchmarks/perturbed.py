"""Weights perturbed, flipped and brought back, against the same updates without it; ``--help`` says how to call it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness import Case, Contender, InPlace, main, on_cpu
from update import resnet50_shapes

import convweights as cw

STD = 0.05  # of the weights
SCALE = 0.05 * STD
SEED = 7


class Cycle(InPlace):
    """What is exact leaves every bit as it was; other contenders lose some of the last ones."""

    def __init__(self, name: str, title: str, weights: Sequence[torch.Tensor], distribution: str = "normal") -> None:
        super().__init__(name, title, weights, threads=2, rounds=15)
        self.distribution = distribution

    def is_right(self, contender: Contender) -> bool:
        pairs = list(zip(self.weights, self.start, strict=True))
        if contender.exact:
            as_bits = torch.int16 if self.weights[0].element_size() == 2 else torch.int32
            return all(torch.equal(weight.view(as_bits), start.view(as_bits)) for weight, start in pairs)
        return all(torch.allclose(weight, start, rtol=0, atol=0.1 * STD) for weight, start in pairs)

    def floor(self) -> Contender:
        """The three updates of a cycle, which do not bring the weights back."""

        def updates() -> None:
            for scale in (SCALE, -2 * SCALE, SCALE):
                cw.perturb_(self.weights, scale=scale, seed=SEED, distribution=self.distribution)

        return Contender("perturb_ by s, -2s and s", "floor", updates)


def cycle(
    device: str,
    *,
    tiny: bool = False,
    compiled: bool = True,
    dtype: torch.dtype = torch.float32,
    distribution: str = "normal",
    shapes: Sequence[tuple[int, ...]] = ((1 << 25,),),
    of: str = "32M elements",
) -> Case:
    chosen = [(20_000,), (70, 30)] if tiny else shapes
    weights = [torch.empty(shape, device=device).normal_(std=STD).to(dtype) for shape in chosen]
    kind = str(dtype).removeprefix("torch.")
    model = f"{of}, {distribution}" if of.startswith("ResNet") else distribution
    case = Cycle(
        f"{model} {kind}", f"perturb, flip, restore {of}{on_cpu(device, 'two threads')}", weights, distribution
    )

    def within(restore: Any) -> Callable[[], None]:
        def run() -> None:
            with cw.perturbed(weights, scale=SCALE, seed=SEED, distribution=distribution, restore=restore) as block:
                block.flip()

        return run

    def draw(w: torch.Tensor) -> torch.Tensor:
        if distribution == "normal":
            return torch.randn_like(w)
        return torch.empty_like(w).bernoulli_(0.5).mul_(2).sub_(1)

    def seeded() -> None:
        """MeZO's loop (Malladi et al. 2023)."""
        for scale in (SCALE, -2 * SCALE, SCALE):
            torch.manual_seed(SEED)
            for w in weights:
                w.add_(draw(w), alpha=scale)

    def copied() -> None:
        copies = [w.clone() for w in weights]
        torch.manual_seed(SEED)
        noise = [draw(w) for w in weights]
        torch._foreach_add_(weights, noise, alpha=SCALE)
        torch._foreach_add_(weights, noise, alpha=-2 * SCALE)
        torch._foreach_copy_(weights, copies)

    case.ours("perturbed(restore='journal')", within("journal"))
    case.variant("perturbed(restore='snapshot')", within("snapshot"))
    case.eager("manual_seed, add_(randn_like) three times", seeded, exact=False)
    case.eager("clone, _foreach_add_, _foreach_copy_", copied)
    return case


def _variant(**chosen: Any) -> Callable[..., Case]:
    return lambda device, **options: cycle(device, **options, **chosen)


CASES = {
    "normal": cycle,
    "normal-bfloat16": _variant(dtype=torch.bfloat16),
    "normal-float16": _variant(dtype=torch.float16),
    "rademacher": _variant(distribution="rademacher"),
    "rademacher-bfloat16": _variant(distribution="rademacher", dtype=torch.bfloat16),
    "resnet50": _variant(shapes=resnet50_shapes(), of="ResNet-50"),
}

if __name__ == "__main__":
    main("perturbed", CASES)
