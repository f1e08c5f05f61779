"""Slides, cells and labels."""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path

# Inches; DPI is that of animations, which have 1280 x 720 pixels.
WIDTH, HEIGHT, MARGIN, DPI = 12.8, 7.2, 0.5, 100
ROOM = WIDTH - 2 * MARGIN
LARGEST_CELL = 0.62
SMALLEST = 7  # points of a label; on a page of 840 pixels these are 6 pixels

# Colours of Okabe and Ito, which colour-blind people tell apart, and tints and shades of two of them.
INK, QUIET, FAINT = "#1a1a1a", "#555555", "#9a9a9a"
ORANGE, SKY, GREEN, YELLOW, VERMILLION, PURPLE = "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7"
# Black can be read on all. In grey, vermillion is as dark as green and orange as light as purple, so that of the first
# four, taken as 2 x 2, no two that touch look the same.
CYCLE = (VERMILLION, YELLOW, SKY, GREEN, PURPLE, ORANGE)
TINT = {"input": "#d9ecf8", "output": "#fbecc5"}
STRONG = {"input": SKY, "output": ORANGE}

# What a cell looks like, by its state. Where there are two colours, the board's role picks one.
STYLES: dict[str, dict[str, Any]] = {
    "pixel": {"facecolor": TINT, "edgecolor": QUIET, "linewidth": 0.8},
    "empty": {"facecolor": "white", "edgecolor": QUIET, "linewidth": 0.8},
    "around": {"facecolor": "white", "edgecolor": FAINT, "linewidth": 0.8, "linestyle": (0, (4, 3))},
    "active": {"facecolor": STRONG, "edgecolor": INK, "linewidth": 1.6, "zorder": 3},
    "missed": {"facecolor": "white", "edgecolor": FAINT, "linewidth": 1.2, "hatch": "////", "zorder": 2.5},
    "overlap": {"facecolor": "#e6e6e6", "edgecolor": INK, "linewidth": 2.0, "zorder": 3},
    "unreached": {"facecolor": "white", "edgecolor": QUIET, "linewidth": 1.0, "linestyle": (0, (1, 2))},
}


class Canvas:
    """Axes whose unit is a cell, at equal scale, the origin in the upper left corner.

    `box` is (left, top, width, height) in inches from the upper left corner of the figure; what is drawn takes
    `columns` x `rows` cells in the middle of it. `name` starts the ids of its cells in an SVG.
    """

    def __init__(self, figure, box, columns, rows, name, largest=LARGEST_CELL):
        left, top, width, height = box
        inches = min(width / columns, height / rows, largest)
        self.points, self.name = 72 * inches, name
        self.weight = min(1, max(self.points / 24, 0.15))  # of lines: small cells have thin ones
        self.axes = figure.add_axes((left / WIDTH, 1 - (top + height) / HEIGHT, width / WIDTH, height / HEIGHT))
        self.axes.set_label(name)
        self.axes.set_axis_off()
        across, down = width / inches, height / inches
        self.axes.set_xlim((columns - across) / 2, (columns + across) / 2)
        self.axes.set_ylim((rows + down) / 2, (rows - down) / 2)

    def cell(self, at, state, role, name, label="", **style) -> None:
        """A square with its upper left corner at `at`."""
        given = {**STYLES[state], **style}
        given["linewidth"] *= self.weight
        if isinstance(given["facecolor"], dict):
            given["facecolor"] = given["facecolor"][role]
        self.axes.add_artist(Rectangle(at, 1, 1, gid=f"{self.name}.{role}.{name}.{state}", clip_on=False, **given))
        if label:
            color = QUIET if state == "around" else INK
            self.label((at[0] + 0.5, at[1] + 0.5), label, color=color, halo=bool(given.get("hatch")))

    def outline(self, at, columns, rows, name) -> None:
        """A frame around cells."""
        look = {"edgecolor": INK, "linewidth": 2.6 * self.weight, "zorder": 4, "clip_on": False}
        self.axes.add_artist(Rectangle(at, columns, rows, fill=False, gid=f"{self.name}.{name}", **look))

    def fits(self, text, share=0.42, width=0.92) -> float:
        """The size of text of this height and at most this width, in cells; 0 where nobody could read it."""
        size = min(16, self.points * min(share, width / em(text)))
        return size if size >= SMALLEST else 0

    def label(self, middle, text, share=0.42, width=0.92, halo=False, **style) -> None:
        """Text of this height and at most this width, in cells, if it can be read then."""
        if size := self.fits(text, share, width):
            effects = [withStroke(linewidth=0.25 * size, foreground="white")] if halo else []
            style = {"ha": "center", "va": "center_baseline", "color": INK, "zorder": 5, **style}
            self.axes.text(*middle, text, fontsize=size, path_effects=effects, **style)

    def caption(self, at, text, size, above=6.0, **style) -> None:
        """Text whose baseline is `above` points over a place."""
        style = {"textcoords": "offset points", "color": INK, "annotation_clip": False, **style}
        effects = [withStroke(linewidth=3, foreground="white")]  # a beam may pass behind it
        self.axes.annotate(text, at, (0, above), fontsize=size, path_effects=effects, zorder=5, **style)


@lru_cache(maxsize=4096)
def em(text) -> float:
    """Width of a line of text, in units of its size."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=100), ismath=False)
    return max(width / 100, 0.01)


def slide() -> Figure:
    """An empty figure, which nobody's settings lay out anew."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
    figure.set_layout_engine("none")
    return figure


def head(figure, title, note) -> None:
    """A title, and what there is to say about it."""
    write(figure, 0.62, title, 20, weight="bold")
    write(figure, 1.0, note, 14, color=QUIET)


def write(figure, down, text, size, **style) -> None:
    """A line at `down` inches from the top, smaller where it would not fit."""
    bold = 1.15 if "weight" in style else 1
    size = min(size, 72 * ROOM / (em(text) * bold))
    figure.text(MARGIN / WIDTH, 1 - down / HEIGHT, text, fontsize=size, **{"color": INK, **style})


def legend(figure, entries) -> None:
    """A line at the bottom: swatches (state, role, label) and what they mean."""
    if not entries:
        return
    swatch, gap = 0.4, 0.4
    wanted = sum(swatch + em(text) * 12.5 / 72 + gap for _, text in entries) - gap
    scale = min(1, ROOM / wanted)
    side, size, left = 0.3 * scale, 12.5 * scale, MARGIN
    canvas = Canvas(figure, (0, HEIGHT - 0.72, WIDTH, side), WIDTH / side, 1, "legend", largest=side)
    for number, ((state, role, label), text) in enumerate(entries):
        canvas.cell((left / side, 0), state, role, str(number), label)
        left += swatch * scale
        canvas.axes.text(left / side, 0.5, text, fontsize=size, color=INK, va="center_baseline")
        left += (em(text) * 12.5 / 72 + gap) * scale


def tiled(count, columns, rows, box, across=1) -> list[tuple[float, float, float, float]]:
    """Boxes for `count` pictures of `columns` x `rows` cells: `across` in a line, if cells are not much larger else."""
    left, top, width, height = box

    def size(across):
        return min(width / (across * columns), height / (ceil(count / across) * rows))

    best = max(range(1, count + 1), key=size)
    across = across if size(across) > 0.8 * size(best) else best
    w, h = width / across, height / ceil(count / across)
    return [(left + n % across * w, top + n // across * h, w, h) for n in range(count)]
