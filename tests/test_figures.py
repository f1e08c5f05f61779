"""Figures show what is computed: their cells, read back, give the results of convolutions, and files open."""

import doctest
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.animation import FFMpegWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

import loopconv
from loopconv import figures, geometry

RNG = np.random.default_rng(5)

# (input, kernel, settings) of convolutions of one channel; their transposes are drawn too.
SMALL = {
    "plain": ((4, 4), (3, 3), {}),
    "padded": ((3, 1), (3, 2), {"padding": (1, 2)}),
    "strided": ((5, 6), (3, 3), {"stride": (2, 3), "padding": 1}),
    "stride over kernel": ((7, 5), (2, 1), {"stride": (3, 2)}),
    "dilated": ((6, 5), (2, 3), {"dilation": (3, 2), "padding": (0, 1)}),
    "uneven pads": ((3, 2), (3, 3), {"padding": ((0, 2), (3, 1))}),
    "cropping pads": ((7, 6), (3, 3), {"padding": ((-1, -2), (-2, 1))}),
    "full": ((2, 1), (2, 3), {"padding": "full"}),
    "one pixel": ((1, 1), (1, 1), {}),
    "1d": ((9,), (3,), {"stride": 2, "padding": 1, "dilation": 2}),
    "1d same": ((7,), (4,), {"padding": "same", "stride": 3}),
}


def geometry_of(name):
    sizes, kernel, settings = SMALL[name]
    return geometry.conv((1, *sizes), (1, 1, *kernel), **settings)


class Drawn:
    """The cells of one axes: `cells` has (state, label) by (role, index); `rectangles` their patches."""

    def __init__(self, axes):
        self.cells, self.rectangles, self.frames = {}, {}, {}
        texts = [text for text in axes.texts if text.get_text()]
        for patch in axes.patches:
            if not isinstance(patch, Rectangle) or not patch.get_gid():
                continue
            _, role, *rest = patch.get_gid().split(".", 3)
            if rest == ["frame"]:
                self.frames[role] = patch.get_bbox().bounds
                continue
            index, state = ".".join(rest).rsplit(".", 1)
            x, y = patch.get_xy()
            inside = [
                t.get_text() for t in texts if x < t.get_position()[0] < x + 1 and y < t.get_position()[1] < y + 1
            ]
            self.cells[role, index] = state, inside[0] if inside else ""
            self.rectangles[role, index] = patch

    def of(self, role, *states):
        """{index as ints: label} of the cells of a board in one of these states; of all without any."""
        return {
            ints(index): label
            for (board, index), (state, label) in self.cells.items()
            if board == role and (not states or state in states)
        }


def ints(index):
    return tuple(map(int, index.split(",")))


def panels(figure):
    """Drawn boards, by the names of their axes."""
    return {axes.get_label(): Drawn(axes) for axes in figure.axes if axes.get_label() != "legend"}


def drawn(setting, step, op=None):
    (panel,) = panels(figures.arithmetic(setting, step, op=op)).values()
    return panel


SIGNS = str.maketrans({"\u00d7": "x", "\u2212": "-", "\u00b7": "*", "\u2192": "->", "\u03a3": "sum"})


def words(figure):
    """All texts of a figure, in ASCII."""
    return [text.get_text().strip().translate(SIGNS) for text in figure.findobj(Text) if text.get_text()]


def some(steps, most=2):
    """Some of the steps, where there are many: they do not depend on each other."""
    every = list(np.ndindex(*steps))
    return every if len(every) <= most else [every[n] for n in RNG.choice(len(every), most, replace=False)]


def flat(cell, rank):
    """An index on the board with the axes that the arrays have."""
    return cell[-rank:]


# ----------------------------------------------------------- the pictures compute the right numbers


