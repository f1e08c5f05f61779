"""The matrix C, entry by entry."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from loopconv.figures import words
from loopconv.figures.canvas import CYCLE, INK, MARGIN, QUIET, SMALLEST, Canvas, head, slide
from loopconv.figures.view import OPS, view_of
from loopconv.matrix import conv_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from loopconv.cases import Case
    from loopconv.geometry import Geometry

MOST_ENTRIES = 128  # rows or columns
EDGE = 2.4  # cells for names above and on the left

# A tap's row has the hatch, its column the colour.
HATCHES = (None, "////", "....", "\\\\\\\\", "xxxx", "----", "++++")


class Side(NamedTuple):
    """The rows or the columns: what array they are, its channels, its pixels on both axes."""

    name: str
    channels: int
    pixels: tuple[int, int]

    @property
    def length(self) -> int:
        return self.channels * self.block

    @property
    def block(self) -> int:
        """Of one channel."""
        return prod(self.pixels)


def matrix(setting: Geometry | Case, *, op: str | None = None) -> Figure:
    """Draw the matrix C of a convolution, or C.T, every entry as the tap that it is.

    Parameters
    ----------
    setting : Geometry or Case
        As for `arithmetic`. Pairs of channels are drawn as blocks; of a batch, one image.
    op : {'conv', 'conv_transpose'}, optional
        C, or C.T. By default that of the Case, or 'conv'.

    Returns
    -------
    matplotlib.figure.Figure
        In an SVG, an entry has an id such as ``matrix.entry.2,7.w0,0,1,1.pixel``: row, column, and index of its
        weight.

    Raises
    ------
    TypeError, ValueError
        As `arithmetic`; also for more than 128 rows or columns.
    """
    view = view_of(setting, op, OPS[:2])
    g = view.g
    down, along = Side("y", g.k, g.output), Side("x", g.c, g.input)  # type: ignore[arg-type]
    if view.scatters:
        down, along = along._replace(name="y"), down._replace(name="x")
    if not 0 < down.length <= MOST_ENTRIES or not 0 < along.length <= MOST_ENTRIES:
        raise ValueError(
            f"setting must have a matrix of 1 to {MOST_ENTRIES} rows and columns to be drawn, "
            f"got {down.length} x {along.length}"
        )
    figure = slide()
    title = "C.T, the matrix of the transposed convolution" if view.scatters else "C, the matrix of the convolution"
    note = ", ".join([words.described(view), *words.channels(view)])
    head(figure, f"{title}: {words.by((down.length, along.length))}", note)
    weights = _weights(g)
    _draw_matrix(figure, view, weights.T if view.scatters else weights, down, along)
    _draw_key(figure, view)
    return figure


def _weights(g) -> np.ndarray:
    """The matrix C with the number of its weight, from 1, in place of each, and 0 where there is none."""
    numbers = np.arange(1, prod(g.w_shape) + 1).reshape(g.w_shape)
    padding = tuple(zip(g.pad, words.after_pad(g)))
    return conv_matrix(numbers, g.x_shape[1:], stride=g.stride, padding=padding, dilation=g.dilation, groups=g.groups)


def _look(view, tap) -> dict[str, Any]:
    """Colour and hatch of a tap; with one axis, its index has both."""
    row, column = tap if view.given.rank == 2 else (tap[1], tap[1])
    return {
        "facecolor": CYCLE[column % len(CYCLE)], "hatch": HATCHES[row % len(HATCHES)], "edgecolor": QUIET
    }  # fmt: skip


def _draw_matrix(figure, view, weights, down, along) -> None:
    """Entries, names and rulings."""
    canvas = Canvas(figure, (MARGIN, 1.2, 10.2, 5.7), along.length + EDGE, down.length + EDGE, "matrix")
    for row, column in zip(*weights.nonzero()):
        weight = [int(i) for i in np.unravel_index(weights[row, column] - 1, view.g.w_shape)]
        tap = weight[2:]
        name = f"{row},{column}.w{words.index([*weight[:2], *view.own(tap)])}"
        label = words.index(view.own(tap))
        canvas.cell((EDGE + column, EDGE + row), "pixel", "entry", name, label, **_look(view, tap))
    _rule(canvas, down, along.length, upright=False)
    _rule(canvas, along, down.length, upright=True)
    for upright, side in enumerate((down, along)):
        if canvas.points * 0.42 < SMALLEST:
            _name_channels(canvas, side, upright)
        else:
            _name_pixels(canvas, view, side, upright)


def _rule(canvas, side, length, upright) -> None:
    """Lines across a side: thin between pixels, thicker between their rows, and thick around channels."""
    for index in range(side.length + 1):
        color, weight, zorder = "#cccccc", 0.4, 0.5
        if index % side.pixels[1] == 0:
            color, weight, zorder = QUIET, 0.9, 0.6
        if index % side.block == 0:
            color, weight, zorder = INK, 2.2, 4
        across, ends = (EDGE + index,) * 2, (EDGE, EDGE + length)
        line = (across, ends) if upright else (ends, across)
        style = {"solid_capstyle": "projecting", "clip_on": False}
        canvas.axes.plot(*line, "-", marker="", color=color, linewidth=weight * canvas.weight, zorder=zorder, **style)


def _name_pixels(canvas, view, side, upright) -> None:
    """The index of every row or column."""
    look = {"ha": "center", "va": "bottom", "rotation": 90} if upright else {"ha": "right"}
    for number, (channel, *pixel) in enumerate(np.ndindex(side.channels, *side.pixels)):
        index = [channel, *view.own(pixel)] if side.channels > 1 else view.own(pixel)
        at = (EDGE + number + 0.5, EDGE - 0.2) if upright else (EDGE - 0.2, EDGE + number + 0.5)
        canvas.label(at, f"{side.name}[{words.index(index)}]", width=2.1, color=QUIET, **look)


def _name_channels(canvas, side, upright) -> None:
    """The array, or the channel, that a block of rows or columns is."""
    for channel in range(side.channels):
        middle = EDGE + (channel + 0.5) * side.block
        name = f"{side.name}[{channel}]" if side.channels > 1 else side.name
        if upright:
            canvas.caption((middle, EDGE), name, 13, ha="center")
        else:
            canvas.caption((EDGE, middle), f"{name}  ", 13, above=-4, ha="right")


def _draw_key(figure, view) -> None:
    """The kernel, with what its taps look like."""
    rows, columns = view.g.kernel
    canvas = Canvas(figure, (11.0, 2.2, 1.3, 3.6), columns, rows, "key", largest=0.43)
    for tap in np.ndindex(rows, columns):
        name = words.index(view.own(tap))
        canvas.cell((tap[1], tap[0]), "pixel", "tap", name, name, **_look(view, tap))
    canvas.caption((0, 0), "taps r,s of w" if view.given.rank == 2 else "taps r of w", 13, above=8, weight="bold")
