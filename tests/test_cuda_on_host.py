"""The CUDA kernels, compiled for the host and run under AddressSanitizer, against the reference. Family: exact."""

import struct
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bits import assert_same_bits, storage_of
from cases import Case, Placed
from fill_cases import Fill, by_reference, fills
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from journal_cases import JournalCase, journal_cases, weights_of
from oracle import COMPUTE_DTYPES
from strategies import REALISTIC, small_cases
from tables import DEEP, MAPS, deep_case, small_case
from test_transfer import realistic
from test_update import LARGE
from update_cases import Target, UpdateCase, plain, update_cases

import convweights as cw
from convweights.maps import KINDS
from convweights.ops.journal import layout_of
from convweights.ops.journal_reference import reference_journal_
from convweights.ops.transfer_reference import reference_transfer_
from convweights.stream import DISTRIBUTIONS

ROOT = Path(__file__).parent.parent
DTYPES = {torch.float64: 1, torch.float32: 2, torch.float16: 3, torch.bfloat16: 4}
WHOLE = 1 << 30  # elements of one launch; less cuts a problem into several


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("cuda_on_host") / "kernels"
    flags = ["-std=c++20", "-O1", "-g", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-psabi"]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    source = ROOT / "tests/cuda_on_host/kernels.cpp"
    subprocess.run(["g++", *flags, *checks, f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)], check=True)
    return program


def ints(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def octets(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def request(case: Case, most_elements: int, in_place: bool = False) -> bytes:
    kinds, starts, rescales, index, scale, fill = case.encoded()
    weight, source = case.weight, case.source
    item, source_item = weight.base.element_size(), source.base.element_size()
    rank = len(weight.shape)
    words = [*fill, 0, 0][:2]
    same = weight.base.dtype == source.base.dtype
    parts = [
        ints(0),
        ints(rank, DTYPES.get(weight.base.dtype, 0), DTYPES.get(source.base.dtype, 0), item, source_item, same),
        ints(most_elements, len(fill), *words),
        struct.pack("<d", scale),
    ]
    tables = iter(index)
    for d in range(rank):
        sizes = source.shape[d], weight.shape[d], source.stride[d], weight.stride[d]
        parts.append(ints(kinds[d], starts[d], rescales[d], *sizes))
        if KINDS[kinds[d]] == "select":
            parts.append(ints(*next(tables).tolist()))
    stored = octets(weight.base)
    parts += [ints(len(stored), weight.offset * item), stored]
    if in_place:
        parts.append(ints(0, source.offset * item))
    else:
        parts += [ints(len(octets(source.base)), source.offset * source_item), octets(source.base)]
    return b"".join(parts)


def run(kernels: Path, requests: Iterable[bytes]) -> bytes:
    done = subprocess.run([str(kernels)], input=b"".join(requests), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return done.stdout


def check(kernels: Path, cases: list[Case], most_elements: int = WHOLE) -> None:
    output = run(kernels, [request(case, most_elements) for case in cases])
    for case in cases:
        size = case.weight.base.numel() * case.weight.base.element_size()
        written, output = output[:size], output[size:]
        storage = torch.frombuffer(bytearray(written), dtype=torch.uint8).view(case.weight.base.dtype)
        expected = case.by_reference()
        whole = torch.empty(0, dtype=expected.dtype).set_(expected.untyped_storage())
        assert_same_bits(storage, whole, case.computed())
    assert output == b""


@pytest.mark.parametrize("most_elements", [WHOLE, 64])
@pytest.mark.parametrize("weight", COMPUTE_DTYPES)
def test_every_map_and_pair_of_dtypes(kernels: Path, weight: torch.dtype, most_elements: int):
    cases = [small_case(*MAPS[map], weight, source) for map in MAPS for source in COMPUTE_DTYPES]
    cases += [small_case(*MAPS[map], weight, weight, scale=1 / 3) for map in MAPS]
    check(kernels, cases, most_elements)


def test_deep_sums(kernels: Path):
    check(kernels, [deep_case(*DEEP[name]) for name in DEEP])


@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases=st.lists(small_cases(), min_size=20, max_size=40), most_elements=st.sampled_from([WHOLE, 16, 1]))
def test_small(kernels: Path, cases: list[Case], most_elements: int):
    check(kernels, cases, most_elements)


@pytest.mark.parametrize("name", REALISTIC)
def test_realistic(kernels: Path, name: str):
    case = find(realistic(name), lambda _: True, settings=settings(database=None))
    check(kernels, [case])
    check(kernels, [case], 4096)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_packs(kernels: Path, dtype: torch.dtype):
    """Runs of 16 bytes and more, on and off the alignment that 16-byte accesses need."""
    rng = np.random.default_rng(0)
    cases = []
    for around in (0, 1, 16):
        for target in (dtype, torch.float32):
            weight = Placed.make((6, 4, 8, 8), target, rng, around=around)
            source = Placed.make((6, 12, 8, 8), dtype, rng, around=around)
            cases += [Case(weight, source, {1: cw.Blocks()}), Case(weight, source, {1: cw.Offset(5)})]
            cases += [Case(weight, source, {1: cw.Pad(2)}, fill="keep"), Case(weight, source, {1: cw.Offset(10)})]
    check(kernels, cases)


@pytest.mark.parametrize("most_elements", [WHOLE, 2000])
def test_where_source_and_target_run_along_different_dimensions(kernels: Path, most_elements: int):
    """HWIO and others, over squares of 32 positions and what is left of them."""
    rng = np.random.default_rng(0)
    cases = []
    pairs = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float16)]
    pairs += [(torch.uint8, torch.uint8), (torch.complex128, torch.complex128)]
    for weight, source in pairs:
        for channels, maps in [(37, {}), (5, {1: cw.Tile()}), (30, {1: cw.Offset(-3)}), (40, {0: cw.Truncate()})]:
            hwio = Placed.make((45 + 4 * (0 in maps), channels, 3, 2), source, rng, order=(2, 3, 1, 0))
            for fill in (0, "keep"):
                cases.append(
                    Case(Placed.make((45, 37 if 0 not in maps else 40, 3, 2), weight, rng), hwio, maps, fill=fill)
                )
        last = Placed.make((3, 70, 5, 8), source, rng, order=(0, 2, 3, 1))
        cases.append(Case(Placed.make((3, 70, 5, 8), weight, rng), last))
        cases.append(
            Case(Placed.make((3, 70, 5, 8), weight, rng, order=(0, 2, 3, 1)), Placed.make((3, 70, 5, 8), source, rng))
        )
    check(kernels, cases, most_elements)