@pytest.mark.parametrize("name", SMALL)
def test_convolution_read_from_its_pictures(name):
    g = geometry_of(name)
    x, w = RNG.standard_normal(g.x_shape), RNG.standard_normal(g.w_shape)
    settings = SMALL[name][2]
    expected = loopconv.conv(x, w, **settings)[0, 0]
    for step in some(g.output):
        panel, found = drawn(g, step), 0
        assert len(panel.of("input", "active", "missed")) == np.prod(g.kernel)
        for cell, label in panel.of("input", "active").items():
            found += x[(0, 0, *flat(cell, g.rank))] * w[(0, 0, *ints(label))]
        ((pixel, label),) = panel.of("output", "active").items()
        assert flat(pixel, g.rank) == step == ints(label)
        np.testing.assert_allclose(found, expected[step], rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", SMALL)
def test_scatter_read_from_its_pictures(name):
    g = geometry_of(name)
    y, w = RNG.standard_normal(g.y_shape), RNG.standard_normal(g.w_shape)
    result, reached = np.zeros(g.input), np.zeros(g.input, int)
    for step in np.ndindex(*g.output):
        panel = drawn(g, step, "conv_transpose")
        ((pixel, label),) = panel.of("input", "active").items()
        assert flat(pixel, g.rank) == step == ints(label)
        for cell, label in panel.of("output", "pixel").items():
            assert int(label) == reached[flat(cell, g.rank)] > 0
        for cell in panel.of("output", "empty"):
            assert reached[flat(cell, g.rank)] == 0
        for cell, label in panel.of("output", "active").items():
            result[flat(cell, g.rank)] += y[(0, 0, *step)] * w[(0, 0, *ints(label))]
            reached[flat(cell, g.rank)] += 1
        assert len(panel.of("output", "active", "missed")) == np.prod(g.kernel)
    settings = SMALL[name][2]
    expected = loopconv.conv_input_grad(y, w, g.x_shape, **settings)[0, 0]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", SMALL)
def test_gather_with_zeros_read_from_its_pictures(name):
    g = geometry_of(name)
    y, w = RNG.standard_normal(g.y_shape), RNG.standard_normal(g.w_shape)
    settings = SMALL[name][2]
    expected = loopconv.conv_input_grad(y, w, g.x_shape, **settings)[0, 0]
    for step in some(g.input):
        panel, found = drawn(g, step, "zero_inserted"), 0
        pixels = sorted(panel.of("input", "pixel", "active"))  # row by row, as y has them
        values = dict(zip([cell for cell in pixels if is_x(cell, g)], y.ravel()))
        assert len(values) == y.size
        for cell, label in panel.of("input", "active").items():
            found += values[cell] * w[(0, 0, *ints(label))]
        np.testing.assert_allclose(found, expected[step], rtol=0, atol=1e-13)


def is_x(cell, g):
    return all(index % stride == 0 for index, stride in zip(flat(cell, g.rank), g.stride))


def test_taps_of_the_gather_are_reversed():
    panel = drawn(figures.SETTINGS["no padding, transposed"], (1, 2), "zero_inserted")
    labels = panel.of("input", "active", "missed")
    assert [labels[cell] for cell in sorted(labels)] == ["2,2", "2,1", "2,0", "1,2", "1,1", "1,0", "0,2", "0,1", "0,0"]


# ----------------------------------------------------------------------------- cells and their places


@pytest.mark.parametrize("op", figures.OPS)
@pytest.mark.parametrize("name", ["strided", "uneven pads", "1d"])
def test_boards_are_grids_of_squares(name, op):
    figure = figures.arithmetic(geometry_of(name), 1, op=op)
    (panel,) = panels(figure).values()
    FigureCanvasAgg(figure).draw()
    corners = {}
    for (role, index), patch in panel.rectangles.items():
        box = patch.get_window_extent()
        assert box.width == pytest.approx(box.height)
        assert figure.bbox.x0 < box.x0 < box.x1 < figure.bbox.x1
        assert figure.bbox.y0 < box.y0 < box.y1 < figure.bbox.y1
        row, column = ints(index)
        corners.setdefault(role, set()).add((round(box.x0 - column * box.width, 3), round(box.y0 + row * box.width, 3)))
    assert all(len(found) == 1 for found in corners.values())  # an index says where its cell is
    (left, right) = [
        [p.get_window_extent() for (r, _), p in panel.rectangles.items() if r == role] for role in ("input", "output")
    ]
    beside = max(box.x1 for box in left) < min(box.x0 for box in right)
    above = min(box.y0 for box in left) > max(box.y1 for box in right)
    assert above if name == "1d" else beside


def test_number_of_cells():
    panel = drawn(geometry_of("strided"), 0)  # 5 x 6 pixels; windows reach from -1 to 5 and from -1 to 4
    assert len(panel.of("input")) == (5 + 2) * (6 + 1)
    assert len(panel.of("output")) == 3 * 2
    assert len(panel.of("input", "around", "missed")) == 7 * 7 - 30
    panel = drawn(geometry_of("cropping pads"), 0)  # axis 0 is cropped on both sides, axis 1 only at its begin
    assert min(panel.of("input")) == (0, 0)
    assert max(panel.of("input")) == (6, 6)


@pytest.mark.parametrize("op", figures.OPS)
@pytest.mark.parametrize("name", ["padded", "dilated", "1d"])
def test_frames_are_around_what_meets(name, op):
    panel = drawn(geometry_of(name), 0, op)
    for role in ("input", "output"):
        places = [panel.rectangles[key].get_xy() for key, (state, _) in panel.cells.items()
                  if key[0] == role and state in ("active", "missed")]  # fmt: skip
        (left, top), (right, bottom) = np.min(places, axis=0), np.max(places, axis=0) + 1
        np.testing.assert_allclose(panel.frames[role], (left, top, right - left, bottom - top))


def test_a_step_by_its_number_or_its_pixel():
    case = figures.SETTINGS["strided, padded"]
    for number, pixel in ((0, (0, 0)), (5, (1, 2)), (8, np.array([2, 2]))):
        assert drawn(case, number).cells == drawn(case, pixel).cells
    assert drawn(geometry_of("1d"), 3).cells == drawn(geometry_of("1d"), [3]).cells


def test_all_steps():
    case = figures.SETTINGS["strided, padded"]
    found = panels(figures.arithmetic(case))
    assert list(found) == [f"step{number}" for number in range(9)]
    for number in (0, 4, 8):
        panel, large = found[f"step{number}"], drawn(case, number)
        assert {key: state for key, (state, _) in panel.cells.items()} == {
            key: state for key, (state, _) in large.cells.items()
        }


def test_swatches_have_no_labels_where_cells_have_none():
    for sizes, labelled in (((5, 5), True), ((12, 12), False)):
        figure = figures.arithmetic(geometry.conv((1, *sizes), (1, 1, 3, 3)))
        (legend,) = (axes for axes in figure.axes if axes.get_label() == "legend")
        assert any(label for panel in panels(figure).values() for _, label in panel.cells.values()) == labelled
        assert ("r,s" in [text.get_text() for text in legend.texts]) == labelled
        assert ("pixel under the tap r,s" if labelled else "pixel under a tap") in words(figure)


def test_some_of_many_steps():
    figure = figures.arithmetic(geometry.conv((1, 8, 9), (1, 1, 2, 2)))
    names = list(panels(figure))
    assert len(names) == 16
    assert (names[0], names[-1]) == ("step0", "step55")
    assert any(text.endswith("16 of 56 steps") for text in words(figure))
    assert {f"y[{p},{q}]" for p in (0, 2, 4, 6) for q in (0, 2, 5, 7)} <= set(words(figure))
    assert len(panels(figures.arithmetic(geometry.conv((1, 60), (1, 1, 2))))) == 16


# ------------------------------------------------------------------------------------ known settings

# As Dumoulin and Visin print them: input, kernel, stride, padding, dilation, output.
GUIDE = {
    "no padding": (4, 3, 1, 0, 1, 2),
    "arbitrary padding": (5, 4, 1, 2, 1, 6),
    "half padding": (5, 3, 1, 1, 1, 5),
    "full padding": (5, 3, 1, 2, 1, 7),
    "strided": (5, 3, 2, 0, 1, 2),
    "strided, padded": (5, 3, 2, 1, 1, 3),
    "strided, padded, odd": (6, 3, 2, 1, 1, 3),
    "dilated": (7, 3, 1, 0, 2, 3),
}


def test_the_settings_of_the_guide():
    assert len(figures.SETTINGS) == 2 * len(GUIDE)
    for name, (i, k, s, p, d, o) in GUIDE.items():
        for case in (figures.SETTINGS[name], figures.SETTINGS[f"{name}, transposed"]):
            g = case.geometry
            assert (g.input, g.kernel, g.stride, g.pad, g.dilation, g.output) == tuple(
                (n, n) for n in (i, k, s, p, d, o)
            )
        assert figures.SETTINGS[name].op == "conv"
        assert case.op == "conv_transpose"


@pytest.mark.parametrize("op", figures.OPS)
def test_the_set_shows_all_of_them(op):
    figure = figures.arithmetic_set(op)
    found = panels(figure)
    assert [name.replace("-", " ") for name in found] == [name.replace(",", "") for name in GUIDE]
    for panel, (i, k, _, _, _, o) in zip(found.values(), GUIDE.values()):
        pixels = {role: len(panel.of(role)) - len(panel.of(role, "around")) for role in ("input", "output")}
        missed = len(panel.of("input", "missed")) + len(panel.of("output", "missed"))
        assert sum(pixels.values()) - missed == i * i + o * o
        assert len(panel.of("output" if op == "conv_transpose" else "input", "active", "missed")) == k * k
    assert set(GUIDE) <= set(words(figure))


# --------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("settings", "op", "text"),
    [
        ({}, "conv", "input 5 x 5, kernel 3 x 3 -> output 3 x 3"),
        ({"stride": 2, "padding": 1}, "conv", "input 5 x 5, kernel 3 x 3, stride 2, padding 1 -> output 3 x 3"),
        ({"stride": (1, 2), "dilation": (2, 1)}, "conv",
         "input 5 x 5, kernel 3 x 3, stride 1 x 2, dilation 2 x 1 -> output 1 x 2"),
        ({"padding": ((0, 1), (2, 0))}, "conv",
         "input 5 x 5, kernel 3 x 3, padding 0 x 2 before and 1 x 0 after -> output 4 x 5"),
        ({"padding": -1}, "conv", "input 5 x 5, kernel 3 x 3, padding -1 -> output 1 x 1"),
        ({"stride": 2, "padding": 1, "output_padding": (1, 0)}, "conv_transpose",
         "input 5 x 5, kernel 3 x 3, stride 2, padding 1, output_padding 1 x 0 -> output 10 x 9"),
    ],
)  # fmt: skip
def test_the_setting_in_words(settings, op, text):
    build = {"conv": geometry.conv, "conv_transpose": geometry.conv_transpose}[op]
    assert text in words(figures.arithmetic(build((1, 5, 5), (1, 1, 3, 3), **settings), 0, op=op))


