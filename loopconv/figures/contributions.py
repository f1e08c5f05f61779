"""How many products reach each pixel of a transposed convolution."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.colors import to_hex, to_rgb

from loopconv import reference
from loopconv.figures import words
from loopconv.figures.canvas import INK, MARGIN, QUIET, TINT, Canvas, head, slide
from loopconv.figures.view import view_of, with_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from loopconv.cases import Case
    from loopconv.geometry import Geometry

DARK = {"input": "#004a7a", "output": "#7a4200"}
MOST_SHADES = 10  # in the key


class Shade(NamedTuple):
    """What a count looks like."""

    color: str
    ink: str
    hatch: str | None = None


def contribution_map(setting: Geometry | Case, *, op: str | None = None) -> Figure:
    """Draw how many products reach each output pixel of a transposed convolution: where kernels overlap.

    Parameters
    ----------
    setting : Geometry or Case
        As for `arithmetic`. The numbers are those of one input channel and one output channel.
    op : {'conv_transpose', 'conv'}, optional
        With 'conv', the same numbers are how often each input pixel is read. By default that of the Case, or
        'conv_transpose'.

    Returns
    -------
    matplotlib.figure.Figure
        In an SVG, a cell has an id such as ``counts.output.2,3.pixel``.

    Raises
    ------
    TypeError, ValueError
        As `arithmetic`.

    References
    ----------
    Uneven overlap as the cause of checkerboards: Odena, Dumoulin and Olah, 2016, doi:10.23915/distill.00003.
    """
    view = view_of(setting, op, ("conv_transpose", "conv"))
    figure, counts = slide(), contributions(view.g)
    title = "How many products reach each output pixel" if view.scatters else "How often each input pixel is read"
    note = words.described(view)
    if view.given.rank == 2:
        note += "; each number is its row's times its column's"
    least, most = int(counts.min()), int(counts.max())
    head(figure, f"{title}: {least if least == most else f'{least} to {most}'}", note)
    _draw_counts(figure, view, counts)
    return figure


def contributions(g) -> np.ndarray:
    """The transpose of ones by a kernel of ones, for one pair of channels."""
    one = replace(g, batch=1, groups=1, c=1, k=1)
    x = np.zeros(one.x_shape, int)
    reference.adjoint(one, x=x, w=np.ones(one.w_shape, int), y=np.ones(one.y_shape, int))
    return x[0, 0]


def _draw_counts(figure, view, counts) -> None:
    """The map, the counts of each axis along its edges, and what shades stand for."""
    role, edge = "output" if view.scatters else "input", 1.0 if view.given.rank == 2 else 0.0
    rows, columns = counts.shape
    canvas = Canvas(figure, (MARGIN, 1.3, 9.0, 5.6), columns + edge, rows + edge, "counts")
    values, pixels = np.unique(counts, return_counts=True)
    shades = {int(value): _shade(role, value / counts.max()) for value in values}
    for row, column in np.ndindex(rows, columns):
        _draw_count(canvas, (edge + column, edge + row), role, f"{row},{column}", int(counts[row, column]), shades)
    if edge:
        _draw_axis_counts(canvas, view, edge)
    _draw_key(figure, role, list(zip(values.tolist(), pixels.tolist())), shades)


def _shade(role, share) -> Shade:
    """The more, the darker; hatched where nothing arrives."""
    if share == 0:
        return Shade("white", INK, "////")
    light, dark = np.array(to_rgb(TINT[role])), np.array(to_rgb(DARK[role]))
    color = light + (dark - light) * share
    return Shade(to_hex(color), "white" if color @ (0.2126, 0.7152, 0.0722) < 0.45 else INK)


def _draw_count(canvas, at, role, name, count, shades) -> None:
    color, ink, hatch = shades[count]
    canvas.cell(at, "pixel", role, name, facecolor=color, hatch=hatch, edgecolor=QUIET)
    canvas.label((at[0] + 0.5, at[1] + 0.5), str(count), color=ink, halo=bool(hatch))


def _draw_axis_counts(canvas, view, edge) -> None:
    """What each row's and each column's numbers have in common."""
    for axis in (0, 1):
        alone = with_axes(view.g, lambda sizes, unit, axis=axis: (sizes[0], unit) if axis == 0 else (unit, sizes[1]))
        for number, count in enumerate(contributions(alone).ravel().tolist()):
            at = (edge + number + 0.5, edge - 0.45) if axis else (edge - 0.45, edge + number + 0.5)
            canvas.label(at, str(count), share=0.36, color=QUIET, weight="bold")


def _draw_key(figure, role, totals, shades) -> None:
    """Each count and how many pixels have it; of many counts, the least and the most."""
    half = MOST_SHADES // 2
    shown = totals if len(totals) <= MOST_SHADES else [*totals[:half], None, *totals[-half:]]
    side = 0.42
    canvas = Canvas(figure, (9.9, 1.7, side, side * len(shown)), 1, len(shown), "key", largest=side)
    for number, total in enumerate(shown):
        if total is None:
            canvas.label((0.5, number + 0.5), "...")
            continue
        count, pixels = total
        _draw_count(canvas, (0, number), role, str(count), count, shades)
        text = f"{pixels} pixel{'s' if pixels > 1 else ''}"
        canvas.axes.text(1.4, number + 0.5, text, fontsize=13, color=INK, va="center_baseline")
