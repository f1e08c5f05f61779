"""Who meets whom, drawn with letters: the windows of a setting on boards, or axis by axis as staircases."""

from __future__ import annotations

import string
from math import prod
from typing import Any, NamedTuple

import numpy as np

from loopconv import geometry
from loopconv.einsum import gathered_at, letters_of
from loopconv.geometry import Geometry

WIDTH, LINES = 100, 36  # of the terminal, and of it for boards
BOARD = 16, 23  # rows and columns of the largest board that is drawn whole
PICKED = 3  # boards in a row and in a column
ROOM, STEPS = 86, 8  # columns for the steps of a staircase, and its lines
COUNTED = 1_000_000  # pairs of a pixel and a tap on one axis up to which they are counted
LETTERS = string.ascii_lowercase + string.ascii_uppercase


class Setting(NamedTuple):
    """A call, and what follows from it: on every axis `pads` are (lo, hi) and `rest` is the output padding.

    For a convolution `rest` is that of the way back: the padded pixels at the end that no window reaches.
    """

    op: str
    g: Geometry
    given: dict[str, Any]
    pads: tuple[tuple[int, int], ...]
    rest: tuple[int, ...]

    @property
    def scatters(self) -> bool:
        """Whether pixels of x write into y."""
        return self.op == "conv_transpose"

    @property
    def axes(self) -> list[tuple[str, int]]:
        """(names, number of the first of them) of axes; those that are alike go together."""
        g, found = self.g, dict[tuple, list[int]]()
        facts = zip(g.input, g.output, g.kernel, g.stride, g.dilation, self.pads, self.rest)
        for axis, fact in enumerate(facts):
            found.setdefault(fact, []).append(axis)
        names = "DHW"[3 - g.rank :]
        return [(", ".join(names[axis] for axis in axes), axes[0]) for axes in found.values()]


def products(setting):
    """The sum in letters, and a picture of it."""
    g = setting.g
    _, small, taps = letters_of(g)
    channel, c = _channel(g)
    at, w, pixel = ", ".join((channel, *gathered_at(g))), f"w[k, {c}, {', '.join(taps)}]", f"[k, {', '.join(small)}]"
    summed = ", ".join((*(c if c == "c" else ""), *taps))
    if setting.scatters:
        lines = [
            "What every pixel of x writes",
            f"  y[{at}] += {w} * x{pixel}   for all k, {', '.join(small)}, {summed}",
        ]
    else:
        lines = ["What every pixel of y reads", f"  y{pixel} = sum over {summed} of {w} * x[{at}]"]
    board = _board(setting)
    fits = g.rank == 2 and all(len(indices) <= most for indices, most in zip(board, BOARD))
    return [*lines, "", *(_grids(setting, board) if fits else _staircases(setting, board))]


def _channel(g):
    """(how the channel on the large side follows from k and c, what c is in an index of w)."""
    in_group = g.c // g.groups
    if g.groups == 1:
        return "c", "c"
    group = "k" if g.k == g.groups else f"k//{g.k // g.groups}"
    return (group, "0") if in_group == 1 else (f"{group}*{in_group} + c", "c")


def _board(setting):
    """For every axis the indices on the large side that are drawn: its pixels, and what is around them."""
    g = setting.g
    return [
        range(min(0, -lo), max(n, span - lo, 0 if setting.scatters else n + hi))
        for n, span, lo, (_, hi) in zip(g.input, g.span, g.pad, setting.pads)
    ]


def _window(g, axis, pixel):
    """{index on the large side: tap} of one pixel of the small side."""
    start, step = pixel * g.stride[axis] - g.pad[axis], g.dilation[axis]
    return {start + tap * step: tap for tap in range(g.kernel[axis])}


def _letter(tap, taps):
    return LETTERS[tap] if taps <= len(LETTERS) else "#"


def _some(size, most):
    """The first of `size` indices and the last, `most` in all."""
    return [*range(size)] if size <= most else [*range(most - 1), size - 1]


def _meanings(setting, drawn):
    """What the signs among those `drawn` mean."""
    meanings = {
        "-": ("a pixel of x that this one of y does not read", "a pixel of y that this one of x does not write"),
        "*": ("a tap on padding, which is 0", "a product that falls outside y and is dropped"),
        ".": ("padding that it does not read", "outside y"),
    }
    return [f"{sign}  {meaning[setting.scatters]}" for sign, meaning in meanings.items() if sign in drawn]


def _kernel(kernel):
    """Lines that name every tap by a letter."""
    rows, columns = (1, *kernel)[-2:]
    if rows * columns > len(LETTERS):
        return ["#  a tap"]
    lines = (" ".join(LETTERS[r * columns : (r + 1) * columns]) for r in range(rows))
    return [f"{'w[k, c] = ' if r == 0 else '':<10}{line}" for r, line in enumerate(lines)]


def _legend(kernel, meanings):
    """Both side by side."""
    height, width = max(len(kernel), len(meanings)), max(map(len, kernel)) + 4
    kernel, meanings = ([*lines, *[""] * (height - len(lines))] for lines in (kernel, meanings))
    return [f"  {left:<{width}}{right}".rstrip() for left, right in zip(kernel, meanings)]


# --------------------------------------------------------------------------------------------- boards