@pytest.mark.parametrize(
    ("name", "step", "op", "text"),
    [
        ("strided", (1, 0), "conv", "y[1, 0]  =  sum w[r, s] * x[2*1 + r - 1, 3*0 + s - 1]   over all r, s"),
        ("strided", (1, 0), "conv_transpose", "y[2*1 + r - 1, 3*0 + s - 1]  +=  w[r, s] * x[1, 0]   for all r, s"),
        ("strided", (1, 0), "zero_inserted", "y[1, 0]  =  sum w[r, s] * z[1 + 1 - r, 0 + 1 - s]   over all r, s"),
        ("plain", (1, 0), "zero_inserted", "y[1, 0]  =  sum w[r, s] * x[1 - r, 0 - s]   over all r, s"),
        ("1d", 2, "conv", "y[2]  =  sum w[r] * x[2*2 + 2*r - 1]   over all r"),
        ("cropping pads", (0, 0), "conv", "y[0, 0]  =  sum w[r, s] * x[0 + r + 1, 0 + s + 2]   over all r, s"),
    ],
)
def test_the_formula_of_a_step(name, step, op, text):
    assert text in words(figures.arithmetic(geometry_of(name), step, op=op))


WIDE = geometry.conv_transpose(
    (1, 3, 2), (1, 1, 3, 4), stride=(2, 3), dilation=(1, 2), padding=((0, 3), (4, 1)), output_padding=(1, 2)
)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.arithmetic(WIDE, op="conv_transpose"),
        lambda: figures.arithmetic(WIDE, 7, op="zero_inserted"),
        lambda: figures.arithmetic(geometry_of("1d"), 1),
        lambda: figures.arithmetic_set("zero_inserted"),
        lambda: figures.contribution_map(WIDE),
        lambda: figures.matrix(geometry.conv((4, 4, 4), (4, 2, 3, 3), groups=2)),
        lambda: figures.matrix(geometry_of("strided")),
        lambda: figures.shifted_kernels(-1e5 * np.ones((2, 2, 3)), np.ones((2, 1, 2, 2)), stride=2, padding=1),
    ],
)
def test_texts_can_be_read(draw):
    """Within the slide, not tiny, and dark on light or light on dark enough for WCAG AA."""
    figure = draw()
    FigureCanvasAgg(figure).draw()
    filled = [patch for patch in figure.findobj(Rectangle) if patch.get_gid() and patch.get_fill()]
    boxes = np.array([patch.get_window_extent().extents for patch in filled])
    for text in figure.findobj(Text):
        if not text.get_text():
            continue
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
        assert text.get_fontsize() >= 7
        middle = (np.array(box.min) + box.max) / 2
        behind = np.flatnonzero((boxes[:, :2] < middle).all(axis=1) & (middle < boxes[:, 2:]).all(axis=1))
        color = filled[behind[-1]].get_facecolor() if behind.size else "white"
        assert contrast(text.get_color(), color) >= 4.5, text


