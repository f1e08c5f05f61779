"""`python -m loopconv explain`: one setting in words: its sizes, who reads what, the way back, and the work."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from math import prod
from textwrap import wrap

from loopconv import cli, geometry
from loopconv.cases import Case
from loopconv.einsum import letters_of
from loopconv.explain import geometry_of, preimage_sizes
from loopconv.text_diagrams import WIDTH, Setting, is_countable, products, reads

BYTES = 4  # of a float32
DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0, "output_size": None}


def run(arguments: argparse.Namespace) -> int:
    """Print the explanation, and write what else `arguments` ask for; the exit status."""
    try:
        case = case_of(arguments)
        text = explain(case)
        files = {name: path for name in ("html", "figure") if (path := getattr(arguments, name)) is not None}
        # All of them are made before one is written, so that a refusal leaves no file.
        made = {name: _asked(name, path, MAKERS[name], case, path) for name, path in files.items()}
        for name, path in files.items():
            _asked(name, path, made[name])
    except ValueError as error:
        arguments.error(str(error))
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    print(text, *(f"\nWrote {path}." for path in files.values()), sep="\n")
    return 0


def _asked(name, path, act, *given):
    """`act(*given)`; what it refuses is said of the option `name`."""
    try:
        return act(*given)
    except ValueError as error:
        raise ValueError(f"--{name}: {error}") from None
    except OSError as error:
        raise ValueError(f"--{name} must be a file that can be written, got '{path}': {error.strerror}") from None


def _picture(case, path):
    """What writes a picture of all steps, or an animation of them."""
    from loopconv import figures
    from loopconv.figures.files import path_problem

    kinds = tuple(dict.fromkeys(figures.STILL + figures.MOVING))
    if path.suffix.lower() not in kinds:
        raise ValueError(f"path must end in one of {' '.join(kinds)}, got '{path}'")
    moving = path.suffix.lower() not in figures.STILL
    if problem := path_problem(path, moving):
        raise ValueError(problem)
    return partial(figures.save, figures.animate(case) if moving else figures.arithmetic(case), path)


def _page(case, path):
    """What writes the explorer."""
    from loopconv import explorer

    setting = _setting(case)
    g = setting.g
    channels, filters = (g.k, g.c) if setting.scatters else (g.c, g.k)
    page = explorer.page({
        "op": setting.op, "input": g.output if setting.scatters else g.input, "kernel": g.kernel, "stride": g.stride,
        "padding": setting.pads, "dilation": g.dilation, "groups": g.groups, "channels": channels, "filters": filters,
        "output_padding": setting.rest if setting.scatters else (0,) * g.rank,
    })  # fmt: skip
    return partial(path.write_text, page, encoding="utf-8")


MAKERS = {"html": _page, "figure": _picture}


def case_of(arguments: argparse.Namespace) -> Case:
    """The call that `arguments` describe, or a ValueError that says why there is none."""
    a = arguments
    sizes = a.input if isinstance(a.input, tuple) else (a.input,)
    if len(sizes) > 3:
        raise ValueError(f"--input must have 1 to 3 axes, got {len(sizes)}")
    if a.channels % a.groups or a.filters % a.groups:
        raise ValueError(f"--groups must divide --channels {a.channels} and --filters {a.filters}, got {a.groups}")
    if not a.transposed and (a.output_padding is not None or a.output_size is not None):
        raise ValueError("--output-padding and --output-size must come with --transposed: a conv has neither")
    kernel = geometry.per_axis("kernel", a.kernel, len(sizes), 1)
    channels = (a.channels, a.filters // a.groups) if a.transposed else (a.filters, a.channels // a.groups)
    settings = {"stride": a.stride, "padding": a.padding, "dilation": a.dilation, "groups": a.groups}
    if a.transposed:
        settings |= {"output_padding": a.output_padding or 0, "output_size": a.output_size}
    op = "conv_transpose" if a.transposed else "conv"
    case = Case("explain", op, (a.channels, *sizes), (*channels, *kernel), settings)
    geometry_of(op, case.x_shape, case.w_shape, **settings, x_name="--input", w_name="--kernel")
    return case


def explain(case: Case) -> str:
    """What `python -m loopconv explain` prints about a case of 1 to 3 spatial axes."""
    setting = _setting(case)
    sections = [_call(setting), _sizes(setting), products(setting), _way_back(setting), _work(setting)]
    return "\n\n".join("\n".join(map(_folded, lines)) for lines in sections)


def _setting(case):
    g = replace(case.geometry, batch=1)
    names = DEFAULTS if case.op == "conv_transpose" else [name for name in DEFAULTS if not name.startswith("output")]
    given = {name: case.settings.get(name, DEFAULTS[name]) for name in names}
    pads = _pads(given["padding"], g)
    rest = tuple(n + lo + hi - span for n, (lo, hi), span in zip(g.input, pads, g.span))
    return Setting(case.op, g, given, pads, rest)


def _folded(line):
    """`line`, which sizes of many digits may make too long."""
    return "\n".join(wrap(line, WIDTH, subsequent_indent=" " * 4, break_on_hyphens=False)) or line


def _pads(padding, g):
    """(lo, hi) on every axis; of the words only 'same' is uneven, and no more than the windows need."""
    padding = geometry.padding_pairs(padding, g.rank)
    if padding == "same":
        return tuple((lo, max(span - n, 0) - lo) for lo, span, n in zip(g.pad, g.span, g.input))
    return tuple((lo, lo) for lo in g.pad) if isinstance(padding, str) else padding


# ---------------------------------------------------------------------------------- the call, the sizes


def _python(op, array, given):
    """A call of the library, without the settings that are defaults."""
    settings = (f", {name}={value!r}" for name, value in given.items() if value != DEFAULTS[name])
    return f"loopconv.{op}({array}, w{''.join(settings)})"


def _call(setting):
    """The call, and the shapes of its arrays."""
    g = setting.g
    large, small, taps = (", ".join(letters).upper() for letters in letters_of(g))
    x, y = (f"(C, {large})", g.x_shape[1:]), (f"(K, {small})", g.y_shape[1:])
    if setting.scatters:
        x, y = y, x
    w = f"(K, {'C' if g.groups == 1 else 'C/groups'}, {taps})", g.w_shape
    arrays = (f"  {name} {axes:<{len(w[0])}}  {shape}" for name, (axes, shape) in zip("xwy", (x, w, y)))
    return [f"y = {_python(setting.op, 'x', setting.given)}", *arrays]


def _sizes(setting):
    """The formulas, and the same formulas with the numbers of every axis."""
    g, rows, notes = setting.g, [], []
    extents = geometry.extents(g.kernel, g.dilation)
    for names, a in setting.axes:
        (lo, hi), rest, s, e = setting.pads[a], setting.rest[a], g.stride[a], extents[a]
        lo, hi = (f"({pad})" if pad < 0 else pad for pad in (lo, hi))
        if setting.scatters:
            filled = f"{g.input[a]} = ({g.output[a]} - 1)*{s} + {e} - {lo} - {hi} + {rest}"
        else:
            filled = f"{g.output[a]} = ({g.input[a]} + {lo} + {hi} - {e}) // {s} + 1"
            if rest:
                notes.append(f"  {names}: rounded down, as windows do not reach the last {rest} of the "
                             f"{g.span[a] + rest} pixels, padding included")  # fmt: skip
        rows.append((names, f"{e} = {g.dilation[a]}*({g.kernel[a]} - 1) + 1", filled))
    if setting.scatters:
        formula = "output = (input - 1)*stride + e - lo - hi + output_padding"
    else:
        formula = "output = (input + lo + hi - e) // stride + 1"
    lines = cli.table(("axis", "e = dilation*(taps - 1) + 1", formula), rows, "<<<").splitlines()
    return ["Size of y, with padding lo before and hi after", *(f"  {line}" for line in lines), *notes]


def _count(number, noun):
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# ---------------------------------------------------------------------------- the way back, and the work


def _way_back(setting):
    """Which sizes of the large side belong to one of the small side, and what says which of them is meant."""
    g, settings = setting.g, dict(setting.given)
    sizes = preimage_sizes(g.output, g.kernel, g.stride, settings["padding"], g.dilation)
    lines = ["The way back"]
    lines += [f"  {names}: {_ambiguity(setting, axis, sizes[axis])}" for names, axis in setting.axes]
    has = "the shape of x but other values: it is the transpose, not the inverse"
    if setting.scatters:
        del settings["output_padding"], settings["output_size"]
        back = _python("conv", "y", settings)
        y_shape = geometry.conv(g.x_shape, g.w_shape, **settings).y_shape
        if y_shape != g.y_shape:
            has = f"shape {y_shape[1:]}, not that of x"
    elif settings["padding"] == "same":
        back = _python("conv_transpose", "y", settings | {"output_size": g.input})
    else:
        rest = setting.rest if len(set(setting.rest)) > 1 else setting.rest[0]
        back = _python("conv_transpose", "y", settings | {"output_padding": rest})
    return [*lines, f"  {back}", f"  has {has}"]


def _ambiguity(setting, axis, sizes):
    """One sentence about the sizes of the large side that a convolution makes the small side of."""
    n, o, rest = setting.g.input[axis], setting.g.output[axis], setting.rest[axis]
    if n not in sizes:
        return f"a conv makes {o} only of {_either(sizes)} pixels; y has {n}, as output_padding {rest} >= stride"
    if len(sizes) == 1:
        large, small = ("y", "x") if setting.scatters else ("x", "y")
        return f"only {n} pixels of {large} give {o} of {small} in a conv: nothing is ambiguous"
    which = f"output_padding {_either(range(rest + sizes[0] - n, rest + sizes[-1] - n + 1))}"
    if setting.given["padding"] == "same":
        which = "output_size"
    here = n if which == "output_size" else rest
    if setting.scatters:
        return f"{which} gives {_either(sizes)} pixels of y, here {n}; a conv makes {o} of each"
    return f"{_either(sizes)} pixels of x give {o} of y; {which} says which, here {here}"


def _either(numbers):
    """A range in words."""
    if len(numbers) > 4:
        return f"{numbers[0]} to {numbers[-1]}"
    return " or ".join(part for part in (", ".join(map(str, numbers[:-1])), str(numbers[-1])) if part)


def _work(setting):
    """Multiply-adds, FLOP and bytes."""
    g, taps = setting.g, prod(setting.g.kernel)
    pixels, pairs = prod(g.output), g.k * (g.c // g.groups)
    sizes = {"x": prod(g.x_shape), "w": prod(g.w_shape), "y": prod(g.y_shape)}
    if setting.scatters:
        sizes["x"], sizes["y"] = sizes["y"], sizes["x"]
    total = BYTES * sum(sizes.values())
    lines = [
        "Work, for one image in float32",
        f"  {_count(g.macs, 'multiply-add')}, {2 * g.macs:,} FLOP: {_count(pixels, 'pixel')} of "
        f"{'x' if setting.scatters else 'y'} * {_count(taps, 'tap')} * {_count(pairs, 'pair')} of channels",
    ]
    if is_countable(g) and (met := pairs * prod(int(reads(g, axis).sum()) for axis in range(g.rank))) < g.macs:
        where = ("pixels of y", "outside") if setting.scatters else ("pixels of x", "padding")
        lines.append(f"  on {where[0]}: {met:,}, {where[1]}: {g.macs - met:,}")
    bytes_ = " + ".join(f"{BYTES * size:,} of {name}" for name, size in sizes.items())
    lines.append(f"  {total:,} bytes, every array once: {bytes_}; {2 * g.macs / total:.3g} FLOP per byte")
    return [*lines, "  as many multiply-adds again for the gradient of x, and again for that of w"]
