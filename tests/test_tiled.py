"""The tiled kernels: every tile at its edges, memory that must not be touched, NaN, threads, and tile operations.

Operands are small integers, so that sums are exact in either dtype and in any order: results are compared for
equality. Winograd's halves and quarters are exact too.
"""

import contextlib
import ctypes
import itertools
import mmap
import os
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_within, literal, random_array, random_integers, unwritten

import loopconv
from loopconv import geometry, registry
from loopconv.cases import CASES
from loopconv.loops.compile import jit
from loopconv.tiled import driver, simd, tiles

FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")
SHAPES = tiles.TILES[tiles.registers()]
RESULT = {"forward": "y", "adjoint": "x", "weight": "w"}


def name_of(shape):
    return "x".join(map(str, shape))


def both(shapes):
    """Parameters (tile, dtype): all shapes in float32, the first, the middle and the last in float64 as well."""
    few = {shapes[0], shapes[len(shapes) // 2], shapes[-1]}
    pairs = [(shape, dtype) for shape in shapes for dtype in (FLOAT32, FLOAT64) if dtype == FLOAT32 or shape in few]
    return pytest.mark.parametrize(
        ("tile", "dtype"), pairs, ids=[f"{name_of(shape)}-{dtype}" for shape, dtype in pairs]
    )


def forget():
    """Drop every choice that the driver remembers."""
    plans = driver.forward_plan, driver.adjoint_plan, driver.weight_plan, driver.dots_plan
    for choice in (*plans, driver.has_few_channels):
        if hasattr(choice, "cache_clear"):
            choice.cache_clear()


def can_winograd(geometry, p, layout, source, result, dtype):
    """`driver.is_winograd` without the question whether it is faster; it never is where there is nothing to add up."""
    takes = p.k[1:] == (3, 3) and p.stride == (1, 1, 1) and p.dilation[1:] == (1, 1)
    return takes and p.N * prod(result.sizes) * p.C * p.K > 0


@pytest.fixture
def force(monkeypatch):
    """Set what the driver chooses: `force(direct_tile=(rows, cols), ...)`."""

    def set_choices(*, winograd=None, few_channels=None, **forced):
        if winograd is not None:
            monkeypatch.setattr(driver, "is_winograd", can_winograd if winograd else lambda *_: False)
        if few_channels is not None:
            monkeypatch.setattr(driver, "has_few_channels", lambda *_: few_channels)
        for name, tile in forced.items():
            choice = tile if name == "direct_tile" or callable(tile) else (0, *tile)
            monkeypatch.setattr(driver, name, choice if callable(choice) else lambda *_, choice=choice: choice)
        forget()

    forget()
    yield set_choices
    monkeypatch.undo()
    forget()


@pytest.fixture
def shared(monkeypatch):
    """Every call is worth threads; the value sets their number."""
    monkeypatch.setattr(loopconv.threads, "SHARED_MACS", 0)
    monkeypatch.setattr(loopconv.threads, "_available", lambda: 2)
    monkeypatch.setattr(loopconv.threads, "_requested", loopconv.threads._requested)
    monkeypatch.setattr(loopconv.threads, "_pool", None)
    yield loopconv.set_num_threads
    if loopconv.threads._pool is not None:
        loopconv.threads._pool.shutdown()


def operands(g, dtype, make=random_integers):
    return {name: make(getattr(g, f"{name}_shape"), dtype, seed) for seed, name in enumerate("xwy")}


def bias_of(contraction, g, dtype):
    """A bias for the contraction, as keyword arguments; none for the weight gradient."""
    channels = {"forward": g.k, "adjoint": g.c}.get(contraction)
    return {} if channels is None else {"bias": random_integers((channels,), dtype, 3)}


def call(contraction, g, arrays, **bias):
    """The tiled result, in a new array."""
    name = RESULT[contraction]
    dtype = arrays["x"].dtype
    given = {**arrays, name: unwritten(arrays[name].shape, dtype)}
    registry.select(contraction, "tiled", g, dtype)(g, **given, **bias)
    return given[name]


def judged(contraction, g, arrays, **bias):
    """What the reference makes of the same operands, in double precision."""
    wide = {name: array.astype(np.float64) for name, array in {**arrays, **bias}.items()}
    registry.select(contraction, "reference", g, FLOAT64)(g, **wide)
    return wide[RESULT[contraction]]


def check(contraction, g, dtype, message=""):
    """The tiled result of integers is that of the reference, exactly."""
    arrays, bias = operands(g, dtype), bias_of(contraction, g, dtype)
    actual, expected = call(contraction, g, arrays, **bias), judged(contraction, g, arrays, **bias)
    assert_within(actual, expected, 0, f"{contraction} {message} {g} {dtype}")


# ------------------------------------------------------------------------------------ every tile shape


def around(*sizes):
    """One less, as many and one more, of each; none below 1."""
    return sorted({size + d for size in sizes for d in (-1, 0, 1)} - {0, -1})


@both(SHAPES)
def test_direct_tile_at_its_edges(tile, dtype, force):
    """1-D, where the number of result pixels is the flat length that tiles are laid over."""
    force(direct_tile=tile, winograd=False)
    rows, cols = tile
    lanes = tiles.lanes(dtype)
    width = cols * lanes
    for M, flat in itertools.product(around(rows), [*around(lanes, width), 2 * width + 1, 3 * width - 1]):
        check("forward", geometry.conv((1, 2, flat + 2), (M, 2, 3)), dtype)
        check("adjoint", geometry.conv((1, M, flat), (2, M, 3), padding=1), dtype)
    for flat in around(width):
        check("forward", geometry.conv((1, 2, flat), (2 * rows + 1, 2, 3), padding=1), dtype)
        # phases of the result without gaps, and ones that no tap reaches
        check("adjoint", geometry.conv((1, rows + 1, 2 * flat), (2, rows + 1, 2), stride=2), dtype)
        check("adjoint", geometry.conv((1, rows, 3 * flat), (2, rows, 2), stride=3), dtype)


@both(SHAPES)
def test_direct_tile_on_primes(tile, dtype, force):
    force(direct_tile=tile, winograd=False)
    for contraction, M in itertools.product(("forward", "adjoint"), (5, 13)):
        k, c = (M, 3) if contraction == "forward" else (3, M)
        check(contraction, geometry.conv((2, c, 17, 19), (k, c, 3, 5), padding=(1, 2), stride=(1, 2)), dtype)
        check(contraction, geometry.conv((1, c, 41, 37), (k, c, 3, 2), padding=((2, 0), (-1, 3))), dtype)
        check(contraction, geometry.conv((1, 2 * c, 11, 31), (2 * k, c, 2, 3), groups=2, dilation=(3, 2)), dtype)
        check(contraction, geometry.conv((1, c, 3, 5, 7), (k, c, 2, 3, 2), padding=1, stride=(2, 1, 1)), dtype)


@both(SHAPES + tuple((rows, 1) for rows, cols in SHAPES if cols > 1))
def test_weight_tile_at_its_edges(tile, dtype, force):
    rows, cols = tile
    width = cols * tiles.lanes(dtype)
    for swapped in (False, True):  # the first question is about K broadcast, the second about C
        costs = itertools.cycle((1, 0) if swapped else (0, 1))
        force(few_channels=False, weight_tile=lambda *_, costs=costs: (next(costs), *tile))
        for few, many in itertools.product(around(rows), around(width)):
            k, c = (many, few) if swapped else (few, many)
            check("weight", geometry.conv((1, c, 7), (k, c, 2)), dtype, f"swapped={swapped}")
        k, c = (width + 1, rows) if swapped else (rows, width + 1)
        for g in (
            geometry.conv((2, c, 5, 7), (k, c, 3, 2), padding=(1, 2), stride=(1, 2)),
            geometry.conv((1, 2 * c, 5, 4), (2 * k, c, 2, 2), groups=2, dilation=2),
            geometry.conv((1, c, 2, 3, 5), (k, c, 2, 1, 2), stride=(1, 2, 1)),
            geometry.conv((1, c, 2, tiles.WEIGHT_CHUNK + 5), (k, c, 1, 2)),  # more pixels than one chunk
        ):
            check("weight", g, dtype, f"swapped={swapped}")


@both(((1, 1), (1, 9), (2, 3), (3, 9), (5, 1), (4, 4), (5, 5)))
def test_dots_tile_at_its_edges(tile, dtype, force):
    force(few_channels=True, dots_tile=tile)
    rows, cols = tile
    lanes = tiles.lanes(dtype)
    for K, taps in itertools.product((rows, rows + 1, 2 * rows + 1), (cols, cols + 1, 2 * cols + 1)):
        for pixels in around(lanes):
            check("weight", geometry.conv((1, 1, pixels + taps - 1), (K, 1, taps)), dtype)
    for pixels in around(lanes, 2 * lanes):
        settings = {"padding": (1, cols), "stride": (2, 1), "groups": 2}
        check("weight", geometry.conv((2, 4, 5, pixels), (2 * rows, 2, 3, cols), **settings), dtype)
    check("weight", geometry.conv((1, 2, 3, 4, 37), (rows, 2, 2, 1, cols), dilation=(1, 1, 2)), dtype)


WINOGRAD = (
    [((n, p, q), 1) for n in (1, 2) for p, q in ((1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (1, 35), (13, 1))]
    + [((1, p, q), pad) for p, q in ((3, 3), (4, 5), (7, 67), (18, 17), (5, 34)) for pad in (0, 1, 2)]
    + [((2, 7, 5), ((0, 2), (3, 1))), ((3, 6, 9), ((2, 0), (0, 1))), ((1, 8, 9), ((-1, -2), (-2, 1)))]
    + [((1, 37, 33), 1), ((2, 33, 32), 0)]  # images that are not folded
)


@both((SHAPES[0], SHAPES[len(SHAPES) // 2], SHAPES[-2], SHAPES[-1]))
@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
def test_winograd_tile_on_odd_sizes(contraction, tile, dtype, force, monkeypatch):
    force(winograd=True, winograd_tile=tile)
    finite = watched(monkeypatch)
    rows = tile[0]
    for at, ((n, p, q), padding) in enumerate(WINOGRAD):
        M, groups = (rows, rows + 1, max(rows - 1, 1), 1)[at % 4], 1 + at % 3
        c, k = (2, M) if contraction == "forward" else (M, 2)
        g = geometry.conv((n, c * groups, p, q), (k * groups, c, 3, 3), padding=padding, groups=groups)
        check(contraction, g, dtype)
    c, k = (3, rows + 1) if contraction == "forward" else (rows + 1, 3)
    others = [
        geometry.conv((2, c, 3, 5, 7), (k, c, 1, 3, 3), padding=(0, 1, 1)),
        geometry.conv((1, c, 5, 6, 35), (k, c, 3, 3, 3), padding=1),
        geometry.conv((2, c, 7, 4, 5), (k, c, 2, 3, 3), padding=((0, 2), (1, 0), (2, 1)), dilation=(3, 1, 1)),
    ]
    for g in others:
        check(contraction, g, dtype)
    assert finite == [True] * (len(WINOGRAD) + len(others))


def test_winograd_of_nothing(force):
    """No pixels, which leaves sums of no products: the padding, and the bias."""
    for choices in ({}, {"winograd": True}):
        force(**choices)
        check("forward", geometry.conv((2, 64, 0, 40), (64, 64, 3, 3), padding=2), FLOAT32)
        check("adjoint", geometry.conv((2, 64, 0, 40), (64, 64, 3, 3), padding=2), FLOAT32)
        check("adjoint", geometry.conv_transpose((2, 64, 0, 40), (64, 64, 3, 3)), FLOAT32)


def watched(monkeypatch):
    """What Winograd's kernel says of its results from now on: whether they are all finite."""
    said, run = [], driver._run_winograd

    def watching(*arguments):
        said.append(run(*arguments))
        return said[-1]

    monkeypatch.setattr(driver, "_run_winograd", watching)
    return said


@pytest.mark.parametrize("bytes_", [1, 20_000])
def test_winograd_in_several_parts(bytes_, force, monkeypatch):
    monkeypatch.setattr(driver, "WINOGRAD_BYTES", bytes_)
    force(winograd=True)
    g = geometry.conv((1, 5, 61, 47), (7, 5, 3, 3), padding=1)
    assert driver.forward_plan(g, FLOAT32).numbers[13] > 1
    for contraction in ("forward", "adjoint"):
        check(contraction, g, FLOAT32)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
def test_winograd_rounds_as_the_direct_kernel(contraction, dtype, force):
    force(winograd=True)
    g = geometry.conv((1, 32, 21, 19), (24, 32, 3, 3), padding=1)
    arrays = operands(g, dtype, random_array)
    magnitude = judged(contraction, g, {name: np.abs(array) for name, array in arrays.items()})
    tolerance = registry.tolerance(g, contraction, dtype) * magnitude
    assert_within(call(contraction, g, arrays), judged(contraction, g, arrays), tolerance, f"{contraction} {dtype}")


@pytest.mark.parametrize("winograd", [False, True])
@pytest.mark.parametrize("few_channels", [False, True])
def test_every_case_by_either_algorithm(winograd, few_channels, force):
    force(winograd=winograd, few_channels=few_channels)
    for case in CASES:
        for contraction in registry.CONTRACTIONS:
            check(contraction, case.geometry, FLOAT32, case.name)


# -------------------------------------------------------------------------------------- the predicates

PROCESSORS = {"avx512": (64, 32), "avx2": (32, 16), "sse": (16, 16), "neon": (16, 32)}

# (geometry, forward and adjoint by Winograd, weight gradient by dot products; None: depends on the processor)
CHOICES = {
    "64-3x3": (geometry.conv((1, 64, 56, 56), (64, 64, 3, 3), padding=1), True, False),
    "128-batch": (geometry.conv((16, 128, 28, 28), (128, 128, 3, 3), padding=1), True, False),
    "3d-1x3x3": (geometry.conv((1, 64, 8, 28, 28), (64, 64, 1, 3, 3)), True, False),
    "rgb": (geometry.conv((1, 3, 224, 224), (64, 3, 3, 3), padding=1), True, None),
    "pointwise": (geometry.conv((1, 64, 56, 56), (64, 64, 1, 1)), False, False),
    "5x5": (geometry.conv((1, 64, 56, 56), (64, 64, 5, 5), padding=2), False, False),
    "stride": (geometry.conv((1, 64, 56, 56), (64, 64, 3, 3), padding=1, stride=2), False, False),
    "dilation": (geometry.conv((1, 64, 56, 56), (64, 64, 3, 3), padding=2, dilation=2), False, False),
    "1d": (geometry.conv((1, 64, 1000), (64, 64, 3)), False, False),
    "depthwise": (geometry.conv((1, 64, 56, 56), (64, 1, 3, 3), padding=1, groups=64), False, True),
    "one-channel": (geometry.conv((1, 1, 64, 64), (1, 1, 9, 9)), False, True),
    "3d": (geometry.conv((1, 32, 8, 28, 28), (32, 32, 3, 3, 3), padding=1), True, False),
    "tiny": (geometry.conv((1, 1, 2, 2), (1, 1, 3, 3), padding=1), False, True),
}


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_which_algorithm(processor, dtype, force, monkeypatch):
    width, registers = PROCESSORS[processor]
    monkeypatch.setattr(tiles, "vector_bytes", lambda: width)
    monkeypatch.setattr(tiles, "registers", lambda: registers)
    for name, (g, winograd, dots) in CHOICES.items():
        expected = driver.WinogradPlan if winograd else driver.DirectPlan
        assert type(driver.forward_plan(g, dtype)) is expected, name
        assert type(driver.adjoint_plan(g, dtype)) is expected, name
        if dots is not None:
            assert driver.has_few_channels(g, dtype) is dots, name
        rows, cols = driver.direct_tile(g.k // g.groups, [g.output[-1]], dtype)
        assert (rows, cols) in tiles.TILES[registers], name


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
    ]
    assert [driver.forward_plan(g, FLOAT32).source is None for g in in_place] == [True] * len(in_place)
    assert [driver.forward_plan(g, FLOAT32).source is None for g in copied] == [False] * len(copied)


@pytest.mark.parametrize("stride", [(registry.TILED_PHASES + 1,), (17, 16)])
def test_long_strides_are_left_to_the_loops(stride):
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
    check("adjoint", longest, FLOAT32)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "complex64", "complex128"])
def test_other_dtypes_are_refused(dtype):
    g = geometry.conv((1, 1, 5), (1, 1, 2))
    for contraction in registry.CONTRACTIONS:
        with pytest.raises(ValueError, match="the tiles hold float32 or float64"):
            registry.select(contraction, "tiled", g, np.dtype(dtype))


# ---------------------------------------------------------------------------------------- guard pages


def new_python(function, timeout=300):
    """(exit status, output, errors) of one function of this file in a new Python."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", f"import test_tiled; test_tiled.{function.__name__}()"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout, done.stderr


def guarded(shape, dtype, at_end):
    """An array of NaN that ends where a protected page begins, or begins where one ends."""
    dtype, page = np.dtype(dtype), mmap.PAGESIZE
    size = int(np.prod(shape, dtype=np.int64))
    inner = max(-(-size * dtype.itemsize // page), 1) * page
    pages = mmap.mmap(-1, inner + 2 * page)
    start = np.frombuffer(pages, np.uint8).ctypes.data
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for address in (start, start + page + inner):
        if protect(address, page, 0):  # PROT_NONE
            raise OSError(ctypes.get_errno(), "mprotect failed")
    offset = page + inner - size * dtype.itemsize if at_end else page
    array = np.frombuffer(pages, dtype, size, offset).reshape(shape)
    array[...] = np.nan
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


class _GuardedNumpy:
    """NumPy whose `empty` is guarded: for what the driver makes without asking `room`."""

    at_end = True

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype):
        return guarded(shape, dtype, self.at_end)


GUARDED = {
    "pointwise in place": geometry.conv((1, 5, 9, 30), (7, 5, 1, 1)),
    "valid in place": geometry.conv((1, 3, 20, 41), (5, 3, 3, 4)),
    "in place, batch": geometry.conv((2, 3, 40, 41), (5, 3, 2, 2)),
    "in place, 1-D": geometry.conv((2, 3, 1201), (5, 3, 5)),
    "in place, 3-D": geometry.conv((2, 3, 5, 9, 11), (4, 3, 2, 3, 2)),
    "in place, dilated": geometry.conv((1, 3, 20, 41), (5, 3, 3, 4), dilation=(4, 5)),
    "in place, adjoint": geometry.conv((1, 7, 40, 60), (3, 7, 2, 2), stride=2),
    "in place, adjoint, gaps": geometry.conv((1, 7, 60, 60), (3, 7, 2, 2), stride=3),
    "padded": geometry.conv((1, 3, 33, 35), (5, 3, 4, 5), padding=2),
    "strided": geometry.conv((1, 3, 33, 35), (5, 3, 5, 4), padding=2, stride=(2, 3)),
    "grouped": geometry.conv((2, 12, 9, 17), (8, 3, 3, 3), padding=1, groups=4),
    "depthwise": geometry.conv((2, 9, 17, 33), (9, 1, 3, 3), padding=1, groups=9),
    "depthwise in place": geometry.conv((1, 9, 17, 33), (9, 1, 3, 3), groups=9),
    "winograd": geometry.conv((1, 17, 35, 37), (15, 17, 3, 3), padding=1),
    "winograd, valid": geometry.conv((1, 4, 35, 38), (26, 4, 3, 3)),
    "winograd, folded": geometry.conv((3, 5, 7, 9), (7, 5, 3, 3), padding=2),
    "winograd, full rows": geometry.conv((1, 2, 66, 130), (3, 2, 3, 3)),
    "winograd, 3-D": geometry.conv((1, 3, 5, 9, 33), (5, 3, 3, 3, 3), padding=1),
    "winograd, 3-D, dilated": geometry.conv((2, 3, 5, 9, 11), (2, 3, 2, 3, 3), dilation=(2, 1, 1)),
    "winograd, one pixel": geometry.conv((1, 1, 3, 3), (1, 1, 3, 3)),
    "winograd, cropped": geometry.conv((1, 3, 21, 20), (5, 3, 3, 3), padding=((-3, 1), (-2, -4))),
    "dots": geometry.conv((1, 1, 33, 47), (3, 1, 5, 5)),
    "dots, padded": geometry.conv((2, 2, 33, 47), (2, 2, 5, 5), padding=2),
    "several parts": geometry.conv((1, 8, 65, 64), (8, 8, 3, 3), padding=1),
    "channels": geometry.conv((1, 67, 3, 5), (65, 67, 2, 2)),
    **{f"1-D, {n} pixels": geometry.conv((1, 1, n), (1, 1, 1)) for n in (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33)},
    **{f"1-D, {n} pixels, 3 taps": geometry.conv((2, 2, n), (3, 2, 3), padding=1) for n in (1, 3, 16, 17)},
    **{f"case {case.name}": case.geometry for case in CASES},
}


def _guarded_calls():
    """All contractions of GUARDED with every array against a protected page, by every algorithm."""
    _without_core_file()
    loopconv.set_num_threads(1)
    driver.np = _GuardedNumpy()
    driver.room = lambda name, size, dtype: guarded((size,), dtype, _GuardedNumpy.at_end)
    run, finite = driver._run_winograd, []

    def watching(*arguments):
        finite.append(run(*arguments))
        return finite[-1]

    driver._run_winograd = watching
    ways = {  # contraction: names and values of driver functions
        "forward": [("is_winograd", lambda *_: False), ("is_winograd", can_winograd)],
        "adjoint": [("is_winograd", lambda *_: False), ("is_winograd", can_winograd)],
        "weight": [("has_few_channels", lambda *_: False), ("has_few_channels", lambda *_: True)],
    }
    calls = 0
    for (name, g), dtype, contraction in itertools.product(GUARDED.items(), (FLOAT32, FLOAT64), ways):
        arrays, bias = operands(g, dtype), bias_of(contraction, g, dtype)
        expected = judged(contraction, g, arrays, **bias)
        seen = set()
        for (choice, value), at_end in itertools.product(ways[contraction], (True, False)):
            setattr(driver, choice, value)
            forget()
            label = f"{contraction} {name} {dtype} {'end' if at_end else 'beginning'}"
            if contraction != "weight":
                plan = getattr(driver, f"{contraction}_plan")(g, dtype)
                if (type(plan), at_end) in seen:
                    continue
                seen.add((type(plan), at_end))
                label += f" {type(plan).__name__}"
            else:
                label += f" dots={value()}"
            print(label, g, flush=True)
            _GuardedNumpy.at_end = at_end
            given = {key: guarded(array.shape, dtype, at_end) for key, array in {**arrays, **bias}.items()}
            for key in set(given) - {RESULT[contraction]}:
                given[key][...] = {**arrays, **bias}[key]
            registry.select(contraction, "tiled", g, dtype)(g, **given)
            assert_within(given[RESULT[contraction]], expected, 0, label)
            assert all(finite), label  # else the direct kernel has covered up what an unwritten number did
            calls += 1
    assert len(finite) > 50
    print(calls, "calls")


posix = pytest.mark.skipif(os.name != "posix", reason="protects pages by mprotect, which only POSIX systems have")


@posix
@pytest.mark.parametrize("function", [_read_past_the_end, _write_before_the_beginning])
def test_a_guard_page_is_noticed(function):
    status, output, _ = new_python(function)
    assert status < 0, (status, output)


@posix
def test_no_kernel_touches_memory_outside_of_its_arrays():
    status, output, errors = new_python(_guarded_calls)
    last = "\n".join(output.splitlines()[-1:])
    assert status == 0, f"exit status {status} in: {last}\n{errors[-3000:]}"
    assert int(last.split()[0]) > 1000


# --------------------------------------------------------------------------- NaN and Inf through Winograd

SPECIAL = geometry.conv((1, 3, 7, 9), (4, 3, 3, 3), padding=1)


def places(shape):
    """The first, the last and three other indices."""
    rng = np.random.default_rng(1)
    return [(0,) * len(shape), tuple(n - 1 for n in shape), *(tuple(rng.integers(shape).tolist()) for _ in range(3))]


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
def test_nan_and_inf_through_winograd(contraction, dtype, force):
    """As the sum of the terms has them, which the direct kernel gives."""
    for name in set("xwy") - {RESULT[contraction]}:
        for value in (np.nan, np.inf, -np.inf):
            for at in places(getattr(SPECIAL, f"{name}_shape")):
                arrays = operands(SPECIAL, dtype)
                arrays[name][at] = value
                results = []
                for winograd in (True, False):
                    force(winograd=winograd)
                    results.append(call(contraction, SPECIAL, arrays))
                message = f"{contraction} {dtype}: {value} in {name}{at}"
                assert np.array_equal(*results, equal_nan=True), message
                expected = literal(contraction, SPECIAL, **{key: a.copy() for key, a in arrays.items()}).astype(dtype)
                assert np.array_equal(results[0], expected, equal_nan=True), message
                assert not np.isfinite(expected).all(), message


@pytest.mark.parametrize(
    ("x_size", "w_size"), [(1e38, 0.25), (2.0**-60, 2e38), (3e38, 2.0**-9)], ids=["inputs", "weights", "large"]
)
@pytest.mark.parametrize("contraction", ["forward", "adjoint"])
def test_transforms_that_overflow(contraction, x_size, w_size, force, monkeypatch):
    """1e38 fits into float32, and so does the sum, but the transform of inputs or weights does not."""
    arrays = {name: np.sign(array + 0.5) for name, array in operands(SPECIAL, FLOAT32).items()}
    arrays["w"] *= np.float32(w_size)
    for name in "xy":
        arrays[name] *= np.float32(x_size)
        arrays[name][0, 0, :5, :5] = np.float32(x_size)
    # one weight of each row of taps, so that the sums stay small where the transform does not
    arrays["w"][:, 1:], arrays["w"][1:] = 0, 0
    arrays["w"][0, 0] = np.float32(w_size)
    arrays["x"][0, :, ::2], arrays["y"][0, :, ::2] = 0, 0
    arrays["x"][0, 0, 1], arrays["y"][0, 0, 1] = np.float32(x_size), np.float32(x_size)
    force(winograd=True)
    finite = watched(monkeypatch)
    actual = call(contraction, SPECIAL, arrays)
    force(winograd=False)
    direct = call(contraction, SPECIAL, arrays)
    assert actual.tobytes() == direct.tobytes()
    expected = judged(contraction, SPECIAL, arrays)
    fits = np.abs(expected) < float(np.finfo(FLOAT32).max) / 8
    assert fits.any()
    assert np.isfinite(actual[fits]).all()
    if contraction == "forward" and w_size != 2.0**-9:
        assert finite == [False]


def test_the_flag_is_the_same_every_time(force, monkeypatch, shared):
    force(winograd=True)
    finite = watched(monkeypatch)
    g = geometry.conv((2, 5, 33, 35), (7, 5, 3, 3), padding=1)
    for n, value in itertools.product((1, 2, 1, 2), (1.0, np.nan, np.inf, -np.inf, np.finfo(FLOAT32).max)):
        shared(n)
        arrays = operands(g, FLOAT32)
        arrays["x"][1, 4, 32, 34] = value
        call("forward", g, arrays)
    assert finite == [True, False, False, False, False] * 4


# -------------------------------------------------------------------------------------------- threads

THREADED = {
    "winograd": ("forward", geometry.conv((1, 32, 40, 41), (33, 32, 3, 3), padding=1), {"winograd": True}),
    "winograd-adjoint": ("adjoint", geometry.conv((3, 7, 9, 11), (33, 7, 3, 3), padding=1), {"winograd": True}),
    "direct": ("forward", geometry.conv((1, 5, 40, 41), (33, 5, 5, 3), padding=1), {"winograd": False}),
    "direct-in-place": ("forward", geometry.conv((1, 5, 40, 41), (7, 5, 5, 3)), {"winograd": False}),
    "direct-adjoint": ("adjoint", geometry.conv((2, 9, 23, 25), (5, 9, 4, 4), stride=2), {"winograd": False}),
    "weight": ("weight", geometry.conv((2, 8, 65, 64), (8, 8, 3, 3), padding=1), {"few_channels": False}),
    "dots": ("weight", geometry.conv((2, 2, 165, 164), (2, 2, 5, 5), padding=1), {"few_channels": True}),
}


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("name", THREADED)
def test_the_same_bits_at_any_number_of_threads(name, dtype, force, shared):
    contraction, g, choices = THREADED[name]
    force(**choices)
    if contraction == "weight":
        plan = (driver.dots_plan if choices["few_channels"] else driver.weight_plan)(g, dtype)
        assert plan.parts > 1
    else:
        plan = getattr(driver, f"{contraction}_plan")(g, dtype)
        assert isinstance(plan, driver.WinogradPlan) == choices["winograd"]
    assert plan.units > 1
    arrays, bits = operands(g, dtype, random_array), []
    for n in (1, 2, 2, 1):
        shared(n)
        result = call(contraction, g, arrays)
        assert np.isfinite(result).all()
        bits.append(result.tobytes())
    assert bits[1:] == bits[:1] * 3


def test_calls_from_several_python_threads(force, shared):
    shared(2)
    work = [(contraction, g) for contraction, g, _ in THREADED.values()]
    work += [(contraction, geometry.conv((2, 3, n, 9), (4, 3, 3, 3), padding=1)) for n in (5, 11) for contraction in
             registry.CONTRACTIONS]  # fmt: skip
    given = [operands(g, FLOAT32) for _, g in work]
    expected = [judged(contraction, g, arrays) for (contraction, g), arrays in zip(work, given)]

    def ten_calls(first):
        wrong = []
        for i in range(10):
            at = (3 * first + 5 * i) % len(work)
            contraction, g = work[at]
            if not np.array_equal(call(contraction, g, given[at]), expected[at]):
                wrong.append((contraction, g))
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ten_calls, range(4))) == [[]] * 4


def _forked_children():
    warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
    loopconv.threads.SHARED_MACS = 0
    loopconv.threads._available = lambda: 2
    loopconv.set_num_threads(2)
    work = {name: (contraction, g, operands(g, FLOAT32)) for name, (contraction, g, _) in THREADED.items()}

    def right():
        return all(
            np.array_equal(call(contraction, g, arrays), judged(contraction, g, arrays))
            for contraction, g, arrays in work.values()
        )

    assert right()
    assert loopconv.threads._pool is not None
    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            signal.alarm(60)  # ends a child that hangs
            code = 1
            with contextlib.suppress(Exception):
                code = 0 if right() and loopconv.threads._pool is not None else 2
            os._exit(code)
        children.append(child)
    assert right()
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_children():
    status, output, errors = new_python(_forked_children)
    assert (status, output.strip()) == (0, "[0, 0]"), errors


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
    params=[(dtype, lanes) for dtype in (FLOAT32, FLOAT64) for lanes in ("native", 4)],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def kind(request):
    """(dtype, lanes): the processor's own vectors, and ones of 4."""
    dtype, lanes = request.param
    return dtype, tiles.lanes(dtype) if lanes == "native" else lanes


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


def make_pairs(lanes):
    def pairs(array, i, row_step, out):
        tile = simd.tile_load_pairs(array, i, row_step, lanes, ROWS, 4)
        simd.tile_store(tile, out, 0, 4 * lanes, lanes)

    return pairs


def test_tile_load_pairs(kind):
    dtype, lanes = kind
    array, out = numbers(dtype, 9 * lanes + 9), np.empty((ROWS, 4, lanes), dtype)
    for i, row_step in ((0, 2 * lanes + 2), (3, 2 * lanes + 3), (5, 1)):
        operation(make_pairs, lanes)(array, i, row_step, out.reshape(-1))
        for m, n in np.ndindex(ROWS, 4):
            begin = i + m * row_step + n
            assert np.array_equal(out[m, n], array[begin : begin + 2 * lanes : 2]), (i, row_step, m, n)


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
    for count in (0, 1, 2, lanes - 1, lanes, lanes + 1, 5 * lanes):
        here = min(count, lanes)
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


def make_store_pairs(lanes):
    def store_pairs(array, out, i, row_step, rows, count):
        tile = simd.tile_load(array, 0, 2 * lanes, lanes, lanes, ROWS, 2)
        return simd.tile_store_pairs(tile, out, i, row_step, rows, count)

    return store_pairs


def test_tile_store_pairs(kind):
    dtype, lanes = kind
    run, row_step = operation(make_store_pairs, lanes), 2 * lanes + 1
    for rows, count in itertools.product((-1, 0, 1, 2, ROWS, ROWS + 1), (0, 1, lanes, lanes + 1, 2 * lanes, 99)):
        array = numbers(dtype, ROWS * 2 * lanes)
        pairs = array.reshape(ROWS, 2, lanes).transpose(0, 2, 1).reshape(ROWS, 2 * lanes)
        out, expected = np.full(8 * lanes, np.nan, dtype), np.full(8 * lanes, np.nan, dtype)
        for m in range(min(max(rows, 0), ROWS)):
            n = min(count, 2 * lanes)
            expected[3 + m * row_step : 3 + m * row_step + n] = pairs[m, :n]
        assert run(array, out, 3, row_step, rows, count) == 0
        assert np.array_equal(out, expected, equal_nan=True), (rows, count)
        for value in (np.nan, np.inf, -np.inf):  # in the second row, fourth of its pairs
            array[2 * lanes + lanes + 1] = value
            stored = rows > 1 and count > 3
            assert (run(array, out, 3, row_step, rows, count) != 0) == stored, (rows, count, value)


def make_columns(lanes, rows):
    wide = 1 << (rows - 1).bit_length()

    def columns(array, i, row_step, here, count, out):
        simd.tile_store(simd.tile_load_columns(array, i, row_step, here, count, lanes, rows), out, 0, wide, wide)

    return columns


@pytest.mark.parametrize("rows", [1, 3, 4, 5])
def test_tile_load_columns(kind, rows):
    dtype, lanes = kind
    wide, i, row_step = 1 << (rows - 1).bit_length(), 2, lanes + 3
    for here, count in itertools.product((0, 1, rows, rows + 1), (0, 1, lanes - 1, lanes, 3 * lanes)):
        array = np.full(i + rows * row_step, np.nan, dtype)  # where nothing is read
        expected = np.zeros((lanes, wide), dtype)
        for m in range(min(here, rows)):
            n, begin = min(count, lanes), i + m * row_step
            array[begin : begin + n] = expected[:n, m] = numbers(dtype, n, m)
        out = np.full_like(expected, np.nan)
        operation(make_columns, lanes, rows)(array, i, row_step, here, count, out.reshape(-1))
        assert np.array_equal(out, expected), (here, count)


@pytest.mark.parametrize("count", [2**31 - 1, 2**31, 2**32, 2**32 + 1])
def test_counts_of_more_than_32_bits_take_all_lanes(kind, count):
    dtype, lanes = kind
    ones, offsets = np.ones(8 * lanes, dtype), np.zeros(COLS, np.int64)
    out = np.full(ROWS * COLS * lanes, np.nan, dtype)
    operation(make_dot, lanes)(np.zeros_like(out), ones, 0, 1, ones, 0, offsets, 0, count, out)
    assert (out == 1).all(), "tile_dot"
    out = np.full(4 * lanes, np.nan, dtype)
    operation(make_columns, lanes, 4)(ones, 0, 1, 4, count, out)
    assert (out == 1).all(), "tile_load_columns"
    out = np.full(2 * lanes, np.nan, dtype)
    assert operation(make_store_pairs, lanes)(ones, out, 0, 0, ROWS, count) == 0
    assert (out == 1).all(), "tile_store_pairs"


def make_transform(lanes, name, rows):
    def transform(array, out, size):
        tile = simd.tile_load(array, 0, rows * lanes, lanes, lanes, rows, rows)
        simd.tile_store(simd.tile_transform(tile, name), out, 0, size * lanes, lanes)

    return transform


@pytest.mark.parametrize("name", simd.MATRICES)
def test_tile_transform(kind, name):
    dtype, lanes = kind
    M = np.array(simd.MATRICES[name])
    array, out = numbers(dtype, M.shape[1] ** 2 * lanes), np.empty((len(M), len(M), lanes), dtype)
    operation(make_transform, lanes, name, M.shape[1])(array, out.reshape(-1), len(M))
    expected = np.einsum("im,mnl,jn->ijl", M, array.reshape(M.shape[1], M.shape[1], lanes).astype(np.float64), M)
    assert np.array_equal(out, expected)


def make_add(lanes):
    def add(start, array, i, out):
        tile = simd.tile_load(start, 0, COLS * lanes, lanes, lanes, ROWS, COLS)
        simd.tile_store(simd.tile_add(tile, array, i), out, 0, COLS * lanes, lanes)

    return add


def test_tile_add(kind):
    dtype, lanes = kind
    start, array, out = numbers(dtype, ROWS * COLS * lanes), numbers(dtype, 5, 1), np.empty(ROWS * COLS * lanes, dtype)
    for i in range(5):
        operation(make_add, lanes)(start, array, i, out)
        assert np.array_equal(out, start + array[i])


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


def test_winograds_matrices_are_a_correlation():
    """Both sides are linear in the inputs and in the weights: 16 x 9 pairs of units decide, in fractions."""
    A, B, G = (
        np.array([[Fraction(value) for value in row] for row in simd.MATRICES[name]])
        for name in ("output", "input", "weight")
    )
    for at, tap in itertools.product(np.ndindex(4, 4), np.ndindex(3, 3)):
        d, g = np.full((4, 4), Fraction(0)), np.full((3, 3), Fraction(0))
        d[at], g[tap] = Fraction(1), Fraction(1)
        products = (G @ g @ G.T) * (B @ d @ B.T)
        correlation = [[(d[i : i + 3, j : j + 3] * g).sum() for j in range(2)] for i in range(2)]
        assert (A @ products @ A.T).tolist() == correlation, (at, tap)
