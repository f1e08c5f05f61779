"""Which cells meet in which step: everything that is drawn, without drawing it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from loopconv import geometry
from loopconv.cases import Case
from loopconv.geometry import Geometry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OPS = ("conv", "conv_transpose", "zero_inserted")
MOST_CELLS = 64  # on an axis: on a slide, more would be smaller than 8 points
TRANSPOSED = ", transposed"

# What the guide of Dumoulin and Visin, arXiv:1603.07285, draws: pixels and taps on both axes, and settings.
GUIDE: dict[str, tuple[int, int, dict[str, Any]]] = {
    "no padding": (4, 3, {}),
    "arbitrary padding": (5, 4, {"padding": 2}),
    "half padding": (5, 3, {"padding": "same"}),
    "full padding": (5, 3, {"padding": "full"}),
    "strided": (5, 3, {"stride": 2}),
    "strided, padded": (5, 3, {"stride": 2, "padding": 1}),
    "strided, padded, odd": (6, 3, {"stride": 2, "padding": 1}),
    "dilated": (7, 3, {"dilation": 2}),
}


def _of_the_guide() -> Iterator[Case]:
    """Every convolution, then the transpose of each."""
    convolutions = [Case(name, "conv", (1, n, n), (1, 1, k, k), more) for name, (n, k, more) in GUIDE.items()]
    yield from convolutions
    for name, _, x_shape, w_shape, settings in convolutions:
        y_shape = geometry.conv(x_shape, w_shape, **settings).y_shape[1:]
        yield Case(name + TRANSPOSED, "conv_transpose", y_shape, w_shape, {**settings, "output_size": x_shape[1:]})


SETTINGS: dict[str, Case] = {case.name: case for case in _of_the_guide()}


class Board(NamedTuple):
    """A grid of cells: the pixels of one array, and what is around or between them.

    `kinds` has 'pixel', 'padding' (zeros around), 'inserted' (zeros between) or 'cropped' for every cell;
    `first` is the index of the upper left one.
    """

    role: str
    first: tuple[int, int]
    kinds: np.ndarray

    def cells(self) -> Iterator[tuple[tuple[int, int], tuple[int, int], str]]:
        """(place, index, kind) of every cell: rows and columns from the upper left one, and from pixel 0."""
        for row, column in np.ndindex(*self.kinds.shape):
            yield (row, column), (self.first[0] + row, self.first[1] + column), str(self.kinds[row, column])


@dataclass(frozen=True)
class View:
    """One way to compute a geometry, step by step: a window on one board meets one pixel of the other.

    'conv' and 'zero_inserted' gather: the window is on the input, and there is a step for every output pixel.
    'conv_transpose' scatters: there is a step for every input pixel, and the window is on the output.
    """

    given: Geometry
    op: str

    @cached_property
    def g(self) -> Geometry:
        """The geometry with two spatial axes; a single one becomes the columns of one row."""
        return self.given if self.given.rank == 2 else with_axes(self.given, lambda sizes, unit: (unit, *sizes))

    @property
    def transposed(self) -> bool:
        """Whether y of the geometry is the input."""
        return self.op != "conv"

    @property
    def scatters(self) -> bool:
        """Whether a step is an input pixel."""
        return self.op == "conv_transpose"

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Pixels of the input and of the output, along the axes that the user has."""
        large, small = self.given.input, self.given.output
        return (small, large) if self.transposed else (large, small)

    @property
    def steps(self) -> tuple[int, ...]:
        """Pixels of the board that is walked over."""
        return self.g.input if self.op == "zero_inserted" else self.g.output

    @property
    def count(self) -> int:
        """Number of steps."""
        return prod(self.steps)

    def step(self, number) -> tuple[int, ...]:
        """The pixel of step `number`."""
        return tuple(map(int, np.unravel_index(number, self.steps)))

    @property
    def motion(self) -> tuple[tuple[int, int, int], ...]:
        """For every axis, by how much a step and a tap move along the board, and where the first tap starts."""
        g = self.g
        if self.op == "zero_inserted":  # solved for the pixel: windows are neighbours, their taps reversed
            return tuple((1, -d, pad) for d, pad in zip(g.dilation, g.pad))
        return tuple((s, d, -pad) for s, d, pad in zip(g.stride, g.dilation, g.pad))

    @cached_property
    def window(self) -> np.ndarray:
        """(*steps, *kernel, 2): where each tap is in each step, as an index of the board under the window."""
        axes = np.indices((*self.steps, *self.g.kernel))
        moves = enumerate(self.motion)
        return np.stack([axes[a] * walk + axes[2 + a] * spread + start for a, (walk, spread, start) in moves], axis=-1)

    @property
    def pixels(self) -> tuple[int, ...]:
        """Cells from the first to the last pixel of the board under the window."""
        return geometry.extents(self.g.output, self.g.stride) if self.op == "zero_inserted" else self.g.input

    @cached_property
    def reach(self) -> tuple[tuple[int, int], ...]:
        """For every axis, the first and the last index of the board under the window."""
        ends = []
        for n, steps, taps, (walk, spread, start) in zip(self.pixels, self.steps, self.g.kernel, self.motion):
            far = (taps - 1) * spread
            ends.append((min(0, start + min(far, 0)), max(n - 1, start + (steps - 1) * walk + max(far, 0))))
        return tuple(ends)

    @cached_property
    def boards(self) -> tuple[Board, Board]:
        """The input's and the output's."""
        if self.scatters:
            return self._walked("input"), self._under_window("output", "cropped")
        return self._under_window("input", "padding"), self._walked("output")

    def _walked(self, role) -> Board:
        return Board(role, (0, 0), np.full(self.steps, "pixel"))

    def _under_window(self, role, around) -> Board:
        """All that windows reach and all pixels: each of its cells, or those that zeros were inserted between."""
        spacing = self.g.stride if self.op == "zero_inserted" else (1, 1)
        rows, columns = np.ix_(*(np.arange(first, last + 1) for first, last in self.reach))
        inside = (rows >= 0) & (rows < self.pixels[0]) & (columns >= 0) & (columns < self.pixels[1])
        regular = (rows % spacing[0] == 0) & (columns % spacing[1] == 0)
        (top, _), (left, _) = self.reach
        return Board(role, (top, left), np.where(inside, np.where(regular, "pixel", "inserted"), around))

    @property
    def kinds(self) -> set[str]:
        """All that cells of the boards are."""
        return {str(kind) for board in self.boards for kind in board.kinds.flat}

    def taps(self, step) -> dict[tuple[int, ...], tuple[int, ...]]:
        """The cells under the window in a step, and which tap is on each."""
        where = self.window[step]
        return {tuple(where[tap].tolist()): tap for tap in np.ndindex(*self.g.kernel)}

    def written(self, number) -> np.ndarray:
        """How often each cell of the output's board was written in the first `number` steps."""
        output = self.boards[1]
        counts = np.zeros(output.kinds.shape, int)
        if self.scatters:
            cells = self.window.reshape(self.count, -1, 2)[:number].reshape(-1, 2) - output.first
            np.add.at(counts, tuple(cells.T), 1)
        else:
            counts.reshape(-1)[:number] = 1
        return counts

    def own(self, entries: Sequence) -> tuple:
        """Those of two entries, one for each axis, whose axis the user has."""
        return tuple(entries[-self.given.rank :])


