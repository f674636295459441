"""The fill verb against eager torch, torch.compile and an in-place multiplication; ``--help`` says how to call it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness import Case, Contender, InPlace, main
from update import resnet50_shapes

import convweights as cw


class Filled(InPlace):
    """Every contender zeroes what the masks name; nothing else may change."""

    def __init__(
        self, name: str, title: str, weights: Sequence[torch.Tensor], masks: Sequence[torch.Tensor], *, threads: int = 2
    ) -> None:
        super().__init__(name, title, weights, threads=threads)
        self.wanted = [weight.masked_fill(mask, 0.0) for weight, mask in zip(weights, masks, strict=True)]

    def is_right(self, contender: Contender) -> bool:
        return all(torch.equal(found, wanted) for found, wanted in zip(self.weights, self.wanted, strict=True))


def one(
    device: str,
    *,
    tiny: bool = False,
    compiled: bool = True,
    name: str = "filters",
    shape: tuple[int, ...] = (2048, 2048, 3, 3),
    small: tuple[int, ...] = (40, 30, 3, 3),
    share: int = 10,
) -> Case:
    """Every tenth filter of one weight, by a bool mask that is on the device, and by indices."""
    shape = small if tiny else shape
    w = torch.empty(shape, device=device).normal_(std=0.05)
    mask = torch.zeros(shape[0], dtype=torch.bool, device=device)
    mask[torch.randperm(shape[0])[: max(1, shape[0] // share)]] = True
    wide = mask[:, None, None, None]
    index = mask.nonzero().flatten()
    chosen = sorted(index.tolist())
    keep = (~wide).to(w.dtype)
    case = Filled(name, f"{100 // share}% of {' x '.join(map(str, shape))}", [w], [wide])
    case.ours("fill_filters_(w, mask)", lambda: cw.fill_filters_(w, mask))
    case.variant("fill_filters_(w, [...])", lambda: cw.fill_filters_(w, chosen))
    case.eager("index_fill_(0, index, 0)", lambda: w.index_fill_(0, index, 0.0))
    case.eager("masked_fill_(mask, 0)", lambda: w.masked_fill_(wide, 0.0))
    case.eager("mul_(keep)", lambda: w.mul_(keep))
    case.eager("w[mask] = 0", lambda: w.__setitem__(mask, 0.0))

    def loop() -> None:
        for i in chosen:
            w[i].zero_()

    case.eager("for i: w[i].zero_()", loop)
    if compiled:
        case.compiled("masked_fill_(mask, 0)", lambda w, _: w.masked_fill_(wide, 0.0))
    return case


def model(device: str, *, tiny: bool = False, compiled: bool = True, dim: int = 0) -> Case:
    """A quarter of the filters, or of the input channels, of all convolutions of a ResNet-50 in one call."""
    shapes = [shape for shape in resnet50_shapes() if len(shape) == 4]
    assert len(shapes) == 53
    shapes = shapes[:5] if tiny else shapes
    weights = [torch.empty(shape, device=device).normal_(std=0.05) for shape in shapes]
    masks, indices, keeps = [], [], []
    for w in weights:
        size = w.shape[dim]
        mask = torch.zeros(size, dtype=torch.bool, device=device)
        mask[torch.randperm(size)[: max(1, size // 4)]] = True
        masks.append(mask.reshape([-1, 1, 1, 1] if dim == 0 else [1, -1, 1, 1]))
        indices.append(mask.nonzero().flatten())
        keeps.append((~masks[-1]).to(w.dtype))
    what = "filters" if dim == 0 else "input channels"
    title = f"25% of those of its {len(weights)} convolutions in one call"
    case = Filled(f"ResNet-50 {what}", title, weights, masks)

    def each(write: Callable[[torch.Tensor, int], Any]) -> Callable[[], None]:
        def run() -> None:
            for k, w in enumerate(weights):
                write(w, k)

        return run

    case.ours("fill_(list, masks)", lambda: cw.fill_(weights, masks))
    case.eager("for w: index_fill_", each(lambda w, k: w.index_fill_(dim, indices[k], 0.0)))
    case.eager("for w: masked_fill_", each(lambda w, k: w.masked_fill_(masks[k], 0.0)))
    case.eager("for w: mul_(keep)", each(lambda w, k: w.mul_(keeps[k])))
    case.eager("_foreach_mul_(weights, keeps)", lambda: torch._foreach_mul_(weights, keeps))
    return case


CASES = {
    "filters": one,
    "small": lambda device, **options: one(device, name="small", shape=(64, 64, 3, 3), small=(20, 10, 3, 3), **options),
    "resnet50-filters": model,
    "resnet50-inputs": lambda device, **options: model(device, dim=1, **options),
}

if __name__ == "__main__":
    main("fill", CASES)
