"""The tiled kernels: every tile at its edges, memory that must not be touched, NaN, threads, and tile operations.

Operands are small integers, so that sums are exact in either dtype and in any order: results are compared for
equality. The halves and quarters of Winograd's F(2x2, 3x3) are exact too; F(4x4, 3x3) has thirds and rounds.
"""

import contextlib
import ctypes
import itertools
import json
import mmap
import os
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache, partial
from math import isfinite, prod, sqrt
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_within, literal, random_array, random_integers, unwritten

import loopconv
from loopconv import bench, geometry, registry
from loopconv.cases import CASES
from loopconv.loops.compile import ForgivingCache, jit, source_hash
from loopconv.tiled import driver, launch, panels, plans, prepared, simd, tiles, workspace
from loopconv.tiled.layout import adjoint_layout, cut_layouts, forward_layout, merged_layout, problem

FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")
SHAPES = tiles.TILES[tiles.registers()]
MIDDLE = SHAPES[len(SHAPES) // 2]
INDIRECT = tiles.INDIRECT_TILES[tiles.registers()]
RESULT = {"forward": "y", "adjoint": "x", "weight": "w"}

# The ways of the direct kernel to its pixels that take phases which are one.
FLAT = tiles.WAYS[:2]

# The kernels that each algorithm is known by.
KERNELS = {
    "direct": ("direct_",),
    "indirect": ("indirect_",),
    "depthwise": ("depthwise_",),
    "winograd2": ("winograd_2_", "winograd_weight_"),
    "winograd4": ("winograd_4_",),
    "outer": ("weight_",),
    "dots": ("dots_",),
}


def depthwise_tile(rows, cols, lanes=tiles.lanes):
    """A choice of this tile where it fits, and else, or for two phases at once, of one column or row."""

    def tile(sizes, columns, F, dtype):
        fitting = rows if rows <= min(P for P, _ in sizes) else 1
        return lanes(dtype), fitting, cols if F == 1 else 1

    return tile


# Tiles where a test is not about them: few, since each is a kernel to compile.
FEW = {
    "direct_layout": lambda t: (0, t.layout),
    "direct_tile": (*MIDDLE, "paneled"),
    "indirect_tile": INDIRECT[-1],
    "winograd_tile": MIDDLE,
    "outer_tile": lambda *_: (0, *MIDDLE, "forward", False),
    # not larger than the numbers of channels and taps
    "dots_tile": lambda K, C, taps, *_: (0, 3, 3) if min(K, taps) >= 3 else (0, 1, 1),
    "depthwise_tile": depthwise_tile(2, 1),
}


def both(shapes, middle=MIDDLE):
    """Parameters (tile, dtype): all shapes in float32, the one in the middle in float64 as well."""
    pairs = [(shape, FLOAT32) for shape in shapes] + [(middle, FLOAT64)]
    names = [f"{'x'.join(map(str, shape))}-{dtype}" for shape, dtype in pairs]
    return pytest.mark.parametrize(("tile", "dtype"), pairs, ids=names)


def forget():
    """Drop every plan that is remembered."""
    registry.forget()
    for module in (driver, plans):
        for value in vars(module).values():
            if hasattr(value, "cache_clear") and value.__module__ == module.__name__:
                value.cache_clear()


def choose(patch, **choices):
    """Set tiles, as functions or as what they return without the cost, and sizes of blocks, where plans read them."""
    for name, value in choices.items():
        if not name.isupper() and not callable(value):
            value = lambda *_, result=(0, *value): result  # noqa: E731
        for module in (plans, tiles):
            if hasattr(module, name) and (name.isupper() or module is plans):
                patch.setattr(module, name, value)
    forget()


@pytest.fixture
def force(monkeypatch):
    """`force(direct_tile=(rows, cols, paneled, gathered), PART=2, ...)`: what plans are made with from then on.

    And all buffers are full of NaN, so that what nobody wrote is not taken for a number.
    """
    room = workspace.Workspace.room

    def unwritten_room(self, name, size, dtype):
        array = room(self, name, size, dtype)
        array[...] = np.nan if dtype.kind == "f" else -1
        return array

    monkeypatch.setattr(workspace.Workspace, "room", unwritten_room)
    choose(monkeypatch, **FEW)
    yield partial(choose, monkeypatch)
    monkeypatch.undo()
    forget()


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that were launched, and what each said, in a list that grows."""
    said, run = [], driver.launch

    def watching(stage, *others):
        said.append((stage.kernel.name, run(stage, *others)))
        return said[-1][1]

    monkeypatch.setattr(driver, "launch", watching)
    return said


def is_run(algorithm, launched):
    """Whether the kernel of the algorithm, and of no other, was launched."""
    names = [name for name, _ in launched]
    return [any(name.startswith(kernel) for name in names) for kernel in KERNELS.values()] == [
        name == algorithm for name in KERNELS
    ]


def ways(contraction, g):
    """(name, algorithm, what to force) of every way to run a call."""
    for algorithm in driver.algorithms(contraction, g):
        if algorithm == "direct":
            for way in tiles.WAYS:
                yield f"direct {way}", algorithm, {"direct_tile": (*MIDDLE, way)}
                if contraction == "adjoint" and way in FLAT and merged_layout(adjoint_layout(problem(g))):
                    forced = {"direct_tile": (*MIDDLE, way), "direct_layout": merged}
                    yield f"direct {way}, merged", algorithm, forced
                if cut_layouts(problem(g), contraction == "adjoint"):
                    yield f"direct {way}, cut", algorithm, {"direct_tile": (*MIDDLE, way), "direct_layout": cut}
        elif algorithm == "indirect":
            yield algorithm, algorithm, {"indirect_layout": whole}
            yield "indirect, cut", algorithm, {"indirect_layout": whole_cut}
        else:
            yield algorithm, algorithm, {}
        if algorithm == "outer" and isfinite(tiles.cut_outer_tile(problem(g), FLOAT32)[0]):
            yield "outer, cut", algorithm, {"outer_tile": (*MIDDLE, "forward", True)}


def merged(t):
    """Its phases as one, where they can be."""
    return 0, merged_layout(t.layout) or t.layout


def cut(t):
    """Cut at the padding on all axes, where there is some."""
    return 0, [t.layout, *cut_layouts(t.p, t.adjoint)][-1]


def whole(t):
    """x as one plane."""
    return 0, t.layout if t.adjoint else forward_layout(t.p, whole=True)


def whole_cut(t):
    """The same, cut at the padding on all axes."""
    return 0, [whole(t)[1], *cut_layouts(t.p, t.adjoint, True)][-1]


def operands(g, dtype, make=random_integers):
    return {name: make(getattr(g, f"{name}_shape"), dtype, seed) for seed, name in enumerate("xwy")}


def small_integers(shape, dtype, seed):
    """Integers of -3 .. 3."""
    return np.trunc(random_integers(shape, dtype, seed) / 3).astype(dtype)


def bias_of(contraction, g, dtype):
    """A bias for the contraction, as keyword arguments; none for the weight gradient."""
    channels = {"forward": g.k, "adjoint": g.c}.get(contraction)
    return {} if channels is None else {"bias": random_integers((channels,), dtype, 3)}


def call(contraction, g, arrays, algorithm=None, **bias):
    """The tiled result, in a new array."""
    name = RESULT[contraction]
    dtype = arrays["x"].dtype
    given = {**arrays, name: unwritten(arrays[name].shape, dtype)}
    registry.select(contraction, "tiled", g, dtype, algorithm)(g, **given, **bias)
    return given[name]


def judged(contraction, g, arrays, **bias):
    """What the reference makes of the same operands, in double precision."""
    wide = {name: array.astype(np.float64) for name, array in {**arrays, **bias}.items()}
    registry.select(contraction, "reference", g, FLOAT64)(g, **wide)
    return wide[RESULT[contraction]]


def rounding(contraction, g, arrays, algorithm):
    """What a result may be off: nothing, except for F(4x4, 3x3), whose 36 products are not integers.

    As `registry.tolerance`, of the sum of the magnitudes that are added up: at most those of 6x6 inputs and 3x3 weights
    that are all as large as the largest, run through the transforms without their signs.
    """
    if algorithm != "winograd4":
        return 0
    side = {name: np.abs(np.array(simd.MATRICES[4, 3, name])).sum(axis=1) for name in ("input", "weight")}
    output = np.abs(np.array(simd.MATRICES[4, 3, "output"])) @ (side["input"] * side["weight"])
    source = arrays["x" if contraction == "forward" else "y"]
    largest = float(np.abs(source).max(initial=0)) * float(np.abs(arrays["w"]).max(initial=0))
    terms = g.terms[contraction]
    if contraction == "adjoint":  # those of one phase
        terms = g.k // g.groups * prod(-(-k // s) for k, s in zip(g.kernel, g.stride))
    roundings = 2 + sqrt(terms + sum(map(len, simd.MATRICES[4, 3, "input"])))
    return roundings * float(np.finfo(source.dtype).eps) * terms / 9 * output.max() ** 2 * largest


def check(contraction, g, dtype, algorithm=None, message=""):
    """The tiled result of integers is that of the reference, exactly, or nearer to it than to any other integer."""
    make = small_integers if algorithm == "winograd4" else random_integers
    arrays, bias = operands(g, dtype, make), bias_of(contraction, g, dtype)
    actual, expected = call(contraction, g, arrays, algorithm, **bias), judged(contraction, g, arrays, **bias)
    tolerance = rounding(contraction, g, arrays, algorithm)
    assert tolerance < 0.5, "a wrong integer would not be noticed"
    assert_within(actual, expected, tolerance, f"{contraction} {algorithm} {message} {g} {dtype}")


def around(*sizes):
    """One less, as many and one more, of each; none below 1."""
    return sorted({size + d for size in sizes for d in (-1, 0, 1)} - {0, -1})


# ------------------------------------------------------------------------------ every tile shape: direct


@both(SHAPES)
@pytest.mark.parametrize("way", tiles.WAYS)
def test_direct_tile_at_its_edges(way, tile, dtype, force):
    """1-D, where the number of result pixels is the flat length that tiles are laid over."""
    rows, cols = tile
    lanes = tiles.lanes(dtype)
    width = cols * lanes
    parts = itertools.cycle((1, 2, 3))
    for M, flat in itertools.product(around(rows), [*around(lanes, width), 2 * width + 1, 5 * width - 1]):
        force(direct_tile=(*tile, way), PART=next(parts))
        check("forward", geometry.conv((1, 2, flat + 2), (M, 2, 3)), dtype, "direct")
        check("adjoint", geometry.conv((1, M, flat), (2, M, 3), padding=1), dtype, "direct")
    for flat, part in itertools.product([*around(width), 3 * width], (1, 2)):
        force(direct_tile=(*tile, way), PART=part)
        check("forward", geometry.conv((1, 2, flat), (2 * rows + 1, 2, 3), padding=1), dtype, "direct")
        for stride in (2, 3, 4):  # phases of the result side by side, one of them short, and ones that no tap reaches
            for pixels in (stride * flat, stride * flat + 1):
                check("adjoint", geometry.conv((1, rows + 1, pixels), (2, rows + 1, 3), stride=stride), dtype, "direct")


def on_primes(k, c):
    """Calls of k and c channels on images of no round sizes."""
    return (
        geometry.conv((2, c, 17, 19), (k, c, 3, 5), padding=(1, 2), stride=(1, 2)),
        geometry.conv((1, c, 41, 37), (k, c, 3, 2), padding=((2, 0), (-1, 3))),
        geometry.conv((1, 2 * c, 11, 31), (2 * k, c, 2, 3), groups=2, dilation=(3, 2)),
        geometry.conv((1, c, 3, 5, 7), (k, c, 2, 3, 2), padding=1, stride=(2, 1, 1)),
        geometry.conv((1, c, 31, 33), (k, c, 4, 3), padding=(1, 0), stride=(2, 3)),
    )


@both(SHAPES)
@pytest.mark.parametrize("way", tiles.WAYS)
def test_direct_tile_on_primes(way, tile, dtype, force):
    force(direct_tile=(*tile, way))
    for contraction, M in itertools.product(("forward", "adjoint"), (5, 13)):
        k, c = (M, 3) if contraction == "forward" else (3, M)
        for g in on_primes(k, c):
            check(contraction, g, dtype, "direct")


@both(SHAPES)
@pytest.mark.parametrize("way", FLAT)
def test_merged_phases_at_the_edges_of_a_tile(way, tile, dtype, force):
    """Which phase has the first pixel, and which the last, depends on the padding and on the size."""
    rows, cols = tile
    width, parts = cols * tiles.lanes(dtype), itertools.cycle((1, 2, 4))
    for M, stride, pixels in itertools.product(around(rows), (2, 3, 4, 5), (2, width - 1, width + 1, 3 * width)):
        force(direct_tile=(*tile, way), direct_layout=merged, PART=next(parts))
        x_size, kernel, padding = stride * pixels + M % stride, M % 2 * stride + stride, ((M % 7, M % 3 - 1),)
        check("adjoint", geometry.conv((1, M, x_size), (2, M, kernel), stride=stride, padding=padding), dtype, "direct")
    for g in (
        geometry.conv((2, 6, 17, 26), (4, 3, 4, 6), stride=(2, 3), padding=((1, 2), (-1, 4)), groups=2),
        geometry.conv((1, 1, 11, 30), (2, 1, 3, 5), stride=(3, 1), padding=(0, 2)),  # a stride that leaves rows whole
        geometry.conv((1, 2, 5, 9, 22), (3, 2, 2, 2, 4), stride=(1, 2, 2), padding=(1, 0, 3)),
        geometry.conv((1, 3, 14, 22), (2, 3, 2, 2), stride=2),  # nothing is copied
        geometry.conv((3, 2, 7, 5), (2, 2, 3, 3), stride=3),
        geometry.conv((1, 2, 9, 2), (2, 2, 4, 4), stride=4, padding=(0, 1)),  # phases without pixels
    ):
        assert merged_layout(adjoint_layout(problem(g)))
        check("adjoint", g, dtype, "direct")


def test_which_phases_are_merged():
    """Those whose taps lie alike, where few result channels leave rows of a tile empty."""
    for k, c, kernel, stride, is_merged in (
        (64, 1, 4, 2, True), (64, 1, 9, 3, True), (64, 64, 4, 2, False), (64, 1, 3, 2, False), (64, 1, 3, 1, False),
    ):  # fmt: skip
        g = geometry.conv((1, c, 64, 64), (k, c, kernel, kernel), stride=stride)
        plan = driver.sum_plan("adjoint", g, FLOAT32, "direct")
        assert any("merged" in stage.kernel.name for stage in plan.prepare) == is_merged


@both(SHAPES)
@pytest.mark.parametrize("way", tiles.WAYS)
def test_cut_at_the_padding(way, tile, dtype, force):
    """Runs of results that see the same taps, of one pixel or none, in arrays that are read in place or copied."""
    rows, cols = tile
    width, parts = cols * tiles.lanes(dtype), itertools.cycle((1, 2, 4))
    for n, padding in itertools.product((1, 2, width - 1, width + 3, 3 * width), ((1, 1), (0, 2), (4, 1), (-1, 3))):
        force(direct_tile=(*tile, way), direct_layout=cut, PART=next(parts))
        for contraction, stride, dilation in (
            ("forward", 1, 2),
            ("forward", 2, 1),
            ("adjoint", 1, 1),
            ("adjoint", 3, 1),
        ):
            if n + sum(padding) > 2 * dilation:
                settings = {"padding": (padding,), "stride": stride, "dilation": dilation}
                check(
                    contraction, geometry.conv((2, rows + 1, n), (rows + 1, rows + 1, 3), **settings), dtype, "direct"
                )
    for g in (
        geometry.conv((2, 6, 7, 9), (4, 3, 3, 5), padding=(1, 2), groups=2),
        geometry.conv((1, 2, 12, 12), (3, 2, 3, 3), padding=6, dilation=6),
        geometry.conv((1, 2, 4, 5, 6), (3, 2, 3, 1, 2), padding=(1, 0, 1), stride=(1, 1, 2)),
        geometry.conv_transpose((3, 4, 1, 1), (4, 3, 4, 4)),  # one tap for each result
        geometry.conv((3, 2, 2, 2), (3, 2, 3, 3), padding=4),  # none for some
    ):
        assert cut_layouts(problem(g), True) or cut_layouts(problem(g), False)
        for contraction in ("forward", "adjoint"):
            check(contraction, g, dtype, "direct")


def test_which_calls_are_cut():
    """Those that otherwise would mostly multiply zeros; for the indirect kernel, all that save more than they cost."""
    for sizes, settings, is_cut, is_indirect_cut in (
        ((28, 256), {"padding": 12, "dilation": 12}, True, True),
        ((28, 256), {"padding": 1}, False, True),
        ((1, 256), {"padding": 1}, True, True),
    ):
        pixels, channels = sizes
        g = geometry.conv((1, channels, pixels, pixels), (channels, channels, 3, 3), **settings)
        for contraction in ("forward", "adjoint"):
            t = plans.task(g, contraction, FLOAT32)
            assert (tiles.direct_layout(t)[1] is not t.layout) == is_cut
            assert (tiles.indirect_layout(t)[1] is not whole(t)[1]) == is_indirect_cut


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_every_fourth_pixel(dtype, force):
    """Rows of a vector less one, and so on; of so few that vectors would end far behind them; of slices as well."""
    for n, rows in itertools.product((9, 13, 16, 17, *around(4 * tiles.lanes(dtype)), 150), (1, 5, 23)):
        for shape, kernel, stride in (((rows, n), (1, 4), (1, 4)), ((2, rows, n), (1, 2, 5), (1, 1, 4))):
            if rows >= kernel[-2]:
                g = geometry.conv((2, 3, *shape), (5, 3, *kernel), padding=(*(0 for _ in kernel[1:]), 1), stride=stride)
                check("forward", g, dtype, "direct")
                check("weight", g, dtype)


@pytest.mark.parametrize("way", tiles.WAYS)
@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
def test_direct_in_chunks_parts_and_shares(contraction, way, force, monkeypatch):
    """Of the channels, of the pixels and of the result channels."""
    made = []
    for name in ("flattened", "gathered", "by_rows"):
        tiling = getattr(panels, name)
        monkeypatch.setattr(panels, name, lambda *given, tiling=tiling: made.append(tiling(*given)) or made[-1])
    C, M = 5, 2 * MIDDLE[0] + 1
    c, k = (C, M) if contraction == "forward" else (M, C)
    some = 2 * (9 if way == "gathered" else 4) * MIDDLE[1] * tiles.vector_bytes()  # about two channels' panels
    for panel_bytes, sums_bytes, units in itertools.product((1, some, 20 << 10), (1, 96 << 10), (1, 16)):
        for part in (1, 2, 4):
            sizes = {"PANEL_BYTES": panel_bytes, "SUMS_BYTES": sums_bytes, "UNITS": units, "PART": part}
            force(direct_tile=(*MIDDLE, way), **sizes)
            for g in (
                geometry.conv((1, c, 23, 19), (k, c, 3, 2)),
                geometry.conv((2, c, 13, 37), (k, c, 3, 3), padding=(2, 1), stride=(1, 2)),
                geometry.conv((1, 2 * c, 12, 30), (2 * k, c, 2, 3), padding=(0, 2), dilation=(2, 1), groups=2),
            ):
                check(contraction, g, FLOAT32, "direct", str(sizes))
    assert {tiling.chunk for tiling in made} >= {1, C}
    assert any(1 < tiling.chunk < C for tiling in made)
    assert max(phase.tiles for tiling in made for phase in tiling.phases) > 4


@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
def test_some_images_at_a_time(contraction, force):
    """As many as divide the batch; in calls and plans, with a bias, and where one image is not finite."""
    for batch, settings in itertools.product((24, 23), ({"padding": 1}, {"stride": 2}, {"groups": 2, "padding": 1})):
        g = geometry.conv((batch, 16, 25, 27), (16, 16 // settings.get("groups", 1), 3, 3), **settings)
        for algorithm in driver.algorithms(contraction, g):
            force(IMAGES_BYTES=1 << 30)
            size = 4 * sum(driver.sum_plan(contraction, g, FLOAT32, algorithm).rooms.values())
            force(IMAGES_BYTES=size // batch * 5, IMAGES_WORK=1)
            check(contraction, g, FLOAT32, algorithm)
            images = driver.sum_plan(contraction, g, FLOAT32, algorithm).images
            assert images == (4 if batch == 24 and size else None)  # what has no buffers needs not
            arrays = operands(g, FLOAT32)
            key, result = ("y", "x") if contraction == "adjoint" else ("x", "y")
            for value in (1, np.nan):
                arrays[key][7, 3, 2, 2] = value
                expected = call(contraction, g, arrays, "direct")
                assert np.isfinite(expected[6]).all()
                assert np.isfinite(expected[7]).all() == np.isfinite(value)
                out = np.empty_like(arrays[result])
                prepared.Prepared(contraction, g, arrays["w"], None, algorithm).run(arrays[key], out)
                assert np.array_equal(np.isnan(out), np.isnan(expected))
                tolerance = rounding(contraction, g, operands(g, FLOAT32), algorithm)
                assert_within(np.nan_to_num(out), np.nan_to_num(expected), tolerance)


def test_shares_depend_on_what_sums_may_take(force):
    g = geometry.conv((2, 5, 23, 19), (3 * MIDDLE[0], 5, 3, 2), groups=1)
    units = []
    for sizes in ({"SUMS_BYTES": 1 << 20, "UNITS": 1}, {"SUMS_BYTES": 1, "UNITS": 1}):
        force(**sizes)
        units.append(driver.sum_plan("forward", g, FLOAT32, "direct").call[-1].units)
    assert units[1] == 3 * units[0]


# --------------------------------------------------------------------------- every tile shape: indirect


@both(INDIRECT, INDIRECT[-1])
@pytest.mark.parametrize("layout", [whole, whole_cut])
def test_indirect_tile_at_its_edges(layout, tile, dtype, force):
    """Pixels around a tile and around a vector, of channels that end with a vector or within the last."""
    rows, cols = tile
    lanes, parts = tiles.lanes(dtype), itertools.cycle((1, 2, 3))
    for M, pixels in itertools.product(around(lanes * cols)[:2], around(rows, lanes, 3 * rows)):
        force(indirect_tile=tile, indirect_layout=layout, PART=next(parts), INDIRECT_SUMS_BYTES=1)
        check("forward", geometry.conv((1, 2, pixels + 2), (M, 2, 3)), dtype, "indirect")
        check("adjoint", geometry.conv((1, M, pixels), (2, M, 3), padding=1), dtype, "indirect")
    M = 2 * lanes * cols - lanes // 2
    force(indirect_tile=tile, indirect_layout=layout)
    for contraction in ("forward", "adjoint"):
        k, c = (M, 3) if contraction == "forward" else (3, M)
        for g in (
            *on_primes(k, c),
            geometry.conv((1, c, 12, 12), (k, c, 3, 3), padding=6, dilation=6),
            geometry.conv((5, c, 4, 5), (k, c, 3, 3), padding=1),  # small images side by side
            geometry.conv((3, c, 2, 2), (k, c, 3, 3), padding=4),  # results of no taps
            geometry.conv((1, c, 20, 21), (k, c, 1, 1), stride=2),  # nothing is copied
            geometry.conv((1, c, 9, 10), (k, c, 2, 2), stride=(1, 5)),  # phases that no tap reaches
        ):
            check(contraction, g, dtype, "indirect")


@pytest.mark.parametrize("layout", [whole, whole_cut])
@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
def test_indirect_in_chunks_parts_and_shares(contraction, layout, force):
    """Of the channels, of the pixels and of the result channels."""
    seen = set()
    C, M = 7, 3 * tiles.lanes(FLOAT32) - 1
    c, k = (C, M) if contraction == "forward" else (M, C)
    for chunk, sums, units, part in itertools.product((1, 4000, 512 << 10), (1, 192 << 10), (1, 16), (1, 4)):
        sizes = {"CHUNK_BYTES": chunk, "INDIRECT_SUMS_BYTES": sums, "UNITS": units, "PART": part}
        sizes["REACH_BYTES"] = 0 if part == 1 else 1 << 20  # with and without asking for pixels
        force(indirect_layout=layout, **sizes)
        for g in (
            geometry.conv((1, c, 23, 19), (k, c, 3, 2)),
            geometry.conv((2, c, 13, 37), (k, c, 3, 3), padding=(2, 1), stride=(1, 2)),
            geometry.conv((1, 2 * c, 12, 30), (2 * k, c, 2, 3), padding=(0, 2), dilation=(2, 1), groups=2),
        ):
            check(contraction, g, FLOAT32, "indirect", str(sizes))
            numbers = driver.sum_plan(contraction, g, FLOAT32, "indirect").call[-1].numbers
            seen |= {("chunk", numbers[5]), ("parts", min(numbers[9], 2)), ("shares", numbers[10])}
    assert seen >= {("chunk", 1), ("chunk", C), ("parts", 1), ("parts", 2), ("shares", 1), ("shares", 3)}
    assert any(name == "chunk" and 1 < number < C for name, number in seen)


# ------------------------------------------------------------------------- every tile shape: depthwise


@both(tiles.DEPTHWISE_TILES, (4, 1))
@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
def test_depthwise_tile_at_its_edges(contraction, tile, dtype, force):
    force(depthwise_tile=depthwise_tile(*tile))
    rows, cols = tile
    lanes = tiles.lanes(dtype)
    # P x Q result pixels: less than a tile, less than a vector, and all around
    for P, Q in itertools.product(around(rows), around(1, lanes, cols * lanes)):
        check(contraction, geometry.conv((1, 3, P, Q), (3, 1, 3, 3), padding=1, groups=3), dtype, "depthwise")
    for P, Q in (
        (2 * rows + 1, 3),
        (2 * rows + 1, cols * lanes + 3),
        (11, 2 * cols * lanes + 1),
        (2 * rows, 2 * lanes),
    ):
        for stride in (1, 2, 3, (2, 1), (1, 2)):
            g = geometry.conv((2, 2, P, Q), (2, 1, 3, 2), padding=(1, 2), stride=stride, groups=2)
            check(contraction, g, dtype, "depthwise")
    for g in (
        geometry.conv((2, 3, 37), (3, 1, 5), groups=3, padding=2, dilation=3),
        geometry.conv((2, 2, 5, 7, 19), (2, 1, 3, 2, 3), groups=2, padding=(1, 0, 2), stride=(2, 1, 1)),
        geometry.conv((3, 4, 5, 6), (4, 1, 3, 3), groups=4, padding=1),  # small images side by side
        geometry.conv((1, 1, 23, 29), (1, 1, 4, 5)),  # one group of one channel
        geometry.conv((1, 3, 17, 21), (3, 1, 3, 3), groups=3, padding=((-2, 1), (3, -1)), dilation=(2, 1)),
        geometry.conv((1, 2, 20, 21), (2, 1, 2, 2), groups=2, stride=5),  # phases that no tap reaches
        geometry.conv((1, 3, 9, 1), (3, 1, 3, 5), groups=3, padding=4),  # taps of several columns in one place
        geometry.conv(
            (1, 8, 5, 8), (8, 1, 7, 1), groups=8, stride=2, padding=((0, 3), (3, -1))
        ),  # planes whole rows long
    ):
        check(contraction, g, dtype, "depthwise")


@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
def test_depthwise_columns_of_any_number_of_taps(contraction, force):
    force(depthwise_tile=depthwise_tile(4, 1, tiles.few_lanes))
    for taps in range(1, 2 * simd.MOST_TAPS + 2):
        for stride, dilation in ((1, 1), (2, 1), (3, 1), (1, 2), (2, 4)):
            g = geometry.conv(
                (1, 2, 60, 9), (2, 1, taps, 2), groups=2, padding=1, stride=(stride, 1), dilation=(dilation, 1)
            )
            check(contraction, g, FLOAT32, "depthwise")


@pytest.mark.parametrize("room", [1, 600, 8 << 10])
def test_depthwise_channels_one_by_one_or_several_before_their_sums(room, force):
    force(TOGETHER_BYTES=room)
    for size, stride in itertools.product((1, 3, 7, 8), (1, 2)):
        g = geometry.conv((2, 9, size, size), (9, 1, 3, 3), groups=9, padding=1, stride=stride)
        for contraction in ("forward", "adjoint"):
            check(contraction, g, FLOAT32, "depthwise")


# -------------------------------------------------------------------- every tile shape: weight gradients


def outer_tile(rows, cols, contraction, is_cut=False):
    return lambda p, dtype: (0, rows, cols, contraction if max(p.stride) == 1 else "forward", is_cut)


@both((*SHAPES, (1, 1)))
def test_outer_tile_at_its_edges(tile, dtype, force):
    rows, cols = tile
    width = cols * tiles.lanes(dtype)
    for contraction in ("forward", "adjoint"):  # with channels of y in vectors, and of x
        force(outer_tile=outer_tile(rows, cols, contraction))
        for few, many in itertools.product(around(rows), around(width)):
            k, c = (many, few) if contraction == "forward" else (few, many)
            check("weight", geometry.conv((1, c, 7), (k, c, 1)), dtype, "outer", contraction)
            check("weight", geometry.conv((1, c, 7), (k, c, 2), padding=1), dtype, "outer", contraction)
        k, c = (width + 1, rows) if contraction == "forward" else (rows, width + 1)
        for g in (
            geometry.conv((2, c, 5, 7), (k, c, 3, 2), padding=(1, 2), stride=(1, 2)),
            geometry.conv((1, 2 * c, 5, 4), (2 * k, c, 2, 2), groups=2, dilation=2),
            geometry.conv((2, c, 6, 19), (k, c, 3, 2), padding=(1, -2)),
            geometry.conv((1, c, 2, 3, 5), (k, c, 2, 1, 2), stride=(1, 2, 1)),
            geometry.conv((1, c, 2, 3, 5), (k, c, 2, 1, 2), padding=1),
            geometry.conv((1, c, 2, 1031), (k, c, 1, 2)),  # more pixels of a row than one piece
            geometry.conv((3, c, 4, 5), (k, c, 1, 1)),  # small images side by side
            geometry.conv((3, c, 4, 5), (k, c, 3, 2), padding=1),
        ):
            check("weight", g, dtype, "outer", contraction)


@both((*tiles.OUTER_TILES[32], (1, 1)))
def test_outer_products_cut_at_the_padding(tile, dtype, force):
    """Rows of a tile are channels of one tap, summed over the pixels that see x by it, of which there may be none."""
    rows, cols = tile
    force(outer_tile=outer_tile(rows, cols, "forward", True))
    for c, k in itertools.product(around(rows, 2 * rows), (1, cols * tiles.lanes(dtype) + 1)):
        check("weight", geometry.conv((1, c, 5, 7), (k, c, 2, 3), padding=(1, 2)), dtype, "outer")
    for g in (
        geometry.conv((2, rows + 1, 9, 11), (3, rows + 1, 3, 3), padding=4, dilation=(3, 4), stride=(2, 1)),
        geometry.conv((1, 6, 5, 4), (8, 3, 4, 4), groups=2, padding=((3, 0), (1, 5))),
        geometry.conv((2, rows, 6, 19), (5, rows, 3, 2), padding=(3, -2)),
        geometry.conv((1, 3, 2, 3, 5), (4, 3, 2, 3, 2), stride=(1, 2, 1), padding=2),
        geometry.conv((1, 2, 2, 1031), (4, 2, 1, 5), padding=(0, 9)),  # more pixels of a row than one piece
        geometry.conv((3, 4, 4, 5), (9, 4, 3, 2), padding=1),  # small images side by side
        geometry.conv((1, 2, 9), (3, 2, 3), padding=20, dilation=9),  # taps that see nothing
    ):
        check("weight", g, dtype, "outer")


def test_which_outer_products_are_cut():
    def is_cut(g):
        return tiles.outer_tile(problem(g), FLOAT32)[-1]

    assert is_cut(geometry.conv((1, 512, 28, 28), (256, 512, 3, 3), padding=12, dilation=12))
    assert not is_cut(geometry.conv((1, 64, 56, 56), (64, 64, 3, 3), padding=1))  # hardly anything is saved
    assert not is_cut(geometry.conv((1, 64, 28, 28), (64, 64, 3, 3)))
    # results that see nothing but padding: a gradient that is not finite would not be noticed there
    assert not is_cut(geometry.conv((1, 64, 8, 8), (64, 64, 3, 3), padding=12, dilation=2))


@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
def test_weight_in_pieces_chunks_groups_and_parts(contraction, force, launched):
    seen = set()
    for pixels, totals, units in itertools.product((1, 3000, 24 << 10), (1, 64 << 10), (1, 4, 64)):
        sizes = {"PIXELS_BYTES": pixels, "TOTALS_BYTES": totals, "UNITS": units}
        force(outer_tile=outer_tile(*MIDDLE, contraction), **sizes)
        for g in (
            geometry.conv((2, 7, 61, 47), (2 * MIDDLE[0] + 1, 7, 3, 3), padding=1),
            geometry.conv((2, 7, 5, 6, 7), (9, 7, 1, 1, 1)),
            geometry.conv((5, 7, 5, 6), (9, 7, 2, 2)),  # small images side by side
        ):
            launched.clear()
            check("weight", g, FLOAT32, "outer", str(sizes))
            seen.add("add_up" in [name for name, _ in launched])
    assert seen == {False, True}  # one part, and several


def test_weight_of_few_pixels_in_many_parts(force):
    """Without gaps the pixels are one row, which may be fewer pieces than there are units of work to be had."""
    g = geometry.conv((1, 128, 14, 13), (120, 128, 1, 1))
    for pixels, units in itertools.product((1, 24 << 10, 1 << 20), (16, 1000)):
        force(PIXELS_BYTES=pixels, UNITS=units)
        check("weight", g, FLOAT32, "outer", f"{pixels} {units}")


@both(((1, 1), (1, 9), (3, 3), (5, 1)), (3, 3))
def test_dots_tile_at_its_edges(tile, dtype, force):
    force(dots_tile=tile)
    rows, cols = tile
    lanes = tiles.lanes(dtype)
    for K, taps in itertools.product((rows, rows + 1, 2 * rows + 1), {1, cols - 1, cols, cols + 1, 2 * cols + 1} - {0}):
        for pixels in around(lanes):
            check("weight", geometry.conv((1, 1, pixels + taps - 1), (K, 1, taps)), dtype, "dots")
    for pixels in around(lanes, 2 * lanes):
        settings = {"padding": (1, cols), "stride": (2, 1), "groups": 2}
        check("weight", geometry.conv((2, 4, 5, pixels), (2 * rows, 2, 3, cols), **settings), dtype, "dots")
    check("weight", geometry.conv((1, 2, 3, 4, 37), (rows, 2, 2, 1, cols), dilation=(1, 1, 2)), dtype, "dots")


COLUMNS = [(taps, cols) for taps, most in tiles.DEPTHWISE_COLUMNS[32].items() for cols in most]


@both(COLUMNS, (3, 3))
def test_depthwise_columns_of_the_weight_gradient(tile, dtype, force, launched):
    taps, cols = tile
    for lanes in {tiles.few_lanes(dtype), tiles.lanes(dtype)}:
        force(depthwise_weight_tile=lambda *_, lanes=lanes: (lanes, taps, cols))
        for P, Q in itertools.product((1, 2, taps, taps + 3), around(lanes, 2 * lanes)):
            settings = {"padding": (taps - 1, 1), "groups": 3}
            check("weight", geometry.conv((2, 3, P, Q), (3, 1, taps, 2), **settings), dtype, "depthwise")
        for g in (
            geometry.conv((1, 2, 3 * taps, 50), (2, 1, taps, 2 * cols + 1), groups=2),
            geometry.conv((3, 2, 23, 41), (2, 1, taps, 3), groups=2, stride=2, padding=(2, 1)),
            geometry.conv(
                (1, 2, 23, 41), (2, 1, taps, 3), groups=2, stride=(3, 4), dilation=2, padding=((0, 3), (2, -1))
            ),
            geometry.conv((2, 2, 4, 9, 19), (2, 1, 2, taps, 2), groups=2, padding=1),
            geometry.conv((1, 3, 70), (3, 1, 11), groups=3, padding=5),
            geometry.conv((1, 1, 29, 31), (1, 1, taps, 5)),
        ):
            check("weight", g, dtype, "depthwise")
    assert is_run("depthwise", launched)


def test_depthwise_columns_are_cut():
    """More taps than a tile has are several columns; and rows that are shorter than half a vector take shorter ones."""
    g = geometry.conv((2, 3, 30, 31), (3, 1, 3 * simd.MOST_TAPS + 1, 3), groups=3, padding=4)
    check("weight", g, FLOAT32, "depthwise")
    for Q, lanes in ((1, tiles.few_lanes(FLOAT32)), (4 * tiles.lanes(FLOAT32), tiles.lanes(FLOAT32))):
        assert tiles.depthwise_weight_tile(Q, [3, 3, 3], FLOAT32)[0] == lanes


def test_few_units_are_ones_that_threads_share_evenly():
    assert [round(tiles.unevenness(units), 2) for units in (1, 2, 3, 4, 7, 15, 16)] == [2, 1.25, 1.17, 1, 1.07, 1.03, 1]
    assert [tiles.shared_parts(1, parts, 20) for parts in (1, 3, 4, 7, 15, 17)] == [4, 4, 4, 8, 15, 17]
    assert tiles.shared_parts(1, 3, 3) == 3
    for contraction in ("forward", "adjoint"):
        g = geometry.conv((1, 64, 27, 27), (192, 64, 5, 5), padding=2)
        stage = driver.sum_plan(contraction, g, FLOAT32, "indirect").call[-1]
        assert tiles.unevenness(stage.units) <= tiles.UNEVEN


def test_dots_in_parts(force, launched):
    g = geometry.conv((2, 2, 97, 161), (3, 2, 5, 5), padding=2)
    for units, several in ((1, False), (64, True)):
        force(UNITS=units)
        launched.clear()
        check("weight", g, FLOAT32, "dots")
        assert ("add_up" in [name for name, _ in launched]) == several


# --------------------------------------------------------------------------- every tile shape: Winograd

WINOGRAD = (
    [((n, p, p), 1) for n in (1, 2) for p in range(1, 6)]
    + [((n, p, q), 1) for n in (1, 2) for p, q in ((1, 2), (2, 1), (1, 35), (13, 1))]
    + [((1, p, q), pad) for p, q in ((3, 3), (4, 5), (7, 67), (18, 17), (5, 34)) for pad in (0, 1, 2)]
    + [((2, 7, 5), ((0, 2), (3, 1))), ((3, 6, 9), ((2, 0), (0, 1))), ((1, 8, 9), ((-1, -2), (-2, 1)))]
    + [((1, 37, 33), 1), ((2, 33, 32), 0), ((1, 34, 35), 1), ((1, 36, 36), 1)]  # images that are not folded
)  # fmt: skip


@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
@pytest.mark.parametrize(
    ("m", "tile", "dtype"),
    [(2, SHAPES[0], FLOAT32), (2, SHAPES[-1], FLOAT32), *itertools.product((2, 4), [MIDDLE], (FLOAT32, FLOAT64))],
)
def test_winograd_tile_on_odd_sizes(contraction, m, tile, dtype, force, launched):
    force(winograd_tile=tile)
    rows = tile[0]
    for at, ((n, p, q), padding) in enumerate(WINOGRAD):
        M, groups = (rows, rows + 1, max(rows - 1, 1), 1)[at % 4], 1 + at % 3
        c, k = (2, M) if contraction == "forward" else (M, 2)
        g = geometry.conv((n, c * groups, p, q), (k * groups, c, 3, 3), padding=padding, groups=groups)
        check(contraction, g, dtype, f"winograd{m}")
    c, k = (3, rows + 1) if contraction == "forward" else (rows + 1, 3)
    for g in (
        geometry.conv((2, c, 3, 5, 7), (k, c, 1, 3, 3), padding=(0, 1, 1)),
        geometry.conv((1, c, 5, 6, 35), (k, c, 3, 3, 3), padding=1),
        geometry.conv((2, c, 7, 4, 5), (k, c, 2, 3, 3), padding=((0, 2), (1, 0), (2, 1)), dilation=(3, 1, 1)),
    ):
        check(contraction, g, dtype, f"winograd{m}")
    assert is_run(f"winograd{m}", launched)  # else the direct kernel has covered up what an unwritten number did


# Strides, dilations and kernels whose phases have stencils of all kinds of sizes.
STENCILS = [
    geometry.conv((1, 3, 14, 15), (5, 3, 3, 3), padding=1, stride=2),
    geometry.conv((2, 4, 9, 13), (6, 2, 5, 5), padding=2, stride=2, groups=2),
    geometry.conv((2, 3, 11, 8), (4, 3, 4, 4), padding=1, stride=2),
    geometry.conv((1, 2, 17, 40), (3, 2, 6, 3), padding=(2, 0), stride=(2, 1)),
    geometry.conv((1, 3, 10, 13), (2, 3, 4, 5), padding=((3, 0), (1, 2)), stride=(3, 2)),
    geometry.conv((1, 2, 5, 7), (3, 2, 6, 6), padding=3, stride=3),
    geometry.conv((1, 2, 2, 3), (3, 2, 6, 6), padding=((2, 2), (2, 3)), stride=3),  # phases without pixels
    geometry.conv((1, 3, 9, 12), (2, 3, 1, 3), stride=(2, 1)),  # and without taps
    geometry.conv((1, 3, 12, 13), (5, 3, 3, 3), padding=2, dilation=2),
    geometry.conv((2, 4, 11, 10), (6, 2, 3, 3), padding=(1, 4), dilation=(2, 3), groups=2),
    geometry.conv((1, 2, 19, 20), (3, 2, 3, 2), padding=((7, -2), (0, 5)), dilation=(7, 5)),
    geometry.conv((1, 2, 9, 35), (3, 2, 2, 2)),
    geometry.conv((1, 2, 12, 9), (3, 2, 3, 1), padding=(1, 0)),
    geometry.conv((2, 3, 201), (4, 3, 3), padding=1),
    geometry.conv((1, 3, 203), (4, 3, 2), dilation=4),
    geometry.conv((2, 3, 157), (4, 3, 16), padding=4, stride=8),
    geometry.conv((1, 3, 5, 9, 11), (4, 3, 3, 3, 3), padding=1, stride=2),
    geometry.conv((2, 2, 5, 8, 9), (3, 2, 3, 4, 3), padding=1, stride=(1, 2, 1)),
    geometry.conv((1, 2, 7, 8, 9), (3, 2, 2, 3, 3), padding=(0, 2, 2), dilation=(3, 2, 2)),
]


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("contraction", registry.CONTRACTIONS)
def test_winograd_of_all_stencils(contraction, dtype, force, launched):
    force(PRODUCTS_BYTES=1, PART_TILES=2)
    for g in STENCILS[:: 1 if dtype == FLOAT32 else 6]:
        for m in (2, 4):
            if f"winograd{m}" in driver.algorithms(contraction, g):
                launched.clear()
                check(contraction, g, dtype, f"winograd{m}")
                assert is_run(f"winograd{m}", launched), g


@pytest.mark.parametrize("m", [2, 4])
def test_winograd_in_parts_shares_and_groups(m, force, launched):
    g = geometry.conv((1, 5, 61, 47), (3 * MIDDLE[0] + 1, 5, 3, 3), padding=1)
    counts = set()
    for inputs, products, units in itertools.product((1, 20_000, 256 << 10), (1, 128 << 10), (1, 16)):
        sizes = {"INPUTS_BYTES": inputs, "PRODUCTS_BYTES": products, "UNITS": units}
        force(**sizes)
        counts.add(driver.sum_plan("forward", g, FLOAT32, f"winograd{m}").call[-1].units)
        for contraction in ("forward", "adjoint"):
            check(contraction, g, FLOAT32, f"winograd{m}", str(sizes))
    assert len(counts) >= 3  # neither parts nor shares, one of them, both
    assert is_run(f"winograd{m}", launched)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
def test_winograd_of_weights_that_serve_one_unit(contraction, dtype):
    """Plain calls transform them where they are used, plans before; the bits are the same."""
    for m, groups, channels in itertools.product((2, 4), (1, 3), (25, 33)):
        g = geometry.conv((1, 26 * groups, 4, 5), (channels * groups, 26, 3, 3), padding=1, groups=groups)
        assert not driver.sum_plan(contraction, g, dtype, f"winograd{m}").kept
        if m == 2:
            check(contraction, g, dtype, "winograd2")
        given, name = operands(g, dtype), RESULT[contraction]
        planned = unwritten(given[name].shape, dtype)
        plan = prepared.Prepared(contraction, g, given["w"], None, f"winograd{m}")
        plan.run(given["y" if contraction == "adjoint" else "x"], planned)
        assert np.array_equal(call(contraction, g, given, f"winograd{m}"), planned)


@pytest.mark.parametrize(("tile", "dtype"), [(SHAPES[0], FLOAT32), (MIDDLE, FLOAT32), (MIDDLE, FLOAT64)])
@pytest.mark.parametrize("swapped", [False, True], ids=["y-x", "x-y"])
def test_winograds_weight_gradient_on_odd_sizes(swapped, tile, dtype, force, launched):
    (rows, cols), n = tile, tiles.lanes(dtype)
    channels, width = 2 * n, cols * n
    for at, ((images, p, q), padding) in enumerate(WINOGRAD):
        parts = 1 + (at % 2 if p * q > 99 else 0)  # none is empty
        force(winograd_weight_tile=(rows, cols, channels, swapped, (1, 7, 64)[at % 3], parts))
        a, b = (channels - 1, 1, channels + rows, channels)[at % 4], (1, width + 1, 2, width - 1)[at % 4]
        (c, k), groups = (a, b) if swapped else (b, a), 1 + at % 2
        g = geometry.conv((images, c * groups, p, q), (k * groups, c, 3, 3), padding=padding, groups=groups)
        check("weight", g, dtype, "winograd2")
    for g in (
        geometry.conv((2, 3, 3, 5, 7), (5, 3, 1, 3, 3), padding=(0, 1, 1)),
        geometry.conv((1, 2, 5, 6, 35), (3, 2, 3, 3, 3), padding=1),
        geometry.conv((2, 3, 7, 4, 5), (2, 3, 2, 3, 3), padding=((0, 2), (1, 0), (2, 1)), dilation=(3, 1, 1)),
        geometry.conv((2, 3, 14, 13), (5, 3, 3, 3), padding=1, stride=2),
        geometry.conv((1, 4, 11, 13), (2, 2, 3, 3), padding=(1, 3), dilation=(2, 3), groups=2),
    ):
        check("weight", g, dtype, "winograd2")
    assert is_run("winograd2", launched)  # and outer products have covered up nothing


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_rounding_of_winograds_weight_gradient(dtype):
    """As that of outer products, wherever it is chosen: few pixels, and padding that some taps hardly get out of."""
    chosen = 0
    for images, size, padding in itertools.product((1, 5), (6, 7, 9, 16, 40), range(5)):
        taps, stride, dilation = ((3, 1, 1), (3, 2, 1), (3, 1, 2), (4, 2, 1))[(size + padding) % 4]
        settings = {"padding": padding, "stride": stride, "dilation": dilation}
        g = geometry.conv((images, 32, size, size), (33, 32, taps, taps), **settings)
        arrays = operands(g, dtype, random_array)
        magnitude = judged("weight", g, {name: np.abs(array) for name, array in arrays.items()})
        tolerance = registry.tolerance(g, "weight", dtype) * magnitude
        assert_within(call("weight", g, arrays), judged("weight", g, arrays), tolerance, str(g))
        chosen += driver.preferred_product(g, dtype) == "winograd2"
    assert 10 < chosen < 50


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
def test_rounding_of_winograd(contraction, dtype, force):
    """F(2x2, 3x3) as the direct kernel; F(4x4, 3x3) within ten times its error."""
    g = geometry.conv((1, 32, 21, 19), (24, 32, 3, 3), padding=1)
    arrays = operands(g, dtype, random_array)
    expected = judged(contraction, g, arrays)
    magnitude = judged(contraction, g, {name: np.abs(array) for name, array in arrays.items()})
    tolerance = registry.tolerance(g, contraction, dtype) * magnitude
    assert_within(call(contraction, g, arrays, "winograd2"), expected, tolerance, f"{contraction} {dtype}")
    four = call(contraction, g, arrays, "winograd4")
    assert_within(four, expected, np.minimum(rounding(contraction, g, arrays, "winograd4"), 10 * tolerance))


# ------------------------------------------------------------------------------------- by every algorithm


@pytest.mark.parametrize("contraction", registry.CONTRACTIONS)
def test_every_case_by_every_algorithm(contraction, force, launched):
    """And the kernel that was named is the one that runs."""
    for case in CASES:
        for name, algorithm, forced in ways(contraction, case.geometry):
            force(**FEW | forced)
            launched.clear()
            check(contraction, case.geometry, FLOAT32, algorithm, f"{case.name} {name}")
            assert is_run(algorithm, launched) or not case.geometry.macs, (case.name, name, launched)


@pytest.mark.parametrize("value", [1, np.nan, np.inf])
def test_settled_calls_give_what_others_give(value):
    """The same bits, for small and larger calls, with a bias and without, and again where something is not finite."""
    larger = geometry.conv((2, 16, 40, 41), (17, 16, 3, 3), padding=1)
    for g in (*SPECIAL.values(), larger, *(case.geometry for case in CASES[::4])):
        for contraction in registry.CONTRACTIONS if g.rank <= 3 else ():
            arrays, bias = operands(g, FLOAT32), bias_of(contraction, g, FLOAT32)
            for name in set("xwy") - {RESULT[contraction]}:
                arrays[name].reshape(-1)[:1] = value
            for some in ({}, bias):
                expected = call(contraction, g, arrays, **some)
                given = {**arrays, RESULT[contraction]: unwritten(expected.shape, FLOAT32)}
                run = registry.settle(contraction, None, g, FLOAT32, None, None)
                for _ in range(2):
                    run(**given, **some)
                    assert np.array_equal(given[RESULT[contraction]], expected, equal_nan=True), (contraction, g)


def test_calls_of_nothing(force):
    """No pixels, which leaves sums of no products: the padding, and the bias."""
    for g in (
        geometry.conv((2, 64, 0, 40), (64, 64, 3, 3), padding=2),
        geometry.conv_transpose((2, 64, 0, 40), (64, 64, 3, 3)),
        geometry.conv((0, 3, 5, 5), (3, 1, 3, 3), groups=3),
    ):
        for contraction in registry.CONTRACTIONS:
            for algorithm in (None, *driver.algorithms(contraction, g)):
                check(contraction, g, FLOAT32, algorithm)


SETTINGS = {
    "pointwise": (geometry.conv((1, 64, 56, 56), (64, 64, 1, 1)), ("direct", "indirect")),
    "3x3": (
        geometry.conv((1, 64, 56, 56), (64, 64, 3, 3), padding=1),
        ("direct", "indirect", "winograd2", "winograd4"),
    ),
    "3x3 in groups": (
        geometry.conv((1, 8, 9, 9), (8, 2, 3, 3), groups=4),
        ("direct", "indirect", "winograd2", "winograd4"),
    ),
    "1x3x3": (geometry.conv((1, 4, 8, 9, 9), (4, 4, 1, 3, 3)), ("direct", "indirect", "winograd2", "winograd4")),
    "3x3x3, dilated slices": (
        geometry.conv((1, 4, 8, 9, 9), (4, 4, 3, 3, 3), dilation=(2, 1, 1)),
        ("direct", "indirect", "winograd2", "winograd4"),
    ),
    "3x1": (geometry.conv((1, 4, 9, 9), (4, 4, 3, 1)), ("direct", "indirect", "winograd2", "winograd4")),
    "1-D": (geometry.conv((1, 4, 9), (4, 4, 3)), ("direct", "indirect", "winograd2", "winograd4")),
    "stride": (geometry.conv((1, 4, 9, 9), (4, 4, 3, 3), stride=(1, 2)), ("direct", "indirect", "winograd2")),
    "stride, 5x6": (
        geometry.conv((1, 4, 9, 9), (4, 4, 5, 6), stride=2),
        ("direct", "indirect", "winograd2", "winograd4"),
    ),
    "stride, 7x3": (geometry.conv((1, 4, 9, 9), (4, 4, 7, 3), stride=2), ("direct", "indirect")),
    "stride as large as the kernel": (geometry.conv((1, 4, 9, 9), (4, 4, 3, 2), stride=3), ("direct", "indirect")),
    "stride over slices": (
        geometry.conv((1, 4, 9, 9, 9), (4, 4, 3, 3, 3), stride=(2, 1, 1)),
        ("direct", "indirect", "winograd2", "winograd4"),
    ),
    "stride and dilation": (
        geometry.conv((1, 4, 9, 9), (4, 4, 3, 3), stride=(1, 2), dilation=(2, 1)),
        ("direct", "indirect"),
    ),
    "dilation": (
        geometry.conv((1, 4, 9, 9), (4, 4, 3, 3), dilation=(2, 1)),
        ("direct", "indirect", "winograd2", "winograd4"),
    ),
    "depthwise": (geometry.conv((1, 4, 9, 9), (4, 1, 7, 7), groups=4, stride=2), ("direct", "depthwise")),
    "depthwise 3x3": (
        geometry.conv((1, 4, 9, 9), (4, 1, 3, 3), groups=4),
        ("direct", "depthwise", "winograd2", "winograd4"),
    ),
    "two of each": (geometry.conv((1, 4, 9, 9), (8, 1, 5, 5), groups=4), ("direct", "indirect")),
    "padding": (geometry.conv((1, 4, 0, 9), (4, 1, 3, 3), groups=4, padding=2), ("direct",)),
    "nothing": (geometry.conv((0, 4, 9, 9), (4, 1, 3, 3), groups=4), ("direct",)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_which_algorithms_there_are(name):
    g, names = SETTINGS[name]
    for contraction in ("forward", "adjoint"):
        assert driver.algorithms(contraction, g) == names
        rows = [row for row in registry.implementations() if (row.contraction, row.backend) == (contraction, "tiled")]
        assert [row.algorithms(g) for row in rows] == [names]
    weights = [name for name in ("outer", "dots", *names[1:]) if name in driver.PRODUCTS]
    assert driver.algorithms("weight", g) == tuple(sorted(weights, key=[*driver.PRODUCTS].index))


# -------------------------------------------------------------------------------------- the predicates

PROCESSORS = {"avx512": (64, 32), "avx2": (32, 16), "sse": (16, 16), "neon": (16, 32)}

# (geometry, algorithm of forward and adjoint, of the weight gradient; None: depends on the processor)
CHOICES = {
    "64-3x3": (SETTINGS["3x3"][0], "winograd2", None),
    "128-batch": (geometry.conv((16, 128, 28, 28), (128, 128, 3, 3), padding=1), "winograd2", None),
    "3d-1x3x3": (geometry.conv((1, 64, 8, 28, 28), (64, 64, 1, 3, 3)), "winograd2", None),
    "3d": (geometry.conv((1, 32, 8, 28, 28), (32, 32, 3, 3, 3), padding=1), "winograd2", None),
    "rgb": (geometry.conv((1, 3, 224, 224), (64, 3, 3, 3), padding=1), None, None),
    "one-channel-out": (geometry.conv((1, 1, 64, 64), (56, 1, 9, 9)), None, None),
    "pointwise": (SETTINGS["pointwise"][0], "direct", "outer"),
    "5x5": (geometry.conv((1, 64, 56, 56), (64, 64, 5, 5), padding=2), None, None),
    "5x5 of few pixels": (geometry.conv((1, 128, 14, 14), (128, 128, 5, 5), padding=2), "indirect", None),
    "stride": (geometry.conv((1, 64, 56, 56), (64, 64, 3, 3), padding=1, stride=2), None, None),
    "dilation": (geometry.conv((1, 64, 56, 56), (64, 64, 3, 3), padding=2, dilation=2), "winograd2", None),
    "halved": (geometry.conv((4, 64, 64, 64), (64, 64, 4, 4), padding=1, stride=2), "winograd2", None),
    "1d": (geometry.conv((1, 64, 1000), (64, 64, 5)), "direct", "outer"),
    "1d, 3 taps": (geometry.conv((1, 128, 8000), (128, 128, 3)), "winograd2", None),
    "depthwise": (geometry.conv((1, 64, 56, 56), (64, 1, 3, 3), padding=1, groups=64), "depthwise", "depthwise"),
    "two of each": (geometry.conv((1, 64, 56, 56), (128, 1, 3, 3), padding=1, groups=64), None, "dots"),
    "one-channel": (geometry.conv((1, 1, 64, 64), (1, 1, 9, 9)), "depthwise", "dots"),
    "tiny": (geometry.conv((1, 1, 2, 2), (1, 1, 3, 3), padding=1), "depthwise", "dots"),
}


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_which_algorithm(processor, dtype, monkeypatch):
    """Planned only: kernels for another processor are not compiled."""
    width, registers = PROCESSORS[processor]
    monkeypatch.setattr(tiles, "vector_bytes", lambda: width)
    monkeypatch.setattr(tiles, "registers", lambda: registers)
    forget()
    lanes = width // dtype.itemsize
    for name, (g, sum_, product) in CHOICES.items():
        for contraction in registry.CONTRACTIONS:
            plan = driver.weight_plan(g, dtype) if contraction == "weight" else driver.sum_plan(contraction, g, dtype)
            wanted = product if contraction == "weight" else sum_
            kernels = [
                stage.kernel.name
                for stage in plan.call
                if stage.kernel.name.startswith(tuple(itertools.chain(*KERNELS.values())))
            ]
            (kernel,) = kernels
            if wanted is not None:
                assert kernel.startswith(KERNELS[wanted]), (name, contraction)
            sizes = [int(size) for size in kernel.split("_") if size.isdigit()]
            # Winograd's begin with m, where there is a choice, and the taps of a stencil
            sizes = sizes[2 if kernel.startswith("winograd_weight") else 3 if kernel.startswith("winograd") else 0 :]
            allowed = (lanes, tiles.few_lanes(dtype)) if kernel.startswith("depthwise") else (lanes,)
            assert sizes[0] in allowed, (name, contraction)
            if kernel.startswith(("direct", "winograd_2", "winograd_4")):
                assert tuple(sizes[-2:]) in tiles.TILES[registers], (name, contraction)
            if kernel.startswith("indirect"):
                assert tuple(sizes[-2:]) in tiles.INDIRECT_TILES[registers], (name, contraction)
            if contraction != "weight":
                preferred = driver.preferred(contraction, g, dtype)
                assert kernel.startswith(KERNELS[preferred]), (name, contraction)
                assert preferred in driver.algorithms(contraction, g)
                assert preferred != "winograd4"  # which rounds more, and so has to be asked for
    forget()


def is_copied(contraction, g):
    return "buffer" in driver.sum_plan(contraction, g, FLOAT32, "direct").rooms


def test_taps_of_phases_without_pixels(force):
    """Strides longer than the image: some phases of the result have taps and no pixels."""
    for g in (
        geometry.conv((2, 2, 10, 2), (1, 2, 4, 4), stride=4, padding=((-2, 3), (1, 3)), dilation=(3, 1)),
        geometry.conv((2, 1, 10, 1, 4), (2, 1, 2, 2, 1), stride=(4, 3, 4), padding=((-3, 0), (4, 1), (1, 4))),
    ):
        check("adjoint", g, FLOAT32)
        check("adjoint", g, FLOAT64)


def test_a_phase_that_begins_past_the_only_pixel():
    """Of stride 2 and a cropped pixel: the buffer is one zero, and as large as the image."""
    for g in (
        geometry.conv((2, 1, 1), (1, 1, 1), stride=2, padding=((-1, 1),)),
        geometry.conv((3, 2, 4, 1), (5, 2, 1, 1), stride=(1, 2), padding=((0, 0), (-1, 1))),
    ):
        for contraction in registry.CONTRACTIONS:
            check(contraction, g, FLOAT32)


def test_what_is_read_in_place():
    in_place = [
        geometry.conv((1, 8, 40, 40), (8, 8, 1, 1)),
        geometry.conv((1, 8, 40, 40), (8, 8, 5, 5)),
        geometry.conv((2, 8, 1999), (8, 8, 4), dilation=3),
        geometry.conv((1, 8, 9, 20, 20), (8, 8, 3, 2, 2)),
    ]
    copied = [
        geometry.conv((1, 8, 40, 40), (8, 8, 5, 5), padding=1),
        geometry.conv((1, 8, 40, 40), (8, 8, 5, 5), stride=2),
        geometry.conv((1, 1, 3), (1, 1, 2)),  # less than a tile
        geometry.conv((2, 8, 9, 9), (8, 8, 2, 2)),  # folded
        geometry.conv((1, 8, 400, 400), (8, 8, 5, 5)),  # from memory, by rows apart
    ]
    assert [is_copied("forward", g) for g in in_place] == [False] * len(in_place)
    assert [is_copied("forward", g) for g in copied] == [True] * len(copied)
    assert not is_copied("adjoint", geometry.conv((1, 8, 40, 40), (8, 8, 1, 1)))


@pytest.mark.parametrize("stride", [(registry.TILED_PHASES + 1,), (33, 32)])
def test_long_strides_are_left_to_the_loops(stride, force):
    rank = len(stride)
    g = geometry.conv_transpose((1, 2, *(3,) * rank), (2, 3, *(2,) * rank), stride=stride)
    with pytest.raises(ValueError, match=f"strides of up to {registry.TILED_PHASES} pixels in all"):
        registry.select("adjoint", "tiled", g, FLOAT32)
    arrays = operands(g, FLOAT32)
    result = loopconv.conv_transpose(arrays["y"], arrays["w"], stride=stride)
    assert np.array_equal(result, judged("adjoint", g, arrays))
    for contraction in ("forward", "weight"):  # these have one plane per tap at most
        check(contraction, g, FLOAT32)
    longest = geometry.conv_transpose((1, 2, 3), (2, 3, 2), stride=registry.TILED_PHASES)
    for name, algorithm, forced in ways("adjoint", longest):
        force(**FEW | forced)
        check("adjoint", longest, FLOAT32, algorithm, name)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "complex64", "complex128"])
def test_other_dtypes_are_refused(dtype):
    g = geometry.conv((1, 1, 5), (1, 1, 2))
    for contraction in registry.CONTRACTIONS:
        with pytest.raises(ValueError, match="the tiles hold float32 or float64"):
            registry.select(contraction, "tiled", g, np.dtype(dtype))


# -------------------------------------------------------------------------------------------- memory


@pytest.fixture
def asked(monkeypatch):
    """Bytes of every buffer that calls ask for, by name; nothing is computed."""
    rooms, room = {}, workspace.Workspace.room

    def asking(self, name, size, dtype):
        rooms[name] = max(rooms.get(name, 0), size * dtype.itemsize)
        return room(self, name, size, dtype)

    def idle(stage, arrays, buffers, *others):
        buffers.room("scratch", stage.scratch, arrays[stage.arrays[0]].dtype)
        return 0

    monkeypatch.setattr(workspace.Workspace, "room", asking)
    monkeypatch.setattr(driver, "launch", idle)
    monkeypatch.setattr(driver, "OWN_BYTES", 0)
    return rooms


def padded(contraction, g):
    """Pixels of a channel of the source with the zeros around it, at most."""
    sizes = []
    for n, o, s, d, k, lo, span in zip(g.input, g.output, g.stride, g.dilation, g.kernel, g.pad, g.span):
        if contraction == "adjoint":  # as many zeros on both sides as taps reach, in steps of the stride
            sizes.append(max(o + 2 * (d * (k - 1) // s + 1), -(-n // s) + 1))
        else:
            sizes.append(n + max(lo, 0) + max(span - lo - n, 0) + 2 * s)
    return prod(sizes)


LAYERS = bench.read_layers(bench.LAYERS)
SCRATCH = (64 << 10) * max(
    tiles.vector_bytes(), 32
)  # the blocks of tiles.py, or a few vectors of pixels of all channels
SLACK = 64 << 10  # what tiles read past the end, and tiny arrays


@pytest.mark.parametrize("contraction", registry.CONTRACTIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_memory_of_a_plain_call(layer, contraction, asked):
    """One padded copy of the input, packed weights, and scratch; a matrix of the input's windows is never among it."""
    g = LAYERS[layer].geometry
    arrays = {name: np.empty(getattr(g, f"{name}_shape"), FLOAT32) for name in "xwy"}
    x, y = (4 * g.batch * c * padded(of, g) for c, of in ((g.c, "forward"), (g.k, "adjoint")))
    weights = arrays["w"].nbytes
    for algorithm in (None, *driver.algorithms(contraction, g)):
        asked.clear()
        registry.select(contraction, "tiled", g, FLOAT32, algorithm)(g, **arrays)
        kept = dict(asked)
        assert kept.pop("scratch") <= SCRATCH, algorithm
        if contraction == "weight":
            # sums of up to 16 parts, and blocks of channels, which may be more than there are unless chosen
            assert kept.pop("partial", 0) <= tiles.UNITS * weights, algorithm
            if algorithm is None or algorithm == "dots":
                assert sum(kept.values()) <= 1.2 * (x + arrays["y"].nbytes) + SLACK, algorithm
        else:
            # packed, or transformed to 16 or 36 numbers for every nine
            packed = 1.2 * weights + SLACK
            if algorithm == "indirect":  # whole vectors of channels, of which there may be less unless it is chosen
                channels = (g.k if contraction == "forward" else g.c) // g.groups
                packed *= -(-channels // tiles.lanes(FLOAT32)) * tiles.lanes(FLOAT32) / channels
            assert kept.pop("packed", 0) <= packed, algorithm
            assert kept.pop("u", 0) <= 36 / 9 * packed, algorithm
            source = x if contraction == "forward" else y
            assert sum(kept.values()) <= source + SLACK, algorithm


def test_threads_have_copies_of_their_own_up_to_a_limit(asked, monkeypatch):
    g = geometry.conv((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    arrays = {name: np.empty(getattr(g, f"{name}_shape"), FLOAT32) for name in "xwy"}

    def bytes_on(count):
        monkeypatch.setattr(driver.threads, "worth", lambda work: count)
        monkeypatch.setattr(driver.team, "gather", lambda workers, work: workers)
        asked.clear()
        driver.forward(g, **arrays)
        return {name: asked[name] for name in ("buffer", "u")}

    shared = bytes_on(2)
    monkeypatch.setattr(driver, "OWN_BYTES", 2 * max(shared.values()) - 1)
    assert shared["u"] < shared["buffer"]  # so that there is room for the weights of two, not for pixels
    for count, own in ((1, []), (2, ["u"]), (max(shared.values()), [])):
        line = launch.apart(1) * 4
        assert bytes_on(count) == {
            name: count * -(-size // line) * line if name in own else size for name, size in shared.items()
        }


def test_copies_of_each_thread_have_the_same_results(force, monkeypatch):
    monkeypatch.setattr(driver.threads, "worth", lambda work: 3)
    for contraction, g, algorithm in [
        ("forward", geometry.conv((1, 16, 30, 30), (40, 16, 3, 3), padding=1), "winograd2"),
        ("adjoint", geometry.conv((1, 16, 30, 30), (40, 16, 4, 4), stride=2, padding=1), "direct"),
        ("forward", geometry.conv((3, 16, 14, 14), (40, 16, 3, 3), padding=1), "indirect"),
        ("weight", geometry.conv((1, 16, 30, 30), (40, 16, 3, 3), padding=1), "winograd2"),
        ("weight", geometry.conv((1, 16, 30, 30), (40, 16, 3, 3), padding=1), "outer"),
    ]:
        results = []
        for own_bytes in (0, 1 << 30):
            monkeypatch.setattr(driver, "OWN_BYTES", own_bytes)
            results += [call(contraction, g, operands(g, FLOAT32), algorithm) for _ in range(5)]
        assert all(np.array_equal(result, results[0]) for result in results), (contraction, algorithm)


def test_buffers_of_a_thread_are_used_again(force):
    """They are as large as the largest call needed, and no larger."""
    calls = [
        ("forward", geometry.conv((1, 8, 60, 60), (8, 8, 5, 5), padding=2), "direct"),
        ("adjoint", geometry.conv((1, 8, 40, 40), (8, 8, 5, 5), padding=2), "direct"),
        ("forward", geometry.conv((2, 5, 33, 20), (8, 5, 3, 3), padding=1), "winograd2"),
        ("forward", geometry.conv((1, 16, 40, 40), (16, 1, 3, 3), padding=1, groups=16), "depthwise"),
    ]

    def bytes_after(repeats):
        seen = []
        for contraction, g, algorithm in calls * repeats:
            call(contraction, g, operands(g, FLOAT32), algorithm)
            buffers = [array for array in workspace.own().kept.values() if array.dtype == np.uint8]
            seen.append(sum(array.nbytes for array in buffers))
        return seen

    with ThreadPoolExecutor(1) as pool:  # a thread that has none yet
        once, thrice = pool.submit(bytes_after, 1).result(), pool.submit(bytes_after, 3).result()
    assert once == sorted(once)
    assert set(thrice) == {once[-1]}
    contraction, g, _ = calls[0]
    most = 4 * g.c * padded(contraction, g) + 4 * 4 * prod(g.w_shape) + SCRATCH
    assert once[-1] <= most


def test_workspace():
    space = workspace.Workspace(kept_bytes=1000)
    first = space.room("a", 100, FLOAT32)
    assert (first.shape, first.dtype, first.ctypes.data % 64) == ((100,), FLOAT32, 0)
    assert space.room("a", 100, FLOAT32) is first
    other, double = space.room("b", 100, FLOAT32), space.room("a", 50, FLOAT64)
    assert not np.shares_memory(first, other)
    assert np.shares_memory(first, double)  # of the same name, one after the other
    larger = space.room("a", 200, FLOAT32)
    assert larger.shape == (200,)
    assert not np.shares_memory(first, larger)
    assert np.shares_memory(space.room("a", 100, FLOAT32), larger)
    assert space.room("b", 100, FLOAT32) is other
    huge = space.room("a", 251, FLOAT32)
    assert huge.shape == (251,)
    assert not np.shares_memory(huge, larger)
    assert space.room("a", 251, FLOAT32) is not huge  # not kept
    assert sum(array.nbytes for array in space.kept.values() if array.dtype == np.uint8) == 800 + 400
    assert workspace.Workspace(kept_bytes=None).room("a", 251, FLOAT32).shape == (251,)


# ---------------------------------------------------------------------------------------- guard pages


def new_python(function, timeout=300, **environment):
    """(exit status, output, errors) of one function of this file in a new Python."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", f"import test_tiled; test_tiled.{function.__name__}()"],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout, done.stderr


@cache
def protect():
    """The system's function that sets what may be done with pages."""
    function = ctypes.CDLL(None, use_errno=True).mprotect
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function


def guarded(shape, dtype, at_end):
    """An array of NaN that ends where a protected page begins, or begins where one ends."""
    dtype, page = np.dtype(dtype), mmap.PAGESIZE
    size = int(np.prod(shape, dtype=np.int64))
    inner = max(-(-size * dtype.itemsize // page), 1) * page
    pages = mmap.mmap(-1, inner + 2 * page)
    start = np.frombuffer(pages, np.uint8).ctypes.data
    for address in (start, start + page + inner):
        if protect()(address, page, 0):  # PROT_NONE
            raise OSError(ctypes.get_errno(), "mprotect failed")
    offset = page + inner - size * dtype.itemsize if at_end else page
    array = np.frombuffer(pages, dtype, size, offset).reshape(shape)
    array[...] = np.nan if dtype.kind == "f" else 0xFF  # bytes of one, which are a NaN as well
    return array


def _without_core_file():
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read_past_the_end():
    _without_core_file()
    array = guarded((3,), FLOAT32, at_end=True)
    print(np.lib.stride_tricks.as_strided(array, (4,)).sum())


def _write_before_the_beginning():
    _without_core_file()
    array = guarded((3,), FLOAT32, at_end=False)
    ctypes.memset(array.ctypes.data - 1, 0, 1)
    print("written")


GUARDED = {
    "pointwise in place": geometry.conv((1, 5, 9, 30), (7, 5, 1, 1)),
    "valid in place": geometry.conv((1, 3, 20, 41), (5, 3, 3, 4)),
    "in place, batch": geometry.conv((2, 3, 40, 41), (5, 3, 2, 2)),
    "in place, 1-D": geometry.conv((2, 3, 1201), (5, 3, 5)),
    "in place, 3-D": geometry.conv((2, 3, 5, 9, 11), (4, 3, 2, 3, 2)),
    "in place, dilated": geometry.conv((1, 3, 20, 41), (5, 3, 3, 4), dilation=(4, 5)),
    "in place, adjoint": geometry.conv((1, 7, 40, 60), (3, 7, 2, 2), stride=2),
    "in place, adjoint, gaps": geometry.conv((1, 7, 60, 60), (3, 7, 2, 2), stride=3),
    "adjoint, three phases": geometry.conv((2, 2, 31, 58), (3, 2, 2, 6), padding=(0, 4), stride=(1, 3)),
    "adjoint, fan": geometry.conv((1, 7, 40, 61), (3, 7, 4, 4), stride=2, padding=1),
    "padded": geometry.conv((1, 3, 33, 35), (5, 3, 4, 5), padding=2),
    "strided": geometry.conv((1, 3, 33, 35), (5, 3, 5, 4), padding=2, stride=(2, 3)),
    "strided, 1-D": geometry.conv((2, 3, 203), (5, 3, 4), padding=2, stride=4),
    "every fourth": geometry.conv((1, 3, 22, 70), (5, 3, 5, 5), padding=1, stride=4),
    "every fourth of few": geometry.conv((2, 3, 30, 13), (5, 3, 3, 4), stride=(1, 4)),
    "every fourth, depthwise": geometry.conv((1, 4, 33, 37), (4, 1, 3, 6), groups=4, padding=2, stride=(2, 4)),
    "grouped": geometry.conv((2, 12, 9, 17), (8, 3, 3, 3), padding=1, groups=4),
    "depthwise": geometry.conv((2, 9, 17, 33), (9, 1, 3, 3), padding=1, groups=9),
    "depthwise, valid": geometry.conv((1, 9, 17, 33), (9, 1, 3, 3), groups=9),
    "depthwise, strided": geometry.conv((1, 4, 17, 33), (4, 1, 5, 5), groups=4, padding=2, stride=2),
    "depthwise, strided, even": geometry.conv((1, 4, 18, 34), (4, 1, 3, 3), groups=4, padding=1, stride=2),
    "depthwise, small": geometry.conv((1, 9, 7, 7), (9, 1, 5, 5), groups=9, padding=2),
    "depthwise, small, strided": geometry.conv((1, 9, 7, 7), (9, 1, 5, 5), groups=9, padding=2, stride=2),
    "depthwise, 3-D": geometry.conv((2, 4, 5, 9, 7), (4, 1, 3, 3, 3), groups=4, padding=1),
    "depthwise, narrow": geometry.conv((1, 4, 17, 3), (4, 1, 3, 2), groups=4),
    "winograd": geometry.conv((1, 17, 35, 37), (15, 17, 3, 3), padding=1),
    "winograd, valid": geometry.conv((1, 4, 35, 38), (26, 4, 3, 3)),
    "winograd, folded": geometry.conv((3, 5, 7, 9), (7, 5, 3, 3), padding=2),
    "winograd, full rows": geometry.conv((1, 2, 66, 130), (3, 2, 3, 3)),
    "winograd, 3-D": geometry.conv((1, 3, 5, 9, 33), (5, 3, 3, 3, 3), padding=1),
    "winograd, 3-D, dilated": geometry.conv((2, 3, 5, 9, 11), (2, 3, 2, 3, 3), dilation=(2, 1, 1)),
    "winograd, one pixel": geometry.conv((1, 1, 3, 3), (1, 1, 3, 3)),
    "winograd, few pixels": geometry.conv((1, 7, 4, 5), (33, 7, 3, 3), padding=1),
    "winograd, strided": geometry.conv((1, 5, 33, 36), (7, 5, 3, 3), padding=1, stride=2),
    "winograd, strided, 4x5": geometry.conv((2, 3, 26, 33), (5, 3, 4, 5), padding=1, stride=(3, 2)),
    "winograd, strided, 3-D": geometry.conv((1, 3, 5, 9, 33), (5, 3, 3, 4, 4), padding=1, stride=2),
    "winograd, dilated": geometry.conv((1, 5, 33, 36), (7, 5, 3, 3), padding=2, dilation=2),
    "winograd, dilated, valid": geometry.conv((1, 3, 19, 35), (5, 3, 3, 2), dilation=(5, 3)),
    "winograd, 1-D, dilated": geometry.conv((2, 3, 203), (5, 3, 3), padding=4, dilation=4),
    "winograd, cropped": geometry.conv((1, 3, 21, 20), (5, 3, 3, 3), padding=((-3, 1), (-2, -4))),
    "dots": geometry.conv((1, 1, 33, 47), (3, 1, 5, 5)),
    "dots, padded": geometry.conv((2, 2, 33, 47), (2, 2, 5, 5), padding=2),
    "several parts": geometry.conv((1, 8, 65, 64), (8, 8, 3, 3), padding=1),
    "channels": geometry.conv((1, 67, 3, 5), (65, 67, 2, 2)),
    **{f"1-D, {n} pixels": geometry.conv((1, 1, n), (1, 1, 1)) for n in (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33)},
    **{f"1-D, {n} pixels, 3 taps": geometry.conv((2, 2, n), (3, 2, 3), padding=1) for n in (1, 3, 16, 17)},
    **{f"case {case.name}": case.geometry for case in CASES},
}


class _Guards:
    """Guarded buffers in place of the workspace's and the plan's own."""

    def __init__(self):
        self.at_end = True
        workspace.Workspace.room = lambda _, name, size, dtype: guarded((size,), dtype, self.at_end)
        prepared.aligned = lambda size_bytes: guarded((size_bytes,), np.uint8, self.at_end)

    def call(self, contraction, g, algorithm, given):
        """A call; or a plan of it, where `algorithm` begins with 'planned'."""
        name = RESULT[contraction]
        arrays = {key: guarded(array.shape, array.dtype, self.at_end) for key, array in given.items()}
        for key in set(given) - {name}:
            arrays[key][...] = given[key]
        if algorithm.startswith("planned "):
            source = arrays["y" if contraction == "adjoint" else "x"]
            plan = prepared.Prepared(contraction, g, arrays["w"], arrays["bias"], algorithm.split()[1])
            plan.run(source, arrays[name])
        else:
            registry.select(contraction, "tiled", g, given["w"].dtype, algorithm)(g, **arrays)
        return arrays[name]


def _guarded_calls():
    """A contraction of all of GUARDED with every array and buffer against a protected page, by every algorithm."""
    contraction = os.environ["GUARDED_CONTRACTION"]
    _without_core_file()
    loopconv.set_num_threads(1)
    guards, patch, calls, said = _Guards(), pytest.MonkeyPatch(), 0, []
    run = driver.launch
    driver.launch = lambda *stage: said.append(run(*stage)) or said[-1]
    shapes = itertools.cycle((MIDDLE, SHAPES[0], SHAPES[-1]))
    for name, g in GUARDED.items():
        shape = next(shapes)
        for dtype in (FLOAT32, FLOAT64):
            given = operands(g, dtype) | bias_of(contraction, g, dtype)
            expected = judged(contraction, g, given)
            wanted = [*ways(contraction, g)]
            if contraction != "weight" and dtype == FLOAT32:
                wanted += [(f"planned {way}", f"planned {algorithm}", forced) for way, algorithm, forced in wanted]
            for way, algorithm, forced in wanted:
                if dtype == FLOAT32 and "direct_tile" in forced:
                    forced = {"direct_tile": (*shape, *forced["direct_tile"][2:])}
                choose(patch, **FEW | forced)
                for guards.at_end in (True, False)[: 2 if dtype == FLOAT32 else 1]:
                    label = f"{contraction} {name} {dtype} {way} {forced} {'end' if guards.at_end else 'beginning'}"
                    print(label, g, flush=True)
                    tolerance = rounding(contraction, g, given, algorithm.removeprefix("planned "))
                    assert_within(guards.call(contraction, g, algorithm, given), expected, tolerance, label)
                    assert not any(said), label  # else the direct kernel has covered up what an unwritten number did
                    calls += 1
    print(calls, "calls")


posix = pytest.mark.skipif(os.name != "posix", reason="protects pages by mprotect, which only POSIX systems have")


@posix
@pytest.mark.parametrize("function", [_read_past_the_end, _write_before_the_beginning])
def test_a_guard_page_is_noticed(function):
    status, output, _ = new_python(function)
    assert status < 0, (status, output)


@posix
@pytest.mark.parametrize("contraction", registry.CONTRACTIONS)
def test_no_kernel_touches_memory_outside_of_its_arrays(contraction):
    status, output, errors = new_python(_guarded_calls, timeout=600, GUARDED_CONTRACTION=contraction)
    last = "\n".join(output.splitlines()[-1:])
    assert status == 0, f"exit status {status} in: {last}\n{errors[-3000:]}"
    assert int(last.split()[0]) > 800


# -------------------------------------------------------------------------------------------- NaN and Inf

SPECIAL = {
    "3x3": geometry.conv((1, 3, 7, 9), (4, 3, 3, 3), padding=1),
    "depthwise": geometry.conv((1, 3, 7, 9), (3, 1, 3, 3), padding=(1, 2), groups=3),
    "strided": geometry.conv((1, 2, 9, 8), (3, 2, 2, 3), padding=((1, 0), (2, 1)), stride=(2, 1), dilation=(1, 2)),
    "in place": geometry.conv((2, 2, 12, 12), (3, 2, 2, 2)),
}


def places(shape):
    """The first, the last and another index."""
    return [(0,) * len(shape), tuple(n - 1 for n in shape), tuple(np.random.default_rng(1).integers(shape).tolist())]


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("contraction", registry.CONTRACTIONS)
def test_nan_and_inf(contraction, name, force):
    """As the sum of the terms has them, for every algorithm, in calls and in plans."""
    g = SPECIAL[name]
    for key, value in itertools.product(sorted(set("xwy") - {RESULT[contraction]}), (np.nan, np.inf, -np.inf)):
        for at in places(getattr(g, f"{key}_shape")):
            arrays = operands(g, FLOAT32)
            arrays[key][at] = value
            expected = literal(contraction, g, **{key: array.copy() for key, array in arrays.items()}).astype(FLOAT32)
            assert not np.isfinite(expected).all()
            for way, algorithm, forced in ways(contraction, g):
                force(**FEW | forced, PART=1)
                message = f"{contraction} {way}: {value} in {key}{at}"
                assert np.array_equal(call(contraction, g, arrays, algorithm), expected, equal_nan=True), message
                if contraction != "weight":
                    source, out = arrays["y" if contraction == "adjoint" else "x"], np.empty_like(expected)
                    prepared.Prepared(contraction, g, arrays["w"], None, algorithm).run(source, out)
                    assert np.array_equal(out, expected, equal_nan=True), f"planned {message}"


@pytest.mark.parametrize("dtype", [FLOAT64], ids=str)
def test_nan_and_inf_in_double_precision(dtype, force, launched):
    """The flags are the kernels' own; one case for each that has one."""
    g = SPECIAL["3x3"]
    for contraction, algorithm, key in (
        ("forward", "winograd2", "x"),
        ("forward", "winograd4", "x"),
        ("adjoint", "direct", "w"),
    ):
        for value in (1, np.nan, np.inf):
            arrays = operands(g, dtype)
            arrays[key][0, 1, 2, 0] = value
            expected = literal(contraction, g, **{key: array.copy() for key, array in arrays.items()}).astype(dtype)
            launched.clear()
            result = call(contraction, g, arrays, algorithm)
            if np.isfinite(value):
                assert_within(result, expected, rounding(contraction, g, arrays, algorithm))
            else:
                assert np.array_equal(result, expected, equal_nan=True)
            assert any(said for _, said in launched) == (not np.isfinite(value))


@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4"])
@pytest.mark.parametrize(
    ("x_size", "w_size"), [(1e38, 0.25), (2.0**-60, 2e38), (3e38, 2.0**-9)], ids=["inputs", "weights", "large"]
)
@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
def test_transforms_that_overflow(contraction, x_size, w_size, algorithm, force, launched):
    """1e38 fits into float32, and so does the sum, but the transform of inputs or weights does not."""
    g = SPECIAL["3x3"]
    arrays = {name: np.sign(array + 0.5) for name, array in operands(g, FLOAT32).items()}
    arrays["w"] *= np.float32(w_size)
    for name in "xy":
        arrays[name] *= np.float32(x_size)
        arrays[name][0, 0, :5, :5] = np.float32(x_size)
    # one weight of each row of taps, so that the sums stay small where the transform does not
    arrays["w"][:, 1:], arrays["w"][1:] = 0, 0
    arrays["w"][0, 0] = np.float32(w_size)
    arrays["x"][0, :, ::2], arrays["y"][0, :, ::2] = 0, 0
    arrays["x"][0, 0, 1], arrays["y"][0, 0, 1] = np.float32(x_size), np.float32(x_size)
    actual = call(contraction, g, arrays, algorithm)
    fell_back = any(said for _, said in launched)
    direct = call(contraction, g, arrays, "direct")
    expected = judged(contraction, g, arrays)
    fits = np.abs(expected) < float(np.finfo(FLOAT32).max) / 8
    assert fits.any()
    assert np.isfinite(actual[fits]).all()
    if fell_back or algorithm == "winograd2":
        assert actual.tobytes() == direct.tobytes()
    else:
        assert_within(actual[fits], expected[fits], rounding(contraction, g, arrays, algorithm))
    if contraction == "forward" and w_size != 2.0**-9:
        assert fell_back


# -------------------------------------------------------------------------------------------- threads

THREADED = {
    "winograd2": ("forward", geometry.conv((1, 32, 40, 41), (33, 32, 3, 3), padding=1)),
    "winograd2 adjoint": ("adjoint", geometry.conv((3, 7, 9, 11), (33, 7, 3, 3), padding=1)),
    "winograd4": ("forward", geometry.conv((1, 16, 40, 41), (33, 16, 3, 3), padding=1)),
    "direct": ("forward", geometry.conv((1, 5, 40, 41), (33, 5, 5, 3), padding=1)),
    "direct in place": ("forward", geometry.conv((1, 5, 40, 41), (7, 5, 5, 3))),
    "direct adjoint": ("adjoint", geometry.conv((2, 9, 23, 25), (5, 9, 4, 4), stride=2)),
    "depthwise": ("forward", geometry.conv((2, 9, 40, 41), (9, 1, 3, 3), groups=9, padding=1)),
    "winograd2 weight": ("weight", geometry.conv((2, 40, 65, 64), (38, 40, 3, 3), padding=1)),
    "outer": ("weight", geometry.conv((2, 8, 65, 64), (8, 8, 3, 3), padding=1)),
    "dots": ("weight", geometry.conv((2, 2, 165, 164), (3, 2, 5, 5), padding=1)),
    "depthwise weight": ("weight", geometry.conv((2, 9, 40, 41), (9, 1, 3, 3), groups=9, padding=1)),
}


def _two_threads():
    """Choices of a process with two threads, which every call is worth."""
    loopconv.threads.SHARED_MACS = loopconv.threads.WAKING_MACS = 0
    loopconv.set_num_threads(2)
    choose(pytest.MonkeyPatch(), **FEW)
    return {name: (contraction, g, name.split()[0]) for name, (contraction, g) in THREADED.items()}


def _same_bits():
    """At one and at two threads; and the flag of what is not finite is the same."""
    work = _two_threads()
    assert loopconv.get_num_threads() == 2
    for name, dtype in [*itertools.product(work, (FLOAT32,)), ("direct", FLOAT64)]:
        contraction, g, algorithm = work[name]
        arrays, bits = operands(g, dtype, random_array), []
        for n in (1, 2, 2, 1):
            loopconv.set_num_threads(n)
            result = call(contraction, g, arrays, algorithm)
            assert np.isfinite(result).all(), name
            bits.append(result.tobytes())
            if contraction != "weight":
                source, out = arrays["y" if contraction == "adjoint" else "x"], unwritten(result.shape, dtype)
                prepared.Prepared(contraction, g, arrays["w"], None, algorithm).run(source, out)
                bits.append(out.tobytes())
        assert len(set(bits)) == 1, name
    _, g, algorithm = work["winograd2"]
    said, run = [], driver.launch
    driver.launch = lambda *stage: said.append(run(*stage)) or said[-1]
    for n, value in itertools.product((1, 2, 1, 2), (1.0, np.nan, np.inf, -np.inf, np.finfo(FLOAT32).max)):
        loopconv.set_num_threads(n)
        arrays = operands(g, FLOAT32)
        arrays["x"][0, 4, 32, 34] = value
        said.clear()
        call("forward", g, arrays, algorithm)
        assert any(said) == (value != 1), (n, value)
    print("the same")


@pytest.fixture
def two_threads():
    """Environment of a process with two threads, on however many processors."""
    return {"NUMBA_NUM_THREADS": "2", "LOOPCONV_NUM_THREADS": "2"}


def test_the_same_bits_at_any_number_of_threads(two_threads):
    status, output, errors = new_python(_same_bits, **two_threads)
    assert (status, output.strip()) == (0, "the same"), errors[-3000:]


def _python_threads():
    """Calls of everything at once, and of one plan, from several Python threads."""
    work = list(_two_threads().values())
    small = [geometry.conv((2, 3, n, 9), (4, 3, 3, 3), padding=1) for n in (5, 11)]
    work += [(contraction, g, None) for contraction, g in itertools.product(registry.CONTRACTIONS, small)]
    given = [operands(g, FLOAT32) for _, g, _ in work]
    expected = [judged(contraction, g, arrays) for (contraction, g, _), arrays in zip(work, given)]
    off = [rounding(contraction, g, arrays, name) for (contraction, g, name), arrays in zip(work, given)]
    _, g, algorithm = work[0]
    plan = loopconv.plan_conv(given[0]["w"], input_shape=g.x_shape, padding=1, algorithm=algorithm)

    def calls(first):
        wrong = []
        for i in range(12):
            at = (3 * first + 5 * i) % len(work)
            contraction, g, name = work[at]
            if not (np.abs(call(contraction, g, given[at], name) - expected[at]) <= off[at]).all():
                wrong.append((contraction, g, name))
            x = given[0]["x"] * np.float32(first + 1)
            if not np.array_equal(plan(x), expected[0] * (first + 1)):
                wrong.append(("plan", first))
        return wrong

    with ThreadPoolExecutor(4) as pool:
        print(list(pool.map(calls, range(4))))


def test_calls_from_several_python_threads(two_threads):
    status, output, errors = new_python(_python_threads, **two_threads)
    assert (status, output.strip()) == (0, str([[]] * 4)), errors[-3000:]


def _forked_children():
    warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
    work = _two_threads()
    given = {name: operands(g, FLOAT32) for name, (_, g, _) in work.items()}
    x, w = np.ones((1, 16, 60, 60), np.float32), np.ones((16, 16, 3, 3), np.float32)
    plan = loopconv.plan_conv(w, input_shape=x.shape)

    def right():
        for name, (contraction, g, algorithm) in work.items():
            result, expected = call(contraction, g, given[name], algorithm), judged(contraction, g, given[name])
            if not (np.abs(result - expected) <= rounding(contraction, g, given[name], algorithm)).all():
                return False
        return (plan(x) == 144).all()

    assert right()
    launch.team.is_free.acquire()  # as if another Python thread were in a kernel
    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            signal.alarm(60)  # ends a child that hangs
            code = 1
            with contextlib.suppress(Exception):
                code = 0 if right() else 2
            os._exit(code)
        children.append(child)
    launch.team.is_free.release()
    assert right()
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_children(two_threads):
    status, output, errors = new_python(_forked_children, **two_threads)
    assert (status, output.strip()) == (0, "[0, 0]"), errors[-3000:]


def test_while_another_call_has_all_threads(force, monkeypatch):
    """A call runs on its own, and does not wait; an error gives the threads back."""
    monkeypatch.setattr(loopconv.threads, "SHARED_MACS", 0)
    monkeypatch.setattr(loopconv.threads, "WAKING_MACS", 0)
    monkeypatch.setattr(loopconv.threads, "get_num_threads", lambda: 2)
    contraction, g = THREADED["direct"]
    with launch.team.is_free:
        check(contraction, g, FLOAT32, "direct")
    monkeypatch.setattr(workspace.Workspace, "room", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check(contraction, g, FLOAT32, "direct")
    assert not launch.team.is_free.locked()


# ---------------------------------------------------------------------------------------- the disk cache


def _count_builds():
    """Prints how many builds of kernels, and of what threads share, came from the disk, and how many were made."""
    from_disk, load = [], ForgivingCache.load_overload

    def counting(self, sig, target_context):
        build = load(self, sig, target_context)
        from_disk.append(build is not None)
        return build

    ForgivingCache.load_overload = counting
    _two_threads()
    g = geometry.conv((1, 2, 20, 20), (3, 2, 3, 3), padding=1)
    for contraction, algorithm in (("forward", "direct"), ("forward", "winograd2"), ("weight", "winograd2")):
        check(contraction, g, FLOAT32, algorithm)
    print(json.dumps([from_disk.count(True), from_disk.count(False)]))


def test_a_second_process_loads_kernels_and_what_threads_share(two_threads, tmp_path):
    """Also those that call other functions, which a pickle would not know again."""
    counts = []
    for _ in range(2):
        status, output, errors = new_python(_count_builds, NUMBA_CACHE_DIR=str(tmp_path), **two_threads)
        assert status == 0, errors[-3000:]
        counts.append(json.loads(output))
    (hits, misses), again = counts
    assert hits == 0
    assert misses > 8
    assert again == [misses, 0]


def test_names_on_disk_change_with_the_sources():
    kernel = launch.compiled(plans.make_dots, tiles.lanes(FLOAT32), 8, 1, 1, 3, 3, False)
    assert source_hash() in kernel.serial._cache._cache_file._index_name


def test_tiles_of_other_sizes_are_other_entries(monkeypatch, tmp_path):
    monkeypatch.setattr(jit.__globals__["numba"].config, "CACHE_DIR", str(tmp_path))
    for misses in (1, 0):
        for lanes in (4, 8):
            build = jit(make_zeros(lanes), fastmath={"contract"})
            out = np.full(ROWS * COLS * lanes + 2, 7, FLOAT32)
            build(out)
            assert out.tolist() == [7, *[0] * (ROWS * COLS * lanes), 7]
            assert sum(build.stats.cache_misses.values()) == misses


# ----------------------------------------------------------------------------------- operations on tiles

ROWS, COLS = 3, 2


@cache
def operation(make, *sizes):
    return jit(make(*sizes), fastmath={"contract"})


def numbers(dtype, size, seed=0):
    return random_integers((size,), dtype, seed)


def windows(array, i, row_step, col_step, shape):
    """array[i + m*row_step + n*col_step + lane], of `shape` (rows, cols, lanes)."""
    m, n, lane = np.indices(shape)
    return array[i + m * row_step + n * col_step + lane]


@pytest.fixture(
    params=[(dtype, lanes) for dtype in (FLOAT32, FLOAT64) for lanes in sorted({4, tiles.lanes(dtype)})],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def kind(request):
    """(dtype, lanes): the processor's own vectors, and ones of 4."""
    return request.param


def make_zeros(lanes):
    def zeros(out):
        simd.tile_store(simd.tile_zeros(out, lanes, ROWS, COLS), out, 1, COLS * lanes, lanes)

    return zeros


def test_tile_zeros(kind):
    dtype, lanes = kind
    out = np.full(ROWS * COLS * lanes + 2, 7, dtype)
    operation(make_zeros, lanes)(out)
    assert out.tolist() == [7, *[0] * (ROWS * COLS * lanes), 7]


def make_copy(lanes):
    def copy(array, i, row_step, col_step, out, j, out_row_step, out_col_step):
        tile = simd.tile_load(array, i, row_step, col_step, lanes, ROWS, COLS)
        simd.tile_store(tile, out, j, out_row_step, out_col_step)

    return copy


def test_tile_load_and_store(kind):
    dtype, lanes = kind
    array = numbers(dtype, 20 * lanes)
    for i, row_step, col_step in ((0, COLS * lanes, lanes), (3, 2 * lanes + 1, lanes + 5), (9 * lanes, -lanes, -1)):
        out = np.full(ROWS * 3 * lanes * COLS, np.nan, dtype)
        operation(make_copy, lanes)(array, i, row_step, col_step, out, 2, 3 * lanes, lanes + 1)
        expected = np.full_like(out, np.nan)
        m, n, lane = np.indices((ROWS, COLS, lanes))
        expected[2 + m * 3 * lanes + n * (lanes + 1) + lane] = windows(
            array, i, row_step, col_step, (ROWS, COLS, lanes)
        )
        assert np.array_equal(out, expected, equal_nan=True), (i, row_step, col_step)


def make_every(lanes, step, cols):
    def every(array, i, row_step, out):
        tile = simd.tile_load_every(array, i, row_step, step, lanes, ROWS, cols)
        simd.tile_store(tile, out, 0, cols * lanes, lanes)

    return every


@pytest.mark.parametrize(("step", "cols"), [(1, 2), (2, 4), (4, 6), (4, 3)])
def test_tile_load_every(kind, step, cols):
    dtype, lanes = kind
    # as much as it reads: whole vectors for every `step` columns begun
    last = (cols - 1) // step * step + step * lanes
    for i, row_step in ((0, 2 * lanes + 2), (3, 2 * lanes + 3), (5, 1)):
        array, out = numbers(dtype, i + (ROWS - 1) * row_step + last), np.empty((ROWS, cols, lanes), dtype)
        operation(make_every, lanes, step, cols)(array, i, row_step, out.reshape(-1))
        for m, n in np.ndindex(ROWS, cols):
            begin = i + m * row_step + n
            assert np.array_equal(out[m, n], array[begin : begin + step * lanes : step]), (i, row_step, m, n)


def make_load_at(lanes):
    def load_at(array, i, offsets, t, out):
        simd.tile_store(simd.tile_load_at(array, i, offsets, t, lanes, ROWS), out, 0, lanes, lanes)

    return load_at


def test_tile_load_at(kind):
    dtype, lanes = kind
    array, out = numbers(dtype, 30 + lanes), np.empty((ROWS, lanes), dtype)
    offsets = np.array([9, *(11 * np.arange(ROWS) % 17), 5])
    for i, t in ((0, 0), (2, 1), (12, 2)):
        operation(make_load_at, lanes)(array, i, offsets, t, out.reshape(-1))
        assert np.array_equal(out, [array[i + offset :][:lanes] for offset in offsets[t : t + ROWS]]), (i, t)


def make_push_and_meet(lanes):
    def push_and_meet(array, count, b, offsets, t, out):
        rows = simd.tile_zeros(array, lanes, ROWS, 1)
        for m in range(ROWS + 1):  # the first row is pushed out again
            rows = simd.tile_push(rows, array, 5 * m, count)
        acc = simd.tile_meet(simd.tile_load(out, 0, COLS * lanes, lanes, lanes, ROWS, COLS), rows, b, 2, offsets, t)
        simd.tile_store(acc, out, 0, COLS * lanes, lanes)

    return push_and_meet


def test_tile_push_and_meet(kind):
    """The row that was pushed last is the first; of a row, lanes past `count` are zeros."""
    dtype, lanes = kind
    array, b = numbers(dtype, 5 * ROWS + lanes), numbers(dtype, 30 + lanes)
    offsets = np.array([9, *(11 * np.arange(COLS) % 17), 5])
    for count, t in itertools.product((0, 1, lanes - 1, lanes, lanes + 1), (0, 1, 2)):
        out = numbers(dtype, ROWS * COLS * lanes).reshape(ROWS, COLS, lanes)
        rows = [np.where(np.arange(lanes) < count, array[5 * m : 5 * m + lanes], 0) for m in range(ROWS, 0, -1)]
        cols = [b[2 + offset :][:lanes] for offset in offsets[t : t + COLS]]
        expected = out + np.array([[row * col for col in cols] for row in rows])
        operation(make_push_and_meet, lanes)(array, count, b, offsets, t, out.reshape(-1))
        assert np.array_equal(out, expected), (count, t)


def make_vector_sum(lanes):
    def vector_sum(array, i, out):
        out[0] = simd.vector_sum(array, i, lanes)

    return vector_sum


def test_vector_sum(kind):
    dtype, lanes = kind
    array, out = numbers(dtype, 3 * lanes), np.empty(1, dtype)
    for i in (0, 3, 2 * lanes):
        operation(make_vector_sum, lanes)(array, i, out)
        assert out[0] == array[i : i + lanes].sum()


def make_gather(lanes):
    def gather(array, i, row_step, col_step, lane_step, count, out):
        tile = simd.tile_gather(array, i, row_step, col_step, lane_step, count, lanes, ROWS, COLS)
        simd.tile_store(tile, out, 0, COLS * lanes, lanes)

    return gather


def test_tile_gather(kind):
    dtype, lanes = kind
    array, out = numbers(dtype, 20 * lanes), np.empty((ROWS, COLS, lanes), dtype)
    for i, row_step, col_step, lane_step in ((0, 3, 1, 9), (5 * lanes, -3, -1, 4), (2, lanes + 1, 3 * lanes, 1)):
        for count in {1, lanes - 1, lanes, lanes + 3}:
            operation(make_gather, lanes)(array, i, row_step, col_step, lane_step, count, out.reshape(-1))
            m, n, lane = np.indices(out.shape)
            places = i + m * row_step + n * col_step + np.minimum(lane, count - 1) * lane_step
            assert np.array_equal(out, array[places]), (i, row_step, col_step, lane_step, count)


def make_clip(lanes):
    def clip(array, count, less, out):
        tile = simd.tile_load(array, 0, COLS * lanes, lanes, lanes, ROWS, COLS)
        simd.tile_store(simd.tile_clip(tile, count, less), out, 0, COLS * lanes, lanes)

    return clip


def test_tile_clip(kind):
    dtype, lanes = kind
    array, out = numbers(dtype, ROWS * COLS * lanes), np.empty((ROWS, COLS, lanes), dtype)
    for count, less in itertools.product((1, lanes - 1, lanes, lanes + 1, 100 * lanes), (0, 1)):
        operation(make_clip, lanes)(array, count, less, out.reshape(-1))
        _, n, lane = np.indices(out.shape)
        assert np.array_equal(out, np.where(lane < count - n * less, array.reshape(out.shape), 0)), (count, less)


def make_corner(lanes, rows, cols):
    def corner(array, out):
        tile = simd.tile_load(array, 0, COLS * lanes, lanes, lanes, ROWS, COLS)
        simd.tile_store(simd.tile_corner(tile, rows, cols), out, 0, cols * lanes, lanes)

    return corner


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (ROWS - 1, COLS), (ROWS, COLS - 1), (ROWS, COLS)])
def test_tile_corner(kind, rows, cols):
    dtype, lanes = kind
    array, out = numbers(dtype, ROWS * COLS * lanes), np.empty((rows, cols, lanes), dtype)
    operation(make_corner, lanes, rows, cols)(array, out.reshape(-1))
    assert np.array_equal(out, array.reshape(ROWS, COLS, lanes)[:rows, :cols])


def make_outer(lanes):
    def outer(start, a, i, step, b, j, out):
        tile = simd.tile_load(start, 0, COLS * lanes, lanes, lanes, ROWS, COLS)
        simd.tile_store(simd.tile_outer(tile, a, i, step, b, j), out, 0, COLS * lanes, lanes)

    return outer


def test_tile_outer(kind):
    dtype, lanes = kind
    start, a, b = (numbers(dtype, size, seed) for seed, size in enumerate((ROWS * COLS * lanes, 30, 4 * lanes)))
    out = np.empty((ROWS, COLS * lanes), dtype)
    for i, step, j in ((0, 1, 0), (2, 7, 3), (20, -3, 2 * lanes)):
        operation(make_outer, lanes)(start, a, i, step, b, j, out.reshape(-1))
        expected = np.outer(a[i + step * np.arange(ROWS)], b[j : j + COLS * lanes])
        assert np.array_equal(out, start.reshape(out.shape) + expected), (i, step, j)


def make_outer_at(lanes):
    def outer(start, a, i, offsets, t, b, j, col_step, out):
        tile = simd.tile_load(start, 0, COLS * lanes, lanes, lanes, ROWS, COLS)
        simd.tile_store(simd.tile_outer_at(tile, a, i, offsets, t, b, j, col_step), out, 0, COLS * lanes, lanes)

    return outer


def test_tile_outer_at(kind):
    dtype, lanes = kind
    start, a, b = (numbers(dtype, size, seed) for seed, size in enumerate((ROWS * COLS * lanes, 30, 5 * lanes)))
    out, offsets = np.empty((ROWS, COLS * lanes), dtype), np.array([9, *(11 * np.arange(ROWS) % 17), 5])
    for i, t, j, col_step in ((0, 0, 0, lanes), (2, 1, 3, lanes + 2), (12, 2, 2 * lanes, 1)):
        operation(make_outer_at, lanes)(start, a, i, offsets, t, b, j, col_step, out.reshape(-1))
        vectors = np.concatenate([b[j + n * col_step :][:lanes] for n in range(COLS)])
        expected = np.outer(a[i + offsets[t : t + ROWS]], vectors)
        assert np.array_equal(out, start.reshape(out.shape) + expected), (i, t, j)


def make_transpose(lanes, rows):
    def transpose(array, step, out, row_step):
        tile = simd.tile_load(array, 0, step, 0, lanes, rows, 1)
        simd.tile_store(simd.tile_transpose(tile), out, 0, row_step, lanes)

    return transpose


@pytest.mark.parametrize("vectors", [1, 2])
def test_tile_transpose(kind, vectors):
    dtype, lanes = kind
    rows = vectors * lanes
    array, out = numbers(dtype, rows * (lanes + 3)), np.empty((lanes, rows + 1), dtype)
    operation(make_transpose, lanes, rows)(array, lanes + 3, out.reshape(-1), rows + 1)
    assert np.array_equal(out[:, :rows], array.reshape(rows, -1)[:, :lanes].T)


def make_axpy(lanes):
    def axpy(start, a, i, b, j, row_step, col_step, out):
        tile = simd.tile_load(start, 0, COLS * lanes, lanes, lanes, ROWS, COLS)
        simd.tile_store(simd.tile_axpy(tile, a, i, b, j, row_step, col_step), out, 0, COLS * lanes, lanes)

    return axpy


def test_tile_axpy(kind):
    dtype, lanes = kind
    start, a, b = (numbers(dtype, size, seed) for seed, size in enumerate((ROWS * COLS * lanes, 9, 20 * lanes)))
    out = np.empty((ROWS, COLS, lanes), dtype)
    for i, j, *steps in ((0, 0, COLS * lanes, lanes), (8, 3, 1, 2), (4, 9 * lanes, -lanes - 1, lanes - 1)):
        operation(make_axpy, lanes)(start, a, i, b, j, *steps, out.reshape(-1))
        expected = start.reshape(out.shape) + a[i] * windows(b, j, *steps, out.shape)
        assert np.array_equal(out, expected), (i, j, steps)


def make_dot(lanes):
    def dot(start, a, i, step, b, j, offsets, t, count, out):
        tile = simd.tile_load(start, 0, COLS * lanes, lanes, lanes, ROWS, COLS)
        simd.tile_store(simd.tile_dot(tile, a, i, step, b, j, offsets, t, count), out, 0, COLS * lanes, lanes)

    return dot


def test_tile_dot(kind):
    dtype, lanes = kind
    start = numbers(dtype, ROWS * COLS * lanes)
    offsets, i, step, j, t = np.array([9, 0, 2 * lanes + 3, 5]), 1, lanes + 2, 2, 1
    out = np.empty((ROWS, COLS, lanes), dtype)
    for count in (None, 0, 1, 2, lanes - 1, lanes, lanes + 1, 5 * lanes):
        here = lanes if count is None else min(count, lanes)
        a, b = np.full(6 * lanes + 9, np.nan, dtype), np.full(6 * lanes + 9, np.nan, dtype)  # where nothing is read
        expected = start.reshape(out.shape).copy()
        rows = [slice(i + m * step, i + m * step + here) for m in range(ROWS)]
        runs = [slice(j + offsets[t + n], j + offsets[t + n] + here) for n in range(COLS)]
        for array, parts in ((a, rows), (b, runs)):
            for seed, part in enumerate(parts):
                array[part] = numbers(dtype, here, seed)
        for m, n in np.ndindex(ROWS, COLS):
            expected[m, n, :here] += a[rows[m]] * b[runs[n]]
        operation(make_dot, lanes)(start, a, i, step, b, j, offsets, t, count, out.reshape(-1))
        assert np.array_equal(out, expected), count


def make_store_every(lanes, cols, step):
    def store_every(array, out, i, row_step, rows, count):
        tile = simd.tile_load(array, 0, cols * lanes, lanes, lanes, ROWS, cols)
        return simd.tile_store_every(tile, out, i, row_step, step, rows, count)

    return store_every


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("cols", [1, 2, 4])
def test_tile_store_every(kind, cols, step):
    dtype, lanes = kind
    width = cols * lanes
    run, row_step = operation(make_store_every, lanes, cols, step), step * width + 1
    counts = sorted({0, 1, cols + 1, lanes, lanes + 1, width - 1, width, 99})
    for rows, count in itertools.product((-1, 0, 1, 2, ROWS, ROWS + 1), counts):
        array = numbers(dtype, ROWS * width)
        dealt = array.reshape(ROWS, cols, lanes).transpose(0, 2, 1).reshape(ROWS, width)
        out, expected = (np.full(3 + ROWS * row_step, np.nan, dtype) for _ in range(2))
        n = min(count, width)
        for m in range(min(max(rows, 0), ROWS)):
            expected[3 + m * row_step :][: step * n : step] = dealt[m, :n]
        assert run(array, out, 3, row_step, rows, count) == 0
        assert np.array_equal(out, expected, equal_nan=True), (rows, count)
        for value in (np.nan, np.inf, -np.inf):  # in the last column of the second row, second lane
            array[width + (cols - 1) * lanes + 1] = value
            stored = rows > 1 and count > cols + cols - 1
            assert (run(array, out, 3, row_step, rows, count) != 0) == stored, (rows, count, value)


@pytest.mark.parametrize("count", [2**31 - 1, 2**31, 2**32, 2**32 + 1])
def test_counts_of_more_than_32_bits_take_all_lanes(kind, count):
    dtype, lanes = kind
    ones, offsets = np.ones(8 * lanes, dtype), np.zeros(COLS, np.int64)
    out = np.full(ROWS * COLS * lanes, np.nan, dtype)
    operation(make_dot, lanes)(np.zeros_like(out), ones, 0, 1, ones, 0, offsets, 0, count, out)
    assert (out == 1).all(), "tile_dot"
    out = np.full(2 * lanes, np.nan, dtype)
    # one row of three, so that the masks decide
    assert operation(make_store_every, lanes, 2, 1)(ones, out, 0, 0, 1, count) == 0
    assert (out == 1).all(), "tile_store_every"


def make_transform(lanes, m, R, S, name, rows, cols):
    def transform(array, out, row_step):
        tile = simd.tile_load(array, 0, cols * lanes, lanes, lanes, rows, cols)
        simd.tile_store(simd.tile_transform(tile, m, R, S, name), out, 0, row_step, lanes)

    return transform


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize(
    ("m", "R", "S", "name", "less"),
    [
        (m, R, S, name, less)
        for m, R, name in simd.MATRICES
        for S in (1, 2, 3)
        for less in ([(0, 0), (1, 0), (0, 1), (1, 1)] if name == "weight" else [(0, 0)])
        if (m, S, name) in simd.MATRICES and max(R, S) > 1
    ],
)
def test_tile_transform(dtype, m, R, S, name, less):
    """And of weights that lack the last row or column, as if they were zeros. Each lane is by itself."""
    lanes = tiles.lanes(dtype)
    left, right = (np.array(simd.MATRICES[m, taps, name]) for taps in (R, S))
    rows, cols = (max(M.shape[1] - n, 1) for M, n in zip((left, right), less))
    array, out = numbers(dtype, rows * cols * lanes), np.empty((len(left), len(right), lanes), dtype)
    operation(make_transform, lanes, m, R, S, name, rows, cols)(array, out.reshape(-1), len(right) * lanes)
    left, right = left[:, :rows], right[:, :cols]
    given = array.reshape(rows, cols, lanes).astype(np.float64)
    expected = np.einsum("im,mnl,jn->ijl", left, given, right)
    # thirds are not exact: each factor, product and sum of two times three terms may be rounded
    inexact = (m, name) == (4, "weight")
    terms = np.einsum("im,mnl,jn->ijl", np.abs(left), np.abs(given), np.abs(right))
    assert_within(out, expected, 18 * np.finfo(dtype).eps * terms if inexact else 0)


def make_add(lanes):
    def add(start, array, i, step, out):
        tile = simd.tile_load(start, 0, COLS * lanes, lanes, lanes, ROWS, COLS)
        simd.tile_store(simd.tile_add(tile, array, i, step), out, 0, COLS * lanes, lanes)

    return add


def test_tile_add(kind):
    dtype, lanes = kind
    start, array, out = numbers(dtype, ROWS * COLS * lanes), numbers(dtype, 9, 1), np.empty(ROWS * COLS * lanes, dtype)
    for i, step in itertools.product(range(2, 5), (0, 1, 2, -1)):
        operation(make_add, lanes)(start, array, i, step, out)
        rows = array[i + step * np.arange(ROWS)]
        assert np.array_equal(out.reshape(ROWS, -1), start.reshape(ROWS, -1) + rows[:, None]), (i, step)


def make_spill(lanes):
    def spill(array, i, out, first):
        kept = simd.tile_spill(simd.tile_load(array, i, COLS * lanes, lanes, lanes, ROWS, COLS))
        target = simd.pointer(out, first)
        for at in range(ROWS * COLS * lanes):
            target[at] = kept[at]

    return spill


def test_tile_spill_and_pointer(kind):
    dtype, lanes = kind
    size = ROWS * COLS * lanes
    array, out = numbers(dtype, size + 3), np.full(size + 5, 77, dtype)
    operation(make_spill, lanes)(array, 3, out, 2)
    assert np.array_equal(out, [77, 77, *array[3:], 77, 77, 77])


def make_prefetch(level):
    def prefetch(array, index):
        simd.prefetch(array, index, level)
        simd.prefetch_tile(array, index, 1 << 30, 16, 2, 3)
        return array[0]

    return prefetch


def test_prefetch_of_what_is_not_there():
    array = np.ones(3, FLOAT32)
    for index in (0, 3, -1, 1 << 40, -(1 << 40)):
        for level in (1, 2):
            assert operation(make_prefetch, level)(array, index) == 1


def test_kernels_of_other_sizes_have_other_names():
    """Else what one process keeps on disk is run for what another keeps under the same name."""
    names = [
        launch.compiled(make, *sizes).serial.py_func.__qualname__
        for make, sizes in (
            (plans.make_dots, (8, 8, 1, 1, 3, 3, False)),
            (plans.make_dots, (8, 8, 1, 1, 5, 2, True)),
            (plans.make_winograd, (2, 3, 3, 8, *MIDDLE, False)),
            (plans.make_winograd, (4, 3, 3, 8, *MIDDLE, False)),
            (plans.make_winograd_weight, (3, 3, 8, *MIDDLE, 16, False)),
            (plans.make_winograd_weight, (3, 3, 8, *MIDDLE, 16, True)),
        )
    ]
    assert len(set(names)) == 6
    assert "dots_8_8_1_1_3_3_False_serial" in names[0]


@pytest.mark.parametrize(("m", "taps"), [(2, 1), (2, 2), (2, 3), (4, 1), (4, 3)])
def test_winograds_matrices_are_a_correlation(m, taps):
    """Along one axis. Both sides are linear in the inputs and in the weights: pairs of units decide, in fractions."""
    A, B, G = (
        np.array([[Fraction(value).limit_denominator(100) for value in row] for row in simd.MATRICES[m, taps, name]])
        for name in ("output", "input", "weight")
    )
    results, side = A.shape
    assert (results, side) == ((m, m + taps - 1) if taps > 1 else (1, 1))
    exact = ((A, "output"), (B, "input"))
    assert all((np.float64(M) == np.array(simd.MATRICES[m, taps, name])).all() for M, name in exact)
    assert np.abs(np.float64(G) - np.array(simd.MATRICES[m, taps, "weight"])).max() < 1e-16
    for at, tap in itertools.product(range(side), range(taps)):
        d, g = np.full(side, Fraction(0)), np.full(taps, Fraction(0))
        d[at], g[tap] = Fraction(1), Fraction(1)
        correlation = [(d[i : i + taps] * g).sum() for i in range(results)]
        assert (A @ ((G @ g) * (B @ d))).tolist() == correlation, (at, tap)
    if taps > 1:  # without the last tap the last product is nothing, whatever the input
        assert not any(G[-1, :-1])


def test_winograds_gradient_is_a_correlation():
    """Of inputs with the gradients of 2x2 results, by the same transforms transposed."""
    A, B, G = (np.array(simd.MATRICES[2, 3, name]) for name in ("grad", "input", "weight_grad"))
    for at, result in itertools.product(np.ndindex(4, 4), np.ndindex(2, 2)):
        d, grad = np.zeros((4, 4)), np.zeros((2, 2))
        d[at], grad[result] = 1, 1
        correlation = [[(d[r : r + 2, s : s + 2] * grad).sum() for s in range(3)] for r in range(3)]
        assert (G @ ((A @ grad @ A.T) * (B @ d @ B.T)) @ G.T).tolist() == correlation, (at, result)
