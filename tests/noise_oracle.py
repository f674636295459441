"""The noise stream and the update as scalar loops: Python integers, exact fractions, one rounding at a time.

Nothing here is shared with the package. It judges the reference, which judges the compiled kernels.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from bits import bits

LOW = 0xFFFFFFFF
LOG = [
    *("0x1.9e329cp-3", "-0x1.4c371cp-2", "0x1.613e34p-2", "-0x1.978df6p-2"),
    *("0x1.ff63acp-2", "-0x1.5559e6p-1", "0x1.000078p+0", "-0x1.fffffep+0"),
]
COSINE = ["0x1.c128aap-11", "-0x1.54e8d8p-6", "0x1.03bc78p-2", "-0x1.3bd39ep+0", "0x1.fffffep-1"]
SINE = ["0x1.4701dep-13", "-0x1.32e974p-8", "0x1.466f3ep-4", "-0x1.4abbf0p-1", "0x1.921fb6p+0"]


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    x, y, z, w = counter
    k, l = key  # noqa: E741
    for _ in range(10):
        p, q = 0xD2511F53 * x, 0xCD9E8D57 * z
        x, y, z, w = q >> 32 ^ y ^ k, q & LOW, p >> 32 ^ w ^ l, p & LOW
        k, l = k + 0x9E3779B9 & LOW, l + 0xBB67AE85 & LOW  # noqa: E741
    return x, y, z, w


def call(q: int, seed: int, step: int, stream: int, tag: int = 0) -> tuple[int, ...]:
    return philox((q & LOW, q >> 32 & 0xFFFF | tag << 16, stream, step), (seed & LOW, seed >> 32))


def nearest(x: Fraction) -> np.float32:
    """The float32 nearest to a fraction, ties to even."""
    if x == 0:
        return np.float32(0)
    exponent = abs(x).numerator.bit_length() - abs(x).denominator.bit_length()
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - 23, -149)
    return np.float32(float(round(x / unit) * unit))


def fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    return nearest(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


def f32(text: str) -> np.float32:
    return np.float32(float.fromhex(text))


def signed(word: int) -> int:
    return word - 2**32 if word >> 31 else word


def horner(t: np.float32, coefficients: list[str]) -> np.float32:
    total = f32(coefficients[0])
    for coefficient in coefficients[1:]:
        total = fma(total, t, f32(coefficient))
    return total


def as_float(word: int) -> np.float32:
    return np.array([word & LOW], np.uint32).view(np.float32)[0]


def as_word(value: np.float32) -> int:
    return int(np.array([value], np.float32).view(np.uint32)[0])


def normal(a: int, b: int) -> tuple[np.float32, np.float32]:
    u = fma(nearest(Fraction(a >> 1)), f32("0x1.fffffep-32"), f32("0x1p-32"))
    word = as_word(u)
    h = word - 0x3F3504F3 & 0xFF800000
    m = as_float(word - h) - np.float32(1)
    s = fma(nearest(Fraction(signed(h))), f32("-0x1.62e430p-23"), m * horner(m, LOG))
    r = np.float32(math.sqrt(float(s)))
    r = -r if a & 1 else r
    v = nearest(Fraction(signed(b))) * f32("0x1p-31")
    t = v * v
    return r * horner(t, COSINE), r * v * horner(t, SINE)


def noise(distribution: str, index: int, seed: int, step: int, stream: int) -> np.float32:
    if distribution == "rademacher":
        word = call(index >> 7, seed, step, stream)[index >> 5 & 3]
        return np.float32(-1 if word >> (index & 31) & 1 else 1)
    words = call(index >> 2, seed, step, stream)
    if distribution == "uniform":
        return nearest(Fraction(signed(words[index & 3] & 0xFFFFFF00))) * f32("0x1p-31") + f32("0x1p-24")
    return normal(*(words[:2] if index & 3 < 2 else words[2:]))[index & 1]


def round_randomly(value: np.float32, random: int, dtype: torch.dtype) -> torch.Tensor:
    """To one of the two neighbours in ``dtype``: the bits below the last that stays get random ones added."""
    exact = Fraction(float(value))
    word = as_word(value)
    if dtype == torch.bfloat16:
        kept = word + (random >> 16) & LOW
        return torch.tensor(signed(kept & 0xFFFF0000), dtype=torch.int32).view(torch.float32).to(dtype)
    significand, exponent = math.frexp(abs(float(value)))
    if significand == 0:
        return torch.tensor(float(value), dtype=dtype)
    # abs(value) = whole * 2^(exponent - 24) with 24 bits in whole, where it is no subnormal of float32.
    dropped = 13 + max(0, -14 - (exponent - 1))
    if dropped > 32:
        return torch.tensor(math.copysign(0.0, float(value)), dtype=dtype)
    whole = abs(exact) / Fraction(2) ** (exponent - 24)
    kept = (int(whole) + (random >> (32 - dropped))) >> dropped
    rounded = Fraction(kept) * Fraction(2) ** (exponent - 24 + dropped)
    size = float("inf") if rounded > 65504 else float(rounded)
    return torch.tensor(math.copysign(size, float(value)), dtype=dtype)


def update(
    weight: torch.Tensor,
    mask: torch.Tensor | None,
    stream: int,
    box: tuple[tuple[int, ...], tuple[int, ...]] | None,
    recipe: dict,
) -> torch.Tensor:
    """The bits that ``update_`` must leave in one weight, as a new contiguous tensor. ``recipe``: its arguments."""
    result = weight.clone(memory_format=torch.contiguous_format)
    compute = np.float64 if weight.dtype == torch.float64 else np.float32
    torch_compute = torch.float64 if weight.dtype == torch.float64 else torch.float32
    whole, offset = box or (tuple(weight.shape), (0,) * weight.ndim)
    decay, shift = compute(recipe["decay"]), compute(recipe["shift"])
    seeds, scales = recipe["seeds"], [compute(scale) for scale in recipe["scales"]]
    distribution, step = recipe["distribution"], recipe["step"]
    with np.errstate(all="ignore"):
        for place in np.ndindex(*weight.shape):
            if mask is not None and not mask[place]:
                continue
            index = 0
            for size, start, position in zip(whole, offset, place, strict=True):
                index = index * size + start + position
            terms = []
            if decay != 0:
                old = compute(weight[place].to(torch_compute).item())
                terms.append(old if decay == 1 else decay * old)
            if shift != 0:
                terms.append(shift)
            if recipe["accumulate"]:
                total = compute(0)
                for seed, scale in zip(seeds, scales, strict=True):
                    total = total + scale * compute(noise(distribution, index, seed, step, stream))
                terms.append(total)
            elif distribution != "none" and scales[0] != 0:
                terms.append(scales[0] * compute(noise(distribution, index, seeds[0], step, stream)))
            new = terms[0] if terms else compute(0)
            for term in terms[1:]:
                new = new + term
            if recipe["stochastic"] and np.isfinite(new):
                made = round_randomly(new, call(index >> 2, seeds[0], step, stream, 1)[index & 3], weight.dtype)
            else:
                made = torch.tensor(float(new), dtype=torch_compute).to(weight.dtype)
            bits(result)[place] = bits(made)
    return result
