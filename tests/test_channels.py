"""Channel functions against the formulas users come from, and the properties their rescaling promises."""

import math

import pytest
import torch
import torch.nn.functional as F
from bits import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import COMPUTE_DTYPES, pairwise_sum

import convweights as cw

DTYPES = (torch.float32, torch.float16)
COUNTS = (1, 2, 3, 4, 6, 9, 12, 13)


def timm(channels: int, weight: torch.Tensor) -> torch.Tensor:
    """timm 1.0, ``adapt_input_conv``."""
    dtype, weight = weight.dtype, weight.float()
    filters, inputs, *kernel = weight.shape
    if channels == 1:
        if inputs > 3:
            assert inputs % 3 == 0
            weight = weight.reshape(filters, inputs // 3, 3, *kernel).sum(dim=2)
        else:
            weight = weight.sum(dim=1, keepdim=True)
    elif channels != 3:
        if inputs != 3:
            raise NotImplementedError("Weight format not supported by conversion.")
        weight = weight.repeat(1, math.ceil(channels / 3), 1, 1)[:, :channels, :, :]
        weight = weight * (3 / float(channels))
    return weight.to(dtype)


def segmentation_models(channels: int, weight: torch.Tensor) -> torch.Tensor:
    """segmentation_models_pytorch, ``patch_first_conv``, whose new weight is float32 until the dtype is restored."""
    inputs = weight.shape[1]
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    new = torch.empty(weight.shape[0], channels, *weight.shape[2:])
    for channel in range(channels):
        new[:, channel] = weight[:, channel % inputs]
    return (new * (inputs / channels)).to(weight.dtype)


def ours(channels: int, weight: torch.Tensor) -> torch.Tensor:
    if channels < weight.shape[1] and channels != 2:
        return cw.average_channels(weight, channels, rescale="uniform")
    return cw.replicate_channels(weight, channels, rescale="uniform")


@pytest.fixture(params=DTYPES, ids=str)
def stem(request: pytest.FixtureRequest) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(64, 3, 7, 7).mul(0.05).to(request.param)


# Three terms have one order in torch.sum too: (a + b) + c. Family: exact.
@pytest.mark.parametrize("channels", COUNTS)
@pytest.mark.parametrize("peer", [timm, segmentation_models])
def test_peers_numbers_from_three_channels(device: str, stem: torch.Tensor, peer, channels: int):
    assert_same_bits(ours(channels, stem.to(device)), peer(channels, stem))


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (7, 7)])
def test_space_to_depth_twelve_to_four(device: str, kernel: tuple[int, int]):
    """timm sums RGB inside each of the four groups; three adjacent channels are one window of blocks."""
    for dtype in DTYPES:
        weight = torch.randn(32, 12, *kernel).to(dtype)
        averaged = cw.average_channels(weight.to(device), 4, rescale="uniform")
        assert_same_bits(averaged, timm(1, weight))


@pytest.mark.parametrize("inputs", [6, 12, 13])
def test_many_to_one_is_the_pairwise_sum(device: str, inputs: int):
    """timm refuses 13, and where there are more than three terms the order of torch.sum, which splits them over
    several accumulators by their number and layout, decides the last bit. Ours is pairwise. Family: exact; beside
    torch.sum: rounded."""
    for dtype in DTYPES:
        weight = torch.randn(64, inputs, 3, 3).to(dtype)
        summed = cw.average_channels(weight.to(device), 1, rescale="uniform").cpu()
        # The factor n / m over the window's count is exactly 1.
        assert_same_bits(summed, pairwise_sum(weight.float().unbind(1))[:, None].to(dtype))
        exact = weight.double().sum(1, keepdim=True)
        torch_error = (weight.float().sum(1, keepdim=True).to(dtype) - exact).abs().max()
        assert (summed - exact).abs().max() <= 2 * torch_error


@pytest.mark.parametrize("channels", [3, 13])
def test_the_same_number_of_channels_is_a_copy(device: str, channels: int):
    """timm: 13 to 13 and 4 to 4 raise NotImplementedError."""
    for dtype in DTYPES:
        weight = torch.randn(8, channels, 3, 3).to(dtype).to(device)
        assert_same_bits(cw.replicate_channels(weight, channels, rescale="uniform"), weight)
        assert_same_bits(cw.average_channels(weight, channels, rescale="uniform"), weight)


def test_four_to_three(device: str):
    """timm returns the four channels unchanged."""
    weight = torch.randn(8, 4, 3, 3)
    expected = torch.stack([weight[:, 0], weight[:, 1], weight[:, 2]], 1) * (4 / 3)
    assert_same_bits(cw.replicate_channels(weight.to(device), 3, rescale="uniform"), expected)


@pytest.mark.parametrize("channels", COUNTS)
def test_grouped_layer(device: str, channels: int):
    """segmentation_models_pytorch: IndexError. Maps act on the channels of one group: I / groups of them."""
    layer = torch.nn.Conv2d(3 * 4, 16, 3, groups=4)
    weight = layer.weight.detach()
    adapted = ours(channels, weight.to(device)).cpu()
    for group in range(4):
        filters = slice(4 * group, 4 * group + 4)
        assert_same_bits(adapted[filters], timm(channels, weight[filters]))


