"""Draws a tensor's filters to a PNG: one tensor, or two side by side on one colour scale. Needs matplotlib."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from types import ModuleType
from typing import Any

import numpy as np
import torch

from convweights.checkpoint.formats import path_of
from convweights.checkpoint.replace import replacing
from convweights.fitting.errors import sentence
from convweights.fitting.report import dtype_name

Values = np.ndarray[Any, np.dtype[np.float64]]
Image = np.ma.MaskedArray[Any, np.dtype[np.float64]]

# Kernels a side, values a dimension of a matrix or vector, slices and values a side of a kernel, values in all.
MOST_CELLS, MOST_LENGTH, MOST_SLICES, MOST_SIDE, MOST_VALUES = 128, 512, 16, 64, 2**24
# Pixels of a mosaic: between cells, between the depth slices in a cell, and how long a cell is at least.
GAP, SLICE_GAP, CELL = 3, 1, 20
COLOURS, GREY, NOT_FINITE = "RdBu_r", "#c8c8c8", "#f5c400"
NEGATIVE, POSITIVE = "#2f79b5", "#c13639"
# The scale is drawn from -1 to 1 and labelled in the tensor's own numbers, which may be as large as float64 goes.
TICKS = (-1.0, -0.5, 0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Part:
    """What is drawn of a tensor, in float64: kernels (filters, channels, slices, rows, columns), a matrix
    (out_channels, in_channels) or a vector. ``start`` is the place of the first in dimension 0 of the tensor.
    """

    values: Values
    start: int
    caption: str


def draw(
    path: str | PathLike[str],
    tensors: Sequence[tuple[str, torch.Tensor]],
    *,
    name: str,
    filters: int = 16,
    channels: int = 8,
    start: int = 0,
) -> None:
    """Draw a tensor, or two such as before and after, each under its label, to a PNG that is whole or not there.

    Kernels of shape (O, I, ...) become a grid, a row a filter and a column an input channel: ``filters`` of them from
    filter ``start`` on, by ``channels``. A matrix is one image and a vector is bars, up to 512 a dimension from
    ``start`` on, whatever ``filters`` and ``channels`` are. 0 is white, and the largest finite magnitude of all that is
    drawn is the strongest blue and red. Captions say which part of a tensor is shown.

    Raises ValueError for what cannot be drawn and where matplotlib is missing, CheckpointError for a path that cannot
    be written to.
    """
    target = path_of("show", "output", path)
    if target.suffix != ".png":
        raise ValueError(sentence("show", "output", "end in .png", target))
    if len(tensors) not in (1, 2):
        raise ValueError(sentence("show", "tensors", "be one or two", len(tensors)))
    for argument, count in (("filters", filters), ("channels", channels)):
        if not (isinstance(count, int) and 1 <= count <= MOST_CELLS):
            raise ValueError(sentence("show", argument, f"be from 1 to {MOST_CELLS}", count))
    parts = [part(*labelled, name=name, filters=filters, channels=channels, start=start) for labelled in tensors]
    matplotlib = _matplotlib()
    # The defaults, because a user's own may ask for LaTeX, and a tensor's name is none.
    with matplotlib.style.context("default"):
        figure = _figure(matplotlib, parts, name)
        with replacing("show", target, fsync=False) as file:
            figure.savefig(file, format="png", dpi=150, bbox_inches="tight", pad_inches=0.15)


def part(label: str, tensor: torch.Tensor, *, name: str, filters: int, channels: int, start: int) -> Part:
    """The values of a tensor that are drawn, and the caption that says which. Nothing else of it is copied."""
    described, shape = f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)}", tuple(tensor.shape)
    argument = f"{name} ({label})" if label else name
    if not _is_real(tensor):
        raise ValueError(sentence("show", argument, "be a dense tensor of real numbers", described))
    if not (shape and tensor.numel()):
        raise ValueError(sentence("show", argument, "have a dimension and hold values", described))
    if not (isinstance(start, int) and 0 <= start < shape[0]):
        raise ValueError(sentence("show", "start", f"be from 0 to {shape[0] - 1} for {argument} {shape}", start))
    words, most = ("filters", "channels"), (filters, channels)
    if len(shape) <= 2:
        words, most = ("out_channels", "in_channels"), (MOST_LENGTH, MOST_LENGTH)
    shown = tensor[start : start + most[0]]
    ranges = [_range(words[0] if len(shape) > 1 else "values", start, len(shown), shape[0])]
    if len(shape) > 1:
        shown = shown[:, : most[1]]
        ranges.append(_range(words[1], 0, shown.shape[1], shape[1]))
    lines = [f"{label}: {described}" if label else described, ", ".join(ranges)]
    if len(shape) > 2:
        kernel = (1, 1, *shape[2:])
        kernel = (math.prod(kernel[:-2]), *kernel[-2:])
        shown = shown.reshape(*shown.shape[:2], *kernel)[:, :, :MOST_SLICES, :MOST_SIDE, :MOST_SIDE]
        if shown.shape[2:] != kernel:
            lines.append(f"of each kernel, {_by(kernel)}, the first {_by(shown.shape[2:])}")
        if shown.numel() > MOST_VALUES:
            rule = f"be at most {MOST_VALUES} values of {argument} {shape}"
            raise ValueError(sentence("show", "filters times channels", rule, shown.numel()))
    values = shown.detach().cpu().to(torch.float64).numpy()
    if count := int(np.count_nonzero(~np.isfinite(values))):
        lines.append(f"{count} value{'s' * (count != 1)} NaN or infinite, yellow")
    return Part(values, start, "\n".join(lines))


def _is_real(tensor: torch.Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        return False
    try:
        torch.empty(1, dtype=tensor.dtype, device="cpu").double()
    except NotImplementedError:
        # The dtype packs several numbers into an element.
        return False
    return True


def _range(word: str, first: int, count: int, total: int) -> str:
    return f"{word} {first} to {first + count - 1} of {total}"


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def mosaic(kernels: Values) -> Image:
    """One image of kernels (filters, channels, slices, rows, columns): a row of cells a filter, a column a channel.

    A cell has the slices next to each other, with a gap between them as there is between cells, only narrower. Gaps are
    masked. Small kernels are magnified so that gaps are narrow beside them.
    """
    down, across = _magnified(*kernels.shape[3:])
    kernels = kernels.repeat(down, axis=3).repeat(across, axis=4)
    filters, channels, slices, rows, columns = kernels.shape
    shape = (filters, rows + GAP, channels, slices * (columns + SLICE_GAP) - SLICE_GAP + GAP)
    # What is written to is no longer masked.
    cells: Image = np.ma.MaskedArray(np.zeros(shape), mask=True)
    for place in range(slices):
        left = place * (columns + SLICE_GAP)
        cells[:, :rows, :, left : left + columns] = kernels[:, :, place].transpose(0, 2, 1, 3)
    image: Image = cells.reshape(filters * shape[1], channels * shape[3])[:-GAP, :-GAP]
    return image


def _magnified(rows: int, columns: int) -> tuple[int, int]:
    """Pixels a value, down and across: squares, unless a kernel would be less than a quarter as wide as long."""
    square = math.ceil(CELL / max(rows, columns))
    return max(square, math.ceil(square * columns / 4 / rows)), max(square, math.ceil(square * rows / 4 / columns))


def _matplotlib() -> ModuleType:
    """matplotlib with what is used of it. Never pyplot, which looks for a display."""
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        remedy = "pip install 'convweights[plots]'"
        raise ValueError(sentence("show", "matplotlib", "be installed to draw", "none", remedy)) from error
    for module in ("cm", "colors", "figure", "style"):
        importlib.import_module(f"matplotlib.{module}")
    return matplotlib


def _figure(matplotlib: ModuleType, parts: Sequence[Part], name: str) -> Any:
    """Panels with their tops in line. Places are counted in inches from the upper left corner."""
    values = [drawn.values for drawn in parts]
    limit = max(float(np.abs(numbers[np.isfinite(numbers)]).max(initial=0.0)) for numbers in values) or 1.0
    images = [mosaic(numbers) if numbers.ndim == 5 else np.ma.asarray(numbers) for numbers in values]
    sizes = _inches(parts, images)
    lines = [drawn.caption.split("\n") for drawn in parts]
    slots = [max(size[0] + 0.8, 0.063 * max(map(len, texts)) + 0.3) for size, texts in zip(sizes, lines, strict=True)]
    top, tallest = 0.45 + 0.17 * max(map(len, lines)), max(size[1] for size in sizes)
    width, height = sum(slots) + 0.9, top + tallest + 0.6
    figure = matplotlib.figure.Figure(figsize=(width, height))

    def axes_at(left: float, top: float, size: tuple[float, float]) -> Any:
        return figure.add_axes((left / width, 1 - (top + size[1]) / height, size[0] / width, size[1] / height))

    left = 0.6
    figure.text(left / width, 1, name, fontsize=12, fontweight="bold", va="top", parse_math=False)
    for drawn, image, size, slot in zip(parts, images, sizes, slots, strict=True):
        axes = axes_at(left, top, size)
        axes.set_title(drawn.caption, fontsize=9, loc="left", parse_math=False)
        axes.tick_params(labelsize=8)
        if image.ndim == 1:
            _bars(axes, drawn, limit)
        else:
            _image(matplotlib, axes, drawn, image, size, limit)
        left += slot
    if any(image.ndim > 1 for image in images):
        scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-1, 1), COLOURS)
        # A little lower than the panels: its topmost number would touch a caption.
        bar = axes_at(left - slots[-1] + sizes[-1][0] + 0.3, top + 0.08, (0.16, min(max(tallest, 1.3), 4.0) - 0.08))
        figure.colorbar(scale, cax=bar, ticks=TICKS)
        bar.set_yticks(TICKS, _scale(limit), fontsize=8)
    return figure


def _scale(limit: float) -> list[str]:
    return [f"{tick * limit:.3g}" for tick in TICKS]


def _inches(parts: Sequence[Part], images: Sequence[Any]) -> list[tuple[float, float]]:
    """Width and height of each panel. Cells have half an inch while that fits, and the same on both sides."""
    longest = max(max(image.shape) for image in images)
    grid, matrix = min(max(longest / (2 * (CELL + GAP)), 3.0), 8.0) / longest, 5.0 / longest
    sizes = []
    for drawn, image in zip(parts, images, strict=True):
        if image.ndim == 1:
            sizes.append((5.0, 2.5))
        elif drawn.values.ndim == 2:
            sizes.append((max(1.25, matrix * image.shape[1]), max(1.25, matrix * image.shape[0])))
        else:
            sizes.append((grid * image.shape[1], grid * image.shape[0]))
    return sizes


def _bars(axes: Any, drawn: Part, limit: float) -> None:
    finite = np.isfinite(drawn.values)
    heights = np.where(finite, drawn.values, 0.0) / limit
    places = drawn.start + np.arange(len(heights))
    axes.bar(places, heights, width=0.8, color=np.where(heights < 0, NEGATIVE, POSITIVE))
    axes.bar(places[~finite], 2.2, bottom=-1.1, width=0.8, color=NOT_FINITE)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xlim(places[0] - 0.6, places[-1] + 0.6)
    axes.set_ylim(-1.1, 1.1)
    axes.set_yticks(TICKS, _scale(limit))
    axes.xaxis.get_major_locator().set_params(integer=True)


def _image(matplotlib: ModuleType, axes: Any, drawn: Part, image: Any, size: tuple[float, float], limit: float) -> None:
    colours = matplotlib.colors.to_rgba_array([GREY, NOT_FINITE]) * 255
    values = image.filled(0.0)
    finite = np.isfinite(values)
    pixels = matplotlib.colormaps[COLOURS]((np.where(finite, values, 0.0) / limit + 1) / 2, bytes=True)
    pixels[~finite] = colours[1]
    pixels[np.ma.getmaskarray(image)] = colours[0]
    rows, columns = drawn.values.shape[:2]
    if drawn.values.ndim == 2:
        first = drawn.start - 0.5
        axes.imshow(pixels, aspect="auto", extent=(-0.5, columns - 0.5, first + rows, first))
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
        words = ("out_channels", "in_channels")
    else:
        axes.imshow(pixels, aspect="auto")
        _label(axes.set_yticks, rows, drawn.start, image.shape[0], size[1] / 0.16)
        _label(axes.set_xticks, columns, 0, image.shape[1], size[0] / 0.3)
        axes.tick_params(length=0)
        words = ("filter", "input channel")
    axes.set_ylabel(words[0], fontsize=9)
    axes.set_xlabel(words[1], fontsize=9)


def _label(set_ticks: Any, cells: int, first: int, pixels: int, room: float) -> None:
    """Numbers at the middle of cells: all, or every 2nd, 5th, 10th, ... where there is no room for so many."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, cells) if cells / step <= room or step == cells)
    shown = np.arange(0, cells, step)
    pitch = (pixels + GAP) / cells
    set_ticks(shown * pitch + (pitch - GAP - 1) / 2, [str(first + place) for place in shown])
