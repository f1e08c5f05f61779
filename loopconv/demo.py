"""A photograph goes down by a convolution and back up by its transpose, with a kernel learned on the way.

Colour channels are the images of a batch, so that one kernel serves all three, and values are distances
from the photograph's mean grey: the zeros that a convolution sees past the edge are then that grey, and
learning is not slowed down by brightness, of which every kernel gets most right.
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from itertools import chain
from math import log10, sqrt
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from loopconv import cli, conv, conv_transpose, conv_transpose_weight_grad, geometry, registry

STRIDE = 3
TAPS = 9
PADDING = TAPS // 2
KERNEL_SHAPE = (1, 1, TAPS, TAPS)
FORMATS = (".png", ".jpg", ".webp", ".pdf", ".svg")  # what matplotlib writes wherever it is installed


class Story(NamedTuple):
    """What the picture shows. Photographs are (3, 1, H, W), in distances from `grey`."""

    grey: float
    photo: np.ndarray
    small: np.ndarray
    naive: np.ndarray
    learned: np.ndarray
    naive_kernel: np.ndarray
    learned_kernel: np.ndarray
    losses: list[float]


def require() -> None:
    """Raise ImportError if matplotlib, tqdm or Pillow is missing."""
    for name in ("matplotlib", "tqdm", "PIL"):
        import_module(name)


def output_problem(output: Path) -> str | None:
    """Why no picture can be written to `output`; None if one can."""
    if output.suffix.lower() not in FORMATS:
        return f"--output must end in one of {' '.join(FORMATS)}, got '{output}'"
    if not os.access(output.parent, os.W_OK) or output.is_dir():
        return f"--output must be a file in a directory that exists and is writable, got '{output}'"
    return None


def run(output: Path, steps: int) -> None:
    """Tell the story on the terminal and draw it into `output`."""
    started = perf_counter()
    story = tell(steps)
    print("\nThe demo's three kinds of call on every backend, against the reference:\n")
    print(compare_backends(story))
    cli.progress("drawing")
    draw(story, output)
    cli.progress("")
    print(f"\nWrote {output}. Everything took {perf_counter() - started:.0f} s.")


# -------------------------------------------------------------------------------------- computation


def photograph() -> np.ndarray:
    """Grace Hopper as matplotlib ships her: (3, 1, 600, 512), from 0 to 1."""
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        values = np.asarray(image.convert("RGB"), np.float32) / 255
    return np.ascontiguousarray(values.transpose(2, 0, 1)[:, None])


def separable(profile) -> np.ndarray:
    """The kernel whose rows and columns all have this profile."""
    return np.outer(profile, profile).astype(np.float32).reshape(KERNEL_SHAPE)


def gaussian() -> np.ndarray:
    """A low-pass filter; its width of half a stride leaves little that the stride could alias."""
    profile = np.exp(-0.5 * (np.arange(-PADDING, PADDING + 1) / (STRIDE / 2)) ** 2)
    return separable(profile / profile.sum())


def triangle() -> np.ndarray:
    """Linear interpolation along both axes: the taps that meet in any one pixel add up to 1."""
    return separable(np.maximum(1 - np.abs(np.arange(-PADDING, PADDING + 1)) / STRIDE, 0))


def upsample(small, kernel, like) -> np.ndarray:
    """`small` brought to the size of `like`."""
    return conv_transpose(small, kernel, stride=STRIDE, padding=PADDING, output_size=like.shape[2:])


def kernel_gradient(error, small) -> np.ndarray:
    """Gradient of ``sum(error**2) / 2`` for ``error = upsample(small, kernel, ...) - target``."""
    return conv_transpose_weight_grad(error, small, KERNEL_SHAPE, stride=STRIDE, padding=PADDING)


def curvature(small, like, rounds=8) -> float:
    """Largest eigenvalue of the kernel's Hessian, by power iteration; 4 rounds give 4 digits here."""
    direction = triangle()
    for _ in range(rounds):
        direction = kernel_gradient(upsample(small, direction, like), small)
        size = float(np.linalg.norm(direction))
        direction /= size
    return size


