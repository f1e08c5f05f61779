"""From a Geometry to launches of the tuned kernels: which kernels, on which arrays, with which tables of integers."""

from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from loopconv.cuda import depthwise, fragments, grouped, tensor, tiled
from loopconv.cuda.emit import WIDE
from loopconv.cuda.stages import DTYPES, Launch, Plan
from loopconv.cuda.tiles import (
    CHIPS,
    DEPTHWISE,
    GROUPED,
    GROUPED_WEIGHT,
    MOST_SPLITS,
    TILES,
    WEIGHT_TILES,
    best_tile,
    nearest,
    splits_of,
)
from loopconv.tiled.layout import adjoint_phase, problem, tap_number

ADD_THREADS, PACK_THREADS = 256, 256


# Up to so many result channels in a group, a tile of 16 rows is mostly empty; their weights have to fit shared memory.
SMALL_GROUP, SMALL_STEPS = 4, 1024


class Phase(NamedTuple):
    """Result pixels that the same taps reach: all of forward, and one phase of the stride of the adjoint."""

    sizes: tuple  # result pixels on three axes
    start: int  # first result element of a plane
    taps: list  # (number in the kernel, displacements on three axes)


class Sum(NamedTuple):
    """What forward and adjoint have in common: C source channels make M result channels."""

    p: Any
    M: int
    C: int
    source: tuple  # sizes
    source_steps: tuple  # between channels, slices, rows, columns
    source_image: int
    out_steps: tuple  # between channels, and between the pixels of one phase
    out_image: int
    stride: tuple  # source pixels between neighbouring result pixels
    phases: list
    w_steps: tuple  # between groups, result channels, source channels


class Numbers(NamedTuple):
    """In which numbers a call is stored and computed.

    storage : dtype of the user's arrays: "float32", "float64", "float16" or "bfloat16"
    precision : "tf32" for tensor cores, None for full precision
    aligned : whether the user's arrays begin at multiples of 16 bytes
    """

    storage: str
    precision: str | None = None
    aligned: bool = True

    @property
    def compute(self):
        """The dtype that is summed in."""
        return "float64" if self.storage == "float64" else "float32"

    @property
    def table(self):
        """The name of the tables of tiles."""
        if self.storage != self.compute:
            return "half"
        return "tf32" if self.precision == "tf32" else self.compute

    @property
    def is_for_tensor_cores(self):
        """Whether tensor cores multiply: never float32 unasked."""
        return self.table in ("half", "tf32")

    @property
    def stored(self):
        """The NumPy dtype of the user's arrays."""
        return DTYPES[self.storage][0]

    @property
    def run(self):
        """Numbers in 16 bytes of the user's arrays, 1 where they are not read so."""
        return WIDE // self.stored.itemsize if self.aligned else 1


# --------------------------------------------------------------------------------------- predicates