def with_axes(g, change) -> Geometry:
    """`g` with ``change(sizes, unit)`` for everything that it has per axis; `unit` is that of an axis of one pixel."""
    names = ("input", "kernel", "output", "stride", "dilation", "pad")
    changed: dict[str, Any] = {name: change(getattr(g, name), int(name != "pad")) for name in names}
    return replace(g, **changed)


# -------------------------------------------------------------------------------------------- checks


def known_op(op, known=OPS) -> str:
    """`op`, if it is one of `known`."""
    if not isinstance(op, str) or op not in known:
        raise ValueError(f"op must be one of {', '.join(known)}, got {geometry.shown(op)}")
    return op


def view_of(setting, op, known=OPS) -> View:
    """What is to be drawn, or the error that says why it cannot be; `op` is by default the first of `known`."""
    if isinstance(setting, Case):
        op = setting.op if op is None else op
        setting = setting.geometry
    if not isinstance(setting, Geometry):
        raise TypeError(f"setting must be a Geometry or one of SETTINGS, got {geometry.shown(setting)}")
    op = known_op(known[0] if op is None else op, known)
    if setting.rank > 2:
        raise ValueError(f"setting must have 1 or 2 spatial axes to be drawn, got {setting.rank}")
    view = View(setting, op)
    if not prod(setting.input + setting.output):
        raise ValueError("setting must have pixels to be drawn, got input {}, output {}".format(*view.sizes))
    cells = max(last - first + 1 for first, last in view.reach)
    if cells > MOST_CELLS:
        raise ValueError(
            f"setting must have at most {MOST_CELLS} cells on an axis to be drawn, padding included, got {cells}"
        )
    return view


def step_number(view, step) -> int:
    """Which step `step` is: an index of the board that is walked over, or a number already."""
    sizes = view.own(view.steps)
    if not hasattr(step, "__iter__"):
        number = geometry.integer("step", step)
        if not 0 <= number < view.count:
            raise ValueError(f"step must be from 0 to {view.count - 1}, or the index of a pixel, got {number}")
        return number
    index = tuple(geometry.integer("step", entry) for entry in step)
    if len(index) != len(sizes) or any(not 0 <= i < n for i, n in zip(index, sizes)):
        raise ValueError(f"step must be an index into pixels of shape {sizes}, got {geometry.shown(step)}")
    return int(np.ravel_multi_index(index, sizes))
