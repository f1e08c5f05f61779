"""From a Geometry to stages: which kernels run on which arrays, with which tables of integers."""

from functools import lru_cache
from itertools import pairwise, product
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from loopconv.tiled import pack as packers
from loopconv.tiled import panels
from loopconv.tiled.depthwise import make_depthwise, make_depthwise_weight
from loopconv.tiled.direct import make_direct
from loopconv.tiled.dots import make_dots
from loopconv.tiled.indirect import STEPS_AHEAD, make_indirect
from loopconv.tiled.launch import compiled
from loopconv.tiled.layout import (
    adjoint_layout,
    cut_layouts,
    dense_layout,
    fan,
    forward_layout,
    is_folded,
    is_in_place,
    is_paired,
    problem,
    stencil_layout,
    stencil_taps,
    zones_of_taps,
)
from loopconv.tiled.simd import MOST_TAPS, sides
from loopconv.tiled.tiles import (
    IMAGES_BYTES,
    IMAGES_WORK,
    INPUTS_BYTES,
    LEAST_IMAGES,
    MANY_STENCILS,
    PANEL_BYTES,
    PANELED,
    PIXELS_BYTES,
    PRODUCTS_BYTES,
    TOGETHER_BYTES,
    TOTALS_BYTES,
    TRANSFORMED_TOGETHER,
    UNITS,
    blocks_of_a_share,
    channel_lanes,
    depthwise_tile,
    depthwise_weight_tile,
    direct_layout,
    direct_part,
    direct_tile,
    dots_tile,
    even,
    few_lanes,
    indirect_layout,
    indirect_parts,
    indirect_tile,
    is_read_in_place,
    lanes,
    outer_tile,
    reads_far,
    row_lanes,
    shared_parts,
    winograd_tile,
    winograd_weight_tile,
)
from loopconv.tiled.weight import make_add_up, make_weight
from loopconv.tiled.winograd import (
    make_transform_weights,
    make_winograd,
    make_winograd_weight,
)
from loopconv.tiled.workspace import LINE


class Stage(NamedTuple):
    """One kernel on some of the arrays of a call, by name.

    What it `fills`, if anything, all units of a kernel after it may need all of.
    """

    kernel: Any
    arrays: tuple
    numbers: np.ndarray
    units: int
    scratch: int = 1  # elements for each thread
    fills: str | None = None


class Plan(NamedTuple):
    """All that a call of one geometry does not have to work out again.

    Attributes
    ----------
    prepare, call : tuples of Stage
        What depends on the weights alone, and the rest.
    kept, rooms : dict of int
        Elements of the arrays that `prepare` writes, and of those that only serve during a call.
    tests : tuple of Stage
        Whether the weights are not finite, where the rest cannot take that.
    work : int
        What says how many threads the call is worth, see `work`.
    images : int
        How many images `call` takes, if not all.
    """

    prepare: tuple
    call: tuple
    kept: dict
    rooms: dict
    tests: tuple = ()
    work: int = 0
    images: int | None = None


def work(geometry):
    """A call's multiply-adds, and for each element of its arrays 8 more.

    On 144 channels by themselves, 56x56, memory takes as long as 9 million multiply-adds, of which there are 2.8.
    """
    return geometry.macs + 8 * sum(map(prod, (geometry.x_shape, geometry.w_shape, geometry.y_shape)))


