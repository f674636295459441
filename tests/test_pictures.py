"""Pictures of filters: which values are drawn where, what the captions say, and files that are whole or not there."""

import struct
import sys
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from checkpoints import random_bits, snapshot

from convweights import pictures
from convweights.checkpoint import CheckpointError
from convweights.pictures import GAP, SLICE_GAP, draw, mosaic, part

RANKS = [(5,), (6, 4), (6, 4, 3), (6, 4, 3, 3), (6, 4, 2, 3, 3), (6, 4, 2, 2, 3, 3)]


@pytest.fixture
def figures(monkeypatch):
    """What is drawn, as matplotlib's own objects."""
    drawn, make = [], pictures._figure
    monkeypatch.setattr(pictures, "_figure", lambda *arguments: drawn.append(make(*arguments)) or drawn[-1])
    return drawn


def shown(tensor, label="", name="w", filters=16, channels=8, start=0):
    return part(label, tensor, name=name, filters=filters, channels=channels, start=start)


def size(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[-8:-4] == b"IEND"
    return struct.unpack(">II", content[16:24])


def cells(image, kernels):
    """Row by row, the part of a mosaic that is each kernel's, found from the sizes alone."""
    rows, columns = (
        (pixels + GAP) // count - GAP for pixels, count in zip(image.shape, kernels.shape[:2], strict=True)
    )
    for o in range(kernels.shape[0]):
        for i in range(kernels.shape[1]):
            top, left = o * (rows + GAP), i * (columns + GAP)
            yield o, i, image[top : top + rows, left : left + columns]


# filters, channels, slices, rows, columns; and the pixels that a value gets, down and across
KERNELS = [
    ((2, 3, 1, 7, 7), (3, 3)),
    ((16, 8, 1, 3, 3), (7, 7)),
    ((2, 3, 1, 1, 1), (20, 20)),
    ((3, 2, 1, 25, 25), (1, 1)),
    ((2, 2, 1, 1, 3), (7, 7)),
    ((2, 2, 1, 1, 20), (5, 1)),
    ((2, 2, 1, 40, 1), (1, 10)),
    ((2, 3, 4, 3, 5), (4, 4)),
    ((1, 1, 1, 2, 2), (10, 10)),
]


@pytest.mark.parametrize(("shape", "magnified"), KERNELS)
def test_every_value_is_in_its_cell(shape, magnified):
    kernels = np.random.default_rng(0).standard_normal(shape)
    image = mosaic(kernels)
    _, _, slices, rows, columns = shape
    height, width = rows * magnified[0], columns * magnified[1]
    cell_width = slices * (width + SLICE_GAP) - SLICE_GAP
    assert image.shape == (shape[0] * (height + GAP) - GAP, shape[1] * (cell_width + GAP) - GAP)
    for o, i, cell in cells(image, kernels):
        assert cell.shape == (height, cell_width)
        for place in range(slices):
            left = place * (width + SLICE_GAP)
            one = cell[:, left : left + width]
            assert not np.ma.getmaskarray(one).any()
            assert np.array_equal(one.data, np.kron(kernels[o, i, place], np.ones(magnified)))
    # What is no value is a gap.
    assert image.count() == kernels.size * magnified[0] * magnified[1]


def test_values_that_are_not_finite_stay_in_a_mosaic():
    kernels = np.zeros((2, 1, 1, 1, 3))
    kernels[0, 0, 0, 0] = [np.nan, np.inf, -np.inf]
    first = next(cells(mosaic(kernels), kernels))[2]
    assert not np.ma.getmaskarray(first).any()
    assert np.array_equal(first.data[0, ::7], [np.nan, np.inf, -np.inf], equal_nan=True)


@pytest.mark.parametrize(
    ("shape", "options", "caption", "values"),
    [
        ((64, 3, 7, 7), {}, "filters 0 to 15 of 64, channels 0 to 2 of 3", (16, 3, 1, 7, 7)),
        ((64, 9, 3), {"filters": 4, "start": 62}, "filters 62 to 63 of 64, channels 0 to 7 of 9", (2, 8, 1, 1, 3)),
        ((2, 3, 4, 5, 6), {"channels": 1}, "filters 0 to 1 of 2, channels 0 to 0 of 3", (2, 1, 4, 5, 6)),
        ((2, 3, 2, 2, 5, 6), {}, "filters 0 to 1 of 2, channels 0 to 2 of 3", (2, 3, 4, 5, 6)),
        ((1000, 600), {"start": 900}, "out_channels 900 to 999 of 1000, in_channels 0 to 511 of 600", (100, 512)),
        ((600,), {"start": 50}, "values 50 to 561 of 600", (512,)),
        (
            (2, 2, 100, 7),
            {},
            "filters 0 to 1 of 2, channels 0 to 1 of 2\nof each kernel, 1 x 100 x 7, the first 1 x 64 x 7",
            (2, 2, 1, 64, 7),
        ),
        (
            (2, 2, 17, 1, 1),
            {},
            "filters 0 to 1 of 2, channels 0 to 1 of 2\nof each kernel, 17 x 1 x 1, the first 16 x 1 x 1",
            (2, 2, 16, 1, 1),
        ),
    ],
)
def test_captions_say_what_is_shown(shape, options, caption, values):
    tensor = torch.arange(float(torch.Size(shape).numel())).view(shape)
    found = shown(tensor, "before", **options)
    assert found.caption == f"before: float32 {shape}\n{caption}"
    assert shown(tensor, **options).caption == f"float32 {shape}\n{caption}"
    assert found.start == options.get("start", 0)
    assert found.values.shape == values
    assert found.values.dtype == np.float64
    begin = options.get("start", 0)
    whole = tensor[begin : begin + values[0]]
    if len(shape) > 1:
        whole = whole[:, : values[1]]
    if len(shape) > 2:
        whole = whole.reshape(*values[:2], *((1,) * (5 - len(shape))), *shape[2:]) if len(shape) < 6 else whole
        whole = whole.reshape(*values[:2], -1, *whole.shape[-2:])[:, :, : values[2], : values[3], : values[4]]
    assert np.array_equal(found.values, whole.double().numpy())


def test_captions_count_what_is_not_finite():
    values = torch.ones(4, 2)
    values[0, 0], values[1, 1], values[3, 0] = torch.nan, torch.inf, -torch.inf
    assert shown(values).caption.endswith("\n3 values NaN or infinite, yellow")
    assert shown(values, start=2).caption.endswith("\n1 value NaN or infinite, yellow")
    assert "NaN" not in shown(values[2]).caption


@pytest.mark.parametrize("shape", RANKS)
def test_every_rank_is_drawn(tmp_path, figures, shape):
    path, tensor = tmp_path / "w.png", torch.randn(shape)
    draw(path, [("", tensor)], name="conv.weight")
    width, height = size(path)
    assert 200 < width < 2500
    assert 200 < height < 2500
    assert list(snapshot(tmp_path)) == ["w.png"]
    (figure,) = figures
    panel = figure.axes[0]
    assert [text.get_text() for text in figure.texts] == ["conv.weight"]
    assert panel.get_title(loc="left") == shown(tensor).caption
    assert len(figure.axes) == (1 if len(shape) == 1 else 2)
    words = {1: ("", ""), 2: ("in_channels", "out_channels")}.get(len(shape), ("input channel", "filter"))
    assert (panel.get_xlabel(), panel.get_ylabel()) == words


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint16, torch.int64, torch.bfloat16, torch.float8_e4m3fn])
def test_every_real_dtype_is_drawn(tmp_path, figures, dtype):
    draw(tmp_path / "w.png", [("", torch.eye(3).to(dtype))], name="w")
    assert figures[0].axes[0].get_title(loc="left").startswith(str(dtype).removeprefix("torch."))


