"""Weights perturbed inside a block, and hooks: exact restore, nesting, what is refused. Family: exact."""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import re
import threading
import warnings

import pytest
import torch
from bits import assert_same_bits
from torch import nn

import convweights as cw
from convweights.steps import memory

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def net(device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 70, 3), nn.BatchNorm2d(70), nn.ReLU(), nn.Conv2d(70, 30, 3, bias=False))
    return model.to(device=device, dtype=dtype, memory_format=torch.channels_last)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert_same_bits(tensor, before[name])


@pytest.mark.filterwarnings("ignore:perturbed. .*copied instead of journaled")
@pytest.mark.parametrize("restore", ["journal", "snapshot"])
@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_300_cycles(device: str, dtype: torch.dtype, distribution: str, restore: str):
    """No bit changes, for scales from 1e-6 of the weights' own to 10 times it."""
    model = net(device, dtype)
    before = state(model)
    size = model[3].weight.float().std().item()
    for step in range(300):
        scale = size * (1e-6, 1e-3, 0.05, 0.3, 1.0, 10.0)[step % 6]
        with cw.perturbed(model, scale=scale, seed=3, step=step, distribution=distribution, restore=restore) as block:
            if step % 2:
                block.flip()
    assert_same(model, before)


@pytest.mark.parametrize("restore", ["journal", "snapshot"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_inside_the_weights_are_what_perturb_gives(device: str, dtype: torch.dtype, restore: str):
    model = net(device, dtype)
    plus, minus = (cw.perturb_(copy.deepcopy(model), scale=scale, seed=1, step=9) for scale in (1e-3, -1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with cw.perturbed(model, scale=1e-3, seed=1, step=9, restore=restore) as block:
            for wanted, scale in ((plus, 1e-3), (minus, -1e-3), (plus, 1e-3), (minus, -1e-3)):
                assert_same(model, wanted.state_dict())
                assert block.scale == scale
                block.flip()


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_numbers_come_back(device: str, dtype: torch.dtype):
    """NaN, infinities, -0, subnormals, 90% zeros, among ordinary weights; strides of any kind."""
    torch.manual_seed(0)
    weight = torch.randn(300, 400).to(dtype)
    weight[torch.rand(300, 400) < 0.9] = 0
    tiny = torch.finfo(dtype).tiny
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, tiny / 2, -tiny / 4], dtype=dtype)
    weight[::7, ::5] = special[torch.randint(0, 6, weight[::7, ::5].shape)]
    weight = weight.to(device)
    tensors = [weight.clone(), weight.clone().T, weight.clone()[:, ::3], weight[0, 0]]
    before = [tensor.clone() for tensor in tensors]
    for step, scale in enumerate((1e-6, 1e-2, 0.1)):
        with cw.perturbed(tensors, scale=scale, seed=0, step=step) as block:
            block.flip()
        for tensor, old in zip(tensors, before, strict=True):
            assert_same_bits(tensor, old)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.075), (torch.float16, 0.14), (torch.bfloat16, 0.14)])
def test_how_much_a_journal_takes(device: str, dtype: torch.dtype, share: float):
    """Up to a scale of a twentieth of the weights' standard deviation."""
    weights = [torch.randn(shape, device=device).to(dtype) for shape in ((512, 512, 3, 3), (1000, 512), (512,), (77,))]
    for ratio in (1e-3, 0.05):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with cw.perturbed(weights, scale=ratio, seed=0) as block:
                block.flip()
                assert block.nbytes <= share * sum(weight.nbytes for weight in weights)


def test_a_journal_is_used_again(device: str):
    weights = [torch.randn(100_000, device=device)]
    with cw.perturbed(weights, scale=0.05, seed=0) as block:
        ((_, first),) = block._parts
    for step in range(3):
        with cw.perturbed(weights, scale=0.05 / (1 + step), seed=0, step=step) as block:
            assert block._parts[0][1] is first
            with cw.perturbed(weights, scale=0.05, seed=1) as inner:
                assert inner._parts[0][1] is not first


def test_a_few_journals_are_kept(device: str):
    """Two ways by turns do not make each other's anew; many do not add up."""
    weight, seen = torch.randn(50_000, device=device), []
    for step in range(6):
        with cw.perturbed([weight], scale=0.05, seed=0, restore=("journal", "snapshot")[step % 2]) as block:
            seen.append(id(block._parts[0][1]))
    assert len(set(seen)) == 2
    for size in range(10):
        with cw.perturbed([weight, torch.randn(100 + size, device=device)], scale=0.05, seed=0):
            pass
    assert len(memory._memories[weight]) <= 3


