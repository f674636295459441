"""What differs between two checkpoints: bits decide, numbers are float64's. Family: exact, unless it says so."""

import json
import math

import pytest
import torch
from checkpoints import DTYPES, KINDS, SUFFIX, network, random_bits, save

from convweights.checkpoint import CheckpointError
from convweights.checkpoint import diff as module
from convweights.checkpoint.diff import HEADER, diff

INF, NAN = math.inf, math.nan


@pytest.fixture
def compare(tmp_path):
    """What differs between two states, or two tensors, by way of files."""

    def compared(a, b, kinds=("zip", "zip")):
        states = [value if isinstance(value, dict) else {"w": value} for value in (a, b)]
        paths = [
            save(tmp_path / f"{name}{SUFFIX[kind]}", state, kind)
            for name, state, kind in zip("ab", states, kinds, strict=True)
        ]
        return diff(*paths)

    return compared


@pytest.fixture
def only(compare):
    def found(*arguments):
        (tensor,) = compare(*arguments).different
        return tensor

    return found


def numbers(tensor):
    return (tensor.what, tensor.max_abs, tensor.max_rel)


@pytest.mark.parametrize("b", KINDS)
@pytest.mark.parametrize("a", KINDS)
def test_a_file_is_the_same_in_every_format(compare, a, b):
    found = compare(network(), network(), (a, b))
    assert (found.different, found.same) == ((), len(network()))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex32, torch.complex128, torch.bits8, torch.bits16])
def test_equal_bits_are_the_same_and_one_other_bit_is_not(compare, dtype, shape):
    a = random_bits(shape, dtype)
    assert compare(a, a.clone()).same == 1
    if a.numel():
        octets = a.reshape(-1).contiguous().view(torch.uint8).clone()
        octets[-1] ^= 1
        found = compare(a, octets.view(dtype).view(shape))
        assert found.same == 0
        assert [(tensor.name, tensor.what) for tensor in found.different] == [("w", "values")]


def test_each_name_is_told_in_a_s_order_then_in_b_s(compare):
    a = {"z": torch.ones(2), "same": torch.ones(1), "gone": torch.ones(3), "shape": torch.ones(2, 3)}
    b = {
        **{"new": torch.ones(4), "shape": torch.ones(3, 2, dtype=torch.float16), "also": torch.ones(1)},
        **{"same": torch.ones(1), "z": torch.zeros(2)},
    }
    found = compare(a, b)
    assert [(tensor.name, tensor.what) for tensor in found.different] == [
        ("z", "values"),
        ("gone", "only in A"),
        ("shape", "shape"),
        ("new", "only in B"),
        ("also", "only in B"),
    ]
    assert found.same == 1
    z, gone, shape, new, _ = found.different
    assert gone.a.shape == (3,)
    assert gone.b is None
    assert new.a is None
    assert new.b.shape == (4,)
    assert (shape.a.dtype, shape.b.dtype) == (torch.float32, torch.float16)
    assert all((t.max_abs, t.max_rel, t.cosine) == (None, None, None) for t in (gone, shape, new))
    assert z.max_abs == 1


# a, b, largest absolute difference, largest relative difference
VALUES = [
    ([1.0, 2.0, -4.0], [1.5, 2.0, -5.0], 1.0, 0.5),
    ([0.0, 4.0], [0.25, 4.0], 0.25, INF),
    ([0.0], [-0.0], 0.0, 0.0),
    ([NAN, 1.0], [NAN, 3.0], 2.0, 2.0),
    ([NAN, 1.0], [1.0, 1.0], INF, INF),
    ([1.0], [NAN], INF, INF),
    ([INF, -INF, 2.0], [INF, -INF, 1.0], 1.0, 0.5),
    ([INF], [-INF], INF, INF),
    ([INF], [1.0], INF, INF),
    ([1.0], [INF], INF, INF),
    ([1e308, 1.0], [-1e308, 1.0], INF, INF),
    ([5e-324], [1e-323], 5e-324, 1.0),
]


@pytest.mark.parametrize(("a", "b", "max_abs", "max_rel"), VALUES)
def test_numbers(only, a, b, max_abs, max_rel):
    a, b = (torch.tensor(values, dtype=torch.float64) for values in (a, b))
    assert numbers(only(a, b)) == ("values", max_abs, max_rel)


def test_nan_payloads_are_other_bits_and_no_difference(only):
    a, b = (torch.tensor([0x7FC00000 + payload], dtype=torch.int32).view(torch.float32) for payload in (1, 2))
    assert numbers(only(a, b)) == ("values", 0, 0)