def test_parameters_and_strided_views_are_drawn(tmp_path, figures):
    weight = torch.nn.Parameter(torch.randn(3, 3, 4, 6))
    draw(tmp_path / "a.png", [("", weight)], name="w")
    draw(tmp_path / "b.png", [("", weight.permute(3, 2, 0, 1))], name="w")
    draw(tmp_path / "c.png", [("", weight.permute(3, 2, 0, 1).contiguous())], name="w")
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes() != (tmp_path / "a.png").read_bytes()


def renderer_of(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return FigureCanvasAgg(figure).get_renderer()


def pixels(axes):
    return np.asarray(axes.get_images()[0].get_array())


def rgb(colour):
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]


def test_before_and_after_share_a_scale_round_zero(tmp_path, figures):
    before, after = torch.zeros(1, 1, 1, 2), torch.zeros(1, 2, 1, 2)
    before[0, 0, 0] = torch.tensor([2.0, -1.0])
    after[0, :, 0] = torch.tensor([[-2.0, 4.0], [0.0, torch.nan]])
    draw(tmp_path / "w.png", [("before", before), ("after", after)], name="w")
    left, right, bar = figures[0].axes
    assert [label.get_text() for label in bar.get_yticklabels()] == ["-4", "-2", "0", "2", "4"]
    # Values get 10 pixels across, cells are 3 apart.
    two, minus_one = pixels(left)[0, [0, 10], :3].astype(int)
    minus_two, four, gap, zero, nan = pixels(right)[0, [0, 10, 20, 23, 33], :3].astype(int)
    import matplotlib as mpl

    scale = mpl.colormaps["RdBu_r"]
    for value, found in ((2, two), (-1, minus_one), (-2, minus_two), (4, four), (0, zero)):
        assert np.array_equal(found, scale((value / 4 + 1) / 2, bytes=True)[:3])
    assert list(nan) == rgb(pictures.NOT_FINITE)
    assert list(gap) == rgb(pictures.GREY)
    assert four[0] > four[2]
    assert minus_two[2] > minus_two[0]


