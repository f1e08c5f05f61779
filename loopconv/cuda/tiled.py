"""Implicit GEMM: the three contractions as products of tiles in shared memory. README.md has the contract.

    out[m, j] = sum over steps of a[step, m] * b[step, j]

* forward, and each phase of the adjoint: m result channels, j pixels of the whole batch, steps (channel, tap); a is the
  packed weights, b the source, found through one table entry per step;
* weight gradient: m channels of y, j (channel of x, tap), steps pixels of the whole batch; a is y, b is x.

Every block owns a tile of the result. Slabs of `depth` steps travel to shared memory some slabs ahead, while the tile
in registers takes up the one that has arrived. Positions are 64-bit, within one image's group 32-bit.
"""

import numpy as np
from numba import cuda, int64

from loopconv.cuda.intrinsics import (
    WIDE,
    entry,
    fetch,
    fetch_wide,
    inside,
    make_arrived,
    make_tile,
    pixel,
    sent,
    warp_tile,
)

# A table entry: offset in the source, and displacement on three axes. This offset says that there is no such step.
NOWHERE = -1

# ------------------------------------------------------------------------------------------ numbers

# The plan array of the sum kernel: these, then PHASE numbers for each phase, then two words for each step.
(
    ROW_BLOCKS, COLUMN_BLOCKS, PHASES, SPLITS, ROWS, PITCH, STEPS, BATCH, HAS_BIAS,
    SOURCE_IMAGE, SOURCE_GROUP, SOURCE_STEPS, OUT_IMAGE, OUT_GROUP, OUT_ROW, OUT_STEPS, OUT_SPLIT, STRIDE, SIZES,
) = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 16, 17, 20, 21, 24)  # fmt: skip
TABLES = 27  # where the entries begin
SUM_HEADER = 28

# For each phase: its first slab, slabs, first result element, and pixels of an image, of a slice and of a row, each as
# (number, multiplier, shift) for division.
PHASE_SLAB, PHASE_SLABS, PHASE_START, PHASE_PIXELS = 0, 1, 2, 3
PHASE = 12