def contrast(a, b):
    """Of WCAG 2."""
    lights = []
    for color in (a, b):
        channels = np.array(to_rgb(color))
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        lights.append(linear @ (0.2126, 0.7152, 0.0722) + 0.05)
    return max(lights) / min(lights)


@pytest.mark.parametrize("op", figures.OPS)
def test_states_differ_without_colour(op):
    panel = drawn(geometry_of("strided"), 3, op)
    looks = {}
    for key, (state, _) in panel.cells.items():
        patch = panel.rectangles[key]
        look = (patch.get_linewidth(), patch.get_linestyle(), patch.get_hatch())
        looks.setdefault(state, set()).add(look)
    looks.pop("empty", None)  # is a pixel that got nothing yet, and has no number
    assert all(len(look) == 1 for look in looks.values())
    assert len(set.union(*looks.values())) == len(looks)


# ------------------------------------------------------------------------------------- contributions


@pytest.mark.parametrize("name", SMALL)
def test_contributions(name):
    op = "conv" if name in ("full", "1d") else "conv_transpose"
    g = geometry_of(name)
    counts = Counter()
    for p in np.ndindex(*g.output):
        for r in np.ndindex(*g.kernel):
            counts[tuple(a * s + b * d - lo for a, s, b, d, lo in zip(p, g.stride, r, g.dilation, g.pad))] += 1
    figure = figures.contribution_map(g, op=op)
    found = panels(figure)["counts"].of("output" if op == "conv_transpose" else "input")
    assert {flat(cell, g.rank): int(label) for cell, label in found.items()} == {
        pixel: counts[pixel] for pixel in np.ndindex(*g.input)
    }
    key = panels(figure)["key"].cells
    assert {int(label) for _, label in key.values()} == {counts[pixel] for pixel in np.ndindex(*g.input)}
    totals = [int(text.split()[0]) for text in words(figure) if re.fullmatch(r"\d+ pixels?", text)]
    assert sum(totals) == np.prod(g.input)


def test_a_checkerboard():
    g = geometry.conv_transpose((1, 4, 4), (1, 1, 3, 3), stride=2)
    figure = figures.contribution_map(g)
    counts = panels(figure)["counts"].of("output")
    assert [counts[4, column] for column in range(9)] == ["2", "2", "4", "2", "4", "2", "4", "2", "2"]
    assert "How many products reach each output pixel: 1 to 4" in words(figure)
    even = figures.contribution_map(geometry.conv_transpose((1, 4), (1, 1, 2), stride=2))
    assert "How many products reach each output pixel: 1" in words(even)


def test_pixels_that_nothing_reaches_are_hatched():
    panel = panels(figures.contribution_map(geometry_of("stride over kernel")))["counts"]
    for (role, index), (_, label) in panel.cells.items():
        assert (panel.rectangles[role, index].get_hatch() is not None) == (label == "0")


# ---------------------------------------------------------------------------------------- the matrix


def entries(figure):
    """{(row, column): index of the weight} and {(row, column): patch} of a drawn matrix."""
    panel = panels(figure)["matrix"]
    split = {index: index.split(".w") for _, index in panel.cells}
    found = {ints(place): ints(weight) for place, weight in split.values()}
    for (_, index), (_, label) in panel.cells.items():
        weight = ints(split[index][1])
        assert label in ("", ",".join(map(str, weight[2:])))
    return found, {ints(split[index][0]): patch for (_, index), patch in panel.rectangles.items()}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "settings"),
    [
        ((1, *sizes), (1, 1, *kernel), settings) for sizes, kernel, settings in SMALL.values()
    ] + [
        ((2, 5), (3, 2, 3), {"padding": 1}),
        ((4, 3, 3), (4, 2, 2, 2), {"groups": 2}),
        ((3, 4, 2), (3, 1, 2, 2), {"groups": 3, "stride": 2}),
    ],
)  # fmt: skip
def test_entries_of_the_matrix(x_shape, w_shape, settings, transposed):
    w = RNG.permutation(np.arange(1.0, np.prod(w_shape) + 1)).reshape(w_shape)
    expected = loopconv.conv_matrix(w, x_shape, **settings)
    expected = expected.T if transposed else expected
    g = geometry.conv(x_shape, w_shape, **settings)
    found, patches = entries(figures.matrix(g, op="conv_transpose" if transposed else "conv"))
    result = np.zeros_like(expected)
    for place, weight in found.items():
        result[place] = w[weight]
    np.testing.assert_array_equal(result, expected)
    places = np.array(list(patches))
    corners = np.array([patches[tuple(place)].get_xy() for place in places])
    np.testing.assert_allclose(
        corners - places[:, ::-1], np.broadcast_to((corners - places[:, ::-1])[0], corners.shape)
    )


