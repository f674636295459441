"""The update verb against eager torch, torch.compile and an in-place multiplication; ``--help`` says how to call it.

Everything runs on as many threads as its title says. Random functions of torch give other numbers than ours, so of
those only the size of what they did is checked; ours are compared with the reference, bit for bit, at both ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness import Case, Contender, InPlace, main, on_cpu

import convweights as cw
from convweights.ops.update_reference import reference_update_
from convweights.stream import DISTRIBUTIONS

SCALE = 1e-3
SEED = 7
# Elements of each end of a weight that are compared with the reference.
ENDS = 5000


class Moved(InPlace):
    """Every contender adds noise of the same size."""

    def __init__(
        self,
        name: str,
        title: str,
        weights: Sequence[torch.Tensor],
        distribution: str,
        *,
        threads: int = 1,
        seeds: Sequence[int] = (SEED,),
        coefficients: Sequence[float] = (SCALE,),
    ) -> None:
        super().__init__(name, title, weights, threads=threads, rounds=11 if len(seeds) == 1 else 5)
        self.distribution, self.seeds, self.coefficients = distribution, seeds, coefficients
        self.size = sum(coefficient**2 for coefficient in coefficients) ** 0.5
        self.size *= {"normal": 1.0, "uniform": 3**-0.5, "rademacher": 1.0}[distribution]

    def is_right(self, contender: Contender) -> bool:
        return self.follows_the_reference() if contender.exact else self.is_as_large()

    def follows_the_reference(self) -> bool:
        for stream, (weight, start) in enumerate(zip(self.weights, self.start, strict=True)):
            flat, before = weight.view(-1), start.view(-1)
            for first in {0, max(0, len(flat) - ENDS)}:
                expected = before[first : first + ENDS].clone().cpu()
                box = [len(flat), first]
                code = DISTRIBUTIONS.index(self.distribution)
                several = len(self.seeds) > 1
                reference_update_(
                    *([expected], [], [stream], box, code, 1.0, 0.0, self.coefficients, self.seeds, 0),
                    *(several, False, True, None),
                )
                as_bits = torch.int16 if weight.element_size() == 2 else torch.int32
                if not torch.equal(flat[first : first + ENDS].cpu().view(as_bits), expected.view(as_bits)):
                    return False
        return True

    def is_as_large(self) -> bool:
        flat = [weight.flatten() - start.flatten() for weight, start in zip(self.weights, self.start, strict=True)]
        moves = torch.cat([move[:1_000_000].double() for move in flat])
        # A weight of 16 bits rounds away part of a move.
        return abs(moves.square().mean().sqrt().item() / self.size - 1) < (
            0.3 if self.weights[0].element_size() == 2 else 0.1
        )


def _weights(device: str, tiny: bool, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.empty(20_000 if tiny else 1 << 26, device=device).normal_(std=0.05).to(dtype)]


def _at(level: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """The run at another instruction set than the processor's best."""
    levels, choose = cw.native.cpu.simd_levels(), cw.native.cpu.choose_simd_level

    def chosen() -> None:
        choose(level)
        run()
        choose(levels[0])

    return chosen


def single(
    device: str,
    *,
    tiny: bool = False,
    compiled: bool = True,
    distribution: str = "normal",
    dtype: torch.dtype = torch.float32,
    threads: int = 1,
) -> Case:
    weights = _weights(device, tiny, dtype)
    (w,) = weights
    kind = "float32" if dtype == torch.float32 else "bfloat16"
    count = "one thread" if threads == 1 else f"{threads} threads"
    elements = f"{len(w) / 2**20:.0f}M" if len(w) >= 2**20 else len(w)
    where = on_cpu(device, count)
    case = Moved(
        f"{distribution} {kind}" + ("" if threads == 1 else f" x{threads}"),
        f"{elements} elements{where}",
        weights,
        distribution,
        threads=threads,
    )

    def ours() -> None:
        cw.perturb_(w, scale=SCALE, seed=SEED, stream=0, distribution=distribution)

    case.ours("perturb_", ours)
    if device == "cpu" and cw.native.cpu is not None:
        for level in cw.native.cpu.simd_levels()[1:-1]:
            case.variant(f"perturb_ at {level}", _at(level, ours))
    draws: dict[str, Callable[[], torch.Tensor]] = {
        "normal": lambda: torch.randn_like(w),
        "uniform": lambda: torch.empty_like(w).uniform_(-1, 1),
        "rademacher": lambda: torch.empty_like(w).bernoulli_(0.5).mul_(2).sub_(1),
    }
    words = {"normal": "randn_like(w)", "uniform": "uniform_(-1, 1)", "rademacher": "2 * bernoulli_() - 1"}
    draw, word = draws[distribution], words[distribution]
    case.eager(f"add_({word}, alpha=s)", lambda: w.add_(draw(), alpha=SCALE), exact=False)
    case.eager(f"w += s * {word}", lambda: w.add_(SCALE * draw()), exact=False)
    if compiled and distribution == "normal" and threads == 1:
        case.compiled(
            "add_(randn_like(w), alpha=s)", lambda w, _: w.add_(torch.randn_like(w), alpha=SCALE), exact=False
        )
    return case