# Family: exact. Sums are pairwise, so that a power of two of equal terms only ever doubles.
@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
@pytest.mark.parametrize("count", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("orders", [("tile", "strided"), ("interleave", "blocks")], ids="-".join)
@settings(max_examples=settings.default.max_examples // 8)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)),
    dim=st.sampled_from([0, 1]),
    rescale=st.sampled_from(["none", "exact"]),
    seed=st.integers(0, 2**31),
)
def test_matching_average_undoes_replication(device: str, orders, count, dtype, shape, dim, rescale, seed):
    """With "exact" too: the copies are divided and then summed, and powers of two round nothing off."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    # Below this, a 32nd of a float16 is subnormal and loses bits.
    weight = torch.where(weight.abs() < 0.01, 1.0, weight).to(device)
    channels = weight.shape[dim]
    grown = cw.replicate_channels(weight, channels * count, dim=dim, order=orders[0], rescale=rescale)
    assert grown.shape[dim] == channels * count
    assert_same_bits(cw.average_channels(grown, channels, dim=dim, order=orders[1], rescale=rescale), weight)
    if rescale == "none":
        expected = grown.clone()
        assert_same_bits(cw.average_channels_(grown, groups=channels, dim=dim, order=orders[1]), expected)


@pytest.mark.parametrize("count", [3, 5, 12, 31])
def test_matching_average_of_other_counts(device: str, count: int):
    """Family: rounded."""
    weight = torch.randn(8, 3, 3, 3)
    grown = cw.replicate_channels(weight.to(device), 3 * count)
    averaged = cw.average_channels(grown, 3, order="strided").cpu()
    # Copies add up exactly to runs of a power of two; joining the runs, the factor and the product round.
    roundings = count.bit_count() + 1
    assert ((averaged - weight).abs() <= roundings * torch.finfo(torch.float32).eps / 2 * weight.abs()).all()


def same_output(
    adapted: torch.Tensor, fed: torch.Tensor, weight: torch.Tensor, image: torch.Tensor, groups: int, roundings: int
) -> None:
    """Family: rounded. The new layer is the old one but for the roundings that made each weight; run in float32, it is
    no further from the old layer's exact output than twice its own error."""

    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x.flatten(1, 2), w, groups=groups)

    old, new = run(image.double(), weight.double()), run(fed.double(), adapted.double())
    eps = torch.finfo(torch.float32).eps
    assert ((new - old).abs() <= roundings * eps / 2 * run(image.double(), weight.double().abs())).all()
    own_error = (run(fed, adapted) - new).abs().max()
    assert (run(fed, adapted) - old).abs().max() <= 2 * own_error


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("channels", [4, 5, 7])
@pytest.mark.parametrize("order", ["tile", "interleave"])
def test_exact_replication_keeps_the_output(device: str, order: str, channels: int, groups: int):
    torch.manual_seed(channels)
    weight = torch.randn(8, 3, 3, 3)
    image = torch.rand(2, groups, 3, 9, 9)
    index = torch.arange(channels) % 3 if order == "tile" else torch.arange(channels) * 3 // channels
    grown = cw.replicate_channels(weight.to(device), channels, order=order, rescale="exact").cpu()
    # The factor's and the product's.
    same_output(grown, image[:, :, index], weight, image, groups, roundings=2)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("order", ["blocks", "strided"])
def test_exact_average_keeps_the_output(device: str, order: str, channels: int, groups: int):
    torch.manual_seed(channels)
    weight = torch.randn(8, 7, 3, 3)
    image = torch.rand(2, groups, channels, 9, 9)
    if order == "strided":
        index = torch.arange(7) % channels
    else:
        # Position i lies in the window of the last j whose first position, ceil(7 j / m), is not past it.
        firsts = [-(-7 * j // channels) for j in range(channels)]
        index = torch.tensor([max(j for j in range(channels) if firsts[j] <= i) for i in range(7)])
    shrunk = cw.average_channels(weight.to(device), channels, order=order, rescale="exact").cpu()
    # The sum of seven terms is three additions deep.
    same_output(shrunk, image, weight, image[:, :, index], groups, roundings=3)


@pytest.mark.parametrize("dim", [0, 1])
def test_truncation_is_idempotent(device: str, dim: int):
    weight = torch.randn(8, 6, 3, 3, device=device)
    once = cw.truncate_channels(weight, 4, dim=dim)
    assert_same_bits(once, weight.narrow(dim, 0, 4))
    assert_same_bits(cw.truncate_channels(once, 4, dim=dim), once)


@pytest.mark.parametrize("rescale", ["none", "uniform", "exact"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_twins_say_what_the_functions_in_place_say(device: str, memory_format: torch.memory_format, rescale: str):
    source = torch.randn(6, 4, 3, 3, device=device).to(memory_format=memory_format)
    for order in ("tile", "interleave"):
        made = cw.replicate_channels(source, 7, order=order, rescale=rescale)
        assert_same_bits(
            made, cw.replicate_channels_(torch.empty(6, 7, 3, 3, device=device), source, order=order, rescale=rescale)
        )
    for order in ("blocks", "strided"):
        made = cw.average_channels(source, 3, order=order, rescale=rescale)
        assert_same_bits(
            made, cw.average_channels_(torch.empty(6, 3, 3, 3, device=device), source, order=order, rescale=rescale)
        )


def test_resize_is_interpolate(device: str):
    """Family: rounded. torch weighs its taps in float32."""
    for n, m in ((3, 7), (7, 3), (5, 5), (1, 4)):
        kernel = torch.randn(8, 4, n, n, device=device)
        resized = cw.transfer_(torch.empty(8, 4, m, m, device=device), kernel, {2: cw.Resize(), 3: cw.Resize()})
        torchs = F.interpolate(kernel, size=(m, m), mode="bilinear", align_corners=False)
        exact = F.interpolate(kernel.double(), size=(m, m), mode="bilinear", align_corners=False)
        assert (resized - exact).abs().max() <= 2 * (torchs - exact).abs().max() + torch.finfo(torch.float32).eps