def test_taps_of_the_matrix_look_different():
    figure = figures.matrix(figures.SETTINGS["no padding"])
    found, patches = entries(figure)
    looks = {}
    for place, weight in found.items():
        looks.setdefault(weight, set()).add((patches[place].get_facecolor(), patches[place].get_hatch()))
    assert len(looks) == len(set.union(*looks.values())) == 9
    key = panels(figure)["key"]
    for (_, tap), patch in key.rectangles.items():
        assert looks[(0, 0, *ints(tap))] == {(patch.get_facecolor(), patch.get_hatch())}


def test_names_and_blocks_of_the_matrix():
    figure = figures.matrix(geometry.conv((2, 4), (3, 2, 3)))
    texts = words(figure)
    assert {f"y[{k},{p}]" for k in range(3) for p in range(2)} <= set(texts)
    assert {f"x[{c},{i}]" for c in range(2) for i in range(4)} <= set(texts)
    assert "C, the matrix of the convolution: 6 x 8" in texts
    (axes,) = (axes for axes in figure.axes if axes.get_label() == "matrix")
    thick = max(line.get_linewidth() for line in axes.lines)
    frames = [line for line in axes.lines if line.get_linewidth() == thick]
    assert len(frames) == (3 + 1) + (2 + 1)
    small = words(figures.matrix(geometry.conv((2, 6, 6), (1, 2, 3, 3))))
    assert {"x[0]", "x[1]", "y"} <= set(small)
    texts = words(figures.matrix(figures.SETTINGS["no padding, transposed"]))
    assert {"C.T, the matrix of the transposed convolution: 16 x 4", "y[3,3]", "x[1,1]"} <= set(texts)


# ---------------------------------------------------------------------------------- shifted kernels

X, W = np.array([[[0, 1], [2, 3]]]), np.array([[[[0, 1], [2, 3]]]])


def tiles(figure):
    """[line, tile] -> {place: (state, text)}, patches by the same."""
    (axes,) = (axes for axes in figure.axes if axes.get_label() == "sum")
    cells, patches = {}, {}
    for (_, name), patch in Drawn(axes).rectangles.items():
        tile, place = name.split(".")
        at = ints(tile.removeprefix("tile").replace("-", ","))
        x, y = patch.get_xy()
        inside = sorted((text.get_position()[1], text.get_text()) for text in axes.texts
                        if x < text.get_position()[0] < x + 1 and y < text.get_position()[1] < y + 1)  # fmt: skip
        state = patch.get_gid().rsplit(".", 1)[1]
        cells.setdefault(at, {})[ints(place)] = state, *(text.translate(SIGNS) for _, text in inside)
        patches.setdefault(at, {})[ints(place)] = patch
    return cells, patches


def numbers(tile):
    """The array that a tile shows, zero where it shows nothing."""
    shape = np.max(list(tile), axis=0) + 1
    return np.array([float(tile[at][1]) if len(tile[at]) > 1 else 0 for at in np.ndindex(*shape)]).reshape(shape)


@pytest.mark.parametrize(
    ("stride", "expected"),
    [
        (1, [[0, 0, 1], [0, 4, 6], [4, 12, 9]]),
        (2, [[0, 0, 0, 1], [0, 0, 2, 3], [0, 2, 0, 3], [4, 6, 6, 9]]),
    ],
)
def test_shifted_kernels_of_document_003(stride, expected):
    cells, _ = tiles(figures.shifted_kernels(X, W, stride=stride))
    np.testing.assert_array_equal(numbers(cells[0, 0]), X[0])
    np.testing.assert_array_equal(numbers(cells[0, 1]), W[0, 0])
    *terms, total = [tile for place, tile in cells.items() if place[0] > 0]
    assert len(terms) == 4
    for (i, j), term in zip(np.ndindex(2, 2), terms):
        shifted = np.zeros_like(expected)
        shifted[i * stride : i * stride + 2, j * stride : j * stride + 2] = X[0, i, j] * W[0, 0]
        np.testing.assert_array_equal(numbers(term), shifted)
        window = {at for at, (state, *_) in term.items() if state == "active"}
        assert window == {(i * stride + r, j * stride + s) for r, s in np.ndindex(2, 2)}
    np.testing.assert_array_equal(numbers(total), expected)
    assert total[1, 1] == (("overlap", "4", "0+2+2+0") if stride == 1 else ("pixel", "0"))
    assert [state for state, *_ in total.values()].count("overlap") == (5 if stride == 1 else 0)


