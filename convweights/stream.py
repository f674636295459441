"""The noise stream in pure torch: noise is a function of (distribution, seed, step, stream, index) and of nothing else.

``seed`` (64 bits) is the experiment, ``step`` (32 bits) the training step, ``stream`` (32 bits) the tensor, ``index``
(50 bits) the element's place in the row-major order of the whole tensor, whatever its layout, device, dtype or
sharding. Words come from Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, SC'11). Every fused
multiply-add below is one correctly rounded operation, and so is every other operation: csrc/element/noise.h gives the
same bits.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import torch

# The codes of csrc/element/noise.h are the positions in this tuple; a test compares the two.
DISTRIBUTIONS = ("none", "normal", "uniform", "rademacher")

NOISE, STOCHASTIC_ROUNDING = 0, 1  # purposes, in the low bits of the tag
MOST_INDICES = 2**50

_LOW = 0xFFFFFFFF
# Elements whose words are in memory at a time.
_CHUNK = 2**18


def stream_of(name: str) -> int:
    """The stream of a tensor of that name: the first 4 bytes, little-endian, of BLAKE2b-256 of its UTF-8."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=32).digest()[:4], "little")


@functools.lru_cache(maxsize=256)
def streams_of(names: tuple[str, ...]) -> tuple[int, ...]:
    """The streams of one model's names; of two that collide the later in sorted order hashes its name and a NUL."""
    taken: dict[int, str] = {}
    for name in sorted(set(names)):
        text = name
        while (stream := stream_of(text)) in taken:
            text += "\0"
        taken[stream] = name
    by_name = {name: stream for stream, name in taken.items()}
    return tuple(by_name[name] for name in names)


def noise(distribution: str, index: torch.Tensor, seed: int, step: int, stream: int) -> torch.Tensor:
    """float32 noise for each int64 ``index``, in its shape and on its device."""
    flat = index.reshape(-1)
    parts = [_noise(distribution, part, seed, step, stream) for part in flat.split(_CHUNK)]
    return torch.cat(parts).reshape(index.shape)


def words(index: torch.Tensor, seed: int, step: int, stream: int, purpose: int) -> torch.Tensor:
    """The 32-bit word of each index: word ``index % 4`` of call ``index // 4``."""
    return torch.stack(philox(index >> 2, seed, step, stream, purpose)).gather(0, (index & 3).unsqueeze(0))[0]


def philox(q: torch.Tensor, seed: int, step: int, stream: int, purpose: int) -> tuple[torch.Tensor, ...]:
    """The four words of each call ``q``, as int64. Bits 12 to 15 of the tag, the stream's version, are 0."""
    counter = (q & _LOW, (q >> 32 & 0xFFFF) | purpose << 16, torch.full_like(q, stream), torch.full_like(q, step))
    return philox_rounds(counter, (seed & _LOW, seed >> 32 & _LOW))


def philox_rounds(counter: tuple[torch.Tensor, ...], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Philox4x32-10 on int64 tensors of 32-bit values."""
    x, y, z, w = counter
    first, second = key
    for _ in range(10):
        (high_x, low_x), (high_z, low_z) = _product(x, 0xD2511F53), _product(z, 0xCD9E8D57)
        x, y, z, w = high_z ^ y ^ first, low_z, high_x ^ w ^ second, low_x
        first, second = (first + 0x9E3779B9) & _LOW, (second + 0xBB67AE85) & _LOW
    return x, y, z, w


def _product(a: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The halves of a 32 x 32 bit product, which would not fit int64 whole."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _LOW


def _noise(distribution: str, index: torch.Tensor, seed: int, step: int, stream: int) -> torch.Tensor:
    if distribution == "rademacher":
        of_call = torch.stack(philox(index >> 7, seed, step, stream, NOISE))
        word = of_call.gather(0, (index >> 5 & 3).unsqueeze(0))[0]
        return 1.0 - 2.0 * (word >> (index & 31) & 1).float()
    if distribution == "uniform":
        word = words(index, seed, step, stream, NOISE)
        return _signed(word & ~0xFF).float() * 2.0**-31 + 2.0**-24
    x, y, z, w = philox(index >> 2, seed, step, stream, NOISE)
    upper = index & 2 != 0
    first, second = _normal(torch.where(upper, z, x), torch.where(upper, w, y))
    return torch.where(index & 1 == 0, first, second)


def _signed(word: torch.Tensor) -> torch.Tensor:
    return torch.where(word >= 2**31, word - 2**32, word)


def _normal(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two standard normal numbers from two words, by Box and Muller; the polynomials are minimax fits."""
    # u in [2^-32, 1 - 2^-24], u = 2^e * (1 + m) with 1 + m in [sqrt(1/2), sqrt(2)); exponent is e * 2^23.
    u = _fma((a >> 1).float(), _SPREAD, 2.0**-32)
    bits = u.view(torch.int32).long()
    exponent = (bits - 0x3F3504F3) & ~0x7FFFFF
    m = (bits - exponent).int().view(torch.float32) - 1.0
    s = _fma(exponent.float(), _MINUS_2_LN_2, m * _horner(m, _LOG))  # -2 ln u
    r = s.double().sqrt().float()  # torch.sqrt of float32 is not always correctly rounded
    r = torch.where(a & 1 == 1, -r, r)
    v = _signed(b).float() * 2.0**-31  # quarter turns
    t = v * v
    return r * _horner(t, _COSINE), r * v * _horner(t, _SINE)


def _hex(*texts: str) -> tuple[float, ...]:
    return tuple(map(float.fromhex, texts))


# The highest power first.
_LOG = _hex(
    *("0x1.9e329cp-3", "-0x1.4c371cp-2", "0x1.613e34p-2", "-0x1.978df6p-2"),
    *("0x1.ff63acp-2", "-0x1.5559e6p-1", "0x1.000078p+0", "-0x1.fffffep+0"),
)
_COSINE = _hex("0x1.c128aap-11", "-0x1.54e8d8p-6", "0x1.03bc78p-2", "-0x1.3bd39ep+0", "0x1.fffffep-1")
_SINE = _hex("0x1.4701dep-13", "-0x1.32e974p-8", "0x1.466f3ep-4", "-0x1.4abbf0p-1", "0x1.921fb6p+0")
_SPREAD, _MINUS_2_LN_2 = _hex("0x1.fffffep-32", "-0x1.62e430p-23")


def _horner(t: torch.Tensor, coefficients: Sequence[float]) -> torch.Tensor:
    total = torch.full_like(t, coefficients[0])
    for coefficient in coefficients[1:]:
        total = _fma(total, t, coefficient)
    return total


def _fma(a: torch.Tensor, b: torch.Tensor | float, c: torch.Tensor | float) -> torch.Tensor:
    """a * b + c of float32 numbers, rounded once.

    The product is exact in float64; its sum with c is rounded to odd, so that the rounding to float32 that follows
    sees on which side of a tie the exact sum lies.
    """
    product = a.double() * b
    total = product + c
    taken = total - product
    error = (product - (total - taken)) + (c - taken)
    bits = total.view(torch.int64)
    outward = (error > 0) == (total > 0)
    nudged = bits + torch.where(outward, 1, -1)
    return torch.where((error != 0) & (bits & 1 == 0), nudged, bits).view(torch.float64).float()