def learn(small, photo, steps) -> tuple[np.ndarray, list[float]]:
    """(kernel, loss before every step and after the last), by Nesterov's accelerated gradient descent.

    The loss is a quadratic function of the kernel, so a step of 1 / curvature is safe; 1% is for what
    power iteration may have missed.
    """
    from tqdm import tqdm

    step = 1 / (1.01 * curvature(small, photo))
    kernel: np.ndarray = np.zeros(KERNEL_SHAPE, np.float32)
    ahead = kernel
    momentum, losses = 1.0, []
    bar = tqdm(range(steps), desc="learning", unit="step", disable=None)
    for _ in bar:
        error = upsample(small, ahead, photo) - photo
        losses.append(mean_square(error))
        before, kernel = kernel, ahead - step * kernel_gradient(error, small)
        after = (1 + sqrt(1 + 4 * momentum**2)) / 2
        ahead = kernel + (momentum - 1) / after * (kernel - before)
        momentum = after
        bar.set_postfix(loss=f"{losses[-1]:.6f}", refresh=False)
    return kernel, [*losses, mean_square(upsample(small, kernel, photo) - photo)]


def mean_square(error) -> float:
    """Mean squared error, summed in double precision."""
    return float(np.mean(np.square(error), dtype=np.float64))


def decibels(loss) -> float:
    """Peak signal-to-noise ratio of values that reach from 0 to 1."""
    return -10 * log10(loss)


def tell(steps) -> Story:
    """Filter, upsample and learn, saying how it goes."""
    started = perf_counter()
    photo = photograph()
    grey = float(photo.mean())
    photo -= grey
    small = conv(photo, gaussian(), stride=STRIDE, padding=PADDING)
    naive = upsample(small, triangle(), photo)
    print(f"A photograph of {pixels(photo)} pixels in 3 colours, filtered at stride {STRIDE} to {pixels(small)} and "
          f"brought\nback by a bilinear kernel: {perf_counter() - started:.1f} s, compilation included\n")  # fmt: skip
    started = perf_counter()
    kernel, losses = learn(small, photo, steps)
    print(f"Learning the {TAPS * TAPS} taps of a better kernel: {perf_counter() - started:.1f} s\n")
    print(cli.table(("steps", "loss", "PSNR"), loss_lines(losses), ">>>"))
    before, after = decibels(mean_square(naive - photo)), decibels(losses[-1])
    print(f"\nPSNR with the bilinear kernel {before:.2f} dB, with the learned one {after:.2f} dB")
    return Story(grey, photo, small, naive, upsample(small, kernel, photo), triangle(), kernel, losses)


def loss_lines(losses) -> list[tuple[str, ...]]:
    """Steps taken, loss and PSNR, at the start, the end, and evenly on a log scale between."""
    last = len(losses) - 1
    shown = [step for step in (0, 1, 3, 10, 30, 100, 300, 1000, 3000) if step < last]
    return [(f"{step}", f"{losses[step]:.6f}", f"{decibels(losses[step]):.2f} dB") for step in (*shown, last)]


def pixels(photo, times="x") -> str:
    """Width and height in words."""
    return f"{photo.shape[3]} {times} {photo.shape[2]}"


# ----------------------------------------------------------------------------------------- backends

# These two take seconds for the whole photograph (and the reference 1.2 GB), so they get its corner.
ON_CORNER = ("reference", "python")
CORNER = 32 * STRIDE


