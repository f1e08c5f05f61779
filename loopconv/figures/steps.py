"""Convolution arithmetic: which pixels meet which taps, step by step."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.patches import Polygon

from loopconv import geometry
from loopconv.figures import words
from loopconv.figures.canvas import (
    HEIGHT,
    INK,
    MARGIN,
    QUIET,
    ROOM,
    WIDTH,
    Canvas,
    em,
    head,
    legend,
    slide,
    tiled,
    write,
)
from loopconv.figures.view import SETTINGS, TRANSPOSED, View, known_op, step_number, view_of, with_axes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.figure import Figure

    from loopconv.cases import Case
    from loopconv.figures.view import Board
    from loopconv.geometry import Geometry

MOST_FRAMES = 400
MOST_PANELS = 16
NO_BREAK = "\N{NO-BREAK SPACE}"

TITLES = {
    "conv": "Convolution: every output pixel gathers from a window",
    "conv_transpose": "Transposed convolution: every input pixel scatters a scaled kernel",
    "zero_inserted": "Transposed convolution as a gather: zeros inserted, kernel reversed",
}

# Swatches, what they mean, and the kind of cell without which they are left out.
LEGENDS = {
    "conv": (
        (("active", "input", "r,s"), "pixel under the tap r,s", "pixel"),
        (("missed", "input", "r,s"), "tap on padding, adds 0", "padding"),
        (("active", "output", "p,q"), "sum of these products", "pixel"),
        (("pixel", "output", ""), "computed before", "pixel"),
    ),
    "conv_transpose": (
        (("active", "input", "p,q"), "pixel of this step", "pixel"),
        (("active", "output", "r,s"), "w[r,s] times it, added here", "pixel"),
        (("missed", "output", "r,s"), "falls on what padding crops", "cropped"),
        (("pixel", "output", "2"), "products so far", "pixel"),
    ),
    "zero_inserted": (
        (("active", "input", "r,s"), "pixel under the tap r,s", "pixel"),
        (("missed", "input", "r,s"), "tap on a zero", "zero"),
        (("around", "input", "0"), "zero, inserted or padding", "zero"),
        (("active", "output", "i,j"), "sum of these products", "pixel"),
        (("pixel", "output", ""), "computed before", "pixel"),
    ),
}


# --------------------------------------------------------------------------------------- one step


def cells(view, number) -> Iterator[tuple[Board, tuple[int, int], tuple[int, int], str, str]]:
    """(board, place on it, index, state, label) of every cell in step `number`."""
    step = view.step(number)
    taps, written, under = view.taps(step), view.written(number), view.boards[view.scatters]
    for board in view.boards:
        for place, cell, kind in board.cells():
            if board is under and cell in taps:
                state, label = "active" if kind == "pixel" else "missed", words.index(view.own(taps[cell]))
            elif board is not under and cell == step:
                state, label = "active", words.index(view.own(step))
            elif kind != "pixel":
                state, label = "around", "" if kind == "cropped" else "0"
            elif board.role == "input":
                state, label = "pixel", ""
            else:
                count = int(written[place])
                state, label = "pixel" if count else "empty", str(count) if view.scatters and count else ""
            yield board, place, cell, state, label


class Layout(NamedTuple):
    """A canvas of `columns` x `rows` cells, and the upper left corners of the boards on it."""

    columns: float
    rows: float
    corners: dict[str, tuple[float, float]]


def layout(view, edge=0.0, gap=1.5) -> Layout:
    """Boards side by side, or above each other if all is in one row, with `edge` cells for indices."""
    (a, b), (c, d) = (board.kinds.shape for board in view.boards)
    if view.given.rank == 1:
        columns, lower = max(b, d), edge + a + gap
        corners = {"input": ((columns - b) / 2, edge), "output": ((columns - d) / 2, lower)}
        return Layout(columns, lower + c + edge, corners)
    rows, right = max(a, c), edge + b + gap
    corners = {"input": (edge, edge + (rows - a) / 2), "output": (right, edge + (rows - c) / 2)}
    return Layout(right + d + edge, edge + rows, corners)


def draw_step(canvas, view, corners, number) -> None:
    """Both boards, a frame around what meets, and a beam from what is read to what is written."""
    meeting: dict[str, list[tuple[float, float]]] = {"input": [], "output": []}
    for board, (row, column), cell, state, label in cells(view, number):
        left, top = corners[board.role]
        canvas.cell((left + column, top + row), state, board.role, words.index(cell), label)
        if state in ("active", "missed"):
            meeting[board.role].append((left + column, top + row))
    boxes = {role: (*np.min(at, axis=0), *(np.max(at, axis=0) + 1)) for role, at in meeting.items()}
    for role, (left, top, right, bottom) in boxes.items():
        canvas.outline((left, top), right - left, bottom - top, f"{role}.frame")
    _draw_beam(canvas, boxes["input"], boxes["output"], view.given.rank == 1)


def _draw_beam(canvas, source, target, stacked) -> None:
    """Behind the cells, but for its outline."""
    (a, b, c, d), (e, f, g, h) = source, target
    corners = [(a, d), (c, d), (g, f), (e, f)] if stacked else [(c, b), (c, d), (e, h), (e, f)]
    canvas.axes.add_patch(Polygon(corners, facecolor=INK, alpha=0.12, linewidth=0, zorder=0.5))
    for start, end in ((corners[0], corners[3]), (corners[1], corners[2])):
        canvas.axes.plot(*zip(start, end), "-", marker="", color=INK, linewidth=canvas.weight, alpha=0.7, zorder=2.2)


def _draw_edges(canvas, view, corners) -> None:
    """Names of the boards, and the indices of their rows and columns, on the sides that the beam does not cross."""
    stacked = view.given.rank == 1
    names = ("input z: x and zeros" if _inserts(view) else "input x", "output y")
    for board, name in zip(view.boards, names):
        (left, top), (rows, columns), second = corners[board.role], board.kinds.shape, board.role == "output"
        below = stacked and second
        beside = left + columns + 0.4 if second else left - 0.4
        over = top + rows + 0.38 if below else top - 0.38
        places = [((beside, top + row + 0.5), board.first[0] + row) for row in range(0 if stacked else rows)]
        places += [((left + column + 0.5, over), board.first[1] + column) for column in range(columns)]
        for at, index in places:
            canvas.label(at, words.signed(index), share=0.3, color=QUIET, halo=True)
        far = -0.75 * canvas.points - 16 if below else 0.62 * canvas.points + 8
        size = min(15, (columns + 1) * canvas.points / em(name))
        canvas.caption((left, top + rows * below), name, size, above=far, weight="bold")


def _inserts(view) -> bool:
    """Whether the input is not x itself but has zeros between its pixels."""
    return view.op == "zero_inserted" and max(view.g.stride) > 1


def _legend(view, kinds, canvases) -> list[tuple[tuple[str, str, str], str]]:
    """Entries for views with cells of these kinds; taps have one index if there is one axis, none on small cells."""
    kinds = kinds | {"zero"} if kinds & {"padding", "inserted"} else kinds
    entries = [(swatch, text) for swatch, text, kind in LEGENDS[view.op] if kind in kinds]
    if not any(canvas.fits("0,0") for canvas in canvases):
        return [((state, role, ""), text.replace("the tap r,s", "a tap")) for (state, role, _), text in entries]
    if view.given.rank == 2:
        return entries
    return [((state, role, label.split(",")[0]), text.replace("r,s", "r")) for (state, role, label), text in entries]


# ----------------------------------------------------------------------------------------- slides


def _draw_slide(figure, view, number) -> None:
    """One step, large, with its formula."""
    head(figure, TITLES[view.op], words.described(view))
    columns, rows, corners = layout(view, edge=0.7, gap=1.8)
    canvas = Canvas(figure, (MARGIN, 1.75, ROOM, 3.95), columns, rows, f"step{number}")
    draw_step(canvas, view, corners, number)
    _draw_edges(canvas, view, corners)
    write(figure, 6.13, words.formula(view, number, "z" if _inserts(view) else "x"), 16)
    legend(figure, _legend(view, view.kinds, [canvas]))


def _draw_sheet(figure, view) -> None:
    """Every step, or as many as a slide has room for, small."""
    chosen = _chosen(view.steps)
    numbers = chosen.ravel().tolist()
    more = "" if len(numbers) == view.count else f"; {len(numbers)} of {view.count} steps"
    head(figure, TITLES[view.op], words.described(view) + more)
    columns, rows, corners = layout(view)
    boxes = tiled(len(numbers), columns + 1, rows + 1.4, (MARGIN, 1.2, ROOM, 5.1), chosen.shape[1])
    for number, (left, top, width, height) in zip(numbers, boxes):
        canvas = Canvas(figure, (left, top + 0.32, width - 0.16, height - 0.36), columns, rows, f"step{number}")
        draw_step(canvas, view, corners, number)
        name = f"{'x' if view.scatters else 'y'}[{words.index(view.own(view.step(number)))}]"
        canvas.caption((0, 0), name, 12, weight="bold")
    legend(figure, _legend(view, view.kinds, [canvas]))


def _chosen(steps) -> np.ndarray:
    """Numbers of all steps, or of as many as there is room for, evenly spaced on both axes."""
    rows = min(steps[0], round(MOST_PANELS**0.5))
    columns = min(steps[1], MOST_PANELS // rows)
    rows = min(steps[0], MOST_PANELS // columns)
    axes = (np.linspace(0, n - 1, shown).round().astype(int) for n, shown in zip(steps, (rows, columns)))
    return np.ravel_multi_index(np.ix_(*axes), steps)


def _draw_set(figure, op) -> None:
    """The middle step of every known setting."""
    cases = [case for case in SETTINGS.values() if (case.op == "conv") == (op == "conv")]
    views, canvases = [View(case.geometry, op) for case in cases], []
    head(figure, f"The arithmetic of {'' if op == 'conv' else 'transposed '}convolutions", TITLES[op].split(": ")[-1])
    for case, view, (left, top, width, height) in zip(
        cases, views, tiled(len(cases), 19, 14, (MARGIN, 1.15, ROOM, 5.2))
    ):
        name = case.name.removesuffix(TRANSPOSED)
        columns, rows, corners = layout(view)
        box = (left, top + 0.72, width - 0.3, height - 0.8)
        canvases.append(Canvas(figure, box, columns, rows, name.replace(",", "").replace(" ", "-")))
        draw_step(canvases[-1], view, corners, view.count // 2)
        lines = [(name, 13, "bold", 0.26)]
        lines += [(line, 11, "normal", 0.46 + 0.18 * n) for n, line in enumerate(wrap(_brief(view), 36))]
        for line, size, weight, down in lines:
            figure.text(left / WIDTH, 1 - (top + down) / HEIGHT, line, fontsize=size, color=INK, weight=weight)
    legend(figure, _legend(views[0], set().union(*(view.kinds for view in views)), canvases))


def _brief(view) -> str:
    """Sizes and settings along the first axis."""
    source, target = view.sizes
    settings = words.settings(with_axes(view.given, lambda sizes, _: sizes[:1]), view.transposed)
    parts = [f"{source[0]} {words.ARROW} {target[0]}", *settings]
    return ", ".join(part.replace(" ", NO_BREAK) for part in parts)


class StepAnimation(FuncAnimation):
    """A figure for every step, drawn when it is asked for."""

    def __del__(self):
        """Without the warning for what was never drawn: `save` may have refused the path."""


# ----------------------------------------------------------------------------------------- public


def arithmetic(setting: Geometry | Case, step: int | Sequence[int] | None = None, *, op: str | None = None) -> Figure:
    """Draw which pixels meet which taps: one step, large, or all of them, small.

    Parameters
    ----------
    setting : Geometry or Case
        What `loopconv.geometry.conv` or `conv_transpose` returns, or one of `SETTINGS`; of 1 or 2 spatial axes.
    step : int or sequence of int, optional
        The pixel that is computed (or, with 'conv_transpose', scattered): its index, one int per axis, or its
        number, counted row by row. By default all of them, or 16 evenly chosen ones where there are more.
    op : {'conv', 'conv_transpose', 'zero_inserted'}, optional
        What is computed, since a geometry serves both directions: each output pixel gathered from a window;
        each input pixel scattered as a scaled kernel; or the latter as a gather, from the input with
        ``stride - 1`` zeros between its pixels, with the kernel reversed. By default that of the Case, or 'conv'.

    Returns
    -------
    matplotlib.figure.Figure
        Of 12.8 x 7.2 inches, to be given to `save`. In an SVG, a cell has an id such as
        ``step4.input.2,3.active``.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it was, and what would be valid. A board has at most 64 cells on an axis.

    References
    ----------
    The settings, and the idea to draw them: Dumoulin and Visin, arXiv:1603.07285.
    """
    view = view_of(setting, op)
    figure = slide()
    if step is None:
        _draw_sheet(figure, view)
    else:
        _draw_slide(figure, view, step_number(view, step))
    return figure


def arithmetic_set(op: str = "conv") -> Figure:
    """Draw the middle step of every one of `SETTINGS` that goes in the direction of `op`.

    Parameters
    ----------
    op : {'conv', 'conv_transpose', 'zero_inserted'}, optional
        As for `arithmetic`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        For another `op`.
    """
    figure = slide()
    _draw_set(figure, known_op(op))
    return figure


def animate(setting: Geometry | Case, *, op: str | None = None, fps: float = 1.5) -> FuncAnimation:
    """Go through all steps: output pixel by output pixel, or input pixel by input pixel where they are scattered.

    Parameters
    ----------
    setting, op
        As for `arithmetic`.
    fps : float, optional
        Steps per second.

    Returns
    -------
    matplotlib.animation.FuncAnimation
        To be given to `save`, or, in a notebook, to be played by its method ``to_jshtml``.

    Raises
    ------
    TypeError, ValueError
        As `arithmetic`; also for more than 400 steps.
    """
    view = view_of(setting, op)
    if not isinstance(fps, (int, float)) or not 0 < fps <= 50:
        raise ValueError(f"fps must be a number above 0 and up to 50, got {geometry.shown(fps)}")
    if view.count > MOST_FRAMES:
        raise ValueError(f"setting must have at most {MOST_FRAMES} steps to be animated, got {view.count}")
    figure = slide()

    def draw(number):
        figure.clear()
        figure.set_layout_engine("none")  # saving a frame leaves the engine that rcParams name
        _draw_slide(figure, view, number)
        return []

    return StepAnimation(figure, draw, frames=view.count, interval=1000 / fps)
