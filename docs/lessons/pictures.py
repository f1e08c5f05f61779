"""The pictures that lessons draw besides those of `loopconv.figures`, and how all of them are shown."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter

from loopconv.figures import canvas as slides
from loopconv.figures.canvas import INK, MARGIN, ORANGE, QUIET, ROOM, SKY, STRONG, TINT, VERMILLION, Canvas

FOLDER = "lesson-pictures"
DPI = 100  # 1280 x 720 pixels
BLUE = "#0072b2"  # Okabe and Ito's, for lines and points: dark enough on white
TOP, BOTTOM = 1.35, 6.85  # inches from the top that a picture has between its title and the end of the slide


def show(figure, name, alt):
    """Show a figure in a notebook; from a plain Python, write it to ``lesson-pictures/NAME.png``.

    `alt` says in words what is to be seen.
    """
    png = BytesIO()
    figure.savefig(png, format="png", dpi=DPI, facecolor="white")
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(png.getvalue(), alt=alt), metadata={"filename": f"{name}.png", "alt": alt})
        return
    path = Path(FOLDER, f"{name}.png")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(png.getvalue())
    print(f"[picture: {path}]")


def _slide(title, note):
    figure = slides.slide()
    slides.head(figure, title, note)
    return figure


def _axes(figure, left, top, width, height):
    """Axes at inches from the left and the top, with the frame and the text that plots here have."""
    across, down = slides.WIDTH, slides.HEIGHT
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=14, colors=INK)
    return axes


# ----------------------------------------------------------------------------------- numbers in cells


def numbers(title, note, panels, signs):
    """Arrays side by side with `signs` between them; `panels` are pairs of a caption and an array.

    The larger a number, the darker its cell; negative ones are orange, and carry their sign.
    """
    figure = _slide(title, note)
    arrays = [np.atleast_2d(array) for _, array in panels]
    columns, rows = sum(a.shape[1] for a in arrays) + len(arrays) - 1, max(len(a) for a in arrays)
    canvas = Canvas(figure, (MARGIN, TOP + 0.4, ROOM, BOTTOM - TOP - 0.6), columns, rows, "numbers", largest=0.85)
    left = 0
    for number, ((caption, _), array) in enumerate(zip(panels, arrays)):
        size = min(15, canvas.points * (array.shape[1] + 0.9) / slides.em(caption))
        canvas.caption((left, 0), caption, size, weight="bold")
        most = np.abs(array).max() or 1
        for (row, column), value in np.ndenumerate(array):
            color = _tint(ORANGE if value < 0 else SKY, abs(value) / most)
            text = f"{value:g}".replace("-", "\u2212")
            canvas.cell((left + column, row), "pixel", f"array{number}", f"{row},{column}", text, facecolor=color)
        left += array.shape[1] + 1
        if number < len(signs):
            middle = {"ha": "center", "va": "center", "color": INK}
            canvas.axes.text(left - 0.5, rows / 2, signs[number], fontsize=26, **middle)
    return figure


def _tint(color, share):
    """A colour between white and `color` that black can be read on."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return tuple(1 - 0.75 * share * (1 - rgb))


def memory(title, note, shape, kernel):
    """Where in memory each window of a two-dimensional array has its numbers: a line for every window."""
    (_, width), (taps_down, taps_across) = shape, kernel
    windows = list(np.ndindex(*(n - k + 1 for n, k in zip(shape, kernel))))
    figure = _slide(title, note)
    length, edge = shape[0] * shape[1], 2.5
    canvas = Canvas(figure, (MARGIN, TOP, ROOM, BOTTOM - TOP), edge + length, 2 + len(windows), "memory", largest=0.85)
    for element in range(length):
        where = edge + element + 0.5
        canvas.label((where, 0.5), f"x[{element // width},{element % width}]", width=0.86)
        canvas.label((where, 1.45), f"+{8 * element}", share=0.3, color=QUIET)
    canvas.label((edge - 0.2, 0.5), "memory", width=2.2, ha="right", weight="bold")
    canvas.label((edge - 0.2, 1.45), "bytes from x[0,0]", share=0.3, width=2.2, color=QUIET, ha="right")
    for line, (p, q) in enumerate(windows):
        canvas.label((edge - 0.2, 2.5 + line), f"window {p},{q}", share=0.34, width=2.2, ha="right")
        taps = {(p + r) * width + q + s: f"{r},{s}" for r in range(taps_down) for s in range(taps_across)}
        for element in range(length):
            state = "active" if element in taps else "empty"
            at = edge + element, 2 + line
            canvas.cell(at, state, "input", f"{p},{q}.{element}", taps.get(element, ""))
    return figure


