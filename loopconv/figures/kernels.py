"""A transposed convolution as a sum of shifted kernels."""

# mypy: disable-error-code="union-attr"
# (as in ops.py)

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from loopconv import arrays, geometry, ops
from loopconv.figures import words
from loopconv.figures.canvas import CYCLE, FAINT, MARGIN, ROOM, SMALLEST, Canvas, em, head, legend, slide
from loopconv.figures.view import view_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from loopconv.ops import Ints, Padding

MOST_TERMS = 64
SIGN, ABOVE = 1.0, 1.0  # cells between tiles for the sign, and above them for the caption

LEGEND = [
    (("overlap", "output", ""), "several kernels overlap and add up"),
    (("missed", "output", ""), "cropped by padding"),
    (("unreached", "output", "0"), "no kernel gets here: 0, or the bias"),
]


class Cell(NamedTuple):
    """A cell of a tile, `parts` what its number is the sum of."""

    at: tuple[int, int]
    state: str
    text: str = ""
    parts: str = ""
    style: dict[str, Any] = {}  # noqa: RUF012


class Tile(NamedTuple):
    """One array of the sum: the sign before it, the words above it, and its cells."""

    sign: str
    caption: str
    shape: tuple[int, int]
    cells: list[Cell]


# -------------------------------------------------------------------------------------------- tiles


def _operand(caption, values, colours) -> Tile:
    """x or w of one channel, or of a pair of them."""
    numbers = [
        Cell(at, "pixel", words.value(values[at]), style={"facecolor": colours[at]}) for at in np.ndindex(values.shape)
    ]
    return Tile("", caption, values.shape, numbers)


def _term(view, sign, caption, step, kernel, colour) -> Tile:
    """`kernel`, which is scaled already, where a step puts it on the output."""
    board, taps, found = view.boards[1], view.taps(step), []
    for at, cell, kind in board.cells():
        pixel = kind == "pixel"
        if cell in taps:
            style = {"facecolor": colour} if pixel else {}
            found.append(Cell(at, "active" if pixel else "missed", words.value(kernel[taps[cell]]), style=style))
        else:
            found.append(Cell(at, "empty" if pixel else "around", style={"edgecolor": FAINT}))
    return Tile(sign, caption, board.kinds.shape, found)


def _total(view, caption, values, terms) -> Tile:
    """The sum of `terms`, with what adds up in each cell."""
    board, found = view.boards[1], []
    for number, (at, cell, kind) in enumerate(board.cells()):
        parts = [term.cells[number] for term in terms if term.cells[number].state == "active"]
        if kind != "pixel":
            found.append(Cell(at, "around", style={"edgecolor": FAINT}))
        elif len(parts) > 1:
            found.append(Cell(at, "overlap", words.value(values[cell]), _added([part.text for part in parts])))
        else:
            style = parts[0].style if parts else {}
            found.append(Cell(at, "pixel" if parts else "unreached", words.value(values[cell]), style=style))
    return Tile("=", caption, board.kinds.shape, found)


def _added(numbers) -> str:
    """What is added, or how many there are of it."""
    text = "+".join(numbers).replace(f"+{words.MINUS}", words.MINUS)
    return text if len(text) <= 9 else f"{len(numbers)} terms"