def test_a_pixel_and_its_kernel_have_one_colour():
    _, patches = tiles(figures.shifted_kernels(X, W))
    colours = [patch.get_facecolor() for patch in patches[0, 0].values()]
    assert len(set(colours)) == 4
    terms = [tile for place, tile in patches.items() if place[0] > 0][:4]
    for colour, term in zip(colours, terms):
        active = {patch.get_facecolor() for patch in term.values() if patch.get_gid().endswith("active")}
        assert active == {colour}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-3, "-3"), (12345, "12345"), (True, "1"), (0.5, "0.5"), (-0.0, "0"), (1.256, "1.26"), (-12.34, "-12.3"),
        (123.4, "123"), (9.999, "10"), (0.0052, "0.005"), (-1.2e5, "-1.2e+05"), (np.nan, "nan"), (-np.inf, "-inf"),
        (1 - 2j, "1-2j"),
    ],
)  # fmt: skip
def test_numbers_as_they_are_written(value, text):
    cells, _ = tiles(figures.shifted_kernels([[value]], [[[1]]]))
    assert cells[0, 0][0, 0] == ("pixel", text)
    assert cells[1, 1][0, 0] == ("pixel", text)


def test_small_integers_do_not_overflow():
    cells, _ = tiles(figures.shifted_kernels(np.array([[100]], np.int8), np.array([[[100]]], np.int8)))
    assert cells[1, 0][0, 0] == ("active", "10000")


def test_shifted_kernels_of_two_channels():
    x = np.stack([X[0], 2 * X[0]])
    w = np.stack([np.ones((1, 2, 2)), np.full((1, 2, 2), 0.5)])
    figure = figures.shifted_kernels(x, w, stride=2)
    cells, _ = tiles(figure)
    *terms, total = [tile for place, tile in cells.items() if place[0] > 0]
    assert len(terms) == 8
    expected = [[0, 0, 2, 2], [0, 0, 2, 2], [4, 4, 6, 6], [4, 4, 6, 6]]
    np.testing.assert_array_equal(numbers(total), expected)
    np.testing.assert_array_equal(sum(map(numbers, terms)), expected)
    assert {"x[0]", "x[1]", "w[0,0]", "w[1,0]", "y[0]", "x[1,1,0] * w[1,0]"} <= set(words(figure))


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "settings"),
    [
        ((1, 3), (1, 1, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
        ((1, 2, 2), (1, 1, 1, 2), {"stride": 3, "output_padding": 2}),
        ((1, 2, 3), (1, 1, 3, 2), {"padding": ((1, 0), (0, 2)), "dilation": (1, 2)}),
        ((2, 2), (2, 2, 2), {}),
        ((4, 2), (4, 1, 3), {"groups": 2, "stride": 2}),
        ((1, 1, 2), (1, 1, 2), {"padding": -1}),
    ],
)
def test_shifted_kernels_add_up(x_shape, w_shape, settings):
    x, w = RNG.integers(1, 9, x_shape), RNG.integers(-4, 9, w_shape)
    cells, _ = tiles(figures.shifted_kernels(x, w, **settings))
    y = loopconv.conv_transpose(x, w, **settings).reshape(
        -1, *loopconv.conv_transpose(x, w, **settings).shape[-len(w_shape) + 2 :]
    )
    found, terms = [], 0
    total = np.zeros(1)
    for place, tile in cells.items():
        if place[0] == 0:
            continue
        states = {state for state, *_ in tile.values()}
        pixels = [at for at, (state, *_) in tile.items() if state not in ("around", "missed")]
        (top, left), (bottom, right) = np.min(pixels, axis=0), np.max(pixels, axis=0) + 1
        values = numbers(tile)[top:bottom, left:right]
        if states <= {"active", "missed", "around", "empty"}:
            total, terms = total + values, terms + 1
        else:
            np.testing.assert_array_equal(values, total)
            found.append(values)
            total = np.zeros(1)
    np.testing.assert_array_equal(
        np.reshape(found, y.shape[-len(w_shape) + 1 :]), y.reshape(y.shape[-len(w_shape) + 1 :])
    )
    assert terms == x.size * w_shape[1]


# --------------------------------------------------------------------------------------------- files

SHORT = geometry.conv((1, 4), (1, 1, 2))  # three steps


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".PNG"])
def test_pictures(suffix, tmp_path):
    path = tmp_path / f"figure{suffix}"
    assert figures.save(figures.arithmetic(SHORT), str(path)) == [path]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with Image.open(path) as image:
        assert image.size == (1920, 1080)
        assert image.convert("L").getextrema() <= (60, 255)
        assert image.convert("RGB").getpixel((3, 3)) == (255, 255, 255)


def test_vector_graphics(tmp_path):
    (path,) = figures.save(figures.arithmetic(SHORT, 1), tmp_path / "figure.svg")
    ids = [element.get("id", "") for element in ElementTree.parse(path).iter()]
    assert {"step1.input.0,1.active", "step1.input.0,2.active", "step1.output.0,1.active"} <= set(ids)
    assert max(Counter(filter(None, ids)).values()) == 1
    (path,) = figures.save(figures.arithmetic(SHORT), tmp_path / "figure.pdf")
    assert path.read_bytes().startswith(b"%PDF")