def test_cells_are_labelled_at_their_middle(tmp_path, figures):
    kernels = torch.randn(40, 3, 7, 7)
    draw(tmp_path / "w.png", [("", kernels)], name="w", filters=4, start=30)
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["30", "31", "32", "33"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2"]
    # Cells of 21 pixels, 3 apart; a pixel's middle is a whole number.
    assert np.array_equal(axes.get_yticks(), [10, 34, 58, 82])
    assert np.array_equal(axes.get_xticks(), [10, 34, 58])


def test_labels_are_thinned_where_they_would_overlap(tmp_path, figures):
    draw(tmp_path / "w.png", [("before", torch.randn(128, 128, 1, 1))] * 2, name="w", filters=128, channels=100)
    figure = figures[0]
    renderer = renderer_of(figure)
    for axes in figure.axes[:2]:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [label.get_window_extent(renderer) for label in labels]
            assert len(boxes) > 5
            assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_captions_do_not_overlap(tmp_path, figures):
    pair = [("before", torch.randn(64, 1, 7, 7)), ("after", torch.full((64, 4, 7, 7), torch.nan))]
    draw(tmp_path / "w.png", pair, name="conv1.weight")
    figure = figures[0]
    renderer = renderer_of(figure)
    left, right, bar = figure.axes
    boxes = [axes._left_title.get_window_extent(renderer) for axes in (left, right)]
    boxes += [bar.get_tightbbox(renderer), figure.texts[0].get_window_extent(renderer)]
    assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])
    assert left.get_window_extent().y1 == pytest.approx(right.get_window_extent().y1)


def test_a_matrix_is_numbered_from_its_start(tmp_path, figures):
    draw(tmp_path / "w.png", [("", torch.randn(30, 4))], name="w", start=10)
    image = figures[0].axes[0].get_images()[0]
    assert image.get_extent() == [-0.5, 3.5, 29.5, 9.5]
    assert pixels(figures[0].axes[0]).shape == (20, 4, 4)


def test_bars_have_the_values_heights(tmp_path, figures):
    draw(tmp_path / "w.png", [("", torch.tensor([9.0, 1.0, -2.0, torch.nan, 4.0]))], name="w", start=1)
    (axes,) = figures[0].axes
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches]
    assert bars == [(pytest.approx(x), h) for x, h in ((1, 0.25), (2, -0.5), (3, 0.0), (4, 1.0), (3, 2.2))]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["-4", "-2", "0", "2", "4"]


@pytest.mark.parametrize("value", [0.0, 1.7e308, 5e-324, torch.nan, torch.inf])
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2, 2)])
def test_extreme_values_are_drawn_without_a_warning(tmp_path, figures, shape, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path / "w.png", [("", torch.full(shape, value, dtype=torch.float64))], name="w")
    assert size(tmp_path / "w.png")


def test_names_are_no_markup(tmp_path, figures):
    draw(tmp_path / "w.png", [("$x", torch.ones(2, 2)), ("x$", torch.ones(2, 2))], name=r"block.$\frac{1$_weight")
    assert figures[0].texts[0].get_text() == r"block.$\frac{1$_weight"


