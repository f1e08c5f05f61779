"""Winograd's F(2x2, 3x3): transforms around products of tiles, fused. README.md has the contract.

Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308. A tile is 2 x 2 result pixels; it
reads a patch of 4 x 4 source pixels. Both the patch and the 3 x 3 taps are transformed to 16 numbers,

    out[m, tile] = A.T (sum over channels c of (G w[m, c] G.T) * (B.T patch[c, tile] B)) A

so that 16 products of matrices, one for each of the numbers, take the place of 36 multiply-adds for a tile. Only the
transformed weights are ever in the memory of the device.
"""

import math
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numba import cuda
from numba.cuda import types

from loopconv.cuda import plans
from loopconv.cuda.elements import device, load, store
from loopconv.cuda.emit import QUAD, WIDE
from loopconv.cuda.intrinsics import anew, inside, make_arrived, make_place, pixel, sent
from loopconv.cuda.patches import NUMBERS, SIDE, SPILL_PITCH, make_fetch_all, make_numbers, make_patch, make_products
from loopconv.cuda.stages import Launch, Plan
from loopconv.cuda.tiles import (
    CHIPS,
    EDGE_SLABS,
    TILES,
    WEIGHT_TILES,
    WINOGRAD,
    WINOGRAD_WEIGHT,
    nearest,
    splits_of,
    time_of,
)
from loopconv.tiled.layout import problem, reaches_most_pixels

# ------------------------------------------------------------------------------------------ transforms


@device
def along_input(a, b, c, d):
    """B.T of four numbers."""
    return a - c, b + c, c - b, d - b


@device
def transformed(d):
    """B.T d B of a patch."""
    a, b = along_input(d[0], d[4], d[8], d[12]), along_input(d[1], d[5], d[9], d[13])
    c, e = along_input(d[2], d[6], d[10], d[14]), along_input(d[3], d[7], d[11], d[15])
    return (
        along_input(a[0], b[0], c[0], e[0]) + along_input(a[1], b[1], c[1], e[1])
        + along_input(a[2], b[2], c[2], e[2]) + along_input(a[3], b[3], c[3], e[3])
    )  # fmt: skip


@device
def along_output(a, b, c, d):
    """A.T of four numbers."""
    return a + b + c, b - c + d


@device
def results(m):
    """A.T m A: the 2 x 2 results of a tile."""
    a, b = along_output(m[0], m[4], m[8], m[12]), along_output(m[1], m[5], m[9], m[13])
    c, d = along_output(m[2], m[6], m[10], m[14]), along_output(m[3], m[7], m[11], m[15])
    return along_output(a[0], b[0], c[0], d[0]) + along_output(a[1], b[1], c[1], d[1])


@device
def along_results(a, b):
    """A of two results."""
    return a, a + b, a - b, b


@device
def transformed_results(y):
    """A y A.T of 2 x 2 results."""
    a, b = along_results(y[0], y[2]), along_results(y[1], y[3])
    return along_results(a[0], b[0]) + along_results(a[1], b[1]) + along_results(a[2], b[2]) + along_results(a[3], b[3])


@device
def along_numbers(a, b, c, d):
    """G.T of four numbers."""
    half = np.float32(0.5)
    return a + (b + c) * half, (b - c) * half, (b + c) * half + d


@device
def taps_of(m):
    """G.T m G: the 3 x 3 taps of sums of numbers."""
    a, b = along_numbers(m[0], m[4], m[8], m[12]), along_numbers(m[1], m[5], m[9], m[13])
    c, d = along_numbers(m[2], m[6], m[10], m[14]), along_numbers(m[3], m[7], m[11], m[15])
    return (
        along_numbers(a[0], b[0], c[0], d[0]) + along_numbers(a[1], b[1], c[1], d[1])
        + along_numbers(a[2], b[2], c[2], d[2])
    )  # fmt: skip


@device
def sum_of_nine(m):
    return m[0] + m[1] + m[2] + m[3] + m[4] + m[5] + m[6] + m[7] + m[8]


@device
def along_taps(a, b, c):
    """G of three taps."""
    half = np.float32(0.5)
    return a, (a + c + b) * half, (a + c - b) * half, c


@device
def taps_down(w, at, step, exists):
    """G of a column of taps, `step` apart; zeros where it does not exist."""
    a = b = c = np.float32(0)
    if exists:
        a, b, c = load(w, at), load(w, at + 3 * step), load(w, at + 6 * step)
    return along_taps(a, b, c)