def test_gif(tmp_path):
    (path,) = figures.save(figures.animate(SHORT, fps=4), tmp_path / "steps.gif")
    with Image.open(path) as image:
        assert image.n_frames == 3
        assert image.size == (1280, 720)
        assert image.info["loop"] == 0
        frames, durations = [], []
        for number in range(3):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
    assert durations == [250, 250, 1750]
    still = figures.arithmetic(SHORT, 2)
    canvas = FigureCanvasAgg(still)
    canvas.draw()
    difference = np.abs(frames[2].astype(int) - np.asarray(canvas.buffer_rgba())[..., :3])
    assert difference.mean() < 0.1  # levels of 255: only what the palette rounds
    assert frames[0][3, 3].tolist() == [255, 255, 255]
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_file_for_every_frame(suffix, tmp_path):
    paths = figures.save(figures.animate(SHORT, op="conv_transpose"), tmp_path / f"steps{suffix}")
    assert [path.name for path in paths] == [f"steps-00{number}{suffix}" for number in (1, 2, 3)]
    assert sorted(tmp_path.iterdir()) == paths
    contents = {path.read_bytes() for path in paths}
    assert len(contents) == 3
    if suffix == ".png":
        for path in paths:
            with Image.open(path) as image:
                assert image.size == (1280, 720)


def test_mp4(tmp_path):
    if not FFMpegWriter.isAvailable():
        pytest.skip("there is no program ffmpeg on the PATH")
    (path,) = figures.save(figures.animate(SHORT), tmp_path / "steps.mp4")
    assert path.read_bytes()[4:8] == b"ftyp"
    probe = subprocess.run([FFMpegWriter.bin_path(), "-i", path, "-f", "null", "-"], capture_output=True, text=True)
    assert "1280x720" in probe.stderr
    assert re.findall(r"frame=\s*(\d+)", probe.stderr)[-1] == "3"


def test_mp4_without_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"^path must not end in \.mp4 where there is no program ffmpeg on the PATH"):
        figures.save(figures.animate(SHORT), tmp_path / "steps.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_nothing_half_written(suffix, tmp_path, monkeypatch):
    (tmp_path / f"old{suffix}").write_text("old")
    animation = figures.animate(SHORT)
    calls = []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("no space left")
        return save(*args, **kwargs)

    save = type(animation._fig).savefig
    monkeypatch.setattr(type(animation._fig), "savefig", fail)
    with pytest.raises(OSError, match="no space left"):
        figures.save(animation, tmp_path / f"old{suffix}")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(f"old{suffix}", "old")]


