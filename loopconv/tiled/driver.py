"""From a Geometry to the tiled kernels: which tile, which buffers, which share of the work on which thread."""

from functools import cache, lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from loopconv import threads
from loopconv.loops import driver as textbook
from loopconv.loops import executions
from loopconv.loops.compile import jit
from loopconv.tiled import pack as packers
from loopconv.tiled.direct import make_direct
from loopconv.tiled.dots import make_dots
from loopconv.tiled.layout import (
    adjoint_layout,
    dense_layout,
    forward_layout,
    has_winograd_kernel,
    is_in_place,
    problem,
)
from loopconv.tiled.tiles import (
    PACKED_WEIGHT,
    WEIGHT_CHUNK,
    WINOGRAD_BYTES,
    WINOGRAD_WEIGHT,
    direct_cost,
    direct_tile,
    dots_tile,
    lanes,
    weight_tile,
    winograd_tile,
)
from loopconv.tiled.weight import make_weight
from loopconv.tiled.winograd import make_transform_weights, make_winograd
from loopconv.tiled.workspace import room

# A call is cut into about this many units of work, so that threads can share them evenly.
UNITS = 16

# Moving one element into a buffer is taken for so many multiply-adds; an estimate.
MOVE_MACS = 8

SPLITS = 14  # where Winograd's kernel finds the number of parts of the result channels


def forward(geometry, x, w, y, bias=None):
    """y = C x + bias."""
    _run(forward_plan, geometry, x, w, y, bias)


def adjoint(geometry, x, w, y, bias=None):
    """x = C.T y + bias."""
    flat = w.reshape(-1)
    with np.errstate(all="ignore"):
        finite = np.isfinite(np.dot(flat, flat))
    if not finite:  # or too large to tell: a NaN times one of the zeros around y would be a term that x does not have
        textbook.adjoint(executions.numba("adjoint"), geometry, x, w, y, bias)
        return
    _run(adjoint_plan, geometry, y, w, x, bias)


def weight(geometry, x, w, y):
    """w = the form without w."""
    if not geometry.macs:
        w[...] = 0
    elif has_few_channels(geometry, x.dtype):
        _run_dots(dots_plan(geometry, x.dtype), x, w, y)
    else:
        _run_weight(weight_plan(geometry, x.dtype), x, w, y)


@lru_cache(maxsize=256)
def has_few_channels(geometry, dtype):
    """Whether dot products along rows cost less than outer products of channels that leave lanes empty."""
    p = problem(geometry)
    outer = min(weight_tile(p.K, p.C, dtype), weight_tile(p.C, p.K, dtype))[0]
    return dots_tile(p.K, p.C, prod(p.k), p.y[2], dtype)[0] < outer * prod(p.k)


class Pack(NamedTuple):
    """One array's way into its buffer."""

    name: str
    kernel: Any
    arguments: tuple  # of the kernel, after the array and the buffer
    units: int
    size: int  # of the buffer


class WinogradPlan(NamedTuple):
    """A forward or adjoint call by F(2x2, 3x3)."""

    source: Pack
    weights: Pack
    transform: Any
    transformed: int  # elements
    transform_arguments: tuple
    transform_units: int
    kernel: Any
    numbers: np.ndarray
    scratch: int
    units: int
    blocks: int  # of result channels
    macs: int


class DotsPlan(NamedTuple):
    """A weight gradient of few channels."""

    source: Any
    kernel: Any
    tap_offset: np.ndarray
    numbers: np.ndarray
    parts: int
    units: int
    macs: int


class DirectPlan(NamedTuple):
    """All that a forward or adjoint call of one geometry does not have to work out again."""

    source: Pack | None  # None: read in place
    weights: Pack
    kernel: Any
    results: np.ndarray
    tap_offset: np.ndarray
    numbers: np.ndarray
    units: int
    macs: int


class WeightPlan(NamedTuple):
    """The same for a weight gradient."""

    a: Pack
    b: Pack
    kernel: Any
    tap_a: np.ndarray
    tap_b: np.ndarray
    numbers: np.ndarray
    sums: int
    parts: int
    units: int
    macs: int


@cache
def compiled(make, *sizes):
    """The kernel that `make(*sizes)` writes, jitted. 'contract' is for what is outside of tiles."""
    return jit(make(*sizes), fastmath={"contract"})


class Side(NamedTuple):
    """One of the arrays x and y: channels per group, sizes, steps."""

    channels: int
    sizes: tuple
    steps: tuple


