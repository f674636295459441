"""The reference judges update_'s kernels on every device and instruction set. Family: exact."""

import itertools

import numpy as np
import pytest
import torch
from bits import assert_same_bits, storage_of
from cases import Placed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import COMPUTE_DTYPES
from update_cases import RECIPE, Target, UpdateCase, plain, update_cases

import convweights as cw

FIXTURES = settings(
    suppress_health_check=[*settings.default.suppress_health_check, HealthCheck.function_scoped_fixture]
)
DISTRIBUTIONS = ("normal", "uniform", "rademacher")


@FIXTURES
@given(case=update_cases())
def test_every_instruction_set(simd_level: str, case: UpdateCase):
    case.check("cpu")


@given(case=update_cases())
def test_every_device(device: str, case: UpdateCase):
    case.check(device)


# More than a unit of work, ragged at both ends.
LARGE = [
    plain((150_001,), around=3),
    plain((40_003,), torch.bfloat16, stream=1, wild=True),
    plain((70, 30, 3, 3), torch.float16, stream=2, order=(0, 2, 3, 1)),
    plain((9, 9_001), torch.float64, stream=3, steps=(1, 2)),
    Target(plain((30, 40, 3, 3)).weight, 4, None, ((40, 80, 3, 3), (5, 21, 0, 0))),
    Target(plain((300, 700), torch.bfloat16).weight, 5, None, ((300, 2_100), (0, 699))),
]


def with_mask(target: Target, *shape: int) -> Target:
    mask = Placed.make(shape, torch.bool, np.random.default_rng(5))
    return Target(target.weight, target.stream, mask, target.box)


LARGE += [
    with_mask(plain((64, 32, 3, 3)), 64, 1, 1, 1),
    with_mask(plain((64, 32, 3, 3)), 1, 32, 1, 1),
    with_mask(plain((64, 300)), 64, 300),
    with_mask(plain((64, 32, 3, 3), torch.bfloat16, order=(0, 2, 3, 1)), 64, 1, 3, 1),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_large_tensors(implementation_device: str, distribution: str):
    for recipe in ({}, {"decay": 0.9, "shift": 0.25}, {"decay": 0.0}):
        UpdateCase(LARGE, {"distribution": distribution, **recipe}).check(implementation_device)
    seeds = {"seeds": [1, 2**64 - 1, 3], "scales": [0.5, -1.0, 1e-3], "accumulate": True}
    UpdateCase(LARGE, {"distribution": distribution, **seeds}).check(implementation_device)
    narrow = [target for target in LARGE if target.weight.base.dtype.itemsize == 2]
    UpdateCase(narrow, {"distribution": distribution, "stochastic": True}).check(implementation_device)


@pytest.fixture
def implementation_device(simd_level: str) -> str:
    return "cpu"


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_large_tensors_on_every_device(device: str, distribution: str):
    UpdateCase(LARGE, {"distribution": distribution, "decay": 0.9}).check(device)


def test_thread_count_does_not_matter(threads):
    for distribution in DISTRIBUTIONS:
        case = UpdateCase(LARGE, {"distribution": distribution})
        expected = case.by_reference()
        for count in (1, 2, 7):
            threads(count)
            for actual, wanted in zip(case.by_operator("cpu"), expected, strict=True):
                assert_same_bits(storage_of(actual), storage_of(wanted), computed=True)


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_memory_format_and_dtype_do_not_matter(device: str, distribution: str, dtype: torch.dtype):
    drawn = {"seed": 3, "step": 4, "distribution": distribution}
    expected = cw.noise((6, 5, 7, 3), **drawn, stream="w", dtype=dtype)
    for shape in ((6, 5, 7, 3), (7, 3, 6, 5)):
        weight = torch.zeros(shape, dtype=dtype, device=device)
        if shape[0] == 7:
            weight = weight.permute(2, 3, 0, 1)
        cw.perturb_(weight, scale=1.0, **drawn, stream="w")
        assert_same_bits(weight, expected)
        assert_same_bits(weight, cw.noise((6, 5, 7, 3), **drawn, stream="w").to(dtype))


CUTS = st.lists(st.integers(0, 12), max_size=3).map(lambda cuts: sorted({0, 12, *cuts}))


@given(cuts=st.tuples(CUTS, CUTS, CUTS), dtype=st.sampled_from(COMPUTE_DTYPES), kind=st.sampled_from(DISTRIBUTIONS))
def test_any_split_into_shards_equals_the_whole(device: str, cuts, dtype: torch.dtype, kind: str):
    shape = (12, 12, 12)
    drawn = {"scale": 0.5, "decay": 0.5, "seed": 9, "distribution": kind}
    start = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    whole = cw.update_(start.clone(), **drawn, stream=7)
    for edges in itertools.product(*(list(itertools.pairwise(cut)) for cut in cuts)):
        box = tuple(slice(a, b) for a, b in edges)
        shard = start[box].clone()
        cw.update_(shard, **drawn, stream=7, box=(shape, [a for a, _ in edges]))
        assert_same_bits(shard, whole[box])


def test_masked_elements_keep_their_bits(device: str):
    payloads = torch.arange(1, 4001, dtype=torch.int32) + 0x7F800000
    nans = payloads.view(torch.float32).reshape(40, 100).to(device)
    mask = torch.rand(40, 100, generator=torch.Generator().manual_seed(0)).to(device) < 0.5
    weight = nans.clone()
    cw.update_(weight, decay=0.0, scale=1.0, seed=0, stream=0, mask=mask)
    kept = torch.where(mask, 0, weight.view(torch.int32))
    assert torch.equal(kept, torch.where(mask, 0, nans.view(torch.int32)))
    assert_same_bits(weight[mask], cw.noise((40, 100), seed=0, device=device)[mask])


def test_a_decay_of_0_does_not_read(device: str):
    for dtype in COMPUTE_DTYPES:
        weight = torch.full((3000,), torch.nan, dtype=dtype, device=device)
        cw.update_(weight, decay=0.0, scale=2.0, seed=1, stream=0)
        assert_same_bits(weight, (2 * cw.noise(3000, seed=1)).to(dtype))
        cw.update_(weight, decay=0.0)
        assert_same_bits(weight, torch.zeros(3000, dtype=dtype))
        cw.update_(weight, decay=0.0, shift=-1.5)
        assert (weight == -1.5).all()


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_special_values(device: str, dtype: torch.dtype):
    """NaN and infinities as tensor arithmetic has them, subnormals kept, signed zeros left alone."""
    tiny = torch.finfo(dtype).smallest_normal
    values = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, tiny / 2, -tiny / 4, torch.finfo(dtype).max]
    start = torch.tensor(values * 40, dtype=dtype, device=device)
    assert_same_bits(cw.update_(start.clone()), start, computed=True)
    noise = cw.noise(320, seed=5, device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    moved = cw.perturb_(start.clone(), scale=1e-3, seed=5, stream=0)
    assert_same_bits(moved, (start.to(noise.dtype) + 1e-3 * noise).to(dtype), computed=True)
    halved = cw.update_(start.clone(), decay=0.5, shift=1.0)
    assert_same_bits(halved, (start.to(noise.dtype) * 0.5 + 1.0).to(dtype), computed=True)
    least = cw.update_(start.clone(), decay=0.0, shift=float(tiny) / 4)
    assert (least == tiny / 4).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [1.0003, -0.7, 3e-6, 2e-8, 5e-41])
