"""The products of tiled.py by tensor cores: float16 and bfloat16, and float32 rounded to TF32 where that is asked for.

Tensor cores are fed by 16 bytes at a time, all of one pixel, so the arrays are copied once with their channels last:

    last[group, image and slice, pixel of the slice, channel]
    packed[group, result channel, tap, channel]

with zeros after the channels, to whole pieces of 16 bytes.
Then a step is a piece of channels of one tap, its table entry is in pieces, and a fetch out of bounds writes zeros as
in tiled.py. README.md has the contract.
"""

import numpy as np
from numba import cuda
from numba.cuda import types

from loopconv.cuda.elements import load, store, zero
from loopconv.cuda.emit import WIDE
from loopconv.cuda.fragments import PAD, PIECES, make_tile, threads_of
from loopconv.cuda.intrinsics import (
    anew,
    entry,
    inside,
    make_arrived,
    make_fetch,
    moved,
    noted,
    pixel,
    plain,
    rounded,
    sent,
)
from loopconv.cuda.tiled import (
    AWAY,
    BASE,
    BATCH,
    COLUMN_BLOCKS,
    FIRST_PIXEL,
    HAS_BIAS,
    LAST_PIXEL,
    NOTES,
    NOWHERE,
    OUT_GROUP,
    OUT_IMAGE,
    OUT_P,
    OUT_Q,
    OUT_ROW,
    OUT_SPLIT,
    OUT_Z,
    PHASE,
    PHASE_PIXELS,
    PHASE_SLAB,
    PHASE_SLABS,
    PHASE_START,
    PHASES,
    PITCH,
    ROW_BLOCKS,
    ROWS,
    ROWS_LEFT,
    SIDE,
    SIZE_P,
    SIZE_Q,
    SIZE_Z,
    SOURCE_GROUP,
    SOURCE_IMAGE,
    SOURCE_Q,
    SPLITS,
    SQUARE,
    STEPS,
    STRIDE_P,
    STRIDE_Q,
    STRIDE_Z,
    SUM_HEADER,
    TABLE,
    W_COLUMN_BLOCKS,
    W_COLUMNS,
    W_PIXELS,
    W_ROW_BLOCKS,
    W_ROWS,
    W_SIZE,
    W_SIZE_P,
    W_SIZE_Q,
    W_SIZE_Z,
    W_SPLITS,
    W_STEPS,
    W_TAPS,
    WEIGHT_HEADER,
    X_FROM,
    X_GROUP,
    X_IMAGE,
    X_Q,
    Y_FROM,
    Y_GROUP,
    Y_IMAGE,
    Y_Q,
    note_pixel,
)


