"""The journal: oracle, reference and kernels on the bits, and what it brings back. Family: exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bits import assert_same_bits, bits, storage_of
from cases import Placed
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_cases import (
    DTYPES,
    JournalCase,
    by_reference,
    code,
    journal_cases,
    moved,
    operator,
    weights_of,
)

from convweights.ops.journal import CHUNK, ENTER, FLIP, LEAVE, layout_of

SMALL = [(), (1,), (7,), (0, 3), (5, 7), (2, 5, 1, 4), (130,)]


def flat(weight: torch.Tensor) -> torch.Tensor:
    return weight.reshape(-1).clone()


@settings(max_examples=60, deadline=None)
@given(case=journal_cases(most=2, shapes=SMALL))
def test_the_oracle_judges_the_reference(case: JournalCase):
    arguments = case.arguments("cpu")
    weights, journal = arguments[:2]
    before = [flat(weight) for weight in weights]
    by_reference(arguments, ENTER)
    for position, (old, weight) in enumerate(zip(before, weights, strict=True)):
        d = case.noise(position).numpy()
        at, room = case.layout.sections[position], case.layout.rooms[position]
        if int(journal[at : at + 4].view(torch.int32)):
            assert_same_bits(flat(weight), old)
            continue
        assert_same_bits(
            flat(weight), torch.cat([moved(w, z).reshape(1) for w, z in zip(old, d, strict=True)] or [old])
        )
        codes = [code(w, z) for w, z in zip(old, d, strict=True)]
        chunks, item = -(-len(old) // CHUNK), old.element_size()
        rooms = at + 8 + 8 * chunks
        coded = rooms + -(-chunks * room * item // 8) * 8
        packed = journal[coded : coded + -(-len(old) // 4)].tolist()
        assert [packed[i // 4] >> 2 * (i % 4) & 3 for i in range(len(old))] == [c & 3 for c in codes]
        escapes = old[[i for i, c in enumerate(codes) if c == 2]]
        near = escapes[:room]
        assert_same_bits(journal[rooms : rooms + len(near) * item].view(old.dtype), near)
        if len(escapes) > room:
            base = int(journal[at + 8 : at + 12].view(torch.int32))
            place = case.layout.pool + 4 * base
            assert_same_bits(journal[place : place + (len(escapes) - room) * item].view(old.dtype), escapes[room:])


ACTIONS = [[ENTER, LEAVE], [ENTER, FLIP, LEAVE], [ENTER, FLIP, FLIP, FLIP, LEAVE, ENTER]]


@settings(max_examples=100, deadline=None)
@given(case=journal_cases(), actions=st.sampled_from(ACTIONS))
def test_kernels_do_what_the_reference_does(device: str, case: JournalCase, actions: list[int]):
    """With one thread byte for byte, which chunk comes to the pool first included. A device has no such order: there
    chunks are compared as long as all of them find space.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found, expected = case.arguments(device), case.arguments("cpu")
        for action in actions:
            operator(*found, action)
            by_reference(expected, action)
            if device != "cpu" and expected[1][4:8].any():
                break
            for weight, judge in zip(found[0], expected[0], strict=True):
                assert_same_bits(storage_of(weight), storage_of(judge), computed=True)
            if device == "cpu":
                assert torch.equal(found[1], expected[1])
    finally:
        torch.set_num_threads(threads)


def case_of(values: torch.Tensor, scale: float, *, share: float = 1.0, seed: int = 0, **more) -> JournalCase:
    weight = Placed(values, tuple(values.shape), values.stride(), 0)
    layout = layout_of([values.numel()], [values.element_size()], [share])
    return JournalCase([weight], [5], [0], layout, scale=scale, seed=seed, **more)


def cycle(case: JournalCase, device: str, actions: list[int]) -> None:
    """Flipped weights are those moved by the opposite; in the end all bits are what they were."""
    arguments = case.arguments(device)
    before = flat(arguments[0][0])
    for action in actions:
        operator(*arguments, action)
    assert int(arguments[1][4:8].view(torch.int32)) == 0, "pending"
    assert_same_bits(flat(arguments[0][0]), before)