@device
def transformed_taps(w, at, step, exists):
    """G w G.T of 3 x 3 taps."""
    a, b = taps_down(w, at, step, exists), taps_down(w, at + step, step, exists)
    c = taps_down(w, at + 2 * step, step, exists)
    return (
        along_taps(a[0], b[0], c[0]) + along_taps(a[1], b[1], c[1])
        + along_taps(a[2], b[2], c[2]) + along_taps(a[3], b[3], c[3])
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ numbers

# The plan array of all kernels. Taps are in the order of the source's pixels: their numbers in the kernel are W_FIRST,
# and from there on W_TAP apart. In the weight gradient, y is what "out" is elsewhere.
(
    ROW_BLOCKS, COLUMN_BLOCKS, SLABS, SPLITS, ROWS, CHANNELS, DEPTHS, TILE_COUNT, HAS_BIAS, SOURCE_IMAGE, SOURCE_GROUP,
    SOURCE_CHANNEL, SOURCE_Z, SOURCE_P, OUT_IMAGE, OUT_GROUP, OUT_ROW, OUT_Z, OUT_P, SIZE_Z, SIZE_P, SIZE_Q,
    OUT_SIZE_P, OUT_SIZE_Q, FIRST_Z, STEP_Z, FIRST_P, FIRST_Q, MEETS_ZEROS, W_GROUP, W_ROW, W_CHANNEL, W_FIRST, W_TAP,
    W_SIZE, TILE_PIXELS,
) = range(36)  # fmt: skip
HEADER = TILE_PIXELS + 9  # the tiles of an image, of a slice and of a row, each as (number, multiplier, shift)
TAPS = 9  # of a slice
PARTS = 4  # of a slab's products, between which the next slab is fetched
PAD = 4  # elements between the rows of a slab of the weight gradient: eight tiles of four channels meet in no bank


def sizes_of(quads, depth):
    """(columns, rows, of the 16 numbers those of each warp, threads) of a block with slabs of `depth` steps.

    Rows are result channels, columns tiles and steps channels; in the weight gradient rows are channels of y, columns
    channels of x and steps tiles. There are as many patches of the source in a slab as threads.
    """
    columns, rows = 16 * quads[0], 32 * quads[1]
    threads = columns * depth
    return columns, rows, 32 * NUMBERS // threads, threads


def shared_elements(quads, depth, pad=0):
    """Elements of shared memory: two slabs, or the numbers of 32 rows in their place."""
    columns, rows, _, _ = sizes_of(quads, depth)
    return NUMBERS * max(2 * depth * (columns + rows + 2 * pad), columns * SPILL_PITCH)


@device
def window(p, q, height, width):
    """A bit for each of 4 x 4 pixels from (p, q) on, set where it is one of height x width."""
    above, below = min(max(-p, 0), SIDE), min(max(p + SIDE - height, 0), SIDE)
    left, right = min(max(-q, 0), SIDE), min(max(q + SIDE - width, 0), SIDE)
    down, across = 0xFFFF << SIDE * above & 0xFFFF >> SIDE * below, 0xF << left & 0xF >> right
    return np.int32(down & 0x1111 * across)


@device
def corner(p, q, height, width):
    """The same for the 2 x 2 results from (p, q) on, of which the first exists."""
    return np.int32((1 + 2 * (q + 1 < width)) * (1 + 4 * (p + 1 < height)))


# ------------------------------------------------------------------------------------------ kernels


def make_weights(dtype, quads, depth):
    """packed[group, row block, slab, number, channel of the slab, row of the block], zeros where there is none."""
    _, rows, _, _ = sizes_of(quads, depth)
    size = rows * depth
    put, _ = make_numbers(size)

    def weights_kernel(w, packed, plan):
        i = np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        slab, rest = i // size, i % size
        to = slab * (NUMBERS * size) + rest
        block, slab = slab // plan[SLABS], slab % plan[SLABS]
        across = plan[SLABS] // plan[DEPTHS]
        row = block % plan[ROW_BLOCKS] * rows + rest % rows
        channel = slab % across * depth + rest // rows
        at = block // plan[ROW_BLOCKS] * plan[W_GROUP] + row * plan[W_ROW] + channel * plan[W_CHANNEL]
        at += plan[W_FIRST] + slab // across * (TAPS * plan[W_TAP])
        exists = row < plan[ROWS] and channel < plan[CHANNELS]
        put(transformed_taps(w, at, plan[W_TAP], exists), packed, to)

    return weights_kernel


@device
def is_inside(plan, d, h, v):
    """Whether the source has that pixel."""
    return 0 <= d < plan[SIZE_Z] and 0 <= h < plan[SIZE_P] and 0 <= v < plan[SIZE_Q]


@device
def pixel_of(source, plan, at, d, h, v):
    """A pixel of the plane that begins at `at`, zero outside."""
    if is_inside(plan, d, h, v):
        return load(source, at + d * plan[SOURCE_Z] + h * plan[SOURCE_P] + v)
    return np.float32(0)


@device
def direct(source, w, plan, group, row, n, z, p, q):
    """One result, as the sum that it is."""
    total = np.float32(0)
    for channel in range(plan[CHANNELS]):
        at = n * plan[SOURCE_IMAGE] + group * plan[SOURCE_GROUP] + channel * plan[SOURCE_CHANNEL]
        tap = group * plan[W_GROUP] + row * plan[W_ROW] + channel * plan[W_CHANNEL] + plan[W_FIRST]
        for i in range(plan[DEPTHS] * TAPS):
            d, h, v = z + i // TAPS * plan[STEP_Z], p + i % TAPS // 3, q + i % 3
            if plan[MEETS_ZEROS] or is_inside(plan, d, h, v):
                total += load(w, tap + i * plan[W_TAP]) * pixel_of(source, plan, at, d, h, v)
    return total


@device
def again(source, w, out, plan, group, row, tile, there, to, plus):
    """The results of a tile by `direct`: the transform mixes them, and what is not finite belongs to some alone."""
    first_image = tile // plan[TILE_PIXELS]
    n, z, p, q = pixel(tile - first_image * plan[TILE_PIXELS], plan, TILE_PIXELS)
    z, p, q = z + plan[FIRST_Z], 2 * p + plan[FIRST_P], 2 * q + plan[FIRST_Q]
    for i in range(4):
        if there >> i & 1:
            total = direct(source, w, plan, group, row, n + first_image, z, p + i // 2, q + i % 2)
            store(out, to + i // 2 * plan[OUT_P] + i % 2, total + plus)


def make_winograd(dtype, quads, depth):
    """The kernel of forward and adjoint.

    dtype : "float32", in which is summed
    quads : quads of tiles, and of rows (result channels), of a thread
    depth : channels of a slab
    """
    tiles, rows, numbers, threads = sizes_of(quads, depth)
    size = NUMBERS * depth * rows  # of the weights in a slab, after which are the patches
    stage = size + NUMBERS * threads
    vector = WIDE // np.dtype(dtype).itemsize
    fetch_all = make_fetch_all(size // (threads * vector), threads * vector)
    places_at = shared_elements(quads, depth) * np.dtype(dtype).itemsize // 8
    begin, multiply, spill = make_products(dtype, numbers, *quads, depth, 0, PARTS)
    place = make_place(1, tiles, rows)
    patch = make_patch(SIDE)
    put, _ = make_numbers(threads)
    _, take = make_numbers(tiles * SPILL_PITCH)
    arrived = make_arrived(0)
    a_part, b_part = depth // PARTS * tiles, depth // PARTS * rows
    element = getattr(types, dtype)

    # Over 100 lines with the constants above: from the first fetch to the last, all of it shares one set of registers
    # and these constants, and parts of it would pass a dozen numbers to each other.
    def winograd_kernel(packed, source, w, bias, out, plan):
        shared = cuda.shared.array(0, element)
        places = cuda.shared.array(0, types.int64)
        t = np.int32(cuda.threadIdx.x)
        block = np.int64(cuda.blockIdx.x)
        row_block = block % plan[ROW_BLOCKS]
        block //= plan[ROW_BLOCKS]
        first_tile = block % plan[COLUMN_BLOCKS] * tiles
        group = block // plan[COLUMN_BLOCKS]

        # where the tile of this thread's patch lies, and which of its pixels exist
        first_image = first_tile // plan[TILE_PIXELS]
        j = first_tile - first_image * plan[TILE_PIXELS] + t % tiles
        n, z, p, q = pixel(j, plan, TILE_PIXELS)
        n, p, q = n + first_image, 2 * p, 2 * q
        exists = first_tile + t % tiles < plan[TILE_COUNT]
        if t < tiles:
            places[places_at + 2 * t] = n * plan[OUT_IMAGE] + z * plan[OUT_Z] + p * plan[OUT_P] + q
            places[places_at + 2 * t + 1] = corner(p, q, plan[OUT_SIZE_P], plan[OUT_SIZE_Q]) if exists else 0

        # its patch, of the channel that is this thread's in each slab: a bit for each pixel inside the source
        z, p, q = z + plan[FIRST_Z], p + plan[FIRST_P], q + plan[FIRST_Q]
        around = window(p, q, plan[SIZE_P], plan[SIZE_Q]) if exists else np.int32(0)
        own = np.int32(t // tiles)
        at = n * plan[SOURCE_IMAGE] + group * plan[SOURCE_GROUP] + own * plan[SOURCE_CHANNEL]
        at += z * plan[SOURCE_Z] + p * plan[SOURCE_P] + q
        channel, channels, depth_now = own, np.int32(plan[CHANNELS]), np.int32(z)
        pitch, next_slab = plan[SOURCE_P], depth * plan[SOURCE_CHANNEL]
        in_slice = around if inside(depth_now, np.int32(plan[SIZE_Z])) else np.int32(0)

        slabs = np.int32(plan[SLABS])
        packed_at = (group * plan[ROW_BLOCKS] + row_block) * slabs * size + vector * t
        _, above, left, _, _ = place(np.int32(t % 32))
        first = np.int32(t // 32 * numbers)
        a_at = np.int32(size + first * depth * tiles + above)
        b_at = np.int32(first * depth * rows + left)
        fetch_all(shared, np.int32(vector * t), packed, packed_at, True)
        sent()
        given = patch(source, at, pitch, in_slice if channel < channels else np.int32(0))
        put(transformed(given), shared, np.int32(size + t))
        total = begin()
        for step in range(np.int32(1), np.int32(slabs + 1)):
            here = np.int32((step & 1) * stage)  # where this slab comes to
            a, b = np.int32(stage - here + a_at), np.int32(stage - here + b_at)  # in the last one, which is multiplied
            channel, at, packed_at = np.int32(channel + depth), at + next_slab, packed_at + size
            if np.int32(channel - own) >= channels:  # on to the next slice
                at += plan[STEP_Z] * plan[SOURCE_Z] - np.int32(channel - own) * plan[SOURCE_CHANNEL]
                channel, depth_now = own, np.int32(depth_now + plan[STEP_Z])
                in_slice = around if inside(depth_now, np.int32(plan[SIZE_Z])) else np.int32(0)
            # the last slab's weights have arrived, and all are done with the one before, whose place is taken
            arrived()
            cuda.syncthreads()
            fetch_all(shared, np.int32(here + vector * t), packed, packed_at, step < slabs)
            sent()
            total = multiply(total, shared, a, b)
            given = patch(source, at, pitch, in_slice if channel < channels else np.int32(0))
            total = multiply(total, shared, np.int32(a + a_part), np.int32(b + b_part))
            total = multiply(total, shared, np.int32(a + 2 * a_part), np.int32(b + 2 * b_part))
            put(transformed(given), shared, np.int32(here + size + t))
            total = multiply(total, shared, np.int32(a + 3 * a_part), np.int32(b + 3 * b_part))

        # 32 rows at a time through shared memory, so that a thread has all numbers of a tile
        to = np.int32((first * tiles + above) * SPILL_PITCH + left)
        for quad in range(quads[1]):
            cuda.syncthreads()
            spill(total, shared, to, np.int32(quad))
            cuda.syncthreads()
            for row in range(t // 32 * QUAD + t % QUAD, 32, threads // 32 * QUAD):
                m = row_block * rows + 32 * quad + row
                if m < plan[ROWS]:
                    base = group * plan[OUT_GROUP] + m * plan[OUT_ROW]
                    plus = load(bias, group * plan[ROWS] + m) if plan[HAS_BIAS] else np.float32(0)
                    for tile in range(t % 32 // QUAD, tiles, 8):
                        there = places[places_at + 2 * tile + 1]
                        if there:
                            a, b, c, d = results(take(shared, np.int32(tile * SPILL_PITCH + row)))
                            to_out = base + places[places_at + 2 * tile]
                            if math.isfinite(a + b + c + d):
                                store(out, to_out, a + plus)
                                if there & 2:
                                    store(out, to_out + 1, b + plus)
                                if there & 4:
                                    store(out, to_out + plan[OUT_P], c + plus)
                                if there & 8:
                                    store(out, to_out + plan[OUT_P] + 1, d + plus)
                            else:
                                again(source, w, out, plan, group, m, first_tile + tile, there, to_out, plus)

    return winograd_kernel


@device
def direct_taps(x, y, out, plan, group, k, c, depth, first, last, to):
    """The nine taps of some tiles, each as the sum that it is, and no further than to where it is NaN."""
    for tap in range(TAPS):
        total = np.float32(0)
        for tile in range(first, last):
            image = tile // plan[TILE_PIXELS]
            _, z, p, q = pixel(tile - image * plan[TILE_PIXELS], plan, TILE_PIXELS)
            at_y = image * plan[OUT_IMAGE] + group * plan[OUT_GROUP] + k * plan[OUT_ROW] + z * plan[OUT_Z]
            at_x = image * plan[SOURCE_IMAGE] + group * plan[SOURCE_GROUP] + c * plan[SOURCE_CHANNEL]
            for i in range(4):
                h, v = 2 * p + i // 2, 2 * q + i % 2
                if h < plan[OUT_SIZE_P] and v < plan[OUT_SIZE_Q]:
                    value = load(y, at_y + h * plan[OUT_P] + v)
                    h, v = h + plan[FIRST_P] + tap // 3, v + plan[FIRST_Q] + tap % 3
                    total += value * pixel_of(x, plan, at_x, z + depth, h, v)
            if math.isnan(total):
                break
        store(out, to + tap, total)


@device
def find_tile(places, slot, plan, tile, first_image, slice_moved):
    """Write where a tile begins in x and in y, and which of its pixels there are."""
    n, z, p, q = pixel(tile - first_image * plan[TILE_PIXELS], plan, TILE_PIXELS)
    p, q = 2 * p, 2 * q
    places[slot + 1] = n * plan[OUT_IMAGE] + z * plan[OUT_Z] + p * plan[OUT_P] + q
    there = corner(p, q, plan[OUT_SIZE_P], plan[OUT_SIZE_Q]) * 0x110000
    z, p, q = z + slice_moved, p + plan[FIRST_P], q + plan[FIRST_Q]
    places[slot] = n * plan[SOURCE_IMAGE] + z * plan[SOURCE_Z] + p * plan[SOURCE_P] + q
    if inside(np.int32(z), np.int32(plan[SIZE_Z])):
        there |= window(p, q, plan[SIZE_P], plan[SIZE_Q])
    places[slot + 2] = there if tile < plan[TILE_COUNT] else 0


def make_winograd_weight(dtype, quads, depth):
    """The kernel of the weight gradient, with as many quads of channels of x as of y, and `depth` tiles in a slab."""
    columns, rows, numbers, threads = sizes_of(quads, depth)
    a_pitch, b_pitch = columns + PAD, rows + PAD
    size = NUMBERS * depth * a_pitch  # of the patches of x, after which are those of y
    stage = size + NUMBERS * depth * b_pitch
    begin, multiply, spill = make_products(dtype, numbers, *quads, depth, PAD, PARTS)
    place = make_place(1, columns, rows)
    patch, results_of = make_patch(SIDE), make_patch(2)
    (put_x, _), (put_y, _), (put, _) = (make_numbers(step) for step in (depth * a_pitch, depth * b_pitch, 1))
    _, take = make_numbers(columns * SPILL_PITCH)
    places_at = shared_elements(quads, depth, PAD) * np.dtype(dtype).itemsize // 8
    kept = places_at + 3 * threads
    a_part, b_part = depth // PARTS * a_pitch, depth // PARTS * b_pitch
    element = getattr(types, dtype)

    @device
    def fetched(x, y, places, slot, bits, x_from, y_from, y_step, x_pitch, y_pitch):
        """The pixels of a tile, of one channel of x and of two of y."""
        there, at = np.int32(places[np.uint32(slot + 2)] & bits), y_from + places[np.uint32(slot + 1)]
        one, more = results_of(y, at, y_pitch, there >> 16), results_of(y, at + y_step, y_pitch, there >> 20)
        return patch(x, x_from + places[slot], x_pitch, there), one, more

    @device
    def put_all(given, shared, a_to, b_to):
        put_x(transformed(given[0]), shared, a_to)
        put_y(transformed_results(given[1]), shared, b_to)
        put_y(transformed_results(given[2]), shared, b_to + columns)

    # Over 100 lines with the constants above, for the reason that `make_winograd` gives.
    def winograd_weight_kernel(x, y, out, plan):
        shared = cuda.shared.array(0, element)
        places = cuda.shared.array(0, types.int64)
        t = np.int32(cuda.threadIdx.x)
        block = np.int64(cuda.blockIdx.x)
        first_row = block % plan[ROW_BLOCKS] * rows
        block //= plan[ROW_BLOCKS]
        first_column = block % plan[COLUMN_BLOCKS] * columns
        block //= plan[COLUMN_BLOCKS]
        slice_tap = block % plan[DEPTHS]
        block //= plan[DEPTHS]
        split = block % plan[SPLITS]
        group = block // plan[SPLITS]

        # of each tile the thread fetches one channel of x and two of y
        first_slab = plan[SLABS] * split // plan[SPLITS]
        slabs = np.int32(plan[SLABS] * (split + 1) // plan[SPLITS] - first_slab)
        first_tile = first_slab * depth
        first_image = first_tile // plan[TILE_PIXELS]
        slice_moved = plan[FIRST_Z] + slice_tap * plan[STEP_Z]
        channel, row = first_column + t // depth, first_row + t // depth
        x_from = first_image * plan[SOURCE_IMAGE] + group * plan[SOURCE_GROUP] + channel * plan[SOURCE_CHANNEL]
        y_from = first_image * plan[OUT_IMAGE] + group * plan[OUT_GROUP] + row * plan[OUT_ROW]
        y_step, x_pitch, y_pitch = columns * plan[OUT_ROW], plan[SOURCE_P], plan[OUT_P]
        if t == 0:  # in shared memory, as `anew`, so that no registers are spent on them meanwhile
            places[kept], places[kept + 1] = first_row, first_column
            places[kept + 2] = split * plan[W_SIZE] + group * plan[W_GROUP] + slice_tap * TAPS
            places[kept + 3], places[kept + 4] = slice_moved, first_tile
            places[kept + 5] = min(first_tile + slabs * depth, plan[TILE_COUNT])
            places[kept + 6] = group
        # which pixels of a tile there are, by bits: of those of x the lower 16, of y 4, and these once more
        bits = 0xFFFF * (channel < plan[CHANNELS])
        bits |= 0xF0000 * (row < plan[ROWS]) | 0xF00000 * (row + columns < plan[ROWS])

        a_to = np.int32(t % depth * a_pitch + t // depth)
        b_to = np.int32(size + t % depth * b_pitch + t // depth)
        _, above, left, _, _ = place(np.int32(t % 32))
        first = np.int32(t // 32 * numbers)
        a_at = np.int32(first * depth * a_pitch + above)
        b_at = np.int32(size + first * depth * b_pitch + left)
        find_tile(places, places_at + 3 * t, plan, first_tile + t, first_image, slice_moved)
        cuda.syncthreads()
        slot = np.uint32(places_at + 3 * (t % depth))
        put_all(fetched(x, y, places, slot, bits, x_from, y_from, y_step, x_pitch, y_pitch), shared, a_to, b_to)
        total = begin()
        for step in range(np.int32(1), np.int32(slabs + 1)):
            here = np.int32((step & 1) * stage)  # where this slab comes to
            a, b = np.int32(stage - here + a_at), np.int32(stage - here + b_at)  # in the last one, which is multiplied
            slab = step & np.int32(columns - 1)
            cuda.syncthreads()  # all are done with the slab before the last one, whose place is taken
            if slab == 0:  # where the tiles of as many slabs as there are columns lie: each thread finds one
                find_tile(places, places_at + 3 * t, plan, first_tile + step * depth + t, first_image, slice_moved)
                cuda.syncthreads()
            # unsigned, as what may be negative would be counted from the end
            slot = np.uint32(places_at + 3 * (slab * depth + t % depth))
            given = fetched(x, y, places, slot, bits, x_from, y_from, y_step, x_pitch, y_pitch)
            total = multiply(total, shared, a, b)
            total = multiply(total, shared, np.int32(a + a_part), np.int32(b + b_part))
            total = multiply(total, shared, np.int32(a + 2 * a_part), np.int32(b + 2 * b_part))
            put_all(given, shared, here + a_to, here + b_to)
            total = multiply(total, shared, np.int32(a + 3 * a_part), np.int32(b + 3 * b_part))

        t = anew(np.int32(cuda.threadIdx.x))
        _, above, left, _, _ = place(t % np.int32(32))
        to = np.int32((t // 32 * numbers * columns + above) * SPILL_PITCH + left)
        for quad in range(quads[1]):  # 32 rows at a time, as in `make_winograd`
            cuda.syncthreads()
            spill(total, shared, to, np.int32(quad))
            cuda.syncthreads()
            for row in range(t // 32 * QUAD + t % QUAD, 32, threads // 32 * QUAD):
                k = places[kept] + 32 * quad + row
                for column in range(t % 32 // QUAD, columns, 8):
                    c = places[kept + 1] + column
                    if k < plan[ROWS] and c < plan[CHANNELS]:
                        nine = taps_of(take(shared, np.int32(column * SPILL_PITCH + row)))
                        to_out = places[kept + 2] + k * plan[W_ROW] + c * plan[W_CHANNEL]
                        if math.isfinite(sum_of_nine(nine)):
                            put(nine, out, to_out)
                        else:
                            moved, first, last = places[kept + 3], places[kept + 4], places[kept + 5]
                            direct_taps(x, y, out, plan, places[kept + 6], k, c, moved, first, last, to_out)

    return winograd_weight_kernel


# ------------------------------------------------------------------------------------------ predicates

STORED = ("float32", "float16", "bfloat16")


def is_winograd(geometry):
    """Whether F(2x2, 3x3) takes the call."""
    g = geometry
    return g.rank > 1 and tuple(g.kernel[-2:]) == (3, 3) and set(g.stride) == {1} and set(g.dilation[-2:]) == {1}


def is_exact(geometry, contraction):
    """Whether it rounds no more than is allowed, by the rules of `loopconv.tiled.driver`.

    The largest error of 64 channels of 8 images of 15 x 15, six times, as a share of `registry.tolerance`: 2.7 over 4
    channels and 0.8 over 8 with a padding of 2, whose corners one tap reaches; 0.3 and 0.2 with 1.
    """
    if contraction == "weight":
        return reaches_most_pixels(problem(geometry))
    return plans.sum_of(geometry, contraction).C >= 8


def fits(contraction, capability):
    """Whether a block fits the shared memory of a GPU: 110 KiB of weight gradients do not, where there are 99."""
    return contraction != "weight" or weight_shared("float32", WINOGRAD_WEIGHT) <= CHIPS[nearest(capability)].shared


def is_faster(geometry, contraction, capability):
    """Whether it is expected to be faster than implicit GEMM in float32, by the multiply-adds of whole blocks."""
    narrow = plans.is_narrow(geometry, contraction, plans.Numbers("float32"))
    if narrow or plans.is_grouped(geometry, contraction) or not fits(contraction, capability):
        return False
    known = nearest(capability)
    chip, is_weight = CHIPS[known], contraction == "weight"
    t = plans.sum_of(geometry, "forward" if is_weight else contraction)
    pixels, steps = t.p.N * prod(t.phases[0].sizes), t.C * len(t.phases[0].taps)
    columns, steps = (steps, pixels) if is_weight else (pixels, steps)
    tiles = (WEIGHT_TILES if is_weight else TILES)[known]["float32"]
    others = [time_of(tile, t.p.G, t.M, columns, -(-steps // tile.depth), chip) for tile in tiles]
    return _expected(_weight_cut(t, WINOGRAD_WEIGHT, chip) if is_weight else _sum_cut(t, WINOGRAD), chip) < min(others)


class Cut(NamedTuple):
    """Into which blocks a call is cut."""

    tile: Any
    row_blocks: int
    column_blocks: int
    blocks: int  # of one part
    slabs: int
    splits: int


def _expected(cut, chip):
    """Expected time, as `tiles.time_of`."""
    tile, waves = cut.tile, -(-cut.blocks * cut.splits // chip.processors)
    return waves * NUMBERS * tile.rows * tile.columns * tile.depth * (cut.slabs / cut.splits + EDGE_SLABS) / tile.share


def _tiles(t):
    """Tiles of a slice, its rows and its columns, on three axes; and those of the whole batch."""
    z, p, q = t.phases[0].sizes
    sizes = z, -(-p // 2), -(-q // 2)
    return sizes, t.p.N * prod(sizes)


def _sum_cut(t, tile):
    row_blocks, column_blocks = -(-t.M // tile.rows), -(-_tiles(t)[1] // tile.columns)
    slabs = t.p.k[0] * -(-t.C // tile.depth)
    return Cut(tile, row_blocks, column_blocks, t.p.G * row_blocks * column_blocks, slabs, 1)


def _weight_cut(t, tile, chip):
    row_blocks, column_blocks = -(-t.M // tile.rows), -(-t.C // tile.columns)
    blocks, slabs = t.p.G * t.p.k[0] * row_blocks * column_blocks, -(-_tiles(t)[1] // tile.depth)
    # a part has no more tiles than 32 bits can count
    splits = max(splits_of(blocks, slabs, tile, chip), -(-slabs * tile.depth // 2**30))
    return Cut(tile, row_blocks, column_blocks, blocks, slabs, splits)


# ------------------------------------------------------------------------------------------ plans

WEIGHTS_THREADS = 256


def plan(contraction, geometry, numbers, capability, has_bias=False):
    """The plan of a call that `is_winograd`."""
    if contraction == "weight":
        return weight_plan(geometry, numbers, capability)
    return sum_plan(geometry, contraction, numbers, has_bias)


def sum_plan(geometry, contraction, numbers, has_bias=False, tile=WINOGRAD):
    """Forward or adjoint: transform the weights, then all the rest at once."""
    t = plans.sum_of(geometry, contraction)
    cut, constants = _sum_cut(t, tile), (numbers.compute, tile.quads, tile.depth)
    source, out = ("x", "y") if contraction == "forward" else ("y", "x")
    header = _header(t, cut, has_bias, contraction == "forward", 0)
    weights = t.p.G * cut.row_blocks * cut.slabs * tile.rows * tile.depth
    at_once = min(WEIGHTS_THREADS, tile.rows * tile.depth)
    transform = Launch(make_weights, constants, ("w", "packed"), header, weights // at_once, at_once)
    shared = np.dtype(numbers.compute).itemsize * shared_elements(*constants[1:]) + 16 * tile.columns
    multiply = Launch(
        make_winograd, constants, ("packed", source, "w", "bias" if has_bias else "w", out), header, cut.blocks,
        sizes_of(*constants[1:])[-1], shared,
    )  # fmt: skip
    return Plan((transform, multiply), {"packed": (NUMBERS * weights, None)})


def weight_plan(geometry, numbers, capability=(9, 0), tile=WINOGRAD_WEIGHT):
    """The weight gradient: multiply, and add up the parts where there are several."""
    chip, shared = CHIPS[nearest(capability)], weight_shared(numbers.compute, tile)
    if not fits("weight", capability):
        raise ValueError(
            "algorithm must not be 'winograd2' for weight gradients on this GPU: it takes "
            f"{shared >> 10} KiB of shared memory, and a block has {chip.shared >> 10}"
        )
    t = plans.sum_of(geometry, "forward")
    cut, constants = _weight_cut(t, tile, chip), (numbers.compute, tile.quads, tile.depth)
    size, threads = prod(geometry.w_shape), sizes_of(*constants[1:])[-1]
    multiply = Launch(
        make_winograd_weight, constants, ("x", "y", "partial" if cut.splits > 1 else "w"),
        _header(t, cut, False, True, size), cut.blocks * cut.splits, threads, shared,
    )  # fmt: skip
    return plans.with_parts((multiply,), numbers, cut.splits, size)


def weight_shared(dtype, tile):
    """Bytes of shared memory of a block of the weight gradient."""
    threads = sizes_of(tile.quads, tile.depth)[-1]
    return np.dtype(dtype).itemsize * shared_elements(tile.quads, tile.depth, PAD) + 8 * (3 * threads + 7)


def _header(t, cut, has_bias, meets_zeros, w_size):
    (phase,), (per_slice, tiles) = t.phases, _tiles(t)
    taps = sorted((moves, number) for number, moves in phase.taps)
    (first, number), step_z = taps[0], taps[-1][0][0] - taps[0][0][0]
    numbers = [
        cut.row_blocks, cut.column_blocks, cut.slabs, cut.splits, t.M, t.C, t.p.k[0], tiles, int(has_bias),
        t.source_image, t.C * t.source_steps[0], *t.source_steps[:3], t.out_image, t.M * t.out_steps[0],
        *t.out_steps[:3], *t.source, *phase.sizes[1:], first[0], step_z // max(t.p.k[0] - 1, 1), *first[1:],
        int(meets_zeros), *t.w_steps, number, taps[1][1] - number, w_size, *plans.divisors(per_slice),
    ]  # fmt: skip
    assert len(numbers) == HEADER
    return np.array(numbers, np.int64)