@pytest.mark.parametrize("flips", [0, 1, 2])
def test_weights_that_do_not_fit_are_copied(device: str, flips: int):
    """Most weights are far smaller than the tensor's mean tells: said once, and no bit is lost."""
    weights = [torch.randn(60_000, device=device) * 1e-4, torch.randn(60_000, device=device)]
    weights[0][:100] = 1.0
    before = [weight.clone() for weight in weights]
    expected = [weight.clone() for weight in before]
    cw.perturb_(expected, scale=(-1) ** flips * 0.01, seed=0)
    with warnings.catch_warnings(record=True) as said, cw.perturbed(weights, scale=0.01, seed=0) as block:
        for _ in range(flips):
            block.flip()
        for weight, wanted in zip(weights, expected, strict=True):
            assert_same_bits(weight, wanted)
    assert [str(warning.message) for warning in said] == [
        "perturbed: 50% of the weights' bytes are copied instead of journaled, "
        "those of params[0] for one: more of them are small beside the noise than their mean tells"
    ]
    for step in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with cw.perturbed(weights, scale=0.01, seed=0, step=step) as block:
                block.flip()
        for weight, old in zip(weights, before, strict=True):
            assert_same_bits(weight, old)


def test_an_exception_inside(device: str):
    model = net(device)
    before = state(model)
    with pytest.raises(ZeroDivisionError), cw.perturbed(model, scale=0.01, seed=0):
        1 / 0  # noqa: B018
    assert_same(model, before)


def test_nested_blocks(device: str):
    model = net(device)
    before = state(model)
    with cw.perturbed(model, scale=0.01, seed=0) as outer:
        moved = state(model)
        for seed in (1, 2):
            with cw.perturbed(model[3], scale=0.02, seed=seed) as inner:
                inner.flip()
            assert_same(model, moved)
        outer.flip()
        with cw.perturbed(model, scale=0.01, seed=0, restore="snapshot"):
            pass
    assert_same(model, before)


def test_frozen_and_tied(device: str):
    model = net(device)
    model[0].weight.requires_grad_(False)
    model.last = nn.Conv2d(70, 30, 3, bias=False, device=device)
    model.last.weight = model[3].weight
    before = state(model)
    with cw.perturbed(model, scale=0.01, seed=0):
        assert_same_bits(model[0].weight, before["0.weight"])
        assert not torch.equal(model[3].weight, before["3.weight"])
    with cw.perturbed(model, scale=0.01, seed=0, frozen=True):
        assert not torch.equal(model[0].weight, before["0.weight"])
    assert_same(model, before)


def test_without_noise_and_without_weights():
    weight = torch.ones(3)
    with cw.perturbed([weight], scale=0.0, seed=0) as block:
        block.flip()
        assert weight.tolist() == [1.0] * 3
    with cw.perturbed([], scale=1.0, seed=0) as block:
        block.flip()
    with torch.inference_mode(), cw.perturbed(made := torch.ones(5000), scale=0.1, seed=0, stream=0):
        assert made.ne(1).any()
    assert made.eq(1).all()


def refused(call, message: str, error: type[Exception] = RuntimeError) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}") as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("restore", ["journal", "snapshot"])
@pytest.mark.parametrize("action", ["flip", "end"])
def test_somebody_else_writes(device: str, restore: str, action: str):
    """The version counter tells, and nothing is touched."""
    model = net(device)

    def run() -> None:
        with cw.perturbed(model, scale=0.01, seed=0, restore=restore) as block:
            with torch.no_grad():
                model[3].weight[0, 0] = 7.0
            left.update(state(model))
            if action == "flip":
                block.flip()

    left: dict[str, torch.Tensor] = {}
    refused(run, "perturbed: params['3.weight'] must not be changed inside the block, got a change by somebody else")
    assert_same(model, left)
    with cw.perturbed(model, scale=0.01, seed=0, restore=restore):
        pass
    assert_same(model, left)


REPLACED = [
    lambda m: setattr(m[3], "weight", nn.Parameter(m[3].weight.detach().clone())),
    lambda m: m.append(nn.Conv2d(1, 1, 1)),
    lambda m: delattr(m[0], "bias"),
]