@pytest.mark.parametrize("weight", COMPUTE_DTYPES)
def test_few_and_many_positions_that_are_summed(kernels: Path, weight: torch.dtype):
    """Windows of even and uneven sizes in one, two and three dimensions, on both sides of what registers hold."""
    rng = np.random.default_rng(0)
    sizes = [
        ((6, 14), (6, 7)),
        ((7, 11), (3, 4)),
        ((15, 2), (1, 2)),
        ((16, 2), (1, 2)),
        ((9, 7), (2, 3)),
        ((31, 9), (4, 2)),
    ]
    cases = []
    for source, target in sizes:
        for first, second in [
            (cw.Blocks(), cw.Strided()),
            (cw.Strided("uniform"), cw.Blocks("exact")),
            (cw.Resize(), cw.Blocks()),
        ]:
            layouts = [{}, {"order": (1, 2, 0)}]
            cases += [
                Case(
                    Placed.make((*target, 3), weight, rng),
                    Placed.make((*source, 3), dtype, rng, **layout),
                    {0: first, 1: second},
                )
                for layout in layouts
                for dtype in (torch.float32, weight)
            ]
    cubes = Placed.make((4, 5, 6), torch.float32, rng), Placed.make((3, 7, 5), torch.float32, rng)
    cases.append(Case(*cubes, dict.fromkeys(range(3), cw.Resize())))
    tiles = Placed.make((4, 5, 6), weight, rng), Placed.make((3, 2, 4), torch.float32, rng)
    cases.append(Case(*tiles, {0: cw.Tile("exact"), 1: cw.Interleave("exact"), 2: cw.Tile("uniform")}, scale=1 / 3))
    check(kernels, cases)
    check(kernels, cases, 7)


def test_select_with_more_indices_than_a_launch_holds(kernels: Path):
    rng = np.random.default_rng(0)
    weight, source = Placed.make((700, 530), torch.int16, rng), Placed.make((40, 70), torch.int16, rng)
    maps = {0: cw.Select(rng.integers(-40, 40, 700).tolist()), 1: cw.Select(rng.integers(-70, 70, 530).tolist())}
    check(kernels, [Case(weight, source, maps)])


