"""Few result channels in a group, above all depthwise layers, which are bound by memory: each number moves once.

A thread owns a tile of results, all channels of a few rows by one to eight neighbouring columns: its sums, and the taps
of one source channel, are in registers, and each source pixel is loaded once for all the results that it meets. What a
tile reads is the same for all tiles, so it is unrolled (`strips`). Tiles of the adjoint begin at multiples of the
stride, so that all phases of its pixels are in one tile, and what is written lies side by side.

Neighbouring threads own neighbouring tiles of a row; those of a plane's rows, and then of the planes, follow.
"""

from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
from numba import cuda
from numba.cuda import types

from loopconv.cuda.elements import device, store
from loopconv.cuda.intrinsics import entry, inside
from loopconv.cuda.patches import make_numbers
from loopconv.cuda.strips import make_finish, make_gradient, make_strip, meets
from loopconv.cuda.tiles import DEPTHWISE
from loopconv.tiled.layout import problem

# The plan array of both kernels: rows of four numbers of 32 bits, each one load. First are divisors, as (number,
# multiplier, shift, 0): tiles of a plane, of a slice and of a row, groups, source channels, taps of the first axis.
OF_PLANE, OF_SLICE, OF_ROW, OF_GROUPS, OF_CHANNELS, OF_DEPTH = range(0, 12, 2)
COUNTS = 12  # (tiles, whether there is a bias, tiles of a part, 0)
SOURCE = 14  # (slices, rows, columns, pitch)
DEPTH = 16  # the first slice that tile 0 reads, steps between those of slices and of taps, 0
PLACE = 18  # the first row that tile 0 reads, step between tiles; the same of columns
TILE = 20  # (rows, columns, pitch) of the planes that are cut into tiles, 0
# 64 bits each: elements between groups, channels and slices of the source, and of what is cut; source channels in a
# group; elements between groups, result channels and source channels of the taps; those of a part.
(
    SOURCE_PLANE, SOURCE_CHANNEL, SOURCE_Z, TILE_PLANE, TILE_CHANNEL, TILE_Z, CHANNELS,
    W_GROUP, W_ROW, W_CHANNEL, W_SIZE, HEADER,
) = range(22, 34)  # fmt: skip


# ------------------------------------------------------------------------------- the tile of a thread


def forward_axis(k, stride, dilation, pad, run):
    """(first, step, axis) of tiles of `run` results: `strips` has the axis; tile i begins at first + i * step."""
    axis = tuple(tuple((pixel * stride + tap * dilation, tap) for tap in range(k)) for pixel in range(run))
    return -pad, run * stride, axis