@pytest.mark.parametrize("change", REPLACED)
def test_parameters_are_replaced(change):
    model = net()

    def run() -> None:
        with cw.perturbed(model, scale=0.01, seed=0):
            change(model)

    refused(run, "perturbed: params must have the parameters it had when the block began, got others, and they are")
    model = net()

    def swap() -> None:
        with cw.perturbed(model, scale=0.01, seed=0):
            model[3].weight.data = model[3].weight.data.clone()

    refused(swap, "perturbed: params['3.weight'] must not be changed inside the block")


def test_blocks_out_of_order():
    weight = [torch.randn(5000)]
    before = weight[0].clone()
    outer, inner = cw.perturbed(weight, scale=0.01, seed=0), cw.perturbed(weight, scale=0.01, seed=1)
    refused(outer.flip, "perturbed: a block must be open to flip, got one that is not; use it in a with")
    outer.__enter__()
    inner.__enter__()
    for call in (outer.flip, lambda: outer.__exit__(None, None, None)):
        refused(call, "perturbed: a block must ")
    inner.__exit__(None, None, None)
    refused(lambda: inner.__exit__(None, None, None), "perturbed: a block must be open to end, got one that is not")
    refused(outer.__enter__, "perturbed: a block must begin once, got one that has begun; make another")
    outer.flip()
    outer.__exit__(None, None, None)
    assert_same_bits(weight[0], before)


def test_two_threads():
    weight, other = [torch.randn(5000)], [torch.randn(5000)]
    before = [tensor.clone() for tensor in weight + other]
    errors: list[str] = []

    def elsewhere() -> None:
        third = cw.perturbed(weight, scale=1, seed=0)
        for call in (block.flip, lambda: block.__exit__(None, None, None), third.__enter__):
            try:
                call()
            except RuntimeError as error:
                errors.append(str(error))
        with cw.perturbed(other, scale=0.1, seed=0):
            pass

    with cw.perturbed(weight, scale=0.01, seed=0) as block:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert [error[:40] for error in errors] == [
        "perturbed: a block must flip in the thre",
        "perturbed: a block must end in the threa",
        "perturbed: params must not be inside a b",
    ]
    for tensor, old in zip(weight + other, before, strict=True):
        assert_same_bits(tensor, old)


BAD = [
    ({"restore": "copy"}, ValueError, "perturbed: restore must be 'journal' or 'snapshot', got 'copy'"),
    ({"distribution": "none"}, ValueError, "perturbed: distribution must be 'normal' or 'uniform' or 'rademacher'"),
    ({"scale": "x"}, TypeError, "perturbed: scale must be a number, got 'x'"),
    ({"scale": 1e39}, ValueError, "perturbed: scale must be finite in float32, got 1e+39"),
    ({"seed": -1}, ValueError, "perturbed: seed must lie in 0 .. 2^64 - 1, got -1"),
    ({"step": 2**32}, ValueError, "perturbed: step must lie in 0 .. 2^32 - 1, got 4294967296"),
    ({"params": torch.ones(3)}, ValueError, "perturbed: stream must be given for a single tensor"),
    (
        {"params": [torch.ones(3).long()]},
        TypeError,
        "perturbed: params[0] must be float64, float32, float16 or bfloat16",
    ),
    ({"params": nn.Linear(2, 2).requires_grad_(False)}, ValueError, "perturbed: params must hold a parameter that"),
    ({"params": [torch.ones(3, device="meta")]}, ValueError, "perturbed: params[0] must hold data, got a meta tensor"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_what_is_refused(arguments: dict, error: type, message: str):
    given = {"params": [torch.ones(3)], "scale": 0.1, "seed": 0, **arguments}
    params = given.pop("params")

    def run() -> None:
        with cw.perturbed(params, **given):
            raise AssertionError

    refused(run, message, error)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="one device")
def test_a_model_on_two_devices():
    model = nn.Sequential(nn.Conv2d(3, 70, 3), nn.Conv2d(70, 30, 3, device="cuda"))
    before = state(model)
    with cw.perturbed(model, scale=0.01, seed=0) as block:
        block.flip()
        assert not torch.equal(model[1].weight, before["1.weight"])
    assert_same(model, before)


# What goes wrong on the way, and what others do.


def uneven(device: str = "cpu") -> list[torch.Tensor]:
    """Of the first, more weights are small than the mean tells: found out when the block begins."""
    weights = [torch.randn(60_000, device=device) * 1e-4, torch.randn(60_000, device=device), torch.ones(3).double()]
    weights[0][:100] = 1.0
    return weights


def test_a_warning_that_is_an_error():
    weights = uneven()
    before = [weight.clone() for weight in weights]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="copied instead of journaled"), cw.perturbed(weights, scale=0.01, seed=0):
            raise AssertionError
    for weight, old in zip(weights, before, strict=True):
        assert_same_bits(weight, old)