def test_files_are_replaced(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("old")
    figures.save(figures.arithmetic(SHORT, 0), path)
    with Image.open(path) as image:
        image.verify()


# ------------------------------------------------------------------------------------------ refusals

THREE = geometry.conv((1, 3, 3, 3), (1, 1, 2, 2, 2))
HUGE = geometry.conv((1, 10**6, 10**6), (1, 1, 3, 3))
EMPTY = geometry.conv_transpose((1, 0, 3), (1, 1, 2, 2), stride=2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: figures.arithmetic("5x5"), TypeError, "setting must be a Geometry or one of SETTINGS, got '5x5'"),
        (lambda: figures.arithmetic(THREE), ValueError, "setting must have 1 or 2 spatial axes to be drawn, got 3"),
        (lambda: figures.matrix(THREE), ValueError, "setting must have 1 or 2 spatial axes to be drawn, got 3"),
        (lambda: figures.arithmetic(HUGE), ValueError,
         "setting must have at most 64 cells on an axis to be drawn, padding included, got 1000000"),
        (lambda: figures.arithmetic(geometry.conv((1, 9), (1, 1, 3), padding=(((10**9, -(10**9)),)))), ValueError,
         "setting must have at most 64 cells on an axis to be drawn, padding included, got 1000000009"),
        (lambda: figures.arithmetic(geometry.conv((1, 40), (1, 1, 30)), op="zero_inserted"), ValueError,
         "setting must have at most 64 cells on an axis to be drawn, padding included, got 69"),
        (lambda: figures.arithmetic(EMPTY, op="conv_transpose"), ValueError,
         "setting must have pixels to be drawn, got input (0, 3), output (0, 6)"),
        (lambda: figures.arithmetic(SHORT, op="deconv"), ValueError,
         "op must be one of conv, conv_transpose, zero_inserted, got 'deconv'"),
        (lambda: figures.arithmetic(SHORT, op=["conv"]), ValueError,
         "op must be one of conv, conv_transpose, zero_inserted, got ['conv']"),
        (lambda: figures.arithmetic_set("all"), ValueError,
         "op must be one of conv, conv_transpose, zero_inserted, got 'all'"),
        (lambda: figures.matrix(SHORT, op="zero_inserted"), ValueError,
         "op must be one of conv, conv_transpose, got 'zero_inserted'"),
        (lambda: figures.contribution_map(SHORT, op=3), ValueError, "op must be one of conv_transpose, conv, got 3"),
        (lambda: figures.arithmetic(SHORT, 3), ValueError, "step must be from 0 to 2, or the index of a pixel, got 3"),
        (lambda: figures.arithmetic(SHORT, -1), ValueError,
         "step must be from 0 to 2, or the index of a pixel, got -1"),
        (lambda: figures.arithmetic(SHORT, (3,)), ValueError,
         "step must be an index into pixels of shape (3,), got (3,)"),
        (lambda: figures.arithmetic(SHORT, (0, 0)), ValueError,
         "step must be an index into pixels of shape (3,), got (0, 0)"),
        (lambda: figures.arithmetic(SHORT, 1.5), TypeError, "step must be an integer, got 1.5"),
        (lambda: figures.arithmetic(SHORT, "1"), TypeError, "step must be an integer, got '1'"),
        (lambda: figures.animate(SHORT, fps=0), ValueError, "fps must be a number above 0 and up to 50, got 0"),
        (lambda: figures.animate(SHORT, fps=float("nan")), ValueError,
         "fps must be a number above 0 and up to 50, got nan"),
        (lambda: figures.animate(SHORT, fps="fast"), ValueError,
         "fps must be a number above 0 and up to 50, got 'fast'"),
        (lambda: figures.animate(geometry.conv((1, 30, 30), (1, 1, 2, 2))), ValueError,
         "setting must have at most 400 steps to be animated, got 841"),
        (lambda: figures.matrix(geometry.conv((3, 7, 7), (1, 3, 3, 3))), ValueError,
         "setting must have a matrix of 1 to 128 rows and columns to be drawn, got 25 x 147"),
        (lambda: figures.matrix(geometry.conv((0, 7), (1, 0, 3))), ValueError,
         "setting must have a matrix of 1 to 128 rows and columns to be drawn, got 5 x 0"),
        (lambda: figures.shifted_kernels(np.ones((2, 1, 3)), np.ones((1, 1, 3))), ValueError,
         "x must be one image, got 2 in shape (2, 1, 3)"),
        (lambda: figures.shifted_kernels(np.ones((1, 9, 9)), np.ones((1, 1, 2, 2))), ValueError,
         "x must make 1 to 64 terms with w (pixels, for pairs of channels), got 81"),
        (lambda: figures.shifted_kernels(np.ones((1, 4)), np.ones((2, 1, 3))), ValueError,
         "x must have 2 channels (axis 0 of w (2, 1, 3)), got 1 in shape (1, 4)"),
        (lambda: figures.shifted_kernels("x", np.ones((2, 1, 3))), TypeError,
         "x must be of an integer dtype, float16/32/64, complex64/128 or bool, got dtype <U1 in shape ()"),
        (lambda: figures.save("picture", "a.png"), TypeError,
         "picture must be a figure or an animation, got 'picture'"),
        (lambda: figures.save(figures.arithmetic(SHORT, 0), None), TypeError, "path must be a path, got None"),
        (lambda: figures.save(figures.arithmetic(SHORT, 0), "a.gif"), ValueError,
         "path must end in one of .png .svg .pdf .jpg .webp for a figure, got 'a.gif'"),
        (lambda: figures.save(figures.animate(SHORT), "a.pdf"), ValueError,
         "path must end in one of .gif .mp4 .png .svg for an animation, got 'a.pdf'"),
        (lambda: figures.save(figures.animate(SHORT), "noending"), ValueError,
         "path must end in one of .png .svg .pdf .jpg .webp for a figure, or of .gif .mp4 .png .svg for an animation, "
         "got 'noending'"),
        (lambda: figures.save(figures.arithmetic(SHORT, 0), Path("nowhere") / "a.png"), ValueError,
         f"path must be a file in a directory that exists and is writable, got '{Path('nowhere') / 'a.png'}'"),
    ],
)  # fmt: skip
def test_refusals(call, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- manners


def test_nothing_global_changes(tmp_path):
    code = """
import sys, loopconv
assert "matplotlib" not in sys.modules
import matplotlib
def settings():  # to ask for the backend would choose one
    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}
before = settings()
from loopconv import figures
for case in (figures.SETTINGS["strided"], figures.SETTINGS["strided, transposed"]):
    figures.save(figures.arithmetic(case, 1), sys.argv[1] + "/a.png")
    figures.matrix(case), figures.contribution_map(case)
figures.save(figures.animate(case), sys.argv[1] + "/a.gif")
assert settings() == before
print([name for name in ("matplotlib.pyplot", "numba", "scipy", "tkinter") if name in sys.modules])
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_the_users_settings_do_not_matter(tmp_path):
    ours = figures.save(figures.matrix(SHORT), tmp_path / "ours.png")
    settings = {
        "savefig.bbox": "tight", "savefig.facecolor": "black", "figure.facecolor": "black", "figure.autolayout": True,
        "text.color": "white", "axes.facecolor": "black", "lines.linestyle": "--", "lines.marker": "o",
        "patch.edgecolor": "red", "axes.grid": True, "figure.dpi": 300, "savefig.dpi": 30, "image.cmap": "jet",
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        theirs = figures.save(figures.matrix(SHORT), tmp_path / "theirs.png")
        frames = figures.save(figures.animate(SHORT), tmp_path / "frame.png")
    expected = figures.save(figures.animate(SHORT), tmp_path / "ours.png")
    assert [path.read_bytes() for path in frames] == [path.read_bytes() for path in expected]
    with Image.open(ours[0]) as one, Image.open(theirs[0]) as other:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_without_matplotlib():
    code = "import sys; sys.modules['matplotlib'] = None\nimport loopconv\nfrom loopconv import figures"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: loopconv.figures needs matplotlib")
    assert done.stderr.splitlines()[-1].endswith("pip install 'loopconv[figures]'")


def test_all_that_is_public_is_documented():
    for name in figures.__all__:
        value = getattr(figures, name)
        if callable(value):
            assert "Returns" in value.__doc__
            assert "Raises" in value.__doc__


def test_examples():
    result = doctest.testmod(sys.modules["loopconv.figures.files"])
    assert result.attempted > 0
    assert result.failed == 0


def test_the_examples_of_the_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = re.search(r"\n\n((?:    .*\n|\n)+)", figures.__doc__)[1]
    exec("\n".join(line[4:] for line in example.splitlines()), {})
    assert {path.name for path in tmp_path.iterdir()} == {"steps.png", "steps.gif", "known.gif"}