def update_request(case: UpdateCase, on_device: bool = False) -> bytes:
    _, _, _, _, distribution, decay, shift, scales, seeds, step, accumulate, stochastic, _, _ = case.arguments("cpu")
    parts = [
        ints(1, distribution, accumulate, stochastic, step),
        struct.pack("<dd", decay, shift),
        ints(len(seeds)),
        *(struct.pack("<dq", scale, seed) for scale, seed in zip(scales, seeds, strict=True)),
        ints(on_device, len(case.targets)),
    ]
    for target in case.targets:
        weight, mask = target.weight, target.mask
        rank, item = len(weight.shape), weight.base.element_size()
        whole, offset = target.box or (weight.shape, (0,) * rank)
        index, start, dims = 1, 0, []
        for d in reversed(range(rank)):
            mask_stride = mask.stride[d] if mask is not None and mask.shape[d] > 1 else 0
            dims.append(ints(weight.shape[d], weight.stride[d], mask_stride, index))
            start += offset[d] * index
            index *= max(1, whole[d])
        parts += [ints(DTYPES[weight.base.dtype], item, target.stream, start, rank), *reversed(dims)]
        parts += [ints(len(octets(weight.base)), weight.offset * item), octets(weight.base)]
        stored = b"" if mask is None else octets(mask.base)
        parts += [ints(len(stored), 0 if mask is None else mask.offset), stored]
    return b"".join(parts)


def check_updates(kernels: Path, cases: list[UpdateCase], on_device: bool = False) -> None:
    output = run(kernels, [update_request(case, on_device) for case in cases])
    for case in cases:
        for target, expected in zip(case.targets, case.by_reference(), strict=True):
            size = len(octets(target.weight.base))
            written, output = output[:size], output[size:]
            storage = torch.frombuffer(bytearray(written), dtype=torch.uint8).view(target.weight.base.dtype)
            assert_same_bits(storage, storage_of(expected), computed=True)
    assert output == b""


@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases=st.lists(update_cases(), min_size=20, max_size=40))
def test_updates(kernels: Path, cases: list[UpdateCase]):
    check_updates(kernels, cases)


@pytest.mark.parametrize("distribution", ["normal", "uniform", "rademacher", "none"])
def test_updates_of_large_tensors(kernels: Path, distribution: str):
    check_updates(kernels, [UpdateCase(LARGE, {"distribution": distribution, "decay": 0.9, "seeds": [2**63]})])


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_updates_on_and_off_alignment(kernels: Path, dtype: torch.dtype):
    """Where 16 bytes start in memory and where a call starts in the index, together and apart."""
    rng = np.random.default_rng(0)
    targets = [
        Target(Placed.make((77,), dtype, rng, around=around), 3, None, ((10_000,), (start,)))
        for around in range(9)
        for start in range(9)
    ]
    check_updates(kernels, [UpdateCase(targets, {"decay": 0.5, "shift": 1.0}), UpdateCase(targets, {"decay": 0.0})])


def test_more_tensors_than_a_launch_holds(kernels: Path):
    layouts = ({}, {"order": (1, 0)})
    targets = [plain((1 + k % 3, 1 + k % 5), COMPUTE_DTYPES[k % 2], stream=k, **layouts[k % 2]) for k in range(1900)]
    check_updates(kernels, [UpdateCase(targets)])


def test_many_seeds_and_a_seed_on_the_device(kernels: Path):
    targets = [plain((70,)), plain((9, 5), torch.bfloat16, order=(1, 0)), plain((33,), torch.float64)]
    many = {"accumulate": True, "seeds": list(range(1024)), "scales": [2.0**-k for k in range(1024)]}
    check_updates(kernels, [UpdateCase(targets, many)])
    check_updates(kernels, [UpdateCase(targets, {"seeds": [2**64 - 7], "step": 9})], on_device=True)
    stochastic = {"seeds": [77], "step": 2**32 - 1, "stochastic": True}
    check_updates(kernels, [UpdateCase([plain((90,), torch.float16, wild=True)], stochastic)], on_device=True)


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_packs_that_begin_before_the_tensor_and_end_with_a_chunk(kernels: Path, dtype: torch.dtype):
    rng = np.random.default_rng(0)
    sizes = [(8, 8188), (12, 8184), (12, 8188), (13, 8180), (13, 8184), (4, 8190), (0, 8192), (15, 8193)]
    targets = [Target(Placed.make((count,), dtype, rng), 3, None, ((20_000,), (start,))) for start, count in sizes]
    check_updates(
        kernels, [UpdateCase(targets), UpdateCase(targets, {"accumulate": True, "seeds": [1, 2], "scales": [1.0, 2.0]})]
    )