def _variant(**chosen: Any) -> Callable[..., Case]:
    return lambda device, **options: single(device, **options, **chosen)


def resnet50_shapes() -> list[tuple[int, ...]]:
    """The 161 parameters of a ResNet-50: 53 convolutions, 53 normalisations, a linear layer."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for outputs, fan, kernel in ((width, inputs, 1), (width, width, 3), (4 * width, width, 1)):
                shapes += [(outputs, fan, kernel, kernel), (outputs,), (outputs,)]
            if block == 0:
                shapes += [(4 * width, inputs, 1, 1), (4 * width,), (4 * width,)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def model(device: str, *, tiny: bool = False, compiled: bool = True) -> Case:
    shapes = resnet50_shapes()
    assert len(shapes) == 161
    chosen = shapes[:9] if tiny else shapes
    weights = [torch.empty(shape, device=device).normal_(std=0.05) for shape in chosen]
    case = Moved(
        "ResNet-50",
        f"its {len(chosen)} tensors in one call{on_cpu(device, 'two threads')}",
        weights,
        "normal",
        threads=2,
    )

    def loop() -> None:
        for w in weights:
            w.add_(torch.randn_like(w), alpha=SCALE)

    def each() -> None:
        noise = [torch.randn_like(w) for w in weights]
        torch._foreach_add_(weights, noise, alpha=SCALE)

    case.ours("perturb_(list)", lambda: cw.perturb_(weights, scale=SCALE, seed=SEED))
    case.eager("for w: w.add_(randn_like(w), alpha=s)", loop, exact=False)
    case.eager("_foreach_add_(weights, noise, alpha=s)", each, exact=False)
    return case


def overhead(device: str, *, tiny: bool = False, compiled: bool = True) -> Case:
    """What a call over 161 tensors costs beside the work: they have one element each."""
    weights = [torch.empty(1, device=device).normal_(std=0.05) for _ in range(9 if tiny else 161)]
    case = Moved(
        "overhead", f"{len(weights)} tensors of one element{on_cpu(device, 'one thread')}", weights, "rademacher"
    )

    def loop() -> None:
        for w in weights:
            w.add_(torch.empty_like(w).bernoulli_(0.5).mul_(2).sub_(1), alpha=SCALE)

    def each() -> None:
        noise = [torch.empty_like(w).bernoulli_(0.5).mul_(2).sub_(1) for w in weights]
        torch._foreach_add_(weights, noise, alpha=SCALE)

    case.ours("perturb_(list)", lambda: cw.perturb_(weights, scale=SCALE, seed=SEED, distribution="rademacher"))
    case.eager("for w: w.add_(2 * bernoulli_() - 1, alpha=s)", loop, exact=False)
    case.eager("_foreach_add_", each, exact=False)
    return case


def accumulate(device: str, *, tiny: bool = False, compiled: bool = True, distribution: str = "normal") -> Case:
    seeds, coefficients = list(range(8)), [SCALE * (-1) ** k for k in range(8)]
    weights = _weights(device, tiny, torch.float32)
    (w,) = weights
    case = Moved(
        f"eight seeds, {distribution}",
        f"accumulated on {len(w) / 2**20:.0f}M elements{on_cpu(device, 'one thread')}",
        weights,
        distribution,
        seeds=seeds,
        coefficients=coefficients,
    )

    def calls() -> None:
        for seed, coefficient in zip(seeds, coefficients, strict=True):
            cw.perturb_(w, scale=coefficient, seed=seed, stream=0, distribution=distribution)

    def draw() -> torch.Tensor:
        return torch.randn_like(w) if distribution == "normal" else torch.empty_like(w).bernoulli_(0.5).mul_(2).sub_(1)

    def eager() -> None:
        for coefficient in coefficients:
            w.add_(draw(), alpha=coefficient)

    def scaled() -> None:
        for coefficient in coefficients:
            w.add_(coefficient * draw())

    case.ours(
        "accumulate_noise_",
        lambda: cw.accumulate_noise_(w, seeds, coefficients, stream=0, distribution=distribution),
    )
    case.variant("perturb_, eight calls", calls, exact=False)
    case.eager("for seed: w.add_(noise, alpha=c)", eager, exact=False)
    case.eager("for seed: w += c * noise", scaled, exact=False)
    return case


CASES = {
    "normal": single,
    "normal-bfloat16": _variant(dtype=torch.bfloat16),
    "uniform": _variant(distribution="uniform"),
    "uniform-bfloat16": _variant(distribution="uniform", dtype=torch.bfloat16),
    "rademacher": _variant(distribution="rademacher"),
    "rademacher-bfloat16": _variant(distribution="rademacher", dtype=torch.bfloat16),
    "normal-two-threads": _variant(threads=2),
    "normal-bfloat16-two-threads": _variant(dtype=torch.bfloat16, threads=2),
    "resnet50": model,
    "overhead": overhead,
    "accumulate": accumulate,
    "accumulate-rademacher": lambda device, **options: accumulate(device, distribution="rademacher", **options),
}

if __name__ == "__main__":
    main("update", CASES, cpu_only=[name for name in CASES if name.endswith("two-threads")])