@lru_cache(maxsize=256)
def forward_plan(geometry, dtype, make=None):
    p = problem(geometry)
    taps = prod(p.k)
    layout, x, y = forward_layout(p), Side(p.C, p.x, p.x_step), Side(p.K, p.y, p.y_step)
    make = make or (_winograd_plan if is_winograd(geometry, p, layout, x, y, dtype) else _direct_plan)
    return make(geometry, dtype, layout, x, y, (p.K * p.C * taps, p.C * taps, taps))


@lru_cache(maxsize=256)
def adjoint_plan(geometry, dtype, make=None):
    p = problem(geometry)
    taps = prod(p.k)
    layout, x, y = adjoint_layout(p), Side(p.C, p.x, p.x_step), Side(p.K, p.y, p.y_step)
    make = make or (_winograd_plan if is_winograd(geometry, p, layout, y, x, dtype) else _direct_plan)
    return make(geometry, dtype, layout, y, x, (p.K * p.C * taps, taps, p.C * taps))


def is_winograd(geometry, p, layout, source, result, dtype):
    """Whether F(2x2, 3x3) takes the problem and is expected to be faster, the weights' transform included."""
    if not (has_winograd_kernel(geometry) and p.N * result.sizes[0]):
        return False
    C, M = source.channels * p.k[0], result.channels
    flats = [int(phase[-1]) for phase in layout.results]
    kernels = C * M * p.G
    direct = direct_cost(M, C, 9, flats, dtype) * p.N * p.G + 9 * PACKED_WEIGHT * kernels
    winograd = winograd_tile(M, C, _tiles(result.sizes), dtype)[0] * p.N * p.G * result.sizes[0]
    return winograd + (9 * PACKED_WEIGHT + WINOGRAD_WEIGHT) * kernels < direct