# ------------------------------------------------------------------------------ one form, three sums

# A function, and its arguments in the places of the large side, the weights and the small side.
FUNCTIONS = (
    ("conv", "x", "w", "?"),
    ("conv_transpose_input_grad", "grad", "w", "?"),
    ("conv_transpose", "?", "w", "x"),
    ("conv_input_grad", "?", "w", "grad"),
    ("conv_weight_grad", "x", "?", "grad"),
    ("conv_transpose_weight_grad", "grad", "?", "x"),
)


def contractions():
    """What stands in the place of which array in each function, and which one is computed of the two others."""
    figure = _slide(
        "Two convolutions and four gradients are three sums",
        "each function is given two of the three arrays (blue) and computes the one that is left out (orange, ?)",
    )
    canvas = Canvas(figure, (MARGIN, TOP, ROOM, BOTTOM - TOP), 15.4, 7.2, "form", largest=0.85)
    columns = 4.1, 5.7, 7.3
    for left, (name, note) in zip(columns, (("x", "large side"), ("w", "weights"), ("y", "small side"))):
        canvas.label((left + 0.6, 0.2), name, share=0.5, weight="bold")
        canvas.label((left + 0.6, 0.75), note, share=0.28, width=1.6, color=QUIET)
    for line, (function, *places) in enumerate(FUNCTIONS):
        top = 1.15 + 0.92 * line + 0.3 * (line // 2)
        if line % 2 == 0:
            name = ("forward", "adjoint", "weight")[line // 2]
            canvas.label((3.3, top + 0.92), f"{name} sum", share=0.4, width=3.3, ha="right", weight="bold")
        for left, text in zip(columns, places):
            _place(canvas, (left, top), text)
        canvas.label((9.0, top + 0.4), function, share=0.4, width=9, ha="left", family="monospace")
    return figure


def _place(canvas, at, text):
    """A cell wide enough for a word; heavy and orange where the result is."""
    computed = text == "?"
    color, line = (STRONG["output"], 3.0) if computed else (STRONG["input"] if text == "grad" else TINT["input"], 1.2)
    canvas.axes.add_artist(Rectangle(at, 1.2, 0.8, facecolor=color, edgecolor=INK, linewidth=line, clip_on=False))
    canvas.label((at[0] + 0.6, at[1] + 0.4), text, share=0.4)


def agreement(title, note, panels):
    """Two versions of the same numbers against each other, point by point; on the line they agree.

    `panels` are triples of a caption, what was claimed, and what was measured.
    """
    figure = _slide(title, note)
    side = min((ROOM - 1.0) / len(panels) - 0.4, BOTTOM - TOP - 1.2)
    top = (TOP + BOTTOM - side) / 2
    for number, (caption, claimed, measured) in enumerate(panels):
        axes = _axes(figure, MARGIN + 0.9 + number * (side + 0.5), top, side, side)
        limit = 1.08 * max(np.abs(claimed).max(), np.abs(measured).max())
        axes.plot([-limit, limit], [-limit, limit], color=QUIET, linewidth=1.2, zorder=1)
        axes.plot(measured.ravel(), claimed.ravel(), "o", color=BLUE, markersize=3.5, alpha=0.6, markeredgewidth=0)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_title(caption, fontsize=15, loc="left", color=INK, weight="bold")
        axes.set_xlabel("measured", fontsize=14)
        if number == 0:
            axes.set_ylabel("claimed", fontsize=14)
    return figure


# ------------------------------------------------------------------------------------- pixels as grey


def images(title, note, rows, captions=()):
    """Rows of grey images, white for the least and black for the most of a row; `rows` are pairs (label, images).

    `captions` stand over the columns.
    """
    figure = _slide(title, note)
    edge, over = 2.1 if any(label for label, _ in rows) else 0.0, 0.4 if captions else 0.0
    most, room = max(len(pictures) for _, pictures in rows), BOTTOM - TOP - over
    side = min((ROOM - edge) / most, room / len(rows))
    for row, (label, pictures) in enumerate(rows):
        top = TOP + over + (room - side * len(rows)) / 2 + row * side
        limits = {"vmin": min(map(np.min, pictures)), "vmax": max(map(np.max, pictures))}
        figure.text(MARGIN / slides.WIDTH, 1 - (top + side / 2) / slides.HEIGHT, label, fontsize=14, va="center")
        for column, picture in enumerate(pictures):
            axes = _axes(figure, MARGIN + edge + column * side, top + 0.05, side - 0.1, side - 0.1)
            axes.imshow(picture, cmap="gray_r", interpolation="nearest", **limits)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color=QUIET, linewidth=0.8)
            if row == 0 and captions:
                axes.set_title(captions[column], fontsize=14, color=INK)
    return figure


# --------------------------------------------------------------------------------------------- plots


def ladder(title, note, rungs, peaks):
    """GFLOP/s on a log scale, rung below rung; `rungs` are pairs of a name and a rate, `peaks` too, as lines.

    A rate is also given as a share of the first peak.
    """
    figure = _slide(title, note)
    axes = _axes(figure, 3.0, TOP + 0.75, 6.7, BOTTOM - TOP - 1.4)
    names, rates = zip(*rungs)
    places = np.arange(len(rungs))[::-1]
    least = 10 ** np.floor(np.log10(min(rates)) - 0.3)
    axes.barh(places, [rate - least for rate in rates], left=least, height=0.62, color=SKY, edgecolor=INK)
    for number, (name, rate) in enumerate(peaks):
        axes.axvline(rate, color=VERMILLION, linewidth=2.4, linestyle=("--", "-")[number % 2], zorder=0)
        above = {"textcoords": "offset points", "xytext": (4, 8 + 20 * number), "annotation_clip": False}
        axes.annotate(f"{name}: {rate:.0f}", (rate, len(rungs) - 0.5), fontsize=14, ha="right", color=INK, **above)
    columns = {1.19: ("GFLOP/s", [_short(rate) for rate in rates]),
               1.4: ("of one core", [f"{_short(100 * rate / peaks[0][1])} %" for rate in rates])}  # fmt: skip
    across = {"transform": axes.get_yaxis_transform(), "ha": "right", "color": INK}
    for right, (heading, texts) in columns.items():
        axes.text(right, len(rungs) - 0.35, heading, fontsize=13, **{**across, "color": QUIET})
        for place, text in zip(places, texts):
            axes.text(right, place, text, fontsize=15, va="center", **across)
    axes.set_xscale("log")
    axes.set(xlim=(least, 1.5 * max(rate for _, rate in [*rungs, *peaks])), ylim=(-0.6, len(rungs) - 0.5))
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0, labelsize=15)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("GFLOP/s, on a log scale", fontsize=15)
    return figure