WHERE = ["_copy_what_did_not_fit", "_put_back", "_run"]


@pytest.mark.filterwarnings("ignore:perturbed. .*copied instead of journaled")
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("name", WHERE)
@pytest.mark.parametrize("restore", ["journal", "snapshot"])
def test_an_interrupt_anywhere(monkeypatch, name: str, call: int, error: type[BaseException], restore: str):
    """Before or behind each step of beginning and flipping: the weights are back, and the next block is right."""
    for behind in (False, True):
        weights, calls = uneven(), []
        before = [weight.clone() for weight in weights]
        real = getattr(memory.Memory, name)

        def interrupted(*arguments, real=real, calls=calls, behind=behind):
            calls.append(name)
            if behind:
                real(*arguments)
            if len(calls) == call + 1:
                raise error
            if not behind:
                real(*arguments)

        with contextlib.suppress(error), monkeypatch.context() as patch:
            patch.setattr(memory.Memory, name, interrupted)
            with cw.perturbed(weights, scale=0.01, seed=0, restore=restore) as block:
                block.flip()
                patch.undo()
        for weight, old in zip(weights, before, strict=True):
            assert_same_bits(weight, old)
        moved = [weight.clone() for weight in before]
        cw.perturb_(moved, scale=0.01, seed=0)
        with cw.perturbed(weights, scale=0.01, seed=0, restore=restore):
            for weight, wanted in zip(weights, moved, strict=True):
                assert_same_bits(weight, wanted)
        for weight, old in zip(weights, before, strict=True):
            assert_same_bits(weight, old)