def compare_backends(story) -> str:
    """Table of every backend's agreement and time on the calls that the demo makes."""
    problems = {(c, corner): problem(story, c, corner) for c in registry.CONTRACTIONS for corner in (False, True)}
    lines = []
    for row in chain(*cli.by_backend().values()):
        case = problems[row.contraction, row.backend in ON_CORNER]
        cli.progress(f"{row.backend} {row.contraction}")
        if reason := row.missing() or row.unsupported(case.geometry, np.dtype(np.float32)):
            lines.append((row.backend, row.contraction, f"cannot run: {reason}", "", "", "", ""))
            continue
        outcome = cli.measure(row, case, calls=5)
        ms = 1e3 * outcome.seconds
        lines.append((row.backend, row.contraction, case.name, f"{ms:.2f}", f"{ms / case.geometry.macs * 1e6:.3f}",
                      f"{outcome.error:.2f}", "agrees" if outcome.error <= 1 else "WRONG"))  # fmt: skip
    cli.progress("")
    header = ("backend", "contraction", "on", "ms", "ms per million multiply-adds", "error/tolerance", "")
    return cli.table(header, lines, "<<<>>><")


def problem(story, contraction, corner) -> cli.Problem:
    """One of the demo's calls: filtering the photo, upsampling, or the gradient of the kernel."""
    x = story.photo if contraction == "forward" else story.naive - story.photo
    w = gaussian() if contraction == "forward" else story.learned_kernel
    y, name = story.small, f"the photo, {pixels(story.photo)}"
    if corner:
        x, y = x[..., :CORNER, :CORNER], y[..., : CORNER // STRIDE, : CORNER // STRIDE]
        name = f"a corner of it, {pixels(x)}"
    operands = {"x": np.ascontiguousarray(x), "w": w, "y": np.ascontiguousarray(y)}
    g = geometry.conv(x.shape, w.shape, stride=STRIDE, padding=PADDING)
    return cli.Problem(name, g, operands, *expectation(g, contraction, operands))


def expectation(g, contraction, operands):
    """`cli.expectation`, one colour at a time where they are independent: a peak of 0.6 GB, not 1.2."""
    if contraction == "weight":
        return cli.expectation(g, contraction, operands)
    one = replace(g, batch=1)
    colours = [
        cli.expectation(one, contraction, {"x": x[None], "w": operands["w"], "y": y[None]})
        for x, y in zip(operands["x"], operands["y"])
    ]
    return [np.concatenate(parts) for parts in zip(*colours)]


# ------------------------------------------------------------------------------------------ picture

# The picture is laid out in pixels, so that photographs are drawn one to one.
DPI = 150
WIDTH, HEIGHT = 2210, 1320
LEFT, TOP, GAP, SIDE = 50, 254, 28, 450
DETAIL = (slice(20, 116), slice(203, 331))  # rows and columns: the eagle on the cap
ZOOM = 4
TIMES = "\N{MULTIPLICATION SIGN}"
INK, QUIET, BLUE, ORANGE = "#1a1a1a", "#5a5a5a", "#0072b2", "#d55e00"


def draw(story, output) -> None:
    """Photograph, both ways back and their details in three columns; kernels and loss in a fourth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
    title = "Down by a convolution, back up by its transpose, with a kernel learned by its gradient"
    note = (
        f"A stride of {STRIDE} keeps one pixel in {STRIDE**2}. From these, loopconv brings the photo back, with "
        f"{TAPS} {TIMES} {TAPS} taps that gradient descent learned on this very photo."
    )
    write(figure, LEFT, 78, title, 20, weight="bold")
    write(figure, LEFT, 128, note, 13.5, color=QUIET)
    before, after = decibels(mean_square(story.naive - story.photo)), decibels(story.losses[-1])
    columns = (
        (story.photo, "The photo", f"{pixels(story.photo, TIMES)} pixels"),
        (story.naive, "Back with a bilinear kernel", f"PSNR {before:.1f} dB"),
        (story.learned, "Back with the learned kernel", f"PSNR {after:.1f} dB at step {len(story.losses) - 1}"),
    )
    for number, (photo, title, note) in enumerate(columns):
        draw_column(figure, LEFT + number * (photo.shape[3] + GAP), photo + story.grey, title, note)
    left = WIDTH - LEFT - SIDE
    draw_small(figure, left, story)
    draw_kernels(figure, left, story)
    draw_loss(figure, left, story, before)
    figure.savefig(output, dpi=DPI)


def write(figure, left, baseline, text, size, color=INK, **style) -> None:
    """Text at pixels from the left and the top."""
    figure.text(left / WIDTH, 1 - baseline / HEIGHT, text, fontsize=size, color=color, **style)


def heading(figure, left, top, title, note) -> None:
    """Title and note of the panel whose upper left corner this is."""
    write(figure, left, top - 50, title, 15, weight="bold")
    write(figure, left, top - 14, note, 13, color=QUIET)


def panel(figure, left, top, width, height):
    """Axes at pixels from the left and the top."""
    return figure.add_axes((left / WIDTH, 1 - (top + height) / HEIGHT, width / WIDTH, height / HEIGHT))


def draw_image(figure, left, top, values, scale=1):
    """Pixels as squares of `scale`, without resampling; returns the axes."""
    axes = panel(figure, left, top, values.shape[3] * scale, values.shape[2] * scale)
    axes.imshow(np.clip(values[:, 0], 0, 1).transpose(1, 2, 0), interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def draw_column(figure, left, photo, title, note) -> None:
    """The whole photograph with a frame around the detail, and the detail below."""
    from matplotlib.patches import Rectangle

    heading(figure, left, TOP, title, note)
    axes = draw_image(figure, left, TOP, photo)
    rows, cols = DETAIL
    corner = cols.start - 0.5, rows.start - 0.5
    axes.add_patch(Rectangle(corner, cols.stop - cols.start, rows.stop - rows.start, fill=False, color="white", lw=1.2))
    draw_image(figure, left, TOP + photo.shape[2] + GAP, photo[..., rows, cols], ZOOM)


def draw_small(figure, left, story) -> None:
    """The filtered photograph, at the scale of the others."""
    heading(figure, left, TOP, "All they start from", f"{pixels(story.small, TIMES)} pixels, to scale")
    draw_image(figure, left, TOP, story.small + story.grey)


def draw_kernels(figure, left, story) -> None:
    """Both kernels as tiles, in the same colours."""
    size, top = (SIDE - GAP) // 2, TOP + 304
    heading(figure, left, top, "The two kernels", "bilinear (left) and learned")
    limit = float(max(abs(story.naive_kernel).max(), abs(story.learned_kernel).max()))
    for number, kernel in enumerate((story.naive_kernel, story.learned_kernel)):
        axes = panel(figure, left + number * (size + GAP), top, size, size)
        tiles = axes.imshow(kernel[0, 0], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#bbbbbb")
    scale = panel(figure, left, top + size + 18, SIDE, 14)
    bar = figure.colorbar(tiles, cax=scale, orientation="horizontal", ticks=[-2, -1, 0, 1, 2])
    bar.outline.set_visible(False)
    scale.tick_params(labelsize=11, colors=QUIET, length=2)


def draw_loss(figure, left, story, before) -> None:
    """The loss on log axes, and where the bilinear kernel's is."""
    from matplotlib.ticker import LogLocator

    top, bottom = TOP + story.photo.shape[2] + GAP + 74, HEIGHT - 96
    heading(figure, left, top, "The loss", "mean squared error, by steps")
    axes = panel(figure, left + 78, top + 14, SIDE - 78, bottom - top - 14)
    bilinear = 10 ** (-before / 10)
    axes.axhline(bilinear, color=ORANGE, lw=1.6, ls="--")
    axes.text(0.03, bilinear * 0.93, "bilinear", color=ORANGE, size=12, va="top", transform=axes.get_yaxis_transform())
    axes.plot(story.losses, color=BLUE, lw=2.4)
    axes.set_yscale("log")
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlim(0, len(story.losses) - 1)
    axes.set_ylim(0.6 * min(bilinear, story.losses[-1]), 0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=11, colors=QUIET)