def adjoint_axis(k, stride, dilation, pad, run):
    """The same for the adjoint, of multiples of the stride: pixel i meets y[(i + pad - tap * dilation) / stride]."""
    axis = [
        [
            ((pixel + pad - tap * dilation) // stride, tap)
            for tap in range(k)
            if (pixel + pad - tap * dilation) % stride == 0
        ]
        for pixel in range(run)
    ]
    first = min(offset for taps in axis for offset, _ in taps)
    return first, run // stride, tuple(tuple((offset - first, tap) for offset, tap in taps) for taps in axis)


class Cut(NamedTuple):
    """How planes, of the result or of y, are cut into tiles."""

    sizes: tuple  # of a plane: slices, rows, columns
    rows: tuple  # (first, step, axis)
    columns: tuple
    wide: bool  # whether a tile's columns are all there, and can be written 16 bytes, or all, at a time
    registers: int  # for what a thread holds at once
    products: int  # of a tile
    time: float  # expected for a plane

    @property
    def tiles(self):
        """Tiles of a plane, of a slice, and of a row."""
        down, across = (-(-size // len(axis)) for size, (_, _, axis) in zip(self.sizes[1:], (self.rows, self.columns)))
        return self.sizes[0] * down * across, down * across, across

    @property
    def resident(self):
        """Blocks of a multiprocessor, whose threads have some registers for positions besides, by the eight."""
        registers = -(-(self.registers + DEPTHWISE.others) // 8) * 8
        return min(DEPTHWISE.resident, 2**16 // DEPTHWISE.threads // registers)


@lru_cache(maxsize=256)
def cut_of(geometry, contraction, numbers):
    """The cut that is expected to be done first; None where no tile fits into registers with its taps."""
    p = problem(geometry)
    if prod(p.k[1:]) > DEPTHWISE.registers:
        return None
    sizes, units = (p.x, p.stride) if contraction == "adjoint" else (p.y, (1, 1, 1))
    # as many rows of tiles as there are anyway have as many rows each
    heights = {-(-sizes[1] // -(-sizes[1] // most)) for most in range(1, DEPTHWISE.rows + 1)}
    heights = sorted({-(-height // units[1]) * units[1] for height in heights})
    cuts = [
        _cut(p, contraction, numbers, sizes, shape)
        for shape in product(heights, [units[2] << n for n in range(4)])
        if prod(shape) <= DEPTHWISE.results or shape == units[1:]
    ]
    # y's tiles are whole: a pixel that is not there would make NaN of zero times what only others meet
    cuts = [cut for cut in cuts if contraction != "weight" or not sizes[2] % len(cut.columns[2])]
    fitting = [
        cut
        for cut in cuts
        if cut.registers <= DEPTHWISE.registers
        and cut.products <= DEPTHWISE.products
        and len(meets(cut.columns[2])) < 32
    ]
    return min(fitting, key=lambda cut: cut.time, default=None)


def _cut(p, contraction, numbers, sizes, shape):
    """The cut into tiles of (rows, columns).

    It takes as long as its instructions, of which a multiprocessor issues four at a time, or the turns of its first
    cache: one for each 128 bytes from the first thread of a warp to the last. Of forward and adjoint of 3x3, 5x5 and
    7x7 taps, the assembler makes within 6 % of so many instructions.
    """
    (height, width), is_weight = shape, contraction == "weight"
    make = adjoint_axis if contraction == "adjoint" else forward_axis
    rows, columns = (make(*axis, n) for axis, n in zip(list(zip(p.k, p.stride, p.dilation, p.pad))[1:], shape))
    down, across, taps = len(meets(rows[2])), len(meets(columns[2])), prod(p.k[1:])
    products = sum(map(len, rows[2])) * sum(map(len, columns[2]))
    M, C = (p.C, p.K) if contraction == "adjoint" else (p.K, p.C)
    steps = p.k[0] if is_weight else C * p.k[0]
    held = M * (height * width + taps) + across * (down if is_weight else 1)
    registers = held * np.dtype(numbers.compute).itemsize // 4 + DEPTHWISE.carried * (is_weight or steps > 1)
    wide = numbers.aligned and not is_weight and width > 1 and not width & (width - 1) and not sizes[2] % width
    moves, lane = M * height * (-(-width // numbers.run) if wide else width), numbers.stored.itemsize / 4
    turns = steps * (down * across * max(columns[1] * lane, 1) + M * taps * (steps > 1)) + moves * max(width * lane, 1)
    instructions = 110 + steps * (3 * down * across + M * (taps * (not is_weight) + products)) + 3 * moves
    cut = Cut(sizes, rows, columns, wide, registers, M * products, 0)
    return cut._replace(time=cut.tiles[0] * max(instructions / 4, turns))


# ------------------------------------------------------------------------------------------ kernels


@device
def parted(i, plan, at):
    """(i // n, i % n) for 0 <= i < 2**31, as in `intrinsics.pixel`, but all in 32 bits."""
    n, multiplier, shift, _ = entry(plan, at)
    whole = np.int32(np.uint64(np.uint32(i)) * np.uint64(np.uint32(multiplier)) >> np.uint64(shift))
    return whole, np.int32(i - whole * n)


# ------------------------------------------------------------------------------------------ kernels


def make_depthwise_sum(dtype, rows, columns, kernel, channels, many, every, wide, threads):
    """Forward and adjoint.

    rows, columns : what each result of a tile meets on its axis, (offset, tap)
    kernel : taps on three axes
    channels, many : of the result, in a group; whether there are many of the source
    every : the stride of the adjoint on the first axis, else 1
    wide : whether rows of tiles are whole and aligned
    """
    height, width, taps = len(rows), len(columns), kernel[1] * kernel[2]
    begin, add_taps = make_strip(dtype, rows, columns, kernel, channels)
    finish = make_finish(height, width, channels, wide)

    def depthwise_sum_kernel(source, w, bias, out, plan):
        i = np.int32(cuda.blockIdx.x * threads + cuda.threadIdx.x)
        tiles, has_bias, _, _ = entry(plan, COUNTS)
        if i >= tiles:
            return
        plane, rest = parted(i, plan, OF_PLANE)
        z, rest = parted(rest, plan, OF_SLICE)
        p, q = parted(rest, plan, OF_ROW)
        _, group = parted(plane, plan, OF_GROUPS)
        slices, rows_there, columns_there, pitch = entry(plan, SOURCE)
        first_p, step_p, first_q, step_q = entry(plan, PLACE)
        first_z, step_z, tap_z, _ = entry(plan, DEPTH)
        place = np.int32(first_p + p * step_p), np.int32(first_q + q * step_q)
        sizes = rows_there, columns_there
        at = np.int64(plane) * plan[SOURCE_PLANE] + np.int64(place[0]) * pitch + place[1]
        at_w = group * plan[W_GROUP]
        total = begin(bias, np.int64(group) * channels, has_bias != 0)
        for _ in range(np.int32(plan[CHANNELS]) if many else np.int32(1)):
            for tap in range(np.int32(kernel[0])):
                d = np.int32(first_z + z * step_z + tap * tap_z)
                if every == 1 or d % every == 0:
                    d = np.int32(d // every)
                    ok, here, from_w = inside(d, slices), at + d * plan[SOURCE_Z], at_w + tap * taps
                    total = add_taps(total, source, here, pitch, place, sizes, ok, w, from_w, plan[W_ROW])
            at, at_w = at + plan[SOURCE_CHANNEL], at_w + plan[W_CHANNEL]
        rows_there, columns_there, pitch, _ = entry(plan, TILE)
        p, q = p * height, q * width
        to = np.int64(plane) * plan[TILE_PLANE] + z * plan[TILE_Z] + np.int64(p) * pitch + q
        finish(total, out, to, plan[TILE_CHANNEL], pitch, np.int32(rows_there - p), np.int32(columns_there - q))

    return depthwise_sum_kernel


def make_depthwise_weight(dtype, rows, columns, kernel, channels, threads):
    """The weight gradient: a block has the taps of one slice of a source channel, of all `channels` of y in its group.

    Its threads each sum some tiles of y. Then halves of the threads add up the other halves' sums, always in the same
    order.
    """
    height, width, taps = len(rows), len(columns), kernel[1] * kernel[2]
    begin, add_products = make_gradient(dtype, rows, columns, kernel, channels)
    put, _ = make_numbers(threads)
    element = getattr(types, dtype)

    def depthwise_weight_kernel(x, y, out, plan):
        sums = cuda.shared.array(0, element)
        t = np.int32(cuda.threadIdx.x)
        block, tap = parted(np.int32(cuda.blockIdx.x), plan, OF_DEPTH)
        block, channel = parted(block, plan, OF_CHANNELS)
        part, group = parted(block, plan, OF_GROUPS)
        tiles, _, per_part, _ = entry(plan, COUNTS)
        first, last = part * per_part + t, min(tiles, (part + 1) * per_part)
        groups = entry(plan, OF_GROUPS)[0]
        slices, rows_there, columns_there, pitch = entry(plan, SOURCE)
        first_p, step_p, first_q, step_q = entry(plan, PLACE)
        first_z, step_z, tap_z, _ = entry(plan, DEPTH)
        y_rows, _, y_pitch, _ = entry(plan, TILE)
        total = begin()
        for i in range(first, last, threads):
            n, rest = parted(i, plan, OF_PLANE)
            z, rest = parted(rest, plan, OF_SLICE)
            p, q = parted(rest, plan, OF_ROW)
            plane = np.int64(n) * groups + group
            place = np.int32(first_p + p * step_p), np.int32(first_q + q * step_q)
            d = np.int32(first_z + z * step_z + tap * tap_z)
            at = plane * plan[SOURCE_PLANE] + channel * plan[SOURCE_CHANNEL] + d * plan[SOURCE_Z]
            at += np.int64(place[0]) * pitch + place[1]
            p, q = p * height, q * width
            at_y = plane * plan[TILE_PLANE] + z * plan[TILE_Z] + np.int64(p) * y_pitch + q
            total = add_products(
                total, x, at, pitch, place, (rows_there, columns_there), inside(d, slices),
                y, at_y, plan[TILE_CHANNEL], y_pitch, np.int32(y_rows - p),
            )  # fmt: skip
        put(total, sums, t)
        half = threads // 2
        while half:
            cuda.syncthreads()
            if t < half:
                for r in range(channels * taps):
                    sums[r * threads + t] += sums[r * threads + t + half]
            half //= 2
        cuda.syncthreads()
        for r in range(t, channels * taps, threads):
            at = part * plan[W_SIZE] + group * plan[W_GROUP] + r // taps * plan[W_ROW] + channel * plan[W_CHANNEL]
            store(out, at + tap * taps + r % taps, sums[r * threads])

    return depthwise_weight_kernel