def _short(value):
    """Two digits, or more before the point, without an exponent."""
    return f"{value:.0f}" if value >= 10 else np.format_float_positional(value, 2, fractional=False, trim="-")


def curve(title, note, lines, levels, ylabel):
    """Losses by step on a log scale: `lines` are triples (name, steps, losses), `levels` pairs (name, loss)."""
    figure = _slide(title, note)
    axes = _axes(figure, 1.7, TOP, 7.9, BOTTOM - TOP - 0.75)
    last = max(steps[-1] for _, steps, _ in lines)
    styles = ({"color": SKY, "linewidth": 1.2}, {"color": INK, "linewidth": 2.4})
    for (name, steps, losses), style in zip(lines, styles):
        axes.plot(steps, losses, label=name, **style)
    for (name, level), style in zip(levels, (":", "--")):
        axes.axhline(level, color=VERMILLION, linewidth=2, linestyle=style)
        axes.text(1.02 * last, level, name, fontsize=14, va="center", color=INK)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    lowest = min(min(losses) for _, _, losses in lines)
    axes.yaxis.set_major_locator(FixedLocator([m * 10.0**-e for e in range(5) for m in (1, 2, 5)]))
    axes.set(xlim=(0, last), ylim=(0.8 * lowest, None))
    axes.set_xlabel("steps", fontsize=15)
    axes.set_ylabel(ylabel, fontsize=15)
    axes.legend(fontsize=14, frameon=False, loc="upper right")
    return figure
