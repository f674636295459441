"""The transfer verb against the best of eager torch, torch.compile and memory. ``python benchmarks/transfer.py --help``

Each case lists every eager idiom that somebody might reach for, those that allocate nothing among them; README's table
shows the fastest. On CUDA weights are larger, so that memory is measured and not the call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from harness import Case, main

import convweights as cw
from convweights import maps
from convweights.ops.transfer_reference import reference_transfer_


def _factor(device: str) -> int:
    return 4 if device == "cuda" else 1


def _reference(output: torch.Tensor, source: torch.Tensor, by_dim: dict[int, cw.Map]) -> torch.Tensor:
    expected, source = torch.empty_like(output, device="cpu"), source.cpu()
    every = [by_dim.get(dim, cw.Identity()) for dim in range(output.ndim)]
    reference_transfer_(
        expected,
        source,
        [maps.KINDS.index(map.kind) for map in every],
        [map.start_for(n, m) for map, n, m in zip(every, source.shape, output.shape, strict=True)],
        [maps.RESCALES.index(map.rescaling) for map in every],
        [],
        1.0,
        [0],
    )
    return expected.to(output.device)


def _case(name: str, title: str, output: torch.Tensor, source: torch.Tensor, by_dim: dict[int, cw.Map]) -> Case:
    return Case(name, title, output, _reference(output, source, by_dim), source)


def replicate(device: str, *, tiny: bool = False, compiled: bool = True, dtype: torch.dtype = torch.float32) -> Case:
    filters, channels, kernel = (4, 7, 3) if tiny else (512 * _factor(device) ** 2, 64, 7)
    source = torch.randn(filters, 3, kernel, kernel, device=device)
    weight = torch.nn.Parameter(torch.empty(filters, channels, kernel, kernel, device=device, dtype=dtype))
    cast = dtype != torch.float32
    name = "replicate to bfloat16" if cast else "replicate"
    case = _case(
        name,
        f"3 to {channels} channels of {filters} x {kernel} x {kernel}, into a parameter",
        weight,
        source,
        {1: cw.Tile()},
    )
    index = torch.arange(channels, device=device) % 3
    whole, rest = channels // 3 * 3, channels % 3

    def broadcast(values: torch.Tensor) -> None:
        weight[:, :whole].unflatten(1, (-1, 3)).copy_(values.unsqueeze(1))
        weight[:, whole:].copy_(values[:, :rest])

    def slices(values: torch.Tensor) -> None:
        for first in range(0, channels, 3):
            part = weight[:, first : first + 3]
            part.copy_(values[:, : part.shape[1]])

    def concatenate(values: torch.Tensor) -> None:
        torch.cat([*[values] * (channels // 3), values[:, :rest]], 1, out=weight)

    case.ours("replicate_channels_", lambda: cw.replicate_channels_(weight, source))
    case.eager(
        "copy_(source.repeat(...)[:, :m])",
        lambda: weight.copy_(source.repeat(1, channels // 3 + 1, 1, 1)[:, :channels]),
    )
    case.eager("copy_(source[:, index])", lambda: weight.copy_(source[:, index]))
    case.eager("unflatten, copy_ of a broadcast, and the rest", lambda: broadcast(source))
    case.eager("copy_ slice by slice", lambda: slices(source))
    if cast:
        case.eager("source.to, index_select(out=)", lambda: torch.index_select(source.to(dtype), 1, index, out=weight))
        case.eager("source.to, cat(out=)", lambda: concatenate(source.to(dtype)))
        case.eager("source.to, copy_ of a broadcast", lambda: broadcast(source.to(dtype)))
    else:
        case.eager("index_select(out=)", lambda: torch.index_select(source, 1, index, out=weight))
        case.eager("cat(out=)", lambda: concatenate(source))
    if compiled:
        case.compiled("copy_(source[:, index])", lambda output, source: output.copy_(source[:, index]))
    return case


def replicate_bfloat16(device: str, *, tiny: bool = False, compiled: bool = True) -> Case:
    return replicate(device, tiny=tiny, compiled=compiled, dtype=torch.bfloat16)


def average(device: str, *, tiny: bool = False, compiled: bool = True) -> Case:
    filters, channels = (4, 12) if tiny else (512 * _factor(device), 2048)
    half = channels // 2
    source = torch.randn(filters, channels, 3, 3, device=device)
    weight = torch.empty(filters, half, 3, 3, device=device)
    case = _case(
        "average", f"{channels} to {half} adjacent channels of {filters} x 3 x 3", weight, source, {1: cw.Blocks()}
    )
    pairs = source.unflatten(1, (half, 2))
    even, odd = source[:, ::2], source[:, 1::2]
    rows = source.view(filters, 1, channels, 9)

    case.ours("average_channels_", lambda: cw.average_channels_(weight, source))
    case.eager("copy_(view.mean(2))", lambda: weight.copy_(pairs.mean(2)))
    case.eager("mean(view, 2, out=)", lambda: torch.mean(pairs, 2, out=weight))
    case.eager("sum(view, 2, out=), mul_", lambda: torch.sum(pairs, 2, out=weight).mul_(0.5))
    case.eager("add(even, odd, out=), mul_", lambda: torch.add(even, odd, out=weight).mul_(0.5))
    case.eager(
        "mul(even, 0.5, out=), add_(odd, alpha=0.5)",
        lambda: torch.mul(even, 0.5, out=weight).add_(odd, alpha=0.5),
        exact=False,
    )
    case.eager("lerp(even, odd, 0.5, out=)", lambda: torch.lerp(even, odd, 0.5, out=weight), exact=False)
    case.eager("copy_(avg_pool2d)", lambda: weight.copy_(F.avg_pool2d(rows, (2, 1)).view_as(weight)))
    if compiled:
        case.compiled(
            "copy_(view.mean(2))", lambda output, source: output.copy_(source.unflatten(1, (half, 2)).mean(2))
        )
        case.compiled(
            "copy_((even + odd) * 0.5)", lambda output, source: output.copy_((source[:, ::2] + source[:, 1::2]) * 0.5)
        )
    return case


def hwio(device: str, *, tiny: bool = False, compiled: bool = True) -> Case:
    size = 12 if tiny else 512 * _factor(device)
    source = torch.randn(3, 3, size, size, device=device)
    weight = torch.empty(size, size, 3, 3, device=device)
    permuted = source.permute(3, 2, 0, 1)
    case = _case("HWIO to OIHW", f"3 x 3 x {size} x {size}", weight, permuted, {})
    matrix = source.view(9 * size, size)
    flat = weight.view(size, size, 9)
    transposed = torch.empty(size, 9 * size, device=device)

    def by_position() -> None:
        for position, plane in enumerate(source.view(9, size, size)):
            flat[:, :, position].copy_(plane.t())

    def in_two_steps() -> None:
        flat.copy_(transposed.copy_(matrix.t()).view(size, 9, size).transpose(1, 2))

    case.ours("transfer_", lambda: cw.transfer_(weight, permuted))
    case.eager("copy_(source.permute(3, 2, 0, 1))", lambda: weight.copy_(permuted))
    case.eager("copy_ position by position", by_position)
    case.eager("two transposes by way of a buffer", in_two_steps)
    if compiled:
        case.compiled("copy_(permute)", lambda output, source: output.copy_(source))
    return case


def inflate(device: str, *, tiny: bool = False, compiled: bool = True) -> Case:
    size, depth = (6 if tiny else 512 * _factor(device)), 5
    source = torch.randn(size, size, 3, 3, device=device)
    weight = torch.empty(size, size, depth, 3, 3, device=device)
    one = source.unsqueeze(2)
    spread = one.expand_as(weight)
    case = _case(
        "inflate", f"{size} x {size} x 3 x 3 to a depth of {depth}, divided by it", weight, one, {2: cw.Tile("exact")}
    )
    small = torch.empty_like(source)

    def slices() -> None:
        for depth_slice in weight.unbind(2):
            torch.mul(source, 1 / depth, out=depth_slice)

    def first_then_copies() -> None:
        torch.mul(source, 1 / depth, out=weight[:, :, 0])
        weight[:, :, 1:].copy_(weight[:, :, :1])

    def scaled_then_copied() -> None:
        weight.copy_(torch.mul(source, 1 / depth, out=small).unsqueeze(2))

    def scaled_then_stacked() -> None:
        torch.stack([torch.mul(source, 1 / depth, out=small)] * depth, 2, out=weight)

    case.ours("transfer_(Tile('exact'))", lambda: cw.transfer_(weight, one, {2: cw.Tile("exact")}))
    case.eager("copy_(source.unsqueeze(2).expand(T) / T)", lambda: weight.copy_(spread / depth), exact=False)
    case.eager("mul(expanded, 1 / T, out=)", lambda: torch.mul(spread, 1 / depth, out=weight))
    case.eager("mul(out=slice) slice by slice", slices)
    case.eager("mul(out=first slice), copied to the others", first_then_copies)
    case.eager("mul into a small buffer, copy_ of a broadcast", scaled_then_copied)
    case.eager("mul into a small buffer, stack(out=)", scaled_then_stacked)
    if compiled:
        case.compiled(
            "copy_(expanded * (1 / T))", lambda output, source: output.copy_(source.expand_as(output) * (1 / depth))
        )
    return case


def truncate(device: str, *, tiny: bool = False, compiled: bool = True) -> Case:
    size = 12 if tiny else 2048 * _factor(device)
    half = size // 2
    source = torch.randn(size, size, 3, 3, device=device)
    weight = torch.empty(half, half, 3, 3, device=device, dtype=torch.bfloat16)
    case = _case(
        "truncate and cast",
        f"{size} x {size} to {half} x {half} of 3 x 3, float32 to bfloat16",
        weight,
        source[:half, :half],
        {},
    )
    by_dim = {0: cw.Truncate(), 1: cw.Truncate()}
    case.ours("transfer_(Truncate, Truncate)", lambda: cw.transfer_(weight, source, by_dim))
    case.eager("copy_(source[:m, :m])", lambda: weight.copy_(source[:half, :half]))
    case.eager("copy_(narrowed.to(bfloat16))", lambda: weight.copy_(source[:half, :half].to(torch.bfloat16)))
    if compiled:
        case.compiled("copy_(source[:m, :m])", lambda output, source: output.copy_(source))
    return case


CASES = {
    "replicate": replicate,
    "replicate-bfloat16": replicate_bfloat16,
    "average": average,
    "hwio": hwio,
    "inflate": inflate,
    "truncate": truncate,
}

if __name__ == "__main__":
    main("transfer", CASES)
