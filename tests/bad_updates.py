"""What update_ and its kin refuse: numbers, seeds, streams, params, masks, boxes; and initialisers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from bad_input import ErrorInput, t
from bad_input import row as any_row
from bad_tensors import NOT_WRITABLE

import convweights as cw

NOISY = {"scale": 0.1, "seed": 0, "stream": 0}


def frozen(device: str) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(t(device, 2), requires_grad=False) for _ in range(2)]


def halves(device: str) -> list[torch.Tensor]:
    base = t(device, 8)
    return [base[:5], base[4:]]


def row(name: str, arguments: Callable[[str], tuple], error: type, sentence: str, **keywords: Any) -> ErrorInput:
    return any_row(f"update_ {name}", cw.update_, arguments, error, f"update_: {sentence}", **keywords)


def one(d: str) -> tuple:
    return (t(d, 2, 3),)


def bad_numbers() -> list[ErrorInput]:
    return [
        *(
            row(f"{name} {value}", one, ValueError, rf"{name} must be finite, got {value}", **{**NOISY, name: value})
            for name in ("scale", "decay", "shift")
            for value in (math.nan, math.inf)
        ),
        row("scale text", one, TypeError, r"scale must be a number, got '1'", scale="1"),
        row(
            "scale past float32",
            one,
            ValueError,
            r"scale must be finite in float32, got 1e\+39",
            **{**NOISY, "scale": 1e39},
        ),
        row("seed -1", one, ValueError, r"seed must lie in 0 \.\. 2\^64 - 1, got -1", **{**NOISY, "seed": -1}),
        row(
            "seed 2^64", one, ValueError, rf"seed must lie in 0 \.\. 2\^64 - 1, got {2**64}", **{**NOISY, "seed": 2**64}
        ),
        row("seed 0.5", one, TypeError, r"seed must be an int, got 0\.5", **{**NOISY, "seed": 0.5}),
        row(
            "no seed",
            one,
            ValueError,
            r"seed must be given where noise is drawn or rounding is stochastic, got None; pass .*",
            scale=0.1,
            stream=0,
        ),
        row(
            "no seed for rounding",
            lambda d: (t(d, 2, dtype=torch.bfloat16),),
            ValueError,
            r"seed must be given where noise is drawn or rounding is stochastic, got None; pass .*",
            decay=0.5,
            stream=0,
            rounding="stochastic",
        ),
        row("step -1", one, ValueError, r"step must lie in 0 \.\. 2\^32 - 1, got -1", **NOISY, step=-1),
        row("step 2^32", one, ValueError, r"step must lie in 0 \.\. 2\^32 - 1, got 4294967296", **NOISY, step=2**32),
        row("step 1.0", one, TypeError, r"step must be an int, got 1\.0", **NOISY, step=1.0),
        row(
            "distribution",
            one,
            ValueError,
            r"distribution must be 'none' or 'normal' or 'uniform' or 'rademacher', got 'gauss'",
            **NOISY,
            distribution="gauss",
        ),
        row(
            "rounding", one, ValueError, r"rounding must be 'nearest' or 'stochastic', got 'up'", **NOISY, rounding="up"
        ),
        row(
            "stochastic float32",
            one,
            ValueError,
            r"rounding must be 'nearest' for weights of float32, got 'stochastic'; only float16 and bfloat16 .*",
            **NOISY,
            rounding="stochastic",
        ),
        any_row(
            "update_ state of another dtype",
            lambda w, s: cw.update_(w, scale=1.0, seed=s, stream=0),
            lambda d: (t(d, 2), t(d, 2)),
            TypeError,
            r"update_: seed must be an int64 tensor of two, seed and step, got float32 of shape \(2,\)",
        ),
        any_row(
            "update_ state and step",
            lambda w, s: cw.update_(w, scale=1.0, seed=s, step=1, stream=0),
            lambda d: (t(d, 2), t(d, 2, dtype=torch.int64)),
            ValueError,
            r"update_: step must be left out where seed is a tensor that holds it, got 1",
        ),
    ]


def bad_streams() -> list[ErrorInput]:
    pair = lambda d: ([t(d, 2), t(d, 2)],)  # noqa: E731
    return [
        row(
            "no stream",
            one,
            ValueError,
            r"stream must be given for a single tensor, .*, got None; pass .*",
            scale=0.1,
            seed=0,
        ),
        row("stream -1", one, ValueError, r"stream must lie in 0 \.\. 2\^32 - 1, got -1", **{**NOISY, "stream": -1}),
        row(
            "stream 1.5",
            one,
            TypeError,
            r"stream must be a name or a number of 0 \.\. 2\^32 - 1, got 1\.5",
            **{**NOISY, "stream": 1.5},
        ),
        row("one stream for a list", pair, TypeError, r"stream must be a list of names or numbers .*, got 0", **NOISY),
        row(
            "too few streams",
            pair,
            ValueError,
            r"stream must hold one entry for each of 2 tensors, got 1",
            scale=1,
            seed=0,
            stream=[3],
        ),
        row(
            "streams for names",
            lambda d: ({"a": t(d, 2)},),
            ValueError,
            r"stream must be left out where names give the streams, got 0",
            **NOISY,
        ),
        row(
            "names that are one without prefixes",
            lambda d: ({"module.a": t(d, 2), "a": t(d, 2)},),
            ValueError,
            r"params must have names that differ once wrappers' prefixes are gone, got 'a' twice",
            scale=0.1,
            seed=0,
        ),
    ]


def bad_params() -> list[ErrorInput]:
    drawn = {"scale": 0.1, "seed": 0}
    tensor = lambda d: t(d, 2)  # noqa: E731
    rows = [
        row("a number", lambda d: (3.0,), TypeError, r"params must be a tensor, a list, a dict or a module, got float"),
        row("None", lambda d: (None,), TypeError, r"params must be a tensor, a list, a dict or a module, got NoneType"),
        row("a name", lambda d: ("fc.weight",), TypeError, r"params must be a tensor, .*, got str"),
        row(
            "a list of numbers",
            lambda d: ([tensor(d), 1.0],),
            TypeError,
            r"params\[1\] must be a torch\.Tensor, got float",
        ),
        row(
            "a list of pairs",
            lambda d: ([("a", tensor(d))],),
            TypeError,
            r"params\[0\] must be a torch\.Tensor, got tuple; make a dict of names and tensors",
        ),
        row("a dict of numbers", lambda d: ({"a": 1},), TypeError, r"params\['a'\] must be a torch\.Tensor, got int"),
        row("numbers for names", lambda d: ({1: tensor(d)},), TypeError, r"params must have names for keys, got 1"),
        row(
            "integer weights",
            lambda d: ({"a": tensor(d), "ids": t(d, 2, dtype=torch.int64)},),
            TypeError,
            r"params\['ids'\] must be float64, float32, float16 or bfloat16, got int64",
            **drawn,
        ),
        row(
            "nine dimensions",
            lambda d: (t(d, *[1] * 9),),
            ValueError,
            r"params must have at most 8 dimensions, got 9",
            shift=1.0,
        ),
        row(
            "a weight listed twice",
            lambda d: ((w := tensor(d)) is not None and [w, t(d, 3), w],),
            ValueError,
            r"params\[2\] must be listed once, got the tensor of params\[0\]",
            **drawn,
        ),
        row(
            "one memory listed twice",
            lambda d: ((w := tensor(d)) is not None and [w, w.view(2)],),
            ValueError,
            r"params\[1\] must not share memory with params\[0\], got views of one storage",
            **drawn,
        ),
        row(
            "overlapping views",
            lambda d: (halves(d),),
            ValueError,
            r"params\[1\] must not share memory with params\[0\], got views of one storage",
            **drawn,
        ),
        row(
            "overlapping views by name",
            lambda d: (dict(zip("ab", halves(d), strict=True)),),
            ValueError,
            r"params\['b'\] must not share memory with params\['a'\], got views of one storage",
            **drawn,
        ),
        row(
            "only frozen ones",
            lambda d: (frozen(d),),
            ValueError,
            r"params must hold a parameter that requires a gradient, got 2 frozen; pass frozen=True to write those",
            **drawn,
        ),
    ]
    for kind, (make, error, rule) in NOT_WRITABLE.items():
        if kind not in ("None", "a list"):
            rule = rule.replace(r"weight\.", r"params\.").replace(r"call \w+\.", r"call .*\.")
            rows.append(row(f"params {kind}", lambda d, make=make: (make(d),), error, f"params must {rule}", **NOISY))
            rows.append(
                row(
                    f"params with one {kind}",
                    lambda d, make=make: ({"a.b": t(d, 2), "c": make(d)},),
                    error,
                    rf"params\['c'\] must {rule.replace('params', '.*')}",
                    **drawn,
                )
            )
    return rows


def bad_masks() -> list[ErrorInput]:
    def masked(name: str, params: Callable[[str], Any], mask: Callable[[str], Any], error: type, sentence: str):
        call = lambda w, m: cw.update_(w, shift=1.0, mask=m)  # noqa: E731
        return any_row(f"update_ mask {name}", call, lambda d: (params(d), mask(d)), error, f"update_: {sentence}")

    weight = lambda d: t(d, 2, 3)  # noqa: E731
    on = lambda *shape: lambda d: torch.ones(shape, dtype=torch.bool, device=d)  # noqa: E731
    return [
        masked("shape", weight, on(2), ValueError, r"mask must broadcast to shape \(2, 3\), got shape \(2,\)"),
        masked(
            "rank", weight, on(1, 2, 3), ValueError, r"mask must broadcast to shape \(2, 3\), got shape \(1, 2, 3\)"
        ),
        masked("dtype", weight, weight, TypeError, r"mask must be bool, got float32; compare it, as in mask != 0"),
        masked("list", weight, lambda d: [True], TypeError, r"mask must be a torch\.Tensor, got list"),
        masked(
            "for a list",
            lambda d: [weight(d)],
            on(2, 3),
            TypeError,
            r"mask must be a list with an entry or None for each tensor, got Tensor",
        ),
        masked(
            "count",
            lambda d: [weight(d)],
            lambda d: [None] * 2,
            ValueError,
            r"mask must hold one entry .* 1 tensors, got 2",
        ),
        masked(
            "for a dict",
            lambda d: {"a": weight(d)},
            on(2, 3),
            TypeError,
            r"mask must be a dict with names .*, got Tensor",
        ),
        masked(
            "names",
            lambda d: {"a": weight(d)},
            lambda d: {"b": on(2, 3)(d)},
            ValueError,
            r"mask must hold names of params, got 'b'",
        ),
        masked(
            "shape by name",
            lambda d: {"a": weight(d)},
            lambda d: {"a": on(4)(d)},
            ValueError,
            r"mask of params\['a'\] must broadcast to shape \(2, 3\), got shape \(4,\)",
        ),
    ]


def bad_boxes() -> list[ErrorInput]:
    return [
        row("box", one, TypeError, r"box must be \(shape of the whole, offset in it\), got 3", **NOISY, box=3),
        row(
            "box rank",
            one,
            ValueError,
            r"box must have 2 dimensions, got \(\(4,\), \(0,\)\)",
            **NOISY,
            box=((4,), (0,)),
        ),
        row(
            "box outside",
            one,
            ValueError,
            r"box must hold a piece of shape \(2, 3\), got \(\(4, 3\), \(3, 0\)\)",
            **NOISY,
            box=((4, 3), (3, 0)),
        ),
        row(
            "box before",
            one,
            ValueError,
            r"box must hold a piece of shape \(2, 3\), got .*",
            **NOISY,
            box=((4, 3), (-1, 0)),
        ),
        row(
            "box too large",
            one,
            ValueError,
            r"box must be of a whole of at most 2\^50 elements, got .*",
            **NOISY,
            box=((2**40, 2**11), (0, 0)),
        ),
    ]


def bad_accumulations() -> list[ErrorInput]:
    def row(name: str, seeds: Any, coefficients: Any, error: type, sentence: str, **keywords: Any) -> ErrorInput:
        return any_row(
            f"accumulate_noise_ {name}",
            cw.accumulate_noise_,
            lambda d: (t(d, 2), seeds, coefficients),
            error,
            f"accumulate_noise_: {sentence}",
            **{"stream": 0, **keywords},
        )

    return [
        row("no seeds", [], [], ValueError, r"seeds must hold 1 \.\. 1024 numbers, got 0"),
        row("too many", [1] * 1025, [1.0] * 1025, ValueError, r"seeds must hold 1 \.\. 1024 numbers, got 1025"),
        row("one seed", 5, [1.0], TypeError, r"seeds must be a list of numbers, got 5"),
        row("counts", [1, 2], [1.0], ValueError, r"coefficients must hold one number for each of the 2 seeds, got 1"),
        row("NaN", [1, 2], [1.0, math.nan], ValueError, r"coefficients must be finite, got nan"),
        row("seed", [1, -2], [1.0, 1.0], ValueError, r"seeds must lie in 0 \.\. 2\^64 - 1, got -2"),
        row("None", [None], [1.0], ValueError, r"seeds must be given where noise is drawn or .*"),
        row(
            "none",
            [1],
            [1.0],
            ValueError,
            r"distribution must be one that draws noise, got 'none'",
            distribution="none",
        ),
        row("no stream", [1], [1.0], ValueError, r"stream must be given for a single tensor, .*", stream=None),
    ]


def bad_initialisations() -> list[ErrorInput]:
    def row(name: str, function: Any, error: type, sentence: str, shape: tuple = (2, 3), **keywords: Any) -> ErrorInput:
        keywords = {"seed": 0, "stream": 0, **keywords}
        label = function.__name__
        return any_row(
            f"{label} {name}", function, lambda d: (t(d, *shape),), error, f"{label}: {sentence}", **keywords
        )

    def filled(name: str, fill: Any, error: type, sentence: str, dtype: torch.dtype = torch.float32) -> ErrorInput:
        pair = lambda d: (t(d, 4, 3, dtype=dtype), t(d, 2, 3, dtype=dtype), {0: cw.Pad()})  # noqa: E731
        return any_row(f"transfer_ fill {name}", cw.transfer_, pair, error, f"transfer_: {sentence}", fill=fill)

    init = cw.init
    return [
        row("seed", init.normal_, ValueError, r"seed must lie in 0 \.\. 2\^64 - 1, got -1", seed=-1),
        row("no seed", init.normal_, TypeError, r"seed must be an int, got None", seed=None),
        row(
            "stream",
            init.normal_,
            TypeError,
            r"stream must be a name or a number of 0 \.\. 2\^32 - 1, got None",
            stream=None,
        ),
        row("std", init.normal_, ValueError, r"std must be at least 0, got -1\.0", std=-1.0),
        row("mean", init.normal_, ValueError, r"mean must be finite, got nan", mean=math.nan),
        row("bounds", init.uniform_, ValueError, r"a must be at most b, got 2\.0 and 1\.0", a=2.0),
        row(
            "rank",
            init.kaiming_normal_,
            ValueError,
            r"weight must have at least 2 dimensions for a fan, got shape \(3,\)",
            (3,),
        ),
        row("mode", init.kaiming_uniform_, ValueError, r"mode must be 'fan_in' or 'fan_out', got 'fan'", mode="fan"),
        row(
            "nonlinearity",
            init.kaiming_normal_,
            ValueError,
            r"nonlinearity must be one that torch\.nn\.init\.calculate_gain knows, got 'sin'",
            nonlinearity="sin",
        ),
        row("gain", init.xavier_uniform_, TypeError, r"gain must be a number, got 'relu'", gain="relu"),
        any_row(
            "xavier_normal_ of integers",
            init.xavier_normal_,
            lambda d: (t(d, 2, 3, dtype=torch.int32),),
            TypeError,
            r"xavier_normal_: weight must be float64, float32, float16 or bfloat16, got int32",
            seed=0,
            stream=0,
        ),
        any_row(
            "normal_ of a list",
            init.normal_,
            lambda d: ([1.0],),
            TypeError,
            r"normal_: weight must be a torch\.Tensor, got list",
            seed=0,
            stream=0,
        ),
        filled("seed", init.Normal(seed=-1, stream=0), ValueError, r"seed must lie in 0 \.\. 2\^64 - 1, got -1"),
        filled(
            "stream",
            init.Normal(seed=0, stream=None),
            TypeError,
            r"stream must be a name or a number of 0 \.\. 2\^32 - 1, got None",
        ),
        filled(
            "std",
            init.Normal(std=1e300, seed=0, stream=0),
            ValueError,
            r"mean and std must be finite in float32, got 1e\+300",
        ),
        filled(
            "of integers",
            init.Normal(seed=0, stream=0),
            ValueError,
            r"fill must be a value that int32 can hold, got Normal",
            torch.int32,
        ),
        any_row(
            "noise shape",
            cw.noise,
            lambda d: ((2, -1),),
            ValueError,
            r"noise: shape must be at least 0, got -1",
            seed=0,
        ),
        any_row(
            "noise dtype",
            cw.noise,
            lambda d: (2,),
            TypeError,
            r"noise: dtype must be float64, float32, float16 or bfloat16, got int64",
            seed=0,
            dtype=torch.int64,
        ),
        any_row("noise seed", cw.noise, lambda d: (2,), ValueError, r"noise: seed must be given .*", seed=None),
    ]


def bad_updates() -> list[ErrorInput]:
    return [
        *bad_numbers(),
        *bad_streams(),
        *bad_params(),
        *bad_masks(),
        *bad_boxes(),
        *bad_accumulations(),
        *bad_initialisations(),
    ]
