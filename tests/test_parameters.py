"""What params may be: streams by position and by name, ties, frozen parameters, masks, devices. Family: exact."""

import copy
from collections import OrderedDict

import pytest
import torch
from bits import assert_same_bits
from torch import nn

import convweights as cw
from convweights.ops import update_call

DRAWN = {"scale": 0.5, "seed": 3, "step": 2}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), head=nn.Linear(8, 8), tail=nn.Linear(8, 8))
    )


def noise(name: str | int, tensor: torch.Tensor) -> torch.Tensor:
    return cw.noise(tensor.shape, seed=3, step=2, stream=name)


def assert_moved(model: nn.Module, before: dict[str, torch.Tensor], names: set[str]) -> None:
    for name, parameter in model.named_parameters(remove_duplicate=False):
        expected = before[name] + 0.5 * noise(name, parameter) if name in names else before[name]
        assert_same_bits(parameter, expected)


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters(remove_duplicate=False)}


def test_a_module_and_a_dict_go_by_names():
    for shape in (lambda model: model, lambda model: dict(model.named_parameters())):
        model = net()
        before, statistics = values(model), model.norm.running_mean.clone()
        params = shape(model)
        assert cw.perturb_(params, **DRAWN) is params
        assert_moved(model, before, set(before))
        assert_same_bits(model.norm.running_mean, statistics)
    backwards = net()
    cw.perturb_(dict(reversed(list(backwards.named_parameters()))), **DRAWN)
    assert_moved(backwards, before, set(before))


def test_a_list_goes_by_position():
    model = net()
    before = values(model)
    for params in (list(model.parameters()), tuple(model.parameters()), model.parameters()):
        cw.perturb_(params, **DRAWN)
    for position, (old, parameter) in enumerate(zip(before.values(), model.parameters(), strict=True)):
        z = 0.5 * noise(position, parameter)
        assert_same_bits(parameter, old + z + z + z)


def test_a_list_with_streams_of_its_own():
    weights = [torch.zeros(5), torch.zeros(5)]
    cw.perturb_(weights, **DRAWN, stream=["a.weight", 17])
    assert_same_bits(weights[0], 0.5 * noise("a.weight", weights[0]))
    assert_same_bits(weights[1], 0.5 * noise(17, weights[1]))


def test_a_tensor_needs_a_stream_only_for_noise():
    assert cw.update_(torch.ones(3), shift=-0.5).tolist() == [0.5] * 3
    assert_same_bits(cw.perturb_(torch.zeros(3), **DRAWN, stream="x"), 0.5 * noise("x", torch.zeros(3)))


def test_wrappers_of_a_model_do_not_change_its_noise():
    model = net()
    before = values(model)
    wrapped = nn.Module()
    wrapped.module = torch.compile(model)
    assert "module._orig_mod.conv.weight" in dict(wrapped.named_parameters())
    cw.perturb_(wrapped, **DRAWN)
    assert_moved(model, before, set(before))
    parallel = nn.DataParallel(net())
    cw.perturb_(parallel, **DRAWN)
    assert_moved(parallel.module, before, set(before))


def test_frozen_parameters_are_skipped_unless_asked_for():
    model = net()
    model.conv.requires_grad_(False)
    before = values(model)
    cw.perturb_(model, **DRAWN)
    assert_moved(model, before, {name for name in before if not name.startswith("conv")})
    model = net()
    model.requires_grad_(False)
    cw.perturb_(model, **DRAWN, frozen=True)
    assert_moved(model, before, set(before))
    # Positions are counted before frozen ones are skipped; one by itself is meant; plain tensors are not frozen.
    row = [nn.Parameter(torch.zeros(4), requires_grad=False), nn.Parameter(torch.zeros(4)), torch.zeros(4)]
    cw.perturb_(row, **DRAWN)
    assert not row[0].any()
    assert_same_bits(row[1], 0.5 * noise(1, row[1]))
    assert_same_bits(row[2], 0.5 * noise(2, row[2]))
    cw.perturb_(row[0], **DRAWN, stream=0)
    assert row[0].any()