def _tiles(sizes):
    """Tiles of 2x2 pixels in one slice."""
    return -(-sizes[1] // 2) * -(-sizes[2] // 2)


def _winograd_plan(geometry, dtype, layout, source, result, w_steps):
    p = problem(geometry)
    (C, sizes, steps), (M, (Z, P, Q), out_steps) = source, result
    tiles, n, T = _tiles(result.sizes), lanes(dtype), p.k[0]
    _, rows, cols = winograd_tile(M, T * C, tiles, dtype)
    width, blocks = cols * n, -(-M // rows)
    runs = -(-tiles // width)
    fitting = max(1, WINOGRAD_BYTES // (16 * T * C * width * np.dtype(dtype).itemsize))
    parts = -(-runs // fitting)
    units = p.N * p.G * Z * parts
    most = -(-runs // parts) * width + n
    backwards = layout.tap_offset[0] > layout.tap_offset[-1]  # as the adjoint's taps run
    step_t = int(layout.tap_offset.max() - layout.tap_offset.min()) - 2 * layout.pitches[2] - 2
    numbers = [
        p.G, M, C, Z, P, Q, *_blocks(layout), int(layout.tap_offset.min()), p.G * M * out_steps[0], *out_steps[:2],
        parts, 1, most, T, step_t // max(T - 1, 1),
    ]  # fmt: skip
    slack = 3 * layout.pitches[2] + 2 * n + 4  # what the last tile reads past the last plane
    return WinogradPlan(
        _pack_planes(p, layout, C, sizes, steps, slack), _pack_weights(p, layout, dtype, M, C, rows, w_steps),
        compiled(make_transform_weights, rows), p.G * blocks * 16 * T * C * rows,
        (C, T, *(step * (-rows if backwards else rows) for step in (9, 3, 1))), p.G * blocks,
        compiled(make_winograd, n, rows, cols), np.array(numbers, np.int64),
        16 * (T * C + rows) * most + 2 * n, units, blocks, geometry.macs,
    )  # fmt: skip


def _pack_weights(p, layout, dtype, M, C, rows, w_steps):
    blocks, T = p.G * -(-M // rows), len(layout.tap_offset)
    first, step = np.full(T, -1, np.int64), np.zeros(T, np.int64)
    for begin, end in layout.results[:, :2]:
        taps = layout.tap_weight[begin:end]
        first[taps] = (begin * C + np.arange(end - begin)) * rows
        step[taps] = (end - begin) * rows
    in_order = w_steps[2] == T and np.array_equal(first, np.arange(T) * rows)
    return Pack(
        "w", compiled(packers.make_pack_weights, lanes(dtype), rows),
        (first, step, np.array([M, C, T, *w_steps, in_order], np.int64)), blocks, blocks * rows * C * T,
    )  # fmt: skip


def _direct_plan(geometry, dtype, layout, source, result, w_steps):
    p = problem(geometry)
    C, sizes, steps = source
    M, _, out_steps = result
    rows, cols = direct_tile(M, [int(phase[-1]) for phase in layout.results], dtype)
    width, taps = cols * lanes(dtype), len(layout.tap_offset)
    row_blocks, tiles = -(-M // rows), -(-max([1, *layout.results[:, -1].tolist()]) // width)
    # a copy has room after its end for what the last tile reads past it
    in_place = is_in_place(layout, sizes) and geometry.batch == p.N and min(layout.results[:, -1], default=0) >= width
    units = p.N * p.G * len(layout.results)
    parts = min(tiles, -(-UNITS // max(units, 1)))
    blocks = min(max(row_blocks, 1), -(-UNITS // max(units * parts, 1)))
    numbers = [
        p.G, M, C, taps, layout.channel, layout.pitches[1] * layout.pitches[2], layout.pitches[2],
        p.G * M * out_steps[0], out_steps[0], *layout.step, parts, blocks, in_place,
    ]  # fmt: skip
    return DirectPlan(
        None if in_place else _pack_planes(p, layout, C, sizes, steps, width),
        _pack_weights(p, layout, dtype, M, C, rows, w_steps), compiled(make_direct, lanes(dtype), rows, cols),
        layout.results, layout.tap_offset, np.array(numbers, np.int64), units * parts * blocks, geometry.macs,
    )  # fmt: skip


def _pack_planes(p, layout, C, sizes, steps, slack):
    """Pack for the direct kernel; its last tile reads `slack` elements past the last plane."""
    channels = p.N * p.G * C
    return Pack(
        "source", compiled(_make_pack), (steps[:3], sizes, layout.source, _where(p, layout, C, steps)),
        channels * len(layout.source), channels * layout.channel + slack,
    )  # fmt: skip


def _make_pack():
    return packers.pack


def _where(p, layout, C, steps):
    """The `layout` argument of the packers."""
    return (p.G * C, p.G * C * steps[0], layout.lengths, layout.pitches, layout.origin, layout.plane)


@lru_cache(maxsize=256)
def weight_plan(geometry, dtype):
    p = problem(geometry)
    x_layout, y_layout = forward_layout(p), dense_layout(p.y)
    straight, crossed = weight_tile(p.K, p.C, dtype), weight_tile(p.C, p.K, dtype)
    # crossed tiles write their results C * taps apart: 2.4 against 1.6 ms on 1024->256 1x1, 14x14
    swapped = crossed[0] < 0.8 * straight[0]
    _, rows, cols = crossed if swapped else straight
    width, taps = cols * lanes(dtype), prod(p.k)
    x = ("x", p.C, p.x, p.x_step, x_layout, x_layout.tap_offset, taps)
    y = ("y", p.K, p.y, p.y_step, y_layout, np.zeros(taps, np.int64), p.C * taps)
    a, b = (x, y) if swapped else (y, x)
    blocks = -(-a[1] // rows) * -(-b[1] // width) * p.G
    parts = _parts(blocks, p, geometry.macs)
    # without gaps the pixels of an image are one long row
    pixels = (1, 1, prod(p.y)) if x_layout.pitches[1:] == p.y[1:] and parts == 1 else p.y
    numbers = [
        p.N, p.G, a[1], b[1], *pixels, taps, max(1, WEIGHT_CHUNK // pixels[2]), parts,
        p.G * p.K * p.C * taps, p.K * p.C * taps, a[6], b[6], *_blocks(a[4]), *_blocks(b[4]),
    ]  # fmt: skip
    return WeightPlan(
        _pack_channels_last(p, dtype, rows, *a[:5]), _pack_channels_last(p, dtype, width, *b[:5]),
        compiled(make_weight, lanes(dtype), rows, cols), a[5], b[5], np.array(numbers, np.int64),
        taps * rows * width, parts, blocks * parts, geometry.macs,
    )  # fmt: skip


@lru_cache(maxsize=256)
def dots_plan(geometry, dtype):
    p = problem(geometry)
    layout = forward_layout(p)
    _, rows, cols = dots_tile(p.K, p.C, prod(p.k), p.y[2], dtype)
    source = None
    if not (is_in_place(layout, p.x) and geometry.batch == p.N):
        source = _pack_planes(p, layout, p.C, p.x, p.x_step, 0)
    units = p.G * -(-p.K // rows) * p.C
    parts = _parts(units, p, geometry.macs)
    numbers = [
        p.N, p.G, p.K, p.C, *p.y, prod(p.k), parts, *_blocks(layout), p.G * p.K * p.y_step[0], *p.y_step[:3]
    ]  # fmt: skip
    return DotsPlan(
        source, compiled(make_dots, lanes(dtype), rows, cols), layout.tap_offset, np.array(numbers, np.int64), parts,
        units * parts, geometry.macs,
    )  # fmt: skip


def _parts(units, p, macs):
    """Into how many sums to cut the pixels; it must not depend on the number of threads, as the bits do on it."""
    return max(1, min(UNITS // units, p.N * p.y[0] * p.y[1], macs // 1_000_000))


def _run_dots(plan, x, w, y):
    buffer = x.reshape(-1) if plan.source is None else _run_pack(plan.source, x)
    partial = _partial(plan, w)
    threads.share(
        lambda first, last: plan.kernel(
            buffer, y.reshape(-1), partial.reshape(-1), plan.tap_offset, plan.numbers, first, last
        ),
        plan.units, plan.macs,
    )  # fmt: skip
    _add_up(partial, w)


def _run_weight(plan, x, w, y):
    a, b = (_run_pack(pack, {"x": x, "y": y}[pack.name]) for pack in (plan.a, plan.b))
    partial = _partial(plan, w)

    def run(first, last):
        sums = np.empty(plan.sums, w.dtype)
        plan.kernel(a, b, partial.reshape(-1), sums, plan.tap_a, plan.tap_b, plan.numbers, first, last)

    threads.share(run, plan.units, plan.macs)
    _add_up(partial, w)


def _partial(plan, w):
    """Room for one result per part: `w` itself where there is one part."""
    return w.reshape(1, -1) if plan.parts == 1 else np.empty((plan.parts, w.size), w.dtype)


def _add_up(partial, w):
    if len(partial) > 1:
        np.sum(partial, axis=0, out=w.reshape(-1))


def _blocks(layout):
    """(positions of a block, of a slice, of a row)."""
    return layout.channel, layout.pitches[1] * layout.pitches[2], layout.pitches[2]


def _pack_channels_last(p, dtype, width, name, C, sizes, steps, layout):
    units = p.N * p.G * -(-C // width)
    return Pack(
        name, compiled(packers.make_pack_channels_last, lanes(dtype), width),
        (steps[:3], sizes, layout.source, _where(p, layout, C, steps), C), units, units * layout.channel * width,
    )  # fmt: skip


def _run_pack(pack, array):
    """The array's buffer, written."""
    buffer = room(pack.name, pack.size, array.dtype)
    flat = array.reshape(-1)
    threads.share(
        lambda first, last: pack.kernel(flat, buffer, *pack.arguments, first, last), pack.units, MOVE_MACS * pack.size
    )
    return buffer


def _run(make_plan, geometry, source, w, out, bias):
    """Forward or adjoint, by the plan that `make_plan` makes."""
    if bias is None:
        bias = np.zeros(out.shape[1], out.dtype)
    plan = make_plan(geometry, out.dtype)
    if isinstance(plan, WinogradPlan) and _run_winograd(plan, source, w, out.reshape(-1), bias):
        return
    if isinstance(plan, WinogradPlan):
        plan = make_plan(geometry, out.dtype, _direct_plan)
    _run_direct(plan, source, w, out.reshape(-1), bias)


def _run_winograd(plan, source, w, flat, bias):
    """Whether all results are finite. If not, the direct kernel has to say which ones really are not."""
    buffer = _run_pack(plan.source, source)
    packed = _run_pack(plan.weights, w)
    u = room("u", plan.transformed, flat.dtype)
    threads.share(
        lambda first, last: plan.transform(packed, u, *plan.transform_arguments, first, last),
        plan.transform_units,
        MOVE_MACS * plan.transformed,
    )
    # each part of the channels transforms its inputs anew: no more of them than threads need
    workers = threads.worth(plan.macs)
    splits = 1 if workers == 1 else min(plan.blocks, -(-threads.PIECES * workers // plan.units))
    numbers = plan.numbers.copy()
    numbers[SPLITS] = splits
    spread = []

    def run(first, last):
        scratch = room("v", plan.scratch, flat.dtype)
        spread.append(plan.kernel(buffer, u, flat, bias, scratch, numbers, first, last))

    threads.share(run, plan.units * splits, plan.macs)
    return not any(spread)


def _run_direct(plan, source, w, flat, bias):
    buffer = source.reshape(-1) if plan.source is None else _run_pack(plan.source, source)
    packed = _run_pack(plan.weights, w)
    threads.share(
        lambda first, last: plan.kernel(
            buffer, packed, flat, bias, plan.results, plan.tap_offset, plan.numbers, first, last
        ),
        plan.units,
        plan.macs,
    )
