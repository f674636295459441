"""The noise as samples of its distributions: 1e8 numbers, tests that do not reject at 1e-4. Family: statistical.

The stream is fixed, so each of these passes always or never: a p-value is looked at once, when the stream is made.
"""

import math

import numpy as np
import pytest
import torch

import convweights as cw

# Of the extra "test", so CI has it; a machine that has only what the kernels need goes without these.
stats = pytest.importorskip("scipy.stats")

pytestmark = [pytest.mark.slow, pytest.mark.native]
COUNT = 100_000_000
LEAST = 1e-4


@pytest.fixture(scope="module")
def normal() -> np.ndarray:
    return cw.noise(COUNT, seed=2026, step=3, stream="fc.weight").numpy()


@pytest.fixture(scope="module")
def uniform() -> np.ndarray:
    return cw.noise(COUNT, seed=2026, step=3, stream="fc.weight", distribution="uniform").numpy()


def two_sided(deviation: float, sigma: float) -> float:
    return math.erfc(abs(deviation) / sigma / math.sqrt(2))


def test_normal_moments(normal: np.ndarray):
    z = normal.astype(np.float64)
    # The k-th moment of n samples varies by (E x^2k - (E x^k)^2) / n.
    moments = {1: 0, 2: 1, 3: 0, 4: 3, 6: 15, 8: 105, 10: 945, 12: 10395, 16: 2027025}
    for k in (1, 2, 3, 4, 6, 8):
        variance = moments[2 * k] - moments[k] ** 2
        assert two_sided(np.mean(z**k) - moments[k], math.sqrt(variance / COUNT)) > LEAST, k
    assert 5.5 < np.abs(z).max() < 6.67


def test_neighbours_do_not_correlate(normal: np.ndarray):
    z = normal.astype(np.float64)
    for lag in (1, 2, 3, 4, 32, 128, 1024):
        assert two_sided(np.mean(z[lag:] * z[:-lag]), 1 / math.sqrt(COUNT - lag)) > LEAST, lag
        square = np.mean((z[lag:] ** 2 - 1) * (z[:-lag] ** 2 - 1))
        assert two_sided(square, 2 / math.sqrt(COUNT - lag)) > LEAST, lag


def cells(values: np.ndarray, cumulative, count: int) -> float:
    """The p-value of chi-square over cells of equal probability."""
    hits = np.bincount(
        np.minimum((cumulative(values.astype(np.float64)) * count).astype(np.int64), count - 1), minlength=count
    )
    return float(stats.chisquare(hits).pvalue)


def kolmogorov(values: np.ndarray, cumulative) -> float:
    p = cumulative(np.sort(values).astype(np.float64))
    rank = np.arange(1, len(p) + 1) / len(p)
    distance = max((rank - p).max(), (p - rank + 1 / len(p)).max())
    return float(stats.kstwobign.sf(distance * math.sqrt(len(p))))


def anderson_darling(values: np.ndarray, cumulative, survival) -> float:
    """A^2 of a fully given distribution; 1e-4 is reached at about 7.0 (Marsaglia and Marsaglia, 2004)."""
    x = np.sort(values).astype(np.float64)
    weight = (2 * np.arange(1, len(x) + 1) - 1) / len(x)
    return float(-len(x) - np.sum(weight * (np.log(cumulative(x)) + np.log(survival(x[::-1])))))


def test_normal_distribution(normal: np.ndarray):
    assert kolmogorov(normal, stats.norm.cdf) > LEAST
    assert cells(normal, stats.norm.cdf, 4096) > LEAST
    assert anderson_darling(normal, stats.norm.cdf, stats.norm.sf) < 7.0


def test_uniform_distribution(uniform: np.ndarray):
    assert np.abs(uniform).max() < 1
    between = stats.uniform(-1, 2)
    assert kolmogorov(uniform, between.cdf) > LEAST
    assert cells(uniform, between.cdf, 4096) > LEAST
    assert anderson_darling(uniform, between.cdf, between.sf) < 7.0


def test_rademacher_distribution():
    z = cw.noise(COUNT, seed=2026, step=3, stream="fc.weight", distribution="rademacher")
    assert torch.equal(z.abs(), torch.ones(COUNT))
    assert two_sided(z.double().mean().item(), 1 / math.sqrt(COUNT)) > LEAST
    bits = (z < 0).view(-1, 8).numpy()
    octets = np.packbits(bits, axis=1, bitorder="little").ravel()
    assert stats.chisquare(np.bincount(octets, minlength=256)).pvalue > LEAST


def test_streams_steps_and_seeds_do_not_correlate():
    count = 10_000_000
    base = {"seed": 1, "step": 1, "stream": 1}
    z = cw.noise(count, **base).double()
    for other in ({"seed": 2}, {"step": 2}, {"stream": 2}, {"seed": 1 + 2**32}, {"seed": 1 + 2**63}):
        y = cw.noise(count, **{**base, **other}).double()
        assert two_sided((z * y).mean().item(), 1 / math.sqrt(count)) > LEAST, other