def make_sum(kind, dtype, tile, quads, depth, stages, axes, wide_source, wide_out):
    """The kernel of forward and adjoint.

    kind, dtype : "fma" or "tf32"; "float32" or "float64", in which is summed
    tile, quads : (rows, columns) of a block, and quads of a thread
    depth, stages : steps of a slab, slabs in shared memory
    axes : how many of the last axes can leave the source
    wide_source, wide_out : whether neighbouring pixels can be read, and written, 16 bytes at a time
    """
    rows, columns = tile
    warp_rows, warp_columns = warp_tile(kind, *quads)
    warps_down = rows // warp_rows
    threads = 32 * warps_down * (columns // warp_columns)
    pad = tile_pad(kind)
    a_pitch, b_pitch = rows + pad, columns + pad
    stage, b_start = depth * (a_pitch + b_pitch), depth * a_pitch
    size = np.dtype(dtype).itemsize
    vector = WIDE // size
    run = vector if wide_source else 1
    a_across, b_across = rows // vector, columns // run  # threads along a row of a slab
    a_every, b_every = threads // a_across, threads // b_across  # rows of a slab that all threads fetch at once
    a_turns, b_turns = depth // a_every, depth // b_every
    positions_at = stages * stage * size // 8
    is_fma = kind == "fma"
    begin, multiply, finish, finish_wide = make_tile(kind, dtype, *quads, depth, a_pitch, b_pitch)
    arrived = make_arrived(stages - 2)
    element = getattr(np, dtype)

    def sum_kernel(packed, source, bias, out, plan):
        shared = cuda.shared.array(0, element)
        positions = cuda.shared.array(0, int64)
        t = int64(cuda.threadIdx.x)
        block = int64(cuda.blockIdx.x)
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
        zs, ps, qs = z * plan[STRIDE], p * plan[STRIDE + 1], q * plan[STRIDE + 2]
        here += zs * plan[SOURCE_STEPS] + ps * plan[SOURCE_STEPS + 1] + qs * plan[SOURCE_STEPS + 2]
        z0, p0, q0 = np.int32(zs), np.int32(ps), np.int32(qs)
        exists = j < last
        if t < columns:
            n, z, p, q = pixel(first_column - first_image * image_pixels + t, plan, phase + PHASE_PIXELS)
            to = (n + first_image) * plan[OUT_IMAGE] + z * plan[OUT_STEPS]
            to += p * plan[OUT_STEPS + 1] + q * plan[OUT_STEPS + 2]
            positions[positions_at + t] = to if t < last else -1

        d_size, h_size, w_size = np.int32(plan[SIZES]), np.int32(plan[SIZES + 1]), np.int32(plan[SIZES + 2])
        slabs = plan[phase + PHASE_SLABS]
        first_slab = slabs * split // plan[SPLITS]
        slabs = slabs * (split + 1) // plan[SPLITS] - first_slab
        first_slab += plan[phase + PHASE_SLAB]
        a_from = (group * plan[STEPS] + first_slab * depth + t // a_across) * plan[PITCH]
        a_from += first_row + t % a_across * vector
        b_from = plan[TABLES] + 2 * (first_slab * depth + t // b_across)
        a_to = np.int32(t // a_across * a_pitch + t % a_across * vector)
        b_to = np.int32(b_start + t // b_across * b_pitch + j)

        # where this thread's tile is: result row and column, and its operands in a slab
        lane, warp = t & 31, t >> 5
        down = lane >> 3 if is_fma else lane >> 2
        row = np.int32(warp % warps_down * warp_rows + 4 * down)
        column = np.int32(warp // warps_down * warp_columns + ((lane & 7) * 4 if is_fma else (lane & 3) * 8))
        a_at = np.int32(row + (0 if is_fma else (lane & 3) * a_pitch))
        b_at = np.int32(b_start + (column if is_fma else warp // warps_down * warp_columns + 4 * down + (lane & 3) * b_pitch))
        row_count = plan[ROWS] - first_row - row
        has_bias = (plan[HAS_BIAS] != 0) & (split == 0)
        total = begin(bias, group * plan[ROWS] + first_row + row, row_count, has_bias)
        if t == 0:  # which costs fewer registers than to keep them
            base = split * plan[OUT_SPLIT] + plan[phase + PHASE_START] + group * plan[OUT_GROUP]
            positions[positions_at + columns] = base + first_row * plan[OUT_ROW]
            positions[positions_at + columns + 1] = plan[ROWS] - first_row

        writing, reading = np.int32(0), np.int32(0)
        slabs = np.int32(slabs)
        for step in range(slabs + np.int32(stages - 1)):
            # this slab's fetches have arrived, and all are done with the one whose place is taken next
            arrived()
            cuda.syncthreads()
            if step < slabs:
                for i in range(a_turns):
                    fetch_wide(shared, np.int32(writing + a_to + i * a_every * a_pitch), packed, a_from, True)
                    a_from += a_every * plan[PITCH]
                for i in range(b_turns):
                    offset, dz, dp, dq = entry(plan, b_from)
                    ok = exists & (offset != NOWHERE)
                    if axes > 2:
                        ok &= inside(z0 + dz, d_size)
                    if axes > 1:
                        ok &= inside(p0 + dp, h_size)
                    if axes > 0:
                        ok &= inside(q0 + dq, w_size)
                    to = np.int32(writing + b_to + i * b_every * b_pitch)
                    if wide_source:
                        fetch_wide(shared, to, source, here + offset, ok)
                    else:
                        fetch(shared, to, source, here + offset, ok)
                    b_from += 2 * b_every
                writing = np.int32(writing + stage) if writing < (stages - 1) * stage else np.int32(0)
            sent()
            if step >= stages - 1:
                total = multiply(total, shared, np.int32(reading + a_at), np.int32(reading + b_at), lane)
                reading = np.int32(reading + stage) if reading < (stages - 1) * stage else np.int32(0)

        base = positions[positions_at + columns] + row * plan[OUT_ROW]
        row_count = positions[positions_at + columns + 1] - row
        if wide_out:
            finish_wide(total, out, base, plan[OUT_ROW], row_count, positions, positions_at + column)
        else:
            finish(total, out, base, plan[OUT_ROW], row_count, positions, positions_at + column)

    return sum_kernel


def tile_pad(kind):
    """Elements between the rows of a slab, so that what a quarter of a warp touches lies in different banks."""
    return 4 if kind == "fma" else 8