def test_tied_parameters_are_written_once():
    model = net()
    model.tail.weight = model.head.weight
    before = values(model)
    cw.perturb_(model, **DRAWN)
    expected = before["head.weight"] + 0.5 * noise("head.weight", model.head.weight)
    assert_same_bits(model.tail.weight, expected)
    # The same memory under two tensors.
    weight = torch.zeros(6)
    cw.perturb_({"a": weight, "b": weight.view(6), "c": torch.zeros(2)}, **DRAWN)
    assert_same_bits(weight, 0.5 * noise("a", weight))


def test_a_tie_is_written_under_the_name_that_comes_first():
    weight = torch.zeros(6)
    cw.perturb_({"b": weight, "a": weight}, **DRAWN)
    assert_same_bits(weight, 0.5 * noise("b", weight))


def test_a_list_stays_a_list_behind_a_frozen_parameter():
    """Its views are no ties, whatever is left out before them."""
    frozen, weight = nn.Parameter(torch.zeros(2), requires_grad=False), torch.zeros(2)
    with pytest.raises(ValueError, match=r"params\[2\] must not share memory with params\[1\]"):
        cw.perturb_([frozen, weight, weight.view(2)], **DRAWN)
    assert not weight.any()


@pytest.mark.parametrize("given", [{"mask": {"b": torch.zeros(6, dtype=torch.bool)}}, {"box": {"b": ((9,), (3,))}}])
@pytest.mark.parametrize("view", [False, True])
def test_what_is_given_for_a_tie_is_not_dropped(given: dict, view: bool):
    weight = torch.zeros(6)
    params = {"a": weight, "b": weight.view(6) if view else weight}
    with pytest.raises(ValueError, match=r"mask and box of params\['b'\] must be left out, got one for a tied weight"):
        cw.perturb_(params, **DRAWN, **given)
    assert not weight.any()


def test_a_flat_shard_is_refused():
    """As FSDP's first version leaves it in each process; torch marks it so."""
    shard = nn.Parameter(torch.zeros(8))
    shard._fsdp_flattened = True
    with pytest.raises(
        ValueError, match=r"must be a whole tensor or a DTensor, got a flat shard; shard the model with"
    ):
        cw.perturb_({"block._fsdp_wrapped_module.weight": shard}, **DRAWN)
    assert not shard.any()


def test_sets_have_no_order():
    weight = torch.zeros(3)
    with pytest.raises(TypeError, match="params must be a tensor, a list, a dict or a module, got set"):
        cw.perturb_({weight}, **DRAWN)
    with pytest.raises(TypeError, match="stream must be a list of names or numbers"):
        cw.perturb_([weight], **DRAWN, stream={"a"})


def test_a_failure_that_is_no_refusal_is_not_tried_again(monkeypatch: pytest.MonkeyPatch):
    weight = torch.zeros(3)

    def fails_after_writing(weights: list[torch.Tensor], *rest: object) -> None:
        weights[0].add_(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(update_call, "operator", fails_after_writing)
    monkeypatch.setattr(update_call, "_is_native", lambda device: True)
    with pytest.raises(RuntimeError, match="CUDA error"):
        cw.update_([weight], shift=1.0)
    assert weight.tolist() == [1.0] * 3


def test_a_seed_on_another_device_is_refused():
    weight = torch.zeros(3)
    with pytest.raises(ValueError, match=r"seed must be on the device of weight, cpu, got meta"):
        cw.perturb_(weight, scale=1.0, seed=torch.zeros(2, dtype=torch.int64, device="meta"), stream=0)
    with pytest.raises(TypeError, match="seeds must be an int, got tensor"):
        cw.accumulate_noise_(weight, [torch.zeros(2, dtype=torch.int64)], [1.0], stream=0)


def test_lazy_modules_are_refused():
    with pytest.raises(ValueError, match=r"params\['weight'\] must be initialised, got a parameter of a lazy module"):
        cw.perturb_(nn.LazyLinear(3), **DRAWN)


def test_views_that_interleave_are_no_overlap(device: str):
    base = torch.zeros(10, device=device)
    cw.perturb_([base[::2], base[1::2]], **DRAWN)
    assert_same_bits(base[::2], 0.5 * noise(0, base[::2]))
    assert_same_bits(base[1::2], 0.5 * noise(1, base[1::2]))


def test_masks_by_position_and_by_name():
    mask = torch.tensor([[True], [False]])
    for params, masks, names in (
        ([torch.zeros(2, 3), torch.zeros(3)], [mask, None], (0, 1)),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(3)}, {"a": mask}, ("a", "b")),
    ):
        cw.perturb_(params, **DRAWN, mask=masks)
        first, second = params.values() if isinstance(params, dict) else params
        assert_same_bits(first, torch.where(mask, 0.5 * noise(names[0], first), 0.0))
        assert_same_bits(second, 0.5 * noise(names[1], second))


