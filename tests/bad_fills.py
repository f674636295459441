"""What fill_, fill_filters_ and the functions for a layer's filters refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from bad_input import ErrorInput, row, t
from torch import nn

import convweights as cw


def weight(d: str) -> torch.Tensor:
    return t(d, 4, 3, 2)


def filters(name: str, arguments: Callable[[str], tuple], error: type, sentence: str, **keywords: Any) -> ErrorInput:
    return row(f"fill_filters_ {name}", cw.fill_filters_, arguments, error, f"fill_filters_: {sentence}", **keywords)


def fill(name: str, arguments: Callable[[str], tuple], error: type, sentence: str, **keywords: Any) -> ErrorInput:
    return row(f"fill_ {name}", cw.fill_, arguments, error, f"fill_: {sentence}", **keywords)


def truth(d: str, *shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool, device=d)


def conv(d: str, **more: Any) -> nn.Module:
    return nn.Conv2d(4, 6, 3, **more).to(d)


def bad_fills() -> list[ErrorInput]:
    length = r"mask must have one entry for each of 4 filters or shape \(4, 3\), got shape"
    return [
        filters("short mask", lambda d: (weight(d), truth(d, 3)), ValueError, rf"{length} \(3,\)"),
        filters("square mask", lambda d: (weight(d), truth(d, 3, 4)), ValueError, rf"{length} \(3, 4\)"),
        filters(
            "mask of kernels along dim 1",
            lambda d: (weight(d), truth(d, 4, 3)),
            ValueError,
            r"mask must have one entry for each of 3 filters, got shape \(4, 3\)",
            dim=1,
        ),
        filters(
            "float mask",
            lambda d: (weight(d), torch.ones(4)),
            TypeError,
            r"mask must be a bool tensor or integers, got 1\.0",
        ),
        filters("text", lambda d: (weight(d), "0"), TypeError, "mask must be a bool tensor or integers, got '0'"),
        filters(
            "bools",
            lambda d: (weight(d), [True] * 4),
            TypeError,
            "mask must be a bool tensor or integers, got True; make a bool tensor of it",
        ),
        filters(
            "bool tensors",
            lambda d: (weight(d), [torch.tensor(False)] * 4),
            TypeError,
            r"mask must be a bool tensor or integers, got tensor\(False\); make a bool tensor of it",
        ),
        filters(
            "arrays",
            lambda d: (weight(d), [np.array([0, 1])]),
            TypeError,
            r"mask must be a bool tensor or integers, got array\(\[0, 1\]\)",
        ),
        filters(
            "uint8",
            lambda d: (weight(d), torch.ones(4, dtype=torch.uint8)),
            TypeError,
            r"mask must be a bool tensor or integers, got uint8, which may be either; call bool\(\) or long\(\) first",
        ),
        filters(
            "sparse indices",
            lambda d: (weight(d), torch.ones(4, dtype=torch.int64).to_sparse()),
            TypeError,
            "mask must be a dense .*",
        ),
        filters(
            "elements",
            lambda d: (weight(d), truth(d, 4, 3, 2)),
            ValueError,
            rf"{length} \(4, 3, 2\); call fill_ for single elements",
        ),
        ErrorInput(
            "fill_filters_ by its own weight",
            lambda d: (cw.fill_filters_, (w := truth(d, 3, 3), w.T), {}),
            ValueError,
            "fill_filters_: mask must not share memory with a weight, got views of one storage; pass a clone",
        ),
        ErrorInput(
            "fill_ by its own weight",
            lambda d: (cw.fill_, (w := truth(d, 3, 3), w.T), {}),
            ValueError,
            "fill_: mask must not share memory with a weight, got views of one storage; pass a clone",
        ),
        ErrorInput(
            "fill_ by another weight",
            lambda d: (cw.fill_, ([w := truth(d, 3), truth(d, 3)], [truth(d, 3), w]), {}),
            ValueError,
            r"fill_: mask of params\[1\] must not share memory with a weight, got views of one storage; pass a clone",
        ),
        filters("9 dimensions", lambda d: (t(d, *[1] * 9), [0]), ValueError, "weight must have at most 8 .*, got 9"),
        fill(
            "a mask for a frozen parameter",
            lambda d: (conv(d).requires_grad_(False), {"bias": truth(d, 6)}),
            ValueError,
            r"params must hold a parameter that requires a gradient, got 2 frozen; pass frozen=True to write those",
        ),
        fill(
            "a mask for one of them",
            lambda d: ([t(d, 3), nn.Parameter(t(d, 3), requires_grad=False)], [None, truth(d, 3)]),
            ValueError,
            r"params\[1\] must require a gradient where it has a mask, got a frozen parameter; pass frozen=True .*",
        ),
        fill("a tensor of values", lambda d: (t(d, 3), truth(d, 3), t(d, 3)), TypeError, r"value must be a number, .*"),
        filters(
            "value past complex64",
            lambda d: (t(d, 3, dtype=torch.complex64), [0], 1e39),
            ValueError,
            r"value must be one that complex64 can hold, got 1e\+39",
        ),
        filters(
            "value past float8",
            lambda d: (t(d, 3).to(torch.float8_e4m3fn), [0], 1000.0),
            ValueError,
            r"value must be one that float8_e4m3fn can hold, got 1000\.0",
        ),
        filters(
            "a negative without a sign",
            lambda d: (t(d, 3).abs().to(torch.float8_e8m0fnu), [0], -1.0),
            ValueError,
            r"value must be one that float8_e8m0fnu can hold, got -1\.0",
        ),
        row(
            "fill_filters_ bias of another dtype",
            lambda w, *rest: cw.fill_filters_(w, *rest, bias=torch.zeros(4, dtype=torch.float64, device=w.device)),
            lambda d: (weight(d), [0], t(d, 4)),
            TypeError,
            "fill_filters_: value must have the dtype of bias, float64, got float32; .*",
        ),
        filters("index 4", lambda d: (weight(d), [0, 4]), ValueError, r"mask must lie in -4 \.\. 3, got 4"),
        filters("index -5", lambda d: (weight(d), -5), ValueError, r"mask must lie in -4 \.\. 3, got -5"),
        filters(
            "indices in two dimensions",
            lambda d: (weight(d), torch.zeros(1, 1, dtype=torch.int64)),
            ValueError,
            r"mask must hold integers in one dimension on the host, got shape \(1, 1\)",
        ),
        filters("dim 3", lambda d: (weight(d), [0]), ValueError, r"dim must lie in -3 \.\. 2 .*, got 3", dim=3),
        filters(
            "text value", lambda d: (weight(d), [0], "x"), TypeError, "value must be a number or a tensor, got 'x'"
        ),
        filters(
            "an initialiser",
            lambda d: (weight(d), [0], cw.init.Normal(seed=0, stream=0)),
            TypeError,
            r"value must be a number or a tensor, got Normal\(.*\)",
        ),
        filters(
            "value past float32",
            lambda d: (weight(d), [0], 1e39),
            ValueError,
            r"value must be one that float32 can hold, got 1e\+39",
        ),
        filters(
            "value of another shape",
            lambda d: (weight(d), [0], t(d, 2)),
            ValueError,
            r"value must be one number for each of 4 filters or broadcast to shape \(4, 3, 2\), got shape \(2,\)",
        ),
        filters(
            "value of another dtype",
            lambda d: (weight(d), [0], t(d, 4, dtype=torch.float64)),
            TypeError,
            "value must have the dtype of weight, float32, got float64; convert it with value.to",
        ),
        ErrorInput(
            "fill_filters_ value that overlaps",
            lambda d: (cw.fill_filters_, (w := weight(d), [0], w[0]), {}),
            ValueError,
            "fill_filters_: value must not share memory with weight, got views of one storage; pass value.clone().*",
        ),
        ErrorInput(
            "fill_filters_ bias of another length",
            lambda d: (cw.fill_filters_, (weight(d), [0]), {"bias": t(d, 3)}),
            ValueError,
            r"fill_filters_: bias must have one value for each of 4 filters, got shape \(3,\)",
        ),
        ErrorInput(
            "fill_filters_ bias and kernels",
            lambda d: (cw.fill_filters_, (weight(d), truth(d, 4, 3)), {"bias": t(d, 4)}),
            ValueError,
            "fill_filters_: bias must be left out where mask names single kernels, got one",
        ),
        ErrorInput(
            "fill_filters_ bias and a whole value",
            lambda d: (cw.fill_filters_, (weight(d), [0], t(d, 1, 3, 2)), {"bias": t(d, 4)}),
            ValueError,
            "fill_filters_: bias must be left out where value has 3 dimensions, got one; pass one value a filter",
        ),
        filters("expanded", lambda d: (t(d, 1).expand(4), [0]), ValueError, "weight must give each element a place .*"),
        filters("meta", lambda d: (weight("meta"), [0]), ValueError, "weight must hold data, got a meta tensor; .*"),
        fill("no mask", lambda d: (weight(d), None), TypeError, "mask must be a bool tensor, or a list .*, got None"),
        fill(
            "mask of another shape",
            lambda d: (weight(d), truth(d, 2)[:, None, None]),
            ValueError,
            r"mask must broadcast to shape \(4, 3, 2\), got shape \(2, 1, 1\)",
        ),
        fill("int mask", lambda d: (weight(d), t(d, 2).long()), TypeError, "mask must be bool, got int64; compare .*"),
        fill("unknown name", lambda d: (conv(d), {"wieght": truth(d, 1)}), ValueError, "mask must hold names of .*"),
        fill(
            "a tensor twice",
            lambda d: ([w := weight(d), w], [truth(d, 2)] * 2),
            ValueError,
            r"params\[1\] must be listed once, got the tensor of params\[0\]",
        ),
        row(
            "zero_filters_ of a normalisation",
            cw.zero_filters_,
            lambda d: (nn.BatchNorm2d(4), [0]),
            TypeError,
            "zero_filters_: layer must be a convolution or a Linear, got BatchNorm2d",
        ),
        row(
            "zero_filters_ past the end",
            cw.zero_filters_,
            lambda d: (conv(d), [6]),
            ValueError,
            r"zero_filters_: filters must lie in -6 \.\. 5, got 6",
        ),
        row(
            "zero_filters_ short",
            cw.zero_filters_,
            lambda d: (conv(d), truth(d, 4)),
            ValueError,
            r"zero_filters_: filters must have one entry for each of 6, got shape \(4,\)",
        ),
        row(
            "zero_input_channels_ past the end",
            cw.zero_input_channels_,
            lambda d: (conv(d, groups=2), [4]),
            ValueError,
            r"zero_input_channels_: channels must lie in -4 \.\. 3, got 4",
        ),
        row(
            "set_kernel_ of another group",
            cw.set_kernel_,
            lambda d: (conv(d, groups=2), 5, 1, 0.0),
            ValueError,
            r"set_kernel_: channel must be of the filter's group, 1 of 2, whose channels are 2 \.\. 3, got 1",
        ),
        row(
            "set_kernel_ of another shape",
            cw.set_kernel_,
            lambda d: (conv(d), 5, 1, t(d, 5, 5)),
            ValueError,
            r"set_kernel_: value must have the shape of the kernel, \(3, 3\), got \(5, 5\)",
        ),
        row(
            "set_kernel_ past the end",
            cw.set_kernel_,
            lambda d: (conv(d), 6, 0, 0.0),
            ValueError,
            r"set_kernel_: filter must lie in -6 \.\. 5, got 6",
        ),
    ]
