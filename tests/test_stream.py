"""The noise stream: published vectors, names, and the oracle's judgement of the reference. Family: exact."""

import json
from pathlib import Path

import noise_oracle
import pytest
import torch
from bits import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from update_cases import UpdateCase, update_cases

from convweights import stream
from convweights.ops.update_reference import reference_update_
from convweights.stream import DISTRIBUTIONS

VECTORS = json.loads((Path(__file__).parent / "data/noise_vectors.json").read_text())
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


def from_bits(texts: list[str], dtype: torch.dtype) -> torch.Tensor:
    width = dtype.itemsize * 8
    numbers = [int(text, 16) for text in texts]
    signed = [number - 2**width if number >> (width - 1) else number for number in numbers]
    return torch.tensor(signed, dtype=torch.int32 if width == 32 else torch.int16).view(dtype)


def run(implementation: str, weight: torch.Tensor, stream: int, start: int, **recipe) -> torch.Tensor:
    r = {"decay": 1.0, "shift": 0.0, "accumulate": False, "stochastic": False, **recipe}
    arguments = (
        [weight],
        [],
        [stream],
        [2**49, start],
        DISTRIBUTIONS.index(r["distribution"]),
        r["decay"],
        r["shift"],
        r["scales"],
        [seed - 2**64 if seed >= 2**63 else seed for seed in r["seeds"]],
        r["step"],
        r["accumulate"],
        r["stochastic"],
        False,
        None,
    )
    (reference_update_ if implementation == "reference" else torch.ops.convweights.update_.default)(*arguments)
    return weight


@pytest.mark.parametrize("answer", VECTORS["philox4x32_10_known_answers"])
def test_the_answers_of_random123(answer: dict):
    counter, key, out = ([int(text, 16) for text in answer[part]] for part in ("counter", "key", "out"))
    assert list(noise_oracle.philox(tuple(counter), tuple(key))) == out
    words = stream.philox_rounds(tuple(torch.tensor([word]) for word in counter), tuple(key))
    assert [int(word) for word in words] == out


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"{case['distribution']}-{case['start']}")
def test_noise(implementation: str, case: dict):
    expected = from_bits(case["float32_bits"], torch.float32)
    drawn = {"distribution": case["distribution"], "scales": [1.0], "seeds": [case["seed"]], "step": case["step"]}
    made = run(implementation, torch.empty(case["count"]), case["stream"], case["start"], decay=0.0, **drawn)
    assert_same_bits(made, expected)


@pytest.mark.parametrize("case", VECTORS["updates"], ids=lambda case: f"{case['dtype']}-{case['start']}")
def test_updates(implementation: str, case: dict):
    weight, after = (from_bits(case[part], DTYPES[case["dtype"]]) for part in ("before", "after"))
    made = run(
        implementation,
        weight,
        case["stream"],
        case["start"],
        distribution=case["distribution"],
        decay=case["decay"],
        shift=case.get("shift", 0.0),
        scales=[case["scale"]],
        seeds=[case["seed"]],
        step=case["step"],
        stochastic=case.get("rounding") == "stochastic",
    )
    assert_same_bits(made, after)


@pytest.mark.parametrize("case", VECTORS["accumulate"], ids=lambda case: case["dtype"])
def test_accumulated_seeds(implementation: str, case: dict):
    weight, after = (from_bits(case[part], DTYPES[case["dtype"]]) for part in ("before", "after"))
    drawn = {"distribution": case["distribution"], "scales": case["coefficients"], "seeds": case["seeds"]}
    made = run(
        implementation,
        weight,
        case["stream"],
        case["start"],
        step=case["step"],
        decay=case["decay"],
        accumulate=True,
        **drawn,
    )
    assert_same_bits(made, after)


@given(
    distribution=st.sampled_from(DISTRIBUTIONS[1:]),
    start=st.one_of(st.integers(0, 2**50 - 20), st.sampled_from([2**34 - 3, 2**39 - 5, 2**50 - 20])),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
    number=st.integers(0, 2**32 - 1),
)
def test_the_reference_follows_the_oracle(distribution: str, start: int, seed: int, step: int, number: int):
    index = torch.arange(start, start + 20)
    made = stream.noise(distribution, index, seed, step, number)
    expected = [noise_oracle.noise(distribution, int(i), seed, step, number) for i in index]
    assert_same_bits(made, torch.tensor([float(z) for z in expected]))


@given(case=update_cases(most=2, shapes=[(), (0, 3), (7,), (3, 4), (2, 3, 2, 2)]))
def test_reference_updates_follow_the_oracle(case: UpdateCase):
    arguments = case.arguments("cpu")
    expected = [
        noise_oracle.update(
            weight, target.mask and target.mask.on("cpu").expand(weight.shape), target.stream, target.box, case.full
        )
        for weight, target in zip(arguments[0], case.targets, strict=True)
    ]
    for actual, wanted in zip(case.by_reference(), expected, strict=True):
        assert_same_bits(actual, wanted, computed=True)


def test_streams_of_names():
    # BLAKE2b-256 of the empty string begins 0e 57 51 c0 (RFC 7693's function, by any implementation).
    assert stream.stream_of("") == 0xC051570E
    names = ("fc.weight", "fc.bias", "convä")
    assert stream.streams_of(names) == tuple(map(stream.stream_of, names))


def test_colliding_names_go_on_to_a_free_stream(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "stream_of", lambda name: len(name.rstrip("\0")) % 2 + 10 * name.count("\0"))
    streams = stream.streams_of.__wrapped__(("c", "a", "bb", "b"))
    # a, b and c collide; in sorted order a keeps its stream, b takes the next, c the one after.
    assert streams == (21, 1, 0, 11)