def is_in_reach(geometry):
    """Whether an image's group, and the pixels of an image, have 32-bit positions."""
    g = geometry
    span = [max(n, s) + abs(pad) for n, s, pad in zip(g.input, g.span, g.pad)]
    sizes = max(prod(span) * (g.c // g.groups), prod(g.output) * (g.k // g.groups), prod(span) * min(g.batch, 128))
    return sizes < 2**30


def is_grouped(geometry, contraction):
    """Whether the groups have too few channels for the rows of a tile, and each thread sums on its own."""
    g = geometry
    rows = (g.c if contraction == "adjoint" else g.k) // g.groups
    steps = (g.k if contraction == "adjoint" else g.c) // g.groups * prod(g.kernel)
    return g.groups > 1 and rows <= SMALL_GROUP and steps <= SMALL_STEPS


def is_narrow(geometry, contraction, numbers):
    """Whether each group has few result channels, so that a tile of them, with the taps, fits a thread.

    Tiles have 31 bits; without groups there have to be as many as the threads of a chip, or few steps, and their weight
    gradients are products of tiles.
    """
    p = problem(geometry)
    rows, channels = (p.C, p.K) if contraction == "adjoint" else (p.K, p.C)
    if rows > SMALL_GROUP or (contraction == "weight" and p.G == 1):
        return False
    cut = depthwise.cut_of(geometry, contraction, numbers)
    if cut is None or p.N * p.G * cut.tiles[0] >= 2**31 - DEPTHWISE.threads:
        return False
    return p.G > 1 or p.N * cut.tiles[0] >= DEPTHWISE.enough or channels * prod(p.k) <= SMALL_STEPS


def is_pointwise(phases):
    """Whether every result pixel reads just the source pixel in its place."""
    return all(len(phase.taps) == 1 and not any(phase.taps[0][1]) for phase in phases)


def is_in_runs(sizes, steps, image, run):
    """Whether `run` pixels from every multiple of it on lie side by side, aligned, in every plane."""
    plane = prod(sizes[1:])
    flat = prod(sizes) if steps[1] == plane else plane
    dense = steps[3] == 1 and steps[2] == sizes[2]
    return run > 1 and dense and not any(n % run for n in (flat, steps[0], steps[1] if sizes[0] > 1 else 0, image))


# ---------------------------------------------------------------------------------- forward and adjoint


def plan(contraction, geometry, numbers, capability, has_bias=False):
    """The plan of a call that `is_in_reach`, by the kernels that are for it."""
    if is_narrow(geometry, contraction, numbers):
        return depthwise_plan(contraction, geometry, numbers, capability, has_bias)
    if not is_grouped(geometry, contraction):
        return tile_plan(contraction, geometry, numbers, capability, has_bias)
    if contraction == "weight":
        return grouped_weight_plan(geometry, numbers, capability)
    return grouped_sum_plan(geometry, contraction, numbers, capability, has_bias)


def tile_plan(contraction, geometry, numbers, capability, has_bias, tile=None):
    """The plan by products of tiles; the tile is chosen where none is given."""
    by_tensor_cores = numbers.is_for_tensor_cores
    if contraction == "weight":
        return (tensor_weight_plan if by_tensor_cores else weight_plan)(geometry, numbers, capability, tile)
    plan_of = tensor_sum_plan if by_tensor_cores else sum_plan
    return plan_of(geometry, contraction, numbers, capability, has_bias, tile)


@lru_cache(maxsize=256)
def sum_of(geometry, contraction):
    """The sum that a forward or adjoint call is."""
    p = problem(geometry)
    taps, x_image, y_image = prod(p.k), p.G * p.C * p.x_step[0], p.G * p.K * p.y_step[0]
    group, k_step = p.K * p.C * taps, p.C * taps
    if contraction == "forward":
        moved = [[r * d - lo for r in range(k)] for k, d, lo in zip(p.k, p.dilation, p.pad)]
        phases = [Phase(p.y, 0, list(enumerate(product(*moved))))]
        return Sum(p, p.K, p.C, p.x, p.x_step, x_image, p.y_step, y_image, p.stride, phases, (group, k_step, taps))
    axes = [
        [adjoint_phase(*axis, phase) for phase in range(axis[2])] for axis in zip(p.x, p.k, p.stride, p.dilation, p.pad)
    ]
    phases = []
    for phase in product(*axes):
        sizes = tuple(pixels for _, pixels, _ in phase)
        numbers = [
            (tap_number(p, [r for _, r in taps]), tuple(shift for shift, _ in taps))
            for taps in product(*(reached for _, _, reached in phase))
        ]
        start = sum(first * step for (first, _, _), step in zip(phase, p.x_step[1:]))
        if prod(sizes):
            phases.append(Phase(sizes, start, numbers))
    steps = (p.x_step[0], *(step * s for step, s in zip(p.x_step[1:], p.stride)))
    return Sum(p, p.C, p.K, p.y, p.y_step, y_image, steps, x_image, (1, 1, 1), phases, (group, taps, k_step))


def sum_plan(geometry, contraction, numbers, capability, has_bias, tile=None):
    """Forward or adjoint: pack the weights, multiply, and add up the parts where there are several."""
    t = sum_of(geometry, contraction)
    if not t.phases:
        return Plan((), {})
    p, columns = t.p, t.p.N * max(prod(phase.sizes) for phase in t.phases)
    steps = t.C * max(len(phase.taps) for phase in t.phases)
    tile = tile or best_tile(TILES, capability, numbers.table, p.G * len(t.phases), t.M, columns, steps)
    blocks = p.G * len(t.phases) * -(-t.M // tile.rows) * -(-columns // tile.columns)
    slabs = -(-steps // tile.depth)
    splits = splits_of(blocks, slabs, tile, CHIPS[nearest(capability)])
    size = prod(geometry.y_shape if contraction == "forward" else geometry.x_shape)
    w_table, entries, counts = _tables(t, tile.depth)
    pitch = -(-t.M // tile.rows) * tile.rows
    side = -(-pitch // tiled.SIDE) * tiled.SIDE
    pack = Launch(
        tiled.make_pack, (numbers.compute,), ("w", "packed"),
        np.array([t.M, side, len(w_table), *t.w_steps[:2], *w_table], np.int64),
        p.G * side // tiled.SIDE * -(-len(w_table) // tiled.SIDE), PACK_THREADS,
    )  # fmt: skip
    source, out, image = ("x", "y", t.out_image) if contraction == "forward" else ("y", "x", t.out_image)
    wide_out = all(
        is_in_runs(phase.sizes, t.out_steps, image, numbers.run) and not phase.start % numbers.run for phase in t.phases
    )
    wide_source = (
        is_pointwise(t.phases)
        and set(t.stride) == {1}
        and is_in_runs(t.source, t.source_steps, t.source_image, numbers.run)
    )
    wide_source = wide_source and all(phase.sizes == t.source for phase in t.phases)
    constants = (
        numbers.compute, (tile.rows, tile.columns), tile.quads, tile.depth, tile.stages, _axes(t),
        wide_source, wide_out,
    )  # fmt: skip
    in_parts = splits > 1
    header = _header(
        t,
        -(-t.M // tile.rows),
        -(-columns // tile.columns),
        splits,
        side,
        len(w_table),
        has_bias and not in_parts,
        size,
    )
    multiply = Launch(
        tiled.make_sum, constants,
        ("packed", source, "bias" if has_bias and not in_parts else "w", "partial" if in_parts else out),
        np.concatenate([header, _phases(t, counts), entries]), blocks * splits,
        tiled.threads_of(*constants[:3]), tiled.sum_shared(*constants), tile.resident,
    )  # fmt: skip
    rooms = {"packed": (p.G * len(w_table) * side, None)}
    return sum_with_parts(Plan((pack, multiply), rooms), geometry, numbers, t, splits, size, out, has_bias)


def sum_with_parts(plan, geometry, numbers, t, parts, size, out, has_bias):
    """The plan of forward or adjoint, with a second pass where it has several parts."""
    if parts == 1:
        return plan
    channels = t.M * t.p.G
    add_up = _add_up(numbers, parts, size, size // max(geometry.batch * channels, 1), channels, has_bias, out)
    return Plan((*plan.launches, add_up), plan.rooms | {"partial": (parts * size, None)})


def grouped_sum_plan(geometry, contraction, numbers, capability, has_bias, shape=None):
    """Forward or adjoint of small groups; `shape` is (run, threads) of a block."""
    t = sum_of(geometry, contraction)
    if not t.phases:
        return Plan((), {})
    p, columns = t.p, t.p.N * max(prod(phase.sizes) for phase in t.phases)
    run, threads = shape or GROUPED
    rows = 1 << (min(t.M, SMALL_GROUP) - 1).bit_length()
    w_table, entries, counts = _tables(t, 1)
    row_blocks, column_blocks = -(-t.M // rows), -(-columns // (threads * run))
    source, out = ("x", "y") if contraction == "forward" else ("y", "x")
    header = _header(t, row_blocks, column_blocks, 1, 0, len(w_table), has_bias, 0)
    table = np.concatenate([header, _phases(t, counts), entries, np.array(t.w_steps[:2], np.int64), w_table])
    launch = Launch(
        grouped.make_grouped_sum, (numbers.compute, rows, run, _axes(t), threads),
        (source, "w", "bias" if has_bias else "w", out), table, p.G * len(t.phases) * row_blocks * column_blocks,
        threads, max(max(counts) * rows, 1) * np.dtype(numbers.compute).itemsize,
    )  # fmt: skip
    return Plan((launch,), {})


def grouped_weight_plan(geometry, numbers, capability, shape=None):
    """The weight gradient of small groups; `shape` is (run, threads) of a block."""
    t = sum_of(geometry, "forward")
    p, (phase,) = t.p, t.phases
    run, threads = shape or GROUPED_WEIGHT
    columns, steps = t.C * len(phase.taps), p.N * prod(p.y)
    blocks = p.G * t.M * -(-columns // run)
    places = CHIPS[nearest(capability)].processors * 2048 // threads
    splits = max(1, min(places // blocks, steps // (8 * threads), MOST_SPLITS), -(-steps // 2**30))
    _, entries, _ = _tables(t, 1)
    size, itemsize = prod(geometry.w_shape), np.dtype(numbers.compute).itemsize
    launch = Launch(
        grouped.make_grouped_weight, (numbers.compute, run, _axes(t), threads),
        ("x", "y", "partial" if splits > 1 else "w"),
        np.concatenate([_weight_header(t, geometry, 0, 0, splits), entries, np.zeros(2 * run, np.int64)]),
        blocks * splits, threads, run * threads * itemsize,
    )  # fmt: skip
    return with_parts((launch,), numbers, splits, size)


def weight_plan(geometry, numbers, capability, tile=None):
    """The weight gradient: multiply, and add up the parts where there are several."""
    t = sum_of(geometry, "forward")
    p, (phase,) = t.p, t.phases
    columns, steps = t.C * len(phase.taps), p.N * prod(p.y)
    tile = tile or best_tile(WEIGHT_TILES, capability, numbers.table, p.G, t.M, columns, steps)
    row_blocks, column_blocks = -(-t.M // tile.rows), -(-columns // tile.columns)
    blocks, slabs = p.G * row_blocks * column_blocks, -(-steps // tile.depth)
    # a part has no more pixels than 32 bits can count
    splits = max(splits_of(blocks, slabs, tile, CHIPS[nearest(capability)]), -(-steps // 2**30))
    size = prod(geometry.w_shape)
    _, entries, _ = _tables(t, 1)
    header = _weight_header(t, geometry, row_blocks, column_blocks, splits)
    in_parts = splits > 1
    # blocks at the edge look up columns that are not there
    beyond = np.full((tile.columns, 4), tiled.AWAY, np.int32).reshape(-1).view(np.int64)
    constants = (
        numbers.compute, (tile.rows, tile.columns), tile.quads, tile.depth, tile.stages, _axes(t),
        (in_parts or numbers.run > 1) and columns % (WIDE // np.dtype(numbers.compute).itemsize) == 0,
    )  # fmt: skip
    multiply = Launch(
        tiled.make_weight, constants, ("x", "y", "partial" if in_parts else "w"),
        np.concatenate([header, entries, beyond]), blocks * splits,
        tiled.threads_of(*constants[:3]), tiled.weight_shared(*constants), tile.resident,
    )  # fmt: skip
    return with_parts((multiply,), numbers, splits, size)


# ------------------------------------------------------------------------------------------ depthwise


def depthwise_plan(contraction, geometry, numbers, capability, has_bias):
    """The plan of a call that `is_narrow`."""
    if contraction == "weight":
        return depthwise_weight_plan(geometry, numbers, capability)
    p, cut = problem(geometry), depthwise.cut_of(geometry, contraction, numbers)
    source, out = ("x", "y") if contraction == "forward" else ("y", "x")
    every, threads = p.stride[0] if contraction == "adjoint" else 1, DEPTHWISE.threads
    M, C = (p.C, p.K) if contraction == "adjoint" else (p.K, p.C)
    constants = numbers.compute, cut.rows[2], cut.columns[2], p.k, M, C > 1, every, cut.wide, threads
    tiles = p.N * p.G * cut.tiles[0]
    launch = Launch(
        depthwise.make_depthwise_sum, constants, (source, "w", "bias" if has_bias else "w", out),
        _depthwise_header(p, contraction, cut, tiles, has_bias, 1), -(-tiles // threads), threads,
        resident=cut.resident,
    )  # fmt: skip
    return Plan((launch,), {})


def depthwise_weight_plan(geometry, numbers, capability):
    """The weight gradient of depthwise layers: each block sums a part of a channel's tiles."""
    p, cut, threads = problem(geometry), depthwise.cut_of(geometry, "weight", numbers), DEPTHWISE.threads
    constants = numbers.compute, cut.rows[2], cut.columns[2], p.k, p.K, threads
    tiles, blocks, resident = p.N * cut.tiles[0], p.G * p.C * p.k[0], cut.resident
    places = CHIPS[nearest(capability)].processors * resident
    parts = max(1, min(places // blocks, tiles // (DEPTHWISE.turns * threads), MOST_SPLITS))
    launch = Launch(
        depthwise.make_depthwise_weight, constants, ("x", "y", "partial" if parts > 1 else "w"),
        _depthwise_header(p, "weight", cut, tiles, False, parts), blocks * parts, threads,
        p.K * prod(p.k[1:]) * threads * np.dtype(numbers.compute).itemsize, resident,
    )  # fmt: skip
    return with_parts((launch,), numbers, parts, prod(geometry.w_shape))


def _depthwise_header(p, contraction, cut, tiles, has_bias, parts):
    source, source_steps, tile_steps, depth = p.x, p.x_step, p.y_step, (-p.pad[0], p.stride[0], p.dilation[0])
    M, C, taps = p.K, p.C, prod(p.k)
    w_steps = C * taps, taps
    if contraction == "adjoint":
        source, source_steps, tile_steps, depth = p.y, p.y_step, p.x_step, (p.pad[0], 1, -p.dilation[0])
        M, C, w_steps = C, M, (taps, C * taps)
    rows = [
        *((*_divisor(size), 0) for size in (*cut.tiles, p.G, p.C, p.k[0])),
        (tiles, int(has_bias), -(-tiles // parts), 0), (*source, source_steps[2]), (*depth, 0),
        (*cut.rows[:2], *cut.columns[:2]), (*cut.sizes[1:], tile_steps[2], 0),
    ]  # fmt: skip
    steps = [
        C * source_steps[0], *source_steps[:2], M * tile_steps[0], *tile_steps[:2],
        C, M * C * taps, *w_steps, p.G * M * C * taps,
    ]  # fmt: skip
    words = np.array(rows, np.int64).astype(np.uint32).reshape(-1).view(np.int64)
    assert len(words) + len(steps) == depthwise.HEADER
    return np.array([*words, *steps], np.int64)


# --------------------------------------------------------------------------------------- tensor cores


def tensor_sum_plan(geometry, contraction, numbers, capability, has_bias, tile=None):
    """Forward or adjoint: copy weights and source with their channels last, multiply, and add up the parts."""
    t = sum_of(geometry, contraction)
    if not t.phases:
        return Plan((), {})
    p, columns, piece = t.p, t.p.N * max(prod(phase.sizes) for phase in t.phases), WIDE // numbers.stored.itemsize
    last = _last_of(t, piece)
    steps = last.C * piece * max(len(phase.taps) for phase in t.phases)
    tile = tile or best_tile(TILES, capability, numbers.table, p.G * len(t.phases), t.M, columns, steps)
    row_blocks, column_blocks = -(-t.M // tile.rows), -(-columns // tile.columns)
    blocks = p.G * len(t.phases) * row_blocks * column_blocks
    splits = splits_of(blocks, -(-steps // tile.depth), tile, CHIPS[nearest(capability)])
    size = prod(geometry.y_shape if contraction == "forward" else geometry.x_shape)
    source, out = ("x", "y") if contraction == "forward" else ("y", "x")
    w_table, entries, counts = _piece_tables(t, last, piece)
    rows = row_blocks * tile.rows
    table = np.array([t.M, rows, len(w_table), *t.w_steps[:2], *w_table], np.int64)
    pack = Launch(tensor.make_pack, (numbers.stored.name,), ("w", "packed"), table, p.G * rows, PACK_THREADS)
    wide_out = all(
        is_in_runs(phase.sizes, t.out_steps, t.out_image, 4 * numbers.aligned) and not phase.start % 4
        for phase in t.phases
    )
    constants = numbers.stored.name, (tile.rows, tile.columns), tile.quads, tile.stages, _axes(t), wide_out
    in_parts = splits > 1
    adds_bias = has_bias and not in_parts
    header = _header(
        last, row_blocks, column_blocks, splits, len(w_table) // piece, rows, adds_bias, size
    )  # fmt: skip
    multiply = Launch(
        tensor.make_sum, constants,
        ("packed", "last", "bias" if adds_bias else "w", "partial" if in_parts else out),
        np.concatenate([header, _phases(t, counts), entries]), blocks * splits,
        fragments.threads_of(constants[1], tile.quads), tensor.sum_shared(*constants), tile.resident,
    )  # fmt: skip
    rooms = {
        "packed": (p.G * rows * len(w_table), numbers.stored),
        "last": (p.G * last.C * last.source_steps[0] * piece, numbers.stored),
    }
    plan = Plan((pack, _copy_last(t, numbers, source, "last"), multiply), rooms)
    return sum_with_parts(plan, geometry, numbers, t, splits, size, out, has_bias)


def tensor_weight_plan(geometry, numbers, capability, tile=None):
    """The weight gradient: copy both arrays with their channels last, multiply, and add up the parts."""
    t, y = sum_of(geometry, "forward"), sum_of(geometry, "adjoint")
    p, (phase,), piece = t.p, t.phases, WIDE // numbers.stored.itemsize
    x_last, y_last = _last_of(t, piece), _last_of(y, piece)
    columns, steps = x_last.C * piece * len(phase.taps), p.N * prod(p.y)
    tile = tile or best_tile(WEIGHT_TILES, capability, numbers.table, p.G, t.M, columns, steps)
    row_blocks, column_blocks = -(-t.M // tile.rows), -(-columns // tile.columns)
    blocks, slabs = p.G * row_blocks * column_blocks, -(-steps // tile.depth)
    # a part has no more pixels than 32 bits can count
    splits = max(splits_of(blocks, slabs, tile, CHIPS[nearest(capability)]), -(-steps // 2**30))
    size = prod(geometry.w_shape)
    header = _weight_header(t, geometry, row_blocks, column_blocks, splits)
    of_pixels = [y_last.C * y_last.source_steps[0], y_last.source_steps[0], *y_last.source_steps[1:]]
    header[tiled.Y_IMAGE : tiled.X_IMAGE] = [y_last.source_image, *of_pixels]
    header[tiled.X_IMAGE : tiled.X_Q + 1] = [
        x_last.source_image,
        x_last.C * x_last.source_steps[0],
        *x_last.source_steps[1:],
    ]
    header[tiled.W_TAPS] = len(phase.taps)
    entries = _piece_tables(t, x_last, piece, column_blocks * tile.columns // piece)[1]
    constants = numbers.stored.name, (tile.rows, tile.columns), tile.quads, tile.depth, tile.stages, _axes(t)
    multiply = Launch(
        tensor.make_weight, constants, ("x_last", "y_last", "partial" if splits > 1 else "w"),
        np.concatenate([header, entries]), blocks * splits,
        fragments.threads_of(constants[1], tile.quads), tensor.weight_shared(*constants), tile.resident,
    )  # fmt: skip
    copies = _copy_last(t, numbers, "x", "x_last"), _copy_last(y, numbers, "y", "y_last")
    rooms = {
        name: (p.G * of.C * of.source_steps[0] * piece, numbers.stored)
        for name, of in (("x_last", x_last), ("y_last", y_last))
    }
    plan = with_parts((*copies, multiply), numbers, splits, size)
    return Plan(plan.launches, rooms | plan.rooms)


def _last_of(t, piece):
    """The sum of a source with its channels last, whose channels, and steps, are pieces of that many numbers."""
    _, rows, row = t.source
    pieces, pixels = -(-t.C // piece), prod(t.source)
    steps = t.p.N * pixels, rows * row * pieces, row * pieces, pieces
    return t._replace(C=pieces, source_steps=steps, source_image=pixels * pieces)


def _copy_last(t, numbers, source, room):
    """The launch that copies the source of a sum with its channels last."""
    slices, rows, row = t.source
    filled = -(-t.C // (WIDE // numbers.stored.itemsize)) * (WIDE // numbers.stored.itemsize)
    planes = t.p.N * slices
    sizes = [rows * row, t.C, filled, planes, slices, t.source_image, t.source_steps[1], t.source_steps[0]]
    grid = t.p.G * planes * -(-rows * row // tiled.SIDE) * -(-filled // tiled.SIDE)
    return Launch(
        tensor.make_last, (numbers.stored.name,), (source, room), np.array(sizes, np.int64), grid, PACK_THREADS
    )


def _piece_tables(t, last, piece, least=0):
    """`_tables` of steps that are pieces of channels, those of a tap side by side; phases fill up whole slabs."""
    offsets, entries, counts = [], [], []
    for phase in t.phases:
        number = np.array([tap for tap, _ in phase.taps], np.int64).reshape(-1, 1)
        moved = np.array([move for _, move in phase.taps], np.int64).reshape(-1, 1, 3)
        steps = max(len(phase.taps) * last.C, least)
        counts.append(-(-steps // fragments.PIECES))
        channel = np.arange(last.C * piece)
        of_w = np.full((counts[-1] * fragments.PIECES, piece), tiled.NOWHERE, np.int64)
        where = np.where(channel < t.C, channel * t.w_steps[2] + number, tiled.NOWHERE)
        of_w[: len(phase.taps) * last.C] = where.reshape(-1, piece)
        rows = np.full((len(of_w), 4), tiled.AWAY, np.int64)
        rows[:, 0] = 0
        at = moved @ np.array(last.source_steps[1:], np.int64) + np.arange(last.C)
        moved = np.broadcast_to(moved, (*at.shape, 3))
        rows[: at.size] = np.concatenate([at[..., None], moved], 2).reshape(-1, 4)
        offsets.append(of_w.reshape(-1))
        entries.append(rows)
    words = np.concatenate(entries).astype(np.int32).reshape(-1).view(np.int64)
    return np.concatenate(offsets), words, counts


def with_parts(launches, numbers, parts, size):
    """The plan of a weight gradient, with a second pass where it has several parts."""
    if parts == 1:
        return Plan(launches, {})
    add_up = _add_up(numbers, parts, size, 1, 1, False, "w")._replace(arrays=("partial", "y", "w"))
    return Plan((*launches, add_up), {"partial": (parts * size, None)})


def _weight_header(t, geometry, row_blocks, column_blocks, splits):
    numbers = [
        row_blocks, column_blocks, splits,
        t.M, t.C * len(t.phases[0].taps), t.p.N * prod(t.p.y), prod(geometry.w_shape),
        t.out_image, t.M * t.out_steps[0], *t.out_steps,
        t.source_image, t.C * t.source_steps[0], *t.source_steps[1:], *t.stride, *t.source, *divisors(t.p.y), 0,
    ]  # fmt: skip
    assert len(numbers) == tiled.WEIGHT_HEADER
    return np.array(numbers, np.int64)


def _tables(t, depth):
    """(each step's offset in the weights, entries of all steps, slabs of each phase), phases padded to whole slabs."""
    offsets, entries, counts = [], [], []
    for phase in t.phases:
        number = np.array([tap for tap, _ in phase.taps], np.int64).reshape(-1)
        moved = np.array([move for _, move in phase.taps], np.int64).reshape(-1, 3)
        channel = np.arange(t.C, dtype=np.int64)[:, None]
        where = (channel * t.source_steps[0] + moved @ np.array(t.source_steps[1:], np.int64)).reshape(-1)
        counts.append(-(-len(where) // depth))
        rest = counts[-1] * depth - len(where)
        offsets += [(channel * t.w_steps[2] + number).reshape(-1), np.full(rest, tiled.NOWHERE, np.int64)]
        rows = np.concatenate([where[:, None], np.tile(moved, (t.C, 1))], 1)
        # no displacement brings a step that is not there inside
        entries += [rows, np.tile(np.array([[0, *(tiled.AWAY,) * 3]], np.int64), (rest, 1))]
    words = np.concatenate(entries).astype(np.int32).reshape(-1).view(np.int64)
    return np.concatenate(offsets), words, counts


def _axes(t):
    """How many of the last axes can leave the source."""
    for axis in range(3):
        for phase in t.phases:
            moves = [move[axis] for _, move in phase.taps]
            last = (phase.sizes[axis] - 1) * t.stride[axis]
            if moves and (min(moves) < 0 or last + max(moves) >= t.source[axis]):
                return 3 - axis
    return 0


def _header(t, row_blocks, column_blocks, splits, pitch, steps, has_bias, size):
    numbers = [
        row_blocks, column_blocks, len(t.phases), splits, t.M, pitch, steps, t.p.N, int(has_bias),
        t.source_image, t.C * t.source_steps[0], *t.source_steps[1:], t.out_image, t.M * t.out_steps[0], *t.out_steps,
        size if splits > 1 else 0, *t.stride, *t.source, tiled.SUM_HEADER + len(t.phases) * tiled.PHASE,
    ]  # fmt: skip
    assert len(numbers) == tiled.SUM_HEADER
    return np.array(numbers, np.int64)


def _phases(t, counts):
    rows, slab = [], 0
    for phase, count in zip(t.phases, counts):
        rows += [slab, count, phase.start, *divisors(phase.sizes)]
        slab += count
    return np.array(rows, np.int64)


def divisors(sizes):
    """Pixels of an image, a slice and a row, each as (number, multiplier, shift)."""
    return [number for size in (prod(sizes), sizes[1] * sizes[2], sizes[2]) for number in _divisor(size)]


def _divisor(size):
    """(number, multiplier, shift): i // number is (i * multiplier) >> shift for 0 <= i < 2**31."""
    bits = (size - 1).bit_length()
    return size, -(-(2 ** (31 + bits)) // size), 31 + bits


def _add_up(numbers, parts, size, plane, channels, has_bias, out):
    table = np.array([parts, size, plane, channels, int(has_bias), 0], np.int64)
    grid = min(-(-size // ADD_THREADS), 2**16)
    return Launch(
        tiled.make_add_up, (numbers.compute,), ("partial", "bias" if has_bias else "w", out), table, grid, ADD_THREADS
    )