@pytest.mark.parametrize("distribution", ["normal", "uniform", "rademacher"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_number_comes_back(device: str, simd_level: str, dtype: torch.dtype, distribution: str):
    """NaN with any payload, infinities, both zeros, subnormals; at any size of the noise."""
    rng = np.random.default_rng(0)
    patterns = torch.from_numpy(rng.integers(0, 256, 50_001 * dtype.itemsize, dtype=np.uint8)).view(dtype)
    zeros = weights_of(50_001, dtype, rng, wild=False)
    zeros[torch.from_numpy(rng.random(50_001) < 0.9)] = -0.0
    for exponent in range(-12, 6, 2):
        for values in (patterns, zeros):
            cycle(case_of(values, 10.0**exponent, distribution=distribution), device, [ENTER, FLIP, FLIP, LEAVE])


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_numbers_of_16_bits_and_many_of_the_noise(device: str, dtype: torch.dtype, distribution: str):
    """65,536 numbers by 1,500 sizes of noise: 98 million pairs, each moved, flipped and brought back."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    rng = np.random.default_rng(0)
    for seed in range(1500):
        values = every[torch.from_numpy(rng.permutation(2**16))]
        cycle(
            case_of(values, float(2.0 ** rng.uniform(-30, 17)), seed=seed, distribution=distribution),
            device,
            ACTIONS[1],
        )


@pytest.mark.slow
def test_a_thousand_million_float32(device: str, threads):
    rng = np.random.default_rng(0)
    for seed in range(250):
        bits_of = torch.from_numpy(rng.integers(-(2**31), 2**31, 2**21, dtype=np.int64)).to(torch.int32)
        values = torch.cat([torch.randn(2**21), bits_of.view(torch.float32)])
        cycle(case_of(values, float(10.0 ** rng.uniform(-7, 1)), seed=seed), device, [ENTER, FLIP, LEAVE])


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_matter(device: str, dtype: torch.dtype):
    """They come to the pool in any order; weights and codes are the same, and what comes back."""
    values = weights_of(300_000, dtype, np.random.default_rng(0), wild=False)
    case = case_of(values, 0.3, share=0.03)
    results, before = [], torch.get_num_threads()
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        arguments = case.arguments(device)
        operator(*arguments, ENTER)
        operator(*arguments, FLIP)
        results.append(flat(arguments[0][0]))
        operator(*arguments, LEAVE)
        assert_same_bits(flat(arguments[0][0]).cpu(), values)
    torch.set_num_threads(before)
    assert all(torch.equal(bits(result), bits(results[0])) for result in results)


def same_chunks(a: torch.Tensor, b: torch.Tensor) -> list[bool]:
    return [torch.equal(bits(x), bits(y)) for x, y in zip(a.cpu().split(CHUNK), b.cpu().split(CHUNK), strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chunk_without_space_is_left_as_it_was(device: str, dtype: torch.dtype):
    """It is pending; the others are moved, and leaving brings back all of them."""
    values = weights_of(40 * CHUNK, dtype, np.random.default_rng(0), wild=False)
    values.reshape(40, CHUNK)[::3] *= 1e-3
    case = case_of(values, 0.05, share=0.02)
    arguments = case.arguments(device)
    (weight,), journal = arguments[:2]
    operator(*arguments, ENTER)
    pending = int(journal[4:8].view(torch.int32))
    assert 0 < pending <= 14
    assert int(journal[8:12].view(torch.int32)) == pending
    left = same_chunks(weight, values)
    went = same_chunks(weight, (values.float() + case.noise(0)).to(dtype))
    assert sum(left) == pending
    assert left == [not one for one in went]
    operator(*arguments, FLIP)
    assert sum(same_chunks(weight, values)) == pending
    operator(*arguments, LEAVE)
    assert_same_bits(weight.cpu(), values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_flip_without_space_leaves_a_chunk_moved(device: str, dtype: torch.dtype):
    """Where the pool is full, chunks with more escapes on the other side stay where they are."""
    values = weights_of(40 * CHUNK, dtype, np.random.default_rng(0), wild=False)
    arguments = case_of(values, 0.2, share=0.02).arguments(device)
    (weight,), journal, pool = arguments[0], arguments[1], arguments[4]
    operator(*arguments, ENTER)
    plus, full = weight.clone(), (len(journal) - pool) // 4
    journal[:4] = torch.tensor([full], dtype=torch.int32, device=device).view(torch.uint8)
    operator(*arguments, FLIP)
    pending = int(journal[4:8].view(torch.int32))
    assert 0 < pending < 40
    assert sum(same_chunks(weight, plus)) == pending
    operator(*arguments, LEAVE)
    assert_same_bits(weight.cpu(), values)


def test_what_the_operator_refuses(device: str):
    case = case_of(torch.ones(10), 0.1)
    good = [*case.arguments(device), ENTER]
    weights, journal = good[0], good[1]
    for position, value, message in (
        (2, [], "sections, rooms, streams and starts must hold one number a weight"),
        (2, [4], "sections must begin at a multiple of 8"),
        (2, [1 << 40], "sections must lie before the pool"),
        (3, [-1], "sections must begin"),
        (4, 4, "pool must begin at a multiple of 8"),
        (4, 1 << 40, "pool must begin"),
        (6, [7], "starts must be multiples of 4096"),
        (7, 0, "distribution must be 1, 2 or 3, got 0"),
        (11, 3, "action must be 0, 1 or 2, got 3"),
        (1, journal.view(torch.int8), "journal must be a row of bytes"),
        (0, [weights[0].double()], "weights must be float32, float16 or bfloat16"),
        (0, [torch.ones(1, device=device).expand(10)], "weights must give each element a place of its own"),
        (0, [journal[48:88].view(torch.float32)], "weights must not lie in the journal"),
        (8, float("nan"), "scale must be finite in float32"),
    ):
        bad = list(good)
        bad[position] = value
        with pytest.raises(RuntimeError, match=message):
            operator(*bad)
    assert weights[0].tolist() == [1.0] * 10


@pytest.mark.native
def test_two_weights_need_two_sections_and_two_places(device: str):
    weight = torch.ones(10, device=device)
    layout = layout_of([10, 10], [4, 4], [0.1, 0.1])
    journal = torch.zeros(layout.nbytes, dtype=torch.uint8, device=device)

    def run(weights: list[torch.Tensor], sections: list[int]) -> None:
        operator(weights, journal, sections, layout.rooms, layout.pool, [1, 2], [0, 0], 1, 0.1, 0, 0, ENTER)

    with pytest.raises(RuntimeError, match="sections must not overlap"):
        run([weight, weight.clone()], [8, 8])
    with pytest.raises(RuntimeError, match="weights must not share memory"):
        run([weight, weight], list(layout.sections))
    assert weight.tolist() == [1.0] * 10


@pytest.mark.parametrize("action", [FLIP, LEAVE])
def test_a_journal_of_other_bytes_is_pending(device: str, action: int):
    """Nothing is read or written outside of it."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        case = case_of(weights_of(30_000, torch.float32, rng, wild=False), 0.1, share=0.01)
        arguments = case.arguments(device)
        octets = torch.from_numpy(rng.integers(0, 256, len(arguments[1]), dtype=np.uint8)).to(device)
        octets[:8] = 0
        arguments[1].copy_(octets)
        operator(*arguments, action)


def test_the_operator_is_registered_in_full():
    arguments = [*case_of(torch.randn(5000), 0.1).arguments("cpu"), ENTER]
    torch.library.opcheck(operator, tuple(arguments), test_utils=("test_schema", "test_faketensor"))
    weight = arguments[0][0]
    version = weight._version
    operator(*arguments)
    assert weight._version > version