def test_pyplot_and_the_user_s_settings_stay_out_of_it(tmp_path, figures, monkeypatch):
    import matplotlib as mpl

    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    monkeypatch.setitem(mpl.rcParams, "text.usetex", True)
    draw(tmp_path / "w.png", [("", torch.ones(2, 2))], name="a_b")
    assert "matplotlib.pyplot" not in sys.modules
    assert mpl.rcParams["text.usetex"] is True


def test_an_older_picture_is_replaced(tmp_path, figures):
    path = tmp_path / "w.png"
    path.write_text("old")
    draw(str(path), [("", torch.ones(2, 2))], name="w")
    assert size(path)
    assert list(snapshot(tmp_path)) == ["w.png"]


W = torch.ones(4, 3, 2, 2)
REFUSED = [
    ("w.jpg", [("", W)], {}, r"output must end in \.png, got .*w\.jpg"),
    ("png", [("", W)], {}, r"output must end in \.png, got .*png"),
    ("w.png", [], {}, "tensors must be one or two, got 0"),
    ("w.png", [("", W)] * 3, {}, "tensors must be one or two, got 3"),
    ("w.png", [("", W)], {"filters": 0}, "filters must be from 1 to 128, got 0"),
    ("w.png", [("", W)], {"channels": 129}, "channels must be from 1 to 128, got 129"),
    ("w.png", [("", W)], {"filters": 1.5}, r"filters must be from 1 to 128, got 1\.5"),
    ("w.png", [("", W)], {"start": 4}, r"start must be from 0 to 3 for w \(4, 3, 2, 2\), got 4"),
    ("w.png", [("", W)], {"start": -1}, r"start must be from 0 to 3 for w \(4, 3, 2, 2\), got -1"),
    ("w.png", [("a", W), ("b", W[:2])], {"start": 2}, r"start must be from 0 to 1 for w \(b\) \(2, 3, 2, 2\), got 2"),
    ("w.png", [("", torch.tensor(1.0))], {}, r"w must have a dimension and hold values, got float32 \(\)"),
    ("w.png", [("a", W[:, :0])], {}, r"w \(a\) must have a dimension and hold values, got float32 \(4, 0, 2, 2\)"),
    ("w.png", [("", W + 1j)], {}, r"w must be a dense tensor of real numbers, got complex64 \(4, 3, 2, 2\)"),
    ("w.png", [("", W.to_sparse())], {}, r"w must be a dense tensor of real numbers, got float32 \(4, 3, 2, 2\)"),
    ("w.png", [("", W.to("meta"))], {}, r"w must be a dense tensor of real numbers, got float32 \(4, 3, 2, 2\)"),
    (
        "w.png",
        [("", random_bits((2, 2), torch.float4_e2m1fn_x2))],
        {},
        r"w must be a dense tensor of real numbers, got float4_e2m1fn_x2 \(2, 2\)",
    ),
    (
        "w.png",
        [("", torch.ones(1).expand(128, 128, 64, 64))],
        {"filters": 128, "channels": 128},
        r"filters times channels must be at most 16777216 values of w \(128, 128, 64, 64\), got 67108864",
    ),
]


@pytest.mark.parametrize(("name", "tensors", "options", "words"), REFUSED)
def test_refusals_leave_no_file(tmp_path, name, tensors, options, words):
    with pytest.raises(ValueError, match=rf"\Ashow: {words}\Z"):
        draw(tmp_path / name, tensors, name="w", **options)
    assert snapshot(tmp_path) == {}


def test_without_matplotlib_the_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    sentence = r"\Ashow: matplotlib must be installed to draw, got none; pip install 'convweights\[plots\]'\Z"
    with pytest.raises(ValueError, match=sentence):
        draw(tmp_path / "w.png", [("", W)], name="w")
    assert snapshot(tmp_path) == {}


def test_a_failure_while_drawing_leaves_the_old_picture(tmp_path, figures, monkeypatch):
    from matplotlib.figure import Figure

    def fail(figure, file, **options):
        file.write(b"half")
        raise MemoryError

    path = tmp_path / "w.png"
    draw(path, [("", W)], name="w")
    before = snapshot(tmp_path)
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(MemoryError):
        draw(path, [("", W * 2)], name="w")
    assert snapshot(tmp_path) == before


def test_a_folder_that_is_not_there_is_refused(tmp_path, figures):
    with pytest.raises(CheckpointError, match=r"\Ashow: target must be writable, got .*none/w\.png \("):
        draw(tmp_path / "none" / "w.png", [("", W)], name="w")
    assert snapshot(tmp_path) == {}