BIG = 2**62


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [
        (BIG, BIG + 1, 1),
        (-BIG, -BIG - 1, 1),
        (BIG + 2047, BIG + 2048, 1),
        (-(2**63), -(2**63) + 3, 3),
        (-(2**63), 2**63 - 1, 2.0**64),
        (-1, 1, 2),
        (-2049, -2048, 1),
        (0, 2**53 + 1, 2.0**53),
    ],
)
def test_integers_of_64_bits_do_not_run_together(only, a, b, apart):
    found = only(torch.tensor([7, a]), torch.tensor([7, b]))
    assert numbers(found) == ("values", apart, pytest.approx(apart / abs(a)) if a else INF)


def test_unsigned_integers_of_64_bits_likewise(only):
    top = [2**64 - 1, 2**63, 5]
    a, b = (torch.tensor(values, dtype=torch.uint64) for values in (top, [2**64 - 2, 2**63, 5]))
    assert numbers(only(a, b))[:2] == ("values", 1)
    zero = torch.zeros(3, dtype=torch.uint64)
    assert only(zero, a).max_abs == 2.0**64
    assert only(a, a.view(torch.int64)).max_abs == 2.0**64


def test_a_dtype_by_itself_is_no_difference_of_values(only):
    values = torch.tensor([0.5, -0.0, NAN, INF, 3.0])
    assert numbers(only(values, values.half())) == ("dtype", 0, 0)
    assert numbers(only(values, values.to(torch.complex64))) == ("dtype", 0, 0)
    assert numbers(only(torch.tensor([True, False]), torch.tensor([1, 0]))) == ("dtype", 0, 0)
    assert numbers(only(torch.empty(0), torch.empty(0).half())) == ("dtype", 0, 0)
    assert only(torch.tensor([0.1]), torch.tensor([0.1]).bfloat16()).what == "dtype, values"
    # In float64 these two would be equal.
    a, b = torch.tensor([2**53 + 1]), torch.tensor([2.0**53], dtype=torch.float64)
    assert numbers(only(a, b))[:2] == ("dtype, values", 1)
    assert numbers(only(b, a))[:2] == ("dtype, values", 1)
    # Were -1024 split into -2048 and 1024, rounding would hide that this is not equal.
    near = -1024 + 2**-43
    found = only(torch.tensor([-1024]), torch.tensor([near], dtype=torch.float64))
    assert numbers(found)[:2] == ("dtype, values", 2**-43)


def test_complex_numbers_have_one_distance(only):
    found = only(torch.tensor([3 + 4j, 1j]), torch.tensor([0j, 1j]))
    assert numbers(found) == ("values", 5, 1)
    assert found.cosine == pytest.approx(1 / math.sqrt(26))


def test_conjugates_are_what_they_say(only, compare):
    values = torch.tensor([1 + 2j, 3 - 1j])
    assert compare(values.conj(), values.conj().resolve_conj()).same == 1
    assert only(values.conj(), values).max_abs == 4


def test_dtypes_that_are_small_have_numbers_too(only):
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.float16):
        assert numbers(only(torch.tensor([1.0, 2.0]).to(dtype), torch.tensor([1.0, 4.0]).to(dtype))) == ("values", 2, 1)
    assert numbers(only(torch.tensor([True, False]), torch.tensor([True, True]))) == ("values", 1, INF)


def test_packed_dtypes_are_compared_by_their_bits_alone(only, compare):
    a, b = (random_bits((6, 4), torch.float4_e2m1fn_x2, seed) for seed in (0, 1))
    assert numbers(only(a, b)) == ("values", None, None)
    assert numbers(only(a, a.view(torch.uint8))) == ("dtype", None, None)
    assert compare(a.T, a.T).same == 1
    assert compare(a.T, a.view(torch.uint8).T.contiguous().view(a.dtype), ("zip", "safetensors")).same == 1


def test_what_is_not_dense_is_not_compared(compare):
    dense, sparse = torch.eye(3), torch.eye(3).to_sparse()
    found = compare({"w": sparse, "v": dense, "u": sparse}, {"w": sparse, "v": sparse, "u": sparse.half()})
    assert [(t.name, numbers(t), t.cosine) for t in found.different] == [
        ("w", ("not compared", None, None), None),
        ("v", ("not compared", None, None), None),
        ("u", ("dtype", None, None), None),
    ]


def test_the_cosine(only):
    a = torch.tensor([3.0, 0.0, 4.0])
    assert only(a, a * 2).cosine == 1
    assert only(a, -a).cosine == -1
    # Rounded sums say 1.0000000000000002.
    over = torch.tensor([7.0, 1.0, 2.0], dtype=torch.float64) / 10
    assert only(over, over * 3).cosine == 1
    assert only(over, over * -3).cosine == -1
    assert only(a, torch.tensor([0.0, 7.0, 0.0])).cosine == 0
    assert only(a, torch.tensor([3.0, 0.0, 0.0])).cosine == 0.6
    assert only(a, a * 0).cosine is None
    assert only(a, a * NAN).cosine is None
    assert only(a, a * INF).cosine is None
    huge = torch.tensor([1e200], dtype=torch.float64)
    assert only(huge, huge * 2).cosine is None


