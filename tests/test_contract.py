"""What PyTorch expects of an operator that writes: schema, compilation, autograd, identity, memory. Family: exact."""

import pytest
import torch
from bits import assert_same_bits, storage_of
from cases import Case
from fill_cases import Fill, arguments, by_reference
from samples import FILL_SAMPLES, MAKERS, OP_SAMPLES, UPDATE_SAMPLES, WRITERS, Writer
from torch.profiler import ProfilerActivity, profile
from update_cases import UpdateCase, operator, plain

import convweights as cw
from convweights import maps, stream

op = torch.ops.convweights.transfer_.default


@pytest.mark.parametrize("case", OP_SAMPLES.values(), ids=OP_SAMPLES)
def test_opcheck(device: str, case: Case):
    checks = torch.library.opcheck(op, (case.weight.on(device), case.source.on(device), *case.encoded()))
    assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", OP_SAMPLES.values(), ids=OP_SAMPLES)
def test_samples(device: str, case: Case):
    case.check(device)
    meta = case.weight.on("meta")
    assert op(meta, case.source.on("meta"), *case.encoded()) is None


@pytest.mark.parametrize("case", [case for case in UPDATE_SAMPLES.values() if case.targets])
def test_opcheck_of_update(device: str, case: UpdateCase):
    checks = torch.library.opcheck(operator, case.arguments(device))
    assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", UPDATE_SAMPLES.values(), ids=UPDATE_SAMPLES)
def test_samples_of_update(device: str, case: UpdateCase):
    case.check(device)
    assert operator(*case.arguments("meta")) is None


@pytest.mark.parametrize("fills", FILL_SAMPLES.values(), ids=FILL_SAMPLES)
def test_opcheck_of_fill(device: str, fills: list[Fill]):
    weights = [fill.weight.on(device) for fill in fills]
    checks = torch.library.opcheck(torch.ops.convweights.fill_.default, arguments(fills, weights, device))
    assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("fills", FILL_SAMPLES.values(), ids=FILL_SAMPLES)
def test_samples_of_fill(device: str, fills: list[Fill]):
    weights = [fill.weight.on(device) for fill in fills]
    torch.ops.convweights.fill_(*arguments(fills, weights, device))
    for found, expected in zip(weights, by_reference(fills), strict=True):
        assert_same_bits(storage_of(found), storage_of(expected))
    assert torch.ops.convweights.fill_(*arguments(fills, [w.to("meta") for w in weights], "meta")) is None