def _terms(view, x, w, c) -> list[Tile]:
    """A tile for every pixel that output channel `c` gets something from."""
    g, alone = view.g, view.g.k == view.g.c == 1
    tiles: list[Tile] = []
    inner, group = c % w.shape[1], c // w.shape[1]
    for k in range(group * (g.k // g.groups), (group + 1) * (g.k // g.groups)):
        for number in range(view.count):
            step = view.step(number)
            where = words.index(view.own(step))
            caption = f"x[{where}] {words.DOT} w" if alone else f"x[{k},{where}] {words.DOT} w[{k},{inner}]"
            colour = CYCLE[number % len(CYCLE)]
            tiles.append(_term(view, "+" if tiles else "=", caption, step, x[(k, *step)] * w[k, inner], colour))
    return tiles


def _equation(view, x, w, y) -> tuple[list[Tile], list[list[Tile]]]:
    """(x and w, then for every output channel its terms and their sum)."""
    alone = view.g.k == view.g.c == 1
    colours = np.resize(np.array(CYCLE), x.shape[1:])
    white = np.full(w.shape[2:], "white")
    operands = [_operand("x" if alone else f"x[{k}]", x[k], colours) for k in range(len(x))]
    operands += [_operand("w" if alone else f"w[{k},{c}]", w[k, c], white) for k, c in np.ndindex(*w.shape[:2])]
    sums = []
    for c in range(len(y)):
        terms = _terms(view, x, w, c)
        sums.append([*terms, _total(view, "y" if alone else f"y[{c}]", y[c], terms)])
    return operands, sums


# ------------------------------------------------------------------------------------------- lines


def _broken(operands, sums, across) -> list[list[Tile]]:
    """Lines of `across` terms, a sum at the end of the last of them."""
    lines = [operands]
    for *terms, total in sums:
        lines += [terms[start : start + across] for start in range(0, len(terms), across)]
        lines[-1].append(total)
    return lines


def _extent(lines) -> tuple[float, float]:
    """Cells across and down that lines take."""
    across = max(sum(tile.shape[1] + SIGN for tile in line) for line in lines)
    return across, sum(max(tile.shape[0] for tile in line) + ABOVE for line in lines)


def _draw_lines(canvas, lines) -> None:
    """Lines below each other, the tiles of each at the same height."""
    top = 0.0
    for row, line in enumerate(lines):
        left, top, rows = 0.0, top + ABOVE, max(tile.shape[0] for tile in line)
        for column, tile in enumerate(line):
            canvas.label((left + SIGN / 2, top + rows / 2), tile.sign, share=0.6)
            left += SIGN
            _draw_tile(canvas, (left, top + (rows - tile.shape[0]) / 2), tile, f"tile{row}-{column}")
            left += tile.shape[1]
        top += rows


def _draw_tile(canvas, corner, tile, name) -> None:
    left, top = corner
    size = min(13, 0.45 * canvas.points, canvas.points * (tile.shape[1] + 0.7 * SIGN) / em(tile.caption))
    if size >= SMALLEST:
        canvas.caption(corner, tile.caption, size, above=0.16 * canvas.points)
    for cell in tile.cells:
        at = (left + cell.at[1], top + cell.at[0])
        both = cell.parts and canvas.fits(cell.parts, 0.22)
        canvas.cell(at, cell.state, "output", f"{name}.{words.index(cell.at)}", "" if both else cell.text, **cell.style)
        if both:
            canvas.label((at[0] + 0.5, at[1] + 0.36), cell.text)
            canvas.label((at[0] + 0.5, at[1] + 0.77), cell.parts, share=0.22)


def shifted_kernels(
    x: ArrayLike,
    w: ArrayLike,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    output_size: Ints | None = None,
    dilation: Ints = 1,
    groups: int = 1,
) -> Figure:
    """Draw a transposed convolution as what it is: a sum of kernels, each scaled by a pixel and shifted.

    A pixel of x and its kernel have the same colour.

    Parameters
    ----------
    x : array_like, shape (C_in, \\*input) or (1, C_in, \\*input)
        One image, of 1 or 2 spatial axes.
    w : array_like, shape (C_in, C_out / groups, \\*kernel)
        Weights.
    stride, padding, output_padding, output_size, dilation, groups
        See `loopconv.conv_transpose`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError, ValueError
        As `loopconv.conv_transpose` and `arithmetic`; also for more than 64 terms.
    """
    x, w = arrays.accept_of_host(x=x, w=w)
    settings: dict[str, Any] = {
        "stride": stride, "padding": padding, "output_padding": output_padding, "output_size": output_size,
        "dilation": dilation, "groups": groups,
    }  # fmt: skip
    given = geometry.conv_transpose(x.shape, w.shape, **settings)
    if given.batch != 1:
        raise ValueError(f"x must be one image, got {given.batch} in shape {x.shape}")
    view = view_of(given, "conv_transpose")
    count = view.count * given.k * w.shape[1]
    if not 0 < count <= MOST_TERMS:
        raise ValueError(f"x must make 1 to {MOST_TERMS} terms with w (pixels, for pairs of channels), got {count}")
    y, g = ops.conv_transpose(x, w, backend="reference", **settings), view.g
    _, wide = arrays.dtypes(x, w)  # that of exact products
    operands, sums = _equation(
        view, x.reshape(g.y_shape[1:]).astype(wide), w.reshape(g.w_shape).astype(wide), y.reshape(g.x_shape[1:])
    )
    figure = slide()
    note = ", ".join([words.described(view), *words.channels(view)])
    head(figure, "Transposed convolution: a sum of shifted kernels, each scaled by a pixel", note)
    _draw_equation(figure, operands, sums)
    return figure


def _draw_equation(figure, operands, sums) -> None:
    """All lines, broken where cells get largest, and the legend."""
    box = (MARGIN, 1.15, ROOM, 5.15)

    def size(across):
        columns, rows = _extent(_broken(operands, sums, across))
        return min(box[2] / columns, box[3] / rows)

    lines = _broken(operands, sums, max(range(1, len(sums[0])), key=size))
    _draw_lines(Canvas(figure, box, *_extent(lines), "sum"), lines)
    states = {cell.state for line in lines for tile in line for cell in tile.cells}
    legend(figure, [entry for entry in LEGEND if entry[0][0] in states])
