"""The explorer: one self-contained HTML page that shows a small convolution and lets its reader change it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Any

from loopconv import explain, geometry

# The block of page.html that says what it starts with, and how much it can show.
_CONFIGURATION = re.compile(r'(?<=<script type="application/json" id="configuration">)[^<]*(?=</script>)')
_NEEDED = ("op", "input", "kernel")
_PER_AXIS = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
_COUNTS = ("channels", "filters", "groups")


def write(path: str | os.PathLike[str], settings: Mapping[str, Any] | None = None) -> None:
    """Write the explorer, a page that needs neither network nor server.

    Parameters
    ----------
    path : path-like
        The HTML file to write.
    settings : mapping, optional
        What the page starts with; without it, a strided convolution of 5 x 5 pixels. 'op' ('conv' or
        'conv_transpose'), 'input' and 'kernel' (one or two sizes each) are needed; 'stride', 'padding',
        'dilation' and 'output_padding' are an int or one per axis, as in `conv_transpose` (padding also (lo, hi)
        pairs, but no words); 'channels' (of the input), 'filters' (channels of the output) and 'groups' are ints,
        by default 1.

    Raises
    ------
    TypeError, ValueError
        As `conv` and `conv_transpose`; also for settings that are unknown, or that the page cannot show: three
        axes, an empty output, or more than fits. No file is written then.
    OSError
        If the file cannot be written.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path, got {geometry.shown(path)}")
    Path(path).write_text(page(settings), encoding="utf-8")


def page(settings: Mapping[str, Any] | None = None) -> str:
    """The text of the page that `write` writes."""
    html = files(__name__).joinpath("page.html").read_text(encoding="utf-8")
    if settings is not None:
        (block,) = _CONFIGURATION.findall(html)
        configuration = json.loads(block)
        configuration["settings"] = _checked(settings, configuration["limits"])
        html = _CONFIGURATION.sub(lambda _: f"\n{json.dumps(configuration)}\n", html)
    return html


def _checked(settings, limits) -> dict[str, Any]:
    """`settings` with everything written out, as the page takes them."""
    if not isinstance(settings, Mapping):
        raise TypeError(f"settings must be a mapping, got {geometry.shown(settings)}")
    known = (*_NEEDED, *_PER_AXIS, *_COUNTS)
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"settings must be among {', '.join(known)}, got {geometry.shown(unknown[0])}")
    if missing := [name for name in _NEEDED if name not in settings]:
        raise ValueError(f"settings must have {', '.join(_NEEDED)}, got none for {missing[0]}")
    sizes, kernel = (geometry.shape_tuple(name, settings[name]) for name in ("input", "kernel"))
    rank = len(sizes)
    if rank not in (1, 2) or len(kernel) != rank:
        raise ValueError(f"the explorer shows one or two axes, got input {sizes} and kernel {kernel}")
    counts = {name: geometry.integer(name, settings.get(name, 1)) for name in _COUNTS}
    axes = {
        name: geometry.per_axis(name, settings.get(name, least), rank, least)
        for name, least in _PER_AXIS.items()
        if name != "padding"
    }
    pads = geometry.padding_pairs(settings.get("padding", 0), rank)
    if isinstance(pads, str):
        raise ValueError(f"the explorer takes padding in pixels, got {pads!r}")
    checked = {"op": settings["op"], "input": sizes, "kernel": kernel, "padding": pads, **axes, **counts}
    _check_limits(checked, limits)
    _check_room(_geometry(checked), checked, limits)
    return checked


def _geometry(checked) -> geometry.Geometry:
    """The geometry of the call that the page shows."""
    channels, filters, groups = (checked[name] for name in _COUNTS)
    if channels % groups or filters % groups:
        raise ValueError(f"groups must divide channels and filters, got groups={groups} for {channels} and {filters}")
    first, second = (channels, filters) if checked["op"] == "conv_transpose" else (filters, channels)
    arguments = {name: checked[name] for name in (*_PER_AXIS, "groups")}
    return explain.geometry_of(
        checked["op"],
        (channels, *checked["input"]),
        (first, second // groups, *checked["kernel"]),
        **arguments,
        x_name="input",
        w_name="kernel",
    )


def _check_limits(checked, limits):
    """Every number has its place on a slider."""
    for name, (least, most) in ((name, limits[name]) for name in checked if name in limits):
        value = checked[name]
        entries = [entry for pair in value for entry in pair] if name == "padding" else value
        if any(not least <= entry <= most for entry in ([entries] if name in _COUNTS else entries)):
            raise ValueError(f"the explorer shows {name} from {least} to {most}, got {value}")


def _check_room(g, checked, limits):
    """The output has pixels, and there are not more of anything than can be seen."""
    transposed = checked["op"] == "conv_transpose"
    input_shape, output_shape = (g.y_shape, g.x_shape) if transposed else (g.x_shape, g.y_shape)
    output = output_shape[2:]
    if min(output) < 1:
        raise ValueError(f"padding must leave an output for the explorer to show, got output size {output}")
    for axis, size in enumerate(output):
        if size > limits["output"]:
            raise ValueError(
                f"the explorer shows at most {limits['output']} output pixels on an axis, got {size} on spatial "
                f"axis {axis}"
            )
    for name, shape in (("input", input_shape), ("output", output_shape)):
        if prod(shape) > limits["values"]:
            raise ValueError(
                f"the explorer shows at most {limits['values']} {name} values over all channels, got {prod(shape)}"
            )
    if g.macs > limits["products"]:
        raise ValueError(f"the explorer shows at most {limits['products']} products, got {g.macs}")
