"""Implicit GEMM: the three contractions as products of tiles in shared memory. README.md has the contract.

    out[m, j] = sum over steps of a[step, m] * b[step, j]

* forward, and each phase of the adjoint: m result channels, j pixels of the whole batch, steps (channel, tap); a is the
  packed weights, b the source, found through one table entry per step;
* weight gradient: m channels of y, j (channel of x, tap), steps pixels of the whole batch; a is y, b is x.

Every block owns a tile of the result. Slabs of `depth` steps travel to shared memory some slabs ahead, while the tile
in registers takes up the one that has arrived. Positions are 64-bit, within one image's group 32-bit.
"""

import numpy as np
from numba import cuda
from numba.cuda import types

from loopconv.cuda import fragments, intrinsics
from loopconv.cuda.elements import load, store
from loopconv.cuda.emit import WIDE
from loopconv.cuda.intrinsics import (
    anew,
    entry,
    inside,
    make_arrived,
    make_fetch,
    moved,
    noted,
    paired,
    pixel,
    sent,
)

# An offset that says that there is no such step, and a displacement that no pixel has.
NOWHERE, AWAY = -1, -(2**31) // 2

# ------------------------------------------------------------------------------------------ numbers

# The plan array of the sum kernel: these, then PHASE numbers for each phase, then two words for each step: its offset
# in the source and its displacement on three axes, 32 bits each.
(
    ROW_BLOCKS, COLUMN_BLOCKS, PHASES, SPLITS, ROWS, PITCH, STEPS, BATCH, HAS_BIAS, SOURCE_IMAGE, SOURCE_GROUP,
    SOURCE_Z, SOURCE_P, SOURCE_Q, OUT_IMAGE, OUT_GROUP, OUT_ROW, OUT_Z, OUT_P, OUT_Q, OUT_SPLIT,
    STRIDE_Z, STRIDE_P, STRIDE_Q, SIZE_Z, SIZE_P, SIZE_Q, TABLE,
) = range(28)  # fmt: skip
SUM_HEADER = 28

# For each phase: its first slab, slabs, first result element, and pixels of an image, of a slice and of a row, each as
# (number, multiplier, shift) for division.
PHASE_SLAB, PHASE_SLABS, PHASE_START, PHASE_PIXELS = 0, 1, 2, 3
PHASE = 12