def test_stochastic_rounding_is_unbiased(device: str, dtype: torch.dtype, value: float):
    """The mean of 1e6 draws within 5 sigma of the value: the step between neighbours bounds sigma."""
    count = 1_000_000
    exact = torch.tensor(value)
    weight = torch.zeros(count, dtype=dtype, device=device)
    cw.update_(weight, decay=0.0, shift=value, seed=11, stream="w", rounding="stochastic")
    found = weight.double().unique().cpu()
    assert len(found) <= 2
    low, high = float(found.min()), float(found.max())
    assert low <= exact <= high or (len(found) == 1 and abs(float(exact) - low) < 2.0**-50)
    chance = 0.0 if high == low else (float(exact) - low) / (high - low)
    sigma = (high - low) * (chance * (1 - chance) / count) ** 0.5
    # float16 sees no bits more than 32 below its last one.
    assert abs(float(weight.double().mean()) - float(exact)) <= 5 * sigma + 2.0**-56


def test_stochastic_rounding_is_exact_where_nothing_is_lost(device: str):
    for dtype in (torch.float16, torch.bfloat16):
        pattern = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).to(device)
        rounded = cw.update_(pattern.clone(), seed=0, stream=0, rounding="stochastic")
        assert_same_bits(rounded, pattern, computed=True)


def test_steps_streams_and_seeds_differ(device: str):
    weights = [
        cw.noise(64, seed=seed, step=step, stream=stream, device=device)
        for seed in (0, 1, 2**32, 2**63)
        for step in (0, 1)
        for stream in (0, 1, "a")
    ]
    assert len({tuple(weight.tolist()) for weight in weights}) == len(weights)


def test_a_seed_and_a_step_on_the_device(device: str):
    for seed, step in ((5, 0), (-1, 2**32 - 1)):
        state = torch.tensor([seed, step], device=device)
        weight = cw.update_(torch.zeros(100, device=device), scale=1.0, seed=state, stream=1)
        assert_same_bits(weight, cw.noise(100, seed=seed % 2**64, step=step, stream=1))


def test_more_seeds_than_one(device: str):
    seeds, coefficients = list(range(1024)), [2.0**-k for k in range(1024)]
    case = UpdateCase([plain((50,))], {"accumulate": True, "seeds": seeds, "scales": coefficients})
    case.check(device)


def test_many_tensors_of_every_dtype_and_layout(device: str):
    layouts = ({}, {"order": (1, 0)}, {"steps": (1, 2)})
    targets = [plain((1 + k % 7, 1 + k % 50), COMPUTE_DTYPES[k % 4], stream=k, **layouts[k % 3]) for k in range(1000)]
    UpdateCase(targets, {"decay": 0.75}).check(device)


def test_the_recipe_of_these_tests_is_the_default():
    weight = torch.ones(100)
    cw.update_(weight, scale=RECIPE["scales"][0], seed=RECIPE["seeds"][0], stream=0)
    (expected,) = UpdateCase([Target(Placed(torch.ones(100), (100,), (1,), 0))]).by_reference()
    assert_same_bits(weight, expected)