def test_a_memory_that_cannot_be_made(monkeypatch):
    weights = [torch.randn(5000), torch.randn(5000).bfloat16()]
    block = cw.perturbed(weights, scale=0.01, seed=0)
    before = [weight.clone() for weight in weights]
    with monkeypatch.context() as patch:
        patch.setattr(memory, "_make", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            block.__enter__()
    with block:
        block.flip()
    for weight, old in zip(weights, before, strict=True):
        assert_same_bits(weight, old)


FOREIGN = {
    "before the inner block": lambda a, c, blocks: (a.add_(1), blocks(a)),
    "of another weight": lambda a, c, blocks: blocks(a, lambda: c.add_(1)),
    "inside the inner block": lambda a, c, blocks: blocks(a, lambda: a.add_(1)),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_nesting_hides_no_change_by_others(name: str):
    """Whoever finds it out, the block around it does, too, and nothing is written over the change."""
    a, c = torch.randn(5000), torch.randn(5000)

    def blocks(weight, inside=lambda: None) -> None:
        with contextlib.suppress(RuntimeError), cw.perturbed([weight], scale=0.01, seed=1):
            inside()
        left.extend((a.clone(), c.clone()))

    def run() -> None:
        with cw.perturbed([a, c], scale=0.01, seed=0):
            FOREIGN[name](a, c, blocks)

    left: list[torch.Tensor] = []
    refused(run, "perturbed: params[")
    assert_same_bits(a, left[0])
    assert_same_bits(c, left[1])


def test_a_block_inside_one_of_the_same_kind_fails():
    """Their memories are alike in all but what they hold."""
    weight, said = torch.randn(5000), []

    def inner() -> None:
        with cw.perturbed([weight], scale=0.01, seed=1):
            weight.add_(1)

    def outer() -> None:
        with cw.perturbed([weight], scale=0.01, seed=0):
            try:
                inner()
            except RuntimeError as error:
                said.append(str(error))

    message = "perturbed: params[0] must not be changed inside the block"
    refused(outer, message)
    assert [words[: len(message)] for words in said] == [message]


def test_views_of_one_tensor():
    """They share a version counter: blocks on them are nested like blocks on the whole."""
    flat = torch.randn(12_000)
    before = flat.clone()
    for outer, inner in (([flat], [flat[8:]]), ([flat[:5000]], [flat[5000:]]), ([flat[8:]], [flat])):
        first, second = cw.perturbed(outer, scale=0.01, seed=0), cw.perturbed(inner, scale=0.01, seed=1)
        with first:
            with second:
                refused(first.flip, "perturbed: a block must flip outside of those that began after it on the same")
                second.flip()
            first.flip()
        assert_same_bits(flat, before)


CHANGED = {
    "strides": lambda w: setattr(w, "data", w.data.t()),
    "there and back": lambda w: (setattr(w, "data", w.data.half()), setattr(w, "data", w.data.float())),
    "swapped out": lambda w: setattr(w, "data", w.data.half().float()),
}


@pytest.mark.parametrize("name", CHANGED)
def test_memory_that_is_swapped(name: str):
    """By what .data= puts there; the memory is held, so that its address is not given to another."""
    for size in (8, 100):
        weight = nn.Parameter(torch.randn(size, size))

        def run(weight=weight) -> None:
            with cw.perturbed([weight], scale=0.01, seed=0):
                CHANGED[name](weight)

        refused(run, "perturbed: params[0] must not be changed inside the block")


def test_inference_mode_and_back(device: str):
    model = net(device)
    before = state(model)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        for restore in ("journal", "snapshot"):
            with mode(), cw.perturbed(model, scale=1e-3, seed=0, restore=restore) as block:
                block.flip()
    assert_same(model, before)


def test_small_tensors_are_copied_and_scales_that_rise_have_room(device: str):
    small = [torch.randn(4, device=device) for _ in range(100)]
    with cw.perturbed(small, scale=1e-3, seed=0) as block:
        assert block.nbytes == sum(weight.nbytes for weight in small)
    large = [torch.randn(100_000, device=device)]
    made = set()
    for step in range(20):
        with cw.perturbed(large, scale=0.01 * 1.02**step, seed=0, step=step) as block:
            made.add(id(block._parts[0][1]))
    assert len(made) <= 3
    with cw.perturbed(large, scale=1e-46, seed=0) as block:
        assert block.nbytes == 0


def test_a_generator_of_parameters(device: str):
    model = net(device)
    before = state(model)
    with cw.perturbed(model.parameters(), scale=1e-3, seed=0) as block:
        block.flip()
        assert not torch.equal(model[3].weight, before["3.weight"])
    assert_same(model, before)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cw.PerturbHook(optimizer, shift=1.0, params=model.parameters())
    for step in range(3):
        optimizer.step()
        assert_same_bits(model[0].bias, sum([before["0.bias"]] + [torch.ones(70, device=device)] * (step + 1)))


def test_a_block_that_is_never_left_lets_go():
    weight = [torch.randn(5000)]
    block = cw.perturbed(weight, scale=0.01, seed=0)
    block.__enter__()
    moved = weight[0].clone()
    del block
    gc.collect()
    thread = threading.Thread(target=lambda: cw.perturbed(weight, scale=0.1, seed=0).__enter__())
    thread.start()
    thread.join()
    assert not torch.equal(weight[0], moved)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_dtensors(tmp_path):
    """Their own versions count, which their operations bump, and stale graphs are found."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        weight = nn.Parameter(distribute_tensor(torch.randn(100, 100), mesh, [Shard(0)]))
        before = weight.detach().to_local().clone()
        with cw.perturbed([weight], scale=0.01, seed=0) as block:
            block.flip()
            loss = (weight * weight).sum()
        assert_same_bits(weight.detach().to_local(), before)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

        def run() -> None:
            with cw.perturbed([weight], scale=0.01, seed=0), torch.no_grad():
                weight.add_(1)

        refused(run, "perturbed: params must not be changed inside the block")
    finally:
        dist.destroy_process_group()


# Hooks.


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(8, 6, generator=g).to(next(model.parameters()).device)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def layers(device: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).to(device)


def test_a_hook_is_resumed(device: str):
    """From a model, an optimizer and two numbers: all bits of the unbroken run."""
    options = {"scale": lambda step: 0.01 / (1 + step), "seed": 2**63 + 5, "decay": 0.999}
    whole, first = layers(device), layers(device)
    for model, steps in ((whole, 12), (first, 5)):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        hook = cw.PerturbHook(optimizer, **options)
        train(model, optimizer, range(steps))
    saved = copy.deepcopy((first.state_dict(), optimizer.state_dict(), hook.state_dict()))
    assert saved[2] == {"step": 5, "seed": 2**63 + 5}
    again = layers(device)
    again.load_state_dict(saved[0])
    optimizer = torch.optim.Adam(again.parameters(), lr=1e-2)
    optimizer.load_state_dict(saved[1])
    hook = cw.PerturbHook(optimizer, scale=options["scale"], seed=0, decay=0.999)
    hook.load_state_dict(saved[2])
    train(again, optimizer, range(5, 12))
    assert_same(again, whole.state_dict())


def test_a_hook_does_what_update_does(device: str):
    model, by_hand = layers(device), layers(device)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    other = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    hook = cw.PerturbHook(optimizer, scale=0.01, seed=7, shift=-0.001, distribution="uniform")
    for step in range(3):
        train(model, optimizer, range(step, step + 1))
        train(by_hand, other, range(step, step + 1))
        cw.update_(by_hand, scale=0.01, seed=7, step=step, shift=-0.001, distribution="uniform")
        assert_same(model, by_hand.state_dict())
    hook.remove()
    for m, o in ((model, optimizer), (by_hand, other)):
        train(m, o, range(3, 4))
    assert_same(model, by_hand.state_dict())
    assert hook.step == 3


def test_a_hook_on_a_list_takes_positions(device: str):
    model, by_hand = layers(device), layers(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cw.PerturbHook(optimizer, scale=0.5, seed=1)
    train(model, optimizer, range(1))
    cw.perturb_(list(by_hand.parameters()), scale=0.5, seed=1)
    assert_same(model, by_hand.state_dict())


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def with_hook(optimizer: torch.optim.Optimizer, **options) -> torch.optim.Optimizer:
    cw.PerturbHook(optimizer, **options)
    return optimizer


def emptied(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    optimizer.param_groups[0]["params"].clear()
    return optimizer


BAD_HOOKS = [
    (lambda m: cw.PerturbHook(None), TypeError, "PerturbHook: optimizer must be a torch.optim.Optimizer, got NoneType"),
    (lambda m: cw.PerturbHook(emptied(sgd(m))), ValueError, "PerturbHook: optimizer must have parameters, got none"),
    (lambda m: cw.PerturbHook(sgd(m), scale=0.1), ValueError, "PerturbHook: seed must be given where noise is drawn"),
    (lambda m: cw.PerturbHook(sgd(m), seed=-1), ValueError, "PerturbHook: seed must lie in 0 .. 2^64 - 1, got -1"),
    (lambda m: cw.PerturbHook(sgd(m), shift="x"), TypeError, "PerturbHook: shift must be a number, got 'x'"),
    (lambda m: cw.PerturbHook(sgd(m), distribution="x"), ValueError, "PerturbHook: distribution must be 'none' or"),
    (lambda m: cw.PerturbHook(sgd(m), rounding="up"), ValueError, "PerturbHook: rounding must be 'nearest' or"),
    (
        lambda m: cw.PerturbHook(sgd(m), rounding="stochastic", seed=0),
        ValueError,
        "PerturbHook: rounding must be 'nearest' for weights of float32, got 'stochastic'",
    ),
    (lambda m: cw.PerturbHook(sgd(m), scale=1e39, seed=0), ValueError, "PerturbHook: scale must be finite in float32"),
    (lambda m: cw.PerturbHook(sgd(m), params=3), TypeError, "PerturbHook: params must be a tensor, a list, a dict or"),
    (
        lambda m: cw.PerturbHook(sgd(m.requires_grad_(False)), shift=1.0),
        ValueError,
        "PerturbHook: params must hold a parameter that requires a gradient, got 4 frozen; pass frozen=True",
    ),
    (
        lambda m: cw.PerturbHook(sgd(m), scale=0.1, seed=0).load_state_dict({"step": 3, "seed": None}),
        ValueError,
        "PerturbHook.load_state_dict: seed must be given where noise is drawn, got None",
    ),
    (
        lambda m: train(m, with_hook(sgd(m), scale=lambda step: math.nan, seed=0), range(1)),
        ValueError,
        "PerturbHook: scale must be finite, got nan",
    ),
    (
        lambda m: cw.PerturbHook(sgd(m)).load_state_dict({"step": 1}),
        ValueError,
        "PerturbHook.load_state_dict: state must hold step and seed, got {'step': 1}",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_HOOKS)
def test_hooks_that_are_refused(call, error: type, message: str):
    refused(lambda: call(layers("cpu")), message, error)