def make_sum(dtype, tile, quads, depth, stages, axes, wide_source, wide_out):
    """The kernel of forward and adjoint.

    dtype : "float32" or "float64", in which is summed
    tile, quads : (rows, columns) of a block, and quads of a thread
    depth, stages : steps of a slab, slabs in shared memory
    axes : how many of the last axes can leave the source
    wide_source, wide_out : whether neighbouring pixels can be read, and written, 16 bytes at a time
    """
    rows, columns = tile
    threads = threads_of(dtype, tile, quads)
    a_pitch, b_pitch = rows + PAD, columns + PAD
    stage, b_start = depth * (a_pitch + b_pitch), depth * a_pitch
    size = np.dtype(dtype).itemsize
    vector = WIDE // size
    run = vector if wide_source else 1
    a_across, b_across = rows // vector, columns // run  # threads along a row of a slab
    # rows of a slab that the threads fetch at once
    a_every, b_every = min(threads // a_across, depth), min(threads // b_across, depth)
    a_turns, b_turns = depth // a_every, depth // b_every
    # threads that have something to fetch, 0 where all have
    a_threads, b_threads = (n % threads for n in (a_every * a_across, b_every * b_across))
    positions_at = stages * stage * size // 8
    place, begin, multiply, finish = make_tile(dtype, tile, quads, depth, (a_pitch, b_pitch), wide_out)
    fetch_a, fetch_b, arrived = make_fetch(True), make_fetch(wide_source), make_arrived(stages - 2)
    element = getattr(types, dtype)

    # Over 100 lines with the constants above: from the first fetch to the last, all of it shares one set of registers
    # and these constants, and parts of it would pass a dozen numbers to each other.
    def sum_kernel(packed, source, bias, out, plan):
        shared = cuda.shared.array(0, element)
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

        # the pixel that this thread fetches: where it lies, and its coordinates
        image_pixels = plan[phase + PHASE_PIXELS]
        first_image = first_column // image_pixels
        last = plan[BATCH] * image_pixels - first_column
        j = t % b_across * run
        n, z, p, q = pixel(first_column - first_image * image_pixels + j, plan, phase + PHASE_PIXELS)
        n += first_image
        here = n * plan[SOURCE_IMAGE] + group * plan[SOURCE_GROUP]
        zs, ps, qs = z * plan[STRIDE_Z], p * plan[STRIDE_P], q * plan[STRIDE_Q]
        here += zs * plan[SOURCE_Z] + ps * plan[SOURCE_P] + qs * plan[SOURCE_Q]
        z0, p0, q0 = np.int32(zs), np.int32(ps), np.int32(qs)
        from_here = moved(source, here)
        exists = j < last
        if axes and not exists:
            q0 = np.int32(AWAY)  # which no displacement brings inside
        if t < columns:
            n, z, p, q = pixel(first_column - first_image * image_pixels + t, plan, phase + PHASE_PIXELS)
            to = (n + first_image) * plan[OUT_IMAGE] + z * plan[OUT_Z]
            to += p * plan[OUT_P] + q * plan[OUT_Q]
            positions[positions_at + t] = to if t < last else -1

        h_size, w_size = np.int32(plan[SIZE_P]), np.int32(plan[SIZE_Q])
        slabs = plan[phase + PHASE_SLABS]
        first_slab = slabs * split // plan[SPLITS]
        slabs = slabs * (split + 1) // plan[SPLITS] - first_slab
        first_slab += plan[phase + PHASE_SLAB]
        a_from = (group * plan[STEPS] + first_slab * depth + t // a_across) * plan[PITCH]
        a_from += first_row + t % a_across * vector
        a_step = np.int32(depth * plan[PITCH])
        b_from = np.int32(plan[TABLE] + 2 * (first_slab * depth + t // b_across))
        a_to = np.int32(t // a_across * a_pitch + t % a_across * vector)
        b_to = np.int32(b_start + t // b_across * b_pitch + j)

        lane, row, column, a_at, b_at = place(np.int32(t))
        row_count = plan[ROWS] - first_row - row
        has_bias = (plan[HAS_BIAS] != 0) & (split == 0)
        total = begin(bias, group * plan[ROWS] + first_row + row, row_count, has_bias)
        if t == 0:  # in shared memory, as `anew`, so that no registers are spent on them meanwhile
            base = split * plan[OUT_SPLIT] + plan[phase + PHASE_START] + group * plan[OUT_GROUP]
            positions[positions_at + columns] = base + first_row * plan[OUT_ROW]
            positions[positions_at + columns + 1] = plan[ROWS] - first_row

        # in shared memory, of the slab that is fetched; the next one is the oldest, which is used
        slab_at = np.int32(0)
        slabs = np.int32(slabs)
        for step in range(np.int32(slabs + stages - 1)):
            # this slab's fetches have arrived, and all are done with the one whose place is taken next
            arrived()
            cuda.syncthreads()
            if step < slabs:
                if not a_threads or t < a_threads:
                    for i in range(a_turns):
                        at = np.int32(i * a_every * plan[PITCH])
                        fetch_a(
                            shared, np.int32(slab_at + a_to), i * a_every * a_pitch, moved(packed, a_from), at, True
                        )
                if not b_threads or t < b_threads:
                    for i in range(b_turns):
                        offset, dz, dp, dq = entry(plan, b_from + np.int32(2 * i * b_every))
                        ok = True if axes else exists & (dq != AWAY)
                        if axes > 2:
                            ok &= inside(z0 + dz, np.int32(plan[SIZE_Z]))
                        if axes > 1:
                            ok &= inside(p0 + dp, np.int32(plan[SIZE_P]) if axes > 2 else h_size)
                        if axes > 0:
                            ok &= inside(q0 + dq, w_size)
                        fetch_b(shared, np.int32(slab_at + b_to), i * b_every * b_pitch, from_here, offset, ok)
                a_from += a_step
                b_from = np.int32(b_from + 2 * depth)
            slab_at = np.int32(slab_at + stage) if slab_at < (stages - 1) * stage else np.int32(0)
            sent()
            if step >= stages - 1:
                total = multiply(total, shared, np.int32(slab_at + a_at), np.int32(slab_at + b_start + b_at), lane)

        lane, row, column, a_at, b_at = place(anew(np.int32(cuda.threadIdx.x)))
        base = positions[positions_at + columns] + row * plan[OUT_ROW]
        row_count = positions[positions_at + columns + 1] - row
        finish(total, out, base, plan[OUT_ROW], row_count, positions, positions_at + column)

    return sum_kernel


# Elements between the rows of a slab, so that what a quarter of a warp touches lies in different banks.
PAD = 4


def threads_of(dtype, tile, quads):
    """Threads of a block: a warp for every warp's tile."""
    if dtype == "float64":
        return fragments.threads_of(tile, quads)
    return 32 * (tile[0] // (16 * quads[0])) * (tile[1] // (32 * quads[1]))


def make_tile(dtype, tile, quads, depth, pitches, wide):
    """`intrinsics.make_tile`, or of float64 `fragments.make_tile`: tensor cores round doubles as others do."""
    if dtype == "float64":
        return fragments.make_tile("singles", dtype, tile, quads, depth, pitches, wide)
    return intrinsics.make_tile(dtype, tile, *quads, depth, *pitches, wide)


# The plan array of the weight kernel, before two words for each column: its offset in x and its displacement.
(
    W_ROW_BLOCKS, W_COLUMN_BLOCKS, W_SPLITS, W_ROWS, W_COLUMNS, W_STEPS, W_SIZE, Y_IMAGE, Y_GROUP, Y_ROW, Y_Z, Y_P, Y_Q,
    X_IMAGE, X_GROUP, X_Z, X_P, X_Q, W_STRIDE_Z, W_STRIDE_P, W_STRIDE_Q, W_SIZE_Z, W_SIZE_P, W_SIZE_Q, W_PIXELS,
) = range(25)  # fmt: skip
# W_PIXELS has nine numbers; W_TAPS is for tensor.py, and entries are aligned
W_TAPS, WEIGHT_HEADER = 33, 34


# Where the block's own numbers are in `positions`, after those of its columns.
BASE, ROWS_LEFT, FIRST_PIXEL, LAST_PIXEL, Y_FROM, X_FROM = range(6)
NOTES = 6


def _note_pixel(positions, coordinates, numbers, at, to, i, plan):
    i += positions[numbers + FIRST_PIXEL]
    n, z, p, q = pixel(i, plan, W_PIXELS)
    at_y = n * plan[Y_IMAGE] + z * plan[Y_Z] + p * plan[Y_P] + q * plan[Y_Q]
    z, p, q = z * plan[W_STRIDE_Z], p * plan[W_STRIDE_P], q * plan[W_STRIDE_Q]
    at_x = n * plan[X_IMAGE] + z * plan[X_Z] + p * plan[X_P] + q * plan[X_Q]
    positions[at], positions[at + 1] = positions[numbers + Y_FROM] + at_y, positions[numbers + X_FROM] + at_x
    exists = i < positions[numbers + LAST_PIXEL]
    coordinates[to], coordinates[to + 1] = z, p
    coordinates[to + 2], coordinates[to + 3] = q if exists else AWAY, exists


@paired(_note_pixel)
def note_pixel(typing, positions, coordinates, numbers, at, to, i, plan):
    """Write where pixel i of y lies, and x's below it, to positions[at] and the next.

    To coordinates[to] and the next three goes where the latter is on three axes, and whether there is one.
    """
    signature = types.void(positions, coordinates, *[types.int64] * 4, plan)
    return signature, lambda context, builder, signature, values: context.compile_internal(
        builder, _note_pixel, signature, values
    )


def make_weight(dtype, tile, quads, depth, stages, axes, wide_out):
    """The kernel of the weight gradient; its constants are as in `make_sum`."""
    rows, columns = tile
    threads = threads_of(dtype, tile, quads)
    a_pitch, b_pitch = rows + PAD, columns + PAD
    stage, b_start = depth * (a_pitch + b_pitch), depth * a_pitch
    across = threads // depth  # rows, and columns, that the threads fetch at once: each thread one pixel
    a_turns, b_turns = rows // across, columns // across
    positions_at = stages * stage * np.dtype(dtype).itemsize // 8
    place, begin, multiply, finish = make_tile(dtype, tile, quads, depth, (a_pitch, b_pitch), wide_out)
    fetch, arrived = make_fetch(False), make_arrived(stages - 2)
    element = getattr(types, dtype)
    # What is asked of one pixel by all threads is worked out once, for so many slabs at a time: with each thread asking
    # anew in each slab, that was 100 of 1411 instructions.
    ahead, numbers = threads // depth, positions_at + columns
    notes_at = numbers + NOTES
    coordinates_at = 2 * notes_at + 4 * threads

    # Over 100 lines with the constants above, for the reason that `make_sum` gives.
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

        # what this thread fetches: of one pixel of the slab, every so many rows and columns; a warp has eight pixels, a
        # sector of memory, of four rows, whose places in shared memory are in 32 banks
        d, row = t % 8 + t // 32 % (depth // 8) * 8, t // 8 % 4 + t // (4 * depth) * 4
        a_to, b_to = np.int32(d * a_pitch + row), np.int32(b_start + d * b_pitch + row)
        row, column = first_row + row, first_column + row
        row_from, y_step = np.int32(row * plan[Y_ROW]), np.int32(across * plan[Y_ROW])
        a_rows = np.int32(min(plan[W_ROWS] - row, rows))
        table = np.int32(WEIGHT_HEADER + 2 * column)

        lane, row, column, a_at, b_at = place(np.int32(t))
        total = begin(y, 0, 0, False)
        if t < columns:
            positions[positions_at + t] = first_column + t if first_column + t < plan[W_COLUMNS] else -1
        if t == 0:  # in shared memory, as `anew`, so that no registers are spent on them meanwhile
            base = split * plan[W_SIZE] + (group * plan[W_ROWS] + first_row) * plan[W_COLUMNS]
            positions[numbers + BASE], positions[numbers + ROWS_LEFT] = base, plan[W_ROWS] - first_row
            positions[numbers + FIRST_PIXEL] = first_slab * depth - first_image * plan[W_PIXELS]
            positions[numbers + LAST_PIXEL] = plan[W_STEPS] - first_image * plan[W_PIXELS]
            positions[numbers + Y_FROM] = first_image * plan[Y_IMAGE] + group * plan[Y_GROUP]
            positions[numbers + X_FROM] = first_image * plan[X_IMAGE] + group * plan[X_GROUP]

        # in shared memory, of the slab that is fetched; the next one is the oldest, which is used
        slab_at = np.int32(0)
        for turn in range(np.int32(slabs + stages - 1)):
            arrived()
            cuda.syncthreads()
            if turn < anew(slabs):
                if turn & (ahead - 1) == 0:
                    me = anew(np.int32(cuda.threadIdx.x))
                    i = turn * depth + me
                    note_pixel(positions, coordinates, numbers, notes_at + 2 * me, coordinates_at + 4 * me, i, plan)
                    cuda.syncthreads()
                me = anew(np.int32(cuda.threadIdx.x))
                i = (turn & (ahead - 1)) * depth + me % 8 + me // 32 % (depth // 8) * 8
                y_at, x_at = noted(positions, np.int32(notes_at + 2 * i))
                z, p, q, exists = noted(coordinates, np.int32(coordinates_at + 4 * i))
                d_size, h_size, w_size = np.int32(plan[W_SIZE_Z]), np.int32(plan[W_SIZE_P]), np.int32(plan[W_SIZE_Q])
                from_y, from_x = moved(y, y_at + anew(row_from)), moved(x, x_at)
                step_now, table_now, rows_now = anew(y_step), anew(table), anew(a_rows) if exists else np.int32(0)
                for k in range(a_turns):
                    ok = np.int32(k * across) < rows_now
                    fetch(shared, np.int32(slab_at + a_to), k * across, from_y, np.int32(k) * step_now, ok)
                for k in range(b_turns):
                    offset, dz, dp, dq = entry(plan, table_now + np.int32(2 * k * across))
                    ok = inside(q + dq, w_size)
                    if axes > 2:
                        ok &= inside(z + dz, d_size)
                    if axes > 1:
                        ok &= inside(p + dp, h_size)
                    fetch(shared, np.int32(slab_at + b_to), k * across, from_x, offset, ok)
            slab_at = np.int32(slab_at + stage) if slab_at < (stages - 1) * stage else np.int32(0)
            sent()
            if turn >= stages - 1:
                total = multiply(total, shared, np.int32(slab_at + a_at), np.int32(slab_at + b_start + b_at), lane)

        lane, row, column, a_at, b_at = place(anew(np.int32(cuda.threadIdx.x)))
        base = positions[numbers + BASE] + row * plan[W_COLUMNS]
        row_count = positions[numbers + ROWS_LEFT] - row
        finish(total, out, base, plan[W_COLUMNS], row_count, positions, positions_at + column)

    return weight_kernel


def sum_shared(dtype, tile, quads, depth, stages, *_):
    """Bytes of shared memory: the slabs, where the result pixels lie, and two more numbers."""
    slab = depth * (tile[0] + tile[1] + 2 * PAD)
    return stages * slab * np.dtype(dtype).itemsize + 8 * (tile[1] + 2)


def weight_shared(dtype, tile, quads, *constants):
    """The same for the weight gradient, and what each thread notes of a pixel."""
    return sum_shared(dtype, tile, quads, *constants) + 8 * (NOTES - 2) + 32 * threads_of(dtype, tile, quads)


# The plan array of the packer, before two words for each step, of which the first is its offset in the weights.
PACK_ROWS, PACK_PITCH, PACK_STEPS, PACK_GROUP, PACK_ROW, PACK_HEADER = range(6)
SIDE = 32  # of the squares in which the packer goes from step after step to row after row
SQUARE = SIDE * (SIDE + 1)


def make_pack(dtype):
    """packed[group, step, row] = w[group, row, step], zeros where there is none; blocks of 256 threads."""

    element = getattr(types, dtype)

    def pack_kernel(w, packed, plan):
        square = cuda.shared.array(SQUARE, element)
        block, across, down = np.int64(cuda.blockIdx.x), cuda.threadIdx.x % SIDE, cuda.threadIdx.x // SIDE
        row_blocks, step_blocks = plan[PACK_PITCH] // SIDE, -(-plan[PACK_STEPS] // SIDE)
        first_row = block % row_blocks * SIDE
        block //= row_blocks
        first_step = block % step_blocks * SIDE
        group = block // step_blocks
        for i in range(down, SIDE, 8):
            row, step = first_row + i, first_step + across
            value = 0.0
            if row < plan[PACK_ROWS] and step < plan[PACK_STEPS]:
                at = plan[PACK_HEADER + step]
                if at != NOWHERE:
                    value = load(w, group * plan[PACK_GROUP] + row * plan[PACK_ROW] + at)
            square[i * (SIDE + 1) + across] = value
        cuda.syncthreads()
        for i in range(down, SIDE, 8):
            if first_step + i < plan[PACK_STEPS]:
                to = (group * plan[PACK_STEPS] + first_step + i) * plan[PACK_PITCH] + first_row + across
                packed[to] = square[across * (SIDE + 1) + i]

    return pack_kernel


ADD_PARTS, ADD_SIZE, ADD_PLANE, ADD_CHANNELS, ADD_BIAS, ADD_HEADER = range(6)


def make_add_up(dtype):
    """out[i] = partial[0, i] + partial[1, i] + ... + bias, in this order."""

    def add_up_kernel(partial, bias, out, plan):
        i = np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        while i < plan[ADD_SIZE]:
            total = partial[i]
            for part in range(1, plan[ADD_PARTS]):
                total += partial[part * plan[ADD_SIZE] + i]
            if plan[ADD_BIAS]:
                total += load(bias, i // plan[ADD_PLANE] % plan[ADD_CHANNELS])
            store(out, i, total)
            i += np.int64(cuda.gridDim.x) * cuda.blockDim.x

    return add_up_kernel