@pytest.mark.parametrize("name", ["tile", "pad", "select", "blocks"])
def test_the_op_compiles(device: str, name: str):
    case = OP_SAMPLES[name]
    arguments = case.encoded()

    def write(weight: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        op(weight, source, *arguments)
        return weight * 2

    weight = case.weight.on(device)
    doubled = torch.compile(write, backend="aot_eager", fullgraph=True)(weight, case.source.on(device))
    assert_same_bits(storage_of(weight), storage_of(case.by_reference()))
    assert_same_bits(doubled, weight * 2)


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_public_functions_compile(device: str, writer: Writer):
    torch.compiler.reset()

    def write(*arguments: torch.Tensor) -> torch.Tensor:
        return writer.function(*arguments, **writer.keywords) * 2

    expected, *source = writer.arguments(torch.rand(writer.shape, device=device))
    weight = expected.clone()
    doubled = torch.compile(write, backend="aot_eager", fullgraph=True)(weight, *source)
    assert_same_bits(doubled, write(expected, *source))
    assert_same_bits(weight, expected)


def test_compiled_functions_follow_new_shapes(device: str):
    torch.compiler.reset()
    replicate = torch.compile(cw.replicate_channels_, backend="aot_eager", fullgraph=True)
    for filters, channels in ((8, 3), (8, 5), (9, 7), (11, 13)):
        source, weight = torch.rand(filters, 3, 3, device=device), torch.empty(filters, channels, 3, device=device)
        expected = source[:, torch.arange(channels) % 3]
        assert_same_bits(replicate(weight, source), expected)


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_stale_graph_raises(device: str, writer: Writer):
    weight = torch.rand(writer.shape, device=device, requires_grad=True)
    loss = (weight * weight).sum()
    writer(weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", ["update_", "transfer_"])
def test_a_stale_graph_raises_under_compile(device: str, name: str, inside: bool, backend: str):
    """The graph is built in the compiled function before the write, or before the compiled function is called."""
    torch.compiler.reset()
    weight = torch.rand(8, 4, device=device, requires_grad=True)
    source = torch.rand(8, 4, device=device)

    def write(weight: torch.Tensor) -> None:
        cw.update_(weight, shift=1.0) if name == "update_" else cw.transfer_(weight, source)

    def graph_and_write(weight: torch.Tensor) -> torch.Tensor:
        loss = (weight * weight).sum()
        write(weight)
        return loss

    def run() -> None:
        if inside:
            loss = torch.compile(graph_and_write, backend=backend)(weight)
        else:
            loss = (weight * weight).sum()
            torch.compile(write, backend=backend)(weight)
        loss.backward()

    # aot_eager notices while it traces, the others in backward.
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run()


def test_the_raw_operators_bump_versions(device: str):
    weight = torch.rand(3, 4, device=device)
    before = weight._version
    operator(*[[weight] if k == 0 else part for k, part in enumerate(UPDATE_SAMPLES["normal"].arguments(device))])
    assert weight._version == before + 1


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_version_counters(device: str, writer: Writer):
    arguments = writer.arguments(torch.rand(writer.shape, device=device))
    before = [tensor._version for tensor in arguments]
    writer.function(*arguments, **writer.keywords)
    assert arguments[0]._version > before[0]
    assert [tensor._version for tensor in arguments[1:]] == before[1:]


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_parameters_keep_their_identity(device: str, writer: Writer):
    layer = torch.nn.Module()
    layer.weight = parameter = torch.nn.Parameter(torch.rand(writer.shape, device=device))
    parameter.grad = grad = torch.rand(writer.shape, device=device)
    address, expected = parameter.data_ptr(), grad.clone()
    result = writer(parameter)
    assert (result is parameter) == writer.returns_weight
    assert layer.weight is parameter
    assert parameter.is_leaf
    assert parameter.requires_grad
    assert parameter.data_ptr() == address
    assert parameter.grad is grad
    assert_same_bits(grad, expected)
    if not writer.returns_weight:
        assert not result.requires_grad
        assert result.data_ptr() == address


@pytest.mark.parametrize("writer", [writer for writer in WRITERS.values() if writer.source])
def test_sources_that_require_a_gradient_leave_no_graph(device: str, writer: Writer):
    weight, source = writer.arguments(torch.rand(writer.shape, device=device))
    assert writer.function(weight, source.requires_grad_(), **writer.keywords) is weight
    assert not weight.requires_grad
    assert weight.grad_fn is None


def allocations(call, device: str) -> list[int]:
    """The sizes of every allocation that the call makes on the device, after a first call has filled the caches."""
    call()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_stats()
        call()
        after = torch.cuda.memory_stats()
        count = after["allocation.all.allocated"] - before["allocation.all.allocated"]
        requested = after["requested_bytes.all.allocated"] - before["requested_bytes.all.allocated"]
        return [requested] if count else []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_functions_in_place_allocate_nothing(device: str, writer: Writer, dtype: torch.dtype):
    arguments = writer.arguments(torch.rand(writer.shape, device=device).to(dtype))
    assert allocations(lambda: writer.function(*arguments, **writer.keywords), device) == []


@pytest.mark.native
@pytest.mark.parametrize("case", [case for case in UPDATE_SAMPLES.values() if case.targets])
def test_update_allocates_nothing(device: str, case: UpdateCase):
    """Whatever strides, masks, boxes and seeds: the list operator writes in place."""
    arguments = case.arguments(device)
    assert allocations(lambda: operator(*arguments), device) == []


@pytest.mark.native
def test_a_whole_model_is_updated_without_allocating(device: str):
    weights = [plain((50, 30, 3, 3), stream=k).weight.on(device) for k in range(5)]
    assert allocations(lambda: cw.perturb_(weights, scale=1.0, seed=0), device) == []


@pytest.mark.native
@pytest.mark.parametrize(("make", "shape"), MAKERS.values(), ids=MAKERS)
def test_twins_allocate_their_result_alone(device: str, make, shape: tuple[int, ...]):
    source = torch.rand(64, 16, 3, 3, device=device)
    assert make(source).shape == shape
    assert allocations(lambda: make(source), device) == [4 * torch.Size(shape).numel()]


def test_the_counter_counts(device: str):
    weight = torch.rand(16, 16, device=device)
    assert sum(allocations(lambda: weight + 1, device)) >= 1024


@pytest.mark.native
def test_codes_are_those_of_the_kernels():
    assert cw.native.cpu.map_kinds() == maps.KINDS
    assert cw.native.cpu.rescales() == maps.RESCALES
    assert cw.native.cpu.distributions() == stream.DISTRIBUTIONS