def make_sum(dtype, tile, quads, stages, axes, wide_out):
    """The kernel of forward and adjoint; positions in `packed` and `last` are in pieces of 16 bytes.

    dtype : in shared memory, a key of `fragments.MMA`
    tile, quads : (rows, columns) of a block, and sixteenths of those of a warp
    stages : slabs in shared memory
    axes : how many of the last axes can leave the source
    wide_out : whether four neighbouring pixels lie side by side, aligned
    """
    rows, columns = tile
    threads = threads_of(tile, quads)
    size = np.dtype(dtype).itemsize
    piece = WIDE // size
    pitch = PIECES * piece
    every = threads // PIECES  # rows that the threads fetch at once, each one piece
    stage, b_start = (rows + columns) * pitch, rows * pitch
    spots_at = stages * stage * size // 4
    positions_at = stages * stage * size // 8 + 2 * columns
    place, begin, multiply, finish = make_tile("rows", dtype, tile, quads, pitch, (pitch, pitch), wide_out)
    fetch, arrived = make_fetch(True), make_arrived(stages - 2)
    element = getattr(types, dtype)

    # Over 100 lines with the constants above, for the reason that tiled.make_sum gives.
    def sum_kernel(packed, source, bias, out, plan):
        shared = cuda.shared.array(0, element)
        spots = cuda.shared.array(0, types.int32)
        positions = cuda.shared.array(0, types.int64)
        t = np.int64(cuda.threadIdx.x)
        block = np.int64(cuda.blockIdx.x)
        first_row = block % plan[ROW_BLOCKS] * rows
        block //= plan[ROW_BLOCKS]
        first_column = block % plan[COLUMN_BLOCKS] * columns
        block //= plan[COLUMN_BLOCKS]
        phase = SUM_HEADER + block % plan[PHASES] * PHASE
        block //= plan[PHASES]
        split = block % plan[SPLITS]
        group = block // plan[SPLITS]

        # where each column's pixel lies, counted from the first image here, its coordinates, and its result
        image_pixels = plan[phase + PHASE_PIXELS]
        first_image = first_column // image_pixels
        last = plan[BATCH] * image_pixels - first_column
        for j in range(t, columns, threads):
            n, z, p, q = pixel(first_column - first_image * image_pixels + j, plan, phase + PHASE_PIXELS)
            to = (n + first_image) * plan[OUT_IMAGE] + z * plan[OUT_Z] + p * plan[OUT_P] + q * plan[OUT_Q]
            positions[positions_at + j] = to if j < last else -1
            z, p, q = z * plan[STRIDE_Z], p * plan[STRIDE_P], q * plan[STRIDE_Q]
            at = spots_at + 4 * j
            spots[at] = np.int32(((n * plan[SIZE_Z] + z) * plan[SIZE_P] + p) * plan[SIZE_Q] + q)
            spots[at + 1], spots[at + 2] = np.int32(z), np.int32(p)
            spots[at + 3] = np.int32(q) if j < last else np.int32(AWAY)

        slabs = plan[phase + PHASE_SLABS]
        first_slab = slabs * split // plan[SPLITS]
        slabs = np.int32(slabs * (split + 1) // plan[SPLITS] - first_slab)
        first_step = (first_slab + plan[phase + PHASE_SLAB]) * PIECES + t % PIECES
        a_from = (group * plan[STEPS] + first_row + t // PIECES) * plan[PITCH] + first_step
        a_from *= piece
        b_from = np.int32(plan[TABLE] + 2 * first_step)
        here = (first_image * plan[SOURCE_IMAGE] + group * plan[SOURCE_GROUP]) * piece
        a_every, of_pixel = every * plan[PITCH] * piece, np.int32(plan[SOURCE_Q] * piece)
        to = np.int32((t // PIECES) * pitch + (t % PIECES ^ t // PIECES // 4 % 4) * piece)
        spot_at = np.int32(spots_at + 4 * (t // PIECES))
        d_size, h_size, w_size = np.int32(plan[SIZE_Z]), np.int32(plan[SIZE_P]), np.int32(plan[SIZE_Q])

        lane, row, column, a_at, b_at = place(np.int32(t))
        has_bias = split == 0 and plan[HAS_BIAS] != 0
        first = first_row + row
        total = begin(bias, group * plan[ROWS] + first, plan[ROWS] - first, has_bias)
        if t == 0:  # in shared memory, so that no registers are spent on them meanwhile
            base = plan[phase + PHASE_START] + split * plan[OUT_SPLIT] + group * plan[OUT_GROUP]
            positions[positions_at + columns] = base + first_row * plan[OUT_ROW]
            positions[positions_at + columns + 1] = plan[ROWS] - first_row

        # in shared memory, of the slab that is fetched; the next one is the oldest, which is used
        slab_at = np.int32(0)
        for step in range(np.int32(slabs + stages - 1)):
            # this slab's fetches have arrived, and all are done with the one whose place is taken next
            arrived()
            cuda.syncthreads()
            if step < slabs:
                for i in range(rows // every):
                    from_a = moved(packed, a_from + i * a_every)
                    fetch(shared, np.int32(slab_at + to), i * every * pitch, from_a, 0, True)
                offset, dz, dp, dq = entry(plan, b_from)
                there = here + np.int64(offset) * piece
                for i in range(columns // every):
                    at, z, p, q = noted(spots, np.int32(spot_at + 4 * i * every))
                    ok = inside(q + dq, w_size)
                    if axes > 2:
                        ok &= inside(z + dz, d_size)
                    if axes > 1:
                        ok &= inside(p + dp, h_size)
                    from_b = moved(source, there + np.int64(at) * of_pixel)
                    fetch(shared, np.int32(slab_at + to), b_start + i * every * pitch, from_b, 0, ok)
                a_from += PIECES * piece
                b_from = np.int32(b_from + 2 * PIECES)
            slab_at = np.int32(slab_at + stage) if slab_at < (stages - 1) * stage else np.int32(0)
            sent()
            if step >= stages - 1:
                total = multiply(total, shared, np.int32(slab_at + a_at), np.int32(slab_at + b_start + b_at), lane)

        lane, row, column, a_at, b_at = place(anew(np.int32(cuda.threadIdx.x)))
        base = positions[positions_at + columns] + row * plan[OUT_ROW]
        row_count = positions[positions_at + columns + 1] - row
        finish(total, out, base, plan[OUT_ROW], row_count, positions, positions_at + column)

    return sum_kernel


def sum_shared(dtype, tile, quads, stages, *_):
    """Bytes of shared memory: the slabs, where each pixel lies, where its result does, and two more numbers."""
    return stages * (tile[0] + tile[1]) * PIECES * WIDE + (16 + 8) * tile[1] + 16


def make_weight(dtype, tile, quads, depth, stages, axes):
    """The kernel of the weight gradient: rows are channels of y, columns (tap, channel of x), steps pixels of y.

    Its constants are those of `make_sum`, and the steps of a slab. Table entries, one for each piece of columns, and
    positions in both arrays are in pieces of 16 bytes.
    """
    rows, columns = tile
    threads = threads_of(tile, quads)
    size = np.dtype(dtype).itemsize
    piece = WIDE // size
    way, pad = ("pairs", PAD) if dtype == "float32" else ("turned", 0)
    a_pitch, b_pitch = rows + pad, columns + pad
    stage, b_start = depth * (a_pitch + b_pitch), depth * a_pitch
    together = threads // depth  # pieces of a step that the threads fetch at once
    a_turns, b_turns = rows // piece // together, columns // piece // together
    # of two steps of four pieces, a quarter of a warp takes some whose orders lie in different halves
    is_mixed = way == "turned" and together == 4
    positions_at = stages * stage * size // 8
    place, begin, multiply, finish = make_tile(way, dtype, tile, quads, depth, (a_pitch, b_pitch), False)
    fetch, arrived = make_fetch(True), make_arrived(stages - 2)
    element = getattr(types, dtype)
    ahead, numbers = threads // depth, positions_at + columns
    notes_at = numbers + NOTES
    coordinates_at = 2 * notes_at + 4 * threads

    # Over 100 lines with the constants above, for the reason that tiled.make_sum gives.
    def weight_kernel(x, y, out, plan):
        shared = cuda.shared.array(0, element)
        positions = cuda.shared.array(0, types.int64)
        coordinates = cuda.shared.array(0, types.int32)
        t = np.int64(cuda.threadIdx.x)
        block = np.int64(cuda.blockIdx.x)
        first_row = block % plan[W_ROW_BLOCKS] * rows
        block //= plan[W_ROW_BLOCKS]
        first_column = block % plan[W_COLUMN_BLOCKS] * columns
        block //= plan[W_COLUMN_BLOCKS]
        split = block % plan[W_SPLITS]
        group = block // plan[W_SPLITS]

        # pixels are counted from the first image that the block meets
        slabs = -(-plan[W_STEPS] // depth)
        first_slab = slabs * split // plan[W_SPLITS]
        slabs = np.int32(slabs * (split + 1) // plan[W_SPLITS] - first_slab)
        first_image = first_slab * depth // plan[W_PIXELS]

        # what this thread fetches: of one pixel of the slab, every so many pieces of rows and of columns
        d = t // 32 * 8 + t // 4 % 2 * 4 + t // 8 % 4 if is_mixed else t // together
        row, column = first_row // piece + t % together, first_column // piece + t % together
        rows_left = np.int32(min(plan[Y_Q] - row, rows))
        table = np.int32(WEIGHT_HEADER + 2 * column)
        order = np.int32(t % together ^ (d % 8 if way == "turned" else 0))
        a_to, b_to = np.int32(d * a_pitch), np.int32(b_start + d * b_pitch)
        d_size, h_size, w_size = np.int32(plan[W_SIZE_Z]), np.int32(plan[W_SIZE_P]), np.int32(plan[W_SIZE_Q])

        channels = plan[X_Q] * piece
        for j in range(t, columns, threads):
            tap = (first_column + j) // channels
            c = first_column + j - tap * channels
            exists = tap < plan[W_TAPS] and c * plan[W_TAPS] < plan[W_COLUMNS]
            positions[positions_at + j] = c * plan[W_TAPS] + tap if exists else -1
        if t == 0:  # in shared memory, so that no registers are spent on them meanwhile
            base = split * plan[W_SIZE] + (group * plan[W_ROWS] + first_row) * plan[W_COLUMNS]
            positions[numbers + BASE], positions[numbers + ROWS_LEFT] = base, plan[W_ROWS] - first_row
            positions[numbers + FIRST_PIXEL] = first_slab * depth - first_image * plan[W_PIXELS]
            positions[numbers + LAST_PIXEL] = plan[W_STEPS] - first_image * plan[W_PIXELS]
            positions[numbers + Y_FROM] = first_image * plan[Y_IMAGE] + group * plan[Y_GROUP]
            positions[numbers + X_FROM] = first_image * plan[X_IMAGE] + group * plan[X_GROUP]
        row_from = row
        lane, row, column, a_at, b_at = place(np.int32(t))
        total = begin(y, 0, 0, False)

        # in shared memory, of the slab that is fetched; the next one is the oldest, which is used
        slab_at = np.int32(0)
        for turn in range(np.int32(slabs + stages - 1)):
            arrived()
            cuda.syncthreads()
            if turn < slabs:
                if turn & (ahead - 1) == 0:
                    i = turn * depth + t
                    note_pixel(positions, coordinates, numbers, notes_at + 2 * t, coordinates_at + 4 * t, i, plan)
                    cuda.syncthreads()
                i = (turn & (ahead - 1)) * depth + d
                y_at, x_at = noted(positions, np.int32(notes_at + 2 * i))
                z, p, q, exists = noted(coordinates, np.int32(coordinates_at + 4 * i))
                from_y = moved(y, (y_at + row_from) * piece)
                rows_now = rows_left if exists else np.int32(0)
                for i in range(a_turns):
                    to = np.int32(slab_at + a_to + (order ^ np.int32(i * together)) * piece)
                    ok = np.int32(i * together) < rows_now
                    fetch(shared, to, 0, from_y, i * together * piece, ok)
                for i in range(b_turns):
                    to = np.int32(slab_at + b_to + (order ^ np.int32(i * together)) * piece)
                    offset, dz, dp, dq = entry(plan, table + np.int32(2 * i * together))
                    ok = inside(q + dq, w_size)
                    if axes > 2:
                        ok &= inside(z + dz, d_size)
                    if axes > 1:
                        ok &= inside(p + dp, h_size)
                    fetch(shared, to, 0, moved(x, (x_at + offset) * piece), 0, ok)
            slab_at = np.int32(slab_at + stage) if slab_at < (stages - 1) * stage else np.int32(0)
            sent()
            if turn >= stages - 1:
                total = multiply(total, shared, np.int32(slab_at + a_at), np.int32(slab_at + b_start + b_at), lane)

        lane, row, column, a_at, b_at = place(anew(np.int32(cuda.threadIdx.x)))
        base = positions[numbers + BASE] + row * plan[W_COLUMNS]
        row_count = positions[numbers + ROWS_LEFT] - row
        finish(total, out, base, plan[W_COLUMNS], row_count, positions, positions_at + column)

    return weight_kernel


def weight_shared(dtype, tile, quads, depth, stages, *_):
    """Bytes of shared memory, as `sum_shared`."""
    pad = PAD if dtype == "float32" else 0
    slabs = stages * depth * (tile[0] + tile[1] + 2 * pad) * np.dtype(dtype).itemsize
    return slabs + 8 * (tile[1] + NOTES) + 32 * threads_of(tile, quads)


# ------------------------------------------------------------------------------------------ copies

# The plan array of `make_last`: pixels of a slice; channels, and as many with those that fill the last piece; images
# and slices, slices of an image; and the steps of the array between images, slices and channels.
LAST_PIXELS, LAST_CHANNELS, LAST_FILLED, LAST_PLANES, LAST_SLICES, LAST_IMAGE, LAST_SLICE, LAST_CHANNEL = range(8)


def make_last(dtype):
    """last[group, plane, pixel, channel] = array[plane, group, channel, pixel]; blocks of 256 threads."""
    finished = rounded if dtype == "float32" else plain

    def last_kernel(array, last, plan):
        square = cuda.shared.array(SQUARE, types.float32)
        block, across, down = np.int64(cuda.blockIdx.x), cuda.threadIdx.x % SIDE, cuda.threadIdx.x // SIDE
        pixel_blocks, channel_blocks = -(-plan[LAST_PIXELS] // SIDE), -(-plan[LAST_FILLED] // SIDE)
        first_pixel = block % pixel_blocks * SIDE
        block //= pixel_blocks
        first_channel = block % channel_blocks * SIDE
        block //= channel_blocks
        plane, group = block % plan[LAST_PLANES], block // plan[LAST_PLANES]
        image = plane // plan[LAST_SLICES]
        at = image * plan[LAST_IMAGE] + (plane - image * plan[LAST_SLICES]) * plan[LAST_SLICE] + first_pixel + across
        at += (group * plan[LAST_CHANNELS] + first_channel) * plan[LAST_CHANNEL]
        for i in range(down, SIDE, 8):
            value = zero(array)
            if first_channel + i < plan[LAST_CHANNELS] and first_pixel + across < plan[LAST_PIXELS]:
                value = load(array, at + i * plan[LAST_CHANNEL])
            square[i * (SIDE + 1) + across] = value
        cuda.syncthreads()
        to = ((group * plan[LAST_PLANES] + plane) * plan[LAST_PIXELS] + first_pixel) * plan[LAST_FILLED]
        to += first_channel + across
        for i in range(down, SIDE, 8):
            if first_pixel + i < plan[LAST_PIXELS] and first_channel + across < plan[LAST_FILLED]:
                store(last, to + i * plan[LAST_FILLED], finished(square[across * (SIDE + 1) + i]))

    return last_kernel


# The plan array of `make_pack`, before each step's offset in the weights.
PACK_ROWS, PACK_FILLED, PACK_STEPS, PACK_GROUP, PACK_ROW, PACK_HEADER = range(6)


def make_pack(dtype):
    """packed[group, row, step] = w[group, row, step], zeros where there is none; a block of threads for each row."""
    finished = rounded if dtype == "float32" else plain

    def pack_kernel(w, packed, plan):
        block = np.int64(cuda.blockIdx.x)
        row, group = block % plan[PACK_FILLED], block // plan[PACK_FILLED]
        for step in range(cuda.threadIdx.x, plan[PACK_STEPS], cuda.blockDim.x):
            at, value = plan[PACK_HEADER + step], zero(w)
            if row < plan[PACK_ROWS] and at != NOWHERE:
                value = load(w, group * plan[PACK_GROUP] + row * plan[PACK_ROW] + at)
            store(packed, block * plan[PACK_STEPS] + step, finished(value))

    return pack_kernel