@pytest.mark.parametrize("shape", [(10_000,), (3, 7, 500), (1, 1, 9_000), (2, 1, 3000), (40, 250)])
def test_pieces_change_nothing(only, compare, monkeypatch, shape):
    """Family: rounded, for the sums in the cosine."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(shape, generator=g)
    b = a + torch.randn(shape, generator=g) / 8
    b.view(-1)[-1] = a.view(-1)[-1] + 100
    whole = only(a, b)
    assert whole.max_abs == (a.double() - b.double()).abs().max()
    monkeypatch.setattr(module, "_PIECE", 64)
    strided = b.permute(*range(b.dim())[::-1]).contiguous().permute(*range(b.dim())[::-1])
    for other in (b, strided):
        found = only(a, other)
        assert numbers(found) == numbers(whole)
        assert found.cosine == pytest.approx(whole.cosine, rel=1e-12)
    assert compare(b, strided).same == 1


@pytest.mark.parametrize("shape", [(5, 1, 130), (1, 300), (129,), (4, 70, 2), (64,), (), (0, 3)])
def test_pieces_are_small_and_miss_nothing(monkeypatch, shape):
    monkeypatch.setattr(module, "_PIECE", 64)
    x = torch.arange(math.prod(shape)).view(shape)
    pieces = list(module._pieces(x, -x))
    assert all(len(p) == len(q) <= 64 for p, q in pieces)
    assert torch.equal(torch.cat([p for p, _ in pieces]), x.reshape(-1))
    assert torch.equal(torch.cat([q for _, q in pieces]), -x.reshape(-1))


def test_pieces_of_contiguous_tensors_are_not_copied(monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 64)
    x = torch.zeros(5, 3, 50)
    assert {p.untyped_storage().data_ptr() for pair in module._pieces(x, x) for p in pair} == {x.data_ptr()}


def test_text(compare, tmp_path):
    a = {"conv.weight": torch.tensor([[1.0, 2.0]]), "b": torch.ones(2), "c": torch.zeros(1)}
    b = {"conv.weight": torch.tensor([[1.0, 2.5]]), "b": torch.ones(2), "d": torch.zeros(1)}
    found = compare(a, b)
    assert str(found).splitlines() == [
        f"{tmp_path}/a.pt (A) and {tmp_path}/b.pt (B): 4 tensors, 3 different, 1 the same",
        "tensor       A               B               what differs  max abs  max rel  cosine",
        "conv.weight  float32 (1, 2)  float32 (1, 2)  values        0.5      0.25     0.996546",
        "c            float32 (1,)    -               only in A     -        -        -",
        "d            -               float32 (1,)    only in B     -        -        -",
    ]
    assert all(len(tensor.row()) == len(HEADER) for tensor in found.different)
    one = compare({"b": torch.ones(2)}, {"b": torch.ones(2)})
    assert str(one) == f"{tmp_path}/a.pt (A) and {tmp_path}/b.pt (B): 1 tensor, 0 different, 1 the same"


def test_json(compare, tmp_path):
    a = {"w": torch.tensor([0.0, NAN]), "v": torch.ones(1), "u": torch.ones(2, 3)}
    b = {"w": torch.tensor([1.0, 1.0]), "v": torch.ones(1), "u": torch.full((2, 3), 2).half()}
    found = json.loads(json.dumps(compare(a, b).as_dict(), allow_nan=False))
    assert (found["a"], found["b"], found["same"]) == (f"{tmp_path}/a.pt", f"{tmp_path}/b.pt", 1)
    w, u = found["different"]
    side = {"dtype": "float32", "shape": [2]}
    assert w == {
        **{"name": "w", "what": "values", "a": side, "b": side},
        **{"max_abs": "inf", "max_rel": "inf", "cosine": None},
    }
    assert (u["what"], u["max_abs"], u["cosine"]) == ("dtype, values", 1.0, pytest.approx(1))
    assert u["b"] == {"dtype": "float16", "shape": [2, 3]}
    (gone,) = compare({"x": torch.ones(1), "y": torch.ones(1)}, {"x": torch.ones(1)}).as_dict()["different"]
    assert (gone["a"], gone["b"]) == ({"dtype": "float32", "shape": [1]}, None)


def test_refusals_name_the_side(tmp_path):
    good, bad = save(tmp_path / "a.pt", network()), tmp_path / "none.pt"
    with pytest.raises(
        CheckpointError, match=rf"\Adiff: b must be a checkpoint file, got {bad}, which does not exist\Z"
    ):
        diff(good, bad)
    with pytest.raises(CheckpointError, match=r"\Adiff: a must be a checkpoint file"):
        diff(bad, good)
    with pytest.raises(TypeError, match=r"\Adiff: a must be a path, got 3\Z"):
        diff(3, good)


def test_a_file_is_the_same_as_itself(tmp_path):
    path = save(tmp_path / "a.safetensors", network())
    assert diff(str(path), path).same == len(network())