def images_together(geometry, plan, dtype):
    """Of how many images a call's buffers stay in the second-level cache, from their copy to the end of the sums.

    In ms, some and all together, on one thread and on two: 16->32 3x3, stride 2, 128 images of 32x32 4.8 and 7.1, 2.5
    and 3.5; 16->16 5.0 and 5.4, 3.3 and 3.6. Smaller buffers gain nothing, and threads wait for each other more often:
    64->3 4x4, stride 2, the adjoint of 16 images of 32x32 1.50 and 1.55, 1.38 and 1.13; the adjoint of 1->32 3x3, 64
    images of 28x28 1.13 and 1.25, 0.69 and 0.58. Images that are slices of one are better together.
    """
    N, size = geometry.batch, sum(plan.rooms.values()) * dtype.itemsize
    most = min(N, N * IMAGES_BYTES // max(size, 1))
    images = max((n for n in range(1, most + 1) if N % n == 0), default=1)
    is_large = size > 4 * IMAGES_BYTES and work(geometry) * images >= N * IMAGES_WORK
    return images if is_large and not is_folded(geometry) and images >= max(LEAST_IMAGES, most / 2) else N


class Side(NamedTuple):
    """One of the arrays x and y: channels per group, sizes, steps."""

    channels: int
    sizes: tuple
    steps: tuple


class Task(NamedTuple):
    """What the plans for forward and adjoint share: both sum C source channels into M result channels."""

    geometry: Any
    p: Any
    dtype: Any
    layout: Any
    C: int
    source: Side
    M: int
    result: Side
    w_steps: tuple  # between groups, result channels, source channels
    adjoint: bool
    is_planned: bool  # weights are prepared once


@lru_cache(maxsize=256)
def task(geometry, contraction, dtype, is_planned=False):
    p = problem(geometry)
    taps = prod(p.k)
    x, y = Side(p.C, p.x, p.x_step), Side(p.K, p.y, p.y_step)
    group, k_step = p.K * p.C * taps, p.C * taps
    if contraction == "forward":
        return Task(geometry, p, dtype, forward_layout(p), p.C, x, p.K, y, (group, k_step, taps), False, is_planned)
    return Task(geometry, p, dtype, adjoint_layout(p), p.K, y, p.C, x, (group, taps, k_step), True, is_planned)


class Lines(NamedTuple):
    """A call by F(m x m, R x S): F sets of weights, each of up to T stencils, and lines of tiles of m x m pixels.

    Attributes
    ----------
    stencils : StencilLayout
    offsets : int64 array (F, T)
        Of each stencil, after the first.
    ranges : int64 array (F, numbers of a tile, 2)
        The stencils that each number of a tile is a sum over: those with fewer taps leave the last ones out.
    lines : int64 array (F, lines, 4)
        (offset in a channel, first result element, rows of pixels, pixels of a row). Lines of several phases follow
        each other, so that what they write side by side is written together.
    tiles : int
        Of a line.
    """

    stencils: Any
    offsets: np.ndarray
    ranges: np.ndarray
    lines: np.ndarray
    tiles: int


@lru_cache(maxsize=256)
def tile_lines(geometry, is_adjoint, m):
    """The call in tiles of F(m x m, R x S)."""
    R, S = stencil_taps(geometry)
    layout = stencil_layout(problem(geometry), is_adjoint)
    high, wide, *_ = sides(m, R, S)
    T = max(map(len, layout.stencils))
    offsets = [[one.offset - some[0].offset for one in some] + [0] * (T - len(some)) for some in layout.stencils]
    ranges = [_ranges(some, m, R, S) for some in layout.stencils]
    step, (_, slice_, pitch) = layout.layout.step, layout.layout.pitches
    _, _, Z, P, Q = np.max([phase for phases in layout.phases for phase in phases], axis=0).tolist()
    lines = [
        [
            (offset + (z * slice_ + i) * pitch, start + z * step[0] + i * step[1], p - i, q) if z < d else (0, 0, 0, 0)
            for z in range(Z)
            for i in range(0, P, high)
            for offset, start, d, p, q in phases
        ]
        for phases in layout.phases
    ]
    return Lines(layout, *(np.array(table, np.int64) for table in (offsets, ranges, lines)), -(-Q // wide))


def _ranges(stencils, m, R, S):
    """For each number of a tile, (first, past the last) of the stencils that it is a sum over.

    The last row and column of numbers are of those that have all rows and columns of taps.
    """
    *_, down, across = sides(m, R, S)
    ranges = []
    for r, s in product(range(down), range(across)):
        rows, cols = R * (r == down - 1), S * (s == across - 1)
        fitting = [t for t, one in enumerate(stencils) if one.rows >= rows and one.cols >= cols]
        ranges.append((fitting[0], fitting[-1] + 1) if fitting else (0, 0))
    return ranges


# --------------------------------------------------------------------------------- forward and adjoint


def direct_plan(t):
    """By the direct kernel."""
    _, layout = direct_layout(t)
    is_cut = layout is not t.layout and not len(layout.merged)
    tests = _test_weights(t, is_cut)
    t, p, dtype, phases = t._replace(layout=layout), t.p, t.dtype, max(1, len(layout.merged))
    n = lanes(dtype)
    _, rows, cols, way = direct_tile(t.M, t.C, layout, dtype)
    width = cols * n
    part, paneled = direct_part(layout, width, way), way in PANELED
    # a copy has room after its end for what the last part reads past it
    in_place = (
        way in ("flat", "paneled") and is_read_in_place(t, layout)
        and panels.is_inside(layout, width, part, paneled)
    )  # fmt: skip
    room = PANEL_BYTES // dtype.itemsize
    if way == "gathered":
        tiling = panels.gathered(layout, width, part, n, room, t.C)
    elif way == "rows":
        tiling = panels.by_rows(layout, width, part, n, room, t.C)
    else:
        tiling = panels.flattened(layout, width, part, n, in_place, paneled, room, t.C)
    F = fan(layout)
    blocks, units = -(-t.M * phases // rows), p.N * p.G * len(tiling.phases) // F
    parts = -(-max([1, *(phase.tiles for phase in tiling.phases)]) // part)
    fitting = blocks_of_a_share(layout, rows, part * width, dtype)
    most = 1 if phases > 1 else max(blocks, 1)  # what is merged is written together
    # results of several phases are on the same lines, so threads rather take different channels: 100->512 4x4 on 16
    # single pixels is 2.6 to 2.9 times as fast on two threads; but each share fills its panels anew
    apart = units if paneled else p.N * p.G
    shares = min(most, max(-(-blocks // fitting), -(-UNITS // max(apart * parts, 1))))
    sums = F * -(-blocks // shares) * rows * part * width
    weight_steps, weight_offsets = _weights_at(t, rows, tiling.phases, tiling.chunk)
    numbers = _tables(
        [p.G, t.M, t.C, _packed_taps(t), layout.channel, tiling.chunk, tiling.depth,
         p.G * t.M * t.result.steps[0], t.result.steps[0], layout.step[2], len(tiling.phases), parts, shares, part,
         tiling.step, tiling.copies_step, sums, F, phases],
        [(*phase, step) for phase, step in zip(tiling.phases, weight_steps)],
        _first_runs(tiling, parts, part * width), tiling.copies, _ended(tiling.runs),
        np.stack([tiling.offsets, weight_offsets], axis=1),
    )  # fmt: skip
    kernel = compiled(make_direct, n, few_lanes(dtype), rows, cols, paneled)
    pack, rooms = (None, {}) if in_place else _pack_source(t, part * width + n)
    weights, kept = _pack_merged_weights(t, rows) if len(layout.merged) else _pack_weights(t, rows)
    call = Stage(
        kernel, ("source" if in_place else "buffer", "packed", "out", "bias"), numbers, units * parts * shares,
        sums + tiling.chunk * tiling.depth + n,
    )  # fmt: skip
    return Plan((weights,), (call,) if in_place else (pack, call), kept, rooms, tests)


def indirect_plan(t):
    """By the indirect kernel."""
    _, layout = indirect_layout(t)
    is_cut = any(layout is one for one in cut_layouts(t.p, t.adjoint, True))
    tests = _test_weights(t, is_cut)
    t, p, dtype, M, C, n = t._replace(layout=layout), t.p, t.dtype, t.M, t.C, lanes(t.dtype)
    _, rows, cols = indirect_tile(t, layout)
    size, shares, chunk = indirect_parts(t, layout, rows, cols)
    listing = panels.listed(layout, rows, size)
    parts, pitch = len(listing.parts) - 1, -(-M // (cols * n * shares)) * cols * n
    taps = layout.results[:, :2]
    offsets = panels.tap_offsets(taps, layout.tap_offset, layout.channel, chunk)
    steps, weight_offsets = _weights_at(t, n, taps, chunk)
    phases = np.stack([2 * chunk * taps[:, 0], taps[:, 1] - taps[:, 0], steps], axis=1)
    column = _unaligned(n * C * prod(p.k), dtype)  # packed weights of a vector of channels
    numbers = _tables(
        [p.G, M, C, column, layout.channel, chunk, pitch, p.G * M * t.result.steps[0], t.result.steps[0], parts,
         shares, size, prod(t.result.sizes)],
        listing.parts, phases[listing.tiles], listing.positions, np.pad(listing.places * pitch, (0, n)), listing.runs,
        np.pad(np.stack([offsets, weight_offsets], axis=1), ((0, STEPS_AHEAD), (0, 0))),
    )  # fmt: skip
    in_place = is_in_place(layout, t.source.sizes, t.source.steps)
    pack, rooms = (None, {}) if in_place else _pack_source(t, 0)
    weights, kept = _pack_weights(t, n, column)
    kernel = compiled(make_indirect, n, rows, cols, reads_far(t, layout))
    call = Stage(
        kernel, ("source" if in_place else "buffer", "packed", "out", "bias"), numbers,
        p.N * p.G * parts * shares, (listing.most * rows + n) * pitch,
    )  # fmt: skip
    return Plan((weights,), (call,) if in_place else (pack, call), kept, rooms, tests)


def _weights_at(t, rows, phases, chunk):
    """For each phase the packed weights from channel to channel, and where those of channels and taps are.

    As `panels.tap_offsets`.
    """
    first, step = _weight_order(t)
    numbers = np.arange(len(first)) if len(t.layout.merged) else t.layout.tap_weight
    steps, offsets, channels = [], np.zeros(chunk * len(t.layout.tap_offset), np.int64), np.arange(chunk)[:, None]
    for t0, t1, *_ in phases:
        taps = numbers[t0:t1]
        steps.append(step[taps[:1]].sum() * rows)
        offsets[t0 * chunk : t1 * chunk] = (first[taps] + channels * step[taps]).reshape(-1) * rows
    return steps, offsets


def _packed_taps(t):
    """Taps of a packed channel: those of one phase, where phases are rows of the tiles."""
    return len(t.layout.tap_offset) if len(t.layout.merged) else prod(t.p.k)


def _weight_order(t):
    """(first, step): of the rows of a block of packed weights, tap i of channel c has number first[i] + c * step[i]."""
    layout, T = t.layout, _packed_taps(t)
    first, step = np.arange(T), np.full(T, T)
    if len(layout.merged) or len(layout.tap_weight) != T or len(set(layout.tap_weight.tolist())) < T:
        return first, step
    # Each is of one phase: then one phase after the other, as they are read. Taps that only phases without pixels have
    # go where those would be.
    first[layout.tap_weight] = np.arange(T) * t.C
    step[:] = 1
    for begin, end in layout.results[:, :2]:
        taps = layout.tap_weight[begin:end]
        first[taps] = begin * t.C + np.arange(end - begin)
        step[taps] = end - begin
    return first, step


def _unaligned(size, dtype):
    """So many elements and a few, if 16 arrays of `size` side by side would drive each other out of the caches."""
    return size + LINE // dtype.itemsize * (size * dtype.itemsize % 512 == 0)


def _tables(numbers, *tables):
    """One array of the numbers, of where after them each table begins, and of the tables."""
    tables = [np.asarray(table, np.int64).reshape(-1) for table in tables]
    starts = np.cumsum([len(numbers) + len(tables), *map(len, tables[:-1])])
    return np.concatenate([np.array(numbers, np.int64), starts, *tables])


def _first_runs(tiling, parts, size):
    """For each phase and part of `size` positions, the number of the first run that ends after the part's beginning."""
    first, before = [], 0
    for runs in tiling.runs:
        ends = np.maximum.accumulate(runs[:, 0] + runs[:, 1])
        first += (before + np.searchsorted(ends, np.arange(parts) * size, side="right")).tolist()
        before += len(runs) + 1
    return first


def _ended(runs):
    """All runs, with one after those of each phase that no position reaches."""
    end = np.array([[panels.NEVER, 0, 0, 0, 0]], np.int64)
    return np.concatenate([end[:0], *(part for table in runs for part in (table, end))])


def winograd_plan(t, m):
    """By F(m x m, R x S)."""
    p, dtype, taps, tiles = t.p, t.dtype, stencil_taps(t.geometry), tile_lines(t.geometry, t.adjoint, m)
    t, (F, T), lines = t._replace(layout=tiles.stencils.layout), tiles.offsets.shape, tiles.lines.shape[1]
    layout, out_step = t.layout, t.result.steps[0]
    high, wide, down, across = sides(m, *taps)
    n, size = lanes(dtype), down * across
    _, rows, cols = winograd_tile(t, m, taps, tiles)
    width, blocks = cols * n, -(-t.M // rows)
    runs = -(-lines * tiles.tiles // width)
    stencils = tiles.stencils.stencils
    are_whole = all(len(some) == T and (one.rows, one.cols) == taps for some in stencils for one in some)
    is_fused = are_whole and is_weight_of_one_unit(t, tiles)
    parts = 1 if is_fused else -(-runs // max(1, INPUTS_BYTES // (size * T * t.C * width * dtype.itemsize)))
    units = p.N * p.G * F * parts
    # parts differ by a vector of tiles, and threads share them more evenly with the rest: 256->256 3x3, dilation 2, on
    # 28x28, 2.61 -> 2.38 ms on two. Of one part more shares take longer (512->512 3x3, 7x7, 8 and 32: 1.98 and 2.14).
    shares, enough = 1, UNITS // 2 if is_fused else 2 * UNITS
    while units * shares < enough and 2 * shares <= blocks:
        shares *= 2
    most = -(-runs // parts) * width + n
    group = 1 if is_fused else even(-(-blocks // shares), PRODUCTS_BYTES // (size * rows * most * dtype.itemsize))
    v_step, step = (_unaligned(number * most, dtype) for number in (T * t.C, group * rows))
    numbers = _tables(
        [p.G, t.M, t.C, F, T, lines, tiles.tiles, layout.channel, layout.pitches[2], p.G * t.M * out_step, out_step,
         *layout.step[1:], parts, shares, most, group, v_step, step],
        tiles.offsets, tiles.lines, tiles.ranges, _stencil_table(t, stencils),
    )  # fmt: skip
    # what the last tile reads past the last plane
    reach = tiles.lines[:, :, 0].max() + tiles.offsets.max() + (down - 1) * layout.pitches[2]
    reach += wide * (tiles.tiles - 1 + (across - 1) // wide + n)
    pack, rooms = _pack_source(t, max(int(reach) - layout.channel, 0))
    of_block, prepare, kept = size * T * t.C * rows, (), {}
    if not is_fused:
        kernel, kept = compiled(make_transform_weights, m, *taps, rows, are_whole), {"u": p.G * blocks * F * of_block}
        # number by number they take longer: 256->128 16 taps, stride 8, 2.43 -> 2.97 ms if two threads both do it
        fills = _of_all("u", p.G) if F * T <= MANY_STENCILS else None
        prepare = (Stage(kernel, ("w", "u"), _stencil_table(t, stencils), p.G * blocks, fills=fills),)
    room = n + size * (step + v_step) + n + high * wide * n + is_fused * of_block
    kernel = compiled(make_winograd, m, *taps, n, rows, cols, is_fused)
    call = Stage(kernel, ("buffer", "w" if is_fused else "u", "out", "bias"), numbers, units * shares, room)
    return Plan(prepare, (pack, call), kept, rooms, _test_weights(t))


def is_weight_of_one_unit(t, tiles):
    """Whether a unit of Winograd's kernel takes all `tiles` (Lines), and transforms the weights that are its alone.

    What it makes of them then stays in the second-level cache: plain calls of 512->512 3x3, 7x7 3.3 -> 2.4 ms, 14x14
    7.2 -> 6.7, 256->256, 14x14 1.70 -> 1.54; but 128->128, 28x28, 1.20 -> 1.28. Several sets of weights lie between
    each other (512->256 4x4, stride 2, the adjoint of 16 times 4x4: 9.6 -> 11.1).
    """
    sets, lines, _ = tiles.lines.shape
    return not t.is_planned and t.p.N == sets == 1 and 4 * lines * tiles.tiles <= t.M


def _stencil_table(t, sets):
    """What the transform of the weights has to know of where the weights have the stencils."""
    table, T, taps = [], max(map(len, sets)), t.layout.tap_weight.tolist()
    for stencils in sets:
        for one in stencils:
            first = taps[one.tap]
            step_r = taps[one.tap + one.step_r] - first if one.rows > 1 else 0
            step_s = taps[one.tap + one.step_s] - first if one.cols > 1 else 0
            table += [first, step_r, step_s, one.rows, one.cols]
        table += [0] * 5 * (T - len(stencils))
    together = TRANSFORMED_TOGETHER if len(sets) * T > MANY_STENCILS else t.C
    return np.array([t.M, t.C, *t.w_steps, len(sets), T, together, *table], np.int64)


def depthwise_plan(t):
    """By the kernel for groups of one channel."""
    p, layout, align = t.p, t.layout, row_lanes(t.layout.lengths[2], t.dtype)
    if -layout.pitches[2] % align <= layout.pitches[2] // 4:
        # rows written line by line, 3x3, 56x56: 165 -> 158 us; but of 19 pixels, stride 3, which grow to 32, 156 -> 167
        layout = adjoint_layout(p, align) if t.adjoint else forward_layout(p, align=align)
        t = t._replace(layout=layout)
    phases = layout.results.tolist()
    F = 2 if is_paired(layout) else 1
    columns = [_columns(t, begin, end) for begin, end, *_ in phases]
    n, rows, cols = depthwise_tile([phase[3:5] for phase in phases], columns, F, t.dtype)
    past = np.cumsum([len(some) for some in columns]).tolist()
    # rows follow each other without gaps, and so do slices and channels
    is_dense = len(phases) == 1 and layout.step[1:] == (phases[0][4], 1)
    together = max(1, TOGETHER_BYTES // (layout.channel * t.dtype.itemsize))
    numbers = _tables(
        [p.G, len(layout.tap_offset), layout.pitches[1] * layout.pitches[2], layout.pitches[2], t.result.steps[0],
         *layout.step, len(phases), _column_step(t), is_dense, layout.channel, together],
        [(begin, end, *phase[2:6]) for begin, end, phase in zip([0, *past], past, phases)],
        [column for some in columns for column in some], _source_table(t),
    )  # fmt: skip
    # tiles that are wider than the image read past the plane
    room = together * layout.channel + cols * n
    kernel = compiled(make_depthwise, n, *_copying(t), rows, cols, F)
    call = Stage(kernel, ("source", "w", "out", "bias"), numbers, p.N * p.G, room)
    return Plan((), (call,), {}, {}, _test_weights(t))


def _columns(t, begin, end):
    """(taps, first weight, offset) of the columns of the taps begin .. end-1, each read one row below the other."""
    (_, R, S), pitch, step = t.p.k, t.layout.pitches[2], _column_step(t)
    offsets, weights = (table[begin:end].tolist() for table in (t.layout.tap_offset, t.layout.tap_weight))
    taps = sorted((weight // (R * S), weight % S, offset, weight) for offset, weight in zip(offsets, weights))
    runs = []
    for before, tap in pairwise([None, *taps]):
        # a plane may begin a row after the one before it ends, but there other weights follow
        if not (before and tap == (*before[:2], before[2] + pitch, before[3] + step)):
            runs.append([])
        runs[-1].append(tap[2:])
    columns = []
    for run in runs:
        pieces = -(-len(run) // MOST_TAPS)
        cuts = [len(run) * piece // pieces for piece in range(pieces + 1)]
        columns += [(after - first, run[first][1], run[first][0]) for first, after in pairwise(cuts)]
    return sorted(columns, reverse=True)


def _column_step(t):
    """Weights between the taps of a column."""
    stride, dilation = t.p.stride[1], t.p.dilation[1]
    return stride // gcd(stride, dilation) * t.p.k[2] * (-1 if t.adjoint else 1)


def _test_finite(geometry, dtype):
    """Whether some weights, or their gradients, are not finite."""
    size = prod(geometry.w_shape)
    parts = max(1, min(UNITS, size // 4096))
    numbers = np.array([size, parts], np.int64)
    return Stage(compiled(packers.make_test_finite, lanes(dtype)), ("w", "w"), numbers, parts)


def _test_weights(t, is_cut=False):
    """The adjoint multiplies zeros around y, and taps that are cut may be of the padding.

    So weights that are not finite would spread, or be missed.
    """
    return (_test_finite(t.geometry, t.dtype),) if t.adjoint or is_cut else ()


def _pack_source(t, slack):
    """(stage, rooms) for the buffer; what reads past the last plane, up to `slack` elements, finds zeros."""
    channels = t.p.N * t.p.G * t.C
    size = channels * t.layout.channel + slack
    numbers = np.array([slack, t.layout.channel, *_source_table(t)], np.int64)
    every, planes = _reading(t)
    kernel = compiled(packers.make_pack, row_lanes(t.layout.lengths[2], t.dtype), every, planes)
    # number by number that takes longer
    fills = _of_all("buffer", t.p.N * t.p.G) if every else None
    stage = Stage(kernel, ("source", "buffer"), numbers, channels, fills=fills)
    return stage, {"buffer": size}


def _reading(t):
    """(how far apart the pixels of a row of the source are read, 0 for any number; for how many planes at a time)."""
    if is_in_place(t.layout, t.source.sizes, t.source.steps):
        return 1, 1
    source = t.layout.source
    every = source[:, 5].max(initial=1).item()
    return every if every in (1, 2, 4) else 0, 2 if every == 2 and np.ptp(source[:, 2]) == 1 else 1


def _copying(t):
    """(lanes, and `_reading`) of the copies of channels that the depthwise kernels make."""
    pixels, reading = t.layout.lengths[2], _reading(t)
    if reading == (1, 1):  # by vectors of which the last lanes may be left out
        return (lanes if pixels > few_lanes(t.dtype) else few_lanes)(t.dtype), *reading
    return row_lanes(pixels, t.dtype), *reading


def _source_table(t):
    """What `pack_channel` has to know of the source and of its planes."""
    layout, sizes, steps = t.layout, t.source.sizes, t.source.steps
    if is_in_place(layout, sizes, steps):  # one long row
        layout, sizes = dense_layout((1, 1, prod(sizes))), (1, 1, prod(sizes))
    entries, before = [], None
    for *begin, sz, sp, sq in layout.source.tolist():
        first = begin[0] * steps[1] + begin[1] * steps[2] + begin[2]
        if sq != 2 or before != [*begin[:2], begin[2] - 1]:  # else read together with those before
            pixels = [max(-(-(n - i) // s), 0) for n, i, s in zip(sizes, begin, (sz, sp, sq))]
            entries.append([first, sq, *pixels, (sizes[2] - begin[2]) // sq, sz * steps[1], sp * steps[2]])
        before = begin
    pitches = layout.pitches
    return [
        steps[0], pitches[1] * pitches[2], pitches[2], layout.origin, layout.plane, len(entries),
        *(number for entry in entries for number in entry),
    ]  # fmt: skip


def _pack_weights(t, rows, size=None):
    """(stage, kept) for the packed weights, in blocks of `size` elements, if these are not all needed."""
    M, C, T, (first, step) = t.M, t.C, prod(t.p.k), _weight_order(t)
    blocks, size = t.p.G * -(-M // rows), size or rows * C * T
    in_order = t.w_steps[2] == T and np.array_equal(first, np.arange(T))
    numbers = np.concatenate([np.array([M, C, T, *t.w_steps, in_order, size], np.int64), first * rows, step * rows])
    kernel = compiled(packers.make_pack_weights, rows, few_lanes(t.dtype))
    return Stage(kernel, ("w", "packed"), numbers, blocks, fills=_of_all("packed", t.p.G)), {"packed": blocks * size}


def _pack_merged_weights(t, rows):
    """(stage, kept) for the packed weights of phases that are one."""
    C, T, phases = t.C, _packed_taps(t), len(t.layout.merged)
    blocks = t.p.G * -(-t.M * phases // rows)
    numbers = np.concatenate([np.array([t.M, C, T, *t.w_steps, phases], np.int64), t.layout.tap_weight])
    size = blocks * rows * C * T
    kernel = compiled(packers.make_pack_merged_weights, rows)
    return Stage(kernel, ("w", "packed"), numbers, blocks, fills=_of_all("packed", t.p.G)), {"packed": size}


# ---------------------------------------------------------------------------------------------- weight


def outer_plan(geometry, dtype):
    """The weight gradient by outer products of channels."""
    _, rows, cols, contraction, is_cut = outer_tile(problem(geometry), dtype)
    t = task(geometry, contraction, dtype)
    n = channel_lanes(t.M, dtype)
    p, layout, (_, sizes, steps), width, taps = t.p, t.layout, t.result, cols * n, len(t.layout.tap_offset)
    in_place = is_in_place(layout, t.source.sizes, t.source.steps)
    # without gaps the pixels of a slice, or of an image, are one long row
    Z, P, Q = sizes
    if layout.pitches[1:] == sizes[1:] and not is_cut:
        Z, P, Q = (1, 1, prod(sizes)) if steps[1] == P * Q else (Z, 1, P * Q)
    pixels = max(1, PIXELS_BYTES // (width * dtype.itemsize))
    piece = even(Q, pixels)
    chunk = max(1, pixels // piece)
    channels = np.arange(t.C)[:, None]
    a_rows, w_rows = channels * layout.channel + layout.tap_offset, channels * t.w_steps[2] + layout.tap_weight
    if is_cut:
        counts, (a_rows, w_rows) = _rows_of_a_tap(rows, a_rows, w_rows)
        zones = [tap for _ in range(0, t.C, rows) for tap in zones_of_taps(p)]
    else:
        counts, zones = [min(rows, t.C * taps - i) for i in range(0, t.C * taps, rows)], (0, Z, 0, P, 0, Q)
    blocks, b_blocks = len(counts), -(-t.M // width)
    zones = np.broadcast_to(np.array(zones, np.int64), (blocks, 6))
    group = even(blocks, TOTALS_BYTES // (rows * width * dtype.itemsize))
    units = p.G * b_blocks * -(-blocks // group)
    parts = _parts(units, p.N * Z * P * -(-Q // piece), geometry.macs)
    padding, a_group = (0, blocks * rows - a_rows.size), t.C * layout.channel
    numbers = _tables(
        [p.N, blocks, t.M, Z, P, Q, chunk, piece, parts, group, prod(geometry.w_shape), *t.w_steps[:2],
         p.G * a_group, a_group, layout.pitches[1] * layout.pitches[2], layout.pitches[2],
         p.G * t.M * steps[0], t.M * steps[0], *steps[:2]],
        np.pad(a_rows.reshape(-1), padding), np.pad(w_rows.reshape(-1), padding),
        np.column_stack([counts, zones]),
    )  # fmt: skip
    pack, rooms = (None, {}) if in_place else _pack_source(t, 0)
    names = ("y", "x") if t.adjoint else ("x", "y")
    call = Stage(
        compiled(make_weight, n, few_lanes(dtype), rows, cols),
        (names[0] if in_place else "buffer", names[1], "w" if parts == 1 else "partial"), numbers, units * parts,
        chunk * piece * width + group * rows * width,
    )  # fmt: skip
    call = (call,) if in_place else (pack._replace(arrays=(names[0], "buffer")), call)
    plan = _summed(Plan((), call, {}, rooms), geometry, parts)
    # the adjoint multiplies zeros around y, and a cut sum leaves out zeros around x
    tests = (_test_finite(geometry, dtype),) if is_cut or (t.adjoint and not in_place) else ()
    return plan._replace(call=(*plan.call, *tests))


def _rows_of_a_tap(rows, *tables):
    """(rows that there are in each block, tables (channel, tap) in this order): each block has channels of one tap.

    Of some channels all taps follow each other, as their results lie between each other. The last channels are filled
    up with the first.
    """
    C, taps = tables[0].shape
    channels = np.arange(-(-C // rows) * rows).reshape(-1, rows)
    counts = np.repeat(np.minimum(rows, C - channels[:, 0]), taps)
    ordered = [table[np.where(channels < C, channels, 0)].transpose(0, 2, 1) for table in tables]
    return counts, ordered


class ProductLines(NamedTuple):
    """A weight gradient by F(2x2, RxS): as `Lines`, of one set of weights.

    Lines are (offset in x, offset in y); `sums` is how many numbers of a tile the stencils have together.
    """

    stencils: list
    offsets: list
    sums: int
    lines: np.ndarray
    tiles: int
    x_layout: Any
    y_layout: Any


@lru_cache(maxsize=256)
def product_lines(geometry):
    """The weight gradient in tiles of F(2x2, RxS)."""
    p, taps = problem(geometry), stencil_taps(geometry)
    high, wide, down, across = sides(2, *taps)
    every = (1, 1, 1) if max(p.stride) > 1 else (1, *p.dilation[1:])
    # tiles at the edges meet zeros
    Z, (P, Q) = p.y[0], (-(-n // (m * d)) * m for n, m, d in zip(p.y[1:], (high, wide), every[1:]))
    whole = stencil_layout(p._replace(y=(Z, P * every[1], Q * every[2])), False)
    y_layout = dense_layout((Z, P * every[1], Q * every[2]), every)
    y_layout = y_layout._replace(lengths=tuple(-(-n // m) for n, m in zip(p.y, every)))
    (some,), (phases,), (_, slice_, pitch) = whole.stencils, whole.phases, whole.layout.pitches
    lines = [
        (offset + (z * slice_ + i) * pitch, ((phase * Z + z) * P + i) * Q)
        for z in range(Z)
        for i in range(0, P, high)
        for phase, (offset, *_) in enumerate(phases)
    ]
    offsets = [one.offset - some[0].offset for one in some]
    sums = sum((down - (one.rows < taps[0])) * (across - (one.cols < taps[1])) for one in some)
    return ProductLines(some, offsets, sums, np.array(lines, np.int64), -(-Q // wide), whole.layout, y_layout)


def winograd_weight_plan(geometry, dtype):
    """The weight gradient by F(2x2, RxS)."""
    p, taps, tiles, n = problem(geometry), stencil_taps(geometry), product_lines(geometry), lanes(dtype)
    size, all_taps, T = prod(sides(2, *taps)[2:]), prod(p.k), len(tiles.stencils)
    _, rows, cols, channels, swapped, chunk, parts = winograd_weight_tile(p, taps, tiles, dtype)
    width = cols * n
    x = ("x", p.C, p.x, p.x_step, tiles.x_layout, all_taps, tiles.lines[:, 0], tiles.offsets)
    y = ("y", p.K, p.y, p.y_step, tiles.y_layout, all_taps * p.C, tiles.lines[:, 1], [0] * T)
    a, b = (x, y) if swapped else (y, x)
    a_step, b_step = (_unaligned(chunk * size, dtype) for size in (channels, width))
    units = p.G * T * -(-a[1] // channels) * -(-b[1] // width) * parts
    numbers = _tables(
        [p.N, p.G, a[1], b[1], len(tiles.lines), tiles.tiles, T, chunk, parts, a_step, b_step, prod(geometry.w_shape),
         p.K * p.C * all_taps, a[5], b[5], a[4].channel, a[4].pitches[2], b[4].channel, b[4].pitches[2]],
        np.stack([a[6], b[6]], axis=1),
        [(*offsets, *one[1:]) for *offsets, one in zip(a[7], b[7], tiles.stencils)],
    )  # fmt: skip
    kernel = compiled(make_winograd_weight, *taps, n, rows, cols, channels, swapped)
    room = size * (a_step + b_step + -(-channels // rows) * rows * width)
    call = Stage(kernel, ("a", "b", "w" if parts == 1 else "partial"), numbers, units, room)
    packs, rooms = _pack_both(p, dtype, (channels, "a", *a[:5]), (width, "b", *b[:5]))
    plan = _summed(Plan((), (*packs, call), {}, rooms), geometry, parts)
    return plan._replace(call=(*plan.call, _test_finite(geometry, dtype)))


def depthwise_weight_plan(geometry, dtype):
    """The weight gradient by the kernel for groups of one channel."""
    t = task(geometry, "forward", dtype)
    p, layout, (_, y_sizes, y_steps) = t.p, t.layout, t.result
    columns = _columns(t, 0, len(layout.tap_offset))
    n, taps, cols = depthwise_weight_tile(y_sizes[2], [count for count, *_ in columns], dtype)
    columns += [(0, 0, columns[0][2])] * (-len(columns) % cols)
    (_, P, Q), slice_, pitch = y_sizes, layout.pitches[1] * layout.pitches[2], layout.pitches[2]
    last = max(offset for *_, offset in columns) + (y_sizes[0] - 1) * slice_ + (P + taps - 2) * pitch
    reach = max(last + -(-Q // n) * n, layout.channel)
    numbers = _tables(
        [p.N, p.G, *y_sizes, prod(p.k), _column_step(t), len(columns), slice_, pitch, *y_steps[:3], layout.channel,
         reach],
        [offset for *_, offset in columns], [column[:2] for column in columns], _source_table(t),
    )  # fmt: skip
    kernel = compiled(make_depthwise_weight, n, *_copying(t), taps, cols)
    room = len(columns) * taps * n + reach
    return Plan((), (Stage(kernel, ("x", "y", "w"), numbers, p.G, room),), {}, {})


def dots_plan(geometry, dtype):
    """The weight gradient by dot products along rows."""
    p = problem(geometry)
    t = task(geometry, "forward", dtype)
    layout = t.layout
    _, rows, cols = dots_tile(p.K, p.C, prod(p.k), p.y, dtype)
    pack, rooms, name = (), {}, "x"
    blocks = -(-p.K // rows)
    units = p.G * blocks * p.C
    parts = _parts(units, p.N * p.y[0] * p.y[1], geometry.macs)
    in_place = is_in_place(layout, p.x, p.x_step)
    own = not in_place and blocks == parts == 1
    if not (in_place or own):
        stage, rooms = _pack_source(t, 0)
        pack, name = (stage._replace(arrays=("x", "buffer")),), "buffer"
    numbers = _tables(
        [p.N, p.G, p.K, p.C, *p.y, prod(p.k), parts, *_blocks(layout), p.G * p.K * p.y_step[0], *p.y_step[:3]],
        np.pad(layout.tap_offset, (0, max(0, cols - prod(p.k))), "edge"), _source_table(t),
    )  # fmt: skip
    call = Stage(
        compiled(make_dots, lanes(dtype), few_lanes(dtype), *_reading(t), rows, cols, own),
        (name, "y", "w" if parts == 1 else "partial"), numbers, units * parts,
        -(-prod(p.k) // cols) * rows * cols * lanes(dtype) + own * layout.channel,
    )  # fmt: skip
    return _summed(Plan((), (*pack, call), {}, rooms), geometry, parts)


def _parts(units, lines, macs):
    """Into how many sums to cut the lines of pixels, none empty; not by the number of threads: bits depend on it."""
    parts = max(1, min(UNITS // units, lines, macs // 1_000_000))
    return shared_parts(units, parts, min(2 * parts, lines, macs // 500_000))


def _summed(plan, geometry, parts):
    """The plan with a last stage that adds up its partial results, where there are several."""
    if parts == 1:
        return plan
    size = prod(geometry.w_shape)
    add_up = Stage(compiled(make_add_up), ("partial", "w"), np.array([parts, size], np.int64), size)
    return plan._replace(call=(*plan.call, add_up), rooms=plan.rooms | {"partial": parts * size})


def _blocks(layout):
    """(positions of a block, of a slice, of a row)."""
    return layout.channel, layout.pitches[1] * layout.pitches[2], layout.pitches[2]


def _pack_both(p, dtype, *sides):
    """(stages, rooms) that pack both arrays channels last."""
    stages, rooms = zip(*(_pack_channels_last(p, dtype, *side) for side in sides))
    return stages, rooms[0] | rooms[1]


def _pack_channels_last(p, dtype, width, room, name, C, sizes, steps, layout):
    blocks = p.N * p.G * -(-C // width)
    size, bands = blocks * layout.channel * width, max(1, UNITS // max(blocks, 1))
    if is_in_place(layout, sizes, steps):  # rows follow each other, and are one for each band
        rows = prod(sizes[:2])
        rows = max(n for n in range(1, max(1, min(bands, rows)) + 1) if rows % n == 0)
        sizes = (1, rows, prod(sizes) // rows)
        layout, steps = dense_layout(sizes), (steps[0], prod(sizes), sizes[2])
    bands = max(1, min(bands, prod(layout.lengths[:2])))
    numbers = np.array(
        [C, bands, p.G * C, p.G * C * steps[0], *steps[:3], *sizes, *layout.lengths[:2], *layout.pitches[1:],
         layout.origin, layout.plane, width, len(layout.source), *layout.source.reshape(-1).tolist()], np.int64,
    )  # fmt: skip
    kernel = compiled(packers.make_pack_channels_last, few_lanes(dtype))
    return Stage(kernel, (name, room), numbers, blocks * bands, fills=_of_all(room, p.N * p.G)), {room: size}


def _of_all(name, pieces):
    """`Stage.fills` of an array of so many pieces, each for units of its own: with several, threads find most of what
    they need where they themselves wrote it.
    """
    return name if pieces == 1 else None