def fill_request(cases: list[Fill]) -> bytes:
    parts = [ints(2, len(cases))]
    for case in cases:
        weight, rank = case.weight, len(case.weight.shape)
        item = weight.base.element_size()
        parts += [ints(item, rank), case.word]
        strides = {"mask": [0] * rank, "value": [0] * rank}
        for name, first in (("mask", case.dim), ("value", rank - (case.value.ndim if case.value is not None else 0))):
            given = getattr(case, name)
            for d in range(given.ndim if given is not None else 0):
                strides[name][first + d] = given.stride(d) if given.shape[d] > 1 else 0
        for d in range(rank):
            parts.append(ints(weight.shape[d], weight.stride[d], strides["mask"][d], strides["value"][d]))
        parts += [ints(len(octets(weight.base)), weight.offset * item), octets(weight.base)]
        for given in (case.mask, case.value):
            stored = b"" if given is None or not given.numel() else octets(storage_of(given))
            parts += [ints(len(stored), 0), stored]
    return b"".join(parts)


def check_fills(kernels: Path, cases: list[Fill]) -> None:
    """Lists of positions become pieces on the host, before the kernels: those are left out here."""
    cases = [case for case in cases if case.positions is None and all(case.weight.shape)]
    output = run(kernels, [fill_request(cases)])
    for case, expected in zip(cases, by_reference(cases), strict=True):
        size = len(octets(case.weight.base))
        written, output = output[:size], output[size:]
        storage = torch.frombuffer(bytearray(written), dtype=torch.uint8).view(case.weight.base.dtype)
        assert_same_bits(storage, storage_of(expected))
    assert output == b""


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(cases=st.lists(fills(), min_size=1, max_size=30))
def test_fills(kernels: Path, cases: list[Fill]):
    check_fills(kernels, cases)


def test_fills_of_more_tensors_and_elements_than_a_launch_or_block_holds(kernels: Path):
    rng = np.random.default_rng(0)
    masks = [torch.from_numpy(rng.random(shape) < 0.4) for shape in ((70,), (70, 31), (70, 31, 9))]
    check_fills(kernels, [Fill(Placed.make((70, 31, 9), torch.float32, rng), mask=mask) for mask in masks])
    many = [Fill(Placed.make((1 + k % 7, 3), torch.int16, rng), mask=torch.tensor([True])) for k in range(700)]
    check_fills(kernels, many)


def journal_request(case: JournalCase, actions: list[int]) -> bytes:
    seed = case.seed - 2**64 if case.seed >= 2**63 else case.seed
    layout = case.layout
    parts = [ints(3, DISTRIBUTIONS.index(case.distribution), case.step, seed), struct.pack("<d", case.scale)]
    parts.append(ints(layout.nbytes, layout.pool, len(case.weights)))
    for k, weight in enumerate(case.weights):
        item, rank = weight.base.element_size(), len(weight.shape)
        parts.append(ints(DTYPES[weight.base.dtype], item, case.streams[k], case.starts[k], rank))
        parts += [ints(weight.shape[d], weight.stride[d]) for d in range(rank - 1, -1, -1)]
        parts.append(ints(layout.sections[k], layout.rooms[k]))
        parts += [ints(len(octets(weight.base)), weight.offset * item), octets(weight.base)]
    return b"".join([*parts, ints(len(actions), *actions)])


def check_journals(kernels: Path, cases: list[JournalCase], actions: list[int]) -> None:
    """After each action weights and journal are the reference's, byte for byte."""
    output = run(kernels, [journal_request(case, actions) for case in cases])
    for case in cases:
        arguments = case.arguments("cpu")
        for action in actions:
            reference_journal_(*arguments, action)
            written, output = output[: case.layout.nbytes], output[case.layout.nbytes :]
            assert written == octets(arguments[1])
            for weight in arguments[0]:
                size = storage_of(weight).nbytes
                written, output = output[:size], output[size:]
                storage = torch.frombuffer(bytearray(written), dtype=torch.uint8).view(weight.dtype)
                assert_same_bits(storage, storage_of(weight), computed=True)
    assert output == b""


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(cases=st.lists(journal_cases(alike=True), min_size=1, max_size=4))
def test_journals(kernels: Path, cases: list[JournalCase]):
    cases = [case for case in cases if all(all(weight.shape) for weight in case.weights)]
    check_journals(kernels, cases, [0, 1, 1, 1, 2])