def _grids(setting, board):
    """Boards side by side, each with the window of one pixel; then how often each pixel is met."""
    g, array = setting.g, "x" if setting.scatters else "y"
    label = f"{array}[k, {g.output[0] - 1}, {g.output[1] - 1}]"
    width = max(2 * len(board[1]) - 1, len(label)) + 3
    down = _some(g.output[0], max(1, min(PICKED, LINES // (len(board[0]) + 2))))
    across = _some(g.output[1], max(1, min(PICKED, (WIDTH + 1) // width)))
    lines = []
    for p in down:
        blocks = [[f"{array}[k, {p}, {q}]", *_grid(g, board, p, q)] for q in across]
        lines += ["", *("  " + "".join(f"{part:<{width}}" for part in parts).rstrip() for parts in zip(*blocks))]
    return [*_legend(_kernel(g.kernel), _meanings(setting, "".join(lines))), *lines, *_count_map(setting)]


def _grid(g, board, p, q):
    """The lines of one board with the window of pixel (p, q)."""
    rows, columns, taps = _window(g, 0, p), _window(g, 1, q), prod(g.kernel)

    def sign(i, j):
        inside = 0 <= i < g.input[0] and 0 <= j < g.input[1]
        if i in rows and j in columns:
            return _letter(rows[i] * g.kernel[1] + columns[j], taps) if inside else "*"
        return "-" if inside else "."

    return [" ".join(sign(i, j) for j in board[1]) for i in board[0]]


def reads(g, axis):
    """How many taps of windows meet every pixel of the large side, on one axis; those of several axes multiply."""
    taps = np.arange(g.kernel[axis]) * g.dilation[axis] - g.pad[axis]
    at = np.add.outer(np.arange(g.output[axis]) * g.stride[axis], taps)
    return np.bincount(at[(at >= 0) & (at < g.input[axis])], minlength=g.input[axis])


def is_countable(g):
    """Whether `reads` is quick."""
    return all(max(p * r, n, m) <= COUNTED for p, r, n, m in zip(g.output, g.kernel, g.input, g.span))


def _count_map(setting):
    """How many taps meet every pixel of the large side, and why that is uneven."""
    g = setting.g
    counts = np.multiply.outer(reads(g, 0), reads(g, 1))
    if not counts.size:
        return []
    width = len(str(counts.max()))
    lines = ["", f"  {_counts_of(setting).capitalize()}"]
    lines += ["  " + " ".join(f"{count:>{width}}" for count in row) for row in counts]
    return lines + _checkerboard(setting)


def _counts_of(setting):
    pair = ("x write into", "y") if setting.scatters else ("y read", "x")
    return "how many pixels of {} each pixel of {}".format(*pair)


def _checkerboard(setting):
    """A remark where the stride makes the counts of a transposed convolution uneven away from the borders."""
    g = setting.g
    if not setting.scatters:
        return []
    uneven = []
    for name, k, d, s in zip("DHW"[3 - g.rank :], g.kernel, g.dilation, g.stride):
        _, counts = np.unique(np.arange(k) * d % s, return_counts=True)
        if len(counts) < s or len(set(counts)) > 1:
            uneven.append(name)
    remark = "taps do not spread evenly over the stride, seen in images as a checkerboard"
    return [f"  uneven on {' and '.join(uneven)}: {remark}"] * bool(uneven)


# ----------------------------------------------------------------------------------------- staircases


def _staircases(setting, board):
    """For every axis a line for each of some pixels of the small side, under the indices of the large side."""
    g, lines, too_wide = setting.g, [], []
    for names, axis in setting.axes:
        (extent,) = geometry.extents(g.kernel[axis : axis + 1], g.dilation[axis : axis + 1])
        shown = board[axis][: ROOM // _cell(g, axis)]
        if extent > len(shown):
            too_wide += ["", f"  Not drawn on {names}: the taps of one pixel cover {extent:,} pixels"]
        else:
            lines += ["", *_staircase(setting, axis, names, shown, "  ..." * (len(shown) < len(board[axis])))]
    if not lines:
        return too_wide[1:]
    meanings = _meanings(setting, "".join(lines).replace("...", ""))
    if is_countable(g):
        meanings.append(f"count: {_counts_of(setting)}")
        lines += _checkerboard(setting)
    kernel = _kernel(g.kernel) if g.rank == 1 else ["a, b, c: taps 0, 1, 2;", "a product takes one of every axis"]
    return [*_legend(kernel, meanings), *lines, *too_wide]


def _cell(g, axis):
    return 2 if g.input[axis] <= 10 else 3


def _staircase(setting, axis, names, shown, more):
    """The lines of one axis for the indices that are `shown`, and a sign that there are `more`."""
    g, pixel, cell = setting.g, letters_of(setting.g)[1][axis], _cell(setting.g, axis)
    head = names if g.rank > 1 else "y" if setting.scatters else "x"
    width = max(len(head), len(f"{pixel}={min(g.output[axis], WIDTH)}"), 5)
    signs = (str(i) if 0 <= i < g.input[axis] else "." for i in shown)
    lines = [f"  {head:<{width}}{''.join(f'{sign:>{cell}}' for sign in signs)}{more}"]
    previous = -1
    for p in _some(g.output[axis], STEPS):
        window = _window(g, axis, p)
        if max(window) > shown[-1]:
            break
        lines += ["  ..."] * (p > previous + 1)
        lines.append(f"  {f'{pixel}={p}':<{width}}{_stair(g, axis, window, shown, cell)}")
        previous = p
    lines += ["  ..."] * (previous < g.output[axis] - 1)
    if is_countable(g):
        counts = reads(g, axis)
        signs = (str(counts[i]) if 0 <= i < g.input[axis] else "" for i in shown)
        lines.append(f"  {'count':<{width}}{''.join(f'{sign:>{cell}}' for sign in signs).rstrip()}{more}")
    return lines


def _stair(g, axis, window, shown, cell):
    """The taps of one pixel."""
    signs = {i: _letter(tap, g.kernel[axis]) if 0 <= i < g.input[axis] else "*" for i, tap in window.items()}
    return "".join(f"{signs.get(i, ''):>{cell}}" for i in shown).rstrip()
