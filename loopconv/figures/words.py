"""What figures say: sizes, settings and the sum of a step."""

from __future__ import annotations

import numpy as np

TIMES, DOT, MINUS, SIGMA, ARROW = "\u00d7", "\u00b7", "\u2212", "\u03a3", "\u2192"


def by(sizes) -> str:
    """Sizes along all axes."""
    return f" {TIMES} ".join(map(str, sizes))


def same(sizes) -> str:
    """One number where all axes have the same."""
    return signed(sizes[0]) if len(set(sizes)) == 1 else f" {TIMES} ".join(map(signed, sizes))


def index(cell) -> str:
    """The index of a cell."""
    return ",".join(map(str, cell))


def signed(number) -> str:
    """A number with a minus sign that is as wide as a plus."""
    return str(number).replace("-", MINUS)


def value(number) -> str:
    """A number of an array: an integer as it is, a float to three digits and at most two decimals."""
    if isinstance(number, (np.integer, np.complexfloating)):
        return signed(f"{number:.3g}" if isinstance(number, np.complexfloating) else number)
    number += 0.0  # there is no need for a negative zero
    size = abs(number)
    if not 0.01 <= size < 1000 and size != 0:
        return signed(f"{number:.{1 if size < 1 else 2}g}")
    text = f"{number:.{2 if size < 10 else 1 if size < 100 else 0}f}"
    return signed(text.rstrip("0").rstrip(".") if "." in text else text)


def settings(g, transposed) -> list[str]:
    """Kernel, stride, dilation and padding, without what is as by default."""
    parts = [f"kernel {by(g.kernel)}"]
    parts += [f"{name} {same(getattr(g, name))}" for name in ("stride", "dilation") if set(getattr(g, name)) != {1}]
    return [*parts, *_pads(g, transposed)]


def _pads(g, transposed) -> list[str]:
    """Padding. What follows is known up to what windows reach; of a transpose, the rest is output_padding."""
    after = after_pad(g)
    rest = [lo - hi for lo, hi in zip(g.pad, after)]
    limits = [max(s, d) if transposed else s for s, d in zip(g.stride, g.dilation)]
    if any(not 0 <= r < limit for r, limit in zip(rest, limits)):
        return [f"padding {same(g.pad)} before and {same(after)} after"]
    padding = [f"padding {same(g.pad)}"] if any(g.pad) else []
    return [*padding, f"output_padding {same(rest)}"] if transposed and any(rest) else padding


def after_pad(g) -> tuple[int, ...]:
    """Pixels past the end of x that windows reach on every axis; negative where they do not reach the end."""
    return tuple(span - pad - n for span, pad, n in zip(g.span, g.pad, g.input))


def described(view) -> str:
    """Sizes and settings of a view."""
    source, target = view.sizes
    words = ", ".join([f"input {by(source)}", *settings(view.given, view.transposed)])
    return f"{words} {ARROW} output {by(target)}"


def channels(view) -> list[str]:
    """Numbers of channels and groups, if there are several."""
    g = view.given
    source, target = (g.k, g.c) if view.transposed else (g.c, g.k)
    words = [f"channels {source} {ARROW} {target}"] if max(source, target) > 1 else []
    return [*words, f"groups {g.groups}"] if g.groups > 1 else words


def formula(view, number, source="x") -> str:
    """The sum of a step, its numbers filled in; `source` is what a gather reads."""
    step = view.own(view.step(number))
    letters = ("r", "s")[: len(step)]
    where = ", ".join(_place(*each) for each in zip(step, letters, view.own(view.motion)))
    here, taps = ", ".join(map(str, step)), ", ".join(letters)
    if view.scatters:
        return f"y[{where}]  +=  w[{taps}] {DOT} x[{here}]   for all {taps}"
    return f"y[{here}]  =  {SIGMA} w[{taps}] {DOT} {source}[{where}]   over all {taps}"


def _place(step, letter, motion) -> str:
    """``walk*step + spread*letter + start``, as one writes it."""
    walk, spread, start = motion
    text = f"{walk}{DOT}{step}" if walk > 1 else str(step)
    tap = letter if abs(spread) == 1 else f"{abs(spread)}{DOT}{letter}"
    terms = [(spread, tap), (start, str(abs(start)))]
    for sign, term in terms if spread > 0 else reversed(terms):
        text += f" {'+' if sign > 0 else MINUS} {term}" if sign else ""
    return text