def test_a_mask_of_a_frozen_parameter_goes_with_it():
    model = net()
    model.conv.requires_grad_(False)
    before = values(model)
    off = torch.zeros((), dtype=torch.bool)
    cw.perturb_(model, **DRAWN, mask={"conv.weight": off, "head.weight": off})
    assert_moved(model, before, {n for n in before if not n.startswith("conv") and n != "head.weight"})


def test_boxes_by_name_and_by_position():
    whole = 0.5 * noise("a", torch.zeros(6, 3))
    piece = torch.zeros(2, 3)
    cw.perturb_({"a": piece, "b": torch.zeros(3)}, **DRAWN, box={"a": ((6, 3), (4, 0))})
    assert_same_bits(piece, whole[4:])
    pieces = [torch.zeros(2, 3), torch.zeros(4, 3)]
    cw.perturb_(pieces, **DRAWN, stream=["a", "a"], box=[((6, 3), (0, 0)), ((6, 3), (2, 0))])
    assert_same_bits(torch.cat(pieces), whole)


def test_an_empty_list_is_nothing_to_do():
    assert cw.update_([], shift=1.0) == []
    assert cw.perturb_({}, **DRAWN) == {}


def test_accumulated_seeds_undo_and_repeat_perturbations():
    """The step of zeroth-order training: what perturb_ adds for a seed is what its coefficient weighs."""
    model = net()
    before = values(model)
    cw.accumulate_noise_(model, [7, 8], [0.25, -2.0], step=5, decay=0.5)
    for name, parameter in model.named_parameters():
        first, second = (cw.noise(parameter.shape, seed=seed, step=5, stream=name) for seed in (7, 8))
        assert_same_bits(parameter, 0.5 * before[name] + (0.25 * first + -2.0 * second))


def test_weight_decay_and_constants_need_no_seed():
    model = net()
    before = values(model)
    cw.update_(model, decay=0.99, shift=-0.001)
    for name, parameter in model.named_parameters():
        assert_same_bits(parameter, before[name] * 0.99 - 0.001)


def test_optimizers_go_on_after_an_update():
    for make in (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), torch.optim.Adam):
        model, x = net(), torch.rand(2, 3, 3, 3)
        optimizer = make(model.parameters())
        identities = [id(p) for p in model.parameters()]
        for step in range(3):
            optimizer.zero_grad()
            model.head(model.norm(model.conv(x)).flatten(1)).square().sum().backward()
            optimizer.step()
            before = copy.deepcopy(values(model))
            cw.perturb_(model, scale=1e-3, seed=0, step=step)
            assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())
        assert [id(p) for p in model.parameters()] == identities


def test_an_update_in_a_compiled_function_of_a_module():
    model, twin = net(), net()

    def step(x: torch.Tensor) -> torch.Tensor:
        cw.perturb_(model, **DRAWN)
        return model.head(x)

    x = torch.rand(2, 8)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)(x)
    cw.perturb_(twin, **DRAWN)
    assert_same_bits(model.head.weight, twin.head.weight)
    assert_same_bits(compiled, twin.head(x))


@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a CUDA device beside the CPU")
def test_a_model_on_two_devices():
    model = net()
    before = values(model)
    model.head.to("cuda")
    cw.perturb_(model, **DRAWN)
    model.head.to("cpu")
    assert_moved(model, before, set(before))