def test_a_journal_of_more_tensors_than_a_launch_holds(kernels: Path):
    rng = np.random.default_rng(0)
    weights = [Placed.make((1 + k % 5, 7), torch.float32, rng, order=(1, 0)) for k in range(300)]
    weights.append(Placed.make((30_000,), torch.float32, rng))
    layout = layout_of([w.on("cpu").numel() for w in weights], [w.base.element_size() for w in weights], [0.1] * 301)
    check_journals(kernels, [JournalCase(weights, list(range(301)), [0] * 301, layout, scale=0.1)], [0, 1, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_journal_without_space_to_flip(kernels: Path, dtype: torch.dtype):
    """Chunks with more escapes on the other side are moved before that is known, and back again."""
    rng = np.random.default_rng(0)
    weight = Placed.make((12, 4096), dtype, rng)
    weight.base.copy_(weights_of(weight.base.numel(), dtype, rng, wild=False))
    ample = layout_of([12 * 4096], [dtype.itemsize], [0.5])
    case = JournalCase([weight], [5], [0], replace(ample, rooms=[10]), scale=0.2)
    arguments = case.arguments("cpu")
    reference_journal_(*arguments, 0)
    used = int(arguments[1][:4].view(torch.int32))
    case = replace(case, layout=replace(case.layout, nbytes=case.layout.pool + 4 * used))
    arguments = case.arguments("cpu")
    for action in (0, 1):
        reference_journal_(*arguments, action)
    assert 0 < int(arguments[1][4:8].view(torch.int32)) < 12
    check_journals(kernels, [case], [0, 1, 1, 2])


TRUNCATIONS = [
    # rows, channels, inner, kept, start, dtype
    (1, 9, 5, 4, 3, torch.float32),
    (1, 70_001, 1, 70_000, 1, torch.int16),  # one row that overlaps itself, longer than a stage
    (300, 7, 9, 3, 2, torch.float32),  # few waves
    (300, 64, 4, 63, 0, torch.bfloat16),  # many waves
    (40, 8, 16, 4, 4, torch.float64),  # 16-byte units
    (11, 3, 3, 2, 1, torch.int8),
    (5, 2, 9_000, 1, 1, torch.float32),  # rows of more than a stage
    (6, 4, 2, 4, 0, torch.float32),  # nothing moves
]


@pytest.mark.parametrize("most_elements", [WHOLE, 100])
@pytest.mark.parametrize(("rows", "channels", "inner", "kept", "start", "dtype"), TRUNCATIONS)
def test_truncation_in_place(
    kernels: Path, rows: int, channels: int, inner: int, kept: int, start: int, dtype: torch.dtype, most_elements: int
):
    rng = np.random.default_rng(0)
    source = Placed.make((rows, channels, inner), dtype, rng)
    weight = Placed(source.base, (rows, kept, inner), (kept * inner, inner, 1), 0)
    case = Case(weight, source, {1: cw.Offset(start)})
    output = run(kernels, [request(case, most_elements, in_place=True)])
    storage = torch.frombuffer(bytearray(output), dtype=torch.uint8).view(dtype)
    expected = source.on("cpu").narrow(1, start, kept)
    assert_same_bits(storage[: rows * kept * inner].reshape(rows, kept, inner), expected)


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
@pytest.mark.parametrize("members", [1, 2])
def test_group_means_in_place(kernels: Path, dtype: torch.dtype, members: int):
    rng = np.random.default_rng(0)
    weight = Placed.make((5, 3, 4, 9), dtype, rng, around=2)
    case = Case(weight, weight, {members: cw.Mean()})
    output = run(kernels, [request(case, WHOLE, in_place=True)])
    storage = torch.frombuffer(bytearray(output), dtype=torch.uint8).view(dtype)
    expected = weight.on("cpu")
    reference_transfer_(expected, expected, *case.encoded())
    assert_same_bits(storage, torch.empty(0, dtype=dtype).set_(expected.untyped_storage()))
